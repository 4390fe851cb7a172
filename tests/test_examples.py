"""The examples in docstrings print what they say."""

import doctest
import importlib

import pytest

WITH_EXAMPLES = {
    "designs": ["draw"],
    "fidelity": ["summary"],
    "fidelity_curves": ["curves"],
    "intervals": ["mean", "wilson"],
    "lime": ["explain", "Stop"],
    "limit": ["exact", "shape_detector"],
}


@pytest.mark.parametrize("name", WITH_EXAMPLES)
def test_examples_print_what_they_say(name):
    module = importlib.import_module(f"xaiutils.{name}")
    found = [test for test in doctest.DocTestFinder().find(module) if test.examples]
    assert {test.name.split(".")[-1] for test in found} >= set(WITH_EXAMPLES[name])
    runner = doctest.DocTestRunner()
    for test in found:
        said = []
        assert runner.run(test, out=said.append).failed == 0, "".join(said)
