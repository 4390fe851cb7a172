"""Frozen MNIST classifiers, trained by this project: plain, and on digits with hidden pixels."""

import torch
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm

from xaiutils.classifiers import trained
from xaiutils.data import assets, datasets

_TRAINING = {"epochs": 5, "batch_size": 128, "learning_rate": 3e-3}
# The authors' values for CIFAR-10, whose images are about as small. Fidelity curves hide up to
# everything, but the question is whether mild masking in training already mends them.
_MASKING = {"share_of_batches": 0.5, "max_density": 0.25, "share_of_boxes": 0.1, "max_side": 3}


class Classifier(nn.Module):
    """Two blocks of two 3x3 convolutions (as in VGG, Simonyan & Zisserman 2015), two dense layers.

    Every activation is a module of its own, so that attribution methods can hook each of them.
    """

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(  # (N, 1, 28, 28)
            *_block(1, 8),  # (N, 8, 14, 14)
            *_block(8, 16),  # (N, 16, 7, 7)
            nn.Flatten(),
            nn.Linear(16 * 7 * 7, 128),
            nn.ReLU(),
            nn.Linear(128, 10),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, 10) of digits `x` (N, 1, 28, 28), floating point in [0, 1], ink 1."""
        if x.ndim != 4 or x.shape[1:] != (1, 28, 28) or not x.is_floating_point():
            raise ValueError(
                "x: expected floating-point digits (N, 1, 28, 28) in [0, 1], got "
                f"{x.dtype} of shape {tuple(x.shape)}; convert uint8 with x[:, None].float() / 255"
            )
        return self.layers(x)


class Masking(nn.Module):
    """Augmentation of `model`: in a share of the batches, pixels of each digit are set to 0.

    The density of hidden pixels is uniform in [0, `max_density`], drawn for each batch. A few of
    them grow to the right and down into boxes of a side uniform in 1..`max_side`, cut off at the
    border. Brocki and Chung, *Feature Perturbation Augmentation for Reliable Evaluation of
    Importance Estimators in Neural Networks*, Pattern Recognition Letters 176 (2023).
    """

    def __init__(
        self,
        model: nn.Module,
        seed: int,
        *,
        share_of_batches: float,
        max_density: float,
        share_of_boxes: float,
        max_side: int,
    ) -> None:
        super().__init__()
        self.model = model
        self.share_of_batches, self.max_density = share_of_batches, max_density
        self.share_of_boxes, self.max_side = share_of_boxes, max_side
        # Another stream than that of the order of the digits.
        self.generator = torch.Generator().manual_seed(seed + 2**32)

    def forward(self, x: Tensor) -> Tensor:
        """Outputs of `model` for digits `x` (N, 1, 28, 28), some of them masked."""
        if self._uniform(1) < self.share_of_batches:
            x = x * ~self._hidden(x)
        return self.model(x)

    def _hidden(self, x: Tensor) -> Tensor:
        """Mask of the shape of `x`, True where a pixel is hidden."""
        seeds = self._uniform(*x.shape) < self._uniform(1) * self.max_density
        grows = self._uniform(*x.shape) < self.share_of_boxes
        sides = torch.randint(1, self.max_side + 1, x.shape, generator=self.generator)
        hidden = seeds.clone()
        for side in range(2, self.max_side + 1):
            corners = (seeds & grows & (sides == side)).float()
            corners = functional.pad(corners, (side - 1, 0, side - 1, 0))
            hidden |= functional.max_pool2d(corners, side, stride=1).bool()
        return hidden

    def _uniform(self, *shape: int) -> Tensor:
        return torch.rand(shape, generator=self.generator)


def load(seed: int = 0, *, masked: bool = False) -> Classifier:
    """Load a digit classifier; a seed that was never used is trained first (about 40 s).

    Parameters
    ----------
    seed : int
        Of the initial weights, the order of the training digits and their masks.
    masked : bool
        The classifier that was trained with `Masking`; otherwise everything is the same. It has
        met hidden pixels of value 0 only, no other filler.

    Returns
    -------
    Classifier
        Maps digits (N, 1, 28, 28) in [0, 1] to logits (N, 10); evaluation mode, frozen.

    Raises
    ------
    xaiutils.classifiers.trained.TrainedError
        The stored weights are damaged.
    """
    return _recipe(seed, masked=masked).load()


def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Share of `images` (N, ...) whose largest logit is that of their label in `labels` (N,)."""
    with torch.no_grad():
        hits = [
            (model(x).argmax(1) == y).sum()
            for x, y in zip(images.split(500), labels.split(500), strict=True)
        ]
    return sum(hits).item() / len(labels)


def recipes() -> list[trained.Recipe]:
    """Models whose weights are committed."""
    return [_recipe(0), _recipe(0, masked=True)]


def _recipe(seed: int, *, masked: bool = False) -> trained.Recipe:
    parts, settings = [_block, Classifier, _build, _train], {"seed": seed, "training": _TRAINING}
    if masked:
        parts, settings = [*parts, Masking], settings | {"masking": _MASKING}

    def train(model: nn.Module) -> dict[str, float]:
        digits = datasets.mnist()
        learner = Masking(model, seed, **_MASKING) if masked else model
        _train(learner, digits.train_images, digits.train_labels, seed, **_TRAINING)
        return {"accuracy": accuracy(model, digits.test_images, digits.test_labels)}

    return trained.Recipe(
        name=f"digits-masked-{seed}" if masked else f"digits-{seed}",
        build=lambda: _build(seed),
        train=train,
        key=trained.key(*parts, settings | {"mnist": assets.hashes()["mnist.pkl.gz"]}),
        probe=lambda: (datasets.mnist().test_images[:1000],),
    )


def _block(width: int, channels: int) -> list[nn.Module]:
    return [
        nn.Conv2d(width, channels, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(channels, channels, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
    ]


def _build(seed: int) -> Classifier:
    # Layers draw their initial weights from the global generator: give it back as it was.
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return Classifier().to(memory_format=torch.channels_last)


@trained.one_thread()
def _train(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    seed: int,
    *,
    epochs: int,
    batch_size: int,
    learning_rate: float,
) -> None:
    """Train in place by AdamW with a one-cycle learning rate, on the CPU."""
    steps = len(images) // batch_size
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), learning_rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, learning_rate, total_steps=epochs * steps
    )
    # A bar goes to terminals only: in a notebook it would end up in the saved output.
    with tqdm(total=epochs * steps, desc="digit classifier", disable=None) as bar:
        for _ in range(epochs):
            order = torch.randperm(len(images), generator=generator)
            for batch in order[: steps * batch_size].split(batch_size):
                loss = functional.cross_entropy(model(images[batch]), labels[batch])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
                bar.update()
