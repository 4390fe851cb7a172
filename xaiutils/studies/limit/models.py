"""Random models with known limits, repeated runs on them, and runs of the package `lime` itself.

A random model is a torch function s (N, d) -> (N,), where s_j in [0, 1] says how much of
superpixel j is kept. LIME sees it at 0 and 1 only, integrated gradients in between.
"""

from __future__ import annotations

import functools
from unittest import mock

import numpy as np
import torch
from scipy.special import softmax

from xaiutils import lime, limit, perturb
from xaiutils.data import datasets
from xaiutils.perturb import Components
from xaiutils.runtime import one_blas_thread


def net(d: int, rng, scale: float = 1.0, width: int = 16):
    """Tanh net with a sigmoid on top and normal weights; `scale` of its inputs is roughness."""
    first = torch.from_numpy(rng.normal(size=(d, width)) / np.sqrt(d))
    bias, second = torch.from_numpy(rng.normal(size=(2, width)))
    return lambda s: torch.sigmoid(torch.tanh(scale * ((2 * s - 1) @ first + bias)) @ second)


def softmax_model(d: int, rng, classes: int = 4):
    """Probability of one class, the scores of all being linear with normal weights."""
    scores = torch.from_numpy(2 * rng.normal(size=(d, classes)) / np.sqrt(d))
    return lambda s: torch.softmax((2 * s - 1) @ scores, dim=1)[:, 0]


def additive(d: int, rng):
    """Sum of a curved function of each superpixel."""
    slope, bend = torch.from_numpy(rng.normal(size=(2, d)))
    return lambda s: (slope * s + torch.tanh(2 * bend * s)).sum(1)


def quadratic(d: int, rng, interaction: float):
    """Slopes of standard deviation 1, coefficients of pairs of deviation `interaction`."""
    slope = torch.from_numpy(rng.normal(size=d))
    pairs = torch.from_numpy(interaction * np.triu(rng.normal(size=(d, d)), 1))
    return lambda s: s @ slope + ((s @ pairs) * s).sum(1)


def on_masks(function):
    """The model as a function of bool masks (N, d), as `limit.exact` wants it."""
    return lambda z: function(torch.from_numpy(z.astype(np.float64))).numpy()


class Blend(torch.nn.Module):
    """A random model of images (N, d, pixels): s_j is how far row j is from `baseline` to `x`."""

    def __init__(self, function, x, baseline):
        super().__init__()
        change = torch.from_numpy(x - baseline)
        slope = change / change.square().sum(dim=1, keepdim=True)
        self.slope = torch.nn.Parameter(slope, requires_grad=False)
        self.baseline = torch.nn.Parameter(torch.from_numpy(baseline), requires_grad=False)
        self.function = function

    def forward(self, images):
        return self.function(((images - self.baseline) * self.slope).sum(dim=-1))[:, None]


def gradients_and_masks(function, d: int, rng, *, steps: int, pixels: int = 4):
    """Superpixel sums of integrated gradients (d,) on a random image, and the model on masks."""
    x, baseline = rng.normal(size=(2, d, pixels))
    model, components = Blend(function, x, baseline), Components(np.arange(d)[:, None])
    sums = limit.integrated_gradients_sums(model, x, baseline, components, 0, steps=steps)
    outputs = perturb.evaluate(
        lambda batch: model(batch), x, components, limit.masks(d), baseline, batch_size=2**d
    )
    return sums, limit.lookup(outputs[:, 0])


def run(function, d: int, n: int, seed: int, **options) -> np.ndarray:
    """Coefficients (d,) of one LIME run with n masks on a random model."""
    return lime.explain(
        lambda batch: function(batch)[:, None], np.ones(d), Components(np.arange(d)),
        targets=0, n_samples=n, filler=0.0, seed=seed, batch_size=n, **options,
    ).coef  # fmt: skip


@functools.lru_cache
@one_blas_thread
def repeats(d: int, n: int, runs: int, seed: int):
    """Repeated runs without ridge on one net: coefs (runs, d), limit (d,), CLT variances (d,)."""
    function = net(d, np.random.default_rng([seed, d]))
    coefs = [run(function, d, n, s, ridge=0.0) for s in _seeds(runs, seed, d, n)]
    f = on_masks(function)
    return np.array(coefs), limit.exact(f, d).coef, limit.clt_variance(f, d)[1:]


@functools.lru_cache
@one_blas_thread
def agreement(n: int, n_models: int, d: int, seed: int) -> np.ndarray:
    """Top-5 Jaccard index of two default runs on each of the random nets, (n_models,)."""
    indices = []
    for model in range(n_models):
        function = net(d, np.random.default_rng([seed, model]))
        a, b = (lime.top_k(run(function, d, n, s), 5) for s in _seeds(2, seed, model, n))
        indices.append(lime.jaccard(a, b))
    return np.array(indices)


@one_blas_thread
def design_errors(nu: float, n: int, n_models: int, runs: int, seed: int, d: int = 16):
    """Mean squared errors of runs without ridge, (n_models, 2): independent masks, pairs."""
    squares = np.empty((n_models, 2))
    for model in range(n_models):
        function = net(d, np.random.default_rng([seed, model]))
        beta = limit.exact(on_masks(function), d, nu).coef
        for column, design in enumerate(("iid", "paired")):
            options = {"design": design, "kernel_width": nu, "ridge": 0.0}
            coefs = [run(function, d, n, s, **options) for s in _seeds(runs, seed, model, column)]
            squares[model, column] = np.square(np.array(coefs) - beta).mean()
    return squares


@functools.cache
def photographs() -> np.ndarray:
    """The ImageNet samples, (20, 224, 224, 3) uint8."""
    images = datasets.imagenet_samples().images.permute(0, 2, 3, 1).numpy()
    return np.rint(images * 255).astype(np.uint8)


def block_classifier(rng, side: int = 8, classes: int = 5):
    """Probabilities from the mean colours of side x side blocks: cheap and deterministic."""
    weights = rng.normal(size=(side * side * 3, classes)) / 2

    def classifier(batch):
        n, height, width, _ = batch.shape
        blocks = batch.reshape(n, side, height // side, side, width // side, 3).mean(axis=(2, 4))
        return softmax(blocks.reshape(n, -1) / 255 @ weights, axis=1)

    return classifier


def package(image, classifier, random_state: int, **options):
    """Explanation by the package itself, without its progress bar."""
    from lime import lime_image  # slow to import

    explainer = lime_image.LimeImageExplainer(random_state=random_state)
    with mock.patch.object(lime_image, "tqdm", iter):
        return explainer.explain_instance(image, classifier, **options)


def _seeds(count, *key):
    return np.random.SeedSequence(key).generate_state(count).tolist()
