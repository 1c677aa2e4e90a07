"""Signals: at once where nothing is at stake, at the next safe point while training; a second one always at once."""

import os
import signal
import time

import pytest
from helpers.program import listening

from runtime.signals import Stopped, StoppedAtOnce, StopRequest

SIGNALS = [signal.SIGINT, signal.SIGTERM]


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_stops_at_once(number: signal.Signals) -> None:
    with listening() as stop, pytest.raises(Stopped, match=number.name) as caught:
        signal.raise_signal(number)
    assert caught.value.status == 128 + number
    assert not isinstance(caught.value, StoppedAtOnce)
    assert not isinstance(caught.value, Exception)  # so that `except Exception` lets it pass
    assert isinstance(stop, StopRequest)


@pytest.mark.parametrize("number", SIGNALS)
def test_a_deferred_signal_waits_for_the_check(number: signal.Signals) -> None:
    reached = False
    with listening() as stop, pytest.raises(Stopped, match=number.name) as caught, stop.deferred():
        stop.check()
        signal.raise_signal(number)
        reached = True
        stop.check()
    assert reached
    assert caught.value.status == 128 + number


@pytest.mark.parametrize("second", SIGNALS)
def test_a_second_signal_does_not_wait(second: signal.Signals) -> None:
    with listening() as stop, pytest.raises(StoppedAtOnce) as caught, stop.deferred():
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(second)
        pytest.fail("went on")
    assert caught.value.status == 128 + second


def test_a_signal_ends_a_sleep() -> None:
    began = time.monotonic()
    with listening(), pytest.raises(Stopped):
        previous = signal.signal(signal.SIGALRM, lambda number, frame: os.kill(os.getpid(), signal.SIGTERM))
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        try:
            time.sleep(60)
        finally:
            signal.signal(signal.SIGALRM, previous)
    assert time.monotonic() - began < 30


def test_without_a_signal_nothing_happens() -> None:
    with listening() as stop:
        with stop.deferred():
            stop.check()
        stop.check()


def test_after_the_deferred_part_signals_act_at_once_again() -> None:
    with listening() as stop:
        with stop.deferred():
            pass
        with pytest.raises(Stopped):
            signal.raise_signal(signal.SIGTERM)


def test_a_signal_that_came_after_the_last_check_is_not_lost() -> None:
    with listening() as stop, pytest.raises(Stopped), stop.deferred():
        signal.raise_signal(signal.SIGTERM)
