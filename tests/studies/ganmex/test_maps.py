"""One-vs-one maps of notebook 04 and their tests, against loops, linear models and known masks."""

from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from torch import nn

from xaiutils import one_vs_one, sanity
from xaiutils.data import known_digits, problems
from xaiutils.studies.ganmex import cases, maps, models
from xaiutils.studies.ganmex.models import Run

N, SHAPE, CLASSES = 4, (3, 12, 12), 3
D = int(np.prod(SHAPE))
SOURCE, TARGET = np.array([0, 1, 2, 0]), np.array([2, 0, 1, 1])
RNG = np.random.default_rng(11)  # of what follows alone: no test depends on another
X = RNG.random((N, *SHAPE), dtype=np.float32)
BASELINES = {
    "MDTS": RNG.random(X.shape, dtype=np.float32),
    "GANMEX": np.where(RNG.random(X.shape) < 0.4, np.float32(0.5), X),
}


def drawn(seed):
    return np.random.default_rng(seed)


class Double(nn.Module):
    """First layer of models in float64, which are not exported."""

    def forward(self, x):
        return x.double()


def net(*widths, seed=0):
    """Dense layers with ReLU between them; without widths linear."""
    generator, sizes = torch.Generator().manual_seed(seed), [D, *widths, CLASSES]
    layers = [Double(), nn.Flatten()]
    for before, after in pairwise(sizes):
        dense = nn.Linear(before, after).double()
        with torch.no_grad():
            for weight in dense.parameters():
                values = torch.randn(weight.shape, generator=generator, dtype=torch.float64)
                weight.copy_(values / np.sqrt(before / 16))
        layers += [dense, nn.ReLU()]
    return nn.Sequential(*layers[:-1]).eval()


def case_of(model, *, n_train=30):
    images = torch.from_numpy(drawn(1).random((n_train, *SHAPE), dtype=np.float32))
    labels, names = torch.arange(n_train) % CLASSES, ("a", "b", "c")
    x, y = torch.from_numpy(X), torch.from_numpy(SOURCE)
    problem = problems.Problem("digits", images, labels, x, y, names)
    run, judges = Run("digits", 16), {"pooling": model}
    return cases.Case(run, problem, model, judges, model, X, SOURCE, TARGET, np.arange(N))


@pytest.fixture
def case():
    return case_of(net(8))


@pytest.fixture
def linear():
    return case_of(net())


def out(model, x):
    with torch.no_grad():
        return model(torch.as_tensor(x)).numpy()


def lo(model, x):
    """Logit of the source minus that of the target, (n,)."""
    found = out(model, x)
    return found[np.arange(N), SOURCE] - found[np.arange(N), TARGET]


def weights_of(model):
    """Of a linear model's one-vs-one output, (n, C, H, W)."""
    w = model[2].weight.detach().numpy()
    return (w[SOURCE] - w[TARGET]).reshape(X.shape)


# Maps


@pytest.mark.parametrize("method, atol", [("IG", 0.03), ("DeepLIFT", 1e-9)])
def test_maps_are_complete(case, method, atol):
    b = BASELINES["MDTS"]
    m = maps.explain(case, b, method)
    assert m.shape == X.shape
    wanted = lo(case.model, X) - lo(case.model, b)
    assert_allclose(m.sum((1, 2, 3)), wanted, atol=atol * np.abs(wanted).max())
    source = (out(case.model, X) - out(case.model, b))[np.arange(N), SOURCE]
    alone = maps.explain(case, b, method, against_target=False)
    assert_allclose(alone.sum((1, 2, 3)), source, atol=atol * np.abs(source).max())
    other = net(8, seed=5)
    wanted = lo(other, X) - lo(other, b)
    m = maps.explain(case, b, method, model=other)
    assert_allclose(m.sum((1, 2, 3)), wanted, atol=atol * np.abs(wanted).max())


@pytest.mark.parametrize("method", maps.METHODS)
def test_maps_of_a_linear_model_are_weight_times_change(linear, method):
    parts = weights_of(linear.model) * (X - BASELINES["GANMEX"])
    if method == "occlusion":  # its value of a pixel, shared out among the channels
        parts = np.stack([parts.sum(1) / 3] * 3, axis=1)
    assert_allclose(maps.explain(linear, BASELINES["GANMEX"], method), parts, atol=1e-6)


def test_occlusion_hides_one_pixel_in_all_channels(case):
    b = BASELINES["MDTS"]
    found = maps.explain(case, b, "occlusion")
    assert found.shape == X.shape and (found == found[:, :1]).all()
    alone = maps.explain(case, b, "occlusion", against_target=False)
    for row, column in [(0, 0), (3, 7), (11, 2)]:
        hidden = X.copy()
        hidden[:, :, row, column] = b[:, :, row, column]
        fall = lo(case.model, X) - lo(case.model, hidden)
        assert_allclose(3 * found[:, 0, row, column], fall, atol=1e-6)
        fall = (out(case.model, X) - out(case.model, hidden))[np.arange(N), SOURCE]
        assert_allclose(3 * alone[:, 0, row, column], fall, atol=1e-6)


def test_maps_follow_weights_that_change_in_place(linear):
    b = BASELINES["MDTS"]
    first = maps.explain(linear, b, "IG")
    for change in (lambda w: w.mul_(2), lambda w: w.data.mul_(2)):  # the latter torch does not see
        before = weights_of(linear.model).copy()
        with torch.no_grad():
            change(linear.model[2].weight)
        assert_allclose(weights_of(linear.model), 2 * before)
        found = maps.explain(linear, b, "IG")
        assert_allclose(found, 2 * first, atol=1e-6)
        first = found


def test_known_maps_are_not_made_again(case, monkeypatch):
    first = maps.explain(case, BASELINES["MDTS"], "IG")
    monkeypatch.setattr(maps, "_explain", None)
    assert_array_equal(maps.explain(case, BASELINES["MDTS"], "IG"), first)
    few = case._replace(images=X[1:3], source=SOURCE[1:3], target=TARGET[1:3])
    assert_array_equal(maps.explain(few, BASELINES["MDTS"][1:3], "IG"), first[1:3])


@pytest.mark.parametrize("method", maps.METHODS)
def test_no_images_are_refused_as_the_attributions_do(case, method):
    none = case._replace(images=X[:0], source=SOURCE[:0], target=TARGET[:0])
    with pytest.raises(ValueError, match=r"x must be a batch \(n, ...\) of inputs, got shape \(0,"):
        maps.explain(none, X[:0], method)


def test_other_methods_are_refused(case):
    with pytest.raises(ValueError, match=r"method must be one of .*IG.*got 'LIME'"):
        maps.explain(case, BASELINES["MDTS"], "LIME")


def test_expected_gradients_draw_training_images_of_the_target(linear):
    """With one image per class they are weight times change; else drawn from all, their mean."""
    w, problem = weights_of(linear.model), linear.problem
    alone = linear._replace(
        problem=problem._replace(
            train_images=problem.train_images[:3], train_labels=torch.tensor([2, 0, 1])
        )
    )
    of_class = problem.train_images.numpy()[[1, 2, 0]]  # by class
    found = maps.expected(alone, 20, of_target=True)
    assert_allclose(found, w * (X - of_class[TARGET]), atol=1e-6)
    every = maps.expected(linear, 600, of_target=False, seed=1)
    implied = X - every / w
    mean = problem.train_images.numpy().mean(0)
    assert np.abs(implied - mean).max() < 0.1
    assert (maps.expected(linear, 600, of_target=False, seed=2) != every).any()
    means = np.stack([problem.train_images.numpy()[k::3].mean(0) for k in range(3)])
    implied = X - maps.expected(linear, 600, of_target=True, seed=1) / w
    assert np.abs(implied - means[TARGET]).max() < 0.1
    assert np.abs(mean - means[TARGET]).max() > 0.2


def test_all_maps_are_those_of_each_method_and_the_bare_change(case):
    found = maps.explain_all(case, BASELINES, ["DeepLIFT", "occlusion"])
    assert list(found) == [
        *((m, b) for m in ("DeepLIFT", "occlusion") for b in BASELINES),
        *(("|x - b|", b) for b in BASELINES),
    ]
    for (method, name), m in found.items():
        b = BASELINES[name]
        assert_array_equal(m, abs(X - b) if method == "|x - b|" else maps.explain(case, b, method))


def test_completeness_is_the_error_relative_to_what_is_explained(case):
    b = BASELINES["MDTS"]
    m = maps.explain(case, b, "DeepLIFT")
    assert_allclose(maps.completeness(case, b, m), 0, atol=1e-9)
    assert_allclose(maps.completeness(case, b, 0 * m), 1)
    assert_allclose(maps.completeness(case, b, 1.25 * m), 0.25)
    assert_allclose(maps.completeness(case, b, -m), 2)


# Removal


def test_removal_is_one_vs_one_removal_of_each_ranking_with_each_filler(case):
    rng = drawn(2)
    rankings = {"signed": rng.normal(size=X.shape), "flat": rng.normal(size=(N, 12, 12))}
    table = maps.removal(case, rankings, BASELINES, share=0.2, seed=3)
    assert len(table) == 2 * 2 * N
    for (ranking, filler), part in table.groupby(["ranking", "filler"]):
        scores = rankings[ranking]
        found = one_vs_one.removal(
            case.model, X, SOURCE, TARGET, scores.sum(1) if scores.ndim == 4 else scores,
            BASELINES[filler], share=0.2, seed=3,
        )  # fmt: skip
        assert part["image"].tolist() == [0, 1, 2, 3]
        assert_allclose(part["aopc"], found.aopc())
        assert_allclose(part["full"], lo(case.model, X) - lo(case.model, BASELINES[filler]))
        assert_allclose(part["to_target"], found.to_target.mean(1))
    # The table says more than one thing.
    assert table["aopc"].nunique() == 16 and table["to_target"].nunique() > 2


def test_the_best_ranking_of_a_linear_model_is_that_of_its_own_baseline(linear):
    own = {name: maps.explain(linear, b, "IG") for name, b in BASELINES.items()}
    table = maps.removal(linear, own | {"random": drawn(3).normal(size=X.shape)}, BASELINES)
    best = table.pivot(index=["filler", "image"], columns="ranking", values="aopc").idxmax(axis=1)
    assert (best == best.index.get_level_values("filler")).all()


@pytest.fixture
def removed():
    """A table as of `removal`: ranking A gets 60 % of what replacing all does, B 20 %."""
    rng, parts = drawn(12), []
    full = {name: rng.uniform(1, 9, 50) for name in "AB"}
    for ranking, share in (("A", 0.6), ("B", 0.2)):
        for filler in "AB":
            own = ranking == filler
            aopc = share * full[filler] if own else rng.normal(size=50)
            columns = {"ranking": ranking, "filler": filler, "image": np.arange(50)}
            parts.append(pd.DataFrame(columns | {"aopc": aopc, "full": full[filler]}))
    return pd.concat(parts, ignore_index=True)


def test_own_share_compares_each_ranking_with_its_own_filler(removed):
    found = maps.own_share(removed, "A", "B")
    assert_allclose(found[:3], 0.4)
    assert found.n == 50
    noise = drawn(13).normal(0, 2, len(removed))
    noisy = removed.assign(aopc=removed["aopc"] + noise)
    own = {k: noisy[(noisy["ranking"] == k) & (noisy["filler"] == k)] for k in "AB"}
    shares = {k: part["aopc"].sum() / part["full"].sum() for k, part in own.items()}
    found = maps.own_share(noisy, "A", "B")
    assert found.value == pytest.approx(shares["A"] - shares["B"])
    assert found.low < found.value < found.high
    assert maps.own_share(noisy, "B", "A").value == pytest.approx(-found.value)


def test_ratio_is_of_the_means_with_one_filler(removed):
    table = removed.copy()
    one = table["filler"] == "B"
    a, b = one & (table["ranking"] == "A"), one & (table["ranking"] == "B")
    table.loc[a, "aopc"] = 2.5 * table.loc[b, "aopc"].to_numpy()
    found = maps.ratio(table, "B", "A", "B")
    assert_allclose(found[:3], 2.5)  # image by image
    assert found.n == 50
    table.loc[a, "aopc"] += drawn(14).normal(size=50)
    wanted = table.loc[a, "aopc"].mean() / table.loc[b, "aopc"].mean()
    assert maps.ratio(table, "B", "A", "B").value == pytest.approx(wanted)


def test_conversion_is_one_vs_one_conversion_of_each_baseline(case):
    scores = {name: maps.explain(case, b, "IG") for name, b in BASELINES.items()}
    table = maps.conversion(case, scores)
    assert len(table) == 2 * N
    for name, part in table.groupby("baseline"):
        found = one_vs_one.conversion(case.model, X, SOURCE, TARGET, scores[name].sum(1))
        assert part["pair"].tolist() == ["0 to 2", "1 to 0", "2 to 1", "0 to 1"]
        assert part["image"].tolist() == [0, 1, 2, 3]
        for column in ("drop", "converted", "blanked"):
            assert_array_equal(part[column], getattr(found, column))


# Localisation


@pytest.fixture(scope="module")
def truth():
    """Exact counterfactuals of 20 scenes, in turn of the digit and of the scene."""
    test = known_digits.scene_digits(size=16, n_train=4, n_test=40)[1]
    x, y = test.images, test.labels
    problem = problems.Problem("scenes", x, y, x, y, ("3 l", "3 p", "8 l", "8 p"), test)
    rows = np.arange(5, 25)
    source = y.numpy()[rows]
    target, images = source ^ np.tile([2, 1], 10), x.numpy()[rows]
    run = Run("scenes", 16)
    return cases.exact(cases.Case(run, problem, None, {}, None, images, source, target, rows))


def spread(region, like):
    """A map that is constant in a region (n, H, W)."""
    return np.broadcast_to(region[:, None], like.shape).astype(float)


def localised(m, truth):
    return maps.localisation({("IG", "b"): m}, truth)


def test_a_map_of_the_mask_is_all_in_it(truth):
    table = localised(-2.0 * truth.mask, truth)
    assert_allclose(table["in mask"], 1)
    assert table["image"].tolist() == [*range(20)]
    assert table["is_object"].tolist() == [True, False] * 10
    assert (table[["method", "baseline"]] == ["IG", "b"]).all(axis=None)
    # What the digit changes is in its box, what the scene changes mostly is not.
    assert_allclose(table["in region"][::2], 1)
    opposite = localised(~truth.mask * 1.0, truth)
    assert_allclose(opposite["in mask"], 0)


def test_how_integrated_gradients_rank_the_mask(truth):
    mixed = np.where(truth.mask, 1.0, 2 * drawn(3).random(truth.mask.shape))
    given = {("IG", "b"): -2.0 * truth.mask, ("DeepLIFT", "b"): mixed, ("IG", "c"): mixed}
    table = maps.ordering(given, truth)
    assert table["baseline"].tolist() == ["b"] * 20 + ["c"] * 20
    assert table["image"].tolist() == [*range(20)] * 2
    assert table["is_object"].tolist() == [True, False] * 20
    assert_allclose(table.loc[:19, ["auc", "ap"]], 1)
    quality = sanity.ranking_quality(mixed, truth.mask)
    assert_allclose(table.loc[20:, ["auc", "ap"]].T, [quality.auc, quality.average_precision])


def test_a_uniform_map_has_the_share_of_each_region(truth):
    table = localised(np.ones(truth.mask.shape), truth)
    box = truth.box.mean((1, 2))
    region = np.where(truth.is_object, box, 1 - box)
    assert_allclose(table["in box"], box)
    assert_allclose(table["in region"], region)
    assert_allclose(table["log inverse"], np.log(1 / region - 1))
    assert_allclose(table["in mask"], truth.mask.mean((1, 2, 3)))


def test_the_region_of_a_scene_is_all_but_the_box(truth):
    table = localised(spread(truth.box, truth.images), truth)
    assert_allclose(table["in box"], 1)
    assert_allclose(table["in region"], truth.is_object)
    # All inside or all outside is a finite number.
    assert_allclose(table["log inverse"], np.where(truth.is_object, -1, 1) * np.log(1e6))


def test_each_map_has_its_own_rows(truth):
    box, rest = spread(truth.box, truth.images), spread(~truth.box, truth.images)
    found = maps.localisation({("IG", "a"): box, ("DeepLIFT", "a"): rest, ("IG", "b"): rest}, truth)
    shares = found.groupby(["method", "baseline"])["in box"].agg(["min", "max"])
    assert shares.loc[("IG", "a")].tolist() == [1, 1]
    assert shares.loc[("DeepLIFT", "a")].tolist() == shares.loc[("IG", "b")].tolist() == [0, 0]


def test_without_a_box_there_is_only_the_mask(truth):
    colours = truth._replace(box=None, is_object=np.zeros(20, bool))
    table = localised(truth.mask * 1.0, colours)
    assert_allclose(table["in mask"], 1)
    assert not {"in box", "in region", "log inverse"} & set(table.columns)


def test_contrast_is_one_for_maps_that_follow_the_factor_and_zero_for_those_that_do_not(truth):
    box = spread(truth.box, truth.images)
    follows = np.where(truth.is_object[:, None, None, None], box, 1 - box)
    table = maps.localisation(
        {("IG", "same"): box, ("IG", "follows"): follows, ("DeepLIFT", "follows"): 1 - follows},
        truth,
    )
    assert maps.contrast(table, "IG", "same")[:3] == (0, 0, 0)
    assert maps.contrast(table, "IG", "follows")[:3] == (1, 1, 1)
    assert maps.contrast(table, "DeepLIFT", "follows")[:3] == (-1, -1, -1)
    assert maps.contrast(table, "IG", "same").n == 20


def test_contrast_is_of_independent_means():
    rng = drawn(15)
    is_object, share = np.arange(150) % 3 == 0, rng.random(150)
    table = pd.DataFrame({"in box": share, "is_object": is_object, "method": "IG", "baseline": "b"})
    found, (a, b) = maps.contrast(table, "IG", "b"), (share[is_object], share[~is_object])
    assert found.value == pytest.approx(a.mean() - b.mean())
    error = np.sqrt(a.var() / len(a) + b.var() / len(b))
    assert (found.high - found.low) / 2 == pytest.approx(1.96 * error, rel=0.08)


# Randomised layers


COLUMNS = ["signed", "absolute", "within", "ssim"]


def similarities(before, after, b):
    support = np.abs(X - b) > 0.05
    found = [sanity.similarity(before, after, how) for how in ("signed", "absolute", "ssim")]
    return [*found[:2], sanity.similarity(before, after, "within", support), found[2]]


def test_cascade_compares_with_the_maps_of_each_randomised_model():
    case = case_of(net(8, 6))
    table = maps.cascade(case, BASELINES, seeds=[4])
    assert len(table) == 4 * 2 * N
    assert_allclose(table.loc[table["layers"] == 0, COLUMNS], 1)
    for k, (_, model) in enumerate(sanity.cascade(case.model, seed=4)):
        for name, b in BASELINES.items():
            rows = table[(table["layers"] == k) & (table["baseline"] == name)]
            assert rows["image"].tolist() == [0, 1, 2, 3]
            maps_of = [maps.explain(case, b, "IG", model=m) for m in (case.model, model)]
            assert_allclose(rows[COLUMNS].T, similarities(*maps_of, b))
    assert (table.loc[table["layers"] == 3, "signed"].abs() < 0.9).all()


class Level(nn.Module):
    """In place of a generator: makes images of one grey level, in [0, 1]."""

    def __init__(self, level):
        super().__init__()
        self.level, self.classes = nn.Parameter(torch.tensor(2 * level - 1)), CLASSES

    def forward(self, x, wanted):
        return torch.zeros_like(x) + self.level


def test_retrained_baselines_are_of_the_generator_against_the_wholly_random_classifier(monkeypatch):
    asked, case = [], case_of(net(8, 6))._replace(run=Run("digits", 16, "own head"))

    def load(run):
        asked.append(run)
        return Level(0.7)

    monkeypatch.setattr(models, "load", load)
    baselines = {"MDTS": BASELINES["MDTS"], "GANMEX": np.full_like(X, 0.5)}
    table = maps.cascade(case, baselines, retrained=True)
    assert asked == [Run("digits", 16, "randomised 3")]
    assert set(table["baseline"]) == {"MDTS", "GANMEX", "GANMEX, retrained"}
    again = table[table["baseline"] == "GANMEX, retrained"]
    before = maps.explain(case, baselines["GANMEX"], "IG")
    *_, (_, random) = sanity.cascade(case.model, seed=0)
    b = np.full_like(X, 0.7)
    after = maps.explain(case, b, "IG", model=random)
    assert_allclose(again[COLUMNS].T, similarities(before, after, b), atol=1e-6)
    plain = maps.cascade(case, baselines).query("layers == 3").reset_index(drop=True)
    kept = table[table["baseline"] != "GANMEX, retrained"].reset_index(drop=True)
    pd.testing.assert_frame_equal(kept, plain)


# Agreement and masks


def test_methods_agree_on_a_linear_model(linear):
    table = maps.agreement(maps.explain_all(linear, BASELINES), linear, BASELINES)
    assert_allclose(table[["all", "support"]], 1)
    assert table["baseline"].tolist() == ["MDTS"] * N + ["GANMEX"] * N
    assert table["image"].tolist() == [0, 1, 2, 3] * 2


def test_agreement_is_pearsons_correlation_over_all_and_within_the_support(case):
    shown = dict(BASELINES, MDTS=np.where(X < 0.3, X + np.float32(0.03), BASELINES["MDTS"]))
    rng = drawn(4)
    found = {("IG", name): rng.normal(size=X.shape) for name in shown}
    found |= {("DeepLIFT", k): m + rng.normal(size=X.shape) for (_, k), m in found.items()}
    table = maps.agreement(found, case, shown).set_index(["baseline", "image"])
    for name, b in shown.items():
        for i in range(N):
            a, c = found["IG", name][i], found["DeepLIFT", name][i]
            seen = np.abs(X[i] - b[i]) > 0.05
            row = table.loc[(name, i)]
            assert row["all"] == pytest.approx(np.corrcoef(a.ravel(), c.ravel())[0, 1])
            assert row["support"] == pytest.approx(np.corrcoef(a[seen], c[seen])[0, 1])
    assert (table["all"] - table["support"]).abs().max() > 0.01


def test_mask_test_shows_each_maps_own_baseline(case):
    found = maps.explain_all(case, BASELINES | {"x": X}, ["IG", "occlusion"])
    found.pop(("occlusion", "x"))
    table = maps.mask_test(case, found, BASELINES | {"x": X})
    keys = table[["method", "baseline"]].drop_duplicates()
    assert [*map(tuple, keys.to_numpy())] == list(found)
    for (method, name), part in table.groupby(["method", "baseline"]):
        assert part["image"].tolist() == [0, 1, 2, 3]
        b = (BASELINES | {"x": X})[name]
        size = np.abs(found[method, name]).sum(1)  # channels do not cancel
        wanted = one_vs_one.mask_test(case.model, X, b, TARGET, size)
        for column in ("flip size", "score", "size"):
            assert_array_equal(part[column], getattr(wanted, column.replace(" ", "_")))
    # An image that shows itself flips nothing.
    nothing = table[
        (table["baseline"] == "x")
        & (out(case.model, X).argmax(1)[table["image"]] != TARGET[table["image"]])
    ]
    assert len(nothing) and (nothing["flip size"] == 1).all() and (nothing["score"] == 0).all()
