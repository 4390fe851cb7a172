"""Several runs: over seeds, at once, on a cluster; stopped half-way; and what is not allowed."""

import json
import os
import signal
import sys
import threading
import time

import nbformat
import pytest
from conftest import CLAIM, PARAMETERS

from xaiutils.companion import campaign, over_seeds, provenance, run, runner
from xaiutils.companion.apart import STOPPED, Job, Outcome, run_apart
from xaiutils.companion.notebooks import ProjectError

THREADS = """\
import os
cores = getattr(os, "sched_getaffinity", lambda _: [0])(0)
print(*map(os.environ.get, ("OMP_NUM_THREADS", "MKL_NUM_THREADS")), len(cores))"""
FAILS = "assert seed != 2, 'this seed fails'"
RECORD = """\
from xaiutils.companion import claims
claims.record("rises", 0.5 + seed, 0.4 + seed, 0.6 + seed, n=n)"""


def main(*arguments, project=None):
    """Exit code of the command line."""
    try:
        return run.main(list(arguments), project)
    except SystemExit as stop:
        return stop.code


def written(folder):
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


def printed(path):
    cells = nbformat.read(path, as_version=4).cells
    return [o.text for c in cells if c.cell_type == "code" for o in c.outputs if "text" in o]


@pytest.mark.parametrize(
    ("at_once", "expected"),
    [
        (1, [None]),
        (2, [[1, 2], [4, 8]]),
        (3, [[1], [2], [4]]),
        (6, [[1], [2], [4], [8], [9], [1]]),
    ],
)
def test_processes_share_the_cores_of_this_one(monkeypatch, at_once, expected):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {8, 1, 4, 2, 9}, raising=False)
    assert campaign.shares(at_once) == expected


def test_seeds_run_at_once_and_their_claims_are_summed_up(make_project, monkeypatch, capfd):
    project = make_project(THREADS, RECORD, ledger=CLAIM)
    one_core = list(getattr(os, "sched_getaffinity", lambda _: [0])(0))[-1:]
    monkeypatch.setattr(campaign, "shares", lambda n: [one_core] * n)
    monkeypatch.setenv("OMP_NUM_THREADS", "99")
    monkeypatch.delenv("MKL_NUM_THREADS", raising=False)
    arguments = ("tiny", "--profile", "smoke", "--jobs", "2", "--seeds")
    assert main(*arguments, "0", "1", project=project) == 0
    shown = capfd.readouterr().out
    folder = project.root / "build" / "smoke-seeds" / "tiny"
    assert written(project.root / "build") == [
        f"smoke-seeds/tiny/{name}"
        for name in [
            *("claims.json", "claims.md", "seed-0/claims.json", "seed-0/tiny.ipynb"),
            *("seed-1/claims.json", "seed-1/tiny.ipynb"),
        ]
    ]
    assert not (project.root / "figures").exists()
    assert printed(folder / "seed-1" / "tiny.ipynb") == ["1 1 1\n"]
    assert "[2/2] tiny seed" in shown
    assert "2 run, 0 current, 0 failed" in shown
    one = json.loads((folder / "seed-1" / "claims.json").read_text())
    assert one["parameters"] == {"n": 2, "scale": 1.0, "mode": "up", "seed": 1, "device": "auto"}
    found = json.loads((folder / "claims.json").read_text())
    assert (found["seeds"], found["failed_seeds"]) == ([0, 1], [])
    assert found["parameters"] == {"n": 2, "scale": 1.0, "mode": "up", "device": "auto"}
    assert found["hashes"] == provenance.input_hashes(project.root, project.read("tiny"))
    rises = found["claims"]["rises"]
    assert rises["values"] == {"0": 0.5, "1": 1.5}
    counts = {verdict: n for verdict, n in rises["seeds_by_verdict"].items() if n}
    assert counts == {"holds": 1, "inconclusive": 1}
    assert (rises["mean"], rises["low"], rises["high"]) == (1.0, -5.3531, 7.3531)  # t = 12.7062
    assert (folder / "claims.md").read_text() in shown

    monkeypatch.setattr(campaign, "run_apart", lambda *_: pytest.fail("ran a finished seed again"))
    assert main(*arguments, "1", project=project) == 0
    assert "tiny seed 1: current, not run again" in capfd.readouterr().out
    assert json.loads((folder / "claims.json").read_text())["seeds"] == [1]


def test_a_seed_is_finished_only_with_these_parameters_code_claims_and_assets(make_project):
    project = make_project("1 + 1")
    assert not runner.is_finished(runner.plan(project, "tiny", seed=3))
    copy = runner.execute(project, "tiny", seed=3)
    assert copy == project.root / "build" / "default-seeds" / "tiny" / "seed-3" / "tiny.ipynb"

    def finished():
        return runner.is_finished(runner.plan(project, "tiny", seed=3))

    assert finished()
    record = copy.with_name("line.json")
    provenance.write(record, json.dumps({"hashes": {"assets": {"gone.wav": "00"}}}).encode())
    assert not finished()
    record.unlink()
    make_project("1 + 1", ledger=CLAIM)  # the ledger now wants a claim of this notebook
    assert not finished()
    make_project("1 + 2")
    assert not finished()
    # A parameter of the profile, which no hash holds.
    project = make_project("1 + 1", profiles="[smoke.tiny]\nn = 4\n")
    runs = project.root / "build" / "smoke-seeds" / "tiny" / "seed-3"
    copy.parent.parent.parent.rename(runs.parent.parent)
    assert not runner.is_finished(runner.plan(project, "tiny", "smoke", seed=3))
    make_project("1 + 1", profiles="[smoke.tiny]\n")
    assert runner.is_finished(runner.plan(project, "tiny", "smoke", seed=3))


def test_given_parameters_and_several_notebooks_have_folders_of_their_own(make_project):
    project = make_project()
    plan = runner.plan(project, "tiny", "smoke", [("scale", "2")], seed=0)
    assert plan.figures == project.root / "build" / "smoke-custom-seeds" / "tiny" / "seed-0"
    assert (plan.parameters["scale"], plan.parameters["n"]) == (2.0, 2)


def test_a_run_without_results_here_is_not_taken_for_done(make_project, monkeypatch, capsys):
    project = make_project()
    monkeypatch.setattr(campaign, "run_apart", lambda *_: Outcome(0, "", 1.0))
    assert main("tiny", "--seeds", "0", project=project) == 1
    assert "a worker sees another folder" in capsys.readouterr().err
    assert not (project.root / "build" / "default-seeds" / "tiny" / "claims.json").exists()


def test_ctrl_c_stops_all_and_leaves_nothing(make_project, capfd, heeds_ctrl_c):
    sleep = "import os, time\nopen('../pid', 'w').write(f'{os.getpid()} ')\ntime.sleep(100)"
    project = make_project(sleep)
    pid = project.root / "pid"

    def interrupt():
        while not (pid.exists() and pid.read_text().endswith(" ")):
            time.sleep(0.1)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    start = time.monotonic()
    assert main("tiny", "--seeds", "0", "1", project=project) == STOPPED
    assert time.monotonic() - start < 60
    assert "stopped" in capfd.readouterr().err
    assert written(project.root / "build") == []
    assert not any(project.root.rglob(".tiny-*"))
    with pytest.raises(ProcessLookupError):  # the kernel is gone
        os.kill(int(pid.read_text()), 0)


def test_a_run_whose_turn_comes_after_the_stop_does_not_start(make_project):
    stop = threading.Event()
    stop.set()
    project = make_project()
    assert run_apart(Job(str(project.root), "tiny"), stop).code == STOPPED
    assert not (project.root / "build").exists()


def test_a_cluster_does_the_same_runs(make_project, capfd):
    from distributed import LocalCluster

    project = make_project(FAILS)
    with LocalCluster(
        n_workers=1, processes=True, threads_per_worker=1, dashboard_address=":0"
    ) as cluster:
        arguments = ("tiny", "--seeds", "1", "2", "--dask", cluster.scheduler_address)
        assert main(*arguments, project=project) == 1
    shown = capfd.readouterr()
    assert "tiny seed 1: done" in shown.out
    assert "1 run, 0 current, 1 failed" in shown.out
    assert "failed: tiny seed 2: cell [3] raised AssertionError: this seed fails" in shown.err
    folder = project.root / "build" / "default-seeds" / "tiny"
    assert runner.is_finished(runner.plan(project, "tiny", seed=1))
    assert written(folder / "seed-2") == ["tiny.failed.ipynb"]
    assert json.loads((folder / "claims.json").read_text())["failed_seeds"] == [2]
    assert "Failed, and not counted: 2." in (folder / "claims.md").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["tiny", "--jobs", "0"], "--jobs: '0' is not allowed; allowed: whole numbers from 1"),
        (["tiny", "--jobs", "two"], "--jobs: 'two' is not allowed"),
        (["tiny", "--seeds", "1.5"], "--seeds: '1.5' is not allowed; allowed: whole numbers from"),
        (["tiny", "--seeds", "-1"], "--seeds: "),
        (["tiny", "--seeds", "3", "3"], "has a seed twice"),
        (["tiny", "tiny"], "given twice: tiny"),
        (["tiny", "tony"], "error: tony: no notebook 'tony'; allowed: seedless, tiny"),
        (["tiny", "seedless", "--seeds", "0"], "error: seedless: no parameter 'seed'; allowed: n"),
        (["tiny", "-p", "seed", "1", "--seeds", "0"], "by -p or by --seeds"),
        (["tiny", "-p", "n", "x", "--seeds", "0"], "error: tiny: parameter n = 'x'"),
        (["--seeds", "0"], "either NAME or"),
        (["--list", "--jobs", "2"], "no option for many runs"),
        (["--update", "tiny", "seedless"], "--update runs"),
        (["--update", "tiny", "--seeds", "0"], "--update runs"),
        (["tiny", "--seeds", "0", "--output", "x"], "--output is for a single run"),
        (["tiny", "--jobs", "2", "--dask", "tcp://x:1"], "not allowed with argument"),
        (["tiny", "--dask", "nonsense"], "no dask scheduler at 'nonsense'"),
        (["tiny", "--dask", "tcp://127.0.0.1:1"], "no dask scheduler at 'tcp://127.0.0.1:1'"),
        (["tony", "--help"], "no notebook 'tony'"),
    ],
)
def test_what_is_not_allowed_starts_nothing(make_project, monkeypatch, capfd, arguments, message):
    project = make_project()
    notebook = project.read("tiny")
    notebook.cells[0].source = "n: int = 1  # points"
    nbformat.write(notebook, project.root / "notebooks" / "seedless.ipynb")
    monkeypatch.setattr(campaign, "CONNECT_SECONDS", 0.5)
    monkeypatch.setattr(campaign, "run_apart", lambda *_: pytest.fail("a run was started"))
    assert main(*arguments, project=project) == 2
    assert message in capfd.readouterr().err
    assert not (project.root / "build").exists()


def test_without_distributed_the_extra_is_named(make_project, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "distributed", None)
    assert main("tiny", "--dask", "tcp://x:1", project=make_project()) == 2
    assert "pip install -e '.[cluster]'" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["tiny", "--help"], ["-h", "tiny"]])
def test_help_of_a_notebook_lists_its_parameters_and_profiles(make_project, capsys, arguments):
    project = make_project(profiles="[smoke.tiny]\nn = 2\nmode = 'down'\n[paper.tiny]\nn = 9\n")
    assert main(*arguments, project=project) == 0
    lines = capsys.readouterr().out.splitlines()
    at = lines.index("  n: int = 3  # points drawn")
    assert lines[at + 1 : at + 3] == ["      smoke: 2", "      paper: 9"]
    assert '  mode: str = "up"  # direction' in lines
    assert '      smoke: "down"' in lines
    assert any("--seeds SEED" in line for line in lines[:at])
    assert len([line for line in lines if line.startswith("  ") and "  # " in line]) == len(
        PARAMETERS.splitlines()
    )


def test_help_names_a_profile_that_cannot_run(make_project):
    assert "--profile paper cannot run: profiles.toml: no table [paper.tiny]" in run.describe(
        make_project(), "tiny"
    )
    with pytest.raises(ProjectError, match="no notebook"):
        run.describe(make_project(), "tony")


def test_a_notebook_without_claims_says_so(make_project):
    project = make_project()
    plan = runner.plan(project, "tiny", seed=0)
    text, path = over_seeds.write(project, {0: plan})
    assert path == project.root / "build" / "default-seeds" / "tiny" / "claims.md"
    assert "no claim of this notebook" in text
