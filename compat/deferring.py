"""Signals that have to wait until an event loop is made."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from functools import partial
from typing import Any

__all__ = ["signals_deferred"]

# Signals that can wait: not those of a fault, which the system sends to the thread that has made it.
_FAULTS = {"SIGBUS", "SIGFPE", "SIGILL", "SIGSEGV", "SIGSYS", "SIGTRAP"}
_DEFERRABLE = [number for number in signal.Signals if number.name not in _FAULTS]


@contextmanager
def signals_deferred() -> Generator[None]:
    """A signal handler that raises while a loop is being made would leave half of one: it runs after that."""
    if threading.current_thread() is threading.main_thread():
        with _endings_deferred(), _signals_blocked():
            yield
    else:
        yield


@contextmanager
def _signals_blocked() -> Generator[None]:
    """In this thread. Where there are others the system may give a signal to one of them."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())  # First: the call that blocks may raise.
    try:
        signal.pthread_sigmask(signal.SIG_BLOCK, _DEFERRABLE)
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def _endings_deferred() -> Generator[None]:
    """Whichever thread gets SIGINT or SIGTERM, Python calls their handlers in the main thread: not now.

    The others' handlers stay: one that a library has put there by sigaction(2), as ``faulthandler`` does,
    would not be put back.
    """
    handlers: dict[int, Any] = {}
    for each in (signal.SIGINT, signal.SIGTERM):
        if callable(handler := signal.getsignal(each)):
            handlers[each] = handler
    arrived: list[tuple[int, Any]] = []

    def note(number: int, frame: Any) -> None:
        arrived.append((number, frame))

    try:
        for number in handlers:
            signal.signal(number, note)
        yield
    finally:
        try:
            _put_back(list(handlers.items()))
        finally:
            _call_all([partial(handlers[number], number, frame) for number, frame in arrived])


def _put_back(handlers: list[tuple[int, Any]]) -> None:
    """All, whatever one that is back already raises in between."""
    try:
        while handlers:
            signal.signal(*handlers[-1])
            handlers.pop()
    finally:
        if handlers:
            _put_back(handlers)


def _call_all(calls: list[Callable[[], object]]) -> None:
    """Each once, whatever the others raise; it is the last exception that is raised."""
    try:
        while calls:
            calls.pop(0)()
    finally:
        if calls:
            _call_all(calls)
