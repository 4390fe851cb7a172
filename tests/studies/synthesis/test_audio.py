"""Explainers of excerpts: a planted detector whose answers are known, and the real one.

Cell 4 t + f holds frames 33 t to 33 t + 32 and bands 20 f to 20 f + 19; means of cells are taken by
reshaping alone.
"""

import dataclasses

import numpy as np
import pytest
import torch

from xaiutils import fidelity
from xaiutils.classifiers import singing
from xaiutils.studies.audio import beyond
from xaiutils.studies.audio import experiments as study
from xaiutils.studies.synthesis import audio

NAMES = [
    "random", "gradient", "SmoothGrad", "SmoothGrad²", "input × gradient", "IG, zero", "IG, mean",
    "occlusion", "LIME", "LIME, converged", "IG sums", "|x − b|",
]  # fmt: skip
EFFORT = {"n_masks": 64, "max_masks": 640, "n_noise": 3, "ig_steps": 8}


def cell_sums(values):
    return values.reshape(5, 33, 4, 20).sum((1, 3)).ravel()


def cell_means(x):
    return x.unflatten(2, (4, 20)).unflatten(1, (5, 33)).mean((2, 4)).flatten(1)


def spread(values):
    grid = np.asarray(values, np.float32).reshape(5, 4)
    return grid.repeat(33, axis=0).repeat(20, axis=1)


class Linear(torch.nn.Module):
    """The logit of singing is linear in the cells' means; other frames and classes mislead."""

    def __init__(self, weights, bias):
        super().__init__()
        self.register_buffer("weights", torch.as_tensor(weights, dtype=torch.float32))
        self.register_buffer("bias", torch.tensor(float(bias)))

    def logit(self, x):
        return cell_means(x) @ self.weights + self.bias

    def forward(self, x):
        return self.logit(x).sigmoid()[:, None]

    def logits(self, x):
        out = -x.mean(2, keepdim=True).repeat(1, 1, 3)
        out[:, 82, 1] = self.logit(x)
        return out


def make_case(weights, direction, changed=(5, 14)):
    """A detector and a case that it answers `direction`; cells `changed` did it."""
    rng = np.random.default_rng(0)
    clean = (spread(rng.normal(size=20)) + rng.normal(scale=0.2, size=(165, 80))).astype(np.float32)
    change = spread(np.isin(np.arange(20), changed) * np.sign(weights) * direction * 2)
    attacked = clean + change
    both = cell_means(torch.from_numpy(np.stack([clean, attacked]))).numpy() @ weights
    detector = Linear(weights, -both.mean()).eval()
    condition = "to singing" if direction > 0 else "to no singing"
    return detector, study.Case(condition, 0, "planted", direction, clean, attacked)


@pytest.fixture(scope="module")
def weights():
    rng = np.random.default_rng(2)
    return np.where(np.isin(np.arange(20), [5, 14]), 1.0, rng.normal(scale=0.2, size=20))


@pytest.fixture(scope="module")
def detector():
    return singing.load()


@pytest.fixture(scope="module")
def cases():
    """Smooth noise: the first is taken for one answer, the second for the other, by fiat."""
    rng = np.random.default_rng(1)
    made = []
    for i, direction in enumerate((1, -1)):
        clean = (12 + rng.normal(size=(165, 80))).astype(np.float32)
        opened = spread(np.isin(np.arange(20), [i, 7, 12]))
        made.append(study.Case("planted", i, "noise", direction, clean, clean + opened))
    return made


@pytest.fixture(scope="module")
def table(detector, cases):
    return audio.table(detector, cases, **EFFORT, seed=3)


def test_names_shapes_and_seeds(detector, cases, table):
    assert list(table) == NAMES
    assert all(scores.shape == (2, 20) and np.isfinite(scores).all() for scores in table.values())
    again = audio.explain(detector, cases[1], **EFFORT, seed=4)  # case 1 of the seed 3
    other = audio.explain(detector, cases[1], **EFFORT, seed=5)
    for name in NAMES:
        np.testing.assert_array_equal(again[name], table[name][1])
        drawn = name in ("random", "SmoothGrad", "SmoothGrad²", "LIME", "LIME, converged")
        assert np.array_equal(other[name], again[name]) != drawn


@pytest.mark.parametrize("direction", [1, -1])
def test_scores_of_a_linear_detector_are_known(weights, direction):
    planted, case = make_case(weights, direction)
    scores = audio.explain(
        planted, case, n_masks=256, max_masks=2560, n_noise=2, ig_steps=64, seed=0
    )
    x = case.adversarial.astype(float)
    means = cell_sums(x) / 660
    size = np.abs(weights)
    np.testing.assert_allclose(scores["gradient"], size, rtol=1e-4)
    np.testing.assert_allclose(scores["SmoothGrad"], size, rtol=1e-4)
    np.testing.assert_allclose(scores["SmoothGrad²"], size**2 / 660, rtol=1e-4)
    to_mean = direction * weights * (means - x.mean())
    np.testing.assert_allclose(scores["input × gradient"], to_mean, atol=1e-4)
    np.testing.assert_allclose(scores["IG, mean"], to_mean, atol=1e-4)
    to_zero = direction * weights * (means - np.log(2.0**-23))
    np.testing.assert_allclose(scores["IG, zero"], to_zero, atol=1e-3)
    np.testing.assert_allclose(scores["|x − b|"], cell_sums(np.abs(x - x.mean())), rtol=1e-4)
    logit = weights @ means + float(planted.bias)

    def p(value):
        return 1 / (1 + np.exp(-value))

    one_hidden = logit - weights * (means - x.mean())
    np.testing.assert_allclose(
        scores["occlusion"], direction * (p(logit) - p(one_hidden)), atol=1e-5
    )
    ends = p(logit) - p(weights.sum() * x.mean() + float(planted.bias))
    assert scores["IG sums"].sum() == pytest.approx(direction * ends, abs=2e-3)
    share = scores["IG sums"] / scores["IG sums"].sum()
    np.testing.assert_allclose(share, to_mean / to_mean.sum(), atol=1e-3)
    first = set(np.argsort(-to_mean)[:2])
    for name in ("LIME", "LIME, converged", "occlusion", "IG sums"):
        assert set(np.argsort(-scores[name])[:2]) == first


def test_lime_is_the_first_round_of_the_converged_run(detector, cases):
    case = cases[0]
    scores = audio.explain(detector, case, **EFFORT, seed=1)
    alone = audio.converged(detector, case, n_masks=64, max_masks=64, seed=1)
    np.testing.assert_allclose(scores["LIME"], case.direction * alone.coef, atol=1e-9)
    assert (scores["LIME, converged"] != scores["LIME"]).any()


def test_integrated_gradients_are_complete(detector, cases):
    case = cases[0]
    scores = audio.explain(
        detector, case, n_masks=64, max_masks=64, n_noise=1, ig_steps=100, seed=0
    )
    x = case.adversarial
    ends = np.stack([x, np.full_like(x, x.mean()), np.full_like(x, beyond.SILENCE)])
    ends = torch.from_numpy(ends)
    with torch.no_grad():
        logit = detector.logits(ends)[:, 82, 1].numpy()
        p = detector(ends)[:, 0].numpy()
    assert abs(logit[0] - logit[1]) > 0.1
    assert scores["IG, mean"].sum() == pytest.approx(logit[0] - logit[1], rel=0.05)
    assert scores["IG, zero"].sum() == pytest.approx(logit[0] - logit[2], rel=0.05)
    assert scores["IG sums"].sum() == pytest.approx(p[0] - p[1], rel=0.05, abs=1e-4)


@pytest.mark.parametrize("direction", [1, -1])
def test_converged_draws_more_masks_where_cells_are_close(weights, direction):
    """Two cells alone speak for the answer; against it none does, and that must not matter."""
    alone = np.where(np.isin(np.arange(20), [5, 14]), weights, 0)
    planted, case = make_case(alone, direction)
    clear = audio.converged(planted.forward, case, n_masks=64, max_masks=640, seed=0)
    assert clear.converged and len(clear.masks) < 640
    planted, case = make_case(weights, direction)
    x, lines = case.adversarial, weights.copy()
    means = cell_sums(x.astype(float)) / 660
    # Equal evidence: cells 2 and 3 of the ranking cannot be told apart.
    second, third = np.argsort(-direction * weights * (means - x.mean()))[1:3]
    gap = means - x.mean()
    lines[third] = lines[second] * gap[second] / gap[third]
    tied = Linear(lines, planted.bias + (weights - lines) @ means).eval()
    close = audio.converged(tied.forward, case, n_masks=64, max_masks=640, seed=0)
    assert close.converged is False and len(close.masks) == 640


def test_converged_settles_as_many_cells_as_were_changed(weights, monkeypatch):
    seen, explain = [], audio.lime.explain

    def spy(*arguments, **options):
        seen.append((options["stop"], options["filler"]))
        return explain(*arguments, **options)

    monkeypatch.setattr(audio.lime, "explain", spy)
    planted, case = make_case(weights, 1, changed=(3, 5, 9, 14))
    audio.converged(planted.forward, case, n_masks=32, max_masks=320, seed=0)
    ((stop, filler),) = seen
    assert (stop.top_k, stop.max_samples) == (4, 320)
    assert filler == pytest.approx(case.adversarial.mean(dtype=float), abs=1e-5)


def test_answers_are_the_detectors_own(detector, cases):
    x = torch.from_numpy(np.stack([case.adversarial for case in cases]))
    with torch.no_grad():
        p = audio.Answers(detector)(x).softmax(1)
        torch.testing.assert_close(p[:, 1:], detector(x))
        torch.testing.assert_close(p[:, 0], 1 - p[:, 1])


def test_curves_by_hand(weights):
    planted, one = make_case(weights, 1)
    _, two = make_case(weights, -1)
    two = dataclasses.replace(two, adversarial=two.adversarial + np.float32(0.1))
    assert planted(torch.from_numpy(one.adversarial[None])) > 0.5
    assert planted(torch.from_numpy(two.adversarial[None])) < 0.5
    rng = np.random.default_rng(5)
    scores = {
        "random": rng.random((2, 20)),
        "gradient": np.tile(weights + 0.01 * np.arange(20), (2, 1)),
    }
    found = audio.curves(planted, [one, two], scores, seed=0)
    np.testing.assert_allclose(found["random"].fractions, np.arange(21) / 20)
    for name, values in scores.items():
        for i, case in enumerate((one, two)):
            for order, sign in {"mif": -1, "lif": 1}.items():
                ranking, expected = (sign * values[i]).argsort(), []
                for k in range(21):
                    x = case.adversarial.copy()
                    x[np.isin(spread(np.arange(20)), ranking[:k])] = x.mean()
                    p = planted(torch.from_numpy(x[None])).item()
                    expected.append(p if case.direction > 0 else 1 - p)
                curve = found[name].curve(order, "probability_label")[i]
                np.testing.assert_allclose(curve, expected, atol=1e-5)
                kept = found[name].curve(order)[i]
                np.testing.assert_array_equal(kept, np.array(expected) > 0.5)
                assert kept[0]
    table = fidelity.summary(found, draws=10)
    assert set(table["method"]) == set(scores)
