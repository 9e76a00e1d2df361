"""Publish and subscribe as a server of this package: see howto/migrate-from-twisted.md.

Run it, from the repository's directory, with a port (0: a free one), and try it::

    python docs/examples/from_twisted_after.py 9999
    nc 127.0.0.1 9999

Commands: ``subscribe TOPIC``, ``publish TOPIC TEXT``, ``digest TEXT``, ``quit``.
"""

from __future__ import annotations

import asyncio
import hashlib
import sys
from collections import defaultdict
from contextlib import suppress

from anyio import BrokenResourceError, ClosedResourceError

from asyncserver import Server, StreamHandler, run

MOST_UNSENT = 65_536
"""Bytes. Messages pass a subscriber by who has not read more than this."""


class Subscriber(StreamHandler):
    """One client."""

    async def handle(self) -> None:
        """Carry out commands until the client has sent its last one, or says quit."""
        async for line in self.stream.lines(max_bytes=1_000):
            match line.split(b" ", 2):
                case [b"subscribe", topic]:
                    subscribers[topic].add(self)
                    await self.send_line(b"ok")
                case [b"publish", topic, text]:
                    told = list(subscribers[topic])
                    for subscriber in told:
                        await subscriber.tell(topic + b": " + text)
                    await self.send_line(b"told %d" % len(told))
                case [b"digest", *words]:
                    await self.send_line(await asyncio.to_thread(slow_digest, b" ".join(words)))
                case [b"quit"]:
                    await self.send_line(b"goodbye")
                    return
                case _:
                    await self.send_line(b"commands: subscribe, publish, digest, quit")

    async def finish(self) -> None:
        """Forget the client."""
        for those in subscribers.values():
            those.discard(self)

    async def send_line(self, line: bytes) -> None:
        """Send it to this client, and wait while it does not keep up."""
        await self.stream.send(line + b"\n")

    async def tell(self, line: bytes) -> None:
        """Send it on behalf of another client, who shall not wait for this one, nor fail with it."""
        if self.stream.unsent <= MOST_UNSENT:
            with suppress(BrokenResourceError, ClosedResourceError):
                await self.send_line(line)


subscribers: defaultdict[bytes, set[Subscriber]] = defaultdict(set)


def slow_digest(text: bytes) -> bytes:
    """Takes a moment of CPU, and so has to be called in a thread."""
    return hashlib.pbkdf2_hmac("sha256", text, b"salt", 20_000).hex().encode()


def main(port: str = "9999") -> None:
    """Serve until a signal: then drain, and end by that signal."""
    run(Subscriber, f"tcp://127.0.0.1:{port}", on_ready=announce)


def announce(server: Server) -> None:
    """Say where it listens."""
    print("listening on port", server.addresses[0].port, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
