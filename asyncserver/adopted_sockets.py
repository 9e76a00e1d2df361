"""Taking over sockets that somebody else has made: asked what they are, never believed."""

from __future__ import annotations

import errno
import os
import socket
import stat

from asyncserver.addresses import Address, FDAddress, SystemdAddress, TCPAddress, UnixAddress
from asyncserver.errors import AddressError, BindError
from asyncserver.options import SocketOptions
from asyncserver.socket_options import configure_listening
from asyncserver.tcp_sockets import host_with_scope

__all__ = ["adopt_descriptor", "adopt_duplicate"]


def adopt_descriptor(
    descriptor: int, requested: FDAddress | SystemdAddress, options: SocketOptions
) -> tuple[socket.socket, Address]:
    """Make ``descriptor`` a listening, non-blocking socket, and tell the address that it is bound to.

    A socket that is bound and does not listen yet is listened on with ``options.backlog``. What
    concerns connections (TCP_NODELAY, keep-alive, buffers) is set. Being non-blocking is a property of
    the socket and not of the descriptor: whoever shares it sees it too. It is not inherited by
    programs that are executed.

    From here on the returned socket owns the descriptor. Raises ``BindError``, and the descriptor is open
    and the caller's as before.
    """
    sock = _open_stream_socket(descriptor, requested)
    try:
        if not _listens(sock):
            _check_bound(sock, requested)
        os.set_inheritable(descriptor, False)
        sock.setblocking(False)
        configure_listening(sock, options, str(requested))
        if not _listens(sock):
            sock.listen(options.backlog)
        return sock, _bound_address(sock, requested)
    except BindError:
        sock.detach()
        raise
    except OSError as error:
        sock.detach()
        raise BindError(str(requested), os.strerror(error.errno or 0), error.errno) from error


def adopt_duplicate(
    descriptor: int, requested: FDAddress | SystemdAddress, options: SocketOptions
) -> tuple[socket.socket, Address]:
    """As ``adopt_descriptor``, with a duplicate of ``descriptor``, which stays open and the caller's."""
    try:
        duplicate = os.dup(descriptor)
    except OSError as error:
        raise _not_open(descriptor, requested, error) from error
    try:
        return adopt_descriptor(duplicate, requested, options)
    except BaseException:
        os.close(duplicate)
        raise


def _open_stream_socket(descriptor: int, requested: Address) -> socket.socket:
    try:
        mode = os.fstat(descriptor).st_mode
    except OSError as error:
        raise _not_open(descriptor, requested, error) from error
    if not stat.S_ISSOCK(mode):
        reason = f"descriptor {descriptor} is {_kind(descriptor, mode)}, not a socket"
        raise BindError(str(requested), reason, errno.ENOTSOCK)
    sock = socket.socket(fileno=descriptor)
    families = (socket.AF_INET, socket.AF_INET6, getattr(socket, "AF_UNIX", None))
    if sock.family not in families or sock.type != socket.SOCK_STREAM:
        reason = f"descriptor {descriptor} is {_describe(sock)}; a stream socket (TCP or Unix) is needed"
        sock.detach()
        raise BindError(str(requested), reason, errno.EPROTOTYPE)
    return sock


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


def _describe(sock: socket.socket) -> str:
    if sock.type == socket.SOCK_DGRAM:
        return "a datagram socket"
    # Families and types that Python has no name for stay plain numbers.
    family, kind = getattr(sock.family, "name", sock.family), getattr(sock.type, "name", sock.type)
    return f"a socket of family {family} and type {kind}"


def _listens(sock: socket.socket) -> bool:
    return bool(sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))


def _check_bound(sock: socket.socket, requested: Address) -> None:
    descriptor = sock.fileno()
    if _is_connected(sock):
        reason = f"descriptor {descriptor} is a connection (a systemd unit with Accept=yes passes those)"
        raise BindError(str(requested), f"{reason}; a listening socket is needed", errno.EISCONN)
    where = sock.getsockname()
    if not (where[1] if isinstance(where, tuple) else where):
        reason = f"descriptor {descriptor} is a socket that is not bound to an address"
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


def _bound_address(sock: socket.socket, requested: FDAddress | SystemdAddress) -> Address:
    """What ``sock`` is bound to, or ``requested`` where our addresses have no words for it."""
    where = sock.getsockname()
    tls = requested.tls
    try:
        if sock.family == socket.AF_INET:
            return TCPAddress(where[0], where[1], tls=tls)
        if sock.family == socket.AF_INET6:
            return TCPAddress(host_with_scope(where), where[1], tls=tls, dual_stack=_dual_stack(sock, where))
        if isinstance(where, bytes):
            where = "@" + os.fsdecode(where[1:])
        elif where.startswith("@"):
            where = f"./{where}"
        return UnixAddress(where, tls=tls)
    except AddressError:
        return requested


def _dual_stack(sock: socket.socket, where: tuple[str | int, ...]) -> bool | None:
    if where[0] != "::":
        return None
    return None if sock.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY) else True
