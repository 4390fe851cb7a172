"""LIME for any partition of an input, with standard errors and a stop rule.

The algorithm is that of `lime` 0.2.0.1 (`LimeImageExplainer`): hide random superpixels,
weigh each mask by its closeness to the whole image, fit a weighted ridge regression. By
default three of its quirks are left out (a forced first row, truncated uint8 means, the
package's own order of draws); `package_exact=True` brings them back.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import norm

from xaiutils import designs, limit
from xaiutils.data.images import as_numpy
from xaiutils.perturb import Components, Filler, evaluate
from xaiutils.runtime import one_blas_thread


@dataclass(frozen=True)
class Stop:
    """When enough masks are drawn.

    Attributes
    ----------
    stderr : float, optional
        Stop when no coefficient's standard error is larger.
    top_k : int, optional
        Stop when coefficients k and k + 1 (in decreasing order) differ at `level`.
    level : float
        Two-sided confidence of the `top_k` rule over all its looks at the data together.
    max_samples : int
        Cap on the number of masks.

    Raises
    ------
    ValueError
        If not exactly one rule is given, or a number is out of range.
    """

    stderr: float | None = None
    top_k: int | None = None
    level: float = 0.95
    max_samples: int = 20_000

    def __post_init__(self):
        if (self.stderr is None) == (self.top_k is None):
            raise ValueError("Stop needs exactly one of stderr and top_k")
        for name in ("stderr", "top_k", "max_samples"):
            if getattr(self, name) is not None and not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)!r}")
        if not 0 < self.level < 1:
            raise ValueError(f"level must lie between 0 and 1, got {self.level!r}")

    def met(self, coef: np.ndarray, covariance: np.ndarray, looks: int = 1) -> bool:
        """Whether every explained output, coef (T, d), covariance (T, d+1, d+1), is settled.

        `looks` is how often the rule may be asked in all: the risk 1 - `level` is shared by them
        (Bonferroni), or ties would be told apart by asking often enough.
        """
        if self.stderr is not None:
            return bool(np.sqrt(_diagonal(covariance)[:, 1:]).max() <= self.stderr)
        quantile = norm.isf((1 - self.level) / (2 * looks))
        return all(
            self._separated(c, v, quantile)
            for c, v in zip(coef, covariance[:, 1:, 1:], strict=True)
        )

    def _separated(self, coef, covariance, quantile):
        order = np.argsort(-coef)
        if self.top_k >= len(coef):
            return True
        i, j = order[self.top_k - 1], order[self.top_k]
        variance = covariance[i, i] + covariance[j, j] - 2 * covariance[i, j]
        return coef[i] - coef[j] >= quantile * np.sqrt(variance)


@dataclass(frozen=True)
class Explanation:
    """A fitted explanation. Leading axis T only if `targets` was a sequence.

    Attributes
    ----------
    intercept : () or (T,)
    coef, stderr : (d,) or (T, d)
        Coefficient of each component and its standard error (sandwich formula). Under the
        orthogonal design it is an upper bound, often several times too large: the formula
        does not know that the rows balance each other.
    covariance : (d + 1, d + 1) or (T, d + 1, d + 1)
        Of (intercept, coefficients).
    score : () or (T,)
        Weighted R^2 of the fit, at most 1; NaN if the outputs do not vary.
    masks : (n, d) bool
    weights : (n,)
    outputs : (n,) or (n, T)
    converged : bool or None
        Whether the stop rule was met; None without one.
    """

    intercept: np.ndarray
    coef: np.ndarray
    score: np.ndarray
    covariance: np.ndarray
    masks: np.ndarray
    weights: np.ndarray
    outputs: np.ndarray
    converged: bool | None = None

    @property
    def stderr(self) -> np.ndarray:
        return np.sqrt(_diagonal(self.covariance)[..., 1:])

    @property
    def local_prediction(self) -> np.ndarray:
        """What the fit says for the unperturbed input."""
        return self.intercept + self.coef.sum(axis=-1)


def explain(
    model,
    x,
    components: Components,
    *,
    targets: int | Sequence[int],
    n_samples: int = 1000,
    kernel_width: float = 0.25,
    ridge: float = 1.0,
    filler: Filler = "mean",
    design: str = "iid",
    stop: Stop | None = None,
    package_exact: bool = False,
    seed: int = 0,
    batch_size: int | None = None,
    device: str = "auto",
) -> Explanation:
    """Explain outputs of `model` at `x` by the components that raise them.

    Parameters
    ----------
    model, x, components, filler, batch_size, device : see `perturb.evaluate`
        The model's outputs are explained as they are: end it with a softmax to explain
        probabilities.
    targets : int or sequence of int
        Explained outputs; one call of the model serves all.
    n_samples : int
        Masks, or masks per round with a stop rule.
    kernel_width : float
        Bandwidth nu of the weights exp(-D^2 / (2 nu^2)), D the cosine distance to no hiding.
    ridge : float
        Penalty on the coefficients, not on the intercept.
    design : "iid", "paired" or "orthogonal"
        How masks are drawn, see `designs.draw`.
    stop : Stop, optional
        Draw further rounds of `n_samples` masks until it is met or its cap is reached.
    package_exact : bool
        Reproduce `lime.lime_image.LimeImageExplainer(random_state=seed)`.
    seed : int

    Returns
    -------
    Explanation

    Raises
    ------
    ValueError
        If an argument is out of range, or if the masks cannot determine the fit.
    """
    columns = as_numpy(targets)
    single, columns = columns.ndim == 0, np.atleast_1d(columns)
    if package_exact and (design != "iid" or stop is not None):
        raise ValueError("package_exact draws one round of independent masks: no design, no stop")
    fits = columns.ndim == 1 and columns.size and columns.dtype.kind in "iu"
    if not fits or columns.min() < 0:
        raise ValueError(f"targets must be outputs of the model, counted from 0, got {targets!r}")
    if n_samples < 1:
        raise ValueError(f"n_samples must be positive, got {n_samples}")
    if stop is not None and stop.max_samples < n_samples:
        raise ValueError(
            f"max_samples={stop.max_samples} of the stop rule is less than one round of "
            f"n_samples={n_samples}"
        )
    looks = 1 if stop is None else stop.max_samples // n_samples
    d = components.d
    if package_exact:
        filler = _package_fill(x, components) if _is_mean(filler) else filler
        generator = np.random.RandomState(seed)
        generator.randint(0, high=1000)  # the package draws a seed for its segmentation first
    else:
        generator = np.random.default_rng(seed)

    def more():
        if package_exact:
            masks = generator.randint(0, 2, n_samples * d).reshape(n_samples, d).astype(bool)
            masks[0] = True
        else:
            masks = designs.draw(n_samples, d, design, generator)
        outputs = evaluate(
            model, x, components, masks, filler,
            batch_size=batch_size, device=device, outputs=columns,
        )  # fmt: skip
        return masks, outputs.astype(np.float64)

    masks, outputs = more()
    while True:
        weights = kernel(masks, kernel_width)
        group = 2 if design == "paired" else 1
        intercept, coef, score, covariance = fit(masks, weights, outputs, ridge, group=group)
        converged = None if stop is None else stop.met(coef, covariance, looks)
        if converged is not False or len(masks) + n_samples > stop.max_samples:
            break
        new_masks, new_outputs = more()
        masks, outputs = np.vstack([masks, new_masks]), np.vstack([outputs, new_outputs])
    pick = 0 if single else slice(None)
    return Explanation(
        intercept[pick], coef[pick], score[pick], covariance[pick],
        masks, weights, outputs[:, pick], converged,
    )  # fmt: skip


def kernel(masks, width: float = 0.25) -> np.ndarray:
    """Weight of each mask (n, d), in [0, 1]: `limit.psi` of its share of hidden components."""
    if not width > 0:
        raise ValueError(f"kernel_width must be positive, got {width!r}")
    return limit.psi(1 - np.asarray(masks, bool).mean(axis=1), width)


@one_blas_thread
def fit(masks, weights, outputs, ridge: float = 1.0, *, group: int = 1):
    """Weighted ridge regression of outputs on masks, with sandwich covariance.

    Parameters
    ----------
    masks : (n, d)
    weights : (n,)
    outputs : (n, T)
    ridge : float
    group : int
        Consecutive rows that depend on each other (2 for antithetic pairs).

    Returns
    -------
    intercept (T,), coef (T, d), score (T,), covariance (T, d + 1, d + 1)
        cov = G^-1 M G^-1 with G the penalised Gram matrix and M the outer products of
        weight x residual x row, summed within groups; times n / (n - d - 1), without which
        a fit with few masks per component looks too sure.

    Raises
    ------
    ValueError
        If `ridge` is negative or the fit is not determined (too few masks without a ridge).
    """
    if ridge < 0:
        raise ValueError(f"ridge must not be negative, got {ridge!r}")
    rows = np.hstack([np.ones((len(masks), 1)), np.asarray(masks, np.float64)])
    n, columns = rows.shape
    weighted = rows * weights[:, None]
    gram = weighted.T @ rows
    gram[np.arange(1, columns), np.arange(1, columns)] += ridge
    try:
        if np.linalg.cond(gram) > 1e14:
            raise np.linalg.LinAlgError
        inverse = np.linalg.inv(gram)
    except np.linalg.LinAlgError:
        raise ValueError(
            f"{n} masks do not determine {columns - 1} coefficients with ridge={ridge}: "
            "raise n_samples, ridge or kernel_width"
        ) from None
    beta = np.linalg.solve(gram, weighted.T @ outputs)  # (d + 1, T)
    residual = outputs - rows @ beta
    mean = weights @ outputs / weights.sum()
    total = weights @ np.square(outputs - mean)
    with np.errstate(invalid="ignore", divide="ignore"):
        score = np.where(total > 0, 1 - weights @ np.square(residual) / total, np.nan)
    half = weighted @ inverse
    starts = np.arange(0, n, group)
    covariance = np.empty((outputs.shape[1], columns, columns))
    for target in range(outputs.shape[1]):
        moved = np.add.reduceat(half * residual[:, target, None], starts, axis=0)
        covariance[target] = moved.T @ moved
    covariance *= n / max(n - columns, 1)
    return beta[0], beta[1:].T, score, covariance


def top_k(coef, k: int) -> set[int]:
    """Indices of the k largest strictly positive coefficients; fewer if fewer are positive."""
    coef = np.asarray(coef)
    return {int(j) for j in np.argsort(-coef, kind="stable")[:k] if coef[j] > 0}


def jaccard(a: set, b: set) -> float:
    """Size of the intersection over that of the union; 1 if both are empty."""
    return len(a & b) / len(a | b) if a | b else 1.0


def _is_mean(filler) -> bool:
    return isinstance(filler, str) and filler == "mean"


def _package_fill(x, components: Components) -> np.ndarray:
    """Mean of each component as the package computes it: numpy's mean, cast to the image's dtype.

    For uint8 images the cast truncates, half a gray level on average.
    """
    x = as_numpy(x)
    labels = components.aligned(x.shape)
    filled = x.copy()
    axes = tuple(axis for axis, n in enumerate(labels.shape) if n == 1 and x.shape[axis] > 1)
    channels = np.moveaxis(x, axes, range(len(axes))).reshape(-1, labels.size)
    target = np.moveaxis(filled, axes, range(len(axes)))
    flat = labels.ravel()
    means = np.empty_like(channels)
    for j in range(components.d):
        inside = flat == j
        means[:, inside] = np.array([channel[inside].mean() for channel in channels])[:, None]
    target[...] = means.reshape(target.shape)
    return filled


def _diagonal(covariance):
    return np.diagonal(covariance, axis1=-2, axis2=-1)
