"""``run()``: a whole process that serves until it is told to stop."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Callable
from typing import Any

from asyncserver.addresses import Address
from asyncserver.checks import check_seconds
from asyncserver.handlers import Handler
from asyncserver.loops import LoopName, loop_factory
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
    ``Server.drain()``; ``on_ready`` is called with the server when it accepts.

    Afterwards the signal handlers are as they were, and the signal is raised again, so that the
    process ends as that signal ends it: by SIGTERM, or with ``KeyboardInterrupt``. Raises what
    ``Server`` and ``Server.start()`` raise.
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
    with asyncio.Runner(loop_factory=loop_factory(loop)) as runner:
        caught = runner.run(_serve_until_signal(server, drain_timeout, drain_delay, on_ready))
    if caught is not None:
        signal.raise_signal(caught)


async def _serve_until_signal(
    server: Server,
    drain_timeout: float | None,
    drain_delay: float,
    on_ready: Callable[[Server], object] | None,
) -> int | None:
    """Returns the signal that ended it; None if the server was closed by the program."""
    caught: list[int] = []
    first, second = asyncio.Event(), asyncio.Event()

    def on_signal(number: int) -> None:
        caught.append(number)
        (second if first.is_set() else first).set()

    with captured_signals(asyncio.get_running_loop(), on_signal):
        starting = asyncio.ensure_future(server.start())
        if await _first_of(first.wait(), starting) or first.is_set():
            starting.cancel()
            await asyncio.gather(starting, return_exceptions=True)
        else:
            await starting
            if on_ready is not None:
                on_ready(server)
            await _first_of(first.wait(), server.wait_closed())
        if first.is_set():
            await _stop(server, signal.Signals(caught[0]).name, second, drain_timeout, drain_delay)
        else:
            await server.aclose()
    return caught[0] if caught else None


async def _stop(
    server: Server, name: str, second: asyncio.Event, timeout: float | None, delay: float
) -> None:
    if not server.listeners:
        return
    logger.info("%s: draining %d connections", name, len(server.connections))
    draining = asyncio.ensure_future(server.drain(timeout, delay=delay))
    if await _first_of(second.wait(), draining):
        logger.warning("a second signal: aborting %d connections", len(server.connections))
        await server.aclose(grace=0.0)
    _log_report(await draining)


def _log_report(report: DrainReport) -> None:
    logger.info(
        "drained in %.2f s: %d idle, %d finished, %d cancelled, %d aborted",
        report.duration,
        report.idle,
        report.finished,
        report.cancelled,
        report.aborted,
    )


async def _first_of(event: Any, other: Any) -> bool:
    """Wait for either; True if the first one came and the other did not. Only the first is cancelled."""
    waiting = asyncio.ensure_future(event)
    future = asyncio.ensure_future(other)
    try:
        await asyncio.wait({waiting, future}, return_when=asyncio.FIRST_COMPLETED)
        return waiting.done() and not future.done()
    finally:
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
