"""The weighted ridge regression behind LIME, with standard errors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from scipy.linalg import cho_factor, cho_solve
from scipy.linalg.lapack import dpocon

from xaiutils.runtime import one_blas_thread

EPS = np.finfo(np.float64).eps
MAX_CONDITION = 1e14  # of the equations of a fit: beyond, the masks do not determine it
LEAST = np.sqrt(EPS)  # share of an error that a residual must be for its error to be known from it
ROUNDING = 16  # relative spread, in machine epsilons, at which outputs still count as constant


@dataclass(frozen=True, eq=False)
class Fit:
    """What `fit` found. It unpacks as (intercept, coef, score, covariance).

    Attributes
    ----------
    intercept : (T,)
    coef : (T, d)
    score : (T,)
        Weighted R^2, at most 1; NaN if the output does not vary.
    covariance : (T, d + 1, d + 1)
        Of (intercept, coefficients). Computed when it is asked for: with many components it takes
        three times as long as the coefficients.
    """

    intercept: np.ndarray
    coef: np.ndarray
    score: np.ndarray
    _covariance: Callable[[], np.ndarray] = field(repr=False)

    @cached_property
    def covariance(self) -> np.ndarray:
        return self._covariance()

    def __getitem__(self, i: int) -> np.ndarray:
        return getattr(self, ("intercept", "coef", "score", "covariance")[i])


@one_blas_thread
def fit(masks, weights, outputs, ridge: float = 1.0, *, group: int = 1) -> Fit:
    """Weighted ridge regression of outputs on masks, with sandwich covariance.

    Parameters
    ----------
    masks : (n, d)
    weights : (n,)
        Not negative.
    outputs : (n, T)
        Finite. Outputs that differ by rounding alone, in the precision of their dtype, count as
        constant.
    ridge : float
    group : int
        Consecutive rows that depend on each other (2 for antithetic pairs).

    Returns
    -------
    Fit
        Its covariance is G^-1 M G^-1 with G the penalised Gram matrix and M the outer products of
        weight x error x row, summed within groups. The errors are those of the fit without the
        group, (1 - H)^-1 times its residuals for its block H of the hat matrix (HC3; MacKinnon and
        White 1985): with few masks per component the residuals are much smaller. It is NaN where
        they say nothing: unless there are more groups than d + 1 and more distinct masks (or all
        2^d), and for a constant output, whose coefficients are exactly 0 and whose score is NaN.

    Raises
    ------
    ValueError
        If `ridge` is negative, shapes do not fit, weights or outputs are not as above, or the fit
        is not determined (too few masks without a ridge).

    Examples
    --------
    Two components, all four masks, each output 1 + 2 z_1 + 3 z_2:

    >>> from xaiutils import regression
    >>> masks, outputs = [[0, 0], [0, 1], [1, 0], [1, 1]], [[1.0], [4.0], [3.0], [6.0]]
    >>> found = regression.fit(masks, [1, 1, 1, 1], outputs, ridge=0.0)
    >>> found.intercept.round(6), found.coef.round(6)
    (array([1.]), array([[2., 3.]]))
    """
    masks, weights = np.asarray(masks, np.float64), np.asarray(weights, np.float64)
    outputs, noise = _outputs(outputs, masks, weights)
    (n, d), targets = masks.shape, outputs.shape[1]
    check_determined(n, d, ridge)
    # Rows of smaller weight are lost in the rounding of sums over all rows.
    heard = weights > EPS * weights.max()
    size = np.abs(outputs[heard]).max(axis=0)
    constant = np.ptp(outputs[heard], axis=0) <= noise * size
    unknown = np.full((targets, d + 1, d + 1), np.nan)
    if n <= d:
        beta = _dual(masks, weights, outputs, ridge)
        residual = outputs - beta[0] - masks @ beta[1:]

        def covariance():
            return unknown
    else:
        root = np.sqrt(weights)[:, None]
        rows = root * np.hstack([np.ones((n, 1)), masks])
        factor, condition = _factor(rows, ridge)
        beta = cho_solve(factor, rows.T @ (root * outputs))  # (d + 1, T)
        residual = outputs - beta[0] - masks @ beta[1:]
        varying = np.flatnonzero(~constant)
        rounding = EPS * condition * np.abs(beta).max(axis=0)

        @one_blas_thread
        def covariance():
            starts = np.arange(0, n, group)
            if len(starts) <= d + 1 or not _enough(masks, heard):
                return unknown
            half = cho_solve(factor, rows.T).T
            left_out = _left_out(rows, half, root * residual[:, varying], group)
            for target, error in zip(varying, left_out.T, strict=True):
                moved = np.add.reduceat(half * error[:, None], starts, axis=0)
                unknown[target] = moved.T @ moved
                # Without noise the residuals are 0, but the solution still has its rounding.
                unknown[target][np.diag_indices(d + 1)] += rounding[target] ** 2
            return unknown

    mean = weights @ outputs / weights.sum()
    total = weights @ np.square(outputs - mean)
    with np.errstate(invalid="ignore", divide="ignore"):
        score = np.where(total > 0, 1 - weights @ np.square(residual) / total, np.nan)
    intercept, coef = beta[0], beta[1:].T
    intercept[constant], coef[constant], score[constant] = mean[constant], 0, np.nan
    return Fit(intercept, coef, score, covariance)


def _outputs(outputs, masks, weights):
    """Outputs as float64, and the relative size of the rounding they came with."""
    outputs = np.asarray(outputs)
    n = len(masks)
    if masks.ndim != 2 or outputs.ndim != 2 or {len(weights), len(outputs)} != {n} or not n:
        raise ValueError(
            "masks (n, d), weights (n,) and outputs (n, T) must have n > 0 rows, got shapes "
            f"{masks.shape}, {weights.shape} and {outputs.shape}"
        )
    if not np.isfinite(outputs).all():
        lost = (~np.isfinite(outputs)).any(axis=1).sum()
        raise ValueError(f"outputs must be finite, got NaN or infinity for {lost} of {n} masks")
    if not (np.isfinite(weights).all() and weights.min() >= 0 and weights.max() > 0):
        raise ValueError(
            f"weights must be finite, not negative and not all 0, got {weights.min()} to "
            f"{weights.max()}: kernel_width may be too small"
        )
    noise = 0.0
    if np.issubdtype(outputs.dtype, np.floating):  # few levels of half precision may be a signal
        noise = ROUNDING * float(np.finfo(np.promote_types(outputs.dtype, np.float32)).eps)
    return outputs.astype(np.float64, copy=False), noise


def _factor(rows, ridge):
    """Cholesky factor of the penalised Gram matrix, and its condition number in the 1-norm."""
    n, d = len(rows), rows.shape[1] - 1
    gram = rows.T @ rows
    gram[np.arange(1, d + 1), np.arange(1, d + 1)] += ridge
    norm = np.linalg.norm(gram, 1)
    try:
        factor, lower = cho_factor(gram, overwrite_a=True, check_finite=False)
    except np.linalg.LinAlgError:
        raise _undetermined(n, d, ridge) from None
    reciprocal, _ = dpocon(factor, norm, uplo="L" if lower else "U")
    if not reciprocal * MAX_CONDITION >= 1:
        raise _undetermined(n, d, ridge)
    return (factor, lower), 1 / reciprocal


def _left_out(rows, half, residual, group):
    """Errors (n, T) at each group of rows of the fit without them, from residuals (n, T).

    `half` is `rows` times the inverse Gram matrix. A group that alone determines a coefficient has
    no such error: what remains of its residuals then is rounding.
    """
    n = len(rows)

    def groups(values):  # the last may be short
        padded = np.pad(values, ((0, -n % group), (0, 0)))
        return padded.reshape(len(padded) // group, group, values.shape[1])

    hat = groups(half) @ groups(rows).swapaxes(1, 2)
    kept, axes = np.linalg.eigh(np.eye(group) - hat)
    scaled = axes.swapaxes(1, 2) @ groups(residual) / np.maximum(kept, LEAST)[..., None]
    return np.concatenate(axes @ scaled)[:n]


def _dual(masks, weights, outputs, ridge):
    """Intercept and coefficients (d + 1, T) by a system of n equations instead of d + 1."""
    total = weights.sum()
    centre, mean = weights @ masks / total, weights @ outputs / total
    root = np.sqrt(weights)[:, None]
    rows = root * (masks - centre)
    kernel = rows @ rows.T
    # Centred rows depend on each other: the smallest eigenvalue is exactly the ridge.
    if np.linalg.norm(kernel, 1) > MAX_CONDITION * ridge:
        raise _undetermined(*masks.shape, ridge)
    kernel[np.diag_indices(len(kernel))] += ridge
    coef = rows.T @ np.linalg.solve(kernel, root * (outputs - mean))
    return np.vstack([mean - centre @ coef, coef])


class Undetermined(ValueError):
    """More masks may help."""


def check_determined(n, d, ridge):
    if not 0 <= ridge < np.inf:
        raise ValueError(f"ridge must be finite and not negative, got {ridge!r}")
    if n <= d and not ridge:
        raise _undetermined(n, d, ridge)


def _undetermined(n, d, ridge):
    return Undetermined(
        f"{n} masks do not determine {d} coefficients with ridge={ridge}: "
        "raise n_samples, ridge or kernel_width"
    )


def _enough(masks, heard) -> bool:
    """Whether the rows that count are of more kinds than there are unknowns, or of all kinds."""
    d, seen = masks.shape[1], set()
    for i in np.flatnonzero(heard):
        seen.add(masks[i].tobytes())
        if len(seen) > d + 1 or len(seen) == 2**d:
            return True
    return False
