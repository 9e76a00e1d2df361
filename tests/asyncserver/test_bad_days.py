"""What a server must survive. Each load is bounded, and nothing here depends on luck in time."""

from __future__ import annotations

import asyncio
import json
import os
import random
import resource
import ssl
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from asyncserver import (
    CloseReason,
    ConnectionState,
    Limits,
    Server,
    Stream,
    StreamHandler,
    Timeouts,
    UnixAddress,
)
from tests.clients import (
    LOOPBACK,
    Client,
    TLSClient,
    complaints,
    connect_many,
    echo,
    ignore_cancellation,
    local_server,
)
from tests.waiting import MS, SECOND, wait_until, within

pytestmark = pytest.mark.usefixtures("tasks_as_in_production")


# In a process of their own: its limits, its CPU time and its memory are what these are about.

PRELUDE = """
import asyncio, json, os, resource, socket, sys, time
from asyncserver import *
from tests.clients import Client, connect_many, echo
from tests.conftest import LOOP_FACTORIES
from tests.waiting import wait_until

def limit_descriptors(soft):
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))

def say(**values):
    print(json.dumps(values), flush=True)

async def order(wanted):
    line = await asyncio.to_thread(sys.stdin.readline)
    assert line.strip() == wanted, line
"""

EPILOGUE = """
with asyncio.Runner(loop_factory=LOOP_FACTORIES[sys.argv[1]]) as runner:
    runner.run(main())
"""


class Program:
    """A program in another process, which speaks JSON lines and is told what to do in plain ones."""

    def __init__(self, loop_name: str, code: str, *arguments: str) -> None:
        self.process = subprocess.Popen(
            [
                sys.executable,
                "-W",
                "error",
                "-c",
                PRELUDE + textwrap.dedent(code) + EPILOGUE,
                loop_name,
                *arguments,
            ],
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> Program:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            self.process.kill()
        _, errors = self.process.communicate(timeout=60)
        if kind is None:
            assert self.process.returncode == 0, errors

    def answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            _, errors = self.process.communicate(timeout=60)
            raise AssertionError(f"the program has ended: {errors}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def tell(self, order: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(order + "\n")
        self.process.stdin.flush()


def test_descriptors_run_out_and_come_back(loop_name: str) -> None:
    """Nobody is lost, there is one line about it, and waiting costs less than 1 % of the CPU."""
    code = """
    import logging

    lines = []

    class Lines(logging.Handler):
        def emit(self, record):
            lines.append(record.getMessage())

    async def main():
        logging.getLogger("asyncserver").addHandler(Lines())
        limit_descriptors(120)
        # No limit of its own, so that the kernel is what says no.
        async with Server(echo, "tcp://127.0.0.1:0", limits=Limits(max_connections=None)) as server:
            say(port=server.addresses[0].port)
            await wait_until(lambda: server.statistics().listeners[0].exhausted)
            # Past the first, short delays.
            await wait_until(lambda: server.listeners[0]._delay > 0.5)
            cpu, began = time.process_time(), time.monotonic()
            await asyncio.sleep(2)
            cpu, wall = time.process_time() - cpu, time.monotonic() - began
            say(cpu=cpu / wall, served=len(server.connections))
            await order("served")
            await wait_until(lambda: not server.connections)
            statistics = server.statistics()
            say(accepted=statistics.accepted, exhausted=statistics.listeners[0].exhausted,
                accept_errors=statistics.listeners[0].accept_errors, peak=statistics.peak, lines=lines)
    """
    with Program(loop_name, code) as server:
        asyncio.run(flood(server))
        end = server.answer()
    assert end["accepted"] == FLOOD
    assert end["peak"] < 120
    assert end["accept_errors"] == 0
    # While it empties the queue it may run out again, after it had accepted.
    assert 1 <= end["exhausted"] <= 10
    errors = [line for line in end["lines"] if "out of descriptors" in line]
    assert len(errors) == end["exhausted"]
    assert len(end["lines"]) <= 2 * end["exhausted"] + 1


FLOOD = 300


async def flood(server: Program) -> None:
    loop = asyncio.get_running_loop()
    address = ("127.0.0.1", (await asyncio.to_thread(server.answer))["port"])
    opened = [await asyncio.open_connection(*address) for _ in range(FLOOD)]
    for _, writer in opened:
        writer.write(b"hello")
    waiting = await asyncio.to_thread(server.answer)
    assert waiting["cpu"] < 0.01, waiting
    assert 50 < waiting["served"] < 120
    assert loop is asyncio.get_running_loop()

    async def served(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
        answer = await within(reader.readexactly(5), timeout=60 * SECOND)
        writer.close()
        await writer.wait_closed()
        return answer

    assert await asyncio.gather(*(served(*pair) for pair in opened)) == [b"hello"] * FLOOD
    await asyncio.to_thread(server.tell, "served")


IDLE_CLIENT = """
async def main():
    limit_descriptors(resource.getrlimit(resource.RLIMIT_NOFILE)[1])
    port, count = int(sys.argv[2]), int(sys.argv[3])
    loop = asyncio.get_running_loop()
    socks = []
    for index in range(count):
        sock = socket.socket()
        sock.bind((f"127.0.0.{2 + index % 4}", 0))
        sock.connect(("127.0.0.1", port))
        socks.append(sock)
    say(connected=len(socks))
    await order("echo")
    answered = 0
    for batch in range(0, count, 500):
        for sock in socks[batch:batch + 500]:
            sock.sendall(b"hello")
        for sock in socks[batch:batch + 500]:
            answered += sock.recv(5, socket.MSG_WAITALL) == b"hello"
    say(answered=answered)
    await order("follow")
    ended = 0
    for sock in socks:
        ended += sock.recv(5) == b""
        sock.close()
    say(ended=ended)
"""

IDLE_SERVER = """
async def main():
    limit_descriptors(resource.getrlimit(resource.RLIMIT_NOFILE)[1])

    def resident():
        with open("/proc/self/statm") as statm:
            return int(statm.read().split()[1]) * resource.getpagesize()

    count = int(sys.argv[2])
    async with Server(echo, "tcp://127.0.0.1:0", limits=Limits(max_connections=count)) as server:
        before = resident()
        say(port=server.addresses[0].port)
        await wait_until(lambda: len(server.connections) == count, timeout=60)
        say(each=(resident() - before) / count)
        await order("drain")
        began = time.monotonic()
        report = await server.drain(30)
        say(idle=report.idle, finished=report.finished, cancelled=report.cancelled, aborted=report.aborted,
            seconds=time.monotonic() - began)
"""


def test_ten_thousand_idle_connections(loop_name: str, record_property: Any) -> None:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    count = 10_000 if hard == resource.RLIM_INFINITY else min(10_000, hard - 500)
    with Program(loop_name, IDLE_SERVER, str(count)) as server:
        port = server.answer()["port"]
        with Program(loop_name, IDLE_CLIENT, str(port), str(count)) as client:
            assert client.answer()["connected"] == count
            each = server.answer()["each"]
            client.tell("echo")
            assert client.answer()["answered"] == count
            client.tell("follow")
            server.tell("drain")
            report = server.answer()
            assert client.answer()["ended"] == count
    record_property("bytes_per_idle_connection", round(each))
    scale = f"with {count} connections ({hard} descriptors are allowed): {each:.0f} bytes each, {report}"
    assert each < 6 * 1024, scale
    assert report["idle"] + report["finished"] == count, scale
    assert report["cancelled"] == report["aborted"] == 0, scale
    assert report["seconds"] < 15 * SECOND, scale


# In this process.


async def test_two_thousand_connects_in_one_burst_at_limit_one_hundred() -> None:
    running = most = 0

    async def handler(stream: Stream) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        try:
            await stream.send(await stream.receive_exactly(5))
        finally:
            running -= 1

    async def visit(target: Any) -> bytes:
        async with await Client.connect(target) as client:
            await client.send(b"hello")
            return await client.receive_all()

    async with local_server(handler, limits=Limits(max_connections=100)) as server:
        for _ in range(4):  # Descriptors of clients are limited, too; the server is full all the time.
            answers = await within(asyncio.gather(*(visit(server) for _ in range(500))), timeout=60 * SECOND)
            assert answers == [b"hello"] * 500
        await wait_until(lambda: not server.connections)
        statistics = server.statistics()
        assert most <= 100
        assert statistics.peak <= 100
        assert (statistics.accepted, statistics.rejected) == (2_000, 0)


async def test_one_byte_at_a_time_is_served_and_harms_nobody() -> None:
    """Progress counts: the deadlines of idleness do not meet a client that is only slow."""
    timeouts = Timeouts(idle=400 * MS, first_byte=400 * MS)

    async def handler(stream: Stream) -> None:
        async for line in stream.lines():
            await stream.send(line + b"\n")

    async with local_server(handler, timeouts=timeouts) as server:
        slow = await connect_many(server, 20)

        async def talk_slowly(client: Client) -> bytes:
            await client.send_slowly(b"0123456789\n", 50 * MS)
            return await client.receive()

        talking = asyncio.gather(*map(talk_slowly, slow))
        for _ in range(20):
            async with await Client.connect(server) as quick:
                assert await quick.ask(b"hello\n") == b"hello\n"
        assert await within(talking) == [b"0123456789\n"] * 20
        for client in slow:
            client.close()


async def test_one_byte_at_a_time_for_ever_meets_the_lifetime() -> None:
    async def handler(stream: Stream) -> None:
        await stream.receive_exactly(1_000_000)

    timeouts = Timeouts(lifetime=200 * MS, lifetime_jitter=0, grace=100 * MS, linger=0)
    async with local_server(handler, timeouts=timeouts) as server, await Client.connect(server) as client:
        sending = asyncio.ensure_future(client.send_slowly(bytes(10_000), 5 * MS))
        await wait_until(lambda: server.statistics().closed == {CloseReason.LIFETIME: 1})
        sending.cancel()
        await asyncio.gather(sending, return_exceptions=True)


async def test_clients_that_never_read_hold_little_and_harm_nobody() -> None:
    async def handler(stream: Stream) -> None:
        if await stream.receive() == b"flood":
            while True:
                await stream.send(bytes(100_000))
        await stream.send(b"hello")

    limits, timeouts = Limits(send_buffer=65_536), Timeouts(send=500 * MS)
    async with local_server(handler, limits=limits, timeouts=timeouts) as server:
        greedy = [await Client.connect(server, receive_buffer=4_096) for _ in range(10)]
        for client in greedy:
            await client.send(b"flood")
        await wait_until(lambda: sum(c.stream.unsent > 0 for c in server.connections) == 10)
        for _ in range(10):
            assert all(c.stream.unsent <= 65_536 + 100_000 + 1_000 for c in server.connections)
            async with await Client.connect(server) as quick:
                await quick.send(b"hi")
                assert await quick.receive_all() == b"hello"
        await wait_until(lambda: server.statistics().closed.get(CloseReason.SEND_TIMEOUT) == 10)
        for client in greedy:
            client.close()


async def test_a_reset_in_every_state(
    server_context: ssl.SSLContext, client_context: ssl.SSLContext, caplog: pytest.LogCaptureFixture
) -> None:
    go_on = asyncio.Event()

    async def verify(connection: Any) -> bool:
        return connection.listener.address != server.addresses[0] or await go_on.wait()

    async def handler(stream: Stream) -> None:
        command = (await stream.receive_exactly(6)).rstrip(b".")
        if command == b"work":
            await go_on.wait()
        elif command == b"send":
            while True:
                await stream.send(bytes(65_536))
        elif command == b"read":
            await stream.receive_exactly(1_000)
        elif command == b"return":
            await stream.send(b"bye")
            return
        await stream.receive()

    wanted = {
        "verify": ConnectionState.NEW,
        "handshake": ConnectionState.HANDSHAKE,
        "silence": ConnectionState.IDLE,
        "command": ConnectionState.ACTIVE,
        "idle": ConnectionState.IDLE,
        "message": ConnectionState.ACTIVE,
        "work": ConnectionState.ACTIVE,
        "send": ConnectionState.ACTIVE,
        "return": ConnectionState.DRAINING,
    }
    commands = {name: name.encode().ljust(6, b".") for name in ("idle", "work", "send", "return")}
    commands |= {"command": b"idl", "message": b"read..only a part"}
    addresses = [LOOPBACK, "tls+tcp://127.0.0.1:0", LOOPBACK]
    server = local_server(handler, *addresses, tls=server_context, verify=verify)
    async with server:
        for command, state in wanted.items():
            index = {"verify": 0, "handshake": 1}.get(command, 2)
            client = await Client.connect(server, index=index, receive_buffer=4_096)
            await client.send(commands.get(command, b""))
            await wait_until(
                lambda state=state: server.statistics().states == {state: 1},  # type: ignore[misc]
                what=lambda command=command: f"{command}: {server.statistics().states}",  # type: ignore[misc]
            )
            if command == "return":
                assert await client.receive_exactly(3) == b"bye"
            client.reset()
            if command in ("work", "verify"):
                go_on.set()  # Nobody reads, so nobody notices before.
            await wait_until(lambda: not server.connections)
            go_on.clear()
        # And in a TLS session.
        secure = await TLSClient.connect(server, client_context, index=1)
        await secure.send(b"idle..")
        await wait_until(lambda: server.statistics().states == {ConnectionState.IDLE: 1})
        secure.client.reset()
        await wait_until(lambda: not server.connections)
        async with await Client.connect(server, index=2) as client:
            await client.send(b"return")
            assert await client.receive_all() == b"bye"
    assert not complaints(caplog)
    closed = server.statistics().closed
    assert sum(closed.values()) == server.statistics().accepted == 11
    assert set(closed) <= {
        CloseReason.RESET,
        CloseReason.EOF,
        CloseReason.HANDLER_RETURNED,
        CloseReason.HANDSHAKE_FAILED,
    }


async def test_resets_at_random_moments(caplog: pytest.LogCaptureFixture) -> None:
    """Many at once, so that descriptor numbers are used again at once; nobody gets another one's bytes."""
    chance = random.Random(7)
    mixed_up: list[bytes] = []

    async def visit(byte: bytes) -> None:
        message = byte * chance.choice([6, 600, 60_000])
        client = await Client.connect(server)
        try:
            for _ in range(chance.randrange(4)):
                await client.send(message[: chance.randrange(1, len(message) + 1)])
                if chance.random() < 0.5:
                    answer = await client.receive()
                    if set(answer) != set(byte):
                        mixed_up.append(answer)
                if chance.random() < 0.2:
                    await asyncio.sleep(0)
        except ConnectionError:
            mixed_up.append(b"reset")
        finally:
            chance.choice([client.reset, client.close])()

    async def visitor(number: int) -> None:
        for turn in range(40):
            await visit(bytes([number * 12 + turn % 12]))

    async with local_server() as server:
        await within(asyncio.gather(*map(visitor, range(20))))
        await wait_until(lambda: not server.connections)
        statistics = server.statistics()
        assert statistics.accepted == sum(statistics.closed.values()) == 800
        assert set(statistics.closed) <= {CloseReason.RESET, CloseReason.EOF}
    assert not mixed_up
    assert not complaints(caplog)


class AnyBugError(Exception):
    pass


async def test_handlers_that_fail_in_every_way_at_once(caplog: pytest.LogCaptureFixture) -> None:
    """Others are served meanwhile, each failure is logged once, and all sockets are closed."""
    stop = asyncio.Event()

    class Handler(StreamHandler):
        command = b""

        async def setup(self) -> None:
            self.command = await self.stream.receive()
            self.fail_in(b"setup")

        async def handle(self) -> None:
            self.fail_in(b"handle")
            if self.command == b"swallow":
                await ignore_cancellation(stop)
            elif self.command != b"finish":
                await self.stream.send(self.command)
                await echo(self.stream)

        async def finish(self) -> None:
            self.fail_in(b"finish")

        def fail_in(self, step: bytes) -> None:
            if self.command == step:
                raise AnyBugError(step.decode())

    commands = [b"setup", b"handle", b"finish", b"swallow", b"good"] * 10
    async with local_server(Handler, timeouts=Timeouts(grace=100 * MS)) as server:
        clients = await connect_many(server, len(commands))
        for client, command in zip(clients, commands, strict=True):
            await client.send(command)
        for client in clients[4::5]:
            assert await client.receive_exactly(4) == b"good"
            client.half_close()
        # Those that swallow are the last at work: only now may the deadline of a handler pass.
        await wait_until(lambda: sum(c.close_reason is None for c in server.connections) == 10)
        server.update(handler=50 * MS)
        for client, command in zip(clients, commands, strict=True):
            expected = "reset" if command == b"swallow" else "eof"
            assert await client.ended() == expected
            client.close()
        await wait_until(lambda: not server.connections)
        assert server.statistics().closed == {
            CloseReason.HANDLER_ERROR: 30,
            CloseReason.ABORTED: 10,
            CloseReason.EOF: 10,
        }
        assert server.statistics().stuck_handlers == 10
        stop.set()
        await wait_until(lambda: not server.statistics().stuck_handlers)
    bugs = [record.exc_info[1] for record in caplog.records if record.exc_info]
    assert len(bugs) == 30
    assert all(isinstance(bug, AnyBugError) for bug in bugs)


async def test_restarts_under_load(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Closed and started again while clients come and talk: nobody hangs and nothing is left."""
    address = UnixAddress(f"{tmp_path}/s")
    server = local_server(echo, address)
    stop = False
    served = refused = 0

    async def keep_talking() -> None:
        nonlocal served, refused
        while not stop:
            try:
                async with await Client.connect(address) as client:
                    while not stop and await client.ask(b"hello") == b"hello":
                        served += 1
            except (ConnectionError, FileNotFoundError):
                refused += 1
                await asyncio.sleep(0.001)

    talking = [asyncio.ensure_future(keep_talking()) for _ in range(10)]
    await wait_until(lambda: refused)
    for turn in range(6):
        enough = served + 50
        await within(server.start())
        await wait_until(lambda enough=enough: served > enough)  # type: ignore[misc]
        await within(server.drain(500 * MS) if turn % 2 else server.aclose())
    stop = True
    await within(asyncio.gather(*talking))
    assert not complaints(caplog)


async def test_everything_at_once_and_then_a_drain(
    server_context: ssl.SSLContext, client_context: ssl.SSLContext
) -> None:
    """Silent, slow, greedy, rude and good clients on one server with small limits."""

    async def handler(stream: Stream) -> None:
        async for line in stream.lines(max_bytes=1_000):
            if line == b"bug":
                raise AnyBugError
            await stream.send((line + b"\n") * (1_000 if line == b"flood" else 1))

    limits = Limits(max_connections=40, max_handshakes=4, max_connections_per_peer=1_000)
    timeouts = Timeouts(handshake=1, idle=2, send=0.5, linger=0.2, grace=0.2)
    server: Server = local_server(
        handler, LOOPBACK, "tls+tcp://127.0.0.1:0", tls=server_context, limits=limits, timeouts=timeouts
    )
    async with server:

        async def silent() -> None:
            async with await Client.connect(server, index=1):
                await asyncio.sleep(0.1)

        async def rude() -> None:
            client = await Client.connect(server)
            await client.send(b"flood\n" * 20)
            client.reset()

        async def buggy() -> None:
            async with await Client.connect(server) as client:
                await client.send(b"bug\n")
                assert await client.ended() == "eof"

        async def long_winded() -> None:
            async with await Client.connect(server) as client:
                await client.send(b"x" * 5_000)
                await client.ended()

        async def good() -> None:
            async with await Client.connect(server) as client:
                for _ in range(5):
                    assert await client.ask(b"hello\n") == b"hello\n"

        async def good_and_secure() -> None:
            async with await TLSClient.connect(server, client_context, index=1) as client:
                assert await client.ask(b"hello\n") == b"hello\n"

        kinds = [silent, rude, buggy, long_winded, good, good_and_secure]
        await within(asyncio.gather(*(kind() for kind in kinds * 15)), timeout=60 * SECOND)
        report = await within(server.drain(10))
        assert report.aborted == 0
        statistics = server.statistics()
        assert statistics.peak <= 40
        assert statistics.accepted == sum(statistics.closed.values())
        assert statistics.closed[CloseReason.HANDLER_ERROR] == 15
