"""Experiments of notebook 01 on planted detectors whose answers are known, and on the real one.

A planted detector sees an excerpt (165, 80) as the means of its 20 cells, cut here by slicing and
reshaping alone: cell 4 t + f holds frames 33 t to 33 t + 32 and bands 20 f to 20 f + 19.
"""

import dataclasses
import itertools
from types import SimpleNamespace

import numpy as np
import oracles
import pandas as pd
import pytest
import torch
from scipy.special import comb
from scipy.stats import norm
from sklearn.metrics import roc_auc_score

from xaiutils import attack, intervals, lime, limit, runtime
from xaiutils.classifiers import singing
from xaiutils.data import datasets
from xaiutils.studies.audio import beyond, detection, drawn
from xaiutils.studies.audio import experiments as study

SING, MUTE = "waveform, to singing", "waveform, to no singing"
SECONDS, STEPS = 3, 30


def slices(cell):
    t, f = divmod(cell, 4)
    return slice(33 * t, 33 * t + 33), slice(20 * f, 20 * f + 20)


def means_of(x):
    """Means (N, 20) of the cells of a batch (N, 165, 80)."""
    return x.unflatten(2, (4, 20)).unflatten(1, (5, 33)).mean((2, 4)).flatten(1)


def spread(values):
    """A map (165, 80) with one value (20,) per cell."""
    out = np.empty((165, 80), np.float32)
    for cell, value in enumerate(values):
        out[slices(cell)] = value
    return out


def pasted(case, cells):
    """The clean excerpt with the adversarial one in these cells."""
    x = case.clean.copy()
    for cell in cells:
        x[slices(cell)] = case.adversarial[slices(cell)]
    return x


def turned(case, p):
    return p > 0.5 if case.direction > 0 else p < 0.5


def descending(values):
    return sorted(range(len(values)), key=lambda j: (-values[j], j))


def make_case(clean, adversarial, direction=1, track=0):
    condition = SING if direction > 0 else MUTE
    arrays = (np.asarray(v, np.float32) for v in (clean, adversarial))
    return study.Case(condition, track, "planted", direction, *arrays)


class Planted(torch.nn.Module):
    """The sum of the weighted cell means, or its logistic function."""

    def __init__(self, weights, bias=0.0, *, logistic=False):
        super().__init__()
        self.register_buffer("weights", torch.as_tensor(weights, dtype=torch.float32)[:, None])
        self.register_buffer("bank", torch.tensor([float(bias)]))
        self.logistic = logistic

    def forward(self, x):
        value = self.bank + means_of(x) @ self.weights
        return value.sigmoid() if self.logistic else value

    def logits(self, x):
        """As of the real one, (N, 165, 3): the centre frame's second counts, others mislead."""
        out = -(x.mean(2, keepdim=True) * self.bank).repeat(1, 1, 3)
        out[:, 82, 1] = (self.bank + means_of(x) @ self.weights)[:, 0]
        return out


class Linear(Planted):
    """A linear detector, and a case for which it takes `share` of all change to turn it.

    Most cells push to the target, a few back, so that rankings differ in how soon they flip it.
    """

    def __init__(self, seed, direction, share=0.8):
        rng = np.random.default_rng(seed)
        self.w = 0.02 * rng.normal(size=20)
        change = np.abs(rng.normal(size=20)) * np.sign(self.w) * direction
        change[rng.permutation(20)[:3]] *= -0.5
        noise = rng.normal(scale=0.1, size=(2, 165, 80))
        clean = spread(rng.normal(size=20)) + noise[0]
        self.case = make_case(clean, clean + spread(change) + noise[1], direction)
        ends = [self.cells(x) @ self.w for x in (self.case.clean, self.case.adversarial)]
        assert direction * (ends[1] - ends[0]) > 0
        self.b = 0.5 - (1 - share) * ends[0] - share * ends[1]
        super().__init__(self.w, self.b)

    @staticmethod
    def cells(x):
        return np.array([x[slices(j)].mean(dtype=float) for j in range(20)])

    def p(self, x):
        return self.b + self.cells(x) @ self.w

    def coef(self, x):
        """What LIME should say: hiding a cell turns its mean into that of the excerpt."""
        return self.w * (self.cells(x) - x.mean(dtype=float))

    def gains(self):
        return self.w * (self.cells(self.case.adversarial) - self.cells(self.case.clean))


@pytest.fixture(scope="module")
def detector():
    return singing.load()


@pytest.fixture(scope="module")
def attacked(detector):
    return study.attack_tracks(
        detector, n_tracks=2, seconds=SECONDS, steps=STEPS, level_db=0.0, seed=0
    )


@pytest.fixture(scope="module")
def cases(detector, attacked):
    return study.pick(detector, attacked[:6], seed=3)


@pytest.fixture(scope="module")
def curves(detector, cases):
    return study.flip_curves(detector, cases, n_masks=32, n_random=2, seed=5)


@pytest.fixture(scope="module")
def parts(detector, cases):
    return study.partial(detector, cases, n_masks=32, seed=5)


@pytest.fixture(scope="module")
def excerpts():
    return datasets.singing_excerpts(0.0, 1, 0)


# Published numbers


def test_published_numbers_are_those_of_the_paper():
    table_1, table_2 = study.PUBLISHED.values()
    wave, spec = "waveform, ", "spectrogram, "
    to, away = "to singing", "to no singing"
    assert {k: round(100 * v) for k, v in table_1.items()} == {
        (wave + to, "LIME"): 53, (spec + to, "LIME"): 41,
        (wave + away, "LIME"): 21, (spec + away, "LIME"): 32,
    }  # fmt: skip
    assert {k: round(100 * v) for k, v in table_2.items()} == {
        (wave + to, "LIME"): 86, (wave + to, "norm"): 99,
        (spec + to, "LIME"): 91, (spec + to, "norm"): 98,
        (wave + away, "LIME"): 49, (wave + away, "norm"): 74,
        (spec + away, "LIME"): 44, (spec + away, "norm"): 55,
    }  # fmt: skip
    figure_2 = {wave + to: 53.4, spec + to: 40.6, wave + away: 21.3, spec + away: 32.2}
    assert {c: round(v) / 100 for c, v in figure_2.items()} == {
        c: v for (c, _), v in table_1.items()
    }


def test_presets_are_the_authors():
    assert study.PRESETS == {
        "waveform": {"lr": 3e-4, "alpha": 2, "eps": 0.01},
        "spectrogram": {"lr": 5e-4, "alpha": 15, "eps": 0.1},
    }


# Attack and choice of excerpts


def test_attacks_are_on_the_middle_of_music_or_mixture(detector, attacked):
    assert [(a.condition, a.track) for a in attacked] == [
        (c, t) for t in (0, 1) for c in study.CONDITIONS
    ]
    tracks = list(itertools.islice(datasets.singing_tracks(0.0, 0), 2))
    for a in attacked:
        track = tracks[a.track]
        sound = track.music if a.direction > 0 else track.mixture
        first = len(sound) // 320 - 50 * SECONDS
        wave = torch.from_numpy(sound[first * 160 : (first + 100 * SECONDS) * 160].copy())[None]
        x = wave if a.condition.startswith("waveform") else detector.magnitude(wave)
        torch.testing.assert_close(a.x, x)
        np.testing.assert_array_equal(a.active, track.active[first : first + 298])
        assert a.result.flipped.shape == (298,)  # the last of 300 frames need samples beyond


def test_flipped_frames_are_those_the_detector_turns(detector, attacked):
    for a in attacked:
        kind = "waveform" if a.condition.startswith("waveform") else "magnitude"
        p = [
            detector.probability(x, kind=kind, frame="all")[0] > 0.5
            for x in (a.x, a.result.adversarial)
        ]
        np.testing.assert_array_equal(a.result.flipped, p[0] != p[1])
        assert a.result.flipped.float().mean() > 0.5
        assert a.result.delta.abs().max() <= (0.01 if kind == "waveform" else 0.1) * (1 + 1e-6)


def test_weight_of_the_flip_grows_with_the_length(detector, monkeypatch):
    seen = []

    def spy(name, logits, x, *rest, **settings):
        seen.append(settings)
        return attack.signed_gradient(logits, x, **settings | {"steps": 0})

    monkeypatch.setattr(attack, "cached", spy)
    for seconds in (2, 4):
        study.attack_tracks(detector, n_tracks=1, seconds=seconds, steps=7, level_db=0, seed=0)
    alphas = sorted(s["alpha"] for s in seen)
    per_excerpt = [2 * 200 / 165] * 2 + [2 * 400 / 165] * 2 + [15 * 200 / 165] * 2
    assert alphas == pytest.approx(per_excerpt + [15 * 400 / 165] * 2)
    assert {(s["lr"], s["eps"], s["steps"]) for s in seen} == {(3e-4, 0.01, 7), (5e-4, 0.1, 7)}


def planted_attack(clean, changed, flipped, active, direction=1):
    """Frame t of the first band is a probability, of the second t itself."""
    x = torch.zeros(1, len(clean), 257)
    x[0, :, 0], x[0, :, 1] = torch.as_tensor(clean), torch.arange(len(clean))
    delta = torch.zeros_like(x)
    delta[0, :, 0] = torch.as_tensor(changed) - torch.as_tensor(clean)
    nothing = torch.zeros(len(clean))
    result = attack.Attack(x, delta, nothing > 0, nothing, torch.as_tensor(flipped), 3)
    condition = "spectrogram, to " + ("singing" if direction > 0 else "no singing")
    return study.Attacked(condition, 4, "t", direction, x, result, np.asarray(active))


class Reader:
    """A detector that reads the answer in the centre frame's first band."""

    def features(self, *, magnitude):
        return magnitude[..., :80]

    def probability(self, x, *, kind):
        assert kind == "features" and x.shape[1:] == (165, 80)
        return x[:, 82, 0]


@pytest.mark.parametrize("direction", [1, -1])
def test_pick_takes_only_frames_that_qualify(direction):
    rng = np.random.default_rng(8)
    clean, changed = rng.choice([0.2, 0.8], (2, 230))
    flipped, active = rng.random((2, 230)) < 0.5
    fits = {
        t
        for t in range(82, 230 - 82)
        if flipped[t]
        and active[t] == (direction < 0)
        and (clean[t], changed[t]) == ((0.2, 0.8) if direction > 0 else (0.8, 0.2))
    }
    a = planted_attack(clean, changed, flipped, active, direction)
    chosen = set()
    for seed in range(80):
        (case,) = study.pick(Reader(), [a], seed=seed)
        chosen.add(int(case.clean[82, 1]))
        assert case.title == f"t, frame {int(case.clean[82, 1])}"
        assert (case.condition, case.track, case.direction) == (a.condition, 4, direction)
        np.testing.assert_array_equal(np.diff(case.adversarial[:, 1]), 1)
        assert turned(case, case.adversarial[82, 0]) and not turned(case, case.clean[82, 0])
    assert len(fits) > 2 and chosen == fits
    once = [len(study.pick(Reader(), [a], seed=seed, tries=1)) for seed in range(80)]
    assert 0 < sum(once) < 80
    a = planted_attack(clean, changed, np.zeros(230, bool), active, direction)
    assert study.pick(Reader(), [a], seed=0) == []


def test_pick_uses_the_first_and_last_whole_excerpts():
    n = 167
    a = planted_attack(np.full(n, 0.2), np.full(n, 0.8), np.ones(n, bool), np.zeros(n, bool))
    frames = {study.pick(Reader(), [a], seed=s)[0].clean[82, 1] for s in range(40)}
    assert frames == {82, 83, 84}


def test_picked_excerpts_flip_alone_and_were_right(detector, attacked, cases):
    assert {c.condition for c in cases} == set(study.CONDITIONS)
    by_key = {(a.condition, a.track): a for a in attacked}
    for case in cases:
        a = by_key[case.condition, case.track]
        centre = int(case.title.split("frame ")[1])
        assert a.active[centre] == (case.direction < 0)
        assert a.result.flipped[centre]
        p = detector(torch.from_numpy(np.stack([case.clean, case.adversarial])))[:, 0].numpy()
        assert turned(case, p[1]) and (p[0] > 0.5) == (case.direction < 0)
        assert (case.sounds is None) == case.condition.startswith("spectrogram")
        if case.sounds:
            heard = detector.features(torch.from_numpy(np.stack(case.sounds)))
            np.testing.assert_allclose(heard[0], case.clean, atol=1e-4)
            np.testing.assert_allclose(heard[1], case.adversarial, atol=1e-4)


def test_attack_table_by_hand():
    flipped = [[1, 1, 1, 1], [1, 1, 0, 0]]
    group = []
    for i, row in enumerate(flipped):
        a = planted_attack([0.2] * 4, [0.3] * 4, np.array(row, bool), [False] * 4)
        a.x[:], a.result.delta[:] = 1.0, 0.01 * 10**i  # 40 and 20 dB
        group.append(a)
    row = study.attack_table(group).loc["spectrogram, to singing"]
    assert row["tracks"] == 2 and row["median steps"] == 3
    assert (row["frames flipped"], row["low"], row["high"]) == (0.75, 0.5, 1.0)
    assert row["tracks with all flipped"] == 0.5
    assert row["median SNR, dB"] == pytest.approx(30, abs=1e-3)


def test_snr_of_waveforms_leaves_out_the_ends():
    x = torch.ones(1, 6000)
    delta = torch.full_like(x, 0.1)
    delta[:, :2048] = delta[:, -2048:] = 1.0
    result = attack.Attack(x, delta, *[torch.zeros(1)] * 3, 1)
    loud = study.Attacked(SING, 0, "t", 1, x, result, np.zeros(1))
    assert loud.snr == pytest.approx(20, abs=1e-4)


# Pasting and curves on the real detector


def test_all_cells_flip_every_case_and_no_cells_flip_none(detector, cases, curves):
    for case in cases:
        p = study.paste(detector, case, [np.zeros(20, bool), np.ones(20, bool)])
        whole = detector(torch.from_numpy(np.stack([case.clean, case.adversarial])))[:, 0]
        np.testing.assert_allclose(p, whole, atol=1e-5)
        np.testing.assert_array_equal(case.flips(p), [False, True])
    last = curves[0][curves[0]["k"] == 20]
    assert len(last) == 4 * len(cases) and (last["flipped"] == 1).all()


def test_flips_are_strict():
    zero = np.zeros((165, 80))
    p = [0.5 - 1e-6, 0.5, 0.5 + 1e-6]
    assert make_case(zero, zero, 1).flips(p).tolist() == [False, False, True]
    assert make_case(zero, zero, -1).flips(p).tolist() == [True, False, False]


def test_paste_changes_the_given_cells_only(detector, cases):
    chosen = [[0], [3, 4], [19, 7, 12], []]
    sets = [np.isin(np.arange(20), cells) for cells in chosen]
    by_hand = torch.from_numpy(np.stack([pasted(cases[0], cells) for cells in chosen]))
    np.testing.assert_allclose(
        study.paste(detector, cases[0], sets), detector(by_hand)[:, 0], atol=1e-5
    )


def test_table_1_is_the_curve_at_3(detector, cases, curves):
    frame, explanations = curves
    for name in ("LIME", "norm"):
        at_3 = frame[(frame["k"] == 3) & (frame["ranking"] == name)]
        table = study.shares(at_3, ["condition"]).set_index("condition")["value"]
        flipped = {condition: [] for condition in study.CONDITIONS}
        for case, explanation in zip(cases, explanations, strict=True):
            scores = case.direction * explanation.coef
            if name == "norm":
                change = case.adversarial.astype(float) - case.clean
                scores = [np.square(change[slices(j)]).sum() for j in range(20)]
            x = pasted(case, descending(scores)[:3])
            p = detector(torch.from_numpy(x)[None]).item()
            flipped[case.condition].append(turned(case, p))
        assert table.to_dict() == {c: np.mean(v) for c, v in flipped.items()}


def test_partial_totals_are_the_norm_curve(cases, curves, parts):
    frame, _ = curves
    counts = study.overlap_counts(parts)
    for condition in study.CONDITIONS:
        n = sum(case.condition == condition for case in cases)
        for k in (1, 3, 5):
            rows = frame[(frame["condition"] == condition) & (frame["k"] == k)]
            curve = rows[rows["ranking"] == "norm"]["flipped"]
            total = counts.get((condition, k), np.zeros(k + 1))
            assert len(total) == k + 1
            assert total.sum() / n == curve.mean()
    assert len(parts) == sum(c.sum() for c in counts.values()) > 0


def test_batches_do_not_mix(detector, cases):
    one, many = (
        study.explain(detector, cases[0].adversarial, n_masks=40, seed=1, batch_size=size)
        for size in (1, 16)
    )
    np.testing.assert_allclose(one.outputs, many.outputs, atol=1e-5)
    np.testing.assert_allclose(one.coef, many.coef, atol=1e-5)
    first = many.masks[7]
    x = np.where(spread(first) > 0, cases[0].adversarial, cases[0].adversarial.mean())
    assert many.outputs[7] == pytest.approx(detector(torch.from_numpy(x)[None]).item(), abs=1e-5)


# LIME on planted detectors


def test_weights_of_masks():
    masks = np.arange(20) < np.array([5, 10, 15, 20])[:, None]
    assert lime.kernel(masks).round(3).tolist() == [0.135, 0.503, 0.866, 1.0]
    planted = Linear(0, 1)
    explanation = study.explain(planted.forward, planted.case.adversarial, n_masks=200, seed=0)
    on = explanation.masks.sum(axis=1)
    assert on[0] == 20 and abs(explanation.masks[1:].mean() - 0.5) < 4 * 0.5 / np.sqrt(199 * 20)
    distance = 1 - np.sqrt(on / 20)
    by_hand = np.sqrt(np.exp(-np.square(distance) / 0.25**2))
    np.testing.assert_allclose(explanation.weights, by_hand, rtol=1e-12)


@pytest.mark.parametrize("direction", [1, -1])
def test_linear_detector_is_explained_exactly(direction):
    planted = Linear(2, direction)
    x = planted.case.adversarial
    model = planted if direction > 0 else planted.forward  # in ONNX Runtime, in torch
    backend = runtime.forward(model, x).backend
    assert backend == ("onnxruntime" if direction > 0 else "callable")
    explanation = study.explain(model, x, n_masks=1024, seed=4)
    true = planted.coef(x)
    values = planted.p(x) - (1 - explanation.masks) @ true
    fitted = oracles.ridge_lstsq(
        explanation.masks, oracles.weights_of(explanation.masks, 0.25), values, 1.0
    )
    np.testing.assert_allclose(explanation.coef, fitted[1:], atol=1e-6)
    lost = 1 - min(limit.kept(20, n=1024))  # to the ridge
    assert np.abs(explanation.coef - true).max() < 2 * lost * np.abs(true).max()
    assert explanation.score > 0.999
    ranking = study.order(direction * explanation.coef)
    assert ranking.tolist() == descending(direction * true)


def test_one_seed_one_explanation():
    planted = Linear(2, 1)

    def explain(seed):
        return study.explain(planted.forward, planted.case.adversarial, n_masks=64, seed=seed)

    first = explain(1)
    state = np.random.get_state()[1].copy()  # noqa: NPY002
    again, other = explain(1), explain(2)
    np.testing.assert_array_equal(np.random.get_state()[1], state)  # noqa: NPY002
    np.testing.assert_array_equal(first.masks, again.masks)
    np.testing.assert_array_equal(first.coef, again.coef)
    assert (first.masks != other.masks).mean() > 0.4


@pytest.mark.parametrize("direction", [1, -1])
@pytest.mark.parametrize("cell", range(20))
def test_threshold_on_one_cell_is_found(cell, direction):
    rng = np.random.default_rng(cell)
    clean = rng.normal(scale=0.1, size=(165, 80))
    change = rng.normal(scale=0.05, size=(165, 80))
    change[slices(cell)] += 3 * direction
    case = make_case(clean, clean + change, direction)

    def planted(x):
        mean = direction * x[:, slices(cell)[0], slices(cell)[1]].mean((1, 2))
        return (mean > 1.5).float()[:, None] if direction > 0 else (mean < 1.5).float()[:, None]

    explanation = study.explain(planted, case.adversarial, n_masks=128, seed=cell)
    assert study.order(direction * explanation.coef)[0] == cell
    assert study.order(study.norms(case))[0] == cell
    assert study.greedy(planted, case)[0] == cell


# Rankings and their curves


def test_order_and_prefixes_by_hand():
    assert study.order([1, 3, 3, -2, 3]).tolist() == [1, 2, 4, 0, 3]
    assert study.prefixes([2, 0, 1]).tolist() == [
        [False, False, True],
        [True, False, True],
        [True, True, True],
    ]


@pytest.mark.parametrize("direction", [1, -1])
def test_curves_of_a_linear_detector_by_hand(direction):
    planted = Linear(6, direction)
    case = planted.case
    frame, (explanation,) = study.flip_curves(
        planted.forward, [case], n_masks=1024, n_random=1, seed=0
    )
    change = case.adversarial.astype(float) - case.clean
    gains = planted.gains()
    rankings = {
        "LIME": descending(direction * planted.coef(case.adversarial)),
        "norm": descending([np.square(change[slices(j)]).sum() for j in range(20)]),
        "greedy": descending(direction * gains),
    }
    for name, ranking in rankings.items():
        p = planted.p(case.clean) + np.cumsum(gains[ranking])
        rows = frame[frame["ranking"] == name]
        assert rows["k"].tolist() == list(range(1, 21))
        assert rows["flipped"].tolist() == turned(case, p).astype(float).tolist()
    assert len({tuple(r) for r in rankings.values()}) == 3
    assert study.order(direction * explanation.coef).tolist() == rankings["LIME"]
    assert set(frame["condition"]) == {case.condition}


def test_random_rankings_find_one_cell_as_often_as_chance():
    clean = np.zeros((165, 80))
    change = spread(np.arange(20) == 6)
    n = 300
    frame, _ = study.flip_curves(
        lambda x: means_of(x)[:, 6:7], [make_case(clean, change)], n_masks=21, n_random=n, seed=1
    )
    curve = frame[frame["ranking"] == "random"]["flipped"].to_numpy()
    share = np.arange(1, 21) / 20
    assert (np.abs(curve - share) <= 4 * np.sqrt(share * (1 - share) / n)).all()
    assert len(np.unique(curve)) > 15


def test_greedy_is_brute_force():
    components = study.Components(np.arange(165)[:, None] * 6 // 165)  # stripes in time
    rng = np.random.default_rng(11)
    case = make_case(rng.normal(size=(165, 80)), 1 + rng.normal(size=(165, 80)))
    table = rng.random(64)

    def planted(x):
        """Any function of which stripes are pasted, told by their first values."""
        first = torch.tensor([-(-165 * j // 6) for j in range(6)])
        index = (x[:, first, 0] == torch.from_numpy(case.adversarial)[first, 0]).int()
        return torch.from_numpy(table)[(index * 2 ** torch.arange(6)).sum(1)][:, None]

    for direction in (1, -1):
        case = make_case(case.clean, case.adversarial, direction)
        chosen, held = [], 0
        for _ in range(6):
            rest = [j for j in range(6) if j not in chosen]
            best = max(rest, key=lambda j: direction * table[held | 1 << j])
            chosen.append(best)
            held |= 1 << best
        assert study.greedy(planted, case, components).tolist() == chosen


def test_shares_are_means_with_intervals_over_tracks():
    frame = pd.DataFrame(
        {"c": ["b"] * 4 + ["a"] * 2, "track": [0, 0, 1, 1, 0, 1], "flipped": [1, 1, 0, 0, 1, 0.5]}
    )
    table = study.shares(frame, ["c"])
    assert table.columns.tolist() == ["c", "value", "low", "high", "n"]
    assert table.iloc[0].tolist() == ["b", 0.5, 0.0, 1.0, 2]  # two tracks: all or nothing
    assert table.iloc[1].tolist() == ["a", 0.75, 0.5, 1.0, 2]


def test_share_is_wilsons_when_all_are_equal():
    n, z2 = 3, 1.959964**2
    all_right = study.share([1] * 5, [0, 0, 1, 2, 2])
    assert all_right == pytest.approx((1, n / (n + z2), 1, n), abs=1e-6)
    assert study.share([0] * 5, [0, 0, 1, 2, 2]) == pytest.approx(
        (0, 0, z2 / (n + z2), n), abs=1e-6
    )
    some = study.share([1, 1, 0, 0], [0, 0, 1, 1])
    assert some == intervals.mean([1.0, 1, 0, 0], [0, 0, 1, 1]) == (0.5, 0, 1, 2)
    assert study.share([], []).n == 0


def test_harder_counts_comparisons():
    rows = [
        ("T1", "LIME", "waveform, to singing", 0.5),
        ("T1", "LIME", "waveform, to no singing", 0.4),  # harder
        ("T1", "LIME", "spectrogram, to singing", 0.3),
        ("T1", "LIME", "spectrogram, to no singing", 0.6),
        ("T2", "LIME", "waveform, to no singing", 0.5),  # a tie
        ("T2", "LIME", "waveform, to singing", 0.5),
        ("T2", "norm", "waveform, to no singing", 0.1),  # harder
        ("T2", "norm", "waveform, to singing", 0.2),
    ]
    columns = ["table", "ranking", "condition", "value"]
    frame = pd.DataFrame(rows, columns=columns).set_index("table")
    frame = frame.set_index(pd.MultiIndex.from_arrays([frame.index, range(8)]))
    assert study.harder(frame) == 2
    assert study.harder(frame.iloc[::-1]) == 2
    published = [
        (table, ranking, condition, value)
        for table, values in study.PUBLISHED.items()
        for (condition, ranking), value in values.items()
    ]
    frame = pd.DataFrame(published, columns=columns).set_index(["table", "ranking"], drop=False)
    assert study.harder(frame[["ranking", "condition", "value"]].rename_axis(["a", "b"])) == 6


@pytest.mark.parametrize("direction", [1, -1])
def test_pointing_by_hand(direction):
    """Three cells point to the target; the two of largest norm do not, and undo the change."""
    gain = np.zeros(20)
    gain[[2, 9, 17]] = 0.2
    gain[[4, 5]] = -0.4
    planted = Planted(direction * gain, 0.5 - direction * 0.3)
    change = np.where(gain > 0, 1.0, 0.1)
    change[[4, 5]] = 2.0
    case = make_case(np.zeros((165, 80)), spread(change), direction)
    coef = np.where(gain > 0, 0.3, -0.2) * direction
    coef[7] = 0.0  # points nowhere
    none = np.full(20, -0.1) * direction
    explanations = [SimpleNamespace(coef=coef), SimpleNamespace(coef=none)]
    frame = study.pointing(planted.forward, [case, case], explanations)
    assert frame["ranking"].tolist() == ["LIME", "norm"] * 2
    assert frame["cells"].tolist() == [3, 3, 0, 0]
    assert frame["case"].tolist() == [0, 0, 1, 1]
    assert frame["flipped"].tolist() == [1, 0, 0, 0]


@pytest.mark.parametrize(("cells", "flipped"), [(2, 0), (3, 1), (4, 0)])
def test_pointing_takes_as_many_cells_by_norm(cells, flipped):
    """The three of largest norm flip together; two are too few, and the fourth undoes it."""
    gain = np.zeros(20)
    gain[[2, 9, 17]], gain[4] = 0.1, -0.2
    change = np.zeros(20)
    change[[2, 9, 17]], change[4] = 2.0, 1.0
    case = make_case(np.zeros((165, 80)), spread(change))
    wrong = np.where(np.arange(20) >= 20 - cells, 0.1, -0.1)
    wrong[[17, 10]] = wrong[[10, 17]]
    frame = study.pointing(Planted(gain, 0.05).forward, [case], [SimpleNamespace(coef=wrong)])
    assert frame["cells"].tolist() == [cells, cells]
    assert frame["flipped"].tolist() == [0, flipped]


# Partial perturbations


@pytest.mark.parametrize("direction", [1, -1])
def test_partial_explains_the_partly_changed_excerpt(direction):
    ks = (1, 3, 5, 8)
    expected, found, full, left_out = [], [], [], 0
    for seed in range(6):
        planted = Linear(20 + seed, direction, share=0.3)
        case = planted.case
        change = case.adversarial.astype(float) - case.clean
        by_norm = descending([np.square(change[slices(j)]).sum() for j in range(20)])
        for k in ks:
            x = pasted(case, by_norm[:k])
            if turned(case, planted.p(x)):
                lime_top = descending(direction * planted.coef(x))[:k]
                expected.append((k, len(set(lime_top) & set(by_norm[:k]))))
                whole = descending(direction * planted.coef(case.adversarial))[:k]
                full.append((k, len(set(whole) & set(by_norm[:k]))))
            else:
                left_out += 1
        frame = study.partial(planted.forward, [case], ks=ks, n_masks=1024, seed=seed)
        assert (frame["score"] > 0.999).all()
        found += zip(frame["k"], frame["overlap"], strict=True)
    assert found == expected != full and left_out


def test_chance_is_hypergeometric():
    for k, every, none in ((1, 5, 95), (3, 0.09, 59.6), (5, 0.006, 19.4)):
        law = study.chance(k)
        assert law.shape == (k + 1,) and law.sum() == pytest.approx(1)
        assert law @ np.arange(k + 1) == pytest.approx(k * k / 20)
        assert 100 * law[-1] == pytest.approx(every, abs=0.006 if k == 3 else 5e-4)
        assert 100 * law[0] == pytest.approx(none, abs=0.06)
        by_hand = [comb(k, m) * comb(20 - k, k - m) / comb(20, k) for m in range(k + 1)]
        np.testing.assert_allclose(law, by_hand, rtol=1e-10)
    sets = [set(s) for s in itertools.combinations(range(6), 2)]
    counts = np.bincount([len(s & {0, 1}) for s in sets])
    np.testing.assert_allclose(study.chance(2, d=6), counts / len(sets))


def test_random_explanations_overlap_as_chance_says(monkeypatch):
    """Truth that leaks into the ranking would raise the overlap, a wrong index lower it."""
    rng = np.random.default_rng(4)

    def explain(detector, x, *, n_masks, seed):
        return SimpleNamespace(coef=rng.normal(size=20), score=0.0)

    monkeypatch.setattr(study, "explain", explain)
    clean, n = np.zeros((165, 80)), 400
    planted = [make_case(clean, spread(rng.normal(size=20)), (-1) ** i) for i in range(n)]
    for direction, answer in ((1, 0.9), (-1, 0.1)):
        some = [c for c in planted if c.direction == direction]
        frame = study.partial(
            lambda x, p=answer: torch.full((len(x), 1), p), some, n_masks=0, seed=0
        )
        counts = study.overlap_counts(frame)
        assert len(counts) == 3
        for (_, k), count in counts.items():
            law, size = study.chance(k), np.arange(k + 1)
            assert count.sum() == n // 2
            variance = law @ np.square(size) - (law @ size) ** 2
            mean = count @ size / count.sum()
            assert abs(mean - k * k / 20) < 4 * np.sqrt(variance / (n // 2))


def test_auc_is_that_of_scikit_learn():
    rng = np.random.default_rng(0)
    correct = rng.random(40) < 0.4
    score = (rng.normal(size=40) + correct).round(1)
    assert len(np.unique(score)) < 35  # there are ties
    units = rng.integers(8, size=40)
    value, low, high, n = study.auc(score, correct, units, draws=300, seed=2)
    assert value == pytest.approx(roc_auc_score(correct, score)) and n == 8
    drawn = [
        roc_auc_score(np.repeat(correct, counts), np.repeat(score, counts))
        for counts in intervals.resamples(units, draws=300, seed=2)
    ]
    assert (low, high) == pytest.approx(tuple(np.percentile(drawn, (2.5, 97.5))))


def test_auc_resamples_tracks():
    score, correct = [0.1, 0.5, 0.4, 0.9, 0.2, 0.8], [0, 1, 1, 0, 0, 1]
    once = study.auc(score, correct, range(6))
    assert once.low < once.value < once.high
    copies = study.auc(np.tile(score, 9), np.tile(correct, 9), np.tile(range(6), 9))
    assert copies == pytest.approx(once)
    same = study.auc(score, correct, [7] * 6)
    assert same == pytest.approx((once.value, np.nan, np.nan, 1), nan_ok=True)
    assert np.isnan(study.auc([0.1, 0.2], [1, 1], [0, 1])[:3]).all()


# Beyond the paper


def test_small_sets_are_tried_by_enumeration():
    """A detector that needs the changes of cells 3 and 11 together: single ones say nothing."""
    rng = np.random.default_rng(3)
    clean = rng.normal(scale=0.01, size=(165, 80))
    case = make_case(clean, clean + 1 + spread(0.01 * np.arange(20)))

    def planted(x):
        return (means_of(x)[:, [3, 11]].min(1).values > 0.5).float()[:, None]

    def flips(cells):
        return planted(torch.from_numpy(pasted(case, cells))[None]).item() > 0.5

    smallest = min(
        size
        for size in (1, 2, 3)
        if any(flips(cells) for cells in itertools.combinations(range(20), size))
    )
    assert smallest == 2 and flips([3, 11])
    frame, (explanation,) = study.flip_curves(planted, [case], n_masks=128, n_random=1, seed=0)
    found = beyond.minimal_sets(planted, [case], frame, largest=3).iloc[0]
    assert (found["minimal"], found["exact"]) == (2, True)
    assert found["greedy"] == 5  # of equal gains the first, until 3 is in and 11 decides
    assert found["norm"] == 20 - 3  # the largest first, 3 the last that is needed
    lime_ranking = study.order(explanation.coef).tolist()
    assert found["LIME"] == 1 + max(lime_ranking.index(3), lime_ranking.index(11))
    short = beyond.minimal_sets(planted, [case], frame, largest=1).iloc[0]
    assert (short["minimal"], short["exact"]) == (5, False)


# Not flat, or its mean would hide nothing; every cell has the mean 1.
STRIPED = 1 + 0.01 * (-1.0) ** np.arange(80) * np.ones((165, 1))


def test_small_sets_of_some_cases_use_the_rankings_of_these():
    """Two tracks that need one and three cells; only the second is asked about."""

    def planted(x):
        return 0.5 + (means_of(x)[:, [18, 2, 7]].sum(1, keepdim=True) - 0.5) / 10

    easy = make_case(np.zeros((165, 80)), STRIPED)
    hard = dataclasses.replace(easy, track=1, adversarial=0.2 * easy.adversarial)
    frame, _ = study.flip_curves(planted, [easy, hard], n_masks=64, n_random=1, seed=0)
    found = beyond.minimal_sets(planted, [hard], frame, largest=3)
    assert found[["track", "minimal", "greedy"]].to_numpy().tolist() == [[1, 3, 3]]


@pytest.mark.parametrize(("needs", "exact"), [(1, True), (2, True), (3, False)])
def test_small_sets_stop_below_the_greedy_ranking(needs, exact):
    """Greedy is right here: nothing is left to try, or too much for sets of one cell."""
    case = make_case(np.zeros((165, 80)), STRIPED, -1)

    def planted(x):
        return 0.5 + (needs - 0.5 - means_of(x)[:, [18, 2, 7]].sum(1, keepdim=True)) / 10

    frame, _ = study.flip_curves(planted, [case], n_masks=64, n_random=1, seed=0)
    found = beyond.minimal_sets(planted, [case], frame, largest=1).iloc[0]
    assert (found["minimal"], found["greedy"], found["exact"]) == (needs, needs, exact)


def test_bridges_are_lines_in_time():
    rng = np.random.default_rng(0)
    start, slope = rng.normal(size=(2, 80))
    line = (start + slope * np.arange(165)[:, None] / 165).astype(np.float32)
    out = beyond.bridged(line)
    np.testing.assert_allclose(out[33:132], line[33:132], atol=1e-6)
    np.testing.assert_array_equal(out[:33], np.tile(line[33], (33, 1)))
    np.testing.assert_array_equal(out[132:], np.tile(line[131], (33, 1)))
    x = rng.normal(size=(165, 80)).astype(np.float32)
    out = beyond.bridged(x)
    for frame in (66, 70, 98):  # the third column, between frames 65 and 99
        by_hand = ((99 - frame) * x[65] + (frame - 65) * x[99]) / 34
        np.testing.assert_allclose(out[frame], by_hand, atol=1e-6)
    assert out.dtype == x.dtype


def test_off_states(cases):
    case = cases[0]
    states = beyond.off_states(case)
    assert list(states) == ["mean", "minimum", "silence", "neighbour frames", "clean excerpt"]
    assert states["mean"] == pytest.approx(case.adversarial.mean(dtype=float), abs=1e-4)
    assert states["minimum"] == np.sort(case.adversarial, axis=None)[0]
    assert states["clean excerpt"] is case.clean
    np.testing.assert_array_equal(states["neighbour frames"], beyond.bridged(case.adversarial))


def test_silence_is_the_floor_of_the_features(detector):
    silent = detector.features(torch.zeros(1, 400))
    assert beyond.SILENCE == pytest.approx(silent.max().item(), abs=1e-5) == silent.min().item()


@pytest.mark.parametrize("direction", [1, -1])
def test_sampling_of_a_linear_detector_is_settled(direction):
    planted = Linear(31, direction)
    case, sizes = planted.case, (100, 400, 1024)
    frame = beyond.sampling(planted.forward, [case], sizes=sizes, seed=0)
    assert frame["n"].tolist() == list(sizes)
    gains = planted.gains()
    change = case.adversarial.astype(float) - case.clean
    rankings = {
        "flipped": descending(direction * planted.coef(case.adversarial)),
        "norm": descending([np.square(change[slices(j)]).sum() for j in range(20)]),
    }
    for name, ranking in rankings.items():
        p = planted.p(case.clean) + np.cumsum(gains[ranking])[:-1]
        assert frame[name].iloc[-1] == pytest.approx(turned(case, p).mean())
    assert (frame["norm"] == frame["norm"].iloc[0]).all()
    assert frame["same"].tolist() == [1, 1, 1] and frame["settled"].iloc[-1] == 1
    assert (np.diff(frame["stderr"]) < 0).all() and frame["stderr"].iloc[-1] < 1e-3


def test_sampling_fits_the_first_masks(cases, detector):
    """The fit to the first n of a long run has the standard errors of a run of n."""
    frame = beyond.sampling(detector, cases[:1], sizes=(64, 128), seed=9)
    pool = study.explain(detector, cases[0].adversarial, n_masks=128, seed=9)
    rows = pool.masks[:64], pool.weights[:64], pool.outputs[:64, None]
    coef, covariance = lime.fit(*rows).coef[0], lime.fit(*rows).covariance[0]
    assert frame["stderr"].iloc[0] == pytest.approx(np.sqrt(np.diag(covariance))[1:].mean())
    rankings = [descending(cases[0].direction * c) for c in (coef, pool.coef)]
    assert frame["same"].tolist() == [len(set(rankings[0][:3]) & set(rankings[1][:3])) / 3, 1]
    third, fourth = 1 + np.array(rankings[0][2:4])
    variance = covariance[third, third] + covariance[fourth, fourth] - 2 * covariance[third, fourth]
    gap = abs(coef[third - 1] - coef[fourth - 1]) / np.sqrt(variance)
    assert frame["settled"].iloc[0] == (gap > norm.isf(0.05 / 4))  # two-sided, asked twice


@pytest.mark.parametrize("direction", [1, -1])
def test_with_all_masks_a_linear_detector_is_known(direction):
    """12 cells of 41 or 42 frames and 26 or 27 bands; linear in them, all limits agree."""
    planted = Linear(40, direction)
    case = planted.case
    labels = (np.arange(165) * 4 // 165)[:, None] * 3 + np.arange(80) * 3 // 80
    np.testing.assert_array_equal(beyond.COARSE.labels, labels)
    pixel = spread(planted.w / (33 * 20)).astype(float)
    parts = labels == np.arange(12)[:, None, None]
    x = case.adversarial.astype(float)
    coef = (parts * pixel * (x - x.mean())).sum((1, 2))
    gains = (parts * pixel * (x - case.clean)).sum((1, 2))
    ranking = descending(direction * coef)
    p = planted.p(case.clean) + np.cumsum(gains[ranking])[:-1]
    found = beyond.enumerated(planted.forward, [case], n_masks=1024, seed=0)
    found = found.set_index("ranking")["flipped"]
    for name in ("LIME, 1,024 masks", "LIME, all masks", "Shapley value"):
        assert found[name] == pytest.approx(turned(case, p).mean())
    best = planted.p(case.clean) + np.cumsum(gains[descending(direction * gains)])[:-1]
    assert found["greedy"] == pytest.approx(turned(case, best).mean())
    by_norm = descending((parts * np.square(x - case.clean)).sum((1, 2)))
    p = planted.p(case.clean) + np.cumsum(gains[by_norm])[:-1]
    assert found["norm"] == pytest.approx(turned(case, p).mean())
    assert len(set(found)) > 1


def test_ablation_by_hand():
    """With the clean excerpt as off state LIME of a linear detector is the greedy ranking."""
    planted = Linear(50, 1)
    case = planted.case
    frame = beyond.ablation(planted.forward, [case], widths=(0.25, 1.0), n_masks=1024, seed=3)
    assert len(frame) == 10 and (frame["score"] > 0.99).all()
    found = frame.set_index(["off_state", "width"])["flipped"]
    gains = planted.gains()
    flipped = {}
    for name, coef in {"clean excerpt": gains, "mean": planted.coef(case.adversarial)}.items():
        p = planted.p(case.clean) + np.cumsum(gains[descending(coef)])[:-1]
        flipped[name] = turned(case, p).mean()
        for width in (0.25, 1.0):
            assert found[name, width] == pytest.approx(flipped[name])
    assert flipped["clean excerpt"] > flipped["mean"]


def test_known_cells_change_only_these(detector, excerpts):
    found = beyond.known_cells(detector, excerpts, k=5, n=2, seed=0)
    assert found
    chosen = set()
    for case in found:
        assert case.condition == {1: "to singing", -1: "to no singing"}[case.direction]
        changed = case.adversarial != case.clean
        cells = [j for j in range(20) if changed[slices(j)].any()]
        assert len(cells) == 5
        chosen.add(tuple(cells))
        np.testing.assert_array_equal(pasted(case, cells), case.adversarial)
        assert np.abs(case.adversarial - case.clean).max() <= 1 + 1e-5
        p = detector(torch.from_numpy(np.stack([case.clean, case.adversarial])))[:, 0].numpy()
        assert case.flips(p).tolist() == [False, True]
        row = excerpts.names.index(case.title)
        assert excerpts.labels[row] == (case.direction < 0)
        assert excerpts.tracks[row] == case.track
        heard = detector.features(excerpts.waveforms[row : row + 1])[0]
        np.testing.assert_allclose(heard, case.clean, atol=1e-4)
    assert len(chosen) == len(found)


def test_known_cells_of_the_waveform(detector, excerpts, monkeypatch):
    results, cells = [], []
    attacker, leakage = attack.signed_gradient, detection.leakage

    def keep(*arguments, **options):
        results.append(attacker(*arguments, **options))
        return results[-1]

    def look(detector, x, delta, allowed):
        cells.append([j for j in range(20) if allowed[slices(j)].all()])
        assert allowed.sum() == 5 * 33 * 20
        return leakage(detector, x, delta, allowed)

    monkeypatch.setattr(attack, "signed_gradient", keep)
    monkeypatch.setattr(detection, "leakage", look)
    frame = beyond.known_cells_waveform(detector, excerpts, k=5, n=1, seed=0)
    assert frame["condition"].tolist() == ["to singing", "to no singing"]
    for row, result, chosen in zip(frame.itertuples(), results, cells, strict=True):
        assert len(chosen) == 5
        p = [detector.probability(x).item() > 0.5 for x in (result.x, result.adversarial)]
        assert p[0] == (row.condition == "to no singing")
        assert row.turned == (p[0] != p[1])
        before, after = (detector.features(x)[0].double() for x in (result.x, result.adversarial))
        change = (after - before).square().numpy()
        inside = sum(change[slices(j)].sum() for j in chosen)
        assert row.leaked == pytest.approx(1 - inside / change.sum(), abs=1e-6)
        assert row.leaked < 0.2
        ratio = result.x.square().sum() / result.delta.square().sum()
        assert row.snr == pytest.approx(10 * np.log10(ratio.item()), abs=1e-3)


@pytest.mark.parametrize("direction", [1, -1])
def test_changed_cells_are_recovered_by_explainers_that_see_the_clean_excerpt(direction):
    """Cells 5 and 14 were changed; cell 8 matters more, always did, and misleads the others."""
    weights = np.zeros(20)
    weights[[5, 14, 8]] = 0.3, 0.3, 1.0
    planted = Planted(direction * weights, -3.3 * direction, logistic=True).eval()
    rng = np.random.default_rng(1)
    clean = rng.normal(scale=0.05, size=(165, 80)) + spread(3.0 * (np.arange(20) == 8))
    change = spread(2.0 * np.isin(np.arange(20), [5, 14]))
    case = make_case(clean, clean + change, direction)
    ends = planted(torch.from_numpy(np.stack([case.clean, case.adversarial]))).numpy()[:, 0]
    assert case.flips(ends).tolist() == [False, True]
    frame = beyond.recovery(planted, [case], n_masks=256, seed=0)
    informed = frame[frame["informed"]].set_index("explainer")
    assert set(informed.index) == {"LIME", "integrated gradients", "occlusion", "norm"}
    assert (informed["precision"] == 1).all() and (informed["rank"] == 1.5).all()
    others = frame[~frame["informed"]].set_index("explainer")
    assert set(others.index) == {
        "LIME", "integrated gradients", "occlusion", "gradient", "random",
    }  # fmt: skip
    misled = others.drop(index="random")
    assert (misled["precision"] == 0.5).all() and (misled["rank"] == 2.5).all()
    assert set(frame["condition"]) == {case.condition}


@pytest.mark.parametrize("direction", [1, -1])
def test_mean_flips_by_hand(direction):
    planted = Linear(7, direction)
    rng = np.random.default_rng(0)
    rankings = [rng.permutation(20) for _ in range(4)]
    by_hand = [
        np.mean(
            [turned(planted.case, planted.p(pasted(planted.case, r[:k]))) for k in range(1, 20)]
        )
        for r in rankings
    ]
    found = beyond.mean_flips(planted.forward, planted.case, rankings)
    np.testing.assert_allclose(found, by_hand)
    assert len(set(by_hand)) > 1


# Drawings


@pytest.mark.parametrize(
    ("shape", "cells"), [("wave", [4, 8, 12]), ("zigzag", [4, 8, 12]), ("blob", [9])]
)
def test_drawings_lie_in_their_cells(detector, shape, cells):
    picture = drawn.drawing(shape)
    assert picture.shape == (165, 257)
    seen = (picture @ detector.bank > 0).numpy()  # bands that weigh a drawn bin
    assert all(seen[slices(j)].any(axis=1).all() for j in cells)  # in each frame
    for j in cells:
        seen[slices(j)] = False
    assert not seen.any()


def test_waves_swing_five_and_a_half_times_a_second():
    """By three bins in each frame, about 163 Hz, and in 0.99 s about 5.5 times up and down."""
    for shape in ("wave", "zigzag"):
        picture = drawn.drawing(shape).numpy()
        assert (np.count_nonzero(picture[33:132], axis=1) == 3).all()
        middle = [np.flatnonzero(row).mean() for row in picture[33:132]]
        assert np.mean(middle) * 31.25 == pytest.approx(163, abs=10)
        level = np.array(middle) - np.mean(middle)
        time = np.arange(99) / 100
        power = [abs(np.exp(-2j * np.pi * f * time) @ level) for f in np.arange(2, 12, 0.5)]
        assert np.arange(2, 12, 0.5)[np.argmax(power)] == 5.5
    assert not torch.equal(drawn.drawing("wave"), drawn.drawing("zigzag"))


def test_drawn_by_hand(detector, excerpts):
    frame, examples = drawn.drawn(detector, excerpts, n_masks=32, n=2, seed=0)
    assert frame["shape"].tolist() == ["wave"] * 2 + ["zigzag"] * 2 + ["blob"] * 2
    assert frame.loc[frame["flips"] == 0, ["score", "covered"]].isna().all(axis=None)
    assert frame.loc[frame["flips"] == 1, ["score", "covered"]].notna().all(axis=None)
    music = excerpts.waveforms[excerpts.labels == 0]
    quiet = music[detector.probability(music) < 0.5][:2]
    for shape, rows in frame.groupby("shape"):
        after = []
        for wave in quiet:
            loudest = torch.maximum(detector.magnitude(wave[None]), drawn.drawing(shape))
            after.append(detector.probability(loudest, kind="magnitude").item())
        assert rows["flips"].tolist() == [float(p > 0.5) for p in after]
        if max(after) > 0.5:
            example = examples[shape]
            first = int(np.argmax(np.array(after) > 0.5))
            assert example["after"] == pytest.approx(after[first], abs=1e-5)
            before = detector.probability(quiet[first : first + 1]).item()
            assert example["before"] == pytest.approx(before, abs=1e-5)
            case, coef = example["case"], example["explanation"].coef
            change = np.square(case.adversarial.astype(float) - case.clean)
            share = [change[slices(j)].sum() / change.sum() for j in range(20)]
            marked = {j for j in range(20) if share[j] >= 0.05}
            covered = marked <= set(descending(coef)[:3])
            assert rows["covered"].tolist()[first] == covered
    assert examples


def test_conditions_take_turns_over_tracks():
    made = [
        study.Case(condition, track, "", 1, np.zeros((1, 1)), np.zeros((1, 1)))
        for track in range(6)
        for condition in study.CONDITIONS
    ]
    chosen = study.in_turn(made, 5)
    assert [c.track for c in chosen] == [0, 1, 2, 3, 4]
    assert [c.condition for c in chosen] == [*study.CONDITIONS, study.CONDITIONS[0]]
