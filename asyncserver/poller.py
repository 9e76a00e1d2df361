"""Who tells connections that their socket is ready: the loop itself, or one epoll for all of them.

On Linux the connections of a server share an epoll descriptor of their own, and only that one is
registered with the event loop. When it is ready, a whole batch of connections is, and they are told
one after the other in one callback. Compared with ``add_reader`` for each connection this costs a
system call for the batch and saves, for each connection, the loop's objects (half a kilobyte) and, for
each event, the loop's own dispatching: little on uvloop, more than a microsecond on asyncio, whose
speed is nearly uvloop's this way. The loops are the same to a connection; both are told by readiness
(level-triggered, epoll(7)).
"""

from __future__ import annotations

import asyncio
import select
from typing import Any, Protocol

__all__ = ["LoopPoller", "Pollable", "Poller", "SharedPoller", "open_poller"]

# The most connections told at a time, how often that happens in one turn of the loop, and how many make it
# worth to look again at once. Timers and new connections come in between the turns: after about a
# millisecond, with short handlers.
_BATCH = 64
_BATCHES = 4
_MANY = 4


class Pollable(Protocol):
    """What wants to know."""

    def on_readable(self) -> None:
        """Reading would not block, or would fail."""

    def on_writable(self) -> None:
        """Writing would not block, or would fail."""


class Poller(Protocol):
    """Tells pollables about their descriptors, in callbacks of the loop, until they have enough."""

    def add_reader(self, fd: int, pollable: Pollable) -> None:
        """Call ``on_readable`` whenever ``fd`` is readable."""

    def remove_reader(self, fd: int) -> None:
        """Call it no more; ``fd`` must have a reader, and must be open still."""

    def add_writer(self, fd: int, pollable: Pollable) -> None:
        """Call ``on_writable`` whenever ``fd`` is writable."""

    def remove_writer(self, fd: int) -> None:
        """Call it no more; ``fd`` must have a writer, and must be open still."""

    def close(self) -> None:
        """Tell nobody any more; idempotent."""


class LoopPoller:
    """The event loop's own readers and writers."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop

    def add_reader(self, fd: int, pollable: Pollable) -> None:
        """See ``Poller``."""
        self._loop.add_reader(fd, pollable.on_readable)

    def remove_reader(self, fd: int) -> None:
        """See ``Poller``."""
        self._loop.remove_reader(fd)

    def add_writer(self, fd: int, pollable: Pollable) -> None:
        """See ``Poller``."""
        self._loop.add_writer(fd, pollable.on_writable)

    def remove_writer(self, fd: int) -> None:
        """See ``Poller``."""
        self._loop.remove_writer(fd)

    def close(self) -> None:
        """Nothing is held here."""


class SharedPoller:
    """One epoll descriptor for any number of connections. Linux only."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._epoll: select.epoll | None = select.epoll()
        self._poll = self._epoll.poll
        # By descriptor; a list, because there are many, and they are small numbers (POSIX, open(2)).
        self._readers: list[Pollable | None] = []
        self._writers: dict[int, Pollable] = {}
        loop.add_reader(self._epoll.fileno(), self._on_ready)

    def add_reader(self, fd: int, pollable: Pollable) -> None:
        """See ``Poller``."""
        readers = self._readers
        if fd >= len(readers):
            readers.extend([None] * (fd + 1 - len(readers)))
        readers[fd] = pollable
        self._begin(fd, select.EPOLLIN, also=fd in self._writers)

    def remove_reader(self, fd: int) -> None:
        """See ``Poller``."""
        self._readers[fd] = None
        self._end(fd, select.EPOLLOUT if fd in self._writers else 0)

    def add_writer(self, fd: int, pollable: Pollable) -> None:
        """See ``Poller``."""
        self._writers[fd] = pollable
        self._begin(fd, select.EPOLLOUT, also=self._reader(fd) is not None)

    def remove_writer(self, fd: int) -> None:
        """See ``Poller``."""
        del self._writers[fd]
        self._end(fd, select.EPOLLIN if self._reader(fd) is not None else 0)

    def _reader(self, fd: int) -> Pollable | None:
        return self._readers[fd] if fd < len(self._readers) else None

    def close(self) -> None:
        """See ``Poller``."""
        if self._epoll is not None:
            self._loop.remove_reader(self._epoll.fileno())
            self._epoll.close()
            self._epoll = None

    def _begin(self, fd: int, events: int, *, also: bool) -> None:
        """Begin to watch for these events; ``also``: it is being watched for the others already."""
        if self._epoll is None:
            return
        if also:
            self._epoll.modify(fd, select.EPOLLIN | select.EPOLLOUT)
        else:
            self._epoll.register(fd, events)

    def _end(self, fd: int, left: int) -> None:
        """Watch only for the events that are left, if any."""
        if self._epoll is None:
            return
        if left:
            self._epoll.modify(fd, left)
        else:
            self._epoll.unregister(fd)

    def _on_ready(self) -> None:
        """Tell a batch; as long as many are ready, look again without asking the loop in between."""
        for _ in range(_BATCHES):
            if self._tell_batch() < _MANY:
                return

    def _tell_batch(self) -> int:
        readers = self._readers
        ready = self._poll(0, _BATCH)
        for fd, events in ready:
            # Whoever was told before may have closed this one, or even opened another with its number;
            # being told for nothing does no harm.
            try:
                if events == 1:  # EPOLLIN alone
                    pollable = readers[fd]
                    if pollable is not None:
                        pollable.on_readable()
                else:
                    self._tell(fd, events)
            except Exception as exc:
                self._report(exc)
        return len(ready)

    def _tell(self, fd: int, events: int) -> None:
        """An end or an error (EPOLLHUP, EPOLLERR) is for whoever is interested in anything."""
        if events & ~select.EPOLLOUT and (reader := self._reader(fd)) is not None:
            reader.on_readable()
        if events & ~select.EPOLLIN and (writer := self._writers.get(fd)) is not None:
            writer.on_writable()

    def _report(self, exc: Exception) -> None:
        context: dict[str, Any] = {"message": "a readiness callback failed", "exception": exc}
        self._loop.call_exception_handler(context)


def open_poller(loop: asyncio.AbstractEventLoop) -> Poller:
    """The poller for the connections of a server; whoever opens it closes it."""
    return SharedPoller(loop) if hasattr(select, "epoll") else LoopPoller(loop)
