"""The tutorial, followed to the letter; only ports are others, and patience is shorter."""

from __future__ import annotations

import ast
import asyncio
import atexit
import functools
import itertools
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from asyncserver import Server
from asyncserver.testing import Client, serving
from tests.examples.programs import EXAMPLES, REPOSITORY, load
from tests.examples.terminals import Terminal, fenced, indented, play, rewritten
from tests.waiting import PATIENCE, SECOND, wait_until, within

PAGES = REPOSITORY / "docs" / "tutorial"
STEPS = {int(path.name[0]): path for path in sorted(PAGES.glob("[1-5]-*.md"))}
TEST_PAGE = PAGES / "6-test.md"
NAMES = {1: "lines", 2: "chat", 3: "chat", 4: "chat", 5: "chat"}
"""What the programs are called on the pages."""


def program(step: int) -> str:
    """The example without its docstring, which is about the file in the repository."""
    (path,) = EXAMPLES.glob(f"tutorial_{step}_*.py")
    text = path.read_text()
    end = ast.parse(text).body[0].end_lineno
    assert end is not None
    return "".join(text.splitlines(keepends=True)[end + 1 :])


# What the pages show of the programs.


@pytest.mark.parametrize("step", STEPS)
def test_the_page_shows_the_whole_program(step: int) -> None:
    assert fenced(STEPS[step], "python program") == [program(step)]


@pytest.mark.parametrize("step", [2, 3, 4, 5])
def test_what_is_explained_is_in_the_program(step: int) -> None:
    shown = re.sub(r"\s+", "", program(step))
    for excerpt in fenced(STEPS[step], "python"):
        for line in excerpt.splitlines():
            assert re.sub(r"\s+", "", line) in shown, line


def test_each_step_leads_to_the_next() -> None:
    pages = [*STEPS.values(), TEST_PAGE]
    for page, following in itertools.pairwise(pages):
        assert f"]({following.name})" in page.read_text().splitlines()[-1]


# What the pages show of terminals.


class Desk:
    """A directory with the program of a step, and terminals in it."""

    def __init__(self, directory: Path, loop: str, exits: ExitStack) -> None:
        self.directory = directory
        self._exits = exits
        self._environment = environment(directory, loop)
        self._ports: dict[str, str] = {}

    def write(self, step: int, changes: dict[str, str] | None = None) -> None:
        """Write the program; it gets free ports."""
        ports = {f"127.0.0.1:{port}": "127.0.0.1:0" for port in ("9999", "9998") if port in program(step)}
        text = rewritten(program(step), ports | (changes or {}))
        (self.directory / f"{NAMES[step]}.py").write_text(text)

    def serve(self, block: str) -> Terminal:
        """The terminal of the server, which listens now."""
        server = self.terminal("server", exact=False).show(block)
        play(server)
        found = re.findall(r"tcp://127\.0\.0\.1:(\d+)", server.output)
        self._ports = dict(zip(("9999", "9998"), found, strict=False))
        return server

    @property
    def port(self) -> int:
        return int(self._ports["9999"])

    def terminal(self, name: str, *, exact: bool = True) -> Terminal:
        terminal = Terminal(self.directory, self._environment, name, exact=exact)
        return self._exits.enter_context(terminal)

    def client(self, name: str, block: str, *, exact: bool = True) -> Terminal:
        """The terminal of a client, with the commands of the block."""
        return self.terminal(name, exact=exact).show(self.here(block))

    def here(self, block: str) -> str:
        """The block with the ports that the server has."""
        for port, real in self._ports.items():
            block = block.replace(f"127.0.0.1 {port}", f"127.0.0.1 {real}")
            # Somebody else may have the port in IPv6.
            block = block.replace(f"localhost:{port}", f"127.0.0.1:{real}")
        return block


def environment(directory: Path, loop: str) -> dict[str, str]:
    """One in which ``python`` is this Python, with this repository, and with uvloop or without."""
    commands = directory / "bin"
    commands.mkdir()
    (commands / "python").write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    (commands / "python").chmod(0o755)
    without = directory / "without"
    without.mkdir()
    if loop == "asyncio":
        (without / "uvloop.py").write_text("raise ImportError\n")
    paths = [str(without), str(REPOSITORY), *filter(None, [os.environ.get("PYTHONPATH")])]
    return os.environ | {
        "PATH": os.pathsep.join([str(commands), os.environ["PATH"]]),
        "PYTHONPATH": os.pathsep.join(paths),
        "PYTHONWARNINGS": "error",
        # As if pytest had been installed on its own.
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
    }


ONE_LOOP = pytest.mark.parametrize("loop_name", ["auto"])
"""For what is the same on both, and takes its time."""


@pytest.fixture
def desk(tmp_path: Path, loop_name: str) -> Iterator[Desk]:
    with ExitStack() as exits:
        yield Desk(tmp_path, loop_name, exits)


def test_lines(desk: Desk) -> None:
    listening, talk, stop = fenced(STEPS[1], "console")
    desk.write(1)
    server = desk.serve(listening)
    two = desk.client("ann", talk), desk.client("bob", talk)
    play(*two)
    for each in two:
        each.wait()
    with socket.create_connection(("127.0.0.1", desk.port), PATIENCE) as last:
        last.shutdown(socket.SHUT_WR)
        assert last.recv(1) == b""  # So the server knows that the others are gone, too.
    play(server.show(stop))


def test_chat(desk: Desk) -> None:
    listening, ann, bob = fenced(STEPS[2], "console")
    desk.write(2)
    desk.serve(listening)
    first = desk.terminal("ann")
    rest = first.show_until("* ann is here", desk.here(ann))
    play(first)
    play(first.show(rest), desk.client("bob", bob))


def test_bounds(desk: Desk) -> None:
    listening, *_, much, too_much, often, too_often = fenced(STEPS[3], "console")
    desk.write(3)
    server = desk.serve(listening)
    play(desk.client("eve", much), server.show(too_much))
    three = [
        desk.client(name, f"$ nc 127.0.0.1 9999\n* your name?\n{name}⏎\n* {name} is here\n", exact=False)
        for name in ("ann", "bob", "cem")
    ]
    play(*three)
    play(desk.client("dan", often), server.show(too_often))


@ONE_LOOP
def test_deadlines(desk: Desk) -> None:
    listening, silent, ended, idle, ended_too, *_ = fenced(STEPS[3], "console")
    desk.write(3, {"first_byte=10": f"first_byte={SECOND}", "idle=60": f"idle={SECOND}"})
    server = desk.serve(listening)
    play(desk.client("nobody", silent), server.show(ended))
    # Ann types her name before she is asked, so as not to be late on a busy machine.
    name_first = rewritten(idle, {"* your name?\nann⏎\n": "ann⏎\n* your name?\n"})
    play(desk.client("ann", name_first), server.show(ended_too))


@functools.cache
def certificate() -> Path:
    """A directory with what the page's first command makes, once for all tests."""
    directory = Path(tempfile.mkdtemp(prefix="tutorial-"))
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    make_certificate(directory)
    return directory


def make_certificate(directory: Path) -> None:
    (command,) = (block for block in indented(STEPS[4]) if "openssl req" in block)
    subprocess.run(
        ["bash", "-c", command], cwd=directory, check=True, capture_output=True, timeout=2 * PATIENCE
    )


def take_certificate(desk: Desk) -> None:
    for name in ("cert.pem", "key.pem"):
        shutil.copy(certificate() / name, desk.directory)


def test_tls(desk: Desk) -> None:
    listening, ann, bob, plain, refused, reloaded, carol = fenced(STEPS[4], "console")
    take_certificate(desk)
    desk.write(4, {"reload_interval=5": "reload_interval=0.1"})
    server = desk.serve(listening)
    first = desk.terminal("ann")
    rest = first.show_until("* ann is here, in plain text", desk.here(ann))
    play(first)
    second = desk.client("bob", bob)
    play(first.show(rest), second)
    nobody = desk.client("nobody", plain, exact=False)
    play(nobody, server.show(refused))
    make_certificate(desk.directory)
    play(server.show(reloaded))
    play(desk.client("carol", carol))
    news = "* carol is here, by TLS\n* carol has left\n"
    play(first.show(f"{news}still there?⏎\nann: still there?\n"), second.show(f"{news}ann: still there?\n"))


def test_drain(desk: Desk) -> None:
    listening, ann, bob, stop = fenced(STEPS[5], "console")
    take_certificate(desk)
    desk.write(5)
    server = desk.serve(listening)
    first = desk.terminal("ann")
    rest = first.show_until("* ann is here, in plain text", desk.here(ann))
    play(first)
    second = desk.terminal("bob")
    rest_of_second = second.show_until("* bob is here, by TLS", desk.here(bob))
    play(second)
    # Only openssl hangs up at the goodbye.
    leave = first.show_until("* the server is closing, goodbye", rest)
    play(server.show(stop), first, second.show(rest_of_second))
    assert "draining 2 connections" in server.output
    play(first.show(leave))


@ONE_LOOP
def test_the_test(desk: Desk) -> None:
    (listing,) = fenced(TEST_PAGE, "python program")
    (session,) = fenced(TEST_PAGE, "console")
    desk.write(5)
    (desk.directory / "test_chat.py").write_text(listing)
    play(desk.terminal("tester").show(session))


# What the pages promise, and no terminal shows.


@pytest.fixture
def chat() -> ModuleType:
    return load("tutorial_5_drain")


async def joined(server: Server, name: str, **options: Any) -> Client:
    client = await Client.connect(server, **options)
    await client.send(f"{name}\n".encode())
    await reads(client, f"* your name?\n* {name} is here, in plain text\n")
    return client


async def reads(client: Client, text: str) -> None:
    expected = text.encode()
    assert await client.receive_exactly(len(expected)) == expected


async def test_who_does_not_read_holds_no_memory_and_stops_nobody(chat: ModuleType) -> None:
    async with serving(chat.Chat, lifespan=chat.open_room) as server:
        async with await joined(server, "eve", receive_buffer=4_096), await joined(server, "ann") as ann:
            slow = server.lifespan_state.members["eve"]
            line, most, lines_since = "x" * 900, 0, 0
            while lines_since < 500:
                await ann.send(f"{line}\n".encode() * 10)
                await reads(ann, f"ann: {line}\n" * 10)
                most = max(most, slow.unsent)
                lines_since += 10 if slow.unsent > chat.MOST_UNSENT else 0
            assert chat.MOST_UNSENT < most <= chat.MOST_UNSENT + 1_000


async def test_who_breaks_off_is_not_the_writers_problem(chat: ModuleType) -> None:
    async with serving(chat.Chat, lifespan=chat.open_room) as server:
        async with await joined(server, "ann") as ann:
            eve = await joined(server, "eve")
            await reads(ann, "* eve is here, in plain text\n")
            eve.reset()
            await ann.send(b"hello\n" * 100)
            received = await ann.receive_exactly(len(b"* eve has left\n" + b"ann: hello\n" * 100))
            assert received.replace(b"* eve has left\n", b"", 1) == b"ann: hello\n" * 100


async def test_a_lively_room_is_drained(chat: ModuleType) -> None:
    async with serving(chat.Chat, lifespan=chat.open_room) as server:
        async with await joined(server, "ann") as ann, await joined(server, "bob") as bob:
            talking = asyncio.create_task(talk_until_the_end(ann))
            draining = asyncio.create_task(server.drain(None))
            assert (await bob.receive_all()).endswith(b"* the server is closing, goodbye\n")
            bob.close()
            assert (await within(talking)).endswith(b"* the server is closing, goodbye\n")
            ann.close()
            assert (await within(draining)).clean


async def talk_until_the_end(client: Client) -> bytes:
    """Say something again as soon as it has come back; returns what was read."""
    received = bytearray()
    while not received.endswith(b"goodbye\n"):
        with suppress(ConnectionError):
            await client.send(b"bla\n")
        received += await client.receive()
    return bytes(received)


async def test_who_does_not_finish_the_line_is_told_goodbye_in_the_end(chat: ModuleType) -> None:
    async with serving(chat.Chat, lifespan=chat.open_room) as server:
        async with await joined(server, "ann") as ann:
            await ann.send(b"half a li")
            await wait_until(lambda: server.statistics().bytes_received == len(b"ann\nhalf a li"))
            draining = asyncio.create_task(server.drain(0.5 * SECOND))
            assert await ann.receive_all() == b"* the server is closing, goodbye\n"
            ann.close()
            assert (await within(draining)).cancelled == 1


async def test_a_name_is_given_once_and_has_to_be_one(chat: ModuleType) -> None:
    async with serving(chat.Chat, lifespan=chat.open_room) as server:
        async with await joined(server, "ann"), await Client.connect(server) as other:
            await other.send(b"ann\r\n\n \x1b\nbob\r\n")
            again = "* not that one, another name?\n"
            await reads(other, f"* your name?\n{again * 3}* bob is here, in plain text\n")
