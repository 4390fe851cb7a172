"""The limit of LIME and its relatives, by enumeration of the cube {0,1}^d.

A function on the cube is given by its table: entry i is the value at the z whose z_j is bit j of i.
"""

import itertools
import math

import numpy as np
import torch

from oracles.problems import Tanh, partition
from oracles.registry import oracle_of
from xaiutils import limit, segment
from xaiutils.perturb import Components

# --- building blocks ------------------------------------------------------------------------------


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


def table_of(f, d):
    """The table of a function of bool masks, asked for one mask at a time: (2^d,) or (2^d, K)."""
    return np.array([f(z[None])[0] for z in cube(d).astype(bool)])


def each_output(function, table):
    """`function` of a table, or of each column of it, one after the other."""
    if table.ndim == 1:
        return function(table)
    return np.array([function(column) for column in table.T])


def as_limit(beta):
    """Intercept and coefficients of (d + 1,) or (d + 1, K) as the fields of a `limit.Limit`."""
    return {"intercept": beta[0], "coef": beta[1:].T}


# --- inputs ---------------------------------------------------------------------------------------


def reader(table):
    """A function of bool masks (m, d) that looks its values up one by one."""

    def f(z):
        return np.array([table[sum(1 << j for j, on in enumerate(row) if on)] for row in z])

    return f


def random_function(rng):
    """Two outputs of five superpixels."""
    return {"f": reader(rng.normal(size=(32, 2))), "d": 5}


def one_output(rng):
    return {"f": reader(rng.normal(size=64)), "d": 6}


FINITE = [
    {"nu": nu, **more}
    for nu in (0.1, 0.25, 3.0)
    for more in ({}, {"ridge": 1.5, "n": 40}, {"ridge": 0.3, "n": 25, "first_row": True})
]


def grey_images(rng):
    return {
        "image": rng.random((4, 4)),
        "replacement": rng.random((4, 4)),
        "components": partition(),
    }


def paths(rng):
    return {
        "model": Tanh(rng, 24),
        "x": rng.random((1, 4, 6)),
        "baseline": rng.random((1, 4, 6)),
        "components": Components(segment.grid((4, 6), 2, 3)),
        "target": 1,
        "steps": 300,
    }


# --- moments of the weighted masks ----------------------------------------------------------------


@oracle_of(limit.psi, lambda rng: {"hidden": np.arange(13) / 12}, [{}, {"nu": 0.1}, {"nu": 5}])
def psi(hidden, nu=0.25):
    rows = [[True] * (12 - off) + [False] * off for off in np.rint(12 * hidden).astype(int)]
    return weights_of(rows, nu)


@oracle_of(
    limit.alpha,
    lambda rng: {"p": np.arange(8), "d": 7},
    [{"nu": 0.1}, {"nu": 0.25}, {"nu": 9.0}, {"p": 3}, {"p": np.array([[1], [0]]), "d": 1}],
)
def alpha(p, d, nu=0.25):
    rows = cube(d)
    kept = [rows[:, :q].prod(axis=1) for q in np.ravel(p)]
    return np.reshape([weights_of(rows, nu) @ row / 2**d for row in kept], np.shape(p))


@oracle_of(limit.alpha, lambda rng: {"p": 2, "d": 1500, "nu": 0.25}, [{}, {"p": 300}, {"d": 60}])
def alpha_of_many(p, d, nu):
    return alpha_by_integers(p, d, nu)


def mean_products(d, nu, n=None):
    """E[pi z~ z~^T]; with `n`, one of the n rows is all ones."""
    rows = np.hstack([np.ones((2**d, 1)), cube(d)])
    mass = weights_of(rows[:, 1:], nu) / 2**d
    if n is not None:
        mass *= (n - 1) / n
        mass[-1] += 1 / n
    return sum(m * np.outer(row, row) for m, row in zip(mass, rows, strict=True))


@oracle_of(limit.coefficients, lambda rng: {"d": 6}, [{"nu": 0.1}, {"nu": 0.25}, {"d": 2}])
def coefficients(d, nu=0.25):
    on, weight = cube(d).sum(axis=1), weights_of(cube(d), nu) / 2**d
    c_d = (weight.sum() * (weight @ on**2) - (weight @ on) ** 2) / d
    inverse = np.linalg.inv(mean_products(d, nu))
    return {"c_d": c_d, "sigma": c_d * inverse[[0, 0, 1, 1], [0, 1, 1, 2]]}


@oracle_of(limit.coin, lambda rng: {"d": 7}, [{"nu": 0.05}, {"nu": 0.25}, {"d": 1}])
def coin(d, nu=0.25):
    return np.average(cube(d)[:, 0], weights=weights_of(cube(d), nu))


@oracle_of(limit.kept, lambda rng: {"d": 6, "n": 30}, [{"nu": 0.1}, {"ridge": 2.5}])
def kept(d, nu=0.25, *, n, ridge=1.0):
    contrast, common = cube(d)[:, 0] - cube(d)[:, 1], cube(d).sum(axis=1)
    shrunk = [limit_by_lstsq(table, nu, ridge=ridge, n=n)[1] for table in (contrast, common)]
    return tuple(shrunk)


# --- limits ---------------------------------------------------------------------------------------


@oracle_of(
    limit.from_moments,
    lambda rng: {"mean": rng.normal(size=2), "joint": rng.normal(size=(2, 5)), "d": 5},
    [{}, {"nu": 0.1, "ridge": 2.0, "n": 30}, {"first": np.array([0.4, -1.0]), "n": 20}],
)
def from_moments(mean, joint, d, nu=0.25, *, ridge=0.0, n=None, first=None):
    right = np.vstack([mean, joint.T])
    if first is not None:
        right = ((n - 1) * right + first) / n
    products = mean_products(d, nu, n if first is not None else None)
    products[range(1, d + 1), range(1, d + 1)] += ridge / n if n else 0
    return as_limit(np.linalg.solve(products, right))


@oracle_of(limit.masks, lambda rng: {"d": 5})
def masks(d):
    return cube(d) == 1


@oracle_of(limit.tabulate, random_function, [{}, {"batch_size": 7}])
def tabulate(f, d, batch_size=None):
    return table_of(f, d)


@oracle_of(
    limit.lookup,
    lambda rng: {"table": rng.normal(size=(16, 3)), "z": rng.random((9, 4)) < 0.5},
    call=lambda table, z: limit.lookup(table)(z),
)
def lookup(table, z):
    known = {tuple(row): values for row, values in zip(cube(4), table, strict=True)}
    return [known[tuple(row)] for row in z.astype(float)]


@oracle_of(limit.exact, random_function, FINITE)
@oracle_of(limit.exact, one_output, FINITE[:2])
def exact(f, d, nu, **finite):
    return as_limit(limit_by_lstsq(table_of(f, d), nu, **finite))


@oracle_of(limit.detector, lambda rng: {"on": [4, 1], "off": [2], "d": 6}, FINITE)
@oracle_of(limit.detector, lambda rng: {"on": [0, 1, 2], "off": [], "d": 6}, FINITE)
def detector(on, off, d, nu, **finite):
    table = [all(z[j] for j in on) and not any(z[j] for j in off) for z in cube(d)]
    return as_limit(limit_by_lstsq(np.array(table, float), nu, **finite))


def supports(rng):
    """Two pixels of superpixel 0, one of 1 and one of 4."""
    support = np.zeros((4, 4), bool)
    support[[0, 0, 1, 3], [0, 2, 1, 2]] = True
    return {**grey_images(rng), "support": support, "tau": 0.3}


@oracle_of(limit.shape_detector, supports, FINITE * 4)
def shape_detector(image, replacement, support, components, *, tau, nu, **finite):
    table = table_of_images(
        lambda x: float(all(x[support] > tau)), image, replacement, components.labels
    )
    return as_limit(limit_by_lstsq(table, nu, **finite))


@oracle_of(
    limit.count_detector,
    lambda rng: {"h": rng.normal(size=4), "members": [5, 0, 3], "d": 6},
    [{}, {"nu": 0.1}, {"h": [0, 1], "members": [2]}],
)
def count_detector(h, members, d, nu=0.25):
    table = [h[int(sum(z[j] for j in members))] for z in cube(d)]
    return as_limit(limit_by_lstsq(np.array(table, float), nu))


@oracle_of(limit.linear, lambda rng: {**grey_images(rng), "weights": rng.normal(size=(4, 4))})
def linear(weights, image, replacement, components):
    table = table_of_images(
        lambda x: float((weights * x).sum()), image, replacement, components.labels
    )
    return as_limit(limit_by_lstsq(table, 0.25))


@oracle_of(limit.clt_variance, random_function, [{"nu": 0.1}, {"nu": 0.25}])
def clt_variance(f, d, nu):
    return each_output(lambda table: clt_diagonal(table, nu), table_of(f, d))


# --- other values of superpixels ------------------------------------------------------------------


@oracle_of(limit.integrated_gradients_sums, paths, rtol=0, atol=2e-5)
def integrated_gradients_sums(model, x, baseline, components, target, *, steps):
    """Central differences of G(w) = f(baseline + sum_j w_j (x - baseline) on J_j) on the path."""
    nodes, weights = np.polynomial.legendre.leggauss(40)
    d, sums = components.d, np.zeros(components.d)
    for t, weight in zip((nodes + 1) / 2, weights / 2, strict=True):
        for j in range(d):
            ends = []
            for step in (1e-4, -1e-4):
                w = np.full(d, t)
                w[j] += step
                image = baseline + w[components.labels] * (x - baseline)
                ends.append(model(torch.from_numpy(image)[None])[0, target].item())
            sums[j] += weight * (ends[0] - ends[1]) / 2e-4
    return sums


@oracle_of(limit.coin_banzhaf, random_function, [{}, {"q": 0.3}, {"q": 0}, {"q": 1}])
def coin_banzhaf(f, d, q=0.5):
    return each_output(lambda table: coin_slopes(table, q), table_of(f, d))


@oracle_of(limit.shapley, random_function)
@oracle_of(limit.shapley, one_output)
def shapley(f, d):
    return each_output(shapley_by_orders, table_of(f, d))


@oracle_of(limit.occlusion, random_function)
@oracle_of(limit.occlusion, one_output)
def occlusion(f, d):
    whole, gaps = table_of(f, d)[-1], []
    for j in range(d):
        z = np.ones(d, bool)
        z[j] = False
        gaps.append(whole - f(z[None])[0])
    return np.transpose(gaps)
