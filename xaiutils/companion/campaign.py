"""Many runs: several at once, each in a process of its own, here or on a dask cluster."""

import contextlib
import logging
import os
import queue
import sys
import threading
import time
import uuid
from concurrent.futures import CancelledError, ThreadPoolExecutor, as_completed

from xaiutils.companion import runner
from xaiutils.companion.apart import STOP_SECONDS, Outcome, run_apart
from xaiutils.companion.kernel import SILENT_SECONDS, RunError
from xaiutils.companion.notebooks import ProjectError, first_line

CONNECT_SECONDS = 10
LOOK_SECONDS = 5  # between two looks at the workers of a cluster
ARRIVE_SECONDS = 60  # after which files of another machine show up on a shared folder


def run(jobs, at_once=1, address=None):
    """Do all jobs and report each as it ends; a seed whose results are current is not run again.

    Parameters
    ----------
    jobs : list of Job
    at_once : int
        Processes at a time on this machine; they share its cores evenly.
    address : str or None
        A dask scheduler whose workers run the jobs instead.

    Returns
    -------
    dict of Job to Outcome

    Raises
    ------
    ProjectError
        If a job is not allowed or the scheduler cannot be reached; no kernel was started.
    RunError
        If the scheduler was lost.
    KeyboardInterrupt
        After all runs have stopped.
    """
    plans = {job: _plan(job) for job in jobs}
    outcomes = {}

    def report(job, outcome):
        if outcome.code == 0 and not _arrived(plans[job], ARRIVE_SECONDS if address else 0):
            outcome = outcome._replace(
                code=1,
                message=f"no current results in {plans[job].figures}: notebook or package changed "
                "during the run, or a worker sees another folder or other code",
            )
        outcomes[job] = outcome
        how = "failed" if outcome.code else f"done in {outcome.seconds:.0f} s"
        print(f"[{len(outcomes)}/{len(jobs)}] {job.title}: {how}", flush=True)
        if outcome.code:
            print(f"failed: {job.title}: {outcome.message}", file=sys.stderr, flush=True)

    waiting = [j for j in jobs if j.seed is None or not runner.is_finished(plans[j])]
    for job in jobs:
        if job not in waiting:
            outcomes[job] = Outcome(0, "", 0.0)
            print(f"[{len(outcomes)}/{len(jobs)}] {job.title}: current, not run again")
    start = time.monotonic()
    if waiting and address:
        _on_cluster(waiting, address, report)
    elif waiting:
        _here(waiting, min(at_once, len(waiting)), report)
    failed = [job.title for job in jobs if outcomes[job].code]
    print(
        f"{len(waiting) - len(failed)} run, {len(jobs) - len(waiting)} current, "
        f"{len(failed)} failed in {time.monotonic() - start:.0f} s"
        + (f": {', '.join(failed)}" if failed else "")
    )
    return outcomes


def _plan(job):
    try:
        return runner.plan(**job.arguments())
    except ProjectError as error:
        raise ProjectError(f"{job.name}: {error}") from None


def _arrived(plan, patience):
    end = time.monotonic() + patience
    while not runner.is_finished(plan):
        if time.monotonic() >= end:
            return False
        time.sleep(1)
        # Listing a folder makes a network file system look again.
        with contextlib.suppress(OSError):
            os.listdir(plan.copy.parent)
    return True


def _here(jobs, at_once, report):
    stop = threading.Event()
    free = queue.SimpleQueue()
    for cores in shares(at_once):
        free.put(cores)

    def work(job):
        cores = free.get()
        try:
            return run_apart(job, stop, cores)
        finally:
            free.put(cores)

    # Threads only wait; all work is in the processes they start.
    with ThreadPoolExecutor(at_once) as pool:
        futures = {pool.submit(work, job): job for job in jobs}
        try:
            for future in as_completed(futures):
                report(futures[future], future.result())
        except BaseException:
            stop.set()
            pool.shutdown(cancel_futures=True)
            raise


def shares(at_once):
    """Cores for each of several processes; None, without a limit, for a single one.

    Parameters
    ----------
    at_once : int
        Number of processes.

    Returns
    -------
    list of (list of int or None)
        One entry per process: ``max(1, cores // at_once)`` of the cores this process may use.
    """
    if at_once == 1:
        return [None]
    if hasattr(os, "sched_getaffinity"):
        cores = sorted(os.sched_getaffinity(0))
    else:
        cores = list(range(os.cpu_count() or 1))
    each = max(1, len(cores) // at_once)
    return [[cores[(i * each + k) % len(cores)] for k in range(each)] for i in range(at_once)]


def _on_cluster(jobs, address, report):
    try:
        import distributed
        from distributed.comm import CommClosedError
    except ImportError:
        raise ProjectError("--dask needs dask.distributed: pip install -e '.[cluster]'") from None
    # A lost connection is said here, in one line.
    logging.getLogger("distributed.client").setLevel(logging.CRITICAL + 1)
    try:
        client = distributed.Client(address, timeout=CONNECT_SECONDS)
    except (OSError, ValueError) as error:
        raise ProjectError(
            f"no dask scheduler at {address!r} within {CONNECT_SECONDS} s ({first_line(error)}); "
            "give its address, e.g. tcp://node1:8786"
        ) from None
    with client, _absence_told(client, address):
        name = f"xaiutils-{uuid.uuid4().hex}"
        stop = distributed.Event(name)
        futures = {
            client.submit(_on_worker, job, name, key=f"{name}-{job.title}", pure=False): job
            for job in jobs
        }
        try:
            for future in distributed.as_completed(futures):
                report(futures[future], _outcome(future))
        except (CommClosedError, CancelledError):  # nobody here cancels
            raise RunError(
                f"the dask scheduler at {address} was lost; start it again, then the same command "
                "goes on with what is left"
            ) from None
        except BaseException:
            with contextlib.suppress(distributed.TimeoutError, OSError):
                stop.set()
                given = {key for keys in client.processing().values() for key in keys}
                started = [future for future in futures if future.key in given]
                if started:  # the others, which no worker has yet, end with the client
                    distributed.wait(started, timeout=STOP_SECONDS)
            raise


def _outcome(future):
    if future.cancelled():  # such a future has no exception, and a result never comes
        raise CancelledError
    error = future.exception()
    lost = Outcome(1, f"its worker was lost or cannot run it: {error}", 0.0)
    return lost if error else future.result()


@contextlib.contextmanager
def _absence_told(client, address):
    """Say on stderr if the cluster has no worker: at once, and again every ten minutes."""
    over = threading.Event()

    def look():
        said = None
        while True:
            now = time.monotonic()
            try:
                there = client.status != "running" or client.nthreads()
            except Exception:  # no answer, or a client that is being closed: not known
                there = True
            if there:
                said = None
            elif said is None or now - said >= SILENT_SECONDS:
                said = now
                print(f"no worker at {address}, waiting for one", file=sys.stderr, flush=True)
            if over.wait(LOOK_SECONDS):
                return

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(timeout=1)  # longer only if the scheduler does not answer


def _on_worker(job, stop_name):
    from distributed import Event

    return run_apart(job, Event(stop_name), poll=2)
