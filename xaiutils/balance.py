"""Standard errors of LIME's regression that know how its masks balance each other."""

from __future__ import annotations

import numpy as np

from xaiutils import surrogate, surrogate_kernel
from xaiutils.runtime import one_blas_thread
from xaiutils.surrogate_weights import (
    CUBE_D,
    free_half,
    generator,
    half_cube,
    line,
    with_complements,
    with_rounding,
)

FREE = 512  # masks that, with their complements, stand for all; more of them beyond d = 255
SOME = 512  # masks that tell the hyperparameters


@one_blas_thread
def covariance(
    masks, values, *, width: float = 0.25, ridge: float = 0.0, seed: int = 0
) -> np.ndarray:
    """Covariance of the error of LIME's regression that knows how the masks balance each other.

    The sandwich of `regression.fit` takes masks for independent draws, and what the line leaves
    over for noise. Here f is a draw of the process. The regression minus its limit is a weighted
    sum of values of f at the masks and at all others, in which interactions cancel as far as the
    masks balance them: its covariance follows from that of the process.

    Parameters
    ----------
    masks : (n, d) bool
        Of any design; n > d + 1, d <= 1,000.
    values : (n,)
        Finite.
    width, ridge : float
        Of the regression. The limit is that of many masks with the same ridge for each n of them.
    seed : int
        Of the two samples of 1,024 free masks or more that stand for all beyond d = 12, and of the
        512 masks that tell the hyperparameters, if there are more.

    Returns
    -------
    (d + 1, d + 1)
        Of (intercept, coefficients), times (1 + (d + 1) / m)^2 for m distinct masks that tell the
        hyperparameters. NaN for constant values.

    Raises
    ------
    ValueError
        As `surrogate.fit`, or if the masks do not determine the regression.
    """
    masks, values, rng = np.asarray(masks, bool), np.asarray(values, np.float64), generator(seed)
    n, d = masks.shape
    some = rng.permutation(n)[:SOME]
    some = np.union1d(some, [values.argmin(), values.argmax()])  # that vary if any do
    found = surrogate.fit(masks[some], values[some])
    theta, count = found.hyperparameters, d + 1
    own = line(masks, width, ridge / n)
    masks, owner = np.unique(masks, axis=0, return_inverse=True)
    merged = np.zeros((count, len(masks)))
    np.add.at(merged.T, owner.ravel(), own.T)
    free = max(FREE, 2 ** int(2 * d + 1).bit_length())
    halves = [half_cube(d)] if d <= CUBE_D else [free_half(free, d, rng) for _ in range(2)]
    limits = [line(with_complements(half), width, ridge / n) for half in halves]
    error = _covariance(masks, merged, halves, limits, found)
    if d <= CUBE_D:
        _, owner = np.unique(
            np.vstack([masks, with_complements(halves[0])]), axis=0, return_inverse=True
        )
        summed = np.zeros((owner.max() + 1, count))
        np.add.at(summed, owner.ravel(), np.hstack([merged, -limits[0]]).T)
    else:  # the noise of all masks averages out, that of the known does not
        summed = merged.T
    error += theta.noise * summed.T @ summed
    sizes, axes = np.linalg.eigh(error)
    error = (axes * np.maximum(sizes, 0)) @ axes.T
    return (1 + count / len(found.masks)) ** 2 * with_rounding(error, theta)


def _covariance(masks, own, halves, limits, found):
    """Of the values at `masks` weighted by `own` minus the limit, without noise.

    Two samples of free masks give two limits A and B. The covariance of own - A with own - B lacks
    what is due to the samples: with M their mean and D half their difference, it is that of own - M
    minus that of D.
    """
    parts = [np.split(weights, 2, axis=1) for weights in limits]
    nothing, share = np.zeros_like(own), 1 / len(parts)
    mean = [np.hstack([part[side] for part in parts]) * -share for side in (0, 1)]
    weights = np.hstack([own, mean[0], nothing, mean[1]])
    if len(parts) == 2:
        (a, a_others), (b, b_others) = parts
        apart = np.hstack([nothing, a / 2, -b / 2, nothing, a_others / 2, -b_others / 2])
        weights = np.vstack([weights, apart])
    half = np.vstack([masks, *halves])
    both = surrogate_kernel.reduced(half, weights, found.relevances, found.hyperparameters)
    count = len(own)
    return both[:count, :count] - (both[count:, count:] if len(parts) == 2 else 0)
