"""One run in a process of its own.

Whoever starts such a process holds a pipe to it. Once the pipe is closed, by will or by death, the
run stops by itself and takes with it what it has written so far.
"""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import NamedTuple

from xaiutils.companion import provenance, runner
from xaiutils.companion.kernel import RunError, cache_variable
from xaiutils.companion.notebooks import Project, ProjectError

STOPPED = 130  # exit code, as of a shell's Ctrl-C
STOP_SECONDS = 60  # after these, a run that does not stop by itself is killed
_THREADS = (
    *("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"),
    *("MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS"),
)


class Job(NamedTuple):
    """One run, as text that another process can read; see `runner.plan`."""

    root: str
    name: str
    profile: str = "default"
    given: tuple = ()
    seed: int | None = None

    @property
    def title(self):
        """Notebook and seed."""
        return self.name if self.seed is None else f"{self.name} seed {self.seed}"

    def arguments(self):
        """What `runner.plan` and `runner.execute` take."""
        own = self._asdict()
        return {"project": Project(Path(own.pop("root"))), **own}


class Outcome(NamedTuple):
    """How a run ended: exit code (0 is good), what went wrong, and how long it took."""

    code: int
    message: str
    seconds: float


def run_apart(job, stop, cores=None, poll=0.2):
    """Do one job in a process of its own.

    Parameters
    ----------
    job : Job
    stop : threading.Event or distributed.Event
        Once it is set, the run stops and leaves nothing.
    cores : list of int or None
        Cores of the process; None leaves them and the numbers of threads as they are.
    poll : float
        Seconds between two looks at `stop`.

    Returns
    -------
    Outcome
    """
    start = time.monotonic()
    if stop.is_set():  # before its turn came
        return Outcome(STOPPED, "stopped", 0.0)
    environment = {**os.environ, **cache_variable()}
    if cores:
        for name in _THREADS:
            wanted = os.environ.get(name, "")
            fewer = min(len(cores), int(wanted)) if wanted.isdecimal() else len(cores)
            environment[name] = str(fewer)
    stopped = False
    ours_to_read, ours_to_close = os.pipe()
    # A terminal sends Ctrl-C to its whole session: the run must hear of it once, from here.
    process = subprocess.Popen(
        [sys.executable, "-m", __name__, json.dumps(job), json.dumps(cores)],
        stdin=ours_to_read,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=provenance.ROOT,
        env=environment,
        start_new_session=True,
    )
    os.close(ours_to_read)
    try:
        while True:
            try:
                out, err = process.communicate(timeout=poll)
                break
            except subprocess.TimeoutExpired:
                stopped = stop.is_set()
            if stopped:
                break
    finally:
        os.close(ours_to_close)
    if stopped:
        try:
            out, err = process.communicate(timeout=STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            out, err = process.communicate()
    # One and two are said by `_alone`; anything else is a death without a last word.
    said = out if process.returncode in (1, 2, STOPPED) and out else err
    return Outcome(process.returncode, said.strip(), time.monotonic() - start)


def _alone(job, cores):
    """The process of one run; returns 0, 1 for a failed run, 2 for what is not allowed, or 130."""
    stopped = threading.Event()
    # Where a shell starts us in the background, the signal is ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)

    def watch():
        os.read(0, 1)  # returns once nobody holds the other end any more
        stopped.set()
        os.kill(os.getpid(), signal.SIGINT)

    if cores and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, cores)
    threading.Thread(target=watch, daemon=True).start()
    try:
        runner.execute(**job.arguments())
    except KeyboardInterrupt:
        return STOPPED
    except (ProjectError, RunError) as error:
        if stopped.is_set():
            runner.plan(**job.arguments()).failed.unlink(missing_ok=True)
            return STOPPED
        print(error)
        return 2 if isinstance(error, ProjectError) else 1
    return 0


if __name__ == "__main__":
    sys.exit(_alone(Job(*json.loads(sys.argv[1])), json.loads(sys.argv[2])))
