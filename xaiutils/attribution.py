"""Attributions of the gradient family and occlusion, with any baseline.

All but `occlusion` and `gradcam` are a few lines of torch: captum's noise comes from the global
generator, and the weights of its trapezoid rule add up to steps / (steps + 1).

Common to all: `model` is a torch.nn.Module in evaluation mode that maps (B, *shape) to logits
(B, K), `x` (n, *shape) is an array or a tensor, and the explained scalar is output `target` of
each input, ints (n,), or output `target` minus output `against`, ints (n,) too: why this class
and not that one. The model is used where it lives and in its precision, is not changed, and may
have trainable parameters; they get no gradients. All raise ValueError if a shape or a class does
not fit or if dropout or batch norm is in training mode.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from captum.attr import LayerAttribution, LayerGradCam

from xaiutils import perturb, runtime, segment


class SmoothGrad(NamedTuple):
    """Moments of the gradient around each input, each (n, *shape), from the same noise.

    Attributes
    ----------
    mean : ndarray
        SmoothGrad.
    mean_square : ndarray
        SmoothGrad-squared.
    """

    mean: np.ndarray
    mean_square: np.ndarray


def gradient(model, x, target, *, against=None, batch_size: int = 16) -> np.ndarray:
    """Gradient of the explained scalar with respect to the input, (n, *shape).

    Parameters
    ----------
    model, x, target, against
        See the module.
    batch_size : int
        Inputs per gradient call.

    Notes
    -----
    Simonyan, Vedaldi and Zisserman, *Deep Inside Convolutional Networks*, 2013, arXiv 1312.6034.
    """
    task = _Task(model, x, target, against)
    batches = [task.gradients(task.x[rows], rows) for _, rows, _ in _batches(task, 1, batch_size)]
    return torch.cat(batches).cpu().numpy()


def input_x_gradient(
    model, x, target, *, baseline=0.0, against=None, batch_size: int = 16
) -> np.ndarray:
    """(x - baseline) times the gradient, (n, *shape).

    With a data set's mean (C, 1, 1) as baseline this is, for a model of images in [0, 1], the
    product of the normalised image and the gradient with respect to it.

    Parameters
    ----------
    baseline : number or array that broadcasts against `x`
    model, x, target, against, batch_size
        See `gradient`.
    """
    task = _Task(model, x, target, against)
    change = task.x - task.like_x(baseline)
    slope = gradient(model, task.x, target, against=against, batch_size=batch_size)
    return change.cpu().numpy() * slope


def smoothgrad(
    model,
    x,
    target,
    *,
    n_samples: int = 50,
    spread: float = 0.15,
    seed: int = 0,
    against=None,
    batch_size: int = 16,
) -> SmoothGrad:
    """Mean gradient and mean squared gradient at noisy copies of each input.

    Parameters
    ----------
    n_samples : int
        Noisy copies of an input.
    spread : float
        Standard deviation of the noise, as a share of the input's max - min over all channels.
    seed : int
        Image i draws its noise from `seed` and i, on the CPU: the same for any batch size.
    model, x, target, against, batch_size
        See `gradient`; a batch may hold copies of several inputs.

    Notes
    -----
    Smilkov, Thorat, Kim, Viégas and Wattenberg, *SmoothGrad: removing noise by adding noise*,
    2017, arXiv 1706.03825. The square: Hooker, Erhan, Kindermans and Kim, *A Benchmark for
    Interpretability Methods in Deep Neural Networks*, NeurIPS 2019.
    """
    if n_samples < 1 or not spread >= 0:
        raise ValueError(
            f"n_samples must be at least 1 and spread at least 0: {n_samples}, {spread}"
        )
    task = _Task(model, x, target, against)
    flat = task.x.flatten(1)
    sigma = spread * (flat.amax(1) - flat.amin(1))
    generators = [_generator(seed, i) for i in range(len(task.x))]
    mean, square = torch.zeros_like(task.x), torch.zeros_like(task.x)
    for pieces, rows, _ in _batches(task, n_samples, batch_size):
        noise = torch.empty(len(rows), *task.x.shape[1:])
        for row, copy in zip(rows.tolist(), noise, strict=True):
            copy.normal_(generator=generators[row])
        points = task.x[rows] + task.per_row(sigma[rows]) * noise.to(task.x)
        slopes = task.gradients(points, rows)
        for i, piece in pieces:
            mean[i] += slopes[piece].sum(0)
            square[i] += slopes[piece].square().sum(0)
    return SmoothGrad((mean / n_samples).cpu().numpy(), (square / n_samples).cpu().numpy())


def integrated_gradients(
    model, x, baseline, target, *, steps: int = 20, against=None, batch_size: int = 8
) -> np.ndarray:
    """Integrated gradients by the trapezoid rule on `steps` + 1 points, both ends included.

    The mean over evenly spaced points with both ends, found elsewhere, gives the two ends twice
    the weight they have here and misses completeness by O(1 / steps).

    Parameters
    ----------
    model : torch.nn.Module
        Maps (B, *shape) to (B, K).
    x : array or tensor
        One input (*shape,) if `target` is an int, a batch (n, *shape) if it holds n of them.
    baseline : array or tensor
        Of the shape of `x`, or of one input, shared by the batch.
    target : int or ints (n,)
        The explained output.
    against : as `target`, optional
        The output subtracted from it.
    steps : int
        Intervals on the straight path from `baseline` to `x`.
    batch_size : int
        Points per gradient call; they may belong to several inputs.

    Returns
    -------
    ndarray of the shape of `x`
        Sums to f(x) - f(baseline), input by input, up to the error of the rule.

    Raises
    ------
    ValueError
        If the shapes differ or `steps` is below 1.

    Notes
    -----
    Sundararajan, Taly and Yan, *Axiomatic Attribution for Deep Networks*, ICML 2017.
    """
    x, baseline = torch.as_tensor(x), torch.as_tensor(baseline)
    single = np.ndim(target) == 0
    if single:
        x, target = x[None], [target]
        against = None if against is None else [against]
    if baseline.shape not in (x.shape, x.shape[1:]):
        wanted = tuple(x.shape[1:] if single else x.shape)
        raise ValueError(
            f"baseline must have the shape of x, {wanted}, got {tuple(baseline.shape)}"
        )
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    task = _Task(model, x, target, against)
    start = task.like_x(baseline)
    path = torch.linspace(0, 1, steps + 1, dtype=torch.float64)
    share = torch.full_like(path, 1 / steps)
    share[[0, -1]] /= 2
    total = torch.zeros_like(task.x)
    for pieces, rows, at in _batches(task, steps + 1, batch_size):
        along, part = (task.per_row(values[at].to(task.x)) for values in (path, share))
        slopes = task.gradients(start[rows] + along * (task.x[rows] - start[rows]), rows)
        for i, piece in pieces:
            total[i] += (part[piece] * slopes[piece]).sum(0)
    result = ((task.x - start) * total).cpu().numpy()
    return result[0] if single else result


def gradcam(
    model, layer, x, target, *, relu: bool = False, against=None, batch_size: int = 16
) -> np.ndarray:
    """Grad-CAM: channels of `layer` weighted by their mean gradients, (n, H, W).

    Parameters
    ----------
    layer : torch.nn.Module
        Part of `model` with outputs (B, channels, height, width).
    relu : bool
        Cut negative values before the map is enlarged, bilinearly, as the paper does; by
        default the sign is kept.
    model, x, target, against, batch_size
        See `gradient`; x is (n, C, H, W).

    Notes
    -----
    Selvaraju et al., *Grad-CAM: Visual Explanations from Deep Networks via Gradient-based
    Localization*, ICCV 2017.
    """
    task = _Task(model, x, target, against)
    height, width = task.image_size()
    if not any(part is layer for part in model.modules()):
        raise ValueError(f"layer must be a part of the model, got {type(layer).__name__}")
    maps = []
    for _, rows, _ in _batches(task, 1, batch_size):
        explained = LayerGradCam(task.scalar_of(rows), layer)
        coarse = explained.attribute(task.x[rows].requires_grad_(), relu_attributions=relu)
        if coarse.ndim != 4:
            raise ValueError("layer must give (B, channels, height, width), not a flat output")
        fine = LayerAttribution.interpolate(coarse, (height, width), "bilinear")
        maps.append(fine[:, 0].detach().cpu().numpy())
    return np.concatenate(maps)


def occlusion(
    model,
    x,
    target,
    *,
    patch: int,
    baseline: perturb.Filler = 0.0,
    against=None,
    batch_size: int | None = None,
) -> np.ndarray:
    """Fall of the explained scalar when each patch alone is hidden, (n, H, W).

    Patches do not overlap; each pixel gets the value of its patch.

    Parameters
    ----------
    patch : int
        Largest side of a patch in pixels: the grid has ceil(H / patch) x ceil(W / patch)
        patches, equal where `patch` divides H and W.
    baseline : see `perturb.fill`
        What a hidden patch shows; an array of the shape of `x` holds one filler per image.
    model, x, target, against
        See `gradient`; x is (n, C, H, W).
    batch_size : int, optional
        See `perturb.evaluate`.

    Notes
    -----
    Zeiler and Fergus, *Visualizing and Understanding Convolutional Networks*, ECCV 2014.
    """
    task = _Task(model, x, target, against)
    size = task.image_size()
    if not 1 <= patch <= max(size):
        raise ValueError(f"patch must be within 1..{max(size)} pixels, got {patch}")
    parts = perturb.Components(segment.grid(size, *(-(-side // patch) for side in size)))
    masks = np.vstack([~np.eye(parts.d, dtype=bool), np.ones(parts.d, dtype=bool)])
    images, maps = task.x.cpu().numpy(), []
    own = np.ndim(baseline) == images.ndim  # one filler per image
    if own and np.shape(baseline) != images.shape:
        raise ValueError(
            f"baseline with one entry per image must have the shape of x, {images.shape}, "
            f"got {np.shape(baseline)}"
        )
    for i, image in enumerate(images):
        scores = perturb.evaluate(
            model,
            image,
            parts,
            masks,
            baseline[i] if own else baseline,
            batch_size=batch_size,
            outputs=lambda out, i=i: task.explained(out, np.full(len(out), i)),
        )
        maps.append(parts.spread(scores[-1] - scores[:-1]))
    return np.stack(maps)


def reduce(attribution, how: str) -> np.ndarray:
    """One score per pixel, (..., H, W), from attributions (..., C, H, W).

    Parameters
    ----------
    how : {"sum", "abs_sum"}
        Sum over channels of the signed or of the absolute values.

    Raises
    ------
    ValueError
        If `how` is neither.
    """
    if how not in ("sum", "abs_sum"):
        raise ValueError(f'how must be "sum" or "abs_sum", got {how!r}')
    values = np.asarray(attribution)
    return (np.abs(values) if how == "abs_sum" else values).sum(axis=-3)


class _Task:
    """Checked inputs on the model's device, and the scalar explained for each of them."""

    def __init__(self, model, x, target, against):
        runtime.check_mode(model)
        x = torch.as_tensor(x).detach()
        if x.ndim < 2 or len(x) == 0:
            raise ValueError(f"x must be a batch (n, ...) of inputs, got shape {tuple(x.shape)}")
        weights = [*model.parameters(), *model.buffers()]
        self.model, self.x = model, x.to(next((w for w in weights if w.is_floating_point()), x))
        self.target = _classes("target", target, len(x))
        self.against = None if against is None else _classes("against", against, len(x))

    def like_x(self, baseline) -> torch.Tensor:
        """`baseline` with the shape, dtype and device of x."""
        baseline = torch.as_tensor(baseline).to(self.x)
        try:
            return baseline.expand_as(self.x)
        except RuntimeError:
            raise ValueError(
                f"baseline of shape {tuple(baseline.shape)} does not broadcast against x, "
                f"{tuple(self.x.shape)}"
            ) from None

    def per_row(self, values) -> torch.Tensor:
        """`values` (B,) shaped to scale a batch (B, *shape)."""
        return values.view(-1, *(1,) * (self.x.ndim - 1))

    def image_size(self) -> tuple[int, int]:
        if self.x.ndim != 4:
            raise ValueError(f"x must be images (n, C, H, W), got shape {tuple(self.x.shape)}")
        return tuple(self.x.shape[2:])

    def explained(self, out, rows):
        """The scalar (B,) in outputs (B, K) for copies of inputs `rows` (B,); torch or numpy."""
        if out.ndim != 2 or len(out) != len(rows):
            raise ValueError(
                f"model must return (batch, outputs), got {tuple(out.shape)} for {len(rows)} rows"
            )
        for name, wanted in (("target", self.target), ("against", self.against)):
            if wanted is not None and wanted.max() >= out.shape[1]:
                raise ValueError(f"{name} must be within 0..{out.shape[1] - 1}: {wanted.max()}")
        each = np.arange(len(rows))
        scalar = out[each, self.target[rows]]
        return scalar if self.against is None else scalar - out[each, self.against[rows]]

    def scalar_of(self, rows) -> Callable:
        """Function from a batch of copies of inputs `rows` to its explained scalars."""
        return lambda batch: self.explained(self.model(batch), rows)

    def gradients(self, points, rows) -> torch.Tensor:
        """Gradient of the scalar at `points` (B, *shape), copies of inputs `rows`."""
        with torch.enable_grad():
            points = points.detach().requires_grad_()
            (slopes,) = torch.autograd.grad(self.scalar_of(rows)(points).sum(), points)
        return slopes


def _batches(task: _Task, copies: int, batch_size: int) -> Iterator[tuple]:
    """All (input, copy) pairs, input by input, in batches (pieces, inputs, copies).

    `pieces` pairs each input of the batch with its slice of the batch, so that sums over copies
    do not depend on how a device orders scattered additions.
    """
    if not isinstance(batch_size, int | np.integer) or batch_size < 1:
        raise ValueError(f"batch_size must be a positive integer, got {batch_size!r}")
    pairs = np.arange(len(task.x) * copies)
    for start in range(0, len(pairs), batch_size):
        rows, copy = np.divmod(pairs[start : start + batch_size], copies)
        inputs, first = np.unique(rows, return_index=True)
        ends = [*first[1:], len(rows)]
        pieces = [(i, slice(a, b)) for i, a, b in zip(inputs, first, ends, strict=True)]
        yield pieces, rows, copy


def _classes(name: str, values, n: int) -> np.ndarray:
    values = values.cpu().numpy() if isinstance(values, torch.Tensor) else np.asarray(values)
    if values.shape != (n,) or values.dtype.kind not in "iu" or values.min() < 0:
        raise ValueError(f"{name} must hold {n} output indices >= 0: {values.dtype} {values.shape}")
    return values


def _generator(seed: int, image: int) -> torch.Generator:
    state = np.random.SeedSequence([seed, image]).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state))
