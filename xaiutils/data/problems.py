"""Small image classification problems for one-vs-one explanations, at two sizes.

Images are float32 in [0, 1], (n, C, size, size), labels int64 from 0.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d, interpolate

from xaiutils.data import known_digits
from xaiutils.data.datasets import mnist
from xaiutils.data.fashion import CLASSES as FASHION
from xaiutils.data.fashion import fashion_mnist

# Coloured digits kept for training and testing: enough for any of the nets, in a tenth of the
# memory that all 70,000 would take.
N_COLOURED = (20000, 4000)


class Problem(NamedTuple):
    """Images for training and testing, and what each class is called.

    ``parts`` is what `known_digits` knows of the test images, so that exact counterfactuals can
    be made: `Scenes`, or the labels of the other factor for coloured digits; else None.
    """

    name: str
    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    classes: tuple[str, ...]
    parts: known_digits.Scenes | Tensor | None = None


def sources(name: str) -> list:
    """Code and numbers that the images of a problem depend on, for the keys of trained models."""
    if name in ("digits", "small digits"):
        return [_digits, _resized] if name == "digits" else [_small_digits]
    if name == "fashion":
        return [_fashion, _resized]
    if name in ("scenes", "one scene"):
        parts = [known_digits.scene_digits, known_digits.compose, known_digits._scenes]
        return [*parts, known_digits.SCENES, known_digits.ZOOM, known_digits.COLUMNS]
    return [_coloured, _coloured_data, _resized, known_digits.coloured_digits, N_COLOURED]


@functools.cache
def load(name: str, size: int) -> Problem:
    """One of `NAMES`, with images of `size` x `size` pixels; kept, so do not write to them.

    "digits" are MNIST, "coloured digits" and "colours" are the same coloured MNIST with its two
    sets of labels, "scenes" are two digits on two scenes, "one scene" those on the first scene,
    "small digits" the 1,797 of scikit-learn (8 x 8, enlarged), "fashion" are Fashion-MNIST.

    Raises
    ------
    ValueError
        The name is unknown or the size below 16 or no multiple of 4.
    """
    if name not in NAMES:
        raise ValueError(f"name must be one of {', '.join(NAMES)}, got {name!r}")
    if size < 16 or size % 4:
        raise ValueError(f"size must be a multiple of 4, at least 16 pixels, got {size}")
    return NAMES[name](size)


def _digits(size: int) -> Problem:
    x, y, test_x, test_y = mnist()
    return Problem("digits", _resized(x, size), y, _resized(test_x, size), test_y, _numbers(10))


def _fashion(size: int) -> Problem:
    x, y, test_x, test_y = fashion_mnist()
    return Problem("fashion", _resized(x, size), y, _resized(test_x, size), test_y, FASHION)


def _coloured(size: int, by_colour: bool) -> Problem:
    data = _coloured_data()
    images = _resized(data.train_images, size), _resized(data.test_images, size)
    if by_colour:
        names = ("red", "green", "blue")
        labels, other = (data.train_colours, data.test_colours), data.test_digits
        return Problem("colours", images[0], labels[0], images[1], labels[1], names, other)
    labels, other = (data.train_digits, data.test_digits), data.test_colours
    return Problem(
        "coloured digits", images[0], labels[0], images[1], labels[1], _numbers(10), other
    )


@functools.cache
def _coloured_data() -> known_digits.ColouredDigits:
    return known_digits.coloured_digits(n_train=N_COLOURED[0], n_test=N_COLOURED[1])


def _scenes(size: int) -> Problem:
    train, test = known_digits.scene_digits(size=size)
    names = tuple(f"{digit} on {scene}" for digit in (3, 8) for scene in known_digits.SCENES)
    return Problem("scenes", train.images, train.labels, test.images, test.labels, names, test)


def _one_scene(size: int) -> Problem:
    train, test = (
        known_digits.Scenes(*(field[part.labels % 2 == 0] for field in part))
        for part in known_digits.scene_digits(size=size)
    )
    x, y = train.images, train.labels // 2
    return Problem("one scene", x, y, test.images, test.labels // 2, ("3", "8"), test)


def _slow_small_digits(size: int) -> Problem:
    # The import takes a second, which the other problems are spared. It is not in the function
    # below because the keys of trained models hold that one's source.
    global sklearn
    import sklearn.datasets

    return _small_digits(size)


def _small_digits(size: int) -> Problem:
    data = sklearn.datasets.load_digits()
    images = torch.from_numpy(data.images / 16).float()[:, None]
    images = interpolate(images, (size, size), mode="bilinear", antialias=True)
    labels = torch.from_numpy(data.target)
    return Problem(
        "small digits", images[:1400], labels[:1400], images[1400:], labels[1400:], _numbers(10)
    )


NAMES = {
    "digits": _digits,
    "coloured digits": functools.partial(_coloured, by_colour=False),
    "colours": functools.partial(_coloured, by_colour=True),
    "scenes": _scenes,
    "one scene": _one_scene,
    "small digits": _slow_small_digits,
    "fashion": _fashion,
}


def _resized(images: Tensor, size: int) -> Tensor:
    return images if images.shape[-1] == size else adaptive_avg_pool2d(images, size)


def _numbers(n: int) -> tuple[str, ...]:
    return tuple(map(str, range(n)))
