from __future__ import annotations

import asyncio
import contextvars
import threading

import pytest

from asyncserver.threads import in_thread
from tests.waiting import wait_until, within


async def test_it_returns_what_the_function_returns_and_raises_what_it_raises() -> None:
    variable: contextvars.ContextVar[int] = contextvars.ContextVar("variable")
    variable.set(5)
    assert await within(in_thread(lambda: (variable.get(), threading.current_thread()))) != (
        5,
        threading.current_thread(),
    )
    assert await within(in_thread(variable.get)) == 5
    with pytest.raises(ZeroDivisionError):
        await within(in_thread(lambda: 1 / 0))


async def test_a_cancellation_waits_for_its_end() -> None:
    go_on, ended = threading.Event(), threading.Event()

    def function() -> None:
        go_on.wait(10)
        ended.set()

    task = asyncio.create_task(in_thread(function))
    await asyncio.sleep(0)
    for _ in range(2):
        task.cancel()
        await asyncio.sleep(0)
        assert not task.done()
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await within(task)
    assert ended.is_set()


async def test_without_threads_it_is_called_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def start(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", start)
    assert await in_thread(threading.current_thread) is threading.current_thread()


def test_a_loop_that_is_closed_meanwhile_is_told_nothing() -> None:
    go_on, threads = threading.Event(), list[threading.Thread]()

    def function() -> None:
        threads.append(threading.current_thread())
        go_on.wait(10)

    async def main() -> None:
        task = asyncio.create_task(in_thread(function))
        await wait_until(lambda: threads)
        task.remove_done_callback(task.print_stack)  # Nothing is done about it: it is left behind.

    loop = asyncio.new_event_loop()
    loop.run_until_complete(main())
    loop.set_exception_handler(lambda loop, context: None)  # "Task was destroyed but it is pending!"
    loop.close()
    go_on.set()
    threads[0].join(10)
    assert not threads[0].is_alive()
