"""Explainers by tests: every number against a loop, and what agreement must and must not see."""

import numpy as np
import pytest
from scipy.stats import spearmanr

from xaiutils import intervals
from xaiutils.studies.synthesis import matrix as synthesis

NAMES = ("random", "gradient", "LIME", "IG", "Grad-CAM", "|x − b|")
RNG = np.random.default_rng(0)
VALUES = RNG.normal(size=(12, 6)) + np.arange(6) / 5
VALUES[[0, 3], [1, 4]] = np.nan
WEIGHTS = RNG.uniform(0.5, 2, VALUES.shape)
TRACKS = np.repeat(["a", "b", "c", "d"], 3)


def make(values=VALUES, name="planted", data="scenes", explainers=NAMES, **options):
    return synthesis.Test(name, data, explainers, values, **options)


def by_hand(values, weights, counts):
    """Score of one explainer, image by image."""
    above = below = 0.0
    for value, weight, times in zip(values, weights, counts, strict=True):
        if not (np.isnan(value) or np.isnan(weight)):
            above, below = above + times * value, below + times * weight
    return above / below


@pytest.mark.parametrize("weights", [None, WEIGHTS])
@pytest.mark.parametrize("units", [None, TRACKS])
def test_scores_are_ratios_of_sums_under_the_shared_resamples(weights, units):
    found = synthesis.scores(make(weights=weights, units=units), 3, draws=20)
    drawn = intervals.resamples(12 if units is None else TRACKS, draws=20, seed=3)
    counts = [np.ones(12), *drawn]
    given = np.ones_like(VALUES) if weights is None else WEIGHTS
    expected = [[by_hand(VALUES[:, e], given[:, e], c) for e in range(6)] for c in counts]
    np.testing.assert_allclose(found, expected)


def test_scores_of_one_unit_have_no_interval():
    """LIME has a score in one track only, the others in all."""
    values = np.nan_to_num(VALUES)
    values[3:, 2] = np.nan
    test = make(values, units=TRACKS)
    table = synthesis.estimates([test], draws=50).set_index("explainer")
    assert table["value"].notna().all()
    assert list(table["low"].isna()) == list(table["high"].isna()) == [n == "LIME" for n in NAMES]
    assert np.isnan(synthesis.difference(test, "IG", "LIME", draws=50).low)
    one = ["a"] * 12
    alone = synthesis.agreement([make(units=one), make(-VALUES, name="other", units=one)])
    assert np.isfinite(alone["value"]).all() and alone[["low", "high"]].isna().all(axis=None)


def test_without_gaps_estimates_are_bootstrap_means():
    test = make(np.nan_to_num(VALUES), units=TRACKS)
    row = synthesis.estimates([test], seed=5, draws=300).iloc[2]
    assert tuple(row[["data", "test", "explainer", "n"]]) == ("scenes", "planted", "LIME", 12)
    mean = intervals.mean(VALUES[:, 2], TRACKS, seed=5, draws=300)
    np.testing.assert_allclose([row["value"], row["low"], row["high"]], mean[:3])
    assert synthesis.estimate(test, "LIME", seed=5, draws=300) == tuple(
        row[["value", "low", "high", "n"]]
    )


def test_an_image_counts_where_value_and_weight_are_defined():
    weights = WEIGHTS.copy()
    weights[5, 1] = np.nan
    values = VALUES.copy()
    values[:, 5] = np.nan
    table = synthesis.estimates([make(values, weights=weights)], draws=50).set_index("explainer")
    assert list(table["n"]) == [12, 10, 12, 12, 11, 0]
    kept = [i for i in range(12) if i not in (0, 5)]
    expected = VALUES[kept, 1].sum() / WEIGHTS[kept, 1].sum()
    assert table.loc["gradient", "value"] == pytest.approx(expected)
    assert table.loc["|x − b|", ["value", "low", "high"]].isna().all()


def test_draws_without_any_image_that_counts_are_left_out():
    values = np.full((3, 1), np.nan)
    values[:2] = 4.0
    test = make(values, explainers=("LIME",))
    assert np.isnan(synthesis.scores(test, draws=50)).any()
    assert synthesis.estimate(test, "LIME", draws=50) == (4, 4, 4, 2)


def test_difference_is_paired():
    values = np.nan_to_num(VALUES)
    values[:, 3] = values[:, 2] + 0.25
    values[7, 2] = np.nan
    test = make(values)
    drawn = synthesis.scores(test, 1, draws=200)
    apart = synthesis.difference(test, "IG", "LIME", seed=1, draws=200)
    low, high = np.quantile((drawn[:, 3] - drawn[:, 2])[1:], [0.025, 0.975])
    assert apart == pytest.approx((drawn[0, 3] - drawn[0, 2], low, high, 11))
    # On the same images, what is common to both cancels.
    values[7, 2] = values[7, 3] - 0.25
    apart = synthesis.difference(make(values), "IG", "LIME", draws=200)
    assert apart == pytest.approx((0.25, 0.25, 0.25, 12))


def test_agreement_is_spearmans_of_each_draw_without_the_controls():
    first, second = make(), make(VALUES[::-1] + 0.3 * np.arange(6), "fidelity")
    row = synthesis.agreement([first, second], seed=2, draws=200).iloc[0]
    assert tuple(row[["first", "second", "n"]]) == ("planted, scenes", "fidelity, scenes", 4)
    a, b = (np.nanmean(t.values, axis=0)[1:5] for t in (first, second))
    assert row["value"] == pytest.approx(spearmanr(a, b).statistic)
    both = synthesis.agreement([first, second], (), seed=2, draws=200).iloc[0]
    a, b = (np.nanmean(t.values, axis=0) for t in (first, second))
    assert both["value"] == pytest.approx(spearmanr(a, b).statistic) and both["n"] == 6


def test_interval_of_an_agreement_against_a_loop():
    first, second = make(), make(VALUES[::-1] ** 2, "fidelity", "photographs")
    row = synthesis.agreement([first, second], (), seed=2, draws=400, level=0.8).iloc[0]
    rng, drawn = np.random.default_rng(8), []
    for _ in range(2000):  # other draws than the module's, each data for itself
        a, b = (t.values[rng.integers(12, size=12)] for t in (first, second))
        drawn.append(spearmanr(np.nanmean(a, axis=0), np.nanmean(b, axis=0)).statistic)
    expected = np.quantile(drawn, [0.1, 0.9])
    np.testing.assert_allclose(row[["low", "high"]].astype(float), expected, atol=0.1)


def test_tests_on_the_same_images_share_their_resamples():
    noisy = RNG.normal(size=(30, 6))
    same = [make(noisy), make(noisy.copy(), "copy")]
    assert list(synthesis.agreement(same).iloc[0][["value", "low", "high"]]) == [1, 1, 1]
    for other in (make(noisy, data="photographs"), make(noisy[:29], "copy")):
        row = synthesis.agreement([same[0], other]).iloc[0]
        assert row["value"] > 0.7 and row["low"] < 0.5


def test_orientation():
    other = make(VALUES[::-1] ** 2, "fidelity")
    plain, turned = (
        synthesis.agreement([t, other], (), draws=100)
        for t in (make(), make(-VALUES, larger_is_better=False))
    )
    assert plain.equals(turned)
    against = synthesis.agreement([make(larger_is_better=False), other], (), draws=100)
    assert against["value"].item() == pytest.approx(-plain["value"].item())


def test_scores_that_tie_but_for_rounding_tie():
    values = np.tile(np.arange(5.0), (3, 1))
    values[:, 0], values[:, 1] = [0.1, 0.2, 0.3], [0.3, 0.2, 0.1]
    tied = np.tile([7.0, 7.0, 8, 9, 10], (3, 1))
    tests = [make(v, n, explainers=NAMES[:5]) for v, n in ((values, "a"), (tied, "b"))]
    assert synthesis.agreement(tests, (), draws=5)["value"].item() == pytest.approx(1)


def test_only_common_explainers_with_a_score_and_at_least_four():
    values = np.nan_to_num(VALUES)
    few = make(values[:, ::-1], "few", explainers=NAMES[::-1])
    empty = values.copy()
    empty[:, 0] = np.nan
    rows = synthesis.agreement([make(values), few, make(empty, "empty")], ("LIME",), draws=20)
    assert list(rows["n"]) == [5, 4, 4] and rows["value"].notna().all()
    assert rows["value"][0] == 1  # the order of columns does not matter
    rows = synthesis.agreement([few, make(empty, "empty")], ("LIME", "IG"), draws=20)
    assert rows["n"].item() == 3 and rows[["value", "low", "high"]].isna().all(axis=None)


def test_mean_agreement_over_all_or_some_pairs():
    values = np.nan_to_num(VALUES)
    tests = [make(values), make(values[::-1] ** 2, "b"), make(values**2, "c", "photographs")]
    tests.append(make(values[:, :3], "short", explainers=NAMES[:3]))
    table = synthesis.agreement(tests, (), seed=4, draws=100)
    assert table["value"].notna().sum() == 3
    whole = synthesis.mean_agreement(tests, (), seed=4, draws=100)
    assert whole.value == pytest.approx(table["value"].mean()) and whole.n == 3
    assert whole.high - whole.low < (table["high"] - table["low"]).max()
    pair = ("c, photographs", "planted, scenes")
    one = synthesis.mean_agreement(tests, (), pairs=[pair], seed=4, draws=100)
    expected = table[(table["first"] == pair[1]) & (table["second"] == pair[0])]
    assert one == (*expected[["value", "low", "high"]].iloc[0], 1)
    none = synthesis.mean_agreement(tests[:1])
    assert np.isnan(none[:3]).all() and none.n == 0
    with pytest.raises(ValueError, match=r"pairs must be of two of .*'d, scenes'"):
        synthesis.mean_agreement(tests, pairs=[("planted, scenes", "d, scenes")])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"values": VALUES[0]}, r"values of 'planted, scenes' must be \(n > 0 images, 6 expl"),
        ({"values": VALUES[:, :5]}, r"got \(12, 5\)"),
        ({"values": VALUES[:0]}, r"got \(0, 6\)"),
        ({"weights": WEIGHTS[:, :1]}, r"weights of .* \(12, 6\), got \(12, 1\)"),
        ({"units": TRACKS[:3]}, r"units of .* \(12,\), got \(3,\)"),
        ({"explainers": ("IG",) * 6}, "explainers of 'planted, scenes' must differ"),
        ({"values": np.full((12, 6), np.inf)}, "must be finite or NaN"),
    ],
)
def test_what_does_not_fit_is_named(options, message):
    with pytest.raises(ValueError, match=message):
        make(**options)


def test_tests_that_cannot_be_compared_are_named():
    with pytest.raises(ValueError, match="tests must differ in name or data"):
        synthesis.agreement([make(), make()])
    with pytest.raises(ValueError, match=r"units of 'planted, scenes' and 'b, scenes'"):
        synthesis.agreement([make(), make(name="b", units=TRACKS)])
    with pytest.raises(ValueError, match=r"explainer must be one of .*'SHAP'"):
        synthesis.difference(make(), "IG", "SHAP")
    with pytest.raises(ValueError, match=r"level must be in \(0, 1\), got 95"):
        synthesis.estimates([make()], level=95)


def test_texts_are_the_estimates_by_test_and_explainer():
    values = np.random.default_rng(3).random((30, 2))
    tests = [
        synthesis.Test("planted", "scenes", ("a", "b"), values),
        synthesis.Test("F", "songs", ("b",), values[:, :1]),
    ]
    table = synthesis.estimates(tests)
    found = synthesis.texts(table)
    assert list(found) == [("planted, scenes", "a"), ("planted, scenes", "b"), ("F, songs", "b")]
    assert found["planted, scenes", "b"] == synthesis.estimate(tests[0], "b").text()
