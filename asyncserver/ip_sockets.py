"""What TCP and UDP have in common: a host's addresses, one port for all of them, errors in plain words."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple, TypeAlias, TypeVar, cast

from asyncserver.addresses import IPEndpoint, TCPAddress, UDPAddress
from asyncserver.errors import BindError, OptionError

__all__ = [
    "SocketAddress",
    "has_ipv6",
    "host_with_scope",
    "open_ip_sockets",
    "set_reuse_port",
    "state_dual_stack",
]

A = TypeVar("A", bound=TCPAddress | UDPAddress)
SocketAddress: TypeAlias = tuple[str | int, ...]
_OpenOne: TypeAlias = Callable[[socket.AddressFamily, SocketAddress], socket.socket]

_ON_LINUX = sys.platform.startswith("linux")

# The kernel picks a port that is free in one family. That the port is taken in another one is rare
# (it takes another program that has a socket of one family alone), so 16 times in a row is a machine
# without free ports and not bad luck.
_PORT_ATTEMPTS = 16

_UNPRIVILEGED_START_FILE = "/proc/sys/net/ipv4/ip_unprivileged_port_start"


class _Target(NamedTuple):
    family: socket.AddressFamily
    sockaddr: SocketAddress


def open_ip_sockets(address: A, open_one: _OpenOne) -> list[tuple[socket.socket, A]]:
    """Open a socket for each of the addresses that the host stands for, by ``open_one(family, sockaddr)``.

    Each comes with the address that it is bound to, with a numeric host and the real port. With port 0
    all of them have the same one. All or nothing: if one cannot be opened the others are closed.
    A family that the machine lacks altogether is left out as long as there is another one.

    Blocks (name resolution). Raises ``BindError``.
    """
    targets = _targets(address)
    attempts = _PORT_ATTEMPTS if address.port == 0 and len(targets) > 1 else 1
    while True:
        attempts -= 1
        try:
            return _open_all(address, targets, open_one)
        except BindError as error:
            if error.errno != errno.EADDRINUSE or not attempts:
                raise


def _targets(address: TCPAddress | UDPAddress) -> list[_Target]:
    if not address.host:
        both = [
            _Target(socket.AF_INET, ("0.0.0.0", address.port)),
            _Target(socket.AF_INET6, ("::", address.port, 0, 0)),
        ]
        return both[1:] if address.dual_stack else both
    kind = socket.SOCK_STREAM if isinstance(address, TCPAddress) else socket.SOCK_DGRAM
    try:
        found = socket.getaddrinfo(address.host, address.port, type=kind, flags=socket.AI_PASSIVE)
    except socket.gaierror as error:
        what = "scope id of" if "%" in address.host else "host name"
        reason = (
            f"the {what} {address.host} is not known ({error.strerror}); check how it is written, "
            "or give an IP address"
        )
        raise BindError(str(address), reason) from error
    # A name that is in the hosts file twice is resolved to the same address twice.
    return list(
        dict.fromkeys(_Target(family, cast(SocketAddress, where)) for family, _, _, _, where in found)
    )


def _open_all(address: A, targets: list[_Target], open_one: _OpenOne) -> list[tuple[socket.socket, A]]:
    opened: list[tuple[socket.socket, A]] = []
    port = address.port
    missing: BindError | None = None
    with contextlib.ExitStack() as undo:
        for target in targets:
            where = (target.sockaddr[0], port, *target.sockaddr[2:])
            try:
                sock = open_one(target.family, where)
            except BindError:
                raise
            except OSError as error:
                refused = BindError(str(address), _reason(error, address, where), error.errno)
                if not _lacks_family(target.family, error):
                    raise refused from error
                missing = refused
            else:
                undo.callback(sock.close)
                port = sock.getsockname()[1]
                opened.append((sock, _bound_address(address, sock)))
        if not opened and missing is not None:
            raise missing
        undo.pop_all()
    return opened


def _bound_address(address: A, sock: socket.socket) -> A:
    where = sock.getsockname()
    host = host_with_scope(where)
    dual_stack = address.dual_stack if host == "::" else None
    return replace(address, host=host, port=where[1], dual_stack=dual_stack)


def host_with_scope(sockaddr: SocketAddress) -> str:
    """The host of an IP sockaddr, with the name of the interface that its scope id stands for."""
    host = str(sockaddr[0])
    if len(sockaddr) < 4 or not sockaddr[3] or "%" in host:
        return host
    scope = int(sockaddr[3])
    try:
        return f"{host}%{socket.if_indextoname(scope)}"
    except OSError:
        return f"{host}%{scope}"


# -- options that both have ------------------------------------------------------------------------


def state_dual_stack(sock: socket.socket, dual_stack: bool | None) -> None:
    """Set IPV6_V6ONLY on an IPv6 socket: the default differs between systems (net.ipv6.bindv6only)."""
    if sock.family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, not dual_stack)


def set_reuse_port(sock: socket.socket) -> None:
    """Switch SO_REUSEPORT on; ``OptionError`` where there is none."""
    number = getattr(socket, "SO_REUSEPORT", None)
    if number is None:
        raise OptionError("reuse_port", True, "this platform has no SO_REUSEPORT")
    try:
        sock.setsockopt(socket.SOL_SOCKET, number, 1)
    except OSError as error:
        if error.errno != errno.ENOPROTOOPT:
            raise
        raise OptionError("reuse_port", True, "this kernel has no SO_REUSEPORT") from error


# -- what went wrong -------------------------------------------------------------------------------


def _lacks_family(family: socket.AddressFamily, error: OSError) -> bool:
    if error.errno == errno.EAFNOSUPPORT:
        return True
    # With IPv6 switched off on all interfaces its sockets can be made, but not even [::1] exists, which
    # "localhost" may still be resolved to.
    return family == socket.AF_INET6 and error.errno == errno.EADDRNOTAVAIL and not has_ipv6()


def has_ipv6() -> bool:
    """Whether this machine has IPv6: asked by binding ``[::1]``."""
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_STREAM) as sock:
            sock.bind(("::1", 0))
    except OSError:
        return False
    return True


def _reason(error: OSError, address: TCPAddress | UDPAddress, where: SocketAddress) -> str:
    host, port = host_with_scope(where), int(where[1])
    if error.errno == errno.EADDRINUSE:
        command = _find_command(address, port)
        return (
            f"{IPEndpoint(host, port)} is in use, by another program or by this one, started before; "
            f"choose another port, or see who has it: `{command}`"
        )
    if error.errno == errno.EACCES:
        return _permission_reason(port)
    if error.errno == errno.EADDRNOTAVAIL:
        everywhere = replace(address, host="", dual_stack=None)
        verb = "listens" if isinstance(address, TCPAddress) else "receives"
        return f"{host} is not an address of this machine; {everywhere} {verb} on all that it has"
    if error.errno == errno.EAFNOSUPPORT:
        return f"this machine has no {'IPv6' if ':' in host else 'IPv4'}"
    if error.errno == errno.EINVAL and _needs_scope(host):
        return f"a link-local address takes its interface along, as in [{host}%25eth0]"
    return f"{os.strerror(error.errno)} ({IPEndpoint(host, port)})" if error.errno else str(error)


def _needs_scope(host: str) -> bool:
    return "%" not in host and host.lower().startswith(("fe80:", "ff01:", "ff02:"))


def _find_command(address: TCPAddress | UDPAddress, port: int) -> str:
    tcp = isinstance(address, TCPAddress)
    if _ON_LINUX:
        return f"ss -l{'t' if tcp else 'u'}np 'sport = :{port}'"
    return f"lsof -nP -iTCP:{port} -sTCP:LISTEN" if tcp else f"lsof -nP -iUDP:{port}"


def _permission_reason(port: int) -> str:
    start = _unprivileged_start()
    if not 0 < port < start:
        return "permission denied, probably by a security policy (SELinux, AppArmor, a sandbox)"
    remedy = f"run it with the privilege, or take a port from {start} on"
    if _ON_LINUX:
        remedy = (
            f"take a port from {start} on, let systemd open the socket (systemd:name), give the program "
            "CAP_NET_BIND_SERVICE, or lower net.ipv4.ip_unprivileged_port_start with sysctl"
        )
    return f"port {port} is below {start} and takes a privilege; {remedy}"


def _unprivileged_start() -> int:
    try:
        with open(_UNPRIVILEGED_START_FILE, encoding="ascii") as file:
            return int(file.read())
    except (OSError, ValueError):
        return 1024
