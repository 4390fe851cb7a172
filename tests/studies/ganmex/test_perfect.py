"""Tests of the tests: baselines of known quality, and tests that are known to be good or bad."""

import numpy as np
import pandas as pd
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from xaiutils import intervals
from xaiutils.companion import claims
from xaiutils.studies.ganmex import cases, maps, models, perfect

N = 6


@pytest.fixture(scope="module", params=["colours", "scenes"])
def case(request):
    return cases.choose(models.Run(request.param, models.MAIN[request.param]), N)


@pytest.fixture(scope="module")
def images(case):
    return cases.baselines_of(case, perfect.RIVALS) | perfect.doses(case)


@pytest.fixture(scope="module")
def table(case, images):
    return perfect.scores(case, images)


def planted(*rows, images=40, spread=0.1):
    """Scores of tests that give each dose, zero and MDTS these means."""
    rng = np.random.default_rng(0)
    names = [*perfect.DOSES, "zero", "MDTS"]
    return pd.concat(
        pd.DataFrame(
            {
                "test": test,
                "baseline": name,
                "image": np.arange(images),
                "score": mean + spread * rng.standard_normal(images),
            }
        )
        for test, means in rows
        for name, mean in zip(names, means, strict=True)
    ).reset_index(drop=True)


GOOD = ("good", (4, 3, 2, 1, 0, 0.5, 2))
BLIND = ("blind", (1, 1, 1, 1, 1, 1, 1))
TURNED = ("turned", (0, 1, 2, 3, 4, 3, 2))


def test_doses_go_away_from_the_truth_step_by_step(case, images):
    assert tuple(images) == (*perfect.RIVALS, *perfect.DOSES)
    truth = cases.exact(case).images
    assert_array_equal(images["exact"], truth)
    assert_array_equal(images["GANMEX"], cases.generated(case))
    far = [np.abs(images[name] - truth).mean() for name in perfect.DOSES]
    assert far[0] == 0 and (np.diff(far) > 0).all()
    assert_allclose(2 * images["half noise"], images["GANMEX"] + images["noise"], atol=1e-6)


def test_each_test_scores_each_baseline_once(case, images, table):
    tests = list(dict.fromkeys(table["test"]))
    common = ["perturbation, mean", "perturbation, blur", "conversion", "mask test"]
    region = ["region"] if case.problem.name == "scenes" else []
    assert tests == [*common, *region, "true mask", "cascade, signed", "cascade, within"]
    assert not table.duplicated(["test", "baseline", "image"]).any()
    counts = table.groupby(["test", "baseline"]).size().unstack()
    assert (counts.nunique(axis=1) == 1).all() and set(counts) == set(images)
    masked = counts.loc["true mask"].iloc[0]
    is_object = cases.exact(case).is_object
    assert masked == (is_object.sum() if region else N)
    assert (counts.drop("true mask") == N).all(axis=None)


def test_scores_are_those_of_the_tests_larger_being_better(case, images, table):
    def of(test, name):
        rows = table[(table["test"] == test) & (table["baseline"] == name)]
        return rows.sort_values("image")["score"].to_numpy()

    name = "GANMEX"
    m = {("IG", name): maps.explain(case, images[name], "IG")}
    fillers = cases.baselines_of(case, ["mean", "blur"])
    fall = maps.removal(case, {name: m["IG", name]}, fillers)
    for filler in fillers:
        wanted = fall[fall["filler"] == filler]["aopc"]
        assert_allclose(of(f"perturbation, {filler}", name), wanted, rtol=1e-4, atol=1e-4)
    size = maps.mask_test(case, m, images)["flip size"]
    assert_allclose(of("mask test", name), -size, atol=1e-6)
    with_deeplift = {name: maps.explain(case, images[name], "DeepLIFT")}
    drop = maps.conversion(case, with_deeplift)["drop"]
    assert_allclose(of("conversion", name), drop, rtol=1e-4, atol=1e-4)
    reacts = maps.cascade(case, {name: images[name]}, seeds=(0,))
    last = reacts[reacts["layers"] == reacts["layers"].max()]
    assert_allclose(of("cascade, signed", name), -last["signed"], atol=1e-6)
    # By construction the map of the exact counterfactual keeps to what that changes, but for
    # occlusion, which hides all channels of a pixel: the mean of three methods is 1 or 8/9.
    if case.problem.name == "scenes":
        assert_allclose(of("true mask", "exact"), 1, atol=1e-6)
    else:
        assert_allclose(of("true mask", "exact"), 8 / 9, atol=1e-2)


def test_a_good_test_is_told_from_a_bad_one():
    table = planted(GOOD, BLIND, TURNED)
    found = perfect.effects(table).set_index(["test", "rival"])
    assert set(found.index.get_level_values("rival")) == {*perfect.DOSES[1:], "zero", "MDTS"}
    assert (found.loc["good", "low"] > 5).all() and (found.loc["turned", "high"] < -5).all()
    assert ((found.loc["blind", "low"] < 0) & (found.loc["blind", "high"] > 0)).mean() > 0.8
    gap = table[table["test"] == "good"].pivot(index="image", columns="baseline", values="score")
    gap = gap["exact"] - gap["zero"]
    assert found.loc[("good", "zero"), "value"] == pytest.approx(gap.mean() / gap.std())

    tau = perfect.order(table)
    assert tau["good"].low > 0.95 and tau["turned"].high < -0.95
    assert tau["blind"].low < 0 < tau["blind"].high

    places = perfect.ranks(table).set_index(["test", "baseline"])["value"]
    assert_allclose(places["good"][list(perfect.DOSES)], [1, 2, 3, 4, 5], atol=0.1)
    assert_allclose(places["turned"][list(perfect.DOSES)], [5, 4, 3, 2, 1], atol=0.1)
    assert_allclose(places["blind"], 3, atol=0.8)


def test_equal_scores_win_nothing():
    table = planted(BLIND, spread=0)
    assert (perfect.effects(table)[["value", "low", "high"]] == 0).all(axis=None)
    assert perfect.order(table)["blind"].value == 0
    assert (perfect.ranks(table)["value"] == 3).all()
    won = perfect.wins([table], ["blind"])
    assert (won.value, won.low, won.high) == (0, 0, 0)


def test_a_gap_without_spread_has_no_size_but_is_won():
    table = planted(GOOD, spread=0)
    assert perfect.effects(table)["value"].isna().all()
    assert perfect.wins([table], ["good"]).low == 2  # against MDTS, which is nearer


def test_the_hardest_rival_test_and_problem_decide():
    tables = [planted(GOOD), planted(GOOD, TURNED)]
    assert perfect.wins(tables, ["good"]).value == pytest.approx(2, abs=0.1)
    assert perfect.wins(tables, ["good"], ["zero"]).value == pytest.approx(3.5, abs=0.1)
    assert perfect.wins(tables, ["good", "turned"]).value == pytest.approx(-3, abs=0.1)


def test_verdicts_on_the_generator_wait_for_the_tests(case):
    """Every claim that compares maps made with GANMEX's baseline names the claim on its test."""
    found = claims.load(claims.Project(claims.Path(claims.provenance.ROOT)).ledger)
    compared = ("gx-saliency", "gx-constrained-saliency", "gx-perturbation", "gx-localisation-")
    compared += ("gx-cascade-", "gx-deeplift")
    controls = {"gx-localisation-control", "gx-cascade-confound", "gx-cascade-floor"}
    tested = {key for key in found if key.startswith(compared)} - controls
    assert tested == {key for key, c in found.items() if c.test} - {"gx-zero-not-one-vs-one"}
    assert all(found[key].test.id.startswith("gx-exact-") for key in tested)


def test_own_fillers_are_compared_as_shares(case, images):
    for rival, found in zip(perfect.RIVALS, perfect.own_filler(case, images), strict=True):
        used = {name: images[name] for name in ("exact", rival)}
        rankings = {name: maps.explain(case, b, "IG") for name, b in used.items()}
        table = maps.removal(case, rankings, used)
        assert_allclose(found, maps.own_share(table, "exact", rival), rtol=1e-3)


def test_the_farthest_from_zero_decides():
    near, below, above = (intervals.Estimate(v, v - 1, v + 1, 9) for v in (0.5, -3, 2))
    assert perfect.farthest([near, below, above]) is below
    assert perfect.farthest([above, near]) is above
