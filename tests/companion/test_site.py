"""What goes into the web pages: figures with their alt texts, links, verdicts, citations."""

import base64
import copy
import struct
from collections import Counter

import nbformat
import pytest

from xaiutils.companion import ledger, provenance, readme, results
from xaiutils.companion.notebooks import ProjectError
from xaiutils.companion.provenance import ROOT
from xaiutils.companion.site import collect

ALT = "Two lines that cross, the first one dashed, the second one rising."
PNG = b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR" + struct.pack(">II", 828, 400)


def picture(alt=ALT):
    return nbformat.v4.new_output(
        "display_data",
        data={"image/png": base64.b64encode(PNG).decode()},
        metadata={"image/png": {"alt": alt}},
    )


@pytest.fixture
def tiny(make_project, write_results):
    """A project with one executed notebook: one figure, one cell without."""
    project = make_project('figures.savefig("line", fig, data=d, alt=a)', "print(1)")
    notebook = project.read("tiny")
    row = "| a | `dot`, `line` | Is `x` up? *(ours)* |"
    table = f"# Lines\n\n| | figure | question |\n|:--|:--|:--|\n{row}"
    notebook.cells.insert(0, nbformat.v4.new_markdown_cell(table))
    notebook.cells[2].outputs = [picture()]
    write_results(project, "line", png=PNG, alt=ALT)
    return project, notebook


def test_a_figure_takes_name_alt_question_and_size(tiny):
    project, notebook = tiny
    (figure,) = collect.take_figures(project, "tiny", notebook)
    assert (figure.name, figure.alt, figure.question) == ("line", ALT, "Is x up?")
    assert (figure.width, figure.height, figure.content) == (828, 400, PNG)
    shown = notebook.cells[2].outputs[0].data["text/html"]
    assert f'alt="{ALT}"' in shown
    assert 'class="picture wide" id="figure-line"' in shown
    assert "image/png" not in notebook.cells[2].outputs[0].data


def test_alt_texts_are_escaped():
    figure = collect.Figure("tiny", "line", 'a "b" < c', "", PNG)
    assert 'alt="a &quot;b&quot; &lt; c"' in figure.html()


def test_another_alt_than_that_of_the_record_is_refused(tiny):
    project, notebook = tiny
    notebook.cells[2].outputs = [picture("Something else that the notebook showed before.")]
    with pytest.raises(ProjectError, match=r"tiny, cell 3.*Something else.*Two lines"):
        collect.take_figures(project, "tiny", notebook)


def test_a_figure_without_record_is_refused(tiny):
    project, notebook = tiny
    for suffix in (".json", ".png"):
        (project.figures("default", "tiny") / f"line{suffix}").unlink()
    with pytest.raises(ProjectError, match=r"tiny, cell 3: there is no line\.json"):
        collect.take_figures(project, "tiny", notebook)


@pytest.mark.parametrize("content", [PNG + b"!", b"", None])
def test_another_picture_than_that_of_the_record_is_refused(tiny, content):
    project, notebook = tiny
    shown = picture()
    shown.data = {"image/png": base64.b64encode(content).decode()} if content is not None else {}
    shown.data["image/svg+xml"] = "<svg/>"
    notebook.cells[2].outputs = [shown]
    with pytest.raises(ProjectError, match=r"cell 3: the picture 'line' is not that of line\.json"):
        collect.take_figures(project, "tiny", notebook)


def test_a_damaged_record_is_refused(tiny):
    project, notebook = tiny
    path = project.figures("default", "tiny") / "line.json"
    path.write_text(path.read_text().replace("0.0", "0.1"))
    with pytest.raises(ProjectError, match=r"line\.json is not as it was written"):
        collect.take_figures(project, "tiny", notebook)


@pytest.mark.parametrize("cell, outputs", [(2, []), (2, [picture(), picture()]), (3, [picture()])])
def test_pictures_that_savefig_did_not_make_are_refused(tiny, cell, outputs):
    project, notebook = tiny
    notebook.cells[cell].outputs = outputs
    with pytest.raises(ProjectError, match=f"cell {cell + 1}: {len(outputs)} pictures"):
        collect.take_figures(project, "tiny", notebook)


def test_only_a_notebook_run_to_its_end_is_executed(tiny):
    _, notebook = tiny
    for cell in notebook.cells[1:]:
        assert not collect.is_executed(notebook)
        cell.execution_count = 1
    assert collect.is_executed(notebook)


def test_links_lead_to_pages_or_disappear(tiny):
    project, notebook = tiny
    figure = collect.Figure("tiny", "line", ALT, "", PNG)
    pages = [collect.Page("tiny", notebook, [figure])]
    text = "[a](tiny.ipynb) [`b`](claims.toml) [c](https://x.org) [d](#e) [f](../figures/tiny#g)"
    shown = "[a](tiny.ipynb) `b` [c](https://x.org) [d](#e) [f](tiny.ipynb#g)"
    assert collect.relink(text, "notebooks", project.root, pages) == shown
    hero = collect.relink("![x](figures/tiny/line.png)", "", project.root, pages)
    assert hero == figure.html()
    text = "[line](tiny/line.png)"
    shown = '<a href="tiny.html#figure-line">line</a>'
    assert collect.relink(text, "figures", project.root, pages) == shown
    code = "```\n[a](nowhere.md)\n```"
    assert collect.relink(code, "notebooks", project.root, pages) == code
    with pytest.raises(ProjectError, match=r"nowhere\.md leads to nothing"):
        collect.relink("[a](nowhere.md)", "notebooks", project.root, pages)


def test_verdicts_become_badges():
    row = "| `a` the **holds** word | **holds** | **not run** |"
    marked = "| `a` the **holds** word | [holds]{.verdict .holds} | [not run]{.verdict .not-run} |"
    assert collect.mark_verdicts(row) == marked


def test_code_is_folded_and_players_are_named(tiny):
    project, notebook = tiny
    player = nbformat.v4.new_output("display_data", data={"text/html": "<audio controls></audio>"})
    notebook.cells[3].outputs = [player, copy.deepcopy(player)]
    page = collect.Page("tiny", notebook, [])
    shown = nbformat.reads(collect.prepare(page, project.root, [page]), as_version=4)
    assert [c.metadata.get("tags") for c in shown.cells] == [
        None, ["parameters", "hide-input"], ["hide-input"], ["hide-input"],
    ]  # fmt: skip
    labels = [o.data["text/html"].split('"')[1] for o in shown.cells[3].outputs]
    assert labels == ["Sound 1", "Sound 2"]


def test_a_page_has_a_short_label():
    assert collect.Page("02_lime_limit", None, []).label == "2 LIME limit"
    assert collect.Page("01_adversarial_audio", None, []).label == "1 Adversarial audio"
    assert collect.Page("tiny", None, []).label == "Tiny"


def test_a_paper_is_cited_as_text_and_bibtex():
    work = {
        "type": "conference-paper",
        "title": "On X",
        "authors": [{"family-names": "Doe", "given-names": "Ann"}, {"name": "The Xs"}],
        "collection-title": "Proc. X",
        "year": 2021,
    }
    text, entry = collect.cited(work)
    assert text == "Ann Doe, The Xs: *On X*. Proc. X, 2021."
    assert entry == (
        "@inproceedings{doe2021,\n  title = {{On X}},\n  author = {Doe, Ann and {The Xs}},\n"
        "  booktitle = {Proc. X},\n  year = {2021}\n}"
    )


def test_the_start_page_shows_chosen_figures_and_the_headline(tiny, monkeypatch):
    project, notebook = tiny
    both = [collect.Figure("1_tiny", name, ALT, "", PNG) for name in ("line", "dot")]
    page = collect.Page("1_tiny", notebook, both)
    counts = Counter(holds=1)
    chosen = readme.Headline("", "", None, ["line"], "Slope: 7 %", "rises", "holds", counts)
    monkeypatch.setattr(readme, "headlines", lambda project: {"1_tiny": chosen})
    (project.root / "README.md").write_text("# Title\n\nHello.\n\n## More\n\nNot this.")
    (project.root / "CITATION.cff").write_text((ROOT / "CITATION.cff").read_text())
    shown = collect.start_page(project, [page], "| holds | 1 |\n| fails | 2 |\n")
    assert "Slope: 7 % [holds]{.verdict .holds}" in shown
    assert "1_tiny.html#figure-line" in shown
    assert "figure-dot" not in shown
    assert "[Read it, with all 2 figures and the code](1_tiny.ipynb)" in shown
    assert "3 claims" in shown
    assert "Not this" not in shown


@pytest.fixture
def whole(tiny, monkeypatch):
    """All of a project that the pages are made of, as its last run left it."""
    project, notebook = tiny
    for count, cell in enumerate(notebook.cells[1:], start=1):
        cell.execution_count = count
    notebook.metadata["xaiutils"] = {"sha256": results.notebook_seal(notebook)}
    nbformat.write(notebook, project.notebook("tiny"))
    provenance.write(project.root / "data" / "README.md", b"# Data\n")
    provenance.write(project.root / "CITATION.cff", (ROOT / "CITATION.cff").read_bytes())
    marks = f"{readme.FIRST}\n{readme.LAST}"
    provenance.write(project.root / "README.md", f"# Title\n\n{marks}\n\n## More\n".encode())
    assert (ledger.main([], project), readme.main(project)) == (0, 0)
    monkeypatch.setattr(collect, "find_spec", lambda name: name)
    return project


def test_pages_are_made_of_what_the_last_run_left(whole, capsys):
    notebook = whole.notebook("tiny")
    notebook.write_text(notebook.read_text().replace("# Lines", "# Two lines"))  # text is free
    assert collect.main(whole) == 0
    target = whole.root / "build" / "site-source"
    assert (target / "extra" / "figures" / "tiny" / "line.png").read_bytes() == PNG
    assert "Two lines" in (target / "tiny.ipynb").read_text()


DAMAGE = {
    "output": ("notebooks/tiny.ipynb", '"execution_count": 3', '"execution_count": 4'),
    "code": ("notebooks/tiny.ipynb", "print(1)", "print(2)"),
    "notebook": ("notebooks/tiny.ipynb", '"cells"', "cells"),
    "older notebook": ("notebooks/tiny.ipynb", '"sha256"', '"sha"'),
    "title": ("notebooks/tiny.ipynb", "# Lines", "Lines"),
    "record": ("figures/tiny/line.json", "Two lines", "Two dots"),
    "numbers": ("figures/tiny/line.json", "0.0", "0.5"),
    "ledger": ("figures/CLAIMS.md", "| holds | 0 |", "| holds | 9 |"),
    "readme": ("README.md", "| **0** |", "| **9** |"),
    "text": ("figures/CLAIMS.md", "The claims", "Claims"),
    "rules": ("notebooks/claims.toml", "", "[[claim"),
    "mark": ("notebooks/tiny.ipynb", '"xaiutils": {', '"xaiutils": 3, "other": {'),
    "citation": ("CITATION.cff", "references:", "reference:"),
    "no citation": ("CITATION.cff", "", "a: [b"),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_what_is_damaged_or_edited_is_named_and_no_page_is_written(whole, capsys, what):
    name, old, new = DAMAGE[what]
    path = whole.root / name
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1) if old else new)
    kept = whole.root / "build" / "site-source" / "index.md"
    provenance.write(kept, b"of an earlier build")
    capsys.readouterr()
    assert collect.main(whole) == 2
    shown = capsys.readouterr().err
    assert shown.startswith("error: ")
    assert shown.count("\n") == 1
    assert path.name in shown or "tiny" in shown
    assert kept.read_bytes() == b"of an earlier build"


def test_missing_packages_are_named_before_anything_is_written(tiny, monkeypatch, capsys):
    project, _ = tiny
    monkeypatch.setattr(collect, "find_spec", lambda name: None if name == "sphinx" else name)
    assert collect.main(project) == 2
    assert "error: sphinx not installed; run pip install -r" in capsys.readouterr().err
    assert not (project.root / "build").exists()
