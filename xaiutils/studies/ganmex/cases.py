"""Images with their source and target classes, and the baselines that compete for them."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.weak import WeakTensorKeyDictionary

from xaiutils import baselines, ganmex, runtime
from xaiutils.classifiers import small
from xaiutils.data import known_digits, problems
from xaiutils.runtime import predicted
from xaiutils.studies.ganmex import models

WITH_EXACT = ("colours", "scenes", "one scene")  # problems whose true counterfactuals are known
# Most cases share these few, and each takes a moment to load.
_generator = functools.cache(lambda run: models.load(run))
_classifier = functools.cache(lambda run: models.classifier(run))
_judge = functools.cache(lambda *net: small.load(*net))
# Rows of nearest samples, by training images and labels: cases share images, and a search takes
# long.
_found = WeakTensorKeyDictionary()


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
    problem, model = problems.load(run.problem, run.size), _classifier(run).to(place)
    rng = np.random.default_rng(seed)
    labels = problem.test_labels.numpy()
    rows = rng.permutation(len(labels))

    def right(rows: np.ndarray) -> np.ndarray:
        """The first `n` that the classifier gets right; it is rarely asked about all."""
        for some in (rows[: 2 * n], rows):
            found = some[predicted(model, problem.test_images[some]) == labels[some]]
            if len(found) >= n:
                break
        return found[:n]

    if pairs is None:
        rows = right(rows[: max(8 * n, 2000)])
        source, classes = labels[rows], len(problem.classes)
        if run.problem == "scenes":
            target = source ^ rng.integers(1, 3, len(rows))
        else:
            target = (source + rng.integers(1, classes, len(rows))) % classes
    else:
        if run.problem == "scenes" and any(a ^ b == 3 for a, b in pairs):
            raise ValueError(f"pairs of scenes must differ in the digit or the scene: {pairs}")
        chosen = [(right(rows[labels[rows] == source]), target) for source, target in pairs]
        rows = np.concatenate([part for part, _ in chosen])
        source = labels[rows]
        target = np.concatenate([np.full(len(part), wanted) for part, wanted in chosen])
    judges = {family: _judge(run.problem, run.size, family).to(place) for family in models.JUDGES}
    another = 0 if run.seed else 1
    twin = _judge(run.problem, run.size, small.explained(run.problem), another).to(place)
    images = problem.test_images[rows].numpy()
    return Case(run, problem, model, judges, twin, images, source, target, rows)


def nearest(case: Case, **options) -> baselines.NearestSample:
    """Search among the training images of a case's problem."""
    problem = case.problem
    return baselines.NearestSample(problem.train_images, problem.train_labels, **options)


def nearest_samples(case: Case, size: int | None = None) -> np.ndarray:
    """Nearest samples (n, C, H, W) among the first `size` training images, by default all."""
    problem, keys = case.problem, []
    of_images = _found.setdefault(problem.train_images, WeakTensorKeyDictionary())
    known = of_images.setdefault(problem.train_labels, {})
    for image, target in zip(case.images, case.target, strict=True):
        keys.append((size, hashlib.sha256(image.tobytes()).digest(), int(target)))
    new = [i for i, key in enumerate(keys) if key not in known]
    if new:
        search = baselines.NearestSample(problem.train_images[:size], problem.train_labels[:size])
        rows, _ = search.find(case.images[new], case.target[new])
        known.update(zip([keys[i] for i in new], rows.tolist(), strict=True))
    return problem.train_images[[known[key] for key in keys]].numpy()


def generated(case: Case, variant: str = "GANMEX") -> np.ndarray:
    """Baselines of a case from the generator of a variant with the case's size and seed."""
    generator = _generator(case.run._replace(variant=variant))
    generator.to(next(case.model.parameters()).device)
    return ganmex.Baseline(generator)(case.images, case.target)


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
    if case.problem.name not in WITH_EXACT:
        return None
    parts, rows = case.problem.parts, torch.from_numpy(case.rows)
    if case.problem.name == "colours":
        arguments = (
            torch.from_numpy(case.images),
            *map(torch.from_numpy, (case.source, case.target)),
        )
        images = known_digits.recolour(*arguments).numpy()
        return Exact(images, images != case.images, None, np.zeros(len(rows), bool))
    step = 2 if case.problem.name == "scenes" else 1
    is_object = (case.source ^ case.target) == step
    made = np.empty_like(case.images)
    makers = (is_object, known_digits.other_digit), (~is_object, known_digits.other_scene)
    for chosen, other in makers:
        if chosen.any():
            made[chosen] = other(parts, rows[torch.from_numpy(chosen)]).images.numpy()
    return Exact(made, made != case.images, parts.inside[rows].numpy(), is_object)


def _nearest_accepted(case: Case) -> np.ndarray:
    """The nearest sample is the nearest accepted one, unless it is not accepted."""
    made, problem = nearest_samples(case), case.problem
    wrong = predicted(case.model, made) != case.target
    if wrong.any():
        some = torch.isin(problem.train_labels, torch.from_numpy(case.target[wrong]))
        samples = problem.train_images[some], problem.train_labels[some]
        search = baselines.NearestSample(*samples, accepted_by=case.model)
        made[wrong] = search(case.images[wrong], case.target[wrong])
    return made


def _class_mean(case: Case) -> np.ndarray:
    problem = case.problem
    mean = baselines.ClassMean(problem.train_images, problem.train_labels)
    return mean(case.images, case.target)


def _channel_mean(case: Case) -> np.ndarray:
    mean = case.problem.train_images.mean((0, 2, 3)).numpy()
    return baselines.channel_mean(case.images, mean)


# Functions of a case and a seed, by the name of what they make.
BASELINES = {
    "zero": lambda case, seed: baselines.black(case.images),
    "mean": lambda case, seed: _channel_mean(case),
    "blur": lambda case, seed: baselines.blur(case.images, 2.0),
    "uniform": lambda case, seed: baselines.uniform_noise(case.images, seed),
    "Gaussian": lambda case, seed: baselines.gaussian_noise(case.images, 0.3, seed),
    "maximum distance": lambda case, seed: baselines.maximum_distance(case.images),
    "MDTS": lambda case, seed: nearest_samples(case),
    "MDTS (L2)": lambda case, seed: nearest(case, norm="l2")(case.images, case.target),
    "MDTS (accepted)": lambda case, seed: _nearest_accepted(case),
    "class mean": lambda case, seed: _class_mean(case),
    "adversarial": lambda case, seed: baselines.adversarial(case.model, case.images, case.target),
    "GANMEX": lambda case, seed: generated(case),
    models.CONSTRAINED: lambda case, seed: generated(case, models.CONSTRAINED),
    "exact": lambda case, seed: exact(case).images,
}


def baselines_of(case: Case, names: Iterable[str], seed: int = 0) -> dict[str, np.ndarray]:
    """Baselines (n, C, H, W) of a case, in the order of `names`; no others are computed.

    Parameters
    ----------
    names : iterable of str
        Of `BASELINES`. "exact" is left out where the problem has no exact counterfactual.
    seed : int
        Of the noise in "uniform" and "Gaussian".

    Raises
    ------
    ValueError
        If a name is unknown.
    """
    names = list(names)
    for name in names:
        if name not in BASELINES:
            raise ValueError(f"names must be of {', '.join(BASELINES)}, got {name!r}")
    if case.problem.name not in WITH_EXACT:
        names = [name for name in names if name != "exact"]
    return {name: BASELINES[name](case, seed) for name in names}


def changed(x, b, threshold: float = 0.05) -> np.ndarray:
    """Where a baseline differs visibly from its image: bool, of their shape."""
    return np.abs(np.asarray(x) - np.asarray(b)) > threshold
