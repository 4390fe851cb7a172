"""What a network must be to be explained: one answer to one input, whatever is asked beside it.

A network is asked on a copy, before it is explained, and again when it was changed: in evaluation
mode, the same inputs twice, beside other inputs and alone. Neither the caller's module nor the
process's random numbers are changed by it.
"""

from __future__ import annotations

import contextlib
import copy
import logging
import random
import threading
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple

import numpy as np
import torch

from xaiutils.inputs import ask as asked_for
from xaiutils.outputs import as_array

log = logging.getLogger("xaiutils")

REPEATS = 32  # of the same question to a network that draws random numbers
# Largest difference between answers that should be equal, relative to their size. The same batch
# is the same arithmetic, to the bit on a CPU: there a network that draws random numbers gets no
# more than a bit. Another size of batch is summed in another order.
EXACT, STRICT, LOOSE = 5e-7, 1e-5, 1e-2

# Layers whose training mode makes outputs random or dependent on the batch, seen here or not.
MOODY = (torch.nn.modules.dropout._DropoutNd, torch.nn.modules.batchnorm._BatchNorm)
_FEW = 4096  # numbers of an array that are compared one by one
_SCALARS = (bool, int, float, complex, str, type(None))
_OF_EACH_MODULE = {*vars(torch.nn.Module())}

HOOKS = threading.Lock()  # held while hooks of a model come or go, and while it is copied
_lock = threading.RLock()  # the random numbers of the process are taken by one thread at a time
_probes: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()


@dataclass(frozen=True, eq=False)
class Probe:
    """What asking a network once has shown; the same object until the network is changed.

    Attributes
    ----------
    single : str or None
        Why the network takes one input at a time, in its own words; None if it takes several.
    """

    single: str | None
    state: int  # hash of the attributes, without the names that the network changes itself
    own: frozenset
    alone: bool  # it was asked one input at a time, so dependence on others is not excluded


def check(model: torch.nn.Module, x, batch_size: int | None = None) -> Probe:
    """Refuse a network whose answer to an input is not one answer.

    Parameters
    ----------
    model : torch.nn.Module
    x : array or tensor
        One input, no batch axis. Floating inputs are cast to the dtype of the weights.
    batch_size : int, optional
        With 1 it is only asked one input at a time, and need not take more.

    Returns
    -------
    Probe
        Kept for inputs of this shape until weights, modes, hooks or plain attributes (numbers,
        strings, also in settings) of the network change. Those that it changes itself do not count.

    Raises
    ------
    ValueError
        If training mode changes its answers, if the same question gets another answer, or if
        other inputs of a batch change it.
    """
    for part in model.modules():
        if isinstance(part, MOODY) and part.training and getattr(part, "p", 1) > 0:
            _refuse_training()
    x = torch.from_numpy(np.array(x)) if not isinstance(x, torch.Tensor) else x.detach().cpu()
    dtype = home(model)[1]
    if x.is_floating_point() and dtype is not None:
        x = x.to(dtype)
    with _lock:
        known = _probes.setdefault(model, {})
        found = known.get((x.shape, x.dtype))
        if (
            found is None
            or (found.alone and batch_size != 1)
            or found.state != _state(_attributes(model), found.own)
        ):
            found = known[x.shape, x.dtype] = _probe(model, x, alone=batch_size == 1)
    return found


def forget(model: torch.nn.Module) -> None:
    """Ask this network again when it is checked next."""
    with _lock:
        _probes.pop(model, None)


def home(model: torch.nn.Module) -> tuple[torch.device, torch.dtype | None]:
    """Where the weights of a network are, and their floating dtype; None if several or none."""
    weights = [*model.parameters(), *model.buffers()]
    dtypes = {w.dtype for w in weights if w.is_floating_point()}
    device = weights[0].device if weights else torch.device("cpu")
    return device, dtypes.pop() if len(dtypes) == 1 else None


def ask(model: torch.nn.Module, batch: torch.Tensor) -> np.ndarray:
    """Outputs of a network for a batch; random numbers that it draws are not missed by others."""
    with random_numbers(None):
        return _answer(model, batch)


def differs(found: np.ndarray, expected: np.ndarray, tolerance: float = STRICT) -> bool:
    """Whether answers (B, ...) differ by more than `tolerance`.

    It is relative to the largest value of each output; a fourth of it to that of all outputs.
    """
    if np.array_equal(found, expected):
        return False
    if found.shape != expected.shape or found.dtype.kind not in "fc":
        return True
    wide = np.complex128 if found.dtype.kind == "c" else np.float64
    found, expected = found.astype(wide), expected.astype(wide)
    with np.errstate(invalid="ignore", over="ignore"):
        size = np.nan_to_num(np.abs(expected), posinf=0)
        allowed = tolerance * (size.max(0, initial=0) + size.max(initial=0) / 4)
        alike = (np.abs(found - expected) <= allowed) | (found == expected)
    return not (alike | (np.isnan(found) & np.isnan(expected))).all()


@contextlib.contextmanager
def random_numbers(seed: int | None) -> Iterator[None]:
    """Give the random numbers of torch, numpy and Python back as they were; seed them meanwhile."""
    cuda = torch.cuda.is_initialized()
    devices = list(range(torch.cuda.device_count())) if cuda else []
    with _lock, torch.random.fork_rng(devices):
        of_numpy, of_python = np.random.get_bit_generator(), random.getstate()
        state = np.random.get_state(legacy=False)  # noqa: NPY002, the one that others draw from
        try:
            if seed is not None:
                torch.default_generator.manual_seed(seed)
                if cuda:  # else it would be seeded at its first use, after all is given back
                    torch.cuda.manual_seed_all(seed)
                np.random.set_bit_generator(np.random.MT19937(seed))
                random.seed(seed)
            yield
        finally:
            np.random.set_bit_generator(of_numpy)
            np.random.set_state(state)  # noqa: NPY002
            random.setstate(of_python)


def one_line(error: BaseException) -> str:
    """What an error says, at most 160 characters of it."""
    return " ".join(str(error).split())[:160] or type(error).__name__


def _probe(model, x, alone: bool) -> Probe:
    device, dtype = home(model)
    eps = torch.finfo(dtype or torch.float32).eps  # half precision rounds more
    exact, strict = (EXACT, STRICT) if device.type == "cpu" else 2 * (max(STRICT, 2 * eps),)
    same = strict
    first = problem = failure = settled = None
    with _twin(model) as twin:
        before = _attributes(twin)

        def asked(batch, seed):
            with random_numbers(seed):
                fresh = _draws(device)
            with random_numbers(seed):
                return _answer(twin, batch.to(device)), _draws(device) != fresh

        try:
            first = _first(asked, x, alone)
            same = exact if first.drew else strict
            problem = _problem(asked, first, (same, strict, max(LOOSE, 64 * eps)), model)
        except Exception as error:
            failure = error
        after = _attributes(twin)
        moved = twin is not model and _moved(twin, model)
        if any(_training(part) for part in twin.modules()):
            with contextlib.suppress(Exception):  # then there is nothing to compare with
                _evaluate(twin, model)
                in_eval = _first(asked, x, alone)
                again, _ = asked(in_eval.batch, 0)
                settled = None if differs(again, in_eval.answer, strict) else in_eval.answer
    if settled is not None and (first is None or differs(first.answer, settled, same)):
        _refuse_training()
    if failure is not None:
        raise failure
    if problem is not None:
        raise ValueError(problem)
    if first.drew:
        log.warning("model draws random numbers, but %d answers were the same", REPEATS + 1)
    own = frozenset(name for name in before | after if before.get(name) != after.get(name))
    if moved:
        raise ValueError(
            "model changes its own weights or buffers when it is asked, as layers do that set "
            "themselves up at the first batch; ask it once, in evaluation mode, and explain it then"
        )
    return Probe(first.single, _state(_attributes(model), own), own, alone)


def _problem(asked: Callable, first: _First, tolerances: tuple, model) -> str | None:
    """Why an answer is not the only one."""
    same, strict, loose = tolerances  # for the same batch, one of its size, one of another size
    beside = None
    if first.other is not None:
        with contextlib.suppress(Exception):  # of values that the network refuses
            beside, _ = asked(first.other, 1)
    doubtful = first.drew or _has_generator(model)
    for seed in range(2, 2 + (REPEATS if doubtful else 1)):
        again, _ = asked(first.batch, seed)
        if differs(again, first.answer, same):
            return _fickle(_by(again, first.answer), first.drew)
    if len(first.batch) == 1 or first.answer.shape[:1] != (len(first.batch),):
        return None
    ends = first.answer[[0, -1]]
    if beside is not None and differs(beside[[0, -1]], ends, strict):
        return _mixing(_by(beside[[0, -1]], ends), model)
    for row, wanted in ((first.batch[:1], ends[:1]), (first.batch[-1:], ends[1:])):
        one = wanted
        with contextlib.suppress(Exception):  # a network may take no single inputs
            one, _ = asked(row, 0)
        # A different number of values is for others to refuse.
        if one.size == wanted.size and differs(one.reshape(wanted.shape), wanted, loose):
            return _mixing(_by(one.reshape(wanted.shape), wanted), model)
    return None


class _First(NamedTuple):
    """The first answer of a network."""

    answer: np.ndarray
    drew: bool  # random numbers
    batch: torch.Tensor
    other: torch.Tensor | None  # another batch with the same ends
    single: str | None


def _first(asked: Callable, x, alone: bool) -> _First:
    """Answer to the first of some batches that the network takes.

    A network may refuse values in an order that it does not know: three copies of `x` come after
    shuffled ones. One that refuses them too takes one input at a time.
    """
    batches = _batches(x)
    error = None
    for batch, other in () if alone else (batches, (batches[0][:1].expand(3, *x.shape), None)):
        try:
            return _First(*asked(batch, 0), batch, other, None)
        except Exception as raised:
            error = raised
    batch = batches[0][:1]
    single = None if error is None else one_line(error)
    return _First(*asked(batch, 0), batch, None, single)


def _batches(x) -> tuple[torch.Tensor, torch.Tensor]:
    """Two batches of three inputs made of the values of `x`, with the same ones at both ends.

    In the second, the one between goes beyond the smallest and largest value, and has another mean.
    """
    rng = np.random.default_rng(0)
    values = x.flatten()
    if values.is_floating_point() and (values == values[:1]).all():  # dropout of 0 is not seen
        values = values + torch.from_numpy(rng.random(len(values))).to(values)
    shuffled, between = (values[rng.permutation(len(values))] for _ in range(2))
    # The same values in another order have the same mean; these are larger.
    order = values.abs() if values.is_complex() else values.double()
    upper = order.argsort()[len(values) // 2 :]
    other = values[upper[(rng.random(len(values)) * len(upper)).astype(int)]]
    if other.is_floating_point() and len(other) > 1:
        low, high = values.min(), values.max()
        other = low + 3 * (other - low)
        other[:: max(len(other) // 8, 2)] = low - 2 * (high - low)
    return tuple(
        torch.stack([values, middle, shuffled]).view(3, *x.shape) for middle in (between, other)
    )


@contextlib.contextmanager
def _twin(model) -> Iterator[torch.nn.Module]:
    """A copy of a network to try things on; if there is none, itself, put back afterwards."""
    weights = [*model.parameters(), *model.buffers()]
    try:
        with HOOKS:
            twin = copy.deepcopy(model)
        parts = {id(part) for part in (*model.modules(), *weights)}
        shared = any(
            id(part) in parts for part in (*twin.modules(), *twin.parameters(), *twin.buffers())
        )
    except Exception:  # a layer may hold anything: an open file, a lock, a tensor with a graph
        shared = True
    if not shared:
        yield twin
        return
    modes = [(part, part.training) for part in model.modules()]
    kept = [weight.detach().clone() for weight in weights]
    try:
        yield model
    finally:
        for part, mode in modes:
            part.training = mode
        for weight, value in zip(weights, kept, strict=True):
            # In place only what changed: else a graph that is in use would be out of date.
            if not torch.equal(weight.nan_to_num(), value.nan_to_num()):
                weight.detach().copy_(value)


def _moved(twin, model) -> bool:
    """Whether numbers in the weights or buffers of a copy are no longer those of a network."""
    pairs = zip(
        (*twin.parameters(), *twin.buffers()), (*model.parameters(), *model.buffers()), strict=False
    )
    return any(
        one.is_floating_point() and not torch.equal(one.nan_to_num(), other.nan_to_num())
        for one, other in pairs
        if one.shape == other.shape and one.dtype == other.dtype
    )


def _evaluate(twin, model) -> None:
    """Put a twin into evaluation mode, without its own code where it is the caller's module."""
    if twin is not model:
        twin.eval()
    for part in twin.modules():
        part.training = False


def _answer(model, batch) -> np.ndarray:
    with torch.no_grad():
        return as_array(asked_for(model, batch.clone()))  # which it may overwrite


def _draws(device) -> tuple:
    """The next random number of each kind."""
    of_numpy = np.random.get_bit_generator().random_raw()
    return torch.rand(()), torch.rand((), device=device), of_numpy, random.random()


def _attributes(model) -> dict:
    """What tells a network from itself after a change, by place and name."""
    found = {}
    for i, part in enumerate(model.modules()):
        hooks = (*getattr(part, "_forward_pre_hooks", ()), *getattr(part, "_forward_hooks", ()))
        found[i, "hooks"] = type(part), hooks  # the numbers of hooks are not given twice
        found[i, "training"] = _training(part)
        for name in vars(part).keys() - _OF_EACH_MODULE:
            found[i, name] = _plain(vars(part)[name])
    for i, weight in enumerate((*model.parameters(), *model.buffers())):
        version = 0 if weight.is_inference() else weight._version
        found["weight", i] = weight.data_ptr(), version
    return found


def _plain(value, depth: int = 2):
    """The numbers and strings in an attribute, at the top of containers and settings too."""
    if type(value) in _SCALARS:
        return value
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, torch.Tensor | np.ndarray):
        return _content(value)
    if isinstance(value, set | frozenset):
        return tuple(sorted(map(repr, value))[:64])
    if isinstance(value, dict):
        items = value.items()
    elif isinstance(value, list | tuple):
        items = enumerate(value)
    elif isinstance(value, type | torch.nn.Module):
        return None
    else:
        items = getattr(value, "__dict__", {}).items()
    return tuple((k, _plain(v, depth - 1)) for k, v in islice(items, 64)) if depth else None


def _content(value):
    """What tells an array from another one: its numbers if they are few, else only its form.

    The place in memory does not count: it is that of an earlier answer again, if answers are kept.
    """
    version = 0
    if isinstance(value, torch.Tensor):
        version = 0 if value.is_inference() else value._version
        if value.numel() > _FEW or value.dtype == torch.bfloat16 or value.is_sparse:
            return str(value.dtype), tuple(value.shape), version
        value = value.detach().cpu().numpy()
    if value.size > _FEW or value.dtype.hasobject:
        return str(value.dtype), value.shape, version
    return str(value.dtype), value.shape, value.tobytes()


def settings(model, own: frozenset) -> str:
    """Plain attributes of a network that are not its own doing, the same text in each process."""
    found = {
        key: value
        for key, value in _attributes(model).items()
        if key[0] != "weight" and key[1] not in ("hooks", "training") and key not in own
    }
    return repr(sorted(found.items()))


def _has_generator(model) -> bool:
    """Whether a layer draws from random numbers of its own, which nobody else can see."""
    kinds = (random.Random, np.random.Generator, np.random.RandomState, torch.Generator)
    return any(isinstance(v, kinds) for part in model.modules() for v in vars(part).values())


def _state(attributes: dict, own: frozenset) -> int:
    return hash(frozenset(item for item in attributes.items() if item[0] not in own))


def _training(part) -> bool:
    return getattr(part, "training", False)


def _by(found, expected) -> str:
    """How far two answers are apart, in words."""
    if found.shape != expected.shape or found.dtype.kind not in "fc":
        return ""
    gap, size = (np.nan_to_num(np.abs(a)).max(initial=0) for a in (found - expected, expected))
    return f" by {gap / size:.1g} of the largest" if size else f" by {gap:.1g}"


def _fickle(by: str, drew: bool) -> str:
    if drew:
        return (
            f"model draws random numbers: its answers to the same inputs differ{by}; take out the "
            "dropout or noise that model.eval() leaves on, or give a callable that fixes its seed"
        )
    return (
        f"model's answers to the same inputs differ{by} from call to call: it keeps something or "
        "draws random numbers of its own; take out the layer that does"
    )


def _mixing(by: str, model) -> str:
    layers = [
        f"{name or 'model'!r} is a {type(part).__name__} without running statistics; "
        for name, part in (() if model is None else model.named_modules())
        if isinstance(part, torch.nn.modules.batchnorm._BatchNorm) and part.running_mean is None
    ]
    return (
        f"model's answer to an input differs{by} with what else is in the batch: "
        f"{''.join(layers[:1])}take out what mixes inputs, or ask one by one with batch_size=1"
    )


def mixing(found, expected) -> str:
    """What is wrong with a model whose answer to an input depends on others, see `check`."""
    return _mixing(_by(found, expected), None)


def _refuse_training():
    raise ValueError("model is in training mode; call model.eval() before explaining it") from None
