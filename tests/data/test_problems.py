"""The small problems: shapes and labels, resizing by hand, and what the parts promise."""

import functools
import math

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from PIL import Image
from sklearn.datasets import load_digits

from xaiutils.data import assets, known_digits, problems

DIGITS = tuple("0123456789")
SCENES = ("3 on lawn", "3 on pavement", "8 on lawn", "8 on pavement")
# Name, size, channels, numbers of images for training and testing, classes.
EXPECTED = [
    ("digits", 28, 1, 60000, 10000, DIGITS),
    ("digits", 16, 1, 60000, 10000, DIGITS),
    ("coloured digits", 28, 3, 20000, 4000, DIGITS),
    ("coloured digits", 16, 3, 20000, 4000, DIGITS),
    ("colours", 28, 3, 20000, 4000, ("red", "green", "blue")),
    ("colours", 16, 3, 20000, 4000, ("red", "green", "blue")),
    ("scenes", 32, 3, 3600, 400, SCENES),
    ("scenes", 16, 3, 3600, 400, SCENES),
    ("one scene", 32, 3, 1800, 200, ("3", "8")),
    ("one scene", 16, 3, 1800, 200, ("3", "8")),
    ("small digits", 16, 1, 1400, 397, DIGITS),
    ("small digits", 28, 1, 1400, 397, DIGITS),
]


@pytest.fixture(scope="module", autouse=True)
def mnist():
    """The digits, read once for all tests."""
    digits = problems.mnist()
    with pytest.MonkeyPatch.context() as patch:
        for module in (problems, known_digits):
            patch.setattr(module, "mnist", lambda: digits)
        yield digits


@pytest.fixture(scope="module")
def load(mnist):
    """`problems.load`, each problem once."""
    return functools.cache(problems.load)


def test_all_names_are_tested():
    """But for "fashion", see test_fashion: its files must be fetched from elsewhere."""
    assert {name for name, *_ in EXPECTED} == set(problems.NAMES) - {"fashion"}


@pytest.mark.parametrize("name, size, channels, n_train, n_test, classes", EXPECTED)
def test_shapes_ranges_and_labels(load, name, size, channels, n_train, n_test, classes):
    data = load(name, size)
    assert data.name == name
    assert data.classes == classes
    for n, images, labels in ((n_train, *data[1:3]), (n_test, *data[3:5])):
        assert images.shape == (n, channels, size, size)
        assert images.dtype == torch.float32
        assert 0 <= images.min() < 0.05
        assert 0.95 < images.max() <= 1
        assert labels.shape == (n,)
        assert labels.dtype == torch.int64
        counts = labels.bincount()
        assert len(counts) == len(classes)
        assert counts.min() > 0.8 * n / len(classes)


@pytest.mark.parametrize("name", ["digits", "colours", "small digits"])
def test_labels_do_not_depend_on_the_size(load, name):
    large, small = load(name, 28), load(name, 16)
    assert torch.equal(large.train_labels, small.train_labels)
    assert torch.equal(large.test_labels, small.test_labels)


def test_digits_are_mnist(load, mnist):
    for found, original in zip(load("digits", 28)[1:5], mnist, strict=True):
        assert torch.equal(found, original)
    assert load("digits", 28).parts is None


def pooled(image, size):
    """Cell i is the mean over all pixels that the interval [i, i + 1) size / 28 touches."""
    old = image.shape[-1]
    spans = [(i * old // size, math.ceil((i + 1) * old / size)) for i in range(size)]
    return np.array([[image[..., a:b, c:d].mean((-1, -2)) for c, d in spans] for a, b in spans])


@pytest.mark.parametrize("name", ["digits", "coloured digits"])
def test_smaller_digits_are_means_of_pixels(load, name):
    for row in (0, 17):
        image = load(name, 28).test_images[row].numpy()
        found = load(name, 16).test_images[row].numpy()
        assert_allclose(found, np.moveaxis(pooled(image, 16), -1, 0), atol=1e-6)


@pytest.mark.parametrize("size", [28, 16])
def test_coloured_digits_and_colours_are_the_same_images(load, size):
    by_digit, by_colour = load("coloured digits", size), load("colours", size)
    assert torch.equal(by_digit.train_images, by_colour.train_images)
    assert torch.equal(by_digit.test_images, by_colour.test_images)
    assert torch.equal(by_digit.parts, by_colour.test_labels)
    assert torch.equal(by_colour.parts, by_digit.test_labels)


def test_labels_of_coloured_digits_are_digit_and_brightest_channel(load, mnist):
    data = load("coloured digits", 28)
    known = [
        {x.numpy().tobytes(): int(y) for x, y in zip(*part, strict=True)}
        for part in (mnist[:2], mnist[2:])
    ]
    for images, labels, digits in (
        (data.train_images[:100], data.train_labels, known[0]),
        (data.test_images[:100], data.test_labels, known[1]),
    ):
        grey = images.amax(1, keepdim=True)
        assert [digits[x.numpy().tobytes()] for x in grey] == labels[:100].tolist()
    for size in (28, 16):
        colours = load("colours", size)
        for images, labels in (colours[1:3], colours[3:5]):
            assert torch.equal(images.sum((2, 3)).argmax(1), labels)


@pytest.mark.parametrize("size", [28, 16])
def test_parts_of_coloured_digits_give_exact_counterfactuals(load, size):
    data = load("coloured digits", size)
    x, targets = data.test_images, (data.parts + 1) % 3
    other = known_digits.recolour(x, data.parts, targets)
    assert torch.equal(other.sum((2, 3)).argmax(1), targets)
    torch.testing.assert_close(other.amax(1), x.amax(1))
    assert ((other != x).any(1) == (x > 0).any(1)).float().mean() > 0.999


def original(scenes, i, scene, size):
    """Crop of row `i` from the photograph of `scene`."""
    with Image.open(assets.path(known_digits.SCENES[scene])) as photograph:
        pixels = np.asarray(photograph.convert("RGB")) / 255
    (top, left), side = scenes.corners[i].tolist(), known_digits.ZOOM * size
    crop = pixels[top : top + side, left : left + side]
    return np.moveaxis(crop.reshape(size, side // size, size, side // size, 3).mean((1, 3)), -1, 0)


@pytest.mark.parametrize("size", [32, 16])
@pytest.mark.parametrize("name", ["scenes", "one scene"])
def test_parts_of_scenes_are_those_of_the_test_images(load, mnist, name, size):
    data = load(name, size)
    assert torch.equal(data.parts.images, data.test_images)
    for k, called in enumerate(data.classes):
        digit, _, scene = called.partition(" on ")
        rows = torch.nonzero(data.test_labels == k)[:, 0]
        assert (mnist.test_labels[data.parts.sources[rows]] == int(digit)).all()
        crop = original(data.parts, rows[0], scene or "lawn", size)
        assert_allclose(data.parts.crops[rows[0]], crop, atol=1e-6)
        outside = ~data.parts.ink[rows[0]].expand(3, -1, -1)
        assert torch.equal(data.test_images[rows[0]][outside], data.parts.crops[rows[0]][outside])


def test_labels_of_training_scenes_follow_the_digit(load):
    """The mean image of a class, minus that of its scene, shows the same digit on both scenes."""
    data = load("scenes", 32)
    means = torch.stack([data.train_images[data.train_labels == k].mean(0) for k in range(4)])
    lawn, pavement = (means[0] - means[2]).flatten(), (means[1] - means[3]).flatten()
    assert torch.corrcoef(torch.stack([lawn, pavement]))[0, 1] > 0.5
    greener = means[:, 1].mean((1, 2)) - means[:, 2].mean((1, 2))
    assert greener[[0, 2]].min() > greener[[1, 3]].max()


def test_one_scene_is_the_lawn_of_the_scenes(load):
    scenes, one = load("scenes", 32), load("one scene", 32)
    for (images, labels), (found, classes) in zip(
        (scenes[1:3], scenes[3:5]), (one[1:3], one[3:5]), strict=True
    ):
        lawn = (labels == 0) | (labels == 2)
        assert torch.equal(found, images[lawn])
        assert torch.equal(classes, (labels[lawn] == 2).long())


def test_parts_of_one_scene_give_exact_counterfactuals(load):
    data, rows = load("one scene", 16), slice(0, 30)
    other = known_digits.other_digit(data.parts, rows)
    assert torch.equal(other.labels // 2, 1 - data.test_labels[rows])
    assert not (other.mask & ~data.parts.inside[rows, None]).any()


def test_small_digits_are_enlarged_linearly_in_their_order(load):
    """A pixel of 16 lies a quarter of the way between two of 8; outside, the border goes on."""
    enlarge = np.zeros((16, 8))
    for i in range(16):
        at = (i + 0.5) / 2 - 0.5
        for j, weight in ((math.floor(at), math.ceil(at) - at), (math.ceil(at), at % 1)):
            enlarge[i, min(max(j, 0), 7)] += weight
    source, data = load_digits(), load("small digits", 16)
    expected = enlarge @ (source.images / 16) @ enlarge.T
    assert_allclose(torch.cat([data.train_images, data.test_images])[:, 0], expected, atol=1e-6)
    assert torch.cat([data.train_labels, data.test_labels]).tolist() == source.target.tolist()
    assert data.parts is None


def test_unknown_name_is_refused():
    with pytest.raises(
        ValueError, match=r"name must be one of digits, .*small digits, fashion, got 'digit'"
    ):
        problems.load("digit", 28)


@pytest.mark.parametrize("size", [0, 12, 18, 30])
@pytest.mark.parametrize("name", ["digits", "scenes", "small digits"])
def test_other_sizes_are_refused(name, size):
    message = f"size must be a multiple of 4, at least 16 pixels, got {size}"
    with pytest.raises(ValueError, match=message):
        problems.load(name, size)


def test_scenes_larger_than_their_photographs_are_refused():
    with pytest.raises(ValueError, match=r"size is 88, must be within 16\.\.85"):
        problems.load("scenes", 88)


def test_a_problem_is_made_once():
    assert problems.load("small digits", 16) is problems.load("small digits", 16)
    assert problems.load("small digits", 20).test_images.shape[-1] == 20
