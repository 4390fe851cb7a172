"""Drawings of notebook 03."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import skimage

from xaiutils.companion.drawing import dots, picture
from xaiutils.companion.figures import OKABE_ITO, STYLES, WIDE

_ORDERS = {"mif": "most important first", "lif": "least important first"}


def _named(ax, names: Sequence[str], **options):
    """Names down the left side, the first on top."""
    ax.set(yticks=range(len(names)), yticklabels=names, ylim=(len(names) - 0.5, -0.5), **options)


def maps(image, found: Mapping[str, np.ndarray], title: str):
    """A photograph and its maps, each as the rank of its pixels, averaged over blocks of 2 x 2."""
    fig, axes = plt.subplots(2, (len(found) + 2) // 2, figsize=(WIDE, 3.2))
    image = np.asarray(image).transpose(1, 2, 0)
    picture(axes.ravel()[0], image, title)
    for ax, (name, scores) in zip(axes.ravel()[1:], found.items(), strict=False):
        rank = np.asarray(scores).ravel().argsort().argsort().reshape(np.shape(scores))
        blocks = skimage.transform.downscale_local_mean(rank / (rank.size - 1), (2, 2))
        drawn = picture(ax, blocks, name, cmap="viridis", vmin=0, vmax=1)
    for ax in axes.ravel()[len(found) + 1 :]:
        ax.set_visible(False)
    fig.colorbar(drawn, ax=axes, label="rank (1: most important)", shrink=0.7, fraction=0.03)
    return fig


def curves(panels: Mapping[str, pd.DataFrame], methods: Sequence[str]):
    """Accuracy against the share hidden, data sets by order."""
    fig, axes = plt.subplots(len(panels), 2, figsize=(WIDE, 2.6 * len(panels) + 0.6),
                             sharex=True, sharey=True)  # fmt: skip
    for row, (name, table) in zip(axes, panels.items(), strict=True):
        for ax, (order, words) in zip(row, _ORDERS.items(), strict=True):
            for index, method in enumerate(methods):
                line = table[(table["method"] == method) & (table["order"] == order)]
                ax.plot(100 * line["fraction"], line["value"], label=method, markevery=5,
                        **STYLES[index])  # fmt: skip
                if method in ("random", "SmoothGrad²"):
                    ax.fill_between(100 * line["fraction"], line["low"], line["high"],
                                    color=OKABE_ITO[index], alpha=0.12)  # fmt: skip
            ax.set(title=f"{name} (n = {int(table['n'].max())}): {words}", ylim=(-0.02, 1.03))
        row[0].set_ylabel("accuracy")
    for ax in axes[-1]:
        ax.set_xlabel("pixels hidden, %")
    fig.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=4,
               handlelength=4)  # fmt: skip
    return fig


def decomposition(panels: Mapping[str, pd.DataFrame], methods: Sequence[str]):
    """Stacked bars: the drop D is the artifact estimate P plus the fidelity F."""
    fig, axes = plt.subplots(1, len(panels), figsize=(WIDE, 3.6), sharey=True, sharex=True)
    y = np.arange(len(methods))
    for ax, (name, table) in zip(axes, panels.items(), strict=True):
        part = {
            q: table[table["quantity"] == q].set_index("method").loc[list(methods)] for q in "PFD"
        }
        p, f = part["P"]["value"].to_numpy(), part["F"]["value"].to_numpy()
        ax.barh(y, p, color=OKABE_ITO[4], height=0.7, label="P: artifact estimate")
        ax.barh(y, f.clip(0), left=p, color=OKABE_ITO[0], height=0.7, label="F: fidelity",
                hatch="//", edgecolor="white", linewidth=0)  # fmt: skip
        if (below := f < 0).any():
            ax.barh(y[below], -f[below], left=(p + f)[below], height=0.7, color="white",
                    edgecolor=OKABE_ITO[1], label="negative F: P is longer than D")  # fmt: skip
        for q, shift in (("P", -0.14), ("D", 0.14)):
            dots(ax, part[q], y + shift, color="black", marker="", label=None, elinewidth=1)
        _named(ax, methods, xlabel="area", title=f"{name} (n = {int(table['n'].max())})")
        ax.axvline(0, color="0.4", linewidth=0.8, linestyle="-")
        ax.grid(axis="y", visible=False)
    fig.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return fig


def fillers(panels: Mapping[str, pd.DataFrame], quantity: str, xlabel: str):
    """One quantity by filler (rows) and method (marks)."""
    fig, axes = plt.subplots(1, len(panels), figsize=(WIDE, 3.2), sharey=True)
    for ax, (name, table) in zip(axes, panels.items(), strict=True):
        table = table[table["quantity"] == quantity]
        names = list(dict.fromkeys(table["filler"]))
        methods = list(dict.fromkeys(table["method"]))
        for index, method in enumerate(methods):
            rows = table[table["method"] == method]
            shift = 0.16 * (index - (len(methods) - 1) / 2)
            y = [names.index(filler) + shift for filler in rows["filler"]]
            dots(ax, rows, y, style=index, label=method)
        _named(ax, names, xlabel=xlabel, title=f"{name} (n = {int(table['n'].max())})")
    fig.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return fig


def agreement(panels: Mapping[str, pd.DataFrame]):
    """Mean Spearman correlation of method rankings, for MIF only, LIF only and F."""
    names = {"auc_mif": "MIF only", "auc_lif": "LIF only", "F": "area F"}
    fig, axes = plt.subplots(1, len(panels), figsize=(WIDE, 1.9), sharey=True)
    for ax, (title, table) in zip(axes, panels.items(), strict=True):
        rows = table.set_index("quantity").loc[list(names)]
        for index, quantity in enumerate(names):
            dots(ax, rows.loc[[quantity]], [index], style=index)
        n = int(rows["n"].max())
        _named(ax, list(names.values()), xlim=(-0.05, 1.05), title=f"{title} (n = {n})")
    fig.supxlabel("mean rank correlation of the methods between settings", fontsize=8)
    return fig


def crops(table: pd.DataFrame, rho):
    """Fidelity against the crop score of each method; columns method, F..., s..."""
    fig, ax = plt.subplots(figsize=(WIDE * 0.75, 3.3))
    for index, row in enumerate(table.itertuples()):
        style = STYLES[index % len(STYLES)]
        ax.errorbar(
            row.F, -row.s, xerr=[[row.F - row.F_low], [row.F_high - row.F]],
            yerr=[[row.s_high - row.s], [row.s - row.s_low]], color=style["color"],
            marker=style["marker"], linestyle="", elinewidth=0.7, label=row.method,
            fillstyle="full" if index < len(STYLES) else "none",
        )  # fmt: skip
    ax.set(xlabel="fidelity F", ylabel="crop score -s (higher is better)",
           title=f"rank correlation {rho.text()}, {rho.n} photographs")  # fmt: skip
    fig.legend(*ax.get_legend_handles_labels(), loc="outside right upper")
    return fig


def measures(panels: Mapping[str, pd.DataFrame], methods: Sequence[str]):
    """F relative to the largest of its row, for each measured quantity."""
    fig, axes = plt.subplots(1, len(panels), figsize=(WIDE, 3.1), sharey=True)
    for ax, (name, table) in zip(axes, panels.items(), strict=True):
        kinds = list(dict.fromkeys(table["measure"]))
        for index, kind in enumerate(kinds):
            rows = table[table["measure"] == kind].set_index("method").loc[list(methods)]
            scale = rows["value"].abs().max()
            scaled = rows[["value", "low", "high"]] / scale
            dots(ax, scaled, np.arange(len(methods)) + 0.22 * (index - 1), style=index, label=kind)
        ax.axvline(0, color="0.4", linewidth=0.8, linestyle="-")
        _named(ax, methods, xlabel="F, largest = 1", title=f"{name} (n = {int(table['n'].max())})")
    fig.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return fig


def signs(table: pd.DataFrame):
    """F of absolute and of signed maps; columns data, method, kind, value, low, high, n."""
    names = list(dict.fromkeys(table["data"]))
    fig, axes = plt.subplots(1, len(names), figsize=(WIDE, 2.2), sharey=True)
    methods = list(dict.fromkeys(table["method"]))
    for ax, data in zip(axes, names, strict=True):
        part = table[table["data"] == data]
        for index, kind in enumerate(("absolute", "signed")):
            rows = part[part["kind"] == kind]
            y = [methods.index(m) + 0.2 * (index - 0.5) for m in rows["method"]]
            dots(ax, rows, y, style=index, label=kind)
        ax.axvline(0, color="0.4", linewidth=0.8, linestyle="-")
        _named(ax, methods, xlabel="fidelity F", title=f"{data} (n = {int(part['n'].max())})")
    fig.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return fig


def swaps(panels: Mapping[str, pd.DataFrame]):
    """Three estimates of the artifact beside the drop they should explain a part of."""
    fig, axes = plt.subplots(1, len(panels), figsize=(WIDE, 2.9), sharey=True)
    for ax, (name, table) in zip(axes, panels.items(), strict=True):
        methods = list(dict.fromkeys(table["method"]))
        for index, curve in enumerate(dict.fromkeys(table["curve"])):
            rows = table[table["curve"] == curve]
            y = [methods.index(m) + 0.18 * (index - 1.5) for m in rows["method"]]
            dots(ax, rows, y, style=index, label=curve)
        _named(ax, methods, xlabel="area of the accuracy drop",
               title=f"{name} (n = {int(table['n'].max())})")  # fmt: skip
    fig.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return fig


def dial(table: pd.DataFrame):
    """Planted truth: estimated against true artifact, and who has the largest F."""
    fig, axes = plt.subplots(1, 3, figsize=(WIDE, 3.0))
    names = list(dict.fromkeys(table["method"]))
    for ax, (quantity, label) in zip(
        axes,
        (("P", "artifact estimate P"), ("artifact_mif", "true artifact of the MIF masks"),
         ("F", "fidelity F")),
        strict=True,
    ):  # fmt: skip
        for index, name in enumerate(names):
            rows = table[(table["method"] == name) & (table["quantity"] == quantity)]
            error = [rows["value"] - rows["low"], rows["high"] - rows["value"]]
            ax.errorbar(rows["dial"], rows["value"], error, capsize=2, label=name, **STYLES[index])
        ax.set(xlabel="dial of the artifact", title=label)
    axes[0].set_ylabel("area of accuracy")
    low = min(ax.get_ylim()[0] for ax in axes[:2])
    high = max(ax.get_ylim()[1] for ax in axes[:2])
    for ax in axes[:2]:
        ax.set_ylim(low, high)
    fig.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=6,
               handlelength=3)  # fmt: skip
    return fig


def geometry(points: pd.DataFrame):
    """Estimates of the artifact of MIF masks against the truth, artifact by map."""
    artifacts = list(dict.fromkeys(points["artifact"]))
    methods = list(dict.fromkeys(points["method"]))
    fig, axes = plt.subplots(len(artifacts), len(methods), figsize=(WIDE, 4.6), sharex=True,
                             sharey=True)  # fmt: skip
    for row, artifact in zip(axes, artifacts, strict=True):
        for ax, method in zip(row, methods, strict=True):
            part = points[(points["artifact"] == artifact) & (points["method"] == method)]
            for index, curve in enumerate(dict.fromkeys(part["curve"])):
                line = part[part["curve"] == curve]
                style = STYLES[6] if curve == "truth" else STYLES[index]
                ax.plot(100 * line["fraction"], line["value"], label=curve, markevery=4, **style)
                ax.fill_between(100 * line["fraction"], line["low"], line["high"],
                                color=style["color"], alpha=0.1)  # fmt: skip
            ax.set(title=f"artifact counts {'pixels' if artifact == 'count' else 'edges'}, "
                         f"map: {method}")  # fmt: skip
        row[0].set_ylabel("accuracy lost")
    for ax in axes[-1]:
        ax.set_xlabel("pixels hidden, %")
    fig.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=4,
               handlelength=4)  # fmt: skip
    return fig
