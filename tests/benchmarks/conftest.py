"""Collects what the benchmarks measure: printed as it comes, kept in `build/bench.json`."""

import json
import os
import platform
from pathlib import Path

import pytest
import torch

from xaiutils import runtime
from xaiutils.classifiers import imagenet
from xaiutils.data import datasets
from xaiutils.perturb import Components
from xaiutils.segment import quickshift

RESULTS = Path(__file__).resolve().parents[2] / "build" / "bench.json"


@pytest.fixture(scope="session")
def measurements():
    """What this run measured so far; the file is replaced at its end, complete or not at all."""
    machine = {
        "cores": runtime.threads(),
        "machine": platform.machine(),
        "torch": torch.__version__,
    }
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    print(f"\n{machine['cores']} cores, load average {load} before the first measurement")
    found = []
    yield found
    RESULTS.parent.mkdir(exist_ok=True)
    partial = RESULTS.with_suffix(".part")
    partial.write_text(
        json.dumps({**machine, "load_average": load, "measurements": found}, indent=1) + "\n"
    )
    os.replace(partial, RESULTS)


@pytest.fixture
def bench(measurements):
    """`bench(name, value, unit, at_most=...)` or `at_least=...` records and checks a figure."""

    def check(name, value, unit, *, at_most=float("inf"), at_least=0.0):
        value = float(value)
        passed = at_least <= value <= at_most
        bounds = [f">= {at_least:g}"] * (at_least > 0) + [f"<= {at_most:g}"] * (at_most < 1e300)
        requirement = " and ".join(bounds) or None
        measurements.append(
            {
                "name": name, "value": float(f"{value:.4g}"), "unit": unit,
                "requirement": requirement, "passed": passed,
            }
        )  # fmt: skip
        print(f"{name}: {value:.4g} {unit}" + f" (required {requirement})" * bool(bounds))
        assert passed, f"{name} is {value:.4g} {unit}, required {requirement}"

    return check


@pytest.fixture(scope="session")
def samples():
    return datasets.imagenet_samples()


@pytest.fixture(scope="session")
def classifier():
    """EfficientNet-Lite0 that gives probabilities."""
    return torch.nn.Sequential(imagenet.load("efficientnet_lite0"), torch.nn.Softmax(1)).eval()


@pytest.fixture(scope="session")
def photograph(samples):
    """(3, 224, 224) float32 in [0, 1]."""
    return samples.images[0].numpy()


@pytest.fixture(scope="session")
def superpixels(photograph):
    return Components(quickshift(photograph))
