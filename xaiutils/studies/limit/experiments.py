"""Experiments of notebook 02: real LIME runs beside their limit, on real images and models."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
import scipy
from tqdm import tqdm

from xaiutils import designs, intervals, lime, limit, segment
from xaiutils.perturb import Components, evaluate


def table(model, x, components: Components, target: int, filler="mean") -> np.ndarray:
    """One output of `model` for all 2^d masks, (2^d,): everything exact follows from it."""
    return limit.tabulate(
        lambda z: evaluate(model, x, components, z, filler, outputs=[target])[:, 0],
        components.d,
        batch_size=2**components.d,
    )


def convergence(
    f: Callable, d: int, sizes: Sequence[int], *, repeats: int, seed: int, nu=0.25, design="iid"
) -> pd.DataFrame:
    """Distance of fits without ridge to the limit, for growing numbers of masks.

    Returns
    -------
    DataFrame with columns n, repeat, distance (Euclidean, over the d coefficients)
    """
    target = limit.exact(f, d, nu).coef
    rng = np.random.default_rng(seed)
    records = []
    for n in sizes:
        for repeat in range(repeats):
            masks = designs.draw(n, d, design, rng)
            found = lime.fit(masks, lime.kernel(masks, nu), f(masks)[:, None], ridge=0.0)
            records.append((n, repeat, float(np.linalg.norm(found.coef[0] - target))))
    return pd.DataFrame(records, columns=["n", "repeat", "distance"])


def slope(distances: pd.DataFrame, *, seed: int, draws: int = intervals.DRAWS):
    """Slope of log root mean squared distance over log n: value, low, high (bootstrap)."""
    squared = distances.pivot(index="repeat", columns="n", values="distance").to_numpy() ** 2
    log_n = np.log(np.sort(distances["n"].unique()))
    counts = intervals.resamples(len(squared), draws=draws, seed=seed)

    def fit(means):
        return np.polyfit(log_n, 0.5 * np.log(means).T, 1)[0]

    low, high = intervals.percentiles(fit(counts @ squared / len(squared)), len(squared))
    return float(fit(squared.mean(axis=0)[None])[0]), low, high


def locality(f: Callable, d: int, bandwidths, *, ig_sums, n: int = 1000) -> pd.DataFrame:
    """How far LIME's limit lies from other attributions, as the bandwidth grows.

    Returns
    -------
    DataFrame with columns nu, reference, distance (relative to the norm of the limit)
    """
    fixed = {
        "Shapley": limit.shapley(f, d),
        "Banzhaf": limit.coin_banzhaf(f, d),
        "occlusion": limit.occlusion(f, d),
        "integrated gradients": np.asarray(ig_sums),
    }
    records = []
    for nu in bandwidths:
        coef = limit.exact(f, d, nu).coef
        references = {
            "coin-biased Banzhaf": limit.coin_banzhaf(f, d, limit.coin(d, nu)),
            **fixed,
            "LIME with the package's ridge": limit.exact(f, d, nu, ridge=1.0, n=n).coef,
        }
        for name, values in references.items():
            distance = np.linalg.norm(values - coef) / np.linalg.norm(coef)
            records.append((float(nu), name, float(distance)))
    return pd.DataFrame(records, columns=["nu", "reference", "distance"])


def audit(bandwidths, *, d: int, n: int) -> pd.DataFrame:
    """What kernel and ridge do to d superpixels and n masks: columns nu and three shares."""
    kept = np.array([limit.kept(d, nu, n=n) for nu in bandwidths])
    return pd.DataFrame(
        {
            "nu": bandwidths,
            "q": [limit.coin(d, nu) for nu in bandwidths],
            "kept, contrasts": kept[:, 0],
            "kept, common part": kept[:, 1],
        }
    )


def random_jaccard(d: int, a: int, b: int) -> float:
    """Expected Jaccard index of a set of size a with a random set of size b, both from d."""
    if not a + b:
        return 1.0
    common = np.arange(min(a, b) + 1)
    return float(scipy.stats.hypergeom.pmf(common, d, a, b) @ (common / (a + b - common)))


def agreement(explained: dict[str, np.ndarray], pairs, *, image: int, ks=(5, 10)) -> list[dict]:
    """Top-k Jaccard indices of pairs of coefficient vectors of one image, and the random level.

    Parameters
    ----------
    explained : dict of (d,) arrays
    pairs : sequence of (str, str)
        Keys of `explained`; the random level is that of the first pair's sizes.
    """
    records = []
    for k in ks:
        top = {name: lime.top_k(coef, k) for name, coef in explained.items()}
        for a, b in pairs:
            if a in top and b in top:
                value = lime.jaccard(top[a], top[b])
                records.append({"image": image, "k": k, "pair": f"{a} / {b}", "jaccard": value})
        a, b = pairs[0]
        d = len(explained[a])
        value = random_jaccard(d, len(top[a]), len(top[b]))
        records.append({"image": image, "k": k, "pair": "random sets", "jaccard": value, "d": d})
    return records


def mean_intervals(frame: pd.DataFrame, by: Sequence[str], *, seed: int, draws: int = 4000):
    """Mean Jaccard of each group with a 95 % bootstrap interval over its rows (images).

    Returns
    -------
    DataFrame with the columns of `by`, then mean, low, high, images (their number)
    """
    records = [
        (*key, *intervals.mean(group["jaccard"], draws=draws, seed=seed))
        for key, group in frame.groupby(list(by), sort=False)
    ]
    return pd.DataFrame(records, columns=[*by, "mean", "low", "high", "images"])


def ratio_to_random(
    frame: pd.DataFrame, pair: str, k: int, *, seed: int, draws: int = 4000
) -> intervals.Estimate:
    """Mean Jaccard of `pair` over that of random sets, by a bootstrap paired over images."""
    wide = frame[frame["k"] == k].pivot(index="image", columns="pair", values="jaccard")
    both = wide[[pair, "random sets"]].to_numpy()
    drawn = intervals.resamples(len(both), draws=draws, seed=seed) @ both
    ends = intervals.percentiles(drawn[:, 0] / drawn[:, 1], len(both))
    return intervals.Estimate(float(both[:, 0].mean() / both[:, 1].mean()), *ends, len(both))


def images_agreement(
    model, images, *, n_samples, n_runs, n_repeats, n_blocks, steps, seed
) -> tuple[pd.DataFrame, list[dict]]:
    """LIME against superpixel sums of integrated gradients on photographs.

    The explained output is the model's most probable class; "LIME" is the mean of `n_runs`
    explanations of `n_samples` masks. The first `n_repeats` images get a pool of `n_blocks`
    times `n_samples` masks: enough for a second, independent "LIME", and for `top_agreement`.

    Returns
    -------
    frame : DataFrame as from `agreement`
    details : list of dict, one per image: target, probability, components, pool, lime, ig
    """
    records, details = [], []
    for index, x in enumerate(tqdm(images.numpy(), desc="photographs", leave=False)):
        components = Components(segment.quickshift(x))
        target, probability = _argmax(model, x, components)
        blocks = max(n_blocks, 2 * n_runs) if index < n_repeats else n_runs
        pool = lime.explain(
            model, x, components, targets=target, n_samples=blocks * n_samples,
            seed=int(np.random.SeedSequence((seed, index)).generate_state(1)[0]),
        )  # fmt: skip
        coef = _block_coefs(pool, n_samples)
        ig = limit.integrated_gradients_sums(
            model, x, components.means(x), components, target, steps=steps, tolerance=None
        )
        explained = {"LIME": coef[:n_runs].mean(axis=0), "IG sums": ig}
        if index < n_repeats:
            explained["LIME again"] = coef[n_runs : 2 * n_runs].mean(axis=0)
        records += agreement(explained, [("LIME", "IG sums"), ("LIME", "LIME again")], image=index)
        details.append(
            {"target": target, "probability": probability, "components": components,
             "pool": pool, "lime": explained["LIME"], "ig": ig}
        )  # fmt: skip
    return pd.DataFrame(records), details


def digits_agreement(model, images, *, n_samples, n_runs, steps, seed) -> pd.DataFrame:
    """The paper's table protocol on digits: mean of `n_runs` explanations against IG sums.

    Digits have few superpixels, so the limit itself is known too, by enumeration.
    """
    records = []
    for index, x in enumerate(tqdm(images.numpy(), desc="digits", leave=False)):
        components = Components(segment.quickshift(x, kernel_size=1))
        target, _ = _argmax(model, x, components)
        pool = lime.explain(
            model, x, components, targets=target, n_samples=2 * n_runs * n_samples,
            seed=int(np.random.SeedSequence((seed, index)).generate_state(1)[0]),
        )  # fmt: skip
        coef = _block_coefs(pool, n_samples)
        values = limit.lookup(table(model, x, components, target))
        explained = {
            "LIME mean": coef[:n_runs].mean(axis=0),
            "another mean": coef[n_runs:].mean(axis=0),
            "LIME": coef[0],
            "LIME again": coef[n_runs],
            "limit": limit.exact(values, components.d).coef,
            "IG sums": limit.integrated_gradients_sums(
                model, x, components.means(x), components, target, steps=steps, tolerance=None
            ),
        }
        pairs = [
            ("LIME mean", "IG sums"),
            ("limit", "IG sums"),
            ("LIME mean", "another mean"),
            ("LIME", "LIME again"),
        ]
        records += agreement(explained, pairs, image=index)
    return pd.DataFrame(records)


def _argmax(model, x, components):
    outputs = evaluate(model, x, components, np.ones((1, components.d), bool))[0]
    return int(outputs.argmax()), float(outputs.max())


def _block_coefs(pool: lime.Explanation, n: int, ridge: float = 1.0) -> np.ndarray:
    """Coefficients of fits to successive, disjoint blocks of n masks of one run, (blocks, d)."""
    blocks = (slice(start, start + n) for start in range(0, len(pool.masks) - n + 1, n))
    fits = [lime.fit(pool.masks[b], pool.weights[b], pool.outputs[b, None], ridge) for b in blocks]
    return np.array([found.coef[0] for found in fits])


def top_agreement(
    pools: dict[str, lime.Explanation], sizes: Sequence[int], *, k: int = 5
) -> pd.DataFrame:
    """Top-k Jaccard of pairs of runs with n masks each, from disjoint blocks of long runs.

    Returns
    -------
    DataFrame with columns image, n, jaccard: the mean over the pairs of blocks of an image
    """
    records = []
    for image, pool in pools.items():
        for n in sizes:
            tops = [lime.top_k(coef, k) for coef in _block_coefs(pool, n)]
            pairs = zip(tops[::2], tops[1::2], strict=False)
            value = np.mean([lime.jaccard(a, b) for a, b in pairs])
            records.append((image, n, float(value)))
    return pd.DataFrame(records, columns=["image", "n", "jaccard"])


def stopping_size(pool: lime.Explanation, stop: lime.Stop, step: int, *, ridge=1.0) -> int | None:
    """Masks after which `stop` would have ended this run, drawn `step` at a time; None if never.

    The masks of a run are drawn one after the other, so its first n are what a run with the
    same seed and this rule would have used.
    """
    for n in range(step, len(pool.masks) + 1, step):
        found = lime.fit(pool.masks[:n], pool.weights[:n], pool.outputs[:n, None], ridge)
        if stop.met(found.coef, found.covariance, len(pool.masks) // step):
            return n
    return None
