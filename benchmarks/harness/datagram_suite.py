"""Our datagram server beside its peers: the work, the servers and what is asked, as data.

What a target compares stands side by side: neighbours in a round meet the same noise.
"""

from __future__ import annotations

from .servers import Server
from .targets import Target
from .workloads import Workload

DATAGRAMS = frozenset({"udp"})
SESSIONS = frozenset({"sessions"})
LOOPS = ("uvloop", "asyncio")
YARDSTICK = "uvloop-tasks"

DATAGRAM_WORKLOADS: tuple[Workload, ...] = (
    Workload("udp", "udp", 64, yardstick=YARDSTICK),
    # More at a time than a receive buffer may hold where the system allows only a small one.
    Workload("udp", "udp", 64, in_flight=8, yardstick=YARDSTICK, lossy=True),
    Workload("udp", "udp", 64, 1400, yardstick=YARDSTICK),
    Workload("sessions", "sessions", 50_000, server_work="sessions", yardstick="session-dict-asyncio"),
)


def _modules(loop: str, *names: str) -> tuple[str, ...]:
    return (*names, "uvloop") if loop == "uvloop" else names


def _ours(loop: str) -> Server:
    return Server(f"ours-{loop}", "ours_datagrams.py", ("--loop", loop), DATAGRAMS, _modules(loop, "anyio"))


def _our_sessions(loop: str) -> Server:
    options = ("--loop", loop, "--sessions")
    families = DATAGRAMS | SESSIONS
    return Server(f"ours-sessions-{loop}", "ours_datagrams.py", options, families, _modules(loop, "anyio"))


def _protocol(loop: str, kind: str, name: str = "", *options: str) -> Server:
    words = ("--loop", loop, "--kind", kind, *options)
    return Server(name or f"{loop}-{kind}", "asyncio_datagrams.py", words, DATAGRAMS, _modules(loop))


def _anyio(loop: str, name: str = "", *options: str) -> Server:
    words = ("--loop", loop, *options)
    return Server(name or f"anyio-{loop}", "anyio_datagrams.py", words, DATAGRAMS, _modules(loop, "anyio"))


def _baseline(kind: str, loop: str) -> Server:
    words = ("--loop", loop, "--kind", kind)
    return Server(f"session-{kind}-{loop}", "session_baselines.py", words, SESSIONS, _modules(loop))


DATAGRAM_SERVERS: tuple[Server, ...] = (
    *(_ours("uvloop"), _protocol("uvloop", "tasks"), _ours("asyncio")),
    *(_protocol("uvloop", "stepped"), _protocol("uvloop", "raw")),
    *map(_our_sessions, LOOPS),
    *(_baseline("frames", loop) for loop in LOOPS),
    *(_baseline("dict", loop) for loop in LOOPS),
    *(_baseline("tasks", loop) for loop in LOOPS),
    *(_protocol("asyncio", kind) for kind in ("tasks", "stepped", "raw")),
    _protocol("asyncio", "tasks", "asyncio-tasks-freed", "--free-once"),
    *map(_anyio, LOOPS),
    _anyio("asyncio", "anyio-asyncio-freed", "--free-once"),
    Server("socketserver", "socketserver_datagrams.py", (), DATAGRAMS),
    Server("twisted", "twisted_datagrams.py", (), DATAGRAMS, ("twisted",)),
    Server("gevent", "gevent_datagrams.py", (), DATAGRAMS, ("gevent",)),
    Server("c-libuv", families=DATAGRAMS, binary="libuv_datagrams"),
    Server("c-batched", families=DATAGRAMS, binary="batched_datagrams"),
)


def _keys(family: str) -> tuple[str, ...]:
    return tuple(workload.key for workload in DATAGRAM_WORKLOADS if workload.family == family)


def _rate(loop: str, value: float, yardstick: str) -> Target:
    return Target(_keys("udp"), f"ours-{loop}", "rate", value, yardstick)


def _memory(loop: str) -> Target:
    return Target(
        _keys("sessions"),
        f"ours-sessions-{loop}",
        "session",
        1024,
        at_least=False,
        beside=f"session-frames-{loop}",
    )


DATAGRAM_TARGETS: tuple[Target, ...] = (
    *(_rate(loop, 1.3, YARDSTICK) for loop in LOOPS),
    _rate("asyncio", 10.0, "anyio-asyncio"),
    *(_rate(loop, 1.7, "socketserver") for loop in LOOPS),
    *map(_memory, LOOPS),
)
