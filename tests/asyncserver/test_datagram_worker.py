from __future__ import annotations

import asyncio
import contextvars
import sys
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from asyncserver.datagram_worker import Worker
from tests.waiting import wait_until, within


async def parked() -> Worker:
    worker = Worker(asyncio.get_running_loop(), contextvars.copy_context(), "worker")
    await wait_until(lambda: worker.is_parked)
    return worker


def begin(worker: Worker, handler: Callable[[], Coroutine[Any, Any, object]]) -> None:
    """As a callback of the loop does: the first step in its name, the others in its task."""
    loop = asyncio.get_running_loop()
    coroutine = handler()

    def step() -> Any:
        asyncio.tasks._enter_task(loop, worker.task)
        try:
            return coroutine.send(None)
        finally:
            asyncio.tasks._leave_task(loop, worker.task)

    def both() -> None:
        worker.hand_over(coroutine, worker.context.run(step))

    loop.call_soon(both)


async def result_of(handler: Callable[[], Coroutine[Any, Any, object]]) -> Any:
    worker = await parked()
    begin(worker, handler)
    return await within(worker.task)


async def test_one_that_is_not_needed() -> None:
    worker = await parked()
    assert not worker.is_cancelled
    assert not worker.task.done()
    worker.retire()
    await wait_until(worker.task.done)
    assert worker.task.cancelled()
    assert not worker.is_parked


async def test_one_that_retires_before_it_has_begun() -> None:
    worker = Worker(asyncio.get_running_loop(), contextvars.copy_context(), "worker")
    assert worker.is_parked == (sys.version_info >= (3, 12))
    worker.retire()
    await wait_until(worker.task.done)
    assert worker.task.cancelled()


async def test_it_returns_what_the_handler_returns() -> None:
    async def handler() -> int:
        await asyncio.sleep(0)
        await asyncio.sleep(0.001)
        return 5

    assert await result_of(handler) == 5


async def test_it_raises_what_the_handler_raises() -> None:
    async def handler() -> None:
        await asyncio.sleep(0)
        raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        await result_of(handler)


async def test_it_does_not_retire_with_a_handler() -> None:
    release = asyncio.Event()
    worker = await parked()
    begin(worker, release.wait)
    await wait_until(lambda: not worker.is_parked)
    worker.retire()
    release.set()
    assert await within(worker.task) is True


async def test_the_task_is_the_same_all_the_time() -> None:
    async def handler() -> list[Any]:
        seen = [asyncio.current_task()]
        await asyncio.sleep(0)
        return [*seen, asyncio.current_task()]

    worker = await parked()
    begin(worker, handler)
    assert await within(worker.task) == [worker.task] * 2


async def test_the_context_is_the_same_all_the_time() -> None:
    variable = contextvars.ContextVar("variable", default=0)

    async def handler() -> int:
        variable.set(5)
        await asyncio.sleep(0)
        return variable.get()

    assert await result_of(handler) == 5
    assert variable.get() == 0


@pytest.mark.parametrize("waits_for", ["sleep(0)", "a future"])
async def test_a_handler_that_cancels_itself_before_its_first_wait(waits_for: str) -> None:
    loop = asyncio.get_running_loop()
    seen: list[object] = []

    async def handler() -> str:
        task = asyncio.current_task()
        assert task is not None
        task.cancel("enough")
        try:
            if waits_for == "sleep(0)":
                await asyncio.sleep(0)
            else:
                await loop.create_future()
        except asyncio.CancelledError as exc:
            seen.append(exc.args)
            await asyncio.sleep(0)  # Once only.
            seen.append(task.uncancel())
        return "survived"

    assert await result_of(handler) == "survived"
    assert seen == [("enough",), 0]


async def test_a_cancellation_that_the_handler_takes_back_before_its_first_wait() -> None:
    """As with any task: since Python 3.13 it is forgotten."""

    async def handler() -> str:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        assert task.uncancel() == 0
        try:
            await asyncio.sleep(0)
        except asyncio.CancelledError:
            return "raised"
        return "forgotten"

    in_a_task = await asyncio.create_task(handler())
    assert in_a_task == ("forgotten" if sys.version_info >= (3, 13) else "raised")
    assert await result_of(handler) == in_a_task


async def test_a_cancellation_from_outside() -> None:
    async def handler() -> str:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            await asyncio.sleep(0)
            return "cleaned up"
        return "not cancelled"

    worker = await parked()
    begin(worker, handler)
    await wait_until(lambda: not worker.is_parked)
    assert worker.task.cancel()
    assert await within(worker.task) == "cleaned up"


async def test_a_cancellation_while_it_is_parked() -> None:
    worker = await parked()
    worker.task.cancel()
    assert worker.is_cancelled
    await wait_until(worker.task.done)
    assert worker.task.cancelled()
