"""DeepLIFT by the rescale rule, over captum, and its mean over several baselines.

Arguments and errors that all attributions share: see `attribution`. Of the explained scalars,
logits and differences of logits are possible; a softmax has no rescale rule.
"""

from __future__ import annotations

import copy
import functools
import re
import threading
import warnings

import numpy as np
import torch
from torch import nn
from torch.nn import modules

from xaiutils import probe
from xaiutils.data.images import as_real, no_nan
from xaiutils.explained import HOOKS, Task

AFFINE = (
    *(nn.Linear, modules.conv._ConvNd, nn.Unfold, nn.Fold, nn.Embedding),
    *(modules.pooling._AvgPoolNd, modules.pooling._AdaptiveAvgPoolNd, modules.batchnorm._BatchNorm),
    *(nn.Identity, modules.dropout._DropoutNd, nn.Flatten, nn.Unflatten, nn.Upsample),
    *(nn.PixelShuffle, nn.PixelUnshuffle, nn.ChannelShuffle, modules.padding._ConstantPadNd),
    *(modules.padding._ReflectionPadNd, modules.padding._ReplicationPadNd),
    *(modules.padding._CircularPadNd, nn.Sequential, nn.ModuleList, nn.ModuleDict),
    *(nn.ParameterList, nn.ParameterDict),
)
# Nonlinear functions, as torch's graph of gradients names them: for messages, nothing hangs on it.
CURVED = re.compile(
    "(?i)elu|silu|glu|mish|hard|soft|sigmoid|tanh|clamp|threshold|max|min|layernorm|groupnorm|"
    "vectornorm|attention|abs|pow|sqrt|exp$|log|reciprocal|round|sign|sort|topk|std|var"
)

_captum = threading.Lock()  # it warns each time, and filters of warnings belong to all threads


def deeplift(
    model, x, baseline, target, *, against=None, log_probability: bool = False, batch_size: int = 16
) -> np.ndarray:
    """DeepLIFT, rescale rule: x - baseline times the multipliers of the network, (n, *shape).

    Parameters
    ----------
    model : torch.nn.Module
        Each nonlinearity that the input passes must be a torch.nn module of its own (ReLU,
        LeakyReLU, ELU, Softplus, Sigmoid, Tanh or a MaxPool whose windows do not overlap) that is
        called once; everything else must be affine.
    baseline : array or tensor
        Of the shape of `x`, or of one input, shared by the batch.
    x, target, against
        See `attribution`.
    log_probability : bool
        Must be False; here so that all methods can be called alike.
    batch_size : int
        Pairs of an input and a baseline per call of the model.

    Returns
    -------
    ndarray (n, *shape)
        Sums to f(x) - f(baseline), input by input.

    Raises
    ------
    ValueError
        Also if the input passes any other module of torch.nn, if the sums miss f(x) - f(baseline),
        or if multipliers found at the baseline would give other maps than those at x: then a
        function on the way is neither affine between the two nor has a rule.
    RuntimeError
        If a nonlinearity is called twice.

    Notes
    -----
    Shrikumar, Greenside and Kundaje, *Learning Important Features Through Propagating Activation
    Differences*, ICML 2017. captum hooks a copy of the model.

    Examples
    --------
    >>> import numpy as np, torch
    >>> model = torch.nn.Sequential(torch.nn.Linear(2, 1, bias=False), torch.nn.ReLU()).eval()
    >>> _ = model[0].weight.data.copy_(torch.tensor([[3.0, -1.0]]))
    >>> deeplift(model, np.array([[1.0, 1.0]]), np.array([0.0, 4.0]), [0])  # -4 to 2, cut at 0
    array([[1., 1.]], dtype=float32)
    """
    task = _task(model, x, target, against, log_probability)
    return _mean(task, task.baseline(baseline)[:, None], batch_size)


def deepshap(
    model,
    x,
    baselines,
    target,
    *,
    against=None,
    log_probability: bool = False,
    batch_size: int = 16,
) -> np.ndarray:
    """DeepSHAP: mean of DeepLIFT over baselines, (n, *shape); nothing is drawn.

    Parameters
    ----------
    baselines : array or tensor
        (m, *shape), shared by the batch, or (n, m, *shape), m of its own for each input.
    model, x, target, against, log_probability, batch_size
        See `deeplift`, also for what is raised.

    Notes
    -----
    Lundberg and Lee, *A Unified Approach to Interpreting Model Predictions*, NeurIPS 2017.
    """
    task = _task(model, x, target, against, log_probability)
    no_nan("baselines", as_real(baselines, "baselines"))
    given, (n, *shape) = torch.as_tensor(baselines).detach(), task.x.shape
    each = given.expand(n, *given.shape) if given.ndim == task.x.ndim else given
    if (*each.shape[:1], *each.shape[2:]) != (n, *shape) or each.shape[1] == 0:
        raise ValueError(
            f"baselines must be (m, *shape) or (n, m, *shape) with n = {n}, shape = "
            f"{tuple(shape)} and m at least 1, got {tuple(given.shape)}"
        )
    return _mean(task, each, batch_size)


class _Pairs(nn.Module):
    """The scalars (2 B,) of B inputs followed by their B baselines, and what happened on the way.

    Attributes
    ----------
    rows : (B,) int
        Which inputs; set before each call.
    scalars : tensor (2, B)
    multipliers : tensor (2, B, *shape)
        Gradients at the inputs and at the baselines, with captum's rules; set going back.
    size : tensor ()
        Largest output.
    """

    def __init__(self, task: Task):
        super().__init__()
        self.model, self.task, self.called, self.ruled = task.model, task, set(), set()
        for name, part in task.model.named_modules():
            label = f"module {name!r} ({type(part).__name__})"
            if reason := _obstacle(part):
                refuse = functools.partial(_refuse, f"{label} {reason}")
                part.register_forward_pre_hook(refuse, with_kwargs=True)
            elif type(part) in _rules():
                part.register_forward_pre_hook(functools.partial(self._enter, label))
                part.register_forward_hook(self._leave)

    def forward(self, batch):
        batch.register_hook(self._keep)
        out = self.task.outputs(batch)
        scalars = self.task.explained(out, np.tile(self.rows, 2))
        self.last, self.size = scalars.grad_fn, out.detach().abs().max()
        self.scalars = scalars.detach().unflatten(0, (2, -1))
        return scalars

    def why(self) -> str:
        """What may be wrong with the model."""
        steps, waiting = set(), [self.last]
        while waiting:
            step = waiting.pop()
            if step is not None and step not in steps:
                steps.add(step)
                waiting += [before for before, _ in step.next_functions]
        curved = {name for step in steps - self.ruled if CURVED.search(name := _name(step))}
        found = f"; it calls {', '.join(sorted(curved))} as functions" if curved else ""
        return (
            "each nonlinearity of the model must be a torch.nn module of its own that has a "
            f"rescale rule, see deeplift{found}"
        )

    def forget(self) -> None:
        """Let go of the last graph, which holds memory, and be ready for another call."""
        self.last, self.multipliers = None, None
        self.called.clear(), self.ruled.clear()

    def _keep(self, slopes):
        self.multipliers = slopes.unflatten(0, (2, -1))

    def _enter(self, label, part, given):
        # On a tensor shared by two nonlinearities, ReLU and MaxPool say, the hook of the first
        # would read the gradient before that of the second has put the multiplier there.
        copies = tuple(value.clone() for value in given)
        if not any(value.requires_grad for value in copies):  # of weights; captum hooks them too
            return tuple(value.requires_grad_() for value in copies)
        if part in self.called:
            raise RuntimeError(f"DeepLIFT: {label} is used more than once in a forward pass")
        self.called.add(part)
        return copies

    def _leave(self, _part, _given, out):
        step = out.grad_fn
        while _name(step) != "Clone":
            self.ruled.add(step)
            step = step.next_functions[0][0]


def _name(step) -> str:
    """The function whose gradient a step of torch's graph takes."""
    return step.name().partition("Backward")[0]


def _obstacle(part: nn.Module) -> str | None:
    """Why DeepLIFT cannot pass a module; None if it can, or if its graph will tell."""
    if isinstance(part, modules.pooling._MaxPoolNd):
        sides = map(np.atleast_1d, (part.kernel_size, part.stride, part.dilation))
        if any(size > stride or gap > 1 for size, stride, gap in np.broadcast(*sides)):
            return "has windows that overlap or have gaps, for which the rescale rule is not made"
        return "returns indices" if part.return_indices else None
    if type(part) in _rules():
        return None
    if isinstance(part, modules.batchnorm._BatchNorm) and part.running_mean is None:
        return "normalises by its batch, which has no rescale rule"
    if isinstance(part, AFFINE):
        return None
    known = {kind for kind in type(part).__mro__ if kind.__module__.startswith("torch.nn.modules.")}
    return "has no rescale rule" if known - {nn.Module} else None


@functools.cache
def _rules() -> frozenset[type]:
    """Modules for which captum has the rescale rule."""
    from captum.attr._core.deep_lift import SUPPORTED_NON_LINEAR  # see _mean

    # captum's rule for a softmax subtracts a mean over the whole batch.
    return frozenset(SUPPORTED_NON_LINEAR) - {nn.Softmax}


def _refuse(why: str, _part, given, named) -> None:
    values = (*given, *named.values())
    if any(isinstance(value, torch.Tensor) and value.requires_grad for value in values):
        raise ValueError(f"DeepLIFT: {why}, see deeplift")


def _task(model, x, target, against, log_probability) -> Task:
    if log_probability:
        raise ValueError(
            "log_probability must be False for DeepLIFT: the rescale rule is not defined for a "
            "softmax; explain a logit or, with against, a difference of logits"
        )
    task = Task(model, x, target, against)
    probe.check(model, task.x[0])  # a batch of one is still a pair
    # captum leaves tensors on modules that no gradient reaches, and on all after an error.
    with HOOKS, torch.no_grad():
        task.model = copy.deepcopy(model)
    for weight in task.model.parameters():  # gradients are only for what depends on x
        weight.requires_grad_(False)
    return task


def _mean(task: Task, baselines, batch_size: int) -> np.ndarray:
    """Mean of DeepLIFT over `baselines` (n, m, *shape)."""
    from captum.attr import DeepLift  # takes a second, which other methods are spared

    m = baselines.shape[1]
    total, pairs = torch.zeros_like(task.x), _Pairs(task)
    for pieces, rows, copies in task.batches(m, batch_size):
        pairs.rows, starts = rows, baselines[rows, copies].to(task.x)
        change = task.x[rows] - starts
        with _captum, warnings.catch_warnings():
            warnings.filterwarnings("ignore", r"\s*Setting forward, backward hooks")
            parts = DeepLift(pairs).attribute(task.x[rows].requires_grad_(), starts).detach()
        _check(parts, change * pairs.multipliers[1], pairs)
        pairs.forget()
        for i, piece in pieces:
            total[i] += parts[piece].sum(0)
    return (total / m).cpu().numpy()


def _check(parts, from_baseline, pairs: _Pairs) -> None:
    """Raise ValueError unless attributions (B, *shape) add up and are those `from_baseline`.

    What captum does not know gets its plain gradient, silently: the slope at x for one half of the
    pairs, at the baseline for the other. Where rules say everything, both have the same.
    """
    parts, from_baseline = parts.flatten(1), from_baseline.flatten(1)
    found, wanted = parts.sum(1), pairs.scalars[0] - pairs.scalars[1]
    # Where convolutions of a GPU round to 10 bits; on the CPU 1e-6 was the most that was seen.
    rounding = max(
        1e-5 if parts.device.type == "cpu" else 5e-3, 8 * torch.finfo(pairs.task.dtype).eps
    )
    size = parts.abs().sum(1)
    excess = (found - wanted).abs() - rounding * (size + pairs.size)
    worst = int(excess.argmax())
    if not excess[worst] <= 0:
        raise ValueError(
            f"DeepLIFT of input {pairs.rows[worst]} sums to {found[worst]:.4g}, not to "
            f"f(x) - f(baseline) = {wanted[worst]:.4g}: {pairs.why()}"
        )
    excess = (parts - from_baseline).abs().sum(1) - rounding * (size + from_baseline.abs().sum(1))
    worst = int(excess.argmax())
    if not excess[worst] <= 0:
        raise ValueError(
            f"DeepLIFT of input {pairs.rows[worst]} is another with the slopes at the baseline "
            f"than with those at x: {pairs.why()}"
        )
