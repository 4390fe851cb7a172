"""LIME for any partition of an input, with standard errors and a stop rule.

The algorithm is that of `lime` 0.2.0.1 (`LimeImageExplainer`): hide random superpixels,
weigh each mask by its closeness to the whole image, fit a weighted ridge regression. By
default three of its quirks are left out (a forced first row, truncated uint8 means, the
package's own order of draws); `package_exact=True` brings them back.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import scipy

from xaiutils import designs, estimators, limit, regression
from xaiutils.data.images import as_numpy
from xaiutils.perturb import Components, Filler, evaluate, fill
from xaiutils.regression import EPS
from xaiutils.regression import fit as fit
from xaiutils.storage import Storable


@dataclass(frozen=True)
class Stop:
    """When enough masks are drawn.

    No rule is met before there are more masks than unknowns, d + 1 (more pairs, if masks come in
    independent pairs), nor while an explained output has not varied at all: there is no covariance.

    Attributes
    ----------
    stderr : float, optional
        Stop when no coefficient's standard error is larger.
    top_k : int, optional
        Stop when coefficients k and k + 1 (in decreasing order, whatever their signs) differ at
        `level`. There must be more than k components.
    level : float
        Two-sided confidence of the `top_k` rule over all its looks at the data together.
    max_samples : int
        Cap on the number of masks.

    Raises
    ------
    ValueError
        If not exactly one rule is given, or a number is out of range.

    Examples
    --------
    The two largest of four effects are told from the others; where ranks 2 and 3 tie, no number
    of masks can tell:

    >>> import numpy as np
    >>> from xaiutils import lime
    >>> from xaiutils.perturb import Components
    >>> def energy(batch):
    ...     return batch.square().sum(dim=1, keepdim=True)
    >>> stop = lime.Stop(top_k=2, max_samples=1000)
    >>> for x in ([0.2, 0.4, 0.6, 0.8], [0.2, 0.6, 0.6, 0.8]):
    ...     found = lime.explain(
    ...         energy, np.array(x), Components(np.arange(4)), targets=0, filler=0.0,
    ...         n_samples=100, stop=stop,
    ...     )
    ...     print(found.converged, len(found.masks))
    True 100
    False 1000
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
        if self.top_k is not None and not isinstance(self.top_k, int | np.integer):
            raise ValueError(f"top_k must be an integer, got {self.top_k!r}")
        if not 0 < self.level < 1:
            raise ValueError(f"level must lie between 0 and 1, got {self.level!r}")

    def met(self, coef: np.ndarray, covariance: np.ndarray, looks: int = 1) -> bool:
        """Whether every explained output, coef (T, d), covariance (T, d+1, d+1), is settled.

        Not if a covariance is NaN, nor with `top_k` for equal coefficients or d <= `top_k`.
        `looks` is how often the rule may be asked in all: the risk 1 - `level` is shared by them
        (Bonferroni), or ties would be told apart by asking often enough.
        """
        if self.stderr is not None:
            return bool(np.sqrt(_diagonal(covariance)[:, 1:]).max() <= self.stderr)
        quantile = scipy.stats.norm.isf((1 - self.level) / (2 * looks))
        return all(
            self._separated(c, v, quantile)
            for c, v in zip(coef, covariance[:, 1:, 1:], strict=True)
        )

    def _separated(self, coef, covariance, quantile):
        if self.top_k >= len(coef):
            return False
        order = np.argsort(-coef)
        i, j = order[self.top_k - 1], order[self.top_k]
        variance = covariance[i, i] + covariance[j, j] - 2 * covariance[i, j]
        return coef[i] - coef[j] > quantile * np.sqrt(np.maximum(variance, 0))


@dataclass(frozen=True)
class Explanation(Storable):
    """A fitted explanation. Leading axis T only if `targets` was a sequence.

    `save` and `load` keep it in a file, `to_dict` turns it into JSON types.

    Attributes
    ----------
    intercept : () or (T,)
    coef, stderr : (d,) or (T, d)
        Coefficient of each component and its standard error: of independent masks and pairs by the
        sandwich formula, see `fit`; of orthogonal and folded ones by what they leave unbalanced,
        see `balance.covariance`, but by the sandwich formula, which is too large for them, beyond
        4,096 masks or 1,000 components; of the surrogate the spread of what it could be, see
        `Surrogate.lime`. NaN where nothing is known of it.
    covariance : (d + 1, d + 1) or (T, d + 1, d + 1)
        Of (intercept, coefficients).
    score : () or (T,)
        Weighted R^2 of the fit, at most 1; NaN if the output does not vary: then the
        coefficients are 0.
    masks : (n, d) bool
    weights : (n,)
    outputs : (n,) or (n, T)
    converged : bool or None
        Whether the stop rule was met; None without one.
    unchanged : (d,) bool or None
        Components that look the same hidden as kept, such as a flat superpixel replaced by its
        mean: their coefficients hold nothing but noise. None if the filler is a callable.
    """

    intercept: np.ndarray
    coef: np.ndarray
    score: np.ndarray
    covariance: np.ndarray
    masks: np.ndarray
    weights: np.ndarray
    outputs: np.ndarray
    converged: bool | None = None
    unchanged: np.ndarray | None = None

    _AXES: ClassVar = {
        "masks": ("b", "n d"),
        "weights": ("f", "n"),
        "outputs": ("f", "n T"),
        "intercept": ("f", "T"),
        "coef": ("f", "T d"),
        "score": ("f", "T"),
        "covariance": ("f", "T d+1 d+1"),
        "converged": ("b?", ""),
        "unchanged": ("b?", "d"),
    }

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
    estimator: str = "regression",
    link: str = "best",
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
        Penalty on the coefficients, not on the intercept, of the regression: the same shrinks them
        more, the fewer the masks. Orthogonal and folded masks err less than it shrinks; take 0.
    design : "iid", "paired", "orthogonal" or "folded"
        How masks are drawn, see `designs.draw`.
    estimator : "regression" or "surrogate"
        LIME's regression on the masks that were asked, or the same regression, without a ridge, on
        what a Gaussian process says of all masks, see `surrogate.fit`. That takes no model call, up
        to 4,096 masks and up to 1,000 components; with 2 d masks or more it is nearer to the limit
        than the regression.
    link : "best", "identity" or "logit"
        Of the surrogate, see `surrogate.fit`.
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
        If an argument is out of range, if `package_exact` is asked for with another design,
        estimator or a stop rule, if hiding changes no component (a filler that equals the
        input, such as "mean" for components of one position), if outputs are not finite, or if the
        masks cannot determine the fit.

    Examples
    --------
    The model adds up squares, so each component has the effect of its own square:

    >>> import numpy as np
    >>> from xaiutils import lime
    >>> from xaiutils.perturb import Components
    >>> def energy(batch):
    ...     return batch.square().sum(dim=1, keepdim=True)
    >>> x, components = np.array([0.2, 0.4, 0.6, 0.8]), Components(np.arange(4))
    >>> found = lime.explain(energy, x, components, targets=0, filler=0.0, ridge=0.0)
    >>> found.coef.round(2)
    array([0.04, 0.16, 0.36, 0.64])
    >>> sorted(lime.top_k(found.coef, 2))
    [2, 3]

    Read off a surrogate, without a ridge, from 32 masks that balance each other:

    >>> few = {"n_samples": 32, "design": "folded", "estimator": "surrogate"}
    >>> lime.explain(energy, x, components, targets=0, filler=0.0, **few).coef.round(2)
    array([0.04, 0.16, 0.36, 0.64])
    """
    columns = as_numpy(targets)
    single, columns = columns.ndim == 0, np.atleast_1d(columns)
    if package_exact and (design != "iid" or stop is not None):
        raise ValueError("package_exact draws one round of independent masks: no design, no stop")
    fits = columns.ndim == 1 and columns.size and columns.dtype.kind in "iu"
    if not fits or columns.min() < 0:
        raise ValueError(f"targets must be outputs of the model, counted from 0, got {targets!r}")
    if not isinstance(n_samples, int | np.integer) or n_samples < 1:
        raise ValueError(f"n_samples must be a positive integer, got {n_samples!r}")
    if stop is not None and stop.max_samples < n_samples:
        raise ValueError(
            f"max_samples={stop.max_samples} of the stop rule is less than one round of "
            f"n_samples={n_samples}"
        )
    looks = 1 if stop is None else stop.max_samples // n_samples
    d = components.d
    estimators.check(estimator, link, looks * n_samples, d, package_exact)
    if stop is not None and stop.top_k is not None and stop.top_k >= d:
        raise ValueError(
            f"top_k={stop.top_k} of the stop rule must be less than the number of components, {d}"
        )
    if package_exact:
        filler = _package_fill(x, components) if _is_mean(filler) else filler
        generator = np.random.RandomState(seed)
        generator.randint(0, high=1000)  # the package draws a seed for its segmentation first
    else:
        generator = np.random.default_rng(seed)
    # What cannot succeed should not cost a call of the model.
    _check_width(kernel_width)
    regression.check_determined(looks * n_samples, d, ridge if estimator == "regression" else 1.0)
    unchanged = _unchanged(x, components, filler)
    if unchanged is not None and unchanged.all():
        raise ValueError(
            f"filler equals the input in all {d} components, so hiding would change nothing; give "
            'another number, array or callable ("mean" suits components that are not flat)'
        )

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
        return masks, outputs

    pairs = design == "paired" and estimator == "regression"
    group, drawn, enough = 2 if pairs else 1, [], d + 1
    for left in reversed(range(looks)):  # rounds that may still come
        masks, outputs = map(np.concatenate, zip(*drawn, more(), strict=True))
        drawn = [(masks, outputs)]
        if left and len(masks) // group <= enough:
            continue  # no rule can be met yet, or hardly anything is new
        weights = kernel(masks, kernel_width)
        try:
            fitted = estimators.estimate(
                masks, weights, outputs, width=kernel_width, ridge=ridge, design=design,
                estimator=estimator, link=link, seed=seed,
            )  # fmt: skip
        except regression.Undetermined:
            if not left:
                raise
            continue
        converged = None if stop is None else stop.met(fitted.coef, fitted.covariance, looks)
        if converged:
            break
        enough = 1.001 * len(masks) // group
    pick = 0 if single else slice(None)
    return Explanation(
        fitted.intercept[pick], fitted.coef[pick], fitted.score[pick], fitted.covariance[pick],
        masks, weights, outputs[:, pick].astype(np.float64), converged, unchanged,
    )  # fmt: skip


def kernel(masks, width: float = 0.25) -> np.ndarray:
    """Weight of each mask (n, d), in [0, 1]: `limit.psi` of its share of hidden components."""
    _check_width(width)
    return limit.psi(1 - np.asarray(masks, bool).mean(axis=1), width)


def top_k(coef, k: int) -> set[int]:
    """Indices of the k largest strictly positive coefficients; fewer if fewer are positive."""
    coef = np.asarray(coef)
    return {int(j) for j in np.argsort(-coef, kind="stable")[:k] if coef[j] > 0}


def jaccard(a: set, b: set) -> float:
    """Size of the intersection over that of the union; 1 if both are empty."""
    return len(a & b) / len(a | b) if a | b else 1.0


def _unchanged(x, components: Components, filler) -> np.ndarray | None:
    """Which components (d,) hiding leaves as they are but for rounding; None for a callable."""
    hidden = fill(x, components, filler)
    if callable(hidden):
        return None
    x = as_numpy(x)
    same = x == hidden
    if np.issubdtype(x.dtype, np.floating):  # the mean of equal values is a sum, then rounded
        rounding = EPS * x.size + np.finfo(x.dtype).eps
        same |= np.abs(x - hidden) <= rounding * np.maximum(np.abs(x), np.abs(hidden))
    return components.sums(~same) == 0


def _check_width(width):
    if not width > 0:
        raise ValueError(f"kernel_width must be positive, got {width!r}")


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
