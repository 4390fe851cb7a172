"""Networks that have no single answer to an input are refused, all others are not."""

import copy
import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from networks import (
    BATCH,
    Around,
    Attention,
    Drifting,
    NotCopied,
    OneByOne,
    Recurrent,
    Shared,
    TwoHeads,
    X,
    around,
    by_torch,
    conv_net,
)
from numpy.testing import assert_array_equal
from torch import nn
from torchvision.models.convnext import CNBlockConfig, ConvNeXt

from xaiutils import attribution, deeplift, probe

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::torch.jit.TracerWarning")


def norm_net(**options):
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, **options), nn.Flatten())


def convnext():
    blocks = [CNBlockConfig(8, 16, 2), CNBlockConfig(16, None, 2)]
    return ConvNeXt(blocks, stochastic_depth_prob=0.01, layer_scale=1.0, num_classes=4)


def traced_in_training():
    network = nn.Sequential(nn.Dropout(0.5), conv_net()).train()
    return torch.jit.trace(network, BATCH, check_trace=False)


def deep(dtype):
    torch.manual_seed(0)
    layers = [
        nn.Sequential(nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU())
        for _ in range(12)
    ]
    ends = nn.Conv2d(3, 16, 1), nn.Sequential(nn.Flatten(), nn.Linear(16 * 64, 50))
    return nn.Sequential(ends[0], *layers, ends[1]).eval().to(dtype)


def only(network, part):
    """Network of which only this part is in training mode."""
    network.eval().get_submodule(part).train()
    return network


TRAINING = {
    "dropout": lambda: conv_net().train(),
    "a nested dropout": lambda: only(conv_net(), "3"),
    "batch norm": lambda: norm_net().train(),
    "stochastic depth": lambda: convnext().train(),
    "a nested stochastic depth": lambda: only(convnext(), "features.3.0.stochastic_depth"),
    "attention": lambda: Attention(0.1).train(),
    "LSTM": lambda: Recurrent(0.1).train(),
    "tracking instance norm": lambda: nn.InstanceNorm2d(3, track_running_stats=True).train(),
    "TorchScript dropout": lambda: torch.jit.script(
        nn.Sequential(nn.Dropout(), conv_net()).train()
    ),
    "TorchScript batch norm": lambda: torch.jit.script(norm_net().train()),
    "without a copy": lambda: NotCopied(torch.jit.script(norm_net().train())).train(),
    "with a copy that is shared": lambda: Shared(torch.jit.script(norm_net().train())).train(),
    "more outputs": lambda: TwoHeads().train(),
    "an error": lambda: nn.Sequential(nn.Flatten(), nn.BatchNorm1d(192)).train(),
}
RANDOM = {
    "functional dropout": lambda: around(lambda network, x: network(F.dropout(x))),
    "a rare one": lambda: around(lambda network, x: F.dropout(network(x), 0.01)),
    "traced dropout": traced_in_training,
    "far from zero": lambda: around(lambda network, x: 1e3 + 0.01 * network(F.dropout(x))),
    "numpy": lambda: around(lambda network, x: network(x) * np.random.default_rng().random()),
    "numpy's own": lambda: around(lambda network, x: network(x) * np.random.random()),  # noqa: NPY002
    "Python": lambda: around(lambda network, x: network(x) * random.random()),
    "one at a time": lambda: OneByOne(around(lambda network, x: network(F.dropout(x)))).eval(),
    "half precision": lambda: around(
        lambda network, x: F.dropout(network(x)), deep(torch.bfloat16)
    ),
    "state": lambda: Drifting().eval(),
}
MIXING = {
    "batch norm without statistics": lambda: norm_net(track_running_stats=False).eval(),
    "in half precision": lambda: norm_net(track_running_stats=False).eval().bfloat16(),
    "not copied": lambda: NotCopied(norm_net(track_running_stats=False)).eval(),
    "batch mean": lambda: around(lambda network, x: network(x - x.mean())),
    "softmax over the batch": lambda: around(lambda network, x: network(x).softmax(0)),
    "size of the batch": lambda: around(lambda network, x: network(x) / len(x)),
    "inputs before": lambda: around(lambda network, x: network(x).cumsum(0)),
    "LSTM over the batch": lambda: Recurrent(over_batch=True).eval(),
}
REFUSED = {
    **{
        f"training: {name}": (make, r"training mode; call model\.eval")
        for name, make in TRAINING.items()
    },
    **{f"random: {name}": (make, "same inputs differ") for name, make in RANDOM.items()},
    **{f"mixing: {name}": (make, "else is in the batch") for name, make in MIXING.items()},
}
ALLOWED = {
    "evaluation mode": conv_net,
    "containers in training mode": lambda: nn.Sequential(nn.ReLU(), nn.Flatten()).train(),
    "training mode without effect": lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten()).train(),
    "dropout of nothing": lambda: nn.Sequential(nn.Dropout(0.0), nn.Flatten()).train(),
    "instance norm": lambda: nn.InstanceNorm2d(3).train(),
    "stochastic depth": lambda: convnext().eval(),
    "attention": lambda: Attention(0.5).eval(),
    "LSTM": lambda: Recurrent(0.5).eval(),
    "in place": lambda: around(lambda network, x: network(x.mul_(2))),
    "large outputs": lambda: around(lambda network, x: network(x) * 1e6 + 1e9),
    "no outputs": lambda: around(lambda network, x: network(x) * 0),
    "NaN": lambda: around(lambda network, x: network(x) * float("nan")),
    "infinity": lambda: around(lambda network, x: network(x) / 0),
    "classes": lambda: around(lambda network, x: network(x).argmax(1, keepdim=True)),
    "float16": lambda: deep(torch.float16),
    "bfloat16": lambda: deep(torch.bfloat16),
    "float64": lambda: deep(torch.float64),
    "large in half precision": lambda: around(
        lambda network, x: network(x) * 100, deep(torch.half)
    ),
    "not copied": lambda: NotCopied(conv_net()),
    "shared": lambda: Shared(conv_net()),
    "TorchScript": lambda: torch.jit.script(conv_net()),
    "frozen TorchScript": lambda: torch.jit.freeze(torch.jit.script(conv_net())),
    "traced": lambda: torch.jit.trace(conv_net(), BATCH),
    "one at a time": lambda: OneByOne().eval(),
}


def random_states():
    of_numpy = np.random.get_state(legacy=False)  # noqa: NPY002
    return torch.get_rng_state().tolist(), str(of_numpy), random.getstate()


def snapshot(model):
    weights = [*model.parameters(), *model.buffers()]
    return (
        [(w.data_ptr(), w.detach().nan_to_num().tolist()) for w in weights],
        [getattr(part, "training", None) for part in model.modules()],
        [list(getattr(part, "_forward_hooks", ())) for part in model.modules()],
    )


@pytest.fixture(autouse=True)
def global_numbers():
    """A normal number of numpy's pair is left over, which a careless copy would lose."""
    np.random.standard_normal()  # noqa: NPY002


@pytest.mark.parametrize("name", REFUSED)
def test_networks_without_a_single_answer_are_refused_and_left_alone(name):
    make, reason = REFUSED[name]
    model = make()
    before = snapshot(model), random_states()
    with pytest.raises(ValueError, match=reason) as raised:
        probe.check(model, X)
    assert "\n" not in str(raised.value)
    assert (snapshot(model), random_states()) == before


@pytest.mark.parametrize("name", ALLOWED)
def test_all_other_networks_are_not_refused_and_left_alone(name, caplog):
    model = ALLOWED[name]()
    before = snapshot(model), random_states()
    found = probe.check(model, X)
    assert (snapshot(model), random_states()) == before
    assert found.single == ("takes batches of 1" if name == "one at a time" else None)
    assert probe.check(model, X) is found
    assert not [r for r in caplog.records if r.name == "xaiutils"]


@pytest.mark.parametrize("x", [np.zeros_like(X), np.full_like(X, 0.3), X.astype(float), X[::-1]])
def test_a_constant_input_does_not_hide_dropout(x):
    for model in (around(lambda network, x: F.dropout(x)), around(lambda n, x: x - x.mean())):
        with pytest.raises(ValueError, match="differ"):
            probe.check(model, x)


@pytest.mark.parametrize("dtype", [np.uint8, np.int64, bool, np.uint16, np.complex64])
def test_inputs_of_any_type_are_tried_with_their_own_values(dtype):
    x = (X > 0.5) if dtype is bool else (X * 9).astype(dtype)
    seen = set()

    def forward(_, batch):
        seen.update(batch.unique().tolist() if dtype != np.complex64 else [])
        return batch.abs().double().flatten(1) if batch.is_complex() else batch.double().flatten(1)

    probe.check(around(forward, nn.Flatten()), x)
    assert seen <= set(x.ravel().tolist())
    with pytest.raises(ValueError, match="else is in the batch"):
        probe.check(around(lambda network, x: forward(network, x).cumsum(0), nn.Flatten()), x)


def test_random_numbers_without_effect_are_said(caplog):
    model = around(lambda network, x: network(x + 0 * torch.rand(())))
    probe.check(model, X)
    assert "draws random numbers" in caplog.text


def test_a_network_that_knows_only_some_inputs_is_asked_about_copies():
    """It refuses shuffled values, not batches."""

    def forward(network, x):
        if not torch.equal(x[-1], torch.from_numpy(X)):
            raise ValueError("unknown input")
        return network(x)

    assert probe.check(around(forward), X).single is None
    with pytest.raises(ValueError, match="same inputs differ"):
        probe.check(around(lambda network, x: forward(network, x) + torch.rand(())), X)


def test_an_error_of_the_network_is_its_own():
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        probe.check(conv_net(), X[:, :7])


def test_the_layer_is_named():
    model = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(192, track_running_stats=False)).eval()
    with pytest.raises(ValueError, match="'1' is a BatchNorm1d without running statistics"):
        probe.check(model, X)


def test_one_by_one_what_mixes_inputs_is_allowed():
    model = norm_net(track_running_stats=False).eval()
    probe.check(model, X, batch_size=1)
    for size in (None, 2):
        with pytest.raises(ValueError, match="batch_size=1"):
            probe.check(model, X, size)
    probe.check(model, X, batch_size=1)
    with pytest.raises(ValueError, match="random numbers"):
        probe.check(around(lambda network, x: network(F.dropout(x))), X, batch_size=1)


# --- when it is asked -----------------------------------------------------------------------------


@pytest.fixture
def probes(monkeypatch):
    """Networks probed so far."""
    done, real = [], probe._probe

    def counted(model, *arguments, **options):
        done.append(model)
        return real(model, *arguments, **options)

    monkeypatch.setattr(probe, "_probe", counted)
    return done


class Settings(Around):
    """Keeps numbers of its own and two that it counts."""

    def __init__(self):
        super().__init__(lambda network, x: network(x))
        self.rate, self.options, self.calls, self.last = 0.0, {"deep": [1, "a"]}, 0, None
        self.register_buffer("asked", torch.zeros((), dtype=torch.long))

    def forward(self, x):
        self.calls += 1
        self.asked += len(x)
        self.last = super().forward(x)
        return self.last


def test_a_network_is_probed_until_it_changes(probes):
    model = Settings().eval()
    changes = [
        lambda: setattr(model, "rate", 0.5),
        lambda: model.options["deep"].append("b"),
        lambda: model.options.update(more=1),
        lambda: model.network[1].running_mean.add_(1),
        lambda: model.network[0].register_forward_hook(lambda *_: None),
        lambda: model.network[0].register_forward_pre_hook(lambda *_: None),
        lambda: setattr(model.network, "training", True),
        lambda: model.network.append(nn.Identity()),
    ]
    for i, change in enumerate(changes):
        for _ in range(2):
            probe.check(model, X)
            by_torch(model)  # counts
        assert len(probes) == i + 1
        change()
    probe.check(model, X)
    assert len(probes) == len(changes) + 1
    probe.check(model, X[:, ::-1].copy())
    assert len(probes) == len(changes) + 1
    probe.check(copy.deepcopy(model), X)
    assert len(probes) == len(changes) + 2


def test_gradients_are_guarded_once(probes):
    model, x = conv_net(), np.stack([X, X[::-1]])
    for method in (attribution.gradient, attribution.smoothgrad, attribution.input_x_gradient):
        method(model, x, [0, 1])
    deeplift.deeplift(model, x, np.zeros_like(X), [0, 1])
    deeplift.deeplift(model, x, np.zeros_like(X), [0, 1])
    assert probes == [model]


@pytest.mark.parametrize(
    "name", ["random: functional dropout", "training: LSTM", "mixing: batch mean"]
)
def test_gradients_of_networks_without_a_single_answer_are_refused(name):
    make, reason = REFUSED[name]
    model = make()
    with pytest.raises(ValueError, match=reason):
        attribution.gradient(model, X[None], [0])
    with pytest.raises(ValueError, match=reason):
        deeplift.deeplift(model, X[None], np.zeros_like(X), [0], batch_size=1)


def test_gradients_of_a_network_that_takes_one_input_at_a_time():
    x = np.stack([X, X[::-1]])
    found = attribution.gradient(OneByOne().eval(), x, [0, 1])
    expected = attribution.gradient(conv_net(), x, [0, 1], batch_size=1)
    assert_array_equal(found, expected)


# --- the comparison -------------------------------------------------------------------------------


def test_answers_differ_beyond_rounding():
    answer = np.array([[1e6, 1.0, np.nan], [2e6, 0.0, np.inf]], np.float32)
    assert not probe.differs(answer, answer)
    assert not probe.differs(answer * np.float32(1 + 1e-7), answer)
    for row, column, value in ((0, 0, 1.001e6), (1, 1, 10.0), (0, 2, 1.0), (1, 2, -np.inf)):
        other = answer.copy()
        other[row, column] = value
        assert probe.differs(other, answer) and probe.differs(answer, other)
    assert probe.differs(answer[:1], answer)
    assert probe.differs(np.array([1, 2]), np.array([1, 3]))
    assert not probe.differs(np.array([["a"]]), np.array([["a"]]))
