"""Setting ``SocketOptions`` on listening and on accepted sockets."""

from __future__ import annotations

import errno
import logging
import socket
import sys
from collections.abc import Callable

from asyncserver.options import KeepAlive, SocketOptions

__all__ = [
    "INHERITS_OPTIONS",
    "accepted_configurator",
    "configure_accepted",
    "configure_listening",
    "warn_if_backlog_is_capped",
]

logger: logging.Logger = logging.getLogger("asyncserver")

# Whether a TCP connection starts with the options of the socket that it was accepted from, so that
# setting them once, on the listening socket, saves five system calls per connection. Linux copies
# the whole socket (sk_clone_lock), FreeBSD the options and the keep-alive times (syncache_socket).
# macOS and Windows promise it for some of the options only, so there every accepted socket is set.
INHERITS_OPTIONS = sys.platform.startswith(("linux", "freebsd"))

_SOMAXCONN_FILE = "/proc/sys/net/core/somaxconn"
_IPPROTO_MPTCP = 262
_TCP_PROTOCOLS = (0, socket.IPPROTO_TCP, _IPPROTO_MPTCP)
# Linux reserves twice the size asked for, half of it for its bookkeeping, and reports that (socket(7)).
_REPORTED_PER_BYTE = 2 if sys.platform.startswith("linux") else 1


def configure_listening(sock: socket.socket, options: SocketOptions, address: str) -> None:
    """Set what its connections are to inherit on a socket that does not listen yet.

    Before listen(2) matters for the receive buffer: TCP's window scale is settled in the handshake.
    A buffer that the kernel makes smaller is logged as a warning that names ``address``.
    """
    _set_buffer(sock, socket.SO_RCVBUF, "receive_buffer", options.receive_buffer, address)
    _set_buffer(sock, socket.SO_SNDBUF, "send_buffer", options.send_buffer, address)
    _set_tcp_options(sock, options)


def configure_accepted(sock: socket.socket, options: SocketOptions) -> None:
    """Set on an accepted socket what it may not have inherited.

    Never raises ``OSError``: an option is not worth a connection, and if the peer is gone already
    (macOS then says EINVAL) the first read tells so.
    """
    try:
        if options.receive_buffer is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, options.receive_buffer)
        if options.send_buffer is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, options.send_buffer)
        _set_tcp_options(sock, options)
    except OSError as error:
        logger.debug("cannot set the options of an accepted socket: %s", error)


def accepted_configurator(family: int, options: SocketOptions) -> Callable[[socket.socket], None] | None:
    """What to call with each socket accepted from a listening one, or None if there is nothing to set.

    Unix sockets inherit nothing anywhere: the buffers of a connection are made by connect(2).
    """
    is_unix = family not in (socket.AF_INET, socket.AF_INET6)
    sets_buffers = options.receive_buffer is not None or options.send_buffer is not None
    if (is_unix and not sets_buffers) or (not is_unix and INHERITS_OPTIONS):
        return None
    return lambda accepted: configure_accepted(accepted, options)


def warn_if_backlog_is_capped(backlog: int, address: str) -> None:
    """Log a warning if the kernel cuts ``backlog``, which listen(2) does without a word.

    Linux only: elsewhere the limit cannot be read without running a program.
    """
    limit = _read_somaxconn()
    if limit is not None and limit < backlog:
        logger.warning(
            "%s: the kernel cuts the backlog of %d to %d; raise net.core.somaxconn or ask for less",
            address,
            backlog,
            limit,
        )


def _read_somaxconn() -> int | None:
    try:
        with open(_SOMAXCONN_FILE, encoding="ascii") as file:
            return int(file.read())
    except (OSError, ValueError):
        return None


def _set_buffer(sock: socket.socket, number: int, name: str, size: int | None, address: str) -> None:
    if size is None:
        return
    try:
        sock.setsockopt(socket.SOL_SOCKET, number, size)
    except OSError as error:
        # The BSDs refuse what is beyond kern.ipc.maxsockbuf where Linux gives what it can.
        if error.errno != errno.ENOBUFS:
            raise
    granted = sock.getsockopt(socket.SOL_SOCKET, number) // _REPORTED_PER_BYTE
    if granted < size:
        logger.warning("%s: the kernel gives %s=%d only %d bytes", address, name, size, granted)


def _set_tcp_options(sock: socket.socket, options: SocketOptions) -> None:
    if sock.family not in (socket.AF_INET, socket.AF_INET6) or sock.proto not in _TCP_PROTOCOLS:
        return
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, options.no_delay)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, options.keep_alive is not None)
    if options.keep_alive is not None:
        _set_keep_alive_times(sock, options.keep_alive)


def _set_keep_alive_times(sock: socket.socket, times: KeepAlive) -> None:
    # macOS calls TCP_KEEPIDLE TCP_KEEPALIVE. A platform that lacks one keeps its own value for it.
    for names, value in (
        (("TCP_KEEPIDLE", "TCP_KEEPALIVE"), times.idle),
        (("TCP_KEEPINTVL",), times.interval),
        (("TCP_KEEPCNT",), times.probes),
    ):
        number = next((getattr(socket, name) for name in names if hasattr(socket, name)), None)
        if number is not None:
            sock.setsockopt(socket.IPPROTO_TCP, number, int(value))
