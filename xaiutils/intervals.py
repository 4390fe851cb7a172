"""Intervals: bootstrap over images or whole tracks, and Wilson's for shares."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from scipy.stats import binomtest

DRAWS = 2000


class Estimate(NamedTuple):
    """A value, its interval [low, high], and the number n of independent units behind it.

    `value`, `low` and `high` are numbers, or arrays of one shape.
    """

    value: float | np.ndarray
    low: float | np.ndarray
    high: float | np.ndarray
    n: int

    def text(self, digits: int = 2) -> str:
        """Such as "0.41 [0.30, 0.52]"."""
        return f"{self.value:.{digits}f} [{self.low:.{digits}f}, {self.high:.{digits}f}]"


def resamples(units, *, draws: int = DRAWS, seed: int = 0) -> np.ndarray:
    """How often each row occurs in each bootstrap sample, (draws, rows).

    Parameters
    ----------
    units : int or (rows,) array
        Number of rows, each a unit of its own; or the unit (track, image) of each row. Units are
        drawn with replacement, and all rows of a unit come with it.
    draws, seed : int

    Raises
    ------
    ValueError
        If there is no row or no draw.
    """
    owner = np.arange(units) if np.ndim(units) == 0 else np.unique(units, return_inverse=True)[1]
    if not owner.size or draws < 1:
        raise ValueError(f"need at least one row and one draw, got {owner.size} and {draws}")
    n = int(owner.max()) + 1
    return np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=draws)[:, owner]


def mean(values, units=None, *, level: float = 0.95, draws: int = DRAWS, seed: int = 0) -> Estimate:
    """Mean over rows with a percentile bootstrap interval over units.

    Estimates from the same number of rows, units and seed share their resamples: differences
    are paired if their rows are.

    Parameters
    ----------
    values : (rows, ...) array
    units : (rows,) array, optional
        See `resamples`; by default each row is a unit.

    Returns
    -------
    Estimate
        Of the shape of one row. Of no rows: NaN, with n = 0.
    """
    values = np.asarray(values, float)
    if not len(values):
        nothing = np.full(values.shape[1:], np.nan)[()]
        return Estimate(nothing, nothing, nothing, 0)
    units = np.arange(len(values)) if units is None else np.asarray(units)
    counts = resamples(units, draws=draws, seed=seed)
    flat = values.reshape(len(values), -1)
    means = counts @ flat / counts.sum(axis=1, keepdims=True)
    tail = 100 * (1 - level) / 2
    low, high = np.percentile(means, [tail, 100 - tail], axis=0)
    value = values.mean(axis=0)
    # Equal rows have equal means but for rounding, which must not push the value out.
    low = np.minimum(low.reshape(value.shape), value)
    high = np.maximum(high.reshape(value.shape), value)
    return Estimate(value[()], low[()], high[()], len(np.unique(units)))


def nested(
    values, groups=None, *, level: float = 0.95, draws: int = DRAWS, seed: int = 0
) -> Estimate:
    """Mean over rows with a bootstrap that draws groups first, then rows within each.

    For images explained by several trainings: the interval holds the spread of the trainings and
    that of the images. Few groups make it wide, as they should.

    Parameters
    ----------
    values : (rows,) array
    groups : (rows,) array, optional
        The group of each row; by default all rows are of one, as in `mean`.

    Returns
    -------
    Estimate
        Of the mean of the groups' means; n is the number of rows. Of no rows: NaN, with n = 0.
    """
    values = np.asarray(values, float)
    names = [None] if groups is None else np.unique(groups)
    if groups is None or len(names) < 2 or not len(values):
        return mean(values, level=level, draws=draws, seed=seed)
    rng = np.random.default_rng(seed)
    parts = [values[np.asarray(groups) == name] for name in names]
    chosen = rng.integers(len(parts), size=(draws, len(parts)))
    means = np.empty((draws, len(parts)))
    for k, part in enumerate(parts):
        # A group drawn twice brings a sample of its own each time.
        times = int((chosen == k).sum())
        counts = resamples(len(part), draws=max(times, 1), seed=int(rng.integers(2**63)))
        means[chosen == k] = (counts @ part / len(part))[:times]
    tail = 100 * (1 - level) / 2
    low, high = np.percentile(means.mean(axis=1), [tail, 100 - tail])
    value = float(np.mean([part.mean() for part in parts]))
    return Estimate(value, min(low, value), max(high, value), len(values))


def two_samples(
    statistic: Callable[[np.ndarray], np.ndarray], first, second, *, paired: bool, seed: int = 0
) -> Estimate:
    """A statistic of the means of two tables of values, with a bootstrap over their rows.

    Parameters
    ----------
    statistic : callable
        From the means of the columns of both tables side by side, (..., columns), to (...).
    first, second : (rows, columns) or (rows,) arrays
    paired : bool
        Rows of the two belong together.

    Returns
    -------
    Estimate
        n is the number of rows, of both tables if they are not paired.

    Raises
    ------
    ValueError
        If paired tables differ in length, or a table has no row.
    """
    parts = [np.reshape(np.asarray(p, float), (len(p), -1)) for p in (first, second)]
    if paired and len(parts[0]) != len(parts[1]):
        raise ValueError(f"paired tables must be as long: {len(parts[0])}, {len(parts[1])} rows")
    seeds = (seed, seed if paired else seed + 1)
    draws = [
        resamples(len(part), seed=s) @ part / len(part)
        for part, s in zip(parts, seeds, strict=True)
    ]
    value = float(statistic(np.concatenate([part.mean(0) for part in parts])))
    low, high = np.percentile(statistic(np.concatenate(draws, axis=1)), [2.5, 97.5])
    n = len(parts[0]) if paired else sum(map(len, parts))
    return Estimate(value, min(low, value), max(high, value), n)


def wilson(successes, n, level: float = 0.95) -> tuple[np.ndarray, np.ndarray]:
    """Wilson's score interval (low, high) in [0, 1] of a share.

    Parameters
    ----------
    successes, n : ints or int arrays that broadcast
    level : float in (0, 1)
    """

    def interval(k, trials):
        return tuple(binomtest(k, trials).proportion_ci(level, "wilson"))

    return np.vectorize(interval, otypes=[float, float])(successes, n)
