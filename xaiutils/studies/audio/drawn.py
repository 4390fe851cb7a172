"""Drawn, clearly visible perturbations of notebook 01."""

from __future__ import annotations

import numpy as np
import pandas as pd
import scipy
import torch
from tqdm import tqdm

from xaiutils.classifiers.singing import HOP, RATE
from xaiutils.data.excerpts import FRAMES, SingingExcerpts
from xaiutils.studies.audio.experiments import TIMES, Case, explain, norms, order

DRAWINGS = ("wave", "zigzag", "blob")
_LOUD = 30.0  # magnitude of a drawing; the loudest bin of all excerpts has 11


def drawn(detector, excerpts: SingingExcerpts, *, n_masks: int, n: int, seed: int):
    """Draw on the spectrogram of music: does the answer turn, and does LIME find the drawing?

    Returns
    -------
    DataFrame
        shape, track, flips, score (R^2) and covered: whether all drawn cells, those with at least
        5 % of the change, are among LIME's top 3; NaN where the answer did not turn.
    dict of str to dict
        The first flipped example of each shape: case, explanation, probabilities.
    """
    with torch.inference_mode():
        music = excerpts.labels == 0
        magnitude = detector.magnitude(excerpts.waveforms[music].to(detector.bank.device))
        p = detector.probability(magnitude, kind="magnitude").cpu()
    tracks = excerpts.tracks[music]
    right = torch.nonzero(p < 0.5).ravel().tolist()[:n]
    records, examples = [], {}
    for shape in DRAWINGS:
        for i in tqdm(right, f"drawings: {shape}", leave=False, mininterval=1):
            picture = torch.maximum(magnitude[i], drawing(shape).to(magnitude))
            with torch.inference_mode():
                pair = detector.features(magnitude=torch.stack([magnitude[i], picture]))
                after = float(detector.probability(pair, kind="features")[1])
            case = Case(shape, int(tracks[i]), "", 1, *(v.cpu().numpy() for v in pair))
            if after <= 0.5:
                records.append((shape, case.track, 0.0, np.nan, np.nan))
                continue
            explanation = explain(detector, case.adversarial, n_masks=n_masks, seed=seed + i)
            share = norms(case) / norms(case).sum()
            marked = np.flatnonzero(share >= 0.05)
            covered = float(np.isin(marked, order(explanation.coef)[:3]).all())
            records.append((shape, case.track, 1.0, float(explanation.score), covered))
            example = {"case": case, "explanation": explanation, "before": float(p[i])}
            examples.setdefault(shape, example | {"after": after})
    columns = ["shape", "track", "flips", "score", "covered"]
    return pd.DataFrame(records, columns=columns), examples


def drawing(shape: str) -> torch.Tensor:
    """Magnitudes (165, 257) to be laid over a spectrogram.

    "wave" is a tone of 163 Hz across three cells of the lowest band whose pitch wavers 5.5 times a
    second by 12 %, less than a bin; "zigzag" the same with straight ups and downs; "blob" one cell
    filled, in the second band.
    """
    frames = np.arange(FRAMES)
    inside = (frames * TIMES // FRAMES >= 1) & (frames * TIMES // FRAMES <= 3)
    out = np.zeros((FRAMES, 257), np.float32)
    if shape == "blob":
        out[np.ix_(frames * TIMES // FRAMES == 2, np.arange(23, 54))] = _LOUD
        return torch.from_numpy(out)
    phase = 2 * np.pi * 5.5 * frames * HOP / RATE
    swing = np.sin(phase) if shape == "wave" else scipy.signal.sawtooth(phase, width=0.5)
    bins = np.rint(163.0 * (1 + 0.12 * swing) / (RATE / 512)).astype(int)
    for shift in (-1, 0, 1):
        out[frames[inside], bins[inside] + shift] = _LOUD
    return torch.from_numpy(out)
