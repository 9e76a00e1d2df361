"""The pictures of README.md and docs: which figures are in them. Needs matplotlib.

Each is made of results as `report.as_json` gives them. What was not measured is not drawn.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import drawing
from .drawing import Axis, Line, Panel, Picture, Row
from .measuring import Sample
from .results import METRICS, Results
from .tables import compact
from .targets import Metric
from .workloads import SCALING

NAMES = {
    "ours-uvloop": "asyncserver (uvloop)",
    "ours-asyncio": "asyncserver (asyncio)",
    "uvloop-protocol": "Protocol (uvloop)",
    "asyncio-protocol": "Protocol (asyncio)",
    "uvloop-streams": "streams (uvloop)",
    "asyncio-streams": "streams (asyncio)",
    "anyio-uvloop": "anyio (uvloop)",
    "anyio-asyncio": "anyio (asyncio)",
    "trio": "Trio",
    "tornado": "Tornado",
    "twisted": "Twisted",
    "gevent": "gevent",
    "socketserver-threads": "socketserver",
    "c-libuv": "libuv, in C",
    "go": "Go",
}
OURS = frozenset({"ours-uvloop", "ours-asyncio"})
NATIVE = frozenset({"c-libuv", "go"})

# More lines than these cannot be told apart; the tables have all servers.
LINES = (
    ("ours-uvloop", drawing.OURS, (), "o"),
    ("ours-asyncio", drawing.OURS, (4, 1.5), "s"),
    ("uvloop-protocol", drawing.TEXT, (), "d"),
    ("asyncio-streams", drawing.OCHRE, (5, 2, 1, 2), "^"),
    ("socketserver-threads", drawing.PURPLE, (1, 1.5), "v"),
    ("gevent", drawing.GREEN, (6, 2), "P"),
    ("twisted", drawing.VERMILION, (3, 2), "X"),
    ("go", drawing.MUTED, (1, 1), "*"),
)

RATE = Panel("Messages a second", "higher is better", compact)
CPU = Panel("CPU µs per message", "lower is better", compact)
PERCENTILES = (1.0, 5.0, 10.0, 25.0, 50.0, 75.0, 90.0, 95.0, 99.0, 99.9)


@dataclass(frozen=True, slots=True)
class Measured:
    """The samples of a run without those that had errors, and how it was made."""

    run: dict[str, Any]
    results: Results

    def servers(self, workload: str) -> list[str]:
        """Return the servers that have figures for the work."""
        return self.results.servers(workload)


def read(path: Path) -> Measured:
    """Read results that were written by `report.write`. Raises OSError, ValueError."""
    data = json.loads(path.read_text())
    results = Results()
    samples = [Sample(**{"compared_with": "", **plain}) for plain in data["samples"]]
    results.samples = [sample for sample in samples if not sample.errors]
    return Measured(data["run"], results)


def draw(sources: Sequence[Measured]) -> list[Picture]:
    """Draw all pictures for which there are figures; of several sources the last that has them counts."""
    pictures = []
    for workload, make in _PICTURES:
        measured = next((each for each in reversed(sources) if each.servers(workload)), None)
        picture = None if measured is None else make(measured)
        if picture is not None:
            pictures.append(picture)
    return pictures


def _bars(
    name: str, title: str, workload: str, panels: Sequence[tuple[Metric, Panel]]
) -> tuple[str, Callable[[Measured], Picture]]:
    def make(measured: Measured) -> Picture:
        rows = _rows(measured, workload, [metric for metric, _ in panels])
        return drawing.bars(name, title, [panel for _, panel in panels], rows, _notes(measured, rows))

    return workload, make


def _rows(measured: Measured, workload: str, metrics: Sequence[Metric]) -> list[Row]:
    """Return the servers, the best in the first metric first."""
    rows = []
    for server in measured.servers(workload):
        figures = [measured.results.figure(workload, server, METRICS[metric]) for metric in metrics]
        known = tuple(figure for figure in figures if figure is not None)
        rows.append(Row(NAMES.get(server, server), known, server in OURS, server in NATIVE))
    return sorted(rows, key=lambda row: row.figures[0].median, reverse=metrics[0] == "rate")


def _notes(measured: Measured, rows: Sequence[Row]) -> list[str]:
    rounds = measured.run["rounds"]
    note = f"Bar: median of {rounds} rounds, line: smallest to largest." if rounds > 1 else "One round."
    if any(row.native for row in rows):
        note += " Outlined: not Python."
    return [note, _conditions(measured)]


def _conditions(measured: Measured) -> str:
    machine = measured.run["machine"]
    uvloop = machine["libraries"].get("uvloop")
    libraries = f", uvloop {uvloop}" if uvloop else ""
    return f"CPython {machine['python']}{libraries}; one process on one core, loopback; {machine['cpu']}."


def _latency(measured: Measured) -> Picture | None:
    workload = "paced-64-c64"
    series = [
        Line(
            NAMES.get(server, server),
            _distribution(measured, workload, server),
            colour,
            dashes,
            "",
            server in OURS,
        )
        for server, colour, dashes, _ in LINES
        if server in measured.servers(workload)
    ]
    if not series:
        return None
    ticks = tuple((_rank(percent), f"{percent:g} %") for percent in (1, 50, 90, 99, 99.9))
    return drawing.lines(
        "latency",
        "Latency at 5,000 messages a second",
        Panel("From when a message was due to its echo", "lower is better", _time),
        Axis(ticks, "so many of the messages were answered within that time"),
        Axis(_steps((value for line in series for _, value in line.points), _time)),
        series,
        [
            "64 bytes on 64 connections, at random times, whether the server keeps up or not.",
            _line_note(measured),
        ],
    )


def _distribution(measured: Measured, workload: str, server: str) -> tuple[tuple[float, float], ...]:
    samples = measured.results.of(workload, server)
    return tuple(
        (_rank(percent), statistics.median(sample.latency_us[f"p{percent:g}"] for sample in samples))
        for percent in PERCENTILES
    )


def _rank(percent: float) -> float:
    """Return the place of a percentile: each step of one is a tenth of the messages that are left."""
    return round(-math.log10(1 - percent / 100), 6)


def _time(microseconds: float) -> str:
    return f"{microseconds / 1000:g} ms" if microseconds >= 1000 else f"{microseconds:.0f} µs"


def _connections(measured: Measured) -> Picture | None:
    series = [
        Line(NAMES.get(server, server), _costs(measured, server), colour, dashes, marker, server in OURS)
        for server, colour, dashes, marker in LINES
        if server in measured.servers("scaling-64-c1")
    ]
    if not series:
        return None
    return drawing.lines(
        "connections",
        "Cost against the number of connections",
        Panel("CPU µs per message of 64 bytes", "lower is better", compact),
        Axis(tuple((float(place), f"{count:,}") for place, count in enumerate(SCALING)), "connections"),
        Axis(_steps((value for line in series for _, value in line.points), "{:g}".format)),
        series,
        ["Every connection has one message on its way all the time.", _line_note(measured)],
    )


def _costs(measured: Measured, server: str) -> tuple[tuple[float, float], ...]:
    figures = [
        (float(place), measured.results.figure(f"scaling-64-c{count}", server, METRICS["cpu"]))
        for place, count in enumerate(SCALING)
    ]
    return tuple((place, figure.median) for place, figure in figures if figure is not None)


def _line_note(measured: Measured) -> str:
    rounds = measured.run["rounds"]
    return f"{f'Median of {rounds} rounds' if rounds > 1 else 'One round'}. {_conditions(measured)}"


def _steps(values: Any, write: Callable[[float], str]) -> tuple[tuple[float, str], ...]:
    """Return 1, 2, 5, 10 ... as far as the values need it."""
    known = list(values)
    steps = [factor * 10.0**power for power in range(-1, 8) for factor in (1, 2, 5)]
    first = max(step for step in steps if step <= min(known))
    last = min(step for step in steps if step >= max(known))
    return tuple((step, write(step)) for step in steps if first <= step <= last)


_ECHO = "echo-64-c64"
_PICTURES: tuple[tuple[str, Callable[[Measured], Picture | None]], ...] = (
    _bars("overview", "Echo of 64 bytes on 64 connections", _ECHO, [("rate", RATE), ("cpu", CPU)]),
    _bars("throughput", "Throughput: echo of 64 bytes on 64 connections", _ECHO, [("rate", RATE)]),
    _bars("cpu", "Cost: echo of 64 bytes on 64 connections", _ECHO, [("cpu", CPU)]),
    _bars(
        "lines",
        "Lines of 64 bytes, 16 on their way on each of 64 connections",
        "lines-64-c64-k16",
        [
            ("rate", Panel("Lines a second", RATE.good, compact)),
            ("cpu", Panel("CPU µs per line", CPU.good, compact)),
        ],
    ),
    _bars(
        "churn",
        "Connect, echo of 64 bytes, close; 128 at a time",
        "churn-64-c128",
        [
            ("rate", Panel("Connections a second", RATE.good, compact)),
            ("cpu", Panel("CPU µs per connection", CPU.good, compact)),
        ],
    ),
    _bars("tls", "TLS: echo of 64 bytes on 64 connections", "tls-64-c64", [("rate", RATE), ("cpu", CPU)]),
    _bars(
        "memory",
        "Memory: 10,000 idle connections",
        "idle-10000",
        [("memory", Panel("KiB of memory per connection", CPU.good, compact))],
    ),
    ("paced-64-c64", _latency),
    ("scaling-64-c1", _connections),
)
