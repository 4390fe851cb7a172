"""How good a baseline is: does it flip, is it near, is it realistic, is it the right change?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from pandas.api.types import is_numeric_dtype
from scipy.special import softmax

from xaiutils import intervals
from xaiutils.classifiers import small
from xaiutils.runtime import logits, predicted
from xaiutils.studies.ganmex import models
from xaiutils.studies.ganmex.cases import (
    Case,
    baselines_of,
    choose,
    exact,
    generated,
    nearest,
)


def measure(case: Case, images: Mapping[str, np.ndarray]) -> pd.DataFrame:
    """Qualities of baselines, one row per baseline and image.

    Columns: baseline, image (row of the case), flips (the classifier says target) and p_target;
    twin, whether a classifier of the same family from another seed does; transfer, the share of
    the judges of other families that do, and "all judges", whether all of them do; L1, mean
    absolute difference to the image, L2, its norm; "to nearest", the norm of the difference to
    the nearest training image of the target class; "to exact", mean absolute difference to the
    exact counterfactual, and "other kept", whether a judge of the factor that must not change
    finds it as it was: both NaN where the problem has no such thing.
    """
    truth, kept, tables = exact(case), _nuisance(case), []
    # One search for all: the training images are prepared for it each time.
    every = np.concatenate([*images.values()]), np.tile(case.target, len(images))
    distances = np.split(nearest(case, norm="l2").find(*every)[1], len(images))
    for (name, b), to_nearest in zip(images.items(), distances, strict=True):
        out = logits(case.model, b)
        says = np.array([predicted(judge, b) == case.target for judge in case.judges.values()])
        change = (b - case.images).reshape(len(b), -1)
        off = np.nan if truth is None else np.abs(b - truth.images).mean((1, 2, 3))
        columns = {
            "baseline": name,
            "image": np.arange(len(b)),
            "flips": out.argmax(1) == case.target,
            "p_target": softmax(out, axis=1)[np.arange(len(b)), case.target],
            "twin": predicted(case.twin, b) == case.target,
            "transfer": says.mean(0),
            "all judges": says.all(0),
            "L1": np.abs(change).mean(1),
            "L2": np.linalg.norm(change, axis=1),
            "to nearest": to_nearest,
            "to exact": off,
            # Nullable, so that a yes or no stays one beside what is not known.
            "other kept": pd.array(kept(b), dtype="boolean"),
        }
        tables.append(pd.DataFrame(columns))
    return pd.concat(tables, ignore_index=True)


def _nuisance(case: Case):
    """Function from baselines to whether the other factor is judged unchanged."""
    other = {"colours": "coloured digits", "coloured digits": "colours"}.get(case.problem.name)
    if other is not None:
        judge = small.load(other, case.run.size, "pooling")
        before = predicted(judge, case.images)
        return lambda b: (predicted(judge, b) == before).astype(float)
    if case.problem.name == "scenes":  # labels are 2 * digit + scene
        step = np.where(exact(case).is_object, 1, 2)
        judge = case.judges["residual"]
        return lambda b: ((predicted(judge, b) & step) == (case.source & step)).astype(float)
    return lambda b: np.full(len(b), np.nan)


def summary(table: pd.DataFrame, by: Sequence[str] = ("baseline",), seed: int = 0) -> pd.DataFrame:
    """Means with intervals over images: columns of `by`, quantity, value, low, high, n.

    Quantities are all other columns of numbers, or of yes and no. With a column "run", runs are
    drawn first and images within them. Of the share of yes the interval is the hull of the
    bootstrap's and Wilson's over all rows: the bootstrap alone gives a share of 1 no spread.
    """
    by, rows = list(by), []
    others = table.drop(columns=[*by, "image", "run"], errors="ignore")
    quantities = [name for name in others if is_numeric_dtype(_known(others[name]))]
    for names, part in table.groupby(by, sort=False):
        for quantity in quantities:
            found = _mean(part, quantity, seed)
            rows.append(
                dict(zip(by, names, strict=True)) | {"quantity": quantity} | found._asdict()
            )
    return pd.DataFrame(rows)


def level(table: pd.DataFrame, quantity: str, name: str) -> intervals.Estimate:
    """Mean of the known values of `quantity` of the baseline `name`, as `summary` has it."""
    return _mean(table[table["baseline"] == name], quantity)


def _known(values: pd.Series) -> pd.Series:
    """Without what is unknown, and in the narrowest type: bool even where a gap had hidden it."""
    return values.dropna().infer_objects()


def _mean(table: pd.DataFrame, quantity: str, seed: int = 0) -> intervals.Estimate:
    rows = table[table[quantity].notna()]
    found = intervals.nested(_known(rows[quantity]), rows.get("run"), seed=seed)
    return found.of_share() if quantity == "transfer" else found


def difference(
    table: pd.DataFrame, quantity: str, first: str, second: str, *, by="baseline", seed: int = 0
) -> intervals.Estimate:
    """Mean of `quantity`, `first` minus `second` of the column `by`, paired image by image."""
    keys = [c for c in ("run", "image") if c in table]
    wide = table.pivot(index=keys, columns=by, values=quantity).astype(float)
    change = (wide[first] - wide[second]).dropna()
    units = change.index.get_level_values("run") if "run" in keys else None
    return intervals.nested(change, units, seed=seed)


def decide(
    tables: Sequence[pd.DataFrame],
    quantity: str,
    first: str,
    seconds: Sequence[str],
    *,
    above: bool = True,
    by: str = "baseline",
) -> intervals.Estimate:
    """`weakest` of the differences of `first` to each of `seconds` in each table."""
    pairs = [(table, second) for table in tables for second in seconds]
    found = [difference(table, quantity, first, second, by=by) for table, second in pairs]
    return weakest(found, above=above)


def weakest(estimates: Sequence[intervals.Estimate], *, above: bool = True) -> intervals.Estimate:
    """The estimate that decides whether all lie above a threshold, or all below it.

    One that could not be measured, or whose interval is undefined, NaN, decides over all others.
    """
    unknown = [found for found in estimates if np.isnan(found.low)]
    if unknown:
        return unknown[0]
    if above:
        return min(estimates, key=lambda found: found.low)
    return max(estimates, key=lambda found: found.high)


def repeated(
    problem: str, n: int, variants=("GANMEX",), *, seeds=models.SEEDS, rivals: bool = True
) -> pd.DataFrame:
    """`measure` over trainings: one classifier, generators and `n` test images per seed.

    Parameters
    ----------
    variants : sequence of str
        Of `models.VARIANTS`; each must be among the trainings with each seed.
    rivals : bool
        Measure the nearest training sample and the adversarial point as well.
    """
    tables = []
    for seed in seeds:
        case = choose(models.Run(problem, models.REPEATED[problem], seed=seed), n, seed=seed)
        images = {name: generated(case, name) for name in variants}
        if rivals:
            images |= baselines_of(case, ["MDTS", "adversarial"])
        tables.append(measure(case, images).assign(run=seed))
    return pd.concat(tables, ignore_index=True)


def over_methods(table: pd.DataFrame, methods: Sequence[str]) -> pd.DataFrame:
    """Mean over methods for each baseline and image."""
    rows = table[table["method"].isin(methods)]
    means = rows.groupby(["baseline", "image"], sort=False).mean(numeric_only=True)
    return means.reset_index()
