"""A reader's photograph or sound made ready to be explained: its cells, its model, how it looks."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import librosa
import numpy as np
import soundfile
import torch
from PIL import Image
from tqdm import tqdm

from xaiutils import perturb, segment
from xaiutils.classifiers import imagenet, singing
from xaiutils.companion import own_model, report
from xaiutils.companion.drawing import picture
from xaiutils.data import datasets, files

NETWORK, SIDE = "efficientnet_lite0", 224
SECONDS, SHORTEST = 2.0, 0.5  # of sound that are explained, and at least needed
GRID = "5x4"  # cells of a sound, times x bands
HOP = singing.HOP / singing.RATE  # seconds from one frame to the next
_WINDOW = singing.WINDOW / singing.RATE  # seconds
_STEP = 10  # frames, 0.1 s, between the excerpts among which the most certain one is found
_BATCH = 256  # excerpts
_BLOCK = 6000  # frames, a minute: features of a long sound need 7 KB of memory a frame


class OptionError(ValueError):
    """An option does not fit the file, the model or another option; the message names it."""


@dataclass(frozen=True)
class Options:
    """What a reader may choose.

    Attributes
    ----------
    model : str, optional
        MODULE:NAME, see `own_model.load`. By default EfficientNet-Lite0 or the singing detector. It
        gets photographs (B, 3, size, size) in [0, 1], or log-mel features (B, frames, 80) of
        `singing.Detector.features`.
    target : int, optional
        Explained output; by default the largest.
    top : int, optional
        Cells to list, and to tell apart from the rest; by default 3, or all but one.
    masks : int
        Masks in each of at most 8 rounds.
    seed : int
    cells : str, optional
        "N", about so many superpixels of SLIC, or "AxB", a grid of A rows (of a sound: time steps)
        and B columns (frequency bands). By default the superpixels of quickshift, or "5x4".
    size : int, optional
        Side in pixels of the photograph that the model gets; by default 224.
    at : float, optional
        Seconds to the middle of the explained sound; by default where the model is most certain.
    """

    model: str | None = None
    target: int | None = None
    top: int | None = None
    masks: int = 500
    seed: int = 0
    cells: str | None = None
    size: int | None = None
    at: float | None = None


@dataclass(frozen=True)
class Subject:
    """What is to be explained.

    Attributes
    ----------
    title : str
        The file, and which part of it is explained.
    model : torch.nn.Module or callable
        From a batch of inputs to what is explained, (B, outputs).
    model_name, kind : str
        `kind` is what its outputs are, see `own_model.explained`.
    names : dict of int to str
        Of the outputs, where they are known.
    x, hidden : ndarray
        One input without a batch axis, and what it becomes if everything is hidden.
    cells : perturb.Components
        Of `x`.
    labels : (H, W) int array
        The same as `show` draws them.
    where : str
        Heading of what `place` says.
    place : callable
        From the pixels of a cell, (H, W) bool as drawn, to the words that say where it lies.
    show : callable
        Draws the input on an Axes.
    """

    title: str
    model: Callable
    model_name: str
    kind: str
    names: dict[int, str]
    x: np.ndarray
    hidden: np.ndarray
    cells: perturb.Components
    labels: np.ndarray
    where: str
    place: Callable[[np.ndarray], str]
    show: Callable

    def output(self, index: int) -> str:
        """Name of an output."""
        return self.names.get(index, f"class {index}")


def read(path: str | Path, options: Options) -> Subject:
    """Make a photograph or a sound ready; the content of the file says which it is.

    Raises
    ------
    ValueError
        As `files.FileError`, `OptionError` or `own_model.ModelError`, or by what is called.
    xaiutils.data.assets.AssetError
        The default model cannot be fetched.
    """
    try:
        image = files.open_photograph(path)
    except files.UnknownFormatError:
        try:
            sound = files.read_sound(path, singing.RATE)
        except files.UnknownFormatError:
            raise files.FileError(
                f"{path} is neither an image nor a sound in a known format (images: PNG, JPEG and "
                "whatever else Pillow reads; sounds: WAV, FLAC, OGG, MP3)"
            ) from None
        return _of_sound(path, sound, options)
    return _of_photograph(path, image, options)


def _of_photograph(path: str | Path, image: Image.Image, options: Options) -> Subject:
    if options.at is not None:
        raise OptionError(f"at is for sounds, and {path} is an image")
    side = SIDE if options.size is None else options.size
    x = files.as_array(files.central_square(image, side))
    if (x == x[:, :1, :1]).all():
        raise files.FileError(f"{path} has one colour everywhere: hiding parts changes nothing")
    cells = _superpixels(x, options.cells)
    hidden = cells.means(x)
    if options.model:
        found = own_model.load(options.model)
        model, kind = own_model.explained(found, np.stack([x, (x + hidden) / 2, hidden]))
        names = {}
    else:
        model = torch.nn.Sequential(imagenet.load(NETWORK), torch.nn.Softmax(dim=1)).eval()
        kind = "probability"
        names = {i: f"class {i} ({name})" for i, name in enumerate(datasets.class_names())}
    left, upper, right, _ = files.square_box(image.size)
    scale = (right - left) / side

    def place(inside):
        row, column = report.innermost(inside)
        return f"{left + (column + 0.5) * scale:.0f}, {upper + (row + 0.5) * scale:.0f}"

    crop = "" if image.width == image.height else "its central square, "
    return Subject(
        title=f"{path}: {image.width} x {image.height} pixels; explained: {crop}{side} x {side}",
        model=model,
        model_name=options.model or NETWORK,
        kind=kind,
        names=names,
        x=x,
        hidden=hidden,
        cells=cells,
        labels=cells.labels,
        where="at x, y (pixels)",
        place=place,
        show=lambda ax: picture(ax, x.transpose(1, 2, 0), ""),
    )


def _of_sound(path: str | Path, sound: np.ndarray, options: Options) -> Subject:
    if options.size is not None:
        raise OptionError(f"size is for images, and {path} is a sound")
    seconds = len(sound) / singing.RATE
    if seconds < SHORTEST:
        raise files.FileError(f"{path} lasts {seconds:.2f} s; at least {SHORTEST} s are needed")
    if options.at is not None and not 0 <= options.at <= seconds:
        raise OptionError(f"at {options.at} is not within {path}, 0 to {seconds:.2f} s")
    detector = singing.load()
    features = _features(detector, sound)
    frames = min(len(features), int((SECONDS - _WINDOW) / HOP) + 1)
    excerpts = features.unfold(0, frames, 1).transpose(1, 2)  # (n, frames, 80), all that there are
    if options.model:
        some = np.linspace(0, len(excerpts) - 1, min(len(excerpts), 8)).astype(int)
        model, kind = own_model.explained(own_model.load(options.model), excerpts[some])
        names = {}
    else:
        model, kind, names = detector, "probability", {0: "singing"}
    if options.at is None:
        start = _most_certain(model, excerpts, options.target)
        how = "where the model is most certain"
    else:
        middle = round(options.at / HOP) - frames // 2
        start, how = int(np.clip(middle, 0, len(excerpts) - 1)), f"around {options.at} s"
    x = excerpts[start].contiguous().numpy()
    first, last = start * HOP, (start + frames - 1) * HOP + _WINDOW
    if x.min() == x.max():
        raise files.FileError(f"{path} is silent from {first:.2f} to {last:.2f} s")
    cells = perturb.Components(segment.grid(x.shape, *_grid(options.cells or GRID, x)))
    edges = _hertz(singing.BANDS)

    def place(inside):
        bands, times = (np.flatnonzero(inside.any(axis=axis)) for axis in (1, 0))
        begin, end = (first + t * HOP for t in (times[0], times[-1] + 1))
        low, high = edges[bands[0]], edges[bands[-1] + 1]
        return f"{begin:.2f} to {end:.2f}, {low:.0f} to {high:.0f}"

    rate = soundfile.info(path).samplerate
    length = f"{seconds:.2f} s of sound" + (f" at only {rate} Hz" if rate < singing.RATE else "")
    return Subject(
        title=f"{path}: {length}; explained: {first:.2f} to {last:.2f} s, {how}",
        model=model,
        model_name=options.model or "the singing detector",
        kind=kind,
        names=names,
        x=x,
        hidden=np.full_like(x, x.min()),
        cells=cells,
        labels=cells.labels.T,
        where="at seconds, Hz",
        place=place,
        show=lambda ax: _spectrogram(ax, x, first),
    )


def checked_target(target: int, outputs: int) -> int:
    """`target`, if a model with so many outputs has it."""
    if not 0 <= target < outputs:
        raise OptionError(f"target {target} is not allowed: the model has outputs 0..{outputs - 1}")
    return target


def _superpixels(x: np.ndarray, wanted: str | None) -> perturb.Components:
    if wanted is None:
        return perturb.Components(segment.quickshift(x))
    if wanted.isdecimal() and int(wanted):
        return perturb.Components(segment.slic(x, n_segments=int(wanted)))
    return perturb.Components(segment.grid(x.shape[1:], *_grid(wanted, x[0])))


def _grid(wanted: str, x: np.ndarray) -> tuple[int, int]:
    """The two numbers of "AxB", if a grid of so many cells fits on `x` (H, W)."""
    found = re.fullmatch(r"(\d+)x(\d+)", wanted)
    if not found or not all(1 <= int(n) <= m for n, m in zip(found.groups(), x.shape, strict=True)):
        raise OptionError(
            f"cells {wanted!r} is not allowed here: give AxB, at most {x.shape[0]}x{x.shape[1]}, "
            "or for an image one number"
        )
    return int(found[1]), int(found[2])


def _features(detector: singing.Detector, sound: np.ndarray) -> torch.Tensor:
    """Log-mel features (T, 80) of a sound (samples,), minute by minute."""
    waveform = torch.from_numpy(sound)[None]
    frames = 1 + (len(sound) - singing.WINDOW) // singing.HOP
    parts = []
    for first in range(0, frames, _BLOCK):
        last = min(first + _BLOCK, frames) - 1
        part = waveform[:, first * singing.HOP : last * singing.HOP + singing.WINDOW]
        parts.append(detector.features(part)[0])
    return torch.cat(parts)


def _most_certain(model: Callable, excerpts: torch.Tensor, target: int | None) -> int:
    """Index of the excerpt (frames, 80) with the largest output, of those that are not silent."""
    starts = np.arange(0, len(excerpts), _STEP)
    best, best_value = 0, -np.inf
    for batch in tqdm(range(0, len(starts), _BATCH), "excerpts", delay=3, leave=False):
        some = starts[batch : batch + _BATCH]
        rows = excerpts[some]
        out = own_model.ask(model, rows)
        column = slice(None) if target is None else [checked_target(target, out.shape[1])]
        values = out[:, column].max(axis=1)
        values[(rows.amax((1, 2)) == rows.amin((1, 2))).numpy()] = -np.inf
        if values.max() > best_value:
            best, best_value = int(some[values.argmax()]), values.max()
    return best


def _hertz(rows: int) -> np.ndarray:
    """Edges of so many rows of equal height in a drawing of the features, `rows` + 1."""
    return librosa.mel_frequencies(rows + 1, fmin=20, fmax=singing.RATE / 2, htk=True)


def _spectrogram(ax, features: np.ndarray, first: float) -> None:
    """Log-mel features (T, 80) from `first` seconds on, one unit a pixel."""
    ax.imshow(features.T, origin="lower", cmap="gray", aspect="auto")
    seconds = np.arange(np.ceil(first * 2) / 2, first + len(features) * HOP, 0.5)
    hertz = np.array([200, 500, 1000, 2000, 4000])
    rows = np.interp(hertz, _hertz(singing.BANDS), np.arange(singing.BANDS + 1)) - 0.5
    ax.set(xticks=(seconds - first) / HOP - 0.5, xticklabels=[f"{s:g}" for s in seconds])
    ax.set(yticks=rows, yticklabels=hertz, xlabel="time, s", ylabel="Hz")
    ax.grid(False)
