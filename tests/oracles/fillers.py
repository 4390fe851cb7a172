"""What hidden pixels become: partitions, fillers, and baselines, image by image."""

import math

import numpy as np
import torch
from skimage.segmentation import slic as reference_slic

from oracles.attributions import cells
from oracles.limits import compose
from oracles.problems import LABELS, Tanh, answer, partition, softmax, weighted
from oracles.registry import oracle_of
from xaiutils import baselines, imputation, perturb, segment, training_samples
from xaiutils.data.images import rng as generator_of

# --- partitions -----------------------------------------------------------------------------------


@oracle_of(
    segment.grid,
    lambda rng: {"shape": (7, 11)},
    [{"rows": 3, "cols": 4}, {"rows": 7, "cols": 1}, {"rows": 5, "cols": 11}],
)
def grid(shape, rows, cols):
    return cells(*shape, rows, cols)


def blobs(rng):
    """Colours that change from corner to corner, with noise."""
    row, column = np.mgrid[:40, :30] / 40
    colour = np.stack([row, column, 1 - row]) + 0.2 * rng.random((3, 40, 30))
    return {"image": colour.clip(0, 1)}


def numbered(labels):
    """The same parts with the numbers 0..d-1 in the same order."""
    numbers = sorted(set(labels.ravel()))
    return np.vectorize(numbers.index)(labels)


@oracle_of(segment.quickshift, blobs, [{}, {"kernel_size": 2, "max_dist": 8, "ratio": 0.5}])
def quickshift(image, kernel_size=4, max_dist=200, ratio=0.2):
    """As the `lime` package asks for it."""
    from lime.wrappers.scikit_image import SegmentationAlgorithm

    algorithm = SegmentationAlgorithm(
        "quickshift", kernel_size=kernel_size, max_dist=max_dist, ratio=ratio
    )
    return numbered(algorithm(image.transpose(1, 2, 0)))


@oracle_of(segment.slic, blobs, [{}, {"n_segments": 9, "compactness": 1.0}])
def slic(image, n_segments=50, compactness=10.0):
    return numbered(reference_slic(image.transpose(1, 2, 0), n_segments, compactness))


@oracle_of(
    perturb.Components.sums,
    lambda rng: {"values": rng.normal(size=(3, 4, 4))},
    call=lambda values: partition().sums(values),
)
def sums(values):
    found = np.zeros(5)
    for channel, row, column in np.ndindex(values.shape):
        found[LABELS[row, column]] += values[channel, row, column]
    return found


@oracle_of(
    perturb.Components.spread,
    lambda rng: {"scores": rng.normal(size=5)},
    call=lambda scores: partition().spread(scores),
)
def spread(scores):
    return np.array([[scores[label] for label in row] for row in LABELS])


# --- fillers --------------------------------------------------------------------------------------


def floats(rng):
    return {"x": rng.random((3, 4, 4))}


def grey_levels(rng):
    return {"x": rng.integers(0, 256, (3, 4, 4), dtype=np.uint8)}


@oracle_of(perturb.Components.means, floats, call=lambda x: partition().means(x))
@oracle_of(perturb.Components.means, grey_levels, call=lambda x: partition().means(x))
def means(x):
    found = x.copy()
    for channel, values in enumerate(x):
        for j in range(5):
            inside = np.equal(LABELS, j)
            mean = sum(values[inside].astype(float)) / inside.sum()
            found[channel][inside] = round(mean) if x.dtype == np.uint8 else mean
    return found


@oracle_of(
    perturb.fill,
    lambda rng: {**floats(rng), "components": partition(), "filler": rng.random((4, 4))},
    [{}, {"filler": "mean"}, {"filler": 0.3}, {"filler": torch.arange(3.0)[:, None, None]}],
)
def fill(x, components, filler):
    """Each hidden value, one by one."""
    if isinstance(filler, str):
        return means(x)
    values = np.atleast_3d(np.asarray(filler, float)) if np.ndim(filler) == 0 else filler
    found = np.empty_like(x)
    for channel, row, column in np.ndindex(x.shape):
        at = (channel, row, column)[3 - np.ndim(values) :]
        found[channel, row, column] = values[
            tuple(i if size > 1 else 0 for i, size in zip(at, values.shape, strict=True))
        ]
    return found


def mirrored(x, components, masks):
    """A filler that depends on what is hidden: the image upside down, darker the more is hidden."""
    return np.stack([x[:, ::-1] * mask.mean() for mask in masks])


def questions(rng):
    return {
        "model": Tanh(rng, 48),
        **floats(rng),
        "components": partition(),
        "masks": rng.random((9, 5)) < 0.5,
    }


@oracle_of(
    perturb.evaluate,
    questions,
    [
        {},
        {"filler": 0.7, "batch_size": 2},
        {"filler": np.linspace(0, 1, 16).reshape(4, 4), "outputs": [2, 0]},
        {"filler": mirrored, "batch_size": 4},
        {"filler": mirrored, "outputs": lambda out: out.max(axis=1)},
    ],
    rtol=1e-7,
)
def evaluate(model, x, components, masks, filler="mean", outputs=None, **_):
    rows = []
    for z in masks:
        hidden = filler(x, components, z[None])[0] if callable(filler) else None
        hidden = fill(x, components, filler) if hidden is None else hidden
        out = answer(model, compose(x, hidden, components.labels, z))
        if outputs is not None:
            out = outputs(out[None])[0] if callable(outputs) else [out[k] for k in outputs]
        rows.append(out)
    return np.array(rows)


# --- baselines without a class --------------------------------------------------------------------


def photographs(rng):
    return {"x": rng.random((2, 3, 6, 7))}


def value_by_value(function, x):
    """`function(image, channel, row, column)` at each place of a batch."""
    out = np.empty_like(x)
    for i, *at in np.ndindex(x.shape):
        out[(i, *at)] = function(x[i], *at)
    return out


@oracle_of(baselines.black, photographs)
def black(x):
    return value_by_value(lambda *_: 0.0, x)


@oracle_of(baselines.channel_mean, lambda rng: {**photographs(rng), "mean": [0.1, 0.5, 0.9]})
def channel_mean(x, mean):
    return value_by_value(lambda image, channel, *_: mean[channel], x)


@oracle_of(baselines.image_mean, photographs)
def image_mean(x):
    return value_by_value(lambda image, channel, *_: math.fsum(image[channel].ravel()) / 42, x)


def reflected(i, n):
    """Index within 0..n-1 of place i: ... 1 0 | 0 1 ... n-1 | n-1 n-2 ..."""
    i %= 2 * n
    return i if i < n else 2 * n - 1 - i


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


@oracle_of(baselines.uniform_noise, photographs, [{"seed": 0}, {"seed": 5}])
def uniform_noise(x, seed):
    """Each image from the numbers that belong to it and the seed."""
    return np.stack([generator_of(seed, image).random((3, 6, 7), np.float32) for image in x])


@oracle_of(
    baselines.gaussian_noise, photographs, [{"sigma": 0.1, "seed": 0}, {"sigma": 2.0, "seed": 5}]
)
def gaussian_noise(x, sigma, seed):
    noise = [generator_of(seed, image).standard_normal((3, 6, 7), np.float32) for image in x]
    noisy = x + sigma * np.array(noise, float)
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
    """A dense system; the noise is what a fully hidden image shows around its mean."""
    nothing = np.zeros((1, 5), bool)
    blank = imputation.NoisyLinear(noise, seed)(x, partition(), nothing)[0]
    drawn, filled = blank - x.mean(axis=(1, 2), keepdims=True), []
    for mask in masks:
        kept = mask[LABELS]
        smooth = imputed(x, kept) if kept.any() else x.mean(axis=(1, 2), keepdims=True) + 0 * x
        filled.append(np.where(kept, x, smooth + drawn))
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
