"""SIGTERM, SIGINT (Ctrl-C) and SIGUSR1: a run ends within its grace time, with its state saved."""

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from starling_train.config.fields import UserError
from starling_train.run import interruption
from starling_train.run.out_of_memory import OutOfMemory, is_out_of_memory, without_memory
from starling_train.run.runtime import Runtime

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
KEPT_FOR_SAVING = 0.2  # of the grace time


class Stopped(BaseException):
    """The phase is abandoned because of a signal. Not an Exception, so that no `except Exception` catches it."""


class StopRequest:
    """Remembers a signal, and raises Stopped only in phases that may be left.

    A file that is being written is therefore always completed. A second signal, a second or more after the first,
    exits at once (a terminal and a launcher may deliver one signal twice). A signal that is ignored when the command
    starts stays so: a launcher that sends the other one relies on that (slurm/node.sh), or `nohup`.

    Several processes leave together, at the next border between two phases.

    grace_s: seconds from the signal to the end of the process. exit_code: None until a signal came, then 128 + its
    number. half_updated: an update was interrupted, so that what is in memory belongs to no step.
    """

    def __init__(self, grace_s: float, runtime: Runtime | None = None) -> None:
        self.exit_code: int | None = None
        self._runtime = runtime or Runtime()
        self.half_updated = False
        self._grace_s = grace_s
        self._phase = ""  # abandon, update, finish: may be left: at once; if it does not fit; when the time is over
        self._began = self._longest_update = self._since = 0.0

    def __enter__(self) -> "StopRequest":
        interruption.forget()
        heard = [number for number in SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
        self._before = {number: signal.signal(number, self._remember) for number in heard}
        self._before[signal.SIGALRM] = signal.signal(signal.SIGALRM, self._time_is_over)
        return self

    def __exit__(self, *error: object) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in self._before.items():
            was_heard = self.exit_code is not None and handler == signal.SIG_DFL
            # the same signal, delivered again while the process ends, must not end it with another code
            signal.signal(number, _pass_over if was_heard and number != signal.SIGALRM else handler)

    @property
    def is_alone(self) -> bool:
        return self._runtime.world == 1

    def wait_for_all(self) -> None:
        """Wait until all have saved: launchers end the others when one has left, even in the middle of saving."""
        self._runtime.maximum([0.0])

    @contextmanager
    def abandonable(self) -> Iterator[None]:
        """Run a phase that changes nothing that is kept: a signal ends it at once."""
        self._raise_if_stopped()
        with self._as("abandon"):
            yield
        self._raise_if_stopped()

    @contextmanager
    def updating(self, has_begun: Callable[[], bool] = lambda: True) -> Iterator[None]:
        """Run a phase that changes what a checkpoint holds: completed if, by earlier ones, the grace time allows.

        has_begun: whether anything has been changed so far; until then the phase may end without loss.
        """
        self._raise_if_stopped()
        self._began = time.monotonic()
        with self._as("update"):
            try:
                yield
            except BaseException:
                self.half_updated = has_begun()
                raise
        self._longest_update = max(self._longest_update, time.monotonic() - self._began)

    @contextmanager
    def finishing(self) -> Iterator[None]:
        """Run after the last checkpoint; completed if the grace time allows."""
        with self._as("finish"):
            if self.exit_code is not None:  # the timer may have gone off before this phase
                self._set_timer()
            yield

    @contextmanager
    def _as(self, phase: str) -> Iterator[None]:
        try:
            self._phase = phase
            yield
        finally:
            self._phase = ""

    def _raise_if_stopped(self) -> None:
        code = int(self._runtime.maximum([self.exit_code or 0])[0])
        if code:
            self.exit_code = code
            raise Stopped

    def _remember(self, number: int, frame: FrameType | None) -> None:
        if not interruption.is_first(number):
            return
        self.exit_code, self._since = 128 + number, time.monotonic()
        self._set_timer()  # for an update, or the writing of the final model, that takes too long
        if self._runtime.world > 1:  # the others may be in another phase, and would wait for this one
            return
        if self._phase == "abandon" or (self._phase == "update" and not self._update_fits()):
            self._leave()

    def _update_fits(self) -> bool:
        """Return whether an update like the longest so far fits; without an earlier one, it may try."""
        left = self._began + self._longest_update - time.monotonic()
        return left <= self._grace_s * (1 - KEPT_FOR_SAVING)

    def _set_timer(self) -> None:
        left = self._since + (1 - KEPT_FOR_SAVING) * self._grace_s - time.monotonic()
        signal.setitimer(signal.ITIMER_REAL, max(left, 1e-3))

    def _time_is_over(self, number: int, frame: FrameType | None) -> None:
        if self._runtime.world > 1 and self._phase:
            print(
                f"rank {self._runtime.rank}: stopped by a signal; what was under way did not fit in checkpoint.grace_s "
                "and is lost, with all since the last checkpoint; run the same command to go on from there",
                file=sys.stderr,
                flush=True,
            )
            os._exit(self.exit_code or 1)
        if self._phase in ("update", "finish"):
            self._leave()

    def _leave(self) -> None:
        self._phase = ""
        raise Stopped


def _pass_over(number: int, frame: FrameType | None) -> None:
    interruption.is_first(number)


@contextmanager
def leave_saved(
    stop: StopRequest, save: Callable[[], None], saved: Callable[[], int], say: Callable[[str], None]
) -> Iterator[None]:
    """Handle Stopped: save the state unless an update was interrupted, then exit with the signal's code.

    A user's error, such as a reward server that is gone, also saves the state before it is raised; so does lack of
    memory, which becomes one.
    saved: returns the step of the last checkpoint, which stays the newest after an interrupted update.
    """
    try:
        yield
    except Stopped:
        if stop.half_updated:
            say(
                "stopped by a signal; the update did not fit in checkpoint.grace_s and is lost, with all since the "
                f"checkpoint of step {saved()}; run the same command to go on from there"
            )
        else:
            save()
            stop.wait_for_all()
        sys.exit(stop.exit_code)
    except (UserError, MemoryError, RuntimeError) as error:
        if not isinstance(error, UserError) and not is_out_of_memory(error):
            raise
        if not stop.half_updated and stop.is_alone:  # another process may have no error, and would not save with us
            save()
        if isinstance(error, UserError):
            raise
        raise OutOfMemory(without_memory(error)) from error
