"""Fashion-MNIST from files put in the cache; read as its authors describe them."""

import gzip
import hashlib
import struct

import numpy as np
import pytest
import torch

from xaiutils.classifiers import small
from xaiutils.data import assets, fashion, problems

RNG = np.random.default_rng(0)


def idx(values):
    """An idx file as its authors describe it: two zeros, type 8 (bytes), dimensions, big-endian."""
    head = struct.pack(">HBB", 0, 8, values.ndim)
    return head + struct.pack(f">{values.ndim}I", *values.shape) + values.tobytes()


@pytest.fixture
def made(monkeypatch, tmp_path):
    """Arrays by file, written where they are looked for, with their hashes known."""
    monkeypatch.setenv("XAIUTILS_CACHE", str(tmp_path))
    raw = tmp_path / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    arrays, known = {}, {}
    for name, (_, shape) in fashion.FILES.items():
        few = (20 if "train" in name else 10, *shape[1:])
        high = 256 if "images" in name else 10
        arrays[name] = RNG.integers(high, size=few).astype(np.uint8)
        content = idx(arrays[name])
        (raw / name).write_bytes(gzip.compress(content))
        known[name] = hashlib.sha256(content).hexdigest(), few
    monkeypatch.setattr(fashion, "FILES", known)
    monkeypatch.setattr("torchvision.datasets.FashionMNIST", None)  # not to be asked
    return arrays, raw


def test_images_and_labels_are_those_of_the_files(made):
    train_x, train_y, test_x, test_y = made[0].values()
    found = fashion.fashion_mnist()
    for images, x in ((found.train_images, train_x), (found.test_images, test_x)):
        assert images.dtype == torch.float32 and images.shape == (len(x), 1, 28, 28)
        assert np.array_equal((images[:, 0] * 255).round().numpy(), x)
    for labels, y in ((found.train_labels, train_y), (found.test_labels, test_y)):
        assert labels.dtype == torch.int64 and labels.tolist() == y.tolist()


@pytest.mark.parametrize("name", list(fashion.FILES))
def test_another_file_is_refused(made, name):
    file = made[1] / name
    content = gzip.decompress(file.read_bytes())
    file.write_bytes(gzip.compress(content, 1))  # compressed otherwise it is the same
    fashion.fashion_mnist()
    file.write_bytes(gzip.compress(content[:-1] + bytes([content[-1] ^ 1])))
    with pytest.raises(assets.AssetError, match=f"{name} is not the file of Fashion-MNIST; remove"):
        fashion.fashion_mnist()
    for damaged in (gzip.compress(content)[:-9], b"no gzip"):
        file.write_bytes(damaged)
        with pytest.raises(assets.AssetError, match=f"{name} is damaged .*remove it and fetch"):
            fashion.fashion_mnist()


@pytest.mark.parametrize("error", [OSError("no route"), RuntimeError("Error downloading")])
def test_without_the_internet_it_is_said_where_the_files_go(made, monkeypatch, error):
    def download(root, download):
        raise error

    monkeypatch.setattr("torchvision.datasets.FashionMNIST", download)
    (made[1] / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(assets.AssetError, match=f"{error}.*put train-images.*into .*raw") as caught:
        fashion.fashion_mnist()
    assert "\n" not in str(caught.value)


def test_a_problem_like_digits(made, monkeypatch):
    monkeypatch.setattr(problems, "fashion_mnist", fashion.fashion_mnist)
    data = problems.NAMES["fashion"](16)
    assert data.train_images.shape == (20, 1, 16, 16) and data.classes == fashion.CLASSES
    torch.testing.assert_close(
        data.test_images,
        torch.nn.functional.adaptive_avg_pool2d(fashion.fashion_mnist().test_images, 16),
    )


def test_key_of_its_classifiers_follows_the_files(monkeypatch):
    before = small.recipe("fashion", 28, "strided")
    assert before.build()(torch.zeros(1, 1, 28, 28)).shape == (1, 10)
    digits = small.recipe("digits", 28, "strided").key
    files = fashion.FILES | {"t10k-labels-idx1-ubyte.gz": ("0" * 64, (10000,))}
    monkeypatch.setattr(fashion, "FILES", files)
    assert small.recipe("fashion", 28, "strided").key != before.key
    assert small.recipe("digits", 28, "strided").key == digits
