"""Run the tour, the package in ten calls, for the web pages: `make site` shows what it prints.

``python -m xaiutils.companion.site.tour`` runs `notebooks/tour/ten_calls.ipynb`, which is kept
without outputs, and writes `build/tour/ten_calls.ipynb`.
"""

import sys
import tempfile

import nbformat

from xaiutils.companion import provenance
from xaiutils.companion.kernel import RunError, run_cells
from xaiutils.companion.notebooks import Project, normalise

NAME = "ten_calls"


def source(project):
    """Path of the notebook without outputs."""
    return project.root / "notebooks" / "tour" / f"{NAME}.ipynb"


def executed(project):
    """Path of the notebook with outputs; it is there only if all cells ran."""
    return project.root / "build" / "tour" / f"{NAME}.ipynb"


def main(project=None):
    """Run the tour; returns 0, or 1 if a cell raised."""
    project = project or Project(provenance.ROOT)
    target = executed(project)
    target.unlink(missing_ok=True)
    target.parent.mkdir(parents=True, exist_ok=True)
    notebook = nbformat.read(source(project), as_version=4)
    with tempfile.TemporaryDirectory(prefix=f".{NAME}-", dir=target.parent) as folder:
        partial = target.parent / folder / target.name
        run = provenance.Run(str(project.root), NAME, "tour", str(partial.with_name("figures")))
        try:
            ran = run_cells(notebook, {}, run, partial)
        except RunError as error:
            print(f"failed: {NAME}: {error}", file=sys.stderr)
            return 1
    normalise(ran, keep_stderr=False)
    for cell, own in zip(ran.cells, notebook.cells, strict=True):
        cell.metadata = own.metadata  # alternative texts of pictures, for MyST-NB
    provenance.write(target, nbformat.writes(ran).encode())
    return 0


if __name__ == "__main__":
    sys.exit(main())
