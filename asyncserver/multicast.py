"""Joining and leaving multicast groups, and choosing the interface by which datagrams to groups leave.

Interfaces are given by name, index or address; kernels take an index, for IPv4 also an address. The numbers
that Python has no names for are those of linux/in.h; source-specific groups exist on Linux only here.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct
import sys
from collections.abc import Iterator

from asyncserver.datagram_options import Interface, MulticastGroup, interface_family
from asyncserver.errors import BindError, OptionError

__all__ = ["ip_versions", "is_joined_already", "join", "leave", "set_multicast_interface"]

_ON_LINUX = sys.platform.startswith("linux")
_ON_WINDOWS = sys.platform == "win32"
_IP_ADD_SOURCE_MEMBERSHIP = 39
_IP_DROP_SOURCE_MEMBERSHIP = 40
_MCAST_JOIN_SOURCE_GROUP = 46
_MCAST_LEAVE_SOURCE_GROUP = 47
_SOCKADDR_STORAGE_BYTES = 128
_IPV6_INTERFACES_FILE = "/proc/net/if_inet6"
_ANY = "0.0.0.0"
_NOT_JOINED = frozenset({errno.EADDRNOTAVAIL, errno.EINVAL, errno.ENOENT, errno.ESRCH})


def ip_versions(sock: socket.socket) -> frozenset[int]:
    """The versions of IP whose groups ``sock`` can join; both for a dual-stack one on Linux."""
    if sock.family == socket.AF_INET:
        return frozenset({4})
    if sock.family != socket.AF_INET6:
        return frozenset()
    if _ON_LINUX and not sock.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY):
        return frozenset({4, 6})
    return frozenset({6})


def join(sock: socket.socket, group: MulticastGroup) -> None:
    """Make ``sock`` a member of ``group``, until it leaves it or is closed.

    Does not block, except for reading a file below /proc where an interface is given by an IPv6 address.
    Raises ``OptionError`` for a group that this socket or this platform cannot join, and ``BindError``
    where the machine refuses: no such interface, joined already, too many groups.
    """
    _check_possible(sock, group)
    try:
        sock.setsockopt(*_request(group, joining=True))
    except OSError as error:
        if isinstance(error, BindError):
            raise
        raise BindError(str(group), _reason(error, group), error.errno) from error


def is_joined_already(error: OSError, group: MulticastGroup) -> bool:
    """Whether an error of ``join`` says that the socket is a member."""
    return error.errno == (errno.EADDRINUSE if group.source is None else errno.EADDRNOTAVAIL)


def leave(sock: socket.socket, group: MulticastGroup) -> None:
    """Undo ``join`` of an equal ``group``.

    Raises ``OptionError`` if the socket is no member, and ``BindError`` if the interface is gone.
    """
    _check_possible(sock, group)
    try:
        sock.setsockopt(*_request(group, joining=False))
    except OSError as error:
        if isinstance(error, BindError):
            raise
        if error.errno in _NOT_JOINED:
            raise OptionError("group", str(group), "is not joined on this socket") from error
        raise BindError(str(group), _reason(error, group), error.errno) from error


def set_multicast_interface(sock: socket.socket, interface: Interface, address: str) -> None:
    """Let datagrams to groups leave by ``interface``; an address concerns sockets of its family alone.

    Raises ``BindError`` for ``address`` if there is no such interface.
    """
    for version in ip_versions(sock):
        if interface_family(interface) not in (None, version):
            continue
        index = _index(interface)
        try:
            if index is None:
                raise OSError(errno.ENODEV, os.strerror(errno.ENODEV))
            if version == 4:
                choice = _ipv4_membership(_ANY, interface, index)
                sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, choice)
            else:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF, index)
        except OSError as error:
            reason = f"multicast_interface={interface!r}: {_unknown(interface)}"
            raise BindError(address, reason, error.errno) from error


# -- what the kernel is asked for ------------------------------------------------------------------


def _check_possible(sock: socket.socket, group: MulticastGroup) -> None:
    versions = ip_versions(sock)
    if group.version not in versions:
        kind = f"of IPv{min(versions)}" if versions else "no IP socket"
        raise OptionError("group", str(group), f"is of IPv{group.version}, and the socket is {kind}")
    if group.source is not None and not _ON_LINUX:
        raise OptionError("group", str(group), "a group with a source can be joined on Linux only")


def _request(group: MulticastGroup, joining: bool) -> tuple[int, int, bytes]:
    """The level, the number and the value of the socket option."""
    index = _index(group.interface)
    if index is None:
        raise BindError(str(group), _unknown(group.interface), errno.ENODEV)
    level = socket.IPPROTO_IP if group.version == 4 else socket.IPPROTO_IPV6
    if group.source is None:
        return level, *_membership(group, index, joining)
    if group.version == 4 and not index:
        number = _IP_ADD_SOURCE_MEMBERSHIP if joining else _IP_DROP_SOURCE_MEMBERSHIP
        hosts = (group.group, _ipv4_address(group.interface), group.source)
        return level, number, b"".join(map(socket.inet_aton, hosts))
    number = _MCAST_JOIN_SOURCE_GROUP if joining else _MCAST_LEAVE_SOURCE_GROUP
    # struct group_source_req: what follows the index is aligned as a pointer is.
    return level, number, struct.pack("@I0P", index) + _storage(group.group) + _storage(group.source)


def _membership(group: MulticastGroup, index: int, joining: bool) -> tuple[int, bytes]:
    if group.version == 4:
        number = socket.IP_ADD_MEMBERSHIP if joining else socket.IP_DROP_MEMBERSHIP
        return number, _ipv4_membership(group.group, group.interface, index)
    number = socket.IPV6_JOIN_GROUP if joining else socket.IPV6_LEAVE_GROUP
    return number, struct.pack("@16sI", socket.inet_pton(socket.AF_INET6, group.group), index)


def _ipv4_membership(group: str, interface: Interface, index: int) -> bytes:
    """A struct ip_mreqn; on Windows, which has none, an ip_mreq with the index as the address 0.0.0.index."""
    address = socket.inet_aton(_ipv4_address(interface))
    if _ON_WINDOWS:
        return socket.inet_aton(group) + (struct.pack("!I", index) if index else address)
    return struct.pack("@4s4si", socket.inet_aton(group), address, index)


def _ipv4_address(interface: Interface) -> str:
    return str(interface) if interface_family(interface) == 4 else _ANY


def _storage(host: str) -> bytes:
    if ":" in host:
        text = struct.pack("@HHI16sI", socket.AF_INET6, 0, 0, socket.inet_pton(socket.AF_INET6, host), 0)
    else:
        text = struct.pack("@HH4s", socket.AF_INET, 0, socket.inet_aton(host))
    return text.ljust(_SOCKADDR_STORAGE_BYTES, b"\0")


# -- interfaces ------------------------------------------------------------------------------------


def _index(interface: Interface) -> int | None:
    """The index, or None for an unknown one; 0 lets the kernel choose, or go by the IPv4 address."""
    if not isinstance(interface, str):
        return interface or 0
    version = interface_family(interface)
    if version == 4:
        return 0
    if version == 6:
        return next((index for address, index in _ipv6_addresses() if address == interface), None)
    try:
        return socket.if_nametoindex(interface)
    except OSError:
        return None


def _ipv6_addresses() -> Iterator[tuple[str, int]]:
    """The IPv6 addresses of this machine with the indices of their interfaces; Linux only."""
    with contextlib.suppress(OSError), open(_IPV6_INTERFACES_FILE, encoding="ascii") as file:
        for line in file:
            digits, index = line.split()[:2]
            yield socket.inet_ntop(socket.AF_INET6, bytes.fromhex(digits)), int(index, 16)


def _unknown(interface: Interface) -> str:
    if interface_family(interface) is not None:
        hint = "" if _ON_LINUX else "; give it by its name"
        return f"no interface of this machine has the address {interface}{hint}"
    names = ", ".join(name for _, name in socket.if_nameindex())
    return f"this machine has no interface {interface}, only: {names}"


def _reason(error: OSError, group: MulticastGroup) -> str:
    if is_joined_already(error, group):
        return "the socket has joined this group already"
    if error.errno in (errno.ENODEV, errno.ENXIO, errno.EADDRNOTAVAIL):
        if group.interface is not None:
            return _unknown(group.interface)
        return f"no route leads to this group; name an interface, as in {group.group}%eth0"
    if error.errno == errno.ENOBUFS and group.version == 4:
        limit = "net.ipv4.igmp_max_memberships" if group.source is None else "net.ipv4.igmp_max_msf"
        return f"the socket has joined too many; raise the limit with `sysctl -w {limit}=...`"
    return os.strerror(error.errno) if error.errno else str(error)
