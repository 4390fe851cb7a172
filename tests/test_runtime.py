"""Forward passes: the fastest way to run a model, in which batches, and what is not exported."""

import numpy as np
import pytest
import torch
from networks import BATCH, Branches, OneByOne, X, by_torch, conv_net
from numpy.testing import assert_allclose, assert_array_equal

from xaiutils import fidelity, perturb, probe, runtime
from xaiutils.perturb import Components

pytestmark = pytest.mark.usefixtures("exports", "onnx_cache")
fastest = runtime._fastest
CELLS = Components(np.arange(64).reshape(8, 8) // 16)


# --- the export -----------------------------------------------------------------------------------


def test_onnx_runtime_agrees_with_torch_at_every_batch_size():
    model = conv_net()
    forward = runtime.forward(model, X)
    assert forward.backend == "onnxruntime"
    for size in (1, 2, 5):
        found = forward(BATCH[:size])
        assert found.shape == (size, 10)
        assert found.dtype == np.float32
        assert_allclose(found, by_torch(model, BATCH[:size]), atol=1e-4)


def test_evaluate_gives_the_module_s_outputs():
    model, components = conv_net(), Components(np.arange(64).reshape(8, 8) // 16)
    masks = np.random.default_rng(2).random((11, 4)) < 0.5
    keep = masks[:, components.labels][:, None]
    expected = by_torch(model, torch.from_numpy(np.where(keep, X, np.float32(0.5))))
    for size in (3, 11):
        found = perturb.evaluate(model, X, components, masks, 0.5, batch_size=size)
        assert_allclose(found, expected, atol=1e-4)


def test_float64_input_to_a_float32_module_is_cast():
    model, components = conv_net(), Components(np.arange(64).reshape(8, 8) // 16)
    masks = np.eye(4)
    double = perturb.evaluate(model, X.astype(np.float64), components, masks, "mean")
    assert double.dtype == np.float32
    assert_allclose(double, perturb.evaluate(model, X, components, masks, "mean"), atol=1e-6)


def test_float64_module_computes_in_double_precision(caplog):
    model = conv_net().double()
    forward = runtime.forward(model, X)
    assert forward.backend == "torch"
    assert not caplog.records  # meant so: nothing failed
    assert forward.cast(X).dtype == np.float64
    found = forward(BATCH.double())
    assert found.dtype == np.float64
    assert_array_equal(found, by_torch(model, BATCH.double()))


def test_bfloat16_module_gets_and_gives_float32(caplog):
    model = conv_net().bfloat16()
    forward = runtime.forward(model, X)
    assert forward.backend == "torch" and forward.cast(X.astype(float)).dtype == np.float32
    assert not caplog.records
    expected = by_torch(conv_net())
    for found in (forward(BATCH), runtime.logits(model, BATCH)):
        assert found.dtype == np.float32
        assert_allclose(found, expected, atol=0.03 * np.abs(expected).max())
    assert perturb.evaluate(model, X, CELLS, np.eye(4)).dtype == np.float32


def test_integer_input_stays_integer():
    model = torch.nn.Sequential(torch.nn.Embedding(256, 2), torch.nn.Flatten()).eval()
    x = np.arange(6, dtype=np.uint8)

    class Tokens(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = model

        def forward(self, batch):
            assert batch.dtype == torch.uint8
            return self.inner(batch.long())

    found = perturb.evaluate(Tokens().eval(), x, Components(np.arange(6)), np.ones((2, 6)))
    assert_array_equal(found, by_torch(model, torch.arange(6).expand(2, 6)))


def test_module_without_parameters():
    forward = runtime.forward(torch.nn.Flatten(), X)
    assert_array_equal(forward(BATCH), BATCH.flatten(1).numpy())


# --- the cache ------------------------------------------------------------------------------------


def test_module_is_exported_once(exports):
    model = conv_net()
    first = runtime.forward(model, X)
    assert runtime.forward(model, X + 1) is first
    runtime.forward(conv_net(), X)  # an equal module finds the file
    assert len(exports) == 1


def test_each_input_shape_has_its_export(exports):
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 2, 3), torch.nn.Flatten()).eval()
    for side in (8, 6, 8):
        forward = runtime.forward(model, X[:, :side, :side])
        assert_allclose(
            forward(BATCH[..., :side, :side].contiguous()),
            by_torch(model, BATCH[..., :side, :side]),
            atol=1e-5,
        )
    assert len(exports) == 2


def test_fastest_size_has_the_most_inputs_per_second(monkeypatch):
    clock = [0.0]
    # 1 s a call and 0.1 s an input, but 5 s more beyond 16: 16 inputs in 2.6 s is the best rate.
    seconds = {4: 1.4, 8: 1.8, 16: 2.6, 32: 9.2}

    def call(batch):
        clock[0] += seconds[len(batch)]

    monkeypatch.setattr(runtime.time, "perf_counter", lambda: clock[0])
    cpu = torch.device("cpu")
    assert fastest(call, np.zeros(3), cpu, (4, 8, 16, 32)) == 16
    for inputs, expected in ((8, 8), (3, 3), (0.5, 1)):  # that fit the memory for a batch
        monkeypatch.setitem(runtime.BATCH_BYTES, "cpu", inputs * 24)
        assert fastest(call, np.zeros(3), cpu, (4, 8, 16, 32)) == expected


# --- models that take one input at a time ---------------------------------------------------------


def test_a_module_that_takes_one_input_at_a_time_gets_one(caplog):
    model, masks = OneByOne().eval(), np.eye(4)
    expected = perturb.evaluate(conv_net(), X, CELLS, masks)
    for size in (None, 1):
        assert_allclose(
            perturb.evaluate(model, X, CELLS, masks, batch_size=size), expected, atol=1e-4
        )
    assert runtime.forward(model, X).batch_size == 1
    assert "one input at a time (takes batches of 1)" in caplog.text
    with pytest.raises(ValueError, match=r"batch_size must be 1, got 2: .*takes batches of 1"):
        perturb.evaluate(model, X, CELLS, masks, batch_size=2)
    assert_allclose(runtime.logits(model, BATCH), by_torch(conv_net()), atol=1e-6)


def test_a_batch_size_of_one_is_never_exceeded(monkeypatch):
    sizes = []

    class Watched(OneByOne):
        def forward(self, x):
            if not torch.compiler.is_compiling():
                sizes.append(len(x))
            return self.inner(x)

    monkeypatch.setattr(runtime, "_fastest", fastest)
    for model in (Watched().eval(), Watched().eval().double()):
        perturb.evaluate(model, X, CELLS, np.eye(4), batch_size=1)
        x, y, scores = X[None], np.array([0]), np.zeros((1, 8, 8))
        fidelity.curves(model, x, y, scores, filler=0.0, steps=2, batch_size=1)
        assert set(sizes) == {1}
    perturb.evaluate(model, X, CELLS, np.eye(4))
    assert max(sizes) > 1


def test_sizes_asked_for_in_turns_share_what_was_prepared(exports):
    model = conv_net()
    first = runtime.forward(model, X)
    assert runtime.forward(model, X, batch_size=1) is first
    assert runtime.forward(model, X, batch_size=7) is first
    assert len(exports) == 1


@pytest.mark.parametrize("shape, size", [((3, 8, 8), 32), ((3, 1024, 1024), 2), ((2**23,), 1)])
def test_batches_of_callables_are_limited_by_their_bytes(shape, size):
    sizes, x = [], np.zeros(shape, np.float32)

    def model(batch):
        sizes.append(len(batch))
        return np.zeros((len(batch), 1))

    labels = np.zeros(shape[-1:], int)
    perturb.evaluate(model, x, Components(labels), np.ones((33, 1)), 0.0)
    assert max(sizes) == size and sum(sizes) == 33


# --- models that stay with torch ------------------------------------------------------------------


def test_module_that_cannot_be_exported_runs_on_torch_with_one_line(onnx_cache, caplog):
    model = Branches()
    forward = runtime.forward(model, X)
    assert forward.backend == "torch"
    assert forward.batch_size == 4
    for batch in (BATCH, -BATCH):  # one on each branch
        assert_array_equal(forward(batch), by_torch(model, batch))
    assert runtime.forward(model, X) is forward
    with_gradients = []
    model.register_forward_hook(lambda *_: with_gradients.append(torch.is_grad_enabled()))
    forward(BATCH)
    assert with_gradients == [False]
    lines = [record for record in caplog.records if record.name == "xaiutils"]
    assert len(lines) == 1
    assert "using torch" in lines[0].getMessage()
    assert "\n" not in lines[0].getMessage()
    assert not list(onnx_cache.glob("*.onnx"))


def test_error_of_the_model_itself_is_raised():
    class Broken(torch.nn.Module):
        def forward(self, x):
            raise RuntimeError("needs 224 pixels")

    with pytest.raises(RuntimeError, match="needs 224 pixels"):
        perturb.evaluate(Broken(), X, Components(np.arange(8)), np.eye(8))


def test_callable_is_used_as_it_is():
    seen = []
    forward = runtime.forward(lambda batch: seen.append(batch) or batch.flatten(1), X)
    assert forward.backend == "callable"
    assert_array_equal(forward(BATCH), BATCH.flatten(1).numpy())
    assert seen == [BATCH]


def test_plain_logits_come_in_the_order_of_the_images_however_many():
    x = np.random.default_rng(0).random((703, 3, 2, 2), dtype=np.float32)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 4)).eval()
    with torch.no_grad():
        expected = model(torch.from_numpy(x)).numpy()
    sizes = []
    model.register_forward_hook(lambda m, images, out: sizes.append((len(out), out.requires_grad)))
    probe.check(model, x[0])
    sizes.clear()
    for images in (x, torch.from_numpy(x)):
        assert_allclose(runtime.logits(model, images), expected, atol=1e-6)
        assert_array_equal(runtime.predicted(model, images), expected.argmax(1))
    assert sorted(sizes) == 4 * [(191, False)] + 8 * [(256, False)]  # batches run side by side


def test_gradients_of_the_module_are_left_alone():
    model = conv_net()
    runtime.forward(model, X)(BATCH)
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    assert not model.training


def test_a_fallback_says_one_line_and_why(caplog, capfd):
    runtime.forward(Branches().eval(), X)
    (record,) = [r for r in caplog.records if r.levelname != "DEBUG"]
    message = record.getMessage()
    assert "using torch" in message and "\x1b" not in message
    out, err = capfd.readouterr()
    assert len((out + err).splitlines()) <= 1
