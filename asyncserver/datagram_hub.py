"""``DatagramHub``: what the endpoints of one datagram server have in common, and how all of it ends."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable
from types import MappingProxyType
from typing import Any

from asyncserver.ancillary import NetworkError
from asyncserver.datagram import Datagram
from asyncserver.datagram_dispatch import Dispatcher, PacketHandler
from asyncserver.datagram_endpoint import DatagramEndpoint
from asyncserver.datagram_limits import DatagramLimits, DatagramTimeouts
from asyncserver.datagram_options import DatagramOptions
from asyncserver.datagram_sessions import SessionFunction, Sessions
from asyncserver.datagram_sockets import DatagramSocket
from asyncserver.datagram_statistics import DatagramStatistics, EndpointStatistics
from asyncserver.errors import DatagramError, PacketTooLargeError
from asyncserver.hints import add_hint
from asyncserver.poller import Poller, open_poller
from asyncserver.session import Session
from asyncserver.statistics import DrainReport
from asyncserver.threads import in_thread

__all__ = ["DatagramHub", "OnError"]

logger: logging.Logger = logging.getLogger("asyncserver")

OnError = Callable[[Datagram | Session, Exception], object]


class DatagramHub:
    """Belongs to one run of a server."""

    def __init__(
        self,
        server: Any,
        loop: asyncio.AbstractEventLoop,
        *,
        handler: PacketHandler | None,
        session_handler: SessionFunction | None,
        limits: DatagramLimits,
        timeouts: DatagramTimeouts,
        on_error: OnError | None,
    ) -> None:
        """One of the two handlers is None."""
        self.server = server
        self.loop = loop
        self.limits: DatagramLimits = limits
        self.timeouts: DatagramTimeouts = timeouts
        self.poller: Poller = open_poller(loop)
        self.endpoints: tuple[DatagramEndpoint, ...] = ()
        self._on_error = on_error
        self._service: Dispatcher | Sessions
        if handler is not None:
            self._service = Dispatcher(loop, handler, limits, timeouts, self)
        elif session_handler is not None:
            self._service = Sessions(loop, session_handler, limits, timeouts, self)
        self.make: Callable[[Any, bytes, Any, bool], Datagram] = Datagram
        self.deliver: Callable[[list[Any]], None] = self._service.deliver
        self._started = loop.time()
        self._stopped: float | None = None
        self._giving_up: asyncio.TimerHandle | None = None
        # Handlers that were left behind.
        self._given_up = 0

    # --- what the server does with it ---

    def start(self, sockets: Iterable[DatagramSocket], options: DatagramOptions) -> None:
        """Begin to receive on all of them."""
        self.endpoints = tuple(
            DatagramEndpoint(number, bound, options, self) for number, bound in enumerate(sockets)
        )
        self._started = self.loop.time()
        for endpoint in self.endpoints:
            endpoint.start()

    def update(self, limits: DatagramLimits, timeouts: DatagramTimeouts) -> None:
        """Obey other limits and timeouts from now on."""
        self.limits = limits
        self.timeouts = timeouts
        self._service.update(limits, timeouts)
        for endpoint in self.endpoints:
            endpoint.packets.max_packet_size = limits.max_packet_size

    async def drain(
        self, timeout: float | None, release: Callable[[], Awaitable[None]] | None
    ) -> DrainReport:
        """Receive no more, then end all handlers: tell, wait ``timeout`` seconds, cancel, give up.

        ``release`` is called when nothing is received any more. Returns with no handler left.
        """
        started = self.loop.time()
        service = self._service
        gently = timeout is None or timeout > 0
        await self._stop_receiving(sweep=gently)
        if release is not None:
            await release()
        in_peace, by_force, given_up = service.ended_in_peace, service.ended_by_force, self._given_up
        idle = 0
        if gently:
            idle = service.tell_to_end()
            await self._wait_empty(timeout)
        self.cancel_all()
        await service.wait_empty()
        aborted = self._given_up - given_up
        finished = service.ended_in_peace - in_peace
        idle = min(idle, finished)
        return DrainReport(
            idle=idle,
            finished=finished - idle,
            cancelled=service.ended_by_force - by_force - aborted,
            aborted=aborted,
            duration=self.loop.time() - started,
        )

    async def _stop_receiving(self, *, sweep: bool) -> None:
        if sweep:
            # Handlers are started from callbacks of the loop only, and not in the middle of this task.
            swept = self.loop.create_future()
            self.loop.call_soon(self._sweep, swept)
            await swept
        for endpoint in self.endpoints:
            endpoint.stop_receiving()

    def _sweep(self, swept: asyncio.Future[None]) -> None:
        try:
            for endpoint in self.endpoints:
                endpoint.sweep()
        finally:
            if not swept.done():
                swept.set_result(None)

    async def _wait_empty(self, timeout: float | None) -> None:
        try:
            async with asyncio.timeout(timeout):
                await self._service.wait_empty()
        except TimeoutError:
            return

    def cancel_all(self) -> None:
        """Cancel all handlers; those that are left ``DatagramTimeouts.grace`` later are given up."""
        if not self._service.cancel_all():
            return
        at = self.loop.time() + self.timeouts.grace
        if self._giving_up is not None:
            at = min(at, self._giving_up.when())  # A second call hurries the first, and never delays it.
            self._giving_up.cancel()
        self._giving_up = self.loop.call_at(at, self._give_up)

    def abort_all(self) -> None:
        """Give up what is left."""
        self._service.cancel_all()
        self._give_up()

    def _give_up(self) -> None:
        self._given_up += self._service.abandon()

    async def release_sockets(self) -> None:
        """Unlink Unix paths. The sockets are needed for the last replies, and closed by their owner."""
        for endpoint in self.endpoints:
            if endpoint.bound.file is not None:
                await in_thread(endpoint.bound.file.unlink)

    async def close(self) -> None:
        """End what is left beside the handlers."""
        self._stopped = self.loop.time()
        if self._giving_up is not None:
            self._giving_up.cancel()
        self._service.close()
        for endpoint in self.endpoints:
            endpoint.close()
        self.poller.close()

    def runs_in(self, task: asyncio.Task[Any] | None) -> bool:
        """Whether this is the task of one of the handlers."""
        return self._service.runs_in(task)

    @property
    def under_way(self) -> str:
        """What there is to wait for, in words."""
        return self._service.under_way

    # --- what endpoints and services call ---

    def network_error(self, endpoint: DatagramEndpoint, error: NetworkError) -> None:
        """See ``EndpointHost``."""
        self._service.network_error(endpoint, error)

    def handler_failed(self, subject: Datagram | Session, exc: Exception) -> None:
        """Log what a handler raised, once, and tell the program's error hook."""
        if isinstance(exc, DatagramError) and not isinstance(exc, PacketTooLargeError):
            logger.debug("%s: %s", subject, exc)  # The peer's doing.
            return
        add_hint(exc)
        logger.error("%s: the handler failed", subject, exc_info=exc)
        if self._on_error is not None:
            try:
                self._on_error(subject, exc)
            except Exception:
                logger.exception("the on_error hook failed")

    def statistics(self) -> DatagramStatistics:
        """All counters now."""
        endpoints = tuple(endpoint.statistics() for endpoint in self.endpoints)
        service = self._service
        sessions = service if isinstance(service, Sessions) else None
        return DatagramStatistics(
            uptime=(self._stopped or self.loop.time()) - self._started,
            received=sum(each.received for each in endpoints),
            handled=service.handled,
            failed=service.failed,
            cancelled=service.cancelled,
            dropped=service.dropped,
            queued=service.queued,
            running=service.running,
            stuck_handlers=service.stuck,
            dropped_by_kernel=_total_drops(endpoints),
            truncated=sum(each.truncated for each in endpoints),
            network_errors=sum(each.network_errors for each in endpoints),
            sent=sum(each.sent for each in endpoints),
            send_errors=sum(each.send_errors for each in endpoints),
            bytes_received=sum(each.bytes_received for each in endpoints),
            bytes_sent=sum(each.bytes_sent for each in endpoints),
            sessions=0 if sessions is None else sessions.current,
            peak_sessions=0 if sessions is None else sessions.peak,
            ended_sessions=MappingProxyType({} if sessions is None else dict(sessions.ended)),
            endpoints=endpoints,
        )


def _total_drops(endpoints: tuple[EndpointStatistics, ...]) -> int | None:
    known = [each.dropped_by_kernel for each in endpoints if each.dropped_by_kernel is not None]
    return sum(known) if known else None
