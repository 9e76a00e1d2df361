"""The work that servers are measured with."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Workload:
    """One column of figures: a mode of the load generator with its numbers.

    `family` is what `--work` names; `server_work` is what the server is told to do ("echo" or "lines"), and
    `server_options` are words that it has on its command line for this work. `size` is in bytes. All ratios
    of the tables are to the server named `yardstick`, where a server does not name another. `limit` is in
    seconds, after which a client of a burst has timed out. With mode "shutdown" no load is generated:
    `connections` servers are shut down. In a `lossy` work a lost datagram is a figure and not an error.
    With mode "paced" `rate` messages a second leave on all connections together. The window is `windows`
    times as long as that of other work.
    """

    family: str
    mode: str
    connections: int
    size: int = 64
    in_flight: int = 1
    repeat: int = 1
    tls: bool = False
    server_work: str = "echo"
    yardstick: str = "uvloop-protocol"
    server_options: tuple[str, ...] = ()
    limit: float = 30.0
    lossy: bool = False
    rate: int = 0
    windows: float = 1.0

    @property
    def key(self) -> str:
        """The name on the command line and in the results, such as "echo-64-c512"."""
        if not self.has_window:
            return f"{self.family}-{self.connections}"
        in_flight = f"-k{self.in_flight}" if self.in_flight > 1 else ""
        return f"{self.family}-{self.size}-c{self.connections}{in_flight}"

    @property
    def operation(self) -> str:
        """What is counted."""
        names = {
            "echo": "message",
            "paced": "message",
            "lines": "line",
            "udp": "datagram",
            "sessions": "session",
            "shutdown": "shutdown",
        }
        return names.get(self.mode, "connection")

    @property
    def has_window(self) -> bool:
        """Whether operations are counted in a window of time, and not up to a number."""
        return self.mode not in ("storm", "burst", "idle", "sessions", "shutdown")

    @property
    def holds(self) -> bool:
        """Whether the load waits when everything is open, so that the server's memory can be read."""
        return self.mode in ("idle", "sessions")

    @property
    def descriptors(self) -> int:
        """How many sockets the load or the server has open at a time."""
        return 0 if self.mode == "sessions" else self.connections

    @property
    def over_udp(self) -> bool:
        """Whether datagrams are sent."""
        return self.mode in ("udp", "sessions")

    def describe(self) -> str:
        """Return the heading of this work's table."""
        size = f"{self.size} B" if self.size % 1024 else f"{self.size // 1024} KiB"
        return {
            "echo": f"{self._echo_name}, {size}, {self.connections} connection{'s' * (self.connections > 1)}",
            "paced": f"{self.rate} messages of {size} a second, on {self.connections} connections",
            "lines": f"Lines of {size}, {self.in_flight} in flight on each of {self.connections} connections",
            "churn": f"Churn: connect, {size} out and back, close; {self.connections} at a time",
            "storm": f"Storm: {self.connections} connects at once",
            "burst": f"{self.connections} connects at once, with no setting on either side",
            "udp": f"UDP, {size} there and back, {self.in_flight} in flight on {self.connections} sockets",
            "shutdown": f"shutdown() of an idle server, {self.connections} times",
            "idle": f"{self.connections} idle connections",
            "sessions": f"{self.connections} sessions with one datagram of {size} each",
        }[self.mode]

    @property
    def _echo_name(self) -> str:
        return {"tls": "TLS echo", "scaling": "Scaling: echo"}.get(self.family, "Echo")

    def options(self) -> list[str]:
        """Return the load generator's arguments."""
        words = [self.mode, "--connections", str(self.connections), "--size", str(self.size)]
        words += ["--in-flight", str(self.in_flight), "--repeat", str(self.repeat)]
        words += ["--limit", str(self.limit)]
        words += ["--lossy"] if self.lossy else []
        words += ["--rate", str(self.rate)] if self.rate else []
        return [*words, "--tls"] if self.tls else words


SCALING = (1, 4, 16, 64, 256, 1024, 4096)  # connections

WORKLOADS: tuple[Workload, ...] = (
    Workload("echo", "echo", 64, 64),
    Workload("echo", "echo", 512, 64),
    Workload("echo", "echo", 64, 1024),
    Workload("echo", "echo", 512, 1024),
    Workload("echo", "echo", 64, 16384),
    Workload("echo", "echo", 64, 102400),
    Workload("lines", "lines", 64, 64, in_flight=16, server_work="lines"),
    Workload("churn", "churn", 16, 64),
    Workload("churn", "churn", 128, 64),
    Workload("tls", "echo", 64, 64, tls=True, yardstick="uvloop-streams"),
    Workload("tls", "echo", 64, 16384, tls=True, yardstick="uvloop-streams"),
    # All servers can do ten thousand a second; three windows, so that p99.9 stands for a dozen of messages.
    Workload("paced", "paced", 64, rate=5000, windows=3.0),
    *(Workload("scaling", "echo", connections) for connections in SCALING),
    Workload("idle", "idle", 10000),
    Workload("storm", "storm", 1000, repeat=5),
)


def select(names: Iterable[str], among: Sequence[Workload] = WORKLOADS) -> list[Workload]:
    """Return the workloads whose family or key is in `names`, all of them when there is none.

    Raises ValueError for a name that fits nothing.
    """
    wanted = list(names)
    known = {name for workload in among for name in (workload.family, workload.key)}
    for name in wanted:
        if name not in known:
            raise ValueError(f"unknown work {name!r}; known: {', '.join(sorted(known))}")
    return [work for work in among if not wanted or work.family in wanted or work.key in wanted]
