"""Cases of notebook 04 and the quality of baselines, on small images with models known by heart."""

import numpy as np
import pandas as pd
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from torch import nn

from xaiutils import baselines, ganmex, intervals, runtime
from xaiutils.classifiers import small
from xaiutils.data import known_digits, problems
from xaiutils.studies.ganmex import cases, models, quality
from xaiutils.studies.ganmex.models import Run

COLOURS = ("red", "green", "blue")


class Reader(nn.Module):
    """Logits from the mean of each channel; in float64, so that nothing is exported."""

    def __init__(self, weights):
        super().__init__()
        self.weights = nn.Parameter(torch.as_tensor(weights, dtype=torch.float64))

    def forward(self, x):
        return x.double().mean((2, 3)) @ self.weights.T


class Known(nn.Module):
    """The class of the nearest image among some, by their brightest channel or by all."""

    def __init__(self, images, labels, classes=10, *, grey=False):
        super().__init__()
        self.images, self.grey = nn.Parameter(torch.as_tensor(images).double()), grey
        self.others = torch.as_tensor(labels) != torch.arange(classes)[:, None]

    def forward(self, x):
        x, images = x.double(), self.images
        if self.grey:
            x, images = x.amax(1), images.amax(1)
        distance = torch.cdist(x.flatten(1), images.flatten(1))
        return -distance[:, None].masked_fill(self.others, 1e6).amin(2)


@pytest.fixture(autouse=True)
def nothing_loaded():
    """What other tests loaded is forgotten."""
    cases._generator.cache_clear()
    cases._classifier.cache_clear()
    cases._judge.cache_clear()


def brightest():
    """A perfect judge of colours."""
    return Reader(400 * np.eye(3))


@pytest.fixture(scope="module")
def coloured():
    return known_digits.coloured_digits(n_train=90, n_test=48)


@pytest.fixture(scope="module")
def colours(coloured):
    c = coloured
    return problems.Problem(
        "colours", c.train_images, c.train_colours, c.test_images, c.test_colours, COLOURS,
        c.test_digits,
    )  # fmt: skip


@pytest.fixture(scope="module")
def digits(coloured):
    c, names = coloured, tuple("0123456789")
    return problems.Problem(
        "coloured digits", c.train_images, c.train_digits, c.test_images, c.test_digits, names,
        c.test_colours,
    )  # fmt: skip


@pytest.fixture(scope="module")
def scenes():
    train, test = known_digits.scene_digits(size=16, n_train=40, n_test=48)
    names = ("3 on lawn", "3 on pavement", "8 on lawn", "8 on pavement")
    return problems.Problem(
        "scenes", train.images, train.labels, test.images, test.labels, names, test
    )


@pytest.fixture(scope="module")
def one_scene(scenes):
    test = known_digits.Scenes(*(field[scenes.parts.labels % 2 == 0] for field in scenes.parts))
    kept = scenes.train_labels % 2 == 0
    x, y = scenes.train_images[kept], scenes.train_labels[kept] // 2
    return problems.Problem("one scene", x, y, test.images, test.labels // 2, ("3", "8"), test)


def perfect(problem):
    """Knows all test images and all of their counterfactuals."""
    parts, one = problem.parts, problem.name == "one scene"
    makers = (known_digits.other_digit, known_digits.other_scene)
    made = [other(parts) for other in makers[: 1 if one else 2]]
    images = torch.cat([problem.test_images, *(m.images for m in made)])
    labels = torch.cat([parts.labels, *(m.labels for m in made)])
    return Known(images, labels // (1 + one), len(problem.classes))


def case_of(problem, model, *, rows, offset=1, judges=None, twin=None, run=None):
    """`offset` is added to the source class, or for scenes the one factor that differs."""
    rows = np.asarray(rows)
    source = problem.test_labels.numpy()[rows]
    changed = source ^ offset if "scene" in problem.name else source + offset
    target = changed % len(problem.classes)
    run = run or Run(problem.name, problem.test_images.shape[-1])
    judges = {"pooling": model, "residual": model} if judges is None else judges
    images = problem.test_images[rows].numpy()
    twin = model if twin is None else twin
    return cases.Case(run, problem, model, judges, twin, images, source, target, rows)


def swapped(image, a, b):
    """The image with two channels exchanged."""
    order = [0, 1, 2]
    order[a], order[b] = b, a
    return image[order]


# Choosing images


@pytest.fixture
def choosing(monkeypatch):
    """Function that makes a problem the one loaded, with its classifier; returns what is asked."""

    def install(problem, model):
        asked = []
        monkeypatch.setattr(problems, "load", lambda name, size: problem)
        monkeypatch.setattr(models, "classifier", lambda run: asked.append(run) or model)

        def load(name, size, family, seed=0):
            asked.append((name, size, family, seed))
            judge = brightest()
            judge.name = f"{family} {seed}"
            return judge

        monkeypatch.setattr(small, "load", load)
        return asked

    return install


def test_choice_holds_only_images_that_the_classifier_gets_right(colours, choosing):
    labels = colours.test_labels.numpy()
    wrong = labels.copy()
    wrong[::3] = (wrong[::3] + 1) % 3
    run = Run("colours", 28, seed=2)
    asked = choosing(colours, Known(colours.test_images, wrong))
    case = cases.choose(run, 1000, device="cpu")
    assert sorted(case.rows) == np.flatnonzero(wrong == labels).tolist()
    assert_array_equal(case.source, labels[case.rows])
    assert_array_equal(case.images, colours.test_images.numpy()[case.rows])
    assert case.problem is colours and case.run == run
    # Judges are those of seed 0, the twin is of another seed than the classifier.
    assert asked[0] == run and {n: j.name for n, j in case.judges.items()} == {
        "pooling": "pooling 0",
        "residual": "residual 0",
    }
    assert case.twin.name == "strided 0"
    assert {key[:2] for key in asked[1:]} == {("colours", 28)}
    assert cases.choose(Run("colours", 28), 4, device="cpu").twin.name == "strided 1"


def test_choice_is_random_but_for_its_seed(colours, choosing):
    choosing(colours, brightest())
    run = Run("colours", 28)
    first, again, other = (cases.choose(run, 12, seed=s, device="cpu") for s in (0, 0, 1))
    assert len(first.rows) == len(set(first.rows)) == 12
    for field in ("rows", "target"):
        assert_array_equal(getattr(first, field), getattr(again, field))
    assert set(first.rows) != set(other.rows)
    assert first.rows.max() > 11  # not just the first ones
    assert set(first.rows) <= set(cases.choose(run, 30, device="cpu").rows)


@pytest.mark.parametrize("name", ["colours", "digits", "scenes", "one_scene"])
def test_targets_differ_from_sources_and_show_all_other_classes(name, choosing, request):
    problem = request.getfixturevalue(name)
    choosing(problem, Known(problem.test_images, problem.test_labels))
    run = Run(problem.name, problem.test_images.shape[-1])
    found, classes = set(), len(problem.classes)
    for seed in range(30):
        case = cases.choose(run, 40, seed=seed, device="cpu")
        found |= set(zip(case.source.tolist(), case.target.tolist(), strict=True))
    shown = set(problem.test_labels.tolist())
    every = {(a, b) for a in shown for b in range(classes) if a != b}
    # Of scenes one factor differs: labels are 2 * digit + scene.
    wanted = {(a, b) for a, b in every if name != "scenes" or a + b != 3}
    assert found == wanted


def test_pairs_bring_their_own_images(digits, choosing):
    choosing(digits, Known(digits.test_images, digits.test_labels))
    labels, pairs = digits.test_labels.numpy(), [(7, 8), (2, 6), (7, 3)]
    case = cases.choose(Run("coloured digits", 28), 2, pairs=pairs, device="cpu")
    assert case.source.tolist() == [7, 7, 2, 2, 7, 7]
    assert case.target.tolist() == [8, 8, 6, 6, 3, 3]
    assert_array_equal(labels[case.rows], case.source)
    assert_array_equal(case.images, digits.test_images.numpy()[case.rows])
    assert len(set(case.rows[:2])) == 2
    every = cases.choose(Run("coloured digits", 28), 1000, pairs=[(4, 9)], device="cpu")
    assert sorted(every.rows) == np.flatnonzero(labels == 4).tolist()


# Exact counterfactuals


def test_exact_counterfactual_of_a_colour_exchanges_two_channels(colours):
    case = case_of(colours, brightest(), rows=[30, 2, 17, 5, 41], offset=2)
    truth = cases.exact(case)
    for i, (x, a, b) in enumerate(zip(case.images, case.source, case.target, strict=True)):
        assert_array_equal(truth.images[i], swapped(x, a, b))
        ink = x.max(0) > 0
        for channel in range(3):
            assert_array_equal(truth.mask[i, channel], ink if channel in (a, b) else ~(ink | ~ink))
    assert truth.box is None and not truth.is_object.any()
    assert_array_equal(runtime.predicted(case.model, truth.images), case.target)


@pytest.mark.parametrize("name", ["scenes", "one_scene"])
def test_exact_counterfactual_of_a_scene_changes_one_factor(name, request):
    problem = request.getfixturevalue(name)
    rows = [23, 4, 11, 0, 17, 8, 20, 2]
    factors = np.array([1, 2, 2, 1, 1, 2, 1, 2] if name == "scenes" else [1] * 8)
    case = case_of(problem, perfect(problem), rows=rows, offset=factors)
    truth, parts = cases.exact(case), problem.parts
    digit = 2 if name == "scenes" else 1
    assert_array_equal(truth.is_object, factors == digit)
    assert_array_equal(truth.mask, truth.images != case.images)
    for i, row in enumerate(rows):
        top, left, side = parts.boxes[row].tolist()
        box = np.zeros(case.images.shape[2:], bool)
        box[top : top + side, left : left + side] = True
        assert_array_equal(truth.box[i], box)
        x, made, opaque = case.images[i], truth.images[i], case.images[i].min(0) == 1
        assert (made != x).any()
        if factors[i] == digit:
            assert_array_equal(made[:, ~box], x[:, ~box])
        else:
            assert opaque.any()
            assert_array_equal(made[:, opaque], x[:, opaque])
            assert (made[:, ~box] != x[:, ~box]).mean() > 0.5
    assert_array_equal(runtime.predicted(case.model, truth.images), case.target)


def test_other_problems_have_no_exact_counterfactual(digits):
    assert cases.exact(case_of(digits, brightest(), rows=[0, 1])) is None


# Baselines


@pytest.fixture
def generator(monkeypatch):
    """A fresh generator in place of those loaded; `asked` are the runs."""
    settings = ganmex.Settings(width=4, blocks=1)
    torch_state = torch.get_rng_state()
    torch.manual_seed(0)
    made = ganmex.generator(3, 3, settings).eval()
    torch.set_rng_state(torch_state)
    made.asked = []
    monkeypatch.setattr(models, "load", lambda run: made.asked.append(run) or made)
    return made


def brute_force(x, target, images, labels, distance):
    """Of each target class the training image nearest to x."""
    found = []
    for image, wanted in zip(x, target, strict=True):
        of_class = images[labels == wanted].astype(float)
        found.append(of_class[np.argmin([distance(image - other) for other in of_class])])
    return np.array(found)


def test_baselines_are_images_like_those_of_the_case(colours, generator):
    case = case_of(colours, brightest(), rows=[7, 3, 40, 21])
    fixed = ["zero", "mean", "blur", "uniform", "Gaussian", "maximum distance"]
    of_target = ["MDTS", "MDTS (L2)", "MDTS (accepted)", "class mean", "adversarial", "exact"]
    names = ["GANMEX", "constrained", *of_target, *fixed]
    assert sorted(names) == sorted(cases.BASELINES)
    found = cases.baselines_of(case, names)
    assert list(found) == names
    for name, b in found.items():
        assert b.shape == case.images.shape and b.dtype == np.float32, name
        assert b.min() >= 0 and b.max() <= 1, name
    x, train, labels = case.images, colours.train_images.numpy(), colours.train_labels.numpy()
    assert not found["zero"].any()
    for channel in range(3):
        assert_allclose(found["mean"][:, channel], train[:, channel].mean(), rtol=1e-5)
    assert_array_equal(found["maximum distance"], x < 0.5)
    nearest = brute_force(x, case.target, train, labels, lambda d: np.abs(d).sum())
    assert_array_equal(found["MDTS"], nearest.astype(np.float32))
    nearest = brute_force(x, case.target, train, labels, lambda d: np.square(d).sum())
    assert_array_equal(found["MDTS (L2)"], nearest.astype(np.float32))
    means = [train[labels == wanted].mean(0) for wanted in case.target]
    assert_allclose(found["class mean"], means, atol=1e-6)
    assert_array_equal(runtime.predicted(case.model, found["adversarial"]), case.target)
    assert_array_equal(found["exact"], cases.exact(case).images)
    noisy = cases.baselines_of(case, fixed, seed=1)
    for name in fixed:
        assert (noisy[name] == found[name]).all() == (name not in ("uniform", "Gaussian"))


def test_only_the_baselines_that_are_named_are_computed(colours, monkeypatch):
    """Two are: neither a search, nor a descent, nor a generator is touched."""
    made = []
    for name in cases.BASELINES:
        one = lambda case, seed, name=name: made.append((name, seed)) or name  # noqa: E731
        monkeypatch.setitem(cases.BASELINES, name, one)
    case = case_of(colours, brightest(), rows=[3])
    found = cases.baselines_of(case, ["uniform", "exact", "zero"], 5)
    assert list(found.items()) == [("uniform", "uniform"), ("exact", "exact"), ("zero", "zero")]
    assert made == [("uniform", 5), ("exact", 5), ("zero", 5)]


def test_unknown_baselines_are_refused_before_any_work(colours, generator):
    case = case_of(colours, brightest(), rows=[3])
    with pytest.raises(ValueError, match=r"names must be of zero, .*exact, got 'black'"):
        cases.baselines_of(case, ["GANMEX", "black"])
    assert not generator.asked


def test_generators_are_loaded_once(colours, choosing, generator):
    choosing(colours, Known(colours.test_images, colours.test_labels))
    for seed in (0, 1, 0):
        case = cases.choose(Run("colours", 28, seed=seed), 2, device="cpu")
        for variant in ("GANMEX", "no critic"):
            cases.generated(case, variant)
    assert len(generator.asked) == len(set(generator.asked)) == 4


def test_accepted_samples_are_those_that_the_classifier_gets_right(colours):
    """It knows nothing of blue: then no blue training image is accepted, but one that is known."""
    labels, train = colours.train_labels.numpy(), colours.train_images.numpy()
    judged = np.where(labels == 2, 0, labels)
    judged[np.flatnonzero(labels == 2)[4]] = 2
    case = case_of(colours, Known(train, judged), rows=np.flatnonzero(colours.test_labels == 1)[:3])
    assert (case.target == 2).all()
    found = cases.baselines_of(case, ["MDTS", "MDTS (accepted)"])
    only = train[np.flatnonzero(labels == 2)[4]]
    assert (found["MDTS (accepted)"] == only).all()
    assert (found["MDTS"] != only).any()


@pytest.mark.parametrize("size", [None, 40])
def test_nearest_samples_are_searched_once(colours, size, monkeypatch):
    case = case_of(colours, brightest(), rows=[3, 8, 20, 31])
    x, labels = colours.train_images[:size].numpy(), colours.train_labels[:size].numpy()
    expected = baselines.NearestSample(x, labels)(case.images, case.target)
    assert_array_equal(cases.nearest_samples(case, size), expected)
    other = case._replace(problem=colours._replace(train_labels=colours.train_labels.flip(0)))
    assert (cases.nearest_samples(other, size) != expected).any()
    monkeypatch.setattr(baselines, "NearestSample", None)
    few = case_of(colours, brightest(), rows=[20, 8])
    assert_array_equal(cases.nearest_samples(few, size), expected[[2, 1]])


def test_few_samples_are_shown_to_the_classifier_that_accepts_them(colours, monkeypatch):
    case = case_of(colours, brightest(), rows=range(12))
    expected = baselines.NearestSample(colours.train_images, colours.train_labels)
    monkeypatch.setattr(baselines, "NearestSample", lambda *_, accepted_by=None: expected)
    found = cases.baselines_of(case, ["MDTS (accepted)"])["MDTS (accepted)"]
    assert_array_equal(found, expected(case.images, case.target))


def test_where_no_exact_counterfactual_is_known_there_is_none(digits):
    rows = np.flatnonzero(digits.test_labels == 3)[:2]
    case = case_of(digits, Known(digits.train_images, digits.train_labels), rows=rows)
    assert cases.exact(case) is None
    assert list(cases.baselines_of(case, ["MDTS", "exact", "zero"])) == ["MDTS", "zero"]


def test_generated_baselines_are_of_the_targets_and_of_the_variant(colours, generator):
    run = Run("colours", 28, "own head", 2)
    case = case_of(colours, brightest(), rows=[7, 3, 40, 21], run=run)
    found = cases.generated(case, "no critic")
    assert generator.asked == [run._replace(variant="no critic")]
    with torch.no_grad():
        made = generator(torch.from_numpy(case.images) * 2 - 1, torch.from_numpy(case.target))
    assert_allclose(found, (made.numpy() + 1) / 2, atol=1e-6)
    cases.generated(case)
    assert generator.asked[1] == run._replace(variant="GANMEX")


def test_changed_is_what_differs_by_more_than_the_threshold():
    x, b = np.array([0.5, 0.5, 0.5, 0.5]), np.array([0.5, 0.25, 0.875, 0.75])
    assert cases.changed(x, b, 0.25).tolist() == [False, False, True, False]
    assert cases.changed(x, np.array([0.44, 0.56, 0.46, 0.54])).tolist() == [1, 1, 0, 0]


# Quality of baselines


@pytest.fixture
def judge(monkeypatch):
    """Function that makes a judge the one loaded; returns what is asked."""

    def install(model):
        asked = []
        monkeypatch.setattr(small, "load", lambda *key: asked.append(key) or model)
        return asked

    return install


def test_every_quality_is_what_its_name_says(colours, judge):
    rng = np.random.default_rng(3)
    weights = {name: 30 * rng.normal(size=(3, 3)) for name in ("model", "twin", "a", "b")}
    rows = rng.permutation(48)[:20]
    case = case_of(
        colours, Reader(weights["model"]), rows=rows, twin=Reader(weights["twin"]),
        judges={"a": Reader(weights["a"]), "b": Reader(weights["b"])},
    )  # fmt: skip
    other = Reader(40 * rng.normal(size=(10, 3)))
    asked = judge(other)
    images = {
        "noise": rng.random(case.images.shape, dtype=np.float32),
        "tinted": case.images * rng.random((20, 3, 1, 1), dtype=np.float32),
    }
    table = quality.measure(case, images)
    assert asked == [("coloured digits", 28, "pooling")]
    assert table["baseline"].tolist() == ["noise"] * 20 + ["tinted"] * 20
    train, labels = colours.train_images.numpy(), colours.train_labels.numpy()
    outputs = {name: [] for name in (*weights, "other", "before")}
    for row in table.itertuples():
        x, b = case.images[row.image].astype(float), images[row.baseline][row.image].astype(float)
        source, target = case.source[row.image], case.target[row.image]
        says = {name: w @ b.mean((1, 2)) for name, w in weights.items()}
        hits = {name: out.argmax() == target for name, out in says.items()}
        for name, hit in hits.items():
            outputs[name].append(hit)
        assert row.flips == hits["model"] and row.twin == hits["twin"]
        assert row.transfer == (int(hits["a"]) + int(hits["b"])) / 2
        assert row[table.columns.get_loc("all judges") + 1] == (hits["a"] and hits["b"])
        powers = np.exp(says["model"] - says["model"].max())
        assert row.p_target == pytest.approx(powers[target] / powers.sum(), rel=1e-9)
        assert pytest.approx(np.abs(x - b).sum() / x.size, rel=1e-5) == row.L1
        assert pytest.approx(np.sqrt(((x - b) ** 2).sum()), rel=1e-5) == row.L2
        distances = [np.linalg.norm(b - t) for t in train[labels == target].astype(float)]
        assert row[table.columns.get_loc("to nearest") + 1] == pytest.approx(min(distances))
        exact = swapped(x, source, target)
        off = np.abs(b - exact).mean()
        assert row[table.columns.get_loc("to exact") + 1] == pytest.approx(off, rel=1e-5)
        kept = [(other.weights.detach().numpy() @ v.mean((1, 2))).argmax() for v in (x, b)]
        outputs["other"].append(kept[0] == kept[1])
        assert row[table.columns.get_loc("other kept") + 1] == (kept[0] == kept[1])
    # Else the comparisons above say little.
    assert all(0 < np.mean(hits) < 1 for name, hits in outputs.items() if hits), outputs


def test_the_exact_recolouring_is_perfect_unless_the_judge_of_the_digit_reads_colour(
    colours, coloured, judge
):
    case = case_of(colours, brightest(), rows=np.arange(12))
    images = {"exact": cases.exact(case).images, "x": case.images}
    judge(Known(coloured.test_images, coloured.test_digits, grey=True))
    table = quality.measure(case, images).set_index("baseline")
    exact, same = table.loc["exact"], table.loc["x"]
    for name in ("flips", "twin", "transfer", "all judges", "other kept"):
        assert (exact[name] == 1).all(), name
    assert (exact["to exact"] == 0).all() and (exact["L1"] > 0).all()
    assert (same["to exact"].array == exact["L1"].array).all() and (same["other kept"] == 1).all()
    assert (same["flips"] == 0).all() and (same[["L1", "L2"]] == 0).all(axis=None)
    judge(brightest())
    table = quality.measure(case, images).set_index("baseline")
    assert (table.loc["exact", "other kept"] == 0).all()
    assert (table.loc["x", "other kept"] == 1).all()


def test_of_coloured_digits_the_colour_must_be_kept(digits, coloured, judge):
    model = Known(digits.train_images, digits.train_labels)
    case = case_of(digits, model, rows=np.arange(16))
    asked = judge(brightest())
    others = np.roll(np.arange(48), 5)[:16]
    table = quality.measure(case, {"another": digits.test_images[others].numpy()})
    assert asked == [("colours", 28, "pooling")]
    same = coloured.test_colours[others] == coloured.test_colours[:16]
    assert 0 < same.sum() < 16
    assert_array_equal(table["other kept"], same.numpy().astype(float))
    assert table["to exact"].isna().all()


def test_of_scenes_the_factor_that_does_not_change_must_be_kept(scenes):
    rows, factors = np.arange(24), np.tile([1, 2], 12)
    knows, wrong = perfect(scenes), Known(scenes.test_images[:4], [0, 1, 2, 3], 4)
    judges = {"pooling": wrong, "residual": knows}
    case = case_of(scenes, knows, rows=rows, offset=factors, judges=judges)
    by_label = {k: scenes.test_images[scenes.test_labels == k][0].numpy() for k in range(4)}
    images = {"exact": cases.exact(case).images}
    steps = {"source": 0 * factors, "target": factors, "both": 3 + 0 * factors, "else": 3 ^ factors}
    for name, step in steps.items():
        images[name] = np.stack([by_label[k] for k in case.source ^ step])
    table = quality.measure(case, images)
    exact = table[table["baseline"] == "exact"]
    assert (exact["to exact"] == 0).all() and exact["flips"].all()
    rest = table[~table["baseline"].isin(["exact"])]
    assert (rest["to exact"] > 0).all()
    kept = table.groupby("baseline")["other kept"].agg(["min", "max"])
    for name, wanted in {"exact": 1, "source": 1, "target": 1, "both": 0, "else": 0}.items():
        assert kept.loc[name].tolist() == [wanted, wanted], name


def test_problems_without_other_factors_have_no_such_quality(one_scene):
    plain = one_scene._replace(name="digits", parts=None)
    model = Known(plain.test_images, plain.test_labels)
    case = case_of(plain, model, rows=np.arange(4))
    table = quality.measure(case, {"x": case.images})
    assert table[["to exact", "other kept"]].isna().all(axis=None)
    # One scene has an exact counterfactual, but no other factor that could change.
    case = case_of(one_scene, perfect(one_scene), rows=np.arange(4))
    table = quality.measure(case, {"exact": cases.exact(case).images})
    assert (table["to exact"] == 0).all() and table["other kept"].isna().all()


# Summaries


@pytest.fixture
def table():
    """Two baselines by two methods on 30 images of 3 runs, rows in random order."""
    rng = np.random.default_rng(5)
    names = [(m, b, r, i) for m in "PQ" for b in "AB" for r in (0, 1, 2) for i in range(10)]
    made = pd.DataFrame(names, columns=["method", "baseline", "run", "image"])
    made["gain"] = rng.normal(size=120) + made["run"] + 5 * (made["method"] == "Q")
    made["hit"] = rng.random(120) < 0.5
    made.loc[rng.random(120) < 0.2, "gain"] = np.nan
    made["note"] = "text"
    return made.iloc[rng.permutation(120)].reset_index(drop=True)


def test_summary_has_the_nested_mean_of_each_quantity(table):
    found = quality.summary(table, ["method", "baseline"], seed=2)
    wanted = ["method", "baseline", "quantity", "value", "low", "high", "n"]
    assert found.columns.tolist() == wanted and len(found) == 8
    assert set(found["quantity"]) == {"gain", "hit"}
    groups = table.drop_duplicates(["method", "baseline"])[["method", "baseline"]]
    order = found.drop_duplicates(["method", "baseline"])[["method", "baseline"]]
    assert order.to_numpy().tolist() == groups.to_numpy().tolist()
    for row in found.itertuples():
        part = table[(table["method"] == row.method) & (table["baseline"] == row.baseline)]
        part = part[part[row.quantity].notna()]
        values = part[row.quantity].to_numpy(float)
        expected = intervals.nested(values, part["run"], seed=2)
        low, high = expected.low, expected.high
        if row.quantity == "hit":  # a share
            score = intervals.wilson(int(values.sum()), len(values))
            low, high = min(low, score[0]), max(high, score[1])
        assert row[4:] == (expected.value, low, high, expected.n)
        assert row.value == pytest.approx(part.groupby("run")[row.quantity].mean().mean())
    gains = found[found["quantity"] == "gain"]
    assert gains["n"].sum() == table["gain"].notna().sum() < 120


def test_summary_without_runs_is_over_images(table):
    one = table[table["run"] == 1].drop(columns=["run", "method", "note"])
    found = quality.summary(one).set_index(["baseline", "quantity"])
    for name, part in one.groupby("baseline"):
        expected = intervals.mean(part["gain"].dropna())
        assert tuple(found.loc[name, "gain"]) == expected
        assert found.loc[(name, "hit"), "value"] == pytest.approx(part["hit"].mean())


def test_summary_of_what_is_nowhere_known_is_not_a_number(table):
    found = quality.summary(table.assign(gain=np.nan)).set_index(["baseline", "quantity"])
    assert found.loc[("A", "gain"), ["value", "low", "high"]].isna().all()
    assert found.loc[("A", "gain"), "n"] == 0 and found.loc[("A", "hit"), "n"] == 60


@pytest.mark.parametrize("runs", [None, np.repeat([0, 1, 2], 20)])
@pytest.mark.parametrize("always", [True, False])
def test_a_share_that_is_the_same_for_all_images_still_has_an_interval(always, runs):
    made = pd.DataFrame({"baseline": "A", "image": np.arange(60), "flips": always, "L1": 1.0})
    made = made if runs is None else made.assign(run=runs)
    found = quality.level(made, "flips", "A")
    z2 = 1.959964**2
    far = z2 / (60 + z2)  # Wilson's, of all 60 rows, has this simple form at the ends
    ends = (1, 1 - far, 1) if always else (0, 0, far)
    assert_allclose(found[:3], ends, atol=1e-6)
    assert found.n == 60
    table = quality.summary(made).set_index("quantity")
    assert tuple(table.loc["flips", ["value", "low", "high", "n"]]) == tuple(found)
    # A number that happens to be 1 everywhere is no share.
    assert tuple(table.loc["L1", ["value", "low", "high"]]) == (1, 1, 1)
    assert quality.level(made, "L1", "A")[:3] == (1, 1, 1)


def test_the_interval_of_a_share_is_never_narrower_than_that_of_the_bootstrap():
    rng, runs = np.random.default_rng(3), np.repeat([0, 1, 2], 40)
    made = pd.DataFrame({"baseline": "A", "image": np.arange(120), "run": runs})
    made["flips"] = rng.random(120) < np.array([0.2, 0.5, 0.9])[runs]
    found, plain = quality.level(made, "flips", "A"), intervals.nested(made["flips"], runs)
    score = intervals.wilson(int(made["flips"].sum()), 120)
    assert found == plain and plain.low < score[0] and plain.high > score[1]


@pytest.mark.parametrize("kept", ["boolean", object])
def test_a_share_stays_one_beside_what_is_not_known(kept):
    known = pd.DataFrame({"baseline": "A", "image": range(30), "kept": True})
    unknown = pd.DataFrame({"baseline": "B", "image": range(30), "kept": np.nan})
    parts = [part.astype({"kept": kept}).assign(run=0) for part in (known, unknown)]
    made = pd.concat(parts)  # the rows of both have the same index
    found = quality.level(made, "kept", "A")
    assert found.value == found.high == 1 and 0.88 < found.low < 0.89 and found.n == 30
    rows = quality.summary(made).set_index("baseline")
    assert rows.loc["A", "low"] == found.low and rows.loc["B", "n"] == 0
    assert np.isnan(rows.loc["B", "value"])


def test_differences_are_paired_by_run_and_image_whatever_the_order(table):
    part = table[table["method"] == "P"].set_index(["baseline", "run", "image"])["gain"]
    change = (part["B"] - part["A"]).dropna().sort_index()
    found = quality.difference(table[table["method"] == "P"], "gain", "B", "A", seed=4)
    assert found == intervals.nested(change, change.index.get_level_values("run"), seed=4)
    assert found.value == pytest.approx(change.groupby("run").mean().mean())
    assert found.n == len(change) < 30
    assert quality.difference(table[table["method"] == "P"], "gain", "A", "B").value == -found.value


def test_a_difference_that_is_the_same_for_all_images_has_no_spread(table):
    first = table[(table["method"] == "P") & table["gain"].notna()]
    second = first.assign(gain=first["gain"] - 0.25, method="R")
    both = pd.concat([first, second.sample(frac=1, random_state=0)])
    for run in (both, both[both["run"] == 1].drop(columns="run")):
        one = run[run["baseline"] == "B"]
        found = quality.difference(one, "gain", "P", "R", by="method")
        assert_allclose(found[:3], 0.25)


def test_differences_of_shares_are_differences(table):
    kept = table[table["method"] == "P"]
    share = kept.groupby("baseline")["hit"].mean()
    found = quality.difference(kept, "hit", "A", "B")
    assert found.value == pytest.approx(share["A"] - share["B"])


def test_the_weakest_estimate_decides():
    wide = intervals.Estimate(0.9, 0.1, 1.0, 5)
    narrow = intervals.Estimate(0.4, 0.3, 0.5, 5)
    high = intervals.Estimate(0.6, 0.2, 1.2, 5)
    assert quality.weakest([narrow, wide, high]) is wide
    assert quality.weakest([narrow, wide, high], above=False) is high
    assert quality.weakest([high, narrow], above=False) is high


def test_decide_looks_at_each_rival_in_each_table():
    rng, tables = np.random.default_rng(6), []
    # Means of the first: in each table, then of its rivals; the spread of B makes it uncertain.
    for first, (b, c) in ((1.0, (0.7, 0.6)), (2.0, (1.6, 1.95))):
        parts = {"A": first + 0 * rng.normal(size=40), "B": b + 2 * rng.normal(size=40)}
        parts["C"] = c + 0.001 * rng.normal(size=40)
        tables += [
            pd.concat(
                pd.DataFrame({"baseline": k, "image": np.arange(40), "gain": v, "method": k})
                for k, v in parts.items()
            )
        ]
    each = {
        (i, k): quality.difference(t, "gain", "A", k) for i, t in enumerate(tables) for k in "BC"
    }
    low = min(each, key=lambda key: each[key].low)
    high = max(each, key=lambda key: each[key].high)
    assert quality.decide(tables, "gain", "A", ["B", "C"]) == each[low]
    assert quality.decide(tables, "gain", "A", ["B", "C"], above=False) == each[high]
    assert quality.decide(tables, "gain", "A", ["C"]) == each[1, "C"]
    assert quality.decide(tables, "gain", "A", ["C"], above=False) == each[0, "C"]
    assert quality.decide(tables[:1], "gain", "A", ["C"], by="method") == each[0, "C"]


# Over trainings


def test_repeated_measures_each_training_with_its_own_classifier(digits, judge, monkeypatch):
    asked, made = [], []

    def choose(run, n, *, seed, **options):
        asked.append((run, n, seed))
        # Each run has other images.
        return case_of(
            digits, Known(digits.train_images, digits.train_labels), run=run,
            rows=np.arange(n) + n * run.seed,
        )  # fmt: skip

    def generated(case, variant="GANMEX"):
        made.append((case.run.seed, variant))
        return np.full_like(case.images, 0.5 if variant == "GANMEX" else 0.25)

    monkeypatch.setattr(quality, "choose", choose)
    monkeypatch.setattr(quality, "generated", generated)
    judge(brightest())
    found = quality.repeated("coloured digits", 3, ("GANMEX", "no critic"), seeds=(0, 2))
    assert asked == [(Run("coloured digits", 16, seed=s), 3, s) for s in (0, 2)]
    assert made == [(s, v) for s in (0, 2) for v in ("GANMEX", "no critic")]
    assert len(found) == 2 * 4 * 3
    table = found.set_index(["run", "baseline"])
    x = digits.test_images.numpy()
    for seed in (0, 2):
        own = x[3 * seed : 3 * seed + 3]
        for name, value in (("GANMEX", 0.5), ("no critic", 0.25)):
            off = np.abs(own - value).mean((1, 2, 3))
            assert_allclose(table.loc[(seed, name), "L1"], off, rtol=1e-5)
        assert (table.loc[(seed, "MDTS"), "to nearest"] == 0).all()
        assert table.loc[(seed, "adversarial"), "p_target"].between(0, 1).all()
    few = quality.repeated("coloured digits", 3, seeds=(1,), rivals=False)
    assert set(few["baseline"]) == {"GANMEX"} and set(few["run"]) == {1}
