"""Real images: crops, labels, the conversion of MNIST and what its pickle may not do."""

import gzip
import os
import pickle
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from xaiutils.data import assets, datasets, mnist

# Digit counts published for the two parts of MNIST (LeCun et al. 1998).
TRAIN_COUNTS = [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
TEST_COUNTS = [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]


@pytest.fixture(scope="module")
def samples():
    return datasets.imagenet_samples()


@pytest.fixture(scope="module")
def digits():
    return datasets.mnist()


def test_imagenet_labels_name_what_is_shown(samples):
    assert samples.labels.dtype == torch.int64
    assert samples.names[0] == "imagenet_00_243" and samples.names[19] == "imagenet_19_305"
    shown = [samples.class_names[label] for label in samples.labels]
    assert shown[:4] == ["bull mastiff", "folding chair", "beaker", "buckeye"]
    assert shown[16:] == ["dalmatian", "bald eagle", "leafhopper", "dung beetle"]
    assert len(samples.class_names) == 1000 and len(samples.names) == 20


@pytest.mark.parametrize(("size", "side"), [(224, 256), (240, 274)])
def test_imagenet_crop_is_the_centre_of_the_resized_photograph(size, side):
    images = datasets.imagenet_samples(size).images
    assert images.dtype == torch.float32 and images.shape == (20, 3, size, size)
    edge = (side - size) // 2
    with Image.open(assets.path("imagenet_00_243.jpg")) as photograph:  # 512 x 512
        scaled = photograph.resize((side, side), Image.Resampling.BICUBIC)
    expected = np.asarray(scaled.crop((edge, edge, edge + size, edge + size))) / 255
    np.testing.assert_allclose(images[0].permute(1, 2, 0), expected, atol=1e-6)


def test_imagenet_shorter_side_decides_on_an_oblong_photograph(samples):
    with Image.open(assets.path("imagenet_10_541.jpg")) as photograph:
        assert photograph.size == (1024, 683)
        scaled = photograph.resize((256 * 1024 // 683, 256), Image.Resampling.BICUBIC)
    left = round((scaled.width - 224) / 2)
    expected = np.asarray(scaled.crop((left, 16, left + 224, 240))) / 255
    np.testing.assert_allclose(samples.images[10].permute(1, 2, 0), expected, atol=1e-6)


def test_imagenet_size_is_checked():
    with pytest.raises(ValueError, match="size is 0, must be at least 1"):
        datasets.imagenet_samples(0)


def test_mnist_has_the_published_counts(digits):
    assert digits.train_images.shape == (60000, 1, 28, 28)
    assert digits.test_images.shape == (10000, 1, 28, 28)
    assert digits.train_labels.dtype == digits.test_labels.dtype == torch.int64
    assert digits.train_labels.bincount().tolist() == TRAIN_COUNTS
    assert digits.test_labels.bincount().tolist() == TEST_COUNTS
    assert digits.train_labels[:5].tolist() == [5, 0, 4, 1, 9]
    assert digits.test_labels[:5].tolist() == [7, 2, 1, 0, 4]


def test_mnist_pixels_have_the_known_mean_and_deviation(digits):
    # 0.1307 and 0.3081 are the constants everyone normalises MNIST with, for ink in [0, 1].
    assert digits.train_images.dtype == torch.float32
    assert digits.train_images.min() == 0 and digits.train_images.max() == 1
    assert digits.train_images.mean().item() == pytest.approx(0.1307, abs=5e-5)
    assert digits.train_images.std().item() == pytest.approx(0.3081, abs=5e-5)
    # Digits stand upright: the first test image is a seven, whose bar is its longest run of ink.
    seven = digits.test_images[0, 0] > 0.5
    assert seven.sum(dim=1).argmax() < 10 and seven.sum(dim=1).max() > seven.sum(dim=0).max()


def test_mnist_is_read_from_the_conversion_unless_damaged(tmp_path, monkeypatch, digits):
    source = assets.path("mnist.pkl.gz")
    folder = tmp_path / "mnist"
    folder.mkdir()
    shutil.copy(source, folder)
    damaged = source.with_name("mnist.npz").read_bytes().replace(bytes([253, 253]), bytes([0, 0]))
    (folder / "mnist.npz").write_bytes(damaged)
    monkeypatch.setenv("XAIUTILS_CACHE", str(tmp_path))
    assert torch.equal(datasets.mnist().train_images, digits.train_images)
    assert mnist._read_npz(folder / "mnist.npz") is not None
    monkeypatch.setattr(mnist, "_read_pickle", lambda file: pytest.fail("converted twice"))
    assert torch.equal(datasets.mnist().test_images, digits.test_images)


def test_altered_npz_with_valid_checksums_is_not_read(tmp_path, digits):
    arrays = {key: np.zeros(1, np.uint8) for key in mnist.Mnist._fields}
    np.savez(tmp_path / "mnist.npz", **arrays)
    assert mnist._read_npz(tmp_path / "mnist.npz") is None


class Malicious:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


@pytest.mark.parametrize("protocol", [2, 4])
def test_malicious_pickle_is_refused_and_not_executed(tmp_path, monkeypatch, protocol):
    marker = tmp_path / "executed"
    poisoned = tmp_path / "mnist.pkl.gz"
    with gzip.open(poisoned, "wb") as stream:
        pickle.dump([("images", Malicious(marker))], stream, protocol)
    monkeypatch.setattr(assets, "path", lambda name: poisoned)
    with pytest.raises(assets.AssetError, match=r"mnist\.pkl\.gz.*mkdir, which is refused"):
        datasets.mnist()
    assert not marker.exists()
    assert [file.name for file in tmp_path.iterdir()] == ["mnist.pkl.gz"]


def test_pickle_of_other_arrays_is_refused(tmp_path, monkeypatch):
    other = tmp_path / "mnist.pkl.gz"
    part = (np.zeros((2, 784), np.float32), np.zeros(2, np.int64))
    with gzip.open(other, "wb") as stream:
        pickle.dump((part, part, part), stream, protocol=4)
    monkeypatch.setattr(assets, "path", lambda name: other)
    with pytest.raises(assets.AssetError, match="holds other digits than MNIST"):
        datasets.mnist()
    assert not (tmp_path / "mnist.npz").exists()
