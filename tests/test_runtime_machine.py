"""What a machine has: threads, memory, devices."""

import os
import platform
import resource
import subprocess
import sys
import threading

import numpy as np
import pytest
import torch
from networks import X, conv_net

from xaiutils import perturb, runtime
from xaiutils.perturb import Components

CELLS = Components(np.arange(64).reshape(8, 8) // 16)


@pytest.fixture
def cores(monkeypatch):
    """Eight, whatever this machine has."""
    monkeypatch.setattr(runtime.os, "sched_getaffinity", lambda _: set(range(8)), raising=False)


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


def test_device_is_picked_by_name():
    expected = "cuda" if torch.cuda.is_available() else "cpu"
    assert runtime.pick_device().type == expected
    assert runtime.pick_device("cpu") == torch.device("cpu")
    with pytest.raises(ValueError, match="abacus"):
        runtime.pick_device("abacus")


MISSING = ["gpu", "meta", "", None] + ["cuda"] * (not torch.cuda.is_available())


@pytest.mark.parametrize("device", MISSING)
@pytest.mark.parametrize("make", [conv_net, lambda: torch.Tensor.sum], ids=["module", "callable"])
def test_a_device_that_cannot_compute_here_is_refused_by_name(device, make):
    with pytest.raises(
        ValueError, match=rf"^device {device!r} cannot be used here .*auto"
    ) as raised:
        perturb.evaluate(make(), X, CELLS, np.eye(4), device=device)
    assert "\n" not in str(raised.value)


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


FAULTS = """
import resource
import torch
from xaiutils import runtime

def one(_):
    for _ in range(8):  # 2 and 24 MiB, as the activations of a few images; they go when it ends
        _ = [torch.ones(2**k) for k in (19, 19, 22, 22, 22, 22, 22)]

for _ in range(3):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    list(runtime.side_by_side(one, range(4), torch.device("cpu")))
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="a setting of glibc")
def test_memory_of_calls_side_by_side_is_used_again():
    environment = {**os.environ, "OMP_NUM_THREADS": "2"}
    environment.pop("MALLOC_ARENA_MAX", None)
    done = subprocess.run(
        [sys.executable, "-c", FAULTS], env=environment, capture_output=True, text=True, check=True
    )
    assert int(done.stdout) < 20_000  # of 4 KiB; 70,000 with an arena for each thread


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
