"""``Server``: addresses and a handler put together, from start to end; and ``serve()``."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import inspect
import logging
import ssl
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from enum import Enum
from types import TracebackType
from typing import Any, TypeVar

from asyncserver.addresses import Address, parse_address
from asyncserver.checks import check_seconds
from asyncserver.connection import Connection
from asyncserver.connections import Connections
from asyncserver.draining import drain_connections
from asyncserver.errors import LifespanError, OptionError, ServerStateError
from asyncserver.handlers import Handler, Verify, as_handler, as_verify
from asyncserver.hub import Hub
from asyncserver.limits import Limits, Timeouts
from asyncserver.listener import Listener
from asyncserver.options import SocketOptions
from asyncserver.sockets import ListeningSocket, open_listening_sockets
from asyncserver.statistics import DrainReport, ServerStatistics
from asyncserver.stream import Stream
from asyncserver.tls import ReloadableContext, TLSSource

__all__ = ["Lifespan", "Server", "serve"]

logger = logging.getLogger("asyncserver")

T = TypeVar("T")
V = TypeVar("V", Limits, Timeouts)

Lifespan = Callable[["Server"], AbstractAsyncContextManager[Any]]
"""Given the server, returns a context manager that is open as long as the server serves."""


class _State(Enum):
    STOPPED = "stopped"
    STARTING = "starting"
    SERVING = "serving"
    DRAINING = "draining"


class Server:
    """Serves connections on any mix of addresses, in the event loop that it is started in.

    ::

        async with Server(handler, "tcp://127.0.0.1:9999", "unix:app.sock") as server:
            ...

    It can be started and stopped any number of times, and any number of servers can share a loop.
    Raises ``ConfigurationError`` for what cannot work, before anything is opened.
    """

    def __init__(
        self,
        handler: Handler,
        *addresses: Address | str,
        # -- who may come, and how ----------------------------------------------------------------
        tls: TLSSource | None = None,
        verify: Verify | None = None,
        # -- bounds -------------------------------------------------------------------------------
        limits: Limits | None = None,
        timeouts: Timeouts | None = None,
        options: SocketOptions | None = None,
        # -- the program around it ----------------------------------------------------------------
        lifespan: Lifespan | None = None,
        on_error: Callable[[Connection, Exception], object] | None = None,
    ) -> None:
        """Nothing is opened before the start.

        ``tls``: a ``TLSConfig``, an ``ssl.SSLContext`` or a function that makes one; for the ``tls+``
        addresses, and for ``Stream.start_tls()`` on the others.
        ``verify``: a function, async or not, that is given each connection before a byte is read; if
        it returns false, the connection is closed. It has ``Timeouts.handshake`` seconds.
        ``lifespan``: opened before the first connection is accepted, closed after the last one has
        ended; what it gives is ``lifespan_state``. If it raises, the server does not start.
        ``on_error``: called with the connection and the exception when a handler raised, after that
        was logged.
        """
        self._handler = as_handler(handler)
        self._verify = as_verify(verify)
        self._requested = tuple(parse_address(address) for address in addresses)
        if not self._requested:
            raise OptionError("addresses", (), "give at least one, such as 'tcp://127.0.0.1:9999'")
        if tls is None:
            for address in self._requested:
                if address.tls:
                    raise OptionError("tls", None, f"is needed for {address}")
        self._tls_source = tls
        self._limits = _checked("limits", limits, Limits)
        self._timeouts = _checked("timeouts", timeouts, Timeouts)
        self._options = _checked("options", options, SocketOptions)
        hook: object = on_error
        if on_error is not None and (not callable(hook) or inspect.iscoroutinefunction(on_error)):
            raise OptionError("on_error", on_error, "has to be a plain function, not an async one")
        if lifespan is not None and not callable(lifespan):
            raise OptionError("lifespan", lifespan, "has to be a function that returns a context manager")
        self._lifespan = lifespan
        self._on_error = on_error
        self._state = _State.STOPPED
        self._hub: Hub | None = None
        self._tls: ReloadableContext | None = None
        self._exits: AsyncExitStack | None = None
        self._addresses: tuple[Address, ...] = ()
        self._ended: asyncio.Event | None = None
        self._ready: asyncio.Event | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        # The task that is in the middle of start() or aclose(), and may be in the lifespan there.
        self._owner: asyncio.Task[Any] | None = None
        self._given_up = False
        self._no_connections = Connections()
        self.lifespan_state: Any = None
        """What the lifespan context manager gave."""

    def __repr__(self) -> str:
        addresses = self._addresses or self._requested
        return f"<Server {' '.join(map(str, addresses))} {self._state.value}>"

    # --- start and end ---

    async def start(self) -> None:
        """Open everything and begin to accept; returns when the server is ready.

        Raises ``BindError``, ``LifespanError`` or ``TLSConfigurationError``, and
        ``ServerStateError`` when it is started already, or is closed while it starts. After an error,
        as after cancellation, nothing stays open or bound.
        """
        if self._state is not _State.STOPPED:
            raise ServerStateError(f"the server is {self._state.value} already")
        self._state = _State.STARTING
        self._ended = asyncio.Event()
        self._owner = asyncio.current_task()
        self._given_up = False
        self._ready_event()
        exits = AsyncExitStack()
        try:
            await self._open(exits)
        except BaseException:
            try:
                await exits.aclose()
            except Exception:
                logger.exception("the lifespan failed to end after a start that had failed")
            finally:
                self._to_stopped()
            raise
        self._owner = None
        self._exits = exits
        self._state = _State.SERVING
        self._ready_event().set()

    async def _open(self, exits: AsyncExitStack) -> None:
        if self._tls_source is not None:
            self._tls = await asyncio.to_thread(ReloadableContext, self._tls_source)
        await self._enter_lifespan(exits)
        self._check_not_given_up()
        opened = await self._open_sockets()
        for listening in opened:
            exits.push_async_callback(_in_thread, listening.release)
        self._check_not_given_up()
        self._addresses = tuple(listening.address for listening in opened)
        hub = Hub(
            self,
            asyncio.get_running_loop(),
            handler=self._handler,
            limits=self._limits,
            timeouts=self._timeouts,
            tls=self._tls,
            verify=self._verify,
            on_error=self._on_error,
        )
        self._hub = hub
        exits.push_async_callback(hub.close)
        if self._tls is not None and self._tls.reload_interval is not None:
            watcher = asyncio.create_task(_watch_certificates(self._tls), name="asyncserver-certificates")
            exits.push_async_callback(_cancel, watcher)
        hub.start(tuple(hub.make_listener(listening) for listening in opened))

    async def _enter_lifespan(self, exits: AsyncExitStack) -> None:
        if self._lifespan is None:
            return
        try:
            self.lifespan_state = await exits.enter_async_context(self._lifespan(self))
        except Exception as exc:
            raise LifespanError(f"the lifespan failed to start: {exc!r}") from exc

    async def _open_sockets(self) -> list[ListeningSocket]:
        """In a thread, because it blocks; what it has opened is not lost to a cancellation."""
        opened: list[ListeningSocket] = []

        def open_all() -> None:
            opened.extend(open_listening_sockets(self._requested, self._options))

        def abandon_all() -> None:
            for listening in opened:
                listening.abandon()

        try:
            await _in_thread(open_all)
        except asyncio.CancelledError:
            await _in_thread(abandon_all)
            raise
        return opened

    def _check_not_given_up(self) -> None:
        if self._given_up:
            raise ServerStateError("the server was closed while it was starting")

    async def serve(self) -> None:
        """Start, and serve until the server is closed or this is cancelled; then nothing is left open."""
        async with self:
            await self.wait_closed()

    async def __aenter__(self) -> Server:
        await self.start()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    async def drain(self, timeout: float | None = 30.0, *, delay: float = 0.0) -> DrainReport:
        """Stop gently: serve what is under way, take nothing new, and close.

        1. For ``delay`` seconds it still accepts, but is not ready any more (``ready``), for a load
           balancer to notice.
        2. The listening sockets are closed, and Unix paths unlinked. Connections that are idle end, handlers
           are told (``Connection.draining``), and whatever becomes idle from then on ends.
        3. After ``timeout`` seconds (None: never) the handlers that are left are cancelled.
        4. ``Timeouts.grace`` later what is still there is reset.

        Returns how many ended how, with the server closed; nothing happens when it is closed already.
        A second call while it is under way hurries the first one: its own timeout counts. Cancelling
        it closes everything at once.

        Raises ``ServerStateError`` before the server is ready, and when a handler calls it, for whose
        end it would wait: let another task do that, ``asyncio.create_task(server.drain())``.
        """
        _check_drain_options(timeout, delay)
        hub, ended = self._require_hub(), self._ended
        if self._state is _State.STARTING or ended is None:
            raise ServerStateError("the server has not been started yet")
        if self._state is _State.STOPPED:
            return DrainReport(idle=0, finished=0, cancelled=0, aborted=0, duration=0.0)
        self._refuse_own_handlers("drain()")
        self._state = _State.DRAINING
        self._ready_event().clear()
        try:
            await _wait_at_most(ended, delay)
            return await drain_connections(hub, timeout, hub.release_sockets)
        finally:
            if not ended.is_set():
                await self.aclose()

    async def aclose(self, *, grace: float | None = None) -> None:
        """Stop now: handlers are cancelled, ``grace`` seconds later their connections are reset.

        (``Timeouts.grace`` if it is None.) Returns with everything closed, unlinked and the lifespan
        ended; a handler that does not heed its cancellation is left behind. Idempotent: a second
        call waits for the first, and hurries it if its ``grace`` is shorter. A start that is under
        way fails with ``ServerStateError``; within the lifespan this returns before that.

        Raises ``ServerStateError`` when a handler calls it, for whose end it would wait: let another
        task do that, ``asyncio.create_task(server.aclose())``.
        """
        timeouts = self._timeouts if grace is None else dataclasses.replace(self._timeouts, grace=grace)
        ended = self._ended
        if self._state is _State.STOPPED or ended is None:
            return
        self._given_up = True
        if asyncio.current_task() is self._owner:
            return
        if self._state is _State.STARTING:
            await ended.wait()
            return
        self._refuse_own_handlers("aclose()")
        hub = self._require_hub()
        hub.timeouts = timeouts
        exits, self._exits = self._exits, None
        if exits is None:
            hub.cancel_all()
            await ended.wait()
            return
        self._owner = asyncio.current_task()
        self._state = _State.DRAINING
        self._ready_event().clear()
        try:
            await drain_connections(hub, 0.0, None)
        finally:
            for connection in hub.connections:
                connection.abort()
            try:
                await exits.aclose()
            finally:
                self._to_stopped()

    def _refuse_own_handlers(self, what: str) -> None:
        hub = self._require_hub()
        task = asyncio.current_task()
        if any(connection.runs_in(task) for connection in hub.connections):
            raise ServerStateError(
                f"{what} waits for this handler to end: call it in another task, "
                f"asyncio.create_task(server.{what})"
            )

    def _to_stopped(self) -> None:
        self._state = _State.STOPPED
        self._owner = None
        self._addresses = ()
        self._tls = None
        self.lifespan_state = None
        if self._ended is not None:
            self._ended.set()

    async def wait_ready(self) -> None:
        """Wait until it accepts connections; also before it is started."""
        await self._ready_event().wait()

    def _ready_event(self) -> asyncio.Event:
        """Of the running loop: events belong to one, and a server may be started in another next time."""
        loop = asyncio.get_running_loop()
        if self._ready is None or self._loop is not loop:
            self._ready = asyncio.Event()
            self._loop = loop
        return self._ready

    async def wait_closed(self) -> None:
        """Wait until everything is closed; returns at once if it was never started."""
        if self._ended is not None:
            await self._ended.wait()

    # --- what it is doing ---

    @property
    def ready(self) -> bool:
        """Whether it accepts connections and means to go on doing so."""
        return self._state is _State.SERVING

    @property
    def addresses(self) -> tuple[Address, ...]:
        """Where it listens, one for each socket, with the real ports; empty when it does not."""
        return self._addresses

    @property
    def listeners(self) -> tuple[Listener, ...]:
        """Its listeners, which can be paused and resumed one by one."""
        return () if self._hub is None else self._hub.listeners

    @property
    def connections(self) -> Connections:
        """The open connections."""
        return self._no_connections if self._hub is None else self._hub.connections

    @property
    def limits(self) -> Limits:
        """The limits in force."""
        return self._limits

    @property
    def timeouts(self) -> Timeouts:
        """The timeouts in force."""
        return self._timeouts

    def close_inherited(self, keep: Stream | None = None) -> None:
        """In a child process after ``os.fork()``: close its copies of the server's sockets, but ``keep``'s.

        Peers and the parent's server notice nothing; without it, connections that the parent closes stay
        open, and ports in use, for as long as the child lives. The child must not run the event loop.
        """
        if self._hub is not None:
            self._hub.close_copies(keep)

    def statistics(self) -> ServerStatistics:
        """All counters of this run, or the last one; raises ``ServerStateError`` before the first."""
        return self._require_hub().statistics()

    def update(
        self, limits: Limits | None = None, timeouts: Timeouts | None = None, /, **changes: Any
    ) -> None:
        """Change limits and timeouts while the server runs (or before).

        Either whole values, or single fields: ``server.update(max_connections=500, idle=30)``. Raises
        ``OptionError`` for an unknown field or a bad value, and then nothing has changed.
        """
        new_limits, changes = _replaced(_checked("limits", limits or self._limits, Limits), changes)
        new_timeouts, changes = _replaced(_checked("timeouts", timeouts or self._timeouts, Timeouts), changes)
        for option, value in changes.items():
            raise OptionError(option, value, "is not a field of Limits or Timeouts")
        self._limits, self._timeouts = new_limits, new_timeouts
        if self._hub is not None and self._state in (_State.SERVING, _State.DRAINING):
            self._hub.update(new_limits, new_timeouts)

    async def reload_tls(self) -> bool:
        """Load the certificates again, for new handshakes; False if they do not load: the old ones stay."""
        if self._tls is None:
            raise ServerStateError("there is no TLS configuration in force to reload")
        return await asyncio.to_thread(self._tls.reload)

    @property
    def tls_context(self) -> ssl.SSLContext | None:
        """The context for new handshakes, if there is one."""
        return None if self._tls is None else self._tls.context

    def _require_hub(self) -> Hub:
        if self._hub is None:
            raise ServerStateError("the server has not been started")
        return self._hub


async def serve(handler: Handler, *addresses: Address | str, **options: Any) -> None:
    """Serve until cancelled; the arguments are those of ``Server``."""
    await Server(handler, *addresses, **options).serve()


async def _watch_certificates(tls: ReloadableContext) -> None:
    interval = tls.reload_interval
    while interval is not None:
        await asyncio.sleep(interval)
        if await asyncio.to_thread(tls.files_changed):
            await asyncio.to_thread(tls.reload)


def _check_drain_options(timeout: float | None, delay: float) -> None:
    check_seconds("timeout", timeout, zero=True)
    check_seconds("delay", delay, zero=True)
    if delay is None:
        raise OptionError("delay", None, "has to be a number of seconds; zero does not wait")


async def _wait_at_most(event: asyncio.Event, seconds: float) -> None:
    if seconds > 0:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await event.wait()


async def _in_thread(function: Callable[[], None]) -> None:
    """Call it in a thread, to its end: a cancellation is raised after that."""
    calling = asyncio.ensure_future(asyncio.to_thread(function))
    try:
        await asyncio.shield(calling)
    except asyncio.CancelledError:
        while not calling.done():
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.shield(calling)
        calling.exception()  # Looked at; the cancellation is what counts.
        raise


async def _cancel(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def _checked(option: str, value: T | None, kind: type[T]) -> T:
    if value is None:
        return kind()
    if not isinstance(value, kind):
        raise OptionError(option, value, f"has to be a {kind.__name__}")
    return value


def _replaced(values: V, changes: dict[str, Any]) -> tuple[V, dict[str, Any]]:
    """The dataclass with those of the changes that are its fields, and the rest of the changes."""
    names = {field.name for field in dataclasses.fields(values)}
    own = {name: value for name, value in changes.items() if name in names}
    rest = {name: value for name, value in changes.items() if name not in names}
    return dataclasses.replace(values, **own), rest
