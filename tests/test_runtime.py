"""Forward passes: ONNX Runtime against torch, its cache, and models that cannot be exported."""

import gc
import json
import platform
import resource
import shutil
import subprocess
import sys
import threading
import weakref

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal

from xaiutils import perturb, runtime
from xaiutils.perturb import Components

X = np.random.default_rng(0).random((3, 8, 8), dtype=np.float32)
BATCH = torch.from_numpy(np.random.default_rng(1).random((5, 3, 8, 8), dtype=np.float32))


export, fastest = runtime._export, runtime._fastest
known_exports = {}


@pytest.fixture(autouse=True)
def exports(monkeypatch):
    """The modules exported in this test. Equal ones are only exported once in the whole file."""
    done = []

    def remembered(module, x, path):
        done.append(module)
        key = runtime._key(module, x.shape)
        if key not in known_exports:
            export(module, x, path)
            known_exports[key] = path.read_bytes()
        path.write_bytes(known_exports[key])

    monkeypatch.setattr(runtime, "_export", remembered)
    return done


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """An empty cache, and no time spent on finding the fastest batch size."""
    monkeypatch.setenv("XAIUTILS_CACHE", str(tmp_path))
    monkeypatch.setattr(runtime, "_fastest", lambda *arguments: 4)
    return tmp_path / "onnx"


@pytest.fixture
def cores(monkeypatch):
    """Eight, whatever this machine has."""
    monkeypatch.setattr(runtime.os, "sched_getaffinity", lambda _: set(range(8)), raising=False)


def conv_net(seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return torch.nn.Sequential(
            torch.nn.Conv2d(3, 4, 3),
            torch.nn.BatchNorm2d(4),
            torch.nn.ReLU(),
            torch.nn.Dropout(0.5),
            torch.nn.Flatten(),
            torch.nn.Linear(4 * 36, 10),
        ).eval()


class Branches(torch.nn.Module):
    """Control flow that depends on the values of the whole batch: no graph can hold it."""

    def __init__(self):
        super().__init__()
        self.sign = torch.nn.Parameter(torch.ones(()))

    def forward(self, x):
        if x.sum() > 0:
            return self.sign * x.flatten(1)
        return -self.sign * x.flatten(1)


def by_torch(model, batch=BATCH):
    with torch.inference_mode():
        return model(batch).numpy()


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


def test_another_process_does_not_export_again(cache):
    runtime.forward(conv_net(), X)
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from test_runtime import BATCH, X, by_torch, conv_net, runtime\n"
        "def refuse(*arguments): raise SystemExit('exported again')\n"
        "runtime._export = runtime._fastest = refuse\n"
        "forward = runtime.forward(conv_net(), X)\n"
        "print(forward.backend, abs(forward(BATCH) - by_torch(conv_net())).max() < 1e-4)\n"
    )
    folder = __file__.rsplit("test_runtime", 1)[0]
    done = subprocess.run([sys.executable, "-c", code, folder], capture_output=True, text=True)
    assert done.stdout.split() == ["onnxruntime", "True"], done.stderr


@pytest.mark.parametrize("damage", ["truncated", "text", "empty", "other weights"])
def test_damaged_or_foreign_export_is_replaced(damage, cache, exports):
    runtime.forward(conv_net(), X)
    (file,) = cache.glob("*.onnx")
    if damage == "truncated":
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    elif damage == "text":
        file.write_text("not a model")
    elif damage == "empty":
        file.write_bytes(b"")
    else:
        runtime.forward(conv_net(1), X)
        (other,) = set(cache.glob("*.onnx")) - {file}
        shutil.copy(other, file)
    before = len(exports)
    forward = runtime.forward(conv_net(), X)
    assert len(exports) == before + 1
    assert forward.backend == "onnxruntime"
    assert_allclose(forward(BATCH), by_torch(conv_net()), atol=1e-4)
    runtime.forward(conv_net(), X)
    assert len(exports) == before + 1  # the new file is sound
    assert not list(cache.glob("*.part"))


def test_export_that_disagrees_with_torch_is_not_used(cache, monkeypatch, caplog):
    monkeypatch.setattr(runtime, "_export", lambda module, *rest: export(conv_net(1), *rest))
    model = conv_net()
    forward = runtime.forward(model, X)
    assert forward.backend == "torch"
    assert_array_equal(forward(BATCH), by_torch(model))
    assert "differs from torch" in caplog.text
    assert not list(cache.glob("*.onnx"))


def test_batch_size_is_remembered_for_the_machine(cache, monkeypatch):
    monkeypatch.setattr(runtime, "_fastest", lambda *arguments: 17)
    assert runtime.forward(conv_net(), X).batch_size == 17
    (note,) = cache.glob("*.json")
    assert json.loads(note.read_text())["batch_size"] == 17
    monkeypatch.setattr(runtime, "_fastest", lambda *arguments: 23)
    assert runtime.forward(conv_net(), X).batch_size == 17
    monkeypatch.setattr(runtime.platform, "processor", lambda: "another machine")
    assert runtime.forward(conv_net(), X).batch_size == 23
    assert json.loads(note.read_text())["batch_size"] == 23


def test_fastest_size_has_the_most_inputs_per_second(monkeypatch):
    clock = [0.0]
    # 1 s a call and 0.1 s an input, but 5 s more beyond 16: 16 inputs in 2.6 s is the best rate.
    seconds = {4: 1.4, 8: 1.8, 16: 2.6, 32: 9.2}

    def call(batch):
        clock[0] += seconds[len(batch)]

    monkeypatch.setattr(runtime.time, "perf_counter", lambda: clock[0])
    cpu = torch.device("cpu")
    assert fastest(call, np.zeros(3), cpu, (4, 8, 16, 32)) == 16
    monkeypatch.setitem(runtime.BATCH_BYTES, "cpu", 8 * 24)
    assert fastest(call, np.zeros(3), cpu, (4, 8, 16, 32)) == 8


# --- modules that change or end -------------------------------------------------------------------


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


# --- models that stay with torch ------------------------------------------------------------------


def test_module_that_cannot_be_exported_runs_on_torch_with_one_line(cache, caplog):
    model = Branches()
    forward = runtime.forward(model, X)
    assert forward.backend == "torch"
    assert forward.batch_size == 4
    for batch in (BATCH, -BATCH):  # one on each branch
        assert_array_equal(forward(batch), by_torch(model, batch))
    with_gradients = []
    model.register_forward_hook(lambda *_: with_gradients.append(torch.is_grad_enabled()))
    forward(BATCH)
    assert with_gradients == [False]
    assert runtime.forward(model, X) is forward
    lines = [record for record in caplog.records if record.name == "xaiutils"]
    assert len(lines) == 1
    assert "using torch" in lines[0].getMessage()
    assert "\n" not in lines[0].getMessage()
    assert not list(cache.glob("*.onnx"))


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


@pytest.mark.parametrize("asked, wanted", [("1", 1), (" 3 ", 3), ("64", 8)])
def test_threads_are_capped_by_the_environment(asked, wanted, cores, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", asked)
    assert runtime.threads() == wanted


@pytest.mark.parametrize("asked", ["", "0", "-2", "2.5", "many", "4,2"])
def test_what_is_no_number_of_threads_is_ignored(asked, cores, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", asked)
    assert runtime.threads() == 8
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert runtime.threads() == 8


def test_plain_logits_come_in_the_order_of_the_images_however_many():
    x = np.random.default_rng(0).random((703, 3, 2, 2), dtype=np.float32)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 4)).eval()
    with torch.no_grad():
        expected = model(torch.from_numpy(x)).numpy()
    sizes = []
    model.register_forward_hook(lambda m, images, out: sizes.append((len(out), out.requires_grad)))
    for images in (x, torch.from_numpy(x)):
        assert_allclose(runtime.logits(model, images), expected, atol=1e-6)
        assert_array_equal(runtime.predicted(model, images), expected.argmax(1))
    assert sorted(sizes) == 4 * [(191, False)] + 8 * [(256, False)]  # batches run side by side


def test_device_is_picked_by_name():
    expected = "cuda" if torch.cuda.is_available() else "cpu"
    assert runtime.pick_device().type == expected
    assert runtime.pick_device("cpu") == torch.device("cpu")
    with pytest.raises(ValueError, match="abacus"):
        runtime.pick_device("abacus")


def test_gradients_of_the_module_are_left_alone():
    model = conv_net()
    runtime.forward(model, X)(BATCH)
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    assert not model.training


def test_a_damaged_note_of_the_batch_size_is_measured_again(cache):
    runtime.forward(conv_net(), X)
    (note,) = cache.glob("*.json")
    note.write_text("{")
    assert runtime.forward(conv_net(), X).backend == "onnxruntime"
    assert json.loads(note.read_text())["batch_size"] == 4


def test_a_fallback_says_one_line_and_why(cache, caplog, capfd):
    runtime.forward(Branches().eval(), X)
    (record,) = [r for r in caplog.records if r.levelname != "DEBUG"]
    message = record.getMessage()
    assert "using torch" in message and "\x1b" not in message
    out, err = capfd.readouterr()
    assert len((out + err).splitlines()) <= 1


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries are left alone")
def test_memory_of_large_arrays_is_used_again():
    faults = []
    for _ in range(40):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        torch.ones(2**25)  # 128 MiB, 32,768 pages
        faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
    # The first ones may find no room that is large enough and aligned.
    assert np.median(faults) < 1000, faults


@pytest.mark.parametrize("error", [AttributeError, OSError, TypeError])
def test_a_c_library_without_the_setting_is_left_alone(error, monkeypatch):
    def library(_):
        raise error

    monkeypatch.setattr(runtime.ctypes, "CDLL", library)
    runtime._reuse_freed_memory()


def test_calls_side_by_side_keep_their_order_and_few_wait():
    threads = torch.get_num_threads()
    made, meeting = [], threading.Barrier(2, timeout=20)  # two calls must run at a time

    def items():
        for i in range(8):
            made.append(i)
            yield i

    def call(i):
        meeting.wait()
        return i, torch.get_num_threads(), threading.get_ident()

    cpu = torch.device("cpu")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runtime, "threads", lambda: 2)
        results = runtime.side_by_side(call, items(), cpu)
        first = next(results)
        assert first[0] == 0 and len(made) <= 3
        found = [first, *results]
    assert [i for i, *_ in found] == list(range(8))
    assert {inside for _, inside, _ in found} == {1} and len({who for *_, who in found}) == 2
    assert torch.get_num_threads() == threads


def test_an_error_of_one_call_reaches_the_caller():
    threads = torch.get_num_threads()
    with pytest.raises(ZeroDivisionError):
        list(runtime.side_by_side(lambda i: 1 / i, [2, 1, 0, 1], torch.device("cpu")))
    assert torch.get_num_threads() == threads


def test_other_devices_take_one_call_after_the_other():
    def call(i):
        return i, threading.get_ident()

    found = list(runtime.side_by_side(call, range(4), torch.device("meta")))
    assert found == [(i, threading.get_ident()) for i in range(4)]
