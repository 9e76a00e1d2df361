"""Who is at the other end: endpoints, the credentials of Unix peers, and the key for limits per peer."""

from __future__ import annotations

import os
import socket
import struct
import sys
from typing import Any, NamedTuple, TypeAlias

from asyncserver.addresses import Endpoint, IPEndpoint, UnixEndpoint

__all__ = [
    "PeerCredentials",
    "SocketAddress",
    "endpoint_from_sockaddr",
    "peer_credentials",
    "peer_key",
]

SocketAddress: TypeAlias = tuple[Any, ...] | str | bytes | None
"""What ``accept``, ``getpeername`` and ``getsockname`` return."""

_MAPPED_PREFIX = "::ffff:"
_IPV6_NETWORK_BYTES = 8

_ON_LINUX = sys.platform.startswith("linux")
_ON_DARWIN = sys.platform == "darwin"

# Darwin: <sys/un.h> and <sys/ucred.h>. struct xucred is a version, the uid, the number of groups (a short
# and its padding) and 16 groups, the first of which is the effective one.
_DARWIN_SOL_LOCAL = 0
_DARWIN_LOCAL_PEERCRED = 1
_DARWIN_LOCAL_PEERPID = 2
_DARWIN_XUCRED = struct.Struct("=IIh2x16I")
_LINUX_UCRED = struct.Struct("=iII")


class PeerCredentials(NamedTuple):
    """The process at the other end of a Unix socket, as the kernel noted it when it connected.

    Processes can pass descriptors on and pids are used again, so ``pid`` is good for logs; authorise by
    ``uid`` and ``gid`` (the effective ones). ``pid`` is 0 where the kernel does not tell or the process is
    outside this one's pid namespace.
    """

    pid: int
    uid: int
    gid: int


def endpoint_from_sockaddr(family: int, sockaddr: SocketAddress) -> Endpoint:
    """The endpoint that a socket of ``family`` reports as ``sockaddr``.

    An IPv4 address in IPv6 form, as dual-stack sockets report it, becomes an IPv4 endpoint. Not for
    the local end of Unix sockets: that is ``ListeningSocket.address``.
    """
    if family == socket.AF_INET and isinstance(sockaddr, tuple):
        return IPEndpoint(sockaddr[0], sockaddr[1])
    if family == socket.AF_INET6 and isinstance(sockaddr, tuple):
        return _ipv6_endpoint(sockaddr)
    return UnixEndpoint(_unix_name(sockaddr))


def _ipv6_endpoint(sockaddr: tuple[Any, ...]) -> IPEndpoint:
    host, port, flow_info, scope_id = sockaddr
    if _is_mapped(host):
        return IPEndpoint(host[len(_MAPPED_PREFIX) :], port)
    # Python adds %interface to some link-local addresses; the number is in the last field anyway.
    return IPEndpoint(host.partition("%")[0], port, flow_info, scope_id)


def _is_mapped(host: str) -> bool:
    return host.startswith(_MAPPED_PREFIX) and "." in host


def _unix_name(sockaddr: SocketAddress) -> str:
    if isinstance(sockaddr, bytes):
        if sockaddr.startswith(b"\0"):
            return "@" + os.fsdecode(sockaddr[1:])
        return os.fsdecode(sockaddr)
    return sockaddr if isinstance(sockaddr, str) else ""


def peer_key(family: int, sockaddr: SocketAddress, credentials: PeerCredentials | None = None) -> str:
    """What counts as one peer for limits per peer.

    An IPv4 address; for IPv6 the /64, since that is what one subscriber gets and can choose
    addresses from freely, except that link-local peers, who share one /64, count singly; for Unix
    sockets the uid, or everybody together where the kernel tells no credentials.
    """
    endpoint = endpoint_from_sockaddr(family, sockaddr)
    if isinstance(endpoint, UnixEndpoint):
        return "unix" if credentials is None else f"uid:{credentials.uid}"
    if ":" not in endpoint.host:
        return endpoint.host
    packed = socket.inet_pton(socket.AF_INET6, endpoint.host)
    if packed[0] == 0xFE and packed[1] & 0xC0 == 0x80:
        return f"{endpoint.host}%{endpoint.scope_id}"
    return socket.inet_ntop(socket.AF_INET6, packed[:_IPV6_NETWORK_BYTES].ljust(16, b"\0")) + "/64"


def peer_credentials(sock: socket.socket) -> PeerCredentials | None:
    """The credentials of the peer of a connected Unix socket.

    None for other families, on platforms that do not tell (Linux and macOS do), and for a peer that the
    kernel has noted nothing about.
    """
    if sock.family != getattr(socket, "AF_UNIX", None):
        return None
    try:
        if _ON_LINUX:
            return _linux_credentials(sock)
        if _ON_DARWIN:
            return _darwin_credentials(sock)
    except OSError:
        return None
    return None


def _linux_credentials(sock: socket.socket) -> PeerCredentials | None:
    ucred = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _LINUX_UCRED.size)
    credentials = PeerCredentials(*_LINUX_UCRED.unpack(ucred))
    # A socket that is not connected has pid 0 and the ids -1.
    return None if credentials == (0, 0xFFFFFFFF, 0xFFFFFFFF) else credentials


def _darwin_credentials(sock: socket.socket) -> PeerCredentials:
    xucred = sock.getsockopt(_DARWIN_SOL_LOCAL, _DARWIN_LOCAL_PEERCRED, _DARWIN_XUCRED.size)
    _, uid, _, gid, *_ = _DARWIN_XUCRED.unpack(xucred)
    try:
        pid = sock.getsockopt(_DARWIN_SOL_LOCAL, _DARWIN_LOCAL_PEERPID)
    except OSError:
        pid = 0
    return PeerCredentials(pid, uid, gid)
