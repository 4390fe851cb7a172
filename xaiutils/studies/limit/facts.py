"""The numerical claims about the limit of image LIME, each measured by one function.

The function `large_d` measures the claim `lime-large-d` of the ledger, and so on. Arguments are
shared: `sizes` are numbers of superpixels d, `nus` bandwidths (`kernel_width`), `n` masks per
run, `runs` repeats of one explanation, `n_models` random models, `seed` an int that fixes every
draw. Fewer runs or models make a function cheaper and its interval wider. An `Estimate` of a
worst case or an identity has low = high = value; a range over sizes runs from its smallest to its
largest value; repeats and random models give a bootstrap 95 % interval. Its n counts runs, models
or cases.

Source: Garreau and Mardaoui, *What does LIME really see in images?*, ICML 2021.
"""

from __future__ import annotations

import itertools

import numpy as np
import scipy
import skimage

from xaiutils import lime, limit
from xaiutils.intervals import Estimate
from xaiutils.perturb import Components
from xaiutils.runtime import one_blas_thread
from xaiutils.studies.limit import models as lm

# --- closed forms ---------------------------------------------------------------------------------


def alpha_closed_form(sizes=range(1, 16), nus=(0.1, 0.25, 1.0, 10.0)) -> Estimate:
    """Largest relative error of alpha_0..alpha_d against the mean over all of {0,1}^d."""
    errors = []
    for d, nu in itertools.product(sizes, nus):
        z = limit.masks(d)
        products = np.column_stack([np.ones(2**d), np.cumprod(z, axis=1)])
        mean = _cosine_kernel(z, nu) @ products / 2**d
        errors.append(np.abs(limit.alpha(np.arange(d + 1), d, nu) / mean - 1).max())
    return _worst(errors)


@one_blas_thread
def limit_is_wls(sizes=(2, 5, 9, 12, 16), nus=(0.1, 0.25, 1.0, 10.0), seed: int = 0) -> Estimate:
    """Largest relative error of Theorem 1, in both forms, against least squares on the cube."""
    rng, errors = np.random.default_rng(seed), []
    for d, nu in itertools.product(sizes, nus):
        z, f = limit.masks(d), rng.random(2**d)
        pi = _cosine_kernel(z, nu)
        root = np.sqrt(pi)
        design = np.column_stack([np.ones(2**d), z])
        fitted = np.linalg.lstsq(root[:, None] * design, root * f, rcond=None)[0]
        mean, joint = pi @ f / 2**d, (pi * f) @ z / 2**d
        c_d, sigma = limit.coefficients(d, nu)
        intercept = sigma[0] * mean + sigma[1] * joint.sum()
        coef = sigma[1] * mean + sigma[2] * joint + sigma[3] * (joint.sum() - joint)
        errors.append(_relative(np.append(intercept, coef) / c_d, fitted))
        errors.append(_relative(np.hstack(limit.from_moments(mean, joint, d, nu)), fitted))
    return _worst(errors)


@one_blas_thread
def bound_loose(n_models: int = 10, d: int = 12, nu: float = 0.25, seed: int = 0) -> Estimate:
    """Smallest ratio of the theorem's order of n_0 to the n that a normal interval asks for.

    Both for coefficients within 0.01 at 95 %; the theorem's constants are taken as 1.
    """
    eps, eta = 0.01, 0.05
    order = eps**-2 * d**7 * np.exp(4 / nu**2) * np.log(8 * d / eta)
    rng = np.random.default_rng(seed)
    models = [lm.on_masks(lm.net(d, rng)) for _ in range(n_models)]
    needed = [1.96**2 * limit.clt_variance(f, d, nu)[1:].max() / eps**2 for f in models]
    return _exact(order / max(needed), n_models)


def shape_halving(powers=(1, 2, 3, 4), d: int = 100) -> Estimate:
    """Largest |on-weight / 2^(1-p) - 1| of a detector whose shape cuts p superpixels."""
    coefs = [limit.detector(range(p), [], d).coef for p in powers]
    return _worst(
        np.abs(c[:p] * 2 ** (p - 1) - 1).max() for p, c in zip(powers, coefs, strict=True)
    )


def shape_halving_off(powers=(1, 2, 3, 4), d: int = 100) -> Estimate:
    """Largest |weight| that the same detectors give to superpixels the shape does not cut."""
    coefs = [limit.detector(range(p), [], d).coef for p in powers]
    return _worst(np.abs(c[p:]).max() for p, c in zip(powers, coefs, strict=True))


def large_d(d: int = 1000, nu: float = 0.25) -> Estimate:
    """c_d over its limit P^2 / 4, P the weight of a mask that hides half of the superpixels."""
    return _exact(_c_ratio(d, nu), 1)


def large_d_rises(sizes=(10, 30, 100, 300, 1000), nu: float = 0.25) -> Estimate:
    """Smallest step of that ratio from one size to the next."""
    return _exact(np.diff([_c_ratio(d, nu) for d in sizes]).min(), len(sizes))


def not_local(sizes=range(10, 301), nu: float = 0.25) -> Estimate:
    """d (q - 1/2) over all sizes: median and range."""
    return _range(d * (limit.coin(d, nu) - 0.5) for d in sizes)


def ridge_default(sizes=range(30, 301), nu: float = 0.25, n: int = 1000) -> Estimate:
    """Shares of the limit that ridge 1 keeps in n masks, both directions: median and range."""
    return _range(share for d in sizes for share in limit.kept(d, nu, n=n))


def ridge_small_nu(d: int = 60, nu: float = 0.05, n: int = 1000) -> Estimate:
    """The larger of the two shares that ridge 1 keeps under a narrow kernel."""
    return _worst(limit.kept(d, nu, n=n))


# --- other explanations as special cases ----------------------------------------------------------


def nu_inf_banzhaf(n_models: int = 5, d: int = 10, nu: float = 1e4, seed: int = 0) -> Estimate:
    """Largest |beta_j - 2 (E[f | z_j = 1] - E[f])| for random f under a wide kernel."""
    z, tables = limit.masks(d), np.random.default_rng(seed).random((n_models, 2**d))
    slopes = 2 * (tables @ z / 2 ** (d - 1) - tables.mean(axis=1, keepdims=True))
    limits = limit.exact(limit.lookup(tables.T), d, nu).coef
    return _worst(np.abs(limits - slopes).max(axis=1))


def nu_zero_occlusion(n_models: int = 5, d: int = 10, nu: float = 0.02, seed: int = 0) -> Estimate:
    """Largest |beta_j - (f(1) - f(1 - e_j))| for random f in [0, 1] under a narrow kernel."""
    tables = np.random.default_rng(seed).random((n_models, 2**d))
    lost = tables[:, -1:] - tables[:, 2**d - 1 - 2 ** np.arange(d)]
    return _worst(np.abs(limit.exact(limit.lookup(tables.T), d, nu).coef - lost).max(axis=1))


@one_blas_thread
def coin_bias(sizes=(8, 12, 16), n_models: int = 5, nu: float = 0.1, seed: int = 0) -> Estimate:
    """Largest error of dF/dw at (q, ..., q), over that of the Banzhaf value.

    Cases: random nets, a detector that cuts three superpixels, and random softmax models, all
    at each size.
    """
    rng, ratios = np.random.default_rng(seed), []
    for d in sizes:
        models = [make(d, rng) for make in (lm.net, lm.softmax_model) for _ in range(n_models)]
        for function in [*models, lambda s: s[:, :3].prod(1)]:
            f = lm.on_masks(function)
            beta = limit.exact(f, d, nu).coef
            biased, fair = (limit.coin_banzhaf(f, d, q) for q in (limit.coin(d, nu), 0.5))
            ratios.append(_relative(biased, beta) / _relative(fair, beta))
    return _worst(ratios)


@one_blas_thread
def ig_additive(n_models: int = 5, nus=(0.1, 0.25, 1.0), d: int = 10, seed: int = 0) -> Estimate:
    """Largest relative distance of integrated gradients to the limit of an additive model."""
    rng, errors = np.random.default_rng(seed), []
    for _ in range(n_models):
        sums, f = lm.gradients_and_masks(lm.additive(d, rng), d, rng, steps=100)
        errors += [_relative(sums, limit.exact(f, d, nu).coef) for nu in nus]
    return _worst(errors)


@one_blas_thread
def ig_pairwise(n_models: int = 20, d: int = 10, seed: int = 0) -> Estimate:
    """Largest relative distance of integrated gradients to the wide limit of quadratic models."""
    return _worst(_pairwise_gaps(n_models, d, 1e4, 1.0, seed))


@one_blas_thread
def ig_pairwise_gap(
    n_models: int = 20, d: int = 10, nu: float = 0.25, interaction: float = 1.0, seed: int = 0
) -> Estimate:
    """Median of that distance at a finite bandwidth.

    Slopes of the models are standard normal, `interaction` is the standard deviation of the
    coefficient of each pair of superpixels.
    """
    gaps = _pairwise_gaps(n_models, d, nu, interaction, seed)
    return _resampled(lambda i: np.median(gaps[i]), n_models, seed)


@one_blas_thread
def ig_gap_grows(
    scales=(0.3, 1.0, 3.0), n_models: int = 20, d: int = 10, nu: float = 0.25, seed: int = 0
) -> Estimate:
    """Smallest increase of the median relative distance from one roughness to the next.

    The same random nets with inputs scaled up.
    """
    gaps = np.empty((n_models, len(scales)))
    for model, column in itertools.product(range(n_models), range(len(scales))):
        rng = np.random.default_rng([seed, model])
        net = lm.net(d, rng, scales[column])
        sums, f = lm.gradients_and_masks(net, d, rng, steps=100)
        gaps[model, column] = _relative(sums, limit.exact(f, d, nu).coef)
    return _resampled(lambda i: np.diff(np.median(gaps[i], axis=0)).min(), n_models, seed)


# --- finite samples -------------------------------------------------------------------------------


def converges(sizes=(5, 10, 20), n: int = 20_000, runs: int = 40, seed: int = 0) -> Estimate:
    """Largest |z| of the mean over runs against the exact limit; about 5 s with `converges_sd`."""
    scores = []
    for d in sizes:
        coefs, beta, _ = lm.repeats(d, n, runs, seed)
        scores.append((coefs.mean(axis=0) - beta) / (coefs.std(axis=0, ddof=1) / np.sqrt(runs)))
    return _exact(np.abs(np.concatenate(scores)).max(), runs)


def converges_sd(sizes=(5, 10, 20), n: int = 20_000, runs: int = 40, seed: int = 0) -> Estimate:
    """Spread of the same runs over that of the central limit theorem, pooled over coefficients."""
    parts = [lm.repeats(d, n, runs, seed) for d in sizes]
    scaled = np.hstack([coefs / np.sqrt(variance / n) for coefs, _, variance in parts])
    return _resampled(lambda i: np.sqrt(scaled[i].var(axis=0, ddof=1).mean()), runs, seed)


def converges_slope(
    sizes=(500, 1000, 2000, 4000, 8000, 16_000), d: int = 10, runs: int = 40, seed: int = 0
) -> Estimate:
    """Slope of log error over log n, `sizes` being numbers of masks; about 3 s."""
    parts = [lm.repeats(d, n, runs, seed) for n in sizes]
    squares = np.array([np.square(coefs - beta).mean(axis=1) for coefs, beta, _ in parts])

    def slope(chosen):
        return np.polyfit(np.log(sizes), np.log(squares[:, chosen].mean(axis=1)) / 2, 1)[0]

    return _resampled(slope, runs, seed)


def one_run_noise(n: int = 1000, n_models: int = 100, d: int = 33, seed: int = 0) -> Estimate:
    """Mean top-5 Jaccard index of two independent default runs on one random net."""
    agreement = lm.agreement(n, n_models, d, seed)
    return _resampled(lambda i: agreement[i].mean(), n_models, seed)


def one_run_noise_many(
    n: int = 1000, many: int = 100_000, n_models: int = 30, d: int = 33, seed: int = 0
) -> Estimate:
    """How much that index gains when the runs draw `many` masks; about 20 s."""
    gain = lm.agreement(many, n_models, d, seed) - lm.agreement(n, n_models, d, seed)
    return _resampled(lambda i: gain[i].mean(), n_models, seed)


def paired(n_models: int = 100, runs: int = 3, n: int = 1000, seed: int = 0) -> Estimate:
    """Squared error of independent masks over that of pairs (z, 1 - z), d = 16; about 4 s."""
    return _pairing(0.25, n_models, runs, n, seed)


def paired_narrow(n_models: int = 100, runs: int = 3, n: int = 1000, seed: int = 0) -> Estimate:
    """The same under the kernel width 0.1; about 4 s."""
    return _pairing(0.1, n_models, runs, n, seed)


# --- the package lime 0.2.0.1 ---------------------------------------------------------------------


@one_blas_thread
def pkg_equality(n_images: int = 3, n: int = 200, seed: int = 0) -> Estimate:
    """Largest difference between the package and `lime.explain(package_exact=True)`.

    Coefficients and intercepts of three labels, score and local prediction of the first, on
    photographs with mean and black replacement, another random state for each; about 5 s.
    """
    rng, differences = np.random.default_rng(seed), []
    for state, image in enumerate(lm.photographs()[:n_images]):
        classifier = lm.block_classifier(rng)
        for color in (None, 0):
            theirs = lm.package(
                image, classifier, state, hide_color=color, top_labels=3, num_samples=n
            )
            explained = theirs.top_labels
            ours = lime.explain(
                lambda batch, f=classifier: f(batch.numpy()),
                image,
                Components(theirs.segments[..., None]),
                targets=explained,
                n_samples=n,
                filler="mean" if color is None else color,
                package_exact=True,
                seed=state,
            )
            coefs = [[weight for _, weight in sorted(theirs.local_exp[k])] for k in explained]
            differences += [
                np.abs(ours.coef - coefs).max(),
                np.abs(ours.intercept - [theirs.intercept[k] for k in explained]).max(),
                abs(ours.score[0] - theirs.score),
                abs(ours.local_prediction[0] - theirs.local_pred[0]),
            ]
    return Estimate(*_worst(differences)[:3], n=2 * n_images)


def pkg_seed(seeds=(0, 1, 2, 3)) -> Estimate:
    """Pixels whose superpixel changes with `random_seed`, in a photograph and a flat image.

    A flat image is all ties, which quickshift breaks at random; about 3 s.
    """
    classifier, changed = lm.block_classifier(np.random.default_rng(0)), 0
    for image in (lm.photographs()[0], np.full((64, 64, 3), 128, np.uint8)):
        first, *others = (
            lm.package(image, classifier, 0, random_seed=s, num_samples=10).segments for s in seeds
        )
        changed += sum(np.count_nonzero(other != first) for other in others)
    return _exact(changed, 2 * len(seeds))


def pkg_slic(n: int = 200, n_segments: int = 30) -> Estimate:
    """How many of n perturbed photographs hide the last SLIC superpixel; about 1 s."""
    image = lm.photographs()[0]
    segment = _segmentation("slic", n_segments=n_segments)
    last = segment(image) == segment(image).max()
    classifier, hidden = lm.block_classifier(np.random.default_rng(0)), []

    def watched(batch):
        hidden.append((batch[:, last] != image[last]).any(axis=(1, 2)))
        return classifier(batch)

    lm.package(image, watched, 0, segmentation_fn=segment, hide_color=0, num_samples=n)
    return _exact(np.concatenate(hidden).sum(), n)


def range_segments() -> Estimate:
    """Superpixels of the astronaut at 224 pixels, uint8, as the package segments it."""
    return _exact(_superpixels(_astronaut()), 1)


def range_segments_float() -> Estimate:
    """Superpixels of the same pixels as floats in 0..255; about 1 s."""
    return _exact(_superpixels(_astronaut().astype(np.float64)), 1)


# --- helpers --------------------------------------------------------------------------------------


def _exact(value, n):
    return Estimate(float(value), float(value), float(value), n)


def _worst(values):
    values = list(values)
    return _exact(max(values), len(values))


def _range(values):
    values = list(values)
    return Estimate(float(np.median(values)), float(min(values)), float(max(values)), len(values))


def _resampled(statistic, n, seed):
    """`statistic` of all indices 0..n-1, with its percentile bootstrap 95 % interval."""
    if n < 2:
        return Estimate(float(statistic(np.arange(n))), np.nan, np.nan, n)
    low, high = scipy.stats.bootstrap(
        (np.arange(n),), statistic,
        vectorized=False, n_resamples=2000, method="percentile", rng=seed,
    ).confidence_interval  # fmt: skip
    value = statistic(np.arange(n))
    # A minimum of several medians can fall outside its own percentiles.
    return Estimate(float(value), float(min(low, value)), float(max(high, value)), n)


def _relative(ours, reference):
    return np.linalg.norm(ours - reference) / np.linalg.norm(reference)


def _cosine_kernel(z, nu):
    """The package's weights, from its own definition rather than from `limit.psi`."""
    from sklearn.metrics.pairwise import cosine_distances  # slow to import

    distance = cosine_distances(z.astype(np.float64), np.ones((1, z.shape[1])))[:, 0]
    return np.exp(-np.square(distance) / (2 * nu**2))


def _pairwise_gaps(n_models, d, nu, interaction, seed):
    rng, gaps = np.random.default_rng(seed), []
    for _ in range(n_models):
        function = lm.quadratic(d, rng, interaction)
        sums, f = lm.gradients_and_masks(function, d, rng, steps=20)
        gaps.append(_relative(sums, limit.exact(f, d, nu).coef))
    return np.array(gaps)


def _pairing(nu, n_models, runs, n, seed):
    squares = lm.design_errors(nu, n, n_models, runs, seed)
    return _resampled(lambda i: np.divide(*squares[i].sum(axis=0)), n_models, seed)


def _c_ratio(d, nu):
    return limit.coefficients(d, nu).c_d / (limit.psi(0.5, nu) ** 2 / 4)


def _segmentation(*arguments, **options):
    """The segmentation of the package, which is slow to import."""
    from lime.wrappers.scikit_image import SegmentationAlgorithm

    return SegmentationAlgorithm(*arguments, **options)


def _astronaut():
    small = skimage.transform.resize(
        skimage.data.astronaut(), (224, 224), anti_aliasing=True, preserve_range=True
    )
    return np.rint(small).astype(np.uint8)


def _superpixels(image):
    segment = _segmentation("quickshift", kernel_size=4, max_dist=200, ratio=0.2)
    return np.unique(segment(image)).size
