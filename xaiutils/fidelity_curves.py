"""What a model says while an input's components are hidden in the order of a map.

The measurement behind `fidelity`: one sort and one pass of the model per map give accuracy,
probability and logit curves at once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from tqdm import tqdm

from xaiutils import perturb, runtime
from xaiutils.data.images import as_numpy, as_real, no_nan
from xaiutils.explained import classes
from xaiutils.outputs import Classes
from xaiutils.perturb import Components, Filler
from xaiutils.storage import Storable

ORDERS = ("mif", "lif")
MEASURES = {  # name of a measure: field of `Curves`
    "accuracy": "correct",
    "probability": "probability_predicted",
    "logit": "logit_predicted",
    "probability_label": "probability_label",
    "logit_label": "logit_label",
}


@dataclass(frozen=True)
class Curves(Storable):
    """What the model said about n images at K + 1 hidden fractions, in each of O orders.

    `save` and `load` keep it in a file, `to_dict` turns it into JSON types.

    Attributes
    ----------
    fractions : (K+1,) in [0, 1]
        Share of components hidden, exactly; k/K where images differ in their number d.
    orders : tuple of "mif", "lif"
    correct : (n, O, K+1) bool
        The largest logit is that of the label.
    probability_label, probability_predicted, logit_label, logit_predicted : (n, O, K+1) float32
        Of the label, and of the class predicted for the unperturbed image. The logit is minus
        infinity where the probability is 0.
    predicted : (n,) int
        That class.
    """

    fractions: np.ndarray
    orders: tuple[str, ...]
    correct: np.ndarray
    probability_label: np.ndarray
    probability_predicted: np.ndarray
    logit_label: np.ndarray
    logit_predicted: np.ndarray
    predicted: np.ndarray

    _AXES: ClassVar = {
        "fractions": ("f", "steps"),
        "orders": ("U", "orders"),
        "correct": ("b", "n orders steps"),
        "probability_label": ("f", "n orders steps"),
        "probability_predicted": ("f", "n orders steps"),
        "logit_label": ("f", "n orders steps"),
        "logit_predicted": ("f", "n orders steps"),
        "predicted": ("iu", "n"),
    }

    def curve(self, order: str, measure: str = "accuracy") -> np.ndarray:
        """One row per image, (n, K+1).

        Parameters
        ----------
        order : "mif" or "lif"
        measure : str
            "accuracy" (1 if the label wins), "probability" or "logit" of the predicted class,
            "probability_label" or "logit_label".

        Raises
        ------
        ValueError
            If the order was not computed, the measure is unknown, or a logit is minus infinity.
        """
        if order not in self.orders:
            raise ValueError(f"order must be one of {self.orders}, got {order!r}")
        if measure not in MEASURES:
            raise ValueError(f"measure must be one of {tuple(MEASURES)}, got {measure!r}")
        values = getattr(self, MEASURES[measure])[:, self.orders.index(order)]
        if values.dtype.kind == "f" and np.isinf(values).any():
            image = int(np.isinf(values).any(axis=1).argmax())
            raise ValueError(
                f"{measure} of image {image} is minus infinity at some step, where the probability "
                'is 0: use measure "probability" or "accuracy"'
            )
        return values

    def drop(self, order: str, measure: str = "accuracy") -> np.ndarray:
        """What each image has lost of `curve` at each step, (n, K+1) float64; 0 at the first."""
        values = self.curve(order, measure).astype(float)
        return values[:, :1] - values


def area(values, fractions, end: float = 1.0) -> np.ndarray:
    """Area under curves over the hidden fractions [0, end], not divided by its length.

    Parameters
    ----------
    values : (..., K+1) array
        At `fractions`; between two of them a curve is a straight line.
    fractions : (K+1,) array
        Ascending from 0, see `Curves`.
    end : float in (0, 1]

    Returns
    -------
    (...) array
    """
    width = np.diff(fractions)
    inside = np.clip(end - fractions[:-1], 0, width)
    right = np.square(inside) / (2 * np.where(width > 0, width, 1))
    weights = np.append(inside - right, 0) + np.append(0, right)
    return values @ weights


def curves(
    model,
    x,
    y,
    scores,
    *,
    filler: Filler,
    orders: Sequence[str] = ORDERS,
    steps: int = 40,
    components: Components | Sequence[Components] | None = None,
    batch_size: int | None = None,
    device: str = "auto",
    seed: int = 0,
    outputs_are: str | None = None,
) -> Curves | dict[str, Curves]:
    """Hide components of each image in rank order and record the model's outputs.

    At step k of K = `steps`, round(k d / K) of the d components are hidden. Maps are ranked
    once; the ends, nothing and everything hidden, are computed once per image.

    Parameters
    ----------
    model : torch.nn.Module or callable
        Maps (B, *x.shape[1:]) to logits (B, classes), of two classes or more. See
        `perturb.evaluate`.
    x : (n, ...) array or tensor
        Images (n, C, H, W), or inputs of any other shape.
    y : (n,) int
        Labels.
    scores : array, or dict of arrays
        Importance, larger is more important: (n, H, W), one score per pixel, whose channels are
        hidden together; more generally (n, *tail) where `tail` broadcasts against x.shape[1:].
        With `components`, (n, d) or a list of n arrays (d,). Ties are broken at random.
        Another image's map, `scores[permutation]`, is the mask-swap control.
    filler : "mean", number, array or callable
        As in `perturb.fill`, image by image; an array of the shape of `x` holds one filler per
        image. "mean" is the mean of a component, so not for components of a single position.
    orders : sequence of "mif" (most important first), "lif" (least important first)
    components : Components or list of n Components, optional
        What is hidden together; by default single positions.
    seed : int
        Of the ties. Image i draws the same for all maps and orders: LIF is MIF reversed.
    outputs_are : {None, "logits", "probabilities"}
        What the model returns. Probabilities are recorded as they are, and their logarithms as
        logits. None takes it for logits and refuses what looks like probabilities.

    Returns
    -------
    Curves, or dict of Curves for a dict of scores

    Raises
    ------
    ValueError
        If shapes, labels, orders or filler do not fit, a score is NaN, or the outputs are not those
        of two or more classes.

    Examples
    --------
    Class 0 wins while the sum of what is shown exceeds 1. It is lost at once if the largest
    numbers go first, and late if they go last:

    >>> import numpy as np
    >>> import torch
    >>> from xaiutils import fidelity
    >>> def model(batch):
    ...     total = batch.sum(dim=1)
    ...     return torch.stack([total, torch.ones_like(total)], dim=1)
    >>> x = np.array([[0.7, 0.5, 0.3, 0.1]])
    >>> found = fidelity.curves(model, x, np.array([0]), scores=x, filler=0.0, steps=4)
    >>> found.curve("mif").astype(int), found.curve("lif").astype(int)
    (array([[1, 0, 0, 0, 0]]), array([[1, 1, 1, 0, 0]]))
    """
    scale = Classes(outputs_are)
    x = as_real(x)
    if x.ndim < 2 or len(x) == 0:
        raise ValueError(f"x must be a batch (n, ...) of inputs, got shape {x.shape}")
    if isinstance(model, torch.nn.Module):
        no_nan("x", x)
    y = classes("y", y, len(x), "class indices")
    orders = tuple(orders)
    if not orders or not set(orders) <= set(ORDERS) or len(set(orders)) < len(orders):
        raise ValueError(f"orders must be distinct names of {ORDERS}, got {orders}")
    if not isinstance(steps, int | np.integer) or steps < 1:
        raise ValueError(f"steps must be a positive integer, got {steps!r}")
    several = isinstance(scores, Mapping)
    named = dict(scores) if several else {"scores": scores}
    if not named:
        raise ValueError("scores must hold at least one map, got an empty dict")
    parts = _components(components, named, x)
    maps = [_scores(name, value, parts, components is None) for name, value in named.items()]
    filler_of = _fillers(filler, x, parts)
    prepared = runtime.forward(model, x[0], device, batch_size)  # once for all images

    table = np.empty((5, len(maps), len(x), len(orders), steps + 1), np.float32)
    for i in tqdm(range(len(x)), desc="images", delay=5, leave=False):
        hidden, step = np.unique(_hidden(parts[i].d, steps), return_inverse=True)
        masks = _masks([_ranks(m[i], seed, i) for m in maps], orders, hidden[1:-1])
        out = perturb.evaluate(
            prepared,
            x[i],
            parts[i],
            masks,
            filler_of(i),
            batch_size=batch_size,
            outputs=_recorder(i, y[i], scale),
        )
        scale.settle()
        inner = out[2:].reshape(len(maps), len(orders), len(hidden) - 2, 5)
        clean, blank = (np.broadcast_to(end, (*inner.shape[:2], 1, 5)) for end in out[:2])
        rows = np.concatenate([clean, inner, blank], axis=2)[:, :, step]
        table[:, :, i] = np.moveaxis(rows, -1, 0)

    sizes = {part.d for part in parts}
    d = sizes.pop() if len(sizes) == 1 else steps
    fractions = _hidden(d, steps) / d
    winner = table[0].astype(np.int64)
    correct = winner == y[:, None, None]
    results = {
        name: Curves(fractions, orders, correct[m], *table[1:, m], winner[m, :, 0, 0])
        for m, name in enumerate(named)
    }
    return results if several else results["scores"]


def _hidden(d, steps):
    """Numbers of components hidden at each step, (steps + 1,)."""
    return np.rint(np.arange(steps + 1) * d / steps).astype(int)


def _ranks(scores, seed, image):
    """0 for the largest score .. d - 1 for the smallest."""
    order = np.argsort(-scores)
    same = np.diff(scores[order]) == 0
    if same.any():  # only these places are sorted again, by a random number
        tied = np.append(same, False) | np.append(False, same)
        rows = order[tied]
        ties = np.random.default_rng([seed, image]).random(scores.size)
        order[tied] = rows[np.lexsort((ties[rows], -scores[rows]))]
    ranks = np.empty(scores.size, np.int32)
    ranks[order] = np.arange(scores.size)
    return ranks


def _masks(ranks, orders, hidden):
    """Nothing hidden, everything hidden, then a row per map, order and number hidden."""
    ranks = np.stack(ranks)
    maps, d = ranks.shape
    masks = np.ones((2 + maps * len(orders) * len(hidden), d), bool)
    masks[1] = False
    rows = masks[2:].reshape(maps, len(orders), len(hidden), d)
    for o, order in enumerate(orders):
        place = ranks if order == "mif" else d - 1 - ranks
        np.greater_equal(place[:, None], hidden[:, None], out=rows[:, o])
    return masks


def _recorder(image, label, scale: Classes) -> Callable:
    """Function from outputs (B, classes) to (B, 5): winner, then four fields of `Curves`.

    Rows must come in order and the first must be the unperturbed input: its winner is the
    predicted class of all.
    """
    predicted = None

    def record(out):
        nonlocal predicted
        try:
            scale.check(out)
        except ValueError as error:
            raise ValueError(f"image {image}: {error}") from None
        if label >= out.shape[1]:
            raise ValueError(f"y must hold classes 0..{out.shape[1] - 1}, got {label}")
        winner = out.argmax(axis=1)
        if predicted is None:
            predicted = winner[0]
        chosen = out[:, [label, predicted]].astype(np.float64)
        if scale.kind == "probabilities":
            return np.column_stack([winner, chosen, scale.logits(chosen)])
        top = out.max(axis=1, keepdims=True).astype(np.float64)
        total = np.exp(out - top).sum(axis=1, keepdims=True)
        return np.column_stack([winner, np.exp(chosen - top) / total, chosen])

    return record


def _components(components, named, x) -> list[Components]:
    """One partition per image."""
    if isinstance(components, Components):
        return [components] * len(x)
    if components is not None:
        components = list(components)
        if len(components) != len(x) or not all(isinstance(c, Components) for c in components):
            raise ValueError(f"components must be Components or a list of {len(x)} of them")
        return components
    tails = {np.shape(value)[1:] for value in named.values()}
    tail = tails.pop()
    try:
        fits = not tails and np.broadcast_shapes(tail, x.shape[1:]) == x.shape[1:]
    except ValueError:
        fits = False
    if not fits:
        raise ValueError(
            f"scores must all have one shape (n, *tail) where tail broadcasts against the inputs "
            f"{x.shape[1:]}, e.g. (n, H, W) for images (n, C, H, W); got "
            f"{ {name: np.shape(value) for name, value in named.items()} }"
        )
    return [Components(np.arange(np.prod(tail, dtype=int)).reshape(tail))] * len(x)


def _scores(name, values, parts, flatten) -> list[np.ndarray]:
    """Scores of one map, one array (d,) per image."""
    rows = [as_numpy(row).astype(np.float64) for row in values]
    if flatten:
        rows = [row.ravel() for row in rows]
    expected = [(part.d,) for part in parts]
    if [row.shape for row in rows] != expected:
        raise ValueError(
            f"{name}: scores must hold {len(parts)} maps, each with one score per component "
            f"(d,): got {len(rows)} of shapes {sorted({row.shape for row in rows})}"
        )
    for i, row in enumerate(rows):
        if np.isnan(row).any():
            raise ValueError(f"{name}: scores of image {i} hold NaN, which has no rank")
    return rows


def _fillers(filler, x, parts) -> Callable:
    """Function from the index of an image to its filler."""
    if isinstance(filler, str) and filler == "mean":
        if any(part.d == part.labels.size for part in parts):
            raise ValueError(
                'filler "mean" of components of one position is the input itself, nothing would '
                "be hidden; give a number, an array or a callable"
            )
    elif isinstance(filler, np.ndarray | torch.Tensor) and filler.ndim == x.ndim:
        filler = as_numpy(filler)
        if filler.shape != x.shape:
            raise ValueError(
                f"filler with one entry per image must have the shape of x, {x.shape}, "
                f"got {filler.shape}"
            )
        return lambda i: filler[i]
    return lambda i: filler
