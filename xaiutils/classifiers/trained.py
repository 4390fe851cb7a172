"""Small models this project trains itself: committed files, a cache, and how to retrain them."""

import argparse
import ast
import functools
import hashlib
import importlib
import inspect
import json
import os
import sys
import textwrap
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import torch
from filelock import FileLock
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialized
from torch import Tensor, nn

from xaiutils.data import assets

COMMITTED = assets.DATA / "trained"
# Names the models that an interrupted `make retrain` has made of this very clone: beside what it
# made, never in a cache that other clones share.
JOURNAL = assets.DATA.parent / "build" / "retrained.txt"
# Each of these modules offers `recipes()`, the models of the default profile. They are named, not
# imported: they stand on floors above this one.
MODULES = ("xaiutils.classifiers.digits", "xaiutils.studies.ganmex.models")

Build = Callable[[], nn.Module]
Train = Callable[[nn.Module], dict[str, float]]


class TrainedError(RuntimeError):
    """A file of trained weights cannot be used; the message names it and says what to do."""


@dataclass(frozen=True)
class Recipe:
    """How to make one trained model.

    Attributes
    ----------
    name : str
    build : callable
        ``build() -> torch.nn.Module``, untrained.
    train : callable
        ``train(model) -> dict of str to float`` trains in place and returns what was measured,
        such as the accuracy on test data.
    key : str
        From `key`, over everything that `build` and `train` depend on.
    probe : callable
        ``probe() -> tuple of torch.Tensor``, inputs on which two trainings are compared.
    loads : bool
        Whether `train` loads other models, which a retraining then has to make first.
    """

    name: str
    build: Build
    train: Train
    key: str
    probe: Callable[[], tuple[Tensor, ...]]
    loads: bool = False

    @property
    def filename(self) -> str:
        """Name of the file of its weights."""
        return f"{self.name}-{self.key[:12]}.safetensors"

    def load(self) -> nn.Module:
        """`load_or_train` of this recipe."""
        return load_or_train(self.name, self.build, self.train, key=self.key)


def key(*parts: object) -> str:
    """Hash of what a trained model depends on.

    Parameters
    ----------
    *parts : callable or JSON value
        Functions and classes count by their source, without comments, docstrings and formatting;
        anything else (parameters, asset hashes) by its JSON with sorted keys.

    Returns
    -------
    str
        sha256, 64 hexadecimal digits.
    """
    canonical = [{"source": _source(part)} if callable(part) else part for part in parts]
    text = json.dumps(canonical, sort_keys=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def load_or_train(name: str, build: Build, train: Train, *, key: str) -> nn.Module:
    """Load a model from ``data/trained`` or the cache, or train it and cache it.

    Parameters
    ----------
    name, build, train, key
        As in `Recipe`.

    Returns
    -------
    torch.nn.Module
        On the CPU, in evaluation mode, parameters frozen.

    Raises
    ------
    TrainedError
        The file found is damaged or holds another model.
    """
    model = build()
    filename = f"{name}-{key[:12]}.safetensors"
    committed = COMMITTED / filename
    if committed.exists():
        _load(model, committed)
    else:
        with _alone(filename) as cached:
            # While this process waited, a retraining may have made the model.
            if made := [file for file in (committed, cached) if file.exists()]:
                _load(model, made[0])
            else:
                measured = train(model)
                _save(model, cached, name=name, key=key, **measured)
    return model.cpu().eval().requires_grad_(False)


@contextmanager
def _alone(filename: str) -> Iterator[Path]:
    """Be the only process that trains this model, also among clones that share the cache.

    One lock per model: training one may load another. Yields the model's path in the cache.
    """
    folder = assets.cache_folder() / "trained"
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / f".{filename}.lock"):
        yield folder / filename


@contextmanager
def one_thread() -> Iterator[None]:
    """Run torch on one CPU thread: the same sums in the same order on any number of cores.

    For small layers it is also the faster way, above all on a busy machine.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Draw from the global generator, as layers do for initial weights, and give it back unused."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


def round_to_half(model: nn.Module) -> None:
    """Round the weights to what half precision can hold: half the file, the same answers."""
    with torch.no_grad():
        for value in model.state_dict().values():
            if value.is_floating_point():
                value.copy_(value.half())


def retrain(recipe: Recipe) -> str:
    """Train a model from nothing into ``data/trained``, in place of the files of its name.

    Returns
    -------
    str
        What was measured, beside the replaced file's figures, and the largest absolute difference
        of the two models' outputs on ``recipe.probe()``.
    """
    model = recipe.build()
    with _alone(recipe.filename):  # a training may keep its state in the cache
        measured = recipe.train(model)
        report = [f"{recipe.name}: {_listed(measured)}"]
        committed = sorted(COMMITTED.glob(f"{recipe.name}-{'[0-9a-f]' * 12}.safetensors"))
        report += [f"  against {old.name}: {_compare(recipe, model, old)}" for old in committed]
        COMMITTED.mkdir(parents=True, exist_ok=True)
        file = COMMITTED / recipe.filename
        _save(model, file, name=recipe.name, key=recipe.key, **measured)
        for outdated in set(committed) - {file}:
            outdated.unlink()
    return "\n".join(report)


def registered() -> list[Recipe]:
    """All models of the default profile."""
    return [recipe for name in MODULES for recipe in importlib.import_module(name).recipes()]


def _compare(recipe: Recipe, model: nn.Module, old: Path) -> str:
    committed = recipe.build()
    try:
        facts = _load(committed, old)
    except TrainedError as error:
        return f"not comparable ({error})"
    inputs = recipe.probe()
    with torch.no_grad():
        difference = (model.eval()(*inputs) - committed.eval()(*inputs)).abs().max()
    return f"{_listed(facts)}, outputs differ by at most {difference:.2g}"


def _listed(facts: dict[str, object]) -> str:
    measured = {what: value for what, value in facts.items() if what not in ("name", "key")}
    return ", ".join(f"{what} {value:.4f}" for what, value in measured.items())


@functools.cache
def _source(part: Callable) -> str:
    tree = ast.parse(textwrap.dedent(inspect.getsource(part)))
    for node in ast.walk(tree):
        documented = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
        if isinstance(node, documented) and ast.get_docstring(node) is not None:
            node.body = node.body[1:] or [ast.Pass()]
    return ast.unparse(tree)


def digest(state: dict[str, Tensor]) -> str:
    """sha256 of weights by name."""
    found = hashlib.sha256()
    for name in sorted(state):
        found.update(name.encode() + state[name].cpu().contiguous().numpy().tobytes())
    return found.hexdigest()


def _save(model: nn.Module, file: Path, **facts: object) -> None:
    state = {name: _compact(value) for name, value in model.state_dict().items()}
    # One entry, as safetensors writes several in random order: same weights, same bytes.
    metadata = {"trained": json.dumps(facts | {"weights": digest(state)})}
    with assets.replacing(file) as temporary:
        temporary.write_bytes(serialized(state, metadata))


def _compact(value: Tensor) -> Tensor:
    """`value` in half precision if that holds it exactly."""
    value = value.cpu().contiguous()
    half = value.half() if value.is_floating_point() else value
    return half if torch.equal(half.to(value.dtype), value) else value


def _load(model: nn.Module, file: Path) -> dict[str, object]:
    """Fill `model` from `file`; return the facts stored with it."""
    try:
        with safe_open(file, "pt") as stored:
            facts = json.loads((stored.metadata() or {}).get("trained", "{}"))
            state = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
        named = f"{facts.get('name')}-{facts.get('key', '')[:12]}"
        if named != file.stem or facts.pop("weights") != digest(state):
            raise ValueError("the weights are not those that its name and its metadata promise")
        model.load_state_dict(state)
    except (SafetensorError, ValueError, RuntimeError) as error:
        raise TrainedError(
            f"trained model {file} is damaged or holds another model ({error}); delete it to "
            "train again on the next use, or run `make retrain` to rebuild all committed ones"
        ) from error
    return facts


def main(arguments: list[str] | None = None) -> None:
    """Retrain the models of the default profile, or those named."""
    recipes = {recipe.name: recipe for recipe in registered()}
    parser = argparse.ArgumentParser(
        prog="python -m xaiutils.classifiers.trained",
        description="Train models of the default profile from nothing into data/trained.",
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"{', '.join(recipes)}; all")
    parser.add_argument(
        "--jobs", type=int, default=1, metavar="N", help="trainings side by side, each on one core"
    )
    asked = parser.parse_args(arguments)
    wanted = asked.names or list(recipes)
    if unknown := [name for name in wanted if name not in recipes]:
        parser.error(f"unknown model {unknown[0]!r}; known are {', '.join(recipes)}")
    if asked.jobs < 1:
        parser.error(f"--jobs must be at least 1, got {asked.jobs}")
    # Models made before an interruption are not made twice.
    JOURNAL.parent.mkdir(parents=True, exist_ok=True)
    done = JOURNAL.read_text(errors="replace").split() if JOURNAL.exists() else []
    left = []
    for recipe in (recipes[name] for name in wanted):
        if recipe.filename in done and (COMMITTED / recipe.filename).exists():
            print(f"{recipe.name}: made before the interruption", flush=True)
        else:
            left.append(recipe)
    for recipe, report in _retrained(left, asked.jobs):
        print(report, flush=True)
        with JOURNAL.open("a") as lines:
            lines.write(f"{recipe.filename}\n")
    JOURNAL.unlink(missing_ok=True)


def _retrained(recipes: list[Recipe], jobs: int) -> Iterator[tuple[Recipe, str]]:
    """Recipes and what `retrain` says of each, as they are done.

    Those that load other models begin when all others are made.
    """
    parts = [[r for r in recipes if r.loads == loads] for loads in (False, True)]
    if jobs == 1:
        yield from ((recipe, retrain(recipe)) for part in parts for recipe in part)
        return
    os.environ["OMP_NUM_THREADS"] = "1"  # for the processes: each has a core
    with ProcessPoolExecutor(jobs, get_context("spawn"), _without_bars) as pool:
        try:
            for part in parts:
                waiting = {pool.submit(_retrain_named, recipe.name): recipe for recipe in part}
                for future in as_completed(waiting):
                    yield waiting[future], future.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _retrain_named(name: str) -> str:
    # A recipe cannot be sent to another process.
    return retrain(next(recipe for recipe in registered() if recipe.name == name))


def _without_bars() -> None:
    sys.stderr = open(os.devnull, "w")  # noqa: SIM115


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        print("stopped: the same command goes on after the models that are made", file=sys.stderr)
        sys.exit(130)
