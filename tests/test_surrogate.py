"""The process in place of a model: exact where it must be, honest where it cannot be."""

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from scipy.special import expit

from xaiutils import designs, lime, limit, surrogate


def drawn(n, d, seed=0, design="iid"):
    return designs.draw(n, d, design, np.random.default_rng(seed))


def polynomial(d, seed):
    """Main effects and interactions of two and three components, on masks (m, d)."""
    rng = np.random.default_rng(seed)
    terms = [(rng.choice(d, order, replace=False), rng.normal()) for order in (2, 3) * (d // 2)]
    slopes = 2 * rng.normal(size=d)
    return lambda masks: masks @ slopes + sum(c * masks[:, j].prod(axis=1) for j, c in terms)


@pytest.mark.parametrize("d", [6, 20])
def test_linear_functions_are_found_exactly(d):
    slopes = np.random.default_rng(1).normal(size=d)
    masks = drawn(4 * d, d)
    found = surrogate.fit(masks, 3 + masks @ slopes)
    intercept, coef, covariance = found.lime(n_free=1024)
    assert_allclose(coef, slopes, atol=1e-4)
    assert intercept == pytest.approx(3, abs=1e-3)
    assert np.sqrt(np.diag(covariance)).max() < 1e-2
    for value, stderr in (found.coin_banzhaf(n_free=1024), found.shapley(1024), found.occlusion()):
        assert_allclose(value, slopes, atol=1e-3)
        assert stderr.max() < 1e-2
    other = drawn(50, d, seed=5)
    assert_allclose(found.predict(other)[0], 3 + other @ slopes, atol=1e-2)


@pytest.mark.parametrize("link", ["identity", "logit"])
def test_where_all_masks_are_known_nothing_is_guessed(link):
    masks = limit.masks(6)
    f = polynomial(6, seed=2)
    table = expit(f(masks))
    found = surrogate.fit(masks, table, link=link)
    intercept, coef, covariance = found.lime()
    exact = limit.exact(limit.lookup(table), 6)
    regressed = lime.fit(masks, lime.kernel(masks), table[:, None], ridge=0.0)
    assert_allclose(coef, exact.coef, atol=1e-5)
    assert_allclose(coef, regressed.coef[0], atol=1e-5)
    assert intercept == pytest.approx(exact.intercept, abs=1e-5)
    assert np.abs(covariance).max() < 1e-6
    look = limit.lookup(table)
    for (value, stderr), truth in (
        (found.coin_banzhaf(), limit.coin_banzhaf(look, 6)),
        (found.shapley(), limit.shapley(look, 6)),
        (found.occlusion(), limit.occlusion(look, 6)),
    ):
        assert_allclose(value, truth, atol=1e-5)
        assert stderr.max() < 1e-3
    mean, deviation = found.predict(masks)
    assert_allclose(mean, table, atol=1e-5)
    assert deviation.max() < 1e-3


@pytest.mark.parametrize("design", ["iid", "paired"])
def test_intervals_cover_and_errors_fall(design):
    inside, squared, plain = [], 0.0, 0.0
    for seed in range(10):
        f = polynomial(8, seed)
        masks = drawn(64, 8, seed + 100, design)
        _, coef, covariance = surrogate.fit(masks, f(masks)).lime()
        truth = limit.exact(f, 8).coef
        inside.append(np.abs(coef - truth) < 1.96 * np.sqrt(np.diag(covariance)[1:]))
        squared += np.square(coef - truth).sum()
        regressed = lime.fit(masks, lime.kernel(masks), f(masks)[:, None], ridge=0.0)
        plain += np.square(regressed.coef[0] - truth).sum()
    assert np.mean(inside) > 0.85
    assert squared < plain


def test_the_sigmoid_is_undone_by_the_logit():
    rng = np.random.default_rng(3)
    slopes, masks = 3 * rng.normal(size=8), drawn(64, 8)

    def f(z):
        return expit(z @ slopes - slopes.sum() / 2)

    truth = limit.exact(f, 8).coef
    errors = [
        np.abs(surrogate.fit(masks, f(masks), link=link).lime()[1] - truth).max()
        for link in ("identity", "logit")
    ]
    assert errors[1] < errors[0] / 5


@pytest.mark.parametrize(("scale", "better"), [(1, "logit"), (4, "identity")])
def test_the_better_link_is_found_by_leaving_answers_out(scale, better):
    slopes, masks = np.random.default_rng(3).normal(size=8), drawn(64, 8)
    sigmoid = expit(3 * (masks - 0.5) @ slopes)
    values = sigmoid if better == "logit" else scale * sigmoid  # no probabilities
    found = surrogate.fit(masks, values, link="best")
    assert found.link == better
    tried = surrogate.fit(masks, values, link=better)
    assert found.left_out == tried.left_out
    linear = 0.5 + (masks - 0.5) @ slopes / 20
    assert surrogate.fit(masks, linear, link="best").link == "identity"


def test_values_of_a_coin_that_falls_on_one_side_are_refused():
    with pytest.raises(ValueError, match="q must lie between 0 and 1, got 1"):
        surrogate.fit(drawn(30, 5), np.arange(30.0)).coin_banzhaf(1)


def test_free_masks_agree_with_enumeration(monkeypatch):
    f, masks = polynomial(10, seed=4), drawn(100, 10)
    found = surrogate.fit(masks, f(masks))

    def read():
        return (
            found.lime()[1],
            found.coin_banzhaf()[0],
            found.coin_banzhaf(0.7, 2**14)[0],
            found.shapley()[0],
        )

    exact = read()
    deviation = np.sqrt(np.diag(found.lime()[2]))[1:]
    monkeypatch.setattr(surrogate, "CUBE_D", 0)
    for one, other in zip(exact, read(), strict=True):
        assert_allclose(one, other, atol=0.5 * deviation.max())


def test_the_same_seed_gives_the_same_bytes():
    f, masks = polynomial(15, seed=6), drawn(60, 15)
    one, other = (surrogate.fit(masks, f(masks), seed=4) for _ in range(2))
    assert one.hyperparameters == other.hyperparameters
    for a, b in zip(one.lime(n_free=512, seed=2), other.lime(n_free=512, seed=2), strict=True):
        assert_array_equal(a, b)
    for a, b in zip(one.shapley(512, seed=2), other.shapley(512, seed=2), strict=True):
        assert_array_equal(a, b)
    assert (one.lime(n_free=512, seed=3)[1] != one.lime(n_free=512, seed=2)[1]).any()


def test_answers_to_the_same_mask_are_averaged():
    f, masks = polynomial(5, seed=7), drawn(20, 5)
    masks = np.unique(masks, axis=0)
    values = f(masks)
    once = surrogate.fit(masks, values)
    twice = surrogate.fit(np.repeat(masks, 2, axis=0), np.repeat(values, 2) + [1, -1] * len(masks))
    assert_allclose(twice.lime()[1], once.lime()[1], atol=1e-9)


def test_a_function_without_main_effects_has_none():
    masks = limit.masks(4)
    found = surrogate.fit(masks, masks.sum(axis=1) % 2)
    assert_allclose(found.relevances, 0.25)
    assert_allclose(found.coin_banzhaf()[0], 0, atol=1e-9)


@pytest.mark.parametrize("link", ["identity", "logit"])
@pytest.mark.parametrize("d", [5, 15])
def test_constant_values_have_no_effects_and_no_deviations(link, d):
    found = surrogate.fit(drawn(30, d), np.full(30, 0.3), link=link)
    intercept, coef, covariance = found.lime(n_free=256)
    assert intercept == pytest.approx(0.3) and np.isnan(covariance).all()
    assert_array_equal(coef, 0)
    for value, stderr in (found.coin_banzhaf(n_free=256), found.shapley(256), found.occlusion()):
        assert_array_equal(value, 0)
        assert np.isnan(stderr).all()
    mean, deviation = found.predict(drawn(3, d))
    assert_allclose(mean, 0.3)
    assert np.isnan(deviation).all()


MASKS = np.eye(4, dtype=bool)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"values": [0.1, 0.2, np.nan, 0.3]}, "values must be finite, got nan"),
        ({"values": [0.1, 0.2]}, r"values must have shape \(n,\).*got \(2,\) for 4"),
        ({"masks": MASKS[:1], "values": [0.1]}, "n > 1"),
        ({"masks": MASKS[0]}, r"masks must have shape \(n, d\), got \(4,\)"),
        ({"masks": 2 * MASKS}, "masks must hold only 0 and 1"),
        ({"link": "probit"}, 'link must be "identity", "logit" or "best", got \'probit\''),
        ({"link": "logit", "values": [0.1, 0.2, 0.3, 1.5]}, r"in \[0, 1\].*got 0.1 to 1.5"),
    ],
)
def test_what_cannot_be_fitted_is_refused(given, message):
    with pytest.raises(ValueError, match=message):
        surrogate.fit(**{"masks": MASKS, "values": [0.1, 0.2, 0.3, 0.4], **given})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"width": 0}, "width must be positive, got 0"),
        ({"width": 1e-3}, "width must leave weight on more than 15"),
        ({"n_free": 63}, r"n_free must be an even integer of at least 4 \(d \+ 1\), got 63"),
        ({"n_free": 101}, "n_free must be an even integer"),
    ],
)
def test_what_cannot_be_read_is_refused(options, message):
    found = surrogate.fit(drawn(30, 15), np.arange(30.0))
    with pytest.raises(ValueError, match=message):
        found.lime(**options)
    with pytest.raises(ValueError, match=r"masks must have shape \(n, 15\), got \(4, 4\)"):
        found.predict(MASKS)


@pytest.mark.parametrize("values", [lambda s: 1e-9 * s, lambda s: 1 - 1e-9 * s])
def test_what_varies_only_near_0_or_1_is_not_lost_in_a_logit(values):
    masks, slopes = drawn(64, 6), np.arange(1.0, 7.0)
    found = surrogate.fit(masks, values(masks @ slopes), link="best")
    assert found.link == "identity"
    sign = np.sign(values(1.0) - values(0.0))
    assert_allclose(found.lime()[1], 1e-9 * sign * slopes, rtol=1e-4)
    with pytest.raises(ValueError, match=r"values must differ within \[1e-06, 0.999999\] for link"):
        surrogate.fit(masks, values(masks @ slopes), link="logit")


def test_masks_beyond_the_most_are_refused_and_predicted_in_blocks(monkeypatch):
    with pytest.raises(ValueError, match="at most 4096 different ones, got 4097"):
        surrogate.fit(limit.masks(13)[:4097], np.arange(4097.0))
    f, masks = polynomial(8, 0), drawn(40, 8)
    found, others = surrogate.fit(masks, f(masks)), drawn(100, 8, seed=1)
    whole = found.predict(others)
    monkeypatch.setattr(surrogate, "MOST", 30)
    for one, other in zip(found.predict(others), whole, strict=True):
        assert_allclose(one, other, rtol=1e-10)


def test_a_coin_that_keeps_all_is_named():
    masks = drawn(64, 13)
    found = surrogate.fit(masks, polynomial(13, 0)(masks))
    with pytest.raises(ValueError, match=r"q must keep and hide .* got 0.9999"):
        found.coin_banzhaf(0.9999)


def test_a_kernel_that_rounding_breaks_gets_more_noise(monkeypatch):
    masks = drawn(40, 8)
    plain = surrogate.fit(masks, polynomial(8, 0)(masks))
    factored, calls = surrogate.dpotrf, []

    def failing(kernel, **options):
        calls.append(np.diagonal(kernel).mean())
        found, info = factored(kernel, **options)
        return found, info if len(calls) > 1 else 7

    monkeypatch.setattr(surrogate, "dpotrf", failing)
    found = surrogate.fit(masks, polynomial(8, 0)(masks))
    assert len(calls) == 2
    assert found.hyperparameters.noise == pytest.approx(10 * plain.hyperparameters.noise)


@pytest.mark.parametrize("d", [8, 14])
def test_a_large_offset_costs_no_digits(d):
    rng = np.random.default_rng(17)
    masks = designs.draw(64, d, "folded", rng)
    values = np.tanh((2.0 * masks - 1) @ rng.normal(size=(d, 4)) / 2).sum(axis=1)
    values = np.round(values * 2**12) / 2**12  # which 1e12 can be added to without rounding
    plain, far = surrogate.fit(masks, values), surrogate.fit(masks, values + 1e12)
    for read in ("lime", "shapley", "coin_banzhaf", "occlusion"):
        *_, expected, spread = getattr(plain, read)()
        *_, found, far_spread = getattr(far, read)()
        assert_allclose(found, expected, atol=1e-3 * np.abs(expected).max())
        assert_allclose(far_spread, spread, rtol=1e-2, atol=1e-2 * spread.max())
    assert far.lime()[0] == pytest.approx(1e12 + plain.lime()[0], rel=1e-15)
