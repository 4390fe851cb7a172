"""A Gaussian process on {0,1}^d in place of the model, and what is read off it without the model.

The process learns f from the model's answers to n masks. LIME's coefficients, Banzhaf and Shapley
values and occlusion are linear in f: their posterior means and covariances follow from those of f.
The covariance of the process is that of `surrogate_kernel`.

Any explanation holds what is needed: after `found = lime.explain(...)` of a single target
`fit(found.masks, found.outputs, link="best").shapley()` are Shapley values with standard errors.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from scipy.linalg import cho_solve, solve_triangular
from scipy.linalg.lapack import dpotrf, dpotri
from scipy.special import comb, expit, logit

from xaiutils import regression, surrogate_kernel
from xaiutils.runtime import one_blas_thread
from xaiutils.surrogate_kernel import Hyperparameters
from xaiutils.surrogate_weights import (
    CUBE_D,
    ends,
    free_half,
    generator,
    half_cube,
    half_of,
    kernel_shap,
    line,
    sampling,
    semivalue,
    stratified,
    with_complements,
    with_rounding,
)

MOST = 4096  # masks of a process: it holds a few matrices of as many rows
EPS = 1e-6  # probabilities are kept this far from 0 and 1 before their logit is taken
TINY = np.finfo(np.float64).tiny  # without main effects all components are as relevant
PART = 1024  # masks of a sample that give, with their complements, a reading's covariance


@dataclass(frozen=True, eq=False)
class Surrogate:
    """What `fit` found.

    Attributes
    ----------
    masks : (n, d) bool
        The distinct masks.
    values : (n,)
        Mean answer to each.
    link : "identity" or "logit"
    hyperparameters : Hyperparameters
        Variances of the values, or of their logits. NaN for constant values.
    relevances : (d,)
        u.
    inflation : float
        Factor by which the standard deviations of the process are raised, see `fit`.
    left_out : float
        Mean squared error of what the other answers say about each.
    """

    masks: np.ndarray
    values: np.ndarray
    link: str
    hyperparameters: Hyperparameters
    relevances: np.ndarray
    inflation: float
    left_out: float
    _centre: float = field(repr=False)
    _factor: np.ndarray | None = field(repr=False)  # lower Cholesky; None for constant values
    _alpha: np.ndarray | None = field(repr=False)

    @property
    def d(self) -> int:
        return self.masks.shape[1]

    @one_blas_thread
    def predict(self, masks) -> tuple[np.ndarray, np.ndarray]:
        """Mean (m,) and standard deviation (m,) of the model's answers to masks (m, d).

        With the logit link the deviation is that of the logit times the slope. NaN for constant
        values.
        """
        masks = _masks(masks, self.d)
        if self._factor is None:
            return np.full(len(masks), self._centre), np.full(len(masks), np.nan)
        mean, spread = np.empty((2, len(masks)))
        for start in range(0, len(masks), MOST):
            rows = slice(start, start + MOST)
            mean[rows], slope, cross = self._at(masks[rows], True)
            spread[rows] = slope * np.sqrt(self._variance(cross))
        return mean, spread

    @one_blas_thread
    def lime(
        self, width: float = 0.25, n_free: int = 4096, seed: int = 0
    ) -> tuple[float, np.ndarray, np.ndarray]:
        """LIME's coefficients, in the limit of many masks and without a ridge.

        Parameters
        ----------
        width : float
            Bandwidth, see `limit.psi`.
        n_free : int
            Masks at which the process is read, if they are not all 2^d (up to d = 12): half of
            them orthogonal where such a design exists, and their complements.
        seed : int

        Returns
        -------
        intercept : float
        coef : (d,)
        covariance : (d + 1, d + 1)
            Of (intercept, coefficients), given the model's answers; that of the sample of free
            masks is added. NaN for constant values.
        """
        if not width > 0:
            raise ValueError(f"width must be positive, got {width!r}")
        value, covariance = self._regression(width, n_free, seed)
        return float(value[0]), value[1:], covariance

    @one_blas_thread
    def coin_banzhaf(
        self, q: float = 0.5, n_free: int = 4096, seed: int = 0
    ) -> tuple[np.ndarray, np.ndarray]:
        """Values (d,) of `limit.coin_banzhaf` and standard errors (d,); q within (0, 1).

        They are the coefficients of the regression on masks that keep components with probability
        q, all of equal weight. At q = 1 they are those of `occlusion`.
        """
        if not 0 < q < 1:
            raise ValueError(f"q must lie between 0 and 1, got {q!r}")
        d = self.d
        if q == 0.5:
            value, covariance = self._regression(np.inf, n_free, seed)
        elif d <= CUBE_D:
            kept = np.arange(d)
            half = half_cube(d)
            weights = semivalue(half, q**kept * (1 - q) ** (d - 1 - kept))
            value, covariance, _ = self._read(half, weights, True)
            return value, _stderr(covariance)
        else:

            def alone(kept):  # without their complements, which the coin favours less
                many = len(kept)
                try:
                    return np.pad(line(kept, np.inf), ((0, 0), (0, many)))
                except ValueError:  # a component that all of them keep, or hide
                    raise ValueError(
                        f"q must keep and hide every component among {many} masks, got {q!r}"
                    ) from None

            kept = generator(seed).random((half_of(n_free, d), d)) < q
            value, covariance = self._regressed(kept, alone)
        return value[1:], _stderr(covariance)[1:]

    @one_blas_thread
    def shapley(self, n_free: int = 4096, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """Shapley values (d,) and standard errors (d,).

        Beyond d = 12 by the regression of Kernel SHAP (Lundberg and Lee 2017): free masks have
        sizes k drawn with its weights, in proportion to 1 / (k (d - k)), and stratified.
        """
        d = self.d
        if d <= CUBE_D:
            half = half_cube(d)
            weights = semivalue(half, 1 / (d * comb(d - 1, np.arange(d))))
            value, covariance, _ = self._read(half, weights, True)
        else:
            half = stratified(half_of(n_free, d), d, generator(seed))
            weights = kernel_shap(half)
            value, covariance, mean = self._sampled(half, weights, kernel_shap)
            residual = mean - mean[-1] - with_complements(half) @ value
            covariance += sampling(weights, residual)
        return value, _stderr(covariance)

    @one_blas_thread
    def occlusion(self) -> tuple[np.ndarray, np.ndarray]:
        """f(all) - f(all but j), (d,), and standard errors (d,)."""
        d = self.d
        half = np.vstack([np.ones((1, d), bool), ~np.eye(d, dtype=bool)])
        weights = np.zeros((d, 2 * (d + 1)))
        weights[:, 0], weights[np.arange(d), 1 + np.arange(d)] = 1, -1
        value, covariance, _ = self._read(half, weights, True)
        return value, _stderr(covariance)

    def _regression(self, width, n_free, seed):
        d = self.d

        def both(half):
            return line(with_complements(half), width)

        if d <= CUBE_D:
            half = half_cube(d)
            value, covariance, _ = self._read(half, both(half), True)
            return value, covariance
        return self._regressed(free_half(half_of(n_free, d), d, generator(seed)), both)

    def _regressed(self, half, weigh):
        """Value and covariance of a regression on a sample of masks and their complements."""
        weights = weigh(half)
        value, covariance, mean = self._sampled(half, weights, weigh)
        residual = mean - value[0] - with_complements(half) @ value[1:]
        return value, covariance + sampling(weights, residual)

    def _sampled(self, half, weights, weigh):
        """As `_read` at a sample of masks; its covariance is that of the last 1024 of them.

        `weigh` makes weights (r, 2h) of masks (h, d) and their complements.
        """
        if self._factor is None:
            return self._read(half, weights, True)
        free, part = with_complements(half), half[-PART:]
        _, covariance, _ = self._read(part, weigh(part), ends(with_complements(part)))
        mean = self._at(free, ends(free))[0]
        return self._weighed(weights, mean), covariance, mean

    def _weighed(self, weights, mean):
        """`weights @ mean`, but a large offset of the values costs no digits."""
        offset = self.values.mean()
        return weights @ (mean - offset) + offset * weights.sum(axis=1).round(9)

    def _read(self, half, weights, own):
        """Value (r,) and covariance (r, r) of `weights` (r, 2h) at masks and their complements.

        And the mean there. Where not `own` the masks are a sample: it is not their own noise that
        counts, but that of all masks, which averages out.
        """
        if self._factor is None:
            value = self._centre * weights.sum(axis=1).round(9)
            return value, np.full(2 * value.shape, np.nan), np.full(2 * len(half), np.nan)
        mean, slope, cross = self._at(with_complements(half), own)
        moved, theta = weights * slope, self.hyperparameters
        told = solve_triangular(self._factor, (moved @ cross).T, lower=True)
        covariance = surrogate_kernel.reduced(half, moved, self.relevances, theta) - told.T @ told
        covariance += theta.noise * (moved * own) @ moved.T
        covariance = self.inflation**2 * with_rounding(covariance, theta)
        return self._weighed(weights, mean), covariance, mean

    def _at(self, masks, own):
        """Mean (m,), slope of the inverse link (m,), and covariance (m, n) with the known masks.

        `own`: the masks have their own noise.
        """
        inner = surrogate_kernel.products(masks, self.masks, self.relevances)
        cross = surrogate_kernel.covariance(inner, self.hyperparameters)
        known = {bytes(row): i for i, row in enumerate(self.masks)}
        for i in np.flatnonzero(np.broadcast_to(own, len(masks))):
            if (row := bytes(masks[i])) in known:
                cross[i, known[row]] += self.hyperparameters.noise
        mean = self._centre + cross @ self._alpha
        if self.link == "identity":
            return mean, np.ones(len(mean)), cross
        mean, shrunk = _sigmoid(mean, self._variance(cross))
        return mean, shrunk * mean * (1 - mean), cross

    def _variance(self, cross):
        told = solve_triangular(self._factor, cross.T, lower=True)
        prior = sum(self.hyperparameters) - self.hyperparameters.decay
        return self.inflation**2 * np.maximum(prior - np.square(told).sum(axis=0), 0)


@one_blas_thread
def fit(masks, values, *, link: str = "identity", seed: int = 0) -> Surrogate:
    """Fit the process to a model's answers.

    Parameters
    ----------
    masks : (n, d) bool
        n > 1, at most 4,096 different ones. Answers to the same mask are averaged.
    values : (n,)
        Finite.
    link : "identity", "logit" or "best"
        With "logit" the process is that of the logit of a probability, which is first moved into
        [1e-6, 1 - 1e-6]: near 0 and 1 most interactions are the work of the sigmoid. "best" is the
        one that errs less when answers are left out; "identity" if they are no probabilities, or
        none of them lies within these bounds.
    seed : int
        The hyperparameters come from a random 512 masks, where there are more.

    Returns
    -------
    Surrogate
        The relevances come from a pilot regression, |beta_j| plus a quarter of their mean; linear,
        smooth, decay and noise by marginal likelihood, with a wide prior on the noise; the constant
        has the variance of the values. Standard deviations are multiplied by the root mean square
        of the leave-one-out errors, each over its standard deviation, if that is more than 1, and
        by 1 + (d + 1) / n for n distinct masks, as the relevances are estimates.

    Raises
    ------
    ValueError
        If shapes do not fit, n < 2, there are too many masks, a value is not finite, the link is
        unknown, or the logit is wanted of a value outside [0, 1] or of values that differ only
        within 1e-6 of 0 or 1.

    Examples
    --------
    Sixteen answers tell the effects in a linear model of five components:

    >>> import numpy as np
    >>> from xaiutils import surrogate
    >>> masks = np.random.default_rng(0).random((16, 5)) < 0.5
    >>> found = surrogate.fit(masks, masks @ [1.0, 2.0, 3.0, 4.0, 5.0])
    >>> intercept, coef, covariance = found.lime()
    >>> coef.round(2)
    array([1., 2., 3., 4., 5.])
    """
    masks = _masks(masks)
    values = _values(values, len(masks), link)
    masks, owner = np.unique(masks, axis=0, return_inverse=True)
    values = np.bincount(owner.ravel(), values) / np.bincount(owner.ravel())
    if len(masks) > MOST:
        raise ValueError(f"masks must hold at most {MOST} different ones, got {len(masks)}")
    hidden = _probabilities(values) and not _varies(_logit(values)) and _varies(values)
    if link == "logit" and hidden:
        raise ValueError(
            f'values must differ within [{EPS:g}, {1 - EPS:g}] for link="logit", '
            f"got {values.min():.7g} to {values.max():.7g}"
        )
    if link != "best":
        return _fit(masks, values, link, seed)
    logits = _probabilities(values) and not hidden
    links = ("identity", "logit") if logits else ("identity",)
    return min((_fit(masks, values, each, seed) for each in links), key=lambda one: one.left_out)


def _fit(masks, values, link, seed):
    y = values if link == "identity" else _logit(values)
    centre, scale, d = y.mean(), y.std(), masks.shape[1]
    if not _varies(y):
        nothing = Hyperparameters(*[np.nan] * 5), np.full(d, 1 / d), np.nan, 0.0
        return Surrogate(masks, values, link, *nothing, values.mean(), None, None)
    y = (y - centre) / scale
    beta = np.abs(regression.fit(masks, np.ones(len(y)), y[:, None]).coef[0]) + TINY
    relevances = (beta + beta.mean() / 4) / (1.25 * beta.sum())
    inner = surrogate_kernel.products(masks, masks, relevances)
    theta = surrogate_kernel.most_likely(inner, y, generator(seed))
    while True:
        kernel = surrogate_kernel.covariance(inner, theta)
        kernel[np.diag_indices(len(y))] += theta.noise
        factor, failed = dpotrf(kernel, lower=1)
        if not failed:
            break
        theta = theta._replace(noise=10 * theta.noise)  # which rounding has made too small
    precision = np.diagonal(dpotri(factor, lower=1)[0])
    alpha = cho_solve((factor, True), y)
    inflation = _inflation(masks, alpha, precision)
    guess = centre + scale * (y - alpha / precision)
    if link == "logit":
        guess, _ = _sigmoid(guess, scale**2 / precision)
    theta = Hyperparameters(*(float(v * scale**2) for v in theta))._replace(decay=theta.decay)
    return Surrogate(
        masks, values, link, theta, relevances, inflation,
        float(np.mean(np.square(guess - values))), centre, factor * scale, alpha / scale,
    )  # fmt: skip


def _logit(values):
    return logit(np.clip(values, EPS, 1 - EPS))


def _varies(values) -> bool:
    """Whether values differ by more than rounding."""
    return np.ptp(values) > regression.ROUNDING * regression.EPS * np.abs(values).max()


def _inflation(masks, alpha, precision):
    """Root mean square of the leave-one-out errors over their deviations, if more than 1.

    Times 1 + (d + 1) / n: the relevances come from the same answers, and the process takes them for
    known.
    """
    n, d = masks.shape
    left_out = float(np.sqrt(np.mean(np.square(alpha) / precision)))
    return max(1.0, left_out) * (1 + (d + 1) / n)


def _sigmoid(mean, variance):
    """Mean of the sigmoid of a Gaussian (MacKay 1992), and how much flatter it is than that."""
    shrunk = 1 / np.sqrt(1 + np.pi / 8 * variance)
    return expit(shrunk * mean), shrunk


def _stderr(covariance):
    return np.sqrt(np.diagonal(covariance))


def _masks(masks, d=None):
    masks = np.asarray(masks)
    if masks.ndim != 2 or not masks.shape[1] or d not in (None, masks.shape[1]):
        raise ValueError(f"masks must have shape (n, {d or 'd'}), got {masks.shape}")
    if not np.isin(masks, (0, 1)).all():
        raise ValueError("masks must hold only 0 and 1, or False and True")
    return np.ascontiguousarray(masks, bool)


def check_link(link):
    if link not in ("identity", "logit", "best"):
        raise ValueError(f'link must be "identity", "logit" or "best", got {link!r}')


def _values(values, n, link):
    values = np.asarray(values, np.float64)
    check_link(link)
    if n < 2 or values.shape != (n,):
        raise ValueError(f"values must have shape (n,) for n > 1 masks, got {values.shape} for {n}")
    if not np.isfinite(values).all():
        raise ValueError(f"values must be finite, got {values[~np.isfinite(values)][0]}")
    if link == "logit" and not _probabilities(values):
        raise ValueError(
            f'values must lie in [0, 1] for link="logit", got {values.min()} to {values.max()}'
        )
    return values


def _probabilities(values):
    return values.min() >= -EPS and values.max() <= 1 + EPS  # a softmax is rounded
