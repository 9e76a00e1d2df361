from __future__ import annotations

import errno
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from asyncserver import ip_sockets, multicast
from asyncserver.addresses import UDPAddress
from asyncserver.datagram_options import DatagramOptions, MulticastGroup
from asyncserver.errors import BindError, OptionError
from asyncserver.multicast import ip_versions, is_joined_already, join, leave
from asyncserver.udp_sockets import open_udp_sockets

LINUX = sys.platform.startswith("linux")
LOOPBACK = next(name for _, name in socket.if_nameindex() if name.startswith("lo"))
INDEX = socket.if_nametoindex(LOOPBACK)
needs_ipv6 = pytest.mark.skipif(not ip_sockets.has_ipv6(), reason="this machine has no IPv6")
only_linux = pytest.mark.skipif(not LINUX, reason="Linux only")
needs_memberships_file = pytest.mark.skipif(
    not os.path.exists("/proc/net/igmp6"), reason="this machine does not tell who is in which group"
)
# Every interface in every form that the kernel is told it in.
INTERFACES: list[str | int] = [LOOPBACK, INDEX, "127.0.0.1"]


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def receiver(stack: ExitStack) -> socket.socket:
    return opened(stack, "0.0.0.0")


def opened(stack: ExitStack, host: str, **options: Any) -> socket.socket:
    address = UDPAddress(host, dual_stack=True if options.pop("dual_stack", False) else None)
    ((sock, _),) = open_udp_sockets(address, DatagramOptions(**options))
    return stack.enter_context(sock)


def received(sock: socket.socket, group: str, source: str = "127.0.0.1", data: bytes = b"x") -> bool:
    """Whether ``sock`` gets what is sent to the group on the loopback interface: settled once it is sent."""
    with ExitStack() as stack:
        sender = opened(stack, source, multicast_interface="127.0.0.1")
        sender.sendto(data, (group, sock.getsockname()[1]))
    try:
        return sock.recv(100) == data
    except BlockingIOError:
        return False


# -- IPv4 ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("interface", INTERFACES)
def test_group_on_an_interface(interface: str | int, receiver: socket.socket) -> None:
    group = MulticastGroup("239.255.77.2", interface)
    assert not received(receiver, group.group)
    join(receiver, group)
    assert received(receiver, group.group)
    leave(receiver, group)
    assert not received(receiver, group.group)


@only_linux
@pytest.mark.parametrize("interface", INTERFACES)
def test_group_from_one_source(interface: str | int, receiver: socket.socket) -> None:
    group = MulticastGroup("232.1.77.2", interface, "127.0.0.1")
    other = MulticastGroup("232.1.77.2", interface, "127.0.0.3")
    join(receiver, group)
    assert received(receiver, group.group, "127.0.0.1")
    assert not received(receiver, group.group, "127.0.0.2")
    join(receiver, other)
    assert received(receiver, group.group, "127.0.0.3")
    leave(receiver, group)
    assert not received(receiver, group.group, "127.0.0.1")
    assert received(receiver, group.group, "127.0.0.3")
    leave(receiver, other)
    assert not received(receiver, group.group, "127.0.0.3")


@only_linux
def test_groups_that_others_have_joined_are_not_received(stack: ExitStack, receiver: socket.socket) -> None:
    group = MulticastGroup("239.255.77.3", LOOPBACK)
    other = opened(stack, "0.0.0.0", groups=(group,))
    join(other, group)
    assert not received(receiver, group.group)
    join(receiver, MulticastGroup("239.255.77.4", LOOPBACK))
    assert not received(receiver, group.group)


def test_several_programs_receive_a_group_on_one_port(stack: ExitStack) -> None:
    group = MulticastGroup("239.255.77.5", "127.0.0.1")
    first = opened(stack, "0.0.0.0", reuse_address=True)
    address = UDPAddress("0.0.0.0", first.getsockname()[1])
    ((second, _),) = open_udp_sockets(address, DatagramOptions(reuse_address=True))
    stack.enter_context(second)
    join(first, group)
    join(second, group)
    assert received(first, group.group, data=b"both")
    assert second.recv(100) == b"both"


@only_linux
def test_dual_stack_socket_joins_groups_of_both(stack: ExitStack) -> None:
    if not ip_sockets.has_ipv6():
        pytest.skip("this machine has no IPv6")
    sock = opened(stack, "::", dual_stack=True)
    assert ip_versions(sock) == {4, 6}
    group = MulticastGroup("239.255.77.6", LOOPBACK)
    join(sock, group)
    assert received(sock, group.group)
    leave(sock, group)


# -- IPv6 ------------------------------------------------------------------------------------------


def members(group: str) -> list[str]:
    """The interfaces on which this machine is in the group."""
    digits = socket.inet_pton(socket.AF_INET6, group).hex()
    lines = [line.split() for line in Path("/proc/net/igmp6").read_text().splitlines()]
    return [name for _, name, address, *_ in lines if address == digits]


# The kernel's list is that of the whole machine: each process that tests has groups of its own.
OWN = 1 + os.getpid() % 0xFFFE

IPV6_INTERFACES: list[str | int] = [LOOPBACK, INDEX, *(["::1"] if LINUX else [])]


@needs_ipv6
@needs_memberships_file
@pytest.mark.parametrize("interface", IPV6_INTERFACES)
@pytest.mark.parametrize("host", [f"ff01::77:{OWN:x}", f"ff02::77:{OWN:x}"], ids=["ff01", "ff02"])
@pytest.mark.parametrize("source", [None, "::1"])
def test_group_of_ipv6(host: str, interface: str | int, source: str | None, stack: ExitStack) -> None:
    sock = opened(stack, "::")
    group = MulticastGroup(host, interface, source)
    join(sock, group)
    assert members(host) == [LOOPBACK]
    with pytest.raises(BindError, match="has joined this group already"):
        join(sock, group)
    leave(sock, group)
    assert members(host) == []


@needs_ipv6
@pytest.mark.parametrize("host", ["ff01::77:2", "ff02::77:2"])
def test_group_of_ipv6_is_received(host: str, stack: ExitStack) -> None:
    sock = opened(stack, "::")
    sender = opened(stack, "::1", multicast_interface=LOOPBACK)
    join(sock, MulticastGroup(host, LOOPBACK))
    try:
        sender.sendto(b"x", (host, sock.getsockname()[1], 0, INDEX))
    except OSError as error:
        pytest.skip(f"no route for groups of IPv6 on the loopback interface ({error.strerror})")
    assert sock.recv(100) == b"x"


# -- what went wrong -------------------------------------------------------------------------------


def test_twice(receiver: socket.socket) -> None:
    group = MulticastGroup("239.255.77.7", "127.0.0.1")
    join(receiver, group)
    with pytest.raises(BindError) as caught:
        join(receiver, group)
    assert str(caught.value) == (
        "cannot listen on 239.255.77.7%127.0.0.1: the socket has joined this group already"
    )
    assert is_joined_already(caught.value, group)


@only_linux
def test_source_twice_and_any_after_a_source(receiver: socket.socket) -> None:
    group = MulticastGroup("232.1.77.7", LOOPBACK, "127.0.0.1")
    join(receiver, group)
    with pytest.raises(BindError, match=r"has joined this group already$") as caught:
        join(receiver, group)
    assert is_joined_already(caught.value, group)
    anybody = MulticastGroup("232.1.77.7", LOOPBACK)
    with pytest.raises(BindError) as caught:
        join(receiver, anybody)
    assert caught.value.errno == errno.EADDRINUSE


@pytest.mark.parametrize("source", [None, "127.0.0.1"])
def test_leaving_what_was_not_joined(source: str | None, receiver: socket.socket) -> None:
    if source and not LINUX:
        pytest.skip("Linux only")
    with pytest.raises(OptionError, match="is not joined on this socket") as caught:
        leave(receiver, MulticastGroup("232.1.77.8", "127.0.0.1", source))
    assert caught.value.option == "group"
    assert str(caught.value.value).endswith("232.1.77.8%127.0.0.1")


@pytest.mark.parametrize(
    ("interface", "reason"),
    [
        ("nosuch0", rf"this machine has no interface nosuch0, only: .*{LOOPBACK}"),
        (9_999_999, f"this machine has no interface 9999999, only: .*{LOOPBACK}"),
        ("203.0.113.9", "no interface of this machine has the address 203.0.113.9"),
    ],
)
@pytest.mark.parametrize("source", [None, "127.0.0.1"])
def test_interface_that_does_not_exist(
    interface: str | int, reason: str, source: str | None, receiver: socket.socket
) -> None:
    if source and not LINUX:
        pytest.skip("Linux only")
    group = MulticastGroup("232.1.77.9", interface, source)
    with pytest.raises(BindError, match=reason) as caught:
        join(receiver, group)
    assert caught.value.address == str(group)
    assert caught.value.errno == errno.ENODEV or not LINUX
    with pytest.raises((BindError, OptionError)):
        leave(receiver, group)


@needs_ipv6
def test_interface_of_ipv6_that_does_not_exist(stack: ExitStack, monkeypatch: pytest.MonkeyPatch) -> None:
    sock = opened(stack, "::")
    for interface in ("nosuch0", 9_999_999, "fd00:dead::1"):
        with pytest.raises(BindError, match="interface"):
            join(sock, MulticastGroup("ff02::77:3", interface))
    monkeypatch.setattr(multicast, "_IPV6_INTERFACES_FILE", "/nosuch")
    monkeypatch.setattr(multicast, "_ON_LINUX", False)
    with pytest.raises(BindError, match=r"has the address ::1; give it by its name"):
        join(sock, MulticastGroup("ff02::77:3", "::1"))


@needs_ipv6
def test_wrong_family(stack: ExitStack, receiver: socket.socket) -> None:
    with pytest.raises(OptionError, match=r"group='ff02::1%1': is of IPv6, and the socket is of IPv4"):
        join(receiver, MulticastGroup("ff02::1", 1))
    with pytest.raises(OptionError, match="is of IPv4, and the socket is of IPv6"):
        join(opened(stack, "::1"), MulticastGroup("239.1.2.3"))


def test_unix_socket_has_no_groups(stack: ExitStack) -> None:
    sock = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
    assert ip_versions(sock) == frozenset()
    for call in (join, leave):
        with pytest.raises(OptionError, match="is of IPv4, and the socket is no IP socket"):
            call(sock, MulticastGroup("239.1.2.3"))


@only_linux
def test_too_many_groups(receiver: socket.socket) -> None:
    most = int(Path("/proc/sys/net/ipv4/igmp_max_memberships").read_text())
    if most > 200:
        pytest.skip("this machine allows very many groups")
    with pytest.raises(BindError, match=r"`sysctl -w net.ipv4.igmp_max_memberships=") as caught:
        for number in range(most + 1):
            join(receiver, MulticastGroup(f"239.255.78.{number}", LOOPBACK))
    assert caught.value.errno == errno.ENOBUFS


class Refusing(socket.socket):
    number = 0

    def setsockopt(self, *_: Any) -> None:
        raise OSError(self.number, os.strerror(self.number))


@pytest.mark.parametrize(
    ("number", "reason"),
    [
        (errno.ENODEV, r"no route leads to this group; name an interface, as in 239.1.2.3%eth0"),
        (errno.EPERM, os.strerror(errno.EPERM)),
    ],
)
def test_other_errors(number: int, reason: str, stack: ExitStack) -> None:
    sock = stack.enter_context(Refusing(socket.AF_INET, socket.SOCK_DGRAM))
    sock.number = number
    for call in (join, leave):
        with pytest.raises(BindError, match=reason) as caught:
            call(sock, MulticastGroup("239.1.2.3"))
        assert caught.value.errno == number


# -- other platforms -------------------------------------------------------------------------------


def test_sources_are_known_on_linux_only(receiver: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(multicast, "_ON_LINUX", False)
    with pytest.raises(OptionError, match="a group with a source can be joined on Linux only"):
        join(receiver, MulticastGroup("232.1.2.3", source="127.0.0.1"))


def test_membership_on_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(multicast, "_ON_WINDOWS", True)
    group = socket.inet_aton("239.1.2.3")
    assert multicast._ipv4_membership("239.1.2.3", "Ethernet", 5) == group + bytes([0, 0, 0, 5])
    assert multicast._ipv4_membership("239.1.2.3", "127.0.0.1", 0) == group + bytes([127, 0, 0, 1])
