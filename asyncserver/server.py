"""``Server``: addresses and a handler put together, from start to end; and ``serve()``."""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from functools import partial
from typing import Any, TypedDict, Unpack

from asyncserver.addresses import Address, stream_address
from asyncserver.checks import counted, names_arguments
from asyncserver.connection import Connection
from asyncserver.connections import Connections
from asyncserver.errors import OptionError, ServerStateError
from asyncserver.handlers import Handler, Verify, as_handler, as_verify
from asyncserver.hub import Hub
from asyncserver.lifecycle import Lifecycle
from asyncserver.limits import Limits, Timeouts
from asyncserver.listener import Listener
from asyncserver.options import SocketOptions
from asyncserver.server_arguments import checked, checked_hook, elsewhere
from asyncserver.sockets import ListeningSocket, open_listening_sockets
from asyncserver.statistics import DrainReport, ServerStatistics
from asyncserver.stream import Stream
from asyncserver.threads import in_thread
from asyncserver.tls import ReloadableContext, TLSConfig, TLSSource, check_tls_source

__all__ = ["Lifespan", "Server", "ServerOptions", "argument_hint", "serve"]

Lifespan = Callable[["Server"], AbstractAsyncContextManager[Any]]
"""Given the server, returns a context manager that is open as long as the server serves."""

logger: logging.Logger = logging.getLogger("asyncserver")


_AS_FILES = "tls=TLSConfig(certificate='cert.pem', private_key='key.pem')"

# What is given to the server by another name, or within another argument.
_GROUPS = {"limits": Limits, "timeouts": Timeouts, "options": SocketOptions, "tls": TLSConfig}


def argument_hint(name: str, *others: str) -> str:
    """What to write instead of an argument that there is not; ``others`` there are, beside the server's."""
    return elsewhere(name, _GROUPS, [*ServerOptions.__annotations__, *others])


class Server(Lifecycle[Hub, ListeningSocket, Limits, Timeouts]):
    """Serves connections on any mix of addresses, in the event loop that it is started in.

    ::

        async with Server(handler, "tcp://127.0.0.1:9999", "unix:app.sock") as server:
            ...

    It can be started and stopped any number of times, and any number of servers can share a loop.
    Raises ``ConfigurationError`` for what cannot work, before anything is opened.
    """

    _limits_type = Limits
    _timeouts_type = Timeouts

    @names_arguments("Server", argument_hint)
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
        requested = tuple(stream_address(address) for address in addresses)
        if not requested:
            raise OptionError("addresses", (), "give at least one, such as 'tcp://127.0.0.1:9999'")
        if tls is None:
            for address in requested:
                if address.tls:
                    raise OptionError("tls", None, f"is needed for {address}: {_AS_FILES}")
        else:
            check_tls_source(tls)
        super().__init__(requested, limits=limits, timeouts=timeouts, lifespan=lifespan)
        self._options = checked("options", options, SocketOptions)
        self._on_error = checked_hook("on_error", on_error)
        self._tls_source = tls
        self._tls: ReloadableContext | None = None
        self._no_connections = Connections()

    # --- start and end ---

    async def _prepare(self) -> None:
        if self._tls_source is not None:
            self._tls = await in_thread(partial(ReloadableContext, self._tls_source))
            if not any(address.tls for address in self._requested):
                logger.info("no address begins with tls+: plain text until a handler calls start_tls()")

    def _open_sockets(self) -> list[ListeningSocket]:
        return open_listening_sockets(self._requested, self._options)

    def _make_hub(self, loop: asyncio.AbstractEventLoop) -> Hub:
        return Hub(
            self,
            loop,
            handler=self._handler,
            limits=self._limits,
            timeouts=self._timeouts,
            tls=self._tls,
            verify=self._verify,
            on_error=self._on_error,
        )

    def _begin(self, hub: Hub, opened: Sequence[ListeningSocket], exits: AsyncExitStack) -> None:
        if self._tls is not None and self._tls.reload_interval is not None:
            watcher = asyncio.create_task(_watch_certificates(self._tls), name="asyncserver-certificates")
            exits.push_async_callback(_cancel, watcher)
        hub.start(tuple(hub.make_listener(listening) for listening in opened))

    def _to_stopped(self) -> None:
        self._tls = None
        super()._to_stopped()

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
        return await super().drain(timeout, delay=delay)

    async def aclose(self, *, grace: float | None = None) -> None:
        """Stop now: handlers are cancelled, ``grace`` seconds later their connections are reset.

        (``Timeouts.grace`` if it is None.) Returns with everything closed, unlinked and the lifespan
        ended; a handler that does not heed its cancellation is left behind. Idempotent: a second
        call waits for the first, and hurries it if its ``grace`` is shorter. A start that is under
        way fails with ``ServerStateError``; within the lifespan this returns before that.

        Raises ``ServerStateError`` when a handler calls it, for whose end it would wait: let another
        task do that, ``asyncio.create_task(server.aclose())``.
        """
        await super().aclose(grace=grace)

    # --- what it is doing ---

    @property
    def listeners(self) -> tuple[Listener, ...]:
        """Its listeners, which can be paused and resumed one by one."""
        return () if self._hub is None else self._hub.listeners

    @property
    def connections(self) -> Connections:
        """The open connections."""
        return self._no_connections if self._hub is None else self._hub.connections

    @property
    def under_way(self) -> str:
        """What a drain would have to wait for, for people: "3 connections"."""
        return counted(len(self.connections), "connection")

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
        super().update(limits, timeouts, **changes)

    async def reload_tls(self) -> bool:
        """Load the certificates again, for new handshakes; False if they do not load: the old ones stay."""
        if self._tls is None:
            raise ServerStateError("there is no TLS configuration in force to reload")
        return await in_thread(self._tls.reload)

    @property
    def tls_context(self) -> ssl.SSLContext | None:
        """The context for new handshakes, if there is one."""
        return None if self._tls is None else self._tls.context


class ServerOptions(TypedDict, total=False):
    """The keyword arguments of ``Server``, for what passes them on: ``**options: Unpack[ServerOptions]``."""

    tls: TLSSource | None
    verify: Verify | None
    limits: Limits | None
    timeouts: Timeouts | None
    options: SocketOptions | None
    lifespan: Lifespan | None
    on_error: Callable[[Connection, Exception], object] | None


async def serve(handler: Handler, *addresses: Address | str, **options: Unpack[ServerOptions]) -> None:
    """Serve until cancelled; the arguments are those of ``Server``."""
    await Server(handler, *addresses, **options).serve()


async def _watch_certificates(tls: ReloadableContext) -> None:
    interval = tls.reload_interval
    while interval is not None:
        await asyncio.sleep(interval)
        if await in_thread(tls.files_changed):
            await in_thread(tls.reload)


async def _cancel(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
