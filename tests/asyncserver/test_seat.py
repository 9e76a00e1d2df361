from __future__ import annotations

import asyncio
import contextvars
import gc
import weakref
from collections.abc import Generator
from typing import Any

import pytest

from asyncserver.seat import Seat
from asyncserver.stepping import suspending
from tests.waiting import wait_until, within

variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="outside")


@suspending
def sit(seat: Seat) -> Generator[Any, Any, None]:
    yield seat


@pytest.fixture
async def seat() -> Seat:
    return Seat(asyncio.get_running_loop())


async def seated(seat: Seat, task: asyncio.Task[Any]) -> None:
    await wait_until(lambda: seat.wakeup is not None or task.done())
    assert not task.done()


def wake_later(seat: Seat) -> None:
    """From a callback of the loop, as it has to be."""
    asyncio.get_running_loop().call_soon(seat.wake)


async def test_a_task_waits_until_it_is_woken(seat: Seat) -> None:
    rounds = []

    async def wait() -> None:
        for number in range(5):
            await sit(seat)
            rounds.append(number)

    task = asyncio.create_task(wait())
    for count in range(5):
        await seated(seat, task)
        assert len(rounds) == count
        wake_later(seat)
        await wait_until(lambda count=count: len(rounds) == count + 1)  # type: ignore[misc]
    await within(task)
    assert seat.wakeup is None


async def test_it_goes_on_at_once(seat: Seat) -> None:
    """In the very call, without another turn of the loop."""
    order = []

    async def wait() -> None:
        await sit(seat)
        order.append("task")

    def wake() -> None:
        order.append("before")
        seat.wake()
        order.append("after")

    task = asyncio.create_task(wait())
    await seated(seat, task)
    asyncio.get_running_loop().call_soon(wake)
    await within(task)
    assert order == ["before", "task", "after"]


async def test_waking_nobody_is_nothing(seat: Seat) -> None:
    wake_later(seat)
    await asyncio.sleep(0)
    task = asyncio.create_task(_sit_once(seat))
    await seated(seat, task)  # What was before does not count.
    wake_later(seat)
    wake_later(seat)
    await within(task)


async def _sit_once(seat: Seat) -> str:
    await sit(seat)
    return variable.get()


async def test_the_task_goes_on_in_its_own_context(seat: Seat) -> None:
    context = contextvars.copy_context()
    context.run(variable.set, "inside")
    task = asyncio.get_running_loop().create_task(_sit_once(seat), context=context)
    await seated(seat, task)
    wake_later(seat)
    assert await within(task) == "inside"
    assert variable.get() == "outside"


async def test_the_current_task_is_the_one_that_waited(seat: Seat) -> None:
    async def wait() -> asyncio.Task[Any] | None:
        await sit(seat)
        return asyncio.current_task()

    task = asyncio.create_task(wait())
    await seated(seat, task)
    wake_later(seat)
    assert await within(task) is task


async def test_cancelling_ends_the_wait(seat: Seat) -> None:
    task = asyncio.create_task(_sit_once(seat))
    await seated(seat, task)
    assert task.cancel("enough")
    assert seat.cancelled
    with pytest.raises(asyncio.CancelledError, match="enough"):
        await within(task)
    assert not seat.cancelled
    assert seat.wakeup is None
    again = asyncio.create_task(_sit_once(seat))
    await seated(seat, again)
    wake_later(seat)
    assert await within(again) == "outside"


async def test_a_cancellation_without_a_message(seat: Seat) -> None:
    task = asyncio.create_task(_sit_once(seat))
    await seated(seat, task)
    task.cancel()
    with pytest.raises(asyncio.CancelledError) as caught:
        await within(task)
    assert caught.value.args == ()


async def test_cancelled_and_woken_at_the_same_time(seat: Seat) -> None:
    """The cancellation is told, once; the other wakes whoever sits there by then."""
    caught = []

    async def wait() -> str:
        try:
            await sit(seat)
        except asyncio.CancelledError:
            caught.append(True)
        await sit(seat)
        return "woken"

    task = asyncio.create_task(wait())
    await seated(seat, task)
    task.cancel()
    wake_later(seat)
    assert await within(task) == "woken"
    assert caught == [True]
    assert not seat.cancelled


async def test_woken_first_and_cancelled_then(seat: Seat) -> None:
    """Woken in the turn in which it is cancelled, before the cancellation got to it."""
    task = asyncio.create_task(_sit_once(seat))
    await seated(seat, task)

    def both() -> None:
        task.cancel()
        seat.wake()

    asyncio.get_running_loop().call_soon(both)
    with pytest.raises(asyncio.CancelledError):
        await within(task)
    assert not seat.cancelled


async def test_a_task_that_heeds_no_cancellation_can_sit_again(seat: Seat) -> None:
    async def stubborn() -> int:
        cancellations = 0
        while cancellations < 3:
            try:
                await sit(seat)
            except asyncio.CancelledError:
                cancellations += 1
        return cancellations

    task = asyncio.create_task(stubborn())
    for _ in range(3):
        await seated(seat, task)
        task.cancel()
        await wait_until(lambda: not seat.cancelled)
    assert await within(task) == 3


async def test_cancelling_where_nobody_waits(seat: Seat) -> None:
    assert not seat.cancel()
    assert not seat.cancelled


async def test_a_timeout_around_it(seat: Seat) -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await sit(seat)
    assert not seat.cancelled
    assert seat.wakeup is None


async def test_it_is_a_future_to_a_task(seat: Seat) -> None:
    assert asyncio.isfuture(seat)
    assert seat.get_loop() is asyncio.get_running_loop()
    assert not seat.done()
    assert seat._asyncio_future_blocking
    seat.result()
    seat.add_done_callback(print)
    assert seat.remove_done_callback(repr) == 0
    assert seat.remove_done_callback(print) == 1
    assert seat.remove_done_callback(print) == 0
    assert seat.wakeup is None


async def test_callbacks_without_a_context(seat: Seat) -> None:
    seen: list[Seat] = []
    seat.add_done_callback(seen.append)
    seat.wake()
    assert seen == [seat]


async def test_a_task_that_fails_leaves_no_cycle(seat: Seat) -> None:
    class Trace:
        pass

    references = []

    async def fail() -> None:
        trace = Trace()
        references.append(weakref.ref(trace))
        await sit(seat)
        raise LookupError

    task = asyncio.create_task(fail())
    await seated(seat, task)
    gc.collect()
    gc.disable()
    try:
        wake_later(seat)
        await wait_until(task.done)
        assert isinstance(task.exception(), LookupError)
        del task
        await asyncio.sleep(0)
        assert references[0]() is None
    finally:
        gc.enable()
