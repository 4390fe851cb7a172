"""The regression with fewer masks than components, and what it refuses."""

import numpy as np
import oracles
import pytest
from numpy.testing import assert_allclose
from scipy.special import expit

from xaiutils import designs, lime, limit, regression


@pytest.mark.parametrize(
    ("n", "d"), [(1, 1), (1, 5), (2, 5), (40, 41), (41, 41), (42, 41), (60, 300)]
)
@pytest.mark.parametrize("ridge", [1e-6, 1.0, 1e4])
def test_fewer_masks_than_components_give_the_same_ridge_regression(n, d, ridge):
    rng = np.random.default_rng(n + d)
    masks, weights = rng.random((n, d)) < 0.5, rng.uniform(0.1, 1, n)
    outputs = rng.normal(size=(n, 3)) + 5
    intercept, coef, score, covariance = lime.fit(masks, weights, outputs, ridge)
    expected = oracles.ridge_lstsq(masks, weights, outputs, ridge)
    assert_allclose(np.column_stack([intercept, coef]), expected.T, rtol=1e-6, atol=1e-9)
    assert coef.shape == (3, d) and covariance.shape == (3, d + 1, d + 1)
    assert np.isnan(covariance).all()
    if n > 1:
        residual = outputs - expected[0] - masks @ expected[1:]
        spread = outputs - weights @ outputs / weights.sum()
        assert_allclose(score, 1 - weights @ residual**2 / (weights @ spread**2), atol=1e-8)


def test_the_covariance_is_computed_when_it_is_asked_for(monkeypatch):
    rng = np.random.default_rng(0)
    masks = rng.random((40, 6)) < 0.5
    found = lime.fit(masks, np.ones(40), rng.normal(size=(40, 2)))
    monkeypatch.setattr(regression, "cho_solve", None)
    assert np.isfinite(found.coef).all()
    with pytest.raises(TypeError):
        _ = found.covariance
    monkeypatch.undo()
    assert found.covariance is found.covariance is tuple(found)[3]


def test_a_square_system_is_interpolated_without_a_ridge():
    masks = np.vstack([np.zeros((1, 8), bool), np.eye(8, dtype=bool)])
    slopes = np.arange(8.0)
    intercept, coef, _, covariance = lime.fit(masks, np.ones(9), (masks @ slopes + 2)[:, None], 0.0)
    assert_allclose(coef[0], slopes, atol=1e-12)
    assert intercept[0] == pytest.approx(2) and np.isnan(covariance).all()


def designs_of_any_rank():
    rng = np.random.default_rng(4)
    for d in (2, 5, 12, 40):
        for n in (d - 1, d, d + 1, d + 2, 2 * d, 3 * d):
            for _ in range(6):
                yield rng.random((max(n, 1), d)) < 0.5, rng.uniform(0.1, 1, max(n, 1))
        twins = rng.random((4 * d, d)) < 0.5
        twins[:, 0] = twins[:, -1]
        yield twins, np.ones(len(twins))
        yield twins, lime.kernel(twins)
        yield designs.draw(2 * (d - 1), d, "paired", rng), np.ones(2 * (d - 1))
        yield np.repeat(rng.random((d, d)) < 0.5, 5, axis=0), rng.uniform(0.1, 1, 5 * d)
        one_on = np.eye(d, dtype=bool)[rng.integers(d, size=4 * d)]  # adds up to the intercept
        yield one_on, rng.uniform(0.1, 1, len(one_on))


def test_without_a_ridge_exactly_the_designs_of_full_rank_are_fitted():
    verdicts = []
    for masks, weights in designs_of_any_rank():
        rows = np.hstack([np.ones((len(masks), 1)), masks])
        full = np.linalg.matrix_rank(rows) == rows.shape[1]
        outputs = np.random.default_rng(5).normal(size=(len(masks), 1))
        try:
            coef = lime.fit(masks, weights, outputs, 0.0).coef
            assert full
            expected = oracles.ridge_lstsq(masks, weights, outputs, 0.0)[1:]
            assert_allclose(coef, expected.T, atol=1e-6)
        except ValueError as error:
            assert not full and "do not determine" in str(error)
        assert np.isfinite(lime.fit(masks, weights, outputs, 1e-3).coef).all()
        verdicts.append(full)
    assert 20 < sum(verdicts) < len(verdicts) - 20


def test_the_error_of_the_solution_itself_is_part_of_the_covariance():
    # without noise the residuals vanish, but no coefficient is known beyond its rounding
    rng = np.random.default_rng(6)
    slopes = rng.normal(size=30)
    for n, offset in ((40, 0.0), (400, 0.0), (400, 1e8)):
        masks = rng.random((n, 30)) < 0.5
        outputs = (offset + masks @ slopes)[:, None]
        _, coef, _, covariance = lime.fit(masks, lime.kernel(masks), outputs, 0.0)
        stderr = np.sqrt(np.diag(covariance[0]))[1:]
        assert (np.abs(coef[0] - slopes) <= 3 * stderr).all()
        assert stderr.max() < 1e-10 * max(offset, 1)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_outputs_that_are_no_numbers_are_refused(bad):
    masks = np.random.default_rng(7).random((50, 4)) < 0.5
    outputs = masks @ np.ones((4, 2))
    outputs[[3, 9, 9], [0, 0, 1]] = bad
    with pytest.raises(ValueError, match=r"outputs must be finite, .* for 2 of 50 masks"):
        lime.fit(masks, np.ones(50), outputs)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -1.0])
def test_weights_that_are_none_are_refused(bad):
    masks = np.random.default_rng(7).random((50, 4)) < 0.5
    weights = np.ones(50)
    weights[7] = bad
    with pytest.raises(ValueError, match="weights must be finite, not negative and not all 0"):
        lime.fit(masks, weights, masks @ np.ones((4, 1)))
    with pytest.raises(ValueError, match="kernel_width may be too small"):
        lime.fit(masks, np.zeros(50), masks @ np.ones((4, 1)))


@pytest.mark.parametrize(
    "shapes", [((5, 3), (5,), (5,)), ((5, 3), (5,), (4, 1)), ((5, 3), (4,), (5, 1)),
               ((15,), (5,), (5, 1)), ((0, 3), (0,), (0, 1))]
)  # fmt: skip
def test_shapes_that_do_not_fit_are_named(shapes):
    with pytest.raises(ValueError, match=r"must have n > 0 rows, got shapes \("):
        lime.fit(*(np.ones(shape) for shape in shapes))


@pytest.mark.parametrize("ridge", [-1.0, np.nan, np.inf])
def test_a_ridge_that_is_none_is_refused(ridge):
    with pytest.raises(ValueError, match="ridge must be finite and not negative"):
        lime.fit(np.eye(3), np.ones(3), np.ones((3, 1)), ridge)


def coverage(n, d, runs, group=1):
    """Share of coefficients of random nets on the cube within 1.96 standard errors of the limit."""
    inside = []
    for seed in range(runs):
        rng = np.random.default_rng([n, d, seed])
        first, shift, last = rng.normal(size=(d, 12)), rng.normal(size=12), rng.normal(size=12)

        def f(z, first=first, shift=shift, last=last):
            return expit(np.tanh(0.7 * z @ first + shift) @ last)

        masks = designs.draw(n, d, "paired" if group == 2 else "iid", rng)
        found = lime.fit(masks, lime.kernel(masks), f(masks)[:, None], 0.0, group=group)
        stderr = np.sqrt(np.diagonal(found.covariance[0]))[1:]
        inside.append(np.abs(found.coef[0] - limit.exact(f, d).coef) < 1.96 * stderr)
    return np.mean(inside)


@pytest.mark.parametrize(
    ("n", "d", "runs"), [(32, 8, 120), (32, 12, 80), (64, 10, 100), (128, 10, 100), (1000, 8, 120)]
)
def test_standard_errors_hold_with_few_masks_too(n, d, runs):
    # With the residuals themselves, however scaled: 0.90 of 32 masks, 0.91 of 64.
    assert 0.93 < coverage(n, d, runs) < 0.985


def test_standard_errors_of_pairs_hold():
    assert 0.92 < coverage(64, 8, 120, group=2) < 0.985


def test_a_mask_that_alone_knows_a_component_has_no_error_of_its_own():
    rng = np.random.default_rng(8)
    masks = rng.random((60, 5)) < 0.5
    masks[:, 0] = np.arange(60) == 7
    outputs = rng.normal(size=(60, 1))
    covariance = lime.fit(masks, np.ones(60), outputs, 0.0).covariance[0]
    others = np.arange(60) != 7
    rest = lime.fit(masks[others][:, 1:], np.ones(59), outputs[others], 0.0).covariance[0]
    known = [0, 2, 3, 4, 5]
    assert_allclose(covariance[np.ix_(known, known)], rest, rtol=1e-6)
