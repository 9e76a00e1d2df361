from __future__ import annotations

import signal
from typing import Any

import pytest

from asyncserver import Handler
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
from tests.waiting import within


@pytest.fixture
def line_echo() -> Any:
    return load("line_echo").line_echo


async def test_nc_gets_its_lines_back(line_echo: Handler) -> None:
    async with serving(line_echo) as server:
        output = await run_tool("nc", "-N", "127.0.0.1", str(port_of(server)), send=b"one\ntwo\r\nthree")
    assert output == "one\ntwo\nthree\n"


async def test_each_line_comes_back_before_the_next_is_sent(line_echo: Handler) -> None:
    async with serving(line_echo) as server, connected(port_of(server)) as (reader, writer):
        for line in ("one", "", "three"):
            writer.write(f"{line}\n".encode())
            assert await line_from(reader) == line


async def test_a_line_that_is_too_long_ends_the_connection(line_echo: Handler) -> None:
    async with serving(line_echo) as server, connected(port_of(server)) as (reader, writer):
        writer.write(b"x" * 200_000)
        assert await within(reader.read()) == b""


def test_it_runs_from_the_command_line(loop_name: str) -> None:
    with command_line("line_echo.py:line_echo", "tcp://127.0.0.1:0", loop=loop_name) as running:
        port = printed_port(running)
        assert tool("nc", "-N", "127.0.0.1", port, send=b"hello\n") == "hello\n"
        assert running.stop() == -signal.SIGTERM
