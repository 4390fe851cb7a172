"""Frozen ImageNet classifiers on images in [0, 1]."""

from math import ceil
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from xaiutils.data import assets
from xaiutils.data.arrays import read_arrays


class _Spec(NamedTuple):
    side: int  # pixels
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    width: float = 1.0  # EfficientNet-Lite's factor on the channels of the stages
    depth: float = 1.0  # and on the repeats of the inner ones
    weights: str | None = None  # asset; None: torchvision fetches them


_LITE = {"mean": (0.498,) * 3, "std": (0.502,) * 3}
_SPECS = {
    "efficientnet_lite0": _Spec(224, **_LITE, weights="efficientnet-lite0-57934424.pth"),
    "efficientnet_lite1": _Spec(240, **_LITE, depth=1.1, weights="efficientnet-lite1-77cc7160.pth"),
    "efficientnet_lite2": _Spec(
        260, **_LITE, width=1.1, depth=1.2, weights="efficientnet-lite2-9656183e.pth"
    ),
    "resnet50": _Spec(224, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)),
    # Caffe's: levels 0..255 less a mean. Its channels are BGR, see `_squeezenet_weights`.
    "squeezenet1_1": _Spec(
        224,
        mean=(123.68 / 255, 116.779 / 255, 103.939 / 255),
        std=(1 / 255,) * 3,
        weights="squeezenet_weights.pkl",
    ),
}
NAMES = tuple(_SPECS)


def load(name: str, *, pretrained: bool = True) -> "Classifier":
    """Load a classifier: evaluation mode, parameters frozen, batch norm folded.

    Parameters
    ----------
    name : {"efficientnet_lite0", "efficientnet_lite1", "efficientnet_lite2", "resnet50", \
            "squeezenet1_1"}
    pretrained : bool
        False gives random weights, the same at every call: an untrained control.

    Returns
    -------
    Classifier
        Maps images (N, 3, H, W) in [0, 1] to logits (N, 1000); those of squeezenet1_1 are at
        least 0, since it ends in averages of ReLUs.

    Raises
    ------
    ValueError
        Unknown name.
    xaiutils.data.assets.AssetError
        The weights cannot be fetched or verified.
    RuntimeError
        The weights of resnet50 are not on this machine and cannot be fetched.

    Notes
    -----
    EfficientNet-Lite: Tan & Le (2019), "EfficientNet", ICML, in the TensorFlow authors' variant
    without squeeze-excite and with ReLU6. ResNet-50: torchvision's IMAGENET1K_V2 weights.
    SqueezeNet 1.1: Iandola et al. (2016), arXiv:1602.07360, with the weights of the package ndf.
    """
    return _load(name, pretrained, fold=True)


class Classifier(nn.Module):
    """A network with its preprocessing inside: images in [0, 1] to logits.

    An image whose height and width are not `side` is resized (bicubic with antialiasing) so that
    its shorter side is 256/224 of `side`, then cropped at the centre; all of it is differentiable.

    Attributes
    ----------
    name : str
    side : int
        Height and width, in pixels, that reach the network without resizing.
    """

    def __init__(self, name: str, network: nn.Module, spec: _Spec):
        super().__init__()
        self.name, self.side, self.network = name, spec.side, network
        self.register_buffer("mean", torch.tensor(spec.mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(spec.std).view(1, 3, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, 1000) of images `x` (N, 3, H, W), floating point in [0, 1]."""
        if x.ndim != 4 or x.shape[1] != 3 or not x.is_floating_point():
            raise ValueError(
                f"x: expected floating-point images (N, 3, H, W) in [0, 1], got {x.dtype} of shape "
                f"{tuple(x.shape)}; convert uint8 with x.permute(0, 3, 1, 2).float() / 255"
            )
        if x.shape[2:] != (self.side, self.side):
            from torchvision.transforms import InterpolationMode  # two seconds
            from torchvision.transforms.functional import center_crop, resize

            shorter = round(self.side * 256 / 224)
            x = resize(x, shorter, InterpolationMode.BICUBIC, antialias=True)
            x = center_crop(x, self.side)
        return self.network((x - self.mean) / self.std)


def _load(name: str, pretrained: bool, fold: bool) -> Classifier:
    if name not in _SPECS:
        raise ValueError(f"name: {name!r} is not a classifier; choose one of {', '.join(NAMES)}")
    spec = _SPECS[name]
    # Building draws initial weights from the global generator: give it back as it was.
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        lite = name.startswith("efficientnet_lite")
        network = _efficientnet_lite(spec) if lite else _torchvision(name)
    if pretrained:
        network.load_state_dict(_weights(spec, network))
    network.eval().requires_grad_(False)
    if fold:
        _fold_batch_norm(network)
    return Classifier(name, network, spec).eval().to(memory_format=torch.channels_last)


def _weights(spec: _Spec, network: nn.Module) -> dict[str, Tensor]:
    """State of a network from its file."""
    if spec.weights is None:
        return _resnet50_weights()
    file = assets.path(spec.weights)
    if file.suffix == ".pkl":
        values = _squeezenet_weights(file)
    else:
        values = torch.load(file, weights_only=True, map_location="cpu").values()
    # The files name their layers differently but list them in the order of the forward pass.
    return dict(zip(network.state_dict(), values, strict=True))


def _squeezenet_weights(file: Path) -> list[Tensor]:
    """Kernels and biases in the order of the forward pass, for RGB images."""
    with file.open("rb") as stream:
        layers = read_arrays(stream, file.name)
    layers["conv10"] = layers.pop("conv10")  # the last, listed second
    tensors = [torch.from_numpy(array) for layer in layers.values() for array in layer]
    # Height, width, in, out -> out, in, height, width.
    tensors = [t.permute(3, 2, 0, 1) if t.ndim == 4 else t for t in tensors]
    tensors[0] = tensors[0].flip(1)  # looks at BGR
    return tensors


def _torchvision(name: str) -> nn.Module:
    from torchvision import models  # two seconds, for these networks only

    return getattr(models, name)()


def _resnet50_weights() -> dict[str, Tensor]:
    from torchvision.models import ResNet50_Weights

    weights = ResNet50_Weights.IMAGENET1K_V2
    try:
        return weights.get_state_dict(check_hash=True)
    except OSError as error:
        raise RuntimeError(
            f"resnet50: the IMAGENET1K_V2 weights (98 MB) are not in {torch.hub.get_dir()}/"
            f"checkpoints and could not be fetched from {weights.url} ({error}); run once with "
            "internet access, or copy that file there"
        ) from error


def _fold_batch_norm(module: nn.Module) -> None:
    """Merge, in place, each batch norm into the convolution defined right before it."""
    before = None, None
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            setattr(module, before[0], fuse_conv_bn_eval(before[1], child))
            setattr(module, name, nn.Identity())
        else:
            _fold_batch_norm(child)
        before = name, child


# kernel, stride, expansion, channels, repeats of the seven stages
_STAGES = (
    (3, 1, 1, 16, 1),
    (3, 2, 6, 24, 2),
    (5, 2, 6, 40, 2),
    (3, 2, 6, 80, 3),
    (5, 1, 6, 112, 3),
    (5, 2, 6, 192, 4),
    (3, 1, 6, 320, 1),
)


def _efficientnet_lite(spec: _Spec) -> nn.Sequential:
    size, width = ceil(spec.side / 2), 32
    layers = [_conv(3, width, 3, spec.side, stride=2)]
    for stage, (kernel, stride, expansion, channels, repeats) in enumerate(_STAGES):
        channels = _multiple_of_eight(channels * spec.width)
        if 0 < stage < len(_STAGES) - 1:  # the Lite variants keep the outer stages as they are
            repeats = ceil(repeats * spec.depth)
        for _ in range(repeats):
            layers.append(_Block(width, channels, kernel, size, stride, expansion))
            size, width, stride = ceil(size / stride), channels, 1
    return nn.Sequential(
        *layers,
        _conv(width, 1280, 1, size),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(1280, 1000),
    )


def _multiple_of_eight(channels: float) -> int:
    """The nearest one, not below nine tenths of `channels`: the TensorFlow authors' rule."""
    nearest = max(8, int(channels + 4) // 8 * 8)
    return nearest + 8 * (nearest < 0.9 * channels)


class _Block(nn.Module):
    """Inverted residual: expand 1x1, depthwise, project 1x1, plus the input where shapes allow."""

    def __init__(self, width, channels, kernel, size, stride, expansion):
        super().__init__()
        wide = width * expansion
        self.skip = stride == 1 and width == channels
        self.body = nn.Sequential(
            *([_conv(width, wide, 1, size)] if expansion > 1 else []),
            _conv(wide, wide, kernel, size, stride, groups=wide),
            _conv(wide, channels, 1, ceil(size / stride), activation=False),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x) if self.skip else self.body(x)


def _conv(width, channels, kernel, size, stride=1, groups=1, activation=True) -> nn.Sequential:
    """Convolution, batch norm, ReLU6, with TensorFlow's "same" padding of maps (size, size)."""
    padding = max((ceil(size / stride) - 1) * stride + kernel - size, 0)
    low, high = padding // 2, padding - padding // 2  # TensorFlow puts the odd pixel at the end
    layers = [] if low == high else [nn.ZeroPad2d((low, high, low, high))]
    low = low if low == high else 0
    layers += [
        nn.Conv2d(width, channels, kernel, stride, low, groups=groups, bias=False),
        nn.BatchNorm2d(channels, eps=1e-3),
    ]
    return nn.Sequential(*layers, *([nn.ReLU6()] if activation else []))
