"""Attributions of the gradient family and occlusion, with any baseline.

All but DeepLIFT are a few lines of torch: captum draws noise from the global generator, and keeps
what a layer gave where another thread's call of the same model would overwrite it.

Common to all: `model` is a torch.nn.Module in evaluation mode that maps (B, *shape) to logits
(B, K), `x` (n, *shape) is an array or a tensor, and the explained scalar is

- output `target` of each input, ints (n,);
- output `target` minus output `against`, ints (n,) too: why this class and not that one;
- with `log_probability`, and without `against`, the log-probability of `target`. True takes the
  outputs for logits and refuses what looks like probabilities; "logits" or "probabilities" says
  what they are.

The model is used where it lives and in its precision, is not changed, and may have trainable
parameters; they get no gradients. On the CPU several batches go through it at a time, so that
results do not depend on the number of cores: its forward pass must not keep anything. Several
threads may call at once, for the same model too. All raise ValueError if a shape or a class does
not fit or if an input has no single answer (training mode, random numbers, a layer that mixes the
inputs of a batch: `probe.check`).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch

from xaiutils import perturb, runtime, segment
from xaiutils.data.images import as_real, no_nan
from xaiutils.deeplift import deeplift as deeplift
from xaiutils.deeplift import deepshap as deepshap
from xaiutils.explained import Task, generator
from xaiutils.gradcam import gradcam as gradcam
from xaiutils.gradcam import tokens_to_map as tokens_to_map
from xaiutils.integrated import CompletenessWarning as CompletenessWarning
from xaiutils.integrated import completeness_gap as completeness_gap
from xaiutils.integrated import integrated_gradients as integrated_gradients


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


def gradient(
    model, x, target, *, against=None, log_probability: bool = False, batch_size: int = 16
) -> np.ndarray:
    """Gradient of the explained scalar with respect to the input, (n, *shape).

    Parameters
    ----------
    model, x, target, against, log_probability
        See the module.
    batch_size : int
        Inputs per gradient call.

    Notes
    -----
    Simonyan, Vedaldi and Zisserman, *Deep Inside Convolutional Networks*, 2013, arXiv 1312.6034.

    Examples
    --------
    >>> import torch
    >>> model = torch.nn.Linear(2, 3).eval()
    >>> _ = model.weight.data.copy_(torch.tensor([[1.0, 2.0], [0.0, 5.0], [3.0, -1.0]]))
    >>> gradient(model, torch.zeros(1, 2), [0], against=[2])
    array([[-2.,  3.]], dtype=float32)
    """
    task = Task(model, x, target, against, log_probability)
    found = task.each_gradient(1, batch_size, lambda rows, _: task.x[rows])
    return torch.cat([slopes for *_, slopes in found]).cpu().numpy()


def input_x_gradient(
    model,
    x,
    target,
    *,
    baseline=0.0,
    against=None,
    log_probability: bool = False,
    batch_size: int = 16,
) -> np.ndarray:
    """(x - baseline) times the gradient, (n, *shape).

    With a data set's mean (C, 1, 1) as baseline this is, for a model of images in [0, 1], the
    product of the normalised image and the gradient with respect to it.

    Parameters
    ----------
    baseline : number or array that broadcasts against `x`
    model, x, target, against, log_probability, batch_size
        See `gradient`.
    """
    task = Task(model, x, target, against, log_probability)
    change = task.x - task.like_x(baseline)
    slope = gradient(
        model,
        task.x,
        target,
        against=against,
        log_probability=log_probability,
        batch_size=batch_size,
    )
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
    log_probability: bool = False,
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
    model, x, target, against, log_probability, batch_size
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
    task = Task(model, x, target, against, log_probability)
    flat = task.x.flatten(1)
    sigma = spread * (flat.amax(1) - flat.amin(1))
    generators = [generator(seed, i) for i in range(len(task.x))]
    mean, square = torch.zeros_like(task.x), torch.zeros_like(task.x)

    def noisy(rows, _):
        noise = torch.empty(len(rows), *task.x.shape[1:])
        for row, copy in zip(rows.tolist(), noise, strict=True):
            copy.normal_(generator=generators[row])
        return task.x[rows] + task.per_row(sigma[rows]) * noise.to(task.x)

    for pieces, *_, slopes in task.each_gradient(n_samples, batch_size, noisy):
        for i, piece in pieces:
            mean[i] += slopes[piece].sum(0)
            square[i] += slopes[piece].square().sum(0)
    return SmoothGrad((mean / n_samples).cpu().numpy(), (square / n_samples).cpu().numpy())


def expected_gradients(
    model,
    x,
    references,
    target,
    *,
    n_samples: int = 200,
    candidates=None,
    against=None,
    log_probability: bool = False,
    seed: int = 0,
    batch_size: int = 16,
) -> np.ndarray:
    """Expected gradients: integrated gradients averaged over random baselines, (n, *shape).

    The mean of (x - b) times the gradient at b + a (x - b), where each sample draws b from the
    references and a from U(0, 1).

    Parameters
    ----------
    references : array or tensor (m, *shape)
        What b is drawn from, uniformly; say, training images.
    n_samples : int
        Draws for each input.
    candidates : n int arrays, optional
        The indices of the references that input i may draw; by default all. For references of
        class `against` alone: ``[np.flatnonzero(labels == c) for c in against]``.
    seed : int
        Image i draws from `seed` and i, on the CPU: the same for any batch size.
    model, x, target, against, log_probability, batch_size
        See `gradient`; a batch may hold samples of several inputs.

    Notes
    -----
    Erion, Janizek, Sturmfels, Lundberg and Lee, *Improving performance of deep learning models
    with axiomatic attribution priors and expected gradients*, Nature Machine Intelligence 2021.
    """
    if n_samples < 1:
        raise ValueError(f"n_samples must be at least 1, got {n_samples}")
    task = Task(model, x, target, against, log_probability)
    no_nan("references", as_real(references, "references"))
    references, (n, *shape) = torch.as_tensor(references).detach(), task.x.shape
    m = len(references)
    if m == 0 or list(references.shape[1:]) != shape:
        raise ValueError(
            f"references must be (m, *shape) with shape = {tuple(shape)} and m at least 1, "
            f"got {tuple(references.shape)}"
        )
    pools = [np.arange(m)] * n if candidates is None else [np.asarray(pool) for pool in candidates]
    known = (p.ndim == 1 and p.dtype.kind in "iu" and 0 <= p.min() <= p.max() < m for p in pools)
    if len(pools) != n or any(p.size == 0 for p in pools) or not all(known):
        raise ValueError(f"candidates must hold {n} arrays of one or more indices in 0..{m - 1}")
    along = torch.empty(n, n_samples, dtype=torch.float64)
    chosen = np.empty(along.shape, int)
    for i, pool in enumerate(pools):
        draws = generator(seed, i)
        chosen[i] = pool[torch.randint(len(pool), (n_samples,), generator=draws).numpy()]
        along[i].uniform_(generator=draws)
    total = torch.zeros_like(task.x)

    def changes(rows, at):
        return task.x[rows] - references[chosen[rows, at]].to(task.x)

    def between(rows, at):  # from x back to b, as far as 1 - a
        return task.x[rows] - task.per_row(1 - along[rows, at].to(task.x)) * changes(rows, at)

    for pieces, rows, at, slopes in task.each_gradient(n_samples, batch_size, between):
        parts = changes(rows, at) * slopes
        for i, piece in pieces:
            total[i] += parts[piece].sum(0)
    return (total / n_samples).cpu().numpy()


def occlusion(
    model,
    x,
    target,
    *,
    patch: int,
    baseline: perturb.Filler = 0.0,
    against=None,
    log_probability: bool = False,
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
    model, x, target, against, log_probability
        See `gradient`; x is (n, C, H, W).
    batch_size : int, optional
        See `perturb.evaluate`.

    Notes
    -----
    Zeiler and Fergus, *Visualizing and Understanding Convolutional Networks*, ECCV 2014.
    """
    task = Task(model, x, target, against, log_probability)
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
    prepared = runtime.forward(model, images[0], batch_size=batch_size)  # once for all images
    for i, image in enumerate(images):
        filler = baseline[i] if own else baseline
        shown = np.ones(parts.d, bool)
        if not callable(filler):  # of patches that it leaves as they are the fall is 0
            shown = parts.sums(perturb.fill(image, parts, filler) != image) > 0
        scores = perturb.evaluate(
            prepared,
            image,
            parts,
            masks[np.append(shown, True)],
            filler,
            batch_size=batch_size,
            outputs=lambda out, i=i: task.explained(out, np.full(len(out), i)),
        )
        falls = np.zeros(parts.d, scores.dtype)
        falls[shown] = scores[-1] - scores[:-1]
        maps.append(parts.spread(falls))
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
