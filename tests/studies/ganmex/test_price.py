"""The price of a counterfactual: operations counted by hand, qualities of the case put together."""

import numpy as np
import pytest
import torch

from xaiutils import counterfactuals, ganmex, intervals
from xaiutils.classifiers import small, trained
from xaiutils.data import problems
from xaiutils.runtime import predicted
from xaiutils.studies.ganmex import cases, choice, models, price, rivals


@pytest.fixture(scope="module")
def colours():
    return price.measured("colours", 8)


def test_each_method_has_its_rows_by_training_images(colours):
    sizes = {m: set(part["size"]) for m, part in colours.groupby("method")}
    assert sizes.pop("adversarial") == {0}
    assert sizes == {m: {300, 19_400 if m in rivals.STEPS else 20_000} for m in sizes}
    assert {*sizes, "adversarial"} == set(price.METHODS)
    assert set(colours["quantity"]) == set(price.QUANTITIES)
    assert (colours["teraflop"] > 0).all() and (colours["n"] <= 8).all()


def test_values_are_those_of_the_counterfactuals_made(colours):
    case = cases.choose(models.Run("colours", 28), 8)
    flow = rivals.load("guided flow", "colours", 300)
    chosen = price.chosen("guided flow", "colours")
    made = counterfactuals.guided_flow(case.model, flow, case.images, case.target, **chosen)
    rows = colours.query("method == 'guided flow' and size == 300").set_index("quantity")["value"]
    assert rows["L1"] == pytest.approx(np.abs(made - case.images).mean(), rel=1e-5)
    says = [predicted(judge, made) == case.target for judge in case.judges.values()]
    assert rows["transfer"] == pytest.approx(np.mean(says))
    generator = models.load(models.Run("colours", 28, "constrained, 300 images"))
    made = ganmex.Baseline(generator)(case.images, case.target)
    rows = colours.query("method == 'constrained' and size == 300").set_index("quantity")["value"]
    assert rows["L1"] == pytest.approx(np.abs(made - case.images).mean(), rel=1e-5)


def test_of_scenes_the_truth_is_known_where_the_digit_changes():
    rows = price.measured("scenes", 8)
    truth = cases.exact(cases.choose(models.Run("scenes", 32), 8))
    n = rows[rows["quantity"] == "in mask"]["n"]
    assert 0 < truth.is_object.sum() < 8 and (n == truth.is_object.sum()).all()


def test_operations_of_the_nearest_sample_and_of_a_training():
    case = cases.choose(models.Run("colours", 28), 4)
    labels = case.problem.train_labels[:300].numpy()
    _, operations = price._made(case, "MDTS", 300)
    assert operations == 3 * 3 * 28 * 28 * sum((labels == t).sum() for t in case.target)
    assert price.training(case, "MDTS") == price.training(case, "adversarial") == 0
    # Each layer: side of its smaller map, channels on either side, side of the kernel.
    layers = [(14, 3, 24, 4), (7, 24, 48, 4), (7, 48, 16, 3)]
    layers += [(7, 16, 48, 3), (7, 48, 24, 4), (14, 24, 3, 4)]
    forward = [2 * 64 * side**2 * a * b * k**2 for side, a, b, k in layers]
    step = 3 * sum(forward) - forward[0]  # no gradient is asked of the images
    found = price.training(case, "latent shift")
    assert found == step * rivals.STEPS["latent shift"]


def test_a_generator_costs_its_steps():
    case = cases.choose(models.Run("colours", 28), 4)
    found = price.training(case, models.CONSTRAINED)
    iterations = models.settings(case.run._replace(variant="constrained")).iterations
    weights = sum(
        p.numel() for p in models.load(case.run._replace(variant="constrained")).parameters()
    )
    # A layer of weights costs at least two operations a weight and image on 7 x 7 pixels.
    assert found > iterations * 30 * 2 * weights * 49 and found % iterations == 0


# What is chosen


def test_settings_are_those_of_the_nearest_that_the_referee_accepts():
    table = price.tried()
    assert len(table) == 2 * (3 + 3 + 3 + 6)
    for (problem, method), rows in table.groupby(["problem", "method"]):
        found = price.chosen(method, problem)
        assert set(found) == set(price.SETTINGS[method])
        low = intervals.wilson((rows["taken"] * price.JUDGED).round().astype(int), price.JUDGED)[0]
        accepted = rows[low >= rows["mdts taken"] - 0.05]
        row = rows[(rows[list(found)] == list(found.values())).all(axis=1)].iloc[0]
        if len(accepted):
            assert row["distance"] == accepted["distance"].min()
        else:
            assert row["taken"] == rows["taken"].max()


def test_settings_are_tried_on_images_held_out(monkeypatch, tmp_path):
    given = []

    def search(model, net, x, target, **setting):
        given.append((x, target, setting))
        return np.full(x.shape, 0.5, np.float32)

    monkeypatch.setattr(price, "_search", lambda method: search)
    monkeypatch.setattr(price, "_FILE", tmp_path / "rivals.json")
    monkeypatch.setattr(price, "JUDGED", 20)
    monkeypatch.setattr(rivals, "load", lambda *_: None)
    price.main()
    data = problems.load("colours", 28)
    x, target, setting = given[0]
    assert torch.equal(x, data.train_images[-600:-580]) and setting == {"confidence": 0.95}
    assert (target != data.train_labels[-600:-580].numpy()).all()
    table = price.tried()
    assert len(table) == len(given) == 30
    row = table.iloc[0]
    assert row["distance"] == pytest.approx((x - 0.5).abs().mean().item(), abs=1e-4)
    referee = small.load("colours", 28, choice.referee("colours"))
    half = np.full(x.shape, 0.5, np.float32)
    assert row["taken"] == pytest.approx((predicted(referee, half) == target).mean())
    assert row["mdts taken"] > 0.9


# What is trained


@pytest.mark.parametrize("kind", rivals.STEPS)
def test_a_training_sees_the_first_images_for_its_steps(kind, monkeypatch):
    calls = []
    monkeypatch.setattr(rivals, "fit", lambda *given: calls.append(given) or given[1].eval())
    recipe = rivals.recipe(kind, "colours", 300)
    recipe.train(recipe.build())
    rivals.recipe(kind, "colours").train(recipe.build())
    assert [len(images) for _, _, images, *_ in calls] == [300, 20000 - 600]
    assert {(given[0], given[4]) for given in calls} == {(kind, rivals.STEPS[kind])}


def test_recipes_are_all_different_and_registered():
    made = rivals.recipes()
    assert len({r.name for r in made}) == len({r.key for r in made}) == 12
    assert {r.name for r in made} <= {r.name for r in models.recipes()}
    for recipe in made:
        with torch.no_grad():
            recipe.build()(*recipe.probe())


def test_key_follows_code_and_classifier(monkeypatch):
    before = rivals.recipe("robust gradient", "scenes").key
    with monkeypatch.context() as patch:
        patch.setattr(rivals.counterfactual_networks, "train_robust", lambda *_: None)
        assert rivals.recipe("robust gradient", "scenes").key != before
    monkeypatch.setitem(small._TRAINING, "steps", 1)
    assert rivals.recipe("robust gradient", "scenes").key != before


def test_an_unknown_kind_is_refused():
    with pytest.raises(ValueError, match="kind must be one of robust gradient"):
        rivals.recipe("diffusion", "scenes")


def test_load_gives_the_network_of_the_recipe(monkeypatch):
    monkeypatch.setattr(trained.Recipe, "load", lambda recipe: recipe.name)
    assert rivals.load("guided flow", "scenes", 300) == "guided-flow-scenes-32-300-images"
