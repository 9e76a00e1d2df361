"""compat beside the standard library: the work, the servers and what is asked, as data.

What a target compares stands side by side: neighbours in a round meet the same noise.
"""

from __future__ import annotations

from .servers import Server
from .targets import Target
from .workloads import Workload

CONNECTIONS = frozenset({"churn", "burst"})
CONVERSATIONS = CONNECTIONS | {"echo"}
DATAGRAMS = frozenset({"udp"})
LOOPS = ("uvloop", "asyncio")

# Each connection keeps a thread: a smaller bound would be reached.
_ROOM = ("--max-threads", "1024")

COMPAT_WORKLOADS: tuple[Workload, ...] = (
    Workload("churn", "churn", 16),
    Workload("churn", "churn", 128),
    Workload("echo", "echo", 64, server_options=_ROOM),
    Workload("echo", "echo", 512, server_options=_ROOM),
    Workload("udp", "udp", 64),
    Workload("burst", "burst", 1000, server_options=("--no-settings",)),
    Workload("shutdown", "shutdown", 34),
)


def _has_workers(kind: str) -> bool:
    return kind not in ("serial", "async", "udp", "udp-async")


def _stdlib(kind: str, families: frozenset[str], name: str = "", options: tuple[str, ...] = ()) -> Server:
    return Server(
        name or f"stdlib-{kind}",
        "socketserver_kinds.py",
        ("--library", "stdlib", "--kind", kind, *options),
        families,
        ("anyio", "uvloop") if options else (),
        yardstick=f"stdlib-{kind}",
        workers=_has_workers(kind),
    )


def _compat(kind: str, yardstick: str, families: frozenset[str]) -> tuple[Server, ...]:
    return tuple(
        Server(
            f"compat-{kind}-{loop}",
            "socketserver_kinds.py",
            ("--library", "compat", "--kind", kind, "--loop", loop),
            families,
            ("anyio", "uvloop") if loop == "uvloop" else ("anyio",),
            yardstick=yardstick,
            workers=_has_workers(kind),
        )
        for loop in LOOPS
    )


_SERIAL_UVLOOP, _SERIAL_ASYNCIO = _compat("serial", "stdlib-serial", CONNECTIONS)
_FORK_UVLOOP, _FORK_ASYNCIO = _compat("fork", "stdlib-fork", frozenset({"churn"}))
_UDP_UVLOOP, _UDP_ASYNCIO = _compat("udp", "stdlib-udp", DATAGRAMS)

COMPAT_SERVERS: tuple[Server, ...] = (
    *(_SERIAL_UVLOOP, _stdlib("serial", frozenset({"churn"})), _SERIAL_ASYNCIO),
    *_compat("threads", "stdlib-threads", CONVERSATIONS | {"shutdown"}),
    _stdlib("threads", CONVERSATIONS | {"shutdown"}),
    *_compat("pool", "stdlib-threads", CONVERSATIONS),
    *_compat("legacy", "stdlib-threads", CONVERSATIONS),
    *_compat("legacy-pool", "stdlib-threads", CONVERSATIONS),
    *_compat("async", "stdlib-threads", CONVERSATIONS),
    *(_FORK_UVLOOP, _stdlib("fork", frozenset({"churn"})), _FORK_ASYNCIO),
    _stdlib("fork", frozenset({"churn"}), "stdlib-fork-loaded", ("--load", "compat,uvloop")),
    *(_UDP_UVLOOP, _stdlib("udp", DATAGRAMS), _UDP_ASYNCIO),
    *_compat("udp-threads", "stdlib-udp-threads", DATAGRAMS),
    _stdlib("udp-threads", DATAGRAMS),
    *_compat("udp-pool", "stdlib-udp-threads", DATAGRAMS),
    *_compat("udp-async", "stdlib-udp-threads", DATAGRAMS),
)


def _keys(family: str) -> tuple[str, ...]:
    return tuple(workload.key for workload in COMPAT_WORKLOADS if workload.family == family)


def _rates(family: str, kind: str, value: float, yardstick: str) -> tuple[Target, ...]:
    return tuple(
        Target((key,), f"compat-{kind}-{loop}", "rate", value, yardstick)
        for key in _keys(family)
        for loop in LOOPS
    )


COMPAT_TARGETS: tuple[Target, ...] = (
    *_rates("churn", "serial", 1.0, "stdlib-serial"),
    *_rates("churn", "threads", 1.0, "stdlib-threads"),
    *_rates("churn", "pool", 2.5, "stdlib-threads"),
    *_rates("churn", "fork", 1.0, "stdlib-fork"),
    *_rates("udp", "udp-pool", 5.0, "stdlib-udp-threads"),
    *_rates("echo", "threads", 1.0, "stdlib-threads"),
    *_rates("echo", "pool", 1.0, "stdlib-threads"),
    *(
        Target(_keys("burst"), f"compat-{kind}-{loop}", "slowest", 1.0, at_least=False)
        for kind in ("serial", "threads", "pool", "legacy", "legacy-pool", "async")
        for loop in LOOPS
    ),
    *(Target(_keys("shutdown"), f"compat-threads-{loop}", "median", 5.0, at_least=False) for loop in LOOPS),
)
