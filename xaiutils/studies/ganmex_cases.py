"""Images with their source and target classes, and the baselines that compete for them."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch

from xaiutils import baselines, ganmex, known_digits, problems, runtime
from xaiutils.classifiers import small
from xaiutils.studies import ganmex_models as models


class Case(NamedTuple):
    """Test images that a classifier gets right, each with another class to explain it against.

    ``images`` (n, C, H, W) float32 in [0, 1], ``source`` and ``target`` (n,) int; ``rows`` (n,)
    index the problem's test images; ``judges`` are classifiers of other families by name,
    ``twin`` one of the same family from another seed.
    """

    run: models.Run
    problem: problems.Problem
    model: torch.nn.Module
    judges: dict[str, torch.nn.Module]
    twin: torch.nn.Module
    images: np.ndarray
    source: np.ndarray
    target: np.ndarray
    rows: np.ndarray


def choose(run: models.Run, n: int, *, seed: int = 0, pairs=None, device: str = "auto") -> Case:
    """`n` random test images that the classifier in `run` gets right, or as many as there are.

    Targets are random; of scenes they differ in the digit or in the scene, not in both.

    Parameters
    ----------
    pairs : sequence of (source, target), optional
        Take `n` images of each of these pairs instead.
    device : str
        Where the classifiers live, see `runtime.pick_device`.
    """
    place = runtime.pick_device(device)
    problem, model = problems.load(run.problem, run.size), models.classifier(run).to(place)
    rng = np.random.default_rng(seed)
    labels = problem.test_labels.numpy()
    rows = rng.permutation(len(labels))[: max(8 * n, 2000) if pairs is None else len(labels)]
    right = predicted(model, problem.test_images[rows]) == labels[rows]
    rows = rows[right]
    if pairs is None:
        rows = rows[:n]
        source, classes = labels[rows], len(problem.classes)
        if run.problem == "scenes":
            target = source ^ rng.integers(1, 3, len(rows))
        else:
            target = (source + rng.integers(1, classes, len(rows))) % classes
    else:
        if run.problem == "scenes" and any(a ^ b == 3 for a, b in pairs):
            raise ValueError(f"pairs of scenes must differ in the digit or the scene: {pairs}")
        chosen = [(rows[labels[rows] == source][:n], target) for source, target in pairs]
        rows = np.concatenate([part for part, _ in chosen])
        source = labels[rows]
        target = np.concatenate([np.full(len(part), wanted) for part, wanted in chosen])
    judges = {
        family: small.load(run.problem, run.size, family).to(place) for family in models.JUDGES
    }
    another = (run.seed + 1) % len(models.SEEDS)
    twin = small.load(run.problem, run.size, small.explained(run.problem), another).to(place)
    images = problem.test_images[rows].numpy()
    return Case(run, problem, model, judges, twin, images, source, target, rows)


def logits(model: torch.nn.Module, images) -> np.ndarray:
    """Outputs (n, K) of a model for images (n, C, H, W)."""
    device = next(model.parameters()).device
    with torch.no_grad():
        parts = [model(x.to(device)) for x in torch.as_tensor(images).split(500)]
    return torch.cat(parts).cpu().numpy()


def predicted(model: torch.nn.Module, images) -> np.ndarray:
    """Classes (n,) with the largest output."""
    return logits(model, images).argmax(1)


def nearest(case: Case, **options) -> baselines.NearestSample:
    """Search among the training images of a case's problem."""
    problem = case.problem
    return baselines.NearestSample(problem.train_images, problem.train_labels, **options)


def generated(case: Case, variant: str = "GANMEX") -> np.ndarray:
    """Baselines of a case from the generator of a variant with the case's size and seed."""
    generator = models.load(case.run._replace(variant=variant))
    generator.to(next(case.model.parameters()).device)
    return ganmex.Baseline(generator)(case.images, case.target)


def fixed(case: Case, seed: int = 0) -> dict[str, np.ndarray]:
    """Baselines that know nothing of the target class."""
    x = case.images
    mean = case.problem.train_images.mean((0, 2, 3)).numpy()
    return {
        "zero": baselines.black(x),
        "mean": baselines.channel_mean(x, mean),
        "blur": baselines.blur(x, 2.0),
        "uniform": baselines.uniform_noise(x, seed),
        "Gaussian": baselines.gaussian_noise(x, 0.3, seed),
        "maximum distance": baselines.maximum_distance(x),
    }


def of_target(case: Case) -> dict[str, np.ndarray]:
    """Baselines of the target class that need no generator; the exact one where it is known."""
    x, target, problem = case.images, case.target, case.problem
    found = {
        "MDTS": nearest(case)(x, target),
        "MDTS (L2)": nearest(case, norm="l2")(x, target),
        "MDTS (accepted)": nearest(case, accepted_by=case.model)(x, target),
        "class mean": baselines.ClassMean(problem.train_images, problem.train_labels)(x, target),
        "adversarial": baselines.adversarial(case.model, x, target),
    }
    truth = exact(case)
    return found if truth is None else found | {"exact": truth.images}


class Exact(NamedTuple):
    """Images (n, C, H, W) that differ from a case's in the explained factor alone.

    ``mask`` of their shape is where; ``box`` (n, H, W) the box of the digit, None for colours;
    ``is_object`` (n,) whether the digit changes, or the scene.
    """

    images: np.ndarray
    mask: np.ndarray
    box: np.ndarray | None
    is_object: np.ndarray


def exact(case: Case) -> Exact | None:
    """The true counterfactuals, where the problem has them."""
    parts, rows = case.problem.parts, torch.from_numpy(case.rows)
    if case.problem.name == "colours":
        arguments = (
            torch.from_numpy(case.images),
            *map(torch.from_numpy, (case.source, case.target)),
        )
        images = known_digits.recolour(*arguments).numpy()
        return Exact(images, images != case.images, None, np.zeros(len(rows), bool))
    if case.problem.name not in ("scenes", "one scene"):
        return None
    step = 2 if case.problem.name == "scenes" else 1
    is_object = (case.source ^ case.target) == step
    made = np.empty_like(case.images)
    makers = (is_object, known_digits.other_digit), (~is_object, known_digits.other_scene)
    for chosen, other in makers:
        if chosen.any():
            made[chosen] = other(parts, rows[torch.from_numpy(chosen)]).images.numpy()
    return Exact(made, made != case.images, parts.inside[rows].numpy(), is_object)


def all_baselines(case: Case, seed: int = 0) -> dict[str, np.ndarray]:
    """Every baseline of a case but those of other variants, by name."""
    return fixed(case, seed) | of_target(case) | {"GANMEX": generated(case)}


def changed(x, b, threshold: float = 0.05) -> np.ndarray:
    """Where a baseline differs visibly from its image: bool, of their shape."""
    return np.abs(np.asarray(x) - np.asarray(b)) > threshold
