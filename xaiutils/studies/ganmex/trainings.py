"""Baselines over several trainings, each of a classifier and of a generator against it.

A training is the unit: values are means over test images, intervals Student's over trainings.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd

from xaiutils import intervals, sanity
from xaiutils.companion import over_seeds
from xaiutils.intervals import Estimate
from xaiutils.studies.ganmex import maps, models
from xaiutils.studies.ganmex.cases import baselines_of, choose, exact, generated, nearest_samples
from xaiutils.studies.ganmex.quality import measure, weakest
from xaiutils.studies.ganmex.quality import summary as summary_over_images

RIVALS = ("zero", "MDTS")
SHARES = ("flips", "transfer", "other kept")  # of yes and no
QUANTITIES = ("flips", "transfer", "L1", "to exact", "other kept", "in mask")


def measured(problem: str, n: int, *, seeds: Sequence[int] = models.SEEDS) -> pd.DataFrame:
    """Means over `n` test images: rows (baseline, run), columns `QUANTITIES`.

    "in mask" is the share of integrated gradients on what the exact counterfactual changes, for
    scenes where that is the digit. GANMEX with the authors' weights has the first run only.
    """
    rows = []
    for seed in seeds:
        case = choose(models.Run(problem, _pixels(problem), seed=seed), n, seed=seed)
        images = baselines_of(case, [*RIVALS, "exact"])
        images[models.CONSTRAINED] = generated(case, models.CONSTRAINED)
        if seed == 0:
            images["GANMEX"] = generated(case)
        table = measure(case, images).assign(run=seed)
        truth = exact(case)
        table["in mask"] = np.nan
        if truth is not None:
            for name, b in images.items():
                share = sanity.localisation(maps.explain(case, b, "IG"), truth.mask)
                if problem == "scenes":
                    share = np.where(truth.is_object, share, np.nan)
                table.loc[table["baseline"] == name, "in mask"] = share
        rows.append(table)
    return means(pd.concat(rows, ignore_index=True))


def means(table: pd.DataFrame) -> pd.DataFrame:
    """Means over images: rows (baseline, run), columns "images" and those of `QUANTITIES`.

    `table` is of `quality.measure`, with a column "run"; quantities that it lacks are left out.
    """
    quantities = [name for name in QUANTITIES if name in table]
    parts = table.groupby(["baseline", "run"], sort=False)
    found = parts[quantities].mean().astype(float).assign(images=parts.size())
    return found.reset_index()


def by_size(problem: str, n: int) -> pd.DataFrame:
    """Constrained GAN and nearest sample, given N training images: summaries over `n` test images.

    Columns problem, size (N), baseline, quantity, value, low, high, n. One training each.
    """
    case = choose(models.Run(problem, _pixels(problem)), n)
    every, rows = len(case.problem.train_images), []
    for size in (*models.sizes(problem), every):
        variant = models.CONSTRAINED if size == every else f"{models.CONSTRAINED}, {size} images"
        made = {"MDTS": nearest_samples(case, None if size == every else size)}
        made["constrained"] = generated(case, variant)
        rows.append(summary_over_images(measure(case, made)).assign(size=size))
    return pd.concat(rows, ignore_index=True).assign(problem=problem)


def _pixels(problem: str) -> int:
    return models.MAIN.get(problem, 28)


def estimate(values: Sequence[float]) -> Estimate:
    """Mean over trainings with Student's interval; undefined for a single one."""
    low, high = over_seeds.interval(values) or (np.nan, np.nan)
    return Estimate(float(np.mean(values)), low, high, len(values))


def level(table: pd.DataFrame, quantity: str, baseline: str) -> Estimate:
    """Mean of a quantity of `means`.

    Trainings that are all at 0, or all at 1, have no spread; then the interval is Wilson's over
    all images.
    """
    rows = table[(table["baseline"] == baseline) & table[quantity].notna()]
    found = estimate(rows[quantity].to_numpy())
    if quantity in SHARES and found.value in (0, 1) and len(rows) > 1:
        images = int(rows["images"].sum())
        low, high = intervals.wilson(round(found.value * images), images)
        return found._replace(low=float(low), high=float(high))
    if quantity in SHARES:  # Student's interval knows no bounds
        return found._replace(low=max(found.low, 0.0), high=min(found.high, 1.0))
    return found


def compared(
    table: pd.DataFrame,
    quantity: str,
    first: str,
    second: str,
    how: Callable[[pd.Series, pd.Series], pd.Series] = pd.Series.sub,
) -> Estimate:
    """Mean difference of two baselines of `means`, paired by training; `pd.Series.div`: ratio.

    Differences of shares that are the same in all trainings have no spread; then the interval is
    Newcombe's, put together from those of `level` (*Statistics in Medicine* 17, 1998, method 10).
    """
    wide = _by_run(table, quantity)
    found = estimate(how(wide[first], wide[second]).dropna().to_numpy())
    if quantity in SHARES and found.low == found.high and how is pd.Series.sub:
        a, b = (level(table, quantity, name) for name in (first, second))
        down = np.hypot(a.value - a.low, b.high - b.value)
        up = np.hypot(a.high - a.value, b.value - b.low)
        return found._replace(low=float(found.value - down), high=float(found.value + up))
    return found


def decide(
    tables: Sequence[pd.DataFrame], quantity: str, first: str, second: str, *, above: bool = True
) -> Estimate:
    """`quality.weakest` of the differences in each table, see `compared`."""
    return weakest([compared(table, quantity, first, second) for table in tables], above=above)


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """`level` of every quantity and baseline: columns baseline, quantity, value, low, high, n."""
    rows = []
    for baseline, part in table.groupby("baseline", sort=False):
        for quantity in part.columns.intersection(QUANTITIES):
            if part[quantity].notna().any():
                found = level(part, quantity, baseline)._asdict()
                rows.append({"baseline": baseline, "quantity": quantity} | found)
    return pd.DataFrame(rows)


def _by_run(table: pd.DataFrame, quantity: str) -> pd.DataFrame:
    return table.pivot(index="run", columns="baseline", values=quantity)
