"""One headless run of a notebook, and what follows from it.

A run is checked before the kernel starts (names and types of parameters) and after it ended
(every cell ran, every declared figure and claim is there). Only then do its results take their
final names; a run that fails leaves `<notebook>.failed.ipynb` and nothing else.
"""

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

import nbformat
import papermill

from xaiutils.companion import claims, ledger, provenance, results
from xaiutils.companion.kernel import RunError, run_cells
from xaiutils.companion.notebooks import (
    ProjectError,
    code_trees,
    figure_names,
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
        return self.copy.with_suffix(".failed.ipynb")


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
        Other place for the executed copy.
    seed : int or None
        Value of the parameter `seed`, for one of several runs; all results then go to
        `build/<profile>-seeds/<notebook>/seed-<seed>/`.

    Returns
    -------
    Plan

    Raises
    ------
    ProjectError
        If a name, a type or a cell is not allowed.
    """
    notebook = project.read(name)
    declared = parameters(notebook)
    names = figure_names(notebook)
    own_claims = {c.id for c in claims.load(project.ledger).values() if c.notebook == name}
    overrides = project.overrides(profile, name, declared)
    overrides |= {key: lookup(declared, key).parse(text) for key, text in given}
    label = f"{profile}-custom" if given else profile
    copy, figures = project.executed(label, name), project.figures(label, name)
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
        copy=Path(output or copy).absolute(),
        figures=figures,
    )


def execute(project, name, profile="default", given=(), output=None, seed=None):
    """Run one notebook and publish its figures, its records and its executed copy.

    Parameters
    ----------
    project, name, profile, given, output, seed
        See `plan`.

    Returns
    -------
    Path
        The executed copy.

    Raises
    ------
    ProjectError
        If a name, a type or a cell is not allowed; no kernel was started.
    RunError
        If the run failed; `<copy>.failed.ipynb` holds what there is of it.
    """
    todo = plan(project, name, profile, given, output, seed)
    todo.copy.parent.mkdir(parents=True, exist_ok=True)
    # From here on a file of this name means that this very run succeeded.
    todo.copy.unlink(missing_ok=True)
    todo.failed.unlink(missing_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{name}-", dir=todo.copy.parent) as folder:
        work = Path(folder)
        run = provenance.Run(
            root=str(project.root),
            notebook=name,
            profile=todo.label,
            output=str(work / "figures"),
            parameters=todo.parameters,
            hashes=todo.hashes,
        )
        partial = work / "executed.ipynb"
        try:
            executed = run_cells(todo.notebook, todo.overrides, run, partial)
            _check_results(Path(run.output), todo.figure_names, todo.claim_ids)
        except RunError:
            if partial.exists():
                os.replace(partial, todo.failed)
            raise
        normalise(executed)
        executed.metadata["xaiutils"] = {
            "profile": todo.label,
            "parameters": run.parameters,
            "hashes": run.hashes,
            results.SEAL: results.notebook_seal(executed),
        }
        _write_notebook(partial, executed)
        _publish(Path(run.output), todo.figures)
        os.replace(partial, todo.copy)
    return todo.copy


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
        _check_results(todo.figures, todo.figure_names, todo.claim_ids)
        found = results.of_run(todo.figures, todo.name, todo.label, "")
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


def _publish(source, target):
    """Move the results of a run to their place and remove those the notebook no longer has."""
    files = [path for path in source.glob("*") if path.suffix in RESULTS]
    for path in files:
        provenance.write(target / path.name, path.read_bytes())
    for path in target.glob("*"):
        if path.suffix in RESULTS and path.name not in {file.name for file in files}:
            path.unlink()


def _write_notebook(path, notebook):
    provenance.write(path, (nbformat.writes(notebook) + "\n").encode())


def update(project, name):
    """Run the default profile and write its outputs back into the notebook itself."""
    copy = execute(project, name)
    notebook, executed = project.read(name), nbformat.read(copy, as_version=4)
    for cell, ran in zip(notebook.cells, executed.cells, strict=True):
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = ran.outputs, ran.execution_count
    normalise(notebook, keep_stderr=False)
    notebook.metadata["xaiutils"] = {results.SEAL: results.notebook_seal(notebook)}
    _write_notebook(project.notebook(name), notebook)
    # Make compares times: the copy is the run of the notebook just written.
    os.utime(copy)


def prepare(project, profile, folder):
    """Write copies of all notebooks with a profile's parameters and without outputs.

    Parameters
    ----------
    project : Project
        Whose notebooks.
    profile : str
        See `notebooks.PROFILES`.
    folder : Path
        Where the copies go; other notebooks there are removed.
    """
    folder = Path(folder)
    for path in folder.glob("*.ipynb"):
        path.unlink()
    for name in project.names():
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
        for cell in copy.cells:
            if cell.cell_type == "code":
                cell.outputs, cell.execution_count = [], None
        _write_notebook(folder / f"{name}.ipynb", copy)
