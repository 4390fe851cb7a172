"""The claims of the papers: what a notebook measures for them, and the verdict the rule gives.

`xaiutils.companion.ledger` sums up the records of all notebooks.
"""

import math
import re
from dataclasses import dataclass, replace
from pathlib import Path

from IPython import get_ipython
from IPython.display import Markdown

from xaiutils.companion import provenance, results
from xaiutils.companion.notebooks import Project, ProjectError, is_figure_name, read_toml

VERDICTS = results.VERDICTS
PAPERS = {
    1: "On the Veracity of Local, Model-agnostic Explanations in Audio Classification",
    2: "What does LIME really see in images?",
    3: "Fidelity of Interpretability Methods and Perturbation Artifacts in Neural Networks",
    4: "GANMEX: One-vs-One Attributions using GAN-based Model Explainability",
    5: "Across the four papers (this companion)",
}
_BOUNDS = {"above": {"threshold"}, "below": {"threshold"}, "between": {"low", "high"}}
HEADER = """\
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
    test : Claim or None
        The claim that what measures this one is a valid test, such as that a perfect explanation
        passes it; of the same notebook, and without a test of its own. Unless it holds, this claim
        gets no other verdict than "test not valid".
    """

    id: str
    paper: int
    statement: str
    source: str
    rule: dict
    notebook: str
    published: str | float | None = None
    figure: str | None = None
    test: "Claim | None" = None

    def __post_init__(self):
        rule = self.rule if isinstance(self.rule, dict) else {}
        bounds = _BOUNDS.get(str(rule.get("kind")), set())
        texts = (self.statement, self.source, self.notebook, rule.get("text"))
        is_rule = set(rule) == {"kind", "text"} | bounds and bool(bounds)
        problems = {
            "id must match [a-z0-9_-]+": not re.fullmatch("[a-z0-9_-]+", _text(self.id)),
            f"paper must be one of {list(PAPERS)}": type(self.paper) is not int
            or self.paper not in PAPERS,
            "statement, source, notebook and rule.text must be text": not all(
                _text(text).strip() for text in texts
            ),
            "published must be text or a finite number": not (
                self.published is None or isinstance(self.published, str) or _finite(self.published)
            ),
            "figure must be the name of a figure": self.figure is not None
            and not is_figure_name(self.figure),
            "rule must be {kind, threshold, text} with kind above or below, or "
            "{kind = 'between', low, high, text}": not is_rule,
            f"the bounds of the rule must be finite numbers, low at most high, not {rule}": is_rule
            and not (
                all(_finite(rule[bound]) for bound in bounds)
                and rule.get("low", 0) <= rule.get("high", 0)
            ),
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


def _text(value):
    return value if isinstance(value, str) else ""


def _finite(value):
    try:
        return type(value) in (int, float) and math.isfinite(value)
    except OverflowError:  # an integer larger than any float
        return False


def load(path):
    """Read the ledger.

    Parameters
    ----------
    path : Path
        TOML file with one table ``[[claim]]`` per claim, keys as in `Claim`; it lies beside the
        notebooks.

    Returns
    -------
    dict of str to Claim
        By id, in the order of the file.

    Raises
    ------
    ProjectError
        If the file is damaged or holds anything else, or an entry lacks a key, has an unknown
        one, a wrong value, an id that is taken or a notebook that does not exist.
    """
    path = Path(path)
    tables = read_toml(path)
    if unknown := sorted(set(tables) - {"claim"}):
        raise ProjectError(f"claims.toml: {', '.join(unknown)} is not allowed; allowed: [[claim]]")
    entries = tables.get("claim", [])
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise ProjectError("claims.toml: claim must be a list of tables, each headed [[claim]]")
    known = sorted(notebook.stem for notebook in path.parent.glob("*.ipynb"))
    ledger, tests = {}, {}
    for entry in entries:
        try:
            claim = Claim(**{key: value for key, value in entry.items() if key != "test"})
        except TypeError as error:
            raise ProjectError(f"claims.toml, claim {entry.get('id')!r}: {error}") from None
        if claim.id in ledger:
            raise ProjectError(f"claims.toml: id {claim.id!r} is used twice")
        ledger[claim.id] = claim
        if "test" in entry:
            tests[claim.id] = entry["test"]
    for key, test in tests.items():
        others = [c.id for c in ledger.values() if c.notebook == ledger[key].notebook]
        allowed = [other for other in others if other not in tests]
        if test not in allowed:
            raise ProjectError(
                f"claims.toml, claim {key!r}: test must be a claim of the same notebook without a "
                f"test of its own, got {test!r}; allowed: {', '.join(allowed) or 'none'}"
            )
    ledger |= {key: replace(ledger[key], test=ledger[test]) for key, test in tests.items()}
    for claim in ledger.values():
        if claim.notebook not in known:
            raise ProjectError(
                f"claims.toml, claim {claim.id!r}: no notebook {claim.notebook!r}; "
                f"allowed: {', '.join(known) or 'none'}"
            )
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
        "holds", "fails", "inconclusive" or "test not valid".

    Raises
    ------
    ValueError
        If the claim is not this notebook's, a number is not finite (but for an interval of one
        unit), `value` lies outside the interval, `n` is not positive, or the claim that its test
        is valid was not recorded before.
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
    entry = {"value": value, "low": low, "high": high, "n": int(n), "unit": unit}
    claim = _claim(claim_id)
    if claim.test and claim.test.id not in _records:
        raise ValueError(
            f"{claim_id}: record {claim.test.id} first, which says if its test is valid"
        )
    verdict = verdict_of(claim, with_test(claim, _records | {claim_id: entry}))
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
    shell = get_ipython()
    # The cells run so far with this one, which is the number of the code cell in a whole run.
    # `execution_count` is one more than this in some versions of IPython.
    cell = {"cell": len(shell.history_manager.input_hist_parsed) - 1} if shell else {}
    _records[claim_id] = entry | cell
    run = provenance.current()
    content = {**provenance.stamp(run), "claims": dict(sorted(_records.items()))}
    provenance.write(f"{run.output}/claims.json", results.sealed(content))


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
    return Markdown(HEADER + "".join(row(claim, with_test(claim, _records)) for claim in rows))


def row(claim, found, links=()):
    """One line of the table of claims, by the record `found` or None, with links in Markdown."""
    published = "–" if claim.published is None else f"{claim.published}"
    found = found or {"reason": "no record yet"}
    rule = claim.rule["text"] + (f"; tested only if `{claim.test.id}` holds" if claim.test else "")
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
        rule,
    )
    return "| " + " | ".join(" ".join(c.split()).replace("|", "\\|") for c in cells) + " |\n"


def _interval(found):
    unit = f" {found['unit']}" if found["unit"] else ""
    if found["low"] is None:
        return f"{found['value']:.4g}{unit} [undefined]"
    value, low, high = (f"{found[key]:.4g}" for key in ("value", "low", "high"))
    return f"{value}{unit}" if low == high else f"{value}{unit} [{low}, {high}]"


def with_test(claim, records):
    """The record of a claim, or None, with that of the claim that its test is valid.

    Parameters
    ----------
    claim : Claim
    records : mapping of str to dict
        By id.
    """
    found = records.get(claim.id)
    return found | {"test": records.get(claim.test.id)} if found and claim.test else found


def verdict_of(claim, found):
    """The verdict of a claim, one of `VERDICTS`, by its record (see `with_test`) or None.

    It follows from the recorded numbers, not from the recorded word: today's rule decides.
    """
    if "value" not in (found or {}):
        return "not run"
    if claim.test and verdict_of(claim.test, found.get("test")) != "holds":
        return results.INVALID
    # Without an interval no rule decides.
    return claim.verdict(
        *(math.nan if found[end] is None else found[end] for end in ("low", "high"))
    )
