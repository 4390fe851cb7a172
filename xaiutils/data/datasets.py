"""Real images with labels, as tensors in natural units."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from xaiutils.data import assets
from xaiutils.data.excerpts import SingingExcerpts as SingingExcerpts
from xaiutils.data.excerpts import singing_excerpts as singing_excerpts
from xaiutils.data.excerpts import singing_tracks as singing_tracks
from xaiutils.data.known_digits import ColouredDigits as ColouredDigits
from xaiutils.data.known_digits import SceneDigits as SceneDigits
from xaiutils.data.known_digits import coloured_digits as coloured_digits
from xaiutils.data.known_digits import scene_digits as scene_digits
from xaiutils.data.mnist import Mnist as Mnist
from xaiutils.data.mnist import mnist as mnist


class ImagenetSamples(NamedTuple):
    """Labelled photographs: images (n, 3, size, size) in [0, 1], labels (n,), 1000 class names."""

    images: torch.Tensor
    labels: torch.Tensor
    class_names: list[str]
    names: list[str]


def imagenet_samples(size: int = 224) -> ImagenetSamples:
    """Load the 20 ImageNet photographs that come with Foolbox.

    The shorter side is resized (bicubic) to ``round(size * 256 / 224)`` pixels and the central
    square of `size` pixels is cut out: the usual evaluation crop, scaled.

    Parameters
    ----------
    size : int
        Height and width of the images in pixels, at least 1.

    Returns
    -------
    ImagenetSamples
        ``images`` (20, 3, size, size) float32 RGB in [0, 1]; ``labels`` (20,) int64 class indices
        in 0..999; ``class_names``, the 1000 names by index; ``names``, the 20 file stems.

    Raises
    ------
    ValueError
        `size` is below 1.
    xaiutils.data.assets.AssetError
        The photographs cannot be fetched or verified.
    """
    files = [assets.path(name) for name in assets.names("foolbox")]
    names = [file.stem for file in files]
    return ImagenetSamples(
        images=_photographs(files, size),
        labels=torch.tensor([int(name.rsplit("_", 1)[1]) for name in names]),
        class_names=class_names(),
        names=names,
    )


def imagenet_photographs(
    size: int = 224, *, n: int | None = None, seed: int = 0
) -> ImagenetSamples:
    """Load 500 ImageNet photographs, one of each class of even index.

    They are every second of E. Schwartz's imagenet-sample-images, one random photograph per class.
    Classifiers do better on them than their authors report on the validation set, so they look like
    training images (see ``data/README.md``). The first call fetches 55 MB, or only what a subset
    needs.

    Parameters
    ----------
    size : int
        Height and width in pixels after the crop of `imagenet_samples`, at least 1.
    n : int, optional
        Photographs of a random subset, 1 to 500, in the order of the classes. By default all.
    seed : int
        Of the subset.

    Returns
    -------
    ImagenetSamples
        As of `imagenet_samples`, with ``images`` (n, 3, size, size), ``labels`` in rising order and
        ``names`` such as ``"n01440764_tench"``. All images are held in memory: 0.3 GB for 224
        pixels.

    Raises
    ------
    ValueError
        `size` is below 1, or `n` is not within 1..500.
    xaiutils.data.assets.AssetError
        The photographs cannot be fetched or verified.
    """
    _check_size(size)
    labels = assets.archives()["imagenet-photographs"].labels
    names = _subset(list(labels), n, seed, "the photographs there are")
    return ImagenetSamples(
        images=_photographs(assets.paths(names), size),
        labels=torch.tensor([labels[name] for name in names]),
        class_names=class_names(),
        names=[Path(name).stem for name in names],
    )


def image_folder(
    root: str | Path, *, n: int | None = None, size: int = 224, seed: int = 0
) -> ImagenetSamples:
    """Load photographs of ImageNet classes from a folder with one sub-folder per class.

    Parameters
    ----------
    root : str or Path
        As for ``torchvision.datasets.ImageFolder``, with sub-folders named by WordNet ids (all
        1000 of ImageNet, whose sorted order is that of the classes, or Imagenette's), by class
        indices, ``"207"``, or by class names, ``"golden retriever"``.
    n : int, optional
        Images of a random subset, in the folder's order; others are not read. By default all.
    size : int
        Height and width in pixels after the crop of `imagenet_samples`.
    seed : int
        Of the subset.

    Returns
    -------
    ImagenetSamples
        As of `imagenet_samples`, but ``names`` are file paths below `root`. All images are held
        in memory: 3 GB for 5,000 of 224 pixels, 30 GB for all of ImageNet's validation set.

    Raises
    ------
    ValueError
        `root` is no such folder, or a file in it is damaged; `n` is not within 1 and the number
        of images in it; `size` is below 1.
    """
    from torchvision.datasets.folder import IMG_EXTENSIONS, make_dataset

    root = Path(root).expanduser()
    found = make_dataset(root, _class_folders(root), extensions=IMG_EXTENSIONS, allow_empty=True)
    if not found:
        raise ValueError(f"root: {root} holds no images ({', '.join(IMG_EXTENSIONS)})")
    found = _subset(found, n, seed, f"the images in {root}")
    files, labels = zip(*found, strict=True)
    return ImagenetSamples(
        images=_photographs(files, size),
        labels=torch.tensor(labels),
        class_names=class_names(),
        names=[Path(file).relative_to(root).as_posix() for file in files],
    )


def class_names() -> list[str]:
    """Names of ImageNet's 1000 classes, by index."""
    from torchvision.models import ResNet50_Weights  # two seconds, for photographs only

    return list(ResNet50_Weights.IMAGENET1K_V2.meta["categories"])


def _class_folders(root: Path) -> dict[str, int]:
    """Class index of each sub-folder by its name; hidden ones are left out."""
    from torchvision.datasets import Imagenette

    inside = root.iterdir() if root.is_dir() else ()
    folders = sorted(f.name for f in inside if f.is_dir() and not f.name.startswith("."))
    if not folders:
        raise ValueError(f"root: {root} must be a folder with one sub-folder of images per class")
    names = {name: index for index, name in enumerate(class_names())}
    known = {wnid: names[synonyms[0]] for wnid, synonyms in Imagenette._WNID_TO_CLASS.items()}
    if len(folders) == 1000 and all(re.fullmatch(r"n\d{8}", folder) for folder in folders):
        places = {folder: index for index, folder in enumerate(folders)}
        if known.items() <= places.items():  # or these are 1000 other WordNet ids
            return places
    known |= names | {str(index): index for index in range(1000)}
    unknown = [folder for folder in folders if folder not in known]
    if unknown:
        raise ValueError(
            f"root: {len(unknown)} of {len(folders)} sub-folders of {root} are no ImageNet class, "
            f"{unknown[0]!r} first; allowed are all 1000 WordNet ids of ImageNet, Imagenette's "
            "ten, class indices 0..999 and the names in torchvision's list of classes"
        )
    return {folder: known[folder] for folder in folders}


def _subset(found: list, n: int | None, seed: int, what: str) -> list:
    """`n` of them at random, in their order; all where `n` is None."""
    if n is None:
        return found
    if not 1 <= n <= len(found):
        raise ValueError(f"n is {n}, must be within 1..{len(found)}, {what}")
    chosen = np.random.default_rng(seed).choice(len(found), n, replace=False)
    return [found[i] for i in np.sort(chosen)]


def _check_size(size: int) -> None:
    if size < 1:
        raise ValueError(f"size is {size}, must be at least 1 pixel")


def _photographs(files: Sequence[str | Path], size: int) -> torch.Tensor:
    """Central squares of resized RGB photographs, (n, 3, size, size) in [0, 1]."""
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms import functional as transform

    _check_size(size)
    # Filled in place: a list to be stacked would need twice the memory.
    images = torch.empty(len(files), 3, size, size)
    side = round(size * 256 / 224)
    for i, file in enumerate(tqdm(files, desc="images", delay=5, leave=False)):
        try:
            with Image.open(file) as photograph:
                colours = photograph.convert("RGB")
        except OSError as error:  # some of them do not name the file
            raise ValueError(f"{file} cannot be read as an image: {error}") from error
        scaled = transform.resize(colours, side, InterpolationMode.BICUBIC)
        images[i] = transform.to_tensor(transform.center_crop(scaled, size))
    return images
