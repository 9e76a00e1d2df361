"""One factory for every way to listen: addresses in, listening sockets out.

The parts: ``tcp_sockets`` and ``unix_sockets`` open new ones, ``systemd`` and ``adopted_sockets`` take
over existing ones, ``socket_options`` sets what all of them have in common.
"""

from __future__ import annotations

import contextlib
import socket as _socket
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from asyncserver.addresses import FDAddress, StreamAddress, TCPAddress, UnixAddress
from asyncserver.adopted_sockets import adopt_descriptor, adopt_duplicate
from asyncserver.bound_sockets import BoundSocket, open_all
from asyncserver.options import SocketOptions
from asyncserver.socket_options import (
    INHERITS_OPTIONS,
    accepted_configurator,
    configure_accepted,
    warn_if_backlog_is_capped,
)
from asyncserver.systemd import systemd_descriptors
from asyncserver.tcp_sockets import open_tcp_sockets
from asyncserver.unix_sockets import SocketFile, open_unix_socket

__all__ = ["INHERITS_OPTIONS", "ListeningSocket", "configure_accepted", "open_listening_sockets"]


@dataclass(slots=True, eq=False)
class ListeningSocket(BoundSocket[StreamAddress]):
    """A socket that listens, and what belongs to it. Whoever opened it calls ``release``.

    Connections that were accepted live on after that; those that were still waiting are reset.
    """

    configure_accepted: Callable[[_socket.socket], None] | None = None
    """To be called with every socket accepted here; None where they inherit all the options."""

    @property
    def tls(self) -> bool:
        """Whether its connections begin with a TLS handshake."""
        return self.requested.tls


def open_listening_sockets(
    addresses: Sequence[StreamAddress], options: SocketOptions | None = None
) -> list[ListeningSocket]:
    """Open, bind or adopt the sockets of all ``addresses``, in their order.

    Which sockets an address has:

    - ``tcp://HOST:PORT``: one for each IP address of the host; ``tcp://:PORT``: one for IPv4 and one for
      IPv6, or IPv4 alone on a machine without IPv6. With port 0 all of them have the same port.
    - ``tcp://[::]:PORT``: one for IPv6 alone; with ``dual_stack=1`` one for IPv6 and IPv4, on which
      IPv4 peers appear as IPv4 endpoints. ``tcp://:PORT?dual_stack=1`` is the same.
    - ``unix:...`` and ``fd://N``: one; ``systemd:NAME``: as many as were passed under the name.

    All or nothing: if one fails, those opened before are closed and unlinked, and descriptors from
    ``fd://`` are left open. Logs a warning where the kernel gives less than the options ask for.

    Blocks (name resolution, file operations): call it in a thread. Raises ``BindError`` with the
    reason and a remedy, and ``OptionError`` for an option that this platform does not have.
    """
    options = SocketOptions() if options is None else options
    with contextlib.ExitStack() as undo:
        opened = open_all(addresses, lambda address: _open(address, options), undo)
        undo.pop_all()
    return opened


def _open(address: StreamAddress, options: SocketOptions) -> Iterable[ListeningSocket]:
    opened: Iterable[tuple[_socket.socket, StreamAddress]]
    file: SocketFile | None = None
    if isinstance(address, TCPAddress | UnixAddress):
        warn_if_backlog_is_capped(address.backlog or options.backlog, str(address))
    if isinstance(address, TCPAddress):
        opened = open_tcp_sockets(address, options)
    elif isinstance(address, UnixAddress):
        sock, file = open_unix_socket(address, options)
        opened = [(sock, address)]
    elif isinstance(address, FDAddress):
        opened = [adopt_descriptor(address.fd, address, options)]
    else:
        opened = (adopt_duplicate(passed, address, options) for passed in systemd_descriptors(address))
    for sock, bound in opened:
        configure = accepted_configurator(sock.family, options)
        yield ListeningSocket(sock, bound, address, file, configure_accepted=configure)
