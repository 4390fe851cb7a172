"""Localisation, cascades and similarities against brute force, known answers and refusals."""

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from torch import nn

from xaiutils import sanity

pytestmark = pytest.mark.filterwarnings("error")

N, SHAPE = 6, (3, 12, 14)


@pytest.fixture
def rng():
    return np.random.default_rng(5)


@pytest.fixture
def maps(rng):
    """Signed maps with many ties and many zeros."""
    return np.round(rng.normal(size=(N, *SHAPE)), 1)


@pytest.fixture
def region(rng):
    """Masks that differ from image to image and cover between a tenth and a half."""
    return rng.random((N, *SHAPE)) < np.linspace(0.1, 0.5, N)[:, None, None, None]


class Net(nn.Module):
    """Convolution, batch norm, dropout, and a nest; nothing is at its initial value."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 3, 3, bias=False), nn.BatchNorm2d(3), nn.ReLU())
        self.body = nn.Conv2d(3, 4, 3)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(4 * 4 * 4, 5)
        generator = torch.Generator().manual_seed(9)
        for value in [*self.parameters(), self.stem[1].running_mean, self.stem[1].running_var]:
            value.data = 0.5 + torch.rand(value.shape, generator=generator)

    def forward(self, x):
        return self.head(self.drop(self.body(self.stem(x))).flatten(1))


ORDER = ["none", "head", "body", "stem.1", "stem.0"]
NUMBERS = [name for name in Net().state_dict() if "num_batches" not in name]


def values(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def changed(before, after):
    return {name for name in NUMBERS if not torch.equal(before[name], after[name])}


# Localisation


def test_localisation_takes_tensors(maps, region):
    tensors = torch.from_numpy(maps).requires_grad_(), torch.from_numpy(region)
    assert_array_equal(sanity.localisation(*tensors), sanity.localisation(maps, region))


def test_localisation_of_a_uniform_map_is_chance(region):
    assert_allclose(sanity.chance(region), [r.sum() / r.size for r in region])
    assert_allclose(sanity.localisation(np.full(region.shape, -0.3), region), sanity.chance(region))


def test_localisation_of_the_mask_itself_is_perfect(region):
    assert_array_equal(sanity.localisation(-1.0 * region, region), np.ones(N))
    assert_array_equal(sanity.inverse_localisation(-1.0 * region, region), np.zeros(N))


def test_inverse_localisation_is_the_odds_against_the_region(maps, region):
    inverse = sanity.inverse_localisation(maps, region)
    assert_allclose(inverse, 1 / sanity.localisation(maps, region) - 1, rtol=1e-12)
    assert len(set(inverse)) == N


def test_localisation_of_empty_maps_and_empty_regions(maps, region):
    a, r = maps.copy(), region.copy()
    a[1], r[2] = 0, False
    share, inverse = sanity.localisation(a, r), sanity.inverse_localisation(a, r)
    assert np.isnan([share[1], inverse[1]]).all()
    assert share[2] == 0 and inverse[2] == np.inf
    kept = [0, 3, 4, 5]
    assert_array_equal(share[kept], sanity.localisation(maps, region)[kept])


def test_a_region_of_pixels_holds_for_all_channels(maps, region):
    pixels = region[:, 1]
    repeated = np.repeat(pixels[:, None], 3, axis=1)
    assert_array_equal(sanity.localisation(maps, pixels), sanity.localisation(maps, repeated))
    one = maps[:, 0]
    assert_allclose(
        sanity.localisation(one, pixels),
        (np.abs(one) * pixels).sum((1, 2)) / np.abs(one).sum((1, 2)),
    )


def test_ranking_quality_of_a_constant_map_of_the_truth_and_without_truth(region):
    flat = sanity.ranking_quality(np.full(region.shape, -2.0), region)
    assert_allclose(flat.auc, 0.5)
    assert_allclose(flat.average_precision, sanity.chance(region))
    perfect = sanity.ranking_quality(-1.0 * region, region)
    assert_array_equal(perfect, np.ones((2, N)))
    truth = region.copy()
    truth[0], truth[1] = False, True
    quality = np.array(sanity.ranking_quality(-1.0 * region, truth))
    assert np.isnan(quality[:, :2]).all() and (quality[:, 2:] == 1).all()


# Cascade


@pytest.mark.parametrize("how", ["initial", "gaussian"])
def test_cascade_goes_from_the_logits_to_the_input_and_is_cumulative(how):
    model = Net().eval()
    items = list(sanity.cascade(model, seed=3, how=how))
    assert [name for name, _ in items] == ORDER
    done = set()
    for (name, after), (_, before) in zip(items[1:], items[:-1], strict=True):
        own = {key for key in NUMBERS if key.startswith(f"{name}.")}
        if how == "gaussian":
            own -= {"stem.1.running_mean", "stem.1.running_var"}
        assert own and changed(values(before), values(after)) == own
        done |= own
        assert changed(values(model), values(after)) == done
        assert not after.training


def test_cascade_begins_with_an_unchanged_copy():
    model = Net().eval()
    name, first = next(sanity.cascade(model, seed=3))
    x = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    assert name == "none" and first is not model
    assert torch.equal(first(x), model(x))


@pytest.mark.parametrize("how", ["initial", "gaussian"])
def test_cascade_leaves_the_model_and_the_global_generator_alone(how):
    model = Net().eval()
    before, state = values(model), torch.get_rng_state()
    for _, item in sanity.cascade(model, seed=3, how=how):
        # Between items too: a caller may draw numbers of its own.
        assert torch.equal(torch.get_rng_state(), state)
        for weight in item.parameters():
            weight.data.zero_()
    assert not changed(before, values(model))


def test_items_of_a_cascade_are_independent():
    cascade = sanity.cascade(Net(), seed=3)
    untouched = [values(item) for _, item in sanity.cascade(Net(), seed=3)]
    for expected in untouched:
        item = next(cascade)[1]
        assert not changed(expected, values(item))
        item.head.weight.data.zero_()


@pytest.mark.parametrize("how", ["initial", "gaussian"])
def test_cascade_is_reproducible_by_its_seed(how):
    def last(seed):
        return values(list(sanity.cascade(Net(), seed=seed, how=how))[-1][1])

    assert not changed(last(3), last(3))
    random = {"head.weight", "head.bias", "body.weight", "body.bias", "stem.0.weight"}
    assert random <= changed(last(3), last(4))


def test_layers_of_a_cascade_draw_different_weights():
    twins = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    last = list(sanity.cascade(twins, seed=0))[-1][1]
    assert not torch.equal(last[0].weight, last[1].weight)


def test_initial_weights_have_the_scale_of_the_layer():
    last = values(list(sanity.cascade(Net(), seed=3))[-1][1])
    weight = last["head.weight"]  # uniform up to 1 / sqrt(inputs)
    assert 0.9 / 8 < weight.abs().max() <= 1 / 8 and abs(weight.mean()) < 0.02
    assert (last["stem.1.weight"] == 1).all() and (last["stem.1.running_mean"] == 0).all()


def test_gaussian_weights_keep_the_norm_of_each_parameter():
    model = Net().double()
    last = list(sanity.cascade(model, seed=3, how="gaussian"))[-1][1]
    for before, after in zip(model.parameters(), last.parameters(), strict=True):
        assert_allclose(after.norm().item(), before.norm().item(), rtol=1e-12)
    centred = last.head.weight / last.head.weight.std()
    assert abs(centred.mean()) < 0.2  # the model's own weights lie above 0.5
    assert abs((centred.abs() < 1).double().mean() - 0.683) < 0.06  # Gaussian, not uniform: 0.58


def test_cascade_refuses_at_the_call_what_it_cannot_randomise():
    class Scale(nn.Module):
        def __init__(self):
            super().__init__()
            self.factor = nn.Parameter(torch.ones(3))

    model = nn.Sequential(nn.Linear(3, 3), Scale())
    with pytest.raises(ValueError, match=r"Scale '1' has no reset_parameters"):
        sanity.cascade(model, seed=0)
    assert [name for name, _ in sanity.cascade(model, seed=0, how="gaussian")] == ["none", "1", "0"]
    with pytest.raises(ValueError, match="how must be"):
        sanity.cascade(model, seed=0, how="zero")
    with pytest.raises(ValueError, match="layers with weights"):
        sanity.cascade(nn.Sequential(nn.ReLU()), seed=0)


# Similarity


@pytest.fixture
def others(maps, rng):
    """From nearly `maps` to nearly unrelated, image by image."""
    return maps + np.linspace(0.1, 5, N)[:, None, None, None] * rng.normal(size=maps.shape)


@pytest.mark.parametrize("how", ["within", "pearson"])
def test_values_outside_the_support_do_not_count(maps, others, region, rng, how):
    wild = np.where(region, others, 1e9 * rng.normal(size=maps.shape))
    expected = sanity.similarity(maps, others, how, region)
    assert_array_equal(sanity.similarity(maps, wild, how, region), expected)
    assert_array_equal(sanity.similarity(wild, maps, how, region), expected)
    pixels = region[:, 0]
    assert_array_equal(
        sanity.similarity(maps, others, how, pixels),
        sanity.similarity(maps, others, how, np.repeat(pixels[:, None], 3, axis=1)),
    )


@pytest.mark.parametrize("how", ["signed", "absolute", "within", "pearson", "ssim"])
def test_identical_maps_agree_fully_and_only_some_measures_see_signs(maps, region, how):
    support = region if how == "within" else None
    assert_allclose(sanity.similarity(maps, 3 * maps, how, support), 1, atol=1e-12)
    signs = np.where(np.arange(SHAPE[-1]) % 2, 1, -1)
    flipped = sanity.similarity(maps, signs * maps, how, support)
    blind = how in ("absolute", "ssim")
    assert (flipped > 1 - 1e-12).all() if blind else (flipped < 0.8).all()
    opposite = sanity.similarity(maps, -maps, how, support)
    assert_allclose(opposite, 1 if blind else -1, atol=1e-12)


@pytest.mark.parametrize("how", ["signed", "absolute", "within", "pearson"])
def test_correlation_with_a_constant_map_is_undefined(maps, region, how):
    a, support = maps.copy(), region.copy()
    a[1], a[3] = 0.1, 0  # the mean of equal values need not be their value: no noise correlated
    support[4] = False
    uses = how in ("within", "pearson")
    result = sanity.similarity(a, maps, how, support if uses else None)
    assert_array_equal(np.isnan(result), [False, True, False, True, uses, False])
    assert_array_equal(
        np.isnan(sanity.similarity(maps, a, how, support if uses else None)), np.isnan(result)
    )


def test_ssim_with_an_empty_map_is_undefined(maps):
    a = maps.copy()
    a[1], a[2] = 0, 0.1
    assert_array_equal(np.isnan(sanity.similarity(a, maps, "ssim")), np.arange(N) == 1)
    assert_array_equal(np.isnan(sanity.similarity(maps, a, "ssim")), np.arange(N) == 1)


# Refusals


@pytest.mark.parametrize("function", [sanity.localisation, sanity.inverse_localisation])
def test_localisation_refuses_what_does_not_fit(maps, region, function):
    for wrong in (region.astype(int), region[:-1], region[..., 0], region[:, :1], region[0]):
        with pytest.raises(ValueError, match=r"region must be bool of shape .* or \(6, 12, 14\)"):
            function(maps, wrong)
    with pytest.raises(ValueError, match=r"attribution must be maps \(n, ...\), got shape \(14,\)"):
        function(maps[0, 0, 0], region[0, 0, 0])
    with pytest.raises(ValueError, match="attribution must be finite, got 504 other values"):
        function(np.where(np.arange(N)[:, None, None, None] == 2, np.nan, maps), region)


def test_chance_and_ranking_quality_refuse_what_does_not_fit(maps, region):
    for wrong in (region.astype(float), region[0, 0, 0], region[:0]):
        with pytest.raises(ValueError, match=r"region must be bool \(n, ...\), got"):
            sanity.chance(wrong)
    with pytest.raises(ValueError, match="truth must be bool of shape"):
        sanity.ranking_quality(maps, region[:, :2])


def test_similarity_refuses_what_does_not_fit(maps, region):
    with pytest.raises(ValueError, match=r"how must be .* got 'spearman'"):
        sanity.similarity(maps, maps, "spearman")
    with pytest.raises(ValueError, match="support is needed"):
        sanity.similarity(maps, maps, "within")
    for how in ("signed", "absolute", "ssim"):
        with pytest.raises(ValueError, match=f"support must be None if how is '{how}'"):
            sanity.similarity(maps, maps, how, region)
    with pytest.raises(ValueError, match=r"b must have the shape of a, \(6, 3, 12, 14\)"):
        sanity.similarity(maps, maps[:, :1], "signed")
    with pytest.raises(ValueError, match="support must be bool of shape"):
        sanity.similarity(maps, maps, "within", region[:, :2])
    for small in (maps[..., :10], maps[..., 0, :], maps[:, :, None]):
        with pytest.raises(ValueError, match=r'for "ssim", H and W at least 11'):
            sanity.similarity(small, small, "ssim")
