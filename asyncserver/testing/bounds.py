"""Waits that end: a test that hangs says nothing, one that fails says what it waited for."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable
from typing import TypeVar

from asyncserver import OptionError

__all__ = ["TIMEOUT", "bounded", "check_timeout"]

T = TypeVar("T")

TIMEOUT = 10.0
"""Seconds that an operation may take unless its caller says otherwise; only a failing test takes them."""


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


def check_timeout(seconds: float) -> float:
    """The seconds; raises ``OptionError`` for what is no duration to wait."""
    if not 0 < seconds < math.inf:
        raise OptionError("timeout", seconds, "has to be a number of seconds above zero")
    return seconds
