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

FREE = 1024  # masks that, with their complements, stand for all
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
        Of any design; n > d + 1.
    values : (n,)
        Finite.
    width, ridge : float
        Of the regression. The limit is that of many masks with the same ridge for each n of them.
    seed : int
        Of the 2,048 free masks that stand for all beyond d = 12, and of the 512 masks that tell
        the hyperparameters, if there are more.

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
    some = np.sort(rng.permutation(len(masks))[:SOME])
    found = surrogate.fit(masks[some], values[some])
    (n, d), theta = masks.shape, found.hyperparameters
    half = half_cube(d) if d <= CUBE_D else free_half(FREE, d, rng)
    own, limiting = (line(rows, width, ridge / n) for rows in (masks, with_complements(half)))
    at_half, at_others = np.split(-limiting, 2, axis=1)
    half = np.vstack([masks, half])
    weights = np.hstack([own, at_half, np.zeros_like(own), at_others])
    error = surrogate_kernel.reduced(half, weights, found.relevances, theta)
    if d > CUBE_D:  # the noise of all masks averages out, that of the known does not
        half, weights = masks, np.hstack([own, np.zeros_like(own)])
    _, owner = np.unique(with_complements(half), axis=0, return_inverse=True)
    summed = np.zeros((owner.max() + 1, d + 1))
    np.add.at(summed, owner.ravel(), weights.T)
    error += theta.noise * summed.T @ summed
    return (1 + (d + 1) / len(found.masks)) ** 2 * with_rounding(error, theta)
