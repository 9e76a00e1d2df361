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
from types import SimpleNamespace
from typing import Any, TypeVar

from asyncserver import IPEndpoint, Stream
from asyncserver.memory import MemoryStream
from asyncserver.memory_socket import MemoryPoller, MemorySocket
from asyncserver.memory_socket import socket_pair as memory_sockets
from asyncserver.poller import Poller, open_poller
from asyncserver.stream_settings import StreamSettings
from tests.certificates import authority
from tests.waiting import wait_until

T = TypeVar("T")

# Made here, because reading certificates blocks.
SERVER_CONTEXT = authority().server_context()
CLIENT_CONTEXT = authority().client_context()

SOCKET_KINDS = ("tcp", "unix", "tls")
"""What a test that looks at the stream's socket is run over."""

KINDS = (*SOCKET_KINDS, "memory")
"""What a test that is about the stream alone is run over."""


class Peer:
    """The other end of a connection."""

    def __init__(self, sock: socket.socket | MemorySocket) -> None:
        self.socket: Any = sock
        self.loop = asyncio.get_running_loop()

    async def send(self, data: bytes) -> None:
        """Send all of it."""
        if isinstance(self.socket, MemorySocket):
            await _send_in_memory(self.socket, data)
        else:
            await self.loop.sock_sendall(self.socket, data)

    def send_now(self, data: bytes) -> None:
        """Send a little without letting the loop run."""
        assert self.socket.send(data) == len(data)

    async def receive(self, max_bytes: int = 65_536) -> bytes:
        """At least one byte; none at the end of the stream."""
        if isinstance(self.socket, MemorySocket):
            return await _receive_in_memory(self.socket, max_bytes)
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

    def __init__(
        self, sock: socket.socket | MemorySocket, context: ssl.SSLContext | None = None, **options: Any
    ) -> None:
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


async def _send_in_memory(sock: MemorySocket, data: bytes) -> None:
    """``loop.sock_sendall()`` for a socket that is none."""
    view = memoryview(data)
    while view:
        try:
            view = view[sock.send(view) :]
        except BlockingIOError:
            await _ready(sock, sock._poller.add_writer, sock._poller.remove_writer)


async def _receive_in_memory(sock: MemorySocket, max_bytes: int) -> bytes:
    while True:
        try:
            return sock.recv(max_bytes)
        except BlockingIOError:
            await _ready(sock, sock._poller.add_reader, sock._poller.remove_reader)


async def _ready(sock: MemorySocket, add: Callable[[int, Any], None], remove: Callable[[int], None]) -> None:
    ready = asyncio.Event()
    number = sock.fileno()
    add(number, SimpleNamespace(on_readable=ready.set, on_writable=ready.set))
    try:
        await ready.wait()
    finally:
        remove(number)


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


class _LingeringMemoryStream(MemoryStream):
    """Closes as others do, with some time for the peer."""

    _half_close = Stream._half_close


def _memory_stream(
    poller: MemoryPoller, buffer_sizes: int | None, options: dict[str, Any]
) -> tuple[Stream, MemorySocket]:
    addresses = IPEndpoint("192.0.2.1", 50_000), IPEndpoint("192.0.2.2", 7_000)
    near, far = memory_sockets(poller, buffer_sizes or 200_000, *addresses)
    return _LingeringMemoryStream(near, StreamSettings(poller=poller, **options), *addresses), far


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

    ``kind`` is one of ``KINDS``, "tls-unix" or "tls-memory". The options are those of ``StreamSettings``.
    ``buffer_sizes``: of the kernel's send buffer here and receive buffer there, to make it full soon.
    """
    stream: Stream
    far: socket.socket | MemorySocket
    poller: Poller
    if "memory" in kind:
        poller = memory_poller = MemoryPoller(asyncio.get_running_loop())
        stream, far = _memory_stream(memory_poller, buffer_sizes, options)
    else:
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
