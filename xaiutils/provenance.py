"""What a result was made from: run description, hashes, versions; and how results are written."""

import hashlib
import json
import math
import numbers
import os
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
VARIABLE = "XAIUTILS_RUN"
_PACKAGES = (
    *("torch", "torchvision", "numpy", "scipy", "scikit-learn", "scikit-image"),
    *("matplotlib", "captum", "librosa", "lime", "onnxruntime"),
)


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
    """SHA-256 of the lock file, the package's source and, if given, the notebook's code cells.

    Line ends count as "\\n", so that a checkout with other ones hashes the same.
    """
    package = Path(__file__).parent
    sources = sorted(package.rglob("*.py"), key=lambda path: path.relative_to(package).as_posix())
    hashes = {
        "package": _sha256(
            *(part for p in sources for part in (p.relative_to(package).as_posix(), _text(p)))
        ),
        "requirements.lock": _sha256(_text(Path(root) / "requirements.lock")),
    }
    if notebook is not None:
        hashes["notebook"] = _sha256(*(c.source for c in notebook.cells if c.cell_type == "code"))
    return hashes


def is_current(hashes, project, name):
    """Whether recorded `hashes` are those of notebook, package and lock file as they are now."""
    now = input_hashes(project.root, project.read(name))
    return all(hashes.get(key) == value for key, value in now.items())


def _text(path):
    return path.read_text(encoding="utf-8")


def _sha256(*texts):
    return hashlib.sha256(json.dumps(texts).encode()).hexdigest()


def stamp(run):
    """Everything a result of `run` depends on, as a plain dictionary without times or paths."""
    # A notebook that never imported the registry has used no asset.
    registry = sys.modules.get("xaiutils.assets")
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
    part.write_bytes(content)
    os.replace(part, path)


def read_json(path):
    """Content of a JSON file, or None if there is no such file."""
    path = Path(path)
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
