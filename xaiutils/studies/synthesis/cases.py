"""Notebook 05's images: scenes with baselines of any class, and photographs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch

from xaiutils import baselines, runtime, segment
from xaiutils.classifiers import imagenet
from xaiutils.data import datasets
from xaiutils.perturb import Components
from xaiutils.studies.fidelity.experiments import IMAGENET_MEAN
from xaiutils.studies.ganmex.cases import Case, baselines_of
from xaiutils.studies.ganmex.models import CONSTRAINED
from xaiutils.studies.synthesis.explainers import Explained
from xaiutils.studies.synthesis.planted import Planted, by_cell
from xaiutils.studies.synthesis.tests import best

SCENE_CELLS = Components(segment.grid((32, 32), 4, 3))  # 12: LIME's limit can be enumerated
PHOTOGRAPH_CELLS = Components(segment.grid((224, 224), 7, 7))  # 49, of 32 x 32 pixels


def scene_baselines(case: Case, x, classes) -> dict[str, np.ndarray]:
    """Where integrated gradients of images start: two fixed points, two images of `classes` (n,).

    The nearest training image of that class, and the one that the generator paints whose
    classifier's weight is found.
    """
    names = {"zero": "zero", "mean": "mean", "MDTS": "nearest sample", CONSTRAINED: "GANMEX"}
    found = baselines_of(case._replace(images=x, target=classes), names)
    return {names[name]: values for name, values in found.items()}


class Photographs(NamedTuple):
    """Photographs `x` (n, 3, 224, 224) that `model` gets right, of class `labels` (n,).

    `names` are those of all 1000 classes.
    """

    model: torch.nn.Module
    x: np.ndarray
    labels: np.ndarray
    names: tuple[str, ...]


def photographs(n: int, device: str = "auto") -> Photographs:
    """The first n ImageNet samples that EfficientNet-Lite0 gets right, or as many as there are."""
    model = imagenet.load("efficientnet_lite0").to(runtime.pick_device(device))
    samples = datasets.imagenet_samples()
    x, labels = samples.images.numpy(), samples.labels.numpy()
    rows = np.flatnonzero(runtime.predicted(model, x) == labels)[:n]
    return Photographs(model, x[rows], labels[rows], tuple(samples.class_names))


def photograph_baselines(x) -> dict[str, np.ndarray]:
    """Black, and the mean colour of ImageNet."""
    return {"zero": baselines.black(x), "mean": baselines.channel_mean(x, IMAGENET_MEAN)}


def pictures(
    attacked: Mapping[str, Planted],
    explained: Mapping[str, Explained],
    grids: Mapping[str, Components],
    names: Sequence[str],
    classes: Mapping[str, Sequence[str]],
    n: Sequence[int] = (2, 3),
) -> tuple[list[dict], list[str], list[Components]]:
    """Rows, titles and cells of `synthesis_plots.examples`: the first n images of each data set.

    Parameters
    ----------
    attacked, explained, grids, classes
        By data set: attacked images, their maps, their cells, and what classes are called.
    names : sequence of str
        Explainers to show, each with as many of its best cells as were attacked.
    """
    rows, titles, cells = [], [], []
    for (data, one), count in zip(attacked.items(), n, strict=True):
        chosen = {}
        for name in names:
            sums = by_cell(explained[data].maps[name][:count], grids[data])
            chosen[name] = best(sums, int(one.cells[0].sum()))
        for i in range(min(count, len(one.images))):
            row = {"clean": one.clean[i], "attacked": one.images[i], "planted": one.cells[i]}
            rows.append(row | {"chosen": {name: picked[i] for name, picked in chosen.items()}})
            before, after = (classes[data][c] for c in (one.source[i], one.target[i]))
            titles.append(f"{before} → {after}")
            cells.append(grids[data])
    return rows, titles, cells
