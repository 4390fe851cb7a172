"""What attributions explain: checked inputs, and one scalar of the outputs for each of them.

The scalar of an input is output `target`, output `target` minus output `against`, or, with
`log_probability`, the logarithm of the probability of `target`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch

from xaiutils import probe, runtime
from xaiutils.data.images import as_numpy, as_real, no_nan
from xaiutils.inputs import ask
from xaiutils.outputs import KINDS, Classes, as_array, as_tensor
from xaiutils.probe import HOOKS as HOOKS


class Task:
    """Checked inputs on the model's device, and the scalar explained for each of them.

    Parameters
    ----------
    model : torch.nn.Module
        Maps (B, *shape) to logits (B, K), in evaluation mode.
    x : floating array or tensor (n, *shape)
    target : ints (n,), each in 0..K-1
    against : ints (n,), optional
        Subtract these outputs.
    log_probability : bool or {"logits", "probabilities"}
        Explain the log-probability of `target` instead of its logit; only without `against`. What
        the outputs are can be told; True takes them for logits and refuses probabilities.
    argument : str
        What messages call `log_probability`.

    Attributes
    ----------
    x : Tensor (n, *shape)
        Where the model lives and in its dtype, but in single precision for a half one.

    Raises
    ------
    ValueError
        If the model is no module, if a shape or a class does not fit, if x is not floating or holds
        NaN, or if `log_probability` comes with `against`. The methods: if the model's outputs do
        not fit, depend on x in no way that torch can differentiate, or are NaN or infinite.
    """

    def __init__(
        self,
        model,
        x,
        target,
        against=None,
        log_probability: bool | str = False,
        argument: str = "log_probability",
    ):
        if not isinstance(model, torch.nn.Module):
            raise ValueError(
                f"model must be a torch.nn.Module, whose gradients are known: got {type(model)}"
            )
        values = as_real(x)
        x = (x if isinstance(x, torch.Tensor) else torch.as_tensor(values)).detach()
        if x.ndim < 2 or len(x) == 0:
            raise ValueError(f"x must be a batch (n, ...) of inputs, got shape {tuple(x.shape)}")
        if not x.is_floating_point():
            raise ValueError(
                f"x must be floating, got {x.dtype}: x / 255 for a model of images in [0, 1]"
            )
        no_nan("x", values)
        if log_probability and against is not None:
            raise ValueError(
                "log_probability explains target alone: against must be None with it, or "
                "log_probability False"
            )
        if log_probability not in (False, True, *KINDS):
            raise ValueError(f"log_probability must be a bool or one of {KINDS}: {log_probability}")
        weights = [*model.parameters(), *model.buffers()]
        like = next((w for w in weights if w.is_floating_point()), x)
        self.model, self._dtype = model, like.dtype
        self.probed = model  # the module whose answers `batches` checks, also for copies of it
        # Sums over many gradients need more than half precision.
        half = like.dtype in (torch.float16, torch.bfloat16)
        self.x = x.to(like.device, torch.float32 if half else like.dtype)
        self.target = self._indices("target", target)
        self.against = None if against is None else self._indices("against", against)
        told = log_probability if isinstance(log_probability, str) else None
        self._classes = Classes(told, argument) if log_probability else None
        self._judged = False

    @property
    def dtype(self) -> torch.dtype:
        """In which the model computes."""
        return self._dtype

    def _indices(self, name, values) -> np.ndarray:
        """One output index for each input."""
        try:
            return classes(name, values, len(self.x))
        except ValueError as error:
            shape = tuple(self.x.shape)
            raise ValueError(f"{error}; x is a batch of {len(self.x)}, {shape}") from None

    def like_x(self, baseline) -> torch.Tensor:
        """`baseline`, anything that broadcasts, with the shape, dtype and device of x."""
        no_nan("baseline", as_real(baseline, "baseline"))
        baseline = torch.as_tensor(baseline).detach().to(self.x)
        try:
            return baseline.expand_as(self.x)
        except RuntimeError:
            raise ValueError(
                f"baseline of shape {tuple(baseline.shape)} does not broadcast against x, "
                f"{tuple(self.x.shape)}"
            ) from None

    def baseline(self, values) -> torch.Tensor:
        """One baseline per input or one for all, with the shape, dtype and device of x."""
        values, shape = torch.as_tensor(values), self.x.shape
        if values.shape not in (shape, shape[1:]):
            raise ValueError(
                f"baseline must have the shape of x, {tuple(shape)}, or of one input, "
                f"{tuple(shape[1:])}, got {tuple(values.shape)}"
            )
        return self.like_x(values)

    def per_row(self, values) -> torch.Tensor:
        """`values` (B,) shaped to scale a batch (B, *shape)."""
        return values.view(-1, *(1,) * (self.x.ndim - 1))

    def image_size(self) -> tuple[int, int]:
        """(H, W) of inputs (n, C, H, W); ValueError for any others."""
        if self.x.ndim != 4:
            raise ValueError(f"x must be images (n, C, H, W), got shape {tuple(self.x.shape)}")
        return tuple(self.x.shape[2:])

    def outputs(self, batch) -> torch.Tensor:
        """Outputs of the model for a batch (B, *shape), which it may write to."""
        return as_tensor(ask(self.model, batch.to(self._dtype, copy=True)))

    def explained(self, out, rows) -> torch.Tensor:
        """The scalar (B,) in outputs (B, K) for copies of inputs `rows` (B,)."""
        out = as_tensor(out)
        if out.ndim != 2 or len(out) != len(rows):
            raise ValueError(
                f"model must return (batch, outputs), got {tuple(out.shape)} for {len(rows)} rows"
            )
        if self._classes is not None:
            out = self._log_probabilities(out)
        for name, wanted in (("target", self.target), ("against", self.against)):
            if wanted is not None and wanted.max() >= out.shape[1]:
                raise ValueError(f"{name} must be within 0..{out.shape[1] - 1}: {wanted.max()}")
        each = np.arange(len(rows))
        scalar = out[each, self.target[rows]]
        if self.against is not None:
            scalar = scalar - out[each, self.against[rows]]
        _finite("model returned" if self._classes is None else "log-probability is", scalar, rows)
        return scalar

    def _log_probabilities(self, out) -> torch.Tensor:
        if not self._judged:  # the first batch tells what the others are
            self._classes.check(as_array(out))
            self._classes.settle()
            self._judged = True
        return out.log() if self._classes.kind == "probabilities" else out.log_softmax(1)

    def scalar_of(self, rows) -> Callable:
        """Function from a batch of copies of inputs `rows` to its explained scalars."""
        return lambda batch: self.explained(self.outputs(batch), rows)

    def gradients(self, points, rows) -> torch.Tensor:
        """Gradient of the scalar at `points` (B, *shape), copies of inputs `rows`."""
        return self.values_and_gradients(points, rows)[1]

    def values_and_gradients(self, points, rows) -> tuple[torch.Tensor, torch.Tensor]:
        """The scalar, (B,), and its gradient at `points` (B, *shape), copies of inputs `rows`."""
        with torch.enable_grad():
            points = points.detach().requires_grad_()
            scalar = self.scalar_of(rows)(points)
            if not scalar.requires_grad:
                raise ValueError(
                    "model's outputs have no gradient: its forward leaves torch, detaches, or runs "
                    "under no_grad"
                )
            (slopes,) = torch.autograd.grad(scalar.sum(), points, allow_unused=True)
        if slopes is None:
            raise ValueError("model's outputs do not depend on x, or only on a detached copy of it")
        _finite("the gradient holds", slopes, rows)
        return scalar.detach(), slopes

    def batches(self, copies: int, batch_size: int) -> Iterator[tuple]:
        """All (input, copy) pairs, input by input, in batches (pieces, inputs, copies).

        `pieces` pairs each input of the batch with its slice of the batch, so that sums over
        copies do not depend on how a device orders scattered additions. A model that takes one
        input at a time gets one.

        Raises
        ------
        ValueError
            If `batch_size` is not positive, or if an input has no single answer, see `probe.check`.
        """
        if not isinstance(batch_size, int | np.integer) or batch_size is True or batch_size < 1:
            raise ValueError(f"batch_size must be a positive integer, got {batch_size!r}")
        if probe.check(self.probed, self.x[0], batch_size).single is not None:
            batch_size = 1
        pairs = np.arange(len(self.x) * copies)
        for start in range(0, len(pairs), batch_size):
            rows, copy = np.divmod(pairs[start : start + batch_size], copies)
            inputs, first = np.unique(rows, return_index=True)
            ends = [*first[1:], len(rows)]
            pieces = [(i, slice(a, b)) for i, a, b in zip(inputs, first, ends, strict=True)]
            yield pieces, rows, copy

    def each_gradient(self, copies: int, batch_size: int, points: Callable) -> Iterator[tuple]:
        """The `batches` in order, each with the `gradients` at its points.

        Parameters
        ----------
        copies, batch_size : int
        points : callable
            ``points(inputs, copies) -> tensor (B, *shape)``, called in order.

        Yields
        ------
        pieces, inputs, copies
            See `batches`.
        gradients : tensor (B, *shape)
        """

        def with_gradients(made):
            batch, at = made
            return *batch, self.gradients(at, batch[1])

        batches = ((b, points(*b[1:])) for b in self.batches(copies, batch_size))
        yield from runtime.side_by_side(with_gradients, batches, self.x.device)


def _finite(what: str, values: torch.Tensor, rows) -> None:
    """ValueError that names the first input of `rows` whose `values` (B, ...) are not finite."""
    finite = values.detach().isfinite()
    if not finite.all():
        bad = ~finite.reshape(len(rows), -1).all(1).cpu().numpy()
        raise ValueError(
            f"{what} NaN or infinity at {bad.sum()} of {len(rows)} points in a batch, first for "
            f"input {rows[bad.argmax()]}"
        )


def generator(seed: int, image: int) -> torch.Generator:
    """Source of the random numbers of input `image`, on the CPU, the same for any batch size."""
    state = np.random.SeedSequence([seed, image]).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state))


def classes(name: str, values, n: int, kind: str = "output indices") -> np.ndarray:
    """`values`, called `name`, as ints (n,) >= 0; ValueError, which calls them `kind`, if not.

    A single one may come without its axis.
    """
    values = as_numpy(values)
    if values.ndim == 0 and n == 1:
        values = values[None]
    if values.shape != (n,) or values.dtype.kind not in "iu" or values.min() < 0:
        raise ValueError(f"{name} must hold {n} {kind} >= 0: {values.dtype} {values.shape}")
    return values.astype(np.int64)  # torch would take uint8 for a mask
