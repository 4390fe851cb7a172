"""What hidden pixels become: baselines and imputation, image by image."""

import math

import numpy as np
import torch

from oracles.problems import LABELS, answer, partition, softmax, weighted
from oracles.registry import oracle_of
from xaiutils import baselines, imputation, training_samples
from xaiutils.data.images import rng as generator_of

# --- baselines without a class --------------------------------------------------------------------


def photographs(rng):
    x = rng.random((2, 3, 6, 7))
    x[0, 1, 2, 3] = 0.5
    return {"x": x}


def photograph(rng):
    return {"x": rng.random((3, 6, 7))}


def image_by_image(function, x):
    """`function(image)` of one image or of each of a batch."""
    return function(x) if x.ndim == 3 else np.stack([function(image) for image in x])


def value_by_value(function, x):
    """`function(image, channel, row, column)` at each place of one image or of a batch."""

    def whole(image):
        values = [function(image, *at) for at in np.ndindex(image.shape)]
        return np.reshape(values, image.shape)

    return image_by_image(whole, x)


@oracle_of(baselines.black, photograph)
@oracle_of(baselines.black, photographs)
def black(x):
    return value_by_value(lambda *_: 0.0, x)


@oracle_of(baselines.channel_mean, lambda rng: {**photographs(rng), "mean": [0.1, 0.5, 0.9]})
def channel_mean(x, mean):
    return value_by_value(lambda image, channel, *_: mean[channel], x)


@oracle_of(baselines.image_mean, photograph)
@oracle_of(baselines.image_mean, photographs)
def image_mean(x):
    return value_by_value(lambda image, channel, *_: math.fsum(image[channel].ravel()) / 42, x)


def reflected(i, n):
    """Index within 0..n-1 of place i: ... 1 0 | 0 1 ... n-1 | n-1 n-2 ..."""
    i %= 2 * n
    return i if i < n else 2 * n - 1 - i


@oracle_of(baselines.blur, photograph, [{"sigma": 1.5}], rtol=0, atol=3e-4)
@oracle_of(baselines.blur, photographs, [{"sigma": 0.7}, {"sigma": 3.0}], rtol=0, atol=3e-4)
def blur(x, sigma):
    """The Gaussian out to 8 sigma; what is cut off farther out is within the tolerance."""
    reach = range(-math.ceil(8 * sigma), math.ceil(8 * sigma) + 1)
    weights = [math.exp(-((k / sigma) ** 2) / 2) for k in reach]

    def smooth(image, channel, row, column):
        rows = [image[channel, reflected(row + k, 6)] for k in reach]
        columns = sum(weight * values for weight, values in zip(weights, rows, strict=True))
        across = [columns[reflected(column + k, 7)] for k in reach]
        return np.dot(weights, across) / sum(weights) ** 2

    return value_by_value(smooth, x)


@oracle_of(baselines.uniform_noise, photograph, [{"seed": 3}])
@oracle_of(baselines.uniform_noise, photographs, [{"seed": 0}, {"seed": 5}])
def uniform_noise(x, seed):
    """Each image from the numbers that belong to it and the seed."""
    return image_by_image(lambda one: generator_of(seed, one).random((3, 6, 7), np.float32), x)


@oracle_of(baselines.gaussian_noise, photograph, [{"sigma": 0.2, "seed": 3}])
@oracle_of(
    baselines.gaussian_noise, photographs, [{"sigma": 0.1, "seed": 0}, {"sigma": 2.0, "seed": 5}]
)
def gaussian_noise(x, sigma, seed):
    def noise(image):
        return generator_of(seed, image).standard_normal((3, 6, 7), np.float32).astype(float)

    noisy = x + sigma * image_by_image(noise, x)
    return value_by_value(lambda image, *at: min(max(image[*at], 0), 1), noisy)


@oracle_of(baselines.maximum_distance, photographs)
def maximum_distance(x):
    return value_by_value(lambda image, *at: max((0, 1), key=lambda v: abs(v - image[*at])), x)


@oracle_of(
    imputation.NoisyLinear,
    lambda rng: {"x": rng.random((3, 4, 4)), "masks": rng.random((8, 5)) < 0.5, "noise": 0.0},
    [{}, {"noise": 0.2, "seed": 3}, {"masks": np.zeros((1, 5), bool)}, {"masks": np.eye(5) == 1}],
    call=lambda x, masks, **options: imputation.NoisyLinear(**options)(x, partition(), masks),
)
def noisy_linear(x, masks, noise, seed=0):
    """A dense system; noise of deviation 1 is what a fully hidden image shows around its mean."""
    nothing, mean = np.zeros((1, 5), bool), x.mean(axis=(1, 2), keepdims=True)
    drawn = imputation.NoisyLinear(1.0, seed)(x, partition(), nothing)[0] - mean
    filled = []
    for mask in masks:
        kept = mask[LABELS]
        smooth = imputed(x, kept) if kept.any() else mean
        filled.append(np.where(kept, x, smooth + noise * drawn))
    return np.array(filled)


def imputed(image, kept):
    """One row per pixel, a hidden one the weighted mean of its neighbours."""
    height, width = kept.shape
    matrix, right = np.eye(kept.size), image.reshape(len(image), -1).T.copy()
    for row, column in zip(*np.nonzero(~kept), strict=True):
        here = row * width + column
        around = {
            (row + down) * width + column + side: 1 / 6 if 0 in (down, side) else 1 / 12
            for down in (-1, 0, 1)
            for side in (-1, 0, 1)
            if (down or side) and 0 <= row + down < height and 0 <= column + side < width
        }
        right[here] = 0
        for there, weight in around.items():
            matrix[here, there] = -weight / sum(around.values())
    return np.linalg.solve(matrix, right).T.reshape(image.shape)


# --- baselines of a class -------------------------------------------------------------------------


def samples(rng):
    labels, targets = rng.choice([0, 2, 5], 60), rng.choice([0, 2, 5], 7)
    images, x = rng.random((60, 2, 3, 4)), rng.random((7, 2, 3, 4))
    return {"images": images, "labels": labels, "x": x, "targets": targets}


def distance(a, b, norm):
    change = (a - b).ravel()
    return np.mean(np.abs(change)) if norm == "l1" else math.sqrt(np.sum(change**2))


def bright(batch):
    """Logits of the classes 0..5: darker images are of class 0, brighter ones of class 5."""
    mean = batch.flatten(1).mean(1, keepdim=True)
    return -((mean - torch.tensor([0.45, 9, 0.5, 9, 9, 0.55])) ** 2)


@oracle_of(
    training_samples.NearestSample,
    samples,
    [{"norm": "l1"}, {"norm": "l2"}, {"norm": "l1", "accepted_by": bright}],
    call=lambda x, targets, **options: (
        training_samples.NearestSample(**options)(x, targets),
        *training_samples.NearestSample(**options).find(x, targets),
    ),
)
def nearest_sample(images, labels, x, targets, norm, accepted_by=None):
    chosen, distances = [], []
    for image, target in zip(x, targets, strict=True):
        allowed = [
            i
            for i, sample in enumerate(images)
            if labels[i] == target
            and (accepted_by is None or answer(accepted_by, sample).argmax() == target)
        ]
        chosen.append(min(allowed, key=lambda i: distance(image, images[i], norm)))
        distances.append(distance(image, images[chosen[-1]], norm))
    return images[chosen], np.array(chosen), np.array(distances)


@oracle_of(
    training_samples.ClassMean,
    samples,
    call=lambda images, labels, x, targets: training_samples.ClassMean(images, labels)(x, targets),
)
def class_mean(images, labels, x, targets):
    own = [[images[i] for i in range(60) if labels[i] == target] for target in targets]
    return np.array([sum(members) / len(members) for members in own])


def linear_model(rng, classes):
    """Steep: small changes of an image suffice."""
    model = weighted(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(24, classes)), rng)
    model[1].weight.data *= 4
    return model


def inner_images(rng, classes):
    return {
        "model": linear_model(rng, classes),
        "x": 0.4 + 0.2 * rng.random((6, 2, 3, 4)),
        "targets": np.arange(6) % classes,
    }


@oracle_of(
    baselines.adversarial,
    lambda rng: inner_images(rng, 2),
    [{"confidence": 0.95}, {"confidence": 0.7}],
    rtol=0,
    atol=2e-4,
)
def adversarial_of_two(model, x, targets, confidence):
    """The nearest point of the plane where the logits differ by log(p / (1 - p))."""
    weight, bias = (w.detach().numpy() for w in model.parameters())
    found = []
    for image, target in zip(x, targets, strict=True):
        normal = weight[target] - weight[1 - target]
        ahead = normal @ image.ravel() + bias[target] - bias[1 - target]
        missing = max(math.log(confidence / (1 - confidence)) - ahead, 0)
        found.append(image + (missing / (normal @ normal) * normal).reshape(image.shape))
    return np.array(found)


@oracle_of(
    baselines.adversarial,
    lambda rng: inner_images(rng, 4),
    [{"confidence": 0.9, "step_size": 0.2}, {"confidence": 0.999, "step_size": 0.3, "steps": 4}],
    rtol=0,
    atol=1e-3,
)
def adversarial(model, x, targets, confidence, step_size, steps=100):
    """Step by step with the gradient of the log-softmax of a linear model, then back."""
    weight = model[1].weight.detach().numpy()
    found = []
    for image, target in zip(x, targets, strict=True):

        def sure(point, target=target):
            return softmax(answer(model, point))[target] >= confidence

        point, taken = image, 0
        while not sure(point) and taken < steps:
            uphill = weight[target] - softmax(answer(model, point)) @ weight
            uphill = uphill.reshape(image.shape) / np.linalg.norm(uphill)
            point, taken = np.clip(point + step_size * uphill, 0, 1), taken + 1
        if sure(point):
            shares = np.linspace(0, 1, 20_001)
            low, high = 0, len(shares) - 1  # the least share that is enough
            while low < high:
                middle = (low + high) // 2
                enough = sure(image + shares[middle] * (point - image))
                low, high = (low, middle) if enough else (middle + 1, high)
            point = image + shares[low] * (point - image)
        found.append(point)
    return np.array(found)
