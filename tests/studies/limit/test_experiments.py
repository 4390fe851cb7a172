"""Experiments of notebook 02 on small functions whose answers are known."""

import itertools

import numpy as np
import pandas as pd
import pytest
import torch

from xaiutils import intervals, lime, limit, segment
from xaiutils.perturb import Components
from xaiutils.studies.limit import cases
from xaiutils.studies.limit import experiments as study

X = np.zeros((8, 8), np.float32)
X[2:6, 2:6] = 1.0
CELLS = Components(segment.grid(X.shape, 2, 3))


class Interacting(torch.nn.Module):
    """Products of neighbouring cells' brightness: not additive, so runs scatter."""

    def forward(self, x):
        sums = torch.stack([x[:, 2:4].sum((1, 2)), x[:, 4:6].sum((1, 2)), x.sum((1, 2))], 1)
        return torch.stack([sums[:, 0] * sums[:, 1] / 64 + sums[:, 2] / 16, sums[:, 2]], 1)


def explain(**options):
    return lime.explain(Interacting(), X, CELLS, targets=0, filler=0.0, **options)


@pytest.mark.parametrize(("d", "a", "b"), [(5, 2, 3), (6, 1, 1), (4, 0, 2), (3, 0, 0)])
def test_random_jaccard_is_the_mean_over_all_sets(d, a, b):
    fixed = set(range(a))
    values = [lime.jaccard(fixed, set(other)) for other in itertools.combinations(range(d), b)]
    assert study.random_jaccard(d, a, b) == pytest.approx(np.mean(values), abs=1e-12)


def test_table_is_the_model_on_pasted_images():
    values = study.table(Interacting(), X, CELLS, 0, filler=0.0)
    for mask, value in zip(limit.masks(6), values, strict=True):
        pasted = torch.from_numpy(X * mask[CELLS.labels])
        assert value == pytest.approx(float(Interacting()(pasted[None])[0, 0]), abs=1e-6)


def test_agreement_reports_pairs_and_the_random_level():
    explained = {"A": np.array([3.0, 2.0, 1.0, -1.0]), "B": np.array([3.0, 0.0, 2.0, 1.0])}
    frame = pd.DataFrame(study.agreement(explained, [("A", "B")], image=7, ks=(2,)))
    assert frame["pair"].tolist() == ["A / B", "random sets"]
    assert frame["jaccard"].tolist() == pytest.approx([1 / 3, study.random_jaccard(4, 2, 2)])
    assert set(frame["image"]) == {7}


def test_ratio_to_random_is_paired_over_images():
    """When every image is exactly twice its own chance, the interval has no width."""
    chance = np.array([0.1, 0.2, 0.4])
    frame = pd.DataFrame(
        {
            "k": 5,
            "image": [0, 1, 2] * 2,
            "pair": ["A / B"] * 3 + ["random sets"] * 3,
            "jaccard": np.r_[2 * chance, chance],
        }
    )
    assert study.ratio_to_random(frame, "A / B", 5, seed=0) == pytest.approx((2, 2, 2, 3))
    one = study.ratio_to_random(frame[frame["image"] == 1], "A / B", 5, seed=0)
    assert one == pytest.approx((2, np.nan, np.nan, 1), nan_ok=True)


def test_ratio_to_random_is_that_of_spelled_out_resamples():
    rng = np.random.default_rng(1)
    values, chance = rng.random(9), rng.uniform(0.1, 0.3, 9)
    frame = pd.DataFrame(
        {
            "k": [5] * 18 + [10] * 9,
            "image": [*range(9)] * 3,
            "pair": ["A / B"] * 9 + ["random sets"] * 9 + ["A / B"] * 9,
            "jaccard": np.r_[values, chance, rng.random(9)],
        }
    )
    found = study.ratio_to_random(frame, "A / B", 5, seed=2, draws=300)
    drawn = []
    for counts in intervals.resamples(9, draws=300, seed=2):
        rows = np.repeat(np.arange(9), counts)
        drawn.append(values[rows].mean() / chance[rows].mean())
    expected = (values.mean() / chance.mean(), *np.percentile(drawn, [2.5, 97.5]), 9)
    assert found == pytest.approx(expected)
    assert found.low < found.value < found.high


def test_mean_intervals_are_those_of_each_group():
    rng = np.random.default_rng(3)
    frame = pd.DataFrame({"k": [5] * 8 + [10] * 6, "pair": "A / B", "jaccard": rng.random(14)})
    table = study.mean_intervals(frame, ["k", "pair"], seed=4, draws=200)
    assert list(table.columns) == ["k", "pair", "mean", "low", "high", "images"]
    for row, part in zip(table.itertuples(), (slice(0, 8), slice(8, 14)), strict=True):
        expected = intervals.mean(frame["jaccard"][part], draws=200, seed=4)
        assert (row.mean, row.low, row.high, row.images) == pytest.approx(tuple(expected))
    assert table["k"].tolist() == [5, 10]


def test_slope_is_that_of_spelled_out_resamples_of_repeats():
    rng = np.random.default_rng(5)
    n = np.array([100, 200, 400])
    values = rng.gamma(2, size=(7, 3)) / np.sqrt(n)
    frame = pd.DataFrame(
        [(m, r, values[r, i]) for i, m in enumerate(n) for r in range(7)],
        columns=["n", "repeat", "distance"],
    )
    found = study.slope(frame, seed=6, draws=100)
    drawn = []
    for counts in intervals.resamples(7, draws=100, seed=6):
        rows = np.repeat(np.arange(7), counts)
        level = np.log(np.sqrt(np.square(values[rows]).mean(axis=0)))
        drawn.append(np.polyfit(np.log(n), level, 1)[0])
    level = np.log(np.sqrt(np.square(values).mean(axis=0)))
    expected = (np.polyfit(np.log(n), level, 1)[0], *np.percentile(drawn, [2.5, 97.5]))
    assert found == pytest.approx(expected)


def test_convergence_has_slope_minus_one_half():
    f = limit.lookup(np.random.default_rng(0).random(2**6))
    frame = study.convergence(f, 6, [256, 1024, 4096], repeats=100, seed=1)
    assert np.isnan(study.slope(frame[frame["repeat"] == 0], seed=0)[1:]).all()
    value, low, high = study.slope(frame, seed=0)
    assert low < value < high
    assert value == pytest.approx(-0.5, abs=0.06)


def test_locality_distances_vanish_where_theory_says():
    f = limit.lookup(np.random.default_rng(0).random(2**6))
    frame = study.locality(f, 6, [0.02, 1e4], ig_sums=np.zeros(6)).pivot(
        index="nu", columns="reference", values="distance"
    )
    assert frame.loc[0.02, "occlusion"] < 1e-3
    assert frame.loc[1e4, "Banzhaf"] < 1e-6
    assert frame.loc[1e4, "coin-biased Banzhaf"] < 1e-6
    assert frame.loc[1e4, "Shapley"] > 0.01
    assert np.allclose(frame["integrated gradients"], 1.0)


def test_blocks_of_a_long_run_are_runs_of_their_own():
    pool = explain(n_samples=300, seed=3)
    short = explain(n_samples=100, seed=3)
    coef = study._block_coefs(pool, 100)
    assert coef.shape == (3, 6)
    np.testing.assert_allclose(coef[0], short.coef, atol=1e-9)
    assert np.abs(coef[1] - coef[0]).max() > 1e-4


def test_stopping_size_is_where_the_real_rule_stops():
    stop = lime.Stop(top_k=2, max_samples=3000)
    real = explain(n_samples=100, seed=5, stop=stop)
    pool = explain(n_samples=3000, seed=5)
    assert real.converged
    assert study.stopping_size(pool, stop, 100) == len(real.masks)
    assert study.stopping_size(pool, lime.Stop(stderr=1e-9), 1000) is None


def test_stop_shares_its_risk_over_all_looks():
    coef, covariance = np.array([[1.0, 0.0]]), np.eye(3)[None] * 0.125  # 2 standard errors apart
    stop = lime.Stop(top_k=1)
    assert stop.met(coef, covariance)
    assert not stop.met(coef, covariance, looks=10)


def test_detector_on_a_digit_agrees_with_enumeration_and_with_the_package():
    image = np.zeros((28, 28))
    image[4:24, 12:16] = 1.0
    case = cases.shape_detector(image, 4 * 28 + 13, length=18, n_runs=4, n_samples=300, seed=0)
    assert (case.theory.coef > 0.05).sum() >= 2  # the stroke crosses superpixels
    np.testing.assert_allclose(case.enumerated.coef, case.theory.coef, atol=1e-10)
    assert np.abs(cases.package_z(case)).max() < 8  # four runs: heavy tails
    shifted = case._replace(runs=case.runs + 1.0)
    assert np.abs(cases.package_z(shifted)).max() > 8


def test_linear_model_is_recovered():
    image = np.random.default_rng(0).random((28, 28))
    case = cases.linear_model(image, n_runs=2, n_samples=400, seed=0)
    scale = np.abs(case.theory.coef).max()
    assert cases.largest_gap(case, case.enumerated.coef) < 1e-9 * scale
    assert cases.largest_gap(case, case.fit) < 1e-9 * scale
    assert 1e-6 * scale < cases.largest_gap(case, case.runs[:, 1:]) < 0.05 * scale
