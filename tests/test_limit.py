"""The closed forms of LIME's limit against enumeration, exact integers and golden numbers."""

import json
import math
from pathlib import Path

import numpy as np
import oracles
import pytest
import torch
from numpy.testing import assert_allclose

from xaiutils import attribution, limit
from xaiutils.perturb import Components

GOLD = json.loads((Path(__file__).parent / "golden" / "lime_limit.json").read_text())
WIDTHS = [0.1, 0.25, 1.0, 10.0]


def beta_of(answer):
    """A Limit as one vector, intercept first."""
    return np.concatenate([[answer.intercept], answer.coef])


def random_table(d, seed=0):
    return np.random.default_rng(seed).random(2**d)


def beta_of_table(table, nu=0.25, **options):
    d = int(math.log2(len(table)))
    return beta_of(limit.exact(limit.lookup(np.asarray(table)), d, nu, **options))


# --- alpha and the sigmas -------------------------------------------------------------------------


@pytest.mark.parametrize("entry", GOLD["coefficients"], ids=lambda e: f"d{e['d']}-nu{e['nu']}")
def test_coefficients_are_golden(entry):
    d, nu = entry["d"], entry["nu"]
    assert_allclose(limit.alpha(np.arange(5), d, nu), entry["alpha"], rtol=1e-11)
    ours = limit.coefficients(d, nu)
    assert ours.c_d == pytest.approx(entry["c_d"], rel=1e-11)
    assert_allclose(ours.sigma[:3], entry["sigma"][:3], rtol=1e-11)
    slack = {"rtol": 0, "atol": 1e-13} if nu == 1000 else {"rtol": 1e-11}
    assert_allclose(ours.sigma[3], entry["sigma"][3], **slack)


@pytest.mark.parametrize("entry", GOLD["coefficients_large_d"], ids=lambda e: f"d{e['d']}")
def test_coefficients_of_many_superpixels_are_golden(entry):
    d, nu = entry["d"], entry["nu"]
    assert_allclose(limit.alpha(np.arange(5), d, nu), entry["alpha"], rtol=1e-10)
    ours = limit.coefficients(d, nu)
    assert ours.c_d == pytest.approx(entry["c_d"], rel=1e-7)
    assert_allclose(ours.sigma[:3], entry["sigma"][:3], rtol=1e-7)
    assert ours.sigma[3] == pytest.approx(entry["sigma"][3], rel=1e-4)


@pytest.mark.parametrize("nu", WIDTHS)
@pytest.mark.parametrize("d", [1, 2, 7, 12])
def test_alpha_is_the_mean_of_its_definition(d, nu):
    rows = oracles.cube(d)
    mass = oracles.weights_of(rows, nu) / 2**d
    expected = [math.fsum(mass * rows[:, :p].prod(axis=1)) for p in range(d + 1)]
    assert_allclose(limit.alpha(np.arange(d + 1), d, nu), expected, rtol=1e-10)
    assert limit.alpha(d, d, nu) == pytest.approx(2.0**-d, rel=1e-12)


@pytest.mark.parametrize("d", [60, 1023, 1024, 1500])
def test_alpha_has_the_value_of_exact_integers(d):
    for p in (0, 1, 2, 17, d // 4):
        expected = oracles.alpha_by_integers(p, d, 0.25)
        assert limit.alpha(p, d) == pytest.approx(expected, rel=1e-10)


def test_alpha_of_5000_superpixels_is_finite_and_decreasing():
    p = np.concatenate([np.arange(100), np.arange(100, 5001, 50)])
    values = limit.alpha(p, 5000)
    assert values.shape == p.shape
    assert np.isfinite(values).all()
    assert (np.diff(values[p <= 1000]) < 0).all()  # beyond, 2^-p leaves the doubles
    assert (np.diff(values) <= 0).all()
    assert values[-1] >= 0


def test_alpha_keeps_the_shape_of_p():
    assert np.ndim(limit.alpha(2, 6)) == 0
    assert limit.alpha(np.array([3, 0]), 6).tolist() == [limit.alpha(3, 6), limit.alpha(0, 6)]


@pytest.mark.parametrize(
    ("p", "d", "nu"),
    [(-1, 5, 0.25), (6, 5, 0.25), ([0, 6], 5, 0.25), (0, 0, 0.25), (1, 5, 0.0), (1, 5, -1.0)],
)
def test_alpha_refuses_impossible_arguments(p, d, nu):
    with pytest.raises(ValueError, match="nu" if nu <= 0 else "d" if d < 1 else "p"):
        limit.alpha(np.array(p) if isinstance(p, list) else p, d, nu)


@pytest.mark.parametrize("nu", WIDTHS)
@pytest.mark.parametrize("d", [2, 5, 9])
def test_sigmas_are_the_entries_of_the_inverse_matrix(d, nu):
    rows = np.hstack([np.ones((2**d, 1)), oracles.cube(d)])
    mass = oracles.weights_of(rows[:, 1:], nu) / 2**d
    inverse = np.linalg.inv((rows.T * mass) @ rows)
    on = rows[:, 1:].sum(axis=1)
    c_d = ((mass.sum()) * (mass @ on**2) - (mass @ on) ** 2) / d
    ours = limit.coefficients(d, nu)
    assert ours.c_d == pytest.approx(c_d, rel=1e-8)
    expected = c_d * np.array([inverse[0, 0], inverse[0, 1], inverse[1, 1], inverse[1, 2]])
    assert_allclose(ours.sigma, expected, rtol=1e-7, atol=1e-9)


def test_many_superpixels_approach_the_printed_limits():
    nu = 0.25
    half = math.exp(-((1 - 1 / math.sqrt(2)) ** 2) / (2 * nu**2))
    ratios = [limit.coefficients(d, nu).c_d / (half**2 / 4) for d in (10, 30, 100, 300, 1000)]
    assert_allclose(ratios, [0.787, 0.913, 0.972, 0.990, 0.997], atol=6e-4)
    sigma = limit.coefficients(2000, nu).sigma
    assert_allclose(sigma[1:3], [-half / 2, half], rtol=3e-3)
    assert 2000**2 * sigma[3] == pytest.approx(half / (4 * math.sqrt(2) * nu**2), rel=0.02)


def test_wide_kernel_gives_the_plain_coefficients():
    ours = limit.coefficients(8, 1e4)
    assert ours.c_d == pytest.approx(0.25, abs=1e-6)
    assert_allclose(ours.sigma[1:], [-0.5, 1.0, 0.0], atol=1e-6)


@pytest.mark.parametrize(
    ("nu", "expected"),
    [
        (0.25, [0.572, 0.539, 0.516, 0.508, 0.504]),
        (0.10, [0.725, 0.652, 0.580, 0.545, 0.524]),
        (0.05, [0.859, 0.790, 0.694, 0.629, 0.579]),
    ],
)
def test_coin_has_the_tabulated_bias(nu, expected):
    assert_allclose([limit.coin(d, nu) for d in (10, 20, 50, 100, 200)], expected, atol=6e-4)


def test_default_coin_is_within_the_first_order_bias_of_a_fair_one():
    slope = (math.sqrt(2) - 1) / (8 * 0.25**2)
    for d in (10, 33, 100, 1000):
        assert 0 < limit.coin(d) - 0.5 <= slope / d * 1.005
    assert (limit.coin(4000) - 0.5) * 4000 == pytest.approx(slope, rel=2e-3)


@pytest.mark.parametrize(
    ("nu", "contrasts", "common"),
    [
        (0.25, [0.992, 0.992, 0.992], None),
        (0.10, [0.898, 0.859, 0.834], (0.860, 0.812)),
        (0.05, [0.069, 0.007, 0.0013], (0.036, 0.0009)),
    ],
)
def test_ridge_keeps_the_tabulated_shares(nu, contrasts, common):
    shares = [limit.kept(d, nu, n=1000, ridge=1.0) for d in (30, 60, 100)]
    assert_allclose([s[0] for s in shares], contrasts, atol=6e-4)
    if common:
        assert_allclose([shares[0][1], shares[2][1]], common, atol=6e-4)
    else:
        assert all(0.9905 <= s[1] <= 0.9925 for s in shares)


@pytest.mark.parametrize("nu", [0.1, 0.25])
def test_kept_shares_are_what_the_ridge_does_to_a_linear_model(nu):
    d, n = 8, 300
    contrast = np.array([1.0, -1, 2, -2, 0.5, -0.5, 0, 0])
    for slope, share in zip([contrast, np.ones(d)], limit.kept(d, nu, n=n, ridge=2.0), strict=True):
        shrunk = oracles.limit_by_lstsq(oracles.cube(d) @ slope, nu, ridge=2.0, n=n)[1:]
        assert_allclose(shrunk, share * slope, atol=1e-10)


# --- the cube -------------------------------------------------------------------------------------


def test_masks_are_binary_digits_least_significant_first():
    masks = limit.masks(6)
    assert masks.dtype == bool
    assert (masks == oracles.cube(6)).all()


@pytest.mark.parametrize(
    "call", [limit.masks, lambda d: limit.exact(lambda z: z[:, 0].astype(float), d)]
)
def test_more_than_22_superpixels_are_refused(call):
    with pytest.raises(ValueError, match="22"):
        call(23)


@pytest.mark.parametrize("outputs", [(), (3,)])
def test_tabulate_reads_every_mask_once_in_order(outputs):
    table = np.random.default_rng(1).random((32, *outputs))
    sizes = []

    def f(z):
        sizes.append(len(z))
        return table[(z * 2 ** np.arange(5)).sum(axis=1)]

    assert_allclose(limit.tabulate(f, 5, batch_size=7), table, rtol=0)
    assert sum(sizes) == 32 and max(sizes) <= 7


def test_lookup_reads_the_table_at_any_rows():
    table = random_table(5)
    order = np.random.default_rng(2).permutation(32)
    assert_allclose(limit.lookup(table)(limit.masks(5)[order]), table[order], rtol=0)


# --- the limit of any function --------------------------------------------------------------------


@pytest.mark.parametrize("nu", WIDTHS)
@pytest.mark.parametrize("d", [2, 5, 10])
def test_limit_is_least_squares_on_the_cube(d, nu):
    table = random_table(d, seed=d)
    expected = oracles.limit_by_lstsq(table, nu)
    assert oracles.relative_error(beta_of_table(table, nu), expected) < 1e-9
    # and the sigma form, written with sums over the other superpixels
    mass = oracles.weights_of(oracles.cube(d), nu) / 2**d
    mean, joint = mass @ table, (mass * table) @ oracles.cube(d)
    c_d, sigma = limit.coefficients(d, nu)
    explicit = [
        sigma[1] * mean + sigma[2] * joint[j] + sigma[3] * sum(joint[k] for k in range(d) if k != j)
        for j in range(d)
    ]
    intercept = sigma[0] * mean + sigma[1] * sum(joint)
    assert oracles.relative_error(np.array([intercept, *explicit]) / c_d, expected) < 1e-7


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({}, "beta"),
        ({"ridge": 1.0, "n": 1000}, "beta_ridge_lambda1_n1000"),
        ({"ridge": 1.0, "n": 1000, "first_row": True}, "beta_package_lambda1_n1000_first_row"),
    ],
)
@pytest.mark.parametrize("entry", GOLD["functions"], ids=lambda e: e["id"])
def test_limit_of_golden_functions(entry, options, key):
    table = golden_table(entry["id"])
    for case in entry["limits"]:
        assert_allclose(beta_of_table(table, case["nu"], **options), case[key], atol=1e-11)


@pytest.mark.parametrize("entry", GOLD["functions"], ids=lambda e: e["id"])
def test_golden_variances_and_other_values(entry):
    d, f = entry["d"], limit.lookup(golden_table(entry["id"]))
    for case in entry["limits"]:
        ours = limit.clt_variance(f, d, case["nu"])
        assert_allclose(ours, case["clt_variance_diagonal"], atol=1e-11, rtol=1e-11)
    assert_allclose(limit.coin_banzhaf(f, d, 0.5), entry["banzhaf"], atol=1e-11)
    assert_allclose(limit.shapley(f, d), entry["shapley"], atol=1e-11)
    assert_allclose(limit.occlusion(f, d), entry["occlusion"], atol=1e-11)


def golden_table(name):
    """The tables of the golden functions, each written from its formula in the file."""
    if name == "random_table_d8":
        return np.array(GOLD["random_table"]["values"])
    d = {"interaction_d6": 6, "shape_p3_d9": 9, "two_of_four_d10": 10}[name]
    z = oracles.cube(d).T
    if name == "interaction_d6":
        return z[0] * z[1] + 0.5 * z[2] * (1 - z[3]) + 0.25
    if name == "shape_p3_d9":
        return z[0] * z[1] * z[2]
    return (z[:4].sum(axis=0) >= 2).astype(float)


@pytest.mark.parametrize("nu", [0.1, 0.25, 10.0])
@pytest.mark.parametrize(("ridge", "first_row"), [(0.0, True), (0.7, False), (3.0, True)])
def test_ridge_and_first_row_are_penalised_least_squares(nu, ridge, first_row):
    table = random_table(7, seed=3)
    options = {"ridge": ridge, "n": 50, "first_row": first_row}
    expected = oracles.limit_by_lstsq(table, nu, **options)
    assert_allclose(beta_of_table(table, nu, **options), expected, rtol=1e-9)


@pytest.mark.parametrize("options", [{"ridge": 1.0}, {"first_row": True}])
def test_finite_sample_settings_ask_for_n(options):
    with pytest.raises(ValueError, match=r"\bn\b"):
        beta_of_table(random_table(4), **options)


def test_many_outputs_are_treated_one_by_one():
    tables = np.random.default_rng(4).random((64, 3))
    f = limit.lookup(tables)
    options = {"ridge": 1.0, "n": 200, "first_row": True}
    many = limit.exact(f, 6, **options)
    assert many.intercept.shape == (3,) and many.coef.shape == (3, 6)
    for k in range(3):
        one = limit.lookup(tables[:, k])
        single = limit.exact(one, 6, **options)
        assert np.ndim(single.intercept) == 0 and single.coef.shape == (6,)
        assert many.intercept[k] == pytest.approx(single.intercept, abs=1e-13)
        assert_allclose(many.coef[k], single.coef, atol=1e-13)
        for value in (limit.shapley, limit.occlusion, limit.clt_variance):
            assert_allclose(value(f, 6)[k], value(one, 6), atol=1e-12)
        both = limit.coin_banzhaf(f, 6, 0.3)[k], limit.coin_banzhaf(one, 6, 0.3)
        assert_allclose(*both, atol=1e-12)


@pytest.mark.parametrize("outputs", [(), (2,)])
@pytest.mark.parametrize("options", [{}, {"ridge": 2.0, "n": 80}, {"first_row": True, "n": 80}])
def test_moments_suffice(outputs, options):
    d, nu = 6, 0.2
    tables = np.random.default_rng(5).random((64, *outputs))
    mass = oracles.weights_of(oracles.cube(d), nu) / 2**d
    mean, joint = mass @ tables, (mass * tables.T) @ oracles.cube(d)
    first = tables[-1] if "first_row" in options else None
    numbers = {k: v for k, v in options.items() if k != "first_row"}
    ours = limit.from_moments(mean, joint, d, nu, first=first, **numbers)
    expected = oracles.limit_by_lstsq(tables, nu, **options)
    assert_allclose(ours.intercept, expected[0], rtol=1e-10)
    assert_allclose(ours.coef, expected[1:].T, rtol=1e-9, atol=1e-12)


def test_limit_is_linear_in_the_function():
    f, g = 5 * random_table(6, 6) - 2, np.exp(3 * random_table(6, 7))
    combined = beta_of_table(2 * f - 3 * g + 10)
    separate = 2 * beta_of_table(f) - 3 * beta_of_table(g)
    assert_allclose(combined, separate + np.eye(7)[0] * 10, atol=1e-10)


@pytest.mark.parametrize("nu", [0.05, 0.25, 100.0])
def test_constant_function_explains_nothing(nu):
    assert_allclose(beta_of_table(np.full(256, -1.7), nu), [-1.7, *[0] * 8], atol=1e-10)


def test_limit_follows_a_renaming_of_the_superpixels():
    # superpixel j of the renamed problem is superpixel order[j] of the original one
    table, order = random_table(6, 8), np.array([3, 0, 5, 1, 4, 2])
    renamed = limit.exact(lambda z: limit.lookup(table)(z[:, np.argsort(order)]), 6)
    original = limit.exact(limit.lookup(table), 6)
    assert_allclose(renamed.coef, original.coef[order], atol=1e-13)
    assert renamed.intercept == pytest.approx(original.intercept, abs=1e-13)


def test_interchangeable_superpixels_share_a_coefficient():
    z = oracles.cube(7).T
    coef = beta_of_table(np.exp(z[1] + z[4]) * (1 + z[2] * z[6]) + np.sin(z[0]))[1:]
    assert coef[1] == pytest.approx(coef[4], abs=1e-12)
    assert coef[2] == pytest.approx(coef[6], abs=1e-12)
    assert abs(coef[1] - coef[2]) > 0.1


@pytest.mark.parametrize("nu", WIDTHS[1:])
def test_single_superpixel_gets_the_whole_change(nu):
    assert_allclose(beta_of_table(np.array([0.4, 1.6]), nu), [0.4, 1.2], atol=1e-12)
    shrunk = oracles.limit_by_lstsq([0.4, 1.6], nu, ridge=1.0, n=30)
    assert_allclose(beta_of_table([0.4, 1.6], nu, ridge=1.0, n=30), shrunk, atol=1e-12)


@pytest.mark.parametrize("nu", [0.05, 0.25, 1e3])
def test_additive_functions_are_recovered_for_every_width(nu):
    slopes = np.array([2.0, -1.0, 0.0, 0.5, 0.0, 3.0, -4.0])
    beta = beta_of_table(oracles.cube(7) @ slopes + 0.3, nu)
    assert_allclose(beta, [0.3, *slopes], atol=1e-9)


# --- limits in the kernel width and other values --------------------------------------------------


def test_wide_kernel_gives_the_banzhaf_value():
    table = random_table(8, 9)
    rows = oracles.cube(8).astype(bool)
    twice_gain = [2 * (table[rows[:, j]].mean() - table.mean()) for j in range(8)]
    f = limit.lookup(table)
    assert_allclose(limit.exact(f, 8, 1e4).coef, twice_gain, atol=1e-6)
    assert_allclose(limit.coin_banzhaf(f, 8, 0.5), twice_gain, atol=1e-12)
    # the distance to it falls as the square of the width
    gaps = [np.abs(limit.exact(f, 8, nu).coef - twice_gain).max() for nu in (5.0, 10.0)]
    assert gaps[0] / gaps[1] == pytest.approx(4, rel=0.05)


def test_narrow_kernel_gives_occlusion():
    f = limit.lookup(random_table(10, 10))
    gap = np.abs(limit.exact(f, 10, 0.02).coef - limit.occlusion(f, 10)).max()
    assert gap < 1e-3
    assert np.abs(limit.exact(f, 10, 0.05).coef - limit.occlusion(f, 10)).max() > 0.05


def test_occlusion_is_the_loss_of_one_superpixel():
    table = random_table(5, 11)
    expected = [table[31] - table[31 - 2**j] for j in range(5)]
    assert_allclose(limit.occlusion(limit.lookup(table), 5), expected, atol=1e-15)


def test_shapley_is_the_mean_gain_over_all_orders():
    table = random_table(6, 12)
    ours = limit.shapley(limit.lookup(table), 6)
    assert_allclose(ours, oracles.shapley_by_orders(table), atol=1e-12)
    assert ours.sum() == pytest.approx(table[-1] - table[0], abs=1e-12)


@pytest.mark.parametrize("q", [0.5, 0.572, 0.01, 0.99])
def test_coin_banzhaf_is_the_slope_of_the_coin_mean(q):
    table = random_table(6, 13)
    ours = limit.coin_banzhaf(limit.lookup(table), 6, q)
    assert_allclose(ours, oracles.coin_slopes(table, q), atol=1e-12)


@pytest.mark.parametrize("q", [-0.1, 1.5])
def test_coin_must_be_a_probability(q):
    with pytest.raises(ValueError, match="q"):
        limit.coin_banzhaf(limit.lookup(random_table(3)), 3, q)


@pytest.mark.parametrize("d", [8, 12])
def test_biased_coin_is_closer_to_the_limit_than_a_fair_one(d):
    rng, z, nu = np.random.default_rng(14), oracles.cube(d), 0.1
    hidden = np.tanh(z @ rng.normal(size=(d, 16)) * 0.5 + rng.normal(size=16))
    tables = [
        1 / (1 + np.exp(-hidden @ rng.normal(size=16))),
        z[:, :3].prod(axis=1),
        1 / (1 + np.exp(4 - 8 * z.mean(axis=1) - z[:, 0])),
    ]
    for table in tables:
        f = limit.lookup(table)
        reference = limit.exact(f, d, nu).coef
        errors = [
            oracles.relative_error(limit.coin_banzhaf(f, d, q), reference)
            for q in (limit.coin(d, nu), 0.5)
        ]
        assert errors[0] < errors[1]


@pytest.mark.parametrize("nu", [0.1, 0.25, 5.0])
def test_clt_variance_is_the_sandwich_of_the_cube(nu):
    table = random_table(6, 15) ** 3
    ours = limit.clt_variance(limit.lookup(table), 6, nu)
    assert_allclose(ours, oracles.clt_diagonal(table, nu), rtol=1e-8)


# --- detectors ------------------------------------------------------------------------------------


@pytest.mark.parametrize("nu", [0.1, 0.25, 2.0])
@pytest.mark.parametrize(
    ("on", "off"), [([0, 3, 6], []), ([1], [2, 5]), ([], [7]), ([6, 2], [0, 1, 3]), (range(8), [])]
)
def test_detector_is_enumeration(on, off, nu):
    z = oracles.cube(8)
    table = z[:, list(on)].prod(axis=1) * (1 - z[:, list(off)]).prod(axis=1)
    expected = oracles.limit_by_lstsq(table, nu)
    assert_allclose(beta_of(limit.detector(on, off, 8, nu)), expected, atol=1e-10)


def test_detector_without_cut_superpixels_is_a_constant():
    assert_allclose(beta_of(limit.detector([], [], 12)), [1, *[0] * 12], atol=1e-12)


@pytest.mark.parametrize("d", [5, 40])
def test_detector_of_one_superpixel_is_its_indicator(d):
    assert_allclose(beta_of(limit.detector([2], [], d)), np.eye(d + 1)[3], atol=1e-11)
    dark = beta_of(limit.detector([], [2], d))
    assert_allclose(dark, np.eye(d + 1)[0] - np.eye(d + 1)[3], atol=1e-11)


@pytest.mark.parametrize(
    ("d", "p", "on", "off"),
    [
        (9, 3, 0.3345638888521, 0.0028317519970),
        (33, 2, 0.5241059695749, 5.0308e-5),
        (33, 3, 0.2741205233284, 7.7514e-5),
    ],
)
def test_detector_has_the_reference_coefficients(d, p, on, off):
    coef = limit.detector(range(p), [], d).coef
    assert_allclose(coef[:p], on, atol=1e-11)
    assert_allclose(coef[p:], off, atol=5e-10)


def test_detector_weight_halves_with_each_cut_superpixel():
    for p in (1, 2, 3, 4):
        coef = limit.detector(range(p), [], 100).coef
        assert_allclose(coef[:p] / 2.0 ** (1 - p), 1, atol=0.06)
        assert np.abs(coef[p:]).max() < 1e-4


def test_detector_of_many_dark_superpixels_does_not_cancel():
    # f is 1 with probability 2^-60: alternating sums of the alphas would leave 1e-6 or worse
    answer = limit.detector([], range(60), 120)
    assert np.abs(beta_of(answer)).max() < 1e-10


def test_detector_refuses_a_superpixel_both_on_and_off():
    with pytest.raises(ValueError, match=r"on|off"):
        limit.detector([0, 1], [1], 5)


@pytest.mark.parametrize("nu", [0.1, 0.25])
@pytest.mark.parametrize(
    ("h", "members"),
    [
        ([0, 1, 1, 1], [1, 4, 6]),
        ([0, 0, 1, 1], [0, 2, 7]),
        ([0.3, -1.0, 2.0, 0.5, 0.1], [5, 0, 3, 1]),
        ([0.4], []),
        ([0, 0, 0, 0, 1, 0, 0, 0, 2], range(8)),
    ],
)
def test_count_detector_is_enumeration(h, members, nu):
    on = oracles.cube(8)[:, list(members)].sum(axis=1).astype(int)
    expected = oracles.limit_by_lstsq(np.array(h, dtype=float)[on], nu)
    assert_allclose(beta_of(limit.count_detector(h, members, 8, nu)), expected, atol=1e-10)


def test_count_detector_agrees_with_the_shape_detector_for_many_superpixels():
    for d in (60, 1200):
        by_count = limit.count_detector([0, 0, 0, 1], [4, 9, 31], d)
        assert_allclose(beta_of(by_count), beta_of(limit.detector([4, 9, 31], [], d)), atol=1e-9)
        either = beta_of(limit.count_detector([0, 1, 1], [4, 9], d))
        neither = beta_of(limit.detector([], [4, 9], d))
        assert_allclose(either, np.eye(d + 1)[0] - neither, atol=1e-9)


def shape_by_images(image, replacement, support, labels, tau, nu):
    table = oracles.table_of_images(
        lambda x: float((x[support] > tau).all()), image, replacement, labels
    )
    return oracles.limit_by_lstsq(table, nu)


@pytest.mark.parametrize("seed", range(30))
def test_shape_detector_is_the_limit_over_composed_images(seed):
    # values on a coarse grid make exact ties with tau; the image is not square
    rng = np.random.default_rng(seed)
    tau = [0.5, 0.25][seed % 2]
    labels = np.repeat(np.repeat(np.arange(6).reshape(2, 3), 3, axis=0), 2, axis=1)
    levels = np.array([0.25, 0.5, 0.75, 1.0])
    image = rng.choice(levels, size=(6, 6), p=[0.05, 0.15, 0.4, 0.4])
    replacement = rng.choice([0.0, 0.25, 0.5, 1.0], size=(2, 3))[labels // 3, labels % 3]
    support = np.zeros((6, 6), dtype=bool)
    support.flat[rng.choice(36, size=4, replace=False)] = True
    ours = limit.shape_detector(image, replacement, support, Components(labels), tau=tau, nu=0.25)
    expected = shape_by_images(image, replacement, support, labels, tau, 0.25)
    assert_allclose(beta_of(ours), expected, atol=1e-10)


@pytest.mark.parametrize("case", ["halves", "never", "tie", "empty"])
def test_shape_detector_special_cases(case):
    labels = np.repeat(np.arange(5), 2)[None].repeat(3, axis=0)  # (3, 10): wide, not square
    image, replacement = np.full((3, 10), 0.9), np.zeros((3, 10))
    support = np.zeros((3, 10), dtype=bool)
    support[1, 1:9] = True
    if case == "halves":  # superpixel 1 must be off, superpixel 3 is free
        image[:, 2:4], replacement[:, 2:4], replacement[:, 6:8] = 0.1, 0.8, 0.7
    elif case == "never":  # dark in both images
        image[1, 5] = 0.2
    elif case == "tie":  # a pixel equal to tau is dark
        image[1, 3] = 0.5
    else:
        support[:] = False
    ours = beta_of(
        limit.shape_detector(image, replacement, support, Components(labels), tau=0.5, nu=0.3)
    )
    expected = shape_by_images(image, replacement, support, labels, 0.5, 0.3)
    assert_allclose(ours, expected, atol=1e-10)
    assert (np.abs(expected[1:]).max() > 0.01) == (case == "halves")


# --- linear models --------------------------------------------------------------------------------


@pytest.mark.parametrize("nu", [0.05, 0.25, 10.0])
def test_linear_model_is_the_sum_over_pixels(nu):
    rng = np.random.default_rng(16)
    labels = rng.permutation(np.arange(30) % 6).reshape(5, 6)
    weights, image, replacement = rng.normal(size=(3, 3, 5, 6))
    ours = limit.linear(weights, image, replacement, Components(labels))
    by_pixel = np.zeros(6)
    for c, u, v in np.ndindex(3, 5, 6):
        by_pixel[labels[u, v]] += weights[c, u, v] * (image - replacement)[c, u, v]
    assert_allclose(ours.coef, by_pixel, atol=1e-12)
    assert ours.intercept == pytest.approx((weights * replacement).sum(), abs=1e-12)
    table = oracles.table_of_images(
        lambda x: (weights * x).sum(), image, replacement, labels[None].repeat(3, axis=0)
    )
    assert_allclose(beta_of(ours), oracles.limit_by_lstsq(table, nu), atol=1e-9)


# --- integrated gradients -------------------------------------------------------------------------


class Scores(torch.nn.Module):
    """Any function of the superpixel sums s (N, d) of a one-channel image, as K columns."""

    def __init__(self, labels, *functions):
        super().__init__()
        onehot = torch.eye(int(labels.max()) + 1).double()[labels]
        self.onehot = torch.nn.Parameter(onehot, requires_grad=False)
        self.functions = functions

    def forward(self, x):
        sums = torch.einsum("nuv,uvd->nd", x, self.onehot)
        return torch.stack([f(sums) for f in self.functions], dim=1)


LABELS = np.repeat(np.arange(10).reshape(2, 5), 2, axis=1)  # (2, 10), d = 10


def ig_problem(*functions, seed=17, target=0):
    """Model, image, baseline, components, and the table of the target over the cube."""
    rng = np.random.default_rng(seed)
    model = Scores(torch.from_numpy(LABELS), *functions)
    x, baseline = rng.normal(size=(2, *LABELS.shape))

    def f(image):
        return model(torch.from_numpy(image)[None])[0, target].item()

    return (model, x, baseline, Components(LABELS)), oracles.table_of_images(f, x, baseline, LABELS)


def tanh_net(seed):
    rng = np.random.default_rng(seed)
    first, second = torch.from_numpy(rng.normal(size=(10, 8)) * 0.4), rng.normal(size=8)
    return lambda s: torch.tanh(s @ first) @ torch.from_numpy(second)


def quadratic(seed, off_diagonal_only=False):
    matrix = np.random.default_rng(seed).normal(size=(10, 10)) * 0.2
    if off_diagonal_only:
        np.fill_diagonal(matrix, 0)
    matrix = torch.from_numpy(matrix)
    return lambda s: torch.einsum("ni,ij,nj->n", s, matrix, s) + s[:, 0] - 2 * s[:, 7]


def test_ig_sums_add_up_to_the_change_of_the_output():
    problem, table = ig_problem(tanh_net(0), tanh_net(1), target=1)
    sums = limit.integrated_gradients_sums(*problem, 1, steps=1000)
    assert sums.shape == (10,)
    assert sums.sum() == pytest.approx(table[-1] - table[0], rel=1e-6)


def test_twenty_steps_are_twenty_gauss_legendre_points():
    (model, x, baseline, components), _ = ig_problem(tanh_net(2))
    mean = 0
    for node, weight in zip(*np.polynomial.legendre.leggauss(20), strict=True):
        point = torch.tensor(baseline + (node + 1) / 2 * (x - baseline), requires_grad=True)
        model(point[None])[0, 0].backward()
        mean = mean + weight / 2 * point.grad.numpy()
    expected = [((x - baseline) * mean)[j == LABELS].sum() for j in range(10)]
    ours = limit.integrated_gradients_sums(model, x, baseline, components, 0, steps=20)
    assert_allclose(ours, expected, atol=1e-12)
    assert_allclose(limit.integrated_gradients_sums(model, x, baseline, components, 0), ours)
    by_pixel = attribution.integrated_gradients(
        model, torch.from_numpy(x), torch.from_numpy(baseline), 0, steps=20
    )
    assert by_pixel.shape == x.shape
    assert_allclose(components.sums(np.asarray(by_pixel)), expected, atol=1e-12)


class Total(torch.nn.Module):
    """No parameters at all: the input alone says in which precision to compute."""

    def forward(self, x):
        return x.flatten(1).sum(1, keepdim=True)


def test_ig_of_a_model_without_parameters_keeps_double_precision():
    difference = np.random.default_rng(18).random(LABELS.shape)
    baseline = np.full(LABELS.shape, 1e9)  # single precision resolves 64 here
    sums = limit.integrated_gradients_sums(
        Total(), baseline + difference, baseline, Components(LABELS), 0
    )
    assert_allclose(sums, Components(LABELS).sums(difference), rtol=1e-6)


def test_ig_sums_are_path_averages_of_the_superpixel_slopes():
    # no gradient: central differences of G(w) = f(baseline + sum_j w_j (x - baseline) on J_j)
    (model, x, baseline, components), _ = ig_problem(tanh_net(3))
    nodes, weights = np.polynomial.legendre.leggauss(40)
    expected = np.zeros(10)
    for t, weight in zip((nodes + 1) / 2, weights / 2, strict=True):
        for j in range(10):
            ends = []
            for step in (1e-4, -1e-4):
                w = np.full(10, t)
                w[j] += step
                image = baseline + w[LABELS] * (x - baseline)
                ends.append(model(torch.from_numpy(image)[None])[0, 0].item())
            expected[j] += weight * (ends[0] - ends[1]) / 2e-4
    ours = limit.integrated_gradients_sums(model, x, baseline, components, 0, steps=500)
    assert_allclose(ours, expected, atol=2e-5)


def test_ig_sums_are_the_limit_of_additive_functions():
    problem, table = ig_problem(lambda s: torch.tanh(s).sum(1) + 0.1 * (s**3)[:, 4])
    sums = limit.integrated_gradients_sums(*problem, 0, steps=500)
    for nu in WIDTHS:
        assert_allclose(sums, beta_of_table(table, nu)[1:], atol=2e-5)


def test_ig_sums_are_the_wide_limit_of_pairwise_functions():
    problem, table = ig_problem(quadratic(4))
    sums = limit.integrated_gradients_sums(*problem, 0)
    assert_allclose(sums, beta_of_table(table, 1e4)[1:], atol=1e-6)
    gap = oracles.relative_error(beta_of_table(table, 0.25)[1:], sums)
    assert 1e-4 < gap < 0.1


def test_ig_sums_of_multilinear_functions_are_shapley_not_banzhaf():
    problem, table = ig_problem(lambda s: s[:, 0] * s[:, 1] * s[:, 2] + s[:, 3] * s[:, 4])
    sums = limit.integrated_gradients_sums(*problem, 0, steps=500)
    f = limit.lookup(table)
    assert_allclose(sums, limit.shapley(f, 10), atol=2e-5)
    assert np.abs(sums - limit.coin_banzhaf(f, 10, 0.5)).max() > 0.01


def test_shapley_and_banzhaf_agree_on_pairwise_functions():
    _, table = ig_problem(quadratic(5, off_diagonal_only=True))
    f = limit.lookup(table)
    assert_allclose(limit.shapley(f, 10), limit.coin_banzhaf(f, 10, 0.5), atol=1e-11)
