"""Opening Unix sockets: nobody can connect too early, and nobody loses a path that is in use.

How a path comes to be. Three ways suggest themselves:

- *bind(2) at the path, then chmod(2) and chown(2)*. Between the two the file has the wrong mode, and
  until listen(2) the path looks dead to everybody who asks: connect(2) gives ECONNREFUSED, as for
  a file that a crashed server left behind. Where others may write to the directory, chmod and chown
  can be led elsewhere by a symbolic link put in the path's place.
- *umask(2) around bind*. It belongs to the whole process: other threads that create a file in
  the meantime get it too. And it sets no owner.
- *bind elsewhere, make it ready, and give it the name last*. That is what is done here.

The socket is bound inside a fresh directory of mode 0700 beside the path, where nobody else can
reach it or swap it for something. There it gets its mode and owner, and listens. Then link(2) gives it its
real name, which is atomic and, unlike rename(2), fails with EEXIST instead of taking the path away from a
server that came first. A hard link to a socket is as good as its first name: connect(2) goes by the
inode. Whoever sees the path sees a socket that accepts connections, with everything in force. (For datagrams
it is done in another way, on Linux: see ``unix_datagram_sockets``.)

What it costs: getsockname(2), and so ss(8), show the name that was bound (``/run/.k3x9d1qz/app.sock``), on
accepted sockets too. So the path of a listening socket is remembered and not asked for. A process
that is killed in between leaves the private directory behind. Where the file system has no hard
links, or the kernel forbids one to a file that was given to another owner (protected_hardlinks in
proc(5)), rename(2) takes the place of link, after a look that the path is free.

What stands at the path already. Only a socket that belongs to no process is removed, never any other
kind of file. Whether it belongs to one is asked with a *datagram* socket: connect(2) gives EPROTOTYPE if a
stream socket is bound there, be it listening yet or not and its queue full or not, and ECONNREFUSED if
none is; the server that is there does not notice. (A stream socket's ECONNREFUSED can also mean
"not listening yet", and on the BSDs "queue full".) If a datagram socket is bound there connect
succeeds, however full its queue is, and sends nothing, so that this server does not notice either. (Linux
gives EPERM for one that is itself connected to somebody else, EACCES where the file's mode forbids it.)
Between the answer and the removal another starter may have done the same and put its own socket
there, so both happen under a flock(2) on the directory, which all servers of this package take and
which leaves no lock file behind.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import socket
import stat
import sys
import tempfile
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import TypeAlias

from asyncserver.address_rules import MAX_UNIX_PATH_BYTES
from asyncserver.addresses import UnixAddress, UnixDatagramAddress
from asyncserver.errors import BindError
from asyncserver.options import SocketOptions
from asyncserver.socket_options import configure_listening

if sys.platform != "win32":
    import fcntl
    import grp
    import pwd

__all__ = [
    "PUBLISH_ATTEMPTS",
    "AnyUnixAddress",
    "Opened",
    "SocketFile",
    "Step",
    "bind_aside",
    "directory_lock",
    "directory_reason",
    "give_to",
    "open_bound",
    "open_unix_socket",
    "plain_reason",
    "remove_if_stale",
    "wanted_mode",
]

logger: logging.Logger = logging.getLogger("asyncserver")

AnyUnixAddress: TypeAlias = UnixAddress | UnixDatagramAddress
Step: TypeAlias = Callable[[socket.socket], None]
Opened: TypeAlias = tuple[socket.socket, "SocketFile | None"]
_BindPath: TypeAlias = Callable[[socket.socket, AnyUnixAddress, tuple[int, int], Step], "SocketFile"]

# Others of us hold the lock for a few system calls; somebody who holds it longer is not one of us.
_LOCK_SECONDS = 5.0
_LOCK_POLL_SECONDS = 0.01
PUBLISH_ATTEMPTS = 10
_NO_HARD_LINK = frozenset({errno.EPERM, errno.EMLINK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP})
_ON_LINUX = sys.platform.startswith("linux")
_IN_USE = frozenset({0, errno.EPROTOTYPE, errno.EPERM} if _ON_LINUX else {0, errno.EPROTOTYPE})
_SHORT_NAME = "s"
_GROUP_DEFAULT_MODE = 0o660

_KINDS = {
    stat.S_IFREG: "a regular file",
    stat.S_IFDIR: "a directory",
    stat.S_IFLNK: "a symbolic link",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


@dataclass(frozen=True, slots=True)
class SocketFile:
    """The file of a Unix socket that this process has made."""

    path: str
    """Absolute, so that it outlives a change of the working directory."""
    device: int
    inode: int
    process: int

    def unlink(self) -> None:
        """Remove the file, unless another one has taken its place or this is a forked child.

        Call it while the socket is still open: that keeps the inode number from being used again.
        Never raises ``OSError``; what prevents the removal is logged.
        """
        if os.getpid() != self.process:
            return
        try:
            found = os.lstat(self.path)
            if (found.st_dev, found.st_ino) == (self.device, self.inode):
                os.unlink(self.path)
        except FileNotFoundError:
            pass
        except OSError as error:
            logger.warning("cannot remove the socket %s: %s", self.path, error.strerror)


def open_unix_socket(address: UnixAddress, options: SocketOptions) -> Opened:
    """Open a listening, non-blocking socket; the file is None for an abstract name.

    Blocks (file operations, and up to 5 s for another starter). The caller closes the socket and
    unlinks the file. Raises ``BindError``; nothing is left behind then.
    """
    return open_bound(
        address,
        socket.SOCK_STREAM,
        lambda sock: configure_listening(sock, options, str(address)),
        lambda sock: sock.listen(address.backlog or options.backlog),
        bind_aside,
    )


def open_bound(
    address: AnyUnixAddress, kind: socket.SocketKind, configure: Step, start: Step, bind_path: _BindPath
) -> Opened:
    """Make a socket, ``configure`` it, bind it (to a path by ``bind_path``), and ``start`` it."""
    if not hasattr(socket, "AF_UNIX"):
        raise BindError(str(address), "this platform has no Unix sockets")
    owner = _resolve_owner(address)
    sock = socket.socket(socket.AF_UNIX, kind)
    try:
        sock.setblocking(False)
        configure(sock)
        if address.is_abstract:
            _bind_abstract(sock, address)
            start(sock)
            return sock, None
        return sock, bind_path(sock, address, owner, start)
    except BaseException:
        sock.close()
        raise


def _bind_abstract(sock: socket.socket, address: AnyUnixAddress) -> None:
    if not _ON_LINUX:
        raise BindError(str(address), "abstract names exist on Linux only; use a path")
    try:
        sock.bind(b"\0" + os.fsencode(address.path[1:]))
    except OSError as error:
        reason = "the name is in use by another socket; find it with `ss -lxp`"
        if error.errno != errno.EADDRINUSE:
            reason = plain_reason(error)
        raise BindError(str(address), reason, error.errno) from error


def bind_aside(
    sock: socket.socket, address: AnyUnixAddress, owner: tuple[int, int], start: Step
) -> SocketFile:
    """Bind, make ready, and give it its name last; raises ``BindError``."""
    path = os.path.abspath(address.path)
    with _private_directory(address, os.path.dirname(path)) as directory:
        try:
            temporary = _bind_inside(sock, directory, os.path.basename(path), address)
            _set_mode_and_owner(temporary, address, owner)
            start(sock)
            made = os.lstat(temporary)
            _publish(temporary, path, address)
        except BindError:
            raise
        except OSError as error:
            raise BindError(str(address), plain_reason(error), error.errno) from error
    return SocketFile(path, made.st_dev, made.st_ino, os.getpid())


# -- making the socket ready -----------------------------------------------------------------------


@contextlib.contextmanager
def _private_directory(address: AnyUnixAddress, parent: str) -> Generator[str]:
    try:
        directory = tempfile.TemporaryDirectory(prefix=".", dir=parent, ignore_cleanup_errors=True)
    except OSError as error:
        raise BindError(str(address), directory_reason(error, parent), error.errno) from error
    with directory as name:
        yield name


def directory_reason(error: OSError, parent: str) -> str:
    """Why nothing can be made in a directory, and what to do."""
    if error.errno == errno.ENOENT:
        return f"the directory {parent} does not exist; create it (RuntimeDirectory= in a systemd unit)"
    if error.errno == errno.ENOTDIR:
        return f"{parent} is not a directory"
    if error.errno in (errno.EACCES, errno.EPERM):
        return f"this user may not create files in the directory {parent}"
    return plain_reason(error)


def _bind_inside(sock: socket.socket, directory: str, name: str, address: AnyUnixAddress) -> str:
    """Bind inside the private directory and return the path; the name is kept for ss(8) where it fits."""
    for candidate in (name, _SHORT_NAME):
        path = os.path.join(directory, candidate)
        if len(os.fsencode(path)) <= MAX_UNIX_PATH_BYTES:
            sock.bind(path)
            return path
    path = os.path.join(directory, _SHORT_NAME)
    if not _ON_LINUX:
        excess = len(os.fsencode(path)) - MAX_UNIX_PATH_BYTES
        raise BindError(str(address), f"the directory's path is {excess} bytes too long for a temporary name")
    descriptor = os.open(directory, os.O_PATH | os.O_DIRECTORY)
    try:
        sock.bind(f"/proc/self/fd/{descriptor}/{_SHORT_NAME}")
    finally:
        os.close(descriptor)
    return path


def _set_mode_and_owner(path: str, address: AnyUnixAddress, owner: tuple[int, int]) -> None:
    mode = wanted_mode(address)
    if mode is not None:
        os.chmod(path, mode)  # before chown: afterwards the file may be somebody else's
    if owner != (-1, -1):
        give_to(path, address, owner)


def wanted_mode(address: AnyUnixAddress) -> int | None:
    """The permission bits that the address asks for; None leaves them to the umask."""
    if address.mode is None and address.group is not None:
        return _GROUP_DEFAULT_MODE
    return address.mode


def give_to(path: str, address: AnyUnixAddress, owner: tuple[int, int]) -> None:
    """Set user and group."""
    try:
        os.chown(path, *owner)
    except PermissionError as error:
        reason = "this user may not give the socket away; a group has to be one of the user's own"
        raise BindError(str(address), reason, error.errno) from error


def _resolve_owner(address: AnyUnixAddress) -> tuple[int, int]:
    return _user_id(address), _group_id(address)


def _user_id(address: AnyUnixAddress) -> int:
    if not isinstance(address.user, str):
        return -1 if address.user is None else address.user
    try:
        return pwd.getpwnam(address.user).pw_uid
    except KeyError:
        raise BindError(str(address), f"there is no user {address.user!r} on this machine") from None


def _group_id(address: AnyUnixAddress) -> int:
    if not isinstance(address.group, str):
        return -1 if address.group is None else address.group
    try:
        return grp.getgrnam(address.group).gr_gid
    except KeyError:
        raise BindError(str(address), f"there is no group {address.group!r} on this machine") from None


# -- giving it its name ----------------------------------------------------------------------------


def _publish(temporary: str, path: str, address: AnyUnixAddress) -> None:
    if _take_free_name(temporary, path):
        return
    with directory_lock(os.path.dirname(path), address):
        for _ in range(PUBLISH_ATTEMPTS):
            remove_if_stale(path, address)
            if _take_free_name(temporary, path):
                return
    raise BindError(str(address), "other programs keep creating and removing this path", errno.EADDRINUSE)


def _take_free_name(temporary: str, path: str) -> bool:
    try:
        os.link(temporary, path)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in _NO_HARD_LINK:
            raise
        if os.path.lexists(path):
            return False
        os.rename(temporary, path)
    return True


@contextlib.contextmanager
def directory_lock(directory: str, address: AnyUnixAddress) -> Generator[None]:
    """Keep other starters out while a path is asked about and taken; raises ``BindError`` and ``OSError``."""
    try:
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    except PermissionError:
        # Write and search permission are enough to create a socket, and nobody else could lock it either
        # without the permission to read: go on with the checks alone.
        yield
        return
    try:
        _wait_for_lock(descriptor, directory, address)
        yield
    finally:
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_UN)
        os.close(descriptor)


def _wait_for_lock(descriptor: int, directory: str, address: AnyUnixAddress) -> None:
    deadline = time.monotonic() + _LOCK_SECONDS
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                reason = f"another process holds a lock on the directory {directory}"
                raise BindError(str(address), reason, errno.EADDRINUSE) from None
            time.sleep(_LOCK_POLL_SECONDS)
        except OSError:
            return  # a file system without locks, as some network ones: the checks have to do
        else:
            return


def remove_if_stale(path: str, address: AnyUnixAddress) -> None:
    """Remove a socket that belongs to no process; raise ``BindError`` for whatever must stay."""
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(found.st_mode):
        kind = _KINDS.get(stat.S_IFMT(found.st_mode), "something else")
        reason = f"there is {kind} at this path, not a socket; choose another path or remove it"
        raise BindError(str(address), reason, errno.EEXIST)
    answer = _ask(path, address)
    if answer == errno.ECONNREFUSED:
        _remove_stale(path, found, address)
    elif answer in _IN_USE:
        reason = (
            "another server has a socket open at this path, perhaps this one, started before; "
            "choose another path, or see who has it: `ss -lxp`"
        )
        raise BindError(str(address), reason, errno.EADDRINUSE)
    elif answer in (errno.EACCES, errno.EPERM):  # the second one outside Linux
        reason = "there is a socket at this path, and this user may not ask whether it is in use"
        raise BindError(str(address), reason, errno.EADDRINUSE)
    elif answer != errno.ENOENT:
        raise BindError(str(address), f"cannot ask the socket at this path: {os.strerror(answer)}", answer)


def _remove_stale(path: str, asked: os.stat_result, address: AnyUnixAddress) -> None:
    try:
        found = os.lstat(path)
        # Programs that take no lock may have replaced it; the next round asks about the new one.
        if (found.st_dev, found.st_ino) == (asked.st_dev, asked.st_ino):
            os.unlink(path)
    except FileNotFoundError:
        pass
    except PermissionError as error:
        reason = "there is a socket of a dead server at this path, which this user may not remove"
        raise BindError(str(address), reason, errno.EADDRINUSE) from error


def _ask(path: str, address: AnyUnixAddress) -> int:
    fits = len(os.fsencode(path)) <= MAX_UNIX_PATH_BYTES
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as probe:
        probe.setblocking(False)
        return probe.connect_ex(path if fits else address.path)


def plain_reason(error: OSError) -> str:
    """The system's words."""
    return os.strerror(error.errno) if error.errno else str(error)
