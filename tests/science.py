"""The science: the modules at the top of the package that compute something to be checked."""

import ast
import importlib
import inspect
import pkgutil
from dataclasses import is_dataclass
from types import ModuleType

import xaiutils

APART = {  # other modules at the top, and what of theirs is checked where
    "__main__": "a command",
    "claims": "a command",
    "run": "a command",
    "constrained_gan": "training; compared with ganmex's in test_constrained_gan",
    "counterfactual_networks": "trainings, see test_counterfactuals",
    "design_search": "writes a table, see test_designs",
    "estimators": "asks one estimator or the other, which have oracles, as lime.explain has",
    "explained": "checks what is explained, see test_attribution",
    "gan_networks": "layers, see test_ganmex",
    "ganmex": "training; each term of its loss is recomputed in test_ganmex",
    "queries": "batches of questions, see test_one_vs_one",
    "inputs": "checks what is given, see test_inputs",
    "onnx_export": "the same answers faster, see test_onnx_export",
    "outputs": "checks what a model returns, see test_outputs",
    "probe": "asks whether a model is what it seems, see test_probe",
    "storage": "files of results, see test_storage",
    "runtime": "the same answers faster, see test_runtime",
    "surrogate_weights": "what surrogate's readings are made of, which have oracles",
}


def modules() -> list[ModuleType]:
    """Every module at the top of the package that is not set apart."""
    found = pkgutil.iter_modules(xaiutils.__path__, "xaiutils.")
    names = [part.name for part in found if not part.ispkg]
    return [importlib.import_module(n) for n in names if n.partition(".")[2] not in APART]


def public(module: ModuleType) -> list:
    """Functions and classes of a module, those it passes on (`import f as f`) among them.

    Records (dataclasses and named tuples) and exceptions are left out: they compute nothing.
    """
    tree = ast.parse(inspect.getsource(module))
    aliases = (a for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for a in node.names)
    passed_on = {alias.name for alias in aliases if alias.asname == alias.name}
    return [
        value
        for name, value in vars(module).items()
        if not name.startswith("_")
        and (inspect.isroutine(value) or (inspect.isclass(value) and not is_record(value)))
        and (value.__module__ == module.__name__ or name in passed_on)
    ]


def is_record(kind: type) -> bool:
    return is_dataclass(kind) or issubclass(kind, tuple | BaseException)


def name_of(value) -> str:
    """Such as "limit.alpha", or "limit" for a module."""
    if inspect.ismodule(value):
        return value.__name__.removeprefix("xaiutils.")
    return f"{value.__module__.removeprefix('xaiutils.')}.{value.__qualname__}"
