"""Where the numbers in a notebook's text come from: its outputs, claims, figures, parameters, code.

A number has a source if one rounds to it at the digits it shows. That a source fits does not prove
that it is the one meant; a number without any is worth a look.
"""

import ast
import re
from dataclasses import dataclass, replace
from itertools import pairwise, product

import nbformat
import numpy as np

from xaiutils.companion import claims, results
from xaiutils.companion.notebooks import code_trees, figure_names, parameters

_NUMBER = re.compile(
    r"(?:(?P<sign>[-−+])|\b(?P<word>minus|plus) )?"
    r"(?<![\d.])(?P<digits>\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d+(?:\.\d+)?|\.\d+)"
    r"(?P<power>[eE][-+]?\d+)?(?:/(?P<below>\d+))?(?P<unit>\s?%| percent\b| points?\b)?"
)
_LIST = r"\d+\w?(?:(?:, | and | to | or |–|-)\d+\w?)*"
_YEAR = r"(?:19|20)\d\d(?!\d|,\d)"
# What is no measured number, in the order in which it is taken out of the text.
_NOT_MEANT = [
    re.compile(pattern, re.DOTALL | re.MULTILINE)
    for pattern in (
        r"```.*?```|`[^`]*`",
        r"\$\$.*?\$\$|\$[^$]+\$",
        r"\]\([^)\s]*\)|https?://\S+|<[^>\n]+>",
        r"\b(?:arXiv|doi):\S+",
        r"\b\d{4}-\d\d-\d\d\b|\b\d{1,2} [A-Z][a-z]+ (?:19|20)\d\d\b",
        r"^#+ +\d[\d.]*|^ *\d+\. ",  # sections, items of a list
        rf"\b(?:[Ff]igures?|[Tt]ables?|Eqs?\.|[Ee]quations?|[Ss]ections?|[Nn]otebooks?|[Pp]apers?|"
        rf"Theorems?|Propositions?|Lemmas?|Corollary|PMLR|Fig\.|[Cc]ells? \[)\s?{_LIST}",
        r"(?<![.\d])0\d(?:(?:, | and | to )0\d)*\b(?![.,]\d)",  # notebooks
        # A year follows a bracket, a comma or a name.
        rf"(?<=\(){_YEAR}|(?:[\w”\"], |\bal\.\s|\b[A-Z][\w.&-]*\s){_YEAR}",
        r"\b\d+(?:st|nd|rd|th|s)\b",
        r"\b[Aa]n? \d\b(?![.,]\d|\s?%)",  # a digit that is seen
        r"\b\d+(?:\.\d+){2,}\b",  # versions
        r"\b[^\W\d_][\w.]*-?\d[\w.]*\b",  # names with digits
    )
]
_BETWEEN = re.compile(r"\s*(?:to|and|or|,|–|-)\s*")
_EXACT = 99  # decimals of a number that is not rounded
_ORDER = ("output", "figure", "claim", "parameter", "rule", "code")
_SUMMARY = ("claim", "output", "parameter", "figure", "rule", "code")  # of the first text cell
_NEAR = 3  # cells: the code that a text introduces or reads


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
    is_near : bool
        Whether the source is a claim, a parameter, or of the cells around the text. Any other one
        may well fit by chance.
    """

    cell: int
    text: str
    around: str
    source: str | None
    is_near: bool


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

    def fitting(self, wanted, is_exact):
        """Places of the numbers that round to those `wanted`, or equal them, one after another."""
        starts = np.ones(max(len(self.values) - len(wanted) + 1, 0), bool)
        for i, (value, decimals) in enumerate(wanted):
            gap = np.abs(self.values - value)
            rounds = gap <= (0.5 + 1e-6) * 10.0**-decimals
            # "0.4" may be a number with the last zero dropped, so equal is enough.
            fits = (gap < 1e-9) | (rounds & (self.decimals >= decimals) & (not is_exact))
            starts &= fits[i : i + len(starts)]
        return [self.places[i] for i in np.flatnonzero(starts)]


def written(text):
    """Numbers of a text, in its order.

    Parameters
    ----------
    text : str
        Markdown, or the text of an output.

    Returns
    -------
    list of _Written
    """
    found = []
    for match in _NUMBER.finditer(text):
        before = text[match.start() - 1 : match.start()] if match.start() else ""
        # "3-5" is a range: the dash is no sign. Anything else glued to letters is a name.
        is_range = bool(match["sign"]) and before.isdigit()
        is_glued = bool(before) and (before.isalnum() or before in "_/^") and not match["word"]
        if is_glued and not is_range:
            continue
        digits = match["digits"].replace(",", "") + (match["power"] or "")
        shown = len(match["digits"].partition(".")[2]) - int((match["power"] or "e0")[1:])
        value, decimals = float(digits), max(shown, 0)
        if match["below"]:
            value, decimals = value / max(int(match["below"]), 1), 2
        is_signed = bool(match["sign"] or match["word"]) and not is_range
        if is_signed and (match["sign"] in ("-", "−") or match["word"] == "minus"):
            value = -value
        found.append(
            _Written(
                start=match.start() + is_range,
                end=match.end(),
                text=match[0][is_range:].strip(),
                value=value,
                decimals=decimals,
                is_signed=is_signed,
                is_share=bool(match["unit"]),
            )
        )
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
        groups = _nearest(sources, number)
        for run in _runs(written(text), text):
            together = _source(run, groups)
            for one in run:
                # The three of an estimate fit alone only: they may come from different places.
                source, is_near = together if together[0] else (_source([one], groups)[0], False)
                found.append(Number(number, one.text, _around(cell.source, one), source, is_near))
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
        tree, *_ = code_trees(nbformat.v4.new_notebook(cells=[cell]))
        drawn_in |= dict.fromkeys(figure_names(nbformat.v4.new_notebook(cells=[cell])), number)
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
    """(path, number) of all in nested data; tables by row, with the texts that name it."""
    if isinstance(value, dict):
        columns = list(value.values())
        lengths = {len(column) if isinstance(column, list) else -1 for column in columns}
        if len(columns) > 1 and len(lengths) == 1 and lengths != {-1}:
            for row in zip(*columns, strict=True):
                name = ", ".join(item for item in row if isinstance(item, str))
                for key, item in zip(value, row, strict=True):
                    yield from _leaves(item, f"{path}.{key}" + (f" ({name})" if name else ""))
        else:
            for key, item in value.items():
                yield from _leaves(item, f"{path}.{key}")
    elif isinstance(value, list):
        for item in value:
            yield from _leaves(item, path)
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


def _nearest(sources, number):
    """(kind, whether it is near, group) in the order in which they are asked, for a text cell."""

    def rank(source):
        kind, cell, _ = source
        distance = _NEAR + 1 if cell is None else abs(cell - number)
        if number == 1:  # what it sums up is anywhere
            return kind in ("rule", "code"), _SUMMARY.index(kind), distance
        is_far = kind in ("rule", "code") or (kind in ("output", "figure") and distance > _NEAR)
        return is_far, _ORDER.index(kind), distance

    ranked = sorted(((rank(source), source) for source in sources), key=lambda one: one[0])
    return [(kind, not is_far, group) for (is_far, _, _), (kind, _, group) in ranked]


def _runs(found, text):
    """The numbers of a text one by one, but an estimate with its interval, `1.2 [1.1, 1.3]`.

    A number in a list or a range takes the percent sign of the last one.
    """
    for i in range(len(found) - 2, -1, -1):
        one, after = found[i : i + 2]
        if after.is_share and not one.is_share and _BETWEEN.fullmatch(text[one.end : after.start]):
            found[i] = replace(one, is_share=True)
    i = 0
    while i < len(found):
        run = found[i : i + 3]
        between = [text[a.end : b.start] for a, b in pairwise(run)]
        last = re.match(r"\](\s?%)?", text[run[-1].end :])
        if len(run) == 3 and re.fullmatch(r"\s*\[ *,\s*", " ".join(between)) and last:
            share = bool(last[1]) or any(one.is_share for one in run)
            run = [replace(one, is_share=share) for one in run]
        else:
            run = run[:1]
        yield run
        i += len(run)


def _source(run, groups):
    """What fits some numbers first, with how much else does, and whether it is near."""
    is_fixed = len(run) > 1 or run[0].is_signed or not run[0].value
    readings = list(zip(*(one.readings() for one in run), strict=True))
    for sign, near, wanted in product((1,) if is_fixed else (1, -1), (True, False), readings):
        wanted = [(sign * value, decimals) for value, decimals in wanted]
        counts = not any(decimals for _, decimals in wanted)
        # A whole number is rather one that is counted than one that is rounded. A small one is
        # near some of the many numbers of any figure.
        is_small = counts and abs(wanted[0][0]) < 10
        for is_exact in (True, False) if counts else (False,):
            places = [
                place
                for kind, is_near, group in groups
                if is_near == near and (is_exact or not is_small or kind in ("output", "claim"))
                for place in group.fitting(wanted, is_exact)
            ]
            if places := list(dict.fromkeys(places)):
                more = f" (or {len(places) - 1} more)" if len(places) > 1 else ""
                return places[0] + ", which is negative" * (sign < 0) + more, near
    return None, False


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
    parts = {
        "without a source": [n for n in found if n.source is None],
        "with a source far from the text only, by chance perhaps": [
            n for n in found if n.source and not n.is_near
        ],
        "with a source": [n for n in found if n.is_near],
    }
    counts = ", ".join(f"{len(part)} {what}" for what, part in parts.items())
    lines = [f"{name}: {len(found)} numbers in the text, {counts}"]
    for what, part in parts.items():
        lines += [f"\n{what}:"] if part else []
        for n in part:
            lines.append(f"  cell {n.cell:>2}  {n.text:>8}  {n.source or n.around}")
            lines += [f"{n.around:>{len(n.around) + 20}}"] * bool(n.source and not n.is_near)
    return "\n".join(lines)
