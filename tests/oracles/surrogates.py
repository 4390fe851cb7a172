"""A Gaussian process as textbooks have it, and what is read off it by enumeration of the cube."""

import math

import numpy as np
from scipy.optimize import minimize
from scipy.special import expit, logit
from scipy.stats import multivariate_normal

from oracles.limits import (
    coin_slopes,
    cube,
    limit_by_lstsq,
    ridge_lstsq,
    shapley_by_orders,
    weights_of,
)
from oracles.registry import oracle_of
from xaiutils import balance, surrogate, surrogate_kernel

THETA = surrogate_kernel.Hyperparameters(1.0, 0.6, 0.9, 1.7, 0.2)


def inner(z, other, relevances):
    pairs = zip(z, other, relevances, strict=True)
    return sum(u * (1 if a == b else -1) for a, b, u in pairs)


def smooth_part(z, other, relevances, theta):
    product = inner(z, other, relevances)
    return (
        theta.constant
        + theta.linear * product
        + theta.smooth * math.exp(-theta.decay * (1 - product))
    )


def matrix(rows, others, relevances, theta):
    """With the noise, which equal masks share."""
    return np.array(
        [
            [smooth_part(a, b, relevances, theta) + theta.noise * all(a == b) for b in others]
            for a in rows
        ]
    )


# --- the kernel -----------------------------------------------------------------------------------


def some_masks(rng):
    return {
        "masks": rng.random((9, 4)) < 0.5,
        "others": rng.random((6, 4)) < 0.5,
        "relevances": rng.dirichlet(np.ones(4)),
    }


@oracle_of(surrogate_kernel.products, some_masks)
def products(masks, others, relevances):
    return np.array([[inner(a, b, relevances) for b in others] for a in masks])


@oracle_of(
    surrogate_kernel.covariance,
    some_masks,
    call=lambda **given: surrogate_kernel.covariance(surrogate_kernel.products(**given), THETA),
)
def covariance(masks, others, relevances):
    return np.array([[smooth_part(a, b, relevances, THETA) for b in others] for a in masks])


@oracle_of(
    surrogate_kernel.reduced,
    lambda rng: {
        "half": rng.random((7, 4)) < 0.5,
        "weights": rng.normal(size=(3, 14)),
        "relevances": rng.dirichlet(np.ones(4)),
        "theta": THETA,
    },
)
def reduced(half, weights, relevances, theta):
    masks = [*half, *(~half)]
    middle = np.array([[smooth_part(a, b, relevances, theta) for b in masks] for a in masks])
    return weights @ middle @ weights.T


def answers(rng):
    masks = rng.random((20, 4)) < 0.5
    y = masks @ rng.normal(size=4) + masks[:, 0] * masks[:, 1] + rng.normal(size=20) / 5
    return {
        "inner": surrogate_kernel.products(masks, masks, np.full(4, 0.25)),
        "y": (y - y.mean()) / y.std(),
    }


def density(log_theta, inner, y):
    """Logarithm of the normal density of y, and of the noise's a priori."""
    linear, smooth, decay, noise = np.exp(log_theta)
    kernel = 1 + linear * inner + smooth * np.exp(decay * (inner - 1)) + noise * np.eye(len(y))
    prior = ((log_theta[3] - math.log(0.03)) / 1.5) ** 2 / 2
    return multivariate_normal.logpdf(y, np.zeros(len(y)), kernel) - prior


@oracle_of(
    surrogate_kernel.unlikeliness,
    lambda rng: {**answers(rng), "log_theta": rng.normal(size=4) - 1},
    [{}, {}],
    rtol=1e-5,
    atol=1e-5,
)
def unlikeliness(log_theta, inner, y):
    """By differences; the density has a constant more."""
    slopes = [
        (density(log_theta - step, inner, y) - density(log_theta + step, inner, y)) / 2e-5
        for step in 1e-5 * np.eye(4)
    ]
    return -density(log_theta, inner, y) - len(y) / 2 * math.log(2 * math.pi), np.array(slopes)


def paired_answers(rng):
    masks = np.unique(rng.random((12, 4)) < 0.5, axis=0)
    masks = np.unique(np.vstack([masks, ~masks]), axis=0)
    y = masks @ rng.normal(size=4) + masks[:, 0] * masks[:, 1] + rng.normal(size=len(masks)) / 5
    inner = surrogate_kernel.products(masks, masks, np.array([0.1, 0.2, 0.3, 0.4]))
    return {"log_theta": rng.normal(size=4) - 1, "inner": inner, "y": y}


def of_pairs(log_theta, inner, y):
    return surrogate_kernel.unlikeliness_of_pairs(log_theta, *surrogate_kernel.halved(inner, y))


@oracle_of(
    surrogate_kernel.unlikeliness_of_pairs, paired_answers, [{}, {}],
    call=of_pairs, rtol=1e-5, atol=1e-5,
)  # fmt: skip
def unlikeliness_of_pairs(log_theta, inner, y):
    """That of all masks; what is in it does not ask whether they come in pairs."""
    return unlikeliness(log_theta, inner, y)


@oracle_of(surrogate_kernel.halved, paired_answers, [{}, {}], call=lambda log_theta, **given:
           surrogate_kernel.halved(**given))  # fmt: skip
def halved(log_theta, inner, y):
    """By turning to sums and differences, one pair after the other."""
    n = len(y)
    turn = np.zeros((n, n))
    for i in range(n // 2):
        turn[i, [i, n - 1 - i]] = math.sqrt(0.5)
        turn[n // 2 + i, [i, n - 1 - i]] = math.sqrt(0.5), -math.sqrt(0.5)
    even, odd = np.split(turn @ y, 2)
    return (turn @ inner @ turn.T)[n // 2 :, n // 2 :] / 2, even, odd


def likely(inner, y):
    theta = surrogate_kernel.most_likely(inner, y, np.random.default_rng(0))
    return density(np.log(theta[1:]), inner, y)


@oracle_of(surrogate_kernel.most_likely, answers, [{}, {}], call=likely, rtol=0, atol=0.02)
def most_likely(inner, y):
    """The best of what a search without slopes finds, within the same bounds."""
    found = [
        minimize(
            lambda log_theta: -density(log_theta, inner, y),
            start,
            method="Nelder-Mead",
            bounds=np.log([[1e-4, 1e3], [1e-6, 1e3], [0.05, 20], [1e-8, 10]]),
        ).fun
        for start in np.log([[0.5, 0.5, 1.0, 0.1], [1.0, 0.1, 3.0, 0.01]])
    ]
    return -min(found)


# --- the fit --------------------------------------------------------------------------------------


def probabilities(rng):
    """Answers to 22 masks of five components, each mask once."""
    masks = cube(5)[rng.permutation(32)[:22]].astype(bool)
    return {"masks": masks, "values": expit(masks @ rng.normal(size=5) + masks[:, 0] * masks[:, 1])}


LINKS = [{}, {"link": "logit"}]


def process(masks, values, link):
    """Mean and covariance of values or logits on the cube, with the found hyperparameters."""
    found = surrogate.fit(masks, values, link=link)
    y = logit(values) if link == "logit" else values
    scaled = (y - y.mean()) / y.std()
    beta = np.abs(ridge_lstsq(masks, np.ones(len(y)), scaled, 1.0)[1:])
    relevances = (beta + sum(beta) / len(beta) / 4) / sum(beta + sum(beta) / len(beta) / 4)
    theta, everything = found.hyperparameters, cube(5).astype(bool)
    known = matrix(masks, masks, relevances, theta)
    cross = matrix(everything, masks, relevances, theta)
    mean = y.mean() + cross @ np.linalg.solve(known, y - y.mean())
    prior = matrix(everything, everything, relevances, theta)
    errors = []
    for i in range(len(y)):
        rest = np.delete(np.arange(len(y)), i)
        weights = np.linalg.solve(known[np.ix_(rest, rest)], known[rest, i])
        variance = known[i, i] - weights @ known[rest, i]
        errors.append((y[i] - y.mean() - weights @ (y[rest] - y.mean())) ** 2 / variance)
    inflation = max(1, math.sqrt(sum(errors) / len(errors))) * (1 + 6 / len(y))
    spread = inflation**2 * (prior - cross @ np.linalg.solve(known, cross.T))
    return mean, spread, relevances, inflation


def of_values(masks, values, link):
    """Mean and covariance of the values on the cube."""
    mean, spread, *_ = process(masks, values, link)
    if link == "identity":
        return mean, spread
    flatter = 1 / np.sqrt(1 + math.pi / 8 * np.maximum(np.diag(spread), 0))
    mean = expit(flatter * mean)
    slope = flatter * mean * (1 - mean)
    return mean, slope[:, None] * spread * slope


def described(masks, values, link="identity"):
    found = surrogate.fit(masks, values, link=link)
    mean, deviation = found.predict(cube(5))
    return found.relevances, found.inflation, mean, deviation**2


@oracle_of(surrogate.fit, probabilities, LINKS, call=described, rtol=1e-6, atol=1e-9)
def fit(masks, values, link="identity"):
    _, _, relevances, inflation = process(masks, values, link)
    mean, spread = of_values(masks, values, link)
    return relevances, inflation, mean, np.diag(spread)


def read(definition, masks, values, link):
    """Value and covariance of what `definition` makes of the table of a function, linearly."""
    mean, spread = of_values(masks, values, link)
    weights = np.array([definition(unit) for unit in np.eye(32)]).T
    return definition(mean), weights @ spread @ weights.T


def squared(found):
    return found[0], np.square(found[1])


@oracle_of(
    surrogate.Surrogate.lime,
    probabilities,
    [*LINKS, {"width": 0.6}],
    call=lambda masks, values, link="identity", width=0.25: surrogate.fit(
        masks, values, link=link
    ).lime(width),
    rtol=1e-6,
    atol=1e-9,
)
def lime(masks, values, link="identity", width=0.25):
    value, spread = read(lambda table: limit_by_lstsq(table, width), masks, values, link)
    return value[0], value[1:], spread


@oracle_of(
    surrogate.Surrogate.coin_banzhaf,
    probabilities,
    [*LINKS, {"q": 0.7}],
    call=lambda q=0.5, **given: squared(surrogate.fit(**given).coin_banzhaf(q)),
    rtol=1e-6,
    atol=1e-9,
)
def coin_banzhaf(masks, values, link="identity", q=0.5):
    value, spread = read(lambda table: coin_slopes(table, q), masks, values, link)
    return value, np.diag(spread)


@oracle_of(
    surrogate.Surrogate.shapley,
    probabilities,
    LINKS,
    call=lambda **given: squared(surrogate.fit(**given).shapley()),
    rtol=1e-6,
    atol=1e-9,
)
def shapley(masks, values, link="identity"):
    value, spread = read(shapley_by_orders, masks, values, link)
    return value, np.diag(spread)


@oracle_of(
    surrogate.Surrogate.occlusion,
    probabilities,
    LINKS,
    call=lambda **given: squared(surrogate.fit(**given).occlusion()),
    rtol=1e-6,
    atol=1e-9,
)
def occlusion(masks, values, link="identity"):
    value, spread = read(
        lambda table: np.array([table[31] - table[31 - 2**j] for j in range(5)]),
        masks,
        values,
        link,
    )
    return value, np.diag(spread)


# --- the regression's error -----------------------------------------------------------------------


@oracle_of(
    balance.covariance,
    probabilities,
    [{}, {"width": 0.6, "ridge": 1.5}],
    rtol=1e-6,
    atol=1e-9,
)
def balanced(masks, values, width=0.25, ridge=0.0):
    """The error as a sum over the cube, for the process with the hyperparameters found."""
    n, found = len(masks), surrogate.fit(masks, values)
    weights = weights_of(masks, width)
    error = np.array(
        [
            ridge_lstsq(masks, weights, [all(z == known) for known in masks], ridge)
            - limit_by_lstsq([all(z == other) for other in cube(5)], width, ridge=ridge, n=n)
            for z in cube(5)
        ]
    ).T
    everything = matrix(cube(5), cube(5), found.relevances, found.hyperparameters)
    return error @ everything @ error.T * (1 + 6 / n) ** 2
