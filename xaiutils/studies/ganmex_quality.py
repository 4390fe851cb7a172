"""How good a baseline is: does it flip, is it near, is it realistic, is it the right change?"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from scipy.special import softmax

from xaiutils import intervals
from xaiutils.classifiers import small
from xaiutils.studies import ganmex_models as models
from xaiutils.studies.ganmex_cases import (
    Case,
    choose,
    exact,
    generated,
    logits,
    nearest,
    predicted,
)

# One value per image; see `measure`.
MEASURES = ("flips", "p_target", "twin", "transfer", "all judges", "L1", "L2", "to nearest")


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
    search, truth, kept = nearest(case, norm="l2"), exact(case), _nuisance(case)
    tables = []
    for name, b in images.items():
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
            "to nearest": search.find(b, case.target)[1],
            "to exact": off,
            "other kept": kept(b),
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


def summary(table: pd.DataFrame, by: str = "baseline", seed: int = 0) -> pd.DataFrame:
    """Means with intervals: rows by x quantity, columns value, low, high, n.

    With a column "run", runs are drawn first and images within them.
    """
    rows = []
    for name, part in table.groupby(by, sort=False):
        groups = part.get("run")
        for quantity in [c for c in part if c not in (by, "image", "run", "problem")]:
            values = part[quantity].to_numpy(float)
            known = ~np.isnan(values)
            units = None if groups is None else groups.to_numpy()[known]
            found = intervals.nested(values[known], units, seed=seed)
            rows.append({by: name, "quantity": quantity, **found._asdict()})
    return pd.DataFrame(rows)


def difference(table: pd.DataFrame, quantity: str, first: str, second: str, seed: int = 0):
    """Mean of `quantity`, first minus second baseline, paired image by image."""
    keys = [c for c in ("run", "image") if c in table]
    wide = table.pivot(index=keys, columns="baseline", values=quantity).astype(float)
    change = (wide[first] - wide[second]).dropna()
    units = change.index.get_level_values("run") if "run" in keys else None
    return intervals.nested(change.to_numpy(), units, seed=seed)


def repeated(
    problem: str, n: int, variants=("GANMEX",), *, seeds=models.SEEDS, more=None
) -> pd.DataFrame:
    """`measure` over trainings: one classifier, generators and test images per seed.

    Parameters
    ----------
    variants : sequence of str
        Of `ganmex_models.VARIANTS`.
    more : callable, optional
        From a case to further baselines by name.
    """
    tables = []
    for seed in seeds:
        trial = choose(models.Run(problem, models.REPEATED[problem], seed=seed), n, seed=seed)
        images = {name: generated(trial, name) for name in variants}
        images |= more(trial) if more else {}
        tables.append(measure(trial, images).assign(run=seed))
    return pd.concat(tables, ignore_index=True)
