"""Importance maps that notebook 03 compares: one score per pixel, (n, H, W) each."""

from __future__ import annotations

import numpy as np
from torch import nn
from tqdm import tqdm

from xaiutils import attribution, lime, segment
from xaiutils.perturb import Components

FOUR = ("gradient", "SmoothGrad", "SmoothGrad²", "integrated gradients")  # likely the paper's
SIGNED = ", signed"
PATCH = {224: 16, 32: 4, 28: 4}  # side of the hidden squares of occlusion, by the side of the image


def gradient_maps(
    model, x, target, *, mean, n_noise: int, ig_steps: int, seed: int, batch_size: int
) -> dict[str, np.ndarray]:
    """Gradient methods, absolute and signed, and a random map.

    Parameters
    ----------
    model, x, target
        See `attribution`; images (n, C, H, W).
    mean : (C,) array
        Mean colour of the data set: the baseline of integrated gradients, and what is subtracted
        from the image before it is multiplied with the gradient.
    n_noise : int
        Noisy copies per image, shared by SmoothGrad and SmoothGrad².
    ig_steps, seed, batch_size : int

    Returns
    -------
    dict of (n, H, W) arrays
        Absolute maps sum absolute values over channels, those named ", signed" the values.
    """
    x = np.asarray(x)
    centre = np.asarray(mean, x.dtype)[:, None, None]
    smooth = attribution.smoothgrad(
        model, x, target, n_samples=n_noise, seed=seed, batch_size=batch_size
    )
    baseline = np.broadcast_to(centre, x.shape).copy()
    signed = {
        "gradient": attribution.gradient(model, x, target, batch_size=batch_size),
        "SmoothGrad": smooth.mean,
        "integrated gradients": attribution.integrated_gradients(
            model, x, baseline, target, steps=ig_steps, batch_size=batch_size, tolerance=None
        ),
    }
    signed["input × gradient"] = signed["gradient"] * (x - centre)
    maps = {"SmoothGrad²": attribution.reduce(smooth.mean_square, "sum")}
    for name, values in signed.items():
        maps[name] = attribution.reduce(values, "abs_sum")
        maps[name + SIGNED] = attribution.reduce(values, "sum")
    n, _, height, width = x.shape
    maps["random"] = np.stack(
        [np.random.default_rng([seed, i, 1]).random((height, width)) for i in range(n)]
    )
    return maps


def further_maps(model, x, target, *, mean, n_masks: int, seed: int) -> dict[str, np.ndarray]:
    """LIME on superpixels, occlusion of patches and Grad-CAM; all signed."""
    x, target = np.asarray(x), np.asarray(target)
    centre = np.broadcast_to(np.asarray(mean, x.dtype)[:, None, None], x.shape[1:])
    maps = {
        "occlusion": attribution.occlusion(
            model, x, target, patch=PATCH[x.shape[-1]], baseline=centre
        ),
        "Grad-CAM": attribution.gradcam(model, last_convolution(model), x, target),
    }
    probability = nn.Sequential(model, nn.Softmax(dim=1)).eval()
    explained = []
    for i in tqdm(range(len(x)), "LIME", leave=False, mininterval=1):
        components = Components(segment.quickshift(x[i]))
        explanation = lime.explain(
            probability, x[i], components, targets=int(target[i]), n_samples=n_masks, seed=seed + i
        )
        explained.append(components.spread(explanation.coef))
    return maps | {"LIME": np.stack(explained)}


def last_convolution(model: nn.Module) -> nn.Module:
    """The last convolution of a network, where Grad-CAM looks.

    Raises
    ------
    ValueError
        If there is none.
    """
    found = [part for part in model.modules() if isinstance(part, nn.Conv2d)]
    if not found:
        raise ValueError(f"model has no convolution: {type(model).__name__}")
    return found[-1]
