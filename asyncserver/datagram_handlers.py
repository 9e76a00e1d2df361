"""What a datagram server accepts as a handler, and the class that handlers may extend."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from typing import Any, TypeAlias

from asyncserver.datagram import Datagram
from asyncserver.datagram_dispatch import PacketHandler
from asyncserver.datagram_sessions import SessionFunction
from asyncserver.endpoints import Endpoint
from asyncserver.handler_kinds import (
    CLASSES,
    DATAGRAMS,
    SESSIONS,
    StepsHandler,
    checked_function,
    runner_of,
)
from asyncserver.session import Session

__all__ = [
    "AnyDatagramHandler",
    "DatagramHandler",
    "SessionHandler",
    "as_packet_handler",
    "as_session_function",
    "sessions",
]


class DatagramHandler(StepsHandler):
    """Serves one packet: ``setup``, ``handle`` and ``finish`` run one after the other.

    Extend it and give the class to a server, which makes one instance for each packet. ``finish`` runs
    whenever ``setup`` has succeeded, also when ``handle`` raised or was cancelled.
    """

    datagram: Datagram
    """The packet."""

    def __init__(self, datagram: Datagram) -> None:
        self.datagram = datagram

    @property
    def peer(self) -> Endpoint:
        """Who sent it."""
        return self.datagram.peer

    @property
    def server(self) -> Any:
        """The ``DatagramServer``."""
        return self.datagram.server


@dataclass(frozen=True)
class SessionHandler:
    """A handler that serves peers and not single packets; made by ``sessions()``."""

    function: SessionFunction

    def __call__(self, session: Session) -> Coroutine[Any, Any, object]:
        """Call the function."""
        return self.function(session)


def sessions(handler: Callable[[Session], Awaitable[object]]) -> SessionHandler:
    """Mark ``async def handler(session)``: a ``DatagramServer`` then calls it once for each peer.

    ::

        @sessions
        async def count(session: Session) -> None:
            number = 0
            async for datagram in session:
                number += 1
                await session.send(b"%d" % number)

    Raises ``OptionError`` for what is no such function.
    """
    return SessionHandler(checked_function(handler, SESSIONS))


CLASSES.update({DatagramHandler: DATAGRAMS, SessionHandler: SESSIONS})


AnyDatagramHandler: TypeAlias = (
    Callable[[Datagram], Awaitable[object]] | type[DatagramHandler] | SessionHandler
)
"""``async def handler(datagram)``, anything that is called like it, a ``DatagramHandler`` class, or a
function that is marked with ``@sessions``."""


def as_session_function(handler: AnyDatagramHandler) -> SessionFunction | None:
    """The coroutine function that serves sessions; None if the handler serves packets."""
    return handler.function if isinstance(handler, SessionHandler) else None


def as_packet_handler(handler: AnyDatagramHandler) -> PacketHandler | None:
    """The coroutine function that serves packets; None if it serves sessions. Raises ``OptionError``."""
    if isinstance(handler, SessionHandler):
        return None
    return runner_of(handler, DATAGRAMS) or checked_function(handler, DATAGRAMS)
