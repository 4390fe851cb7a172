"""Fillers against exact cases and a dense solution of noisy linear imputation."""

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal

from xaiutils import baselines, perturb, segment
from xaiutils.perturb import Components

FILLERS = {
    "black": baselines.black,
    "channel mean": lambda x: baselines.channel_mean(x, [0.2, 0.4, 0.6]),
    "image mean": baselines.image_mean,
    "blur": lambda x: baselines.blur(x, 2.0),
    "noise": lambda x: baselines.uniform_noise(x, seed=3),
}


@pytest.fixture
def images():
    return np.random.default_rng(0).random((4, 3, 8, 10))


def pixels(shape):
    """Every pixel a component of its own."""
    return Components(np.arange(np.prod(shape)).reshape(shape))


# --- fillers that do not depend on what is hidden -------------------------------------------------


@pytest.mark.parametrize("fill", FILLERS.values(), ids=FILLERS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_each_image_has_its_own_filler_whatever_the_batch(fill, dtype, images):
    images = images.astype(dtype)
    before = images.copy()
    batch = fill(images)
    assert batch.shape == images.shape and batch.dtype == dtype
    assert_array_equal(fill(torch.from_numpy(images[::-1].copy())), batch[::-1])
    assert_array_equal(fill(images[2]), batch[2])
    assert_array_equal(images, before)


@pytest.mark.parametrize("fill", FILLERS.values(), ids=FILLERS)
def test_images_must_be_in_natural_units(fill, images):
    with pytest.raises(ValueError, match=r"x must be floating, got uint8; divide"):
        fill(np.zeros((3, 4, 4), np.uint8))
    with pytest.raises(ValueError, match=r"\(C, H, W\) or \(n, C, H, W\), got shape \(8, 10\)"):
        fill(images[0, 0])
    for shift in (-1, 1):
        with pytest.raises(ValueError, match=r"x must be in natural units \[0, 1\], got \["):
            fill(images + shift)
    with pytest.raises(ValueError, match=r"natural units \[0, 1\], got \[nan"):
        fill(images * np.nan)


def test_black_is_zero(images):
    assert not baselines.black(images).any()


def test_channel_mean_is_the_given_colour(images):
    filled = baselines.channel_mean(images, [0.2, 0.4, 0.6])
    for channel, value in enumerate([0.2, 0.4, 0.6]):
        assert_array_equal(filled[:, channel], value)
    for mean in ([0.5], [0.1, 0.2, 1.2], [-0.1, 0.2, 0.3], [0.1, np.nan, 0.3]):
        with pytest.raises(ValueError, match=r"mean must hold 3 values in \[0, 1\]"):
            baselines.channel_mean(images, mean)


def test_image_mean_is_per_image_and_channel():
    x = np.zeros((2, 2, 1, 4))
    x[0, 0, 0], x[1, 1, 0] = [0, 0, 0, 0.8], [0.1, 0.2, 0.3, 0.4]
    filled = baselines.image_mean(x)
    assert_allclose(filled[0, 0], 0.2)
    assert_allclose(filled[1, 1], 0.25)
    assert not filled[0, 1].any() and not filled[1, 0].any()


def test_blur_spreads_a_point_as_a_gaussian_within_its_channel():
    x = np.zeros((2, 41, 41))
    x[0, 20, 20] = 1
    filled = baselines.blur(x, sigma=3)
    row, col = np.mgrid[-20:21, -20:21]
    expected = np.exp(-(row**2 + col**2) / (2 * 3**2))
    assert_allclose(filled[0], expected / expected.sum(), atol=1e-5)
    assert not filled[1].any()
    assert_allclose(baselines.blur(np.full((1, 9, 7), 0.3), sigma=14), 0.3)
    for sigma in (0, -1, np.nan):
        with pytest.raises(ValueError, match=f"sigma must be positive, in pixels, got {sigma}"):
            baselines.blur(x, sigma)


def test_uniform_noise_fills_the_range_and_depends_on_seed_and_image():
    x = np.random.default_rng(1).random((3, 3, 50, 50))
    noise = baselines.uniform_noise(x, seed=0)
    assert noise.min() >= 0 and noise.max() < 1
    # 22,500 values: the standard errors of mean and variance are 0.0019 and 0.0005.
    assert_allclose([noise.mean(), noise.var()], [1 / 2, 1 / 12], atol=0.008)
    correlation = np.corrcoef(noise.reshape(9, -1)) - np.eye(9)
    assert abs(correlation).max() < 0.1  # neither images nor channels repeat
    assert abs(baselines.uniform_noise(x, seed=1) - noise).max() > 0.5


# --- noisy linear imputation ----------------------------------------------------------------------


def imputed(image, kept):
    """The definition as a dense system: one row per pixel, hidden ones the mean of neighbours."""
    height, width = kept.shape
    matrix, right = np.eye(kept.size), image.reshape(len(image), -1).T.copy()
    for row, col in zip(*np.nonzero(~kept), strict=True):
        here = row * width + col
        around = {
            (row + down) * width + col + side: 1 / 6 if 0 in (down, side) else 1 / 12
            for down in (-1, 0, 1)
            for side in (-1, 0, 1)
            if (down or side) and 0 <= row + down < height and 0 <= col + side < width
        }
        right[here] = 0
        for there, weight in around.items():
            matrix[here, there] = -weight / sum(around.values())
    return np.linalg.solve(matrix, right).T.reshape(image.shape)


def kept_cases(shape):
    rng = np.random.default_rng(5)
    cases = {f"{share} kept": rng.random(shape) < share for share in (0.05, 0.3, 0.9)}
    lone = np.ones(shape, bool)
    lone[0, 0] = lone[-1, 3] = lone[4, 5] = False
    islands = np.ones(shape, bool)
    islands[1:4, 1:4] = islands[5:, 6:] = False
    one = np.zeros(shape, bool)
    one[2, 3] = True
    return cases | {"lone pixels hidden": lone, "two regions hidden": islands, "one kept": one}


@pytest.mark.parametrize("shape", [(8, 8), (7, 19), (19, 7)])
def test_imputation_solves_the_dense_system(shape):
    image = np.random.default_rng(6).random((3, *shape))
    kept = np.stack(list(kept_cases(shape).values()))
    filled = baselines.NoisyLinear(noise=0)(image, pixels(shape), kept.reshape(len(kept), -1))
    for found, mask in zip(filled, kept, strict=True):
        assert_allclose(found, imputed(image, mask), atol=1e-10)


def test_imputation_of_a_thin_image_is_linear_interpolation():
    image = np.random.default_rng(6).random((2, 1, 30))
    kept = np.zeros((1, 30), bool)
    kept[0, [4, 10, 25]] = True
    expected = np.interp(np.arange(30), [4, 10, 25], image[0, 0, [4, 10, 25]])
    found = baselines.NoisyLinear(noise=0)(image, pixels((1, 30)), kept)
    assert_allclose(found[0, 0, 0], expected, atol=1e-10)


def test_imputation_of_components_is_that_of_their_pixels():
    shape = (8, 9)
    image = np.random.default_rng(6).random((3, *shape))
    grid = Components(segment.grid(shape, 3, 4))
    masks = np.random.default_rng(7).random((6, grid.d)) < 0.5
    road = baselines.NoisyLinear()
    assert_array_equal(
        road(image, grid, masks), road(image, pixels(shape), masks[:, grid.labels.ravel()])
    )


def test_imputation_with_nothing_kept_is_the_image_mean(images):
    road, grid = baselines.NoisyLinear(noise=0), pixels((8, 10))
    nothing, all_kept = np.zeros((1, 80), bool), np.ones((1, 80), bool)
    assert_allclose(road(images[0], grid, nothing)[0], baselines.image_mean(images[0]))
    assert_array_equal(road(images[0], grid, all_kept)[0], images[0])


def test_imputation_at_full_size_leaves_no_residual():
    shape = (224, 224)
    image = np.random.default_rng(8).random((1, *shape))
    kept = np.random.default_rng(9).random(shape) < 0.3
    (filled,) = baselines.NoisyLinear(noise=0)(image, pixels(shape), kept.reshape(1, -1))
    padded = np.pad(filled[0], 1)
    ones = np.pad(np.ones(shape), 1)
    total, weight = np.zeros(shape), np.zeros(shape)
    for down in (0, 1, 2):
        for side in (0, 1, 2):
            if (down, side) != (1, 1):
                part = np.s_[down : down + 224, side : side + 224]
                share = 1 / 6 if 1 in (down, side) else 1 / 12
                total, weight = total + share * padded[part], weight + share * ones[part]
    assert_allclose(filled[0][~kept], (total / weight)[~kept], atol=1e-10)
    assert_array_equal(filled[0][kept], image[0][kept])


def test_noise_is_one_pattern_per_image_and_seed(images):
    grid = pixels((8, 10))
    masks = np.random.default_rng(2).random((5, 80)) < 0.4
    hidden = ~masks.reshape(5, 1, 8, 10) & np.ones((5, 3, 8, 10), bool)

    def noise(image, seed=0, rows=slice(None)):
        noisy = baselines.NoisyLinear(noise=0.2, seed=seed)(image, grid, masks[rows])
        return noisy - baselines.NoisyLinear(noise=0)(image, grid, masks[rows])

    drawn = noise(images[0])
    assert not drawn[~hidden].any()  # kept pixels get none
    pattern = np.where(hidden, drawn, np.nan)
    assert np.nanmax(np.nanmax(pattern, 0) - np.nanmin(pattern, 0)) < 1e-12  # shared by all masks
    assert abs(pattern[0] - pattern[0, :1])[1:][hidden[0, 1:]].min() > 0  # not by the channels
    assert_allclose(noise(images[0], rows=[3]), drawn[[3]], atol=1e-12)
    for other in (noise(images[1]), noise(images[0], seed=1)):
        assert abs(other - drawn)[hidden].min() > 0


def test_noise_has_the_given_deviation():
    image, grid = np.full((3, 60, 60), 0.5), Components(segment.grid((60, 60), 1, 2))
    (filled,) = baselines.NoisyLinear(noise=0.05)(image, grid, np.array([[True, False]]))
    noise = filled[:, :, 30:] - 0.5  # 5,400 values: standard error 1 %
    assert noise.std() == pytest.approx(0.05, rel=0.04)
    assert abs(noise.mean()) < 0.003


@pytest.mark.parametrize("batch_size", [1, 7])
def test_engine_keeps_what_is_kept(batch_size, images):
    image = images[0].astype(np.float32)
    masks = np.random.default_rng(2).random((9, 80)) < 0.5
    state = np.random.get_state()[1].copy()  # noqa: NPY002
    road, grid = baselines.NoisyLinear(), pixels((8, 10))
    seen = perturb.evaluate(
        lambda batch: batch.flatten(1), image, grid, masks, road, batch_size=batch_size
    ).reshape(9, 3, 8, 10)
    kept = np.broadcast_to(masks.reshape(9, 1, 8, 10), seen.shape)
    assert_array_equal(seen[kept], np.broadcast_to(image, seen.shape)[kept])
    assert_array_equal(seen, road(image, grid, masks))
    assert seen.dtype == np.float32
    assert_array_equal(np.random.get_state()[1], state)  # noqa: NPY002


@pytest.mark.parametrize("fill", FILLERS.values(), ids=FILLERS)
def test_engine_takes_each_filler(fill, images):
    image, hide = images[1], np.zeros((1, 80), bool)
    seen = perturb.evaluate(
        lambda batch: batch.flatten(1), image, pixels((8, 10)), hide, fill(image), batch_size=1
    )
    assert_array_equal(seen.reshape(image.shape), fill(image))


def test_imputation_names_what_does_not_fit(images):
    road, grid, keep = baselines.NoisyLinear(), pixels((8, 10)), np.ones((1, 80), bool)
    with pytest.raises(ValueError, match=r"x must be one image \(C, H, W\), got shape \(4, 3"):
        road(images, grid, keep)
    with pytest.raises(ValueError, match="x must be floating, got int64"):
        road(np.zeros((3, 8, 10), int), grid, keep)
    with pytest.raises(ValueError, match=r"all channels together: labels \(3, 8, 10\)"):
        road(images[0], pixels((3, 8, 10)), np.ones((1, 240), bool))
    for noise in (-0.1, np.nan):
        with pytest.raises(ValueError, match=f"standard deviation of at least 0, got {noise}"):
            baselines.NoisyLinear(noise)
