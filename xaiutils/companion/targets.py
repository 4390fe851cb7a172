"""Where results may be written: never over a source notebook or a file of somebody else."""

import contextlib
import tempfile

from xaiutils.companion.notebooks import PROFILES, ProjectError, read_notebook

MARK = "xaiutils"  # of notebooks this project wrote, in their metadata


def mark(path):
    """What a run or `runner.prepare` wrote about itself into a notebook; {} if neither wrote it."""
    try:
        made = read_notebook(path).metadata.get(MARK, {})
    except ProjectError:
        return {}
    return made if isinstance(made, dict) else {}


def is_executed(path, name=None):
    """Whether `path` is an executed copy, whole or failed, written by a run (of the notebook)."""
    made = mark(path)
    return "hashes" in made and name in (None, made.get("notebook", name))


def is_prepared(path):
    """Whether `path` was written by `runner.prepare`."""
    return "prepared" in mark(path)


def check_output(project, name, label, path):
    """ProjectError unless an executed copy of the notebook `name` may be written to `path`.

    Parameters
    ----------
    project : Project
    name, label : str
        Notebook and label of the run.
    path : Path
        Absolute; given by the reader.
    """
    with _refusing(f"--output {path}"):
        _outside(project, path, "--output")
        if path.is_dir():
            raise ProjectError(f"--output {path} is a folder; give the path of a file")
        if path.resolve() in _taken(project, name, label) or _is_of_a_seed(project, path):
            raise ProjectError(f"--output {path} is the place of another run's copy")
        for file in (path, failed(path)):
            if _exists(file) and not is_executed(file, name):
                raise ProjectError(
                    f"--output {path}: {file} is no executed copy of {name}; it is left as it is"
                )


def check_folder(project, folder):
    """ProjectError unless prepared copies may be written to `folder`, and others removed there."""
    with _refusing(f"--prepare: {folder}"):
        _outside(project, folder, "--prepare")
        if _exists(folder) and not folder.is_dir():
            raise ProjectError(f"--prepare: {folder} is no folder")
        for path in sorted(folder.glob("*.ipynb")):
            if not is_prepared(path):
                raise ProjectError(
                    f"--prepare: {path} was not written by --prepare; it is left as it is: "
                    "give an empty folder, or one that --prepare has written"
                )


def check_writable(folder):
    """ProjectError unless files can be written to `folder`, which need not exist."""
    with _refusing(f"cannot write to {folder}"):
        nearest = folder
        while not _exists(nearest):
            nearest = nearest.parent
        tempfile.TemporaryFile(dir=nearest).close()


def check_files(paths):
    """ProjectError if one of the files to be written is a folder."""
    for path in paths:
        if path.is_dir():
            raise ProjectError(f"cannot write {path}: there is a folder of this name")


def failed(copy):
    """Path of what there is of the executed copy `copy` if its run failed."""
    return copy.with_suffix(".failed.ipynb")


@contextlib.contextmanager
def _refusing(what):
    try:
        yield
    except OSError as error:
        raise ProjectError(f"{what}: {error.strerror or error}") from None


def _taken(project, name, label):
    """Where other runs have their copies: those of other notebooks, profiles or parameters."""
    labels = [f"{profile}{end}" for profile in PROFILES for end in ("", "-custom")]
    pairs = {(one, other) for one in labels for other in project.names()} - {(label, name)}
    return {project.executed(*pair).resolve() for pair in pairs}


def _is_of_a_seed(project, path):
    place, build = path.resolve(), (project.root / "build").resolve()
    return place.is_relative_to(build) and place.relative_to(build).match("*-seeds/*/seed-*/*")


def _outside(project, path, option):
    place = path.resolve()
    for name in ("notebooks", "figures"):
        if place.is_relative_to((project.root / name).resolve()):
            raise ProjectError(f"{option} {path} lies in {name}/; allowed: any other place")


def _exists(path):
    return path.exists() or path.is_symlink()
