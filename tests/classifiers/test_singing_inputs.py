"""What the singing detector is given: other precisions are cast, other scales refused."""

import numpy as np
import pytest
import torch

from xaiutils import runtime
from xaiutils.classifiers import singing


@pytest.fixture(scope="module")
def detector():
    return singing.load()


@pytest.fixture(scope="module")
def sound():
    """A voice-like second (1, 16000), float64: five partials, vibrato, peak 0.5."""
    t = np.arange(singing.RATE) / singing.RATE
    phase = 2 * np.pi * 220 * t + 0.3 * np.sin(2 * np.pi * 5.5 * t)
    wave = sum(np.sin(k * phase) / k for k in range(1, 6))
    return torch.from_numpy(0.5 * wave / np.abs(wave).max())[None]


@pytest.mark.parametrize("kind", ["waveform", "magnitude", "features"])
def test_double_precision_is_cast_to_that_of_the_weights(detector, sound, kind):
    single = {
        "waveform": sound.float(),
        "magnitude": detector.magnitude(sound.float()),
        "features": detector.features(sound.float()),
    }[kind]
    expected = detector.probability(single, kind=kind, frame="all")
    x = sound if kind == "waveform" else single.double()
    x = x.clone().requires_grad_()
    found = detector.probability(x, kind=kind, frame="all")
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    (slope,) = torch.autograd.grad(found.sum(), x)
    assert slope.dtype == torch.float64 and slope.abs().max() > 0
    if kind == "features":
        torch.testing.assert_close(detector(x), detector(single))


def test_a_double_precision_detector_takes_single_precision(sound):
    double = singing.load().double()
    found = double.probability(sound.float())
    assert found.dtype == torch.float64
    assert torch.equal(found, double.probability(sound.float().double()))


@pytest.mark.parametrize("peak", [11, 255, 32768 / 2])
@pytest.mark.parametrize("sign", [1, -1])
def test_samples_in_another_scale_are_refused_with_their_range(detector, sound, peak, sign):
    loud = sign * sound * peak / sound.abs().max()
    low, high = (f"{v:.4g}".replace("+", r"\+") for v in (loud.min(), loud.max()))
    with pytest.raises(ValueError, match=f"from {low} to {high}; divide int16 numbers by 32768"):
        detector.probability(loud)
    with pytest.raises(ValueError, match=r"expected samples in \[-1, 1\], at most 10"):
        detector.features(loud.float())


@pytest.mark.parametrize("peak", [0.0, 1.0, 1.2, 4.0, 10.0])
def test_sums_of_sounds_and_attacks_may_exceed_full_scale(detector, sound, peak):
    loud = sound.float() * np.float32(peak / sound.abs().max())
    features = detector.features(loud.clamp(-peak, peak))
    assert features.isfinite().all()


def test_int16_numbers_that_pass_are_digital_silence(detector, sound):
    """20 log10(10 / 32768) is -70 dB: nothing is heard either way."""
    quiet = sound.float() * 9.9 / 32768
    assert 20 * np.log10(10 / 32768) < -70
    assert detector.probability(quiet, frame="all").max() < 0.5


@pytest.mark.parametrize(("value", "found"), [(np.nan, "3 NaN"), (np.inf, "to inf")])
def test_nan_and_infinity_are_refused(detector, sound, value, found):
    x = sound.float().clone()
    x[0, 7:10] = value
    with pytest.raises(ValueError, match=f"waveform: expected samples .*{found}"):
        detector.magnitude(x)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda d: d.magnitude(np.zeros((1, 1600))), "waveform: .*got ndarray, no tensor"),
        (lambda d: d(np.zeros((1, 165, 80))), "features: .*got ndarray, no tensor"),
        (lambda d: d.magnitude(torch.zeros(1, 1600).cfloat()), r"waveform: .*complex64"),
    ],
)
def test_other_types_are_named(detector, call, message):
    with pytest.raises(ValueError, match=message):
        call(detector)


def test_the_check_of_samples_does_not_stand_in_a_graph(detector, sound):
    """What torch exports holds no condition on values."""

    class Front(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.detector = detector

        def forward(self, x):
            return self.detector.features(x)

    program = torch.export.export(Front(), (sound.float(),))
    torch.testing.assert_close(program.module()(sound.float()), detector.features(sound.float()))
    assert runtime.forward(detector, np.zeros((165, 80), np.float32)).backend == "onnxruntime"
