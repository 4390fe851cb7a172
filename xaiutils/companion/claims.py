"""The ledger: every claim of the papers, what was measured, and the verdict the rule gives.

``python -m xaiutils.claims`` writes `figures/CLAIMS.md` from the records of the last runs.
"""

import math
import re
import sys
import tomllib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from IPython.display import Markdown

from xaiutils.companion import provenance
from xaiutils.companion.notebooks import Project, ProjectError, figure_names

VERDICTS = ("holds", "fails", "inconclusive", "not run")
PAPERS = {
    1: "On the Veracity of Local, Model-agnostic Explanations in Audio Classification",
    2: "What does LIME really see in images?",
    3: "Fidelity of Interpretability Methods and Perturbation Artifacts in Neural Networks",
    4: "GANMEX: One-vs-One Attributions using GAN-based Model Explainability",
    5: "Across the four papers (this companion)",
}
_BOUNDS = {"above": {"threshold"}, "below": {"threshold"}, "between": {"low", "high"}}
_HEADER = """\
| claim | published | measured | n | verdict | holds if |
| :-- | :-- | :-- | --: | :-- | :-- |
"""
_records = {}  # of this process: claim id -> record


@dataclass(frozen=True)
class Claim:
    """One entry of the ledger.

    Parameters
    ----------
    id : str
        Unique; lower-case letters, digits, `-` and `_`.
    paper : int
        1 to 4, or 5 for what this companion says across them, see `PAPERS`.
    statement : str
        The claim in our words.
    source : str
        Where the paper makes it: abstract, table, figure.
    rule : dict
        `kind` "above" or "below" with `threshold` (strict), or "between" with `low` and `high`
        (inclusive); `text` says it in words.
    notebook : str
        The notebook that measures it.
    published : str, int, float or None
        The paper's own value.
    figure : str or None
        The figure of that notebook to look at.
    """

    id: str
    paper: int
    statement: str
    source: str
    rule: dict
    notebook: str
    published: str | float | None = None
    figure: str | None = None

    def __post_init__(self):
        rule = self.rule if isinstance(self.rule, dict) else {}
        bounds = _BOUNDS.get(rule.get("kind"), set())
        texts = (self.statement, self.source, self.notebook, rule.get("text"))
        problems = {
            "id must match [a-z0-9_-]+": not re.fullmatch("[a-z0-9_-]+", str(self.id)),
            f"paper must be one of {list(PAPERS)}": self.paper not in PAPERS,
            "statement, source, notebook and rule.text must be text": not all(
                isinstance(text, str) and text.strip() for text in texts
            ),
            "published must be text or a number": not isinstance(
                self.published, (str, int, float, type(None))
            ),
            "figure must be the name of a figure": self.figure is not None
            and not re.fullmatch(r"\w+", str(self.figure)),
            "rule must be {kind, threshold, text} with kind above or below, or "
            "{kind = 'between', low, high, text}": set(rule) != {"kind", "text"} | bounds
            or not bounds
            or not all(type(rule[bound]) in (int, float) for bound in bounds),
        }
        broken = [text for text, is_broken in problems.items() if is_broken]
        if broken:
            raise ProjectError(f"claims.toml, claim {self.id!r}: {'; '.join(broken)}")

    def verdict(self, low, high):
        """What the rule says of [low, high]: all of it keeps it, none of it does, or neither.

        Of an undefined interval, None or NaN, it says nothing: inconclusive.
        """
        if low is None or high is None or math.isnan(low) or math.isnan(high):
            return "inconclusive"
        kind = self.rule["kind"]
        if kind == "above":
            holds, fails = low > self.rule["threshold"], high <= self.rule["threshold"]
        elif kind == "below":
            holds, fails = high < self.rule["threshold"], low >= self.rule["threshold"]
        else:
            holds = self.rule["low"] <= low and high <= self.rule["high"]
            fails = high < self.rule["low"] or low > self.rule["high"]
        return "holds" if holds else "fails" if fails else "inconclusive"


def load(path):
    """Read the ledger.

    Parameters
    ----------
    path : Path
        TOML file with one table ``[[claim]]`` per claim, keys as in `Claim`.

    Returns
    -------
    dict of str to Claim
        By id, in the order of the file.

    Raises
    ------
    ProjectError
        If an entry lacks a key, has an unknown one, a wrong value or an id that is taken.
    """
    ledger = {}
    for entry in tomllib.loads(Path(path).read_text(encoding="utf-8")).get("claim", []):
        try:
            claim = Claim(**entry)
        except TypeError as error:
            raise ProjectError(f"claims.toml, claim {entry.get('id')!r}: {error}") from None
        if claim.id in ledger:
            raise ProjectError(f"claims.toml: id {claim.id!r} is used twice")
        ledger[claim.id] = claim
    return ledger


def record(claim_id, value, low, high, n, unit=""):
    """Record what was measured for a claim; the ledger's rule gives the verdict.

    Parameters
    ----------
    claim_id : str
        A claim of this notebook.
    value, low, high : float
        Estimate and its interval, ``low <= value <= high``; all equal for an exact fact. Of a
        single unit the interval may be undefined, both ends NaN: then the verdict is inconclusive.
    n : int
        Number of independent units behind the estimate (images, songs, seeds).
    unit : str
        Unit of the value, e.g. "%".

    Returns
    -------
    str
        "holds", "fails" or "inconclusive".

    Raises
    ------
    ValueError
        If the claim is not this notebook's, a number is not finite (but for an interval of one
        unit), `value` lies outside the interval or `n` is not positive.
    """
    if n != int(n) or n < 1:
        raise ValueError(f"{claim_id}: n = {n!r} must be a positive whole number")
    value, low, high = (provenance.plain(float(number)) for number in (value, low, high))
    undefined = n == 1 and low is None and high is None
    numbers = (value,) if undefined else (value, low, high)
    if not all(isinstance(number, float) for number in numbers):
        raise ValueError(
            f"{claim_id}: value {value}, low {low}, high {high} must be finite; with n = 1 low and "
            "high may both be NaN"
        )
    if not undefined and not low <= value <= high:
        raise ValueError(f"{claim_id}: value {value} lies outside its interval [{low}, {high}]")
    verdict = _claim(claim_id).verdict(low, high)
    entry = {"value": value, "low": low, "high": high, "n": int(n), "unit": unit}
    _save(claim_id, {"verdict": verdict, **entry})
    return verdict


def record_estimate(claim_id, estimate, *, unit="", missing="no case to measure it on"):
    """`record` an `intervals.Estimate`; if it is not a number, `not_run` for the reason `missing`.

    Returns
    -------
    str
        The verdict.
    """
    if not math.isfinite(estimate.value):
        return not_run(claim_id, missing)
    return record(claim_id, *estimate, unit=unit)


def not_run(claim_id, reason):
    """Record that a claim was not measured, and why (scale, data).

    Raises
    ------
    ValueError
        If the claim is not this notebook's or no reason is given.
    """
    _claim(claim_id)
    if not reason.strip():
        raise ValueError(f"{claim_id}: reason is empty; say why the claim was not measured")
    _save(claim_id, {"verdict": "not run", "reason": reason.strip()})
    return "not run"


def _claim(claim_id):
    run = provenance.current()
    own = {
        key: claim
        for key, claim in load(Project(Path(run.root)).ledger).items()
        if run.notebook in (None, claim.notebook)
    }
    if claim_id not in own:
        raise ProjectError(f"claims.toml has no claim {claim_id!r} here; allowed: {', '.join(own)}")
    # A reader may run a cell again; in a whole run a second record is a slip of the pen.
    if run.notebook and claim_id in _records:
        raise ProjectError(f"claim {claim_id!r} is recorded twice in this run")
    return own[claim_id]


def _save(claim_id, entry):
    _records[claim_id] = entry
    run = provenance.current()
    content = {**provenance.stamp(run), "claims": dict(sorted(_records.items()))}
    provenance.write(f"{run.output}/claims.json", (provenance.dumps(content) + "\n").encode())


def table(notebook=None):
    """The claims of a notebook and what this process recorded for them, as a table.

    Parameters
    ----------
    notebook : str or None
        Name of the notebook; None is the running one, or all recorded claims interactively.

    Returns
    -------
    IPython.display.Markdown
    """
    run = provenance.current()
    notebook = notebook or run.notebook
    claims = load(Project(Path(run.root)).ledger).values()
    rows = [c for c in claims if (c.notebook == notebook if notebook else c.id in _records)]
    return Markdown(_HEADER + "".join(_row(claim, _records.get(claim.id)) for claim in rows))


def _row(claim, found, links=()):
    published = "–" if claim.published is None else f"{claim.published}"
    found = found or {"reason": "no record yet"}
    if "reason" in found:
        measured, n = found["reason"], "–"
    else:
        measured, n = _interval(found), f"{found['n']}"
    cells = (
        f"`{claim.id}` {claim.statement}",
        f"{published} ({claim.source})",
        "<br>".join(filter(None, (measured, " · ".join(links)))),
        n,
        f"**{verdict_of(claim, found)}**",
        claim.rule["text"],
    )
    return "| " + " | ".join(" ".join(c.split()).replace("|", "\\|") for c in cells) + " |\n"


def _interval(found):
    unit = f" {found['unit']}" if found["unit"] else ""
    if found["low"] is None:
        return f"{found['value']:.4g}{unit} [undefined]"
    value, low, high = (f"{found[key]:.4g}" for key in ("value", "low", "high"))
    return f"{value}{unit}" if low == high else f"{value}{unit} [{low}, {high}]"


def _links(claim):
    """From `CLAIMS.md` to where the claim was measured."""
    name = claim.notebook
    yield f"[notebook {name.split('_')[0]}](../notebooks/{name}.ipynb)"
    if claim.figure:
        yield f"[{claim.figure}]({name}/{claim.figure}.png)"


def verdict_of(claim, found):
    """The verdict of a claim, one of `VERDICTS`, by its record or None.

    It follows from the recorded numbers, not from the recorded word: today's rule decides.
    """
    return claim.verdict(found["low"], found["high"]) if "value" in (found or {}) else "not run"


def results(project):
    """Every claim of the ledger with what the last runs recorded for it under `figures/`.

    Returns
    -------
    dict of str to (Claim, dict or None)
        By id, in the order of the ledger; None where there is no record.

    Raises
    ------
    ProjectError
        If the ledger is not well-formed, or names a figure that its notebook does not draw.
    """
    ledger = load(project.ledger)
    files = {
        name: provenance.read_json(project.figures("default", name) / "claims.json")
        for name in {claim.notebook for claim in ledger.values()}
    }
    drawn = {name: figure_names(project.read(name)) for name in project.names()}
    for claim in ledger.values():
        allowed = drawn.get(claim.notebook, [claim.figure])
        if claim.figure and claim.figure not in allowed:
            raise ProjectError(
                f"claims.toml, claim {claim.id!r}: {claim.notebook} draws no figure "
                f"{claim.figure!r}; allowed: {', '.join(allowed) or 'none'}"
            )
    return {
        key: (claim, (files[claim.notebook] or {"claims": {}})["claims"].get(key))
        for key, claim in ledger.items()
    }


def summary(project):
    """Text of `CLAIMS.md`: counts by verdict, then one table per paper.

    Parameters
    ----------
    project : Project
        Its ledger and the records under `figures/` are read.

    Returns
    -------
    str
        Markdown; equal inputs give equal text.
    """
    found = results(project)
    counts = Counter(verdict_of(*result) for result in found.values())
    text = "# The claims of the four papers, and what was measured\n\n"
    text += "Generated by `make claims`; the verdict follows from the interval and the rule.\n\n"
    text += "| verdict | claims |\n| :-- | --: |\n"
    text += "".join(f"| {verdict} | {counts[verdict]} |\n" for verdict in VERDICTS)
    stale = [name for name in project.names() if not _is_fresh(project, name)]
    if stale:
        text += f"\nOlder than the code (run `make figures`): {', '.join(stale)}.\n"
    known = project.names()
    for paper, title in PAPERS.items():
        rows = [result for result in found.values() if result[0].paper == paper]
        names = sorted({claim.notebook for claim, _ in rows})
        links = ", ".join(f"[{n}](../notebooks/{n}.ipynb)" if n in known else n for n in names)
        text += f"\n## {title}\n\n" if paper == 5 else f"\n## Paper {paper}: {title}\n\n"
        text += f"Measured in {links}.\n\n{_HEADER}" if rows else "No claim is listed.\n"
        for claim, record in rows:
            text += _row(claim, record, _links(claim) if claim.notebook in known else ())
    return text


def _is_fresh(project, name):
    """Whether the records of a notebook were made by today's code; true where there are none."""
    record = provenance.read_json(project.figures("default", name) / "claims.json")
    return record is None or provenance.is_current(record["hashes"], project, name)


def generate(name, text_of, project=None):
    """Write a text file of the project, of this name.

    Parameters
    ----------
    name : str
        Path from the project's root.
    text_of : callable
        ``text_of(project) -> str``.
    project : Project, optional
        By default the one this package is part of.

    Returns
    -------
    int
        0, or 2 if something that the text is made of is not well-formed; nothing is written then.
    """
    project = project or Project(provenance.ROOT)
    try:
        provenance.write(project.root / name, text_of(project).encode())
    except ProjectError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"wrote {name}")
    return 0


def main(project=None):
    """Write `figures/CLAIMS.md`; returns 0, or 2 if the ledger is not well-formed."""
    return generate("figures/CLAIMS.md", summary, project)


if __name__ == "__main__":
    sys.exit(main())
