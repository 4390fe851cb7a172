"""Ours beside other packages at the same number of model calls; theirs are kept in a file.

`data/peers.json` holds squared errors of LIME coefficients by `lime` and captum and of Shapley
values by captum and shapiq, on the games of notebook 02 whose exact values are known. `make peers`
makes it anew. A call is a mask that the package asks the model about, the full and the empty one
and repeated ones too; they were counted, and none asks for more than n.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from xaiutils import designs, lime, limit, surrogate
from xaiutils.data import assets
from xaiutils.studies.limit.calls import saved
from xaiutils.surrogate_weights import stratified

PATH = assets.DATA / "peers.json"
SHA256 = "1099471bb0e3e8e488b69310d953b35155f62dfe4b33d9162e3312d3a4cdda1a"  # of the file there
KIND, VERSION = "xaiutils peers", 1
TARGETS = ("LIME", "Shapley")
SIZES, DEFAULT = (64, 128, 256, 512), 1000  # calls; LIME's default number
SAME = 1e-4  # largest difference of exact values that networks make on another machine


def exact_values(f: Callable, d: int) -> dict[str, np.ndarray]:
    """What is estimated, (d,) each: LIME's limit without ridge and the Shapley values."""
    return {"LIME": limit.exact(f, d).coef, "Shapley": limit.shapley(f, d)}


def ours(f: Callable, d: int, sizes: Sequence[int] = SIZES, *, repeats: int, seed) -> pd.DataFrame:
    """Squared errors of ours on one game.

    Both targets are read off the same surrogates of n folded masks; LIME's coefficients also come
    from a weighted regression without ridge. Shapley values count on masks that keep few or most,
    which are rare among folded ones: they are read off surrogates of `by_size` masks, too.

    Returns
    -------
    DataFrame with columns target, method, n, repeat, error, calls
        As in `frames`; the error is Euclidean, over the d values, and squared.
    """
    exact, rng = exact_values(f, d), np.random.default_rng(seed)
    other = np.random.default_rng([*np.atleast_1d(seed).tolist(), 1])
    records = []
    for n in sizes:
        for repeat in range(repeats):
            masks, sized = designs.draw(n, d, "folded", rng), by_size(n, d, other)
            values = f(masks)
            process = surrogate.fit(masks, values, link="best")
            line = lime.fit(masks, lime.kernel(masks), values[:, None], 0.0)
            spread = surrogate.fit(sized, f(sized), link="best")
            for target, method, found in (
                ("LIME", "ours: folded, regression", line.coef[0]),
                ("LIME", "ours: folded, surrogate", process.lime()[1]),
                ("Shapley", "ours: folded, surrogate", process.shapley()[0]),
                ("Shapley", "ours: by size, surrogate", spread.shapley()[0]),
            ):
                error = float(np.square(found - exact[target]).sum())
                records.append((target, method, n, repeat, error, len(masks)))
    return pd.DataFrame(records, columns=["target", "method", "n", "repeat", "error", "calls"])


def by_size(n: int, d: int, rng: np.random.Generator) -> np.ndarray:
    """n different masks (n, d) and complements, all and nothing first, of Kernel SHAP's sizes."""
    if n % 2 or not 2 <= n <= 2**d:
        raise ValueError(f"n must be even and from 2 to {2**d}, got {n}")
    pairs = {}
    while len(pairs) < n // 2:
        for row in stratified(n // 2, d, rng)[::-1]:
            pairs.setdefault(min(bytes(row), bytes(~row)), row)
    return np.stack([(row, ~row) for row in pairs.values()]).reshape(-1, d)[:n]


def frames(path=PATH) -> pd.DataFrame:
    """Results of the other packages.

    Returns
    -------
    DataFrame with columns target, method, kind, game, n, repeat, error, calls
        `n` is what the package was told, `calls` what it asked for.

    Raises
    ------
    ValueError
        If the file was not written by `save`, or was changed since.
    OSError
        If it cannot be read.
    """
    found = load(path)
    return pd.DataFrame(
        {
            "target": record["target"],
            "method": record["method"],
            "kind": found["games"][record["game"]]["kind"],
            "game": record["game"],
            "n": record["n"],
            "repeat": repeat,
            "error": error,
            "calls": calls,
        }
        for record in found["records"]
        for repeat, (error, calls) in enumerate(zip(record["errors"], record["calls"], strict=True))
    )


def by_game(frame: pd.DataFrame, target: str, kind: str) -> dict[str, dict[str, pd.DataFrame]]:
    """Frames by game and method, as `calls.saved` takes them."""
    chosen = frame[(frame["target"] == target) & (frame["kind"] == kind)]
    return {
        game: dict(iter(rows.groupby("method", sort=False)))
        for game, rows in chosen.groupby("game", sort=False)
    }


def ratios(
    frame: pd.DataFrame, target: str, kind: str, default: str, *, calls: int | None, seed: int = 0
) -> pd.DataFrame:
    """Mean squared error of each method over that of `default` with `calls`, or with as many.

    Returns
    -------
    DataFrame with columns way, calls, value, low, high, n
        Means over games with a bootstrap over repeats, see `calls.saved`; n is their number.
    """
    games = by_game(frame, target, kind)
    return pd.DataFrame(
        {"way": method, "calls": n}
        | saved(games, method, n, calls=calls or n, default=default, seed=seed)._asdict()
        for method, rows in next(iter(games.values())).items()
        for n in sorted(rows["n"].unique().tolist())
    )


def same(game: str, f: Callable, d: int, path=PATH) -> bool:
    """Whether `f` is the game of this name in the file: exact values differ by at most `SAME`."""
    told = load(path)["games"].get(game)
    if told is None or told["d"] != d:
        return False
    exact = exact_values(f, d)
    return all(np.abs(exact[target] - told[target]).max() <= SAME for target in TARGETS)


def load(path=PATH) -> dict:
    """What `save` wrote; raises as `frames` does."""
    path = Path(path)
    content = path.read_bytes()
    sha256 = hashlib.sha256(content).hexdigest()
    if path == PATH and sha256 != SHA256:
        raise ValueError(
            f"{path} must have sha256 {SHA256}, got {sha256}; after make peers put that into "
            "xaiutils/studies/limit/peers.py"
        )
    try:
        found = json.loads(content)
    except ValueError as error:
        raise ValueError(f"{path} is no JSON ({error}); make peers writes it anew") from None
    if not isinstance(found, dict) or found.get("kind") != KIND:
        raise ValueError(f"{path} is not of the kind {KIND!r}; make peers writes it anew")
    if found.get("version") != VERSION:
        raise ValueError(
            f"{path} has version {found.get('version')!r}, not {VERSION}; make peers writes it anew"
        )
    if found.get("sha256") != _digest(found):
        raise ValueError(f"{path} was changed after it was written; make peers writes it anew")
    return found


def save(path=PATH, *, games: dict, records: list[dict], seeds: dict, versions: dict):
    """Write results, one record a line.

    Parameters
    ----------
    path : str or path
    games : dict of dict
        Of each game d, kind, and its exact values, by the names in `TARGETS`.
    records : list of dict
        target, game, method, n, and per repeat `errors` and `calls`.
    seeds, versions : dict
        By where a package ran.

    Raises
    ------
    ValueError
        If a record is none, its game unknown, an error not finite, or calls exceed n.
    """
    keys = {"target", "game", "method", "n", "errors", "calls"}
    for record in records:
        name = f"{record.get('method')} on {record.get('game')}, n = {record.get('n')}"
        if set(record) != keys or record["game"] not in games or record["target"] not in TARGETS:
            raise ValueError(f"{name}: keys must be {sorted(keys)}, game and target known")
        if len(record["errors"]) != len(record["calls"]) or not np.isfinite(record["errors"]).all():
            raise ValueError(f"{name}: there must be as many finite errors as calls")
        if max(record["calls"]) > record["n"]:
            raise ValueError(f"{name}: made {max(record['calls'])} calls")
    found = {
        "kind": KIND,
        "version": VERSION,
        "versions": versions,
        "seeds": seeds,
        "games": {
            name: {"d": game["d"], "kind": game["kind"]}
            | {target: [round(float(v), 7) for v in game[target]] for target in TARGETS}
            for name, game in games.items()
        },
        "records": [
            record | {"errors": [float(f"{error:.4g}") for error in record["errors"]]}
            for record in records
        ],
    }
    found["sha256"] = _digest(found)
    lines = ",\n  ".join(json.dumps(record) for record in found.pop("records"))
    head = json.dumps(found, indent=1)[:-2]
    Path(path).write_text(f'{head},\n "records": [\n  {lines}\n ]\n}}\n', encoding="utf-8")


def _digest(found):
    rest = {key: value for key, value in found.items() if key != "sha256"}
    text = json.dumps(rest, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
