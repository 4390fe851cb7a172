"""The explainer against the lime package, naive loops, repeats and exact limits."""

import functools
import itertools
import json
from pathlib import Path

import lime.lime_image
import numpy as np
import oracles
import pytest
import scipy.special
import sklearn.linear_model
import sklearn.metrics
import torch
from numpy.testing import assert_allclose, assert_array_equal

from xaiutils import designs, limit, perturb, segment
from xaiutils import lime as ours
from xaiutils.perturb import Components

PACKAGE = json.loads((Path(__file__).parent / "golden" / "lime_limit.json").read_text())[
    "lime_package"
]


def on_the_cube(table):
    """The input whose perturbations are the masks themselves, and a model reading `table`."""
    table = np.asarray(table, dtype=float)
    d = int(np.log2(len(table)))

    def model(batch):
        index = (batch.numpy() > 0.5) @ 2 ** np.arange(d)
        return table.reshape(len(table), -1)[index]

    return {"model": model, "x": np.ones(d), "components": Components(np.arange(d)), "filler": 0}


def explain_table(table, **options):
    return ours.explain(**on_the_cube(table), **({"targets": 0} | options))


def steep(d, seed=0):
    """A function whose residuals are largest at rare masks, so that errors depend on the mask."""
    slopes = np.random.default_rng(seed).uniform(0.5, 1.5, size=d)
    centred = (oracles.cube(d) - 0.5) @ slopes
    return centred**4 / 10 + oracles.cube(d)[:, 0]


# --- the golden run of the package ----------------------------------------------------------------


@functools.cache
def golden_problem():
    scope = {}
    for part in ("imports", "image", "segments", "classifier"):
        exec(PACKAGE["source"][part], scope)
    assert scope["image"].sum() == PACKAGE["image_checks"]["sum"]
    return scope["image"], scope["segments"], scope["classifier_fn"]


def channels_last_model(classifier):
    return lambda batch: classifier(batch.numpy())


def channels_first_model(classifier):
    return lambda batch: classifier(np.ascontiguousarray(batch.numpy().transpose(0, 2, 3, 1)))


@pytest.mark.parametrize("run", PACKAGE["runs"], ids=lambda r: f"hide_color {r['hide_color']}")
@pytest.mark.parametrize("layout", ["channels first", "channels last"])
def test_package_mode_gives_the_golden_run(run, layout):
    image, segments, classifier = golden_problem()
    first = layout == "channels first"
    explanation = ours.explain(
        channels_first_model(classifier) if first else channels_last_model(classifier),
        np.ascontiguousarray(image.transpose(2, 0, 1)) if first else image,
        Components(segments if first else segments[..., None]),
        targets=[0, 1],
        n_samples=200,
        filler="mean" if run["hide_color"] is None else run["hide_color"],
        package_exact=True,
        seed=0,
    )
    draws = PACKAGE["draws"]
    assert explanation.masks[:3].astype(int).tolist() == draws["z_rows_0_1_2"]
    assert explanation.masks.sum(axis=0).tolist() == draws["z_column_sums_after_row_0_is_set"]
    expected_outputs = np.array(run["predictions_of_rows_0_1_2"])[:, :2]
    assert_allclose(explanation.outputs[:3], expected_outputs, atol=1e-12)
    for k in (0, 1):
        expected = run["labels"][str(k)]
        assert_allclose(explanation.coef[k], expected["coefficients"], atol=1e-10)
        assert explanation.intercept[k] == pytest.approx(expected["intercept"], abs=1e-10)
        assert explanation.score[k] == pytest.approx(expected["score"], abs=1e-10)
        assert explanation.local_prediction[k] == pytest.approx(expected["local_pred"], abs=1e-10)


@pytest.mark.parametrize("run", PACKAGE["runs"], ids=lambda r: f"hide_color {r['hide_color']}")
def test_exact_limit_of_the_golden_image(run):
    image, segments, classifier = golden_problem()
    filler = np.array(run["replacement_colour_per_segment"], dtype=np.uint8)[segments]
    f = limit.tabulate(
        lambda masks: perturb.evaluate(
            channels_last_model(classifier), image, Components(segments[..., None]), masks, filler
        ),
        12,
    )
    plain = limit.exact(limit.lookup(f), 12)
    package = limit.exact(limit.lookup(f), 12, ridge=1.0, n=200, first_row=True)
    variance = limit.clt_variance(limit.lookup(f), 12)
    for k in (0, 1):
        expected = run["labels"][str(k)]
        for answer, key in (
            (plain, "exact_limit"),
            (package, "exact_limit_package_lambda1_n200_first_row"),
        ):
            vector = [answer.intercept[k], *answer.coef[k]]
            assert_allclose(vector, expected[key], atol=1e-10)
        error = np.sqrt(variance[k] / 200)
        assert_allclose(error, expected["clt_standard_error_n200"], atol=1e-10)
        distance = np.abs(package.coef[k] - expected["coefficients"]) / error[1:]
        assert distance.max() < 4


# --- the package itself ---------------------------------------------------------------------------


def toy_image(dtype, seed):
    """An image with textured and flat superpixels of unequal size, and its labels (d = 9)."""
    rng = np.random.default_rng(seed)
    rows = np.repeat([0, 1, 2], [7, 9, 5])
    columns = np.repeat([0, 1, 2], [6, 7, 11])
    segments = rows[:, None] * 3 + columns[None, :]
    image = rng.integers(0, 256, size=(*segments.shape, 3))
    flat = rng.integers(0, 256, size=(9, 3))
    image = np.where(np.isin(segments, [0, 4, 7])[..., None], flat[segments], image)
    if dtype == np.uint8:
        return image.astype(np.uint8), segments
    return (image / 255).astype(dtype), segments


def toy_classifier(image, seed):
    """Probabilities of four classes from random linear scores of a channels-last batch."""
    scale = 1500 if image.dtype == np.uint8 else 6
    weights = np.random.default_rng(seed).normal(size=(*image.shape, 4)) / scale

    def classifier(batch):
        scores = np.tensordot(np.asarray(batch, dtype=np.float64), weights, axes=3)
        return scipy.special.softmax(scores, axis=1)

    return classifier


def package_run(image, segments, classifier, seed, hide_color, n, **options):
    explainer = lime.lime_image.LimeImageExplainer(random_state=seed)
    return explainer.explain_instance(
        image,
        classifier,
        segmentation_fn=lambda _: segments,
        num_samples=n,
        hide_color=hide_color,
        **options,
    )


@pytest.mark.parametrize("hide_color", [None, 0])
@pytest.mark.parametrize("dtype", [np.uint8, np.float64, np.float32])
@pytest.mark.parametrize("seed", [0, 1, 7])
def test_package_mode_equals_the_package(seed, dtype, hide_color):
    image, segments = toy_image(dtype, seed)
    classifier = toy_classifier(image, seed)
    theirs = package_run(image, segments, classifier, seed, hide_color, 120, top_labels=4)
    explanation = ours.explain(
        channels_first_model(classifier),
        np.ascontiguousarray(image.transpose(2, 0, 1)),
        Components(segments),
        targets=range(4),
        n_samples=120,
        filler="mean" if hide_color is None else hide_color,
        package_exact=True,
        seed=seed,
    )
    for k in range(4):
        coef = [weight for _, weight in sorted(theirs.local_exp[k])]
        assert_allclose(explanation.coef[k], coef, atol=1e-10)
        assert explanation.intercept[k] == pytest.approx(theirs.intercept[k], abs=1e-10)
    last = theirs.top_labels[0]
    assert explanation.score[last] == pytest.approx(theirs.score, abs=1e-10)
    assert explanation.local_prediction[last] == pytest.approx(theirs.local_pred[0], abs=1e-10)


def test_package_mode_has_the_package_score_of_every_label():
    image, segments = toy_image(np.uint8, 3)
    classifier = toy_classifier(image, 3)
    explanation = ours.explain(
        channels_last_model(classifier),
        image,
        Components(segments[..., None]),
        targets=[3, 1],
        n_samples=90,
        package_exact=True,
        seed=5,
    )
    for row, k in enumerate([3, 1]):
        theirs = package_run(image, segments, classifier, 5, None, 90, labels=(k,), top_labels=None)
        assert explanation.score[row] == pytest.approx(theirs.score, abs=1e-10)
        assert explanation.local_prediction[row] == pytest.approx(theirs.local_pred[0], abs=1e-10)


def test_package_is_within_noise_of_its_limit():
    # the real package on a shape detector, 60 runs: the mean lies within 4 standard errors
    segments = np.arange(9).reshape(3, 3).repeat(2, axis=0).repeat(2, axis=1)
    image = np.full((6, 6, 3), 0.9)
    support = np.zeros((6, 6), dtype=bool)
    support[1, :] = True

    def classifier(batch):
        seen = (np.asarray(batch)[:, support, 0] > 0.5).all(axis=1)
        return np.column_stack([seen, ~seen]).astype(float)

    runs = []
    for seed in range(60):
        theirs = package_run(
            image, segments, classifier, seed, 0, 100, labels=(0,), top_labels=None
        )
        runs.append([weight for _, weight in sorted(theirs.local_exp[0])])
    table = oracles.cube(9)[:, :3].prod(axis=1)
    expected = oracles.limit_by_lstsq(table, 0.25, ridge=1.0, n=100, first_row=True)[1:]
    error = np.std(runs, axis=0, ddof=1) / np.sqrt(60)
    assert (np.abs(np.mean(runs, axis=0) - expected) / error).max() < 4
    ours_limit = limit.shape_detector(
        image[..., 0], np.zeros((6, 6)), support, Components(segments)
    )
    assert_allclose(ours_limit.coef, oracles.limit_by_lstsq(table, 0.25)[1:], atol=1e-10)


# --- kernel and designs ---------------------------------------------------------------------------


@pytest.mark.parametrize("width", [0.05, 0.25, 3.0])
def test_kernel_is_the_cosine_weight(width):
    masks = limit.masks(7)
    assert_allclose(ours.kernel(masks, width), oracles.weights_of(masks, width), rtol=1e-10)
    distances = sklearn.metrics.pairwise_distances(masks.astype(float), np.ones((1, 7)), "cosine")
    package = np.sqrt(np.exp(-(distances.ravel() ** 2) / width**2))
    assert_allclose(ours.kernel(masks, width), package, rtol=1e-10)


@pytest.mark.parametrize("width", [0.0, -0.25])
def test_kernel_refuses_a_width_that_is_not_positive(width):
    with pytest.raises(ValueError, match="width"):
        ours.kernel(np.ones((2, 3), dtype=bool), width)


@pytest.mark.parametrize("design", ["iid", "paired", "orthogonal"])
def test_designs_are_boolean_and_repeatable(design):
    first, again = (designs.draw(256, 11, design, np.random.default_rng(3)) for _ in range(2))
    assert first.shape == (256, 11) and first.dtype == bool
    assert_array_equal(first, again)
    assert (first != designs.draw(256, 11, design, np.random.default_rng(4))).any()


def test_paired_design_holds_every_row_with_its_complement():
    masks = designs.draw(400, 9, "paired", np.random.default_rng(0))
    codes = masks @ 2 ** np.arange(9)
    assert np.sort(codes).tolist() == np.sort(511 - codes).tolist()
    assert len(np.unique(codes)) > 150


@pytest.mark.parametrize(("n", "d"), [(256, 15), (768, 6), (1024, 15), (1024, 18)])
def test_orthogonal_design_has_strength_four(n, d):
    masks = designs.draw(n, d, "orthogonal", np.random.default_rng(n + d))
    for four in itertools.combinations(range(d), 4):
        counts = np.bincount(masks[:, four] @ [1, 2, 4, 8], minlength=16)
        assert (counts == n // 16).all()


def cubic(d, seed):
    """Random polynomial with all interactions of up to three components, (f, main effects).

    In the variables s = 2 z - 1 the plain average of s_j f is half the Banzhaf value of j.
    """
    rng = np.random.default_rng(seed)
    sets = [s for order in range(4) for s in itertools.combinations(range(d), order)]
    sizes = rng.normal(size=len(sets))

    def f(masks):
        signs = 2.0 * np.asarray(masks) - 1
        return sum(a * signs[:, list(s)].prod(axis=1) for a, s in zip(sizes, sets, strict=True))

    return f, 2 * sizes[1 : d + 1]


def test_orthogonal_design_recovers_cubic_functions_exactly():
    # strength 4: main effects are not aliased with interactions of two or three components
    f, banzhaf = cubic(15, 1)
    errors = {}
    for design in ("iid", "orthogonal"):
        masks = designs.draw(256, 15, design, np.random.default_rng(2))
        _, coef, _, _ = ours.fit(masks, ours.kernel(masks, 1e7), f(masks)[:, None], 0.0)
        errors[design] = np.abs(coef[0] - banzhaf).max()
    assert errors["orthogonal"] < 1e-9
    assert errors["iid"] > 0.1


def test_orthogonal_design_explains_a_cubic_model_exactly():
    f, banzhaf = cubic(8, 3)
    table = f(limit.masks(8))
    explanation = explain_table(
        table, design="orthogonal", n_samples=256, ridge=0.0, kernel_width=1e7
    )
    assert_allclose(explanation.coef, banzhaf, atol=1e-9)
    assert_allclose(limit.coin_banzhaf(limit.lookup(table), 8, 0.5), banzhaf, atol=1e-10)


@pytest.mark.parametrize("design", ["iid", "paired", "orthogonal"])
def test_every_row_of_a_design_is_uniform(design):
    # plug-in moments of a function with an interaction of six components, 300 draws
    d, rng = 10, np.random.default_rng(6)
    table = oracles.cube(d)[:, :6].prod(axis=1) + 0.2 * oracles.cube(d)[:, 8]
    f = limit.lookup(table)
    moments = []
    for _ in range(300):
        masks = designs.draw(256, d, design, rng)
        moments.append(
            np.append(masks.T.astype(float), [np.ones(256)], axis=0)
            @ (ours.kernel(masks, 0.25) * f(masks))
            / 256
        )
    weighted = oracles.weights_of(oracles.cube(d), 0.25) * table / 2**d
    expected = np.append(weighted @ oracles.cube(d), weighted.sum())
    error = np.std(moments, axis=0, ddof=1) / np.sqrt(300)
    assert (np.abs(np.mean(moments, axis=0) - expected) < 4.5 * error).all()


@pytest.mark.parametrize("design", ["iid", "paired", "orthogonal"])
def test_explanations_of_every_design_centre_on_the_limit(design):
    table = steep(9, seed=2)
    runs = [
        explain_table(table, design=design, n_samples=1024, seed=seed, ridge=0.0).coef
        for seed in range(100)
    ]
    expected = oracles.limit_by_lstsq(table, 0.25)[1:]
    error = np.std(runs, axis=0, ddof=1) / np.sqrt(len(runs))
    # regressions on random rows are biased by O(1/n): allow a twentieth of one run's error
    slack = 4.5 * error + 0.05 * np.std(runs, axis=0)
    assert (np.abs(np.mean(runs, axis=0) - expected) < slack).all()


def test_pairs_reduce_the_error_of_a_smooth_net():
    rng = np.random.default_rng(8)
    hidden = np.tanh(oracles.cube(10) @ rng.normal(size=(10, 12)) * 0.7 + rng.normal(size=12))
    table = 1 / (1 + np.exp(-hidden @ rng.normal(size=12)))
    expected = oracles.limit_by_lstsq(table, 0.25)[1:]

    def squared_error(design):
        coefs = [
            explain_table(table, design=design, n_samples=500, seed=s, ridge=0.0).coef
            for s in range(120)
        ]
        return np.mean(np.square(np.array(coefs) - expected))

    assert squared_error("paired") < squared_error("iid")


# --- the fit --------------------------------------------------------------------------------------


@pytest.mark.parametrize("ridge", [0.0, 1.0, 30.0])
def test_fit_is_weighted_ridge_regression(ridge):
    rng = np.random.default_rng(9)
    masks = rng.random((60, 8)) < 0.5
    weights, outputs = rng.random(60), rng.normal(size=(60, 3)) + 5
    intercept, coef, score, covariance = ours.fit(masks, weights, outputs, ridge)
    assert intercept.shape == (3,) and coef.shape == (3, 8) and covariance.shape == (3, 9, 9)
    expected = oracles.ridge_lstsq(masks, weights, outputs, ridge)
    assert_allclose(np.column_stack([intercept, coef]), expected.T, atol=1e-10)
    library = sklearn.linear_model.Ridge(alpha=ridge, solver="svd" if ridge else "auto")
    library.fit(masks, outputs, sample_weight=weights)
    assert_allclose(coef, library.coef_, atol=1e-10)
    for k in range(3):
        predicted = intercept[k] + masks @ coef[k]
        r2 = sklearn.metrics.r2_score(outputs[:, k], predicted, sample_weight=weights)
        assert score[k] == pytest.approx(r2, abs=1e-10)


@pytest.mark.parametrize("ridge", [0.0, 2.0])
@pytest.mark.parametrize("group", [1, 2])
def test_covariance_is_the_sandwich_of_the_errors_of_left_out_masks(group, ridge):
    rng = np.random.default_rng(10)
    n, d = 60, 5
    masks = rng.random((n, d)) < 0.5
    weights = ours.kernel(masks, 0.25)
    outputs = (np.exp(masks @ rng.normal(size=d)) + rng.normal(size=n))[:, None]
    gram, meat = np.diag([0.0, *[ridge] * d]), np.zeros((d + 1, d + 1))
    for start in range(0, n, group):
        others = np.delete(np.arange(n), slice(start, start + group))
        fitted = ours.fit(masks[others], weights[others], outputs[others], ridge)
        moved = 0
        for i in range(start, start + group):
            extended, predicted = np.array([1.0, *masks[i]]), fitted.coef[0] @ masks[i]
            gram += weights[i] * np.outer(extended, extended)
            moved += weights[i] * (outputs[i, 0] - fitted.intercept[0] - predicted) * extended
        meat += np.outer(moved, moved)
    sandwich = np.linalg.inv(gram) @ meat @ np.linalg.inv(gram)
    covariance = ours.fit(masks, weights, outputs, ridge, group=group).covariance[0]
    assert_allclose(covariance, sandwich, rtol=1e-8)


def test_fit_interpolates_a_linear_model_from_few_masks():
    rng = np.random.default_rng(11)
    slopes = rng.normal(size=10)
    masks = rng.random((16, 10)) < 0.5
    outputs = (masks @ slopes - 2)[:, None]
    intercept, coef, score, covariance = ours.fit(masks, ours.kernel(masks, 0.25), outputs, 0.0)
    assert_allclose(coef[0], slopes, atol=1e-10)
    assert intercept[0] == pytest.approx(-2, abs=1e-10)
    assert score[0] == pytest.approx(1, abs=1e-12)
    assert np.abs(covariance).max() < 1e-16


def test_fit_follows_a_renaming_of_the_components():
    rng = np.random.default_rng(12)
    masks, order = rng.random((50, 6)) < 0.5, rng.permutation(6)
    outputs = rng.normal(size=(50, 1))
    weights = ours.kernel(masks, 0.25)
    _, coef, _, covariance = ours.fit(masks, weights, outputs, 1.0)
    _, renamed, _, shuffled = ours.fit(masks[:, order], weights, outputs, 1.0)
    assert_allclose(renamed[0], coef[0][order], atol=1e-12)
    assert_allclose(shuffled[0][1:, 1:], covariance[0][1:, 1:][np.ix_(order, order)], atol=1e-12)


def test_undetermined_fit_is_refused_without_a_ridge():
    masks = np.random.default_rng(13).random((5, 8)) < 0.5
    with pytest.raises(ValueError, match="ridge"):
        ours.fit(masks, np.ones(5), np.ones((5, 1)), 0.0)


# --- explain --------------------------------------------------------------------------------------


def test_explanation_is_the_fit_to_what_it_shows():
    table = np.column_stack([steep(7), np.cos(steep(7, 1))])
    explanation = explain_table(table, targets=[1, 0], n_samples=300, kernel_width=0.4, ridge=2.0)
    assert explanation.masks.shape == (300, 7) and explanation.masks.dtype == bool
    assert_array_equal(explanation.outputs, limit.lookup(table)(explanation.masks)[:, [1, 0]])
    weights = oracles.weights_of(explanation.masks, 0.4)
    assert_allclose(explanation.weights, weights, rtol=1e-10)
    expected = oracles.ridge_lstsq(explanation.masks, weights, explanation.outputs, 2.0)
    assert_allclose(explanation.coef, expected[1:].T, atol=1e-10)
    assert_allclose(explanation.intercept, expected[0], atol=1e-10)
    assert_allclose(explanation.local_prediction, expected.sum(axis=0), atol=1e-10)
    assert explanation.stderr.shape == (2, 7)
    assert explanation.converged is None


def test_one_target_drops_the_leading_axis():
    table = np.column_stack([steep(6), steep(6, 1), steep(6, 2)])
    many = explain_table(table, targets=[2, 0], n_samples=200)
    one = explain_table(table, targets=2, n_samples=200)
    assert one.coef.shape == one.stderr.shape == (6,)
    assert np.ndim(one.intercept) == np.ndim(one.score) == np.ndim(one.local_prediction) == 0
    for name in ("intercept", "coef", "stderr", "score", "local_prediction"):
        assert_allclose(getattr(one, name), getattr(many, name)[0], rtol=1e-12)
    assert explain_table(table, targets=[1], n_samples=200).coef.shape == (1, 6)


def test_seeds_decide_the_masks():
    first, same, other = (explain_table(steep(8), n_samples=50, seed=s) for s in (4, 4, 5))
    assert_array_equal(first.masks, same.masks)
    assert_array_equal(first.coef, same.coef)
    assert (first.masks != other.masks).any()


def test_global_random_state_is_left_alone():
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    explain_table(steep(5), n_samples=30)
    explain_table(steep(5), n_samples=30, package_exact=True)
    assert_array_equal(before, np.random.get_state()[1])  # noqa: NPY002


def test_first_row_is_forced_only_in_package_mode():
    first_rows = [explain_table(steep(8), n_samples=20, seed=s).masks[0] for s in range(5)]
    assert not all(row.all() for row in first_rows)
    for seed in range(5):
        package = explain_table(steep(8), n_samples=20, seed=seed, package_exact=True)
        assert package.masks[0].all()
        assert not package.masks[1].all()


def test_modules_and_callables_agree():
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.LazyLinear(3)
    ).eval()
    image, segments = toy_image(np.float32, 15)
    image = np.ascontiguousarray(image.transpose(2, 0, 1))
    model(torch.from_numpy(image)[None])  # gives the last layer its size
    arguments = {"targets": [0, 2], "n_samples": 80}
    components = Components(segments)
    with torch.inference_mode():
        as_callable = ours.explain(lambda b: model(b), image, components, **arguments)
    as_module = ours.explain(model, image, components, **arguments)
    tensor = ours.explain(model, torch.from_numpy(image), components, batch_size=7, **arguments)
    assert_allclose(as_module.coef, as_callable.coef, atol=2e-4)
    assert_allclose(tensor.coef, as_module.coef, atol=2e-4)


def test_linear_model_is_recovered_up_to_the_ridge():
    image, segments = toy_image(np.float64, 16)
    image = image.transpose(2, 0, 1)
    weights = np.random.default_rng(16).normal(size=image.shape)
    components = Components(segments)
    replacement = np.random.default_rng(17).random(image.shape)
    theory = limit.linear(weights, image, replacement, components)

    def model(batch):
        return (batch.numpy() * weights).sum(axis=(1, 2, 3))[:, None]

    arguments = {"targets": 0, "n_samples": 1000, "filler": replacement}
    exact = ours.explain(model, image, components, ridge=0.0, **arguments)
    assert_allclose(exact.coef, theory.coef, atol=1e-9)
    assert exact.intercept == pytest.approx(theory.intercept, abs=1e-9)
    default = ours.explain(model, image, components, **arguments)
    gap = np.abs(default.coef - theory.coef).max() / np.abs(theory.coef).max()
    assert 1e-4 < gap < 0.02


# --- standard errors ------------------------------------------------------------------------------


@functools.cache
def repeats():
    """200 default runs on one function: coefficients and standard errors, (200, 9) each."""
    runs = [explain_table(steep(9), n_samples=1000, seed=s) for s in range(200)]
    return np.array([r.coef for r in runs]), np.array([r.stderr for r in runs])


def test_standard_errors_are_the_spread_of_repeats():
    coefs, errors = repeats()
    spread = np.sqrt(np.mean(coefs.var(axis=0, ddof=1)))
    assert np.sqrt(np.mean(errors**2)) == pytest.approx(spread, rel=0.12)
    theory = np.sqrt(limit.clt_variance(limit.lookup(steep(9)), 9)[1:] / 1000)
    assert np.sqrt(np.mean(theory**2)) == pytest.approx(spread, rel=0.12)
    each = np.sqrt(np.mean(errors**2, axis=0)) / coefs.std(axis=0, ddof=1)
    assert_allclose(each, 1, atol=0.2)


def test_intervals_cover_the_limit():
    coefs, errors = repeats()
    target = oracles.limit_by_lstsq(steep(9), 0.25, ridge=1.0, n=1000)[1:]
    covered = np.abs(coefs - target) <= 1.96 * errors
    assert 0.92 <= covered.mean() <= 0.98


def test_mean_of_repeats_is_the_limit_and_errors_fall_as_root_n():
    coefs, errors = repeats()
    target = oracles.limit_by_lstsq(steep(9), 0.25, ridge=1.0, n=1000)[1:]
    z = (coefs.mean(axis=0) - target) / (coefs.std(axis=0, ddof=1) / np.sqrt(len(coefs)))
    assert np.abs(z).max() < 4.5
    many = [explain_table(steep(9), n_samples=16000, seed=s).stderr for s in range(3)]
    assert np.mean(errors) / np.mean(many) == pytest.approx(4, rel=0.1)


@pytest.mark.parametrize(
    ("design", "n", "high"),
    [
        ("paired", 1024, 1.12),
        ("orthogonal", 256, 2),
        ("orthogonal", 1024, 1.6),
        ("folded", 64, 1.6),
    ],
)
def test_standard_errors_know_the_design(design, n, high):
    # pairs are treated as one draw; the sandwich would make those of arrays up to 5 times too large
    runs = [explain_table(steep(9), n_samples=n, design=design, seed=s) for s in range(40)]
    spread = np.sqrt(np.mean(np.var([r.coef for r in runs], axis=0, ddof=1)))
    claimed = np.sqrt(np.mean(np.square([r.stderr for r in runs])))
    assert 0.88 < claimed / spread < high


# --- the stop rule --------------------------------------------------------------------------------


def sum_of(slopes, noise=0.0):
    """Additive function with the given slopes and a parity term that no linear fit explains."""
    z = oracles.cube(len(slopes))
    return z @ np.asarray(slopes, dtype=float) + noise * (-1.0) ** z.sum(axis=1)


def test_top_k_rule_stops_at_once_when_ranks_are_clear():
    table = sum_of([8, 7, 6, 5, 4, 0, 0, 0], noise=0.3)
    explanation = explain_table(table, n_samples=200, stop=ours.Stop(top_k=5))
    assert explanation.converged is True
    assert len(explanation.masks) == 200
    assert ours.top_k(explanation.coef, 5) == set(range(5))


def test_top_k_rule_reaches_the_cap_when_ranks_tie():
    # components 0 and 1 are interchangeable: no number of masks separates ranks 1 and 2
    table = sum_of([3, 3, 0, 0, 0, 0], noise=1.0)
    explanation = explain_table(
        table, n_samples=200, stop=ours.Stop(top_k=1, max_samples=1600), seed=3
    )
    assert explanation.converged is False
    assert len(explanation.masks) == 1600
    assert explanation.outputs.shape == (1600,)


def test_top_k_rule_is_rarely_wrong_in_one_look():
    # ranks 1 and 2 tie, so each stop is false: 5 % by the level, here with 3 standard errors
    table = sum_of([3, 3, 0, 0, 0, 0], noise=1.0)
    stop = ours.Stop(top_k=1, max_samples=500)
    runs = [explain_table(table, n_samples=500, stop=stop, seed=s) for s in range(200)]
    assert 0.004 < np.mean([r.converged for r in runs]) < 0.096


def test_cap_is_never_passed():
    table = sum_of([3, 3, 0, 0], noise=1.0)
    stop = ours.Stop(stderr=1e-6, max_samples=1000)
    explanation = explain_table(table, n_samples=300, stop=stop)
    assert explanation.converged is False
    assert 700 < len(explanation.masks) <= 1000


def test_standard_error_rule_draws_until_the_error_is_small():
    table = sum_of([1, 0.5, 0, -1, 2], noise=1.0)
    explanation = explain_table(table, n_samples=200, stop=ours.Stop(stderr=0.05))
    n = len(explanation.masks)
    assert explanation.converged is True
    assert explanation.stderr.max() <= 0.05
    # the error is near 2 / sqrt(n) here, so about 1600 masks are needed
    assert 1000 <= n <= 2600 and n % 200 == 0
    before = slice(0, n - 200)
    _, _, _, covariance = ours.fit(
        explanation.masks[before],
        explanation.weights[before],
        explanation.outputs[before, None],
        1.0,
    )
    assert np.sqrt(np.diag(covariance[0])[1:]).max() > 0.05
    expected = oracles.ridge_lstsq(explanation.masks, explanation.weights, explanation.outputs, 1.0)
    assert_allclose(explanation.coef, expected[1:], atol=1e-10)


def test_stop_rule_serves_every_target():
    # the first output is linear and settled at once, the second never is
    tables = np.column_stack([sum_of([9, 5, 0, 0]), sum_of([3, 3, 0, 0], noise=1.0)])
    options = {"n_samples": 200, "stop": ours.Stop(stderr=0.01, max_samples=600), "ridge": 0.0}
    both = explain_table(tables, targets=[0, 1], **options)
    assert both.converged is False and len(both.masks) == 600
    alone = explain_table(tables, targets=0, **options)
    assert alone.converged is True and len(alone.masks) == 200


def test_top_k_rule_waits_for_every_target():
    tables = np.column_stack([sum_of([9, 5, 0, 0]), sum_of([3, 3, 0, 0], noise=1.0)])
    options = {"targets": [0, 1], "n_samples": 200, "stop": ours.Stop(top_k=1, max_samples=200)}
    converged = [explain_table(tables, seed=s, **options).converged for s in range(20)]
    assert np.mean(converged) < 0.3


def test_later_rounds_are_new_masks():
    explanation = explain_table(
        sum_of([1, 1, 0, 0, 0, 0, 0, 0, 0, 0]),
        n_samples=100,
        stop=ours.Stop(stderr=1e-9, max_samples=300),
    )
    rounds = explanation.masks.reshape(3, 100, 10)
    assert (rounds[0] != rounds[1]).any() and (rounds[1] != rounds[2]).any()


@pytest.mark.parametrize("options", [{}, {"stderr": 0.1, "top_k": 2}])
def test_stop_rule_has_one_criterion(options):
    with pytest.raises(ValueError, match="stderr and top_k"):
        ours.Stop(**options)


@pytest.mark.parametrize("options", [{"design": "paired"}, {"stop": ours.Stop(top_k=1)}])
def test_package_mode_has_no_design_and_no_stop_rule(options):
    with pytest.raises(ValueError, match="package_exact"):
        explain_table(steep(4), n_samples=20, package_exact=True, **options)


# --- ranks ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("coef", "k", "expected"),
    [
        ([0.1, 0.5, -0.9, 0.3], 2, {1, 3}),
        ([0.1, 0.0, -0.9, 0.3], 3, {0, 3}),
        ([0.0, -0.0, -1.0], 2, set()),
        ([2.0, 1.0], 5, {0, 1}),
        ([2.0, 1.0], 0, set()),
    ],
)
def test_top_k_keeps_strictly_positive_coefficients(coef, k, expected):
    assert ours.top_k(np.array(coef), k) == expected


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        (set(), set(), 1.0),
        ({1}, set(), 0.0),
        ({1, 2}, {2, 3}, 1 / 3),
        ({1, 2, 3}, {3, 2, 1}, 1.0),
        ({1, 2, 3, 4}, {1}, 0.25),
    ],
)
def test_jaccard_index(a, b, expected):
    assert ours.jaccard(a, b) == pytest.approx(expected)


# --- labels ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("labels", [[1, 2, 3], [0, 1, 3], [-1, 0, 1], [-1, 1]])
def test_labels_that_would_never_be_hidden_are_refused(labels):
    with pytest.raises(ValueError, match=f"from {labels[0]} to {labels[-1]}"):
        Components(np.array(labels))


@pytest.mark.parametrize("method", ["grid", "slic", "quickshift"])
def test_every_superpixel_is_hidden_about_half_the_time(method):
    rng = np.random.default_rng(18)
    image = np.kron(rng.random((3, 4, 4)), np.ones((8, 8))) * 0.8 + 0.1 * rng.random((3, 32, 32))
    if method == "grid":
        labels = segment.grid((32, 32), 3, 4)
    elif method == "slic":
        labels = segment.slic(image, n_segments=13)
    else:
        labels = segment.quickshift(image, kernel_size=2, max_dist=20)
    components = Components(labels)
    assert 5 <= components.d <= 60
    seen = []

    def model(batch):
        shown = (batch.numpy()[:, 0] == image[0].astype(np.float64)).reshape(len(batch), -1)
        pixels = [np.flatnonzero(labels.ravel() == j)[0] for j in range(components.d)]
        seen.append(~shown[:, pixels])
        return np.zeros((len(batch), 1))

    ours.explain(model, image, components, targets=0, n_samples=600, filler=-1.0)
    hidden = np.concatenate(seen).mean(axis=0)
    assert (hidden > 0.4).all() and (hidden < 0.6).all()


def test_package_never_hides_the_last_of_labels_from_one():
    # the defect that makes Components refuse such labels
    segments = 1 + np.repeat(np.arange(5), 2)[None].repeat(4, axis=0)
    image = np.full((4, 10, 3), 0.7)
    hidden = []

    def classifier(batch):
        hidden.append((np.asarray(batch)[:, 0, ::2, 0] == 0).mean(axis=0))
        return np.ones((len(batch), 2)) / 2

    package_run(image, segments, classifier, 0, 0, 200)
    assert np.mean(hidden, axis=0)[-1] == 0
    assert np.mean(hidden, axis=0)[0] > 0.4
