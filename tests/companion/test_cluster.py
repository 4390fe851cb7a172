"""A cluster that lets a run wait, and one that goes away."""

import os
import signal
import threading
import time

import pytest
from distributed import LocalCluster

from xaiutils.companion import campaign, run


@pytest.fixture
def empty_cluster():
    """A scheduler without workers."""
    with LocalCluster(n_workers=0, processes=True, dashboard_address=":0") as cluster:
        yield cluster


def after_the_first_line(capfd, action):
    """Run `action` in a thread once something stands on stderr; returns the lines."""
    lines = []

    def wait():
        while not lines:
            time.sleep(0.1)
            lines.extend(capfd.readouterr().err.splitlines())
        action()

    threading.Thread(target=wait, daemon=True).start()
    return lines


def test_a_run_without_workers_says_so_and_can_be_stopped(
    make_project, capfd, monkeypatch, empty_cluster, heeds_ctrl_c
):
    address = empty_cluster.scheduler_address
    monkeypatch.setattr(campaign, "LOOK_SECONDS", 0.1)
    monkeypatch.setattr(campaign, "SILENT_SECONDS", 0.5)
    start = time.monotonic()

    def interrupt():
        time.sleep(1.5)
        os.kill(os.getpid(), signal.SIGINT)

    lines = after_the_first_line(capfd, interrupt)
    assert run.main(["tiny", "--seeds", "0", "--dask", address], make_project()) == 130
    assert time.monotonic() - start < campaign.STOP_SECONDS
    assert lines == [f"no worker at {address}, waiting for one"]
    assert capfd.readouterr().err.splitlines()[0] == lines[0]  # again


def test_a_scheduler_that_dies_is_one_line(make_project, capfd, empty_cluster):
    address = empty_cluster.scheduler_address
    lines = after_the_first_line(capfd, empty_cluster.close)
    assert run.main(["tiny", "--seeds", "0", "1", "--dask", address], make_project()) == 1
    error = [*lines[1:], *capfd.readouterr().err.splitlines()]
    assert [line for line in error if line] == [
        f"failed: the dask scheduler at {address} was lost; start it again, then the same command "
        "goes on with what is left"
    ]
