"""Arrays of what users give, and NaN by number and place."""

import numpy as np
import pytest
import torch

from xaiutils.data import images


@pytest.mark.parametrize("dtype", [torch.uint8, torch.bool, torch.float16, torch.float64])
def test_tensors_become_arrays_of_their_dtype(dtype):
    x = torch.tensor([[0, 1], [1, 0]]).to(dtype)
    found = images.as_numpy(x.requires_grad_() if dtype.is_floating_point else x)
    assert torch.from_numpy(found).dtype == dtype
    assert found.tolist() == x.tolist()


def test_what_torch_cannot_show_numpy_is_resolved():
    assert images.as_numpy(torch.tensor([1.5, -2.0]).bfloat16()).tolist() == [1.5, -2.0]
    negative = torch.tensor([1 + 2j]).conj().imag  # a view with a bit that says "minus"
    assert images.as_numpy(negative).tolist() == [-2.0]


def test_real_numbers_come_in_the_byte_order_of_the_machine():
    found = images.as_real(np.arange(3.0).astype(">f8"))
    assert found.dtype == np.float64 and found.dtype.isnative
    assert found.tolist() == [0, 1, 2]
    x = np.arange(3)
    assert images.as_real(x) is x or np.shares_memory(images.as_real(x), x)


@pytest.mark.parametrize("values", [[1j], ["a"], [None], np.array([1], "M8[s]")])
def test_other_values_are_named(values):
    with pytest.raises(ValueError, match=r"baseline must hold real numbers .* 64 bits, got "):
        images.as_real(values, "baseline")


def test_nan_is_counted_and_placed():
    x = np.zeros((2, 3, 4), np.float32)
    images.no_nan("x", x)
    images.no_nan("x", x.astype(int))
    x[1, 2] = np.nan
    with pytest.raises(ValueError, match=r"^x holds NaN: 4 of 24 .* first at \(1, 2, 0\)$"):
        images.no_nan("x", x)
    with pytest.raises(ValueError, match=r"^c holds NaN: 1 of 1 values, the first at \(\)$"):
        images.no_nan("c", np.array(np.nan))
    images.no_nan("x", np.array([np.inf, -np.inf]))
