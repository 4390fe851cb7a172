"""Modules that change after they were prepared, or end."""

import gc
import weakref

import numpy as np
import pytest
import torch
from networks import BATCH, Branches, X, by_torch, conv_net
from numpy.testing import assert_allclose, assert_array_equal

from xaiutils import perturb, runtime
from xaiutils.perturb import Components

pytestmark = pytest.mark.usefixtures("exports", "onnx_cache")


def change_in_place(model):
    with torch.no_grad():
        model[0].weight.mul_(2)


def change_buffer(model):
    model[1].running_mean.add_(1)


def load_state(model):
    model.load_state_dict(conv_net(1).state_dict())


def replace_parameter(model):
    model[5].bias = torch.nn.Parameter(torch.ones(10))


def replace_data(model):
    model[5].bias.data = torch.ones(10)


@pytest.mark.parametrize(
    "change", [change_in_place, change_buffer, load_state, replace_parameter, replace_data]
)
def test_changed_weights_are_noticed(change):
    model = conv_net()
    before = runtime.forward(model, X)(BATCH)
    change(model)
    after = runtime.forward(model, X)(BATCH)
    assert np.abs(after - before).max() > 1e-2
    assert_allclose(after, by_torch(model), atol=1e-4)


class Settings(torch.nn.Module):
    """Has settings of every kind that torch does not watch."""

    def __init__(self):
        super().__init__()
        self.inner, self.temperature, self.options = conv_net(), 1.0, {"scale": 1.0}
        self.mask, self.function = torch.ones(10), torch.tanh

    def forward(self, x):
        out = self.function(self.inner(x)) * self.mask
        return out / self.temperature * self.options["scale"]


def change_attribute(model):
    model.temperature = 10.0


def change_option(model):
    model.options["scale"] = -1.0


def change_mask(model):
    model.mask[3] = 0.0


def change_function(model):
    model.function = torch.sigmoid


def change_values(model):
    model.inner[5].weight.data[0] *= 1.01


def change_forward(model):
    model.forward = model.inner.forward


def add_hook(model):
    model.inner[2].register_forward_hook(lambda module, given, out: out * 0)


def add_pre_hook(model):
    model.inner[0].register_forward_pre_hook(lambda module, given: (given[0] / 2,))


def replace_layer(model):
    model.inner[2] = torch.nn.Identity()


@pytest.mark.parametrize(
    "change",
    [
        *(change_attribute, change_option, change_mask, change_function, change_values),
        *(change_forward, add_hook, add_pre_hook, replace_layer),
    ],
)
@pytest.mark.parametrize("elsewhere", [False, True], ids=["here", "a copy elsewhere"])
def test_changes_that_torch_does_not_count_are_noticed(change, elsewhere, monkeypatch):
    model, device = Settings().eval(), "auto"
    if elsewhere:  # a second name of the CPU
        monkeypatch.setattr(runtime, "pick_device", lambda _: torch.device("cpu", 0))
        device = "elsewhere"
    before = runtime.forward(model, X, device)(BATCH)
    change(model)
    after = runtime.forward(model, X, device)(BATCH)
    expected = by_torch(model)
    assert np.abs(before - expected).max() > 1e-3 * np.abs(expected).max()
    assert_allclose(after, expected, atol=1e-4)


def test_a_network_that_becomes_random_is_refused():
    model = Settings().eval()
    model.function = lambda out: torch.nn.functional.dropout(out, 0.5, model.options["on"])
    for module in (model, model.double()):  # with and without ONNX Runtime
        model.options["on"] = False
        runtime.forward(module, X)
        model.options["on"] = True
        with pytest.raises(ValueError, match="random numbers"):
            runtime.forward(module, X)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_size_of_batches_is_not_measured_again(dtype, monkeypatch):
    model, sizes = Settings().eval().to(dtype), iter([16, 64])
    monkeypatch.setattr(runtime, "_fastest", lambda *_: next(sizes))
    assert runtime.forward(model, X).batch_size == 16
    change_attribute(model)
    assert runtime.forward(model, X).batch_size == 16


def test_what_a_network_writes_down_itself_is_no_change():
    class Counter(Settings):
        calls = 0

        def forward(self, x):
            self.calls += 1
            return super().forward(x)

    model = Counter().eval()
    first = runtime.forward(model, X)
    calls = model.calls
    assert runtime.forward(model, X) is first
    assert first.backend == "onnxruntime"
    assert model.calls == calls + 1  # the input of noise


def test_random_numbers_are_as_if_it_had_not_been_asked():
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    model = conv_net()
    for _ in range(2):
        runtime.forward(model, X)
    assert_array_equal(torch.rand(3), expected)


@pytest.mark.parametrize("make", [conv_net, Branches, lambda: conv_net().double()])
def test_module_is_not_kept_alive(make, exports):
    model = make()
    perturb.evaluate(model, X, Components(np.arange(8)), np.eye(8))
    reference = weakref.ref(model)
    exports.clear()
    del model
    gc.collect()
    assert reference() is None


@pytest.mark.parametrize("layer", [1, 3], ids=["batch norm", "dropout"])
def test_training_mode_is_refused_where_it_matters(layer):
    model = conv_net()
    model[layer].train()
    with pytest.raises(ValueError, match=r"training mode.*eval\(\)"):
        perturb.evaluate(model, X, Components(np.arange(8)), np.eye(8))


def test_training_mode_without_such_layers_is_allowed():
    model = torch.nn.Sequential(torch.nn.Flatten()).train()
    assert_array_equal(runtime.forward(model, X)(BATCH), BATCH.flatten(1).numpy())
    assert model.training
