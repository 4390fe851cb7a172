"""Counterfactuals image by image, with gradients of a linear model written out."""

import numpy as np
import torch
from torch import nn

from oracles.registry import oracle_of
from xaiutils import counterfactuals

SHAPE = (2, 2, 2)
STRENGTHS = (0.05, 0.1, 0.3, 0.8, 1.5)


class Coder(nn.Module):
    """Two matrices between images and three numbers."""

    def __init__(self, there, back):
        super().__init__()
        self.there, self.back = there, back

    def encoder(self, x):
        return x.flatten(1) @ torch.from_numpy(self.there)

    def decoder(self, z):
        return (z @ torch.from_numpy(self.back)).view(-1, *SHAPE)


def linear(weights):
    model = nn.Sequential(nn.Flatten(), nn.Linear(8, 3, bias=False)).eval()
    with torch.no_grad():
        model[1].weight.copy_(torch.from_numpy(weights))
    return model


def velocity(points, times):
    return 0.4 * points.flip(-1) - 0.2 * times.view(-1, 1, 1, 1)


def inputs(rng):
    return {
        "model": linear(4 * rng.normal(size=(3, 8))),
        "x": rng.uniform(0.2, 0.8, (4, *SHAPE)).astype(np.float32),
        "targets": [0, 1, 2, 1],
        "confidence": 0.8,
        "strengths": STRENGTHS,
    }


def log_probability(weights, x, target):
    logits = weights @ x.reshape(-1)
    return logits[target] - np.log(np.exp(logits).sum())


def slope(weights, x, target):
    """Of the log-probability, with the shape of x."""
    logits = weights @ x.reshape(-1)
    share = np.exp(logits) / np.exp(logits).sum()
    return (weights[target] - share @ weights).reshape(x.shape)


def unit(values):
    return values / np.sqrt(np.square(values).sum())


def first_or_best(weights, made, target, confidence):
    """The first of the images that is sure enough, else the surest."""
    made = [np.clip(image, 0, 1) for image in made]
    sure = [np.exp(log_probability(weights, image, target)) for image in made]
    return made[next((k for k, p in enumerate(sure) if p >= confidence), int(np.argmax(sure)))]


def each_image(model, x, targets, confidence, made):
    weights = model[1].weight.detach().numpy().astype(float)
    return np.array([
        first_or_best(weights, made(weights, image.astype(float), target), target, confidence)
        for image, target in zip(x, targets, strict=True)
    ])  # fmt: skip


@oracle_of(
    counterfactuals.latent_shift,
    lambda rng: (
        inputs(rng)
        | {
            "autoencoder": Coder(
                rng.normal(size=(8, 3)).astype("float32"), rng.normal(size=(3, 8)).astype("float32")
            )
        }
    ),
    [{}, {"confidence": 0.999}, {"batch_size": 3}],
    rtol=1e-4,
    atol=1e-4,
)
def latent_shift(model, autoencoder, x, targets, *, confidence, strengths, batch_size=None):
    def made(weights, image, target):
        z = image.reshape(-1) @ autoencoder.there
        along = slope(weights, z @ autoencoder.back, target) @ autoencoder.back.T
        for strength in strengths:
            step = strength * np.sqrt(np.square(z).sum()) * unit(along)
            yield ((z + step) @ autoencoder.back).reshape(SHAPE)

    return each_image(model, x, targets, confidence, made)


@oracle_of(
    counterfactuals.robust_gradient,
    lambda rng: inputs(rng) | {"robust": linear(rng.normal(size=(3, 8)))},
    [{}, {"confidence": 0.999}, {"batch_size": 3}],
    rtol=1e-4,
    atol=1e-4,
)
def robust_gradient(model, robust, x, targets, *, confidence, strengths, batch_size=None):
    guide = robust[1].weight.detach().numpy().astype(float)

    def made(weights, image, target):
        for gone, length in zip((0, *strengths), strengths, strict=False):
            image = np.clip(image + (length - gone) * unit(slope(guide, image, target)), 0, 1)
            yield image

    return each_image(model, x, targets, confidence, made)


@oracle_of(
    counterfactuals.guided_flow,
    lambda rng: inputs(rng) | {"velocity": velocity, "steps": 3, "start": 0.4, "free": 0.5},
    [{}, {"confidence": 0.999}, {"free": 0.25, "steps": 4}],
    rtol=1e-4,
    atol=1e-4,
)
def guided_flow(model, velocity, x, targets, *, start, steps, free, confidence, strengths):
    def speed(point, time):
        return 0.4 * point[..., ::-1] - 0.2 * time

    width = (1 - start) / steps
    times = [start + k * width for k in range(steps + 1)]

    def made(weights, image, target):
        back = {steps: 2 * image - 1}
        for k in range(steps, 0, -1):
            back[k - 1] = back[k] - width * speed(back[k], times[k])
        for strength in strengths:
            point, loose = back[0], np.zeros(SHAPE[1:], bool)
            for k in range(steps):
                v = speed(point, times[k])
                heading = np.clip((point + (1 - times[k]) * v + 1) / 2, 0, 1)
                along = slope(weights, heading, target)
                order = np.argsort(-np.abs(along).sum(0).reshape(-1))
                loose.reshape(-1)[order[: int(np.ceil(free * loose.size))]] = True
                push = strength * unit(np.where(loose, along, 0))
                point = np.where(loose, point + width * (v + push), back[k + 1])
            yield (point + 1) / 2

    return each_image(model, x, targets, confidence, made)
