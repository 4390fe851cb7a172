"""Importing the package changes nothing of the program that imports it."""

import json
import os
import subprocess
import sys

import import_probe

from xaiutils.companion import provenance

# Libraries we need whose own import changes something, each only what concerns itself.
KNOWN = {
    "requests": ["filters of warnings"],  # how its own warnings and those of urllib3 are shown
    "scipy.special": ["filters of warnings"],  # its own SpecialFunctionWarning
    "sklearn": ["environment variables", "filters of warnings"],  # KMP_*, for two OpenMP libraries
    "torchvision": [  # torch's compiler, and sympy
        "environment variables",
        "filters of warnings",
        "logging",
    ],
    "nbformat": ["logging"],  # the level of the logger of a parser it uses
}


def probe(*names, path=provenance.ROOT):
    done = subprocess.run(
        [sys.executable, import_probe.__file__, *names],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(path)},
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def modules():
    """All of the package but what only the builder of the web site imports."""
    paths = [p.relative_to(provenance.ROOT) for p in (provenance.ROOT / "xaiutils").rglob("*.py")]
    names = [".".join(p.with_suffix("").parts).removesuffix(".__init__") for p in paths]
    elsewhere = ("xaiutils.companion.site.", "xaiutils.__main__")
    return sorted(name for name in names if not name.startswith(elsewhere))


def test_no_module_changes_anything_but_what_its_libraries_do():
    found = probe(*KNOWN, *modules())
    by_libraries = {name: found.pop(name) for name in KNOWN}
    assert {name: what for name, what in found.items() if what} == {}
    for name, allowed in KNOWN.items():
        assert set(by_libraries[name]) <= set(allowed), name


def test_a_change_would_be_found(tmp_path):
    lines = {
        "style": "import matplotlib.pyplot as plt\nplt.style.use('default')",
        "seed": "import numpy as np, torch, random\n"
        "np.random.rand()\ntorch.rand(1)\nrandom.random()",
        "threads": "import torch\ntorch.set_num_threads(2)\ntorch.set_default_dtype(torch.float64)",
        "surroundings": "import os\nos.environ['A_NAME'] = 'x'\nos.chdir('/')",
        "talk": "import logging, warnings\nwarnings.simplefilter('ignore')\n"
        "logging.getLogger().setLevel(logging.ERROR)",
        "nothing": "import logging\nlogging.getLogger('nothing').addHandler(logging.NullHandler())",
    }
    for name, source in lines.items():
        (tmp_path / f"{name}.py").write_text(source + "\n")
    assert probe(*lines, path=tmp_path) == {
        "style": ["matplotlib's settings"],
        "seed": ["numpy's random state", "torch's random state", "Python's random state"],
        "threads": ["torch's threads", "torch's default type"],
        "surroundings": ["environment variables", "working directory"],
        "talk": ["filters of warnings", "logging"],
        "nothing": [],
    }
