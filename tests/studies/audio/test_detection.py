"""The singing detector: how often it is right, and changes confined to its cells."""

import librosa
import numpy as np
import pytest
import torch

from xaiutils import attack, segment
from xaiutils.classifiers import singing
from xaiutils.data import assets, datasets
from xaiutils.studies.audio import detection

WAVE = {"lr": 3e-4, "alpha": 2.0, "eps": 0.01}


@pytest.fixture(scope="module")
def detector():
    return singing.load()


@pytest.fixture(scope="module")
def music():
    """(1, 26640): 165 frames without a voice."""
    sound, _ = librosa.load(assets.path("calm_acoustic_1.opus"), sr=16_000, mono=True)
    return torch.from_numpy(sound[80_000:106_640])[None]


def sung(detector, kind="waveform"):
    """Logits of singing of every frame."""
    return {
        "waveform": lambda x: detector.logits(detector.features(x))[..., 1],
        "magnitude": lambda x: detector.logits(detector.features(magnitude=x))[..., 1],
        "features": lambda x: detector.logits(x)[..., 1],
    }[kind]


def cells(*chosen):
    """(165, 80) bool, True in those of the 5 x 4 cells (time, band)."""
    return torch.from_numpy(np.isin(segment.grid((165, 80), 5, 4), [4 * t + f for t, f in chosen]))


# The algorithm


def test_a_confined_waveform_leaks_little(detector, music):
    """Measured: 0.0007 of the squared change, against 0.999 without confinement."""
    allowed = cells((1, 1), (2, 1), (3, 1))
    confine = detection.MaskedSTFT(detector, music.shape[1], allowed)
    settings = WAVE | {"steps": 12}
    found = attack.signed_gradient(sung(detector), music, **settings, confine=confine)
    free = attack.signed_gradient(sung(detector), music, **settings)
    assert 30 < attack.snr(music, found.delta) < 40 and found.success > 0.2
    assert detection.leakage(detector, music, found.delta, allowed) < 0.005
    assert detection.leakage(detector, music, free.delta, allowed) > 0.9
    before, after = detector.features(music)[0], detector.features(found.adversarial)[0]
    closed = ~allowed.any(1)
    assert torch.equal(before[closed], after[closed])
    assert not torch.equal(before[~closed], after[~closed])


def test_leakage_is_the_share_outside(detector, music):
    generator = torch.Generator().manual_seed(0)
    delta = 1e-3 * torch.randn(music.shape, generator=generator)
    allowed = cells((0, 0), (2, 3), (4, 1))
    inside, outside = (detection.leakage(detector, music, delta, c) for c in (~allowed, allowed))
    assert 0.01 < inside < outside and inside + outside == pytest.approx(1)
    change = detector.features(music + delta).double() - detector.features(music).double()
    share = 1 - (change[0] * allowed).norm() ** 2 / change.norm() ** 2
    assert outside == pytest.approx(share.item(), rel=1e-4)
    assert detection.leakage(detector, music, 0 * delta, allowed) == 0


def tone(hertz):
    return torch.sin(2 * torch.pi * hertz * torch.arange(26_640) / 16_000)[None]


def test_the_projection_passes_open_bands_at_open_times_only(detector):
    project = detection.MaskedSTFT(detector, 26_640, cells((2, 1), (3, 1), (4, 0)))
    # Bands 20..39 lie about 650 to 1750 Hz; cells of 5280 samples; 512 at each edge fade.
    x = tone(1000)
    y = project(x)
    assert not y[:, : 2 * 5280 + 240].any()
    torch.testing.assert_close(y[:, 11_400:20_500], x[:, 11_400:20_500], atol=1e-3, rtol=0)
    assert y[:, 4 * 5280 : 26_000].abs().max() < 1e-3  # the tone's end is broad
    assert project(tone(3000))[:, :26_000].abs().max() < 1e-3
    low = project(tone(300))
    assert low[:, : 4 * 5280 + 240].abs().max() < 1e-3 and low[:, 22_000:].abs().max() > 0.9


def test_the_projection_is_linear_and_harmless_where_all_is_open(detector):
    project = detection.MaskedSTFT(detector, 26_640, torch.ones(165, 80, dtype=torch.bool)).double()
    x, y = tone(1000).double(), tone(4321).double()
    torch.testing.assert_close(project(x - 2 * y), project(x) - 2 * project(y))
    torch.testing.assert_close(project(x)[:, 512:-512], x[:, 512:-512], atol=1e-4, rtol=0)


@pytest.mark.parametrize(("frames", "any_room"), [(4, False), (6, True)])
def test_a_window_needs_room(detector, frames, any_room):
    for start in range(20, 30):
        allowed = torch.zeros(165, 80, dtype=torch.bool)
        allowed[start : start + frames] = True
        assert detection.MaskedSTFT(detector, 26_640, allowed).kept.any() == any_room


@pytest.mark.parametrize(
    ("samples", "allowed", "message"),
    [
        (26_640, cells().float(), "allowed: .*float32"),
        (26_480, cells(), r"allowed: .*\(164, 80\).*\(165, 80\)"),
    ],
)
def test_cells_that_do_not_fit_are_named(detector, samples, allowed, message):
    with pytest.raises(ValueError, match=message):
        detection.MaskedSTFT(detector, samples, allowed)


def test_quality_counts_frames_by_hand():
    p = torch.tensor([[0.9, 0.5, 0.2], [0.6, 0.1, 0.7]])
    y = torch.tensor([[1, 1, 0], [0, 0, 1]])
    found = detection.quality(p, y, torch.tensor([5, 9]))
    # Found: 1 0 0 / 1 0 1. A probability of exactly 0.5 is not above it.
    assert found["error"].value == pytest.approx(2 / 6)
    assert found["recall"].value == pytest.approx(2 / 3)
    assert found["specificity"].value == pytest.approx(2 / 3)
    assert {rate.n for rate in found.values()} == {2}
    flat = detection.quality(p.ravel(), y.ravel(), torch.tensor([5, 5, 5, 9, 9, 9]))
    assert flat == found
    alone = detection.quality(p, y, torch.tensor([5, 5]))
    assert all(np.isnan(rate.low) and np.isnan(rate.high) for rate in alone.values())
    assert [rate.value for rate in alone.values()] == [rate.value for rate in found.values()]


def test_intervals_are_those_of_all_resamples_of_tracks():
    """Three tracks: 27 equally likely resamples, enumerated."""
    rng = np.random.default_rng(0)
    tracks = np.repeat([3, 1, 7], [40, 30, 50])
    y = rng.random(120) < 0.5
    wrong = rng.random(120) < np.repeat([0.02, 0.3, 0.6], [40, 30, 50])
    p = np.where(y != wrong, 0.8, 0.2)
    found = detection.quality(*map(torch.from_numpy, (p, y, tracks)), draws=20_000)
    parts = [(y[tracks == t], wrong[tracks == t]) for t in (1, 3, 7)]
    drawn = {"error": [], "recall": [], "specificity": []}
    for indices in np.ndindex(3, 3, 3):
        sung, bad = (np.concatenate([parts[i][k] for i in indices]) for k in (0, 1))
        drawn["error"].append(bad.mean())
        drawn["recall"].append(1 - bad[sung].mean())
        drawn["specificity"].append(1 - bad[~sung].mean())
    for name, values in drawn.items():
        # 1 of 27 resamples holds one track only: both ends of the interval are such resamples.
        assert found[name][1:3] == pytest.approx((min(values), max(values))), name


@pytest.mark.parametrize("label", [0, 1])
def test_quality_needs_both_classes(label):
    with pytest.raises(ValueError, match=f"labels: all 4 are {'' if label else 'not '}sung"):
        detection.quality(torch.rand(4), torch.full((4,), label), torch.arange(4))


@pytest.mark.parametrize(("labels", "tracks"), [((4, 3), (4,)), ((4, 2), (3,)), ((4, 2), (4, 2))])
def test_quality_needs_shapes_that_fit(labels, tracks):
    with pytest.raises(ValueError, match=r"expected shapes \(n, \.\.\.\)"):
        detection.quality(torch.rand(4, 2), torch.ones(labels), torch.ones(tracks))


def test_the_detector_knows_most_excerpts():
    """At +6 dB, 8 % of the centre frames are misjudged, nearly all of them sung ones."""
    sounds = datasets.singing_excerpts(6.0, n_per_track=2, seed=0)
    p = torch.cat([singing.load().probability(x) for x in sounds.waveforms.split(16)])
    found = detection.quality(p, sounds.labels, sounds.tracks)
    assert 0.03 < found["error"].value < 0.15
    assert found["specificity"].value > 0.95
    assert 0.75 < found["recall"].value < 0.95
    assert found["recall"].low < found["recall"].value < found["recall"].high
