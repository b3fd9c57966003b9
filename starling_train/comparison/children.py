"""Commands in separate processes, a few at a time, which a signal ends as it would end them alone."""

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from starling_train.config.fields import UserError
from starling_train.run import interruption

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


@dataclass
class Child:
    """A command to run. name: for messages. log: its output is appended to this file."""

    name: str
    arguments: list[str]
    log: Path
    process: subprocess.Popen = field(init=False, repr=False)  # once it was started


def run(children: Sequence[Child], at_once: int, say: Callable[[str], None]) -> None:
    """Run all children, `at_once` side by side. say: prints a line for each that begins and ends.

    A signal is passed on to the running ones, Ctrl-C as SIGTERM; when they have ended, this process exits with the
    signal's own code. If one fails, the others continue to their end, no new one begins, and UserError names the failed
    one, with its last line. No child is left running, whatever happens here.
    """
    running: list[Child] = []
    with _received() as received:
        try:
            failed = _look_after(list(children), running, at_once, received, say)
        finally:
            for child in running:  # after an error of our own
                child.process.terminate()
            for child in running:
                child.process.wait()
    if received:
        say("stopped by a signal; run the same command to go on")
        interruption.is_first(received[0])  # delivered again while this process ends, it changes nothing
        sys.exit(128 + received[0])
    if failed:
        raise UserError(f"compare: {failed.name} failed ({_last_line(failed.log)}); see {failed.log}, then start again")


@contextmanager
def _received() -> Iterator[list[int]]:
    """Collect the signals that come. An ignored signal stays ignored, as in `run/signals.py`."""
    interruption.forget()
    received: list[int] = []
    handled = [number for number in SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.signal(number, lambda number, frame: received.append(number)) for number in handled}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _look_after(
    waiting: list[Child], running: list[Child], at_once: int, received: list[int], say: Callable[[str], None]
) -> Child | None:
    """Start the children and wait until all have ended; return the first that failed.

    Signals are passed on here and not by their handler, so that one that comes while a process is being started reaches
    it as well.

    waiting: not started yet.
    running: filled here, for the caller.
    at_once: how many run side by side.
    received: the signals so far.
    say: prints a line.
    """
    failed, passed = None, 0
    while waiting or running:
        while waiting and len(running) < at_once and not (received or failed):
            running.append(_start(waiting.pop(0)))
            say(f"{running[-1].name}: started")
        if received or failed:
            waiting.clear()
        for number in received[passed:]:
            passed += 1
            for child in running:
                child.process.send_signal(signal.SIGTERM if number == signal.SIGINT else number)
        for child in [child for child in running if child.process.poll() is not None]:
            running.remove(child)
            code = child.process.returncode
            say(f"{child.name}: {'done' if code == 0 else f'ended with code {code}'}")
            failed = failed or (child if code and not received else None)
        time.sleep(0.2 if running else 0.0)
    return failed


def _start(child: Child) -> Child:
    """Start a child in its own process group: a terminal's Ctrl-C reaches only us, and we pass it on."""
    child.log.parent.mkdir(parents=True, exist_ok=True)
    with child.log.open("a") as file:
        child.process = subprocess.Popen(
            [sys.executable, "-m", *child.arguments],
            stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT, process_group=0,
        )  # fmt: skip
    return child


def _last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").strip().splitlines()
    return lines[-1].removeprefix("error: ")[:300] if lines else "without output"
