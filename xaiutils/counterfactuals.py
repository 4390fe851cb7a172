"""Counterfactuals without a GAN: through an autoencoder, a robust classifier, or along a flow.

Each takes images (n, C, H, W) in [0, 1] and the classes `targets` (n,) that a classifier should
see, tries changes of growing strength, and returns for each image the weakest one that brings the
target's probability to `confidence`; if none does, the one that comes nearest to it. The networks
(`counterfactual_networks`) know images of the kind, not the classifier.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable

import numpy as np
import torch
from torch import Tensor, nn

from xaiutils import runtime
from xaiutils.data.images import as_batch
from xaiutils.explained import Task, classes
from xaiutils.outputs import Classes

SHIFTS = tuple(2.0 ** (k / 2) for k in range(-12, 5))  # of the latent map, in its own norms
LENGTHS = tuple(0.1 * k for k in range(1, 101))
PUSHES = tuple(2.0 ** (k / 2) for k in range(-2, 13))  # Euclidean lengths per unit of time


def latent_shift(
    model: nn.Module,
    autoencoder: nn.Module,
    x,
    targets,
    *,
    confidence: float = 0.95,
    strengths: Iterable[float] = SHIFTS,
    batch_size: int = 100,
    outputs_are: str | None = None,
) -> np.ndarray:
    """One gradient through an autoencoder: the latent map moved along it, and decoded.

    Cohen, Brooks, En, Zucker, Pareek, Lungren and Chaudhari, *Gifsplanation via Latent Shift*,
    MIDL 2021, arXiv 2102.09475.

    Parameters
    ----------
    model : torch.nn.Module
        Maps (B, C, H, W) to logits (B, K); in evaluation mode. Not changed.
    autoencoder : torch.nn.Module
        With `encoder` and `decoder`, between images in [0, 1] and latent tensors (B, ...); on the
        device and in the dtype of the model, as all such helpers.
    x : (n, C, H, W) floating array or tensor in [0, 1]
    targets : (n,) ints
    confidence : float
        Probability of the target class, in (0, 1).
    strengths : positive floats
        Lengths of the shift, relative to the norm of the latent tensor, weakest first.
    batch_size : int
        Images per call of the model.
    outputs_are : {None, "logits", "probabilities"}
        What the model returns, see `baselines.adversarial`.

    Returns
    -------
    (n, C, H, W) float32 array in [0, 1]

    Raises
    ------
    ValueError
        If an argument is out of its range, or the model's outputs are not those of classes.
    """

    _check_mode("autoencoder", autoencoder)

    def made(task: Task, images: Tensor, rows) -> Callable[[float, Tensor], Tensor]:
        with torch.enable_grad():
            latent = autoencoder.encoder(images).detach().requires_grad_()
            value = task.scalar_of(rows)(autoencoder.decoder(latent))
            (slope,) = torch.autograd.grad(value.sum(), latent)
        latent = latent.detach()
        length = latent.flatten(1).norm(dim=1).view(-1, *(1,) * (latent.ndim - 1))
        step = _unit(slope) * length
        return lambda strength, at: autoencoder.decoder(latent[at] + strength * step[at])

    return _search(model, x, targets, made, confidence, strengths, batch_size, outputs_are)


def robust_gradient(
    model: nn.Module,
    robust: nn.Module,
    x,
    targets,
    *,
    confidence: float = 0.95,
    strengths: Iterable[float] = LENGTHS,
    batch_size: int = 100,
    outputs_are: str | None = None,
) -> np.ndarray:
    """The way that the gradient of a robust classifier shows, until `model` sees the target.

    Santurkar, Ilyas, Tsipras, Engstrom, Tran and Madry, *Image Synthesis with a Single (Robust)
    Classifier*, NeurIPS 2019, arXiv 1906.09453.

    Parameters
    ----------
    model, x, targets, confidence, batch_size, outputs_are
        As in `latent_shift`.
    robust : torch.nn.Module
        Maps (B, C, H, W) to logits of the same classes.
    strengths : positive floats
        Euclidean lengths of the way, the shortest first; a step leads from each to the next.

    Returns
    -------
    (n, C, H, W) float32 array in [0, 1]

    Raises
    ------
    ValueError
        As `latent_shift`.
    """

    _check_mode("robust", robust)

    def made(task: Task, images: Tensor, rows) -> Callable[[float, Tensor], Tensor]:
        guide = Task(robust, images, task.target[rows], log_probability=True)
        point, gone = images.clone(), 0.0

        def walked(length: float, at: Tensor) -> Tensor:
            nonlocal gone
            slope = guide.values_and_gradients(point[at], at.cpu().numpy())[1]
            point[at] = (point[at] + (length - gone) * _unit(slope)).clamp(0, 1)
            gone = length
            return point[at]

        return walked

    return _search(model, x, targets, made, confidence, strengths, batch_size, outputs_are)


def guided_flow(
    model: nn.Module,
    velocity: nn.Module,
    x,
    targets,
    *,
    start: float = 0.5,
    steps: int = 10,
    free: float = 0.05,
    confidence: float = 0.95,
    strengths: Iterable[float] = PUSHES,
    batch_size: int = 100,
    outputs_are: str | None = None,
) -> np.ndarray:
    """Back along a flow towards noise, and forth again, pushed by the classifier's gradient.

    Forth, the classifier is asked about the image that each point is heading for, without a pass
    back through the flow (Weng et al., *Fast Diffusion-Based Counterfactuals for Shortcut Removal
    and Generation*, ECCV 2024, arXiv 2312.14223). At each step the pixels where its gradient is
    largest are let go, for good; all others stay on the way by which they came, as in MaskDiME
    (Guo, Christensen, Dahl and Hannemose, CVPR 2026, arXiv 2602.18792), whose mask is another.

    Parameters
    ----------
    model, x, targets, confidence, batch_size, outputs_are
        As in `latent_shift`.
    velocity : torch.nn.Module
        ``velocity(points, times)``, of points between noise at time 0 and images in [-1, 1] at 1.
    start : float
        Time in (0, 1) to go back to: the earlier, the freer.
    steps : int
        Of Euler's method, each way.
    free : float
        Share of the pixels let go at each step, in (0, 1].
    strengths : positive floats
        Lengths of the push per unit of time, of images in [-1, 1], weakest first.

    Returns
    -------
    (n, C, H, W) float32 array in [0, 1]

    Raises
    ------
    ValueError
        As `latent_shift`.
    """
    if not 0 < start < 1:
        raise ValueError(f"start must be a time in (0, 1), got {start}")
    if not 0 < free <= 1:
        raise ValueError(f"free must be a share in (0, 1], got {free}")
    if not isinstance(steps, int | np.integer) or steps < 1:
        raise ValueError(f"steps must be a positive integer, got {steps!r}")
    times = [start + (1 - start) * k / steps for k in range(steps + 1)]

    _check_mode("velocity", velocity)

    def made(task: Task, images: Tensor, rows) -> Callable[[float, Tensor], Tensor]:
        way = [2 * images - 1]  # from the image back to `start`
        for now, before in zip(times[:0:-1], times[-2::-1], strict=True):
            way.append(way[-1] + (before - now) * _at(velocity, way[-1], now))
        way.reverse()
        few = max(1, math.ceil(free * images[0, 0].numel()))

        def pushed(strength: float, at: Tensor) -> Tensor:
            point, loose = way[0][at], torch.zeros_like(images[at, :1], dtype=torch.bool)
            these = rows[at.cpu().numpy()]
            for k, (now, then) in enumerate(itertools.pairwise(times)):
                speed = _at(velocity, point, now)
                heading = ((point + (1 - now) * speed + 1) / 2).clamp(0, 1)
                slope = task.values_and_gradients(heading, these)[1]
                strongest = slope.abs().sum(1).flatten(1).topk(few).indices
                loose.view(len(at), -1).scatter_(1, strongest, True)
                push = strength * _unit(torch.where(loose, slope, 0))
                point = torch.where(loose, point + (then - now) * (speed + push), way[k + 1][at])
            return ((point + 1) / 2).clamp(0, 1)

        return pushed

    return _search(model, x, targets, made, confidence, strengths, batch_size, outputs_are)


def _at(velocity: nn.Module, points: Tensor, time: float) -> Tensor:
    return velocity(points, points.new_full((len(points),), time))


def _unit(x: Tensor) -> Tensor:
    """`x` over its Euclidean norm, image by image; zero stays zero."""
    flat, tiny = x.flatten(1), torch.finfo(x.dtype).tiny
    flat = flat / flat.abs().amax(1, keepdim=True).clamp(min=tiny)  # squares must not underflow
    return torch.nn.functional.normalize(flat, eps=tiny).view_as(x)


def _check_mode(name: str, helper) -> None:
    if isinstance(helper, nn.Module):
        try:
            runtime.check_mode(helper)
        except ValueError:
            raise ValueError(f"{name} is in training mode: call its eval() first") from None


@torch.no_grad()
def _search(
    model, x, targets, made: Callable, confidence, strengths, batch_size, outputs_are
) -> np.ndarray:
    """For each image the weakest strength that reaches `confidence`, else the most convincing one.

    ``made(task, images, rows)`` is a function of a strength and of places (b,) in the batch, which
    makes these images.
    """
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must be a probability in (0, 1), got {confidence}")
    strengths = [float(value) for value in strengths]
    if not strengths or min(strengths) <= 0 or strengths != sorted(strengths):
        raise ValueError(f"strengths must be positive, the weakest first, got {strengths}")
    Classes(outputs_are)  # refuses another word
    x = as_batch(x).astype(np.float32)
    targets = classes("targets", targets, len(x), "classes")
    task = Task(model, x, targets, log_probability=outputs_are or True, argument="outputs_are")
    found, goal = np.empty_like(x), math.log(confidence)
    for _, rows, _ in task.batches(1, batch_size):
        images = task.x[rows]
        at = made(task, images, rows)
        best, reached = images.clone(), torch.full((len(rows),), -torch.inf).to(images)
        for strength in strengths:
            short = torch.nonzero(reached < goal)[:, 0]
            if not len(short):
                break
            here = at(strength, short).clamp(0, 1)
            value = task.scalar_of(rows[short.cpu().numpy()])(here)
            better = value > reached[short]
            best[short[better]], reached[short[better]] = here[better], value[better]
        found[rows] = best.cpu().numpy()
    return found
