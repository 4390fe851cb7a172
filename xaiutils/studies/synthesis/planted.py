"""Images whose answer is turned by a change of known cells only, and how well scores find these.

Paper 1's question, put to explainers of image classifiers: the cause of the answer is in the open
cells, so they should come first.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import scipy
import torch
from tqdm import tqdm

from xaiutils import attack, explained, perturb, runtime

# How clearly the target must win: logistic(its logit minus the largest other) exceeds this. Like
# the settings below it was chosen by how many images turn, before any explainer was run on them.
THRESHOLD = 0.6
# Settings of `attack.signed_gradient`: visible patches in few steps. The weight of the flip is so
# large that the size of the change hardly counts.
PHOTOGRAPHS = {"lr": 0.03, "alpha": 1e6, "eps": 1.0, "steps": 100}
SCENES = {"lr": 0.1, "alpha": 1e6, "eps": 1.0, "steps": 100}


class Planted(NamedTuple):
    """Images with a known cause of their wrong answer, n of `tried` that were attacked.

    Attributes
    ----------
    clean, images : ndarray
        (n, C, H, W) float32 in [0, 1], before and after the attack.
    source, target : ndarray
        (n,) int, the answers to them.
    cells : ndarray
        (n, d) bool, the components that were open to the attack; elsewhere nothing changed.
    tried : int
    """

    clean: np.ndarray
    images: np.ndarray
    source: np.ndarray
    target: np.ndarray
    cells: np.ndarray
    tried: int


def plant(
    model,
    x,
    source,
    components: perturb.Components,
    *,
    k: int,
    seed: int,
    name: str,
    target=None,
    **settings,
) -> Planted:
    """Attack k random components of each image until a random other class is the answer.

    Parameters
    ----------
    model : torch.nn.Module
        Maps images (N, C, H, W) in [0, 1] to logits (N, K), in evaluation mode.
    x : array or tensor (n, C, H, W)
        In [0, 1].
    source : (n,) int
        What the model says of them.
    components : Components
        Of one image, labels (H, W).
    k : int
        How many are open, 1..d - 1.
    seed : int
        Image i draws its components and its target from `seed` and i.
    name : str
        Of the attacks in the cache.
    target : (n,) int, optional
        The answers wanted; random by default.
    **settings
        `lr`, `alpha`, `eps` and `steps` of `attack.signed_gradient`, see `PHOTOGRAPHS`, `SCENES`.

    Returns
    -------
    Planted
        Images whose target wins by the margin of `THRESHOLD`; the others are left out.

    Raises
    ------
    ValueError
        If k, an image, a source or a target does not fit.
    """
    x = torch.as_tensor(x).detach().float()
    if x.ndim != 4 or len(x) == 0 or not (x.min() >= 0 and x.max() <= 1):
        raise ValueError(f"x must be images (n, C, H, W) in [0, 1], got shape {tuple(x.shape)}")
    if not 1 <= k < components.d:
        raise ValueError(f"k must be within 1..{components.d - 1} of the components, got {k}")
    logits = runtime.logits(model, x)
    n, classes = logits.shape
    source = _classes("source", source, n, classes)
    answers = logits.argmax(1)
    wrong = np.flatnonzero(answers != source)
    if wrong.size:
        raise ValueError(
            f"source must be what the model says of each image; of image {wrong[0]} it says "
            f"{answers[wrong[0]]}, not {source[wrong[0]]}"
        )
    if target is not None:
        target = _classes("target", target, n, classes)
        if (target == source).any():
            raise ValueError(f"target must differ from source: {source[target == source][0]}")
    device = next(model.parameters()).device
    kept = []
    for i in tqdm(range(n), "attacks", leave=False, mininterval=1):
        rng = np.random.default_rng([seed, i])
        cells = np.isin(np.arange(components.d), rng.choice(components.d, k, replace=False))
        other = (source[i] + rng.integers(1, classes)) % classes
        wanted = int(other if target is None else target[i])
        result = _attack(model, x[i : i + 1].to(device), wanted, components, cells, name, settings)
        if result.all_flipped:
            image = result.adversarial.clamp(0, 1)[0].cpu().numpy()
            kept.append((x[i].numpy(), image, source[i], wanted, cells))
    if not kept:
        raise ValueError(f"none of the {n} images turned with k={k} and {settings}")
    return Planted(*(np.stack(values) for values in zip(*kept, strict=True)), n)


def _attack(model, x, target, components, cells, name, settings) -> attack.Attack:
    def logits(changed):
        return margin(model, changed, target)

    return attack.cached(
        name,
        logits,
        x,
        model,
        margin,
        target,
        threshold=THRESHOLD,
        target=torch.ones(1, 1, dtype=torch.bool, device=x.device),
        confine=torch.from_numpy(cells[components.labels]).to(x.device),
        **settings,
    )


def margin(model, changed: torch.Tensor, target: int) -> torch.Tensor:
    """Logit of the target minus the largest other (N, 1), of images clamped to [0, 1].

    Clamped pixels pass their gradient on: without it an attack could not take them back.
    """
    logits = model(changed + (changed.clamp(0, 1) - changed).detach())
    at = torch.arange(logits.shape[1], device=logits.device) == target
    return logits[:, at] - logits.masked_fill(at, -torch.inf).amax(1, keepdim=True)


def found(scores, cells) -> dict[str, np.ndarray]:
    """How well scores tell the open cells from the others.

    Parameters
    ----------
    scores : (n, d)
        Larger is more important.
    cells : (n, d) bool
        Open cells, at least one and not all of each row.

    Returns
    -------
    dict of (n,) arrays in [0, 1]
        "top k": share of the k open cells among the k best scores, its mean over random orders
        of ties; "auc": probability that an open cell has a larger score than another, ties half.
        Scores that are all equal get exactly k / d and 1 / 2.

    Raises
    ------
    ValueError
        If the shapes differ, a score is NaN, or a row has no open or no other cell.
    """
    scores, cells = np.asarray(scores, float), np.asarray(cells)
    if scores.ndim != 2 or scores.shape != cells.shape or cells.dtype != bool:
        raise ValueError(
            f"scores and cells must have one shape (n, d), and cells be bool: {scores.shape}, "
            f"{cells.dtype} {cells.shape}"
        )
    if np.isnan(scores).any():
        raise ValueError(f"scores of image {np.isnan(scores).any(1).argmax()} hold NaN")
    k, d = cells.sum(axis=1, keepdims=True), cells.shape[1]
    if not ((k > 0) & (k < d)).all():
        raise ValueError(f"cells must have 1..{d - 1} open cells in each row: {k.ravel()}")
    last = np.take_along_axis(-np.sort(-scores, axis=1), k - 1, axis=1)  # the k-th best score
    above, tied = scores > last, scores == last
    # The places left by better scores go to tied cells at random.
    places = (k - above.sum(axis=1, keepdims=True)) / tied.sum(axis=1, keepdims=True)
    hits = (above + places * tied) * cells
    ranks = scipy.stats.rankdata(scores, axis=1)
    wins = (ranks * cells).sum(axis=1, keepdims=True) - k * (k + 1) / 2
    return {"top k": (hits.sum(axis=1, keepdims=True) / k)[:, 0], "auc": (wins / k / (d - k))[:, 0]}


def by_cell(maps, components: perturb.Components) -> np.ndarray:
    """Sums (n, d) of maps (n, H, W) over the components of one image, labels (H, W)."""
    return np.stack([components.sums(one) for one in np.asarray(maps)])


def _classes(name, values, n, classes) -> np.ndarray:
    values = explained.classes(name, values, n, "classes")
    if values.max() >= classes:
        raise ValueError(f"{name} must hold classes 0..{classes - 1}, got {values.max()}")
    return values
