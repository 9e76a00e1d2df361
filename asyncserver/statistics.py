"""What a server has counted: frozen values, taken at one moment."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from asyncserver.states import CloseReason, ConnectionState

__all__ = ["DrainReport", "ListenerStatistics", "ServerStatistics"]


@dataclass(frozen=True, slots=True)
class ListenerStatistics:
    """One listening socket."""

    address: str
    """Where it listens, with the real port."""
    accepted: int
    """Connections taken from the kernel."""
    accept_errors: int
    """Calls of accept() that failed with an error of a single connection or of the network."""
    exhausted: int
    """Times that the process or the machine ran out of descriptors or memory, and accepting backed off."""
    paused: frozenset[str]
    """Why nothing is being accepted right now: "full", "rate", "exhausted", "requested", "closed"; empty:
    it is."""


@dataclass(frozen=True, slots=True)
class ServerStatistics:
    """A whole server, since its start."""

    uptime: float
    """Seconds since it was ready, until now or until it was closed."""
    current: int
    """Connections open now, those that are closing included."""
    peak: int
    """The most that were open at the same time."""
    accepted: int
    """Connections taken from the kernel, rejected ones included."""
    rejected: int
    """Connections closed because a limit was reached."""
    handshakes: int
    """TLS handshakes under way."""
    bytes_received: int
    """By all connections, open and closed; under TLS what was inside."""
    bytes_sent: int
    """By all connections, open and closed; under TLS what was inside."""
    stuck_handlers: int
    """Handlers that are still running although they were cancelled and their connection aborted."""
    states: Mapping[ConnectionState, int]
    """Open connections by state."""
    closed: Mapping[CloseReason, int]
    """Ended connections by the reason they ended for."""
    listeners: tuple[ListenerStatistics, ...]
    """The listening sockets."""


@dataclass(frozen=True, slots=True)
class DrainReport:
    """How a drain went. The four counts add up to the connections that there were, or came meanwhile."""

    idle: int
    """Were idle when the drain began, and ended in peace."""
    finished: int
    """Ended by themselves within the time."""
    cancelled: int
    """Their handlers had to be cancelled."""
    aborted: int
    """Were reset, because their handlers did not heed even that."""
    duration: float
    """Seconds from the end of the drain's ``delay`` to the end of the last connection."""

    @property
    def clean(self) -> bool:
        """Whether every connection ended by itself."""
        return not self.cancelled and not self.aborted
