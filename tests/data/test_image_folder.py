"""Folders of photographs: how sub-folders name classes, the subset, and what is refused."""

import numpy as np
import pytest
import torch
from PIL import Image

from xaiutils.data import datasets

# Indices as listed with the 1000 classes, typed here from that list.
IMAGENETTE = {
    "n01440764": (0, "tench"),
    "n02102040": (217, "English springer"),
    "n02979186": (482, "cassette player"),
    "n03000684": (491, "chain saw"),
    "n03028079": (497, "church"),
    "n03394916": (566, "French horn"),
    "n03417042": (569, "garbage truck"),
    "n03425413": (571, "gas pump"),
    "n03445777": (574, "golf ball"),
    "n03888257": (701, "parachute"),
}


def photograph(file, grey):
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (12, 10), (grey, grey, grey)).save(file)


def imagenet_ids():
    """1000 WordNet ids in sorted order, Imagenette's ten true ones at their indices."""
    ids, last = [], 1440763
    true = {index: int(wnid[1:]) for wnid, (index, _) in IMAGENETTE.items()}
    for index in range(1000):
        last = true.get(index, last + 1)
        ids.append(f"n{last:08d}")
    return ids


@pytest.fixture
def imagenette(tmp_path):
    """Three images in each class, each with a grey of its own."""
    for c, wnid in enumerate(IMAGENETTE):
        for i in range(3):
            photograph(tmp_path / wnid / f"{i}.jpg", 20 * c + 5 * i)
    return tmp_path


def test_imagenette_has_imagenets_class_indices(imagenette):
    found = datasets.image_folder(imagenette, size=7)
    assert found.images.shape == (30, 3, 7, 7) and found.images.dtype == torch.float32
    assert found.labels.dtype == torch.int64
    assert found.labels[::3].tolist() == [index for index, _ in IMAGENETTE.values()]
    assert torch.equal(found.labels, found.labels[::3].repeat_interleave(3))
    names = [name for _, name in IMAGENETTE.values()]
    assert [found.class_names[label] for label in found.labels[::3]] == names
    assert found.names[:4] == [
        "n01440764/0.jpg",
        "n01440764/1.jpg",
        "n01440764/2.jpg",
        "n02102040/0.jpg",
    ]
    grey = torch.tensor([20.0 * c + 5 * i for c in range(10) for i in range(3)]) / 255
    np.testing.assert_allclose(found.images.mean((1, 2, 3)), grey, atol=1.5 / 255)


def test_thousand_word_net_ids_are_counted_in_sorted_order(tmp_path):
    ids = imagenet_ids()
    assert ids == sorted(set(ids)) and len(ids) == 1000
    for wnid in ids:
        (tmp_path / wnid).mkdir()
    for index in (999, 3, 701, 218):
        photograph(tmp_path / ids[index] / "ILSVRC2012_val_00000001.JPEG", 100)
    assert datasets.image_folder(tmp_path, size=4).labels.tolist() == [3, 218, 701, 999]


def test_thousand_other_word_net_ids_are_refused(tmp_path):
    ids = imagenet_ids()
    for wnid in [ids[0], *ids[2:], "n15075141"]:  # all but the first are one place too early
        photograph(tmp_path / wnid / "0.png", 100)
    with pytest.raises(ValueError, match="990 of 1000 sub-folders"):
        datasets.image_folder(tmp_path)


def test_indices_and_names_may_name_folders(tmp_path):
    for folder in ("7", "91", "207", "golden retriever", "zucchini"):
        photograph(tmp_path / folder / "0.png", 100)
    found = datasets.image_folder(tmp_path, size=4)
    assert dict(zip(found.names, found.labels.tolist(), strict=True)) == {
        "7/0.png": 7,
        "91/0.png": 91,
        "207/0.png": 207,
        "golden retriever/0.png": 207,
        "zucchini/0.png": 939,
    }


def test_thousand_indices_are_numbers_not_places(tmp_path):
    for index in range(1000):
        (tmp_path / str(index)).mkdir()
    photograph(tmp_path / "10" / "0.png", 100)  # third in sorted order
    assert datasets.image_folder(tmp_path, size=4).labels.tolist() == [10]


def test_crop_is_that_of_the_samples(tmp_path, monkeypatch):
    files = [datasets.assets.path(f"imagenet_{name}.jpg") for name in ("00_243", "10_541")]
    for file in files:
        folder = tmp_path / file.stem.rsplit("_", 1)[1]
        folder.mkdir()
        (folder / file.name).write_bytes(file.read_bytes())
    (tmp_path / "243" / "notes.txt").write_text("not an image")
    (tmp_path / ".ipynb_checkpoints").mkdir()
    monkeypatch.setattr(datasets.assets, "names", lambda package: [f.name for f in files])
    samples, found = datasets.imagenet_samples(64), datasets.image_folder(tmp_path, size=64)
    assert torch.equal(found.images, samples.images) and found.images.std() > 0.1
    assert torch.equal(found.labels, samples.labels)
    assert found.class_names == samples.class_names


def test_grey_image_gets_three_channels(tmp_path):
    (tmp_path / "0").mkdir()
    Image.new("L", (5, 5), 51).save(tmp_path / "0" / "0.png")
    images = datasets.image_folder(tmp_path, size=5).images
    np.testing.assert_allclose(images, torch.full((1, 3, 5, 5), 0.2), atol=1e-6)


def test_subset_is_drawn_once_per_seed_and_alone_read(imagenette, monkeypatch):
    every = datasets.image_folder(imagenette, size=4)
    opened = []
    monkeypatch.setattr(
        datasets.Image, "open", lambda file, open=Image.open: opened.append(file) or open(file)
    )
    part = datasets.image_folder(imagenette, n=8, size=4, seed=1)
    assert len(opened) == 8
    again = datasets.image_folder(imagenette, n=8, size=4, seed=1)
    assert part.names == again.names == sorted(set(part.names)) and len(part.names) == 8
    assert datasets.image_folder(imagenette, n=8, size=4, seed=2).names != part.names
    rows = [every.names.index(name) for name in part.names]
    assert rows != list(range(8))
    assert torch.equal(part.images, every.images[rows])
    assert torch.equal(part.labels, every.labels[rows])
    assert datasets.image_folder(imagenette, n=30, size=4).names == every.names


@pytest.mark.parametrize("n", [0, 31])
def test_size_of_the_subset_is_checked(imagenette, n):
    with pytest.raises(ValueError, match=rf"n is {n}, must be within 1\.\.30, the images in"):
        datasets.image_folder(imagenette, n=n)


def test_size_is_checked(imagenette):
    with pytest.raises(ValueError, match="size is 0, must be at least 1 pixel"):
        datasets.image_folder(imagenette, size=0)


@pytest.mark.parametrize("folder", ["n02099601", "1000", "-1", "Golden Retriever", "val"])
def test_unknown_class_is_named_with_what_is_allowed(imagenette, folder):
    photograph(imagenette / folder / "0.png", 100)
    with pytest.raises(ValueError) as caught:
        datasets.image_folder(imagenette)
    message = str(caught.value)
    assert f"1 of 11 sub-folders of {imagenette}" in message and repr(folder) in message
    assert "1000 WordNet ids" in message and "0..999" in message


def test_folder_without_classes_or_images_is_refused(tmp_path):
    photograph(tmp_path / "0.png", 100)
    for root in (tmp_path, str(tmp_path / "absent"), tmp_path / "0.png"):
        with pytest.raises(ValueError) as caught:
            datasets.image_folder(root)
        assert f"{root} must be a folder with one sub-folder of images" in str(caught.value)
    (tmp_path / "207").mkdir()
    with pytest.raises(ValueError) as caught:
        datasets.image_folder(tmp_path)
    assert f"{tmp_path} holds no images (.jpg" in str(caught.value)


def test_damaged_file_is_named(tmp_path):
    (tmp_path / "5").mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "5" / "cut.jpg")
    whole = (tmp_path / "5" / "cut.jpg").read_bytes()
    (tmp_path / "5" / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"cut\.jpg cannot be read as an image: .*truncated"):
        datasets.image_folder(tmp_path)
