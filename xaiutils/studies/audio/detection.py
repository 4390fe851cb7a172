"""The singing detector's own side of the attacks: how often it is right, and its cells.

Praher, Prinz, Flexer and Widmer, "On the Veracity of Local, Model-agnostic Explanations in Audio
Classification", ISMIR 2021.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from xaiutils.classifiers.singing import BANDS, BINS, HOP, WINDOW
from xaiutils.intervals import DRAWS, Estimate, percentiles, resamples


def quality(
    probability: Tensor, labels: Tensor, tracks: Tensor, *, draws: int = DRAWS, seed: int = 0
) -> dict[str, Estimate]:
    """How often a detector is right: a frame counts as sung where its probability exceeds 0.5.

    Parameters
    ----------
    probability : Tensor
        Of singing, (n,) or (n, T): a row is an excerpt.
    labels : Tensor
        Same shape, nonzero where sung.
    tracks : Tensor
        (n,) track of each row. The bootstrap draws whole tracks, whose frames are not independent.
    draws, seed : int
        Of the percentile bootstrap.

    Returns
    -------
    dict of str to Estimate
        "error", "recall" (share of the sung frames that are found) and "specificity" (share of the
        others that are left alone), with 95 % intervals; n counts tracks.

    Raises
    ------
    ValueError
        Shapes that do not fit, or labels without both classes.
    """
    if probability.shape != labels.shape or tracks.shape != labels.shape[:1]:
        raise ValueError(
            "probability, labels and tracks: expected shapes (n, ...), the same and (n,), got "
            f"{tuple(probability.shape)}, {tuple(labels.shape)} and {tuple(tracks.shape)}"
        )
    sung, found = np.asarray(labels) != 0, np.asarray(probability) > 0.5
    if sung.all() or not sung.any():
        raise ValueError(f"labels: all {sung.size} are {'' if sung.all() else 'not '}sung")
    _, track = np.unique(np.asarray(tracks), return_inverse=True)
    n = int(track.max()) + 1
    rows = np.broadcast_to(track.reshape(-1, *[1] * (sung.ndim - 1)), sung.shape)
    kind = rows * 4 + 2 * sung + found
    counts = np.bincount(kind.ravel(), minlength=4 * n).reshape(n, 4)
    drawn = resamples(n, draws=draws, seed=seed) @ counts

    def rates(right_not, wrong_sung, missed, hit):
        return {
            "error": (wrong_sung + missed) / (right_not + wrong_sung + missed + hit),
            "recall": hit / (hit + missed),
            "specificity": right_not / (right_not + wrong_sung),
        }

    with np.errstate(invalid="ignore"):  # a draw may hold tracks of one class only
        spread = rates(*drawn.T)
    return {
        name: Estimate(float(value), *percentiles(spread[name], n), n).of_share()
        for name, value in rates(*counts.sum(axis=0)).items()
    }


class MaskedSTFT(nn.Module):
    """Linear projection of a waveform's change to open cells of the detector's log-mel features.

    It keeps the bins of the short-time Fourier transform (Hann window of 512 samples, hop 128) that
    only open cells see: frames which overlap the window, bands which weigh the bin. So frames
    without an open band do not change at all. In the others the detector's own, shorter window
    smears a little over the edges in frequency, and so does a clip: see `leakage`. The waveform has
    `samples`; `allowed` (T, 80) bool has the open cells, of no use less than 5 frames in a row.
    """

    def __init__(self, detector: nn.Module, samples: int, allowed: Tensor):
        super().__init__()
        frames = 1 + (samples - WINDOW) // HOP
        fits = allowed.dtype == torch.bool and allowed.shape == (frames, BANDS)
        if not fits:
            raise ValueError(
                f"allowed: expected bool {(frames, BANDS)}, one value per frame and band, got "
                f"{allowed.dtype} of shape {tuple(allowed.shape)}"
            )
        self.size, self.hop = 2 * (BINS - 1), 128  # the bins are those of the detector's bank
        centre = self.hop * torch.arange(1 + samples // self.hop)[:, None]
        start = HOP * torch.arange(frames)
        reach = self.size // 2 - 1  # the window begins with a zero
        overlap = (start <= centre + reach) & (centre - reach < start + WINDOW)  # (S, T)
        closed = overlap.float() @ (~allowed).float().cpu() > 0  # (S, 80)
        weighs = detector.bank.T.cpu() > 0  # (80, 257)
        kept = (closed.float() @ weighs.float() == 0) & weighs.any(0)  # (S, 257); none weighs 0 Hz
        self.register_buffer("kept", kept.T)
        self.register_buffer("window", torch.hann_window(self.size))
        self.to(detector.bank.device)

    def forward(self, delta: Tensor) -> Tensor:
        """Project `delta` (1, samples); same shape."""
        setting = {"n_fft": self.size, "hop_length": self.hop, "window": self.window.to(delta)}
        bins = torch.stft(delta, **setting, pad_mode="constant", return_complex=True)  # (1, 257, S)
        return torch.istft(bins * self.kept, **setting, length=delta.shape[-1])


@torch.no_grad()
def leakage(detector: nn.Module, x: Tensor, delta: Tensor, allowed: Tensor) -> float:
    """Share of the squared change of the log-mel features outside the cells `allowed` (T, 80).

    `x` and `delta` are (1, samples). In [0, 1], and 0 where nothing changes.
    """
    change = (detector.features(x + delta) - detector.features(x))[0].double().square()
    total = change.sum().item()
    return change[allowed.logical_not()].sum().item() / total if total else 0.0
