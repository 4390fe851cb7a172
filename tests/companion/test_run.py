"""The runner: strict parameters before the kernel starts, strict results after it ended."""

import json
import os
import sys

import nbformat
import pytest
from conftest import CLAIM, FIGURE, PARAMETERS

from xaiutils.companion import kernel, notebooks, provenance, results, run, runner
from xaiutils.companion.notebooks import ProjectError

ALT = "A line " * 9
RECORD = 'claims.record("rises", scale, 0.9 * scale, 1.1 * scale, n=n)'


def declared(source, *tags):
    cell = nbformat.v4.new_code_cell(source)
    cell.metadata["tags"] = list(tags)
    return notebooks.parameters(nbformat.v4.new_notebook(cells=[cell]))


def files(folder):
    return {p.name: p.read_bytes() for p in folder.iterdir()}


def test_parameters_cell_is_read_with_type_default_and_comment():
    found = declared(
        "xs: list[float] = [\n    1,\n    -2.5,\n]  # a # b\nk: bool = True  # c", "parameters"
    )
    assert list(found) == ["xs", "k"]
    assert (found["xs"].annotation, found["xs"].default) == ("list[float]", [1, -2.5])
    assert found["xs"].comment == "a # b"
    assert (found["k"].annotation, found["k"].default) == ("bool", True)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("n: int = 2 * 3  # c", "literal"),
        ("n: int = int(3)  # c", "literal"),
        ("n = 3  # c", "name: type"),
        ("n: int = 3", "comment"),
        ("n: int = 3  #", "comment"),
        ("n: int  # c", "literal"),
        ("n: dict = {}  # c", "allowed: int"),
        ("n: int = True  # c", "type bool"),
        ("n: int = 3.0  # c", "type float"),
        ("n: float = True  # c", "type bool"),
        ("n: list[int] = [1, 2.0]  # c", "type list"),
        ("n: int = 1  # c\nn: int = 2  # c", "twice"),
        ("import os", "name: type"),
        ("n: int = 1 +  # c", "plain Python"),
        ("n: list[int] = [3  # c", "plain Python, line 1"),
        ('s: str = """3  # c', "plain Python, line 1"),
        ("if 1:\n    n: int = 1  # c\n  m: int = 2  # c", "plain Python, line 3"),
        ("n: int = 1  # \ud800", "plain Python: "),
        (f"n: int = {'-' * 50_000}1  # c", "plain Python"),
    ],
)
def test_parameters_cell_takes_only_annotated_literals_with_comment(source, message):
    with pytest.raises(ProjectError, match=message):
        declared(source, "parameters")


def test_parameters_tag_must_be_there():
    with pytest.raises(ProjectError, match="0 code cells"):
        declared("n: int = 1  # c", "setup")


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("n", "5", 5),
        ("scale", "2", 2.0),
        ("scale", "1e-3", 0.001),
        ("mode", "down", "down"),
        ("mode", '"3"', "3"),
        ("mode", "2024", "2024"),  # the name of a folder, say
        ("mode", "2024-01-15", "2024-01-15"),
        ("mode", "true", "true"),
        ("mode", "a = 1\nb = 2", "a = 1\nb = 2"),
    ],
)
def test_command_line_value_is_a_toml_literal_of_the_declared_type(name, text, value):
    found = declared(PARAMETERS, "parameters")[name].parse(text)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("profiles", "profile", "message"),
    [
        ("", "smok", "allowed: default, smoke, paper"),
        ("", "smoke", r"no table \[smoke.tiny\]"),
        ("[smoke.tiny]\nm = 1", "smoke", "allowed: n, scale, mode, seed, device"),
        ("[smoke.tiny]\nn = true", "smoke", "type bool"),
        ("[smoke.tiny]\nn = 1.0", "smoke", "type float"),
        ("[smoke.tiny]\n[smoke.tony]", "default", "notebooks: tiny"),
        ("[default.tiny]\nn = 1", "default", "profiles: smoke, paper"),
        ("smoke = 1", "default", "names no profile"),
    ],
)
def test_profile_is_checked_against_the_notebook(make_project, profiles, profile, message):
    project = make_project(profiles=profiles)
    with pytest.raises(ProjectError, match=message):
        project.overrides(profile, "tiny", notebooks.parameters(project.read("tiny")))


def test_profile_gives_values_of_the_declared_type(make_project):
    project = make_project(profiles="[smoke.tiny]\nscale = 2\n[paper.tiny]\n")
    known = notebooks.parameters(project.read("tiny"))
    assert repr(project.overrides("smoke", "tiny", known)) == "{'scale': 2.0}"
    assert project.overrides("paper", "tiny", known) == {}
    assert project.overrides("default", "tiny", known) == {}


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        ('figures.savefig("a", f)\nfigures.savefig("a", g)', "twice for: a"),
        ("figures.savefig(name, f)", "in quotes"),
        ("figures.savefig()", "in quotes"),
        ("%matplotlib inline", "code cell 2 is not plain Python"),
    ],
)
def test_declared_figures_must_be_readable_without_running(make_project, cell, message):
    with pytest.raises(ProjectError, match=message):
        notebooks.figure_names(make_project(cell).read("tiny"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["tony"], "no notebook 'tony'; allowed: tiny"),
        (["tiny", "--profile", "x"], "allowed: default, smoke, paper"),
        (["tiny", "-p", "m", "1"], "allowed: n, scale, mode, seed, device"),
        (["tiny", "-p", "n", "true"], "allowed: int (points drawn)"),
        (["tiny", "-p", "n", "two"], "type str"),
        (["tiny", "-p", "image_folder", "nowhere"], "'nowhere' is no folder: there is no /"),
    ],
)
def test_what_is_not_allowed_starts_no_kernel_and_touches_no_file(
    make_project, monkeypatch, capsys, arguments, message
):
    folder = '\nimage_folder: str = ""  # of photographs'
    project = make_project(parameters=PARAMETERS + folder)
    copy = project.executed("default", "tiny")
    provenance.write(copy, b"of an earlier run")
    monkeypatch.setattr(runner, "run_cells", lambda *_: pytest.fail("a kernel was started"))
    assert run.main(arguments, project) == 2
    assert message in capsys.readouterr().err
    assert copy.read_bytes() == b"of an earlier run"


def test_a_folder_is_the_readers_wherever_the_kernel_starts(make_project, tmp_path, monkeypatch):
    project = make_project(parameters=PARAMETERS + '\nimage_folder: str = ""  # of photographs')
    (tmp_path / "reader" / "photos").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "reader")
    given = runner.plan(project, "tiny", given=[("image_folder", "photos")]).parameters
    assert given["image_folder"] == str(tmp_path / "reader" / "photos")


def test_a_parameter_is_set_once(make_project, capsys):
    with pytest.raises(SystemExit) as end:
        run.main(["tiny", "-p", "n", "3", "-p", "n", "4"], make_project())
    assert end.value.code == 2 and "-p sets a parameter twice: n" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["", " "])
def test_a_scheduler_without_an_address_is_refused(make_project, capsys, text):
    with pytest.raises(SystemExit) as end:
        run.main(["tiny", "--dask", text], make_project())
    assert end.value.code == 2
    assert "argument --dask: is empty; allowed: the address" in capsys.readouterr().err


def test_parts_of_a_killed_run_go_with_the_next(tmp_path):
    source, target = tmp_path / "made", tmp_path / "figures"
    source.mkdir()
    target.mkdir()
    (source / "line.png").write_bytes(b"a picture")
    for name in (".line.png.4242", ".claims.json.77"):
        (target / name).write_bytes(b"half")
    runner._publish(source, target, tmp_path / "copy.ipynb")
    assert [path.name for path in target.iterdir()] == ["line.png"]


def test_list_shows_every_parameter(make_project, capsys):
    assert run.main(["--list"], make_project()) == 0
    assert capsys.readouterr().out.splitlines()[:2] == ["tiny", "  n: int = 3  # points drawn"]


def test_threads_of_a_kernel_share_an_arena_from_its_start(tmp_path, monkeypatch):
    monkeypatch.setenv("MALLOC_ARENA_MAX", "8")
    with kernel._environment(tmp_path):
        assert os.environ["MALLOC_ARENA_MAX"] == "1"
    assert os.environ["MALLOC_ARENA_MAX"] == "8"


def test_a_good_run_publishes_and_update_gives_the_same_bytes(make_project, tmp_path, monkeypatch):
    # A kernel of the same name that belongs to another, broken interpreter.
    spec = {"argv": ["no-such-python"], "display_name": "other", "language": "python"}
    other = tmp_path / "jupyter" / "kernels" / "python3" / "kernel.json"
    provenance.write(other, json.dumps(spec).encode())
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
    where = "import os, sys\nprint(sys.executable, os.getcwd())\nprint('bar', file=sys.stderr)"
    project = make_project(FIGURE, RECORD, where, ledger=CLAIM)
    figures, copy = project.figures("default", "tiny"), project.executed("default", "tiny")
    provenance.write(figures / "gone.png", b"a figure the notebook no longer has")
    before = dict(os.environ)
    assert run.main(["tiny"], project) == 0
    assert dict(os.environ) == before
    assert sorted(files(copy.parent)) == ["tiny.ipynb"]
    first = {**files(figures), "copy": copy.read_bytes()}
    assert sorted(first) == ["claims.json", "copy", "line.json", "line.pdf", "line.png"]
    ran = nbformat.reads(first["copy"].decode(), as_version=4)
    assert ran.cells[3].outputs[0].text == f"{sys.executable} {project.root / 'notebooks'}\n"
    assert ran.metadata.xaiutils.profile == "default"
    assert json.loads(first["claims.json"])["claims"]["rises"]["cell"] == 3

    copy.unlink()  # so that it runs again
    assert run.main(["--update", "tiny"], project) == 0
    assert {**files(figures), "copy": copy.read_bytes()} == first
    shown = project.read("tiny")
    assert [cell.id for cell in shown.cells] == ["c0", "c1", "c2", "c3"]
    assert [cell.execution_count for cell in shown.cells] == [1, 2, 3, 4]
    assert shown.cells[1].outputs[0].metadata["image/png"]["alt"] == ALT.strip()
    assert "'holds'" in shown.cells[2].outputs[0].data["text/plain"]
    assert [output.name for output in shown.cells[3].outputs] == ["stdout"]
    assert set(shown.metadata) == {"kernelspec", "language_info", "xaiutils"}
    assert shown.metadata.xaiutils == {"sha256": results.notebook_seal(shown)}
    assert copy.stat().st_mtime >= project.notebook("tiny").stat().st_mtime


def test_update_takes_the_outputs_of_a_run_that_is_current(make_project, monkeypatch, capsys):
    project = make_project(FIGURE, "1 + 1")
    assert run.main(["tiny"], project) == 0
    notebook = project.read("tiny")
    notebook.cells.append(nbformat.v4.new_markdown_cell("Said afterwards."))
    nbformat.write(notebook, project.notebook("tiny"))

    def ran(*arguments):
        raise kernel.RunError("it ran again")

    monkeypatch.setattr(runner, "run_cells", ran)
    assert run.main(["--update", "tiny"], project) == 0
    shown = project.read("tiny")
    assert shown.cells[2].outputs[0].data["text/plain"] == "2"
    assert shown.cells[-1].source == "Said afterwards."
    assert results.notebook_seal(shown) == shown.metadata.xaiutils["sha256"]
    assert "outputs of the run that made" in capsys.readouterr().out

    shown.cells[2].source = "1 + 2"  # code makes it old
    nbformat.write(shown, project.notebook("tiny"))
    assert run.main(["--update", "tiny"], project) == 1
    assert "it ran again" in capsys.readouterr().err


def test_changed_parameters_leave_the_committed_figures_alone(make_project):
    project = make_project(FIGURE)
    arguments = ["tiny", "--profile", "smoke", "-p", "scale", "4", "--output"]
    assert run.main([*arguments, str(project.root / "mine" / "x.ipynb")], project) == 0
    assert (project.root / "mine" / "x.ipynb").exists()
    assert not (project.root / "figures").exists()
    record = json.loads((project.figures("smoke-custom", "tiny") / "line.json").read_text())
    assert record["data"] == {"y": [0.0, 4.0]}
    assert record["parameters"]["n"] == 2
    assert record["parameters"]["scale"] == 4.0
    assert record["parameters"]["mode"] == "up"


@pytest.mark.parametrize(
    ("cells", "ledger", "message"),
    [
        (["a = 1", "1 / 0  # here", "b = 2"], "", "Error: division by zero\n    1 / 0  # here"),
        (["import sys\nsys.exit(0)", "b = 2"], "", "SystemExit: 0"),
        (["import os\nos._exit(0)", "b = 2"], "", "kernel died"),
        (['if n > 9:\n    figures.savefig("ghost")'], CLAIM, "not written: ghost; claims neither"),
    ],
)
def test_a_failed_run_is_never_taken_for_done(make_project, capsys, cells, ledger, message):
    project = make_project(*cells, ledger=ledger)
    copy = project.executed("default", "tiny")
    provenance.write(copy, b"of an earlier run")
    provenance.write(project.figures("default", "tiny") / "line.png", b"of an earlier run")
    assert run.main(["tiny"], project) == 1
    assert message in capsys.readouterr().err
    assert list(files(copy.parent)) == ["tiny.failed.ipynb"]
    assert files(project.figures("default", "tiny")) == {"line.png": b"of an earlier run"}


def test_a_cell_that_never_ran_is_found():
    cells = [nbformat.v4.new_code_cell(s, execution_count=c) for s, c in [("a", 1), ("", None)]]
    kernel._check_cells(nbformat.v4.new_notebook(cells=cells))
    cells.append(nbformat.v4.new_code_cell("late()"))
    with pytest.raises(kernel.RunError, match="never ran"):
        kernel._check_cells(nbformat.v4.new_notebook(cells=cells))


def test_undeclared_figure_is_found(tmp_path):
    (tmp_path / "extra.png").touch()
    with pytest.raises(kernel.RunError, match="not declared: extra"):
        runner._check_results(tmp_path, set(), set())


def test_prepared_copies_hold_the_profile_and_no_outputs(make_project):
    project = make_project("n")
    notebook = project.read("tiny")
    notebook.cells[1].update(
        outputs=[nbformat.v4.new_output("stream", text="3")], execution_count=2
    )
    nbformat.write(notebook, project.notebook("tiny"))
    folder = project.root / "prepared"
    assert run.main(["--prepare", "smoke", str(folder)], project) == 0
    (folder / "tiny.ipynb").rename(folder / "gone.ipynb")  # of a notebook that was renamed
    assert run.main(["--prepare", "smoke", str(folder)], project) == 0
    assert list(files(folder)) == ["tiny.ipynb"]
    cells = nbformat.read(folder / "tiny.ipynb", as_version=4).cells
    assert [cell.source for cell in cells][1:] == ["# Parameters\nn = 2\n", "n"]
    assert all(cell.outputs == [] and cell.execution_count is None for cell in cells)


def test_normalise_joins_streams_and_drops_times():
    def stream(name, text):
        return nbformat.v4.new_output("stream", name=name, text=text)

    outputs = [stream("stdout", "a"), stream("stderr", "!"), stream("stdout", "b")]
    cell = nbformat.v4.new_code_cell("x", outputs=[*outputs, stream("stdout", "c")])
    cell.metadata.update(tags=["t"], execution={"iopub.status.busy": "now"}, papermill={})
    notebook = nbformat.v4.new_notebook(cells=[cell], metadata={"papermill": {"duration": 1.0}})
    notebooks.normalise(notebook)
    assert [output.text for output in cell.outputs] == ["a", "!", "bc"]
    assert cell.metadata == {"tags": ["t"]}
    assert notebook.metadata.kernelspec.name == "python3"
    assert "papermill" not in notebook.metadata
    notebooks.normalise(notebook, keep_stderr=False)
    assert [output.text for output in cell.outputs] == ["abc"]


def test_a_late_kernel_is_waited_for(make_project, monkeypatch):
    """By default the wait for the outputs of a cell that has ended is 4 s."""
    given = {}

    def execute(notebook, path, **options):
        given.update(options)
        raise RuntimeError("seen")

    monkeypatch.setattr(kernel.papermill, "execute_notebook", execute)
    assert run.main(["tiny"], make_project("n")) == 1
    assert given["iopub_timeout"] == kernel.OUTPUTS_WITHIN > 60
