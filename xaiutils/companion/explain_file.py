"""From a reader's file to an explanation of what a model says about it, with errors.

What ``xaiutils explain FILE`` does: LIME with a stop rule, on superpixels of a photograph or on
time-frequency cells of two seconds of sound.
"""

from __future__ import annotations

import io
import sys
from dataclasses import dataclass
from pathlib import Path
from threading import Timer
from typing import NamedTuple

import matplotlib.pyplot as plt
import numpy as np
from scipy.stats import norm
from tqdm import tqdm

from xaiutils import lime
from xaiutils.companion import own_model, report, subject
from xaiutils.companion.drawing import dots
from xaiutils.companion.figures import WIDE, use_style
from xaiutils.companion.subject import OptionError, Options, Subject

TOP = 3  # cells, unless told otherwise or there are fewer
ROUNDS = 8  # of masks, at most
_SHOWN = 20  # coefficients in the drawing, at most
_PATIENCE = 4  # seconds without a word


class Report(NamedTuple):
    """What was found: words for the terminal, a drawing, and the explanation itself."""

    text: str
    figure: plt.Figure
    found: lime.Explanation

    def png(self, notes: dict[str, str]) -> bytes:
        """The drawing as a PNG file with these notes in it."""
        buffer = io.BytesIO()
        notes = {
            key: text.encode(errors="backslashreplace").decode() for key, text in notes.items()
        }
        self.figure.savefig(buffer, format="png", dpi=200, metadata=notes)
        return buffer.getvalue()


def explain(path: str | Path, options: Options) -> Report:
    """Explain what a model says about a photograph or a sound.

    Parameters
    ----------
    path : str or Path
        See `files.read_photograph` and `files.read_sound`; its content decides which it is.
    options : Options

    Returns
    -------
    Report

    Raises
    ------
    ValueError
        File, model or options do not fit; the message is one line. See `subject.read`.
    xaiutils.data.assets.AssetError
        The default model cannot be fetched.
    """
    it = subject.read(path, options)
    d = it.cells.d
    if d < 2:
        raise OptionError(f"{path} has one cell only; set more by cells, e.g. 8x8")
    top = min(TOP, d - 1) if options.top is None else options.top
    if not 1 <= top < d:
        raise OptionError(f"top {top} is not allowed: of {d} cells 1..{d - 1} can be the top ones")
    if options.masks < d + 2:
        raise OptionError(f"masks {options.masks} are too few: {d} cells need at least {d + 2}")
    values, blank = own_model.ask(it.model, np.stack([it.x, it.hidden]))
    largest = int(values.argmax())
    target = options.target
    target = largest if target is None else subject.checked_target(target, len(values))
    found = _fitted(it, target, top, options)

    said = [f"{it.model_name} says: {it.output(target)}, {it.kind} {values[target]:.3f}; "
            f"with everything hidden {blank[target]:.3f}"]  # fmt: skip
    if target != largest:
        said.append(f"(its largest: {it.output(largest)}, {values[largest]:.3f})")
    lines = [
        it.title,
        *said,
        f"LIME, {d} cells, {len(found.masks)} masks: {_verdict(found, top)}",
        "",
    ]
    lines += _table(report.ranking(found, top, looks=ROUNDS), it)
    title = f"{it.output(target)}: {values[target]:.2f}"
    return Report("\n".join(lines), _drawn(it, found, top, title), found)


@dataclass(frozen=True)
class _Watched(lime.Stop):
    """The stop rule, which moves a bar by one round each time it is asked."""

    bar: tqdm | None = None
    notice: Timer | None = None

    def met(self, *args, **kwargs):
        self.notice.cancel()
        self.bar.update(self.bar.total // ROUNDS)
        return super().met(*args, **kwargs)


def _fitted(it: Subject, target: int, top: int, options: Options) -> lime.Explanation:
    most = ROUNDS * options.masks
    notice = Timer(_PATIENCE, print, ["making the model ready, once ..."], {"file": sys.stderr})
    notice.daemon = True
    with tqdm(total=most, desc="masks, at most", delay=_PATIENCE, leave=False) as bar:
        notice.start()
        try:
            return lime.explain(
                it.model,
                it.x,
                it.cells,
                targets=target,
                n_samples=options.masks,
                filler=it.hidden,
                stop=_Watched(top_k=top, max_samples=most, bar=bar, notice=notice),
                seed=options.seed,
            )
        except (RuntimeError, TypeError, LookupError) as error:
            if options.model is None:
                raise
            raise own_model.ModelError(f"the model raised {own_model.words(error)}") from error
        finally:
            notice.cancel()


def _verdict(found: lime.Explanation, top: int) -> str:
    if np.isnan(found.score):
        return "hiding cells changes nothing in the answer, no cell is above another"
    if found.converged:
        return f"the top {top} are told apart from the rest (95 %)"
    return f"the top {top} are NOT told apart from the rest: try more masks or another top"


def _table(rows, it: Subject) -> list[str]:
    said = {True: "yes", False: "no", None: "-"}
    errors = rows["stderr"][rows["stderr"] > 0]
    decimals = 4 if errors.empty else int(np.clip(2 - np.floor(np.log10(errors.min())), 4, 9))
    lines = [f"rank  cell  coefficient  std. error  above the next  {it.where}"]
    for rank, row in rows.iterrows():
        numbers = f"{row['coefficient']:11.{decimals}f}  {row['stderr']:10.{decimals}f}"
        place = it.place(it.labels == row["cell"])
        lines.append(f"{rank:4}  {row['cell']:4}  {numbers}  {said[row['apart']]:14}  {place}")
    return lines


def _drawn(it: Subject, found: lime.Explanation, top: int, title: str) -> plt.Figure:
    """The input, its cells in colours, and the coefficients of the top cells and the next one."""
    shown = min(top + 1, _SHOWN)
    height = 2.6 + 0.1 * max(shown - 8, 0)
    with plt.rc_context():
        use_style()
        fig, axes = plt.subplots(1, 3, figsize=(WIDE, height), width_ratios=(3, 3, 2))
        for ax in axes[:2]:
            it.show(ax)
        axes[0].set_title(title)
        drawn = report.coloured_cells(axes[1], it.labels, found.coef, top)
        axes[1].set_title("red raises the answer, blue lowers it")
        fig.colorbar(drawn, ax=axes[1], fraction=0.05, label="coefficient")
        rows = report.ranking(found, shown)
        value, half = rows["coefficient"], norm.isf(0.025) * rows["stderr"]
        dots(axes[2], rows.assign(value=value, low=value - half, high=value + half), rows.index)
        axes[2].axvline(0, color="black", linewidth=0.6)
        axes[2].set(
            title="with 95 % intervals",
            xlabel="coefficient",
            yticks=rows.index,
            yticklabels=[f"{rank}: cell {cell}" for rank, cell in rows["cell"].items()],
            ylim=(shown + 0.5, 0.5),
        )
    return fig
