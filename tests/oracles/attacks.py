"""The signed-gradient attack with a derivative by hand and Adam from its paper."""

import math

import numpy as np
import torch

from oracles.registry import oracle_of
from xaiutils import attack


class Linear:
    """Logits (1, T) of inputs (1, n) by `weights` (n, T)."""

    def __init__(self, weights):
        self.weights = weights

    def __call__(self, x):
        return x @ torch.from_numpy(self.weights)


def problem(rng):
    return {
        "logits": Linear(rng.normal(size=(6, 4))),
        "x": torch.from_numpy(rng.normal(size=(1, 6)) / 5),
        "lr": 0.01,
        "eps": 0.08,
        "alpha": 0.3,
        "steps": 25,
    }


def equal(change):
    """Projection onto equal values."""
    return change.mean(1, keepdim=True).expand_as(change)


@oracle_of(
    attack.signed_gradient,
    problem,
    [
        {},
        {"alpha": 40.0, "eps": 3.0, "lr": 0.2},
        {"alpha": 40.0, "threshold": 0.7},
        {"alpha": 9.0, "target": torch.tensor([[True, False, True, True]]), "eps": 1.0},
        {"alpha": 9.0, "confine": torch.tensor([True, False, True, False, True, False])},
        {"alpha": 9.0, "confine": equal},
        {"steps": 0},
    ],
)
def signed_gradient(logits, x, *, lr, eps, alpha, steps, threshold=0.5, target=None, confine=None):
    x, weights, taken = x.numpy(), logits.weights, 0

    def project(change):
        if callable(confine):
            return np.full_like(change, change.mean())
        return change if confine is None else np.where(confine.numpy(), change, 0)

    def probability(delta):
        return 1 / (1 + np.exp(-(x + delta) @ weights))

    def flipped(delta):
        p = probability(delta)
        return np.where(wanted, p > threshold, p < threshold)

    delta, first, second = np.zeros_like(x), 0, 0
    wanted = probability(delta) <= threshold if target is None else target.numpy()
    while taken < steps and not flipped(delta).all():
        taken += 1
        cross_entropy = (probability(delta) - wanted) @ weights.T / wanted.size
        sign = np.sign(project(2 * delta + alpha * cross_entropy))
        first, second = 0.9 * first + 0.1 * sign, 0.999 * second + 0.001 * sign**2
        size = np.sqrt(second / (1 - 0.999**taken)) + 1e-8
        moved = delta - lr * first / (1 - 0.9**taken) / size
        delta = np.clip(project(moved), -eps, eps)
    return {
        "x": x,
        "delta": delta,
        "adversarial": x + delta,
        "target": wanted[0],
        "logits": ((x + delta) @ weights)[0],
        "flipped": flipped(delta)[0],
        "success": flipped(delta).mean(),
        "all_flipped": flipped(delta).all(),
        "steps": taken,
    }


@oracle_of(
    attack.snr,
    lambda rng: {name: torch.from_numpy(rng.normal(size=(1, 50))) for name in ("x", "delta")},
    [{}, {"margin": 10}],
)
def snr(x, delta, *, margin=0):
    inside = range(margin, 50 - margin)
    signal, noise = (sum(float(v[0, i]) ** 2 for i in inside) for v in (x, delta))
    return 10 * math.log10(signal / noise)
