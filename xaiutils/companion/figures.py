"""One look for all figures, and `savefig`: the only way out of a notebook."""

import io

import matplotlib
import matplotlib.pyplot as plt
from cycler import cycler
from IPython.display import Image, display
from matplotlib.text import Text

from xaiutils.companion import provenance, results
from xaiutils.companion.notebooks import FIGURE_NAMES, is_figure_name

COLUMN = 3.3  # inches, one column of text
WIDE = 6.9  # inches, both columns
DPI = 120  # a wide figure is then 828 pixels: readable on a screen, small in a notebook
MIN_ALT = 40  # characters
MIN_FONT = 7  # points

# Okabe and Ito, "Color Universal Design" (2008); yellow last, it is faint on white.
OKABE_ITO = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#E69F00",
    "#56B4E9",
    "#000000",
    "#F0E442",
)
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
_DASHES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)), (0, (1, 1)), (0, (8, 3)))
# Colour is never the only cue: pass ``**STYLES[i]`` to plot.
STYLES = [
    {"color": color, "marker": marker, "linestyle": dash}
    for color, marker, dash in zip(OKABE_ITO, _MARKERS, _DASHES, strict=True)
]
SIGNED_CMAP = "RdBu_r"  # for maps with `signed_limits`

_RC = {
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.labelsize": 8,
    "axes.prop_cycle": cycler(color=OKABE_ITO) + cycler(linestyle=_DASHES),
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 8,
    "figure.constrained_layout.use": True,
    "figure.dpi": DPI,
    "figure.figsize": (COLUMN, 2.4),
    "font.family": "DejaVu Sans",  # comes with matplotlib, so it is the same everywhere
    "font.size": 8,
    "grid.alpha": 0.3,
    "image.cmap": "viridis",
    "image.interpolation": "nearest",
    "legend.fontsize": 7,
    "legend.frameon": False,
    "lines.linewidth": 1.2,
    "lines.markersize": 4,
    "pdf.fonttype": 42,
    "svg.fonttype": "none",
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
}


def use_style():
    """Set the project's style over matplotlib's defaults, whatever the reader has configured."""
    plt.style.use(["default", _RC])


def savefig(name, fig, *, data, alt):
    """Show a figure in the notebook, close it, and write its `.png`, `.pdf` and `.json`.

    Where the files go is the runner's choice (`provenance.current`). The JSON file holds the
    plotted numbers, all they depend on and the hash of the picture (see `results`); equal inputs
    give equal bytes. Runs without a runner, and those on tiny inputs, have no `.pdf`, which takes
    half of the time.

    Parameters
    ----------
    name : str
        Stem of the files: lower-case letters, digits and underscores.
    fig : matplotlib.figure.Figure
        At most `WIDE` inches wide, all text at least 7 points.
    data : dict
        The plotted numbers by series, see `provenance.plain`.
    alt : str
        What the figure shows, for those who cannot see it; at least 40 characters.

    Raises
    ------
    ValueError
        If an argument breaks one of these rules.
    """
    if not is_figure_name(name):
        raise ValueError(f"name {name!r}: {FIGURE_NAMES}")
    if len(alt.strip()) < MIN_ALT:
        raise ValueError(
            f"alt of {name!r} has {len(alt.strip())} characters; say in at least {MIN_ALT} "
            "what the figure shows"
        )
    if not isinstance(data, dict) or not data:
        raise ValueError(f"data of {name!r} is {data!r}; give the plotted numbers as a dict")
    if fig.get_figwidth() > WIDE + 1e-6:
        raise ValueError(f"fig {name!r} is {fig.get_figwidth():g} inches wide; at most {WIDE}")
    for text in fig.findobj(Text):
        if text.get_visible() and text.get_text().strip() and text.get_fontsize() < MIN_FONT:
            raise ValueError(
                f"fig {name!r}: text {text.get_text()!r} has {text.get_fontsize():g} points; "
                f"at least {MIN_FONT}"
            )
    run = provenance.current()
    png = _render(fig, "png", {"Software": None})
    record = {
        "figure": name,
        "alt": alt.strip(),
        **provenance.stamp(run),
        "data": provenance.plain(data),
        results.PICTURE: results.picture_hash(png),
    }
    files = {"png": png, "json": results.sealed(record)}
    if run.notebook is not None and not run.profile.startswith("smoke"):
        fig.set_layout_engine("none")  # the picture's layout stays: it is most of the work
        dateless = {"CreationDate": None, "Creator": None, "Producer": None}
        files["pdf"] = _render(fig, "pdf", dateless)
    for suffix, content in files.items():
        provenance.write(f"{run.output}/{name}.{suffix}", content)
    # A closed figure is not shown a second time by the inline backend at the end of the cell.
    plt.close(fig)
    display(Image(png, format="png", alt=record["alt"]))


def _render(fig, kind, metadata):
    buffer = io.BytesIO()
    with matplotlib.rc_context(_RC):
        fig.savefig(buffer, format=kind, dpi=DPI, facecolor="white", metadata=metadata)
    return buffer.getvalue()
