"""What a datagram server has counted, and the reasons for which sessions end."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

__all__ = ["DatagramStatistics", "EndpointStatistics", "SessionEnd"]


class SessionEnd(StrEnum):
    """Why a session ended; every session ends with exactly one."""

    HANDLER_RETURNED = "handler_returned"
    """The handler returned by itself."""
    HANDLER_ERROR = "handler_error"
    """The handler raised."""
    HANDLER_CANCELLED = "handler_cancelled"
    """The handler's task was cancelled by the program itself."""
    CLOSED = "closed"
    """The program called ``Session.aclose()``."""
    IDLE = "idle"
    """No packet came or went for ``DatagramTimeouts.session_idle``."""
    EVICTED = "evicted"
    """It was the quietest when ``DatagramLimits.max_sessions`` was reached."""
    UNREACHABLE = "unreachable"
    """The peer's host, or a router, said that the peer cannot be reached, and the handler ended over it."""
    DRAINED = "drained"
    """The server was draining and the handler ended in peace."""
    CANCELLED = "cancelled"
    """The handler was cancelled: by the end of the server, or because it went on after it was told to end."""

    __hash__ = str.__hash__


@dataclass(frozen=True, slots=True)
class EndpointStatistics:
    """One socket."""

    address: str
    """Where it is bound, with the real port."""
    received: int
    """Packets taken from the kernel."""
    bytes_received: int
    """The bytes in them, without headers."""
    sent: int
    """Packets given to the kernel."""
    bytes_sent: int
    """The bytes in them, without headers."""
    truncated: int
    """Packets that were larger than ``DatagramLimits.max_packet_size``."""
    dropped_by_kernel: int | None
    """Packets that the kernel dropped because the socket's receive buffer was full; None where it does not
    tell (it does on Linux, for UDP)."""
    network_errors: int
    """Errors that came back for packets sent before (ICMP: port, host or network unreachable, ...)."""
    send_errors: int
    """Packets that the kernel refused to send, and replies that their senders were told about."""
    paused: frozenset[str]
    """Why nothing is being received right now: "requested", "exhausted", "closed"; empty: it is."""


@dataclass(frozen=True, slots=True)
class DatagramStatistics:
    """A whole server, since its start.

    Every packet is counted where it ended:
    ``received == handled + failed + cancelled + dropped + queued + running``; and with the kernel's own
    count, what was sent to the server is ``received + dropped_by_kernel``.
    """

    uptime: float
    """Seconds since it was ready, until now or until it was closed."""
    received: int
    """Packets taken from the kernel, by all endpoints."""
    handled: int
    """Packets whose handler has returned; for sessions, packets that the handler has taken."""
    failed: int
    """Packets whose handler raised."""
    cancelled: int
    """Packets whose handler was cancelled: by a timeout, or by the end of the server."""
    dropped: int
    """Packets dropped by the server: a queue was full, or its session or the server ended first."""
    queued: int
    """Packets that wait now, for a handler or in their sessions."""
    running: int
    """Handlers of packets that are waiting for something now."""
    stuck_handlers: int
    """Handlers and sessions that were left behind because they did not heed their cancellation."""
    dropped_by_kernel: int | None
    """As of ``EndpointStatistics``; None if none of them tells."""
    truncated: int
    """By all endpoints."""
    network_errors: int
    """By all endpoints."""
    sent: int
    """Packets given to the kernel, by all endpoints."""
    send_errors: int
    """By all endpoints."""
    bytes_received: int
    """By all endpoints."""
    bytes_sent: int
    """By all endpoints."""
    sessions: int
    """Sessions now."""
    peak_sessions: int
    """The most that there were at the same time."""
    ended_sessions: Mapping[SessionEnd, int]
    """Ended sessions by the reason they ended for."""
    endpoints: tuple[EndpointStatistics, ...]
    """The sockets."""
