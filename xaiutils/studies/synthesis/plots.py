"""Drawings of notebook 05. Intervals are at 95 %, the default of `synthesis_matrix`."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from itertools import product

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import skimage
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
from scipy.ndimage import binary_erosion

from xaiutils.companion import page
from xaiutils.companion.drawing import picture
from xaiutils.companion.figures import COLUMN, MIN_FONT, OKABE_ITO, SIGNED_CMAP, WIDE
from xaiutils.perturb import Components
from xaiutils.studies.synthesis.matrix import CONTROLS, Test, estimates
from xaiutils.studies.synthesis.matrix import agreement as rank_agreement

_GOOD = "viridis"
_ABSENT = "–"
_PLANTED = {"color": "black", "linestyle": "-", "linewidth": 0.8}
_RIGHT = {"color": OKABE_ITO[0], "linestyle": "-", "linewidth": 1.2}
_WRONG = {"color": OKABE_ITO[1], "linestyle": (0, (2, 1)), "linewidth": 1.2}


def _digits(values) -> int:
    """Decimals that leave the largest number two or three significant digits."""
    largest = np.abs(values[np.isfinite(values)]).max(initial=0)
    return next((d for d, least in enumerate((100, 10, 0.3, 0.03)) if largest >= least), 4)


def _number(value: float, digits: int) -> str:
    """Such as ".72", "−.05" or "1.00": no zero before the point."""
    value = round(value, digits) + 0.0  # adding zero rids a rounded number of the sign of -0
    words = f"{abs(value):.{digits}f}"
    return ("−" if value < 0 else "") + (words[1:] if words.startswith("0.") else words)


def _bracket(row, digits: int = 2) -> str:
    return f"[{_number(row.low, digits)}, {_number(row.high, digits)}]"


def _half_width(row, digits: int = 2) -> str:
    return f"±{_number((row.high - row.low) / 2, digits)}"


def _interval(columns: Iterable[tuple[pd.DataFrame, int, float]]):
    """How to write all intervals of (rows, decimals, inches of room), and words for it."""
    for rows, digits, room in columns:
        known = rows.dropna(subset="value").itertuples()
        if any(page.inches(_bracket(row, digits)) > room - 0.06 for row in known):
            return _half_width, "± half the width of the 95 % interval"
    return _bracket, "95 % interval"


def _n(table: pd.DataFrame) -> str:
    """Range of n, the rows without a score left out."""
    n = table.loc[table["value"].notna(), "n"]
    low, high = (int(n.min()), int(n.max())) if len(n) else (0, 0)
    return f"n = {low}" if low == high else f"n = {low} to {high}"


def _arrow(test: Test) -> str:
    return "↑" if test.larger_is_better else "↓"


def matrix(tests: Sequence[Test], table: pd.DataFrame, cost: pd.DataFrame, *, per: str = "image"):
    """Scores of explainers (rows) in tests (columns, grouped by data), and model calls.

    Colours show the position between the worst and the best score of a column. Below each value
    stands its interval, or half its width where brackets would not fit; the foot says which.

    Parameters
    ----------
    tests : sequence of Test
        Up to about 11.
    table : DataFrame
        Of `synthesis_matrix.estimates`.
    cost : DataFrame
        Columns "forward" and "backward", calls of the model; the explainers are its index.
    per : str
        What `cost` is for.
    """
    tests = [t for data in dict.fromkeys(t.data for t in tests) for t in tests if t.data == data]
    names = list(dict.fromkeys(e for t in tests for e in t.explainers))
    columns = [_column(test, table, names) for test in tests]
    heads = [_head(t, digits) for t, (_, digits) in zip(tests, columns, strict=True)]
    groups = {t.data: f"{t.data}\n{_n(table[table['data'] == t.data])}" for t in tests}
    groups["cost"] = f"model calls\nper {per}"
    calls = cost[["forward", "backward"]].map("{:,}".format).reindex(names, fill_value=_ABSENT)
    heads += list(calls)
    owners = [t.data for t in tests] + ["cost"] * 2
    left = 0.15 + max(map(page.inches, names))
    least = {name: page.inches(words) + 0.08 for name, words in groups.items()}
    least["cost"] = max(least["cost"], 2 * max(map(page.inches, calls.to_numpy().flat)) + 0.16)
    widths = _widths(owners, least, WIDE - left - 0.05)
    room = [(*column, width) for column, width in zip(columns, widths, strict=False)]
    interval, foot = _interval(room)
    head = 2 * page.LINE + 0.15
    top = head + max(map(page.inches, heads)) + 0.1
    row_height = 2 * page.LINE + 0.05
    bottom = top + row_height * len(names)
    fig, ax = page.canvas(WIDE, bottom + 0.55)
    starts = left + np.cumsum([0, *widths])
    for name, words in groups.items():
        own = [c for c, owner in enumerate(owners) if owner == name]
        x0, x1 = starts[own[0]] + 0.03, starts[own[-1] + 1] - 0.03
        page.write(ax, (x0 + x1) / 2, 0.04, words, va="top")
        ax.plot([x0, x1], [head - 0.05] * 2, color="0.3", linewidth=0.7, linestyle="-")
    for x, width, words in zip(starts, widths, heads, strict=False):
        page.write(ax, x + width / 2, top - 0.05, words, rotation=90, va="bottom")
    for r, name in enumerate(names):
        y = top + r * row_height
        page.write(ax, left - 0.07, y + row_height / 2, name, ha="right")
        for x, (rows, digits, width) in zip(starts, room, strict=False):
            words, color, row = _ABSENT, None, rows.loc[name]
            if not np.isnan(row.value):
                words = f"{_number(row.value, digits)}\n{interval(row, digits)}"
                color = mpl.colormaps[_GOOD](row.goodness)
            page.cell(ax, (x, y, width, row_height), words, color)
        for x, width, words in zip(starts[-3:-1], widths[-2:], calls.loc[name], strict=True):
            page.cell(ax, (x, y, width, row_height), words)
    label = f"place between the worst and the best of each test; in cells: score, {foot}"
    page.colorbar(fig, (WIDE / 2 - 1, bottom + 0.12, 2, 0.1), _GOOD, (0, 1), label, ticks=[0, 1],
              format=lambda x, _: "best" if x else "worst")  # fmt: skip
    return fig


def _column(test: Test, table: pd.DataFrame, names: list) -> tuple[pd.DataFrame, int]:
    """Rows of one test by explainer, with goodness from 0 to 1, and the decimals to show."""
    rows = table[(table["data"] == test.data) & (table["test"] == test.name)]
    rows = rows.set_index("explainer").reindex(names)
    good = rows["value"] * (1 if test.larger_is_better else -1)
    spread = good.max() - good.min()
    good = (good - good.min()) / spread if spread > 0 else good * 0 + 0.5
    return rows.assign(goodness=good), _digits(rows[["value", "low", "high"]].to_numpy())


def _head(test: Test, digits: int) -> str:
    words = textwrap.fill(f"{test.name} {_arrow(test)}", 20)
    if test.chance is None:
        return words
    return f"{words}\nchance {_number(test.chance, max(2, digits)) if test.chance else 0}"


def _widths(owners: Sequence[str], least: Mapping[str, float], total: float) -> list[float]:
    """Equal widths of columns, but for groups (owners) as narrow as their heading, and the cost."""
    widened, narrow = set(), {"cost"}
    while narrow:
        widened |= narrow
        free = [owner for owner in owners if owner not in widened]
        side = (total - sum(least[name] for name in widened)) / max(len(free), 1)
        narrow = {name for name in free if side * owners.count(name) < least[name]}
    return [least[o] / owners.count(o) if o in widened else side for o in owners]


def agreement(table: pd.DataFrame):
    """Rank correlations of tests, lower triangle; table of `synthesis_matrix.agreement`."""
    names = list(dict.fromkeys([*table["first"], *table["second"]]))
    labels = {n: textwrap.fill(n, 18) for n in names}
    rows, columns = names[1:], names[:-1]
    left = 0.15 + max(page.inches(labels[n]) for n in rows)
    side = min(0.8, (WIDE - left - 0.05) / len(columns))
    width = max(COLUMN, left + side * len(columns) + 0.05)
    row_height, top = 3 * page.LINE + 0.06, 0.05
    bottom = top + row_height * len(rows)
    foot = bottom + max(page.inches(labels[n]) for n in columns) + 0.15
    fig, ax = page.canvas(width, foot + 0.55)
    interval, words = _interval([(table, 2, side)])
    label = f"rank correlation of the explainers\nin cells: {words}, n explainers in common"
    page.colorbar(fig, (width / 2 - 1, foot, 2, 0.1), SIGNED_CMAP, (-1, 1), label)
    for row in table.itertuples():
        c, r = sorted(names.index(label) for label in (row.first, row.second))
        box = (left + side * c, top + row_height * (r - 1), side, row_height)
        words, color = f"{_ABSENT}\nn = {row.n}", None
        if not np.isnan(row.value):
            words = f"{_number(row.value, 2)}\n{interval(row)}\nn = {row.n}"
            color = mpl.colormaps[SIGNED_CMAP]((row.value + 1) / 2)
        page.cell(ax, box, words, color)
    for r, name in enumerate(rows):
        page.write(ax, left - 0.07, top + row_height * (r + 0.5), labels[name], ha="right")
    for c, name in enumerate(columns):
        page.write(ax, left + side * (c + 0.5), bottom + 0.06, labels[name], rotation=90, va="top")
    return fig


def pairs(
    panels: Mapping[str, tuple[Test, Test]], without: Sequence[str] = CONTROLS, *, seed: int = 0
):
    """One test against another, a numbered point per explainer, one panel per data.

    Axes of tests where smaller is better are reversed: the best are always to the right and on
    top. Hollow points are left out of the rank correlation in the title.

    Parameters
    ----------
    panels : mapping of str to (Test, Test)
        Title, and the tests of the horizontal and the vertical axis.
    without, seed
        See `synthesis_matrix.agreement`.
    """
    names = list(dict.fromkeys(e for x, y in panels.values() for e in x.explainers
                               if e in y.explainers))  # fmt: skip
    fig = plt.figure(figsize=(WIDE, 3.1 + 0.14 * -(-(len(names) + 2) // 4)))
    axes = fig.subplots(1, len(panels), squeeze=False)[0]
    points = []
    for ax, (title, both) in zip(axes, panels.items(), strict=True):
        tables = [estimates([t], seed=seed).set_index("explainer") for t in both]
        common = [e for e in names if all(e in t.index and t.n[e] > 0 for t in tables)]
        x, y = (t.loc[common] for t in tables)
        _crosses(ax, x, y, np.isin(common, list(without)))
        letters = int((WIDE / len(panels) - 0.6) / 0.063)
        _axes(ax, both, letters)
        found = rank_agreement(both, without, seed=seed).iloc[0]
        rho = _ABSENT if np.isnan(found.value) else f"{_number(found.value, 2)} {_bracket(found)}"
        title = textwrap.fill(title, letters)
        ax.set_title(
            f"{title}\nrank correlation {rho}\n{found.n} explainers, {_n(pd.concat([x, y]))}"
        )
        points.append((ax, x["value"], y["value"], [names.index(e) + 1 for e in common]))
    keys = [f"{k} {e}" for k, e in enumerate(names, 1)]
    keys += ["hollow: not in the correlation", "dashed: chance"]
    handles = [Line2D([], [], linestyle="", label=key) for key in keys]
    fig.legend(handles=handles, loc="outside lower center", ncols=4, handlelength=0,
               handletextpad=0)  # fmt: skip
    fig.canvas.draw()  # numbers are placed in pixels, so the layout has to be final
    fig.set_layout_engine("none")
    for ax, *numbered in points:
        _numbers(ax, *numbered)
    return fig


def _crosses(ax, x: pd.DataFrame, y: pd.DataFrame, hollow):
    """Points with both intervals."""
    for part, face in ((~hollow, OKABE_ITO[0]), (hollow, "white")):
        a, b = x[part], y[part]
        ax.errorbar(
            a["value"], b["value"], xerr=[a["value"] - a["low"], a["high"] - a["value"]],
            yerr=[b["value"] - b["low"], b["high"] - b["value"]], linestyle="", marker="o",
            markerfacecolor=face, color=OKABE_ITO[0], ecolor="0.7", elinewidth=0.7,
        )  # fmt: skip


def _axes(ax, both: tuple[Test, Test], letters: int):
    for test, letter, line in zip(both, "xy", (ax.axvline, ax.axhline), strict=True):
        words = f"{test.name} {_arrow(test)}"
        if not test.larger_is_better:
            words += " (axis\u00a0reversed)"
            getattr(ax, f"invert_{letter}axis")()
        if test.chance is not None:
            line(test.chance, color="0.3", linewidth=0.9, linestyle="--")
        getattr(ax, f"set_{letter}label")(textwrap.fill(words, letters))


def _numbers(ax, x: Iterable[float], y: Iterable[float], labels: Sequence[int]):
    """Write each number as near to its point as there is room, and join them if it is far."""
    pixel = ax.figure.dpi / 72
    dots = ax.transData.transform(np.column_stack([x, y]))
    taken = [(dot - 3 * pixel, dot + 3 * pixel) for dot in dots]
    for dot, label in zip(dots, labels, strict=True):
        half = np.array([36 * page.inches(str(label)) + 0.7, 4]) * pixel
        for radius, angle in product(np.arange(7, 120, 3) * pixel, np.arange(8) * np.pi / 4):
            centre = dot + radius * np.array([np.cos(angle), np.sin(angle)])
            box = centre - half, centre + half
            inside = ax.bbox.contains(*box[0]) and ax.bbox.contains(*box[1])
            if inside and not any((box[0] < b).all() and (a < box[1]).all() for a, b in taken):
                break
        taken.append(box)
        arrow = dict(arrowstyle="-", color="0.3", linewidth=0.5, shrinkA=0, shrinkB=2)
        words = ax.annotate(
            str(label), ax.transData.inverted().transform(dot), (centre - dot) / pixel,
            textcoords="offset points", ha="center", va="center", fontsize=MIN_FONT,
            arrowprops=arrow if radius > 8 * pixel else None,
        )  # fmt: skip
        words.set_path_effects([withStroke(linewidth=1.5, foreground="white")])


def examples(
    rows: Sequence[Mapping], titles: Sequence[str], cells: Sequence[Components],
    found: Sequence[str],
):  # fmt: skip
    """Planted causes: clean and attacked picture, what changed, and what explainers chose.

    Parameters
    ----------
    rows : sequence of mappings
        One per image: "clean" and "attacked" (3, H, W) in [0, 1], "planted" (d,) bool and
        "chosen", a mapping of explainer to (d,) bool. Sides may differ from row to row.
    titles : sequence of str
        One per row, such as "bull mastiff → teapot".
    cells : sequence of Components
        One per row, with labels (H, W).
    found : sequence of str
        Explainers to show.
    """
    change = max(np.abs(np.subtract(row["attacked"], row["clean"])).max() for row in rows)
    factor = max(1, int(0.5 / change)) if change else 1
    difference = "difference" if factor == 1 else f"difference ×\u00a0{factor}"
    names = ["clean", "attacked", difference, *found]
    left = 0.1 + max(page.inches(textwrap.fill(title, 16)) for title in titles)
    side = min(1.1, (WIDE - left - 0.05) / len(names))
    heads = [textwrap.fill(n, max(8, int(side / 0.06)), break_long_words=False) for n in names]
    top = 0.08 + page.LINE * max(head.count("\n") + 1 for head in heads)
    width, pitch = left + side * len(names) + 0.05, side + page.LINE + 0.03
    fig, sheet = page.canvas(width, top + pitch * len(rows) + 0.3)
    for c, head in enumerate(heads):
        page.write(sheet, left + side * (c + 0.47), top - 0.03, head, va="bottom")
    for r, (row, title, parts) in enumerate(zip(rows, titles, cells, strict=True)):
        y = top + pitch * r
        page.write(sheet, left - 0.05, y + side * 0.47, textwrap.fill(title, 16), ha="right")
        clean, attacked = (np.transpose(row[key], (1, 2, 0)) for key in ("clean", "attacked"))
        planted, shape = np.asarray(row["planted"]), clean.shape[:2]
        tiles = [page.panel(fig, left + side * c, y, *[0.94 * side] * 2) for c in range(len(names))]
        picture(tiles[0], clean, "")
        picture(tiles[1], attacked, "")
        picture(tiles[2], (0.5 + factor * (attacked - clean)).clip(0, 1), "")
        _outline(tiles[2], parts, planted, shape, **_PLANTED)
        for c, name in enumerate(found, 3):
            chosen = np.asarray(row["chosen"][name])
            picture(tiles[c], 0.45 * attacked + 0.55, "")
            _outline(tiles[c], parts, chosen & planted, shape, **_RIGHT)
            _outline(tiles[c], parts, chosen & ~planted, shape, **_WRONG)
            words = f"{(chosen & planted).sum()} of {chosen.sum()}"
            page.write(sheet, left + side * (c + 0.47), y + side * 0.95, words, va="top")
    styles = {"planted": _PLANTED, "found (counted)": _RIGHT, "wrongly chosen": _WRONG}
    lines = [Line2D([], [], **style) for style in styles.values()]
    fig.legend(lines, styles, loc="lower center", ncols=3, handlelength=3)
    return fig


def _outline(ax, cells: Components, wanted, shape: tuple[int, int], **style):
    """Lines just within each wanted component, so that those of neighbours do not meet."""
    labels = np.broadcast_to(cells.aligned(shape), shape)
    scale = max(1, 400 // max(shape))
    for cell in np.flatnonzero(wanted):
        mask = np.pad((labels == cell).repeat(scale, 0).repeat(scale, 1), 1)
        inner = binary_erosion(mask, iterations=max(1, max(mask.shape) // 100))
        for line in skimage.measure.find_contours(inner if inner.any() else mask, 0.5):
            row, column = (line.T - 0.5) / scale - 0.5
            ax.plot(column, row, **style)
