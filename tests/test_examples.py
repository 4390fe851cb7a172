"""Examples in docstrings: they print what they say, and the functions one meets first have them."""

import doctest
import inspect
from operator import attrgetter
from types import ModuleType

import pytest
import science

import xaiutils

FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
REQUIRED = [
    "attack.signed_gradient",
    "attribution.gradcam",
    "attribution.integrated_gradients",
    "baselines.ClassMean",
    "baselines.NearestSample",
    "baselines.adversarial",
    "baselines.black",
    "baselines.blur",
    "baselines.channel_mean",
    "baselines.gaussian_noise",
    "baselines.image_mean",
    "baselines.maximum_distance",
    "baselines.uniform_noise",
    "deeplift.deeplift",
    "designs.draw",
    "fidelity.summary",
    "fidelity_curves.curves",
    "imputation.NoisyLinear",
    "intervals.mean",
    "intervals.wilson",
    "lime.Stop",
    "lime.explain",
    "limit.exact",
    "limit.shape_detector",
    "perturb.Components",
    "perturb.evaluate",
    "sanity.cascade",
    "sanity.localisation",
    "segment.grid",
    "segment.quickshift",
    "surrogate.fit",
]


def documented(modules) -> dict[str, tuple[str, dict]]:
    """Docstrings with examples of the modules, their functions, classes and methods, by name.

    Each with the names that its module knows.
    """
    found = {}
    for module in modules:
        named = {science.name_of(module): module}
        for value in vars(module).values():
            own = inspect.isroutine(value) or inspect.isclass(value)
            if own and value.__module__ == module.__name__:
                named[science.name_of(value)] = value
        for name, value in list(named.items()):
            if inspect.isclass(value):
                named |= {f"{name}.{key}": method for key, method in vars(value).items()}
        for name, value in named.items():
            if ">>>" in (getattr(value, "__doc__", None) or ""):
                found[name] = inspect.cleandoc(value.__doc__), vars(module)
    return found


EXAMPLES = documented(science.modules())


def failures(text: str, known: dict, name: str) -> str:
    """What the examples of a docstring print that they do not say, where these names are known."""
    test = doctest.DocTestParser().get_doctest(text, known, name, name, 0)
    report = []
    doctest.DocTestRunner(optionflags=FLAGS, verbose=False).run(test, out=report.append)
    return "".join(report)


@pytest.mark.parametrize("name", EXAMPLES)
def test_examples_print_what_they_say(name):
    assert failures(*EXAMPLES[name], name) == ""


@pytest.mark.parametrize("name", REQUIRED)
def test_what_one_meets_first_has_examples(name):
    text = inspect.getdoc(attrgetter(name)(xaiutils))
    before, heading, examples = text.partition("\nExamples\n--------\n")
    assert heading, f"{name} has no section Examples"
    lines = [line for line in examples.splitlines() if line.startswith((">>>", "..."))]
    assert 2 <= len(lines) <= 12, f"{name}: examples of 2 to 12 lines, not {len(lines)}"
    assert before.strip()


@pytest.mark.parametrize(
    ("text", "seen"),
    [
        (">>> 1 + 1\n3", "Got:\n    2"),
        (">>> undefined + 1\n2", "NameError"),
        (">>> [0.123456]\n[0.1...]", ""),
        (">>> print('a   b')\na b", ""),
    ],
)
def test_wrong_examples_are_found(text, seen):
    report = failures(text, {}, "sum")
    assert seen in report and bool(seen) == bool(report)


def test_examples_of_functions_classes_and_methods_are_found():
    source = """
class Sum:
    ">>> Sum().of(1)"

    def of(self, one):
        ">>> 1 + 1"

def score():
    ">>> score()"

def bare(): "no example"
"""
    module = ModuleType("xaiutils.fresh", ">>> __name__")
    exec(source, vars(module))
    found = documented([module])
    assert list(found) == ["fresh", "fresh.Sum", "fresh.score", "fresh.Sum.of"]
    assert found["fresh"] == (">>> __name__", vars(module))
