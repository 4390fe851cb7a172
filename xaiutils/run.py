"""Run notebooks headlessly: ``python -m xaiutils.run NAME [--profile smoke] [-p name value]...``

A run is checked before the kernel starts (names and types of parameters) and after it ended
(every cell ran, every declared figure and claim is there). Only then do its results take their
final names; a run that fails leaves `<notebook>.failed.ipynb` and nothing else.
"""

import argparse
import os
import sys
import tempfile
from pathlib import Path

import nbformat
import papermill

from xaiutils import claims, provenance
from xaiutils.kernel import RunError, run_cells
from xaiutils.notebooks import (
    PROFILES,
    Project,
    ProjectError,
    code_trees,
    figure_names,
    lookup,
    normalise,
    parameters,
)

RESULTS = (".png", ".pdf", ".json")


def execute(project, name, profile="default", given=(), output=None):
    """Run one notebook and publish its figures, its records and its executed copy.

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
    notebook = project.read(name)
    declared = parameters(notebook)
    names = figure_names(notebook)
    own_claims = {c.id for c in claims.load(project.ledger).values() if c.notebook == name}
    overrides = project.overrides(profile, name, declared)
    overrides |= {key: lookup(declared, key).parse(text) for key, text in given}

    label = f"{profile}-custom" if given else profile
    copy = Path(output or project.executed(label, name)).absolute()
    failed = copy.with_suffix(".failed.ipynb")
    copy.parent.mkdir(parents=True, exist_ok=True)
    # From here on a file of this name means that this very run succeeded.
    copy.unlink(missing_ok=True)
    failed.unlink(missing_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{name}-", dir=copy.parent) as folder:
        work = Path(folder)
        run = provenance.Run(
            root=str(project.root),
            notebook=name,
            profile=label,
            output=str(work / "figures"),
            parameters={key: p.default for key, p in declared.items()} | overrides,
            hashes=provenance.input_hashes(project.root, notebook),
        )
        partial = work / "executed.ipynb"
        try:
            executed = run_cells(notebook, overrides, run, partial)
            _check_results(Path(run.output), set(names), own_claims)
        except RunError:
            if partial.exists():
                os.replace(partial, failed)
            raise
        normalise(executed)
        executed.metadata["xaiutils"] = {
            "profile": label,
            "parameters": run.parameters,
            "hashes": run.hashes,
        }
        _write_notebook(partial, executed)
        _publish(Path(run.output), project.figures(label, name))
        os.replace(partial, copy)
    return copy


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


def listing(project):
    """All notebooks with their parameters, as text."""
    lines = []
    for name in project.names():
        lines.append(name)
        for p in parameters(project.read(name)).values():
            lines.append(f"  {p.name}: {p.annotation} = {p.default!r}  # {p.comment}")
    return "\n".join(lines)


def _parser():
    parser = argparse.ArgumentParser(prog="python -m xaiutils.run", description=__doc__)
    parser.add_argument("name", nargs="?", metavar="NAME", help="notebook, e.g. 02_lime_limit")
    parser.add_argument("--profile", default="default", help=f"one of {', '.join(PROFILES)}")
    parser.add_argument(
        "-p",
        nargs=2,
        action="append",
        default=[],
        dest="given",
        metavar=("name", "value"),
        help="set a parameter; the value is a TOML literal",
    )
    parser.add_argument("--output", type=Path, metavar="PATH", help="place of the executed copy")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--list", action="store_true", help="list notebooks and their parameters")
    what.add_argument("--update", action="store_true", help="write the outputs into the notebook")
    what.add_argument(
        "--prepare",
        nargs=2,
        metavar=("PROFILE", "FOLDER"),
        help="write copies of all notebooks with a profile's parameters and without outputs",
    )
    return parser


def main(argv=None, project=None):
    """Command line; returns 0, 1 for a failed run or 2 for what is not allowed."""
    parser = _parser()
    args = parser.parse_args(argv)
    project = project or Project(provenance.ROOT)
    if bool(args.name) == bool(args.list or args.prepare):
        parser.error("give either NAME or one of --list, --prepare")
    if args.update and (args.profile != "default" or args.given or args.output):
        parser.error("--update runs the default profile and takes no other option")
    try:
        if args.list:
            print(listing(project))
        elif args.prepare:
            prepare(project, *args.prepare)
        elif args.update:
            update(project, args.name)
        else:
            copy = execute(project, args.name, args.profile, args.given, args.output)
            print(f"wrote {os.path.relpath(copy)}")
    except ProjectError as error:
        print(f"error: {args.name or 'notebooks'}: {error}", file=sys.stderr)
        return 2
    except RunError as error:
        print(f"\nfailed: {args.name}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
