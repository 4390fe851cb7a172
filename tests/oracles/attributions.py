"""Gradients by finite differences, and what is made of them; DeepLIFT by matrices."""

from fractions import Fraction
from math import ceil, floor

import numpy as np
import torch
from scipy.stats import kstest
from torch import nn

from oracles.problems import Convolutional, Recorder, answer, softmax, weighted
from oracles.registry import oracle_of
from xaiutils import attribution, deeplift, integrated

N, SHAPE = 3, (2, 6, 8)
AGAINST = np.array([1, 0, 3])
SCALARS = [{}, {"against": AGAINST}, {"log_probability": True}]
FINITE_DIFFERENCES = {"rtol": 1e-6, "atol": 1e-8}


def images(rng):
    model, x = Convolutional(rng), rng.random((N, *SHAPE))
    return {"model": model, "x": x, "target": np.array([0, 3, 1])}


def scalar(outputs, i, target, against=None, log_probability=False):
    """What is explained, in outputs (..., K) for input i."""
    if log_probability:
        return np.log(np.apply_along_axis(softmax, -1, outputs)[..., target[i]])
    return outputs[..., target[i]] - (0 if against is None else outputs[..., against[i]])


def slope(function, point, step=1e-5):
    """Central differences of `function`, which maps a batch to (B,), at one point."""
    steps = step * np.eye(point.size).reshape(-1, *point.shape)
    rise = function(point + steps) - function(point - steps)
    return rise.reshape(point.shape) / (2 * step)


def explained(model, i, **which):
    """The scalar of input i as a function of a batch."""

    def function(batch):
        with torch.no_grad():
            return scalar(model(torch.from_numpy(batch)).numpy(), i, **which)

    return function


# --- gradients ------------------------------------------------------------------------------------


@oracle_of(attribution.gradient, images, SCALARS, **FINITE_DIFFERENCES)
def gradient(model, x, **which):
    return np.array([slope(explained(model, i, **which), image) for i, image in enumerate(x)])


@oracle_of(
    attribution.input_x_gradient,
    images,
    [*SCALARS, {"baseline": 0.4}, {"baseline": np.array([0.2, 0.7])[:, None, None]}],
    **FINITE_DIFFERENCES,
)
def input_x_gradient(model, x, baseline=0.0, **which):
    return (x - baseline) * gradient(model, x, **which)


def batch_of(model, count):
    """The batch of this length that a `Recorder` saw."""
    return next(batch.numpy() for batch in model.seen if len(batch) == count)


def noise_of(n, shape, n_samples, seed):
    """The noise that SmoothGrad adds to inputs whose values range over 1, (n, samples, *shape)."""
    ramp = np.broadcast_to(np.linspace(0, 1, np.prod(shape)).reshape(shape), (n, *shape)).copy()
    model = Recorder(weighted(nn.Sequential(nn.Flatten(), nn.Linear(ramp[0].size, 2)), _rng()))
    attribution.smoothgrad(
        model, ramp, [0] * n, n_samples=n_samples, spread=1, seed=seed, batch_size=n * n_samples
    )
    noise = batch_of(model, n * n_samples).reshape(n, n_samples, *shape) - ramp[:, None]
    assert kstest(noise.ravel(), "norm").pvalue > 1e-3
    return noise


def _rng():
    return np.random.default_rng(0)


@oracle_of(
    attribution.smoothgrad,
    lambda rng: {**images(rng), "n_samples": 5, "spread": 0.15, "seed": 0},
    [*SCALARS, {"spread": 0.5, "seed": 4}],
    **FINITE_DIFFERENCES,
)
def smoothgrad(model, x, *, n_samples, spread, seed, **which):
    noise, means, squares = noise_of(N, SHAPE, n_samples, seed), [], []
    for i, image in enumerate(x):
        sigma = spread * (image.max() - image.min())
        function = explained(model, i, **which)
        slopes = [slope(function, image + sigma * one) for one in noise[i]]
        means.append(sum(slopes) / n_samples)
        squares.append(sum(s**2 for s in slopes) / n_samples)
    return {"mean": np.array(means), "mean_square": np.array(squares)}


# --- along a path ---------------------------------------------------------------------------------


def with_baselines(rng):
    return {**images(rng), "baseline": rng.random((N, *SHAPE)), "steps": 300}


@oracle_of(attribution.integrated_gradients, with_baselines, SCALARS, rtol=0, atol=1e-5)
def integrated_gradients(model, x, baseline, *, steps, **which):
    """By 24 nodes of Gauss and Legendre, whatever the rule and its steps."""
    nodes, weights = np.polynomial.legendre.leggauss(24)
    total = np.zeros_like(x)
    for i, (image, start) in enumerate(zip(x, baseline, strict=True)):
        function = explained(model, i, **which)
        for t, weight in zip((nodes + 1) / 2, weights / 2, strict=True):
            total[i] += weight * slope(function, start + t * (image - start))
    return (x - baseline) * total


@oracle_of(
    attribution.integrated_gradients,
    lambda rng: {**images(rng), "baseline": rng.random(SHAPE), "steps": 300},
    rtol=0,
    atol=1e-5,
)
def integrated_gradients_of_one_baseline(model, x, baseline, **options):
    return integrated_gradients(model, x, np.stack([baseline] * N), **options)


def draws_of(n, m, n_samples, **options):
    """Which reference each sample drew and how far along it lies, both (n, samples).

    From x = 0 towards the j-th unit vector, a point is (1 - a) times that vector.
    """
    model = Recorder(weighted(nn.Linear(m, 2), _rng()))
    attribution.expected_gradients(
        model,
        np.zeros((n, m)),
        np.eye(m),
        [0] * n,
        n_samples=n_samples,
        batch_size=n * n_samples,
        **options,
    )
    points = batch_of(model, n * n_samples).reshape(n, n_samples, m)
    along = 1 - points.max(2)
    assert (along >= 0).all() and (along <= 1).all()
    return points.argmax(2), along


@oracle_of(
    attribution.expected_gradients,
    lambda rng: {**images(rng), "references": rng.random((4, *SHAPE)), "n_samples": 6, "seed": 2},
    [*SCALARS, {"candidates": [[3], [0, 2], [1, 2, 3]]}],
    **FINITE_DIFFERENCES,
)
def expected_gradients(model, x, references, *, n_samples, seed, candidates=None, **which):
    draws = {"seed": seed, "candidates": candidates}
    chosen, along = draws_of(N, len(references), n_samples, **draws)
    maps = []
    for i, image in enumerate(x):
        function, parts = explained(model, i, **which), []
        for j, a in zip(chosen[i], along[i], strict=True):
            change = image - references[j]
            parts.append(change * slope(function, references[j] + a * change))
        maps.append(sum(parts) / n_samples)
    return np.array(maps)


# --- Grad-CAM and occlusion -----------------------------------------------------------------------


def bilinear(coarse, height, width):
    """`coarse` (h, w) enlarged; the centres of corner pixels are not aligned."""

    def along(size, fine, i):
        at = min(max((i + 0.5) * size / fine - 0.5, 0), size - 1)
        low = min(floor(at), size - 2)
        return low, at - low

    out = np.empty((height, width))
    for row, column in np.ndindex(height, width):
        (top, down), (left, right) = (
            along(size, fine, i)
            for size, fine, i in zip(coarse.shape, (height, width), (row, column), strict=True)
        )
        corners = coarse[top : top + 2, left : left + 2]
        out[row, column] = np.array([1 - down, down]) @ corners @ np.array([1 - right, right])
    return out


@oracle_of(
    attribution.gradcam,
    images,
    [*SCALARS, {"relu": True}],
    call=lambda model, **options: attribution.gradcam(model, model.trunk, **options),
    **FINITE_DIFFERENCES,
)
def gradcam(model, x, relu=False, **which):
    maps = []
    for i, image in enumerate(x):
        with torch.no_grad():
            activations = model.trunk(torch.from_numpy(image)[None])[0].numpy()

        def function(batch, i=i):
            with torch.no_grad():
                return scalar(model.rest(torch.from_numpy(batch)).numpy(), i, **which)

        slopes = slope(function, activations)
        coarse = sum(a * s.mean() for a, s in zip(activations, slopes, strict=True))
        maps.append(bilinear(np.maximum(coarse, 0) if relu else coarse, *SHAPE[1:]))
    return np.array(maps)


def cells(height, width, rows, columns):
    """Cell of each pixel of a grid: the shares of the height and width above and left of it."""
    return np.array(
        [
            [floor(Fraction(i * rows, height)) * columns + floor(Fraction(j * columns, width))
             for j in range(width)]
            for i in range(height)
        ]
    )  # fmt: skip


@oracle_of(
    attribution.occlusion,
    lambda rng: {**images(rng), "patch": 3},
    [*SCALARS, {"patch": 1}, {"patch": 4, "baseline": 0.6}, {"patch": 8, "baseline": "mean"}],
)
@oracle_of(
    attribution.occlusion,
    lambda rng: {**images(rng), "patch": 2, "baseline": rng.random((N, *SHAPE))},
)
def occlusion(model, x, *, patch, baseline=0.0, **which):
    labels = cells(*SHAPE[1:], *(ceil(side / patch) for side in SHAPE[1:]))
    maps = np.empty((N, *SHAPE[1:]))
    for i, image in enumerate(x):
        own = baseline[i] if np.ndim(baseline) == 4 else baseline
        full = scalar(answer(model, image), i, **which)
        for cell in range(labels.max() + 1):
            inside, hidden = labels == cell, image.copy()
            for channel, values in enumerate(image):
                if isinstance(own, str):
                    hidden[channel][inside] = values[inside].mean()
                else:
                    hidden[channel][inside] = np.broadcast_to(own, image.shape)[channel][inside]
            maps[i][inside] = full - scalar(answer(model, hidden), i, **which)
    return maps


@oracle_of(
    attribution.reduce,
    lambda rng: {"attribution": rng.normal(size=(2, 3, 4, 5))},
    [{"how": "sum"}, {"how": "abs_sum"}],
)
def reduce(attribution, how):
    out = np.zeros((2, 4, 5))
    for i, channel, row, column in np.ndindex(attribution.shape):
        value = attribution[i, channel, row, column]
        out[i, row, column] += abs(value) if how == "abs_sum" else value
    return out


# --- DeepLIFT -------------------------------------------------------------------------------------


def rectifier(rng):
    layers = nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 6), nn.ReLU(), nn.Linear(6, 4)
    return {
        "model": weighted(nn.Sequential(*layers), rng),
        "x": rng.normal(size=(8, 5)),
        "target": rng.integers(0, 2, 8),
    }


VERSUS = [{}, {"against": np.array([2, 3] * 4)}]


@oracle_of(
    deeplift.deeplift, lambda rng: {**rectifier(rng), "baseline": rng.normal(size=(8, 5))}, VERSUS
)
def rescale(model, x, baseline, target, against=None):
    """Forwards: the share of each input in the change of each unit, layer by layer."""
    weights = [w.detach().numpy() for w in model.parameters()]
    maps = []
    for i, (at, start) in enumerate(zip(x, baseline, strict=True)):
        shares = np.diag(at - start)
        for w, c in zip(weights[:4:2], weights[1:4:2], strict=True):
            at, start, shares = w @ at + c, w @ start + c, w @ shares
            multipliers = (np.maximum(at, 0) - np.maximum(start, 0)) / (at - start)
            at, start = np.maximum(at, 0), np.maximum(start, 0)
            shares = multipliers[:, None] * shares
        shares = weights[4] @ shares
        maps.append(shares[target[i]] - (0 if against is None else shares[against[i]]))
    return np.array(maps)


@oracle_of(
    deeplift.deepshap,
    lambda rng: {**rectifier(rng), "baselines": rng.normal(size=(8, 3, 5))},
    VERSUS,
)
@oracle_of(
    deeplift.deepshap, lambda rng: {**rectifier(rng), "baselines": rng.normal(size=(4, 5))}, VERSUS
)
def deepshap(model, x, baselines, target, against=None):
    own = np.stack([baselines] * len(x)) if baselines.ndim == 2 else baselines
    each = [rescale(model, x, start, target, against) for start in own.swapaxes(0, 1)]
    return sum(each) / len(each)


@oracle_of(
    attribution.completeness_gap,
    lambda rng: {
        **images(rng),
        "baseline": rng.random((N, *SHAPE)),
        "attribution": rng.random((N, *SHAPE)),
    },
    SCALARS,
)
def completeness_gap(model, x, baseline, attribution, **which):
    ends = zip(x, baseline, strict=True)
    rises = [
        scalar(answer(model, one), i, **which) - scalar(answer(model, start), i, **which)
        for i, (one, start) in enumerate(ends)
    ]
    return attribution.sum(axis=(1, 2, 3)) - rises


def powers(nodes, weights):
    return [weights @ nodes**k for k in range(2 * len(nodes))]


@oracle_of(
    integrated.gauss_legendre,
    lambda rng: {},
    [{"steps": 1}, {"steps": 6}],
    call=lambda steps: [
        integrated.gauss_legendre(steps)[1] @ integrated.gauss_legendre(steps)[0] ** k
        for k in range(2 * steps)
    ],
)
def gauss_legendre(steps):
    """Powers up to 2 steps - 1 are integrated exactly."""
    return np.array([1 / (k + 1) for k in range(2 * steps)])


@oracle_of(
    attribution.tokens_to_map,
    lambda rng: {"tokens": torch.from_numpy(rng.random((2, 7, 5))), "size": (2, 3)},
    [{}, {"size": 2, "prefix": 3}],
    call=lambda tokens, **options: attribution.tokens_to_map(**options)(tokens),
)
def tokens_to_map(tokens, size, prefix=1):
    rows, columns = np.broadcast_to(size, 2)
    out = np.empty((2, 5, rows, columns))
    for i, channel, row, column in np.ndindex(out.shape):
        out[i, channel, row, column] = tokens[i, prefix + row * columns + column, channel]
    return out
