#!/usr/bin/env bash
# captum: DeepLIFT of a softmax depends on the other rows of the batch, and DeepLIFT of a max
# pooling whose windows overlap does not add up; neither warns.
#
# Version:   captum 0.9.0, torch 2.14.1 on a CPU; Linux, Python 3.11.
# Behaviour: nn.Softmax and nn.MaxPool1d are in captum's list of nonlinearities with a rescale rule.
#            The rule of the softmax subtracts a mean over the whole batch instead of one over the
#            classes of a row, so that an attribution changes with the rows explained beside it. The
#            rule of the pooling gives each input the slope of one window it is the largest of. The
#            sums should be f(x) - f(baseline) ("due").
# Output seen:
#   captum 0.9.0, torch 2.14.1
#   softmax:            alone 0.0533, beside four others 0.0357, due 0.0417
#   overlapping MaxPool: sum 0.0869, due 0.1520
#   unchanged
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check captum==0.9.0 torch==2.14.1

venv/bin/python - 2>/dev/null <<'EOF'
import sys
import warnings

import captum
import torch
from captum.attr import DeepLift
from torch import nn

warnings.simplefilter("ignore")
torch.manual_seed(0)
x, start = torch.rand(5, 3).double(), torch.rand(5, 3).double()


def attributed(model, rows):
    with torch.no_grad():
        due = (model(x[:1]) - model(start[:1]))[0, 0].item()
    return DeepLift(model).attribute(x[:rows], start[:rows], target=0)[0].sum().item(), due


softmax = nn.Sequential(nn.Linear(3, 4), nn.Softmax(dim=1), nn.Linear(4, 2)).double()
alone, due = attributed(softmax, 1)
beside, _ = attributed(softmax, 5)
print(f"captum {captum.__version__}, torch {torch.__version__.split('+')[0]}")
print(f"softmax:            alone {alone:.4f}, beside four others {beside:.4f}, due {due:.4f}")

x, start = torch.rand(1, 1, 8).double(), torch.rand(1, 1, 8).double()
pooled = nn.Sequential(
    nn.Conv1d(1, 2, 1), nn.MaxPool1d(3, stride=1), nn.Flatten(), nn.Linear(12, 1)
).double()
found, wanted = attributed(pooled, 1)
print(f"overlapping MaxPool: sum {found:.4f}, due {wanted:.4f}")
same = abs(alone - beside) > 1e-3 and abs(alone - due) > 1e-3 and abs(found - wanted) > 1e-3
print("unchanged" if same else "CHANGED")
sys.exit(not same)
EOF
