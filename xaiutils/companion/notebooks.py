"""A notebook read as a function: where it lies, what parameters it takes, what figures it draws."""

import ast
import functools
import io
import math
import re
import tokenize
import tomllib
from dataclasses import dataclass
from pathlib import Path

from xaiutils.companion import ranges

PROFILES = ("default", "smoke", "paper")
FIGURE_NAMES = "use a-z, 0-9 and _ only; 'claims' is taken by the records"
INJECTED = "injected-parameters"  # papermill's tag of the cell that it adds
_SCALARS = {"int": int, "float": float, "str": str, "bool": bool}
_ALLOWED = [*_SCALARS, *(f"list[{name}]" for name in _SCALARS)]


class ProjectError(ValueError):
    """Something the reader can mend: a name, a parameter, a table or a cell that is not allowed."""


@dataclass(frozen=True)
class Parameter:
    """One line of a parameters cell, ``name: annotation = default  # comment, range``."""

    name: str
    annotation: str
    default: object
    comment: str

    @functools.cached_property
    def _meaning(self):
        """The comment without its range, and the range."""
        try:
            return ranges.parse(self.comment, self.annotation)
        except ValueError as error:
            raise ProjectError(f"parameters cell: comment of {self.name}: {error}") from None

    @property
    def range(self):
        """What values are allowed, see `ranges`; ProjectError if the comment is not well-formed."""
        return self._meaning[1]

    def check(self, value):
        """Return `value` as the declared type; an int passes for a float, a bool for nothing else.

        Raises
        ------
        ProjectError
            If the type of `value` is another one, or it is out of the range in the comment. A name
            of a `device` must be one that torch may know.
        """
        inner = self.annotation.removeprefix("list[").removesuffix("]")
        items = [value] if inner == self.annotation else value
        if not isinstance(items, list) or not all(_fits(item, inner) for item in items):
            raise self._refused(value, f"is of type {type(value).__name__}")
        items = [_cast(item, inner) for item in items]
        value = items[0] if inner == self.annotation else items
        is_device = self.name == "device" and self.annotation == "str"
        problem = ranges.device_problem(value) if is_device else self.range.problem(value)
        if problem:
            raise self._refused(value, problem, ranges.DEVICES if is_device else "")
        return value

    def _refused(self, value, problem, allowed=""):
        prose, own = self._meaning
        allowed = allowed or ", ".join(filter(None, (self.annotation, own.text)))
        return ProjectError(
            f"parameter {self.name} = {_short(value)} {problem}; allowed: {allowed}"
            + (f" ({prose})" if prose else "")
        )

    def parse(self, text):
        """Read `text` as a TOML literal and check it; a string may come without quotes."""
        try:
            table = tomllib.loads(f"value = {text}")
        except (ValueError, RecursionError):  # no TOML, or more digits or brackets than can be read
            table = {"value": text}
        value = table["value"] if len(table) == 1 else text
        return self.check(text if self.annotation == "str" and type(value) is not str else value)


def _fits(value, kind):
    return type(value) is _SCALARS[kind] or (kind == "float" and type(value) is int)


def _cast(value, kind):
    try:
        return _SCALARS[kind](value)
    except OverflowError:  # an integer larger than any float
        return math.inf


def _short(value, most=60):
    try:
        text = repr(value)
    except ValueError:  # an integer of thousands of digits
        text = "..."
    return text if len(text) <= most else f"{text[:most]}..."


@dataclass(frozen=True)
class Project:
    """The folders of a working copy.

    Parameters
    ----------
    root : Path
        Folder with `notebooks/`, `figures/`, `build/` and `requirements.lock`.
    """

    root: Path

    @property
    def ledger(self):
        """Path of the ledger of claims."""
        return self.root / "notebooks" / "claims.toml"

    def names(self):
        """Names of all notebooks, sorted."""
        return sorted(path.stem for path in (self.root / "notebooks").glob("*.ipynb"))

    def notebook(self, name):
        """Path of the notebook `name`; ProjectError if there is none."""
        if name not in self.names():
            raise ProjectError(
                f"no notebook {name!r}; allowed: {', '.join(self.names()) or 'none'}"
            )
        return self.root / "notebooks" / f"{name}.ipynb"

    def read(self, name):
        """The notebook `name` as an nbformat node; ProjectError if its file is none."""
        return read_notebook(self.notebook(name))

    def figures(self, label, name):
        """Folder for the figures of a run: only the default profile writes what is committed."""
        base = self.root if label == "default" else self.root / "build" / label
        return base / "figures" / name

    def executed(self, label, name):
        """Path of the executed copy of the notebook `name`."""
        return self.root / "build" / label / f"{name}.ipynb"

    def overrides(self, profile, name, declared):
        """What `profile` changes in the notebook `name`.

        Parameters
        ----------
        profile : str
            One of `PROFILES`; "default" changes nothing.
        name : str
            Notebook.
        declared : dict of str to Parameter
            What the notebook declares.

        Returns
        -------
        dict of str to object
            Checked values by parameter name.

        Raises
        ------
        ProjectError
            If the profile, its table, a name, a type or a value is not allowed.
        """
        if profile not in PROFILES:
            raise ProjectError(f"no profile {profile!r}; allowed: {', '.join(PROFILES)}")
        path = self.root / "notebooks" / "profiles.toml"
        tables = read_toml(path)
        known = {(p, n) for p in PROFILES[1:] for n in self.names()}
        for found, table in tables.items():
            for key, values in table.items() if isinstance(table, dict) else [("", {})]:
                if (found, key) not in known:
                    raise ProjectError(
                        f"{path.name}: [{found}.{key}] names no profile and notebook; "
                        f"profiles: {', '.join(PROFILES[1:])}; notebooks: {', '.join(self.names())}"
                    )
                if not isinstance(values, dict):
                    raise ProjectError(
                        f"{path.name}: {found}.{key} = {_short(values)} must be a table"
                    )
        if profile == "default":
            return {}
        if name not in tables.get(profile, {}):
            raise ProjectError(
                f"{path.name}: no table [{profile}.{name}]; add one (empty: same as default)"
            )
        values = tables[profile][name]
        return {key: lookup(declared, key).check(value) for key, value in values.items()}


def read_notebook(path):
    """The file `path` as an nbformat node of version 4.

    Raises
    ------
    ProjectError
        If it cannot be read, holds no notebook, or one without cells.
    """
    import nbformat  # takes 1.5 s, which kernels, that read no notebook, are spared

    text = read_text(path)
    try:
        # As nbformat.read does, which only logs what is wrong with a notebook.
        found = nbformat.reader.reads(text)
        notebook = nbformat.convert(found, 4)
        nbformat.validate(notebook, relax_add_props=True)
        if notebook.cells:
            return notebook
        reason = "it has no cells"
    # Before it validates, nbformat stumbles over JSON of another shape as code does.
    except (
        *(ValueError, nbformat.ValidationError, RecursionError),
        *(AttributeError, LookupError, TypeError),
    ) as error:
        reason = first_line(error)
    raise ProjectError(f"{shown(path)} cannot be read as a notebook ({reason}); restore it")


def read_toml(path):
    """The tables of a TOML file as a dictionary; ProjectError if it cannot be read."""
    text = read_text(path)
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise ProjectError(f"{shown(path)} is no TOML ({first_line(error)}); mend it") from None


def read_text(path):
    """The text of a file; ProjectError if it cannot be read."""
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or first_line(error)
        raise ProjectError(f"{shown(path)} cannot be read ({reason})") from None


def first_line(error):
    """What an exception says in its first line; its type if it says nothing."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def shown(path):
    """A path as a message shows it: from the working directory if it lies there."""
    path = Path(path).absolute()
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def lookup(declared, name):
    """The declared parameter `name`; ProjectError with the allowed names if there is none."""
    if name not in declared:
        raise ProjectError(f"no parameter {name!r}; allowed: {', '.join(declared)}")
    return declared[name]


def has_tag(cell, tag):
    """Whether a cell carries a tag."""
    return tag in cell.metadata.get("tags", [])


def parameters(notebook):
    """Read the parameters cell without running it.

    Parameters
    ----------
    notebook : nbformat.NotebookNode
        Notebook with exactly one code cell tagged "parameters".

    Returns
    -------
    dict of str to Parameter
        In the order of the cell.

    Raises
    ------
    ProjectError
        If the tag is missing or doubled, a line is not ``name: type = literal  # comment``, the
        range in a comment is not well-formed (see `ranges`) or does not hold the default, or the
        notebook is itself a copy with injected parameters.
    """
    if any(has_tag(cell, INJECTED) for cell in notebook.cells):
        raise ProjectError(
            f"a cell has the tag {INJECTED!r}: this is the copy of a run, not a source; "
            "remove the cell or the tag"
        )
    cells = [c for c in notebook.cells if c.cell_type == "code" and has_tag(c, "parameters")]
    if len(cells) != 1:
        raise ProjectError(f"{len(cells)} code cells have the tag 'parameters'; exactly one must")
    source = cells[0].source
    tree = _tree(source, "the parameters cell")  # before its tokens, which need it to be complete
    comments = {
        token.start[0]: token.string.lstrip("# ").strip()
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type == tokenize.COMMENT
    }
    found = {}
    for node in tree.body:
        text = ast.unparse(node)
        if not isinstance(node, ast.AnnAssign) or not isinstance(node.target, ast.Name):
            raise ProjectError(
                f"parameters cell: {text!r} must be 'name: type = literal  # comment'"
            )
        annotation = ast.unparse(node.annotation)
        if annotation not in _ALLOWED:
            raise ProjectError(f"parameters cell: type of {text!r}; allowed: {', '.join(_ALLOWED)}")
        try:
            default = ast.literal_eval(node.value)
        except (ValueError, TypeError):
            raise ProjectError(
                f"parameters cell: {text!r} must be a literal, no expression"
            ) from None
        if not comments.get(node.end_lineno):
            raise ProjectError(f"parameters cell: {text!r} needs a comment at the end of its line")
        name = node.target.id
        if name in found:
            raise ProjectError(f"parameters cell: {name} is declared twice")
        found[name] = Parameter(name, annotation, default, comments[node.end_lineno])
        found[name].check(default)
    return found


def code_trees(notebook):
    """Syntax tree of every code cell; ProjectError if one is not plain Python (magics included)."""
    return [
        _tree(cell.source, f"code cell {number}")
        for number, cell in enumerate((c for c in notebook.cells if c.cell_type == "code"), start=1)
    ]


def _tree(source, where):
    try:
        return ast.parse(source)
    except SyntaxError as error:
        raise ProjectError(
            f"{where} is not plain Python, line {error.lineno}: {error.msg}"
        ) from None
    except (ValueError, RecursionError, MemoryError) as error:  # what no text or too deep is
        raise ProjectError(f"{where} is not plain Python: {first_line(error)}") from None


def is_figure_name(name):
    """Whether a figure may have this name, which becomes that of its files."""
    return isinstance(name, str) and bool(re.fullmatch("[a-z0-9_]+", name)) and name != "claims"


def figure_names(notebook):
    """Names of the figures a notebook declares by ``figures.savefig("name", ...)``, in order.

    Raises
    ------
    ProjectError
        If a name is not a literal string that `figures.savefig` takes, or is used twice.
    """
    names = []
    for tree in code_trees(notebook):
        for node in ast.walk(tree):
            if not (isinstance(node, ast.Call) and ast.unparse(node.func) == "figures.savefig"):
                continue
            if not (node.args and isinstance(node.args[0], ast.Constant)):
                call = ast.unparse(node)[:60]
                raise ProjectError(f"the first argument of {call}... must be the name in quotes")
            name = node.args[0].value
            if not is_figure_name(name):
                raise ProjectError(f"figures.savefig is called for {name!r}; {FIGURE_NAMES}")
            names.append(name)
    doubled = sorted({name for name in names if names.count(name) > 1})
    if doubled:
        raise ProjectError(f"figures.savefig is called twice for: {', '.join(doubled)}")
    return names


def normalise(notebook, keep_stderr=True):
    """Strip in place what differs between two equal runs: times, tool metadata, split streams.

    Parameters
    ----------
    notebook : nbformat.NotebookNode
        Any executed notebook.
    keep_stderr : bool
        False also drops what was written to stderr (progress bars, warnings).
    """
    import nbformat

    notebook.metadata = nbformat.from_dict(
        {
            "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            "language_info": {"name": "python"},
        }
    )
    for cell in notebook.cells:
        tags = cell.metadata.get("tags")
        cell.metadata = nbformat.from_dict({"tags": tags} if tags else {})
        if has_tag(cell, INJECTED):
            cell.id = INJECTED  # papermill draws it at random
        if cell.cell_type == "code":
            cell.outputs = _outputs(cell.outputs, keep_stderr)


def _outputs(outputs, keep_stderr):
    kept = []
    for output in outputs:
        is_stream = output.output_type == "stream"
        if is_stream and output.name == "stderr" and not keep_stderr:
            continue
        # The kernel flushes by the clock, so one text may come in any number of pieces.
        if is_stream and kept and kept[-1].get("name") == output.name:
            kept[-1].text += output.text
        else:
            kept.append(output)
    return kept
