"""Imports go one way: studies, science, classifiers, data; the companion stands beside them.

And the first cell of a notebook, which only imports, loads nothing slow that waits for its use.
"""

import ast
import graphlib
import json
import subprocess
import sys
from pathlib import Path

import import_probe
import pytest

import xaiutils
from xaiutils.companion import provenance
from xaiutils.companion.notebooks import Project

FLOORS = ("data", "classifiers", "companion", "studies")  # folders; modules at the top are science
DOORS = ("run", "claims", "__main__")  # commands at the top: `python -m xaiutils.run`
_SCIENCE = {"package", "data", "classifiers", "science"}
BELOW = {  # what each may import, itself included; "package" is `xaiutils/__init__.py`
    "package": set(),
    "data": {"package", "data"},
    "classifiers": {"package", "data", "classifiers"},
    "science": _SCIENCE,
    "companion": {*_SCIENCE, "companion"},
    "studies": {*_SCIENCE, "companion", "studies"},
    "door": {*_SCIENCE, "companion", "door"},
}
CROSSING = "synthesis"  # the only wing of the studies that looks into the others


def modules(root: Path) -> dict[str, Path]:
    """Dotted name of each module below `root`, the folder of a package, and its file."""
    named = {}
    for file in sorted(root.rglob("*.py")):
        parts = [root.name, *file.relative_to(root).with_suffix("").parts]
        named[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return named


def imports(name: str, known: dict[str, Path]) -> list[tuple[int, str]]:
    """Line and name of each module of the package that module `name` imports, wherever it does."""
    file, found = known[name], []
    package = name if file.stem == "__init__" else name.rpartition(".")[0]
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            wanted = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            up = package.split(".")[: 1 - node.level or None] if node.level else []
            source = ".".join([*up, *([node.module] if node.module else [])])
            wanted = [f"{source}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            wanted = [a.value for a in node.args if isinstance(a, ast.Constant)]
        else:
            continue
        for target in wanted:  # the last part may be a name within the module
            target = target if target in known else str(target).rpartition(".")[0]
            if target in known:
                found.append((node.lineno, target))
    return sorted(set(found))


def place(name: str) -> tuple[str, str]:
    """Floor of a module and, in the studies, its wing."""
    _, *parts = name.split(".")
    if not parts:
        return "package", ""
    if parts[0] in FLOORS:
        return parts[0], parts[1] if parts[0] == "studies" and len(parts) > 1 else ""
    return ("door" if parts[0] in DOORS else "science"), ""


def wrong_arrows(root: Path) -> list[str]:
    """One line for each import below `root` that runs back, across, or in a circle."""
    known, lines, graph = modules(root), [], {}
    for name in known:
        floor, wing = place(name)
        graph[name] = []
        for line, target in imports(name, known):
            to_floor, to_wing = place(target)
            graph[name].append(target)
            if to_floor not in BELOW[floor]:
                lines.append(f"{name}:{line} ({floor}) imports {target} ({to_floor})")
            elif wing != CROSSING and to_wing not in ("", wing):
                lines.append(f"{name}:{line} (studies of {wing}) imports {target}, of {to_wing}")
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        lines.append("circle of imports: " + " <- ".join(error.args[1]))
    return lines


def test_imports_of_the_package_go_one_way():
    root = Path(xaiutils.__file__).parent
    known = modules(root)
    assert {"xaiutils.lime", "xaiutils.studies.synthesis.tests"} <= set(known)
    assert "xaiutils.companion.run" in [target for _, target in imports("xaiutils.run", known)]
    assert wrong_arrows(root) == []


@pytest.fixture
def write(tmp_path):
    """Function that writes a package of the given files and returns its folder."""

    def made(files):
        root = tmp_path / "xaiutils"
        floors = ["", *FLOORS, "studies/limit", "studies/synthesis"]
        empty = [f"{floor}/__init__.py" for floor in floors]
        names = ["lime.py", "limit.py", "classifiers/digits.py", "data/mnist.py"]
        names += ["companion/figures.py", "studies/limit/cases.py", "studies/synthesis/tests.py"]
        for name, text in {**dict.fromkeys([*empty, *names], ""), **files}.items():
            file = root / name.lstrip("/")
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
        return root

    return made


def test_arrows_that_go_down_are_allowed(write):
    root = write(
        {
            "data/mnist.py": "import json\nfrom xaiutils.data import __doc__\n",
            "classifiers/digits.py": "from xaiutils.data.mnist import load\n",
            "limit.py": "import xaiutils.data.mnist\n",
            "lime.py": "from xaiutils import limit\nfrom .classifiers import digits\n",
            "companion/figures.py": "from xaiutils import __doc__, lime\n",
            "studies/limit/cases.py": "from xaiutils.companion.figures import savefig\n",
            "studies/synthesis/tests.py": "from xaiutils.studies.limit import cases\n",
            "run.py": "from xaiutils.companion import figures\n",
            "__main__.py": "def main():\n    from xaiutils import run\n",
        }
    )
    assert wrong_arrows(root) == []


@pytest.mark.parametrize(
    ("file", "text", "line"),
    [
        (
            "data/mnist.py",
            "from xaiutils.classifiers import digits",
            "xaiutils.data.mnist:1 (data) imports xaiutils.classifiers.digits (classifiers)",
        ),
        (
            "classifiers/digits.py",
            "import json\nimport xaiutils.lime as explainer",
            "xaiutils.classifiers.digits:2 (classifiers) imports xaiutils.lime (science)",
        ),
        (
            "lime.py",
            "def fit():\n    from xaiutils.companion.figures import savefig",
            "xaiutils.lime:2 (science) imports xaiutils.companion.figures (companion)",
        ),
        (
            "lime.py",
            "from xaiutils import run",
            "xaiutils.lime:1 (science) imports xaiutils.run (door)",
        ),
        (
            "limit.py",
            "from .studies.limit import cases",
            "xaiutils.limit:1 (science) imports xaiutils.studies.limit.cases (studies)",
        ),
        (
            "data/mnist.py",
            "from .. import lime",
            "xaiutils.data.mnist:1 (data) imports xaiutils.lime (science)",
        ),
        (
            "data/mnist.py",
            "from importlib import import_module\nimport_module('xaiutils.lime')",
            "xaiutils.data.mnist:2 (data) imports xaiutils.lime (science)",
        ),
        (
            "companion/figures.py",
            "from xaiutils.studies import limit",
            "xaiutils.companion.figures:1 (companion) imports xaiutils.studies.limit (studies)",
        ),
        (
            "studies/limit/cases.py",
            "from xaiutils.studies.synthesis.tests import best",
            "xaiutils.studies.limit.cases:1 (studies of limit) imports "
            "xaiutils.studies.synthesis.tests, of synthesis",
        ),
        (
            "__init__.py",
            "from xaiutils import lime",
            "xaiutils:1 (package) imports xaiutils.lime (science)",
        ),
    ],
)
def test_arrows_that_run_back_are_named(file, text, line, write):
    assert wrong_arrows(write({"run.py": "", file: text})) == [line]


def test_circles_are_named(write):
    root = write({"lime.py": "from xaiutils import limit", "limit.py": "import xaiutils.lime"})
    (line,) = wrong_arrows(root)
    assert line.startswith("circle of imports: ")
    assert line.count("xaiutils.lime") + line.count("xaiutils.limit") == 3
    (line,) = wrong_arrows(write({"lime.py": "import xaiutils.lime", "limit.py": ""}))
    assert line == "circle of imports: xaiutils.lime <- xaiutils.lime"


# --- what waits until it is used ------------------------------------------------------------------

# Each takes 0.2 to 3 s of a core: torchvision loads torch's compiler, jsonschema's formats a parser
# of addresses, scipy.stats two hundred distributions.
WAITING = {
    *("torchvision", "torch._dynamo", "torch._inductor", "torch.onnx", "triton", "sympy"),
    *("captum", "onnx", "onnxscript", "lime", "sklearn", "numba", "librosa.core"),
    *("scipy.stats", "scipy.optimize", "scipy.signal", "scipy.spatial", "scipy.interpolate"),
    *("skimage.segmentation", "skimage.metrics", "skimage.measure", "skimage.transform"),
    *("jsonschema", "rfc3987_syntax", "nbformat", "papermill", "requests", "pypi_simple"),
}


def loaded(program: str) -> set[str]:
    """Modules that a new process has loaded after a program."""
    done = subprocess.run(
        [sys.executable, "-c", f"{program}\n{import_probe.LOADED}"],
        capture_output=True,
        text=True,
        cwd=provenance.ROOT,
    )
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.parametrize("name", Project(provenance.ROOT).names())
def test_first_cells_load_nothing_that_can_wait(name):
    cells = Project(provenance.ROOT).read(name).cells
    first = next(cell.source for cell in cells if cell.cell_type == "code")
    assert "figures.use_style()" in first
    found = loaded(first)
    assert {"torch", "pandas", "matplotlib.pyplot", "xaiutils.companion.claims"} <= found
    assert found & WAITING == set()


def test_what_waits_is_seen_when_it_is_used():
    assert "scipy.stats" in loaded("import scipy\nscipy.stats.binom")
