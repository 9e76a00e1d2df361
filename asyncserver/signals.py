"""Taking signals for a while, and giving them back."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from types import FrameType

__all__ = ["STOP_SIGNALS", "captured_signals"]

# What asks a service to stop: service managers send the first, terminals the second.
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)


@contextmanager
def captured_signals(
    loop: asyncio.AbstractEventLoop, on_signal: Callable[[int], None], signals: tuple[int, ...] = STOP_SIGNALS
) -> Generator[None]:
    """Call ``on_signal(number)`` in the loop for each of the signals; afterwards all is as it was.

    Does nothing outside of the main thread, which is the only one that signals can be taken in.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in signals}
    try:
        for number in signals:
            _capture(loop, on_signal, number)
        yield
    finally:
        for number, handler in before.items():
            _release(loop, number)
            # None: it was not set from Python and cannot be; the default is the best there is.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


def _capture(loop: asyncio.AbstractEventLoop, on_signal: Callable[[int], None], number: int) -> None:
    try:
        loop.add_signal_handler(number, on_signal, number)
    except NotImplementedError:  # Windows

        def handler(number: int, frame: FrameType | None) -> None:
            loop.call_soon_threadsafe(on_signal, number)

        signal.signal(number, handler)


def _release(loop: asyncio.AbstractEventLoop, number: int) -> None:
    try:
        loop.remove_signal_handler(number)
    except NotImplementedError:
        return
