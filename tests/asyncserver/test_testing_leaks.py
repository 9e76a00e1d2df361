"""``leak_check``, ``task_leak_check`` and ``exhausted_descriptors``: they find it, and let the rest pass."""

from __future__ import annotations

import asyncio
import errno
import os
import pickle
import resource
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import anyio.to_thread
import pytest

from asyncserver import Limits, LoopName, OptionError
from asyncserver.loops import run_in_new_loop
from asyncserver.testing import (
    Client,
    LeakError,
    exhausted_descriptors,
    leak_check,
    serving,
    task_leak_check,
)
from tests.clients import echo
from tests.conftest import LOOP_FACTORIES
from tests.processes import sleeping_child
from tests.waiting import MS, PATIENCE, wait_until, within

IMPATIENT = 20 * MS


@pytest.fixture
def kept() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def forget_socket(kept: ExitStack) -> None:
    kept.enter_context(socket.create_server(("127.0.0.1", 0)))


def forget_thread(kept: ExitStack) -> None:
    stop = threading.Event()
    thread = threading.Thread(target=stop.wait, args=(PATIENCE,), name="forgotten")
    thread.start()
    kept.callback(thread.join)
    kept.callback(stop.set)


def forget_child(kept: ExitStack) -> None:
    kept.callback(sleeping_child().wait)


def test_a_child_of_before_may_end_and_keeps_its_status() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", "input(); raise SystemExit(3)"], stdin=subprocess.PIPE
    ) as child:
        with leak_check(patience=IMPATIENT):
            assert child.stdin is not None
            child.stdin.write(b"\n")
            child.stdin.close()
            os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        assert child.wait() == 3


FORGOTTEN = pytest.mark.parametrize(
    ("forget", "what"),
    [
        (forget_socket, "file descriptor .*AF_INET, SOCK_STREAM, local"),
        (forget_thread, r"thread 'forgotten' \(Thread\) at "),
        (forget_child, r"child process \d+ \(.*time.sleep\(60\)\)"),
    ],
    ids=["socket", "thread", "child"],
)


@FORGOTTEN
def test_what_was_left_behind(forget: Callable[[ExitStack], None], what: str, kept: ExitStack) -> None:
    with pytest.raises(LeakError, match=f"left behind:\n- {what}") as caught:
        with leak_check(patience=IMPATIENT):
            forget(kept)
    assert len(caught.value.leaks) == 1
    assert isinstance(caught.value, AssertionError)


@FORGOTTEN
async def test_what_was_left_behind_beside_a_loop(
    forget: Callable[[ExitStack], None], what: str, kept: ExitStack
) -> None:
    try:
        with pytest.raises(LeakError, match=f"left behind:\n- {what}"):
            async with leak_check(patience=IMPATIENT):
                await asyncio.to_thread(forget, kept)
    finally:
        await asyncio.to_thread(kept.close)


def test_what_ends_by_itself_is_waited_for() -> None:
    with leak_check():
        threading.Thread(target=time.sleep, args=(20 * MS,)).start()


async def test_what_the_loop_closes_is_waited_for() -> None:
    async with leak_check(), task_leak_check():
        sock = socket.socket()
        asyncio.get_running_loop().call_later(20 * MS, sock.close)
        asyncio.get_running_loop().call_soon(asyncio.create_task, asyncio.sleep(20 * MS))


async def test_what_was_there_before_and_what_is_the_loops() -> None:
    with socket.socket():
        async with leak_check(patience=IMPATIENT):
            # In a thread of the loop's own executor, and more of them than there were.
            await asyncio.gather(*(asyncio.to_thread(time.sleep, MS) for _ in range(4)))


def test_around_a_loop(loop_name: str) -> None:
    async def main() -> None:
        async with serving(echo) as server, await Client.connect(server) as client:
            assert await client.ask(b"hello") == b"hello"

    with leak_check(patience=IMPATIENT):
        with asyncio.Runner(loop_factory=LOOP_FACTORIES[loop_name]) as runner:
            runner.run(main())


def test_threads_of_loops(loop_name: LoopName) -> None:
    """Those of the loop that ``run()`` makes, and those of anyio; more of them than there were."""

    async def main() -> None:
        async with leak_check(patience=IMPATIENT):
            await asyncio.gather(*(asyncio.to_thread(time.sleep, 5 * MS) for _ in range(4)))
            await asyncio.gather(*(anyio.to_thread.run_sync(time.sleep, 5 * MS) for _ in range(2)))

    run_in_new_loop(main, loop_name, patience=lambda: PATIENCE)


async def test_a_block_that_raises_is_not_examined() -> None:
    with socket.socket() as sock:
        sock.close()
        with pytest.raises(KeyError):
            async with leak_check(), task_leak_check():
                sock = socket.socket()
                task = asyncio.create_task(asyncio.sleep(3_600))
                raise KeyError
        sock.close()
        task.cancel()


async def test_tasks_that_were_left_behind() -> None:
    factory = asyncio.get_running_loop().get_task_factory()
    with pytest.raises(LeakError) as caught:
        async with task_leak_check(patience=IMPATIENT):
            line = sys._getframe().f_lineno + 1
            task = asyncio.create_task(asyncio.sleep(3_600), name="forgotten")
    (leak,) = caught.value.leaks
    assert "name='forgotten'" in leak
    assert f", created at {__file__}:{line} in test_tasks_that_were_left_behind" in leak
    assert asyncio.get_running_loop().get_task_factory() is factory
    task.cancel()


@pytest.mark.usefixtures("tasks_as_in_production")
async def test_blocks_that_overlap_without_nesting() -> None:
    loop = asyncio.get_running_loop()
    first, second = task_leak_check(patience=IMPATIENT), task_leak_check(patience=IMPATIENT)
    await first.__aenter__()
    await second.__aenter__()
    await first.__aexit__(None, None, None)
    line = sys._getframe().f_lineno + 1
    task = asyncio.create_task(asyncio.sleep(3_600))
    with pytest.raises(LeakError, match=f", created at {__file__}:{line} in "):
        await second.__aexit__(None, None, None)
    assert loop.get_task_factory() is None
    task.cancel()


@pytest.mark.usefixtures("tasks_as_in_production")
async def test_a_task_factory_that_was_set_in_the_block_stays() -> None:
    def factory(loop: asyncio.AbstractEventLoop, coroutine: Any, **options: Any) -> Any:
        return asyncio.Task(coroutine, loop=loop, **options)

    loop = asyncio.get_running_loop()
    async with task_leak_check():
        loop.set_task_factory(factory)
        async with task_leak_check():
            assert loop.get_task_factory() is not factory
    assert loop.get_task_factory() is factory


async def test_the_task_factory_of_the_loop_goes_on_working() -> None:
    made: list[Any] = []
    loop = asyncio.get_running_loop()

    def factory(loop: asyncio.AbstractEventLoop, coroutine: Any, **options: Any) -> Any:
        made.append(coroutine)
        return asyncio.Task(coroutine, loop=loop, **options)

    before = loop.get_task_factory()
    loop.set_task_factory(factory)
    try:
        async with task_leak_check():
            await asyncio.create_task(asyncio.sleep(0))
        assert loop.get_task_factory() is factory
    finally:
        loop.set_task_factory(before)
    assert len(made) == 1


def test_the_error_as_a_value() -> None:
    error = pickle.loads(pickle.dumps(LeakError(["thread 'x'"])))
    assert error.leaks == ["thread 'x'"]
    assert str(error) == "left behind:\n- thread 'x'"


# Exhaustion.


def opens() -> bool:
    try:
        os.close(os.open(os.devnull, os.O_RDONLY))
    except OSError as error:
        return error.errno != errno.EMFILE
    return True


def test_no_descriptor_can_be_opened() -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    with leak_check():
        with exhausted_descriptors():
            assert not opens()
            with exhausted_descriptors():
                assert not opens()
            with pytest.raises(OptionError, match="spare=1: this process can open 0 more descriptors"):
                with exhausted_descriptors(spare=1):
                    pass
            assert not opens()
        assert opens()
        for count in (3, 200):
            with exhausted_descriptors(spare=count):
                spare = [os.open(os.devnull, os.O_RDONLY) for _ in range(count)]
                assert not opens()
                os.close(spare.pop())
                assert opens()
                for each in spare:
                    os.close(each)
        with pytest.raises(KeyError):
            with exhausted_descriptors():
                raise KeyError
    assert opens()
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == before
    with pytest.raises(OptionError, match="spare=-1"):
        with exhausted_descriptors(spare=-1):
            pass


@pytest.mark.allow_blocking("descriptors are opened in the test itself")
async def test_a_server_without_descriptors_serves_when_there_are_some() -> None:
    async with serving(echo, limits=Limits(max_connections=None)) as server:
        with exhausted_descriptors(spare=1):
            client = await Client.connect(server)
            await client.send(b"hello")
            await wait_until(lambda: server.statistics().listeners[0].exhausted)
            assert not server.connections
        assert await within(client.receive()) == b"hello"
        client.close()
