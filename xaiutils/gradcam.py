"""Grad-CAM: where the channels of a layer speak for the explained scalar.

Arguments and errors that all attributions share: see `attribution`.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable

import numpy as np
import torch
from torch.nn import functional

from xaiutils import runtime
from xaiutils.explained import HOOKS, Task, generator

CLEAR = 0.05  # of a side of the input: how much further along it one half of an axis must look


@runtime.one_thread()  # as in `Task.each_gradient`
def gradcam(
    model,
    layer,
    x,
    target,
    *,
    reshape: Callable[[torch.Tensor], torch.Tensor] | None = None,
    relu: bool = False,
    against=None,
    log_probability: bool = False,
    batch_size: int = 16,
) -> np.ndarray:
    """Grad-CAM: channels of `layer` weighted by their mean gradients, (n, H, W).

    Parameters
    ----------
    layer : torch.nn.Module
        Part of `model` that is called once and gives (B, channels, height, width), or anything
        that `reshape` brings into this form.
    reshape : callable, optional
        From the output of `layer` (B, ...) to (B, channels, height, width), by moving values or
        leaving some out: it is applied to outputs and to their gradients. For a layer with
        channels last ``lambda a: a.permute(0, 3, 1, 2)``, for tokens `tokens_to_map`.
    relu : bool
        Cut negative values before the map is enlarged, bilinearly, as the paper does; by
        default the sign is kept.
    model, x, target, against, log_probability, batch_size
        See `attribution.gradient`; x is (n, C, H, W).

    Raises
    ------
    ValueError
        Also if `layer` is called twice or not at all or if its output is no tensor, has not the
        axes of a map, or if its axes look like (B, height, width, channels): if the third follows
        the columns of x rather than its rows or, where this is not clear, if the second and third
        alone have the proportions of x.

    Notes
    -----
    Selvaraju et al., *Grad-CAM: Visual Explanations from Deep Networks via Gradient-based
    Localization*, ICCV 2017.

    Examples
    --------
    >>> import torch
    >>> model = torch.nn.Sequential(
    ...     torch.nn.Conv2d(1, 1, 1), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten()
    ... ).eval()
    >>> for weight, value in zip(model.parameters(), (2.0, -1.0)):
    ...     _ = weight.data.fill_(value)
    >>> x = torch.tensor([[[[1.0, 0.0], [0.0, 2.0]]]])
    >>> gradcam(model, model[0], x, [0])  # the layer gives 2 x - 1, each with the slope 1/4
    array([[[ 0.25, -0.25],
            [-0.25,  0.75]]], dtype=float32)
    """
    task = Task(model, x, target, against, log_probability)
    size = task.image_size()
    if not any(part is layer for part in model.modules()):
        raise ValueError(f"layer must be a part of the model, got {type(layer).__name__}")
    arrange, maps = reshape, []
    for _, rows, _ in task.batches(1, batch_size):
        points = task.x[rows].requires_grad_()
        with torch.enable_grad():
            out, scalars = _through(task, layer, points, rows)
            slopes = torch.autograd.grad(scalars.sum(), out, allow_unused=True)[0]
        if slopes is None:
            raise ValueError(
                f"layer must lead to the explained output, that of {type(layer).__name__} does not"
            )
        if arrange is None:
            _check_axes(task, layer, out, len(rows))
            arrange = _as_it_is
        values, weights = (_arranged(arrange, of, len(rows)) for of in (out.detach(), slopes))
        coarse = (weights.mean((2, 3), keepdim=True) * values).sum(1, keepdim=True)
        coarse = functional.relu(coarse) if relu else coarse
        fine = functional.interpolate(coarse, size, mode="bilinear")
        maps.append(fine[:, 0].cpu().numpy())
    return np.concatenate(maps)


def tokens_to_map(size: int | tuple[int, int], prefix: int = 1) -> Callable:
    """What `gradcam` needs as `reshape` for the tokens of a transformer.

    Parameters
    ----------
    size : int or (int, int)
        Rows and columns of patches; of a square, its side.
    prefix : int
        Tokens before those of the patches, such as one of the class; they are left out.

    Returns
    -------
    callable
        From tokens (B, prefix + rows * columns, channels) to (B, channels, rows, columns).
    """
    rows, columns = (size, size) if isinstance(size, int | np.integer) else size
    if min(rows, columns) < 1 or prefix < 0:
        raise ValueError(f"size must be positive and prefix not negative: {size}, {prefix}")

    def reshape(tokens):
        if tokens.ndim != 3 or tokens.shape[1] != prefix + rows * columns:
            raise ValueError(
                f"layer must give (B, {prefix} + {rows} x {columns}, channels) for "
                f"tokens_to_map({size}, prefix={prefix}), got {tuple(tokens.shape)}"
            )
        return tokens[:, prefix:].mT.unflatten(2, (rows, columns))

    return reshape


def _through(task: Task, layer, points, rows) -> tuple[torch.Tensor, torch.Tensor]:
    """Output of `layer`, and explained scalars, for `points` (B, C, H, W) of inputs `rows`."""
    seen, thread = [], {threading.get_ident()}

    def keep(_layer, _inputs, out):
        if threading.get_ident() not in thread:
            return None  # the model serves another call at the same time
        seen.append(out)
        return out.clone() if isinstance(out, torch.Tensor) else None  # what follows may overwrite

    with HOOKS:
        handle = layer.register_forward_hook(keep)
    try:
        scalars = task.scalar_of(rows)(points)
    finally:
        thread.clear()
        with HOOKS:
            handle.remove()
    name = type(layer).__name__
    if len(seen) != 1:
        raise ValueError(
            f"layer must be called once in a forward pass, {name} is called {len(seen)} times"
        )
    if not isinstance(seen[0], torch.Tensor):
        raise ValueError(
            f"layer must give a tensor, {name} gives a {type(seen[0]).__name__}: take a module "
            "within it or after it"
        )
    if not seen[0].requires_grad:
        raise ValueError(f"layer must depend on x, the output of {name} does not")
    return seen[0], scalars


def _as_it_is(out):
    return out


def _arranged(reshape, values, n: int) -> torch.Tensor:
    """`values` of a layer for n inputs as (n, channels, height, width)."""
    shaped = reshape(values)
    if not isinstance(shaped, torch.Tensor) or shaped.ndim != 4 or len(shaped) != n:
        raise ValueError(
            f"reshape must give (B, channels, height, width) with B = {n}, got "
            f"{tuple(getattr(shaped, 'shape', ()))} from {tuple(values.shape)}"
        )
    return shaped


def _check_axes(task: Task, layer, out, n: int) -> None:
    """Raise ValueError if `out` is not (n, channels, height, width), as far as one can tell."""
    wanted = f"layer must give (B, channels, height, width) with B = {n}, got {tuple(out.shape)}"
    if out.ndim == 3:
        fits = [(math.isqrt(max(out.shape[1] - p, 0)), p) for p in (0, 1, 2, 5)]
        size, prefix = next(
            ((s, p) for s, p in fits if s and s * s + p == out.shape[1]), ("(rows, columns)", 1)
        )
        raise ValueError(
            f"{wanted}; for tokens pass reshape=attribution.tokens_to_map({size}, prefix={prefix})"
        )
    if out.ndim != 4 or len(out) != n:
        raise ValueError(wanted)
    height, width = task.image_size()

    def proportional(rows, columns):  # to the input, up to one row or column
        return abs(rows * width - columns * height) <= max(height, width)

    _, first, second, third = out.shape
    usual, last = proportional(second, third), proportional(first, second)
    if (usual and not last) or isinstance(layer, torch.nn.Conv2d):  # whose output has these axes
        return
    down, across = _looks_further(task, layer)
    if across - down > CLEAR or (abs(across - down) <= CLEAR and last and not usual):
        raise ValueError(
            f"{wanted}, whose third axis seems to run along the columns of x: for "
            "(B, height, width, channels) pass reshape=lambda a: a.permute(0, 3, 1, 2)"
        )


def _looks_further(task: Task, layer) -> tuple[float, float]:
    """How much further down and across the first input the second half of axis 2 of `layer` looks.

    Both are distances of centres of the gradient's size, in sides of the input. The values of a
    half count with random signs, so that it does not matter which are large.
    """
    pair = np.zeros(2, int)
    with torch.enable_grad():
        points = task.x[pair].requires_grad_()
        out, _ = _through(task, layer, points, pair)
        half = out.shape[2] // 2
        signs = torch.randint(0, 2, out.shape[1:], generator=generator(0, 0)).to(out) * 2 - 1
        signed = out * signs
        halves = signed[0, :, :half].sum() + signed[1, :, out.shape[2] - half :].sum()
        (slopes,) = torch.autograd.grad(halves, points)
    size = slopes.abs().sum(1).cpu().double()
    size /= size.sum((1, 2), keepdim=True).clamp_min(torch.finfo(torch.float64).tiny)
    distances = []
    for share in (size.sum(2), size.sum(1)):  # of rows, of columns
        centres = share @ torch.arange(share.shape[1], dtype=share.dtype)
        distances.append(abs(float(centres[1] - centres[0])) / share.shape[1])
    return distances[0], distances[1]
