"""A reader's own photograph or sound, as the classifiers take it; anything else is refused."""

from __future__ import annotations

import stat
import struct
import warnings
from pathlib import Path

import librosa
import numpy as np
import soundfile
from PIL import Image, ImageOps

_UNREADABLE = (
    OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError,
)  # fmt: skip

_SLOWEST = 4000  # samples a second: below that it is some other signal, not a sound


class FileError(ValueError):
    """A file is missing, damaged or of a kind that is not read; the message names it."""


class UnknownFormatError(FileError):
    """The content of a file is in no format that the reader knows."""


def read_photograph(path: str | Path, size: int | None = None) -> np.ndarray:
    """Load an image as it is meant to be seen: upright, in colour, without transparency.

    Parameters
    ----------
    path : str or Path
        A file of any format that Pillow reads; of an animation, the first frame. Grey images get
        three equal channels, 16-bit grey ones are scaled to 8 bits, transparent ones are laid on
        white, CMYK is converted, the orientation noted in EXIF is applied.
    size : int, optional
        Cut out the largest central square and resize it (bicubic) to this many pixels.

    Returns
    -------
    ndarray (3, H, W) float32
        RGB in [0, 1]; H = W = `size` if that is given.

    Raises
    ------
    FileError
        The file is missing, damaged, no image (then an `UnknownFormatError`), or its pixels have no
        fixed white (32-bit integers or floats).
    ValueError
        `size` is below 1.
    """
    image = open_photograph(path)
    if size is not None:
        image = central_square(image, size)
    return as_array(image)


def as_array(image: Image.Image) -> np.ndarray:
    """Pixels of an RGB image as (3, H, W) float32 in [0, 1]."""
    return np.asarray(image, np.float32).transpose(2, 0, 1) / 255


def open_photograph(path: str | Path) -> Image.Image:
    """The image of `read_photograph` in its own size, in mode RGB."""
    path = _file(path)
    try:
        # A warning is given from 89 million pixels on, an error from 179.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path) as opened:
                image = ImageOps.exif_transpose(opened)
    except Image.UnidentifiedImageError:
        raise UnknownFormatError(f"{path} is no image in a known format") from None
    except _UNREADABLE as error:
        raise FileError(f"{path} cannot be read as an image: {_words(error)}") from error
    if image.mode in ("I", "F"):
        raise FileError(
            f"{path} has 32-bit pixels, of which nobody knows which value is white; save it with 8 "
            "or 16 bits a channel"
        )
    if image.mode.startswith("I;16"):  # Pillow's own conversion would clip at 255
        image = Image.fromarray(np.rint(np.asarray(image) / 257).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def central_square(image: Image.Image, size: int) -> Image.Image:
    """The largest central square of an image, resized (bicubic) to `size` x `size` pixels."""
    if size < 1:
        raise ValueError(f"size is {size}, must be at least 1 pixel")
    return image.resize((size, size), Image.Resampling.BICUBIC, box=square_box(image.size))


def square_box(size: tuple[int, int]) -> tuple[float, float, float, float]:
    """Left, upper, right and lower edge of the largest central square in (width, height)."""
    width, height = size
    side = min(width, height)
    left, upper = (width - side) / 2, (height - side) / 2
    return left, upper, left + side, upper + side


def read_sound(path: str | Path, rate: int = 16_000) -> np.ndarray:
    """Load a sound whole: channels averaged, resampled to `rate`.

    Cut what you need out of the result. Files are never read from an offset or in blocks: an MP3
    frame may need bytes of those before it, and libsndfile drops them where it starts anew, so that
    parts of an MP3 (not of WAV, FLAC or OGG files) would differ from the same samples of the whole.

    Parameters
    ----------
    path : str or Path
        A file of any format that libsndfile reads: WAV, FLAC, OGG, MP3 and others.
    rate : int
        Samples per second of the result.

    Returns
    -------
    ndarray (samples,) float32
        At least one; in [-1, 1] where the file's format has a full scale.

    Raises
    ------
    FileError
        The file is missing, damaged, no sound (then an `UnknownFormatError`), empty, has fewer than
        4000 samples a second, or holds samples that are not finite.
    """
    path = _file(path)
    try:
        opened = soundfile.SoundFile(path)
    except (soundfile.LibsndfileError, TypeError):  # TypeError: raw samples without a header
        raise UnknownFormatError(f"{path} is no sound in a known format") from None
    if opened.samplerate < _SLOWEST:
        opened.close()
        raise FileError(f"{path} has {opened.samplerate} samples a second; {_SLOWEST} at least")
    try:
        with opened:
            channels = opened.read(dtype="float32", always_2d=True).T
    except soundfile.SoundFileError as error:
        raise FileError(f"{path} cannot be read as a sound: {_words(error)}") from error
    if not channels.size:
        raise FileError(f"{path} holds no samples")
    if bad := np.sum(~np.isfinite(channels)):
        raise FileError(f"{path}: {bad} of {channels.size} samples are not finite")
    mono = librosa.to_mono(channels)
    return librosa.resample(mono, orig_sr=opened.samplerate, target_sr=rate)


def _file(path: str | Path) -> Path:
    path = Path(path)
    try:
        mode = path.stat().st_mode
        if not stat.S_ISREG(mode):
            raise FileError(f"{path} is {'a folder' if stat.S_ISDIR(mode) else 'no regular file'}")
        path.open("rb").close()
    except FileNotFoundError:
        raise FileError(f"there is no file {path}") from None
    except OSError as error:
        raise FileError(f"{path} cannot be opened: {error.strerror}") from None
    return path


def _words(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
