"""Generators of notebook 04: their settings, names and keys, and what is trained against what."""

import dataclasses
import re
from itertools import product

import numpy as np
import pytest
import torch
from torch import nn

from xaiutils import constrained_gan, gan_networks, ganmex, sanity
from xaiutils.classifiers import small, trained
from xaiutils.data import problems
from xaiutils.studies.ganmex import models
from xaiutils.studies.ganmex.models import Run

DIGITS = Run("digits", 16)
CLASSES = {"colours": 3, "scenes": 4, "one scene": 2}  # others have ten
SCALES = ("laptop", "paper")


def noise(*shape, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def net(seed=0):
    """Four layers with weights, for images (B, 1, 16, 16)."""
    layers = nn.Conv2d(1, 2, 4, 4), nn.Flatten(), nn.Linear(32, 6), nn.ReLU(), nn.Linear(6, 5)
    model = nn.Sequential(*layers, nn.ReLU(), nn.Linear(5, 10)).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(torch.randn(weight.shape, generator=generator))
    return model


def weights(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


@pytest.fixture
def problem(monkeypatch):
    """A tiny problem in place of any that is loaded."""
    images, labels = noise(40, 1, 16, 16), torch.arange(40) % 10
    names = tuple("0123456789")
    made = problems.Problem("digits", images, labels, images.flip(0), labels.flip(0), names)
    monkeypatch.setattr(problems, "load", lambda name, size: made)
    return made


# Which there are


def test_runs_and_names_are_all_different():
    runs = models.runs()
    assert len(set(runs)) == len(runs)
    variants = [*models.VARIANTS, *(run.variant for run in runs)]
    every = {Run("one scene", 32, v, s, w) for v in variants for s in (0, 10) for w in SCALES}
    names = [run.name for run in every | set(runs)]
    assert len(set(names)) == len(names) > len(runs)
    assert all(re.fullmatch(r"gan(-[a-z0-9]+)+", name) for name in names)


def test_main_and_repeated_trainings_are_among_the_runs():
    runs = set(models.runs())
    for name, size in [*models.MAIN.items(), ("one scene", 32)]:
        assert Run(name, size) in runs
    for name, size in models.REPEATED.items():
        assert {Run(name, size, seed=seed) for seed in range(5)} <= runs
        if name != "scenes":
            losses = set(product(("no similarity", "no critic", "own head"), range(5)))
            assert {Run(name, size, *one) for one in losses} <= runs
    for name, size in models.MAIN.items():
        assert {Run(name, size, "constrained", seed) for seed in range(5)} <= runs
        assert {Run(name, size, f"constrained, {n} images") for n in models.sizes(name)} <= runs
    assert Run("digits", 28, "100 iterations") in runs


def on_digits():
    return [run for run in models.runs() if run[:2] == ("digits", 16) and run.seed == 0]


def test_weights_of_the_losses_are_tried_on_a_grid_around_the_authors():
    assert {run.variant for run in on_digits()} >= set(models.WEIGHTS)
    tried = {(s.classifier, s.similarity) for s in map(models.settings, on_digits())}
    assert tried >= {(c, s) for c in (10, 100, 1000) for s in (20, 100)}


def test_there_is_a_training_against_the_wholly_random_classifier():
    layers = [*sanity.cascade(small.recipe("digits", 16, "strided").build(), seed=0)]
    random = [run.variant for run in models.runs() if run.variant.startswith("randomised")]
    assert random == [f"randomised {len(layers) - 1}"]


# Settings


FOUND = [run for run in models.runs() if run.variant.startswith("constrained")]
FIXED = [run for run in models.runs() if run not in FOUND]


@pytest.mark.parametrize("run", FOUND, ids=lambda run: run.name)
def test_settings_of_a_training_whose_weight_is_found_are_those_chosen(run):
    found = models.settings(run)
    assert isinstance(found, constrained_gan.Settings)
    assert (found.form, found.bound, found.told, found.iterations) == models.CHOSEN[run.problem]
    fixed = models.settings(run._replace(variant="GANMEX"))
    for name in ("per_class", "width", "blocks", "critic_width", "similarity", "penalty"):
        assert getattr(found, name) == getattr(fixed, name)
    large = models.settings(run._replace(scale="paper"))
    assert (large.width, large.iterations, large.form) == (64, 50_000, found.form)


def test_a_network_that_starts_from_the_image_is_not_led_back_to_it():
    ties = {
        form: (found.cycle, found.mask)
        for form in constrained_gan.FORMS
        for found in [models.constrained("digits", form, 0.1, False)]
    }
    assert ties == {"paint": (10, 0), "identity": (0, 0), "mask": (0, 2)}


@pytest.mark.parametrize("run", FIXED, ids=lambda run: run.name)
def test_settings_of_a_run_are_those_of_its_problem_but_for_the_variant(run):
    plain, found = models.settings(run._replace(variant="GANMEX")), models.settings(run)
    assert isinstance(found, ganmex.Settings)
    differs = {k for k, v in dataclasses.asdict(found).items() if v != getattr(plain, k)}
    if run.variant == "GANMEX" or run.variant.startswith("randomised"):
        assert not differs
    elif run.variant.endswith("iterations"):
        assert differs == {"iterations"}
        assert found.iterations == int(run.variant.removesuffix(" iterations")) < plain.iterations
    elif run.variant.startswith("no "):
        name = run.variant.removeprefix("no ")
        assert differs == {name} and getattr(found, name) == 0
    else:
        assert differs
    classes = CLASSES.get(run.problem, 10)
    assert 30 <= found.per_class * classes <= 32  # batches of about one size
    assert models.settings(run._replace(seed=run.seed + 1)) == found


def test_stargan_judges_classes_by_its_own_head_and_asks_for_no_similarity():
    found = models.settings(DIGITS._replace(variant="StarGAN"))
    assert found.own_head and (found.classifier, found.similarity) == (1, 0)
    assert found.cycle == 10 and found.critic == 1
    own = models.settings(DIGITS._replace(variant="own head"))
    assert own == dataclasses.replace(models.settings(DIGITS), own_head=True)


@pytest.mark.parametrize(
    "variant, classifier, similarity, cycle",
    [
        ("GANMEX", 100, 20, 10),
        ("weights 1, 2, 1", 1, 2, 1),
        ("classifier 10, similarity 100", 10, 100, 10),
        ("classifier 1000, similarity 20", 1000, 20, 10),
    ],
)
def test_weights_are_those_the_name_says(variant, classifier, similarity, cycle):
    found = models.settings(DIGITS._replace(variant=variant))
    assert (found.classifier, found.similarity, found.cycle) == (classifier, similarity, cycle)
    assert not found.own_head and found.critic == 1


def test_small_images_take_a_smaller_and_shorter_training():
    little, large = models.settings(DIGITS), models.settings(Run("digits", 28))
    for name in ("iterations", "width", "blocks"):
        assert getattr(little, name) < getattr(large, name)


def test_at_the_scale_of_the_paper_networks_are_the_authors():
    found = models.settings(Run("digits", 28, scale="paper"))
    made = ganmex.generator(1, 10, found)
    # Without scale and shift of the norms.
    assert sum(p.numel() for p in made.parameters() if p.ndim > 1) == 8_426_240
    critic = ganmex.Critic(1, 28, width=found.critic_width)
    assert sum(p.numel() for p in critic.parameters()) == 2_758_144
    assert (found.iterations, found.per_class, found.learning_rate) == (50_000, 6, 1e-4)
    laptop = models.settings(Run("digits", 28))
    kept = ("classifier", "similarity", "cycle", "critic", "penalty")
    assert [getattr(found, k) for k in kept] == [getattr(laptop, k) for k in kept]
    shorter = models.settings(Run("digits", 28, "100 iterations", scale="paper"))
    assert shorter == dataclasses.replace(found, iterations=100)


# Keys


@pytest.mark.parametrize(
    "field, value",
    [
        ("problem", "small digits"),
        ("size", 20),
        ("variant", "no critic"),
        ("seed", 1),
        ("scale", "paper"),
        ("variant", "randomised 1"),  # same settings, another classifier
    ],
)
def test_key_and_name_follow_each_field(field, value):
    other, before = models.recipe(DIGITS._replace(**{field: value})), models.recipe(DIGITS)
    assert other.key != before.key and other.name != before.name
    assert models.recipe(DIGITS).key == before.key


def test_key_follows_the_classifier(monkeypatch):
    before = models.recipe(DIGITS).key
    monkeypatch.setitem(small._TRAINING, "steps", 1)
    assert models.recipe(DIGITS).key != before


def test_key_follows_the_weights_of_a_variant(monkeypatch):
    run = DIGITS._replace(variant="no critic")
    before, main = models.recipe(run).key, models.recipe(DIGITS).key
    monkeypatch.setitem(models.VARIANTS, "no critic", {"critic": 0.5})
    assert models.recipe(run).key != before
    assert models.recipe(DIGITS).key == main


PARTS = ["Generator", "Critic", "Batches", "Training", "generator"]
PARTS += ["critic_losses", "generator_losses", "_Residual", "_normed"]


@pytest.mark.parametrize("part", PARTS)
def test_key_follows_the_code_of_the_training(monkeypatch, part):
    before = models.recipe(DIGITS).key
    room = gan_networks if part.startswith("_") else ganmex
    monkeypatch.setattr(room, part, lambda *_: None)
    assert models.recipe(DIGITS).key != before


OWN = ["Generator", "Critic", "Training", "Multiplier", "generator", "critic_losses"]
OWN += ["_group", "_down", "_up"]
SHARED = ["Batches", "Training", "_Residual", "_normed"]


@pytest.mark.parametrize(
    "room, part",
    [(constrained_gan, part) for part in OWN]
    + [(gan_networks if part.startswith("_") else ganmex, part) for part in SHARED],
)
def test_key_of_a_constrained_training_follows_its_code(monkeypatch, room, part):
    run = Run("digits", 28, "constrained")
    before = models.recipe(run).key
    monkeypatch.setattr(room, part, lambda *_: None)
    assert models.recipe(run).key != before


# Classifiers


@pytest.fixture
def asked(monkeypatch):
    """What was asked of `small.load`, which gives `net`."""
    calls = []
    monkeypatch.setattr(small, "load", lambda *key: calls.append(key) or net(key[3]))
    return calls


@pytest.mark.parametrize("variant", ["GANMEX", "own head", "100 iterations"])
def test_classifier_is_the_explained_one_of_the_same_seed(asked, variant):
    found = models.classifier(DIGITS._replace(variant=variant, seed=2))
    assert asked == [("digits", 16, "strided", 2)]
    assert all(torch.equal(v, net(2).state_dict()[k]) for k, v in weights(found).items())
    models.classifier(Run("scenes", 32))
    assert asked[1] == ("scenes", 32, "deeper", 0)


@pytest.mark.parametrize("k", [1, 2, 3, 4])
def test_classifier_has_as_many_random_layers_as_the_variant_says(asked, k):
    layers = ("0", "2", "4", "6")  # from the input to the logits
    found, other = (
        models.classifier(DIGITS._replace(variant=f"randomised {k}", seed=seed)) for seed in (0, 1)
    )
    assert not found.training
    before, after = weights(net(0)), weights(found)
    changed = {name for name, value in before.items() if not torch.equal(value, after[name])}
    assert changed == {f"{i}.{kind}" for i in layers[4 - k :] for kind in ("weight", "bias")}
    # Random layers differ with the seed, the others come from another classifier.
    assert not torch.equal(weights(other)["6.weight"], after["6.weight"])
    again = models.classifier(DIGITS._replace(variant=f"randomised {k}"))
    assert all(torch.equal(v, after[name]) for name, v in weights(again).items())


# Recipes


def test_a_training_on_few_images_sees_the_first_ones(problem, asked, monkeypatch, tmp_path):
    monkeypatch.setenv("XAIUTILS_CACHE", str(tmp_path))
    given = []

    def train(model, images, labels, settings, **options):
        given.append((images, labels))
        raise KeyboardInterrupt

    monkeypatch.setattr(constrained_gan, "train", train)
    for variant, size in (("constrained, 30 images", 30), ("constrained", 40)):
        run = Run("digits", 28, variant)
        assert models.size(run) == (30 if size == 30 else None)
        recipe = models.recipe(run)
        with pytest.raises(KeyboardInterrupt):
            recipe.train(recipe.build())
        images, labels = given.pop()
        assert torch.equal(images, problem.train_images[:size])
        assert torch.equal(labels, problem.train_labels[:size])


def test_recipes_hold_all_that_the_study_loads_by_itself():
    """Explained classifiers, twins and judges of each case, the other factor's judge."""
    names = [recipe.name for recipe in models.recipes()]
    assert len(set(names)) == len(names)
    cases = [(*pair, 0) for pair in models.MAIN.items()] + [("one scene", 32, 0)]
    cases += [(*pair, seed) for pair in models.REPEATED.items() for seed in range(5)]
    cases += [(*pair, seed) for pair in models.MAIN.items() for seed in range(5)]
    other = {"colours": "coloured digits", "coloured digits": "colours"}
    needed = {(r.problem, r.size, small.explained(r.problem), r.seed) for r in models.runs()}
    for name, size, seed in cases:
        needed |= {(name, size, small.explained(name), k) for k in (seed, 0 if seed else 1)}
        needed |= {(name, size, judge, 0) for judge in ("pooling", "residual")}
        if name in other:
            needed.add((other[name], size, "pooling", 0))
    assert {small.recipe(*key).name for key in needed} <= set(names)
    assert {run.name for run in models.runs()} <= set(names)
    keys = {recipe.name: recipe.key for recipe in models.recipes()}
    assert keys[DIGITS.name] == models.recipe(DIGITS).key


def test_initial_weights_depend_on_the_seed_alone(problem):
    built = [models.recipe(DIGITS._replace(seed=seed)).build() for seed in (3, 3, 4)]
    made = [model(problem.test_images[:2] * 2 - 1, torch.tensor([1, 2])) for model in built]
    assert made[0].shape == (2, 1, 16, 16)
    assert torch.equal(made[0], made[1]) and not torch.equal(made[0], made[2])
    assert built[0].classes == 10


def test_training_keeps_rounded_weights_and_measures_them_on_test_images(
    problem, asked, monkeypatch, tmp_path
):
    monkeypatch.setenv("XAIUTILS_CACHE", str(tmp_path))
    run, calls = DIGITS._replace(variant="no critic", seed=2), []
    recipe = models.recipe(run)
    with trained.seeded(9):
        result = ganmex.generator(1, 10, models.settings(run))

    def train(model, images, labels, settings, *, seed, checkpoint):
        calls.append((images, labels, settings, seed, checkpoint, weights(model)))
        return result

    monkeypatch.setattr(ganmex, "train", train)
    model = recipe.build()
    measured = recipe.train(model)
    images, labels, settings, seed, checkpoint, judge = calls[0]
    assert torch.equal(images, problem.train_images)
    assert torch.equal(labels, problem.train_labels)
    assert settings == models.settings(run) and seed == 2
    assert all(torch.equal(judge[name], value) for name, value in weights(net(2)).items())
    assert checkpoint.is_relative_to(tmp_path) and recipe.key[:12] in checkpoint.name
    kept = weights(model)
    assert all(torch.equal(kept[k], v.half().float()) for k, v in weights(result).items())
    x, wanted = problem.test_images, torch.arange(40) % 10
    with torch.no_grad():
        made = (model.eval()(x * 2 - 1, wanted) + 1) / 2
        flips = (net(2)(made).argmax(1) == wanted).float().mean()
    assert measured["flips"] == pytest.approx(flips.item())
    assert measured["distance"] == pytest.approx((x - made).abs().mean().item(), rel=1e-5)


def test_probe_fits_the_generator(problem):
    recipe = models.recipe(DIGITS)
    images, wanted = recipe.probe()
    with torch.no_grad():
        made = recipe.build()(images, wanted[: len(images)])
    assert made.shape == images.shape and np.isfinite(made.numpy()).all()


def test_load_gives_the_generator_of_the_recipe(monkeypatch):
    monkeypatch.setattr(trained.Recipe, "load", lambda recipe: recipe.name)
    assert models.load(DIGITS) == DIGITS.name
