"""Notebook 05's explainers: closed forms of a linear model, identities of a smooth one."""

import warnings

import numpy as np
import oracles
import pandas as pd
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from torch import nn

from xaiutils import attribution, lime, limit, runtime
from xaiutils.perturb import Components
from xaiutils.studies.synthesis import explainers
from xaiutils.studies.synthesis.explainers import Effort, explain

N, SIDE, CLASSES = 3, 28, 4
# Cells of unequal size: 3 bands, of which the last is cut in two.
ROWS, COLUMNS = np.indices((SIDE, SIDE))
LABELS = np.select([ROWS < 5, ROWS < 16, COLUMNS < 9], [0, 1, 2], 3)
CELLS = Components(LABELS)
EFFORT = Effort(n_noise=3, ig_steps=4, n_masks=20, max_masks=310, top_k=1)
ONE_ROUND = EFFORT._replace(max_masks=EFFORT.n_masks)
UNSIGNED = {"gradient", "SmoothGrad", "SmoothGrad²", "random", "|x − b|"}
PROBABILITY = {"LIME", "LIME, converged", "IG sums"}


class Linear(nn.Module):
    """logits = W flat(x) + b as a convolution; in float64, so that nothing is exported."""

    def __init__(self):
        super().__init__()
        self.read = nn.Conv2d(3, CLASSES, SIDE).double()
        with torch.no_grad():
            rng = np.random.default_rng(1)
            self.read.weight.copy_(torch.from_numpy(rng.normal(0, 0.1, self.read.weight.shape)))
            self.read.bias.copy_(torch.from_numpy(rng.normal(size=CLASSES)))

    def forward(self, x):
        return self.read(x).flatten(1)


class Smooth(nn.Module):
    """A small network without kinks that counts the rows it is asked for and differentiated.

    The class counts: an attribute of the network that is set would be a change to look into.
    """

    asked = differentiated = 0

    def __init__(self):
        super().__init__()
        rng = np.random.default_rng(2)
        self.see, self.say = nn.Conv2d(3, 5, 7, stride=7).double(), nn.Linear(80, CLASSES).double()
        with torch.no_grad():
            for weight in self.parameters():
                weight.copy_(torch.from_numpy(rng.normal(0, 0.3, weight.shape)))

    def forward(self, x):
        Smooth.asked += len(x)
        out = self.say(torch.tanh(self.see(x)).flatten(1))
        if out.requires_grad:
            out.register_hook(self._count)
        return out

    def _count(self, slopes):
        Smooth.differentiated += len(slopes)


@pytest.fixture(scope="module")
def linear():
    return Linear().eval()


@pytest.fixture(scope="module")
def smooth():
    return Smooth().eval()


X = np.random.default_rng(0).random((N, 3, SIDE, SIDE))
TARGET, RIVAL = np.array([0, 3, 2]), np.array([1, 2, 0])
BASELINES = {
    "zero": np.zeros_like(X),
    "mean": np.broadcast_to(np.array([0.3, 0.5, 0.6])[:, None, None], X.shape).copy(),
    "other": np.random.default_rng(5).random(X.shape),
}
NAMES = explainers.names(BASELINES)


def run(model, *, target=TARGET, effort=EFFORT, **options):
    return explain(model, X, target, CELLS, BASELINES, effort, **options)


@pytest.fixture(scope="module")
def everything(smooth):
    return run(smooth)


def cell_sums(maps):
    return np.array([[m[j == LABELS].sum() for j in range(CELLS.d)] for m in maps])


def cell_means(image):
    """Each cell in its mean colour, cell by cell and channel by channel."""
    out = np.empty_like(image)
    for j in range(CELLS.d):
        for c in range(3):
            out[c][j == LABELS] = image[c][j == LABELS].mean()
    return out


MEANS = np.stack([cell_means(image) for image in X])


def weights(model, rival):
    """Gradient (n, C, H, W) of the explained logit, or of the lead."""
    w = model.read.weight.detach().numpy()
    return w[TARGET] - (0 if rival is None else w[rival])


# Closed forms of a linear model


@pytest.mark.parametrize("rival", [None, RIVAL], ids=["logit", "lead"])
def test_maps_of_a_linear_model_have_closed_forms(linear, rival):
    maps = run(linear, against=rival, only=set(NAMES) - {"LIME", "LIME, converged"}).maps
    w = weights(linear, rival)
    for name, b in BASELINES.items():
        assert_allclose(maps[f"IG, {name}"], (w * (X - b)).sum(1), atol=1e-10)
    by_mean = (w * (X - BASELINES["mean"])).sum(1)
    assert_allclose(maps["input × gradient"], by_mean, atol=1e-10)
    for name in ("gradient", "SmoothGrad"):
        assert_allclose(maps[name], np.abs(w).sum(1), atol=1e-10)
    assert_allclose(maps["SmoothGrad²"], np.square(w).sum(1), atol=1e-10)
    # Occlusion is linear too: a patch of 4 x 4 pixels falls by what input x gradient sums there.
    patches = by_mean.reshape(N, 7, 4, 7, 4).sum((2, 4)).repeat(4, 1).repeat(4, 2)
    assert_allclose(maps["occlusion"], patches, atol=1e-10)


def test_grad_cam_of_a_single_position_is_the_explained_logit(linear):
    with torch.no_grad():
        out = linear(torch.from_numpy(X)).numpy()
    rows = np.arange(N)
    for rival, value in (
        (None, out[rows, TARGET]),
        (RIVAL, out[rows, TARGET] - out[rows, RIVAL]),
    ):
        found = run(linear, against=rival, only=["Grad-CAM"]).maps["Grad-CAM"]
        assert (value < 0).any()  # no rectifier
        assert_allclose(found, np.broadcast_to(value[:, None, None], found.shape), atol=1e-10)


def test_lead_of_a_linear_model_by_cells(linear):
    """A linear function of the mask: its slopes are IG sums, and LIME's but for the ridge."""
    effort = EFFORT._replace(n_masks=4000, max_masks=4000)
    only = ["IG sums", "LIME", "LIME, converged"]
    maps = run(linear, against=RIVAL, only=only, effort=effort).maps
    exact = cell_sums((weights(linear, RIVAL) * (X - MEANS)).sum(1))
    assert_allclose(cell_sums(maps["IG sums"]), exact, atol=1e-10)
    for name in ("LIME", "LIME, converged"):
        assert oracles.relative_error(cell_sums(maps[name]), exact) < 0.02
        assert not np.allclose(cell_sums(maps[name]), exact, rtol=1e-6)


def test_change_and_its_control(smooth, everything):
    for control, found in (
        ("mean", everything),
        ("other", run(smooth, only=["|x − b|"], control="other")),
    ):
        wanted = np.abs(X - BASELINES[control]).sum(1)
        assert_allclose(found.maps["|x − b|"], wanted, atol=1e-12)


# Sums over cells


def softmax_of(model, images):
    with torch.no_grad():
        return model(torch.from_numpy(images)).softmax(1).numpy()


def test_ig_sums_of_the_probability(smooth):
    """They are those of the model with a softmax, and complete for many steps."""
    with_softmax = nn.Sequential(smooth, nn.Softmax(dim=1)).eval()
    for steps in (4, 300):
        effort = EFFORT._replace(ig_steps=steps)
        found = cell_sums(run(smooth, only=["IG sums"], effort=effort).maps["IG sums"])
        for i in range(N):
            wanted = limit.integrated_gradients_sums(
                with_softmax, X[i], MEANS[i], CELLS, int(TARGET[i]), steps=steps
            )
            assert_allclose(found[i], wanted, atol=1e-10)
    rows = np.arange(N)
    change = (softmax_of(smooth, X) - softmax_of(smooth, MEANS))[rows, TARGET]
    assert np.abs(change).max() > 0.01
    assert_allclose(found.sum(1), change, atol=1e-5)


@pytest.mark.parametrize("rival", [None, RIVAL], ids=["alone", "lead"])
def test_few_steps_are_a_choice_that_needs_no_warning(rival, smooth):
    effort, only = EFFORT._replace(ig_steps=1), ["IG, mean", "IG sums"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        maps = run(smooth, only=only, effort=effort, against=rival).maps
    with pytest.warns(attribution.CompletenessWarning):
        coarse = attribution.integrated_gradients(
            smooth, X, MEANS, TARGET, steps=1, against=rival, tolerance=1e-6
        )
    assert rival is None or np.allclose(cell_sums(maps["IG sums"]), cell_sums(coarse.sum(1)))


def test_ig_sums_of_the_lead_are_complete(smooth):
    effort = EFFORT._replace(ig_steps=300)
    found = run(smooth, only=["IG sums"], effort=effort, against=RIVAL).maps["IG sums"]
    rows = np.arange(N)
    leads = []
    with torch.no_grad():
        for images in (X, MEANS):
            out = smooth(torch.from_numpy(images)).numpy()
            leads.append(out[rows, TARGET] - out[rows, RIVAL])
    assert_allclose(found.sum((1, 2)), leads[0] - leads[1], atol=1e-4)


@pytest.mark.parametrize("name", sorted(PROBABILITY))
def test_maps_of_cells_are_densities(name, everything):
    """One value within a cell, whatever its area; its sum is the coefficient."""
    maps = everything.maps[name]
    for j in range(CELLS.d):
        inside = maps[:, j == LABELS]
        assert_allclose(inside, inside[:, :1].repeat(inside.shape[1], 1), rtol=1e-12)
    assert np.ptp(maps) > 0


@pytest.fixture
def lime_calls(monkeypatch):
    """The options of each call of the module to `lime.explain`, with its result."""
    seen, real = [], lime.explain

    def spy(*arguments, **options):
        seen.append((options, real(*arguments, **options)))
        return seen[-1][1]

    monkeypatch.setattr(explainers.lime, "explain", spy)
    return seen


def outcome(model, i, rival):
    """What LIME explains for image i, as a function of a batch."""

    def scalar(batch):
        with torch.no_grad():
            out = model(batch)
        if rival is None:
            return out.softmax(1)[:, [TARGET[i]]]
        return out[:, [TARGET[i]]] - out[:, [rival[i]]]

    return scalar


@pytest.mark.parametrize("rival", [None, RIVAL], ids=["probability", "lead"])
def test_lime_is_one_round_and_its_continuation(rival, smooth, lime_calls):
    found = run(smooth, against=rival, only=["LIME", "LIME, converged"])
    made = lime_calls[:]
    assert len(made) == N and found.masks.max() > EFFORT.n_masks
    for i, (options, last) in enumerate(made):
        assert_allclose(cell_sums(found.maps["LIME, converged"])[i], last.coef, atol=1e-12)
        assert found.masks[i] == len(last.masks)
        one = lime.explain(
            outcome(smooth, i, rival),
            X[i],
            CELLS,
            targets=0,
            n_samples=EFFORT.n_masks,
            seed=options["seed"],
        )
        assert_allclose(cell_sums(found.maps["LIME"])[i], one.coef, atol=1e-10)
        # The continuation by one least-squares problem, on images composed here.
        values = [
            float(outcome(smooth, i, rival)(torch.from_numpy(composed)[None])[0, 0])
            for composed in (oracles.compose(X[i], MEANS[i], LABELS, z) for z in last.masks)
        ]
        reference = oracles.ridge_lstsq(
            last.masks, oracles.weights_of(last.masks, 0.25), values, 1.0
        )
        assert_allclose(last.coef, reference[1:], atol=1e-8)
    assert len({options["seed"] for options, _ in made}) == N


def test_masks_drawn_are_rounds_up_to_the_cap(smooth, linear):
    only = ["LIME, converged"]
    found = run(smooth, only=only).masks
    assert found.dtype.kind == "i" and found.shape == (N,)
    assert ((found % EFFORT.n_masks == 0) & (found >= EFFORT.n_masks)).all()
    assert (found <= EFFORT.max_masks).all() and len(set(found)) > 1
    # A linear lead is settled by one round: only the ridge leaves residuals.
    effort = EFFORT._replace(n_masks=200, max_masks=1000)
    assert_array_equal(run(linear, only=only, against=RIVAL, effort=effort).masks, 200)
    # Cells that only chance can tell apart need all of them.
    black_and_white = np.broadcast_to((ROWS % 2).astype(float), X.shape)
    columns = Components(COLUMNS // 7)
    tied = explain(
        Contrast().eval(), black_and_white, np.zeros(N, int), columns, BASELINES, EFFORT,
        against=np.ones(N, int), only=only,
    )  # fmt: skip
    assert_array_equal(tied.masks, 300)  # a further round would exceed 310


class Contrast(nn.Module):
    """Squared contrast: cells of one kind are worth the same, but not on their own."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor([1.0, 0.0], dtype=torch.float64))

    def forward(self, x):
        return (x - 0.5).abs().mean((1, 2, 3))[:, None] ** 2 * self.scale


def test_lime_of_many_masks_nears_its_limit(smooth):
    effort = EFFORT._replace(n_masks=6000, max_masks=6000)
    found = cell_sums(run(smooth, only=["LIME"], effort=effort).maps["LIME"])
    for i in range(N):
        table = oracles.table_of_images(
            lambda image, i=i: softmax_of(smooth, image[None])[0, TARGET[i]], X[i], MEANS[i], LABELS
        )
        exact = oracles.limit_by_lstsq(table, 0.25)[1:]
        assert oracles.relative_error(found[i], exact) < 0.06


# What is explained


def test_leads_turn_their_sign_with_target_and_rival(smooth):
    there = run(smooth, against=RIVAL, effort=ONE_ROUND).maps
    back = run(smooth, target=RIVAL, against=TARGET, effort=ONE_ROUND).maps
    for name in NAMES:
        sign = 1 if name in UNSIGNED else -1
        assert_allclose(there[name], sign * back[name], atol=1e-9, err_msg=name)
        assert np.ptp(there[name]) > 0


def test_maps_without_a_rival_are_those_of_the_logit(smooth, everything):
    """Or of the probability, which a number added to all logits does not change."""
    shifted = Smooth().eval()
    with torch.no_grad():
        shifted.say.weight += torch.linspace(-0.2, 0.2, 80)
    found = run(shifted, effort=EFFORT).maps
    asked = set(NAMES) - UNSIGNED | {"gradient", "SmoothGrad", "SmoothGrad²"}
    for name in asked:
        same = np.allclose(found[name], everything.maps[name], atol=1e-9)
        assert same == (name in PROBABILITY), name


def test_gradients_are_those_of_autograd(smooth, everything):
    x = torch.from_numpy(X).requires_grad_()
    out = smooth(x)[np.arange(N), TARGET].sum()
    (slope,) = torch.autograd.grad(out, x)
    slope = slope.numpy()
    assert_allclose(everything.maps["gradient"], np.abs(slope).sum(1), atol=1e-12)
    wanted = (slope * (X - BASELINES["mean"])).sum(1)
    assert_allclose(everything.maps["input × gradient"], wanted, atol=1e-12)


def test_smoothgrad_shows_sizes_of_channels(smooth, everything):
    noisy = attribution.smoothgrad(smooth, X, TARGET, n_samples=EFFORT.n_noise, seed=0)
    assert_allclose(everything.maps["SmoothGrad"], np.abs(noisy.mean).sum(1), atol=1e-12)
    assert_allclose(everything.maps["SmoothGrad²"], noisy.mean_square.sum(1), atol=1e-12)
    assert (np.abs(noisy.mean).sum(1) > np.abs(noisy.mean.sum(1)) + 1e-9).any()


# Names, parts, seeds, costs


def test_names_in_the_order_of_the_matrix(everything):
    assert list(NAMES) == [
        *("random", "gradient", "SmoothGrad", "SmoothGrad²", "input × gradient"),
        *("IG, zero", "IG, mean", "IG, other"),
        *("Grad-CAM", "occlusion", "LIME", "LIME, converged", "IG sums", "|x − b|"),
    ]
    assert tuple(everything.maps) == NAMES
    assert set(everything.seconds) == set(NAMES)
    assert all(m.shape == (N, SIDE, SIDE) for m in everything.maps.values())
    assert tuple(explainers.names(["a"]))[5:7] == ("IG, a", "Grad-CAM")


@pytest.mark.parametrize("name", NAMES)
def test_one_alone_is_as_in_the_full_run(name, smooth, everything):
    alone = run(smooth, only=[name], batch_size=5)
    assert tuple(alone.maps) == (name,)
    assert_allclose(alone.maps[name], everything.maps[name], atol=1e-10)


def test_some_come_in_the_order_of_the_matrix(smooth):
    maps = run(smooth, only=["|x − b|", "SmoothGrad²", "random"]).maps
    assert tuple(maps) == ("random", "SmoothGrad²", "|x − b|")


@pytest.mark.parametrize("only", ["LIME", "LIME, converged", "gradient"])
def test_only_what_was_asked_for_is_charged(only, smooth):
    assert set(run(smooth, only=[only]).seconds) == {only}


@pytest.mark.parametrize("only", [["gradient"], ["LIME"]])
def test_masks_of_the_stop_rule_are_zero_where_it_was_not_asked_for(only, smooth):
    assert_array_equal(run(smooth, only=only).masks, 0)


def test_seed_changes_what_is_noisy_and_nothing_else(smooth, everything):
    other = run(smooth, seed=1).maps
    again = run(smooth, seed=0).maps
    for name, m in everything.maps.items():
        # Masks are asked in batches whose size is measured, so LIME may differ by rounding.
        assert_allclose(m, again[name], atol=1e-12)
        assert np.allclose(m, other[name], atol=1e-9) == (name not in explainers.NOISY), name
    first, second, _ = everything.maps["random"]
    assert not np.array_equal(first, second)
    assert set(explainers.NOISY) == {
        *("random", "SmoothGrad", "SmoothGrad²", "LIME", "LIME, converged"),
    }


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("rival", [None, RIVAL], ids=["alone", "lead"])
def test_calls_are_what_the_model_was_asked(name, rival, smooth):
    run(smooth, only=["occlusion"])  # looked into, and its best batch size measured, once
    Smooth.asked = Smooth.differentiated = 0
    found = run(smooth, only=[name], against=rival)
    table = explainers.calls(found, EFFORT, SIDE)
    assert list(table.index) == [name]
    # The mean number of masks is rounded.
    assert abs(table.loc[name, "forward"] - smooth.asked / N) <= 0.5 * (name in explainers.NOISY)
    assert table.loc[name, "backward"] == smooth.differentiated / N


def test_calls_of_all_in_a_table(everything):
    table = explainers.calls(everything, EFFORT, SIDE)
    assert isinstance(table, pd.DataFrame) and tuple(table.index) == NAMES
    assert list(table.columns) == ["forward", "backward"]
    assert table.loc["LIME"].tolist() == [EFFORT.n_masks, 0]
    assert table.loc["LIME, converged", "forward"] == round(everything.masks.mean())
    assert table.loc["occlusion"].tolist() == [50, 0]  # 7 x 7 patches and the image
    for side, patches in ((224, 196), (32, 64)):
        cost = explainers.calls(everything, EFFORT, side).loc["occlusion", "forward"]
        assert cost == patches + 1


def test_lime_is_charged_by_its_masks(smooth):
    effort = EFFORT._replace(n_masks=100, max_masks=5000, top_k=1)
    found = run(smooth, only=["LIME", "LIME, converged"], effort=effort)
    share = effort.n_masks / found.masks.mean()
    assert share < 0.6
    assert found.seconds["LIME"] / found.seconds["LIME, converged"] == pytest.approx(share, rel=0.2)


# Where and in which precision


@pytest.mark.parametrize("name", NAMES)
def test_images_are_taken_in_the_precision_of_the_model(name, smooth, everything):
    """As `attribution` and `perturb` take them."""
    x = X.astype(np.float32)
    found = explain(smooth, x, TARGET, CELLS, BASELINES, EFFORT, only=[name]).maps[name]
    assert_allclose(found, everything.maps[name], rtol=1e-3, atol=1e-4)


def test_lime_asks_a_model_where_it_lives(smooth, monkeypatch):
    """Batches come on the device of the prepared forward pass, here one that cannot compute."""
    place, real, seen = torch.device("meta"), runtime.forward, []

    def answer(batch):
        seen.append(batch.device.type)
        return np.random.default_rng(len(seen)).random((len(batch), CLASSES))

    def forward(model, x, *options, **named):
        if model is smooth:
            return runtime.Forward(answer, "torch", place, np.float64)
        return real(model, x, *options, **named)

    monkeypatch.setattr(runtime, "forward", forward)
    monkeypatch.setattr(runtime, "pick_device", torch.device)
    run(smooth, only=["LIME"])
    assert set(seen) == {"meta"}


# Errors


@pytest.mark.parametrize(
    ("options", "missing"),
    [({"control": "blur"}, "blur"), ({"baselines": {"zero": X}}, "mean")],
)
def test_needed_baselines_are_asked_for(options, missing, smooth):
    options = {"baselines": BASELINES, "control": "mean"} | options
    with pytest.raises(ValueError, match=rf"baselines must hold .*{missing}.*zero"):
        explain(smooth, X, TARGET, CELLS, options["baselines"], EFFORT, control=options["control"])


@pytest.mark.parametrize("only", [["gradients"], ["gradient", "IG, blur"], "gradient"])
def test_unknown_names_are_refused(only, smooth):
    with pytest.raises(ValueError, match=r"only must hold names of .*SmoothGrad.*got"):
        run(smooth, only=only)


def test_grad_cam_needs_a_convolution():
    flat = nn.Sequential(nn.Flatten(), nn.Linear(3 * SIDE**2, CLASSES).double()).eval()
    with pytest.raises(ValueError, match="no convolution"):
        run(flat, only=["Grad-CAM"])
    assert set(run(flat, only=["gradient"]).maps) == {"gradient"}
