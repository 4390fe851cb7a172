"""LIME's coefficients from masks and a model's outputs, with errors that fit how they were got."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import numpy as np

from xaiutils import balance, regression, surrogate

NAMES = {"values": "model's outputs", "width": "kernel_width"}  # what callers know them by
MOST_D = 1000  # components: beyond, the free masks at which a process is read are too few


def check(estimator: str, link: str, n: int, d: int, package_exact: bool) -> None:
    """Refuse an estimator that cannot have up to n masks of d components."""
    if package_exact and estimator != "regression":
        raise ValueError(f'estimator must be "regression" with package_exact, got {estimator!r}')
    if estimator not in ("regression", "surrogate"):
        raise ValueError(f'estimator must be "regression" or "surrogate", got {estimator!r}')
    surrogate.check_link(link)
    if estimator == "regression" and link != "best":
        raise ValueError(
            f'link must be "best" with estimator="regression", which has none, got {link!r}; '
            'estimator="surrogate" takes it'
        )
    if estimator == "surrogate" and not 2 <= n <= surrogate.MOST:
        raise ValueError(
            f"n_samples, or max_samples of the stop rule, must be within 2..{surrogate.MOST} for "
            f'estimator="surrogate", got {n}'
        )
    if estimator == "surrogate" and d > MOST_D:
        raise ValueError(f'components must be at most {MOST_D} for estimator="surrogate", got {d}')


@contextmanager
def _as_callers_say() -> Iterator[None]:
    """Name in messages the arguments of `lime.explain`, not those that they become."""
    try:
        yield
    except ValueError as error:
        name, _, rest = str(error).partition(" ")
        if name not in NAMES:
            raise
        raise ValueError(f"{NAMES[name]} {rest}") from None


@_as_callers_say()
def estimate(
    masks, weights, outputs, *, width, ridge, design, estimator, link, seed
) -> regression.Fit:
    """Coefficients and covariance from masks (n, d) of a design and outputs (n, T)."""
    if estimator == "surrogate":
        return _read_off(masks, weights, outputs, width, link, seed)
    found = regression.fit(masks, weights, outputs, ridge, group=2 if design == "paired" else 1)
    n, d = masks.shape
    if design in ("iid", "paired") or n <= d + 1 or d > MOST_D or n > surrogate.MOST:
        return found

    def covariance():
        def read(t):
            return balance.covariance(masks, outputs[:, t], width=width, ridge=ridge, seed=seed)

        with _as_callers_say():
            return _by_output(found, read)

    return replace(found, _covariance=covariance)


def _read_off(masks, weights, outputs, width, link, seed):
    found = regression.fit(masks, np.ones(len(masks)), outputs)  # finds what is constant
    outputs = np.asarray(outputs, np.float64)
    intercept, coef = found.intercept, found.coef

    def read(t):
        process = surrogate.fit(masks, outputs[:, t], link=link, seed=seed)
        intercept[t], coef[t], covariance = process.lime(width, seed=seed)
        return covariance

    covariance = _by_output(found, read)
    residual = outputs - intercept - masks @ coef.T
    total = weights @ np.square(outputs - weights @ outputs / weights.sum())
    varying = ~np.isnan(found.score)
    score = np.full(len(coef), np.nan)
    score[varying] = 1 - (weights @ np.square(residual))[varying] / total[varying]
    return regression.Fit(intercept, coef, score, lambda: covariance)


def _by_output(found, read):
    """Covariances (T, d + 1, d + 1), those of outputs that vary from `read`, the others NaN."""
    targets, d = found.coef.shape
    covariances = np.full((targets, d + 1, d + 1), np.nan)
    for t in np.flatnonzero(~np.isnan(found.score)):
        covariances[t] = read(t)
    return covariances
