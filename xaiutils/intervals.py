"""Intervals: bootstrap over images or whole tracks, and Wilson's for shares."""

from __future__ import annotations

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
