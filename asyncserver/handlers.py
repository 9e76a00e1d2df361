"""What a server accepts as a handler, and the class that handlers may extend."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeAlias

from asyncserver.connection import Connection, current_connection
from asyncserver.endpoints import Endpoint
from asyncserver.errors import OptionError
from asyncserver.handler_kinds import CLASSES, STREAMS, StepsHandler, checked_function, runner_of
from asyncserver.stream import Stream

__all__ = ["Handler", "StreamHandler", "Verify", "as_handler", "as_verify"]


class StreamHandler(StepsHandler):
    """Serves one connection: ``setup``, ``handle`` and ``finish`` run one after the other.

    Extend it and give the class to a server, which makes one instance for each connection. ``finish``
    runs whenever ``setup`` has succeeded, also when ``handle`` raised or was cancelled. The server
    closes the stream afterwards.
    """

    stream: Stream
    """The bytes to and from the peer."""
    connection: Connection
    """The connection, with its counters, states and ``close_reason``."""

    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        try:
            self.connection = current_connection()
        except LookupError:
            name = type(self).__name__
            raise LookupError(
                f"{name} is made by a server, for each connection: give it the class, {name}"
            ) from None

    @property
    def peer(self) -> Endpoint:
        """The peer's address."""
        return self.stream.peer

    @property
    def server(self) -> Any:
        """The ``Server``."""
        return self.connection.server


CLASSES[StreamHandler] = STREAMS


Handler: TypeAlias = Callable[[Stream], Awaitable[object]] | type[StreamHandler]
"""``async def handler(stream)``, anything that is called like it, or a ``StreamHandler`` class."""

Verify: TypeAlias = Callable[[Connection], bool | Awaitable[bool]]
"""Says whether a connection is welcome."""


def as_handler(handler: Handler) -> Callable[[Stream], Coroutine[Any, Any, object]]:
    """The coroutine function behind a handler; ``OptionError`` if there is none."""
    return runner_of(handler, STREAMS) or checked_function(handler, STREAMS)


def as_verify(
    verify: Verify | None,
) -> Callable[[Connection], Coroutine[Any, Any, bool]] | None:
    """The filter as a coroutine function, whichever kind it is."""
    if verify is None:
        return None
    if not callable(verify):
        raise OptionError("verify", verify, "has to be a function that takes a connection")

    async def verified(connection: Connection) -> bool:
        welcome = verify(connection)
        return bool(await welcome if inspect.isawaitable(welcome) else welcome)

    return verified
