"""A DatagramProtocol on uvloop or on asyncio's own loop: raw, or with an awaitable handler."""

from __future__ import annotations

import asyncio
import logging
from asyncio import AbstractEventLoop, DatagramTransport
from collections.abc import Coroutine
from typing import Any

from datagrams import bound_socket
from loops import run
from serving import Arguments, parser, ready

Peer = tuple[str, int]
LOG = logging.getLogger(__name__)

LARGER_THAN_ASYNCIOS_BUFFER = 1 << 20  # bytes


class DatagramArguments(Arguments):
    """The options of this script."""

    kind: str
    free_once: bool


class Raw(asyncio.DatagramProtocol):
    """Sends the datagram back: the fastest, and no place for an `await`."""

    transport: DatagramTransport

    def connection_made(self, transport: DatagramTransport) -> None:  # type: ignore[override]
        self.transport = transport

    def datagram_received(self, data: bytes, addr: Peer) -> None:
        self.transport.sendto(data, addr)


class Packet:
    """What the handlers get."""

    __slots__ = ("data", "peer", "transport")

    def __init__(self, data: bytes, peer: Peer, transport: DatagramTransport) -> None:
        self.data = data
        self.peer = peer
        self.transport = transport

    async def reply(self, data: bytes) -> None:
        self.transport.sendto(data, self.peer)


async def echo(packet: Packet) -> None:
    await packet.reply(packet.data)


class Tasks(Raw):
    """A task for each datagram, with a reference to it, as the documentation of `create_task` asks for."""

    def __init__(self, loop: AbstractEventLoop) -> None:
        self.loop = loop
        self.tasks: set[asyncio.Task[None]] = set()

    def datagram_received(self, data: bytes, addr: Peer) -> None:
        task = self.loop.create_task(echo(Packet(data, addr, self.transport)))
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)


class Stepped(Raw):
    """Runs the handler by hand, at once: a task is not needed by one that does not wait.

    Handlers cannot be cancelled, and `asyncio.timeout()` and the like do not work in them.
    """

    def __init__(self, loop: AbstractEventLoop) -> None:
        self.loop = loop

    def datagram_received(self, data: bytes, addr: Peer) -> None:
        self.step(echo(Packet(data, addr, self.transport)))

    def step(self, coroutine: Coroutine[Any, Any, None]) -> None:
        try:
            awaited = coroutine.send(None)
        except StopIteration:
            return
        except Exception:
            LOG.exception("a handler failed")
            return
        if awaited is None:
            self.loop.call_soon(self.step, coroutine)
        else:
            awaited._asyncio_future_blocking = False
            awaited.add_done_callback(lambda _: self.step(coroutine))


async def main(args: DatagramArguments) -> None:
    loop = asyncio.get_running_loop()
    protocols = {"raw": Raw, "tasks": lambda: Tasks(loop), "stepped": lambda: Stepped(loop)}
    await loop.create_datagram_endpoint(protocols[args.kind], sock=bound_socket(args.port))
    if args.free_once:
        bytes(LARGER_THAN_ASYNCIOS_BUFFER)  # after that malloc() does not map each buffer of its own
    ready()
    await loop.create_future()


if __name__ == "__main__":
    options = parser(loops=("uvloop", "asyncio"))
    options.add_argument("--kind", choices=("raw", "tasks", "stepped"), default="raw")
    options.add_argument("--free-once", action="store_true", help="allocate and free 1 MiB first")
    run(main(options.parse_args(namespace=(args := DatagramArguments()))), args.loop)
