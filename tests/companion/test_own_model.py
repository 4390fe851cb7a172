"""A reader's own model: found, made, asked, and its outputs read for what they are."""

import numpy as np
import pytest
import torch

from xaiutils.companion import own_model

SOURCE = """
import torch

def untrained(width=3):
    net = torch.nn.Linear(12, width)
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Dropout(0.5), net)

class Plain(torch.nn.Module):
    def forward(self, x):
        return x.mean((2, 3))

def needs(x):
    return x.mean((2, 3))

net = Plain().train()
number = 3

def none():
    return None

def broken():
    raise RuntimeError("no weights\\nhere")

class space:
    inner = net
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The current folder, with the module `reader_nets`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [p for p in __import__("sys").path if p])
    (tmp_path / "reader_nets.py").write_text(SOURCE)
    (tmp_path / "reader_bad.py").write_text("import no_such_thing\n")
    (tmp_path / "reader_exits.py").write_text("raise SystemExit(0)\n")
    yield tmp_path
    for name in ("reader_nets", "reader_bad", "reader_exits"):
        __import__("sys").modules.pop(name, None)


def test_a_module_a_class_a_maker_and_a_function_are_models(folder):
    net = own_model.load("reader_nets:net")
    assert not net.training
    made = own_model.load("reader_nets:untrained")
    assert isinstance(made, torch.nn.Sequential) and not made[1].training
    assert type(own_model.load("reader_nets:Plain")).__name__ == "Plain"
    assert own_model.load("reader_nets.py:space.inner") is net
    x = torch.rand(2, 3, 2, 2)
    torch.testing.assert_close(own_model.load("reader_nets:needs")(x), net(x))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("reader_nets", "must be MODULE:NAME"),
        (":net", "must be MODULE:NAME"),
        ("reader_nots:net", "no module 'reader_nots' in this folder or installed"),
        ("reader_nets:nett", r"reader_nets has no 'nett'; did you mean net\?"),
        ("reader_nets:number", "is of type int; it must be"),
        ("reader_nets:none", "is of type NoneType; it must be"),
        ("reader_nets:broken", r"broken\(\) raised RuntimeError: no weights here"),
        ("reader_bad:net", "importing reader_bad raised ModuleNotFoundError: .*no_such_thing"),
        ("reader_exits:net", "importing reader_exits raised SystemExit"),
    ],
)
def test_what_is_no_model_is_named_in_one_line(folder, name, message):
    with pytest.raises(own_model.ModelError, match=message) as caught:
        own_model.load(name)
    assert "\n" not in str(caught.value)


def rows(n=3):
    return np.random.default_rng(0).random((n, 3, 2, 2)).astype(np.float32)


def test_a_model_is_asked_in_its_own_type_and_without_gradients():
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 2)).double()
    out = own_model.ask(net, rows())
    assert out.dtype == np.float64 and out.shape == (3, 2)
    expected = net(torch.from_numpy(rows()).double()).detach().numpy()
    np.testing.assert_allclose(out, expected)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (lambda x: x.view(7), r"raised RuntimeError: .* for a batch of shape \(3, 3, 2, 2\)"),
        (lambda x: (x.mean((2, 3)),), "returned tuple of 1 tensors; wrap it: lambda"),
        (lambda x: x, r"returned shape \(3, 3, 2, 2\)"),
        (lambda x: x.mean((2, 3))[:1], r"returned shape \(1, 3\)"),
        (lambda x: x.mean((2, 3)) / 0, "returned 9 numbers not finite"),
    ],
)
def test_answers_that_are_no_outputs_are_named_in_one_line(model, message):
    with pytest.raises(own_model.ModelError, match=message) as caught:
        own_model.ask(model, rows())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("outputs", "kind"),
    [
        (lambda x: x.mean((2, 3)) * 5 - 2, "probability (softmax of its outputs)"),
        (lambda x: x.mean((2, 3)) + 2, "probability (softmax of its outputs)"),
        (lambda x: x.mean((2, 3)).softmax(1), "probability"),
        (lambda x: x.mean((2, 3)).softmax(1).half(), "probability"),
        (lambda x: x.mean((2, 3)), "output"),  # in [0, 1], of labels that may all be true
        (lambda x: x.mean((1, 2, 3))[:, None] * 9, "output"),
    ],
)
def test_outputs_are_read_for_what_they_are(outputs, kind):
    class Net(torch.nn.Module):
        def forward(self, x):
            return outputs(x)

    for model in (outputs, Net()):
        found, said = own_model.explained(model, rows())
        assert said == kind
        out, plain = own_model.ask(found, rows()), own_model.ask(model, rows())
        if "softmax" in kind:
            assert isinstance(found, torch.nn.Module) == isinstance(model, torch.nn.Module)
            plain = np.exp(plain) / np.exp(plain).sum(axis=1, keepdims=True)
        np.testing.assert_allclose(out, plain, rtol=1e-5)


def test_a_function_of_arrays_gets_a_softmax_too():
    def logits(x):
        return np.asarray(x).mean((2, 3)) * 5 - 2

    found, _ = own_model.explained(logits, rows())
    np.testing.assert_allclose(own_model.ask(found, rows()).sum(axis=1), 1, rtol=1e-6)
