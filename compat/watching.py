"""What tells an event loop that a server's descriptor, or that of a child process, is ready."""

from __future__ import annotations

import asyncio
import errno
import os
import select
import stat
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Protocol

__all__ = ["EpollWatch", "LoopWatch", "UnwatchableError", "Watch", "check_watchable", "open_watch"]


class UnwatchableError(OSError):
    """Nothing can be waited for: a regular file is always ready (epoll_ctl(2), EPERM)."""


class Watch(Protocol):
    """Calls back in the loop, again and again while a descriptor is ready."""

    def set_request(self, fd: int | None) -> None:
        """Watch this descriptor for requests, and no other."""

    def add_child(self, fd: int) -> None:
        """Watch a child's descriptor as well (pidfd_open(2))."""

    def remove_child(self, fd: int) -> None:
        """Watch it no more. It has to be open still."""

    def renew(self) -> None:
        """Forget the descriptor for requests, whatever file that may be by now."""

    def close(self) -> None:
        """Watch nothing any more."""

    def abandon(self) -> None:
        """In a forked child: leave the parent's alone."""


class EpollWatch:
    """One epoll object, which alone is registered with the loop. Linux only.

    uvloop makes each descriptor that it watches non-blocking (``uv_poll_init``), and the server's has to
    stay as the program has made it: its handlers send datagrams from it, its ``accept()`` may wait.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        on_request: Callable[[], None],
        on_child: Callable[[int], None],
    ) -> None:
        self._loop = loop
        self._on_request = on_request
        self._on_child = on_child
        self._request: int | None = None
        self._file: tuple[int, int] | None = None
        self._children: set[int] = set()
        self._open()

    def _open(self) -> None:
        self._epoll = select.epoll()
        self._loop.add_reader(self._epoll.fileno(), self._on_ready)

    def set_request(self, fd: int | None) -> None:
        """See ``Watch``."""
        file = None if fd is None else _file_behind(fd)
        if (fd, file) == (self._request, self._file) and self._still_watches(fd):
            return
        if self._request is not None:
            # If it was closed, and there is a duplicate, epoll goes on watching that (epoll(7)).
            self.renew()
        if fd is not None and file is not None:
            # It may be closed by now, and the epoll object may have got its number.
            with suppress(OSError):
                if _file_behind(fd) == file:
                    self._epoll.register(fd, select.EPOLLIN)
                    self._request, self._file = fd, file

    def _still_watches(self, fd: int | None) -> bool:
        """A FIFO that was opened anew looks like the one before, and each epoll object like any other."""
        if fd is None:
            return True
        try:
            self._epoll.modify(fd, select.EPOLLIN)
        except OSError:
            return False
        return fd not in self._children

    def add_child(self, fd: int) -> None:
        """See ``Watch``."""
        self._children.add(fd)
        self._epoll.register(fd, select.EPOLLIN)

    def remove_child(self, fd: int) -> None:
        """See ``Watch``."""
        self._children.discard(fd)
        self._epoll.unregister(fd)

    def renew(self) -> None:
        """See ``Watch``."""
        self.close()
        self._request = self._file = None
        self._open()
        for fd in self._children:
            self._epoll.register(fd, select.EPOLLIN)

    def close(self) -> None:
        """See ``Watch``."""
        self._loop.remove_reader(self._epoll.fileno())
        self._epoll.close()

    def abandon(self) -> None:
        """See ``Watch``."""
        self._epoll.close()

    def _on_ready(self) -> None:
        for fd, _ in self._epoll.poll(0):
            if fd == self._request:
                self._on_request()
            else:
                self._on_child(fd)


class LoopWatch:
    """The loop's own readers, where there is no epoll."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        on_request: Callable[[], None],
        on_child: Callable[[int], None],
    ) -> None:
        self._loop = loop
        self._on_request = on_request
        self._on_child = on_child
        self._request: int | None = None

    def set_request(self, fd: int | None) -> None:
        """See ``Watch``."""
        if fd != self._request:
            self.renew()
            if fd is not None:
                self._loop.add_reader(fd, self._on_request)
                self._request = fd

    def add_child(self, fd: int) -> None:
        """See ``Watch``."""
        self._loop.add_reader(fd, self._on_child, fd)

    def remove_child(self, fd: int) -> None:
        """See ``Watch``."""
        self._loop.remove_reader(fd)

    def renew(self) -> None:
        """See ``Watch``."""
        if self._request is not None:
            with suppress(OSError, ValueError):
                self._loop.remove_reader(self._request)
            self._request = None

    def close(self) -> None:
        """See ``Watch``."""
        self.renew()

    def abandon(self) -> None:
        """See ``Watch``."""


def open_watch(
    loop: asyncio.AbstractEventLoop, on_request: Callable[[], None], on_child: Callable[[int], None]
) -> Watch:
    """The kind of watch that this platform has."""
    kind: Any = EpollWatch if hasattr(select, "epoll") else LoopWatch
    watch: Watch = kind(loop, on_request, on_child)
    return watch


def _file_behind(fd: int) -> tuple[int, int] | None:
    """What the number stands for; it may stand for another file the next time."""
    try:
        status = os.fstat(fd)
    except OSError:
        return None
    return status.st_dev, status.st_ino


def check_watchable(fd: int) -> None:
    """Raise ``UnwatchableError`` for files and directories, of which poll(2) says that they are ready."""
    try:
        mode = os.fstat(fd).st_mode
    except OSError:
        return  # Whoever reads from it will say so.
    if stat.S_ISREG(mode) or stat.S_ISDIR(mode):
        raise UnwatchableError(errno.EPERM, os.strerror(errno.EPERM))
