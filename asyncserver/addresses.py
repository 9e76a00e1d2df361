"""Where to listen: addresses as values, and their string form. No I/O happens here.

====================================  ==================================================================
``tcp://127.0.0.1:9999``              one IPv4 address
``tcp://:9999``, ``tcp://*:9999``     every interface, IPv4 and IPv6, one socket each
``tcp://[::]:9999``                   every interface, IPv6 alone
``tcp://[::]:9999?dual_stack=1``      every interface, IPv6 and IPv4, on one socket
``tcp://[fe80::1%25eth0]:9999``       a scope id, escaped as RFC 6874 has it (plain ``%eth0`` is accepted)
``tcp://example.org:9999``            every address that the name has
``unix:///run/app.sock?mode=660``     an absolute path; ``unix:/run/app.sock`` is accepted
``unix:app.sock``                     a path relative to the working directory
``unix:@app``                         a name in Linux's abstract namespace
``fd://3``                            a descriptor that this process has inherited or opened
``systemd:http``                      sockets that systemd passed under this name (``systemd:``: all)
``tls+tcp://:9999``                   streams with TLS: ``tls+tcp``, ``tls+unix``, ``tls+fd``, ...
``udp://:9999``                       datagrams; hosts are written as for ``tcp``
``unixgram:///run/app.sock``          datagrams; paths and names are written as for ``unix``
====================================  ==================================================================

``fd`` and ``systemd`` stand for streams or datagrams, by the server that they are given to.

Everything that is special in its place is escaped with ``%XX``. The objects and the string form
obey the same rules, and ``parse_address(str(address)) == address`` for every address.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass
from typing import Any, TypeAlias

from asyncserver import address_rules as rules
from asyncserver.address_text import (
    bracketed,
    format_address,
    parse_number,
    split_address,
    split_host_and_port,
)
from asyncserver.datagram_addresses import UDPAddress, UnixDatagramAddress
from asyncserver.endpoints import Endpoint, IPEndpoint, UnixEndpoint
from asyncserver.errors import AddressError

__all__ = [
    "Address",
    "DatagramAddress",
    "Endpoint",
    "FDAddress",
    "IPEndpoint",
    "StreamAddress",
    "SystemdAddress",
    "TCPAddress",
    "UDPAddress",
    "UnixAddress",
    "UnixDatagramAddress",
    "UnixEndpoint",
    "datagram_address",
    "parse_address",
    "stream_address",
]


@dataclass(frozen=True, slots=True)
class TCPAddress:
    """A host and a port to listen on. Raises ``AddressError`` for a part that cannot be."""

    host: str = ""
    """A host name (all its addresses are listened on), an IP address without brackets, or "" (also
    written "*") for every interface: 0.0.0.0 and [::], or 0.0.0.0 alone on a machine without IPv6."""

    port: int = 0
    """0 lets the kernel choose a free port, the same one for all families of the host."""

    _: KW_ONLY

    tls: bool = False
    """Connections begin with a TLS handshake."""

    dual_stack: bool | None = None
    """For hosts "::" and "": True opens one IPv6 socket that takes IPv4 connections too. False and None
    keep the families apart: "::" is then IPv6 alone, and "" two sockets. An error for other hosts."""

    reuse_port: bool | None = None
    """SO_REUSEPORT; None leaves it to ``SocketOptions.reuse_port``."""

    backlog: int | None = None
    """Connections that may wait to be accepted; None leaves it to ``SocketOptions.backlog``."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "host", rules.check_host(self.host))
        rules.check_port(self.port)
        _check_tls(self.tls)
        rules.check_dual_stack(self.dual_stack, self.host)
        rules.check_flag("option reuse_port", self.reuse_port)
        rules.check_backlog(self.backlog)

    def __str__(self) -> str:
        options = {"dual_stack": self.dual_stack, "reuse_port": self.reuse_port, "backlog": self.backlog}
        return format_address("tcp", self.tls, f"//{bracketed(self.host)}:{self.port}", options)


@dataclass(frozen=True, slots=True)
class UnixAddress:
    """A Unix socket to listen on. Raises ``AddressError`` for a part that cannot be.

    ``user``, ``group`` and ``mode`` are in force before the first connection can come. Connecting
    takes the permission to write to the socket's file, and to search the directories above it.
    """

    path: str
    """A path of at most 107 bytes (103 on macOS), or ``@name`` in Linux's abstract namespace. A file
    whose name begins with @ is written ``./@name``."""

    _: KW_ONLY

    tls: bool = False
    """Connections begin with a TLS handshake."""

    mode: int | None = None
    """Permission bits, 0 to 0o777. None stands for 0o660 where a ``group`` is given (a group that may not
    write could not connect), else for what the process's umask leaves, as with a plain bind(2):
    0o755 as a rule, with which the owner alone can connect."""

    user: str | int | None = None
    """The owner, by name or number; None leaves it to be the process's."""

    group: str | int | None = None
    """The group, by name or number; None leaves it to be the process's (or the directory's)."""

    backlog: int | None = None
    """Connections that may wait to be accepted; None leaves it to ``SocketOptions.backlog``."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "path", rules.check_unix_path(self.path))
        _check_tls(self.tls)
        rules.check_mode(self.mode)
        object.__setattr__(self, "user", rules.check_owner("user", self.user))
        object.__setattr__(self, "group", rules.check_owner("group", self.group))
        rules.check_backlog(self.backlog)
        if self.is_abstract:
            rules.check_nothing_about_a_file(self.mode, self.user, self.group)

    def __str__(self) -> str:
        mode = None if self.mode is None else f"{self.mode:03o}"
        options = {"mode": mode, "user": self.user, "group": self.group, "backlog": self.backlog}
        slashes = "//" if self.path.startswith("/") else ""
        return format_address("unix", self.tls, slashes + rules.percent_encode(self.path, "/@"), options)

    @property
    def is_abstract(self) -> bool:
        """Whether this is a name in Linux's abstract namespace, without a file."""
        return self.path.startswith("@")


@dataclass(frozen=True, slots=True)
class FDAddress:
    """An open descriptor of a socket that is bound: for a ``DatagramServer`` a datagram socket, else a stream
    socket, which may be listening already.

    The server that adopts it closes it; a start that fails leaves it open. A Unix socket's path is
    never unlinked, since somebody else made it.
    """

    fd: int
    """The descriptor's number."""

    _: KW_ONLY

    tls: bool = False
    """Connections begin with a TLS handshake."""

    def __post_init__(self) -> None:
        rules.check_descriptor(self.fd)
        _check_tls(self.tls)

    def __str__(self) -> str:
        return format_address("fd", self.tls, f"//{self.fd}")


@dataclass(frozen=True, slots=True)
class SystemdAddress:
    """The sockets that systemd passed under a name (``FileDescriptorName=``); "" stands for all of them."""

    name: str = ""
    """The name that they were passed under."""

    _: KW_ONLY

    tls: bool = False
    """Connections begin with a TLS handshake."""

    def __post_init__(self) -> None:
        rules.check_systemd_name(self.name)
        _check_tls(self.tls)

    def __str__(self) -> str:
        return format_address("systemd", self.tls, rules.percent_encode(self.name, ""))


StreamAddress: TypeAlias = TCPAddress | UnixAddress | FDAddress | SystemdAddress
"""What a ``Server`` listens on."""

DatagramAddress: TypeAlias = UDPAddress | UnixDatagramAddress | FDAddress | SystemdAddress
"""What a ``DatagramServer`` receives on."""

Address: TypeAlias = StreamAddress | UDPAddress | UnixDatagramAddress
"""Any kind of address."""


def parse_address(text: str | Address) -> Address:
    """The address that ``text`` stands for; an address object is returned as it is.

    Raises ``AddressError``, which names the part and its value.
    """
    if isinstance(text, Address):
        return text
    # The annotation is no proof: this is where values from configuration files come in.
    if not isinstance(text, str):
        raise AddressError("address", text, f"must be a string or an address object{_as_text(text)}")
    try:
        parts = split_address(text)
        return _BUILDERS[parts.transport](parts.body, parts.tls, parts.options)
    except AddressError as error:
        error.add_note(f"in the address {text!r}")
        raise


def _as_text(given: object) -> str:
    """How to write what somebody has given for an address."""
    value: Any = given
    if isinstance(given, int):
        return f", as in 'tcp://127.0.0.1:{value}'"
    if isinstance(given, os.PathLike):
        return f", as in 'unix:{value}'"
    if isinstance(given, tuple) and len(value) == 2:
        return f", as in 'tcp://{value[0]}:{value[1]}'"
    if isinstance(given, list | tuple | set):
        return ": give each as an argument of its own, *addresses"
    return ", as in 'tcp://127.0.0.1:9999'"


_TO_SERVE_DATAGRAMS = "serve it with run_datagrams(), serve_datagrams() or DatagramServer"
_TO_SERVE_STREAMS = "serve it with run(), serve() or Server"


def stream_address(address: str | Address) -> StreamAddress:
    """``parse_address`` for servers of streams: raises ``AddressError`` for the address of datagrams."""
    parsed = parse_address(address)
    if isinstance(parsed, UDPAddress | UnixDatagramAddress):
        raise AddressError("scheme", _scheme(parsed), f"is for datagrams: {_TO_SERVE_DATAGRAMS}")
    return parsed


def datagram_address(address: str | Address) -> DatagramAddress:
    """``parse_address`` for servers of datagrams: raises ``AddressError`` for streams, and for TLS."""
    parsed = parse_address(address)
    if isinstance(parsed, TCPAddress | UnixAddress):
        raise AddressError("scheme", _scheme(parsed), f"is for streams: {_TO_SERVE_STREAMS}")
    if isinstance(parsed, FDAddress | SystemdAddress) and parsed.tls:
        raise AddressError("scheme", _scheme(parsed), "datagrams have no TLS here")
    return parsed


def _scheme(address: Address) -> str:
    return str(address).partition(":")[0]


def _check_tls(tls: object) -> None:
    if rules.check_flag("tls", tls) is None:
        raise AddressError("tls", tls, "must be True or False")


def _tcp(body: str, tls: bool, options: dict[str, Any]) -> TCPAddress:
    return TCPAddress(*_host_and_port("tcp", body), tls=tls, **options)


def _udp(body: str, _tls: bool, options: dict[str, Any]) -> UDPAddress:
    return UDPAddress(*_host_and_port("udp", body), **options)


def _host_and_port(transport: str, body: str) -> tuple[str, int]:
    if not body.startswith("//"):
        raise AddressError("host", body, f"must stand after two slashes, as in {transport}://127.0.0.1:9999")
    authority, slash, path = body[2:].partition("/")
    if slash:
        raise AddressError("path", slash + path, f"a {transport.upper()} address has none: leave it out")
    host, port = split_host_and_port(authority)
    return host, parse_number("port", port)


def _unix(body: str, tls: bool, options: dict[str, Any]) -> UnixAddress:
    return UnixAddress(_path("unix", body), tls=tls, **options)


def _unixgram(body: str, _tls: bool, options: dict[str, Any]) -> UnixDatagramAddress:
    return UnixDatagramAddress(_path("unixgram", body), **options)


def _path(transport: str, body: str) -> str:
    if body.startswith("//"):
        if not body.startswith("///"):
            right = f"write {transport}:///run/app.sock, or {transport}:app.sock for a relative path or @name"
            raise AddressError("path", body, right)
        body = body[2:]
    return rules.percent_decode("path", body)


def _fd(body: str, tls: bool, options: dict[str, Any]) -> FDAddress:
    if not body.startswith("//"):
        raise AddressError("descriptor", body, "must stand after two slashes, as in fd://3")
    return FDAddress(parse_number("descriptor", body[2:]), tls=tls, **options)


def _systemd(body: str, tls: bool, options: dict[str, Any]) -> SystemdAddress:
    if body.startswith("/"):
        raise AddressError("name", body, "must stand right after the colon, as in systemd:http")
    return SystemdAddress(rules.percent_decode("name", body), tls=tls, **options)


_BUILDERS: dict[str, Callable[[str, bool, dict[str, Any]], Address]] = {
    "tcp": _tcp,
    "unix": _unix,
    "udp": _udp,
    "unixgram": _unixgram,
    "fd": _fd,
    "systemd": _systemd,
}
