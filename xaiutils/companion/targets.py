"""Where results may be written: never over a source notebook or a file of somebody else."""

import tempfile

from xaiutils.companion.notebooks import PROFILES, ProjectError, read_notebook

MARK = "xaiutils"  # of notebooks this project wrote, in their metadata


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
    _outside(project, path, "--output")
    if path.is_dir():
        raise ProjectError(f"--output {path} is a folder; give the path of a file")
    own = project.executed(label, name)
    labels = [f"{profile}{end}" for profile in PROFILES for end in ("", "-custom")]
    taken = {project.executed(one, other) for one in labels for other in project.names()} - {own}
    place = path.resolve()
    of_a_seed = place.match("build/*-seeds/*/seed-*/*")
    if of_a_seed or place in {other.resolve() for other in taken}:
        raise ProjectError(f"--output {path} is the place of another run's copy")
    for file in (path, failed(path)):
        if _exists(file) and not is_executed(file, name):
            raise ProjectError(
                f"--output {path}: {file} is no executed copy of {name}; it is left as it is"
            )


def check_folder(project, folder):
    """ProjectError unless prepared copies may be written to `folder`, and others removed there."""
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
    nearest = folder
    while not _exists(nearest):
        nearest = nearest.parent
    try:
        tempfile.TemporaryFile(dir=nearest).close()
    except OSError as error:
        raise ProjectError(f"cannot write to {folder}: {error.strerror or error}") from None


def check_files(paths):
    """ProjectError if one of the files to be written is a folder."""
    for path in paths:
        if path.is_dir():
            raise ProjectError(f"cannot write {path}: there is a folder of this name")


def failed(copy):
    """Path of what there is of the executed copy `copy` if its run failed."""
    return copy.with_suffix(".failed.ipynb")


def _outside(project, path, option):
    place = path.resolve()
    for name in ("notebooks", "figures"):
        if place.is_relative_to((project.root / name).resolve()):
            raise ProjectError(f"{option} {path} lies in {name}/; allowed: any other place")


def mark(path):
    """What a run or `runner.prepare` wrote about itself into a notebook; {} if neither wrote it."""
    try:
        made = read_notebook(path).metadata.get(MARK, {})
    except ProjectError:
        return {}
    return made if isinstance(made, dict) else {}


def _exists(path):
    return path.exists() or path.is_symlink()
