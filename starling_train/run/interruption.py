"""Signals that end a command: Ctrl-C, and where a command asks for it SIGTERM and SIGUSR1. Standard library alone."""

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

REPEATED_S = 1.0  # a terminal and a launcher (torchrun, Slurm) may deliver one signal twice; later it is impatience


class Interrupted(KeyboardInterrupt):
    """A command is abandoned because of a signal. exit_code: 128 + its number."""

    def __init__(self, number: int = signal.SIGINT) -> None:
        super().__init__(number)
        self.exit_code = 128 + number


class _First:
    """When this process got the first signal; 0 before. It outlives whoever heard it, until the process has ended."""

    since = 0.0


class _Held:
    """Whether Interrupted may not be raised now, and the signal that waits for it."""

    depth = 0
    number: int | None = None


def forget() -> None:
    """Wait for a first signal again: a command begins."""
    _First.since, _Held.number = 0.0, None


def is_first(number: int) -> bool:
    """Return whether a signal is the first. Ends the process at once for one that comes a second or more after it."""
    if _First.since == 0.0:
        _First.since = time.monotonic()
        return True
    if time.monotonic() - _First.since > REPEATED_S:
        os._exit(128 + number)
    return False


def interrupt(number: int, frame: FrameType | None = None) -> None:
    """Handle a signal: the first raises Interrupted, wherever the command is, unless inside `held`."""
    if is_first(number):
        if _Held.depth:
            _Held.number = number
        else:
            raise Interrupted(number)


@contextmanager
def held() -> Iterator[None]:
    """Do in one piece what `interrupt` must not tear apart; Interrupted is raised at its end.

    For moments, in the main thread: that is where handlers run.
    """
    _Held.depth += 1
    try:
        yield
    finally:
        _Held.depth -= 1
        if _Held.number is not None and not _Held.depth:
            number, _Held.number = _Held.number, None
            raise Interrupted(number)


def heed(*numbers: int) -> None:
    """Let signals interrupt the command, unless they are ignored: whoever started it so relies on that."""
    for number in numbers:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, interrupt)


@contextmanager
def interruptible() -> Iterator[None]:
    """Run a command: Ctrl-C raises Interrupted in it.

    A handler of the caller, and SIGINT that was ignored when Python started (`nohup ... &` in a script), stay.
    After a signal the handler stays too, so that the same signal, delivered again, does not disturb the end.
    """
    ours = (signal.default_int_handler, interrupt)
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGINT) not in ours:
        yield
        return
    forget()
    signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        if _First.since == 0.0:
            signal.signal(signal.SIGINT, signal.default_int_handler)


@contextmanager
def stopped_in_one_line() -> Iterator[None]:
    """Run a command: after Ctrl-C it ends with one line, once for all processes of a run, and exit code 130."""
    try:
        with interruptible():
            yield
    except KeyboardInterrupt as error:
        if os.environ.get("RANK", "0") == "0":  # a launcher's number of this process
            print("stopped by a signal; run the same command to go on", file=sys.stderr, flush=True)
        sys.exit(getattr(error, "exit_code", 128 + signal.SIGINT))
