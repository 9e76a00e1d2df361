"""What listening sockets and those for datagrams have in common: whose they are, and how they end."""

from __future__ import annotations

import contextlib
import socket as _socket
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

from asyncserver.addresses import Address, FDAddress
from asyncserver.errors import BindError
from asyncserver.unix_sockets import SocketFile

__all__ = ["BoundSocket", "open_all"]

A = TypeVar("A", bound=Address)


@dataclass(slots=True, eq=False)
class BoundSocket(Generic[A]):
    """A socket that is bound, and what belongs to it. Whoever opened it calls ``release``."""

    socket: _socket.socket
    """Non-blocking. Its own name says nothing about a Unix socket: see ``address``."""

    address: A
    """What it is bound to: a numeric host and the real port, or the path as it was asked for."""

    requested: A
    """The address that asked for it; one can ask for several sockets."""

    file: SocketFile | None = None
    """The file to unlink at the end; None for all but Unix sockets that were opened here."""

    _releasing: threading.Lock = field(default_factory=threading.Lock, init=False, repr=False)

    def release(self) -> None:
        """Unlink the path of a Unix socket if it is still ours, and close the socket.

        Blocks (file operations). Can be called any number of times, from any thread. A forked child closes
        its copy of the socket only. An adopted descriptor is closed, and its path stays.
        """
        with self._releasing:
            if self.file is not None:
                # First, so that nobody connects or sends to a socket that is about to close, and while the
                # open socket keeps its inode number from being given to another file.
                self.file.unlink()
                self.file = None
            self.socket.close()

    def abandon(self) -> None:
        """Undo the opening: as ``release``, but a descriptor from ``fd://`` stays open, as it was found."""
        if isinstance(self.requested, FDAddress):
            self.socket.detach()
        else:
            self.release()


class _Undoable(Protocol):
    def abandon(self) -> None: ...


S = TypeVar("S", bound=_Undoable)
B = TypeVar("B", bound=Address)


def open_all(
    addresses: Sequence[B], open_one: Callable[[B], Iterable[S]], undo: contextlib.ExitStack
) -> list[S]:
    """The sockets of all ``addresses``, in their order; to abandon them is what ``undo`` does.

    ``open_one`` yields each socket as soon as it is there, so that it is undone if a later one fails. Raises
    ``BindError`` if a descriptor is given twice, before anything is opened.
    """
    _check_descriptors_differ(addresses)
    opened: list[S] = []
    for address in addresses:
        for sock in open_one(address):
            undo.callback(sock.abandon)
            opened.append(sock)
    return opened


def _check_descriptors_differ(addresses: Sequence[Address]) -> None:
    seen: set[int] = set()
    for address in addresses:
        if isinstance(address, FDAddress):
            if address.fd in seen:
                raise BindError(str(address), "the descriptor is given twice; it can have one owner only")
            seen.add(address.fd)
