from __future__ import annotations

import errno
import os
import socket
import subprocess
import sys
import tempfile
import textwrap
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from asyncserver import adopted_sockets, datagram_sockets, ip_sockets, systemd
from asyncserver.addresses import (
    DatagramAddress,
    FDAddress,
    SystemdAddress,
    UDPAddress,
    UnixDatagramAddress,
)
from asyncserver.adopted_sockets import adopt_datagram_descriptor, adopt_datagram_duplicate
from asyncserver.datagram_options import DatagramOptions, MulticastGroup
from asyncserver.datagram_sockets import DatagramSocket, open_datagram_sockets
from asyncserver.errors import BindError, OptionError

LINUX = sys.platform.startswith("linux")
needs_ipv6 = pytest.mark.skipif(not ip_sockets.has_ipv6(), reason="this machine has no IPv6")
LOOPBACK = next(name for _, name in socket.if_nameindex() if name.startswith("lo"))
GROUP = MulticastGroup("239.255.77.1", "127.0.0.1")
Open = Callable[..., list[DatagramSocket]]


@pytest.fixture
def directory() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="u") as directory:
        yield Path(directory)


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def opened(stack: ExitStack) -> Open:
    def open_and_keep(*addresses: DatagramAddress, **options: Any) -> list[DatagramSocket]:
        found = open_datagram_sockets(addresses, DatagramOptions(**options))
        for bound in found:
            stack.callback(bound.release)
        return found

    return open_and_keep


def bound_socket(host: str = "127.0.0.1") -> socket.socket:
    sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind((host, 0))
    return sock


def pass_by_systemd(monkeypatch: pytest.MonkeyPatch, **named: socket.socket) -> None:
    descriptors = {name: (sock.fileno(),) for name, sock in named.items()}
    monkeypatch.setattr(systemd, "_taken", systemd.PassedDescriptors(descriptors))


def is_member(sock: socket.socket, group: MulticastGroup = GROUP) -> bool:
    """Whether the socket is in the group: whoever is cannot join again, and whoever is not can."""
    request = socket.inet_aton(group.group) + socket.inet_aton(str(group.interface))
    try:
        sock.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, request)
    except OSError as error:
        return error.errno == errno.EADDRINUSE
    sock.setsockopt(socket.IPPROTO_IP, socket.IP_DROP_MEMBERSHIP, request)
    return False


# -- all kinds -------------------------------------------------------------------------------------


@needs_ipv6
def test_addresses_of_every_kind_in_their_order(
    directory: Path, opened: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    own, passed = bound_socket(), bound_socket()
    own_port, passed_port = own.getsockname()[1], passed.getsockname()[1]
    pass_by_systemd(monkeypatch, log=passed)
    requested: list[DatagramAddress] = [
        UnixDatagramAddress(f"{directory}/s", mode=0o600),
        UDPAddress("", 0),
        FDAddress(own.fileno()),
        SystemdAddress("log"),
    ]
    found = opened(*requested)
    own.detach()
    port = found[1].socket.getsockname()[1]
    assert [bound.address for bound in found] == [
        UnixDatagramAddress(f"{directory}/s", mode=0o600),
        UDPAddress("0.0.0.0", port),
        UDPAddress("::", port),
        UDPAddress("127.0.0.1", own_port),
        UDPAddress("127.0.0.1", passed_port),
    ]
    assert [requested.index(bound.requested) for bound in found] == [0, 1, 1, 2, 3]
    assert [bound.is_adopted for bound in found] == [False, False, False, True, True]
    assert [bound.file is not None for bound in found] == [True, False, False, False, False]
    for bound in found:
        assert bound.socket.type == socket.SOCK_DGRAM
        assert not bound.socket.getblocking()
        assert not bound.socket.get_inheritable()
    passed.close()


def test_no_addresses() -> None:
    assert open_datagram_sockets([]) == []


def test_representation_is_for_people(opened: Open) -> None:
    (bound,) = opened(UDPAddress("127.0.0.1"))
    assert "_releasing" not in repr(bound)
    assert "127.0.0.1" in repr(bound)


# -- all or nothing --------------------------------------------------------------------------------


def test_failure_closes_and_unlinks_what_was_opened_before(directory: Path) -> None:
    with bound_socket() as blocker, bound_socket() as mine:
        taken = UDPAddress("127.0.0.1", blocker.getsockname()[1])
        with pytest.raises(BindError, match="in use"):
            open_datagram_sockets(
                [
                    UDPAddress("127.0.0.1"),
                    UnixDatagramAddress(f"{directory}/s"),
                    FDAddress(mine.fileno()),
                    taken,
                ]
            )
        assert os.listdir(directory) == []
        mine.sendto(b"x", mine.getsockname())  # open as before
        assert mine.recv(10) == b"x"


def test_interruption_closes_too(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(datagram_sockets, "open_udp_sockets", interrupt)
    with pytest.raises(KeyboardInterrupt):
        open_datagram_sockets([UnixDatagramAddress(f"{directory}/s"), UDPAddress("127.0.0.1")])
    assert os.listdir(directory) == []


def test_same_descriptor_twice() -> None:
    with bound_socket() as sock:
        twice = FDAddress(sock.fileno())
        with pytest.raises(BindError, match="the descriptor is given twice"):
            open_datagram_sockets([twice, twice])


def test_failing_descriptor_of_several_with_one_name(monkeypatch: pytest.MonkeyPatch) -> None:
    with bound_socket() as good, socket.socket() as bad:
        descriptors = {"log": (good.fileno(), bad.fileno())}
        monkeypatch.setattr(systemd, "_taken", systemd.PassedDescriptors(descriptors))
        with pytest.raises(BindError, match="a stream socket"):
            open_datagram_sockets([SystemdAddress("log")])
        os.fstat(good.fileno())


# -- the end ---------------------------------------------------------------------------------------


def test_release_closes_and_unlinks_once(directory: Path, opened: Open) -> None:
    udp, unix = opened(UDPAddress("127.0.0.1"), UnixDatagramAddress(f"{directory}/s"))
    threads = [threading.Thread(target=unix.release) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    udp.release()
    udp.release()
    assert udp.socket.fileno() == unix.socket.fileno() == -1
    assert os.listdir(directory) == []
    opened(udp.address)  # the port is free


def test_adopted_path_stays(directory: Path, opened: Open) -> None:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    sock.bind(f"{directory}/s")
    (bound,) = opened(FDAddress(sock.detach()))
    assert bound.address == UnixDatagramAddress(f"{directory}/s")
    bound.release()
    assert os.listdir(directory) == ["s"]


def test_adopted_descriptor_can_be_abandoned() -> None:
    with bound_socket() as sock:
        (bound,) = open_datagram_sockets([FDAddress(sock.fileno())])
        bound.abandon()
        os.fstat(sock.fileno())


def test_import_on_a_platform_that_lacks_what_this_one_has() -> None:
    code = """
    import socket
    for name in dir(socket):
        if name.startswith(("AF_UNIX", "SO_REUSEPORT", "IPV6_", "IP_", "TCP_", "SCM_", "MSG_")):
            delattr(socket, name)
    import asyncserver.datagram_sockets, asyncserver.sockets
    """
    command = [sys.executable, "-W", "error", "-c", textwrap.dedent(code)]
    subprocess.run(command, check=True, cwd=Path(__file__).parents[2])


# -- adopting --------------------------------------------------------------------------------------


def adopt(sock: socket.socket, **options: Any) -> tuple[socket.socket, DatagramAddress]:
    """Adopt the descriptor of ``sock``, which forgets it; after an error ``sock`` has it still."""
    descriptor = sock.fileno()
    adopted = adopt_datagram_descriptor(descriptor, FDAddress(descriptor), DatagramOptions(**options))
    sock.detach()
    return adopted


def test_bound_socket_is_adopted(stack: ExitStack) -> None:
    original = bound_socket()
    descriptor, port = original.fileno(), original.getsockname()[1]
    original.set_inheritable(True)
    adopted, address = adopt(original)
    stack.enter_context(adopted)
    assert adopted.fileno() == descriptor
    assert address == UDPAddress("127.0.0.1", port)
    assert not adopted.getblocking()
    assert not adopted.get_inheritable()


@needs_ipv6
@pytest.mark.parametrize("dual_stack", [True, None])
def test_ipv6_socket_tells_whether_it_is_dual(dual_stack: bool | None, stack: ExitStack) -> None:
    original = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    original.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, not dual_stack)
    original.bind(("::", 0))
    port = original.getsockname()[1]
    adopted, address = adopt(original)
    stack.enter_context(adopted)
    assert address == UDPAddress("::", port, dual_stack=dual_stack)


@needs_ipv6
def test_address_that_ours_have_no_words_for(stack: ExitStack) -> None:
    original = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    original.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    original.bind(("::ffff:127.0.0.1", 0))
    descriptor = original.fileno()
    adopted, address = adopt(original)
    stack.enter_context(adopted)
    assert address == FDAddress(descriptor)


@pytest.mark.skipif(not LINUX, reason="abstract names are Linux's")
def test_abstract_unix_socket(stack: ExitStack) -> None:
    original = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    original.bind(f"\0asyncserver-test-{os.getpid()}")
    adopted, address = adopt(original)
    stack.enter_context(adopted)
    assert address == UnixDatagramAddress(f"@asyncserver-test-{os.getpid()}")


def test_what_its_maker_has_set_stays_unless_asked_for(stack: ExitStack) -> None:
    original = bound_socket()
    original.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL, 7)
    original.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
    adopted, _ = adopt(original)
    stack.enter_context(adopted)
    assert adopted.getsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL) == 7
    assert adopted.getsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST)
    again, _ = adopt_datagram_duplicate(
        adopted.fileno(), SystemdAddress(), DatagramOptions(multicast_ttl=9, receive_buffer=50_000)
    )
    stack.enter_context(again)
    assert again.getsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL) == 9
    assert again.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) == 50_000 * (2 if LINUX else 1)


def assert_refused(sock: socket.socket, reason: str, number: int) -> None:
    with sock:
        descriptor = sock.fileno()
        with pytest.raises(BindError, match=reason) as caught:
            adopt(sock)
        assert caught.value.errno == number
        assert str(caught.value).startswith(
            f"cannot listen on fd://{descriptor}: descriptor {descriptor} is "
        )
        os.fstat(descriptor)  # open as before


def test_stream_sockets() -> None:
    needed = r"is a stream socket; a datagram socket \(UDP or Unix\) is needed"
    assert_refused(socket.create_server(("127.0.0.1", 0)), needed, errno.EPROTOTYPE)
    assert_refused(socket.socket(socket.AF_UNIX), needed, errno.EPROTOTYPE)


def test_unbound_sockets() -> None:
    for family in (socket.AF_INET, socket.AF_UNIX):
        sock = socket.socket(family, socket.SOCK_DGRAM)
        assert_refused(sock, "a socket that is not bound to an address", errno.EINVAL)


def test_connected_sockets() -> None:
    with bound_socket() as peer:
        sock = bound_socket()
        sock.connect(peer.getsockname())
        assert_refused(sock, "a datagram socket that is connected to one peer", errno.EISCONN)
    one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with other:
        assert_refused(one, "a datagram socket that is connected to one peer", errno.EISCONN)


@pytest.mark.skipif(not LINUX, reason="sockets that only Linux has")
def test_sockets_of_other_kinds() -> None:
    netlink = socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM)
    assert_refused(netlink, "family AF_NETLINK and type SOCK_DGRAM", errno.EPROTOTYPE)


@pytest.mark.skipif(not LINUX, reason="elsewhere a socket does not tell its protocol")
def test_datagram_socket_of_another_protocol(monkeypatch: pytest.MonkeyPatch) -> None:
    # Such as ICMP's, which few machines let anybody make.
    monkeypatch.setattr(adopted_sockets, "_DATAGRAM_PROTOCOLS", frozenset({socket.IPPROTO_ICMP}))
    assert_refused(bound_socket(), "type SOCK_DGRAM, protocol 17", errno.EPROTOTYPE)


def test_what_is_no_socket_or_not_open() -> None:
    reading, writing = os.pipe()
    with pytest.raises(BindError, match="is a pipe, not a socket"):
        open_datagram_sockets([FDAddress(reading)])
    os.close(reading)
    os.close(writing)
    with pytest.raises(BindError, match="descriptor 9999 is not open"):
        open_datagram_sockets([FDAddress(9999)])


def test_option_that_fails_leaves_the_descriptor_open() -> None:
    with bound_socket() as sock:
        with pytest.raises(BindError, match="this machine has no interface nosuch0"):
            open_datagram_sockets([FDAddress(sock.fileno())], DatagramOptions(multicast_interface="nosuch0"))
        os.fstat(sock.fileno())


def test_interruption_leaves_the_descriptor_open(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(adopted_sockets, "configure_datagrams", interrupt)
    with bound_socket() as sock:
        with pytest.raises(KeyboardInterrupt):
            open_datagram_sockets([FDAddress(sock.fileno())])
        os.fstat(sock.fileno())


# -- groups ----------------------------------------------------------------------------------------


@needs_ipv6
def test_groups_are_joined_on_every_socket_of_their_family(opened: Open) -> None:
    one, two, six = opened(UDPAddress("127.0.0.1"), UDPAddress("0.0.0.0"), UDPAddress("::1"), groups=(GROUP,))
    assert is_member(one.socket)
    assert is_member(two.socket)
    if LINUX:  # where an IPv6 socket can be a member of groups of IPv4
        assert not is_member(six.socket)


@needs_ipv6
def test_group_that_concerns_no_socket(directory: Path) -> None:
    addresses: list[DatagramAddress] = [UDPAddress("::1"), UnixDatagramAddress(f"{directory}/s")]
    with pytest.raises(OptionError, match=r"groups='239.255.77.1%127.0.0.1': none of the sockets is of IPv4"):
        open_datagram_sockets(addresses, DatagramOptions(groups=(GROUP,)))
    assert os.listdir(directory) == []


def test_group_that_cannot_be_joined_undoes_everything() -> None:
    absent = MulticastGroup("239.255.77.1", "nosuch0")
    with bound_socket() as mine:
        with pytest.raises(BindError, match=r"239.255.77.1%nosuch0: this machine has no interface nosuch0"):
            open_datagram_sockets([FDAddress(mine.fileno())], DatagramOptions(groups=(GROUP, absent)))
        assert not is_member(mine)


def test_group_that_is_given_twice_in_two_forms() -> None:
    index = socket.if_nametoindex(LOOPBACK)
    twice = (MulticastGroup(GROUP.group, LOOPBACK), MulticastGroup(GROUP.group, index))
    with pytest.raises(BindError, match="the socket has joined this group already"):
        open_datagram_sockets([UDPAddress("127.0.0.1")], DatagramOptions(groups=twice))


def test_adopted_socket_may_be_a_member_already(monkeypatch: pytest.MonkeyPatch) -> None:
    with bound_socket() as passed:
        pass_by_systemd(monkeypatch, log=passed)
        for _ in range(2):
            (bound,) = open_datagram_sockets([SystemdAddress("log")], DatagramOptions(groups=(GROUP,)))
            bound.release()
        assert is_member(passed)
        absent = MulticastGroup("239.255.77.1", "nosuch0")
        with pytest.raises(BindError, match="nosuch0"):
            open_datagram_sockets([SystemdAddress("log")], DatagramOptions(groups=(GROUP, absent)))
        assert is_member(passed)  # what was joined before is not undone
