"""Options of the sockets that datagrams are received on, and the multicast groups that they join.

These are values: checked when they are made, applied by ``asyncserver.datagram_sockets``.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from typing import Final, TypeAlias, cast

from asyncserver.checks import names_fields
from asyncserver.errors import OptionError

__all__ = [
    "DEFAULT_MULTICAST_TTL",
    "DEFAULT_RECEIVE_BUFFER",
    "DatagramOptions",
    "Interface",
    "MulticastGroup",
    "interface_family",
]

Interface: TypeAlias = str | int | None
"""A network interface: its name, its index, one of its IP addresses; None leaves it to the kernel."""

# Linux doubles the size of a buffer, and keeps it in a C int.
_MAX_BUFFER = 2**30 - 1
_MAX_INDEX = 2**31 - 1
_MAX_TTL = 255

# RFC 1112: who wants more than the local network says so.
DEFAULT_MULTICAST_TTL: Final = 1

# What arrives while the process does something else is kept here. When it is full the kernel drops
# datagrams and nobody is told: not the peer, and the server by a counter alone. Linux's own default of
# 208 KiB holds some 250 small datagrams, since each is charged more than 800 bytes of bookkeeping; a fast
# peer sends them in a third of a millisecond. 4 MiB (the kernel doubles it) hold some 10,000. The memory is
# taken only by what waits, so a large size costs nothing while the server keeps up. A kernel that
# allows less (net.core.rmem_max, 208 KiB on many machines) gives less.
DEFAULT_RECEIVE_BUFFER: Final = 4 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class MulticastGroup:
    """A multicast group to receive. Raises ``OptionError`` for a part that cannot be.

    As text it is ``[SOURCE@]GROUP[%INTERFACE]``: ``239.1.2.3``, ``ff02::fb%eth0``,
    ``10.0.0.7@232.1.2.3%eth0``; ``MulticastGroup.parse(str(group)) == group`` for every group.
    """

    group: str
    """The IPv4 or IPv6 address of the group."""

    interface: Interface = None
    """The interface to receive it on: a name ("eth0"), an index, or an address of the interface, of the
    group's family. None leaves the choice to the kernel, which asks its routing table; on a machine with
    several interfaces, and for groups of IPv6's link-local scope (ff02::), name one."""

    source: str | None = None
    """The IP address of the one sender to receive it from (source-specific multicast); None: from anybody.
    A group with several sources is given once for each of them."""

    def __post_init__(self) -> None:
        group = _ip_address("group", self.group)
        if not group.is_multicast:
            raise OptionError("group", self.group, "is not a multicast address (224.0.0.0/4, ff00::/8)")
        object.__setattr__(self, "group", str(group))
        object.__setattr__(self, "interface", _checked_interface("interface", self.interface))
        if interface_family(self.interface) not in (None, group.version):
            raise OptionError("interface", self.interface, f"the group is of IPv{group.version}")
        if self.source is not None:
            object.__setattr__(self, "source", str(self._checked_source(group.version)))

    def __str__(self) -> str:
        source = "" if self.source is None else f"{self.source}@"
        interface = "" if self.interface is None else f"%{self.interface}"
        return f"{source}{self.group}{interface}"

    @classmethod
    def parse(cls, text: str) -> MulticastGroup:
        """The group that ``text`` stands for. Raises ``OptionError``."""
        if not isinstance(text, str):
            raise OptionError("group", text, "must be a string")
        # First, since the name of an interface may contain an @.
        addresses, percent, interface = text.partition("%")
        source, at, group = addresses.rpartition("@")
        return cls(group, interface if percent else None, source if at else None)

    @property
    def version(self) -> int:
        """4 or 6, the version of IP."""
        return 6 if ":" in self.group else 4

    def _checked_source(self, version: int) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
        source = _ip_address("source", self.source)
        if source.version != version:
            raise OptionError("source", self.source, f"the group is of IPv{version}")
        if source.is_multicast or source.is_unspecified:
            raise OptionError("source", self.source, "is not the address of a host")
        return source


@names_fields
@dataclass(frozen=True, slots=True, kw_only=True)
class DatagramOptions:
    """What the sockets of a ``DatagramServer`` are set to.

    On adopted sockets (``fd://``, ``systemd:``) the groups are joined, and buffers, ``broadcast`` and
    ``multicast_...`` are set where they are not the defaults; all else is as their maker left it.
    ``reuse_port`` can also be given in an address, for that address alone.
    """

    # -- buffers -----------------------------------------------------------------------------------

    receive_buffer: int | None = DEFAULT_RECEIVE_BUFFER
    """SO_RCVBUF in bytes, by default 4 MiB; ``None`` leaves it to the kernel (208 KiB on Linux).

    Holds the datagrams that have arrived and were not read yet; what comes on top is lost without a word.
    Each takes its own size and the kernel's bookkeeping, some 800 bytes on Linux. A process with
    CAP_NET_ADMIN gets any size (SO_RCVBUFFORCE); others at most ``net.core.rmem_max``. Where that is less
    than was asked for, a warning is logged; less than the default is information only. The
    default makes no adopted socket's buffer smaller.

    A Unix socket on Linux is bounded by ``net.unix.max_dgram_qlen`` datagrams instead, and by the
    sender's buffer: there a sender waits, and nothing is lost.
    """

    send_buffer: int | None = None
    """SO_SNDBUF in bytes; ``None`` leaves it to the kernel (208 KiB on Linux).

    Datagrams that the network interface has not taken yet; when it is full, sending waits. Also the most
    that one datagram to a Unix socket can have. The kernel may give less (``net.core.wmem_max``): a
    warning is logged.
    """

    # -- binding (UDP) -----------------------------------------------------------------------------

    reuse_address: bool = False
    """SO_REUSEADDR: other sockets that ask for it too may bind the same port.

    Off, because for UDP it is not what it is for TCP. A closed socket leaves nothing behind that would
    stand in a restart's way; and with it on, Linux lets another process bind the same port and gives
    the datagrams to that one. Switch it on to receive a multicast group that other programs on this
    machine receive on the same port (each gets a copy).
    """

    reuse_port: bool = False
    """SO_REUSEPORT: several sockets, also of several processes of one user, receive on one port.

    Linux shares datagrams out among them by the addresses and ports of both ends, so that one peer stays
    with one socket as long as none comes or goes. Every socket on the port must ask for it. An
    ``OptionError`` where the platform has none.
    """

    # -- broadcast and multicast (UDP) ---------------------------------------------------------------

    broadcast: bool = False
    """SO_BROADCAST: sending to broadcast addresses is permitted. Receiving takes nothing."""

    groups: tuple[MulticastGroup, ...] = ()
    """Multicast groups to join, each on every socket of its family.

    Whoever binds a wildcard address receives what is sent to the groups joined here and no others
    (Linux by itself would deliver those that any program of the machine has joined: IP_MULTICAST_ALL
    is switched off). ``OptionError`` if no socket is of a group's family. At most
    ``net.ipv4.igmp_max_memberships`` (20) groups of IPv4 for each socket on Linux. Leaving is not
    necessary: the kernel does it when the socket is closed. The server's answers go to the peer alone.
    """

    multicast_loop: bool = True
    """IP_MULTICAST_LOOP, IPV6_MULTICAST_LOOP: what is sent to a group is received on this machine too.

    On Windows it is the receiver that decides.
    """

    multicast_ttl: int = DEFAULT_MULTICAST_TTL
    """IP_MULTICAST_TTL, IPV6_MULTICAST_HOPS: routers that a datagram to a group may pass, and one; 0 to 255.

    0 stays in this machine, 1 in the local network.
    """

    multicast_interface: Interface = None
    """IP_MULTICAST_IF, IPV6_MULTICAST_IF: the interface by which datagrams to groups leave.

    A name ("eth0"), an index, or an address of the interface, which concerns the sockets of its
    family alone. ``None`` leaves the choice to the routing table.
    """

    # -- receiving -----------------------------------------------------------------------------------

    timestamps: bool = True
    """SO_TIMESTAMPNS (Linux): ``Datagram.received_at`` tells when the kernel received it. Elsewhere, and
    without this, it is None."""

    def __post_init__(self) -> None:
        for option in ("receive_buffer", "send_buffer"):
            size = getattr(self, option)
            if size is not None:
                _check_int(option, size, 1, _MAX_BUFFER)
        for option in ("reuse_address", "reuse_port", "broadcast", "multicast_loop", "timestamps"):
            value = getattr(self, option)
            if not isinstance(value, bool):
                raise OptionError(option, value, "must be True or False")
        _check_int("multicast_ttl", self.multicast_ttl, 0, _MAX_TTL)
        interface = _checked_interface("multicast_interface", self.multicast_interface)
        object.__setattr__(self, "multicast_interface", interface)
        object.__setattr__(self, "groups", _checked_groups(self.groups))


def interface_family(interface: Interface) -> int | None:
    """4 or 6 for an interface that is given by an IP address; None for all others."""
    try:
        return ipaddress.ip_address(interface).version if isinstance(interface, str) else None
    except ValueError:
        return None


def _checked_groups(groups: object) -> tuple[MulticastGroup, ...]:
    if not isinstance(groups, tuple | list):
        raise OptionError("groups", groups, "must be a tuple of MulticastGroup")
    checked: list[MulticastGroup] = []
    for group in cast("tuple[object, ...] | list[object]", groups):
        if not isinstance(group, MulticastGroup):
            raise OptionError("groups", group, "must be a MulticastGroup; MulticastGroup.parse takes text")
        if group in checked:
            raise OptionError("groups", str(group), "is given twice")
        checked.append(group)
    return tuple(checked)


def _checked_interface(option: str, interface: object) -> Interface:
    """The interface in its normal form; a name made of digits is an index."""
    if interface is None:
        return None
    if isinstance(interface, str) and re.fullmatch(r"[0-9]{1,10}", interface):
        interface = int(interface)
    if isinstance(interface, bool) or not isinstance(interface, int | str):
        raise OptionError(option, interface, "must be the name, the index or an address of an interface")
    if isinstance(interface, int):
        _check_int(option, interface, 1, _MAX_INDEX)
        return interface
    try:
        address = ipaddress.ip_address(interface)
    except ValueError:
        if not re.fullmatch(r"[^\s/\x00-\x1f\x7f]+", interface):
            raise OptionError(option, interface, "is not the name of an interface") from None
        return interface
    if "%" in interface or address.is_multicast or address.is_unspecified:
        raise OptionError(option, interface, "is not the address of an interface")
    return str(address)


def _ip_address(option: str, text: object) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    if not isinstance(text, str):
        raise OptionError(option, text, "must be an IP address, as a string")
    if "%" in text:
        raise OptionError(option, text, "the interface is given apart (MulticastGroup.parse takes both)")
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        raise OptionError(option, text, "is not an IP address") from None


def _check_int(option: str, value: object, least: int, most: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise OptionError(option, value, "must be a whole number")
    if not least <= value <= most:
        raise OptionError(option, value, f"must be {least} to {most}")
