#!/usr/bin/env bash
# torch.onnx: a module that counts its inputs is exported for one size of batch only, although a
# dynamic one was asked for, and without an error.
#
# Version:   torch 2.14.1, onnx 1.23.2, onnxscript 0.7.2, onnxruntime 1.31.1, numpy 2.4.6; Linux, Python 3.11.
# Behaviour: torch.onnx.export(dynamo=True, dynamic_shapes={0: Dim("batch")}) of a forward pass with
#            `self.seen += len(x)` succeeds, but the exported input has the size of the example. The
#            session then refuses every other size. Without the counter the size is dynamic.
# Output seen:
#   torch 2.14.1, onnxruntime 1.31.1
#   shape of the exported input: [2, 3]
#   a batch of 1: [ONNXRuntimeError] : 2 : INVALID_ARGUMENT : Got invalid dimensions for input: x for the following indices
#   unchanged
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check \
  torch==2.14.1 onnx==1.23.2 onnxscript==0.7.2 onnxruntime==1.31.1 numpy==2.4.6

venv/bin/python - 2>/dev/null <<'EOF'
import io
import logging
import sys
import warnings
from contextlib import redirect_stderr, redirect_stdout

import numpy as np
import onnxruntime
import torch

warnings.simplefilter("ignore")
logging.disable(logging.ERROR)


class Counted(torch.nn.Module):
    """Counts the images it has seen, as a model that is monitored does."""

    def __init__(self):
        super().__init__()
        self.layer, self.seen = torch.nn.Linear(3, 2), 0

    def forward(self, x):
        self.seen += len(x)
        return self.layer(x)


with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
    torch.onnx.export(
        Counted().eval(),
        (torch.rand(2, 3),),
        "counted.onnx",
        dynamo=True,
        dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=1024)},),
    )
session = onnxruntime.InferenceSession("counted.onnx", providers=["CPUExecutionProvider"])
(given,) = session.get_inputs()
print(f"torch {torch.__version__.split('+')[0]}, onnxruntime {onnxruntime.__version__}")
print(f"shape of the exported input: {given.shape}")
try:
    session.run(None, {given.name: np.zeros((1, 3), np.float32)})
    refused = False
except Exception as error:
    refused = True
    print("a batch of 1:", str(error).splitlines()[0][:120])
same = refused and given.shape[0] == 2
print("unchanged" if same else "CHANGED")
sys.exit(not same)
EOF
