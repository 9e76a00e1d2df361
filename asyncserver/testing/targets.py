"""What a client can be pointed at, and where in the kernel's terms that is."""

from __future__ import annotations

import os
import socket
from typing import Any, NamedTuple, Protocol, TypeAlias, cast

from asyncserver import (
    Address,
    DatagramServer,
    OptionError,
    Server,
    ServerStateError,
    TCPAddress,
    UDPAddress,
    UnixAddress,
    UnixDatagramAddress,
    parse_address,
)

__all__ = ["LegacyServer", "Place", "Target", "locate"]

_UNIX = getattr(socket, "AF_UNIX", None)


class LegacyServer(Protocol):
    """What is used of a server that is made of ``socketserver``, the standard library's or ``compat``'s."""

    address_family: int
    socket_type: int
    server_address: Any


Target: TypeAlias = Server | DatagramServer | LegacyServer | Address | str
"""A server that has been started, one made of ``socketserver``, or an address."""


class Place(NamedTuple):
    """Where to connect to: what ``socket.socket()`` and ``connect()`` take."""

    family: int
    kind: int
    sockaddr: Any

    def __str__(self) -> str:
        name = os.fsdecode(self.sockaddr) if self.family == _UNIX else "{}:{}".format(*self.sockaddr)
        return name.replace("\0", "@")


def locate(target: Target, index: int = 0) -> Place:
    """Where the target listens; at its address number ``index``, where it has several.

    A server that listens on every interface is found on the loopback one. Raises ``ServerStateError`` for a
    server without addresses (not started, or closed) and ``OptionError`` for what cannot be connected to.
    """
    if isinstance(target, str):
        return _place_of(parse_address(target))
    if isinstance(target, (Server, DatagramServer)):
        if not target.addresses:
            raise ServerStateError(f"{target!r} has no address to connect to")
        return _place_of(target.addresses[index])
    if hasattr(target, "server_address"):
        return _place_of_legacy(cast("LegacyServer", target))
    return _place_of(target)


def _place_of(address: object) -> Place:
    match address:
        case TCPAddress():
            return _internet(address.host, address.port, socket.SOCK_STREAM)
        case UDPAddress():
            return _internet(address.host, address.port, socket.SOCK_DGRAM)
        case UnixAddress():
            return _unix(address.path, socket.SOCK_STREAM)
        case UnixDatagramAddress():
            return _unix(address.path, socket.SOCK_DGRAM)
        case _:
            raise OptionError("target", address, "is nothing that a client can connect to")


def _place_of_legacy(server: LegacyServer) -> Place:
    if server.address_family == _UNIX:
        return Place(server.address_family, server.socket_type, server.server_address)
    host, port = server.server_address[:2]
    return _internet(host, port, server.socket_type)


def _internet(host: str, port: int, kind: int) -> Place:
    host = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return Place(socket.AF_INET6 if ":" in host else socket.AF_INET, kind, (host, port))


def _unix(path: str, kind: int) -> Place:
    name = b"\0" + os.fsencode(path[1:]) if path.startswith("@") else path
    return Place(socket.AF_UNIX, kind, name)
