"""Setting ``DatagramOptions`` on sockets."""

from __future__ import annotations

import errno
import logging
import socket
import sys
from collections.abc import Iterable

from asyncserver.datagram_options import DEFAULT_MULTICAST_TTL, DEFAULT_RECEIVE_BUFFER, DatagramOptions
from asyncserver.multicast import ip_versions, set_multicast_interface

__all__ = ["configure_datagrams", "report_small_buffers"]

logger: logging.Logger = logging.getLogger("asyncserver")

_ON_LINUX = sys.platform.startswith("linux")
# What a process with CAP_NET_ADMIN may set beyond the limits of the machine (socket(7)).
_FORCED = {socket.SO_RCVBUF: 33, socket.SO_SNDBUF: 32} if _ON_LINUX else {}
# Linux reserves twice the size asked for, half of it for its bookkeeping, and reports that (socket(7)).
_REPORTED_PER_BYTE = 2 if _ON_LINUX else 1
_LEAST_BUFFER = 4096


def configure_datagrams(sock: socket.socket, options: DatagramOptions, address: str) -> None:
    """Set the buffers, and what concerns sending to many; before bind(2), so that nothing comes earlier.

    What is a default is not set, so that it takes nothing away from an adopted socket. Raises
    ``BindError`` for ``address`` if there is no such ``multicast_interface``.
    """
    size = options.receive_buffer
    if size is not None and (size != DEFAULT_RECEIVE_BUFFER or _size(sock, socket.SO_RCVBUF) < size):
        _set_size(sock, socket.SO_RCVBUF, size)
    if options.send_buffer is not None:
        _set_size(sock, socket.SO_SNDBUF, options.send_buffer)
    if options.broadcast:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
    _set_multicast(sock, options)
    if options.multicast_interface is not None:
        set_multicast_interface(sock, options.multicast_interface, address)


def report_small_buffers(socks: Iterable[socket.socket], options: DatagramOptions) -> None:
    """Log a buffer that is smaller than asked for, once for all ``socks``.

    A warning with its remedy; information where only the default of ``receive_buffer`` was not met.
    """
    sockets = list(socks)
    # On Linux what waits in a Unix socket is counted in datagrams and not in bytes.
    receiving = [sock for sock in sockets if not _ON_LINUX or ip_versions(sock)]
    level = logging.INFO if options.receive_buffer == DEFAULT_RECEIVE_BUFFER else logging.WARNING
    _report(receiving, socket.SO_RCVBUF, "receive_buffer", options.receive_buffer, level)
    _report(sockets, socket.SO_SNDBUF, "send_buffer", options.send_buffer, logging.WARNING)


def _report(sockets: list[socket.socket], number: int, option: str, size: int | None, level: int) -> None:
    granted = min((_size(sock, number) for sock in sockets), default=0)
    if size is None or not sockets or granted >= size:
        return
    limit = (
        f"net.core.{'r' if number == socket.SO_RCVBUF else 'w'}mem_max"
        if _ON_LINUX
        else "kern.ipc.maxsockbuf"
    )
    logger.log(
        level,
        "the kernel gives %s=%d only %d bytes; raise its limit with `sysctl -w %s=%d`, or ask for less",
        option,
        size,
        granted,
        limit,
        size,
    )


def _size(sock: socket.socket, number: int) -> int:
    return sock.getsockopt(socket.SOL_SOCKET, number) // _REPORTED_PER_BYTE


def _set_size(sock: socket.socket, number: int, size: int) -> None:
    if number in _FORCED:
        try:
            sock.setsockopt(socket.SOL_SOCKET, _FORCED[number], size)
            return
        except OSError:
            pass  # without the privilege (EPERM), or in a sandbox that knows no such option
    while True:
        try:
            sock.setsockopt(socket.SOL_SOCKET, number, size)
            return
        except OSError as error:
            # The BSDs refuse what is beyond kern.ipc.maxsockbuf where Linux gives what it can.
            if error.errno != errno.ENOBUFS:
                raise
        if size <= _LEAST_BUFFER:
            return
        size //= 2


def _set_multicast(sock: socket.socket, options: DatagramOptions) -> None:
    for version in ip_versions(sock):
        if version == 4:
            level, loop, ttl = socket.IPPROTO_IP, socket.IP_MULTICAST_LOOP, socket.IP_MULTICAST_TTL
        else:
            level, loop, ttl = socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_LOOP, socket.IPV6_MULTICAST_HOPS
        if not options.multicast_loop:
            sock.setsockopt(level, loop, 0)
        if options.multicast_ttl != DEFAULT_MULTICAST_TTL:
            sock.setsockopt(level, ttl, options.multicast_ttl)
