"""Experiments of notebook 01 beyond the paper."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import numpy as np
import pandas as pd
import torch
from torch import nn
from tqdm import tqdm

from xaiutils import attack, designs, lime, limit, segment
from xaiutils.attribution import gradient, integrated_gradients
from xaiutils.classifiers.singing import BANDS
from xaiutils.data.excerpts import FRAMES, SingingExcerpts
from xaiutils.perturb import Components, evaluate
from xaiutils.studies.audio import detection
from xaiutils.studies.audio.drawn import drawn as drawn
from xaiutils.studies.audio.experiments import (
    CELLS,
    TIMES,
    Case,
    explain,
    greedy,
    norms,
    order,
    paste,
    prefixes,
)  # fmt: skip

# Of the attacks on chosen cells of the log-mel excerpt, in nats; the paper has no such attack.
CONFINED = {"lr": 0.05, "alpha": 1e3, "eps": 1.0, "steps": 100}
CONFINED_WAVEFORM = {"lr": 1e-3, "alpha": 1e3, "eps": 0.1, "steps": 100}
_AIMS = {0: ("to singing", 1), 1: ("to no singing", -1)}  # by the label that is turned
_CENTRE = FRAMES // 2
SILENCE = float(np.log(np.finfo(np.float32).eps))  # floor of the log-mel features
COARSE = Components(segment.grid((FRAMES, BANDS), 4, 3))  # 12 cells: all 4,096 masks can be tried


def known_cells(detector, excerpts: SingingExcerpts, *, k: int, n: int, seed: int) -> list[Case]:
    """Excerpts that the detector gets right, turned around by a change of k random cells only.

    At most n excerpts per direction are tried, and those whose centre frame turns are returned. The
    changed cells are those with a nonzero norm.
    """
    with torch.inference_mode():
        features = detector.features(excerpts.waveforms.to(detector.bank.device))
    cases = []
    for i, label, allowed in _tried(detector, excerpts, k, n, seed):
        result = attack.signed_gradient(
            lambda v: detector.logits(v)[:, _CENTRE : _CENTRE + 1, 1],
            features[i : i + 1].clone(),
            confine=allowed,
            **CONFINED,
        )
        if result.all_flipped:
            clean, adversarial = (v[0].cpu().numpy() for v in (result.x, result.adversarial))
            condition, direction = _AIMS[label]
            track = int(excerpts.tracks[i])
            cases.append(Case(condition, track, excerpts.names[i], direction, clean, adversarial))
    return cases


def known_cells_waveform(
    detector, excerpts: SingingExcerpts, *, k: int, n: int, seed: int
) -> pd.DataFrame:
    """The same on the waveform, confined by a masked short-time Fourier transform.

    Returns
    -------
    DataFrame
        condition, track, turned (whether the centre frame turns), snr in dB, and leaked (share of
        the squared change of the features outside the cells).
    """
    records = []
    for i, label, allowed in _tried(detector, excerpts, k, n, seed):
        x = excerpts.waveforms[i : i + 1].to(detector.bank.device)
        result = attack.signed_gradient(
            lambda v: detector.logits(detector.features(v))[:, _CENTRE : _CENTRE + 1, 1],
            x,
            confine=detection.MaskedSTFT(detector, x.shape[1], allowed),
            **CONFINED_WAVEFORM,
        )
        leaked = detection.leakage(detector, x, result.delta, allowed)
        snr = attack.snr(x, result.delta)
        row = (_AIMS[label][0], int(excerpts.tracks[i]), float(result.all_flipped), snr, leaked)
        records.append(row)
    return pd.DataFrame(records, columns=["condition", "track", "turned", "snr", "leaked"])


def _tried(detector, excerpts: SingingExcerpts, k, n, seed):
    """Index, label and open cells (165, 80) of n excerpts of each label that are answered right."""
    with torch.inference_mode():
        p = detector.probability(excerpts.waveforms.to(detector.bank.device)).cpu()
    right = (p > 0.5) == (excerpts.labels == 1)
    for label in (0, 1):
        for i in torch.nonzero(right & (excerpts.labels == label)).ravel().tolist()[:n]:
            cells = np.random.default_rng([seed, i]).choice(CELLS.d, k, replace=False)
            allowed = torch.from_numpy(np.isin(CELLS.labels, cells))
            yield i, label, allowed.to(detector.bank.device)


def recovery(detector, cases: Sequence[Case], *, n_masks: int, seed: int) -> pd.DataFrame:
    """How well explainers rank the cells that were changed before the others.

    Returns
    -------
    DataFrame
        condition, track, explainer, informed (whether it is shown the clean excerpt), precision
        (share of changed cells among the first k) and rank (mean place of the changed cells,
        1 the first).
    """
    records = []
    for i, case in enumerate(tqdm(cases, "known cells", leave=False, mininterval=1)):
        changed = norms(case) > 0
        k = int(changed.sum())
        scores = _scores(detector, case, n_masks, seed + i)
        for (name, informed), values in scores.items():
            place = np.empty(CELLS.d)
            place[order(values)] = np.arange(1, CELLS.d + 1)
            precision = float(changed[order(values)[:k]].mean())
            row = (case.condition, case.track, name, informed, precision, place[changed].mean())
            records.append(row)
    columns = ["condition", "track", "explainer", "informed", "precision", "rank"]
    return pd.DataFrame(records, columns=columns)


class Logit(nn.Module):
    """The logit of singing (N, 1) at the centre frame, for gradients.

    Those of the probability are denormal numbers where it is near 0, a hundred times slower.
    """

    def __init__(self, detector):
        super().__init__()
        self.detector = detector

    def forward(self, features):
        return self.detector.logits(features)[:, _CENTRE, 1:2]


def _scores(detector, case: Case, n_masks, seed) -> dict[tuple[str, bool], np.ndarray]:
    x, towards = case.adversarial, case.direction
    mean = np.full_like(x, x.mean())
    one_hidden = ~np.eye(CELLS.d, dtype=bool)

    def occluded(filler):
        hidden = evaluate(detector, x, CELLS, one_hidden, filler)[:, 0]
        whole = evaluate(detector, x, CELLS, np.ones((1, CELLS.d)), filler)[0, 0]
        return towards * (whole - hidden)

    logit = Logit(detector)

    def integrated(baseline):
        parts = integrated_gradients(logit, x, baseline, 0, steps=32, tolerance=None)
        return towards * CELLS.sums(parts)

    slope = gradient(logit, x[None], [0])[0]
    lime_mean = explain(detector, x, n_masks=n_masks, seed=seed)
    lime_clean = explain(detector, x, n_masks=n_masks, seed=seed, filler=case.clean)
    return {
        ("LIME", False): towards * lime_mean.coef,
        ("integrated gradients", False): integrated(mean),
        ("occlusion", False): occluded(float(x.mean())),
        ("gradient", False): CELLS.sums(np.abs(slope)),
        ("random", False): np.random.default_rng([seed, 1]).random(CELLS.d),
        ("LIME", True): towards * lime_clean.coef,
        ("integrated gradients", True): integrated(case.clean),
        ("occlusion", True): occluded(case.clean),
        ("norm", True): norms(case),
    }


def mean_flips(detector, case: Case, rankings, components: Components = CELLS) -> np.ndarray:
    """Share of the sizes k = 1..d - 1 at which each ranking's first k cells flip the excerpt."""
    sets = np.concatenate([prefixes(r)[:-1] for r in rankings])
    flips = case.flips(paste(detector, case, sets, components))
    return flips.reshape(len(rankings), -1).mean(axis=1)


def sampling(detector, cases: Sequence[Case], *, sizes: Sequence[int], seed: int) -> pd.DataFrame:
    """What more masks do to LIME: fits to the first n masks of one long run of each excerpt.

    `sizes` must ascend.

    Returns
    -------
    DataFrame
        condition, track, n, flipped (mean over k = 1..19), norm (the same for the norm ranking),
        stderr (mean over cells), settled (cells 3 and 4 differ at 95 %), same (top-3 cells shared
        with the longest fit).
    """
    rule = lime.Stop(top_k=3, max_samples=max(sizes))
    records = []
    for i, case in enumerate(tqdm(cases, "long runs", leave=False, mininterval=1)):
        pool = explain(detector, case.adversarial, n_masks=max(sizes), seed=seed + i)
        fits = []
        for n in sizes:
            first = slice(0, n)
            found = lime.fit(pool.masks[first], pool.weights[first], pool.outputs[first, None])
            fits.append((case.direction * found.coef, found.covariance))
        rankings = [order(coef[0]) for coef, _ in fits]
        *flips, by_norm = mean_flips(detector, case, [*rankings, order(norms(case))])
        for n, (coef, covariance), ranking, flipped in zip(
            sizes, fits, rankings, flips, strict=True
        ):
            stderr = np.sqrt(np.diagonal(covariance[0])[1:]).mean()
            same = len(set(ranking[:3]) & set(rankings[-1][:3])) / 3
            settled = rule.met(coef, covariance, looks=len(sizes))
            row = (case.condition, case.track, n, flipped, by_norm, stderr, float(settled), same)
            records.append(row)
    columns = ["condition", "track", "n", "flipped", "norm", "stderr", "settled", "same"]
    return pd.DataFrame(records, columns=columns)


def enumerated(detector, cases: Sequence[Case], *, n_masks: int, seed: int) -> pd.DataFrame:
    """12 coarse cells, where LIME's limit is known by trying all masks: mean flips of rankings.

    Returns
    -------
    DataFrame
        condition, track, ranking, flipped (mean over k = 1..11).
    """
    every, records = limit.masks(COARSE.d).astype(bool), []
    for i, case in enumerate(tqdm(cases, "all masks", leave=False, mininterval=1)):
        x = case.adversarial
        values = evaluate(detector, x, COARSE, every, float(x.mean()))[:, 0].astype(float)
        f = limit.lookup(values)
        masks = designs.draw(n_masks, COARSE.d, "iid", np.random.default_rng([seed, i]))
        run = lime.fit(masks, lime.kernel(masks), f(masks)[:, None]).coef
        rankings = {
            f"LIME, {n_masks:,} masks": order(case.direction * run[0]),
            "LIME, all masks": order(case.direction * limit.exact(f, COARSE.d).coef),
            "Shapley value": order(case.direction * limit.shapley(f, COARSE.d)),
            "norm": order(norms(case, COARSE)),
            "greedy": greedy(detector, case, COARSE),
        }
        flips = mean_flips(detector, case, list(rankings.values()), COARSE)
        records += [
            (case.condition, case.track, name, v) for name, v in zip(rankings, flips, strict=True)
        ]
    return pd.DataFrame(records, columns=["condition", "track", "ranking", "flipped"])


def off_states(case: Case) -> dict[str, float | np.ndarray]:
    """What hidden cells can be replaced by."""
    x = case.adversarial
    return {
        "mean": float(x.mean()),
        "minimum": float(x.min()),
        "silence": SILENCE,
        "neighbour frames": bridged(x),
        "clean excerpt": case.clean,
    }


def bridged(x: np.ndarray) -> np.ndarray:
    """Each cell replaced by a straight line in time between the frames just before and after."""
    frame, out = np.arange(FRAMES), np.empty_like(x)
    column = frame * TIMES // FRAMES
    for t in range(TIMES):
        inside = frame[column == t]
        ends = [f for f in (inside[0] - 1, inside[-1] + 1) if 0 <= f < FRAMES]
        share = np.interp(inside, ends, np.arange(len(ends)))[:, None]
        out[inside] = (1 - share) * x[ends[0]] + share * x[ends[-1]]
    return out


def ablation(
    detector, cases: Sequence[Case], *, widths: Sequence[float], n_masks: int, seed: int
) -> pd.DataFrame:
    """LIME with other off states and kernel widths.

    Returns
    -------
    DataFrame
        condition, track, off_state, width, flipped (mean over k = 1..19), score (R^2).
    """
    records = []
    for i, case in enumerate(tqdm(cases, "off states", leave=False, mininterval=1)):
        settings, rankings, scores = [], [], []
        for name, filler in off_states(case).items():
            pool = explain(
                detector, case.adversarial, n_masks=n_masks, seed=seed + i, filler=filler
            )
            for width in widths:
                weights = lime.kernel(pool.masks, width)
                found = lime.fit(pool.masks, weights, pool.outputs[:, None])
                settings.append((name, width))
                rankings.append(order(case.direction * found.coef[0]))
                scores.append(float(found.score[0]))
        flips = mean_flips(detector, case, rankings)
        records += [
            (case.condition, case.track, *setting, flipped, score)
            for setting, flipped, score in zip(settings, flips, scores, strict=True)
        ]
    columns = ["condition", "track", "off_state", "width", "flipped", "score"]
    return pd.DataFrame(records, columns=columns)


def minimal_sets(
    detector, cases: Sequence[Case], flips: pd.DataFrame, *, largest: int
) -> pd.DataFrame:
    """The fewest cells whose perturbation flips each excerpt, by trying all sets.

    Sets are tried by size, and only sizes below the one at which the greedy ranking succeeds,
    up to `largest`: nothing larger can improve on it.

    Parameters
    ----------
    flips : DataFrame
        Of `adversarial.flip_curves` for these cases and perhaps others; one a track and condition.

    Returns
    -------
    DataFrame
        condition, track, exact (whether all smaller sets were tried), minimal, and the cells that
        the rankings greedy, norm and LIME need.
    """
    turned = flips[flips["flipped"] == 1]
    needed = turned.groupby(["condition", "track", "ranking"])["k"].min()
    records = []
    for case in tqdm(cases, "all small sets", leave=False, mininterval=1):
        needs = needed[case.condition, case.track]
        bound = int(needs["greedy"])
        smallest, exact = bound, bound - 1 <= largest
        for size in range(1, min(bound - 1, largest) + 1):
            chosen = np.array(list(combinations(range(CELLS.d), size)))
            sets = np.zeros((len(chosen), CELLS.d), bool)
            np.put_along_axis(sets, chosen, True, axis=1)
            if case.flips(paste(detector, case, sets)).any():
                smallest, exact = size, True
                break
        by = [int(needs[name]) for name in ("greedy", "norm", "LIME")]
        records.append((case.condition, case.track, exact, smallest, *by))
    columns = ["condition", "track", "exact", "minimal", "greedy", "norm", "LIME"]
    return pd.DataFrame(records, columns=columns)
