"""Claims over seeds: interval of the mean, and which verdict follows from it."""

import dataclasses

import pytest

from xaiutils.companion import claims, over_seeds


def claim(text="t", **rule):
    return claims.Claim("c", 1, "s", "s", {"text": text, **rule}, "tiny")


ABOVE = claim(kind="above", threshold=0)


def record(value, spread=0.1, unit="dB"):
    # The verdict a record carries may be that of an older rule.
    numbers = {"value": value, "low": value - spread, "high": value + spread}
    return {"verdict": "old", "n": 7, "unit": unit, **numbers}


def test_interval_is_students():
    # t at 97.5 %: 12.706 with 1, 4.303 with 2, 2.776 with 4 degrees of freedom (any table).
    assert over_seeds.interval([0, 2]) == pytest.approx((1 - 12.7062, 1 + 12.7062), abs=1e-4)
    assert over_seeds.interval([1, 2, 3]) == pytest.approx(
        (2 - 4.30265 / 3**0.5, 2 + 4.30265 / 3**0.5), abs=1e-4
    )
    half = 2.77645 * 2.5**0.5 / 5**0.5
    assert over_seeds.interval([1, 2, 3, 4, 5]) == pytest.approx((3 - half, 3 + half), abs=1e-4)
    low, high = over_seeds.interval([0, 2], level=0.5)  # t = 1 with 1 degree of freedom
    assert (low, high) == pytest.approx((0, 2))
    assert over_seeds.interval([0.1]) is None


def test_not_run_is_counted_and_not_averaged():
    silent = {"verdict": "not run", "reason": "no data"}
    found = over_seeds.summarise(ABOVE, {0: record(1.0), 4: silent, 7: record(2.0, spread=3)})
    assert found["values"] == {"0": 1.0, "4": None, "7": 2.0}
    assert (found["mean"], found["n_seeds"], found["unit"]) == (1.5, 2, "dB")
    assert list(found["seeds_by_verdict"]) == list(claims.VERDICTS)
    assert {k: n for k, n in found["seeds_by_verdict"].items() if n} == {
        "holds": 1,
        "inconclusive": 1,
        "not run": 1,
    }


@pytest.mark.parametrize(("passed", "verdict"), [(1.0, "holds"), (-1.0, "test not valid")])
def test_a_claim_whose_test_is_not_valid_over_seeds_gets_no_verdict(passed, verdict):
    tested = dataclasses.replace(ABOVE, test=ABOVE)
    records = {seed: record(2.0 + seed / 100) | {"test": record(passed)} for seed in range(3)}
    found = over_seeds.summarise(tested, records)
    assert found["verdict"] == verdict
    assert found["seeds_by_verdict"][verdict] == 3
    one = over_seeds.summarise(tested, {0: records[0]})
    assert one["verdict"] is None and one["seeds_by_verdict"][verdict] == 1


def test_a_test_that_differs_between_seeds_is_judged_over_them():
    tested = dataclasses.replace(ABOVE, test=ABOVE)
    records = {
        seed: record(2.0 + seed / 100) | {"test": record(value)}
        for seed, value in enumerate([2.0, 2.0, -1.0])
    }
    found = over_seeds.summarise(tested, records)
    assert found["verdict"] == "test not valid"
    assert found["seeds_by_verdict"]["holds"] == 2


def test_seeds_of_one_unit_each_are_inconclusive_and_still_averaged():
    undefined = {"value": 1.0, "low": None, "high": None, "n": 1, "unit": ""}
    found = over_seeds.summarise(ABOVE, {0: undefined, 1: undefined | {"value": 3.0}, 2: record(2)})
    assert (found["mean"], found["n_seeds"]) == (2, 3)
    assert found["seeds_by_verdict"]["inconclusive"] == 2


@pytest.mark.parametrize(
    ("values", "rule", "verdict"),
    [
        ([1.0, 1.1, 1.2], {"kind": "above", "threshold": 0.8}, "holds"),
        ([1.0, 1.1, 1.2], {"kind": "above", "threshold": 0.9}, "inconclusive"),
        ([1.0, 1.1, 1.2], {"kind": "above", "threshold": 1.4}, "fails"),
        ([1.0, 1.1, 1.2], {"kind": "between", "low": 0.8, "high": 1.4}, "holds"),
        ([0.3, 0.3, 0.3], {"kind": "below", "threshold": 0.30001}, "holds"),
        ([1.0], {"kind": "above", "threshold": 0}, None),
        ([], {"kind": "above", "threshold": 0}, "not run"),
    ],
)
def test_verdict_is_that_of_the_interval_over_seeds(values, rule, verdict):
    records = {seed: record(value, spread=9) for seed, value in enumerate(values)}
    records[9] = {"verdict": "not run", "reason": "none"}
    found = over_seeds.summarise(claim(**rule), records)
    assert found["verdict"] == verdict
    assert (found["low"] is None) == (len(values) < 2)
    assert (found["mean"] is None) == (not values)


def test_row_shows_estimate_counts_and_each_seed():
    records = {0: record(1.0), 1: record(3.0), 2: {"reason": "no"}}
    row = over_seeds._row(claim("a | b", kind="above", threshold=0), summarised(records))
    assert row == [
        "c",
        "2 dB [-10.71, 14.71]",
        "2",
        "2 holds, 1 not run",
        "inconclusive",
        "a \\| b",
        "1, 3, –",
    ]
    assert over_seeds._row(ABOVE, summarised({0: record(1.0)}))[1:5] == [
        "1 dB",
        "1",
        "1 holds",
        "– (one seed)",
    ]
    assert over_seeds._row(ABOVE, summarised({0: {"reason": "no"}}))[1:5] == [
        "–",
        "0",
        "1 not run",
        "not run",
    ]


def summarised(records):
    return over_seeds.summarise(ABOVE, records)
