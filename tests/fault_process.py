"""Whole commands as processes that can be watched and killed, forked from one that has imported torch already.

Importing takes seconds, a small run less: so a suite of hundreds of processes takes minutes, not an hour.
"""

import gc
import multiprocessing
import os
import runpy
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from multiprocessing import forkserver
from pathlib import Path

# A name that is wrong here costs seconds a process and says nothing: tests/test_fault_process.py imports them all.
PRELOAD = [
    "torch", "transformers.models.auto.modeling_auto", "transformers.models.mistral.modeling_mistral",
    "transformers.models.llama.modeling_llama", "pyarrow.parquet", "hydra.main",
    "transformers.integrations.mistral.tokenizer", "deepspeed",
    "starling_train.ppo", "starling_train.rm", "starling_train.dpo", "starling_train.snr", "starling_train.laser",
    "starling_train.evaluate", "starling_train.export", "starling_train.score", "starling_train.plan",
    "starling_train.training.policy", "starling_train.training.reward_model.inputs",
    "starling_train.training.ppo.metrics", "starling_train.training.ppo.update", "starling_train.rollout.generate",
    "starling_train.evals.held_out", "starling_train.report.page", "starling_train.evals.mt_bench",
    "starling_train.serve_reward", "starling_train.rewards.server_app", "fastapi", "uvicorn", "httpx",
]  # fmt: skip
_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload([*PRELOAD, "fault_warm_up"])


class Started:
    """A command of the package, or a Python file, that runs in `folder`, with the environment of this process.

    output: the folder of what it says, `folder` itself if none is given. prepare: called there first, to disturb it.
    environment: variables of its own on top. run: where `run_dir=run` would put its files.
    """

    def __init__(
        self,
        command: str,
        arguments: list[str],
        folder: Path,
        output: Path | None = None,
        prepare: Callable[[], None] | None = None,
        environment: dict[str, str] | None = None,
    ):
        self.run = folder / "run"
        output = output or folder
        output.mkdir(exist_ok=True)
        self._files = output / "stdout", output / "stderr"
        for file in self._files:
            file.unlink(missing_ok=True)  # an earlier start's, in which a test would look in vain
        variables = {**os.environ, **(environment or {})}
        given = ([command, *arguments], str(folder), *map(str, self._files), variables, prepare)
        self._process = _context.Process(target=_main, args=given)
        with _tests_on_path():
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


@contextmanager
def _tests_on_path() -> Iterator[None]:
    """Let the process that commands are forked from find the modules beside this one, should it start now."""
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), *([before] if before else [])])
    try:
        yield
    finally:
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before


def ready() -> None:
    """Start the process that commands are forked from, if need be, and wait until it has imported everything."""
    first = _context.Process(target=gc.isenabled)
    with _tests_on_path():
        first.start()
    first.join()


def stop() -> None:
    """End the process that commands are forked from, and wait for it, so that its CPU time counts as ours."""
    forkserver._forkserver._stop()


def together(script: Path, arguments: list[str], folder: Path, world: int, timeout: float = 120) -> list[Started]:
    """Run a Python file in so many processes that find one another, as torchrun would start them; wait for all."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = str(listener.getsockname()[1])
    shared = {"WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    started = []
    for rank in map(str, range(world)):
        own = shared | {"RANK": rank, "LOCAL_RANK": rank}
        started.append(Started(str(script), arguments, folder, folder / f"rank{rank}", environment=own))
    for one in started:
        one.wait(timeout)
    return started


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
    gc.freeze()  # what was imported ahead need not be looked through again, nor copied for that
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
        if argv[0].endswith(".py"):
            sys.path.insert(0, str(Path(argv[0]).parent))  # as Python does
            runpy.run_path(argv[0], run_name="__main__")
        else:
            import_module(f"starling_train.{argv[0]}").main()
    except Exception:
        traceback.print_exc()
        sys.exit(1)
