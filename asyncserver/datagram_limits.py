"""``DatagramLimits`` and ``DatagramTimeouts``: how much a datagram server takes on, and how long it waits.

Both are values: they are checked when they are made and do nothing by themselves. A running server
takes new ones through ``DatagramServer.update()``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from asyncserver.checks import check_count, check_seconds, names_fields
from asyncserver.errors import OptionError

__all__ = ["DatagramLimits", "DatagramTimeouts"]

# A packet cannot be larger: the length fields of UDP and IPv4 have 16 bits.
_MAX_PACKET = 65_535

# Handlers that wait for something (a database, a lock), each with a task. More would rather hide that
# what they wait for is too slow than help.
_MAX_HANDLERS = 100

# A hundredth of a second at 100,000 a second. Whoever is served later than that has mostly given up or
# asked again, so a longer queue makes a server busy with answers that nobody waits for.
_MAX_QUEUE = 1_000


@names_fields
@dataclass(frozen=True, slots=True, kw_only=True)
class DatagramLimits:
    """How much a datagram server takes on. Can be changed while it runs."""

    # -- packets ---------------------------------------------------------------------------------

    max_packet_size: int = _MAX_PACKET
    """Bytes of a packet that are kept, at most 65,535. Of a larger packet the first part is delivered, with
    ``Datagram.truncated`` set, and counted."""

    # -- handlers --------------------------------------------------------------------------------

    max_handlers: int | None = _MAX_HANDLERS
    """Handlers that may be waiting for something at the same time; further packets are queued. A handler
    that never waits is not counted: it has ended before the next packet is looked at."""

    order: Literal["any", "peer", "strict"] = "any"
    """``"any"``: handlers of all packets run beside each other. ``"peer"``: those of one peer one after the
    other, in the order in which its packets came. ``"strict"``: all one after the other."""

    max_queue: int = _MAX_QUEUE
    """Packets that wait for a handler, over all addresses of the server. Zero queues none."""

    when_full: Literal["drop_newest", "drop_oldest"] = "drop_newest"
    """Which packet is dropped, and counted, when ``max_queue`` (or ``session_queue``) is reached. The newest
    keeps what came first; the oldest suits requests that are repeated, and states of which only the
    last one counts."""

    # -- sessions --------------------------------------------------------------------------------

    max_sessions: int = 10_000
    """Sessions at the same time. One more ends the one that was quiet for the longest time."""

    session_queue: int = 100
    """Packets that wait in one session until its handler takes them."""

    def __post_init__(self) -> None:
        check_count("max_packet_size", self.max_packet_size, 1, "bytes", optional=False)
        if self.max_packet_size > _MAX_PACKET:
            raise OptionError(
                "max_packet_size", self.max_packet_size, f"has to be at most {_MAX_PACKET} bytes"
            )
        check_count("max_handlers", self.max_handlers, 1, "handlers")
        if self.order not in ("any", "peer", "strict"):
            raise OptionError("order", self.order, "has to be 'any', 'peer' or 'strict'")
        check_count("max_queue", self.max_queue, 0, "packets", optional=False)
        if self.when_full not in ("drop_newest", "drop_oldest"):
            raise OptionError("when_full", self.when_full, "has to be 'drop_newest' or 'drop_oldest'")
        check_count("max_sessions", self.max_sessions, 1, "sessions", optional=False)
        check_count("session_queue", self.session_queue, 1, "packets", optional=False)


@names_fields
@dataclass(frozen=True, slots=True, kw_only=True)
class DatagramTimeouts:
    """How long a datagram server waits, in seconds. Can be changed while it runs."""

    handler: float | None = None
    """For the handler of one packet, which is cancelled then. Off by default."""

    session_idle: float | None = 300.0
    """Without a packet in either direction, until a session is told to end. Five minutes is what NAT boxes
    are asked to remember a quiet UDP mapping for (RFC 4787, REQ-5). Noticed up to an eighth late."""

    send: float | None = 5.0
    """For ``reply()`` and ``send()`` to wait for room in the socket's buffer, or in the queue of a Unix
    peer that does not read. ``SendTimeoutError`` is raised then."""

    grace: float = 5.0
    """For a handler or a session to end after it was told or cancelled. Zero goes on at once."""

    def __post_init__(self) -> None:
        for option in ("handler", "session_idle", "send"):
            check_seconds(option, getattr(self, option))
        if self.grace is None:
            raise OptionError("grace", None, "has to be a number of seconds; zero does not wait")
        check_seconds("grace", self.grace, zero=True)
