"""Does the perfect baseline pass the tests? Baselines of known quality, put through each of them.

The exact counterfactual is what a generator of baselines aims at. A test that it does not win says
nothing about the generator.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import scipy

from xaiutils import baselines, intervals, sanity
from xaiutils.studies.ganmex import maps, quality
from xaiutils.studies.ganmex.cases import Case, baselines_of, changed, exact, generated

RIVALS = ("zero", "MDTS")  # what the exact counterfactual must beat
DOSES = ("exact", "half exact", "GANMEX", "half noise", "noise")  # the best first
FILLERS = ("mean", "blur")  # of pixels removed; nobody's baseline


def doses(case: Case, seed: int = 0) -> dict[str, np.ndarray]:
    """Baselines from the exact counterfactual over GANMEX's image to noise, by name in `DOSES`.

    Between two of these lies their mean.
    """
    best, made = exact(case).images, generated(case)
    noise = baselines.uniform_noise(case.images, seed)
    images = best, (best + made) / 2, made, (made + noise) / 2, noise
    return dict(zip(DOSES, images, strict=True))


def scores(case: Case, images: Mapping[str, np.ndarray], *, seed: int = 0) -> pd.DataFrame:
    """What each test gives each baseline: rows (test, baseline, image), column score.

    Larger is better throughout; where a test asks for little (the mask test's part of b, the
    cascade's similarity), the score is its negative. Perturbation, mask test and cascade test maps
    of integrated gradients, conversion those of DeepLIFT; "region" and "true mask" are means over
    the methods of `maps.METHODS`. Only problems with a box have a region, and of these only pairs
    that differ in the object are put to the true mask.
    """
    truth, parts = exact(case), []
    found = maps.explain_all(case, images)

    def of(method: str) -> dict[str, np.ndarray]:
        return {name: found[method, name] for name in images}

    def add(test: str, table: pd.DataFrame, quantity: str, sign: int = 1) -> None:
        part = table[["baseline", "image"]].assign(test=test, score=sign * table[quantity])
        parts.append(part[part["score"].notna()])

    removal = maps.removal(case, of("IG"), baselines_of(case, FILLERS, seed), seed=seed)
    for filler in FILLERS:
        rows = removal[removal["filler"] == filler].rename(columns={"ranking": "baseline"})
        add(f"perturbation, {filler}", rows, "aopc")
    add("conversion", maps.conversion(case, of("DeepLIFT")), "drop")
    with_ig = {("IG", name): m for name, m in of("IG").items()}
    add("mask test", maps.mask_test(case, with_ig, images), "flip size", -1)
    located = quality.over_methods(maps.localisation(found, truth), maps.METHODS)
    if truth.box is not None:
        add("region", located, "in region")
        located = located[truth.is_object[located["image"]]]
    add("true mask", located, "in mask")
    *_, (_, random) = sanity.cascade(case.model, seed=seed)  # all layers
    for name, b in images.items():
        pair = found["IG", name], maps.explain(case, b, "IG", model=random)
        similar = maps.similar(*pair, changed(case.images, b))
        rows = pd.DataFrame({"baseline": name, "image": np.arange(len(b))} | similar)
        for how in ("signed", "within"):
            add(f"cascade, {how}", rows, how, -1)
    return pd.concat(parts, ignore_index=True)


def effects(table: pd.DataFrame) -> pd.DataFrame:
    """How clearly the exact counterfactual wins each test: rows (test, rival), value, low, high, n.

    The mean over images of its score minus the rival's, in standard deviations of that difference;
    NaN where the difference is the same in all images, but 0 where it is none.
    """
    rows = []
    for test, part in table.groupby("test", sort=False):
        wide = part.pivot(index="image", columns="baseline", values="score")
        for rival in wide.columns.drop("exact"):
            gap = (wide["exact"] - wide[rival]).dropna()
            found, spread = intervals.mean(gap), gap.std()
            size = spread if spread > 0 else np.nan if gap.any() else 1.0
            values = (number / size for number in (found.value, found.low, found.high))
            row = {"test": test, "rival": rival, "n": found.n}
            rows.append(row | dict(zip(("value", "low", "high"), values, strict=True)))
    return pd.DataFrame(rows)


def ranks(table: pd.DataFrame) -> pd.DataFrame:
    """Mean place of each dose among the five in each test: rows (test, baseline), value, ...

    1 is the best score of an image; equal scores share their places.
    """
    rows = []
    for test, wide in _by_dose(table):
        places = wide.rank(axis=1, ascending=False)
        for name in DOSES:
            found = intervals.mean(places[name])
            rows.append({"test": test, "baseline": name} | found._asdict())
    return pd.DataFrame(rows)


def order(table: pd.DataFrame) -> dict[str, intervals.Estimate]:
    """Whether each test orders the doses as they are, by test.

    Mean over images of Kendall's tau-b between quality and score: 1 as they are, 0 unrelated; an
    image whose scores are all equal counts 0.
    """
    known, found = -np.arange(len(DOSES)), {}
    for test, wide in _by_dose(table):
        taus = [scipy.stats.kendalltau(known, row).statistic for row in wide.to_numpy()]
        found[test] = intervals.mean(np.nan_to_num(taus))
    return found


def _by_dose(table: pd.DataFrame):
    """Name and scores (image, dose) of each test, of the images that have all."""
    for test, part in table.groupby("test", sort=False):
        wide = part.pivot(index="image", columns="baseline", values="score")
        yield test, wide[list(DOSES)].dropna()


def wins(
    tables: Sequence[pd.DataFrame], tests: Sequence[str], rivals: Sequence[str] = RIVALS
) -> intervals.Estimate:
    """Mean score of the exact counterfactual minus a rival's: the least certain of all of them.

    `tables` are of `scores`; one that lacks a test is left out of it.
    """
    parts = [rows for t in tables for name in tests if len(rows := t[t["test"] == name])]
    return quality.decide(parts, "score", "exact", rivals)


def own_filler(
    case: Case, images: Mapping[str, np.ndarray], *, seed: int = 0
) -> list[intervals.Estimate]:
    """Perturbation with each baseline as its own filler: exact minus each of `RIVALS`.

    See `maps.own_share`.
    """
    used = {name: images[name] for name in ("exact", *RIVALS)}
    rankings = {name: maps.explain(case, b, "IG") for name, b in used.items()}
    table = maps.removal(case, rankings, used, seed=seed)
    return [maps.own_share(table, "exact", rival) for rival in RIVALS]


def farthest(estimates: Sequence[intervals.Estimate]) -> intervals.Estimate:
    """The one whose interval reaches farthest from 0: it decides whether all lie close to it.

    One whose interval is undefined, NaN, decides over all others.
    """
    unknown = [found for found in estimates if np.isnan(found.low)]
    if unknown:
        return unknown[0]
    return max(estimates, key=lambda found: max(-found.low, found.high))
