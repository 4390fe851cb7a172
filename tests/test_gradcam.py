"""Grad-CAM by hand and against captum, and how layers without the axes of a map are told."""

import re

import numpy as np
import pytest
import torch
import torchvision
from captum.attr import LayerAttribution, LayerGradCam
from numpy.testing import assert_allclose, assert_array_equal
from torch import nn
from torch.nn import functional
from torchvision.models.swin_transformer import SwinTransformer

from xaiutils import attribution, runtime
from xaiutils.attribution import gradcam, tokens_to_map


def seeded(module, seed=0):
    """`module` with weights of its own generator, in double precision and evaluation mode."""
    rng = np.random.default_rng(seed)
    for weight in module.double().eval().parameters():
        weight.data = torch.from_numpy(rng.normal(size=weight.shape) / 2)
    return module


def photographs(n=3, channels=3, height=16, width=16, seed=1):
    return torch.from_numpy(np.random.default_rng(seed).random((n, channels, height, width)))


class Function(nn.Module):
    """A function as a module."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def to_last():
    return Function(lambda a: a.permute(0, 2, 3, 1))


def to_first(a):
    return a.permute(0, 3, 1, 2)


def with_head(*layers, x, seed=0):
    """Layers and a linear head, whose size the images `x` tell."""
    model = nn.Sequential(*layers, nn.Flatten(), nn.LazyLinear(4)).double()
    model(x[:1])
    return seeded(model, seed)


def by_definition(model, layer, x, target, reshape=lambda a: a):
    """One image at a time; the gradient is taken of a copy of what the layer gave."""
    maps = []
    for image, t in zip(x, target, strict=True):
        kept = []

        def replace(_layer, _inputs, out, kept=kept):
            kept.append(out.detach().clone().requires_grad_())
            return kept[0].clone()

        handle = layer.register_forward_hook(replace)
        score = model(image[None])[0, t]
        handle.remove()
        (slope,) = torch.autograd.grad(score, kept[0])
        values, weights = (reshape(a.detach())[0].numpy() for a in (kept[0], slope))
        coarse = np.einsum("c,chw->hw", weights.mean((1, 2)), values)
        size = x.shape[2:]
        fine = functional.interpolate(torch.from_numpy(coarse)[None, None], size, mode="bilinear")
        maps.append(fine[0, 0].numpy())
    return np.stack(maps)


# --- the map --------------------------------------------------------------------------------------


@pytest.mark.parametrize("relu", [False, True])
def test_by_hand(relu):
    trunk, head = nn.Conv2d(2, 3, 3, stride=2, padding=1), nn.Linear(36, 4)
    net = seeded(nn.Sequential(trunk, nn.Tanh(), nn.Flatten(), head), 7)
    images, target = photographs(5, 2, 6, 8), np.array([0, 3, 1, 1, 2])
    with torch.no_grad():
        maps = trunk(images).numpy()  # (5, 3, 3, 4)
    heads = head.weight.detach().numpy()[target].reshape(maps.shape)
    weights = (heads * (1 - np.tanh(maps) ** 2)).mean((2, 3), keepdims=True)
    coarse = (weights * maps).sum(1)
    coarse = np.maximum(coarse, 0) if relu else coarse
    # Bilinear doubling: a fine pixel is 3/4 of its coarse one and 1/4 of the next on its side.
    padded = np.pad(coarse, ((0, 0), (1, 1), (1, 1)), mode="edge")
    rows = np.stack([padded[:, :-2] + 3 * padded[:, 1:-1], 3 * padded[:, 1:-1] + padded[:, 2:]], 2)
    rows = rows.reshape(5, 6, 6) / 4
    fine = np.stack([rows[..., :-2] + 3 * rows[..., 1:-1], 3 * rows[..., 1:-1] + rows[..., 2:]], 3)
    expected = fine.reshape(5, 6, 8) / 4
    assert_allclose(gradcam(net, trunk, images, target, relu=relu), expected, atol=1e-12)
    assert relu or (expected < 0).any()


@runtime.one_thread()
@pytest.mark.parametrize("layer", [0, 2, 3])
@pytest.mark.parametrize("relu", [False, True])
def test_captum_agrees_to_the_last_bit(layer, relu):
    x, target = photographs(), [1, 0, 3]
    second = nn.Conv2d(6, 8, 3, padding=1)
    front = [nn.Conv2d(3, 6, 3, 2), nn.ReLU(inplace=True), second, nn.ReLU(inplace=True)]
    net, x = with_head(*front, x=x).float(), x.float()
    reference = LayerGradCam(net, net[layer]).attribute(
        x.clone().requires_grad_(), torch.tensor(target), relu_attributions=relu
    )
    reference = LayerAttribution.interpolate(reference, (16, 16), "bilinear")[:, 0]
    assert_array_equal(gradcam(net, net[layer], x, target, relu=relu), reference.detach())


def test_the_output_of_the_layer_is_what_it_gave_not_what_became_of_it():
    x = photographs()
    net = with_head(nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True), x=x)
    expected = by_definition(net, net[0], x, [0, 1, 2])
    assert_allclose(gradcam(net, net[0], x, [0, 1, 2]), expected, atol=1e-12)
    assert (expected < 0).any()


# --- channels last --------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(64, 64), (96, 64), (64, 128)])
@pytest.mark.parametrize("name", ["features.0", "features.2", "features.3", "norm"])
def test_swin_is_refused_and_read_with_reshape(size, name):
    torch.manual_seed(0)
    net = SwinTransformer([4, 4], 16, [1, 1], [2, 2], [4, 4], num_classes=5).double().eval()
    x = photographs(2, 3, *size)
    layer = net.get_submodule(name)
    with pytest.raises(ValueError, match=r"got \(2, \d+, \d+, \d+\).*reshape=lambda a: a\.permute"):
        gradcam(net, layer, x, [1, 2])
    found = gradcam(net, layer, x, [1, 2], reshape=to_first)
    assert_allclose(found, by_definition(net, layer, x, [1, 2], to_first), atol=1e-12)
    assert gradcam(net, net.permute, x, [1, 2]).shape == (2, *size)


@pytest.mark.parametrize("activation", [nn.ReLU, nn.GELU])
@pytest.mark.parametrize("size", [(16, 16), (16, 32)])
@pytest.mark.parametrize("channels", [1, 8, 16])
def test_shapes_that_could_be_either_are_told_by_what_they_look_at(activation, size, channels):
    """Maps of (8, 8) or (8, 16) with 1, 8 or 16 channels, first and last."""
    x = photographs(2, 3, *size)
    front = [nn.Conv2d(3, channels, 3, stride=2, padding=1), activation()]
    net = with_head(*front, to_last(), Function(to_first), x=x)
    expected = gradcam(net, net[1], x, [0, 1])
    assert_allclose(gradcam(net, net[3], x, [0, 1]), expected, atol=1e-12)
    with pytest.raises(ValueError, match="third axis seems to run along the columns"):
        gradcam(net, net[2], x, [0, 1])
    assert_allclose(gradcam(net, net[2], x, [0, 1], reshape=to_first), expected, atol=1e-12)


def test_maps_of_other_proportions_than_the_image_are_maps():
    """(8, 4, 16) from (16, 16): like 4 channels of (8, ...), were they last."""
    x = photographs()
    net = with_head(nn.Conv2d(3, 8, (4, 1), stride=(4, 1)), x=x)
    assert_allclose(
        gradcam(net, net[0], x, [0, 1, 2]), by_definition(net, net[0], x, [0, 1, 2]), atol=1e-12
    )
    net = with_head(nn.Conv2d(3, 8, (2, 1), stride=(2, 1)), nn.AvgPool2d((1, 8)), x=x)  # (8, 8, 2)
    assert gradcam(net, net[1], x, [0, 1, 2]).shape == (3, 16, 16)


def test_convolutions_are_not_asked_twice():
    x, calls = photographs(), []
    net = with_head(nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.ReLU(), x=x)
    net.register_forward_pre_hook(lambda _, given: calls.append(len(given[0])))
    gradcam(net, net[0], x, [0, 1, 2])  # the network is probed once
    calls.clear()
    gradcam(net, net[0], x, [0, 1, 2])
    assert calls == [3]
    gradcam(net, net[1], x, [0, 1, 2])  # could be (8, 8) with 8 channels last
    assert calls == [3, 3, 2]


def test_a_transposed_map_is_refused_too():
    x = photographs(height=16, width=24)
    net = with_head(nn.Conv2d(3, 5, 3, padding=1), Function(lambda a: a.mT), x=x)
    with pytest.raises(ValueError, match="third axis seems to run along the columns"):
        gradcam(net, net[1], x, [0, 1, 2])
    expected = gradcam(net, net[0], x, [0, 1, 2])
    assert_allclose(gradcam(net, net[1], x, [0, 1, 2], reshape=lambda a: a.mT), expected)


@pytest.mark.parametrize(("shape", "refused"), [((2, 8, 8), False), ((8, 8, 2), True)])
def test_layers_that_look_everywhere_are_told_by_their_proportions(shape, refused):
    x = photographs()
    mixed = nn.Sequential(nn.Flatten(), nn.LazyLinear(128), nn.Unflatten(1, shape))
    net = with_head(mixed, nn.Tanh(), x=x)
    if refused:
        with pytest.raises(ValueError, match="seems to run along the columns"):
            gradcam(net, net[0], x, [0, 1, 2])
    else:
        expected = by_definition(net, net[0], x, [0, 1, 2])
        assert_allclose(gradcam(net, net[0], x, [0, 1, 2]), expected, atol=1e-12)


# --- tokens ---------------------------------------------------------------------------------------


def transformer(side=32, patch=8):
    torch.manual_seed(0)
    net = torchvision.models.VisionTransformer(side, patch, 2, 2, 16, 32, num_classes=5)
    nn.init.normal_(net.heads.head.weight)
    return net.double().eval()


def test_tokens_of_a_transformer():
    net, x = transformer(), photographs(2, 3, 32, 32)
    layer = net.encoder.layers[-1].ln_1
    with pytest.raises(
        ValueError, match=r"\(2, 17, 16\).*attribution\.tokens_to_map\(4, prefix=1\)"
    ):
        gradcam(net, layer, x, [1, 2])
    expected = by_definition(
        net, layer, x, [1, 2], lambda a: to_first(a[:, 1:].reshape(len(a), 4, 4, 16))
    )
    found = gradcam(net, layer, x, [1, 2], reshape=tokens_to_map(4))
    assert_allclose(found, expected, atol=1e-12)
    assert abs(expected).max() > 1e-4


def test_tokens_run_along_rows():
    tokens = torch.arange(2 * 8 * 3).reshape(2, 8, 3)
    found = tokens_to_map((2, 3), prefix=2)(tokens)
    assert found.shape == (2, 3, 2, 3)
    for b, c, i, j in np.ndindex(found.shape):
        assert found[b, c, i, j] == tokens[b, 2 + 3 * i + j, c]
    assert_array_equal(tokens_to_map(2, prefix=4)(tokens), tokens_to_map((2, 2), prefix=4)(tokens))


def test_tokens_that_do_not_fit_are_named():
    net, x = transformer(), photographs(1, 3, 32, 32)
    layer = net.encoder.layers[-1].ln_1
    with pytest.raises(ValueError, match=r"1 \+ 5 x 5, channels\) .* got \(1, 17, 16\)"):
        gradcam(net, layer, x, [1], reshape=tokens_to_map(5))
    for size, prefix in ((0, 1), ((4, -4), 1), (4, -1)):
        with pytest.raises(ValueError, match=re.escape(f"not negative: {size}, {prefix}")):
            tokens_to_map(size, prefix)


# --- layers that give no map ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reshape", "shape"),
    [
        (lambda a: a[:, 0], "(3, 16, 16)"),
        (lambda a: a[:1], "(1, 4, 16, 16)"),
        (lambda a: a.reshape(6, 2, 16, 16), "(6, 2, 16, 16)"),
        (lambda a: a.numpy().sum((1, 2, 3)), "(3,)"),
        (lambda a: None, "()"),
    ],
)
def test_a_reshape_that_gives_no_map_is_named(reshape, shape):
    x = photographs()
    net = with_head(nn.Conv2d(3, 4, 3, padding=1), x=x)
    message = f"(B, channels, height, width) with B = 3, got {shape} from (3, 4, 16, 16)"
    with pytest.raises(ValueError, match="reshape must give " + re.escape(message)):
        gradcam(net, net[0], x, [0, 1, 2], reshape=reshape)


def test_other_layers_are_named():
    x, target = photographs(), [0, 1, 2]
    net = with_head(nn.Conv2d(3, 4, 3), x=x)
    with pytest.raises(ValueError, match="layer must be a part of the model, got Conv2d"):
        gradcam(net, nn.Conv2d(2, 3, 3), x, target)
    with pytest.raises(ValueError, match=r"layer must give \(B, channels.*got \(3, 4\)$"):
        gradcam(net, net[2], x, target)


def test_a_layer_that_sees_quarters_of_an_image_is_named_and_put_together():
    """Quarters (4 B, 3, 8, 8) go through the convolution on their own."""
    x = photographs()

    def quarters(a):
        return a.unflatten(3, (2, -1)).unflatten(2, (2, -1)).permute(0, 2, 4, 1, 3, 5).flatten(0, 2)

    def whole(a):
        return a.unflatten(0, (-1, 2, 2)).permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3)

    net = with_head(Function(quarters), nn.Conv2d(3, 4, 1), Function(whole), x=x)
    with pytest.raises(ValueError, match=r"with B = 3, got \(12, 4, 8, 8\)"):
        gradcam(net, net[1], x, [0, 1, 2])
    expected = gradcam(net, net[2], x, [0, 1, 2])
    assert_allclose(gradcam(net, net[1], x, [0, 1, 2], reshape=whole), expected, atol=1e-12)


class Odd(nn.Module):
    """Layers that are used in ways that leave no map to explain."""

    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 3, 3, padding=1), nn.Linear(3, 4)
        self.unused, self.aside = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)
        self.blind, self.pair = nn.Conv2d(3, 3, 1), Function(lambda a: (a, a))

    def forward(self, x):
        x, _ = self.pair(self.conv(self.conv(x)))
        self.aside(x)
        return self.head(x.mean((2, 3)) + self.blind(torch.ones_like(x)).mean((2, 3)))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("conv", "called once in a forward pass, Conv2d is called 2 times"),
        ("unused", "called once in a forward pass, Conv2d is called 0 times"),
        ("aside", "lead to the explained output, that of Conv2d does not"),
        ("pair", "give a tensor, Function gives a tuple: take a module"),
    ],
)
def test_layers_that_are_used_oddly_are_named(name, message):
    net = seeded(Odd())
    with pytest.raises(ValueError, match=message):
        gradcam(net, net.get_submodule(name), photographs(), [0, 1, 2])
    assert not any(part._forward_hooks for part in net.modules())


def test_a_layer_that_does_not_see_the_image_is_named():
    net = seeded(Odd()).requires_grad_(False)
    with pytest.raises(ValueError, match="layer must depend on x, the output of Conv2d does not"):
        gradcam(net, net.blind, photographs(), [0, 1, 2])


def test_it_is_among_the_attributions():
    assert attribution.gradcam is gradcam
