"""Planted attacks on a small random network, and the two measures of found cells by brute force."""

import itertools

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from xaiutils import segment
from xaiutils.perturb import Components
from xaiutils.studies.synthesis import planted

GRID = Components(segment.grid((12, 12), 3, 4))
SETTINGS = {"lr": 0.1, "alpha": 1e4, "eps": 1.0, "steps": 30}
N, CLASSES = 8, 4


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(planted.attack.assets, "cache_folder", lambda: tmp_path)


class Net(torch.nn.Module):
    """Small and random; its answers depend on the input alone and differ between images."""

    def __init__(self):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.body = torch.nn.Sequential(
                torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.Conv2d(8, CLASSES, 10)
            )

    def forward(self, x):
        return 30 * self.body(x - 0.5)[:, :, 0, 0]


@pytest.fixture(scope="module")
def net():
    return Net().eval().requires_grad_(False)


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).random((N, 3, 12, 12)).astype(np.float32)


@pytest.fixture(scope="module")
def source(net, images):
    return net(torch.from_numpy(images)).argmax(1).numpy()


def plant(net, images, source, *, k=3, seed=0, **options):
    options = SETTINGS | options
    return planted.plant(net, images, source, GRID, k=k, seed=seed, name="test", **options)


@pytest.fixture
def made(net, images, source):
    return plant(net, images, source)


def test_planted_images_change_in_the_open_cells_only_and_turn(net, images, made):
    assert made.tried == N and len(made.images) > N / 2
    assert made.images.dtype == made.clean.dtype == np.float32
    assert made.images.min() >= 0 and made.images.max() <= 1
    assert (made.cells.sum(axis=1) == 3).all() and made.cells.shape[1] == 12
    for clean, image, target, cells in zip(
        made.clean, made.images, made.target, made.cells, strict=True
    ):
        rows, cols = np.arange(12) * 3 // 12, np.arange(12) * 4 // 12
        opened = cells.reshape(3, 4)[rows][:, cols]
        np.testing.assert_array_equal(image[:, ~opened], clean[:, ~opened])
        changed = (image != clean).any(0)
        assert all((changed & (GRID.labels == j)).any() for j in np.flatnonzero(cells))
        np.testing.assert_array_equal(np.where(opened, clean, image), clean)
        assert any((clean == x).all() for x in images)
        logits = net(torch.from_numpy(image[None]))[0].numpy()
        lead = logits[target] - np.delete(logits, target).max()
        assert 1 / (1 + np.exp(-lead)) > planted.THRESHOLD - 1e-4
    answers = [net(torch.from_numpy(x)).argmax(1).numpy() for x in (made.clean, made.images)]
    np.testing.assert_array_equal(answers, [made.source, made.target])
    assert (made.source != made.target).all()


def test_cells_and_targets_differ_between_images_and_seeds(net, images, source, made):
    assert len({tuple(row) for row in made.cells}) > 1
    shift = (made.target - made.source) % CLASSES
    assert len(set(shift)) > 1
    again = plant(net, images, source)
    for one, other in zip(made, again, strict=True):
        np.testing.assert_array_equal(one, other)
    assert not np.array_equal(plant(net, images, source, seed=1).cells[:3], made.cells[:3])


def test_targets_can_be_given(net, images, source, made):
    wanted = (source + 1) % CLASSES
    given = plant(net, images, source, target=wanted)
    np.testing.assert_array_equal(given.target, (given.source + 1) % CLASSES)
    same = [(a == b).all() for a, b in itertools.product(made.cells, given.cells)]
    assert any(same)  # the draw of the cells does not depend on who chose the target


def test_images_that_do_not_turn_are_left_out_and_counted(net, images, source, made):
    few = plant(net, images, source, steps=2)
    assert 0 < len(few.images) < len(made.images) and few.tried == N
    assert all(len(values) == len(few.images) for values in few[:-1])
    with pytest.raises(ValueError, match="none of the 8 images turned"):
        plant(net, images, source, eps=1e-6)


def test_the_margin_is_of_the_clamped_image_and_its_gradient_passes():
    def linear(x):
        return torch.stack([x.sum((1, 2, 3)), 2 * x[:, 0, 0, 0], x[:, 0, 0, 0] - 9], dim=1)

    x = torch.tensor([[[[1.5, -0.25]]]], requires_grad=True)
    lead = planted.margin(linear, x, 1)
    assert lead.shape == (1, 1) and lead.item() == 2 * 1 - (1 + 0)
    lead.sum().backward()
    assert x.grad.ravel().tolist() == [1, -1]
    assert planted.margin(linear, x, 0).item() == 1 - 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k": 0}, r"k must be within 1\.\.11 of the components, got 0"),
        ({"k": 12}, r"k must be within 1\.\.11"),
        ({"target": np.full(N, CLASSES)}, r"target must hold classes 0\.\.3, got 4"),
        ({"target": np.zeros(N - 1, int)}, "target must hold 8 classes"),
    ],
)
def test_what_does_not_fit_is_named(net, images, source, change, message):
    with pytest.raises(ValueError, match=message):
        plant(net, images, source, **change)


def test_wrong_sources_targets_and_images_are_named(net, images, source):
    wrong = source.copy()
    wrong[5] = (wrong[5] + 1) % CLASSES
    with pytest.raises(ValueError, match=f"of image 5 it says {source[5]}, not {wrong[5]}"):
        plant(net, images, wrong)
    with pytest.raises(ValueError, match="target must differ from source"):
        plant(net, images, source, target=source)
    with pytest.raises(ValueError, match=r"x must be images \(n, C, H, W\) in \[0, 1\]"):
        plant(net, images + 1, source)
    with pytest.raises(ValueError, match=r"x must be images"):
        plant(net, images[0], source)


# Found cells


def by_hand(scores, cells):
    """Share of open cells among the k best, ties broken by each order of the cells in turn."""
    k, d = cells.sum(), len(cells)
    hits = []
    for order in itertools.permutations(range(d)):
        best = sorted(order, key=lambda j: -scores[j])[:k]  # stable
        hits.append(cells[best].mean())
    return np.mean(hits)


def test_found_is_the_mean_over_orders_of_ties_and_the_area_under_the_curve():
    rng = np.random.default_rng(3)
    scores = rng.integers(0, 4, (12, 6)).astype(float)
    cells = np.zeros((12, 6), bool)
    for row, k in zip(cells, np.tile([1, 2, 3, 5], 3), strict=True):
        row[rng.choice(6, k, replace=False)] = True
    result = planted.found(scores, cells)
    assert list(result) == ["top k", "auc"]
    expected = [by_hand(s, c) for s, c in zip(scores, cells, strict=True)]
    np.testing.assert_allclose(result["top k"], expected)
    areas = [roc_auc_score(c, s) for s, c in zip(scores, cells, strict=True)]
    np.testing.assert_allclose(result["auc"], areas)


def test_found_by_perfect_reversed_and_constant_scores():
    cells = np.array([[1, 0, 0, 1, 0], [0, 0, 1, 1, 1]], bool)
    perfect = planted.found(cells.astype(float), cells)
    assert [perfect[name].tolist() for name in ("top k", "auc")] == [[1, 1], [1, 1]]
    worst = planted.found(-cells.astype(float), cells)
    np.testing.assert_allclose(worst["top k"], [0, 1 / 3])  # three of five places, two others
    assert worst["auc"].tolist() == [0, 0]
    constant = planted.found(np.full(cells.shape, -2.0), cells)
    assert constant["top k"].tolist() == [2 / 5, 3 / 5] and constant["auc"].tolist() == [0.5, 0.5]


def test_found_names_what_does_not_fit():
    cells = np.array([[True, False, False]])
    with pytest.raises(ValueError, match="one shape"):
        planted.found(np.zeros((1, 4)), cells)
    with pytest.raises(ValueError, match="one shape"):
        planted.found(np.zeros((1, 3)), cells.astype(int))
    with pytest.raises(ValueError, match="image 0 hold NaN"):
        planted.found(np.array([[0, np.nan, 1]]), cells)
    for full in (True, False):
        with pytest.raises(ValueError, match=r"1\.\.2 open cells"):
            planted.found(np.zeros((1, 3)), np.full((1, 3), full))


def test_maps_by_cell():
    maps = np.random.default_rng(0).random((2, 12, 12))
    sums = maps.reshape(2, 3, 4, 4, 3).sum((2, 4)).reshape(2, 12)
    np.testing.assert_allclose(planted.by_cell(maps, GRID), sums)
