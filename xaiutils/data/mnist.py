"""The MNIST digits, converted once from a pickle that may build nothing but arrays."""

import gzip
import hashlib
import zipfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from xaiutils.data import assets
from xaiutils.data.arrays import read_arrays

# sha256 over the bytes of the four uint8 arrays of `mnist`, in its order: pins what the digits are,
# whatever file they were read from.
_MNIST_SHA256 = "06b0d1f124c4e5fa796686ade41a9b778edacc8622f2195a352ef479ad44fc16"


class Mnist(NamedTuple):
    """The MNIST digits: images (n, 1, 28, 28) float32 in [0, 1], labels (n,) int64."""

    train_images: torch.Tensor
    train_labels: torch.Tensor
    test_images: torch.Tensor
    test_labels: torch.Tensor


def mnist() -> Mnist:
    """Load the 70,000 MNIST digits (LeCun et al. 1998) in their original order.

    The source is a pickle: it is read once, allowing nothing but plain arrays, and kept as
    ``mnist.npz`` beside it.

    Returns
    -------
    Mnist
        ``train_images`` (60000, 1, 28, 28) and ``test_images`` (10000, 1, 28, 28), float32, ink 1
        on background 0; ``train_labels`` (60000,) and ``test_labels`` (10000,), int64 in 0..9.

    Raises
    ------
    xaiutils.data.assets.AssetError
        The file cannot be fetched or verified, or holds anything but the known digits.
    """
    source = assets.path("mnist.pkl.gz")
    converted = source.with_name("mnist.npz")
    arrays = _read_npz(converted)
    if arrays is None:
        arrays = _read_pickle(source)
        if _digest(arrays) != _MNIST_SHA256:
            raise assets.AssetError(
                f"{source} holds other digits than MNIST; remove it and fetch again"
            )
        with (
            assets.writing(source.parent, converted.name),
            assets.replacing(converted) as temporary,
            temporary.open("wb") as sink,
        ):
            np.savez(sink, **arrays)
    return Mnist(
        **{
            key: torch.from_numpy(value).unsqueeze(1).float() / 255
            if key.endswith("images")
            else torch.from_numpy(value).long()
            for key, value in arrays.items()
        }
    )


def _digest(arrays: dict[str, np.ndarray]) -> str:
    digest = hashlib.sha256()
    for key in Mnist._fields:
        digest.update(np.ascontiguousarray(arrays[key]))
    return digest.hexdigest()


def _read_npz(file: Path) -> dict[str, np.ndarray] | None:
    """Read the converted digits; None where they are missing or not intact."""
    try:
        with np.load(file, allow_pickle=False) as stored:
            arrays = {key: stored[key] for key in Mnist._fields}
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile):
        return None
    return arrays if _digest(arrays) == _MNIST_SHA256 else None


def _read_pickle(file: Path) -> dict[str, np.ndarray]:
    """Read ((images, labels) of training, validation, test; pixels k / 256) as uint8 arrays."""
    with gzip.open(file) as stream:
        parts = read_arrays(stream, "mnist.pkl.gz", encoding="latin1")  # from Python 2
    images, labels = zip(*parts, strict=True)
    images = [(part * 256).astype(np.uint8).reshape(-1, 28, 28) for part in images]
    labels = [part.astype(np.uint8) for part in labels]
    return {
        "train_images": np.concatenate(images[:2]),
        "train_labels": np.concatenate(labels[:2]),
        "test_images": images[2],
        "test_labels": labels[2],
    }
