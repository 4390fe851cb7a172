"""Superpixels: label maps with contiguous labels from 0, whatever the image's dtype."""

from __future__ import annotations

import numpy as np
import skimage
import torch


def quickshift(image, kernel_size: float = 4, max_dist: float = 200, ratio: float = 0.2):
    """Quickshift superpixels with the defaults of the `lime` package.

    scikit-image's quickshift clusters in colour and space without rescaling, so the number
    of superpixels depends on the value range. The range is fixed to [0, 1] here.

    Parameters
    ----------
    image : (3, H, W) or (1, H, W) array or tensor
        uint8, or floating in [0, 1].
    kernel_size, max_dist, ratio : float
        See `skimage.segmentation.quickshift`.

    Returns
    -------
    (H, W) int array, labels 0..d-1

    Raises
    ------
    ValueError
        If the image has another shape or range.

    Examples
    --------
    >>> import numpy as np
    >>> from xaiutils import segment
    >>> image = np.zeros((1, 4, 10))
    >>> image[:, :, 6:] = 1  # bright on the right
    >>> segment.quickshift(image, kernel_size=1)
    array([[1, 1, 1, 1, 1, 1, 0, 0, 0, 0],
           [1, 1, 1, 1, 1, 1, 0, 0, 0, 0],
           [1, 1, 1, 1, 1, 1, 0, 0, 0, 0],
           [1, 1, 1, 1, 1, 1, 0, 0, 0, 0]])
    """
    labels = skimage.segmentation.quickshift(
        _channels_last(image), kernel_size=kernel_size, max_dist=max_dist, ratio=ratio, rng=42
    )
    return _contiguous(labels)


def slic(image, n_segments: int = 50, compactness: float = 10.0):
    """SLIC superpixels of a (3, H, W) or (1, H, W) image, see `quickshift`."""
    labels = skimage.segmentation.slic(
        _channels_last(image), n_segments=n_segments, compactness=compactness, start_label=0
    )
    return _contiguous(labels)


def grid(shape, rows: int, cols: int) -> np.ndarray:
    """Label map (H, W) of `rows` x `cols` cells, numbered row by row.

    Raises
    ------
    ValueError
        If there are more rows or columns than positions.

    Examples
    --------
    >>> from xaiutils import segment
    >>> segment.grid((4, 6), rows=2, cols=3)
    array([[0, 0, 1, 1, 2, 2],
           [0, 0, 1, 1, 2, 2],
           [3, 3, 4, 4, 5, 5],
           [3, 3, 4, 4, 5, 5]])
    """
    height, width = shape
    if not (1 <= rows <= height and 1 <= cols <= width):
        raise ValueError(f"rows, cols = {rows}, {cols} must be within 1..{height}, 1..{width}")
    row = np.arange(height) * rows // height
    col = np.arange(width) * cols // width
    return row[:, None] * cols + col[None, :]


def _contiguous(labels) -> np.ndarray:
    return np.unique(labels, return_inverse=True)[1].reshape(labels.shape)


def _channels_last(image) -> np.ndarray:
    image = image.detach().cpu().numpy() if isinstance(image, torch.Tensor) else np.asarray(image)
    if image.ndim != 3 or image.shape[0] not in (1, 3):
        raise ValueError(f"image must be (3, H, W) or (1, H, W), got {image.shape}")
    if image.dtype == np.uint8:
        image = image / 255
    elif not np.issubdtype(image.dtype, np.floating) or image.min() < 0 or image.max() > 1:
        raise ValueError(
            f"image must be uint8 or floating in [0, 1], got {image.dtype} in "
            f"[{image.min()}, {image.max()}]"
        )
    return np.broadcast_to(image.transpose(1, 2, 0), (*image.shape[1:], 3)).astype(np.float64)
