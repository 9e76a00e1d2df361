"""A chat room: what one says, all others read; who does not read misses messages and holds no memory.

Run it, from the repository's directory, and try it from several terminals::

    python -m asyncserver serve docs/examples/chat_room.py:chat_room tcp://127.0.0.1:9999
    nc 127.0.0.1 9999

The first line is your name, ``/quit`` leaves. When the server drains, everybody is told goodbye.
"""

from __future__ import annotations

import re
from contextlib import suppress

import anyio

from asyncserver import LineIterator, Stream, current_connection

# The most that waits for a member who does not read; further messages pass that member by. Below
# Limits.send_buffer, so that a send to a slow member never waits and the others never wait for it. (A
# member who takes nothing at all for Timeouts.send is disconnected by the server.)
MOST_UNSENT = 32_768

MOST_IN_A_LINE = 1_000

NAME = re.compile(r"\w{1,20}")


class Member:
    """Somebody in the room."""

    def __init__(self, name: str, stream: Stream) -> None:
        self.name = name
        self.stream = stream
        self.missed = 0

    async def tell(self, message: str) -> None:
        """Send the message, unless too much is waiting already."""
        if self.is_slow():
            self.missed += 1
            return
        if self.missed:
            message = f"* you missed {self.missed} messages\n{message}"
            self.missed = 0
        # The sender's handler runs this: that another member is gone is not its problem.
        with suppress(anyio.BrokenResourceError, anyio.ClosedResourceError):
            await self.stream.send(message.encode())

    def is_slow(self) -> bool:
        """Whether the member does not keep up: the kernel has refused bytes, and many wait."""
        return self.stream.congested and self.stream.unsent > MOST_UNSENT


class Room:
    """All members, by their names."""

    def __init__(self) -> None:
        self.members: dict[str, Member] = {}

    async def say(self, message: str) -> None:
        """Tell everybody."""
        for member in list(self.members.values()):
            await member.tell(message)


ROOM = Room()


async def chat_room(stream: Stream) -> None:
    """Serve one member, from the question for a name to the goodbye."""
    lines = stream.lines(MOST_IN_A_LINE)
    member = await join(stream, lines)
    if member is None:
        return
    try:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(say_goodbye_in_time, stream, tasks.cancel_scope)
            await ROOM.say(f"* {member.name} is here\n")
            await listen(member.name, lines)
            tasks.cancel_scope.cancel()
    finally:
        del ROOM.members[member.name]
        if not current_connection().draining:
            await ROOM.say(f"* {member.name} has left\n")


async def join(stream: Stream, lines: LineIterator) -> Member | None:
    """Ask for a name until it is a good one; None if the client goes away."""
    await stream.send(b"* your name?\n")
    async for line in lines:
        name = printable(line)
        if not NAME.fullmatch(name):
            await stream.send(b"* 1 to 20 letters and digits, please\n")
        elif name in ROOM.members:
            await stream.send(b"* somebody has this name, another one?\n")
        else:
            member = ROOM.members[name] = Member(name, stream)
            return member
    return None


async def listen(name: str, lines: LineIterator) -> None:
    """Pass on what a member says, until /quit or the end."""
    async for line in lines:
        text = printable(line)
        if text == "/quit":
            return
        if text:
            await ROOM.say(f"{name}: {text}\n")


async def say_goodbye_in_time(stream: Stream, session: anyio.CancelScope) -> None:
    """End the session when the server drains; in a lively room no connection is ever idle."""
    await current_connection().wait_draining()
    await stream.send(b"* the server is closing, goodbye\n")
    session.cancel()


def printable(line: bytes) -> str:
    """The line as text, without what could play tricks on the others' terminals."""
    return "".join(filter(str.isprintable, line.decode(errors="replace"))).strip()
