"""The claims of a notebook over several seeds: what does chance within a run change?"""

from collections import Counter

import numpy as np
import scipy

from xaiutils.companion import claims, provenance, results

LEVEL = 0.95
NOTE = (
    "The interval is Student's t for the mean over seeds, with one degree of freedom less than "
    "there are seeds. It holds what the seed changes, not what other images or songs would; the "
    "intervals behind the verdict of each seed do."
)


def interval(values, level=LEVEL):
    """Student's t interval of a mean.

    Parameters
    ----------
    values : sequence of float
        One or more.
    level : float in (0, 1)

    Returns
    -------
    tuple of float or None
        (low, high); None for a single value, which says nothing of its spread.
    """
    n = len(values)
    if n < 2:
        return None
    mean = np.mean(values)
    half = scipy.stats.t.ppf((1 + level) / 2, n - 1) * np.std(values, ddof=1) / np.sqrt(n)
    return float(mean - half), float(mean + half)


def summarise(claim, records):
    """One claim over seeds.

    Parameters
    ----------
    claim : claims.Claim
    records : dict of int to dict
        By seed, as `claims.record` and `claims.not_run` write them; see `claims.with_test`.

    Returns
    -------
    dict
        `values` by seed as text (None where not run), `unit`, `mean`, `low` and `high` over the
        seeds that measured it, their number `n_seeds`, `seeds_by_verdict`, and `verdict`: that of
        the rule on [low, high]; None for one seed, "not run" for none.
    """
    values = {str(seed): record.get("value") for seed, record in records.items()}
    measured = [value for value in values.values() if value is not None]
    # From the numbers: the rule as it stands now decides.
    single = Counter(claims.verdict_of(claim, record) for record in records.values())
    bounds = interval(measured)
    low, high = provenance.plain(bounds or (None, None))
    verdict = claim.verdict(low, high) if bounds else None if measured else "not run"
    if claim.test and verdict in ("holds", "fails", "inconclusive"):
        tests = {seed: record.get("test") or {} for seed, record in records.items()}
        if summarise(claim.test, tests)["verdict"] != "holds":
            verdict = results.INVALID
    return {
        "values": values,
        "unit": next((record["unit"] for record in records.values() if "unit" in record), ""),
        "mean": provenance.plain(np.mean(measured)) if measured else None,
        "low": low,
        "high": high,
        "n_seeds": len(measured),
        "seeds_by_verdict": {name: single[name] for name in claims.VERDICTS},
        "verdict": verdict,
    }


def write(project, plans, failed=()):
    """Write `claims.json` and `claims.md` beside the folders of the seeds of one notebook.

    Parameters
    ----------
    project : Project
    plans : dict of int to runner.Plan
        Finished runs of one notebook by seed; one or more.
    failed : sequence of int
        Seeds whose runs failed.

    Raises
    ------
    ProjectError
        If a results file of a seed is damaged; nothing is written then.

    Returns
    -------
    tuple of (str, Path)
        The text of `claims.md`, and its path.
    """
    first = next(iter(plans.values()))
    files = {
        seed: results.records(
            results.of_run(plan.figures, plan.name, plan.label, "run the same command again")
        )
        for seed, plan in plans.items()
    }
    own = {key: c for key, c in claims.load(project.ledger).items() if key in first.claim_ids}
    found = {
        key: summarise(claim, {s: claims.with_test(claim, records) for s, records in files.items()})
        for key, claim in own.items()
    }
    content = {
        "notebook": first.name,
        "profile": first.label,
        "parameters": {k: v for k, v in first.parameters.items() if k != "seed"},
        "hashes": first.hashes,
        "seeds": list(plans),
        "failed_seeds": list(failed),
        "level": LEVEL,
        "claims": found,
    }
    folder = first.figures.parent
    text = _markdown(first, own, found, list(plans), list(failed))
    provenance.write(folder / "claims.json", results.sealed(content))
    provenance.write(folder / "claims.md", text.encode())
    return text, folder / "claims.md"


def _markdown(plan, own, found, seeds, failed):
    text = f"# {plan.name} over {len(seeds)} seeds ({plan.label})\n\n"
    text += f"Seeds: {_list(seeds)}.\n"
    text += f"Failed, and not counted: {_list(failed)}.\n" if failed else ""
    if not own:
        return text + "\nThe ledger lists no claim of this notebook.\n"
    head = [
        "claim",
        f"mean [{LEVEL:.0%} over seeds]",
        "n",
        "verdicts of the seeds",
        "verdict over seeds",
        "holds if",
        "each seed",
    ]
    rows = [_row(claim, found[key]) for key, claim in own.items()]
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    lines = [head, ["-" * width for width in widths], *rows]
    table = (
        "| " + " | ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)) + " |\n"
        for line in lines
    )
    return f"{text}\n{''.join(table)}\n{NOTE}\n"


def _row(claim, found):
    unit = f" {found['unit']}" if found["unit"] else ""
    mean = "–" if found["mean"] is None else f"{found['mean']:.4g}{unit}"
    if found["low"] is not None:
        mean += f" [{found['low']:.4g}, {found['high']:.4g}]"
    verdicts = (f"{n} {name}" for name, n in found["seeds_by_verdict"].items() if n)
    cells = (
        claim.id,
        mean,
        str(found["n_seeds"]),
        ", ".join(verdicts),
        found["verdict"] or "– (one seed)",
        claim.rule["text"],
        _list("–" if value is None else f"{value:.4g}" for value in found["values"].values()),
    )
    return [" ".join(cell.split()).replace("|", "\\|") for cell in cells]


def _list(items):
    return ", ".join(map(str, items))
