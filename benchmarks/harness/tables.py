"""The columns of each kind of work, and how numbers are written."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from .measuring import Sample
from .results import METRICS, Results, Spread
from .targets import Metric
from .workloads import Workload

Cell = Callable[[Results, Workload, str], str]


@dataclass(frozen=True, slots=True)
class Column:
    """A heading, and what stands under it for a server."""

    heading: str
    cell: Cell


def compact(value: float) -> str:
    """Write a number with three or four digits: 0.93, 12.4, 870, 12.3k."""
    if value >= 10000:
        return f"{value / 1000:.1f}k"
    if value >= 100:
        return f"{value:.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def percent(value: float) -> str:
    """Write a share of one."""
    return f"{value:.0%}"


def whole(value: float) -> str:
    """Write a number of things."""
    return f"{value:.0f}"


def ranged(spread: Spread | None, write: Callable[[float], str] = compact) -> str:
    """Write a median with its range, or nothing."""
    if spread is None:
        return ""
    if spread.minimum == spread.maximum:
        return write(spread.median)
    return f"{write(spread.median)} ({write(spread.minimum)}-{write(spread.maximum)})"


def markdown_table(rows: Sequence[Sequence[str]]) -> str:
    """Write rows, the first of them the heading, with aligned columns."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |"
        for row in rows
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)


def rows_of(results: Results, workload: Workload) -> list[list[str]]:
    """Return heading and rows of one workload's table, the best server first."""
    columns = columns_of(workload)
    if workload.has_window and len(yardsticks(results, workload)) > 1:
        columns.insert(0, Column("compared with", _compared_with))
    rows = [["server", *(column.heading for column in columns)]]
    for server in _best_first(results, workload):
        cells = [column.cell(results, workload, server) for column in columns]
        rows.append([server, *cells])
    return rows


def yardsticks(results: Results, workload: Workload) -> set[str]:
    """Return the servers to which this work's ratios are."""
    return {results.yardstick(workload.key, server) for server in results.servers(workload.key)}


def columns_of(workload: Workload) -> list[Column]:
    """Return the columns that make sense for this work."""
    cpu = Column(f"CPU us/{workload.operation}", _figure(METRICS["cpu"]))
    errors = Column("errors", _errors)
    if workload.mode == "idle":
        return [
            Column("RSS KiB/connection", _figure(METRICS["memory"])),
            Column("before MiB", _figure(lambda sample: sample.memory_before_kib / 1024)),
            Column("held MiB", _figure(lambda sample: sample.memory_held_kib / 1024)),
            Column("all open ms", _figure(_milliseconds)),
            cpu,
            errors,
        ]
    if workload.mode == "sessions":
        return [
            Column("RSS B/session", _figure(METRICS["session"], whole)),
            Column("before MiB", _figure(lambda sample: sample.memory_before_kib / 1024)),
            Column("held MiB", _figure(lambda sample: sample.memory_held_kib / 1024)),
            Column("all open ms", _figure(_milliseconds)),
            cpu,
            errors,
        ]
    if workload.mode == "storm":
        time = [Column("all served ms", _figure(_milliseconds)), Column("time ratio", _ratio("seconds"))]
        return [*time, *_latencies("p50", "p99", "max"), cpu, errors]
    if workload.mode == "burst":
        return [
            Column("served", _figure(lambda sample: sample.operations, whole)),
            Column("timed out", _figure(lambda sample: sample.timeouts, whole)),
            Column("slowest s", _figure(METRICS["slowest"])),
            Column("median ms", _figure(METRICS["median"])),
            cpu,
            errors,
        ]
    if workload.mode == "paced":
        return [
            *_latencies("p50", "p90"),
            Column("p99 us", _figure(lambda sample: sample.latency_us["p99"])),
            *_latencies("p99.9", "max"),
            *(cpu, Column("CPU ratio", _ratio("cpu"))),
            Column("disturbed", _median(lambda sample: sample.disturbed, percent)),
            errors,
        ]
    if workload.mode == "shutdown":
        slowest = Column("max ms", _figure(lambda sample: sample.latency_us["max"] / 1000))
        return [Column("median ms", _figure(METRICS["median"])), slowest, errors]
    rate = Column(f"{workload.operation}s/s", _figure(METRICS["rate"]))
    return [
        *(rate, Column("rate ratio", _ratio("rate")), cpu, Column("CPU ratio", _ratio("cpu"))),
        Column("kernel", _median(lambda sample: sample.system_share, percent)),
        *_latencies("p50", "p99", "p99.9", "max"),
        Column("load", _median(lambda sample: sample.load_share, percent)),
        Column("disturbed", _median(lambda sample: sample.disturbed, percent)),
        *([Column("lost", _lost)] if workload.lossy else []),
        errors,
    ]


_RANKED_BY: dict[str, Metric] = {
    "idle": "memory",
    "sessions": "session",
    "storm": "seconds",
    "burst": "slowest",
    "shutdown": "median",
    "paced": "median",
}


def _best_first(results: Results, workload: Workload) -> list[str]:
    metric: Metric = _RANKED_BY.get(workload.mode, "rate")

    def median(server: str) -> float:
        figure = results.figure(workload.key, server, METRICS[metric])
        return figure.median if figure else 0.0

    return sorted(results.servers(workload.key), key=median, reverse=metric == "rate")


def _milliseconds(sample: Sample) -> float:
    return sample.seconds * 1000


def _figure(metric: Callable[[Sample], float], write: Callable[[float], str] = compact) -> Cell:
    return lambda results, workload, server: ranged(results.figure(workload.key, server, metric), write)


def _median(metric: Callable[[Sample], float], write: Callable[[float], str]) -> Cell:
    def cell(results: Results, workload: Workload, server: str) -> str:
        found = results.figure(workload.key, server, metric)
        return write(found.median) if found else ""

    return cell


def _ratio(metric: Metric) -> Cell:
    def cell(results: Results, workload: Workload, server: str) -> str:
        yardstick = results.yardstick(workload.key, server)
        return ranged(results.ratio(workload.key, server, yardstick, metric))

    return cell


def _latencies(*names: str) -> list[Column]:
    def latency(name: str) -> Column:
        return Column(f"{name} us", _median(lambda sample: sample.latency_us[name], compact))

    return [latency(name) for name in names]


def _compared_with(results: Results, workload: Workload, server: str) -> str:
    yardstick = results.yardstick(workload.key, server)
    return "" if yardstick == server else yardstick


def _lost(results: Results, workload: Workload, server: str) -> str:
    return str(sum(sample.lost for sample in results.of(workload.key, server)))


def _errors(results: Results, workload: Workload, server: str) -> str:
    return str(sum(sample.errors for sample in results.of(workload.key, server)))
