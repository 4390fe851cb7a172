"""DeepLIFT by the rescale rule, over captum, and its mean over several baselines.

Arguments and errors that all attributions share: see `attribution`. Of the explained scalars,
logits and differences of logits are possible; a softmax has no rescale rule.
"""

from __future__ import annotations

import copy
import warnings

import numpy as np
import torch
from captum.attr import DeepLift
from captum.attr._core.deep_lift import SUPPORTED_NON_LINEAR

from xaiutils import probe
from xaiutils.explained import Task


def deeplift(
    model, x, baseline, target, *, against=None, log_probability: bool = False, batch_size: int = 16
) -> np.ndarray:
    """DeepLIFT, rescale rule: x - baseline times the multipliers of the network, (n, *shape).

    Parameters
    ----------
    model : torch.nn.Module
        Each nonlinearity must be a torch.nn module of its own (ReLU, LeakyReLU, ELU, Softplus,
        Sigmoid, Tanh or a MaxPool whose windows do not overlap) that is called once.
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
        Also if the sums miss f(x) - f(baseline): the model holds a nonlinearity without a rule.
    RuntimeError
        By captum, if a nonlinearity is called twice.

    Notes
    -----
    Shrikumar, Greenside and Kundaje, *Learning Important Features Through Propagating Activation
    Differences*, ICML 2017. captum hooks a copy of the model.
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
    given, (n, *shape) = torch.as_tensor(baselines).detach(), task.x.shape
    each = given.expand(n, *given.shape) if given.ndim == task.x.ndim else given
    if (*each.shape[:1], *each.shape[2:]) != (n, *shape) or each.shape[1] == 0:
        raise ValueError(
            f"baselines must be (m, *shape) or (n, m, *shape) with n = {n}, shape = "
            f"{tuple(shape)} and m at least 1, got {tuple(given.shape)}"
        )
    return _mean(task, each, batch_size)


class _Pairs(torch.nn.Module):
    """The scalars (2 B,) of B inputs followed by their B baselines; keeps what it saw last."""

    def __init__(self, task: Task, rows: np.ndarray):
        super().__init__()
        self.model, self.task, self.rows = task.model, task, np.tile(rows, 2)

    def forward(self, batch):
        out = self.model(batch)
        scalars = self.task.explained(out, self.rows)
        self.rounding = 1e-4 * out.detach().abs().max()
        self.at_x, self.at_baseline = scalars.detach().chunk(2)
        return scalars


def _task(model, x, target, against, log_probability) -> Task:
    if log_probability:
        raise ValueError(
            "log_probability must be False for DeepLIFT: the rescale rule is not defined for a "
            "softmax; explain a logit or, with against, a difference of logits"
        )
    # captum leaves tensors on modules that no gradient reaches, and on all after an error.
    task = Task(model, x, target, against)
    probe.check(model, task.x[0])  # a batch of one is still a pair
    task.model = copy.deepcopy(model)
    for part in task.model.modules():
        if type(part) in SUPPORTED_NON_LINEAR:
            # On a tensor shared by two nonlinearities, ReLU and MaxPool say, the hook of the first
            # would read the gradient before that of the second has put the multiplier there.
            part.register_forward_pre_hook(lambda _, given: tuple(value.clone() for value in given))
    return task


def _mean(task: Task, baselines, batch_size: int) -> np.ndarray:
    """Mean of DeepLIFT over `baselines` (n, m, *shape)."""
    m = baselines.shape[1]
    total = torch.zeros_like(task.x)
    for pieces, rows, copies in task.batches(m, batch_size):
        starts = baselines[rows, copies].to(task.x)
        pairs = _Pairs(task, rows)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", r"\s*Setting forward, backward hooks")
            parts = DeepLift(pairs).attribute(task.x[rows].requires_grad_(), starts).detach()
        _check_sums(parts.flatten(1), pairs, rows)
        for i, piece in pieces:
            total[i] += parts[piece].sum(0)
    return (total / m).cpu().numpy()


def _check_sums(parts, pairs: _Pairs, rows) -> None:
    """Raise ValueError unless the attributions (B, values) add up.

    A nonlinearity that captum does not know gets its plain gradient, silently. The tolerance
    leaves room for the reduced precision of convolutions on some devices.
    """
    found, wanted = parts.sum(1), pairs.at_x - pairs.at_baseline
    excess = (found - wanted).abs() - 0.01 * parts.abs().sum(1) - pairs.rounding
    worst = int(excess.argmax())
    if excess[worst] > 0:
        raise ValueError(
            f"DeepLIFT of input {rows[worst]} sums to {found[worst]:.4g}, not to f(x) - f(baseline)"
            f" = {wanted[worst]:.4g}: each nonlinearity of the model must be a torch.nn module of "
            "its own that has a rescale rule, see deeplift"
        )
