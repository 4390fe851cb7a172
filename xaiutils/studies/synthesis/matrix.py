"""Scores of explainers in several tests, and whether the tests agree on who is good."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import pandas as pd
import scipy

from xaiutils.intervals import DRAWS, Estimate, percentiles, resamples
from xaiutils.runtime import one_blas_thread

CONTROLS = ("random", "|x − b|")  # they would flatter, or hide, the agreement of the others
FEWEST = 4  # explainers below which a rank correlation says nothing


@dataclass(frozen=True, eq=False)
class Test:
    """What one test says of each explainer on each image.

    Parameters
    ----------
    name : str
        Short head of a column, such as "planted cells".
    data : str
        The images, such as "photographs". Tests with the same data and n were run on the same
        images, row by row.
    explainers : tuple of E str
    values : (n, E) float array
        One score per image and explainer; NaN where it is undefined: such an image does not
        count for that explainer.
    weights : (n, E) float array, optional
        An explainer's score is the sum of its values over the sum of its weights; by default
        weights are 1, so it is the mean.
    larger_is_better : bool
    chance : float, optional
        Score of an explainer without content.
    units : (n,) array, optional
        What is resampled, such as the track of each row; by default each row.

    Raises
    ------
    ValueError
        If shapes do not fit, an explainer occurs twice or a number is infinite.
    """

    name: str
    data: str
    explainers: tuple[str, ...]
    values: np.ndarray
    weights: np.ndarray | None = None
    larger_is_better: bool = True
    chance: float | None = None
    units: np.ndarray | None = None

    def __post_init__(self):
        explainers, values = tuple(self.explainers), np.asarray(self.values, float)
        if len(set(explainers)) < len(explainers):
            raise ValueError(f"explainers of {self.label!r} must differ, got {explainers}")
        if values.ndim != 2 or not len(values) or values.shape[1] != len(explainers):
            raise ValueError(
                f"values of {self.label!r} must be (n > 0 images, {len(explainers)} explainers), "
                f"got {values.shape}"
            )
        weights = np.ones_like(values) if self.weights is None else np.asarray(self.weights, float)
        if weights.shape != values.shape:
            raise ValueError(
                f"weights of {self.label!r} must have the shape of values, {values.shape}, "
                f"got {weights.shape}"
            )
        if np.isinf(values).any() or np.isinf(weights).any():
            raise ValueError(f"values and weights of {self.label!r} must be finite or NaN")
        if self.units is not None and np.shape(self.units) != values.shape[:1]:
            raise ValueError(
                f"units of {self.label!r} must be one per image, ({len(values)},), "
                f"got {np.shape(self.units)}"
            )
        object.__setattr__(self, "explainers", explainers)
        object.__setattr__(self, "values", values)
        object.__setattr__(self, "weights", weights)

    @property
    def label(self) -> str:
        """Name and data, such as "planted cells, scenes"."""
        return f"{self.name}, {self.data}"

    @property
    def defined(self) -> np.ndarray:
        """Which images count for which explainer, (n, E) bool."""
        return ~np.isnan(self.values + self.weights)

    def index(self, explainer: str) -> int:
        """Column of an explainer; ValueError if there is none."""
        if explainer not in self.explainers:
            raise ValueError(
                f"explainer must be one of {self.explainers} in {self.label!r}, got {explainer!r}"
            )
        return self.explainers.index(explainer)


@one_blas_thread
def scores(test: Test, seed: int | Sequence[int] = 0, *, draws: int = DRAWS) -> np.ndarray:
    """Scores of all explainers, under the sample itself and under its resamples.

    Tests with the same number of images (or the same units) share the resamples of a seed.

    Returns
    -------
    (draws + 1, E) array
        First the sample. NaN where no image counts, or weights sum to 0; resamples also where
        those that count are of one unit, which says nothing of others.
    """
    rows = len(test.values)
    units = np.arange(rows) if test.units is None else np.asarray(test.units)
    drawn = resamples(units, draws=draws, seed=seed)
    counts = np.vstack([np.ones(rows), drawn])
    total, weight = (
        counts @ np.where(test.defined, numbers, 0) for numbers in (test.values, test.weights)
    )
    found = _ratio(total, weight)
    alone = [len(np.unique(units[counts])) < 2 for counts in test.defined.T]
    found[1:, alone] = np.nan
    return found


def estimates(
    tests: Iterable[Test], *, seed: int = 0, draws: int = DRAWS, level: float = 0.95
) -> pd.DataFrame:
    """Score of each explainer in each test with its percentile bootstrap interval.

    Returns
    -------
    DataFrame
        Columns data, test, explainer, value, low, high, n (images that count). Without any, the
        value is NaN.
    """
    rows = []
    for test in tests:
        drawn, n = scores(test, seed, draws=draws), test.defined.sum(axis=0)
        rows += [
            (test.data, test.name, explainer, *_estimate(drawn[:, e], level, int(n[e])))
            for e, explainer in enumerate(test.explainers)
        ]
    columns = ["data", "test", "explainer", "value", "low", "high", "n"]
    return pd.DataFrame(rows, columns=columns)


def texts(table: pd.DataFrame) -> dict[tuple[str, str], str]:
    """Scores such as "0.72 [0.65, 0.78]" by label of the test, see `Test.label`, and explainer."""
    return {
        (f"{row.test}, {row.data}", row.explainer): Estimate(
            row.value, row.low, row.high, row.n
        ).text()
        for row in table.itertuples()
    }


def estimate(
    test: Test, explainer: str, *, seed: int = 0, draws: int = DRAWS, level: float = 0.95
) -> Estimate:
    """Score of one explainer; n is the number of images that count for it.

    Raises
    ------
    ValueError
        If the test does not have the explainer.
    """
    e = test.index(explainer)
    drawn = scores(test, seed, draws=draws)[:, e]
    return _estimate(drawn, level, int(test.defined[:, e].sum()))


def difference(
    test: Test, a: str, b: str, *, seed: int = 0, draws: int = DRAWS, level: float = 0.95
) -> Estimate:
    """Score of `a` minus score of `b`, under shared resamples.

    Each score is over the images that count for it; n is the number that count for both.

    Raises
    ------
    ValueError
        If the test does not have an explainer.
    """
    columns = [test.index(a), test.index(b)]
    first, second = scores(test, seed, draws=draws)[:, columns].T
    return _estimate(first - second, level, int(test.defined[:, columns].all(axis=1).sum()))


def agreement(
    tests: Sequence[Test],
    without: Sequence[str] = CONTROLS,
    *,
    seed: int = 0,
    draws: int = DRAWS,
    level: float = 0.95,
) -> pd.DataFrame:
    """Spearman rank correlation of the explainers' scores for every pair of tests.

    Scores are turned so that larger is better. Both tests of a pair rank the explainers that
    have a score in both. Images are resampled: the same for tests on the same images,
    independently for others. Resampling adds noise to rankings, so intervals lean to lower
    agreement. They do not cover the choice of explainers: others might agree otherwise.

    Parameters
    ----------
    tests : sequence of Test
    without : sequence of str
        Explainers left out.
    seed, draws, level
        See `estimates`.

    Returns
    -------
    DataFrame
        Columns first, second (labels of tests), value, low, high, n (common explainers). NaN
        below 4 of them, or where a test ties them all.

    Raises
    ------
    ValueError
        If two tests have one label, or the same images but different units.
    """
    rows = [
        (*pair, *_estimate(drawn, level, n))
        for pair, (drawn, n) in _correlations(tests, without, seed, draws).items()
    ]
    return pd.DataFrame(rows, columns=["first", "second", "value", "low", "high", "n"])


def mean_agreement(
    tests: Sequence[Test],
    without: Sequence[str] = CONTROLS,
    *,
    pairs: Iterable[tuple[str, str]] | None = None,
    seed: int = 0,
    draws: int = DRAWS,
    level: float = 0.95,
) -> Estimate:
    """Mean of the correlations of `agreement`, from the same resamples.

    Parameters
    ----------
    pairs : iterable of (str, str), optional
        Labels of the pairs to take, in either order; by default all.
    tests, without, seed, draws, level
        See `agreement`.

    Returns
    -------
    Estimate
        n is the number of pairs, those without a correlation left out; of none, NaN.

    Raises
    ------
    ValueError
        If a pair is unknown, or as `agreement`.
    """
    found = _correlations(tests, without, seed, draws)
    known = {frozenset(pair): drawn for pair, (drawn, _) in found.items()}
    wanted = list(known) if pairs is None else list(dict.fromkeys(map(frozenset, pairs)))
    if unknown := [sorted(pair) for pair in wanted if pair not in known]:
        raise ValueError(f"pairs must be of two of {[t.label for t in tests]}, got {unknown}")
    taken = [known[pair] for pair in wanted if not np.isnan(known[pair][0])]
    drawn = np.mean(taken, axis=0) if taken else np.full(2, np.nan)
    return _estimate(drawn, level, len(taken))


def _correlations(tests, without, seed, draws):
    """Correlation under the sample and each resample, and n, by the labels of the pair."""
    labels = [test.label for test in tests]
    if len(set(labels)) < len(labels):
        raise ValueError(f"tests must differ in name or data, got {labels}")
    drawn = {}
    for test in tests:
        # The seed names the images, so that only tests on the same ones are paired.
        images = (seed, zlib.crc32(test.data.encode()), len(test.values))
        drawn[test.label] = scores(test, images, draws=draws) * (1 if test.larger_is_better else -1)
    found = {}
    for a, b in combinations(tests, 2):
        _check_units(a, b)
        common = [e for e in a.explainers if e in b.explainers and e not in without]
        first, second = (drawn[t.label][:, [t.index(e) for e in common]] for t in (a, b))
        scored = ~np.isnan(first[0] + second[0])
        n = int(scored.sum())
        enough = n >= FEWEST
        correlation = (
            _spearman(first[:, scored], second[:, scored]) if enough else np.full(2, np.nan)
        )
        found[a.label, b.label] = correlation, n
    return found


def _check_units(a: Test, b: Test):
    if a.data != b.data or len(a.values) != len(b.values):
        return
    owners = [
        np.unique(range(len(t.values)) if t.units is None else t.units, return_inverse=True)[1]
        for t in (a, b)
    ]
    if not np.array_equal(*owners):
        raise ValueError(f"units of {a.label!r} and {b.label!r} must be equal: same data and n")


def _spearman(first, second):
    """Correlation of ranks along the last axis: (draws, E) twice to (draws,)."""
    ranks = []
    for values in (first, second):
        # Scores that tie but for rounding must tie.
        scale = np.nanmax(np.abs(values)) or 1.0
        rank = scipy.stats.rankdata(np.round(values / scale, 12), axis=-1)
        ranks.append(rank - rank.mean(axis=-1, keepdims=True))
    a, b = ranks
    length = np.sqrt(np.square(a).sum(axis=-1) * np.square(b).sum(axis=-1))
    return _ratio((a * b).sum(axis=-1), length)


def _ratio(a, b):
    return np.divide(a, b, out=np.full_like(a, np.nan), where=np.abs(b) > 1e-12)


def _estimate(drawn, level, n) -> Estimate:
    """Of the value (first) and its resamples; a value outside their quantiles widens them."""
    if not 0 < level < 1:
        raise ValueError(f"level must be in (0, 1), got {level!r}")
    value = float(drawn[0])
    if np.isnan(value):
        return Estimate(value, np.nan, np.nan, n)
    low, high = percentiles(drawn[1:], units=2, level=level)  # of one unit, all are NaN
    return Estimate(value, float(np.minimum(low, value)), float(np.maximum(high, value)), n)
