"""A raw Protocol on uvloop (the yardstick) or on asyncio's own loop."""

from __future__ import annotations

import asyncio

from loops import run
from serving import BACKLOG, Arguments, arguments, ready, tls_context


class Echo(asyncio.Protocol):
    """Writes back what comes in."""

    transport: asyncio.Transport

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.transport.write(data)


class EchoLines(Echo):
    """Splits what comes in into lines and answers all of them in one write."""

    def __init__(self) -> None:
        self.rest = b""

    def data_received(self, data: bytes) -> None:
        *lines, self.rest = (self.rest + data).split(b"\n")
        if lines:
            self.transport.write(b"".join([line + b"\n" for line in lines]))


async def main(args: Arguments) -> None:
    protocol = Echo if args.work == "echo" else EchoLines
    server = await asyncio.get_running_loop().create_server(
        protocol, "127.0.0.1", args.port, backlog=BACKLOG, ssl=tls_context(args)
    )
    ready()
    await server.serve_forever()


if __name__ == "__main__":
    options = arguments(loops=("uvloop", "asyncio"), works=("echo", "lines"))
    run(main(options), options.loop)
