"""The report: Markdown for people, JSON for programs."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from .machine import Machine
from .measuring import Sample
from .results import Results, Verdict
from .tables import compact, markdown_table, ranged, rows_of, yardsticks
from .workloads import Workload


@dataclasses.dataclass(frozen=True, slots=True)
class Run:
    """How a run was made. Times in seconds."""

    suite: str
    title: str
    machine: Machine
    rounds: int
    seconds: float
    warmup: float
    attempts: int
    cold: bool
    pinned: bool
    left_out: tuple[str, ...]

    def describe(self) -> str:
        """Return the method in one paragraph."""
        pinned = "server and load pinned to a core each" if self.pinned else "NOT pinned: there is one core"
        start = "nothing" if self.cold else "one connection opened and closed"
        again = f", a disturbed cell tried up to {self.attempts} times" if self.attempts > 1 else ""
        return (
            f"{self.rounds} interleaved rounds, {self.seconds:g} s measured after {self.warmup:g} s of "
            f"warm-up, {pinned}; a fresh server for each cell, with {start} before the work{again}. Figures "
            "are the median of the rounds, with (smallest-largest). What the columns mean and how to read "
            "noise: benchmarks/README.md."
        )


def target_table(verdicts: Iterable[Verdict]) -> str:
    """Write what was asked beside what was measured."""
    rows = [["work", "server", "compared with", "metric", "target", "measured", ""]]
    rows += [_target_row(verdict) for verdict in verdicts]
    return markdown_table(rows) if len(rows) > 1 else "No target applies to what was measured."


def workload_table(results: Results, workload: Workload) -> str:
    """Write the figures of all servers in one workload, the best first."""
    note = (
        "" if workload.holds or workload.mode in ("burst", "shutdown") else _note_on_ratios(results, workload)
    )
    table = markdown_table(rows_of(results, workload))
    return f"### {workload.describe()}\n\n`{workload.key}`.{note}\n\n{table}"


def _note_on_ratios(results: Results, workload: Workload) -> str:
    names = yardsticks(results, workload)
    to = f"to {next(iter(names))}" if len(names) == 1 else "to what each server is compared with"
    return f" Ratios are {to}, of the same round."


def markdown(run: Run, results: Results, workloads: Sequence[Workload], verdicts: Sequence[Verdict]) -> str:
    """Write the whole report."""
    parts = [f"# {run.title}", run.machine.describe(), run.describe()]
    parts += ["## Targets", target_table(verdicts), "## Figures"]
    parts += [workload_table(results, work) for work in workloads if results.servers(work.key)]
    notes = [f"* {text}" for text in (*run.left_out, *_trouble(results))]
    if notes:
        parts += ["## Left out, and errors", "\n".join(notes)]
    return "\n\n".join(parts) + "\n"


def as_json(run: Run, results: Results, verdicts: Sequence[Verdict]) -> dict[str, Any]:
    """Return everything that was measured, as plain data."""
    return {
        "run": dataclasses.asdict(run),
        "samples": [dataclasses.asdict(sample) for sample in results.samples],
        "failures": [dataclasses.asdict(failure) for failure in results.failures],
        "targets": [{**dataclasses.asdict(verdict), "met": verdict.met} for verdict in verdicts],
    }


def write(folder: Path, name: str, text: str, data: dict[str, Any]) -> list[Path]:
    """Write `name`.md and `name`.json into `folder`; return their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{name}.md", folder / f"{name}.json"]
    paths[0].write_text(text)
    paths[1].write_text(json.dumps(data, indent=1) + "\n")
    return paths


def progress(sample: Sample) -> str:
    """Write one sample as one line."""
    line = f"{sample.workload:18} {sample.server:20} {compact(sample.rate):>8}/s  {sample.cpu_us:7.2f} us"
    line += f"  p99 {compact(sample.latency_us['p99']):>6} us"
    if sample.timeouts:
        line += f"  timed out {sample.timeouts}"
    if sample.memory_per_connection_kib:
        line += f"  {sample.memory_per_connection_kib:.2f} KiB each"
    if sample.lost:
        line += f"  lost {sample.lost}"
    if sample.load_share > 0:
        line += f"  load {sample.load_share:4.0%}  disturbed {sample.disturbed:3.0%}"
    return line + (f"  ERRORS {sample.errors}: {sample.first_error}" if sample.errors else "")


def _target_row(verdict: Verdict) -> list[str]:
    target = verdict.target
    names = {
        "memory": "KiB/connection",
        "slowest": "slowest, s",
        "median": "median, ms",
        "session": "B/session",
    }
    absolute = names.get(target.metric, target.metric)
    verdict_text = "met" if verdict.met else "MISSED"
    if verdict.troubles and target.metric != "errors":
        verdict_text += f" ({verdict.troubles} error{'s' if verdict.troubles > 1 else ''})"
    write = "{:.0f}".format if target.metric in ("errors", "session") else "{:.2f}".format
    return [
        verdict.workload,
        target.subject,
        target.yardstick or (f"beside {target.beside}" if target.beside else ""),
        f"{target.metric} ratio" if target.yardstick else absolute,
        f"{'at least' if target.at_least else 'at most'} {write(target.value)}",
        ranged(verdict.measured, write),
        verdict_text,
    ]


def _trouble(results: Results) -> list[str]:
    def where(workload: str, server: str, number: int) -> str:
        return f"{workload}, {server}, round {number}"

    wrong = [
        f"{where(s.workload, s.server, s.round)}: {s.errors} errors, the first: {s.first_error}"
        for s in results.samples
        if s.errors
    ]
    return wrong + [f"{where(f.workload, f.server, f.round)}: {f.reason}" for f in results.failures]
