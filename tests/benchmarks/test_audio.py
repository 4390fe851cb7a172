"""How fast the audio experiments are: the attack, explanations of excerpts, the memory block."""

import time

import numpy as np
import pytest
import torch
from timing import over_model, seconds
from torch.nn.functional import conv1d, pad

from xaiutils import attack, lime, runtime
from xaiutils.classifiers import singing
from xaiutils.classifiers.singing import HOP
from xaiutils.classifiers.trained import one_thread
from xaiutils.data import datasets
from xaiutils.data.excerpts import FRAMES, around
from xaiutils.studies.audio.experiments import CELLS, PRESETS

pytestmark = pytest.mark.benchmark

N = 1024  # masks of an explanation


@pytest.fixture(scope="module")
def detector():
    return singing.load()


@pytest.fixture(scope="module")
def music():
    """(1, samples): a whole track without a voice, about 32 s."""
    return torch.from_numpy(next(datasets.singing_tracks()).music.copy())[None]


@pytest.fixture(scope="module")
def excerpt(detector, music):
    """(165, 80) features from the middle of the track."""
    frames, _ = around(music.shape[1] // HOP // 2)
    with torch.inference_mode():
        return detector.features(music)[0, frames].numpy().copy()


def explained(detector, excerpt, seed):
    return lime.explain(
        detector, excerpt, CELLS, targets=0, n_samples=N, filler=float(excerpt.mean()), seed=seed,
        package_exact=True,
    )  # fmt: skip


def test_attack_on_a_track(bench, detector, music):
    frames = music.shape[1] // HOP
    settings = PRESETS["waveform"] | {"alpha": PRESETS["waveform"]["alpha"] * frames / FRAMES}

    def logits(x):
        return detector.logits(detector.features(x))[..., 1]

    times = []
    for _ in range(2):
        start = time.perf_counter()
        result = attack.signed_gradient(logits, music, **settings)
        times.append(time.perf_counter() - start)
        assert result.all_flipped
    strength = attack.snr(music, result.delta, margin=2048)
    print(f"\n{frames} frames, {result.steps} steps, {strength:.1f} dB: {np.round(times, 2)} s")
    bench("attack on a track until all frames flip", min(times), "s", at_most=20)


def test_explanation_adds_little_to_the_model(bench, monkeypatch, detector, excerpt):
    forward = runtime.forward(detector, excerpt)
    assert forward.backend == "onnxruntime"
    whole = [seconds(explained, detector, excerpt, seed) for seed in range(5)]
    ratios = over_model(
        monkeypatch, forward, lambda seed: explained(detector, excerpt, seed), rounds=5
    )
    print(f"\nexplanation / model calls, {N} masks of an excerpt: {np.round(ratios, 3)}")
    print(f"{N / min(whole):.0f} excerpts/s in batches of {forward.batch_size}")
    bench("explanation of an excerpt", min(whole), "s", at_most=5)
    bench("explanation of an excerpt / its model calls", min(ratios), "x", at_most=1.10)


def one_by_one(detector, excerpt, n, seed):
    """Outputs (n,) as audioLIME asks for them: one mask, one input, one call of the torch model."""
    masks = np.random.RandomState(seed).randint(0, 2, (n, CELLS.d))
    outputs = []
    for row in masks:
        hidden = np.zeros(CELLS.labels.shape, bool)
        for cell in np.flatnonzero(row == 0):
            hidden[CELLS.labels == cell] = True
        x = excerpt.copy()
        x[hidden] = excerpt.mean()
        with torch.no_grad():
            outputs.append(detector(torch.from_numpy(x)[None]).item())
    return np.array(outputs)


def test_faster_than_one_by_one(bench, detector, excerpt):
    few = 128
    runtime.forward(detector, excerpt)  # the export is not the question here
    one_by_one(detector, excerpt, 8, 0)
    per_mask = {"one by one": [], "ours": []}
    for seed in range(5):
        with one_thread():  # the better way for single inputs, by far where the cores are busy
            slow = seconds(one_by_one, detector, excerpt, few, seed)
        per_mask["one by one"].append(slow / few)
        per_mask["ours"].append(seconds(explained, detector, excerpt, seed) / N)
    print({name: f"{1e3 * min(times):.2f} ms a mask" for name, times in per_mask.items()})
    ratio = min(per_mask["one by one"]) / min(per_mask["ours"])
    bench("masks one by one in torch / ours", ratio, "x", at_least=2)


def test_memory_as_one_convolution(bench, detector):
    # Against its definition: p(t), 20 taps that look back, 20 that look ahead.
    memory = next(part for part in detector.modules() if isinstance(part, singing._Memory))
    back, ahead = memory.taps.weight[:, :, 0].split(20, dim=2)
    back = back.clone()
    back[..., -1] -= 1  # p(t) itself, merged into the tap
    p = torch.randn(8, FRAMES, 128, generator=torch.Generator().manual_seed(0))

    def plain(p):
        x = p.transpose(1, 2)
        before = conv1d(pad(x, (19, 0)), back, groups=128)
        after = conv1d(pad(x[..., 1:], (0, 20)), ahead, groups=128)
        return (x + before + after).transpose(1, 2)

    times = {"one": [], "two": []}
    with torch.inference_mode(), one_thread():
        torch.testing.assert_close(memory(p), plain(p), atol=1e-4, rtol=1e-4)
        for _ in range(50):
            times["one"].append(seconds(memory, p))
            times["two"].append(seconds(plain, p))
    print({name: f"{1e3 * np.median(values):.2f} ms" for name, values in times.items()})
    ratio = np.median(times["two"]) / np.median(times["one"])
    bench("memory as two convolutions / as one", ratio, "x", at_least=1.5)
