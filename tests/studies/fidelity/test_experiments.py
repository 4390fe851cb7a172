"""Experiments of notebook 03 against small cases that can be done by hand."""

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from torch import nn

from xaiutils import fidelity, intervals
from xaiutils.studies.fidelity import experiments as study
from xaiutils.studies.fidelity import maps


class Bright(nn.Module):
    """Class 1 if the weighted sum of the pixels is positive."""

    def __init__(self, weights):
        super().__init__()
        self.weights = nn.Parameter(torch.as_tensor(weights, dtype=torch.float32))

    def forward(self, x):
        score = (x[:, 0] * self.weights).sum((1, 2)) - 0.25
        return torch.stack([-score, score], dim=1)


@pytest.fixture(scope="module")
def setting():
    rng = np.random.default_rng(0)
    x = rng.random((30, 1, 4, 4)).astype(np.float32)
    model = Bright(rng.normal(size=(4, 4))).eval()
    with torch.no_grad():
        y = model(torch.from_numpy(x)).argmax(1).numpy()
    y[:3] = 1 - y[:3]  # some are wrong
    scores = {"good": x[:, 0] * rng.random((4, 4)), "random": rng.random((30, 4, 4))}
    curves = fidelity.curves(model, x, y, scores, filler=0.0, steps=8)
    return model, x, y, scores, curves


def test_one_image_says_nothing_of_others(setting):
    model, x, y, scores, _ = setting
    maps_of_one = {name: values[5:6] for name, values in scores.items()}
    one = fidelity.curves(model, x[5:6], y[5:6], maps_of_one, filler=0.0, steps=8)
    found = [study.relative_area(one["good"]), study.paired_widths(one["good"])]
    found.append(study.filler_spread({"black": one, "white": one})[2])
    assert all(np.isnan(e.low) and np.isnan(e.high) and e.n == 1 for e in found)


def test_thinned_curves_are_those_of_fewer_steps(setting):
    model, x, y, scores, curves = setting
    thin = study.thinned(curves, 2)
    coarse = fidelity.curves(model, x, y, scores, filler=0.0, steps=4)
    for name in scores:
        assert_allclose(thin[name].fractions, coarse[name].fractions)
        assert (thin[name].correct == coarse[name].correct).all()
        assert_allclose(thin[name].logit_label, coarse[name].logit_label, atol=1e-5)
    with pytest.raises(ValueError, match="divide the 8 steps, got 3"):
        study.thinned(curves, 3)


def test_points_are_shares_with_wilson_intervals(setting):
    *_, curves = setting
    table = study.points(curves)
    row = table[(table.method == "good") & (table.order == "lif")].iloc[3]
    right = curves["good"].correct[:, 1, 3]
    assert row.value == right.mean()
    assert (row.low, row.high) == intervals.wilson(right.sum(), 30)


def test_swapped_masks_are_those_of_the_next_image(setting):
    model, x, y, scores, _ = setting
    swap = study.swapped(model, x, y, {"good": scores["good"]}, filler=0.0, steps=8, seed=0)
    for i in (0, 7):
        j = (i - 1) % 30
        alone = fidelity.curves(
            model, x[i : i + 1], y[i : i + 1], scores["good"][j : j + 1], filler=0.0, steps=8
        )
        assert (swap["good"].correct[i, 0] == alone.correct[0, 0]).all()


def test_estimates_of_the_artifact_are_areas_of_drops(setting):
    model, x, y, scores, curves = setting
    swap = study.swapped(model, x, y, {"good": scores["good"]}, filler=0.0, steps=8, seed=0)
    table = study.artifact_estimates(curves, swap).set_index("curve")
    summary = fidelity.summary(curves).set_index(["method", "quantity"])["value"]
    assert table.value["own LIF"] == pytest.approx(summary["good", "P"])
    assert table.value["MIF drop D"] == pytest.approx(summary["good", "D"])
    by_random = (summary["random", "P"] + summary["random", "D"]) / 2
    assert table.value["random"] == pytest.approx(by_random)


def test_relative_area_folds_its_interval(setting):
    *_, curves = setting
    good = study.relative_area(curves["good"])
    area = fidelity.summary(curves).set_index(["method", "quantity"])["value"]["good", "F"]
    assert good.value == pytest.approx(abs(area) / curves["good"].correct[:, 0, 0].mean())
    nothing = study.relative_area(curves["random"])
    assert nothing.low == 0 < nothing.high
    assert good.low <= good.value <= good.high


def test_filler_spread_is_the_pooled_share(setting):
    model, x, y, scores, _ = setting
    good = {"good": scores["good"]}
    tables = study.by_filler(model, x, y, good, {"zero": 0.0, "one": 1.0}, steps=4, seed=0)
    most, least, gap = study.filler_spread(tables)
    shares = {
        name: fidelity.summary(c).set_index("quantity")["value"]["P/D"]
        for name, c in tables.items()
    }
    assert {most, least} == {"zero", "one"}
    assert gap.value == pytest.approx(shares[most] - shares[least]) and gap.value > 0


def test_pairing_narrows_what_the_orders_share(setting):
    *_, curves = setting
    one = curves["good"]
    ratio = study.paired_widths(one)
    mif, lif = (np.trapezoid(one.curve(o).astype(float), one.fractions, axis=1) for o in one.orders)
    expected = np.sqrt(mif.var() + lif.var()) / (lif - mif).std()
    assert ratio.value == pytest.approx(expected)
    assert ratio.low < expected < ratio.high


def test_models_are_compared_image_by_image(setting):
    model, x, y, scores, curves = setting
    other = fidelity.curves(model, x, y, scores, filler=0.5, steps=8)
    change = study.between_models(curves, other, ["good"], "auc_lif")
    before, after = (
        fidelity.summary(c).set_index(["method", "quantity"])["value"]["good", "auc_lif"]
        for c in (curves, other)
    )
    assert change.value == pytest.approx(after - before)
    with pytest.raises(ValueError, match="quantity must be"):
        study.between_models(curves, other, ["good"], "P")


def test_early_drop_takes_the_nearest_step(setting):
    *_, curves = setting
    right = curves["good"].curve("lif").astype(float)
    found = study.early_drop(curves, ["good"], share=0.3)
    assert found.value == pytest.approx((right[:, 0] - right[:, 2]).mean())


def test_gradient_maps_of_a_linear_model(setting):
    model, x, *_ = setting
    target = np.ones(len(x), int)
    found = maps.gradient_maps(
        model, x, target, mean=(0.5,), n_noise=2, ig_steps=2, seed=0, batch_size=8
    )
    weights = model.weights.detach().numpy()
    assert_allclose(found["gradient, signed"][3], weights, atol=1e-6)
    assert_allclose(found["gradient"][3], np.abs(weights), atol=1e-6)
    assert_allclose(found["SmoothGrad²"][3], weights**2, atol=1e-6)
    assert_allclose(found["input × gradient, signed"], weights * (x[:, 0] - 0.5), atol=1e-6)
    expected = np.abs(weights * (x[:, 0] - 0.5))
    assert_allclose(found["integrated gradients"], expected, atol=1e-6)
    again = maps.gradient_maps(
        model, x[:2], target[:2], mean=(0.5,), n_noise=2, ig_steps=2, seed=0, batch_size=1
    )
    assert (again["random"] == found["random"][:2]).all()
    assert (found["random"][0] != found["random"][1]).any()


def test_grad_cam_looks_at_the_last_convolution():
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Conv2d(2, 3, 3), nn.Flatten())
    assert maps.last_convolution(net) is net[2]
    with pytest.raises(ValueError, match="no convolution"):
        maps.last_convolution(nn.Linear(2, 2))
