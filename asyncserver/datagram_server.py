"""``DatagramServer``: addresses and a handler of packets put together; and ``serve_datagrams()``."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from typing import Any, TypeAlias, TypedDict, Unpack

from asyncserver.addresses import DatagramAddress, datagram_address
from asyncserver.checks import names_arguments
from asyncserver.datagram_endpoint import DatagramEndpoint
from asyncserver.datagram_handlers import AnyDatagramHandler, as_packet_handler, as_session_function
from asyncserver.datagram_hub import DatagramHub, OnError
from asyncserver.datagram_limits import DatagramLimits, DatagramTimeouts
from asyncserver.datagram_options import DatagramOptions
from asyncserver.datagram_sockets import DatagramSocket, open_datagram_sockets
from asyncserver.datagram_statistics import DatagramStatistics
from asyncserver.errors import OptionError
from asyncserver.lifecycle import Lifecycle
from asyncserver.server_arguments import checked, checked_hook, elsewhere
from asyncserver.statistics import DrainReport

__all__ = [
    "DatagramLifespan",
    "DatagramServer",
    "DatagramServerOptions",
    "datagram_argument_hint",
    "serve_datagrams",
]

DatagramLifespan: TypeAlias = Callable[["DatagramServer"], AbstractAsyncContextManager[Any]]
"""Given the server, returns a context manager that is open as long as the server serves."""


# What is given to the server within another argument.
_GROUPS = {"limits": DatagramLimits, "timeouts": DatagramTimeouts, "options": DatagramOptions}


def datagram_argument_hint(name: str, *others: str) -> str:
    """What to write instead of an argument that there is not; ``others`` there are, beside the server's."""
    return elsewhere(name, _GROUPS, [*DatagramServerOptions.__annotations__, *others])


class DatagramServer(Lifecycle[DatagramHub, DatagramSocket, DatagramLimits, DatagramTimeouts]):
    """Serves packets that come to any mix of UDP and Unix datagram addresses, in one event loop.

    ::

        async with DatagramServer(handler, "udp://127.0.0.1:9999", "unixgram:app.sock") as server:
            ...

    It can be started and stopped any number of times, and any number of servers of either kind can
    share a loop. Raises ``ConfigurationError`` for what cannot work, before anything is opened.
    """

    _limits_type = DatagramLimits
    _timeouts_type = DatagramTimeouts

    @names_arguments("DatagramServer", datagram_argument_hint)
    def __init__(
        self,
        handler: AnyDatagramHandler,
        *addresses: DatagramAddress | str,
        # -- bounds -------------------------------------------------------------------------------
        limits: DatagramLimits | None = None,
        timeouts: DatagramTimeouts | None = None,
        options: DatagramOptions | None = None,
        # -- the program around it ----------------------------------------------------------------
        lifespan: DatagramLifespan | None = None,
        on_error: OnError | None = None,
    ) -> None:
        """Nothing is opened before the start.

        ``handler``: an async function that takes a ``Datagram``, a ``DatagramHandler`` class, or a function
        marked with ``@sessions``, which takes a ``Session``.
        ``lifespan``: opened before the first packet is received, closed after the last handler has
        ended; what it gives is ``lifespan_state``. If it raises, the server does not start.
        ``on_error``: called with the datagram (or session) and the exception when a handler raised,
        after that was logged.
        """
        self._packet_handler = as_packet_handler(handler)
        self._session_function = as_session_function(handler)
        requested = tuple(datagram_address(address) for address in addresses)
        if not requested:
            raise OptionError("addresses", (), "give at least one, such as 'udp://127.0.0.1:9999'")
        super().__init__(requested, limits=limits, timeouts=timeouts, lifespan=lifespan)
        self._options = checked("options", options, DatagramOptions)
        self._on_error = checked_hook("on_error", on_error)

    # --- start and end ---

    def _open_sockets(self) -> list[DatagramSocket]:
        return open_datagram_sockets(self._requested, self._options)

    def _make_hub(self, loop: asyncio.AbstractEventLoop) -> DatagramHub:
        return DatagramHub(
            self,
            loop,
            handler=self._packet_handler,
            session_handler=self._session_function,
            limits=self._limits,
            timeouts=self._timeouts,
            on_error=self._on_error,
        )

    def _begin(self, hub: DatagramHub, opened: Sequence[DatagramSocket], exits: AsyncExitStack) -> None:
        hub.start(opened, self._options)

    async def drain(self, timeout: float | None = 30.0, *, delay: float = 0.0) -> DrainReport:
        """Stop gently: serve what has come, receive nothing new, and close.

        1. For ``delay`` seconds it still receives, but is not ready any more (``ready``).
        2. Nothing more is received, but for what waits in the kernel at this moment. Unix paths are
           unlinked. Sessions are told to end; packets that wait for a handler are still served.
        3. After ``timeout`` seconds (None: never) the handlers that are left are cancelled, and packets
           that wait are dropped.
        4. ``DatagramTimeouts.grace`` later what is still there is left behind, and the sockets are closed.

        Returns how many handlers, or sessions, ended how, with the server closed; nothing happens when it is
        closed already. A second call while it is under way hurries the first one: its own timeout
        counts. Cancelling it closes everything at once.

        Raises ``ServerStateError`` before the server is ready, and when a handler calls it, for whose
        end it would wait: let another task do that, ``asyncio.create_task(server.drain())``.
        """
        return await super().drain(timeout, delay=delay)

    # --- what it is doing ---

    @property
    def endpoints(self) -> tuple[DatagramEndpoint, ...]:
        """Its sockets, which can send, be paused and resumed, and join groups one by one."""
        return () if self._hub is None else self._hub.endpoints

    @property
    def under_way(self) -> str:
        """What a drain would have to wait for, for people: "2 handlers"."""
        return "0 handlers" if self._hub is None else self._hub.under_way

    def statistics(self) -> DatagramStatistics:
        """All counters of this run, or the last one; raises ``ServerStateError`` before the first."""
        return self._require_hub().statistics()

    def update(
        self,
        limits: DatagramLimits | None = None,
        timeouts: DatagramTimeouts | None = None,
        /,
        **changes: Any,
    ) -> None:
        """Change limits and timeouts while the server runs (or before).

        Either whole values, or single fields: ``server.update(max_handlers=50, session_idle=30)``. Raises
        ``OptionError`` for an unknown field or a bad value, and then nothing has changed.
        """
        super().update(limits, timeouts, **changes)


class DatagramServerOptions(TypedDict, total=False):
    """The keyword arguments of ``DatagramServer``, for what passes them on; see ``ServerOptions``."""

    limits: DatagramLimits | None
    timeouts: DatagramTimeouts | None
    options: DatagramOptions | None
    lifespan: DatagramLifespan | None
    on_error: OnError | None


async def serve_datagrams(
    handler: AnyDatagramHandler, *addresses: DatagramAddress | str, **options: Unpack[DatagramServerOptions]
) -> None:
    """Serve until cancelled; the arguments are those of ``DatagramServer``."""
    await DatagramServer(handler, *addresses, **options).serve()
