"""Streams or datagrams: which of the two handlers serve and addresses are for."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Iterable
from contextlib import suppress
from enum import Enum
from typing import NamedTuple, TypeAlias

from asyncserver import (
    Address,
    DatagramAddress,
    DatagramHandler,
    FDAddress,
    Responder,
    SessionHandler,
    StreamAddress,
    StreamHandler,
    SystemdAddress,
    TCPAddress,
    UDPAddress,
    UnixAddress,
    UnixDatagramAddress,
)

__all__ = [
    "Addresses",
    "Kind",
    "WrongKindError",
    "kinds_in_use",
    "possible_kinds",
    "sort_addresses",
]

# Inherited descriptors are whatever they were made as.
_Adopted: TypeAlias = FDAddress | SystemdAddress

_FIRST_SYSTEMD_DESCRIPTOR = 3


class Kind(Enum):
    """What an option can be for."""

    STREAMS = "streams"
    DATAGRAMS = "datagrams"
    UDP = "UDP"
    PACKETS = "handlers of single datagrams"
    SESSIONS = "functions marked with @sessions"


class WrongKindError(ValueError):
    """A handler and addresses that do not go together; the message says why, the handler's name before it."""


class Addresses(NamedTuple):
    """The addresses of a command, by what serves them."""

    streams: tuple[StreamAddress, ...]
    datagrams: tuple[DatagramAddress, ...]


def sort_addresses(target: object, addresses: Iterable[Address]) -> Addresses:
    """Which addresses ``target`` serves as streams, and which as datagrams. Raises ``WrongKindError``."""
    addresses = tuple(addresses)
    _check_kinds(target, addresses)
    streams: list[StreamAddress] = []
    datagrams: list[DatagramAddress] = []
    for address in addresses:
        if isinstance(address, TCPAddress | UnixAddress):
            streams.append(address)
        elif isinstance(address, UDPAddress | UnixDatagramAddress):
            datagrams.append(address)
        elif _kind_of_adopted(address, target) is Kind.STREAMS:
            streams.append(address)
        else:
            datagrams.append(address)
    if streams and datagrams and not isinstance(target, Responder):
        raise WrongKindError(
            f"is given streams ({_listed(streams)}) and datagrams ({_listed(datagrams)}), "
            "and only a Responder serves both"
        )
    return Addresses(tuple(streams), tuple(datagrams))


def possible_kinds(addresses: Iterable[Address]) -> set[Kind]:
    """What may be in use with these addresses, whatever the handler is."""
    found: set[Kind] = set()
    for address in addresses:
        kind = _kind_of(address)
        if kind is not Kind.DATAGRAMS:
            found |= {Kind.STREAMS}
        if kind is not Kind.STREAMS:
            found |= {Kind.DATAGRAMS, Kind.PACKETS, Kind.SESSIONS}
        if kind is None or isinstance(address, UDPAddress):
            found |= {Kind.UDP}
    return found


def kinds_in_use(target: object, addresses: Addresses) -> set[Kind]:
    """What is in use with this handler and these addresses."""
    unused = Kind.PACKETS if isinstance(target, SessionHandler) else Kind.SESSIONS
    found = possible_kinds(addresses.datagrams) - {Kind.STREAMS, unused}
    return found | {Kind.STREAMS} if addresses.streams else found


# --- handlers ---


def _check_kinds(target: object, addresses: Iterable[Address]) -> None:
    only = _only_kind_of(target)
    for address in addresses:
        kind = _kind_of(address)
        if only and kind and kind is not only:
            scheme = "udp" if only is Kind.DATAGRAMS else "tcp"
            raise WrongKindError(
                f"serves {only.value}, and {str(address)!r} is an address of {kind.value}; "
                f"give one of {only.value}, such as {scheme}://127.0.0.1:9999"
            )


def _only_kind_of(target: object) -> Kind | None:
    """None for a function, which does not say what it takes, and for what serves both."""
    if isinstance(target, SessionHandler) or _is_subclass(target, DatagramHandler):
        return Kind.DATAGRAMS
    return Kind.STREAMS if _is_subclass(target, StreamHandler) else None


def _is_subclass(target: object, base: type) -> bool:
    return isinstance(target, type) and issubclass(target, base)


# --- addresses ---


def _kind_of(address: Address) -> Kind | None:
    """None where it depends on what was inherited."""
    if isinstance(address, UDPAddress | UnixDatagramAddress):
        return Kind.DATAGRAMS
    if isinstance(address, TCPAddress | UnixAddress) or address.tls:
        return Kind.STREAMS
    return None


def _listed(addresses: Iterable[Address]) -> str:
    return ", ".join(map(str, addresses))


def _kind_of_adopted(address: _Adopted, target: object) -> Kind:
    """The handler's, or what the descriptors are. Streams where there are none, as the start will say."""
    only = _kind_of(address) or _only_kind_of(target)
    if only is not None:
        return only
    types = {_socket_type(descriptor) for descriptor in _descriptors(address)}
    if {socket.SOCK_STREAM, socket.SOCK_DGRAM} <= types:
        raise WrongKindError(
            f"is given streams and datagrams under one name, {str(address)!r}: "
            "give each kind a name of its own (FileDescriptorName= in the units)"
        )
    return Kind.DATAGRAMS if socket.SOCK_DGRAM in types else Kind.STREAMS


def _descriptors(address: _Adopted) -> list[int]:
    if isinstance(address, FDAddress):
        return [address.fd]
    names = os.environ.get("LISTEN_FDNAMES", "").split(":")
    if not address.name:
        number = os.environ.get("LISTEN_FDS", "")
        names = [""] * int(number) if re.fullmatch(r"[0-9]{1,4}", number) else []
    return [fd for fd, name in enumerate(names, _FIRST_SYSTEMD_DESCRIPTOR) if name == address.name]


def _socket_type(descriptor: int) -> int | None:
    with suppress(OSError), socket.socket(fileno=os.dup(descriptor)) as duplicate:
        return duplicate.type
    return None
