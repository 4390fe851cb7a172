"""What an import changes of the program around it; run in a process of its own.

``python import_probe.py MODULE...`` imports the modules one after another and prints a JSON object:
module -> what was no longer as before. `LOADED` prints which modules a process has loaded.
"""

import importlib
import json
import locale
import logging
import os
import random
import signal
import sys
import warnings

import matplotlib
import numpy as np
import torch

LOADED = "import json, sys; print(json.dumps(sorted(sys.modules)))"  # for the end of a program


def settle():
    """Settings of a user who has some of their own."""
    matplotlib.use("svg")
    matplotlib.rcParams["font.size"] = 14
    warnings.simplefilter("error", category=FutureWarning)
    logging.basicConfig(level=logging.INFO)
    torch.manual_seed(7)
    np.random.seed(7)  # noqa: NPY002
    random.seed(7)
    torch.set_num_threads(1)


def state():
    """Everything of a process that its modules share."""
    return {
        "matplotlib's settings": dict(matplotlib.rcParams),
        "matplotlib's backend": matplotlib.get_backend(),
        "numpy's random state": str(np.random.get_state()),  # noqa: NPY002
        "torch's random state": torch.get_rng_state().tolist(),
        "Python's random state": random.getstate(),
        "torch's threads": (torch.get_num_threads(), torch.get_num_interop_threads()),
        "torch's default type": torch.get_default_dtype(),
        "torch's gradients": torch.is_grad_enabled(),
        "torch's determinism": torch.are_deterministic_algorithms_enabled(),
        "numpy's errors and printing": (np.geterr(), np.get_printoptions()),
        "environment variables": dict(os.environ),
        "filters of warnings": list(warnings.filters),
        "logging": {name: settings for name, settings in loggers() if any(settings)},
        "locale": locale.setlocale(locale.LC_ALL),
        "working directory": os.getcwd(),
        "signals": [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)],
        "hooks": (sys.excepthook, sys.displayhook, sys.stdout, sys.stderr),
        "search path": list(sys.path),
    }


def loggers():
    """Level, whether it is off, and handlers that write, of every logger."""
    known = {name: logging.getLogger(name) for name in list(logging.root.manager.loggerDict)}
    for name, logger in {"root": logging.root, **known}.items():
        writing = [h for h in logger.handlers if not isinstance(h, logging.NullHandler)]
        yield name, (logger.level, logger.disabled, not logger.propagate, len(writing))


def changes(names):
    """By module, what its import changed."""
    found = {}
    for name in names:
        before = state()
        importlib.import_module(name)
        after = state()
        found[name] = [what for what in after if after[what] != before[what]]
    return found


if __name__ == "__main__":
    settle()
    print(json.dumps(changes(sys.argv[1:])))
