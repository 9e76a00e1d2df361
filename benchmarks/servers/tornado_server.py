"""Tornado's TCPServer and IOStream."""

from __future__ import annotations

import asyncio

from serving import BACKLOG, Arguments, arguments, ready
from tornado.iostream import IOStream, StreamClosedError
from tornado.tcpserver import TCPServer


class Echo(TCPServer):
    """Writes back what comes in."""

    async def handle_stream(self, stream: IOStream, address: tuple[str, int]) -> None:
        # An IOStream leaves Nagle's algorithm on, the other peers turn it off.
        stream.set_nodelay(True)
        try:
            while True:
                await stream.write(await stream.read_bytes(65536, partial=True))
        except StreamClosedError:
            pass


async def main(args: Arguments) -> None:
    server = Echo()
    server.listen(args.port, "127.0.0.1", backlog=BACKLOG)
    ready()
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(arguments()))
