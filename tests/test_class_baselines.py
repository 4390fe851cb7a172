"""Baselines of a target class against brute force and the closed form of a linear model."""

import math

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from torch import nn

from xaiutils import training_samples
from xaiutils.baselines import ClassMean, NearestSample, adversarial

SHAPE = (2, 3, 4)
NORMS = {
    "l1": lambda change: np.abs(change).mean(-1),
    "l2": lambda change: np.sqrt(np.square(change).sum(-1)),
}


@pytest.fixture
def samples():
    """Ninety images of three classes, with gaps in the numbering."""
    rng = np.random.default_rng(0)
    return rng.random((90, *SHAPE), dtype=np.float32), rng.choice([0, 2, 5], 90)


@pytest.fixture
def queries():
    rng = np.random.default_rng(1)
    return rng.random((40, *SHAPE), dtype=np.float32), rng.choice([0, 2, 5], 40)


def brute(x, targets, images, labels, norm):
    """First index of the least distance, and the distance, by one big table."""
    change = x.reshape(len(x), 1, -1).astype(float) - images.reshape(1, len(images), -1)
    table = np.where(targets[:, None] == labels, NORMS[norm](change), np.inf)
    return table.argmin(1), table.min(1)


def linear(n_classes=2, scale=1.0, dtype=torch.float32):
    model = nn.Sequential(nn.Flatten(), nn.Linear(24, n_classes)).eval()
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for weights in model.parameters():
            weights.normal_(generator=generator).mul_(scale)
    return model.to(dtype)


# --- nearest sample -------------------------------------------------------------------------------


@pytest.mark.parametrize("values", [1, 24 * 7, 2**23])
@pytest.mark.parametrize("rows", [1, 7, 2048])
@pytest.mark.parametrize("norm", NORMS)
def test_nearest_sample_is_that_of_brute_force_whatever_the_blocks(
    norm, rows, values, samples, queries, monkeypatch
):
    monkeypatch.setattr(training_samples, "_BLOCK_ROWS", rows)
    monkeypatch.setattr(training_samples, "_BLOCK_VALUES", values)
    nearest = NearestSample(*samples, norm=norm)
    indices, distances = nearest.find(*queries)
    expected, least = brute(*queries, *samples, norm)
    assert_array_equal(indices, expected)
    assert_allclose(distances, least, rtol=1e-12)
    assert_array_equal(nearest(*queries), samples[0][expected])


def test_the_norms_differ_and_l1_is_the_default(samples, queries):
    one, two = (NearestSample(*samples, norm=norm).find(*queries)[0] for norm in NORMS)
    assert (one != two).any()
    assert_array_equal(NearestSample(*samples).find(*queries)[0], one)


@pytest.mark.parametrize("norm", NORMS)
def test_nearest_sample_takes_tensors_and_keeps_the_dtype_of_x(norm, samples, queries):
    nearest = NearestSample(*map(torch.from_numpy, samples), norm=norm)
    x, targets = queries
    expected = NearestSample(*samples, norm=norm)(x, targets)
    assert_array_equal(nearest(*map(torch.from_numpy, queries)), expected)
    for dtype in (np.float32, np.float64):
        found = nearest(x.astype(dtype), targets)
        assert found.dtype == dtype
        assert_array_equal(found, expected)


@pytest.mark.parametrize("norm", NORMS)
def test_a_sample_of_the_class_finds_itself(norm, samples):
    images, labels = samples
    indices, distances = NearestSample(images, labels, norm=norm).find(images, labels)
    assert_array_equal(indices, np.arange(len(images)))
    assert not distances.any()


@pytest.mark.parametrize("rows", [2, 2048])
@pytest.mark.parametrize("norm", NORMS)
def test_of_equally_near_samples_the_first_is_taken(norm, rows, monkeypatch):
    monkeypatch.setattr(training_samples, "_BLOCK_ROWS", rows)
    rng = np.random.default_rng(2)
    few = rng.random((5, 3, 20, 20), dtype=np.float32)
    which = rng.integers(5, size=60)
    x = np.clip(few + 0.01 * rng.random(few.shape, dtype=np.float32), 0, 1)
    indices, _ = NearestSample(few[which], np.zeros(60, int), norm=norm).find(x, np.zeros(5, int))
    assert_array_equal(indices, [np.flatnonzero(which == i)[0] for i in range(5)])
    # The same distance in another order of the pixels: sums differ in their last bits.
    steps = rng.permuted(np.tile(rng.random(1200), (30, 1)), axis=1).reshape(30, 3, 20, 20)
    grey = np.zeros((1, 3, 20, 20))
    indices, _ = NearestSample(steps, np.zeros(30, int), norm=norm).find(grey, [0])
    assert_array_equal(indices, [0])


@pytest.mark.parametrize("norm", NORMS)
def test_small_differences_of_bright_images_are_not_lost(norm):
    rng = np.random.default_rng(3)
    images = (0.9 + 1e-4 * rng.random((200, 1, 28, 28))).astype(np.float32)
    x = (0.9 + 1e-4 * rng.random((50, 1, 28, 28))).astype(np.float32)
    none, labels = np.zeros(50, int), np.zeros(200, int)
    indices, distances = NearestSample(images, labels, norm=norm).find(x, none)
    expected, least = brute(x, none, images, labels, norm)
    assert_array_equal(indices, expected)
    assert_allclose(distances, least, rtol=1e-12)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("kind", ["module", "callable"])
def test_only_samples_that_the_classifier_accepts_count(kind, norm, samples, queries):
    (images, _), (x, _) = samples, queries
    module, rng = linear(4, dtype=torch.float64), np.random.default_rng(8)
    with torch.no_grad():
        predicted = module(torch.from_numpy(images).double()).argmax(1).numpy()
    labels = np.where(rng.random(90) < 0.6, predicted, rng.integers(4, size=90))
    rows = np.flatnonzero(predicted == labels)
    targets = rng.choice(labels[rows], len(x))
    assert 30 < len(rows) < 80 and len(np.unique(targets)) > 1
    classifier = module if kind == "module" else lambda batch: module(batch.double())
    nearest = NearestSample(images, labels, norm=norm, accepted_by=classifier)
    expected, least = brute(x, targets, images[rows], labels[rows], norm)
    assert (rows[expected] != brute(x, targets, images, labels, norm)[0]).any()
    indices, distances = nearest.find(x, targets)
    assert_array_equal(indices, rows[expected])  # of the given images, not of the accepted ones
    assert_allclose(distances, least, rtol=1e-12)
    assert_array_equal(nearest(x, targets), images[indices])


def test_nearest_sample_names_what_does_not_fit(samples):
    images, labels = samples
    with pytest.raises(ValueError, match=r'norm must be "l1" or "l2", got \'linf\''):
        NearestSample(images, labels, norm="linf")
    with pytest.raises(ValueError, match=r"images must be floating, got uint8; divide"):
        NearestSample(images.astype(np.uint8), labels)
    with pytest.raises(ValueError, match=r"images must be a batch of images .*\(2, 3, 4\)"):
        NearestSample(images[0], labels)
    for wrong in (labels[:-1], labels.astype(float), labels - 1):
        with pytest.raises(ValueError, match="labels must hold 90 classes >= 0: "):
            NearestSample(images, wrong)
    with pytest.raises(ValueError, match=r"accepted_by must return \(batch, classes\), got"):
        NearestSample(images, labels, accepted_by=lambda batch: batch)
    with pytest.raises(ValueError, match="training mode"):
        NearestSample(images, labels, accepted_by=nn.Dropout())


@pytest.mark.parametrize(
    "make",
    [
        lambda images, labels: NearestSample(images, labels).find,
        lambda images, labels: NearestSample(images, labels, norm="l2"),
        ClassMean,
    ],
)
def test_queries_must_fit_the_samples(make, samples, queries):
    baseline, (x, targets) = make(*samples), queries
    with pytest.raises(ValueError, match=r"shape of the samples, \(2, 3, 4\), got \(1, 3, 4\)"):
        baseline(x[:, :1], targets)
    with pytest.raises(ValueError, match=r"x must be a batch of images .*got shape \(2, 3, 4\)"):
        baseline(x[0], targets[:1])
    with pytest.raises(ValueError, match=r"x must be a batch of images .*got shape \(0, 2"):
        baseline(x[:0], targets[:0])
    with pytest.raises(ValueError, match=r"x must be in natural units \[0, 1\]"):
        baseline(x + 1, targets)
    with pytest.raises(ValueError, match="targets must hold 40 classes >= 0: int64"):
        baseline(x, targets[:-1])
    with pytest.raises(ValueError, match=r"classes with samples, \[0, 2, 5\]: \[1, 4\]"):
        baseline(x[:3], [1, 2, 4])


def test_a_class_with_no_accepted_sample_is_named(samples, queries):
    always_0 = torch.tensor([1.0, 0, 0, 0, 0, 0])
    nearest = NearestSample(*samples, accepted_by=lambda batch: always_0.expand(len(batch), 6))
    with pytest.raises(ValueError, match=r"classes with samples, \[0\]: \[2, 5\]"):
        nearest(*queries)


# --- class mean -----------------------------------------------------------------------------------


def test_class_mean_is_that_of_the_target_class(samples, queries):
    (images, labels), (x, targets) = samples, queries
    means = ClassMean(torch.from_numpy(images), torch.from_numpy(labels))
    found = means(x, targets)
    assert found.dtype == np.float32 and found.shape == x.shape
    for baseline, target in zip(found, targets, strict=True):
        of_class = [images[i].astype(float) for i in range(len(images)) if labels[i] == target]
        assert_allclose(baseline, sum(of_class) / len(of_class), rtol=1e-6)
    assert_array_equal(means(torch.from_numpy(x[::-1].copy()), targets[::-1].copy()), found[::-1])
    assert means(x.astype(float), targets).dtype == np.float64


def test_class_mean_does_not_drift_with_the_number_of_samples():
    images = np.full((70_000, 1, 4, 4), 0.1, np.float32)
    (mean,) = ClassMean(images, np.zeros(70_000, int))(images[:1], [0])
    assert_array_equal(mean, images[0])


# --- adversarial point ----------------------------------------------------------------------------


def probability(model, points, targets):
    with torch.no_grad():
        out = model(torch.from_numpy(points).to(next(model.parameters())))
    return out.softmax(1)[torch.arange(len(points)), torch.as_tensor(targets)].numpy()


@pytest.mark.parametrize("confidence", [0.8, 0.95])
@pytest.mark.parametrize("batch_size", [1, 7, 256])
def test_linear_model_changes_least(confidence, batch_size):
    model = linear()
    weight, bias = (p.detach().double().numpy() for p in model[1].parameters())
    x = 0.4 + 0.2 * np.random.default_rng(5).random((20, *SHAPE), dtype=np.float32)
    targets = np.arange(20) % 2
    sign = 2 * targets[:, None] - 1
    # The target's logit must exceed the other's by log(p / (1 - p)): a distance to a plane.
    normal = weight[1] - weight[0]
    ahead = sign * (x.reshape(20, -1) @ normal + bias[1] - bias[0])[:, None]
    missing = math.log(confidence / (1 - confidence)) - ahead
    least = np.maximum(missing, 0) * sign * normal / (normal @ normal)
    assert (missing > 0).sum() > 8 and abs(least).max() < 0.4  # the box is not active
    found = adversarial(model, x, targets, confidence=confidence, batch_size=batch_size)
    change = (found - x).reshape(20, -1)
    reference = np.linalg.norm(least, axis=1, keepdims=True)
    assert (abs(change - least) <= 0.005 * reference).all()
    assert (probability(model, found, targets) >= confidence - 1e-6).all()
    assert found.dtype == np.float32


def test_point_stays_in_the_box_and_reaches_the_confidence():
    model, rng = linear(5, scale=2.0), np.random.default_rng(6)
    x = rng.random((30, *SHAPE), dtype=np.float32).round()  # at the border everywhere
    targets = rng.integers(5, size=30)
    before = x.copy()
    found = adversarial(model, x, targets, confidence=0.9, step_size=0.05)
    assert found.min() >= 0 and found.max() <= 1
    start, end = (probability(model, points, targets) for points in (x, found))
    assert (start < 0.9).sum() > 15
    assert (end >= 0.9 - 1e-6).all()
    assert_allclose(end[start < 0.9], 0.9, atol=2e-3)  # no farther than needed
    assert_array_equal(found[start >= 0.9], x[start >= 0.9])
    assert_array_equal(x, before)
    alone = np.concatenate(
        [adversarial(model, x[[i]], targets[[i]], confidence=0.9, step_size=0.05) for i in (3, 17)]
    )
    assert_allclose(found[[3, 17]], alone, atol=1e-5)


def test_images_that_never_reach_it_return_their_last_point():
    model = linear(scale=0.1)
    normal = (model[1].weight[1] - model[1].weight[0]).detach().numpy().reshape(SHAPE)
    x = np.full((1, *SHAPE), 0.5, np.float32)
    found = adversarial(model, x, [1], steps=3, step_size=0.05)
    assert_allclose(found[0] - x[0], 0.15 * normal / np.linalg.norm(normal), atol=1e-6)
    corner = adversarial(model, x, [1], confidence=1 - 1e-6, steps=200)
    assert_array_equal(corner[0], (normal > 0).astype(np.float32))
    blind = nn.Sequential(nn.Flatten(), nn.Linear(24, 2), nn.Hardtanh(-1e-9, 0)).eval()
    with torch.no_grad():
        blind[1].bias.fill_(100)
    assert_array_equal(adversarial(blind, x, [1]), x)  # no gradient, no nan


def test_model_is_left_as_it_was_and_computes_in_its_own_precision():
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Softplus(), nn.Flatten(),
        nn.Linear(48, 3),
    ).double().eval()  # fmt: skip
    before = {name: value.clone() for name, value in model.state_dict().items()}
    x = torch.rand(6, *SHAPE, generator=torch.Generator().manual_seed(7))
    found = adversarial(model, x, torch.tensor([0, 1, 2, 0, 1, 2]), confidence=0.6)
    assert found.dtype == np.float32
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])
    assert all(weights.grad is None and weights.requires_grad for weights in model.parameters())
    assert not model.training


def test_adversarial_names_what_does_not_fit():
    model, x = linear(), np.full((3, *SHAPE), 0.5, np.float32)
    for confidence in (0, 1, 1.5, np.nan):
        with pytest.raises(ValueError, match=f"confidence must .*, got {confidence}"):
            adversarial(model, x, [0, 1, 0], confidence=confidence)
    for step_size in (0, -1, np.inf, np.nan):
        with pytest.raises(ValueError, match=f"step_size must be a positive.*, got {step_size}"):
            adversarial(model, x, [0, 1, 0], step_size=step_size)
    for count in (0, 1.5):
        with pytest.raises(ValueError, match=f"steps must be a positive integer, got {count}"):
            adversarial(model, x, [0, 1, 0], steps=count)
        with pytest.raises(ValueError, match=f"batch_size must be a positive integer, got {count}"):
            adversarial(model, x, [0, 1, 0], batch_size=count)
    for targets in ([0, 1], [0, 1, -1], [0.0, 1.0, 0.0]):
        with pytest.raises(ValueError, match="targets must hold 3 classes >= 0"):
            adversarial(model, x, targets)
    with pytest.raises(ValueError, match=r"target must be within 0\.\.1: 2"):
        adversarial(model, x, [0, 1, 2])
    with pytest.raises(ValueError, match=r"x must be a batch of images \(n, C, H, W\)"):
        adversarial(model, x[0], [0])
    with pytest.raises(ValueError, match="model is in training mode"):
        adversarial(nn.Sequential(nn.Dropout(), model), x, [0, 1, 0])
