"""asyncio's streams (`start_server`) on uvloop or on asyncio's own loop, plain or with TLS."""

from __future__ import annotations

import asyncio
from asyncio import StreamReader, StreamWriter

from loops import run
from serving import BACKLOG, Arguments, arguments, ready, tls_context


async def echo(reader: StreamReader, writer: StreamWriter) -> None:
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()
    writer.close()


async def echo_lines(reader: StreamReader, writer: StreamWriter) -> None:
    while line := await reader.readline():
        writer.write(line)
        await writer.drain()
    writer.close()


async def main(args: Arguments) -> None:
    handler = echo if args.work == "echo" else echo_lines
    server = await asyncio.start_server(
        handler, "127.0.0.1", args.port, backlog=BACKLOG, ssl=tls_context(args)
    )
    ready()
    await server.serve_forever()


if __name__ == "__main__":
    options = arguments(loops=("uvloop", "asyncio"), works=("echo", "lines"))
    run(main(options), options.loop)
