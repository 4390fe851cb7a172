"""DeepLIFT against a forward propagation of multipliers, closed forms and completeness."""

import copy
import warnings

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from torch import nn

from xaiutils import attribution, deeplift

N, SHAPE, CLASSES = 5, (2, 8, 8), 4
TARGET, AGAINST = np.array([0, 3, 1, 1, 2]), np.array([1, 0, 0, 3, 3])


def network(*layers, seed=7):
    """Layers with weights of their own generator, in double precision."""
    model, rng = nn.Sequential(*layers).double().eval(), np.random.default_rng(seed)
    for weight in model.parameters():
        weight.data = torch.from_numpy(rng.normal(size=weight.shape) / 2)
    return model


@pytest.fixture
def net():
    return network(
        nn.Conv2d(2, 4, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        nn.Conv2d(4, 4, 3, padding=1),
        nn.LeakyReLU(),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(16, 6),
        nn.Tanh(),
        nn.Dropout(),
        nn.Linear(6, CLASSES),
    )


@pytest.fixture
def images():
    return np.random.default_rng(1).random((N, *SHAPE))


@pytest.fixture
def baselines(images):
    """Random ones that share half of the pixels with the images, as edited images do."""
    rng = np.random.default_rng(2)
    return np.where(rng.random(images.shape) < 0.5, images, rng.random(images.shape))


def difference(model, x, baseline, target, against=None):
    with torch.no_grad():
        change = (model(torch.from_numpy(x)) - model(torch.from_numpy(baseline))).numpy()
    rows = np.arange(len(x))
    return change[rows, target] - (0 if against is None else change[rows, against])


# --- oracles --------------------------------------------------------------------------------------


@pytest.mark.parametrize("against", [None, AGAINST])
def test_linear_model_makes_all_methods_equal(against, images, baselines):
    model = network(nn.Flatten(), nn.Linear(128, CLASSES))
    weights = model[1].weight.detach().numpy().reshape(CLASSES, *SHAPE)
    slope = weights[TARGET] - (0 if against is None else weights[against])
    expected = slope * (images - baselines)
    options = {"target": TARGET, "against": against}
    for method in (attribution.deeplift, attribution.integrated_gradients):
        assert_allclose(method(model, images, baselines, **options), expected, atol=1e-12)
    own = attribution.expected_gradients(
        model, images, baselines, candidates=np.arange(N)[:, None], n_samples=3, **options
    )
    assert_allclose(own, expected, atol=1e-12)
    hidden = attribution.occlusion(model, images, patch=1, baseline=baselines, **options)
    assert_allclose(hidden, attribution.reduce(expected, "sum"), atol=1e-12)


def test_rescale_rule_by_hand():
    rng = np.random.default_rng(3)
    model = network(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 6), nn.ReLU(), nn.Linear(6, CLASSES))
    x, baseline = rng.normal(size=(20, 5)), rng.normal(size=(20, 5))
    target, against = rng.integers(0, 2, 20), rng.integers(2, 4, 20)
    found = deeplift.deeplift(model, x, baseline, target)
    versus = deeplift.deeplift(model, x, baseline, target, against=against)
    weights = [w.detach().numpy() for w in model.parameters()]
    crossed = 0
    for i in range(len(x)):
        at, ref, shares = x[i], baseline[i], np.diag(x[i] - baseline[i])
        for w, c in zip(weights[:4:2], weights[1:4:2], strict=True):
            at, ref, shares = w @ at + c, w @ ref + c, w @ shares  # inputs' shares of each unit
            crossed += ((at > 0) != (ref > 0)).sum()
            multipliers = (np.maximum(at, 0) - np.maximum(ref, 0)) / (at - ref)
            at, ref, shares = np.maximum(at, 0), np.maximum(ref, 0), multipliers[:, None] * shares
        shares = weights[4] @ shares
        assert_allclose(found[i], shares[target[i]], atol=1e-10)
        assert_allclose(versus[i], shares[target[i]] - shares[against[i]], atol=1e-10)
    assert crossed > 50  # else the gradient would do


@pytest.mark.parametrize("target", [TARGET, np.zeros(N, int), np.full(N, 3)])
@pytest.mark.parametrize("against", [None, AGAINST, np.zeros(N, int), np.full(N, 2)])
def test_deeplift_is_complete(target, against, net, images, baselines):
    wanted = difference(net, images, baselines, target, against)
    maps = deeplift.deeplift(net, images, baselines, target, against=against)
    assert maps.shape == images.shape
    assert_allclose(maps.sum((1, 2, 3)), wanted, atol=1e-10)
    single = deeplift.deeplift(net.float(), images, baselines, target, against=against)
    assert single.dtype == np.float32
    assert_allclose(single.sum((1, 2, 3)), wanted, atol=1e-4)


def test_class_0_is_a_class_as_any_other(net, images, baselines):
    order = np.array([3, 0, 1, 2])
    renamed = copy.deepcopy(net)
    for weight in renamed[-1].parameters():
        weight.data = weight.data[np.argsort(order)]
    zero, one = np.zeros(N, int), np.ones(N, int)
    for target, against in [(zero, None), (zero, one), (one, zero)]:
        expected = deeplift.deeplift(net, images, baselines, target, against=against)
        versus = None if against is None else order[against]
        found = deeplift.deeplift(renamed, images, baselines, order[target], against=versus)
        assert_allclose(found, expected, atol=1e-12)
        assert abs(expected).max() > 1e-3


def test_exchanged_classes_change_the_sign_and_differences_are_differences(net, images, baselines):
    one_vs_one = deeplift.deeplift(net, images, baselines, TARGET, against=AGAINST)
    other_way = deeplift.deeplift(net, images, baselines, AGAINST, against=TARGET)
    assert_allclose(one_vs_one, -other_way, atol=1e-12)
    target, against = (deeplift.deeplift(net, images, baselines, c) for c in (TARGET, AGAINST))
    assert_allclose(one_vs_one, target - against, atol=1e-12)
    assert abs(one_vs_one - target).max() > 1e-3


def test_input_as_its_own_baseline_gives_zeros(net, images):
    assert_array_equal(deeplift.deeplift(net, images, images, TARGET, against=AGAINST), 0)


# --- baselines and batches ------------------------------------------------------------------------


def test_one_baseline_is_shared_by_the_batch(net, images, baselines):
    shared = deeplift.deeplift(net, images, torch.from_numpy(baselines[1]), TARGET)
    each = deeplift.deeplift(net, images, baselines[[1] * N], TARGET)
    assert_allclose(shared, each, atol=1e-12)
    assert abs(shared - deeplift.deeplift(net, images, baselines, TARGET)).max() > 1e-3


def test_deepshap_is_the_mean_over_baselines(net, images, baselines):
    rng = np.random.default_rng(4)
    own = np.stack([baselines, *rng.random((2, *images.shape))], axis=1)  # (N, 3, *SHAPE)
    options = {"target": TARGET, "against": AGAINST}
    each = [deeplift.deeplift(net, images, own[:, k], **options) for k in range(3)]
    assert_allclose(attribution.deepshap(net, images, own, **options), np.mean(each, 0), atol=1e-12)
    shared = [deeplift.deeplift(net, images, b, **options) for b in own[0]]
    found = attribution.deepshap(net, images, own[0], **options)
    assert_allclose(found, np.mean(shared, 0), atol=1e-12)
    single = attribution.deepshap(net.float(), images, own[:, :1], **options)
    assert_allclose(single, each[0], atol=1e-5)


def test_batches_and_neighbours_do_not_matter(net, images, baselines):
    own = np.stack([baselines, np.zeros_like(images), images], axis=1)
    together = deeplift.deepshap(net, images, own, TARGET, batch_size=64)
    for size in (1, 4):
        found = deeplift.deepshap(net, images, own, TARGET, batch_size=size)
        assert_allclose(found, together, atol=1e-12)
    assert_allclose(deeplift.deepshap(net, images[2:], own[2:], TARGET[2:]), together[2:])


def test_baselines_may_come_straight_from_a_network(net, images, baselines):
    made = torch.from_numpy(baselines).requires_grad_() * 1
    expected = deeplift.deeplift(net, images, baselines, TARGET)
    assert_allclose(deeplift.deeplift(net, images, made, TARGET), expected)
    assert_allclose(deeplift.deepshap(net, images, made[:, None], TARGET), expected)


# --- the model is left alone ----------------------------------------------------------------------


def state_of(model):
    """All that a call could leave behind, except for weights."""
    hooks = [
        len(value) for part in model.modules() for k, value in vars(part).items() if "hooks" in k
    ]
    names = [sorted(vars(part)) for part in model.modules()]
    flags = [weight.requires_grad for weight in model.parameters()]
    return hooks, names, flags, [part.training for part in model.modules()]


class Twice(nn.Module):
    """Calls one ReLU twice."""

    def __init__(self):
        super().__init__()
        self.one, self.two = (network(nn.Linear(3, 3), seed=seed) for seed in (1, 2))
        self.relu = nn.ReLU()

    def forward(self, x):
        return self.relu(self.two(self.relu(self.one(x))))


@pytest.mark.parametrize("frozen", ["nothing", "first layer", "all"])
def test_model_and_global_generator_are_left_alone(frozen, net, images, baselines):
    for weight in {"nothing": nn.Identity(), "first layer": net[0], "all": net}[
        frozen
    ].parameters():
        weight.requires_grad_(False)
    net[3].weight.grad = torch.ones_like(net[3].weight)
    before, weights = state_of(net), [w.detach().clone() for w in net.parameters()]
    random = torch.get_rng_state()
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("error")
        deeplift.deeplift(net, images, baselines, TARGET)
        with pytest.raises(ValueError, match="target must be within"):
            deeplift.deeplift(net, images, baselines, TARGET + 1)
    assert state_of(net) == before
    assert all(torch.equal(w, old) for w, old in zip(net.parameters(), weights, strict=True))
    assert (net[3].weight.grad == 1).all()
    assert all(w.grad is None for w in net.parameters() if w is not net[3].weight)
    assert torch.equal(torch.get_rng_state(), random)


def test_nonlinearities_called_twice_are_refused_and_leave_nothing():
    model, x = Twice(), np.random.default_rng(5).normal(size=(4, 3))
    before = state_of(model)
    with pytest.raises(RuntimeError, match=r"module 'relu' \(ReLU\) is used more than once"):
        deeplift.deeplift(model, x, x[::-1].copy(), [0] * 4)
    assert state_of(model) == before


# --- refusals -------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", [deeplift.deeplift, deeplift.deepshap])
def test_bad_arguments_are_named(method, net, images, baselines):
    with pytest.raises(ValueError, match="log_probability must be False for DeepLIFT"):
        method(net, images, baselines, TARGET, log_probability=True)
    with pytest.raises(ValueError, match="batch_size must be a positive integer, got 0"):
        method(net, images, baselines, TARGET, batch_size=0)
    with pytest.raises(ValueError, match=r"against must be within 0\.\.3: 4"):
        method(net, images, baselines, TARGET, against=AGAINST + 1)
    with pytest.raises(ValueError, match="training mode"):
        method(net.train(), images, baselines, TARGET)


def test_baselines_that_do_not_fit_are_named(net, images, baselines):
    for wrong in (baselines[1:], baselines[:, :1], baselines[0, 0], 0.0):
        with pytest.raises(ValueError, match=r"baseline must have the shape of x, \(5, 2, 8, 8\)"):
            deeplift.deeplift(net, images, wrong, TARGET)
    for wrong in (baselines[:0], baselines[:, :1], baselines[1:, None], baselines[0], 0.0):
        with pytest.raises(ValueError, match=r"baselines must be .*n = 5, shape = \(2, 8, 8\)"):
            deeplift.deepshap(net, images, wrong, TARGET)
    with pytest.raises(ValueError, match="m at least 1"):
        deeplift.deepshap(net, images, baselines[:, None][:, :0], TARGET)
