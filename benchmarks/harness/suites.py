"""What can be run as a whole: the work, the servers and the targets that belong together."""

from __future__ import annotations

from dataclasses import dataclass

from .compat_suite import COMPAT_SERVERS, COMPAT_TARGETS, COMPAT_WORKLOADS
from .datagram_suite import DATAGRAM_SERVERS, DATAGRAM_TARGETS, DATAGRAM_WORKLOADS
from .servers import SERVERS, Server
from .targets import TARGETS, Target
from .workloads import WORKLOADS, Workload


@dataclass(frozen=True, slots=True)
class Suite:
    """`name` is what `--suite` names; a whole run of it is written to the files called `result`."""

    name: str
    title: str
    result: str
    workloads: tuple[Workload, ...]
    servers: tuple[Server, ...]
    targets: tuple[Target, ...]


_ALL = (
    Suite("peers", "Benchmark results", "full", WORKLOADS, SERVERS, TARGETS),
    Suite(
        "compat",
        "Benchmark results: compat beside the standard library",
        "compat",
        COMPAT_WORKLOADS,
        COMPAT_SERVERS,
        COMPAT_TARGETS,
    ),
    Suite(
        "datagrams",
        "Benchmark results: datagrams",
        "datagrams",
        DATAGRAM_WORKLOADS,
        DATAGRAM_SERVERS,
        DATAGRAM_TARGETS,
    ),
)

SUITES: dict[str, Suite] = {suite.name: suite for suite in _ALL}
