"""The engine: hide some components of an input and ask the classifier again.

All four papers do this. LIME hides components at random, fidelity curves hide them in
rank order, the audio paper pastes perturbed cells, GANMEX chooses what is pasted. Here a
component is anything a label map can name: a superpixel, a time-frequency cell, a pixel.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from tqdm import tqdm

from xaiutils import probe, runtime
from xaiutils.data.images import as_numpy, as_real, no_nan
from xaiutils.outputs import as_array, bad_rows

Filler = str | float | np.ndarray | torch.Tensor | Callable


class Components:
    """A partition of an input into `d` components.

    Parameters
    ----------
    labels : int array
        Component of each position, all of 0..d-1 used. Its shape must broadcast against
        the input by numpy's rules: (H, W) for an image (C, H, W), (H, W, 1) for (H, W, C),
        (T, F) for a spectrogram (T, F).

    Raises
    ------
    ValueError
        If the labels are not exactly 0..d-1. A gap or an offset would leave components
        that are never hidden, silently.

    Examples
    --------
    >>> halves = Components([[0, 0, 1, 1], [0, 0, 1, 1]])
    >>> halves
    Components(d=2, shape=(2, 4))
    >>> image = np.arange(8.0).reshape(1, 2, 4)  # (C, H, W)
    >>> halves.means(image)[0, 0]
    array([2.5, 2.5, 4.5, 4.5])
    >>> halves.spread([0.3, -0.1])
    array([[ 0.3,  0.3, -0.1, -0.1],
           [ 0.3,  0.3, -0.1, -0.1]])
    """

    def __init__(self, labels):
        labels = np.asarray(labels.cpu() if isinstance(labels, torch.Tensor) else labels)
        if labels.size == 0 or not np.issubdtype(labels.dtype, np.integer):
            raise ValueError(
                f"labels must be a non-empty integer array, got {labels.dtype} {labels.shape}"
            )
        used = np.unique(labels)
        if used[0] != 0 or used[-1] != used.size - 1:
            raise ValueError(
                f"labels must be 0..d-1 without gaps, got {used.size} distinct labels from "
                f"{used[0]} to {used[-1]}; np.unique(labels, return_inverse=True)[1] renumbers them"
            )
        self.labels = labels.astype(np.int64)
        self.d = int(used.size)

    def __repr__(self):
        return f"Components(d={self.d}, shape={self.labels.shape})"

    def aligned(self, shape: Sequence[int]) -> np.ndarray:
        """Labels with one axis for each axis of an input of this shape, length 1 where shared.

        Raises
        ------
        ValueError
            If the label map does not broadcast against `shape`.
        """
        shape = tuple(shape)
        try:
            fits = np.broadcast_shapes(self.labels.shape, shape) == shape
        except ValueError:
            fits = False
        if not fits:
            raise ValueError(
                f"labels of shape {self.labels.shape} do not broadcast against an input of shape "
                f"{shape}; give one label per position, e.g. (H, W) for an image (C, H, W)"
            )
        return self.labels.reshape((1,) * (len(shape) - self.labels.ndim) + self.labels.shape)

    def sums(self, values) -> np.ndarray:
        """Sum of `values` (any shape the labels broadcast against) over each component, (d,)."""
        values = as_numpy(values).astype(np.float64)
        labels = np.broadcast_to(self.aligned(values.shape), values.shape)
        return np.bincount(labels.ravel(), values.ravel(), minlength=self.d)

    def spread(self, scores) -> np.ndarray:
        """One score per component, (d,), drawn as a map of the labels' shape."""
        return np.asarray(scores)[self.labels]

    def means(self, x) -> np.ndarray:
        """`x` with each component replaced by its mean, channel by channel (same shape, dtype).

        Integer inputs get the nearest integer.
        """
        x = as_numpy(x)
        labels = self.aligned(x.shape)
        # Axes the labels share are channels: each (component, channel) pair is its own group.
        shared = [n if m == 1 else 1 for n, m in zip(x.shape, labels.shape, strict=True)]
        channel = np.arange(np.prod(shared, dtype=int)).reshape(shared)
        group = np.broadcast_to(labels + self.d * channel, x.shape).ravel()
        count = np.bincount(group)
        mean = np.bincount(group, x.ravel().astype(np.float64)) / np.maximum(count, 1)
        if np.issubdtype(x.dtype, np.integer):
            mean = np.rint(mean)
        return mean[group].reshape(x.shape).astype(x.dtype)


def fill(x, components: Components, filler: Filler) -> np.ndarray | Callable:
    """What replaces hidden components of `x`: an array of its shape and dtype, or a callable.

    Parameters
    ----------
    filler : "mean", number, array or callable
        "mean" is the mean of each component per channel; an array must broadcast against
        `x`. A callable gets `(x, components, masks)`, masks (B, d) bool with True = kept,
        and returns an array that broadcasts against (B, *x.shape).

    Raises
    ------
    ValueError
        If `filler` is none of these.
    """
    x = as_numpy(x)
    if callable(filler):
        return filler
    if isinstance(filler, str):
        if filler != "mean":
            raise ValueError(f'filler must be "mean", a number, an array or a callable: {filler!r}')
        return components.means(x)
    values = as_numpy(filler)
    if values.dtype.kind not in "biuf":
        raise ValueError(f'filler must be "mean", a number, an array or a callable: {filler!r}')
    try:
        values = np.broadcast_to(values, x.shape)
    except ValueError:
        raise ValueError(
            f"filler of shape {values.shape} does not broadcast against the input {x.shape}"
        ) from None
    with np.errstate(invalid="ignore"):
        cast = values.astype(x.dtype)
    if np.issubdtype(x.dtype, np.integer) and not (cast == values).all():
        raise ValueError(f"filler must hold values that {x.dtype}, the input's dtype, can hold")
    return cast


def evaluate(
    model,
    x,
    components: Components,
    masks,
    filler: Filler = "mean",
    *,
    batch_size: int | None = None,
    device: str = "auto",
    outputs: Sequence[int] | Callable | None = None,
) -> np.ndarray:
    """Outputs of `model` for `x` with components hidden as each row of `masks` says.

    Parameters
    ----------
    model : torch.nn.Module or callable
        Maps a batch (B, *x.shape) to (B, K), an array or what `outputs.as_array` finds one in. A
        module must be in evaluation mode; on the CPU it runs on ONNX Runtime. A plain callable
        gets a torch tensor that is reused for the next batch, so it must not keep it; for one that
        was written for numpy see `numpy_function`. For many
        inputs of one shape, what `runtime.forward` prepared is checked once.
    x : array or tensor
        One input, no batch axis. Floating inputs are cast to the dtype of the module's
        parameters; otherwise the dtype is kept. NaN is refused, except in the input of a plain
        callable, which may know what to make of it.
    components : Components
    masks : (N, d) array of 0/1 or bool
        1 keeps a component, 0 hides it.
    filler : see `fill`
    batch_size : int, optional
        Inputs per call; by default the fastest of a few sizes, measured once per model.
    device : str
        "auto" is where the module lives; otherwise a torch device for a copy of it.
    outputs : sequence of int or callable, optional
        Columns to keep, or a function of each batch of outputs (B, K) -> (B, ...).

    Returns
    -------
    ndarray (N, K)

    Raises
    ------
    ValueError
        If input, masks, outputs or batch size do not fit, or the model cannot take the input; each
        message names what does. Also if an output is NaN or infinite. Minus infinity, the logarithm
        of 0, is let through where the row has finite outputs too and no columns were asked for.

    Examples
    --------
    The sum of an image without its left half, without its right half, and whole:

    >>> halves = Components([[0, 0, 1, 1], [0, 0, 1, 1]])
    >>> image = np.arange(8.0).reshape(1, 2, 4)
    >>> def total(batch):
    ...     return batch.sum(dim=(1, 2, 3))[:, None]
    >>> evaluate(total, image, halves, [[0, 1], [1, 0], [1, 1]], filler=0.0)
    array([[18.],
           [10.],
           [28.]])
    """
    masks = _as_masks(masks, components.d)
    x = as_real(x)
    if isinstance(model, torch.nn.Module):
        no_nan("x", x)
    forward = runtime.forward(model, x, device, batch_size)
    x = forward.cast(x)
    hidden = fill(x, components, filler)
    if forward.backend != "callable" and not callable(hidden):
        no_nan("filler", hidden)
    size = forward.batch_size if batch_size is None else batch_size
    if not isinstance(size, int | np.integer) or batch_size is True or size < 1:
        raise ValueError(f"batch_size must be a positive integer, got {batch_size!r}")
    if forward.device.type == "cpu":
        build = _numpy_builder(x, components, hidden, min(size, max(len(masks), 1)))
    else:
        build = _torch_builder(x, components, hidden, forward.device)
    result = None
    starts = range(0, len(masks), size)
    for start in tqdm(starts, desc="model calls", delay=5, leave=False, mininterval=1):
        rows = masks[start : start + size]
        out = forward(build(rows))
        if out.ndim != 2 or len(out) != len(rows):
            raise ValueError(
                f"model must return (batch, outputs), got {out.shape} for {len(rows)} rows"
            )
        if start == 0 and len(rows) > 1 and forward.alone is not None:
            _check_alone(forward, out, rows, build)
        if outputs is not None:
            out = np.asarray(outputs(out)) if callable(outputs) else _columns(out, outputs)
        bad = bad_rows(out, strict=outputs is not None and not callable(outputs))
        if bad.size:
            raise ValueError(_not_finite(bad, masks[: start + len(rows)], start, x))
        if result is None:
            result = np.empty((len(masks), *out.shape[1:]), out.dtype)
        result[start : start + len(rows)] = out
    return np.empty((0, 0), x.dtype) if result is None else result


def _check_alone(forward, out, masks, build) -> None:
    """ValueError if the most or the least hidden of some inputs gets another answer alone.

    What an input looks like may decide whether a model mixes it with others of its batch, so that
    this is not seen before. A model is asked once.
    """
    kept = masks.sum(axis=1)
    for i in (int(kept.argmin()), int(kept.argmax())):
        found, expected = out[i : i + 1].copy(), forward.alone(build(masks[i : i + 1]))
        if probe.differs(found, expected, probe.LOOSE):
            raise ValueError(probe.mixing(found, expected))
    forward.alone = None


def _numpy_builder(x, components, hidden, size):
    """Function from masks (B, d) to a batch (B, *x.shape) in one reused buffer, on the CPU.

    `hidden` is what `fill` gave. If it is fixed, kept and hidden values are chosen bit by bit,
    without a branch: for masks of single pixels that is ten times faster than numpy's masked copy
    or torch.where.
    """
    labels = components.aligned(x.shape)
    flat = labels.ravel()
    buffer = np.empty((size, *x.shape), x.dtype)
    if not callable(hidden):
        bits = np.dtype(f"i{x.itemsize}")
        under = np.ascontiguousarray(hidden).view(bits)
        change = np.ascontiguousarray(x).view(bits) ^ under

    def build(masks):
        batch = buffer[: len(masks)]
        keep = masks.take(flat, axis=1).reshape(len(masks), *labels.shape)
        if callable(hidden):
            batch[:] = hidden(x.copy(), components, masks)  # which it may write to
            np.copyto(batch, x, where=keep)
        else:
            np.multiply(change, keep.view(np.int8), out=batch.view(bits))
            np.bitwise_xor(batch.view(bits), under, out=batch.view(bits))
        return torch.from_numpy(batch)

    return build


def _torch_builder(x, components, hidden, device):
    """The same on any device; only the masks travel there."""
    labels = components.aligned(x.shape)
    index = torch.from_numpy(labels.ravel()).to(device)
    kept = torch.tensor(x, device=device)
    still = None if callable(hidden) else torch.tensor(hidden, device=device)

    def build(masks):
        keep = torch.tensor(masks, device=device).index_select(1, index)
        replacement = still
        if replacement is None:
            values = np.ascontiguousarray(as_numpy(hidden(x, components, masks)))  # no views
            replacement = torch.from_numpy(values).to(kept)
        return torch.where(keep.view(len(masks), *labels.shape), kept, replacement)

    return build


def numpy_function(predict: Callable) -> Callable:
    """A model for `evaluate` of a function from numpy arrays, as the lime package takes it.

    A function that was written for numpy may fail on torch tensors, or answer differently without
    a word: `std` divides by n - 1 in torch, by n in numpy.

    Parameters
    ----------
    predict : callable
        Maps an array (B, *shape), its own to keep and to write to, to an array or a list of B rows
        of K numbers, or of B numbers, which become (B, 1).

    Returns
    -------
    callable
        Maps a tensor (B, *shape) to an array (B, K).

    Examples
    --------
    >>> def predict(images):  # (B, H, W, C), uint8
    ...     bright = images.mean(axis=(1, 2, 3)) / 255
    ...     return np.stack([1 - bright, bright], axis=1)
    >>> image = np.full((2, 4, 3), 102, np.uint8)
    >>> halves = Components([[[0], [0], [1], [1]], [[0], [0], [1], [1]]])
    >>> evaluate(numpy_function(predict), image, halves, [[1, 1], [1, 0]], filler=0)
    array([[0.6, 0.4],
           [0.8, 0.2]])
    """
    if isinstance(predict, torch.nn.Module):
        raise ValueError("predict must be a function of numpy arrays, got a torch.nn.Module")
    if not callable(predict):
        raise ValueError(f"predict must be callable, got {predict!r}")

    def model(batch):
        out = as_array(predict(as_numpy(batch).copy()))
        return out[:, None] if out.ndim == 1 else out

    return model


def _not_finite(bad, masks, start, x) -> str:
    """What to say of the rows `bad` of the batch that began at mask `start` and was the last."""
    first, missing = start + bad[0], np.isnan(x).sum()
    given = f"; the input itself holds {missing} NaN" if missing else ""
    return (
        f"model returned NaN or infinity for {bad.size} of {len(masks) - start} masks in a batch, "
        f"first for mask {first}, which hides {(~masks[first]).sum()} of {masks.shape[1]} "
        f"components{given}"
    )


def _columns(out, outputs):
    wanted = as_numpy(outputs)
    fits = wanted.ndim == 1 and wanted.dtype.kind in "iu"
    if not fits or (wanted < 0).any() or (wanted >= out.shape[1]).any():
        raise ValueError(f"outputs must be columns 0..{out.shape[1] - 1}, got {outputs!r}")
    return out[:, wanted]


def _as_masks(masks, d: int) -> np.ndarray:
    masks = as_numpy(masks)
    if masks.ndim != 2 or masks.shape[1] != d:
        raise ValueError(f"masks must have shape (N, {d}), one column a component: {masks.shape}")
    if masks.dtype != bool:
        if not np.isin(masks, (0, 1)).all():
            raise ValueError("masks must hold only 0 (hidden) and 1 (kept)")
        masks = masks.astype(bool)
    return np.ascontiguousarray(masks)
