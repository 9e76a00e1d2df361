"""Taking over sockets that somebody else has made: asked what they are, never believed."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
from collections.abc import Callable, Generator
from typing import TypeAlias, TypeVar

from asyncserver.addresses import (
    Address,
    DatagramAddress,
    FDAddress,
    StreamAddress,
    SystemdAddress,
    TCPAddress,
    UDPAddress,
    UnixAddress,
    UnixDatagramAddress,
)
from asyncserver.datagram_options import DatagramOptions
from asyncserver.datagram_socket_options import configure_datagrams
from asyncserver.errors import AddressError, BindError
from asyncserver.ip_sockets import host_with_scope
from asyncserver.options import SocketOptions
from asyncserver.socket_options import configure_listening

__all__ = [
    "adopt_datagram_descriptor",
    "adopt_datagram_duplicate",
    "adopt_descriptor",
    "adopt_duplicate",
]

B = TypeVar("B", bound=Address)
_Requested: TypeAlias = FDAddress | SystemdAddress
_IP_FAMILIES = (socket.AF_INET, socket.AF_INET6)
_IPPROTO_UDPLITE = 136
_DATAGRAM_PROTOCOLS = frozenset({0, socket.IPPROTO_UDP, _IPPROTO_UDPLITE})


def adopt_descriptor(
    descriptor: int, requested: FDAddress | SystemdAddress, options: SocketOptions
) -> tuple[socket.socket, StreamAddress]:
    """Make ``descriptor`` a listening, non-blocking socket, and tell the address that it is bound to.

    A socket that is bound and does not listen yet is listened on with ``options.backlog``. What
    concerns connections (TCP_NODELAY, keep-alive, buffers) is set. Being non-blocking is a property of
    the socket and not of the descriptor: whoever shares it sees it too. It is not inherited by
    programs that are executed.

    From here on the returned socket owns the descriptor. Raises ``BindError``, and the descriptor is open
    and the caller's as before.
    """
    sock = _open_socket(descriptor, requested, socket.SOCK_STREAM)
    with _given_back_after_an_error(sock, requested):
        if not _listens(sock):
            _check_not_a_connection(sock, requested)
            _check_bound(sock, requested)
        os.set_inheritable(descriptor, False)
        sock.setblocking(False)
        configure_listening(sock, options, str(requested))
        if not _listens(sock):
            sock.listen(options.backlog)
        return sock, _stream_address(sock, requested)


def adopt_datagram_descriptor(
    descriptor: int, requested: FDAddress | SystemdAddress, options: DatagramOptions
) -> tuple[socket.socket, DatagramAddress]:
    """Make ``descriptor`` a non-blocking socket for datagrams, and tell the address that it is bound to.

    It has to be bound, and must not be connected: it would receive from one peer alone. What differs from
    the defaults in ``options`` is set; multicast groups are not joined here. All else is as with
    ``adopt_descriptor``.
    """
    sock = _open_socket(descriptor, requested, socket.SOCK_DGRAM)
    with _given_back_after_an_error(sock, requested):
        _check_not_connected(sock, requested)
        _check_bound(sock, requested)
        os.set_inheritable(descriptor, False)
        sock.setblocking(False)
        configure_datagrams(sock, options, str(requested))
        return sock, _datagram_address(sock, requested)


def adopt_duplicate(
    descriptor: int, requested: FDAddress | SystemdAddress, options: SocketOptions
) -> tuple[socket.socket, StreamAddress]:
    """As ``adopt_descriptor``, with a duplicate of ``descriptor``, which stays open and the caller's."""
    return _adopt_duplicate(
        descriptor, requested, lambda duplicate: adopt_descriptor(duplicate, requested, options)
    )


def adopt_datagram_duplicate(
    descriptor: int, requested: FDAddress | SystemdAddress, options: DatagramOptions
) -> tuple[socket.socket, DatagramAddress]:
    """As ``adopt_datagram_descriptor``, with a duplicate of ``descriptor``, which stays the caller's."""
    return _adopt_duplicate(
        descriptor, requested, lambda duplicate: adopt_datagram_descriptor(duplicate, requested, options)
    )


def _adopt_duplicate(
    descriptor: int, requested: _Requested, adopt: Callable[[int], tuple[socket.socket, B]]
) -> tuple[socket.socket, B]:
    try:
        duplicate = os.dup(descriptor)
    except OSError as error:
        raise _not_open(descriptor, requested, error) from error
    try:
        return adopt(duplicate)
    except BaseException:
        os.close(duplicate)
        raise


@contextlib.contextmanager
def _given_back_after_an_error(sock: socket.socket, requested: _Requested) -> Generator[None]:
    """``sock`` forgets the descriptor after an error; one of the kernel becomes a ``BindError``."""
    try:
        yield
    except OSError as error:
        sock.detach()
        if isinstance(error, BindError):
            raise
        raise BindError(str(requested), os.strerror(error.errno or 0), error.errno) from error
    except BaseException:
        sock.detach()
        raise


def _open_socket(descriptor: int, requested: _Requested, kind: socket.SocketKind) -> socket.socket:
    try:
        mode = os.fstat(descriptor).st_mode
    except OSError as error:
        raise _not_open(descriptor, requested, error) from error
    if not stat.S_ISSOCK(mode):
        reason = f"descriptor {descriptor} is {_kind(descriptor, mode)}, not a socket"
        raise BindError(str(requested), reason, errno.ENOTSOCK)
    sock = socket.socket(fileno=descriptor)
    if not _is_of_kind(sock, kind):
        needed = (
            "a stream socket (TCP or Unix)"
            if kind == socket.SOCK_STREAM
            else "a datagram socket (UDP or Unix)"
        )
        reason = f"descriptor {descriptor} is {_describe(sock, kind)}; {needed} is needed"
        sock.detach()
        raise BindError(str(requested), reason, errno.EPROTOTYPE)
    return sock


def _is_of_kind(sock: socket.socket, kind: socket.SocketKind) -> bool:
    if sock.family not in (*_IP_FAMILIES, getattr(socket, "AF_UNIX", None)):
        return False
    # "Ping sockets" (ICMP) are datagram sockets too.
    return sock.type == kind and (kind == socket.SOCK_STREAM or sock.proto in _DATAGRAM_PROTOCOLS)


def _not_open(descriptor: int, requested: Address, error: OSError) -> BindError:
    if error.errno != errno.EBADF:
        return BindError(str(requested), os.strerror(error.errno or 0), error.errno)
    reason = f"descriptor {descriptor} is not open (a server that has adopted one closes it at its end)"
    return BindError(str(requested), reason, errno.EBADF)


def _kind(descriptor: int, mode: int) -> str:
    if stat.S_ISREG(mode):
        return "a regular file"
    if stat.S_ISDIR(mode):
        return "a directory"
    if stat.S_ISFIFO(mode):
        return "a pipe"
    return "a terminal" if os.isatty(descriptor) else "something else"


def _describe(sock: socket.socket, needed: socket.SocketKind) -> str:
    if sock.type != needed and sock.type == socket.SOCK_DGRAM:
        return "a datagram socket"
    if sock.type != needed and sock.type == socket.SOCK_STREAM:
        return "a stream socket"
    # Families and types that Python has no name for stay plain numbers.
    family, kind = getattr(sock.family, "name", sock.family), getattr(sock.type, "name", sock.type)
    protocol = f", protocol {sock.proto}" if sock.type == needed else ""
    return f"a socket of family {family} and type {kind}{protocol}"


def _listens(sock: socket.socket) -> bool:
    return bool(sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))


def _check_not_a_connection(sock: socket.socket, requested: Address) -> None:
    if _is_connected(sock):
        reason = f"descriptor {sock.fileno()} is a connection (a systemd unit with Accept=yes passes those)"
        raise BindError(str(requested), f"{reason}; a listening socket is needed", errno.EISCONN)


def _check_not_connected(sock: socket.socket, requested: Address) -> None:
    if _is_connected(sock):
        reason = f"descriptor {sock.fileno()} is a datagram socket that is connected to one peer"
        raise BindError(str(requested), f"{reason}; one that is bound only is needed", errno.EISCONN)


def _check_bound(sock: socket.socket, requested: Address) -> None:
    where = sock.getsockname()
    if not (where[1] if isinstance(where, tuple) else where):
        reason = f"descriptor {sock.fileno()} is a socket that is not bound to an address"
        raise BindError(str(requested), reason, errno.EINVAL)


def _is_connected(sock: socket.socket) -> bool:
    try:
        sock.getpeername()
    except OSError as error:
        if error.errno == errno.ENOTCONN:
            return False
        # EINVAL: the other side of a connection is gone already (macOS).
        return error.errno == errno.EINVAL
    return True


def _stream_address(sock: socket.socket, requested: _Requested) -> StreamAddress:
    """What ``sock`` is bound to, or ``requested`` where our addresses have no words for it."""
    where = sock.getsockname()
    tls = requested.tls
    try:
        if sock.family in _IP_FAMILIES:
            dual_stack = _dual_stack(sock, where)
            return TCPAddress(host_with_scope(where), where[1], tls=tls, dual_stack=dual_stack)
        return UnixAddress(_unix_path(where), tls=tls)
    except AddressError:
        return requested


def _datagram_address(sock: socket.socket, requested: _Requested) -> DatagramAddress:
    where = sock.getsockname()
    try:
        if sock.family in _IP_FAMILIES:
            return UDPAddress(host_with_scope(where), where[1], dual_stack=_dual_stack(sock, where))
        return UnixDatagramAddress(_unix_path(where))
    except AddressError:
        return requested


def _unix_path(name: str | bytes) -> str:
    """The name of a Unix socket as addresses have it; abstract names are bytes that begin with a zero."""
    if isinstance(name, bytes):
        return "@" + os.fsdecode(name[1:])
    return f"./{name}" if name.startswith("@") else name


def _dual_stack(sock: socket.socket, where: tuple[str | int, ...]) -> bool | None:
    if where[0] != "::":
        return None
    return None if sock.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY) else True
