"""Functions of numpy arrays: told apart from those of tensors, wrapped, their own errors kept."""

import numpy as np
import pytest
from numpy.testing import assert_allclose
from torch import nn

from xaiutils import perturb
from xaiutils.perturb import Components

RNG = np.random.default_rng(0)
IMAGE = (RNG.random((8, 6, 3)) * 255).astype(np.uint8)
LABELS = (np.arange(8)[:, None] // 2 + np.zeros((8, 6), int))[..., None]
PARTS, MASKS = Components(LABELS), RNG.random((7, 4)) < 0.5


def ask_function(predict):
    return perturb.evaluate(predict, IMAGE, PARTS, MASKS, 0, batch_size=3)


def bright(batch):
    """As the lime package takes it: (B, H, W, C) to probabilities (B, 2)."""
    share = batch.astype("float32").mean(axis=(1, 2, 3)) / 255
    return np.stack([1 - share, share], axis=1)


SHOWN = np.where(MASKS[:, LABELS], IMAGE, 0)


class Predictor:
    def predict_proba(self, batch):
        return bright(batch)


@pytest.mark.parametrize(
    "predict",
    [
        bright,
        Predictor().predict_proba,
        lambda batch: bright(batch.copy()).tolist(),
        lambda batch: [row / 255.0 for row in batch[:, ::-1].reshape(len(batch), -1)],
        lambda batch: batch.mean(axis=(1, 2, 3), dtype="f8"),
    ],
)
def test_functions_of_numpy_arrays_are_told_apart_and_wrapped(predict):
    with pytest.raises(
        ValueError, match=r"takes numpy arrays.*perturb\.numpy_function\(model\)"
    ) as caught:
        ask_function(predict)
    assert "\n" not in str(caught.value) and caught.value.__cause__ is not None
    found = ask_function(perturb.numpy_function(predict))
    expected = np.asarray(predict(SHOWN))
    assert_allclose(found, expected if expected.ndim == 2 else expected[:, None], rtol=1e-6)


def test_a_wrapped_function_gets_arrays_of_its_own():
    kept = []

    def predict(batch):
        assert type(batch) is np.ndarray and batch.dtype == np.uint8
        out = batch.reshape(len(batch), -1)[:, :2] / 255
        batch[:] = 7
        kept.append(batch)
        return out

    found = ask_function(perturb.numpy_function(predict))
    assert_allclose(found, SHOWN.reshape(7, -1)[:, :2] / 255)
    assert [len(batch) for batch in kept] == [3, 3, 1]
    assert all((batch == 7).all() for batch in kept)


def test_numpy_and_torch_disagree_about_std_and_the_wrapper_keeps_numpys():
    def spread(batch):
        return batch.reshape(len(batch), -1)[:, :4].std(axis=1)[:, None]

    x = IMAGE / 255.0
    wrapped = perturb.evaluate(perturb.numpy_function(spread), x, PARTS, np.ones((1, 4)))
    assert wrapped[0, 0] == pytest.approx(x.ravel()[:4].std())


def numpy_with_a_bug(batch):
    batch = batch.astype(float)
    return {}["missing"]


def helped(batch):
    return numpy_with_a_bug(batch)


def torch_with_a_bug(batch):
    return batch.sum(dim=1).no_such_method()


def torch_out_of_bounds(batch):
    return batch.flatten(1)[:, 10**6]


@pytest.mark.parametrize(
    ("predict", "error", "hint"),
    [
        (numpy_with_a_bug, KeyError, "missing"),
        (helped, KeyError, "missing"),
        (torch_with_a_bug, AttributeError, "no_such_method"),
        (torch_out_of_bounds, IndexError, "1000000"),
        (perturb.numpy_function(numpy_with_a_bug), KeyError, "missing"),
        (perturb.numpy_function(lambda batch: None), ValueError, "None: .* lack a return"),
        (
            perturb.numpy_function(lambda batch: bright(batch)[:1]),
            ValueError,
            r"got \(1, 2\) for 3",
        ),
    ],
)
def test_the_error_of_a_function_comes_through(predict, error, hint):
    with pytest.raises(error, match=hint):
        ask_function(predict)


@pytest.mark.parametrize("predict", [nn.Flatten(), 3, None])
def test_only_functions_are_wrapped(predict):
    with pytest.raises(ValueError, match="predict must be"):
        perturb.numpy_function(predict)
