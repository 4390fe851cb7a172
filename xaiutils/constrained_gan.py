"""GANMEX with the weight of its classifier found by a rule, and generators that start from x.

The problem as it is meant: the nearest realistic image *subject to* the classifier's answer. A
fixed weight of the classifier's loss states another one, and which weight serves depends on how
sure of itself the classifier is. Here the loss gets a bound, and the weight follows from it.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from xaiutils import gan_networks, ganmex, runtime
from xaiutils.classifiers import trained

FORMS = ("paint", "identity", "mask")  # see `Generator`


@dataclass(frozen=True)
class Settings:
    """What a training depends on besides classifier, data and seed.

    Attributes
    ----------
    iterations : int
        Steps of the generator; the critic makes as many, on the same images.
    per_class : int
        Images of each class in a batch.
    bound : float
        Cross entropy that images of another class must stay below, on average, in the eyes of the
        classifier, above 0.
    weight : float
        Of the classifier's loss at the start, above 0. `Multiplier` changes it.
    similarity, cycle, mask, penalty : float
        Weights of the other losses, that of realness being 1: mean absolute differences of images
        in [-1, 1], mean of the mask, and gradient penalty of the critic. 0 leaves one out.
    width, critic_width, blocks, ends : int
        Channels of the first layers, residual blocks, and side of the first and last kernels.
    form : str
        One of `FORMS`.
    told : bool
        Tell the critic the class wanted: it then asks for realistic images of that class. A
        critic that is not told is content with an image that only the classifier takes for it.
    learning_rate : float
        Adam, betas .5 and .999, for both networks.
    average : float
        Decay of the moving average of the generator's weights, which is what is kept.
    """

    iterations: int = 1000
    per_class: int = 3
    bound: float = 0.1
    weight: float = 1.0
    similarity: float = 20.0
    cycle: float = 10.0
    mask: float = 0.0
    penalty: float = 10.0
    width: int = 16
    critic_width: int = 32
    blocks: int = 3
    ends: int = 3
    form: str = "paint"
    told: bool = False
    learning_rate: float = 5e-4
    average: float = 0.999

    def __post_init__(self) -> None:
        if self.form not in FORMS:
            raise ValueError(f"form must be one of {', '.join(FORMS)}, got {self.form!r}")
        for name in ("bound", "weight"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ValueError(f"{name} must be above 0 and finite, got {getattr(self, name)}")


class Generator(gan_networks.Generator):
    """StarGAN's generator with a choice of what becomes of its layers' answer h.

    Parameters
    ----------
    form : str
        "paint" is StarGAN's tanh(h), all of the image anew. "identity" is tanh(atanh(.98 x) + h),
        which starts as x. "mask" is m tanh(h) + (1 - m) x, with the mask m from one more channel
        (as Pumarola et al., *GANimation*, ECCV 2018).
    """

    def __init__(self, channels: int, classes: int, *, form: str, width=64, blocks=6, ends=7):
        super().__init__(channels, classes, width=width, blocks=blocks, ends=ends)
        self.form = form
        last = nn.Conv2d(width, channels + (form == "mask"), ends, padding=ends // 2, bias=False)
        if form == "identity":
            nn.init.zeros_(last.weight)
        self.layers = nn.Sequential(*self.layers[:-2], last)  # without the tanh
        _group(self)

    def forward(self, x: Tensor, wanted: Tensor) -> Tensor:
        """Images (B, C, H, W) in [-1, 1] of the classes `wanted` (B,), made from images `x`."""
        return self.compose(x, wanted)[0]

    def compose(self, x: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor | None]:
        """The same images, and where they are painted, (B, 1, H, W), if there is a mask."""
        h = super().forward(x, wanted)
        if self.form == "identity":
            return torch.tanh(torch.atanh(0.98 * x) + h), None
        if self.form == "mask":
            mask = torch.sigmoid(h[:, -1:])
            return torch.lerp(x, torch.tanh(h[:, :-1]), mask), mask
        return torch.tanh(h), None


def _group(module: nn.Module) -> None:
    """Put group norms of one channel each for instance norms: the same, but faster on a CPU."""
    for name, child in module.named_children():
        if isinstance(child, nn.InstanceNorm2d):
            setattr(module, name, nn.GroupNorm(child.num_features, child.num_features))
        else:
            _group(child)


class Critic(gan_networks.Critic):
    """StarGAN's critic, faster: its gradient is written out.

    Parameters
    ----------
    told : int
        Number of classes, if it is told them; its realness then has a part that is linear in the
        mean features, with weights of each class (Miyato and Koyama, *cGANs with Projection
        Discriminator*, ICLR 2018).
    """

    def __init__(self, channels: int, size: int, *, width: int = 64, told: int = 0) -> None:
        super().__init__(channels, size, width=width)
        depth = self.realness.in_channels
        self.of_class = nn.Parameter(torch.zeros(told, depth)) if told else None

    def forward(self, x: Tensor, wanted: Tensor | None = None) -> Tensor:
        """Realness (B,) of images (B, C, H, W) in [-1, 1], as images of the classes `wanted`."""
        for layer in self.layers:
            x = _down(x, layer.weight) if isinstance(layer, nn.Conv2d) else layer(x)
        realness = self.realness(x).mean((1, 2, 3))
        if self.of_class is not None:
            realness = realness + (self.of_class[wanted] * x.mean((2, 3))).sum(1)
        return realness

    def slope(self, x: Tensor, wanted: Tensor | None = None) -> Tensor:
        """Gradient of the realness of each image, of the shape of `x`, in a graph of the weights.

        Between its kinks the critic is linear in the image, so the gradient is a product of the
        weights and of which units are on. The second derivative that `torch.autograd` also goes
        through for it is zero.
        """
        sizes, slopes, one = [], [], x.new_ones(())
        with torch.no_grad():
            for layer in self.layers:
                if isinstance(layer, nn.Conv2d):
                    sizes.append(x.shape[-2:])
                    x = _down(x, layer.weight)
                else:
                    slopes.append(torch.where(x > 0, one, layer.negative_slope * one))
                    x = layer(x)
        share = 1 / (x.shape[-2] * x.shape[-1])  # realness is the mean of a map
        ones = x.new_full((len(x), 1, *x.shape[-2:]), share)
        back = functional.conv_transpose2d(ones, self.realness.weight, padding=1)
        if self.of_class is not None:
            back = back + share * self.of_class[wanted][:, :, None, None]
        convolutions = [layer for layer in self.layers if isinstance(layer, nn.Conv2d)]
        for layer, size, slope in zip(
            reversed(convolutions), reversed(sizes), reversed(slopes), strict=True
        ):
            back = _up(back * slope, layer.weight, size)
        return back


def _down(x: Tensor, weight: Tensor) -> Tensor:
    """Convolution of side 4, stride 2, padding 1; of sides 3, a matrix product is faster."""
    if x.shape[-2:] != (3, 3):
        return functional.conv2d(x, weight, stride=2, padding=1)
    # The first row and column of the kernel see the padding alone.
    return functional.linear(x.flatten(1), weight[:, :, 1:, 1:].flatten(1))[:, :, None, None]


def _up(x: Tensor, weight: Tensor, size: Sequence[int]) -> Tensor:
    """Transpose of `_down`, to images of sides `size`."""
    if tuple(size) == (3, 3):
        return (x.flatten(1) @ weight[:, :, 1:, 1:].flatten(1)).unflatten(1, (-1, 3, 3))
    left = [n - 2 * m for n, m in zip(size, x.shape[-2:], strict=True)]
    return functional.conv_transpose2d(x, weight, stride=2, padding=1, output_padding=left)


def critic_losses(
    critic: Critic, x: Tensor, fake: Tensor, wanted: Tensor, mix: Tensor, settings: Settings
) -> dict[str, Tensor]:
    """Weighted losses of the critic, as `ganmex.critic_losses` has them.

    A critic that is told the classes `wanted` (B,) compares `fake` with real images of the same:
    then `x` are such.
    """
    fake = fake.detach()
    real, made = critic(torch.cat([x, fake]), wanted.repeat(2)).chunk(2)
    between = x + mix.view(-1, 1, 1, 1) * (fake - x)
    # The root has no gradient at 0.
    norm = (critic.slope(between, wanted).flatten(1).square().sum(1) + 1e-10).sqrt()
    return {
        "distance": made.mean() - real.mean(),
        "penalty": settings.penalty * (norm - 1).square().mean(),
    }


class Multiplier:
    """Weight of a loss that shall stay below a bound, by dual ascent in its logarithm.

    The weight rises while the loss, averaged over past batches, lies above the bound, and falls
    while it lies below (Rezende and Viola, *Taming VAEs*, 2018, arXiv 1810.00597, sections 2.3
    and A).

    Parameters
    ----------
    bound : float
    weight : float
        At the start.
    """

    RATE, MEMORY, LIMITS = 0.005, 0.95, (1e-2, 1e3)

    def __init__(self, bound: float, weight: float) -> None:
        self.bound, self.weight, self.mean = bound, weight, bound

    def update(self, losses: Sequence[float]) -> None:
        """Take notice of a batch; of none if it is empty."""
        if len(losses):
            self.mean = self.MEMORY * self.mean + (1 - self.MEMORY) * float(np.mean(losses))
            excess = np.clip(self.mean / self.bound - 1, -1, 1)
            self.weight = float(np.clip(self.weight * np.exp(self.RATE * excess), *self.LIMITS))

    def state_dict(self) -> dict[str, float]:
        """What changes, for a checkpoint."""
        return {"weight": self.weight, "mean": self.mean}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Take up what `state_dict` gave."""
        self.weight, self.mean = state["weight"], state["mean"]


class Training(ganmex.Training):
    """The two networks, their optimisers, the moving average and the weight, step by step.

    With `beside` the critic's step has a thread of its own, on a CPU with a core to spare.
    """

    def __init__(
        self,
        model: nn.Module,
        images: Tensor,
        labels: Tensor,
        settings: Settings,
        seed: int,
        *,
        beside: bool = True,
    ) -> None:
        runtime.check_mode(model)
        self.model, self.images, self.labels = model, images, labels
        self.settings, self.seed, self.iteration = settings, seed, 0
        self.batches = ganmex.Batches(labels, settings.per_class, seed)
        self.multiplier = Multiplier(settings.bound, settings.weight)
        channels, size = images.shape[1], images.shape[-1]
        with trained.seeded(seed):
            self.generator = generator(channels, int(labels.max()) + 1, settings)
            told = self.generator.classes if settings.told else 0
            self.critic = Critic(channels, size, width=settings.critic_width, told=told)
        device = next(model.parameters()).device
        self.generator.to(device), self.critic.to(device)
        self._pool = None
        if beside and device.type == "cpu" and runtime.threads() > 1:
            one_each = {"initializer": torch.set_num_threads, "initargs": (1,)}
            self._pool = ThreadPoolExecutor(1, **one_each)
        self.average = copy.deepcopy(self.generator).requires_grad_(False)
        options = {"lr": settings.learning_rate, "betas": (0.5, 0.999), "fused": True}
        self.optimisers = {
            "generator": torch.optim.Adam(self.generator.parameters(), **options),
            "critic": torch.optim.Adam(self.critic.parameters(), **options),
        }

    def step(self) -> dict[str, float]:
        """One step of the critic and one of the generator; the losses by name.

        The critic's step runs beside the losses that do not ask the critic, where there is a core
        to spare; the numbers are the same.
        """
        x, labels, wanted, mix = self._batch()
        fake, mask = self.generator.compose(x, wanted)
        made = fake.detach().requires_grad_()
        self.optimisers["generator"].zero_grad()
        beside = self._begin(self._criticise, x, made.detach(), wanted, mix)
        losses = self.kept_losses(x, labels, made)
        if losses:
            sum(losses.values()).backward()
        entropy = functional.cross_entropy(self.model((made + 1) / 2), wanted, reduction="none")
        losses["classifier"] = self.multiplier.weight * entropy.mean()
        (towards,) = torch.autograd.grad(losses["classifier"], made)
        of_critic = beside()
        self.critic.requires_grad_(False)
        losses["critic"] = -self.critic(made, wanted).mean()
        losses["critic"].backward()
        self.critic.requires_grad_(True)
        ends, slopes = [fake], [made.grad + towards]
        if self.settings.mask and mask is not None:
            losses["mask"] = self.settings.mask * mask.mean()
            ends, slopes = [*ends, losses["mask"]], [*slopes, None]
        torch.autograd.backward(ends, slopes)
        self.optimisers["generator"].step()
        self.multiplier.update(entropy.detach()[wanted != labels].tolist())
        # Shorter at first, so that the untrained weights are soon forgotten.
        decay = min(self.settings.average, (1 + self.iteration) / (10 + self.iteration))
        weights = [weight.detach() for weight in self.generator.parameters()]
        torch._foreach_lerp_([*self.average.parameters()], weights, 1 - decay)
        self.iteration += 1
        return {f"critic {k}": v.item() for k, v in of_critic.items()} | {
            f"generator {k}": v.item() for k, v in losses.items()
        }

    def _batch(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Images in [-1, 1], their classes, those wanted, and what `critic_losses` calls mix."""
        rng = np.random.default_rng([self.seed, 0, self.iteration])
        rows = self.batches(self.iteration)
        # The own class is among the wanted ones: there, all losses agree on leaving x alone.
        wanted = torch.from_numpy(rng.integers(self.generator.classes, size=len(rows)))
        mix = torch.from_numpy(rng.random(len(rows), dtype=np.float32))
        batch = self.images[rows] * 2 - 1, self.labels[rows], wanted, mix
        return tuple(part.to(next(self.generator.parameters()).device) for part in batch)

    def _criticise(self, x: Tensor, made: Tensor, wanted: Tensor, mix: Tensor) -> dict[str, Tensor]:
        """A step of the critic; its losses."""
        if self.settings.told:  # batches are class by class
            many = self.settings.per_class
            x = x[wanted * many + torch.arange(len(x), device=x.device) % many]
        losses = critic_losses(self.critic, x, made, wanted, mix, self.settings)
        self._descend("critic", losses)
        return losses

    def kept_losses(self, x: Tensor, labels: Tensor, made: Tensor) -> dict[str, Tensor]:
        """Weighted losses of the generator that ask neither classifier nor critic.

        Parameters
        ----------
        x, made : Tensor
            Images (B, C, H, W) in [-1, 1], and those made from them.
        labels : Tensor
            Classes (B,) of `x`.
        """
        losses, settings = {}, self.settings
        if settings.similarity:
            losses["similarity"] = settings.similarity * (x - made).abs().mean()
        if settings.cycle:
            losses["cycle"] = settings.cycle * (x - self.generator(made, labels)).abs().mean()
        return losses

    def _begin(self, function: Callable, *arguments) -> Callable:
        """Begin a call, on a thread of its own if there is a core for it; what waits for it."""
        if self._pool is None:
            found = function(*arguments)
            return lambda: found
        return self._pool.submit(function, *arguments).result

    def _parts(self) -> dict:
        return super()._parts() | {"multiplier": self.multiplier}


def generator(channels: int, classes: int, settings: Settings) -> Generator:
    """An untrained generator of the size in `settings`."""
    sizes = {"width": settings.width, "blocks": settings.blocks, "ends": settings.ends}
    return Generator(channels, classes, form=settings.form, **sizes)


def train(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    settings: Settings = Settings(),
    *,
    seed: int = 0,
    checkpoint: Path | None = None,
) -> Generator:
    """Train a generator against a frozen classifier; see `ganmex.train`, also for errors."""
    with contextlib.ExitStack() as stack:

        def training(*given) -> Training:
            state = Training(*given)
            if state._pool is not None:  # a step of the critic does not outlive the training
                stack.enter_context(state._pool)
            return state

        return ganmex.train(
            model, images, labels, settings, seed=seed, checkpoint=checkpoint, training=training
        )
