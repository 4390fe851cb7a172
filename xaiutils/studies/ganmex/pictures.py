"""Pictures of notebook 04: images, baselines and maps in rows and columns."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.lines import Line2D

from xaiutils.companion.drawing import picture, signed_limits
from xaiutils.companion.figures import WIDE

# Blue speaks for the source class, as in the paper's figures; other notebooks have it red.
FOR_SOURCE = "RdBu"
CHARACTER = 0.06  # inches, a letter of 7 points with some air


def _tiles(labels: Sequence[str], names: Sequence[str], *, head=0.0, foot=0.0, gaps=()):
    """A figure, laid out in inches, with square axes (rows, columns) between labels and names.

    `head` and `foot` are left free at the edges, and some space before the columns `gaps`.
    """
    left = 0.1 + CHARACTER * max(len(line) for label in labels for line in label.split("\n"))
    side = min(0.9, (WIDE - left - 0.05 - 0.1 * len(gaps)) / len(names))
    width = left + side * len(names) + 0.1 * len(gaps) + 0.05
    names = [textwrap.fill(n, int(side / CHARACTER), break_long_words=False) for n in names]
    top = head + 0.06 + 0.12 * max(name.count("\n") + 1 for name in names)
    height = top + side * len(labels) + foot + 0.05
    fig = plt.figure(figsize=(width, height), layout="none")
    axes = np.empty((len(labels), len(names)), object)
    for r, c in np.ndindex(*axes.shape):
        x = left + side * c + 0.1 * sum(c >= g for g in gaps)
        y = foot + 0.05 + side * (len(labels) - 1 - r)
        box = np.array([x, y, 0.93 * side, 0.93 * side]) / [width, height, width, height]
        axes[r, c] = fig.add_axes(tuple(box), xticks=[], yticks=[])
    for ax, label in zip(axes[:, 0], labels, strict=True):
        ax.set_ylabel(label, fontsize=7, rotation=0, ha="right", va="center", labelpad=4)
    for ax, name in zip(axes[0], names, strict=True):
        ax.annotate(name, (0.5, 1.03), xycoords="axes fraction", ha="center", fontsize=7)
    return fig, axes


def _show(ax, image):
    """An image (C, H, W) in its own colours, or a map (H, W) in signed ones."""
    if image.ndim == 2:
        low, high = signed_limits(image)
        picture(ax, image, "", cmap=FOR_SOURCE, vmin=low, vmax=high)
    elif len(image) == 1:
        picture(ax, image[0], "", cmap="gray", vmin=0, vmax=1)
    else:
        picture(ax, image.transpose(1, 2, 0), "")
    ax.spines[:].set(visible=True, color="0.75", linewidth=0.5)


def examples(columns: Mapping[str, np.ndarray]) -> list[dict[str, np.ndarray]]:
    """One mapping of pictures (C, H, W) per example, from arrays (n, C, H, W) by name."""
    return [dict(zip(columns, parts, strict=True)) for parts in zip(*columns.values(), strict=True)]


def images(rows: Sequence[Mapping[str, np.ndarray]], labels: Sequence[str]):
    """Pictures of examples, one row each.

    Parameters
    ----------
    rows : sequence of mappings
        Pictures (C, H, W) in [0, 1] by the name of their column, see `examples`; sides and
        channels may differ from row to row. A cell without a picture shows "-".
    labels : sequence of str
        One per row, such as "0 to 6".
    """
    names = list(dict.fromkeys(name for row in rows for name in row))
    fig, axes = _tiles(labels, names)
    for line, row in zip(axes, rows, strict=True):
        for ax, name in zip(line, names, strict=True):
            if name in row:
                _show(ax, row[name])
            else:
                ax.text(0.5, 0.5, "-", ha="center", va="center", transform=ax.transAxes)
                ax.spines[:].set_visible(False)
    return fig


def saliency(x, baselines: Mapping[str, np.ndarray], maps: Mapping, labels: Sequence[str]):
    """Images, baselines and maps, one row per example.

    Parameters
    ----------
    x : (n, C, H, W) array in [0, 1]
    baselines : mapping of str to (n, C, H, W) arrays
    maps : mapping of (method, baseline) to (n, C, H, W) arrays
        Summed over channels; those of one method stand together, in the order given.
    labels : sequence of n str
    """
    methods = list(dict.fromkeys(method for method, _ in maps))
    pairs = [pair for method in methods for pair in maps if pair[0] == method]
    first = 1 + len(baselines)
    starts = [first + [m for m, _ in pairs].index(method) for method in methods]
    names = ["x", *baselines, *(name for _, name in pairs)]
    shown = [x, *baselines.values(), *(np.sum(maps[pair], axis=1) for pair in pairs)]
    fig, axes = _tiles(labels, names, head=0.22, foot=0.2, gaps=[1, *starts])
    for column, pictures in zip(axes.T, shown, strict=True):
        for ax, image in zip(column, pictures, strict=True):
            _show(ax, image)
    height = fig.get_figheight()
    for method, start, stop in zip(methods, starts, [*starts[1:], axes.shape[1]], strict=True):
        left, right = axes[0, start].get_position().x0, axes[0, stop - 1].get_position().x1
        fig.text((left + right) / 2, 1 - 0.04 / height, method, ha="center", va="top", fontsize=8)
        rule = 1 - 0.19 / height
        fig.add_artist(Line2D([left, right], [rule, rule], color="0.3", linewidth=0.7))
    fig.text(0.5, 0.05 / height, "each map on its own scale, symmetric about zero; "
             "blue speaks for the source class, red for the target",
             ha="center", va="bottom", fontsize=7)  # fmt: skip
    return fig
