"""What DeepLIFT must refuse, what it must not, and by which of its checks."""

import re

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from torch import nn
from torch.nn import functional
from torchvision.models import VisionTransformer
from torchvision.ops import StochasticDepth
from torchvision.ops.misc import FrozenBatchNorm2d

from xaiutils import deeplift
from xaiutils.classifiers import digits, imagenet, small

TARGET = [0, 3, 1]


def network(*middle, seed=7):
    """Images (n, 3, 12, 12) to logits (n, 4), double precision, `middle` sees maps (4, 12, 12)."""
    layers = [nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), *middle, nn.AdaptiveAvgPool2d(3)]
    model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(36, 4)).double().eval()
    rng = np.random.default_rng(seed)
    for weight in model.parameters():
        weight.data = torch.from_numpy(rng.normal(size=weight.shape))
    return model


@pytest.fixture
def images():
    return np.random.default_rng(1).normal(size=(3, 3, 12, 12))


@pytest.fixture
def baselines():
    return np.random.default_rng(2).normal(size=(3, 3, 12, 12))


class Function(nn.Module):
    """A function as a module, which its type does not tell."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def rise(model, images, baselines):
    with torch.no_grad():
        change = model(torch.from_numpy(images)) - model(torch.from_numpy(baselines))
    return change.numpy()[np.arange(3), TARGET]


# --- modules --------------------------------------------------------------------------------------


class Subclass(nn.ReLU):
    """A ReLU to anyone but captum."""


@pytest.mark.parametrize(
    "layer",
    [
        *(nn.ReLU6(), nn.Hardtanh(), nn.PReLU(), nn.SELU(), nn.CELU(), nn.GELU(), nn.SiLU()),
        *(nn.Mish(), nn.Hardswish(), nn.Hardsigmoid(), nn.Softsign(), nn.Tanhshrink()),
        *(nn.Threshold(0.1, 0), nn.RReLU(), nn.LogSigmoid(), nn.GLU(dim=2)),
        *(nn.Softmax(dim=1), nn.Softmax2d(), nn.LogSoftmax(dim=1), nn.LPPool2d(2, 2)),
        *(nn.LayerNorm(12), nn.GroupNorm(2, 4), nn.InstanceNorm2d(4), nn.LocalResponseNorm(2)),
        *(nn.AdaptiveMaxPool2d(6), nn.FractionalMaxPool2d(2, 6), nn.RMSNorm(12), Subclass()),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_modules_without_a_rule_are_refused_by_name(layer, images, baselines):
    model = network(nn.Sequential(nn.Identity(), layer))
    message = f"module '2.1' ({type(layer).__name__}) has no rescale rule"
    with pytest.raises(ValueError, match=re.escape(message)):
        deeplift.deeplift(model, images, baselines, TARGET)


def test_attention_is_refused():
    vit = VisionTransformer(16, 8, 1, 2, 8, 16, num_classes=4).eval()
    x = torch.rand(2, 3, 16, 16)
    with pytest.raises(ValueError, match=r"module 'encoder\.layers\..*' \(LayerNorm\) has no"):
        deeplift.deeplift(vit, x, x * 0, [0, 1])


@pytest.mark.parametrize("pretrained", [False, True])
def test_the_photographs_classifier_is_refused(pretrained):
    net = imagenet.load("efficientnet_lite0", pretrained=pretrained)
    x = torch.rand(1, 3, 224, 224)
    with pytest.raises(ValueError, match=r"module 'network\.0\.\d' \(ReLU6\) has no rescale rule"):
        deeplift.deeplift(net, x, x[0] * 0, [335])


@pytest.mark.parametrize(
    ("layer", "why"),
    [
        (nn.MaxPool2d(3, stride=2), "windows that overlap"),
        (nn.MaxPool2d((2, 3), stride=(2, 2)), "windows that overlap"),
        (nn.MaxPool2d(2, stride=4, dilation=2), "have gaps"),
    ],
)
def test_settings_that_no_rule_fits_are_refused(layer, why, images, baselines):
    with pytest.raises(ValueError, match=rf"module '2' \({type(layer).__name__}\) .*{why}"):
        deeplift.deeplift(network(layer), images, baselines, TARGET)


def test_pooling_that_returns_indices_is_refused(images, baselines):
    pool = nn.Sequential(nn.MaxPool2d(2, return_indices=True), Function(lambda both: both[0]))
    with pytest.raises(ValueError, match=r"module '2\.0' \(MaxPool2d\) returns indices"):
        deeplift.deeplift(network(pool), images, baselines, TARGET)


def test_normalisation_by_the_batch_is_refused(images, baselines):
    layer = nn.BatchNorm2d(4, track_running_stats=False)
    with pytest.raises(ValueError, match="'2' is a BatchNorm2d without running statistics"):
        deeplift.deeplift(network(layer), images, baselines, TARGET)


@pytest.mark.parametrize(
    "layer",
    [
        *(nn.ReLU(), nn.LeakyReLU(inplace=True), nn.ELU(), nn.Softplus(), nn.Sigmoid(), nn.Tanh()),
        *(nn.MaxPool2d(2), nn.MaxPool2d(4, ceil_mode=True), nn.MaxPool2d(3, padding=1)),
        *(nn.MaxPool2d(2, stride=3), nn.MaxPool2d((2, 3)), nn.BatchNorm2d(4), nn.Dropout2d()),
        *(nn.AvgPool2d(3, 1), nn.ConvTranspose2d(4, 4, 2), nn.Upsample(scale_factor=2)),
        *(nn.ZeroPad2d(1), nn.ReflectionPad2d(2), nn.ReplicationPad2d(1), nn.CircularPad2d(1)),
        *(nn.PixelShuffle(2), nn.Identity(), nn.Linear(12, 9), FrozenBatchNorm2d(4)),
        *(StochasticDepth(0.5, "row"), nn.utils.parametrizations.weight_norm(nn.Conv2d(4, 4, 1))),
        *(Function(lambda a: a.clamp(-1e3, 1e3)), Function(lambda a: 2 * a.mT - a.flip(2) + 1)),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_what_is_affine_or_has_a_rule_is_complete(layer, images, baselines):
    model = network(layer)
    if isinstance(layer, nn.PixelShuffle):
        model[-1] = nn.Linear(9, 4).double()
    found = deeplift.deeplift(model, images, baselines, TARGET)
    assert_allclose(found.sum((1, 2, 3)), rise(model, images, baselines), atol=1e-9)


class Aside(nn.Module):
    """Modules without a rule that the image does not pass, and a rule for weights."""

    def __init__(self):
        super().__init__()
        self.unused, self.norm, self.positive = nn.GELU(), nn.LayerNorm(4), nn.Softplus()
        self.shift, self.weight = nn.Parameter(torch.rand(4)), nn.Parameter(torch.rand(4, 4, 1, 1))

    def forward(self, x):
        weight = self.positive(self.weight) + self.positive(-self.weight)
        return functional.conv2d(x, weight) + self.norm(self.shift)[:, None, None]


@pytest.mark.parametrize("frozen", [False, True])
def test_modules_that_the_image_does_not_pass_need_no_rule(frozen, images, baselines):
    model = network(Aside()).requires_grad_(not frozen)
    found = deeplift.deeplift(model, images, baselines, TARGET)
    assert_allclose(found.sum((1, 2, 3)), rise(model, images, baselines), atol=1e-9)


@pytest.mark.parametrize("family", ["strided", "deeper", "pooling", "digits"])
def test_classifiers_whose_activations_are_modules_are_explained(family):
    torch.manual_seed(0)
    channels, size = (1, 28) if family == "digits" else (3, 32)
    model = digits.Classifier() if family == "digits" else small.FAMILIES[family](channels, size, 4)
    x, baseline = torch.rand(2, 3, channels, size, size)
    found = deeplift.deeplift(model.eval(), x, baseline, TARGET)
    wanted = rise(model, x.numpy(), baseline.numpy())
    assert_allclose(found.sum((1, 2, 3)), wanted, atol=1e-5)


# --- functions ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("function", "name"),
    [
        (functional.relu, "Relu"),
        (functional.relu6, "Hardtanh"),
        (functional.gelu, "Gelu"),
        (functional.silu, "Silu"),
        (functional.hardswish, "Hardswish"),
        (functional.leaky_relu, "LeakyRelu"),
        (functional.softplus, "Softplus"),
        (torch.sigmoid, "Sigmoid"),
        (lambda a: functional.softmax(a, 1), "Softmax"),
        (lambda a: functional.layer_norm(a, a.shape[1:]), "NativeLayerNorm"),
        (lambda a: functional.max_pool2d(a, 2), "MaxPool2DWithIndices"),
        (lambda a: a.clamp(max=0.5), "Clamp"),
        (lambda a: a**2, "Pow"),
        (lambda a: a.amax(1, keepdim=True).expand_as(a), "Amax"),
        (torch.round, "Round"),
        (lambda a: functional.scaled_dot_product_attention(a, a, a), "ScaledDotProduct.*"),
    ],
)
def test_functions_are_refused_and_named(function, name, images, baselines):
    model = network(Function(function))
    with pytest.raises(ValueError, match=rf"see deeplift; it calls {name} as functions"):
        deeplift.deeplift(model, images, baselines, TARGET)


@pytest.mark.parametrize(
    "function",
    [
        lambda a: a * a.mean((2, 3), keepdim=True),
        lambda a: a / (1 + a.sum(1, keepdim=True)),
        lambda a: torch.where(a > 0.5, a, 0 * a),
        lambda a: a + (a.ceil() - a).detach(),
        functional.instance_norm,
    ],
    ids=["gate", "quotient", "where", "straight through", "instance norm"],
)
def test_what_the_graph_does_not_name_is_refused(function, images, baselines):
    with pytest.raises(
        ValueError, match=r"DeepLIFT of input \d .*has a rescale rule, see deeplift$"
    ):
        deeplift.deeplift(network(Function(function)), images, baselines, TARGET)


def test_the_residual_judge_is_refused():
    torch.manual_seed(0)
    model, x = small.FAMILIES["residual"](3, 32, 4).eval(), torch.rand(3, 3, 32, 32)
    with pytest.raises(ValueError, match="it calls Relu as functions"):
        deeplift.deeplift(model, x, x[0] * 0, TARGET)


# --- sums and slopes ------------------------------------------------------------------------------


def test_the_input_whose_sum_is_wrong_is_named():
    clipped = nn.Sequential(nn.Identity(), Function(lambda a: a.clamp(-1, 1)))  # flat at -2
    x = np.array([[0.0], [0.5], [0.0], [-2.0]])
    with pytest.raises(ValueError, match=r"input 3 sums to -?0, not to .* = -1\.5"):
        deeplift.deeplift(clipped, x, np.array([0.5]), [0] * 4, batch_size=3)


def test_a_small_share_of_large_parts_is_a_miss():
    """Parts of 500 and -499 leave room for an error of 1 among them, but not beside f(x)."""
    model = nn.Sequential(Function(lambda a: 500 * a[:, :1] - 499 * a[:, 1:2] + a[:, 2:].round()))
    x = np.array([[1.0, 1.0, 0.8]])
    with pytest.raises(ValueError, match=r"sums to 1, not to .* = 2"):
        deeplift.deeplift(model, x, np.zeros(3), [0])


def test_errors_that_cancel_in_the_sum_show_in_the_slopes():
    """a^2 - b^2: from (0, 1) to (1, 2) parts by the slopes at x are 2 and -4, by the rule 1, -3."""
    model = nn.Sequential(Function(lambda a: a[:, :1] ** 2 - a[:, 1:] ** 2))
    with pytest.raises(ValueError, match=r"input 0 is another with the slopes .*; it calls Pow"):
        deeplift.deeplift(model, np.array([[1.0, 2.0]]), np.array([0.0, 1.0]), [0])


@pytest.mark.parametrize("near", [0, 1e-9, 1e-6, 1e-3])
@pytest.mark.parametrize("offset", [0, 1e3])
def test_rounding_is_no_miss_where_outputs_hardly_differ(near, offset, images):
    model = network(nn.Tanh(), nn.MaxPool2d(2)).float()
    model[-1].bias.data += offset
    x = images.astype(np.float32)
    noise = np.random.default_rng(3).normal(size=x.shape).astype(np.float32)
    found = deeplift.deeplift(model, x, x + near * noise, TARGET)
    assert np.isfinite(found).all()


def test_outputs_that_are_no_numbers_are_refused(images, baselines):
    with pytest.raises(ValueError, match="model returned NaN or infinity"):
        deeplift.deeplift(network(Function(lambda a: a / 0)), images, baselines, TARGET)
