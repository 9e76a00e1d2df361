"""The store for blobs as a server of this package: see howto/migrate-from-asyncio-streams.md.

Run it, from the repository's directory, with a port (0: a free one), and try it::

    python docs/examples/from_asyncio_after.py 9999
    printf 'put colour 4\\nblueget colour\\n' | nc -N 127.0.0.1 9999
"""

from __future__ import annotations

import sys

from asyncserver import Server, Stream, run

MOST_IN_A_BLOB = 1_000_000

blobs: dict[str, bytes] = {}


async def serve_client(stream: Stream) -> None:
    """Carry out commands until the client has sent its last one."""
    async for line in stream.lines(max_bytes=1_000):
        await carry_out(line, stream)


async def carry_out(line: bytes, stream: Stream) -> None:
    """Answer one command."""
    match line.decode(errors="replace").split():
        case ["put", name, size] if is_size(size):
            blobs[name] = await stream.receive_exactly(int(size))
            await stream.send(b"stored\n")
        case ["get", name] if name in blobs:
            await stream.send_many([b"%d\n" % len(blobs[name]), blobs[name]])
        case ["get", _]:
            await stream.send(b"no such name\n")
        case ["whoami"]:
            await stream.send(f"{stream.peer}\n".encode())
        case _:
            await stream.send(b"commands: put NAME SIZE, get NAME, whoami\n")


def is_size(text: str) -> bool:
    """Whether it is a number of bytes that a blob may have."""
    return text.isdecimal() and len(text) < 10 and int(text) <= MOST_IN_A_BLOB


def main(port: str = "9999") -> None:
    """Serve until a signal: then drain, and end by that signal."""
    run(serve_client, f"tcp://127.0.0.1:{port}", on_ready=announce)


def announce(server: Server) -> None:
    """Say where it listens."""
    print("listening on port", server.addresses[0].port, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
