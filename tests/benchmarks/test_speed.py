"""How fast explanations are, as ratios of times taken in turns in one run."""

import contextlib
import copy
import io
import os
import subprocess
import sys
import tracemalloc

import captum.attr
import lime.lime_image
import numpy as np
import pytest
import torch
from timing import over_model, seconds

from xaiutils import designs, limit, perturb, runtime, segment, surrogate
from xaiutils import lime as ours
from xaiutils.classifiers import imagenet
from xaiutils.companion import provenance
from xaiutils.companion.notebooks import Project
from xaiutils.perturb import Components

pytestmark = pytest.mark.benchmark

N = 1000  # masks of an explanation


def package(image, segments, classify, n):
    """An explanation by the lime package as its users ask for it, the segmentation given."""
    explainer = lime.lime_image.LimeImageExplainer(random_state=0)
    with contextlib.redirect_stderr(io.StringIO()):  # its progress bar has no switch
        explainer.explain_instance(
            image.transpose(1, 2, 0).astype(np.float64),
            classify,
            top_labels=1,
            hide_color=None,
            num_samples=n,
            batch_size=10,
            segmentation_fn=lambda _: segments,
        )


def test_engine_adds_little_to_the_model(bench, monkeypatch, classifier, photograph, superpixels):
    forward = runtime.forward(classifier, photograph)
    assert forward.backend == "onnxruntime"

    def explain(seed):
        ours.explain(classifier, photograph, superpixels, targets=0, n_samples=N, seed=seed)

    ratios = over_model(monkeypatch, forward, explain, rounds=3)
    print(f"\nexplanation / model calls, {N} masks of {superpixels.d}: {np.round(ratios, 3)}")
    bench("explanation / its model calls", min(ratios), "x", at_most=1.10)


@pytest.fixture(scope="module")
def classify():
    """The network as the package is given it: images (n, H, W, 3) to probabilities, plain torch."""
    plain = imagenet._load("efficientnet_lite0", pretrained=True, fold=False)
    plain = torch.nn.Sequential(plain, torch.nn.Softmax(1)).eval()
    plain = plain.to(memory_format=torch.contiguous_format)

    def probabilities(images):
        batch = torch.from_numpy(np.asarray(images)).permute(0, 3, 1, 2).contiguous().float()
        with torch.no_grad():
            return plain(batch).numpy()

    return probabilities


def test_faster_than_the_package_on_the_plain_module(
    bench, classifier, classify, photograph, superpixels
):
    runtime.forward(classifier, photograph)  # the export is not the question here
    few = 60
    per_mask = {"package": [], "ours": []}
    for seed in range(3):
        slow = seconds(package, photograph, superpixels.labels, classify, few)
        fast = seconds(
            ours.explain,
            classifier,
            photograph,
            superpixels,
            targets=0,
            n_samples=3 * few,
            seed=seed,
        )
        per_mask["package"].append(slow / few)
        per_mask["ours"].append(fast / (3 * few))
    print({name: f"{1e3 * min(times):.1f} ms a mask" for name, times in per_mask.items()})
    ratio = min(per_mask["package"]) / min(per_mask["ours"])
    bench("lime package, plain torch / ours", ratio, "x", at_least=3)


def test_faster_than_the_package_to_the_same_error(bench, classifier, classify, samples):
    # Of a photograph in 12 cells all 4,096 answers, and so the limit, can be had.
    x, target, few, rounds = samples.images[0].numpy(), int(samples.labels[0]), 256, 3
    cells = Components(segment.grid(x.shape[1:], 3, 4))

    def probability(masks):
        return perturb.evaluate(classifier, x, cells, masks, outputs=[target])[:, 0]

    f = limit.lookup(limit.tabulate(probability, cells.d))
    exact, rng = limit.exact(f, cells.d).coef, np.random.default_rng(0)

    def default():
        masks = designs.draw(N, cells.d, "iid", rng)
        return ours.fit(masks, ours.kernel(masks), f(masks)[:, None]).coef[0]

    def read_off():
        masks = designs.draw(few, cells.d, "folded", rng)
        return surrogate.fit(masks, f(masks), link="best").lime()[1]

    error = {
        coef: np.mean([np.square(coef() - exact) for _ in range(repeats)])
        for coef, repeats in ((default, 100), (read_off, 20))
    }
    bench(
        f"squared error, {few} folded masks by surrogate / {N:,} default ones",
        error[read_off] / error[default],
        "x",
        at_most=1,
    )
    part, times = 200, {"package": [], "ours": []}
    for seed in range(rounds):
        taken = seconds(package, x, cells.labels, classify, part)
        times["package"].append(taken * N / part)
        options = {"n_samples": few, "design": "folded", "estimator": "surrogate", "seed": seed}
        times["ours"].append(seconds(ours.explain, classifier, x, cells, targets=target, **options))
    print({name: f"{min(taken):.2f} s" for name, taken in times.items()})
    ratio = min(times["package"]) / min(times["ours"])
    name = f"lime package, plain torch, {N:,} masks / ours to no larger error"
    bench(name, ratio, "x", at_least=12)


# --- a classifier that costs next to nothing ------------------------------------------------------


class ChannelMeans(torch.nn.Module):
    def forward(self, x):
        return x.mean(dim=(2, 3))


def test_less_overhead_than_the_package_and_captum(bench, photograph, superpixels):
    # The same numpy means serve all three, so that times differ by what surrounds the classifier.
    def means(batch):
        return batch.numpy().mean(axis=(2, 3))

    explainer = captum.attr.Lime(lambda batch: torch.from_numpy(means(batch)))
    x = torch.from_numpy(photograph)[None]
    labels = superpixels.labels

    def by_us(model):
        ours.explain(model, photograph, superpixels, targets=0, n_samples=N)

    def by_package():
        package(photograph, labels, lambda images: images.mean(axis=(1, 2)), N)

    def by_captum(per_call):
        explainer.attribute(
            x,
            target=0,
            feature_mask=torch.from_numpy(labels)[None, None],
            n_samples=N,
            perturbations_per_eval=per_call,
        )

    module = ChannelMeans().eval()
    by_us(module)  # exports it
    contenders = {
        "ours": lambda: by_us(means),
        "ours, a module": lambda: by_us(module),
        "package": by_package,
        # Of these the fastest counts.
        **{f"captum, {size} a call": lambda size=size: by_captum(size) for size in (1, 8, 32)},
    }
    times = {name: [] for name in contenders}
    for _ in range(3):
        for name, call in contenders.items():
            repeats = 5 if name.startswith("ours") else 1  # short ones see more of the noise
            times[name] += [seconds(call) for _ in range(repeats)]
    best = {name: min(values) for name, values in times.items()}
    print(f"\n{N} masks of channel means:", {k: f"{v:.2f} s" for k, v in best.items()})
    captum_best = min(value for name, value in best.items() if name.startswith("captum"))
    bench("overhead of captum / ours", captum_best / best["ours"], "x", at_least=1)
    bench("overhead of the lime package / ours", best["package"] / best["ours"], "x", at_least=8)
    bench(
        "overhead of the lime package / ours with a module",
        best["package"] / best["ours, a module"],
        "x",
        at_least=8,
    )


def test_arrays_stay_at_two_batches(bench, photograph, superpixels):
    # numpy tells tracemalloc what it allocates: the peak over an explanation whose classifier
    # allocates nothing to speak of.
    def model(batch):
        return np.zeros((len(batch), 1))

    batch_bytes = runtime.forward(model, photograph).batch_size * photograph.nbytes
    tracemalloc.start()
    try:
        ours.explain(model, photograph, superpixels, targets=0, n_samples=N)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    bench("peak of arrays in an explanation / one batch", peak / batch_bytes, "x", at_most=2)


RESIDENT = """
import resource, sys
import numpy as np
from xaiutils import lime, segment
from xaiutils.perturb import Components

size, n = int(sys.argv[1]), int(sys.argv[2])
x = np.random.default_rng(0).random((3, 224, 224), dtype=np.float32)
components = Components(segment.grid((224, 224), 6, 7))

def means(batch):
    return batch.mean(dim=(2, 3))

def peak():
    unit = 1 if sys.platform == "darwin" else 1024  # bytes
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit

lime.explain(means, x, components, targets=0, n_samples=n, batch_size=1)
before, ballast = peak(), []
while peak() == before:  # imports once needed more than is in use now: fill up to there
    ballast.append(np.ones(2**15))
before = peak()
lime.explain(means, x, components, targets=0, n_samples=n, batch_size=size)
print((peak() - before) / (size * x.nbytes))
"""


def test_resident_memory_stays_at_two_batches(bench):
    # The same in the eyes of the operating system, torch's allocations included: how much an
    # explanation in batches adds to the largest resident size of a process that has just made
    # one input by input.
    done = subprocess.run(
        [sys.executable, "-c", RESIDENT, "64", str(N)], capture_output=True, text=True, check=True
    )
    bench("resident memory of an explanation / one batch", done.stdout, "x", at_most=2)


# --- the limit ------------------------------------------------------------------------------------


def test_limits_are_computed_at_once(bench):
    weights = np.random.default_rng(0).normal(size=(16, 5))
    exact = min(
        seconds(limit.exact, lambda z: np.tanh(z @ weights).prod(axis=1), 16) for _ in range(3)
    )
    bench("limit of a function of 16 superpixels", exact, "s", at_most=1)
    alphas = min(seconds(limit.alpha, np.arange(4), 5000) for _ in range(3))
    bench("alpha_0 to alpha_3 of 5,000 superpixels", alphas, "s", at_most=0.1)
    coefficients = min(seconds(limit.coefficients, 5000) for _ in range(3))
    bench("sigmas of 5,000 superpixels", coefficients, "s", at_most=0.1)


# --- images per second ----------------------------------------------------------------------------


@pytest.fixture
def torch_threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def test_images_per_second(bench, monkeypatch, tmp_path, torch_threads, photograph):
    loaded = imagenet.load("efficientnet_lite0")
    plain = imagenet._load("efficientnet_lite0", pretrained=True, fold=False)
    plain = plain.to(memory_format=torch.contiguous_format)
    batch = torch.from_numpy(np.repeat(photograph[None], 16, axis=0))
    monkeypatch.setenv("XAIUTILS_CACHE", str(tmp_path))  # keeps the measured size of real runs

    def in_torch(model):
        with torch.inference_mode():
            model(batch)

    cores = runtime.threads()
    for threads in sorted({1, cores}):
        torch_threads(threads)
        monkeypatch.setattr(runtime, "threads", lambda threads=threads: threads)
        forward = runtime.forward(copy.deepcopy(loaded), photograph)
        calls = {
            "ONNX Runtime": lambda forward=forward: forward(batch),
            "torch, folded, channels last": lambda: in_torch(loaded),
            "torch, plain": lambda: in_torch(plain),
        }
        times = {name: [] for name in calls}
        for _ in range(7):
            for name, call in calls.items():
                times[name].append(seconds(call))
        rate = {name: len(batch) / min(values) for name, values in times.items()}
        print(f"\n{threads} of {cores} threads, images/s:", {k: round(v) for k, v in rate.items()})
        required = {"ONNX Runtime": 2, "torch, folded, channels last": 1}
        for name in required:
            bench(
                f"{name} / plain torch, {threads} thread{'s' * (threads > 1)}",
                rate[name] / rate["torch, plain"],
                "x",
                at_least=required[name],
            )


# --- the start of a notebook ----------------------------------------------------------------------

# What notebooks import when they first use it.
LATER = """
import captum.attr, jsonschema, lime.lime_image, scipy.signal, scipy.stats, skimage.measure
import skimage.metrics, skimage.morphology, skimage.segmentation, skimage.transform
import sklearn.linear_model, sklearn.metrics, torchvision
"""


def test_first_cells_start_in_half_of_the_time(bench):
    cells = {}
    project = Project(provenance.ROOT)
    for name in project.names():
        cells[name] = next(c.source for c in project.read(name).cells if c.cell_type == "code")
    times = {text: dict.fromkeys(cells, np.inf) for text in ("", LATER)}
    for _ in range(2):
        for name, first in cells.items():
            for text, least in times.items():
                least[name] = min(least[name], processor_seconds(first + text))
    lazy, eager = (sum(least.values()) for least in times.values())
    print(f"\nfirst cells of {len(cells)} notebooks: {lazy:.1f} s of a core, eager {eager:.1f} s")
    bench("first cells / with what they leave for later, processor time", lazy / eager, "x",
          at_most=0.5)  # fmt: skip


def processor_seconds(program):
    """User and system time of a new process."""
    before = os.times()
    subprocess.run([sys.executable, "-c", program], check=True, cwd=provenance.ROOT)
    after = os.times()
    return sum(getattr(after, f"children_{kind}") - getattr(before, f"children_{kind}")
               for kind in ("user", "system"))  # fmt: skip
