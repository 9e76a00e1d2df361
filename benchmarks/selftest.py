"""Show that the load generator notices wrong echoes: `python benchmarks/selftest.py`.

A run is only worth something if a server that corrupts, shifts, adds to, drops, repeats or mixes up the bytes
is reported, and a right one is not. Each of these servers runs here, in a thread, for a moment.
"""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from harness.building import LOADGEN, build_loadgen

TURN = 40  # the piece of a connection's bytes, counted from 1, at which a server goes wrong

Mangle = Callable[[bytes], bytes]


@dataclass(frozen=True, slots=True)
class Case:
    """A way to answer, the load, and the kinds of error of which one must be reported (none: it is right)."""

    name: str
    mangle: Mangle
    arguments: tuple[str, ...]
    expected: frozenset[str] = frozenset()
    at: int = TURN


def corrupt(data: bytes) -> bytes:
    """Flip one bit in the middle."""
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


def shift(data: bytes) -> bytes:
    """Move all bytes by one."""
    return data[-1:] + data[:-1]


def swap_lines(data: bytes) -> bytes:
    """Answer the first two lines in the wrong order."""
    lines = data.splitlines(keepends=True)
    return b"".join([*lines[1::-1], *lines[2:]])


class MixUp:
    """Answers with what the connection before sent; the first gets its own."""

    def __init__(self) -> None:
        self.last = b""

    def __call__(self, data: bytes) -> bytes:
        answer, self.last = self.last or data, data
        return answer


ECHO = ("echo", "--connections", "4", "--size", "64")
LARGE = ("echo", "--connections", "2", "--size", "102400")
LINES = ("lines", "--connections", "2", "--in-flight", "16")
CHURN = ("churn", "--connections", "4")
STORM = ("storm", "--connections", "20")
IDLE = ("idle", "--connections", "20")

CASES = (
    *(Case("right", bytes, load) for load in (ECHO, LARGE, LINES, CHURN, STORM, IDLE)),
    *(Case("one bit flipped", corrupt, load, frozenset({"corrupt"})) for load in (ECHO, LARGE, LINES)),
    *(Case("shifted by a byte", shift, load, frozenset({"corrupt"})) for load in (ECHO, LARGE, LINES)),
    *(
        Case("a byte added", lambda data: data + b"!", load, frozenset({"extra", "corrupt"}))
        for load in (ECHO, LINES)
    ),
    *(
        Case("a byte dropped", lambda data: data[1:], load, frozenset({"missing", "corrupt"}))
        for load in (ECHO, LINES)
    ),
    *(
        Case("an echo dropped", lambda data: b"", load, frozenset({"missing", "corrupt"}))
        for load in (ECHO, LINES)
    ),
    *(
        Case("an echo repeated", lambda data: data * 2, load, frozenset({"extra", "corrupt"}))
        for load in (ECHO, LINES)
    ),
    *(Case("another connection's", MixUp(), load, frozenset({"corrupt"})) for load in (ECHO, LINES)),
    Case("lines in the wrong order", swap_lines, LINES, frozenset({"corrupt"})),
    *(Case("one bit flipped", corrupt, load, frozenset({"corrupt"}), at=1) for load in (CHURN, STORM, IDLE)),
    *(
        Case("a byte dropped", lambda d: d[1:], load, frozenset({"corrupt"}), at=1)
        for load in (CHURN, STORM, IDLE)
    ),
    *(
        Case("a byte added", lambda d: d + b"!", load, frozenset({"extra"}), at=1)
        for load in (CHURN, STORM, IDLE)
    ),
)


def answer(connection: socket.socket, mangle: Mangle, wrong_at: int) -> None:
    """Echo, and mangle the piece number `wrong_at`."""
    with connection, contextlib.suppress(OSError):
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        number = 0
        while data := connection.recv(65536):
            number += 1
            connection.sendall(mangle(data) if number == wrong_at else data)


def closing(connection: socket.socket, mangle: Mangle, wrong_at: int) -> None:
    """Echo, and close after the piece number `wrong_at`."""
    with connection, contextlib.suppress(OSError):
        for _ in range(wrong_at):
            connection.sendall(connection.recv(65536))


@contextlib.contextmanager
def serving(
    answering: Callable[[socket.socket, Mangle, int], None], mangle: Mangle, at: int
) -> Iterator[int]:
    """Run a server with a thread for each connection; give its port."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=1024)

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listener.accept()
                threading.Thread(target=answering, args=(connection, mangle, at), daemon=True).start()

    thread = threading.Thread(target=accept, daemon=True)
    thread.start()
    try:
        yield listener.getsockname()[1]
    finally:
        listener.shutdown(socket.SHUT_RDWR)  # close() alone does not wake the accept
        listener.close()
        thread.join(5)


def load(port: int, arguments: tuple[str, ...]) -> dict[str, Any]:
    """Run the load generator for a moment; return its result."""
    times = ("--warmup", "0.1", "--seconds", "0.2", "--patience", "0.3")
    command = [str(LOADGEN), *arguments, "--port", str(port), *times]
    done = subprocess.run(command, capture_output=True, check=False, timeout=90, stdin=subprocess.DEVNULL)
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    assert done.returncode == (1 if result["errors"] else 0), done
    return result


def problem(result: dict[str, Any], expected: frozenset[str]) -> str | None:
    """Return what is wrong with the report of the load generator, or None."""
    if not expected:
        if result["errors"] or not result["operations"]:
            return f"a right server was reported: {result['first_error']}"
        return None
    reported = {kind for kind, count in result["errors_by_kind"].items() if count}
    return None if reported & expected else f"reported {sorted(reported)}, expected one of {sorted(expected)}"


def tell(mode: str, name: str, wrong: str | None) -> bool:
    """Print the outcome of a case; return whether it failed."""
    print(f"{'FAILED' if wrong else 'ok':7}{mode:6} {name:25} {wrong or ''}".rstrip())
    return wrong is not None


def main() -> int:
    """Try all cases; exit status 1 when one was not noticed, or a right server was blamed."""
    build_loadgen()
    failed = 0
    for case in CASES:
        with serving(answer, case.mangle, case.at) as port:
            wrong = problem(load(port, case.arguments), case.expected)
        failed += tell(case.arguments[0], case.name, wrong)
    for arguments in (ECHO, LINES):
        with serving(closing, bytes, TURN) as port:
            wrong = problem(load(port, arguments), frozenset({"closed"}))
        failed += tell(arguments[0], "closed too early", wrong)
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
