"""What fidelity curves and attributions cost beside the model, as ratios of one run's times."""

import numpy as np
import pytest
import torch
from timing import seconds

from xaiutils import attribution, explained, fidelity, runtime
from xaiutils.classifiers import imagenet

pytestmark = pytest.mark.benchmark


def scores(n, *shape, seed=0):
    return np.random.default_rng(seed).normal(size=(n, *shape)).astype(np.float32)


@pytest.fixture(scope="module")
def lite():
    return imagenet.load("efficientnet_lite0")


@pytest.fixture
def over_bare(monkeypatch):
    """`over_bare(owner, name, bare, explain)`: inputs per call, time of `explain()` over bare time.

    Each call of `owner.name` is followed by `bare(number of its inputs)`, which has its inputs
    ready: noise of the machine hits both. Of either time the smallest of five rounds counts; the
    smallest ratio would be that of the round whose bare calls were disturbed most.
    """

    def measure(owner, name, bare, explain):
        call, sizes, spent = getattr(owner, name), [], []

        def both(*arguments):
            outputs = call(*arguments)
            sizes.append(len(outputs))
            spent.append(seconds(bare, len(outputs)))
            return outputs

        monkeypatch.setattr(owner, name, both)
        ours, model = [], []
        for _ in range(5):
            sizes.clear(), spent.clear()
            total = seconds(explain)
            model.append(sum(spent))
            ours.append(total - model[-1])
        ratios = np.round(np.divide(ours, model), 3)
        print(f"\n{len(sizes)} calls of up to {max(sizes)} inputs, round by round: {ratios}")
        return sizes, min(ours) / min(model)

    return measure


def test_curves_add_little_to_the_model(bench, over_bare, lite, samples):
    # The default of steps; in a shorter call the look for changes of the network weighs more.
    n, steps = 2, 40
    x, y = samples.images[:n].numpy(), samples.labels[:n].numpy()
    maps = {"one": scores(n, 224, 224), "other": scores(n, 224, 224, seed=1)}
    forward = runtime.forward(lite, x[0])
    assert forward.backend == "onnxruntime"
    ready, call = torch.from_numpy(np.repeat(x[:1], forward.batch_size, axis=0)), forward._call
    sizes, ratio = over_bare(
        forward,
        "_call",
        lambda size: call(ready[:size]),
        lambda: fidelity.curves(lite, x, y, maps, filler=0.5, steps=steps),
    )
    assert sum(sizes) == n * (2 + len(maps) * 2 * (steps - 1))  # the ends are computed once
    bench("fidelity curves / their model calls", ratio, "x", at_most=1.10)


@pytest.fixture
def forward_backward(lite, samples):
    ready = samples.images[:4].repeat(4, 1, 1, 1)

    def run(size):
        points = ready[:size].detach().requires_grad_()
        torch.autograd.grad(lite(points)[:, 0].sum(), points)

    return run


def test_smoothgrad_adds_little_to_the_gradients(
    bench, monkeypatch, over_bare, lite, samples, forward_backward
):
    n, copies = 4, 10
    x, target = samples.images[:n], samples.labels[:n].numpy()
    monkeypatch.setattr(runtime, "threads", lambda: 1)  # times of calls side by side do not add up
    sizes, ratio = over_bare(
        explained.Task,
        "gradients",
        forward_backward,
        lambda: attribution.smoothgrad(lite, x, target, n_samples=copies),
    )
    assert sum(sizes) == n * copies
    bench("SmoothGrad / its forward-backward passes", ratio, "x", at_most=1.15)


def test_smoothgrad_takes_no_longer_than_passes_that_share_the_cores(bench, lite, samples):
    n, copies, batch = 4, 16, 16  # as many batches as a few cores share evenly
    x, target = samples.images[:n], samples.labels[:n].numpy()
    ready = x.repeat(batch // n, 1, 1, 1)

    def passes():  # one after the other, each with all cores, and inputs at hand
        for _ in range(n * copies // batch):
            points = ready.detach().requires_grad_()
            torch.autograd.grad(lite(points)[:, 0].sum(), points)

    def ours():
        attribution.smoothgrad(lite, x, target, n_samples=copies, batch_size=batch)

    before = torch.get_num_threads()
    torch.set_num_threads(runtime.threads())
    try:
        passes(), ours()
        times = {passes: [], ours: []}
        for _ in range(5):
            for call, taken in times.items():
                taken.append(seconds(call))
    finally:
        torch.set_num_threads(before)
    print({call.__name__: np.round(taken, 2).tolist() for call, taken in times.items()})
    ratio = min(times[ours]) / min(times[passes])
    bench("SmoothGrad of 4 photographs / passes that share all cores", ratio, "x", at_most=1.10)


class PatchMeans(torch.nn.Module):
    """Means of 16 x 16 pixels, for which ONNX Runtime's AvgPool2d takes many times as long."""

    def forward(self, x):
        return x.unflatten(2, (-1, 16)).mean(3).unflatten(3, (-1, 16)).mean(4)


def test_a_third_of_the_cost_of_quantus(bench, samples):
    # On a classifier that costs next to nothing. Both hide everything in 21 steps, in two orders;
    # Quantus ranks single values of the channels, we rank pixels.
    import quantus  # takes seconds, which the other benchmarks need not wait for

    n, steps, grey = 8, 21, 0.5
    linear = torch.nn.Linear(3 * 14 * 14, 10)
    torch.nn.init.normal_(linear.weight, generator=torch.Generator().manual_seed(0))
    torch.nn.init.zeros_(linear.bias)
    model = torch.nn.Sequential(PatchMeans(), torch.nn.Flatten(), linear).eval()
    x, y = samples.images[:n].numpy(), np.arange(n)
    values = scores(n, 3, 224, 224)
    pixels = values.sum(axis=1)
    flipping = quantus.PixelFlipping(
        features_in_step=x[0].size // steps,
        perturb_baseline=grey,
        abs=False,
        normalise=False,
        return_aggregate=False,
        return_auc_per_sample=False,
        disable_warnings=True,
        display_progressbar=False,
    )

    def by_quantus():
        return [
            flipping(model, x, y, a_batch=ranked, device="cpu", channel_first=True)
            for ranked in (values, -values)
        ]

    def by_us(ranked):
        return fidelity.curves(model, x, y, ranked, filler=grey, steps=steps)

    ends = by_us(pixels).curve("mif", "probability_label")[:, -1]  # also exports the model
    for curve in map(np.array, by_quantus()):
        assert curve.shape == (n, steps)  # the same number of steps
        np.testing.assert_allclose(curve[:, -1], ends, atol=1e-5)  # to the same end
    contenders = {
        "ours": lambda: by_us(pixels),
        "ours, ranking what Quantus ranks": lambda: by_us(values),
        "Quantus": by_quantus,
    }
    times = {name: [] for name in contenders}
    for _ in range(7):
        for name, call in contenders.items():
            times[name].append(seconds(call) * 1000 / (n * steps * 2))
    cost = {name: np.median(each) for name, each in times.items()}
    print("\nan image, step and order:", {name: f"{ms:.3f} ms" for name, ms in cost.items()})
    bench("cost of ours / Quantus", cost["ours"] / cost["Quantus"], "x", at_most=1 / 3)
