"""Step 4 of the tutorial (docs/tutorial.md), where it is called chat.py: the chat under TLS, too.

In the repository's directory make a certificate, run it, and try both addresses::

    openssl req -x509 -newkey rsa:2048 -nodes -days 30 -subj /CN=localhost \\
        -addext subjectAltName=DNS:localhost -keyout key.pem -out cert.pem
    python docs/examples/tutorial_4_tls.py
    nc 127.0.0.1 9999
    openssl s_client -quiet -CAfile cert.pem -servername localhost -connect localhost:9998

Make the certificate again while it runs: it serves the new one.
"""

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import anyio

from asyncserver import (
    ConnectionTimeoutError,
    Limits,
    Server,
    Stream,
    StreamHandler,
    Timeouts,
    TLSConfig,
    run,
)

MOST_UNSENT = 32_768


class Room:
    """Everybody who is there, by name."""

    def __init__(self) -> None:
        self.members: dict[str, Stream] = {}

    async def say(self, text: str) -> None:
        for stream in list(self.members.values()):
            if stream.congested and stream.unsent > MOST_UNSENT:
                continue  # Who does not read misses this line, and nobody waits.
            with suppress(anyio.BrokenResourceError, anyio.ClosedResourceError):
                await stream.send(f"{text}\n".encode())


@asynccontextmanager
async def open_room(server: Server) -> AsyncIterator[Room]:
    yield Room()


class Chat(StreamHandler):
    """One member."""

    async def setup(self) -> None:
        self.room: Room = self.connection.lifespan_state
        self.name = await self.ask_name()
        self.room.members[self.name] = self.stream

    async def handle(self) -> None:
        how = "by TLS" if self.stream.ssl_object else "in plain text"
        await self.room.say(f"* {self.name} is here, {how}")
        try:
            async for line in self.stream.lines(max_bytes=1_000):
                await self.room.say(f"{self.name}: {text_of(line)}")
        except ConnectionTimeoutError:
            await self.stream.send(b"* nothing for a minute, goodbye\n")

    async def finish(self) -> None:
        del self.room.members[self.name]
        await self.room.say(f"* {self.name} has left")

    async def ask_name(self) -> str:
        question = b"* your name?\n"
        while True:
            await self.stream.send(question)
            name = text_of(await self.stream.receive_until(b"\n", max_bytes=100))
            if name and name not in self.room.members:
                return name
            question = b"* not that one, another name?\n"


def text_of(line: bytes) -> str:
    """Only what can be printed: nobody plays tricks on the others' terminals."""
    return "".join(filter(str.isprintable, line.decode(errors="replace"))).strip()


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO)
    logging.getLogger("asyncserver").setLevel(logging.DEBUG)
    run(
        Chat,
        "tcp://127.0.0.1:9999",
        "tls+tcp://127.0.0.1:9998",
        tls=TLSConfig(certificate="cert.pem", private_key="key.pem", reload_interval=5),
        lifespan=open_room,
        limits=Limits(max_connections_per_peer=3, reject_message=b"* too many of you\n"),
        timeouts=Timeouts(first_byte=10, idle=60, send=30, linger=1),
    )
