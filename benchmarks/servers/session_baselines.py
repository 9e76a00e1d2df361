"""What sessions cost without a framework: in a dict, with a task each, and the handler's own frame alone.

`dict`    an object for each peer in a dict, and no handler: what a program on asyncio has at the least.
`tasks`   an object, a queue and a task for each peer: the handler of ours on what asyncio has.
`frames`  the handler's coroutine alone, waiting for its second datagram. It waits for an object that all
          share, and nothing remembers its peer.
"""

from __future__ import annotations

import asyncio
import time
from asyncio import DatagramTransport
from collections.abc import Coroutine
from typing import Any, NamedTuple

from datagrams import QUESTION, bound_socket, talk
from loops import run
from serving import Arguments, parser, ready

Peer = tuple[str, int]


class Packet(NamedTuple):
    """What the handlers get."""

    data: bytes
    peer: Peer


class Protocol(asyncio.DatagramProtocol):
    """Keeps the transport."""

    transport: DatagramTransport

    def connection_made(self, transport: DatagramTransport) -> None:  # type: ignore[override]
        self.transport = transport


class State:
    """What a program knows of a peer."""

    __slots__ = ("peer", "received", "seen")

    def __init__(self, peer: Peer) -> None:
        self.peer = peer
        self.received = 0
        self.seen = 0.0  # the clock that idle peers are dropped by


class Dict(Protocol):
    """An object for each peer, and no handler."""

    def __init__(self) -> None:
        self.peers: dict[Peer, State] = {}

    def datagram_received(self, data: bytes, addr: Peer) -> None:
        state = self.peers.get(addr)
        if state is None:
            state = self.peers[addr] = State(addr)
        state.received += 1
        state.seen = time.monotonic()
        answer = str(len(self.peers)).encode() if data == QUESTION else data
        self.transport.sendto(answer, addr)


class QueueSession:
    """A session on what asyncio has."""

    __slots__ = ("peer", "queue", "task", "transport")

    def __init__(self, peer: Peer, transport: DatagramTransport) -> None:
        self.peer = peer
        self.transport = transport
        self.queue: asyncio.Queue[Packet] = asyncio.Queue(100)
        self.task = asyncio.get_running_loop().create_task(talk(self))

    def __aiter__(self) -> QueueSession:
        return self

    def __anext__(self) -> Coroutine[Any, Any, Packet]:
        return self.queue.get()

    async def send(self, data: bytes) -> None:
        self.transport.sendto(data, self.peer)


class Tasks(Protocol):
    """A session with a task for each peer."""

    def __init__(self) -> None:
        self.peers: dict[Peer, QueueSession] = {}

    def datagram_received(self, data: bytes, addr: Peer) -> None:
        session = self.peers.get(addr)
        if session is None:
            session = self.peers[addr] = QueueSession(addr, self.transport)
        if not session.queue.full():
            session.queue.put_nowait(Packet(data, addr))


class SharedSession:
    """The session of all frames: gives each the datagram that it was started for, and then nothing.

    It is its own datagram, awaitable and iterator, so that nothing is there once for each frame.
    """

    def __init__(self, transport: DatagramTransport) -> None:
        self.transport = transport
        self.peer: Peer = ("", 0)
        self.data = b""
        self.given = False

    def start(self, data: bytes, peer: Peer) -> Coroutine[Any, Any, None]:
        self.data, self.peer, self.given = data, peer, False
        coroutine = talk(self)
        coroutine.send(None)
        return coroutine

    def __aiter__(self) -> SharedSession:
        return self

    def __anext__(self) -> SharedSession:
        return self

    def __await__(self) -> SharedSession:
        return self

    def __iter__(self) -> SharedSession:
        return self

    def __next__(self) -> None:
        if not self.given:
            self.given = True
            raise StopIteration(self)

    async def send(self, data: bytes) -> None:
        self.transport.sendto(data, self.peer)


class Frames(Protocol):
    """A waiting handler for each datagram, from wherever it came."""

    def __init__(self) -> None:
        self.waiting: list[Coroutine[Any, Any, None]] = []

    def connection_made(self, transport: DatagramTransport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.session = SharedSession(transport)

    def datagram_received(self, data: bytes, addr: Peer) -> None:
        self.waiting.append(self.session.start(data, addr))


class KindArguments(Arguments):
    """The options of this script."""

    kind: str


async def main(args: KindArguments) -> None:
    kinds = {"dict": Dict, "tasks": Tasks, "frames": Frames}
    loop = asyncio.get_running_loop()
    await loop.create_datagram_endpoint(kinds[args.kind], sock=bound_socket(args.port))
    ready()
    await loop.create_future()


if __name__ == "__main__":
    options = parser(loops=("uvloop", "asyncio"), works=("sessions",))
    options.add_argument("--kind", choices=("dict", "tasks", "frames"), required=True)
    run(main(options.parse_args(namespace=(args := KindArguments()))), args.loop)
