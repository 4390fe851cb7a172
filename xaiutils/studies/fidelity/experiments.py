"""Experiments of notebook 03 on real classifiers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd

from xaiutils import baselines, fidelity, imputation, intervals
from xaiutils.fidelity_curves import Curves, area
from xaiutils.studies.fidelity.maps import SIGNED

IMAGENET_MEAN = (0.485, 0.456, 0.406)
DIGITS_MEAN = (0.1307,)


def fillers(x, mean, seed: int) -> dict:
    """What hidden pixels can become; the blur is that of the spec for 224 pixels, scaled."""
    sigma = 14 * x.shape[-1] / 224
    return {
        "dataset mean": baselines.channel_mean(x, mean),
        "black": baselines.black(x),
        "image mean": baselines.image_mean(x),
        "blur": baselines.blur(x, sigma),
        "uniform noise": baselines.uniform_noise(x, seed),
        "imputed": imputation.NoisyLinear(seed=seed),
    }


def by_filler(model, x, y, maps, choices: Mapping, *, steps: int, seed: int) -> dict:
    """Curves of the same maps under each filler: filler -> method -> Curves."""
    return {
        name: fidelity.curves(model, x, y, maps, filler=filler, steps=steps, seed=seed)
        for name, filler in choices.items()
    }


def thinned(curves: Mapping[str, Curves], every: int) -> dict[str, Curves]:
    """The same curves on a coarser grid: every so many steps, both ends kept.

    Raises
    ------
    ValueError
        If `every` does not divide the number of steps.
    """
    steps = len(next(iter(curves.values())).fractions) - 1
    if steps % every:
        raise ValueError(f"every must divide the {steps} steps, got {every}")
    fields = ("correct", "probability_label", "probability_predicted", "logit_label",
              "logit_predicted")  # fmt: skip
    return {
        name: replace(
            one,
            fractions=one.fractions[::every],
            **{field: getattr(one, field)[..., ::every] for field in fields},
        )
        for name, one in curves.items()
    }


def points(curves: Mapping[str, Curves]) -> pd.DataFrame:
    """Accuracy by method, order and share hidden with Wilson intervals.

    Returns
    -------
    DataFrame with columns method, order, fraction, value, low, high, n
    """
    tables = []
    for name, one in curves.items():
        for order in one.orders:
            right = one.curve(order)
            low, high = intervals.wilson(right.sum(axis=0), len(right))
            tables.append(
                pd.DataFrame(
                    {"method": name, "order": order, "fraction": one.fractions,
                     "value": right.mean(axis=0), "low": low, "high": high, "n": len(right)}
                )
            )  # fmt: skip
    return pd.concat(tables, ignore_index=True)


def pick(table: pd.DataFrame, quantity: str, methods: Sequence[str] | None = None) -> pd.DataFrame:
    """Rows of one quantity of `fidelity.summary`, in the order of `methods`."""
    rows = table[table["quantity"] == quantity].set_index("method")
    return rows.loc[list(methods) if methods is not None else rows.index].reset_index()


def signs(tables: Mapping[str, pd.DataFrame], methods: Sequence[str]) -> pd.DataFrame:
    """F of absolute and signed maps: a summary's columns with data, method and kind."""
    parts = []
    for data, table in tables.items():
        for kind, end in (("absolute", ""), ("signed", SIGNED)):
            rows = pick(table, "F", [m + end for m in methods])
            parts.append(rows.assign(data=data, kind=kind, method=list(methods)))
    return pd.concat(parts, ignore_index=True)


def estimate(table: pd.DataFrame, method: str, quantity: str) -> intervals.Estimate:
    """One entry of `fidelity.summary`."""
    return as_estimate(table[(table["method"] == method) & (table["quantity"] == quantity)].iloc[0])


def as_estimate(row) -> intervals.Estimate:
    """A row with entries value, low, high and n as an estimate."""
    return intervals.Estimate(row["value"], row["low"], row["high"], int(row["n"]))


def overview(table: pd.DataFrame, quantities: Sequence[str]) -> pd.DataFrame:
    """Methods by quantities as text "value [low, high]"."""
    part = table[table["quantity"].isin(quantities)]
    cells = [
        intervals.Estimate(row.value, row.low, row.high, row.n).text() for row in part.itertuples()
    ]
    wide = part.assign(cell=cells).pivot(index="method", columns="quantity", values="cell")
    return wide.loc[list(dict.fromkeys(part["method"])), list(quantities)]


def smallest(estimates: Sequence[intervals.Estimate]) -> intervals.Estimate:
    """The estimate with the lowest lower end: a claim about all of them stands or falls with it.

    One whose interval is undefined, NaN, decides over all others.
    """
    return min(estimates, key=lambda e: -np.inf if np.isnan(e.low) else e.low)


def best_lead(curves: Mapping[str, Curves], best: str, others: Sequence[str], **options):
    """Lead of F of a method over the strongest of the others (by F), paired."""
    table = fidelity.summary({name: curves[name] for name in (best, *others)}, **options)
    rival = max(others, key=lambda name: estimate(table, name, "F").value)
    return rival, fidelity.difference(curves, best, rival, "F", **options)


def early_drop(curves: Mapping[str, Curves], methods: Sequence[str], share: float, seed: int = 0):
    """Accuracy lost when the least important `share` is hidden: mean over methods, paired."""
    drops = []
    for name in methods:
        step = int(np.argmin(np.abs(curves[name].fractions - share)))
        drops.append(curves[name].drop("lif")[:, step])
    return intervals.mean(np.mean(drops, axis=0), seed=seed)


def swapped(model, x, y, maps, *, filler, steps: int, seed: int) -> dict[str, Curves]:
    """Mask-swap control: image i is hidden in the order of the next image's map, MIF only."""
    rolled = {name: np.roll(values, 1, axis=0) for name, values in maps.items()}
    return fidelity.curves(
        model, x, y, rolled, filler=filler, steps=steps, seed=seed, orders=("mif",)
    )


def artifact_estimates(own: Mapping[str, Curves], swap: Mapping[str, Curves], seed: int = 0):
    """Three estimates of the artifact's area: own LIF, random ranking, mask swap.

    Returns
    -------
    DataFrame with columns method, curve, value, low, high, n
    """

    def lost(curves: Curves, order):
        return area(curves.drop(order), curves.fractions)

    rows = []
    for name in swap:
        areas = {
            "own LIF": lost(own[name], "lif"),
            "random": (lost(own["random"], "mif") + lost(own["random"], "lif")) / 2,
            "mask swap": lost(swap[name], "mif"),
            "MIF drop D": lost(own[name], "mif"),
        }
        rows += [(name, curve, *intervals.mean(v, seed=seed)) for curve, v in areas.items()]
    return pd.DataFrame(rows, columns=["method", "curve", "value", "low", "high", "n"])


def paired_widths(curves: Curves, seed: int = 0, draws: int = 2000) -> intervals.Estimate:
    """Half width of an independent normal interval of F over that of a paired one.

    1 would mean that pairing does not matter. Its own interval is a bootstrap over images.
    """
    areas = np.stack([area(curves.curve(o), curves.fractions) for o in ("mif", "lif")])

    def ratio(mif, lif):
        with np.errstate(invalid="ignore", divide="ignore"):  # a draw may hold one image only
            return np.sqrt(mif.var(-1) + lif.var(-1)) / (lif - mif).std(-1)

    n = areas.shape[1]
    rows = np.random.default_rng(seed).integers(n, size=(draws, n))
    drawn = ratio(areas[0][rows], areas[1][rows])
    return intervals.Estimate(float(ratio(*areas)), *intervals.percentiles(drawn, n), n)


def between_models(
    first: Mapping[str, Curves], second: Mapping[str, Curves], methods, quantity: str, seed: int = 0
):
    """Paired difference second - first, over the same images, of the mean over methods.

    `quantity` is "F" or "auc_lif". Images are paired, the models' predictions need not agree.
    """

    def found(curves):
        lif = np.mean([curves[m].curve("lif") for m in methods], axis=0)
        mif = np.mean([curves[m].curve("mif") for m in methods], axis=0)
        values = lif - mif if quantity == "F" else lif
        return area(values, curves[methods[0]].fractions)

    if quantity not in ("F", "auc_lif"):
        raise ValueError(f'quantity must be "F" or "auc_lif", got {quantity!r}')
    return intervals.mean(found(second) - found(first), seed=seed)


def relative_area(curves: Curves, seed: int = 0) -> intervals.Estimate:
    """|F| over the clean accuracy a0; the interval is that of F / a0, folded at zero."""
    mif, lif = (curves.curve(order).astype(float) for order in ("mif", "lif"))
    counts = intervals.resamples(len(mif), seed=seed)
    gap, clean = area(lif - mif, curves.fractions), mif[:, 0]
    low, high = intervals.percentiles((counts @ gap) / (counts @ clean), len(mif))
    folded = np.sort(np.abs([low, high]))
    folded[0] = 0.0 if low <= 0 <= high else folded[0]
    return intervals.Estimate(abs(gap.mean() / clean.mean()), *map(float, folded), len(mif))


def filler_table(tables: Mapping[str, Mapping[str, Curves]], seed: int = 0) -> pd.DataFrame:
    """`fidelity.summary` of each filler, with a column filler."""
    return pd.concat(
        fidelity.summary(curves, seed=seed).assign(filler=name) for name, curves in tables.items()
    )


def filler_spread(tables: Mapping[str, Mapping[str, Curves]], seed: int = 0):
    """Artifact share, pooled over methods, of the filler with the largest minus the smallest.

    Returns
    -------
    (str, str, Estimate)
        The two fillers, chosen by their values, and the paired difference.
    """
    shares = {}
    for name, curves in tables.items():
        n = len(next(iter(curves.values())).predicted)
        counts = np.vstack([np.ones(n), intervals.resamples(n, seed=seed)])
        areas = np.zeros((2, len(counts)))
        for one in curves.values():
            for row, order in enumerate(("lif", "mif")):
                areas[row] += counts @ area(one.drop(order), one.fractions)
        shares[name] = np.divide(*areas, out=np.full(len(counts), np.nan), where=areas[1] != 0)
    most = max(shares, key=lambda name: shares[name][0])
    least = min(shares, key=lambda name: shares[name][0])
    gap = shares[most] - shares[least]
    return most, least, intervals.Estimate(gap[0], *intervals.percentiles(gap[1:], n), n)


def beside(table: pd.DataFrame, crops: pd.DataFrame) -> pd.DataFrame:
    """F of each method and its crop score s: columns method, F, F_low, ..., s_low, s_high."""
    left = pick(table, "F").set_index("method")[["value", "low", "high"]]
    right = crops[crops["quantity"] == "s"].set_index("method")[["value", "low", "high"]]
    left.columns, right.columns = ["F", "F_low", "F_high"], ["s", "s_low", "s_high"]
    return left.join(right).reset_index()


def dial_gap(dial: pd.DataFrame) -> float:
    """|P - true artifact| of the evidence map at the largest dial."""
    rows = dial[(dial["method"] == "evidence") & (dial["dial"] == dial["dial"].max())]
    value = rows.set_index("quantity")["value"]
    return abs(value["P"] - value["artifact_mif"])
