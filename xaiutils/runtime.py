"""Fast forward passes: ONNX Runtime on the CPU, torch elsewhere.

A module is asked whether it has one answer to an input (`probe`), then exported and compared with
torch (`onnx_export`). Gradients never pass through here.
"""

from __future__ import annotations

import contextlib
import copy
import ctypes
import logging
import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from threadpoolctl import ThreadpoolController

from xaiutils import onnx_export, probe
from xaiutils.classifiers.trained import one_thread as one_thread
from xaiutils.inputs import ask
from xaiutils.outputs import as_array, winners
from xaiutils.probe import one_line

log = logging.getLogger("xaiutils")

SIZES = (4, 8, 16, 32, 64, 256, 1024)  # candidate batch sizes
CALLABLE_BATCH = 32  # most inputs a call of a plain callable
BATCH_BYTES = {"cpu": 24 * 2**20, "cuda": 256 * 2**20}  # of inputs; larger batches are not tried

PLAIN_BATCH = 256  # images a call of `logits`
MOST_AT_ONCE = 8  # calls side by side: each holds the activations of a batch

# Decorator for products of small matrices. With several threads on cores that other processes
# use too, a fit of 3 ms was seen to take 340 ms.
one_blas_thread = ThreadpoolController().select(user_api="blas").wrap(limits=1)


def _reuse_freed_memory() -> None:
    """Tell glibc to keep up to 2 GiB of freed memory and to serve large arrays from it.

    By default arrays over 32 MiB come fresh from the system each time, a page fault for every
    4 KiB: on a virtual machine this took half the time of a gradient of 16 photographs. And each
    thread has an arena of 64 MiB pieces, which go back to the system however much is to be kept:
    passes side by side took a third longer. Arenas of threads that have started before this stay.
    Other C libraries are left alone.
    """
    with contextlib.suppress(AttributeError, OSError, TypeError):
        mallopt = ctypes.CDLL(None).mallopt
        # M_MMAP_MAX, M_TRIM_THRESHOLD, M_ARENA_MAX
        for option, value in ((-4, 0), (-1, 2**31 - 1), (-8, 1)):
            mallopt(option, value)


_reuse_freed_memory()

_lock = threading.RLock()
_prepared: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()


class Forward:
    """A model as a function from a torch batch (B, *shape) to an array (B, K).

    Attributes
    ----------
    backend : "onnxruntime", "torch" or "callable"
    batch_size : int
        The fastest of a few sizes, measured when it is first asked for.
    device : torch.device
        Where the batches must be.
    """

    def __init__(
        self,
        call: Callable,
        backend: str,
        device: torch.device,
        dtype=None,
        measure: Callable[[], int] = lambda: CALLABLE_BATCH,
        alone: Callable | None = None,
    ):
        self._call = call
        self.alone = alone  # what answers to a batch of one must agree with; None if nothing need
        self.backend = backend
        self.device = device
        self._dtype = dtype  # numpy dtype of floating inputs, None keeps theirs
        self._measure = measure

    @cached_property
    def batch_size(self) -> int:
        return self._measure()

    def cast(self, x: np.ndarray) -> np.ndarray:
        """`x` in the dtype the model computes in; integers are left alone."""
        if self._dtype is not None and np.issubdtype(x.dtype, np.floating):
            return x.astype(self._dtype, copy=False)
        return x

    def __call__(self, batch: torch.Tensor) -> np.ndarray:
        return self._call(batch)


def threads() -> int:
    """Threads this process may use: one a core, or fewer if OMP_NUM_THREADS says so.

    Only a positive integer there counts; anything else is as if it were not set.
    """
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count() or 1
    asked = os.environ.get("OMP_NUM_THREADS", "").strip()
    return min(cores, int(asked)) if asked.isdecimal() and int(asked) else cores


def side_by_side(function, items: Iterable, device: torch.device) -> Iterator:
    """Results of `function` for each item, in order; on the CPU several at a time.

    There each call runs torch on one thread. This costs no more than sharing each call among
    the cores, and the results do not depend on how many there are. `function` must be safe to
    call from several threads, as a module without side effects is. On other devices the items are
    taken one after the other.
    """
    if device.type != "cpu":
        yield from map(function, items)
        return
    at_once = min(threads(), MOST_AT_ONCE)
    one_each = {"initializer": torch.set_num_threads, "initargs": (1,)}
    with one_thread(), ThreadPoolExecutor(at_once, **one_each) as pool:
        waiting = deque()
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > at_once:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def pick_device(device: str = "auto") -> torch.device:
    """The torch device of this name; "auto" is a CUDA GPU where there is one, else the CPU.

    Raises
    ------
    ValueError
        If torch knows no such device here.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        tried = torch.zeros(1, device=torch.device(device))
        tried.cpu()
    except Exception as error:  # of many kinds, some of several lines
        raise ValueError(
            f'device {device!r} cannot be used here ({one_line(error)}); "auto" can'
        ) from None
    return tried.device


def logits(model: torch.nn.Module, images) -> np.ndarray:
    """Outputs (n, K) of a model for images (n, C, H, W), an array or a tensor.

    It is asked in batches where it lives, without the export of `forward`, which pays only for
    many more.
    """
    images = torch.as_tensor(images)
    place, dtype = probe.home(model)
    single = len(images) > 0 and probe.check(model, images[0]).single
    floating = dtype if images.is_floating_point() else None

    @torch.no_grad()
    def answer(part):
        # A copy, as a model may write to its input.
        return as_array(ask(model, part.to(place, floating, copy=True)))

    parts = images.split(1 if single else PLAIN_BATCH)
    return np.concatenate(list(side_by_side(answer, parts, place)))


def predicted(model: torch.nn.Module, images) -> np.ndarray:
    """Class (n,) with the largest of the `logits` of each image, of two classes or more."""
    return winners(logits(model, images))


def check_mode(model: torch.nn.Module) -> None:
    """Raise ValueError if dropout or batch norm of `model` is in training mode.

    For a model that is about to be asked; `probe.check` tells more, but asks it.
    """
    if any(part.training and isinstance(part, probe.MOODY) for part in model.modules()):
        raise ValueError("model is in training mode; call model.eval() before explaining it")


def forward(model, x: np.ndarray, device: str = "auto", batch_size: int | None = None) -> Forward:
    """The fastest way to run `model` on batches of inputs like `x`.

    Parameters
    ----------
    model : torch.nn.Module or callable
        See `perturb.evaluate`. What was prepared before is given back as it is.
    x : ndarray
        One input, no batch axis: its shape and dtype are what the model gets.
    device : str
        "auto" is the module's own device; otherwise a copy is moved there.
    batch_size : int, optional
        Inputs that will be asked about in a call. With 1 the model is never asked about more, not
        even to try it.

    Raises
    ------
    ValueError
        If training mode matters, if an input has no single answer, see `probe.check`; if the device
        cannot be used; if several inputs are wanted of a model that takes one.

    Notes
    -----
    What was prepared is used again until the module changes: its weights, modes, hooks, plain
    attributes, or anything else that changes its answer to an input of noise, which each call
    compares.
    """
    if isinstance(model, Forward):
        return model
    if not isinstance(model, torch.nn.Module):
        if not callable(model):
            raise ValueError(f"model must be a torch.nn.Module or a callable, got {model!r}")
        place = torch.device("cpu") if device == "auto" else pick_device(device)
        size = min(CALLABLE_BATCH, _most(x, place))
        return Forward(lambda b: as_array(ask(model, b)), "callable", place, measure=lambda: size)

    own, dtype = probe.home(model)
    place = own if device == "auto" else pick_device(device)
    with _lock:  # threads that explain the same model prepare it once
        seen = probe.check(model, x, batch_size)
        known = _prepared.setdefault(model, {})
        signature = x.shape, x.dtype, place
        kept = known.get(signature)
        if kept is not None and kept.seen is seen and not kept.holds(model):
            probe.forget(model)  # what it does now may be something else to refuse
            seen = probe.check(model, x, batch_size)
        if seen.single is not None and batch_size not in (None, 1):
            raise ValueError(
                f"batch_size must be 1, got {batch_size}: model takes one input at a time "
                f"({seen.single})"
            )
        if kept is None or kept.seen is not seen:
            known.clear()  # changed, or another kind of input: one entry per model is enough
            # The cache must not hold the caller's module, or its weak keys would never let go.
            get = weakref.ref(model)
            if place != own:
                moved = copy.deepcopy(model).to(place)
                get = lambda: moved  # noqa: E731
            made = known[signature] = _prepare(model, get, x, place, dtype, seen)
            if kept is not None and kept.takes_like(made):
                made.forward.batch_size = kept.forward.batch_size  # it need not be measured again
        prepared = known[signature].forward
        if batch_size is None:
            _ = prepared.batch_size  # measured here, not among the first calls
        return prepared


@dataclass(frozen=True)
class _Prepared:
    """A forward pass, and what the module was when it was made."""

    forward: Forward
    seen: probe.Probe
    noise: torch.Tensor | None  # (1 or 2, *shape); None where the module itself is asked
    answer: np.ndarray | None

    def takes_like(self, other: _Prepared) -> bool:
        """Whether the size of batches that was measured is that of another."""
        alike = self.forward.backend == other.forward.backend
        measured = "batch_size" in vars(self.forward)
        return alike and measured and self.seen.single == other.seen.single

    def holds(self, model) -> bool:
        """Whether the module still answers as it did."""
        if self.noise is None:
            return True
        try:
            return not probe.differs(probe.ask(model, self.noise), self.answer)
        except Exception:  # raised again, if it is, when the model is prepared
            return False


def _prepare(model, get, x, device, dtype, seen: probe.Probe) -> _Prepared:
    @torch.inference_mode()
    def with_torch(batch):
        cast = dtype if batch.is_floating_point() else None  # bfloat16, which arrays cannot be
        return as_array(ask(get(), batch.to(cast)))

    def fastest():
        return 1 if seen.single is not None else _fastest(plain, example, device)

    one_by_one = seen.alone or seen.single is not None
    alone = None if one_by_one else with_torch
    plain = Forward(with_torch, "torch", device, _numpy_dtype(dtype), fastest, alone)
    example = plain.cast(x)
    float32 = example.dtype == np.float32 and dtype in (None, torch.float32)
    if seen.single is not None:
        log.warning("model takes one input at a time (%s): using torch", seen.single)
    elif device.type == "cpu" and float32:
        try:
            return _onnx(model, get(), example, plain, seen)
        except Exception as error:  # any model must work; only the speed is lost
            while error.__cause__ is not None:
                error = error.__cause__
            log.warning("ONNX Runtime cannot run this model (%s): using torch", one_line(error))
    noise = answer = None
    if get() is not model:
        noise, answer = _answered(example, model, seen)
    return _Prepared(plain, seen, noise, answer)


def _onnx(model, module, x: np.ndarray, plain: Forward, seen: probe.Probe) -> _Prepared:
    noise, answer = _answered(x, model, seen)
    settings = probe.settings(model, seen.own)
    call, note = onnx_export.load(module, x, plain, answer, threads(), seen.alone, settings)

    def fastest():
        return onnx_export.remembered(note, threads(), lambda: _fastest(fast, x, fast.device))

    alone = None if seen.alone else plain
    fast = Forward(call, "onnxruntime", torch.device("cpu"), np.float32, fastest, alone)
    return _Prepared(fast, seen, noise, answer)


def _answered(x: np.ndarray, model, seen) -> tuple[torch.Tensor, np.ndarray]:
    """Noise, and what the network says of it."""
    noise = _noise(x, model, seen)
    try:
        return noise, probe.ask(model, noise)
    except Exception:  # of values that it refuses
        noise = noise[:1].abs() % 1
        return noise, probe.ask(model, noise)


def _noise(x: np.ndarray, model, seen: probe.Probe) -> torch.Tensor:
    """A batch of one or two inputs, the same for all of this shape; integers are as in `x`."""
    place, dtype = probe.home(model)
    if not np.issubdtype(x.dtype, np.floating):
        return torch.from_numpy(x[None].copy()).to(place)
    rng, kind = np.random.default_rng(0), dtype or torch.from_numpy(x).dtype
    within = rng.random((1, *x.shape))
    # Inputs need not be in [0, 1]: what happens to negative and to large ones is to be seen, too.
    around = rng.normal(size=within.shape) * rng.choice([1, 10], within.shape, p=[0.9, 0.1])
    if seen.single is not None or seen.alone:
        return torch.from_numpy(np.where(rng.random(within.shape) < 0.5, within, around)).to(
            place, kind
        )
    return torch.from_numpy(np.concatenate([within, around])).to(place, kind)


def _numpy_dtype(dtype: torch.dtype | None) -> np.dtype | None:
    """What numpy has for it: float32 for types that only torch knows."""
    if dtype is None:
        return None
    try:
        return torch.empty(0, dtype=dtype).numpy().dtype
    except TypeError:
        return np.dtype(np.float32)


def _fastest(call: Callable, x, device, sizes: Sequence[int] = SIZES) -> int:
    """Batch size with the most inputs per second."""
    most = _most(x, device)
    best, best_rate = min(sizes[0], most), 0.0
    for size in (size for size in sizes if size <= most):
        batch = torch.from_numpy(np.broadcast_to(x, (size, *x.shape)).copy()).to(device)
        call(batch)
        seconds = []
        for _ in range(3):
            start = time.perf_counter()
            call(batch)
            seconds.append(time.perf_counter() - start)
        rate = size / min(seconds)
        if rate > 1.02 * best_rate:  # a larger batch must be worth its memory
            best, best_rate = size, rate
    return best


def _most(x, device) -> int:
    """Most inputs like `x` a call."""
    return max(1, BATCH_BYTES.get(device.type, BATCH_BYTES["cpu"]) // max(x.nbytes, 1))
