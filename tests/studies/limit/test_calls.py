"""Ways to LIME's coefficients on functions whose limit is known, and on kept answers."""

import numpy as np
import pandas as pd
import pytest

from xaiutils import limit
from xaiutils.studies.limit import answers, calls, experiments
from xaiutils.studies.limit.answers import Draw, Game

DEFAULT, *_ = calls.WAYS


def test_squared_errors_of_a_way_without_ridge_are_those_of_convergence():
    f = limit.lookup(np.random.default_rng(0).random(2**6))
    for way, design in (("paired", "paired"), ("folded", "folded")):
        found = calls.squared_errors(f, 6, way, [64, 128], repeats=3, seed=1)
        known = experiments.convergence(f, 6, [64, 128], repeats=3, seed=1, design=design)
        assert found[["n", "repeat"]].equals(known[["n", "repeat"]])
        np.testing.assert_allclose(found["error"], known["distance"] ** 2)


def test_balanced_masks_find_a_linear_model_and_the_default_ridge_shrinks_it():
    def f(z):
        return z @ np.arange(1.0, 7.0)

    for way in ("folded", "folded, surrogate"):
        assert calls.squared_errors(f, 6, way, [32], repeats=2, seed=0)["error"].max() < 1e-8
    ridge = calls.squared_errors(f, 6, "independent, ridge 1", [64, 1000], repeats=5, seed=0)
    by_size = ridge.groupby("n")["error"].mean()
    assert by_size[64] > 20 * by_size[1000] > 1e-3


def test_calls_saved_by_hand():
    def frame(errors):
        n = np.repeat(list(errors), [len(values) for values in errors.values()])
        return pd.DataFrame({"n": n, "error": np.concatenate([*errors.values()])})

    given = {
        "one": {
            "independent, ridge 1": frame({100: [4.0, 4.0], 10: [9.0, 9.0]}),
            "paired": frame({10: [1.0, 3.0]}),
        },
        "two": {
            "independent, ridge 1": frame({100: [2.0, 2.0]}),
            "paired": frame({10: [3.0, 3.0]}),
        },
    }
    found = calls.saved(given, "paired", 10, calls=100)
    assert found.value == pytest.approx((2 / 4 + 3 / 2) / 2)
    # The first mean of two is 1, 2 or 3 in a bootstrap sample.
    assert (found.low, found.high, found.n) == pytest.approx((0.875, 1.125, 2))


def games(n=3, d=7):
    tables = np.random.default_rng(2).random((n, 2**d))
    return [Game(f"table {i}", d, limit.lookup(table)) for i, table in enumerate(tables)]


PLAN = (answers.TRUTH, Draw("iid", 1000, 1), Draw("paired", 256, 1), Draw("folded", 64, 2))


def test_answers_come_back_from_their_file_with_the_masks_they_were_given_to(tmp_path):
    told = answers.ask(games(), PLAN)
    told.save(tmp_path / "told.npz")
    found = answers.Answers.load(tmp_path / "told.npz")
    assert found.gap(games()) < 1e-7
    for index, one in enumerate(games()):
        runs = found.runs(index)
        assert {key: len(parts) for key, parts in runs.items()} == {
            ("folded", 2048): 2, ("iid", 1000): 1, ("paired", 256): 1, ("folded", 64): 2,
        }  # fmt: skip
        for parts in runs.values():
            for masks, values in parts:
                np.testing.assert_allclose(values, one.answer(masks), atol=1e-7)
    first, second = found.runs(0)["folded", 64]
    assert (first[0] != second[0]).any()
    assert found.first(2).names == ("table 0", "table 1")


def test_answers_to_other_masks_or_of_other_games_are_refused():
    told = answers.ask(games(), PLAN)
    other = answers.Answers(told.names, told.d, told.plan, told.masks[::-1], told.outputs)
    with pytest.raises(ValueError, match=r"answers to table 0 are to other masks .* ask anew"):
        other.runs(0)
    with pytest.raises(ValueError, match="name must be one of photographs, excerpts, got 'sounds'"):
        answers.load("sounds")
    with pytest.raises(ValueError, match=r"games must hold \('table 0', 7\), got \('table 1', 7\)"):
        told.gap(games()[1:])
    changed = [Game(one.name, one.d, lambda z, f=one.answer: f(z) + 0.1) for one in games()]
    with pytest.raises(
        ValueError, match=r"is 0.1 from the kept answers, more than 0.001; ask anew"
    ):
        told.gap(changed)


def test_replayed_errors_are_the_squared_distances_to_the_exact_limit():
    # Over many games the product with two noisy truths has the expectation of the true distance.
    few = games(40, 6)
    told = answers.ask(few, (Draw("folded", 2048, 2), Draw("iid", 1000, 1), Draw("folded", 32, 2)))
    frame = calls.replayed(told, "folded", [32])
    assert frame.groupby("game")["repeat"].count().eq(2).all()
    true = []
    for index, one in enumerate(few):
        exact = limit.exact(one.answer, 6).coef
        for masks, values in told.runs(index)["folded", 32]:
            coef = calls._fit(masks, values, "folded", 0.0, 0.25).coef[0]
            true.append(np.square(coef - exact).sum())
    # 2,048 folded masks of six components are whole cubes: both truths are exact.
    np.testing.assert_allclose(frame["error"], true, rtol=1e-4)


def test_noise_of_the_long_runs_adds_nothing_on_average(monkeypatch):
    monkeypatch.setattr(answers, "TRUTH", Draw("folded", 64, 2))
    few = games(80, 9)
    told = answers.ask(few, (Draw("folded", 64, 2), Draw("paired", 300, 1)))
    replayed = calls.replayed(told, "paired", [300])["error"].to_numpy()
    true, plain = [], []
    for index, one in enumerate(few):
        runs = told.runs(index)
        coef = calls._fit(*runs["paired", 300][0], "paired", 0.0, 0.25).coef[0]
        noisy = calls._fit(*runs["folded", 64][0], "folded", 0.0, 0.25).coef[0]
        true.append(np.square(coef - limit.exact(one.answer, 9).coef).sum())
        plain.append(np.square(coef - noisy).sum())
    off = replayed - true
    error = off.std(ddof=1) / np.sqrt(len(few))
    assert abs(off.mean()) < 3 * error
    assert np.mean(plain) - np.mean(true) > 6 * error


def test_independent_masks_are_the_first_and_too_few_are_left_out():
    told = answers.ask(games(), PLAN)
    found = calls.replayed(told, DEFAULT, [20, 64, 1000])
    assert sorted(found["n"].unique()) == [64, 1000]
    masks, values = told.runs(0)["iid", 1000][0]
    first = calls._fit(masks[:64], values[:64], "iid", 1.0, 0.25).coef[0]
    one, other = (calls._fit(*r, "folded", 0.0, 0.25).coef[0] for r in told.runs(0)["folded", 2048])
    assert found["error"][0] == pytest.approx((first - one) @ (first - other))
    assert calls.replayed(told, "orthogonal", [64]).empty


def test_intervals_hold_as_often_as_they_say_and_not_where_answers_are_replaced():
    told = answers.ask(games(30), PLAN)
    frame = calls.replayed(told, DEFAULT, [256], errors=[256])
    assert 0.85 < calls.coverage(frame, 256).value < 1
    assert np.isnan(calls.replayed(told, DEFAULT, [256])["covered"]).all()
    moved = told.outputs.copy()
    moved[:, 4096:5096] = np.random.default_rng(0).normal(size=(30, 1000)) / 1000  # the iid draw
    wrong = answers.Answers(told.names, told.d, told.plan, told.masks, moved)
    assert calls.coverage(calls.replayed(wrong, DEFAULT, [256], errors=[256]), 256).value < 0.5


def test_ratio_of_means_over_games_by_hand():
    default = pd.DataFrame({"n": [100, 100, 10], "game": [0, 1, 0], "error": [4.0, 2.0, 9.0]})
    way = pd.DataFrame({"n": [10] * 4, "game": [0, 0, 1, 1], "error": [1.0, 3.0, 3.0, 5.0]})
    frames = {DEFAULT: default, "paired": way}
    found = calls.saved_over_games(frames, "paired", 10, calls=100)
    assert found == pytest.approx(((2 + 4) / (4 + 2), 2 / 4, 4 / 2, 2))


def test_advice_names_the_least_number_below_one():
    def frame(values):
        rows = pd.DataFrame({"calls": list(values), "value": [*values.values()]})
        rows = rows.assign(way="folded, surrogate", high=rows["value"] + 0.2)
        other = pd.DataFrame({"way": ["paired"], "calls": [32], "value": [0.0], "high": [0.1]})
        return pd.concat([rows, other])

    table = calls.advice({8: frame({64: 0.9, 128: 0.4}), 100: frame({256: 1.5, 512: 1.1})})
    assert table.loc[8].to_dict() == {
        "64": "0.90", "128": "0.40", "256": "", "512": "", "least": "128", "strength 5": "128",
    }  # fmt: skip
    assert table.loc[100, "least"] == "more than 512"
    assert table.loc[100, "strength 5"] == "more than 8,192"


def test_nothing_is_left_out_of_a_linear_model_and_all_of_noise():
    rng = np.random.default_rng(3)
    noise = limit.lookup(rng.normal(size=2**9))
    linear = Game("linear", 9, lambda z: z @ np.arange(1.0, 10.0))
    plan = (answers.TRUTH, Draw("folded", 128, 1))
    assert calls.left_out(answers.ask([linear], plan), 128).value < 1e-3
    assert calls.left_out(answers.ask([Game("noise", 9, noise)], plan), 128).value > 0.7


def test_kept_answers_are_those_of_the_code_and_a_changed_file_is_refused(tmp_path, monkeypatch):
    for name in answers.SLOW:
        told = answers.load(name)
        assert len(told.names) == 20
        told.runs(19)  # drawn again: the same masks
    content = bytearray((answers.FOLDER / "excerpts.npz").read_bytes())
    content[5000] ^= 1
    (tmp_path / "excerpts.npz").write_bytes(content)
    monkeypatch.setattr(answers, "FOLDER", tmp_path)
    with pytest.raises(ValueError, match=r"excerpts.npz must have sha256 \w{64}, got \w{64}"):
        answers.load("excerpts")


def test_models_are_asked_once_even_if_interrupted(tmp_path, monkeypatch):
    few, asked = games(), []

    def counted(one):
        return Game(one.name, one.d, lambda z: asked.append(one.name) or one.answer(z))

    monkeypatch.setattr(answers, "SLOW", {"tables": lambda: [counted(one) for one in few]})
    monkeypatch.setattr(answers, "PLANS", {"tables": PLAN})
    monkeypatch.setattr(answers, "FOLDER", tmp_path / "kept")
    monkeypatch.setenv("XAIUTILS_CACHE", str(tmp_path / "cache"))
    third, few[2] = few[2], Game("table 2", 7, lambda z: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        answers.main([])
    few[2] = third
    answers.main(["tables"])
    assert asked.count("table 0") == asked.count("table 1") == 1
    found = answers.Answers.load(tmp_path / "kept" / "tables.npz")
    np.testing.assert_array_equal(found.outputs, answers.ask(few, PLAN).outputs)
    assert not list((tmp_path / "cache").rglob("*.npz"))


def test_table_of_coverage_leaves_out_ways_without_such_masks():
    told = answers.ask(games(4), PLAN)
    frames = {
        way: calls.replayed(told, way, [64, 256], errors=[64, 256])
        for way in (DEFAULT, "paired", "folded")
    }
    table = calls.coverages({"tables": frames}, 256, seed=1)
    assert list(table.index) == [DEFAULT, "paired"]
    share = calls.coverage(frames["paired"], 256, seed=1)
    expected = f"{share.value:.3f} [{share.low:.3f}, {share.high:.3f}]"
    assert table.loc["paired", "tables"] == expected
    with pytest.raises(ValueError, match="frame must tell which intervals hold at n = 64"):
        calls.coverage(calls.replayed(told, "folded", [64]), 64)
