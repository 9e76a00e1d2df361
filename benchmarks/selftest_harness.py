"""Show that the harness does not count what went wrong as a figure: `python benchmarks/selftest_harness.py`.

Servers whose `shutdown()` is slow, does not end them, or that do not answer; targets that rest on cells with
errors or without figures; suites that name what is not there.
"""

from __future__ import annotations

import dataclasses
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from socketserver import BaseRequestHandler, TCPServer
from typing import Any

from harness.building import HERE
from harness.measuring import Sample, count_sessions
from harness.report import target_table
from harness.results import Failure, Results
from harness.suites import SUITES, Suite
from harness.targets import Target

sys.path.insert(0, str(HERE / "servers"))

import shutdowns


class Echo(BaseRequestHandler):
    """Sends the first piece back."""

    def handle(self) -> None:
        self.request.sendall(self.request.recv(100))


class Silent(BaseRequestHandler):
    """Closes without a word."""

    def handle(self) -> None:
        self.request.recv(100)


class Polling(TCPServer):
    """Looks every 200 ms whether it is to shut down."""

    def serve_forever(self, poll_interval: float = 0.5) -> None:
        super().serve_forever(0.2)


class Deaf(TCPServer):
    """Has a shutdown() that only says it did."""

    def shutdown(self) -> None:
        threading.Timer(0.5, super().shutdown).start()


class Crashing(TCPServer):
    """Leaves serve_forever() with an exception after the first request."""

    def service_actions(self) -> None:
        raise RuntimeError("service_actions")


def shutdown_of(server: type[TCPServer], handler: type[BaseRequestHandler] = Echo) -> dict[str, Any]:
    """Shut down four of these; return the result."""
    return shutdowns.measure(lambda: server(("127.0.0.1", 0), handler), 4)


def problem_with_shutdowns(result: dict[str, Any], expected: str | None) -> str | None:
    """Return what is wrong with the result, whose first error has to contain `expected`."""
    if expected is not None:
        told = str(result["first_error"])
        return None if result["errors"] == 4 and expected in told else f"told of {told}"
    if result["errors"] or result["operations"] != 4:
        return f"a right server was blamed: {result['first_error']}"
    slowest = result["latency_us"]["max"] / 1e6
    return None if 0.02 <= slowest <= 5 else f"the slowest took {slowest:.3f} s, with a poll every 0.2 s"


def sample(server: str, rate: float, errors: int = 0) -> Sample:
    """Return what a cell might give."""
    return Sample(
        server=server,
        workload="w",
        round=1,
        operations=1,
        seconds=1.0,
        rate=rate,
        cpu_us=1.0,
        system_share=0.5,
        load_share=0.5,
        disturbed=0.0,
        latency_us=dict.fromkeys(("p50", "p99", "p99.9", "max"), 1.0),
        errors=errors,
        first_error=None,
        compared_with="base",
    )


def problem_with_verdicts(ours: Sample | None, base: Sample | None, expected: str) -> str | None:
    """Return what is wrong with the verdict on "twice the base's rate"; None stands for a failed cell."""
    results = Results()
    for name, found in (("ours", ours), ("base", base)):
        if found is None:
            results.failures.append(Failure(name, "w", 1, "did not come up"))
        else:
            results.samples.append(found)
    rows = target_table(results.verdicts([Target(("w",), "ours", "rate", 2.0, "base")])).splitlines()
    told = rows[-1].split("|")[-2].strip()
    return None if told == expected else f"the table says {told!r}, expected {expected!r}"


def problem_with_difference(held: float | None, expected: str) -> str | None:
    """Return what is wrong with the verdict on "512 B a session beside the base's"; None is a failure."""
    results = Results()
    results.samples.append(dataclasses.replace(sample("ours", 1.0), memory_per_connection_kib=1.5))
    if held is None:
        results.failures.append(Failure("base", "w", 1, "did not come up"))
    else:
        results.samples.append(dataclasses.replace(sample("base", 1.0), memory_per_connection_kib=held))
    target = Target(("w",), "ours", "session", 512, at_least=False, beside="base")
    told = [cell.strip() for cell in target_table(results.verdicts([target])).splitlines()[-1].split("|")]
    found = " ".join(told[-3:]).strip()
    return None if found == expected else f"the table says {found!r}, expected {expected!r}"


class FewSessions:
    """Says that it has three sessions."""

    def __init__(self) -> None:
        self.socket = socket.socket(type=socket.SOCK_DGRAM)
        self.socket.bind(("127.0.0.1", 0))
        self.port = self.socket.getsockname()[1]

    def answer(self) -> None:
        with self.socket:
            _, peer = self.socket.recvfrom(100)
            self.socket.sendto(b"3", peer)


def problem_with_few_sessions(opened: int, errors: int) -> str | None:
    """Return what is wrong with the count where `opened` were opened and the server has three."""
    server = FewSessions()
    thread = threading.Thread(target=server.answer)
    thread.start()
    answer: dict[str, Any] = {"operations": opened, "errors": 0, "first_error": None}
    count_sessions(server.port, answer)
    thread.join()
    return None if answer["errors"] == errors else f"{answer['errors']} errors, expected {errors}"


def problem_without_subject() -> str | None:
    """Return what is wrong with the verdicts where only the other server was measured, with errors."""
    results = Results()
    results.samples.append(sample("base", 1.0, errors=1))
    return "there is one" if results.verdicts([Target(("w",), "ours", "rate", 2.0, "base")]) else None


def unknown_names(suite: Suite) -> str | None:
    """Return what is wrong with the names in a suite's data, or None."""
    works = {workload.key for workload in suite.workloads}
    servers = {server.name for server in suite.servers}
    families = {workload.family for workload in suite.workloads}
    wanted = {workload.yardstick for workload in suite.workloads if suite.name == "datagrams"}
    wanted |= {name for target in suite.targets for name in target.servers}
    wanted |= {server.yardstick for server in suite.servers if server.yardstick}
    unknown = (wanted - servers) | {key for target in suite.targets for key in target.workloads} - works
    unknown |= {name for server in suite.servers for name in server.families - families}
    if unknown:
        return f"unknown: {', '.join(sorted(unknown))}"
    idle = [server.name for server in suite.servers if not any(map(server.does, suite.workloads))]
    return f"nothing to do for {', '.join(idle)}" if idle else None


def outcomes() -> Iterator[tuple[str, str, str | None]]:
    """Try everything; give the area, the case and what is wrong."""
    shutdowns.END_LIMIT = 0.1
    cases: tuple[tuple[str, Callable[[], dict[str, Any]], str | None], ...] = (
        ("right, and slow", lambda: shutdown_of(Polling), None),
        ("goes on serving", lambda: shutdown_of(Deaf), "goes on"),
        ("does not answer", lambda: shutdown_of(TCPServer, Silent), "no echo"),
        ("ends by itself", lambda: shutdown_of(Crashing), "RuntimeError"),
    )
    for name, run, expected in cases:
        yield "shutdown", name, problem_with_shutdowns(run(), expected)
    right = sample("base", 100.0)
    yield "target", "met", problem_with_verdicts(sample("ours", 200.0), right, "met")
    yield "target", "missed", problem_with_verdicts(sample("ours", 199.0), right, "MISSED")
    worthless = problem_with_verdicts(sample("ours", 300.0, errors=3), right, "MISSED (3 errors)")
    yield "target", "with errors", worthless
    worthless = problem_with_verdicts(
        sample("ours", 300.0), sample("base", 1.0, errors=1), "MISSED (1 error)"
    )
    yield "target", "the base with errors", worthless
    yield "target", "without figures", problem_with_verdicts(None, right, "MISSED (1 error)")
    yield "target", "difference, met", problem_with_difference(1.0, "512 met")
    yield "target", "difference, missed", problem_with_difference(0.5, "1024 MISSED")
    yield "target", "difference from nothing", problem_with_difference(None, "MISSED (1 error)")
    yield "target", "not taken part", problem_without_subject()
    yield "sessions", "all there", problem_with_few_sessions(3, errors=0)
    yield "sessions", "one was forgotten", problem_with_few_sessions(4, errors=1)
    for suite in SUITES.values():
        yield "suite", suite.name, unknown_names(suite)


def main() -> int:
    """Try all cases; exit status 1 when one did not come out as it has to."""
    failed = 0
    for area, name, wrong in outcomes():
        print(f"{'FAILED' if wrong else 'ok':7}{area:9} {name:25} {wrong or ''}".rstrip())
        failed += wrong is not None
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
