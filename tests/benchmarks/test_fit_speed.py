"""The regression behind LIME beside scikit-learn's ridge, on the same masks in one run."""

import time

import numpy as np
import pytest
import sklearn.linear_model
from timing import seconds

from xaiutils import lime, runtime
from xaiutils.perturb import Components

pytestmark = pytest.mark.benchmark


# Coefficients beside coefficients: the covariance, which scikit-learn does not give, is computed
# when it is asked for.
@pytest.mark.parametrize(("n", "d"), [(1000, 2000), (4000, 2000)])
def test_fit_of_a_large_photograph(bench, n, d):
    rng = np.random.default_rng(0)
    masks = rng.random((n, d)) < 0.5
    weights = lime.kernel(masks)
    outputs = masks @ rng.normal(size=d) + rng.normal(size=n)
    found = {}

    def ours():
        found["ours"] = lime.fit(masks, weights, outputs[:, None]).coef[0]

    @runtime.one_blas_thread
    def ridge():
        model = sklearn.linear_model.Ridge(1.0)
        found["ridge"] = model.fit(masks.astype(float), outputs, sample_weight=weights).coef_

    times = {ours: [], ridge: []}
    for _ in range(3):
        for call, taken in times.items():
            taken.append(seconds(call))
    fastest = {call.__name__: min(taken) for call, taken in times.items()}
    print(f"\n{n} masks of {d}:", {name: f"{taken:.2f} s" for name, taken in fastest.items()})
    np.testing.assert_allclose(found["ours"], found["ridge"], atol=1e-9)
    bench(
        f"fit of {n:,} masks of {d:,} / scikit-learn's ridge",
        fastest["ours"] / fastest["ridge"],
        "x",
        at_most=1.0,
    )


@pytest.mark.parametrize("estimator", ["regression", "surrogate"])
def test_all_but_the_model_calls(bench, estimator):
    d, spent = 40, [0.0]
    weights = np.random.default_rng(0).normal(size=(d, 12)) / 2

    def model(batch):
        start = time.perf_counter()
        outputs = 1 / (1 + np.exp(-np.tanh(batch.numpy() @ weights).sum(axis=1, keepdims=True)))
        spent[0] += time.perf_counter() - start
        return outputs

    def explain(seed):
        lime.explain(
            model, np.ones(d), Components(np.arange(d)), targets=0, filler=0.0, n_samples=256,
            design="folded", estimator=estimator, seed=seed,
        )  # fmt: skip

    taken = []
    for seed in range(5):
        spent[0] = 0.0
        taken.append(seconds(explain, seed) - spent[0])
    name = f"explain by {estimator}, 256 folded masks of 40, without the model calls"
    bench(name, min(taken), "s", at_most=0.25)
