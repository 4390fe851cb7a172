"""Every function of the science against its slow definition, and none without one."""

import pytest
from oracles.registry import ORACLES

CASES = [(oracle, case) for oracle in ORACLES for case in range(len(oracle.options))]


@pytest.mark.parametrize(
    ("oracle", "case"), CASES, ids=[f"{oracle.name}-{case}" for oracle, case in CASES]
)
def test_package_agrees_with_the_definition(oracle, case):
    oracle.check(case)
