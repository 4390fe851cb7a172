"""Small changes that flip a detector's decisions, anywhere in the input or in chosen cells only.

Praher, Prinz, Flexer and Widmer, "On the Veracity of Local, Model-agnostic Explanations in Audio
Classification", ISMIR 2021.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialized
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from xaiutils.classifiers import trained
from xaiutils.data import assets

Map = Callable[[Tensor], Tensor]
_STORED = ("delta", "target", "logits", "flipped", "steps")


@dataclass(frozen=True, eq=False)
class Attack:
    """Last state of an attack: input `x` and change `delta` of one shape, the rest per frame (T,).

    `target` is the decision wanted; a frame is `flipped` where its probability lies on that side of
    the threshold, not on it; `logits` are those of the changed input; `steps` were taken.
    """

    x: Tensor
    delta: Tensor
    target: Tensor
    logits: Tensor
    flipped: Tensor
    steps: int

    @property
    def adversarial(self) -> Tensor:
        """The changed input, not clipped to any range."""
        return self.x + self.delta

    @property
    def success(self) -> float:
        """Share of the frames that are flipped, in [0, 1]."""
        return self.flipped.float().mean().item()

    @property
    def all_flipped(self) -> bool:
        return bool(self.flipped.all())


def signed_gradient(
    logits: Map,
    x: Tensor,
    *,
    threshold: float = 0.5,
    target: Tensor | None = None,
    lr: float,
    alpha: float,
    eps: float,
    steps: int = 1000,
    confine: Tensor | Map | None = None,
) -> Attack:
    """Search for a small `delta` with which every frame is decided as `target` says.

    From delta = 0, Adam descends sum(delta^2) + alpha * BCE(logits(x + delta), target), BCE being a
    mean over frames, but gets the signs of the derivatives. It stops once all frames are flipped.

    Parameters
    ----------
    logits : callable
        Differentiable, from an input like `x` to logits (1, T), one per frame.
    x : Tensor
        One input, first axis 1.
    threshold : float
        Probability above which a frame is decided positive, in (0, 1).
    target : Tensor, optional
        (1, T) bool; by default the opposite of what is decided on `x`.
    lr, eps : float
        How far Adam moves a value per step, about, and at most in all; in the units of `x`.
    alpha : float
        Weight of the flip: a mean against a sum, so n times as many frames need n times as much.
    steps : int
        At most, each one forward and backward pass.
    confine : bool Tensor or callable, optional
        Where `x` may change, broadcast against `x`; or a linear projection. It
        acts on the gradient, so that the sign is that of its usable part, and on `delta` after each
        step, before the clip to [-eps, eps].

    Raises ValueError for a number out of its range or a shape that does not fit.

    Examples
    --------
    >>> import torch
    >>> from xaiutils import attack
    >>> x = torch.tensor([[-1.0, 1.0]])  # two frames, whose logits are these values
    >>> found = attack.signed_gradient(lambda x: x, x, lr=0.4, alpha=100.0, eps=2.0)
    >>> found.target
    tensor([ True, False])
    >>> found.adversarial
    tensor([[ 0.2000, -0.2000]])
    >>> found.steps, found.success
    (3, 1.0)
    """
    if not (0 < threshold < 1 and min(lr, eps) > 0 and alpha >= 0 and steps >= 0):
        raise ValueError(
            "threshold must be in (0, 1), lr and eps above 0, alpha and steps at least 0: got "
            f"{threshold=}, {lr=}, {eps=}, {alpha=}, {steps=}"
        )
    _check("x", x, x.is_floating_point() and x.ndim > 1 and len(x) == 1, "floats (1, ...)")
    if not callable(confine):
        mask = torch.as_tensor(True if confine is None else confine, device=x.device)
        pairs = zip(mask.shape[::-1], x.shape[::-1], strict=False)
        fits = mask.ndim <= x.ndim and all(m in (1, n) for m, n in pairs)
        _check("confine", mask, fits and mask.dtype == torch.bool, f"bool like x {tuple(x.shape)}")
    project = confine if callable(confine) else lambda change: torch.where(mask, change, 0)
    delta = torch.zeros_like(x, requires_grad=True)
    adam = torch.optim.Adam([delta], lr=lr)
    for step in range(steps + 1):
        scores = logits(x.detach() + delta)
        _check("logits", scores, scores.ndim == 2 and len(scores) == 1, "floats (1, T)")
        probability = scores.detach().sigmoid()
        if target is None:
            target = ~(probability > threshold)
        fits = target.dtype == torch.bool and target.shape == scores.shape
        _check("target", target, fits, f"bool {tuple(scores.shape)}")
        flipped = torch.where(target, probability > threshold, probability < threshold)
        if flipped.all() or step == steps:
            break
        flip = binary_cross_entropy_with_logits(scores, target.to(scores))
        (gradient,) = torch.autograd.grad(delta.square().sum() + alpha * flip, delta)
        delta.grad = project(gradient.nan_to_num()).sign()
        adam.step()
        with torch.no_grad():
            delta.copy_(project(delta).clamp(-eps, eps))
    return Attack(x.detach(), delta.detach(), target[0], scores.detach()[0], flipped[0], step)


def snr(x: Tensor, delta: Tensor, *, margin: int = 0) -> float:
    """20 log10(norm(x) / norm(delta)) in dB, without `margin` samples at each end of the last axis.

    The paper's margin is 2048, for waveforms. Infinite where `delta` is zero.
    """
    fits = x.shape == delta.shape and 0 <= 2 * margin < x.shape[-1]
    _check("delta", delta, fits, f"the shape of x, {tuple(x.shape)}, longer than 2 * {margin=}")
    signal, noise = (v[..., margin : v.shape[-1] - margin].double().norm() for v in (x, delta))
    return 20 * torch.log10(signal / noise).item()


def cached(name: str, logits: Map, x: Tensor, *parts: object, **settings: object) -> Attack:
    """`signed_gradient(logits, x, **settings)` on one thread, kept in the cache folder as `name`.

    The key holds `x`, the settings, the code of the attack, and `parts`: all that `logits` depends
    on, which it cannot say itself. Modules count by source and weights, tensors by content, other
    parts as in `trained.key`. A damaged file is replaced by a new attack.
    """
    flat = [x, *parts, *(value for pair in sorted(settings.items()) for value in pair)]
    key = trained.key(name, signed_gradient, *(item for part in flat for item in _described(part)))
    file = assets.cache_folder() / "attacks" / f"{name}-{key[:12]}.safetensors"
    try:
        with safe_open(file, "pt") as stored:
            state = {field: stored.get_tensor(field) for field in _STORED}
            intact = stored.metadata()["attack"] == key + _digest(*state.values())
    except (OSError, SafetensorError, TypeError, KeyError):  # missing, or not such a file
        intact = False
    if not intact:
        with trained.one_thread():
            attack = signed_gradient(logits, x, **settings)
        state = {f: torch.as_tensor(getattr(attack, f)).cpu().contiguous() for f in _STORED}
        with assets.writing(file.parent, file.name), assets.replacing(file) as temporary:
            temporary.write_bytes(serialized(state, {"attack": key + _digest(*state.values())}))
    steps = int(state.pop("steps"))
    return Attack(x.detach(), **{f: v.to(x.device) for f, v in state.items()}, steps=steps)


def _described(part: object) -> list:
    """What `trained.key` is to hash."""
    if isinstance(part, nn.Module):
        weights = _digest(*part.parameters(), *part.buffers())
        return [*dict.fromkeys(type(module) for module in part.modules()), weights]
    return [_digest(part)] if isinstance(part, Tensor) else [part]


def _digest(*tensors: Tensor) -> str:
    arrays = [tensor.detach().cpu().numpy() for tensor in tensors]
    content = [f"{array.dtype} {array.shape}".encode() + array.tobytes() for array in arrays]
    return hashlib.sha256(b"".join(content)).hexdigest()


def _check(name: str, tensor: Tensor, fits: bool, expected: str) -> None:
    if not fits:
        raise ValueError(
            f"{name}: expected {expected}, got {tensor.dtype} of shape {tuple(tensor.shape)}"
        )
