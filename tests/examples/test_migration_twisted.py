"""The two programs of howto/migrate-from-twisted.md do the same; and both kinds live in one process."""

from __future__ import annotations

import hashlib
import re
import signal
import socket
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.examples.programs import EXAMPLES, program
from tests.test_docs import BLOCKS
from tests.waiting import PATIENCE

DIGEST = hashlib.pbkdf2_hmac("sha256", b"some text", b"salt", 20_000).hex().encode() + b"\n"


class LineClient:
    """A plain client that sends and receives lines."""

    def __init__(self, port: int) -> None:
        self.sock = socket.create_connection(("127.0.0.1", port), PATIENCE)
        self._file = self.sock.makefile("rb")

    def __enter__(self) -> LineClient:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        self.sock.close()

    def send(self, data: bytes) -> None:
        self.sock.sendall(data)

    def line(self) -> bytes:
        return self._file.readline()

    def ask(self, line: bytes) -> bytes:
        self.send(line + b"\n")
        return self.line()


@pytest.mark.parametrize(
    ("name", "status"), [("from_twisted_before", 0), ("from_twisted_after", -signal.SIGTERM)]
)
def test_publish_and_subscribe(name: str, status: int, tmp_path: Path) -> None:
    with program(str(EXAMPLES / f"{name}.py"), "0", cwd=tmp_path) as running, ExitStack() as stack:
        port = int(running.read_until(r"listening on port (\d+)")[1])
        alice, bob, carol = (stack.enter_context(LineClient(port)) for _ in range(3))
        assert alice.ask(b"hello") == b"commands: subscribe, publish, digest, quit\n"
        assert alice.ask(b"subscribe news") == b"ok\n"
        assert bob.ask(b"subscribe news") == b"ok\n"
        assert bob.ask(b"subscribe weather") == b"ok\n"
        assert carol.ask(b"publish news it is late") == b"told 2\n"
        assert alice.line() == bob.line() == b"news: it is late\n"
        assert carol.ask(b"publish weather rain") == b"told 1\n"
        assert bob.line() == b"weather: rain\n"
        assert carol.ask(b"publish sports none") == b"told 0\n"

        # In pieces, and several at once.
        carol.send(b"pub")
        assert bob.ask(b"digest some text") == DIGEST
        carol.send(b"lish news now\npublish news then\n")
        assert [carol.line(), carol.line()] == [b"told 2\n", b"told 2\n"]
        assert [alice.line(), alice.line()] == [b"news: now\n", b"news: then\n"]

        # Who has gone is told nothing any more, however it went.
        assert alice.ask(b"quit") == b"goodbye\n"
        assert alice.line() == b""
        bob.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        bob.__exit__()
        while (told := carol.ask(b"publish news anybody")) != b"told 0\n":
            assert told == b"told 1\n"
        with LineClient(port) as endless:
            endless.send(b"x" * 1_500)
            assert endless.line() == b""

        stack.close()
        assert running.stop() == status


def test_both_in_one_process(tmp_path: Path) -> None:
    (source,) = (
        block.text
        for block in BLOCKS
        if block.page.name == "migrate-from-twisted.md" and "asyncioreactor" in block.text
    )
    source = re.sub(r"(tcp:|127\.0\.0\.1:)99\d\d", r"\g<1>0", source)
    (tmp_path / "both.py").write_text(source)
    with program("both.py", cwd=tmp_path) as running:
        old, new = map(int, running.read_until(r"listening on ports (\d+) and (\d+)").groups())
        with LineClient(old) as twisted, LineClient(new) as native:
            assert twisted.ask(b"hello") == b"Twisted has hello\n"
            assert native.ask(b"hello") == b"asyncserver has hello\n"
            native.send(b"half a")
            running.process.send_signal(signal.SIGTERM)
            running.read_until(r"draining")
            native.send(b" line\n")
            assert native.line() == b"asyncserver has half a line\n"
            assert native.line() == b""
        running.read_until(r"drained: DrainReport\(.*cancelled=0, aborted=0")
        assert running.wait() == 0
