"""The hidden folder a run works in, which only a process that is killed leaves behind."""

import contextlib
import platform
import shutil
import tempfile
import uuid
from pathlib import Path

from filelock import FileLock, Timeout

from xaiutils.companion import stopping
from xaiutils.companion.notebooks import ProjectError

_LOCK, _OWNER = "lock", "owner"


@contextlib.contextmanager
def folder(parent, name):
    """A folder beside the results of the notebook `name`, removed at the end.

    What killed runs of this notebook left there is removed first. A folder counts as left if it
    was made on this machine, where locks can be trusted, and nobody holds its lock: folders of
    other machines on a shared disk are let alone.

    Parameters
    ----------
    parent : Path
        Made if it does not exist.
    name : str

    Yields
    ------
    Path

    Raises
    ------
    ProjectError
        If nothing can be written to `parent`.
    """
    work, lock = None, None
    try:
        with stopping.held():
            try:
                parent.mkdir(parents=True, exist_ok=True)
                _tidy(parent, name)
                work = Path(tempfile.mkdtemp(prefix=f".{name}-", dir=parent))
                lock = FileLock(work / _LOCK)
                lock.acquire()
                # Written last: a folder without it is let alone by all others.
                (work / _OWNER).write_text(_machine(), encoding="utf-8")
            except OSError as error:
                if work is not None:
                    shutil.rmtree(work, ignore_errors=True)
                raise ProjectError(f"cannot write to {parent}: {error.strerror or error}") from None
        yield work
    finally:
        with stopping.held():
            if lock is not None:
                lock.release()
            if work is not None and (work / _OWNER).exists():
                shutil.rmtree(work, ignore_errors=True)


def keep(work, place):
    """Give a run's folder a visible name, and remove from it what nobody needs.

    Parameters
    ----------
    work : Path
        As from `folder`, which does not remove it then.
    place : Path
        Where nothing is yet.

    Returns
    -------
    Path
        Where it is: `place`, or a folder for temporary files if nothing can be written there, or
        where it was if there neither.
    """
    with contextlib.suppress(OSError):
        (work / _OWNER).unlink()
    kept = work
    for make in (lambda: place, lambda: Path(tempfile.mkdtemp()) / place.name):
        with contextlib.suppress(OSError):
            kept = Path(shutil.move(work, make()))
            break
    for name in (_LOCK, "run.json"):
        with contextlib.suppress(OSError):
            (kept / name).unlink(missing_ok=True)
    for name in ("ipython", "jupyter"):
        shutil.rmtree(kept / name, ignore_errors=True)
    return kept


def _tidy(parent, name):
    for left in parent.glob(f".{name}-*"):
        try:
            if (left / _OWNER).read_text(encoding="utf-8") == _machine():
                with FileLock(left / _LOCK, timeout=0):
                    shutil.rmtree(left, ignore_errors=True)
        except (OSError, ValueError, Timeout):  # no such folder, or one that is in use
            continue


def _machine():
    """The running kernel of the operating system: its locks are shared and end with a process."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return f"{platform.node()} {uuid.getnode():x}"
