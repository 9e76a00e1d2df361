"""TLS on a socket in memory."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeVar

from asyncserver.memory_socket import MemorySocket

__all__ = ["MemoryTLSSocket"]

T = TypeVar("T")

_RECORD = 16_384  # bytes of plain text: the most that TLS puts in one record (RFC 8446, 5.1)


class MemoryTLSSocket:
    """What ``ssl.SSLSocket`` is to a socket: as much of it as a ``Stream`` uses.

    What asks about the session goes to the ``ssl.SSLObject``. A record leaves as a whole, so that nothing
    waits here that nobody knows of; the other end may hold a few bytes more than its capacity for that.
    """

    def __init__(
        self, sock: MemorySocket, context: ssl.SSLContext, server_side: bool, server_hostname: str | None
    ) -> None:
        self._sock = sock
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._object = context.wrap_bio(self._incoming, self._outgoing, server_side, server_hostname)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._object if hasattr(self._object, name) else self._sock, name)

    def do_handshake(self) -> None:
        """A part of it; raises ``ssl.SSLWantReadError`` until it is done."""
        self._run(self._object.do_handshake)

    def recv(self, size: int) -> bytes:
        """See ``MemorySocket``."""
        chunk = self._sock.chunk
        return self._run(self._object.read, size if chunk is None else min(size, chunk))

    def pending(self) -> int:
        """What need not be waited for: decrypted bytes, and those that were taken and not looked at yet."""
        return self._object.pending() + self._incoming.pending

    def send(self, data: bytes | memoryview) -> int:
        """At most one record. Raises ``ssl.SSLWantWriteError`` when there is no room."""
        room = self._sock.room()
        if not data:
            return 0
        if not room:
            raise ssl.SSLWantWriteError(ssl.SSL_ERROR_WANT_WRITE, "no room for a record")
        sent = self._object.write(data[: min(room, _RECORD)])
        self._sock.put(self._outgoing.read())
        return sent

    def unwrap(self) -> None:
        """Send the closing alert, and look for the other side's; raises if that has not come."""
        try:
            self._object.unwrap()
        finally:
            self._pass_on()

    def take_decrypted(self) -> bytes:
        """What is waiting in OpenSSL; it would be lost by the closing alert."""
        count = self._object.pending()
        return self._object.read(count) if count else b""

    def send_closing_alert(self) -> None:
        """For a connection from which more is to be read: OpenSSL is kept from looking for it now."""
        unread = self._incoming.read()
        with suppress(OSError, ValueError):
            self._object.unwrap()
        if unread:
            self._incoming.write(unread)
        self._sock.put(self._outgoing.read())

    def _run(self, operation: Callable[..., T], *args: Any) -> T:
        while True:
            try:
                return operation(*args)
            except ssl.SSLWantReadError:
                pass
            finally:
                self._pass_on()
            self._take_in()

    def _take_in(self) -> None:
        try:
            data = self._sock.take(_RECORD)
        except BlockingIOError:
            raise ssl.SSLWantReadError(ssl.SSL_ERROR_WANT_READ, "nothing has come") from None
        if data:
            self._incoming.write(data)
        else:
            self._incoming.write_eof()

    def _pass_on(self) -> None:
        """What OpenSSL has to say by itself. If the other end is gone, reading tells."""
        if data := self._outgoing.read():
            with suppress(OSError):
                self._sock.put(data)
