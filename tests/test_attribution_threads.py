"""Attributions asked for from several threads at once, all of the same model."""

import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from torch import nn

from xaiutils import attribution

N = 3


@pytest.fixture
def net():
    layers = [nn.Conv2d(2, 8, 3, padding=1), nn.ReLU(inplace=True), nn.MaxPool2d(2)]
    layers += [nn.Conv2d(8, 6, 3, padding=1), nn.Tanh(), nn.Flatten(), nn.Linear(96, 4)]
    rng, model = np.random.default_rng(0), nn.Sequential(*layers).double().eval()
    for weight in model.parameters():
        weight.data = torch.from_numpy(rng.normal(size=weight.shape) / 3)
    return model


def jobs(net):
    """Calls without arguments: every method that hooks or copies the model, and others."""
    made = []
    for seed in range(3):
        rng = np.random.default_rng([1, seed])
        x, b, target = *rng.random((2, N, 2, 8, 8)), rng.integers(0, 4, N)
        one = {"batch_size": 1}
        made += [
            partial(attribution.gradient, net, x, target, **one),
            partial(attribution.gradcam, net, net[0], x, target, **one),
            partial(attribution.gradcam, net, net[3], x, target, batch_size=2),
            partial(attribution.gradcam, net, net[4], x, target, against=(target + 1) % 4),
            partial(attribution.integrated_gradients, net, x, b, target, steps=4, tolerance=None),
            partial(attribution.expected_gradients, net, x, b, target, n_samples=5),
            partial(attribution.deeplift, net, x, b, target, **one),
            partial(attribution.deepshap, net, x, b, target, batch_size=2),
            partial(attribution.occlusion, net, x, target, patch=4),
        ]
    return made


@pytest.fixture
def restless():
    """Threads change places as often as they can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def test_threads_find_what_one_call_after_the_other_finds(net, restless):
    calls = jobs(net)
    expected = [call() for call in calls]
    filters = list(warnings.filters)
    with ThreadPoolExecutor(6) as pool:
        for _ in range(2):
            waiting = [pool.submit(call) for call in calls]
            for future, wanted in zip(waiting, expected, strict=True):
                assert_allclose(future.result(), wanted, atol=1e-12)
    assert warnings.filters == filters
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in net.modules())


def test_gradcam_takes_nothing_from_another_pass_through_the_layer(net):
    """Within its own pass the model serves another thread, wholly."""
    x, other = np.random.default_rng(2).random((2, N, 2, 8, 8))
    expected = attribution.gradcam(net, net[0], x, [0, 1, 2])
    slopes = attribution.gradient(net, other, [0, 1, 2])
    found = []

    def meanwhile(*_):
        if torch.is_grad_enabled() and not found:  # not while the model is tried out
            found.append(None)
            with ThreadPoolExecutor(1) as pool:
                found[0] = pool.submit(attribution.gradient, net, other, [0, 1, 2]).result()

    net[2].register_forward_pre_hook(meanwhile)
    assert_allclose(attribution.gradcam(net, net[0], x, [0, 1, 2]), expected, atol=1e-12)
    assert_allclose(found[0], slopes, atol=1e-12)
