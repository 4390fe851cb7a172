"""One execution of a notebook by papermill, with the gaps closed that papermill leaves open."""

import asyncio
import contextlib
import os
import re
import sys
import threading
import time
from pathlib import Path

import papermill
from ipykernel.kernelspec import write_kernel_spec
from jupyter_client.manager import AsyncKernelManager
from jupyter_core.utils import ensure_event_loop, run_sync
from nbclient.exceptions import CellTimeoutError, DeadKernelError
from papermill.exceptions import PapermillExecutionError
from tqdm import tqdm

from xaiutils.companion import provenance, stopping
from xaiutils.companion.notebooks import first_line
from xaiutils.data import assets

SILENT_SECONDS = 600  # in one cell, after which a line says that it still runs
# After its end, until a cell's outputs must have come; 4 elsewhere, which a busy machine exceeds.
OUTPUTS_WITHIN = 120
STILL = "has been running for"  # in each such line


class RunError(RuntimeError):
    """A notebook did not run through, or did not write what it declares."""


def run_cells(notebook, overrides, run, partial, cell_timeout=None):
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
    cell_timeout : int or None
        Seconds that a cell may take.

    Returns
    -------
    nbformat.NotebookNode
        The executed notebook.

    Raises
    ------
    RunError
        If a cell raised or took too long, the kernel died or failed, or a cell never ran.
    OSError
        If the disk is full.
    """
    run.save(partial.with_name("run.json"))
    with _environment(partial.parent), _kernels() as manager, _watched(run) as watch:
        try:
            executed = papermill.execute_notebook(
                notebook,
                str(partial),
                parameters=overrides,
                kernel_name="python3",
                language="python",
                progress_bar=_progress(run),
                execution_timeout=cell_timeout,
                iopub_timeout=OUTPUTS_WITHIN,
                # The kernel's folder; papermill's own `cwd` would move this whole process.
                resources={"metadata": {"path": str(Path(run.root) / "notebooks")}},
                extra_arguments=["--IPKernelApp.log_level=CRITICAL"],
                kernel_manager_class=manager,
                on_cell_start=watch.started,
            )
        except PapermillExecutionError as error:
            trace = re.sub(r"\x1b\[[0-9;]*m", "", "\n".join(error.traceback))
            raise RunError(
                f"cell [{error.exec_count}] raised {error.ename}: {error.evalue}\n"
                f"{_head(error.source)}\n{trace}"
            ) from None
        except CellTimeoutError as error:
            # nbclient also waits, not for ever, for the outputs of a cell that has ended.
            late = "did not hand over its outputs"
            if "IOPub" not in str(error):
                late = f"took longer than the {cell_timeout} s a cell may take"
            raise RunError(f"cell [{watch.number}] {late}:\n{_head(watch.source)}") from None
        except DeadKernelError:
            where = f"in or just before this cell:\n{_head(watch.source)}"
            raise RunError(
                f"the kernel died (killed, out of memory?) {where if watch.number else 'at once'}"
            ) from None
        except RuntimeError as error:
            raise RunError(f"the kernel failed: {first_line(error)}") from None
        except KeyboardInterrupt:
            _abandon()
            raise
    _check_cells(executed)
    return executed


def _abandon():
    """Cancel what asyncio was stopped in the middle of, or it would go on with the next thing."""
    loop = ensure_event_loop()
    loop.set_exception_handler(lambda *_: None)  # nobody will fetch what came of it
    if tasks := asyncio.all_tasks(loop):
        for task in tasks:
            task.cancel()
        loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))


@contextlib.contextmanager
def _kernels():
    """Class for managers of kernels; at the end kernels that still run are killed.

    nbclient ends its kernel itself, but not one that is interrupted while it starts.
    """
    managers, clients = [], []

    class Manager(AsyncKernelManager):
        def __init__(self, *args, **options):
            super().__init__(*args, **options)
            managers.append(self)

        def client(self, **options):
            clients.append(super().client(**options))
            return clients[-1]

    try:
        yield Manager
    finally:
        with stopping.held():
            for client in clients:
                if client.channels_running:  # open, they would let the interpreter hang at its end
                    client.stop_channels()
            for manager in managers:
                if manager.has_kernel:
                    run_sync(manager.shutdown_kernel)(now=True)


class _Watch:
    """Which cell runs: its number among the code cells, its source, and since when."""

    def __init__(self):
        self.number, self.source, self.since, self.clock = 0, "", 0.0, 0.0

    def started(self, cell, cell_index):
        """What nbclient calls when a cell starts."""
        if cell.cell_type == "code" and cell.source.strip():
            self.number += 1
            self.source, self.since, self.clock = cell.source, time.monotonic(), time.time()


@contextlib.contextmanager
def _watched(run):
    """A `_Watch`, and a line on stderr every `SILENT_SECONDS` that one cell takes."""
    watch, over = _Watch(), threading.Event()
    seed = run.parameters.get("seed")
    title = f"{run.notebook} ({run.profile}{'' if seed is None else f', seed {seed}'})"

    def look():
        said = 0.0
        while not over.wait(SILENT_SECONDS / 20):
            now = time.monotonic()
            if watch.number and now - max(said, watch.since) >= SILENT_SECONDS:
                said = now
                tqdm.write(
                    f"{title}: cell [{watch.number}] {STILL} {(now - watch.since) / 60:.0f} min, "
                    f"since {time.strftime('%H:%M:%S', time.localtime(watch.clock))}: "
                    f"{watch.source.strip().splitlines()[0][:80]}",
                    file=sys.stderr,
                )

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield watch
    finally:
        over.set()
        thread.join()


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
        # See `runtime`, whose own setting comes too late where a kernel has threads already.
        "MALLOC_ARENA_MAX": "1",
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
