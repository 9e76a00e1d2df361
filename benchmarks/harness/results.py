"""The samples of all rounds brought together: medians, ranges, and ratios paired by round."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from .measuring import Sample
from .targets import Metric, Target

METRICS: dict[Metric, Callable[[Sample], float]] = {
    "rate": lambda sample: sample.rate,
    "cpu": lambda sample: sample.cpu_us,
    "seconds": lambda sample: sample.seconds,
    "memory": lambda sample: sample.memory_per_connection_kib,
    "errors": lambda sample: sample.errors,
    "slowest": lambda sample: sample.latency_us["max"] / 1e6,
    "median": lambda sample: sample.latency_us["p50"] / 1e3,
    "session": lambda sample: sample.memory_per_connection_kib * 1024,
}


@dataclass(frozen=True, slots=True)
class Spread:
    """The median of the rounds, and their smallest and largest value."""

    median: float
    minimum: float
    maximum: float


@dataclass(frozen=True, slots=True)
class Verdict:
    """A target beside what was measured in one workload.

    `troubles` is the number of errors and failed cells that it rests on; `measured` is None where all failed.
    """

    target: Target
    workload: str
    measured: Spread | None
    troubles: int = 0

    @property
    def met(self) -> bool:
        """Whether the median satisfies the target, and nothing went wrong."""
        return self.measured is not None and not self.troubles and self.target.met_by(self.measured.median)


@dataclass(frozen=True, slots=True)
class Failure:
    """A cell without figures, and why."""

    server: str
    workload: str
    round: int
    reason: str


def spread(values: Iterable[float]) -> Spread | None:
    """Return median and range, or None when there is no value."""
    known = list(values)
    return Spread(statistics.median(known), min(known), max(known)) if known else None


class Results:
    """All samples of a run."""

    def __init__(self) -> None:
        self.samples: list[Sample] = []
        self.failures: list[Failure] = []

    def of(self, workload: str, server: str) -> list[Sample]:
        """Return the samples of one cell, one for each round."""
        return [s for s in self.samples if s.workload == workload and s.server == server]

    def workloads(self) -> list[str]:
        """Return the keys of the workloads, in the order they were first measured."""
        return list(dict.fromkeys(sample.workload for sample in self.samples))

    def servers(self, workload: str) -> list[str]:
        """Return the servers measured in `workload`, in the order they were first measured."""
        return list(dict.fromkeys(s.server for s in self.samples if s.workload == workload))

    def yardstick(self, workload: str, server: str) -> str:
        """Return the name of the server that this one is compared with."""
        return next((sample.compared_with for sample in self.of(workload, server)), "")

    def figure(self, workload: str, server: str, metric: Callable[[Sample], float]) -> Spread | None:
        """Return the spread of `metric` over the rounds."""
        return spread(metric(sample) for sample in self.of(workload, server))

    def ratio(self, workload: str, server: str, yardstick: str, metric: Metric) -> Spread | None:
        """Return the spread of the ratios server : yardstick, each of the same round."""
        value = METRICS[metric]
        base = {sample.round: value(sample) for sample in self.of(workload, yardstick)}
        return spread(
            value(sample) / base[sample.round]
            for sample in self.of(workload, server)
            if base.get(sample.round, 0) > 0
        )

    def difference(self, workload: str, server: str, beside: str, metric: Metric) -> Spread | None:
        """Return the spread of the differences server - beside, each of the same round."""
        value = METRICS[metric]
        base = {sample.round: value(sample) for sample in self.of(workload, beside)}
        return spread(
            value(sample) - base[sample.round] for sample in self.of(workload, server) if sample.round in base
        )

    def verdicts(self, targets: Iterable[Target]) -> list[Verdict]:
        """Return each target with what was measured, for the workloads that were."""
        found = []
        for target in targets:
            for workload in target.workloads:
                if self._took_part(target.subject, workload):
                    measured = self._measured(target, workload)
                    troubles = self._troubles(target, workload)
                    if measured is not None or troubles:
                        found.append(Verdict(target, workload, measured, troubles))
        return found

    def _took_part(self, server: str, workload: str) -> bool:
        failed = any(f.workload == workload and f.server == server for f in self.failures)
        return failed or bool(self.of(workload, server))

    def _troubles(self, target: Target, workload: str) -> int:
        servers = target.servers
        errors = sum(s.errors for s in self.samples if s.workload == workload and s.server in servers)
        return errors + sum(f.workload == workload and f.server in servers for f in self.failures)

    def _measured(self, target: Target, workload: str) -> Spread | None:
        if target.beside is not None:
            return self.difference(workload, target.subject, target.beside, target.metric)
        if target.yardstick is None:
            return self.figure(workload, target.subject, METRICS[target.metric])
        return self.ratio(workload, target.subject, target.yardstick, target.metric)
