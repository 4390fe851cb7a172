"""Other packages beside ours: the committed results, their file, and what runs without shapiq."""

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pandas as pd
import pytest

from xaiutils import lime, limit
from xaiutils.studies.limit import calls as study
from xaiutils.studies.limit import peer_runs, peers, plots

RNG = np.random.default_rng(7)
LINEAR = RNG.normal(size=6)
COLUMNS = ["target", "method", "kind", "game", "n", "repeat", "error", "calls"]


def linear(z):
    return 0.5 + z @ LINEAR


def curved(z):
    return 1 / (1 + np.exp(-4 * (z[:, 0] * z[:, 1] + z @ LINEAR[: z.shape[1]])))


@pytest.fixture
def told():
    """Arguments of `peers.save` for two games and one method of each target."""
    tables = {name: limit.tabulate(f, 6) for name, f in (("a", linear), ("b", curved))}
    exact = {name: peers.exact_values(limit.lookup(t), 6) for name, t in tables.items()}
    games = {name: {"d": 6, "kind": "small", **exact[name]} for name in tables}
    records = [
        {"target": target, "game": name, "method": method, "n": n,
         "errors": [0.5 / n, 0.25 / n], "calls": [n, n - 1]}
        for target, method in (("LIME", "x"), ("Shapley", "y"))
        for name in tables
        for n in (32, 64)
    ]  # fmt: skip
    return {"games": games, "records": records, "seeds": {"here": 0}, "versions": {"here": {}}}


@pytest.fixture
def written(tmp_path, told):
    peers.save(tmp_path / "peers.json", **told)
    return tmp_path / "peers.json"


def test_committed_results_are_whole():
    frame, told = peers.frames(), peers.load()
    assert list(frame.columns) == COLUMNS
    assert peers.PATH.stat().st_size <= 300_000
    assert (frame["calls"] <= frame["n"]).all() and (frame["error"] > 0).all()
    assert frame.groupby("kind")["game"].nunique().to_dict() == {
        "photographs, 12 cells": 2,
        "digits, 16 cells": 4,
    }
    script = the_script(ModuleType("shapiq"))
    methods = frame.groupby("target")["method"].unique()
    assert set(methods["LIME"]) == set(peer_runs.METHODS["LIME"])
    assert set(methods["Shapley"]) == {*peer_runs.METHODS["Shapley"], *script.METHODS}
    counts = frame.groupby(["game", "method", "n"])["repeat"].nunique()
    assert set(counts) == {peer_runs.REPEATS} == {script.REPEATS}
    lock = (peers.PATH.parents[1] / "requirements-peers.lock").read_text().split()
    for name in ("shapiq", "lightgbm", "xgboost-cpu", "numpy", "scikit-learn"):
        assert f"{name}=={told['versions']['shapiq'][name]}" in lock
    for game in told["games"].values():
        assert all(len(game[target]) == game["d"] for target in peers.TARGETS)


def test_what_is_written_is_read(written, told):
    frame = peers.frames(written)
    assert list(frame.columns) == COLUMNS
    assert len(frame) == 2 * len(told["records"]) and set(frame["kind"]) == {"small"}
    row = frame.set_index(["target", "game", "n", "repeat"]).loc[("LIME", "b", 64, 1)]
    assert (row["error"], row["calls"], row["method"]) == (float(f"{0.25 / 64:.4g}"), 63, "x")


def test_games_of_other_values_are_not_the_same(written):
    assert peers.same("a", linear, 6, written)
    assert peers.same("a", lambda z: linear(z) + 1e-6 * z[:, 2], 6, written)
    assert not peers.same("a", lambda z: linear(z) + 0.01 * z[:, 2], 6, written)
    assert not peers.same("a", lambda z: z @ np.ones(5), 5, written)
    assert not peers.same("c", linear, 6, written)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text[:-20], "is no JSON"),
        (lambda text: "[]", "is not of the kind 'xaiutils peers'"),
        (lambda text: text.replace("xaiutils peers", "other"), "is not of the kind"),
        (lambda text: text.replace('"version": 1', '"version": 2'), "has version 2, not 1"),
        (lambda text: text.replace('"calls": [64', '"calls": [60', 1), "was changed"),
        (lambda text: text.replace('"kind": "small"', '"kind": "large"', 1), "was changed"),
    ],
)
def test_a_damaged_or_foreign_file_is_refused(written, change, message):
    text = written.read_text()
    assert change(text) != text
    written.write_text(change(text))
    with pytest.raises(ValueError, match=message) as caught:
        peers.frames(written)
    assert "\n" not in str(caught.value) and str(written) in str(caught.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="absent"):
        peers.frames(tmp_path / "absent.json")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"calls": [65, 64]}, "made 65 calls"),
        ({"errors": [np.nan, 1.0]}, "finite errors"),
        ({"errors": [1.0]}, "as many"),
        ({"game": "c"}, "game and target known"),
        ({"target": "Banzhaf"}, "game and target known"),
        ({"more": 1}, "keys must be"),
    ],
)
def test_records_that_break_the_rules_are_not_written(tmp_path, told, change, message):
    told["records"][-1] |= change
    with pytest.raises(ValueError, match=message):
        peers.save(tmp_path / "peers.json", **told)
    assert not list(tmp_path.iterdir())


def test_ours_finds_a_linear_game_and_counts_what_it_asks():
    f = peer_runs.Counted(linear)
    frame = peers.ours(f, 6, (32, 64), repeats=2, seed=0)
    assert frame["error"].max() < 1e-8
    assert set(frame["target"]) == set(peers.TARGETS)
    walks = peer_runs.Counted(linear)
    peers.exact_values(walks, 6)
    assert f.calls - walks.calls == 2 * 2 * (32 + 64)  # two designs, two repeats
    assert (frame["calls"] == frame["n"]).all()


@pytest.mark.parametrize(("n", "d"), [(2, 3), (32, 5), (40, 12)])
def test_masks_by_size_are_different_and_in_pairs(n, d):
    masks = peers.by_size(n, d, np.random.default_rng(0))
    assert masks.shape == (n, d) and len(np.unique(masks, axis=0)) == n
    assert masks[0].all() and not masks[1].any()
    assert (masks[::2] == ~masks[1::2]).all()
    if (n, d) == (40, 12):  # of fair coins .04 keep or hide at most two
        kept = masks.sum(axis=1)
        assert np.mean(np.minimum(kept, d - kept) <= 2) >= 0.3
    with pytest.raises(ValueError, match="n must be even and from 2"):
        peers.by_size(n + 2**d, d, np.random.default_rng(0))


def test_ours_are_the_errors_of_the_experiments():
    ours = peers.ours(curved, 6, (32, 64), repeats=2, seed=3)
    for method, way in (("regression", "folded"), ("surrogate", "folded, surrogate")):
        wanted = study.squared_errors(curved, 6, way, (32, 64), repeats=2, seed=3)["error"]
        chosen = (ours["target"] == "LIME") & (ours["method"] == f"ours: folded, {method}")
        np.testing.assert_allclose(ours.loc[chosen, "error"], wanted, rtol=1e-9)


METHODS = [(t, name) for t, methods in peer_runs.METHODS.items() for name in methods]


@pytest.mark.parametrize(("target", "name"), METHODS)
def test_packages_ask_no_more_than_they_are_told(target, name):
    f = peer_runs.Counted(curved)
    found = peer_runs.METHODS[target][name](f, 6, 50, 1)
    assert found.shape == (6,)
    assert f.calls == 50


@pytest.mark.parametrize(
    ("target", "name", "tolerance"),
    [
        ("LIME", "lime", 0.2),  # the ridge
        ("LIME", "captum Lime, regression", 1e-4),
        ("Shapley", "captum Kernel SHAP", 1e-3),
    ],
)
def test_packages_find_a_linear_game(target, name, tolerance):
    found = peer_runs.METHODS[target][name](peer_runs.Counted(linear), 6, 200, 1)
    np.testing.assert_allclose(found, LINEAR, atol=tolerance)


def test_captums_kernel_is_that_of_lime():
    """So the regression it makes of its own masks is ours without a ridge."""
    asked = []

    def f(z):
        asked.append(np.array(z))
        return curved(z)

    found = peer_runs.captum_lime(f, 6, 64, 2)
    masks = np.concatenate(asked)
    weighted = lime.fit(masks, lime.kernel(masks), curved(masks)[:, None], 0.0)
    np.testing.assert_allclose(found, weighted.coef[0], atol=1e-5)


def test_seeds_repeat_runs_here_and_leave_torch_alone():
    import torch

    state = torch.get_rng_state()
    runs = [peer_runs.captum_kernel_shap(curved, 6, 40, seed) for seed in (1, 1, 2)]
    assert (runs[0] == runs[1]).all() and (runs[0] != runs[2]).any()
    assert torch.equal(state, torch.get_rng_state())


def test_runs_here_are_records_that_can_be_saved(tmp_path, monkeypatch, told):
    monkeypatch.setattr(peers, "SIZES", (32,))
    monkeypatch.setattr(peers, "DEFAULT", 40)
    tables = {"a": limit.tabulate(linear, 6)}
    told["records"] = peer_runs.here(tables, told["games"], repeats=2)
    peers.save(tmp_path / "peers.json", **told)
    frame = peers.frames(tmp_path / "peers.json")
    assert set(zip(frame["target"], frame["method"], strict=True)) == set(METHODS)
    assert set(frame.loc[frame["method"] == "lime", "n"]) == {32, 40}


def test_ratios_are_over_a_method_with_given_or_as_many_calls(written):
    frame = peers.frames(written)
    fixed = peers.ratios(frame, "LIME", "small", "x", calls=64)
    np.testing.assert_allclose(fixed["value"], [2, 1], rtol=1e-3)
    even = peers.ratios(frame, "LIME", "small", "x", calls=None)
    np.testing.assert_allclose(even["value"], 1)
    assert set(fixed["n"]) == {2}


def test_plot_shows_ours_in_black(written):
    frame = peers.frames(written)
    ours = pd.concat(
        peers.ours(f, 6, (32, 64), repeats=3, seed=0).assign(game=game, kind="small")
        for game, f in (("a", linear), ("b", curved))
    )
    over = peers.ratios(pd.concat([frame, ours]), "Shapley", "small", "y", calls=64)
    figure = plots.peers({("Shapley", "small"): over})
    lines = {box.get_label(): box.lines[0].get_color() for box in figure.axes[0].containers}
    assert lines["ours: folded, surrogate"] == "black" != lines["y"]
    plots.plt.close(figure)


def the_script(shapiq):
    """tests/peers/with_shapiq.py with this in place of the package."""
    path = Path(__file__).parents[2] / "peers" / "with_shapiq.py"
    spec = importlib.util.spec_from_file_location("with_shapiq", path)
    module = importlib.util.module_from_spec(spec)
    kept = sys.modules.get("shapiq")
    sys.modules["shapiq"] = shapiq
    try:
        spec.loader.exec_module(module)
    finally:
        sys.modules.pop("shapiq")
        if kept:
            sys.modules["shapiq"] = kept
    return module


def test_script_measures_and_counts_as_we_do(monkeypatch, tmp_path, told):
    """With a stand-in that asks for the masks it has calls for, and errs by .1 everywhere."""

    class Standin:
        def __init__(self, n, random_state, **options):
            self.n = n

        def approximate(self, budget, game):
            self.values = game(limit.masks(self.n)[: budget - 2])
            return self

        def get_n_order_values(self, order):
            return told["games"]["a"]["Shapley"] + 0.1

    names = ("KernelSHAP", "LeverageSHAP", "OddSHAP", "RegressionMSR")
    shapiq = ModuleType("shapiq")
    for name in names:
        setattr(shapiq, name, Standin)
    script = the_script(shapiq)
    monkeypatch.setattr(script, "SIZES", (32,))
    monkeypatch.setattr(script, "REPEATS", 2)
    monkeypatch.setattr(script.importlib.metadata, "version", lambda name: "0")
    arrays = {"a/table": limit.tabulate(linear, 6), "a/Shapley": told["games"]["a"]["Shapley"]}
    np.savez(tmp_path / "games.npz", **arrays)
    script.main(tmp_path / "games.npz", tmp_path / "shapiq.json")
    records = json.loads((tmp_path / "shapiq.json").read_text())["records"]
    assert [record["method"] for record in records] == list(script.METHODS)
    for record in records:
        np.testing.assert_allclose(record["errors"], 6 * 0.1**2)
        assert record["calls"] == [30, 30]
    peers.save(tmp_path / "peers.json", **(told | {"records": records}))


def test_script_answers_as_our_tables_do():
    table = RNG.normal(size=2**6)
    game, masks = the_script(ModuleType("shapiq")).Game(table), limit.masks(6)[::-1]
    np.testing.assert_array_equal(game(masks), limit.lookup(table)(masks))
    assert game.calls == 64
