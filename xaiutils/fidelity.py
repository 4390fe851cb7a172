"""How faithful is a ranking, and how much of its score does the masking itself cause?

Hide the most important components first (MIF) and the least important first (LIF) and watch
the model. The MIF drop is information removed plus an artifact of masked inputs being unlike
training data; the LIF drop, where little information should go, estimates that artifact: from
above, since low ranks may carry information too, and for MIF masks only as far as the artifact
depends on how many components are hidden, not on which.

Brocki and Chung, *Fidelity of Interpretability Methods and Perturbation Artifacts in Neural
Networks*, arXiv 2203.02928, rebuilt from its abstracts and the authors' later work: the area F
is theirs, P, P* and P/D are our reconstruction of their artifact estimate.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations

import numpy as np
import pandas as pd
import scipy

from xaiutils.fidelity_curves import Curves as Curves
from xaiutils.fidelity_curves import area
from xaiutils.fidelity_curves import curves as curves
from xaiutils.intervals import Estimate, resamples
from xaiutils.runtime import one_blas_thread


def summary(
    curves: Mapping[str, Curves],
    *,
    measure: str = "accuracy",
    random: str = "random",
    f_max: float = 0.5,
    draws: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> pd.DataFrame:
    """Fidelity, artifact and their kin for each method, with paired bootstrap intervals.

    Write A_M(f), A_L(f) for the mean MIF and LIF curves of `measure`, a0 and a1 for their
    ends, D_M = a0 - A_M and P = a0 - A_L. Integrals are over f in [0, 1], by trapezoids:

    - "auc_mif", "auc_lif"; "D", "P": integrals of A_M, A_L; of D_M, P(f).
    - "F": integral of A_L - A_M, so D = F + P; "F/(a0-a1)", comparable across models; "P/D",
      the artifact's share of the drop.
    - "P*", "F*", "P*/D": the same with the artifact common to all methods, the smallest P(f)
      of any method but `random`; chosen anew in each draw.
    - "gain_mif" = D - D_R and "gain_lif" = D_R - P, where D_R is the drop of the mean of the two
      curves of `random`; their sum is F. "F-F_random". Only if `random` is in `curves`.
    - "F_trunc", "D_trunc", "P_trunc", "P/D_trunc": integrals over [0, f_max], not divided by its
      length; between two steps curves are straight lines.
    - On the probability of the predicted class, whatever `measure` is: "SRG" (symmetric relevance
      gain, Bluecher 2024), the area between LIF and MIF, which is also AbPC, the area between
      perturbation curves; "AOPC" (Samek 2016), the mean MIF drop over steps 1..K (theirs also
      counts step 0: times K/(K+1)); "deletion" and "insertion" (RISE), the areas of the MIF curve
      and of the LIF curve read backwards, which is the same area as forwards.

    Parameters
    ----------
    curves : dict of Curves
        Of the same images and model, in both orders.
    measure : str
        See `Curves.curve`.
    random : str
        Name of the random ranking.
    f_max : float in (0, 1]
    draws : int
        Resamples of the images, the same for all methods, orders and quantities.
    level : float in (0, 1)
        Of the percentile intervals.
    seed : int

    Returns
    -------
    DataFrame
        Columns method, quantity, value, low, high, n (images). A ratio whose denominator is 0
        is NaN; such draws are left out of its interval. Of one image all intervals are NaN.

    Raises
    ------
    ValueError
        If the curves cannot be paired or a parameter is out of range.

    Examples
    --------
    A map that ranks by what the model adds up, against one that ranks the other way round:

    >>> import numpy as np
    >>> import torch
    >>> from xaiutils import fidelity
    >>> def model(batch):
    ...     total = batch.sum(dim=1)
    ...     return torch.stack([total, torch.ones_like(total)], dim=1)
    >>> x = np.array([[0.7, 0.5, 0.3, 0.1], [0.2, 0.1, 0.4, 2.0], [0.3, 0.3, 0.3, 0.2]])
    >>> maps = {"value": x, "minus value": -x}
    >>> found = fidelity.curves(model, x, np.zeros(3, int), maps, filler=0.0, steps=4)
    >>> table = fidelity.summary(found).query("quantity == 'F'")
    >>> print(table.round(2).to_string(index=False))
         method quantity  value   low  high  n
          value        F   0.42  0.00  0.75  3
    minus value        F  -0.42 -0.75  0.00  3
    """
    n = _paired(curves)
    values = _quantities(curves, _weights(n, draws, level, seed), measure, random, f_max)
    rows = [
        (method, quantity, *_estimate(drawn[:, m], level, n))
        for m, method in enumerate(curves)
        for quantity, drawn in values.items()
    ]
    return pd.DataFrame(rows, columns=["method", "quantity", "value", "low", "high", "n"])


def difference(
    curves: Mapping[str, Curves],
    a: str,
    b: str,
    quantity: str = "F",
    *,
    measure: str = "accuracy",
    random: str = "random",
    f_max: float = 0.5,
    draws: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> Estimate:
    """Quantity of method `a` minus that of `b`, with the paired interval; see `summary`.

    Raises
    ------
    ValueError
        If a method or the quantity is unknown, or as `summary`.
    """
    n = _paired(curves)
    values = _quantities(curves, _weights(n, draws, level, seed), measure, random, f_max)
    if quantity not in values:
        raise ValueError(f"quantity must be one of {tuple(values)}, got {quantity!r}")
    names = list(curves)
    for name in (a, b):
        if name not in names:
            raise ValueError(f"a and b must be methods of {tuple(names)}, got {name!r}")
    drawn = values[quantity]
    return _estimate(drawn[:, names.index(a)] - drawn[:, names.index(b)], level, n)


def rank_agreement(
    tables: Mapping[str, Mapping[str, Curves]],
    *,
    measure: str = "accuracy",
    random: str = "random",
    draws: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> pd.DataFrame:
    """Do settings, such as fillers, agree on which method is best?

    Mean Spearman correlation, over all pairs of settings, of the methods ranked by "auc_mif",
    by "auc_lif" and by "F", and the paired differences "F-auc_mif", "F-auc_lif". The method
    `random` is left out: it would be last everywhere and flatter the agreement.

    Parameters
    ----------
    tables : dict of settings, each a dict of Curves
        The same methods and images in each.
    measure, draws, level, seed : see `summary`

    Returns
    -------
    DataFrame
        Columns quantity, value, low, high, n. Values are in [-1, 1], NaN if a setting ties all
        methods. Resampling adds noise to rankings, so intervals lean to lower agreement.

    Raises
    ------
    ValueError
        Below two settings or two methods, or if the curves cannot be paired.
    """
    names = [{name for name in table if name != random} for table in tables.values()]
    if len(names) < 2 or len(names[0]) < 2 or any(other != names[0] for other in names):
        raise ValueError(
            f"tables must hold at least 2 settings with the same 2 or more methods: {names}"
        )
    sizes = {_paired(table) for table in tables.values()}
    if len(sizes) > 1:
        raise ValueError(f"tables must hold the same images, got {sorted(sizes)} images")
    n = sizes.pop()
    weights = _weights(n, draws, level, seed)
    areas = []  # per setting (2, draws + 1, methods)
    methods = sorted(names[0])
    for table in tables.values():
        means = _means({name: table[name] for name in methods}, measure, weights)
        areas.append(area(means, table[methods[0]].fractions))
    mif, lif = np.moveaxis(areas, 0, -2)  # (draws + 1, settings, methods)
    agreement = {"auc_mif": _spearman(mif), "auc_lif": _spearman(lif), "F": _spearman(lif - mif)}
    for other in ("auc_mif", "auc_lif"):
        agreement[f"F-{other}"] = agreement["F"] - agreement[other]
    rows = [(name, *_estimate(drawn, level, n)) for name, drawn in agreement.items()]
    return pd.DataFrame(rows, columns=["quantity", "value", "low", "high", "n"])


def _quantities(curves, weights, measure, random, f_max) -> dict[str, np.ndarray]:
    """Each quantity of `summary`, (draws + 1, methods)."""
    if not 0 < f_max <= 1:
        raise ValueError(f"f_max must be in (0, 1], got {f_max!r}")
    names = list(curves)
    fractions = curves[names[0]].fractions
    mif, lif = _means(curves, measure, weights)
    drop, artifact = mif[..., :1] - mif, lif[..., :1] - lif
    rivals = [m for m, name in enumerate(names) if name != random] or [0]
    common = artifact[:, rivals].min(axis=1, keepdims=True)
    auc_mif, auc_lif, d, p = (area(values, fractions) for values in (mif, lif, drop, artifact))
    f = area(lif - mif, fractions)
    p_common = np.broadcast_to(area(common, fractions), d.shape)
    d_trunc, p_trunc = (area(values, fractions, f_max) for values in (drop, artifact))
    values = {
        "auc_mif": auc_mif,
        "auc_lif": auc_lif,
        "F": f,
        "F/(a0-a1)": _ratio(f, drop[..., -1]),
        "D": d,
        "P": p,
        "P/D": _ratio(p, d),
        "P*": p_common,
        "F*": d - p_common,
        "P*/D": _ratio(p_common, d),
        "F_trunc": area(lif - mif, fractions, f_max),
        "D_trunc": d_trunc,
        "P_trunc": p_trunc,
        "P/D_trunc": _ratio(p_trunc, d_trunc),
    }
    if random in names:
        r = names.index(random)
        d_random = (d[:, [r]] + p[:, [r]]) / 2
        values |= {
            "gain_mif": d - d_random,
            "gain_lif": d_random - p,
            "F-F_random": f - f[:, [r]],
        }
    mif, lif = _means(curves, "probability", weights)
    deletion, insertion = area(mif, fractions), area(lif, fractions)
    aopc = (mif[..., :1] - mif)[..., 1:].mean(axis=-1)
    srg = insertion - deletion
    return values | {"SRG": srg, "AOPC": aopc, "deletion": deletion, "insertion": insertion}


@one_blas_thread
def _means(curves, measure, weights):
    """Mean MIF and LIF curves under each row of weights, (2, draws + 1, methods, K+1)."""
    return np.stack(
        [
            np.stack([weights @ c.curve(order, measure).astype(float) for c in curves.values()], 1)
            for order in ("mif", "lif")
        ]
    )


def _ratio(a, b):
    return np.divide(a, b, out=np.full_like(a, np.nan), where=np.abs(b) > 1e-12)


def _weights(n, draws, level, seed):
    """Weight of each image, (draws + 1, n): the sample itself, then its resamples."""
    if not isinstance(draws, int | np.integer) or draws < 1:
        raise ValueError(f"draws must be a positive integer, got {draws!r}")
    if not 0 < level < 1:
        raise ValueError(f"level must be in (0, 1), got {level!r}")
    return np.vstack([np.ones(n), resamples(n, draws=draws, seed=seed)]) / n


def _estimate(drawn, level, n) -> Estimate:
    value, resampled = float(drawn[0]), drawn[1:][~np.isnan(drawn[1:])]
    if n == 1 or not resampled.size:  # one image says nothing of others
        return Estimate(value, np.nan, np.nan, n)
    low, high = np.quantile(resampled, [(1 - level) / 2, (1 + level) / 2])
    return Estimate(value, float(low), float(high), n)


def _spearman(values):
    """Mean correlation of ranks over pairs of settings: (draws, settings, methods) to (draws,)."""
    ranks = scipy.stats.rankdata(values, axis=-1)
    ranks -= ranks.mean(axis=-1, keepdims=True)
    length = np.sqrt(np.square(ranks).sum(axis=-1))
    pairs = combinations(range(values.shape[1]), 2)
    return np.mean(
        [
            _ratio((ranks[:, i] * ranks[:, j]).sum(axis=-1), length[:, i] * length[:, j])
            for i, j in pairs
        ],
        axis=0,
    )


def _paired(curves) -> int:
    """Number of images, if all curves are of the same ones."""
    if not curves:
        raise ValueError("curves must hold at least one method, got an empty dict")
    first = next(iter(curves.values()))
    for name, one in curves.items():
        if not {"mif", "lif"} <= set(one.orders):
            raise ValueError(f"curves of {name!r} must have both orders, got {one.orders}")
        if not (
            np.array_equal(one.fractions, first.fractions)
            and np.array_equal(one.predicted, first.predicted)
        ):
            raise ValueError(
                f"curves of {name!r} cannot be paired with those of {next(iter(curves))!r}: "
                "fractions or predicted classes differ, so images, model or steps do"
            )
    return len(first.predicted)
