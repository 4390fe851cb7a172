"""Integrated gradients against closed forms and captum, and what is said of sums that miss."""

import warnings

import numpy as np
import pytest
import torch
from captum.attr import IntegratedGradients
from numpy.testing import assert_allclose, assert_array_equal
from torch import nn

from xaiutils import attribution, limit, runtime
from xaiutils.integrated import gauss_legendre
from xaiutils.perturb import Components

N, SHAPE, CLASSES = 5, (2, 6, 8), 4
TARGET, AGAINST = np.array([0, 3, 1, 1, 2]), np.array([1, 0, 0, 3, 3])


class Net(nn.Module):
    """Smooth, in double precision."""

    def __init__(self):
        super().__init__()
        self.trunk = nn.Conv2d(2, 3, 3, stride=2, padding=1)
        self.head = nn.Linear(3 * 3 * 4, CLASSES)
        rng = np.random.default_rng(7)
        for weight in self.parameters():
            weight.data = torch.from_numpy(rng.normal(size=weight.shape) / 2)

    def forward(self, x):
        return self.head(torch.tanh(self.trunk(x)).flatten(1))


class Along(nn.Module):
    """One output: `function` of the mean value of each input."""

    def __init__(self, function):
        super().__init__()
        self.function, self.calls = function, []

    def forward(self, x):
        self.calls.append(len(x))
        return self.function(x.flatten(1).mean(1, keepdim=True))


def integrated(function, to=1.0, start=0.0, **options):
    """Sum of the integrated gradients of a function of one number, from `start` to `to`."""
    x, baseline = np.full((1, 3), to), np.full((1, 3), start)
    return attribution.integrated_gradients(Along(function), x, baseline, [0], **options).sum()


@pytest.fixture
def net():
    return Net().eval()


@pytest.fixture
def images():
    return np.random.default_rng(1).random((N, *SHAPE))


@pytest.fixture
def baselines():
    return np.random.default_rng(3).random((N, *SHAPE))


def rise(model, images, baselines):
    with torch.no_grad():
        outputs = model(torch.from_numpy(images)) - model(torch.from_numpy(baselines))
    return outputs.numpy()


# --- the rule -------------------------------------------------------------------------------------


def test_the_sum_converges_geometrically_on_smooth_networks(net, images, baselines):
    due = rise(net, images, baselines)[np.arange(N), TARGET]

    def gap(steps):
        maps = attribution.integrated_gradients(
            net, images, baselines, TARGET, steps=steps, tolerance=None
        )
        return abs(maps.sum((1, 2, 3)) - due).max()

    gaps = np.array([gap(steps) for steps in (2, 4, 6, 8)])
    assert (gaps[1:] < gaps[:-1] / 20).all()
    assert gap(20) < 1e-13


@pytest.mark.parametrize("steps", [1, 2, 3, 5])
def test_polynomials_of_degree_2_steps_are_exact_and_no_further(steps):
    coefficients = np.random.default_rng(steps).normal(size=2 * steps + 2)

    def polynomial(degree):
        return lambda t: sum(c * t**k for k, c in enumerate(coefficients[: degree + 1]))

    for degree in range(2 * steps + 1):
        f = polynomial(degree)
        found = integrated(f, 1.5, -0.5, steps=steps, tolerance=None)
        assert found == pytest.approx(f(1.5) - f(-0.5), abs=1e-12)
    f = polynomial(2 * steps + 1)
    found = integrated(f, 1.5, -0.5, steps=steps, tolerance=None)
    assert abs(found - f(1.5) + f(-0.5)) > 1e-3 * abs(coefficients[-1])


def test_two_points_by_hand():
    at = 0.5 + np.array([-0.5, 0.5]) / np.sqrt(3)
    expected = np.exp(at).mean()
    assert integrated(torch.exp, steps=2) == pytest.approx(expected, abs=1e-14)
    positions, weights = gauss_legendre(2)
    assert_allclose(positions, at)
    assert_allclose(weights, 0.5)


@pytest.mark.parametrize("steps", [1, 4, 50, 600])
def test_weights_are_those_of_an_integral_over_the_path(steps):
    positions, weights = gauss_legendre(steps)
    assert (np.diff(positions) > 0).all()
    assert positions[0] > 0 and positions[-1] < 1
    assert_allclose(weights.sum(), 1, atol=1e-13)
    assert_allclose(weights @ np.exp(positions), np.e - 1, rtol=0.05 if steps == 1 else 1e-7)


@pytest.mark.parametrize("steps", [1, 7, 30])
def test_captum_agrees(steps, net, images, baselines):
    reference = IntegratedGradients(net).attribute(
        *(torch.from_numpy(values) for values in (images, baselines)),
        target=torch.from_numpy(TARGET),
        n_steps=steps,
        method="gausslegendre",
    )
    ours = attribution.integrated_gradients(
        net, images, baselines, TARGET, steps=steps, tolerance=None
    )
    assert_allclose(ours, reference, atol=1e-12)


def test_linear_models_need_one_point(images):
    weights = np.random.default_rng(4).normal(size=SHAPE)
    model = nn.Sequential(nn.Flatten(), nn.Linear(images[0].size, 1)).double().eval()
    model[1].weight.data = torch.from_numpy(weights.reshape(1, -1))
    found = attribution.integrated_gradients(model, images, images * 0 + 0.1, [0] * N, steps=1)
    assert_allclose(found, weights * (images - 0.1), atol=1e-12)


def test_one_input_or_a_batch(net, images, baselines):
    batch = attribution.integrated_gradients(net, images, baselines, TARGET, against=AGAINST)
    shared = attribution.integrated_gradients(net, images, baselines[1], TARGET, against=AGAINST)
    one = attribution.integrated_gradients(
        net, images[1], baselines[1], int(TARGET[1]), against=int(AGAINST[1])
    )
    assert one.shape == SHAPE
    assert_allclose(batch[1], one, atol=1e-12)
    assert_allclose(shared[1], one, atol=1e-12)
    assert abs(shared[2] - batch[2]).max() > 1e-3


def test_what_does_not_fit_is_named(net, images):
    with pytest.raises(ValueError, match=r"or of one input, \(2, 6, 8\), got \(6, 8\)"):
        attribution.integrated_gradients(net, images[0], images[0, 0], 0)
    with pytest.raises(ValueError, match=r"x, \(5, 2, 6, 8\), or .*got \(4, 2, 6, 8\)"):
        attribution.integrated_gradients(net, images, images[1:], TARGET)
    for steps in (0, 2.5):
        with pytest.raises(
            ValueError, match=f"steps must be an integer of at least 1, got {steps}"
        ):
            attribution.integrated_gradients(net, images, images, TARGET, steps=steps)
    for tolerance in (-0.1, np.nan):
        with pytest.raises(ValueError, match=f"tolerance must be .* got {tolerance}"):
            attribution.integrated_gradients(net, images, images, TARGET, tolerance=tolerance)


# --- sums that miss -------------------------------------------------------------------------------


def steep(t):
    """Rises within the first hundredth of the way from 0 to 1, as layer norms do from black."""
    return torch.tanh(300 * t)


def said(function, *arguments, **options):
    """Warnings of a call."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        function(*arguments, **options)
    return caught


def test_a_sum_that_misses_is_told_once_with_its_numbers():
    x = np.full((4, 3), [[0.0], [1.0], [0.001], [1.0]])
    model = Along(steep)
    options = {"target": [0] * 4, "steps": 8}
    found = attribution.integrated_gradients(model, x, x * 0, tolerance=None, **options)
    (warning,) = said(attribution.integrated_gradients, model, x, x * 0, batch_size=2, **options)
    assert warning.category is attribution.CompletenessWarning
    assert warning.filename == __file__
    message = str(warning.message)
    assert "of 2 of 4 inputs" in message and "8 steps are too few" in message
    assert f"input 1 sum to {found[1].sum():.4g}, while f(x) - f(baseline) is 1:" in message
    assert not said(attribution.integrated_gradients, model, x, x * 0, **options | {"steps": 200})


def test_a_transformer_from_black_is_told():
    rng = np.random.default_rng(0)
    layers = nn.LayerNorm(16), nn.Linear(16, 8), nn.GELU(), nn.Linear(8, 1)
    model = nn.Sequential(nn.Linear(16, 16), *layers).double().eval()
    for weight in model.parameters():
        weight.data = torch.from_numpy(rng.normal(size=weight.shape))
    model[0].bias.data *= 0.01
    x = rng.random(16)
    for steps, misses in ((5, True), (2000, False)):
        caught = said(attribution.integrated_gradients, model, x, x * 0, 0, steps=steps)
        parts = attribution.integrated_gradients(model, x, x * 0, 0, steps=steps, tolerance=None)
        gap = attribution.completeness_gap(model, x, x * 0, 0, parts)
        due = parts.sum() - gap
        assert (abs(gap) > 0.05 * abs(due)) == misses == bool(caught)


def test_the_tolerance_is_a_share_of_the_difference():
    gap = abs(integrated(steep, steps=20, tolerance=None) - 1)
    assert 0.05 < gap < 1
    integrate = attribution.integrated_gradients
    arguments = Along(steep), np.ones((1, 3)), np.zeros(3), [0]
    assert said(integrate, *arguments, tolerance=0.99 * gap)
    assert not said(integrate, *arguments, tolerance=1.01 * gap)


def test_a_small_difference_of_large_ups_and_downs_is_no_miss():
    """sin(t) + t / 1000 from 0 to 2 pi goes up and down by 4 and ends at 0.006."""
    end = 2 * np.pi

    def wave(t):
        return t.sin() + t / 1000

    def miss(steps):
        return abs(integrated(wave, end, steps=steps, tolerance=None) - end / 1000)

    def is_told(steps):
        return bool(said(integrated, wave, end, steps=steps, tolerance=0.01))

    assert 0.01 * end / 1000 < miss(5) < 0.01 * 4 / 50 < miss(4)
    assert is_told(4) and not is_told(5)


@pytest.mark.parametrize("shift", [0, 1e-6, 1e-3])
def test_nothing_is_said_at_the_baseline_or_within_rounding(shift, net, images):
    class Far(nn.Module):
        """Single precision resolves 1e-4 of these outputs."""

        def __init__(self):
            super().__init__()
            self.net = net.float()

        def forward(self, x):
            return self.net(x) + 1000

    moved = images * (1 + shift)
    assert not said(attribution.integrated_gradients, Far(), moved, images, TARGET)


def test_no_check_asks_for_no_more_than_the_gradients(monkeypatch):
    monkeypatch.setattr(runtime, "threads", lambda: 1)
    x = np.ones((3, 2))
    for tolerance, extra in ((None, 0), (0.05, 2)):
        model = Along(torch.exp)
        attribution.integrated_gradients(
            model, x, x * 0, [0] * 3, steps=4, batch_size=3, tolerance=tolerance
        )
        assert model.calls == [3] * (4 + extra)


@pytest.mark.parametrize("options", [{}, {"against": AGAINST}, {"log_probability": True}])
def test_gap_by_hand(options, net, images, baselines):
    maps = np.random.default_rng(5).normal(size=images.shape)
    ends = (torch.from_numpy(images), torch.from_numpy(baselines))
    with torch.no_grad():
        outputs = [net(x) for x in ends]
    if options.get("log_probability"):
        outputs = [out - out.exp().sum(1, keepdim=True).log() for out in outputs]
    due = [out.numpy()[np.arange(N), TARGET] for out in outputs]
    if "against" in options:
        due = [d - out.numpy()[np.arange(N), AGAINST] for d, out in zip(due, outputs, strict=True)]
    expected = maps.sum((1, 2, 3)) - (due[0] - due[1])
    for size in (2, 16):
        found = attribution.completeness_gap(
            net, images, baselines, TARGET, maps, batch_size=size, **options
        )
        assert_allclose(found, expected, atol=1e-12)
    single = {k: int(v[2]) if k == "against" else v for k, v in options.items()}
    one = attribution.completeness_gap(
        net, images[2], baselines[2], int(TARGET[2]), maps[2], **single
    )
    assert np.ndim(one) == 0
    assert one == pytest.approx(expected[2], abs=1e-12)


def test_gap_names_maps_that_do_not_fit(net, images):
    with pytest.raises(ValueError, match=r"attribution must have the shape of x, \(5, 2, 6, 8\)"):
        attribution.completeness_gap(net, images, images, TARGET, images.sum(1))


def test_sums_over_superpixels_are_checked_too():
    x, components = np.ones((1, 4)), Components(np.arange(4)[None] // 2)
    arguments = Along(steep), x, x * 0, components, 0
    (warning,) = said(limit.integrated_gradients_sums, *arguments)
    assert warning.category is attribution.CompletenessWarning
    assert not said(limit.integrated_gradients_sums, *arguments, tolerance=None)
    assert_array_equal(
        limit.integrated_gradients_sums(*arguments, tolerance=None),
        components.sums(
            attribution.integrated_gradients(Along(steep), x, x * 0, 0, tolerance=None)
        ),
    )
