"""Crop and resize: does the smallest rectangle around a map's top pixels still show the class?

Nothing is replaced by a filler here, so the score has no part in the artifacts of masking; it is
the check on fidelity that the first version of Brocki and Chung's paper reports. How they cut a
rectangle out of a map of single pixels is not known: we keep its top q % and try many q.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
import scipy
import torch
from scipy.special import log_softmax
from torch.nn import functional
from tqdm import tqdm

from xaiutils import intervals, runtime
from xaiutils.fidelity import Curves
from xaiutils.fidelity_curves import _ranks
from xaiutils.outputs import Classes

SHARES = tuple(percent / 100 for percent in range(5, 100, 5))  # of pixels kept
SMALLEST = 0.05  # area below which a rectangle earns nothing more


class CrossFit(NamedTuple):
    """Scores `values` (n,), each at the share of pixels that was best on the other half.

    `shares` holds the two: the best on the first half, then on the second.
    """

    values: np.ndarray
    shares: tuple[float, float]


def boxes(scores, shares: Sequence[float] = SHARES, *, seed: int = 0, image: int = 0) -> np.ndarray:
    """Tightest rectangles around the top shares of a map, (Q, 4).

    Parameters
    ----------
    scores : (H, W) array
        Importance; larger is more important.
    shares : Q floats in (0, 1]
        Of the pixels to keep; at least one is kept.
    seed, image : int
        Of the ties, which fall as in `fidelity.curves` for the image of this index.

    Returns
    -------
    (Q, 4) int array
        top, bottom, left, right: rows top..bottom - 1, columns left..right - 1.

    Raises
    ------
    ValueError
        If the scores are no map or hold NaN, or a share is out of range.
    """
    scores, shares = np.asarray(scores, np.float64), np.asarray(shares, np.float64)
    if scores.ndim != 2 or not scores.size or np.isnan(scores).any():
        raise ValueError(f"scores must be one map (H, W) without NaN, got shape {scores.shape}")
    if shares.ndim != 1 or not len(shares) or not ((shares > 0) & (shares <= 1)).all():
        raise ValueError(f"shares must be numbers in (0, 1], got {shares}")
    ranks = _ranks(scores.ravel(), seed, image).reshape(scores.shape)
    kept = np.maximum(np.rint(shares * scores.size), 1)
    ends = []
    for best in (ranks.min(axis=1), ranks.min(axis=0)):  # best rank of each row, each column
        occupied = best < kept[:, None]
        ends += [occupied.argmax(axis=1), occupied.shape[1] - occupied[:, ::-1].argmax(axis=1)]
    return np.stack(ends, axis=1)


def crop_scores(
    model,
    x,
    maps: Mapping[str, np.ndarray],
    *,
    target=None,
    shares: Sequence[float] = SHARES,
    batch_size: int | None = None,
    device: str = "auto",
    seed: int = 0,
) -> dict[str, np.ndarray]:
    """s = log(max(a, 0.05)) - log(p) of each map, image and share; lower is better.

    a is the area of the rectangle as a fraction of the image, p the probability of the class once
    the rectangle is resized to the size of the image (bilinear, antialiased). A rectangle that is
    the whole image scores -log(p) of the image itself.

    Parameters
    ----------
    model, batch_size, device
        See `perturb.evaluate`.
    x : (n, C, H, W) array or tensor
    maps : dict of (n, H, W) arrays
    target : (n,) int, optional
        Class of each image; by default the one predicted for it.
    shares, seed : see `boxes`

    Returns
    -------
    dict of (n, Q) arrays

    Raises
    ------
    ValueError
        If shapes or shares do not fit, or the model does not return logits of two or more classes.

    Notes
    -----
    Dabkowski and Gal, *Real Time Image Saliency for Black Box Classifiers*, NeurIPS 2017.
    """
    x = torch.as_tensor(x)
    if x.ndim != 4 or not len(x):
        raise ValueError(f"x must be images (n, C, H, W), got shape {tuple(x.shape)}")
    n, _, height, width = x.shape
    for name, scores in maps.items():
        if np.shape(scores) != (n, height, width):
            raise ValueError(f"{name}: map must be {(n, height, width)}, got {np.shape(scores)}")
    if target is not None and np.shape(target) != (n,):
        raise ValueError(f"target must hold {n} classes, got shape {np.shape(target)}")
    call = runtime.forward(model, x[0].cpu().numpy(), device, batch_size)
    size = call.batch_size if batch_size is None else batch_size
    result, logits = np.empty((n, len(maps), len(shares))), Classes()
    for i in tqdm(range(n), desc="images", delay=5, leave=False):
        found = [boxes(scores[i], shares, seed=seed, image=i) for scores in maps.values()]
        # The whole image first; rectangles that are alike are classified once.
        every = np.concatenate([[[0, height, 0, width]], *found])
        unique, place = np.unique(every, axis=0, return_inverse=True)
        image = torch.from_numpy(call.cast(x[i : i + 1].cpu().numpy())).to(call.device)
        crops = [_resized(image, box) for box in unique]
        parts = [call(torch.cat(crops[k : k + size])) for k in range(0, len(crops), size)]
        out = logits.check(np.concatenate(parts))
        logits.settle()
        log_p = log_softmax(out.astype(np.float64), axis=1)
        label = log_p[place[0]].argmax() if target is None else int(target[i])
        top, bottom, left, right = unique.T
        area = (bottom - top) * (right - left) / (height * width)
        s = np.log(np.maximum(area, SMALLEST)) - log_p[:, label]
        result[i] = s[place[1:]].reshape(len(maps), len(shares))
    return {name: result[:, m] for m, name in enumerate(maps)}


def cross_fit(scores, shares: Sequence[float] = SHARES, *, seed: int = 0) -> CrossFit:
    """Score each image at the share whose mean score is lowest on the half it is not in.

    Parameters
    ----------
    scores : (n, Q) array
        Of one map, from `crop_scores`.
    shares : Q floats
    seed : int
        Of the halves, which are the same for all maps of n images.

    Raises
    ------
    ValueError
        Below two images, or if the number of shares does not fit.
    """
    scores = np.asarray(scores)
    if scores.ndim != 2 or len(scores) < 2 or scores.shape[1] != len(shares):
        raise ValueError(f"scores must be (n >= 2, {len(shares)}), got {scores.shape}")
    first, second = np.array_split(np.random.default_rng(seed).permutation(len(scores)), 2)
    values, chosen = np.empty(len(scores)), []
    for fit, held_out in ((first, second), (second, first)):
        best = scores[fit].mean(axis=0).argmin()
        values[held_out] = scores[held_out, best]
        chosen.append(float(shares[best]))
    return CrossFit(values, tuple(chosen))


def table(
    fits: Mapping[str, CrossFit],
    *,
    random: str = "random",
    draws: int = intervals.DRAWS,
    seed: int = 0,
) -> pd.DataFrame:
    """Mean score of each method with bootstrap intervals over images, given the chosen shares.

    Returns
    -------
    DataFrame
        Columns method, quantity, value, low, high, n, share_first, share_second. Quantities are
        "s" and, if `random` is among the methods, its paired difference "s-s_random".
    """
    rows = []
    for method, fit in fits.items():
        values = {"s": fit.values}
        if random in fits:
            values["s-s_random"] = fit.values - fits[random].values
        for quantity, each in values.items():
            estimate = intervals.mean(each, draws=draws, seed=seed)
            row = {"method": method, "quantity": quantity, **estimate._asdict()}
            rows.append(row | dict(zip(("share_first", "share_second"), fit.shares, strict=True)))
    return pd.DataFrame(rows)


def agreement(
    curves: Mapping[str, Curves],
    fits: Mapping[str, CrossFit],
    *,
    measure: str = "accuracy",
    random: str = "random",
    level: float = 0.95,
    draws: int = intervals.DRAWS,
    seed: int = 0,
) -> intervals.Estimate:
    """Spearman correlation over methods of fidelity F with -s: 1 if they rank them alike.

    The method `random` is left out: it would be last by both. Each draw resamples the images, the
    same for F and s and for all methods. Resampling adds noise to rankings, so the interval leans
    to lower agreement. Draws that tie all methods are left out.

    Raises
    ------
    ValueError
        Below two methods, or if methods or images of the two differ.
    """
    names = [name for name in curves if name != random]
    if len(names) < 2 or set(names) != {name for name in fits if name != random}:
        raise ValueError(
            f"curves and fits must hold the same 2 or more methods: {tuple(curves)}, {tuple(fits)}"
        )
    sizes = {len(curves[name].predicted) for name in names} | {
        len(fits[name].values) for name in names
    }
    if len(sizes) > 1:
        raise ValueError(f"curves and fits must be of the same images, got {sorted(sizes)} images")
    n = sizes.pop()
    gaps = [
        np.trapezoid(
            one.curve("lif", measure) - one.curve("mif", measure).astype(float), one.fractions
        )
        for one in (curves[name] for name in names)
    ]
    scores = [-fits[name].values for name in names]
    counts = np.vstack([np.ones(n), intervals.resamples(n, draws=draws, seed=seed)])
    ranks = scipy.stats.rankdata(
        np.stack([counts @ np.transpose(gaps), counts @ np.transpose(scores)]), axis=-1
    )
    ranks -= ranks.mean(axis=-1, keepdims=True)
    with np.errstate(invalid="ignore"):  # all methods tied: 0 / 0
        rho = ranks.prod(axis=0).sum(axis=-1) / np.sqrt(np.square(ranks).sum(axis=-1).prod(axis=0))
    low, high = np.nanquantile(rho[1:], [(1 - level) / 2, (1 + level) / 2])
    return intervals.Estimate(float(rho[0]), float(low), float(high), n)


def _resized(image, box):
    """The rectangle of an image (1, C, H, W), resized to (H, W)."""
    top, bottom, left, right = box
    size = tuple(image.shape[2:])
    crop = image[:, :, top:bottom, left:right]
    return functional.interpolate(crop, size, mode="bilinear", antialias=True)
