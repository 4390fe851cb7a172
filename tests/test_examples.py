"""Examples in docstrings: they print what they say, and the functions one meets first have them."""

import doctest
import inspect
from operator import attrgetter

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
]


def documented(modules) -> dict[str, str]:
    """Docstrings with examples of the modules, their functions, classes and methods, by name."""
    found = {}
    for module in modules:
        for value in [module, *vars(module).values()]:
            own = inspect.isroutine(value) or inspect.isclass(value)
            if value is module or (own and value.__module__ == module.__name__):
                name = science.name_of(value)
                found[name] = value.__doc__
                for key, method in vars(value).items() if inspect.isclass(value) else ():
                    found[f"{name}.{key}"] = getattr(method, "__doc__", None)
    return {name: inspect.cleandoc(text) for name, text in found.items() if ">>>" in (text or "")}


EXAMPLES = documented(science.modules())


def failures(text: str, name: str) -> str:
    """What the examples of a docstring print that they do not say; they import what they use."""
    test = doctest.DocTestParser().get_doctest(text, {}, name, name, 0)
    report = []
    doctest.DocTestRunner(optionflags=FLAGS, verbose=False).run(test, out=report.append)
    return "".join(report)


@pytest.mark.parametrize("name", EXAMPLES)
def test_examples_print_what_they_say(name):
    assert failures(EXAMPLES[name], name) == ""


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
    assert (seen in failures(text, "sum")) and bool(seen) == bool(failures(text, "sum"))
