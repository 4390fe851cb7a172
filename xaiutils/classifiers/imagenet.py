"""Frozen ImageNet classifiers on images in [0, 1]."""

from math import ceil
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from xaiutils.data import assets


class _Spec(NamedTuple):
    side: int  # pixels
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    depth: float = 1.0  # EfficientNet-Lite's factor on the repeats of the inner stages
    weights: str | None = None  # asset; None: torchvision fetches them


_LITE = {"mean": (0.498,) * 3, "std": (0.502,) * 3}
_SPECS = {
    "efficientnet_lite0": _Spec(224, **_LITE, weights="efficientnet-lite0-57934424.pth"),
    "efficientnet_lite1": _Spec(240, **_LITE, depth=1.1, weights="efficientnet-lite1-77cc7160.pth"),
    "resnet50": _Spec(224, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)),
}
NAMES = tuple(_SPECS)


def load(name: str, *, pretrained: bool = True) -> "Classifier":
    """Load a classifier: evaluation mode, parameters frozen, batch norm folded.

    Parameters
    ----------
    name : {"efficientnet_lite0", "efficientnet_lite1", "resnet50"}
    pretrained : bool
        False gives random weights, the same at every call: an untrained control.

    Returns
    -------
    Classifier
        Maps images (N, 3, H, W) in [0, 1] to logits (N, 1000).

    Raises
    ------
    ValueError
        Unknown name.
    RuntimeError
        The weights of resnet50 are not on this machine and cannot be fetched.

    Notes
    -----
    EfficientNet-Lite: Tan & Le (2019), "EfficientNet", ICML, in the TensorFlow authors' variant
    without squeeze-excite and with ReLU6. ResNet-50: torchvision's IMAGENET1K_V2 weights.
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
        network = _resnet50() if name == "resnet50" else _efficientnet_lite(spec)
    if pretrained and spec.weights is None:
        network.load_state_dict(_resnet50_weights())
    elif pretrained:
        state = torch.load(assets.path(spec.weights), weights_only=True, map_location="cpu")
        # The file names its layers differently but lists them in the order of the forward pass.
        network.load_state_dict(dict(zip(network.state_dict(), state.values(), strict=True)))
    network.eval().requires_grad_(False)
    if fold:
        _fold_batch_norm(network)
    return Classifier(name, network, spec).eval().to(memory_format=torch.channels_last)


def _resnet50() -> nn.Module:
    from torchvision.models import resnet50  # two seconds, for this network only

    return resnet50()


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
