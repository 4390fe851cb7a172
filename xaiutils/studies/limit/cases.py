"""Models whose limit is known in closed form, beside real runs of the `lime` package."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from xaiutils import lime, limit, segment
from xaiutils.perturb import Components
from xaiutils.studies.limit.experiments import table
from xaiutils.studies.limit.models import package


class KnownCase(NamedTuple):
    """A model whose limit is known, on one gray image, and runs of the `lime` package.

    Attributes
    ----------
    image : (H, W) in [0, 1]
    components : Components, labels (H, W)
    support : (H, W), the detector's pixels or the linear model's weights
    runs : (R, d + 1), intercept and coefficients of each run of the package
    theory, package : Limit
        Closed form for infinitely many masks; and with the package's ridge and first row.
    enumerated : Limit
        The same as `theory`, but from the model's answers to all 2^d masks.
    fit, stderr : (d,)
        Coefficients of one run of ours without ridge, and their standard errors.
    """

    image: np.ndarray
    components: Components
    support: np.ndarray
    runs: np.ndarray
    theory: limit.Limit
    package: limit.Limit
    enumerated: limit.Limit
    fit: np.ndarray
    stderr: np.ndarray


def shape_detector(
    image, start: int, *, length: int = 5, tau: float = 0.5, n_runs: int, n_samples: int, seed: int
) -> KnownCase:
    """The paper's Figure 3: is a vertical stroke of `length` pixels from `start` all bright?

    Parameters
    ----------
    image : (28, 28) in [0, 1]
    start : int
        Flat index of the stroke's first pixel.
    """
    image = np.asarray(image, np.float64)
    support = np.zeros(image.shape, bool)
    support.flat[start + image.shape[1] * np.arange(length)] = True
    components = Components(segment.quickshift(image[None], kernel_size=1))
    black = np.zeros_like(image)
    theory = limit.shape_detector(image, black, support, components, tau=tau)
    package = limit.shape_detector(
        image, black, support, components, tau=tau, ridge=1.0, n=n_samples, first_row=True
    )

    def model(batch):
        return (np.asarray(batch)[:, support] > tau).all(axis=1)[:, None].astype(np.float64)

    return _known(image, components, support, model, theory, package, n_runs, n_samples, seed)


def linear_model(image, *, n_runs: int, n_samples: int, seed: int) -> KnownCase:
    """The paper's Figure 4: a linear model with weights (row + column) / 100 plus noise."""
    image = np.asarray(image, np.float64)
    row, column = np.indices(image.shape)
    weights = (row + column) / 100 + np.random.default_rng(seed).normal(0, 0.1, image.shape)
    components = Components(segment.quickshift(image[None], kernel_size=1))
    theory = limit.linear(weights, image, np.zeros_like(image), components)

    package = limit.exact(
        lambda z: theory.intercept + z @ theory.coef,
        components.d, ridge=1.0, n=n_samples, first_row=True,
    )  # fmt: skip

    def model(batch):
        return np.tensordot(np.asarray(batch, np.float64), weights, axes=2)[:, None]

    return _known(image, components, weights, model, theory, package, n_runs, n_samples, seed)


def _known(image, components, support, model, theory, package, n_runs, n_samples, seed):
    runs = package_runs(
        image, components, model, n_runs=n_runs, n_samples=n_samples, hide_color=0, seed=seed
    )
    enumerated = limit.exact(
        limit.lookup(table(model, image, components, 0, filler=0.0)), components.d
    )
    ours = lime.explain(
        model, image, components, targets=0, n_samples=n_samples, ridge=0.0, filler=0.0, seed=seed
    )
    return KnownCase(
        image, components, support, runs, theory, package, enumerated, ours.coef, ours.stderr
    )


def largest_gap(case: KnownCase, coef) -> float:
    """Largest distance of coefficients (..., d) to the closed form."""
    return float(np.abs(np.asarray(coef) - case.theory.coef).max())


def package_runs(
    image, components: Components, model: Callable, *, n_runs, n_samples, hide_color, seed
) -> np.ndarray:
    """Intercept and coefficients of real runs of the `lime` package, (n_runs, d + 1).

    Parameters
    ----------
    image : (H, W) in [0, 1]
    model : callable
        Maps gray images (n, H, W) to one output (n, 1).
    hide_color : float or None
        Gray level of hidden superpixels; None is the package's mean colour.
    """
    rgb = np.repeat(np.asarray(image, np.float64)[..., None], 3, axis=2)
    runs = np.empty((n_runs, components.d + 1))
    for run in tqdm(range(n_runs), desc="runs of lime", delay=5, leave=False):
        explanation = package(
            rgb,
            lambda batch: model(batch[..., 0]),
            random_state=seed + run,
            segmentation_fn=lambda _: components.labels,
            hide_color=hide_color,
            top_labels=1,
            num_samples=n_samples,
        )
        runs[run, 0] = explanation.intercept[0]
        for superpixel, weight in explanation.local_exp[0]:
            runs[run, superpixel + 1] = weight
    return runs


def package_z(case: KnownCase) -> np.ndarray:
    """Mean of the package's runs minus its exact limit, in standard errors of the mean, (d,)."""
    coef = case.runs[:, 1:]
    error = coef.std(axis=0, ddof=1) / np.sqrt(len(coef))
    gap = coef.mean(axis=0) - case.package.coef
    return np.divide(gap, error, out=np.zeros_like(gap), where=error > 1e-12)
