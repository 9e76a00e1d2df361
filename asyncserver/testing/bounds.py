"""Waits that end: a test that hangs says nothing, one that fails says what it waited for."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable
from typing import TypeVar

from asyncserver import OptionError

__all__ = ["TIMEOUT", "bounded", "check_timeout", "when_there_is_room"]

T = TypeVar("T")

TIMEOUT = 10.0
"""Seconds that an operation may take unless its caller says otherwise; only a failing test takes them."""

# Seconds between two attempts at something for which the kernel has no room yet.
_PAUSE = 0.001


async def bounded(awaitable: Awaitable[T], seconds: float, what: str | Callable[[], str]) -> T:
    """Await with a limit; a ``TimeoutError`` after ``seconds`` says ``what`` was waited for."""
    limit = asyncio.timeout(seconds)
    try:
        async with limit:
            return await awaitable
    except TimeoutError:
        if not limit.expired():
            raise
        raise TimeoutError(f"waited {seconds:g} s for {what() if callable(what) else what}") from None


async def when_there_is_room(attempt: Callable[[], object]) -> None:
    """Make the attempt until it raises no ``BlockingIOError``: for what a loop cannot be told to wait for."""
    while True:
        try:
            attempt()
        except BlockingIOError:
            await asyncio.sleep(_PAUSE)
        else:
            return


def check_timeout(seconds: float) -> float:
    """The seconds; raises ``OptionError`` for what is no duration to wait."""
    if not 0 < seconds < math.inf:
        raise OptionError("timeout", seconds, "has to be a number of seconds above zero")
    return seconds
