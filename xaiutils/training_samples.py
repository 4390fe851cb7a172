"""Baselines from training samples: of the target class, the nearest to each image or the mean.

Images are arrays or tensors in [0, 1], and baselines arrays of their shape and dtype; see
`baselines`.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from xaiutils import runtime
from xaiutils.data.images import as_batch, as_floating
from xaiutils.explained import classes
from xaiutils.outputs import winners

_BLOCK_ROWS = 2048  # images on each side of a block of distances
_BLOCK_VALUES = 2**23  # pixels of the images on one side: 64 MiB in double precision


class NearestSample:
    """Minimum-distance training sample (MDTS): of the target class, the one nearest to x.

    Of samples that are equally near, up to the rounding of double precision, it is the first.

    Parameters
    ----------
    images : (N, C, H, W) floating array or tensor in [0, 1]
        Training samples. They are not copied.
    labels : (N,) ints
        Their classes.
    norm : {"l1", "l2"}
        Distance: mean absolute difference or Euclidean norm.
    accepted_by : torch.nn.Module or callable, optional
        A classifier, (B, C, H, W) to (B, K): only samples that it puts in their own class count.

    Attributes
    ----------
    images : (N, C, H, W) ndarray
    norm : str

    Raises
    ------
    ValueError
        If `norm` is neither, or images, labels and the outputs of the classifier do not fit.

    Notes
    -----
    The baseline that GANMEX is compared with: Shih, Tien and Karnin, *GANMEX: One-vs-One
    Attributions using GAN-based Model Explainability*, ICML 2021, arXiv 2011.06015. It names no
    norm.

    Examples
    --------
    >>> import numpy as np
    >>> from xaiutils import baselines
    >>> images = np.array([0.1, 0.3, 0.8]).reshape(3, 1, 1, 1)
    >>> nearest = baselines.NearestSample(images, labels=[0, 0, 1])
    >>> nearest(images[2:], targets=[0])
    array([[[[0.3]]]])
    >>> nearest.find(images[2:], targets=[0])  # indices and distances
    (array([1]), array([0.5]))
    """

    def __init__(self, images, labels, *, norm: str = "l1", accepted_by=None):
        if norm not in ("l1", "l2"):
            raise ValueError(f'norm must be "l1" or "l2", got {norm!r}')
        self.images, labels = _samples(images, labels)
        self.norm = norm
        rows = np.arange(len(labels))
        if accepted_by is not None:
            rows = rows[_predicted(accepted_by, self.images) == labels]
        self._rows = {int(c): rows[labels[rows] == c] for c in np.unique(labels[rows])}

    def __call__(self, x, targets) -> np.ndarray:
        """The nearest samples, (n, C, H, W); see `find`."""
        indices, _ = self.find(x, targets)
        return self.images[indices].astype(as_floating(x).dtype)

    def find(self, x, targets) -> tuple[np.ndarray, np.ndarray]:
        """Indices (n,) into `images`, and distances (n,), float64.

        Raises
        ------
        ValueError
            If shapes differ, or a class has no sample (that the classifier accepts).
        """
        x, targets = _queries(x, targets, self.images.shape[1:], self._rows)
        indices, distances = np.empty(len(x), np.int64), np.empty(len(x))
        for target in np.unique(targets):
            of_class = np.flatnonzero(targets == target)
            for rows in _blocks(of_class, x):
                points = _doubles(x, rows)
                indices[rows] = self._nearest(points, self._rows[target])
                change = np.abs(points - _doubles(self.images, indices[rows]))
                distances[rows] = (
                    change.mean(1) if self.norm == "l1" else np.sqrt(np.square(change).sum(1))
                )
        return indices, distances

    def _nearest(self, points, candidates) -> np.ndarray:
        """For each of `points` (b, pixels) the row of `images` among `candidates`."""
        # Beyond the rounding of sums of this many terms up to 1, far below that of float32.
        tie = 1e-12 * points.shape[1]
        best, found = np.full(len(points), np.inf), np.empty(len(points), np.int64)
        for rows in _blocks(candidates, self.images):
            distances = self._distances(points, _doubles(self.images, rows))
            least = distances.min(1)
            first = (distances <= least[:, None] + tie).argmax(1)
            nearer = least < best - tie
            best[nearer], found[nearer] = least[nearer], rows[first[nearer]]
        return found

    def _distances(self, points, samples) -> np.ndarray:
        """Increasing functions of the distances, (b, m): their sum or their square."""
        if self.norm == "l1":
            return torch.cdist(torch.from_numpy(points), torch.from_numpy(samples), p=1).numpy()
        products = points @ samples.T
        products *= -2
        products += np.square(samples).sum(1)
        products += np.square(points).sum(1)[:, None]
        return products


class ClassMean:
    """The mean training sample of the target class.

    Parameters
    ----------
    images : (N, C, H, W) floating array or tensor in [0, 1]
        Training samples.
    labels : (N,) ints
        Their classes.

    Raises
    ------
    ValueError
        If images and labels do not fit.

    Examples
    --------
    >>> import numpy as np
    >>> from xaiutils import baselines
    >>> images = np.array([0.1, 0.3, 0.8]).reshape(3, 1, 1, 1)
    >>> mean_of = baselines.ClassMean(images, labels=[0, 0, 1])
    >>> mean_of(images, targets=[1, 1, 0]).ravel()
    array([0.8, 0.8, 0.2])
    """

    def __init__(self, images, labels):
        images, labels = _samples(images, labels)
        self._means = {
            int(c): images[labels == c].mean(axis=0, dtype=np.float64) for c in np.unique(labels)
        }

    def __call__(self, x, targets) -> np.ndarray:
        """The means, (n, C, H, W).

        Raises
        ------
        ValueError
            If shapes differ or a class has no sample.
        """
        shape = next(iter(self._means.values())).shape
        x, targets = _queries(x, targets, shape, self._means)
        return np.stack([self._means[target] for target in targets.tolist()]).astype(x.dtype)


def _predicted(classifier, images) -> np.ndarray:
    """Class of the largest output for each image, (N,)."""
    forward = runtime.forward(classifier, images[0])
    found = []
    for start in range(0, len(images), forward.batch_size):
        batch = forward.cast(images[start : start + forward.batch_size].copy())
        out = forward(torch.from_numpy(batch).to(forward.device))
        if out.ndim != 2 or len(out) != len(batch):
            raise ValueError(
                f"accepted_by must return (batch, classes), got {out.shape} for {len(batch)} images"
            )
        found.append(winners(out))
    return np.concatenate(found)


def _blocks(rows, images) -> Iterator[np.ndarray]:
    """`rows` in pieces small enough for a block of distances."""
    size = max(1, min(_BLOCK_ROWS, _BLOCK_VALUES // images[0].size))
    return (rows[start : start + size] for start in range(0, len(rows), size))


def _doubles(images, rows) -> np.ndarray:
    return images[rows].reshape(len(rows), -1).astype(np.float64)


def _samples(images, labels) -> tuple[np.ndarray, np.ndarray]:
    images = as_batch(images, "images")
    return images, classes("labels", labels, len(images), "classes")


def _queries(x, targets, shape, known) -> tuple[np.ndarray, np.ndarray]:
    """Checked images of the `shape` of the samples and targets among the `known` classes."""
    x = as_batch(x)
    if x.shape[1:] != shape:
        raise ValueError(f"x must have the shape of the samples, {shape}, got {x.shape[1:]}")
    targets = classes("targets", targets, len(x), "classes")
    missing = sorted(set(targets.tolist()) - set(known))
    if missing:
        raise ValueError(f"targets must be classes with samples, {sorted(known)}: {missing}")
    return x, targets
