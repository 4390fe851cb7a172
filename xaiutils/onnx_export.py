"""Networks as ONNX files: exported once, compared with torch, kept in the cache.

The key of a file is made of the code of the module's classes, its weights and what it answers to
noise. The sha256 of a file lies beside it; a file that does not have it is replaced.
"""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import io
import json
import logging
import platform
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnxruntime
import torch

from xaiutils.data import assets
from xaiutils.probe import one_line

log = logging.getLogger("xaiutils")

MOST = 4096  # inputs a call, whatever is noted
TOLERANCE = 1e-4  # largest difference between the export and torch, relative to the outputs' size

Call = Callable[[torch.Tensor], np.ndarray]


def load(
    module: torch.nn.Module,
    x: np.ndarray,
    by_torch: Call,
    answer: np.ndarray,
    threads: int,
    alone: bool = False,
    settings: str = "",
) -> tuple[Call, Path | None]:
    """A module as a function of float32 batches (B, *x.shape) on ONNX Runtime.

    Parameters
    ----------
    module : torch.nn.Module
        On the CPU, in float32.
    x : float32 ndarray
        One input.
    by_torch : callable
        The outputs of `module` for a batch; what the export must agree with.
    answer : ndarray
        Outputs for inputs that do not depend on `x`. Two states of a module whose weights are
        equal differ in them.
    threads : int
    alone : bool
        Compare inputs one by one.
    settings : str
        Attributes of the module that its code may use, see `probe.settings`.

    Returns
    -------
    call : callable
    note : Path or None
        Where to keep what is learnt about the export; None if the export could not be kept.

    Raises
    ------
    Exception
        Whatever the exporter or ONNX Runtime raises for modules that they cannot carry;
        ValueError if the outputs differ from those of torch by more than `TOLERANCE`.
    """
    folder = assets.cache_folder() / "onnx"
    path = folder / f"{_key(module, x.shape, answer, settings)}.onnx"

    def checked(content: bytes) -> Call:
        call = _session(content, threads)
        _compare(call, by_torch, x, [1, 1, 1] if alone else [1, 2])
        return call

    def made(partial: Path) -> tuple[Call, bytes]:
        _export(module, x, partial)
        content = partial.read_bytes()
        return checked(content), content

    with contextlib.suppress(Exception):  # without the lock: the folder may be read-only
        return checked(_intact(path)), path.with_suffix(".json")
    try:
        with assets.writing(folder, path.name):
            try:  # another process may have written it meanwhile
                return checked(_intact(path)), path.with_suffix(".json")
            except FileNotFoundError:
                pass
            except Exception as error:
                log.warning("export %s is replaced: %s", path, one_line(error))
            with assets.replacing(path) as partial:
                call, content = made(partial)
                with assets.replacing(_sidecar(path)) as noted:
                    noted.write_text(f"{_sha256(content)}  {path.name}\n")
            return call, path.with_suffix(".json")
    except assets.AssetError as error:
        with tempfile.TemporaryDirectory() as spare:
            call, _ = made(Path(spare) / path.name)
        log.warning(
            "an export is made again by each process: %s", one_line(error.__cause__ or error)
        )
        return call, None


def remembered(note: Path | None, threads: int, measure: Callable[[], int]) -> int:
    """Measured batch size, kept beside the export so that reruns use the same."""
    machine = f"{platform.machine()} {platform.processor()} {threads}"
    if note is None:
        return measure()
    with contextlib.suppress(
        OSError, ValueError, KeyError, TypeError, OverflowError
    ):  # none, or damaged
        found = json.loads(note.read_text())
        if found["machine"] == machine:
            return min(max(1, int(found["batch_size"])), MOST)
    size = measure()
    with (
        contextlib.suppress(assets.AssetError),  # a read-only folder: measured each time
        assets.writing(note.parent, note.name),
        assets.replacing(note) as partial,
    ):
        partial.write_text(json.dumps({"machine": machine, "batch_size": size}))
    return size


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


def _session(content: bytes, threads: int) -> Call:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    # Threads that spin between calls take the core that builds the next batch; where other
    # processes use the cores too, spinning halved the speed.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda batch: session.run(None, {name: batch.numpy()})[0]


def _compare(call: Call, by_torch: Call, x, sizes: Sequence[int]) -> None:
    """Raise ValueError if the outputs for three inputs, in batches, are not those of torch."""
    batches = torch.from_numpy(np.stack([x, np.flip(x), np.zeros_like(x)])).split(sizes)
    expected, found = (np.concatenate([f(batch) for batch in batches]) for f in (by_torch, call))
    if expected.shape != found.shape:
        raise ValueError(f"its export gives {found.shape} where torch gives {expected.shape}")
    size = max(np.abs(expected).max(initial=0), np.finfo(np.float32).tiny)
    gap = np.abs(expected - found).max(initial=0) / size
    if not gap <= TOLERANCE:
        raise ValueError(f"its export differs from torch by {gap:.1e}, allowed {TOLERANCE:.0e}")


def _intact(path: Path) -> bytes:
    """Content of an export, if its sha256 is the one noted beside it.

    Raises
    ------
    FileNotFoundError
        If there is no export.
    ValueError
        If it is another, or if none is noted.
    """
    content = path.read_bytes()
    try:
        noted = _sidecar(path).read_text().split()[:1]
    except (OSError, ValueError):
        noted = []
    if noted != [_sha256(content)]:
        raise ValueError(f"its sha256 is {_sha256(content)}, noted is {' '.join(noted) or 'none'}")
    return content


def _sidecar(path: Path) -> Path:
    return path.with_name(f"{path.name}.sha256")


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _key(module, shape, answer, settings) -> str:
    """Hash of what decides the export: code of the module's classes, weights, shape and answer."""
    digest = hashlib.sha256(f"{torch.__version__} {shape} {module!r} {settings}".encode())
    for kind in sorted({type(part) for part in module.modules()}, key=lambda t: t.__qualname__):
        try:
            digest.update(inspect.getsource(kind).encode())
        except (OSError, TypeError):  # defined in a console: the check at load still guards it
            digest.update(kind.__qualname__.encode())
    # A state_dict leaves out buffers that are not to be kept.
    for name, value in (*module.named_parameters(), *module.named_buffers()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    digest.update(_summary(answer).encode())
    return digest.hexdigest()[:24]


def _summary(answer) -> str:
    """A few sums of the outputs with random signs, so coarse that rounding does not change them."""
    values = np.asarray(answer, np.float64).ravel()
    signs = np.random.default_rng(0).choice((-1, 1), (4, values.size))
    return " ".join(f"{total:.3e}" for total in signs @ values)
