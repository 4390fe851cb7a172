"""The tour: ten calls, each with a sentence before it and an output, that run to their end."""

import re
from itertools import pairwise

import matplotlib.pyplot as plt
import nbformat
import pytest

from xaiutils.companion import notebooks
from xaiutils.companion.provenance import ROOT
from xaiutils.companion.site import collect, tour

PROJECT = notebooks.Project(ROOT)
SMALL = {"n_masks": 60, "steps": 4}


@pytest.fixture(scope="module")
def cells():
    return nbformat.read(tour.source(PROJECT), as_version=4).cells


def test_it_is_ten_calls_with_a_sentence_before_each(cells):
    headings = [c.source for c in cells if re.match(r"## \d+\. ", c.source)]
    assert [int(h.split()[1].rstrip(".")) for h in headings] == list(range(1, 11))
    assert all(len(h.split("\n\n", 1)[1]) > 60 for h in headings)
    for before, cell in pairwise(cells):
        if before.source in headings:
            assert cell.cell_type == "code"


def test_it_is_kept_without_outputs_and_pictures_have_alternative_texts(cells):
    for cell in cells:
        if cell.cell_type == "code":
            assert not cell.outputs and cell.execution_count is None
            alt = cell.metadata.get("mystnb", {}).get("image", {}).get("alt", "")
            assert (len(alt) >= 40) == ("plt.subplots" in cell.source), cell.source[:60]


def test_the_parameters_are_like_those_of_the_notebooks(cells):
    found = notebooks.parameters(nbformat.v4.new_notebook(cells=cells))
    assert set(found) == set(SMALL)


def test_it_runs_to_its_end_and_says_what_the_text_says(cells, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names = {}
    plt.close("all")  # of other tests
    with plt.rc_context():
        for cell in cells:
            if cell.cell_type == "code":
                exec(compile(cell.source, cell.id, "exec"), names)
                if notebooks.has_tag(cell, "parameters"):
                    names |= SMALL
    pictures = len(plt.get_fignums())
    plt.close("all")
    assert pictures == sum("plt.subplots" in cell.source for cell in cells)
    assert not list(tmp_path.iterdir())
    shown = capsys.readouterr().out
    assert "class 243, bull mastiff: 0.69\n" in shown
    distances = re.search(r"\(run - limit\) / standard error: \[(.*)\]", shown)[1]
    assert max(abs(float(z)) for z in distances.split()) < 5
    alike = dict(re.findall(r"correlation of (\w+) values, before and after: (-?[\d.]+)", shown))
    assert abs(float(alike["signed"])) < 0.1 < float(alike["absolute"])
    singing, below = re.search(r"singing: ([\d.]+), by a noise (\d+) dB below", shown).groups()
    assert float(singing) < 0.5 and int(below) > 30


def project(tmp_path, *sources):
    cells = [nbformat.v4.new_code_cell(source, id=f"c{i}") for i, source in enumerate(sources)]
    cells.insert(0, nbformat.v4.new_markdown_cell("# Tour\n\n[a](../tiny.ipynb)", id="title"))
    cells[-1].metadata["mystnb"] = {"image": {"alt": "a line"}}
    folder = tmp_path / "notebooks" / "tour"
    folder.mkdir(parents=True)
    nbformat.write(nbformat.v4.new_notebook(cells=cells), folder / "ten_calls.ipynb")
    return notebooks.Project(tmp_path)


def test_what_ran_goes_to_the_pages_with_code_and_alternative_texts(tmp_path, capfd):
    here = project(tmp_path, "import sys\nprint('noise', file=sys.stderr)\nprint(6 * 7)")
    assert collect.tour_pages(here, []) == {}
    assert tour.main(here) == 0
    assert [path.name for path in tour.executed(here).parent.iterdir()] == ["ten_calls.ipynb"]
    (here.root / "notebooks" / "tiny.ipynb").write_text("{}")
    pages = [collect.Page("tiny", None, [])]
    ((name, text),) = collect.tour_pages(here, pages).items()
    assert name == "ten_calls.ipynb"
    title, cell = nbformat.reads(text, as_version=4).cells
    assert title.source == "# Tour\n\n[a](tiny.ipynb)"
    assert [(o.name, o.text) for o in cell.outputs] == [("stdout", "42\n")]
    assert cell.metadata == {"mystnb": {"image": {"alt": "a line"}}}


def test_a_tour_that_fails_leaves_nothing_and_says_where(tmp_path, capfd):
    here = project(tmp_path, "1 / 0")
    tour.executed(here).parent.mkdir(parents=True)
    tour.executed(here).write_text("of an earlier run")
    assert tour.main(here) == 1
    assert not list(tour.executed(here).parent.iterdir())
    assert "failed: ten_calls: cell [1] raised ZeroDivisionError" in capfd.readouterr().err
