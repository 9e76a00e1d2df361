"""One end of a connection: an IP address with its port, or the name of a Unix socket."""

from __future__ import annotations

from typing import NamedTuple, TypeAlias

__all__ = ["Endpoint", "IPEndpoint", "UnixEndpoint"]


class IPEndpoint(NamedTuple):
    """An IPv4 or IPv6 address and port.

    ``host`` is numeric. A peer that came by IPv4 to a dual-stack socket has its IPv4 address here,
    not the ``::ffff:`` form. ``flow_info`` and ``scope_id`` are IPv6's, 0 otherwise.
    """

    host: str
    port: int
    flow_info: int = 0
    scope_id: int = 0

    def __str__(self) -> str:
        if ":" not in self.host:
            return f"{self.host}:{self.port}"
        scope = f"%{self.scope_id}" if self.scope_id else ""
        return f"[{self.host}{scope}]:{self.port}"


class UnixEndpoint(NamedTuple):
    """The name of a Unix socket: a path, ``@name`` in Linux's abstract namespace, or "" for none.

    Clients seldom bind their end, so the peer of a Unix connection is unnamed as a rule; who it is
    is told by its credentials.
    """

    path: str

    def __str__(self) -> str:
        return f"unix:{self.path or '(unnamed)'}"


Endpoint: TypeAlias = IPEndpoint | UnixEndpoint
"""One end of a connection, or where a packet is from or for."""
