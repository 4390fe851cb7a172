"""Notebooks and tables that are damaged are named in one line; what is legitimate is read."""

import json
import warnings

import nbformat
import pytest

from xaiutils.companion import notebooks, provenance
from xaiutils.companion.notebooks import ProjectError


def written(**content):
    return json.dumps({"nbformat": 4, "nbformat_minor": 5, "metadata": {}, **content})


CELL = {"cell_type": "code", "id": "a", "metadata": {}, "source": "1", "outputs": []}
WHOLE = written(cells=[{**CELL, "execution_count": None}])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "cannot be read as a notebook"),
        ("{", "does not appear to be JSON"),
        (WHOLE[: len(WHOLE) // 2], "does not appear to be JSON"),
        ("[]", "cannot be read as a notebook"),
        ("3", "cannot be read as a notebook"),
        ("{}", "cannot be read as a notebook"),
        (written(), "missing an expected key: cells"),
        (written(cells=[]), "it has no cells"),
        (written(cells={}), "cannot be read as a notebook"),
        (written(cells=[3]), "cannot be read as a notebook"),
        (written(cells=[CELL]), "'execution_count' is a required property"),
        (written(cells=[{**CELL, "execution_count": None, "source": 3}]), "cannot be read as a"),
        (WHOLE.replace('"nbformat": 4', '"nbformat": 9'), "cannot be read as a notebook"),
        (WHOLE.replace('"nbformat": 4', '"nbformat": "four"'), "cannot be read as a notebook"),
        ("[" * 100_000, "cannot be read as a notebook"),
    ],
)
def test_a_damaged_notebook_is_named_in_one_line(tmp_path, capfd, text, message):
    path = tmp_path / "tiny.ipynb"
    path.write_text(text)
    with pytest.raises(ProjectError, match=message) as error:
        notebooks.read_notebook(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)
    assert capfd.readouterr().err == ""


def test_what_is_no_text_or_not_there_is_named(tmp_path):
    path = tmp_path / "tiny.ipynb"
    for read in (notebooks.read_notebook, notebooks.read_toml, notebooks.read_text):
        with pytest.raises(ProjectError, match=r"tiny\.ipynb cannot be read \(No such file"):
            read(path)
    path.write_bytes(b"\xff\xfe\x00")
    for read in (notebooks.read_notebook, notebooks.read_toml, provenance.read_json):
        with pytest.raises(ProjectError, match=r"tiny\.ipynb cannot be read \('utf-8'"):
            read(path)
    assert provenance.read_json(tmp_path / "none.json") is None


def test_older_and_richer_notebooks_are_read(tmp_path):
    path = tmp_path / "tiny.ipynb"
    older = nbformat.v3.new_notebook(
        worksheets=[nbformat.v3.new_worksheet(cells=[nbformat.v3.new_code_cell(input="1 + 1")])]
    )
    path.write_text(nbformat.v3.writes_json(older))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert notebooks.read_notebook(path).cells[0].source == "1 + 1"
    cell = {**CELL, "execution_count": 1, "more": {"of": "another editor"}}
    path.write_text(written(cells=[cell], more=1))
    assert notebooks.read_notebook(path).cells[0].source == "1"
    del cell["id"]
    path.write_text(written(nbformat_minor=2, cells=[{**cell, "source": ["1\n", "2"]}]))
    assert notebooks.read_notebook(path).cells[0].source == "1\n2"


def test_damaged_profiles_are_named(make_project):
    project = make_project(profiles="[smoke.tiny\n")
    with pytest.raises(ProjectError, match=r"profiles\.toml is no TOML \(.*line 1.*\); mend it"):
        project.overrides("smoke", "tiny", {})


@pytest.mark.parametrize("name", ["../line", "a/b", "/tmp/x", "Line", "a b", "", "claims"])
def test_a_figure_that_would_leave_its_folder_is_refused(make_project, name):
    project = make_project(f"figures.savefig({name!r}, fig)")
    with pytest.raises(ProjectError, match=f"figures.savefig is called for {name!r}; use a-z, 0-9"):
        notebooks.figure_names(project.read("tiny"))


def test_a_path_is_shown_from_here_where_it_lies_here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert notebooks.shown(tmp_path / "figures" / "x.json") == "figures/x.json"
    assert notebooks.shown("figures/x.json") == "figures/x.json"
    assert notebooks.shown("/elsewhere/x.json") == "/elsewhere/x.json"


def test_a_module_that_is_no_python_is_named(make_project, tmp_path, monkeypatch):
    folder = tmp_path / "package"
    for name in ("__init__", "companion/__init__", "mid"):
        (folder / f"{name}.py").parent.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.py").touch()
    for name in provenance._WRITERS:
        (folder / "companion" / f"{name}.py").touch()
    (folder / "mid.py").write_text("def f(:\n")
    monkeypatch.setattr(provenance, "__file__", str(folder / "companion" / "provenance.py"))
    project = make_project("from xaiutils import mid")
    with pytest.raises(ProjectError, match=r"^tiny: xaiutils\.mid is no Python, line 1: "):
        provenance.of_notebook(project, "tiny")
    (project.root / "requirements.lock").unlink()
    (folder / "mid.py").write_text("")
    with pytest.raises(ProjectError, match=r"requirements\.lock cannot be read \(No such file"):
        provenance.of_notebook(project, "tiny")
