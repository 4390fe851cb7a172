"""Partitions of an image, and what a model says of images with some parts hidden."""

import numpy as np
import torch
from skimage.segmentation import slic as reference_slic

from oracles.attributions import cells
from oracles.limits import compose
from oracles.problems import LABELS, Tanh, answer, partition
from oracles.registry import oracle_of
from xaiutils import perturb, segment

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


def grey_blobs(rng):
    """The same in whole grey levels."""
    return {"image": np.rint(255 * blobs(rng)["image"][:1]).astype(np.uint8)}


def numbered(labels):
    """The same parts with the numbers 0..d-1 in the same order."""
    numbers = sorted(set(labels.ravel()))
    return np.vectorize(numbers.index)(labels)


@oracle_of(segment.quickshift, blobs, [{}, {"kernel_size": 2, "max_dist": 8, "ratio": 0.5}])
@oracle_of(segment.quickshift, grey_blobs)
def quickshift(image, kernel_size=4, max_dist=200, ratio=0.2):
    """As the `lime` package asks for it, of three channels in [0, 1]."""
    image = image / 255 if image.dtype == np.uint8 else image
    image = np.concatenate([image] * (3 // len(image)))
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


def entry(values, at):
    """The entry of `values` that stands at place `at` once it is broadcast."""
    values = np.asarray(values, float)
    sizes = zip(at[len(at) - values.ndim :], values.shape, strict=True)
    return values[tuple(i if size > 1 else 0 for i, size in sizes)]


@oracle_of(
    perturb.fill,
    lambda rng: {**floats(rng), "components": partition(), "filler": rng.random((4, 4))},
    [{}, {"filler": "mean"}, {"filler": 0.3}, {"filler": torch.arange(3.0)[:, None, None]}],
)
def fill(x, components, filler):
    if isinstance(filler, str):
        return means(x)
    return np.reshape([entry(filler, at) for at in np.ndindex(x.shape)], x.shape)


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


def contrast(images):
    """As a user of numpy writes it: spoils what it is given and answers with a list."""
    images *= 2
    return [[one.mean(), one.std()] for one in images]


@oracle_of(
    perturb.numpy_function,
    lambda rng: {"batch": torch.from_numpy(rng.random((3, 4, 4)))},
    call=lambda batch: (perturb.numpy_function(contrast)(batch), batch),
)
def numpy_function(batch):
    found = np.array([contrast(one[None].numpy().copy())[0] for one in batch])
    return found, batch
