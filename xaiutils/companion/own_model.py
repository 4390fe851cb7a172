"""A reader's own model, named on the command line, and how its outputs are read."""

from __future__ import annotations

import difflib
import importlib
import inspect
import os
import sys
from collections.abc import Callable

import numpy as np
import torch

from xaiutils import inputs
from xaiutils.outputs import as_array


class ModelError(ValueError):
    """A model cannot be found, made or asked; the message names it."""


def load(name: str) -> Callable:
    """The model ``module:name``; the module is looked for in the current folder first.

    Parameters
    ----------
    name : str
        Of a `torch.nn.Module`, which is put in evaluation mode; or of a function. A function (or
        class) that can be called without arguments is called and must give the model; any other
        is the model itself.

    Returns
    -------
    torch.nn.Module or callable
        From a batch to its outputs, as `perturb.evaluate` takes it.

    Raises
    ------
    ModelError
        The module or the name is not there, one of them raises, or what it gives is no model.
    """
    module, _, inside = name.partition(":")
    module = module.removesuffix(".py")
    if not (module and inside):
        raise ModelError(f"model {name!r} must be MODULE:NAME, e.g. nets:small, small in nets.py")
    found = _imported(module, name)
    for part in inside.split("."):
        if not hasattr(found, part):
            close = difflib.get_close_matches(
                part, vars(found) if hasattr(found, "__dict__") else ()
            )
            hint = f"; did you mean {' or '.join(close)}?" if close else ""
            raise ModelError(f"model {name!r}: {module} has no {part!r}{hint}")
        found = getattr(found, part)
    if not isinstance(found, torch.nn.Module) and callable(found) and _needs_nothing(found):
        try:
            found = found()
        except (Exception, SystemExit) as error:
            raise ModelError(f"model {name!r}: {inside}() raised {words(error)}") from error
    if isinstance(found, torch.nn.Module):
        return found.eval()
    if not callable(found):
        raise ModelError(
            f"model {name!r} is of type {type(found).__name__}; it must be a torch.nn.Module, a "
            "function of a batch, or a function without arguments that gives one of the two"
        )
    return found


def _imported(module: str, name: str):
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())  # a console script does not look there
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name and f"{module}.".startswith(f"{error.name}."):
            raise ModelError(
                f"model {name!r}: no module {error.name!r} in this folder or installed"
            ) from None
        raise ModelError(f"model {name!r}: importing {module} raised {words(error)}") from error
    except (Exception, SystemExit) as error:
        raise ModelError(f"model {name!r}: importing {module} raised {words(error)}") from error


def _needs_nothing(function) -> bool:
    try:
        inspect.signature(function).bind()
    except (TypeError, ValueError):  # arguments are needed, or it does not say
        return False
    return True


def ask(model: Callable, rows) -> np.ndarray:
    """Outputs (B, K) float64 of a model for a batch (B, ...) of float32, without its gradient.

    Raises
    ------
    ModelError
        If it raises, or gives anything but finite numbers (B, K).
    """
    batch = torch.as_tensor(rows)
    if isinstance(model, torch.nn.Module):
        weights = [*model.parameters(), *model.buffers()]
        batch = batch.to(next((w for w in weights if w.is_floating_point()), batch))
    asked = f"for a batch of shape {tuple(batch.shape)}"
    try:
        with torch.no_grad():
            out = inputs.ask(model, batch)
    except Exception as error:
        raise ModelError(f"the model raised {words(error)} {asked}") from error
    try:
        out = as_array(out)
    except ValueError as error:
        raise ModelError(f"{error} ({asked.removeprefix('for ')})") from error
    if out.ndim != 2 or len(out) != len(batch) or not out.shape[1]:
        raise ModelError(
            f"the model returned shape {tuple(out.shape)} {asked}, not (batch, outputs)"
        )
    out = np.asarray(out, np.float64)
    if not np.isfinite(out).all():
        raise ModelError(
            f"the model returned {np.sum(~np.isfinite(out))} numbers not finite {asked}"
        )
    return out


def explained(model: Callable, rows) -> tuple[Callable, str]:
    """The model whose outputs are to be explained, and what they are.

    Parameters
    ----------
    model : torch.nn.Module or callable
        From a batch to outputs (B, K).
    rows : (B, ...) float32 array or tensor
        Inputs to tell by which of these they are, the more different the better.

    Returns
    -------
    model : torch.nn.Module or callable
        With a softmax at its end where outputs are logits.
    kind : {"probability", "output", "probability (softmax of its outputs)"}
        Several outputs that are at least 0 and have sum 1 for each of the rows are probabilities.
        A single one, or several in [0, 1], such as scores of labels that do not exclude each other,
        are explained as they are. Any others are logits.
    """
    out = ask(model, rows)
    if out.shape[1] > 1 and out.min() >= 0 and np.abs(out.sum(axis=1) - 1).max() < 2e-3:
        return model, "probability"
    if out.shape[1] == 1 or (out.min() >= 0 and out.max() <= 1):
        return model, "output"
    if isinstance(model, torch.nn.Module):
        return torch.nn.Sequential(
            model, torch.nn.Softmax(dim=1)
        ).eval(), "probability (softmax of its outputs)"
    return lambda batch: torch.as_tensor(model(batch)).softmax(
        1
    ), "probability (softmax of its outputs)"


def words(error: Exception) -> str:
    """Type and message of an error on one line, cut at 200 characters."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:200].rstrip(": ")
