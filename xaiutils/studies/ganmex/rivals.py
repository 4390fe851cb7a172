"""Trained parts of the counterfactuals that compete with GANMEX's, see `price`."""

from __future__ import annotations

import functools

import torch
from torch import nn

from xaiutils import counterfactual_networks
from xaiutils.classifiers import small, trained
from xaiutils.data import problems

PROBLEMS = {"colours": 28, "scenes": 32}  # pixels; those whose exact counterfactuals are known
HELD_OUT = 600  # training images, the last ones, which only choose: see `choice` and `price`
FEW = 300  # training images; each part is trained on as many, and on all not held out
STEPS = {"robust gradient": 1500, "latent shift": 2000, "guided flow": 1500}


def load(kind: str, problem: str, size: int | None = None) -> nn.Module:
    """The classifier, autoencoder or flow that `kind` needs, trained on the first `size` images."""
    return recipe(kind, problem, size).load()


def recipe(kind: str, problem: str, size: int | None = None) -> trained.Recipe:
    """How `load` makes its network; `size` None is all images that are not held out."""
    if kind not in STEPS:
        raise ValueError(f"kind must be one of {', '.join(STEPS)}, got {kind!r}")
    pixels, family = PROBLEMS[problem], small.explained(problem)
    name = f"{kind} {problem} {pixels}" + (f" {size} images" if size else "")

    def train(model: nn.Module) -> dict[str, float]:
        data, end = problems.load(problem, pixels), -HELD_OUT if size is None else size
        known = data.train_images[:end], data.train_labels[:end]
        made = fit(kind, model, *known, STEPS[kind])
        trained.round_to_half(made)
        if kind != "robust gradient":
            return {"steps": float(STEPS[kind])}
        with torch.no_grad():
            right = made(data.test_images).argmax(1) == data.test_labels
        return {"accuracy": right.float().mean().item()}

    networks = counterfactual_networks
    code = {
        "robust gradient": [networks.train_robust, networks._unit, networks._norm],
        "latent shift": [networks.train_autoencoder, networks.Autoencoder],
        "guided flow": [networks.train_velocity, networks.Velocity, networks._Timed],
    }[kind]
    key = trained.key(
        *(fit, build, networks._descend, *code),
        small.recipe(problem, pixels, family).key,
        {"name": name, "steps": STEPS[kind]},
    )

    def probe() -> tuple[torch.Tensor, ...]:
        images = problems.load(problem, pixels).test_images[:50]
        return (images, torch.full((50,), 0.5)) if kind == "guided flow" else (images,)

    untrained = functools.partial(build, kind, problem)
    return trained.Recipe("-".join(name.split()), untrained, train, key, probe)


def recipes() -> list[trained.Recipe]:
    """Of all kinds, problems and sizes."""
    return [recipe(kind, problem, n) for kind in STEPS for problem in PROBLEMS for n in (FEW, None)]


def build(kind: str, problem: str) -> nn.Module:
    """The untrained network."""
    if kind == "robust gradient":
        return small.recipe(problem, PROBLEMS[problem], small.explained(problem)).build()
    net = counterfactual_networks
    return net.Autoencoder(3) if kind == "latent shift" else net.Velocity(3)


def fit(
    kind: str, net: nn.Module, images: torch.Tensor, labels: torch.Tensor, steps: int
) -> nn.Module:
    """Train `net` in place."""
    if kind == "robust gradient":
        return counterfactual_networks.train_robust(net, images, labels, steps=steps)
    if kind == "latent shift":
        return counterfactual_networks.train_autoencoder(net, images, steps=steps)
    return counterfactual_networks.train_velocity(net, images, steps=steps)
