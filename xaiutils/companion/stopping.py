"""Ctrl-C, SIGTERM and SIGHUP: heard once, and never in the middle of what must be done whole."""

import contextlib
import signal
import sys
import threading

_SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP")


class Stopped(KeyboardInterrupt):
    """A signal asked this process to stop; `code` is the exit code that a shell expects."""

    def __init__(self, number):
        super().__init__(signal.Signals(number).name)
        self.code = 128 + number


class _Heard:
    """What the handlers share: sections in which signals are held back, and one held back."""

    sections = 0
    number = None


@contextlib.contextmanager
def heeding():
    """Raise `Stopped` in the main thread at the first signal, and ignore the next one.

    Whoever cleans up is not to be stopped by impatience; the third signal ends the process as it
    would have without this, for the first may have been swallowed by code that is not ours.
    A signal that was ignored before, as by `nohup`, stays so. In other threads than the main one
    nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def deaf(*_):  # not SIG_IGN, which the processes started from here would inherit
        for one, handler in before.items():
            signal.signal(one, handler)

    def hear(number, _):
        for one in before:
            signal.signal(one, deaf)
        if _Heard.sections:
            _Heard.number = number
        else:
            raise Stopped(number)

    before = {}
    try:
        for number in (getattr(signal, name) for name in _SIGNALS if hasattr(signal, name)):
            if signal.getsignal(number) not in (signal.SIG_IGN, None):
                before[number] = signal.signal(number, hear)
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def exit_code(function, *args):
    """What `function` returns; if a signal stops it, one line on stderr and 128 + its number."""
    try:
        with heeding():
            return function(*args)
    except Stopped as stop:
        print(
            f"stopped by {stop}: what was not finished is gone, the same command does the rest",
            file=sys.stderr,
        )
        return stop.code


@contextlib.contextmanager
def held():
    """Hold the signal of `heeding` back until the end of this section."""
    _Heard.sections += 1
    try:
        yield
    finally:
        _Heard.sections -= 1
        if not _Heard.sections and _Heard.number is not None:
            number, _Heard.number = _Heard.number, None
            raise Stopped(number)
