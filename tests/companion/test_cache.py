"""A relative cache is one folder: for the process, its kernels and the processes it starts."""

import os
import re
import subprocess
import threading

import nbformat
import pytest

from xaiutils.companion import apart, kernel, provenance, run
from xaiutils.data import assets

SHOWS = "from xaiutils.data import assets\nprint(assets.cache_folder())"


def test_a_kernel_sees_the_folder_that_is_meant_here(make_project, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XAIUTILS_CACHE", "shared")
    project = make_project(SHOWS)
    assert run.main(["tiny"], project) == 0
    cells = nbformat.read(project.executed("default", "tiny"), as_version=4).cells
    assert cells[1].outputs[0].text == f"{tmp_path / 'shared'}\n"


@pytest.mark.parametrize(
    ("given", "meant"),
    [("a b/c", f"{provenance.ROOT}/a b/c"), ("/x y/z", "/x y/z"), ("~/c", "~/c"), ("", "")],
)
def test_make_hands_down_the_full_path(given, meant):
    env = {key: value for key, value in os.environ.items() if "MAKE" not in key}
    shown = subprocess.run(
        ["make", "--print-data-base", "--dry-run", "help"],
        cwd=provenance.ROOT,
        env={**env, "XAIUTILS_CACHE": given},
        capture_output=True,
        text=True,
    ).stdout
    (value,) = {v.strip() for v in re.findall(r"^XAIUTILS_CACHE :?=(.*)$", shown, re.M)}
    assert value == meant


def test_a_process_of_a_run_is_given_the_full_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XAIUTILS_CACHE", "other")
    given = {}

    class Process:
        returncode = 0

        def __init__(self, *_, env, **__):
            given.update(env)

        def communicate(self, timeout=None):
            return "", ""

    monkeypatch.setattr(subprocess, "Popen", Process)
    assert apart.run_apart(apart.Job(str(tmp_path), "tiny"), threading.Event()).code == 0
    assert given["XAIUTILS_CACHE"] == str(tmp_path / "other")


def test_a_home_that_does_not_exist_fails_the_run_in_one_line(monkeypatch):
    monkeypatch.setattr(assets, "_resolved", assets._resolved.__wrapped__)
    monkeypatch.setenv("XAIUTILS_CACHE", "~nobody-of-this-name")
    with pytest.raises(kernel.RunError, match=r"^XAIUTILS_CACHE = .*full path of a folder$"):
        kernel.cache_variable()
