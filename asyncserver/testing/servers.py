"""Servers for tests: started on a free port or path, and closed in bounded time.

::

    async with serving(handler) as server, await Client.connect(server) as client:
        assert await client.ask(b"hello") == b"hello"
"""

from __future__ import annotations

import asyncio
import dataclasses
import ssl
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Literal, TypeAlias, Unpack

from asyncserver import (
    Address,
    AnyDatagramHandler,
    DatagramAddress,
    DatagramServer,
    DatagramServerOptions,
    Handler,
    OptionError,
    Server,
    ServerOptions,
)
from asyncserver.testing.bounds import TIMEOUT, bounded
from asyncserver.testing.certificates import default_authority
from asyncserver.testing.errors import collected_errors
from asyncserver.testing.places import make_short_directory, remove_directory

__all__ = ["DatagramTransport", "Transport", "close", "serving", "serving_datagrams"]

Transport: TypeAlias = Literal["tcp", "unix", "tls", "tls+unix"]
"""Where ``serving()`` serves if it is given no address."""

DatagramTransport: TypeAlias = Literal["udp", "unix"]
"""The same for ``serving_datagrams()``."""

_URLS = {
    "tcp": "tcp://127.0.0.1:0",
    "tls": "tls+tcp://127.0.0.1:0",
    "unix": "unix:{}/server",
    "tls+unix": "tls+unix:{}/server",
}

_DATAGRAM_URLS = {"udp": "udp://127.0.0.1:0", "unix": "unixgram:{}/server"}

# Turns of the loop, before a server is closed: accepting, reading and a handler's steps take one each.
_QUIET_TURNS = 10
_MOST_TURNS = 1000


@asynccontextmanager
async def serving(
    handler: Handler,
    *addresses: Address | str,
    transport: Transport = "tcp",
    raise_handler_errors: bool = True,
    **options: Unpack[ServerOptions],
) -> AsyncGenerator[Server]:
    """A ``Server``, started in the running loop; leaving the block closes it.

    Without ``addresses`` it is on a free port of the loopback interface (``transport`` ``"tcp"`` or
    ``"tls"``), or on a path of its own (``"unix"``, ``"tls+unix"``). With TLS it has a certificate that
    ``TLSClient`` trusts, unless ``tls=`` gives another one. ``options`` are those of ``Server``.

    What a handler raises, and is not its peer's doing, is raised at the end of the block, as
    ``HandlerErrors``; if the block raises itself, that is raised with a note about it. Not so with
    ``raise_handler_errors=False``, and not with an ``on_error=`` of the caller's. Handlers are still
    given what clients have sent before the end of the block; those that then wait for something else
    are cancelled.

    Raises what ``Server`` and ``Server.start()`` raise, and at the end ``TimeoutError`` if the server is not
    closed ten seconds after ``Timeouts.grace``.
    """
    async with AsyncExitStack() as exits:
        addresses = addresses or (await _free_address(transport, _URLS, exits),)
        if any(map(_wants_tls, addresses)) and options.get("tls") is None:
            options["tls"] = await asyncio.to_thread(_server_context)
        collecting = exits.enter_context(collected_errors(options, raise_handler_errors))
        server = Server(handler, *addresses, **collecting)
        await server.start()
        exits.push_async_callback(close, server)
        yield server


@asynccontextmanager
async def serving_datagrams(
    handler: AnyDatagramHandler,
    *addresses: DatagramAddress | str,
    transport: DatagramTransport = "udp",
    raise_handler_errors: bool = True,
    **options: Unpack[DatagramServerOptions],
) -> AsyncGenerator[DatagramServer]:
    """A ``DatagramServer``, started in the running loop; leaving the block closes it.

    Without ``addresses`` it is on a free port of the loopback interface, or, with ``transport="unix"``, on a
    path of its own. Everything else is as with ``serving()``.
    """
    async with AsyncExitStack() as exits:
        addresses = addresses or (await _free_address(transport, _DATAGRAM_URLS, exits),)
        collecting = exits.enter_context(collected_errors(options, raise_handler_errors))
        server = DatagramServer(handler, *addresses, **collecting)
        await server.start()
        exits.push_async_callback(close, server)
        yield server


async def close(server: Server | DatagramServer, timeout: float | None = None) -> None:
    """Close it; a ``TimeoutError`` if that takes so many seconds longer than its handlers may take."""
    patience = TIMEOUT if timeout is None else timeout
    await _serve_what_has_come(server)
    await bounded(server.aclose(), server.timeouts.grace + patience, f"{server!r} to close")


async def _serve_what_has_come(server: Server | DatagramServer) -> None:
    """Let handlers have what is in the kernel's buffers, and go on from there: a few turns of the loop."""
    before: object = None
    quiet = 0
    for _ in range(_MOST_TURNS):
        await asyncio.sleep(0)
        now = dataclasses.replace(server.statistics(), uptime=0)
        quiet = quiet + 1 if now == before else 0
        if quiet == _QUIET_TURNS:
            return
        before = now


async def _free_address(transport: str, urls: dict[str, str], exits: AsyncExitStack) -> str:
    url = urls.get(transport)
    if url is None:
        raise OptionError("transport", transport, f"has to be one of {', '.join(map(repr, urls))}")
    if "{}" in url:
        directory = await asyncio.to_thread(make_short_directory)
        exits.push_async_callback(asyncio.to_thread, remove_directory, directory)
        url = url.format(directory)
    return url


def _wants_tls(address: Address | str) -> bool:
    return address.startswith("tls+") if isinstance(address, str) else getattr(address, "tls", False)


def _server_context() -> ssl.SSLContext:
    return default_authority().server_context()
