"""A store for blobs on asyncio's streams: the program that howto/migrate-from-asyncio-streams.md begins with.

Run it, from the repository's directory, with a port (0: a free one), and try it::

    python docs/examples/from_asyncio_before.py 9999
    printf 'put colour 4\\nblueget colour\\n' | nc -N 127.0.0.1 9999
"""

from __future__ import annotations

import asyncio
import sys
from contextlib import suppress

MOST_IN_A_BLOB = 1_000_000

blobs: dict[str, bytes] = {}


async def serve_client(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Carry out commands until the client has sent its last one."""
    try:
        while line := await asyncio.wait_for(reader.readline(), 600):
            await carry_out(line, reader, writer)
    except ValueError:
        pass  # What readline() raises for a line that is too long.
    except (asyncio.IncompleteReadError, ConnectionError, TimeoutError):
        pass  # The client has gone, or has fallen silent.
    finally:
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()


async def carry_out(line: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer one command."""
    match line.decode(errors="replace").split():
        case ["put", name, size] if is_size(size):
            blobs[name] = await reader.readexactly(int(size))
            writer.write(b"stored\n")
        case ["get", name] if name in blobs:
            writer.write(b"%d\n" % len(blobs[name]))
            writer.write(blobs[name])
        case ["get", _]:
            writer.write(b"no such name\n")
        case ["whoami"]:
            host, port = writer.get_extra_info("peername")[:2]
            writer.write(f"{host}:{port}\n".encode())
        case _:
            writer.write(b"commands: put NAME SIZE, get NAME, whoami\n")
    await writer.drain()


def is_size(text: str) -> bool:
    """Whether it is a number of bytes that a blob may have."""
    return text.isdecimal() and len(text) < 10 and int(text) <= MOST_IN_A_BLOB


async def main(port: str = "9999") -> None:
    """Serve until a signal ends the process."""
    server = await asyncio.start_server(serve_client, "127.0.0.1", int(port), limit=1_000)
    print("listening on port", server.sockets[0].getsockname()[1], flush=True)
    async with server:
        await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
