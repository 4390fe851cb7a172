"""Checked arrays and images in natural units, and random numbers that belong to an image."""

from __future__ import annotations

import zlib

import numpy as np
import torch


def as_numpy(values) -> np.ndarray:
    """A tensor from anywhere, or whatever numpy takes, as an array; bfloat16 becomes float32."""
    if not isinstance(values, torch.Tensor):
        return np.asarray(values)
    return (values.float() if values.dtype == torch.bfloat16 else values).numpy(force=True)


def as_real(values, name: str = "x") -> np.ndarray:
    """`values`, called `name`, as an array of booleans, integers or floats that torch knows.

    ValueError for complex numbers, objects, text and long doubles, and for arrays with masked
    values, which are none.
    """
    if np.ma.is_masked(values):
        raise ValueError(f"{name} has masked values; fill them in, as {name}.filled(0) does")
    values = as_numpy(values)
    if values.dtype.kind not in "biuf" or values.itemsize > 8:
        raise ValueError(f"{name} must hold real numbers of at most 64 bits, got {values.dtype}")
    return values if values.dtype.isnative else values.astype(values.dtype.newbyteorder("="))


def no_nan(name: str, values: np.ndarray) -> None:
    """ValueError that counts the NaN in `values`, called `name`, if there are any."""
    missing = np.isnan(values)
    if missing.any():
        first = np.unravel_index(missing.argmax(), missing.shape)
        raise ValueError(
            f"{name} holds NaN: {missing.sum()} of {missing.size} values, the first at "
            f"{tuple(map(int, first))}"
        )


def as_images(x, name: str = "x") -> np.ndarray:
    """`x`, called `name`, as one image (C, H, W) or a batch (n, C, H, W), floating, in [0, 1].

    Nothing is copied. ValueError if it is none of these.
    """
    x = as_floating(x, name)
    if x.ndim not in (3, 4):
        raise ValueError(f"{name} must be images (C, H, W) or (n, C, H, W), got shape {x.shape}")
    no_nan(name, x)
    if x.size and not (x.min() >= 0 and x.max() <= 1):
        raise ValueError(f"{name} must be in natural units [0, 1], got [{x.min()}, {x.max()}]")
    return x


def as_batch(x, name: str = "x") -> np.ndarray:
    """`as_images` of a batch (n, C, H, W) that is not empty; ValueError for any other."""
    x = as_images(x, name)
    if x.ndim != 4 or not len(x):
        raise ValueError(f"{name} must be a batch of images (n, C, H, W), got shape {x.shape}")
    return x


def as_floating(x, name: str = "x") -> np.ndarray:
    """`x`, called `name`, as a floating array of any shape and range; ValueError if it is not."""
    x = as_numpy(x)
    if x.dtype.kind != "f":
        raise ValueError(f"{name} must be floating, got {x.dtype}; divide uint8 images by 255")
    return x


def rng(seed: int, image) -> np.random.Generator:
    """Generator of one image: another image draws independently, whatever came before it."""
    content = np.ascontiguousarray(image, dtype=np.float32)
    return np.random.default_rng([seed, zlib.crc32(content)])
