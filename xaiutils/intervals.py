"""Intervals: bootstrap over images or whole tracks, and Wilson's for shares."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from operator import index
from typing import NamedTuple

import numpy as np
import scipy

DRAWS = 2000


class Estimate(NamedTuple):
    """A value, its interval [low, high], and the number n of independent units behind it.

    `value`, `low` and `high` are numbers, or arrays of one shape. `low` and `high` are NaN where
    the interval is undefined: a single unit says nothing of how others differ.
    """

    value: float | np.ndarray
    low: float | np.ndarray
    high: float | np.ndarray
    n: int

    def of_share(self, level: float = 0.95) -> Estimate:
        """The same for a number within [0, 1], such as a mean of shares.

        A bootstrap of units that are all 0, or all 1, has no width; then the interval is the hull
        with Wilson's, each unit a single trial. That of a single unit stays undefined.
        """
        if self.value not in (0, 1) or self.n < 2:
            return self
        low, high = wilson(round(self.value * self.n), self.n, level)
        return self._replace(
            low=float(np.fmin(self.low, low)), high=float(np.fmax(self.high, high))
        )

    def text(self, digits: int = 2) -> str:
        """Such as "0.41 [0.30, 0.52]", or "0.41 [undefined]"."""
        if np.isnan(self.low) and not np.isnan(self.value):
            return f"{self.value:.{digits}f} [undefined]"
        return f"{self.value:.{digits}f} [{self.low:.{digits}f}, {self.high:.{digits}f}]"


def resamples(units, *, draws: int = DRAWS, seed: int | Sequence[int] = 0) -> np.ndarray:
    """How often each row occurs in each bootstrap sample, (draws, rows).

    Parameters
    ----------
    units : int or (rows,) array
        Number of rows, each a unit of its own; or the unit (track, image) of each row. Units are
        drawn with replacement, and all rows of a unit come with it.
    draws : int
    seed : int or sequence of ints
        Not negative.

    Raises
    ------
    ValueError
        If there is no row or no draw, or the seed is negative.
    """
    owner = np.arange(units) if np.ndim(units) == 0 else np.unique(units, return_inverse=True)[1]
    if np.min(seed) < 0:
        raise ValueError(f"seed must not be negative, got {seed}")
    if not owner.size or draws < 1:
        raise ValueError(f"need at least one row and one draw, got {owner.size} and {draws}")
    seed = index(seed) if np.ndim(seed) == 0 else tuple(map(index, seed))
    drawn = _kept(int(owner.max()) + 1, draws, seed)
    return drawn.copy() if np.ndim(units) == 0 else drawn[:, owner]


def _drawn(n: int, draws: int, seed: int | tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=draws)


# A table asks again and again about the same number of units; 16 MB for 1,000 of them.
_kept = functools.lru_cache(maxsize=2)(_drawn)


def percentiles(drawn, units: int, *, level: float = 0.95) -> tuple[float, float]:
    """Ends of the percentile interval of a statistic that was computed in bootstrap samples.

    Parameters
    ----------
    drawn : (draws,) array
        NaN where a sample says nothing; those are left out.
    units : int
        How many units the samples were drawn from.

    Returns
    -------
    (low, high)
        NaN if there are fewer than two units, or no sample says anything.

    Examples
    --------
    >>> from xaiutils import intervals
    >>> low, high = intervals.percentiles(range(101), units=8, level=0.8)
    >>> round(low), round(high)
    (10, 90)
    """
    _check_level(level)
    drawn = np.asarray(drawn, float)
    drawn = drawn[~np.isnan(drawn)]
    if units < 2 or not drawn.size:
        return np.nan, np.nan
    tail = 100 * (1 - level) / 2
    low, high = np.percentile(drawn, [tail, 100 - tail])
    return float(low), float(high)


def mean(values, units=None, *, level: float = 0.95, draws: int = DRAWS, seed: int = 0) -> Estimate:
    """Mean over rows with a percentile bootstrap interval over units.

    Estimates from the same number of rows, units and seed share their resamples: differences
    are paired if their rows are.

    A bootstrap of hits alone, or of misses alone, has no width. So if values are of type bool, a
    share, the interval is the hull of the bootstrap's and Wilson's: over rows if each is a unit;
    over units, and only for a share of 0 or 1, if they have several rows. The latter counts each
    unit as a single trial, which is cautious. Numbers that happen to be 0 or 1 are no shares: a
    difference of 0 may be negative in other units.

    Parameters
    ----------
    values : (rows, ...) array
    units : (rows,) array, optional
        See `resamples`; by default each row is a unit.

    Returns
    -------
    Estimate
        Of the shape of one row. Of no rows: NaN, with n = 0. Of one unit the interval is NaN.

    Raises
    ------
    ValueError
        If there is not one unit per row, or `level` is not in (0, 1).

    Examples
    --------
    >>> from xaiutils import intervals
    >>> intervals.mean([0.2, 0.4, 0.4, 0.9]).text()
    '0.47 [0.25, 0.78]'
    >>> intervals.mean([True] * 10).text()
    '1.00 [0.72, 1.00]'
    >>> intervals.mean([0.2, 0.4], units=["one song", "one song"]).text()
    '0.30 [undefined]'
    """
    _check_level(level)
    values, is_share = np.asarray(values, float), _is_share(values)
    if not len(values):
        nothing = np.full(values.shape[1:], np.nan)[()]
        return Estimate(nothing, nothing, nothing, 0)
    units = np.arange(len(values)) if units is None else np.asarray(units)
    if units.shape != (len(values),):
        raise ValueError(f"units must be one per row, ({len(values)},), got shape {units.shape}")
    n, value = len(np.unique(units)), values.mean(axis=0)
    if n == 1:
        unknown = np.full(value.shape, np.nan)[()]
        return Estimate(value[()], unknown, unknown, 1)
    counts = resamples(units, draws=draws, seed=seed)
    flat = values.reshape(len(values), -1)
    means = counts @ flat / counts.sum(axis=1, keepdims=True)
    tail = 100 * (1 - level) / 2
    low, high = np.percentile(means, [tail, 100 - tail], axis=0)
    # Equal rows have equal means but for rounding, which must not push the value out.
    low = np.minimum(low.reshape(value.shape), value)
    high = np.maximum(high.reshape(value.shape), value)
    if is_share:
        least, most = wilson(np.rint(value * n).astype(int), n, level)
        known = (n == len(values)) | (value == 0) | (value == 1)
        low = np.where(known, np.minimum(low, least), low)
        high = np.where(known, np.maximum(high, most), high)
    return Estimate(value[()], low[()], high[()], n)


def nested(
    values, groups=None, *, level: float = 0.95, draws: int = DRAWS, seed: int = 0
) -> Estimate:
    """Mean over rows with a bootstrap that draws groups first, then rows within each.

    For images explained by several trainings: the interval holds the spread of the trainings and
    that of the images. Few groups make it wide, as they should. For values of type bool, a share,
    it is the hull with Wilson's interval over all rows.

    Parameters
    ----------
    values : (rows,) array
    groups : (rows,) array, optional
        The group of each row; by default all rows are of one, as in `mean`.

    Returns
    -------
    Estimate
        Of the mean of the groups' means; n is the number of rows. Of no rows: NaN, with n = 0. Of
        one row the interval is NaN.
    """
    if groups is not None and np.shape(groups) != (len(values),):
        raise ValueError(
            f"groups must be one per row, ({len(values)},), got shape {np.shape(groups)}"
        )
    names = [None] if groups is None else np.unique(groups)
    if groups is None or len(names) < 2 or not len(values):
        return mean(values, level=level, draws=draws, seed=seed)
    values, is_share = np.asarray(values, float), _is_share(values)
    rng = np.random.default_rng(seed)
    parts = [values[np.asarray(groups) == name] for name in names]
    chosen = rng.integers(len(parts), size=(draws, len(parts)))
    means = np.empty((draws, len(parts)))
    for k, part in enumerate(parts):
        # A group drawn twice brings a sample of its own each time.
        times = int((chosen == k).sum())
        counts = _drawn(len(part), max(times, 1), int(rng.integers(2**63)))  # nobody asks again
        means[chosen == k] = (counts @ part / len(part))[:times]
    tail = 100 * (1 - level) / 2
    low, high = np.percentile(means.mean(axis=1), [tail, 100 - tail])
    value = float(np.mean([part.mean() for part in parts]))
    bounds = [low, high, value]
    if is_share:
        bounds += wilson(int(values.sum()), len(values), level)
    return Estimate(value, float(min(bounds)), float(max(bounds)), len(values))


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
        n is the number of rows, of both tables if they are not paired. If a table has a single
        row, nothing is known of its spread: the interval is NaN and n is 1. It is NaN too where
        values are of type bool and no resample gives another statistic.

    Raises
    ------
    ValueError
        If paired tables differ in length, or a table has no row.
    """
    if not (len(first) and len(second)):
        raise ValueError(f"both tables need a row, got {len(first)} and {len(second)}")
    shares = _is_share(first) and _is_share(second)
    parts = [np.reshape(np.asarray(p, float), (len(p), -1)) for p in (first, second)]
    if paired and len(parts[0]) != len(parts[1]):
        raise ValueError(f"paired tables must be as long: {len(parts[0])}, {len(parts[1])} rows")
    value = float(statistic(np.concatenate([part.mean(0) for part in parts])))
    if 1 in map(len, parts):
        return Estimate(value, np.nan, np.nan, 1)
    seeds = (seed, seed if paired else seed + 1)
    draws = [
        resamples(len(part), seed=s) @ part / len(part)
        for part, s in zip(parts, seeds, strict=True)
    ]
    low, high = percentiles(statistic(np.concatenate(draws, axis=1)), units=2)
    n = len(parts[0]) if paired else sum(map(len, parts))
    if shares and low == high:  # all yes, or all no: a bootstrap cannot tell what else there is
        return Estimate(value, np.nan, np.nan, n)
    return Estimate(value, min(low, value), max(high, value), n)


def wilson(successes, n, level: float = 0.95) -> tuple[np.ndarray, np.ndarray]:
    """Wilson's score interval (low, high) in [0, 1] of a share.

    Parameters
    ----------
    successes, n : ints or int arrays that broadcast
    level : float in (0, 1)

    Examples
    --------
    >>> from xaiutils import intervals
    >>> low, high = intervals.wilson([0, 5, 10], 10)
    >>> low.round(2), high.round(2)
    (array([0.  , 0.24, 0.72]), array([0.28, 0.76, 1.  ]))
    """

    def interval(k, trials):
        return tuple(scipy.stats.binomtest(k, trials).proportion_ci(level, "wilson"))

    return np.vectorize(interval, otypes=[float, float])(successes, n)


def _check_level(level):
    if not 0 < level < 1:
        raise ValueError(f"level must be in (0, 1), got {level!r}")


def _is_share(values) -> bool:
    """Whether values are yes or no by their type, be it bool or a table's nullable boolean."""
    values = np.asarray(values)
    return values.dtype == bool or (
        values.dtype == object and all(isinstance(v, bool | np.bool_) for v in values.flat)
    )
