"""Bootstrap, nested and Wilson intervals against spelled-out definitions."""

import numpy as np
import pandas as pd
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


def test_resamples_may_be_written_to():
    first = intervals.resamples(5, draws=20, seed=2)
    kept = first.copy()
    first[:] = -1
    np.testing.assert_array_equal(intervals.resamples(5, draws=20, seed=2), kept)
    np.testing.assert_array_equal(intervals.resamples(np.arange(5), draws=20, seed=2), kept)


@pytest.mark.parametrize("kind", [list, tuple, np.array, lambda seed: range(4, 7)])
def test_seeds_may_be_sequences(kind):
    found = intervals.resamples(5, draws=20, seed=kind([4, 5, 6]))
    expected = np.random.default_rng([4, 5, 6]).multinomial(5, np.full(5, 0.2), size=20)
    np.testing.assert_array_equal(found, expected)
    with pytest.raises(ValueError, match="seed must not be negative, got"):
        intervals.resamples(5, seed=[4, -5])


def test_a_nested_bootstrap_leaves_the_resamples_of_others():
    intervals.mean(np.arange(7.0), seed=3)
    before = intervals._kept.cache_info()
    intervals.nested(np.arange(12.0), np.repeat([0, 1, 2, 3], 3), seed=1)
    intervals.mean(np.arange(7.0), seed=3)
    after = intervals._kept.cache_info()
    assert after.hits == before.hits + 1 and after.misses == before.misses


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


def test_nested_of_one_group_is_the_mean():
    values = np.random.default_rng(6).normal(size=20)
    plain = intervals.mean(values, level=0.9, draws=500, seed=3)
    for groups in (None, np.full(20, 7), ["a"] * 20):
        assert intervals.nested(values, groups, level=0.9, draws=500, seed=3) == plain


def test_nested_gives_each_group_the_same_weight_wherever_its_rows_are():
    values, groups = np.array([9.0, 0, 1, 2, 3, 4]), np.array(["b", "a", "a", "a", "c", "c"])
    found = intervals.nested(values, groups)
    assert found.value == pytest.approx((9 + 1 + 3.5) / 3)
    assert found.n == 6
    mixed = [3, 0, 4, 1, 5, 2]
    shuffled = intervals.nested(values[mixed], groups[mixed])
    assert shuffled.value == pytest.approx(found.value)
    assert found.low < found.value < found.high


def test_nested_of_three_constant_groups_reaches_from_one_to_another():
    # All three draws are of one and the same group in 1 of 27 samples, more than 2.5 %.
    values, groups = np.repeat([0.0, 1.0, 5.0], 100), np.repeat([0, 1, 2], 100)
    assert intervals.nested(values, groups)[:3] == (2, 0, 5)


@pytest.mark.parametrize("between, within", [(1, 0), (0, 1), (0.3, 1)])
def test_nested_has_the_variance_between_groups_and_within_them(between, within):
    rng, sizes = np.random.default_rng(8), [5, 30, 12, 8, 20] * 5
    groups, parts = np.repeat(np.arange(25), sizes), []
    for size in sizes:
        noise = rng.normal(size=size)
        parts.append(between * rng.normal() + within * (noise - noise.mean()))
    found = intervals.nested(np.concatenate(parts), groups, draws=8000)
    # A group drawn twice brings two samples: else its noise would count for more.
    spread = np.var([p.mean() for p in parts]) + np.mean([p.var() / len(p) for p in parts])
    assert (found.high - found.low) / 2 == pytest.approx(1.96 * np.sqrt(spread / 25), rel=0.06)


def test_nested_is_wider_than_what_ignores_groups_that_differ():
    rng, groups = np.random.default_rng(9), np.repeat([0, 1, 2, 3], 50)
    values = rng.normal(size=200) + 2 * groups
    nested, ignored = intervals.nested(values, groups), intervals.mean(values)
    assert nested.value == pytest.approx(ignored.value)
    assert nested.high - nested.low > 4 * (ignored.high - ignored.low)
    narrow = intervals.nested(values, groups, level=0.5)
    assert nested.low < narrow.low < narrow.high < nested.high


def test_nested_is_a_function_of_its_seed():
    rng, groups = np.random.default_rng(10), np.repeat([0, 1, 2], 7)
    values = rng.normal(size=21)
    found = intervals.nested(values, groups, draws=100, seed=4)
    assert intervals.nested(values, groups, draws=100, seed=4) == found
    other = intervals.nested(values, groups, draws=100, seed=5)
    assert other.value == found.value and other[1:3] != found[1:3]


@pytest.mark.parametrize("groups", [None, []])
def test_nested_of_no_rows_is_not_a_number(groups):
    nothing = intervals.nested([], groups)
    assert np.isnan(nothing[:3]).all() and nothing.n == 0


def minus(means):
    return means[..., 0] - means[..., 1]


def halves(found):
    return (found.high - found.low) / 2


def test_two_samples_have_the_standard_error_of_a_difference():
    rng = np.random.default_rng(7)
    first, second = rng.normal(3, 1, 150), rng.normal(1, 2, 60)
    found = intervals.two_samples(minus, first, second, paired=False)
    assert found.value == pytest.approx(first.mean() - second.mean())
    error = np.sqrt(first.var() / 150 + second.var() / 60)
    assert halves(found) == pytest.approx(1.96 * error, rel=0.06)
    assert found.low < found.value < found.high and found.n == 210


def test_pairs_keep_what_they_share():
    rng = np.random.default_rng(8)
    first = rng.normal(0, 5, 120)
    second = first - 1 + rng.normal(0, 0.5, 120)
    paired = intervals.two_samples(minus, first, second, paired=True)
    assert halves(paired) == pytest.approx(1.96 * (first - second).std() / np.sqrt(120), rel=0.06)
    assert paired.n == 120
    unpaired = intervals.two_samples(minus, first, second, paired=False)
    error = np.sqrt((first.var() + second.var()) / 120)
    assert halves(unpaired) == pytest.approx(1.96 * error, rel=0.06)
    assert unpaired.value == paired.value and unpaired.n == 240
    assert_allclose(intervals.two_samples(minus, first, first - 2, paired=True)[:3], 2)


def test_statistics_of_several_columns_see_them_side_by_side():
    rng = np.random.default_rng(9)
    a, b = rng.normal(4, 1, (200, 2)), rng.normal(2, 1, (200, 1))

    def statistic(means):
        return (means[..., 0] + 10 * means[..., 1]) / means[..., 2]

    found = intervals.two_samples(statistic, a, b, paired=True, seed=1)
    top = a[:, 0] + 10 * a[:, 1]
    ratio = top.mean() / b.mean()
    assert found.value == pytest.approx(ratio)
    error = (top - ratio * b[:, 0]).std() / b.mean() / np.sqrt(200)  # delta method
    assert halves(found) == pytest.approx(1.96 * error, rel=0.1)
    assert intervals.two_samples(statistic, a, b, paired=True, seed=1) == found
    assert intervals.two_samples(statistic, a, b, paired=True, seed=2) != found


def test_paired_tables_must_be_as_long():
    with pytest.raises(ValueError, match="as long: 3, 2 rows"):
        intervals.two_samples(minus, [1, 2, 3], [1, 2], paired=True)


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


# --- one unit -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "units", "value"),
    [
        ([0.3], None, 0.3),
        ([0.2, 0.4], [7, 7], 0.3),
        ([2, 2, 2], ["song"] * 3, 2),
        ([True], None, 1),
        ([True, False, True, True], [1] * 4, 0.75),
        (np.array([[1.0, 2.0], [3.0, 6.0]]), [0, 0], [2, 4]),
    ],
)
def test_one_unit_says_nothing_of_others(values, units, value):
    found = intervals.mean(values, units)
    assert_allclose(found.value, value)
    assert np.shape(found.low) == np.shape(found.high) == np.shape(value)
    assert np.isnan(found.low).all() and np.isnan(found.high).all() and found.n == 1


def test_one_row_has_no_nested_interval():
    for groups in (None, [3]):
        found = intervals.nested([0.3], groups)
        assert found.value == 0.3 and np.isnan(found[1:3]).all() and found.n == 1
    two = intervals.nested([0.3, 0.5], [0, 1])
    assert two == (0.4, 0.3, 0.5, 2)


@pytest.mark.parametrize(
    ("first", "second"), [([3.0], [1.0]), ([3.0], [1.0, 2.0, 9.0]), ([4.0, 6.0], [1.0])]
)
def test_a_table_of_one_row_has_no_spread_to_know(first, second):
    found = intervals.two_samples(minus, first, second, paired=False)
    assert found.value == pytest.approx(np.mean(first) - np.mean(second))
    assert np.isnan(found[1:3]).all() and found.n == 1
    if len(first) == len(second):
        assert np.isnan(intervals.two_samples(minus, first, second, paired=True).low)


def test_an_undefined_interval_is_said_to_be_undefined():
    assert intervals.mean([0.3]).text() == "0.30 [undefined]"
    assert intervals.mean([0.3, 0.5]).text(1) == "0.4 [0.3, 0.5]"
    assert intervals.mean([]).text() == "nan [nan, nan]"


def test_there_is_one_unit_for_each_row():
    for units in ([7], [1, 2], np.ones((3, 1))):
        with pytest.raises(ValueError, match=r"one per row, \(3,\), got shape"):
            intervals.mean([1, 2, 3], units)


# --- shares ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("hits", [0, 1, 5, 9, 10])
@pytest.mark.parametrize("level", [0.8, 0.95])
@pytest.mark.parametrize("estimate", [intervals.mean, intervals.nested])
def test_a_share_has_the_hull_of_bootstrap_and_wilson(hits, level, estimate):
    values = np.arange(10) < hits
    found = estimate(values, level=level, seed=2)
    bootstrap = intervals.mean(values.astype(float), level=level, seed=2)
    low, high = intervals.wilson(hits, 10, level)
    assert found.value == hits / 10 and found.n == 10
    assert found.low == min(bootstrap.low, low) and found.high == max(bootstrap.high, high)
    assert found.low < found.high


@pytest.mark.parametrize(
    "values",
    [
        [True] * 10,
        tuple([np.True_] * 10),
        pd.Series([True] * 10),
        pd.Series([True] * 10, dtype="boolean"),
        np.array([True] * 10, object),
    ],
)
def test_yes_or_no_is_known_by_its_type(values):
    for found in (intervals.mean(values), intervals.nested(values, np.arange(10) % 2)):
        assert found[:1] + found[2:] == (1, 1, 10)
        assert found.low == pytest.approx(0.7225, abs=1e-4)


@pytest.mark.parametrize("value", [0.0, 1.0, 0.5])
def test_numbers_are_no_shares(value):
    # differences of 0 in all images may be negative in others: no interval of a share is theirs
    assert intervals.mean([value] * 10)[:3] == (value, value, value)


def test_a_share_of_all_rows_counts_units_not_rows():
    songs = np.repeat(np.arange(4), 25)
    low, high = intervals.wilson([0, 4], 4)
    none, every = intervals.mean(np.zeros(100, bool), songs), intervals.mean(songs >= 0, songs)
    assert none[:2] == (0, 0) and none.high == high[0] and none.n == 4
    assert every.low == low[1] and every.high == every.value == 1
    single = intervals.mean(np.ones(4, bool))
    assert single == every


def test_other_shares_of_units_with_several_rows_are_those_of_the_bootstrap():
    hits, songs = np.random.default_rng(3).random(60) < 0.7, np.repeat(np.arange(6), 10)
    assert intervals.mean(hits, songs) == intervals.mean(hits.astype(float), songs)


def test_columns_of_shares_are_treated_one_by_one():
    hits = np.random.default_rng(4).random((12, 3)) < [0.5, 1.1, 0.0]
    found = intervals.mean(hits)
    for column in range(3):
        alone = intervals.mean(hits[:, column])
        assert [part[column] for part in found[:3]] == list(alone[:3])


@pytest.mark.parametrize("p", [0.6, 0.9, 0.98])
def test_intervals_of_shares_cover(p):
    # the bootstrap alone covers 70 % at p = 0.98: where all 30 are hits it has no width
    rng = np.random.default_rng(5)
    samples = rng.random((300, 30)) < p
    covered = [found.low <= p <= found.high for found in map(intervals.mean, samples)]
    assert np.mean(covered) > 0.93


def test_nested_shares_count_rows_beside_groups():
    groups = np.repeat([0, 1, 2], 20)
    found = intervals.nested(np.ones(60, bool), groups)
    assert found.low == intervals.wilson(60, 60)[0] and found.high == 1
    differing = intervals.nested(np.arange(60) % 20 < 6 * (1 + groups), groups)
    bootstrap = intervals.nested((np.arange(60) % 20 < 6 * (1 + groups)).astype(float), groups)
    assert differing[1:3] == bootstrap[1:3]  # wide, as the groups differ


# --- arguments, and numbers within [0, 1] ---------------------------------------------------------


@pytest.mark.parametrize("level", [0, 1, -0.5, 95, np.nan])
def test_a_level_is_between_0_and_1(level):
    for estimate in (intervals.mean, lambda v, **k: intervals.percentiles(v, 3, **k)):
        with pytest.raises(ValueError, match=r"level must be in \(0, 1\), got"):
            estimate([0.1, 0.2, 0.4], level=level)


def test_arguments_that_do_not_fit_are_named():
    with pytest.raises(ValueError, match="seed must not be negative, got -1"):
        intervals.mean([0.1, 0.2], seed=-1)
    with pytest.raises(ValueError, match=r"groups must be one per row, \(3,\), got shape \(1,\)"):
        intervals.nested([0.1, 0.2, 0.3], ["a"])
    with pytest.raises(ValueError, match="both tables need a row, got 2 and 0"):
        intervals.two_samples(lambda m: m[..., 0] - m[..., 1], [1.0, 2.0], [], paired=False)


def test_means_of_shares_at_an_end_have_wilsons_interval():
    """Each unit says 1, in two rows; that of a single unit stays undefined."""
    units = np.repeat(np.arange(14), 2)
    found = intervals.mean(np.ones(28), units).of_share()
    assert [found.low, found.high] == pytest.approx([*map(float, intervals.wilson(14, 14))])
    none = intervals.mean(np.zeros(28), units).of_share(level=0.8)
    assert [none.low, none.high] == pytest.approx([*map(float, intervals.wilson(0, 14, 0.8))])
    inside = intervals.mean(np.linspace(0, 1, 14))
    assert inside.of_share() is inside
    assert np.isnan(intervals.mean([1.0], ["one"]).of_share().low)


def test_a_difference_of_shares_that_nothing_varies_is_undefined():
    def difference(means):
        return means[..., 0] - means[..., 1]

    found = intervals.two_samples(difference, [True] * 5, [False] * 5, paired=False)
    assert found.value == 1 and np.isnan(found.low) and np.isnan(found.high) and found.n == 10
    numbers = intervals.two_samples(difference, [1.0] * 5, [0.0] * 5, paired=False)
    assert (numbers.low, numbers.high) == (1, 1)
