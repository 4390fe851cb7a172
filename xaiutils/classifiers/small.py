"""Classifiers of the small problems: the one explained, and judges of other families.

A baseline that only the explained classifier takes for the target class is an adversarial
example; so judges of the same and of other architectures are asked too.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm

from xaiutils.classifiers import trained
from xaiutils.classifiers.digits import accuracy
from xaiutils.data import assets, fashion, known_digits, problems

# Enough steps that no net gains from more; the learning rate goes up and down once.
_TRAINING = {"steps": 2500, "batch_size": 64, "learning_rate": 2e-3, "degrees": 5.0, "zoom": 0.1}


class Strided(nn.Module):
    """The authors' net for digits: two convolutions of side 6 and stride 2, two dense layers.

    Every activation is a module of its own, so that attribution methods can hook each of them.
    """

    def __init__(self, channels: int, size: int, classes: int) -> None:
        super().__init__()
        side = ((size - 6) // 2 + 1 - 6) // 2 + 1
        self.layers = nn.Sequential(
            *(nn.Conv2d(channels, 32, 6, stride=2), nn.ReLU()),
            *(nn.Conv2d(32, 64, 6, stride=2), nn.ReLU()),
            nn.Flatten(),
            *(nn.Linear(64 * side**2, 256), nn.ReLU(), nn.Dropout(0.5)),
            nn.Linear(256, classes),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, classes) of images (B, C, size, size) in [0, 1]."""
        return self.layers(x)


class Deeper(nn.Module):
    """Three strided convolutions, two dense layers: for scenes, as the object is anywhere."""

    def __init__(self, channels: int, size: int, classes: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            *(nn.Conv2d(channels, 32, 4, 2, 1), nn.ReLU()),
            *(nn.Conv2d(32, 64, 4, 2, 1), nn.ReLU()),
            *(nn.Conv2d(64, 64, 4, 2, 1), nn.ReLU()),
            nn.Flatten(),
            *(nn.Linear(64 * (size // 8) ** 2, 64), nn.ReLU(), nn.Dropout(0.5)),
            nn.Linear(64, classes),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, classes) of images (B, C, size, size) in [0, 1]."""
        return self.layers(x)


class Pooling(nn.Module):
    """A judge as in VGG: 3x3 convolutions, maxima of 2x2, two dense layers."""

    def __init__(self, channels: int, size: int, classes: int) -> None:
        super().__init__()
        layers = []
        for before, after in ((channels, 16), (16, 32), (32, 32)):
            layers += [nn.Conv2d(before, after, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
        dense = nn.Linear(32 * (size // 8) ** 2, 128)
        self.layers = nn.Sequential(
            *layers, nn.Flatten(), dense, nn.ReLU(), nn.Dropout(0.3), nn.Linear(128, classes)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, classes) of images (B, C, size, size) in [0, 1]."""
        return self.layers(x)


class Residual(nn.Module):
    """A judge as in ResNet: batch norm, residual blocks, no dense layer but the mean of the map."""

    def __init__(self, channels: int, size: int, classes: int) -> None:
        super().__init__()
        self.stem = _convolved(channels, 16, 2)
        self.down = nn.ModuleList([_convolved(16, 32, 2), _convolved(32, 64, 2)])
        self.blocks = nn.ModuleList([_convolved(32, 32, 1), _convolved(64, 64, 1)])
        self.head = nn.Linear(64, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, classes) of images (B, C, size, size) in [0, 1]."""
        x = functional.relu(self.stem(x))
        for down, block in zip(self.down, self.blocks, strict=True):
            x = functional.relu(down(x))
            x = functional.relu(x + block(x))
        return self.head(x.mean((2, 3)))


FAMILIES = {"strided": Strided, "deeper": Deeper, "pooling": Pooling, "residual": Residual}


def explained(problem: str) -> str:
    """Family of the classifier under explanation."""
    return "deeper" if problem in ("scenes", "one scene") else "strided"


def load(problem: str, size: int, family: str, seed: int = 0) -> nn.Module:
    """A frozen classifier; one that was never used is trained first (about a minute).

    Parameters
    ----------
    problem, size
        As in `problems.load`.
    family : str
        One of `FAMILIES`.
    seed : int

    Raises
    ------
    ValueError
        The family is unknown.
    """
    return recipe(problem, size, family, seed).load()


def recipe(problem: str, size: int, family: str, seed: int = 0) -> trained.Recipe:
    """How `load` makes its classifier."""
    if family not in FAMILIES:
        raise ValueError(f"family must be one of {', '.join(FAMILIES)}, got {family!r}")
    net = FAMILIES[family]

    def build() -> nn.Module:
        channels = 1 if problem in ("digits", "small digits", "fashion") else 3
        classes = {"colours": 3, "scenes": 4, "one scene": 2}.get(problem, 10)
        with trained.seeded(seed):
            return net(channels, size, classes)

    def train(model: nn.Module) -> dict[str, float]:
        data = problems.load(problem, size)
        _train(model, data.train_images, data.train_labels, seed, **_TRAINING)
        trained.round_to_half(model.eval())
        return {"accuracy": accuracy(model, data.test_images, data.test_labels)}

    settings = {"problem": problem, "size": size, "seed": seed, "training": _TRAINING}
    return trained.Recipe(
        name=f"{problem.replace(' ', '-')}-{size}-{family}-{seed}",
        build=build,
        train=train,
        key=trained.key(
            *(net, _convolved, _train, _moved, *problems.sources(problem)),
            settings | {"assets": _assets(problem)},
        ),
        probe=lambda: (problems.load(problem, size).test_images[:500],),
    )


def _assets(problem: str) -> dict[str, str]:
    if problem == "fashion":
        return {name: sha256 for name, (sha256, _) in fashion.FILES.items()}
    hashes = assets.hashes()
    photographs = known_digits.SCENES.values() if "scene" in problem else ()
    return {name: hashes[name] for name in ("mnist.pkl.gz", *photographs)}


def _convolved(before: int, after: int, stride: int) -> nn.Module:
    convolution = nn.Conv2d(before, after, 3, stride, padding=1, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(after))


@trained.one_thread()
def _train(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    seed: int,
    *,
    steps: int,
    batch_size: int,
    learning_rate: float,
    degrees: float,
    zoom: float,
) -> None:
    """Train in place by AdamW with a one-cycle learning rate, on the CPU."""
    rng = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), learning_rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=steps)
    order = torch.empty(0, dtype=torch.int64)
    model.train()
    with tqdm(total=steps, desc="classifier", disable=None) as bar, trained.seeded(seed):
        for _ in range(steps):
            while len(order) < batch_size:
                order = torch.cat([order, torch.randperm(len(images), generator=rng)])
            rows, order = order[:batch_size], order[batch_size:]
            x = _moved(images[rows], degrees, zoom, rng)
            loss = functional.cross_entropy(model(x), labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            bar.update()


def _moved(x: Tensor, degrees: float, zoom: float, rng: torch.Generator) -> Tensor:
    """Images turned by up to `degrees`, sheared and enlarged by up to `zoom`, shifted by half."""
    turn, shear, scale, right, down = torch.rand(5, len(x), generator=rng) * 2 - 1
    turn = turn * math.radians(degrees)
    scale, shear = 1 + zoom * scale, zoom * shear
    cos, sin = turn.cos() * scale, turn.sin() * scale
    rows = [cos, shear - sin, zoom * right, sin, cos, zoom * down]
    grid = functional.affine_grid(torch.stack(rows, 1).view(-1, 2, 3), x.shape, False)
    return functional.grid_sample(x, grid, padding_mode="border", align_corners=False)
