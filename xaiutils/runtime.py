"""Fast forward passes: ONNX Runtime on the CPU, torch elsewhere.

A module is exported once, the export is checked against torch and kept in the cache under
a key of the module's code and weights. Gradients never pass through here.
"""

from __future__ import annotations

import contextlib
import copy
import ctypes
import hashlib
import inspect
import io
import json
import logging
import os
import platform
import time
import weakref
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from threadpoolctl import ThreadpoolController

from xaiutils.classifiers.trained import one_thread as one_thread
from xaiutils.data import assets
from xaiutils.inputs import ask
from xaiutils.outputs import as_array, winners

log = logging.getLogger("xaiutils")

TOLERANCE = 1e-4  # largest difference between the export and torch, relative to the outputs' size
SIZES = (4, 8, 16, 32, 64, 256, 1024)  # candidate batch sizes
BATCH_BYTES = {"cpu": 24 * 2**20, "cuda": 256 * 2**20}  # larger batches are not tried

PLAIN_BATCH = 256  # images a call of `logits`
MOST_AT_ONCE = 8  # calls side by side: each holds the activations of a batch

# Layers whose training mode makes outputs random or dependent on the batch.
_MOODY = (torch.nn.modules.dropout._DropoutNd, torch.nn.modules.batchnorm._NormBase)

# Decorator for products of small matrices. With several threads on cores that other processes
# use too, a fit of 3 ms was seen to take 340 ms.
one_blas_thread = ThreadpoolController().select(user_api="blas").wrap(limits=1)


def _reuse_freed_memory() -> None:
    """Tell glibc to keep up to 2 GiB of freed memory and to serve large arrays from it.

    By default arrays over 32 MiB come fresh from the system each time, a page fault for every
    4 KiB: on a virtual machine this took half the time of a gradient of 16 photographs. Other C
    libraries are left alone.
    """
    with contextlib.suppress(AttributeError, OSError, TypeError):
        mallopt = ctypes.CDLL(None).mallopt
        for option, value in ((-4, 0), (-1, 2**31 - 1)):  # M_MMAP_MAX, M_TRIM_THRESHOLD
            mallopt(option, value)


_reuse_freed_memory()

_forwards: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()


class Forward:
    """A model as a function from a torch batch (B, *shape) to an array (B, K).

    Attributes
    ----------
    backend : "onnxruntime", "torch" or "callable"
    batch_size : int
        The fastest of a few sizes, measured when the model was first used.
    device : torch.device
        Where the batches must be.
    """

    def __init__(self, call, backend: str, device: torch.device, dtype=None):
        self._call = call
        self.backend = backend
        self.device = device
        self.batch_size = 32
        self._dtype = dtype  # numpy dtype of floating inputs, None keeps theirs

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
        place = torch.device(device)
        torch.empty(0, device=place)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f'device {device!r} cannot be used here ({error}); "auto" can') from None
    return place


def logits(model: torch.nn.Module, images) -> np.ndarray:
    """Outputs (n, K) of a model for images (n, C, H, W), an array or a tensor.

    It is asked in batches where it lives, without the export of `forward`, which pays only for
    many more.
    """
    place = next(model.parameters()).device

    @torch.no_grad()
    def answer(part):
        return as_array(ask(model, part.to(place, copy=True)))  # a model may write to its input

    parts = torch.as_tensor(images).split(PLAIN_BATCH)
    return np.concatenate(list(side_by_side(answer, parts, place)))


def predicted(model: torch.nn.Module, images) -> np.ndarray:
    """Class (n,) with the largest of the `logits` of each image, of two classes or more."""
    return winners(logits(model, images))


def check_mode(model: torch.nn.Module) -> None:
    """Raise ValueError if dropout or batch norm of `model` is in training mode."""
    if any(part.training and isinstance(part, _MOODY) for part in model.modules()):
        raise ValueError("model is in training mode; call model.eval() before explaining it")


def forward(model, x: np.ndarray, device: str = "auto") -> Forward:
    """The fastest way to run `model` on batches of inputs like `x`.

    Parameters
    ----------
    model : torch.nn.Module or callable
        See `perturb.evaluate`.
    x : ndarray
        One input, no batch axis: its shape and dtype are what the model gets.
    device : str
        "auto" is the module's own device; otherwise a copy is moved there.

    Raises
    ------
    ValueError
        If dropout or batch norm is in training mode.

    Notes
    -----
    What was prepared is used again until a parameter changes in place. Changes that torch does
    not count (`parameter.data`, plain attributes of a module) go unnoticed: make a new module.
    """
    if not isinstance(model, torch.nn.Module):
        if not callable(model):
            raise ValueError(f"model must be a torch.nn.Module or a callable, got {model!r}")
        place = torch.device("cpu" if device == "auto" else device)
        return Forward(lambda batch: as_array(ask(model, batch)), "callable", place)
    check_mode(model)

    weights = [*model.parameters(), *model.buffers()]
    own = weights[0].device if weights else torch.device("cpu")
    place = own if device == "auto" else torch.device(device)
    dtypes = {w.dtype for w in weights if w.is_floating_point()}
    dtype = torch.empty(0, dtype=dtypes.pop()).numpy().dtype if len(dtypes) == 1 else None
    signature = (x.shape, x.dtype, place, _version(weights))
    known = _forwards.setdefault(model, {})
    if signature not in known:
        known.clear()  # weights changed, or another kind of input: one entry per model is enough
        # The cache must not hold the caller's module, or its weak keys would never let go.
        get = weakref.ref(model)
        if place != own:
            moved = copy.deepcopy(model).to(place)
            get = lambda: moved  # noqa: E731
        known[signature] = _prepare(get, x, place, dtype)
    return known[signature]


def _prepare(get, x, device, dtype):
    def with_torch(batch):
        with torch.inference_mode():
            return as_array(ask(get(), batch))

    plain = Forward(with_torch, "torch", device, dtype)
    example = plain.cast(x)
    if device.type == "cpu" and example.dtype == np.float32:
        try:
            return _onnx(get(), example, plain)
        except Exception as error:  # any model must work; only the speed is lost
            while error.__cause__ is not None:
                error = error.__cause__
            reason = " ".join(str(error).split()) or type(error).__name__
            log.warning("ONNX Runtime cannot run this model (%s): using torch", reason[:160])
    plain.batch_size = _fastest(plain, example, device)
    return plain


def _onnx(module, x: np.ndarray, plain: Forward) -> Forward:
    folder = assets.cache_folder() / "onnx"
    path = folder / f"{_key(module, x.shape)}.onnx"
    with assets.writing(folder, path.name):
        if path.exists():
            try:
                fast = _checked(path, x, plain)
            except Exception:  # damaged or tampered with: the export below replaces it
                path.unlink()
        if not path.exists():
            with assets.replacing(path) as partial:
                _export(module, x, partial)
                fast = _checked(partial, x, plain)
        fast.batch_size = _remembered_size(path.with_suffix(".json"), fast, x)
    return fast


def _export(module, x, path: Path) -> None:
    batch = torch.from_numpy(np.stack([x, x]))
    training = [part for part in module.modules() if part.training]
    module.eval()  # a bare container starts in training mode, which the exporter warns about
    # The exporter reports every step and every failed attempt; one line of ours says enough.
    quiet = contextlib.ExitStack()
    logging.disable(logging.ERROR)
    quiet.callback(logging.disable, logging.NOTSET)
    for redirect in (contextlib.redirect_stdout, contextlib.redirect_stderr):
        quiet.enter_context(redirect(io.StringIO()))
    try:
        with quiet:
            torch.onnx.export(
                module,
                (batch,),
                path,
                dynamo=True,
                dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=2**20)},),
                external_data=False,
                verbose=False,
            )
    finally:
        for part in training:
            part.training = True


def _checked(path: Path, x, plain: Forward) -> Forward:
    """The exported model, if its outputs are those of torch.

    Raises
    ------
    ValueError
        If they differ by more than `TOLERANCE`.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads()
    # Threads that spin between calls take the core that builds the next batch; where other
    # processes use the cores too, spinning halved the speed.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        path.read_bytes(), options, providers=["CPUExecutionProvider"]
    )
    name = session.get_inputs()[0].name
    fast = Forward(
        lambda batch: as_array(session.run(None, {name: batch.numpy()})[0]),
        "onnxruntime",
        torch.device("cpu"),
        np.float32,
    )
    probe = torch.from_numpy(np.stack([x, np.flip(x).copy(), np.zeros_like(x)]))
    expected, found = plain(probe), fast(probe)
    gap = np.abs(expected - found).max() / max(np.abs(expected).max(), 1.0)
    if not gap <= TOLERANCE:
        raise ValueError(f"its export differs from torch by {gap:.1e}, allowed {TOLERANCE:.0e}")
    return fast


def _remembered_size(path: Path, fast: Forward, x) -> int:
    """Measured batch size, kept beside the export so that reruns use the same."""
    machine = f"{platform.machine()} {platform.processor()} {threads()}"
    with contextlib.suppress(OSError, ValueError, KeyError):  # none yet, or damaged
        note = json.loads(path.read_text())
        if note["machine"] == machine:
            return int(note["batch_size"])
    size = _fastest(fast, x, fast.device)
    with assets.replacing(path) as partial:
        partial.write_text(json.dumps({"machine": machine, "batch_size": size}))
    return size


def _fastest(call: Forward, x, device, sizes: Sequence[int] = SIZES) -> int:
    """Batch size with the most inputs per second."""
    best, best_rate = sizes[0], 0.0
    for size in sizes:
        if size > sizes[0] and size * x.nbytes > BATCH_BYTES.get(device.type, 0):
            break
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


def _key(module, shape) -> str:
    """Hash of what decides the export: code of the module's classes, weights, input shape."""
    digest = hashlib.sha256(f"{torch.__version__} {shape} {module!r}".encode())
    for kind in sorted({type(part) for part in module.modules()}, key=lambda t: t.__qualname__):
        try:
            digest.update(inspect.getsource(kind).encode())
        except (OSError, TypeError):  # defined in a console: the check at load still guards it
            digest.update(kind.__qualname__.encode())
    for name, value in module.state_dict().items():
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:24]


def _version(weights) -> tuple:
    return tuple((w.data_ptr(), w._version) for w in weights)
