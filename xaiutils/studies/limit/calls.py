"""How many model calls each way to LIME's coefficients needs, against 1,000 default masks."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd

from xaiutils import designs, estimators, intervals, lime, limit, segment, surrogate
from xaiutils.perturb import Components
from xaiutils.studies.limit import answers
from xaiutils.studies.limit.answers import Answers, Draw

# Ways to LIME's coefficients: a design, and the ridge of the regression; None reads them off a
# surrogate instead. The first is the default of the package.
WAYS = {
    "independent, ridge 1": ("iid", 1.0),
    "paired": ("paired", 0.0),
    "orthogonal": ("orthogonal", 0.0),
    "folded": ("folded", 0.0),
    "folded, surrogate": ("folded", None),
}


def squared_errors(
    f: Callable, d: int, way: str, sizes: Sequence[int], *, repeats: int, seed, nu=0.25
) -> pd.DataFrame:
    """Squared distance to the limit without ridge of coefficients got in one of `WAYS`.

    `seed` is what `numpy.random.default_rng` takes; functions should have each their own.

    Returns
    -------
    DataFrame with columns n, repeat, error (Euclidean, over the d coefficients)
    """
    target, (design, ridge) = limit.exact(f, d, nu).coef, WAYS[way]
    rng = np.random.default_rng(seed)
    records = []
    for n in sizes:
        for repeat in range(repeats):
            masks = designs.draw(n, d, design, rng)
            coef = _fit(masks, f(masks), design, ridge, nu).coef[0]
            records.append((n, repeat, float(np.square(coef - target).sum())))
    return pd.DataFrame(records, columns=["n", "repeat", "error"])


def saved(
    frames: dict[str, dict[str, pd.DataFrame]],
    way: str,
    n: int,
    *,
    calls: int,
    default: str = "independent, ridge 1",
    seed: int = 0,
) -> intervals.Estimate:
    """Mean squared error of a way with `n` masks over that of the default with `calls`.

    `frames` are of `squared_errors`, by function and way. Functions weigh alike: mean over them of
    the ratio, with a bootstrap over repeats: the interval is for these functions.
    """
    if (way, n) == (default, calls):
        return intervals.Estimate(1.0, 1.0, 1.0, len(frames))
    ratios, drawn, fewest = [], [], np.inf
    for index, by_way in enumerate(frames.values()):
        parts = []
        for name, size in ((way, n), (default, calls)):
            frame = by_way[name]
            errors = frame.loc[frame["n"] == size, "error"].to_numpy()
            if not len(errors):
                raise ValueError(f"frames of {name!r} must have rows of n = {size}, got none")
            fewest = min(fewest, len(errors))
            counts = intervals.resamples(len(errors), seed=seed + 2 * index + len(parts))
            parts.append((errors.mean(), counts @ errors / len(errors)))
        (value, values), (base, bases) = parts
        ratios.append(value / base)
        drawn.append(values / bases)
    low, high = intervals.percentiles(np.mean(drawn, axis=0), fewest)
    return intervals.Estimate(float(np.mean(ratios)), low, high, len(frames))


def digits(model, images, rows: int, columns: int, sizes: Sequence[int]) -> Answers:
    """What `model` says of the class it takes images (n, 1, 28, 28) for, cut into cells.

    Folded masks are drawn of those of the `sizes` that they can have.
    """
    cells = Components(segment.grid((28, 28), rows, columns))
    least = 2 << (cells.d - 1).bit_length()
    plan = [Draw("folded", n, 2) for n in sizes if n >= max(32, least)]
    plan += [answers.TRUTH, Draw("iid", 1000, 1), Draw("paired", max(sizes), 1)]
    games = [answers.game(f"digit {i + 1}", model, x, cells) for i, x in enumerate(images.numpy())]
    return answers.ask(games, plan)


def replayed(
    told: Answers, way: str, sizes: Sequence[int], *, errors: Sequence[int] = (), nu=0.25
) -> pd.DataFrame:
    """Squared distance to the limit of each game's coefficients got in one of `WAYS`.

    It is the product of the distances to two independent long runs, see `answers`: right on
    average, and now and then negative. Independent and paired masks are the first n of a draw, and
    at least three for each component.

    Parameters
    ----------
    errors : sequence of int
        Sizes at which to ask how often the 95 % intervals hold.

    Returns
    -------
    DataFrame with columns n, game, repeat, error and covered, where the plan has such masks
        The share of the d intervals that hold the mean of the long runs, whose own variance is
        allowed for; NaN at other sizes.
    """
    design, ridge = WAYS[way]
    enough = [n for n in sizes if design not in ("iid", "paired") or n >= 3 * told.d.max()]
    records = []
    for game in range(len(told.names)):
        runs = told.runs(game)
        one, other = (_fit(*run, "folded", 0.0, nu).coef[0] for run in runs[answers.TRUTH[:2]])
        rest = np.square(one - other).mean() / 4  # variance of their mean
        for n in enough:
            for repeat, run in enumerate(_first(runs, design, n)):
                found = _fit(*run, design, ridge, nu)
                coef, covered = found.coef[0], np.nan
                if n in errors:
                    spread = np.sqrt(np.diagonal(found.covariance[0])[1:] + rest)
                    holds = np.abs(coef - (one + other) / 2) < 1.96 * spread
                    covered = float(holds.mean()) if np.isfinite(spread).all() else np.nan
                error = float((coef - one) @ (coef - other))
                records.append((n, game, repeat, error, covered))
    return pd.DataFrame(records, columns=["n", "game", "repeat", "error", "covered"])


def replays(
    told: Answers, sizes: Sequence[int], calls: int, *, errors: Sequence[int] = ()
) -> dict[str, pd.DataFrame]:
    """`replayed` of all `WAYS`, the default with `calls` masks too."""
    default, *others = WAYS
    found = {default: replayed(told, default, [*sizes, calls], errors=errors)}
    return found | {way: replayed(told, way, sizes, errors=errors) for way in others}


def over_games(frames: dict[str, pd.DataFrame], calls: int, *, seed: int = 0) -> pd.DataFrame:
    """`saved_over_games` of all `replays`: columns way, calls, value, low, high, n."""
    rows = [
        {"way": way, "calls": n}
        | saved_over_games(frames, way, n, calls=calls, seed=seed)._asdict()
        for way, frame in frames.items()
        for n in sorted(frame["n"].unique())
    ]
    return pd.DataFrame(rows)


def coverages(kinds: dict[str, dict[str, pd.DataFrame]], n: int, *, seed: int = 0) -> pd.DataFrame:
    """`coverage` of all ways (rows) and kinds of `replays` (columns), as texts with intervals."""
    table = {}
    for kind, frames in kinds.items():
        told = {way: frame for way, frame in frames.items() if (frame["n"] == n).any()}
        found = {way: coverage(frame, n, seed=seed) for way, frame in told.items()}
        table[kind] = {
            way: f"{share.value:.3f} [{share.low:.3f}, {share.high:.3f}]"
            for way, share in found.items()
        }
    return pd.DataFrame(table)


def left_out(told: Answers, n: int, *, seed: int = 0) -> intervals.Estimate:
    """Share of the variance of answers that the others do not tell, of n folded masks.

    Mean over games: what limits the surrogate.
    """
    shares = []
    for game in range(len(told.names)):
        masks, values = told.runs(game)["folded", n][0]
        shares.append(surrogate.fit(masks, values, link="best").left_out / values.var())
    return intervals.mean(shares, seed=seed)


def advice(by_d: dict[int, pd.DataFrame]) -> pd.DataFrame:
    """Error over the default's of folded masks off a surrogate, by number of components and calls.

    `by_d` are of `over_games`. Columns, as texts: calls, then the least of them whose interval is
    below 1, and the number of masks from which `designs.strength` is 5.
    """
    rows = {}
    for d, frame in by_d.items():
        found = frame[frame["way"] == "folded, surrogate"].set_index("calls")
        below = found.index[found["high"] < 1]
        sizes = (2**k for k in range(5, 14) if 2**k >= 2 << (d - 1).bit_length())
        strong = (f"{n:,}" for n in sizes if designs.strength(n, d, "folded") == 5)
        rows[d] = {f"{n:,}": f"{value:.2f}" for n, value in found["value"].items()} | {
            "least": f"{below.min():,}" if len(below) else f"more than {found.index.max():,}",
            "strength 5": next(strong, "more than 8,192"),
        }
    return pd.DataFrame(rows).T.fillna("").rename_axis("components")


def coverage(frame: pd.DataFrame, n: int, *, seed: int = 0) -> intervals.Estimate:
    """Share of the intervals that hold at n masks, mean over games, of a frame of `replayed`."""
    shares = frame[frame["n"] == n].groupby("game")["covered"].mean()
    if not shares.notna().any():
        raise ValueError(f"frame must tell which intervals hold at n = {n}; see errors of replayed")
    return intervals.mean(shares.to_numpy(), seed=seed).of_share()


def saved_over_games(
    frames: dict[str, pd.DataFrame], way: str, n: int, *, calls: int, seed: int = 0
) -> intervals.Estimate:
    """As `saved`, of frames of `replayed`: the ratio of means over games, which are drawn again."""
    default, *_ = WAYS
    parts = []
    for name, size in ((way, n), (default, calls)):
        rows = frames[name][frames[name]["n"] == size]
        parts.append(rows.groupby("game")["error"].mean().to_numpy())
        if rows.empty:
            raise ValueError(f"frames of {name!r} must have rows of n = {size}, got none")
    games = len(parts[0])
    drawn = intervals.resamples(games, seed=seed) @ np.column_stack(parts)
    ends = intervals.percentiles(drawn[:, 0] / drawn[:, 1], games)
    return intervals.Estimate(float(parts[0].mean() / parts[1].mean()), *ends, games)


def _first(runs, design, n):
    """The runs of n masks, or the first n masks of the runs whose masks have no order."""
    if design not in ("iid", "paired"):
        return runs.get((design, n), [])
    longest = max(size for kind, size in runs if kind == design)
    if n > longest:
        return []
    return [(masks[:n], values[:n]) for masks, values in runs[design, longest]]


def _fit(masks, values, design, ridge, nu):
    estimator = "regression" if ridge is not None else "surrogate"
    return estimators.estimate(
        masks, lime.kernel(masks, nu), values[:, None], width=nu, ridge=ridge, design=design,
        estimator=estimator, link="best", seed=0,
    )  # fmt: skip
