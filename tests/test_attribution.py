"""Attributions against loops over single inputs, closed forms, and what they refuse."""

import doctest
import importlib

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from scipy.stats import kstest
from torch import nn

from xaiutils import attribution, perturb, runtime, segment
from xaiutils.classifiers import imagenet
from xaiutils.data import datasets

N, SHAPE, CLASSES = 5, (2, 6, 8), 4
TARGET, AGAINST = np.array([0, 3, 1, 1, 2]), np.array([1, 0, 0, 3, 3])


class Net(nn.Module):
    """Smooth, double precision, trainable; `trunk` halves the resolution."""

    def __init__(self):
        super().__init__()
        self.trunk = nn.Conv2d(2, 3, 3, stride=2, padding=1)
        self.head = nn.Linear(3 * 3 * 4, CLASSES)
        rng = np.random.default_rng(7)
        for weight in self.parameters():
            weight.data = torch.from_numpy(rng.normal(size=weight.shape) / 2)

    def forward(self, x):
        return self.head(torch.tanh(self.trunk(x)).flatten(1))


class Flat(Net):
    def forward(self, x):
        return super().forward(x).flatten()


class Permuted(nn.Module):
    """The same outputs in another order: output k of `model` is output `order[k]` here."""

    def __init__(self, model, order):
        super().__init__()
        self.model, self.back = model, np.argsort(order)

    @property
    def trunk(self):
        return self.model.trunk

    def forward(self, x):
        return self.model(x)[:, self.back]


class LogProbabilities(Permuted):
    """Explicitly: logit minus the logarithm of the sum of exponentials."""

    def __init__(self, model):
        super().__init__(model, np.arange(CLASSES))

    def forward(self, x):
        logits = self.model(x)
        return logits - logits.exp().sum(1, keepdim=True).log()


class Power(nn.Module):
    """Output k is the sum of (k + 1) x^power."""

    def __init__(self, power):
        super().__init__()
        self.power = power

    def forward(self, x):
        total = (x**self.power).flatten(1).sum(1, keepdim=True)
        return total * torch.arange(1, CLASSES + 1).to(x)


class Recorder(nn.Module):
    """Passes on and keeps every batch it sees; in order, if the test is `in_turn`."""

    def __init__(self, model):
        super().__init__()
        self.model, self.seen = model, []

    def forward(self, x):
        self.seen.append(x.detach())
        return self.model(x)


def gradcam(model, x, target, **options):
    return attribution.gradcam(model, model.trunk, x, target, **options)


def integrated(model, x, target, **options):
    return attribution.integrated_gradients(model, x, np.full(SHAPE, 0.3), target, **options)


def expected(model, x, target, **options):
    references = np.random.default_rng(5).random((6, *SHAPE))
    options = {"n_samples": 5, **options}
    return attribution.expected_gradients(model, x, references, target, **options)


def occlusion(model, x, target, **options):
    return attribution.occlusion(model, x, target, patch=3, baseline=0.2, **options)


def smooth_mean(model, x, target, **options):
    return attribution.smoothgrad(model, x, target, n_samples=7, **options).mean


def smooth_square(model, x, target, **options):
    return attribution.smoothgrad(model, x, target, n_samples=7, **options).mean_square


LINEAR = [
    attribution.gradient,
    attribution.input_x_gradient,
    smooth_mean,
    integrated,
    expected,
    gradcam,
    occlusion,
]  # in the explained scalar
METHODS = [*LINEAR, smooth_square]


@pytest.fixture
def net():
    return Net()


@pytest.fixture
def images():
    return np.random.default_rng(1).random((N, *SHAPE))


@pytest.fixture
def in_turn(monkeypatch):
    """One batch at a time."""
    monkeypatch.setattr(runtime, "threads", lambda: 1)


def slope(model, x, target):
    """Gradient at one input, by a call of its own."""
    x = torch.as_tensor(x)[None].requires_grad_()
    return torch.autograd.grad(model(x)[0, target], x)[0][0].numpy()


# --- common to all --------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_batches_and_neighbours_do_not_matter(method, net, images):
    together = method(net, images, TARGET, batch_size=64)
    assert together.shape in ((N, *SHAPE), (N, *SHAPE[1:]))
    for size in (1, 4):
        assert_allclose(method(net, images, TARGET, batch_size=size), together, atol=1e-12)
    assert_allclose(method(net, images[:2], TARGET[:2]), together[:2], atol=1e-12)
    assert abs(together[2] - together[3]).max() > 1e-3  # same target, another image


def test_a_large_net_gives_the_same_bits_on_any_number_of_cores(monkeypatch):
    """With several threads at one convolution sums have another order, 1e-6 of the largest."""
    net, x = imagenet.load("efficientnet_lite0"), datasets.imagenet_samples().images[:3]
    last = [part for part in net.modules() if isinstance(part, nn.Conv2d)][-1]
    found = []
    for cores in (1, 2, 3):
        with runtime.one_thread():  # gives the number before it back
            torch.set_num_threads(cores)
            monkeypatch.setattr(runtime, "threads", lambda cores=cores: cores)
            slopes = attribution.gradient(net, x, TARGET[:3], batch_size=2)
            cam = attribution.gradcam(net, last, x, TARGET[:3], batch_size=2)
            found.append([slopes, cam, runtime.logits(net, x)])
    for more in found[1:]:
        for one, other in zip(found[0], more, strict=True):
            assert_array_equal(other, one)


@pytest.mark.parametrize("method", LINEAR)
def test_against_is_the_difference_of_two_attributions(method, net, images):
    difference = method(net, images, TARGET) - method(net, images, AGAINST)
    one_vs_one = method(net, torch.from_numpy(images), torch.from_numpy(TARGET), against=AGAINST)
    assert_allclose(one_vs_one, difference, atol=1e-12)
    assert abs(difference).max() > 1e-3


@pytest.mark.parametrize("method", LINEAR)
def test_order_of_the_classes_does_not_matter(method, net, images):
    order = np.array([2, 0, 3, 1])  # classes 0, as target and against, become others
    renamed = Permuted(net, order)
    expected = method(net, images, TARGET, against=AGAINST)
    found = method(renamed, images, order[TARGET], against=order[AGAINST])
    assert_allclose(found, expected, atol=1e-12)
    assert_allclose(method(renamed, images, order[TARGET]), method(net, images, TARGET), atol=1e-12)
    assert_allclose(method(net, images, AGAINST, against=TARGET), -expected, atol=1e-12)


@pytest.mark.parametrize("method", METHODS)
def test_log_probability_is_a_logit_of_the_normalised_model(method, net, images):
    found = method(net, images, TARGET, log_probability=True)
    assert_allclose(found, method(LogProbabilities(net), images, TARGET), atol=1e-12)
    assert abs(found - method(net, images, TARGET)).max() > 1e-3
    with pytest.raises(ValueError, match="against must be None with it"):
        method(net, images, TARGET, against=AGAINST, log_probability=True)


@pytest.mark.parametrize("method", METHODS)
def test_model_and_global_generators_are_left_alone(method, net, images):
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1]  # noqa: NPY002
    weights = [w.detach().clone() for w in net.parameters()]
    with torch.no_grad():
        method(net, images, TARGET)
    assert all(w.grad is None and w.requires_grad for w in net.parameters())
    assert all(torch.equal(w, old) for w, old in zip(net.parameters(), weights, strict=True))
    assert not net.trunk._forward_hooks
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert_array_equal(np.random.get_state()[1], numpy_state)  # noqa: NPY002


@pytest.mark.parametrize("method", [m for m in METHODS if m is not occlusion])
def test_gradients_have_the_precision_of_the_model(method, net, images):
    exact = method(net, images, TARGET)
    single = method(net.float(), images, TARGET)
    assert single.dtype == np.float32
    assert_allclose(single, exact, atol=1e-4)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("target", "against", "hint"),
    [
        (TARGET[:4], None, "target must hold 5 output indices"),
        (TARGET[:, None], None, r"target must hold 5 .*\(5, 1\)"),
        (TARGET + 0.0, None, "target must hold 5 .*float64"),
        (TARGET - 1, None, "target must hold 5 output indices >= 0"),
        (TARGET + 1, None, r"target must be within 0\.\.3: 4"),
        (TARGET, AGAINST[:4], "against must hold 5"),
        (TARGET, AGAINST + 1, r"against must be within 0\.\.3: 4"),
    ],
)
def test_bad_targets_are_named(method, target, against, hint, net, images):
    with pytest.raises(ValueError, match=hint):
        method(net, images, target, against=against)


@pytest.mark.parametrize("method", METHODS)
def test_bad_models_and_sizes_are_named(method, net, images):
    with pytest.raises(ValueError, match="batch_size must be a positive integer, got 0"):
        method(net, images, TARGET, batch_size=0)
    with pytest.raises(ValueError, match=r"model must return \(batch, outputs\), got \(\d+,\)"):
        method(Flat(), images, TARGET)
    net.drop = nn.Dropout()
    with pytest.raises(ValueError, match="training mode"):
        method(net, images, TARGET)


@pytest.mark.parametrize("method", METHODS)
def test_inputs_without_images_are_named(method, net):
    with pytest.raises(ValueError, match=r"x must be a batch \(n, \.\.\.\).*\(0, 2, 6, 8\)"):
        method(net, np.empty((0, *SHAPE)), np.empty(0, int))


@pytest.mark.parametrize("method", [gradcam, occlusion])
def test_maps_of_pixels_need_images(method, net):
    with pytest.raises(ValueError, match=r"x must be images \(n, C, H, W\), got shape \(5, 6\)"):
        method(net, np.zeros((N, 6)), TARGET)


@pytest.mark.parametrize("name", ["attribution", "deeplift", "gradcam", "integrated"])
def test_examples_in_docstrings(name):
    found = doctest.testmod(importlib.import_module(f"xaiutils.{name}"))
    assert found.attempted > 2
    assert found.failed == 0


# --- gradients ------------------------------------------------------------------------------------


def test_gradient_is_that_of_each_image_alone(net, images):
    expected = [slope(net, x, t) for x, t in zip(images, TARGET, strict=True)]
    assert_allclose(attribution.gradient(net, images, TARGET, batch_size=2), expected, atol=1e-12)


def test_gradient_of_the_log_probability_by_finite_differences(net, images):
    found = attribution.gradient(net, images[:1], TARGET[:1], log_probability=True)[0]

    def log_softmax(x):
        with torch.no_grad():
            scores = np.exp(net(torch.from_numpy(x[None])).numpy()[0])
        return np.log(scores[TARGET[0]] / scores.sum())

    for at in np.ndindex(SHAPE):
        step = np.zeros(SHAPE)
        step[at] = 1e-5
        rise = log_softmax(images[0] + step) - log_softmax(images[0] - step)
        assert found[at] == pytest.approx(rise / 2e-5, abs=1e-8)


def test_input_x_gradient_with_the_mean_as_baseline_is_that_of_normalised_images(net, images):
    mean, std = np.array([0.4, 0.6])[:, None, None], np.array([0.2, 0.3])[:, None, None]

    class Normalised(nn.Module):
        def forward(self, x):
            return net((x - torch.from_numpy(mean)) / torch.from_numpy(std))

    ours = attribution.input_x_gradient(Normalised(), images, TARGET, baseline=mean)
    normalised = (images - mean) / std
    assert_allclose(ours, normalised * attribution.gradient(net, normalised, TARGET), atol=1e-12)
    assert_allclose(
        attribution.input_x_gradient(net, images, TARGET),
        images * attribution.gradient(net, images, TARGET),
    )


def test_input_x_gradient_names_a_baseline_that_does_not_fit(net, images):
    with pytest.raises(ValueError, match=r"baseline of shape \(2,\) does not broadcast"):
        attribution.input_x_gradient(net, images, TARGET, baseline=np.zeros(2))


# --- SmoothGrad -----------------------------------------------------------------------------------


def test_smoothgrad_is_a_loop_over_the_noisy_copies(net, images, in_turn):
    recorder = Recorder(net)
    found = attribution.smoothgrad(recorder, images, TARGET, n_samples=3, batch_size=4)
    copies = torch.cat(recorder.seen).unflatten(0, (N, 3))
    for i, t in enumerate(TARGET):
        slopes = np.array([slope(net, copy, t) for copy in copies[i]])
        assert_allclose(found.mean[i], slopes.mean(0), atol=1e-12)
        assert_allclose(found.mean_square[i], (slopes**2).mean(0), atol=1e-12)


def test_smoothgrad_noise_is_normal_of_a_share_of_each_range(in_turn):
    rng = np.random.default_rng(2)
    x = rng.random((2, 3, 20, 20)) * np.array([1, 5]).reshape(2, 1, 1, 1)
    x[:, 2] += 4  # the range is over all channels, not within each
    recorder = Recorder(Power(1))
    attribution.smoothgrad(recorder, x, [0, 0], n_samples=40, spread=0.2)
    noise = torch.cat(recorder.seen).unflatten(0, (2, 40)).numpy() - x[:, None]
    sigma = 0.2 * (x.max((1, 2, 3)) - x.min((1, 2, 3)))
    noise /= sigma.reshape(2, 1, 1, 1, 1)
    # 48,000 values per image: the standard errors of mean, deviation and kurtosis are below these.
    assert_allclose(noise.mean((1, 2, 3, 4)), 0, atol=0.02)
    assert_allclose(noise.std((1, 2, 3, 4)), 1, atol=0.02)
    assert_allclose((noise**4).mean((1, 2, 3, 4)), 3, atol=0.2)
    flat = noise.reshape(80, -1)
    assert abs(np.corrcoef(flat) - np.eye(80)).max() < 0.15  # no copy repeats another


def test_smoothgrad_without_noise_is_the_gradient(net, images):
    plain = attribution.gradient(net, images, TARGET)
    found = attribution.smoothgrad(net, images, TARGET, n_samples=3, spread=0)
    assert_allclose(found.mean, plain, atol=1e-12)
    assert_allclose(found.mean_square, plain**2, atol=1e-12)


def test_smoothgrad_seed_decides_the_noise(net, images):
    first, again, other = (
        attribution.smoothgrad(net, images, TARGET, n_samples=2, seed=seed) for seed in (0, 0, 1)
    )
    assert_array_equal(first.mean, again.mean)
    assert abs(first.mean - other.mean).max() > 1e-3


@pytest.mark.parametrize("options", [{"n_samples": 0}, {"spread": -0.1}, {"spread": np.nan}])
def test_smoothgrad_names_bad_settings(options, net, images):
    with pytest.raises(ValueError, match="n_samples must be at least 1 and spread at least 0"):
        attribution.smoothgrad(net, images, TARGET, **options)


# --- baselines ------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["input_x_gradient", "integrated_gradients"])
def test_baselines_may_come_straight_from_a_network(method, net, images):
    made = torch.full(images.shape, 0.3, requires_grad=True) * 1
    options = {"x": images, "target": TARGET}
    found = getattr(attribution, method)(net, baseline=made, **options)
    assert_allclose(found, getattr(attribution, method)(net, baseline=made.detach(), **options))


# --- expected gradients ---------------------------------------------------------------------------


def draws_of(n, m, n_samples, **options):
    """Which reference each sample drew and how far along it lies, both (n, n_samples).

    From x = 0 towards the j-th unit vector, a point is (1 - a) times that vector.
    """
    recorder = Recorder(Power(1))
    attribution.expected_gradients(
        recorder, np.zeros((n, m)), np.eye(m), [0] * n, n_samples=n_samples, **options
    )
    points = torch.cat(recorder.seen).unflatten(0, (n, n_samples)).numpy()
    return points.argmax(2), 1 - points.max(2)


def test_expected_gradients_draw_uniformly(in_turn):
    n, m, n_samples = 3, 4, 2000
    chosen, along = draws_of(n, m, n_samples, batch_size=64)
    for i in range(n):
        counts = np.bincount(chosen[i], minlength=m)
        assert abs(counts - n_samples / m).max() < 5 * np.sqrt(n_samples / m)
        assert kstest(along[i], "uniform").pvalue > 1e-3
        assert abs(np.corrcoef(chosen[i], along[i])[0, 1]) < 0.1
    assert abs(np.corrcoef(along) - np.eye(n)).max() < 0.1  # images draw on their own


def test_expected_gradients_are_a_loop_over_the_draws(net, images, in_turn):
    n_samples = 4
    references = np.random.default_rng(6).random((3, *SHAPE))
    chosen, along = draws_of(N, len(references), n_samples, seed=9)
    found = attribution.expected_gradients(
        net, images, references, TARGET, n_samples=n_samples, seed=9, batch_size=3
    )
    for i, (x, t) in enumerate(zip(images, TARGET, strict=True)):
        parts = [
            (x - references[j]) * slope(net, references[j] + a * (x - references[j]), t)
            for j, a in zip(chosen[i], along[i], strict=True)
        ]
        assert_allclose(found[i], np.mean(parts, 0), atol=1e-12)


def test_expected_gradients_of_one_reference_converge_to_integrated_gradients(net, images):
    n_samples, baseline = 1000, np.random.default_rng(3).random(SHAPE)
    path = (np.arange(50) + 0.5) / 50
    along = np.array(
        [
            (images - baseline)
            * attribution.gradient(net, baseline + a * (images - baseline), TARGET)
            for a in path
        ]
    )
    exact = attribution.integrated_gradients(net, images, baseline, TARGET, steps=200)
    found = attribution.expected_gradients(net, images, baseline[None], TARGET, n_samples=n_samples)
    standard_error = along.std(0) / np.sqrt(n_samples)
    assert (abs(found - exact) < 5 * standard_error + 1e-5).all()
    assert 0.5 < np.sqrt(np.mean((found - exact) ** 2 / standard_error**2)) < 2


def test_expected_gradients_draw_only_candidates(net, images):
    references = np.random.default_rng(6).random((6, *SHAPE))
    own = np.array([4, 1])
    others = references + 10  # no image of this kind
    others[own] = references[own]
    found = attribution.expected_gradients(
        net, images, others, TARGET, candidates=[own] * N, n_samples=20
    )
    alone = attribution.expected_gradients(net, images, references[own], TARGET, n_samples=20)
    assert_array_equal(found, alone)
    # Each input has candidates of its own.
    mixed = [own] * (N - 1) + [[2]]
    found = attribution.expected_gradients(
        net, images, others, TARGET, candidates=mixed, n_samples=20
    )
    assert_array_equal(found[:-1], alone[:-1])
    assert abs(found[-1] - alone[-1]).max() > 1e-3


def test_expected_gradients_seed_decides_the_draws(net, images):
    first, again, other = (expected(net, images, TARGET, seed=seed) for seed in (0, 0, 1))
    assert_array_equal(first, again)
    assert abs(first - other).max() > 1e-3


@pytest.mark.parametrize(
    "candidates", [[[0]] * 4, [[]] * 5, [[6]] * 5, [[-1]] * 5, [[0.0]] * 5, [[True]] * 5, [0] * 5]
)
def test_expected_gradients_name_bad_candidates(candidates, net, images):
    with pytest.raises(ValueError, match=r"candidates must hold 5 arrays .* in 0\.\.5"):
        expected(net, images, TARGET, candidates=candidates)


def test_expected_gradients_name_what_does_not_fit(net, images):
    with pytest.raises(ValueError, match="n_samples must be at least 1, got 0"):
        expected(net, images, TARGET, n_samples=0)
    for wrong in (images[0], images[:0], images[:, :1]):
        with pytest.raises(ValueError, match=r"references must be \(m, \*shape\) .*\(2, 6, 8\)"):
            attribution.expected_gradients(net, images, wrong, TARGET)


# --- occlusion ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["number", "one filler", "one per image"])
@pytest.mark.parametrize(("patch", "grid"), [(1, (6, 8)), (3, (2, 3)), (8, (1, 1))])
def test_occlusion_is_a_loop_over_patches(patch, grid, kind, net, images):
    fillers = np.random.default_rng(4).random(images.shape)
    baseline = {"number": 0.7, "one filler": fillers[0], "one per image": fillers}[kind]
    found = attribution.occlusion(net, images, TARGET, patch=patch, baseline=baseline)
    labels = segment.grid(SHAPE[1:], *grid)
    with torch.no_grad():
        for i, t in enumerate(TARGET):
            full = net(torch.from_numpy(images[i : i + 1]))[0, t].item()
            filler = np.broadcast_to(baseline, images.shape)[i]
            for cell in range(labels.max() + 1):
                hidden = np.where(labels == cell, filler, images[i])
                score = full - net(torch.from_numpy(hidden[None]))[0, t].item()
                assert_allclose(found[i][labels == cell], score, atol=1e-12)


def test_occlusion_asks_only_about_patches_that_the_filler_changes(net, images, monkeypatch):
    asked, evaluate = [], perturb.evaluate

    def spy(model, x, components, masks, *rest, **options):
        asked.append(masks)
        return evaluate(model, x, components, masks, *rest, **options)

    fillers = np.random.default_rng(4).random(images.shape)
    whole = attribution.occlusion(net, images, TARGET, patch=2, baseline=fillers)
    monkeypatch.setattr(perturb, "evaluate", spy)
    fillers[:, :, :4] = images[:, :, :4]
    fillers[1] = images[1]
    found = attribution.occlusion(net, images, TARGET, patch=2, baseline=fillers)
    assert [len(masks) for masks in asked] == [1 + 4 * (i != 1) for i in range(len(images))]
    assert all(masks[-1].all() and (masks[:-1].sum(1) == 11).all() for masks in asked)
    assert not found[:, :4].any() and not found[1].any()
    changed = np.arange(len(images)) != 1
    assert_allclose(found[changed, 4:], whole[changed, 4:], rtol=1e-12)


def test_occlusion_takes_every_filler_of_the_engine(net, images):
    seen = []

    def zero(x, components, masks):
        seen.append((~masks).sum(1))
        return np.zeros((len(masks), *x.shape))

    options = {"patch": 4, "batch_size": 5}
    mean = attribution.occlusion(net, images, TARGET, baseline="mean", **options)
    black = attribution.occlusion(net, images, TARGET, **options)
    called = attribution.occlusion(net, images, TARGET, baseline=zero, **options)
    assert_allclose(called, black, atol=1e-12)
    assert abs(mean - black).max() > 1e-3
    assert set(np.concatenate(seen)) == {0, 1}  # one patch at a time


def test_occlusion_names_what_does_not_fit(net, images):
    for patch in (0, 9):
        with pytest.raises(ValueError, match=rf"patch must be within 1\.\.8 pixels, got {patch}"):
            attribution.occlusion(net, images, TARGET, patch=patch)
    with pytest.raises(ValueError, match=r"baseline with one entry per image.*\(4, 2, 6, 8\)"):
        attribution.occlusion(net, images, TARGET, patch=2, baseline=images[1:])


# --- reduction ------------------------------------------------------------------------------------


def test_reduce_sums_channels_signed_or_absolute():
    values = np.array([[[[1.0, -2.0]], [[-3.0, -4.0]]]])  # (1, 2, 1, 2)
    assert_array_equal(attribution.reduce(values, "sum"), [[[-2, -6]]])
    assert_array_equal(attribution.reduce(values, "abs_sum"), [[[4, 6]]])
    assert_array_equal(attribution.reduce(values[0], "sum"), [[-2, -6]])
    with pytest.raises(ValueError, match='"sum" or "abs_sum", got \'max\''):
        attribution.reduce(values, "max")
