"""The key-value store as a native server: the last of six, see howto/migrate-from-socketserver.md.

Run it, from the repository's directory, with a port (0: a free one), and try it::

    python docs/examples/migrate_6_native.py 9999
    printf 'set colour blue\\nget colour\\n' | nc -N 127.0.0.1 9999
"""

from __future__ import annotations

import sys

from asyncserver import Limits, Server, Stream, run


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


values: dict[str, str] = {}


async def serve_client(stream: Stream) -> None:
    """Answer a line at a time until the client has sent its last one."""
    async for line in stream.lines(max_bytes=1_000):
        await stream.send(answer(values, line))


def main(port: str = "9999") -> None:
    """Serve until a signal: then drain, and end by that signal."""
    run(
        serve_client,
        f"tcp://127.0.0.1:{port}",
        limits=Limits(max_connections=10_000),
        on_ready=announce,
    )


def announce(server: Server) -> None:
    """Say where it listens."""
    print("listening on port", server.addresses[0].port, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
