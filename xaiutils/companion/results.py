"""Results files: sealed when they are written, checked whenever they are read.

Each JSON file of a run ends with the SHA-256 of all else in it, and that of a figure also holds the
SHA-256 of its picture; a notebook with outputs holds that of its code cells and outputs. So what is
damaged, edited by hand or half-written is named with what to do, and never shown.
"""

import hashlib
import json

from xaiutils.companion import provenance
from xaiutils.companion.notebooks import ProjectError, shown

SEAL = "sha256"
PICTURE = "png_sha256"
INVALID = "test not valid"
VERDICTS = ("holds", "fails", "inconclusive", INVALID, "not run")

_HASH = {"type": "string", "pattern": "^[0-9a-f]{64}$"}
_TEXT = {"type": "string"}
_BOUND = {"type": ["number", "null"]}
_REASON = {"verdict": {"const": "not run"}, "reason": {**_TEXT, "pattern": r"\S"}}
_NUMBERS = {
    "verdict": {"enum": list(VERDICTS)},
    **{"value": {"type": "number"}, "low": _BOUND, "high": _BOUND},
    **{"n": {"type": "integer", "minimum": 1}, "unit": _TEXT},
}
_CELL = {"cell": {"type": "integer", "minimum": 1}}


def _object(properties, **optional):
    return {
        "type": "object",
        "properties": {**properties, **optional},
        "required": list(properties),
        "additionalProperties": False,
    }


_RECORD = {
    "if": {"type": "object", "required": ["reason"]},
    "then": _object(_REASON, **_CELL),
    "else": _object(_NUMBERS, **_CELL),
}
_STAMP = {
    "notebook": {"type": ["string", "null"]},
    "profile": _TEXT,
    "parameters": {"type": "object"},
    "hashes": {
        "type": "object",
        "properties": {"assets": {"type": "object", "additionalProperties": _HASH}},
        "required": ["notebook", "package", "requirements.lock", "assets"],
        "additionalProperties": _HASH,
    },
}
_KINDS = {
    True: {"claims": {"type": "object", "additionalProperties": _RECORD}, **_STAMP},
    False: {"figure": _TEXT, "alt": _TEXT, "data": {"type": "object"}, PICTURE: _HASH, **_STAMP},
}
_SCHEMAS = {
    is_claims: {"type": "object", "properties": p, "required": list(p)}
    for is_claims, p in _KINDS.items()
}


def sealed(content):
    """The bytes of a results file: `content` and its hash.

    Parameters
    ----------
    content : dict
        JSON types only, see `provenance.plain`.

    Returns
    -------
    bytes
        Equal contents give equal bytes.
    """
    return (provenance.dumps({**content, SEAL: _digest(content)}) + "\n").encode()


def _digest(content):
    """SHA-256 of content in a canonical form: neither spaces nor the order of keys count."""
    rest = {key: value for key, value in content.items() if key != SEAL}
    text = json.dumps(rest, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()


def picture_hash(content):
    """SHA-256 of the bytes of a picture."""
    return hashlib.sha256(content).hexdigest()


def notebook_seal(notebook):
    """SHA-256 of the code cells of a notebook and of their outputs: what one run has made.

    Parameters
    ----------
    notebook : nbformat.NotebookNode
        Executed and normalised. Its text cells may be rewritten without a run.
    """
    cells = [c for c in notebook.cells if c.cell_type == "code"]
    return _digest({"cells": [[c.source, c.execution_count, c.outputs] for c in cells]})


def of_notebook(project, name):
    """`of_run` of the results under `figures/`, those of the default profile.

    Parameters
    ----------
    project : Project
    name : str
        Notebook.
    """
    copy = project.executed("default", name)
    # Make takes the executed copy for done.
    first = f"delete {shown(copy)} and " if copy.exists() else ""
    remedy = f"{first}run make figures ONLY={name}"
    return of_run(project.figures("default", name), name, "default", remedy)


def of_run(folder, name, label, remedy):
    """Read and check all results of one run.

    Parameters
    ----------
    folder : Path
        Its figures and records; one that does not exist holds none.
    name, label : str
        Notebook and label of the run.
    remedy : str
        What to do about a damaged file, for the message.

    Returns
    -------
    dict of str to dict
        Content of each JSON file by its stem: "claims", and the names of the figures.

    Raises
    ------
    ProjectError
        If a file cannot be read, is not as it was written, is of an older format or of another
        run, or a record or a picture lacks the other one. The message names the file.
    """
    found = {}
    for path in sorted(folder.glob("*.json")):
        if problem := _problem(path, name, label, found):
            raise ProjectError(f"{problem}; {remedy}")
    for path in sorted(folder.glob("*.png")):
        if path.stem not in found:
            raise ProjectError(f"{shown(path)} has no {path.stem}.json beside it; {remedy}")
    return found


def records(found):
    """The records of the claims by id, among what `of_run` found; empty where there are none."""
    return found["claims"]["claims"] if "claims" in found else {}


def _problem(path, name, label, found):
    """What is wrong with a JSON file, or None: then its content is put into `found`."""
    try:
        content = provenance.read_json(path)
    except ProjectError as error:
        return str(error)
    where = shown(path)
    if not isinstance(content, dict):
        return f"{where} holds no JSON object"
    if SEAL not in content:
        return f"{where} has no {SEAL}, it is of an older format"
    if content[SEAL] != _digest(content):
        return f"{where} is not as it was written (edited by hand?): its {SEAL} is another one"
    is_claims = path.stem == "claims"
    from jsonschema import Draft202012Validator  # 1.5 s, which kernels, that only write, are spared
    from jsonschema.exceptions import best_match

    if error := best_match(Draft202012Validator(_SCHEMAS[is_claims]).iter_errors(content)):
        return f"{where}: {error.json_path.removeprefix('$.')}: {error.message}"
    for key, value in {"notebook": name, "profile": label}.items():
        if content[key] != value:
            return f"{where} is of {key} {content[key]!r}, not of {value!r}"
    found[path.stem] = content
    if is_claims:
        problems = ((key, _contradiction(record)) for key, record in content["claims"].items())
        return next((f"{where}: {key}: {what}" for key, what in problems if what), None)
    if content["figure"] != path.stem:
        return f"{where} is the record of figure {content['figure']!r}"
    return _picture_problem(path.with_suffix(".png"), content[PICTURE])


def _contradiction(record):
    """What is wrong with the numbers of a record, or None."""
    if "reason" in record:
        return None
    value, low, high = (record[key] for key in ("value", "low", "high"))
    if low is None and high is None:  # an interval of one unit is not defined
        return None if record["n"] == 1 else f"no interval, but n = {record['n']}"
    if low is None or high is None:
        return f"interval [{low}, {high}] has one end only"
    if not low <= value <= high:
        return f"value {value} lies outside its interval [{low}, {high}]"
    return None


def _picture_problem(path, expected):
    try:
        content = path.read_bytes()
    except OSError as error:
        return f"{shown(path)} cannot be read ({error.strerror})"
    if picture_hash(content) != expected:
        return f"{shown(path)} is not as it was written: its sha256 is not that in {path.stem}.json"
    return None
