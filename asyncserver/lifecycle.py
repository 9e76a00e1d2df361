"""``Lifecycle``: what every kind of server has in common, from its start to its end.

The kinds differ in their sockets, their options and their *hub*: the object that knows what is under way
in one run of a server. All that happens with it here is in ``ServerHub``.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from enum import Enum
from types import TracebackType
from typing import Any, ClassVar, Generic, Protocol, Self, TypeAlias, TypeVar

from asyncserver.addresses import Address
from asyncserver.checks import similar
from asyncserver.errors import LifespanError, OptionError, ServerStateError
from asyncserver.server_arguments import (
    NEEDS_DECORATOR,
    check_drain_options,
    checked,
    checked_lifespan,
    is_async_context_manager,
    replaced,
)
from asyncserver.statistics import DrainReport
from asyncserver.threads import in_thread

__all__ = ["AnyServer", "Lifecycle", "OpenedSocket", "ServerHub"]

logger: logging.Logger = logging.getLogger("asyncserver")


class ServerHub(Protocol):
    """What is under way in one run of a server. Made by ``Lifecycle._make_hub()``, used in its loop."""

    timeouts: Any
    """Those in force, with a field ``grace``; ``aclose(grace=...)`` puts others here."""

    def update(self, limits: Any, timeouts: Any) -> None:
        """Obey other limits and timeouts from now on."""

    def runs_in(self, task: asyncio.Task[Any] | None) -> bool:
        """Whether this is the task of a handler whose end ``drain()`` would wait for."""
        ...

    async def release_sockets(self) -> None:
        """Give the addresses free as far as what is under way can do without them; idempotent."""

    async def drain(
        self, timeout: float | None, release: Callable[[], Awaitable[None]] | None
    ) -> DrainReport:
        """Take nothing new, then end what is under way: tell, wait ``timeout`` seconds, cancel, abort.

        ``release`` is called when nothing new is taken any more. Zero cancels at once, None waits for
        ever. Returns with nothing left under way, after ``timeouts.grace`` at the latest from when it was
        cancelled. Can be called while another call is under way, and after ``close()``.
        """
        ...

    def cancel_all(self) -> None:
        """Cancel all handlers; ``timeouts.grace`` later, as it is now, they are left behind."""

    def abort_all(self) -> None:
        """End everything at once; nothing to do after a ``drain()`` that has returned."""

    async def close(self) -> None:
        """The last call: end what is left beside the handlers. What it has counted can still be read."""


class OpenedSocket(Protocol):
    """A socket that is open and bound, and what belongs to it."""

    @property
    def address(self) -> Address:
        """What it is bound to, with the real port."""
        ...

    def release(self) -> None:
        """Close it and unlink its path. Blocks; can be called any number of times, from any thread."""

    def abandon(self) -> None:
        """Undo the opening: as ``release``, but a descriptor that was adopted stays open."""


class _Options(Protocol):
    """A dataclass."""

    __dataclass_fields__: ClassVar[dict[str, dataclasses.Field[Any]]]


class _OptionsWithGrace(_Options, Protocol):
    @property
    def grace(self) -> float: ...


HubT = TypeVar("HubT", bound=ServerHub)
SocketT = TypeVar("SocketT", bound=OpenedSocket)
LimitsT = TypeVar("LimitsT", bound=_Options)
TimeoutsT = TypeVar("TimeoutsT", bound=_OptionsWithGrace)
T = TypeVar("T")


class _State(Enum):
    STOPPED = "stopped"
    STARTING = "starting"
    SERVING = "serving"
    DRAINING = "draining"


class Lifecycle(ABC, Generic[HubT, SocketT, LimitsT, TimeoutsT]):
    """A server that can be started and stopped any number of times, in any loop, one at a time.

    A subclass says in ``_limits_type`` and ``_timeouts_type`` which dataclasses it takes, and overrides
    the abstract methods; ``_prepare()`` and ``_to_stopped()`` where it has more to open and to forget.
    """

    _limits_type: type[LimitsT]
    _timeouts_type: type[TimeoutsT]

    lifespan_state: Any = None
    """What the lifespan context manager gave."""

    def __init__(
        self,
        requested: Sequence[Any],
        *,
        limits: LimitsT | None,
        timeouts: TimeoutsT | None,
        lifespan: Callable[[Any], AbstractAsyncContextManager[Any]] | None,
    ) -> None:
        """Nothing is opened; ``requested`` are the addresses, checked. Raises ``OptionError``."""
        self._requested: tuple[Any, ...] = tuple(requested)
        self._limits = checked("limits", limits, self._limits_type)
        self._timeouts = checked("timeouts", timeouts, self._timeouts_type)
        self._lifespan = checked_lifespan(lifespan)
        self._state = _State.STOPPED
        self._hub: HubT | None = None
        self._exits: AsyncExitStack | None = None
        self._addresses: tuple[Address, ...] = ()
        self._ended: asyncio.Event | None = None
        self._ready: asyncio.Event | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        # The loop that this run is in, or the last one.
        self._runs_in: asyncio.AbstractEventLoop | None = None
        # The task that is in the middle of start() or aclose(), and may be in the lifespan there.
        self._owner: asyncio.Task[Any] | None = None
        self._given_up = False

    def __repr__(self) -> str:
        addresses = self._addresses or self._requested
        return f"<{type(self).__name__} {' '.join(map(str, addresses))} {self._state.value}>"

    # --- what a kind of server is made of ---

    async def _prepare(self) -> None:
        """Load what is needed before the lifespan; here nothing. ``_to_stopped()`` forgets it."""

    @abstractmethod
    def _open_sockets(self) -> Iterable[SocketT]:
        """Open all sockets or none; raises ``BindError``. Called in a thread, because it blocks."""

    @abstractmethod
    def _make_hub(self, loop: asyncio.AbstractEventLoop) -> HubT:
        """What is to be under way in this run, with nothing under way yet."""

    @abstractmethod
    def _begin(self, hub: HubT, opened: Sequence[SocketT], exits: AsyncExitStack) -> None:
        """Let the hub take what comes to the sockets, which are released for it at the end.

        What is pushed onto ``exits`` is ended before the hub is closed.
        """

    @property
    @abstractmethod
    def under_way(self) -> str:
        """What a drain would have to wait for, for people: "3 connections"."""

    # --- start and end ---

    async def start(self) -> None:
        """Open everything and begin to accept; returns when the server is ready.

        Raises ``BindError``, ``LifespanError``, with TLS also ``TLSConfigurationError``, and
        ``ServerStateError`` when it is started already, or is closed while it starts. After an error,
        as after cancellation, nothing stays open or bound.
        """
        if self._state is not _State.STOPPED:
            raise ServerStateError(f"the server is {self._state.value} already{self._why_not_again()}")
        self._state = _State.STARTING
        self._runs_in = asyncio.get_running_loop()
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

    def _why_not_again(self) -> str:
        if self._is_left_behind():
            return (
                ", in an event loop that has ended: run it to its end in one loop, "
                "as run_server(server) and asyncio.run(server.serve()) do"
            )
        return "; start it again after `await server.aclose()`, or make another one"

    def _is_left_behind(self) -> bool:
        """Whether it was not closed in its loop, and cannot be any more."""
        return self._runs_in is not None and self._runs_in.is_closed()

    def _check_loop(self, what: str) -> None:
        """Events of one loop wake nobody in another, and nothing here is safe in two threads."""
        if self._state is _State.STOPPED or self._runs_in is asyncio.get_running_loop():
            return
        if not self._is_left_behind():
            raise ServerStateError(
                f"{what} was called in another event loop than the server runs in: call it there, by "
                f"asyncio.run_coroutine_threadsafe(server.{what}, loop)"
            )

    async def _open(self, exits: AsyncExitStack) -> None:
        await self._prepare()
        await self._enter_lifespan(exits)
        self._check_not_given_up()
        opened = await self._open_sockets_in_thread()
        for each in opened:
            exits.push_async_callback(in_thread, each.release)
        self._check_not_given_up()
        self._addresses = tuple(each.address for each in opened)
        self._hub = hub = self._make_hub(asyncio.get_running_loop())
        exits.push_async_callback(hub.close)
        self._begin(hub, opened, exits)

    async def _enter_lifespan(self, exits: AsyncExitStack) -> None:
        if self._lifespan is None:
            return
        try:
            made = self._lifespan(self)
            if is_async_context_manager(made):
                self.lifespan_state = await exits.enter_async_context(made)
                return
        except Exception as exc:
            raise LifespanError(f"the lifespan failed to start: {exc!r}") from exc
        wrong = TypeError(f"{made!r} is no async context manager")
        kind = type(made).__name__
        raise LifespanError(f"the lifespan has returned a {kind}: {NEEDS_DECORATOR}") from wrong

    async def _open_sockets_in_thread(self) -> list[SocketT]:
        """What it has opened is not lost to a cancellation."""
        opened: list[SocketT] = []

        def open_all() -> None:
            opened.extend(self._open_sockets())

        def abandon_all() -> None:
            for each in opened:
                each.abandon()

        try:
            await in_thread(open_all)
        except asyncio.CancelledError:
            await in_thread(abandon_all)
            raise
        return opened

    def _check_not_given_up(self) -> None:
        if self._given_up:
            raise ServerStateError("the server was closed while it was starting")

    async def serve(self) -> None:
        """Start, and serve until the server is closed or this is cancelled; then nothing is left open."""
        async with self:
            await self.wait_closed()

    async def __aenter__(self) -> Self:
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

        1. For ``delay`` seconds it still takes what comes, but is not ready any more (``ready``).
        2. It takes nothing new, and its addresses become free as far as what is under way can do
           without them. What is idle ends, handlers are told, and whatever becomes idle from then on ends.
        3. After ``timeout`` seconds (None: never) the handlers that are left are cancelled.
        4. ``grace`` seconds later, as the timeouts have it, what is still there is left behind.

        Returns how many ended how, with the server closed; nothing happens when it is closed already.
        A second call while it is under way hurries the first one: its own timeout counts. Cancelling
        it closes everything at once.

        Raises ``ServerStateError`` before the server is ready, and when a handler calls it, for whose
        end it would wait: let another task do that, ``asyncio.create_task(server.drain())``.
        """
        check_drain_options(timeout, delay)
        hub, ended = self._require_hub(), self._ended
        if self._state is _State.STARTING or ended is None:
            raise ServerStateError("the server has not been started yet: `await server.start()` comes before")
        if self._state is _State.STOPPED:
            return DrainReport(idle=0, finished=0, cancelled=0, aborted=0, duration=0.0)
        self._check_loop("drain()")
        self._refuse_own_handlers("drain()")
        self._state = _State.DRAINING
        self._ready_event().clear()
        try:
            await _wait_at_most(ended, delay)
            return await hub.drain(timeout, hub.release_sockets)
        finally:
            if not ended.is_set():
                await self.aclose()

    async def aclose(self, *, grace: float | None = None) -> None:
        """Stop now: handlers are cancelled, and after ``grace`` seconds not waited for any more.

        (Those of the timeouts if it is None.) Returns with everything closed, unlinked and the lifespan
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
        self._check_loop("aclose()")
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
            await hub.drain(0.0, None)
        finally:
            try:
                hub.abort_all()
            finally:
                try:
                    await exits.aclose()
                finally:
                    self._to_stopped()

    def _refuse_own_handlers(self, what: str) -> None:
        if self._require_hub().runs_in(asyncio.current_task()):
            raise ServerStateError(
                f"{what} waits for this handler to end: call it in another task, "
                f"asyncio.create_task(server.{what})"
            )

    def _to_stopped(self) -> None:
        self._state = _State.STOPPED
        self._owner = None
        self._addresses = ()
        self.lifespan_state = None
        if self._ended is not None:
            self._ended.set()

    async def wait_ready(self) -> None:
        """Wait until it accepts what comes; also before it is started."""
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
        self._check_loop("wait_closed()")
        if self._state is not _State.STOPPED and self._is_left_behind():
            raise ServerStateError("the server was not closed in its event loop, which has ended")
        if self._ended is not None:
            await self._ended.wait()

    # --- what it is doing ---

    @property
    def ready(self) -> bool:
        """Whether it accepts what comes and means to go on doing so."""
        return self._state is _State.SERVING

    @property
    def addresses(self) -> tuple[Address, ...]:
        """Where it listens, one for each socket, with the real ports; empty when it does not."""
        return self._addresses

    @property
    def limits(self) -> LimitsT:
        """The limits in force."""
        return self._limits

    @property
    def timeouts(self) -> TimeoutsT:
        """The timeouts in force."""
        return self._timeouts

    def update(
        self, limits: LimitsT | None = None, timeouts: TimeoutsT | None = None, /, **changes: Any
    ) -> None:
        """Change limits and timeouts while the server runs (or before).

        Either whole values, or single fields: ``server.update(grace=30)``. Raises ``OptionError`` for
        an unknown field or a bad value, and then nothing has changed.
        """
        kinds = self._limits_type, self._timeouts_type
        new_limits, changes = replaced(checked("limits", limits or self._limits, kinds[0]), changes)
        new_timeouts, changes = replaced(checked("timeouts", timeouts or self._timeouts, kinds[1]), changes)
        for option, value in changes.items():
            names = " or ".join(kind.__name__ for kind in kinds)
            known = [field.name for kind in kinds for field in dataclasses.fields(kind)]
            raise OptionError(option, value, f"is not a field of {names}{similar(option, known)}")
        self._limits, self._timeouts = new_limits, new_timeouts
        if self._hub is not None and self._state in (_State.SERVING, _State.DRAINING):
            self._hub.update(new_limits, new_timeouts)

    def _require_hub(self) -> HubT:
        if self._hub is None:
            raise ServerStateError("the server has not been started: `await server.start()` comes before")
        return self._hub


AnyServer: TypeAlias = Lifecycle[Any, Any, Any, Any]


async def _wait_at_most(event: asyncio.Event, seconds: float) -> None:
    if seconds > 0:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await event.wait()
