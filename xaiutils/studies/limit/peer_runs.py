"""Other packages on the games of notebook 02 whose exact values are known: `data/peers.json`.

``make peers`` calls this with "games", to write tables and exact values; with "here", to run captum
and lime; a script that runs shapiq (tests/peers/with_shapiq.py) in an environment of its own; and
this with "all", to put the file together.

Sources: Ribeiro, Singh and Guestrin 2016 (arXiv:1602.04938) for LIME; Lundberg and Lee 2017
(arXiv:1705.07874) for Kernel SHAP; Muschalik et al. 2024 (arXiv:2410.01649) for shapiq.
"""

from __future__ import annotations

import importlib.metadata
import json
import platform
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from captum._utils.models.linear_model import SkLearnLasso, SkLearnLinearRegression
from captum.attr import KernelShap, Lime
from captum.attr._core.lime import get_exp_kernel_similarity_function

from xaiutils import limit, segment
from xaiutils.classifiers import digits, imagenet
from xaiutils.data import datasets
from xaiutils.perturb import Components
from xaiutils.runtime import predicted
from xaiutils.studies.limit import experiments as study
from xaiutils.studies.limit import models, peers

REPEATS, SEED = 20, 0
PHOTOGRAPHS, N_DIGITS = (0, 16), 4
KINDS = {"photograph": "photographs, 12 cells", "digit": "digits, 16 cells"}


class Counted:
    """A game, and how many masks it was asked for."""

    def __init__(self, f: Callable):
        self.f, self.calls = f, 0

    def __call__(self, masks):
        self.calls += len(masks)
        return self.f(np.asarray(masks, bool))


def games() -> dict[str, np.ndarray]:
    """Answers to all masks, as in notebook 02: two photographs of 12 cells, four digits of 16."""
    lite0 = torch.nn.Sequential(imagenet.load("efficientnet_lite0"), torch.nn.Softmax(dim=1)).eval()
    digit_net = torch.nn.Sequential(digits.load(), torch.nn.Softmax(dim=1)).eval()
    tables, images = {}, datasets.imagenet_samples().images
    cells = Components(segment.grid((224, 224), 3, 4))
    for i in PHOTOGRAPHS:
        top = int(lite0(images[i][None]).argmax())
        tables[f"photograph {i + 1}"] = study.table(lite0, images[i], cells, top)
    tried, cells = datasets.mnist().test_images[:N_DIGITS], Components(segment.grid((28, 28), 4, 4))
    for i, top in enumerate(predicted(digit_net, tried)):
        tables[f"digit {i + 1}"] = study.table(digit_net, tried[i].numpy(), cells, top)
    return {name: np.asarray(table, np.float64) for name, table in tables.items()}


def lime_package(f, d: int, n: int, seed: int) -> np.ndarray:
    """Coefficients (d,) that the package `lime` finds with its defaults, a pixel per component."""
    found = models.package(
        np.ones((1, d)), lambda batch: f(batch[:, 0, :, 0] > 0.5)[:, None], seed,
        segmentation_fn=lambda _: np.arange(d)[None], hide_color=0, top_labels=1, num_samples=n,
    )  # fmt: skip
    return np.array([weight for _, weight in sorted(found.local_exp[0])])


def captum_lime(f, d: int, n: int, seed: int, *, line=SkLearnLinearRegression) -> np.ndarray:
    """Coefficients (d,) of captum with LIME's kernel; its own regression is a lasso."""
    kernel = get_exp_kernel_similarity_function("cosine", kernel_width=0.25)
    return _captum(Lime(_forward(f), line(), kernel), d, n, seed)


def captum_lasso(f, d: int, n: int, seed: int) -> np.ndarray:
    """The same with the lasso that captum uses unless told otherwise."""
    return captum_lime(f, d, n, seed, line=lambda: SkLearnLasso(alpha=0.01))


def captum_kernel_shap(f, d: int, n: int, seed: int) -> np.ndarray:
    """Shapley values (d,) by captum's Kernel SHAP."""
    return _captum(KernelShap(_forward(f)), d, n, seed)


METHODS = {
    "LIME": {
        "lime": lime_package,
        "captum Lime, regression": captum_lime,
        "captum Lime, lasso": captum_lasso,
    },
    "Shapley": {"captum Kernel SHAP": captum_kernel_shap},
}


def here(tables: dict[str, np.ndarray], exact: dict, *, repeats=REPEATS, seed=SEED) -> list[dict]:
    """Records of `METHODS` on games given by their tables, see `peers.load`."""
    records = []
    for index, (name, table) in enumerate(tables.items()):
        for target, methods in METHODS.items():
            for method, estimate in methods.items():
                sizes = peers.SIZES + (peers.DEFAULT,) * (method == "lime")
                for n in sizes:
                    seeds = np.random.SeedSequence((seed, index, n)).generate_state(repeats)
                    errors, calls = [], []
                    for one in seeds.tolist():
                        f = Counted(limit.lookup(table))
                        found = estimate(f, len(table).bit_length() - 1, n, one)
                        errors.append(float(np.square(found - exact[name][target]).sum()))
                        calls.append(f.calls)
                    record = {"target": target, "game": name, "method": method, "n": n}
                    records.append(record | {"errors": errors, "calls": calls})
    return records


def _forward(f):
    return lambda z: torch.from_numpy(np.asarray(f(z.numpy() > 0.5), np.float64))


def _captum(explainer, d, n, seed):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        found = explainer.attribute(torch.ones(1, d), n_samples=n, perturbations_per_eval=n)
    return found[0].numpy().astype(np.float64)


def write_games(path):
    arrays = {}
    for name, table in games().items():
        for target, values in peers.exact_values(limit.lookup(table), _d(table)).items():
            arrays[f"{name}/{target}"] = values
        arrays[f"{name}/table"] = table
    np.savez(path, **arrays)


def write_here(games_path, result):
    tables, exact = _read(games_path)
    names = ("captum", "lime", "torch", "numpy", "scikit-learn")
    versions = {name: importlib.metadata.version(name) for name in names}
    versions["python"] = platform.python_version()
    found = {"versions": versions, "seed": SEED, "records": here(tables, exact)}
    Path(result).write_text(json.dumps(found))


def write_all(games_path, *results):
    tables, exact = _read(games_path)
    found = {Path(path).stem: json.loads(Path(path).read_text()) for path in results}
    peers.save(
        games={
            name: {"d": _d(table), "kind": KINDS[name.split()[0]], **exact[name]}
            for name, table in tables.items()
        },
        records=[record for each in found.values() for record in each["records"]],
        seeds={name: each["seed"] for name, each in found.items()},
        versions={name: each["versions"] for name, each in found.items()},
    )


def _read(path):
    """Tables and exact values by game, as `write_games` wrote them."""
    arrays = np.load(path)
    names = [key.removesuffix("/table") for key in arrays if key.endswith("/table")]
    exact = {name: {t: arrays[f"{name}/{t}"] for t in peers.TARGETS} for name in names}
    return {name: arrays[f"{name}/table"] for name in names}, exact


def _d(table):
    return len(table).bit_length() - 1


if __name__ == "__main__":
    commands = {"games": write_games, "here": write_here, "all": write_all}
    commands[sys.argv[1]](*sys.argv[2:])
