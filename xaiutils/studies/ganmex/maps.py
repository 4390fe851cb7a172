"""One-vs-one maps of a case by several methods and baselines, and the tests put to them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from weakref import WeakKeyDictionary

import numpy as np
import pandas as pd
import torch

from xaiutils import attribution, intervals, one_vs_one, sanity
from xaiutils.classifiers import trained
from xaiutils.intervals import two_samples
from xaiutils.studies.ganmex.cases import Case, Exact, changed, generated

METHODS = ("IG", "DeepLIFT", "occlusion")
# Points of integrated gradients. Maps of digits and scenes correlate with those of 200 points to
# .998 and more, image by image.
STEPS = 24
# Maps (C, H, W) by classifier, and by its weights and what else they depend on: many figures ask
# for the same.
_known: WeakKeyDictionary[torch.nn.Module, dict[tuple, np.ndarray]] = WeakKeyDictionary()


def explain(
    case: Case, baseline, method: str, *, model: torch.nn.Module | None = None, against_target=True
) -> np.ndarray:
    """Maps (n, C, H, W) of the logit difference source - target, or of the source's logit alone.

    With one baseline DeepSHAP is DeepLIFT. Occlusion hides a pixel in all channels; its value is
    shared out among them equally.
    """
    if method not in METHODS:
        raise ValueError(f"method must be one of {METHODS}, got {method!r}")
    model = case.model if model is None else model
    against = case.target if against_target else np.full_like(case.target, -1)
    known, keys = _known.setdefault(model, {}), []
    of = trained.digest(model.state_dict()), method, STEPS
    for *images, source, other in zip(case.images, baseline, case.source, against, strict=True):
        seen = hashlib.sha256(b"".join(image.tobytes() for image in images))
        keys.append((*of, int(source), int(other), seen.digest()))
    new = [i for i, key in enumerate(keys) if key not in known]
    if new or not keys:  # no images are for the attribution to refuse
        others = against[new] if against_target else None
        found = _explain(model, case.images[new], baseline[new], method, case.source[new], others)
        known |= dict(zip([keys[i] for i in new], found, strict=True))
    return np.stack([known[key] for key in keys])


def _explain(model: torch.nn.Module, x, baseline, method: str, source, against) -> np.ndarray:
    if method == "IG":
        options = {"steps": STEPS, "batch_size": 256, "tolerance": None}
        return attribution.integrated_gradients(
            model, x, baseline, source, against=against, **options
        )
    if method == "DeepLIFT":
        return attribution.deeplift(model, x, baseline, source, against=against, batch_size=256)
    options = {"patch": 1, "baseline": baseline, "batch_size": 256}
    maps = attribution.occlusion(model, x, source, against=against, **options)
    return np.repeat(maps[:, None] / x.shape[1], x.shape[1], axis=1)


def expected(case: Case, n_samples: int, *, of_target: bool, seed: int = 0) -> np.ndarray:
    """Expected gradients over training images, all of them or those of the target class."""
    problem = case.problem
    labels = problem.train_labels.numpy()
    candidates = [np.flatnonzero(labels == k) for k in case.target] if of_target else None
    return attribution.expected_gradients(
        case.model,
        case.images,
        problem.train_images,
        case.source,
        against=case.target,
        candidates=candidates,
        n_samples=n_samples,
        seed=seed,
        batch_size=256,
    )


def explain_all(
    case: Case, baselines: Mapping[str, np.ndarray], methods: Sequence[str] = METHODS
) -> dict[tuple[str, str], np.ndarray]:
    """Maps by (method, baseline); under the method "|x - b|" a map that asks no classifier."""
    maps = {(m, name): explain(case, b, m) for m in methods for name, b in baselines.items()}
    return maps | {("|x - b|", name): np.abs(case.images - b) for name, b in baselines.items()}


def completeness(case: Case, baseline, maps) -> np.ndarray:
    """Error of the sum of each map, relative to F(x) - F(b), (n,)."""
    gap = attribution.completeness_gap(
        case.model, case.images, baseline, case.source, maps, against=case.target, batch_size=256
    )
    return np.abs(gap / (maps.sum((1, 2, 3), dtype=np.float64) - gap))


def removal(
    case: Case, maps: Mapping, fillers: Mapping[str, np.ndarray], *, share=0.3, seed=0
) -> pd.DataFrame:
    """Rows (ranking, filler, image): AOPC in logits, and as a share of what replacing all does.

    `maps` have one entry a ranking, (n, C, H, W) or (n, H, W).
    """
    scores = {name: m.sum(1) if m.ndim == 4 else m for name, m in maps.items()}
    tables = []
    for filler, images in fillers.items():
        found = one_vs_one.removal(
            case.model, case.images, case.source, case.target, scores, images,
            share=share, seed=seed,
        )  # fmt: skip
        for name, result in found.items():
            columns = {
                "ranking": name,
                "filler": filler,
                "image": np.arange(len(case.images)),
                "aopc": result.aopc(),
                "full": result.full,
                "to_target": result.to_target.mean(1),
            }
            tables.append(pd.DataFrame(columns))
    return pd.concat(tables, ignore_index=True)


def own_share(table: pd.DataFrame, first: str, second: str) -> intervals.Estimate:
    """AOPC with the ranking's own baseline as filler, as a share of replacing all: a difference.

    `table` is of `removal`. Shares are ratios of means, as some images hardly change.
    """
    own = [table[(table["ranking"] == f) & (table["filler"] == f)] for f in (first, second)]
    values = [part.sort_values("image")[["aopc", "full"]].to_numpy() for part in own]
    return two_samples(_difference_of_ratios, *values, paired=True)


def ratio(table: pd.DataFrame, filler: str, first: str, second: str) -> intervals.Estimate:
    """Mean AOPC of the ranking `first` over that of `second`, with one filler."""
    rows = table[table["filler"] == filler].sort_values("image").set_index("ranking")["aopc"]
    return two_samples(_ratio, rows[first], rows[second], paired=True)


def contrast(table: pd.DataFrame, method: str, baseline: str) -> intervals.Estimate:
    """Mean share in the digit's box where the digit differs, minus that where the scene does."""
    rows = table[(table["method"] == method) & (table["baseline"] == baseline)]
    rows = rows[rows["in box"].notna()]
    inside = rows["in box"].to_numpy()
    is_object = rows["is_object"].to_numpy(bool)
    return two_samples(_difference, inside[is_object], inside[~is_object], paired=False)


def _difference(means):
    return means[..., 0] - means[..., 1]


def _ratio(means):
    return means[..., 0] / means[..., 1]


def _difference_of_ratios(means):
    return means[..., 0] / means[..., 1] - means[..., 2] / means[..., 3]


def conversion(case: Case, maps: Mapping[str, np.ndarray]) -> pd.DataFrame:
    """DeepLIFT's digit task: rows (baseline, image), columns drop, converted, blanked, pair."""
    scores = {name: m.sum(1) for name, m in maps.items()}
    found = one_vs_one.conversion(case.model, case.images, case.source, case.target, scores)
    pair = [f"{a} to {b}" for a, b in zip(case.source, case.target, strict=True)]
    return pd.concat(
        pd.DataFrame(
            {"baseline": name, "pair": pair, "image": np.arange(len(pair)), "drop": r.drop,
             "converted": r.converted, "blanked": r.blanked}
        )
        for name, r in found.items()
    ).reset_index(drop=True)  # fmt: skip


def localisation(maps: Mapping[tuple[str, str], np.ndarray], truth: Exact) -> pd.DataFrame:
    """Rows (method, baseline, image): how much of a map lies where it should.

    Columns: "in box", the share in the digit's box (scenes), "in region", the share where the
    factor that differs lives, its "log inverse" (log of outside over inside); "in mask", the share
    on the elements that the exact counterfactual changes.
    """
    rows = []
    for (method, baseline), m in maps.items():
        columns = {
            "method": method,
            "baseline": baseline,
            "image": np.arange(len(m)),
            "is_object": truth.is_object,
            "in mask": sanity.localisation(m, truth.mask),
        }
        if truth.box is not None:
            inside = sanity.localisation(m, truth.box)
            region = np.where(truth.is_object, inside, 1 - inside)
            columns |= {"in box": inside, "in region": region}
            columns["log inverse"] = np.log(np.clip(1 - region, 1e-6, 1) / np.clip(region, 1e-6, 1))
        rows.append(pd.DataFrame(columns))
    return pd.concat(rows, ignore_index=True)


def ordering(maps: Mapping[tuple[str, str], np.ndarray], truth: Exact) -> pd.DataFrame:
    """How well integrated gradients rank what the exact counterfactual changes above the rest.

    Rows (baseline, image), columns is_object, auc, ap (see `sanity.ranking_quality`).
    """
    rows = []
    for (method, baseline), m in maps.items():
        if method == "IG":
            found = sanity.ranking_quality(m, truth.mask)
            columns = {"auc": found.auc, "ap": found.average_precision}
            key = {"baseline": baseline, "image": np.arange(len(m)), "is_object": truth.is_object}
            rows.append(pd.DataFrame(key | columns))
    return pd.concat(rows, ignore_index=True)


def cascade(
    case: Case,
    baselines: Mapping[str, np.ndarray],
    *,
    seeds: Sequence[int] = (0,),
    retrained: bool = False,
) -> pd.DataFrame:
    """Similarity of integrated gradients to those of the model with randomised layers.

    Rows (run, baseline, layers, image), a run being one draw of random weights, with columns
    signed, absolute, within (the pixels that the baseline changes visibly) and ssim. `retrained`
    has the wholly random classifier alone, and adds GANMEX's baselines made against it; it must
    be among the trainings for the case's problem and size, and the one seed is that of its run.
    """
    if retrained:
        seeds = (case.run.seed,)
    original = {name: explain(case, b, "IG") for name, b in baselines.items()}
    rows = []
    for seed in seeds:
        steps = [*enumerate(model for _, model in sanity.cascade(case.model, seed=seed))]
        steps[0] = 0, case.model  # not a copy of it, whose maps would be made again
        for k, model in steps[-1:] if retrained else steps:
            fresh = dict(baselines)
            if retrained:
                fresh["GANMEX, retrained"] = generated(case, f"randomised {k}")
            for name, b in fresh.items():
                before = original["GANMEX" if name.endswith("retrained") else name]
                after = explain(case, b, "IG", model=model)
                key = {"run": seed, "baseline": name, "layers": k, "image": np.arange(len(b))}
                rows.append(pd.DataFrame(key | similar(before, after, changed(case.images, b))))
    return pd.concat(rows, ignore_index=True)


def similar(before, after, support) -> dict[str, np.ndarray]:
    """Similarity of maps (n, C, H, W) of each image, (n,), by measure; see `cascade`."""
    found = {how: sanity.similarity(before, after, how) for how in ("signed", "absolute", "ssim")}
    return found | {"within": sanity.similarity(before, after, "within", support)}


def agreement(maps: Mapping[tuple[str, str], np.ndarray], case: Case, baselines) -> pd.DataFrame:
    """Pearson correlation of IG with DeepSHAP per image, over all pixels and within the support."""
    rows = []
    for name, b in baselines.items():
        pair = maps["IG", name], maps["DeepLIFT", name]
        rows.append(
            pd.DataFrame(
                {
                    "baseline": name,
                    "image": np.arange(len(b)),
                    "all": sanity.similarity(*pair, "pearson"),
                    "support": sanity.similarity(*pair, "pearson", changed(case.images, b)),
                }
            )
        )
    return pd.concat(rows, ignore_index=True)


def mask_test(case: Case, maps: Mapping[tuple[str, str], np.ndarray], baselines) -> pd.DataFrame:
    """Rows (method, baseline, image): the smallest part of b that, shown in x, flips the class."""
    rows = []
    for (method, name), m in maps.items():
        found = one_vs_one.mask_test(
            case.model, case.images, baselines[name], case.target, np.abs(m).sum(1)
        )
        columns = {"flip size": found.flip_size, "score": found.score, "size": found.size}
        key = {"method": method, "baseline": name, "image": np.arange(len(m))}
        rows.append(pd.DataFrame(key | columns))
    return pd.concat(rows, ignore_index=True)
