"""The packets that wait for a handler: in one line, or in a line for each peer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import OrderedDict, deque
from collections.abc import Hashable
from typing import Generic, TypeVar

__all__ = ["PeerQueue", "Queue", "SingleQueue"]

T = TypeVar("T")


class Queue(ABC, Generic[T]):
    """Who waits, who is next, and whose turn has to end before."""

    @abstractmethod
    def __len__(self) -> int:
        """How many wait."""

    @abstractmethod
    def put(self, item: T, key: Hashable) -> None:
        """Let it wait."""

    @abstractmethod
    def take(self) -> tuple[T, Hashable] | None:
        """The next one that may start; None if all that wait are held back."""

    @abstractmethod
    def drop_oldest(self) -> T:
        """Take out the one that has waited for the longest time."""

    @abstractmethod
    def holds_back(self, key: Hashable) -> bool:
        """Whether one with this key has to wait, were it for others only."""

    def started(self, key: Hashable) -> None:
        """One with this key goes on for longer."""

    def ended(self, key: Hashable) -> None:
        """And has ended."""


class SingleQueue(Queue[T]):
    """First come, first served."""

    def __init__(self) -> None:
        self._items: deque[tuple[T, Hashable]] = deque()

    def __len__(self) -> int:
        return len(self._items)

    def put(self, item: T, key: Hashable) -> None:
        """See ``Queue``."""
        self._items.append((item, key))

    def take(self) -> tuple[T, Hashable] | None:
        """See ``Queue``."""
        return self._items.popleft() if self._items else None

    def drop_oldest(self) -> T:
        """See ``Queue``."""
        return self._items.popleft()[0]

    def holds_back(self, key: Hashable) -> bool:
        """See ``Queue``."""
        return bool(self._items)


class PeerQueue(Queue[T]):
    """A line for each key, of which one at a time is served; keys take turns."""

    def __init__(self) -> None:
        # All that wait, by their numbers, which stand in the lines.
        self._waiting: OrderedDict[int, tuple[T, Hashable]] = OrderedDict()
        self._lines: dict[Hashable, deque[int]] = {}
        self._busy: set[Hashable] = set()
        # The keys that have a line and are not busy, the next one first.
        self._ready: OrderedDict[Hashable, None] = OrderedDict()
        self._last_number = 0

    def __len__(self) -> int:
        return len(self._waiting)

    def put(self, item: T, key: Hashable) -> None:
        """See ``Queue``."""
        self._last_number = number = self._last_number + 1
        self._waiting[number] = item, key
        line = self._lines.get(key)
        if line is None:
            self._lines[key] = deque((number,))
            if key not in self._busy:
                self._ready[key] = None
        else:
            line.append(number)

    def take(self) -> tuple[T, Hashable] | None:
        """See ``Queue``."""
        if not self._ready:
            return None
        key = next(iter(self._ready))
        taken = self._waiting.pop(self._lines[key][0])
        self._shorten(key)
        if key in self._ready:
            self._ready.move_to_end(key)
        return taken

    def drop_oldest(self) -> T:
        """See ``Queue``."""
        item, key = self._waiting.popitem(last=False)[1]
        self._shorten(key)
        return item

    def _shorten(self, key: Hashable) -> None:
        """The first in its line waits no more."""
        line = self._lines[key]
        line.popleft()
        if not line:
            del self._lines[key]
            self._ready.pop(key, None)

    def holds_back(self, key: Hashable) -> bool:
        """See ``Queue``."""
        return key in self._busy or key in self._lines

    def started(self, key: Hashable) -> None:
        """See ``Queue``."""
        self._busy.add(key)
        self._ready.pop(key, None)

    def ended(self, key: Hashable) -> None:
        """See ``Queue``."""
        self._busy.discard(key)
        if key in self._lines:
            self._ready[key] = None
