"""Probabilities and logits are told apart by all who need them, and give the same when told."""

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from torch import nn

from xaiutils import attribution, baselines, fidelity, one_vs_one
from xaiutils.studies.fidelity.crop import crop_scores

N, SHAPE = 4, (2, 5, 6)
RNG = np.random.default_rng(0)
X, SCORES = RNG.random((N, *SHAPE)), RNG.random((N, *SHAPE[1:]))
SOURCE, TARGET = np.array([0, 1, 2, 0]), np.array([1, 2, 0, 2])


class Logits(nn.Module):
    def __init__(self, classes=3):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Flatten(), nn.Linear(60, 9), nn.Tanh(), nn.Linear(9, classes)
        ).double()
        for weight in self.parameters():
            weight.data = torch.from_numpy(np.random.default_rng(1).normal(size=weight.shape))

    def forward(self, x):
        return self.layers(x)


class Probabilities(Logits):
    def forward(self, x):
        return super().forward(x).softmax(1)


def curves(model, **told):
    found = fidelity.curves(model, X, SOURCE, SCORES, filler=0.0, steps=6, **told)
    margin = found.logit_label - found.logit_predicted  # the level of logits is arbitrary
    return found.correct, found.probability_label, found.probability_predicted, margin


def removal(model, **told):
    found = one_vs_one.removal(model, X, SOURCE, TARGET, SCORES, 0.0, **told)
    return found.drop, found.full, found.to_target


def conversion(model, **told):
    found = one_vs_one.conversion(model, X, SOURCE, TARGET, SCORES, **told)
    return found.drop, found.converted


def mask_test(model, **told):
    found = one_vs_one.mask_test(model, X, X[::-1], TARGET, SCORES, n_thresholds=7, **told)
    return found.gains, found.flips


def adversarial(model, **told):
    return [baselines.adversarial(model, X, TARGET, steps=5, **told)]


FUNCTIONS = [curves, removal, conversion, mask_test, adversarial]


@pytest.mark.parametrize("function", FUNCTIONS)
def test_probabilities_are_refused_unless_told(function):
    with pytest.raises(ValueError, match=r'probabilities .*leave its softmax .*outputs_are="prob'):
        function(Probabilities())
    expected = function(Logits())
    for found, wanted in zip(function(Logits(), outputs_are="logits"), expected, strict=True):
        assert_array_equal(found, wanted)
    told = function(Probabilities(), outputs_are="probabilities")
    for found, wanted in zip(told, expected, strict=True):
        assert_allclose(found, wanted, atol=1e-5)
    twice = function(Probabilities(), outputs_are="logits")
    assert any(np.abs(a * 1.0 - b).max() > 0.01 for a, b in zip(twice, expected, strict=True))


@pytest.mark.parametrize("function", FUNCTIONS)
def test_what_is_told_must_be_so(function):
    with pytest.raises(ValueError, match=r'outputs_are is "probabilities", but .* values in'):
        function(Logits(), outputs_are="probabilities")
    with pytest.raises(ValueError, match=r"outputs_are must be None or one of \('logits', 'prob"):
        function(Logits(), outputs_are=True)


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("told", [{}, {"outputs_are": "logits"}, {"outputs_are": "probabilities"}])
def test_a_single_column_is_refused_with_the_way_to_make_two(function, told):
    with pytest.raises(ValueError, match=r"two or more classes, got \(\d+, 1\): .*torch\.cat"):
        function(Logits(1), **told)


@pytest.mark.parametrize("function", FUNCTIONS)
def test_nan_is_refused(function):
    class Bad(Logits):
        def forward(self, x):
            return super().forward(x).log()

    with pytest.raises(ValueError, match=r"model returned NaN or infinity in \d+ of \d+ rows"):
        function(Bad())


def test_curves_are_judged_by_all_rows_of_the_first_image_whatever_the_batch():
    def counts(batch):  # [1, 0] for the whole input, other sums once something is hidden
        kept = (batch > 0).flatten(1).double().mean(1)
        return torch.stack([kept, torch.zeros_like(kept)], dim=1)

    options = {"filler": 0.0, "steps": 3}
    one, many = (
        fidelity.curves(counts, X[:2], [0, 0], SCORES[:2], batch_size=size, **options)
        for size in (1, 8)
    )
    assert_array_equal(one.logit_label, many.logit_label)
    with pytest.raises(ValueError, match="probabilities"):
        fidelity.curves(Probabilities(), X[:1], [0], SCORES[:1], batch_size=1, **options)


def test_a_probability_of_zero_has_curves_but_no_logit():
    def hard(batch):
        shown = (batch > 0).flatten(1).double().mean(1)
        return torch.stack([shown, 1 - shown], dim=1)

    found = fidelity.curves(
        hard, X, [0] * N, SCORES, filler=0.0, steps=2, outputs_are="probabilities"
    )
    assert_array_equal(found.curve("mif", "probability"), [[1, 0.5, 0]] * N)
    assert_array_equal(found.curve("mif"), [[1, 1, 0]] * N)

    class Hard(nn.Module):
        def forward(self, x):
            return hard(x.relu())

    with pytest.raises(ValueError, match=r"log-probability is NaN or infinity .*first for input 0"):
        baselines.adversarial(Hard(), X, [1] * N, outputs_are="probabilities")
    with pytest.raises(ValueError, match="logit of image 0 is minus infinity at some step"):
        found.curve("mif", "logit")
    with pytest.raises(ValueError, match="class 1 of image 0 has minus infinity"):
        one_vs_one.conversion(hard, X, [0] * N, [1] * N, SCORES, outputs_are="probabilities")


ATTRIBUTIONS = {
    "gradient": attribution.gradient,
    "occlusion": lambda *given, **told: attribution.occlusion(*given, patch=3, **told),
    "integrated": lambda model, x, target, **told: attribution.integrated_gradients(
        model, x, np.zeros_like(x), target, steps=3, **told
    ),
    "Grad-CAM": lambda model, x, target, **told: attribution.gradcam(
        model, model.layers[0], x, target, **told
    ),
}


class Conv(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(2, 3, 3), nn.Flatten(), nn.Linear(36, 3)).double()
        for weight in self.parameters():
            weight.data = torch.from_numpy(np.random.default_rng(1).normal(size=weight.shape))

    def forward(self, x):
        return self.layers(x)


class ConvProbabilities(Conv):
    def forward(self, x):
        return super().forward(x).softmax(1)


@pytest.mark.filterwarnings("ignore:integrated gradients of")  # of few steps
@pytest.mark.parametrize("method", ATTRIBUTIONS.values(), ids=ATTRIBUTIONS)
def test_log_probabilities_are_those_of_logits_or_of_probabilities(method):
    expected = method(Conv(), X, TARGET, log_probability=True)
    assert_array_equal(method(Conv(), X, TARGET, log_probability="logits"), expected)
    found = method(ConvProbabilities(), X, TARGET, log_probability="probabilities")
    assert_allclose(found, expected, atol=1e-8)
    with pytest.raises(ValueError, match=r'probabilities .*give log_probability="probabilities"'):
        method(ConvProbabilities(), X, TARGET, log_probability=True)
    with pytest.raises(ValueError, match='log_probability is "probabilities", but'):
        method(Conv(), X, TARGET, log_probability="probabilities")
    with pytest.raises(ValueError, match=r"log_probability must be a bool or one of .*softmax"):
        method(Conv(), X, TARGET, log_probability="softmax")
    # Outputs as they are can be probabilities.
    assert np.isfinite(method(ConvProbabilities(), X, TARGET)).all()


def test_log_probability_of_a_single_column_is_refused():
    with pytest.raises(ValueError, match=r"two or more classes, got \(4, 1\)"):
        attribution.gradient(Logits(1), X, [0] * N, log_probability=True)
    assert attribution.gradient(Logits(1), X, [0] * N).any()


def test_rectangles_are_scored_by_logits():
    x = torch.from_numpy(X)
    assert np.isfinite(crop_scores(Logits(), x, {"a": SCORES}, shares=[0.5])["a"]).all()
    with pytest.raises(ValueError, match="its outputs are probabilities"):
        crop_scores(Probabilities(), x, {"a": SCORES}, shares=[0.5])
    with pytest.raises(ValueError, match="two or more classes"):
        crop_scores(Logits(1), x, {"a": SCORES}, shares=[0.5])
