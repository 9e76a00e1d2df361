"""One coarse timer for the deadlines of all connections."""

from __future__ import annotations

import asyncio
import math
from contextvars import copy_context
from typing import Protocol

__all__ = ["FINEST", "DeadlineWheel", "Watched"]

# Seconds; no deadline is watched more closely than this.
FINEST = 0.05


class Watched(Protocol):
    """What has deadlines."""

    watch_slot: int
    """Where it stands in the wheel; 0 when it does not. Belongs to the wheel."""

    def check_deadlines(self, now: float) -> float | None:
        """Act on what is overdue at loop time ``now``; returns the seconds until the next look, or None."""


class DeadlineWheel:
    """Looks at what it watches when that asked for it, roughly.

    Progress on a connection never touches a timer: at a look the connection compares its counters
    with those of the last look, and says when to look again. Looks that lie close together, measured
    by how far away they are, fall into one slot of the wheel and share one timer.
    """

    __slots__ = ("_armed_for", "_context", "_loop", "_slots", "_timer")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        # Timers are set from within handlers, too; what they do does not belong to that connection.
        self._context = copy_context()
        self._slots: dict[int, set[Watched]] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._armed_for = 0

    def watch(self, watched: Watched, delay: float) -> None:
        """Look at ``watched`` in ``delay`` seconds, or a sixteenth of that later."""
        self.forget(watched)
        slot = self._slot_after(delay)
        watched.watch_slot = slot
        members = self._slots.get(slot)
        if members is None:
            self._slots[slot] = {watched}
            if self._timer is None or slot < self._armed_for:
                self._arm(slot)
        else:
            members.add(watched)

    def forget(self, watched: Watched) -> None:
        """Look at it no more; nothing if it is not watched."""
        slot, watched.watch_slot = watched.watch_slot, 0
        members = self._slots.get(slot)
        if members is not None:
            members.discard(watched)
            if not members:
                del self._slots[slot]
                if not self._slots:
                    self.stop()

    def stop(self) -> None:
        """Cancel the timer."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _slot_after(self, delay: float) -> int:
        """In units of FINEST, rounded up to a power of two of them that is small beside the delay."""
        due = math.ceil((self._loop.time() + delay) / FINEST)
        grain = 1 << max(0, int(delay / FINEST).bit_length() - 5)
        return -(-due // grain) * grain

    def _arm(self, slot: int) -> None:
        self.stop()
        self._armed_for = slot
        self._timer = self._loop.call_at(slot * FINEST, self._tick, context=self._context)

    def _tick(self) -> None:
        self._timer = None
        now = self._loop.time()
        # uvloop's timers count in milliseconds and may be early by a part of one.
        current = int(now / FINEST + 0.05)
        for slot in [slot for slot in self._slots if slot <= current]:
            for watched in self._slots.pop(slot, ()):
                if watched.watch_slot != slot:  # Forgotten or moved by one that was looked at before it.
                    continue
                watched.watch_slot = 0
                delay = watched.check_deadlines(now)
                if delay is not None:
                    self.watch(watched, delay)
        if (self._slots and self._timer is None) or (self._slots and min(self._slots) < self._armed_for):
            self._arm(min(self._slots))
