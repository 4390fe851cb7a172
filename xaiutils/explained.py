"""What attributions explain: checked inputs, and one scalar of the outputs for each of them.

The scalar of an input is output `target`, output `target` minus output `against`, or, with
`log_probability`, the logarithm of the softmax of the outputs at `target`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch

from xaiutils import probe, runtime


class Task:
    """Checked inputs on the model's device, and the scalar explained for each of them.

    Parameters
    ----------
    model : torch.nn.Module
        Maps (B, *shape) to logits (B, K), in evaluation mode.
    x : array or tensor (n, *shape)
    target : ints (n,), each in 0..K-1
    against : ints (n,), optional
        Subtract these outputs.
    log_probability : bool
        Explain the log-probability of `target` instead of its logit; only without `against`.

    Raises
    ------
    ValueError
        If a shape or a class does not fit, or if `log_probability` comes with `against`.
    """

    def __init__(self, model, x, target, against=None, log_probability: bool = False):
        x = torch.as_tensor(x).detach()
        if x.ndim < 2 or len(x) == 0:
            raise ValueError(f"x must be a batch (n, ...) of inputs, got shape {tuple(x.shape)}")
        if log_probability and against is not None:
            raise ValueError(
                "log_probability explains target alone: against must be None with it, or "
                "log_probability False"
            )
        weights = [*model.parameters(), *model.buffers()]
        self.model, self.x = model, x.to(next((w for w in weights if w.is_floating_point()), x))
        self.probed = model  # the module whose answers `batches` checks, also for copies of it
        self.target = classes("target", target, len(x))
        self.against = None if against is None else classes("against", against, len(x))
        self.log_probability = log_probability

    def like_x(self, baseline) -> torch.Tensor:
        """`baseline`, anything that broadcasts, with the shape, dtype and device of x."""
        baseline = torch.as_tensor(baseline).detach().to(self.x)
        try:
            return baseline.expand_as(self.x)
        except RuntimeError:
            raise ValueError(
                f"baseline of shape {tuple(baseline.shape)} does not broadcast against x, "
                f"{tuple(self.x.shape)}"
            ) from None

    def baseline(self, values) -> torch.Tensor:
        """One baseline per input or one for all, with the shape, dtype and device of x."""
        values, shape = torch.as_tensor(values), self.x.shape
        if values.shape not in (shape, shape[1:]):
            raise ValueError(
                f"baseline must have the shape of x, {tuple(shape)}, or of one input, "
                f"{tuple(shape[1:])}, got {tuple(values.shape)}"
            )
        return self.like_x(values)

    def per_row(self, values) -> torch.Tensor:
        """`values` (B,) shaped to scale a batch (B, *shape)."""
        return values.view(-1, *(1,) * (self.x.ndim - 1))

    def image_size(self) -> tuple[int, int]:
        """(H, W) of inputs (n, C, H, W); ValueError for any others."""
        if self.x.ndim != 4:
            raise ValueError(f"x must be images (n, C, H, W), got shape {tuple(self.x.shape)}")
        return tuple(self.x.shape[2:])

    def explained(self, out, rows) -> torch.Tensor:
        """The scalar (B,) in outputs (B, K) for copies of inputs `rows` (B,)."""
        out = torch.as_tensor(out)
        if out.ndim != 2 or len(out) != len(rows):
            raise ValueError(
                f"model must return (batch, outputs), got {tuple(out.shape)} for {len(rows)} rows"
            )
        for name, wanted in (("target", self.target), ("against", self.against)):
            if wanted is not None and wanted.max() >= out.shape[1]:
                raise ValueError(f"{name} must be within 0..{out.shape[1] - 1}: {wanted.max()}")
        if self.log_probability:
            out = out.log_softmax(1)
        each = np.arange(len(rows))
        scalar = out[each, self.target[rows]]
        return scalar if self.against is None else scalar - out[each, self.against[rows]]

    def scalar_of(self, rows) -> Callable:
        """Function from a batch of copies of inputs `rows` to its explained scalars."""
        return lambda batch: self.explained(self.model(batch), rows)

    def gradients(self, points, rows) -> torch.Tensor:
        """Gradient of the scalar at `points` (B, *shape), copies of inputs `rows`."""
        with torch.enable_grad():
            points = points.detach().requires_grad_()
            (slopes,) = torch.autograd.grad(self.scalar_of(rows)(points).sum(), points)
        return slopes

    def batches(self, copies: int, batch_size: int) -> Iterator[tuple]:
        """All (input, copy) pairs, input by input, in batches (pieces, inputs, copies).

        `pieces` pairs each input of the batch with its slice of the batch, so that sums over
        copies do not depend on how a device orders scattered additions. A model that takes one
        input at a time gets one.

        Raises
        ------
        ValueError
            If `batch_size` is not positive, or if an input has no single answer, see `probe.check`.
        """
        if not isinstance(batch_size, int | np.integer) or batch_size < 1:
            raise ValueError(f"batch_size must be a positive integer, got {batch_size!r}")
        if probe.check(self.probed, self.x[0], batch_size).single is not None:
            batch_size = 1
        pairs = np.arange(len(self.x) * copies)
        for start in range(0, len(pairs), batch_size):
            rows, copy = np.divmod(pairs[start : start + batch_size], copies)
            inputs, first = np.unique(rows, return_index=True)
            ends = [*first[1:], len(rows)]
            pieces = [(i, slice(a, b)) for i, a, b in zip(inputs, first, ends, strict=True)]
            yield pieces, rows, copy

    def each_gradient(self, copies: int, batch_size: int, points: Callable) -> Iterator[tuple]:
        """The `batches` in order, each with the `gradients` at its points.

        Parameters
        ----------
        copies, batch_size : int
        points : callable
            ``points(inputs, copies) -> tensor (B, *shape)``, called in order.

        Yields
        ------
        pieces, inputs, copies
            See `batches`.
        gradients : tensor (B, *shape)
        """

        def with_gradients(made):
            batch, at = made
            return *batch, self.gradients(at, batch[1])

        batches = ((b, points(*b[1:])) for b in self.batches(copies, batch_size))
        yield from runtime.side_by_side(with_gradients, batches, self.x.device)


def generator(seed: int, image: int) -> torch.Generator:
    """Source of the random numbers of input `image`, on the CPU, the same for any batch size."""
    state = np.random.SeedSequence([seed, image]).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state))


def classes(name: str, values, n: int, kind: str = "output indices") -> np.ndarray:
    """`values`, called `name`, as ints (n,) >= 0; ValueError, which calls them `kind`, if not."""
    values = values.cpu().numpy() if isinstance(values, torch.Tensor) else np.asarray(values)
    if values.shape != (n,) or values.dtype.kind not in "iu" or values.min() < 0:
        raise ValueError(f"{name} must hold {n} {kind} >= 0: {values.dtype} {values.shape}")
    return values
