"""Slow, naive reference computations: definitions written as loops or plain matrix algebra.

They share no formula with the package. A function on the cube is given by its table: entry i is
the value at the z whose z_j is bit j of i.
"""

import itertools
import math

import numpy as np


def cube(d):
    """All z in {0,1}^d, (2**d, d) floats, row i = binary digits of i, least significant first."""
    return np.array([[(i >> j) & 1 for j in range(d)] for i in range(2**d)], dtype=float)


def cosine_weight(z, nu):
    """LIME's weight of one binary row, from the cosine distance to the row of ones."""
    on = sum(z)
    cosine = on / (math.sqrt(on) * math.sqrt(len(z))) if on else 0.0
    return math.exp(-((1 - cosine) ** 2) / (2 * nu**2))


def weights_of(rows, nu):
    return np.array([cosine_weight(list(map(float, z)), nu) for z in rows])


def ridge_lstsq(rows, weights, values, ridge):
    """Minimise sum_i w_i (y_i - b.z~_i)^2 + ridge sum_{j>=1} b_j^2 by one least-squares call.

    Returns (d + 1,) for values (n,), intercept first, or (d + 1, K) for values (n, K).
    """
    rows, values = np.asarray(rows, dtype=float), np.asarray(values, dtype=float)
    d = rows.shape[1]
    root = np.sqrt(weights)
    design = root[:, None] * np.hstack([np.ones((len(rows), 1)), rows])
    goal = (root * values.T).T
    penalty = np.hstack([np.zeros((d, 1)), math.sqrt(ridge) * np.eye(d)])
    return np.linalg.lstsq(
        np.vstack([design, penalty]),
        np.concatenate([goal, np.zeros((d, *values.shape[1:]))]),
        rcond=None,
    )[0]


def limit_by_lstsq(table, nu, *, ridge=0.0, n=None, first_row=False):
    """Intercept and coefficients of LIME's population problem, by enumeration of the cube."""
    d = int(math.log2(len(table)))
    rows = cube(d)
    mass = weights_of(rows, nu) / 2**d
    if first_row:
        mass *= (n - 1) / n
        mass[-1] += 1 / n
    return ridge_lstsq(rows, mass, table, ridge / n if n else 0.0)


def clt_diagonal(table, nu):
    """Diagonal of Sigma^-1 E[pi^2 r^2 z~ z~^T] Sigma^-1, summed row by row over the cube."""
    d = int(math.log2(len(table)))
    beta = limit_by_lstsq(table, nu)
    gram, meat = np.zeros((d + 1, d + 1)), np.zeros((d + 1, d + 1))
    for z, value in zip(cube(d), table, strict=True):
        extended = np.concatenate([[1.0], z])
        weight = cosine_weight(list(z), nu)
        residual = value - extended @ beta
        gram += weight * np.outer(extended, extended) / 2**d
        meat += (weight * residual) ** 2 * np.outer(extended, extended) / 2**d
    inverse = np.linalg.inv(gram)
    return np.diag(inverse @ meat @ inverse)


def shapley_by_orders(table):
    """Shapley values: the gain of each player averaged over all d! orders of arrival."""
    d = int(math.log2(len(table)))
    gains = np.zeros(d)
    for order in itertools.permutations(range(d)):
        present = 0
        for j in order:
            gains[j] += table[present | 1 << j] - table[present]
            present |= 1 << j
    return gains / math.factorial(d)


def coin_mean(table, w):
    """F(w): the mean of f when z_j is on with probability w_j, independently."""
    total = 0.0
    for z, value in zip(cube(len(w)), table, strict=True):
        total += value * math.prod(p if on else 1 - p for on, p in zip(z, w, strict=True))
    return total


def coin_slopes(table, q):
    """dF/dw_j at (q, ..., q); F is affine in each w_j, so F(w_j = 1) - F(w_j = 0) is exact."""
    d = int(math.log2(len(table)))
    slopes = []
    for j in range(d):
        high, low = [q] * d, [q] * d
        high[j], low[j] = 1.0, 0.0
        slopes.append(coin_mean(table, high) - coin_mean(table, low))
    return np.array(slopes)


def alpha_by_integers(p, d, nu):
    """E[pi z_1...z_p] as a sum over the number of superpixels off, with exact integer ratios."""
    total = 2**d
    return math.fsum(
        math.comb(d - p, off)
        / total
        * math.exp(-((1 - math.sqrt((d - off) / d)) ** 2) / (2 * nu**2))
        for off in range(d - p + 1)
    )


def compose(x, replacement, labels, z):
    """The image x(z), one superpixel at a time; labels broadcast against x."""
    labels = np.broadcast_to(labels, x.shape)
    out = x.copy()
    for j, on in enumerate(z):
        if not on:
            out[labels == j] = replacement[labels == j]
    return out


def table_of_images(f, x, replacement, labels):
    """The table of f over all 2^d images x(z)."""
    d = int(np.max(labels)) + 1
    return np.array([f(compose(x, replacement, labels, z)) for z in cube(d)])


def relative_error(ours, reference):
    return np.linalg.norm(np.asarray(ours) - reference) / np.linalg.norm(reference)
