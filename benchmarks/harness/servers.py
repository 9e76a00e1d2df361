"""The servers that are compared."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from .workloads import Workload

PLAIN = frozenset({"echo", "churn", "paced", "storm", "idle"})
LINES = frozenset({"lines"})
TLS = frozenset({"tls"})
SCALING = frozenset({"scaling"})
ALL = PLAIN | LINES | TLS | SCALING


@dataclass(frozen=True, slots=True)
class Server:
    """A server script, or a binary built from `servers/`.

    `families` are the works it can do, `modules` what its interpreter must have; `binary` is the name of a
    native server under `build/`, instead of a script. `yardstick` is the server that it is compared
    with, where that is not the work's. One with `workers` serves in threads or child processes, for which its
    main thread has to wait as well as for the work of others.
    """

    name: str
    script: str = ""
    options: tuple[str, ...] = ()
    families: frozenset[str] = PLAIN
    modules: tuple[str, ...] = ()
    binary: str = ""
    yardstick: str = ""
    workers: bool = False

    def does(self, workload: Workload) -> bool:
        """Whether this server takes part in `workload`."""
        return workload.family in self.families


# The yardstick first and ours right behind it: neighbours in a round meet the same noise.
SERVERS: tuple[Server, ...] = (
    Server("uvloop-protocol", "asyncio_protocol.py", ("--loop", "uvloop"), ALL, ("uvloop",)),
    Server("ours-uvloop", "ours.py", ("--loop", "uvloop"), ALL, ("uvloop", "anyio")),
    Server("ours-asyncio", "ours.py", ("--loop", "asyncio"), ALL, ("anyio",)),
    Server("uvloop-streams", "asyncio_streams.py", ("--loop", "uvloop"), PLAIN | LINES | TLS, ("uvloop",)),
    Server("asyncio-protocol", "asyncio_protocol.py", ("--loop", "asyncio"), PLAIN | LINES | TLS),
    Server("asyncio-streams", "asyncio_streams.py", ("--loop", "asyncio"), ALL),
    Server("anyio-uvloop", "anyio_server.py", ("--loop", "uvloop"), PLAIN, ("anyio", "uvloop")),
    Server("anyio-asyncio", "anyio_server.py", ("--loop", "asyncio"), PLAIN, ("anyio",)),
    Server("trio", "trio_server.py", (), PLAIN, ("trio",)),
    Server("tornado", "tornado_server.py", (), PLAIN, ("tornado",)),
    Server("twisted", "twisted_server.py", (), PLAIN | LINES | SCALING, ("twisted",)),
    Server("gevent", "gevent_server.py", (), PLAIN | SCALING, ("gevent",)),
    # Not idle: ten thousand threads may be more than a machine allows.
    Server("socketserver-threads", "socketserver_threads.py", (), (PLAIN | LINES | SCALING) - {"idle"}),
    Server("c-libuv", binary="libuv_echo"),
    Server("go", binary="go_echo"),
)


def select(names: Iterable[str], among: Sequence[Server] = SERVERS) -> list[Server]:
    """Return the servers called `names`, all of them when there is none.

    Raises ValueError for an unknown name.
    """
    wanted = list(names)
    known = {server.name for server in among}
    for name in wanted:
        if name not in known:
            raise ValueError(f"unknown server {name!r}; known: {', '.join(sorted(known))}")
    return [server for server in among if not wanted or server.name in wanted]
