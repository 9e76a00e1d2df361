"""Show that the load generator notices wrong echoes: `python benchmarks/selftest.py`.

A run is only worth something if a server that corrupts, shifts, adds to, drops, repeats or mixes up the bytes
or the datagrams is reported, and a right one is not; and if a client that is not served is counted. Each of
these servers runs here, in a thread, for a moment.
"""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from harness.building import LOADGEN, build_loadgen

TURN = 40  # the piece of a connection's bytes, counted from 1, at which a server goes wrong
UDP = ("udp", "--connections", "4", "--in-flight", "3")
LOSSY = (*UDP, "--lossy")
SESSIONS = ("sessions", "--connections", "100")

Mangle = Callable[[bytes], bytes]
Replies = Callable[[bytes], list[bytes]]


@dataclass(frozen=True, slots=True)
class Case:
    """A way to answer, the load, and the kinds of error of which one must be reported (none: it is right)."""

    name: str
    mangle: Mangle
    arguments: tuple[str, ...]
    expected: frozenset[str] = frozenset()
    at: int = TURN


@dataclass(frozen=True, slots=True)
class DatagramCase:
    """What is sent for a datagram, `delay` seconds after it came, and the kinds of error to be reported.

    `lost` is how many are to be reported as lost, in whatever way.
    """

    name: str
    replies: Replies
    expected: frozenset[str] = frozenset()
    delay: float = 0.0
    seconds: float = 0.2
    arguments: tuple[str, ...] = UDP
    lost: int | None = None


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
BURST = ("burst", "--connections", "20", "--limit", "0.5")
IDLE = ("idle", "--connections", "20")
PACED = ("paced", "--connections", "4", "--rate", "1000")
PACED_TURN = 60  # at this rate a connection has 75 pieces, 25 of them in the warm-up
PAUSE = 0.1  # seconds

CASES = (
    *(Case("right", bytes, load) for load in (ECHO, LARGE, LINES, PACED, CHURN, STORM, BURST, IDLE)),
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
    *(
        Case(name, mangle, PACED, frozenset(expected), at=PACED_TURN)
        for name, mangle, expected in (
            ("one bit flipped", corrupt, {"corrupt"}),
            ("a byte added", lambda data: data + b"!", {"extra", "corrupt"}),
            ("a byte dropped", lambda data: data[1:], {"missing", "corrupt"}),
            ("an echo dropped", lambda data: b"", {"missing", "corrupt"}),
            ("an echo repeated", lambda data: data * 2, {"extra", "corrupt"}),
        )
    ),
    Case("another connection's", MixUp(), PACED, frozenset({"corrupt"}), at=PACED_TURN),
    Case("lines in the wrong order", swap_lines, LINES, frozenset({"corrupt"})),
    *(
        Case("one bit flipped", corrupt, load, frozenset({"corrupt"}), at=1)
        for load in (CHURN, STORM, BURST, IDLE)
    ),
    *(
        Case("a byte dropped", lambda d: d[1:], load, frozenset({"corrupt"}), at=1)
        for load in (CHURN, STORM, BURST, IDLE)
    ),
    *(
        Case("a byte added", lambda d: d + b"!", load, frozenset({"extra"}), at=1)
        for load in (CHURN, STORM, BURST, IDLE)
    ),
)


class MixedUp:
    """Answers with what came before, from whichever socket; a number is only asked for once."""

    def __init__(self) -> None:
        self.last: dict[bytes, bytes] = {}

    def __call__(self, data: bytes) -> list[bytes]:
        answer = self.last.pop(data[:8], data)
        self.last[data[:8]] = data
        return [answer]


class MixedUpSessions:
    """Answers with what came before; the first gets its own."""

    def __init__(self) -> None:
        self.last = b""

    def __call__(self, data: bytes) -> list[bytes]:
        answer, self.last = self.last or data, data
        return [answer]


def renumber(data: bytes) -> list[bytes]:
    """Answer a datagram that will be sent much later."""
    return [(int.from_bytes(data[:8], "little") + 3_000_000).to_bytes(8, "little") + data[8:]]


DATAGRAM_CASES = (
    DatagramCase("right", lambda data: [data]),
    DatagramCase("one bit flipped", lambda data: [corrupt(data)], frozenset({"corrupt"})),
    DatagramCase("another socket's", MixedUp(), frozenset({"corrupt"})),
    DatagramCase("a byte dropped", lambda data: [data[:-1]], frozenset({"corrupt", "lost"})),
    DatagramCase("a byte added", lambda data: [data + b"!"], frozenset({"corrupt", "lost"})),
    DatagramCase("another number", renumber, frozenset({"corrupt", "lost"})),
    DatagramCase("a reply dropped", lambda data: [], frozenset({"lost"}), lost=1),
    DatagramCase("right", lambda data: [data], arguments=LOSSY, lost=0),
    DatagramCase("dropped, and no error", lambda data: [], arguments=LOSSY, lost=1),
    DatagramCase("one bit flipped", lambda data: [corrupt(data)], frozenset({"corrupt"}), arguments=LOSSY),
    DatagramCase("right", lambda data: [data], arguments=SESSIONS, lost=0),
    DatagramCase("a reply dropped", lambda data: [], frozenset({"lost"}), arguments=SESSIONS, lost=1),
    *(
        DatagramCase(name, wrong, frozenset({"corrupt"}), arguments=SESSIONS)
        for name, wrong in (
            ("one bit flipped", lambda data: [corrupt(data)]),
            ("a byte dropped", lambda data: [data[:-1]]),
            ("a byte added", lambda data: [data + b"!"]),
            ("another session's", MixedUpSessions()),
        )
    ),
    DatagramCase("a reply repeated", lambda data: [data, data], frozenset({"extra"})),
    # It counts as lost, and not as repeated as well when it comes in the end.
    DatagramCase("a reply that is late", lambda data: [data], frozenset({"lost"}), delay=0.6, seconds=1.0),
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


class Pausing:
    """Echoes, but once, for all connections, not for `PAUSE` seconds: from its piece number `start` on."""

    def __init__(self, start: int) -> None:
        self.start = start
        self.lock = threading.Lock()
        self.count = 0

    def __call__(self, connection: socket.socket, mangle: Mangle, wrong_at: int) -> None:
        with connection, contextlib.suppress(OSError):
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            while data := connection.recv(65536):
                with self.lock:
                    self.count += 1
                    if self.count == self.start:
                        time.sleep(PAUSE)
                connection.sendall(data)


class EverySecond:
    """Leaves every second connection without an answer, till its client goes."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, connection: socket.socket, mangle: Mangle, wrong_at: int) -> None:
        self.count += 1
        if self.count % 2:
            answer(connection, mangle, 0)
            return
        with connection, contextlib.suppress(OSError):
            while connection.recv(65536):
                pass


@contextlib.contextmanager
def serving_datagrams(case: DatagramCase) -> Iterator[int]:
    """Echo datagrams, except for number TURN, which is answered as the case has it; give the port."""
    server = socket.socket(type=socket.SOCK_DGRAM)
    server.bind(("127.0.0.1", 0))

    def serve() -> None:
        number = 0
        while True:
            data, address = server.recvfrom(65536)
            if not data:
                return
            number += 1
            # The mix-up needs to see them all.
            wrong = number == TURN or isinstance(case.replies, MixedUp | MixedUpSessions)
            for reply in case.replies(data) if wrong else [data]:
                if wrong and case.delay:
                    timer = threading.Timer(case.delay, server.sendto, (reply, address))
                    timer.daemon = True
                    timer.start()
                else:
                    server.sendto(reply, address)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield server.getsockname()[1]
    finally:
        with socket.socket(type=socket.SOCK_DGRAM) as ending:
            ending.sendto(b"", server.getsockname())
        thread.join(5)
        server.close()


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
    command = [str(LOADGEN), "--port", str(port), *times, *arguments]
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


def problem_with_datagrams(result: dict[str, Any], case: DatagramCase) -> str | None:
    """Return what is wrong with the report, where the kinds of error are known exactly."""
    reported = {kind for kind, count in result["errors_by_kind"].items() if count}
    if reported != case.expected:
        return f"reported {sorted(reported)}, expected {sorted(case.expected)}: {result['first_error']}"
    if case.lost is not None and result["lost"] != case.lost:
        return f"reported {result['lost']} as lost, expected {case.lost}"
    return None if result["operations"] else "nothing was answered"


def problem_with_timeouts(result: dict[str, Any], served: int, timed_out: int) -> str | None:
    """Return what is wrong with the report on a burst: who is not served is counted, and is no error."""
    found = (result["operations"], result["timeouts"], result["errors"])
    slowest = result["latency_us"]["max"] / 1e6
    if found != (served, timed_out, 0):
        return f"served, timed out, errors: {found}, expected {(served, timed_out, 0)}"
    return None if slowest >= 0.5 else f"the slowest has {slowest} s and had 0.5 s to wait"


def problem_with_pause(result: dict[str, Any], due: int) -> str | None:
    """Return what is wrong with the report on a pause: it is in the latencies of all that were due in it.

    `due` messages of the window are expected to be in the report.
    """
    if (found := (result["operations"], result["errors"])) != (due, 0):
        return f"answered, errors: {found}, expected {(due, 0)}"
    # A third of the window's messages or more waited, for half of the pause on average.
    slow, slowest = result["latency_us"]["p90"] / 1e6, result["latency_us"]["max"] / 1e6
    return None if slow >= PAUSE / 2 and slowest >= 0.9 * PAUSE else f"p90 {slow} s, the slowest {slowest} s"


def problem_with_percentiles(result: dict[str, Any]) -> str | None:
    """Return what is wrong with the distribution: it has all its percentiles, and they rise."""
    latencies = list(result["latency_us"].values())
    if len(latencies) != 12:
        return f"reported {list(result['latency_us'])}"
    return None if latencies == sorted(latencies) and latencies[0] > 0 else f"they do not rise: {latencies}"


def tell(mode: str, name: str, wrong: str | None) -> bool:
    """Print the outcome of a case; return whether it failed."""
    print(f"{'FAILED' if wrong else 'ok':7}{mode:9}{name:25} {wrong or ''}".rstrip())
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
    for datagrams in DATAGRAM_CASES:
        with serving_datagrams(datagrams) as port:
            result = load(port, (*datagrams.arguments, "--seconds", str(datagrams.seconds)))
            wrong = problem_with_datagrams(result, datagrams)
        failed += tell("lossy" if datagrams.arguments is LOSSY else result["mode"], datagrams.name, wrong)
    with serving(answer, bytes, 0) as port:
        right = load(port, PACED)
    failed += tell("paced", "percentiles", problem_with_percentiles(right))
    with serving(Pausing(start=120), bytes, 0) as port:
        wrong = problem_with_pause(load(port, PACED), due=right["operations"])
    failed += tell("paced", "a pause", wrong)
    with socket.create_server(("127.0.0.1", 0)) as nobody_accepts:
        result = load(nobody_accepts.getsockname()[1], ("paced", "--connections", "1", "--rate", "20000"))
    failed += tell("paced", "nobody answers", problem(result, frozenset({"missing"})))
    with serving(EverySecond(), bytes, 0) as port:
        wrong = problem_with_timeouts(load(port, BURST), served=10, timed_out=10)
    failed += tell("burst", "every second unanswered", wrong)
    with socket.create_server(("127.0.0.1", 0), backlog=1) as nobody_accepts:
        wrong = problem_with_timeouts(load(nobody_accepts.getsockname()[1], BURST), served=0, timed_out=20)
    failed += tell("burst", "nobody accepts", wrong)
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
