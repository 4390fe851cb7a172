"""What README.md says of the results, from the ledger: no number in it is typed.

``python -m xaiutils.companion.readme`` writes the part between the two marks and leaves the rest as
it is.
"""

import math
import re
import sys
from collections import Counter
from dataclasses import dataclass

from xaiutils.companion import ledger, stopping
from xaiutils.companion.claims import VERDICTS, verdict_of
from xaiutils.companion.notebooks import ProjectError, figure_names, read_text, read_toml

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
        By notebook, sorted.

    Raises
    ------
    ProjectError
        If the file is damaged, a table is of no notebook or holds an unknown key, a wrong type, a
        figure or a claim that the notebook does not have, or a sentence that its claim's record
        does not fill; or if a results file is damaged.
    """
    path = project.root / "notebooks" / "headlines.toml"
    tables = read_toml(path) if path.exists() else {}
    if unknown := sorted(set(tables) - set(project.names())):
        raise ProjectError(
            f"headlines.toml: [{unknown[0]}] names no notebook; "
            f"allowed: {', '.join(project.names()) or 'none'}"
        )
    found = ledger.measured(project)
    return {n: _headline(project, n, tables.get(n, {}), found) for n in project.names()}


def _headline(project, name, table, found):
    where = f"headlines.toml, [{name}]"
    if not isinstance(table, dict):
        raise ProjectError(f"headlines.toml: {name} = {table!r} must be a table [{name}]")
    for key, value in table.items():
        if type(value) is not _KEYS.get(key):
            kinds = ", ".join(f"{key} ({kind.__name__})" for key, kind in _KEYS.items())
            raise ProjectError(f"{where}: {key} = {value!r}; allowed: {kinds}")
    if table.get("minutes", 1) < 1:
        raise ProjectError(f"{where}: minutes = {table['minutes']}; allowed: 1 or more")
    drawn = figure_names(project.read(name))
    for figure in table.get("figures", []):
        if figure not in drawn:
            raise ProjectError(f"{where}: no figure {figure!r}; allowed: {', '.join(drawn)}")
    own = {key: result for key, result in found.items() if result[0].notebook == name}
    claim = table.get("claim", "")
    if claim and claim not in own:
        raise ProjectError(f"{where}: no claim {claim!r}; allowed: {', '.join(own) or 'none'}")
    _, record = own.get(claim, (None, None))
    measured = ""
    if record and "value" in record:
        # An interval that is not defined is shown as such.
        values = {key: math.nan if value is None else value for key, value in record.items()}
        try:
            filled = table.get("sentence", "").format(**values)
        except (LookupError, ValueError, TypeError, AttributeError) as error:
            raise ProjectError(f"{where}: sentence cannot be filled: {error!r}") from None
        measured = re.sub(r"(?<=\d)%", " %", filled)
    return Headline(
        paper=table.get("paper", ""),
        asks=table.get("asks", ""),
        minutes=table.get("minutes"),
        figures=table.get("figures") or drawn,
        measured=measured,
        claim=claim,
        verdict=verdict_of(*own[claim]) if measured else "",
        counts=Counter(verdict_of(*result) for result in own.values()),
    )


def block(project):
    """The part of README.md between the marks: what each notebook found, and counts by verdict."""
    found = headlines(project)
    total = Counter(verdict_of(*result) for result in ledger.measured(project).values())
    text = f"{FIRST}\n\n| notebook | asks | measured [95 % interval], claim, verdict |\n"
    text += "|:--|:--|:--|\n"
    for name, h in found.items():
        paper = f"<br>{h.paper}" if h.paper else ""
        measured = f"{h.measured}: **{h.verdict}** (`{h.claim}`)" if h.measured else "–"
        text += _line(f"[{name}](notebooks/{name}.ipynb){paper}", h.asks or "–", measured)
    verdicts = VERDICTS
    text += f"\n| claims | {' | '.join(verdicts)} | figures | minutes |\n"
    text += f"|:--|{'--:|' * (len(verdicts) + 2)}\n"
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
    text = read_text(project.root / "README.md")
    before, first, rest = text.partition(FIRST)
    _, last, after = rest.partition(LAST)
    if not (first and last) or FIRST in after or LAST in after + before:
        raise ProjectError(f"README.md needs the lines {FIRST!r} and {LAST!r}, once, in order")
    return before + block(project) + after


def main(project=None):
    """Bring README.md up to date; returns 0, or 2 if something it needs is not well-formed."""
    return ledger.generate("README.md", updated, project)


if __name__ == "__main__":
    sys.exit(stopping.exit_code(main))
