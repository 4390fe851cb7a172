"""The generators of notebook 04: which are trained, on what, with which weights of the losses."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import torch

from xaiutils import constrained_gan, gan_networks, ganmex, runtime, sanity
from xaiutils.classifiers import small, trained
from xaiutils.data import assets, problems
from xaiutils.studies.ganmex import rivals

MAIN = {"digits": 28, "coloured digits": 28, "colours": 28, "scenes": 32}  # pixels
# Pixels of the trainings that are repeated; digits can be told on fewer than scenes.
REPEATED = {"digits": 16, "coloured digits": 16, "scenes": 32}
JUDGES = ("pooling", "residual")  # families other than those of the explained classifiers
SEEDS = (0, 1, 2, 3, 4)  # each of a classifier and of a generator trained against it

# Differences from `ganmex.Settings`, by name of the variant. The first is the method itself.
VARIANTS = {
    "GANMEX": {},
    "100 iterations": {"iterations": 100},
    "no similarity": {"similarity": 0.0},
    "no cycle": {"cycle": 0.0},
    "no critic": {"critic": 0.0},
    "own head": {"own_head": True},
    "StarGAN": {"own_head": True, "classifier": 1.0, "similarity": 0.0},
    "weights 1, 2, 1": {"classifier": 1.0, "similarity": 2.0, "cycle": 1.0},
}
LOSSES = ("no similarity", "no critic", "own head")  # each is taken away in turn
# Weights of classifier and similarity around the authors' 100 and 20, by name of the variant.
WEIGHTS = {
    f"classifier {c:g}, similarity {s:g}": (c, s)
    for c in (10.0, 100.0, 1000.0)
    for s in (20.0, 100.0)
}
WEIGHTS["GANMEX"] = WEIGHTS.pop("classifier 100, similarity 20")

# Network, bound, whether the critic is told the class, and iterations: as `choice` took them.
CHOSEN = {
    "digits": ("mask", 0.1, False, 750),
    "coloured digits": ("mask", 0.1, False, 750),
    "colours": ("mask", 0.1, True, 750),
    "scenes": ("mask", 0.03, True, 2000),
    "fashion": ("mask", 0.1, False, 750),  # as for digits, whose images are alike; not chosen
}
CONSTRAINED = "constrained"  # the variant of that name, on all training images
SIZES = (300, 3000)  # training images, the first ones, of "constrained, N images"

# The authors' networks; iterations are those of the checkpoint they show of MNIST.
PAPER = {"iterations": 50_000, "per_class": 6, "learning_rate": 1e-4, "width": 64, "blocks": 6}
PAPER |= {"ends": 7, "critic_width": 64}


class Run(NamedTuple):
    """One training: a problem, the side of its images in pixels, a variant and a seed.

    At the scale "paper" the networks are the authors', trained for 50,000 iterations: hours on a
    GPU, which is used if there is one. "laptop" trains on one core of a CPU.
    """

    problem: str
    size: int
    variant: str = "GANMEX"
    seed: int = 0
    scale: str = "laptop"

    @property
    def name(self) -> str:
        """Of its file."""
        words = f"gan {self.problem} {self.size} {self.variant} {self.seed}".lower()
        return "-".join(words.replace(",", "").split()) + (
            "-paper" if self.scale == "paper" else ""
        )


def sizes(problem: str) -> tuple[int, ...]:
    """Numbers of training images beside all of them; scenes have 3,600 in all."""
    return SIZES[:1] if problem == "scenes" else SIZES


def runs() -> list[Run]:
    """All trainings of the default profile."""
    chosen = [Run(*main) for main in MAIN.items()] + [Run("one scene", 32)]
    chosen += [Run("digits", 28, "100 iterations")]
    for name, size in REPEATED.items():
        variants = ("GANMEX", *(() if name == "scenes" else ("100 iterations", *LOSSES)))
        chosen += [Run(name, size, variant, seed) for variant in variants for seed in SEEDS]
    chosen += [Run("colours", 28, "weights 1, 2, 1")]
    chosen += [Run("digits", 16, variant) for variant in ("StarGAN", "no cycle")]
    chosen += [Run("digits", 16, variant) for variant in WEIGHTS if variant != "GANMEX"]
    chosen += [Run("digits", 16, "randomised 4")]  # all layers
    chosen += [Run(*main, CONSTRAINED, seed) for main in MAIN.items() for seed in SEEDS]
    for name, size in MAIN.items():
        chosen += [Run(name, size, f"{CONSTRAINED}, {n} images") for n in sizes(name)]
    return list(dict.fromkeys(chosen))


def load(run: Run) -> gan_networks.Generator:
    """A trained generator; one that was never used is trained first (minutes)."""
    return recipe(run).load()


def classifier(run: Run) -> torch.nn.Module:
    """The classifier inside the training of `run`, with the same seed.

    "randomised k" is trained against one whose k layers nearest to the logits are random.
    """
    model = small.load(run.problem, run.size, small.explained(run.problem), run.seed)
    if run.variant.startswith("randomised"):
        model = list(sanity.cascade(model, seed=run.seed))[int(run.variant.split()[1])][1]
    return model


def settings(run: Run) -> ganmex.Settings | constrained_gan.Settings:
    """Width, length and weights of a training."""
    if run.scale not in ("laptop", "paper"):
        raise ValueError(f'scale must be "laptop" or "paper", got {run.scale!r}')
    larger = PAPER if run.scale == "paper" else {}
    if _is_constrained(run):
        *network, iterations = CHOSEN[run.problem]
        return constrained(run.problem, *network, **{"iterations": iterations} | larger)
    chosen = {"per_class": _per_class(run.problem)} | larger
    if run.scale == "laptop" and run.size == 16:
        chosen |= {"iterations": 1500, "width": 12, "blocks": 2}
    return ganmex.Settings(**chosen | _variant(run.variant))


def constrained(
    problem: str, form: str, bound: float, told: bool, **options
) -> constrained_gan.Settings:
    """Of a training whose classifier's weight is found.

    A network that starts from x needs no way back to stay near it: similarity sees to that.
    """
    tied = {"paint": {}, "identity": {"cycle": 0.0}, "mask": {"cycle": 0.0, "mask": 2.0}}[form]
    chosen = {"per_class": _per_class(problem)} | tied | options
    return constrained_gan.Settings(form=form, bound=bound, told=told, **chosen)


def size(run: Run) -> int | None:
    """Training images of its generator; None if all."""
    words = run.variant.split()
    return int(words[1]) if _is_constrained(run) and len(words) == 3 else None


def _is_constrained(run: Run) -> bool:
    return run.variant.startswith(CONSTRAINED)


def _per_class(problem: str) -> int:
    """Images of each class in a batch: about thirty in all."""
    return {"colours": 10, "scenes": 8, "one scene": 16}.get(problem, 3)


def recipe(run: Run) -> trained.Recipe:
    """How `load` makes its generator."""
    chosen = settings(run)
    room = constrained_gan if _is_constrained(run) else ganmex

    def data() -> problems.Problem:
        return problems.load(run.problem, run.size)

    def build() -> torch.nn.Module:
        problem = data()
        with trained.seeded(run.seed):
            return room.generator(problem.test_images.shape[1], len(problem.classes), chosen)

    def train(model: torch.nn.Module) -> dict[str, float]:
        problem, judge = data(), classifier(run)
        if run.scale == "paper":
            judge = judge.to(runtime.pick_device())
        checkpoint = assets.cache_folder() / "trained" / f"{run.name}-{key[:12]}.checkpoint"
        made = room.train(
            judge,
            problem.train_images[: size(run)],
            problem.train_labels[: size(run)],
            chosen,
            seed=run.seed,
            checkpoint=checkpoint,
        )
        model.load_state_dict(made.cpu().state_dict())
        trained.round_to_half(model)
        x = problem.test_images[:500]
        wanted = torch.arange(len(x)) % len(problem.classes)
        made = torch.from_numpy(ganmex.Baseline(model.eval())(x, wanted))
        with torch.no_grad():
            flips = (judge.cpu()(made).argmax(1) == wanted).float().mean().item()
        return {"flips": flips, "distance": (x - made).abs().mean().item()}

    family = small.explained(run.problem)
    random = run.variant.startswith("randomised")
    if room is constrained_gan:
        code = [gan_networks.Generator, gan_networks.Critic, ganmex.Batches, ganmex.Training]
        code += [room.Generator, room._group, room.Critic, room._down, room._up, room.Training]
        code += [room.critic_losses, room.Multiplier, room.generator]
    else:
        code = [room.Generator, room.Critic, room.critic_losses, room.generator_losses]
        code += [room.Batches, room.Training, room.generator]
    key = trained.key(
        *((sanity._cascade, sanity._randomise) if random else ()),
        *code,
        *(gan_networks._Residual, gan_networks._normed),
        small.recipe(run.problem, run.size, family, run.seed).key,
        dataclasses.asdict(chosen) | run._asdict(),
    )

    def probe() -> tuple[torch.Tensor, torch.Tensor]:
        return data().test_images[:50], torch.zeros(50, dtype=torch.int64)

    return trained.Recipe(run.name, build, train, key, probe, loads=True)


def recipes() -> list[trained.Recipe]:
    """Classifiers and generators whose weights are committed."""
    nets = [(*pair, small.explained(pair[0]), 0) for pair in MAIN.items()]
    nets += [(*pair, small.explained(pair[0]), 1) for pair in MAIN.items()]
    nets += [(*pair, small.explained(pair[0]), seed) for pair in MAIN.items() for seed in SEEDS]
    nets += [(*pair, small.explained(pair[0]), s) for pair in REPEATED.items() for s in SEEDS]
    nets += [("one scene", 32, small.explained("one scene"), seed) for seed in (0, 1)]
    every = [*MAIN.items(), *REPEATED.items(), ("one scene", 32)]
    nets += [(*pair, judge, 0) for pair in every for judge in JUDGES]
    nets += [("colours", 16, "pooling", 0), ("small digits", 16, "strided", 0)]
    nets = dict.fromkeys(nets)
    made = [small.recipe(*net) for net in nets] + [recipe(run) for run in runs()]
    return made + rivals.recipes()


def _variant(name: str) -> dict:
    if name.endswith(" iterations"):
        return {"iterations": int(name.split()[0])}
    if name.startswith("randomised"):
        return {}
    if name in VARIANTS:
        return VARIANTS[name]
    if name not in WEIGHTS:
        known = ", ".join((*VARIANTS, *WEIGHTS))
        raise ValueError(f"variant must be N iterations, randomised N or one of {known}: {name!r}")
    return dict(zip(("classifier", "similarity"), WEIGHTS[name], strict=True))
