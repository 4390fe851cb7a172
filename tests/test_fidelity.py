"""Fidelity curves against plain loops and numbers by hand; their scores against resampling."""

import warnings
from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from scipy.special import expit
from scipy.stats import spearmanr

from xaiutils import fidelity
from xaiutils.fidelity_curves import area
from xaiutils.perturb import Components

N, CLASSES, SHAPE = 6, 4, (3, 4, 5)
FIELDS = ("correct", "probability_label", "probability_predicted", "logit_label", "logit_predicted")
RNG = np.random.default_rng(0)
X = RNG.random((N, *SHAPE))
WEIGHTS = torch.tensor(RNG.normal(size=(2, 60, CLASSES)))
LABELS = np.array([[0, 0, 1, 1, 1], [0, 2, 2, 1, 0], [2, 2, 0, 0, 1], [2, 0, 1, 2, 2]])


def network(batch):
    """A small nonlinear classifier of the images X."""
    flat = batch.flatten(1) - 0.5
    return 3 * torch.tanh(flat @ WEIGHTS[0]) + flat @ WEIGHTS[1]


CLEAN = network(torch.tensor(X)).argmax(1).numpy()
Y = np.where(np.arange(N) < N // 2, CLEAN, (CLEAN + 1) % CLASSES)  # half are classified right


def linear(batch):
    """Logits 4 x_0 + 3 x_1 + 2 x_2 + x_3 and 4.5 of inputs (B, 4)."""
    logit = batch @ torch.tensor([4.0, 3.0, 2.0, 1.0], dtype=batch.dtype)
    return torch.stack([logit, torch.full_like(logit, 4.5)], dim=1)


def random_scores(seed=0, tail=SHAPE[1:], n=N):
    return np.random.default_rng(seed).random((n, *tail))


def run(scores, model=network, **options):
    return fidelity.curves(model, X, Y, scores, **{"filler": 0.25, "steps": 7, **options})


def made(mif, lif, fractions=None):
    """Curves whose every measure has the given per-image curves (n, K+1)."""
    both = np.stack([mif, lif], axis=1)
    fractions = np.linspace(0, 1, both.shape[2]) if fractions is None else fractions
    return fidelity.Curves(fractions, ("mif", "lif"), *[both] * 5, np.zeros(len(both), int))


def several(methods=("a", "b", "c", "random"), n=30, points=6, seed=0):
    """Correlated per-image curves of some methods, with uneven fractions and shared ends."""
    rng = np.random.default_rng(seed)
    fractions = np.array([0, 0.1, 0.3, 0.45, 0.8, 1.0])[:points]
    image = rng.random((n, 1)) * (1 - fractions) + 0.2
    result = {}
    for m, name in enumerate(methods):
        noise = rng.normal(0, 0.05, (2, n, points)) * fractions * (1 - fractions)
        lift = 0.0 if name == "random" else 0.2 + 0.1 * m
        bump = lift * fractions * (1 - fractions)
        result[name] = made(image - bump + noise[0], image + bump / 2 + noise[1], fractions)
    return result


def values_of(table, method):
    return table[table.method == method].set_index("quantity").value


# --- curves ---------------------------------------------------------------------------------------


def dense(x, y, scores, labels, filler, steps):
    """Plain loops: one image, order, step and position at a time; scores (n, d), labels (H, W)."""
    result = {name: np.empty((len(x), 2, steps + 1)) for name in FIELDS}
    for i in range(len(x)):
        d = len(scores[i])
        best_first = sorted(range(d), key=lambda j: -scores[i][j])
        predicted = None
        for o, ranking in enumerate([best_first, best_first[::-1]]):
            for k in range(steps + 1):
                hidden = set(ranking[: round(k * d / steps)])
                image = x[i].copy()
                for row, column in np.ndindex(image.shape[1:]):
                    if labels[row, column] in hidden:
                        image[:, row, column] = filler
                logits = network(torch.tensor(image)[None])[0].numpy()
                predicted = int(logits.argmax()) if predicted is None else predicted
                share = np.exp(logits) / np.exp(logits).sum()
                numbers = (share[y[i]], share[predicted], logits[y[i]], logits[predicted])
                for name, number in zip(FIELDS, (logits.argmax() == y[i], *numbers), strict=True):
                    result[name][i, o, k] = number
    return result


@pytest.mark.parametrize("steps", [1, 7, 20, 33])
def test_pixel_curves_are_those_of_plain_loops(steps):
    scores = random_scores()
    ours = run(scores, steps=steps)
    pixels = np.arange(20).reshape(4, 5)
    expected = dense(X, Y, scores.reshape(N, -1), pixels, 0.25, steps)
    for name in FIELDS:
        assert_allclose(getattr(ours, name), expected[name], rtol=1e-5, err_msg=name)
    assert expected["correct"].any() and not expected["correct"].all()
    assert_array_equal(ours.predicted, CLEAN)
    assert_array_equal(ours.fractions, [round(k * 20 / steps) / 20 for k in range(steps + 1)])


def test_superpixel_curves_are_those_of_plain_loops():
    scores = random_scores(tail=(3,))
    ours = run(scores, components=Components(LABELS), steps=3)
    expected = dense(X, Y, scores, LABELS, 0.25, 3)
    assert_allclose(ours.logit_predicted, expected["logit_predicted"], rtol=1e-5)
    assert_array_equal(ours.correct, expected["correct"])


def test_superpixels_of_each_image_may_differ():
    maps = [LABELS, np.arange(20).reshape(4, 5) // 4] * 3  # d = 3 and d = 5
    scores = [np.random.default_rng(i).random(m.max() + 1) for i, m in enumerate(maps)]
    ours = run(scores, components=[Components(m) for m in maps], steps=5)
    assert_array_equal(ours.fractions, np.arange(6) / 5)
    for i, labels in enumerate(maps):
        expected = dense(X[[i]], Y[[i]], [scores[i]], labels, 0.25, 5)
        assert_allclose(ours.logit_label[[i]], expected["logit_label"], rtol=1e-5)


def test_a_linear_model_by_hand():
    x, y = np.ones((1, 4)), np.array([0])
    c = fidelity.curves(linear, x, y, [[4, 3, 2, 1]], filler=0.0, steps=4)
    assert_array_equal(c.fractions, [0, 0.25, 0.5, 0.75, 1])
    assert_array_equal(c.curve("mif", "logit"), [[10, 6, 3, 1, 0]])
    assert_array_equal(c.curve("lif", "logit"), [[10, 9, 7, 4, 0]])
    assert_array_equal(c.curve("mif"), [[1, 1, 0, 0, 0]])
    assert_array_equal(c.curve("lif"), [[1, 1, 1, 0, 0]])
    probability = expit(np.array([10, 6, 3, 1, 0]) - 4.5)
    assert_allclose(c.curve("mif", "probability")[0], probability, rtol=1e-6)

    values = values_of(fidelity.summary({"a": c}, draws=3), "a")
    by_hand = {
        "auc_mif": 0.375, "auc_lif": 0.625, "F": 0.25, "F/(a0-a1)": 0.25, "D": 0.625, "P": 0.375,
        "P/D": 0.6, "P*": 0.375, "F*": 0.25, "P*/D": 0.6, "F_trunc": 0.125, "D_trunc": 0.125,
        "P_trunc": 0, "P/D_trunc": 0, "AOPC": (probability[0] - probability[1:]).mean(),
    }  # fmt: skip
    assert_allclose(values[list(by_hand)], list(by_hand.values()), rtol=1e-6, atol=1e-12)
    on_logits = values_of(fidelity.summary({"a": c}, measure="logit", draws=3), "a")
    assert_allclose(on_logits[["auc_mif", "auc_lif", "F/(a0-a1)"]], [3.75, 6.25, 0.25])


def test_the_label_and_the_predicted_class_are_kept_apart():
    c = fidelity.curves(linear, np.ones((1, 4)), [1], [[4, 3, 2, 1]], filler=0.0, steps=2)
    assert c.predicted.tolist() == [0]
    assert_array_equal(c.curve("mif", "logit"), [[10, 3, 0]])
    assert_array_equal(c.curve("mif", "logit_label"), [[4.5, 4.5, 4.5]])
    assert_array_equal(c.curve("mif"), [[0, 1, 1]])
    assert_allclose(c.curve("lif", "probability_label")[0], expit([-5.5, -2.5, 4.5]), rtol=1e-6)


def test_one_pass_shares_the_ends_and_skips_repeated_steps():
    seen = []

    def counting(batch):
        seen.append(len(batch))
        return network(batch)

    scores = {"a": random_scores(1), "b": random_scores(2), "c": random_scores(3)}
    found = run(scores, counting, steps=7)
    assert sum(seen) == N * (3 * 2 * (7 - 1) + 2)
    assert seen[0] > 2  # no separate call for the ends
    for field in FIELDS:
        ends = np.stack([getattr(c, field)[:, :, [0, -1]] for c in found.values()])
        assert_array_equal(ends, np.broadcast_to(ends[:1, :, :1], ends.shape))
    seen.clear()
    run(scores["a"], counting, steps=100)  # only 20 pixels to hide
    assert sum(seen) == N * (2 * 19 + 2)


def test_each_map_has_the_curves_it_has_alone():
    scores = {"a": random_scores(1), "flat": np.zeros((N, 4, 5)), "b": random_scores(2)}
    together = run(scores)
    assert list(together) == list(scores)
    for name, value in scores.items():
        alone = run(value)
        assert_allclose(together[name].logit_label, alone.logit_label, rtol=1e-6)
        swapped = run(value, orders=("lif", "mif"))
        assert_allclose(swapped.curve("lif"), alone.curve("lif"))
        assert_allclose(run(value, orders=["lif"]).correct, alone.correct[:, 1:])


def test_masks_hide_the_exact_number_and_are_complements():
    rows = []

    def spy(x, components, masks):
        rows.append(masks.copy())
        return 0.0

    scores, steps = random_scores(), 8
    run(scores, filler=spy, steps=steps, batch_size=1000)
    ends, mif, lif = np.split(rows[0], [2, 2 + steps - 1])
    hidden = np.rint(np.arange(1, steps) * 20 / steps)
    assert_array_equal(ends, [[True] * 20, [False] * 20])
    assert_array_equal((~mif).sum(axis=1), hidden)
    assert_array_equal((~lif).sum(axis=1), hidden)
    pairs = [(k, j) for k, j in np.ndindex(7, 7) if hidden[k] + hidden[j] == 20]
    assert len(pairs) >= 3
    for k, j in pairs:
        assert_array_equal(mif[k], ~lif[j])
    assert scores[0].ravel()[~mif[2]].min() > scores[0].ravel()[mif[2]].max()


def test_opposite_maps_have_opposite_fidelity_and_monotone_maps_the_same():
    e = random_scores()
    places = np.unique(e, return_inverse=True)[1].reshape(e.shape)
    maps = {"e": e, "opposite": -e, "stretched": np.exp(9 * e) - 50, "integer": places}
    found = run(maps)
    assert_allclose(found["opposite"].logit_label, found["e"].logit_label[:, ::-1], rtol=1e-6)
    for name in ("stretched", "integer"):
        assert_array_equal(found[name].logit_label, found["e"].logit_label)
    table = fidelity.summary(found, measure="logit", draws=2)
    assert values_of(table, "opposite")["F"] == pytest.approx(-values_of(table, "e")["F"])
    assert abs(values_of(table, "e")["F"]) > 0.01


def test_ties_fall_at_random_and_a_constant_map_has_no_fidelity():
    n, d = 60, 12
    x, y = np.ones((n, d)), np.zeros(n, int)
    weights = torch.arange(d, 0, -1, dtype=torch.float64)  # first positions matter most

    def model(batch):
        return torch.stack([batch @ weights, torch.full((len(batch),), 40.0)], dim=1)

    maps = {
        "constant": np.zeros((n, d)),
        "index": np.tile(-np.arange(d), (n, 1)),
        "uniform": random_scores(1, (d,), n),
    }
    found = fidelity.curves(model, x, y, maps, filler=0.0, steps=12)
    table = fidelity.summary(found).query("quantity == 'F'").set_index("method")
    for name in ("constant", "uniform"):
        assert table.low[name] < 0 < table.high[name]
        assert table.high[name] - table.low[name] < 0.2
    assert table.low["index"] > 0.3
    again, other = (
        fidelity.curves(model, x, y, maps["constant"], filler=0.0, steps=12, seed=s) for s in (0, 1)
    )
    assert_array_equal(again.logit_label, found["constant"].logit_label)
    assert (other.logit_label != again.logit_label).any()
    assert len(np.unique(again.curve("mif", "logit"), axis=0)) > n / 2  # images draw apart


def test_all_channels_of_a_pixel_go_together():
    def hidden(batch):  # number of hidden values of each channel
        return (batch == -1).sum(dim=(2, 3)).double()

    found = fidelity.curves(hidden, X, np.full(N, 2), random_scores(), filler=-1, steps=4)
    for field in ("logit_label", "logit_predicted"):
        expected = np.broadcast_to([0, 5, 10, 15, 20], (N, 2, 5))
        assert_array_equal(getattr(found, field), expected)


def test_fillers_of_each_image_channel_and_callables():
    per_image = np.random.default_rng(1).random(X.shape)
    ours = run(random_scores(), filler=torch.tensor(per_image))
    blank = network(torch.tensor(per_image)).numpy()
    assert_allclose(ours.logit_label[:, 0, -1], blank[np.arange(N), Y], rtol=1e-6)
    for i in range(N):  # the same filler at every step
        alone = fidelity.curves(
            network, X[[i]], Y[[i]], random_scores()[[i]], filler=per_image[i], steps=7
        )
        assert_allclose(ours.logit_label[i], alone.logit_label[0], rtol=1e-6)
    channel = np.array([0.1, 0.5, 0.9])[:, None, None]
    one, other = (run(random_scores(), filler=f) for f in (channel, lambda x, c, m: channel))
    assert_array_equal(one.logit_label, other.logit_label)
    means = run(random_scores(tail=(3,)), filler="mean", components=Components(LABELS), steps=3)
    image = np.stack([Components(LABELS).means(x) for x in X])
    expected = network(torch.tensor(image)).numpy()[np.arange(N), Y]
    assert_allclose(means.logit_label[:, 1, -1], expected, rtol=1e-6)


def test_batch_size_and_kind_of_input_do_not_matter():
    torch_model = torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(24, CLASSES)
    )
    for p in torch_model.parameters():
        p.data = torch.tensor(np.random.default_rng(p.numel()).normal(size=p.shape))
    x, scores = torch.tensor(X), torch.tensor(random_scores())
    ones = run(random_scores(), torch_model, batch_size=1)
    many = fidelity.curves(
        torch_model, x, torch.tensor(Y), scores, filler=0.25, steps=7, batch_size=64
    )
    assert_array_equal(ones.correct, many.correct)
    for name in FIELDS[1:]:
        assert_allclose(getattr(ones, name), getattr(many, name), atol=1e-5)
        assert getattr(ones, name).dtype == np.float32


def test_artifact_follows_the_dial_and_the_ranking_stays():
    n, d = 40, 20
    rng = np.random.default_rng(3)
    important = rng.permuted(np.tile(np.arange(d) < 5, (n, 1)), axis=1)
    x, y = 1.0 + important, np.zeros(n, int)
    maps = {
        "good": important + rng.normal(0, 0.3, (n, d)),
        "poor": important + rng.normal(0, 1.5, (n, d)),
        "random": rng.random((n, d)),
    }
    artifact, fidelities = [], []
    for dial in (0.05, 0.2, 0.6):

        def model(batch, dial=dial):
            kept = (batch == 2).sum(1) - dial * (batch == 0).sum(1)
            return torch.stack([kept, torch.zeros_like(kept)], dim=1)

        found = fidelity.curves(model, x, y, maps, filler=0.0, steps=20)
        table = fidelity.summary(found, measure="logit", draws=2)
        artifact.append(values_of(table, "good")["P"])
        fidelities.append([values_of(table, m)["F"] for m in maps])
    assert artifact[0] < artifact[1] < artifact[2]
    assert_allclose(np.diff(artifact), [0.15 * d / 2, 0.4 * d / 2], rtol=1e-5)
    assert_allclose(fidelities[1:], fidelities[:-1], atol=1e-5)
    assert fidelities[0][0] > fidelities[0][1] + 0.5 > fidelities[0][2] + 0.5


# --- areas ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", [0.05, 0.25, 0.3, 0.95, 1.0])
def test_area_is_that_of_straight_lines_up_to_the_end(end):
    fractions = np.array([0, 0.1, 0.25, 0.25, 0.7, 1])  # steps that hide no more have no width
    values = np.random.default_rng(3).normal(size=(2, 4, 6))
    fine = np.union1d(np.linspace(0, end, 7), fractions[fractions < end])
    expected = [
        [np.trapezoid(np.interp(fine, np.delete(fractions, 3), row), fine) for row in rows]
        for rows in np.delete(values, 3, axis=-1)
    ]
    values[..., 3] = values[..., 2]
    assert_allclose(area(values, fractions, end), expected)
    if end == 1:
        assert_allclose(area(values, fractions), expected)


def test_drop_is_what_each_image_has_lost():
    one = several()["a"]
    one = replace(one, correct=np.random.default_rng(4).random(one.correct.shape) < 0.5)
    right = one.correct[:, 1].astype(int)
    drop = one.drop("lif")
    assert_array_equal(drop, right[:, [0]] - right)
    assert drop.dtype == float and drop.min() < 0 < drop.max()
    logits = one.logit_predicted[:, 0].astype(float)
    assert_array_equal(one.drop("mif", "logit"), logits[:, [0]] - logits)
    means = fidelity.summary({"a": one}, draws=1).set_index("quantity")["value"]
    assert area(drop, one.fractions).mean() == pytest.approx(means["P"])


# --- summary --------------------------------------------------------------------------------------


def test_integrals_and_identities_of_each_method():
    data = several()
    table = fidelity.summary(data, draws=2, f_max=0.4)
    f = data["a"].fractions
    area = {name: [np.trapezoid(c.curve(o).mean(0), f) for o in ("mif", "lif")]
            for name, c in data.items()}  # fmt: skip
    a0 = {name: c.curve("mif").mean(0)[0] for name, c in data.items()}
    lowest = np.min([a0[m] - data[m].curve("lif").mean(0) for m in "abc"], axis=0)
    fine = np.linspace(0, 0.4, 4001)
    for name, c in data.items():
        v = values_of(table, name)
        mif, lif = area[name]
        mean = {o: c.curve(o).mean(0) for o in ("mif", "lif")}
        assert_allclose(
            [v.auc_mif, v.auc_lif, v["D"], v["P"]], [mif, lif, a0[name] - mif, a0[name] - lif]
        )
        assert v["D"] == pytest.approx(v["F"] + v["P"]) == pytest.approx(v["F*"] + v["P*"])
        assert v["P/D"] == pytest.approx(v["P"] / v["D"])
        assert v["F/(a0-a1)"] == pytest.approx(v["F"] / (mean["mif"][0] - mean["mif"][-1]))
        assert v["P*"] == pytest.approx(np.trapezoid(lowest, f))
        if name != "random":
            assert v["P*"] <= v["P"] + 1e-12
        assert v["gain_mif"] + v["gain_lif"] == pytest.approx(v["F"])
        assert v["gain_mif"] == pytest.approx(np.mean(area["random"]) - mif)
        assert v["F-F_random"] == pytest.approx(v["F"] - (area["random"][1] - area["random"][0]))
        cut = {o: np.trapezoid(np.interp(fine, f, mean[o]), fine) for o in mean}
        assert v["F_trunc"] == pytest.approx(cut["lif"] - cut["mif"], abs=1e-6)
        assert v["D_trunc"] == pytest.approx(0.4 * a0[name] - cut["mif"], abs=1e-6)
        assert v["P/D_trunc"] == pytest.approx(v["P_trunc"] / v["D_trunc"])
    assert values_of(table, "a")["P*"] < values_of(table, "a")["P"] - 1e-3
    whole = values_of(fidelity.summary(data, draws=2, f_max=1.0), "a")
    assert_allclose([whole["F_trunc"], whole["P_trunc"]], [whole["F"], whole["P"]])


def test_the_scores_of_the_literature_are_on_probabilities():
    c = run(random_scores())
    v = values_of(fidelity.summary({"a": c}, measure="logit_label", draws=2), "a")
    mif, lif = (c.curve(o, "probability").mean(0) for o in ("mif", "lif"))
    assert v["SRG"] == pytest.approx(np.trapezoid(lif - mif, c.fractions))
    assert v.deletion == pytest.approx(np.trapezoid(mif, c.fractions))
    assert v.insertion == pytest.approx(np.trapezoid(lif[::-1], 1 - c.fractions[::-1]))
    assert v["AOPC"] == pytest.approx(np.mean([mif[0] - mif[k] for k in range(1, 8)]))
    same = values_of(fidelity.summary({"a": c}, measure="probability", draws=2), "a")
    assert same["F"] == pytest.approx(v["SRG"])
    assert v["F"] != pytest.approx(v["SRG"])
    assert "gain_mif" not in v  # no random reference here
    assert "gain_mif" in values_of(fidelity.summary({"a": c}, random="a", draws=2), "a")


def resampled(data, statistic, draws=400, seed=5):
    """The statistic on each resample of the images, spelled out, and its 90 % interval."""
    n = len(next(iter(data.values())).predicted)
    rng = np.random.default_rng(seed)
    values = []
    for count in rng.multinomial(n, [1 / n] * n, size=draws):
        images = np.repeat(np.arange(n), count)
        values.append(statistic({m: made(c.curve("mif")[images], c.curve("lif")[images],
                                         c.fractions) for m, c in data.items()}))  # fmt: skip
    return np.percentile(values, [5, 95])


def area_of(c, order):
    return np.trapezoid(c.curve(order).mean(0), c.fractions)


def common_artifact(data):
    drops = [c.curve("lif").mean(0)[0] - c.curve("lif").mean(0) for c in data.values()]
    return np.trapezoid(np.min(drops, axis=0), data["a"].fractions)


def test_intervals_are_those_of_resampling_images():
    data = several(("a", "b", "c"))
    options = {"draws": 400, "level": 0.9, "seed": 5}
    table = fidelity.summary(data, **options).set_index(["method", "quantity"])
    expected = {
        ("a", "F"): lambda d: area_of(d["a"], "lif") - area_of(d["a"], "mif"),
        ("b", "auc_mif"): lambda d: area_of(d["b"], "mif"),
        ("c", "P*"): common_artifact,
        ("c", "P/D"): lambda d: (
            (d["c"].curve("lif").mean(0)[0] - area_of(d["c"], "lif"))
            / (d["c"].curve("mif").mean(0)[0] - area_of(d["c"], "mif"))
        ),
    }
    for key, statistic in expected.items():
        row = table.loc[key]
        assert_allclose([row.low, row.high], resampled(data, statistic), rtol=1e-9)
        assert row.low < row.value < row.high
        assert row.n == 30
    ours = fidelity.difference(data, "b", "a", "auc_lif", **options)
    low_high = resampled(data, lambda d: area_of(d["b"], "lif") - area_of(d["a"], "lif"))
    assert_allclose(ours[1:3], low_high, rtol=1e-9)
    gap = table.value["b", "auc_lif"] - table.value["a", "auc_lif"]
    assert ours.value == pytest.approx(gap)


def test_the_interval_is_paired():
    data = several(("a", "b"), n=200)
    table = fidelity.summary(data).set_index(["method", "quantity"])
    half = (table.high - table.low) / 2
    independent = np.hypot(half["a", "auc_mif"], half["a", "auc_lif"])
    assert half["a", "F"] < independent / 5  # images differ far more than the two orders do
    one = data["a"]
    per_image = np.trapezoid(one.curve("lif") - one.curve("mif"), one.fractions, axis=1)
    normal = 1.96 * per_image.std() / np.sqrt(200)
    assert half["a", "F"] == pytest.approx(normal, rel=0.1)
    ours = fidelity.difference(data, "b", "a", "auc_mif")
    independent = np.hypot(half["a", "auc_mif"], half["b", "auc_mif"])
    assert ours.high - ours.low < 2 * independent / 5
    assert fidelity.difference(data, "a", "a") == (0, 0, 0, 200)


def test_ratios_without_a_drop_are_missing_and_silent():
    flat = made(np.ones((4, 5)), np.ones((4, 5)))
    half = made(np.array([[1, 0.0]] + [[1, 1.0]] * 3), np.ones((4, 2)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        table = fidelity.summary({"flat": flat}).set_index("quantity")
        some = fidelity.summary({"half": half}).set_index("quantity")
    assert table.loc["P/D", ["value", "low", "high"]].isna().all()
    assert table.loc["D", ["value", "low", "high"]].eq(0).all()
    assert some.loc["P/D", ["value", "low", "high"]].eq(0).all()  # draws without image 0 left out


# --- agreement of rankings ------------------------------------------------------------------------


def test_rank_agreement_is_the_mean_spearman_of_pairs():
    rng = np.random.default_rng(0)
    tables = {}
    for setting in ("zero", "mean", "blur"):
        shift = rng.normal(0, 0.3, 5)  # the artifact of a setting moves both curves
        tables[setting] = {}
        for m in range(4):
            mid = rng.normal(0, 0.1, (2, 25, 1)) + shift[m]
            curve = [np.hstack([np.ones((25, 1)), mid[o] + (m / 8 if o else 0), np.zeros((25, 1))])
                     for o in (0, 1)]  # fmt: skip
            tables[setting][f"m{m}"] = made(*curve)
        best = made(np.zeros((25, 3)), np.ones((25, 3)))
        tables[setting]["random"] = best  # would raise the agreement
    tables["mean"] = dict(reversed(tables["mean"].items()))  # order of the keys is no matter

    def mean_spearman(score, images=slice(None)):
        rows = []
        for table in tables.values():
            picked = {m: made(c.curve("mif")[images], c.curve("lif")[images])
                      for m, c in table.items()}  # fmt: skip
            rows.append([score(picked[f"m{m}"]) for m in range(4)])
        return np.mean([spearmanr(a, b).statistic for a, b in combinations(rows, 2)])

    scores = {
        "auc_mif": lambda c: area_of(c, "mif"),
        "auc_lif": lambda c: area_of(c, "lif"),
        "F": lambda c: area_of(c, "lif") - area_of(c, "mif"),
    }
    ours = fidelity.rank_agreement(tables, draws=60, seed=2).set_index("quantity")
    draws = np.random.default_rng(2).multinomial(25, [1 / 25] * 25, size=60)
    images = [np.repeat(np.arange(25), count) for count in draws]
    drawn = {}
    for name, score in scores.items():
        assert ours.value[name] == pytest.approx(mean_spearman(score))
        drawn[name] = np.array([mean_spearman(score, i) for i in images])
    for name in ("auc_mif", "auc_lif"):
        row = ours.loc[f"F-{name}"]
        assert row.value == pytest.approx(ours.value["F"] - ours.value[name])
        low_high = np.percentile(drawn["F"] - drawn[name], [2.5, 97.5])
        assert_allclose([row.low, row.high], low_high, atol=1e-12)
    low_high = np.percentile(drawn["F"], [2.5, 97.5])
    assert_allclose(ours.loc["F", ["low", "high"]].astype(float), low_high, atol=1e-12)
    assert ours.value["F"] > 0.9 > ours.value["auc_mif"] + 0.3


# --- what is refused ------------------------------------------------------------------------------

FLAT = np.zeros((N, 4, 5))
NAN = np.where(np.arange(N)[:, None, None] == 3, np.nan, FLAT)


@pytest.mark.parametrize(
    ("scores", "options", "message"),
    [
        (FLAT, {"filler": "mean"}, '"mean" of components of one position is the input itself'),
        (FLAT, {"filler": np.zeros((2, *SHAPE))}, r"filler .* shape of x, \(6, 3, 4, 5\)"),
        (FLAT, {"filler": "gray"}, "filler must be .*gray"),
        (FLAT, {"steps": 0}, "steps must be a positive integer, got 0"),
        (FLAT, {"orders": ("mif", "best")}, "orders must be .*'best'"),
        (FLAT, {"orders": ("mif", "mif")}, "orders must be distinct"),
        (FLAT, {"orders": ()}, "orders must be"),
        (
            FLAT,
            {"components": Components(LABELS)},
            r"scores must .*\(d,\).*6 of shapes \[\(4, 5\)\]",
        ),
        (FLAT, {"components": [Components(LABELS)]}, "components must be .* list of 6"),
        (FLAT[:3], {}, "scores must hold 6 maps.*got 3"),
        (FLAT[:, :2], {}, r"tail broadcasts .*\(6, 2, 5\)"),
        ({"a": FLAT, "b": FLAT[:, :1]}, {}, "scores must all have one shape"),
        ({}, {}, "at least one map"),
        ({"a": FLAT, "odd": NAN}, {}, "odd: scores of image 3 hold NaN"),
    ],
)
def test_bad_arguments_of_curves_are_named(scores, options, message):
    with pytest.raises(ValueError, match=message):
        run(scores, **options)


@pytest.mark.parametrize(
    ("y", "message"),
    [
        (np.zeros(N), "y must hold 6 class indices"),
        (Y[:3], "y must hold 6 class indices"),
        (Y - 5, "class indices >= 0"),
        (np.full(N, CLASSES), r"y must hold classes 0\.\.3, got 4"),
    ],
)
def test_bad_labels_are_named(y, message):
    with pytest.raises(ValueError, match=message):
        fidelity.curves(network, X, y, FLAT, filler=0.0)


def test_filler_has_no_default_and_a_batch_is_needed():
    with pytest.raises(TypeError, match="filler"):
        fidelity.curves(network, X, Y, FLAT)
    with pytest.raises(ValueError, match=r"x must be a batch .*\(6,\)"):
        fidelity.curves(network, Y, Y, FLAT, filler=0.0)


def test_what_summaries_refuse_is_named():
    data = several()
    for options, message in [
        ({"f_max": 0}, r"f_max must be in \(0, 1\], got 0"),
        ({"draws": 0}, "draws must be a positive integer"),
        ({"level": 95}, r"level must be in \(0, 1\), got 95"),
        ({"measure": "loss"}, "measure must be one of .*'loss'"),
    ]:
        with pytest.raises(ValueError, match=message):
            fidelity.summary(data, **options)
    with pytest.raises(ValueError, match=r"order must be one of .*'lif'"):
        run(FLAT, orders=["mif"]).curve("lif")
    with pytest.raises(ValueError, match=r"'a' must have both orders, got \('mif',\)"):
        fidelity.summary({"a": run(FLAT, orders=["mif"])})
    with pytest.raises(ValueError, match="'b' cannot be paired with those of 'a'"):
        fidelity.summary({"a": data["a"], "b": several(n=31)["b"]})
    with pytest.raises(ValueError, match="'b' cannot be paired with those of 'a'"):
        fidelity.summary({"a": run(FLAT), "b": run(FLAT, steps=6)})
    with pytest.raises(ValueError, match="at least one method"):
        fidelity.summary({})
    with pytest.raises(ValueError, match=r"quantity must be one of .*'AUC'"):
        fidelity.difference(data, "a", "b", "AUC")
    with pytest.raises(ValueError, match=r"a and b must be methods .*'z'"):
        fidelity.difference(data, "a", "z")
    with pytest.raises(ValueError, match="at least 2 settings"):
        fidelity.rank_agreement({"zero": data})
    with pytest.raises(ValueError, match="same 2 or more methods"):
        fidelity.rank_agreement({"zero": data, "mean": several(("a", "b"))})
    with pytest.raises(ValueError, match=r"same images, got \[30, 31\]"):
        fidelity.rank_agreement({"zero": data, "mean": several(n=31)})
