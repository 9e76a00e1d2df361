"""The key-value store's old handler on the native server: the fourth of six.

See howto/migrate-from-socketserver.md. A handler that is async already is served beside the old one, on a
Unix socket. Run it, from the repository's directory, with a port (0: a free one), and try both::

    python docs/examples/migrate_4_legacy.py 9999
    printf 'set colour blue\\nget colour\\n' | nc -N 127.0.0.1 9999
    nc -NU store-status.sock < /dev/null
"""

from __future__ import annotations

import socketserver
import sys

from asyncserver import Limits, Server, Stream, Timeouts, UnixAddress, current_connection, run
from compat import LegacyServer, legacy


def answer(values: dict[str, str], line: bytes) -> bytes:
    """Carry out one command."""
    match line.decode(errors="replace").split():
        case ["set", name, value]:
            values[name] = value
            return b"ok\n"
        case ["get", name] if name in values:
            return f"{values[name]}\n".encode()
        case ["get", _]:
            return b"no such name\n"
        case _:
            return b"commands: set NAME VALUE, get NAME\n"


class StoreHandler(socketserver.StreamRequestHandler):
    """One client."""

    def handle(self) -> None:
        """Answer a line at a time until it has sent its last one."""
        for line in self.rfile:
            self.wfile.write(answer(self.server.values, line))


class Store(LegacyServer):
    """What the old handlers have as ``self.server``."""

    def __init__(self) -> None:
        super().__init__(StoreHandler)
        self.values: dict[str, str] = {}


store = Store()
serve_client = legacy(StoreHandler, "threads", server=store)


async def send_status(stream: Stream) -> None:
    """Say how the server is."""
    counted = current_connection().server.statistics()
    await stream.send(b"%d connections, %d values\n" % (counted.current, len(store.values)))


async def serve(stream: Stream) -> None:
    """Each connection by the handler for the address where it came in."""
    if isinstance(current_connection().listener.address, UnixAddress):
        await send_status(stream)
    else:
        await serve_client(stream)


def main(port: str = "9999", status: str = "unix:store-status.sock") -> None:
    """Serve until a signal: then drain, and end by that signal."""
    run(
        serve,
        f"tcp://127.0.0.1:{port}",
        status,
        limits=Limits(max_connections=64),  # and so at most as many threads
        timeouts=Timeouts(lifetime=3_600),
        drain_timeout=5,  # It cannot be seen that an old handler is idle: each has this long.
        on_ready=announce,
    )


def announce(server: Server) -> None:
    """Say where it listens."""
    print("listening on port", server.addresses[0].port, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
