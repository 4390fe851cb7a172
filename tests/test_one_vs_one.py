"""Tests of one-vs-one maps against plain loops, linear models and a model of one known patch."""

import copy

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from scipy import ndimage
from torch import nn

from xaiutils import one_vs_one

N, CHANNELS, SIDE, CLASSES = 4, 2, 6, 3
D = SIDE * SIDE
RNG = np.random.default_rng(7)
X = RNG.random((N, CHANNELS, SIDE, SIDE))
FILLER = RNG.random(X.shape)
SOURCE, TARGET = np.array([0, 1, 2, 0]), np.array([2, 0, 1, 1])
SCORES = RNG.normal(size=(N, SIDE, SIDE))


@pytest.fixture(scope="module")
def net():
    """In float64, so that plain loops give the same numbers to 1e-12."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = nn.Conv2d(CHANNELS, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(4 * 16, CLASSES)
    with torch.no_grad():
        layers[3].weight *= 6  # classes change along the way
    return nn.Sequential(*layers).double().eval()


def logits_of(model, image):
    with torch.no_grad():
        return model(torch.tensor(image[None]))[0].numpy()


def lo_of(model, image, i):
    logits = logits_of(model, image)
    return logits[SOURCE[i]] - logits[TARGET[i]]


def best_first(scores):
    return sorted(np.ndindex(scores.shape), key=lambda p: -scores[p])


class Counted:
    """A callable model that remembers its batches."""

    def __init__(self, model):
        self.model, self.sizes = model, []

    def __call__(self, batch):
        self.sizes.append(len(batch))
        return self.model(batch)


# --- removal --------------------------------------------------------------------------------------


def removal_by_loops(model, x, scores, filler, share, step):
    """One image, step and pixel at a time: drop, to_target, from_source, each (n, K+1)."""
    table = []
    for i in range(len(x)):
        ranking = best_first(scores[i])
        rows = []
        for k in range(round(share / step) + 1):
            image = x[i].copy()
            for row, column in ranking[: round(k * step * D)]:
                image[:, row, column] = filler[i, :, row, column]
            winner = logits_of(model, image).argmax()
            drop = lo_of(model, x[i], i) - lo_of(model, image, i)
            rows.append((drop, winner == TARGET[i], winner != SOURCE[i]))
        table.append(rows)
    return np.moveaxis(np.array(table), -1, 0)


@pytest.mark.parametrize(("share", "step"), [(0.5, 0.05), (0.3, 0.01), (1, 0.125)])
def test_removal_is_that_of_plain_loops(net, share, step):
    ours = one_vs_one.removal(net, X, SOURCE, TARGET, SCORES, FILLER, share=share, step=step)
    drop, to_target, from_source = removal_by_loops(net, X, SCORES, FILLER, share, step)
    assert_allclose(ours.drop, drop, atol=1e-12)
    assert_array_equal(ours.to_target, to_target)
    assert_array_equal(ours.from_source, from_source)
    number = [round(k * step * D) for k in range(round(share / step) + 1)]
    assert_array_equal(ours.fractions, np.array(number) / D)
    assert_array_equal(ours.drop[:, 0], 0)
    full = [lo_of(net, X[i], i) - lo_of(net, FILLER[i], i) for i in range(N)]
    assert_allclose(ours.full, full, atol=1e-12)
    # The test would see neither flag swapped or constant.
    assert to_target.any() and not to_target.all()
    assert from_source.any() and (to_target != from_source).any()


def test_normalised_and_aopc(net):
    ours = one_vs_one.removal(net, X, SOURCE, TARGET, SCORES, FILLER, share=1, step=0.25)
    assert_allclose(ours.normalised[:, -1], 1)
    assert_allclose(ours.normalised, ours.drop / ours.full[:, None])
    assert ours.aopc().shape == (N,)
    assert_allclose(ours.aopc(), ours.drop.sum(axis=1) / 5)
    assert_allclose(ours.aopc(normalised=True), ours.aopc() / ours.full)


def test_a_filler_that_changes_nothing_has_no_normalised_drop(net):
    filler = FILLER.copy()
    filler[1] = X[1]
    ours = one_vs_one.removal(net, X, SOURCE, TARGET, SCORES, filler)
    assert_array_equal(np.isnan(ours.normalised).all(axis=1), [False, True, False, False])
    assert_array_equal(np.isnan(ours.aopc(normalised=True)), [False, True, False, False])
    assert_array_equal(ours.aopc()[1], 0)


def test_everything_removed_is_the_same_for_every_ranking(net):
    rng = np.random.default_rng(0)
    maps = {name: rng.normal(size=SCORES.shape) for name in "abcde"}
    found = one_vs_one.removal(net, X, SOURCE, TARGET, maps, FILLER, share=1, step=0.1)
    full = [lo_of(net, X[i], i) - lo_of(net, FILLER[i], i) for i in range(N)]
    for ours in found.values():
        assert_allclose(ours.drop[:, -1], full, atol=1e-12)
    assert not np.allclose(found["a"].drop[:, 5], found["b"].drop[:, 5])


def test_maps_of_a_dict_are_those_of_single_calls_in_shared_batches(net):
    maps = {"signed": SCORES, "size": np.abs(SCORES), "tied": np.round(SCORES)}
    counted = Counted(net)
    arguments = SOURCE, TARGET
    together = one_vs_one.removal(counted, X, *arguments, maps, FILLER, batch_size=100)
    # 2 ends, then 3 maps x 4 images x 11 numbers of pixels: 30 % of 36 pixels in steps of 1 %.
    assert counted.sizes == [8, 100, 32]
    assert list(together) == list(maps)
    for name, scores in maps.items():
        alone = one_vs_one.removal(net, X, *arguments, scores, FILLER)
        assert_allclose(together[name].drop, alone.drop, atol=1e-12)
        assert_array_equal(together[name].to_target, alone.to_target)
    assert not np.allclose(together["signed"].drop, together["size"].drop)


def test_ties_are_broken_at_random_image_by_image():
    weights = torch.arange(D, dtype=torch.float64)
    seen = one_vs_one.removal(
        lambda batch: torch.stack([batch.flatten(1) @ weights, batch[:, 0, 0, 0] * 0], dim=1),
        np.ones((3, 1, SIDE, SIDE)),
        np.zeros(3, int),
        np.ones(3, int),
        {"flat": np.zeros((3, SIDE, SIDE)), "again": np.full((3, SIDE, SIDE), 5.0)},
        0.0,
        share=1,
        step=1 / D,
    )
    drop = seen["flat"].drop
    assert_array_equal(drop, seen["again"].drop)
    for row in np.diff(drop, axis=1):  # each step takes one pixel; its weight is its place
        assert sorted(row) == list(range(D))
        assert list(row) != list(range(D)) and list(row) != list(range(D))[::-1]
    assert (drop[0] != drop[1]).any() and (drop[1] != drop[2]).any()


def test_ties_do_not_mix_with_untied_scores_and_follow_the_seed(net):
    scores = np.zeros((N, SIDE, SIDE))
    scores[:, 2, 3], scores[:, 4, 1] = 1, -1
    step = 1 / D
    a, b, c = (
        one_vs_one.removal(net, X, SOURCE, TARGET, scores, FILLER, share=1, step=step, seed=seed)
        for seed in (0, 0, 1)
    )
    assert_array_equal(a.drop, b.drop)
    assert (a.drop[:, 10] != c.drop[:, 10]).all()
    first, last = X.copy(), FILLER.copy()
    first[:, :, 2, 3] = FILLER[:, :, 2, 3]
    last[:, :, 4, 1] = X[:, :, 4, 1]
    for i in range(N):
        start = lo_of(net, X[i], i)
        assert_allclose(a.drop[i, 1], start - lo_of(net, first[i], i), atol=1e-12)
        assert_allclose(a.drop[i, -2], start - lo_of(net, last[i], i), atol=1e-12)


def test_a_filler_favours_the_map_made_with_it():
    """Linear: w (x - r), integrated gradients from r, beats every ranking under filler r."""
    linear = nn.Sequential(nn.Flatten(), nn.Linear(CHANNELS * D, CLASSES)).double().eval()
    rng = np.random.default_rng(1)
    with torch.no_grad():
        linear[1].weight[:] = torch.tensor(rng.normal(size=(CLASSES, CHANNELS * D)))
    weight = linear[1].weight.detach().numpy()
    weight = (weight[SOURCE] - weight[TARGET]).reshape(X.shape)
    pair = {"own": (weight * (X - FILLER)).sum(axis=1), "black": (weight * X).sum(axis=1)}
    maps = pair | {f"random {i}": rng.random(SCORES.shape) for i in range(1000)}
    found = one_vs_one.removal(
        linear, X, SOURCE, TARGET, maps, FILLER, share=0.5, step=0.125, batch_size=1024
    )
    scores = np.array([ours.aopc() for ours in found.values()])
    assert (scores[0] > scores[1:]).all()
    own, other = (found[name].drop for name in ("own", "black"))
    assert (own >= other - 1e-12).all()  # at every step, not only on average
    # The advantage is the filler's: with black as filler the other map wins.
    turned = one_vs_one.removal(linear, X, SOURCE, TARGET, pair, 0.0, share=0.5, step=0.125)
    assert (turned["black"].aopc() > turned["own"].aopc()).all()


def test_fillers_broadcast_and_tensors_are_taken(net):
    expected = one_vs_one.removal(net, X, SOURCE, TARGET, SCORES, np.full(X.shape, 0.5))
    ours = one_vs_one.removal(
        net, torch.tensor(X), torch.tensor(SOURCE), TARGET, torch.tensor(SCORES), 0.5
    )
    assert_array_equal(ours.drop, expected.drop)
    colour = np.array([0.2, 0.9]).reshape(2, 1, 1)
    spread = one_vs_one.removal(net, X, SOURCE, TARGET, SCORES, np.zeros_like(X) + colour)
    assert_array_equal(one_vs_one.removal(net, X, SOURCE, TARGET, SCORES, colour).drop, spread.drop)


# --- conversion -----------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.05, 0.2, 0.9, 1])
@pytest.mark.parametrize("shift", [-1.5, 0, 1.5])  # few, half, nearly all scores positive
def test_conversion_is_that_of_plain_loops(net, share, shift):
    scores = SCORES + shift
    ours = one_vs_one.conversion(net, X, SOURCE, TARGET, scores, share=share, blank=0.1)
    for i in range(N):
        image, blanked = X[i].copy(), 0
        for row, column in best_first(scores[i])[: round(share * D)]:
            if scores[i, row, column] > 0:
                image[:, row, column] = 0.1
                blanked += 1
        left = lo_of(net, image, i)
        assert_allclose(ours.drop[i], lo_of(net, X[i], i) - left, atol=1e-12)
        assert ours.converted[i] == (left < 0)
        assert ours.blanked[i] == blanked / D


def test_157_of_784_pixels_are_blanked_by_default():
    scores = np.random.default_rng(0).permutation(784).reshape(1, 28, 28) + 1.0

    def ink(batch):
        return torch.stack([batch.sum((1, 2, 3)), torch.full((len(batch),), 700.0)], dim=1)

    def run(scores):
        return one_vs_one.conversion(
            ink, np.ones((1, 1, 28, 28)), np.array([0]), np.array([1]), scores
        )

    ours = run(scores)
    assert ours.drop == 157 and ours.blanked == 157 / 784 and ours.converted
    assert run(scores - 784.5).drop == 0  # all negative: all stay
    assert run(scores - 684.5).drop == 100  # positive are 100
    assert not run(scores - 724.5).converted  # 784 - 60 > 700
    # Pixels that tie with the 158th largest stay, so that never more are blanked.
    assert run(np.minimum(scores, 600)).drop == 0
    assert run(np.maximum(scores, 700)).drop == 84


def test_conversion_of_several_maps(net):
    maps = {"signed": SCORES, "turned": -SCORES}
    together = one_vs_one.conversion(net, X, SOURCE, TARGET, maps, batch_size=3)
    for name, scores in maps.items():
        alone = one_vs_one.conversion(net, X, SOURCE, TARGET, scores)
        assert_allclose(together[name].drop, alone.drop, atol=1e-12)
        assert_array_equal(together[name].blanked, alone.blanked)
    assert (together["signed"].drop != together["turned"].drop).all()


# --- masks ----------------------------------------------------------------------------------------


def disc(radius):
    offsets = np.arange(-radius, radius + 1)
    return offsets[:, None] ** 2 + offsets**2 <= radius**2


def masks_by_loops(scores, radius, sigma, steps):
    """For each image its masks, closed with empty and full space beyond the border, and blurred."""
    for a in np.abs(scores):
        ordered = np.sort(a.ravel())[::-1]
        rows = [np.zeros(a.shape, bool)]
        for k in range(1, steps + 1):
            rows.append(a >= ordered[round(k * D / steps) - 1])
        closed = []
        for mask in rows:
            grown = ndimage.binary_dilation(mask, disc(radius), border_value=0)
            closed.append(ndimage.binary_erosion(grown, disc(radius), border_value=1))
        yield closed, [ndimage.gaussian_filter(m.astype(float), sigma) for m in closed]


@pytest.mark.parametrize(
    ("radius", "sigma", "steps"), [(0, 0, 36), (1, 0.5, 10), (2, 1.5, 36), (1, 0, 7)]
)
@pytest.mark.parametrize("digits", [9, 0])  # 0: many scores tie
def test_mask_test_is_that_of_plain_loops(net, radius, sigma, steps, digits):
    scores = np.round(SCORES, digits)
    ours = one_vs_one.mask_test(
        net, X, FILLER, TARGET, scores, n_thresholds=steps, closing=radius, sigma=sigma
    )
    closed_something = False
    for i, (closed, weights) in enumerate(masks_by_loops(scores, radius, sigma, steps)):
        sizes, gains, flips = [], [], []
        for mask, m in zip(closed, weights, strict=True):
            logits = logits_of(net, FILLER[i] * m + X[i] * (1 - m))
            before = logits_of(net, X[i])
            share, at_start = (np.exp(v) / np.exp(v).sum() for v in (logits, before))
            sizes.append(mask.sum() / D)
            gains.append(share[TARGET[i]] - at_start[TARGET[i]])
            flips.append(logits.argmax() == TARGET[i])
            assert_allclose(m.sum(), mask.sum())  # the blur keeps the size
        assert_allclose(ours.sizes[i], sizes, atol=1e-12)
        assert_allclose(ours.gains[i], gains, atol=1e-12)
        assert_array_equal(ours.flips[i], flips)
        best = min(range(len(sizes)), key=lambda k: sizes[k] - gains[k])
        assert_allclose([ours.size[i], ours.gain[i]], [sizes[best], gains[best]], atol=1e-12)
        assert_allclose(ours.score[i], max(g - s for g, s in zip(gains, sizes, strict=True)))
        assert_allclose(ours.flip_size[i], min([1, *np.array(sizes)[flips]]))
        top = [round(k * D / steps) / D for k in range(steps + 1)]
        closed_something |= not np.allclose(sizes, top)
    assert closed_something == (radius > 0 or digits == 0)
    assert_array_equal(ours.gains[:, 0], 0)
    assert_array_equal(ours.sizes[:, -1], 1)
    full = [logits_of(net, image) for image in FILLER]
    start = [logits_of(net, image) for image in X]
    rise = np.array([np.exp(v) / np.exp(v).sum() for v in full]) - np.array(
        [np.exp(v) / np.exp(v).sum() for v in start]
    )
    assert_allclose(ours.gains[:, -1], rise[np.arange(N), TARGET], atol=1e-12)


PATCH = np.zeros((8, 8), bool)
PATCH[2:5, 3:6] = True


def reader(batch):
    """Class 1 as soon as the whole patch is lit, else class 0."""
    dark = (1 - batch[:, 0, PATCH]).sum(1)
    return torch.stack([dark, 0.5 - dark], dim=1) * 20


def test_the_map_of_the_patch_that_a_model_reads_finds_the_smallest_mask():
    x, b = np.zeros((2, 1, 8, 8)), np.ones((2, 1, 8, 8))
    maps = {
        "true": np.stack([PATCH, -2.0 * PATCH]),  # the sign does not count
        "turned": np.stack([~PATCH, ~PATCH]),
        "late": np.stack([PATCH[::-1] * 2.0 + PATCH] * 2),
    }
    found = one_vs_one.mask_test(
        reader, x, b, np.ones(2, int), maps, n_thresholds=64, closing=1, sigma=0
    )
    assert_allclose(found["true"].flip_size, 9 / 64)
    assert_allclose(found["true"].size, 9 / 64)
    assert_allclose(found["true"].gain, 1, atol=1e-4)
    assert_allclose(found["true"].score, 1 - 9 / 64, atol=1e-4)
    assert_allclose(found["turned"].flip_size, 1)
    assert_allclose(found["turned"].score, 0, atol=1e-4)
    assert ((found["late"].flip_size > 9 / 64) & (found["late"].flip_size < 1)).all()


def test_no_flip_and_flip_from_the_start():
    x = np.zeros((2, 1, 8, 8))
    ours = one_vs_one.mask_test(reader, x, x, np.array([1, 0]), np.stack([PATCH] * 2))
    assert_array_equal(ours.flip_size, [1, 0])
    assert not ours.flips[0].any() and ours.flips[1].all()
    assert_array_equal([ours.size, ours.gain, ours.score], np.zeros((3, 2)))


def test_equal_thresholds_cost_one_call_of_the_model():
    counted = Counted(reader)
    x = np.zeros((2, 1, 8, 8))
    ours = one_vs_one.mask_test(counted, x, x, np.ones(2, int), np.stack([PATCH] * 2))
    assert counted.sizes == [6]  # empty, patch, all: of two images
    assert ours.sizes.shape == (2, 65)  # 64 pixels have no 100 thresholds
    assert_array_equal(np.unique(ours.sizes), [0, 9 / 64, 1])


# --- all ------------------------------------------------------------------------------------------


def run_all(model, batch_size=None, x=X, source=SOURCE, target=TARGET, scores=SCORES):
    a = one_vs_one.removal(model, x, source, target, scores, FILLER, batch_size=batch_size)
    b = one_vs_one.conversion(model, x, source, target, scores, batch_size=batch_size)
    c = one_vs_one.mask_test(model, x, FILLER, target, scores, batch_size=batch_size)
    return [v for part in (a, b, c) for v in vars(part).values()]


def test_batch_size_does_not_matter(net):
    expected = run_all(net)
    for size in (1, 7, 1000):
        for ours, wanted in zip(run_all(net, size), expected, strict=True):
            assert_allclose(ours, wanted, atol=1e-12)


def test_single_precision_models_get_single_precision(net):
    expected = run_all(net)
    for ours, wanted in zip(run_all(copy.deepcopy(net).float()), expected, strict=True):
        assert_allclose(ours, wanted, atol=1e-4)


NAN = SCORES.copy()
NAN[1, 2, 3] = np.nan
REMOVAL = {"source": SOURCE, "target": TARGET, "scores": SCORES, "filler": 0.0}
CONVERSION = {"source": SOURCE, "target": TARGET, "scores": SCORES}
MASK = {"baseline": FILLER, "target": TARGET, "scores": SCORES}


@pytest.mark.parametrize(
    ("function", "arguments", "message"),
    [
        ("removal", {"x": X[0]}, r"x must be floating-point images.*\(2, 6, 6\)"),
        ("removal", {"x": (X * 255).astype(np.uint8)}, "x must be floating.*uint8"),
        ("removal", {"source": SOURCE[:2]}, r"source must hold 4 classes.*\(2,\)"),
        ("removal", {"target": TARGET * 1.0}, "target must hold 4 classes.*float64"),
        ("removal", {"target": TARGET + 3}, r"target must be within 0\.\.2, got 3\.\.5"),
        ("removal", {"source": SOURCE - 3}, r"source must be within 0\.\.2, got -3\.\.-1"),
        ("removal", {"source": TARGET}, "source and target must differ.*image 0 has 2"),
        ("removal", {"scores": {}}, "scores must hold at least one map"),
        ("removal", {"scores": X}, r"one value per pixel, \(4, 6, 6\), got \(4, 2, 6, 6\)"),
        ("removal", {"scores": {"ig": NAN}}, "ig: scores must be finite"),
        ("removal", {"filler": np.ones((3, 6, 6))}, r"filler must broadcast.*\(3, 6, 6\)"),
        ("removal", {"share": 1.5, "step": 0.5}, "share must be at most 1.*share 1.5"),
        ("removal", {"share": 0.25, "step": 0.1}, "a multiple of step.*step 0.1"),
        ("removal", {"step": 0}, "must be positive.*step 0"),
        ("removal", {"share": 0.01, "step": 0.01}, "one or more of the 36 pixels"),
        ("removal", {"batch_size": 0}, "batch_size must be a positive integer, got 0"),
        ("conversion", {"share": 0}, "share must be above 0"),
        ("conversion", {"source": TARGET}, "source and target must differ"),
        ("conversion", {"blank": np.ones(5)}, r"blank must broadcast.*\(5,\)"),
        ("mask_test", {"baseline": np.ones((5, 1, 1, 1))}, "baseline must broadcast"),
        ("mask_test", {"n_thresholds": 0}, "n_thresholds must be a positive integer, got 0"),
        ("mask_test", {"closing": 1.5}, "closing must be a radius.*1.5"),
        ("mask_test", {"sigma": -1}, "sigma must be 0 or more"),
    ],
)
def test_refusals(net, function, arguments, message):
    given = {"removal": REMOVAL, "conversion": CONVERSION, "mask_test": MASK}[function]
    with pytest.raises(ValueError, match=message):
        getattr(one_vs_one, function)(net, **{"x": X, **given, **arguments})


def test_a_model_without_classes_is_refused():
    with pytest.raises(ValueError, match=r"model must return \(batch, classes\)"):
        one_vs_one.conversion(lambda batch: batch.sum((1, 2, 3)), X, SOURCE, TARGET, SCORES)
