from __future__ import annotations

import asyncio
import os
import re
import signal
import sys
import tempfile
import time
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import ModuleType

import pytest

from asyncserver import CloseReason, Server
from tests.examples.programs import (
    EXAMPLES,
    connected,
    line_from,
    load,
    port_of,
    program,
    run_tool,
    serving,
    tool,
)
from tests.waiting import wait_until, within

NOBODY = 65_534


@pytest.fixture
def control() -> ModuleType:
    return load("control_socket")


@pytest.fixture
def socket_path() -> Iterator[str]:
    """A path short enough for any platform; nothing may be left there."""
    with tempfile.TemporaryDirectory(prefix="control-") as directory:
        path = os.path.join(directory, "control.sock")
        yield path
        assert not os.path.exists(path)


@asynccontextmanager
async def controlled(control: ModuleType, address: str) -> AsyncIterator[Server]:
    async with serving(
        control.line_echo, lifespan=lambda service: control.control_socket(service, address)
    ) as service:
        yield service


async def ask(path: str, *commands: str) -> list[str]:
    """What the control socket answers to each command."""
    text = "".join(f"{command}\n" for command in commands)
    output = await run_tool("socat", "-t", "10", "-", f"UNIX-CONNECT:{path}", send=text.encode())
    return output.removesuffix("\n\n").split("\n\n")


async def test_status_and_connections(control: ModuleType, socket_path: str) -> None:
    began = time.monotonic()
    async with controlled(control, f"unix:{socket_path}") as service:
        async with connected(port_of(service)) as (reader, writer):
            writer.write(b"hello\n")
            assert await line_from(reader) == "hello"
            status, connections, unknown = await ask(socket_path, "status", "connections", "dance")
            first, *others = status.splitlines()
            up = re.fullmatch(r"ready, up (\d+) s", first)
            assert up is not None
            assert int(up[1]) <= round(time.monotonic() - began)
            assert others == [
                "connections: 1 open, 1 accepted, 0 rejected",
                "bytes: 6 received, 6 sent",
            ]
            host, port = writer.get_extra_info("sockname")
            assert connections == f"<Connection 1 peer={host}:{port} idle>"
            assert unknown.startswith("commands: ")


async def test_close_one_connection(control: ModuleType, socket_path: str) -> None:
    async with controlled(control, f"unix:{socket_path}") as service:
        async with connected(port_of(service)) as (reader, writer):
            await wait_until(lambda: len(service.connections) == 1)
            (connection,) = service.connections
            closing = asyncio.ensure_future(ask(socket_path, "close 1", "close 2"))
            assert await within(reader.read()) == b""
            writer.close()
            assert await within(closing) == ["closed: closed_by_server", "error: no connection 2"]
            assert connection.close_reason is CloseReason.CLOSED_BY_SERVER


async def test_drain_ends_service_and_control_socket(control: ModuleType, socket_path: str) -> None:
    async with controlled(control, f"unix:{socket_path}") as service:
        assert await ask(socket_path, "drain soon", "drain 5") == [
            "error: soon is not a number of seconds",
            "draining 0 connections",
        ]
        await within(service.wait_closed())


async def test_other_users_may_look_only(
    control: ModuleType, socket_path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control, "OPERATORS", {os.geteuid() + 1})
    async with controlled(control, f"unix:{socket_path}") as service:
        answers = await ask(socket_path, "status", "drain", "close 1")
        assert answers[0].startswith("ready")
        assert answers[1:] == ["error: you may not drain", "error: you may not close"]
        assert service.ready


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can start a client of another user")
@pytest.mark.skipif(sys.platform != "linux", reason="abstract names, which need no directory, are Linux's")
async def test_the_kernel_tells_who_another_user_is(control: ModuleType) -> None:
    name = f"control-{uuid.uuid4()}"
    async with controlled(control, f"unix:@{name}") as service:
        output = await run_tool(
            "socat", "-t", "10", "-", f"ABSTRACT-CONNECT:{name}", send=b"drain\nstatus\n", user=NOBODY
        )
        assert output.startswith("error: you may not drain\n\nready")
        assert service.ready


def test_it_runs_as_a_program(tmp_path: Path) -> None:
    example = str(EXAMPLES / "control_socket.py")
    with program(example, "tcp://127.0.0.1:0", "unix:control.sock", cwd=tmp_path) as running:
        port = running.read_until(r"listening on tcp://127\.0\.0\.1:(\d+)")[1]
        assert tool("nc", "-N", "127.0.0.1", port, send=b"hello\n") == "hello\n"
        control = f"UNIX-CONNECT:{tmp_path}/control.sock"
        status = tool("socat", "-t", "10", "-", control, send=b"status\n")
        assert "connections: 0 open, 1 accepted" in status
        assert tool("socat", "-t", "10", "-", control, send=b"drain\n") == "draining 0 connections\n\n"
        assert running.wait() == 0
    assert not (tmp_path / "control.sock").exists()


def test_a_signal_ends_the_program_and_its_control_socket(tmp_path: Path) -> None:
    example = str(EXAMPLES / "control_socket.py")
    with program(example, "tcp://127.0.0.1:0", "unix:control.sock", cwd=tmp_path) as running:
        running.read_until("listening on")
        assert running.stop() == -signal.SIGTERM
    assert not (tmp_path / "control.sock").exists()
