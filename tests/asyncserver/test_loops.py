"""Choosing an event loop, and a loop's whole life with its bounded end."""

from __future__ import annotations

import asyncio
import sys
import threading
import time
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import cast

import pytest

from asyncserver import LoopName, OptionError, ServerStateError, loop_factory
from asyncserver.loops import run_in_new_loop
from tests.processes import LONG, run_python
from tests.waiting import within

uvloop = pytest.importorskip("uvloop", reason="uvloop has no build for this platform")


def patient() -> float:
    return LONG


# --- which loop ---


@pytest.mark.parametrize(
    ("name", "module"), [("auto", "uvloop"), ("uvloop", "uvloop"), ("asyncio", "asyncio")]
)
def test_loop_is_chosen_by_name(name: LoopName, module: str) -> None:
    loop = loop_factory(name)()
    try:
        assert type(loop).__module__.partition(".")[0] == module
    finally:
        loop.close()


def test_auto_is_the_default() -> None:
    assert loop_factory() is loop_factory("uvloop")


def test_auto_is_asyncio_without_uvloop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "uvloop", None)
    assert loop_factory("auto") is asyncio.new_event_loop
    with pytest.raises(OptionError, match="pip install uvloop"):
        loop_factory("uvloop")


def test_unknown_loop_is_an_error() -> None:
    with pytest.raises(OptionError, match="'auto', 'uvloop' or 'asyncio'") as caught:
        loop_factory(cast(LoopName, "trio"))
    assert (caught.value.option, caught.value.value) == ("loop", "trio")


# --- its life ---


def test_result_is_returned(loop_name: LoopName) -> None:
    async def main() -> str:
        return type(asyncio.get_running_loop()).__module__.partition(".")[0]

    assert run_in_new_loop(main, loop_name, patience=patient) == loop_name


def test_exception_is_raised_and_the_loop_closed(loop_name: LoopName) -> None:
    loops: list[asyncio.AbstractEventLoop] = []

    async def main() -> None:
        loops.append(asyncio.get_running_loop())
        raise LookupError

    with pytest.raises(LookupError):
        run_in_new_loop(main, loop_name, patience=patient)
    assert loops[0].is_closed()


def test_tasks_are_cancelled_and_awaited(loop_name: LoopName) -> None:
    ended: list[str] = []

    async def straggler() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0.01)
            ended.append("task")

    async def main() -> asyncio.Task[None]:
        task = asyncio.create_task(straggler())
        await asyncio.sleep(0)
        return task

    task = run_in_new_loop(main, loop_name, patience=patient)
    assert ended == ["task"]
    assert task.cancelled()


def test_task_that_fails_in_its_end_is_logged(loop_name: LoopName, caplog: pytest.LogCaptureFixture) -> None:
    async def straggler() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            raise LookupError("on purpose")

    async def main() -> asyncio.Task[None]:
        task = asyncio.create_task(straggler())
        await asyncio.sleep(0)
        return task

    run_in_new_loop(main, loop_name, patience=patient)
    assert "on purpose" in caplog.text


def test_asynchronous_generators_are_closed(loop_name: LoopName) -> None:
    ended: list[str] = []

    async def numbers() -> AsyncGenerator[int, None]:
        try:
            yield 1
            yield 2
        finally:
            await asyncio.sleep(0)
            ended.append("generator")

    async def main() -> AsyncGenerator[int, None]:
        generator = numbers()
        await anext(generator)
        return generator

    generator = run_in_new_loop(main, loop_name, patience=patient)
    assert ended == ["generator"]
    del generator


def test_blocking_call_is_waited_for(loop_name: LoopName) -> None:
    ended: list[str] = []
    started, goes_on = threading.Event(), threading.Event()

    def call() -> None:
        started.set()
        assert goes_on.wait(LONG)
        ended.append("call")

    async def main() -> None:
        asyncio.get_running_loop().run_in_executor(None, call)
        while not started.is_set():
            await asyncio.sleep(0.001)
        threading.Timer(0.01, goes_on.set).start()

    run_in_new_loop(main, loop_name, patience=patient)
    assert ended == ["call"]


def test_threads_are_gone_afterwards(loop_name: LoopName) -> None:
    before = threading.active_count()
    run_in_new_loop(lambda: asyncio.to_thread(time.sleep, 0), loop_name, patience=patient)
    assert threading.active_count() == before


async def test_not_within_a_running_loop() -> None:
    async def main() -> None:
        raise AssertionError("must not run")

    with pytest.raises(ServerStateError, match=r"await serve\(\)"):
        run_in_new_loop(main, "auto", patience=patient)
    await within(asyncio.sleep(0))


STUBBORN = """
import asyncio, logging, os, sys, threading, time
from asyncserver.loops import run_in_new_loop

logging.basicConfig()

async def stubborn():
    while True:
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            pass

async def generator():
    try:
        yield
    finally:
        await stubborn()

async def main():
    {what}
    await asyncio.sleep(0.01)

run_in_new_loop(main, sys.argv[1], patience=lambda: 0.0)
print("returned", flush=True)
os._exit(0)  # The interpreter itself would wait for a thread.
"""


@pytest.mark.parametrize(
    ("what", "left"),
    [
        ("global task; task = asyncio.create_task(stubborn())", "left behind: <Task "),
        ("global agen; agen = generator(); await anext(agen)", "left behind: <Task "),
        (
            "asyncio.get_running_loop().run_in_executor(None, time.sleep, 3600)",
            "left behind: a blocking call in a thread",
        ),
    ],
    ids=["task", "generator", "thread"],
)
def test_what_does_not_end_is_left_behind(tmp_path: Path, loop_name: str, what: str, left: str) -> None:
    script = tmp_path / "script.py"
    script.write_text(STUBBORN.format(what=what))
    status, out, err = run_python(tmp_path, script, loop_name)
    assert (status, out) == (0, "returned\n"), err
    assert left in err
