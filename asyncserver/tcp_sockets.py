"""Opening the TCP sockets of an address: families, ports, and what went wrong in plain words."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import sys
from dataclasses import replace
from typing import TypeAlias, cast

from asyncserver.addresses import IPEndpoint, TCPAddress
from asyncserver.errors import BindError, OptionError
from asyncserver.options import SocketOptions
from asyncserver.socket_options import configure_listening

__all__ = ["host_with_scope", "open_tcp_sockets"]

_SocketAddress: TypeAlias = tuple[str | int, ...]
_Target: TypeAlias = tuple[socket.AddressFamily, _SocketAddress]

_ON_LINUX = sys.platform.startswith("linux")

# The kernel picks a port that is free in one family. That the port is taken in another one is rare
# (it takes another program that listens on one family alone), so 16 times in a row is a machine
# without free ports and not bad luck.
_PORT_ATTEMPTS = 16

_UNPRIVILEGED_START_FILE = "/proc/sys/net/ipv4/ip_unprivileged_port_start"


def open_tcp_sockets(address: TCPAddress, options: SocketOptions) -> list[tuple[socket.socket, TCPAddress]]:
    """Open a listening, non-blocking socket for each of the addresses that the host stands for.

    Each comes with the address that it is bound to, with a numeric host and the real port. With port 0
    all of them have the same one. All or nothing: if one cannot be opened the others are closed.
    A family that the machine lacks altogether is left out as long as there is another one.

    Blocks (name resolution). Raises ``BindError``, or ``OptionError`` for a ``reuse_port`` that the
    platform does not have.
    """
    targets = _targets(address)
    attempts = _PORT_ATTEMPTS if address.port == 0 and len(targets) > 1 else 1
    while True:
        attempts -= 1
        try:
            return _open_all(address, targets, options)
        except BindError as error:
            if error.errno != errno.EADDRINUSE or not attempts:
                raise


def _targets(address: TCPAddress) -> list[_Target]:
    if not address.host:
        both: list[_Target] = [
            (socket.AF_INET, ("0.0.0.0", address.port)),
            (socket.AF_INET6, ("::", address.port, 0, 0)),
        ]
        return both[1:] if address.dual_stack else both
    try:
        found = socket.getaddrinfo(
            address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
    except socket.gaierror as error:
        what = "scope id" if "%" in address.host else "host name"
        reason = f"the {what} of {address.host} is not known ({error.strerror})"
        raise BindError(str(address), reason) from error
    # A name that is in the hosts file twice is resolved to the same address twice.
    return list(dict.fromkeys((family, cast(_SocketAddress, where)) for family, _, _, _, where in found))


def _open_all(
    address: TCPAddress, targets: list[_Target], options: SocketOptions
) -> list[tuple[socket.socket, TCPAddress]]:
    opened: list[tuple[socket.socket, TCPAddress]] = []
    port = address.port
    missing: BindError | None = None
    with contextlib.ExitStack() as undo:
        for family, sockaddr in targets:
            where = (sockaddr[0], port, *sockaddr[2:])
            try:
                sock = _open_one(address, family, where, options)
            except OSError as error:
                reason = _reason(error, address, where)
                refused = BindError(str(address), reason, error.errno)
                if not _lacks_family(family, error):
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


def _open_one(
    address: TCPAddress, family: socket.AddressFamily, where: _SocketAddress, options: SocketOptions
) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        _set_sharing(sock, address, options)
        if family == socket.AF_INET6:
            # The default differs between systems (net.ipv6.bindv6only), so it is always stated.
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, not address.dual_stack)
        configure_listening(sock, options, str(address))
        sock.bind(where)
        sock.listen(address.backlog or options.backlog)
    except BaseException:
        sock.close()
        raise
    return sock


def _set_sharing(sock: socket.socket, address: TCPAddress, options: SocketOptions) -> None:
    if sys.platform == "win32":
        # SO_REUSEADDR on Windows means "take the port away from whoever has it".
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_EXCLUSIVEADDRUSE, 1)
    elif options.reuse_address:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if options.reuse_port if address.reuse_port is None else address.reuse_port:
        _set_reuse_port(sock)


def _set_reuse_port(sock: socket.socket) -> None:
    number = getattr(socket, "SO_REUSEPORT", None)
    if number is None:
        raise OptionError("reuse_port", True, "this platform has no SO_REUSEPORT")
    try:
        sock.setsockopt(socket.SOL_SOCKET, number, 1)
    except OSError as error:
        if error.errno != errno.ENOPROTOOPT:
            raise
        raise OptionError("reuse_port", True, "this kernel has no SO_REUSEPORT") from error


def _bound_address(address: TCPAddress, sock: socket.socket) -> TCPAddress:
    where = sock.getsockname()
    host = host_with_scope(where)
    dual_stack = address.dual_stack if host == "::" else None
    return replace(address, host=host, port=where[1], dual_stack=dual_stack)


def host_with_scope(sockaddr: _SocketAddress) -> str:
    """The host of an IP sockaddr, with the name of the interface that its scope id stands for."""
    host = str(sockaddr[0])
    if len(sockaddr) < 4 or not sockaddr[3] or "%" in host:
        return host
    scope = int(sockaddr[3])
    try:
        return f"{host}%{socket.if_indextoname(scope)}"
    except OSError:
        return f"{host}%{scope}"


# -- what went wrong -------------------------------------------------------------------------------


def _lacks_family(family: socket.AddressFamily, error: OSError) -> bool:
    if error.errno == errno.EAFNOSUPPORT:
        return True
    # With IPv6 switched off on all interfaces its sockets can be made, but not even [::1] exists, which
    # "localhost" may still be resolved to.
    return family == socket.AF_INET6 and error.errno == errno.EADDRNOTAVAIL and not _has_ipv6()


def _has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_STREAM) as sock:
            sock.bind(("::1", 0))
    except OSError:
        return False
    return True


def _reason(error: OSError, address: TCPAddress, where: _SocketAddress) -> str:
    host, port = host_with_scope(where), int(where[1])
    if error.errno == errno.EADDRINUSE:
        return f"{IPEndpoint(host, port)} is in use by another socket; find it with `{_find_command(port)}`"
    if error.errno == errno.EACCES:
        return _permission_reason(port)
    if error.errno == errno.EADDRNOTAVAIL:
        everywhere = replace(address, host="", dual_stack=None)
        return f"{host} is not an address of this machine; {everywhere} listens on all that it has"
    if error.errno == errno.EAFNOSUPPORT:
        return f"this machine has no {'IPv6' if ':' in host else 'IPv4'}"
    if error.errno == errno.EINVAL and host.lower().startswith("fe80:") and "%" not in host:
        return f"a link-local address takes its interface along, as in [{host}%25eth0]"
    return f"{os.strerror(error.errno)} ({IPEndpoint(host, port)})" if error.errno else str(error)


def _find_command(port: int) -> str:
    if _ON_LINUX:
        return f"ss -ltnp 'sport = :{port}'"
    return f"lsof -nP -iTCP:{port} -sTCP:LISTEN"


def _permission_reason(port: int) -> str:
    start = _unprivileged_start()
    if not 0 < port < start:
        return "permission denied, probably by a security policy (SELinux, AppArmor, a sandbox)"
    remedy = "run it with the privilege or take a higher port"
    if _ON_LINUX:
        remedy = (
            "give the program CAP_NET_BIND_SERVICE, lower net.ipv4.ip_unprivileged_port_start with sysctl, "
            "or let systemd open the socket (systemd:name)"
        )
    return f"port {port} is below {start} and takes a privilege; {remedy}"


def _unprivileged_start() -> int:
    try:
        with open(_UNPRIVILEGED_START_FILE, encoding="ascii") as file:
            return int(file.read())
    except (OSError, ValueError):
        return 1024
