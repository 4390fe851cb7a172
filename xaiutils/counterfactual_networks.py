"""What counterfactuals without a GAN need: an autoencoder, a flow, a robust classifier.

None of them holds the classifier under explanation while it is trained, so one serves all
classifiers of the same images.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm

from xaiutils.classifiers import trained


class Autoencoder(nn.Module):
    """Convolutions that quarter the side of images to a map of `latent` channels, and back."""

    def __init__(self, channels: int, *, width: int = 24, latent: int = 16) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            *(nn.Conv2d(channels, width, 4, 2, 1), nn.SiLU()),
            *(nn.Conv2d(width, 2 * width, 4, 2, 1), nn.SiLU()),
            nn.Conv2d(2 * width, latent, 3, padding=1),
        )
        self.decoder = nn.Sequential(
            *(nn.Conv2d(latent, 2 * width, 3, padding=1), nn.SiLU()),
            *(nn.ConvTranspose2d(2 * width, width, 4, 2, 1), nn.SiLU()),
            nn.ConvTranspose2d(width, channels, 4, 2, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W) made anew, about in [0, 1]; H and W divisible by 4."""
        return self.decoder(self.encoder(x))


class Velocity(nn.Module):
    """A small U-Net on patches of 2 x 2 pixels: where a point between noise and images moves."""

    def __init__(self, channels: int, *, width: int = 32) -> None:
        super().__init__()
        self.time = nn.Sequential(nn.Linear(16, 4 * width), nn.SiLU())
        self.first = nn.Conv2d(4 * channels, width, 3, padding=1)
        self.down = nn.ModuleList(
            [_Timed(width, width, 4 * width), _Timed(width, 2 * width, 4 * width)]
        )
        self.up = _Timed(3 * width, width, 4 * width)
        self.last = nn.Conv2d(width, 4 * channels, 3, padding=1)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """Velocities of points `x` (B, C, H, W) at times (B,) in [0, 1]; H, W divisible by 4."""
        angles = math.pi * time[:, None] * 2.0 ** torch.arange(8).to(x)
        told = self.time(torch.cat([angles.sin(), angles.cos()], 1))
        fine = self.down[0](self.first(functional.pixel_unshuffle(x, 2)), told)
        coarse = self.down[1](functional.avg_pool2d(fine, 2), told)
        joined = torch.cat([fine, functional.interpolate(coarse, scale_factor=2.0)], 1)
        return functional.pixel_shuffle(self.last(self.up(joined, told)), 2)


class _Timed(nn.Module):
    """A residual block that is told the time."""

    def __init__(self, before: int, after: int, told: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList([nn.GroupNorm(8, before), nn.GroupNorm(8, after)])
        self.convolutions = nn.ModuleList(
            [nn.Conv2d(before, after, 3, padding=1), nn.Conv2d(after, after, 3, padding=1)]
        )
        self.told = nn.Linear(told, after)
        self.skip = nn.Identity() if before == after else nn.Conv2d(before, after, 1)

    def forward(self, x: Tensor, told: Tensor) -> Tensor:
        inside = self.convolutions[0](functional.silu(self.norms[0](x)))
        inside = inside + self.told(told)[:, :, None, None]
        return self.skip(x) + self.convolutions[1](functional.silu(self.norms[1](inside)))


def train_autoencoder(net: nn.Module, images: Tensor, *, steps: int, seed: int = 0) -> nn.Module:
    """Teach `net` in place to make `images` (n, C, H, W) in [0, 1] anew, by least squares.

    Returns `net`, in evaluation mode and frozen, as all three trainings do. They raise ValueError
    if images or labels do not fit.
    """
    _check(images)

    def loss(rows: Tensor, rng: torch.Generator) -> Tensor:
        return functional.mse_loss(net(images[rows]), images[rows])

    return _descend(net, loss, len(images), steps, seed)


def train_velocity(net: nn.Module, images: Tensor, *, steps: int, seed: int = 0) -> nn.Module:
    """Teach `net` the flow along straight lines from normal noise to `images`, in [-1, 1] there.

    Flow matching: Lipman, Chen, Ben-Hamu, Nickel and Le, *Flow Matching for Generative Modeling*,
    ICLR 2023, arXiv 2210.02747. `images` (n, C, H, W) are in [0, 1].
    """
    _check(images)

    def loss(rows: Tensor, rng: torch.Generator) -> Tensor:
        x = 2 * images[rows] - 1
        noise = torch.randn(x.shape, generator=rng)
        time = torch.rand(len(x), generator=rng)
        at = torch.lerp(noise, x, time.view(-1, 1, 1, 1))
        return functional.mse_loss(net(at, time), x - noise)

    return _descend(net, loss, len(images), steps, seed)


def train_robust(
    net: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    steps: int,
    radius: float = 1.0,
    attack_steps: int = 5,
    seed: int = 0,
) -> nn.Module:
    """Train a classifier in place on the worst points within a Euclidean `radius` of its images.

    The radius is 0 for the first half of the steps and grows for a quarter: attacked from the
    start, a network may never learn its classes.

    Madry, Makelov, Schmidt, Tsipras and Vladu, ICLR 2018, arXiv 1706.06083. Its gradient is one
    that people can read (Santurkar et al. 2019, arXiv 1906.09453). `labels` are int64 (n,).
    """
    _check(images)
    if labels.shape != (len(images),) or labels.dtype != torch.int64:
        raise ValueError(
            f"labels must be int64 ({len(images)},), got {labels.dtype} {tuple(labels.shape)}"
        )

    grown = itertools.count()

    def loss(rows: Tensor, rng: torch.Generator) -> Tensor:
        x, y = images[rows], labels[rows]
        far = radius * min(1.0, max(0.0, 4 * next(grown) / steps - 2))
        if not far:
            return functional.cross_entropy(net(x), y)
        change = torch.zeros_like(x)
        for _ in range(attack_steps):
            change.requires_grad_()
            value = functional.cross_entropy(net((x + change).clamp(0, 1)), y)
            (slope,) = torch.autograd.grad(value, change)
            change = change.detach() + 2.5 * far / attack_steps * _unit(slope)
            change = _unit(change) * _norm(change).clamp(max=far)
        return functional.cross_entropy(net((x + change).clamp(0, 1)), y)

    return _descend(net, loss, len(images), steps, seed)


def _check(images: Tensor) -> None:
    if not (
        images.ndim == 4
        and len(images)
        and images.is_floating_point()
        and not (images.shape[2] % 4 or images.shape[3] % 4)
        and ((images >= 0) & (images <= 1)).all()
    ):
        raise ValueError(
            "images must be floating point (n, C, H, W) in [0, 1] with sides divisible by 4, got "
            f"{images.dtype} {tuple(images.shape)}"
        )


def _norm(x: Tensor) -> Tensor:
    return x.flatten(1).norm(dim=1).view(-1, *(1,) * (x.ndim - 1))


def _unit(x: Tensor) -> Tensor:
    """`x` over its Euclidean norm, image by image; zero stays zero."""
    return x / _norm(x).clamp(min=torch.finfo(x.dtype).tiny)


def _descend(net: nn.Module, loss: Callable, n: int, steps: int, seed: int) -> nn.Module:
    """Minimise ``loss(rows, rng)`` over batches of 64 of `n` rows."""
    rng = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(net.parameters(), 2e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
    net.train()
    options = {"desc": type(net).__name__.lower(), "disable": None}
    with trained.one_thread(), trained.seeded(seed):
        for step in tqdm(range(steps), **options):
            rows = np.random.default_rng([seed, step]).integers(n, size=64)
            value = loss(torch.from_numpy(rows), rng)
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
            schedule.step()
    return net.eval().requires_grad_(False)
