"""The covariance of `surrogate`'s process on {0,1}^d, and its most likely hyperparameters.

With s = 2z - 1 the covariance of f(z) and f(z') is

    constant + linear <s, s'> + smooth exp(decay (<s, s'> - 1)) + noise [z = z'],

where <s, s'> = sum_j u_j s_j s'_j and the relevances u sum to 1. A model has one answer to a mask:
`noise` is not its error, but the part of f of which no other mask tells anything.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import scipy
from scipy.linalg.lapack import dpotrf, dpotri, dpotrs

BLOCK = 512  # rows of a covariance between free masks that are in memory at a time
START, MOST = 128, 512  # masks with which starts are tried, and with which the best goes on
# Linear, smooth, decay, noise; variances in units of that of the values.
STARTS = np.log([[0.5, 0.5, 1.0, 0.1], [1.0, 0.1, 3.0, 0.01]])
BOUNDS = np.log([[1e-4, 1e3], [1e-6, 1e3], [0.05, 20.0], [1e-8, 10.0]])
# Mean and deviation of the noise's logarithm a priori: few answers can often be joined without any
# noise, and would then be trusted too much.
NOISE = np.log(0.03), 1.5


class Hyperparameters(NamedTuple):
    """Variances of the parts of the process, and the decay of its smooth part."""

    constant: float
    linear: float
    smooth: float
    decay: float
    noise: float


def products(masks, others, relevances) -> np.ndarray:
    """<s, s'> of masks (n, d) and others (m, d), (n, m)."""
    return ((2.0 * masks - 1) * relevances) @ (2.0 * others - 1).T


def covariance(inner, theta: Hyperparameters) -> np.ndarray:
    """Without the noise, from the inner products."""
    smooth = theta.smooth * np.exp(theta.decay * (inner - 1))
    return theta.constant + theta.linear * inner + smooth


def reduced(half, weights, relevances, theta: Hyperparameters) -> np.ndarray:
    """W C W^T for weights W (r, 2h) and the covariance C, without noise, of `half` and ~`half`.

    <s, -s'> = -<s, s'>: sums and differences of complements need only the products of halves.
    """
    one, other = np.split(weights, 2, axis=1)
    even, odd, total = one + other, one - other, weights.sum(axis=1)
    linear = odd @ (2.0 * half - 1)
    found = theta.constant * np.outer(total, total)
    found += theta.linear * (linear * relevances) @ linear.T
    scale = theta.smooth * np.exp(-theta.decay) / 2
    for start in range(0, len(half), BLOCK):
        rows = slice(start, start + BLOCK)
        up = np.exp(theta.decay * products(half[rows], half, relevances))
        down = 1 / up
        found += scale * even[:, rows] @ ((up + down) @ even.T)
        found += scale * odd[:, rows] @ ((up - down) @ odd.T)
    return found


def most_likely(inner: np.ndarray, y: np.ndarray, rng: np.random.Generator) -> Hyperparameters:
    """Those of standardised values y (n,), with inner products (n, n) of their masks.

    The constant is 1. The starts of the optimiser are tried with a random 128 of the values, the
    best goes on with 512: more of them hardly change what is found.
    """
    order = rng.permutation(len(y))
    few, some = (np.sort(order[:size]) for size in (START, MOST))
    tried = (
        _descend(unlikeliness, start, (inner[np.ix_(few, few)], y[few]), 8) for start in STARTS
    )
    start = min(tried, key=lambda result: result.fun).x
    if len(some) == len(y) and _are_pairs(inner):
        found = _descend(unlikeliness_of_pairs, start, halved(inner, y), 25)
    else:
        found = _descend(unlikeliness, start, (inner[np.ix_(some, some)], y[some]), 25)
    return Hyperparameters(1.0, *np.exp(found.x).tolist())


def _are_pairs(inner):
    """Whether each mask is the complement of that as far from the other end.

    So are sorted masks that come with their complements.
    """
    return not len(inner) % 2 and np.allclose(np.diagonal(inner[:, ::-1]), -1, rtol=0, atol=1e-12)


def halved(inner, y) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Inner products of the first half of such masks; sums and differences of pairs of values.

    Both are divided by the root of 2.
    """
    half = len(y) // 2
    one, other = y[:half], y[: half - 1 : -1]
    return inner[:half, :half], (one + other) / np.sqrt(2), (one - other) / np.sqrt(2)


def _descend(function, start, given, steps):
    return scipy.optimize.minimize(
        function, start, given, "L-BFGS-B", jac=True, bounds=BOUNDS,
        options={"maxiter": steps, "ftol": 1e-5},
    )  # fmt: skip


def unlikeliness(log_theta, inner, y) -> tuple[float, np.ndarray]:
    """Minus the log posterior density of (linear, smooth, decay, noise), and its gradient (4,).

    Up to a constant, by the logarithms of the four.
    """
    linear, smooth, decay, _ = np.exp(log_theta)
    below = inner - 1
    curved = decay * below
    np.exp(curved, out=curved)
    curved *= smooth
    kernel = linear * inner
    kernel += curved
    kernel += 1
    return _posterior(log_theta, [(kernel, y, linear * inner, curved, decay * below * curved)])


def unlikeliness_of_pairs(log_theta, inner, even, odd) -> tuple[float, np.ndarray]:
    """`unlikeliness` of masks with their complements, from what `halved` gives.

    The covariance falls apart into that of sums and that of differences: a quarter of the work.
    """
    linear, smooth, decay, _ = np.exp(log_theta)
    up = smooth * np.exp(decay * (inner - 1))
    down = smooth * np.exp(-decay * (inner + 1))
    up_slope, down_slope = decay * (inner - 1) * up, -decay * (inner + 1) * down
    flat = 2 * linear * inner
    sums = up + down
    differences = up - down
    return _posterior(
        log_theta,
        [
            (2 + sums, even, None, sums, up_slope + down_slope),
            (flat + differences, odd, flat, differences, up_slope - down_slope),
        ],
    )


def _posterior(log_theta, blocks):
    """Value and gradient from independent blocks.

    Each has its covariance without noise, its values, and what the covariance changes by the
    logarithms of linear, smooth and decay; None where it does not.
    """
    noise = np.exp(log_theta[3])
    surprise = (log_theta[3] - NOISE[0]) / NOISE[1]
    value, gradient = surprise**2 / 2, np.array([0, 0, 0, surprise / NOISE[1]])
    for kernel, y, *changes in blocks:
        kernel[np.diag_indices(len(y))] += noise
        factor, failed = dpotrf(kernel.T, lower=1, overwrite_a=1)
        if failed:  # rounding: nothing that a line search should accept
            return np.inf, np.zeros(4)
        alpha = dpotrs(factor, y, lower=1)[0]
        value += y @ alpha / 2 + np.log(np.diagonal(factor)).sum()
        inverse = dpotri(factor, lower=1, overwrite_c=1)[0].T  # one triangle, the other is 0
        diagonal = np.diagonal(inverse)
        gradient[3] += noise * (diagonal.sum() - alpha @ alpha) / 2
        for i, change in enumerate(changes):
            if change is not None:  # half the trace of (inverse - alpha alpha^T) change
                trace = 2 * np.vdot(inverse, change) - diagonal @ np.diagonal(change)
                gradient[i] += (trace - alpha @ change @ alpha) / 2
    return value, gradient
