"""Options of listening sockets and of the connections accepted from them.

These are values: checked when they are made, applied by ``asyncserver.sockets``.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from asyncserver.checks import names_fields
from asyncserver.errors import OptionError

__all__ = ["MAX_BACKLOG", "KeepAlive", "SocketOptions"]

# listen(2) takes an int, but FreeBSD and macOS have kept it in 16 bits and turn anything larger
# into something small, so this is the most that can be asked for everywhere.
MAX_BACKLOG = 0xFFFF

# The default length of the accept queue.
#
# - Too short is expensive and silent. When the queue is full, Linux drops the SYN or the final ACK
#   of the handshake and the client's kernel tries again after 1, 3, 7, 15 ... seconds: 1,000 clients
#   that connect at once to a backlog of 5 (the standard library's) need 50 s, and 0.1 s with a
#   queue that is long enough. A server of this package that is at max_connections does not accept
#   at all, so the queue is where a burst waits.
# - Too long costs next to nothing: the queue grows with the connections in it, a few hundred bytes
#   of kernel memory each.
# - The kernel caps it without a word at net.core.somaxconn (4096 since Linux 5.4, 128 before and
#   on macOS). trio asks for 65,535 and leaves the rest to the cap, Go reads somaxconn and asks for
#   that. We ask for what a current Linux gives, so that the warning about the cap is seen exactly
#   where a machine gives less.
_DEFAULT_BACKLOG = 4096

# Linux: MAX_TCP_KEEPIDLE, MAX_TCP_KEEPINTVL and MAX_TCP_KEEPCNT in include/net/tcp.h.
_MAX_KEEP_ALIVE_SECONDS = 32767
_MAX_KEEP_ALIVE_PROBES = 127
_MAX_BUFFER = 2**30 - 1


@names_fields
@dataclass(frozen=True, slots=True, kw_only=True)
class KeepAlive:
    """When the kernel asks a silent TCP peer whether it is still there, and when it gives up.

    A dead peer (power cut, cable, a NAT that forgot) is noticed after ``idle + probes * interval``
    seconds without a byte; the handler then sees a broken connection. Kernels count in whole
    seconds, so anything else is an ``OptionError``.
    """

    # The default finds a dead peer in two minutes, where Linux left alone needs two hours and eleven
    # minutes. 60 s is also below the idle timeouts of what stands in between (AWS's load balancers
    # 350 s, Azure's 240 s, home routers a few minutes), so that a quiet connection stays known to
    # them. Four probes lost in a row, 15 s apart, are a dead peer and not a lossy network. The price is
    # one empty packet a minute for each idle connection.

    idle: float = 60.0
    """Seconds without a byte before the first probe; a whole number from 1 to 32,767."""

    interval: float = 15.0
    """Seconds between probes that are not answered; a whole number from 1 to 32,767."""

    probes: int = 4
    """Unanswered probes after which the connection is broken; 1 to 127."""

    def __post_init__(self) -> None:
        _check_seconds("idle", self.idle)
        _check_seconds("interval", self.interval)
        _check_int("probes", self.probes, 1, _MAX_KEEP_ALIVE_PROBES)


@names_fields
@dataclass(frozen=True, slots=True, kw_only=True)
class SocketOptions:
    """What the sockets of a server are set to; for adopted ones, only what concerns connections.

    ``reuse_port`` and ``backlog`` can also be given in an address, for that address alone.
    """

    # -- listening -------------------------------------------------------------------------------

    backlog: int = _DEFAULT_BACKLOG
    """Connections that may wait in the kernel to be accepted; 1 to 65,535.

    A kernel that allows less takes less (``net.core.somaxconn`` on Linux, where a warning is
    logged; ``kern.ipc.somaxconn`` on macOS). Has no effect on a descriptor that was listening
    already when it was adopted. ``Limits.max_connections`` counts accepted connections only: those
    in this queue come on top.
    """

    reuse_address: bool = True
    """SO_REUSEADDR: the port can be bound while closed connections of a former server linger on it.

    Without it a restart fails for about a minute. It does not let two servers share a port on POSIX.
    On Windows it would, so there it is never set, and SO_EXCLUSIVEADDRUSE is set instead.
    """

    reuse_port: bool = False
    """SO_REUSEPORT: several sockets, also of several processes of one user, listen on one port.

    Linux and FreeBSD (SO_REUSEPORT_LB aside) share the connections out among them, macOS gives all of
    them to one. Every socket on the port must ask for it. An ``OptionError`` where the platform has
    none. Concerns TCP only.
    """

    # -- connections -----------------------------------------------------------------------------

    no_delay: bool = True
    """TCP_NODELAY: bytes leave at once instead of waiting for the acknowledgement of earlier ones.

    A stream joins what is sent in one turn of the event loop into one system call, so Nagle's
    algorithm would only add its delay (up to 40 ms against a peer that delays its ACKs).
    """

    keep_alive: KeepAlive | None = field(default_factory=KeepAlive)
    """SO_KEEPALIVE and its times for TCP; ``None`` leaves it off.

    Finds peers that vanished without a word. ``Timeouts.idle`` closes connections of peers that
    are there and silent; a server that has no such deadline should keep this.
    """

    receive_buffer: int | None = None
    """SO_RCVBUF in bytes; ``None`` leaves it to the kernel, which sizes it by the connection's speed.

    Setting it turns that sizing off. The kernel may give less (``net.core.rmem_max``): a warning
    is logged.
    """

    send_buffer: int | None = None
    """SO_SNDBUF in bytes; ``None`` leaves it to the kernel, which sizes it by the connection's speed.

    Setting it turns that sizing off. Bytes in it count as sent: neither a send timeout nor the
    stream's own buffer limit sees them. The kernel may give less (``net.core.wmem_max``): a
    warning is logged.
    """

    def __post_init__(self) -> None:
        _check_int("backlog", self.backlog, 1, MAX_BACKLOG)
        _check_bool("reuse_address", self.reuse_address)
        _check_bool("reuse_port", self.reuse_port)
        _check_bool("no_delay", self.no_delay)
        if self.keep_alive is not None and not isinstance(self.keep_alive, KeepAlive):
            raise OptionError("keep_alive", self.keep_alive, "must be a KeepAlive, or None for off")
        if self.receive_buffer is not None:
            _check_int("receive_buffer", self.receive_buffer, 1, _MAX_BUFFER)
        if self.send_buffer is not None:
            _check_int("send_buffer", self.send_buffer, 1, _MAX_BUFFER)


def _check_bool(option: str, value: object) -> None:
    if not isinstance(value, bool):
        raise OptionError(option, value, "must be True or False")


def _check_int(option: str, value: object, least: int, most: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise OptionError(option, value, "must be a whole number")
    if not least <= value <= most:
        raise OptionError(option, value, f"must be {least} to {most}")


def _check_seconds(option: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise OptionError(option, value, "must be a number of seconds")
    if not 1 <= value <= _MAX_KEEP_ALIVE_SECONDS:  # also false for nan
        raise OptionError(option, value, f"must be 1 to {_MAX_KEEP_ALIVE_SECONDS} seconds")
    if value != int(value):
        raise OptionError(option, value, "must be whole seconds, as the kernel counts them")
