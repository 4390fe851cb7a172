"""Attributions of the gradient family, with any baseline."""

from __future__ import annotations

import numpy as np
import torch


def integrated_gradients(
    model, x, baseline, target: int, *, steps: int = 20, batch_size: int = 8
) -> np.ndarray:
    """Integrated gradients of output `target`, by the trapezoid rule on `steps` + 1 points.

    Not captum's: the weights of its trapezoid rule add up to steps / (steps + 1), which breaks
    completeness, and are rounded to single precision.

    Parameters
    ----------
    model : torch.nn.Module
        Maps (N, *x.shape) to (N, K).
    x, baseline : arrays or tensors of equal shape, no batch axis
    target : int
        The explained output.
    steps : int
        Intervals on the straight path from `baseline` to `x`.
    batch_size : int
        Points of the path per gradient call.

    Returns
    -------
    ndarray of the shape of `x`
        Sums to f(x) - f(baseline) up to the error of the rule.

    Raises
    ------
    ValueError
        If the shapes differ or `steps` is below 1.

    Notes
    -----
    Sundararajan, Taly and Yan, *Axiomatic Attribution for Deep Networks*, ICML 2017.
    """
    x, baseline = torch.as_tensor(x), torch.as_tensor(baseline)
    if x.shape != baseline.shape:
        raise ValueError(
            f"baseline must have the shape of x, {tuple(x.shape)}, got {tuple(baseline.shape)}"
        )
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    weights = [*model.parameters(), *model.buffers()]
    floating = [w for w in weights if w.is_floating_point()] or [x]
    x, baseline = x.to(floating[0]), baseline.to(floating[0])
    path = torch.linspace(0, 1, steps + 1, dtype=torch.float64)
    share = torch.full_like(path, 1 / steps)
    share[[0, -1]] /= 2
    total = torch.zeros_like(x)
    for at, part in zip(path.split(batch_size), share.split(batch_size), strict=True):
        at, part = (v.to(x).view(-1, *(1,) * x.ndim) for v in (at, part))
        points = (baseline + at * (x - baseline)).requires_grad_()
        (gradient,) = torch.autograd.grad(model(points)[:, target].sum(), points)
        total += (part * gradient).sum(dim=0)
    return ((x - baseline) * total).detach().cpu().numpy()
