"""What the scripts that serve datagrams share: the bound socket, and the session handler.

Everybody has the receive buffer that ours has by default; the kernel's own holds 256 small datagrams.
"""

from __future__ import annotations

import socket
from typing import Any

RECEIVE_BUFFER = 4 << 20  # bytes

# How the harness asks how many sessions are open; the answer is their number in digits.
QUESTION = b"sessions?"


def bound_socket(port: int) -> socket.socket:
    """Return a socket on 127.0.0.1:`port` that does not block."""
    bound = socket.socket(type=socket.SOCK_DGRAM)
    enlarge(bound)
    bound.bind(("127.0.0.1", port))
    bound.setblocking(False)
    return bound


def enlarge(bound: socket.socket) -> None:
    """Give a socket the receive buffer, or as much of it as `net.core.rmem_max` allows."""
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER)


class Census:
    """How many handlers of sessions are there."""

    __slots__ = ("open",)

    def __init__(self) -> None:
        self.open = 0

    def answer(self, data: bytes) -> bytes:
        """Return what is sent for `data`."""
        return str(self.open).encode() if data == QUESTION else data


census = Census()


async def talk(session: Any) -> None:
    """Echo and be counted. Every server that has a handler for each session has this one."""
    census.open += 1
    try:
        async for datagram in session:
            await session.send(census.answer(datagram.data))
    finally:
        census.open -= 1
