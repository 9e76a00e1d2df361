"""anyio's TCP listener and streams, on asyncio's own loop or on uvloop."""

from __future__ import annotations

import anyio
from anyio.abc import SocketStream
from serving import BACKLOG, Arguments, arguments, ready


async def echo(stream: SocketStream) -> None:
    async with stream:
        async for data in stream:
            await stream.send(data)


async def main(args: Arguments) -> None:
    listener = await anyio.create_tcp_listener(
        local_host="127.0.0.1", local_port=args.port, backlog=BACKLOG, reuse_port=False
    )
    ready()
    await listener.serve(echo)


if __name__ == "__main__":
    options = arguments(loops=("asyncio", "uvloop"))
    anyio.run(main, options, backend_options={"use_uvloop": options.loop == "uvloop"})
