"""What only some values show: inputs that are mixed by their range, changes far from [0, 1]."""

import copy
import random

import numpy as np
import pytest
import torch
from networks import X, conv_net
from numpy.testing import assert_allclose
from torch import nn

from xaiutils import attribution, lime, perturb, probe
from xaiutils.perturb import Components, evaluate

pytestmark = pytest.mark.usefixtures("exports", "onnx_cache")

CELLS = Components(np.arange(64).reshape(8, 8) // 16)
MASKS = np.random.default_rng(0).random((20, 4)) < 0.5
MASKS[~MASKS.any(axis=1), 0] = True
WIDE = (6 * X - 3).astype(np.float32)


class Before(nn.Module):
    """`function(self, x)` goes to a network; `settings` are plain attributes."""

    def __init__(self, function, **settings):
        super().__init__()
        self.network, self.function = conv_net(), function
        for name, value in settings.items():
            setattr(self, name, value)

    def forward(self, x):
        return self.network(self.function(self, x))


def by_one(model, x, hidden=0.0):
    """Answers of a network to each masked input alone."""
    found = []
    for z in MASKS:
        image = np.where(z[CELLS.labels], x, np.float32(hidden))
        with torch.no_grad():
            found.append(model(torch.from_numpy(image)[None])[0].numpy())
    return np.array(found)


MIXING = {
    "smallest": lambda _, x: x - x.amin(),
    "largest": lambda _, x: x / x.amax(),
    "range": lambda _, x: (x - x.min()) / (x.max() - x.min()),
    "scale": lambda _, x: x / 255 if x.max() > 1 else x,
    "first": lambda _, x: x - x[:1],
    "first of all": lambda _, x: x + x[0],
    "last": lambda _, x: x - x[-1:],
}


@pytest.mark.parametrize("name", MIXING)
def test_networks_that_mix_inputs_by_their_values_are_refused(name):
    model = Before(MIXING[name]).eval()
    with pytest.raises(ValueError, match=r"differs by .* with what else is in the batch"):
        evaluate(model, 0.5 * X + 0.25, CELLS, MASKS, 0.0)
    with pytest.raises(ValueError, match=r"differs by .* with what else is in the batch"):
        attribution.gradient(model, np.stack([X, X / 2]), [0, 1])
    found = evaluate(model, X, CELLS, MASKS, 0.5, batch_size=1)
    assert_allclose(found, by_one(model, X, 0.5), atol=1e-5)


def test_mixing_that_only_hidden_parts_bring_about_is_seen_in_the_first_call():
    """One input that is dark enough makes all of a batch dark."""
    model = Before(lambda _, x: x * ((x == 0.011).sum(dim=(1, 2, 3)).max() < 100)).eval()
    with pytest.raises(ValueError, match="with what else is in the batch"):
        evaluate(model, X, CELLS, [[0, 0, 0, 1], [1, 1, 1, 1], [1, 1, 1, 0]], 0.011)


def test_the_first_call_asks_alone_once():
    asked = []
    model = Before(lambda _, x: x).eval()
    evaluate(model, X, CELLS, MASKS, 0.0)
    handle = model.network[0].register_forward_pre_hook(lambda _, x: asked.append(len(x[0])))
    evaluate(model, X, CELLS, MASKS, 0.0)  # a hook is a change: prepared anew
    asked.clear()
    evaluate(model, X, CELLS, MASKS, 0.0)
    assert asked and 1 not in asked
    handle.remove()


def change_number(model):
    model.floor = np.log(0.3)


def change_in_place(model):
    model.floor.fill_(-0.5)


def change_tensor(model):
    model.floor = torch.tensor(-0.1)


def change_array(model):
    model.floor[...] = -0.2


@pytest.mark.parametrize(
    ("floor", "change"),
    [
        (np.log(1e-5), change_number),
        (torch.tensor(-9.0), change_in_place),
        (torch.tensor(-9.0), change_tensor),
        (np.array(-9.0), change_array),
    ],
)
def test_settings_of_every_kind_are_watched(floor, change):
    model = Before(lambda self, x: x.clamp(min=float(self.floor)), floor=floor).eval()
    before = evaluate(model, WIDE, CELLS, MASKS, 0.0)
    change(model)
    after = evaluate(model, WIDE, CELLS, MASKS, 0.0)
    assert np.abs(after - before).max() > 1e-3
    assert_allclose(after, by_one(model, WIDE), atol=1e-4)


def test_weights_that_act_on_negative_values_alone_are_watched():
    model = nn.Sequential(nn.PReLU(init=0.1), conv_net()).eval()
    evaluate(model, WIDE, CELLS, MASKS, 0.0)
    model[0].weight.data.fill_(5.0)
    assert_allclose(evaluate(model, WIDE, CELLS, MASKS, 0.0), by_one(model, WIDE), atol=1e-4)


def test_answers_that_a_network_keeps_are_no_change():
    def keep(self, x):
        self.last = x * 2
        return x

    model = Before(keep, last=None).eval()
    evaluate(model, X, CELLS, MASKS, 0.0)
    seen = probe.check(model, X)
    evaluate(model, X, CELLS, MASKS, 0.0)
    assert probe.check(model, X) is seen


class Cap(nn.Module):
    """Differs from another of its class where values are large, in a setting or a buffer."""

    def __init__(self, cap, as_buffer):
        super().__init__()
        self.network = conv_net()
        if as_buffer:
            self.register_buffer("cap", torch.tensor(cap), persistent=False)
        else:
            self.cap = cap

    def forward(self, x):
        return self.network(x.clamp(max=self.cap))


@pytest.mark.parametrize("as_buffer", [False, True])
def test_networks_that_differ_beyond_the_input_have_exports_of_their_own(as_buffer):
    first, second = (Cap(cap, as_buffer).eval() for cap in (2.0, 4.0))
    for model in (first, second):
        evaluate(model, X, CELLS, MASKS, 0.0)
    assert_allclose(evaluate(second, 5 * X, CELLS, MASKS, 0.0), by_one(second, 5 * X), atol=1e-4)


def test_random_numbers_of_its_own_are_looked_for_longer():
    def flip(self, x):
        return x.flip(-1) * 1.5 if self.random.random() < 0.1 else x

    for seed in range(4):
        model = Before(flip, random=random.Random(seed)).eval()
        model.network[-1].weight.data *= 50
        with pytest.raises(ValueError, match="model's answer"):
            evaluate(model, X, CELLS, MASKS, 0.0)


def test_a_layer_that_sets_itself_up_is_refused_and_not_set_up():
    class Setting(nn.Module):
        def __init__(self):
            super().__init__()
            self.network, self.mean, self.done = conv_net(), nn.Parameter(torch.zeros(1)), False

        def forward(self, x):
            if not self.done:
                self.mean.data.fill_(x.mean())
                self.done = True
            return self.network(x - self.mean)

    model = Setting().eval()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match="changes its own weights or buffers when it is asked"):
        evaluate(model, X, CELLS, MASKS, 0.0)
    assert not model.done and all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    with torch.no_grad():
        model(torch.from_numpy(X)[None])
    assert_allclose(evaluate(model, X, CELLS, MASKS, 0.0), by_one(model, X), atol=1e-4)


@pytest.mark.parametrize("batch_size", [True, 0, 1.5])
def test_a_batch_size_is_a_number(batch_size):
    with pytest.raises(
        ValueError, match=f"batch_size must be a positive integer, got {batch_size}"
    ):
        evaluate(lambda b: b.mean((2, 3)), X, CELLS, MASKS, 0.0, batch_size=batch_size)
    with pytest.raises(ValueError, match="batch_size must be a positive integer"):
        attribution.gradient(conv_net(), X[None], [0], batch_size=batch_size)


def test_a_function_of_one_input_is_told_what_to_write():
    def colours(image):
        return np.einsum("chw->c", image)

    options = {"targets": 0, "filler": 0.0, "n_samples": 60}
    with pytest.raises(ValueError, match=r"takes one input without a batch axis: give lambda"):
        lime.explain(perturb.numpy_function(colours), X, CELLS, **options)
    one_by_one = perturb.numpy_function(lambda batch: np.stack([colours(one) for one in batch]))
    assert np.isfinite(lime.explain(one_by_one, X, CELLS, **options).coef).all()


def test_a_filler_may_write_to_what_it_gets():
    def darken(x, components, masks):
        x *= 0
        return x

    before = X.copy()
    evaluate(lambda b: b.mean((2, 3)), X, CELLS, MASKS, darken)
    assert np.array_equal(before, X)
    kept = evaluate(lambda b: b.mean((2, 3)), X, CELLS, [[1, 1, 1, 1]] * 3, darken)
    assert_allclose(kept, np.tile(X.mean((1, 2)), (3, 1)), rtol=1e-6)


@pytest.mark.parametrize("bad", [np.nan, 1j, np.ma.array(np.zeros((2, 3, 8, 8)), mask=True)])
def test_references_are_real_numbers(bad):
    references = bad if isinstance(bad, np.ma.MaskedArray) else np.full((2, 3, 8, 8), bad)
    message = "holds NaN|must hold real numbers|has masked values"
    with pytest.raises(ValueError, match=f"references ({message})"):
        attribution.expected_gradients(conv_net(), X[None], references, [0])
    with pytest.raises(ValueError, match=f"baselines ({message})"):
        attribution.deepshap(conv_net(), X[None], references, [0])
