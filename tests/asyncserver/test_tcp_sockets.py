from __future__ import annotations

import errno
import os
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest

from asyncserver import ip_sockets, tcp_sockets
from asyncserver.addresses import TCPAddress, parse_address
from asyncserver.errors import BindError, OptionError
from asyncserver.ip_sockets import host_with_scope
from asyncserver.options import SocketOptions
from asyncserver.tcp_sockets import open_tcp_sockets
from tests.clients import kept_port
from tests.leaks import open_descriptors
from tests.unprivileged import run_unprivileged

LINUX = sys.platform.startswith("linux")
needs_ipv6 = pytest.mark.skipif(not ip_sockets.has_ipv6(), reason="this machine has no IPv6")
Opened = list[tuple[socket.socket, TCPAddress]]
Open = Callable[..., Opened]


@pytest.fixture
def opened() -> Iterator[Open]:
    """``open_tcp_sockets``, whose sockets are closed at the end."""
    with ExitStack() as stack:

        def open_and_keep(address: str, options: SocketOptions | None = None) -> Opened:
            parsed = parse_address(address)
            assert isinstance(parsed, TCPAddress)
            found = open_tcp_sockets(parsed, options or SocketOptions())
            for sock, _ in found:
                stack.enter_context(closing(sock))
            return found

        yield open_and_keep


def connects(host: str, port: int) -> bool:
    try:
        with socket.create_connection((host, port), timeout=5):
            return True
    except ConnectionRefusedError:
        return False


# -- families and ports ----------------------------------------------------------------------------


def test_one_address(opened: Open) -> None:
    ((sock, bound),) = opened("tls+tcp://127.0.0.1:0?backlog=7")
    assert bound == TCPAddress("127.0.0.1", sock.getsockname()[1], tls=True, backlog=7)
    assert bound.port > 0
    assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    assert not sock.getblocking()
    assert not sock.get_inheritable()
    assert connects("127.0.0.1", bound.port)


@needs_ipv6
def test_every_interface_is_one_socket_per_family_on_one_port(opened: Open) -> None:
    for _ in range(20):
        (four, bound_four), (six, bound_six) = opened("tcp://:0")
        assert (four.family, six.family) == (socket.AF_INET, socket.AF_INET6)
        assert bound_four == TCPAddress("0.0.0.0", bound_six.port)
        assert bound_six == TCPAddress("::", six.getsockname()[1])
        assert connects("127.0.0.1", bound_four.port)
        assert connects("::1", bound_six.port)


@needs_ipv6
def test_name_with_several_addresses_has_one_port(opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    resolve_to(monkeypatch, "::1", "127.0.0.1", "127.0.0.1")
    (_, six), (_, four) = opened("tcp://both.example:0")
    assert (six.host, four.host) == ("::1", "127.0.0.1")
    assert six.port == four.port > 0


def resolve_to(monkeypatch: pytest.MonkeyPatch, *hosts: str) -> None:
    real = socket.getaddrinfo

    def resolve(_host: str, port: int, **options: Any) -> list[Any]:
        return [found for host in hosts for found in real(host, port, **options)]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)


@needs_ipv6
def test_ipv6_alone_unless_asked(opened: Open) -> None:
    for address in ("tcp://[::]:0", "tcp://[::]:0?dual_stack=0"):
        sock, bound, keeper = alone_at_its_port(opened, address)
        with keeper:
            assert bound.host == "::"
            assert bound.dual_stack == parse_address(address).dual_stack  # type: ignore[union-attr]
            assert sock.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY) == 1
            assert connects("::1", bound.port)
            assert not connects("127.0.0.1", bound.port)


def alone_at_its_port(opened: Open, address: str) -> tuple[socket.socket, TCPAddress, socket.socket]:
    """And what keeps the port in IPv4: in IPv6 the kernel gives one away that has a server there."""
    for _ in range(100):
        ((sock, bound),) = opened(address)
        keeper = socket.socket()
        try:
            keeper.bind(("127.0.0.1", bound.port))
        except OSError:
            keeper.close()
        else:
            return sock, bound, keeper
    raise AssertionError("its port is taken in IPv4, too")


@needs_ipv6
@pytest.mark.parametrize("address", ["tcp://[::]:0?dual_stack=1", "tcp://:0?dual_stack=1"])
def test_dual_stack_is_one_socket_for_both_families(address: str, opened: Open) -> None:
    ((sock, bound),) = opened(address)
    assert bound == TCPAddress("::", bound.port, dual_stack=True)
    assert sock.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY) == 0
    assert connects("::1", bound.port)
    assert connects("127.0.0.1", bound.port)


@needs_ipv6
def test_bound_address_can_be_opened_again(opened: Open) -> None:
    for address in ("tcp://:0", "tcp://[::]:0?dual_stack=1", "tcp://:0?dual_stack=0", "tcp://[::1]:0"):
        with kept_port(dual_stack=True) as port:
            found = opened(address.replace(":0", f":{port}"))
            for sock, _ in found:
                sock.close()
            for _, bound in found:
                ((_, again),) = opened(str(bound))
                assert again == bound


@needs_ipv6
def test_port_that_another_family_has_taken_is_tried_again(
    opened: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, tried = tcp_sockets._open_one, []

    def open_one(address: TCPAddress, family: int, where: tuple[Any, ...], options: SocketOptions) -> Any:
        tried.append((family, where[1]))
        if family == socket.AF_INET6 and len(tried) <= 4:
            raise OSError(errno.EADDRINUSE, "taken")
        return real(address, family, where, options)  # type: ignore[arg-type]

    monkeypatch.setattr(tcp_sockets, "_open_one", open_one)
    (_, four), (_, six) = opened("tcp://:0")
    assert four.port == six.port
    assert [family for family, _ in tried] == [socket.AF_INET, socket.AF_INET6] * 3
    assert [port for family, port in tried if family == socket.AF_INET] == [0, 0, 0]


def test_trying_again_is_bounded_and_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    real, ports = tcp_sockets._open_one, []

    def open_one(address: TCPAddress, family: int, where: tuple[Any, ...], options: SocketOptions) -> Any:
        if family == socket.AF_INET6:
            ports.append(where[1])
            raise OSError(errno.EADDRINUSE, "taken")
        return real(address, family, where, options)  # type: ignore[arg-type]

    monkeypatch.setattr(tcp_sockets, "_open_one", open_one)
    before = open_descriptors()
    with pytest.raises(BindError, match="in use") as caught:
        open_tcp_sockets(TCPAddress("", 0), SocketOptions())
    assert open_descriptors() == before
    assert caught.value.errno == errno.EADDRINUSE
    assert len(ports) == 16


@pytest.mark.parametrize("number", [errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL])
def test_machine_without_ipv6(number: int, opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    without_ipv6(monkeypatch, number)
    resolve_to(monkeypatch, "::1", "127.0.0.1")
    for address in ("tcp://:0", "tcp://localhost:0"):
        ((sock, bound),) = opened(address)
        assert sock.family == socket.AF_INET
        assert bound.port > 0
    for address in ("tcp://[::]:0", "tcp://:0?dual_stack=1"):
        monkeypatch.undo()
        without_ipv6(monkeypatch, number)
        with pytest.raises(BindError) as caught:
            opened(address)
        assert caught.value.errno == number


def without_ipv6(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    real = tcp_sockets._open_one

    def open_one(address: TCPAddress, family: int, where: tuple[Any, ...], options: SocketOptions) -> Any:
        if family == socket.AF_INET6:
            raise OSError(number, "no IPv6")
        return real(address, family, where, options)  # type: ignore[arg-type]

    monkeypatch.setattr(tcp_sockets, "_open_one", open_one)
    monkeypatch.setattr(ip_sockets, "has_ipv6", lambda: False)


@needs_ipv6
def test_missing_address_is_an_error_where_there_is_ipv6(
    opened: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    resolve_to(monkeypatch, "127.0.0.1", "100::1")
    with pytest.raises(BindError, match="100::1 is not an address of this machine") as caught:
        opened("tcp://half.example:0")
    assert caught.value.errno == errno.EADDRNOTAVAIL


@needs_ipv6
def test_all_or_nothing(opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    with kept_port() as port, socket.socket(socket.AF_INET6) as blocker:
        blocker.bind(("::1", port))
        blocker.listen()
        resolve_to(monkeypatch, "127.0.0.1", "::1")
        before = open_descriptors()
        with pytest.raises(
            BindError, match=rf"cannot listen on tcp://both.example:{port}: \[::1\]:{port} is in use"
        ):
            opened(f"tcp://both.example:{port}")
        assert open_descriptors() == before


# -- options ---------------------------------------------------------------------------------------


def closed_by_server(sock: socket.socket) -> None:
    """Leave a connection of ``sock`` in TIME_WAIT: it goes to the side that closes first."""
    with socket.create_connection(sock.getsockname()) as client:
        sock.setblocking(True)
        sock.accept()[0].close()
        assert client.recv(1) == b""


def test_port_can_be_used_again_at_once(opened: Open) -> None:
    """While a connection is in TIME_WAIT, which keeps others from the port as well."""
    ((sock, bound),) = opened("tcp://127.0.0.1:0")
    closed_by_server(sock)
    sock.close()
    with pytest.raises(BindError, match="in use"):
        opened(str(bound), SocketOptions(reuse_address=False))
    ((again, _),) = opened(str(bound))
    assert again.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR)


@pytest.mark.skipif(not hasattr(socket, "SO_REUSEPORT"), reason="needs SO_REUSEPORT")
def test_reuse_port_takes_all_of_them_to_ask(opened: Open) -> None:
    shared = SocketOptions(reuse_port=True)
    ((_, bound),) = opened("tcp://127.0.0.1:0", shared)
    opened(str(bound), shared)
    opened(f"{bound}?reuse_port=1")
    for address, options in ((str(bound), SocketOptions()), (f"{bound}?reuse_port=0", shared)):
        with pytest.raises(BindError, match="in use"):
            opened(address, options)


def test_reuse_port_where_the_platform_has_none(opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(socket, "SO_REUSEPORT", raising=False)
    with pytest.raises(OptionError, match="reuse_port=True: this platform has no SO_REUSEPORT"):
        opened("tcp://127.0.0.1:0?reuse_port=1")


@pytest.mark.parametrize(
    ("number", "error", "message"),
    [
        (errno.ENOPROTOOPT, OptionError, "this kernel has no SO_REUSEPORT"),
        (errno.EPERM, BindError, "Operation not permitted"),
    ],
)
@pytest.mark.skipif(not hasattr(socket, "SO_REUSEPORT"), reason="needs SO_REUSEPORT")
def test_reuse_port_where_the_kernel_refuses(
    number: int, error: type[Exception], message: str, opened: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Old(socket.socket):
        def setsockopt(self, level: int, name: int, value: Any) -> None:  # type: ignore[override]
            if name == socket.SO_REUSEPORT:
                raise OSError(number, "no")
            super().setsockopt(level, name, value)

    monkeypatch.setattr(socket, "socket", Old)
    with pytest.raises(error, match=message):
        opened("tcp://127.0.0.1:0", SocketOptions(reuse_port=True))


def test_backlog_of_the_address_goes_first(opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    class Listening(socket.socket):
        def listen(self, backlog: int = 0) -> None:
            asked.append(backlog)
            super().listen(backlog)

    monkeypatch.setattr(socket, "socket", Listening)
    opened("tcp://127.0.0.1:0?backlog=11", SocketOptions(backlog=22))
    opened("tcp://127.0.0.1:0", SocketOptions(backlog=22))
    assert asked == [11, 22]


# -- what went wrong -------------------------------------------------------------------------------


def test_port_in_use(opened: Open) -> None:
    ((_, bound),) = opened("tcp://127.0.0.1:0")
    with pytest.raises(BindError) as caught:
        opened(str(bound))
    error = caught.value
    assert error.address == str(bound)
    assert error.errno == errno.EADDRINUSE
    assert isinstance(error.__cause__, OSError)
    tool = f"ss -ltnp 'sport = :{bound.port}'" if LINUX else f"lsof -nP -iTCP:{bound.port} -sTCP:LISTEN"
    assert str(error) == (
        f"cannot listen on {bound}: 127.0.0.1:{bound.port} is in use, by another program or by this one, "
        f"started before; choose another port, or see who has it: `{tool}`"
    )


def test_address_of_another_machine(opened: Open) -> None:
    with pytest.raises(BindError) as caught:
        opened("tls+tcp://192.0.2.1:0")  # TEST-NET-1 of RFC 5737 is nobody's
    assert caught.value.errno == errno.EADDRNOTAVAIL
    assert "192.0.2.1 is not an address of this machine; tls+tcp://:0 listens on all" in str(caught.value)


def test_unknown_host_name(opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    def resolve(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    with pytest.raises(BindError, match=r"the host name nowhere\.invalid is not known"):
        opened("tcp://nowhere.invalid:80")


def test_unknown_scope_id(opened: Open) -> None:
    with pytest.raises(BindError, match="the scope id of fe80::1%nosuchif0 is not known"):
        opened("tcp://[fe80::1%25nosuchif0]:0")


@pytest.mark.skipif(not LINUX, reason="other kernels say it in other words")
@needs_ipv6
def test_link_local_address_without_scope(opened: Open) -> None:
    with pytest.raises(BindError, match=r"takes its interface along, as in \[fe80::1%25eth0\]") as caught:
        opened("tcp://[fe80::1]:0")
    assert caught.value.errno == errno.EINVAL


def test_privileged_port() -> None:
    if LINUX and int(Path("/proc/sys/net/ipv4/ip_unprivileged_port_start").read_text()) <= 1:
        pytest.skip("this machine has no privileged ports")
    text = run_unprivileged("""
        try:
            open_listening_sockets([TCPAddress("127.0.0.1", 1)])
        except BindError as error:
            print(error.errno == errno.EACCES, error)
    """)
    assert text.startswith("True cannot listen on tcp://127.0.0.1:1: port 1 is below")
    if LINUX:
        assert "CAP_NET_BIND_SERVICE" in text
        assert "net.ipv4.ip_unprivileged_port_start" in text
        assert "systemd:name" in text


@pytest.mark.parametrize(
    ("port", "start", "reason"),
    [
        (80, "1024", "port 80 is below 1024"),
        (80, None, "port 80 is below 1024"),
        (80, "x", "port 80 is below 1024"),
        (80, "80", "security policy"),
        (8080, "1024", "security policy"),
        (0, "1024", "security policy"),
    ],
)
def test_reasons_for_a_refused_permission(
    port: int, start: str | None, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "start"
    if start is not None:
        file.write_text(start)
    monkeypatch.setattr(ip_sockets, "_UNPRIVILEGED_START_FILE", str(file))
    monkeypatch.setattr(tcp_sockets, "_open_one", failing(errno.EACCES))
    with pytest.raises(BindError, match=reason) as caught:
        open_tcp_sockets(TCPAddress("127.0.0.1", port), SocketOptions())
    assert caught.value.errno == errno.EACCES


def failing(number: int) -> Callable[..., None]:
    def fail(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    return fail


def test_other_platforms_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ip_sockets, "_ON_LINUX", False)
    for number, words in ((errno.EADDRINUSE, "lsof -nP -iTCP:80"), (errno.EACCES, "take a port from")):
        monkeypatch.setattr(tcp_sockets, "_open_one", failing(number))
        with pytest.raises(BindError, match=words):
            open_tcp_sockets(TCPAddress("127.0.0.1", 80), SocketOptions())


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENOBUFS])
def test_any_other_error_in_the_systems_words(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tcp_sockets, "_open_one", failing(number))
    with pytest.raises(BindError, match=rf"{os.strerror(number)} \(127.0.0.1:80\)") as caught:
        open_tcp_sockets(TCPAddress("127.0.0.1", 80), SocketOptions())
    assert caught.value.errno == number


def test_probe_for_ipv6(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_socket(*_: object) -> None:
        raise OSError(errno.EAFNOSUPPORT, "no IPv6")

    with socket.socket(socket.AF_INET6) as sock:
        try:
            sock.bind(("::1", 0))
            available = True
        except OSError:
            available = False
    assert ip_sockets.has_ipv6() == available
    monkeypatch.setattr(socket, "socket", no_socket)
    assert not ip_sockets.has_ipv6()


def test_scope_ids_have_names() -> None:
    loopback = next(name for _, name in socket.if_nameindex() if name.startswith("lo"))
    index = socket.if_nametoindex(loopback)
    assert host_with_scope(("fe80::1", 80, 0, index)) == f"fe80::1%{loopback}"
    assert host_with_scope(("fe80::1%eth9", 80, 0, 3)) == "fe80::1%eth9"
    assert host_with_scope(("fe80::1", 80, 0, 2**31 - 1)) == f"fe80::1%{2**31 - 1}"
    assert host_with_scope(("::1", 80, 0, 0)) == "::1"
    assert host_with_scope(("127.0.0.1", 80)) == "127.0.0.1"
