"""The signed-gradient attack: its steps by hand, its confinement, its strength, its cache."""

from math import inf

import librosa
import numpy as np
import pytest
import torch

from xaiutils import attack, segment
from xaiutils.classifiers import singing
from xaiutils.data import assets
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


def linear(weights):
    """Logits (1, T) of inputs (1, n) by `weights` (n, T), float64."""
    return lambda x: x @ torch.as_tensor(weights, dtype=torch.float64)


def row(*values):
    return torch.tensor([values], dtype=torch.float64)


def cells(*chosen):
    """(165, 80) bool, True in those of the 5 x 4 cells (time, band)."""
    return torch.from_numpy(np.isin(segment.grid((165, 80), 5, 4), [4 * t + f for t, f in chosen]))


# The algorithm


def test_steps_and_change_by_hand():
    """The sign is constant, so that Adam moves exactly lr, though the gradient falls to a half."""
    logits = linear([[100.0], [-200.0]])
    found = attack.signed_gradient(logits, row(-0.035, 0.0), lr=0.001, alpha=1e3, eps=1.0)
    # -3.5 and 0.3 per step: 11 steps leave -0.2.
    assert found.steps == 12 and found.all_flipped and found.success == 1
    torch.testing.assert_close(found.delta, row(0.012, -0.012), rtol=1e-6, atol=0)
    torch.testing.assert_close(found.logits, torch.tensor([0.1]).double(), rtol=1e-5, atol=0)
    torch.testing.assert_close(found.adversarial, row(-0.023, -0.012), rtol=1e-6, atol=0)


def test_it_stops_at_the_first_step_that_flips_all(detector, music):
    found = attack.signed_gradient(sung(detector), music, **WAVE)
    assert found.all_flipped and 1 < found.steps < 30
    before = attack.signed_gradient(sung(detector), music, **WAVE, steps=found.steps - 1)
    assert before.steps == found.steps - 1
    assert not before.all_flipped
    assert before.success == pytest.approx(before.flipped.double().mean().item()) != 1


def test_flipped_is_what_the_detector_decides_on_the_adversarial(detector, music):
    found = attack.signed_gradient(sung(detector), music, **WAVE, steps=2)
    assert 0 < found.success < 1
    p = detector.probability(found.adversarial, frame="all")[0]
    assert torch.equal((p > 0.5) == found.target, found.flipped)
    torch.testing.assert_close(found.logits.sigmoid(), p)
    clean = detector.probability(music, frame="all")[0]
    assert torch.equal(found.target, clean <= 0.5)
    assert found.target.shape == found.flipped.shape == found.logits.shape == (165,)


@pytest.mark.parametrize("kind", ["waveform", "magnitude", "features"])
def test_the_gradient_that_is_signed_is_right(kind):
    detector = singing.load().double()
    generator = torch.Generator().manual_seed(0)
    x = 0.1 * torch.randn(1, 720, generator=generator, dtype=torch.float64)
    if kind != "waveform":
        x = detector.magnitude(x) if kind == "magnitude" else detector.features(x)
    x.requires_grad_()
    assert torch.autograd.gradcheck(sung(detector, kind), x, fast_mode=True, eps=1e-7, atol=1e-4)


def test_no_value_exceeds_eps(detector, music):
    found = attack.signed_gradient(sung(detector), music, lr=3e-4, alpha=1e4, eps=5e-4, steps=6)
    assert found.delta.abs().max() == torch.tensor(5e-4)
    assert (found.delta.abs() < 5e-4).any()


def test_nothing_changes_without_weight_on_the_flip(detector, music):
    found = attack.signed_gradient(sung(detector), music, lr=3e-4, alpha=0, eps=0.01, steps=3)
    assert found.steps == 3 and not found.delta.any() and found.success == 0


def test_a_derivative_that_is_no_number_counts_as_zero():
    def logits(x):
        return x[:, :1] + 0 * (x[:, 1:] ** 2).sqrt()  # 0 / 0 at 0

    found = attack.signed_gradient(logits, row(-0.5, 0.0), lr=0.1, alpha=9, eps=1)
    assert found.steps == 6 and found.delta[0, 1] == 0


def test_a_tie_is_on_neither_side():
    """0 is decided negative, and neither decision counts as reached by it."""
    settings = {"lr": 0.25, "alpha": 100, "eps": 9}
    assert attack.signed_gradient(linear([[1.0]]), row(0.0), **settings).target.tolist() == [True]
    for wanted in (True, False):
        found = attack.signed_gradient(
            linear([[1.0]]), row(0.0), target=torch.tensor([[wanted]]), **settings
        )
        assert found.steps == 1 and (found.logits > 0).tolist() == [wanted]


def test_frames_are_decided_by_the_threshold():
    x = row(0.01, 0.1)  # probabilities 0.5025 and 0.525
    found = attack.signed_gradient(linear(np.eye(2)), x, threshold=0.51, lr=1, alpha=9, eps=9)
    assert found.target.tolist() == [True, False]


def test_a_target_already_reached_takes_no_step():
    wanted = torch.tensor([[True, False]])
    found = attack.signed_gradient(linear(np.eye(2)), row(1.0, -1.0), target=wanted, **WAVE)
    assert found.steps == 0 and found.all_flipped and not found.delta.any()


def test_the_input_is_left_alone(music, detector):
    x = music.clone().requires_grad_()
    found = attack.signed_gradient(sung(detector), x, **WAVE, steps=2)
    assert torch.equal(x, music) and x.grad is None
    assert not any(t.requires_grad for t in (found.x, found.delta, found.logits, found.adversarial))


# Strength


def test_snr_of_known_changes():
    x = torch.full((1, 100), 3.0)
    assert attack.snr(x, torch.full((1, 100), 0.03)) == pytest.approx(40, abs=1e-5)
    delta = torch.zeros(1, 100)
    delta[0, 50] = 0.3  # norms 30 and 0.3
    assert attack.snr(x, delta) == pytest.approx(40, abs=1e-5)
    delta[0, [0, 9, 90, 99]] = 7
    assert attack.snr(x, delta, margin=10) == pytest.approx(20 * np.log10(80**0.5 * 10), abs=1e-5)
    assert attack.snr(x, delta, margin=9) < 10
    assert attack.snr(x, torch.zeros(1, 100)) == inf


# Confinement


def test_confined_features_are_bit_identical_elsewhere(detector, music):
    x = detector.features(music)
    allowed = cells((1, 1), (3, 2))
    found = attack.signed_gradient(
        sung(detector, "features"), x, lr=0.05, alpha=100, eps=0.5, steps=8, confine=allowed
    )
    changed = (found.adversarial != x)[0]
    assert not changed[~allowed].any() and not found.delta[0][~allowed].any()
    assert changed[allowed].float().mean() > 0.99
    broadcast = attack.signed_gradient(
        sung(detector, "features"), x, **WAVE, steps=1, confine=torch.arange(80) < 3
    )
    assert broadcast.delta[0].any(0).nonzero()[:, 0].tolist() == [0, 1, 2]


def test_a_projection_acts_on_the_gradient_and_on_the_change():
    """Onto equal values: the larger weight decides which way both go."""

    def mean(change):
        return change.mean(1, keepdim=True).expand_as(change)

    found = attack.signed_gradient(
        linear([[1.0], [-3.0]]), row(1.0, 0.0), lr=0.1, alpha=99, eps=9, confine=mean, steps=4
    )
    # The logit 1 falls by 2 * 0.1 per step: after both were moved up.
    torch.testing.assert_close(found.delta, row(0.4, 0.4))


# The cache


class Logits:
    """Linear logits that count their calls and note the number of threads."""

    def __init__(self):
        self.calls, self.threads = 0, set()

    def __call__(self, x):
        self.calls += 1
        self.threads.add(torch.get_num_threads())
        return x @ row(1.0, -1.0).T


X = row(-0.3, 0.0)
SETTINGS = {"lr": 0.1, "alpha": 9.0, "eps": 1.0}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("XAIUTILS_CACHE", str(tmp_path))
    return tmp_path / "attacks"


def run(logits, x=X, parts=("weights 1",), **changed):
    return attack.cached("toy", logits, x, *parts, **(SETTINGS | changed))


def same(one, two):
    tensors = ("x", "delta", "target", "logits", "flipped", "adversarial")
    return one.steps == two.steps and all(
        torch.equal(getattr(one, t), getattr(two, t)) for t in tensors
    )


def test_a_hit_computes_nothing(folder):
    logits = Logits()
    first = run(logits)
    assert first.steps == 2 and logits.calls == 3
    assert same(first, attack.signed_gradient(Logits(), X, **SETTINGS))
    second = run(logits)
    assert logits.calls == 3 and same(first, second)
    assert second.target.dtype == second.flipped.dtype == torch.bool
    (file,) = (f for f in folder.iterdir() if f.name != ".lock")
    assert file.name.startswith("toy-") and file.suffix == ".safetensors"


def test_it_runs_on_one_thread(folder):
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        logits = Logits()
        run(logits)
        assert logits.threads == {1} and torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def layer(weight):
    module = torch.nn.Linear(2, 1, bias=False)
    module.weight.data.fill_(weight)
    return module


OTHERS = {
    "setting": {"alpha": 8.0},
    "new setting": {"steps": 1000},
    "input": {"x": row(-0.3, 1e-9)},
    "part": {"parts": ("weights 2",)},
    "target": {"target": torch.tensor([[True]])},
    "confine": {"confine": torch.tensor([True, False])},
    "other confine": {"confine": torch.tensor([False, True])},
    "shape of confine": {"confine": torch.tensor([[True, False]])},
    "module": {"parts": (layer(1.0),)},
    "weights of the module": {"parts": (layer(2.0),)},
    "type of the module": {"parts": (torch.nn.Sequential(layer(1.0)),)},
}


def test_whatever_it_depends_on_makes_another_attack(folder):
    run(Logits())
    for changed in OTHERS.values():
        logits = Logits()
        first = run(logits, **changed)
        assert logits.calls > 0
        asked = logits.calls
        assert same(first, run(logits, **changed)) and logits.calls == asked
    assert len(list(folder.glob("*.safetensors"))) == 1 + len(OTHERS)


def test_the_code_and_the_open_cells_are_part_of_the_key(folder, monkeypatch, detector):
    def copy(*args, **kwargs):
        return original(*args, **kwargs)

    def confined(*chosen):
        confine = detection.MaskedSTFT(detector, 26_640, cells(*chosen))
        zeros = torch.zeros(1, 26_640)
        return attack.cached("toy", lambda x: x[:, :1] + 1, zeros, confine=confine, **WAVE, steps=0)

    for chosen in ((0, 0),), ((0, 1),), ((0, 1),):
        confined(*chosen)
    assert len(list(folder.glob("*.safetensors"))) == 2
    original = attack.signed_gradient
    monkeypatch.setattr(attack, "signed_gradient", copy)
    confined((0, 1))
    assert len(list(folder.glob("*.safetensors"))) == 3


def truncated(file):
    file.write_bytes(file.read_bytes()[:-3])


def one_bit_flipped(file):
    content = bytearray(file.read_bytes())
    content[-9] ^= 1
    file.write_bytes(content)


def of_another_key(file):
    run(Logits(), alpha=8.0)
    (other,) = set(file.parent.glob("*.safetensors")) - {file}
    other.replace(file)


def emptied(file):
    file.write_bytes(b"")


@pytest.mark.parametrize("damage", [truncated, one_bit_flipped, of_another_key, emptied])
def test_a_damaged_file_is_replaced(folder, damage):
    first = run(Logits())
    (file,) = folder.glob("*.safetensors")
    intact = file.read_bytes()
    damage(file)
    assert file.read_bytes() != intact
    logits = Logits()
    assert same(run(logits), first) and logits.calls == 3
    assert file.read_bytes() == intact


# Refusals

ONE = linear([[1.0]])


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"lr": 0.0}, "lr and eps above 0.* lr=0.0"),
        ({"eps": 0.0}, "lr and eps above 0.* eps=0.0"),
        ({"alpha": -1.0}, "alpha and steps at least 0.* alpha=-1.0"),
        ({"steps": -1}, "steps=-1"),
        ({"threshold": 1.0}, "threshold=1.0"),
        ({"threshold": float("nan")}, "threshold=nan"),
        ({"target": torch.tensor([True])}, r"target: expected bool \(1, 1\).*\(1,\)"),
        ({"target": torch.tensor([[1.0]])}, "target: expected bool .*float32"),
        ({"confine": torch.ones(1, 2).bool()}, r"confine: expected bool .*\(1, 1\).*\(1, 2\)"),
        ({"confine": torch.ones(1, 1, 1).bool()}, "confine: expected bool"),
        ({"confine": torch.ones(1, 1)}, "confine: expected bool .*float32"),
    ],
)
def test_wrong_settings_are_named(changed, message):
    with pytest.raises(ValueError, match=message):
        attack.signed_gradient(ONE, row(-1.0), **(WAVE | changed))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda d: attack.signed_gradient(ONE, row(1.0)[0], **WAVE), r"x: expected floats \(1"),
        (lambda d: attack.signed_gradient(ONE, row(1.0).expand(2, 1), **WAVE), r"x: .*\(2, 1\)"),
        (lambda d: attack.signed_gradient(ONE, row(1.0).int(), **WAVE), "x: .*int32"),
        (lambda d: attack.signed_gradient(lambda x: x[0], row(1.0), **WAVE), r"logits: .*\(1, T\)"),
        (lambda d: attack.snr(row(1.0, 2.0), row(1.0)), r"delta: .*\(1, 2\).*\(1, 1\)"),
        (lambda d: attack.snr(row(1.0, 2.0), row(1.0, 2.0), margin=1), "margin=1"),
        (lambda d: attack.snr(row(1.0, 2.0), row(1.0, 2.0), margin=-1), "margin=-1"),
    ],
)
def test_wrong_shapes_are_named(detector, call, message):
    with pytest.raises(ValueError, match=message):
        call(detector)
