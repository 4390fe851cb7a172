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

import numpy as np
import scipy.ndimage
import torch

from xaiutils.data.images import as_batch, as_images, rng
from xaiutils.explained import Task, classes
from xaiutils.outputs import Classes
from xaiutils.training_samples import ClassMean as ClassMean
from xaiutils.training_samples import NearestSample as NearestSample

_HALVINGS = 12  # of the segment back to x: to 1 / 4096 of its length


def black(x) -> np.ndarray:
    """Zero everywhere.

    Examples
    --------
    >>> import numpy as np
    >>> from xaiutils import baselines
    >>> baselines.black(np.array([[[0.2, 0.6, 0.4]]]))
    array([[[0., 0., 0.]]])
    """
    return np.zeros_like(as_images(x))


def channel_mean(x, mean) -> np.ndarray:
    """One value per channel, `mean` (C,) in [0, 1]: the mean colour of a data set.

    Raises
    ------
    ValueError
        If `mean` does not hold one value in [0, 1] per channel.

    Examples
    --------
    >>> import numpy as np
    >>> from xaiutils import baselines
    >>> baselines.channel_mean(np.array([[[0.2, 0.6]], [[0.4, 0.5]]]), [0.1, 0.9])
    array([[[0.1, 0.1]],
    <BLANKLINE>
           [[0.9, 0.9]]])
    """
    x, mean = as_images(x), np.asarray(mean)
    if mean.shape != (x.shape[-3],) or not ((mean >= 0) & (mean <= 1)).all():
        raise ValueError(f"mean must hold {x.shape[-3]} values in [0, 1], one a channel: {mean}")
    return np.broadcast_to(mean[:, None, None], x.shape).astype(x.dtype)


def image_mean(x) -> np.ndarray:
    """The mean of each channel of each image.

    Examples
    --------
    >>> import numpy as np
    >>> from xaiutils import baselines
    >>> baselines.image_mean(np.array([[[0.25, 0.75, 0.5]]]))
    array([[[0.5, 0.5, 0.5]]])
    """
    x = as_images(x)
    mean = x.mean(axis=(-2, -1), keepdims=True, dtype=np.float64)
    return np.broadcast_to(mean, x.shape).astype(x.dtype)


def blur(x, sigma: float) -> np.ndarray:
    """Each channel smoothed by a Gaussian of standard deviation `sigma` pixels.

    Images are reflected at the border. The customary 224 x 224 image goes with a sigma of 14.

    Raises
    ------
    ValueError
        If `sigma` is not positive.

    Examples
    --------
    >>> import numpy as np
    >>> from xaiutils import baselines
    >>> baselines.blur(np.array([[[0.0, 0.0, 1.0, 0.0, 0.0]]]), sigma=1.0).round(2)
    array([[[0.06, 0.24, 0.4 , 0.24, 0.06]]])
    """
    if not sigma > 0:
        raise ValueError(f"sigma must be positive, in pixels, got {sigma}")
    return scipy.ndimage.gaussian_filter(as_images(x), sigma, axes=(-2, -1))


def uniform_noise(x, seed: int) -> np.ndarray:
    """Independent values in [0, 1), drawn anew for each image.

    The draw depends on `seed` and on the image itself, not on its place in a batch.

    Examples
    --------
    >>> import numpy as np
    >>> from xaiutils import baselines
    >>> x = np.array([[[0.2, 0.6, 0.4]]])
    >>> baselines.uniform_noise(x, seed=0).round(2)
    array([[[0.47, 0.12, 0.36]]])
    >>> baselines.uniform_noise(np.stack([1 - x, x]), seed=0)[1].round(2)
    array([[[0.47, 0.12, 0.36]]])
    """
    x = as_images(x)
    noise = np.empty_like(x)
    for i in np.ndindex(x.shape[:-3]):
        noise[i] = rng(seed, x[i]).random(x.shape[-3:], dtype=np.float32)
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

    Examples
    --------
    >>> import numpy as np
    >>> from xaiutils import baselines
    >>> baselines.gaussian_noise(np.array([[[0.2, 0.6, 0.4]]]), sigma=0.1, seed=0).round(2)
    array([[[0.26, 0.62, 0.32]]])
    """
    if not sigma > 0:
        raise ValueError(f"sigma must be positive, in units of the image, got {sigma}")
    x = as_images(x)
    noise = np.empty_like(x)
    for i in np.ndindex(x.shape[:-3]):
        noise[i] = rng(seed, x[i]).standard_normal(x.shape[-3:], dtype=np.float32)
    return np.clip(x + sigma * noise, 0, 1, dtype=x.dtype)


def maximum_distance(x) -> np.ndarray:
    """The image in [0, 1] farthest from `x`: each value becomes 0 or 1, whichever is farther.

    It is the farthest in every norm of absolute differences; from 0.5 both are, and it is 0.

    Notes
    -----
    Sturmfels, Lundberg and Lee, *Visualizing the Impact of Feature Attribution Baselines*,
    Distill 2020, where the distance is L1.

    Examples
    --------
    >>> import numpy as np
    >>> from xaiutils import baselines
    >>> baselines.maximum_distance(np.array([[[0.2, 0.6, 0.5]]]))
    array([[[1., 0., 0.]]])
    """
    x = as_images(x)
    return (x < 0.5).astype(x.dtype)


def adversarial(
    model,
    x,
    targets,
    *,
    confidence: float = 0.95,
    steps: int = 100,
    step_size: float = 0.1,
    batch_size: int = 256,
    outputs_are: str | None = None,
) -> np.ndarray:
    """The point without a GAN: a small change of `x` that `model` takes for the target class.

    From x, projected gradient descent on the cross-entropy of the target class, in steps of equal
    Euclidean length clipped to [0, 1], until its probability reaches `confidence`. Then
    the segment back to x is bisected for the least change along it that still does.

    Parameters
    ----------
    model : torch.nn.Module
        Maps (B, C, H, W) to logits (B, K), K at least 2; in evaluation mode. It is used where it
        lives, is not changed and gets no gradients.
    x : (n, C, H, W) floating array or tensor in [0, 1]
    targets : (n,) ints
    confidence : float
        Probability of the target class, in (0, 1).
    steps : int
        Most steps; an image that has not reached `confidence` by then returns its last point.
    step_size : float
        Euclidean length of a step, before clipping. Small steps stay near x.
    batch_size : int
        Images per call of the model; they do not affect each other.
    outputs_are : {None, "logits", "probabilities"}
        What the model returns. None takes it for logits and refuses what looks like probabilities.

    Returns
    -------
    (n, C, H, W) array of the dtype of `x`

    Raises
    ------
    ValueError
        If an argument is out of its range, a target is no output of the model, an input has no
        single answer (see `probe.check`), or the outputs are not those of two or more classes.

    Notes
    -----
    Madry, Makelov, Schmidt, Tsipras and Vladu, *Towards Deep Learning Models Resistant to
    Adversarial Attacks*, ICLR 2018, arXiv 1706.06083, with a target and normalised steps.

    Examples
    --------
    >>> import numpy as np
    >>> import torch
    >>> from xaiutils import baselines
    >>> model = torch.nn.Flatten()  # two pixels, which are the logits of two classes
    >>> x = np.array([[[[0.8, 0.1]]]])
    >>> baselines.adversarial(model, x, [1], confidence=0.6).round(2)
    array([[[[0.25, 0.65]]]])
    """
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must be a probability in (0, 1), got {confidence}")
    if not 0 < step_size < math.inf:
        raise ValueError(f"step_size must be a positive length, got {step_size}")
    if not isinstance(steps, int | np.integer) or steps < 1:
        raise ValueError(f"steps must be a positive integer, got {steps!r}")
    Classes(outputs_are)  # refuses another word
    x = as_batch(x)
    targets = classes("targets", targets, len(x), "classes")
    task = Task(
        model, x.copy(), targets, log_probability=outputs_are or True, argument="outputs_are"
    )
    found, goal = np.empty_like(x), math.log(confidence)
    for _, rows, _ in task.batches(1, batch_size):
        far, reached = _descend(task, rows, goal, steps, step_size)
        found[rows] = _retreat(task, rows, far, reached, goal).cpu().numpy()
    return found


def _descend(task: Task, rows, goal: float, steps: int, step_size: float):
    """Last points of the descent from inputs `rows` (b,), and whether they reach `goal`, (b,)."""
    points, active = task.x[rows], np.arange(len(rows))
    for step in range(steps + 1):
        here = points[active]
        value, slope = task.values_and_gradients(here, rows[active])
        short = (value < goal).cpu().numpy()
        active, here, slope = active[short], here[short], slope[short]
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
