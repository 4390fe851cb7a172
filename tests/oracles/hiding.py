"""Scores of maps by hiding pixels, one image, step and pixel at a time."""

import math
from itertools import combinations

import numpy as np
from scipy import ndimage
from scipy.stats import spearmanr

from oracles.problems import Tanh, answer, softmax
from oracles.registry import oracle_of
from xaiutils import fidelity, fidelity_curves, one_vs_one
from xaiutils.intervals import resamples
from xaiutils.perturb import Components

N, SHAPE = 3, (2, 4, 5)
PIXELS = np.arange(20).reshape(4, 5)
COARSE = np.array([[0, 0, 1, 1, 1], [0, 2, 2, 1, 0], [2, 2, 0, 0, 1], [2, 0, 1, 2, 2]])


class Steep(Tanh):
    """Changes its mind within small changes of the input."""

    def forward(self, x):
        return 8 * super().forward(3 * (x - 0.5))


def best_first(scores):
    return sorted(range(len(scores)), key=lambda j: -scores[j])


# --- curves ---------------------------------------------------------------------------------------


def classified(rng):
    model, x = Steep(rng, 40, classes=4), rng.random((N, *SHAPE))
    y = np.array([answer(model, image).argmax() for image in x])
    y[0] = (y[0] + 1) % 4  # one is classified wrongly
    return {"model": model, "x": x, "y": y, "scores": rng.random((N, 4, 5)), "filler": 0.25}


def with_superpixels(rng):
    components = [Components(COARSE), Components(PIXELS // 4), Components(COARSE)]
    own = {"components": components, "scores": [rng.random(part.d) for part in components]}
    return {**classified(rng), **own, "filler": "mean"}


def curves_of_map(model, x, y, scores, parts, filler, steps, orders):
    names = ("correct", "probability_label", "probability_predicted", "logit_label")
    names += ("logit_predicted",)
    found = {name: np.empty((N, len(orders), steps + 1)) for name in names}
    predicted = []
    for i, image in enumerate(x):
        labels, d = parts[i].labels, parts[i].d
        own = filler[i] if np.ndim(filler) == 4 else filler
        blank = parts[i].means(image) if isinstance(filler, str) else own + 0 * image
        predicted.append(answer(model, image).argmax())
        for o, order in enumerate(orders):
            ranking = best_first(np.ravel(scores[i]))[:: 1 if order == "mif" else -1]
            for k in range(steps + 1):
                gone = ranking[: round(k * d / steps)]
                logits = answer(model, np.where(np.isin(labels, gone), blank, image))
                share, classes = softmax(logits), (y[i], predicted[i])
                numbers = (*(share[c] for c in classes), *(logits[c] for c in classes))
                for name, number in zip(names, (logits.argmax() == y[i], *numbers), strict=True):
                    found[name][i, o, k] = number
    sizes = {part.d for part in parts}
    d = sizes.pop() if len(sizes) == 1 else steps
    fractions = np.array([round(k * d / steps) / d for k in range(steps + 1)])
    found["correct"] = found["correct"] == 1
    return {**found, "fractions": fractions, "predicted": np.array(predicted), "orders": orders}


@oracle_of(
    fidelity_curves.curves,
    classified,
    [
        {"steps": 7},
        {"steps": 33, "orders": ("lif",)},
        {"steps": 4, "filler": np.random.default_rng(9).random((N, *SHAPE))},
    ],
    rtol=1e-5,
)
@oracle_of(fidelity_curves.curves, with_superpixels, [{"steps": 5}], rtol=1e-5)
@oracle_of(
    fidelity_curves.curves,
    lambda rng: {
        **classified(rng),
        "components": Components(COARSE),
        "scores": rng.random((N, 3)),
    },
    [{"steps": 3}],
    rtol=1e-5,
)
@oracle_of(
    fidelity_curves.curves,
    lambda rng: {
        **classified(rng),
        "scores": {name: rng.random((N, 4, 5)) for name in "ab"},
        "steps": 3,
    },
    rtol=1e-5,
)
def curves(model, x, y, scores, *, filler, steps, orders=("mif", "lif"), components=None):
    shared = Components(PIXELS) if components is None else components
    parts = shared if isinstance(shared, list) else [shared] * N
    if not isinstance(scores, dict):
        return curves_of_map(model, x, y, scores, parts, filler, steps, orders)
    each = {name: (model, x, y, own, parts, filler, steps, orders) for name, own in scores.items()}
    return {name: curves_of_map(*arguments) for name, arguments in each.items()}


@oracle_of(
    fidelity_curves.area,
    lambda rng: {
        "values": rng.normal(size=(2, 3, 5)),
        "fractions": np.array([0, 0.1, 0.3, 0.9, 1]),
    },
    [{}, {"end": 0.2}, {"end": 0.05}, {"end": 0.9}],
)
def area(values, fractions, end=1.0):
    """Trapezoids between all the places where a curve has a corner or is cut."""
    places = np.array([*(f for f in fractions if f < end), end])
    return np.apply_along_axis(
        lambda row: np.trapezoid(np.interp(places, fractions, row), places), -1, values
    )


# --- summaries ------------------------------------------------------------------------------------


def measured(rng):
    """Curves of three methods and a random ranking for 12 images."""
    fractions, found = np.array([0, 0.1, 0.3, 0.45, 0.8, 1]), {}
    image, ends = rng.random((12, 1, 1)) + 1 - fractions, fractions * (1 - fractions)
    for name in ("a", "b", "random", "c"):
        moved = image + rng.normal(size=(5, 12, 2, 6)) * ends
        found[name] = fidelity.Curves(
            fractions, ("mif", "lif"), moved[0] > 0.9, *moved[1:], np.zeros(12, int)
        )
    return {"curves": found, "draws": 30, "seed": 4}


FIELDS = {"accuracy": "correct", "probability": "probability_predicted", "logit": "logit_predicted"}


def mean_curves(one, rows, measure):
    values = getattr(one, FIELDS[measure]).astype(float)
    return [sum(values[i, o] for i in rows) / len(rows) for o in (0, 1)]


def ratio(a, b):
    return a / b if abs(b) > 1e-12 else math.nan


def quantities(curves, method, rows, measure, random, f_max):
    """All of `fidelity.summary` for one method on the images `rows`."""
    means = {name: mean_curves(one, rows, measure) for name, one in curves.items()}
    f = curves[method].fractions
    falls = {name: lif[0] - lif for name, (_, lif) in means.items()}
    common = np.min([fall for name, fall in falls.items() if name != random], axis=0)
    mif, lif = means[method]
    drop, fall, gap = mif[0] - mif, falls[method], lif - mif
    found = {
        "auc_mif": area(mif, f), "auc_lif": area(lif, f), "F": area(gap, f),
        "F/(a0-a1)": ratio(area(gap, f), mif[0] - mif[-1]), "D": area(drop, f),
        "P": area(fall, f), "P/D": ratio(area(fall, f), area(drop, f)), "P*": area(common, f),
        "F*": area(drop - common, f), "P*/D": ratio(area(common, f), area(drop, f)),
        "F_trunc": area(gap, f, f_max), "D_trunc": area(drop, f, f_max),
        "P_trunc": area(fall, f, f_max),
        "P/D_trunc": ratio(area(fall, f, f_max), area(drop, f, f_max)),
    }  # fmt: skip
    if random in curves:
        mif_r, lif_r = means[random]
        reference = area(mif_r[0] - (mif_r + lif_r) / 2, f)
        found["gain_mif"] = area(drop, f) - reference
        found["gain_lif"] = reference - area(fall, f)
        found["F-F_random"] = area(gap, f) - area(lif_r - mif_r, f)
    mif, lif = mean_curves(curves[method], rows, "probability")
    deletion, insertion = area(mif, f), area(lif[::-1], 1 - f[::-1])
    found |= {"SRG": insertion - deletion, "AOPC": sum(mif[0] - mif[1:]) / (len(mif) - 1)}
    return found | {"deletion": deletion, "insertion": insertion}


def with_intervals(statistic, draws, seed, level):
    """Each value of a dict on all 12 images, and its percentiles over the given resamples."""
    again = [np.repeat(np.arange(12), times) for times in resamples(12, draws=draws, seed=seed)]
    drawn, found = [statistic(rows) for rows in again], {}
    for name, value in statistic(np.arange(12)).items():
        values = [one[name] for one in drawn if not math.isnan(one[name])]
        low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
        found[name] = value, low, high, 12
    return found


def rows_of(table, *keys):
    """Each row of a table, under its keys."""
    rows = table.set_index([*keys]).itertuples()
    return {" of ".join(row.Index) if len(keys) > 1 else row.Index: tuple(row)[1:] for row in rows}


@oracle_of(
    fidelity.Curves.drop,
    measured,
    [{"order": "lif"}, {"order": "mif", "measure": "logit"}],
    call=lambda curves, order, measure="accuracy", **_: curves["a"].drop(order, measure),
)
def drop(curves, order, measure="accuracy", **_):
    values = getattr(curves["a"], FIELDS[measure])[:, ("mif", "lif").index(order)].astype(float)
    return np.array([[row[0] - value for value in row] for row in values])


@oracle_of(
    fidelity.summary,
    measured,
    [{"draws": 4}, {"measure": "logit", "f_max": 0.37, "level": 0.8, "random": "none"}],
    call=lambda **options: rows_of(fidelity.summary(**options), "quantity", "method"),
)
def summary(curves, *, draws, seed, measure="accuracy", random="random", f_max=0.5, level=0.95):
    found = {}
    for method in curves:

        def statistic(rows, method=method):
            return quantities(curves, method, rows, measure, random, f_max)

        estimates = with_intervals(statistic, draws, seed, level).items()
        found |= {f"{quantity} of {method}": estimate for quantity, estimate in estimates}
    return found


@oracle_of(
    fidelity.difference,
    lambda rng: {**measured(rng), "a": "c", "b": "a"},
    [{}, {"quantity": "P*/D"}],
)
def difference(curves, a, b, quantity="F", *, draws, seed):
    def statistic(rows):
        one, other = (
            quantities(curves, method, rows, "accuracy", "random", 0.5)[quantity]
            for method in (a, b)
        )
        return {"difference": one - other}

    return with_intervals(statistic, draws, seed, 0.95)["difference"]


@oracle_of(
    fidelity.rank_agreement,
    lambda rng: {
        "tables": {filler: measured(rng)["curves"] for filler in ("zero", "mean", "blur")}
    },
    [{"draws": 25, "seed": 1, "measure": "logit", "level": 0.9}],
    call=lambda **options: rows_of(fidelity.rank_agreement(**options), "quantity"),
)
def rank_agreement(tables, *, draws, seed, measure, level):
    def statistic(rows):
        each = [
            [quantities(table, method, rows, measure, "random", 0.5) for method in ("a", "b", "c")]
            for table in tables.values()
        ]
        found = {}
        for name in ("auc_mif", "auc_lif", "F"):
            scores = [[method[name] for method in table] for table in each]
            found[name] = np.mean([spearmanr(*pair).statistic for pair in combinations(scores, 2)])
        found["F-auc_mif"] = found["F"] - found["auc_mif"]
        found["F-auc_lif"] = found["F"] - found["auc_lif"]
        return found

    return with_intervals(statistic, draws, seed, level)


# --- one against one ------------------------------------------------------------------------------


def pairs(rng):
    return {
        "model": Steep(rng, 40),
        "x": rng.random((N, *SHAPE)),
        "source": np.array([0, 1, 2]),
        "target": np.array([2, 0, 1]),
        "scores": rng.normal(size=(N, 4, 5)),
    }


def margin(model, image, source, target):
    logits = answer(model, image)
    return logits[source] - logits[target]


def replaced(image, filler, pixels):
    """`image` with these pixels, numbers 0..19, of `filler`."""
    return np.where(np.isin(PIXELS, pixels), filler, image)


def removals(rng):
    return {**pairs(rng), "filler": rng.random((N, *SHAPE)), "share": 0.5, "step": 0.05}


@oracle_of(one_vs_one.removal, removals, [{}, {"share": 0.3, "step": 0.01}, {"filler": 0.1}])
def removal(model, x, source, target, scores, filler, *, share, step):
    steps = round(share / step)
    number = [round(k * step * 20) for k in range(steps + 1)]
    rows = []
    for i, (image, o, t) in enumerate(zip(x, source, target, strict=True)):
        blank = filler[i] if np.ndim(filler) else filler + 0 * image
        before = margin(model, image, o, t)
        full, ranking = before - margin(model, blank, o, t), best_first(scores[i].ravel())
        images = [replaced(image, blank, ranking[:k]) for k in number]
        drop = np.array([before - margin(model, one, o, t) for one in images])
        winners = np.array([answer(model, one).argmax() for one in images])
        rows.append((drop, full, winners == t, winners != o, drop / full))
    names = ("drop", "full", "to_target", "from_source", "normalised")
    found = {
        name: np.array(part) for name, part in zip(names, zip(*rows, strict=True), strict=True)
    }
    return {**found, "fractions": np.array(number) / 20}


@oracle_of(
    one_vs_one.Removal.aopc,
    removals,
    [{"normalised": False}, {"normalised": True}],
    call=lambda normalised, **options: one_vs_one.removal(**options).aopc(normalised),
)
def aopc(normalised, **options):
    rows = removal(**options)["normalised" if normalised else "drop"]
    return np.array([sum(row) / len(row) for row in rows])


@oracle_of(
    one_vs_one.conversion,
    pairs,
    [{"share": 0.2}, {"share": 0.9, "blank": 0.3}, {"share": 1.0}, {"share": 0.05}],
)
def conversion(model, x, source, target, scores, *, share, blank=0.0):
    rows = []
    for image, o, t, own in zip(x, source, target, scores, strict=True):
        ranking = best_first(own.ravel())[: round(share * 20)]
        gone = [pixel for pixel in ranking if own.ravel()[pixel] > 0]
        left = margin(model, replaced(image, blank, gone), o, t)
        rows.append((margin(model, image, o, t) - left, left < 0, len(gone) / 20))
    return tuple(np.array(part) for part in zip(*rows, strict=True))


def disc(radius):
    offsets = np.arange(-radius, radius + 1)
    return offsets[:, None] ** 2 + offsets**2 <= radius**2


def grown(scores, count, radius):
    """The `count` pixels of largest |scores| and their ties, small gaps closed.

    Beyond the border nothing is taken for grown and nothing for missing.
    """
    size = np.abs(scores)
    mask = size >= np.sort(size.ravel())[::-1][count - 1] if count else np.zeros(size.shape, bool)
    mask = ndimage.binary_dilation(mask, disc(radius), border_value=0)
    return ndimage.binary_erosion(mask, disc(radius), border_value=1)


@oracle_of(
    one_vs_one.mask_test,
    lambda rng: {**pairs(rng), "baseline": rng.random((N, *SHAPE))},
    [
        {"n_thresholds": 20, "closing": 0, "sigma": 0},
        {"n_thresholds": 9, "closing": 1, "sigma": 0.5},
        {"n_thresholds": 100, "closing": 2, "sigma": 1.5},
        {"n_thresholds": 12, "scores": np.round(np.random.default_rng(2).normal(size=(N, 4, 5)))},
    ],
    call=lambda source, **options: one_vs_one.mask_test(**options),
)
def mask_test(model, x, baseline, source, target, scores, *, n_thresholds, closing=1, sigma=0.5):
    steps, rows = min(n_thresholds, 20), []
    for image, other, t, own in zip(x, baseline, target, scores, strict=True):
        masks = [grown(own, round(k * 20 / steps), closing) for k in range(steps + 1)]
        soft = [ndimage.gaussian_filter(mask.astype(float), sigma) for mask in masks]
        logits = [answer(model, other * m + image * (1 - m)) for m in soft]
        gains = np.array([softmax(v)[t] for v in logits]) - softmax(answer(model, image))[t]
        sizes, flips = np.array([mask.mean() for mask in masks]), [v.argmax() == t for v in logits]
        best = min(range(steps + 1), key=lambda k: sizes[k] - gains[k])
        flip_size = min([1.0, *sizes[flips]])
        score = gains[best] - sizes[best]
        rows.append((sizes, gains, flips, sizes[best], gains[best], score, flip_size))
    names = ("sizes", "gains", "flips", "size", "gain", "score", "flip_size")
    return {name: np.array(part) for name, part in zip(names, zip(*rows, strict=True), strict=True)}
