"""Explanations where there is nothing to explain, or too little to be sure of anything."""

import numpy as np
import oracles
import pytest
import torch
from numpy.testing import assert_allclose

from xaiutils import lime
from xaiutils.perturb import Components

X = np.random.default_rng(0).random((3, 12, 12), dtype=np.float32)
CELLS = Components(np.arange(12)[:, None] // 3 * 4 + np.arange(12) // 3)
FAR = lime.Stop(top_k=3, max_samples=400)
CLOSE = lime.Stop(stderr=1.0, max_samples=400)  # any estimate of an error would do


def explain(model, x=X, components=CELLS, **options):
    return lime.explain(model, x, components, **{"targets": 0, "n_samples": 100} | options)


def bright(batch):
    return batch.mean(dim=(1, 2, 3))[:, None]


def probabilities(batch):
    return torch.softmax(40 * batch.flatten(1), dim=1)


# --- outputs that do not vary ---------------------------------------------------------------------

CONSTANT = {
    "0": lambda batch: torch.zeros(len(batch), 1),
    "1": lambda batch: torch.ones(len(batch), 1),
    "0.3, single precision": lambda batch: torch.full((len(batch), 1), 0.3),
    "0.3, double precision": lambda batch: np.full((len(batch), 1), 0.3),
    "yes": lambda batch: np.ones((len(batch), 1), bool),
    "-7": lambda batch: np.full((len(batch), 1), -7),
    "1 but for rounding": lambda batch: probabilities(batch).sum(dim=1, keepdim=True),
}


@pytest.mark.parametrize("stop", [FAR, CLOSE, None])
@pytest.mark.parametrize("name", CONSTANT)
def test_a_constant_output_has_no_effects_and_nothing_settled(name, stop):
    found = explain(CONSTANT[name], stop=stop)
    assert found.converged is (None if stop is None else False)
    assert len(found.masks) == (100 if stop is None else 400)
    assert (found.coef == 0).all() and lime.top_k(found.coef, 3) == set()
    assert np.isnan(found.score) and np.isnan(found.stderr).all()
    assert found.local_prediction == pytest.approx(found.outputs[0], rel=1e-6)


def test_outputs_differ_by_rounding_in_the_case_above():
    outputs = explain(CONSTANT["1 but for rounding"]).outputs
    assert 0 < np.ptp(outputs) < 1e-6


@pytest.mark.parametrize("spread, constant", [(1e-6, True), (4e-6, False)])
def test_rounding_is_that_of_the_precision_of_the_outputs(spread, constant):
    masks = np.random.default_rng(1).random((200, 5)) < 0.5
    outputs = 1 + spread * masks[:, [2]]
    weights = lime.kernel(masks)
    assert np.isnan(lime.fit(masks, weights, outputs.astype(np.float32)).score[0]) == constant
    _, coef, score, _ = lime.fit(masks, weights, outputs, ridge=0.0)
    assert score[0] == pytest.approx(1, abs=1e-6)
    assert_allclose(coef[0], spread * np.eye(5)[2], atol=1e-12)


def test_two_levels_of_half_precision_are_a_signal():
    masks = np.random.default_rng(1).random((200, 5)) < 0.5
    outputs = np.where(masks[:, [2]], np.float16(0.5005), np.float16(0.5))
    _, coef, score, _ = lime.fit(masks, lime.kernel(masks), outputs, ridge=0.0)
    assert score[0] == pytest.approx(1) and coef[0].argmax() == 2


@pytest.mark.parametrize("stop", [FAR, CLOSE])
def test_a_constant_output_among_others_is_never_settled(stop):
    def model(batch):
        return torch.cat([torch.full((len(batch), 1), 0.3), 40 * bright(batch)], dim=1)

    both = explain(model, targets=[0, 1], stop=stop, filler=0.0)
    assert both.converged is False
    assert np.isnan(both.score[0]) and both.score[1] > 0.9
    alone = explain(model, targets=1, filler=0.0, n_samples=len(both.masks))
    assert_allclose(both.coef[1], alone.coef, rtol=1e-5)
    assert (both.coef[0] == 0).all()
    assert np.isnan(both.stderr[0]).all() and (both.stderr[1] > 0).all()


def test_variation_where_the_kernel_looks_away_is_none():
    masks = np.vstack([np.ones((9, 6), bool), np.zeros((1, 6), bool)])
    weights = np.append(np.ones(9), 1e-30)
    outputs = np.append(np.full(9, 2.0), 5.0)[:, None]
    intercept, coef, score, covariance = lime.fit(masks, weights, outputs)
    assert intercept[0] == pytest.approx(2)
    assert (coef == 0).all() and np.isnan(score).all() and np.isnan(covariance).all()


# --- hiding that changes nothing ------------------------------------------------------------------


def never(batch):
    raise AssertionError("the model must not be asked")


SAME = {
    "mean of single positions": (X, Components(np.arange(432).reshape(3, 12, 12)), "mean"),
    "mean of a flat image": (np.full((3, 12, 12), 0.1), CELLS, "mean"),
    "black on black": (np.zeros((3, 12, 12), np.float32), CELLS, 0.0),
    "the image itself": (X, CELLS, X.copy()),
    "its tensor": (torch.from_numpy(X), CELLS, torch.from_numpy(X.copy())),
    "gray levels": (np.full((12, 12), 77, np.uint8), CELLS, 77),
}


@pytest.mark.parametrize("package_exact", [False, True])
@pytest.mark.parametrize("name", SAME)
def test_hiding_that_changes_nothing_is_refused(name, package_exact):
    x, components, filler = SAME[name]
    message = f"filler equals the input in all {components.d} components"
    with pytest.raises(ValueError, match=message):
        explain(never, x, components, filler=filler, package_exact=package_exact)


def test_a_large_flat_region_equals_its_mean_but_for_rounding():
    x = np.full((3, 200, 200), 0.1)
    halves = Components(np.arange(200)[:, None] // 100 * np.ones(200, int))
    assert (x != halves.means(x)).any()
    with pytest.raises(ValueError, match="all 2 components"):
        explain(never, x, halves)


def test_components_that_hiding_leaves_alone_are_named():
    x = X.copy()
    x[:, CELLS.labels == 5] = 0.25
    found = explain(bright, x)
    assert np.flatnonzero(found.unchanged).tolist() == [5]
    assert not explain(bright, x, filler=0.0).unchanged.any()
    one = explain(bright, x, filler=np.where(CELLS.labels == 2, 0.0, x).astype(np.float32))
    assert np.flatnonzero(~one.unchanged).tolist() == [2]
    assert one.coef.argmax() == 2


def test_a_tiny_change_is_a_change():
    x = np.linspace(1, 2, 6)
    found = lime.explain(
        lambda batch: 1e6 * (batch - torch.from_numpy(x)).sum(dim=1, keepdim=True),
        x, Components(np.arange(6)), targets=0, filler=x - 1e-9, ridge=0.0,
    )  # fmt: skip
    assert not found.unchanged.any()
    assert_allclose(found.coef, 1e-3, rtol=1e-3)


def test_of_a_callable_filler_nothing_is_known_beforehand():
    found = explain(bright, filler=lambda x, components, masks: x, stop=FAR)
    assert found.unchanged is None
    assert found.converged is False and np.isnan(found.score)


# --- too few masks --------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 2, 5, 16, 17])
def test_as_many_masks_as_unknowns_give_no_error_estimate(n):
    found = explain(bright, n_samples=n, filler=0.0)
    assert np.isfinite(found.coef).all()
    assert np.isnan(found.stderr).all() and np.isnan(found.covariance).all()
    assert np.isfinite(explain(bright, n_samples=18, filler=0.0).stderr).all()


@pytest.mark.parametrize("stop", [lime.Stop(top_k=2), CLOSE])
@pytest.mark.parametrize("n", [1, 2, 10, 17])
def test_no_rule_is_met_before_there_are_more_masks_than_unknowns(n, stop):
    found = explain(bright, n_samples=n, stop=stop, filler=0.0)
    assert found.converged is True
    assert len(found.masks) > 17
    capped = lime.Stop(stderr=1.0, max_samples=17)
    assert explain(bright, n_samples=n, stop=capped, filler=0.0).converged is False


def test_pairs_must_outnumber_the_unknowns():
    options = {"design": "paired", "filler": 0.0, "n_samples": 2}
    found = explain(bright, stop=CLOSE, **options)
    assert found.converged is True and len(found.masks) == 36
    capped = lime.Stop(stderr=1.0, max_samples=35)
    assert explain(bright, stop=capped, **options).converged is False


def test_without_a_ridge_rounds_are_drawn_until_the_fit_is_determined():
    # pairs of 16 components leave the fit undetermined below 32 masks
    options = {"design": "paired", "filler": 0.0, "ridge": 0.0}
    found = explain(bright, n_samples=4, stop=lime.Stop(stderr=1.0), **options)
    assert found.converged is True and len(found.masks) >= 36
    few = lime.Stop(stderr=1.0, max_samples=24)
    with pytest.raises(ValueError, match="24 masks do not determine 16 coefficients"):
        explain(bright, n_samples=4, stop=few, **options)


def test_what_cannot_be_determined_costs_no_call_of_the_model():
    for options in (
        {"ridge": 0.0, "n_samples": 16},
        {"ridge": -1.0},
        {"ridge": float("nan")},
        {"kernel_width": 0.0},
        {"n_samples": 2.5},
        {"stop": lime.Stop(top_k=16)},
    ):
        with pytest.raises(ValueError, match=r"ridge|width|n_samples|top_k=16 .* 16"):
            explain(never, **options)


def test_copies_of_few_masks_are_few_masks():
    rng = np.random.default_rng(2)
    few = np.vstack([rng.random((7, 6)) < 0.5] * 20)
    outputs = few @ rng.normal(size=(6, 1)) + (few[:, [0]] & few[:, [1]])
    assert np.isnan(lime.fit(few, np.ones(140), outputs).covariance).all()
    every = np.vstack([oracles.cube(2)] * 10)  # all there are: more cannot be known
    assert np.isfinite(lime.fit(every, np.ones(40), every @ [[1.0], [2.0]]).covariance).all()


# --- ties -----------------------------------------------------------------------------------------


def square(gap, noise):
    """Coefficients 2 + gap and 2 of an exact fit, with this error of both."""
    return np.array([[2 + gap, 2, 0, -1]]), np.eye(5)[None] * noise**2


@pytest.mark.parametrize("noise", [0.0, 1e-3])
def test_equal_coefficients_are_never_told_apart(noise):
    assert not lime.Stop(top_k=1).met(*square(0, noise))
    assert not lime.Stop(top_k=1, level=1e-9).met(*square(0, noise))
    assert lime.Stop(top_k=1).met(*square(0.1, noise))


@pytest.mark.parametrize("k", [4, 5])
def test_with_all_components_in_the_top_there_is_nothing_to_tell_apart(k):
    assert not lime.Stop(top_k=k).met(*square(0.1, 1e-3))
    assert lime.Stop(top_k=3).met(*square(0.1, 1e-3))


@pytest.mark.parametrize("rule", [{"top_k": 1}, {"stderr": 1.0}])
def test_an_unknown_covariance_settles_nothing(rule):
    coef, covariance = square(1, 0.1)
    assert lime.Stop(**rule).met(coef, covariance)
    assert not lime.Stop(**rule).met(coef, np.full_like(covariance, np.nan))


@pytest.mark.parametrize("offset", [0.0, 1e6])
@pytest.mark.parametrize("seed", range(5))
def test_ties_of_an_exact_fit_are_not_told_apart_by_rounding(seed, offset):
    # equal slopes without noise and without ridge: coefficients differ in their last digits only
    masks = np.random.default_rng(seed).random((300, 6)) < 0.5
    outputs = offset + masks @ [[3.0], [0.1], [0.1], [0.1], [0.0], [0.0]]
    _, coef, _, covariance = lime.fit(masks, lime.kernel(masks), outputs, ridge=0.0)
    assert len(set(coef[0])) == 6
    told = [lime.Stop(top_k=k).met(coef, covariance) for k in range(1, 6)]
    assert told == [True, False, False, True, False]


def test_fewer_positive_coefficients_than_k_are_told_apart_as_any_others():
    slopes = [2.0, -1.0, -3.0, -6.0]

    def model(batch):
        return batch @ torch.tensor(slopes, dtype=batch.dtype)[:, None]

    found = lime.explain(
        model, np.ones(4), Components(np.arange(4)), targets=0, filler=0.0, ridge=0.0,
        stop=lime.Stop(top_k=2),
    )  # fmt: skip
    assert found.converged is True and lime.top_k(found.coef, 2) == {0}


def test_top_k_of_the_rule_is_an_integer():
    with pytest.raises(ValueError, match="top_k must be an integer"):
        lime.Stop(top_k=2.5)
