"""What the kernel says beside a packet: where it was sent to, when it came, from whom; and its errors.

The numbers and structures of ip(7), ipv6(7), socket(7), unix(7), as Linux and macOS have them. Python
names only some of them.
"""

from __future__ import annotations

import socket
import struct
import sys
from collections.abc import Iterable
from typing import NamedTuple, TypeAlias

from asyncserver.endpoints import IPEndpoint
from asyncserver.peers import PeerCredentials, endpoint_from_sockaddr

__all__ = [
    "ANCILLARY_BYTES",
    "ERROR_BYTES",
    "AncillaryData",
    "NetworkError",
    "PacketInfo",
    "kernel_drops",
    "parse_ancillary",
    "parse_network_error",
    "request_ancillary",
    "source_control",
]

AncillaryData: TypeAlias = Iterable[tuple[int, int, bytes]]
"""Level, type and contents, as ``socket.recvmsg`` gives them."""

_ON_LINUX = sys.platform.startswith("linux")
_IPV4, _IPV6 = socket.IPPROTO_IP, socket.IPPROTO_IPV6
IP_PKTINFO = 26 if sys.platform == "darwin" else 8
IPV6_PKTINFO = getattr(socket, "IPV6_PKTINFO", 46 if sys.platform == "darwin" else 50)
_IPV6_RECVPKTINFO = getattr(socket, "IPV6_RECVPKTINFO", 61 if sys.platform == "darwin" else 49)

# Linux alone.
_IP_RECVERR, _IPV6_RECVERR = 11, 25
_SO_TIMESTAMPNS, _SO_PASSCRED, _SCM_CREDENTIALS = 35, 16, 2
_SO_MEMINFO, _MEMINFO_DROPS = 55, 8

# struct in_pktinfo: the interface, the address of the host to answer from, the address in the header.
# struct in6_pktinfo: the address, the interface. struct ucred. struct timespec.
IPV4_INFO = struct.Struct("=i4s4s")
IPV6_INFO = struct.Struct("=16sI")
_UCRED = struct.Struct("=iII")
TIMESPEC = struct.Struct("@ll")
# struct sock_extended_err, linux/errqueue.h; after it stands the address of who has reported the error.
_EXTENDED_ERROR = struct.Struct("=IBBBBII")
_FROM_ICMP = frozenset({2, 3})
# What the kernel tells of a peer that sent before credentials were asked for: nobody (kernel.overflowuid).
_UNKNOWN_PEER = (0, 65534, 65534)
_MAPPED = bytes(10) + b"\xff\xff"

ANCILLARY_BYTES = 256
"""Room enough for all that can be requested here."""
ERROR_BYTES = 512
"""Room for the ancillary data of an error, and for the beginning of the packet it is about."""


class PacketInfo(NamedTuple):
    """What was said beside one packet; None or 0 where nothing was."""

    local: str | None = None
    """The address that the packet was sent to."""
    answer_from: str | None = None
    """The address to answer from: another one where the packet was sent to a group or by broadcast; none
    (None, or zeros) where the system chooses it."""
    interface: int = 0
    """Index of the interface that it came in by."""
    received_at: float | None = None
    """Seconds as of ``time.time()``."""
    credentials: PeerCredentials | None = None
    """Of a Unix peer, when it sent."""


class NetworkError(NamedTuple):
    """An error that was reported for a packet which was sent before."""

    peer: IPEndpoint
    """To whom it had been sent."""
    local: str | None
    """From which address, where that is known."""
    errno: int
    remote: bool
    """Whether somebody else has reported it (ICMP), and not this host's kernel."""


def request_ancillary(sock: socket.socket, *, timestamps: bool) -> frozenset[str]:
    """Ask the kernel for all of it; returns what it will not tell: "local", "received_at", "errors".

    Raises ``OSError`` for a socket that is none.
    """
    if not hasattr(sock, "recvmsg") or sys.platform == "win32":
        return frozenset({"local", "received_at", "truncated", "errors"})
    missing = {"received_at"} if timestamps and not _ON_LINUX else set[str]()
    if sock.family == getattr(socket, "AF_UNIX", None):
        if _ON_LINUX:
            sock.setsockopt(socket.SOL_SOCKET, _SO_PASSCRED, 1)
    elif sock.family == socket.AF_INET:
        sock.setsockopt(_IPV4, IP_PKTINFO, 1)
    else:
        sock.setsockopt(_IPV6, _IPV6_RECVPKTINFO, 1)
    if not _ON_LINUX:
        missing.add("errors")
    elif sock.family in (socket.AF_INET, socket.AF_INET6):
        # A dual-stack socket gets the errors of IPv4 by its own option.
        sock.setsockopt(_IPV4, _IP_RECVERR, 1)
        if sock.family == socket.AF_INET6:
            sock.setsockopt(_IPV6, _IPV6_RECVERR, 1)
    if _ON_LINUX:
        sock.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, int(timestamps))
    return frozenset(missing)


def parse_ancillary(data: AncillaryData) -> PacketInfo:
    """Everything in it that is known here."""
    info = PacketInfo()
    for level, kind, content in data:
        if level == _IPV4 and kind == IP_PKTINFO and len(content) >= IPV4_INFO.size:
            interface, source, local = IPV4_INFO.unpack_from(content)
            # It has come before the kernel was asked for this: then it knows no source.
            source = source if any(source) else _source(local)
            info = info._replace(
                local=socket.inet_ntoa(local), answer_from=socket.inet_ntoa(source), interface=interface
            )
        elif level == _IPV6 and kind == IPV6_PKTINFO and len(content) >= IPV6_INFO.size:
            packed, interface = IPV6_INFO.unpack_from(content)
            info = info._replace(
                local=socket.inet_ntop(socket.AF_INET6, packed),
                answer_from=socket.inet_ntop(socket.AF_INET6, _source(packed)),
                interface=interface,
            )
        elif level == socket.SOL_SOCKET and _ON_LINUX:
            if kind == _SO_TIMESTAMPNS and len(content) >= TIMESPEC.size:
                seconds, nanoseconds = TIMESPEC.unpack_from(content)
                info = info._replace(received_at=seconds + nanoseconds / 1e9 or None)
            elif kind == _SCM_CREDENTIALS and len(content) >= _UCRED.size:
                credentials = PeerCredentials(*_UCRED.unpack_from(content))
                info = info._replace(credentials=None if credentials == _UNKNOWN_PEER else credentials)
    return info


def _source(packed: bytes) -> bytes:
    """The address itself, or zeros, in the form that the kernel takes, for that of a group or a broadcast.

    A subnet's broadcast address is not known as one here.
    """
    if packed.startswith(_MAPPED):
        return _MAPPED + _source(packed[len(_MAPPED) :])
    first_of_groups = 224 if len(packed) == 4 else 255
    return packed if packed[0] < first_of_groups else bytes(len(packed))


def source_control(family: int, info: PacketInfo) -> list[tuple[int, int, bytes]]:
    """The ancillary data with which a packet leaves from the address and interface that ``info`` came to."""
    if family == socket.AF_INET:
        source = socket.inet_aton(info.answer_from or "0.0.0.0")
        return [(_IPV4, IP_PKTINFO, IPV4_INFO.pack(info.interface, source, bytes(4)))]
    if family == socket.AF_INET6:
        source = socket.inet_pton(socket.AF_INET6, info.answer_from or "::")
        return [(_IPV6, IPV6_PKTINFO, IPV6_INFO.pack(source, info.interface))]
    return []


def parse_network_error(family: int, sockaddr: object, data: AncillaryData) -> NetworkError | None:
    """What the socket's error queue says (MSG_ERRQUEUE, ip(7)); None if it is about something else."""
    data = list(data)
    for level, kind, content in data:
        is_error = (level, kind) in ((_IPV4, _IP_RECVERR), (_IPV6, _IPV6_RECVERR))
        if is_error and len(content) >= _EXTENDED_ERROR.size:
            number, origin, *_ = _EXTENDED_ERROR.unpack_from(content)
            peer = endpoint_from_sockaddr(family, sockaddr)  # type: ignore[arg-type]
            if isinstance(peer, IPEndpoint):
                return NetworkError(peer, parse_ancillary(data).local, number, origin in _FROM_ICMP)
    return None


def kernel_drops(sock: socket.socket) -> int | None:
    """Packets for this socket that found no room in its receive buffer; None if the kernel does not tell.

    SO_MEMINFO (Linux 4.12) is the counter itself, right at any time; SO_RXQ_OVFL would give its value
    beside the next packet that is received, and after a flood there may be none.
    """
    if not _ON_LINUX or sock.family not in (socket.AF_INET, socket.AF_INET6):
        return None
    try:
        values = sock.getsockopt(socket.SOL_SOCKET, _SO_MEMINFO, 4 * (_MEMINFO_DROPS + 1))
    except OSError:
        return None
    if len(values) < 4 * (_MEMINFO_DROPS + 1):
        return None
    return int(struct.unpack_from("=I", values, 4 * _MEMINFO_DROPS)[0])
