"""``run()`` and ``run_server()``: a whole process, its signals, and its end."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import socket
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from asyncserver import (
    BindError,
    LoopName,
    OptionError,
    Server,
    ServerStateError,
    Stream,
    TCPAddress,
    run,
    run_server,
)
from tests.leaks import open_descriptors
from tests.processes import LONG, PythonProcess, connect
from tests.waiting import stays, wait_until_blocking

ADDRESS = "tcp://127.0.0.1:0"

on_posix = pytest.mark.skipif(os.name == "nt", reason="signals of other processes are not delivered there")


# --- within this process: the program closes the server itself ---


async def echo(stream: Stream) -> None:
    async for chunk in stream:
        await stream.send(chunk)


def closing(server: Server) -> None:
    """To be used as ``on_ready``: close the server as soon as it runs."""
    asyncio.get_running_loop().call_soon(lambda: _kept.add(asyncio.ensure_future(server.aclose())))


_kept: set[asyncio.Future[None]] = set()


def test_returns_when_the_program_closes_the_server(loop_name: LoopName) -> None:
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    seen: list[tuple[bool, str]] = []

    def on_ready(server: Server) -> None:
        seen.append((server.ready, type(asyncio.get_running_loop()).__module__.partition(".")[0]))
        closing(server)

    run(echo, ADDRESS, loop=loop_name, on_ready=on_ready)
    assert seen == [(True, loop_name)]
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


def test_options_are_the_servers(loop_name: LoopName) -> None:
    values: list[Any] = []

    @contextlib.asynccontextmanager
    async def lifespan(server: Server) -> AsyncIterator[str]:
        values.append("open")
        yield "a value"
        values.append("closed")

    def on_ready(server: Server) -> None:
        values.append(server.lifespan_state)
        closing(server)

    run(echo, ADDRESS, loop=loop_name, lifespan=lifespan, on_ready=on_ready)
    assert values == ["open", "a value", "closed"]


def test_runs_in_a_thread_until_it_is_closed_from_within(loop_name: LoopName) -> None:
    ports: list[int] = []

    async def closing_handler(stream: Stream) -> None:
        await stream.send(b"hello\n")
        _kept.add(asyncio.ensure_future(server.aclose()))

    def on_ready(server: Server) -> None:
        (address,) = server.addresses
        assert isinstance(address, TCPAddress)
        ports.append(address.port)

    server = Server(closing_handler, ADDRESS)
    thread = threading.Thread(
        target=run_server, args=(server,), kwargs={"loop": loop_name, "on_ready": on_ready}
    )
    thread.start()
    try:
        (port,) = wait_until_blocking(lambda: ports, timeout=LONG)
        with connect(port) as client:
            assert client.recv(100) == b"hello\n"
    finally:
        thread.join(LONG)
    assert not thread.is_alive()


def test_server_can_be_run_again(loop_name: LoopName) -> None:
    server = Server(echo, ADDRESS)
    runs: list[bool] = []

    def on_ready(server: Server) -> None:
        runs.append(server.ready)
        closing(server)

    for _ in range(2):
        run_server(server, loop=loop_name, on_ready=on_ready)
    assert runs == [True, True]


def test_on_ready_that_raises_closes_the_server(loop_name: LoopName, tmp_path: Path) -> None:
    def on_ready(server: Server) -> None:
        raise LookupError("on purpose")

    path = tmp_path / "app.sock"
    with pytest.raises(LookupError, match="on purpose"):
        run(echo, f"unix://{path}", loop=loop_name, on_ready=on_ready)
    assert not path.exists()


def test_failed_start_is_raised(loop_name: LoopName) -> None:
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        with pytest.raises(BindError):
            run(echo, f"tcp://127.0.0.1:{taken.getsockname()[1]}", loop=loop_name)
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


@pytest.mark.parametrize(
    ("options", "option"),
    [
        ({"loop": "trio"}, "loop"),
        ({"drain_timeout": -1.0}, "drain_timeout"),
        ({"drain_delay": -1.0}, "drain_delay"),
        ({"drain_delay": None}, "drain_delay"),
        ({"on_error": 7}, "on_error"),
    ],
)
def test_bad_option_is_an_error_before_anything_is_opened(options: dict[str, Any], option: str) -> None:
    with pytest.raises(OptionError) as caught:
        run(echo, ADDRESS, on_ready=lambda server: pytest.fail("it has started"), **options)
    assert caught.value.option == option


async def test_not_within_a_running_loop() -> None:
    with pytest.raises(ServerStateError, match=r"await serve\(handler, \*addresses\)"):
        run(echo, ADDRESS)


# --- several servers ---


def open_port(server: Server) -> int:
    (address,) = server.addresses
    assert isinstance(address, TCPAddress)
    return address.port


def test_all_servers_serve(loop_name: LoopName) -> None:
    answers: list[bytes] = []

    async def ask_both(*servers: Server) -> None:
        for server in servers:
            reader, writer = await asyncio.open_connection("127.0.0.1", open_port(server))
            writer.write(b"hello")
            answers.append(await reader.readexactly(5))
            writer.close()
            await writer.wait_closed()
        for server in servers:
            await server.aclose()

    calls: list[tuple[Server, ...]] = []

    def on_ready(*servers: Server) -> None:
        calls.append(servers)
        assert all(server.ready for server in servers)
        _kept.add(asyncio.ensure_future(ask_both(*servers)))

    first, second = Server(echo, ADDRESS), Server(echo, ADDRESS)
    run_server(first, second, loop=loop_name, on_ready=on_ready)
    assert calls == [(first, second)]
    assert answers == [b"hello", b"hello"]


def test_program_closes_one_and_the_other_goes_on(loop_name: LoopName) -> None:
    seen: list[str] = []

    async def close_in_turn(first: Server, second: Server) -> None:
        await first.aclose()
        await stays(lambda: second.ready)
        seen.append(f"{first.ready} {second.ready}")
        reader, writer = await asyncio.open_connection("127.0.0.1", open_port(second))
        writer.write(b"hello")
        seen.append((await reader.readexactly(5)).decode())
        writer.close()
        await writer.wait_closed()
        await second.aclose()

    def on_ready(first: Server, second: Server) -> None:
        _kept.add(asyncio.ensure_future(close_in_turn(first, second)))

    run_server(Server(echo, ADDRESS), Server(echo, ADDRESS), loop=loop_name, on_ready=on_ready)
    assert seen == ["False True", "hello"]


def test_start_of_the_second_that_fails_closes_the_first(loop_name: LoopName, tmp_path: Path) -> None:
    values: list[str] = []

    @contextlib.asynccontextmanager
    async def lifespan(server: Server) -> AsyncIterator[None]:
        values.append("open")
        yield
        values.append("closed")

    @contextlib.asynccontextmanager
    async def lifespan_of_the_second(server: Server) -> AsyncIterator[None]:
        assert first.ready
        yield

    path = tmp_path / "app.sock"
    with socket.create_server(("127.0.0.1", 0)) as taken:
        before = open_descriptors()
        first = Server(echo, ADDRESS, f"unix://{path}", lifespan=lifespan)
        address = f"tcp://127.0.0.1:{taken.getsockname()[1]}"
        second = Server(echo, address, lifespan=lifespan_of_the_second)
        third = Server(echo, ADDRESS, lifespan=lifespan)
        with pytest.raises(BindError):
            run_server(first, second, third, loop=loop_name, on_ready=lambda *servers: pytest.fail("ready"))
        assert open_descriptors() == before
    assert values == ["open", "closed"]
    assert not path.exists()
    assert not first.ready


def test_on_ready_that_raises_closes_all(loop_name: LoopName) -> None:
    def on_ready(*servers: Server) -> None:
        raise LookupError("on purpose")

    servers = [Server(echo, ADDRESS), Server(echo, ADDRESS)]
    with pytest.raises(LookupError, match="on purpose"):
        run_server(*servers, loop=loop_name, on_ready=on_ready)
    assert not any(server.addresses for server in servers)


@pytest.mark.parametrize("kind", ["none", "no server", "twice"])
def test_servers_are_checked(kind: str) -> None:
    server = Server(echo, ADDRESS)
    servers: tuple[Any, ...] = {"none": (), "no server": (server, echo), "twice": (server, server)}[kind]
    with pytest.raises(OptionError) as caught:
        run_server(*servers, on_ready=lambda *servers: pytest.fail("they have started"))
    assert caught.value.option == "servers"


# --- in a process of its own: signals ---

PROGRAM = """
import asyncio, contextlib, logging, os, signal, sys, time
import anyio
from asyncserver import *

logging.basicConfig(level=logging.INFO, format="%(message)s")
# A test run in the background of a shell hands down SIGINT ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)

async def handler(stream):
    # Told to end or not: it is busy until the second line, half of which is here already.
    first = await stream.receive_until(b"\\n", 100)
    await stream.send(b"got " + first + b"\\n")
    second = await stream.receive_until(b"\\n", 100)
    await stream.send(b"got " + second + b"\\n")

async def stubborn(stream):
    await stream.send(b"hello\\n")
    while True:
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            say("cancelled")

async def in_a_thread(stream):
    began, loop = asyncio.Event(), asyncio.get_running_loop()
    def block():
        loop.call_soon_threadsafe(began.set)
        time.sleep(3600)
    # A call that no thread has taken up yet would be cancelled, and not left behind.
    blocking = asyncio.ensure_future(asyncio.to_thread(block))
    await began.wait()
    await stream.send(b"hello\\n")
    await blocking

def say(*words):
    print(*words, flush=True)

def ready(server):
    say("Listening on", *server.addresses)

def two_ready(*servers):
    for server in servers:
        ready(server)
    say("Both are ready")

@contextlib.asynccontextmanager
async def slow_start(server):
    say("starting")
    try:
        await asyncio.sleep(3600)
        yield
    finally:
        say("given up")

@contextlib.asynccontextmanager
async def stubborn_start(server):
    say("starting")
    while True:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(3600)
        say("goes on")
    yield

@contextlib.asynccontextmanager
async def slow_end(server):
    yield
    say("ending")
    try:
        await asyncio.sleep(3600)
    finally:
        say("hurried")

@contextlib.asynccontextmanager
async def failing_end(server):
    yield
    raise LookupError("on purpose")

def show_handlers():
    say("restored", signal.getsignal(signal.SIGTERM) is signal.SIG_DFL,
        signal.getsignal(signal.SIGINT) is signal.default_int_handler)

quick = Timeouts(grace=0.2, linger=0.0)
address, loop = "tcp://127.0.0.1:0", sys.argv[1]

"""

RUN = "run(handler, address, loop=loop, on_ready=ready)\n"


@pytest.fixture
def program(tmp_path: Path, loop_name: str) -> Callable[[str], PythonProcess]:
    """Makes a process that runs the given lines after those of ``PROGRAM``."""

    def make(lines: str) -> PythonProcess:
        script = tmp_path / "program.py"
        script.write_text(PROGRAM + lines)
        return PythonProcess(tmp_path, script, loop_name)

    return make


Program = Callable[[str], PythonProcess]


def be_busy(port: int) -> socket.socket:
    """A connection that is in the middle of a message."""
    client = connect(port)
    client.sendall(b"one\nhalf of ")
    assert client.recv(100) == b"got one\n"
    return client


@on_posix
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_drains_and_is_raised_again(program: Program, number: int) -> None:
    with program(RUN) as process:
        port = process.wait_for_port()
        with be_busy(port) as client:
            process.send_signal(number)
            process.wait_for(f"{signal.Signals(number).name}: draining 1 connection")
            client.sendall(b"two\n")
            assert client.recv(100) == b"got half of two\n"
            assert client.recv(100) == b""
        # KeyboardInterrupt, unhandled, ends Python by SIGINT.
        assert process.wait() == -number
    assert "0 idle, 1 finished, 0 cancelled, 0 aborted" in process.stderr
    assert ("KeyboardInterrupt" in process.stderr) is (number == signal.SIGINT)


@on_posix
def test_nothing_new_is_accepted_while_draining(program: Program) -> None:
    with program(RUN) as process:
        port = process.wait_for_port()
        with be_busy(port) as client:
            process.send_signal(signal.SIGTERM)
            process.wait_for("draining 1 connection")
            wait_until_blocking(lambda: not accepts(port), timeout=LONG)
            client.sendall(b"two\n")
            assert client.recv(100) == b"got half of two\n"
        assert process.wait() == -signal.SIGTERM


def accepts(port: int) -> bool:
    try:
        connect(port).close()
    except OSError:
        return False
    return True


@on_posix
def test_drain_timeout_cancels(program: Program) -> None:
    lines = "run(handler, address, loop=loop, on_ready=ready, drain_timeout=0.1, timeouts=quick)"
    with program(lines) as process:
        with be_busy(process.wait_for_port()):
            assert process.terminate() == -signal.SIGTERM
    assert "0 idle, 0 finished, 1 cancelled, 0 aborted" in process.stderr


@on_posix
@pytest.mark.parametrize("timeout", ["None", "3600.0"])
def test_second_signal_aborts(program: Program, timeout: str) -> None:
    with program(f"run(handler, address, loop=loop, on_ready=ready, drain_timeout={timeout})") as process:
        with be_busy(process.wait_for_port()) as client:
            process.send_signal(signal.SIGTERM)
            process.wait_for("draining 1 connection")
            process.send_signal(signal.SIGINT)
            assert process.wait() == -signal.SIGTERM
            with contextlib.suppress(ConnectionResetError):
                assert client.recv(100) == b""
    assert "a second signal: aborting 1 connection" in process.stderr


@on_posix
def test_second_signal_ends_the_delay(program: Program) -> None:
    with program("run(handler, address, loop=loop, on_ready=ready, drain_delay=3600.0)") as process:
        port = process.wait_for_port()
        process.send_signal(signal.SIGTERM)
        process.wait_for("draining 0 connections")
        assert accepts(port), "in the delay it still accepts"
        assert process.terminate() == -signal.SIGTERM


@on_posix
def test_second_signal_aborts_a_handler_that_swallows_cancellation(program: Program) -> None:
    with program("run(stubborn, address, loop=loop, on_ready=ready)") as process:
        with connect(process.wait_for_port()) as client:
            assert client.recv(100) == b"hello\n"
            process.send_signal(signal.SIGTERM)
            process.wait_for("draining 1 connection")
            assert process.terminate() == -signal.SIGTERM
    assert "left behind" in process.stderr


@on_posix
def test_handler_that_swallows_cancellation_does_not_keep_the_process(program: Program) -> None:
    lines = "run(stubborn, address, loop=loop, on_ready=ready, drain_timeout=0, timeouts=quick)"
    with program(lines) as process:
        with connect(process.wait_for_port()) as client:
            assert client.recv(100) == b"hello\n"
            assert process.terminate() == -signal.SIGTERM
    assert "0 cancelled, 1 aborted" in process.stderr
    assert "left behind" in process.stderr


@on_posix
def test_blocking_call_does_not_keep_the_process(program: Program) -> None:
    lines = "run(in_a_thread, address, loop=loop, on_ready=ready, drain_timeout=0, timeouts=quick)"
    with program(lines) as process:
        with connect(process.wait_for_port()) as client:
            assert client.recv(100) == b"hello\n"
            assert process.terminate() == -signal.SIGTERM
    assert "left behind: a blocking call in a thread" in process.stderr


@on_posix
def test_lifespan_that_fails_in_its_end_is_raised(program: Program) -> None:
    with program("run(handler, address, loop=loop, on_ready=ready, lifespan=failing_end)") as process:
        process.wait_for_port()
        assert process.terminate() == 1
    assert "LookupError: on purpose" in process.stderr


@on_posix
def test_third_signal_does_not_wait_for_the_lifespan(program: Program) -> None:
    with program("run(handler, address, loop=loop, on_ready=ready, lifespan=slow_end)") as process:
        process.wait_for_port()
        process.send_signal(signal.SIGTERM)
        process.wait_for("ending")
        process.send_signal(signal.SIGTERM)
        process.wait_for("a second signal")
        assert process.terminate() == -signal.SIGTERM
    assert "hurried" in process.stdout


@on_posix
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_during_the_start_gives_it_up(program: Program, number: int) -> None:
    with program("run(handler, address, loop=loop, on_ready=ready, lifespan=slow_start)") as process:
        process.wait_for("starting")
        process.send_signal(number)
        assert process.wait() == -number
    assert process.stdout == "starting\ngiven up\n"
    assert f"{signal.Signals(number).name}: the start is given up" in process.stderr


@on_posix
def test_second_signal_ends_a_start_that_swallows_cancellation(program: Program) -> None:
    lines = "run(handler, address, loop=loop, on_ready=ready, lifespan=stubborn_start)"
    with program(lines) as process:
        process.wait_for("starting")
        process.send_signal(signal.SIGTERM)
        process.wait_for("goes on")
        assert process.terminate() == -signal.SIGTERM


# --- signals, and several servers ---

TWO = "servers = [Server(handler, address, timeouts=quick) for _ in range(2)]\n"
RUN_TWO = TWO + "run_server(*servers, loop=loop, on_ready=two_ready"


def two_ports(process: PythonProcess) -> list[int]:
    process.wait_for("Both are ready\n")
    return [int(port) for port in re.findall(r":(\d+)\b", process.stdout)]


@on_posix
def test_signal_drains_all_at_the_same_time(program: Program) -> None:
    with program(RUN_TWO + ")") as process:
        ports = two_ports(process)
        with be_busy(ports[0]) as first, be_busy(ports[1]) as second:
            process.send_signal(signal.SIGTERM)
            for port in ports:
                process.wait_for(f"SIGTERM: tcp://127.0.0.1:{port}: draining 1 connection")
            # Neither waits for the other one: both accept no more, and the second is done first.
            for port in ports:
                wait_until_blocking(lambda port=port: not accepts(port), timeout=LONG)
            for port, client in ((ports[1], second), (ports[0], first)):
                client.sendall(b"two\n")
                assert client.recv(100) == b"got half of two\n"
                assert client.recv(100) == b""
                process.wait_for(f"tcp://127.0.0.1:{port}: drained in ")
        assert process.wait() == -signal.SIGTERM
    # The last one that asked whether it still accepts may have been served, too.
    assert len(re.findall(r"\d idle, [1-9] finished, 0 cancelled, 0 aborted", process.stderr)) == 2


@on_posix
@pytest.mark.parametrize("options", ["drain_timeout=None", "drain_delay=3600.0"])
def test_second_signal_aborts_all(program: Program, options: str) -> None:
    with program(f"{RUN_TWO}, {options})") as process:
        ports = two_ports(process)
        with be_busy(ports[0]) as first, be_busy(ports[1]) as second:
            process.send_signal(signal.SIGTERM)
            process.wait_for(f"{ports[1]}: draining 1 connection")
            process.send_signal(signal.SIGTERM)
            assert process.wait() == -signal.SIGTERM
            for client in (first, second):
                with contextlib.suppress(ConnectionResetError):
                    assert client.recv(100) == b""
    for port in ports:
        assert f"a second signal: tcp://127.0.0.1:{port}: aborting 1 connection" in process.stderr


@on_posix
def test_second_signal_does_not_count_the_server_that_is_closed(program: Program) -> None:
    with program(f"{RUN_TWO}, drain_timeout=None)") as process:
        ports = two_ports(process)
        with be_busy(ports[0]):
            process.send_signal(signal.SIGTERM)
            process.wait_for(f"tcp://127.0.0.1:{ports[1]}: drained in ")
            assert process.terminate() == -signal.SIGTERM
    assert process.stderr.count("a second signal: ") == 1


@on_posix
def test_signal_after_the_program_has_closed_one_drains_the_other(program: Program) -> None:
    lines = """
async def close_first():
    await servers[0].aclose()
    say("closed")

def ready_then_close(*servers):
    two_ready(*servers)
    kept.append(asyncio.ensure_future(close_first()))

kept = []
run_server(*servers, loop=loop, on_ready=ready_then_close)
"""
    with program(TWO + lines) as process:
        port = two_ports(process)[1]
        process.wait_for("closed\n")
        with be_busy(port) as client:
            process.send_signal(signal.SIGTERM)
            process.wait_for("SIGTERM: draining 1 connection")
            client.sendall(b"two\n")
            assert client.recv(100) == b"got half of two\n"
        assert process.wait() == -signal.SIGTERM


@on_posix
def test_signal_during_the_start_of_the_second_drains_the_first(program: Program) -> None:
    lines = """
@contextlib.asynccontextmanager
async def announced(server):
    say("Listening on", *first.addresses)
    async with slow_start(server):
        yield

first = Server(handler, address)
second = Server(handler, address, lifespan=announced)
third = Server(handler, address, lifespan=slow_start)
run_server(first, second, third, loop=loop, on_ready=ready)
"""
    with program(lines) as process:
        port = process.wait_for_port()
        process.wait_for("starting")
        with be_busy(port) as client:
            process.send_signal(signal.SIGTERM)
            process.wait_for("SIGTERM: draining 1 connection")
            client.sendall(b"two\n")
            assert client.recv(100) == b"got half of two\n"
        assert process.wait() == -signal.SIGTERM
    assert process.stdout.splitlines()[1:] == ["starting", "given up"]
    assert "SIGTERM: the start is given up" in process.stderr


@on_posix
def test_all_are_closed_when_the_lifespan_of_one_fails_in_its_end(program: Program) -> None:
    lines = """
servers = [Server(handler, address, lifespan=failing_end), Server(handler, address)]
run_server(*servers, loop=loop, on_ready=two_ready)
"""
    with program(lines) as process:
        ports = two_ports(process)
        with be_busy(ports[1]) as client:
            process.send_signal(signal.SIGTERM)
            wait_until_blocking(lambda: not accepts(ports[0]), timeout=LONG)
            process.wait_for(f"{ports[1]}: draining 1 connection")
            client.sendall(b"two\n")
            assert client.recv(100) == b"got half of two\n"
        assert process.wait() == 1
    assert f"tcp://127.0.0.1:{ports[1]}: drained in " in process.stderr
    assert "LookupError: on purpose" in process.stderr
    assert "Group" not in process.stderr


@on_posix
def test_all_errors_of_several_ends_are_raised(program: Program) -> None:
    lines = """
servers = [Server(handler, address, lifespan=failing_end) for _ in range(2)]
run_server(*servers, loop=loop, on_ready=two_ready)
"""
    with program(lines) as process:
        two_ports(process)
        assert process.terminate() == 1
    assert "ExceptionGroup: several servers failed in their end (2 sub-exceptions)" in process.stderr


@on_posix
def test_where_all_of_them_listen_is_logged(program: Program) -> None:
    with program(TWO + "run_server(*servers, loop=loop)") as process:
        process.wait_for("listening on tcp://")
        assert process.terminate() == -signal.SIGTERM
    assert re.search(r"^listening on tcp://127.0.0.1:\d+, tcp://127.0.0.1:\d+$", process.stderr, re.MULTILINE)


# --- what a program that goes on afterwards sees ---


@on_posix
def test_interrupt_is_raised_with_the_handlers_restored(program: Program) -> None:
    lines = """
try:
    run(handler, address, loop=loop, on_ready=ready)
except KeyboardInterrupt:
    say("interrupted")
show_handlers()
"""
    with program(lines) as process:
        process.wait_for_port()
        process.send_signal(signal.SIGINT)
        assert process.wait() == 0
    assert process.stdout.splitlines()[1:] == ["interrupted", "restored True True"]


@on_posix
def test_programs_own_handler_is_called_and_run_returns(program: Program) -> None:
    lines = """
def own(number, frame):
    say("own handler", signal.Signals(number).name)

signal.signal(signal.SIGTERM, own)
for _ in range(2):
    run(handler, address, loop=loop, on_ready=ready)
    say("returned", signal.getsignal(signal.SIGTERM) is own)
"""
    with program(lines) as process:
        for times in (1, 2):
            wait_until_blocking(lambda times=times: process.stdout.count("Listening") == times, timeout=LONG)
            process.send_signal(signal.SIGTERM)
        assert process.wait() == 0
    lines_after = [line for line in process.stdout.splitlines() if not line.startswith("Listening")]
    assert lines_after == ["own handler SIGTERM", "returned True"] * 2


@on_posix
def test_start_that_fails_restores_the_handlers(program: Program) -> None:
    lines = """
try:
    run(handler, "tcp://192.0.2.1:9", loop=loop)
except BindError:
    show_handlers()
"""
    with program(lines) as process:
        assert process.wait() == 0
    assert process.stdout == "restored True True\n"
