"""Perturbation tests of one-vs-one maps: why class c_o and not class c_t?

LO = s_co - s_ct is the difference of two logits. A map is tested by replacing the pixels it names
and asking the model again: pixels in the order of the map (`removal`), those that it holds against
c_t (`conversion`), or growing regions taken from an image of c_t (`mask_test`).

Common to all: `model` maps (B, C, H, W) to logits (B, K), a module in evaluation mode (on the CPU
it runs on ONNX Runtime) or a callable; `x` (n, C, H, W) are floating-point images, `source` and
`target` (n,) the classes c_o and c_t of each; `scores` (n, H, W) has one score per pixel, whose
channels are replaced together, or is a dict of such maps: the result then is a dict too, and rows
of all maps share the calls of the model. `batch_size` is by default the one `runtime.forward`
measured. `outputs_are` can say that the model returns "probabilities", whose logarithms then serve
as logits, or that it returns "logits"; by default logits are expected and what looks like
probabilities is refused. All raise ValueError if a shape, a class or an option does not fit, or if
an output is NaN or infinite.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import skimage
from scipy.ndimage import gaussian_filter

from xaiutils.queries import ImageQueries


@dataclass(frozen=True)
class Removal:
    """LO of n images while their pixels are replaced in the order of a map, in K steps.

    Attributes
    ----------
    fractions : (K+1,) in [0, share]
        Share of pixels replaced, exactly.
    drop : (n, K+1)
        Delta(k) = LO(x) - LO(x^(k)), in logits; large early is good.
    full : (n,)
        LO(x) - LO(r), what replacing all pixels makes of it, by whatever map.
    to_target, from_source : (n, K+1) bool
        The class predicted for x^(k) is c_t; is not c_o.
    """

    fractions: np.ndarray
    drop: np.ndarray
    full: np.ndarray
    to_target: np.ndarray
    from_source: np.ndarray

    @property
    def normalised(self) -> np.ndarray:
        """`drop` / `full`, (n, K+1); NaN where the filler does not change LO at all.

        Its sign turns for a filler that *raises* LO, and it explodes for one that hardly changes
        it: of such fillers trust only `drop`.
        """
        full = self.full[:, None]
        return np.divide(self.drop, full, out=np.full(self.drop.shape, np.nan), where=full != 0)

    def aopc(self, normalised: bool = False) -> np.ndarray:
        """Mean of `drop` (or of `normalised`) over the K + 1 steps, (n,)."""
        return (self.normalised if normalised else self.drop).mean(axis=1)


@dataclass(frozen=True)
class Conversion:
    """LO of n images before and after the pixels that speak for c_o against c_t are blanked.

    Attributes
    ----------
    drop : (n,)
        LO(x) - LO(x'), in logits.
    converted : (n,) bool
        LO(x') < 0: c_t now beats c_o.
    blanked : (n,) in [0, share]
        Share of pixels blanked; less than `share` where few scores are positive or some tie.
    """

    drop: np.ndarray
    converted: np.ndarray
    blanked: np.ndarray


@dataclass(frozen=True)
class MaskTest:
    """n images while growing masks, the first of them empty, show another image through.

    Attributes
    ----------
    sizes : (n, T+1) in [0, 1]
        Share of the image that each mask covers, ascending.
    gains : (n, T+1) in [-1, 1]
        dp = p_t(hybrid) - p_t(x).
    flips : (n, T+1) bool
        The class predicted for the hybrid is c_t.
    """

    sizes: np.ndarray
    gains: np.ndarray
    flips: np.ndarray

    @property
    def size(self) -> np.ndarray:
        """Size of the best mask, argmin(size - gain), the smallest of several, (n,)."""
        return self._at_best(self.sizes)

    @property
    def gain(self) -> np.ndarray:
        """Gain of the best mask, (n,)."""
        return self._at_best(self.gains)

    @property
    def score(self) -> np.ndarray:
        """Largest gain - size, (n,) in [0, 1]; 0 if no mask beats the empty one."""
        return self.gain - self.size

    @property
    def flip_size(self) -> np.ndarray:
        """Size of the smallest mask whose hybrid is taken for c_t, (n,); 1 if there is none."""
        return np.where(self.flips, self.sizes, 1.0).min(axis=1)

    def _at_best(self, values):
        best = np.argmin(self.sizes - self.gains, axis=1)
        return values[np.arange(len(best)), best]


def removal(
    model,
    x,
    source,
    target,
    scores,
    filler,
    *,
    share: float = 0.3,
    step: float = 0.01,
    seed: int = 0,
    batch_size: int | None = None,
    outputs_are: str | None = None,
) -> Removal | dict[str, Removal]:
    """Replace the pixels of largest signed score by a filler, step by step.

    x^(k) is x with its round(k * step * d) pixels of largest score replaced, k = 0..share / step.

    Parameters
    ----------
    model, x, source, target, scores, batch_size, outputs_are
        See the module. Equal scores are ordered at random.
    filler : number or array that broadcasts against `x`
        r, what replaced pixels show; (n, C, H, W) is one image for each.
    share : float in (0, 1]
        Share of the d pixels replaced in the end, a multiple of `step`.
    step : float in (0, share]
    seed : int
        Of the ties, which an image breaks alike in all maps.

    Notes
    -----
    The difference of two logits in place of a logit in the area over the perturbation curve of
    Samek, Binder, Montavon, Lapuschkin and Müller, *Evaluating the Visualization of What a Deep
    Neural Network Has Learned*, IEEE TNNLS 28 (2017). The filler favours the map that was made
    with it: for a linear model, w * (x - r) has the largest sum of drops of all rankings.
    """
    queries = ImageQueries(model, x, batch_size, outputs_are)
    source, target = queries.pair(source, target)
    names, maps = queries.maps(scores)
    filler = queries.like_x("filler", filler)
    steps = round(share / step) if 0 < step <= share <= 1 else 0
    n, d = len(queries.x), maps[0, 0].size
    if not np.isclose(steps * step, share, rtol=1e-9, atol=0) or round(share * d) < 1:
        raise ValueError(
            f"share must be at most 1, a multiple of step, which must be positive, and one or more "
            f"of the {d} pixels: got share {share} and step {step}"
        )
    number = np.rint(np.arange(steps + 1) * step * d).astype(int)
    hidden, at = np.unique(number, return_inverse=True)  # steps below one pixel repeat a number
    hidden = hidden[1:]
    ranks = _ranks(maps.reshape(len(maps), n, d), seed).reshape(-1, 1, *queries.x.shape[2:])

    def build(rows):
        job, k = np.divmod(rows, len(hidden))
        keep = ranks[job] >= hidden[k, None, None, None]
        return np.where(keep, queries.x[job % n], filler[job % n])

    ends = np.concatenate([queries.x, filler])
    clean, blank = queries.logits(2 * n, lambda rows: ends[rows]).reshape(2, n, 1, -1)
    inner = queries.logits(len(ranks) * len(hidden), build)
    inner = inner.reshape(len(maps), n, len(hidden), -1)
    start = np.broadcast_to(clean, (*inner.shape[:2], *clean.shape[1:]))
    logits = np.concatenate([start, inner], axis=2)[:, :, at]
    winner = logits.argmax(axis=-1)
    before = _margin(clean, source, target)
    results = zip(
        before - _margin(logits, source, target),
        winner == target[:, None],
        winner != source[:, None],
        strict=True,
    )
    full = (before - _margin(blank, source, target))[:, 0]
    found = [Removal(number / d, drop, full, *predicted) for drop, *predicted in results]
    return _named(names, found)


def conversion(
    model,
    x,
    source,
    target,
    scores,
    *,
    share: float = 0.2,
    blank=0.0,
    batch_size: int | None = None,
    outputs_are: str | None = None,
) -> Conversion | dict[str, Conversion]:
    """Turn images of c_o into c_t by blanking the pixels that speak for c_o against c_t.

    Blanked are the pixels whose score is positive and above the (m + 1)-th largest of the image,
    m = round(share * d): at most m pixels, and exactly m if all scores differ and m + 1 of them
    are positive. Pixels of negative score stay.

    Parameters
    ----------
    model, x, source, target, scores, batch_size, outputs_are
        See the module. Here scores are contributions to c_o minus contributions to c_t, signed.
    share : float in (0, 1]
    blank : number or array that broadcasts against `x`

    Notes
    -----
    The MNIST task of Shrikumar, Greenside and Kundaje, *Learning Important Features Through
    Propagating Activation Differences*, ICML 2017, where m = 157 of 784 pixels. As in their code
    the threshold is entry 157 of the sorted scores counted from 0, hence the (m + 1)-th largest.
    """
    queries = ImageQueries(model, x, batch_size, outputs_are)
    source, target = queries.pair(source, target)
    names, maps = queries.maps(scores)
    blank = queries.like_x("blank", blank)
    if not 0 < share <= 1:
        raise ValueError(f"share must be above 0 and at most 1, got {share}")
    n, d = len(queries.x), maps[0, 0].size
    m = round(share * d)
    threshold = np.zeros((len(maps), n))
    if m < d:
        ordered = np.sort(maps.reshape(len(maps), n, d), axis=-1)
        threshold = np.maximum(ordered[..., d - 1 - m], 0)
    hidden = maps > threshold[..., None, None]
    flat = hidden.reshape(-1, 1, *queries.x.shape[2:])

    def build(rows):
        return np.where(flat[rows], blank[rows % n], queries.x[rows % n])

    before = queries.logits(n, lambda rows: queries.x[rows])[None, :, None]
    after = queries.logits(len(flat), build).reshape(len(maps), n, 1, -1)
    left = _margin(after, source, target)[..., 0]
    drop = _margin(before, source, target)[..., 0] - left
    rows = zip(drop, left < 0, hidden.mean(axis=(2, 3)), strict=True)
    return _named(names, [Conversion(*row) for row in rows])


def mask_test(
    model,
    x,
    baseline,
    target,
    scores,
    *,
    n_thresholds: int = 100,
    closing: int = 1,
    sigma: float = 0.5,
    batch_size: int | None = None,
    outputs_are: str | None = None,
) -> MaskTest | dict[str, MaskTest]:
    """How little of the baseline image, where a map says, makes a model see the target class.

    A mask m is |a| at or above a threshold, with small gaps closed, then blurred. The hybrid is
    h = b m + x (1 - m).

    Parameters
    ----------
    model, x, target, scores, batch_size, outputs_are
        See the module. Only |scores| counts.
    baseline : (n, C, H, W) array
        b, an image of class `target` for each.
    n_thresholds : int
        T: masks hold, before closing, the round(k d / T) pixels of largest |a|, k = 0..T, and all
        that tie with the last of these. At most d are of use.
    closing : int
        Radius in pixels of the disc that closes gaps; 0 closes none.
    sigma : float
        Standard deviation of the blur in pixels; 0 is none. The blur keeps a mask's size.

    Notes
    -----
    Eckstein, Bates, Jefferis and Funke, *Discriminative Attribution from Counterfactuals*, 2021,
    arXiv 2109.13412. They close with an ellipse of 10 pixels and blur with a kernel of 11, whose
    standard deviation is 2; the defaults are to images of 28 or 32 pixels about what these are to
    images of 128. Their thresholds are evenly spaced, which leaves few masks to a map of few large
    values; ours are quantiles, so a mask depends on the order of the pixels alone.
    """
    queries = ImageQueries(model, x, batch_size, outputs_are)
    target = queries.classes("target", target)
    names, maps = queries.maps(scores)
    baseline = queries.like_x("baseline", baseline)
    if not isinstance(n_thresholds, int | np.integer) or n_thresholds < 1:
        raise ValueError(f"n_thresholds must be a positive integer, got {n_thresholds!r}")
    if not isinstance(closing, int | np.integer) or closing < 0:
        raise ValueError(f"closing must be a radius of 0 or more whole pixels, got {closing!r}")
    if not 0 <= sigma < np.inf:
        raise ValueError(f"sigma must be 0 or more pixels, got {sigma}")
    n, d = len(queries.x), maps[0, 0].size
    steps = min(n_thresholds, d)
    last = np.rint(np.arange(1, steps + 1) * d / steps).astype(int) - 1
    shape = (len(maps), n, steps + 1)
    maps = np.abs(maps).reshape(-1, *queries.x.shape[2:])
    thresholds = np.full((len(maps), steps + 1), np.inf)
    thresholds[:, 1:] = -np.sort(-maps.reshape(-1, d))[:, last]
    fresh = np.diff(thresholds, axis=1, prepend=np.nan) != 0  # equal ones give the same mask
    job, at = np.nonzero(fresh)[0], np.cumsum(fresh).reshape(fresh.shape) - 1
    thresholds = thresholds[fresh][:, None, None]
    # Closing commutes with thresholds: one closing of a map closes all of its masks.
    closed = skimage.morphology.closing(maps, skimage.morphology.disk(closing)[None], mode="ignore")
    sizes = np.empty(len(job))

    def build(rows):
        mask = closed[job[rows]] >= thresholds[rows]
        sizes[rows] = mask.mean(axis=(1, 2))
        # Reflection at the border keeps the sum, so that the blurred mask covers as much.
        mask = mask.astype(queries.x.dtype)
        mask = gaussian_filter(mask, sigma, mode="reflect", axes=(1, 2))[:, None]
        image = job[rows] % n
        return baseline[image] * mask + queries.x[image] * (1 - mask)

    out = queries.ask(len(job), build)
    wanted = target[job % n]
    probability = queries.scale.probabilities(out)[np.arange(len(job)), wanted][at]
    flips = (out.argmax(axis=1) == wanted)[at]
    gains = probability - probability[:, :1]  # the first mask is empty: the hybrid is x
    rows = zip(*(v.reshape(shape) for v in (sizes[at], gains, flips)), strict=True)
    return _named(names, [MaskTest(*row) for row in rows])


def _ranks(maps, seed) -> np.ndarray:
    """0 for the largest score of each row (M, n, d) .. d - 1 for the smallest."""
    ties = np.random.default_rng(seed).random(maps.shape[1:])
    order = np.lexsort((np.broadcast_to(ties, maps.shape), -maps))
    ranks = np.empty(maps.shape, np.int32)
    np.put_along_axis(ranks, order, np.arange(maps.shape[-1], dtype=np.int32), axis=-1)
    return ranks


def _margin(logits, source, target) -> np.ndarray:
    """LO (..., n, S) of logits (..., n, S, K)."""
    logits, every = np.moveaxis(logits, -3, 0), np.arange(len(source))  # images first
    own, other = (logits[every, ..., c].astype(np.float64) for c in (source, target))
    for c, scores in ((source, own), (target, other)):
        if np.isinf(scores).any():
            image = int(np.isinf(scores).reshape(len(scores), -1).any(axis=1).argmax())
            raise ValueError(
                f"LO needs finite logits, but class {c[image]} of image {image} has minus infinity "
                "at some step, the logarithm of a probability of 0"
            )
    return np.moveaxis(own - other, 0, -2)


def _named(names, results):
    return results[0] if names is None else dict(zip(names, results, strict=True))
