"""What a model returns: the numbers in it, and whether they are logits or probabilities."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from scipy.special import softmax

KINDS = ("logits", "probabilities")

_HALF = (torch.float16, torch.bfloat16)
_DECIMALS = 5e-5  # what rounding to four decimals takes from a probability


def as_array(out) -> np.ndarray:
    """The array of real numbers in `out`, what a model returned; half precision becomes single.

    Parameters
    ----------
    out : tensor, array, list of rows, or what holds one of them under the name logits
        An attribute or a key, as of the outputs of Hugging Face's models.

    Raises
    ------
    ValueError
        If `out` is anything else: names what came and how to pick an array from it.
    """
    found = _numbers(out)
    if isinstance(found, torch.Tensor):
        found = (found.float() if found.dtype in _HALF else found).numpy(force=True)
    return found.astype(np.float32) if found.dtype == np.float16 else found


def as_tensor(out) -> torch.Tensor:
    """As `as_array`, but a tensor, which keeps its graph and its device."""
    found = _numbers(out)
    if not isinstance(found, torch.Tensor):
        found = torch.from_numpy(np.array(found))
    return found.float() if found.dtype in _HALF else found


def bad_rows(out: np.ndarray, *, strict: bool = False) -> np.ndarray:
    """Indices of the rows of `out` (B, ...) that nothing can be computed from.

    These hold NaN or infinity. Minus infinity, the logarithm of 0, is the logit of a class that is
    ruled out: it may stand beside finite values, unless `strict`.
    """
    finite = np.isfinite(out)
    if finite.all():
        return np.empty(0, int)
    finite = finite.reshape(len(out), -1)
    usable = finite.all(axis=1)
    if not strict:
        ruled_out = np.isneginf(out).reshape(finite.shape)
        usable |= (finite | ruled_out).all(axis=1) & finite.any(axis=1)
    return np.flatnonzero(~usable)


class Classes:
    """Outputs (B, K) of a classifier of K >= 2 classes, read as logits or as probabilities.

    Parameters
    ----------
    kind : {None, "logits", "probabilities"}
        What they are. None takes them for logits, unless all that `check` saw until `settle` is
        called are probabilities: at least 0, with sums of 1.
    argument : str
        What messages call `kind`.

    Raises
    ------
    ValueError
        If `kind` is none of these.
    """

    def __init__(self, kind: str | None = None, argument: str = "outputs_are"):
        if kind is not None and kind not in KINDS:
            raise ValueError(f"{argument} must be None or one of {KINDS}, got {kind!r}")
        self.kind, self.argument = kind, argument
        self._seen, self._suspect = 0, kind is None

    def check(self, out: np.ndarray) -> np.ndarray:
        """`out`, if it can be what it is said to be.

        Raises
        ------
        ValueError
            If it has a single column, holds NaN or infinity, or, said to be probabilities, values
            outside [0, 1].
        """
        if out.shape[1] < 2:
            raise ValueError(
                f"model must return one column for each of two or more classes, got {out.shape}: "
                "of a logit z make torch.cat([torch.zeros_like(z), z], dim=1), of a probability p "
                "torch.cat([1 - p, p], dim=1)"
            )
        bad = bad_rows(out)
        if bad.size:
            raise ValueError(f"model returned NaN or infinity in {bad.size} of {len(out)} rows")
        if self.kind == "probabilities" or self._suspect:
            self._compare(out, out.min(), out.max(), _slack(out))
        return out

    def _compare(self, out, low, high, slack) -> None:
        if self.kind == "probabilities" and not (low >= -slack and high <= 1 + slack):
            raise ValueError(
                f'{self.argument} is "probabilities", but the model returned values in '
                f"[{low:.4g}, {high:.4g}]"
            )
        self._seen += len(out)
        sums = out.sum(axis=1, dtype=np.float64)
        self._suspect &= bool(low >= 0 and (np.abs(sums - 1) <= slack).all())

    def settle(self) -> None:
        """Raise ValueError if all rows so far look like probabilities and no `kind` was given."""
        if self._suspect and self._seen:
            raise ValueError(
                "model must return logits, but its outputs are probabilities (rows of at least 0 "
                f'that sum to 1): leave its softmax out, or give {self.argument}="probabilities" '
                '(or "logits" if they are logits all the same)'
            )

    def probabilities(self, out: np.ndarray) -> np.ndarray:
        """Probabilities (B, K) of checked outputs, float64."""
        out = out.astype(np.float64)
        return out if self.kind == "probabilities" else softmax(out, axis=1)

    def logits(self, out: np.ndarray) -> np.ndarray:
        """Logits (B, K) of checked outputs: of probabilities the logarithms, float64."""
        if self.kind != "probabilities":
            return out
        with np.errstate(divide="ignore"):
            return np.log(out.clip(0), dtype=np.float64)


def winners(out: np.ndarray) -> np.ndarray:
    """Class (B,) of the largest output in each row of logits or probabilities (B, K).

    Raises
    ------
    ValueError
        If there is a single column or a row holds NaN or infinity.
    """
    return Classes("logits").check(out).argmax(axis=1)


def _slack(out) -> float:
    """How far the K values of a row that should sum to 1 may be from it.

    Half precision shows in single: the digits that it lacks are zero.
    """
    eps, single = 0.0, out.astype(np.float32)
    if not (single.view(np.uint32) & 0xFFFF).any():  # bfloat16 is the upper half of float32
        eps = 2.0**-7
    elif not (single.view(np.uint32) & 0x1FFF).any():  # three bits more
        eps = 2.0**-10
    return max(2 * eps, _DECIMALS * out.shape[1])


def _numbers(out) -> torch.Tensor | np.ndarray:
    found = out if _is_array(out) else _held(out)
    if isinstance(found, torch.Tensor):
        real = not found.is_complex()
        found = found.to_dense() if found.layout is not torch.strided else found
    elif real := _is_array(found):
        found = np.asarray(found)
        real = found.dtype.kind in "biuf"
        if real and not (found.dtype.isnative and found.itemsize <= 8):
            # Torch knows no long doubles and no foreign byte order.
            kept = found.dtype.newbyteorder("=") if found.itemsize <= 8 else np.float64
            found = found.astype(kept)
    if not real:
        raise ValueError(f"model returned {_described(out)}")
    return found


def _held(out):
    """What `out` calls its logits, or the table that its rows make."""
    if isinstance(out, Mapping):
        return out.get("logits")
    found = getattr(out, "logits", None)
    return _rows(out) if found is None and isinstance(out, list | tuple) else found


def _is_array(value) -> bool:
    return isinstance(value, torch.Tensor) or hasattr(value, "__array__")


def _rows(parts) -> torch.Tensor | np.ndarray | None:
    """A list of rows as one table; None for several tables, and for a tuple of arrays."""
    arrays = [part for part in parts if _is_array(part)]
    if any(part.ndim > 1 for part in arrays) or (arrays and isinstance(parts, tuple)):
        return None
    try:
        if arrays and all(isinstance(part, torch.Tensor) for part in parts):
            return torch.stack(list(parts))
        return np.asarray(parts)
    except (ValueError, TypeError, RuntimeError):  # rows of several lengths, or no numbers
        return None


def _described(out) -> str:
    """What `out` is, and the expression that picks an array from it."""
    what, pick, parts = type(out).__name__, ".{}", {}
    if out is None:
        return "None: does its function or forward lack a return?"
    if _is_array(out):
        return f"{what} of {out.dtype}: it must return real numbers (batch, outputs)"
    if isinstance(out, Mapping):
        pick, parts = "[{!r}]", dict(out)
        what += f" with keys {', '.join(map(repr, parts)) or 'none'}"
    elif isinstance(out, list | tuple):
        pick, parts = "[{}]", dict(enumerate(out))
        kinds = {type(part).__name__ for part in out}
        what += f" of {len(out)} {'tensors' if kinds == {'Tensor'} else 'parts'}"
    elif hasattr(out, "__dict__"):
        parts = {name: part for name, part in vars(out).items() if not name.startswith("_")}
    name = next((name for name, part in parts.items() if _is_array(part)), None)
    if name is None:
        return f"{what} without an array (batch, outputs) in it"
    one = "model(x)" + pick.format(name)
    return (
        f"{what}; wrap it: lambda x: {one}, or for gradients a torch.nn.Module whose forward "
        f"returns self.{one}"
    )
