"""Noisy linear imputation against a dense solution and exact cases."""

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from oracles.fillers import imputed

from xaiutils import baselines, perturb, segment
from xaiutils.imputation import NoisyLinear
from xaiutils.perturb import Components


@pytest.fixture
def images():
    return np.random.default_rng(0).random((4, 3, 8, 10))


def pixels(shape):
    """Every pixel a component of its own."""
    return Components(np.arange(np.prod(shape)).reshape(shape))


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
    filled = NoisyLinear(noise=0)(image, pixels(shape), kept.reshape(len(kept), -1))
    for found, mask in zip(filled, kept, strict=True):
        assert_allclose(found, imputed(image, mask), atol=1e-10)


def test_imputation_of_a_thin_image_is_linear_interpolation():
    image = np.random.default_rng(6).random((2, 1, 30))
    kept = np.zeros((1, 30), bool)
    kept[0, [4, 10, 25]] = True
    expected = np.interp(np.arange(30), [4, 10, 25], image[0, 0, [4, 10, 25]])
    found = NoisyLinear(noise=0)(image, pixels((1, 30)), kept)
    assert_allclose(found[0, 0, 0], expected, atol=1e-10)


def test_imputation_of_components_is_that_of_their_pixels():
    shape = (8, 9)
    image = np.random.default_rng(6).random((3, *shape))
    grid = Components(segment.grid(shape, 3, 4))
    masks = np.random.default_rng(7).random((6, grid.d)) < 0.5
    road = NoisyLinear()
    assert_array_equal(
        road(image, grid, masks), road(image, pixels(shape), masks[:, grid.labels.ravel()])
    )


def test_imputation_with_nothing_kept_is_the_image_mean(images):
    road, grid = NoisyLinear(noise=0), pixels((8, 10))
    nothing, all_kept = np.zeros((1, 80), bool), np.ones((1, 80), bool)
    assert_allclose(road(images[0], grid, nothing)[0], baselines.image_mean(images[0]))
    assert_array_equal(road(images[0], grid, all_kept)[0], images[0])


def test_imputation_at_full_size_leaves_no_residual():
    shape = (224, 224)
    image = np.random.default_rng(8).random((1, *shape))
    kept = np.random.default_rng(9).random(shape) < 0.3
    (filled,) = NoisyLinear(noise=0)(image, pixels(shape), kept.reshape(1, -1))
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
        noisy = NoisyLinear(noise=0.2, seed=seed)(image, grid, masks[rows])
        return noisy - NoisyLinear(noise=0)(image, grid, masks[rows])

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
    (filled,) = NoisyLinear(noise=0.05)(image, grid, np.array([[True, False]]))
    noise = filled[:, :, 30:] - 0.5  # 5,400 values: standard error 1 %
    assert noise.std() == pytest.approx(0.05, rel=0.04)
    assert abs(noise.mean()) < 0.003


@pytest.mark.parametrize("batch_size", [1, 7])
def test_engine_keeps_what_is_kept(batch_size, images):
    image = images[0].astype(np.float32)
    masks = np.random.default_rng(2).random((9, 80)) < 0.5
    state = np.random.get_state()[1].copy()  # noqa: NPY002
    road, grid = NoisyLinear(), pixels((8, 10))
    seen = perturb.evaluate(
        lambda batch: batch.flatten(1), image, grid, masks, road, batch_size=batch_size
    ).reshape(9, 3, 8, 10)
    kept = np.broadcast_to(masks.reshape(9, 1, 8, 10), seen.shape)
    assert_array_equal(seen[kept], np.broadcast_to(image, seen.shape)[kept])
    assert_array_equal(seen, road(image, grid, masks))
    assert seen.dtype == np.float32
    assert_array_equal(np.random.get_state()[1], state)  # noqa: NPY002


def test_imputation_names_what_does_not_fit(images):
    road, grid, keep = NoisyLinear(), pixels((8, 10)), np.ones((1, 80), bool)
    with pytest.raises(ValueError, match=r"x must be one image \(C, H, W\), got shape \(4, 3"):
        road(images, grid, keep)
    with pytest.raises(ValueError, match="x must be floating, got int64"):
        road(np.zeros((3, 8, 10), int), grid, keep)
    with pytest.raises(ValueError, match=r"all channels together: labels \(3, 8, 10\)"):
        road(images[0], pixels((3, 8, 10)), np.ones((1, 240), bool))
    for noise in (-0.1, np.nan):
        with pytest.raises(ValueError, match=f"standard deviation of at least 0, got {noise}"):
            NoisyLinear(noise)
