"""Intervals: resamples spelled out row by row, or all of them enumerated."""

import itertools
import math

import numpy as np
from scipy.stats import norm

from oracles.registry import oracle_of
from xaiutils import intervals

UNITS = np.array([7, 7, 3, 9, 3, 7, 1])


def counts_of_units(units, **options):
    """Number of rows of each resample and the mean and variance of how often a unit is drawn."""
    counts = intervals.resamples(units, **options)
    owner = np.arange(units) if np.ndim(units) == 0 else units
    each = np.array([counts[:, owner == unit].T for unit in dict.fromkeys(owner)], dtype=object)
    together = all((rows == rows[0]).all() for rows in each)
    drawn = np.array([rows[0] for rows in each], float)
    return {
        "shape": counts.shape,
        "together": together,
        "total": drawn.sum(axis=0),
        "mean": drawn.mean(axis=1),
        "variance": drawn.var(axis=1),
    }


@oracle_of(
    intervals.resamples,
    lambda rng: {"units": UNITS, "draws": 40_000, "seed": 1},
    [{}, {"units": 5}],
    call=counts_of_units,
    rtol=0.03,
)
def resamples(units, draws, seed):
    """n draws of one of n units: binomial counts, of mean 1 and variance 1 - 1/n."""
    n = units if np.ndim(units) == 0 else len(set(units))
    return {
        "shape": (draws, units if np.ndim(units) == 0 else len(units)),
        "together": True,
        "total": np.full(draws, n),
        "mean": np.ones(n),
        "variance": np.full(n, 1 - 1 / n),
    }


def rows_of(count, draws, seed, units=None):
    """Row numbers of each of the given resamples."""
    for counts in intervals.resamples(count if units is None else units, draws=draws, seed=seed):
        yield [row for row, times in enumerate(counts) for _ in range(times)]


@oracle_of(
    intervals.percentiles,
    lambda rng: {"drawn": np.append(rng.normal(size=40), np.nan), "units": 3},
    [{}, {"level": 0.5}, {"units": 1}, {"drawn": [np.nan]}],
)
def percentiles(drawn, units, *, level=0.95):
    """Between the two nearest values, in proportion."""
    values = sorted(value for value in drawn if value == value)
    if units == 1 or not values:
        return np.nan, np.nan
    places = [share * (len(values) - 1) for share in ((1 - level) / 2, (1 + level) / 2)]
    return tuple(
        values[int(p)] + (p - int(p)) * (values[min(int(p) + 1, len(values) - 1)] - values[int(p)])
        for p in places
    )


@oracle_of(
    intervals.mean,
    lambda rng: {"values": rng.normal(size=(7, 2)), "draws": 200, "seed": 5},
    [{}, {"units": UNITS, "level": 0.8}],
)
def mean(values, units=None, *, draws, seed, level=0.95):
    drawn = [sum(values[rows]) / len(rows) for rows in rows_of(7, draws, seed, units)]
    low, high = np.percentile(drawn, [50 - 50 * level, 50 + 50 * level], axis=0)
    return sum(values) / 7, low, high, 7 if units is None else 4


@oracle_of(
    intervals.nested,
    lambda rng: {
        "values": np.array([0.0, 1, 5, 2, 2.5, 9, 4, 4, 6]),
        "groups": np.array(list("aaabbcccc")),
        "draws": 60_000,
    },
    [{"seed": 0}, {"seed": 1, "level": 0.6}, {"seed": 2, "groups": np.array(list("aaaabbbbb"))}],
    rtol=0,
    atol=0.04,
)
def nested(values, groups, *, draws, seed, level=0.95):
    """Every choice of groups, and of each a resample of its rows, with its probability."""
    parts = [values[groups == name] for name in sorted(set(groups))]
    own = [[np.mean(rows) for rows in itertools.product(part, repeat=len(part))] for part in parts]
    drawn, weights = [], []
    for chosen in itertools.product(own, repeat=len(parts)):
        few = [np.unique(np.round(means, 9), return_counts=True) for means in chosen]
        for picked in itertools.product(*(zip(*one, strict=True) for one in few)):
            drawn.append(sum(value for value, _ in picked) / len(parts))
            weights.append(math.prod(times for _, times in picked) / math.prod(map(len, chosen)))
    tail = (1 - level) / 2
    bounds = np.quantile(drawn, [tail, 1 - tail], weights=weights, method="inverted_cdf")
    return np.mean([part.mean() for part in parts]), *bounds, len(values)


def ratio(means):
    return means[..., 0] / (means[..., 1] + means[..., 2] ** 2)


def two_tables(rng):
    first, second = rng.normal(4, 1, size=(9, 2)), rng.normal(1, 1, size=(9, 1))
    return {"statistic": ratio, "first": first, "second": second, "seed": 3}


@oracle_of(
    intervals.two_samples,
    two_tables,
    [{"paired": True}, {"paired": False}, {"paired": False, "second": np.arange(5.0)}],
)
def two_samples(statistic, first, second, *, paired, seed):
    """The rows of the second table are drawn with those of the first or by the next seed."""

    def means(rows, others):
        columns = [
            *(sum(first[rows]) / len(rows)),
            *np.atleast_1d(sum(second[others]) / len(others)),
        ]
        return statistic(np.array(columns))

    again = rows_of(len(second), 2000, seed if paired else seed + 1)
    drawn = [means(*pair) for pair in zip(rows_of(len(first), 2000, seed), again, strict=True)]
    low, high = np.percentile(drawn, [2.5, 97.5])
    n = len(first) if paired else len(first) + len(second)
    return means(range(len(first)), range(len(second))), low, high, n


@oracle_of(
    intervals.wilson,
    lambda rng: {"successes": np.array([0, 3, 17, 20]), "n": 20},
    [{}, {"level": 0.8}, {"successes": 1, "n": 1}, {"n": np.array([[20], [50]])}],
)
def wilson(successes, n, level=0.95):
    z, share = norm.ppf((1 + level) / 2), successes / n
    centre = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * np.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    return centre - half, centre + half
