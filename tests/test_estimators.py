"""Both estimators under every design: exact where they must be, errors that hold, when to stop."""

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from scipy.special import expit
from test_lime import explain_table, sum_of
from threadpoolctl import threadpool_limits

from xaiutils import balance, designs, lime, limit

SURROGATE = {"estimator": "surrogate"}
DESIGNS = ("iid", "paired", "orthogonal", "folded")
WAYS = [
    *[{"design": name} for name in DESIGNS],
    *[{"design": name, "estimator": "surrogate"} for name in ("iid", "folded")],
]


def net(d, seed):
    """Probability from a random net, on all masks (2^d,)."""
    rng, masks = np.random.default_rng(seed), limit.masks(d)
    hidden = np.tanh(0.7 * masks @ rng.normal(size=(d, 12)) + rng.normal(size=12))
    return expit(hidden @ rng.normal(size=12))


@pytest.mark.parametrize("link", ["identity", "logit", "best"])
def test_where_all_masks_are_known_the_surrogate_is_the_regression(link):
    options = {"design": "folded", "n_samples": 64, "ridge": 0.0}
    read_off = explain_table(net(6, 1), link=link, **options, **SURROGATE)
    regressed = explain_table(net(6, 1), **options)
    assert len(np.unique(regressed.masks, axis=0)) == 64
    for name in ("intercept", "coef", "score", "local_prediction"):
        assert_allclose(getattr(read_off, name), getattr(regressed, name), atol=1e-5)
    assert regressed.stderr.max() < 1e-5
    assert read_off.stderr.max() < 1e-3


@pytest.mark.parametrize("options", [{"ridge": 0.0}, SURROGATE])
def test_a_linear_model_is_exact_at_the_least_folded_array(options):
    slopes = np.random.default_rng(2).normal(size=14)
    found = explain_table(limit.masks(14) @ slopes, design="folded", n_samples=32, **options)
    assert_allclose(found.coef, slopes, atol=2e-3)
    assert found.stderr.max() < 0.05


@pytest.mark.parametrize("options", [*WAYS[2:], {"design": "paired", **SURROGATE}])
def test_intervals_cover_the_limit_of_random_nets(options):
    inside = []
    for seed in range(12):
        table = net(10, seed)
        truth = limit.exact(limit.lookup(table), 10).coef
        found = explain_table(table, n_samples=128, ridge=0.0, seed=seed, **options)
        inside.append(np.abs(found.coef - truth) < 1.96 * found.stderr)
    assert np.mean(inside) > 0.88


def test_errors_of_balanced_masks_are_those_of_their_spread():
    table, claimed, found = net(10, 3), [], []
    for seed in range(20):
        run = explain_table(table, design="folded", n_samples=128, ridge=0.0, seed=seed)
        claimed.append(np.square(run.stderr))
        found.append(run.coef)
    truth = limit.exact(limit.lookup(table), 10).coef
    ratio = np.sqrt(np.mean(claimed) / np.mean(np.square(found - truth)))
    assert 0.8 < ratio < 1.6


def test_the_error_vanishes_where_nothing_is_left_out():
    variances = []
    for n in (64, 512):  # of 256
        masks = designs.draw(n, 8, "folded", np.random.default_rng(0))
        covariance = balance.covariance(masks, limit.lookup(net(8, 4))(masks))
        variances.append(np.diag(covariance).max())
    assert variances[0] > 1e-5 and variances[1] < 1e-10


@pytest.mark.parametrize("options", WAYS)
def test_bytes_depend_on_the_seed_and_not_on_threads(options):
    table = net(13, 5)

    def run(seed, threads):
        with threadpool_limits(threads):
            return explain_table(table, n_samples=256, seed=seed, **options)

    one, two, other = run(4, 1), run(4, 2), run(5, 1)
    for name in ("masks", "intercept", "coef", "covariance", "score"):
        assert_array_equal(getattr(one, name), getattr(two, name))
    assert (one.coef != other.coef).any()


@pytest.mark.parametrize("options", WAYS)
def test_the_rule_stops_when_ranks_are_clear_and_not_when_they_tie(options):
    stop = lime.Stop(top_k=2, max_samples=128)
    clear = sum_of([8, 7, 2, 1, 0, 0, 0, 0], noise=0.3)
    found = explain_table(clear, n_samples=64, stop=stop, **options)
    assert found.converged is True and len(found.masks) == 64
    tied = sum_of([8, 7, 7, 1, 0, 0, 0, 0], noise=0.3)
    found = explain_table(tied, n_samples=64, stop=stop, seed=1, **options)
    assert found.converged is False and len(found.masks) == 128


@pytest.mark.parametrize("options", WAYS[2:])
def test_the_rule_stops_earlier_with_the_errors_of_balanced_masks(options):
    stop = lime.Stop(stderr=0.01, max_samples=4096)
    found = explain_table(net(8, 6), n_samples=64, stop=stop, **options)
    plain = explain_table(net(8, 6), n_samples=64, stop=stop)
    assert found.converged and plain.converged
    assert len(found.masks) < 0.8 * len(plain.masks)


def test_the_surrogate_asks_the_model_no_more():
    asked = []

    def model(batch):
        asked.append(len(batch))
        return expit(batch.numpy().sum(axis=1, keepdims=True))

    found = lime.explain(
        model, np.linspace(-1, 1, 8), lime.Components(np.arange(8)), targets=0, filler=0.0,
        n_samples=40, batch_size=40, **SURROGATE,
    )  # fmt: skip
    plain = lime.explain(
        model, np.linspace(-1, 1, 8), lime.Components(np.arange(8)), targets=0, filler=0.0,
        n_samples=40, batch_size=40,
    )  # fmt: skip
    assert len(asked) % 2 == 0 and sum(asked[: len(asked) // 2]) == sum(asked[len(asked) // 2 :])
    assert_array_equal(found.masks, plain.masks)
    assert_array_equal(found.outputs, plain.outputs)


@pytest.mark.parametrize("options", WAYS)
def test_each_output_is_explained_as_if_alone_and_constant_ones_have_no_effects(options):
    tables = np.column_stack([net(8, 7), np.full(256, 0.3), net(8, 8)])
    found = explain_table(tables, targets=[2, 1, 0], n_samples=64, **options)
    alone = explain_table(tables, targets=2, n_samples=64, **options)
    assert_allclose(found.coef[0], alone.coef, rtol=1e-9)
    assert_allclose(found.covariance[0], alone.covariance, rtol=1e-6)
    assert_array_equal(found.coef[1], 0)
    assert np.isnan(found.stderr[1]).all() and np.isnan(found.score[1])
    assert found.intercept[1] == pytest.approx(0.3)
    assert np.isfinite(found.stderr[[0, 2]]).all() and (found.score[[0, 2]] <= 1).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"estimator": "forest"},
            '^estimator must be "regression" or "surrogate", got \'forest\'$',
        ),
        (
            {"package_exact": True, **SURROGATE},
            "^estimator must be \"regression\" with package_exact, got 'surrogate'$",
        ),
        ({"link": "probit"}, '^link must be "identity", "logit" or "best", got \'probit\'$'),
        ({"link": "logit"}, '^link must be "best" with estimator="regression".*got \'logit\'; '),
        ({"link": "identity"}, '^link must be "best".*got \'identity\'; estimator="surrogate"'),
        (
            {"kernel_width": 1e-3, "n_samples": 64, **SURROGATE},
            "^kernel_width must leave weight on more than 8 of 256 masks, got 0.001$",
        ),
        ({"n_samples": 1, **SURROGATE}, "n_samples.*within 2..4096.*got 1$"),
        ({"n_samples": 5000, **SURROGATE}, "n_samples.*within 2..4096.*got 5000$"),
        ({"stop": lime.Stop(top_k=1), **SURROGATE}, "max_samples.*within 2..4096.*got 20000$"),
        ({"design": "folded", "n_samples": 100}, "such as 96 or 128, got 100$"),
        ({"design": "orthogonal", "n_samples": 100}, "such as 64 or 128, got 100$"),
        ({"design": "paired", "n_samples": 33}, "such as 32 or 34, got 33$"),
    ],
)
def test_what_cannot_be_estimated_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        explain_table(net(8, 9), **options)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (3 * net(8, 9), r'^model\'s outputs must lie in \[0, 1\] for link="logit", got '),
        (1e-9 * net(8, 9), "^model's outputs must differ within "),
    ],
)
def test_outputs_without_a_logit_are_called_what_the_caller_calls_them(table, message):
    with pytest.raises(ValueError, match=message):
        explain_table(table, n_samples=64, link="logit", **SURROGATE)


def test_a_rare_answer_has_standard_errors():
    rare = (limit.masks(12)[:, :11].sum(axis=1) > 10).astype(float)  # 2 of 4,096 masks
    found = explain_table(rare, n_samples=2048, ridge=0.0, design="folded")
    assert np.ptp(found.outputs) == 1
    assert np.isfinite(found.stderr).all() and found.stderr.min() > 0


def test_the_free_sample_is_no_error_of_the_regression():
    """Beyond d = 12 the limit is read at a sample of masks; many known ones err less than it."""

    def f(masks):
        return expit(2 * (2.0 * masks - 1) @ slopes)

    slopes = np.random.default_rng(7).normal(size=16) / 4
    truth = limit.exact(f, 16).coef
    claimed, errors = [], []
    for seed in range(4):
        masks = designs.draw(2048, 16, "folded", np.random.default_rng(seed))
        claimed.append(np.diagonal(balance.covariance(masks, f(masks), seed=seed))[1:])
        coef = lime.fit(masks, lime.kernel(masks), f(masks)[:, None], 0.0).coef[0]
        errors.append(np.square(coef - truth))
    ratio = np.sqrt(np.mean(claimed) / np.mean(errors))
    assert 0.8 < ratio < 2.5


def test_beyond_its_masks_the_balance_is_left_out():
    options = {"n_samples": 8192, "ridge": 0.0, "design": "folded"}
    found = explain_table(net(6, 0), **options)
    plain = lime.fit(found.masks, found.weights, found.outputs[:, None], 0.0)
    assert_allclose(found.covariance, plain.covariance[0], atol=1e-15)


def test_too_many_components_are_refused_before_the_model_is_asked():
    def model(batch):
        raise AssertionError

    cells = lime.Components(np.arange(1001))
    with pytest.raises(ValueError, match='at most 1000 for estimator="surrogate", got 1001'):
        lime.explain(model, np.ones(1001), cells, targets=0, filler=0.0, n_samples=64, **SURROGATE)
