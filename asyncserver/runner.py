"""``run()``: a whole process that serves until it is told to stop."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from asyncserver.addresses import Address
from asyncserver.checks import check_seconds
from asyncserver.errors import OptionError
from asyncserver.handlers import Handler
from asyncserver.loops import LoopName, run_in_new_loop
from asyncserver.server import Server
from asyncserver.signals import captured_signals
from asyncserver.statistics import DrainReport

__all__ = ["run", "run_server"]

logger = logging.getLogger("asyncserver")


def run(
    handler: Handler,
    *addresses: Address | str,
    loop: LoopName = "auto",
    drain_timeout: float | None = 30.0,
    drain_delay: float = 0.0,
    on_ready: Callable[[Server], object] | None = None,
    **options: Any,
) -> None:
    """Serve until SIGTERM or SIGINT: the first drains, a second one aborts.

    ``options`` are those of ``Server``; ``drain_timeout`` and ``drain_delay``, in seconds, those of
    ``Server.drain()``; ``on_ready`` is called with the server when it accepts; without it, where it
    listens is logged. A third signal does not wait for a lifespan that takes its time to end either.
    Returns also when the program closes the server; outside of the main thread, where no signal can be
    taken, that is the only way.

    Afterwards the signal handlers are as they were, and the signal is raised again, so that the
    process ends as that signal ends it: by SIGTERM, or with ``KeyboardInterrupt``. Raises what
    ``Server``, ``Server.start()`` and ``on_ready`` raise. Tasks and threads that are left over are given
    ``Timeouts.grace`` seconds; one that does not heed its cancellation does not keep the process.
    """
    run_server(
        Server(handler, *addresses, **options),
        loop=loop,
        drain_timeout=drain_timeout,
        drain_delay=drain_delay,
        on_ready=on_ready,
    )


def run_server(
    server: Server,
    *,
    loop: LoopName = "auto",
    drain_timeout: float | None = 30.0,
    drain_delay: float = 0.0,
    on_ready: Callable[[Server], object] | None = None,
) -> None:
    """As ``run()``, with a server that was made before."""
    check_seconds("drain_timeout", drain_timeout, zero=True)
    check_seconds("drain_delay", drain_delay, zero=True)
    if drain_delay is None:
        raise OptionError("drain_delay", None, "has to be a number of seconds; zero does not wait")
    signals = _StopSignals()
    run_in_new_loop(
        lambda: _serve_until_signal(server, signals, drain_timeout, drain_delay, on_ready),
        loop,
        patience=lambda: 0.0 if signals.second.is_set() else server.timeouts.grace,
    )
    if signals.numbers:
        signal.raise_signal(signals.numbers[0])


class _StopSignals:
    """The signals that have come, and an event for each of the first three."""

    def __init__(self) -> None:
        self.numbers: list[int] = []
        self.first, self.second, self.third = self._events = tuple(asyncio.Event() for _ in range(3))

    def take(self, number: int) -> None:
        self.numbers.append(number)
        self._events[min(len(self.numbers), len(self._events)) - 1].set()


async def _serve_until_signal(
    server: Server,
    signals: _StopSignals,
    drain_timeout: float | None,
    drain_delay: float,
    on_ready: Callable[[Server], object] | None,
) -> None:
    with captured_signals(asyncio.get_running_loop(), signals.take):
        if not await _started(server, signals):
            return
        try:
            if on_ready is None:
                logger.info("listening on %s", ", ".join(map(str, server.addresses)))
            else:
                on_ready(server)
            await _first_of(signals.first.wait(), server.wait_closed())
        except BaseException:
            await server.aclose()
            raise
        if signals.numbers:
            await _stop(server, signals, drain_timeout, drain_delay)


async def _started(server: Server, signals: _StopSignals) -> bool:
    """Start; False if a signal came before the server was ready, and then nothing is open."""
    starting = asyncio.ensure_future(server.start())
    if await _first_of(signals.first.wait(), starting):
        logger.info("%s: the start is given up", signal.Signals(signals.numbers[0]).name)
        starting.cancel()
        await _first_of(signals.second.wait(), starting)
        return server.ready
    await starting
    return True


async def _stop(server: Server, signals: _StopSignals, timeout: float | None, delay: float) -> None:
    name = signal.Signals(signals.numbers[0]).name
    logger.info("%s: draining %d connections", name, len(server.connections))
    draining = asyncio.ensure_future(server.drain(timeout, delay=delay))
    if not await _first_of(signals.second.wait(), draining):
        _log_report(await draining)
        return
    logger.warning("a second signal: aborting %d connections", len(server.connections))
    closing = asyncio.ensure_future(server.aclose(grace=0.0))
    if await _first_of(signals.third.wait(), closing):
        logger.warning("a third signal: not waiting for what is still ending")
        return
    # It may still be in its delay, for which there is no reason any more.
    draining.cancel()
    await asyncio.gather(draining, return_exceptions=True)
    await closing


def _log_report(report: DrainReport) -> None:
    logger.info(
        "drained in %.2f s: %d idle, %d finished, %d cancelled, %d aborted",
        report.duration,
        report.idle,
        report.finished,
        report.cancelled,
        report.aborted,
    )


async def _first_of(event: Coroutine[Any, Any, object], other: Awaitable[object]) -> bool:
    """Wait for either; True if the first one came and the other did not. Only the first is cancelled."""
    waiting: asyncio.Future[Any] = asyncio.ensure_future(event)
    future: asyncio.Future[Any] = asyncio.gather(other, return_exceptions=True)
    try:
        await asyncio.wait({waiting, future}, return_when=asyncio.FIRST_COMPLETED)
        return waiting.done() and not future.done()
    finally:
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
