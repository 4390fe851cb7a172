"""Asking a model about a batch; where it cannot take the batch, what it could take instead."""

from __future__ import annotations

from itertools import product
from math import prod

import torch
from torch import nn

from xaiutils.data.images import as_numpy
from xaiutils.outputs import as_array

# Errors that have to do with the form of a batch, if it is no numpy array that is wanted.
_OF_FORM = (RuntimeError, TypeError, ValueError, AttributeError, AssertionError)
_ELSEWHERE = (OSError, MemoryError, torch.OutOfMemoryError)

_LAYOUTS = {  # what to do to the axes of an input: function of a batch, None if it does not apply
    "": lambda batch: batch,
    "move the channels first": lambda batch: batch.movedim(-1, 1) if batch.ndim > 2 else None,
    "move the channels last": lambda batch: batch.movedim(1, -1) if batch.ndim > 2 else None,
    "drop the first axis": lambda batch: batch.squeeze(1) if batch.shape[1:2] == (1,) else None,
    "put an axis of length 1 first": lambda batch: batch.unsqueeze(1),
}
_CONVOLUTIONS = {nn.Conv1d: "L", nn.Conv2d: "H, W", nn.Conv3d: "D, H, W"}


def ask(model, batch: torch.Tensor):
    """What `model` returns for a batch (B, *shape).

    If it fails, other forms of the same batch are tried: as a numpy array, in the dtype of the
    weights, with other axes. A form that the model takes is what was wanted.

    Raises
    ------
    ValueError
        Names the form that the model takes; its own error is the cause.
    Exception
        Whatever the model raises, if no form helps.
    """
    try:
        return model(batch)
    except _ELSEWHERE:
        raise
    except Exception as error:
        with torch.no_grad():
            found = _diagnosis(model, batch.detach(), error)
        if isinstance(found, str):
            raise ValueError(f"model {found} (it raised {_quoted(error)})") from error
        if found is not None:
            raise found from error
        raise


def _diagnosis(model, batch, error) -> str | Exception | None:
    """What the model takes in place of the batch; or the error that says more than `error`."""
    is_module = isinstance(model, nn.Module)
    if not is_module:
        _, failure = _answer(model, as_numpy(batch).copy())
        if failure is None:
            return "takes numpy arrays, not tensors: give perturb.numpy_function(model) instead"
        if _later(failure, error):
            return failure  # the function wants numpy, and this is what is wrong with it
    if not isinstance(error, _OF_FORM) or batch.is_complex():
        return None
    first = _first_layer(model) if is_module else None
    for dtype, (hint, change) in product([batch.dtype, _dtype(model, first)], _LAYOUTS.items()):
        other = change(batch.to(dtype))
        if other is None or (dtype == batch.dtype and not hint):
            continue
        out, failure = _answer(model, other.contiguous())
        if failure is None and _rows(out) == len(batch):
            numbers = batch.dtype != torch.bool and not batch.is_floating_point()
            scale = "divide by 255 for [0, 1]" if numbers and dtype.is_floating_point else ""
            hints = ", ".join(filter(None, (hint, scale)))
            return f"cannot take inputs {_form(batch)}, but takes {_form(other)}: {hints}".rstrip(
                ": "
            )
    if not is_module and _takes_one(model, batch):
        return (
            "takes one input without a batch axis: give "
            "lambda batch: np.stack([model(one) for one in batch])"
        )
    expected = _expected(first, tuple(batch.shape[1:]))
    if expected is None:
        return None
    return f"cannot take inputs {_form(batch)}: its first layer, {type(first).__name__}, {expected}"


def _takes_one(function, batch) -> bool:
    """Whether a function that cannot take a batch takes a single input, as tensor or array."""
    return any(_answer(function, one)[1] is None for one in (batch[0], as_numpy(batch[0]).copy()))


def _answer(model, batch) -> tuple[object, Exception | None]:
    try:
        return model(batch), None
    except Exception as error:
        return None, error


def _rows(out) -> int | None:
    try:
        return len(as_array(out))
    except (ValueError, TypeError):
        return None


def _later(error: Exception, than: Exception) -> bool:
    """Whether a function called by this module got farther before one error than before another."""
    one, other = error.__traceback__.tb_next, than.__traceback__.tb_next
    while one and other and one.tb_frame.f_code is other.tb_frame.f_code:
        if one.tb_lasti != other.tb_lasti:
            return one.tb_lasti > other.tb_lasti
        one, other = one.tb_next, other.tb_next
    return False


def _first_layer(model) -> nn.Module | None:
    """The first of the modules with parameters, which usually gets the input."""
    return next((part for part in model.modules() if [*part.parameters(recurse=False)]), None)


def _dtype(model, first) -> torch.dtype:
    """What the weights are, or token numbers; single precision where that is not known."""
    if isinstance(first, nn.Embedding):
        return torch.int64
    found = set()
    if isinstance(model, nn.Module):
        weights = [*model.parameters(), *model.buffers()]
        found = {w.dtype for w in weights if w.is_floating_point()}
    return found.pop() if len(found) == 1 else torch.float32


def _expected(layer, shape) -> str | None:
    """What a layer takes, if an input of this shape is evidently something else."""
    if isinstance(layer, nn.Linear) and layer.in_features not in (shape[-1], prod(shape)):
        return f"takes {layer.in_features} values"
    axes = _CONVOLUTIONS.get(type(layer))
    if axes is None or (len(shape) == 2 + axes.count(",") and shape[0] == layer.in_channels):
        return None
    return f"takes ({layer.in_channels}, {axes})"


def _form(batch) -> str:
    return f"{str(batch.dtype).removeprefix('torch.')} {tuple(batch.shape[1:])}"


def _quoted(error: Exception) -> str:
    lines = str(error).splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:160]}"
