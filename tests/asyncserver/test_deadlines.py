from __future__ import annotations

import asyncio
import heapq
import itertools
from collections.abc import Callable
from typing import Any

import pytest

from asyncserver.deadlines import FINEST, DeadlineWheel
from tests.waiting import MS, wait_until


class FakeTimer:
    def __init__(self, when: float, callback: Callable[[], None]) -> None:
        self.when = when
        self.callback = callback
        self.cancelled = False

    def cancel(self) -> None:
        self.cancelled = True


class FakeLoop:
    """A loop whose time passes when it is told to; ``early`` makes its timers fire too soon."""

    def __init__(self, now: float = 1_000.0, early: float = 0.0) -> None:
        self.now = now
        self.early = early
        self.ticks = 0
        self._timers: list[tuple[float, int, FakeTimer]] = []
        self._numbers = itertools.count()

    def time(self) -> float:
        return self.now

    def call_at(self, when: float, callback: Callable[[], None], *, context: Any = None) -> FakeTimer:
        timer = FakeTimer(when, callback)
        heapq.heappush(self._timers, (when - self.early, next(self._numbers), timer))
        return timer

    @property
    def armed(self) -> list[FakeTimer]:
        return [timer for _, _, timer in self._timers if not timer.cancelled]

    def run_until(self, end: float) -> None:
        while self._timers and self._timers[0][0] <= end:
            when, _, timer = heapq.heappop(self._timers)
            if not timer.cancelled:
                self.now = max(self.now, when)
                self.ticks += 1
                timer.callback()
        self.now = end


class Watched:
    def __init__(self, loop: FakeLoop, *delays: float | None) -> None:
        self.watch_slot = 0
        self.looks: list[float] = []
        self._loop = loop
        self._delays = iter(delays)

    def check_deadlines(self, now: float) -> float | None:
        assert now == self._loop.now
        self.looks.append(now)
        return next(self._delays, None)


def make(early: float = 0.0) -> tuple[FakeLoop, DeadlineWheel]:
    loop = FakeLoop(early=early)
    return loop, DeadlineWheel(loop)  # type: ignore[arg-type]


@pytest.mark.parametrize("delay", [0.0, 0.001, 0.05, 0.051, 0.3, 1.0, 7.77, 60.0, 600.0, 86_400.0])
def test_a_look_is_never_early_and_a_sixteenth_late_at_most(delay: float) -> None:
    loop, wheel = make()
    watched = Watched(loop)
    wheel.watch(watched, delay)
    loop.run_until(loop.now + 2 * delay + 1)
    (look,) = watched.looks
    assert 1_000 + delay - 1e-6 <= look <= 1_000 + delay + max(delay / 16, 2 * FINEST)


def test_a_timer_that_fires_early_finds_its_slot_all_the_same() -> None:
    loop, wheel = make(early=0.001)
    watched = Watched(loop)
    wheel.watch(watched, 1.0)
    loop.run_until(1_010.0)
    assert len(watched.looks) == 1
    assert loop.ticks == 1


def test_it_looks_again_when_it_was_asked_to() -> None:
    loop, wheel = make()
    watched = Watched(loop, 1.0, 2.0, None)
    wheel.watch(watched, 1.0)
    loop.run_until(1_100.0)
    assert len(watched.looks) == 3
    assert watched.looks[1] - watched.looks[0] >= 1.0
    assert watched.looks[2] - watched.looks[1] >= 2.0
    assert not loop.armed
    assert watched.watch_slot == 0


def test_thousands_of_looks_share_few_timers() -> None:
    loop, wheel = make()
    connections = [Watched(loop) for _ in range(5_000)]
    for index, watched in enumerate(connections):
        wheel.watch(watched, 75 + index / 1_000)
    loop.run_until(1_200.0)
    assert all(len(watched.looks) == 1 for watched in connections)
    assert loop.ticks <= 8


def test_an_earlier_look_is_not_kept_waiting_by_a_later_one() -> None:
    loop, wheel = make()
    late, early = Watched(loop), Watched(loop)
    wheel.watch(late, 100.0)
    wheel.watch(early, 1.0)
    assert len(loop.armed) == 1
    loop.run_until(1_002.0)
    assert early.looks
    assert not late.looks
    loop.run_until(1_200.0)
    assert late.looks


def test_watching_again_replaces_the_look() -> None:
    loop, wheel = make()
    watched = Watched(loop)
    wheel.watch(watched, 1.0)
    wheel.watch(watched, 50.0)
    loop.run_until(1_010.0)
    assert not watched.looks
    loop.run_until(1_100.0)
    assert len(watched.looks) == 1


def test_what_is_forgotten_is_not_looked_at() -> None:
    loop, wheel = make()
    forgotten, kept = Watched(loop), Watched(loop)
    wheel.watch(forgotten, 1.0)
    wheel.watch(kept, 1.0)
    wheel.forget(forgotten)
    wheel.forget(forgotten)
    loop.run_until(1_010.0)
    assert not forgotten.looks
    assert len(kept.looks) == 1


def test_no_timer_is_left_when_nothing_is_watched() -> None:
    loop, wheel = make()
    watched = [Watched(loop) for _ in range(10)]
    for index, one in enumerate(watched):
        wheel.watch(one, float(index))
    for one in watched:
        wheel.forget(one)
    assert not loop.armed


def test_stop_cancels_the_timer() -> None:
    loop, wheel = make()
    watched = Watched(loop)
    wheel.watch(watched, 1.0)
    wheel.stop()
    wheel.stop()
    loop.run_until(1_010.0)
    assert not watched.looks


class Meddler(Watched):
    """Does something to another one when it is looked at."""

    act: Callable[[], None] = staticmethod(lambda: None)

    def check_deadlines(self, now: float) -> float | None:
        self.act()
        return super().check_deadlines(now)


@pytest.mark.parametrize("turn", range(8))
def test_one_may_forget_another_during_a_look(turn: int) -> None:
    loop, wheel = make()
    ended: list[Watched] = []
    both = [Meddler(loop), Meddler(loop)]
    for one, other in (both, reversed(both)):
        one.act = lambda one=one, other=other: (  # type: ignore[misc]
            None if one in ended else (ended.append(other), wheel.forget(other))
        )
        wheel.watch(one, 1.0)
    loop.run_until(1_010.0)
    assert sum(len(one.looks) for one in both if one not in ended) == 1
    assert not loop.armed


@pytest.mark.parametrize("turn", range(8))
def test_one_may_have_another_looked_at_later_during_a_look(turn: int) -> None:
    """It is then looked at when it was asked for, once, wherever it stood in the order of this look."""
    loop, wheel = make()
    both = [Meddler(loop), Meddler(loop)]
    for one, other in (both, reversed(both)):
        one.act = lambda other=other: None if other.looks else wheel.watch(other, 5.0)  # type: ignore[misc]
        wheel.watch(one, 1.0)
    loop.run_until(1_020.0)
    first, second = sorted(both, key=lambda one: one.looks[0])
    assert len(first.looks) == 1
    assert len(second.looks) == 1
    assert second.looks[0] >= first.looks[0] + 5.0
    assert not loop.armed


async def test_on_a_real_loop() -> None:
    loop = asyncio.get_running_loop()
    wheel = DeadlineWheel(loop)
    looks: list[float] = []

    class Real:
        watch_slot = 0

        def check_deadlines(self, now: float) -> float | None:
            looks.append(now)
            return 60 * MS if len(looks) < 3 else None

    started = loop.time()
    wheel.watch(Real(), 60 * MS)
    await wait_until(lambda: len(looks) == 3)
    assert looks[-1] - started >= 180 * MS - 0.005
