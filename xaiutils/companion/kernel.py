"""One execution of a notebook by papermill, with the gaps closed that papermill leaves open."""

import contextlib
import os
import re
import sys
from pathlib import Path

import nbformat
import papermill
from ipykernel.kernelspec import write_kernel_spec
from nbclient.exceptions import DeadKernelError
from papermill.exceptions import PapermillExecutionError

from xaiutils.companion import provenance
from xaiutils.data import assets


class RunError(RuntimeError):
    """A notebook did not run through, or did not write what it declares."""


def run_cells(notebook, overrides, run, partial):
    """Run all cells of a notebook in a kernel of this very interpreter.

    The environment of this process changes while the kernel starts: one run per process.

    Parameters
    ----------
    notebook : nbformat.NotebookNode
        Not changed.
    overrides : dict of str to object
        Values papermill injects after the parameters cell.
    run : provenance.Run
        What the kernel is told.
    partial : Path
        File that follows the run cell by cell; its folder takes the kernel's own files.

    Returns
    -------
    nbformat.NotebookNode
        The executed notebook.

    Raises
    ------
    RunError
        If a cell raised, the kernel died, or a cell never ran.
    """
    run.save(partial.with_name("run.json"))
    with _environment(partial.parent):
        try:
            executed = papermill.execute_notebook(
                notebook,
                str(partial),
                parameters=overrides,
                kernel_name="python3",
                language="python",
                progress_bar=_progress(run),
                # The kernel's folder; papermill's own `cwd` would move this whole process.
                resources={"metadata": {"path": str(Path(run.root) / "notebooks")}},
                extra_arguments=["--IPKernelApp.log_level=CRITICAL"],
            )
        except PapermillExecutionError as error:
            trace = re.sub(r"\x1b\[[0-9;]*m", "", "\n".join(error.traceback))
            raise RunError(
                f"cell [{error.exec_count}] raised {error.ename}: {error.evalue}\n"
                f"{_head(error.source)}\n{trace}"
            ) from None
        except DeadKernelError:
            raise RunError(
                f"the kernel died (killed, out of memory?) {_last_cell(partial)}"
            ) from None
    _check_cells(executed)
    return executed


@contextlib.contextmanager
def _environment(folder):
    """Variables for the kernel, which inherits them from this process."""
    # "python3" may be registered for another interpreter: ours comes first in JUPYTER_PATH.
    write_kernel_spec(str(folder / "jupyter" / "kernels" / "python3"))
    variables = {
        provenance.VARIABLE: str(folder / "run.json"),
        **cache_variable(),
        "IPYTHONDIR": str(folder / "ipython"),  # no start-up files or settings of the reader
        "JUPYTER_PATH": _prepend(folder / "jupyter", "JUPYTER_PATH"),
        "PYTHONPATH": _prepend(provenance.ROOT, "PYTHONPATH"),
    }
    before = {key: os.environ.get(key) for key in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for key, value in before.items():
            if value is None:
                del os.environ[key]
            else:
                os.environ[key] = value


def cache_variable():
    """The cache for a child that starts in another folder, where a relative one would be lost.

    Returns
    -------
    dict of str to str
        The one variable, with the full path.

    Raises
    ------
    RunError
        If the variable of this process names no folder.
    """
    try:
        return {assets.CACHE_VARIABLE: str(assets.cache_folder())}
    except assets.AssetError as error:
        raise RunError(str(error)) from None


def _prepend(path, variable):
    return os.pathsep.join(filter(None, (str(path), os.environ.get(variable))))


def _progress(run):
    # In a log every refresh is a line of its own: one in ten seconds is enough.
    interval = 0.1 if sys.stderr.isatty() else 10
    return {"desc": f"{run.notebook} ({run.profile})", "file": sys.stderr, "mininterval": interval}


def _code_cells(notebook):
    return [c for c in notebook.cells if c.cell_type == "code" and c.source.strip()]


def _head(source, lines=6):
    return "\n".join(f"    {line}" for line in source.splitlines()[:lines])


def _last_cell(partial):
    cells = _code_cells(nbformat.read(partial, as_version=4)) if partial.exists() else []
    started = [c for c in cells if c.metadata.get("papermill", {}).get("start_time")]
    return f"in or just before this cell:\n{_head(started[-1].source)}" if started else "at once"


def _check_cells(notebook):
    """Papermill takes `sys.exit(0)` for success: every cell must have run, and without an error."""
    for cell in _code_cells(notebook):
        for output in cell.outputs:
            if output.output_type == "error":
                raise RunError(
                    f"a cell raised {output.ename}: {output.evalue}\n{_head(cell.source)}"
                )
        if cell.execution_count is None:
            raise RunError(f"this cell never ran, the kernel had ended:\n{_head(cell.source)}")
