"""Notebook 05's tests: each takes the maps of all explainers and gives one score per image."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from torch import nn
from tqdm import tqdm

from xaiutils import limit, one_vs_one, sanity
from xaiutils.fidelity_curves import Curves, area
from xaiutils.perturb import Components
from xaiutils.studies.ganmex.cases import Case, Exact
from xaiutils.studies.limit.experiments import table
from xaiutils.studies.synthesis.explainers import RANDOM, Explained
from xaiutils.studies.synthesis.matrix import Test
from xaiutils.studies.synthesis.planted import by_cell, found

Maps = Mapping[str, np.ndarray]


def planted(data: str, cells_scores: Maps, cells, units=None) -> Test:
    """Share of the k changed cells among the k cells of largest score.

    Parameters
    ----------
    cells_scores : dict of (n, d) arrays
    cells : (n, d) bool
        The cells that an attack was confined to, k of them in each image.
    units : (n,) array, optional
        Track of each excerpt.
    """
    cells = np.asarray(cells, bool)
    scores = {name: found(values, cells)["top k"] for name, values in cells_scores.items()}
    return _test("planted cells", data, scores, chance=cells.mean(), units=units)


def limits(model: nn.Module, x, target, components: Components) -> np.ndarray:
    """LIME's limit for the probability of `target`, from all 2^d masks, (n, d)."""
    probability = nn.Sequential(model, nn.Softmax(dim=1)).eval()
    jobs = tqdm(zip(x, target, strict=True), "limits", len(x), leave=False, mininterval=1)
    tables = (table(probability, image, components, int(t)) for image, t in jobs)
    return np.stack([limit.exact(limit.lookup(values), components.d).coef for values in tables])


def closeness(data: str, maps: Maps, exact: np.ndarray, components: Components) -> Test:
    """Cosine of the cell sums with LIME's limit `exact` (n, d), in [-1, 1].

    The Euclidean distance of the two, each divided by its norm, is sqrt(2 - 2 cosine).
    """
    scores = {name: _cosine(by_cell(m, components), exact) for name, m in maps.items()}
    return _test("LIME's limit", data, scores)


def repeatability(data: str, first: Maps, second: Maps, components: Components, k: int) -> Test:
    """Jaccard index of the k best cells of two runs; 1 for explainers without randomness.

    `second` holds a run with another seed of those that have it.
    """
    scores = {name: np.ones(len(m)) for name, m in first.items()}
    for name, other in second.items():
        a, b = (best(by_cell(m, components), k) for m in (first[name], other))
        scores[name] = (a & b).sum(axis=1) / (a | b).sum(axis=1)
    return _test("run to run", data, scores)


def fidelity(data: str, curves: Mapping[str, Curves], units=None) -> list[Test]:
    """The fidelity F and the artifact share P/D, on accuracies, see `fidelity.summary`."""
    drops = {
        name: [area(one.drop(order), one.fractions) for order in ("mif", "lif")]
        for name, one in curves.items()
    }
    gaps = {name: mif - lif for name, (mif, lif) in drops.items()}
    artifacts = {name: lif for name, (_, lif) in drops.items()}
    total = np.stack([mif for mif, _ in drops.values()], axis=1)
    share = {"weights": total, "larger_is_better": False}
    return [
        _test("fidelity F", data, gaps, chance=0.0, units=units),
        _test("artifact share", data, artifacts, units=units, **share),
    ]


def one_vs_one_tests(data: str, case: Case, truth: Exact, maps: Maps) -> list[Test]:
    """Does a map of "why this class and not that one" lie on what differs between the two?

    First the share of the map where the factor that differs lives: in the digit's box if the digit
    differs, outside if the scene does; a map that ignores the question gets about one half. Then
    the smallest part of the exact counterfactual that, shown in the image in the order of the map,
    turns the answer.
    """
    shares = {}
    for name, m in maps.items():
        inside = sanity.localisation(m, truth.box)
        shares[name] = np.where(truth.is_object, inside, 1 - inside)
    cut = one_vs_one.mask_test(case.model, case.images, truth.images, case.target, dict(maps))
    sizes = {name: one.flip_size for name, one in cut.items()}
    return [
        _test("right region", data, shares, chance=0.5),
        _test("mask that flips", data, sizes, larger_is_better=False),
    ]


def cascade(
    data: str, model: nn.Module, explain: Callable[[nn.Module], Explained], *, seed: int
) -> Test:
    """Similarity of each map to that of classifiers with random layers, from the logits down.

    Rank correlation over pixels, mean over the stages of the cascade; the random map is left out,
    since it would be a new one for every classifier.
    """
    stages = [copy for _, copy in sanity.cascade(model, seed=seed)]
    original = {name: m for name, m in explain(stages[0]).maps.items() if name != RANDOM}
    similar = {name: [] for name in original}
    for stage in tqdm(stages[1:], "cascade", leave=False, mininterval=1):
        after = explain(stage).maps
        for name, m in original.items():
            similar[name].append(sanity.similarity(m, after[name], "signed"))
    scores = {name: np.mean(values, axis=0) for name, values in similar.items()}
    return _test("random layers", data, scores, larger_is_better=False)


def best(scores, k: int) -> np.ndarray:
    """The k largest of each row (n, d), bool; ties in the order of the cells."""
    columns = np.argsort(-np.asarray(scores), axis=1, kind="stable")[:, :k]
    chosen = np.zeros(np.shape(scores), bool)
    np.put_along_axis(chosen, columns, True, axis=1)
    return chosen


def _test(name: str, data: str, scores: Maps, **options) -> Test:
    return Test(name, data, tuple(scores), np.stack(list(scores.values()), axis=1), **options)


def _cosine(a, b):
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return (a * b).sum(axis=1) / lengths
