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
                # Written last: a folder without it is not looked at by `_tidy`.
                (work / _OWNER).write_text(_machine(), encoding="utf-8")
            except OSError as error:
                raise ProjectError(f"cannot write to {parent}: {error.strerror or error}") from None
        yield work
    finally:
        with stopping.held():
            if lock is not None:
                lock.release()
            if work is not None:
                shutil.rmtree(work, ignore_errors=True)


def keep(work, place):
    """Move a run's folder to a visible place, without what nobody needs; returns the place.

    Parameters
    ----------
    work : Path
        As from `folder`.
    place : Path
        Where nothing is yet; if nothing can be written there, a folder for temporary files is
        taken instead.
    """
    try:
        shutil.move(work, place)
    except OSError:
        place = Path(tempfile.mkdtemp(prefix=f"{place.name}-")) / place.name
        shutil.move(work, place)
    for name in (_LOCK, _OWNER, "run.json"):
        (place / name).unlink(missing_ok=True)
    for name in ("ipython", "jupyter"):
        shutil.rmtree(place / name, ignore_errors=True)
    return place


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
