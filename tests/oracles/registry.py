"""Which slow definition stands for which function of the package, and the inputs they share."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass

import numpy as np
import torch
from numpy.testing import assert_allclose
from science import name_of

ORACLES: list["Oracle"] = []


@dataclass(frozen=True)
class Oracle:
    """A function of the package, its naive twin, and the cases that both are asked about.

    Attributes
    ----------
    production, naive : callable
    inputs : callable
        ``inputs(rng) -> dict``, keyword arguments made of small seeded inputs.
    options : sequence of dict
        Each is a case: it is put over the inputs.
    call : callable
        What asks `production`: itself, or a function of the same arguments that picks from its
        result what the definition says something about.
    rtol, atol : float
        Tolerance of numbers.
    """

    production: Callable
    naive: Callable
    inputs: Callable[[np.random.Generator], dict]
    options: Sequence[dict]
    call: Callable
    rtol: float
    atol: float

    @property
    def name(self) -> str:
        return name_of(self.production)

    def arguments(self, case: int) -> dict:
        """Those of one case, the same at each call."""
        return {**self.inputs(np.random.default_rng(case)), **self.options[case]}

    def check(self, case: int) -> None:
        """AssertionError unless the package and the definition agree on a case."""
        found, expected = self.call(**self.arguments(case)), self.naive(**self.arguments(case))
        assert_same(found, expected, rtol=self.rtol, atol=self.atol, name=self.name)


def oracle_of(
    production: Callable,
    inputs: Callable[[np.random.Generator], dict],
    options: Sequence[dict] = ({},),
    *,
    call: Callable | None = None,
    rtol: float = 1e-9,
    atol: float = 1e-12,
) -> Callable:
    """Decorator of a naive function that registers it for `production`, see `Oracle`."""

    def register(naive):
        ORACLES.append(Oracle(production, naive, inputs, options, call or production, rtol, atol))
        return naive

    return register


def assert_same(found, expected, *, rtol: float, atol: float, name: str) -> None:
    """AssertionError unless both hold the same numbers in the same shapes.

    `expected` may be a number, an array, a tuple of results, or a dict; a dict names items of a
    mapping or attributes of any other object. NaN equals NaN; dtypes do not count, but whether
    something is a truth value does.
    """
    options = {"rtol": rtol, "atol": atol}
    if isinstance(expected, Mapping):
        if isinstance(found, Mapping):
            assert set(found) == set(expected), f"{name}: {list(found)}, not {list(expected)}"
        for key, value in expected.items():
            item = found[key] if isinstance(found, Mapping) else getattr(found, key)
            assert_same(item, value, **options, name=f"{name}[{key!r}]")
    elif isinstance(expected, tuple):
        values = _items(found)
        assert len(values) == len(expected), f"{name}: {len(values)} results, not {len(expected)}"
        for i, (one, other) in enumerate(zip(values, expected, strict=True)):
            assert_same(one, other, **options, name=f"{name}[{i}]")
    elif expected is None or isinstance(expected, str | set):
        assert found == expected, f"{name}: {found!r}, not {expected!r}"
    else:
        found, expected = _array(found), _array(expected)
        assert found.shape == expected.shape, f"{name}: shape {found.shape}, not {expected.shape}"
        truth = "bool in one only"
        assert (found.dtype == bool) == (expected.dtype == bool), f"{name}: {truth}"
        assert_allclose(found.astype(float), expected.astype(float), **options, err_msg=name)


def _items(values) -> list:
    if is_dataclass(values):
        return [getattr(values, field.name) for field in fields(values)]
    return list(values)


def _array(values) -> np.ndarray:
    if isinstance(values, torch.Tensor):
        return values.detach().numpy()
    return np.asarray(values)
