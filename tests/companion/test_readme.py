"""README.md: its results are those of the ledger, its examples run."""

import os
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
from conftest import CLAIM, FIGURE
from PIL import Image

from xaiutils.companion import ledger, provenance, readme
from xaiutils.companion.notebooks import Project, ProjectError
from xaiutils.data import assets

HEADLINE = """\
[tiny]
paper = "Doe 2021"
asks = "Does it | rise?"
minutes = 3
figures = ["line"]
claim = "rises"
sentence = "Slope, n = {n}: {value:.0%} [{low:.1f}, {high:.1f}]"
"""
TEXT = f"# Title\n\n{readme.FIRST}\nold\n{readme.LAST}\n\nEnd.\n"


@pytest.fixture
def project(make_project, write_results):
    """A project with a figure, a claim with a record, and a README."""
    project = make_project(FIGURE, ledger=CLAIM)
    record = {"verdict": "fails", "value": 0.7, "low": 0.6, "high": 0.8, "n": 20, "unit": ""}
    write_results(project, claims={"rises": record})
    (project.root / "README.md").write_text(TEXT)
    return project


def write(project, text):
    (project.root / "notebooks" / "headlines.toml").write_text(text)


def test_the_results_are_those_of_the_ledger():
    root = Project(provenance.ROOT)
    text = (root.root / "README.md").read_text(encoding="utf-8")
    assert text == readme.updated(root), "run make claims"
    assert all(f"[{name}](notebooks/{name}.ipynb)" in text for name in root.names())


def test_a_headline_takes_its_numbers_and_verdict_from_the_ledger(project):
    write(project, HEADLINE)
    assert readme.main(project) == 0
    text = (project.root / "README.md").read_text()
    assert text.startswith(f"# Title\n\n{readme.FIRST}\n\n| notebook | asks |")
    assert text.endswith(f"\n\n{readme.LAST}\n\nEnd.\n")
    assert (
        "| [tiny](notebooks/tiny.ipynb)<br>Doe 2021 | Does it \\| rise? "
        "| Slope, n = 20: 70 % [0.6, 0.8]: **holds** (`rises`) |\n"
    ) in text
    assert "\n| tiny | 1 | 0 | 0 | 0 | 0 | [1](figures/tiny) | 3 |\n" in text
    totals = "**1** | **0** | **0** | **0** | **0**"
    assert f"\n| **all 1**: [the ledger](figures/CLAIMS.md) | {totals} |" in text
    assert "\nold\n" not in text


@pytest.mark.parametrize("without", ["headline", "record", "number", "file"])
def test_a_notebook_without_headline_or_record_has_no_number(project, write_results, without):
    write(project, HEADLINE if without in ("record", "number") else "[tiny]\n")
    records = project.figures("default", "tiny") / "claims.json"
    if without == "file":
        (project.root / "notebooks" / "headlines.toml").unlink()
    if without == "record":
        records.unlink()
    if without == "number":
        write_results(project, claims={"rises": {"verdict": "not run", "reason": "no data"}})
    (line,) = [n for n in readme.block(project).splitlines() if n.startswith("| [tiny]")]
    assert line.endswith("| – |")
    assert ("Doe 2021" in line) == (without in ("record", "number"))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("minutes = 3", "minute = 3", r"minute = 3; allowed: paper \(str\)"),
        ("minutes = 3", 'minutes = "3"', r"minutes = '3'; allowed: .*minutes \(int\)"),
        ('"rises"', '"falls"', "no claim 'falls'; allowed: rises"),
        ('["line"]', '["lines"]', "no figure 'lines'; allowed: line"),
        ("{n}", "{m}", "cannot be filled: KeyError"),
        ("{n}", "{}", "cannot be filled: IndexError"),
        ("{n}", "{n:!}", "cannot be filled: ValueError"),
        ("{n}", "{n.real.x}", "cannot be filled: AttributeError"),
        ("{n}", "{unit:.2f}", "cannot be filled: ValueError"),
        ("minutes = 3", "minutes = 0", "minutes = 0; allowed: 1 or more"),
        ("minutes = 3", "minutes = true", "minutes = True; allowed"),
        ('["line"]', '["../line"]', r"no figure '\.\./line'; allowed: line"),
        ('["line"]', '[["line"]]', r"no figure \['line'\]"),
    ],
)
def test_headlines_take_only_what_there_is(project, capsys, old, new, message):
    assert old in HEADLINE
    write(project, HEADLINE.replace(old, new))
    assert readme.main(project) == 2
    assert re.search(r"headlines\.toml, \[tiny\]: .*" + message, capsys.readouterr().err)
    assert (project.root / "README.md").read_text() == TEXT


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (HEADLINE + "[other]\n", r"headlines\.toml: \[other\] names no notebook; allowed: tiny"),
        ("tiny = 3\n", r"headlines\.toml: tiny = 3 must be a table"),
        ("[tiny\n", r"headlines\.toml is no TOML \("),
    ],
)
def test_damaged_headlines_are_named_and_nothing_is_written(project, capsys, text, message):
    write(project, text)
    assert readme.main(project) == 2
    shown = capsys.readouterr().err
    assert re.search(message, shown)
    assert shown.count("\n") == 1
    assert (project.root / "README.md").read_text() == TEXT


@pytest.mark.parametrize("text", [TEXT.replace(readme.LAST, ""), TEXT + TEXT, "# Title\n"])
def test_the_marks_must_be_there_once(project, text):
    (project.root / "README.md").write_text(text)
    with pytest.raises(ProjectError, match="once, in order"):
        readme.updated(project)


def test_an_interval_that_is_not_defined_is_no_error(project, write_results):
    one = {"verdict": "holds", "value": 0.7, "low": None, "high": None, "n": 1, "unit": ""}
    write_results(project, claims={"rises": one})
    write(project, HEADLINE)
    assert "Slope, n = 1: 70 % [nan, nan]: **inconclusive**" in readme.block(project)


def test_every_committed_headline_names_a_claim_of_the_ledger():
    root = Project(provenance.ROOT)
    found = readme.headlines(root)
    records = {key: record for key, (_, record) in ledger.measured(root).items()}
    assert {name for name, h in found.items() if h.claim} == set(found)
    for headline in found.values():
        assert bool(headline.measured) == ("value" in (records[headline.claim] or {}))


def example(output):
    text = (provenance.ROOT / "README.md").read_text(encoding="utf-8")
    (code,) = [c for c in re.findall(r"```python\n(.*?)```", text, re.S) if output in c]
    return code


@pytest.mark.parametrize(
    ("asset", "given", "output", "smaller", "cells"),
    [
        ("imagenet_00_243.jpg", "photo.jpg", "photo_explained.png",
         {"n_samples=500": "n_samples=60", "max_samples=4000": "max_samples=60"}, 44),
        ("vocadito_14.wav", "song.wav", "song_explained.png",
         {"n_samples=1000": "n_samples=60"}, 20),
    ],
)  # fmt: skip
def test_an_example_explains_a_file_of_the_readers(tmp_path, asset, given, output, smaller, cells):
    shutil.copy(assets.path(asset), tmp_path / given)
    code = example(output)
    for many, few in smaller.items():
        assert code.count(many) == 1
        code = code.replace(many, few)
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\nassert found.stderr.shape == ({cells},)"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(provenance.ROOT), "MPLBACKEND": "agg"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(("class 243, told apart: ", "singing: 0.9"))
    picture = np.asarray(Image.open(tmp_path / output).convert("RGB"), float)
    assert picture.std() > 10
    # A map that is symmetric about zero has red where the answer comes from.
    assert (picture[..., 0] - picture[..., 2]).max() > 80
