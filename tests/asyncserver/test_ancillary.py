from __future__ import annotations

import errno
import os
import random
import socket
import struct
import sys
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from asyncserver import ancillary, ip_sockets
from asyncserver.ancillary import (
    IP_PKTINFO,
    IPV4_INFO,
    IPV6_INFO,
    IPV6_PKTINFO,
    NetworkError,
    PacketInfo,
    kernel_drops,
    parse_ancillary,
    parse_network_error,
    request_ancillary,
    source_control,
)
from asyncserver.endpoints import IPEndpoint
from asyncserver.peers import PeerCredentials

LINUX = sys.platform.startswith("linux")
needs_linux = pytest.mark.skipif(not LINUX, reason="the numbers are Linux's")
needs_ipv6 = pytest.mark.skipif(not ip_sockets.has_ipv6(), reason="this machine has no IPv6")

IPV4, IPV6 = socket.IPPROTO_IP, socket.IPPROTO_IPV6
IP_RECVERR, IPV6_RECVERR, SO_TIMESTAMPNS, SCM_CREDENTIALS = 11, 25, 35, 2
Message = tuple[int, int, bytes]


def ipv4_info(interface: int, source: str, local: str) -> Message:
    return IPV4, IP_PKTINFO, IPV4_INFO.pack(interface, socket.inet_aton(source), socket.inet_aton(local))


def ipv6_info(interface: int, local: str) -> Message:
    return IPV6, IPV6_PKTINFO, IPV6_INFO.pack(socket.inet_pton(socket.AF_INET6, local), interface)


def extended_error(number: int, origin: int = 2) -> bytes:
    return struct.pack("=IBBBBII", number, origin, 3, 3, 0, 0, 0) + bytes(16)


# What stands beside a packet.


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        (ipv4_info(2, "10.0.0.1", "10.0.0.1"), PacketInfo("10.0.0.1", "10.0.0.1", 2)),
        (ipv4_info(2, "10.0.0.1", "239.1.2.3"), PacketInfo("239.1.2.3", "10.0.0.1", 2)),
        (ipv4_info(2, "10.0.0.1", "10.0.0.255"), PacketInfo("10.0.0.255", "10.0.0.1", 2)),
        (ipv4_info(0, "0.0.0.0", "10.0.0.1"), PacketInfo("10.0.0.1", "10.0.0.1", 0)),
        (ipv4_info(0, "0.0.0.0", "239.1.2.3"), PacketInfo("239.1.2.3", "0.0.0.0", 0)),
        (ipv4_info(0, "0.0.0.0", "255.255.255.255"), PacketInfo("255.255.255.255", "0.0.0.0", 0)),
        (ipv6_info(3, "fd00::1"), PacketInfo("fd00::1", "fd00::1", 3)),
        (ipv6_info(3, "fe80::1"), PacketInfo("fe80::1", "fe80::1", 3)),
        (ipv6_info(3, "ff02::1"), PacketInfo("ff02::1", "::", 3)),
        (ipv6_info(3, "::ffff:10.0.0.1"), PacketInfo("::ffff:10.0.0.1", "::ffff:10.0.0.1", 3)),
        (ipv6_info(3, "::ffff:239.1.2.3"), PacketInfo("::ffff:239.1.2.3", "::ffff:0.0.0.0", 3)),
        (ipv6_info(3, "::ffff:255.255.255.255"), PacketInfo("::ffff:255.255.255.255", "::ffff:0.0.0.0", 3)),
    ],
)
def test_where_a_packet_was_sent_to(message: Message, expected: PacketInfo) -> None:
    assert parse_ancillary([message]) == expected


@pytest.mark.parametrize(
    ("family", "message"),
    [
        (socket.AF_INET, ipv4_info(2, "10.0.0.1", "239.1.2.3")),
        (socket.AF_INET, ipv4_info(2, "10.0.0.1", "10.0.0.1")),
        (socket.AF_INET6, ipv6_info(3, "fd00::1")),
        (socket.AF_INET6, ipv6_info(3, "::ffff:10.0.0.1")),
    ],
)
def test_answers_are_told_to_leave_from_there(family: int, message: Message) -> None:
    info = parse_ancillary([message])
    (composed,) = source_control(family, info)
    again = parse_ancillary([composed])
    assert again.interface == info.interface
    if family == socket.AF_INET6:
        assert again.local == again.answer_from == info.answer_from
    else:
        assert again.answer_from == info.answer_from
        assert again.local == "0.0.0.0"  # The kernel takes no notice of it.


def test_without_a_source_the_kernel_chooses() -> None:
    assert source_control(socket.AF_INET, PacketInfo()) == [(IPV4, IP_PKTINFO, bytes(12))]
    assert source_control(socket.AF_INET6, PacketInfo()) == [(IPV6, IPV6_PKTINFO, bytes(20))]
    assert source_control(-1, PacketInfo("10.0.0.1", "10.0.0.1", 2)) == []


@needs_linux
def test_when_a_packet_came_and_from_whom() -> None:
    time = (socket.SOL_SOCKET, SO_TIMESTAMPNS, struct.pack("@ll", 1_700_000_000, 250_000_000))
    peer = (socket.SOL_SOCKET, SCM_CREDENTIALS, struct.pack("=iII", 12, 1000, 100))
    info = parse_ancillary([time, ipv4_info(1, "127.0.0.1", "127.0.0.1"), peer])
    assert info == ("127.0.0.1", "127.0.0.1", 1, 1_700_000_000.25, PeerCredentials(12, 1000, 100))
    assert parse_ancillary([(*time[:2], bytes(16))]).received_at is None


@needs_linux
def test_nobody_with_no_process_is_not_known() -> None:
    def credentials(*values: int) -> PeerCredentials | None:
        return parse_ancillary(
            [(socket.SOL_SOCKET, SCM_CREDENTIALS, struct.pack("=iII", *values))]
        ).credentials

    assert credentials(0, 65534, 65534) is None
    assert credentials(12, 65534, 65534) == (12, 65534, 65534)
    assert credentials(0, 0, 0) == (0, 0, 0)


KINDS = [
    (IPV4, IP_PKTINFO),
    (IPV6, IPV6_PKTINFO),
    (socket.SOL_SOCKET, SO_TIMESTAMPNS),
    (socket.SOL_SOCKET, SCM_CREDENTIALS),
    (socket.SOL_SOCKET, 1),
    (IPV4, IP_RECVERR),
    (IPV6, IPV6_RECVERR),
    (99, 99),
    (-1, -1),
]


@pytest.mark.parametrize(("level", "kind"), KINDS)
@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
def test_whatever_the_kernel_writes_raises_nothing(level: int, kind: int, family: int) -> None:
    randomness = random.Random(level * 100 + kind)
    sockaddrs: list[Any] = [("127.0.0.1", 9), ("::1", 9, 0, 0), None, "", b"", b"\0x"]
    for size in range(48):
        for content in (bytes(size), b"\xff" * size, randomness.randbytes(size)):
            assert isinstance(parse_ancillary([(level, kind, content)]), PacketInfo)
            for sockaddr in sockaddrs:
                if isinstance(sockaddr, tuple) and len(sockaddr) != (2 if family == socket.AF_INET else 4):
                    continue
                parse_network_error(family, sockaddr, [(level, kind, content)])
    assert parse_ancillary([(level, kind, b"")] * 2) == PacketInfo()
    assert parse_ancillary([]) == PacketInfo()


# Errors.


@pytest.mark.parametrize(
    ("family", "sockaddr", "message", "level", "kind", "expected"),
    [
        (
            socket.AF_INET,
            ("127.0.0.1", 9),
            ipv4_info(1, "127.0.0.2", "127.0.0.2"),
            IPV4,
            IP_RECVERR,
            (IPEndpoint("127.0.0.1", 9), "127.0.0.2"),
        ),
        (
            socket.AF_INET6,
            ("::1", 9, 0, 0),
            ipv6_info(1, "::1"),
            IPV6,
            IPV6_RECVERR,
            (IPEndpoint("::1", 9), "::1"),
        ),
        (
            socket.AF_INET6,
            ("::ffff:127.0.0.1", 9, 0, 0),
            ipv6_info(1, "::ffff:127.0.0.2"),
            IPV6,
            IPV6_RECVERR,
            (IPEndpoint("127.0.0.1", 9), "::ffff:127.0.0.2"),
        ),
    ],
)
def test_errors_say_what_happened_to_whose_packet(
    family: int, sockaddr: Any, message: Message, level: int, kind: int, expected: tuple[IPEndpoint, str]
) -> None:
    error = level, kind, extended_error(errno.ECONNREFUSED)
    for data in ([message, error], [error, message]):
        found = parse_network_error(family, sockaddr, iter(data))
        assert found == NetworkError(*expected, errno.ECONNREFUSED, True)
    assert parse_network_error(family, sockaddr, [error]) == (expected[0], None, errno.ECONNREFUSED, True)
    assert parse_network_error(family, sockaddr, [message]) is None
    assert parse_network_error(family, None, [message, error]) is None


@pytest.mark.parametrize(("origin", "remote"), [(0, False), (1, False), (2, True), (3, True), (4, False)])
def test_errors_say_who_has_reported_them(origin: int, remote: bool) -> None:
    content = extended_error(errno.EMSGSIZE, origin)
    found = parse_network_error(socket.AF_INET, ("127.0.0.1", 9), [(IPV4, IP_RECVERR, content)])
    assert found == (IPEndpoint("127.0.0.1", 9), None, errno.EMSGSIZE, remote)


# Asking for it.


class Recorder:
    """A socket that keeps what it was set to; one without ``recvmsg``, if so told."""

    def __init__(self, family: int, *, messages: bool = True) -> None:
        self.family = family
        self.options: dict[tuple[int, int], int] = {}
        if messages:
            self.recvmsg = None

    def setsockopt(self, level: int, option: int, value: int) -> None:
        self.options[level, option] = value


FAMILIES = [socket.AF_INET, socket.AF_INET6, *([socket.AF_UNIX] if hasattr(socket, "AF_UNIX") else [])]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("timestamps", [True, False])
def test_a_system_without_recvmsg_tells_nothing(family: int, timestamps: bool) -> None:
    sock: Any = Recorder(family, messages=False)
    assert request_ancillary(sock, timestamps=timestamps) == {"local", "received_at", "truncated", "errors"}
    assert sock.options == {}


def test_windows_has_a_recvmsg_that_tells_too_little(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ancillary, "sys", SimpleNamespace(platform="win32"))
    sock: Any = Recorder(socket.AF_INET)
    assert "truncated" in request_ancillary(sock, timestamps=True)
    assert sock.options == {}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("timestamps", [True, False])
def test_other_systems_tell_less(monkeypatch: pytest.MonkeyPatch, family: int, timestamps: bool) -> None:
    monkeypatch.setattr(ancillary, "_ON_LINUX", False)
    sock: Any = Recorder(family)
    missing = request_ancillary(sock, timestamps=timestamps)
    assert missing == {"errors", *(["received_at"] if timestamps else [])}
    assert len(sock.options) == (family != getattr(socket, "AF_UNIX", None))


@needs_linux
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("timestamps", [True, False])
def test_linux_tells_everything(family: int, timestamps: bool) -> None:
    if family == socket.AF_INET6 and not ip_sockets.has_ipv6():
        pytest.skip("this machine has no IPv6")
    with socket.socket(family, socket.SOCK_DGRAM) as sock:
        for wanted in (timestamps, not timestamps, timestamps):
            assert request_ancillary(sock, timestamps=wanted) == frozenset()
            assert sock.getsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS) == wanted


def test_what_is_no_socket_raises() -> None:
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.close()
    with pytest.raises(OSError, match=os.strerror(errno.EBADF)):
        request_ancillary(sock, timestamps=True)


# What the kernel drops.


@pytest.fixture
def udp() -> Iterator[socket.socket]:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        yield sock


@needs_linux
def test_the_kernel_tells_what_it_has_dropped(udp: socket.socket) -> None:
    assert kernel_drops(udp) == 0


def test_kernels_that_do_not_tell(udp: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    class Silent:
        family = socket.AF_INET

        def __init__(self, answer: bytes | None) -> None:
            self.answer = answer

        def getsockopt(self, *_: int) -> bytes:
            if self.answer is None:
                raise OSError(errno.ENOPROTOOPT, os.strerror(errno.ENOPROTOOPT))
            return self.answer

    for answer in (None, b"", bytes(32)):
        silent: Any = Silent(answer)
        assert kernel_drops(silent) is None
    if hasattr(socket, "AF_UNIX"):
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            assert kernel_drops(sock) is None
    monkeypatch.setattr(ancillary, "_ON_LINUX", False)
    assert kernel_drops(udp) is None
