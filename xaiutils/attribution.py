"""Attributions of the gradient family, over captum, with any baseline."""

from __future__ import annotations

import numpy as np
import torch
from captum.attr import IntegratedGradients


def integrated_gradients(
    model, x, baseline, target: int, *, steps: int = 20, batch_size: int = 8
) -> np.ndarray:
    """Integrated gradients of output `target`, by the trapezoid rule on `steps` + 1 points.

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
    """
    parameter = next(model.parameters(), torch.empty(0))
    place = {"device": parameter.device, "dtype": parameter.dtype}
    x, baseline = (torch.as_tensor(np.asarray(a)).to(**place) for a in (x, baseline))
    if x.shape != baseline.shape:
        raise ValueError(f"baseline must have the shape of x, {x.shape}, got {baseline.shape}")
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    attribution = IntegratedGradients(model).attribute(
        x[None],
        baseline[None],
        target=target,
        n_steps=steps + 1,
        method="riemann_trapezoid",
        internal_batch_size=batch_size,
    )
    # captum divides the path by its points, not by its intervals: its weights add up to
    # steps / (steps + 1), which would break completeness.
    return (attribution[0] * (steps + 1) / steps).detach().cpu().numpy()
