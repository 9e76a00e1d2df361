"""Opening the UDP sockets of an address."""

from __future__ import annotations

import errno
import socket
import sys

from asyncserver.addresses import UDPAddress
from asyncserver.datagram_options import DatagramOptions
from asyncserver.datagram_socket_options import configure_datagrams
from asyncserver.ip_sockets import SocketAddress, open_ip_sockets, set_reuse_port, state_dual_stack

__all__ = ["open_udp_sockets"]

# Whether a bound socket receives what is sent to multicast groups that other programs have joined. It
# does by default, as in the BSD kernel of 1986. Numbers of linux/in.h and linux/in6.h; Python has no names.
_IP_MULTICAST_ALL = 49
_IPV6_MULTICAST_ALL = 29
_HAS_MULTICAST_ALL = sys.platform.startswith("linux")


def open_udp_sockets(address: UDPAddress, options: DatagramOptions) -> list[tuple[socket.socket, UDPAddress]]:
    """Open a bound, non-blocking socket for each of the addresses that the host stands for.

    Each comes with the address that it is bound to, with a numeric host and the real port. With port 0
    all of them have the same one. All or nothing: if one cannot be opened the others are closed.
    A family that the machine lacks altogether is left out as long as there is another one. Multicast
    groups are not joined here.

    Blocks (name resolution). Raises ``BindError``, or ``OptionError`` for a ``reuse_port`` that the
    platform does not have.
    """
    return open_ip_sockets(address, lambda family, where: _open_one(address, family, where, options))


def _open_one(
    address: UDPAddress, family: socket.AddressFamily, where: SocketAddress, options: DatagramOptions
) -> socket.socket:
    # With SO_REUSEADDR set the kernel may choose a port that another socket with SO_REUSEADDR has. Set after
    # bind(2), it chooses one that nobody has, and those that come later can share it all the same.
    shares_later = address.port == 0 and options.reuse_address and sys.platform != "win32"
    sock = socket.socket(family, socket.SOCK_DGRAM)
    try:
        sock.setblocking(False)
        if not shares_later:
            _set_reuse_address(sock, options)
        if options.reuse_port if address.reuse_port is None else address.reuse_port:
            set_reuse_port(sock)
        state_dual_stack(sock, address.dual_stack)
        configure_datagrams(sock, options, str(address))
        _receive_own_groups_only(sock)
        sock.bind(where)
        if shares_later:
            _set_reuse_address(sock, options)
    except BaseException:
        sock.close()
        raise
    return sock


def _set_reuse_address(sock: socket.socket, options: DatagramOptions) -> None:
    if options.reuse_address:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    elif sys.platform == "win32":
        # Without it another program could take the port away by asking for SO_REUSEADDR.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_EXCLUSIVEADDRUSE, 1)


def _receive_own_groups_only(sock: socket.socket) -> None:
    if not _HAS_MULTICAST_ALL:
        return
    # An IPv6 socket may be one for both families.
    sock.setsockopt(socket.IPPROTO_IP, _IP_MULTICAST_ALL, 0)
    if sock.family == socket.AF_INET6:
        try:
            sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_MULTICAST_ALL, 0)
        except OSError as error:
            if error.errno != errno.ENOPROTOOPT:  # Linux has it since 4.20
                raise
