"""``DatagramEndpoint``: owns one bound socket, receives from it, sends by it, and can pause."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections import deque
from collections.abc import Callable
from typing import Any, Protocol

from asyncserver.addresses import DatagramAddress, UnixDatagramAddress
from asyncserver.ancillary import NetworkError
from asyncserver.datagram_limits import DatagramLimits
from asyncserver.datagram_options import DatagramOptions, MulticastGroup
from asyncserver.datagram_sockets import DatagramSocket
from asyncserver.datagram_statistics import EndpointStatistics
from asyncserver.endpoints import Endpoint, IPEndpoint, UnixEndpoint
from asyncserver.errors import SendTimeoutError, ServerStateError
from asyncserver.multicast import join, leave
from asyncserver.packets import BATCH, Bytes, Packets, PlainPackets
from asyncserver.packets_mmsg import BatchedPackets, can_batch
from asyncserver.peers import endpoint_from_sockaddr
from asyncserver.poller import Poller

__all__ = ["DatagramEndpoint", "EndpointHost"]

logger: logging.Logger = logging.getLogger("asyncserver")

# Batches received in one turn of the loop, and what is as good as an empty socket.
_BATCHES = 4
_FEW = BATCH // 4

# Batches that are received at the end: more than the receive buffer holds of small packets, as a rule, and
# few enough that a flood does not hold up the end for more than some tenths of a second.
_LAST_BATCHES = 256

# Seconds, after the kernel could not receive for want of memory.
_FIRST_DELAY = 0.01
_LONGEST_DELAY = 1.0

# Seconds until it is tried again whether a Unix peer has room in its queue.
_FIRST_TRY = 0.001
_LAST_TRY = 0.05

_MAPPED_PREFIX = "::ffff:"


class EndpointHost(Protocol):
    """What endpoints belong to."""

    server: Any
    loop: asyncio.AbstractEventLoop
    poller: Poller
    limits: DatagramLimits
    timeouts: Any

    @property
    def make(self) -> Callable[[Any, bytes, Any, bool], Any]:
        """Of an endpoint, data, an origin and whether it was truncated: a packet, as it is delivered."""
        ...

    @property
    def deliver(self) -> Callable[[list[Any]], None]:
        """Have packets served."""
        ...

    def network_error(self, endpoint: DatagramEndpoint, error: NetworkError) -> None:
        """An error came back for a packet that was sent before."""


class DatagramEndpoint:
    """Receives packets from one socket while nothing holds it back. Made by the server.

    It may be paused for several reasons at once, each by its name, and receives when none is left. While it
    is paused, packets wait in the kernel's receive buffer until that is full, and are dropped then.
    """

    def __init__(
        self, number: int, bound: DatagramSocket, options: DatagramOptions, host: EndpointHost
    ) -> None:
        self.number = number
        self.bound = bound
        self._host = host
        self._sock = bound.socket
        self._fd = bound.socket.fileno()
        kind = BatchedPackets if can_batch(bound.socket) else PlainPackets
        self.packets: Packets = kind(
            bound.socket,
            host.limits.max_packet_size,
            number=number,
            timestamps=options.timestamps,
            report=self._report,
        )
        self.packets.on_blocked = self._watch_writable
        self.put: Callable[[Bytes, Any], bool] = self.packets.put
        """Sends at once; False if there is no room."""
        self._local = _bound_endpoint(bound)
        self._paused: set[str] = {"closed"}
        self._waiters: deque[asyncio.Future[None]] = deque()
        self._watches_writable = False
        self._is_closed = False
        self._network_errors = 0
        self._drops: int | None = None
        self._delay = 0.0
        self._retry: asyncio.TimerHandle | None = None
        self._warn_of_missing()

    def __repr__(self) -> str:
        return f"<DatagramEndpoint {self.address} {'paused' if self._paused else 'receiving'}>"

    def _warn_of_missing(self) -> None:
        is_wildcard = isinstance(self._local, IPEndpoint) and self._local.host in ("0.0.0.0", "::")
        if is_wildcard and "local" in self.packets.missing:
            logger.warning(
                "%s: this system does not tell where packets were sent to, so replies leave from the "
                "address that it chooses; bind to single addresses instead",
                self.address,
            )

    # --- what it is ---

    @property
    def address(self) -> DatagramAddress:
        """Where it is bound, with the real port."""
        return self.bound.address

    @property
    def server(self) -> Any:
        """The ``DatagramServer``."""
        return self._host.server

    @property
    def paused(self) -> frozenset[str]:
        """The reasons for which nothing is being received."""
        return frozenset(self._paused)

    def local_of(self, origin: Any) -> Endpoint:
        """The address that a packet was sent to."""
        local = self.packets.info_of(origin).local
        if local is None or not isinstance(self._local, IPEndpoint):
            return self._local
        if local.startswith(_MAPPED_PREFIX) and "." in local:
            return IPEndpoint(local[len(_MAPPED_PREFIX) :], self._local.port)
        is_link_local = local.startswith("fe80:")
        scope = self.packets.info_of(origin).interface if is_link_local else 0
        return IPEndpoint(local, self._local.port, 0, scope)

    def statistics(self) -> EndpointStatistics:
        """Its counters now."""
        packets = self.packets
        return EndpointStatistics(
            address=str(self.address),
            received=packets.received,
            bytes_received=packets.bytes_received,
            sent=packets.sent,
            bytes_sent=packets.bytes_sent,
            truncated=packets.truncated,
            dropped_by_kernel=self._drops if self._sock.fileno() < 0 else packets.dropped_by_kernel,
            network_errors=self._network_errors,
            send_errors=packets.send_errors,
            paused=self.paused,
        )

    # --- receiving ---

    def start(self) -> None:
        """Begin to receive."""
        self.resume("closed")

    def pause(self, reason: str = "requested") -> None:
        """Stop receiving, at once, until ``resume`` is called for the same reason. Idempotent."""
        if not self._paused:
            self._host.poller.remove_reader(self._fd)
        self._paused.add(reason)

    def resume(self, reason: str = "requested") -> None:
        """Take one reason to pause away, and receive if it was the last. Idempotent."""
        if reason in self._paused:
            self._paused.discard(reason)
            if not self._paused:
                self._host.poller.add_reader(self._fd, self)

    def on_readable(self) -> None:
        """See ``Pollable``."""
        for _ in range(_BATCHES):
            if self.receive_batch() < _FEW or self._paused:
                return

    def receive_batch(self) -> int:
        """Receive what is there, up to a batch, and have it served; returns how many packets it was."""
        packets = self.packets
        try:
            batch = packets.receive(self._host.make, self)
        except OSError as exc:
            self._back_off(exc)
            return 0
        if not batch:
            return 0
        if self._delay:
            self._delay = 0.0
            logger.info("%s: receiving again", self.address)
        packets.corked = True
        try:
            self._host.deliver(batch)
        finally:
            packets.corked = False
            packets.flush()
        return len(batch)

    def _back_off(self, exc: OSError) -> None:
        """Out of memory, or the socket is broken: try again later, logging once."""
        if not self._delay:
            logger.error("%s: cannot receive (%s); it goes on when that is over", self.address, exc)
        self._delay = min(self._delay * 2 or _FIRST_DELAY, _LONGEST_DELAY)
        self.pause("exhausted")
        self._retry = self._host.loop.call_later(self._delay, self.resume, "exhausted")

    def _report(self, error: NetworkError) -> None:
        self._network_errors += 1
        logger.debug("%s: a packet to %s: %s", self.address, error.peer, os.strerror(error.errno))
        self._host.network_error(self, error)

    # --- sending ---

    async def send(self, data: Bytes, peer: Endpoint) -> None:
        """Send a packet to anybody, from this socket; waits and raises as ``Datagram.reply()`` does.

        The system chooses the source address where the endpoint is bound to all of them. Raises
        ``AddressError`` for a peer that this socket cannot send to, such as an IPv6 address from an IPv4 one.
        """
        origin = self.packets.origin_to(peer)
        if not self.put(data, origin):
            await self.put_when_possible(data, origin)

    async def put_when_possible(self, data: Bytes, origin: Any) -> None:
        """Send when there is room; ``SendTimeoutError`` if there is none in time."""
        seconds = self._host.timeouts.send
        clock = asyncio.timeout(seconds)
        try:
            async with clock:
                if self.packets.tells_when_writable:
                    await self._put_in_turn(data, origin)
                else:
                    await self._try_again(data, origin)
        except TimeoutError:
            if not clock.expired():
                raise
            self.packets.send_errors += 1
            raise SendTimeoutError(seconds) from None

    async def _put_in_turn(self, data: Bytes, origin: Any) -> None:
        self._check_open()
        waiter: asyncio.Future[None] = self._host.loop.create_future()
        self._waiters.append(waiter)
        self.put = _wait_for_others
        self._watch_writable()
        try:
            while True:
                await waiter
                self._check_open()
                if self.packets.put(data, origin):
                    return
                waiter = self._waiters[0] = self._host.loop.create_future()
        finally:
            if waiter in self._waiters:
                self._waiters.remove(waiter)
            if not self._waiters and not self._is_closed:
                self.put = self.packets.put
            self._wake_next()

    async def _try_again(self, data: Bytes, origin: Any) -> None:
        delay = _FIRST_TRY
        while True:
            await asyncio.sleep(delay)
            self._check_open()
            if self.packets.put(data, origin):
                return
            delay = min(2 * delay, _LAST_TRY)

    def _check_open(self) -> None:
        if self._is_closed:
            raise ServerStateError("the endpoint is closed")

    def _watch_writable(self) -> None:
        if not self._watches_writable and self._sock.fileno() >= 0:
            self._watches_writable = True
            self._host.poller.add_writer(self._fd, self)

    def _stop_watching_writable(self) -> None:
        if self._watches_writable:
            self._watches_writable = False
            self._host.poller.remove_writer(self._fd)

    def on_writable(self) -> None:
        """See ``Pollable``."""
        self.packets.take_errors()  # While one waits the socket is "writable", whether there is room or not.
        self.packets.flush()
        if not self.packets.blocked:
            self._stop_watching_writable()
            self._wake_next()

    def _wake_next(self) -> None:
        """Let the one that has waited for the longest time try; it wakes the next one."""
        if self._waiters and not self._waiters[0].done() and not self.packets.blocked:
            self._waiters[0].set_result(None)
        elif self._waiters and self.packets.blocked:
            self._watch_writable()

    # --- groups ---

    def join(self, group: MulticastGroup) -> None:
        """Receive what is sent to a multicast group. Raises ``BindError`` or ``OptionError``."""
        join(self._sock, group)

    def leave(self, group: MulticastGroup) -> None:
        """Receive it no more. Raises as ``join()``, also for a group that was not joined."""
        leave(self._sock, group)

    # --- the end ---

    def sweep(self) -> None:
        """Receive what waits in the kernel now, and have it served. Only from callbacks of the loop."""
        for _ in range(_LAST_BATCHES):
            if self._paused or self.receive_batch() == 0:
                break

    def stop_receiving(self) -> None:
        """Receive no more."""
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None
        self.pause("closed")

    def close(self) -> None:
        """Send what is left, if there is room, and let nobody wait. The socket is released by its owner."""
        self.stop_receiving()
        if self._sock.fileno() >= 0:
            self.packets.flush()
            self.packets.give_up()
            self._drops = self.packets.dropped_by_kernel
        self._is_closed = True
        self._stop_watching_writable()
        self.put = _refuse  # A handler that was left behind must not write to whatever has its number next.
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_exception(ServerStateError("the endpoint is closed"))
                waiter.exception()


def _wait_for_others(data: Bytes, origin: Any) -> bool:
    """Others wait for room already: nobody overtakes them."""
    return False


def _refuse(data: Bytes, origin: Any) -> bool:
    raise ServerStateError("the endpoint is closed")


def _bound_endpoint(bound: DatagramSocket) -> Endpoint:
    address = bound.address
    if isinstance(address, UnixDatagramAddress):
        return UnixEndpoint(address.path)
    sock: socket.socket = bound.socket
    return endpoint_from_sockaddr(sock.family, sock.getsockname())
