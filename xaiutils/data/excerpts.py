"""Short excerpts of music without and with a real singing voice, labelled by the voice itself."""

from collections.abc import Iterator
from functools import cache
from math import isfinite
from pathlib import Path
from typing import NamedTuple

import numpy as np
import skimage
import torch
from torch import Tensor

from xaiutils.data import assets
from xaiutils.data.files import read_sound

RATE = 16_000  # Hz
WINDOW, HOP = 400, 160  # samples: frames of 25 ms every 10 ms, each with a label
FRAMES = 165  # first to last frame 1.64 s apart; odd, so that there is a centre
SAMPLES = WINDOW + HOP * (FRAMES - 1)  # 26,640: 1.665 s
_CENTRE = FRAMES // 2
_SPACING = -(-SAMPLES // HOP)  # frames between excerpts that share no sample

# Of a frame's energy, in dB below the voice's loud frames (95th percentile). Chosen on the two
# voices, before any detector was run: the phrases of both come out whole, and their pauses remain.
_STARTS, _LASTS = -25.0, -35.0


class SingingExcerpts(NamedTuple):
    """Excerpts in pairs: row 2i is music, row 2i + 1 the same music with a voice in it.

    Attributes
    ----------
    waveforms : Tensor
        (n, 26640) float32 in [-1, 1] at 16 kHz: 165 frames of 25 ms every 10 ms.
    labels : Tensor
        (n,) int64, 1 where the centre frame is sung: 0 and 1 in turn.
    activity : Tensor
        (n, 165) bool, True in every frame that is sung. A voice pauses.
    tracks, singers : Tensor
        (n,) int64. A track meets one singer only, so excerpts of singer 0 and of singer 1 share
        neither singer nor track: a split for whatever is chosen by looking.
    level_db : float
    names : list of str
        Track, voice if any, and time of the centre.
    """

    waveforms: Tensor
    labels: Tensor
    activity: Tensor
    tracks: Tensor
    singers: Tensor
    level_db: float
    names: list[str]


def singing_excerpts(level_db: float = 0.0, n_per_track: int = 2, seed: int = 0) -> SingingExcerpts:
    """Excerpts of 28 instrumental tracks, each without and with solo singing mixed in.

    The tracks (generated music) and the two singers (real, from vocadito) are those of
    ``data/assets.toml``. A voice is repeated through its track from a random point on. Both rows of
    a pair are scaled alike where the mixture would clip.

    Parameters
    ----------
    level_db : float
        Energy of the voice over that of the music, in dB, over all frames of the track that are
        sung. Excerpts with the same seed differ in nothing else.
    n_per_track : int
        Pairs taken from a track, at random sung frames; no two share a sample, which leaves room
        for about 11.
    seed : int

    Returns
    -------
    SingingExcerpts
        ``56 * n_per_track`` rows.

    Raises
    ------
    ValueError
        `level_db` is not finite, or `n_per_track` is not positive or more than a track holds.
    xaiutils.data.assets.AssetError
        The audio cannot be fetched or verified.
    """
    if not isfinite(level_db):
        raise ValueError(f"level_db is {level_db}, must be a finite number of dB")
    if n_per_track < 1:
        raise ValueError(f"n_per_track is {n_per_track}, must be at least 1")
    rows = []
    for index, track in enumerate(singing_tracks(level_db, seed)):
        rng = np.random.default_rng([seed, index, 1])
        silent = np.zeros(FRAMES, bool)
        for centre in _spaced(track.active, n_per_track, rng, track.title):
            frames, samples = around(centre)
            at = f"at {(centre * HOP + WINDOW / 2) / RATE:.2f} s"
            music, mixture = f"{track.title} {at}", f"{track.title} with {track.voice} {at}"
            rows.append((track.music[samples], 0, silent, index, track.singer, music))
            sung = track.active[frames]
            rows.append((track.mixture[samples], 1, sung, index, track.singer, mixture))
    *arrays, names = zip(*rows, strict=True)
    waveforms, *others = (torch.from_numpy(np.stack(values)) for values in arrays)
    return SingingExcerpts(waveforms, *others, float(level_db), list(names))


class Track(NamedTuple):
    """A whole piece of music, and the same with a voice in it.

    Attributes
    ----------
    title, voice : str
        Names of the two recordings.
    singer : int
    music, mixture : ndarray
        (samples,) float32 in [-1, 1] at 16 kHz.
    active : ndarray
        (T,) bool, True in every 10 ms frame of the mixture that is sung.
    """

    title: str
    voice: str
    singer: int
    music: np.ndarray
    mixture: np.ndarray
    active: np.ndarray


def singing_tracks(level_db: float = 0.0, seed: int = 0) -> Iterator[Track]:
    """The 28 tracks that `singing_excerpts` cuts its excerpts from, one after the other."""
    voices = assets.names("vocadito")
    for index, name in enumerate(assets.names("immich-memories-music")):
        singer = index % len(voices)
        music, voice = _load(assets.path(name)), _load(assets.path(voices[singer]))
        start = np.random.default_rng([seed, index]).integers(len(voice))
        sung = np.resize(np.roll(voice, start), len(music))
        active = activity(sung)
        pair = _mixed(music, sung, active, level_db)
        yield Track(Path(name).stem, Path(voices[singer]).stem, singer, *pair, active)


def around(centre: int) -> tuple[slice, slice]:
    """The frames and the samples of the excerpt whose centre is this frame of its track."""
    first = centre - _CENTRE
    return slice(first, first + FRAMES), slice(first * HOP, first * HOP + SAMPLES)


def activity(voice: np.ndarray) -> np.ndarray:
    """Frames in which a solo voice sings, by its energy alone.

    Singing starts where a frame of 25 ms is less than 25 dB below the voice's loud ones (95th
    percentile) and lasts, before and after, while frames are less than 35 dB below them.

    Parameters
    ----------
    voice : ndarray
        (samples,) at 16 kHz, at least 400, and nothing but the voice.

    Returns
    -------
    ndarray
        (T,) bool, one every 10 ms; T = 1 + (samples - 400) // 160.
    """
    energy = _energy(voice)
    level = 10 * np.log10(np.maximum(energy / np.percentile(energy, 95), 1e-12))
    return skimage.filters.apply_hysteresis_threshold(level, _LASTS, _STARTS)


@cache
def _load(file: Path) -> np.ndarray:
    samples = read_sound(file, RATE)
    samples.setflags(write=False)
    return samples


def _energy(samples: np.ndarray) -> np.ndarray:
    """Mean square of each frame (T,)."""
    frames = np.lib.stride_tricks.sliding_window_view(samples, WINDOW)[::HOP]
    return np.einsum("ts,ts->t", frames, frames, dtype=np.float64) / WINDOW


def _mixed(music, voice, active, level_db) -> tuple[np.ndarray, np.ndarray]:
    """The music, and the music with the voice, both in [-1, 1]."""
    ratio = _energy(music)[active].mean() / _energy(voice)[active].mean()
    mixture = music + voice * np.float32(np.sqrt(ratio) * 10 ** (level_db / 20))
    scale = np.float32(1 / max(1, np.abs(mixture).max()))
    return music * scale, mixture * scale


def _spaced(active: np.ndarray, n: int, rng: np.random.Generator, title: str) -> list[int]:
    """Random active frames, in order, whose excerpts lie in the track and share no sample."""
    inside = np.flatnonzero(active[_CENTRE : len(active) - _CENTRE]) + _CENTRE
    chosen: list[int] = []
    for frame in rng.permutation(inside):
        if all(abs(frame - other) >= _SPACING for other in chosen):
            chosen.append(int(frame))
        if len(chosen) == n:
            return sorted(chosen)
    raise ValueError(
        f"n_per_track is {n}, but {title} has room for {len(chosen)} excerpts that share no sample"
    )
