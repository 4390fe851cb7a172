"""Fashion-MNIST, fetched by torchvision and checked byte by byte."""

from __future__ import annotations

import gzip
import hashlib
import zlib

import numpy as np
import torch

from xaiutils.data import assets
from xaiutils.data.mnist import Mnist

CLASSES = (
    "top",
    "trouser",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "boot",
)
# Of each file: sha256 of what is compressed, so that files compressed anew, such as those of the
# Debian package, are taken as well, and the shape of its uint8 array.
FILES = {
    "train-images-idx3-ubyte.gz": (
        "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
        (60000, 28, 28),
    ),
    "train-labels-idx1-ubyte.gz": (
        "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
        (60000,),
    ),
    "t10k-images-idx3-ubyte.gz": (
        "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
        (10000, 28, 28),
    ),
    "t10k-labels-idx1-ubyte.gz": (
        "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
        (10000,),
    ),
}


def fashion_mnist() -> Mnist:
    """Load the 70,000 pictures of clothes of Fashion-MNIST (Xiao, Rasul and Vollgraf 2017).

    Looks for the four files in the cache folder's ``FashionMNIST/raw``, where copies may be put;
    else `torchvision.datasets.FashionMNIST` downloads them there.

    Returns
    -------
    Mnist
        ``train_images`` (60000, 1, 28, 28) and ``test_images`` (10000, 1, 28, 28), float32 in
        [0, 1]; ``train_labels`` (60000,) and ``test_labels`` (10000,), int64, see `CLASSES`.

    Raises
    ------
    xaiutils.data.assets.AssetError
        The files cannot be downloaded, or one of them is not the known one.
    """
    root = assets.cache_folder()
    raw = root / "FashionMNIST" / "raw"
    if not all((raw / name).exists() for name in FILES):
        from torchvision.datasets import FashionMNIST  # two seconds, for the download only

        try:
            FashionMNIST(root, download=True)
        except (OSError, RuntimeError) as error:
            raise assets.AssetError(
                f"Fashion-MNIST cannot be downloaded ({error}); without the internet put "
                f"{', '.join(FILES)} into {raw} (the Debian package dataset-fashion-mnist has them)"
            ) from error
    found = [_read(raw / name, *known) for name, known in FILES.items()]
    images, labels = found[::2], found[1::2]
    train, test = (
        (torch.from_numpy(x)[:, None].float() / 255, torch.from_numpy(y).long())
        for x, y in zip(images, labels, strict=True)
    )
    return Mnist(*train, *test)


def _read(file, sha256: str, shape: tuple[int, ...]) -> np.ndarray:
    """The array of an idx file: a header of four bytes, four bytes a dimension, then the values."""
    try:
        content = gzip.decompress(file.read_bytes())
    except (OSError, EOFError, zlib.error) as error:
        raise assets.AssetError(
            f"{file} is damaged ({error}); remove it and fetch again"
        ) from error
    if hashlib.sha256(content).hexdigest() != sha256:
        raise assets.AssetError(
            f"{file} is not the file of Fashion-MNIST; remove it and fetch again"
        )
    return np.frombuffer(content, np.uint8, offset=4 + 4 * len(shape)).reshape(shape).copy()
