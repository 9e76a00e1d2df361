"""``run()``: a whole process that serves until it is told to stop."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from contextlib import AsyncExitStack
from typing import Any, Unpack

from asyncserver.addresses import Address, DatagramAddress
from asyncserver.checks import check_seconds
from asyncserver.datagram_handlers import AnyDatagramHandler
from asyncserver.datagram_server import DatagramServer, DatagramServerOptions, datagram_argument_hint
from asyncserver.errors import OptionError
from asyncserver.handlers import Handler
from asyncserver.lifecycle import AnyServer, Lifecycle
from asyncserver.loops import LoopName, check_no_loop_is_running, run_in_new_loop
from asyncserver.server import Server, ServerOptions, argument_hint
from asyncserver.server_arguments import checked_hook
from asyncserver.signals import captured_signals
from asyncserver.statistics import DrainReport

__all__ = ["run", "run_datagrams", "run_server"]

logger: logging.Logger = logging.getLogger("asyncserver")

# The keyword arguments of run() and run_datagrams() that are not the server's.
_OWN = ("loop", "drain_timeout", "drain_delay", "on_ready")


def run(
    handler: Handler,
    *addresses: Address | str,
    loop: LoopName = "auto",
    drain_timeout: float | None = 30.0,
    drain_delay: float = 0.0,
    on_ready: Callable[[Server], object] | None = None,
    **options: Unpack[ServerOptions],
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
    check_no_loop_is_running("run()", "await serve(handler, *addresses)")
    _check_names("run()", options, ServerOptions, argument_hint)
    run_server(
        Server(handler, *addresses, **options),
        loop=loop,
        drain_timeout=drain_timeout,
        drain_delay=drain_delay,
        on_ready=on_ready,
    )


def run_datagrams(
    handler: AnyDatagramHandler,
    *addresses: DatagramAddress | str,
    loop: LoopName = "auto",
    drain_timeout: float | None = 30.0,
    drain_delay: float = 0.0,
    on_ready: Callable[[DatagramServer], object] | None = None,
    **options: Unpack[DatagramServerOptions],
) -> None:
    """As ``run()``, for packets: ``options`` are those of ``DatagramServer``."""
    check_no_loop_is_running("run_datagrams()", "await serve_datagrams(handler, *addresses)")
    _check_names("run_datagrams()", options, DatagramServerOptions, datagram_argument_hint)
    run_server(
        DatagramServer(handler, *addresses, **options),
        loop=loop,
        drain_timeout=drain_timeout,
        drain_delay=drain_delay,
        on_ready=on_ready,
    )


def run_server(
    *servers: AnyServer,
    loop: LoopName = "auto",
    drain_timeout: float | None = 30.0,
    drain_delay: float = 0.0,
    on_ready: Callable[..., object] | None = None,
) -> None:
    """As ``run()``, with a server that was made before, or with several.

    They are started one after the other; if one fails to start, those before it are closed, and the
    error is raised. ``on_ready`` is called once, with all of them as its arguments. The first signal
    drains all of them at the same time, or those that have started by then; the second aborts them.
    The program can close each of them; returns when all are closed. ``OptionError`` if there is none.
    """
    check_no_loop_is_running("run_server()", "await server.serve()")
    _check_servers(servers)
    checked_hook("on_ready", on_ready)
    check_seconds("drain_timeout", drain_timeout, zero=True)
    check_seconds("drain_delay", drain_delay, zero=True)
    if drain_delay is None:
        raise OptionError("drain_delay", None, "has to be a number of seconds; zero does not wait")
    signals = _StopSignals()
    run_in_new_loop(
        lambda: _serve_until_signal(servers, signals, drain_timeout, drain_delay, on_ready),
        loop,
        patience=lambda: 0.0 if signals.second.is_set() else max(server.timeouts.grace for server in servers),
    )
    if signals.numbers:
        signal.raise_signal(signals.numbers[0])


def _check_names(function: str, given: Iterable[str], known: type, hint: Callable[..., str]) -> None:
    """Raise ``TypeError``, which would name the server otherwise, and not know the function's own."""
    for name in given:
        if name not in known.__annotations__:
            raise TypeError(f"{function} has no argument {name!r}{hint(name, *_OWN)}")


def _check_servers(servers: tuple[object, ...]) -> None:
    if not servers:
        raise OptionError("servers", (), "give at least one, such as Server(handler, *addresses)")
    for server in servers:
        if not isinstance(server, Lifecycle):
            raise OptionError(
                "servers", server, "has to be a server, Server(handler, *addresses); run() takes a handler"
            )
    if len(set(servers)) < len(servers):
        raise OptionError("servers", servers, "has the same one twice")


class _StopSignals:
    """The signals that have come, and an event for each of the first three."""

    def __init__(self) -> None:
        self.numbers: list[int] = []
        self.first, self.second, self.third = self._events = tuple(asyncio.Event() for _ in range(3))

    @property
    def name(self) -> str:
        return signal.Signals(self.numbers[0]).name

    def take(self, number: int) -> None:
        self.numbers.append(number)
        self._events[min(len(self.numbers), len(self._events)) - 1].set()


async def _serve_until_signal(
    servers: Sequence[AnyServer],
    signals: _StopSignals,
    drain_timeout: float | None,
    drain_delay: float,
    on_ready: Callable[..., object] | None,
) -> None:
    with captured_signals(asyncio.get_running_loop(), signals.take):
        started: list[AnyServer] = []
        async with AsyncExitStack() as after_an_error:
            if await _all_started(servers, signals, started, after_an_error):
                if on_ready is None:
                    addresses = [str(address) for server in servers for address in server.addresses]
                    logger.info("listening on %s", ", ".join(addresses))
                else:
                    on_ready(*servers)
                await _first_of(signals.first.wait(), _all_closed(servers))
            after_an_error.pop_all()
        still_open = [server for server in started if server.addresses]
        if signals.numbers and still_open:
            await _stop(still_open, signals, drain_timeout, drain_delay)


async def _all_started(
    servers: Sequence[AnyServer],
    signals: _StopSignals,
    started: list[AnyServer],
    after_an_error: AsyncExitStack,
) -> bool:
    """Start one after the other; False if a signal came before all of them were ready."""
    for server in servers:
        if not await _started(server, signals):
            return False
        started.append(server)
        after_an_error.push_async_callback(server.aclose)
    return True


async def _started(server: AnyServer, signals: _StopSignals) -> bool:
    """Start; False if a signal came before the server was ready, and then nothing is open."""
    starting = asyncio.ensure_future(server.start())
    if await _first_of(signals.first.wait(), starting):
        logger.info("%s: the start is given up", signals.name)
        starting.cancel()
        await _first_of(signals.second.wait(), starting)
        return server.ready
    await starting
    return True


async def _all_closed(servers: Sequence[AnyServer]) -> None:
    for server in servers:
        await server.wait_closed()


async def _stop(
    servers: Sequence[AnyServer], signals: _StopSignals, timeout: float | None, delay: float
) -> None:
    """Drain all of them at the same time; at the second signal abort them."""
    names = _names(servers)
    for server, name in zip(servers, names, strict=True):
        logger.info("%s: %sdraining %s", signals.name, name, server.under_way)
    draining = asyncio.gather(
        *(_drain(server, name, signals, timeout, delay) for server, name in zip(servers, names, strict=True)),
        return_exceptions=True,
    )
    if not await _first_of(signals.second.wait(), draining):
        _raise_errors(await draining)
        return
    for server, name in zip(servers, names, strict=True):
        if server.addresses:
            logger.warning("a second signal: %saborting %s", name, server.under_way)
    closing = asyncio.gather(*(server.aclose(grace=0.0) for server in servers), return_exceptions=True)
    if await _first_of(signals.third.wait(), closing):
        logger.warning("a third signal: not waiting for what is still ending")
        return
    # They may still be in their delay, for which there is no reason any more.
    draining.cancel()
    await asyncio.gather(draining, return_exceptions=True)
    _raise_errors(await closing)


def _names(servers: Sequence[AnyServer]) -> list[str]:
    """What tells them apart in the log: nothing where there is one."""
    if len(servers) == 1:
        return [""]
    return [f"{' '.join(map(str, server.addresses))}: " for server in servers]


async def _drain(
    server: AnyServer, name: str, signals: _StopSignals, timeout: float | None, delay: float
) -> None:
    report = await server.drain(timeout, delay=delay)
    if not signals.second.is_set():
        _log_report(name, report)


def _raise_errors(results: Sequence[object]) -> None:
    errors = [result for result in results if isinstance(result, BaseException)]
    if len(errors) == 1:
        raise errors[0]
    if errors:
        raise BaseExceptionGroup("several servers failed in their end", errors)


def _log_report(name: str, report: DrainReport) -> None:
    logger.info(
        "%sdrained in %.2f s: %d idle, %d finished, %d cancelled, %d aborted",
        name,
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
