"""``Packets``: what a datagram socket does, packet by packet; and the plain way to do it, ``PlainPackets``.

Whoever receives gets, beside the bytes of a packet, its *origin*: whatever this socket needs to answer
it, to be handed back with the answer. What it looks like is the business of the class that made it.
"""

from __future__ import annotations

import array
import errno
import ipaddress
import logging
import os
import socket
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable
from typing import Any, TypeAlias, TypeVar

from asyncserver.address_rules import check_unix_path
from asyncserver.ancillary import (
    ANCILLARY_BYTES,
    ERROR_BYTES,
    NetworkError,
    PacketInfo,
    kernel_drops,
    parse_ancillary,
    parse_network_error,
    request_ancillary,
    source_control,
)
from asyncserver.endpoints import Endpoint, IPEndpoint, UnixEndpoint
from asyncserver.errors import AddressError, PacketTooLargeError, PeerUnreachableError, UnboundPeerError
from asyncserver.peers import SocketAddress, endpoint_from_sockaddr

__all__ = ["BAD_SOURCE", "BATCH", "TRIES", "Bytes", "Packets", "PlainPackets", "sockaddr_to"]

logger: logging.Logger = logging.getLogger("asyncserver")

T = TypeVar("T")

Bytes: TypeAlias = bytes | bytearray | memoryview

BATCH = 64
"""The most packets that are received at a time."""

# 65,535 less the headers of UDP, and of IPv4, whose length field counts itself (RFC 768, 791, 8200).
_MAX_IPV4, _MAX_IPV6 = 65_507, 65_527

# Reports of one failed call; more are read at the next one.
_ERRORS_AT_A_TIME = 64
# An error may be an earlier packet's: the kernel tells it to the next call of any kind, once. It is in the
# error queue as a rule, but not if there was no room for it. What is told again and again is the call's own.
TRIES = 3
BAD_SOURCE = frozenset({errno.EINVAL, errno.ENETUNREACH})
"""What the kernel says of a source that nothing can be sent from: the address of a broadcast that is being
answered, or one that the host has no longer. (The second one is usually said of a destination.)"""
_WOULD_BLOCK = frozenset({errno.EAGAIN, errno.EWOULDBLOCK})
_AF_UNIX = getattr(socket, "AF_UNIX", None)
_SCM_RIGHTS = 1
_MAX_PORT = 65_535


class Packets(ABC):
    """The packets of one non-blocking datagram socket. The socket is closed by its owner."""

    def __init__(
        self,
        sock: socket.socket,
        max_packet_size: int,
        *,
        number: int,
        timestamps: bool,
        report: Callable[[NetworkError], None],
    ) -> None:
        """``number`` tells its keys from those of other sockets.

        ``report`` is called with each error that came back for a packet sent before.
        """
        self.sock = sock
        self.number = number
        self.family: int = int(sock.family)
        self.missing: frozenset[str] = request_ancillary(sock, timestamps=timestamps)
        self._is_ipv6_only = self.family == socket.AF_INET6 and bool(
            sock.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY)
        )
        self.max_packet_size = max_packet_size
        self.corked = False
        """Packets may be kept back until ``flush()``: the caller is in the middle of a batch."""
        self.blocked: bool = False
        """There is no room to send; ``flush()`` finds out whether there is again."""
        self.on_blocked: Callable[[], None] = _do_nothing
        """Called when ``blocked`` becomes true."""
        self.received = self.bytes_received = self.truncated = 0
        self.sent: int = 0
        self.bytes_sent: int = 0
        self.send_errors: int = 0
        self._report = report

    @property
    def tells_when_writable(self) -> bool:
        """Whether the socket becomes writable when there is room for a packet again.

        Not on Unix: what is full there is the queue of one peer, of which poll(2) knows nothing.
        """
        return self.family != _AF_UNIX

    @property
    def max_payload(self) -> int | None:
        """The most bytes of a packet that is sent; None if it depends on the send buffer (Unix)."""
        return {int(socket.AF_INET): _MAX_IPV4, int(socket.AF_INET6): _MAX_IPV6}.get(self.family)

    @property
    def dropped_by_kernel(self) -> int | None:
        """See ``kernel_drops``."""
        return kernel_drops(self.sock)

    # --- receiving ---

    @abstractmethod
    def receive(self, make: Callable[[Any, bytes, Any, bool], T], owner: object) -> list[T]:
        """``make(owner, data, origin, truncated)`` of up to ``BATCH`` packets; empty if there are none.

        Raises ``OSError`` when the socket cannot receive for a reason that is not a packet's.
        """

    @abstractmethod
    def sockaddr_of(self, origin: Any) -> SocketAddress:
        """Who sent it, as the socket module writes addresses."""

    @abstractmethod
    def info_of(self, origin: Any) -> PacketInfo:
        """What the kernel said beside it."""

    @abstractmethod
    def key_of(self, origin: Any) -> Hashable:
        """What is the same for all packets of one peer to one local address."""

    @abstractmethod
    def key_for(self, peer: IPEndpoint, local: str | None) -> Hashable:
        """The key of the packets that ``peer`` sends to ``local``."""

    @abstractmethod
    def origin_to(self, peer: Endpoint) -> Any:
        """The origin with which packets go to ``peer``. Raises ``AddressError`` if they cannot."""

    def peer_of(self, origin: Any) -> Endpoint:
        """Who sent it."""
        return endpoint_from_sockaddr(self.family, self.sockaddr_of(origin))

    # --- sending ---

    @abstractmethod
    def put(self, data: Bytes, origin: Any) -> bool:
        """Send to where ``origin`` came from, from where it came to; False if there is no room just now.

        A packet that is kept back is sent by ``flush()``. Raises ``PacketTooLargeError``, and for Unix
        peers ``UnboundPeerError`` and ``PeerUnreachableError``. What else the kernel refuses is counted.
        """

    @abstractmethod
    def flush(self) -> None:
        """Send what was kept back, as far as there is room."""

    @abstractmethod
    def give_up(self) -> None:
        """Count what was kept back, and could not be sent, as not sent; at the end."""

    def send_one(self, data: Bytes, sockaddr: Any, control: list[tuple[int, int, bytes]]) -> bool:
        """Send now; as ``put()``."""
        size = data.nbytes if isinstance(data, memoryview) else len(data)
        if self.max_payload is not None and size > self.max_payload:
            self.send_errors += 1
            raise PacketTooLargeError(size, self.max_payload)
        tries = 0
        while True:
            tries += 1
            try:
                self._send(data, sockaddr, control)
            except OSError as error:
                if error.errno in _WOULD_BLOCK:
                    if self.tells_when_writable:
                        self._block()
                    return False
                if self.family != _AF_UNIX and ((self.take_errors() and tries < TRIES) or tries == 1):
                    continue
                if control and error.errno in BAD_SOURCE:
                    control = []
                    continue
                self._judge(error, size, sockaddr)
                return True
            else:
                self.sent += 1
                self.bytes_sent += size
                return True

    def _block(self) -> None:
        if not self.blocked:
            self.blocked = True
            self.on_blocked()

    def _send(self, data: Bytes, sockaddr: Any, control: list[tuple[int, int, bytes]]) -> None:
        if control:
            self.sock.sendmsg([data], control, 0, sockaddr)
        else:
            self.sock.sendto(data, sockaddr)

    def _judge(self, error: OSError, size: int, sockaddr: Any) -> None:
        """The kernel has refused a packet."""
        self.note_refused(error.errno or 0, sockaddr)
        if error.errno == errno.EMSGSIZE:
            raise PacketTooLargeError(size, None) from error
        if self.family == _AF_UNIX:
            peer = endpoint_from_sockaddr(self.family, sockaddr)
            raise PeerUnreachableError(str(peer), error.errno or 0, os.strerror(error.errno or 0)) from error

    def note_refused(self, number: int, sockaddr: object) -> None:
        """Count a packet that the kernel did not send. (Raised, it would be a traceback a packet.)"""
        self.send_errors += 1
        if logger.isEnabledFor(logging.DEBUG):
            peer = endpoint_from_sockaddr(self.family, sockaddr)  # type: ignore[arg-type]
            logger.debug("a packet to %s was not sent: %s", peer, os.strerror(number))

    # --- errors that came back ---

    def take_errors(self) -> int:
        """Read and report what waits in the error queue; returns how many there were.

        Without reading them, the next call of any kind would fail with each of them (ip(7), IP_RECVERR).
        Those of this host's kernel are not reported: the call that sent the packet has raised them.
        """
        if "errors" in self.missing or self.family == _AF_UNIX:
            return 0
        for count in range(_ERRORS_AT_A_TIME):
            try:
                _, ancillary, _, sockaddr = self.sock.recvmsg(0, ERROR_BYTES, socket.MSG_ERRQUEUE)
            except OSError:
                return count
            error = parse_network_error(self.family, sockaddr, ancillary)
            if error is not None and error.remote:
                self._report(error)
        return _ERRORS_AT_A_TIME


class PlainPackets(Packets):
    """A system call for each packet, by the socket module. An origin is a sockaddr and ancillary data."""

    # Declared again, because pyright takes what is added to in a subclass for something else.
    send_errors: int

    def receive(self, make: Callable[[Any, bytes, Any, bool], T], owner: object) -> list[T]:
        """See ``Packets``."""
        found: list[T] = []
        tries = 0
        while len(found) < BATCH:
            try:
                data, ancillary, truncated, sockaddr = self._receive_one()
            except (BlockingIOError, InterruptedError):
                if not found:
                    self.take_errors()  # The socket is "readable" for as long as there is one.
                break
            except OSError:
                tries += 1
                if self.take_errors() or tries < TRIES:
                    continue
                if found:
                    break  # Told again by the next call, if it lasts.
                raise
            self.received += 1
            self.bytes_received += len(data)
            self.truncated += truncated
            found.append(make(owner, data, (sockaddr, ancillary), truncated))
        return found

    def _receive_one(self) -> tuple[bytes, list[tuple[int, int, bytes]], bool, Any]:
        size = self.max_packet_size
        if "truncated" not in self.missing:
            data, ancillary, flags, sockaddr = self.sock.recvmsg(size, ANCILLARY_BYTES)
            if self.family == _AF_UNIX:
                _close_descriptors(ancillary)
            return data, ancillary, bool(flags & socket.MSG_TRUNC), sockaddr
        data, sockaddr = self.sock.recvfrom(size + 1)
        return data[:size], [], len(data) > size, sockaddr

    def sockaddr_of(self, origin: Any) -> SocketAddress:
        """See ``Packets``."""
        sockaddr: SocketAddress = origin[0]
        return sockaddr

    def info_of(self, origin: Any) -> PacketInfo:
        """See ``Packets``."""
        return parse_ancillary(origin[1])

    def key_of(self, origin: Any) -> Hashable:
        """See ``Packets``."""
        sockaddr = origin[0]
        if self.family == _AF_UNIX:
            return self.number, sockaddr
        return self.number, *sockaddr[:2], *sockaddr[3:], self.info_of(origin).local

    def key_for(self, peer: IPEndpoint, local: str | None) -> Hashable:
        """See ``Packets``."""
        sockaddr = self.origin_to(peer)[0]
        return self.number, *sockaddr[:2], *sockaddr[3:], local

    def origin_to(self, peer: Endpoint) -> Any:
        """See ``Packets``."""
        return sockaddr_to(peer, self.family, ipv6_only=self._is_ipv6_only), []

    def put(self, data: Bytes, origin: Any) -> bool:
        """See ``Packets``."""
        sockaddr, ancillary = origin
        if not sockaddr:
            self.send_errors += 1
            raise UnboundPeerError
        control = source_control(self.family, parse_ancillary(ancillary)) if ancillary else []
        return self.send_one(data, sockaddr, control)

    def flush(self) -> None:
        """Nothing is kept back here; whether there is room is found out by trying."""
        self.blocked = False

    def give_up(self) -> None:
        """Nothing is kept back here."""


def _do_nothing() -> None:
    """Nobody wants to know."""


def _close_descriptors(ancillary: list[tuple[int, int, bytes]]) -> None:
    """Whoever sends to a Unix socket can pass open files along; they are this process's now."""
    for level, kind, content in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, _SCM_RIGHTS):
            descriptors = array.array("i")
            descriptors.frombytes(content[: len(content) - len(content) % descriptors.itemsize])
            for descriptor in descriptors:
                os.close(descriptor)


def sockaddr_to(peer: Endpoint, family: int, *, ipv6_only: bool = False) -> Any:
    """How a socket of ``family`` writes the address of ``peer``. Raises ``AddressError`` if it cannot."""
    if isinstance(peer, UnixEndpoint):
        if family != _AF_UNIX:
            raise AddressError(
                "peer", str(peer), "is a Unix socket, and this endpoint is bound to an IP address"
            )
        if not peer.path:
            raise UnboundPeerError
        path = check_unix_path(peer.path)
        return b"\0" + os.fsencode(path[1:]) if path.startswith("@") else path
    if not isinstance(peer, IPEndpoint):
        raise AddressError("peer", peer, "has to be an IPEndpoint or a UnixEndpoint")
    if family == _AF_UNIX:
        raise AddressError("peer", str(peer), "is an IP address, and this endpoint is a Unix socket")
    try:
        host = ipaddress.ip_address(peer.host)
    except ValueError:
        raise AddressError("peer", peer.host, "has to be a numeric IP address") from None
    if "%" in peer.host:
        raise AddressError("peer", peer.host, "has an interface: its index belongs in scope_id")
    if not 0 <= peer.port <= _MAX_PORT:
        raise AddressError("peer", str(peer), f"has a port that is not between 0 and {_MAX_PORT}")
    if family == socket.AF_INET:
        if host.version == 6:
            raise AddressError("peer", str(peer), "is an IPv6 address, and this endpoint is bound to IPv4")
        return peer.host, peer.port
    if host.version == 4 and ipv6_only:
        raise AddressError("peer", str(peer), "is an IPv4 address, and this endpoint is bound to IPv6 alone")
    text = f"::ffff:{peer.host}" if host.version == 4 else peer.host
    return text, peer.port, peer.flow_info, peer.scope_id
