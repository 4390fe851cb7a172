"""What an explanation says: its cells in order, with errors, and as colours over the input."""

from __future__ import annotations

import numpy as np
import pandas as pd
from scipy.ndimage import distance_transform_edt

from xaiutils import lime
from xaiutils.companion.drawing import signed_limits
from xaiutils.companion.figures import SIGNED_CMAP


def ranking(found: lime.Explanation, top: int, *, level: float = 0.95, looks: int = 1):
    """The cells that raise the answer most.

    Parameters
    ----------
    found : lime.Explanation
        Of one output.
    top : int
        Number of cells, at least 1; all are listed if there are fewer.
    level : float
        Two-sided confidence with which a cell is told apart from the next one.
    looks : int
        How often a stop rule may have asked, see `lime.Stop.met`.

    Returns
    -------
    DataFrame
        By rank from 1 on: cell, coefficient, stderr, and apart, whether the coefficient is above
        that of the next rank, each at `level` (None for the last cell of all, which has no next).
    """
    if top < 1:
        raise ValueError(f"top must be at least 1, got {top}")
    order = np.argsort(-found.coef, kind="stable")[:top]
    apart = [
        bool(
            lime.Stop(top_k=rank, level=level).met(found.coef[None], found.covariance[None], looks)
        )
        if rank < len(found.coef)
        else None
        for rank in range(1, len(order) + 1)
    ]
    columns = {"cell": order, "coefficient": found.coef[order], "stderr": found.stderr[order]}
    index = pd.RangeIndex(1, len(order) + 1, name="rank")
    return pd.DataFrame(columns | {"apart": pd.Series(apart, index, dtype=object)}, index)


def coloured_cells(ax, labels, coef, top: int = 0):
    """Lay the coefficients of cells over what `ax` shows: red raises the answer, blue lowers it.

    Parameters
    ----------
    ax : matplotlib.axes.Axes
        Shows the input, one unit a pixel, by `imshow`.
    labels : (H, W) int array
        Cell of each pixel.
    coef : (d,) array
        Coefficient of each cell.
    top : int
        Outline so many of the cells that raise the answer most, and write their ranks in them.

    Returns
    -------
    matplotlib.image.AxesImage
        For a colour bar.
    """
    labels, coef = np.asarray(labels), np.asarray(coef)
    low, high = signed_limits(coef)
    upright = "upper" if ax.yaxis_inverted() else "lower"
    drawn = ax.imshow(
        coef[labels], cmap=SIGNED_CMAP, vmin=low, vmax=high, alpha=0.6, origin=upright,
        aspect=ax.get_aspect(),
    )  # fmt: skip
    limits = ax.get_xlim(), ax.get_ylim()
    for rank, cell in enumerate(np.argsort(-coef, kind="stable")[:top], start=1):
        inside = np.pad(labels == cell, 1)
        rows, columns = (np.arange(n) - 1 for n in inside.shape)
        ax.contour(columns, rows, inside, levels=[0.5], colors="black", linewidths=0.9)
        y, x = innermost(labels == cell)
        box = {"boxstyle": "round,pad=0.15", "facecolor": "white", "linewidth": 0, "alpha": 0.8}
        ax.text(x, y, str(rank), ha="center", va="center", fontsize=8, bbox=box)
    ax.set(xlim=limits[0], ylim=limits[1])
    return drawn


def innermost(inside) -> tuple[int, int]:
    """Row and column of the pixel of a region (H, W) bool that is farthest from its edge."""
    depth = distance_transform_edt(np.pad(inside, 1))[1:-1, 1:-1]
    row, column = np.unravel_index(depth.argmax(), depth.shape)
    return int(row), int(column)
