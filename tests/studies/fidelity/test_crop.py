"""Crop and resize: rectangles, scores and rank agreement on cases worked out by hand."""

import numpy as np
import pytest
import torch
from torch.nn import functional

from xaiutils import fidelity
from xaiutils.studies.fidelity import crop


def spots(*places, shape=(10, 10)):
    """A map of zeros with decreasing scores 100, 99, ... at these places."""
    scores = np.zeros(shape)
    for k, place in enumerate(places):
        scores[place] = 100 - k
    return scores


class Brightness(torch.nn.Module):
    """Logits 0 and 8 times the mean of the image."""

    def forward(self, x):
        mean = x.mean((1, 2, 3))
        return torch.stack([torch.zeros_like(mean), 8 * mean], dim=1)


def test_rectangles_are_tight_and_grow_with_the_share():
    scores = spots((2, 3), (4, 1), (9, 9), shape=(10, 20))
    found = crop.boxes(scores, (0.005, 0.01, 0.015, 0.001, 1.0))
    expected = [(2, 3, 3, 4), (2, 5, 1, 4), (2, 10, 1, 10), (2, 3, 3, 4), (0, 10, 0, 20)]
    assert [tuple(box) for box in found] == expected


def test_rectangles_against_a_search_for_the_kept_pixels():
    scores = np.random.default_rng(0).normal(size=(7, 9)) + 5 * np.eye(7, 9)
    for share, (top, bottom, left, right) in zip(crop.SHARES, crop.boxes(scores), strict=True):
        kept = scores >= np.sort(scores.ravel())[-max(round(share * 63), 1)]
        rows, columns = np.nonzero(kept)
        assert (top, bottom) == (rows.min(), rows.max() + 1)
        assert (left, right) == (columns.min(), columns.max() + 1)


def test_ties_depend_on_seed_and_image_and_do_not_favour_the_first_pixels():
    flat = np.zeros((20, 20))
    draws = [tuple(crop.boxes(flat, [1 / 400], image=i)[0]) for i in range(40)]
    assert len(set(draws)) > 30
    assert draws[0] != tuple(crop.boxes(flat, [1 / 400], seed=1)[0])
    assert draws[3] == tuple(crop.boxes(flat, [1 / 400], image=3)[0])


@pytest.mark.parametrize("shares", [[0.0], [1.1], [], [[0.5]], [np.nan]])
def test_bad_shares_are_refused(shares):
    with pytest.raises(ValueError, match=r"shares must be numbers in \(0, 1\]"):
        crop.boxes(np.zeros((3, 3)), shares)


@pytest.mark.parametrize("scores", [np.zeros(9), np.full((3, 3), np.nan), np.zeros((0, 3))])
def test_bad_maps_are_refused(scores):
    with pytest.raises(ValueError, match=r"scores must be one map \(H, W\)"):
        crop.boxes(scores)


def test_scores_by_hand():
    """A bright left half: its rectangle is bright all over, so p rises and the area falls."""
    x = np.zeros((1, 1, 10, 10), np.float32)
    x[..., :5] = 1
    left = np.tile(np.where(np.arange(10) < 5, 1.0, 0.0), (10, 1))[None]
    maps = {"left": left, "right": -left, "dot": spots((3, 3))[None]}
    found = crop.crop_scores(Brightness(), x, maps, shares=(0.01, 0.5, 1.0))
    log_p = {mean: -np.log1p(np.exp(-8 * mean)) for mean in (0.0, 0.5, 1.0)}  # of class 1
    assert found["left"][0, 1:] == pytest.approx([np.log(0.5) - log_p[1.0], -log_p[0.5]], abs=1e-5)
    assert found["right"][0, 1] == pytest.approx(np.log(0.5) - log_p[0.0], abs=1e-5)
    # One pixel: its area of 1 % counts as 5 %.
    assert found["dot"][0, 0] == pytest.approx(np.log(0.05) - log_p[1.0], abs=1e-5)
    other = crop.crop_scores(Brightness(), x, maps, target=[0], shares=(1.0,))
    assert other["left"][0, 0] == pytest.approx(np.log1p(np.exp(4.0)), abs=1e-5)


def test_crops_against_one_call_per_crop():
    rng = np.random.default_rng(0)
    x = torch.from_numpy(rng.random((3, 2, 8, 12)).astype(np.float32))
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 4)).eval()
    net[1].weight.data = torch.from_numpy(rng.normal(size=(4, 192)).astype(np.float32) / 8)
    maps = {name: rng.normal(size=(3, 8, 12)) for name in "ab"}
    shares = (0.02, 0.1, 0.5, 1.0)
    found = crop.crop_scores(net, x, maps, shares=shares, batch_size=2)
    seen = []
    plain = crop.crop_scores(lambda b: (seen.append(len(b)), net(b))[1], x, maps, shares=shares)
    for name, scores in maps.items():
        np.testing.assert_allclose(found[name], plain[name], atol=1e-5)
        for i in range(3):
            label = net(x[i : i + 1]).argmax()
            for q, (top, bottom, left, right) in enumerate(crop.boxes(scores[i], shares)):
                part = x[i : i + 1, :, top:bottom, left:right]
                part = functional.interpolate(part, (8, 12), mode="bilinear", antialias=True)
                p = net(part).softmax(1)[0, label].item()
                area = max((bottom - top) * (right - left) / 96, 0.05)
                assert found[name][i, q] == pytest.approx(np.log(area) - np.log(p), abs=1e-4)
    whole = -net(x).log_softmax(1).amax(1).detach()
    np.testing.assert_allclose(found["a"][:, -1], whole, atol=1e-5)  # nothing is resized
    assert max(seen) > 1  # crops of an image go through together
    assert sum(seen) < 3 * (1 + 2 * 4)  # and only once if they are alike


def test_the_probability_may_underflow():
    x = np.ones((1, 1, 4, 4), np.float32)
    steep = crop.crop_scores(
        lambda b: torch.stack([b.mean((1, 2, 3)) * 0, b.mean((1, 2, 3)) * 2000], 1),
        x, {"m": np.zeros((1, 4, 4))}, target=[0], shares=(1.0,),
    )  # fmt: skip
    assert steep["m"][0, 0] == pytest.approx(2000)


def test_wrong_shapes_are_refused():
    x = np.zeros((2, 1, 4, 4), np.float32)
    with pytest.raises(ValueError, match=r"m: map must be \(2, 4, 4\), got \(1, 4, 4\)"):
        crop.crop_scores(Brightness(), x, {"m": np.zeros((1, 4, 4))})
    with pytest.raises(ValueError, match="target must hold 2 classes"):
        crop.crop_scores(Brightness(), x, {"m": np.zeros((2, 4, 4))}, target=[1])
    with pytest.raises(ValueError, match=r"x must be images \(n, C, H, W\)"):
        crop.crop_scores(Brightness(), x[0], {"m": np.zeros((4, 4))})


def test_the_share_is_chosen_on_the_other_half():
    """Each half is best at its own share: held out, it gets the worse one."""
    halves = np.array_split(np.random.default_rng(7).permutation(9), 2)
    scores = np.empty((9, 2))
    scores[halves[0]] = [1.0, 3.0]
    scores[halves[1]] = [5.0, 2.0]
    fit = crop.cross_fit(scores, (0.1, 0.2), seed=7)
    assert fit.shares == (0.1, 0.2)
    assert (fit.values[halves[0]] == 3).all()
    assert (fit.values[halves[1]] == 5).all()
    with pytest.raises(ValueError, match=r"scores must be \(n >= 2, 2\)"):
        crop.cross_fit(scores[:1], (0.1, 0.2))
    with pytest.raises(ValueError, match=r"scores must be \(n >= 2, 3\)"):
        crop.cross_fit(scores, (0.1, 0.2, 0.3))


def test_table_pairs_methods_with_random():
    noise = np.random.default_rng(0).normal(size=50)
    fits = {
        "a": crop.CrossFit(noise - 1, (0.1, 0.2)),
        "random": crop.CrossFit(noise, (0.9, 0.95)),
    }
    found = crop.table(fits).set_index(["method", "quantity"])
    assert found.loc[("a", "s"), "value"] == pytest.approx(noise.mean() - 1)
    assert found.loc[("a", "s"), "high"] - found.loc[("a", "s"), "low"] > 0.3
    paired = found.loc[("a", "s-s_random")]
    assert [paired["value"], paired["low"], paired["high"]] == pytest.approx([-1, -1, -1])
    assert (paired["n"], paired["share_first"], paired["share_second"]) == (50, 0.1, 0.2)
    assert set(crop.table({"a": fits["a"]}).quantity) == {"s"}


def curves(*areas):
    """Curves of two steps whose LIF accuracy stays and whose MIF accuracy falls per image."""
    n = len(areas)
    probability = np.ones((n, 2, 3), np.float32)
    probability[:, 0, 1] -= 2 * np.asarray(areas)  # area between the curves: half the gap
    empty = np.zeros((n, 2, 3), np.float32)
    return fidelity.Curves(
        np.array([0, 0.5, 1]), ("mif", "lif"), empty.astype(bool), empty, probability,
        empty, empty, np.zeros(n, int),
    )  # fmt: skip


def fits(**values):
    return {name: crop.CrossFit(np.asarray(each), (0.5, 0.5)) for name, each in values.items()}


def test_agreement_by_hand():
    """F ranks a > b > c, -s ranks a > c > b: Spearman 1 - 6 * 2 / 24. "random" has no say."""
    f = {"a": curves(0.3, 0.3), "b": curves(0.2, 0.2), "c": curves(0.1, 0.1)}
    s = fits(a=[-3.0, -3.0], b=[1.0, 1.0], c=[-1.0, -1.0])
    found = crop.agreement(f, s, measure="probability")
    assert found == pytest.approx((0.5, 0.5, 0.5, 2))
    more = f | {"random": curves(0.9, 0.9)}, s | fits(random=[9.0, 9.0])
    assert crop.agreement(*more, measure="probability") == found


def test_agreement_resamples_images_the_same_for_both():
    """Two images that rank the methods oppositely, in F and s alike: any draw agrees or ties."""
    f = {"a": curves(0.4, 0.1), "b": curves(0.1, 0.45)}
    s = fits(a=[-0.4, -0.1], b=[-0.1, -0.45])
    assert crop.agreement(f, s, measure="probability") == pytest.approx((1, 1, 1, 2))
    opposed = crop.agreement(f, fits(a=[-4.0, -1.0], b=[-1.0, -2.0]), measure="probability")
    assert opposed.value == -1  # b leads by F, a by s
    assert (opposed.low, opposed.high) == (-1, 1)


def test_agreement_of_other_methods_or_images_is_refused():
    f = {"a": curves(0.1, 0.2), "b": curves(0.2, 0.1)}
    with pytest.raises(ValueError, match="same 2 or more methods"):
        crop.agreement(f, fits(a=[1.0, 1.0]))
    with pytest.raises(ValueError, match="same 2 or more methods"):
        crop.agreement({"a": f["a"], "random": f["b"]}, fits(a=[1.0, 1.0], random=[1.0, 1.0]))
    with pytest.raises(ValueError, match=r"same images, got \[2, 3\]"):
        crop.agreement(f, fits(a=[1.0] * 3, b=[1.0] * 3))
