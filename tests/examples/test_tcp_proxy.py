from __future__ import annotations

import asyncio
import hashlib
import logging
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import ModuleType

import pytest

from asyncserver import Handler, Server, Stream, TLSConfig, current_connection
from tests.certificates import CertificateFiles, authority
from tests.clients import reset_at_close
from tests.examples.programs import (
    command_line,
    connected,
    line_from,
    load,
    port_of,
    printed_port,
    run_tool,
    serving,
    tool,
)
from tests.waiting import MS, stays, wait_until, within

BLOCK = bytes(range(256)) * 4_096  # 1 MiB
BLOCKS = 24


@pytest.fixture
def proxy() -> ModuleType:
    return load("tcp_proxy")


@pytest.fixture
def certificate() -> CertificateFiles:
    return authority().server()


@asynccontextmanager
async def proxied(
    proxy: ModuleType, upstream: Handler, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Server]:
    async with serving(upstream) as behind:
        monkeypatch.setenv("UPSTREAM", f"127.0.0.1:{port_of(behind)}")
        async with serving(proxy.tcp_proxy) as server:
            yield server


async def test_the_client_may_end_first(proxy: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    async def count(stream: Stream) -> None:
        size = sum([len(chunk) async for chunk in stream])
        await stream.send(b"%d bytes\n" % size)

    async with proxied(proxy, count, monkeypatch) as server:
        output = await run_tool("nc", "-N", "127.0.0.1", str(port_of(server)), send=b"x" * 1_000_000)
    assert output == "1000000 bytes\n"


async def test_the_upstream_may_end_first(proxy: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    received: list[bytes] = []

    async def listener(stream: Stream) -> None:
        await stream.send(b"speak\n")
        await stream.send_eof()
        received.extend([line async for line in stream.lines()])

    async with proxied(proxy, listener, monkeypatch) as server:
        async with connected(port_of(server)) as (reader, writer):
            assert await within(reader.read()) == b"speak\n"
            for number in range(3):
                writer.write(b"%d\n" % number)
            writer.write_eof()
            await wait_until(lambda: received == [b"0", b"1", b"2"])


async def test_large_transfers_both_ways_at_once(proxy: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    async def echo(stream: Stream) -> None:
        async for chunk in stream:
            await stream.send(chunk)

    async with proxied(proxy, echo, monkeypatch) as server:
        async with connected(port_of(server)) as (reader, writer):
            sending = asyncio.ensure_future(send_blocks(writer))
            digest = hashlib.sha256()
            while chunk := await within(reader.read(1 << 20)):
                digest.update(chunk)
            await sending
    assert digest.digest() == hashlib.sha256(BLOCK * BLOCKS).digest()


async def test_a_reader_that_stops_stops_the_writer(
    proxy: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    writers: list[Stream] = []

    async def pour(stream: Stream) -> None:
        writers.append(stream)
        for _ in range(BLOCKS):
            await stream.send(BLOCK)

    async with proxied(proxy, pour, monkeypatch) as server:
        async with connected(port_of(server), limit=1_024) as (reader, _):
            await wait_until(lambda: writers and writers[0].unsent)
            await came_to_rest(writers[0])
            await stays(lambda: writers[0].unsent, during=100 * MS)
            (connection,) = server.connections
            assert connection.stream.unsent < 500_000
            received = 0
            while chunk := await within(reader.read(1 << 20)):
                received += len(chunk)
    assert received == BLOCKS * len(BLOCK)


async def test_an_upstream_that_refuses_resets_the_client(
    proxy: ModuleType, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with socket.socket() as bound:  # and not listening
        bound.bind(("127.0.0.1", 0))
        monkeypatch.setenv("UPSTREAM", f"127.0.0.1:{bound.getsockname()[1]}")
        async with serving(proxy.tcp_proxy) as server, connected(port_of(server)) as (reader, _):
            with pytest.raises(ConnectionResetError):
                await within(reader.read())
    assert "cannot connect to 127.0.0.1" in caplog.text
    assert no_errors(caplog)


async def test_an_upstream_that_is_cut_off_resets_the_client(
    proxy: ModuleType, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def half_an_answer(stream: Stream) -> None:
        await stream.send(b"half\n")
        await stream.receive()
        stream.abort()

    async with proxied(proxy, half_an_answer, monkeypatch) as server:
        async with connected(port_of(server)) as (reader, writer):
            assert await line_from(reader) == "half"
            writer.write(b"x")
            with pytest.raises(ConnectionResetError):
                await within(reader.read())
        await wait_until(lambda: not server.connections)
    assert no_errors(caplog)


async def test_a_client_that_is_cut_off_ends_the_upstream(
    proxy: ModuleType, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    ended = asyncio.Event()

    async def wait_for_the_end(stream: Stream) -> None:
        try:
            async for chunk in stream:
                await stream.send(chunk)
        finally:
            ended.set()

    async with proxied(proxy, wait_for_the_end, monkeypatch) as server:
        async with connected(port_of(server)) as (reader, writer):
            writer.write(b"x\n")
            assert await line_from(reader) == "x"
            reset_at_close(writer.get_extra_info("socket"))
        await within(ended.wait())
        await wait_until(lambda: not server.connections)
    assert no_errors(caplog)


async def test_drain_ends_idle_sessions(proxy: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    async def echo(stream: Stream) -> None:
        async for chunk in stream:
            await stream.send(chunk)

    async with proxied(proxy, echo, monkeypatch) as server, connected(port_of(server)) as (reader, writer):
        writer.write(b"x\n")
        assert await line_from(reader) == "x"
        draining = asyncio.ensure_future(server.drain(None))
        assert await within(reader.read()) == b""
        writer.close()
        assert (await within(draining)).clean


async def test_it_terminates_tls(
    proxy: ModuleType, monkeypatch: pytest.MonkeyPatch, certificate: CertificateFiles
) -> None:
    async def shout(stream: Stream) -> None:
        assert current_connection().listener.tls is False
        async for line in stream.lines():
            await stream.send(line.upper() + b"\n")

    tls = TLSConfig(certificate=certificate.combined)
    async with serving(shout) as behind:
        monkeypatch.setenv("UPSTREAM", f"127.0.0.1:{port_of(behind)}")
        async with serving(proxy.tcp_proxy, "tls+tcp://127.0.0.1:0", tls=tls) as server:
            address = f"OPENSSL:127.0.0.1:{port_of(server)},cafile={authority().file}"
            output = await run_tool("socat", "-t", "10", "-", address, send=b"hello\n")
    assert output == "HELLO\n"


def test_it_runs_from_the_command_line(loop_name: str) -> None:
    with command_line("line_echo.py:line_echo", "tcp://127.0.0.1:0", loop=loop_name) as echo:
        environment = {"UPSTREAM": f"127.0.0.1:{printed_port(echo)}"}
        with command_line(
            "tcp_proxy.py:tcp_proxy", "tcp://127.0.0.1:0", loop=loop_name, environment=environment
        ) as running:
            assert tool("nc", "-N", "127.0.0.1", printed_port(running), send=b"hello\n") == "hello\n"
            running.stop()
        echo.stop()


async def send_blocks(writer: asyncio.StreamWriter) -> None:
    for _ in range(BLOCKS):
        writer.write(BLOCK)
        await writer.drain()
    writer.write_eof()


async def came_to_rest(stream: Stream) -> None:
    """Wait until the peer of ``stream`` has taken nothing for a while."""
    seen = -1
    while seen != stream.bytes_sent:
        seen = stream.bytes_sent
        await asyncio.sleep(50 * MS)


def no_errors(caplog: pytest.LogCaptureFixture) -> bool:
    return not [record for record in caplog.records if record.levelno >= logging.ERROR]
