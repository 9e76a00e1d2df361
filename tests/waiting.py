"""Waiting for a condition instead of sleeping for luck.

Every duration in the tests is a multiple of one unit, so that a slow machine needs one setting and not
a hundred edits: ``ASYNCSERVER_TEST_TIME_UNIT=3 make test`` makes all of them three times as long.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

T = TypeVar("T")

SECOND = float(os.environ.get("ASYNCSERVER_TEST_TIME_UNIT", "1"))
"""One scaled second; write ``timeout=2 * SECOND``."""

MS = SECOND / 1000
"""One scaled millisecond; write ``Timeouts(idle=50 * MS)``."""

PATIENCE = 10 * SECOND
"""How long a wait may take before the test fails; only a failing test ever takes that long."""

POLL = 0.002
"""Seconds between two looks at a condition; not scaled, because it decides nothing."""


async def wait_until(
    condition: Callable[[], T], *, timeout: float = PATIENCE, what: str | Callable[[], str] = ""
) -> T:
    """Let the loop run until ``condition()`` is true, and return what it returned.

    After ``timeout`` seconds it is an ``AssertionError`` that says ``what`` was waited for.
    """
    deadline = time.monotonic() + timeout
    while not (result := condition()):
        if time.monotonic() >= deadline:
            raise AssertionError(_waited_in_vain(condition, timeout, what))
        await asyncio.sleep(POLL)
    return result


def wait_until_blocking(
    condition: Callable[[], T], *, timeout: float = PATIENCE, what: str | Callable[[], str] = ""
) -> T:
    """``wait_until`` for a test without a loop: for what threads and other processes do."""
    deadline = time.monotonic() + timeout
    while not (result := condition()):
        if time.monotonic() >= deadline:
            raise AssertionError(_waited_in_vain(condition, timeout, what))
        time.sleep(POLL)
    return result


async def stays(condition: Callable[[], object], *, during: float = 50 * MS, what: str = "") -> None:
    """Assert that ``condition()`` is true now and remains so for ``during`` seconds."""
    deadline = time.monotonic() + during
    while time.monotonic() < deadline:
        assert condition(), f"{what or _name(condition)} did not stay true"
        await asyncio.sleep(POLL)


async def within(awaitable: Awaitable[T], *, timeout: float = PATIENCE, what: str = "") -> T:
    """Await with a limit; an ``AssertionError`` after ``timeout`` seconds, ``awaitable`` cancelled."""
    limit = asyncio.timeout(timeout)
    try:
        async with limit:
            return await awaitable
    except TimeoutError:
        if not limit.expired():
            raise
        raise AssertionError(f"waited {timeout:g} s for {what or repr(awaitable)}") from None


def _waited_in_vain(condition: Callable[[], object], timeout: float, what: str | Callable[[], str]) -> str:
    description = what() if callable(what) else what
    return f"waited {timeout:g} s for {description or _name(condition)}"


def _name(condition: Callable[[], object]) -> str:
    code = getattr(condition, "__code__", None)
    if code is None:
        return repr(condition)
    return f"{code.co_name} ({os.path.basename(code.co_filename)}:{code.co_firstlineno})"
