"""What is asked of our servers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Metric = Literal["rate", "cpu", "seconds", "memory", "errors", "slowest", "median", "session"]


@dataclass(frozen=True, slots=True)
class Target:
    """A bound on one metric of `subject` in each of `workloads` (their keys).

    With a yardstick the metric is the ratio subject : yardstick of the same round, else an absolute figure:
    rate in operations a second, cpu in microseconds an operation, seconds (storm: till all are served),
    memory in KiB of RSS a connection, errors as their number, slowest in seconds for the slowest operation,
    median in milliseconds for an operation, session in bytes of RSS. What the server `beside` has in the same
    round is taken off that first.
    """

    workloads: tuple[str, ...]
    subject: str
    metric: Metric
    value: float
    yardstick: str | None = None
    at_least: bool = True
    beside: str | None = None

    @property
    def servers(self) -> tuple[str, ...]:
        """The servers whose figures this rests on."""
        return tuple(name for name in (self.subject, self.yardstick, self.beside) if name)

    def met_by(self, measured: float) -> bool:
        """Whether `measured` satisfies the bound."""
        return measured >= self.value if self.at_least else measured <= self.value


SMALL_ECHO = ("echo-64-c64", "echo-64-c512", "echo-1024-c64", "echo-1024-c512")
LARGE_ECHO = ("echo-16384-c64", "echo-102400-c64")
CHURN = ("churn-64-c16", "churn-64-c128")
TLS_ECHO = ("tls-64-c64", "tls-16384-c64")

TARGETS: tuple[Target, ...] = (
    Target(SMALL_ECHO, "ours-uvloop", "rate", 0.90, "uvloop-protocol"),
    Target(SMALL_ECHO, "ours-uvloop", "rate", 1.30, "uvloop-streams"),
    Target(SMALL_ECHO, "ours-asyncio", "rate", 0.80, "uvloop-protocol"),
    Target(LARGE_ECHO, "ours-uvloop", "rate", 0.90, "uvloop-protocol"),
    Target(("lines-64-c64-k16",), "ours-uvloop", "rate", 5.0, "uvloop-streams"),
    Target(("lines-64-c64-k16",), "ours-uvloop", "rate", 2.0, "twisted"),
    Target(CHURN, "ours-uvloop", "rate", 0.95, "uvloop-protocol"),
    Target(TLS_ECHO, "ours-uvloop", "cpu", 0.50, "uvloop-streams", at_least=False),
    Target(("idle-10000",), "ours-uvloop", "memory", 3.0, at_least=False),
    Target(("storm-1000",), "ours-uvloop", "errors", 0, at_least=False),
    Target(("storm-1000",), "ours-uvloop", "seconds", 1.0, "uvloop-protocol", at_least=False),
)
