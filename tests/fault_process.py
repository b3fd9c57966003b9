"""Whole commands as processes that can be watched and killed, forked from one that has imported torch already.

Importing takes seconds, a small run less: so a suite of hundreds of processes takes minutes, not an hour.
"""

import multiprocessing
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from importlib import import_module
from multiprocessing import forkserver
from pathlib import Path

# A name that is wrong here costs seconds a process and says nothing: tests/test_fault_process.py imports them all.
PRELOAD = [
    "torch", "transformers.models.auto.modeling_auto", "transformers.models.mistral.modeling_mistral",
    "transformers.models.llama.modeling_llama", "pyarrow.parquet", "matplotlib.figure",
    "starling_train.ppo", "starling_train.rm", "starling_train.dpo", "starling_train.snr", "starling_train.laser",
    "starling_train.evaluate", "starling_train.export", "starling_train.score", "starling_train.plan",
    "starling_train.training.policy", "starling_train.training.reward_model.inputs",
    "starling_train.training.ppo.metrics", "starling_train.training.ppo.update", "starling_train.rollout.generate",
    "starling_train.evals.held_out", "starling_train.report.page", "starling_train.evals.mt_bench",
]  # fmt: skip
_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(PRELOAD)


class Started:
    """A command that runs in `folder`, with the environment of this process.

    output: the folder of what it says, `folder` itself if none is given. prepare: called there first, to disturb it.
    run: where `run_dir=run` would put its files.
    """

    def __init__(
        self,
        command: str,
        arguments: list[str],
        folder: Path,
        output: Path | None = None,
        prepare: Callable[[], None] | None = None,
    ):
        self.run = folder / "run"
        output = output or folder
        output.mkdir(exist_ok=True)
        self._files = output / "stdout", output / "stderr"
        for file in self._files:
            file.unlink(missing_ok=True)  # an earlier start's, in which a test would look in vain
        given = ([command, *arguments], str(folder), *map(str, self._files), {**os.environ}, prepare)
        self._process = _context.Process(target=_main, args=given)
        self._process.start()
        self.pid = self._process.pid

    @property
    def running(self) -> bool:
        return self._process.is_alive()

    def send(self, number: int) -> None:
        if self.running:
            os.kill(self.pid, number)

    def wait(self, timeout: float = 120) -> int:
        """Exit code as the shell's parent sees it: -9 after SIGKILL."""
        self._process.join(timeout)
        if self.running:
            self._process.kill()
            raise TimeoutError(f"still running after {timeout} s: {self.out()} {self.error()}")
        return self._process.exitcode

    def wait_until(self, condition, timeout: float = 120, pause: float = 0.001) -> bool:
        """True once the condition holds; False if the process ends before."""
        end = time.monotonic() + timeout
        while time.monotonic() < end:
            if condition():
                return True
            if not self.running:
                return False
            time.sleep(pause)
        raise TimeoutError(self.error())

    def out(self) -> str:
        return self._files[0].read_text() if self._files[0].exists() else ""

    def error(self) -> str:
        return self._files[1].read_text() if self._files[1].exists() else ""


def stop() -> None:
    """End the process that commands are forked from, and wait for it, so that its CPU time counts as ours."""
    forkserver._forkserver._stop()


def kill_in_call(module: str, function: str, call: int) -> None:
    """Kill this process when a function of the package is called for the so-many-th time. For `prepare`."""
    holder = import_module(f"starling_train.{module}")
    plain, calls = getattr(holder, function), []

    def killed(*arguments, **named):
        calls.append(None)
        if len(calls) == call:
            os.kill(os.getpid(), signal.SIGKILL)
        return plain(*arguments, **named)

    setattr(holder, function, killed)


def _main(
    argv: list[str],
    folder: str,
    out: str,
    error: str,
    environment: dict[str, str],
    prepare: Callable[[], None] | None,
) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the tests run in the background
    os.chdir(folder)
    for number, path in ((1, out), (2, error)):
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(descriptor, number)
    sys.stdout = os.fdopen(1, "w", buffering=1, closefd=False)
    sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)
    sys.argv = argv
    os.environ.clear()
    os.environ.update(environment)
    try:
        if prepare:
            prepare()
        import_module(f"starling_train.{argv[0]}").main()
    except Exception:
        traceback.print_exc()
        sys.exit(1)
