"""Integrated gradients, and how far an attribution is from adding up.

Arguments and errors that all attributions share: see `attribution`.
"""

from __future__ import annotations

import warnings

import numpy as np
import torch
from scipy.special import roots_legendre

from xaiutils import runtime
from xaiutils.explained import Task


class CompletenessWarning(UserWarning):
    """Integrated gradients whose sum misses f(x) - f(baseline)."""


def integrated_gradients(
    model,
    x,
    baseline,
    target,
    *,
    steps: int = 20,
    against=None,
    log_probability: bool = False,
    batch_size: int = 8,
    tolerance: float | None = 0.05,
) -> np.ndarray:
    """Integrated gradients by the Gauss-Legendre rule.

    Parameters
    ----------
    x : array or tensor
        One input (*shape,) if `target` is an int, a batch (n, *shape) if it holds n of them;
        `against` likewise.
    baseline : array or tensor
        Of the shape of `x`, or of one input, shared by the batch.
    steps : int
        Points on the straight path from `baseline` to `x`, which is as many gradients per input.
        The rule is exact where the scalar is a polynomial of degree 2 `steps` along the path.
    tolerance : float or None
        Largest `completeness_gap` without a warning, as a share of |f(x) - f(baseline)| or, if it
        is larger, of a fiftieth of all the ups and downs of f along the path. None asks for no
        check, which saves two forward passes per input.
    model, target, against, log_probability, batch_size
        See `attribution.gradient`; a batch may hold points of several inputs.

    Returns
    -------
    ndarray of the shape of `x`
        Sums to f(x) - f(baseline), input by input, up to the error of the rule.

    Warns
    -----
    CompletenessWarning
        Once per call, if the sum of any input misses by more than `tolerance`.

    Notes
    -----
    Sundararajan, Taly and Yan, *Axiomatic Attribution for Deep Networks*, ICML 2017. On smooth
    networks the error falls geometrically with `steps`. Each kink on the path of a network of
    ReLUs costs O(1 / steps) by any rule: there the trapezoid rule is as good.

    Examples
    --------
    >>> import numpy as np, torch
    >>> model = torch.nn.Sequential(torch.nn.Linear(2, 1, bias=False), torch.nn.Tanh()).eval()
    >>> _ = model[0].weight.data.copy_(torch.tensor([[1.0, -2.0]]))
    >>> parts = integrated_gradients(model, np.array([1.0, 0.25]), np.zeros(2), 0)
    >>> parts.round(4)  # tanh(0.5) is 0.4621
    array([ 0.9242, -0.4621], dtype=float32)
    """
    if not isinstance(steps, int | np.integer) or steps < 1:
        raise ValueError(f"steps must be an integer of at least 1, got {steps!r}")
    if tolerance is not None and not tolerance >= 0:
        raise ValueError(f"tolerance must be at least 0, or None, got {tolerance!r}")
    task, single = _task(model, x, target, against, log_probability)
    start = task.baseline(baseline)
    path, share = (torch.from_numpy(values) for values in gauss_legendre(steps))
    change, total = task.x - start, torch.zeros_like(task.x)
    travelled = torch.zeros(len(task.x), dtype=torch.float64)  # ups and downs of f on the path

    def between(rows, at):
        return start[rows] + task.per_row(path[at].to(task.x)) * change[rows]

    for pieces, rows, at, slopes in task.each_gradient(steps, batch_size, between):
        part = task.per_row(share[at].to(task.x)) * slopes
        climbs = (change[rows] * part).flatten(1).sum(1).abs().cpu()
        for i, piece in pieces:
            total[i] += part[piece].sum(0)
            travelled[i] += climbs[piece].sum()
    parts = (change * total).cpu().numpy()
    if tolerance is not None:
        _warn(parts, *_ends(task, start, batch_size), travelled.numpy(), tolerance, steps)
    return parts[0] if single else parts


def completeness_gap(
    model,
    x,
    baseline,
    target,
    attribution,
    *,
    against=None,
    log_probability: bool = False,
    batch_size: int = 16,
) -> np.ndarray:
    """Sum of an attribution minus f(x) - f(baseline), (n,), or () of one input.

    Integrated gradients and DeepLIFT should leave none. Expected gradients add up only in the mean
    over their draws, to f(x) minus the mean over references: of them this says nothing.

    Parameters
    ----------
    attribution : array
        Of the shape of `x`.
    model, x, baseline, target, against, log_probability, batch_size
        See `integrated_gradients`. The model is asked twice per input.
    """
    task, single = _task(model, x, target, against, log_probability)
    parts = np.asarray(attribution)[None] if single else np.asarray(attribution)
    if parts.shape != tuple(task.x.shape):
        raise ValueError(
            f"attribution must have the shape of x, {tuple(np.shape(x))}, "
            f"got {np.shape(attribution)}"
        )
    at_x, at_baseline = _ends(task, task.baseline(baseline), batch_size)
    gap = _sums(parts) - (at_x - at_baseline)
    return gap[0] if single else gap


def gauss_legendre(steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Where integrals from 0 to 1 are evaluated, ascending, and the weights, both (steps,)."""
    nodes, weights = roots_legendre(steps)
    return (nodes + 1) / 2, weights / 2


def _task(model, x, target, against, log_probability) -> tuple[Task, bool]:
    """The task, and whether `x` is one input rather than a batch."""
    single = np.ndim(target) == 0
    if single:
        x, target = torch.as_tensor(x)[None], [target]
        against = None if against is None else [against]
    return Task(model, x, target, against, log_probability), single


def _sums(parts) -> np.ndarray:
    return parts.reshape(len(parts), -1).sum(1, dtype=np.float64)


def _ends(task: Task, start, batch_size: int) -> tuple[np.ndarray, np.ndarray]:
    """The scalars at x and at `start`, both (n,)."""

    @torch.no_grad()
    def both(batch):
        _, rows, _ = batch
        scalar = task.scalar_of(rows)
        return torch.stack([scalar(task.x[rows]), scalar(start[rows])]).cpu().double().numpy()

    batches = task.batches(1, batch_size)
    return tuple(np.hstack(list(runtime.side_by_side(both, batches, task.x.device))))


def _warn(parts, at_x, at_baseline, travelled, tolerance: float, steps: int) -> None:
    due, sums = at_x - at_baseline, _sums(parts)
    size = np.maximum(abs(at_x), abs(at_baseline)) + _sums(abs(parts))
    rounding = 100 * np.finfo(parts.dtype).eps * size
    excess = abs(sums - due) - rounding - tolerance * np.maximum(abs(due), travelled / 50)
    missed = ~(excess <= 0)
    if missed.any():
        i = int(excess.argmax())
        warnings.warn(
            f"integrated gradients of {missed.sum()} of {len(due)} inputs do not add up; those of "
            f"input {i} sum to {sums[i]:.4g}, while f(x) - f(baseline) is {due[i]:.4g}: "
            f"{steps} steps are too few, raise steps or tolerance",
            CompletenessWarning,
            stacklevel=3,
        )
