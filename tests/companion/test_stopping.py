"""Ctrl-C, SIGTERM, SIGKILL: what a run leaves behind, and long cells that are waited for."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from xaiutils.companion import apart, kernel, provenance, run, scratch, stopping
from xaiutils.companion.apart import Job, run_apart

SLEEP = """\
import os, time
open('../pid', 'w').write(f'{os.getpid()} {os.getppid()} ')
time.sleep(100)"""


def send(number, when):
    """Send this process a signal once `when()` is true."""

    def wait():
        while not when():
            time.sleep(0.05)
        os.kill(os.getpid(), number)

    threading.Thread(target=wait, daemon=True).start()


def is_running(pid):
    """Whether the cell of SLEEP has come to its sleep."""
    return pid.exists() and pid.read_text().endswith(" ")


def is_alive(pid):
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return False
    return True


def files(folder):
    return [path for path in folder.rglob("*") if path.is_file()]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_run_its_kernel_and_its_folder(make_project, capfd, heeds_ctrl_c, number):
    project = make_project(SLEEP)
    copy, pid = project.executed("default", "tiny"), project.root / "pid"
    provenance.write(copy, b"of an earlier run")
    send(number, lambda: is_running(pid))
    assert run.main(["tiny"], project) == 128 + number
    lines = capfd.readouterr().err.splitlines()
    assert lines[-1].startswith(f"stopped by {number.name}: ")
    assert not any("Traceback" in line for line in lines)
    assert files(project.root / "build") == [copy]  # and no folder: rglob lists hidden ones too
    assert not is_alive(pid.read_text().split()[0])
    assert signal.getsignal(number) in (signal.default_int_handler, signal.SIG_DFL)


def test_a_kernel_that_is_only_starting_is_ended_too(make_project, capfd, heeds_ctrl_c):
    project = make_project(SLEEP)
    started = []
    start = kernel.AsyncKernelManager._async_launch_kernel

    async def launch(self, *arguments, **options):
        await start(self, *arguments, **options)
        started.append(self.provisioner.pid)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernel.AsyncKernelManager, "_async_launch_kernel", launch)
        send(signal.SIGINT, lambda: started)
        assert run.main(["tiny"], project) == 130
    assert "Traceback" not in capfd.readouterr().err
    assert files(project.root / "build") == []
    assert not (project.root / "pid").exists()
    assert not is_alive(started[0])


@pytest.mark.parametrize("arguments", [["--list"], ["--prepare", "smoke", "x"], ["--update", "t"]])
def test_every_command_answers_signals(make_project, capsys, heeds_ctrl_c, monkeypatch, arguments):
    def forever(*_):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)

    for name in ("listing", "prepare", "update"):
        monkeypatch.setattr(run, name, forever)
    assert run.main(arguments, make_project()) == 143
    assert capsys.readouterr().err.startswith("stopped by SIGTERM: ")


def test_the_first_second_can_be_stopped_too():
    code = "import sys, os, signal\nsys.meta_path.insert(0, type('', (), {'find_spec': find}))"
    find = (
        "def find(name, *_):\n"
        "    if name == 'xaiutils.companion.run':\n"
        "        os.kill(os.getpid(), signal.SIGTERM)\n"
    )
    command = f"import os, signal\n{find}{code}\nfrom xaiutils.run import main\nsys.exit(main())"
    done = subprocess.run([sys.executable, "-c", command, "--list"], capture_output=True, text=True)
    assert done.returncode == 143
    assert done.stderr.startswith("stopped by SIGTERM: ")
    assert done.stderr.count("\n") == 1


def test_a_signal_waits_for_the_end_of_what_must_be_whole(heeds_ctrl_c):
    done = []

    def work():
        with stopping.held():
            with stopping.held():
                os.kill(os.getpid(), signal.SIGTERM)
                os.kill(os.getpid(), signal.SIGINT)  # not heard: the first counts
            done.append("whole")
        done.append("more")

    assert stopping.exit_code(work) == 143
    assert done == ["whole"]


def test_the_third_signal_ends_what_swallowed_the_first(heeds_ctrl_c):
    heard = []

    def work():
        for _ in range(3):
            try:
                os.kill(os.getpid(), signal.SIGINT)
            except BaseException as error:
                heard.append(type(error))
            else:
                heard.append(None)

    with stopping.heeding():
        work()
    assert heard == [stopping.Stopped, None, KeyboardInterrupt]


def test_an_ignored_signal_stays_ignored():
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        with stopping.heeding():
            os.kill(os.getpid(), signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, before)


def test_folders_of_killed_runs_are_removed_and_no_others(tmp_path):
    def left(name, owner):
        folder = tmp_path / name
        provenance.write(folder / "figures" / "line.png", b"")
        provenance.write(folder / "lock", b"")
        if owner is not None:
            provenance.write(folder / "owner", owner.encode())
        return folder

    dead = left(".tiny-dead", scratch._machine())
    others = [
        left(".tiny-elsewhere", "another machine"),
        left(".tiny-unknown", None),
        left(".tinier-dead", scratch._machine()),
        left("tiny-dead", scratch._machine()),
    ]
    with scratch.folder(tmp_path, "tiny") as live:
        assert not dead.exists()
        with scratch.folder(tmp_path, "tiny") as another:
            assert live.exists()
            assert another != live
        assert not another.exists()
    assert sorted(tmp_path.iterdir()) == sorted(others)
    # A process that is killed gives its lock back.
    code = (
        "import os, sys\nfrom pathlib import Path\nfrom xaiutils.companion import scratch\n"
        "with scratch.folder(Path(sys.argv[1]), 'tiny'):\n    os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", code, tmp_path], check=False)
    assert len(list(tmp_path.iterdir())) == len(others) + 1
    with scratch.folder(tmp_path, "tiny"):
        pass
    assert sorted(tmp_path.iterdir()) == sorted(others)


def test_a_long_cell_is_named_and_one_that_takes_too_long_ends_the_run(
    make_project, monkeypatch, capfd
):
    monkeypatch.setattr(kernel, "SILENT_SECONDS", 0.5)
    project = make_project("1 + 1", "\nimport time  # the long one\ntime.sleep(100)")
    assert run.main(["tiny", "--cell-timeout", "2"], project) == 1
    error = capfd.readouterr().err
    lines = [line for line in error.splitlines() if kernel.STILL in line]
    assert len(lines) >= 2
    assert lines[0].startswith("tiny (default, seed 0): cell [3] has been running for 0 min, since")
    assert lines[0].endswith(": import time  # the long one")
    message = (
        "failed: tiny: cell [3] took longer than the 2 s a cell may take:\n    \n    import time"
    )
    assert message in error
    assert [path.name for path in files(project.root / "build")] == ["tiny.failed.ipynb"]


@pytest.mark.parametrize("text", ["0", "-1", "1.5", "nan", "inf", "1e3", "x", "9" * 30])
def test_a_timeout_is_whole_seconds(make_project, capsys, text):
    with pytest.raises(SystemExit, match="2"):
        run.main(["tiny", "--cell-timeout", text], make_project())
    error = capsys.readouterr().err.splitlines()[-1]
    assert "argument --cell-timeout: " in error
    assert "allowed: whole numbers from 1 to 2592000" in error


def test_a_run_apart_passes_on_which_cell_runs(monkeypatch, tmp_path, capfd):
    line = f"tiny: cell [3] {kernel.STILL} 10 min"
    code = (
        f"import sys\nprint('bar', {line!r}, 'last word', sep='\\r', file=sys.stderr)\nsys.exit(3)"
    )
    monkeypatch.setattr(apart, "_command", lambda *_: [sys.executable, "-c", code])
    outcome = run_apart(Job(str(tmp_path), "tiny"), threading.Event())
    assert capfd.readouterr().err == f"{line}\n"
    assert (outcome.code, outcome.message) == (3, f"bar\n{line}\nlast word")


def test_a_timeout_reaches_the_process_of_a_run():
    job = Job("root", "tiny", cell_timeout=7)
    assert Job(*apart.json.loads(apart.json.dumps(job))).cell_timeout == 7
    assert "cell_timeout" not in job.arguments()


def test_a_run_apart_that_is_terminated_says_so(make_project):
    project = make_project(SLEEP)
    pid, outcome = project.root / "pid", []
    job = Job(str(project.root), "tiny")

    def work():
        outcome.append(run_apart(job, threading.Event()))

    thread = threading.Thread(target=work)
    thread.start()
    while not is_running(pid):
        time.sleep(0.1)
    os.kill(int(pid.read_text().split()[1]), signal.SIGTERM)
    thread.join()
    assert (outcome[0].code, outcome[0].message) == (143, "stopped by SIGTERM")
    assert files(project.root / "build") == []
