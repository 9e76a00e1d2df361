"""Signals are taken for a while, reach the loop, and are given back."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections.abc import Iterator

import pytest

from asyncserver.signals import STOP_SIGNALS, captured_signals
from tests.waiting import wait_until

pytestmark = pytest.mark.skipif(os.name == "nt", reason="a process cannot send itself these signals there")


@pytest.fixture(autouse=True)
def handlers_before() -> Iterator[list[int]]:
    """Handlers of the test's own, in which a signal that was not taken ends up; the old ones afterwards."""
    astray: list[int] = []
    before = {
        number: signal.signal(number, lambda number, _: astray.append(number)) for number in STOP_SIGNALS
    }
    yield astray
    for number, handler in before.items():
        signal.signal(number, handler)


def handlers() -> list[object]:
    return [signal.getsignal(number) for number in STOP_SIGNALS]


@pytest.mark.parametrize("number", STOP_SIGNALS)
async def test_signal_is_called_in_the_loop(number: int, handlers_before: list[int]) -> None:
    loop = asyncio.get_running_loop()
    taken: list[tuple[int, object]] = []
    with captured_signals(loop, lambda number: taken.append((number, asyncio.get_running_loop()))):
        os.kill(os.getpid(), number)
        await wait_until(lambda: taken, what="the signal")
    assert taken == [(number, loop)]
    assert handlers_before == []


async def test_handlers_are_as_before() -> None:
    before = handlers()
    with captured_signals(asyncio.get_running_loop(), lambda number: None):
        assert handlers() != before
    assert handlers() == before


async def test_handlers_are_as_before_after_an_exception() -> None:
    before = handlers()
    with pytest.raises(LookupError):
        with captured_signals(asyncio.get_running_loop(), lambda number: None):
            raise LookupError
    assert handlers() == before


@pytest.mark.parametrize("disposition", [signal.SIG_DFL, signal.SIG_IGN])
async def test_dispositions_without_a_function_are_given_back(disposition: signal.Handlers) -> None:
    signal.signal(signal.SIGTERM, disposition)
    with captured_signals(asyncio.get_running_loop(), lambda number: None):
        pass
    assert signal.getsignal(signal.SIGTERM) is disposition


async def test_signal_afterwards_goes_to_the_old_handler(handlers_before: list[int]) -> None:
    with captured_signals(asyncio.get_running_loop(), lambda number: None):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
    await wait_until(lambda: handlers_before, what="the signal")
    assert handlers_before == [signal.SIGTERM]


async def test_other_signals_can_be_asked_for() -> None:
    taken: list[int] = []
    stop_handlers = handlers()
    with captured_signals(asyncio.get_running_loop(), taken.append, (signal.SIGUSR1,)):
        assert handlers() == stop_handlers
        os.kill(os.getpid(), signal.SIGUSR1)
        await wait_until(lambda: taken, what="the signal")
    assert taken == [signal.SIGUSR1]
    assert signal.getsignal(signal.SIGUSR1) is signal.SIG_DFL


def test_outside_of_the_main_thread_nothing_is_taken() -> None:
    before = handlers()
    inside: list[object] = []

    def take() -> None:
        loop = asyncio.new_event_loop()
        try:
            with captured_signals(loop, lambda number: None):
                inside.extend(handlers())
        finally:
            loop.close()

    thread = threading.Thread(target=take)
    thread.start()
    thread.join()
    assert inside == before == handlers()
