"""Clients for tests: on plain sockets, the same on every loop, and with no manners unless asked.

::

    async with serving(handler) as server, await Client.connect(server) as client:
        assert await client.ask(b"hello") == b"hello"

No operation takes longer than the client's ``timeout``, in seconds: then it raises ``TimeoutError``, which
says what was waited for. What the kernel says is raised as it is: ``ConnectionRefusedError`` where nobody
listens, ``ConnectionResetError`` or ``BrokenPipeError`` after a reset.
"""

from __future__ import annotations

import asyncio
import functools
import socket
import ssl
import struct
from abc import ABC, abstractmethod
from contextlib import suppress
from typing import Any, ClassVar, Literal, Self

from anyio import IncompleteRead

from asyncserver.testing.bounds import TIMEOUT, bounded, check_timeout, when_there_is_room
from asyncserver.testing.certificates import default_authority
from asyncserver.testing.targets import Place, Target, locate

__all__ = ["Client", "TLSClient", "reset_at_close"]

_UNIX = getattr(socket, "AF_UNIX", None)
_LINGER_FOR_NO_TIME = struct.pack("ii", 1, 0)


def reset_at_close(sock: Any) -> None:
    """Let closing this socket send a RST instead of a FIN. (Unix sockets know none: nothing changes.)

    It may also be what asyncio's transports have for a socket: ``writer.get_extra_info("socket")``.
    """
    if sock.family != _UNIX:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_FOR_NO_TIME)


class _Conversation(ABC):
    """What the clients of streams have in common; each of its operations is bounded by ``timeout``."""

    default_timeout: ClassVar[float] = TIMEOUT
    """Seconds that an operation may take, where ``connect()`` was not told otherwise."""

    timeout: float
    """Seconds that each operation of this client may take; can be changed at any time."""

    @property
    @abstractmethod
    def _place(self) -> str:
        """Who is at the other end, for error messages."""

    @abstractmethod
    async def _send(self, data: bytes) -> None: ...

    @abstractmethod
    async def _receive(self, most: int) -> bytes: ...

    @abstractmethod
    def close(self) -> None: ...

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()

    async def send(self, data: bytes) -> None:
        """Send all of it; waits while the server takes nothing."""
        await bounded(self._send(data), self.timeout, f"{self._place} to take {len(data)} bytes")

    async def send_slowly(self, data: bytes, pause: float) -> None:
        """Send a byte at a time, with a pause of so many seconds after each; each has its own timeout."""
        for index in range(len(data)):
            await self.send(data[index : index + 1])
            await asyncio.sleep(pause)

    async def receive(self, most: int = 65_536) -> bytes:
        """What has come, at most that many bytes; waits for the first. b"" at the end."""
        return await bounded(self._receive(most), self.timeout, f"bytes from {self._place}")

    async def receive_exactly(self, count: int) -> bytes:
        """That many bytes.

        Raises ``anyio.IncompleteRead`` when the end comes before, as ``Stream`` does; what had come is not
        kept, a note of the error shows it.
        """
        received = await self._gather(count, f"{count} bytes")
        if len(received) < count:
            error = IncompleteRead()
            error.add_note(f"{len(received)} bytes of {count} came from {self._place}: {received[:100]!r}")
            raise error
        return received

    async def receive_all(self) -> bytes:
        """Everything until the end."""
        return await self._gather(None, "the end of what comes")

    async def ask(self, data: bytes) -> bytes:
        """Send, and receive as much as was sent, or less when the end comes before."""
        await self.send(data)
        return await self._gather(len(data), f"{len(data)} bytes")

    async def ended(self) -> Literal["eof", "reset"]:
        """How the server ends the connection; an ``AssertionError`` if bytes come before that."""
        try:
            data = await self.receive()
        except (ConnectionResetError, BrokenPipeError):
            return "reset"
        assert data == b"", f"{data!r} came instead of the end"
        return "eof"

    async def _gather(self, count: int | None, what: str) -> bytes:
        received = bytearray()

        async def gather() -> None:
            while count is None or len(received) < count:
                data = await self._receive(65_536 if count is None else min(65_536, count - len(received)))
                if not data:
                    return
                received.extend(data)

        def waited_for() -> str:
            return f"{what} from {self._place}; {len(received)} came: {bytes(received[:100])!r}"

        await bounded(gather(), self.timeout, waited_for)
        return bytes(received)


class Client(_Conversation):
    """A client of a stream server, on a non-blocking socket: what it does not do, nobody does for it.

    Made by ``connect()``, or of a connected socket, which it closes then.
    """

    def __init__(self, sock: socket.socket, *, timeout: float | None = None) -> None:
        self.sock = sock
        """The socket itself, for what has no method here."""
        sock.setblocking(False)
        self.timeout: float = self.default_timeout if timeout is None else check_timeout(timeout)

    @classmethod
    async def connect(
        cls,
        target: Target,
        *,
        index: int = 0,
        source: str | None = None,
        receive_buffer: int | None = None,
        timeout: float | None = None,
    ) -> Self:
        """Connect to a server, or to an address.

        ``index``: which of the server's addresses.
        ``source``: the IP address to come from (on Linux every one in 127.0.0.0/8 will do).
        ``receive_buffer``: bytes of SO_RCVBUF; few, for one that does not read.
        ``timeout``: seconds for each operation, this one included.
        """
        place = locate(target, index)
        sock = socket.socket(place.family, socket.SOCK_STREAM)
        try:
            self = cls(sock, timeout=timeout)
            if receive_buffer is not None:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
            if source is not None:
                sock.bind((source, 0))
            await self._connect(place)
        except BaseException:
            sock.close()
            raise
        return self

    async def _connect(self, place: Place) -> None:
        if place.family == _UNIX:
            # Linux says EAGAIN where the server's queue is full; loops take that for "under way", wrongly.
            connecting = when_there_is_room(functools.partial(self.sock.connect, place.sockaddr))
        else:
            connecting = asyncio.get_running_loop().sock_connect(self.sock, place.sockaddr)
        await bounded(connecting, self.timeout, f"a connection to {place}")

    @property
    def name(self) -> Any:
        """Its own address, as ``getsockname()`` has it: the server's ``Connection.peer``."""
        return self.sock.getsockname()

    @property
    def _place(self) -> str:
        with suppress(OSError):
            return f"the server at {self.sock.getpeername()!r}"
        return "a server that is gone"

    async def _send(self, data: bytes) -> None:
        await asyncio.get_running_loop().sock_sendall(self.sock, data)

    async def _receive(self, most: int) -> bytes:
        return await asyncio.get_running_loop().sock_recv(self.sock, most)

    def half_close(self) -> None:
        """Send the end, and go on receiving."""
        self.sock.shutdown(socket.SHUT_WR)

    def reset(self) -> None:
        """Close with a RST (on Unix sockets: just close); does nothing once it is closed.

        As with ``close()`` no other task may be waiting in an operation.
        """
        if self.sock.fileno() >= 0:
            reset_at_close(self.sock)
            self.sock.close()

    def close(self) -> None:
        """Close; idempotent. With bytes that were not read the kernel makes a RST of it.

        Cancel what waits in an operation of this client before: nobody tells it, it waits for its timeout.
        """
        self.sock.close()


class TLSClient(_Conversation):
    """A client that speaks TLS over a ``Client``, step by step: TLS is done in memory.

    So a test decides what goes over the wire when: nothing, half a handshake, plain text in between.

    What is encrypted has to be sent, or TLS is broken: what a ``send()`` that timed out or was cancelled has
    left goes before whatever is sent next.
    """

    def __init__(self, client: Client, context: ssl.SSLContext, server_hostname: str | None) -> None:
        """Nothing is sent before ``handshake()``; the client becomes this one's, which closes it."""
        self.client = client
        """What is below: it sends and receives past TLS, and can ``reset()``."""
        self.timeout: float = client.timeout
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self.tls: ssl.SSLObject = context.wrap_bio(
            self._incoming, self._outgoing, server_hostname=server_hostname
        )
        """What tells about the session: ``version()``, ``selected_alpn_protocol()``, ``getpeercert()``."""
        self._decrypted = b""
        self._unsent = bytearray()

    @classmethod
    async def connect(
        cls,
        target: Target,
        context: ssl.SSLContext | None = None,
        *,
        server_hostname: str | None = "localhost",
        index: int = 0,
        timeout: float | None = None,
    ) -> Self:
        """Connect and shake hands; raises what both raise.

        ``context``: a client's context; None: one that trusts the certificates of
        ``serving(transport="tls")``.
        """
        timeout = cls.default_timeout if timeout is None else timeout
        if context is None:
            context = await asyncio.to_thread(_default_context)
        client = await Client.connect(target, index=index, timeout=timeout)
        try:
            self = cls(client, context, server_hostname)
            await self.handshake()
        except BaseException:
            client.close()
            raise
        return self

    async def handshake(self) -> None:
        """Shake hands; raises ``ssl.SSLError``, or ``ConnectionError`` if the server closes instead."""
        await bounded(self._shake_hands(), self.timeout, f"a TLS handshake with {self._place}")

    async def _shake_hands(self) -> None:
        while True:
            try:
                self.tls.do_handshake()
            except ssl.SSLWantReadError:
                await self._flush()
                await self._exchange()
            else:
                await self._flush()
                return

    @property
    def _place(self) -> str:
        return self.client._place  # pyright: ignore[reportPrivateUsage]

    async def _send(self, data: bytes) -> None:
        self.tls.write(data)
        await self._flush()

    async def _receive(self, most: int) -> bytes:
        """b"" at the end, whether with or without the closing alert."""
        if self._decrypted:
            data, self._decrypted = self._decrypted[:most], self._decrypted[most:]
            return data
        while True:
            try:
                return self.tls.read(most)
            except ssl.SSLWantReadError:
                try:
                    await self._exchange()
                except ConnectionAbortedError:
                    return b""
            except ssl.SSLZeroReturnError:
                return b""

    def first_flight(self) -> bytes:
        """The bytes of the ClientHello, sent to nobody: for one who sends a part of it."""
        with suppress(ssl.SSLWantReadError):
            self.tls.do_handshake()
        return self._outgoing.read()

    def half_close(self) -> None:
        """Send the closing alert and the end, and go on receiving; does not wait.

        Raises ``BlockingIOError`` where there is no room for the alert, because the server has not taken what
        was sent before: then no end was sent, and this can be called again.
        """
        self._make_closing_alert()
        self._flush_now()
        self.client.half_close()

    def _make_closing_alert(self) -> None:
        """OpenSSL takes what is still to be received, decrypted or not, for a breach of the protocol then."""
        if pending := self.tls.pending():
            self._decrypted += self.tls.read(pending)
        unread = self._incoming.read()
        try:
            with suppress(ssl.SSLWantReadError):
                self.tls.unwrap()
        finally:
            self._incoming.write(unread)

    def _flush_now(self) -> None:
        """Raises ``BlockingIOError`` where there is no room; what was not sent is kept."""
        self._unsent += self._outgoing.read()
        while self._unsent:
            del self._unsent[: self.client.sock.send(self._unsent)]

    def reset(self) -> None:
        """As ``Client.reset()``."""
        self.client.reset()

    def close(self) -> None:
        """As ``Client.close()``, without the closing alert."""
        self.client.close()

    async def _exchange(self) -> None:
        if self._outgoing.pending:
            with suppress(BlockingIOError):  # There may be room only when the server has sent what it has.
                self._flush_now()
        data = await self.client._receive(65_536)  # pyright: ignore[reportPrivateUsage]
        if not data:
            raise ConnectionAbortedError("the server has closed the connection")
        self._incoming.write(data)

    async def _flush(self) -> None:
        await when_there_is_room(self._flush_now)


@functools.cache
def _default_context() -> ssl.SSLContext:
    return default_authority().client_context()
