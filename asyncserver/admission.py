"""Which connections a server takes on, and when it takes none."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Iterable
from typing import Any

from anyio import ClosedResourceError

from asyncserver.endpoints import UnixEndpoint
from asyncserver.limits import Limits, TokenBucket
from asyncserver.listener import Listener
from asyncserver.peers import PeerCredentials, peer_credentials, peer_key
from asyncserver.stream import Stream

try:
    import resource
except ImportError:  # Windows has no such limit.
    resource = None  # type: ignore[assignment]

__all__ = ["Admission"]

logger: logging.Logger = logging.getLogger("asyncserver")

# Descriptors that are left to the program itself: its log files, databases, the loop's own.
_RESERVED_DESCRIPTORS = 64

_AF_UNIX = getattr(socket, "AF_UNIX", None)


class Admission:
    """Counts connections and holds the listeners back while a limit is reached."""

    def __init__(self, loop: asyncio.AbstractEventLoop, limits: Limits) -> None:
        self._loop = loop
        self._listeners: tuple[Listener, ...] = ()
        self._open = 0
        self._per_peer: dict[str, int] = {}
        self._bucket: TokenBucket | None = None
        self._token_taken = False
        self._refill: asyncio.TimerHandle | None = None
        self.limits: Limits = limits
        self._most: int | None = None

    @property
    def max_connections(self) -> int | None:
        """``Limits.max_connections``, or what the descriptor limit leaves of it."""
        return self._most

    def attach(self, listeners: Iterable[Listener]) -> None:
        """Take charge of the listeners, before they start."""
        self._listeners = tuple(listeners)
        self.update(self.limits)

    def update(self, limits: Limits) -> None:
        """Obey other limits from now on; connections that are open stay."""
        self.limits = limits
        self._most = _within_descriptors(limits.max_connections)
        self._bucket = _bucket_for(limits, self._bucket, self._loop.time())
        self._resume_rate()
        self._hold_back()

    def close(self) -> None:
        """Cancel the timer."""
        if self._refill is not None:
            self._refill.cancel()
            self._refill = None

    # --- one connection ---

    def may_accept(self) -> bool:
        """Asked by listeners before each accept; False after having paused them all."""
        if self._bucket is None or self._token_taken:
            return True
        delay = self._bucket.take(self._loop.time())
        if not delay:
            self._token_taken = True
            return True
        for listener in self._listeners:
            listener.pause("rate")
        if self._refill is None:
            self._refill = self._loop.call_later(delay, self._resume_rate)
        return False

    def key_of(self, sock: socket.socket, sockaddr: Any) -> str | None:
        """Whom a connection is counted for; None while there is no limit per peer."""
        if self.limits.max_connections_per_peer is None:
            return None
        family = sock.family
        credentials = peer_credentials(sock) if family == _AF_UNIX else None
        return peer_key(family, sockaddr, credentials)

    def count_for_peer(self, stream: Stream) -> str | None:
        """Count a connection that was admitted without a key, if there is a limit per peer now.

        Returns its key, for ``discharge``.
        """
        if self.limits.max_connections_per_peer is None:
            return None
        key = _key_of_open(stream)
        self._per_peer[key] = self._per_peer.get(key, 0) + 1
        return key

    def admit(self, key: str | None) -> str | None:
        """Count a connection that was accepted; None, or the name of the limit that it exceeds.

        ``discharge`` has to be called in the end for each that is admitted.
        """
        self._token_taken = False
        limits = self.limits
        per_peer = limits.max_connections_per_peer
        count = 0 if key is None else self._per_peer.get(key, 0)
        if per_peer is not None and count >= per_peer:
            return "max_connections_per_peer"
        if self._most is not None and self._open >= self._most and limits.when_full == "reject":
            return "max_connections"
        if key is not None:
            self._per_peer[key] = count + 1
        self._open += 1
        if self._open == self._most:
            self._hold_back()
        return None

    def discharge(self, key: str | None) -> None:
        """A connection that was admitted has ended."""
        self._open -= 1
        if key is not None:
            count = self._per_peer.get(key, 0)
            if count > 1:
                self._per_peer[key] = count - 1
            else:
                self._per_peer.pop(key, None)
        if self._most is not None and self._open == self._most - 1:
            self._hold_back()

    def _hold_back(self) -> None:
        full = self._most is not None and self._open >= self._most and self.limits.when_full == "wait"
        # The first to be resumed is the first to accept: each time it is another one's turn, or a
        # flood on one address would keep the others waiting for ever.
        self._listeners = (*self._listeners[1:], *self._listeners[:1])
        for listener in self._listeners:
            if full:
                listener.pause("full")
            else:
                listener.resume("full")

    def _resume_rate(self) -> None:
        self.close()
        for listener in self._listeners:
            listener.resume("rate")


def _bucket_for(limits: Limits, bucket: TokenBucket | None, now: float) -> TokenBucket | None:
    if limits.accept_rate is None:
        return None
    if bucket is None:
        return TokenBucket(limits.accept_rate, limits.accept_burst, now)
    bucket.change(limits.accept_rate, limits.accept_burst, now)
    return bucket


def _key_of_open(stream: Stream) -> str:
    peer = stream.peer
    if isinstance(peer, UnixEndpoint):
        return peer_key(socket.AF_UNIX, peer.path, _credentials_of_open(stream))
    return peer_key(socket.AF_INET6 if ":" in peer.host else socket.AF_INET, peer)


def _credentials_of_open(stream: Stream) -> PeerCredentials | None:
    try:
        return stream.peer_credentials
    except ClosedResourceError:  # Aborted or given away, but its handler goes on.
        return None


def _within_descriptors(wanted: int | None) -> int | None:
    if wanted is None or resource is None:
        return wanted
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if limit == resource.RLIM_INFINITY:
        return wanted
    possible = max(1, limit - _RESERVED_DESCRIPTORS)
    if wanted > possible:
        logger.warning(
            "max_connections lowered from %d to %d: this process may open %d descriptors "
            "(RLIMIT_NOFILE; raise it with ulimit -n or LimitNOFILE=)",
            wanted,
            possible,
            limit,
        )
        return possible
    return wanted
