"""The networks of GANMEX: StarGAN's generator and critic, at any width."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


class Generator(nn.Module):
    """StarGAN's generator: two layers down, residual blocks, two layers up, instance norm.

    Zero padding, as mirrored borders would make the constant maps of the wanted class vanish in
    the instance norm.
    """

    def __init__(self, channels: int, classes: int, *, width=64, blocks=6, ends=7) -> None:
        super().__init__()
        self.classes = classes
        widths = (width, 2 * width, 4 * width)
        self.layers = nn.Sequential(
            nn.Conv2d(channels + classes, width, ends, padding=ends // 2, bias=False),
            *_normed(width),
            nn.Conv2d(width, widths[1], 4, stride=2, padding=1, bias=False),
            *_normed(widths[1]),
            nn.Conv2d(widths[1], widths[2], 4, stride=2, padding=1, bias=False),
            *_normed(widths[2]),
            *(_Residual(widths[2]) for _ in range(blocks)),
            nn.ConvTranspose2d(widths[2], widths[1], 4, stride=2, padding=1, bias=False),
            *_normed(widths[1]),
            nn.ConvTranspose2d(widths[1], width, 4, stride=2, padding=1, bias=False),
            *_normed(width),
            nn.Conv2d(width, channels, ends, padding=ends // 2, bias=False),
            nn.Tanh(),
        )

    def forward(self, x: Tensor, wanted: Tensor) -> Tensor:
        """Images (B, C, H, W) in [-1, 1] of the classes `wanted` (B,), made from images `x`."""
        if x.shape[-1] % 4 or x.shape[-2] % 4:
            raise ValueError(f"x must have sides divisible by 4, got {tuple(x.shape)}")
        maps = functional.one_hot(wanted, self.classes).to(x)[:, :, None, None]
        return self.layers(torch.cat([x, maps.expand(-1, -1, *x.shape[2:])], dim=1))


class _Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1, bias=False),
            *_normed(width),
            nn.Conv2d(width, width, 3, padding=1, bias=False),
            nn.InstanceNorm2d(width, affine=True),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)


class Critic(nn.Module):
    """Layers that halve the image until a side is below 3, then one map and its mean.

    With `classes`, a second head gives their logits.
    """

    def __init__(self, channels: int, size: int, *, width=64, classes: int = 0) -> None:
        super().__init__()
        layers, depth = [], channels
        for i in range(6):
            if size < 3:
                break
            layers += [nn.Conv2d(depth, width * 2**i, 4, 2, 1, bias=False), nn.LeakyReLU(0.01)]
            depth, size = width * 2**i, size // 2
        self.layers = nn.Sequential(*layers)
        self.realness = nn.Conv2d(depth, 1, 3, padding=1, bias=False)
        self.head = nn.Conv2d(depth, classes, size, bias=False) if classes else None

    def forward(self, x: Tensor) -> Tensor:
        """Realness (B,) of images (B, C, H, W) in [-1, 1]."""
        return self.judge(x)[0]

    def judge(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Realness (B,) and, if there is such a head, logits (B, classes)."""
        features = self.layers(x)
        logits = None if self.head is None else self.head(features).flatten(1)
        return self.realness(features).mean((1, 2, 3)), logits


def _normed(width: int) -> tuple[nn.Module, nn.Module]:
    return nn.InstanceNorm2d(width, affine=True), nn.ReLU()
