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
    `disturbed` the part of the window in which the server or the load was ready to run and the core did other
    work; both are 0 without a window.
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
    port = processes.free_port()
    command = processes.server_command(server, workload, port, conditions.python, conditions.tls)
    with processes.running(command, port, conditions.cores.server) as running:
        if not conditions.cold and not workload.tls:
            _probe(running)
        load = _LoadRun(running, workload, conditions)
        sample = _sample(server, workload, number, load)
        if not running.alive():
            raise ServerFailedError(f"ended during the work: {running.error_text()}")
        return sample


def _probe(server: RunningServer) -> None:
    try:
        processes.probe(server.port)
    except OSError as error:
        raise ServerFailedError(server.error_text() or str(error)) from error


class _LoadRun:
    """A run of the load generator: `answer` is its result, memory is the server's, in KiB."""

    def __init__(self, server: RunningServer, workload: Workload, conditions: Conditions) -> None:
        self.memory_before = self.memory_held = 0
        self._server = server
        self._limit = conditions.warmup + conditions.seconds + 120
        watched = ",".join(map(str, server.process_ids()))
        command = [str(LOADGEN), *workload.options(), "--port", str(server.port), "--watch", watched]
        command += ["--warmup", str(conditions.warmup), "--seconds", str(conditions.seconds)]
        if workload.mode == "idle":
            time.sleep(SETTLE)
            self.memory_before = server.resident_kib()
        self.answer = self._run(command, workload, conditions)

    def _run(self, command: list[str], workload: Workload, conditions: Conditions) -> dict[str, Any]:
        process = processes.start_pinned(command, conditions.cores.load)
        assert process.stdout is not None
        try:
            if workload.mode == "idle":
                process.stdout.readline()  # the load generator ends by itself if this never comes
                time.sleep(SETTLE)
                self.memory_held = self._server.resident_kib()
            output, _ = process.communicate(timeout=self._limit)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            raise ServerFailedError("the load generator did not end") from None
        try:
            answer: dict[str, Any] = json.loads(output.splitlines()[-1])
        except (IndexError, ValueError):
            raise ServerFailedError(f"the load generator gave no result: {output!r}") from None
        return answer


def _sample(server: Server, workload: Workload, number: int, load: _LoadRun) -> Sample:
    answer = load.answer
    operations = answer["operations"]
    ticks = answer.get("server_user_seconds", 0.0) + answer.get("server_system_seconds", 0.0)
    waited = max(answer.get("server_waited_seconds", 0.0), answer["own_waited_seconds"])
    held = load.memory_held - load.memory_before
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
        memory_before_kib=load.memory_before,
        memory_held_kib=load.memory_held,
        memory_per_connection_kib=held / operations if operations and load.memory_held else 0.0,
    )
