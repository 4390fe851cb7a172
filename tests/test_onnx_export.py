"""Exported networks: their files, what happens to them, and where they cannot be written."""

import errno
import hashlib
import json
import os
import shutil
import subprocess
import sys
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from networks import BATCH, X, by_torch, conv_net
from numpy.testing import assert_allclose, assert_array_equal

from xaiutils import onnx_export, runtime
from xaiutils.data import assets

pytestmark = pytest.mark.usefixtures("exports", "onnx_cache")
export = onnx_export._export


def noted(file):
    return file.with_name(f"{file.name}.sha256")


def test_another_process_does_not_export_again(onnx_cache):
    runtime.forward(conv_net(), X)
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from networks import BATCH, X, by_torch, conv_net\n"
        "from xaiutils import onnx_export, runtime\n"
        "def refuse(*arguments): raise SystemExit('exported again')\n"
        "onnx_export._export = runtime._fastest = refuse\n"
        "forward = runtime.forward(conv_net(), X)\n"
        "print(forward.backend, abs(forward(BATCH) - by_torch(conv_net())).max() < 1e-4)\n"
    )
    folder = __file__.rsplit("test_onnx", 1)[0]
    done = subprocess.run([sys.executable, "-c", code, folder], capture_output=True, text=True)
    assert done.stdout.split() == ["onnxruntime", "True"], done.stderr


@pytest.mark.parametrize(
    "damage", ["truncated", "text", "empty", "other weights", "no sha256", "sha256 of another"]
)
def test_damaged_or_foreign_export_is_replaced(damage, onnx_cache, exports, caplog):
    runtime.forward(conv_net(), X)
    (file,) = onnx_cache.glob("*.onnx")
    if damage == "truncated":
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    elif damage == "text":
        file.write_text("not a model")
    elif damage == "empty":
        file.write_bytes(b"")
    elif damage == "no sha256":
        noted(file).unlink()
    elif damage == "sha256 of another":
        noted(file).write_text(f"{'0' * 64}  {file.name}\n")
    else:
        runtime.forward(conv_net(1), X)
        (other,) = set(onnx_cache.glob("*.onnx")) - {file}
        shutil.copy(other, file)
    before = len(exports)
    caplog.clear()
    forward = runtime.forward(conv_net(), X)
    assert len(exports) == before + 1
    assert forward.backend == "onnxruntime"
    assert_allclose(forward(BATCH), by_torch(conv_net()), atol=1e-4)
    (line,) = [r.getMessage() for r in caplog.records if r.name == "xaiutils"]
    assert str(file) in line and "is replaced" in line and "sha256" in line
    runtime.forward(conv_net(), X)
    assert len(exports) == before + 1  # the new file is sound
    assert not list(onnx_cache.glob("*.part"))


def test_export_that_disagrees_with_torch_is_not_used(onnx_cache, monkeypatch, caplog):
    monkeypatch.setattr(onnx_export, "_export", lambda module, *rest: export(conv_net(1), *rest))
    model = conv_net()
    forward = runtime.forward(model, X)
    assert forward.backend == "torch"
    assert_array_equal(forward(BATCH), by_torch(model))
    assert "differs from torch" in caplog.text
    assert not list(onnx_cache.glob("*.onnx"))


def test_batch_size_is_remembered_for_the_machine(onnx_cache, monkeypatch):
    monkeypatch.setattr(runtime, "_fastest", lambda *arguments: 17)
    assert runtime.forward(conv_net(), X).batch_size == 17
    (note,) = onnx_cache.glob("*.json")
    assert json.loads(note.read_text())["batch_size"] == 17
    monkeypatch.setattr(runtime, "_fastest", lambda *arguments: 23)
    assert runtime.forward(conv_net(), X).batch_size == 17
    monkeypatch.setattr(onnx_export.platform, "processor", lambda: "another machine")
    assert runtime.forward(conv_net(), X).batch_size == 23
    assert json.loads(note.read_text())["batch_size"] == 23


def test_a_damaged_note_of_the_batch_size_is_measured_again(onnx_cache):
    runtime.forward(conv_net(), X)
    (note,) = onnx_cache.glob("*.json")
    note.write_text("{")
    assert runtime.forward(conv_net(), X).backend == "onnxruntime"
    assert json.loads(note.read_text())["batch_size"] == 4


def test_the_sha256_beside_an_export_is_what_sha256sum_checks(onnx_cache):
    runtime.forward(conv_net(), X)
    (file,) = onnx_cache.glob("*.onnx")
    expected = hashlib.sha256(file.read_bytes()).hexdigest()
    assert noted(file).read_text() == f"{expected}  {file.name}\n"


def test_a_sound_file_of_another_network_is_replaced(onnx_cache, exports, caplog):
    """Its sha256 is right, its outputs are not."""
    for seed in (0, 1):
        runtime.forward(conv_net(seed), X)
    first, second = sorted(onnx_cache.glob("*.onnx"), key=os.path.getmtime)
    shutil.copy(second, first)
    noted(first).write_text(noted(second).read_text())
    forward = runtime.forward(conv_net(0), X)
    assert forward.backend == "onnxruntime" and len(exports) == 3
    assert_allclose(forward(BATCH), by_torch(conv_net(0)), atol=1e-4)
    assert "is replaced: its export differs from torch" in caplog.text


# --- folders that cannot be written ---------------------------------------------------------------


def seal(monkeypatch, code=errno.EROFS):
    """Whatever the cache holds can be read; nothing can be written there."""

    @contextmanager
    def writing(folder, name):
        error = OSError(code, os.strerror(code), str(folder))
        raise assets.AssetError(f"cannot write {folder}") from error
        yield

    monkeypatch.setattr(assets, "writing", writing)


@pytest.fixture(params=[errno.EROFS, errno.EACCES, errno.ENOSPC])
def sealed(request, monkeypatch):
    """Why nothing can be written to the cache."""
    seal(monkeypatch, request.param)
    return os.strerror(request.param)


def lines(caplog):
    return [r.getMessage() for r in caplog.records if r.name == "xaiutils"]


def test_a_kept_export_is_used_where_nothing_can_be_written(exports, monkeypatch, caplog):
    runtime.forward(conv_net(), X)
    seal(monkeypatch)
    forward = runtime.forward(conv_net(), X)
    assert forward.backend == "onnxruntime" and forward.batch_size == 4
    assert len(exports) == 1 and not lines(caplog)


def test_an_export_that_cannot_be_kept_is_used_all_the_same(sealed, onnx_cache, caplog):
    model = conv_net()
    forward = runtime.forward(model, X)
    assert forward.backend == "onnxruntime" and forward.batch_size == 4
    assert_allclose(forward(BATCH), by_torch(model), atol=1e-4)
    (line,) = lines(caplog)
    assert "made again by each process" in line and sealed in line and "\n" not in line
    assert not onnx_cache.exists()


def test_where_nothing_can_be_written_at_all_torch_is_used(sealed, monkeypatch, caplog):
    def full(module, x, path):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(onnx_export, "_export", full)
    model = conv_net()
    assert_array_equal(runtime.forward(model, X)(BATCH), by_torch(model))
    (line,) = lines(caplog)
    assert "using torch" in line and os.strerror(errno.ENOSPC) in line


def test_a_cache_that_is_no_folder_costs_only_the_export(tmp_path, monkeypatch, caplog):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XAIUTILS_CACHE", str(tmp_path / "file"))
    assert runtime.forward(conv_net(), X).backend == "onnxruntime"
    assert len(lines(caplog)) == 1


def test_a_disk_that_fills_during_the_export_leaves_nothing(onnx_cache, monkeypatch, caplog):
    def half(module, x, path):
        if onnx_cache in path.parents:
            path.write_bytes(b"half of it")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        export(module, x, path)

    monkeypatch.setattr(onnx_export, "_export", half)
    assert runtime.forward(conv_net(), X).backend == "onnxruntime"
    assert {file.name for file in onnx_cache.iterdir()} <= {".lock"}
    assert "made again by each process" in "".join(lines(caplog))


# --- the key --------------------------------------------------------------------------------------


class Scaled(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.temperature = conv_net(), 1.0

    def forward(self, x):
        return self.inner(x) / self.temperature


def test_states_of_a_module_keep_an_export_each(onnx_cache, exports, caplog):
    model = Scaled().eval()
    for temperature in (1.0, 10.0, 1.0, 10.0):
        model.temperature = temperature
        forward = runtime.forward(model, X)
        assert forward.backend == "onnxruntime"
        assert_allclose(forward(BATCH), by_torch(model), atol=1e-5)
    assert len(exports) == len(list(onnx_cache.glob("*.onnx"))) == 2
    assert not lines(caplog)


def test_the_key_does_not_depend_on_the_input(exports):
    for x in (X, X[::-1].copy(), np.zeros_like(X)):
        runtime.forward(conv_net(), x)
    assert len(exports) == 1


def test_rounding_does_not_change_the_key():
    model, answer = conv_net(), np.random.default_rng(0).normal(size=(1, 1000)).astype(np.float32)
    key = onnx_export._key(model, X.shape, answer, "")
    for seed in range(20):
        noise = np.random.default_rng(seed).normal(0, 1e-7, answer.shape)
        assert onnx_export._key(model, X.shape, answer + noise, "") == key
    for other in (1.01 * answer, -answer, answer[:, ::-1], answer + 0.01):
        assert onnx_export._key(model, X.shape, other, "") != key


def test_small_outputs_are_compared_too(monkeypatch):
    """Relative to their size: all of these would pass for zero."""
    model = conv_net()
    with torch.no_grad():
        for parameter in model[5].parameters():
            parameter.mul_(1e-6)
    wrong = conv_net()
    monkeypatch.setattr(onnx_export, "_export", lambda module, *rest: export(wrong[:5], *rest))
    assert runtime.forward(model, X).backend == "torch"
    with torch.no_grad():
        wrong[5].load_state_dict(model[5].state_dict())
        wrong[5].bias.mul_(2)
    monkeypatch.setattr(onnx_export, "_export", lambda module, *rest: export(wrong, *rest))
    assert runtime.forward(torch.nn.Sequential(*model).eval(), X).backend == "torch"


def test_a_hook_that_the_exporter_cannot_carry_leaves_torch(caplog):
    model = conv_net()
    model[0].register_forward_hook(
        lambda module, given, out: torch.stack([-row if row.sum() > 0 else row for row in out])
    )
    forward = runtime.forward(model, X)
    assert forward.backend == "torch" and "using torch" in caplog.text
    assert_array_equal(forward(BATCH), by_torch(model))
