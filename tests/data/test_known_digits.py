"""Digits with known counterfactuals: against brute force, Pillow and the sources of their parts."""

import math

import numpy as np
import pytest
import torch
from PIL import Image

from xaiutils.data import assets, datasets, known_digits


@pytest.fixture(scope="module", autouse=True)
def mnist():
    """The digits, read once for all tests."""
    digits = datasets.mnist()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets, "mnist", lambda: digits)
        yield digits


@pytest.fixture(scope="module")
def coloured():
    return datasets.coloured_digits(n_train=3000, n_test=150)


@pytest.fixture(scope="module")
def scenes():
    return datasets.scene_digits()


def turned(colours):
    return (colours + 1) % 3


def known(images, labels):
    return {
        image.numpy().tobytes(): int(label) for image, label in zip(images, labels, strict=True)
    }


# Coloured digits


def test_every_pixel_is_its_grey_value_times_the_colour_vector(coloured, mnist):
    assert coloured.train_images.shape == (3000, 3, 28, 28)
    assert coloured.train_images.dtype == torch.float32
    vectors = torch.tensor([[1, 0.6, 0.6], [0.6, 1, 0.6], [0.6, 0.6, 1]])
    for part in ("train", "test"):
        x, digits, colours = (
            getattr(coloured, f"{part}_{field}") for field in ("images", "digits", "colours")
        )
        grey = x.amax(1, keepdim=True)
        assert torch.equal(x, grey * vectors[colours][:, :, None, None])
        originals = known(*(getattr(mnist, f"{part}_{field}") for field in ("images", "labels")))
        shown = [originals[image.numpy().tobytes()] for image in grey]
        assert shown == digits.tolist()  # and each digit is from its own part of MNIST


def test_colours_are_balanced_within_each_digit_and_random(coloured):
    for digits, colours in (
        (coloured.train_digits, coloured.train_colours),
        (coloured.test_digits, coloured.test_colours),
    ):
        assert colours.bincount(minlength=3).tolist() == [len(colours) // 3] * 3
        table = torch.bincount(3 * digits + colours, minlength=30).reshape(10, 3)
        assert (table.amax(1) - table.amin(1)).max() <= 1
        # Of neighbours in the data set a third agree by chance; turns would leave none.
        agree = (colours[1:] == colours[:-1]).float().mean()
        assert 0.25 < agree < 0.42


def test_coloured_digits_depend_on_the_seed_alone():
    first, again, other = (
        datasets.coloured_digits(n_train=50, n_test=50, seed=seed) for seed in (0, 0, 1)
    )
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(first, other, strict=True))
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    datasets.coloured_digits(n_train=5, n_test=5)
    assert torch.equal(torch.rand(1), expected)


def test_all_of_mnist_is_the_default(mnist):
    # The training part would take half a gigabyte.
    test = datasets.coloured_digits(0, n_train=1)
    assert test.test_digits.bincount().tolist() == mnist.test_labels.bincount().tolist()
    assert len(test.test_images) == 10000 and len(test.train_images) == 1


@pytest.mark.parametrize("o", [0, 0.6])
def test_recolouring_is_exact_and_an_involution(o):
    data = datasets.coloured_digits(o, n_train=30, n_test=60)
    x, colours = data.test_images, data.test_colours
    vectors = torch.full((3, 3), float(o)).fill_diagonal_(1)
    grey = x.amax(1, keepdim=True)
    for target in range(3):
        there = known_digits.recolour(x, colours, target)
        assert torch.equal(there, grey * vectors[target][:, None, None])
        assert torch.equal(known_digits.recolour(there, target, colours), x)
    each = known_digits.recolour(x, colours, turned(colours))
    assert torch.equal(each, grey * vectors[turned(colours)][:, :, None, None])


def test_mask_is_ink_in_the_two_channels_that_change(coloured):
    x, colours = coloured.test_images[:99], coloured.test_colours[:99]
    targets = turned(colours)
    mask = known_digits.colour_mask(x, colours, targets)
    assert mask.dtype == torch.bool
    ink = x.sum(1) > 0
    for one, source, target, drawn in zip(mask, colours, targets, ink, strict=True):
        assert torch.equal(one[source], drawn) and torch.equal(one[target], drawn)
        assert drawn.any() and not one[3 - source - target].any()
    assert not known_digits.colour_mask(x, colours, colours).any()


@pytest.mark.parametrize("o", [0, 0.25, 0.49, 0.5, 0.51, 0.6, 0.9])
def test_recolouring_is_the_only_pixelwise_optimum_just_above_one_half(o):
    levels = torch.arange(256, dtype=torch.float64)
    green = torch.tensor([o, 1, o], dtype=torch.float64) * levels[:, None]  # (256, 3)
    for grey in (8, 100, 255):
        red = torch.tensor([1, o, o], dtype=torch.float64) * grey
        cost = (green - red).abs().sum(1)
        optima = torch.nonzero(cost <= cost.min() + 1e-9)[:, 0].tolist()
        recoloured = known_digits.recolour(red[None, :, None, None], 0, 1).flatten()
        assert torch.equal(recoloured, green[grey])
        if o > 0.5:
            assert optima == [grey]
        elif o == 0.5:
            assert optima == list(range(grey // 2 + grey % 2, grey + 1))
        else:
            assert grey not in optima
            assert o or optima == [0]


def nearest_of_the_next_colour(data):
    """For each test image the row of the L1-nearest training image of the next colour."""
    distance = torch.cdist(data.test_images.flatten(1), data.train_images.flatten(1), p=1)
    wrong = data.train_colours != turned(data.test_colours)[:, None]
    return distance.masked_fill(wrong, torch.inf).argmin(1)


def test_nearest_sample_is_the_one_with_least_ink_when_channels_are_disjoint():
    data = datasets.coloured_digits(0, n_train=3000, n_test=150)
    ink = data.train_images.sum((1, 2, 3), dtype=torch.float64)
    least = torch.tensor(
        [ink.masked_fill(data.train_colours != colour, torch.inf).argmin() for colour in range(3)]
    )
    nearest = nearest_of_the_next_colour(data)
    assert torch.equal(nearest, least[turned(data.test_colours)])
    assert (data.train_digits[nearest] == data.test_digits).float().mean() < 0.2


def test_nearest_sample_keeps_the_digit_by_default(coloured):
    nearest = nearest_of_the_next_colour(coloured)
    assert (coloured.train_digits[nearest] == coloured.test_digits).float().mean() > 0.7
    x = coloured.test_images
    recoloured = known_digits.recolour(x, coloured.test_colours, turned(coloured.test_colours))
    closer = (recoloured - x).abs().mean((1, 2, 3)) < (
        coloured.train_images[nearest] - x
    ).abs().mean((1, 2, 3))
    assert closer.all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"o": 1}, "o is 1, must be at least 0 and below 1"),
        ({"o": -0.1}, "o is -0.1, must be"),
        ({"o": math.nan}, "o is nan, must be"),
        ({"n_train": 0}, "n_train is 0, must be within 1..60000"),
        ({"n_train": 5, "n_test": 10001}, "n_test is 10001, must be within 1..10000"),
    ],
)
def test_coloured_arguments_are_checked(arguments, message):
    with pytest.raises(ValueError, match=message):
        datasets.coloured_digits(**arguments)


@pytest.mark.parametrize(
    ("shape", "colours", "targets", "message"),
    [
        ((2, 1, 4, 4), 0, 1, r"x has shape \(2, 1, 4, 4\), must be \(n, 3, H, W\)"),
        ((3, 4, 4), 0, 1, "x has shape"),
        ((2, 3, 4, 4), torch.tensor([0, 3]), 1, "colours must be 0, 1 or 2, or 2 of these"),
        ((2, 3, 4, 4), torch.tensor([0, 1, 2]), 1, "colours must be"),
        ((2, 3, 4, 4), 0, -1, "targets must be 0, 1 or 2"),
    ],
)
def test_recolouring_checks_its_arguments(shape, colours, targets, message):
    with pytest.raises(ValueError, match=message):
        known_digits.recolour(torch.zeros(shape), colours, targets)


# Scene digits


def test_scene_digits_are_four_balanced_classes(scenes):
    assert scenes.train.images.shape == (3600, 3, 32, 32)
    assert scenes.train.images.dtype == torch.float32
    assert scenes.train.labels.bincount().tolist() == [900] * 4
    assert scenes.test.labels.bincount().tolist() == [100] * 4
    for part in scenes:
        assert part.images.min() >= 0 and part.images.max() <= 1
        assert (part.labels[1:] == part.labels[:-1]).float().mean() < 0.4  # shuffled


@pytest.mark.parametrize("digits", [(3, 8), (7, 1)])
def test_glyphs_are_the_digits_of_their_class(scenes, mnist, digits):
    if digits != (3, 8):
        scenes = datasets.scene_digits(digits, n_train=400, n_test=40)
    for part, images, labels in zip(scenes, mnist[::2], mnist[1::2], strict=True):
        assert labels[part.sources].tolist() == [digits[k // 2] for k in part.labels]
        assert len(part.sources.unique()) == len(part.sources)
        originals = images[part.sources, 0]
        for glyph, original in zip(part.glyphs, originals, strict=True):
            windows = original.unfold(0, 20, 1).unfold(1, 20, 1)
            assert (windows == glyph).all(-1).all(-1).any()
            assert (glyph > 0).sum() == (original > 0).sum()


def test_crops_are_block_means_of_the_photograph_of_their_scene(scenes):
    for part in scenes:
        for row in range(40):
            name = ("imagenet_15_99.jpg", "imagenet_13_471.jpg")[part.labels[row] % 2]
            top, left = part.corners[row].tolist()
            with Image.open(assets.path(name)) as photograph:
                pixels = np.asarray(photograph.crop((left, top, left + 64, top + 64)), float)
            halved = sum(pixels[i::2, j::2] for i in (0, 1) for j in (0, 1)) / 4 / 255
            np.testing.assert_allclose(part.crops[row].permute(1, 2, 0), halved, atol=1e-6)


def test_splits_share_no_pixel_and_crops_reach_every_border(scenes):
    (top, left), (test_top, test_left) = (part.corners.T for part in scenes)
    assert (left + 64).max() <= test_left.min()
    assert left.min() <= 2 and (left + 64).max() >= 339
    assert 508 <= (test_left + 64).max() <= 512
    for rows in (top, test_top):
        assert 0 <= rows.min() < 8 and 504 < (rows + 64).max() <= 512
    largest = datasets.scene_digits(size=85, n_train=40, n_test=40)
    assert (largest.train.corners[:, 1] + 170).max() <= largest.test.corners[:, 1].min()
    assert (largest.test.corners + 170).max() <= 512


@pytest.mark.parametrize("size", [16, 32, 48])
def test_boxes_follow_the_rule_on_scale_and_reach_every_border(size):
    boxes = datasets.scene_digits(size=size, n_train=1600, n_test=4).train.boxes
    sides = boxes[:, 2].unique()
    assert all(1 / math.sqrt(3) <= side / size <= 1 / math.sqrt(2) for side in sides.tolist())
    wanted = {16: [10, 11], 32: [19, 20, 21, 22], 48: [28, 29, 30, 31, 32, 33]}[size]
    assert sides.tolist() == wanted
    ends = boxes[:, :2] + boxes[:, 2:]
    assert boxes[:, :2].amin(0).tolist() == [0, 0] and ends.amax(0).tolist() == [size, size]


def test_ink_fills_its_box_along_one_axis(scenes):
    inside, ink = scenes.test.inside, scenes.test.ink
    assert not (ink & ~inside).any()
    for row, (top, left, side) in enumerate(scenes.test.boxes.tolist()):
        box = torch.zeros(32, 32, dtype=torch.bool)
        box[top : top + side, left : left + side] = True
        assert torch.equal(inside[row], box)
        drawn = ink[row].any(1).sum(), ink[row].any(0).sum()
        assert max(drawn) >= side - 1


def test_images_are_glyphs_resized_and_blended_as_pillow_does_it(scenes):
    part = scenes.train
    for row in range(30):
        top, left, side = part.boxes[row].tolist()
        glyph = Image.fromarray(part.glyphs[row].numpy())
        opacity = np.asarray(glyph.resize((side, side), Image.Resampling.BILINEAR))
        alpha = np.zeros((32, 32))
        alpha[top : top + side, left : left + side] = np.minimum(opacity * 1.25, 1)
        crop = part.crops[row].double().numpy()
        # Opacity is rounded to 1/255.
        np.testing.assert_allclose(part.images[row], crop + (1 - crop) * alpha, atol=0.5 / 255)
    assert (part.colours == 1).all()


def test_every_row_is_composed_bit_for_bit_on_its_own_and_with_others(scenes):
    for part in scenes:
        parts = part.crops, part.glyphs, part.boxes, part.colours
        assert torch.equal(known_digits.compose(*parts), part.images)
        for row in range(0, 40, 3):
            alone = known_digits.compose(*(field[row : row + 1] for field in parts))
            assert torch.equal(alone[0], part.images[row])


def test_composing_with_another_colour_moves_the_ink_only(scenes):
    part = scenes.test
    red = torch.tensor([1.0, 0, 0]).expand(len(part.crops), 3)
    images = known_digits.compose(part.crops, part.glyphs, part.boxes, red)
    assert torch.equal(images[:, 0], part.images[:, 0])
    outside = ~part.ink[:, None].expand(-1, 3, -1, -1)
    assert torch.equal(images[outside], part.crops[outside])
    opaque = (part.images == 1).all(1) & part.ink
    assert opaque.any() and (images[:, 1][opaque] == 0).all()


def test_other_digit_changes_the_box_and_the_digit_only(scenes):
    part = scenes.test
    other = known_digits.other_digit(part)
    assert torch.equal(other.labels // 2, 1 - part.labels // 2)
    assert torch.equal(other.labels % 2, part.labels % 2)
    assert torch.equal(other.region, part.inside)
    assert torch.equal(other.mask, other.images != part.images)
    assert not (other.mask & ~part.inside[:, None]).any()
    # It takes away ink and adds some, so the glyph alone would not be the truth.
    assert (other.images > part.images).flatten(1).any(1).all()
    assert (other.images < part.images).flatten(1).any(1).all()


def test_other_digit_is_the_nearest_of_all_glyphs_of_that_digit(scenes):
    part, rows = scenes.test, torch.arange(7, 400, 33)
    other = known_digits.other_digit(part, rows)
    for row, image in zip(rows, other.images, strict=True):
        glyphs = part.glyphs[part.labels // 2 != part.labels[row] // 2]
        n = len(glyphs)
        box, white = part.boxes[row].expand(n, 3), torch.ones(n, 3)
        drawn = known_digits.compose(torch.zeros(n, 3, 32, 32), glyphs, box, white)
        own = known_digits.compose(
            torch.zeros(1, 3, 32, 32), part.glyphs[row][None], box[:1], white[:1]
        )
        best = glyphs[(drawn - own).abs().sum((1, 2, 3)).argmin()]
        expected = known_digits.compose(part.crops[row][None], best[None], box[:1], white[:1])
        assert torch.equal(image, expected[0])


def test_other_scene_keeps_opaque_ink_and_changes_the_rest(scenes):
    part = scenes.test
    other = known_digits.other_scene(part)
    assert torch.equal(other.labels % 2, 1 - part.labels % 2)
    assert torch.equal(other.labels // 2, part.labels // 2)
    assert torch.equal(other.region, ~part.inside)
    assert torch.equal(other.mask, other.images != part.images)
    black = torch.zeros_like(part.crops)
    alpha = known_digits.compose(black, part.glyphs, part.boxes, part.colours)
    opaque = alpha == 1
    assert opaque.flatten(1).any(1).all() and not (other.mask & opaque).any()
    # By chance two photographs agree in a few of the elements that show through.
    assert other.mask[alpha < 0.9].float().mean() > 0.95


def test_other_scene_is_the_nearest_of_all_crops_of_that_scene(scenes):
    part, rows = scenes.test, [3, 77, 200, 399]
    other = known_digits.other_scene(part, rows)
    for row, image in zip(rows, other.images, strict=True):
        crops = part.crops[part.labels % 2 != part.labels[row] % 2].double()
        best = crops[(crops - part.crops[row]).abs().sum((1, 2, 3)).argmin()].float()
        bare = ~part.ink[row].expand(3, -1, -1)
        assert torch.equal(image[bare], best[bare])


@pytest.mark.parametrize("change", [known_digits.other_digit, known_digits.other_scene])
def test_some_rows_change_as_they_do_among_all(scenes, change):
    every, some = change(scenes.test), change(scenes.test, torch.tensor([250, 3, 4]))
    for all_rows, chosen in zip(every, some, strict=True):
        assert torch.equal(all_rows[[250, 3, 4]], chosen)


def test_scene_digits_depend_on_the_seed_alone(scenes):
    again = datasets.scene_digits()
    for old, new in zip(scenes, again, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(old, new, strict=True))
    other = datasets.scene_digits(seed=1)
    for name in ("labels", "crops", "glyphs", "boxes", "sources"):
        for part in (0, 1):
            assert not torch.equal(getattr(other[part], name), getattr(scenes[part], name))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"digits": (3, 3)}, r"digits is \(3, 3\), must be two different digits of 0..9"),
        ({"digits": (3, 10)}, "digits is"),
        ({"digits": (1, 2, 3)}, "digits is"),
        ({"size": 15}, "size is 15, must be within 16..85 pixels"),
        ({"size": 86}, "size is 86"),
        ({"n_train": 6}, "n_train is 6, must be a multiple of 4 within 4..11700"),
        ({"n_train": 0}, "n_train is 0"),
        ({"n_train": 4, "n_test": 1952}, r"n_test is 1952, must be a multiple of 4 within 4..1948"),
    ],
)
def test_scene_arguments_are_checked(arguments, message):
    with pytest.raises(ValueError, match=message):
        datasets.scene_digits(**arguments)
