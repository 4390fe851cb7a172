#!/usr/bin/env bash
# torch: the counter of operations that it ships works with backward(), not with autograd.grad().
#
# Version:   torch 2.14.1 on a CPU; Linux, Python 3.11.
# Behaviour: Inside torch.utils.flop_counter.FlopCounterMode the gradient of a module with respect
#            to its input can be had by backward() and is counted; torch.autograd.grad() of the same
#            raises RuntimeError from a hook that tells modules apart. So saliency maps and attacks,
#            which ask for gradients of inputs, cannot be counted. A dispatch mode of one's own over
#            the public table flop_registry counts both, and agrees with it on backward().
#            Known: https://github.com/pytorch/pytorch/issues/131753 (open since torch 2.4).
# Output seen:
#   torch 2.14.1
#   backward:      480 operations, by the table 480
#   autograd.grad: RuntimeError, by the table 480
#   unchanged
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check torch==2.14.1

venv/bin/python - 2>/dev/null <<'EOF'
import sys

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode, flop_registry

model = nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 2)).requires_grad_(False)
x = torch.rand(3, 8, requires_grad=True)


class Table(TorchDispatchMode):
    total = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **kwargs or {})
        if func._overloadpacket in flop_registry:
            self.total += flop_registry[func._overloadpacket](*args, **kwargs or {}, out_val=out)
        return out


def counted(slope):
    with Table() as table:
        slope(model(x).sum())
    try:
        with FlopCounterMode(display=False) as counter:
            slope(model(x).sum())
    except RuntimeError as error:
        return type(error).__name__, table.total
    return counter.get_total_flops(), table.total


back, grad = counted(lambda y: y.backward()), counted(lambda y: torch.autograd.grad(y, x))
print(f"torch {torch.__version__.split('+')[0]}")
print(f"backward:      {back[0]} operations, by the table {back[1]}")
print(f"autograd.grad: {grad[0]}, by the table {grad[1]}")
same = back[0] == back[1] == grad[1] and grad[0] == "RuntimeError"
print("unchanged" if same else "CHANGED")
sys.exit(not same)
EOF
