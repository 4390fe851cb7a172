"""Small problems that the oracles ask about: networks in double precision and random images."""

import numpy as np
import torch
from torch import nn

from xaiutils.perturb import Components

LABELS = np.array([[0, 0, 1, 1], [2, 0, 1, 3], [2, 2, 3, 3], [4, 4, 4, 3]])


def weighted(model, rng):
    """`model` in double precision and evaluation mode, its weights drawn by `rng`."""
    for weight in model.double().eval().parameters():
        weight.data = torch.from_numpy(rng.normal(size=weight.shape) / 2)
    return model


class Tanh(nn.Module):
    """Smooth logits (B, classes) of inputs of `size` values."""

    def __init__(self, rng, size, classes=3):
        super().__init__()
        self.inner, self.outer = nn.Linear(size, 5), nn.Linear(5, classes)
        weighted(self, rng)

    def forward(self, x):
        return self.outer(torch.tanh(self.inner(x.flatten(1))))


class Convolutional(nn.Module):
    """Smooth logits (B, 4) of images (B, 2, 6, 8); `trunk` halves the resolution."""

    def __init__(self, rng):
        super().__init__()
        self.trunk, self.head = nn.Conv2d(2, 3, 3, stride=2, padding=1), nn.Linear(36, 4)
        weighted(self, rng)

    def rest(self, maps):
        return self.head(torch.tanh(maps).flatten(1))

    def forward(self, x):
        return self.rest(self.trunk(x))


class Recorder(nn.Module):
    """Passes on and keeps every batch that it sees."""

    def __init__(self, model):
        super().__init__()
        self.model, self.seen = model, []

    def forward(self, x):
        self.seen.append(x.detach().clone())
        return self.model(x)


def answer(model, image):
    """Outputs (K,) for one input, in a call of its own."""
    with torch.no_grad():
        return model(torch.from_numpy(np.array(image))[None])[0].numpy()


def softmax(logits):
    odds = np.exp(np.asarray(logits, float) - np.max(logits))
    return odds / odds.sum()


def partition():
    """Five superpixels of an image of 4 x 4 pixels."""
    return Components(LABELS)
