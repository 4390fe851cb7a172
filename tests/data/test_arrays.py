"""Pickles that may hold numpy arrays and nothing else."""

import collections
import io
import pickle

import numpy as np
import pytest

from xaiutils.data import arrays, assets


def read(content):
    return arrays.read_arrays(io.BytesIO(content), "toy.pkl")


@pytest.mark.parametrize("protocol", [3, 4])
def test_arrays_come_back(protocol):
    stored = {"a": [np.arange(6.0).reshape(2, 3), np.arange(3)], "b": (1, "two")}
    found = read(pickle.dumps(stored, protocol))
    assert found.keys() == stored.keys() and found["b"] == stored["b"]
    assert all(np.array_equal(*pair) for pair in zip(found["a"], stored["a"], strict=True))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (pickle.dumps({"a": collections.OrderedDict()}), "asks for collections.OrderedDict, which"),
        (pickle.dumps(len), "asks for builtins.len, which"),
        (pickle.dumps(np.arange(9))[:-20], "is damaged"),
        (b"", r"is damaged \(EOFError"),
        (b"no pickle", r"is damaged \(UnpicklingError"),
    ],
)
def test_all_else_is_refused_in_one_line(content, message):
    with pytest.raises(assets.AssetError, match=f"asset 'toy.pkl': its pickle {message}") as caught:
        read(content)
    assert "\n" not in str(caught.value)
