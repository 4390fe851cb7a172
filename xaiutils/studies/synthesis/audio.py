"""Explainers of the singing detector on excerpts that a change of known cells has turned.

Cells are the 5 x 4 of notebook 01. Explainers see the attacked excerpt only; "mean" is that
excerpt's mean. Grad-CAM is absent: the network has no layer of maps in time and frequency.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from xaiutils import attribution, fidelity, lime, limit
from xaiutils.perturb import evaluate
from xaiutils.studies.audio import experiments as adversarial
from xaiutils.studies.audio.beyond import SILENCE, Logit
from xaiutils.studies.audio.experiments import CELLS, Case
from xaiutils.studies.synthesis.explainers import first_round

STEPS = CELLS.d  # of the curves: one cell at a time


def explain(
    detector, case: Case, *, n_masks: int, max_masks: int, n_noise: int, ig_steps: int, seed: int
) -> dict[str, np.ndarray]:
    """Scores (20,) of the cells of a case by each explainer.

    Signed scores are larger the more a cell speaks for the answer to the attacked excerpt. Those
    of "random", "gradient", "SmoothGrad", "SmoothGrad²" and "|x − b|" have no sign.

    Parameters
    ----------
    detector : classifiers.singing.Detector
    case : Case
        Of `adversarial_beyond.known_cells`.
    n_masks : int
        Masks of LIME, and of each round of the LIME that has converged.
    max_masks : int
        At which the latter gives up.
    n_noise : int
        Noisy copies for SmoothGrad.
    ig_steps : int
        Points of integrated gradients.
    seed : int

    Returns
    -------
    dict of ndarray
        What is explained is the logit of singing, by gradients, or its probability, by hiding
        cells under the mean as notebook 01 does:

        - "random".
        - "gradient", "SmoothGrad": sum of the magnitudes of the gradient and of its mean over
          noisy copies; "SmoothGrad²": sum of the mean square.
        - "input × gradient": (x - mean) times the gradient, summed.
        - "IG, zero", "IG, mean": integrated gradients from silence, the floor of the features, and
          from the mean.
        - "occlusion": each cell alone hidden. Probability.
        - "LIME": the first round of the next. Probability.
        - "LIME, converged": rounds of masks until the k-th and the next cell differ, k being the
          number of changed cells, or to `max_masks`. Probability.
        - "IG sums": integrated gradients of the probability from what LIME hides cells with, the
          mean: paper 2's approximation of LIME's limit (Eq. 12).
        - "|x − b|": distance from the mean, summed. It does not ask the detector.
    """
    x, towards = case.adversarial, case.direction
    batch, first = x[None], [0]
    mean = np.full_like(x, x.mean())
    logit = Logit(detector)
    slope = attribution.gradient(logit, batch, first)[0]
    smooth = attribution.smoothgrad(logit, batch, first, n_samples=n_noise, seed=seed)

    def integrated(model, baseline):
        return limit.integrated_gradients_sums(
            model, x, baseline, CELLS, 0, steps=ig_steps, tolerance=None
        )

    masks = np.vstack([np.ones(CELLS.d, bool), ~np.eye(CELLS.d, dtype=bool)])
    run = converged(detector, case, n_masks=n_masks, max_masks=max_masks, seed=seed)
    whole, *hidden = evaluate(detector, x, CELLS, masks, mean)[:, 0]
    return {
        "random": np.random.default_rng([seed, 1]).random(CELLS.d),
        "gradient": CELLS.sums(np.abs(slope)),
        "SmoothGrad": CELLS.sums(np.abs(smooth.mean[0])),
        "SmoothGrad²": CELLS.sums(smooth.mean_square[0]),
        "input × gradient": towards * CELLS.sums((x - mean) * slope),
        "IG, zero": towards * integrated(logit, np.full_like(x, SILENCE)),
        "IG, mean": towards * integrated(logit, mean),
        "occlusion": towards * (whole - np.array(hidden)),
        "LIME": towards * first_round(run, n_masks),
        "LIME, converged": towards * run.coef,
        "IG sums": towards * integrated(detector, mean),
        "|x − b|": CELLS.sums(np.abs(x - mean)),
    }


def converged(detector, case: Case, *, n_masks: int, max_masks: int, seed: int) -> lime.Explanation:
    """LIME of P(singing) with rounds of masks until its first k cells are settled.

    k is the number of changed cells; "first" is by evidence for the attacked answer.
    """
    k = int((adversarial.norms(case) > 0).sum())
    rule = lime.Stop if case.direction > 0 else _Lowest
    return lime.explain(
        detector,
        case.adversarial,
        CELLS,
        targets=0,
        n_samples=n_masks,
        filler=float(case.adversarial.mean()),
        stop=rule(top_k=k, max_samples=max_masks),
        seed=seed,
    )


class _Lowest(lime.Stop):
    """The same rule for the smallest coefficients: of P(singing), those that speak against it."""

    def met(self, coef, covariance, looks=1):
        return super().met(-coef, covariance, looks)


def table(
    detector,
    cases: Sequence[Case],
    *,
    n_masks: int,
    max_masks: int,
    n_noise: int,
    ig_steps: int,
    seed: int,
) -> dict[str, np.ndarray]:
    """Scores (n, 20) of all cases by each explainer, see `explain`; case i has `seed` + i."""
    effort = {"n_masks": n_masks, "max_masks": max_masks, "n_noise": n_noise, "ig_steps": ig_steps}
    rows = [
        explain(detector, case, **effort, seed=seed + i)
        for i, case in enumerate(tqdm(cases, "explainers", leave=False, mininterval=1))
    ]
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


def curves(
    detector, cases: Sequence[Case], scores: Mapping[str, np.ndarray], seed: int
) -> dict[str, fidelity.Curves]:
    """What becomes of the answer to attacked excerpts as cells are hidden in the order of scores.

    The classes are no singing (0) and singing (1), the label is the attacked answer, and hidden
    cells get the excerpt's mean.

    Parameters
    ----------
    scores : dict of (n, 20)
        As of `table`.
    seed : int
        Of ties.
    """
    x = np.stack([case.adversarial for case in cases])
    answers = np.array([case.direction > 0 for case in cases]).astype(int)
    means = np.broadcast_to(x.mean(axis=(1, 2), keepdims=True), x.shape)
    return fidelity.curves(
        Answers(detector), x, answers, scores,
        filler=means, steps=STEPS, components=CELLS, seed=seed,
    )  # fmt: skip


class Answers(nn.Module):
    """Logits (N, 2) of no singing and singing at the centre frame, of features (N, 165, 80).

    Their softmax is the detector's own probability.
    """

    def __init__(self, detector):
        super().__init__()
        self.logit = Logit(detector)

    def forward(self, features):
        half = self.logit(features) / 2
        return torch.cat([-half, half], dim=1)
