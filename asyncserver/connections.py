"""``Connections``: the open connections of a server, as others may look at them."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterator

from asyncserver.connection import Connection
from asyncserver.endpoints import Endpoint, IPEndpoint, UnixEndpoint

__all__ = ["Connections"]


class Connections(Collection[Connection]):
    """The open connections of a server: iterate, count, look up. Changes as they come and go.

    Iteration is over the connections that there were when it began.
    """

    def __init__(self) -> None:
        self._by_id: dict[int, Connection] = {}
        self._empty_waiters: list[asyncio.Future[None]] = []

    def __len__(self) -> int:
        return len(self._by_id)

    def __iter__(self) -> Iterator[Connection]:
        return iter(list(self._by_id.values()))

    def __contains__(self, connection: object) -> bool:
        return isinstance(connection, Connection) and self._by_id.get(connection.id) is connection

    def get(self, number: int) -> Connection | None:
        """The connection with this ``id``, if it is open."""
        return self._by_id.get(number)

    def find(self, peer: Endpoint | str) -> list[Connection]:
        """The connections from a peer: an endpoint, or its text, with or without the port.

        >>> server.connections.find("192.0.2.7")        # doctest: +SKIP
        >>> server.connections.find("192.0.2.7:40312")  # doctest: +SKIP
        """
        if isinstance(peer, IPEndpoint | UnixEndpoint):
            return [connection for connection in self if connection.peer == peer]
        return [connection for connection in self if peer in (_host(connection.peer), str(connection.peer))]

    def add(self, connection: Connection) -> None:
        """Called by the server."""
        self._by_id[connection.id] = connection

    def remove(self, connection: Connection) -> None:
        """Called by the server."""
        del self._by_id[connection.id]
        if not self._by_id and self._empty_waiters:
            waiters, self._empty_waiters = self._empty_waiters, []
            for waiter in waiters:
                if not waiter.done():
                    waiter.set_result(None)

    def newest(self) -> Iterator[Connection]:
        """The connections, the newest first; none may come or go during the iteration."""
        return reversed(self._by_id.values())

    async def wait_empty(self) -> None:
        """Wait until there is none."""
        while self._by_id:
            waiter = asyncio.get_running_loop().create_future()
            self._empty_waiters.append(waiter)
            await waiter


def _host(endpoint: Endpoint) -> str:
    return endpoint.host if isinstance(endpoint, IPEndpoint) else endpoint.path
