"""Numbers in the text of a notebook: which count, how they are read, and what they match."""

import nbformat
import numpy as np
import pytest
from conftest import CLAIM, FIGURE

from xaiutils import claims as command
from xaiutils.companion import numbers_in_prose
from xaiutils.companion.numbers_in_prose import prose, written

RISES = {"verdict": "holds", "value": 0.7321, "low": 0.61, "high": 0.8149, "n": 28, "unit": ""}


@pytest.fixture
def audit(make_project, write_results):
    """Function: the numbers of some text, after a figure and before an output of given numbers."""

    def run(text, output="", data=None, claims=None, **project):
        project = make_project(FIGURE, "threshold = 17", **{"ledger": CLAIM, **project})
        notebook = project.read("tiny")
        stream = nbformat.v4.new_output("stream", text=output)
        notebook.cells[2].outputs = [stream] if output else []
        notebook.cells.insert(0, nbformat.v4.new_markdown_cell("# A title"))
        notebook.cells.insert(3, nbformat.v4.new_markdown_cell(text))
        nbformat.write(notebook, project.notebook("tiny"))
        write_results(project, claims=claims or {"rises": RISES})
        write_results(project, "line", data=data or {"y": [0.0]})
        return numbers_in_prose.audit(project, "tiny")

    return run


def values(text):
    return [(n.value, n.decimals) for n in written(prose(text))]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("28 tracks, 1,024 masks, 1,234.5 s", [(28, 0), (1024, 0), (1234.5, 1)]),
        ("it finds .39, or 0.390", [(0.39, 2), (0.39, 3)]),
        ("it falls by -.16, −3, +2 or minus .5", [(-0.16, 2), (-3, 0), (2, 0), (-0.5, 1)]),
        ("3-5 cells, 3–5 cells", [(3, 0), (5, 0), (3, 0), (5, 0)]),
        ("about 1/4, 2e-14", [(0.25, 2), (2e-14, 14)]),
        ("5 × 4 cells of 2 to 3", [(5, 0), (4, 0), (2, 0), (3, 0)]),
    ],
)
def test_numbers_are_read_as_they_are_written(text, expected):
    assert values(text) == expected


@pytest.mark.parametrize(
    ("text", "readings"),
    [
        ("11.5 %", [(0.115, 3), (11.5, 1)]),
        ("12% more", [(0.12, 2), (12, 0)]),
        ("by 22 points", [(0.22, 2), (22, 0)]),
        ("7 percent", [(0.07, 2), (7, 0)]),
    ],
)
def test_a_percentage_is_a_share(text, readings):
    (number,) = written(text)
    assert np.allclose(number.readings(), readings)


def test_all_of_a_range_take_the_percent_sign_of_the_last(audit):
    output = "0.09 0.22 0.01 0.02 0.03 0.04 0.05"
    found = audit("9 to 22 %, of 1, 2 and 3 points, 4-5 %; but 6 of 9 %", output=output)
    assert [n.text for n in found] == ["9", "22 %", "1", "2", "3 points", "4", "5 %", "6", "9 %"]
    fits = [n.source == "output of code cell 3" for n in found]
    assert fits == [True] * 7 + [False, True]


@pytest.mark.parametrize(
    "text",
    [
        "# 2. Setting",
        "### 3.1 More",
        "1. first\n 2. second",
        "Figure 3, Figures 2 and 4, Table 1 to 3, Eq. 12, Theorem 1, Proposition 3, section 4",
        "notebooks 01 to 04 (02, 03), paper 2's, Paper 3",
        "Doe et al. 2021, (2018), Garreau and Mardaoui 2021, ICML 2021. “A title”, 2022 (x)",
        "on 2024-05-01 or 3 May 2024",
        "[a](https://x.org/12/3.html), https://x.org/45, arXiv:2102.06307, doi:10.1/23",
        "$k = 3$ and $$\nx^2 = 0.25\n$$ with `n = 5` and\n```\n7\n```",
        "the 1st, 2nd, 3rd and 17th, many 9s, the 1990s",
        "lime 0.2.0.1, EfficientNet-Lite0, MobileNetV2, CIFAR-10, apple2orange, SmoothGrad²",
        "a 3 rather than an 8",
        '<img width="300">',
    ],
)
def test_what_is_no_measured_number_is_left_out(text):
    assert values(text) == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("(.05 of .85)", [(0.05, 2), (0.85, 2)]),
        ("trained for 2,000 iterations", [(2000, 0)]),
        ("the 2000 iterations", [(2000, 0)]),
        ("a 3 % gain of a 2.5", [(3, 0), (2.5, 1)]),
        ("Of the 12 cells 03 says", [(12, 0)]),
    ],
)
def test_what_is_measured_stays(text, expected):
    assert values(text) == expected


@pytest.mark.parametrize(
    ("text", "source"),
    [
        ("mean .73", "claim rises, value"),
        ("73 %", "claim rises, value"),
        ("on 28 tracks", "claim rises, n"),
        ("the slope is 41.2 dB", "output of code cell 3"),
        ("of 41 dB", "output of code cell 3"),
        ("falls by .16", "output of code cell 3, which is negative"),
        ("is -.16", "output of code cell 3"),
        ("minus .16", "output of code cell 3"),
        ("all 99.5 %", "output of code cell 3"),
        ("1,024 masks", "figures/tiny/line.json, data.rows.n (b, long)"),
        (".46", "figures/tiny/line.json, data.rows.value (a, short)"),
        ("6 points", "figures/tiny/line.json, data.nested.inner"),
        ("drawn from 33", "parameter n"),
        ("above one half, .50", "claim rises, rule (threshold) (or 1 more)"),
        ("the limit of 17", "code cell 3"),
        ("mean .74", None),
        ("on 29 tracks", None),
        ("is +.16", None),
        ("41.3 dB", None),
        ("1,025 masks", None),
    ],
)
def test_a_number_comes_from_what_rounds_to_it(audit, text, source):
    rows = {"name": ["a", "b"], "kind": ["short", "long"], "n": [64, 1024], "value": [0.459, 2.0]}
    found = audit(
        text,
        output="slope 41.18 dB, change -0.157, 99.5% right",
        data={"rows": rows, "nested": {"inner": 0.0613}},
        parameters="n: int = 33  # points\nscale: float = 8.0  # height",
    )
    assert [n.source for n in found] == [source]
    is_far = source is None or source.startswith(("claim rises, rule", "code"))
    assert found[0].is_near != is_far


def test_an_interval_is_looked_for_together_with_its_value(audit):
    (value, low, high) = audit("it is .73 [.61, .81] on average")
    assert {n.source for n in (value, low, high)} == {"claim rises, value"}
    assert all(n.is_near for n in (value, low, high))
    apart = audit("it is .73 [.61, .91]", output="0.91")
    assert [n.source is not None for n in apart] == [True, True, True]
    assert not any(n.is_near for n in apart)
    wrong = audit("it is 73 [61, 82] %")
    assert [n.source is None for n in wrong] == [False, False, True]
    rows = {"name": ["a", "b"], "value": [0.5, 0.4], "low": [0.3, 0.1], "high": [0.6, 0.9]}
    assert {n.source for n in audit(".40 [.10, .90]", data=rows)} == {
        "figures/tiny/line.json, data.value (b)"
    }


def test_the_first_cell_sums_up_what_is_anywhere(make_project, write_results):
    project = make_project(*["1"] * 9, ledger=CLAIM)
    notebook = project.read("tiny")
    notebook.cells[-1].outputs = [nbformat.v4.new_output("stream", text="0.377")]
    for place in (0, 3):
        notebook.cells.insert(place, nbformat.v4.new_markdown_cell("It is .38."))
    nbformat.write(notebook, project.notebook("tiny"))
    first, later = numbers_in_prose.audit(project, "tiny")
    assert first.source == later.source == "output of code cell 10"
    assert (first.is_near, later.is_near) == (True, False)


def test_the_command_lists_those_without_a_source_first_and_may_fail(make_project, capsys):
    project = make_project(parameters="n: int = 28  # tracks")
    notebook = project.read("tiny")
    notebook.cells.append(nbformat.v4.new_markdown_cell("A gain of .91 on\n28 tracks, at best."))
    nbformat.write(notebook, project.notebook("tiny"))
    assert command.main(["numbers", "tiny"], project) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("tiny: 2 numbers in the text, 1 without a source")
    assert lines[1:4] == [
        "",
        "without a source:",
        "  cell  2       .91  A gain of >.91< on 28 tracks, at",
    ]
    assert lines[-1] == "  cell  2        28  parameter n"
    assert command.main(["numbers", "tiny", "--strict"], project) == 1
    notebook.cells[-1].source = "On 28 tracks."
    nbformat.write(notebook, project.notebook("tiny"))
    assert command.main(["numbers", "tiny", "--strict"], project) == 0


def test_a_text_without_numbers_and_an_unknown_notebook(make_project, capsys):
    project = make_project()
    assert command.main(["numbers", "tiny"], project) == 0
    assert capsys.readouterr().out.startswith("tiny: 0 numbers in the text, 0 without")
    assert command.main(["numbers", "tony"], project) == 2
    assert capsys.readouterr().err == "error: no notebook 'tony'; allowed: tiny\n"
