"""Opening Unix sockets for datagrams: bound where they are, because their name is on every reply.

Who receives a datagram is told the name that its sender was *bound* to, and many clients compare that
with the name they have sent to, or answer it. So, unlike a listening socket, one for datagrams
cannot be bound elsewhere and get its name by link(2) (see ``unix_sockets``).

On Linux the file that bind(2) makes has the mode of the socket itself, as set by fchmod(2), less the umask
(unix(7) does not tell; ``unix_mknod()`` in net/unix/af_unix.c). With mode 0 nobody can send to it but the
superuser. Then it gets its owner and its mode, through a descriptor of the file itself, so that a
symbolic link put in its place meanwhile leads nowhere. Other starters are kept out by the lock on the
directory.

Elsewhere it is bound aside after all: that the mode is in force from the start matters more.
"""

from __future__ import annotations

import errno
import os
import socket
import stat
import sys

from asyncserver.address_rules import MAX_UNIX_PATH_BYTES
from asyncserver.addresses import UnixDatagramAddress
from asyncserver.datagram_options import DatagramOptions
from asyncserver.datagram_socket_options import configure_datagrams
from asyncserver.errors import BindError
from asyncserver.unix_sockets import (
    PUBLISH_ATTEMPTS,
    AnyUnixAddress,
    Opened,
    SocketFile,
    Step,
    bind_aside,
    directory_lock,
    directory_reason,
    give_to,
    open_bound,
    plain_reason,
    remove_if_stale,
    wanted_mode,
)

__all__ = ["open_unix_datagram_socket"]

_OF_THE_DIRECTORY = frozenset({errno.ENOENT, errno.ENOTDIR, errno.EACCES, errno.EPERM})


def open_unix_datagram_socket(address: UnixDatagramAddress, options: DatagramOptions) -> Opened:
    """Open a bound, non-blocking socket for datagrams; the file is None for an abstract name.

    Blocks (file operations, and up to 5 s for another starter). The caller closes the socket and
    unlinks the file. Raises ``BindError``; nothing is left behind then.
    """
    return open_bound(
        address,
        socket.SOCK_DGRAM,
        lambda sock: configure_datagrams(sock, options, str(address)),
        lambda _: None,
        _bind_in_place if sys.platform.startswith("linux") else bind_aside,
    )


def _bind_in_place(
    sock: socket.socket, address: AnyUnixAddress, owner: tuple[int, int], start: Step
) -> SocketFile:
    path = os.path.abspath(address.path)
    if wanted_mode(address) is not None:
        os.fchmod(sock.fileno(), 0)
    try:
        with directory_lock(os.path.dirname(path), address):
            _bind(sock, path, address)
            return _make_ready(path, address, owner)
    except BindError:
        raise
    except OSError as error:
        reason = plain_reason(error)
        if error.errno in _OF_THE_DIRECTORY:
            reason = directory_reason(error, os.path.dirname(path))
        raise BindError(str(address), reason, error.errno) from error


def _bind(sock: socket.socket, path: str, address: AnyUnixAddress) -> None:
    """Bind to the path, after removing what a dead server has left there."""
    # Absolute where it fits, so that peers with another working directory can answer it.
    name = path if len(os.fsencode(path)) <= MAX_UNIX_PATH_BYTES else address.path
    for _ in range(PUBLISH_ATTEMPTS):
        try:
            sock.bind(name)
            return
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
        remove_if_stale(path, address)
    raise BindError(str(address), "other programs keep creating and removing this path", errno.EADDRINUSE)


def _make_ready(path: str, address: AnyUnixAddress, owner: tuple[int, int]) -> SocketFile:
    """Owner and mode of the file that was just made; it is removed again if they cannot be."""
    descriptor = os.open(path, os.O_PATH | os.O_NOFOLLOW)
    try:
        made, mode = os.fstat(descriptor), wanted_mode(address)
        if not stat.S_ISSOCK(made.st_mode) or (mode is not None and stat.S_IMODE(made.st_mode)):
            raise BindError(str(address), "another program has taken the path away", errno.EADDRINUSE)
        file = SocketFile(path, made.st_dev, made.st_ino, os.getpid())
        itself = f"/proc/self/fd/{descriptor}"
        try:
            if owner != (-1, -1):
                give_to(itself, address, owner)
            if mode is not None:
                os.chmod(itself, mode)
        except BaseException:
            file.unlink()
            raise
        return file
    finally:
        os.close(descriptor)
