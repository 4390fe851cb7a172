"""What image LIME converges to: the closed forms of Garreau and Mardaoui (ICML 2021).

Notation of the paper: z in {0,1}^d says which superpixels are kept, uniform on the cube;
psi(t) weighs a mask with a share t hidden; alpha_p = E[pi z_1 ... z_p]. We compute with the
centred form of Theorem 1, whose two numbers (`contrast`, `common`) are sums of positive
terms: the paper's sigma cancels badly for large d.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import scipy
from scipy.special import comb

from xaiutils.attribution import integrated_gradients
from xaiutils.perturb import Components
from xaiutils.runtime import one_blas_thread

MAX_D = 22  # 2^22 = 4.2 million masks: the largest cube worth walking through


class Limit(NamedTuple):
    """Limit explanation: `intercept` () or (K,), `coef` (d,) or (K, d)."""

    intercept: float | np.ndarray
    coef: np.ndarray


class Coefficients(NamedTuple):
    """c_d and (sigma_0, ..., sigma_3) of Definition 2 and Proposition 2."""

    c_d: float
    sigma: np.ndarray


class _Moments(NamedTuple):
    alpha_0: float
    alpha_1: float
    contrast: float  # alpha_1 - alpha_2: Sigma's eigenvalue on contrasts, twice
    common: float  # alpha_0 Var_pi(S) / d: its centred eigenvalue on the all-ones direction


def psi(hidden, nu: float = 0.25) -> np.ndarray:
    """Weight of a mask with this share of superpixels hidden, in [0, 1] (Eq. 4)."""
    hidden = np.asarray(hidden, dtype=np.float64)
    return np.exp(-np.square(1 - np.sqrt(1 - hidden)) / (2 * nu * nu))


def alpha(p, d: int, nu: float = 0.25):
    """alpha_p = E[pi z_1 ... z_p] (Proposition 1).

    Parameters
    ----------
    p : int or int array, each in 0..d
    d : int
        Number of superpixels, at least 1.
    nu : float
        Bandwidth (`kernel_width`), positive.

    Returns
    -------
    float, or array of the shape of `p`
    """
    _check(d, nu)
    p = np.asarray(p)
    if not np.issubdtype(p.dtype, np.integer) or p.min() < 0 or p.max() > d:
        raise ValueError(f"p must be integers in 0..{d}, got {p}")
    # C(d-p, s) / 2^d is a binomial law times 2^-p: no factorials, no overflow.
    hidden = np.arange(d + 1)
    law = scipy.stats.binom.pmf(hidden, (d - p)[..., None], 0.5)
    value = np.ldexp(law @ psi(hidden / d, nu), -p)
    return value if p.ndim else float(value)


def _moments(d, nu, n=None) -> _Moments:
    """Moments of the weighted design; with `n`, one of the n rows is all ones."""
    on = np.arange(d + 1)
    weight = scipy.stats.binom.pmf(on, d, 0.5) * psi(1 - on / d, nu)
    inner = np.arange(max(d - 1, 1))  # superpixels on among the d - 2 others
    contrast = scipy.stats.binom.pmf(inner, max(d - 2, 0), 0.5) @ psi((d - 1 - inner) / d, nu) / 4
    if n is not None:
        weight *= (n - 1) / n
        weight[-1] += 1 / n
        contrast *= (n - 1) / n
    alpha_0 = weight.sum()
    mean = weight @ on / alpha_0
    common = weight @ np.square(on - mean) / d
    if d == 1:
        contrast = common
    return _Moments(float(alpha_0), float(weight @ on / d), float(contrast), float(common))


def coefficients(d: int, nu: float = 0.25) -> Coefficients:
    """c_d and sigma_0..sigma_3, the entries of c_d Sigma^-1 (Definition 2, Proposition 2)."""
    _check(d, nu)
    m = _moments(d, nu)
    off_diagonal = (m.common - m.contrast) / d
    alpha_2 = off_diagonal + m.alpha_1**2 / m.alpha_0
    sigma_3 = -m.alpha_0 * off_diagonal / m.contrast
    c_d = m.alpha_0 * m.common
    sigma_0 = (d - 1) * alpha_2 + m.alpha_1
    sigma_2 = sigma_3 + c_d / m.contrast
    return Coefficients(c_d, np.array([sigma_0, -m.alpha_1, sigma_2, sigma_3]))


def coin(d: int, nu: float = 0.25) -> float:
    """q = alpha_1 / alpha_0: how often LIME keeps a superpixel once masks are weighted."""
    _check(d, nu)
    m = _moments(d, nu)
    return m.alpha_1 / m.alpha_0


def kept(d: int, nu: float = 0.25, *, n: int = 1000, ridge: float = 1.0) -> tuple[float, float]:
    """Shares of the limit that the ridge keeps, for contrasts and the common direction."""
    _check(d, nu, ridge, n)
    m = _moments(d, nu)
    return m.contrast / (m.contrast + ridge / n), m.common / (m.common + ridge / n)


def from_moments(mean, joint, d: int, nu: float = 0.25, *, ridge=0.0, n=None, first=None) -> Limit:
    """Limit from the moments of a model (Theorem 1, centred form).

    Parameters
    ----------
    mean : () or (K,)
        E[pi f].
    joint : (d,) or (K, d)
        E[pi z_j f].
    ridge : float
        Penalty on the coefficients, not on the intercept, of a fit to `n` masks.
    n : int, optional
        Number of masks; needed with `ridge` or `first`.
    first : () or (K,), optional
        f at the unperturbed input, if the first of the n masks is forced to all ones as in
        the `lime` package.

    Returns
    -------
    Limit
    """
    _check(d, nu, ridge, n, forced=first is not None)
    mean, joint = np.asarray(mean, np.float64), np.asarray(joint, np.float64)
    if joint.shape != (*mean.shape, d):
        raise ValueError(f"joint must have shape {(*mean.shape, d)}, got {joint.shape}")
    m = _moments(d, nu, n if first is not None else None)
    if first is not None:
        first = np.asarray(first, np.float64)
        mean = ((n - 1) * mean + first) / n
        joint = ((n - 1) * joint + first[..., None]) / n
    penalty = ridge / n if ridge else 0.0
    g = joint - m.alpha_1 / m.alpha_0 * mean[..., None]
    shared = g.mean(axis=-1, keepdims=True)
    coef = (g - shared) / (m.contrast + penalty) + shared / (m.common + penalty)
    intercept = (mean - m.alpha_1 * coef.sum(axis=-1)) / m.alpha_0
    return Limit(intercept if mean.ndim else float(intercept), coef)


def masks(d: int) -> np.ndarray:
    """All of {0,1}^d as (2^d, d) bool; row i holds bit j of i in column j."""
    _check_cube(d)
    return _rows(0, 2**d, d)


def tabulate(f: Callable, d: int, *, batch_size: int = 2**14) -> np.ndarray:
    """Values of `f` on `masks(d)`, (2^d,) or (2^d, K); f maps (m, d) bool to (m,) or (m, K)."""
    _check_cube(d)
    starts = range(0, 2**d, batch_size)
    return np.concatenate([_call(f, _rows(s, min(s + batch_size, 2**d), d)) for s in starts])


def lookup(table) -> Callable:
    """The function whose values on `masks(d)` are the rows of `table`."""
    table = np.asarray(table)
    d = len(table).bit_length() - 1
    if len(table) != 2**d or not d:
        raise ValueError(f"table must have 2^d rows, d >= 1, got {len(table)}")
    bits = 1 << np.arange(d)
    return lambda z: table[np.asarray(z, bool) @ bits]


def exact(
    f: Callable, d: int, nu: float = 0.25, *, ridge=0.0, n=None, first_row: bool = False
) -> Limit:
    """Limit explanation of any `f`, from its values on all 2^d masks.

    Parameters
    ----------
    f : callable
        Maps bool masks (m, d) to values (m,) or (m, K); called in batches.
    d : int
        Number of superpixels, at most 22.
    nu, ridge, n : see `from_moments`
    first_row : bool
        Force the first of the n masks to all ones, as the `lime` package does.

    Returns
    -------
    Limit

    Examples
    --------
    A detector needs superpixels 0 and 1 of four: these get the same weight, the others hardly any.

    >>> from xaiutils import limit
    >>> limit.exact(lambda z: z[:, 0] & z[:, 1], d=4).coef.round(3)
    array([0.691, 0.691, 0.009, 0.009])
    """
    _check_cube(d)
    _check(d, nu, ridge, n, forced=first_row)

    def weights(z):
        return psi(1 - z.sum(axis=1) / d, nu) / 2**d

    mean, joint = _expectations(f, d, weights)
    first = _call(f, np.ones((1, d), bool))[0] if first_row else None
    return from_moments(mean, joint, d, nu, ridge=ridge, n=n, first=first)


def detector(
    on: Sequence[int], off: Sequence[int], d: int, nu=0.25, *, ridge=0.0, n=None, first_row=False
) -> Limit:
    """Limit of f = 1 if all of `on` are kept and all of `off` hidden, else 0 (Proposition 3).

    The paper's shape detector is the case without `off`. `ridge`, `n` and `first_row` as in
    `exact`.
    """
    _check(d, nu, ridge, n, forced=first_row)
    on, off = sorted(set(on)), sorted(set(off))
    if set(on) & set(off) or any(not 0 <= j < d for j in on + off):
        raise ValueError(f"on {on} and off {off} must be disjoint and in 0..{d - 1}")
    free = d - len(on) - len(off)
    hidden = len(off) + np.arange(free + 1)
    weight = scipy.stats.binom.pmf(np.arange(free + 1), free, 0.5) * psi(hidden / d, nu)
    weight *= 2.0 ** -(len(on) + len(off))
    mean = weight.sum()
    # A free superpixel is kept with the share of free ones that are.
    joint = np.full(d, weight @ (1 - np.arange(free + 1) / max(free, 1)))
    joint[on], joint[off] = mean, 0.0
    first = (0.0 if off else 1.0) if first_row else None
    return from_moments(mean, joint, d, nu, ridge=ridge, n=n, first=first)


def shape_detector(
    image, replacement, support, components: Components, *, tau=0.5, nu=0.25, **finite
) -> Limit:
    """Limit for the detector f(x) = 1 if every pixel of `support` is brighter than `tau`.

    Parameters
    ----------
    image, replacement : (H, W) in [0, 1]
        Gray image and what replaces hidden superpixels.
    support : (H, W) bool
    components : Components with labels (H, W)
    tau : float
        Threshold; a pixel is bright if strictly above it.
    **finite
        `ridge`, `n`, `first_row` as in `exact`.

    Returns
    -------
    Limit
        Zero if some superpixel is dark both when kept and when hidden.

    Examples
    --------
    A bright bar lies in the upper two of four superpixels:

    >>> import numpy as np
    >>> from xaiutils import limit
    >>> from xaiutils.perturb import Components
    >>> image = np.array([[0.1, 0.9, 0.9, 0.1], [0.1, 0.1, 0.1, 0.1]])
    >>> halves = Components(np.array([[0, 0, 1, 1], [2, 2, 3, 3]]))
    >>> limit.shape_detector(image, np.zeros((2, 4)), image > 0.5, halves).coef.round(3)
    array([0.691, 0.691, 0.009, 0.009])
    """
    support = np.asarray(support, bool)

    def bright(values):
        dark_pixels = components.sums(support & ~(np.asarray(values) > tau))
        return dark_pixels == 0

    kept_bright, hidden_bright = bright(image), bright(replacement)
    if np.any(~kept_bright & ~hidden_bright):
        return Limit(0.0, np.zeros(components.d))
    on = np.flatnonzero(kept_bright & ~hidden_bright)
    off = np.flatnonzero(~kept_bright & hidden_bright)
    return detector(on.tolist(), off.tolist(), components.d, nu, **finite)


def count_detector(h: Sequence[float], members: Sequence[int], d: int, nu: float = 0.25) -> Limit:
    """Limit of f = h[number of `members` kept]: OR, AND, k-of-p thresholds."""
    _check(d, nu)
    members = sorted(set(members))
    p, h = len(members), np.asarray(h, np.float64)
    if h.shape != (p + 1,) or any(not 0 <= j < d for j in members):
        raise ValueError(f"h needs {p + 1} values for {p} members in 0..{d - 1}, got {h.shape}")
    m, r = np.arange(p + 1)[:, None], np.arange(d - p + 1)[None]  # members, others kept
    weight = (
        scipy.stats.binom.pmf(m, p, 0.5)
        * scipy.stats.binom.pmf(r, d - p, 0.5)
        * psi(1 - (m + r) / d, nu)
        * h[:, None]
    )
    joint = np.full(d, (weight * r).sum() / max(d - p, 1))
    joint[members] = (weight * m).sum() / max(p, 1)
    return from_moments(weight.sum(), joint, d, nu)


def linear(weights, image, replacement, components: Components) -> Limit:
    """Limit for f(x) = sum_u weights_u x_u, the same for every bandwidth (Eq. 9)."""
    weights, image, replacement = (np.asarray(a, np.float64) for a in (weights, image, replacement))
    coef = components.sums(weights * (image - replacement))
    return Limit(float(np.sum(weights * replacement)), coef)


def integrated_gradients_sums(
    model,
    x,
    baseline,
    components: Components,
    target: int,
    *,
    steps: int = 20,
    tolerance: float | None = 0.05,
) -> np.ndarray:
    """Integrated gradients summed over superpixels, (d,): the approximation of Eq. (12)."""
    attribution = integrated_gradients(model, x, baseline, target, steps=steps, tolerance=tolerance)
    return components.sums(attribution)


def coin_banzhaf(f: Callable, d: int, q: float = 0.5) -> np.ndarray:
    """E[f | z_j = 1] - E[f | z_j = 0] when each superpixel is kept with probability `q`.

    The derivative of f's multilinear extension at (q, ..., q): the Banzhaf value for q = 1/2,
    occlusion for q = 1, and close to LIME's limit for q = `coin(d, nu)`. From a sample of masks,
    with standard errors: `surrogate.Surrogate.coin_banzhaf`.

    Returns
    -------
    (d,) or (K, d)
    """
    _check_cube(d)
    if not 0 <= q <= 1:
        raise ValueError(f"q must be in [0, 1], got {q}")
    size = np.arange(d)
    return _semivalue(f, d, q**size * (1.0 - q) ** (d - 1 - size))


def shapley(f: Callable, d: int) -> np.ndarray:
    """Shapley value of each superpixel, (d,) or (K, d), by enumeration.

    From a sample of masks, with standard errors: `surrogate.Surrogate.shapley`.
    """
    _check_cube(d)
    return _semivalue(f, d, 1 / (d * comb(d - 1, np.arange(d))))


def _semivalue(f, d, share):
    """Sum over coalitions S without j of share[|S|] (f(S with j) - f(S)), for each j."""
    f = lookup(tabulate(f, d))
    with_j, without_j = np.append(0.0, share), np.append(share, 0.0)  # by the number kept
    _, gained = _expectations(f, d, lambda z: with_j[z.sum(axis=1)])
    total, kept_j = _expectations(f, d, lambda z: without_j[z.sum(axis=1)])
    return gained - (np.asarray(total)[..., None] - kept_j)


def occlusion(f: Callable, d: int) -> np.ndarray:
    """f(1) - f(1 - e_j): leave one superpixel out, (d,) or (K, d)."""
    values = _call(f, np.vstack([np.ones((1, d), bool), ~np.eye(d, dtype=bool)]))
    return (values[0] - values[1:]).T


@one_blas_thread
def clt_variance(f: Callable, d: int, nu: float = 0.25) -> np.ndarray:
    """Diagonal of V where sqrt(n)(fit - limit) -> N(0, V), intercept first: (d+1,) or (K, d+1)."""
    limit = exact(f, d, nu)
    single = np.ndim(limit.intercept) == 0
    intercept, coef = np.atleast_1d(limit.intercept), np.atleast_2d(limit.coef)
    sigma = np.zeros((d + 1, d + 1))
    scores = np.zeros((len(coef), d + 1, d + 1))
    for start in range(0, 2**d, 2**14):
        z = _rows(start, min(start + 2**14, 2**d), d)
        tilde = np.hstack([np.ones((len(z), 1)), z])
        weight = psi(1 - z.sum(axis=1) / d, nu)
        values = _call(f, z).reshape(len(z), -1)
        residual = values - intercept - z @ coef.T
        sigma += (tilde.T * weight) @ tilde / 2**d
        for k in range(len(coef)):
            scores[k] += (tilde.T * np.square(weight * residual[:, k])) @ tilde / 2**d
    inverse = np.linalg.inv(sigma)
    variance = np.einsum("ij,kjl,il->ki", inverse, scores, inverse)
    return variance[0] if single else variance


def _rows(start, stop, d):
    return (np.arange(start, stop)[:, None] >> np.arange(d)) & 1 == 1


def _call(f, z):
    values = np.asarray(f(z), np.float64)
    if values.ndim not in (1, 2) or len(values) != len(z):
        raise ValueError(f"f must map ({len(z)}, d) masks to ({len(z)},) or ({len(z)}, K) values")
    return values


@one_blas_thread
def _expectations(f, d, weights):
    """Sums over the cube of w f, () or (K,), and of w z_j f, (d,) or (K, d)."""
    mean = joint = 0.0
    for start in range(0, 2**d, 2**14):
        z = _rows(start, min(start + 2**14, 2**d), d)
        weighted = weights(z) * _call(f, z).T
        mean = mean + weighted.sum(axis=-1)
        joint = joint + weighted @ z.astype(np.float64)
    return mean, joint


def _check(d, nu, ridge=0.0, n=None, *, forced=False):
    if not isinstance(d, int | np.integer) or d < 1:
        raise ValueError(f"d must be a positive integer, got {d!r}")
    if not nu > 0:
        raise ValueError(f"nu must be positive, got {nu!r}")
    if ridge < 0:
        raise ValueError(f"ridge must not be negative, got {ridge!r}")
    if (ridge > 0 or forced) and (n is None or n < 1):
        raise ValueError("n, the number of masks, is needed with a ridge or a forced first row")


def _check_cube(d):
    if not isinstance(d, int | np.integer) or not 1 <= d <= MAX_D:
        raise ValueError(f"d must be in 1..{MAX_D} to walk through all 2^d masks, got {d!r}")
