"""One factory for every way to listen: addresses in, listening sockets out.

The parts: ``tcp_sockets`` and ``unix_sockets`` open new ones, ``systemd`` and ``adopted_sockets`` take
over existing ones, ``socket_options`` sets what all of them have in common.
"""

from __future__ import annotations

import contextlib
import socket as _socket
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from asyncserver.addresses import (
    Address,
    FDAddress,
    TCPAddress,
    UnixAddress,
)
from asyncserver.adopted_sockets import adopt_descriptor, adopt_duplicate
from asyncserver.errors import BindError
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
class ListeningSocket:
    """A socket that listens, and what belongs to it. Whoever opened it calls ``release``."""

    socket: _socket.socket
    """Non-blocking and listening. Its own name says nothing about a Unix socket: see ``address``."""

    address: Address
    """What it is bound to: a numeric host and the real port, or the path as it was asked for."""

    requested: Address
    """The address that asked for it; one can ask for several sockets."""

    configure_accepted: Callable[[_socket.socket], None] | None = None
    """To be called with every socket accepted here; None where they inherit all the options."""

    file: SocketFile | None = None
    """The file to unlink at the end; None for all but Unix sockets that were opened here."""

    _releasing: threading.Lock = field(default_factory=threading.Lock, repr=False)

    @property
    def tls(self) -> bool:
        """Whether its connections begin with a TLS handshake."""
        return self.requested.tls

    def release(self) -> None:
        """Unlink the path of a Unix socket if it is still ours, and close the socket.

        Blocks (file operations). Can be called any number of times, from any thread. Connections that
        were accepted live on; those that were still waiting are reset. A forked child closes its copy of
        the socket only. An adopted descriptor is closed, and its path stays.
        """
        with self._releasing:
            if self.file is not None:
                # First, so that nobody connects to a socket that is about to close, and while the open
                # socket keeps its inode number from being given to another file.
                self.file.unlink()
                self.file = None
            self.socket.close()

    def abandon(self) -> None:
        """Undo the opening: as ``release``, but a descriptor from ``fd://`` stays open, as it was found."""
        if isinstance(self.requested, FDAddress):
            self.socket.detach()
        else:
            self.release()


def open_listening_sockets(
    addresses: Sequence[Address], options: SocketOptions | None = None
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
    _check_descriptors_differ(addresses)
    opened: list[ListeningSocket] = []
    with contextlib.ExitStack() as undo:
        for address in addresses:
            for listening in _open(address, options):
                undo.callback(listening.abandon)
                opened.append(listening)
        undo.pop_all()
    return opened


def _check_descriptors_differ(addresses: Sequence[Address]) -> None:
    seen: set[int] = set()
    for address in addresses:
        if isinstance(address, FDAddress):
            if address.fd in seen:
                raise BindError(str(address), "the descriptor is given twice; it can have one owner only")
            seen.add(address.fd)


def _open(address: Address, options: SocketOptions) -> Iterable[ListeningSocket]:
    """Yield each socket as soon as it is there, so that it is undone if a later one fails."""
    opened: Iterable[tuple[_socket.socket, Address]]
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
        yield ListeningSocket(sock, bound, address, accepted_configurator(sock.family, options), file)
