"""Fillers that need no class against exact cases."""

import itertools

import numpy as np
import pytest
import scipy.stats
import torch
from numpy.testing import assert_allclose, assert_array_equal

from xaiutils import baselines, perturb
from xaiutils.perturb import Components

FILLERS = {
    "black": baselines.black,
    "channel mean": lambda x: baselines.channel_mean(x, [0.2, 0.4, 0.6]),
    "image mean": baselines.image_mean,
    "blur": lambda x: baselines.blur(x, 2.0),
    "noise": lambda x: baselines.uniform_noise(x, seed=3),
    "Gaussian noise": lambda x: baselines.gaussian_noise(x, sigma=0.3, seed=3),
    "maximum distance": baselines.maximum_distance,
}


@pytest.fixture
def images():
    return np.random.default_rng(0).random((4, 3, 8, 10))


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
    images[2, 1, 4, 7] = images[3, 0, 0, 0] = np.nan
    with pytest.raises(ValueError, match=r"x holds NaN: 2 of 960 .* first at \(2, 1, 4, 7"):
        fill(images)


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


def test_gaussian_noise_is_added_then_clipped():
    x = np.full((2, 3, 60, 60), 0.5)
    x[1] = 0.02
    noisy = baselines.gaussian_noise(x, sigma=0.1, seed=0)
    # 10,800 values: standard errors of mean and deviation 0.001 and 0.0007. Beyond 5 sigma is rare.
    assert_allclose([noisy[0].mean(), noisy[0].std()], [0.5, 0.1], atol=0.004)
    assert noisy.min() == 0 and noisy.max() <= 1
    # Of the dark image, the share clipped is that of the normal law below -0.2 sigma.
    assert (noisy[1] == 0).mean() == pytest.approx(scipy.stats.norm.cdf(-0.2), abs=0.02)
    channels = np.corrcoef(noisy.reshape(6, -1)) - np.eye(6)
    assert abs(channels).max() < 0.05
    assert abs(baselines.gaussian_noise(x, 0.1, seed=1) - noisy).max() > 0.3
    assert baselines.gaussian_noise(1 - x, 0.1, seed=0).max() == 1
    for sigma in (0, -1, np.nan):
        with pytest.raises(ValueError, match=f"sigma must be positive, in units.*, got {sigma}"):
            baselines.gaussian_noise(x, sigma, seed=0)


def test_maximum_distance_is_the_farthest_corner():
    x = np.random.default_rng(2).random((5, 2, 2, 2))
    corners = np.array(list(itertools.product((0, 1), repeat=8))).reshape(-1, 2, 2, 2)
    for image, found in zip(x, baselines.maximum_distance(x), strict=True):
        farthest = abs(corners - image).sum(axis=(1, 2, 3)).argmax()
        assert_array_equal(found, corners[farthest])


@pytest.mark.parametrize("fill", FILLERS.values(), ids=FILLERS)
def test_engine_takes_each_filler(fill, images):
    image, hide = images[1], np.zeros((1, 80), bool)
    pixels = Components(np.arange(80).reshape(8, 10))
    seen = perturb.evaluate(
        lambda batch: batch.flatten(1), image, pixels, hide, fill(image), batch_size=1
    )
    assert_array_equal(seen.reshape(image.shape), fill(image))
