"""Every fact about LIME's limit on small runs, and that each leaves its rule when broken."""

import inspect
import math
from pathlib import Path

import numpy as np
import pytest
import skimage.segmentation
from scipy.stats import binom

from xaiutils import designs, lime, limit
from xaiutils.companion import claims
from xaiutils.studies.limit import facts
from xaiutils.studies.limit import models as lime_models

LEDGER = {
    claim.id: claim
    for claim in claims.load(Path(__file__).parents[3] / "notebooks" / "claims.toml").values()
    if claim.paper == 2
}
# Measured on the notebook's own figures, with real models and data.
FROM_FIGURES = {
    "lime-shape-prop3",
    "lime-linear-exact",
    "lime-linear-exact-fit",
    "lime-linear-exact-package",
    "lime-ig-small-nets",
    "lime-ig-large-nets",
}
FROM_FIGURES |= {
    f"lime-{n}-{kind}" for n in ("eighth", "sixteenth") for kind in ("photographs", "digits")
}
FROM_FIGURES |= {
    f"lime-{asks}-{kind}"
    for asks in ("eighth", "quarter", "errors-regression", "errors-surrogate")
    for kind in ("superpixels", "digits-36", "excerpts")
}
FROM_FIGURES |= {
    f"lime-beside-{whom}-{kind}"
    for whom in ("captum", "shapiq")
    for kind in ("photographs", "digits")
}
FEW = {"runs": 12, "sizes": (5, 8), "n": 4000}


@pytest.fixture(autouse=True)
def fresh():
    """No test sees runs that another one cached, broken or not."""
    yield
    lime_models.repeats.cache_clear()
    lime_models.agreement.cache_clear()


def verdict(name, measured):
    return LEDGER["lime-" + name.replace("_", "-")].verdict(measured.low, measured.high)


def test_every_claim_has_its_fact():
    public = [
        name
        for name, value in vars(facts).items()
        if inspect.isfunction(value) and value.__module__ == facts.__name__ and name[0] != "_"
    ]
    assert {"lime-" + name.replace("_", "-") for name in public} == set(LEDGER) - FROM_FIGURES
    assert set(LEDGER) >= FROM_FIGURES


HOLDING = {
    "alpha_closed_form": {"sizes": (1, 2, 7)},
    "limit_is_wls": {"sizes": (2, 7)},
    "bound_loose": {"n_models": 2, "d": 9},
    "shape_halving": {},
    "shape_halving_off": {},
    "large_d": {},
    "large_d_rises": {},
    "not_local": {"sizes": (10, 33, 300)},
    "ridge_default": {"sizes": (30, 33, 300)},
    "ridge_small_nu": {},
    "nu_inf_banzhaf": {"n_models": 2, "d": 6},
    "nu_zero_occlusion": {"n_models": 2},
    "coin_bias": {"sizes": (8,), "n_models": 2},
    "ig_additive": {"n_models": 1, "d": 5},
    "ig_pairwise": {"n_models": 3, "d": 6},
    "ig_gap_grows": {"n_models": 20, "d": 9},
    "converges": FEW,
    "converges_slope": {"sizes": (250, 1000, 4000), "d": 6},
    "one_run_noise_many": {"n": 200, "many": 4000, "n_models": 15},
    "pkg_equality": {"n_images": 1, "n": 60},
    "pkg_seed": {"seeds": (0, 1)},
    "pkg_slic": {"n": 40},
    "range_segments": {},
    "range_segments_float": {},
}


@pytest.mark.parametrize(("name", "arguments"), HOLDING.items(), ids=HOLDING)
def test_facts_hold_on_small_runs(name, arguments):
    measured = getattr(facts, name)(**arguments)
    assert verdict(name, measured) == "holds"
    assert measured.low <= measured.value <= measured.high
    assert measured.n >= 1


def test_same_seed_gives_the_same_numbers():
    few = {"n": 300, "n_models": 6, "d": 12}
    first = facts.one_run_noise(**few)
    lime_models.agreement.cache_clear()
    assert facts.one_run_noise(**few) == first
    assert facts.one_run_noise(**few, seed=1) != first


def test_more_models_narrow_the_interval():
    few, many = (facts.one_run_noise(n=500, n_models=m, d=12) for m in (10, 80))
    assert many.n == 80
    assert many.high - many.low < few.high - few.low
    assert 0 < many.low < many.value < many.high < 1


# --- values known from elsewhere ------------------------------------------------------------------


def test_one_run_says_nothing_of_others():
    one = facts._resampled(lambda i: float(i.sum()), 1, 0)
    assert one == pytest.approx((0, np.nan, np.nan, 1), nan_ok=True)


def test_values_are_those_of_the_definitions():
    assert facts.large_d(d=10).value == pytest.approx(0.787, abs=5e-4)
    assert facts.large_d_rises(sizes=(10, 30)).value == pytest.approx(0.913 - 0.787, abs=1e-3)
    assert facts.not_local(sizes=(10,)).value == pytest.approx(0.72, abs=0.01)
    assert facts.ridge_small_nu().value == pytest.approx(0.007, abs=5e-4)
    # on-weight at p = 4, d = 100
    assert facts.shape_halving().value == pytest.approx(0.1311 * 8 - 1, abs=1e-3)
    assert facts.shape_halving_off(powers=(2, 3), d=33).value == pytest.approx(7.7514e-5, rel=1e-3)


def test_bound_is_the_order_of_the_theorem():
    measured = facts.bound_loose(n_models=3, d=6)
    rng = np.random.default_rng(0)
    nets = [lime_models.on_masks(lime_models.net(6, rng)) for _ in range(3)]
    clt = [limit.clt_variance(f, 6)[1:].max() * (1.96 / 0.01) ** 2 for f in nets]
    order = 1e4 * 6**7 * math.exp(64) * math.log(8 * 6 / 0.05)
    assert measured.value == pytest.approx(order / max(clt))


def test_gap_of_pairwise_models_grows_with_their_interactions():
    few = {"n_models": 5, "d": 8}
    none, weak, strong = (facts.ig_pairwise_gap(**few, interaction=s).value for s in (0, 0.1, 1))
    assert none < 1e-6 < weak < strong


def test_pairs_gain_more_under_the_default_kernel():
    few = {"n_models": 15, "runs": 3, "n": 400}
    wide, narrow = facts.paired(**few), facts.paired_narrow(**few)
    assert wide.value > 1.1
    assert wide.value > narrow.value
    assert wide.n == 15


def test_pairs_are_drawn(monkeypatch):
    draw = designs.draw
    monkeypatch.setattr(designs, "draw", lambda n, d, design, rng: draw(n, d, "iid", rng))
    assert facts.paired(n_models=30, runs=4, n=300).value == pytest.approx(1, abs=0.12)


# --- each fact fails once what it measures is wrong -----------------------------------------------


def wrong_alpha(p, d, nu=0.25):
    hidden = np.arange(d + 1)
    return np.ldexp(float(binom.pmf(hidden, d, 0.5) @ limit.psi(hidden / d, nu)), -np.asarray(p))


def test_wrong_alpha_is_seen(monkeypatch):
    monkeypatch.setattr(limit, "alpha", wrong_alpha)
    assert verdict("alpha_closed_form", facts.alpha_closed_form(sizes=(4,))) == "fails"


@pytest.mark.parametrize("entry", range(4))
def test_wrong_sigma_is_seen(monkeypatch, entry):
    right = limit.coefficients

    def wrong(d, nu):
        c_d, sigma = right(d, nu)
        sigma[entry] *= -1
        return limit.Coefficients(c_d, sigma)

    monkeypatch.setattr(limit, "coefficients", wrong)
    assert verdict("limit_is_wls", facts.limit_is_wls(sizes=(4,))) == "fails"


def test_wrong_centred_form_is_seen(monkeypatch):
    right = limit.from_moments
    monkeypatch.setattr(
        limit, "from_moments", lambda *a, **k: right(*a, **{**k, "ridge": 1.0, "n": 1000})
    )
    assert verdict("limit_is_wls", facts.limit_is_wls(sizes=(4,))) == "fails"
    assert verdict("ig_pairwise", facts.ig_pairwise(n_models=1, d=4)) == "fails"


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("shape_halving", {"d": 20}),
        ("shape_halving_off", {"d": 20}),
        ("large_d", {"d": 100}),
        ("not_local", {"sizes": (20,), "nu": 0.2}),
        ("ridge_default", {"sizes": (30,), "n": 500}),
        ("ridge_small_nu", {"nu": 0.1}),
        ("nu_inf_banzhaf", {"d": 6, "nu": 1.0}),
        ("nu_zero_occlusion", {"nu": 0.05}),
        ("ig_gap_grows", {"scales": (3.0, 0.3), "n_models": 6, "d": 6}),
        ("one_run_noise", {"n": 50, "n_models": 20}),
        ("one_run_noise_many", {"n": 4000, "many": 200, "n_models": 15}),
    ],
)
def test_facts_fail_outside_their_regime(name, arguments):
    assert verdict(name, getattr(facts, name)(**arguments)) == "fails"


def test_fair_coin_does_not_beat_itself(monkeypatch):
    monkeypatch.setattr(limit, "coin", lambda d, nu: 0.5)
    assert verdict("coin_bias", facts.coin_bias(sizes=(8,), n_models=1)) == "fails"


def test_crude_integral_is_seen(monkeypatch):
    right = limit.integrated_gradients_sums

    def crude(*problem, steps):
        return right(*problem, steps=4)

    monkeypatch.setattr(limit, "integrated_gradients_sums", crude)
    assert verdict("ig_additive", facts.ig_additive(n_models=1, d=4)) == "fails"


def test_runs_with_another_kernel_are_seen(monkeypatch):
    right = lime.kernel
    monkeypatch.setattr(lime, "kernel", lambda masks, width: right(masks, width / 3))
    assert verdict("converges", facts.converges(**FEW)) == "fails"


def test_spread_is_that_of_the_central_limit_theorem(monkeypatch):
    many = {"runs": 80, "sizes": (5, 8), "n": 1000}
    assert facts.converges_sd(**many).value == pytest.approx(1, abs=0.12)
    lime_models.repeats.cache_clear()
    right = limit.clt_variance
    monkeypatch.setattr(limit, "clt_variance", lambda *a: 2 * right(*a))
    assert facts.converges_sd(**many).high < 0.88


def test_error_that_does_not_fall_is_seen(monkeypatch):
    right = lime_models.run
    monkeypatch.setattr(lime_models, "run", lambda f, d, n, seed, **o: right(f, d, 500, seed, **o))
    measured = facts.converges_slope(sizes=(500, 2000, 8000), d=6, runs=15)
    assert verdict("converges_slope", measured) == "fails"


def test_untruncated_means_are_seen(monkeypatch):
    monkeypatch.setattr(lime, "_package_fill", lambda x, components: components.means(x))
    assert verdict("pkg_equality", facts.pkg_equality(n_images=1, n=60)) == "fails"


def test_seed_that_reaches_the_segmentation_is_seen(monkeypatch):
    def seeded(_, random_seed, **options):
        return lambda image: skimage.segmentation.quickshift(image, rng=random_seed, **options)

    monkeypatch.setattr("lime.lime_image.SegmentationAlgorithm", seeded)
    assert verdict("pkg_seed", facts.pkg_seed(seeds=(0, 1))) == "fails"


def test_labels_from_zero_are_hidden_half_of_the_time(monkeypatch):
    algorithm = facts._segmentation

    def from_zero(name, **options):
        return algorithm(name, **options, start_label=0)

    monkeypatch.setattr(facts, "_segmentation", from_zero)
    measured = facts.pkg_slic(n=60)
    assert 15 < measured.value < 45
    assert verdict("pkg_slic", measured) == "fails"
