"""Drawing on a page that is measured in inches from its upper left corner."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.font_manager import FontProperties
from matplotlib.patches import Rectangle
from matplotlib.textpath import TextToPath

from xaiutils.companion.figures import MIN_FONT

LINE = 0.125  # height of a line of 7 points


def inches(words: str) -> float:
    """Width of the longest line at 7 points."""
    measure, font = TextToPath(), FontProperties(family="DejaVu Sans", size=MIN_FONT)
    sizes = [measure.get_text_width_height_descent(s, font, False) for s in words.split("\n")]
    return max(width for width, *_ in sizes) / 72


def canvas(width: float, height: float):
    """A figure with one invisible panel whose coordinates are inches from the upper left."""
    fig = plt.figure(figsize=(width, height), layout="none")
    ax = fig.add_axes((0, 0, 1, 1), xlim=(0, width), ylim=(height, 0))
    ax.axis("off")
    return fig, ax


def write(ax, x: float, y: float, words: str, **options):
    """Words of 7 points, centred at (x, y) unless options say otherwise."""
    centred = {"ha": "center", "va": "center", "fontsize": MIN_FONT, "linespacing": 1.15}
    return ax.text(x, y, words, **centred | options)


def cell(ax, box: Sequence[float], words: str, color=None):
    """Words on a colour, in a box (x, y, width, height)."""
    x, y, width, height = box
    if color is not None:
        gap = 0.01
        corner = (x + gap, y + gap)
        ax.add_patch(Rectangle(corner, width - 2 * gap, height - 2 * gap, fc=color, linewidth=0))
    ink = "black" if color is None else legible(color)
    write(ax, x + width / 2, y + height / 2, words, color=ink)


def legible(color) -> str:
    """Black or white, whichever contrasts more (relative luminance as in WCAG 2)."""
    rgb = np.array(color[:3])
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    return "black" if linear @ [0.2126, 0.7152, 0.0722] > 0.179 else "white"


def panel(fig, x: float, y: float, width: float, height: float):
    """A panel whose upper left corner is at (x, y), all in inches from the figure's."""
    w, h = fig.get_size_inches()
    return fig.add_axes((x / w, 1 - (y + height) / h, width / w, height / h))


def colorbar(fig, box: Sequence[float], cmap, limits, label: str, **options):
    """Horizontal colour bar in a box (x, y, width, height)."""
    ax = panel(fig, *box)
    mapped = mpl.cm.ScalarMappable(mpl.colors.Normalize(*limits), cmap)
    bar = fig.colorbar(mapped, cax=ax, orientation="horizontal", **options)
    bar.set_label(label, fontsize=MIN_FONT, labelpad=2)
    ax.tick_params(length=2, pad=1)
    bar.outline.set_visible(False)
