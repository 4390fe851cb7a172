"""Singing excerpts: pairs, levels, labels from the voice alone; error rates and their intervals."""

import re

import librosa
import numpy as np
import pytest
import torch

from xaiutils.classifiers import singing
from xaiutils.data import assets, datasets, excerpts


@pytest.fixture(scope="module")
def louder():
    return datasets.singing_excerpts(level_db=6.0, n_per_track=2)


def test_excerpts_come_in_pairs_of_165_frames(louder):
    assert louder.waveforms.shape == (112, excerpts.SAMPLES) and excerpts.SAMPLES == 26_640
    assert louder.waveforms.dtype == torch.float32 and louder.waveforms.abs().max() <= 1
    assert louder.labels.tolist() == [0, 1] * 56
    assert louder.activity.shape == (112, 165) and louder.activity.dtype == torch.bool
    assert not louder.activity[::2].any()
    assert torch.equal(louder.activity[:, 82].long(), louder.labels)
    assert 0.5 < louder.activity[1::2].float().mean() < 1
    assert louder.level_db == 6 and louder.names[1].startswith("calm_acoustic_1 with vocadito_10")
    frames = singing.load().features(louder.waveforms[:1])
    assert frames.shape[1] == 165 == singing.load().features(louder.waveforms[:1, 1:]).shape[1] + 1


def test_an_excerpt_is_cut_where_its_name_says(louder):
    time = float(re.search(r"at ([\d.]+) s", louder.names[0])[1])
    music, _ = librosa.load(assets.path("calm_acoustic_1.opus"), sr=16_000)
    found = [
        start
        for start in range(0, len(music) - excerpts.SAMPLES, 160)
        if np.corrcoef(music[start : start + excerpts.SAMPLES], louder.waveforms[0])[0, 1] > 0.999
    ]
    assert len(found) == 1
    assert (found[0] + 82 * 160 + 200) / 16_000 == pytest.approx(time, abs=0.006)


def test_the_other_row_of_a_pair_adds_the_voice_where_it_is_active(louder):
    added = (louder.waveforms[1::2] - louder.waveforms[::2]).double()
    energy = added.unfold(1, 400, 160).square().mean(2)  # (56, 165)
    active = louder.activity[1::2]
    for row, sung in zip(energy, active, strict=True):
        assert row[82] > 10**-3.5 * row.max()
        if not sung.all():
            assert row[~sung].max() < 0.1 * row[sung].max()
    by = [re.search(r"with (\w+) at", name)[1] for name in louder.names[1::2]]
    for i in (0, 2):  # a track of each singer: what was added is a piece of that recording, scaled
        voice, _ = librosa.load(assets.path(f"{by[i]}.wav"), sr=16_000)
        twice = torch.from_numpy(np.concatenate([voice, voice])).double()
        size = len(twice) + excerpts.SAMPLES
        spectrum = torch.fft.rfft(twice, size) * torch.fft.rfft(added[i], size).conj()
        match = torch.fft.irfft(spectrum, size)[: len(voice)]
        start = match.argmax()
        piece = twice[start : start + excerpts.SAMPLES]
        assert match[start] / (piece.norm() * added[i].norm()) > 0.999


@pytest.mark.parametrize("level_db", [-6.0, 0.0, 12.0])
def test_level_is_voice_over_music_in_the_frames_that_are_sung(level_db):
    rng = np.random.default_rng(0)
    music, voice = rng.normal(size=(2, 4000)).astype(np.float32) * 0.01
    active = np.arange(23) >= 12
    voice[:1840] = 0  # up to where frame 12 does not reach back
    before, after = excerpts._mixed(music, voice, active, level_db)
    both = [
        sum((x[160 * t : 160 * t + 400].astype(float) ** 2).sum() for t in range(12, 23))
        for x in (after - before, before)
    ]
    assert 10 * np.log10(both[0] / both[1]) == pytest.approx(level_db, abs=1e-3)
    np.testing.assert_array_equal(before, music)  # nothing clips, nothing is scaled


def test_a_pair_that_would_clip_is_scaled_alike():
    music, voice = np.full((2, 400), 0.8, np.float32)
    before, after = excerpts._mixed(music, voice, np.array([True]), 0.0)
    np.testing.assert_allclose(after, 1, rtol=1e-6)
    np.testing.assert_allclose(before, 0.5, rtol=1e-6)


def test_level_changes_nothing_but_the_voice(louder):
    equal = datasets.singing_excerpts(level_db=0.0, n_per_track=2)
    assert equal.names == louder.names and torch.equal(equal.activity, louder.activity)
    for i in range(0, 112, 2):
        scale = equal.waveforms[i].norm() / louder.waveforms[i].norm()  # of the track, see above
        music, voice = louder.waveforms[i], louder.waveforms[i + 1] - louder.waveforms[i]
        expected = scale * (music + voice * 10 ** (-6 / 20))
        torch.testing.assert_close(equal.waveforms[i + 1], expected, atol=1e-5, rtol=0)


def test_singers_share_no_track_and_excerpts_no_sample(louder):
    assert sorted(set(louder.tracks.tolist())) == list(range(28))
    by_singer = [set(louder.tracks[louder.singers == s].tolist()) for s in (0, 1)]
    assert len(by_singer[0]) == len(by_singer[1]) == 14 and not by_singer[0] & by_singer[1]
    many = datasets.singing_excerpts(n_per_track=8)
    times = [float(re.search(r"at ([\d.]+) s", name)[1]) for name in many.names[::2]]
    apart = np.diff(np.reshape(times, (28, 8)), axis=1)
    assert apart.min() > 1.665 - 0.006  # times have two decimals


def test_the_seed_decides_on_the_excerpts(louder):
    again = datasets.singing_excerpts(level_db=6.0, n_per_track=2, seed=0)
    assert torch.equal(again.waveforms, louder.waveforms)
    other = datasets.singing_excerpts(level_db=6.0, n_per_track=2, seed=1)
    assert sum(a != b for a, b in zip(other.names, louder.names, strict=True)) > 100


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"level_db": float("nan")}, "level_db is nan, must be a finite"),
        ({"n_per_track": 0}, "n_per_track is 0, must be at least 1"),
        ({"n_per_track": 40}, r"n_per_track is 40, but calm_acoustic_1 has room for \d+ excerpts"),
    ],
)
def test_impossible_requests_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        datasets.singing_excerpts(**arguments)


def tone(levels_db, seconds=0.5):
    """A 200 Hz tone with a stretch of `seconds` at each level; stretch k begins at frame 50 k."""
    n = round(seconds * 16_000)
    gain = np.repeat(10 ** (np.array(levels_db) / 20), n)
    return (gain * np.sin(2 * np.pi * 200 * np.arange(len(gain)) / 16_000)).astype(np.float32)


@pytest.mark.parametrize("volume", [1.0, 0.01])
def test_activity_starts_25_db_below_the_loud_frames_and_lasts_to_35(volume):
    levels = [-30, -60, 0, -30, -40, -30, -24, -30, -60, 0]
    active = excerpts.activity(volume * tone(levels))
    # -30 counts only next to something louder than -25, on either side.
    expected = [False, False, True, True, False, True, True, True, False, True]
    assert active[20::50].tolist() == expected
    assert len(active) == 1 + (len(tone(levels)) - 400) // 160


def test_silence_between_phrases_is_a_pause_even_when_it_is_digital():
    sound = np.concatenate([tone([0]), np.zeros(8000, np.float32), tone([0])])
    assert excerpts.activity(sound)[20::50].tolist() == [True, False, True]


def test_labels_are_on_the_grid_of_the_detector():
    assert (excerpts.RATE, excerpts.WINDOW, excerpts.HOP) == (
        singing.RATE,
        singing.WINDOW,
        singing.HOP,
    )
