"""Where the numbers in a notebook's text come from: its outputs, claims, figures, parameters, code.

A number has a source if one rounds to it at the digits it shows. That a source fits does not prove
that it is the one meant; a number without any is worth a look.
"""

import ast
import re
from dataclasses import dataclass

import numpy as np

from xaiutils.companion import claims, results
from xaiutils.companion.notebooks import code_trees, figure_names, parameters

_NUMBER = re.compile(
    r"(?:(?P<sign>[-−+])|\b(?P<word>minus|plus) )?"
    r"(?<![\d.])(?P<digits>\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d+(?:\.\d+)?|\.\d+)"
    r"(?P<power>[eE][-+]?\d+)?(?:/(?P<below>\d+))?(?P<unit>\s?%| percent\b| points?\b)?"
)
_LIST = r"\d+\w?(?:(?:, | and | to | or |–|-)\d+\w?)*"
# What is no measured number, in the order in which it is taken out of the text.
_NOT_MEANT = [
    re.compile(pattern, re.DOTALL | re.MULTILINE)
    for pattern in (
        r"```.*?```|`[^`]*`",
        r"\$\$.*?\$\$|\$[^$]+\$",
        r"\]\([^)\s]*\)|https?://\S+|<[^>\n]+>",
        r"\b(?:arXiv|doi):\S+",
        r"^#+ +\d[\d.]*|^ *\d+\. ",  # sections, items of a list
        rf"\b(?:[Ff]igures?|[Tt]ables?|Eqs?\.|[Ee]quations?|[Ss]ections?|[Nn]otebooks?|[Pp]apers?|"
        rf"Theorems?|Propositions?|Lemmas?|Corollary|PMLR|Fig\.|[Cc]ells? \[) ?{_LIST}",
        r"\b0\d(?:(?:, | and | to )0\d)*\b",  # notebooks
        r"\b\d{4}-\d\d-\d\d\b|\b\d{1,2} [A-Z][a-z]+ (?:19|20)\d\d\b",
        r"(?<=[(])(?:19|20)\d\d(?!\d)|(?:(?<=al\. )|(?<=[A-Z]\w )|(?<=\w, ))(?:19|20)\d\d(?![\d,])",
        r"(?:\b[A-Z][\w.&-]* )(?:19|20)\d\d(?![\d,])",  # a name and a year
        r"\b\d+(?:st|nd|rd|th)\b",
        r"\b\d+(?:\.\d+){2,}\b",  # versions
        r"(?:[^\W\d_][\w.]*-?)\d[\w.]*\b",  # names with digits
    )
]
_BETWEEN = re.compile(r"\s*(?:to|and|or|,|–|-)\s*\Z")
_INTERVAL = re.compile(r"\s*\[\Z")


@dataclass(frozen=True)
class Number:
    """A number in the text of a notebook.

    Parameters
    ----------
    cell : int
        Of the notebook, from 1.
    text : str
        As it is written.
    around : str
        The words around it, itself in `>` and `<`.
    source : str or None
        What rounds to it, the nearest kind first; None if nothing does.
    """

    cell: int
    text: str
    around: str
    source: str | None


@dataclass(frozen=True)
class _Written:
    """A number as read from text: its value, the decimals it shows, whether it has a sign."""

    start: int
    end: int
    text: str
    value: float
    decimals: int
    is_signed: bool
    is_share: bool  # in percent; value and decimals are those of the percentage

    def readings(self):
        """(value, decimals) that it may stand for, the likelier first."""
        plain = (self.value, self.decimals)
        return [(self.value / 100, self.decimals + 2), plain] if self.is_share else [plain]


class _Group:
    """Numbers of one origin: values, decimals shown (or many, where exact), names of places."""

    def __init__(self, numbers):
        numbers = list(numbers)
        self.places = [place for _, _, place in numbers]
        self.values = np.array([value for value, _, _ in numbers], float)
        self.decimals = np.array([decimals for _, decimals, _ in numbers], int)

    def fitting(self, value, decimals, is_exact):
        """Indices of the numbers that round to `value`, or equal it."""
        gap = np.abs(self.values - value)
        close = gap <= (0.5 + 1e-6) * 10.0**-decimals if not is_exact else gap < 0
        # "0.4" may be a number with the last zero dropped, so equal is enough.
        return np.flatnonzero((close & (self.decimals >= decimals)) | (gap < 1e-9))


_EXACT = 99


def written(text):
    """Numbers of a text, in its order.

    Parameters
    ----------
    text : str
        Markdown, or the text of an output.

    Returns
    -------
    list of _Written
        A number in a list or a range takes the percent sign of the last one.
    """
    found = []
    for match in _NUMBER.finditer(text):
        before = text[match.start() - 1 : match.start()] if match.start() else ""
        if before and (before.isalnum() or before in "_/^") and not match["word"]:
            # "3-5" is a range: the dash is no sign. Anything else glued to letters is a name.
            if not (match["sign"] and before.isdigit()):
                continue
        digits = match["digits"].replace(",", "") + (match["power"] or "")
        shown = len(match["digits"].partition(".")[2]) - int((match["power"] or "e0")[1:])
        value, decimals = float(digits), max(shown, 0)
        if match["below"]:
            value, decimals = value / max(int(match["below"]), 1), 2
        is_range = bool(match["sign"]) and before.isdigit()
        is_signed = bool(match["sign"] or match["word"]) and not is_range
        if is_signed and (match["sign"] in ("-", "−") or match["word"] == "minus"):
            value = -value
        found.append(
            _Written(
                *(match.start(), match.end(), match[0].strip(), value, decimals),
                *(is_signed, bool(match["unit"])),
            )
        )
    for i in range(len(found) - 2, -1, -1):
        one, after = found[i : i + 2]
        if after.is_share and not one.is_share and _BETWEEN.fullmatch(text[one.end : after.start]):
            found[i] = _Written(**{**vars(one), "is_share": True})
    return found


def prose(text):
    """Markdown with all that is no measured number blanked out, at its length."""
    for pattern in _NOT_MEANT:
        text = pattern.sub(lambda match: " " * len(match[0]), text)
    return text


def audit(project, name):
    """Find a source for every number in the text cells of a notebook.

    Parameters
    ----------
    project : Project
    name : str
        Notebook; its outputs and the results under `figures/` are those of its last run.

    Returns
    -------
    list of Number
        In the order of the notebook.

    Raises
    ------
    ProjectError
        If there is no such notebook, or a results file is damaged.
    """
    notebook = project.read(name)
    sources = _sources(project, name, notebook)
    found = []
    for number, cell in enumerate(notebook.cells, start=1):
        if cell.cell_type != "markdown":
            continue
        text = prose(cell.source)
        for one in written(text):
            found.append(
                Number(
                    cell=number,
                    text=one.text,
                    around=_around(cell.source, one),
                    source=_source(one, _nearest(sources, number)),
                )
            )
    return found


def _around(text, one, width=60):
    before = text[max(one.start - width, 0) : one.start]
    after = text[one.end : one.end + width]
    words = (before.partition(" ")[2] if one.start > width else before, after.rpartition(" ")[0])
    return " ".join(f"{words[0]}>{text[one.start : one.end].strip()}<{words[1] or after}".split())


def _sources(project, name, notebook):
    """Groups of numbers as (kind, cell of the notebook or None, group)."""
    found = []
    own = results.of_notebook(project, name)
    drawn_in, code_number = {}, 0
    for number, cell in enumerate(notebook.cells, start=1):
        if cell.cell_type != "code":
            continue
        code_number += 1
        tree, *_ = code_trees(type(notebook)(cells=[cell]))
        drawn_in |= dict.fromkeys(figure_names(type(notebook)(cells=[cell])), number)
        text = "\n".join(_texts(cell))
        place = f"output of code cell {code_number}"
        numbers = (_plain(one) for one in written(text))
        found.append(("output", number, _Group((*n, place) for n in numbers)))
        constants = (n.value for n in ast.walk(tree) if isinstance(n, ast.Constant))
        numbers = [c for c in constants if type(c) in (int, float)]
        place = f"code cell {code_number}"
        found.append(("code", number, _Group((c, _EXACT, place) for c in numbers)))
    for stem, content in own.items():
        if stem != "claims":
            place = f"figures/{name}/{stem}.json"
            leaves = _leaves(content["data"], "data")
            group = _Group((value, _EXACT, f"{place}, {path}") for path, value in leaves)
            found.append(("figure", drawn_in.get(stem), group))
    declared = parameters(notebook).values()
    leaves = [leaf for p in declared for leaf in _leaves(p.default, f"parameter {p.name}")]
    found.append(("parameter", None, _Group((v, _EXACT, path) for path, v in leaves)))
    ledger = [c for c in claims.load(project.ledger).values() if c.notebook == name]
    found.append(("claim", None, _Group(_of_claims(ledger, results.records(own)))))
    found.append(("rule", None, _Group(_of_rules(ledger))))
    return found


def _texts(cell):
    for output in cell.outputs:
        data = output.get("data", {})
        texts = (output.get("text"), data.get("text/plain"), data.get("text/markdown"))
        # The table of the claims is the ledger's: its records and rules are looked at themselves.
        yield from (t for t in texts if isinstance(t, str) and not t.startswith(claims.HEADER))


def _plain(one):
    """Value and decimals of a number in an output: a percentage is the share it stands for."""
    return one.readings()[0]


def _leaves(value, path):
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _leaves(item, f"{path}.{key}")
    elif isinstance(value, list):
        for i, item in enumerate(value):
            yield from _leaves(item, f"{path}[{i}]")
    elif type(value) in (int, float):
        yield path, value


def _of_claims(ledger, records):
    for claim in ledger:
        record = records.get(claim.id, {})
        for key in ("value", "low", "high", "n"):
            if record.get(key) is not None:
                yield record[key], _EXACT, f"claim {claim.id}, {key}"


def _of_rules(ledger):
    for claim in ledger:
        for key, value in claim.rule.items():
            if type(value) in (int, float):
                yield value, _EXACT, f"claim {claim.id}, rule ({key})"
        texts = {"rule": claim.rule["text"], "statement": claim.statement, "source": claim.source}
        texts["published value"] = str("" if claim.published is None else claim.published)
        for key, text in texts.items():
            for one in written(text):
                yield *_plain(one), f"claim {claim.id}, {key}"


_ORDER = ("output", "claim", "parameter", "figure", "rule", "code")


def _nearest(sources, number):
    """Groups in the order in which they are asked: those around a text cell first, then by kind."""
    near = 3  # cells: the code that a text introduces or reads

    def key(source):
        kind, cell, _ = source
        distance = near + 1 if cell is None else abs(cell - number)
        is_far = distance > near and kind in ("output", "figure", "code")
        return is_far, _ORDER.index(kind), distance

    return sorted(sources, key=key)


def _source(one, sources):
    """The first source that fits, how many others do, and what was left out of the number."""
    for flipped in (False, True) if not one.is_signed else (False,):
        for is_exact in (True, False):
            fits = []
            for kind, _, group in sources:
                for value, decimals in one.readings():
                    # A small whole number is near some of the many numbers of any figure.
                    if not is_exact and not decimals and kind == "figure" and abs(value) < 10:
                        continue
                    value = -value if flipped else value
                    fits += [group.places[i] for i in group.fitting(value, decimals, is_exact)]
            # A decimal that equals a source by chance is no better than one that rounds to it.
            if fits and not (is_exact and one.decimals):
                places = list(dict.fromkeys(fits))
                more = f" (or {len(places) - 1} more)" if len(places) > 1 else ""
                return places[0] + (", without its minus" if flipped else "") + more
    return None


def listing(name, found):
    """What `audit` found, as text: first the numbers with a source, then those without.

    Parameters
    ----------
    name : str
        Notebook.
    found : list of Number

    Returns
    -------
    str
    """
    without = [number for number in found if number.source is None]
    lines = [
        f"{name}: {len(found)} numbers in the text, {len(found) - len(without)} with a source, "
        f"{len(without)} without"
    ]
    lines += [f"  cell {n.cell:>2}  {n.text:>10}  {n.source}" for n in found if n.source]
    lines += ["without a source:"] if without else []
    lines += [f"  cell {n.cell:>2}  {n.text:>10}  {n.around}" for n in without]
    return "\n".join(lines)
