"""Queries of a classifier: checked images, and outputs for many rows made of them, in batches."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch
from tqdm import tqdm

from xaiutils import runtime
from xaiutils.data.images import as_numpy, as_real, no_nan
from xaiutils.outputs import Classes


class ImageQueries:
    """Checked images, and a model that is asked about rows made of them.

    Parameters
    ----------
    model : torch.nn.Module or callable
        Maps (B, C, H, W) to logits (B, K), K at least 2; a module in evaluation mode.
    x : floating array or tensor (n, C, H, W)
    batch_size : int or None
        Rows per call of the model; None is what `runtime.forward` measured.
    outputs_are : {None, "logits", "probabilities"}
        See `outputs.Classes`.

    Attributes
    ----------
    x : ndarray (n, C, H, W)
        In the dtype that the model computes in.
    scale : outputs.Classes
        Makes logits or probabilities of the outputs.

    Raises
    ------
    ValueError
        If images, model or batch size do not fit; the methods, if what they check does not.
    """

    def __init__(self, model, x, batch_size, outputs_are=None):
        self.scale = Classes(outputs_are)
        x = as_real(x)
        if x.ndim != 4 or len(x) == 0 or x.dtype.kind != "f":
            raise ValueError(
                f"x must be floating-point images (n, C, H, W), got {x.dtype} of shape {x.shape}"
            )
        no_nan("x", x)
        self._forward = runtime.forward(model, x[0], batch_size=batch_size)
        self.x = self._forward.cast(x)
        self._size = self._forward.batch_size if batch_size is None else batch_size
        self._classes = {}
        if not isinstance(self._size, int | np.integer) or batch_size is True or self._size < 1:
            raise ValueError(f"batch_size must be a positive integer, got {batch_size!r}")

    def classes(self, name, values) -> np.ndarray:
        """`values`, one class for each image, (n,); `ask` checks them against the model."""
        values = as_numpy(values)
        values = values[None] if values.ndim == 0 else values
        if values.shape != self.x.shape[:1] or values.dtype.kind not in "iu":
            raise ValueError(
                f"{name} must hold {len(self.x)} classes >= 0, integers: got {values.dtype} of "
                f"shape {values.shape}"
            )
        self._classes[name] = values = values.astype(np.int64)
        return values

    def pair(self, source, target) -> tuple[np.ndarray, np.ndarray]:
        """Two classes for each image that differ, both (n,)."""
        source, target = self.classes("source", source), self.classes("target", target)
        if (source == target).any():
            image = int(np.argmax(source == target))
            raise ValueError(
                f"source and target must differ, or LO is 0: image {image} has {source[image]} "
                "for both"
            )
        return source, target

    def maps(self, scores) -> tuple[list | None, np.ndarray]:
        """Names (None if `scores` is one map) and maps (M, n, H, W), float64, finite."""
        several = isinstance(scores, Mapping)
        named = scores if several else {"scores": scores}
        if not named:
            raise ValueError("scores must hold at least one map, got an empty dict")
        maps = [as_numpy(values) for values in named.values()]
        shape = (len(self.x), *self.x.shape[2:])
        for name, values in zip(named, maps, strict=True):
            if values.shape != shape:
                raise ValueError(
                    f"{name}: scores must have one value per pixel, {shape}, got {values.shape}"
                )
            if not np.isfinite(values).all():
                raise ValueError(f"{name}: scores must be finite, got NaN or infinity")
        return list(named) if several else None, np.stack(maps).astype(np.float64)

    def like_x(self, name, values) -> np.ndarray:
        """`values` with the shape and dtype of x."""
        values = as_numpy(values)
        if values.dtype.kind == "f":
            no_nan(name, values)
        try:
            return np.broadcast_to(values, self.x.shape).astype(self.x.dtype)
        except ValueError:
            raise ValueError(
                f"{name} must broadcast against x, {self.x.shape}, got {values.shape}"
            ) from None

    def logits(self, count: int, build: Callable) -> np.ndarray:
        """Logits (count, K) of the rows that `build` makes of row numbers (B,)."""
        return self.scale.logits(self.ask(count, build))

    def ask(self, count: int, build: Callable) -> np.ndarray:
        """Outputs (count, K), as the model gives them, for the rows that `build` makes."""
        found = None
        starts = range(0, count, self._size)
        for start in tqdm(starts, desc="model calls", delay=5, leave=False, mininterval=1):
            rows = np.arange(start, min(start + self._size, count))
            batch = torch.from_numpy(build(rows)).to(self._forward.device)
            out = self._forward(batch)
            if out.ndim != 2 or len(out) != len(rows):
                raise ValueError(
                    f"model must return (batch, classes), got {out.shape} for {len(rows)} rows"
                )
            out, last = self.scale.check(out), out.shape[1] - 1
            for name, values in self._classes.items():
                low, high = values.min(), values.max()
                if low < 0 or high > last:
                    raise ValueError(f"{name} must be within 0..{last}, got {low}..{high}")
            if found is None:
                found = np.empty((count, last + 1), out.dtype)
            found[rows] = out  # a copy: a model may use its array again
        self.scale.settle()
        return found
