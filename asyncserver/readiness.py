"""Waiting once until a descriptor is ready, where speed does not matter."""

from __future__ import annotations

import asyncio

__all__ = ["wait_readable", "wait_writable"]


async def wait_readable(loop: asyncio.AbstractEventLoop, fd: int) -> None:
    """Wait until reading ``fd`` would not block. It must have no reader on the loop."""
    ready = loop.create_future()
    loop.add_reader(fd, _set, ready)
    try:
        await ready
    finally:
        loop.remove_reader(fd)


async def wait_writable(loop: asyncio.AbstractEventLoop, fd: int) -> None:
    """Wait until writing ``fd`` would not block. It must have no writer on the loop."""
    ready = loop.create_future()
    loop.add_writer(fd, _set, ready)
    try:
        await ready
    finally:
        loop.remove_writer(fd)


def _set(ready: asyncio.Future[None]) -> None:
    if not ready.done():
        ready.set_result(None)
