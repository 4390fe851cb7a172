"""Small networks and inputs for the tests of forward passes."""

import numpy as np
import torch
from torch import nn

X = np.random.default_rng(0).random((3, 8, 8), dtype=np.float32)
BATCH = torch.from_numpy(np.random.default_rng(1).random((5, 3, 8, 8), dtype=np.float32))


def conv_net(seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(3, 4, 3),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            nn.Dropout(0.5),
            nn.Flatten(),
            nn.Linear(4 * 36, 10),
        ).eval()


class OneByOne(nn.Module):
    """Takes a single input at a time."""

    def __init__(self, inner=None):
        super().__init__()
        self.inner = conv_net() if inner is None else inner

    def forward(self, x):
        if len(x) != 1:
            raise RuntimeError("takes batches of 1")
        return self.inner(x)


class Branches(nn.Module):
    """Control flow that depends on values: no graph can hold it."""

    def __init__(self):
        super().__init__()
        self.sign = nn.Parameter(torch.ones(()))

    def forward(self, x):
        return torch.stack(
            [row.ravel() * (self.sign if row.sum() > 0 else -self.sign) for row in x]
        )


class Around(nn.Module):
    """`function(network, x)`."""

    def __init__(self, function, network=None):
        super().__init__()
        self.function, self.network = function, conv_net() if network is None else network

    def forward(self, x):
        return self.function(self.network, x)


def around(function, network=None):
    return Around(function, network).eval()


class Recurrent(nn.Module):
    """Reads the rows of an image; `over_batch`, it takes the images for the rows."""

    def __init__(self, dropout=0.0, over_batch=False):
        super().__init__()
        self.read = nn.LSTM(24, 6, 2, dropout=dropout, batch_first=not over_batch)

    def forward(self, x):
        return self.read(x.permute(0, 2, 1, 3).flatten(2))[0][:, -1]


class Attention(nn.Module):
    def __init__(self, dropout):
        super().__init__()
        self.attend = nn.MultiheadAttention(8, 2, dropout=dropout, batch_first=True)

    def forward(self, x):
        z = x.flatten(1, 2)
        return self.attend(z, z, z, need_weights=False)[0].mean(1)


class TwoHeads(nn.Module):
    """Has a second output in training mode."""

    def forward(self, x):
        return (x.flatten(1), x.mean()) if self.training else x.flatten(1)


class Drifting(nn.Module):
    """Subtracts a mean that follows what it is asked."""

    def __init__(self):
        super().__init__()
        self.network = conv_net()
        self.register_buffer("mean", torch.zeros(()))

    def forward(self, x):
        self.mean.lerp_(x.mean(), 0.01)
        return self.network(x - self.mean)


class NotCopied(nn.Module):
    def __init__(self, network):
        super().__init__()
        self.network = network

    def __deepcopy__(self, memo):
        raise TypeError("holds a file")

    def forward(self, x):
        return self.network(x)


class Shared(NotCopied):
    def __deepcopy__(self, memo):
        return self


def by_torch(model, batch=BATCH):
    with torch.inference_mode():
        return model(batch).numpy()
