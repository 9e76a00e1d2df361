"""``Datagram``: one packet, and the way to answer it."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

from asyncserver.datagram_endpoint import DatagramEndpoint
from asyncserver.endpoints import Endpoint
from asyncserver.packets import Bytes
from asyncserver.peers import PeerCredentials

__all__ = ["Datagram"]


class Datagram:
    """One packet. Made by the server, and given to the handler."""

    __slots__ = ("_endpoint", "_origin", "data", "truncated")

    def __init__(self, endpoint: DatagramEndpoint, data: bytes, origin: Any, truncated: bool) -> None:
        self._endpoint = endpoint
        self._origin = origin
        self.data: bytes = data
        """What was in the packet; may be empty."""
        self.truncated: bool = truncated
        """Whether it was larger than ``DatagramLimits.max_packet_size``; ``data`` is then its beginning."""

    def __repr__(self) -> str:
        cut = " truncated" if self.truncated else ""
        return f"<Datagram {len(self.data)} bytes{cut} from {self.peer} to {self.local}>"

    @property
    def peer(self) -> Endpoint:
        """Who sent it. Anybody can write any address into a UDP packet: this is no proof."""
        return self._endpoint.packets.peer_of(self._origin)

    @property
    def local(self) -> Endpoint:
        """The address that it was sent to; also a group's, or that of a broadcast.

        Where the system does not tell (Windows), the address that the endpoint is bound to.
        """
        return self._endpoint.local_of(self._origin)

    @property
    def interface(self) -> int:
        """The index of the interface that it came in by (``socket.if_indextoname``); 0 if not known."""
        return self._endpoint.packets.info_of(self._origin).interface

    @property
    def received_at(self) -> float | None:
        """When the kernel received it, in seconds as of ``time.time()``; None where it does not tell.

        It does on Linux, unless ``DatagramOptions.timestamps`` is off.
        """
        return self._endpoint.packets.info_of(self._origin).received_at

    @property
    def credentials(self) -> PeerCredentials | None:
        """The process that sent it, for Unix sockets on Linux, as the kernel knows it; None elsewhere."""
        return self._endpoint.packets.info_of(self._origin).credentials

    @property
    def peer_key(self) -> Hashable:
        """The same for all packets that this peer sends to this address of this endpoint."""
        return self._endpoint.packets.key_of(self._origin)

    @property
    def endpoint(self) -> DatagramEndpoint:
        """The socket that it came in by."""
        return self._endpoint

    @property
    def server(self) -> Any:
        """The ``DatagramServer``."""
        return self._endpoint.server

    async def reply(self, data: Bytes) -> None:
        """Send a packet back, from the address and by the interface that this one came to.

        Waits while there is no room for it: at most ``DatagramTimeouts.send`` seconds, then it raises
        ``SendTimeoutError``. Also raises ``PacketTooLargeError``, ``UnboundPeerError`` for a Unix peer
        without a name, and ``PeerUnreachableError`` for a Unix peer that is gone. That the packet has
        left says nothing of its arrival. Replies to packets that came together leave together, up to 16.
        """
        if not self._endpoint.put(data, self._origin):
            await self._endpoint.put_when_possible(data, self._origin)
