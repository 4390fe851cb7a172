"""Notebook 05's tests on constructed maps, and its images with models known by heart."""

import numpy as np
import oracles
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from scipy.stats import spearmanr
from torch import nn

from xaiutils import fidelity, sanity
from xaiutils.fidelity_curves import Curves
from xaiutils.perturb import Components
from xaiutils.studies.ganmex import cases as ganmex_cases
from xaiutils.studies.ganmex.cases import Case, Exact
from xaiutils.studies.ganmex.models import Run
from xaiutils.studies.synthesis import cases, tests
from xaiutils.studies.synthesis.explainers import Explained
from xaiutils.studies.synthesis.matrix import estimate
from xaiutils.studies.synthesis.planted import Planted

SIDE = 12
ROWS, COLUMNS = np.indices((SIDE, SIDE))
# Cells of unequal size.
LABELS = np.select([ROWS < 3, COLUMNS < 4], [0, 1], 2 + (ROWS > 8))
CELLS = Components(LABELS)
D = CELLS.d


def score(test, name):
    """Score of an explainer: its values over its weights."""
    column = test.explainers.index(name)
    kept = ~np.isnan(test.values[:, column])
    return test.values[kept, column].sum() / test.weights[kept, column].sum()


def painted(values):
    """Maps (n, H, W) whose sums over cells are `values` (n, d), all in one pixel of a cell."""
    maps = np.zeros((len(values), SIDE, SIDE))
    for one, row in zip(maps, values, strict=True):
        for j, value in enumerate(row):
            one[tuple(np.argwhere(j == LABELS)[0])] = value
    return maps


# Planted cells


def test_planted_cells():
    rng = np.random.default_rng(0)
    n, d, k = 6, 9, 3
    cells = np.zeros((n, d), bool)
    for row in cells:
        row[rng.choice(d, k, replace=False)] = True
    noise = rng.random((n, d))
    two = cells.copy()
    for row in two:  # one of three is missed
        row[np.flatnonzero(row)[0]] = False
    scores = {
        "perfect": cells + 0.5 * noise,
        "inverted": ~cells + 0.5 * noise,
        "constant": np.full((n, d), 7.0),
        "two": 2 * two - 2 * (cells & ~two) + noise,
    }
    test = tests.planted("scenes", scores, cells, units=np.arange(n) // 2)
    assert (test.name, test.data, test.chance) == ("planted cells", "scenes", k / d)
    assert test.explainers == tuple(scores) and test.larger_is_better
    assert_array_equal(test.units, np.arange(n) // 2)
    for name, wanted in {"perfect": 1, "inverted": 0, "constant": k / d, "two": 2 / 3}.items():
        assert_allclose(test.values[:, test.index(name)], wanted)
    # 0 and 1 are as good as bool.
    same = tests.planted("scenes", scores, cells.astype(int))
    assert_array_equal(same.values, test.values)
    assert same.units is None


# LIME's limit


class Smooth(nn.Module):
    """A small network; in float64, so that nothing is exported."""

    def __init__(self, layers=1):
        super().__init__()
        rng = np.random.default_rng(3)
        self.see = nn.Conv2d(3, 4, 4, stride=4).double()
        self.mix = nn.ModuleList(nn.Linear(36, 36).double() for _ in range(layers - 1))
        self.say = nn.Linear(36, 3).double()
        with torch.no_grad():
            for weight in self.parameters():
                weight.copy_(torch.from_numpy(rng.normal(0, 0.3, weight.shape)))

    def forward(self, x):
        hidden = torch.tanh(self.see(2 * x)).flatten(1)
        for layer in self.mix:
            hidden = torch.tanh(layer(hidden))
        return self.say(hidden)


def test_limits_by_brute_force_over_all_masks():
    model, x = Smooth().eval(), np.random.default_rng(4).random((3, 3, SIDE, SIDE))
    target = np.array([2, 0, 1])
    found = tests.limits(model, x, target, CELLS)
    assert found.shape == (3, D)
    for i in range(3):
        means = x[i].copy()
        for j in range(D):
            for channel in means:
                channel[j == LABELS] = channel[j == LABELS].mean()

        def probability(image, i=i):
            with torch.no_grad():
                return float(model(torch.from_numpy(image)[None]).softmax(1)[0, target[i]])

        table = oracles.table_of_images(probability, x[i], means, LABELS)
        wanted = oracles.limit_by_lstsq(table, 0.25)[1:]
        assert np.abs(wanted).max() > 1e-3
        assert_allclose(found[i], wanted, atol=1e-9)


def test_closeness_is_the_cosine_of_cell_sums():
    rng = np.random.default_rng(5)
    exact = rng.normal(size=(4, D))
    other = rng.normal(size=(4, D))
    maps = {
        "itself": painted(3 * exact),
        "negative": painted(-0.1 * exact),
        "density": np.stack(
            [CELLS.spread(row / CELLS.sums(np.ones_like(LABELS))) for row in exact]
        ),
        "other": painted(other),
        "zero": np.zeros((4, SIDE, SIDE)),
    }
    test = tests.closeness("scenes", maps, exact, CELLS)
    assert (test.name, test.larger_is_better) == ("LIME's limit", True)
    assert_allclose(test.values[:, :3], np.array([[1.0, -1.0, 1.0]] * 4))
    units = [v / np.linalg.norm(v, axis=1, keepdims=True) for v in (other, exact)]
    distance = np.linalg.norm(units[0] - units[1], axis=1)
    assert_allclose(np.sqrt(2 - 2 * test.values[:, 3]), distance)
    assert np.isnan(test.values[:, 4]).all()
    # A map at right angles.
    first, second = np.eye(D)[[0]], np.eye(D)[[1]]
    assert tests.closeness("a", {"m": painted(first)}, second, CELLS).values[0, 0] == 0


# Run to run


def test_repeatability_is_the_overlap_of_the_best_cells():
    first = np.array([[4.0, 3, 2, 1]] * 3)
    second = np.array([[3.0, 4, 1, 2], [4, 1, 3, 2], [1, 2, 3, 4]])
    maps = {"fixed": painted(first), "noisy": painted(first)}
    test = tests.repeatability("scenes", maps, {"noisy": painted(second)}, CELLS, 2)
    assert (test.name, test.explainers) == ("run to run", ("fixed", "noisy"))
    assert test.larger_is_better
    assert_allclose(test.values[:, 0], 1)
    assert_allclose(test.values[:, 1], [1, 1 / 3, 0])  # both, one of three, none
    three = tests.repeatability("scenes", maps, {"noisy": painted(second)}, CELLS, 3)
    assert_allclose(three.values[:, 1], [1 / 2, 1 / 2, 1 / 2])
    same = tests.repeatability("scenes", maps, {"noisy": maps["noisy"]}, CELLS, 1)
    assert_allclose(same.values, 1)


def test_best_cells():
    scores = np.array([[1.0, 3, 2, -5], [2, 2, 2, 2], [0, -1, 1, 1], [-4, -3, -2, -1]])
    for k, wanted in {
        1: [[1], [0], [2], [3]],
        2: [[1, 2], [0, 1], [2, 3], [2, 3]],
        3: [[0, 1, 2], [0, 1, 2], [0, 2, 3], [1, 2, 3]],
        4: [[0, 1, 2, 3]] * 4,
    }.items():
        found = tests.best(scores, k)
        assert found.dtype == bool and found.shape == scores.shape
        assert [np.flatnonzero(row).tolist() for row in found] == wanted


# Fidelity


def random_curves(n=14, steps=6):
    """Curves of three maps of the same images: common ends, random between them."""
    rng = np.random.default_rng(6)
    ends = rng.random((n, 2)) < [0.9, 0.2]
    fractions = np.array([0, 0.1, 0.3, 0.5, 0.6, 0.9, 1])
    predicted = rng.integers(0, 3, n)
    made = {}
    for name, share in {"a": 0.3, "b": 0.5, "random": 0.5}.items():
        correct = rng.random((n, 2, steps + 1)) < np.array([share, 1 - share])[:, None]
        correct[..., [0, -1]] = ends[:, None]
        p = rng.random((4, n, 2, steps + 1), np.float32)
        made[name] = Curves(fractions, ("mif", "lif"), correct, *p, predicted)
    return made


def test_fidelity_is_that_of_the_summary():
    curves, n = random_curves(), 14
    units = np.arange(n) // 3
    gap, artifact = tests.fidelity("scenes", curves, units=units)
    table = fidelity.summary(curves, draws=2).set_index(["method", "quantity"])["value"]
    assert (gap.name, gap.chance, gap.larger_is_better) == ("fidelity F", 0.0, True)
    assert (artifact.name, artifact.larger_is_better) == ("artifact share", False)
    for test in (gap, artifact):
        assert test.explainers == tuple(curves)
        assert_array_equal(test.units, units)
    for name in curves:
        assert table[name, "F"] != 0 and table[name, "P"] != 0
        assert gap.values[:, gap.index(name)].mean() == pytest.approx(table[name, "F"])
        assert score(artifact, name) == pytest.approx(table[name, "P/D"])
        assert estimate(artifact, name, draws=5).value == pytest.approx(table[name, "P/D"])
    # Image by image, by trapezoids.
    one = curves["a"]
    for i in range(n):
        area = [np.trapezoid(one.correct[i, o].astype(float), one.fractions) for o in (0, 1)]
        assert gap.values[i, 0] == pytest.approx(area[1] - area[0])


# Why this class and not that one


class Difference(nn.Module):
    """Class 1 against class 0: how much of where the truth differs shows it, minus a half."""

    def __init__(self, x, truth, *, bias=0.5):
        super().__init__()
        self.x, self.truth = (nn.Parameter(torch.from_numpy(v)) for v in (x, truth))
        self.bias = bias

    def forward(self, x):
        change = (self.truth - self.x)[None]
        shown = ((x.double()[:, None] - self.x) * change).sum((2, 3, 4))
        share = (shown / change.square().sum((2, 3, 4))).amax(1)
        return torch.stack([-100 * (share - self.bias), 100 * (share - self.bias)], 1)


@pytest.fixture(scope="module")
def counterfactual():
    """Two images: in one the digit's box of 20 pixels changes, in the other all but its box."""
    x = np.zeros((2, 3, SIDE, SIDE))
    box = np.zeros((2, SIDE, SIDE), bool)
    box[0, 3:7, 2:7] = True
    box[1, 2:10, 1:9] = True
    region = np.stack([box[0], ~box[1]])
    # Images of two ranges of grey, so that the model can tell them apart.
    x[1] = 1.0
    truth = np.where(region[:, None], np.array([1.0, 0.0])[:, None, None, None], x)
    return x, truth, box, region


def case_of(model, x):
    source = np.zeros(2, int)
    return Case(None, None, model, {}, model, x, source, source + 1, np.arange(2))


def test_right_region_and_mask_that_flips(counterfactual):
    x, truth, box, region = counterfactual
    case = case_of(Difference(x[:1], truth[:1]).eval(), x[:1])
    maps = {
        "region": region[:1] * 0.3,
        "negative": region[:1] * -2.0,
        "complement": ~region[:1] * 1.0,
        "uniform": np.ones((1, SIDE, SIDE)),
        "both": np.where(region[:1], 3.0, 1.0),
    }
    exact = Exact(truth[:1], truth[:1] != x[:1], box[:1], np.array([True]))
    case = case._replace(target=np.array([1]), source=np.array([0]), rows=np.arange(1))
    right, flips = tests.one_vs_one_tests("scenes", case, exact, maps)
    assert (right.name, right.chance, right.larger_is_better) == ("right region", 0.5, True)
    assert (flips.name, flips.larger_is_better) == ("mask that flips", False)
    share = 20 / SIDE**2
    wanted = [1, 1, 0, share, 3 * share / (3 * share + 1 - share)]
    assert_allclose(right.values, [wanted])
    # Masks are the region, then all; or all but the region, then all.
    assert_allclose(flips.values, [[share, share, 1, 1, share]])


def test_region_is_outside_of_the_box_where_the_scene_differs(counterfactual):
    x, truth, box, region = counterfactual
    model = Difference(x[:1], truth[:1]).eval()
    exact = Exact(truth, truth != x, box, np.array([True, False]))
    maps = {"region": region * 1.0, "box": box * 1.0, "uniform": np.ones(box.shape)}
    maps["zero"] = np.zeros(box.shape)
    right, _ = tests.one_vs_one_tests("scenes", case_of(model, x), exact, maps)
    assert_allclose(right.values[:, 0], 1)
    assert_allclose(right.values[:, 1], [1, 0])
    assert_allclose(right.values[:, 2], [20 / SIDE**2, 1 - 64 / SIDE**2])
    assert np.isnan(right.values[:, 3]).all()


def test_mask_is_the_whole_image_if_nothing_flips(counterfactual):
    x, truth, box, region = counterfactual
    exact = Exact(truth, truth != x, box, np.array([True, False]))
    never = case_of(Difference(x, truth, bias=2.0).eval(), x)
    _, flips = tests.one_vs_one_tests("scenes", never, exact, {"region": region * 1.0})
    assert_allclose(flips.values, 1)


# Random layers


@pytest.fixture(scope="module")
def deep():
    return Smooth(layers=4).eval()


X = np.random.default_rng(8).random((3, 3, SIDE, SIDE))


def input_gradient(model):
    x = torch.from_numpy(X).requires_grad_()
    (slope,) = torch.autograd.grad(model(x)[:, 0].sum(), x)
    return slope.sum(1).numpy()


def test_cascade_compares_with_the_untouched_model(deep):
    asked = []
    fixed = np.random.default_rng(9).random((3, SIDE, SIDE))
    before = [weight.clone() for weight in deep.parameters()]

    def explain(model):
        asked.append(model)
        noise = np.random.default_rng(len(asked)).random(fixed.shape)
        # After the first, turned upside down in rank.
        turned = fixed if len(asked) == 1 else -(fixed**3)
        flat = fixed if len(asked) == 1 else np.ones_like(fixed)
        maps = {"random": noise, "fixed": fixed, "gradient": input_gradient(model)}
        maps |= {"turned": turned, "flat": flat}
        return Explained(maps, np.zeros(3, int), {})

    test = tests.cascade("scenes", deep, explain, seed=7)
    assert (test.name, test.data) == ("random layers", "scenes")
    assert not test.larger_is_better
    assert test.explainers == ("fixed", "gradient", "turned", "flat")  # without the random map
    # The untouched model, then one more random layer each time: say, three of mix, see.
    assert len(asked) == 1 + 5
    for old, new in zip(before, deep.parameters(), strict=True):
        assert torch.equal(old, new)
    for stage, model in enumerate(asked):
        layers = [model.say, *reversed(model.mix), model.see]
        originals = [deep.say, *reversed(deep.mix), deep.see]
        same = [torch.equal(a.weight, b.weight) for a, b in zip(layers, originals, strict=True)]
        assert same == [False] * stage + [True] * (5 - stage)
    assert_allclose(test.values[:, 0], 1)
    assert_allclose(test.values[:, 2], -1)
    assert np.isnan(test.values[:, 3]).all()
    original = input_gradient(deep)
    for i in range(3):
        stages = [
            spearmanr(original[i].ravel(), input_gradient(copy)[i].ravel()).statistic
            for name, copy in sanity.cascade(deep, seed=7)
            if name != "none"
        ]
        assert test.values[i, 1] == pytest.approx(np.mean(stages), abs=1e-9)
        assert abs(test.values[i, 1]) < 0.9


# Images


class Painter(nn.Module):
    """A generator that paints images of one brightness per class, in [-1, 1]."""

    classes = 4

    def __init__(self):
        super().__init__()
        self.shade = nn.Parameter(torch.tensor([-1.0, -0.5, 0.0, 1.0]))

    def forward(self, x, wanted):
        return self.shade[wanted][:, None, None, None].expand_as(x)


def test_baselines_of_scenes(monkeypatch):
    rng = np.random.default_rng(10)
    train = torch.from_numpy(rng.random((8, 3, 8, 8), np.float32) * 0.5)
    labels = torch.tensor([0, 1, 2, 3] * 2)
    x, classes = rng.random((3, 3, 8, 8)).astype(np.float32), np.array([3, 1, 2])

    class Problem:
        name, train_images, train_labels = "scenes", train, labels

    asked, run = [], Run("scenes", 8)
    monkeypatch.setattr(ganmex_cases, "_generator", lambda run: asked.append(run) or Painter())
    # Neither the case's own images nor its targets are those asked for.
    case = Case(run, Problem, Smooth(), {}, None, x[:1], classes[:1], classes[:1], None)
    found = cases.scene_baselines(case, x, classes)
    assert list(found) == ["zero", "mean", "nearest sample", "GANMEX"]
    assert asked == [run._replace(variant="constrained")]
    assert all(b.shape == x.shape for b in found.values())
    assert_array_equal(found["zero"], 0)
    mean = train.numpy().mean((0, 2, 3))
    assert_allclose(found["mean"], np.broadcast_to(mean[:, None, None], x.shape), rtol=1e-5)
    for i, c in enumerate(classes):
        rivals = train.numpy()[labels.numpy() == c]
        gaps = np.abs(rivals - x[i]).sum((1, 2, 3))
        assert_allclose(found["nearest sample"][i], rivals[gaps.argmin()], rtol=1e-6)
        assert_allclose(found["GANMEX"][i], [0, 0.25, 0.5, 1][c])


def test_photographs_that_the_model_gets_right(monkeypatch):
    class Mean(nn.Module):
        """Class of an image: its brightness in quarters."""

        def __init__(self):
            super().__init__()
            self.centres = nn.Parameter(torch.tensor([0.0, 0.25, 0.5, 0.75]))

        def forward(self, x):
            return -(x.mean((1, 2, 3))[:, None] - self.centres).abs()

    class Samples:
        images = torch.tensor([0.0, 0.25, 0.5, 0.75, 0.25])[:, None, None, None].expand(-1, 3, 4, 4)
        labels, class_names = torch.tensor([0, 3, 2, 3, 1]), ["a", "b", "c", "d"]

    names = []
    monkeypatch.setattr(cases.imagenet, "load", lambda name: names.append(name) or Mean().eval())
    monkeypatch.setattr(cases.datasets, "imagenet_samples", lambda: Samples)
    found = cases.photographs(3, device="cpu")
    assert names == ["efficientnet_lite0"] and found.names == ("a", "b", "c", "d")
    assert found.labels.tolist() == [0, 2, 3]  # the second is taken for another
    assert_array_equal(found.x[:, 0, 0, 0], [0, 0.5, 0.75])
    assert len(cases.photographs(99, device="cpu").x) == 4


def test_baselines_of_photographs():
    x = np.random.default_rng(11).random((2, 3, 5, 5)).astype(np.float32)
    found = cases.photograph_baselines(x)
    assert list(found) == ["zero", "mean"]
    assert_array_equal(found["zero"], np.zeros_like(x))
    wanted = np.array([0.485, 0.456, 0.406])[:, None, None]
    assert_allclose(found["mean"], np.broadcast_to(wanted, x.shape), rtol=1e-6)


def test_cells_of_scenes_and_photographs():
    assert cases.SCENE_CELLS.d == 12 and cases.SCENE_CELLS.labels.shape == (32, 32)
    assert cases.PHOTOGRAPH_CELLS.d == 49
    corners = cases.PHOTOGRAPH_CELLS.labels.reshape(7, 32, 7, 32)
    assert_array_equal(corners, np.broadcast_to(corners[:, :1, :, :1], corners.shape))


def planted_images(n, seed):
    rng = np.random.default_rng(seed)
    cells = np.zeros((n, D), bool)
    cells[:, [0, 2]] = True
    images = rng.random((2, n, 3, SIDE, SIDE))
    return Planted(*images, np.arange(n) % 3, (np.arange(n) + 1) % 3, cells, n)


def test_pictures_of_the_first_images():
    attacked = {"scenes": planted_images(1, 0), "photographs": planted_images(5, 1)}
    rng = np.random.default_rng(12)
    explained = {
        data: Explained({name: rng.random((len(a.cells), SIDE, SIDE)) for name in "pq"}, None, {})
        for data, a in attacked.items()
    }
    grids = {"scenes": CELLS, "photographs": Components(COLUMNS // 3)}
    classes = {"scenes": "abc", "photographs": ["x", "y", "z"]}
    rows, titles, cells = cases.pictures(attacked, explained, grids, ["q"], classes, (2, 3))
    assert titles == ["a → b", "x → y", "y → z", "z → x"]  # of scenes there is only one
    assert cells == [grids["scenes"], *[grids["photographs"]] * 3]
    assert len(rows) == 4
    for row, (data, i) in zip(
        rows, [("scenes", 0), *(("photographs", i) for i in range(3))], strict=True
    ):
        one = attacked[data]
        assert set(row) == {"clean", "attacked", "planted", "chosen"}
        assert_array_equal(row["clean"], one.clean[i])
        assert_array_equal(row["attacked"], one.images[i])
        assert_array_equal(row["planted"], one.cells[i])
        assert set(row["chosen"]) == {"q"}
        m = explained[data].maps["q"][i]
        sums = [m[j == grids[data].labels].sum() for j in range(4)]
        assert np.flatnonzero(row["chosen"]["q"]).tolist() == sorted(np.argsort(sums)[-2:])
