"""Digits whose counterfactual images are known, so that one-vs-one explanations have a truth.

An image shows a digit in a colour (`coloured_digits`) or on a scene (`scene_digits`). Images of
another class that differ in one factor only can be made exactly, and an explanation of one class
against the other should point at what changes.
"""

from math import ceil, sqrt
from typing import NamedTuple

import numpy as np
import torch
from numpy.lib.stride_tricks import sliding_window_view
from PIL import Image
from torch import Tensor
from torch.nn import functional

from xaiutils.data import assets
from xaiutils.data.mnist import mnist

# Two photographs of 512 x 512, a lawn with geese and a cannon on pavement: chosen by eye, for they
# differ in hue and texture and white ink is legible on both.
SCENES = {"lawn": "imagenet_15_99.jpg", "pavement": "imagenet_13_471.jpg"}
ZOOM = 2  # pixels of a photograph, along each axis, that are averaged to one of a crop

# Columns that crops for training and for testing are cut from, before they are scaled: no pixel has
# a part in both. A vertical cut leaves each the scene from near to far, where its texture differs.
COLUMNS = ((0, 341), (341, 512))

_GLYPH = 20  # MNIST's digits were fitted into 20 x 20 pixels, then centred by mass in 28 x 28
_CONTRAST = 1.25  # makes the inside of strokes opaque, which in MNIST is only nearly 1


class ColouredDigits(NamedTuple):
    """Images (n, 3, 28, 28) float32 in [0, 1] with two sets of labels (n,) int64.

    Digits are 0..9, colours the index of the brightest channel: 0 red, 1 green, 2 blue.
    """

    train_images: Tensor
    train_digits: Tensor
    train_colours: Tensor
    test_images: Tensor
    test_digits: Tensor
    test_colours: Tensor


def coloured_digits(
    o: float = 0.6, *, n_train: int | None = None, n_test: int | None = None, seed: int = 0
) -> ColouredDigits:
    """MNIST in three colours, for a classifier of the digit and one of the colour.

    A pixel is its grey value times (1, o, o), (o, 1, o) or (o, o, 1). Colours are random, but
    equally frequent within each digit, up to one image. (o = 0 is GANMEX's, Shih et al. 2021.)

    Parameters
    ----------
    o : float
        Brightness of the two weaker channels, in [0, 1). Of all images in another colour,
        `recolour` gives the one nearest in L1 if and only if o > 1/2. With o = 0 the nearest is
        always the one with the least ink, whatever it shows.
    n_train, n_test : int, optional
        Digits of a random subset; by default all 60,000 and 10,000, which take 0.7 GB.
    seed : int

    Raises
    ------
    ValueError
        `o`, `n_train` or `n_test` is out of range.
    """
    if not 0 <= o < 1:
        raise ValueError(f"o is {o}, must be at least 0 and below 1")
    vectors = torch.full((3, 3), float(o)).fill_diagonal_(1)
    fields = []
    for name, n, images, digits, rng in _parts(n_train, n_test, seed):
        n = len(digits) if n is None else n
        if not 1 <= n <= len(digits):
            raise ValueError(f"{name} is {n}, must be within 1..{len(digits)}, the digits of MNIST")
        chosen = torch.from_numpy(rng.permutation(len(digits))[:n])
        colours = torch.empty(n, dtype=torch.int64)
        # Colours take turns along the images sorted by digit; those of a digit are in random order.
        colours[digits[chosen].argsort(stable=True)] = torch.arange(n) % 3
        fields += [images[chosen] * vectors[colours][:, :, None, None], digits[chosen], colours]
    return ColouredDigits(*fields)


def recolour(x: Tensor, colours: Tensor | int, targets: Tensor | int) -> Tensor:
    """The same digits in another colour, exactly: the channels of the two colours swapped.

    Parameters
    ----------
    x : Tensor
        (n, 3, H, W) coloured digits; the result is like it.
    colours, targets : Tensor or int
        (n,) the colours they have and the ones wanted, in 0..2, or one for all.

    Raises
    ------
    ValueError
        A shape does not fit or a colour is not in 0..2.
    """
    if x.ndim != 4 or x.shape[1] != 3:
        raise ValueError(f"x has shape {tuple(x.shape)}, must be (n, 3, H, W)")
    channel, swap = torch.arange(3, device=x.device), []
    for name, values in (("colours", colours), ("targets", targets)):
        values = torch.as_tensor(values, device=x.device)
        if values.shape not in ((), (len(x),)) or not torch.isin(values, channel).all():
            raise ValueError(f"{name} must be 0, 1 or 2, or {len(x)} of these, got {values}")
        swap.append(values.long().expand(len(x))[:, None])
    taken = channel.repeat(len(x), 1).scatter_(1, *swap).scatter_(1, *swap[::-1])
    return x.take_along_dim(taken[:, :, None, None], 1)


def colour_mask(x: Tensor, colours: Tensor | int, targets: Tensor | int) -> Tensor:
    """What `recolour` changes, (n, 3, H, W) bool: ink, in two channels. The truth of "why red?"."""
    return recolour(x, colours, targets) != x


class Scenes(NamedTuple):
    """Digits pasted on scenes, one a row, with the parts of every image.

    ``images`` (n, 3, size, size) float32 in [0, 1] are the `compose` of ``crops``, scenes of the
    same shape, ``glyphs`` (n, 20, 20) float32, ink in [0, 1] before it is scaled, ``boxes`` (n, 3)
    int64, top, left and side of the square it is scaled to, and ``colours`` (n, 3), all white.
    ``labels`` (n,) int64 are 2 * digit + scene, in the orders of `digits` and of `SCENES`.
    ``inside`` (n, size, size) bool is the box, ``ink`` its pixels that are not fully transparent.
    ``corners`` (n, 2) int64 are top and left of the crop in its photograph, a square of
    ``ZOOM * size`` pixels; ``sources`` (n,) int64 index the digit in its part of MNIST.
    """

    images: Tensor
    labels: Tensor
    crops: Tensor
    glyphs: Tensor
    boxes: Tensor
    colours: Tensor
    inside: Tensor
    ink: Tensor
    corners: Tensor
    sources: Tensor


class SceneDigits(NamedTuple):
    """Images for training and testing, which share neither digits nor pixels of a photograph."""

    train: Scenes
    test: Scenes


def scene_digits(
    digits=(3, 8), size: int = 32, *, n_train: int = 3600, n_test: int = 400, seed: int = 0
) -> SceneDigits:
    """Two MNIST digits on two photographed scenes: four classes, equally frequent.

    As in BAM (Yang and Kim 2019, arXiv 1907.09701), the object's box takes up 1/sqrt(3) to
    1/sqrt(2) of the image's side; its size and place are uniform.

    Parameters
    ----------
    digits : pair of int
    size : int
        Height and width of the images in pixels, 16 to 85.
    n_train, n_test : int
        Images, a multiple of 4; each has a digit of its own, from MNIST's part of that name.
    seed : int

    Raises
    ------
    ValueError
        An argument is out of range.
    """
    if len(digits) != 2 or len(set(digits) & set(range(10))) != 2:
        raise ValueError(f"digits is {digits}, must be two different digits of 0..9")
    if not 16 <= size <= 85:  # the columns for testing hold twice as much
        raise ValueError(f"size is {size}, must be within 16..85 pixels")
    parts = []
    for name, n, images, labels, rng in _parts(n_train, n_test, seed):
        rows = [torch.nonzero(labels == digit)[:, 0] for digit in digits]
        most = 2 * min(map(len, rows)) // 4 * 4
        if n % 4 or not 4 <= n <= most:
            raise ValueError(f"{name} is {n}, must be a multiple of 4 within 4..{most}")
        parts.append(_scenes(images, rows, COLUMNS[len(parts)], size, n, rng))
    return SceneDigits(*parts)


def compose(crops: Tensor, glyphs: Tensor, boxes: Tensor, colours: Tensor) -> Tensor:
    """Paste glyphs on crops, all as in `Scenes`: exact for each row, whatever the others are."""
    alpha = _alpha(glyphs, boxes, crops.shape[-1])[:, None]
    return crops * (1 - alpha) + colours[:, :, None, None] * alpha


class Counterfactual(NamedTuple):
    """Images (k, 3, size, size) that differ from given ones in one factor, and their labels (k,).

    ``mask``, bool of the same shape, is where they differ: the truth of a one-vs-one explanation;
    ``region`` (k, size, size), bool, where the factor lives: the box for a digit, else the rest.
    """

    images: Tensor
    labels: Tensor
    mask: Tensor
    region: Tensor


def other_digit(scenes: Scenes, rows=slice(None)) -> Counterfactual:
    """The other digit at the same place on the same crop, for some rows of `scenes` or for all.

    It is the glyph in `scenes`, scaled to the box, that is nearest in L1 to the one replaced.
    """
    x = Scenes(*(field[rows] for field in scenes))
    glyphs = torch.empty_like(x.glyphs)
    for side in x.boxes[:, 2].unique():
        for digit in (0, 1):
            k = (x.boxes[:, 2] == side) & (x.labels // 2 == digit)
            others = scenes.glyphs[scenes.labels // 2 != digit]
            glyphs[k] = others[_nearest(_scaled(x.glyphs[k], side), _scaled(others, side))]
    images = compose(x.crops, glyphs, x.boxes, x.colours)
    return Counterfactual(images, x.labels ^ 2, images != x.images, x.inside)


def other_scene(scenes: Scenes, rows=slice(None)) -> Counterfactual:
    """The same digit at the same place on another scene, for some rows of `scenes` or for all.

    Of the crops of the other scene in `scenes` it is the one nearest in L1 to the crop it replaces
    (3,600 against 1,800 take about 20 s, 400 against 200 no time). Opaque ink does not change.
    """
    x = Scenes(*(field[rows] for field in scenes))
    crops = torch.empty_like(x.crops)
    for scene in (0, 1):
        k, others = x.labels % 2 == scene, scenes.crops[scenes.labels % 2 != scene]
        crops[k] = others[_nearest(x.crops[k], others)]
    images = compose(crops, x.glyphs, x.boxes, x.colours)
    return Counterfactual(images, x.labels ^ 1, images != x.images, ~x.inside)


def _nearest(x: Tensor, others: Tensor) -> Tensor:
    return torch.cdist(x.flatten(1), others.flatten(1), p=1).argmin(1)


def _parts(n_train, n_test, seed):
    """For each part of MNIST: name and value of its n, images, labels, a random generator."""
    digits = mnist()
    yield "n_train", n_train, *digits[:2], np.random.default_rng([seed, 0])
    yield "n_test", n_test, *digits[2:], np.random.default_rng([seed, 1])


def _scenes(digits, rows, columns, size, n, rng) -> Scenes:
    """`n` images with digits from `rows` (two lists) on crops from a span of columns."""
    labels = torch.from_numpy(rng.permutation(np.arange(n) % 4))
    sources, crops = torch.empty(n, dtype=torch.int64), torch.empty(n, 3, size, size)
    low, high = (0, columns[0]), (512 - ZOOM * size, columns[1] - ZOOM * size)
    corners = torch.from_numpy(rng.integers(low, high, size=(n, 2), endpoint=True))
    for value, name in enumerate(SCENES.values()):
        sources[labels // 2 == value] = torch.from_numpy(rng.permutation(rows[value])[: n // 2])
        with Image.open(assets.path(name)) as photograph:
            pixels = np.asarray(photograph.convert("RGB"))
        squares = sliding_window_view(pixels, (ZOOM * size, ZOOM * size), axis=(0, 1))
        k = labels % 2 == value
        blocks = squares[tuple(corners[k].T)].reshape(-1, 3, size, ZOOM, size, ZOOM)
        crops[k] = torch.from_numpy(blocks.mean((3, 5), dtype=np.float32)) / 255
    # BAM's limits, in whole pixels.
    side = rng.integers(ceil(size / sqrt(3)), int(size / sqrt(2)), size=n, endpoint=True)
    place = rng.integers((size - side)[:, None], size=(n, 2), endpoint=True)
    boxes = torch.from_numpy(np.column_stack([place, side]))
    glyphs, colours = _cut_out(digits[sources, 0]), torch.ones(n, 3)
    images = compose(crops, glyphs, boxes, colours)
    inside, ink = _inside(boxes, size), _alpha(glyphs, boxes, size) > 0
    return Scenes(images, labels, crops, glyphs, boxes, colours, inside, ink, corners, sources)


def _cut_out(digits: Tensor) -> Tensor:
    """Digits (n, 28, 28) cut out around the centre of their ink's box, (n, 20, 20)."""
    at = []
    for axis in (2, 1):  # ink of each row, then of each column
        ink = (digits > 0).any(axis).int()
        start = (ink.argmax(1) + 28 - ink.flip(1).argmax(1) - _GLYPH) // 2
        at.append(start.clamp(0, 28 - _GLYPH)[:, None] + torch.arange(_GLYPH))
    return digits[torch.arange(len(digits))[:, None, None], at[0][:, :, None], at[1][:, None]]


def _scaled(glyphs: Tensor, side: int) -> Tensor:
    """Opacity (n, side, side) of glyphs, in steps of 1/255, so that no bit depends on the batch."""
    resized = functional.interpolate(glyphs[:, None], int(side), mode="bilinear", antialias=True)
    return (resized[:, 0] * _CONTRAST).clamp(0, 1).mul(255).round().div(255)


def _inside(boxes: Tensor, size: int) -> Tensor:
    start, at = boxes[:, :2, None], torch.arange(size)
    span = (at >= start) & (at < start + boxes[:, 2:, None])  # (n, 2, size): rows, columns
    return span[:, 0, :, None] & span[:, 1, None]


def _alpha(glyphs: Tensor, boxes: Tensor, size: int) -> Tensor:
    """Opacity (n, size, size) of glyphs pasted in their boxes."""
    alpha, inside = torch.zeros(len(boxes), size, size), _inside(boxes, size)
    for side in boxes[:, 2].unique():
        k = boxes[:, 2] == side
        alpha[k] = alpha[k].masked_scatter(inside[k], _scaled(glyphs[k], side))
    return alpha
