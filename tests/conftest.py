"""A tiny project in a temporary folder: notebooks to run, a ledger, profiles, a lock file."""

import signal

import nbformat
import pytest

from xaiutils.companion import notebooks

PARAMETERS = """\
n: int = 3  # points drawn
scale: float = 1.0  # height of the curve
mode: str = "up"  # direction
seed: int = 0  # of the noise
device: str = "auto"  # where to compute"""

FIGURE = """\
import matplotlib.pyplot as plt

from xaiutils.companion import claims, figures

fig, ax = plt.subplots()
ax.plot(range(n), [scale * i for i in range(n)])
figures.savefig("line", fig, data={"y": [scale * i for i in range(n)]}, alt="A line " * 9)"""

CLAIM = """\
[[claim]]
id = "rises"
paper = 2
statement = "The line rises."
source = "Figure 1"
published = 1.0
rule = {kind = "above", threshold = 0.5, text = "slope above 0.5"}
notebook = "tiny"
"""


@pytest.fixture
def heeds_ctrl_c():
    """As in a terminal: a shell's background job would ignore the signal."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def make_project(tmp_path):
    """Function that writes a project whose notebook `tiny` has the given code cells."""

    def make(*cells, parameters=PARAMETERS, profiles="[smoke.tiny]\nn = 2\n", ledger=""):
        sources = [parameters, *cells]
        notebook = nbformat.v4.new_notebook(
            cells=[nbformat.v4.new_code_cell(s, id=f"c{i}") for i, s in enumerate(sources)]
        )
        notebook.cells[0].metadata["tags"] = ["parameters"]
        folder = tmp_path / "notebooks"
        folder.mkdir(exist_ok=True)
        nbformat.write(notebook, folder / "tiny.ipynb")
        (folder / "profiles.toml").write_text(profiles)
        (folder / "claims.toml").write_text(ledger)
        (tmp_path / "requirements.lock").write_text("numpy==2.4.6\n")
        return notebooks.Project(tmp_path)

    return make
