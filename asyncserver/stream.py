"""``Stream``: the bytes to and from one peer, as handlers see them."""

from __future__ import annotations

import asyncio
import socket
import ssl
import types
from collections.abc import Callable, Mapping
from typing import Any

from anyio import BusyResourceError, ClosedResourceError
from anyio.abc import SocketAttribute, SocketStream
from anyio.streams.tls import TLSAttribute

from asyncserver.endpoints import Endpoint
from asyncserver.errors import TLSUpgradeError
from asyncserver.lending import LendingChannel
from asyncserver.peers import PeerCredentials, endpoint_from_sockaddr, peer_credentials
from asyncserver.stream_settings import StreamSettings
from asyncserver.tls_handshake import handshake
from asyncserver.tls_peer import PeerCertificate

__all__ = ["Stream"]


class Stream(LendingChannel, SocketStream):
    """A connected stream socket; one awaitable object for both directions.

    It satisfies ``anyio.abc.SocketStream``, so anyio's buffered, text, TLS and stapled streams work on
    it. It owns the socket that it is made of: ``aclose()`` and ``abort()`` close it. A stream that a
    server hands to a handler is closed by the server when the handler is done.

    One task may receive at a time, any number may send. What is sent by one call is never mixed with
    what is sent by another.

    Raised by all operations: ``ClosedResourceError`` when the stream has been closed on this side,
    ``BrokenResourceError`` when the connection has broken (reset, or cut off under TLS without the
    closing handshake; the operating system's error is the ``__cause__``).
    """

    __slots__ = ("_local", "_peer", "_sockaddr")

    def __init__(
        self,
        sock: socket.socket,
        settings: StreamSettings | None = None,
        *,
        sockaddr: Any = None,
        local: Endpoint | None = None,
    ) -> None:
        """Take over ``sock``, which has to be connected and non-blocking: plain, or a TLS one after its
        handshake.

        ``settings`` is what a server's streams have in common; without them the stream belongs to the
        running loop. ``sockaddr`` is the peer's address as ``accept()`` gave it, ``local`` this side's;
        both are asked for when they are needed otherwise.
        """
        super().__init__(sock, settings or StreamSettings())
        if isinstance(sock, ssl.SSLSocket):
            self._tls = sock
            tls: Any = sock
            tls.suppress_ragged_eofs = False  # An end without the closing alert is not the peer's.
        self._sockaddr = sockaddr
        self._peer: Endpoint | None = None
        self._local = local

    def __repr__(self) -> str:
        state = "closed" if self._closed else "broken" if self._broken else "open"
        try:
            peer = str(self.peer)
        except (OSError, ClosedResourceError):
            peer = "unknown"
        return f"<{type(self).__name__} peer={peer} {state}>"

    # --- TLS ---

    async def start_tls(
        self,
        context: ssl.SSLContext | None = None,
        *,
        server_side: bool = True,
        server_hostname: str | None = None,
        timeout: float | None = 10.0,
    ) -> None:
        """Turn this plain connection into a TLS one (STARTTLS), in place.

        Send the reply that invites the peer first. Without a ``context`` the server's is used.

        Raises ``TLSUpgradeError`` when bytes have come that belong before the handshake: a peer, or
        somebody between, that sends plain text together with the command must not have it taken
        for protected (CVE-2011-0411); and when the handshake fails or takes longer than ``timeout``
        seconds. The connection is of no use then and is closed. Cancellation closes it, too.
        """
        self._check_sending()
        self._raise_if_receiving()
        if self._tls is not None:
            raise TLSUpgradeError("the connection is a TLS one already")
        if context is None:
            if self._settings.tls is None:
                raise TLSUpgradeError("start_tls() needs a context: the server has no TLS configuration")
            context = self._settings.tls()
        try:
            async with asyncio.timeout(timeout):
                if self._file_lock is not None:
                    await self._wait_for_file(self._file_lock)
                await self._wait_until_sent(0)
                self._check_sending()
                if self._buffer:
                    raise TLSUpgradeError("plain text was sent beyond the command that starts TLS")
                await self.handshake(context, server_side, server_hostname)
        except TimeoutError as exc:
            self._reset_socket()
            raise TLSUpgradeError(f"the TLS handshake took longer than {timeout} s") from exc
        except BusyResourceError:
            raise
        except BaseException:
            self._reset_socket()
            raise

    async def wait_for_bytes(self) -> None:
        """Wait until something has come, or the peer has gone, and read nothing. For before a handshake."""
        self._raise_if_receiving()
        self._shaking_hands = True
        try:
            await self._wait_until_readable()
        finally:
            self._shaking_hands = False

    async def handshake(
        self, context: ssl.SSLContext, server_side: bool = True, server_hostname: str | None = None
    ) -> None:
        """Do the TLS handshake, now, whatever has been received; see ``start_tls()``. Has no deadline."""
        self._raise_if_receiving()
        self._stop_reading()
        self._readable = False
        self._shaking_hands = self._blocked = True  # What is sent in the meantime has to wait.
        try:
            # wrap_socket() would find that the peer is gone, too, and forget to close the socket.
            self._sock.getpeername()
            self._sock = self._tls = self._wrap_socket(context, server_side, server_hostname)
            await handshake(self._tls, self._wait_until_readable, self._wait_until_writable)
        except (OSError, ValueError) as exc:
            if self._closed:
                raise ClosedResourceError from exc
            self._reset_socket()
            raise TLSUpgradeError(f"the TLS handshake failed: {exc}") from exc
        except BaseException:
            self._reset_socket()
            raise
        finally:
            self._shaking_hands = self._blocked = False
        self._flush()
        self._wake_senders()

    def _wrap_socket(
        self, context: ssl.SSLContext, server_side: bool, server_hostname: str | None
    ) -> ssl.SSLSocket:
        return context.wrap_socket(
            self._sock,
            server_side=server_side,
            server_hostname=server_hostname,
            do_handshake_on_connect=False,
            suppress_ragged_eofs=False,
        )

    # --- who is there ---

    @property
    def peer(self) -> Endpoint:
        """The peer's address."""
        if self._peer is None:
            if self._sockaddr is None:
                self._sockaddr = self._live_socket().getpeername()
            self._peer = endpoint_from_sockaddr(self._sock.family, self._sockaddr)
        return self._peer

    @property
    def local(self) -> Endpoint:
        """The address that the peer connected to."""
        if self._local is None:
            self._local = endpoint_from_sockaddr(self._sock.family, self._live_socket().getsockname())
        return self._local

    @property
    def ssl_object(self) -> ssl.SSLSocket | None:
        """The TLS socket; None on a plain connection."""
        return self._tls

    @property
    def peer_certificate(self) -> PeerCertificate | None:
        """The certificate that the peer has shown and that was verified, if there is one."""
        return None if self._tls is None else PeerCertificate.from_ssl_object(self._tls)

    @property
    def peer_credentials(self) -> PeerCredentials | None:
        """Process, user and group of the peer of a Unix socket (``SO_PEERCRED``); None on others."""
        return peer_credentials(self._live_socket())

    @property
    def _raw_socket(self) -> socket.socket:
        return self._sock

    @property
    def extra_attributes(self) -> Mapping[Any, Callable[[], Any]]:
        """anyio's typed attributes: ``SocketAttribute``, and ``TLSAttribute`` under TLS."""
        attributes: dict[Any, Callable[[], Any]] = dict(SocketStream.extra_attributes.fget(self))  # type: ignore[attr-defined]
        attributes[SocketAttribute.raw_socket] = lambda: self._sock
        tls = self._tls
        if tls is not None:
            attributes.update(_tls_attributes(tls))
        return attributes

    def _live_socket(self) -> socket.socket:
        if self._closed:
            raise ClosedResourceError
        return self._sock


def _tls_attributes(tls: ssl.SSLSocket) -> list[tuple[Any, Callable[[], Any]]]:
    return [
        (TLSAttribute.alpn_protocol, tls.selected_alpn_protocol),
        (TLSAttribute.channel_binding_tls_unique, tls.get_channel_binding),
        (TLSAttribute.cipher, tls.cipher),
        (TLSAttribute.peer_certificate, lambda: tls.getpeercert(False)),
        (TLSAttribute.peer_certificate_binary, lambda: tls.getpeercert(True)),
        (TLSAttribute.server_side, lambda: tls.server_side),
        (TLSAttribute.shared_ciphers, lambda: tls.shared_ciphers() if tls.server_side else None),
        (TLSAttribute.ssl_object, lambda: tls),
        (TLSAttribute.standard_compatible, lambda: True),
        (TLSAttribute.tls_version, tls.version),
    ]


def _name_methods_after(cls: type) -> None:
    """For "coroutine 'Stream.send' was never awaited": by the class that handlers know, and no part of it."""
    for base in cls.__mro__:
        if base.__module__.startswith("asyncserver."):
            for name, method in vars(base).items():
                if isinstance(method, types.FunctionType) and not name.startswith("_"):
                    method.__qualname__ = f"{cls.__qualname__}.{name}"


_name_methods_after(Stream)
