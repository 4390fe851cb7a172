"""GANMEX: the closest realistic image of another class, from a GAN that holds the classifier.

One generator serves all classes. It is told the wanted class and trained against a critic that
knows real images (Wasserstein loss with gradient penalty), against the frozen classifier under
explanation, and to stay near its input (Shih, Tien and Karnin, *GANMEX: One-vs-One Attributions
using GAN-based Model Explainability*, ICML 2021). Set `own_head`, and it is StarGAN: classes are
then judged by a head of the critic, which learns them from the labels.
"""

from __future__ import annotations

import copy
import dataclasses
import pickle
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm

from xaiutils import runtime
from xaiutils.classifiers import trained
from xaiutils.data import assets
from xaiutils.gan_networks import Critic, Generator

CHECKPOINT_EVERY = 250  # iterations between two states that an interrupted training resumes from


@dataclass(frozen=True)
class Settings:
    """What a training depends on besides classifier, data and seed.

    The weights of the losses are the authors', as far as names of their runs tell; the network is
    their one, narrower.

    Attributes
    ----------
    iterations : int
        Steps of the generator; the critic makes as many, on the same images.
    per_class : int
        Images of each class in a batch.
    classifier, similarity, cycle, critic : float
        Weights of the generator's losses. Similarity and cycle are mean absolute differences of
        images in [-1, 1]. Without weight, a critic is not trained either.
    penalty : float
        Weight of the critic's gradient penalty.
    own_head : bool
        Judge classes by a head of the critic instead of the classifier under explanation.
    width, critic_width, blocks, ends : int
        Channels of the first layers, residual blocks, and side of the first and last kernels.
    learning_rate : float
        Adam, betas .5 and .999, for both networks.
    average : float
        Decay of the moving average of the generator's weights, which is what is kept.
    """

    iterations: int = 3000
    per_class: int = 3
    classifier: float = 100.0
    similarity: float = 20.0
    cycle: float = 10.0
    critic: float = 1.0
    penalty: float = 10.0
    own_head: bool = False
    width: int = 16
    critic_width: int = 32
    blocks: int = 3
    ends: int = 3
    learning_rate: float = 2e-4
    average: float = 0.999


def critic_losses(
    critic: Critic, x: Tensor, labels: Tensor, fake: Tensor, mix: Tensor, settings: Settings
) -> dict[str, Tensor]:
    """Weighted losses of the critic; their sum is what it minimises.

    Parameters
    ----------
    x, fake : Tensor
        Real and made images (B, C, H, W) in [-1, 1].
    labels : Tensor
        (B,) of `x`; used by an own head only.
    mix : Tensor
        (B,) in [0, 1], where on the way from `x` to `fake` the gradient is asked to have norm 1.
    """
    fake = fake.detach()
    scores, logits = critic.judge(torch.cat([x, fake]))
    real, made = scores.chunk(2)
    between = (x + mix.view(-1, 1, 1, 1) * (fake - x)).requires_grad_()
    (slope,) = torch.autograd.grad(critic(between).sum(), between, create_graph=True)
    # The root has no gradient at 0.
    norm = (slope.flatten(1).square().sum(1) + 1e-10).sqrt()
    losses = {
        "distance": made.mean() - real.mean(),
        "penalty": settings.penalty * (norm - 1).square().mean(),
    }
    if logits is not None:
        head = functional.cross_entropy(logits[: len(x)], labels)
        losses["classifier"] = settings.classifier * head
    return losses


def generator_losses(
    generator: Generator,
    critic: Critic,
    model: Callable,
    x: Tensor,
    labels: Tensor,
    fake: Tensor,
    wanted: Tensor,
    settings: Settings,
) -> dict[str, Tensor]:
    """Weighted losses of the generator; their sum is what it minimises. Those without weight lack.

    Parameters
    ----------
    model : callable
        The classifier under explanation: images in [0, 1] to logits.
    x, labels, fake, wanted : Tensor
        As in `critic_losses`; `fake` are the generator's images of the classes `wanted` (B,).
    """
    losses = {}
    if settings.critic or settings.own_head:
        realness, logits = critic.judge(fake)
    if settings.critic:
        losses["critic"] = -settings.critic * realness.mean()
    if settings.classifier:
        logits = logits if settings.own_head else model((fake + 1) / 2)
        losses["classifier"] = settings.classifier * functional.cross_entropy(logits, wanted)
    if settings.similarity:
        losses["similarity"] = settings.similarity * (x - fake).abs().mean()
    if settings.cycle:
        losses["cycle"] = settings.cycle * (x - generator(fake, labels)).abs().mean()
    return losses


class Batches:
    """Class-balanced batches, each a function of `seed` and the iteration alone.

    Each class is gone through in a new random order again and again, so no image is left out,
    however frequent its class is.
    """

    def __init__(self, labels: Tensor, per_class: int, seed: int) -> None:
        counts = labels.bincount()
        if not len(counts) or not counts.all():
            raise ValueError(f"labels must show each class 0..{len(counts) - 1}: {counts.tolist()}")
        self.rows = [torch.nonzero(labels == k)[:, 0] for k in range(len(counts))]
        self.per_class, self.seed = per_class, seed

    def __call__(self, iteration: int) -> Tensor:
        """Rows of the batch, (classes * per_class,), class by class."""
        chosen = []
        for k, rows in enumerate(self.rows):
            at = iteration * self.per_class + np.arange(self.per_class)
            for turn in np.unique(at // len(rows)):
                order = np.random.default_rng([self.seed, 1, k, turn]).permutation(len(rows))
                chosen.append(rows[order[at[at // len(rows) == turn] % len(rows)]])
        return torch.cat(chosen)


class Training:
    """The two networks, their optimisers and the moving average, one iteration at a time."""

    def __init__(
        self, model: nn.Module, images: Tensor, labels: Tensor, settings: Settings, seed: int
    ) -> None:
        runtime.check_mode(model)
        channels, size = images.shape[1], images.shape[-1]
        classes = int(labels.max()) + 1
        self.model, self.images, self.labels = model, images, labels
        self.settings, self.seed, self.iteration = settings, seed, 0
        self.batches = Batches(labels, settings.per_class, seed)
        with trained.seeded(seed):
            self.generator = generator(channels, classes, settings)
            head = classes if settings.own_head else 0
            self.critic = Critic(channels, size, width=settings.critic_width, classes=head)
        device = next(model.parameters()).device
        self.generator.to(device), self.critic.to(device)
        self.average = copy.deepcopy(self.generator).requires_grad_(False)
        options = {"lr": settings.learning_rate, "betas": (0.5, 0.999)}
        self.optimisers = {
            "generator": torch.optim.Adam(self.generator.parameters(), **options),
            "critic": torch.optim.Adam(self.critic.parameters(), **options),
        }

    def step(self) -> dict[str, float]:
        """One step of the critic and one of the generator; the losses by name."""
        rng = np.random.default_rng([self.seed, 0, self.iteration])
        rows = self.batches(self.iteration)
        device = next(self.generator.parameters()).device
        x = (self.images[rows] * 2 - 1).to(device)
        labels = self.labels[rows].to(device)
        # The own class is among the wanted ones: there, all losses agree on leaving x alone.
        wanted = torch.from_numpy(rng.integers(self.generator.classes, size=len(x))).to(device)
        mix = torch.from_numpy(rng.random(len(x), dtype=np.float32)).to(device)
        fake = self.generator(x, wanted)
        losses = {}
        if self.settings.critic or self.settings.own_head:
            losses = critic_losses(self.critic, x, labels, fake, mix, self.settings)
            self._descend("critic", losses)
        self.critic.requires_grad_(False)
        made = generator_losses(
            self.generator, self.critic, self.model, x, labels, fake, wanted, self.settings
        )
        self._descend("generator", made)
        self.critic.requires_grad_(True)
        # Shorter at first, so that the untrained weights are soon forgotten.
        decay = min(self.settings.average, (1 + self.iteration) / (10 + self.iteration))
        for kept, now in zip(self.average.parameters(), self.generator.parameters(), strict=True):
            kept.lerp_(now.detach(), 1 - decay)
        self.iteration += 1
        return {f"critic {k}": v.item() for k, v in losses.items()} | {
            f"generator {k}": v.item() for k, v in made.items()
        }

    def _descend(self, name: str, losses: Mapping[str, Tensor]) -> None:
        self.optimisers[name].zero_grad()
        sum(losses.values()).backward()
        self.optimisers[name].step()

    def save(self, file: Path) -> None:
        """Write all that `resume` needs to go on exactly as if nothing had happened."""
        parts = {name: part.state_dict() for name, part in self._parts().items()}
        with assets.replacing(file) as temporary:
            torch.save(parts | self._identity() | {"iteration": self.iteration}, temporary)

    def resume(self, file: Path) -> None:
        """Take up the state saved in `file`.

        Raises
        ------
        xaiutils.classifiers.trained.TrainedError
            The file is damaged or holds another training.
        """
        try:
            state = torch.load(file, map_location="cpu", weights_only=True)
            if any(state[key] != value for key, value in self._identity().items()):
                raise ValueError("it was saved by a training with another seed or settings")
            for name, part in self._parts().items():
                part.load_state_dict(state[name])
        except (OSError, RuntimeError, ValueError, KeyError, pickle.UnpicklingError) as error:
            raise trained.TrainedError(
                f"checkpoint {file} cannot be taken up ({error}); delete it to train from nothing"
            ) from error
        self.iteration = state["iteration"]

    def _identity(self) -> dict:
        return {"seed": self.seed, "settings": dataclasses.asdict(self.settings)}

    def _parts(self) -> dict:
        networks = {"generator": self.generator, "critic": self.critic, "average": self.average}
        return networks | {f"{name} optimiser": o for name, o in self.optimisers.items()}


def generator(channels: int, classes: int, settings: Settings) -> Generator:
    """An untrained generator of the size in `settings`."""
    return Generator(
        channels, classes, width=settings.width, blocks=settings.blocks, ends=settings.ends
    )


def train(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    settings: Settings = Settings(),
    *,
    seed: int = 0,
    checkpoint: Path | None = None,
    training: Callable[..., Training] = Training,
) -> Generator:
    """Train a generator against a frozen classifier.

    Parameters
    ----------
    model : torch.nn.Module
        In evaluation mode; maps images (B, C, H, W) in [0, 1] to logits. Not changed. Its device
        is where the training runs.
    images, labels : Tensor
        (n, C, H, H) in [0, 1], H divisible by 4, and (n,) classes from 0, none missing.
    settings : Settings
    seed : int
        Of initial weights, order of images and wanted classes.
    checkpoint : Path, optional
        Where the state is kept, so that an interrupted training resumes; removed at the end. Its
        folder is made.
    training : callable
        ``training(model, images, labels, settings, seed)`` makes the steps; `settings` are of its
        kind.

    Returns
    -------
    Generator
        The moving average of the weights after the last iteration, in evaluation mode.

    Raises
    ------
    ValueError
        Images, labels or classes do not fit, or the model is in training mode.
    xaiutils.classifiers.trained.TrainedError
        The checkpoint is damaged or another training's.
    """
    _check(model, images, labels, own_head=getattr(settings, "own_head", False))
    state = training(model, images, labels, settings, seed)
    if checkpoint is not None and checkpoint.exists():
        state.resume(checkpoint)
    frozen = [p.requires_grad for p in model.parameters()]
    model.requires_grad_(False)
    options = {"total": settings.iterations, "initial": state.iteration, "desc": "GAN"}
    try:
        with trained.one_thread(), tqdm(**options, disable=None) as bar:
            while state.iteration < settings.iterations:
                losses = state.step()
                bar.update()
                if state.iteration % CHECKPOINT_EVERY == 0:
                    bar.set_postfix({k: f"{v:.2f}" for k, v in losses.items()})
                    if checkpoint is not None:
                        checkpoint.parent.mkdir(parents=True, exist_ok=True)
                        state.save(checkpoint)
    finally:
        for parameter, wanted in zip(model.parameters(), frozen, strict=True):
            parameter.requires_grad_(wanted)
    if checkpoint is not None:
        checkpoint.unlink(missing_ok=True)
    return state.average.eval().requires_grad_(False)


def _check(model, images, labels, *, own_head: bool) -> None:
    if not (
        images.ndim == 4
        and images.is_floating_point()
        and images.shape[2] == images.shape[3]
        and images.shape[3] % 4 == 0
        and (images >= 0).all()
        and (images <= 1).all()
    ):
        raise ValueError(
            "images must be floating point (n, C, H, H) in [0, 1] with H divisible by 4, got "
            f"{images.dtype} {tuple(images.shape)}"
        )
    if labels.shape != (len(images),) or labels.dtype != torch.int64 or not len(labels):
        raise ValueError(
            f"labels must be int64 of shape ({len(images)},), not empty, got {labels.dtype} "
            f"{tuple(labels.shape)}"
        )
    device = next(model.parameters()).device
    with torch.no_grad():
        outputs = model(images[:1].to(device)).shape[1]
    if not own_head and outputs != int(labels.max()) + 1:
        raise ValueError(
            f"labels show classes 0..{int(labels.max())}, but the model has {outputs} outputs"
        )


class Baseline:
    """Baselines from a trained generator: for each image the nearest one of the class wanted.

    Parameters
    ----------
    generator : Generator
    batch_size : int
    """

    def __init__(self, generator: Generator, *, batch_size: int = 100) -> None:
        self.generator, self.batch_size = generator, batch_size

    def __call__(self, x, targets) -> np.ndarray:
        """Images (n, C, H, W) in [0, 1] of the classes `targets` (n,), made from images `x`.

        Raises
        ------
        ValueError
            Images or targets do not fit.
        """
        device, classes = next(self.generator.parameters()).device, self.generator.classes
        x, targets = torch.as_tensor(x, dtype=torch.float32), torch.as_tensor(targets)
        if x.ndim != 4 or not len(x) or not ((x >= 0) & (x <= 1)).all():
            raise ValueError(f"x must be images (n, C, H, W) in [0, 1], got {tuple(x.shape)}")
        if (
            targets.shape != (len(x),)
            or targets.is_floating_point()
            or not ((targets >= 0) & (targets < classes)).all()
        ):
            raise ValueError(f"targets must be {len(x)} ints within 0..{classes - 1}: {targets}")
        targets = targets.long()
        with torch.no_grad():
            made = [
                self.generator(images.to(device) * 2 - 1, wanted.to(device)).cpu()
                for images, wanted in zip(
                    x.split(self.batch_size), targets.split(self.batch_size), strict=True
                )
            ]
        return ((torch.cat(made) + 1) / 2).clamp(0, 1).numpy()
