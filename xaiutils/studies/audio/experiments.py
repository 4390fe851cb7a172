"""Experiments of notebook 01: excerpts whose wrong prediction has a known cause, and LIME on them.

A case is a pair of log-mel excerpts: clean, and with an adversarial perturbation that turns the
detector's answer around. Its cause is in the perturbation. Cut into 5 x 4 cells, the perturbation
can be pasted cell by cell onto the clean excerpt: a ranking of cells is good if few of its first
cells suffice.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice

import numpy as np
import pandas as pd
import scipy
import torch
from tqdm import tqdm

from xaiutils import attack, intervals, lime, runtime, segment
from xaiutils.classifiers.singing import BANDS, HOP, RATE
from xaiutils.classifiers.trained import one_thread
from xaiutils.data import datasets
from xaiutils.data.excerpts import FRAMES, Track, around
from xaiutils.perturb import Components, evaluate

TIMES, HEIGHTS = 5, 4  # cells along time and frequency: cell 4 t + f, f = 0 the lowest band
CELLS = Components(segment.grid((FRAMES, BANDS), TIMES, HEIGHTS))
CONDITIONS = (
    "waveform, to singing",
    "waveform, to no singing",
    "spectrogram, to singing",
    "spectrogram, to no singing",
)
# Learning rate, weight of the classification loss and largest change: the authors' presets. Their
# spectrogram is on another scale than ours; the values are kept. The weight is for an excerpt:
# it multiplies a mean over frames beside a sum over samples, so it must grow with the length.
PRESETS = {
    "waveform": {"lr": 3e-4, "alpha": 2.0, "eps": 0.01},
    "spectrogram": {"lr": 5e-4, "alpha": 15.0, "eps": 0.1},
}
# Shares flipped in the paper's tables 1 and 2.
PUBLISHED = {
    "Table 1: LIME's top 3": dict(
        zip(((c, "LIME") for c in CONDITIONS), (0.53, 0.21, 0.41, 0.32), strict=True)
    ),
    "Table 2: all pointing cells": dict(
        zip(
            ((c, r) for r in ("LIME", "norm") for c in CONDITIONS),
            (0.86, 0.49, 0.91, 0.44, 0.99, 0.74, 0.98, 0.55),
            strict=True,
        )
    ),
}
SHARES = ("flipped", "precision")  # columns within [0, 1]
_MARGIN = 2048  # samples at each end that the signal-to-noise ratio leaves out


@dataclass(frozen=True)
class Attacked:
    """A stretch of a track before and after the attack, as (1, samples) or (1, T, 257)."""

    condition: str
    track: int
    title: str
    direction: int  # +1: to singing, -1: to no singing
    x: torch.Tensor
    result: attack.Attack
    active: np.ndarray  # (T,) frames that are sung, by the voice's own energy

    @property
    def snr(self) -> float:
        margin = _MARGIN if self.x.ndim == 2 else 0
        return attack.snr(self.x, self.result.delta, margin=margin)


@dataclass(frozen=True)
class Case:
    """One excerpt, clean and adversarial: log-mel features (165, 80).

    `sounds` are the two waveforms (26640,), where the waveform was attacked.
    """

    condition: str
    track: int
    title: str
    direction: int
    clean: np.ndarray
    adversarial: np.ndarray
    sounds: tuple[np.ndarray, np.ndarray] | None = None

    @property
    def difference(self) -> np.ndarray:
        return self.adversarial - self.clean

    def flips(self, probability) -> np.ndarray:
        """Whether these probabilities of singing are on the attack's side of one half."""
        return (
            np.asarray(probability) > 0.5 if self.direction > 0 else np.asarray(probability) < 0.5
        )


def attack_tracks(
    detector, *, n_tracks: int, seconds: float, steps: int, level_db: float, seed: int
) -> list[Attacked]:
    """Attack the middle of each track in all four conditions.

    To singing: the music alone. To no singing: the same music with the voice; frames in which the
    voice pauses are pushed the other way.
    """
    tracks = islice(datasets.singing_tracks(level_db, seed), n_tracks)
    jobs = [(condition, i, track) for i, track in enumerate(tracks) for condition in CONDITIONS]

    def run(job):
        return _attacked(detector, *job, seconds, steps)

    # One thread each and as many attacks at a time as there are cores: the same sums in the same
    # order on every machine.
    with one_thread(), ThreadPoolExecutor(runtime.threads()) as pool:
        return list(tqdm(pool.map(run, jobs), "attacks", len(jobs), leave=False, mininterval=1))


def _attacked(detector, condition, index, track: Track, seconds, steps) -> Attacked:
    kind, aim = condition.split(", ")
    direction = 1 if aim == "to singing" else -1
    sound = track.music if direction > 0 else track.mixture
    middle, half = len(sound) // (2 * HOP), round(seconds * RATE / HOP) // 2
    frames = slice(max(middle - half, 0), middle + half)
    wave = torch.from_numpy(sound[frames.start * HOP : frames.stop * HOP].copy())[None]
    wave = wave.to(detector.bank.device)
    if kind == "waveform":
        x, logits = wave, lambda v: detector.logits(detector.features(v))[..., 1]
    else:
        x = detector.magnitude(wave)
        logits = lambda v: detector.logits(detector.features(magnitude=v))[..., 1]  # noqa: E731
    settings = PRESETS[kind] | {"steps": steps}
    settings["alpha"] *= (frames.stop - frames.start) / FRAMES
    result = attack.cached("singing", logits, x, detector, kind, **settings)
    active = track.active[frames][: len(result.flipped)]
    return Attacked(condition, index, track.title, direction, x, result, active)


def attack_table(attacked: Sequence[Attacked], seed: int = 0) -> pd.DataFrame:
    """Success and strength by condition, one row each, intervals over tracks."""
    rows = {}
    for condition, group in _by_condition(attacked):
        share = [a.result.success for a in group]
        flipped = intervals.mean(share, seed=seed).of_share()
        rows[condition] = {
            "tracks": len(group),
            "frames flipped": flipped.value, "low": flipped.low, "high": flipped.high,
            "tracks with all flipped": np.mean([s == 1 for s in share]),
            "median steps": float(np.median([a.result.steps for a in group])),
            "median SNR, dB": float(np.median([a.snr for a in group])),
        }  # fmt: skip
    return pd.DataFrame(rows).T


def pick(detector, attacked: Sequence[Attacked], *, seed: int, tries: int = 64) -> list[Case]:
    """One excerpt of each attacked track: the first of `tries` random frames that qualifies.

    The frame flips in the attack; cut out alone, the clean excerpt is on the old side of one half
    and the adversarial one on the new side; and the old side is right (the voice's own activity).
    """
    return [c for i, a in enumerate(attacked) if (c := _pick(detector, a, [seed, i], tries))]


def _pick(detector, a: Attacked, seed, tries) -> Case | None:
    kind = "waveform" if a.condition.startswith("waveform") else "magnitude"
    with torch.inference_mode():
        clean = detector.features(**{kind: a.x})[0]
        changed = detector.features(**{kind: a.result.adversarial})[0]
    right = ~a.active if a.direction > 0 else a.active
    eligible = np.flatnonzero(a.result.flipped.cpu().numpy() & right)
    inside = eligible[(eligible >= FRAMES // 2) & (eligible + FRAMES // 2 < len(clean))]
    centres = np.random.default_rng(seed).permutation(inside)[:tries]
    for centre in centres:
        frames, samples = around(centre)
        pair = torch.stack([clean[frames], changed[frames]])
        with torch.inference_mode():
            p = detector.probability(pair, kind="features").cpu().numpy()
        if (p[0] < 0.5) == (a.direction > 0) and (p[1] > 0.5) == (a.direction > 0):
            sounds = None
            if kind == "waveform":
                sounds = tuple(v[0, samples].cpu().numpy() for v in (a.x, a.result.adversarial))
            title = f"{a.title}, frame {centre}"
            arrays = (v.cpu().numpy().copy() for v in pair)
            return Case(a.condition, a.track, title, a.direction, *arrays, sounds)
    return None


def in_turn(cases: Sequence[Case], n: int) -> list[Case]:
    """Excerpts of the first n tracks, one of each, the four conditions taking turns.

    Fewer experiments per track and more tracks: intervals are over tracks.
    """
    return [c for c in cases if c.track < n and CONDITIONS.index(c.condition) == c.track % 4]


def paste(detector, case: Case, sets, components: Components = CELLS) -> np.ndarray:
    """Probability of singing (N,) with the perturbation of the cells in `sets` (N, d) pasted."""
    kept = ~np.asarray(sets, bool)
    return evaluate(detector, case.clean, components, kept, case.adversarial)[:, 0]


def explain(detector, x, *, n_masks: int, seed: int, filler=None, components=CELLS, **options):
    """LIME of P(singing) with the authors' settings: hidden cells become the excerpt's mean."""
    filler = float(x.mean()) if filler is None else filler
    return lime.explain(
        detector, x, components, targets=0, n_samples=n_masks, filler=filler, seed=seed,
        package_exact=True, **options,
    )  # fmt: skip


def order(scores) -> np.ndarray:
    """Cells from the largest score to the smallest; ties in the order of the cells."""
    return np.argsort(-np.asarray(scores), kind="stable")


def norms(case: Case, components: Components = CELLS) -> np.ndarray:
    """Squared norm of the perturbation in each cell."""
    return components.sums(np.square(case.difference))


def prefixes(ranking) -> np.ndarray:
    """The first 1, 2, ..., d cells of a ranking as sets, (d, d) bool."""
    rank = np.empty(len(ranking), int)
    rank[np.asarray(ranking)] = np.arange(len(ranking))
    return rank < np.arange(1, len(ranking) + 1)[:, None]


def greedy(detector, case: Case, components: Components = CELLS) -> np.ndarray:
    """Ranking that adds, at each step, the cell whose perturbation moves the answer most."""
    chosen: list[int] = []
    rest = list(range(components.d))
    while rest:
        sets = np.zeros((len(rest), components.d), bool)
        sets[:, chosen] = True
        sets[np.arange(len(rest)), rest] = True
        gain = case.direction * paste(detector, case, sets, components)
        chosen.append(rest.pop(int(gain.argmax())))
    return np.array(chosen)


def flip_curves(detector, cases: Sequence[Case], *, n_masks: int, n_random: int, seed: int):
    """Whether the first k cells of each ranking flip each excerpt.

    Returns
    -------
    DataFrame
        condition, track, ranking, k = 1..20, flipped in [0, 1] (a mean for random rankings).
    list of lime.Explanation
        Of the adversarial excerpts, in the order of `cases`.
    """
    records, explanations = [], []
    for i, case in enumerate(tqdm(cases, "flip curves", leave=False, mininterval=1)):
        explanation = explain(detector, case.adversarial, n_masks=n_masks, seed=seed + i)
        rankings = {
            "LIME": [order(case.direction * explanation.coef)],
            "norm": [order(norms(case))],
            "greedy": [greedy(detector, case)],
            "random": np.random.default_rng([seed, i]).permuted(
                np.tile(np.arange(CELLS.d), (n_random, 1)), axis=1
            ),
        }
        sets = np.concatenate([prefixes(r) for group in rankings.values() for r in group])
        flips = case.flips(paste(detector, case, sets)).reshape(-1, CELLS.d)
        start = 0
        for name, group in rankings.items():
            curve = flips[start : start + len(group)].mean(axis=0)
            start += len(group)
            records += [
                (case.condition, case.track, i, name, k + 1, v) for k, v in enumerate(curve)
            ]
        explanations.append(explanation)
    columns = ["condition", "track", "case", "ranking", "k", "flipped"]
    return pd.DataFrame(records, columns=columns), explanations


def shares(frame: pd.DataFrame, by: Sequence[str], value: str = "flipped", seed: int = 0):
    """Mean of a column by group with a 95 % interval over tracks: columns value, low, high, n.

    Columns "flipped" and "precision" are shares, see `share`; others may be anything.
    """
    rows = []
    for keys, group in frame.groupby(list(by), sort=False):
        estimate = intervals.mean(group[value].to_numpy(), group["track"].to_numpy(), seed=seed)
        rows.append((*keys, *(estimate.of_share() if value in SHARES else estimate)))
    return pd.DataFrame(rows, columns=[*by, "value", "low", "high", "n"])


def share(values, units) -> intervals.Estimate:
    """A share with its interval over tracks; Wilson's where all values are equal."""
    return intervals.mean(np.asarray(values, float), units).of_share()


def harder(tables: pd.DataFrame) -> int:
    """In how many comparisons fewer excerpts flip to no singing than to singing.

    `tables` has columns condition, ranking, value and, as its first index level, the table.
    """
    table = tables.index.get_level_values(0).rename("table")
    kind, aim = tables["condition"].str.split(", ", expand=True).to_numpy().T
    wide = (
        tables.assign(kind=kind, aim=aim).groupby([table, "ranking", "kind", "aim"])["value"].sum()
    )
    wide = wide.unstack("aim")
    return int((wide["to no singing"] < wide["to singing"]).sum())


def pointing(detector, cases: Sequence[Case], explanations) -> pd.DataFrame:
    """Table 2: paste all cells whose LIME weight points to the target, and as many by norm."""
    records = []
    for i, (case, explanation) in enumerate(zip(cases, explanations, strict=True)):
        towards = case.direction * explanation.coef > 0
        by_norm = np.isin(np.arange(CELLS.d), order(norms(case))[: towards.sum()])
        flips = case.flips(paste(detector, case, [towards, by_norm]))
        records += [
            (case.condition, case.track, i, name, towards.sum(), float(flip))
            for name, flip in zip(("LIME", "norm"), flips, strict=True)
        ]
    return pd.DataFrame(
        records, columns=["condition", "track", "case", "ranking", "cells", "flipped"]
    )


def partial(detector, cases: Sequence[Case], *, ks=(1, 3, 5), n_masks: int, seed: int):
    """LIME on excerpts with only the k cells of largest norm perturbed, where that flips them.

    Returns
    -------
    DataFrame
        condition, track, case, k, overlap (cells common to LIME's and the true k), score (R^2).
    """
    records = []
    for i, case in enumerate(tqdm(cases, "partial perturbations", leave=False, mininterval=1)):
        ranking = order(norms(case))
        sets = prefixes(ranking)[np.array(ks) - 1]
        for k, cells, p in zip(ks, sets, paste(detector, case, sets), strict=True):
            if not case.flips(p):
                continue
            x = np.where(cells[CELLS.labels], case.adversarial, case.clean)
            explanation = explain(detector, x, n_masks=n_masks, seed=seed + i)
            found = order(case.direction * explanation.coef)[:k]
            overlap = int(cells[found].sum())
            records.append((case.condition, case.track, i, k, overlap, float(explanation.score)))
    return pd.DataFrame(records, columns=["condition", "track", "case", "k", "overlap", "score"])


def overlap_counts(frame: pd.DataFrame) -> dict[tuple[str, int], np.ndarray]:
    """Number of excerpts with an overlap of 0..k, by condition and k."""
    return {
        (condition, k): np.bincount(group["overlap"], minlength=k + 1)
        for (condition, k), group in frame.groupby(["condition", "k"], sort=False)
    }


def chance(k: int, d: int = CELLS.d) -> np.ndarray:
    """Distribution of the overlap, (k + 1,), if LIME's cells were drawn at random."""
    return scipy.stats.hypergeom.pmf(np.arange(k + 1), d, k, k)


def auc(score, correct, units, *, draws: int = 2000, seed: int = 0) -> intervals.Estimate:
    """Probability that R^2 is larger for a right explanation than for a wrong one, ties half.

    Draws without both kinds are left out. NaN throughout if there are no two kinds.
    """
    score, correct = np.asarray(score, float), np.asarray(correct, bool)
    wins = np.sign(score[correct][:, None] - score[~correct][None]) / 2 + 0.5
    n = len(np.unique(units))
    if not wins.size:
        return intervals.Estimate(np.nan, np.nan, np.nan, n)
    counts = intervals.resamples(np.asarray(units), draws=draws, seed=seed)
    right, wrong = counts[:, correct], counts[:, ~correct]
    pairs = right.sum(axis=1) * wrong.sum(axis=1)
    drawn = np.einsum("bi,ij,bj->b", right, wins, wrong)[pairs > 0] / pairs[pairs > 0]
    return intervals.Estimate(wins.mean(), *intervals.percentiles(drawn, n), n)


def _by_condition(items):
    for condition in CONDITIONS:
        if group := [item for item in items if item.condition == condition]:
            yield condition, group
