"""One headless run of a notebook, and what follows from it.

A run is checked before the kernel starts (names, types and ranges of parameters; places of the
results) and after it ended (every cell ran, every declared figure and claim is there). Only then
do its results take their final names; a run that fails leaves `<notebook>.failed.ipynb` and
nothing else, one that is stopped leaves nothing.
"""

import contextlib
import os
import secrets
from dataclasses import dataclass
from pathlib import Path

import nbformat
import papermill

from xaiutils.companion import ledger, provenance, results, scratch, stopping, targets
from xaiutils.companion.kernel import RunError, run_cells
from xaiutils.companion.notebooks import (
    ProjectError,
    code_trees,
    figure_names,
    first_line,
    lookup,
    normalise,
    parameters,
    read_notebook,
)

RESULTS = (".png", ".pdf", ".json")


@dataclass(frozen=True)
class Plan:
    """A run that passed all checks: with which values it runs and where its results go.

    Parameters
    ----------
    name : str
        Notebook.
    label : str
        The profile, with "-custom" and "-seeds" where the results are not those of the profile.
    notebook : nbformat.NotebookNode
    overrides : dict of str to object
        Values that are not the notebook's own.
    parameters : dict of str to object
        All values.
    hashes : dict of str to str
        See `provenance.input_hashes`.
    figure_names, claim_ids : frozenset of str
        What the run must write.
    copy : Path
        The executed copy; it is there only if the run succeeded.
    figures : Path
        Folder of figures and records.
    """

    name: str
    label: str
    notebook: nbformat.NotebookNode
    overrides: dict
    parameters: dict
    hashes: dict
    figure_names: frozenset
    claim_ids: frozenset
    copy: Path
    figures: Path

    @property
    def failed(self):
        """What there is of the executed copy if the run failed."""
        return targets.failed(self.copy)


def plan(project, name, profile="default", given=(), output=None, seed=None):
    """Check one run; nothing is written.

    Parameters
    ----------
    project : Project
        Where everything lies.
    name : str
        Notebook.
    profile : str
        See `notebooks.PROFILES`.
    given : sequence of (str, str)
        Further parameters as TOML literals; they win over the profile. Results then go to
        `build/<profile>-custom/`, since they are not those of the profile.
    output : Path or None
        Other place for the executed copy; the figures go to `build/<profile>-custom/` then too.
    seed : int or None
        Value of the parameter `seed`, for one of several runs; all results then go to
        `build/<profile>-seeds/<notebook>/seed-<seed>/`.

    Returns
    -------
    Plan

    Raises
    ------
    ProjectError
        If a name, a type, a value, a cell or the place `output` is not allowed.
    """
    notebook = project.read(name)
    declared = parameters(notebook)
    names = figure_names(notebook)
    own_claims = {c.id for c in ledger.load(project.ledger).values() if c.notebook == name}
    overrides = project.overrides(profile, name, declared)
    overrides |= {key: lookup(declared, key).parse(text) for key, text in given}
    if folder := overrides.get("image_folder"):
        overrides["image_folder"] = _folder("image_folder", folder)
    label = f"{profile}-custom" if given or output else profile
    copy, figures = project.executed(label, name), project.figures(label, name)
    if output:
        copy = Path(output).absolute()
        targets.check_output(project, name, label, copy)
    if seed is not None:
        overrides["seed"] = lookup(declared, "seed").check(seed)
        label += "-seeds"
        figures = project.root / "build" / label / name / f"seed-{seed}"
        copy = figures / f"{name}.ipynb"
    return Plan(
        name=name,
        label=label,
        notebook=notebook,
        overrides=overrides,
        parameters={key: p.default for key, p in declared.items()} | overrides,
        hashes=provenance.input_hashes(project.root, notebook),
        figure_names=frozenset(names),
        claim_ids=frozenset(own_claims),
        copy=copy.absolute(),
        figures=figures,
    )


def execute(project, name, profile="default", given=(), output=None, seed=None, cell_timeout=None):
    """Run one notebook and publish its figures, its records and its executed copy.

    Parameters
    ----------
    project, name, profile, given, output, seed
        See `plan`.
    cell_timeout : int or None
        Seconds after which a cell ends the run.

    Returns
    -------
    Path
        The executed copy.

    Raises
    ------
    ProjectError
        If a name, a type, a value, a cell or a place is not allowed; no kernel was started.
    RunError
        If the run failed; `<copy>.failed.ipynb` holds what there is of it. If only its results
        could not be written to their places, they are kept where the message says.
    """
    todo = plan(project, name, profile, given, output, seed)
    files = [
        todo.figures / f"{figure}{suffix}" for figure in todo.figure_names for suffix in RESULTS
    ]
    targets.check_files([todo.copy, todo.failed, todo.figures / "claims.json", *files])
    targets.check_writable(todo.figures)
    with scratch.folder(todo.copy.parent, name) as work:
        run = provenance.Run(
            root=str(project.root),
            notebook=name,
            profile=todo.label,
            output=str(work / "figures"),
            parameters=todo.parameters,
            hashes=todo.hashes,
        )
        partial = work / f"{name}.ipynb"
        mark = {
            "notebook": name,
            "profile": todo.label,
            "parameters": run.parameters,
            "hashes": run.hashes,
        }
        todo.notebook.metadata[targets.MARK] = mark  # of a failed run too
        try:
            executed = run_cells(todo.notebook, todo.overrides, run, partial, cell_timeout)
            _check_results(Path(run.output), todo.figure_names, todo.claim_ids)
        except (RunError, OSError) as error:
            with stopping.held(), contextlib.suppress(OSError):
                todo.copy.unlink(missing_ok=True)
                todo.failed.unlink(missing_ok=True)
                os.replace(partial, todo.failed)
            if isinstance(error, RunError):
                raise
            raise RunError(f"the run could not go on: {first_line(error)}") from None
        with stopping.held():
            try:
                normalise(executed)
                executed.metadata[targets.MARK] = mark | {
                    results.SEAL: results.notebook_seal(executed)
                }
                _write_notebook(partial, executed)
                _publish(Path(run.output), todo.figures, todo.copy)
                os.replace(partial, todo.copy)
                todo.failed.unlink(missing_ok=True)
            except OSError as error:
                place = todo.copy.with_suffix(f".unpublished-{secrets.token_hex(4)}")
                place = scratch.keep(work, place)
                raise RunError(
                    f"the run succeeded, but its results could not be written ({error}); "
                    f"they are kept in {place}"
                ) from None
    return todo.copy


def _folder(name, text):
    """The folder `text` as an absolute path: the kernel starts elsewhere. ProjectError if none."""
    path = Path(text).expanduser().absolute()
    if not os.path.isdir(path):
        raise ProjectError(f"parameter {name} = {text!r} is no folder: there is no {path}")
    return str(path)


def is_finished(todo):
    """Whether the results of a plan are there, whole, and of the code and assets of now.

    Parameters
    ----------
    todo : Plan

    Returns
    -------
    bool
    """
    if not todo.copy.exists():
        return False
    try:
        copy = read_notebook(todo.copy)
        made = copy.metadata.get("xaiutils", {})
        if (made.get("parameters"), made.get("hashes")) != (todo.parameters, todo.hashes):
            return False
        if made.get(results.SEAL) != results.notebook_seal(copy):
            return False
        found = results.of_run(todo.figures, todo.name, todo.label, "")
        _check_results(todo.figures, todo.figure_names, todo.claim_ids)
    except (ProjectError, RunError, AttributeError):  # damaged: made again
        return False
    used = {item for content in found.values() for item in content["hashes"]["assets"].items()}
    return used <= ledger.pinned().items()


def _check_results(folder, names, own_claims):
    written = {path.stem for path in folder.glob("*.png")}
    records = provenance.read_json(folder / "claims.json") or {"claims": {}}
    problems = {
        "figures declared but not written": names - written,
        "figures written but not declared": written - names,
        "claims neither recorded nor declared as not run": own_claims - set(records["claims"]),
    }
    found = [f"{text}: {', '.join(sorted(which))}" for text, which in problems.items() if which]
    if found:
        raise RunError("; ".join(found))


def _publish(source, target, copy):
    """Move the results of a run to their place and remove those the notebook no longer has.

    All are written before the first takes its name. An executed copy of an earlier run goes with
    that run's figures.
    """
    files = [path for path in source.glob("*") if path.suffix in RESULTS]
    parts = {path.name: target / f".{path.name}.{os.getpid()}" for path in files}
    target.mkdir(parents=True, exist_ok=True)
    for left in target.glob(".*.*.[0-9]*"):  # parts of a run that was killed here
        left.unlink(missing_ok=True)
    try:
        for path in files:
            parts[path.name].write_bytes(path.read_bytes())
        copy.unlink(missing_ok=True)
        for name, part in parts.items():
            os.replace(part, target / name)
    finally:
        for part in parts.values():
            part.unlink(missing_ok=True)
    for path in target.glob("*"):
        if path.suffix in RESULTS and path.name not in parts:
            path.unlink()


def _write_notebook(path, notebook):
    provenance.write(path, (nbformat.writes(notebook) + "\n").encode())


def update(project, name, cell_timeout=None):
    """Run the default profile and write its outputs back into the notebook itself.

    A run whose results are current, as `make figures` leaves it, is not made again.

    Parameters
    ----------
    project, name, cell_timeout
        See `execute`.

    Raises
    ------
    ProjectError, RunError
        See `execute`. If the notebook was edited during the run, or cannot be written, it stays as
        it is; the executed copy holds the outputs.
    """
    path = project.notebook(name).resolve()  # a link stays one
    targets.check_writable(path.parent)
    todo = plan(project, name)
    if is_finished(todo):
        print(f"{name}: outputs of the run that made {os.path.relpath(todo.figures)}")
        copy = todo.copy
    else:
        copy = execute(project, name, cell_timeout=cell_timeout)
    notebook, executed = project.read(name), read_notebook(copy)
    # Text between them may have been edited since: it says nothing that was run.
    cells, ran = ([c for c in nb.cells if c.cell_type == "code"] for nb in (notebook, executed))
    if [c.source for c in cells] != [c.source for c in ran]:
        raise RunError(
            f"{path} was edited during the run and is left as it is; the run is in {copy}"
        )
    for cell, done in zip(cells, ran, strict=True):
        cell.outputs, cell.execution_count = done.outputs, done.execution_count
    normalise(notebook, keep_stderr=False)
    with stopping.held():
        try:
            notebook.metadata[targets.MARK] = {results.SEAL: results.notebook_seal(notebook)}
            _write_notebook(path, notebook)
            # Make compares times: the copy is the run of the notebook just written.
            os.utime(copy)
        except OSError as error:
            raise RunError(
                f"{path} could not be written ({first_line(error)}) and is as it was; "
                f"the run is in {copy}"
            ) from None


def prepare(project, profile, folder):
    """Write copies of all notebooks with a profile's parameters and without outputs.

    Parameters
    ----------
    project : Project
        Whose notebooks.
    profile : str
        See `notebooks.PROFILES`.
    folder : Path
        Where the copies go; other prepared copies there are removed.

    Raises
    ------
    ProjectError
        If something is not allowed, or the folder is that of the notebooks, holds notebooks that
        were not prepared, or cannot be written to; nothing was changed then.
    """
    folder = Path(folder).absolute()
    targets.check_folder(project, folder)
    targets.check_writable(folder)
    copies = {f"{name}.ipynb": _prepared(project, profile, name) for name in project.names()}
    try:
        for file, copy in copies.items():
            _write_notebook(folder / file, copy)
        for path in folder.glob("*.ipynb"):
            if path.name not in copies:
                path.unlink()
    except OSError as error:
        raise ProjectError(f"cannot write to {folder}: {first_line(error)}") from None


def _prepared(project, profile, name):
    notebook = project.read(name)
    overrides = project.overrides(profile, name, parameters(notebook))
    code_trees(notebook)
    copy = papermill.execute_notebook(
        notebook,
        None,
        parameters=overrides,
        kernel_name="python3",
        language="python",
        prepare_only=True,
    )
    normalise(copy)
    copy.metadata[targets.MARK] = {"prepared": profile}
    for cell in copy.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    return copy
