"""Baselines: what hidden pixels are replaced by, and where the path of an attribution starts.

Each takes images in [0, 1], an array or a tensor, and returns an array of their shape and dtype
in [0, 1], one baseline per image: what `perturb.evaluate` (one image) and
`fidelity_curves.curves` (a batch) take as `filler`, and `attribution` as `baseline`. Those that
need no class take one image (C, H, W) or a batch (n, C, H, W). Those of a target class take a
batch and `targets`, ints (n,): the class that each baseline shows. None of them depends on what
is hidden; `imputation.NoisyLinear` does.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator

import numpy as np
import scipy.ndimage
import torch

from xaiutils import runtime
from xaiutils.explained import Task

_BLOCK_ROWS = 2048  # images on each side of a block of distances
_BLOCK_VALUES = 2**23  # pixels of the images on one side: 64 MiB in double precision
_HALVINGS = 12  # of the segment back to x: to 1 / 4096 of its length


def black(x) -> np.ndarray:
    """Zero everywhere."""
    return np.zeros_like(_images(x))


def channel_mean(x, mean) -> np.ndarray:
    """One value per channel, `mean` (C,) in [0, 1]: the mean colour of a data set.

    Raises
    ------
    ValueError
        If `mean` does not hold one value in [0, 1] per channel.
    """
    x, mean = _images(x), np.asarray(mean)
    if mean.shape != (x.shape[-3],) or not ((mean >= 0) & (mean <= 1)).all():
        raise ValueError(f"mean must hold {x.shape[-3]} values in [0, 1], one a channel: {mean}")
    return np.broadcast_to(mean[:, None, None], x.shape).astype(x.dtype)


def image_mean(x) -> np.ndarray:
    """The mean of each channel of each image."""
    x = _images(x)
    mean = x.mean(axis=(-2, -1), keepdims=True, dtype=np.float64)
    return np.broadcast_to(mean, x.shape).astype(x.dtype)


def blur(x, sigma: float) -> np.ndarray:
    """Each channel smoothed by a Gaussian of standard deviation `sigma` pixels.

    Images are reflected at the border. The customary 224 x 224 image goes with a sigma of 14.

    Raises
    ------
    ValueError
        If `sigma` is not positive.
    """
    if not sigma > 0:
        raise ValueError(f"sigma must be positive, in pixels, got {sigma}")
    return scipy.ndimage.gaussian_filter(_images(x), sigma, axes=(-2, -1))


def uniform_noise(x, seed: int) -> np.ndarray:
    """Independent values in [0, 1), drawn anew for each image.

    The draw depends on `seed` and on the image itself, not on its place in a batch.
    """
    x = _images(x)
    noise = np.empty_like(x)
    for i in np.ndindex(x.shape[:-3]):
        noise[i] = _rng(seed, x[i]).random(x.shape[-3:], dtype=np.float32)
    return noise


def gaussian_noise(x, sigma: float, seed: int) -> np.ndarray:
    """The image plus Gaussian noise of standard deviation `sigma`, clipped to [0, 1].

    The draw depends on `seed` and on the image itself, not on its place in a batch.

    Raises
    ------
    ValueError
        If `sigma` is not positive.

    Notes
    -----
    Sturmfels, Lundberg and Lee, *Visualizing the Impact of Feature Attribution Baselines*,
    Distill 2020.
    """
    if not sigma > 0:
        raise ValueError(f"sigma must be positive, in units of the image, got {sigma}")
    x = _images(x)
    noise = np.empty_like(x)
    for i in np.ndindex(x.shape[:-3]):
        noise[i] = _rng(seed, x[i]).standard_normal(x.shape[-3:], dtype=np.float32)
    return np.clip(x + sigma * noise, 0, 1, dtype=x.dtype)


def maximum_distance(x) -> np.ndarray:
    """The image in [0, 1] farthest from `x`: each value becomes 0 or 1, whichever is farther.

    It is the farthest in every norm of absolute differences; from 0.5 both are, and it is 0.

    Notes
    -----
    Sturmfels, Lundberg and Lee, *Visualizing the Impact of Feature Attribution Baselines*,
    Distill 2020, where the distance is L1.
    """
    x = _images(x)
    return (x < 0.5).astype(x.dtype)


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
        return self.images[indices].astype(_floating(x).dtype)

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


def adversarial(
    model,
    x,
    targets,
    *,
    confidence: float = 0.95,
    steps: int = 100,
    step_size: float = 0.1,
    batch_size: int = 256,
) -> np.ndarray:
    """The point without a GAN: a small change of `x` that `model` takes for the target class.

    From x, projected gradient descent on the cross-entropy of the target class, in steps of equal
    Euclidean length clipped to [0, 1], until its probability reaches `confidence`. Then
    the segment back to x is bisected for the least change along it that still does.

    Parameters
    ----------
    model : torch.nn.Module
        Maps (B, C, H, W) to logits (B, K); in evaluation mode. It is used where it lives, is not
        changed and gets no gradients.
    x : (n, C, H, W) floating array or tensor in [0, 1]
    targets : (n,) ints
    confidence : float
        Softmax probability of the target class, in (0, 1).
    steps : int
        Most steps; an image that has not reached `confidence` by then returns its last point.
    step_size : float
        Euclidean length of a step, before clipping. Small steps stay near x.
    batch_size : int
        Images per call of the model; they do not affect each other.

    Returns
    -------
    (n, C, H, W) array of the dtype of `x`

    Raises
    ------
    ValueError
        If an argument is out of its range, a target is no output of the model, or dropout or
        batch norm is in training mode.

    Notes
    -----
    Madry, Makelov, Schmidt, Tsipras and Vladu, *Towards Deep Learning Models Resistant to
    Adversarial Attacks*, ICLR 2018, arXiv 1706.06083, with a target and normalised steps.
    """
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must be a probability in (0, 1), got {confidence}")
    if not 0 < step_size < math.inf:
        raise ValueError(f"step_size must be a positive length, got {step_size}")
    if not isinstance(steps, int | np.integer) or steps < 1:
        raise ValueError(f"steps must be a positive integer, got {steps!r}")
    x = _batch(x)
    task = Task(model, x.copy(), _classes("targets", targets, len(x)), log_probability=True)
    found, goal = np.empty_like(x), math.log(confidence)
    for _, rows, _ in task.batches(1, batch_size):
        far, reached = _descend(task, rows, goal, steps, step_size)
        found[rows] = _retreat(task, rows, far, reached, goal).cpu().numpy()
    return found


def _descend(task: Task, rows, goal: float, steps: int, step_size: float):
    """Last points of the descent from inputs `rows` (b,), and whether they reach `goal`, (b,)."""
    points, active = task.x[rows], np.arange(len(rows))
    for step in range(steps + 1):
        here = points[active].requires_grad_()
        with torch.enable_grad():
            value = task.scalar_of(rows[active])(here)
            (slope,) = torch.autograd.grad(value.sum(), here)
        short = (value < goal).cpu().numpy()
        active, here, slope = active[short], here.detach()[short], slope[short]
        if step == steps or not len(active):
            break
        tiny = torch.finfo(slope.dtype).tiny  # no gradient, no step
        move = torch.nn.functional.normalize(slope.flatten(1), eps=tiny).view_as(slope)
        points[active] = (here + step_size * move).clamp(0, 1)
    return points, ~np.isin(np.arange(len(rows)), active)


@torch.no_grad()
def _retreat(task: Task, rows, far, reached, goal: float) -> torch.Tensor:
    """Nearest points to inputs `rows` on the segments to `far` that still reach `goal`."""
    x, best = task.x[rows], far.clone()
    reached = torch.from_numpy(reached).to(x.device)
    low, high = (torch.full((len(rows),), share).to(x) for share in (0.0, 1.0))
    for _ in range(_HALVINGS):
        share = (low + high) / 2
        points = torch.lerp(x, far, task.per_row(share)).clamp(0, 1)
        enough = reached & (task.scalar_of(rows)(points) >= goal)
        low, high = torch.where(enough, low, share), torch.where(enough, share, high)
        best = torch.where(task.per_row(enough), points, best)
    return best


def _predicted(classifier, images) -> np.ndarray:
    """Class of the largest output for each image, (N,)."""
    forward = runtime.forward(classifier, images[0])
    classes = []
    for start in range(0, len(images), forward.batch_size):
        batch = forward.cast(images[start : start + forward.batch_size].copy())
        out = forward(torch.from_numpy(batch).to(forward.device))
        if out.ndim != 2 or len(out) != len(batch):
            raise ValueError(
                f"accepted_by must return (batch, classes), got {out.shape} for {len(batch)} images"
            )
        classes.append(out.argmax(1))
    return np.concatenate(classes)


def _blocks(rows, images) -> Iterator[np.ndarray]:
    """`rows` in pieces small enough for a block of distances."""
    size = max(1, min(_BLOCK_ROWS, _BLOCK_VALUES // images[0].size))
    return (rows[start : start + size] for start in range(0, len(rows), size))


def _doubles(images, rows) -> np.ndarray:
    return images[rows].reshape(len(rows), -1).astype(np.float64)


def _images(x, name: str = "x") -> np.ndarray:
    x = _floating(x, name)
    if x.ndim not in (3, 4):
        raise ValueError(f"{name} must be images (C, H, W) or (n, C, H, W), got shape {x.shape}")
    if x.size and not (x.min() >= 0 and x.max() <= 1):
        raise ValueError(f"{name} must be in natural units [0, 1], got [{x.min()}, {x.max()}]")
    return x


def _floating(x, name: str = "x") -> np.ndarray:
    x = x.detach().cpu().numpy() if isinstance(x, torch.Tensor) else np.asarray(x)
    if x.dtype.kind != "f":
        raise ValueError(f"{name} must be floating, got {x.dtype}; divide uint8 images by 255")
    return x


def _rng(seed: int, image) -> np.random.Generator:
    """Generator of one image: another image draws independently, whatever came before it."""
    content = np.ascontiguousarray(image, dtype=np.float32)
    return np.random.default_rng([seed, zlib.crc32(content)])


def _batch(x, name: str = "x") -> np.ndarray:
    x = _images(x, name)
    if x.ndim != 4 or not len(x):
        raise ValueError(f"{name} must be a batch of images (n, C, H, W), got shape {x.shape}")
    return x


def _classes(name: str, values, n: int) -> np.ndarray:
    values = values.cpu().numpy() if isinstance(values, torch.Tensor) else np.asarray(values)
    if values.shape != (n,) or values.dtype.kind not in "iu" or values.min() < 0:
        raise ValueError(f"{name} must hold {n} classes >= 0: {values.dtype} {values.shape}")
    return values


def _samples(images, labels) -> tuple[np.ndarray, np.ndarray]:
    images = _batch(images, "images")
    return images, _classes("labels", labels, len(images))


def _queries(x, targets, shape, known) -> tuple[np.ndarray, np.ndarray]:
    """Checked images of the `shape` of the samples and targets among the `known` classes."""
    x = _batch(x)
    if x.shape[1:] != shape:
        raise ValueError(f"x must have the shape of the samples, {shape}, got {x.shape[1:]}")
    targets = _classes("targets", targets, len(x))
    missing = sorted(set(targets.tolist()) - set(known))
    if missing:
        raise ValueError(f"targets must be classes with samples, {sorted(known)}: {missing}")
    return x, targets
