"""Nothing is lost: sources and files of others are never touched, a finished run is kept."""

from pathlib import Path

import nbformat
import pytest
from conftest import FIGURE

from xaiutils.companion import kernel, notebooks, provenance, run, runner, scratch, targets

DRAWS = 'figures.savefig("line")'


@pytest.fixture
def no_kernel(monkeypatch):
    """Runs without a kernel: a copy of the notebook, and the figures that it declares."""

    def ran(notebook, overrides, run, partial, cell_timeout=None):
        for name in notebooks.figure_names(notebook):
            provenance.write(f"{run.output}/{name}.png", b"new")
            provenance.write(f"{run.output}/{name}.json", b'{"hashes": {"assets": {}}}')
        runner._write_notebook(partial, notebook)
        return notebook

    monkeypatch.setattr(runner, "run_cells", ran)
    return ran


def everything(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*.*")}


def refused(project, capsys, *arguments):
    """The one line with which a command is refused; it has changed no file."""
    before = everything_but_folders(project.root)
    assert run.main(list(map(str, arguments)), project) == 2
    assert everything_but_folders(project.root) == before
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    return error


def everything_but_folders(root):
    return {p: p.read_bytes() for p in root.rglob("*") if p.is_file()}


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("notebooks/tiny.ipynb", "lies in notebooks/; allowed: any other place"),
        ("notebooks/new.ipynb", "lies in notebooks/"),
        ("mine/../notebooks/sub/new.ipynb", "lies in notebooks/"),
        ("figures/tiny/new.ipynb", "lies in figures/"),
        ("link.ipynb", "lies in notebooks/"),
        ("mine", "is a folder"),
        ("mine/text.ipynb", "text.ipynb is no executed copy of tiny; it is left as it is"),
        ("mine/other.ipynb", "other.ipynb is no executed copy of tiny"),
        ("mine/half.ipynb", "half.failed.ipynb is no executed copy of tiny"),
        ("mine/prepared.ipynb", "prepared.ipynb is no executed copy of tiny"),
        ("build/default/tiny.ipynb", "is the place of another run's copy"),
        ("build/paper-custom/tiny.ipynb", "is the place of another run's copy"),
        ("build/smoke-seeds/tiny/seed-0/tiny.ipynb", "is the place of another run's copy"),
        ("mine/text.ipynb/x.ipynb", "cannot write to "),
        ("x" * 300, "File name too long"),
    ],
)
def test_output_never_goes_over_other_files(make_project, capsys, no_kernel, place, message):
    project = make_project()
    mine = project.root / "mine"
    provenance.write(mine / "text.ipynb", b"no notebook")
    provenance.write(mine / "half.failed.ipynb", b"")
    for name, mark in (("other", {"notebook": "other", "hashes": {}}), ("prepared", {})):
        notebook = nbformat.v4.new_notebook(metadata={"xaiutils": mark or {"prepared": "smoke"}})
        nbformat.write(notebook, mine / f"{name}.ipynb")
    (project.root / "link.ipynb").symlink_to("notebooks/tiny.ipynb")
    assert message in refused(project, capsys, "tiny", "--output", project.root / place)


def test_output_goes_over_its_own_copies_and_leaves_figures_alone(
    make_project, no_kernel, monkeypatch
):
    project = make_project(DRAWS)
    monkeypatch.chdir(project.root)
    for _ in range(2):
        assert run.main(["tiny", "--output", "mine.ipynb"], project) == 0
    assert targets.is_executed(project.root / "mine.ipynb", "tiny")
    assert not (project.root / "figures").exists()
    assert (project.root / "build/default-custom/figures/tiny/line.png").read_bytes() == b"new"
    assert run.main(["tiny"], project) == 0
    assert (project.root / "figures/tiny/line.png").exists()


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("notebooks", "lies in notebooks/"),
        ("notebooks/prepared", "lies in notebooks/"),
        ("link", "lies in notebooks/"),
        ("mine", "was not written by --prepare; it is left as it is: give an empty folder, or one"),
        ("requirements.lock", "is no folder"),
        ("requirements.lock/x", "cannot write to "),
        ("x" * 300, "File name too long"),
        ("build/default", "was not written by --prepare"),
    ],
)
def test_prepare_leaves_notebooks_of_others_alone(make_project, capsys, no_kernel, place, message):
    project = make_project()
    provenance.write(project.root / "mine" / "tiny.ipynb", b"{}")
    (project.root / "link").symlink_to("notebooks")
    assert run.main(["tiny"], project) == 0
    assert message in refused(project, capsys, "--prepare", "smoke", project.root / place)


def test_prepare_changes_nothing_before_all_is_checked(make_project, capsys):
    project = make_project()
    folder = project.root / "prepared"
    assert run.main(["--prepare", "smoke", str(folder)], project) == 0
    assert "no profile 'smok'" in refused(project, capsys, "--prepare", "smok", folder)
    notebook = project.read("tiny")
    notebook.cells[0].source = "n: int = 0  # points, at least 1"
    nbformat.write(notebook, project.notebook("tiny"))
    assert "n = 0 is out of range" in refused(project, capsys, "--prepare", "smoke", folder)


def test_a_folder_that_cannot_be_written_is_found_before_the_run(make_project, capsys, monkeypatch):
    project = make_project(FIGURE)
    monkeypatch.setattr(runner, "run_cells", lambda *_: pytest.fail("a kernel was started"))
    provenance.write(project.root / "figures", b"a file, not a folder")
    assert "cannot write to" in refused(project, capsys, "tiny")
    (project.root / "figures").unlink()
    (project.root / "figures" / "tiny" / "line.pdf").mkdir(parents=True)
    assert "line.pdf: there is a folder of this name" in refused(project, capsys, "tiny")
    (project.root / "figures" / "tiny" / "line.pdf").rmdir()
    provenance.write(project.root / "build", b"a file, not a folder")
    assert "cannot write to" in refused(project, capsys, "tiny")


def test_a_finished_run_that_cannot_be_published_is_kept(
    make_project, no_kernel, monkeypatch, capsys
):
    project = make_project(DRAWS)
    figures, copy = project.figures("default", "tiny"), project.executed("default", "tiny")

    def ran(*arguments):
        figures.rmdir()
        provenance.write(figures, b"the folder became a file during the run")
        return no_kernel(*arguments)

    monkeypatch.setattr(runner, "run_cells", ran)
    figures.mkdir(parents=True)
    provenance.write(copy, b"of an earlier run")
    assert run.main(["tiny"], project) == 1
    error = capsys.readouterr().err
    (kept,) = copy.parent.glob("tiny.unpublished-*")
    assert "the run succeeded, but its results could not be written (" in error
    assert error.endswith(f"they are kept in {kept}\n")
    assert sorted(everything(kept)) == ["figures/line.json", "figures/line.png", "tiny.ipynb"]
    assert targets.is_executed(kept / "tiny.ipynb", "tiny")
    # The earlier run's copy goes with its figures, and neither was replaced.
    assert copy.read_bytes() == b"of an earlier run"
    assert not any(copy.parent.glob(".tiny-*"))


def test_all_figures_are_written_before_one_is_replaced(make_project, no_kernel, monkeypatch):
    project = make_project(DRAWS)
    assert run.main(["tiny"], project) == 0
    figures = project.figures("default", "tiny")
    (figures / "line.png").write_bytes(b"old")
    before, write = everything(figures), Path.write_bytes

    def full(path, content):
        if path.parent == figures and ".json" in path.name:
            raise OSError(28, "No space left on device")
        return write(path, content)

    monkeypatch.setattr(Path, "write_bytes", full)
    assert run.main(["tiny"], project) == 1
    assert everything(figures) == before


def test_what_is_kept_finds_a_place(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    monkeypatch.setattr(scratch.tempfile, "tempdir", None)
    (tmp_path / "tmp").mkdir()
    with scratch.folder(tmp_path / "results", "tiny") as work:
        (work / "tiny.ipynb").touch()
        provenance.write(tmp_path / "file", b"")
        place = scratch.keep(work, tmp_path / "file" / "tiny.unpublished-1")
    assert place.is_relative_to(tmp_path / "tmp")
    assert [p.name for p in place.iterdir()] == ["tiny.ipynb"]
    monkeypatch.setattr(scratch.tempfile, "tempdir", str(tmp_path / "file"))
    with scratch.folder(tmp_path / "results", "tiny") as work:
        (work / "tiny.ipynb").touch()
        place = scratch.keep(work, tmp_path / "file" / "tiny.unpublished-1")
    assert place == work
    assert [p.name for p in place.iterdir()] == ["tiny.ipynb"]


def test_update_leaves_a_notebook_alone_that_was_edited_meanwhile(
    make_project, no_kernel, monkeypatch, capsys
):
    project = make_project("1 + 1")
    path = project.notebook("tiny")

    def edited(*arguments):
        notebook = project.read("tiny")
        notebook.cells[1].source = "1 + 2"
        nbformat.write(notebook, path)
        return no_kernel(*arguments)

    monkeypatch.setattr(runner, "run_cells", edited)
    assert run.main(["--update", "tiny"], project) == 1
    error = capsys.readouterr().err
    assert "was edited during the run and is left as it is; the run is in" in error
    assert project.read("tiny").cells[1].source == "1 + 2"


def test_update_keeps_the_notebook_if_writing_fails(make_project, no_kernel, monkeypatch, capsys):
    project = make_project()
    before = project.notebook("tiny").read_bytes()
    write = runner._write_notebook

    def fails(path, notebook):
        if path.parent.name == "notebooks":
            raise OSError(28, "No space left on device")
        write(path, notebook)

    monkeypatch.setattr(runner, "_write_notebook", fails)
    assert run.main(["--update", "tiny"], project) == 1
    assert "could not be written (" in capsys.readouterr().err
    assert project.notebook("tiny").read_bytes() == before
    assert targets.is_executed(project.executed("default", "tiny"))


def test_a_file_that_cannot_be_written_leaves_no_part(tmp_path):
    (tmp_path / "taken").mkdir()
    with pytest.raises(OSError, match="taken"):
        provenance.write(tmp_path / "taken", b"content")
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]


def test_a_disk_that_fills_up_during_the_run_is_one_line(make_project, monkeypatch, capsys):
    def full(*arguments, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(kernel.papermill, "execute_notebook", full)
    assert run.main(["tiny"], make_project()) == 1
    error = capsys.readouterr().err
    assert "failed: tiny: the run could not go on: [Errno 28] No space left on device\n" in error


@pytest.mark.parametrize(
    "arguments",
    [["-p", "n", "3"], ["--profile", "smoke"], ["--output", "x"], ["--cell-timeout", "9"]],
)
@pytest.mark.parametrize("command", [["--list"], ["--prepare", "smoke", "x"]])
def test_options_that_would_be_ignored_are_refused(make_project, capsys, command, arguments):
    with pytest.raises(SystemExit, match="2"):
        run.main([*command, *arguments], make_project())
    assert "--list and --prepare take no option of a run" in capsys.readouterr().err
