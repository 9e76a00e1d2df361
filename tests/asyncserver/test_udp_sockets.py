from __future__ import annotations

import errno
import logging
import os
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from typing import Any

import pytest

from asyncserver import datagram_socket_options, ip_sockets, udp_sockets
from asyncserver.addresses import UDPAddress, UnixDatagramAddress, datagram_address
from asyncserver.datagram_options import DatagramOptions
from asyncserver.datagram_socket_options import configure_datagrams, report_small_buffers
from asyncserver.datagram_sockets import open_datagram_sockets
from asyncserver.errors import BindError, OptionError
from asyncserver.udp_sockets import open_udp_sockets
from tests.clients import kept_port
from tests.leaks import open_descriptors
from tests.unprivileged import run_unprivileged

LINUX = sys.platform.startswith("linux")
needs_ipv6 = pytest.mark.skipif(not ip_sockets.has_ipv6(), reason="this machine has no IPv6")
needs_reuse_port = pytest.mark.skipif(not hasattr(socket, "SO_REUSEPORT"), reason="needs SO_REUSEPORT")
SHARED = DatagramOptions(reuse_address=True)
LOOPBACK = next(name for _, name in socket.if_nameindex() if name.startswith("lo"))
Opened = list[tuple[socket.socket, UDPAddress]]
Open = Callable[..., Opened]


@pytest.fixture
def opened() -> Iterator[Open]:
    """``open_udp_sockets``, whose sockets are closed at the end."""
    with ExitStack() as stack:

        def open_and_keep(address: str, options: DatagramOptions | None = None) -> Opened:
            parsed = datagram_address(address)
            assert isinstance(parsed, UDPAddress)
            found = open_udp_sockets(parsed, options or DatagramOptions())
            for sock, _ in found:
                stack.enter_context(closing(sock))
            return found

        yield open_and_keep


def arrives(sock: socket.socket, host: str, port: int) -> bool:
    """Whether a datagram that is sent there is received by ``sock``; loopback delivers at once."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.sendto(b"x", (host, port))
    try:
        return sock.recv(10) == b"x"
    except BlockingIOError:
        return False


# -- families and ports ----------------------------------------------------------------------------


def test_one_address(opened: Open) -> None:
    ((sock, bound),) = opened("udp://127.0.0.1:0")
    assert bound == UDPAddress("127.0.0.1", sock.getsockname()[1])
    assert bound.port > 0
    assert sock.type == socket.SOCK_DGRAM
    assert not sock.getblocking()
    assert not sock.get_inheritable()
    assert arrives(sock, "127.0.0.1", bound.port)


@needs_ipv6
def test_every_interface_is_one_socket_per_family_on_one_port(opened: Open) -> None:
    for _ in range(20):
        (four, bound_four), (six, bound_six) = opened("udp://:0")
        assert bound_four == UDPAddress("0.0.0.0", bound_six.port)
        assert bound_six == UDPAddress("::", six.getsockname()[1])
        assert arrives(four, "127.0.0.1", bound_four.port)
        assert arrives(six, "::1", bound_six.port)
        assert not arrives(six, "127.0.0.1", bound_four.port)


@needs_ipv6
def test_ipv6_alone_unless_asked(opened: Open) -> None:
    ((sock, bound),) = opened("udp://[::]:0")
    assert sock.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY) == 1
    assert arrives(sock, "::1", bound.port)
    assert not arrives(sock, "127.0.0.1", bound.port)


@needs_ipv6
@pytest.mark.parametrize("address", ["udp://[::]:0?dual_stack=1", "udp://:0?dual_stack=1"])
def test_dual_stack_is_one_socket_for_both_families(address: str, opened: Open) -> None:
    ((sock, bound),) = opened(address)
    assert bound == UDPAddress("::", bound.port, dual_stack=True)
    assert arrives(sock, "::1", bound.port)
    assert arrives(sock, "127.0.0.1", bound.port)


def test_names_are_resolved_for_datagrams(opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    real, asked = socket.getaddrinfo, []

    def resolve(_host: str, port: int, **options: Any) -> Any:
        asked.append(options["type"])
        return real("127.0.0.1", port, **options)

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    ((_, bound),) = opened("udp://some.example:0")
    assert bound.host == "127.0.0.1"
    assert asked == [socket.SOCK_DGRAM]


@needs_ipv6
def test_port_that_another_family_has_taken_is_tried_again(
    opened: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, tried = udp_sockets._open_one, []

    def open_one(address: UDPAddress, family: int, where: tuple[Any, ...], options: DatagramOptions) -> Any:
        tried.append(family)
        if family == socket.AF_INET6 and len(tried) <= 4:
            raise OSError(errno.EADDRINUSE, "taken")
        return real(address, family, where, options)  # type: ignore[arg-type]

    monkeypatch.setattr(udp_sockets, "_open_one", open_one)
    (_, four), (_, six) = opened("udp://:0")
    assert four.port == six.port > 0
    assert len(tried) == 6


# -- what went wrong -------------------------------------------------------------------------------


def test_port_in_use(opened: Open) -> None:
    ((_, bound),) = opened("udp://127.0.0.1:0")
    with pytest.raises(BindError) as caught:
        opened(str(bound))
    assert caught.value.errno == errno.EADDRINUSE
    tool = f"ss -lunp 'sport = :{bound.port}'" if LINUX else f"lsof -nP -iUDP:{bound.port}"
    assert str(caught.value) == (
        f"cannot listen on {bound}: 127.0.0.1:{bound.port} is in use, by another program or by this one, "
        f"started before; choose another port, or see who has it: `{tool}`"
    )


def test_tool_elsewhere(opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ip_sockets, "_ON_LINUX", False)
    ((_, bound),) = opened("udp://127.0.0.1:0")
    with pytest.raises(BindError, match=f"lsof -nP -iUDP:{bound.port}`"):
        opened(str(bound))


def test_address_of_another_machine(opened: Open) -> None:
    with pytest.raises(BindError, match=r"203.0.113.1 is not .*; udp://:0 receives on all that it has"):
        opened("udp://203.0.113.1:0")  # TEST-NET-3 of RFC 5737 is nobody's


@needs_ipv6
def test_all_or_nothing(opened: Open) -> None:
    with (
        kept_port(kind=socket.SOCK_DGRAM) as port,
        socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as blocker,
    ):
        blocker.bind(("::1", port))
        before = open_descriptors()
        with pytest.raises(BindError, match=rf"\[::\]:{port} is in use"):
            opened(f"udp://:{port}", SHARED)
        assert open_descriptors() == before


# -- sharing ---------------------------------------------------------------------------------------


def test_address_is_not_shared_unless_both_ask(opened: Open) -> None:
    ((sock, bound),) = opened("udp://127.0.0.1:0")
    assert not sock.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR)
    with pytest.raises(BindError, match="in use"):
        opened(str(bound), SHARED)
    ((_, shared),) = opened("udp://127.0.0.1:0", SHARED)
    opened(str(shared), SHARED)
    with pytest.raises(BindError, match="in use"):
        opened(str(shared))


@pytest.mark.skipif(not LINUX, reason="how the kernel chooses ports elsewhere is unknown")
def test_chosen_port_is_not_one_of_another_socket_that_shares(
    opened: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []

    class Watched(socket.socket):
        def setsockopt(self, level: int, name: int, value: Any) -> None:  # type: ignore[override]
            if (level, name) == (socket.SOL_SOCKET, socket.SO_REUSEADDR):
                order.append("share")
            super().setsockopt(level, name, value)

        def bind(self, where: Any) -> None:
            order.append("bind")
            super().bind(where)

    monkeypatch.setattr(socket, "socket", Watched)
    ((_, bound),) = opened("udp://127.0.0.1:0", SHARED)
    opened(str(bound), SHARED)
    assert order == ["bind", "share", "share", "bind"]


@needs_reuse_port
def test_reuse_port_takes_all_of_them_to_ask(opened: Open) -> None:
    shared = DatagramOptions(reuse_port=True)
    ((_, bound),) = opened("udp://127.0.0.1:0", shared)
    opened(str(bound), shared)
    opened(f"{bound}?reuse_port=1")
    for address, options in ((str(bound), DatagramOptions()), (f"{bound}?reuse_port=0", shared)):
        with pytest.raises(BindError, match="in use"):
            opened(address, options)


def test_reuse_port_where_the_platform_has_none(opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(socket, "SO_REUSEPORT", raising=False)
    with pytest.raises(OptionError, match="reuse_port=True: this platform has no SO_REUSEPORT"):
        opened("udp://127.0.0.1:0?reuse_port=1")


# -- buffers ---------------------------------------------------------------------------------------


def size(sock: socket.socket, number: int = socket.SO_RCVBUF) -> int:
    return sock.getsockopt(socket.SOL_SOCKET, number) // (2 if LINUX else 1)


def limit_buffers(monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    """A kernel that gives ``most`` bytes and no privilege."""

    class Limited(socket.socket):
        def setsockopt(self, level: int, name: int, value: Any) -> None:  # type: ignore[override]
            if name in datagram_socket_options._FORCED.values():
                raise PermissionError(errno.EPERM, "no")
            if name in (socket.SO_RCVBUF, socket.SO_SNDBUF) and level == socket.SOL_SOCKET:
                value = min(value, most)
            super().setsockopt(level, name, value)

    monkeypatch.setattr(socket, "socket", Limited)


def records(caplog: pytest.LogCaptureFixture) -> list[tuple[int, str]]:
    return [(record.levelno, record.getMessage()) for record in caplog.records]


@pytest.mark.skipif(not LINUX, reason="the limit of other kernels is unknown")
@pytest.mark.skipif(os.geteuid() != 0, reason="needs CAP_NET_ADMIN")
def test_privilege_goes_beyond_the_limit(opened: Open, caplog: pytest.LogCaptureFixture) -> None:
    with open("/proc/sys/net/core/rmem_max", encoding="ascii") as file:
        beyond = int(file.read()) + 8192
    ((sock, _),) = opened("udp://127.0.0.1:0", DatagramOptions(receive_buffer=beyond))
    assert size(sock) == beyond
    report_small_buffers([sock], DatagramOptions(receive_buffer=beyond))
    assert records(caplog) == []


@pytest.mark.skipif(not LINUX, reason="the limit of other kernels is unknown")
def test_without_the_privilege_the_limit_holds() -> None:
    with open("/proc/sys/net/core/rmem_max", encoding="ascii") as file:
        limit = int(file.read())
    text = run_unprivileged(
        """
        import logging
        from asyncserver.datagram_options import DatagramOptions
        from asyncserver.datagram_sockets import open_datagram_sockets
        logging.basicConfig(format="%(levelname)s %(message)s", stream=sys.stdout)
        limit = int(sys.argv[1])
        options = DatagramOptions(receive_buffer=limit + 8192)
        (bound,) = open_datagram_sockets([UDPAddress("127.0.0.1")], options)
        bound.release()
        """,
        str(limit),
    )
    assert text == (
        f"WARNING the kernel gives receive_buffer={limit + 8192} only {limit} bytes; raise its limit with "
        f"`sysctl -w net.core.rmem_max={limit + 8192}`, or ask for less"
    )


def test_default_size_is_four_mebibytes_or_what_there_is(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    limit_buffers(monkeypatch, 300_000)
    caplog.set_level(logging.INFO)
    for bound in open_datagram_sockets([UDPAddress("127.0.0.1"), UDPAddress("127.0.0.1")]):
        assert size(bound.socket) == 300_000
        bound.release()
    ((level, message),) = records(caplog)
    assert level == logging.INFO
    assert "receive_buffer=4194304 only 300000 bytes" in message
    if LINUX:
        assert "`sysctl -w net.core.rmem_max=4194304`" in message


def test_size_that_was_asked_for_is_worth_a_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    limit_buffers(monkeypatch, 100_000)
    options = DatagramOptions(receive_buffer=200_000, send_buffer=300_000)
    for bound in open_datagram_sockets([UDPAddress("127.0.0.1"), UDPAddress("127.0.0.1")], options):
        bound.release()
    (receive, send) = records(caplog)
    assert receive[0] == send[0] == logging.WARNING
    assert "receive_buffer=200000 only 100000 bytes" in receive[1]
    assert "send_buffer=300000 only 100000 bytes" in send[1]
    if LINUX:
        assert "rmem_max=200000" in receive[1]
        assert "wmem_max=300000" in send[1]


def test_sizes_that_are_given_are_not_reported(opened: Open, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    options = DatagramOptions(receive_buffer=50_000, send_buffer=60_000)
    ((sock, _),) = opened("udp://127.0.0.1:0", options)
    assert (size(sock), size(sock, socket.SO_SNDBUF)) == (50_000, 60_000)
    report_small_buffers([sock], options)
    report_small_buffers([], DatagramOptions(receive_buffer=2**29))
    assert records(caplog) == []


def test_none_leaves_the_sizes_to_the_kernel(opened: Open) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as untouched:
        ((sock, _),) = opened("udp://127.0.0.1:0", DatagramOptions(receive_buffer=None))
        for number in (socket.SO_RCVBUF, socket.SO_SNDBUF):
            assert size(sock, number) == size(untouched, number)


def test_default_takes_nothing_away_and_a_size_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datagram_socket_options, "DEFAULT_RECEIVE_BUFFER", 50_000)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 90_000)
        configure_datagrams(sock, DatagramOptions(receive_buffer=50_000), "x")
        assert size(sock) == 90_000
        configure_datagrams(sock, DatagramOptions(receive_buffer=60_000), "x")
        assert size(sock) == 60_000


def test_kernel_that_refuses_a_large_size_is_asked_for_less(
    opened: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    class Bsd(socket.socket):
        def setsockopt(self, level: int, name: int, value: Any) -> None:  # type: ignore[override]
            if name == socket.SO_RCVBUF and level == socket.SOL_SOCKET:
                asked.append(value)
                if value > 100_000:
                    raise OSError(errno.ENOBUFS, "no")
            super().setsockopt(level, name, value)

    monkeypatch.setattr(socket, "socket", Bsd)
    monkeypatch.setattr(datagram_socket_options, "_FORCED", {})
    ((sock, _),) = opened("udp://127.0.0.1:0", DatagramOptions(receive_buffer=320_000))
    assert asked == [320_000, 160_000, 80_000]
    assert size(sock) == 80_000


def test_kernel_that_refuses_every_size_is_left_alone(opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    class Odd(socket.socket):
        number = errno.ENOBUFS

        def setsockopt(self, level: int, name: int, value: Any) -> None:  # type: ignore[override]
            if name == socket.SO_RCVBUF and level == socket.SOL_SOCKET:
                raise OSError(self.number, "no")
            super().setsockopt(level, name, value)

    monkeypatch.setattr(socket, "socket", Odd)
    monkeypatch.setattr(datagram_socket_options, "_FORCED", {})
    opened("udp://127.0.0.1:0")
    Odd.number = errno.EACCES
    with pytest.raises(BindError):
        opened("udp://127.0.0.1:0")


@pytest.mark.skipif(not LINUX, reason="elsewhere the bytes of Unix sockets are counted")
def test_unix_sockets_are_not_reported(caplog: pytest.LogCaptureFixture) -> None:
    options = DatagramOptions(receive_buffer=2**29)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        report_small_buffers([sock], options)
    assert records(caplog) == []


# -- sending to many -------------------------------------------------------------------------------


def test_broadcast(opened: Open) -> None:
    for broadcast in (False, True):
        ((sock, _),) = opened("udp://127.0.0.1:0", DatagramOptions(broadcast=broadcast))
        assert bool(sock.getsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST)) is broadcast


def test_multicast_of_ipv4(opened: Open) -> None:
    ((sock, _),) = opened("udp://127.0.0.1:0")
    assert sock.getsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_LOOP) == 1
    assert sock.getsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL) == 1
    options = DatagramOptions(multicast_loop=False, multicast_ttl=7, multicast_interface="127.0.0.1")
    ((sock, _),) = opened("udp://127.0.0.1:0", options)
    assert sock.getsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_LOOP) == 0
    assert sock.getsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL) == 7
    assert sock.getsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, 4) == socket.inet_aton("127.0.0.1")


@needs_ipv6
def test_multicast_of_ipv6(opened: Open) -> None:
    ((sock, _),) = opened("udp://[::1]:0")
    assert sock.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_LOOP) == 1
    assert sock.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS) == 1
    options = DatagramOptions(multicast_loop=False, multicast_ttl=0, multicast_interface=LOOPBACK)
    ((sock, _),) = opened("udp://[::1]:0", options)
    assert sock.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_LOOP) == 0
    assert sock.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS) == 0
    assert sock.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF) == socket.if_nametoindex(LOOPBACK)


@needs_ipv6
@pytest.mark.skipif(not LINUX, reason="elsewhere an IPv6 socket has no options of IPv4")
def test_multicast_of_a_dual_stack_socket(opened: Open) -> None:
    ((sock, _),) = opened("udp://[::]:0?dual_stack=1", DatagramOptions(multicast_ttl=9))
    assert sock.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS) == 9
    assert sock.getsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL) == 9


def test_multicast_interface_that_does_not_exist(opened: Open) -> None:
    with pytest.raises(
        BindError, match="multicast_interface='nosuch0': this machine has no interface nosuch0"
    ):
        opened("udp://127.0.0.1:0", DatagramOptions(multicast_interface="nosuch0"))
    with pytest.raises(BindError, match=r"no interface of this machine has the address 203.0.113.9"):
        opened("udp://127.0.0.1:0", DatagramOptions(multicast_interface="203.0.113.9"))
    with pytest.raises(BindError, match=r"this machine has no interface 9999999, only: .*lo"):
        opened("udp://127.0.0.1:0", DatagramOptions(multicast_interface=9_999_999))


def test_multicast_interface_of_no_socket() -> None:
    for interface, address in (("::1", UDPAddress("127.0.0.1")), ("127.0.0.1", UnixDatagramAddress("@x"))):
        if not LINUX and isinstance(address, UnixDatagramAddress):
            continue
        with pytest.raises(OptionError, match=r"multicast_interface=.*: none of the sockets is of IPv"):
            open_datagram_sockets([address], DatagramOptions(multicast_interface=interface))


@needs_ipv6
@pytest.mark.skipif(not LINUX, reason="elsewhere an address of IPv6 is no interface")
def test_multicast_interface_by_address_concerns_its_family() -> None:
    options = DatagramOptions(multicast_interface="::1")
    four, six = open_datagram_sockets([UDPAddress("127.0.0.1"), UDPAddress("::1")], options)
    index = socket.if_nametoindex(LOOPBACK)
    assert six.socket.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF) == index
    assert four.socket.getsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, 4) == bytes(4)
    four.release()
    six.release()
