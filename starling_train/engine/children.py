"""Commands as processes of their own, a few at a time, which a signal ends as it would end them alone."""

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from starling_train.config import UserError

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


@dataclass
class Child:
    """A command to run. name: for messages. log: what it prints goes there, after what is there already."""

    name: str
    arguments: list[str]
    log: Path
    process: subprocess.Popen | None = field(default=None, repr=False)
    file: IO[str] | None = field(default=None, repr=False)


def run(children: Sequence[Child], at_once: int, say: Callable[[str], None]) -> None:
    """Run all of them, `at_once` side by side. say: told of each that begins and ends.

    A signal is passed on to those that run; when they have ended, this process exits with the signal's code. Where one
    fails, the others that run go on to their end, no new one begins, and UserError names it, with its last line.
    """
    waiting, running, failed = list(children), [], None
    received: list[int] = []

    def pass_on(number: int, frame: Any) -> None:
        received.append(number)
        for child in running:
            child.process.send_signal(number)

    with ExitStack() as stack:
        for number in SIGNALS:
            stack.callback(signal.signal, number, signal.signal(number, pass_on))
        while waiting or running:
            while waiting and len(running) < at_once and not (received or failed):
                running.append(_start(waiting.pop(0)))
                say(f"{running[-1].name}: started")
            if received or failed:
                waiting.clear()
            for child in [child for child in running if child.process.poll() is not None]:
                running.remove(child)
                child.file.close()
                code = child.process.returncode
                say(f"{child.name}: {'done' if code == 0 else f'ended with code {code}'}")
                failed = failed or (child if code and not received else None)
            time.sleep(0.2)
    if received:
        sys.exit(128 + received[0])
    if failed:
        raise UserError(f"compare: {failed.name} failed ({_last_line(failed.log)}); see {failed.log}, then start again")


def _start(child: Child) -> Child:
    child.log.parent.mkdir(parents=True, exist_ok=True)
    child.file = child.log.open("a")
    child.process = subprocess.Popen(
        [sys.executable, "-m", *child.arguments], stdout=child.file, stderr=subprocess.STDOUT, text=True
    )
    return child


def _last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").strip().splitlines()
    return lines[-1].removeprefix("error: ")[:300] if lines else "it said nothing"
