"""Every function of the science against its slow definition, and none without one."""

import importlib
import sys
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from oracles.registry import ORACLES, assert_same
from science import modules, name_of, public

from xaiutils import attribution, lime

WITHOUT = {  # functions that need no definition of their own, and why
    "attack.cached": "what signed_gradient returns, kept in a file: see test_attack",
    "regression.check_determined": "refuses what cannot be fitted, see test_lime_fit",
    "surrogate.check_link": "refuses a name, see test_surrogate",
    "perturb.Components": "holds labels; what it makes of them is registered by its methods",
}
CASES = [(oracle, case) for oracle in ORACLES for case in range(len(oracle.options))]


@pytest.mark.parametrize(
    ("oracle", "case"), CASES, ids=[f"{oracle.name}-{case}" for oracle, case in CASES]
)
def test_package_agrees_with_the_definition(oracle, case):
    oracle.check(case)


# --- completeness ---------------------------------------------------------------------------------


def without_oracle(sources) -> list[str]:
    """Names of the public functions that no oracle stands for and no reason excuses."""
    known = {name_of(oracle.production) for oracle in ORACLES} | set(WITHOUT)
    return sorted({name_of(value) for module in sources for value in public(module)} - known)


def test_every_public_function_has_an_oracle():
    assert without_oracle(modules()) == []


def test_reasons_are_given_for_functions_that_exist_and_have_no_oracle():
    named = {name_of(value) for module in modules() for value in public(module)}
    assert set(WITHOUT) <= named
    assert not {name_of(oracle.production) for oracle in ORACLES} & set(WITHOUT)


def test_what_is_asked_for_is_what_is_public():
    names = {name_of(value) for value in public(attribution)}
    assert {"attribution.gradient", "deeplift.deeplift"} <= names  # own and passed on
    assert "explained.generator" not in names and "attribution.SmoothGrad" not in names
    assert "regression.fit" in {name_of(value) for value in public(lime)}  # decorated


@pytest.fixture
def write_module(tmp_path, monkeypatch):
    """Function that imports a module of the given source."""
    monkeypatch.syspath_prepend(tmp_path)

    def made(source):
        (tmp_path / "fresh_science.py").write_text(source)
        module = importlib.import_module("fresh_science")
        monkeypatch.delitem(sys.modules, "fresh_science")
        return module

    return made


def test_a_new_function_without_an_oracle_is_named(write_module):
    module = write_module(
        "from typing import NamedTuple\n"
        "from xaiutils.limit import alpha, coin as coin\n"
        "from xaiutils.runtime import threads as threads\n"
        "class Pair(NamedTuple):\n    a: int\n"
        "class Filler:\n    pass\n"
        "def _own(): ...\n"
        "def score(): ...\n"
    )
    expected = ["fresh_science.Filler", "fresh_science.score", "runtime.threads"]
    assert without_oracle([module]) == expected


# --- the comparison itself ------------------------------------------------------------------------


@dataclass
class Record:
    a: object
    b: object


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (1.0, 1.01),
        (np.array([1.0, 2.0]), np.array([1.0, 2.1])),
        (np.ones(3), 1.0),  # numpy would broadcast
        (np.ones((1, 3)), np.ones(3)),
        (np.array([1.0, np.nan]), np.ones(2)),
        (np.array([True, False]), np.array([1.0, 0.0])),
        (torch.ones(2), np.zeros(2)),
        (Record(1, 2), {"a": 1, "b": 3}),
        (Record(1, 2), (1, 3)),
        (Record(1, 2), (1,)),
        ({"a": 1, "b": 2}, {"a": 1}),
        ({"a": 1}, {"a": 1, "b": 2}),
        ([1, 2, 3], (1, 2)),
        (None, 0.0),
        (0.0, None),
        ({1, 2}, {1}),
        (("mif", 1), ("lif", 1)),
    ],
)
def test_differences_are_seen(found, expected):
    with pytest.raises((AssertionError, TypeError), match=r"thing|NoneType"):
        assert_same(found, expected, rtol=1e-3, atol=1e-3, name="thing")


def test_equal_results_pass():
    record = Record(torch.tensor([1.0, float("nan")]), (np.bool_(True), "mif"))
    expected = {"a": np.array([1, np.nan]), "b": (True, "mif")}
    assert_same(record, expected, rtol=0, atol=0, name="thing")
    assert_same({"x": record}, {"x": (expected["a"], expected["b"])}, rtol=0, atol=0, name="thing")


def test_both_sides_get_inputs_of_their_own():
    for oracle in ORACLES:
        one, other = oracle.arguments(0), oracle.arguments(0)
        assert list(one) == list(other), oracle.name
        arrays = [name for name, value in one.items() if isinstance(value, np.ndarray)]
        for name in arrays:
            np.testing.assert_array_equal(one[name], other[name], err_msg=oracle.name)
