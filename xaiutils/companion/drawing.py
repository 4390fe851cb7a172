"""What drawings of several notebooks share: an image, dots with intervals, symmetric scales."""

import numpy as np

from xaiutils.companion.figures import STYLES


def picture(ax, image, title, **options):
    """An image without axes."""
    drawn = ax.imshow(image, **options)
    ax.set(title=title, xticks=[], yticks=[])
    ax.spines[:].set_visible(False)
    ax.grid(False)
    return drawn


def signed_limits(values):
    """Limits of a colour scale that is symmetric about zero.

    Parameters
    ----------
    values : array_like
        Signed map of any shape; NaN is ignored.

    Returns
    -------
    (float, float)
        ``(-m, m)`` with m the largest absolute value, or 1 where all values are zero.

    Raises
    ------
    ValueError
        If no value is finite.
    """
    values = np.asarray(values, dtype=float)
    values = values[np.isfinite(values)]
    if not values.size:
        raise ValueError("values: none is finite; a colour scale needs at least one")
    limit = float(np.abs(values).max()) or 1.0
    return -limit, limit


def dots(ax, rows, y, *, style=0, label=None, **options):
    """Draw values with their intervals as dots with horizontal bars.

    Parameters
    ----------
    ax : matplotlib.axes.Axes
    rows : DataFrame
        Columns value, low and high.
    y : sequence of float
        Height of each row.
    style : int
        Colour and marker are those of ``STYLES[style]``.
    label : str, optional
        In the legend.
    **options
        Of ``ax.errorbar``; they win over the style.
    """
    error = [rows["value"] - rows["low"], rows["high"] - rows["value"]]
    settings = {**STYLES[style], "linestyle": ""}
    ax.errorbar(rows["value"], y, xerr=error, capsize=2, label=label, **settings | options)
