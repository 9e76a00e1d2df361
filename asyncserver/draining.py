"""Ending all connections of a server, in phases that are each bounded."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Protocol

from asyncserver.connections import Connections
from asyncserver.states import CloseReason
from asyncserver.statistics import DrainReport

__all__ = ["drain_connections"]


class ConnectionHub(Protocol):
    """What a drain needs from the hub of the connections."""

    loop: asyncio.AbstractEventLoop
    connections: Connections

    @property
    def closed_by_reason(self) -> Counter[CloseReason]: ...
    async def accept_queued(self) -> None: ...
    def stop_accepting(self) -> None: ...
    def tell_all_to_end(self, reason: CloseReason) -> None: ...
    def cancel_all(self) -> None: ...


async def drain_connections(
    hub: ConnectionHub, timeout: float | None, release: Callable[[], Awaitable[None]] | None
) -> DrainReport:
    """Accept no more, then end all connections: tell, wait ``timeout`` seconds, cancel, abort.

    ``release`` is called when nothing is accepted any more. Returns with no connection left.
    """
    started = hub.loop.time()
    before = hub.closed_by_reason
    if timeout is None or timeout > 0:
        await hub.accept_queued()
    hub.stop_accepting()
    if release is not None:
        await release()
    idle = sum(connection.stream.idle for connection in hub.connections)
    if timeout is None or timeout > 0:
        hub.tell_all_to_end(CloseReason.DRAINED)
        await _wait_empty(hub, timeout)
    if hub.connections:
        hub.cancel_all()
        # The connections abort themselves after their grace; this is for them to have done so.
        await hub.connections.wait_empty()
    ended = hub.closed_by_reason - before
    cancelled, aborted = ended[CloseReason.CANCELLED], ended[CloseReason.ABORTED]
    in_peace = sum(ended.values()) - cancelled - aborted
    idle = min(idle, ended[CloseReason.DRAINED], in_peace)
    return DrainReport(
        idle=idle,
        finished=in_peace - idle,
        cancelled=cancelled,
        aborted=aborted,
        duration=hub.loop.time() - started,
    )


async def _wait_empty(hub: ConnectionHub, timeout: float | None) -> None:
    try:
        async with asyncio.timeout(timeout):
            await hub.connections.wait_empty()
    except TimeoutError:
        return
