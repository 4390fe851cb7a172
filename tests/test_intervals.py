"""Bootstrap and Wilson intervals against spelled-out definitions."""

import numpy as np
import pytest
from numpy.testing import assert_allclose

from xaiutils import intervals


def test_rows_of_a_unit_come_together():
    units = np.array([7, 7, 3, 9, 3, 7])
    counts = intervals.resamples(units, draws=500, seed=1)
    assert counts.shape == (500, 6)
    for unit in (3, 7, 9):
        columns = counts[:, units == unit]
        assert (columns == columns[:, :1]).all()
    # Three units are drawn each time, whatever their number of rows.
    first = [np.flatnonzero(units == unit)[0] for unit in (3, 7, 9)]
    assert (counts[:, first].sum(axis=1) == 3).all()


def test_mean_is_that_of_spelled_out_resamples():
    rng = np.random.default_rng(0)
    values, units = rng.normal(size=(9, 2)), np.repeat([0, 1, 2, 3], [1, 2, 3, 3])
    found = intervals.mean(values, units, level=0.9, draws=300, seed=5)
    drawn = []
    for counts in intervals.resamples(units, draws=300, seed=5):
        rows = np.repeat(np.arange(9), counts)
        drawn.append(values[rows].mean(axis=0))
    assert_allclose(found.value, values.mean(axis=0))
    assert_allclose(found.low, np.percentile(drawn, 5, axis=0))
    assert_allclose(found.high, np.percentile(drawn, 95, axis=0))
    assert found.n == 4


def test_copies_of_a_row_narrow_nothing_when_they_are_one_unit():
    values = np.random.default_rng(2).normal(size=12)
    once = intervals.mean(values, seed=3)
    copied = intervals.mean(np.repeat(values, 10), np.repeat(np.arange(12), 10), seed=3)
    naive = intervals.mean(np.repeat(values, 10), seed=3)
    assert_allclose(copied, once)
    assert naive.high - naive.low < 0.5 * (once.high - once.low)


def test_differences_of_one_seed_are_paired():
    rng = np.random.default_rng(4)
    a = rng.normal(size=30)
    b = a + 1
    difference = intervals.mean(b - a)
    assert_allclose(difference[:3], 1)
    assert intervals.mean(b).low - intervals.mean(a).low == pytest.approx(1)


def test_no_rows_have_no_mean():
    nothing = intervals.mean([])
    assert np.isnan(nothing[:3]).all() and nothing.n == 0


def test_wilson_is_the_score_interval():
    hits, n, z = np.array([0, 3, 17, 20]), 20, 1.6448536269514722
    low, high = intervals.wilson(hits, n, 0.9)
    share = hits / n
    centre = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * np.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    assert_allclose(low, centre - half, atol=1e-12)
    assert_allclose(high, centre + half, atol=1e-12)
    assert intervals.wilson(hits[:, None], [20, 40])[0].shape == (4, 2)


@pytest.mark.parametrize("arguments", [{"units": 0}, {"units": [1, 2], "draws": 0}])
def test_nothing_to_draw_is_refused(arguments):
    with pytest.raises(ValueError, match="at least one row and one draw"):
        intervals.resamples(**arguments)
