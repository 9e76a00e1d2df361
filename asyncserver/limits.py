"""``Limits`` and ``Timeouts``: how much a server takes on, and how long it waits. ``None`` is no limit.

Both are values: they are checked when they are made and do nothing by themselves. A running server
takes new ones through ``Server.update()``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from asyncserver.checks import check_count, check_seconds, is_number, names_fields
from asyncserver.errors import OptionError

__all__ = ["Limits", "Timeouts", "TokenBucket"]

# Ten thousand connections need 30 MiB and one descriptor each: every machine has the former, and a
# server lowers this by itself to what its descriptor limit leaves. What it is for is that a flood
# ends at a number somebody has chosen, and not where the machine does.
_MAX_CONNECTIONS = 10_000

# A handshake costs about a millisecond of CPU, in which nothing else runs. With 64 under way a
# connection waits for its turn for less than a tenth of a second, and a flood of handshakes cannot
# hold more memory than 64 of them.
_MAX_HANDSHAKES = 64

# A message of 100 KB comes and goes in one piece; ten thousand peers that read nothing hold a gigabyte.
_BUFFER = 131_072


@names_fields
@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How much a server takes on. Can be changed while it runs."""

    # -- connections -----------------------------------------------------------------------------

    max_connections: int | None = _MAX_CONNECTIONS
    """Connections open at the same time, over all addresses of the server.

    The descriptor limit of the process (``RLIMIT_NOFILE``) is a second bound: the server lowers
    this to it, less a reserve for the program's own files, and logs that it did.
    """

    when_full: Literal["wait", "reject"] = "wait"
    """What happens at ``max_connections``. ``"wait"``: nothing is accepted until one has ended, so
    that clients wait in the kernel's queue (``SocketOptions.backlog``) and none is lost.
    ``"reject"``: the connection is accepted and closed, so that clients know at once."""

    reject_message: bytes | None = None
    """Sent to a rejected connection before it is closed; at most 4,096 bytes. Not sent under TLS, where
    it would need the handshake first."""

    max_connections_per_peer: int | None = None
    """Connections that one peer may have open: an IPv4 address, an IPv6 /64 network (what one customer
    is given), or a user id on Unix sockets. One more is rejected. Off by default, because behind a
    proxy or a NAT all clients share an address."""

    # -- rates -----------------------------------------------------------------------------------

    accept_rate: float | None = None
    """Connections accepted per second, on average; more wait in the kernel's queue."""

    accept_burst: int | None = None
    """Connections accepted at once after a quiet time, before ``accept_rate`` holds them back; a
    second's worth by default."""

    max_handshakes: int | None = _MAX_HANDSHAKES
    """TLS handshakes under way at the same time; more connections wait for their turn, and that wait
    counts towards ``Timeouts.handshake``."""

    # -- buffers, in bytes per connection -------------------------------------------------------

    receive_buffer: int = _BUFFER
    """The most that is read from the kernel at a time for ``lines()``, ``receive_until()`` and
    iteration, and so what a connection may hold unread beyond its current message. At most 1,048,576."""

    send_buffer: int = _BUFFER
    """``send()`` waits while more than this is still to be taken by the peer. A single larger
    ``send()`` is possible; it waits until what is left is below this."""

    def __post_init__(self) -> None:
        check_count("max_connections", self.max_connections, 1, "connections")
        if self.when_full not in ("wait", "reject"):
            raise OptionError("when_full", self.when_full, "has to be 'wait' or 'reject'")
        _check_message(self.reject_message)
        check_count("max_connections_per_peer", self.max_connections_per_peer, 1, "connections")
        _check_rate(self.accept_rate)
        check_count("accept_burst", self.accept_burst, 1, "connections")
        if self.accept_burst is not None and self.accept_rate is None:
            raise OptionError("accept_burst", self.accept_burst, "has no meaning without accept_rate")
        check_count("max_handshakes", self.max_handshakes, 1, "handshakes")
        check_count("receive_buffer", self.receive_buffer, 1, "bytes", optional=False)
        if self.receive_buffer > 1_048_576:
            raise OptionError("receive_buffer", self.receive_buffer, "has to be at most 1048576 bytes")
        check_count("send_buffer", self.send_buffer, 1, "bytes", optional=False)


@names_fields
@dataclass(frozen=True, slots=True, kw_only=True)
class Timeouts:
    """How long a server waits, in seconds. Can be changed while it runs, for new and old connections; only
    a handshake, a grace or a linger that has begun goes on with the length that it had.

    One coarse timer watches all connections: a deadline is noticed up to a third of its length
    (at least 50 ms) late, and never early.
    """

    handshake: float | None = 10.0
    """From the start of a connection to the end of its TLS handshake. Two round trips and three
    retransmissions fit in; a scanner that opens and stays silent does not stay."""

    first_byte: float | None = None
    """From the start of the handler to the peer's first byte, while a ``receive`` waits for it.
    ``ConnectionTimeoutError`` is raised from that ``receive``. Off by default, because in many
    protocols the client listens first; ``idle`` holds anyway."""

    idle: float | None = 600.0
    """Without a byte in either direction while a ``receive`` waits. ``ConnectionTimeoutError`` is
    raised from it, so that a handler can say goodbye. Time that the handler takes for itself does not
    count. Ten minutes is what nginx gives a TCP session: longer than NAT boxes remember a quiet one."""

    send: float | None = 60.0
    """Without the peer taking a byte while some are waiting to be sent. The connection is then aborted, and
    ``send`` raises ``BrokenResourceError``. A peer that never reads must not hold memory for ever."""

    handler: float | None = None
    """For the whole handler, which is cancelled then. Off by default: a session may last days."""

    lifetime: float | None = None
    """For the whole connection, which is then told to end as in a drain (``grace`` seconds later its
    handler is cancelled). Spreads long-lived clients over new servers."""

    lifetime_jitter: float = 0.1
    """Each connection's ``lifetime`` is longer or shorter by a random part of up to this fraction, so
    that clients which came together do not come back together. 0 to 1."""

    linger: float = 5.0
    """After the handler: for the last bytes to leave and the peer to close, so that the reply is not
    lost to a reset. Zero closes at once."""

    grace: float = 5.0
    """For a handler to end after its deadline was raised in it, and again after it was cancelled; then
    its connection is aborted. Zero goes to the next step at once."""

    def __post_init__(self) -> None:
        for option in ("handshake", "first_byte", "idle", "send", "handler", "lifetime"):
            check_seconds(option, getattr(self, option))
        for option in ("linger", "grace"):
            if getattr(self, option) is None:
                raise OptionError(option, None, "has to be a number of seconds; zero does not wait")
            check_seconds(option, getattr(self, option), zero=True)
        jitter = self.lifetime_jitter
        if not is_number(jitter) or not 0 <= jitter <= 1:
            raise OptionError("lifetime_jitter", jitter, "has to be a fraction from 0 to 1")

    @property
    def shortest(self) -> float | None:
        """The shortest deadline of a connection whose handler runs; None if there is none."""
        deadlines = (self.first_byte, self.idle, self.send, self.handler, self.lifetime)
        return min((seconds for seconds in deadlines if seconds is not None), default=None)


def _check_message(message: bytes | None) -> None:
    if message is None:
        return
    if not isinstance(message, bytes):
        raise OptionError("reject_message", message, "has to be bytes, or None")
    if len(message) > 4_096:
        raise OptionError("reject_message", message[:20] + b"...", "has to be at most 4096 bytes")


def _check_rate(rate: float | None) -> None:
    if rate is None:
        return
    if not is_number(rate) or not math.isfinite(rate) or rate <= 0:
        raise OptionError("accept_rate", rate, "has to be connections per second, more than zero, or None")


class TokenBucket:
    """Grants ``rate`` tokens per second on average, and up to ``burst`` at once. Knows no clock."""

    __slots__ = ("_burst", "_filled_at", "_rate", "_tokens")

    def __init__(self, rate: float, burst: int | None, now: float) -> None:
        self._rate = rate
        self._burst = _burst_of(rate, burst)
        self._tokens = self._burst
        self._filled_at = now

    def change(self, rate: float, burst: int | None, now: float) -> None:
        """Go on with another rate and the tokens that are there: a change is no quiet time."""
        self._fill(now)
        self._rate = rate
        self._burst = _burst_of(rate, burst)
        self._tokens = min(self._burst, self._tokens)

    def take(self, now: float) -> float:
        """Take a token at time ``now``: returns 0.0, or the seconds until there is one to take."""
        self._fill(now)
        if self._tokens >= 1.0:
            self._tokens -= 1.0
            return 0.0
        return (1.0 - self._tokens) / self._rate

    def _fill(self, now: float) -> None:
        self._tokens = min(self._burst, self._tokens + (now - self._filled_at) * self._rate)
        self._filled_at = now


def _burst_of(rate: float, burst: int | None) -> float:
    return float(burst if burst is not None else max(1, math.ceil(rate)))
