"""From a file to its explanation: which part is explained, by what, and what is said about it."""

import re

import matplotlib.pyplot as plt
import numpy as np
import pytest
import soundfile
import torch
from PIL import Image

from xaiutils import lime, segment
from xaiutils.classifiers import imagenet, singing
from xaiutils.companion import explain_file, own_model, subject
from xaiutils.companion.subject import OptionError, Options
from xaiutils.data import assets, files
from xaiutils.perturb import Components

FEW = Options(masks=40)


@pytest.fixture(autouse=True)
def closed_figures():
    yield
    plt.close("all")


@pytest.fixture
def models(monkeypatch):
    """Function that lets a model of the test be found under a name."""

    def known(**found):
        monkeypatch.setattr(own_model, "load", lambda name: found[name])

    return known


@pytest.fixture(scope="module")
def song():
    return files.read_sound(assets.path("vocadito_14.wav"))


@pytest.fixture
def written(tmp_path):
    """Function that writes a sound and returns the path."""

    def write(samples, name="song.wav", rate=singing.RATE, **options):
        soundfile.write(tmp_path / name, samples, rate, **options)
        return tmp_path / name

    return write


def low_middle(x):
    """How loud the low bands are in the middle of log-mel features (B, frames, 80), in [0, 1]."""
    x = torch.as_tensor(x)
    third = x.shape[1] // 3
    return ((x[:, third:-third, :20].mean((1, 2)) - 10) / 5).sigmoid()[:, None]


def table(report):
    """Rows of the table by rank: cell, coefficient, standard error, words."""
    row = r"^ +(\d+) +(\d+) +(-?[\d.]+) +([\d.]+|nan) +(yes|no|-) +(.*)$"
    return {int(r[0]): r[1:] for r in re.findall(row, report.text, re.M)}


def test_a_photograph_is_explained_as_the_pieces_do_it():
    path = assets.path("imagenet_00_243.jpg")
    report = explain_file.explain(path, Options(cells="3x4", masks=14, seed=3))
    network = imagenet.load("efficientnet_lite0")
    model = torch.nn.Sequential(network, torch.nn.Softmax(dim=1))
    image = files.read_photograph(path, 224)
    cells = Components(segment.grid((224, 224), 3, 4))
    stop = lime.Stop(top_k=3, max_samples=112)
    found = lime.explain(model, image, cells, targets=243, n_samples=14, stop=stop, seed=3)
    np.testing.assert_array_equal(report.found.coef, found.coef)
    assert report.found.converged == found.converged
    probability = model(torch.tensor(image)[None])[0, 243].item()
    assert f"says: class 243 (bull mastiff), probability {probability:.3f}; with" in report.text
    assert f"LIME, 12 cells, {len(found.masks)} masks: the top 3 are " in report.text
    rows = table(report)
    assert list(rows) == [1, 2, 3]
    for rank, (cell, coefficient, stderr, _, place) in rows.items():
        assert int(cell) == np.argsort(-found.coef)[rank - 1]
        assert float(coefficient) == pytest.approx(found.coef[int(cell)], abs=6e-5)
        assert float(stderr) == pytest.approx(found.stderr[int(cell)], abs=6e-5)
        x, y = map(int, place.split(","))
        assert cells.labels[int(y * 224 / 512), int(x * 224 / 512)] == int(cell)


def colours(x):
    """Probabilities by how much bright red, green and blue there is amid a batch of images."""
    side = x.shape[2] // 4
    middle = torch.as_tensor(x)[:, :, side:-side, side:-side]
    return (9 * middle.square().mean((2, 3))).softmax(1)


def test_the_central_square_of_a_wide_photograph_is_explained(tmp_path, models):
    models(colours=colours)
    pixels = np.random.default_rng(0).integers(0, 60, (40, 100, 3), np.uint8)
    pixels[10:15, 50:60, 2] = 255  # blue above and right of the middle
    path = tmp_path / "wide.png"
    Image.fromarray(pixels).save(path)
    report = explain_file.explain(path, Options("colours", size=16, cells="4x4", masks=60, top=1))
    assert "100 x 40 pixels; explained: its central square, 16 x 16" in report.text
    assert "colours says: class 2, probability 0." in report.text
    (_, _, _, apart, place) = table(report)[1]
    assert apart == "yes" and report.found.converged
    x, y = map(int, place.split(","))  # of the file, not of the square
    assert 50 <= x <= 60 and 10 <= y <= 20


def test_another_target_is_explained_and_the_largest_named(tmp_path, models):
    models(colours=colours)
    path = tmp_path / "a.png"
    noise = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
    Image.fromarray(noise).save(path)
    image = files.read_photograph(path, 16)
    values = colours(torch.tensor(image)[None])[0]
    largest, other = int(values.argmax()), int(values.argmin())
    options = Options("colours", target=other, size=16, cells="4x4", masks=40)
    text = explain_file.explain(path, options).text
    assert f"says: class {other}, probability {values[other]:.3f}; with" in text
    assert f"(its largest: class {largest}, {values[largest]:.3f})" in text


def test_ties_are_said_not_to_be_told_apart(tmp_path, models):
    # One bright pixel in each of four cells, all alike: no cell is above another.
    models(count=lambda x: torch.as_tensor(x).square().mean((1, 2, 3))[:, None])
    pixels = np.zeros((8, 8, 3), np.uint8)
    pixels[2::4, 2::4] = 255
    path = tmp_path / "a.png"
    Image.fromarray(pixels).save(path)
    black = Options("count", size=8, cells="2x2", masks=40, top=2)
    report = explain_file.explain(path, black)
    assert not report.found.converged
    assert "the top 2 are NOT told apart from the rest" in report.text
    assert table(report)[2][3] == "no"


def test_an_answer_that_never_changes_is_said_to_be_one(tmp_path, models):
    models(constant=lambda x: torch.full((len(x), 2), 0.5))
    noise = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "a.png")
    options = Options("constant", size=8, cells="2x2", masks=40)
    text = explain_file.explain(tmp_path / "a.png", options).text
    assert "hiding cells changes nothing in the answer" in text


def test_small_effects_keep_their_digits(tmp_path, models):
    models(
        faint=lambda x: 0.5 + 1e-5 * torch.as_tensor(x).double()[:, :, :4].amax((1, 2, 3))[:, None]
    )
    noise = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "a.png")
    report = explain_file.explain(
        tmp_path / "a.png", Options("faint", size=8, cells="2x2", masks=40)
    )
    cell, coefficient, stderr, *_ = table(report)[1]
    found = report.found
    assert float(coefficient) == pytest.approx(found.coef[int(cell)], rel=0.01)
    assert float(stderr) == pytest.approx(found.stderr[int(cell)], rel=0.05)


def test_a_picture_of_one_colour_is_refused(tmp_path):
    Image.new("RGB", (300, 200), (9, 99, 199)).save(tmp_path / "a.png")
    with pytest.raises(files.FileError, match="has one colour everywhere"):
        explain_file.explain(tmp_path / "a.png", FEW)


@pytest.mark.parametrize("cells", [None, "9"])
def test_superpixels_are_those_of_quickshift_or_about_so_many(cells):
    x = files.read_photograph(assets.path("imagenet_00_243.jpg"), 64)
    found = subject._superpixels(x, cells)
    wanted = segment.quickshift(x) if cells is None else segment.slic(x, n_segments=9)
    np.testing.assert_array_equal(found.labels, wanted)


def test_the_most_certain_singing_is_explained(song, written):
    quiet = np.random.default_rng(0).normal(size=len(song)).astype(np.float32) * 1e-3
    start = 4 * singing.RATE
    quiet[start : start + 3 * singing.RATE] += song[5 * singing.RATE : 8 * singing.RATE]
    report = explain_file.explain(written(quiet), FEW)
    first, last = map(float, re.search(r"explained: ([\d.]+) to ([\d.]+) s", report.text).groups())
    assert last - first == pytest.approx(2, abs=0.02)
    assert 4 < (first + last) / 2 < 7
    assert "where the model is most certain" in report.text
    probability = float(re.search(r"says: singing, probability ([\d.]+)", report.text)[1])
    cut = torch.from_numpy(quiet[round(first * 16_000) :][:32_000])
    detector = singing.load()
    assert detector(detector.features(cut[None])).item() == pytest.approx(probability, abs=6e-4)
    assert probability > 0.9


def test_a_place_can_be_chosen_and_is_the_same_cut_out_of_the_whole(song, written):
    path = written(song, subtype="FLOAT")
    report = explain_file.explain(path, Options(masks=40, at=3.0))
    detector = singing.load()
    first = float(re.search(r"explained: ([\d.]+) to [\d.]+ s, around 3.0 s", report.text)[1])
    assert first + 0.99 == pytest.approx(3.0, abs=0.02)
    part = song[round(first * 16_000) :][:32_000]
    features = detector.features(torch.from_numpy(part)[None])[0]
    cells = Components(segment.grid(features.shape, 5, 4))
    stop = lime.Stop(top_k=3, max_samples=320)
    filler = float(features.min())
    found = lime.explain(
        detector, features, cells, targets=0, n_samples=40, filler=filler, stop=stop
    )
    np.testing.assert_allclose(report.found.coef, found.coef, atol=1e-4)


def test_the_middle_of_an_mp3_is_that_of_the_whole(song, written, models):
    models(low=low_middle)
    path = written(song, "song.mp3")
    whole = written(files.read_sound(path), "whole.wav", subtype="FLOAT")
    options = Options("low", masks=40, at=6.0)
    found, expected = (explain_file.explain(p, options).found for p in (path, whole))
    assert np.abs(expected.coef).max() > 0.01
    np.testing.assert_array_equal(found.coef, expected.coef)


def test_a_place_near_the_end_takes_the_last_two_seconds(song, written, models):
    models(low=low_middle)
    length = len(song) / singing.RATE
    report = explain_file.explain(written(song), Options("low", masks=40, at=length))
    last = float(re.search(r"explained: [\d.]+ to ([\d.]+) s", report.text)[1])
    assert last == pytest.approx(length, abs=0.02)
    for at in (-1.0, length + 1, float("nan")):
        with pytest.raises(OptionError, match=r"is not within .*song\.wav, 0 to 12\.20 s"):
            explain_file.explain(written(song), Options(at=at))


def test_two_channels_and_another_rate_make_no_difference_to_speak_of(song, written, models):
    models(low=low_middle)
    options = Options("low", masks=40, at=6.0)
    one = explain_file.explain(written(song), options)
    both = written(np.repeat(song[:, None], 2, axis=1), "both.wav")
    np.testing.assert_allclose(explain_file.explain(both, options).found.coef, one.found.coef)
    slow = written(song[::2], "slow.wav", rate=8000)
    assert "12.20 s of sound at only 8000 Hz; explained" in explain_file.explain(slow, options).text


def test_a_short_sound_is_explained_whole_and_a_shorter_one_refused(song, written, models):
    models(low=low_middle)
    part = song[90_000:]
    report = explain_file.explain(written(part[:16_000]), Options("low", masks=40))
    assert "1.00 s of sound; explained: 0.00 to 0.99 s" in report.text
    with pytest.raises(files.FileError, match=r"lasts 0\.20 s; at least 0\.5 s are needed"):
        explain_file.explain(written(part[:3200]), FEW)


def test_silence_is_refused_and_never_chosen(song, written):
    silent = np.zeros(5 * singing.RATE, np.float32)
    with pytest.raises(files.FileError, match=r"song\.wav is silent from 0\.00 to 1\.99 s"):
        explain_file.explain(written(silent), FEW)
    noise = np.random.default_rng(0).normal(size=singing.RATE).astype(np.float32) * 1e-4
    with_noise = written(np.concatenate([silent, noise]))
    assert re.search(r"explained: [3-4]\.\d\d to", explain_file.explain(with_noise, FEW).text)
    with pytest.raises(files.FileError, match="is silent from 0"):
        explain_file.explain(with_noise, Options(at=1.0))


def test_an_own_model_gets_the_features_of_a_sound(song, written, models):
    asked = []

    def loudness(x):  # of the low bands in the middle, and of the high ones
        asked.append(x.shape[1:])
        x = torch.as_tensor(x)
        middle = x[:, x.shape[1] * 2 // 5 : x.shape[1] * 3 // 5]
        return torch.stack([middle[..., :20].mean((1, 2)), middle[..., 60:].mean((1, 2))], 1)

    models(loudness=loudness)
    report = explain_file.explain(written(song), Options("loudness", target=0, masks=60, top=1))
    assert set(asked) == {(198, 80)}
    assert "loudness says: class 0, probability (softmax of its outputs) " in report.text
    assert table(report)[1][0] == "8"  # third of five times, lowest of four bands
    assert "20 to 642" in table(report)[1][4]


def test_a_model_that_raises_later_is_named(song, written, models):
    calls = []

    def tired(x):
        calls.append(len(x))
        if len(calls) > 3:  # the outputs' kind, the place, the answer; then masks
            raise RuntimeError("no more\nfor today")
        return torch.as_tensor(x).mean((1, 2))[:, None]

    models(tired=tired)
    with pytest.raises(own_model.ModelError, match="RuntimeError: no more for today"):
        explain_file.explain(written(song[: 2 * 16_000]), Options("tired", masks=40))


def test_options_of_the_other_kind_of_file_are_refused(song, written):
    with pytest.raises(OptionError, match=r"size is for images, and .*song\.wav is a sound"):
        explain_file.explain(written(song), Options(size=100))
    with pytest.raises(
        OptionError, match="cells '7' is not allowed here: give AxB, at most 198x80"
    ):
        explain_file.explain(written(song), Options(cells="7"))


def test_features_of_a_long_sound_are_those_of_the_whole(monkeypatch, song):
    monkeypatch.setattr(subject, "_BLOCK", 100)
    detector = singing.load()
    expected = detector.features(torch.from_numpy(song)[None])[0]
    torch.testing.assert_close(subject._features(detector, song), expected)


def test_the_drawing_leaves_the_readers_settings_alone(tmp_path, models):
    models(colours=colours)
    before = dict(plt.rcParams)
    noise = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "a.png")
    options = Options("colours", size=16, cells="5x5", masks=40, top=24)
    report = explain_file.explain(tmp_path / "a.png", options)
    assert dict(plt.rcParams) == before
    assert len(report.figure.axes) == 4  # three panels and a colour bar
    assert report.png({}).startswith(b"\x89PNG")
