"""What models are given: refusals by name, forms a model takes instead, models that write to it."""

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from torch import nn

from xaiutils import attribution, baselines, fidelity, inputs, one_vs_one, perturb, runtime
from xaiutils.data import images
from xaiutils.perturb import Components

RNG = np.random.default_rng(0)
X = RNG.random((3, 3, 8, 6), dtype=np.float32)
SCORES, Y = RNG.random((3, 8, 6)), np.array([0, 1, 2])
LABELS = np.arange(8)[:, None] // 2 + np.zeros((8, 6), int)
CELLS, MASKS = Components(LABELS), RNG.random((7, 4)) < 0.5


def network(channels=3):
    layers = nn.Sequential(
        *(nn.Conv2d(channels, 4, 3), nn.Tanh(), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
        nn.Linear(4, 3),
    )
    rng = np.random.default_rng(1)
    for weight in layers.parameters():
        weight.data = torch.from_numpy(rng.normal(size=weight.shape).astype(np.float32))
    return layers.eval()


def plainly(model):
    """The same as a function, which is not exported."""
    return lambda batch: model(batch)


# --- numbers --------------------------------------------------------------------------------------


def holed(x):
    x = x.copy()
    x[1, 2, 5, 3] = x[2, 0, 0, 0] = np.nan
    return x


HOLED = r"holds NaN: 2 of 432 values, the first at \(1, 2, 5, 3\)"


@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("x", lambda net: fidelity.curves(net, holed(X), Y, SCORES, filler=0.0, steps=2)),
        ("x", lambda net: one_vs_one.removal(net, holed(X), Y, 1 - Y % 2, SCORES, 0.0)),
        ("filler", lambda net: one_vs_one.removal(net, X, Y, (Y + 1) % 3, SCORES, holed(X))),
        (
            "blank",
            lambda net: one_vs_one.conversion(net, X, Y, (Y + 1) % 3, SCORES, blank=holed(X)),
        ),
        ("baseline", lambda net: one_vs_one.mask_test(net, X, holed(X), Y, SCORES)),
        ("x", lambda net: attribution.gradient(net, holed(X), Y)),
        ("x", lambda net: attribution.occlusion(net, torch.from_numpy(holed(X)), Y, patch=2)),
        ("baseline", lambda net: attribution.integrated_gradients(net, X, holed(X), Y)),
        ("baseline", lambda net: attribution.input_x_gradient(net, X, Y, baseline=holed(X))),
        ("x", lambda net: baselines.adversarial(net, holed(X), Y)),
        ("x", lambda net: baselines.blur(holed(X), 2.0)),
    ],
)
def test_nan_is_refused_by_name_and_number(name, call):
    with pytest.raises(ValueError, match=f"^{name} {HOLED}$"):
        call(network())


def test_nan_in_one_input_or_its_filler_is_refused():
    x = X[0].copy()
    x[1, 2, 3] = np.nan
    found = r"holds NaN: 1 of 144 values, the first at \(1, 2, 3\)"
    with pytest.raises(ValueError, match=f"x {found}"):
        perturb.evaluate(network(), x, CELLS, MASKS)
    with pytest.raises(ValueError, match=f"filler {found}"):
        perturb.evaluate(network(), X[0], CELLS, MASKS, x)
    with pytest.raises(ValueError, match="filler holds NaN: 144 of 144"):
        perturb.evaluate(network(), X[0], CELLS, MASKS, np.nan)


def test_a_function_may_know_what_nan_means():
    x = X[0].copy()
    x[1, 2, 3] = np.nan
    known = perturb.evaluate(lambda b: b.nan_to_num().flatten(1), x, CELLS, MASKS, 0.0)
    assert_array_equal(
        known, perturb.evaluate(lambda b: b.flatten(1), np.nan_to_num(x), CELLS, MASKS, 0.0)
    )
    missing = perturb.evaluate(lambda b: b.isnan().flatten(1).double(), X[0], CELLS, MASKS, np.nan)
    assert_array_equal(missing, np.tile(~MASKS[:, LABELS.ravel()], 3))
    with pytest.raises(ValueError, match=r"model returned NaN .*; the input itself holds 1 NaN"):
        perturb.evaluate(lambda b: b.flatten(1), x, CELLS, np.eye(4))
    with pytest.raises(ValueError, match="image 1: model returned NaN or infinity in 2 of 4 rows"):
        x = np.stack([X[0], x])
        fidelity.curves(lambda b: b[:, :, 2, 3], x, Y[:2], SCORES[:2], filler=0.0, steps=2)


@pytest.mark.parametrize("dtype", [np.complex64, object, "U3", np.longdouble])
@pytest.mark.parametrize(
    "call",
    [
        lambda x: perturb.evaluate(network(), x[0], CELLS, MASKS),
        lambda x: perturb.evaluate(lambda b: b.flatten(1), x[0], CELLS, MASKS),
        lambda x: fidelity.curves(network(), x, Y, SCORES, filler=0.0),
        lambda x: one_vs_one.removal(network(), x, Y, (Y + 1) % 3, SCORES, 0.0),
        lambda x: attribution.gradient(network(), x, Y),
    ],
)
def test_numbers_that_no_model_takes_are_refused(call, dtype):
    x = X.astype(dtype)
    with pytest.raises(
        ValueError, match=f"^x must hold real numbers of .* 64 bits, got {x.dtype}$"
    ):
        call(x)


@pytest.mark.parametrize("dtype", [">f4", np.float16, np.float64])
def test_floating_numbers_of_any_precision_are_taken(dtype):
    expected = perturb.evaluate(network(), X[0], CELLS, MASKS)
    assert_allclose(
        perturb.evaluate(network(), X[0].astype(dtype), CELLS, MASKS), expected, atol=1e-3
    )
    expected = attribution.gradient(network(), X, Y)
    assert_allclose(attribution.gradient(network(), X.astype(dtype), Y), expected, atol=1e-3)


def test_bfloat16_is_read_as_single_precision():
    x = torch.from_numpy(X[0]).bfloat16()
    assert images.as_numpy(x).dtype == np.float32
    expected = perturb.evaluate(network(), x.float(), CELLS, MASKS)
    assert_array_equal(perturb.evaluate(network(), x, CELLS, MASKS), expected)
    assert images.as_images(x).dtype == np.float32


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_gradients_of_half_precision_models_are_summed_in_single(dtype):
    model = network().to(dtype)
    for method in (attribution.gradient, lambda *a: attribution.smoothgrad(*a).mean):
        found = method(model, X, Y)
        assert found.dtype == np.float32
        assert_allclose(found, method(network(), X, Y), atol=0.05)
    found = attribution.deeplift(network().to(dtype), X, np.zeros_like(X), Y)
    assert_allclose(found, attribution.deeplift(network(), X, np.zeros_like(X), Y), atol=0.1)


@pytest.mark.parametrize("dtype", [np.uint8, np.int64, bool])
def test_gradients_want_floating_inputs(dtype):
    with pytest.raises(
        ValueError, match=r"x must be floating, got torch\.\w+: x / 255 for a model"
    ):
        attribution.gradient(network(), (X * 2).astype(dtype), Y)


# --- forms ----------------------------------------------------------------------------------------

GRAY = network(1)
LAST = np.ascontiguousarray(X[0].transpose(1, 2, 0))
FORMS = {
    "channels last": (
        network(),
        LAST,
        r"float32 \(8, 6, 3\), but takes float32 \(3, 8, 6\): move the channels first",
    ),
    "channels first": (
        lambda b: network()(b.movedim(-1, 1)),
        X[0],
        r"takes float32 \(8, 6, 3\): move the channels last",
    ),
    "a batch": (
        network(),
        X[:1],
        r"float32 \(1, 3, 8, 6\), but takes float32 \(3, 8, 6\): drop the first axis",
    ),
    "no channel": (GRAY, X[0, 0], r"takes float32 \(1, 8, 6\): put an axis of length 1 first"),
    "whole numbers": (
        network(),
        (X[0] * 255).astype(np.uint8),
        r"uint8 \(3, 8, 6\), but takes float32 \(3, 8, 6\): divide by 255",
    ),
    "bits": (
        network(),
        X[0] > 0.5,
        r"bool \(3, 8, 6\), but takes float32 \(3, 8, 6\) \(it raised RuntimeError",
    ),
    "a decoded image": (
        network(),
        (LAST * 255).astype(np.uint8),
        r"takes float32 \(3, 8, 6\): move the channels first, divide",
    ),
    "gray": (
        network(),
        X[0, :1],
        r"float32 \(1, 8, 6\): its first layer, Conv2d, takes \(3, H, W\)",
    ),
    "another size": (
        nn.Sequential(nn.Flatten(), nn.Linear(300, 3)),
        X[0],
        r"first layer, Linear, takes 300 values",
    ),
}


@pytest.mark.parametrize("case", FORMS)
def test_a_form_that_the_model_takes_is_named(case):
    model, x, hint = FORMS[case]
    components, masks = Components(np.arange(x.size).reshape(x.shape)), np.ones((5, x.size))
    with pytest.raises(ValueError, match=f"^model cannot take inputs .*{hint}") as caught:
        perturb.evaluate(model, x, components, masks)
    assert "\n" not in str(caught.value)
    assert caught.value.__cause__ is not None


def test_forms_are_named_by_all_who_ask():
    wrong = np.ascontiguousarray(X.transpose(0, 2, 3, 1))
    hint = r"\(8, 6, 3\), but takes float32 \(3, 8, 6\): move the channels first"
    with pytest.raises(ValueError, match=hint):
        attribution.gradient(network(), wrong, Y)
    with pytest.raises(ValueError, match=hint):
        fidelity.curves(plainly(network()), wrong, Y, SCORES[..., None], filler=0.0)
    with pytest.raises(ValueError, match=hint):
        runtime.predicted(network(), wrong)
    with pytest.raises(ValueError, match=r"uint8 \(3, 8, 6\), but takes float32"):
        runtime.predicted(network(), X.astype(np.uint8))
    with pytest.raises(ValueError, match=r"hold 3 .*\(1,\); x is a batch of 3, \(3, 8, 6\)"):
        attribution.gradient(network(), X[0], [0])


def test_whole_numbers_are_for_models_that_take_them():
    tokens, masks = np.array([3, 1, 4, 1, 5, 9]), np.eye(6, dtype=bool)
    words = nn.Sequential(nn.Embedding(10, 4), nn.Flatten(), nn.Linear(24, 2)).eval()
    expected = words(torch.from_numpy(np.where(masks, tokens, 0))).detach()
    components = Components(np.arange(6))
    assert_allclose(perturb.evaluate(words, tokens, components, masks, 0), expected, atol=1e-5)
    with pytest.raises(ValueError, match=r"float32 \(6,\), but takes int64 \(6,\)"):
        perturb.evaluate(words, tokens.astype(np.float32), components, masks, 0)

    class Scaling(nn.Module):
        def __init__(self):
            super().__init__()
            self.network = network()

        def forward(self, x):
            return self.network(x.float() / 255)

    x = (X[0] * 255).astype(np.uint8)
    found = perturb.evaluate(Scaling().eval(), x, CELLS, np.ones((1, 4)))
    expected = network()(torch.from_numpy(x[None] / np.float32(255))).detach()
    assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("error", [KeyError, RuntimeError, OSError, MemoryError, ZeroDivisionError])
@pytest.mark.parametrize("kind", [nn.Module, object])
def test_other_errors_of_a_model_are_its_own(kind, error):
    raised = error("of its own")

    class Broken(kind):
        def forward(self, batch):
            raise raised

        if kind is object:
            __call__ = forward

    with pytest.raises(error) as caught:
        inputs.ask(Broken(), torch.zeros(2, 3, 8, 6))
    assert caught.value is raised and raised.__cause__ is None


def test_no_other_form_is_tried_where_a_file_is_missing():
    calls = []

    def model(batch):
        calls.append(type(batch))
        raise FileNotFoundError("weights")

    with pytest.raises(FileNotFoundError):
        inputs.ask(model, torch.zeros(2, 3))
    assert calls == [torch.Tensor]


# --- models that write to their input -------------------------------------------------------------


class Writer(nn.Module):
    """Normalises what it is given where it stands."""

    def __init__(self, write):
        super().__init__()
        self.network, self.write = network(), write

    def forward(self, x):
        self.write(x)
        return self.network(x)


class Tidy(Writer):
    """The same in a copy."""

    def forward(self, x):
        return super().forward(x.clone())


WRITES = {
    "subtract": lambda x: x.sub_(0.5),
    "divide": lambda x: x.div_(2),
    "erase": lambda x: x[:, :, 2:4].zero_(),
    "sometimes": lambda x: x.div_(2) if x.max() > 0.9 else None,
}


def areas(model, x):
    found = fidelity.curves(plainly(model), x, Y, SCORES, filler=0.0, steps=4, batch_size=3)
    return found.logit_label


def drops(model, x):
    return one_vs_one.removal(plainly(model), x, Y, (Y + 1) % 3, SCORES, 0.0).drop


def gains(model, x):
    return one_vs_one.mask_test(plainly(model), x, x[::-1], Y, SCORES, n_thresholds=9).gains


def outputs(model, x):
    return perturb.evaluate(plainly(model), x[0], CELLS, MASKS, 0.0, batch_size=3)


CALLS = {
    "evaluate": outputs,
    "curves": areas,
    "removal": drops,
    "mask test": gains,
    "logits": runtime.logits,
    "logits of a tensor": lambda model, x: runtime.logits(model, torch.from_numpy(x)),
    "gradient": lambda model, x: attribution.gradient(model, x, Y),
    "integrated": lambda model, x: attribution.integrated_gradients(model, x, 0 * x, Y, steps=3),
    "smooth": lambda model, x: attribution.smoothgrad(model, x, Y, n_samples=3).mean,
    "DeepLIFT": lambda model, x: attribution.deeplift(model, x, 0 * x, Y),
    "adversarial": lambda model, x: baselines.adversarial(model, x, (Y + 1) % 3, steps=4),
}


@pytest.mark.filterwarnings("ignore:integrated gradients of")  # of few steps
@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
def test_a_model_may_write_to_what_it_is_given(write, call):
    mine, given = X.copy(), X.copy()
    assert_allclose(call(Writer(write).eval(), given), call(Tidy(write).eval(), mine), atol=1e-6)
    assert_array_equal(given, X)
