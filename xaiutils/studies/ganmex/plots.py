"""Plots of notebook 04; its pictures and maps are in `pictures`.

Tables of estimates have columns value, low, high and n, as `quality.summary` makes them;
further columns are named with each function. Rows without a value (NaN) are left out.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, NullLocator, StrMethodFormatter

from xaiutils.companion.drawing import dots
from xaiutils.companion.figures import STYLES, WIDE
from xaiutils.data import problems
from xaiutils.studies.ganmex.pictures import CHARACTER

# Yellow is too faint here; crosses look the same hollow.
_MARKS = [
    {**style, "fillstyle": fill}
    for fill, count in (("full", 7), ("none", 5), ("left", 5))
    for style in STYLES[:count]
]
_DATA_SETS = tuple(problems.NAMES)
_WORDS = {
    "flips": "share taken for the target",
    "transfer": "transfer: judges that say target",
    "L1": "L1: mean |x - b|",
    "to nearest": "L2 to nearest training image of target",
    "to exact": "mean difference to the exact image",
    "other kept": "share with the other factor kept",
    "in box": "share of |map| in the digit's box",
    "in region": "share of |map| where the factor lives",
    "log inverse": "log of |map| outside / inside",
    "in mask": "share of |map| on what truly changes",
    "signed": "rank correlation, signed",
    "absolute": "rank correlation, absolute",
    "within": "rank correlation within support",
    "ssim": "SSIM",
    "drop": "drop of the logit difference",
    "converted": "share converted to the target",
    "flip size": "smallest share of b that flips the class",
}


def _words(quantity: str, inches: float) -> str:
    return textwrap.fill(_WORDS.get(quantity, quantity), max(8, int(inches / CHARACTER)))


def _names(table: pd.DataFrame, column: str) -> list:
    return list(dict.fromkeys(table[column]))


def _of(table: pd.DataFrame, quantity: str) -> pd.DataFrame:
    """Known rows of one quantity."""
    rows = table[(table["quantity"] == quantity) & table["value"].notna()]
    if rows.empty:
        known = _names(table, "quantity")
        raise ValueError(f"quantity {quantity!r} has no value in the table, which has {known}")
    return rows


def _n(table: pd.DataFrame) -> str:
    low, high = int(table["n"].min()), int(table["n"].max())
    return f"n = {low}" if low == high else f"n = {low} to {high}"


def _mark(name: str, index: int) -> dict:
    """Style of a name: data sets have the same one in all figures, others that of their place."""
    return _MARKS[_DATA_SETS.index(name) if name in _DATA_SETS else index]


def _dodge(index: int, count: int, width: float = 0.7) -> float:
    """Shift of one of `count` marks that share a place, places being 1 apart."""
    return min(0.2, width / count) * (index - (count - 1) / 2)


def _marks(ax, table: pd.DataFrame, row: str, rows: Sequence[str], mark: str, marks: Mapping):
    """Dots with intervals: names of column `row` down the side, `marks` (to label) of `mark`."""
    for index, (name, label) in enumerate(marks.items()):
        part = table[(table[mark] == name) & table[row].isin(rows)]
        y = [rows.index(value) + _dodge(index, len(marks)) for value in part[row]]
        dots(ax, part, y, label=label, **_mark(name, index) | {"linestyle": ""})
    ax.set(yticks=range(len(rows)), yticklabels=rows, ylim=(len(rows) - 0.5, -0.5))


def _bars(ax, x, rows: pd.DataFrame, mark: Mapping, label: str, **options):
    """Values with vertical intervals."""
    error = [rows["value"] - rows["low"], rows["high"] - rows["value"]]
    ax.errorbar(x, rows["value"], error, capsize=2, label=label, **mark | options)


def _legend(fig, axes, *, most: int, more: Sequence[Line2D] = (), **options):
    """One legend below, of what occurs in any panel, in even rows of at most `most`."""
    found = {}
    for ax in np.ravel(axes):
        found |= {label: h for h, label in zip(*ax.get_legend_handles_labels(), strict=True)}
    found |= {line.get_label(): line for line in more}
    columns = -(-len(found) // -(-len(found) // most))
    fig.legend(found.values(), found, loc="outside lower center", ncols=columns, **options)


def _panels(count: int, height: float, rows: int = 1, **options):
    return plt.subplots(rows, count, figsize=(WIDE, height), squeeze=False, **options)


def quality(
    tables: Mapping[str, pd.DataFrame], baselines: Sequence[str], quantities: Sequence[str]
):
    """Qualities (panels) of baselines (rows), by problem (marks); columns baseline, quantity."""
    fig, axes = _panels(len(quantities), 0.9 + 0.3 * len(baselines), sharey=True)
    table = pd.concat(part.assign(problem=problem) for problem, part in tables.items())
    found = [_of(table[table["baseline"].isin(baselines)], quantity) for quantity in quantities]
    drawn = pd.concat(found).groupby("problem", sort=False)
    problems = {name: f"{name} ({_n(rows)})" for name, rows in drawn}
    for ax, quantity, rows in zip(axes[0], quantities, found, strict=True):
        _marks(ax, rows, "baseline", baselines, "problem", problems)
        ax.set_xlabel(_words(quantity, (WIDE - 1) / len(quantities) - 0.1), fontsize=7)
    _legend(fig, axes, most=3)
    return fig


def _heat(ax, table: pd.DataFrame, row: str, column: str, rows: Sequence, columns: Sequence):
    """Heat map of values at (row, column), with value and interval written in each cell."""
    cells = table.set_index([row, column])
    values = cells["value"].unstack().reindex(index=rows, columns=columns)
    drawn = ax.imshow(values, cmap="viridis", aspect="auto")
    largest = np.nanmax(np.abs(values))
    digits = 1 if largest >= 10 else 2 if largest >= 0.3 else 3
    for cell in cells[["value", "low", "high"]].itertuples():
        # Adding zero rids a rounded number of the sign of -0.
        numbers = (f"{round(v, digits) + 0:.{digits}f}" for v in cell[1:4])
        ax.text(columns.index(cell.Index[1]), rows.index(cell.Index[0]),
                "{}\n[{}, {}]".format(*numbers), ha="center", va="center", fontsize=7,
                color="white" if drawn.norm(cell.value) < 0.6 else "black")  # fmt: skip
    ax.set(xticks=range(len(columns)), xticklabels=columns,
           yticks=range(len(rows)), yticklabels=rows)  # fmt: skip
    ax.grid(False)


def matrix(
    table: pd.DataFrame, rankings: Sequence[str], fillers: Sequence[str], *, what: str = "AOPC"
):
    """A mean by ranking (rows) and filler; where these have one name, the cell is framed.

    Columns ranking, filler. `what` names the mean in the title.
    """
    table = table[table["ranking"].isin(rankings) & table["filler"].isin(fillers)]
    table = table.dropna(subset="value")
    fig, ax = plt.subplots(figsize=(WIDE, 0.9 + 0.36 * len(rankings)))
    _heat(ax, table, "ranking", "filler", rankings, fillers)
    for name in set(rankings) & set(fillers):
        corner = fillers.index(name) - 0.47, rankings.index(name) - 0.45
        ax.add_patch(plt.Rectangle(corner, 0.94, 0.9, fill=False, color="#D55E00", linewidth=2))
    ax.set(xlabel="filler of the removed pixels (framed: the ranking's own baseline)",
           ylabel="ranking", title=f"{what} [95 % interval], {_n(table)}")  # fmt: skip
    return fig


def shares(
    table: pd.DataFrame,
    methods: Sequence[str],
    baselines: Sequence[str],
    quantity: str,
    *,
    chance: float | Mapping[str, float] | None = None,
):
    """One quantity by method (rows) and baseline (marks).

    Columns panel, method, baseline, quantity. `chance` is a dashed line, of all panels or by panel.
    """
    table = _of(table, quantity)
    table = table[table["method"].isin(methods) & table["baseline"].isin(baselines)]
    panels = _names(table, "panel")
    height = 1.0 + 0.14 * len(methods) * max(3, len(baselines))
    fig, axes = _panels(len(panels), height, sharey=True)
    for ax, panel in zip(axes[0], panels, strict=True):
        part = table[table["panel"] == panel]
        _marks(ax, part, "method", methods, "baseline", {b: b for b in baselines})
        level = chance.get(panel) if isinstance(chance, Mapping) else chance
        if level is not None:
            ax.axvline(level, color="0.3", linestyle="--", linewidth=0.9, label="chance")
        ax.set(xlabel=_words(quantity, (WIDE - 1) / len(panels)), title=f"{panel} ({_n(part)})")
    _legend(fig, axes, most=6)
    return fig


def cascade(table: pd.DataFrame, quantities: Sequence[str]):
    """Similarity to the original maps; columns baseline, quantity, layers (random ones)."""
    baselines = _names(table, "baseline")
    fig, axes = _panels(len(quantities), 2.7, sharey=True)
    for ax, quantity in zip(axes[0], quantities, strict=True):
        rows = _of(table, quantity)
        for index, baseline in enumerate(baselines):
            part = rows[rows["baseline"] == baseline].sort_values("layers")
            x = part["layers"] + _dodge(index, len(baselines), 0.5)
            _bars(ax, x, part, _MARKS[index], baseline)
        ax.axhline(0, color="0.4", linewidth=0.8, linestyle="-")
        words = _words(quantity, (WIDE - 1) / len(quantities))
        ax.set(xticks=sorted(set(rows["layers"])), title=f"{words}\n({_n(rows)})",
               xlabel="randomised layers")  # fmt: skip
    axes[0, 0].set_ylabel("similarity to the original map")
    _legend(fig, axes, most=5, handlelength=4)
    return fig


def conversion(table: pd.DataFrame, pairs: Sequence[str], baselines: Sequence[str]):
    """DeepLIFT's digit task by pair; columns pair, baseline, quantity ("drop", "converted")."""
    fig, axes = _panels(2, 2.8)
    for ax, quantity in zip(axes[0], ("drop", "converted"), strict=True):
        rows = _of(table, quantity)
        rows = rows[rows["pair"].isin(pairs)]
        for index, baseline in enumerate(baselines):
            part = rows[rows["baseline"] == baseline]
            x = [pairs.index(p) + _dodge(index, len(baselines)) for p in part["pair"]]
            _bars(ax, x, part, _MARKS[index], baseline, linestyle="")
        ax.set(xticks=range(len(pairs)), xticklabels=pairs, xlim=(-0.5, len(pairs) - 0.5),
               ylabel=_WORDS[quantity], title=f"{_n(rows)} per pair")  # fmt: skip
        ax.axhline(0, color="0.4", linewidth=0.8, linestyle="-")
    _legend(fig, axes, most=6)
    return fig


def effects(tables: Mapping[str, pd.DataFrame], rivals: Sequence[str]):
    """By how much the exact counterfactual wins each test (rows) against rivals (marks).

    `tables` by problem, a panel each, with columns test, rival.
    """
    tests = list(dict.fromkeys(test for table in tables.values() for test in table["test"]))
    fig, axes = _panels(len(tables), 1.2 + 0.3 * len(tests), sharey=True, sharex=True)
    for ax, (problem, table) in zip(axes[0], tables.items(), strict=True):
        rows = table[table["rival"].isin(rivals) & table["value"].notna()]
        _marks(ax, rows, "test", tests, "rival", {name: f"against {name}" for name in rivals})
        ax.axvline(0, color="0.3", linestyle="--", linewidth=0.9)
        ax.set_xscale("symlog", linthresh=1)
        ax.set(title=f"{problem} ({_n(rows)})", xlabel="exact wins by (standard deviations)")
        ax.xaxis.set_major_locator(FixedLocator([-5, -1, 0, 1, 5]))
        ax.xaxis.set_minor_locator(NullLocator())
        ax.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    _legend(fig, axes, most=4)
    return fig


def doses(tables: Mapping[str, pd.DataFrame], names: Sequence[str]):
    """Mean place that each test (marks) gives baselines `names` of known quality, the best first.

    `tables` by problem, a panel each, with columns test, baseline.
    """
    tests = list(dict.fromkeys(test for table in tables.values() for test in table["test"]))
    fig, axes = _panels(len(tables), 3.2, sharey=True)
    places = np.arange(1, len(names) + 1)
    for ax, (problem, table) in zip(axes[0], tables.items(), strict=True):
        ax.plot(places, places, color="0.6", linewidth=4, alpha=0.5, label="as they are")
        for index, test in enumerate(tests):
            part = table[table["test"] == test].set_index("baseline").reindex(names)
            if part["value"].notna().any():
                x = places + _dodge(index, len(tests), 0.4)
                _bars(ax, x, part, _MARKS[index], test)
        ax.set(title=f"{problem} ({_n(table)})", xticks=places, ylim=(len(names) + 0.3, 0.7))
        ax.set_xticklabels([textwrap.fill(name, 8) for name in names])
        ax.set_xlabel("baseline, the best first")
    axes[0, 0].set_ylabel("mean place given by the test")
    _legend(fig, axes, most=5, handlelength=3)
    return fig


def grid(table: pd.DataFrame):
    """Transfer and L1 by the weights of two losses; columns classifier, similarity, quantity."""
    fig, axes = _panels(2, 2.3, sharey=True)
    weights = [sorted(set(table[c])) for c in ("classifier", "similarity")]
    for ax, quantity in zip(axes[0], ("transfer", "L1"), strict=True):
        rows = _of(table, quantity)
        _heat(ax, rows, "classifier", "similarity", *weights)
        ax.set(xlabel="weight of the similarity", title=f"{_WORDS[quantity]} ({_n(rows)})")
        ax.xaxis.set_major_formatter(lambda x, _: f"{weights[1][round(x)]:g}")
        ax.yaxis.set_major_formatter(lambda y, _: f"{weights[0][round(y)]:g}")
    axes[0, 0].set_ylabel("weight of the classifier")
    return fig


def choice(table: pd.DataFrame, chosen: Mapping[str, pd.Series], published: float):
    """What a referee says of networks (marks) while they train, a problem each column.

    Parameters
    ----------
    table : DataFrame
        See `choice.follow`.
    chosen : mapping of problem to Series
        The row that was taken, with a ring.
    published : float
        The authors' weight of the classifier, dashed in the lowest row.
    """
    told = np.where(table["told"], ", critic told", "")
    usual = table["bound"].mode()[0]
    bound = [f", bound {b:g}" if b != usual else "" for b in table["bound"]]
    table = table.assign(network=table["form"] + told + bound)
    problems, networks = _names(table, "problem"), sorted(set(table["network"]))
    fig, axes = _panels(len(problems), 5.2, rows=3, sharex="col", sharey="row")
    quantities = ("taken", "distance", "weight")
    for column, problem in zip(axes.T, problems, strict=True):
        rows = table[table["problem"] == problem]
        for index, network in enumerate(networks):
            part = rows[rows["network"] == network].sort_values("iterations")
            for ax, quantity in zip(column, quantities, strict=True):
                ax.plot(part["iterations"], part[quantity], label=network, **_MARKS[index])
        first, ring = rows.iloc[0], {"s": 130, "facecolors": "none", "edgecolors": "0.2"}
        for ax, quantity in zip(column, quantities, strict=True):
            taken = chosen[problem]
            ax.scatter(taken["iterations"], taken[quantity], zorder=5, label="chosen", **ring)
        levels = first["mdts taken"], first["mdts distance"], published
        for ax, value, name in zip(column, levels, ("MDTS", "MDTS", "authors'"), strict=True):
            color = "0.6" if name == "MDTS" else "0.3"
            style = "--" if name == "MDTS" else ":"
            ax.axhline(value, color=color, linestyle=style, label=name)
        column[0].set(title=f"{problem}")
        column[2].set(yscale="log", xlabel="iterations")
    for ax, words in zip(
        axes[:, 0], ("taken for the target", "L1: mean |x - b|", "weight found"), strict=True
    ):
        ax.set_ylabel(words)
    _legend(fig, axes, most=5)
    return fig


def sizes(table: pd.DataFrame, quantities: Sequence[str]):
    """Qualities (rows) of baselines (marks) against the training images N, a problem each column.

    Columns problem, size, baseline, quantity.
    """
    problems, baselines = _names(table, "problem"), _names(table, "baseline")
    height = 0.8 + 1.5 * len(quantities)
    fig, axes = _panels(len(problems), height, rows=len(quantities), sharex=True, sharey="row")
    for column, problem in zip(axes.T, problems, strict=True):
        for ax, quantity in zip(column, quantities, strict=True):
            rows = _of(table[table["problem"] == problem], quantity).sort_values("size")
            for index, baseline in enumerate(baselines):
                part = rows[rows["baseline"] == baseline]
                beside = 1.08 ** (index - (len(baselines) - 1) / 2)
                _bars(ax, part["size"] * beside, part, _MARKS[index], baseline)
            ax.set(xscale="log")
        column[0].set_title(f"{problem} ({_n(rows)})")
        column[-1].set_xlabel("training images N")
    for ax, quantity in zip(axes[:, 0], quantities, strict=True):
        ax.set_ylabel(_words(quantity, 1.4))
    _legend(fig, axes, most=4)
    return fig


def price(table: pd.DataFrame, quantities: Sequence[str]):
    """Qualities (columns) of methods (marks) against what they cost, a problem each row.

    Columns problem, method, size, teraflop, quantity; of two sizes the smaller has a hollow mark.
    """
    problems, methods = _names(table, "problem"), _names(table, "method")
    height = 0.9 + 1.7 * len(problems)
    fig, axes = _panels(len(quantities), height, rows=len(problems), sharex=True, sharey="col")
    for line, problem in zip(axes, problems, strict=True):
        here = table[table["problem"] == problem]
        for ax, quantity in zip(line, quantities, strict=True):
            rows = _of(here, quantity)
            for index, method in enumerate(methods):
                part = rows[rows["method"] == method].sort_values("size")
                mark = _MARKS[index] | {"linestyle": ""}
                _bars(ax, part["teraflop"].iloc[-1:], part.iloc[-1:], mark, method)
                few = part.iloc[:-1]
                _bars(ax, few["teraflop"], few, mark | {"fillstyle": "none"}, "_few")
            ax.set(xscale="log")
        line[0].set_ylabel(problem)
    for ax, quantity in zip(axes[0], quantities, strict=True):
        ax.set_title(_words(quantity, (WIDE - 1) / len(quantities)))
    for ax in axes[-1]:
        ax.set_xlabel("teraflop")
    few = f"hollow: {table['size'][table['size'] > 0].min()} training images"
    _legend(fig, axes, most=4, more=[Line2D([], [], linestyle="", label=few)])
    return fig
