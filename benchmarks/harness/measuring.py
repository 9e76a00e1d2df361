"""One cell of the tables: one server, one work, one round."""

from __future__ import annotations

import json
import subprocess
import time
from dataclasses import dataclass
from typing import Any

from . import processes
from .building import LOADGEN
from .processes import Certificate, Cores, RunningServer, ServerFailedError
from .servers import Server
from .workloads import Workload

CALM = 0.05  # the share of disturbance up to which a cell is not measured again
SETTLE = 0.2  # seconds before memory is read, so that the server has come to rest


@dataclass(frozen=True, slots=True)
class Conditions:
    """What is the same for every cell of a run. Times in seconds."""

    python: str
    cores: Cores
    warmup: float
    seconds: float
    cold: bool
    attempts: int
    tls: Certificate | None = None


@dataclass(frozen=True, slots=True)
class Sample:
    """What one cell gave.

    Rates are operations a second. `seconds` is the window (storm: the time till all were served, idle: till
    all were open). `cpu_us` is the server's user and system time for an operation in microseconds, 0 if
    unknown; latencies are in microseconds too. `load_share` is how much of its core the load generator used,
    `disturbed` the part of the window in which the server (unless it has workers) or the load was ready to
    run and the core did other work; both are 0 without a window. `compared_with` is the server to which the
    ratios are. `timeouts` are clients of a burst that were not served within its limit; they are in the
    latencies with what they waited. `lost` datagrams are those of the whole cell, warm-up included; in a
    work that is not lossy they are among the errors.
    """

    server: str
    workload: str
    round: int
    operations: int
    seconds: float
    rate: float
    cpu_us: float
    system_share: float
    load_share: float
    disturbed: float
    latency_us: dict[str, float]
    errors: int
    first_error: str | None
    compared_with: str
    timeouts: int = 0
    lost: int = 0
    memory_before_kib: int = 0
    memory_held_kib: int = 0
    memory_per_connection_kib: float = 0.0


def measure(server: Server, workload: Workload, number: int, conditions: Conditions) -> Sample:
    """Measure one cell, again while other work disturbed it and attempts are left; return the calmest.

    Calm is judged by the kernel's run-queue delays alone, never by the figures. Raises what `measure_once`
    does.
    """
    calmest = measure_once(server, workload, number, conditions)
    for _ in range(conditions.attempts - 1):
        if calmest.disturbed <= CALM:
            break
        again = measure_once(server, workload, number, conditions)
        calmest = min(calmest, again, key=lambda sample: sample.disturbed)
    return calmest


def measure_once(server: Server, workload: Workload, number: int, conditions: Conditions) -> Sample:
    """Start `server`, put `workload` on it, stop it.

    Raises ServerFailedError when the server does not come up or dies, or when the load gives no result.
    """
    if workload.mode == "shutdown":
        return _sample(server, workload, number, _shut_down(server, workload, conditions))
    port = processes.free_port()
    command = processes.server_command(server, workload, port, conditions.python, conditions.tls)
    with processes.running(command, port, conditions.cores.server) as running:
        if not conditions.cold and not workload.tls:
            _probe(running, workload)
        load = _LoadRun(running, server, workload, conditions)
        sample = _sample(server, workload, number, load.answer, load.memory_before, load.memory_held)
        if not running.alive():
            text = running.error_text() or f"exit status {running.process.returncode}"
            raise ServerFailedError(f"ended during the work: {text}")
        return sample


def _probe(server: RunningServer, workload: Workload) -> None:
    try:
        (processes.probe_datagram if workload.over_udp else processes.probe)(server.port)
    except (OSError, ServerFailedError) as error:
        raise ServerFailedError(f"{error}: {server.last_words() or 'no message'}") from error


class _LoadRun:
    """A run of the load generator: `answer` is its result, memory is the server's, in KiB."""

    def __init__(
        self, running: RunningServer, server: Server, workload: Workload, conditions: Conditions
    ) -> None:
        self.memory_before = self.memory_held = 0
        self._server = running
        seconds = conditions.seconds * workload.windows
        self._limit = conditions.warmup + seconds + 120 + workload.limit * workload.repeat
        # Children that come and go are counted when they have ended, in the figures of their parent.
        watched = ",".join(map(str, [running.process.pid] if server.workers else running.process_ids()))
        command = [str(LOADGEN), *workload.options(), "--port", str(running.port), "--watch", watched]
        command += ["--warmup", str(conditions.warmup), "--seconds", str(seconds)]
        if workload.holds:
            time.sleep(SETTLE)
            self.memory_before = running.resident_kib()
        self.answer = self._run(command, workload, conditions)

    def _run(self, command: list[str], workload: Workload, conditions: Conditions) -> dict[str, Any]:
        process = processes.start_pinned(command, conditions.cores.load)
        assert process.stdout is not None
        if workload.holds:
            process.stdout.readline()  # the load generator ends by itself if this never comes
            time.sleep(SETTLE)
            self.memory_held = self._server.resident_kib()
        answer = _answer_of(process, self._limit, "the load generator")
        if workload.mode == "sessions":
            count_sessions(self._server.port, answer)
        return answer


def count_sessions(port: int, answer: dict[str, Any]) -> None:
    """Add an error to `answer` when the server has fewer sessions than were opened: it paid for fewer."""
    still_open = processes.ask_sessions(port)
    if still_open < answer["operations"]:
        answer["errors"] += 1
        answer["first_error"] = answer["first_error"] or f"only {still_open} sessions are open"


def _shut_down(server: Server, workload: Workload, conditions: Conditions) -> dict[str, Any]:
    """Run the script that measures itself, where the server would run."""
    command = processes.shutdown_command(server, workload, conditions.python)
    with processes.started(command, conditions.cores.server) as process:
        return _answer_of(process, 60 + 2 * workload.connections, "the server")


def _answer_of(process: subprocess.Popen[bytes], limit: float, name: str) -> dict[str, Any]:
    """Return the JSON on the last line of what the process writes, once it has ended."""
    try:
        output, _ = process.communicate(timeout=limit)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        raise ServerFailedError(f"{name} did not end") from None
    try:
        answer: dict[str, Any] = json.loads(output.splitlines()[-1])
    except (IndexError, ValueError):
        raise ServerFailedError(f"{name} gave no result: {output!r}") from None
    return answer


def _sample(
    server: Server,
    workload: Workload,
    number: int,
    answer: dict[str, Any],
    memory_before: int = 0,
    memory_held: int = 0,
) -> Sample:
    operations = answer["operations"]
    ticks = answer.get("server_user_seconds", 0.0) + answer.get("server_system_seconds", 0.0)
    waited = answer.get("own_waited_seconds", 0.0)
    if not server.workers:
        waited = max(waited, answer.get("server_waited_seconds", 0.0))
    held = memory_held - memory_before
    return Sample(
        server=server.name,
        workload=workload.key,
        round=number,
        operations=operations,
        seconds=answer["seconds"],
        rate=answer["rate"],
        cpu_us=answer.get("server_cpu_seconds", 0.0) / operations * 1e6 if operations else 0.0,
        system_share=answer["server_system_seconds"] / ticks if ticks else 0.0,
        load_share=answer["own_cpu_seconds"] / answer["seconds"] if workload.has_window else 0.0,
        disturbed=waited / answer["seconds"] if workload.has_window else 0.0,
        latency_us=answer["latency_us"],
        errors=answer["errors"],
        first_error=answer["first_error"],
        compared_with=server.yardstick or workload.yardstick,
        timeouts=answer.get("timeouts", 0),
        lost=answer.get("lost", 0),
        memory_before_kib=memory_before,
        memory_held_kib=memory_held,
        memory_per_connection_kib=held / operations if operations and memory_held else 0.0,
    )
