"""A frozen MNIST classifier, trained by this project."""

import torch
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm

from xaiutils import assets, datasets, trained

_TRAINING = {"epochs": 5, "batch_size": 128, "learning_rate": 3e-3}


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


def load(seed: int = 0) -> Classifier:
    """Load the digit classifier; a seed that was never used is trained first (about 40 s).

    Parameters
    ----------
    seed : int
        Of the initial weights and the order of the training digits.

    Returns
    -------
    Classifier
        Maps digits (N, 1, 28, 28) in [0, 1] to logits (N, 10); evaluation mode, frozen.

    Raises
    ------
    xaiutils.trained.TrainedError
        The stored weights are damaged.
    """
    return _recipe(seed).load()


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
    return [_recipe(0)]


def _recipe(seed: int) -> trained.Recipe:
    def train(model: nn.Module) -> dict[str, float]:
        digits = datasets.mnist()
        _train(model, digits.train_images, digits.train_labels, seed, **_TRAINING)
        return {"accuracy": accuracy(model, digits.test_images, digits.test_labels)}

    return trained.Recipe(
        name=f"digits-{seed}",
        build=lambda: _build(seed),
        train=train,
        key=trained.key(
            *(_block, Classifier, _build, _train),
            {"seed": seed, "training": _TRAINING, "mnist": assets.hashes()["mnist.pkl.gz"]},
        ),
        probe=lambda: datasets.mnist().test_images[:1000],
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
