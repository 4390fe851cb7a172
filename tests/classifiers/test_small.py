"""Classifiers of the small problems: what they are, what they depend on, how they are trained."""

import itertools
import math

import numpy as np
import pytest
import torch
from torch import nn

from xaiutils import deeplift
from xaiutils.classifiers import small, trained
from xaiutils.data import problems

# Problem, side in pixels, channels, classes.
PROBLEMS = [
    ("digits", 28, 1, 10),
    ("digits", 16, 1, 10),
    ("coloured digits", 28, 3, 10),
    ("colours", 16, 3, 3),
    ("scenes", 32, 3, 4),
    ("one scene", 32, 3, 2),
    ("small digits", 16, 1, 10),
]
QUICK = {"steps": 60, "batch_size": 32}


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A cache and a committed folder that are both empty."""
    monkeypatch.setattr(trained, "COMMITTED", tmp_path / "committed")
    monkeypatch.setenv("XAIUTILS_CACHE", str(tmp_path))
    return tmp_path / "trained"


def noise(*shape, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def same(a, b):
    pairs = zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    return all(torch.equal(x, y) for x, y in pairs)


@pytest.mark.parametrize("family", small.FAMILIES)
@pytest.mark.parametrize("problem, size, channels, classes", PROBLEMS)
def test_each_family_gives_logits_for_each_problem(problem, size, channels, classes, family):
    model = small.recipe(problem, size, family).build().eval()
    with torch.no_grad():
        logits = model(noise(3, channels, size, size))
    assert logits.shape == (3, classes)
    # Logits: nothing behind the last linear layer.
    assert [type(m) for m in model.modules()][-1] is nn.Linear
    assert ((logits.sum(1) - 1).abs() > 0.01).all()


def test_strided_is_the_authors_net():
    weights = small.recipe("digits", 28, "strided").build().parameters()
    assert sum(p.numel() for p in weights) == 339_946


def test_deeper_is_the_net_specified_for_scenes():
    model = small.recipe("scenes", 32, "deeper").build()
    shapes = [tuple(p.shape) for p in model.parameters() if p.ndim > 1]
    convolutions = [(32, 3, 4, 4), (64, 32, 4, 4), (64, 64, 4, 4)]
    assert shapes == [*convolutions, (64, 64 * 4 * 4), (4, 64)]
    strided = [m.stride for m in model.modules() if isinstance(m, nn.Conv2d)]
    assert strided == [(2, 2)] * 3
    assert [m.p for m in model.modules() if isinstance(m, nn.Dropout)] == [0.5]


def test_judges_are_of_other_families():
    """Other layers, not just another size: maxima in one, batch norm and no dense stack in one."""
    kinds = {}
    for family in small.FAMILIES:
        modules = small.recipe("digits", 28, family).build().modules()
        kinds[family] = {type(m) for m in modules}
    assert nn.MaxPool2d in kinds["pooling"]
    assert nn.BatchNorm2d in kinds["residual"]
    for family in ("strided", "deeper"):
        assert not kinds[family] & {nn.MaxPool2d, nn.BatchNorm2d}


@pytest.mark.parametrize("problem", problems.NAMES)
def test_explained_family(problem):
    expected = "deeper" if problem in ("scenes", "one scene") else "strided"
    assert small.explained(problem) == expected


@pytest.mark.parametrize("problem, size, channels", [case[:3] for case in PROBLEMS])
def test_explained_classifiers_can_be_hooked(problem, size, channels):
    """Every activation is a module that is called once, and DeepLIFT's sums find none beside."""
    model = small.recipe(problem, size, small.explained(problem)).build().eval()
    x, calls = noise(2, channels, size, size), []
    leaves = [m for m in model.modules() if not [*m.children()]]
    hooks = [m.register_forward_hook(lambda m, *_: calls.append(m)) for m in leaves]
    logits = model(x)
    for hook in hooks:
        hook.remove()
    assert calls == leaves
    assert sum(isinstance(m, nn.ReLU) for m in leaves) >= 3
    parts = deeplift.deeplift(model, x, torch.zeros_like(x), [1, 0], against=[0, 1])
    start = model(torch.zeros_like(x))
    expected = [
        (a[i] - a[1 - i] - b[i] + b[1 - i]).item()
        for i, a, b in zip((1, 0), logits, start, strict=True)
    ]
    np.testing.assert_allclose(parts.sum((1, 2, 3)), expected, atol=1e-5)


@pytest.mark.parametrize("family", small.FAMILIES)
def test_initial_weights_depend_on_the_seed_alone(family):
    found = []
    for seed, state in ((3, 0), (3, 1), (4, 0)):
        with trained.seeded(state):
            before = torch.get_rng_state()
            found.append(small.recipe("digits", 16, family, seed).build())
            assert torch.equal(torch.get_rng_state(), before)
    assert same(found[0], found[1])
    assert not same(found[0], found[2])


# Recipes


def test_names_and_keys_tell_all_classifiers_apart():
    cases = [(p, s, f, i) for p, s, *_ in PROBLEMS for f in small.FAMILIES for i in (0, 1)]
    recipes = [small.recipe(*case) for case in cases]
    assert len({recipe.name for recipe in recipes}) == len(cases)
    assert len({recipe.key for recipe in recipes}) == len(cases)
    assert [small.recipe(*case).key for case in cases] == [recipe.key for recipe in recipes]


@pytest.mark.parametrize("setting", small._TRAINING)
def test_key_follows_each_setting_of_the_training(monkeypatch, setting):
    before = small.recipe("digits", 16, "strided").key
    monkeypatch.setitem(small._TRAINING, setting, 1)
    assert small.recipe("digits", 16, "strided").key != before


@pytest.mark.parametrize("function", ["_train", "_moved", "_convolved"])
def test_key_follows_the_code(monkeypatch, function):
    before = small.recipe("digits", 16, "residual").key
    monkeypatch.setattr(small, function, small._assets)
    assert small.recipe("digits", 16, "residual").key != before


def test_key_follows_the_net(monkeypatch):
    before = small.recipe("digits", 16, "strided").key
    monkeypatch.setitem(small.FAMILIES, "strided", small.Deeper)
    assert small.recipe("digits", 16, "strided").key != before


@pytest.mark.parametrize("asset", ["mnist.pkl.gz", "imagenet_15_99.jpg", "imagenet_13_471.jpg"])
def test_key_follows_the_data(monkeypatch, asset):
    cases = ("digits", "coloured digits", "scenes", "one scene")
    before = {problem: small.recipe(problem, 16, "deeper").key for problem in cases}
    changed = small.assets.hashes() | {asset: "0" * 64}
    monkeypatch.setattr(small.assets, "hashes", lambda: changed)
    after = {problem: small.recipe(problem, 16, "deeper").key for problem in cases}
    for problem in cases:
        depends = asset == "mnist.pkl.gz" or "scene" in problem
        assert (after[problem] != before[problem]) == depends


def test_unknown_family_is_refused():
    message = "family must be one of strided, deeper, pooling, residual, got 'vgg'"
    with pytest.raises(ValueError, match=message):
        small.load("digits", 28, "vgg")


@pytest.mark.parametrize(
    "problem, size, message",
    [("digit", 28, "name must be one of digits"), ("small digits", 18, "multiple of 4")],
)
def test_unknown_problems_are_refused_and_nothing_is_kept(cache, problem, size, message):
    with pytest.raises(ValueError, match=message):
        small.load(problem, size, "pooling")
    assert not [*cache.glob("*.safetensors")]


# Training


@pytest.mark.parametrize("family", ["strided", "residual"])
def test_loaded_classifier_is_trained_frozen_and_measured(cache, monkeypatch, family):
    """In half precision from the start, so that the file holds the very weights measured."""
    for name, value in QUICK.items():
        monkeypatch.setitem(small._TRAINING, name, value)
    recipe, reported = small.recipe("small digits", 16, family, 1), {}
    train = recipe.train
    object.__setattr__(recipe, "train", lambda m: reported.update(train(m)) or reported)
    before, threads = torch.get_rng_state(), torch.get_num_threads()
    first, second = recipe.load(), small.load("small digits", 16, family, 1)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.get_num_threads() == threads
    assert same(first, second)
    data = problems.load("small digits", 16)
    with torch.no_grad():
        hits = (second(data.test_images).argmax(1) == data.test_labels).float().mean().item()
    assert reported == {"accuracy": pytest.approx(hits, abs=1e-6)}
    assert hits > 0.5
    for model in (first, second):
        assert not any(m.training for m in model.modules())
        assert not any(p.requires_grad for p in model.parameters())
    floating = [v for v in first.state_dict().values() if v.is_floating_point()]
    assert all(torch.equal(v, v.half().float()) and v.dtype == torch.float32 for v in floating)
    (file,) = cache.glob("*.safetensors")
    elements = sum(v.numel() for v in floating)
    assert 2 * elements < file.stat().st_size < 2 * elements + 8000


def test_training_depends_on_the_seed_alone():
    images, labels, found = noise(40, 1, 16, 16), torch.arange(40) % 10, []
    options = small._TRAINING | {"steps": 3, "batch_size": 16}
    for seed, state in ((1, 0), (1, 5), (2, 0)):
        model = small.recipe("small digits", 16, "strided", 0).build()
        with trained.seeded(state):
            small._train(model, images, labels, seed, **options)
        found.append(model)
    assert same(found[0], found[1])
    assert not same(found[0], found[2])


def test_all_images_come_equally_often_in_changing_order(monkeypatch):
    images, seen = torch.arange(10.0).view(10, 1, 1, 1).expand(-1, 1, 16, 16), []
    monkeypatch.setattr(small, "_moved", lambda x, *_: seen.append(x[:, 0, 0, 0]) or x)
    model = small.recipe("small digits", 16, "strided").build()
    options = small._TRAINING | {"steps": 5, "batch_size": 4}
    small._train(model, images, torch.arange(10), 0, **options)
    assert [len(batch) for batch in seen] == [4] * 5
    first, second = torch.cat(seen).long().split(10)
    assert sorted(first.tolist()) == sorted(second.tolist()) == list(range(10))
    assert first.tolist() != second.tolist()


# Augmentation


def test_nothing_moves_by_nothing():
    x = noise(4, 3, 16, 16)
    found = small._moved(x, 0.0, 0.0, torch.Generator().manual_seed(0))
    torch.testing.assert_close(found, x, atol=1e-5, rtol=0)


def test_images_move_by_draws_of_their_own():
    x = noise(1, 1, 16, 16).expand(8, -1, -1, -1)
    found = small._moved(x, 5.0, 0.1, torch.Generator().manual_seed(0))
    assert found.shape == x.shape
    assert 0 <= found.min() < found.max() <= 1
    for a, b in itertools.combinations(found, 2):
        assert (a - b).abs().max() > 0.01
    again = small._moved(x, 5.0, 0.1, torch.Generator().manual_seed(0))
    assert torch.equal(again, found)


@pytest.mark.parametrize("draw, turns", [(1.0, 1), (0.5, 0), (0.0, -1)])
def test_largest_turn_is_the_one_given(monkeypatch, draw, turns):
    x = noise(2, 1, 16, 16)
    monkeypatch.setattr(small.torch, "rand", lambda *shape, generator: torch.full(shape, draw))
    found = small._moved(x, 90.0, 0.0, None)
    torch.testing.assert_close(found, x.rot90(turns, (2, 3)), atol=1e-5, rtol=0)


@pytest.mark.parametrize("draw, factor", [(1.0, 1.25), (0.0, 0.75)])
def test_largest_enlargement_is_the_one_given(monkeypatch, draw, factor):
    """A disc's area changes by the factor squared: how far the sampled points lie apart."""
    draws = torch.full((5, 1), 0.5)
    draws[2] = draw
    monkeypatch.setattr(small.torch, "rand", lambda *_, generator: draws)
    at = torch.linspace(-1, 1, 64)
    disc = (at[:, None] ** 2 + at**2 < 0.25).float()[None, None]
    found = small._moved(disc, 0.0, 0.25, None)
    assert math.isclose(disc.sum() / found.sum(), factor**2, rel_tol=0.02)
