"""How long `shutdown()` of an idle server takes, measured in the process that serves.

Takes the options of `socketserver_kinds.py`, and `--times`; prints JSON, as the load generator does.
"""

from __future__ import annotations

import argparse
import faulthandler
import json
import random
import socket
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from socketserver_kinds import kind_arguments, make_server

POLL_INTERVAL = 0.5  # seconds; what serve_forever() has by default
SETTLE = 0.02  # seconds for the one connection before to be forgotten
LIMIT = 30.0  # seconds for one server; then this process ends, saying where each thread is
END_LIMIT = 5.0  # seconds for serve_forever() to return once shutdown() has


def idle_times(times: int) -> Iterator[float]:
    """Give the seconds for which each server idles: every part of the poll interval alike, in any order."""
    steps = list(range(times))
    random.Random(times).shuffle(steps)
    for step in steps:
        yield SETTLE + POLL_INTERVAL * (step + 0.5) / times


def exchange(address: tuple[str, int]) -> None:
    """Have one message echoed, so that the server is known to serve."""
    with socket.create_connection(address, timeout=5) as connection:
        connection.sendall(b"probe\n")
        if connection.recv(100) != b"probe\n":
            raise OSError("the first connection had no echo")


def time_shutdown(server: Any, idle: float) -> float:
    """Serve in a thread, idle, and return the seconds that shutdown() takes.

    Raises OSError when there is no echo before, TimeoutError when serve_forever() goes on after it.
    """
    failures: list[BaseException] = []

    def serve() -> None:
        try:
            server.serve_forever()
        except BaseException as exc:
            failures.append(exc)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    exchange(server.server_address)
    time.sleep(idle)
    begun = time.perf_counter()
    server.shutdown()
    taken = time.perf_counter() - begun
    thread.join(END_LIMIT)
    if failures:
        raise OSError(f"serve_forever() raised {failures[0]!r}")
    if thread.is_alive():
        raise TimeoutError("serve_forever() goes on after shutdown()")
    return taken


def measure(make: Callable[[], Any], times: int) -> dict[str, Any]:
    """Shut down `times` servers, one after the other; return the result."""
    begun = time.perf_counter()
    taken: list[float] = []
    failures: list[OSError] = []
    for idle in idle_times(times):
        faulthandler.dump_traceback_later(LIMIT, exit=True)
        server = make()
        try:
            taken.append(time_shutdown(server, idle))
        except OSError as exc:
            failures.append(exc)
        finally:
            server.server_close()
    faulthandler.cancel_dump_traceback_later()
    return as_result(taken, failures, time.perf_counter() - begun)


def as_result(taken: list[float], failures: list[OSError], seconds: float) -> dict[str, Any]:
    """Return what is printed."""
    ordered = sorted(taken) or [0.0]
    latencies = {"p50": statistics.median(ordered), "max": ordered[-1]}
    for name, share in (("p99", 0.99), ("p99.9", 0.999)):
        latencies[name] = ordered[min(int(len(ordered) * share), len(ordered) - 1)]
    return {
        "mode": "shutdown",
        "operations": len(taken),
        "seconds": seconds,
        "rate": len(taken) / seconds,
        "latency_us": {name: value * 1e6 for name, value in latencies.items()},
        "errors": len(failures),
        "first_error": str(failures[0]) if failures else None,
    }


def main() -> int:
    """Measure and print; exit status 1 when there were errors."""
    options = argparse.ArgumentParser(add_help=False)
    options.add_argument("--times", type=int, default=34)
    own, words = options.parse_known_args()
    args = kind_arguments([*words, "--port", "0"])
    result = measure(lambda: make_server(args), own.times)
    print(json.dumps(result), flush=True)
    return 1 if result["errors"] else 0


if __name__ == "__main__":
    sys.exit(main())
