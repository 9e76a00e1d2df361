"""Opening the TCP sockets of an address."""

from __future__ import annotations

import socket
import sys

from asyncserver.addresses import TCPAddress
from asyncserver.ip_sockets import SocketAddress, open_ip_sockets, set_reuse_port, state_dual_stack
from asyncserver.options import SocketOptions
from asyncserver.socket_options import configure_listening

__all__ = ["open_tcp_sockets"]


def open_tcp_sockets(address: TCPAddress, options: SocketOptions) -> list[tuple[socket.socket, TCPAddress]]:
    """Open a listening, non-blocking socket for each of the addresses that the host stands for.

    Each comes with the address that it is bound to, with a numeric host and the real port. With port 0
    all of them have the same one. All or nothing: if one cannot be opened the others are closed.
    A family that the machine lacks altogether is left out as long as there is another one.

    Blocks (name resolution). Raises ``BindError``, or ``OptionError`` for a ``reuse_port`` that the
    platform does not have.
    """
    return open_ip_sockets(address, lambda family, where: _open_one(address, family, where, options))


def _open_one(
    address: TCPAddress, family: socket.AddressFamily, where: SocketAddress, options: SocketOptions
) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        _set_sharing(sock, address, options)
        state_dual_stack(sock, address.dual_stack)
        configure_listening(sock, options, str(address))
        sock.bind(where)
        sock.listen(address.backlog or options.backlog)
    except BaseException:
        sock.close()
        raise
    return sock


def _set_sharing(sock: socket.socket, address: TCPAddress, options: SocketOptions) -> None:
    if sys.platform == "win32":
        # SO_REUSEADDR on Windows means "take the port away from whoever has it".
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_EXCLUSIVEADDRUSE, 1)
    elif options.reuse_address:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if options.reuse_port if address.reuse_port is None else address.reuse_port:
        set_reuse_port(sock)
