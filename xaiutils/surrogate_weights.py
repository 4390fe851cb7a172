"""Masks at which `surrogate`'s process is read, and the weights of its values in what is read.

A reading is linear in f. Masks come as halves (h, d), which stand for themselves and their
complements; weights (r, 2h) have a column for each of both.
"""

from __future__ import annotations

import numpy as np

from xaiutils import designs, limit, regression

CUBE_D = 12  # up to here a process is read at all 2^d masks, beyond at a sample of them


def generator(seed):
    return np.random.default_rng([seed, 1])  # apart from the numbers that drew the known masks


def line(masks, width, penalty=0.0):
    """Weights (d + 1, n) that LIME's regression gives to the values at masks (n, d).

    `penalty` is the ridge for each mask.
    """
    weight = limit.psi(1 - masks.mean(axis=1), width)
    rows = np.hstack([np.ones((len(masks), 1)), masks])
    weighted = rows.T * (weight / len(masks))
    gram = weighted @ rows
    diagonal = np.arange(1, len(gram))
    gram[diagonal, diagonal] += penalty
    if not np.linalg.cond(gram) < regression.MAX_CONDITION:
        raise ValueError(
            f"width must leave weight on more than {len(gram) - 1} of {len(masks)} masks, got "
            f"{width!r}"
        )
    return np.linalg.solve(gram, weighted)


def half_cube(d):
    return limit.masks(d)[: 2 ** (d - 1)]


def free_half(h, d, rng):
    """Masks (h, d) in random order, which with their complements stand for all."""
    try:
        half = designs.draw(h, d, "orthogonal", rng)
    except ValueError:  # there is none of as many rows
        half = designs.draw(h, d, "iid", rng)
    return rng.permutation(half)


def with_rounding(covariance, theta):
    """Its variances not below what rounding leaves where large terms cancel."""
    variances, own = np.diagonal(covariance), np.diag_indices(len(covariance))
    prior = theta.constant + theta.linear + theta.smooth + theta.noise
    covariance[own] = np.maximum(variances, 100 * regression.EPS * prior)
    return covariance


def ends(masks):
    """Whether each hides all or nothing."""
    return np.isin(masks.sum(axis=1), (0, masks.shape[1]))


def with_complements(half):
    return np.vstack([half, ~half])


def half_of(n_free, d):
    if not isinstance(n_free, int | np.integer) or n_free % 2 or n_free < 4 * (d + 1):
        raise ValueError(f"n_free must be an even integer of at least 4 (d + 1), got {n_free!r}")
    return n_free // 2


def stratified(n, d, rng):
    """Masks (n, d), the last whole, the sizes of the others spread evenly over Kernel SHAP's."""
    size = np.arange(1, d)
    law = np.cumsum(1 / (size * (d - size)))
    chosen = size[np.searchsorted(law / law[-1], (np.arange(n - 1) + rng.random()) / (n - 1))]
    chosen = rng.permutation(chosen)
    rank = rng.random((n - 1, d)).argsort(axis=1).argsort(axis=1)
    return np.vstack([rank < chosen[:, None], np.ones((1, d), bool)])


def semivalue(half, share):
    """Weights (d, 2h) that add up what j adds to each set without it, by share[size of the set]."""
    free = with_complements(half)
    weights = share[free.sum(axis=1) - free.T]
    return np.where(free.T, weights, -weights)


def kernel_shap(half):
    """Weights (d, 2h) of Kernel SHAP's regression, whose line passes through empty and whole."""
    free = with_complements(half)
    share = free.mean(axis=1)
    rows = free - share[:, None]
    # Rows add up to 0: adding 1 to all entries makes the matrix regular and changes nothing else.
    weights = np.linalg.solve(rows.T @ rows + 1, rows.T)
    equal = 1 / free.shape[1]
    whole, empty = equal - weights @ share, -equal - weights @ (1 - share)
    weights[:, len(half) - 1] += whole
    weights[:, -1] += empty
    return weights


def sampling(weights, residual):
    """Covariance that comes from the choice of the free masks: pairs are independent."""
    one, other = np.split(weights * residual, 2, axis=1)
    return (one + other) @ (one + other).T
