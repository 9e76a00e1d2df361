"""Streams under test, each with a peer that can do what no well-behaved client would.

::

    async with connected("tls") as (stream, peer):
        await peer.send(b"hello")
        assert await stream.receive() == b"hello"

The peer is a plain non-blocking socket, or one with TLS done in memory on top of it, so that a test
decides what is on the wire: records cut in two, plain text, a FIN without a closing alert, a RST.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from typing import Any, TypeVar

from asyncserver import Stream
from asyncserver.poller import open_poller
from asyncserver.stream_settings import StreamSettings
from tests.certificates import authority
from tests.waiting import wait_until

T = TypeVar("T")

# Made here, because reading certificates blocks.
SERVER_CONTEXT = authority().server_context()
CLIENT_CONTEXT = authority().client_context()

KINDS = ("tcp", "unix", "tls")
"""What a test that is about the stream alone is run over."""


class Peer:
    """The other end of a connection."""

    def __init__(self, sock: socket.socket) -> None:
        self.socket = sock
        self.loop = asyncio.get_running_loop()

    async def send(self, data: bytes) -> None:
        """Send all of it."""
        await self.loop.sock_sendall(self.socket, data)

    def send_now(self, data: bytes) -> None:
        """Send a little without letting the loop run."""
        assert self.socket.send(data) == len(data)

    async def receive(self, max_bytes: int = 65_536) -> bytes:
        """At least one byte; none at the end of the stream."""
        return await self.loop.sock_recv(self.socket, max_bytes)

    async def receive_exactly(self, count: int) -> bytes:
        """So many bytes, or fewer if the stream ends."""
        gathered = bytearray()
        while len(gathered) < count and (data := await self.receive(count - len(gathered))):
            gathered += data
        return bytes(gathered)

    async def receive_all(self) -> bytes:
        """Everything up to the end of the stream."""
        gathered = bytearray()
        while data := await self.receive():
            gathered += data
        return bytes(gathered)

    async def send_eof(self) -> None:
        """Half-close."""
        self.socket.shutdown(socket.SHUT_WR)

    def reset(self) -> None:
        """Close with a RST."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()

    def close(self) -> None:
        """Close without a word."""
        self.socket.close()


class TLSPeer(Peer):
    """The same with TLS; ``send_raw`` and ``close`` go past it."""

    def __init__(self, sock: socket.socket, context: ssl.SSLContext | None = None, **options: Any) -> None:
        super().__init__(sock)
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        context = context or CLIENT_CONTEXT
        if not options.get("server_side"):
            options.setdefault("server_hostname", "localhost")
        self.tls = context.wrap_bio(self.incoming, self.outgoing, **options)

    async def handshake(self) -> None:
        await self._do(self.tls.do_handshake)

    async def send(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[self.tls.write(view[:65_536]) :]
            await self._flush()

    def send_now(self, data: bytes) -> None:
        assert self.tls.write(data) == len(data)
        super().send_now(self.outgoing.read())

    async def send_raw(self, data: bytes) -> None:
        await super().send(data)

    async def receive(self, max_bytes: int = 65_536) -> bytes:
        try:
            return await self._do(lambda: self.tls.read(max_bytes))
        except ssl.SSLZeroReturnError:
            return b""

    async def send_eof(self) -> None:
        """The closing alert alone; the connection stays open both ways."""
        with suppress(ssl.SSLWantReadError):
            self.tls.unwrap()
        await self._flush()

    async def _do(self, operation: Callable[[], T]) -> T:
        while True:
            try:
                result = operation()
            except ssl.SSLWantReadError:
                await self._flush()
                data = await super().receive()
                if data:
                    self.incoming.write(data)
                else:
                    self.incoming.write_eof()
            else:
                await self._flush()
                return result

    async def _flush(self) -> None:
        if data := self.outgoing.read():
            await super().send(data)


async def socket_pair(family: int = socket.AF_INET) -> tuple[socket.socket, socket.socket]:
    """Two connected, non-blocking sockets: the accepted one and the one that connected."""
    if family == socket.AF_UNIX:
        left, right = socket.socketpair()
        left.setblocking(False)
        right.setblocking(False)
        return left, right
    client = socket.socket(family)
    client.setblocking(False)
    with socket.socket(family) as listener:
        listener.setblocking(False)
        listener.bind(("::1" if family == socket.AF_INET6 else "127.0.0.1", 0))
        listener.listen(1)
        with suppress(BlockingIOError):
            client.connect(listener.getsockname())
        accepted = await wait_until(lambda: _accepted(listener))
    for sock in accepted, client:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return accepted, client


def _accepted(listener: socket.socket) -> socket.socket | None:
    try:
        accepted = listener.accept()[0]
    except BlockingIOError:
        return None
    accepted.setblocking(False)
    return accepted


@asynccontextmanager
async def connected(
    kind: str = "tcp",
    *,
    server_context: ssl.SSLContext | None = None,
    client_context: ssl.SSLContext | None = None,
    buffer_sizes: int | None = None,
    **options: Any,
) -> AsyncIterator[tuple[Stream, Any]]:
    """A stream and its peer; both are closed in the end, with a RST if they are still open.

    ``kind`` is one of ``KINDS``, or "tls-unix". The options are those of ``StreamSettings``.
    ``buffer_sizes``: of the kernel's send buffer here and receive buffer there, to make it full soon.
    """
    near, far = await socket_pair(socket.AF_UNIX if "unix" in kind else socket.AF_INET)
    if buffer_sizes is not None:
        near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, buffer_sizes)
        far.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer_sizes)
    poller = open_poller(asyncio.get_running_loop())
    stream = Stream(near, StreamSettings(poller=poller, **options))
    peer = TLSPeer(far, client_context) if "tls" in kind else Peer(far)
    try:
        if isinstance(peer, TLSPeer):
            await asyncio.gather(stream.handshake(server_context or SERVER_CONTEXT), peer.handshake())
        yield stream, peer
    finally:
        stream.abort()
        poller.close()
        peer.close()


def driven(stream: Stream, handler: Callable[[Stream], Any]) -> asyncio.Task[Any]:
    """A task that runs the handler as a server does: stepped past its task."""

    async def live() -> Any:
        try:
            return await drive(stream, handler(stream))
        finally:
            stream.forget_handler()

    return asyncio.create_task(live())


def drive(stream: Stream, coroutine: Coroutine[Any, Any, T]) -> Awaitable[T]:
    """Await the coroutine in the current task as a connection awaits its handler."""
    task = asyncio.current_task()
    assert task is not None
    return stream.drive(coroutine, task)


async def turns(count: int = 3) -> None:
    """Let the loop run for some turns."""
    for _ in range(count):
        await asyncio.sleep(0)


async def raised(awaitable: Awaitable[object]) -> BaseException | None:
    """What awaiting it raises."""
    try:
        await awaitable
    except BaseException as exc:
        return exc
    return None
