"""What a server accepts as a handler, and the class that handlers may extend."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeAlias

from asyncserver.connection import Connection, current_connection
from asyncserver.endpoints import Endpoint
from asyncserver.errors import OptionError
from asyncserver.stream import Stream

__all__ = [
    "Handler",
    "StreamHandler",
    "Verify",
    "as_handler",
    "as_verify",
    "check_methods",
    "check_takes_one",
    "is_async",
]


class StreamHandler:
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
        self.connection = current_connection()

    @property
    def peer(self) -> Endpoint:
        """The peer's address."""
        return self.stream.peer

    @property
    def server(self) -> Any:
        """The ``Server``."""
        return self.connection.server

    async def setup(self) -> None:
        """Prepare; nothing by default. If it raises, neither of the others runs."""

    async def handle(self) -> None:
        """Serve the peer. To be overridden."""
        raise NotImplementedError(f"{type(self).__qualname__} has no handle()")

    async def finish(self) -> None:
        """Clean up; nothing by default."""


Handler: TypeAlias = Callable[[Stream], Awaitable[object]] | type[StreamHandler]
"""``async def handler(stream)``, anything that is called like it, or a ``StreamHandler`` class."""

Verify: TypeAlias = Callable[[Connection], bool | Awaitable[bool]]
"""Says whether a connection is welcome."""


def as_handler(handler: Handler) -> Callable[[Stream], Coroutine[Any, Any, object]]:
    """The coroutine function behind a handler; ``OptionError`` if there is none."""
    given: object = handler
    if isinstance(handler, type):
        if not issubclass(handler, StreamHandler):
            raise OptionError("handler", given, "a handler class has to extend asyncserver.StreamHandler")
        check_methods(handler, StreamHandler)
        return _runner_of(handler)
    if not callable(handler):
        raise OptionError("handler", handler, "has to be an async function or a StreamHandler class")
    if not is_async(handler):
        raise OptionError("handler", handler, "is not async: write `async def` (it takes the stream)")
    check_takes_one(handler, "stream")
    return handler  # type: ignore[return-value]


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


def _runner_of(handler: type[StreamHandler]) -> Callable[[Stream], Coroutine[Any, Any, object]]:
    async def run(stream: Stream) -> None:
        instance = handler(stream)
        await instance.setup()
        try:
            await instance.handle()
        finally:
            await instance.finish()

    return run


def is_async(handler: Any) -> bool:
    """Whether calling it gives a coroutine."""
    while isinstance(handler, functools.partial):
        handler = handler.func
    return inspect.iscoroutinefunction(handler) or inspect.iscoroutinefunction(
        getattr(handler, "__call__", None)  # noqa: B004 - the method itself is what is looked at
    )


def check_methods(handler: Any, base: Any) -> None:
    """Raise ``OptionError`` unless the class extends ``base`` with methods of the right kind."""
    if handler.handle is base.handle:
        raise OptionError("handler", handler, "has no `async def handle(self)`")
    for name in ("setup", "handle", "finish"):
        if not inspect.iscoroutinefunction(getattr(handler, name)):
            raise OptionError("handler", handler, f"{name} is not async: write `async def {name}(self)`")


def check_takes_one(handler: Callable[..., Any], what: str) -> None:
    """Raise ``OptionError`` unless it can be called with one argument, ``what``."""
    try:
        signature = inspect.signature(handler)
    except (TypeError, ValueError):
        return
    try:
        signature.bind(object())
    except TypeError:
        raise OptionError(
            "handler", handler, f"has to take one argument, the {what}; it takes {signature}"
        ) from None
