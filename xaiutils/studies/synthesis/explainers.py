"""Notebook 05's explainers of images: one map per image and explainer, for one scalar.

Larger values mean more evidence for the explained class; of explainers that have no sign, more
influence. Explainers are used as their papers use them, and settled before any test was run.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from scipy.special import softmax
from torch import nn
from tqdm import tqdm

from xaiutils import attribution, lime, runtime
from xaiutils.integrated import gauss_legendre
from xaiutils.perturb import Components
from xaiutils.studies.fidelity.maps import PATCH, last_convolution
from xaiutils.studies.synthesis.matrix import CONTROLS

RANDOM, CHANGE = CONTROLS  # neither asks the classifier
LIME_RUNS = ("LIME", "LIME, converged")
NOISY = (RANDOM, "SmoothGrad", "SmoothGrad²", *LIME_RUNS)  # another seed gives another map


class Effort(NamedTuple):
    """How much work an explainer may do for an image.

    Attributes
    ----------
    n_noise : int
        Noisy copies of SmoothGrad and SmoothGrad².
    ig_steps : int
        Points of integrated gradients.
    n_masks : int
        Masks of LIME, and of a round of LIME with a stop rule.
    max_masks, top_k : int
        LIME goes on until its `top_k` best cells are told from the others, or to `max_masks`.
    """

    n_noise: int
    ig_steps: int
    n_masks: int
    max_masks: int
    top_k: int


class Explained(NamedTuple):
    """What `explain` returns.

    Attributes
    ----------
    maps : dict of str to (n, H, W) float arrays
    masks : (n,) int
        Masks that LIME with the stop rule has drawn; 0 where it was not asked for.
    seconds : dict of str to float
        Time an image took. SmoothGrad and SmoothGrad² share their noise, both runs of LIME their
        first masks: each is charged as if it were alone.
    """

    maps: dict[str, np.ndarray]
    masks: np.ndarray
    seconds: dict[str, float]


def names(baselines: Collection[str]) -> tuple[str, ...]:
    """Explainers in the order of the matrix, one row of integrated gradients per baseline."""
    paths = [f"IG, {name}" for name in baselines]
    return (
        *(RANDOM, "gradient", "SmoothGrad", "SmoothGrad²", "input × gradient", *paths),
        *("Grad-CAM", "occlusion", *LIME_RUNS, "IG sums", CHANGE),
    )  # fmt: skip


def explain(
    model: nn.Module,
    x,
    target,
    components: Components,
    baselines: Mapping[str, np.ndarray],
    effort: Effort,
    *,
    against=None,
    control: str = "mean",
    only: Collection[str] | None = None,
    batch_size: int = 256,
    seed: int = 0,
) -> Explained:
    """Maps of the logit of `target`, or of its lead over the logit of `against`.

    LIME and "IG sums", which approximates its limit, explain the probability of `target` if there
    is no rival, as the papers do; both hide cells by their mean colour. Their map has the value of
    a cell over its area, so that sums over cells are their coefficients.

    Parameters
    ----------
    model : torch.nn.Module
        Maps (B, C, H, W) to logits (B, K).
    x : (n, C, H, W) float array in [0, 1]
    target, against : (n,) int
    components : Components
        Cells of the images, (H, W), the same for all: LIME's features.
    baselines : dict of arrays like x
        Starts of integrated gradients. "mean" must be among them: it is also what occlusion shows
        and what is subtracted in input x gradient.
    control : str
        The baseline b of the map |x − b|.
    only : collection of str, optional
        Some of `names`; by default all of them.
    batch_size, seed : int

    Raises
    ------
    ValueError
        `only` holds an unknown name, a baseline that is needed is missing, or the images have a
        side for which no patch is set.
    """
    x, target, known = np.asarray(x), np.asarray(target), names(baselines)
    if x.shape[-1] not in PATCH:
        raise ValueError(f"x must be images with a side of {sorted(PATCH)} pixels, got {x.shape}")
    if missing := {"mean", control} - set(baselines):
        raise ValueError(f"baselines must hold {sorted(missing)}, got {sorted(baselines)}")
    wanted = known if only is None else tuple(name for name in known if name in only)
    if only is not None and set(only) - set(known):
        raise ValueError(f"only must hold names of {known}, got {sorted(only)}")
    logit = {"against": against, "batch_size": batch_size}
    maps, seconds, masks = {}, {}, np.zeros(len(x), int)

    def add(values, started, *done):
        took = (time.perf_counter() - started) / len(x)
        for name, one in zip(done, values, strict=True):
            if name in wanted:
                maps[name], seconds[name] = one, took

    area = components.sums(np.ones(components.labels.shape))

    def density(cells):
        return np.stack([components.spread(row / area) for row in cells])

    simple = {
        RANDOM: lambda: _random(x, seed),
        "gradient": lambda: _size(attribution.gradient(model, x, target, **logit)),
        "input × gradient": lambda: _signed(
            attribution.input_x_gradient(model, x, target, baseline=baselines["mean"], **logit)
        ),
        "Grad-CAM": lambda: attribution.gradcam(model, last_convolution(model), x, target, **logit),
        "occlusion": lambda: attribution.occlusion(
            model, x, target, patch=PATCH[x.shape[-1]], baseline=baselines["mean"], against=against
        ),
        "IG sums": lambda: density(_sums(model, x, target, components, effort.ig_steps, **logit)),
        CHANGE: lambda: _size(x - baselines[control]),
    }
    for name, b in baselines.items():
        simple[f"IG, {name}"] = lambda b=b: _signed(
            attribution.integrated_gradients(
                model, x, b, target, steps=effort.ig_steps, tolerance=None, **logit
            )
        )
    for name in tqdm(simple, "explainers", leave=False, mininterval=1):
        if name in wanted:
            started = time.perf_counter()
            add([simple[name]()], started, name)
    if {"SmoothGrad", "SmoothGrad²"} & set(wanted):
        started = time.perf_counter()
        found = attribution.smoothgrad(
            model, x, target, n_samples=effort.n_noise, seed=seed, **logit
        )
        both = _size(found.mean), attribution.reduce(found.mean_square, "sum")
        add(both, started, "SmoothGrad", "SmoothGrad²")
    if set(LIME_RUNS) & set(wanted):
        started = time.perf_counter()
        stop = None
        if "LIME, converged" in wanted:
            stop = lime.Stop(top_k=effort.top_k, max_samples=effort.max_masks)
        first, last, drawn = _lime(model, x, target, components, effort, stop, against, seed)
        took = (time.perf_counter() - started) / len(x)
        add([density(first), density(last)], started, *LIME_RUNS)
        if stop is not None:
            masks = drawn
        if "LIME" in wanted:  # its masks are the first of that run
            seconds["LIME"] = float(took * effort.n_masks / drawn.mean())
    return Explained({name: maps[name] for name in wanted}, masks, seconds)


def calls(explained: Explained, effort: Effort, side: int) -> pd.DataFrame:
    """Model calls an image costs: columns forward and backward, index explainer.

    Parameters
    ----------
    side : int
        Of the images in pixels.
    """
    path, patches = effort.ig_steps, (-(-side // PATCH[side])) ** 2
    noise = effort.n_noise
    forward = {RANDOM: 0, CHANGE: 0, "SmoothGrad": noise, "SmoothGrad²": noise, "IG sums": path}
    forward |= {"LIME": effort.n_masks, "LIME, converged": round(float(explained.masks.mean()))}
    forward |= {"occlusion": patches + 1}
    without = {RANDOM, CHANGE, "occlusion", *LIME_RUNS}
    rows = {}
    for name in explained.maps:
        n = path if name.startswith("IG, ") else forward.get(name, 1)
        rows[name] = {"forward": n, "backward": 0 if name in without else n}
    return pd.DataFrame(rows).T


def first_round(found: lime.Explanation, n_masks: int) -> np.ndarray:
    """Coefficients (d,) of a fit to the first masks of a run: the run without a stop rule."""
    n = slice(n_masks)
    return lime.fit(found.masks[n], found.weights[n], found.outputs[n, None]).coef[0]


def _scalar(forward, target, rival):
    """Function of a batch: the probability of `target`, or its lead over `rival`, (B, 1)."""

    def scalar(batch):
        out = forward(batch).astype(np.float64)
        if rival is None:
            return softmax(out, axis=1)[:, [target]]
        return out[:, [target]] - out[:, [rival]]

    return scalar


def _lime(model, x, target, components, effort: Effort, stop, against, seed):
    """Coefficients of the first round and of the last, both (n, d), and masks drawn (n,)."""
    forward = runtime.forward(model, x[0])
    rivals = [None] * len(x) if against is None else against
    first, last, drawn = [], [], []
    for i, image in enumerate(tqdm(x, "LIME", leave=False, mininterval=1)):
        found = lime.explain(
            _scalar(forward, target[i], rivals[i]), forward.cast(image), components, targets=0,
            n_samples=effort.n_masks, stop=stop, seed=_seed(seed, i),
            batch_size=forward.batch_size, device=str(forward.device),
        )  # fmt: skip
        first.append(first_round(found, effort.n_masks))
        last.append(found.coef)
        drawn.append(len(found.masks))
    return np.stack(first), np.stack(last), np.array(drawn)


def _sums(model, x, target, components, steps, *, against, batch_size):
    """Integrated gradients from the cells' mean colours to x, summed over cells, (n, d)."""
    means = np.stack([components.means(image) for image in x])
    change = x - means
    if against is not None:
        paths = attribution.integrated_gradients(
            model, x, means, target, steps=steps, against=against, batch_size=batch_size,
            tolerance=None,
        )  # fmt: skip
        return np.stack([components.sums(one) for one in paths])
    total, like = np.zeros(x.shape), next(model.parameters())
    for along, weight in zip(*gauss_legendre(steps), strict=True):
        for rows in np.split(np.arange(len(x)), range(batch_size, len(x), batch_size)):
            points = torch.as_tensor(means[rows] + along * change[rows]).to(like).requires_grad_()
            chances = model(points).log_softmax(dim=1)[np.arange(len(rows)), target[rows]]
            # The gradient of p is p times that of log p, which spares the CPU denormal numbers.
            (slope,) = torch.autograd.grad(chances.sum(), points)
            slope *= chances.detach().exp()[:, None, None, None]
            total[rows] += weight * slope.cpu().numpy()
    return np.stack([components.sums(one) for one in change * total])


def _random(x, seed):
    return np.stack(
        [np.random.default_rng([seed, i, 1]).random(x.shape[2:]) for i in range(len(x))]
    )


def _seed(seed: int, i: int) -> int:
    return int(np.random.SeedSequence((seed, i)).generate_state(1)[0])


def _signed(values):
    return attribution.reduce(values, "sum")


def _size(values):
    return attribution.reduce(values, "abs_sum")
