"""Shapley values of the games of `xaiutils.studies.limit.peer_runs` by approximators of shapiq.

``python with_shapiq.py GAMES.npz RESULT.json`` needs only numpy and what requirements-peers.lock
pins; ``make peers`` calls it.

Sources: Lundberg and Lee 2017 (arXiv:1705.07874) for Kernel SHAP, Musco and Witter 2025
(arXiv:2410.01917) for Leverage SHAP, Witter, Liu and Musco 2025 (arXiv:2506.11849) for Regression
MSR, Fumagalli et al. 2026 (arXiv:2602.01399) for OddSHAP, Muschalik et al. 2024 (arXiv:2410.01649)
for the package.
"""

import importlib.metadata
import json
import platform
import sys
import warnings
from pathlib import Path

import numpy as np
import shapiq

SIZES, REPEATS, SEED = (64, 128, 256, 512), 20, 0
# With their default settings; Kernel SHAP also in pairs, as it is used elsewhere.
METHODS = {
    "shapiq Kernel SHAP": lambda d, seed: shapiq.KernelSHAP(d, random_state=seed),
    "shapiq Kernel SHAP, paired": lambda d, seed: shapiq.KernelSHAP(
        d, pairing_trick=True, random_state=seed
    ),
    "shapiq Leverage SHAP": lambda d, seed: shapiq.LeverageSHAP(d, random_state=seed),
    "shapiq OddSHAP": lambda d, seed: shapiq.OddSHAP(d, random_state=seed),
    "shapiq Regression MSR": lambda d, seed: shapiq.RegressionMSR(d, index="SV", random_state=seed),
}
PACKAGES = ("shapiq", "numpy", "scikit-learn", "lightgbm", "xgboost-cpu")


class Game:
    """Answers looked up in a table, row i being the mask with bit j of i at j; counts them."""

    def __init__(self, table):
        self.table, self.d, self.calls = table, len(table).bit_length() - 1, 0

    def __call__(self, masks):
        masks = np.atleast_2d(np.asarray(masks, bool))
        self.calls += len(masks)
        return self.table[masks @ (1 << np.arange(self.d))]


def run(table, exact, method, n, seed):
    """Squared error of one estimate with n calls at most, and the calls made."""
    game = Game(table)
    found = METHODS[method](game.d, seed).approximate(n, game)
    values = found.get_n_order_values(1)
    return float(np.square(values - exact).sum()), game.calls


def main(games, result):
    # Column names that scikit-learn expects of gradient boosting, and pairs that do not fit.
    warnings.simplefilter("ignore")
    tables, records = np.load(games), []
    names = sorted(key.removesuffix("/table") for key in tables if key.endswith("/table"))
    for index, name in enumerate(names):
        for method in METHODS:
            for n in SIZES:
                seeds = np.random.SeedSequence((SEED, index, n)).generate_state(REPEATS).tolist()
                runs = [
                    run(tables[f"{name}/table"], tables[f"{name}/Shapley"], method, n, seed)
                    for seed in seeds
                ]
                errors, calls = zip(*runs, strict=True)
                record = {"target": "Shapley", "game": name, "method": method, "n": n}
                records.append(record | {"errors": errors, "calls": calls})
        print(name, file=sys.stderr)
    versions = {name: importlib.metadata.version(name) for name in PACKAGES}
    versions["python"] = platform.python_version()
    Path(result).write_text(json.dumps({"versions": versions, "seed": SEED, "records": records}))


if __name__ == "__main__":
    main(*sys.argv[1:])
