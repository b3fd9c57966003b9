"""A signal ends a phase only where the phase says so."""

import os
import signal
import time
from contextlib import suppress

import pytest

from starling_train.run.interruption import interruptible
from starling_train.run.signals import Stopped, StopRequest, leave_saved


def send(number: int = signal.SIGTERM) -> None:
    os.kill(os.getpid(), number)


def test_a_phase_that_changes_nothing_is_left_at_once_and_all_others_are_not():
    with StopRequest(60) as stop:
        send(signal.SIGUSR1)
        assert stop.exit_code == 138  # nothing raised: a file may be being written
        with pytest.raises(Stopped), stop.abandonable():
            pytest.fail("begun after the signal")
    with StopRequest(60) as stop:
        with pytest.raises(Stopped), stop.abandonable():
            send()
            pytest.fail("went on after the signal")
        assert stop.exit_code == 143 and not stop.half_updated


@pytest.fixture(autouse=True)
def handlers_are_put_back():
    numbers = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGALRM)
    before = {number: signal.getsignal(number) for number in numbers}
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the tests run in the background
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def test_ctrl_c_is_a_signal_like_the_others_and_twice_in_a_moment_is_once():
    with StopRequest(60) as stop:
        with pytest.raises(Stopped), stop.abandonable():
            send(signal.SIGINT)
            pytest.fail("went on after the signal")
        send(signal.SIGINT)
        assert stop.exit_code == 130 and not stop.half_updated


def test_a_signal_delivered_again_after_the_run_has_left_changes_nothing():
    with interruptible():
        with pytest.raises(Stopped), StopRequest(60) as stop, stop.abandonable():
            send(signal.SIGTERM)
        send(signal.SIGTERM)
        send(signal.SIGINT)


def test_ctrl_c_that_was_ignored_from_the_start_stays_so():
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with interruptible(), StopRequest(60) as stop, stop.abandonable():
        send(signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    assert stop.exit_code is None and signal.getsignal(signal.SIGINT) == signal.SIG_IGN


def test_a_handler_of_the_caller_stays():
    heard = []
    signal.signal(signal.SIGINT, lambda number, frame: heard.append(number))
    with interruptible():
        send(signal.SIGINT)
    assert heard == [signal.SIGINT]


def test_without_a_run_ctrl_c_interrupts_once_and_no_except_takes_it():
    with pytest.raises(KeyboardInterrupt) as stopped, interruptible():
        try:
            send(signal.SIGINT)
        except Exception:
            pytest.fail("taken")
        finally:
            send(signal.SIGINT)
    assert stopped.value.exit_code == 130
    with interruptible():
        pass
    assert signal.getsignal(signal.SIGINT) == signal.default_int_handler


def test_a_signal_that_was_ignored_from_the_start_stays_so():
    """However often it comes: a second one of a signal that is heard would end the process."""
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        with StopRequest(60) as stop:
            send()
            assert stop.exit_code is None
            send(signal.SIGUSR1)
            assert stop.exit_code == 138
            time.sleep(1.1)
            send()
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGTERM, before)


def test_nobody_s_except_takes_it_and_a_swallowed_one_is_raised_at_the_end():
    with StopRequest(60) as stop, pytest.raises(Stopped), stop.abandonable():
        try:
            send()
        except Exception:
            pytest.fail("taken")
    # as in a destructor, which Python lets no exception leave
    with StopRequest(60) as stop, pytest.raises(Stopped), stop.abandonable(), suppress(BaseException):
        send()


def test_an_update_that_fits_is_finished():
    with StopRequest(60) as stop:
        with stop.updating():
            send()
            done = True
        assert done and not stop.half_updated
        with pytest.raises(Stopped), stop.updating():
            pytest.fail("another one begun")
        assert not stop.half_updated


def test_an_update_that_does_not_fit_is_left_at_once(monkeypatch):
    with StopRequest(5) as stop:
        now = time.monotonic()
        monkeypatch.setattr(time, "monotonic", lambda: now)
        with stop.updating():
            monkeypatch.setattr(time, "monotonic", lambda: now + 100)  # the first one took 100 s
        with pytest.raises(Stopped), stop.updating():
            send()
            pytest.fail("went on")
        assert stop.half_updated


@pytest.mark.parametrize("phase", ["updating", "finishing"])
def test_without_a_measure_it_has_the_grace_time(phase):
    with StopRequest(0.5) as stop:
        began = time.monotonic()
        with pytest.raises(Stopped), getattr(stop, phase)():
            send()
            while time.monotonic() < began + 20:
                time.sleep(0.01)
        assert time.monotonic() < began + 10
        assert stop.half_updated is (phase == "updating")


def test_the_end_of_a_run_is_written_though_the_signal_came_before():
    with StopRequest(60) as stop:
        send()
        with stop.finishing():
            done = True
    assert done


def test_the_handlers_are_put_back():
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGALRM)]
    with StopRequest(60):
        pass
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGALRM)] == before


@pytest.mark.parametrize("half", [False, True])
def test_what_is_of_one_step_is_saved_and_half_an_update_is_not(half):
    said, saved = [], []
    with (
        pytest.raises(SystemExit) as ended,
        StopRequest(0.2) as stop,
        leave_saved(stop, lambda: saved.append(1), lambda: 7, said.append),
        stop.updating() if half else stop.abandonable(),
    ):
        send()
        time.sleep(5)
    assert ended.value.code == 143
    assert (saved, len(said)) == (([], 1) if half else ([1], 0))
    assert not half or "step 7" in said[0]
