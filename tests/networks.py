"""Small networks and inputs for the tests of forward passes."""

import numpy as np
import torch

X = np.random.default_rng(0).random((3, 8, 8), dtype=np.float32)
BATCH = torch.from_numpy(np.random.default_rng(1).random((5, 3, 8, 8), dtype=np.float32))


def conv_net(seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return torch.nn.Sequential(
            torch.nn.Conv2d(3, 4, 3),
            torch.nn.BatchNorm2d(4),
            torch.nn.ReLU(),
            torch.nn.Dropout(0.5),
            torch.nn.Flatten(),
            torch.nn.Linear(4 * 36, 10),
        ).eval()


class OneByOne(torch.nn.Module):
    """Takes a single input at a time."""

    def __init__(self, inner=None):
        super().__init__()
        self.inner = conv_net() if inner is None else inner

    def forward(self, x):
        if len(x) != 1:
            raise RuntimeError("takes batches of 1")
        return self.inner(x)


class Branches(torch.nn.Module):
    """Control flow that depends on values: no graph can hold it."""

    def __init__(self):
        super().__init__()
        self.sign = torch.nn.Parameter(torch.ones(()))

    def forward(self, x):
        return torch.stack(
            [row.ravel() * (self.sign if row.sum() > 0 else -self.sign) for row in x]
        )


def by_torch(model, batch=BATCH):
    with torch.inference_mode():
        return model(batch).numpy()
