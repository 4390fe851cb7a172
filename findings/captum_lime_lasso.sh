#!/usr/bin/env bash
# captum: Lime as it comes takes about .04 off every coefficient, to 0 where there is less.
#
# Version:   captum 0.9.0, torch 2.14.1, scikit-learn 1.9.1 on a CPU; Linux, Python 3.11.
# Behaviour: Lime regresses with a lasso of penalty .01 unless told otherwise, where the package
#            `lime` has a ridge of 1 over all masks. Coins have variance 1/4, so the lasso moves
#            each coefficient by .01 / (1/4) towards 0, however many samples are drawn: much for a
#            probability that many components share. The docstring names the lasso, not what it
#            does to outputs in [0, 1]; and says that 50 samples are drawn, where it is 25.
# Output seen:
#   captum 0.9.0, torch 2.14.1
#   effects of the model: 0.03 0.10 0.20 -0.02
#   Lime, 1000 samples:   0.00 0.06 0.16 0.00
#   with plain least squares: 0.03 0.10 0.20 -0.02
#   samples unless told: 25
#   unchanged
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check captum==0.9.0 torch==2.14.1 \
  scikit-learn==1.9.1

venv/bin/python - 2>/dev/null <<'EOF'
import sys

import captum
import torch
from captum._utils.models.linear_model import SkLearnLinearRegression
from captum.attr import Lime

effects = torch.tensor([0.03, 0.1, 0.2, -0.02])
asked = []


def model(z):
    asked.append(len(z))
    return 0.3 + z @ effects


def found(**options):
    torch.manual_seed(0)
    explainer = Lime(model, **options)
    return explainer.attribute(torch.ones(1, 4), n_samples=1000, perturbations_per_eval=1000)[0]


def shown(values):
    return " ".join(f"{value + 0.0:.2f}" for value in values.tolist())


lasso, plain = found(), found(interpretable_model=SkLearnLinearRegression())
asked.clear()
Lime(model).attribute(torch.ones(1, 4))
print(f"captum {captum.__version__}, torch {torch.__version__.split('+')[0]}")
print("effects of the model:", shown(effects))
print("Lime, 1000 samples:  ", shown(lasso))
print("with plain least squares:", shown(plain))
print("samples unless told:", sum(asked))
moved = (effects - lasso)[1:3]
same = bool((lasso[[0, 3]] == 0).all() and (moved - 0.04).abs().max() < 0.01)
same = same and bool((plain - effects).abs().max() < 1e-3) and sum(asked) == 25
print("unchanged" if same else "CHANGED")
sys.exit(not same)
EOF
