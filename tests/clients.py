"""Peers of all kinds for tests: those of ``asyncserver.testing``, and what goes with them.

::

    async with local_server(echo) as server, await Client.connect(server) as client:
        assert await client.ask(b"hello") == b"hello"
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest

from asyncserver import Address, Server, Stream, testing
from asyncserver.testing.clients import reset_at_close
from tests.waiting import PATIENCE

__all__ = [
    "LOOPBACK",
    "Client",
    "TLSClient",
    "complaints",
    "connect_many",
    "echo",
    "hear_nobody",
    "ignore_cancellation",
    "kept_port",
    "local_server",
    "reset_at_close",
]

LOOPBACK = "tcp://127.0.0.1:0"


@contextmanager
def kept_port(*, kind: int = socket.SOCK_STREAM, dual_stack: bool = False) -> Iterator[int]:
    """A port that servers may share, and that no test beside this one is given: bound, and not listening."""
    family, host = (socket.AF_INET6, "::") if dual_stack else (socket.AF_INET, "127.0.0.1")
    with socket.socket(family, kind) as keeper:
        keeper.setblocking(False)  # Or connecting it would count as blocking the loop.
        if dual_stack:
            keeper.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        keeper.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        keeper.bind((host, 0))
        if kind == socket.SOCK_DGRAM:
            hear_nobody(keeper)
        yield keeper.getsockname()[1]


def hear_nobody(sock: socket.socket) -> None:
    """Have a UDP socket take what comes from itself alone: nobody is there, and nobody gets the port."""
    sock.connect(sock.getsockname())


async def echo(stream: Stream) -> None:
    """The handler that most tests need: sends back whatever comes."""
    async for chunk in stream:
        await stream.send(chunk)


async def ignore_cancellation(until: asyncio.Event) -> None:
    """What handlers must not do: go on although they are cancelled. (Not for ever: a test may fail.)"""
    end = asyncio.get_running_loop().time() + 2 * PATIENCE
    while not until.is_set():
        with suppress(asyncio.CancelledError):
            async with asyncio.timeout_at(end):
                await until.wait()


def local_server(handler: Any = echo, *addresses: Address | str, **options: Any) -> Server:
    """A server on a free port of the loopback interface, or on ``addresses``; not started yet."""
    return Server(handler, *(addresses or (LOOPBACK,)), **options)


def complaints(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What was logged as a warning or worse."""
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


class Client(testing.Client):
    """A peer on a non-blocking socket, whose patience is that of the tests."""

    default_timeout = PATIENCE


class TLSClient(testing.TLSClient):
    """A TLS peer over a ``Client``, driven step by step."""

    default_timeout = PATIENCE


async def connect_many(target: Server | Address, count: int) -> list[Client]:
    """So many clients, one after the other."""
    return [await Client.connect(target) for _ in range(count)]
