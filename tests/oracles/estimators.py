"""LIME on given masks."""

import math

import numpy as np
from scipy.stats import norm

from oracles.limits import compose, ridge_lstsq, weights_of
from oracles.problems import Tanh, answer, partition
from oracles.registry import oracle_of
from oracles.surrogates import balanced
from oracles.surrogates import lime as by_surrogate
from xaiutils import lime

# --- the fit --------------------------------------------------------------------------------------


def random_fit(rng):
    masks = rng.random((40, 5)) < 0.5
    weights, outputs = rng.random(40), masks @ rng.normal(size=(5, 2)) + rng.normal(size=(40, 2))
    return {"masks": masks, "weights": weights, "outputs": outputs}


@oracle_of(
    lime.kernel,
    lambda rng: {"masks": np.vstack([rng.random((30, 7)) < 0.5, np.zeros((1, 7), bool)])},
    [{}, {"width": 0.05}, {"width": 3}],
)
def kernel(masks, width=0.25):
    return weights_of(masks, width)


@oracle_of(
    lime.fit,
    random_fit,
    [{"ridge": 0.0}, {}, {"ridge": 7.0}, {"ridge": 0.5, "group": 2}],
    call=lambda **given: tuple(lime.fit(**given)),
)
def fit(masks, weights, outputs, ridge=1.0, *, group=1):
    n, d = masks.shape
    rows = np.array([[1.0, *row] for row in masks])
    gram = np.diag([0.0] + [ridge] * d)
    for weight, row in zip(weights, rows, strict=True):
        gram += weight * np.outer(row, row)
    inverse, results = np.linalg.inv(gram), []
    for values in outputs.T:
        beta = ridge_lstsq(masks, weights, values, ridge)
        residual = values - rows @ beta
        meat = np.zeros((d + 1, d + 1))
        for start in range(0, n, group):
            out = range(start, start + group)
            others = np.delete(np.arange(n), out)
            without = ridge_lstsq(masks[others], weights[others], values[others], ridge)
            moved = sum(weights[i] * (values[i] - rows[i] @ without) * rows[i] for i in out)
            meat += np.outer(moved, moved)
        mean = sum(weights * values) / sum(weights)
        score = 1 - sum(weights * residual**2) / sum(weights * (values - mean) ** 2)
        results.append((beta[0], beta[1:], score, inverse @ meat @ inverse))
    return tuple(np.array(part) for part in zip(*results, strict=True))


# --- explanations ---------------------------------------------------------------------------------


def image_to_explain(rng):
    return {
        "model": Tanh(rng, 32),
        "x": rng.random((2, 4, 4)),
        "components": partition(),
        "n_samples": 60,
        "seed": 3,
    }


def asked(model, x, labels, masks, hidden, columns):
    """Outputs of the model for one composed image after the other."""
    images = [compose(x, hidden, labels, z) for z in masks]
    return np.array([answer(model, image)[columns] for image in images])


def fitted(masks, outputs, width, ridge, group):
    """Fields of an explanation of outputs (n, T)."""
    weights = weights_of(masks, width)
    intercept, coef, score, covariance = fit(masks, weights, outputs, ridge, group=group)
    found = {
        "intercept": intercept,
        "coef": coef,
        "score": score,
        "covariance": covariance,
        "stderr": np.sqrt([np.diag(part)[1:] for part in covariance]),
        "local_prediction": np.array([b + sum(c) for b, c in zip(intercept, coef, strict=True)]),
        "outputs": outputs.T,
    }
    return found, weights


def read_off(found, masks, weights, outputs, width):
    """Put in `found` what a surrogate of each output says, by enumeration."""
    distinct, first = np.unique(masks, axis=0, return_index=True)
    for t, values in enumerate(outputs.T):
        line = by_surrogate(distinct, values[first], width=width)
        found["intercept"][t], found["coef"][t], found["covariance"][t] = line
        residual = values - found["intercept"][t] - masks @ found["coef"][t]
        centred = values - np.average(values, weights=weights)
        found["score"][t] = 1 - np.average(residual**2, weights=weights) / np.average(
            centred**2, weights=weights
        )
    found["local_prediction"] = found["intercept"] + found["coef"].sum(axis=1)


@oracle_of(
    lime.explain,
    image_to_explain,
    [
        {"targets": [2, 0]},
        {"targets": 1, "filler": 0.2, "kernel_width": 0.1, "ridge": 0.0},
        {"targets": [0], "design": "paired"},
        {"targets": 1, "design": "orthogonal", "n_samples": 16},
        {
            "targets": [0],
            "design": "orthogonal",
            "n_samples": 16,
            "ridge": 2.0,
            "kernel_width": 0.5,
        },
        {"targets": [2, 1], "estimator": "surrogate", "n_samples": 20},
        {"targets": 0, "estimator": "surrogate", "design": "orthogonal", "n_samples": 16},
    ],
    rtol=1e-6,
    atol=1e-8,
)
def explain(
    model, x, components, *, targets, filler="mean", kernel_width=0.25, ridge=1.0, **options
):
    """From the masks that were drawn."""
    masks = lime.explain(model, x, components, targets=0, **options).masks
    hidden = components.means(x) if isinstance(filler, str) else np.full(x.shape, filler)
    outputs = asked(model, x, components.labels, masks, hidden, np.atleast_1d(targets))
    design = options.get("design", "iid")
    found, weights = fitted(masks, outputs, kernel_width, ridge, 2 if design == "paired" else 1)
    if options.get("estimator") == "surrogate":
        read_off(found, masks, weights, outputs, kernel_width)
    elif design in ("orthogonal", "folded"):
        found["covariance"] = [balanced(masks, y, kernel_width, ridge) for y in outputs.T]
    found["stderr"] = np.sqrt([np.diag(part)[1:] for part in found["covariance"]])
    if np.ndim(targets) == 0:
        found = {name: value[0] for name, value in found.items()}
    return {**found, "outputs": found["outputs"].T, "weights": weights, "converged": None}


def levels(rng):
    """An image of whole grey levels, and a function of it that the `lime` package could explain."""
    model = Tanh(rng, 48)
    return {
        **image_to_explain(rng),
        "model": lambda batch: model(batch.double() / 255),
        "x": rng.integers(0, 256, (3, 4, 4), dtype=np.uint8),
    }


@oracle_of(
    lime.explain,
    levels,
    [{"targets": [0, 2]}, {"targets": [1], "filler": 7, "seed": 8}],
    call=lambda **options: lime.explain(**options, package_exact=True),
    rtol=1e-7,
)
def explain_as_the_package(model, x, components, *, targets, n_samples, seed, filler="mean"):
    """Its random numbers in its order, a whole first row, and means cut to whole levels."""
    state = np.random.RandomState(seed)
    state.randint(0, high=1000)
    masks = state.randint(0, 2, n_samples * 5).reshape(n_samples, 5)
    masks[0] = 1
    hidden = np.full(x.shape, filler if filler != "mean" else 0, np.uint8)
    for channel, j in np.ndindex(3, 5 if filler == "mean" else 0):
        inside = np.equal(components.labels, j)
        hidden[channel][inside] = int(x[channel][inside].mean())
    outputs = asked(model, x, components.labels, masks, hidden, targets)
    found, weights = fitted(masks == 1, outputs, 0.25, 1.0, 1)
    return {**found, "masks": masks == 1, "outputs": outputs, "weights": weights}


def rounds(explanation):
    """What the stop rule decides."""
    return {
        "n": len(explanation.masks),
        "converged": explanation.converged,
        "coef": explanation.coef,
    }


def settled(stop, coef, covariance, looks):
    """The rule of `stop` for one output; the risk is shared by all `looks`."""
    if stop.stderr is not None:
        return max(np.sqrt(np.diag(covariance))[1:]) <= stop.stderr
    order = sorted(range(len(coef)), key=lambda j: -coef[j])
    i, j = order[stop.top_k - 1], order[stop.top_k]
    contrast = np.zeros(len(covariance))
    contrast[[i + 1, j + 1]] = 1, -1
    error = math.sqrt(contrast @ covariance @ contrast)
    return coef[i] - coef[j] >= norm.ppf(1 - (1 - stop.level) / 2 / looks) * error


@oracle_of(
    lime.explain,
    image_to_explain,
    [
        {"targets": [0, 1], "stop": lime.Stop(stderr=0.03, max_samples=1000)},
        {"targets": [2, 0], "stop": lime.Stop(top_k=1, max_samples=1000)},
        {"targets": [1], "stop": lime.Stop(top_k=2, level=0.8, max_samples=300)},
        {"targets": [1], "stop": lime.Stop(stderr=1e-6, max_samples=200)},
    ],
    call=lambda **options: rounds(lime.explain(**options)),
)
def explain_until(model, x, components, *, targets, n_samples, stop, seed):
    """Round after round of the masks that are drawn if the rule is never met."""
    never = lime.Stop(stderr=1e-9, max_samples=stop.max_samples)
    drawn = lime.explain(
        model, x, components, targets=targets, n_samples=n_samples, stop=never, seed=seed
    )
    looks = stop.max_samples // n_samples
    for n in range(n_samples, stop.max_samples + 1, n_samples):
        found, _ = fitted(drawn.masks[:n], drawn.outputs[:n], 0.25, 1.0, 1)
        each = zip(found["coef"], found["covariance"], strict=True)
        met = all(settled(stop, coef, covariance, looks) for coef, covariance in each)
        if met:
            break
    return {"n": n, "converged": met, "coef": found["coef"]}


def fits(rng):
    """Coefficients and covariances of many fits, some clearly told apart and some not."""
    roots = rng.normal(size=(200, 2, 6, 6)) / 15
    return {"coefs": rng.normal(size=(200, 2, 5)), "covariances": roots @ roots.swapaxes(2, 3)}


@oracle_of(
    lime.Stop.met,
    fits,
    [
        {"stop": lime.Stop(stderr=0.2), "looks": 3},
        {"stop": lime.Stop(top_k=1), "looks": 1},
        {"stop": lime.Stop(top_k=3, level=0.8), "looks": 4},
    ],
    call=lambda coefs, covariances, stop, looks: np.array(
        [stop.met(*fit, looks) for fit in zip(coefs, covariances, strict=True)]
    ),
)
def met(coefs, covariances, stop, looks):
    return np.array(
        [
            all(settled(stop, *one, looks) for one in zip(*fit, strict=True))
            for fit in zip(coefs, covariances, strict=True)
        ]
    )


# --- sets of superpixels --------------------------------------------------------------------------


@oracle_of(
    lime.top_k, lambda rng: {"coef": rng.normal(size=9), "k": 3}, [{}, {"k": 20}, {"coef": [-1, 0]}]
)
def top_k(coef, k):
    left, chosen = dict(enumerate(coef)), set()
    while left and len(chosen) < k and max(left.values()) > 0:
        best = max(left, key=left.get)
        chosen.add(best)
        del left[best]
    return chosen


@oracle_of(
    lime.jaccard,
    lambda rng: {"a": {1, 2, 5}, "b": {2, 5, 7, 8}},
    [{}, {"a": set(), "b": set()}, {"a": {9}}],
)
def jaccard(a, b):
    either = [j for j in range(10) if j in a or j in b]
    return sum(j in a and j in b for j in either) / len(either) if either else 1.0
