from __future__ import annotations

import random
from collections import deque
from collections.abc import Hashable
from typing import Any

import pytest

from asyncserver.datagram_queue import PeerQueue, Queue, SingleQueue

KINDS = [SingleQueue, PeerQueue]


def filled(kind: type[Queue[str]], items: str) -> Queue[str]:
    """Items like ``a1 a2 b1``, with their first letter as the key."""
    queue = kind()
    for item in items.split():
        queue.put(item, item[0])
    return queue


def taken(queue: Queue[str]) -> str:
    found = []
    while (one := queue.take()) is not None:
        assert one[1] in (one[0][0], None)
        found.append(one[0])
    return " ".join(found)


@pytest.mark.parametrize("kind", KINDS)
def test_nothing(kind: type[Queue[str]]) -> None:
    queue = kind()
    assert len(queue) == 0
    assert not queue
    assert queue.take() is None
    assert not queue.holds_back("a")
    queue.ended("a")
    assert queue.take() is None


@pytest.mark.parametrize("kind", KINDS)
def test_the_oldest_is_dropped(kind: type[Queue[str]]) -> None:
    queue = filled(kind, "a1 b1 a2 b2")
    assert [queue.drop_oldest() for _ in range(3)] == ["a1", "b1", "a2"]
    assert len(queue) == 1
    assert taken(queue) == "b2"
    assert len(queue) == 0


def test_first_come_first_served() -> None:
    queue = filled(SingleQueue, "a1 a2 b1 a3 c1")
    queue.started("a")
    assert queue.holds_back("d")
    assert taken(queue) == "a1 a2 b1 a3 c1"
    assert not queue.holds_back("a")


def test_peers_take_turns() -> None:
    assert taken(filled(PeerQueue, "a1 a2 a3 a4 b1 b2 c1")) == "a1 b1 c1 a2 b2 a3 a4"


def test_who_is_being_served_waits_with_the_next_one() -> None:
    queue = filled(PeerQueue, "a1 a2 b1")
    assert queue.take() == ("a1", "a")
    queue.started("a")
    assert queue.take() == ("b1", "b")
    queue.started("b")
    assert queue.take() is None
    queue.put("b2", "b")
    assert queue.take() is None
    assert len(queue) == 2
    queue.ended("b")
    assert queue.take() == ("b2", "b")
    queue.ended("a")
    assert taken(queue) == "a2"


def test_who_is_held_back() -> None:
    queue = filled(PeerQueue, "a1")
    assert queue.holds_back("a")
    assert not queue.holds_back("b")
    queue.take()
    assert not queue.holds_back("a")
    queue.started("a")
    assert queue.holds_back("a")
    queue.ended("a")
    assert not queue.holds_back("a")


def test_who_has_lost_all_that_waited_is_not_held_back() -> None:
    queue = filled(PeerQueue, "a1 b1")
    queue.drop_oldest()
    assert not queue.holds_back("a")
    queue.put("a2", "a")
    assert taken(queue) == "b1 a2"
    busy = filled(PeerQueue, "a1")
    busy.started("a")
    busy.drop_oldest()
    busy.ended("a")
    assert not busy.holds_back("a")


class Model:
    """The same as ``PeerQueue``, in the plainest way."""

    def __init__(self) -> None:
        self.waiting: list[tuple[int, str]] = []
        self.turns: deque[str] = deque()
        self.busy: set[str] = set()

    def refresh(self) -> None:
        may = {key for _, key in self.waiting} - self.busy
        for key in [key for key in self.turns if key not in may]:
            self.turns.remove(key)
        # One at a time comes into question at most.
        self.turns.extend(may - set(self.turns))

    def take(self) -> tuple[int, Hashable] | None:
        if not self.turns:
            return None
        key = self.turns.popleft()
        found = next(each for each in self.waiting if each[1] == key)
        self.waiting.remove(found)
        if any(each[1] == key for each in self.waiting):
            self.turns.append(key)
        return found


@pytest.mark.parametrize("seed", range(20))
def test_it_is_equal_to_a_plain_model(seed: int) -> None:
    choose = random.Random(seed)
    queue, model = PeerQueue[int](), Model()
    for number in range(2_000):
        what: Any = choose.choice(["put", "put", "take", "drop", "started", "ended"])
        key = choose.choice("abcdefg")
        if what == "put":
            queue.put(number, key)
            model.waiting.append((number, key))
        elif what == "take":
            assert queue.take() == model.take()
        elif what == "drop" and model.waiting:
            assert queue.drop_oldest() == model.waiting.pop(0)[0]
        elif what == "started" and key not in model.busy:
            queue.started(key)
            model.busy.add(key)
        elif what == "ended" and key in model.busy:
            queue.ended(key)
            model.busy.discard(key)
        model.refresh()
        assert len(queue) == len(model.waiting)
        for each in "abcdefg":
            assert queue.holds_back(each) == (each in model.busy or any(k == each for _, k in model.waiting))
