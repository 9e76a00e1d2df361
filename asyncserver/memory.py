"""Streams in memory, for tests: ``Stream`` itself, and nothing below it that a system would see."""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
from collections.abc import Callable, Mapping
from typing import Any, NoReturn, cast

from anyio.abc import SocketAttribute

from asyncserver.checks import check_count
from asyncserver.endpoints import Endpoint, IPEndpoint, UnixEndpoint
from asyncserver.errors import OptionError, ServerStateError
from asyncserver.memory_socket import MemoryPoller, MemorySocket, socket_family, socket_pair
from asyncserver.memory_tls import MemoryTLSSocket
from asyncserver.peers import PeerCredentials
from asyncserver.sending import CannotSendFileError
from asyncserver.stream import Stream
from asyncserver.stream_settings import StreamSettings
from asyncserver.tls_handshake import send_close_notify

__all__ = ["MemoryStream", "memory_stream_pair"]

# Of the networks that are for documentation (RFC 5737, RFC 3849), so that nothing real is mistaken for them.
_IPV4 = (IPEndpoint("192.0.2.1", 50_000), IPEndpoint("192.0.2.2", 7_000))
_IPV6 = (IPEndpoint("2001:db8::1", 50_000), IPEndpoint("2001:db8::2", 7_000))
_UNIX = (UnixEndpoint(""), UnixEndpoint(""))


def memory_stream_pair(
    *,
    capacity: int = 65_536,
    chunk: int | None = None,
    peer: Endpoint | None = None,
    local: Endpoint | None = None,
    tls: ssl.SSLContext | None = None,
) -> tuple[Stream, Stream]:
    """Two connected streams that have no socket: what is sent on one is received on the other.

    For testing a handler without a server, a port or a file::

        async def test_greeting():
            near, far = memory_stream_pair()
            await far.send(b"world\\n")
            async with near:  # closes it afterwards, as a server does
                await greet(near)
            assert await far.receive_until(b"\\n", 100) == b"hello, world"

    A handler that talks back and forth runs in a task of its own, with the ``async with`` in that task. A
    ``StreamHandler`` class, and whatever else asks for ``current_connection()``, needs a server.

    They are ``Stream`` objects in every respect: buffering, limits, half-close, ``start_tls()`` (in the
    same place on both sides, ``server_side=False`` on one) and errors are those of a real connection. They
    belong to the running loop (``RuntimeError`` without one) and are not for other threads.

    ``capacity``: bytes in each direction that may have been sent and not received before ``send()`` waits;
    up to about a kilobyte more is let through.
    ``chunk``: the most bytes that one ``receive()`` gets, however many have come: 1 shows whether a parser
    works on a message that arrives byte by byte. None does not cut.
    ``peer``, ``local``: what the first stream reports; the second one reports them the other way round.
    They are 192.0.2.1:50000 and 192.0.2.2:7000 by default, or like in kind to the one given.
    ``tls``: the context for a ``start_tls()`` that is given none, as a server's.

    Raises ``OptionError``.

    What differs: ``aclose()`` waits until what was sent has been taken, but not for the other side to
    close; the other side can still receive what was sent, and its own sending raises
    ``BrokenResourceError`` from then on. After ``abort()`` the other side receives nothing more: what
    had not been received is lost, as it can be with TCP. ``blocking_socket()`` and ``detach()`` raise
    ``ServerStateError``, and ``SocketAttribute.raw_socket`` is not among the attributes.

    Who makes the pair closes it. One that is forgotten holds nothing but memory.
    """
    check_count("capacity", capacity, 1, "bytes", optional=False)
    check_count("chunk", chunk, 1, "bytes")
    peer, local = _endpoints(peer, local)
    # Half of what may be under way waits in the sending stream, as it does when a kernel's buffer is full.
    held_back = max(1, capacity // 2)
    loop = asyncio.get_running_loop()
    poller = MemoryPoller(loop)
    settings = StreamSettings(
        loop, poller=poller, send_limit=held_back, tls=None if tls is None else lambda: tls
    )
    near, far = socket_pair(poller, max(1, capacity - held_back), peer, local)
    near.chunk = far.chunk = chunk
    return MemoryStream(near, settings, peer, local), MemoryStream(far, settings, local, peer)


def _endpoints(peer: Endpoint | None, local: Endpoint | None) -> tuple[Endpoint, Endpoint]:
    for option, endpoint in ("peer", peer), ("local", local):
        if endpoint is not None and not isinstance(endpoint, (IPEndpoint, UnixEndpoint)):
            raise OptionError(option, endpoint, "has to be an IPEndpoint, a UnixEndpoint or None")
    default_peer, default_local = _defaults_like(peer or local)
    peer, local = peer or default_peer, local or default_local
    if socket_family(peer) != socket_family(local):
        raise OptionError("local", local, f"has to be an address of the same kind as peer={peer!r}")
    return peer, local


def _defaults_like(given: Endpoint | None) -> tuple[Endpoint, Endpoint]:
    if isinstance(given, UnixEndpoint):
        return _UNIX
    return _IPV6 if given is not None and socket_family(given) == socket.AF_INET6 else _IPV4


class MemoryStream(Stream):
    """One of a pair; what a ``Stream`` does by a system call of its own is done here in memory."""

    __slots__ = ("_memory",)

    def __init__(self, sock: MemorySocket, settings: StreamSettings, peer: Endpoint, local: Endpoint) -> None:
        super().__init__(cast("Any", sock), settings, local=local)
        self._memory = sock
        self._peer = peer

    @property
    def peer_credentials(self) -> PeerCredentials | None:
        """Those of this process, which is the peer, between Unix endpoints; None otherwise."""
        if not isinstance(self.peer, UnixEndpoint) or not hasattr(os, "geteuid"):
            return None
        return PeerCredentials(os.getpid(), os.geteuid(), os.getegid())

    @property
    def extra_attributes(self) -> Mapping[Any, Callable[[], Any]]:
        """As of any ``Stream``, without the ``raw_socket`` that is not there."""
        attributes = dict(super().extra_attributes)
        del attributes[SocketAttribute.raw_socket]
        return attributes

    # --- what takes a real socket ---

    def blocking_socket(self) -> NoReturn:
        """Raises ``ServerStateError``: there is no socket."""
        raise _no_socket_for("blocking_socket()")

    def detach(self) -> NoReturn:
        """Raises ``ServerStateError``: there is no socket."""
        raise _no_socket_for("detach()")

    # --- what is done elsewhere by a system call ---

    def _receive_raw(self, size: int) -> bytes:
        return self._memory.recv(size)

    def _end_output(self) -> None:
        self._memory.shutdown(socket.SHUT_WR)

    def _wrap_socket(
        self, context: ssl.SSLContext, server_side: bool, server_hostname: str | None
    ) -> ssl.SSLSocket:
        tls: Any = MemoryTLSSocket(self._memory, context, server_side, server_hostname)
        return cast("ssl.SSLSocket", tls)

    async def _send_closing_alert(self, tls: ssl.SSLSocket) -> None:
        memory_tls = cast("MemoryTLSSocket", tls)
        if decrypted := memory_tls.take_decrypted():
            self._set_aside(decrypted)
        memory_tls.send_closing_alert()

    async def _send_by_kernel(self, source: int, offset: int, count: int | None) -> int:
        raise CannotSendFileError

    async def _half_close(self) -> None:
        """Nothing to wait for: no kernel is here that might throw away what the peer has not read yet."""
        if self._tls is not None:
            send_close_notify(self._tls)


def _no_socket_for(what: str) -> ServerStateError:
    return ServerStateError(
        f"{what} needs a socket, and a stream in memory has none:"
        " test this with a server, on a free port or a Unix path"
    )
