"""The two programs of howto/migrate-from-asyncio-streams.md do the same."""

from __future__ import annotations

import re
import signal
import socket
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import pytest

from tests.examples.programs import EXAMPLES, program
from tests.waiting import PATIENCE, wait_until_blocking

BLOB = bytes(range(256)) * 200

CONVERSATION = (
    b"get colour\nput colour 4\nblueget colour\n\nput colour four\nput colour 1000001\n"
    b"put \xff 3\r\na\nbput empty 0\nget empty\nput large %d\n%sget large\nget colour" % (len(BLOB), BLOB)
)

COMMANDS = b"commands: put NAME SIZE, get NAME, whoami\n"

REPLIES = b"".join(
    (
        b"no such name\nstored\n4\nblue",
        COMMANDS * 3,
        b"stored\nstored\n0\nstored\n%d\n%s4\nblue" % (len(BLOB), BLOB),
    )
)


@pytest.mark.parametrize("name", ["from_asyncio_before", "from_asyncio_after"])
def test_the_store_for_blobs(name: str, tmp_path: Path) -> None:
    with program(str(EXAMPLES / f"{name}.py"), "0", cwd=tmp_path) as running, ExitStack() as stack:
        port = int(running.read_until(r"listening on port (\d+)")[1])

        def connect() -> socket.socket:
            return stack.enter_context(socket.create_connection(("127.0.0.1", port), PATIENCE))

        def ask(request: bytes) -> bytes:
            """What comes until the server closes, with the client having closed its side."""
            client = connect()
            client.sendall(request)
            client.shutdown(socket.SHUT_WR)
            return read_all(client)

        # A conversation, in one piece and with the last line left open.
        assert ask(CONVERSATION) == REPLIES
        host, client_port = (client := connect()).getsockname()
        client.sendall(b"whoami\n")
        assert client.makefile("rb").readline().decode() == f"{host}:{client_port}\n"

        # A blob that comes in pieces, while others are served.
        slow = connect()
        slow.sendall(b"put slow 6\nabc")
        assert ask(b"get slow\n") == b"no such name\n"
        slow.sendall(b"def")
        assert slow.recv(100) == b"stored\n"
        assert ask(b"get slow\n") == b"6\nabcdef"

        # What clients do wrong ends their own connection: half a blob, a line that is too long, a reset.
        assert ask(b"put half 10\nabc") == b""
        assert ask(b"get half\n") == b"no such name\n"
        endless = connect()
        endless.sendall(b"x" * 50_000)
        assert read_all(endless) == b""
        rude = connect()
        rude.sendall(b"get large\n" * 100)
        rude.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        rude.close()
        wait_until_blocking(partial(ask, b"get colour\n"))

        # A signal ends it, and not a word was said about any of that.
        stack.close()
        assert running.stop() == -signal.SIGTERM
        assert running.process.stdout is not None
        assert running.process.stdout.read() == ""
        assert re.fullmatch(r"listening on port \d+\n", running.printed)


def read_all(client: socket.socket) -> bytes:
    """Everything until the end, be it a reset: asyncio's streams close with unread bytes."""
    received = b""
    try:
        while chunk := client.recv(65_536):
            received += chunk
    except ConnectionResetError:
        pass
    return received
