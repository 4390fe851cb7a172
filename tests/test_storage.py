"""Explanations and curves in files: exactly what was saved comes back, or an error does."""

import dataclasses
import json
import os
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest

from xaiutils import fidelity, lime
from xaiutils.perturb import Components

X = np.random.default_rng(0).random((3, 4, 6), dtype=np.float32)
COLUMNS = Components(np.arange(6)[None] // 2)


def model(batch):
    return batch.mean(dim=(2, 3)).square()


def explanation(targets=0, **options):
    options = {"n_samples": 40, "filler": 0.0} | options
    return lime.explain(model, X, COLUMNS, targets=targets, **options)


def curves(**options):
    x = np.stack([X, X[::-1], 1 - X])
    scores = np.random.default_rng(1).random((3, 4, 6))
    options = {"filler": 0.0, "steps": 5} | options
    return fidelity.curves(model, x, np.array([0, 2, 1]), scores, **options)


KEPT = {
    "one target": explanation,
    "several targets": lambda: explanation([2, 0]),
    "settled": lambda: explanation(stop=lime.Stop(stderr=1.0)),
    "not settled": lambda: explanation(stop=lime.Stop(stderr=1e-9, max_samples=80)),
    "callable filler": lambda: explanation(filler=lambda x, components, masks: 0 * x),
    "nothing known": lambda: explanation(n_samples=2),
    "one component": lambda: lime.explain(
        model, X, Components([[0]]), targets=0, n_samples=9, filler=0.0
    ),
    "curves": curves,
    "curves of one order": lambda: curves(orders=("lif",)),
}


@pytest.fixture(params=KEPT)
def found(request):
    return KEPT[request.param]()


def assert_same(a, b):
    assert type(a) is type(b)
    for field in dataclasses.fields(a):
        one, other = getattr(a, field.name), getattr(b, field.name)
        assert type(one) is type(other), field.name
        if isinstance(one, np.ndarray | np.generic):
            assert (one.dtype, one.shape) == (other.dtype, other.shape), field.name
            assert np.array_equal(one, other, equal_nan=one.dtype.kind == "f"), field.name
        else:
            assert one == other, field.name


def test_what_was_saved_comes_back(found, tmp_path):
    for name in ("kept.npz", "kept", "new folder/kept.x"):
        path = tmp_path / name
        found.save(path)
        assert path.is_file()
        assert_same(type(found).load(path), found)
        assert_same(type(found).load(str(path)), found)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["kept", "kept.npz", "new folder"]


def test_single_precision_and_other_byte_orders_come_back_as_they_were(tmp_path):
    found = explanation()
    fields = {"coef": found.coef.astype(np.float32), "weights": found.weights.astype(">f8")}
    changed = dataclasses.replace(found, **fields)
    changed.save(tmp_path / "kept")
    assert_same(lime.Explanation.load(tmp_path / "kept"), changed)


def test_a_dictionary_of_json_types(found):
    plain = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert list(plain) and set(plain) == {field.name for field in dataclasses.fields(found)}
    for name, value in plain.items():
        one = getattr(found, name)
        if isinstance(one, np.ndarray | np.generic) and one.dtype.kind == "f":
            again = np.array(value, float).astype(one.dtype)  # None becomes NaN
            assert np.array_equal(again, one, equal_nan=True), name
        elif isinstance(one, np.ndarray):
            assert value == one.tolist(), name
        else:
            assert value == (list(one) if isinstance(one, tuple) else one), name


def test_infinities_become_text_and_nan_becomes_none():
    logits = np.array([np.nan, np.inf, -np.inf, 1.5], np.float32).reshape(1, 1, 4)
    one = np.zeros((1, 1, 4), np.float32)
    found = fidelity.Curves(
        np.linspace(0, 1, 4), ("mif",), one > 0, one, one, logits, one, np.array([0])
    )
    assert found.to_dict()["logit_label"] == [[[None, "inf", "-inf", 1.5]]]


def test_a_file_is_replaced_at_once_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "kept"
    first, second = explanation(), explanation(seed=1)
    first.save(path)

    def fail(file, **arrays):
        file.write(b"half")
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(np, "savez", fail)
        with pytest.raises(OSError, match="disk full"):
            second.save(path)
    assert [p.name for p in tmp_path.iterdir()] == ["kept"]
    assert_same(lime.Explanation.load(path), first)
    second.save(path)
    assert_same(lime.Explanation.load(path), second)


def test_what_could_not_be_loaded_is_not_saved(tmp_path):
    found = dataclasses.replace(explanation(), coef=np.zeros(4))
    with pytest.raises(ValueError, match=r"Explanation cannot be saved: coef is float64 \(4,\)"):
        found.save(tmp_path / "kept")
    assert not list(tmp_path.iterdir())


# --- files that are refused -----------------------------------------------------------------------


def rewritten(path, **changes):
    """The file with other arrays; None leaves one out."""
    with np.load(path) as archive:
        arrays = dict(archive.items()) | changes
    with open(path, "wb") as file:
        np.savez(file, **{name: a for name, a in arrays.items() if a is not None})


def flip(path):
    content = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        entry = archive.getinfo("coef.npy")
    content[entry.header_offset + entry.file_size] ^= 1  # among its numbers
    path.write_bytes(content)


class Trap:
    def __reduce__(self):
        return os.mkdir, ("sprung",)


DAMAGE = {
    "empty": (lambda p: p.write_bytes(b""), "No data left"),
    "text": (lambda p: p.write_text("coef: 3"), ""),
    "cut short": (lambda p: p.write_bytes(p.read_bytes()[:-300]), ""),
    "cut to a stub": (lambda p: p.write_bytes(p.read_bytes()[:60]), ""),
    "a flipped bit": (flip, "checksum|CRC"),
    "a single array": (lambda p: np.save(p.open("wb"), np.zeros(3)), "a single array"),
    "a pickle": (lambda p: p.write_bytes(pickle.dumps(Trap())), "pickle"),
    "a pickle inside": (
        lambda p: rewritten(p, coef=np.array([Trap(), 1, 2], object)),
        "allow_pickle=False",
    ),
    "another archive": (lambda p: np.savez(p.open("wb"), coef=np.zeros(3)), "its kind is missing"),
    "curves": (lambda p: curves().save(p), "its kind is xaiutils.Curves"),
    "of the future": (lambda p: rewritten(p, version=2), "its version is 2, .* reads 1"),
    "a field too few": (lambda p: rewritten(p, weights=None), "expected masks, weights"),
    "a field too many": (lambda p: rewritten(p, extra=np.zeros(2)), "fields .*extra"),
    "another d": (lambda p: rewritten(p, coef=np.zeros(4)), r"coef is float64 \(4,\)"),
    "an axis more": (lambda p: rewritten(p, coef=np.zeros((1, 3))), "coef is"),
    "a short covariance": (lambda p: rewritten(p, covariance=np.eye(3)), "covariance is"),
    "fewer weights": (lambda p: rewritten(p, weights=np.ones(39)), "weights is"),
    "masks that are numbers": (lambda p: rewritten(p, masks=np.ones((40, 3))), "masks is float64"),
    "words": (lambda p: rewritten(p, score=np.array("high")), "score is <U4"),
    "flat masks": (lambda p: rewritten(p, masks=np.ones(40, bool)), "masks is bool"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damaged_and_foreign_files_are_refused(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "kept"
    explanation().save(path)
    spoil, reason = DAMAGE[name]
    spoil(path)
    with pytest.raises(ValueError, match=f"kept' is no file that Explanation.save .*{reason}") as e:
        lime.Explanation.load(path)
    assert "\n" not in str(e.value)
    assert not Path("sprung").exists()


def test_curves_of_lengths_that_differ_are_refused(tmp_path):
    path = tmp_path / "kept"
    curves().save(path)
    rewritten(path, predicted=np.zeros(2, int))
    with pytest.raises(ValueError, match=r"predicted is int64 \(2,\), expected \(n\)"):
        fidelity.Curves.load(path)
    curves().save(path)
    rewritten(path, orders=np.array(["mif"]))
    with pytest.raises(ValueError, match="correct is bool"):
        fidelity.Curves.load(path)


def test_a_file_needs_a_name(found):
    with pytest.raises(ValueError, match="path is empty; allowed: the name of a file"):
        found.save("")


def test_a_file_that_is_not_there_is_said_to_be_missing(tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing here"):
        lime.Explanation.load(tmp_path / "nothing here")
