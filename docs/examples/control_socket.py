"""A service with a control socket: a second server, on a Unix socket, that authorises by user id.

Run it, from the repository's directory, connect to the service, and control it from a third terminal::

    python docs/examples/control_socket.py tcp://127.0.0.1:9999 'unix:control.sock?mode=666'
    nc 127.0.0.1 9999
    socat - UNIX-CONNECT:control.sock

Commands: ``status``, ``connections``, ``close ID``, ``drain [SECONDS]``, ``help``, ``quit``. Whoever can
connect may look; only the user that runs the service, and root, may change anything.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext

from asyncserver import Address, Server, Stream, StreamHandler, run

OPERATORS = {0, os.geteuid()}
"""The user ids that may change something."""

CHANGES = {"close", "drain"}

_draining: set[asyncio.Task[object]] = set()


class ControlHandler(StreamHandler):
    """One operator. The service that is controlled is this server's ``lifespan_state``."""

    service: Server
    is_operator: bool

    async def setup(self) -> None:
        """Find out who is there: the kernel knows, and the peer cannot lie about it."""
        self.service = self.connection.lifespan_state
        credentials = self.stream.peer_credentials
        self.is_operator = credentials is not None and credentials.uid in OPERATORS

    async def handle(self) -> None:
        """Answer commands, one a line, each with some lines and an empty one."""
        async for line in self.stream.lines(max_bytes=1_000):
            command, *arguments = line.decode(errors="replace").split() or ["help"]
            if command == "quit":
                return
            answer = await self.answer(command, arguments)
            await self.stream.send(f"{answer}\n\n".encode())

    async def answer(self, command: str, arguments: list[str]) -> str:
        """What to say to a command."""
        if command in CHANGES and not self.is_operator:
            return f"error: you may not {command}"
        match command, arguments:
            case "status", []:
                return self.status()
            case "connections", []:
                return "\n".join(map(repr, self.service.connections)) or "none"
            case "close", [number] if number.isdecimal():
                return await self.close(int(number))
            case "drain", [] | [_]:
                return self.drain(*arguments)
            case _:
                return "commands: status, connections, close ID, drain [SECONDS], help, quit"

    def status(self) -> str:
        """A few of the service's counters."""
        counted = self.service.statistics()
        return (
            f"{'ready' if self.service.ready else 'draining'}, up {counted.uptime:.0f} s\n"
            f"connections: {counted.current} open, {counted.accepted} accepted, {counted.rejected} rejected\n"
            f"bytes: {counted.bytes_received} received, {counted.bytes_sent} sent"
        )

    async def close(self, number: int) -> str:
        """Close one connection, gently."""
        connection = self.service.connections.get(number)
        if connection is None:
            return f"error: no connection {number}"
        await connection.close()
        return f"closed: {connection.close_reason}"

    def drain(self, seconds: str = "30") -> str:
        """Begin to drain; the program, this handler included, ends when that is done."""
        try:
            timeout = float(seconds)
        except ValueError:
            return f"error: {seconds} is not a number of seconds"
        # A task of its own: this handler is closed with the service, and cannot wait for its own end.
        task: asyncio.Task[object] = asyncio.create_task(self.service.drain(timeout))
        _draining.add(task)
        task.add_done_callback(_draining.discard)
        return f"draining {len(self.service.connections)} connections"


@asynccontextmanager
async def control_socket(service: Server, address: Address | str) -> AsyncIterator[None]:
    """Control ``service`` by a server on ``address`` as long as the context is open."""
    async with Server(ControlHandler, address, lifespan=lambda _: nullcontext(service)):
        yield


async def line_echo(stream: Stream) -> None:
    """The service itself."""
    async for line in stream.lines():
        await stream.send(line + b"\n")


def main(address: str = "tcp://127.0.0.1:9999", control: str = "unix:control.sock?mode=666") -> None:
    """Run the service with its control socket until a signal or the drain command ends it."""
    run(
        line_echo,
        address,
        lifespan=lambda service: control_socket(service, control),
        on_ready=lambda service: print("listening on", *service.addresses, flush=True),
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
