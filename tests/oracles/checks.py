"""Sanity checks of maps, value by value, and what a cascade of randomised layers is."""

import math

import numpy as np
import torch
from scipy.stats import pearsonr, spearmanr
from torch import nn

from oracles.problems import weighted
from oracles.registry import oracle_of
from xaiutils import sanity

N, SHAPE = 4, (2, 12, 14)


def maps(rng):
    """Signed maps with ties and zeros."""
    return np.round(rng.normal(size=(N, *SHAPE)), 1)


def with_region(rng):
    return {"attribution": maps(rng), "region": rng.random((N, *SHAPE)) < 0.3}


def with_pixels(rng):
    """A region that all channels share."""
    return {"attribution": maps(rng), "region": rng.random((N, *SHAPE[1:])) < 0.3}


def sums(attribution, region):
    """Sums of |attribution| inside and outside, each (n,)."""
    inside, outside = np.zeros(N), np.zeros(N)
    for at in np.ndindex(attribution.shape):
        i, _, row, column = at
        within = region[at] if region.ndim == 4 else region[i, row, column]
        (inside if within else outside)[i] += abs(attribution[at])
    return inside, outside


@oracle_of(sanity.localisation, with_region)
@oracle_of(sanity.localisation, with_pixels)
def localisation(attribution, region):
    inside, outside = sums(attribution, region)
    return inside / (inside + outside)


@oracle_of(sanity.inverse_localisation, with_region)
@oracle_of(sanity.inverse_localisation, with_pixels)
def inverse_localisation(attribution, region):
    inside, outside = sums(attribution, region)
    return outside / inside


@oracle_of(sanity.chance, lambda rng: {"region": rng.random((N, *SHAPE)) < 0.3})
def chance(region):
    return np.array([sum(map(int, mask.ravel())) / mask.size for mask in region])


@oracle_of(
    sanity.ranking_quality,
    lambda rng: {"attribution": maps(rng), "truth": rng.random((N, *SHAPE)) < 0.2},
    [{}, {"truth": np.arange(N)[:, None, None] < np.full(SHAPE[1:], 2)}],
)
def ranking_quality(attribution, truth):
    """AUC: pairs of one inside and one outside in the right order. Precision: at each inside."""
    rows = []
    for a, wanted in zip(attribution, truth, strict=True):
        size = np.abs(a).ravel()
        wanted = np.broadcast_to(wanted, SHAPE).ravel()
        if wanted.all() or not wanted.any():
            rows.append((math.nan, math.nan))
            continue
        on, off = size[wanted], size[~wanted]
        pairs = [(value > off).sum() + (value == off).sum() / 2 for value in on]
        precisions = [wanted[size >= value].mean() for value in on]
        rows.append((sum(pairs) / len(on) / len(off), sum(precisions) / len(on)))
    auc, precision = np.transpose(rows)
    return {"auc": auc, "average_precision": precision}


# --- similarity -----------------------------------------------------------------------------------


def two_maps(rng):
    """From nearly the same to nearly unrelated, image by image; one is constant."""
    a = maps(rng)
    b = a + np.array([0.1, 1, 3, 9])[:, None, None, None] * rng.normal(size=a.shape)
    a[1] = 0.1
    return {"a": a, "b": b}


def two_maps_and_support(rng):
    return {**two_maps(rng), "support": rng.random((N, *SHAPE[1:])) < 0.4}


@oracle_of(
    sanity.similarity, two_maps, [{"how": how} for how in ("signed", "absolute", "pearson", "ssim")]
)
@oracle_of(sanity.similarity, two_maps_and_support, [{"how": "within"}, {"how": "pearson"}])
@oracle_of(
    sanity.similarity,
    lambda rng: {name: values[:, 0] for name, values in two_maps(rng).items()},
    [{"how": "ssim"}, {"how": "signed"}],
)
def similarity(a, b, how, support=None):
    found = []
    for i, (one, other) in enumerate(zip(a, b, strict=True)):
        if how == "ssim":
            sizes = (np.abs(values).reshape(-1, *SHAPE[1:]).sum(0) for values in (one, other))
            found.append(structural_similarity(*sizes))
            continue
        inside = np.broadcast_to(True if support is None else support[i], one.shape)
        one, other = one[inside], other[inside]
        if how == "absolute":
            one, other = np.abs(one), np.abs(other)
        correlation = pearsonr if how == "pearson" else spearmanr
        constant = len(set(one)) == 1 or len(set(other)) == 1
        found.append(math.nan if constant else correlation(one, other).statistic)
    return np.array(found)


def structural_similarity(a, b):
    """Wang et al. 2004, window by window, of maps (H, W) divided by their maxima."""
    a, b = a / a.max(), b / b.max()
    at = np.arange(-5, 6)
    window = np.exp(-(at[:, None] ** 2 + at**2) / (2 * 1.5**2))
    window /= window.sum()
    scores = []
    for row, column in np.ndindex(a.shape[0] - 10, a.shape[1] - 10):
        p, q = (values[row : row + 11, column : column + 11] for values in (a, b))
        mean_p, mean_q = (window * p).sum(), (window * q).sum()
        variance_p, variance_q = (window * p * p).sum() - mean_p**2, (window * q * q).sum()
        variance_q -= mean_q**2
        covariance = (window * p * q).sum() - mean_p * mean_q
        brightness = (2 * mean_p * mean_q + 1e-4) / (mean_p**2 + mean_q**2 + 1e-4)
        structure = (2 * covariance + 9e-4) / (variance_p + variance_q + 9e-4)
        scores.append(brightness * structure)
    return np.mean(scores)


# --- cascade --------------------------------------------------------------------------------------


def network(rng):
    layers = nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 2)
    return {"model": weighted(nn.Sequential(*layers), rng), "seed": 3}


def steps_of(model, seed, how):
    """Of each copy of a cascade: the layer named, and which parameters differ from `model`'s."""
    found = {}
    for name, copy in sanity.cascade(model, seed=seed, how=how):
        pairs = zip(model.named_parameters(), copy.parameters(), strict=True)
        found[name] = {key: not torch.equal(old, new) for (key, old), new in pairs}
    norms = {key: value.norm().item() for key, value in copy.named_parameters()}
    return {"changed": found, "norms": norms if how == "gaussian" else {}}


@oracle_of(sanity.cascade, network, [{"how": "initial"}, {"how": "gaussian"}], call=steps_of)
def cascade(model, seed, how):
    """From the last layer to the first, each on top of those before; Gaussians keep the norms."""
    randomised, found = set(), {"none": dict.fromkeys(dict(model.named_parameters()), False)}
    for layer in ("4", "1", "0"):
        randomised.add(layer)
        found[layer] = {key: key[0] in randomised for key, _ in model.named_parameters()}
    norms = {key: math.sqrt(sum(v.ravel() ** 2)) for key, v in values_of(model).items()}
    return {"changed": found, "norms": norms if how == "gaussian" else {}}


def values_of(model):
    return {key: value.detach().numpy() for key, value in model.named_parameters()}
