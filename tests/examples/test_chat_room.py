from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import ModuleType

import pytest

from asyncserver import Server
from tests.clients import Client, reset_at_close
from tests.examples.programs import (
    Connected,
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
from tests.waiting import wait_until, within


@pytest.fixture
def chat() -> ModuleType:
    return load("chat_room")


@asynccontextmanager
async def member(server: Server, name: str) -> AsyncIterator[Connected]:
    async with connected(port_of(server)) as (reader, writer):
        assert await line_from(reader) == "* your name?"
        writer.write(f"{name}\n".encode())
        assert await line_from(reader) == f"* {name} is here"
        yield reader, writer


async def test_what_one_says_all_read(chat: ModuleType) -> None:
    async with serving(chat.chat_room) as server, member(server, "ann") as ann, member(server, "bob") as bob:
        assert await line_from(ann[0]) == "* bob is here"
        ann[1].write("grüß dich \x1b[31mbob\n".encode())
        assert await line_from(ann[0]) == await line_from(bob[0]) == "ann: grüß dich [31mbob"
        bob[1].write(b"/quit\n")
        assert await line_from(ann[0]) == "* bob has left"
        assert await within(bob[0].read()) == b""
        assert list(chat.ROOM.members) == ["ann"]


async def test_names_are_checked_and_taken_once(chat: ModuleType) -> None:
    async with serving(chat.chat_room) as server, member(server, "ann"):
        output = await run_tool("nc", "-N", "127.0.0.1", str(port_of(server)), send=b"a b\nann\nbob\n/quit\n")
        assert output.splitlines() == [
            "* your name?",
            "* 1 to 20 letters and digits, please",
            "* somebody has this name, another one?",
            "* bob is here",
        ]


async def test_a_member_who_is_cut_off_is_reported_as_gone(chat: ModuleType) -> None:
    async with serving(chat.chat_room) as server, member(server, "ann") as ann:
        async with member(server, "bob") as bob:
            assert await line_from(ann[0]) == "* bob is here"
            reset_at_close(bob[1].get_extra_info("socket"))
        assert await line_from(ann[0]) == "* bob has left"


@pytest.mark.parametrize("length", [900, 100])
async def test_who_never_reads_holds_no_memory_and_stops_nobody(chat: ModuleType, length: int) -> None:
    async with serving(chat.chat_room) as server, member(server, "ann") as ann, member(server, "bob") as bob:
        assert await line_from(ann[0]) == "* bob is here"
        async with await Client.connect(server, receive_buffer=4_096) as eve:
            await eve.send(b"eve\n")
            assert await line_from(ann[0]) == await line_from(bob[0]) == "* eve is here"
            text = "x" * length
            slow = chat.ROOM.members["eve"]
            most = 0
            while slow.missed < 1_000:
                ann[1].write(f"{text}\n".encode() * 10)
                for _ in range(10):
                    assert await line_from(ann[0]) == await line_from(bob[0]) == f"ann: {text}"
                most = max(most, slow.stream.unsent)
            assert chat.MOST_UNSENT < most <= chat.MOST_UNSENT + 1_000
            assert chat.ROOM.members["ann"].missed == chat.ROOM.members["bob"].missed == 0
            eve.close()
        assert await line_from(ann[0]) == "* eve has left"


async def test_who_reads_again_is_told_what_was_missed(chat: ModuleType) -> None:
    async with serving(chat.chat_room) as server, member(server, "ann") as ann:
        async with await Client.connect(server, receive_buffer=4_096) as eve:
            await eve.send(b"eve\n")
            assert await line_from(ann[0]) == "* eve is here"
            slow = chat.ROOM.members["eve"]
            while not slow.missed:
                ann[1].write(b"x" * 900 + b"\n")
                await line_from(ann[0])
            missed = slow.missed
            reading = asyncio.ensure_future(
                read_until(eve, f"* you missed {missed} messages\nann: well?\n".encode())
            )
            await wait_until(lambda: not slow.stream.unsent)
            ann[1].write(b"well?\n")
            await within(reading)


async def test_a_fast_writer_costs_readers_nothing(chat: ModuleType) -> None:
    async with serving(chat.chat_room) as server, member(server, "ann") as ann, member(server, "bob") as bob:
        assert await line_from(ann[0]) == "* bob is here"
        ann[1].write(b"".join(b"%d %s\n" % (number, b"x" * 500) for number in range(500)))
        for number in range(500):
            assert (await line_from(bob[0])).startswith(f"ann: {number} ")


async def test_drain_says_goodbye_in_a_lively_room(chat: ModuleType) -> None:
    async with serving(chat.chat_room) as server:
        async with member(server, "ann") as ann, member(server, "bob") as bob:
            talking = asyncio.ensure_future(talk(ann[1]))
            draining = asyncio.ensure_future(server.drain(None))
            for reader, _ in (ann, bob):
                assert (await within(reader.read())).endswith(b"* the server is closing, goodbye\n")
            talking.cancel()
            await asyncio.wait([talking])
        report = await within(draining)
        assert report.clean
        assert report.idle + report.finished == 2
        assert chat.ROOM.members == {}


def test_it_runs_from_the_command_line(loop_name: str) -> None:
    with command_line("chat_room.py:chat_room", "tcp://127.0.0.1:0", loop=loop_name) as running:
        port = printed_port(running)
        output = tool("nc", "-N", "127.0.0.1", port, send=b"ann\nhello\n/quit\n")
        assert output == "* your name?\n* ann is here\nann: hello\n"
        running.stop()


async def talk(writer: asyncio.StreamWriter) -> None:
    while True:
        writer.write(b"bla\n")
        await asyncio.sleep(0.001)


async def read_until(client: Client, end: bytes) -> None:
    received = b""
    while not received.endswith(end):
        received = received[-200:] + await client.receive()
