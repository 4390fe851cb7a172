"""One run in a process of its own.

Whoever starts such a process holds a pipe to it. Once the pipe is closed, by will or by death, the
run stops by itself and takes with it what it has written so far.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import NamedTuple

from xaiutils.companion import provenance, runner, stopping
from xaiutils.companion.kernel import STILL, RunError, cache_variable
from xaiutils.companion.notebooks import Project, ProjectError

STOPPED = 130  # exit code, as of a shell's Ctrl-C
STOP_SECONDS = 60  # after these, a run that does not stop by itself is killed
_THREADS = (
    *("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"),
    *("MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS"),
)


class Job(NamedTuple):
    """One run, as text that another process can read; see `runner.execute`."""

    root: str
    name: str
    profile: str = "default"
    given: tuple = ()
    seed: int | None = None
    cell_timeout: int | None = None

    @property
    def title(self):
        """Notebook and seed."""
        return self.name if self.seed is None else f"{self.name} seed {self.seed}"

    def arguments(self):
        """What `runner.plan` takes, and `runner.execute` beside `cell_timeout`."""
        own = self._asdict()
        del own["cell_timeout"]
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
    said_aloud, saying = os.pipe()
    # A terminal sends Ctrl-C to its whole session: the run must hear of it once, from here.
    process = subprocess.Popen(
        _command(job, cores),
        stdin=ours_to_read,
        stdout=subprocess.PIPE,
        stderr=saying,
        text=True,
        cwd=provenance.ROOT,
        env=environment,
        start_new_session=True,
    )
    os.close(ours_to_read)
    os.close(saying)
    with _listener(said_aloud) as heard:
        try:
            while True:
                try:
                    out, _ = process.communicate(timeout=poll)
                    break
                except subprocess.TimeoutExpired:
                    stopped = stop.is_set()
                if stopped:
                    break
        finally:
            os.close(ours_to_close)
        if stopped:
            try:
                out, _ = process.communicate(timeout=STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                out, _ = process.communicate()
    # What is said by `_alone`; anything else is a death without a last word.
    said = out if process.returncode in (1, 2) or process.returncode > 128 else ""
    return Outcome(process.returncode, (said or "".join(heard)).strip(), time.monotonic() - start)


def _command(job, cores):
    return [sys.executable, "-m", __name__, json.dumps(job), json.dumps(cores)]


@contextlib.contextmanager
def _listener(source):
    """List of the lines from a file descriptor; those on a cell that still runs are passed on."""
    lines = []

    def listen():
        with open(source, encoding="utf-8", errors="replace") as file:
            for line in file:
                lines.append(line)
                if STILL in line:
                    print(line.strip(), file=sys.stderr, flush=True)

    thread = threading.Thread(target=listen, daemon=True)
    thread.start()
    try:
        yield lines
    finally:
        thread.join(timeout=1)  # longer only if somebody else holds the other end


def _alone(job, cores):
    """The process of one run; returns an exit code as `run.main` does."""
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
        with stopping.heeding():
            runner.execute(**job.arguments(), cell_timeout=job.cell_timeout)
    except stopping.Stopped as stop:
        if not stopped.is_set():
            print(f"stopped by {stop}")
        return STOPPED if stopped.is_set() else stop.code
    except (ProjectError, RunError) as error:
        if stopped.is_set():
            runner.plan(**job.arguments()).failed.unlink(missing_ok=True)
            return STOPPED
        print(error)
        return 2 if isinstance(error, ProjectError) else 1
    return 0


if __name__ == "__main__":
    sys.exit(_alone(Job(*json.loads(sys.argv[1])), json.loads(sys.argv[2])))
