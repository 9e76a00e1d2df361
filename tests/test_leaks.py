"""Each detector of ``tests.leaks`` catches its leak, says what it was, and lets a clean test pass."""

from __future__ import annotations

import asyncio
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from blockbuster import BlockingError

from asyncserver.testing.leaks import describe_thread
from tests.leaks import BlockingCalls, LoopErrors, ProcessWatch, TaskWatch
from tests.processes import sleeping_child
from tests.waiting import MS, wait_until_blocking

REPOSITORY = Path(__file__).parent.parent

IMPATIENT = 20 * MS


def test_watch_names_open_socket_with_its_ends() -> None:
    watch = ProcessWatch()
    with socket.create_server(("127.0.0.1", 0)):
        (leak,) = watch.leaks(IMPATIENT)
    assert leak.startswith("file descriptor ")
    assert re.search(r"AF_INET, SOCK_STREAM, local \('127\.0\.0\.1', \d+\)", leak)
    assert watch.leaks() == []


def test_watch_names_open_file(tmp_path: Path) -> None:
    watch = ProcessWatch()
    with (tmp_path / "forgotten").open("w"):
        (leak,) = watch.leaks(IMPATIENT)
    assert leak.endswith("forgotten")
    assert watch.leaks() == []


def test_watch_sees_descriptor_whose_number_is_used_again(tmp_path: Path) -> None:
    first = os.open(tmp_path, os.O_RDONLY)
    watch = ProcessWatch()
    os.close(first)
    second = os.open(os.devnull, os.O_RDONLY)
    try:
        assert first == second
        assert [leak.endswith(os.devnull) for leak in watch.leaks(IMPATIENT)] == [True]
    finally:
        os.close(second)


def test_watch_names_thread_and_where_it_is() -> None:
    watch = ProcessWatch()
    stop = threading.Event()
    thread = threading.Thread(target=stop.wait, name="forgotten", daemon=True)
    thread.start()
    wait_until_blocking(lambda: "in wait" in describe_thread(thread))
    try:
        (leak,) = watch.leaks(IMPATIENT)
    finally:
        stop.set()
        thread.join()
    assert leak.startswith("thread 'forgotten' (daemon, Thread) at ")
    assert "in wait" in leak


def test_watch_waits_for_thread_that_is_ending() -> None:
    watch = ProcessWatch()
    threading.Thread(target=time.sleep, args=(20 * MS,)).start()
    assert watch.leaks() == []


def test_watch_names_running_child_and_ends_it() -> None:
    watch = ProcessWatch()
    child = sleeping_child()
    (leak,) = watch.leaks(IMPATIENT)
    assert leak.startswith(f"child process {child.pid} (")
    assert "time.sleep(60)" in leak
    assert watch.leaks() == []
    child.wait()


def test_watch_names_zombie() -> None:
    watch = ProcessWatch()
    child = subprocess.Popen([sys.executable, "-c", "pass"], stdout=subprocess.PIPE)
    assert child.stdout is not None
    with child.stdout:
        child.stdout.read()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert watch.leaks(IMPATIENT) == [f"child process {child.pid} (zombie)"]
    child.wait()


async def test_task_watch_names_task_and_where_it_was_created() -> None:
    loop = asyncio.get_running_loop()
    before = loop.get_task_factory()
    watch = TaskWatch(loop)
    line = sys._getframe().f_lineno + 1
    task = asyncio.create_task(asyncio.sleep(60), name="forgotten")
    try:
        (leak,) = await watch.leaks(IMPATIENT)
    finally:
        task.cancel()
        loop.set_task_factory(before)
    assert "name='forgotten'" in leak
    assert f", created at {__file__}:{line} in test_task_watch_names" in leak
    assert await watch.leaks() == []


async def test_task_watch_waits_for_task_that_is_ending() -> None:
    watch = TaskWatch(asyncio.get_running_loop())
    forgotten = [asyncio.create_task(asyncio.sleep(20 * MS))]
    assert await watch.leaks() == []
    assert forgotten[0].done()


def raise_in_callback() -> None:
    asyncio.get_running_loop().call_soon("not to be called".index, "x")


def forget_exception() -> None:
    async def fail() -> None:
        raise ValueError("forgotten")

    asyncio.get_running_loop().call_soon(asyncio.create_task, fail())


@pytest.mark.parametrize(
    ("provoke", "message"),
    [(raise_in_callback, "ValueError: substring not found"), (forget_exception, "ValueError: forgotten")],
)
async def test_loop_errors_are_seen_on_every_loop(
    provoke: Callable[[], None], message: str, loop_errors: list[str]
) -> None:
    with LoopErrors().attached() as seen:
        provoke()
        for _ in range(4):
            await asyncio.sleep(0)
    assert [error.endswith(message) for error in seen] == [True]
    assert loop_errors == seen
    loop_errors.clear()


@pytest.fixture
def blocking_pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    left, right = socket.socketpair()
    with left, right:
        yield left, right


def sleep(seconds: float) -> None:
    time.sleep(seconds)


@pytest.mark.allow_blocking("BlockingCalls itself is the subject")
async def test_blocking_calls_are_remembered_even_when_swallowed(
    blocking_pair: tuple[socket.socket, socket.socket],
) -> None:
    line = sys._getframe().f_lineno + 3
    with BlockingCalls().forbidden() as seen:
        with suppress(Exception):
            sleep(0)
        with pytest.raises(BlockingError, match=r"socket\.socket\.recv"):
            blocking_pair[0].recv(1)
        with pytest.raises(BlockingError, match="getaddrinfo"):
            socket.getaddrinfo("127.0.0.1", 80)
    assert f", from {__file__}:{line} in test_blocking_calls_are" in seen[0]
    assert len(seen) == 3
    sleep(0)


async def test_calls_that_do_not_block_are_allowed(
    blocking_pair: tuple[socket.socket, socket.socket],
) -> None:
    left, right = blocking_pair
    left.setblocking(False)
    right.setblocking(False)
    left.sendmsg([b"x"])
    assert right.recv(1) == b"x"


# The fixtures, in a run of their own, with this project's configuration.

LEAKING = {
    "task": (
        "asyncio.get_running_loop().kept = asyncio.create_task(asyncio.sleep(60))",
        "- task <Task pending",
    ),
    "socket": ("KEPT.append(socket.socket())", "- file descriptor * -> socket:* (AF_INET, SOCK_STREAM*"),
    "garbage": ("a = [socket.socket()]; a.append(a)", "*ResourceWarning: unclosed <socket.socket*"),
    "thread": ("threading.Thread(target=EVENT.wait, daemon=True, name='lost').start()", "- thread 'lost' *"),
    "child": ("await asyncio.to_thread(start_child)", "- child process * (*time.sleep(60)*)"),
    "loop_error": ("asyncio.get_running_loop().call_soon(int, 'x')", "- unhandled error in an event loop: *"),
    "exception": ("asyncio.create_task(fail()); await asyncio.sleep(0)", "- unhandled error in *"),
    "block": ("time.sleep(0)", "*BlockingError: Blocking call to time.sleep"),
    "swallowed": ("suppressed(time.sleep, 0)", "- blocking call to time.sleep at *"),
    "unraisable": ("Unraisable()", "*PytestUnraisableExceptionWarning*"),
    "thread_error": ("await in_thread(int, 'x')", "*PytestUnhandledThreadExceptionWarning*"),
}

PREAMBLE = """
import asyncio, contextlib, gc, pytest, socket, subprocess, sys, threading, time
KEPT = []
EVENT = threading.Event()
class Unraisable:
    def __del__(self):
        raise ValueError("in __del__")
async def fail():
    raise ValueError("forgotten")
def suppressed(function, *args):
    with contextlib.suppress(Exception):
        function(*args)
def start_child():
    KEPT.append(subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]))
async def in_thread(function, *args):
    thread = threading.Thread(target=function, args=args)
    thread.start()
    while thread.is_alive():
        await asyncio.sleep(0.001)
@pytest.fixture
async def echo_server():
    async def echo(reader, writer):
        writer.write(await reader.readline())
        writer.close()
        await writer.wait_closed()
    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    yield server.sockets[0].getsockname()
    server.close()
    await server.wait_closed()
"""

CLEAN = """
async def test_client(echo_server):
    reader, writer = await asyncio.open_connection(*echo_server)
    writer.write(b"hello\\n")
    assert await reader.read() == b"hello\\n"
    writer.close()
    await writer.wait_closed()
async def test_threads_and_children():
    await asyncio.to_thread(time.sleep, 0.001)
    await asyncio.get_running_loop().getaddrinfo("localhost", 80)
    child = await asyncio.create_subprocess_exec(sys.executable, "-c", "pass")
    assert await child.wait() == 0
async def test_expected_error(loop_errors):
    asyncio.get_running_loop().call_soon(int, "x")
    await asyncio.sleep(0)
    assert "invalid literal" in loop_errors.pop()
@pytest.mark.allow_blocking("because")
async def test_allowed_to_block():
    time.sleep(0)
def test_without_loop():
    time.sleep(0)
def test_loop_by_name(loop_name):
    assert loop_name in ("asyncio", "uvloop")
@pytest.mark.asyncio(loop_factories=["uvloop"])
async def test_one_loop():
    assert type(asyncio.get_running_loop()).__module__.startswith("uvloop")
async def test_that_fails_is_not_examined():
    KEPT.append(socket.socket())
    pytest.xfail("on purpose")
"""


@pytest.fixture
def project(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    """A directory whose tests run under this project's configuration and conftest."""
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    pytester.makeconftest("from tests.conftest import *")
    pytester.makefile(".toml", pyproject=(REPOSITORY / "pyproject.toml").read_text())
    return pytester


def run(project: pytest.Pytester, tests: str) -> pytest.RunResult:
    project.makepyfile(test_planted=PREAMBLE + tests)
    return project.runpytest_subprocess("-p", "no:xdist", "--tb=short", "test_planted.py")


def test_clean_tests_pass_on_every_loop(project: pytest.Pytester) -> None:
    result = run(project, CLEAN)
    result.assert_outcomes(passed=12, xfailed=2)


def test_every_kind_of_leak_fails_its_test_on_every_loop(
    project: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ASYNCSERVER_TEST_TIME_UNIT", "0.2")
    result = run(
        project, "".join(f"async def test_{name}():\n    {code}\n" for name, (code, _) in LEAKING.items())
    )
    sections = re.split(r"^_+ (?:ERROR at teardown of )?test_", result.stdout.str(), flags=re.MULTILINE)
    for name, (_, message) in LEAKING.items():
        for loop in ("asyncio", "uvloop"):
            report = "".join(section for section in sections if section.startswith(f"{name}[{loop}]"))
            pytest.LineMatcher(report.splitlines()).fnmatch_lines([f"*{message}*"])
    assert "test_planted.py:" in result.stdout.str()


def test_marker_needs_its_reason(project: pytest.Pytester) -> None:
    result = run(project, "@pytest.mark.allow_blocking\nasync def test_it(): pass")
    result.assert_outcomes(errors=2)
    result.stdout.fnmatch_lines(["*allow_blocking takes its reason*"])


@pytest.mark.usefixtures("tasks_as_in_production")
async def test_watch_over_tasks_can_be_taken_away() -> None:
    assert asyncio.get_running_loop().get_task_factory() is None


@pytest.mark.usefixtures("tasks_as_in_production")
def test_taking_it_away_needs_no_loop() -> None:
    with pytest.raises(RuntimeError):
        asyncio.get_running_loop()
