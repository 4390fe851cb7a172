"""Ranges of parameters: what the end of a comment says holds for defaults, profiles and -p."""

import re

import nbformat
import pytest
from conftest import PARAMETERS

from xaiutils.companion import notebooks, provenance, ranges, run, runner
from xaiutils.companion.notebooks import ProjectError

PROJECT = notebooks.Project(provenance.ROOT)


def parameter(line):
    """The one parameter of a cell that is this line."""
    cell = nbformat.v4.new_code_cell(line)
    cell.metadata["tags"] = ["parameters"]
    (found,) = notebooks.parameters(nbformat.v4.new_notebook(cells=[cell])).values()
    return found


@pytest.mark.parametrize(
    ("line", "allowed", "refused"),
    [
        ("n: int = 5  # masks, at least 3", ["3", "99"], ["2", "-1", "0"]),
        ("n: int = 5  # masks, at most 5", ["5", "-7"], ["6"]),
        ("n: int = 5  # a number", ["-99", f"{2**63 - 1}"], [f"{2**63}", f"-{2**64}"]),
        ("n: int = 5  # masks, above 3, below 6", ["4", "5"], ["3", "6"]),
        ("n: int = 5  # 3 to 5", ["3", "5"], ["2", "6"]),
        ("n: int = 4  # steps, 2 to 9, even", ["2", "8"], ["3", "9", "0", "10"]),
        ("n: int = 4  # one of 1, 2, 4", ["1", "4"], ["3", "8"]),
        ("n: int = -4  # -5 to -3", ["-5", "-3"], ["-6", "-2"]),
        ("x: float = 0.5  # share, above 0, below 1", ["1e-3", "0.999"], ["0", "1", "-1e1"]),
        ("x: float = 0.5  # 0.5 to 1e3", ["0.5", "1000"], ["0.4999", "1000.1", "1e300"]),
        ("x: float = 1  # a number", ["-1e300", "0"], ["nan", "inf", "-inf", "9" * 400]),
        ("x: float = 1  # at least 0", ["0.0"], ["nan", "+nan", "inf", "-inf"]),
        ("s: str = 'a'  # which, one of a, b-c, d.1", ["a", "b-c", '"d.1"'], ["e", "A", '""']),
        ("xs: list[int] = [1]  # at least 1", ["[1, 2]", "[]"], ["[0]", "[1, 0]"]),
        ("xs: list[int] = [1]  # non-empty", ["[-1]"], ["[]"]),
        ("xs: list[float] = []  # 0 to 1, increasing", ["[0, 0.5, 1]", "[]"], ["[0, 0]", "[1, 0]"]),
        ("xs: list[float] = [0.5]  # a number", ["[-1.0]"], ["[nan]", "[1.0, inf]"]),
        ("xs: list[str] = ['a']  # non-empty, one of a, b", ["['b', 'a']"], ["[]", "['c']"]),
    ],
)
def test_a_range_is_the_end_of_the_comment(line, allowed, refused):
    found = parameter(line)
    for text in allowed:
        found.parse(text)
    for text in refused:
        with pytest.raises(ProjectError, match=f"parameter {found.name} = "):
            found.parse(text)


@pytest.mark.parametrize(
    ("line", "text", "message"),
    [
        (
            "n: int = 9  # masks, at least 3",
            "2",
            "parameter n = 2 is out of range; allowed: int, at least 3 (masks)",
        ),
        (
            "n: int = 9  # 3 to 9",
            "10",
            "parameter n = 10 is out of range; allowed: int, 3 to 9",
        ),
        (
            "xs: list[int] = [1]  # sizes, 1 to 5",
            "[2, 9]",
            "parameter xs = [2, 9] has item 2, 9, that is out of range; "
            "allowed: list[int], 1 to 5 (sizes)",
        ),
        (
            "s: str = 'a'  # kind, one of a, b",
            "c",
            "parameter s = 'c' is none of the choices; allowed: str, one of a, b (kind)",
        ),
        (
            "x: float = 1.0  # height",
            "nan",
            "parameter x = nan is not a finite number; allowed: float (height)",
        ),
        (
            "device: str = 'auto'  # place",
            "gpu",
            "parameter device = 'gpu' is no device; "
            'allowed: "auto" or a name as torch has it, such as "cpu", "cuda", "cuda:1" (place)',
        ),
    ],
)
def test_a_refusal_is_one_line_with_name_value_and_range(line, text, message):
    with pytest.raises(ProjectError, match=re.escape(message) + "$"):
        parameter(line).parse(text)


@pytest.mark.parametrize("text", ["9" * 5000, "0x" + "f" * 5000, "[" * 5000, "\udc80", '"\\u0000'])
def test_what_toml_cannot_read_is_refused_in_one_short_line(text):
    for line in ("n: int = 1  # c", "device: str = 'cpu'  # c", "s: str = 'a'  # one of a, b"):
        with pytest.raises(ProjectError, match=r"^parameter \w+ = .{1,99};.*$"):
            parameter(line).parse(text)


@pytest.mark.parametrize(
    "comment",
    [
        "masks, at least thirty",
        "masks, at least",
        "at least 30 masks",
        "masks per explanation at least 30",
        "masks, at least 30, in figure c",
        "masks, At least 3",
        "from 1 to 5",
        "masks, at least 1 and at most 5",
        "masks, at most 28,000",
        "masks, not below 3",
        "masks, at least 1.5",
        "masks, at least nan",
        "masks, even, in figure c",
        "masks, one of",
        "masks, one of 1, 2 or 4",
        "masks, one of 1, 1",
        "masks, at least 0, one of 1, 2",
        "5 to 3",
        "at least 4, at most 3",
        "above 3, below 4",
        "3 to 3, even",
        "at least 1, at least 2",
        "1 to 5, below 4",
        "masks, non-empty",
        "masks, increasing",
    ],
)
def test_a_range_that_is_not_well_formed_is_refused(comment):
    with pytest.raises(ProjectError, match=r"^parameters cell: comment of n: .*$"):
        parameter(f"n: int = 1  # {comment}")


@pytest.mark.parametrize(
    "line",
    [
        "k: bool = True  # c, at least 1",
        "k: bool = True  # c, one of true, false",
        "s: str = 'a'  # c, at least 1",
        "s: str = 'a'  # c, one of a b, c",
        "s: str = 'a'  # c, even",
        "x: float = 2.0  # c, even",
        "x: float = 2.0  # c, at most 1e999",
        "x: float = 1.0  # c, above 1, at most 1",
        "xs: list[str] = ['a']  # c, increasing",
    ],
)
def test_a_range_that_does_not_fit_the_type_is_refused(line):
    with pytest.raises(ProjectError, match=r"^parameters cell: comment of"):
        parameter(line)


@pytest.mark.parametrize(
    "comment",
    [
        "energy of the voice over that of the music",
        "the default of the lime package (1000 in the paper)",
        "2^(rows x columns) model calls, 2.5 % of the pixels each",
        '"cpu", "cuda", or "auto" for a GPU where there is one',
        "pairs of digits 0 to 9 drawn",
        "even pages of one of them",
    ],
)
def test_prose_is_no_range(comment):
    found = parameter(f"n: int = 1  # {comment}")
    assert found.range == ranges.Range()
    assert found.check(-(10**9)) == -(10**9)


def test_a_default_must_be_in_its_range():
    with pytest.raises(ProjectError, match="n = 2 is out of range"):
        parameter("n: int = 2  # masks, at least 3")


@pytest.mark.parametrize("text", ["auto", "cpu", "cuda", "cuda:0", "cuda:11", "mps", "xpu:1"])
def test_devices_go_by_torchs_names(text):
    assert parameter("device: str = 'auto'  # place").parse(text) == text


@pytest.mark.parametrize("text", ["", "gpu", "CPU", "cuda:", "cuda:01", "cuda:-1", "cpu ", "0"])
def test_other_devices_are_refused(text):
    with pytest.raises(ProjectError, match="parameter device = "):
        parameter("device: str = 'auto'  # place").parse(text)


RANGED = PARAMETERS.replace("points drawn", "points drawn, 1 to 9").replace(
    "height of the curve", "height, at least -20, below 5"
)


@pytest.mark.parametrize(
    ("arguments", "profiles", "message"),
    [
        (["-p", "n", "0"], "", "error: tiny: parameter n = 0 is out of range; allowed: int, 1 to"),
        (["-p", "n", "-3"], "", "n = -3 is out of range"),
        (["-p", "scale", "-2.1e1"], "", "scale = -21.0 is out of range"),
        (["-p", "scale", "-inf"], "", "scale = -inf is not a finite number"),
        (["-p", "scale", "5"], "", "scale = 5.0 is out of range"),
        (["-p", "device", "gpu"], "", "device = 'gpu' is no device"),
        (["--profile", "smoke"], "[smoke.tiny]\nn = 10", "n = 10 is out of range"),
        (["--profile", "smoke"], "[smoke.tiny]\nscale = nan", "scale = nan is not a finite"),
        (["--profile", "smoke"], "smoke.tiny = 3", "smoke.tiny = 3 must be a table"),
        (["--profile", "smoke"], "[smoke", "profiles.toml is no TOML ("),
        (["--seeds", "3", "4", "-p", "n", "10"], "", "n = 10 is out of range"),
    ],
)
def test_out_of_range_starts_no_kernel(
    make_project, monkeypatch, capsys, arguments, profiles, message
):
    project = make_project(parameters=RANGED, profiles=profiles)
    monkeypatch.setattr(runner, "run_cells", lambda *_: pytest.fail("a kernel was started"))
    assert run.main(["tiny", *arguments], project) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (project.root / "build").exists()


def test_seeds_are_in_the_range_of_the_parameter(make_project, capsys):
    project = make_project(parameters=PARAMETERS.replace("of the noise", "of the noise, 0 to 9"))
    assert run.main(["tiny", "--seeds", "9", "10"], project) == 2
    assert "error: tiny: parameter seed = 10 is out of range" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "given"),
    [
        (["tiny", "-p", "scale", "-1e1"], [("scale", "-1e1")]),
        (["-p", "mode", "-x", "-p", "n", "=3", "tiny"], [("mode", "-x"), ("n", "=3")]),
        (["tiny", "--seeds", "1", "2", "-p", "scale", "-.5"], [("scale", "-.5")]),
    ],
)
def test_values_may_begin_with_a_dash(arguments, given, monkeypatch, make_project):
    seen = []
    monkeypatch.setattr(run, "execute", lambda *args, **_: seen.append(args[3]) or args[0].root)
    monkeypatch.setattr(run, "_many", lambda _, args: seen.append(args.given) or 0)
    assert run.main(arguments, make_project()) == 0
    assert seen == [given]


@pytest.mark.parametrize(
    "arguments",
    [
        ["tiny", "-p", "mode", "--profile", "smoke"],
        ["tiny", "-p", "mode", "-p", "n", "3"],
        ["tiny", "-p", "mode"],
        ["tiny", "-p", "--list", "3"],
    ],
)
def test_a_forgotten_value_is_not_taken_from_the_next_option(arguments, make_project, capsys):
    with pytest.raises(SystemExit, match="2"):
        run.main(arguments, make_project())
    assert "argument -p: expected 2 arguments" in capsys.readouterr().err


def test_ranges_are_shown_with_the_comment(make_project, capsys):
    project = make_project(parameters=RANGED)
    assert run.main(["--list"], project) == 0
    assert run.main(["tiny", "--help"], project) == 0
    assert capsys.readouterr().out.count("n: int = 3  # points drawn, 1 to 9\n") == 2


@pytest.mark.parametrize("name", PROJECT.names())
def test_every_number_of_a_committed_notebook_has_a_range(name):
    found = notebooks.parameters(PROJECT.read(name))
    numbers = [
        p for p in found.values() if p.annotation.removeprefix("list[")[:3] in ("int", "flo")
    ]
    assert [p.name for p in numbers if not p.range.text] == []
    for profile in notebooks.PROFILES:
        PROJECT.overrides(profile, name, found)


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        ("01_adversarial_audio", ("n_tracks", "29"), "3 to 28"),
        ("01_adversarial_audio", ("level_db", "nan"), "finite"),
        ("02_lime_limit", ("n_images", "21"), "1 to 20"),
        ("02_lime_limit", ("n_samples", "-5"), "at least 32"),
        ("03_fidelity", ("classifier", "resnet18"), "resnet50"),
        ("03_fidelity", ("steps", "41"), "even"),
        ("04_ganmex", ("scale", "desktop"), "one of laptop, paper"),
        ("05_synthesis", ("n_excerpts", "0"), "1 to 28"),
        ("05_synthesis", ("seed", "-1"), "0 to 4000000000"),
    ],
)
def test_committed_notebooks_refuse_what_their_studies_cannot_do(name, given, message):
    with pytest.raises(ProjectError, match=message):
        runner.plan(PROJECT, name, given=[given])


@pytest.mark.parametrize("text", ["", "{", "[]", '{"cells": 3}', '{"cells": [{}]}', "\x80"])
def test_a_damaged_notebook_is_named_in_one_line(make_project, capsys, text):
    project = make_project()
    project.notebook("tiny").write_bytes(text.encode("latin1"))
    assert run.main(["tiny"], project) == 2
    error = capsys.readouterr().err
    assert re.fullmatch(r"error: tiny: \S+tiny\.ipynb cannot be read.*\n", error)


def test_the_copy_of_a_run_is_no_source(make_project, capsys):
    project = make_project("n")
    notebook = project.read("tiny")
    notebook.cells[1].metadata["tags"] = ["injected-parameters"]
    nbformat.write(notebook, project.notebook("tiny"))
    assert run.main(["tiny"], project) == 2
    assert "'injected-parameters': this is the copy of a run" in capsys.readouterr().err
