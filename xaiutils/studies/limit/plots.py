"""Drawings of notebook 02."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import skimage
from matplotlib.ticker import NullFormatter, NullLocator

from xaiutils import lime
from xaiutils.companion.drawing import dots, picture, signed_limits
from xaiutils.companion.figures import OKABE_ITO, SIGNED_CMAP, STYLES, WIDE
from xaiutils.studies.limit.cases import KnownCase

EDGE = (1.0, 0.82, 0.0)


def outlined(image, labels) -> np.ndarray:
    """RGB picture of a gray (H, W) or colour (3, H, W) image with superpixel edges, enlarged."""
    image = np.asarray(image)
    rgb = np.repeat(image[..., None], 3, 2) if image.ndim == 2 else image.transpose(1, 2, 0)
    scale = max(1, round(400 / rgb.shape[0]))
    rgb, labels = (a.repeat(scale, 0).repeat(scale, 1) for a in (rgb, np.asarray(labels)))
    return skimage.segmentation.mark_boundaries(rgb, labels, color=EDGE, mode="inner")


def numbered(ax, case: KnownCase, title, support_color=OKABE_ITO[5]):
    """The digit, its superpixels with numbers from 1, and the detector's stroke."""
    side = case.image.shape[0]
    box = (-0.5, side - 0.5, side - 0.5, -0.5)
    picture(ax, outlined(case.image, case.components.labels), title, extent=box)
    for j in range(case.components.d):
        rows, columns = np.nonzero(case.components.labels == j)
        middle = np.argmin((rows - rows.mean()) ** 2 + (columns - columns.mean()) ** 2)
        ax.text(columns[middle], rows[middle], j + 1, color="#FF5A36", weight="bold",
                ha="center", va="center", fontsize=9)  # fmt: skip
    if support_color is not None:
        for row, column in np.argwhere(case.support):
            corner = (column - 0.5, row - 0.5)
            ax.add_patch(plt.Rectangle(corner, 1, 1, color=support_color, alpha=0.65, linewidth=0))


def runs_and_theory(ax, case: KnownCase):
    """Quartiles and range of the package's coefficients, with the theory and its error bars."""
    d = case.components.d
    position = np.arange(1, d + 1)
    ax.axhline(0, color="0.5", linewidth=0.8, linestyle="--")
    ax.boxplot(
        case.runs[:, 1:], positions=position, widths=0.7, whis=(0, 100),
        medianprops={"color": OKABE_ITO[0], "linestyle": "-"},
        boxprops={"linestyle": "-"}, whiskerprops={"linestyle": "-"}, capprops={"linestyle": "-"},
    )  # fmt: skip
    ax.errorbar(
        position, case.theory.coef, 1.96 * case.stderr, color=OKABE_ITO[1], marker="x",
        markersize=5, linestyle="", capsize=0, elinewidth=0.9,
        label="limit, ±1.96 standard errors of a run",
    )  # fmt: skip
    ax.plot([], [], color="black", marker="s", markersize=7, fillstyle="none", linestyle="",
            label=f"{len(case.runs)} runs of lime, quartiles and range")  # fmt: skip
    ax.set(xlabel="superpixel", xticks=position, xticklabels=position)


def shape_detectors(cases: dict[str, KnownCase]):
    fig, axes = plt.subplots(2, len(cases), figsize=(WIDE, 4.2), height_ratios=[1, 1.05])
    for column, (name, case) in enumerate(cases.items()):
        numbered(axes[0, column], case, name)
        runs_and_theory(axes[1, column], case)
        axes[1, column].set(ylim=(-0.15, 1.2))
    axes[1, 0].set_ylabel("coefficient")
    fig.legend(*axes[1, 0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return fig


def linear_model(case: KnownCase):
    fig, axes = plt.subplots(1, 3, figsize=(WIDE, 2.3), width_ratios=[1.1, 1, 1.6])
    low, high = signed_limits(case.support)
    drawn = picture(axes[0], case.support, "weights of the model", cmap=SIGNED_CMAP,
                    vmin=low, vmax=high)  # fmt: skip
    fig.colorbar(drawn, ax=axes[0], shrink=0.8)
    numbered(axes[1], case, "superpixels", support_color=None)
    runs_and_theory(axes[2], case)
    axes[2].set(ylabel="coefficient", title="runs and theory")
    fig.legend(*axes[2].get_legend_handles_labels(), loc="outside lower right", ncols=2)
    return fig


def _log_axes(ax, ticks=None):
    """Logarithmic axes with labels at powers of ten only, or at `ticks` on the x axis."""
    ax.set(xscale="log", yscale="log" if ticks is None else "linear")
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_minor_formatter(NullFormatter())
    if ticks is not None:
        ax.set_xticks(ticks, [f"{n:,}" for n in ticks])


def _band(ax, frame, x, y, style, label):
    """Root mean square over repeats with the band of 95 % of them."""
    groups = frame.groupby(x)[y]
    n = np.array(list(groups.groups))
    rms = np.sqrt(groups.apply(lambda v: np.mean(np.square(v)))).to_numpy()
    ax.plot(n, rms, label=label, **style)
    ax.fill_between(
        n, groups.quantile(0.025), groups.quantile(0.975), color=style["color"], alpha=0.15
    )


def convergence(frames: dict[str, pd.DataFrame], expected: dict, slopes: dict):
    fig, axes = plt.subplots(1, len(frames), figsize=(WIDE, 2.7))
    for ax, (name, frame) in zip(axes, frames.items(), strict=True):
        repeats = frame["repeat"].nunique()
        _band(
            ax,
            frame,
            "n",
            "distance",
            STYLES[0],
            f"root mean square of {repeats} repeats; band: 95 % of them",
        )
        n = np.sort(frame["n"].unique())
        ax.plot(n, np.sqrt(expected[name] / n), color=OKABE_ITO[1], linestyle="--",
                label="central limit theorem")  # fmt: skip
        value, low, high = slopes[name]
        _log_axes(ax)
        ax.set(xlabel="masks", title=f"{name}\nslope {value:.3f} [{low:.3f}, {high:.3f}]")
    axes[0].set_ylabel("distance to the limit")
    fig.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return fig


def top_superpixels(image, components, coef, k=5) -> np.ndarray:
    """The image with its top superpixels green and the rest faded to gray, (H, W, 3)."""
    image = np.asarray(image)
    chosen = np.isin(components.labels, list(lime.top_k(coef, k)))
    gray = np.repeat(0.35 + 0.5 * image.mean(axis=0)[..., None], 3, axis=2)
    green = image.transpose(1, 2, 0) * 0.55 + np.array([0.0, 0.45, 0.1])
    return np.clip(np.where(chosen[..., None], green, gray), 0, 1)


def qualitative(image, detail: dict, ig_map, class_name: str):
    image, components = np.asarray(image), detail["components"]
    fig, axes = plt.subplots(2, 3, figsize=(WIDE, 4.9))
    share = f"{class_name}, probability {detail['probability']:.2f}"
    picture(axes[0, 0], image.transpose(1, 2, 0), f"image: {share}")
    picture(axes[0, 1], outlined(image, components.labels), f"{components.d} superpixels")
    picture(axes[0, 2], components.means(image).transpose(1, 2, 0), "replacement image")
    picture(
        axes[1, 0], top_superpixels(image, components, detail["lime"]), "LIME: top 5 superpixels"
    )
    magnitude = np.linalg.norm(ig_map, axis=0)
    picture(axes[1, 1], magnitude, "integrated gradients: norm over colours", cmap="viridis",
            vmax=np.percentile(magnitude, 99.5))  # fmt: skip
    picture(axes[1, 2], top_superpixels(image, components, detail["ig"]),
            "integrated gradients, sums: top 5")  # fmt: skip
    return fig


def agreement(panels: dict[str, pd.DataFrame]):
    """Mean Jaccard with intervals: one panel per data set, colour and marker by k."""
    heights = [frame["pair"].nunique() for frame in panels.values()]
    fig, axes = plt.subplots(
        len(panels), 1, figsize=(WIDE * 0.8, 0.9 + 0.42 * sum(heights)), height_ratios=heights,
        sharex=True,
    )  # fmt: skip
    for ax, (name, frame) in zip(axes, panels.items(), strict=True):
        pairs = list(dict.fromkeys(frame["pair"]))
        for index, (k, group) in enumerate(frame.groupby("k")):
            y = [pairs.index(pair) + 0.22 * (index - 0.5) for pair in group["pair"]]
            dots(ax, group.rename(columns={"mean": "value"}), y, style=index, label=f"top {k}")
        count = frame.groupby("pair", sort=False)["images"].first()
        ax.set(yticks=range(len(pairs)), yticklabels=[f"{p}  (n = {count[p]})" for p in pairs],
               title=name, xlim=(0, 1.04), ylim=(len(pairs) - 0.5, -0.5))  # fmt: skip
    axes[0].legend(loc="lower right")
    axes[-1].set_xlabel("mean Jaccard index, 95 % bootstrap interval over images")
    return fig


def locality(panels: dict[str, pd.DataFrame], audit: pd.DataFrame):
    """Distance of LIME's limit to other attributions; what the kernel and the ridge do."""
    fig, axes = plt.subplots(1, len(panels) + 1, figsize=(WIDE, 3.3))
    for ax, (name, frame) in zip(axes, panels.items(), strict=False):
        for index, (reference, group) in enumerate(frame.groupby("reference", sort=False)):
            ax.plot(group["nu"], group["distance"], label=reference, markevery=2, **STYLES[index])
        ax.set(xscale="log", yscale="log", xlabel="kernel width", title=name, ylim=(1e-4, 10))
        ax.axvline(0.25, color="0.5", linestyle=":", linewidth=1)
    axes[0].set_ylabel("relative distance to LIME's limit")
    axes[0].plot([], [], color="0.5", linestyle=":", label="default width")
    for index, column in enumerate(audit.columns.drop("nu")):
        axes[-1].plot(audit["nu"], audit[column], label=column, markevery=3, **STYLES[index])
    axes[-1].set(xscale="log", xlabel="kernel width", ylim=(-0.02, 1.04), ylabel="share",
                 title="40 superpixels, 1,000 masks")  # fmt: skip
    axes[-1].axvline(0.25, color="0.5", linestyle=":", linewidth=1)
    axes[-1].legend(loc="center right", handlelength=1.6, bbox_to_anchor=(1.03, 0.28))
    handles, labels = axes[0].get_legend_handles_labels()
    fig.legend(handles, labels, loc="outside lower center", ncols=3, handlelength=3.5)
    return fig


def top_agreement(frame: pd.DataFrame, summary: pd.DataFrame, stops: dict, cap: int, random: float):
    """Agreement of two runs against their size; below, where the stop rule ends each run.

    The long run of `cap` masks gives cap / 2n pairs of runs of n masks.
    """
    fig, (ax, rug) = plt.subplots(
        2, 1, figsize=(WIDE * 0.8, 3.2 + 0.17 * len(stops)), height_ratios=[2.4, 0.17 * len(stops)],
        sharex=True,
    )  # fmt: skip
    for _, group in frame.groupby("image"):
        ax.plot(group["n"], group["jaccard"], color="0.75", linestyle="-", linewidth=0.8)
    error = [summary["mean"] - summary["low"], summary["high"] - summary["mean"]]
    ax.errorbar(summary["n"], summary["mean"], error, capsize=2, **STYLES[0],
                label=f"mean of {len(stops)} photographs, 95 % interval")  # fmt: skip
    ax.plot([], [], color="0.75", linestyle="-", label="each photograph")
    ax.axhline(random, color="0.4", linestyle="--", linewidth=1, label="random sets of five")
    ax.set(ylim=(0, 1.05), ylabel="top-5 Jaccard of two runs")
    fig.legend(*ax.get_legend_handles_labels(), loc="outside lower center", ncols=3)
    for row, (_, size) in enumerate(stops.items()):
        met = size is not None
        rug.plot(size if met else cap, row, marker="o" if met else ">", color=OKABE_ITO[1],
                 fillstyle="full" if met else "none")  # fmt: skip
    rug.set(
        yticks=range(len(stops)),
        yticklabels=list(stops),
        ylim=(len(stops) - 0.5, -0.5),
        xlabel="masks per explanation (dot: the stop rule ends the run; triangle: goes on)",
    )
    _log_axes(ax, ticks=[*summary["n"], cap])
    pairs = [f"{n:,}\n{k} pair{'s' * (k > 1)}" for n in summary["n"] for k in [cap // (2 * n)]]
    rug.set_xticks([*summary["n"], cap], [*pairs, f"{cap:,}"])
    return fig


def calls(panels: dict[str, pd.DataFrame], reference: int):
    """One panel per kind of function: ratio to the default's error against calls, a line per way.

    `panels` have columns way, calls, value, low, high.
    """
    fig, axes = plt.subplots(2, 3, figsize=(WIDE, 5.2), sharey=True, sharex=True)
    *axes, last = axes.flat
    ways = dict.fromkeys(way for frame in panels.values() for way in frame["way"])
    styles = dict(zip(ways, STYLES, strict=False))
    for ax, (name, frame) in zip(axes, panels.items(), strict=True):
        for way, rows in frame.groupby("way", sort=False):
            ends = [rows["value"] - rows["low"], rows["high"] - rows["value"]]
            ax.errorbar(rows["calls"], rows["value"], ends, capsize=2, label=way, **styles[way])
        ax.axhline(1, color="0.4", linestyle=":", linewidth=1)
        ax.set(title=name, xscale="log", yscale="log")
        ticks = sorted(frame["calls"].unique())
        ax.set_xticks(ticks, [f"{n:,}" for n in ticks])
        ax.xaxis.set_minor_locator(NullLocator())
    axes[0].set_ylim(bottom=0.005)  # whiskers may reach below 0
    for ax in axes[2:]:
        ax.set_xlabel("model calls")
        ax.tick_params(labelbottom=True)
    for ax in axes[::3]:
        ax.set_ylabel(f"squared error over that of\n{reference:,} default masks")
    last.axis("off")
    last.legend(*axes[0].get_legend_handles_labels(), loc="center", handlelength=3)
    return fig


def peers(panels: dict[tuple[str, str], pd.DataFrame]):
    """Ratio of squared errors against calls: a row per target, a column per kind of game.

    `panels` are of `peers.ratios`, by target and kind; ours, whose names start so, in black.
    """
    over = {"LIME": "1,000 masks of lime", "Shapley": "Kernel SHAP, as many calls"}
    targets, kinds = (list(dict.fromkeys(part)) for part in zip(*panels, strict=True))
    fig, axes = plt.subplots(
        len(targets), len(kinds), figsize=(WIDE, 2.9 * len(targets)), sharex=True, squeeze=False
    )
    for (target, kind), frame in panels.items():
        ax = axes[targets.index(target), kinds.index(kind)]
        frame = frame[frame["calls"] < 1000]
        theirs, ours = iter(STYLES[1:]), iter(("-", "--", ":"))
        for way, rows in frame.groupby("way", sort=False):
            if way.startswith("ours"):
                style = STYLES[0] | {"color": "black", "linestyle": next(ours)}
            else:
                style = next(theirs)
            ends = [rows["value"] - rows["low"], rows["high"] - rows["value"]]
            ax.errorbar(rows["calls"], rows["value"], ends, capsize=2, label=way, **style)
        ax.axhline(1, color="0.4", linestyle=":", linewidth=1)
        _log_axes(ax, ticks=sorted(frame["calls"].unique()))
        ax.set(title=f"{target}: {kind}", yscale="log")
        ax.xaxis.set_minor_locator(NullLocator())
    for target, row in zip(targets, axes, strict=True):
        row[0].set_ylabel(f"squared error over that of\n{over[target]}")
        row[-1].legend(loc="center left", bbox_to_anchor=(1.02, 0.5), handlelength=2.5)
    for ax in axes[-1]:
        ax.set_xlabel("model calls")
    return fig


def designs(frames: dict[str, dict[str, pd.DataFrame]]):
    """One panel per image, one line per design."""
    fig, axes = plt.subplots(1, len(frames), figsize=(WIDE, 3.0), sharey=True)
    for ax, (name, by_design) in zip(axes, frames.items(), strict=True):
        for index, (design, frame) in enumerate(by_design.items()):
            _band(ax, frame, "n", "distance", STYLES[index], design)
        _log_axes(ax)
        ax.set(xlabel="model calls", title=name)
    axes[0].set_ylabel("distance to the limit")
    handles, labels = axes[0].get_legend_handles_labels()
    fig.legend(
        handles,
        labels,
        loc="outside lower center",
        ncols=3,
        title_fontsize=7,
        title=f"root mean square of {frame['repeat'].nunique()} repeats; bands: 95 % of them",
    )
    return fig
