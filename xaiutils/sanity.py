"""Do attributions point where the evidence is, and do they depend on the model at all?

Localisation asks how much of a map lies where the truth is known to lie, cascading randomisation
what is left of a map when the model forgets layer by layer (Adebayo, Gilmer, Muelly, Goodfellow,
Hardt and Kim, *Sanity Checks for Saliency Maps*, NeurIPS 2018, arXiv 1810.03292).

Common to all: attributions are arrays or tensors (n, ...), one finite map per image; masks such
as `region` are bool, of the same shape or, for images (n, C, H, W), (n, H, W), the same for all
channels. Channels are never summed unless a docstring says so. Anything else is a ValueError.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import scipy
import skimage
import torch

from xaiutils import attribution as attributions

_WINDOW = 11  # pixels: a Gaussian of 1.5 pixels, cut at 3.5 of them, as Wang et al. 2004


class RankingQuality(NamedTuple):
    """How well a ranking finds a mask, each (n,); NaN where the mask holds nothing or everything.

    Attributes
    ----------
    auc : ndarray
        Area under the ROC curve; 0.5 for a random ranking.
    average_precision : ndarray
        For a random ranking about the mask's share of the area.
    """

    auc: np.ndarray
    average_precision: np.ndarray


def localisation(attribution, region) -> np.ndarray:
    """Share of the sum of |attribution| that lies in `region`, (n,) in [0, 1].

    NaN for a map that is zero everywhere. For a map without content it is `chance`. The mean
    difference between pairs of classes that differ in what `region` shows and pairs that differ
    elsewhere is the map's one-vs-one content: 0 for maps that ignore the question, at most 1.

    Parameters
    ----------
    attribution, region
        See the module.

    Examples
    --------
    >>> import numpy as np
    >>> from xaiutils import sanity
    >>> attribution = np.array([[[3.0, -1.0], [0.5, 0.5]]])
    >>> upper_half = np.array([[[True, True], [False, False]]])
    >>> sanity.localisation(attribution, upper_half)
    array([0.8])
    """
    inside, outside = _sums(attribution, region)
    return _ratio(inside, inside + outside)


def inverse_localisation(attribution, region) -> np.ndarray:
    """Sum of |attribution| outside `region` over the sum inside, (n,); lower is better.

    It is 1 / localisation - 1: infinite for a map that is zero in the region, NaN for one that is
    zero everywhere.

    Parameters
    ----------
    attribution, region
        See the module.
    """
    inside, outside = _sums(attribution, region)
    return _ratio(outside, inside)


def chance(region) -> np.ndarray:
    """Share of each image that `region`, (n, ...) bool, covers, (n,): a uniform map's score."""
    region = _array(region)
    if region.dtype != bool or region.ndim < 2 or not region.size:
        raise ValueError(f"region must be bool (n, ...), got {region.dtype} {region.shape}")
    return region.reshape(len(region), -1).mean(axis=1)


def ranking_quality(attribution, truth) -> RankingQuality:
    """How well |attribution|, element by element, ranks what is in the mask above what is not.

    Equal values share a rank: they get no credit from the order in memory.

    Parameters
    ----------
    attribution, truth
        See the module.

    Returns
    -------
    RankingQuality
    """
    from sklearn.metrics import average_precision_score, roc_auc_score  # slow to import

    scores = _maps("attribution", attribution)
    truth = _flat(_mask("truth", truth, scores.shape))
    found = np.full((len(scores), 2), np.nan)
    for row, wanted, score in zip(found, truth, _flat(np.abs(scores)), strict=True):
        if wanted.any() and not wanted.all():
            row[:] = roc_auc_score(wanted, score), average_precision_score(wanted, score)
    return RankingQuality(*found.T)


def cascade(
    model: torch.nn.Module, *, seed: int, how: str = "initial"
) -> Iterator[tuple[str, torch.nn.Module]]:
    """Copies of `model` that lose their weights layer by layer, from the logits to the input.

    Layers are the modules with parameters of their own, in the order of registration, which must
    be that of the computation. Each item's copy is independent of the others.

    Parameters
    ----------
    model : torch.nn.Module
        Is not changed, and neither is torch's global random state.
    seed : int
        The same seed draws the same weights, on any device.
    how : {"initial", "gaussian"}
        By each layer's own `reset_parameters`, which also resets the running statistics of batch
        norm; or parameter by parameter with Gaussian noise of the same Euclidean norm, buffers
        kept.

    Yields
    ------
    name : str
        "none" first, then the name of the layer randomised last.
    copy : torch.nn.Module
        With this layer and all those named before randomised, in the mode `model` is in.

    Raises
    ------
    ValueError
        `how` is neither, no layer has weights, or one has no `reset_parameters`.

    Notes
    -----
    The cascading randomisation of Adebayo et al. 2018. Biases that are 0 and batch norm that was
    never trained have nothing to lose and stay as they are under "gaussian" and "initial".

    Examples
    --------
    >>> import torch
    >>> from xaiutils import sanity
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU(), torch.nn.Linear(3, 2))
    >>> for name, copy in sanity.cascade(model, seed=0):
    ...     print(name, [torch.equal(copy[i].weight, model[i].weight) for i in (0, 2)])
    none [True, True]
    2 [True, False]
    0 [False, False]
    """
    if how not in ("initial", "gaussian"):
        raise ValueError(f'how must be "initial" or "gaussian", got {how!r}')
    names = [name for name, part in model.named_modules() if [*part.parameters(recurse=False)]]
    if not names:
        raise ValueError("model must have layers with weights, got none")
    for name in names:
        part = model.get_submodule(name)
        if how == "initial" and not hasattr(part, "reset_parameters"):
            raise ValueError(
                f"model: {type(part).__name__} {name!r} has no reset_parameters, needed if how is "
                '"initial"; "gaussian" does without'
            )
    return _cascade(copy.deepcopy(model), names[::-1], np.random.default_rng(seed), how)


def similarity(a, b, how: str, support=None) -> np.ndarray:
    """Agreement of the maps `a` with the maps `b`, image by image, (n,).

    Parameters
    ----------
    a, b : (n, ...) of one shape
        See the module.
    how : {"signed", "absolute", "within", "pearson", "ssim"}
        Spearman's rank correlation of the values, of their absolute values, or of the values
        within `support`; Pearson's correlation of the values, within `support` if there is one;
        or structural similarity. Absolute maps of "gradient times change" methods are alike just
        because the change is zero in the same places; within its support they need not be.
    support : mask like `region` in the module, optional
        Needed by "within", allowed with "pearson".

    Returns
    -------
    ndarray (n,) in [-1, 1]
        Correlations are NaN where one of the maps is constant (in its support), structural
        similarity where one is zero everywhere.

    Raises
    ------
    ValueError
        Shapes do not fit, `how` is unknown, `support` is missing or of no use, or maps are too
        small for structural similarity.

    Notes
    -----
    Structural similarity (Wang, Bovik, Sheikh and Simoncelli 2004) is of maps (n, H, W), or of
    the channel sums of |a| for (n, C, H, W), each divided by its maximum. Its window is Gaussian,
    11 x 11 pixels; the mean is over windows that lie within the image.
    """
    if how not in ("signed", "absolute", "within", "pearson", "ssim"):
        raise ValueError(
            f'how must be "signed", "absolute", "within", "pearson" or "ssim", got {how!r}'
        )
    if how == "within" and support is None:
        raise ValueError('support is needed if how is "within"')
    if how not in ("within", "pearson") and support is not None:
        raise ValueError(f'support must be None if how is {how!r}, only "within", "pearson" use it')
    a, b = _maps("a", a), _maps("b", b)
    if a.shape != b.shape:
        raise ValueError(f"b must have the shape of a, {a.shape}, got {b.shape}")
    if how == "ssim":
        return _ssim(_scaled(a), _scaled(b))
    if how == "absolute":
        a, b = np.abs(a), np.abs(b)
    counted = np.ones(a.shape, bool) if support is None else _mask("support", support, a.shape)
    a, b, counted = _flat(a), _flat(b), _flat(counted)
    if how != "pearson":
        a, b = _ranks(a, counted), _ranks(b, counted)
    return _correlation(a, b, counted)


def _cascade(model, names, rng, how):
    yield "none", copy.deepcopy(model)
    for name in names:
        _randomise(model.get_submodule(name), int(rng.integers(2**63)), how)
        yield name, copy.deepcopy(model)


def _randomise(layer, seed, how) -> None:
    # On the CPU: the same weights everywhere, and no other generator than the CPU's is involved.
    fresh = copy.deepcopy(layer).cpu()
    if how == "initial":
        # Layers draw from the global generator: give it back as it was.
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            fresh.reset_parameters()
    else:
        generator = torch.Generator().manual_seed(seed)
        for weight in fresh.parameters(recurse=False):
            noise = torch.randn(weight.shape, generator=generator, dtype=weight.dtype)
            weight.data = noise * (weight.data.norm() / noise.norm())
    layer.load_state_dict(fresh.state_dict())


def _sums(attribution, region) -> tuple[np.ndarray, np.ndarray]:
    """Sums of |attribution| in the region and outside, each (n,)."""
    size = np.abs(_maps("attribution", attribution))
    region = _flat(_mask("region", region, size.shape))
    return _flat(size).sum(axis=1, where=region), _flat(size).sum(axis=1, where=~region)


def _ranks(values, counted) -> np.ndarray:
    """Ranks among the counted values of each row, ties shared; 0 elsewhere."""
    ranks = scipy.stats.rankdata(np.where(counted, values, np.nan), axis=1, nan_policy="omit")
    return np.where(counted, ranks, 0.0)


def _correlation(a, b, counted) -> np.ndarray:
    """Pearson's correlation of each row's counted values."""
    n = counted.sum(axis=1, keepdims=True)
    defined, unit = np.ones(len(a), bool), []
    for values in (a, b):
        top = values.max(axis=1, where=counted, initial=-np.inf)
        # Not by the variance, which rounding can leave above 0.
        defined &= top > values.min(axis=1, where=counted, initial=np.inf)
        mean = values.sum(axis=1, where=counted, keepdims=True) / np.maximum(n, 1)
        centred = np.where(counted, values - mean, 0.0)
        unit.append(_ratio(centred, np.linalg.norm(centred, axis=1, keepdims=True)))
    return np.where(defined, np.clip((unit[0] * unit[1]).sum(axis=1), -1, 1), np.nan)


def _scaled(values) -> np.ndarray:
    """Absolute maps (n, H, W) with maximum 1; NaN for a map that is zero everywhere."""
    if values.ndim not in (3, 4) or min(values.shape[-2:]) < _WINDOW:
        raise ValueError(
            f'a and b must be (n, H, W) or (n, C, H, W) for "ssim", H and W at least {_WINDOW}, '
            f"got {values.shape}"
        )
    size = np.abs(values) if values.ndim == 3 else attributions.reduce(values, "abs_sum")
    return _ratio(size, size.max(axis=(1, 2), keepdims=True))


def _ssim(a, b) -> np.ndarray:
    options = {"data_range": 1.0, "gaussian_weights": True, "use_sample_covariance": False}
    pairs = zip(a, b, strict=True)
    return np.array([skimage.metrics.structural_similarity(p, q, **options) for p, q in pairs])


def _ratio(part, whole) -> np.ndarray:
    with np.errstate(invalid="ignore", divide="ignore"):
        return part / whole


def _maps(name, values) -> np.ndarray:
    values = _array(values)
    if values.ndim < 2 or not values.size:
        raise ValueError(f"{name} must be maps (n, ...), got shape {values.shape}")
    values = values.astype(np.float64)
    if not np.isfinite(values).all():
        raise ValueError(f"{name} must be finite, got {np.sum(~np.isfinite(values))} other values")
    return values


def _mask(name, mask, shape) -> np.ndarray:
    """`mask` in the given shape, the same for all channels if it has no axis for them."""
    mask = _array(mask)
    allowed = (shape, (shape[0], *shape[2:])) if len(shape) == 4 else (shape,)
    if mask.dtype != bool or mask.shape not in allowed:
        wanted = " or ".join(map(str, allowed))
        raise ValueError(f"{name} must be bool of shape {wanted}, got {mask.dtype} {mask.shape}")
    return np.broadcast_to(mask if mask.shape == shape else mask[:, None], shape)


def _flat(values) -> np.ndarray:
    return values.reshape(len(values), -1)


def _array(values) -> np.ndarray:
    return values.detach().cpu().numpy() if isinstance(values, torch.Tensor) else np.asarray(values)
