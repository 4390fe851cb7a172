"""Which network, bound and stopping time: chosen on images that no generator was trained on.

The rule: of all networks, bounds and stopping times tried, take the one whose images lie nearest to
their inputs (mean absolute difference), among those that a referee certainly takes for the target
class at most .05 less often than the nearest training samples: the lower end of Wilson's interval
of the share decides. If there is none, take the one that the referee accepts most often. The
referee is a classifier of a family that neither is explained nor judges (`referee`).

``python -m xaiutils.studies.ganmex.choice [PROBLEM ...]`` trains all candidates (hours); what an
interrupted call has measured is kept.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch

from xaiutils import baselines, constrained_gan, ganmex, intervals
from xaiutils.classifiers import small, trained
from xaiutils.data import assets, problems
from xaiutils.runtime import predicted
from xaiutils.studies.ganmex import models, rivals

FOLDER = assets.DATA / "gan_choice"
HELD_OUT = rivals.HELD_OUT
EVERY = 250  # iterations between two measurements
ITERATIONS = 1000
LONGER = 2000  # on scenes with a critic that is told the class, where 1,000 were not enough
AFFORDED = {"scenes": 2000}  # iterations, else 750, as what is chosen is trained five times
MARGIN = 0.05


class Candidate(NamedTuple):
    """A network and a bound for one problem."""

    problem: str
    size: int
    form: str
    bound: float
    told: bool


# On scenes no network was accepted; then, on all problems, the critic was told the class as well.
CANDIDATES = [
    Candidate(*main, form, 0.1, told)
    for main in models.MAIN.items()
    for told in (False, True)
    for form in ("identity", "mask", "paint")
]
# On scenes again none was, so the one accepted most often was tried with a tighter bound.
CANDIDATES.append(Candidate("scenes", models.MAIN["scenes"], "mask", 0.03, True))


def referee(problem: str) -> str:
    """Family of the classifier that chooses."""
    return "strided" if small.explained(problem) == "deeper" else "deeper"


def settings(candidate: Candidate) -> constrained_gan.Settings:
    """Of its training."""
    return models.constrained(candidate.problem, *candidate[2:])


def iterations(candidate: Candidate) -> int:
    """For which it is followed; *paint* is the farthest network, and was not followed longer."""
    longer = candidate.problem == "scenes" and candidate.told and candidate.form != "paint"
    return LONGER if longer else ITERATIONS


class HeldOut(NamedTuple):
    """The images that choose, `x` (n, C, H, W), each with a `target`, and those left to train on.

    ``model`` is explained, ``referee`` chooses; ``nearest`` are the nearest of ``images``.
    """

    x: torch.Tensor
    target: np.ndarray
    images: torch.Tensor
    labels: torch.Tensor
    model: torch.nn.Module
    referee: torch.nn.Module
    nearest: np.ndarray

    def judged(self, made: np.ndarray) -> dict[str, float]:
        """What the referee says of baselines (n, C, H, W), see `follow`."""
        row = {}
        for name, b in (("", made), ("mdts ", self.nearest)):
            row[f"{name}taken"] = (predicted(self.referee, b) == self.target).mean()
            row[f"{name}distance"] = np.abs(b - self.x.numpy()).mean()
        return row | {"explained": (predicted(self.model, made) == self.target).mean()}


def held_out(problem: str, size: int, n: int = HELD_OUT) -> HeldOut:
    """The first `n` of the images held out, each with a random target."""
    data = problems.load(problem, size)
    x, labels = data.train_images[-HELD_OUT:][:n], data.train_labels[-HELD_OUT:][:n].numpy()
    rng, classes = np.random.default_rng(0), len(data.classes)
    if problem == "scenes":
        target = labels ^ rng.integers(1, 3, len(x))
    else:
        target = (labels + rng.integers(1, classes, len(x))) % classes
    images, their = data.train_images[:-HELD_OUT], data.train_labels[:-HELD_OUT]
    model = small.load(problem, size, small.explained(problem)).requires_grad_(False)
    judge = small.load(problem, size, referee(problem))
    nearest = baselines.NearestSample(images, their)(x.numpy(), target)
    return HeldOut(x, target, images, their, model, judge, nearest)


def follow(candidate: Candidate) -> pd.DataFrame:
    """Train a candidate; every `EVERY` iterations a row: iterations, taken, distance, rival's.

    ``taken`` is the share of held-out images that the referee takes for the target, ``distance``
    the mean absolute difference in [0, 1]; ``mdts taken`` and ``mdts distance`` those of the
    nearest training samples; ``explained`` the share that the explained classifier takes.
    """
    held = held_out(candidate.problem, candidate.size)
    rows = []
    training = constrained_gan.Training(
        held.model, held.images, held.labels, settings(candidate), seed=0
    )
    with trained.one_thread():
        while training.iteration < iterations(candidate):
            training.step()
            if training.iteration % EVERY == 0:
                made = ganmex.Baseline(training.average)(held.x, held.target)
                so_far = {"iterations": training.iteration}
                weight = {"weight": training.multiplier.weight}
                rows.append(candidate._asdict() | so_far | held.judged(made) | weight)
    return pd.DataFrame(rows)


def best(table: pd.DataFrame) -> pd.Series:
    """The row of `table` (of one problem, see `follow`) that the rule takes."""
    return nearest_accepted(
        table[table["iterations"] <= AFFORDED.get(table["problem"].iloc[0], 750)]
    )


def nearest_accepted(table: pd.DataFrame, n: int = HELD_OUT) -> pd.Series:
    """The rule, for rows measured on `n` images."""
    low, _ = intervals.wilson((table["taken"] * n).round().astype(int), n)
    accepted = table[low >= table["mdts taken"] - MARGIN]
    if len(accepted):
        return accepted.loc[accepted["distance"].idxmin()]
    return table.loc[table["taken"].idxmax()]


def load() -> pd.DataFrame:
    """What `main` has measured, a row per candidate and stopping time."""
    return pd.concat([_read(_file(problem)) for problem in models.MAIN], ignore_index=True)


def _file(problem: str) -> Path:
    return FOLDER / f"{problem.replace(' ', '_')}.json"


def _read(file: Path) -> pd.DataFrame:
    if file.exists():
        return pd.DataFrame(json.loads(file.read_text()))
    return pd.DataFrame(columns=[*Candidate._fields, "iterations"])


def measure(candidate: Candidate) -> pd.DataFrame:
    """Follow a candidate and put its rows into the file of its problem, in place of older ones."""
    rows = follow(candidate)
    file = _file(candidate.problem)
    others = _read(file)
    table = pd.concat([others[~_of(others, candidate)], rows], ignore_index=True)
    table = table.sort_values([*Candidate._fields, "iterations"], ignore_index=True)
    with assets.replacing(file) as temporary:
        temporary.write_text(table.to_json(orient="records", indent=1, double_precision=4))
    return rows


def missing() -> list[Candidate]:
    """Those that have not been followed to the end."""
    table = load()
    ends = [table.loc[_of(table, one), "iterations"].max() for one in CANDIDATES]
    return [one for one, end in zip(CANDIDATES, ends, strict=True) if end != iterations(one)]


def _of(table: pd.DataFrame, candidate: Candidate) -> pd.Series:
    return (table[list(Candidate._fields)] == list(candidate)).all(axis=1)


def main(names: list[str]) -> None:
    """Measure the candidates of these problems, or of all, that are not measured yet."""
    FOLDER.mkdir(exist_ok=True)
    for candidate in missing():
        if not names or candidate.problem in names:
            print(measure(candidate).to_string(), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
