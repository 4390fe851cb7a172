"""What README.md says of the results, from the ledger: no number in it is typed.

``python -m xaiutils.readme`` writes the part between the two marks; the rest is left as it is.
"""

import re
import sys
import tomllib
from collections import Counter
from dataclasses import dataclass

from xaiutils.companion import claims
from xaiutils.companion.notebooks import ProjectError, figure_names

FIRST, LAST = "<!-- written by make claims -->", "<!-- end of what make claims writes -->"
_KEYS = {"paper": str, "asks": str, "minutes": int, "figures": list, "claim": str, "sentence": str}


@dataclass(frozen=True)
class Headline:
    """What is said of one notebook.

    Parameters
    ----------
    paper, asks : str
        "" where nothing is said.
    minutes : int or None
        On two cores.
    figures : list of str
        Chosen for the start page of the web site; all where none is chosen.
    measured : str
        What was measured, in words; "" without a headline or a record.
    claim, verdict : str
        Id and verdict of the claim that `measured` belongs to.
    counts : Counter
        Claims of the notebook by verdict.
    """

    paper: str
    asks: str
    minutes: int | None
    figures: list[str]
    measured: str
    claim: str
    verdict: str
    counts: Counter


def headlines(project):
    """What is said of each notebook, from `notebooks/headlines.toml` and the ledger.

    Returns
    -------
    dict of str to Headline
        By notebook, sorted. A table of a notebook that does not exist is not read.

    Raises
    ------
    ProjectError
        If a table holds an unknown key, a wrong type, a figure or a claim that the notebook does
        not have, or a sentence that its claim's record does not fill.
    """
    path = project.root / "notebooks" / "headlines.toml"
    tables = tomllib.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    results = claims.results(project)
    return {n: _headline(project, n, tables.get(n, {}), results) for n in project.names()}


def _headline(project, name, table, results):
    where = f"headlines.toml, [{name}]"
    for key, value in table.items():
        if type(value) is not _KEYS.get(key):
            kinds = ", ".join(f"{key} ({kind.__name__})" for key, kind in _KEYS.items())
            raise ProjectError(f"{where}: {key} = {value!r}; allowed: {kinds}")
    drawn = figure_names(project.read(name))
    for figure in table.get("figures", []):
        if figure not in drawn:
            raise ProjectError(f"{where}: no figure {figure!r}; allowed: {', '.join(drawn)}")
    own = {key: result for key, result in results.items() if result[0].notebook == name}
    claim = table.get("claim", "")
    if claim and claim not in own:
        raise ProjectError(f"{where}: no claim {claim!r}; allowed: {', '.join(own) or 'none'}")
    _, record = own.get(claim, (None, None))
    measured = ""
    if record and "value" in record:
        try:
            filled = table.get("sentence", "").format(**record)
        except (KeyError, IndexError, ValueError) as error:
            raise ProjectError(f"{where}: sentence cannot be filled: {error!r}") from None
        measured = re.sub(r"(?<=\d)%", " %", filled)
    return Headline(
        paper=table.get("paper", ""),
        asks=table.get("asks", ""),
        minutes=table.get("minutes"),
        figures=table.get("figures") or drawn,
        measured=measured,
        claim=claim,
        verdict=claims.verdict_of(*own[claim]) if measured else "",
        counts=Counter(claims.verdict_of(*result) for result in own.values()),
    )


def block(project):
    """The part of README.md between the marks: what each notebook found, and counts by verdict."""
    found = headlines(project)
    total = Counter(claims.verdict_of(*result) for result in claims.results(project).values())
    text = f"{FIRST}\n\n| notebook | asks | measured [95 % interval], claim, verdict |\n"
    text += "|:--|:--|:--|\n"
    for name, h in found.items():
        paper = f"<br>{h.paper}" if h.paper else ""
        measured = f"{h.measured}: **{h.verdict}** (`{h.claim}`)" if h.measured else "–"
        text += _line(f"[{name}](notebooks/{name}.ipynb){paper}", h.asks or "–", measured)
    verdicts = claims.VERDICTS
    text += f"\n| claims | {' | '.join(verdicts)} | figures | minutes |\n|:--|{'--:|' * 6}\n"
    for name, h in found.items():
        figures = f"[{len(figure_names(project.read(name)))}](figures/{name})"
        text += _line(name, *(h.counts[v] for v in verdicts), figures, h.minutes or "–")
    numbers = (f"**{total[v]}**" for v in verdicts)
    text += _line(f"**all {total.total()}**: [the ledger](figures/CLAIMS.md)", *numbers, "", "")
    return f"{text}\n{LAST}"


def _line(*cells):
    return "| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |\n"


def updated(project):
    """The text of README.md with today's `block` between its marks.

    Raises
    ------
    ProjectError
        If the marks are not there, each once and in order.
    """
    text = (project.root / "README.md").read_text(encoding="utf-8")
    before, first, rest = text.partition(FIRST)
    _, last, after = rest.partition(LAST)
    if not (first and last) or FIRST in after or LAST in after + before:
        raise ProjectError(f"README.md needs the lines {FIRST!r} and {LAST!r}, once, in order")
    return before + block(project) + after


def main(project=None):
    """Bring README.md up to date; returns 0, or 2 if something it needs is not well-formed."""
    return claims.generate("README.md", updated, project)


if __name__ == "__main__":
    sys.exit(main())
