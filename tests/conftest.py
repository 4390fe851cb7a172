"""A tiny project in a temporary folder: notebooks to run, a ledger, profiles, a lock file.

And an empty cache of exported networks.
"""

import signal

import nbformat
import pytest

from xaiutils.companion import notebooks, provenance, results

known_exports = {}  # name of the file -> content

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


@pytest.fixture
def write_results():
    """Function that writes sealed results of `tiny`, as a run of the notebook as it is would."""

    def write(project, name="claims", **content):
        folder = project.figures("default", "tiny")
        if name != "claims":
            png = content.pop("png", b"a picture")
            provenance.write(folder / f"{name}.png", png)
            content = {"figure": name, "alt": "A line " * 9, "data": {"y": [0.0]}} | content
            content[results.PICTURE] = results.picture_hash(png)
        hashes = {**provenance.of_notebook(project, "tiny"), "assets": {}}
        stamp = {"notebook": "tiny", "profile": "default", "parameters": {}, "hashes": hashes}
        provenance.write(folder / f"{name}.json", results.sealed(stamp | content))
        return folder / f"{name}.json"

    return write


@pytest.fixture
def exports(monkeypatch):
    """The modules exported in this test. Equal ones are only exported once in the whole run."""
    from xaiutils import onnx_export  # many tests do without torch

    done, export = [], onnx_export._export

    def remembered(module, x, path):
        done.append(module)
        name = path.name.removeprefix(".").removesuffix(".part")
        if name not in known_exports:
            export(module, x, path)
            known_exports[name] = path.read_bytes()
        path.write_bytes(known_exports[name])

    monkeypatch.setattr(onnx_export, "_export", remembered)
    return done


@pytest.fixture
def onnx_cache(tmp_path, monkeypatch):
    """An empty cache, and no time spent on finding the fastest batch size."""
    from xaiutils import runtime

    monkeypatch.setenv("XAIUTILS_CACHE", str(tmp_path))
    monkeypatch.setattr(runtime, "_fastest", lambda *arguments: 4)
    return tmp_path / "onnx"
