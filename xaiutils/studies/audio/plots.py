"""Drawings of notebook 01."""

from __future__ import annotations

import io

import librosa
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import soundfile
from IPython.display import Audio

from xaiutils.classifiers.singing import BANDS, HOP, RATE
from xaiutils.companion.drawing import dots
from xaiutils.companion.figures import OKABE_ITO, SIGNED_CMAP, STYLES, WIDE
from xaiutils.data.excerpts import FRAMES
from xaiutils.studies.audio import experiments as study
from xaiutils.studies.audio.experiments import CELLS, CONDITIONS, HEIGHTS, TIMES, Case

_EDGES = ("20", "650", "1,800", "3,900", "8,000")  # Hz, of the four rows of cells
_RANKINGS = ("greedy", "norm", "LIME", "random")


def spectrogram(ax, features, title="", *, grid=True, **options):
    """Log-mel features (165, 80) with the cells' edges."""
    drawn = librosa.display.specshow(
        np.asarray(features).T, sr=RATE, hop_length=HOP, x_axis="s", ax=ax, **options
    )
    seconds = FRAMES * HOP / RATE
    rows = np.linspace(0, BANDS, HEIGHTS + 1)
    if grid:
        for time in np.linspace(0, seconds, TIMES + 1)[1:-1]:
            ax.axvline(time, color="white", linewidth=0.6, linestyle="-")
        for row in rows[1:-1]:
            ax.axhline(row, color="white", linewidth=0.6, linestyle="-")
    ax.set(title=title, xlabel="time, s", yticks=rows, yticklabels=_EDGES, ylabel="")
    ax.grid(False)
    return drawn


def player(samples) -> Audio:
    """Player of a sound (n,) at 16 kHz in [-1, 1], without loss at half the size of a WAV file."""
    data = io.BytesIO()
    soundfile.write(data, samples, RATE, format="FLAC", subtype="PCM_16")
    audio = Audio(data.getvalue())
    audio.mimetype = "audio/flac"
    return audio


def _frame(ax, cells, color, *, linewidth=2.0, linestyle="-"):
    """Outline cells of the grid."""
    width, height = FRAMES * HOP / RATE / TIMES, BANDS / HEIGHTS
    for cell in cells:
        t, f = divmod(int(cell), HEIGHTS)
        box = plt.Rectangle(
            (t * width, f * height), width, height, fill=False, edgecolor=color,
            linewidth=linewidth, linestyle=linestyle, clip_on=False, zorder=3,
        )  # fmt: skip
        ax.add_patch(box)


def excerpts(cases: list[Case], explanations, probabilities):
    """One row per case: clean, adversarial, difference, with the top three cells of both."""
    fig, axes = plt.subplots(len(cases), 3, figsize=(WIDE, 1.75 * len(cases) + 0.6), sharey=True)
    for row, (case, explanation, p) in enumerate(
        zip(cases, explanations, probabilities, strict=True)
    ):
        low, high = case.clean.min(), case.clean.max()
        for ax, features, name, value in zip(
            axes[row], (case.clean, case.adversarial), ("clean", "attacked"), p, strict=False
        ):
            spectrogram(ax, features, f"{name}: P(singing) = {value:.2f}",
                        cmap="magma", vmin=low, vmax=high)  # fmt: skip
        difference = case.difference
        limits = np.quantile(np.abs(difference), 0.995)
        drawn = spectrogram(axes[row, 2], difference, f"difference\n{case.condition}",
                            cmap=SIGNED_CMAP, vmin=-limits, vmax=limits, grid=False)  # fmt: skip
        fig.colorbar(drawn, ax=axes[row, 2], label="log energy", fraction=0.05)
        by_norm = study.order(study.norms(case))[:3]
        by_lime = study.order(case.direction * explanation.coef)[:3]
        _frame(axes[row, 2], by_norm, "black", linewidth=2.6)
        _frame(axes[row, 2], by_lime, OKABE_ITO[4], linewidth=1.6, linestyle="--")
        axes[row, 0].set_ylabel("mel bands, Hz")
    for ax in axes[:-1].ravel():
        ax.set(xlabel="", xticklabels=[])
    handles = [
        plt.Line2D([], [], color="black", linewidth=2.6, linestyle="-"),
        plt.Line2D([], [], color=OKABE_ITO[4], linewidth=1.6, linestyle="--"),
    ]
    names = ["three cells of largest norm", "LIME's top three cells"]
    fig.legend(handles, names, loc="outside lower center", ncols=2)
    return fig


def flip_curves(summary: pd.DataFrame):
    """Share of excerpts flipped by the first k cells, one panel per condition."""
    fig, axes = plt.subplots(2, 2, figsize=(WIDE, 4.9), sharex=True, sharey=True)
    for ax, condition in zip(axes.ravel(), CONDITIONS, strict=True):
        part = summary[summary["condition"] == condition]
        for index, name in enumerate(_RANKINGS):
            line = part[part["ranking"] == name]
            ax.plot(line["k"], line["value"], label=name, markevery=2, **STYLES[index])
            ax.fill_between(
                line["k"], line["low"], line["high"], color=OKABE_ITO[index], alpha=0.13
            )
        n = int(part["n"].max())
        ax.set(title=f"{condition} (n = {n})", xticks=[1, 5, 10, 15, 20], ylim=(-0.03, 1.05))
    for ax in axes[1]:
        ax.set_xlabel("k cells pasted")
    for ax in axes[:, 0]:
        ax.set_ylabel("share of excerpts flipped")
    fig.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=4,
               handlelength=4)  # fmt: skip
    return fig


def tables(ours: dict[str, pd.DataFrame], published: dict[str, dict]):
    """Our rates with intervals beside the published ones, one panel per table.

    `ours` has columns condition, ranking, value, low, high; `published` maps (condition, ranking)
    to a share.
    """
    fig, axes = plt.subplots(1, len(ours), figsize=(WIDE, 2.9), sharey=True)
    for ax, (title, frame) in zip(axes, ours.items(), strict=True):
        names = list(frame["ranking"].unique())
        for index, name in enumerate(names):
            part = frame[frame["ranking"] == name]
            y = [
                CONDITIONS.index(c) + 0.26 * (index - (len(names) - 1) / 2)
                for c in part["condition"]
            ]
            style = 2 if name == "LIME" else 1
            dots(ax, part, y, style=style, label=f"{name}, here")
            paper = [published[title][c, name] for c in part["condition"]]
            ax.plot(paper, y, marker=STYLES[style]["marker"], fillstyle="none", color="black",
                    linestyle="", markersize=7, label=f"{name}, paper")  # fmt: skip
        ax.set(title=title, xlim=(-0.03, 1.05), xlabel="share of excerpts flipped",
               yticks=range(len(CONDITIONS)), yticklabels=CONDITIONS,
               ylim=(len(CONDITIONS) - 0.4, -0.6))  # fmt: skip
    fig.legend(*axes[-1].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return fig


def overlap(counts: dict[tuple[str, int], np.ndarray], ks):
    """Histograms of the overlap with the chance level, conditions by k."""
    fig, axes = plt.subplots(len(CONDITIONS), len(ks), figsize=(WIDE, 6.2), sharey="row")
    for row, condition in enumerate(CONDITIONS):
        for column, k in enumerate(ks):
            ax = axes[row, column]
            found = counts.get((condition, k), np.zeros(k + 1, int))
            n = found.sum()
            x = np.arange(k + 1)
            ax.bar(x, found / max(n, 1), color=OKABE_ITO[2], width=0.75, label="LIME")
            for cell, count in zip(x, found, strict=True):
                height = max(found[cell] / max(n, 1), study.chance(k)[cell])
                ax.text(cell, height + 0.03, count, ha="center", fontsize=7)
            ax.plot(x, study.chance(k), color="black", marker="_", markersize=16, linestyle="",
                    label="cells drawn at random")  # fmt: skip
            ax.set(xticks=x, ylim=(0, 1.2), title=f"k = {k}, n = {n}")
            ax.grid(axis="x", visible=False)
        axes[row, 0].set_ylabel(condition.replace(", ", ",\n"))
    for ax in axes[-1]:
        ax.set_xlabel("cells found of k")
    fig.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return fig


def fidelity(frame: pd.DataFrame, aucs: dict):
    """R^2 of explanations that find all k cells and of those that do not."""
    fig, axes = plt.subplots(1, len(aucs), figsize=(WIDE, 2.7), sharey=True)
    for ax, (k, estimate) in zip(axes, aucs.items(), strict=True):
        part = frame[frame["k"] == k]
        for position, right in enumerate((False, True)):
            scores = part.loc[(part["overlap"] == k) == right, "score"].to_numpy()
            if len(scores) > 4:
                ax.boxplot(scores, positions=[position], widths=0.5, whis=(0, 100),
                           medianprops={"color": OKABE_ITO[0], "linestyle": "-"})  # fmt: skip
            jitter = np.random.default_rng(0).uniform(-0.16, 0.16, len(scores))
            ax.plot(position + jitter, scores, color=OKABE_ITO[1 + position],
                    marker="os"[position], markersize=3, linestyle="", alpha=0.7)  # fmt: skip
        known = np.isfinite(estimate.value)
        title = f"AUC {estimate.value:.2f} [{estimate.low:.2f}, {estimate.high:.2f}]"
        counts = [int(((part["overlap"] == k) == right).sum()) for right in (False, True)]
        ax.set(xticks=[0, 1], xlim=(-0.6, 1.6), ylim=(0, 1),
               xticklabels=[f"not all found\nn = {counts[0]}", f"all found\nn = {counts[1]}"],
               title=f"k = {k}\n{title if known else 'no comparison'}")  # fmt: skip
        ax.grid(axis="x", visible=False)
    axes[0].set_ylabel("LIME's own fidelity R²")
    return fig


def drawings(examples: dict[str, dict]):
    """For each shape that turned an answer: the drawn excerpt with LIME's top three cells."""
    fig, axes = plt.subplots(1, 2 * len(examples), figsize=(WIDE, 2.5), sharey=True, squeeze=False)
    for (name, found), (left, right) in zip(examples.items(), axes[0].reshape(-1, 2), strict=True):
        case = found["case"]
        low, high = case.clean.min(), case.adversarial.max()
        spectrogram(left, case.clean, f"clean\nP = {found['before']:.2f}", cmap="magma",
                    vmin=low, vmax=high)  # fmt: skip
        spectrogram(right, case.adversarial, f"{name}\nP = {found['after']:.2f}", cmap="magma",
                    vmin=low, vmax=high)  # fmt: skip
        top = study.order(found["explanation"].coef)[:3]
        _frame(right, top, OKABE_ITO[5], linewidth=2.2, linestyle="--")
    axes[0, 0].set_ylabel("mel bands, Hz")
    handle = plt.Line2D([], [], color=OKABE_ITO[5], linewidth=2.2, linestyle="--")
    fig.legend([handle], ["LIME's top three cells"], loc="outside lower center")
    return fig


def known_cells(summary: pd.DataFrame, k: int, chance: float):
    """Precision of each explainer, those that are shown the clean excerpt apart."""
    fig, axes = plt.subplots(1, 2, figsize=(WIDE, 2.8), sharex=True)
    kinds = {"sees the attacked excerpt only": False, "is also shown the clean excerpt": True}
    for ax, (title, informed) in zip(axes, kinds.items(), strict=True):
        part = summary[summary["informed"] == informed]
        names = list(part["explainer"].unique())
        for index, condition in enumerate(part["condition"].unique()):
            rows = part[part["condition"] == condition]
            y = [names.index(name) + 0.24 * (index - 0.5) for name in rows["explainer"]]
            dots(ax, rows, y, style=index, label=f"{condition} (n = {rows['n'].max()})")
        ax.axvline(chance, color="0.4", linestyle=":", linewidth=1, label="chance")
        ax.set(yticks=range(len(names)), yticklabels=names, ylim=(len(names) - 0.5, -0.5),
               title=title, xlim=(-0.03, 1.05),
               xlabel=f"share of the {k} cells among its top {k}")  # fmt: skip
    fig.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return fig


def sampling(summary: pd.DataFrame, level, exact: pd.DataFrame):
    """Left: LIME against its number of masks. Right: 12 cells, where the limit is known."""
    fig, (left, right) = plt.subplots(1, 2, figsize=(WIDE, 2.9), width_ratios=[1, 1.15])
    error = [summary["value"] - summary["low"], summary["high"] - summary["value"]]
    left.errorbar(summary["n_masks"], summary["value"], error, capsize=2, label="LIME", **STYLES[2])
    left.axhline(level.value, label="norm", color=OKABE_ITO[1], linestyle="--")
    left.axhspan(level.low, level.high, color=OKABE_ITO[1], alpha=0.13)
    ticks = list(summary["n_masks"])
    left.set(xscale="log", ylim=(0, 1), xlabel="masks", ylabel="mean share flipped, k = 1 to 19",
             title=f"20 cells, {level.n} tracks")  # fmt: skip
    left.set_xticks(ticks, [f"{t:,}" for t in ticks])
    left.minorticks_off()
    left.legend(loc="lower left")
    y = range(len(exact))
    dots(right, exact, y)
    right.set(yticks=y, yticklabels=exact["ranking"], ylim=(len(exact) - 0.5, -0.5), xlim=(0, 1),
              xlabel="mean share flipped, k = 1 to 11",
              title=f"12 cells, all 4,096 masks, {int(exact['n'].max())} tracks")  # fmt: skip
    return fig


def off_states(flips: pd.DataFrame, scores: pd.DataFrame):
    """Mean flips, and R^2, by off state and kernel width."""
    fig, axes = plt.subplots(1, 2, figsize=(WIDE, 2.9), sharey=True)
    titles = ("mean share flipped, k = 1 to 19", "LIME's own fidelity R²")
    for ax, frame, title in zip(axes, (flips, scores), titles, strict=True):
        names = list(frame["off_state"].unique())
        widths = sorted(frame["width"].unique())
        for index, width in enumerate(widths):
            part = frame[frame["width"] == width]
            y = [names.index(name) + 0.22 * (index - 1) for name in part["off_state"]]
            dots(ax, part, y, style=index, label=f"kernel width {width}")
        ax.set(yticks=range(len(names)), yticklabels=names, ylim=(len(names) - 0.5, -0.5),
               xlabel=title, xlim=(-0.02, 1.02))  # fmt: skip
    fig.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return fig


def minimal_sets(frame: pd.DataFrame, largest: int):
    """Cells that each ranking needs against the smallest set that suffices."""
    fig, axes = plt.subplots(1, 3, figsize=(WIDE, 2.7), sharey=True, sharex=True)
    top = CELLS.d + 1
    for ax, (index, name) in zip(axes, enumerate(("greedy", "norm", "LIME")), strict=True):
        for exact, marker in ((True, "o"), (False, "^")):
            part = frame[frame["exact"] == exact]
            counts = part.groupby(["minimal", name]).size().reset_index(name="count")
            ax.scatter(counts["minimal"], counts[name], s=14 * counts["count"], marker=marker,
                       color=OKABE_ITO[index], alpha=0.75, linewidths=0)  # fmt: skip
        ax.plot([0, top], [0, top], color="0.5", linewidth=0.8, linestyle="--")
        extra = (frame[name] - frame["minimal"]).mean()
        ax.set(title=f"{name}: {extra:+.1f} cells on average", xlim=(0, top), ylim=(0, top),
               xlabel="fewest cells that flip", xticks=[1, 5, 10, 15, 20],
               yticks=[1, 5, 10, 15, 20])  # fmt: skip
    axes[0].set_ylabel(f"cells the ranking needs (n = {len(frame)})")
    handles = [plt.Line2D([], [], color="0.3", marker=m, linestyle="") for m in "o^"]
    names = ["all smaller sets tried", f"an upper bound: sets of up to {largest} cells tried"]
    fig.legend(handles, names, loc="outside lower center", ncols=2)
    return fig
