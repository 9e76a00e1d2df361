"""trio's `serve_tcp`."""

from __future__ import annotations

import trio
from serving import BACKLOG, Arguments, arguments, ready


async def echo(stream: trio.SocketStream) -> None:
    async for data in stream:
        await stream.send_all(data)


async def main(args: Arguments) -> None:
    listeners = await trio.open_tcp_listeners(args.port, host="127.0.0.1", backlog=BACKLOG)
    ready()
    await trio.serve_listeners(echo, listeners)


if __name__ == "__main__":
    trio.run(main, arguments())
