"""Fidelity curves where the truth is known: planted evidence, and an artifact that has a dial.

An image is a board of nine real digits; a marker, which is never hidden, says which one counts.
The classifier reads that digit alone, by a linear model fitted to other digits, so the important
pixels are known. It also has an eleventh answer, "masked", whose logit is the lowest of the ten
plus a penalty that grows with how masked the board looks. The dial scales the penalty: at 0 the
artifact is gone, and clean boards never feel it.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from scipy.ndimage import distance_transform_edt
from torch import nn
from torch.nn import functional

from xaiutils import attribution, fidelity, intervals
from xaiutils.data import datasets
from xaiutils.fidelity_curves import Curves, area
from xaiutils.runtime import one_blas_thread

SLOTS, SIDE = 3, 14  # slots per row of a board, pixels per row of a slot
GREY = 0.5  # hidden pixels: between two values of 8 bits, so that no clean pixel has it
ARTIFACTS = ("count", "edges")


class Boards(NamedTuple):
    """Boards `x` (n, 2, 42, 42): picture in [0, 1] and marker in {0, 1}; `labels` (n,) 0..9."""

    x: np.ndarray
    labels: np.ndarray


class Reader(nn.Module):
    """Logits (N, 11) of boards (N, 2, 42, 42): the ten digits and "masked".

    A third channel, if there is one, is read in place of the picture, which is then looked at for
    traces of masking only.

    Parameters
    ----------
    dial : float
        Penalty of a board that looks fully masked, in units of the clean logits' range: the
        median, over digits, of largest minus smallest. At 1 it topples half of them.
    artifact : {"count", "edges"}
        What looks masked: "count", the share of grey pixels, whichever they are; "edges", the
        share of neighbours of which one is grey and one is not, doubled: 1 if every second
        pixel is hidden at random, near 0 for one compact patch of any size.

    Raises
    ------
    ValueError
        If the dial is negative or the artifact unknown.
    """

    def __init__(self, dial: float, artifact: str = "count"):
        super().__init__()
        if not dial >= 0:
            raise ValueError(f"dial must be at least 0, got {dial!r}")
        if artifact not in ARTIFACTS:
            raise ValueError(f"artifact must be one of {ARTIFACTS}, got {artifact!r}")
        weights, bias, logit_range = _fitted()
        self.register_buffer("weights", torch.from_numpy(weights))
        self.register_buffer("bias", torch.from_numpy(bias))
        self.strength, self.artifact = dial * logit_range, artifact

    def forward(self, x):
        read = x[:, :1] if x.shape[1] == 2 else x[:, 2:]
        marked = x[:, 1:2, ::SIDE, ::SIDE]  # (N, 1, 3, 3)
        answers = functional.conv2d(read, self.weights, self.bias, stride=SIDE)  # (N, 10, 3, 3)
        logits = (answers * marked).sum((2, 3))
        penalty = self.strength * self.traces(x[:, 0])
        return torch.cat([logits, (logits.amin(1) + penalty)[:, None]], dim=1)

    def traces(self, picture):
        """How masked each picture (N, 42, 42) looks, (N,): 0 for clean ones."""
        grey = (picture - GREY).abs() < 1 / 1024
        if self.artifact == "count":
            return grey.float().mean((1, 2))
        across, down = grey[:, :, 1:] ^ grey[:, :, :-1], grey[:, 1:] ^ grey[:, :-1]
        return 2 * torch.cat([across.flatten(1), down.flatten(1)], dim=1).float().mean(1)


def boards(n: int, seed: int = 0) -> Boards:
    """Boards of nine test digits each, all different, at half size; the marked slot is random.

    Raises
    ------
    ValueError
        If there are too few digits for `n` boards.
    """
    data, rng, tiles = datasets.mnist(), np.random.default_rng(seed), SLOTS * SLOTS
    if not 1 <= n <= len(data.test_images) // tiles:
        raise ValueError(f"n must be in 1..{len(data.test_images) // tiles}, got {n}")
    digits = rng.choice(len(data.test_images), (n, tiles), replace=False)
    slots = rng.integers(tiles, size=n)
    small = _halved(data.test_images[digits.ravel()]).reshape(n, SLOTS, SLOTS, SIDE, SIDE)
    pictures = small.transpose(0, 1, 3, 2, 4).reshape(n, SLOTS * SIDE, SLOTS * SIDE)
    x = np.stack([pictures, _slot_map(slots)], axis=1)
    return Boards(x, data.test_labels.numpy()[digits[np.arange(n), slots]])


def maps(data: Boards, seed: int = 0) -> dict[str, np.ndarray]:
    """Importance maps of boards, each (n, 42, 42), from right to wrong.

    "evidence", 1 on the marked slot; "gradient", magnitude of the predicted digit's gradient,
    which also knows which of these pixels matter most; "noisy", evidence plus standard normal
    noise; "half right", 1 on half of the evidence and on as many other pixels; "random"; "wrong",
    1 on another slot.
    """
    rng, n = np.random.default_rng(seed), len(data.x)
    evidence = data.x[:, 1]
    model = Reader(0.0)
    predicted = model(torch.from_numpy(data.x)).argmax(1)
    gradient = attribution.gradient(model, data.x, predicted.numpy())[:, 0]
    order = rng.random(evidence.shape)
    half = np.zeros_like(evidence)
    for inside in (True, False):
        rank = np.where((evidence == 1) == inside, order, np.inf).reshape(n, -1).argsort(axis=1)
        np.put_along_axis(half.reshape(n, -1), rank[:, : SIDE * SIDE // 2], 1, axis=1)
    slots = evidence[:, ::SIDE, ::SIDE].reshape(n, -1).argmax(1)
    others = (slots + rng.integers(1, SLOTS * SLOTS, size=n)) % (SLOTS * SLOTS)
    return {
        "evidence": evidence,
        "gradient": np.abs(gradient),
        "noisy": evidence + rng.normal(size=evidence.shape),
        "half right": half,
        "random": rng.random(evidence.shape),
        "wrong": _slot_map(others),
    }


def dial(
    dials: Sequence[float] = (0.0, 1.0, 2.0, 4.0),
    *,
    artifact: str = "count",
    n_images: int = 200,
    steps: int = 36,
    draws: int = intervals.DRAWS,
    seed: int = 0,
) -> pd.DataFrame:
    """Fidelity and artifact estimate of each map at each setting of the dial, beside the truth.

    Parameters
    ----------
    dials, artifact : see `Reader`
    n_images, draws, seed : int
    steps : int
        Of the curves; a multiple of 9 has a step at which just the evidence fits.

    Returns
    -------
    DataFrame
        Columns dial, method (the map), quantity, value, low, high, n. "D", "F", "P", "P/D" as in
        `fidelity.summary`, all areas over [0, 1] of accuracies. The truth, on the same masks:

        - "information": D at dial 0, where hiding pixels does nothing but lose them.
        - "artifact_added": D minus "information", what the artifact takes of what is left.
        - "artifact_mif", "artifact_lif": drops under the two kinds of masks if the digit is read
          from an untouched copy, so that there is nothing but artifact.

        "F_evidence-F" is the paired lead of the map "evidence".
    """
    data = boards(n_images, seed)
    scores = maps(data, seed)
    options = {"steps": steps, "seed": seed}
    information = _areas(_run(Reader(0.0, artifact), data, scores, **options), "mif")
    tables = []
    for value in dials:
        model = Reader(value, artifact)
        found = _run(model, data, scores, **options)
        intact = _run(model, data, scores, intact=True, **options)
        table = fidelity.summary(found, draws=draws, seed=seed)
        tables.append(table[table.quantity.isin(["D", "F", "P", "P/D"])].assign(dial=value))
        mif, lif = _areas(found, "mif"), _areas(found, "lif")
        truth = {
            "information": information,
            "artifact_added": mif - information,
            "artifact_mif": _areas(intact, "mif"),
            "artifact_lif": _areas(intact, "lif"),
            "F_evidence-F": (mif - lif)[:, :1] - (mif - lif),
        }
        for quantity, areas in truth.items():
            estimate = intervals.mean(areas, draws=draws, seed=seed)
            rows = {"method": list(scores), "quantity": quantity, **estimate._asdict()}
            tables.append(pd.DataFrame(rows).assign(dial=value))
    table = pd.concat(tables, ignore_index=True)
    return table[["dial", "method", "quantity", "value", "low", "high", "n"]]


def geometry(
    dial: float = 2.0,
    *,
    ends: Sequence[float] = (1 / 9, 1 / 2, 1.0),
    n_images: int = 200,
    steps: int = 36,
    draws: int = intervals.DRAWS,
    seed: int = 0,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Three estimates of the artifact of MIF masks against the truth.

    The maps are "evidence", whose MIF masks fill the marked slot and then scatter while its LIF
    masks scatter first, and "compact", which falls with the distance from that slot, so that
    masks of both orders have few edges. The truth is the drop under MIF masks if the digit is
    read from an untouched copy. The estimates are drops in accuracy under other masks, with
    nothing untouched: "LIF", the map's own; "random"; "mask swap", the MIF masks of the next
    board, which know nothing of this one.

    Parameters
    ----------
    dial : float
        See `Reader`.
    ends : floats in (0, 1]
        The areas run from 0 to each of these.
    n_images, steps, draws, seed
        See the function `dial`.

    Returns
    -------
    points : DataFrame
        Columns artifact, method, curve ("truth" or an estimate), fraction, value, low, high, n.
    areas : DataFrame
        Columns artifact, method, curve, f_max, value, low, high, error, error_low, error_high, n:
        the area and its paired difference from the true one.
    """
    data = boards(n_images, seed)
    evidence = data.x[:, 1]
    scores = {
        "evidence": evidence,
        "compact": -np.stack([distance_transform_edt(1 - one) for one in evidence]),
    }
    random = {"random": np.random.default_rng(seed).random(evidence.shape)}
    swapped = {name: np.roll(one, 1, axis=0) for name, one in scores.items()}
    options = {"steps": steps, "seed": seed}
    points, areas = [], []
    for artifact in ARTIFACTS:
        model = Reader(dial, artifact)
        own = _run(model, data, scores | random, **options)
        intact = _run(model, data, scores, intact=True, orders=("mif",), **options)
        swap = _run(model, data, swapped, orders=("mif",), **options)
        for name in scores:
            drops = {
                "truth": intact[name].drop("mif"),
                "LIF": own[name].drop("lif"),
                "random": own["random"].drop("mif"),
                "mask swap": swap[name].drop("mif"),
            }
            fractions = own[name].fractions
            for curve, drop in drops.items():
                label = {"artifact": artifact, "method": name, "curve": curve}
                estimate = intervals.mean(drop, draws=draws, seed=seed)
                points.append(pd.DataFrame(label | {"fraction": fractions, **estimate._asdict()}))
                for end in ends:
                    lost = area(drop, fractions, end)
                    error = lost - area(drops["truth"], fractions, end)
                    estimate = intervals.mean(lost, draws=draws, seed=seed)
                    off = intervals.mean(error, draws=draws, seed=seed)
                    row = label | {"f_max": end, **estimate._asdict()}
                    row |= {"error": off.value, "error_low": off.low, "error_high": off.high}
                    areas.append(row)
    return pd.concat(points, ignore_index=True), pd.DataFrame(areas)


def _run(
    model: Reader, data: Boards, scores, *, steps, seed, intact=False, orders=("mif", "lif")
) -> dict[str, Curves]:
    """Curves of each map; with `intact`, the digit is read from a copy that is never hidden."""
    x = np.concatenate([data.x, data.x[:, :1]], axis=1) if intact else data.x
    filler = x.copy()
    filler[:, 0] = GREY
    # Not as a module: a new export for each dial would take longer than running it.
    return fidelity.curves(
        lambda batch: model(batch), x, data.labels, scores, filler=filler, orders=orders,
        steps=steps, batch_size=512, seed=seed,
    )  # fmt: skip


def _areas(curves: dict[str, Curves], order: str) -> np.ndarray:
    """Area of the drop for each image and map, (n, maps)."""
    return np.stack([area(c.drop(order), c.fractions) for c in curves.values()], axis=1)


def _slot_map(slots) -> np.ndarray:
    """Indicator of one slot for each board, (n, 42, 42) float32."""
    grid = np.eye(SLOTS * SLOTS, dtype=np.float32)[slots].reshape(-1, SLOTS, SLOTS)
    return grid.repeat(SIDE, axis=1).repeat(SIDE, axis=2)


def _halved(images) -> np.ndarray:
    """Digits (n, 1, 28, 28) at half size, (n, 14, 14), rounded to 8 bits."""
    return ((functional.avg_pool2d(images, 2) * 255).round() / 255)[:, 0].numpy()


@functools.cache
@one_blas_thread
def _fitted(n_digits: int = 10_000) -> tuple[np.ndarray, np.ndarray, float]:
    """Weights (10, 1, 14, 14), biases (10,) and median range of the logits of training digits."""
    from sklearn.linear_model import LogisticRegression  # slow to import

    data = datasets.mnist()
    pixels = _halved(data.train_images[:n_digits]).reshape(n_digits, -1)
    fit = LogisticRegression(C=0.1, max_iter=1000).fit(pixels, data.train_labels[:n_digits])
    logit_range = float(np.median(np.ptp(fit.decision_function(pixels), axis=1)))
    weights = fit.coef_.reshape(-1, 1, SIDE, SIDE)
    return weights.astype(np.float32), fit.intercept_.astype(np.float32), logit_range
