"""What a result was made from: run description, hashes, versions; and how results are written."""

import ast
import contextlib
import functools
import hashlib
import json
import math
import numbers
import os
import re
import symtable
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from importlib.util import resolve_name
from itertools import accumulate
from pathlib import Path

from IPython.core.inputtransformer2 import TransformerManager

from xaiutils.companion.notebooks import ProjectError, first_line, read_text, shown

ROOT = Path(__file__).resolve().parents[2]
VARIABLE = "XAIUTILS_RUN"
_PACKAGES = (
    *("torch", "torchvision", "numpy", "scipy", "scikit-learn", "scikit-image"),
    *("matplotlib", "captum", "librosa", "lime", "onnxruntime"),
)
# A result passes through these whether its notebook imports them or not: the style and the files
# of figures, the records of claims, the parameters that are read, the kernel they are given to.
# Not `run`: the parameters it chooses stand beside each result, and it moves files as they are.
_WRITERS = ("claims", "figures", "kernel", "notebooks", "provenance")
_PACKAGE = __package__.partition(".")[0]
_COMPANION = __package__


@dataclass(frozen=True)
class Run:
    """What the runner tells the kernel through a JSON file named by the variable `XAIUTILS_RUN`.

    Parameters
    ----------
    root : str
        Folder of the working copy.
    notebook : str or None
        Name of the notebook; None where a reader runs it interactively.
    profile : str
        Label of the run.
    output : str
        Folder for figures and records.
    parameters : dict
        Effective parameters, defaults included; empty interactively.
    hashes : dict of str to str
        See `input_hashes`.
    """

    root: str
    notebook: str | None
    profile: str
    output: str
    parameters: dict = field(default_factory=dict)
    hashes: dict = field(default_factory=dict)

    def save(self, path):
        """Write the description for the kernel."""
        write(path, dumps(asdict(self)).encode())


def current():
    """The run this process belongs to; without a runner, an interactive one under `build/`."""
    path = os.environ.get(VARIABLE)
    if path:
        return Run(**json.loads(Path(path).read_text(encoding="utf-8")))
    output = ROOT / "build" / "interactive" / "figures"
    return Run(str(ROOT), None, "interactive", str(output), hashes=input_hashes(ROOT))


def input_hashes(root, notebook=None):
    """SHA-256 of the lock file, of the package's source and, if given, the notebook's code cells.

    Of the package ("package") those modules count that the code cells import, directly or through
    one another, anywhere in their text, and those that write every result; without a notebook all.
    Modules imported by a name put together at run time are not seen. Line ends count as "\\n", so
    that a checkout with other ones hashes the same.

    Parameters
    ----------
    root : str or Path
        Folder with `requirements.lock`.
    notebook : nbformat.NotebookNode, optional

    Returns
    -------
    dict of str to str

    Raises
    ------
    ProjectError
        If a cell or a module imports a module that the package does not have, or a file cannot
        be read.
    """
    package = Path(__file__).parents[1]
    files = _modules(package)
    cells = None
    if notebook is not None:
        cells = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
        files = _needed(files, cells)
    sources = sorted((path.relative_to(package).as_posix(), path) for path in files.values())
    hashes = {
        "package": _sha256(*(part for name, path in sources for part in (name, read_text(path)))),
        "requirements.lock": _sha256(read_text(Path(root) / "requirements.lock")),
    }
    if cells is not None:
        hashes["notebook"] = _sha256(*cells)
    return hashes


def of_notebook(project, name):
    """`input_hashes` of a notebook as it is now; errors name it."""
    notebook = project.read(name)
    try:
        return input_hashes(project.root, notebook)
    except ProjectError as error:
        raise ProjectError(f"{name}: {error}") from None


def is_current(hashes, project, name):
    """Whether recorded `hashes` are those of notebook, package and lock file as they are now."""
    return all(hashes.get(key) == value for key, value in of_notebook(project, name).items())


def _modules(package):
    """Path of each module by its full name; a package stands for its `__init__.py`."""
    inner = {p: p.relative_to(package).with_suffix("").parts for p in package.rglob("*.py")}
    return {
        ".".join((_PACKAGE, *parts)).removesuffix(".__init__"): path
        for path, parts in inner.items()
    }


def _needed(modules, cells):
    """Those of `modules` that the cells import, that these import in turn, and the writers."""
    waiting = {_PACKAGE, _COMPANION, *(f"{_COMPANION}.{name}" for name in _WRITERS)}
    for number, cell in enumerate(cells, start=1):
        waiting |= _imports(_plain(cell), "__main__", modules, f"code cell {number}")
    needed = {}
    while waiting:
        name = waiting.pop()
        if name not in needed:
            needed[name] = path = modules[name]
            home = name if path.stem == "__init__" else name.rpartition(".")[0]
            waiting |= _imports(read_text(path), home, modules, name)
    return needed


def _imports(source, home, modules, where):
    """Those of `modules` that code in the package `home` imports anywhere, with their packages."""
    names = set()
    try:
        nodes = _import_nodes(source)
    except SyntaxError as error:
        raise ProjectError(f"{where} is no Python, line {error.lineno}: {error.msg}") from None
    for node in nodes:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        else:
            base = resolve_name("." * node.level + (node.module or ""), home)
            inner = {alias.name for alias in node.names if _is_module(base, alias.name, modules)}
            names |= {base} | {f"{base}.{name}" for name in inner}
    own = {
        whole
        for name in names
        if name.split(".")[0] == _PACKAGE
        for whole in accumulate(name.split("."), "{}.{}".format)
    }
    for name in sorted(own - modules.keys()):
        parent = name.rpartition(".")[0]
        allowed = sorted(m.rpartition(".")[2] for m in modules if m.rpartition(".")[0] == parent)
        raise ProjectError(
            f"{where} imports {name}, but {parent} has no such module; "
            f"allowed: {', '.join(allowed) or 'none'}"
        )
    return own


@functools.cache
def _import_nodes(source):
    """The import statements of a source, wherever they stand; notebooks share their modules."""
    nodes = ast.walk(ast.parse(source))
    return [node for node in nodes if isinstance(node, (ast.Import, ast.ImportFrom))]


def _is_module(package, name, modules):
    """Whether `from package import name` imports a module: not what `__init__.py` defines."""
    if f"{package}.{name}" in modules:
        return True
    path = modules.get(package)
    if path is None or path.stem != "__init__" or name == "*":
        return False
    return name not in symtable.symtable(read_text(path), package, "exec").get_identifiers()


def _plain(cell):
    """Python of a cell: lines of cell magics are left out, other magics become calls."""
    try:
        source = TransformerManager().transform_cell(re.sub(r"\A(\s*%%.*)+", "", cell))
        ast.parse(source)
    except SyntaxError:  # another language, named by its magic; or a cell that cannot run
        return ""
    return source


def _sha256(*texts):
    return hashlib.sha256(json.dumps(texts).encode()).hexdigest()


def stamp(run):
    """Everything a result of `run` depends on, as a plain dictionary without times or paths."""
    # A notebook that never imported the registry has used no asset.
    registry = sys.modules.get("xaiutils.data.assets")
    return {
        "notebook": run.notebook,
        "profile": run.profile,
        "parameters": run.parameters,
        "seed": run.parameters.get("seed"),
        "device": _device(run.parameters.get("device")),
        "hashes": {
            **run.hashes,
            "assets": dict(sorted(registry.used().items())) if registry else {},
        },
        "versions": {
            "python": ".".join(map(str, sys.version_info[:3])),
            **{name: version(name) for name in _PACKAGES},
        },
    }


def _device(wanted):
    torch = sys.modules.get("torch")
    if wanted == "auto" and torch:
        return "cuda" if torch.cuda.is_available() else "cpu"
    return wanted


def plain(value):
    """Turn numbers, arrays and tables into JSON types with 6 significant digits.

    Parameters
    ----------
    value : dict, list, tuple, str, number, None, array, tensor, Series or DataFrame
        Nested as needed; a DataFrame becomes its columns, the index is dropped.

    Returns
    -------
    dict, list, str, int, float, bool or None
        NaN becomes None, an infinity the string "inf" or "-inf".

    Raises
    ------
    TypeError
        If something else is found.
    """
    if value is None or isinstance(value, (str, bool)):
        return value
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, range)):
        return [plain(item) for item in value]
    if hasattr(value, "columns"):
        return {str(name): plain(value[name]) for name in value.columns}
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real):
        number = float(value)
        if math.isnan(number):
            return None
        # Adding zero turns -0.0 into 0.0.
        return float(f"{number:.6g}") + 0.0 if math.isfinite(number) else str(number)
    raise TypeError(
        f"data holds a {type(value).__name__}; allowed: numbers, strings, arrays, tables"
    )


def dumps(value, indent=""):
    """JSON text with one line per dictionary entry; lists stay on one line."""
    if isinstance(value, dict) and value:
        inner = indent + " "
        lines = (f"{inner}{json.dumps(k)}: {dumps(v, inner)}" for k, v in value.items())
        return "{\n" + ",\n".join(lines) + f"\n{indent}}}"
    return json.dumps(value, ensure_ascii=False, allow_nan=False)


def write(path, content):
    """Write bytes to a temporary name beside `path`, then rename: never a half-written file."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        part.write_bytes(content)
        os.replace(part, path)
    except BaseException:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
        raise


def read_json(path):
    """Content of a JSON file, or None if there is no such file; ProjectError if it is damaged."""
    if not Path(path).exists():
        return None
    text = read_text(path)
    try:
        return json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        raise ProjectError(f"{shown(path)} is no JSON ({first_line(error)})") from None


def _refuse(constant):
    raise ValueError(f"{constant} is no JSON")
