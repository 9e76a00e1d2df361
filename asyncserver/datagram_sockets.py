"""One factory for every way to receive datagrams: addresses in, bound sockets out.

The parts: ``udp_sockets`` and ``unix_sockets`` open new ones, ``systemd`` and ``adopted_sockets`` take over
existing ones, ``datagram_socket_options`` sets what all of them have in common, ``multicast`` joins groups.
"""

from __future__ import annotations

import contextlib
import socket as _socket
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from asyncserver.addresses import DatagramAddress, FDAddress, SystemdAddress, UDPAddress, UnixDatagramAddress
from asyncserver.adopted_sockets import adopt_datagram_descriptor, adopt_datagram_duplicate
from asyncserver.bound_sockets import BoundSocket, open_all
from asyncserver.datagram_options import DatagramOptions, MulticastGroup, interface_family
from asyncserver.datagram_socket_options import report_small_buffers
from asyncserver.errors import BindError, OptionError
from asyncserver.multicast import ip_versions, is_joined_already, join, leave
from asyncserver.systemd import systemd_descriptors
from asyncserver.udp_sockets import open_udp_sockets
from asyncserver.unix_datagram_sockets import open_unix_datagram_socket
from asyncserver.unix_sockets import SocketFile

__all__ = ["DatagramSocket", "open_datagram_sockets"]


@dataclass(slots=True, eq=False)
class DatagramSocket(BoundSocket[DatagramAddress]):
    """A socket that receives datagrams, and what belongs to it. Whoever opened it calls ``release``.

    Datagrams that were still waiting are lost then.
    """

    @property
    def is_adopted(self) -> bool:
        """Whether somebody else made the socket and may have it open still."""
        return isinstance(self.requested, FDAddress | SystemdAddress)


def open_datagram_sockets(
    addresses: Sequence[DatagramAddress], options: DatagramOptions | None = None
) -> list[DatagramSocket]:
    """Open, bind or adopt the sockets of all ``addresses``, in their order, and join the groups.

    Which sockets an address has:

    - ``udp://HOST:PORT``: one for each IP address of the host; ``udp://:PORT``: one for IPv4 and one for
      IPv6, or IPv4 alone on a machine without IPv6. With port 0 all of them have the same port.
    - ``udp://[::]:PORT``: one for IPv6 alone; with ``dual_stack=1`` one for IPv6 and IPv4.
      ``udp://:PORT?dual_stack=1`` is the same.
    - ``unixgram:...`` and ``fd://N``: one; ``systemd:NAME``: as many as were passed under the name.

    Each group of ``options`` is joined on every socket of its family. An adopted socket may be a member
    already (since an earlier run, where its maker keeps it open), which is no error.

    All or nothing: if one fails, those opened before are closed and unlinked, and descriptors from
    ``fd://`` are left open, without the groups. Logs once where the kernel gives less than the options
    ask for.

    Blocks (name resolution, file operations): call it in a thread. Raises ``BindError`` with the
    reason and a remedy, and ``OptionError`` for an option that this platform does not have, or that
    concerns none of the sockets.
    """
    options = DatagramOptions() if options is None else options
    with contextlib.ExitStack() as undo:
        opened = open_all(addresses, lambda address: _open(address, options), undo)
        _check_interface_matches(opened, options)
        for group in options.groups:
            _join_everywhere(opened, group, undo)
        undo.pop_all()
    report_small_buffers((bound.socket for bound in opened), options)
    return opened


def _open(address: DatagramAddress, options: DatagramOptions) -> Iterable[DatagramSocket]:
    opened: Iterable[tuple[_socket.socket, DatagramAddress]]
    file: SocketFile | None = None
    if isinstance(address, UDPAddress):
        opened = open_udp_sockets(address, options)
    elif isinstance(address, UnixDatagramAddress):
        sock, file = open_unix_datagram_socket(address, options)
        opened = [(sock, address)]
    elif isinstance(address, FDAddress):
        opened = [adopt_datagram_descriptor(address.fd, address, options)]
    else:
        descriptors = systemd_descriptors(address)
        opened = (adopt_datagram_duplicate(passed, address, options) for passed in descriptors)
    for sock, bound in opened:
        yield DatagramSocket(sock, bound, address, file)


def _check_interface_matches(opened: list[DatagramSocket], options: DatagramOptions) -> None:
    version = interface_family(options.multicast_interface)
    if version is not None and not any(version in ip_versions(bound.socket) for bound in opened):
        reason = f"none of the sockets is of IPv{version}"
        raise OptionError("multicast_interface", options.multicast_interface, reason)


def _join_everywhere(opened: list[DatagramSocket], group: MulticastGroup, undo: contextlib.ExitStack) -> None:
    matching = [bound for bound in opened if group.version in ip_versions(bound.socket)]
    if not matching:
        raise OptionError("groups", str(group), f"none of the sockets is of IPv{group.version}")
    for bound in matching:
        try:
            join(bound.socket, group)
        except BindError as error:
            if not bound.is_adopted or not is_joined_already(error, group):
                raise
        else:
            # For an adopted socket, which outlives a start that fails.
            undo.callback(leave, bound.socket, group)
