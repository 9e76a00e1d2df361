from __future__ import annotations

import ctypes
import errno
import os
import select
import socket
import struct
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from asyncserver import ip_sockets, packets_mmsg
from asyncserver.ancillary import NetworkError
from asyncserver.endpoints import Endpoint, IPEndpoint, UnixEndpoint
from asyncserver.errors import AddressError, PacketTooLargeError, PeerUnreachableError, UnboundPeerError
from asyncserver.packets import BATCH, Packets, PlainPackets
from asyncserver.packets_mmsg import BatchedPackets, can_batch
from asyncserver.peers import endpoint_from_sockaddr
from tests.clients import hear_nobody
from tests.waiting import PATIENCE, wait_until_blocking

LINUX = sys.platform.startswith("linux")
needs_ipv6 = pytest.mark.skipif(not ip_sockets.has_ipv6(), reason="this machine has no IPv6")
needs_linux = pytest.mark.skipif(not LINUX, reason="only Linux tells this")
needs_unix = pytest.mark.skipif(not hasattr(socket, "AF_UNIX"), reason="this platform has no Unix sockets")
batches = pytest.mark.skipif(not LINUX, reason="recvmmsg(2) is Linux's")

LOOPBACK = next(index for index, name in socket.if_nameindex() if name.startswith("lo"))
SIZES = [0, 1, 64, 2_047, 2_048, 2_049, 65_507]

# Where the socket is bound, and where its clients are. IP_RECVTTL and such: linux/in.h, linux/in6.h.
BOUND = {"ipv4": "127.0.0.1", "ipv6": "::1", "dual4": "::", "dual6": "::", "wild4": "0.0.0.0", "wild6": "::"}
CLIENTS = {"ipv4": "127.0.0.1", "wild4": "127.0.0.1", "dual4": "127.0.0.1"}
_SO_TIMESTAMPNS, _SO_RXQ_OVFL = 35, 40
_IP_RECVTTL, _IPV6_RECVHOPLIMIT = 12, 51
# Those that have come before the socket was asked for more are treated apart.
_EARLY = [0, 3]


class Packet(NamedTuple):
    data: bytes
    origin: Any
    truncated: bool


def packet(owner: object, data: bytes, origin: Any, truncated: bool) -> Packet:
    assert owner == "owner"
    return Packet(data, origin, truncated)


class Site:
    """A bound socket, its ``Packets``, what they have reported, and clients."""

    def __init__(self, stack: ExitStack, directory: Path, kind: type[Packets], where: str) -> None:
        self.stack = stack
        self.directory = directory
        self.kind = kind
        self.where = where
        self.errors: list[NetworkError] = []
        self.sock = self._bound()
        self.open()

    def open(self, size: int = 65_535, *, timestamps: bool = True, number: int = 7) -> Packets:
        """Other ``Packets`` for the same socket."""
        self.packets = self.kind(
            self.sock, size, number=number, timestamps=timestamps, report=self.errors.append
        )
        return self.packets

    def socket(self, family: int) -> socket.socket:
        sock = self.stack.enter_context(socket.socket(family, socket.SOCK_DGRAM))
        sock.setblocking(False)
        return sock

    def _bound(self) -> socket.socket:
        if self.where == "unix":
            sock = self.socket(socket.AF_UNIX)
            sock.bind(str(self.directory / "server"))
            return sock
        host = BOUND[self.where]
        sock = self.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
        if ":" in host:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, not self.where.startswith("dual"))
        sock.bind((host, 0))
        return sock

    @property
    def port(self) -> int:
        return int(self.sock.getsockname()[1])

    @property
    def client_host(self) -> str:
        return CLIENTS.get(self.where, "::1")

    @property
    def address(self) -> Any:
        """Where clients send to."""
        return self.sock.getsockname() if self.where == "unix" else (self.client_host, self.port)

    def client(self, host: str | None = None) -> socket.socket:
        """Another socket, bound, that can wait."""
        if self.where == "unix":
            sock = self.socket(socket.AF_UNIX)
            sock.bind(str(self.directory / f"client{len(os.listdir(self.directory))}"))
        else:
            host = host or self.client_host
            sock = self.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
            sock.bind((host, 0))
        sock.settimeout(PATIENCE)
        return sock

    def endpoint(self, sock: socket.socket) -> Endpoint:
        return endpoint_from_sockaddr(sock.family, sock.getsockname())

    def receive(self, count: int) -> list[Packet]:
        """As many packets, and no more."""
        found: list[Packet] = []

        def complete() -> bool:
            batch = self.packets.receive(packet, "owner")
            assert len(batch) <= BATCH
            found.extend(batch)
            return len(found) >= count

        wait_until_blocking(complete, what=lambda: f"{count} packets, of which {len(found)} came")
        assert len(found) == count
        assert self.packets.receive(packet, "owner") == []
        return found

    def exchange(self, client: socket.socket, *messages: bytes) -> list[Packet]:
        for message in messages:
            client.sendto(message, self.address)
        return self.receive(len(messages))

    def warm_up(self) -> None:
        """Let the early packets be over."""
        self.exchange(self.client(), b"early")

    def put(self, data: bytes, origin: Any) -> bool:
        taken = self.packets.put(data, origin)
        self.packets.flush()
        return taken

    def dead(self) -> IPEndpoint:
        """Where nobody listens."""
        sock = self.client()
        endpoint = self.endpoint(sock)
        hear_nobody(sock)
        assert isinstance(endpoint, IPEndpoint)
        return endpoint

    def take_errors(self, count: int) -> list[NetworkError]:
        def complete() -> bool:
            self.packets.take_errors()
            return len(self.errors) >= count

        wait_until_blocking(complete, what=lambda: f"{count} errors, of which {len(self.errors)} came")
        return self.errors


def cases(*wheres: str) -> pytest.MarkDecorator:
    found = []
    for where in wheres:
        marks = [needs_unix] if where == "unix" else [needs_ipv6] if "6" in where or "dual" in where else []
        for kind in (PlainPackets, BatchedPackets):
            if where == "unix" and kind is BatchedPackets:
                continue
            own = [*marks, batches] if kind is BatchedPackets else marks
            name = f"{kind.__name__.removesuffix('Packets').lower()}-{where}"
            found.append(pytest.param((kind, where), marks=own, id=name))
    return pytest.mark.parametrize("site", found, indirect=True)


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def directory(stack: ExitStack) -> Path:
    return Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="p")))


@pytest.fixture
def site(request: pytest.FixtureRequest, stack: ExitStack, directory: Path) -> Site:
    kind, where = request.param
    return Site(stack, directory, kind, where)


everywhere = cases("ipv4", "ipv6", "dual4", "dual6", "unix")
by_ip = cases("ipv4", "ipv6", "dual4", "dual6")


class Script:
    """Lets the system calls that send fail as told: an errno; a number of packets; None does what it does."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, packets: Packets) -> None:
        self.steps: list[int | OSError | None] = []
        self.forever: int | None = None
        self.calls = 0
        self._send = packets._send
        self._sendmmsg = packets_mmsg._sendmmsg
        monkeypatch.setattr(packets, "_send", self._send_one)
        monkeypatch.setattr(packets_mmsg, "_sendmmsg", self._send_many)

    def fail(self, *numbers: int) -> None:
        self.steps += [OSError(number, os.strerror(number)) for number in numbers]

    def _step(self) -> int | None:
        self.calls += 1
        step = self.steps.pop(0) if self.steps else None
        if step is None and self.forever is not None:
            step = OSError(self.forever, os.strerror(self.forever))
        if isinstance(step, OSError):
            raise step
        return step

    def _send_one(self, *arguments: Any) -> None:
        self._step()
        self._send(*arguments)

    def _send_many(self, fd: int, address: int, count: int, flags: int) -> int:
        try:
            most = self._step()
        except OSError as error:
            ctypes.set_errno(error.errno or 0)
            return -1
        return int(self._sendmmsg(fd, address, count if most is None else min(most, count), flags))


def messages(count: int, size: int = 20) -> list[bytes]:
    return [f"{number}".encode().ljust(size, b".") for number in range(count)]


def arrived(client: socket.socket, count: int) -> list[bytes]:
    """As many packets as that, and no more."""
    found = [client.recv(65_536) for _ in range(count)]
    client.setblocking(False)
    with pytest.raises(BlockingIOError):
        client.recv(65_536)
    client.settimeout(PATIENCE)
    return found


# What comes, and what goes back.


@everywhere
@pytest.mark.parametrize("early", [True, False])
@pytest.mark.parametrize("size", SIZES)
def test_packets_of_every_size_come_and_go(site: Site, size: int, early: bool) -> None:
    if not early:
        site.warm_up()
    before = site.packets.received, site.packets.bytes_received
    client = site.client()
    data = os.urandom(size)
    (came,) = site.exchange(client, data)
    assert came.data == data
    assert type(came.data) is bytes
    assert not came.truncated
    assert site.put(data[::-1], came.origin)
    answer, sender = client.recvfrom(65_536)
    assert answer == data[::-1]
    assert sender[:2] == site.address[:2]
    packets = site.packets
    assert (packets.received - before[0], packets.bytes_received - before[1]) == (1, size)
    assert (packets.sent, packets.bytes_sent, packets.send_errors) == (1, size, 0)
    assert packets.truncated == 0
    assert not packets.blocked
    assert not site.errors


@by_ip
def test_ipv6_has_room_for_a_little_more_than_ipv4(site: Site) -> None:
    client = site.client()
    size = 65_527 if ":" in site.client_host else 65_507
    (came,) = site.exchange(client, bytes(size))
    assert len(came.data) == size
    assert site.put(bytes(size), came.origin)
    assert len(client.recv(65_536)) == size
    with pytest.raises(PacketTooLargeError):
        site.put(bytes(size + 1), came.origin)
    assert (site.packets.sent, site.packets.send_errors) == (1, 1)
    assert site.put(b"on it goes", came.origin)
    assert client.recv(100) == b"on it goes"
    assert not site.errors  # Nothing has come back: the call itself has failed.


@everywhere
def test_small_and_large_ones_in_one_batch(site: Site) -> None:
    client = site.client()
    large = 20_000 if site.where == "unix" else 65_507  # A quarter of the sender's buffer.
    sent = [os.urandom(size) for size in (1, 2_049, 0, large, 64, 2_048, 5_000)]
    for _ in range(2):  # early; as always
        came = site.exchange(client, *sent)
        assert [each.data for each in came] == sent
    assert site.packets.received == 2 * len(sent)
    assert site.packets.bytes_received == 2 * sum(map(len, sent))
    site.packets.corked = True
    for each in came:
        assert site.packets.put(each.data[::-1], each.origin)
    site.packets.corked = False
    site.packets.flush()
    assert arrived(client, len(sent)) == [data[::-1] for data in sent]
    assert site.packets.sent == len(sent)
    assert site.packets.bytes_sent == sum(map(len, sent))


@by_ip
@pytest.mark.parametrize("early", [True, False])
def test_more_than_a_batch(site: Site, early: bool) -> None:
    if not early:
        site.warm_up()
    clients = [site.client() for _ in range(3)]
    sent = messages(2 * BATCH + 5)
    for number, data in enumerate(sent):
        clients[number % 3].sendto(data, site.address)
    assert len(site.packets.receive(packet, "owner")) == BATCH
    site.packets.received -= BATCH
    came = site.receive(len(sent) - BATCH)
    assert [each.data for each in came] == sent[BATCH:]
    for number, each in enumerate(came):
        client = clients[(BATCH + number) % 3]
        assert site.packets.peer_of(each.origin) == site.endpoint(client)
        assert site.put(each.data, each.origin)
    for number, data in enumerate(sent[BATCH:]):
        assert clients[(BATCH + number) % 3].recv(100) == data


@everywhere
def test_nothing_comes_of_nothing(site: Site) -> None:
    assert site.packets.receive(packet, "owner") == []
    site.packets.flush()
    assert (site.packets.received, site.packets.sent) == (0, 0)


@everywhere
@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_whatever_holds_bytes_can_be_sent(site: Site, kind: type) -> None:
    client = site.client()
    (came,) = site.exchange(client, b"request")
    for size in (0, 10, 3_000):
        assert site.put(kind(bytes(size)), came.origin)
        assert client.recv(5_000) == bytes(size)
    numbers = memoryview(struct.pack("=1000I", *range(1_000))).cast("I")
    assert site.put(numbers, came.origin)  # type: ignore[arg-type]
    assert client.recv(5_000) == numbers.tobytes()
    assert site.packets.bytes_sent == 3_010 + 4_000
    for wrong in ("text", None, 5):
        with pytest.raises(TypeError):
            site.put(wrong, came.origin)  # type: ignore[arg-type]
    assert site.put(b"after all", came.origin)
    assert arrived(client, 1) == [b"after all"]


@everywhere
def test_what_is_put_may_be_changed_afterwards(site: Site) -> None:
    client = site.client()
    (came,) = site.exchange(client, b"request")
    data = bytearray(b"before")
    site.packets.corked = True
    site.packets.put(data, came.origin)
    data[:] = b"after!"
    site.packets.flush()
    assert client.recv(100) == b"before"


# The largest packet.


@everywhere
@pytest.mark.parametrize("early", [True, False])
@pytest.mark.parametrize("limit", [1, 100, 2_047, 2_048, 2_049, 3_000])
def test_packets_beyond_the_limit_are_cut_off(site: Site, limit: int, early: bool) -> None:
    if not early:
        site.warm_up()
    site.open(limit)
    data = os.urandom(limit + 1_000)
    sizes = [limit - 1, limit, limit + 1, limit + 1_000, 0]
    came = site.exchange(site.client(), *(data[:size] for size in sizes))
    assert [each.data for each in came] == [data[: min(size, limit)] for size in sizes]
    assert [each.truncated for each in came] == [size > limit for size in sizes]
    assert site.packets.truncated == 2
    assert site.packets.received == len(sizes)
    assert site.packets.bytes_received == sum(min(size, limit) for size in sizes)


@everywhere
def test_the_limit_can_change_at_any_time(site: Site) -> None:
    client = site.client()
    data = os.urandom(10_000)
    for count, limit in enumerate((65_535, 10, 2_048, 5_000, 9_999, 10_000), 1):
        site.packets.max_packet_size = limit
        (came,) = site.exchange(client, data)
        assert came == (data[:limit], came.origin, limit < len(data))
        assert site.put(data[:limit], came.origin)
        assert client.recv(65_536) == data[:limit]
        assert site.packets.received == count


# What is said beside a packet.


@by_ip
@pytest.mark.parametrize("timestamps", [True, False])
def test_who_where_and_when(site: Site, timestamps: bool) -> None:
    site.open(timestamps=timestamps)
    client = site.client()
    for _ in range(2):  # early; as always
        began = time.time()
        (came,) = site.exchange(client, b"request")
        assert site.packets.peer_of(came.origin) == site.endpoint(client)
        info = site.packets.info_of(came.origin)
        host = site.client_host
        assert info.local == (f"::ffff:{host}" if site.where == "dual4" else host)
        assert info.answer_from == info.local
        assert info.credentials is None
        if LINUX and timestamps:
            assert info.received_at is not None
            assert began - 0.1 < info.received_at < time.time() + 0.1
        else:
            assert info.received_at is None
    assert info.interface == LOOPBACK
    assert "local" not in site.packets.missing


@cases("unix")
@needs_linux
def test_who_sent_to_a_unix_socket(site: Site) -> None:
    client = site.client()
    (came,) = site.exchange(client, b"request")
    assert site.packets.peer_of(came.origin) == UnixEndpoint(client.getsockname())
    info = site.packets.info_of(came.origin)
    assert info.credentials == (os.getpid(), os.geteuid(), os.getegid())
    assert info.local is None
    assert info.received_at is not None


@needs_unix
@needs_linux
def test_abstract_names_of_unix_peers(stack: ExitStack, directory: Path) -> None:
    site = Site(stack, directory, PlainPackets, "unix")
    client = site.socket(socket.AF_UNIX)
    name = f"\0{directory.name}"
    client.bind(name)
    client.settimeout(PATIENCE)
    (came,) = site.exchange(client, b"request")
    peer = UnixEndpoint(f"@{directory.name}")
    assert site.packets.peer_of(came.origin) == peer
    site.put(b"reply", came.origin)
    site.put(b"more", site.packets.origin_to(peer))
    assert arrived(client, 2) == [b"reply", b"more"]


@needs_unix
@needs_linux
def test_nobody_is_named_for_what_came_before_credentials_were_asked_for(directory: Path) -> None:
    with ExitStack() as stack, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        site = Site(stack, directory, PlainPackets, "unix")
        sock.setblocking(False)
        sock.bind(str(directory / "early"))
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as client:
            client.sendto(b"early", str(directory / "early"))
        site.sock = sock
        (came,) = (site.open(), site.receive(1))[1]
        assert site.packets.info_of(came.origin).credentials is None


@cases("unix")
@pytest.mark.skipif(not hasattr(socket, "send_fds"), reason="this platform passes no descriptors")
def test_descriptors_that_a_peer_passes_are_closed(site: Site) -> None:
    client = site.client()
    client.connect(site.address)
    before = os.listdir("/dev/fd")
    for count in (1, 3, 100):
        socket.send_fds(client, [b"look"], [0] * count)
    came = site.receive(3)
    assert [each.data for each in came] == [b"look"] * 3
    assert os.listdir("/dev/fd") == before


# From the address that was asked.


@cases("wild4", "dual4")
@pytest.mark.parametrize("size", [5, 3_000])
@pytest.mark.parametrize("early", [True, False])
def test_answers_come_from_the_address_that_was_asked(site: Site, size: int, early: bool) -> None:
    if not early:
        site.warm_up()
    client = site.client()
    asked = [(f"127.0.0.{number}", site.port) for number in (1, 2, 1, 3)]
    for target in asked:
        client.sendto(bytes(size), target)
    came = site.receive(len(asked))
    locals_ = [site.packets.info_of(each.origin).local or "" for each in came]
    assert [local.removeprefix("::ffff:") for local in locals_] == [host for host, _ in asked]
    site.packets.corked = True
    for each, target in zip(came, asked, strict=True):
        assert site.packets.put(str(target).encode().ljust(size), each.origin)
    site.packets.flush()
    for target in asked:
        data, sender = client.recvfrom(5_000)
        assert sender == target
        assert data.rstrip() == str(target).encode()


@pytest.mark.parametrize("kind", [PlainPackets, pytest.param(BatchedPackets, marks=batches)])
@pytest.mark.parametrize("count", [1, BATCH - 1, BATCH, BATCH + 1, 2 * BATCH])
def test_it_knows_the_address_for_packets_that_came_before_it(
    stack: ExitStack, directory: Path, kind: type[Packets], count: int
) -> None:
    """Before the server has begun, or before it was started: what waits in a socket that it adopts."""
    site = Site(stack, directory, kind, "wild4")
    client = site.client()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as adopted:
        adopted.setblocking(False)
        adopted.bind(("0.0.0.0", 0))
        target = ("127.0.0.5", adopted.getsockname()[1])
        for _ in range(count):
            client.sendto(b"early", target)
        site.sock = adopted
        site.open()
        for each in site.receive(count):
            assert site.packets.info_of(each.origin)[:2] == ("127.0.0.5", "127.0.0.5")
            assert site.put(b"reply", each.origin)
        assert [client.recvfrom(100) for _ in range(count)] == [(b"reply", target)] * count
        client.sendto(b"later", target)
        (came,) = site.receive(1)
        assert site.packets.info_of(came.origin).interface == LOOPBACK
        site.put(b"reply", came.origin)
        assert client.recvfrom(100) == (b"reply", target)


@cases("wild4", "dual4")
@pytest.mark.parametrize("size", [5, 3_000])
def test_answers_to_a_group_come_from_a_host(site: Site, size: int) -> None:
    membership = socket.inet_aton("239.255.77.9") + socket.inet_aton("127.0.0.1")
    try:
        site.sock.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, membership)
    except OSError as error:
        pytest.skip(f"no multicast on the loopback interface: {error}")
    client = site.client()
    client.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton("127.0.0.1"))
    for _ in range(2):  # early; as always
        client.sendto(b"anybody?", ("239.255.77.9", site.port))
        (came,) = site.receive(1)
        assert (site.packets.info_of(came.origin).local or "").endswith("239.255.77.9")
        assert site.put(bytes(size), came.origin)
        assert client.recvfrom(5_000) == (bytes(size), ("127.0.0.1", site.port))
    assert (site.packets.sent, site.packets.send_errors) == (2, 0)


@cases("wild4", "dual4")
@needs_linux
def test_answers_to_a_broadcast_come_from_a_host(site: Site) -> None:
    client = site.client()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
    for _ in range(2):  # early; as always
        client.sendto(b"anybody?", ("127.255.255.255", site.port))
        (came,) = site.receive(1)
        assert site.put(b"me", came.origin)
        assert client.recvfrom(100) == (b"me", ("127.0.0.1", site.port))
    assert (site.packets.sent, site.packets.send_errors) == (2, 0)


@cases("wild6", "dual6")
@pytest.mark.parametrize("size", [5, 3_000])
def test_answers_to_a_group_of_ipv6_come_from_a_host(site: Site, size: int) -> None:
    """The loopback interface has no groups of IPv6: the address is put into the origin."""
    client = site.client()
    (came,) = site.exchange(client, b"anybody?")
    local, group = (socket.inet_pton(socket.AF_INET6, host) for host in ("::1", "ff02::1234"))
    site.packets.corked = True
    for _ in range(2):
        assert site.packets.put(bytes(size), replaced_local(came.origin, local, group))
        assert site.packets.put(bytes(size), came.origin)
    site.packets.flush()
    assert arrived(client, 4) == [bytes(size)] * 4
    assert (site.packets.sent, site.packets.send_errors) == (4, 0)


def replaced_local(origin: Any, local: bytes, other: bytes) -> Any:
    if isinstance(origin, bytes):
        before, found, after = origin.rpartition(local)
        assert found
        return before + other + after
    sockaddr, ancillary = origin
    return sockaddr, [(level, kind, content.replace(local, other)) for level, kind, content in ancillary]


# Keys.


@by_ip
def test_keys_are_those_of_peer_and_local_address(site: Site) -> None:
    site.warm_up()
    first, second = site.client(), site.client()
    one, again = site.exchange(first, b"1", b"2")
    (other,) = site.exchange(second, b"3")
    key = site.packets.key_of
    assert key(one.origin) == key(again.origin)
    assert hash(key(one.origin)) == hash(key(again.origin))
    assert key(one.origin) != key(other.origin)
    for client, came in ((first, one), (second, other)):
        peer = site.endpoint(client)
        assert isinstance(peer, IPEndpoint)
        local = site.packets.info_of(came.origin).local
        assert site.packets.key_for(peer, local) == key(came.origin)
        assert site.packets.key_for(peer, None) != key(came.origin)
    before = key(one.origin)
    site.open(number=8)
    assert key(one.origin) == before
    assert site.packets.key_of(one.origin) != before


@cases("wild4", "dual4")
@pytest.mark.parametrize("early", [True, False])
def test_keys_tell_local_addresses_apart(site: Site, early: bool) -> None:
    if not early:
        site.warm_up()
    client = site.client()
    for host in ("127.0.0.1", "127.0.0.2", "127.0.0.1"):
        client.sendto(b"request", (host, site.port))
    first, second, third = (site.packets.key_of(each.origin) for each in site.receive(3))
    assert first == third
    assert first != second
    client.sendto(b"request", ("127.0.0.2", site.port))  # No longer early.
    assert [site.packets.key_of(each.origin) for each in site.receive(1)] == [second]


@cases("dual6")
def test_keys_tell_scopes_apart(site: Site) -> None:
    keys = {site.packets.key_for(IPEndpoint("fe80::1", 9, 0, scope), "fe80::2") for scope in (1, 2)}
    assert len(keys) == 2
    flows = {site.packets.key_for(IPEndpoint("fe80::1", 9, flow, 1), "fe80::2") for flow in (0, 5)}
    assert len(flows) == 1


@cases("unix")
def test_keys_of_unix_peers(site: Site) -> None:
    first, second = site.client(), site.client()
    one, again = site.exchange(first, b"1", b"2")
    (other,) = site.exchange(second, b"3")
    assert site.packets.key_of(one.origin) == site.packets.key_of(again.origin)
    assert site.packets.key_of(one.origin) != site.packets.key_of(other.origin)


# To third parties.


@everywhere
@pytest.mark.parametrize("size", [0, 10, 3_000])
def test_packets_to_anybody(site: Site, size: int) -> None:
    clients = [site.client() for _ in range(3)]
    site.packets.corked = True
    for client in clients:
        assert site.packets.put(bytes(size), site.packets.origin_to(site.endpoint(client)))
    site.packets.flush()
    for client in clients:
        data, sender = client.recvfrom(5_000)
        assert data == bytes(size)
        assert sender[:2] == site.address[:2]
    assert (site.packets.sent, site.packets.bytes_sent) == (3, 3 * size)


@cases("dual4")
def test_a_socket_for_both_families_sends_to_both(site: Site) -> None:
    for host in ("127.0.0.1", "::1"):
        client = site.client(host)
        origin = site.packets.origin_to(site.endpoint(client))
        assert site.packets.peer_of(origin) == site.endpoint(client)
        for size in (10, 3_000):
            assert site.put(bytes(size), origin)
            assert client.recv(5_000) == bytes(size)


@pytest.mark.parametrize(
    ("where", "peer", "complaint"),
    [
        ("ipv4", IPEndpoint("::1", 9), "is an IPv6 address"),
        ("ipv4", IPEndpoint("::ffff:127.0.0.1", 9), "is an IPv6 address"),
        ("ipv4", IPEndpoint("localhost", 9), "numeric"),
        ("ipv4", IPEndpoint("127.0.0.1", 65_536), "port"),
        ("ipv4", IPEndpoint("127.0.0.1", -1), "port"),
        ("ipv4", UnixEndpoint("/tmp/x"), "is a Unix socket"),
        ("ipv4", ("127.0.0.1", 9), "has to be an IPEndpoint"),
        ("ipv6", IPEndpoint("127.0.0.1", 9), "is an IPv4 address"),
        ("ipv6", IPEndpoint("fe80::1%lo", 9), "scope_id"),
        ("ipv6", IPEndpoint("", 9), "numeric"),
        ("unix", IPEndpoint("127.0.0.1", 9), "is an IP address"),
        ("unix", UnixEndpoint("/tmp/" + 200 * "x"), "bytes"),
        ("unix", UnixEndpoint("/tmp/\0x"), "NUL"),
    ],
)
@pytest.mark.parametrize("kind", [PlainPackets, pytest.param(BatchedPackets, marks=batches)])
def test_peers_that_it_cannot_send_to(
    stack: ExitStack, directory: Path, kind: type[Packets], where: str, peer: Any, complaint: str
) -> None:
    if where == "unix" and kind is BatchedPackets:
        kind = PlainPackets
    if where == "ipv6" and not ip_sockets.has_ipv6():
        pytest.skip("this machine has no IPv6")
    site = Site(stack, directory, kind, where)
    with pytest.raises(AddressError, match=complaint):
        site.packets.origin_to(peer)


# Unusual ancillary data.


@by_ip
@needs_linux
@pytest.mark.parametrize("size", [5, 3_000])
@pytest.mark.parametrize("timestamps", [True, False])
def test_more_ancillary_data_than_was_asked_for(site: Site, timestamps: bool, size: int) -> None:
    """What the maker of an adopted socket has switched on; before it was adopted, or later."""
    site.sock.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
    site.sock.setsockopt(socket.SOL_SOCKET, _SO_RXQ_OVFL, 1)
    site.open(timestamps=timestamps)
    site.warm_up()
    client = site.client()
    (usual,) = site.exchange(client, b"usual")
    site.sock.setsockopt(socket.IPPROTO_IP, _IP_RECVTTL, 1)
    if site.sock.family == socket.AF_INET6:
        site.sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_RECVHOPLIMIT, 1)
    for came in site.exchange(client, bytes(size), bytes(size + 1)):
        info, expected = (site.packets.info_of(each.origin) for each in (came, usual))
        assert info._replace(received_at=None) == expected._replace(received_at=None)
        assert info.local is not None
        assert (info.received_at is not None) is timestamps
        assert site.packets.peer_of(came.origin) == site.endpoint(client)
        assert site.packets.key_of(came.origin) == site.packets.key_of(usual.origin)
        assert not came.truncated
        assert site.put(came.data, came.origin)
        assert client.recv(5_000) == came.data


@by_ip
@needs_linux
def test_dropped_packets_do_not_hide_where_the_next_ones_were_sent_to(site: Site) -> None:
    site.sock.setsockopt(socket.SOL_SOCKET, _SO_RXQ_OVFL, 1)
    site.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
    site.open()
    client = site.client()
    for _ in range(50):
        client.sendto(b"flood", site.address)
    assert site.packets.dropped_by_kernel
    site.receive(50 - site.packets.dropped_by_kernel)
    (came,) = site.exchange(client, b"afterwards")
    assert (site.packets.info_of(came.origin).local or "").endswith(site.client_host)


# No room to send.


@by_ip
@pytest.mark.parametrize("size", [20, 3_000])
def test_without_room_packets_wait(site: Site, monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    client = site.client()
    (came,) = site.exchange(client, b"request")
    script = Script(monkeypatch, site.packets)
    told = []
    site.packets.on_blocked = lambda: told.append(site.packets.blocked)
    script.forever = errno.EAGAIN
    sent = messages(40, size)
    kept = sum(site.packets.put(data, came.origin) for data in sent[:3])
    assert kept == (1 if site.kind is BatchedPackets and size == 20 else 0)
    assert site.packets.blocked
    assert told == [True]
    site.packets.flush()
    assert site.packets.blocked is (kept > 0)
    assert (site.packets.sent, site.packets.send_errors) == (0, 0)
    script.forever = None
    site.packets.flush()
    assert not site.packets.blocked
    for data in sent[kept:]:
        assert site.packets.put(data, came.origin)
    assert not site.packets.blocked
    assert arrived(client, len(sent)) == sent
    assert site.packets.sent == len(sent)
    assert site.packets.bytes_sent == sum(map(len, sent))
    assert site.packets.send_errors == 0


@by_ip
def test_interrupted_partial_and_full_calls_lose_nothing(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every packet is tried until it was taken; what is kept back goes first."""
    client = site.client()
    (came,) = site.exchange(client, b"request")
    script = Script(monkeypatch, site.packets)
    sent = [os.urandom(3_000 if number % 7 == 3 else 10) for number in range(60)]
    number_of = {"EAGAIN": errno.EAGAIN, "EINTR": errno.EINTR, "EPERM": errno.ECONNREFUSED}
    if site.kind is PlainPackets:
        del number_of["EINTR"]  # The socket module has dealt with that.
    site.packets.corked = True
    for turn, data in enumerate(sent):
        script.steps += [turn % 5 or None]  # partial
        script.fail(list(number_of.values())[turn % len(number_of)])
        for _ in range(20):
            if site.packets.put(data, came.origin):
                break
            site.packets.flush()
        else:
            pytest.fail("it was never taken")
    script.steps.clear()
    site.packets.flush()
    assert arrived(client, len(sent)) == sent
    assert (site.packets.sent, site.packets.send_errors) == (len(sent), 0)
    assert site.packets.bytes_sent == sum(map(len, sent))


@by_ip
@pytest.mark.parametrize("size", [20, 3_000])
@pytest.mark.parametrize("number", [errno.ENOBUFS, errno.EPERM, errno.EHOSTUNREACH])
def test_refused_packets_are_counted_and_the_others_go(
    site: Site, monkeypatch: pytest.MonkeyPatch, number: int, size: int
) -> None:
    client = site.client()
    (came,) = site.exchange(client, b"request")
    script = Script(monkeypatch, site.packets)
    site.packets.corked = True
    sent = messages(5, size)
    if site.kind is BatchedPackets and size == 20:
        script.steps += [2]
    else:
        script.steps += [None, None]
    script.fail(number, number)  # The first one could be an earlier packet's.
    for data in sent:
        assert site.packets.put(data, came.origin)
    site.packets.flush()
    assert arrived(client, 4) == sent[:2] + sent[3:]
    assert (site.packets.sent, site.packets.send_errors) == (4, 1)
    assert not site.packets.blocked


@by_ip
@pytest.mark.parametrize("size", [20, 3_000])
def test_an_error_of_an_earlier_packet_costs_no_other(
    site: Site, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    """Also not if it is not in the error queue: that has no room while the receive buffer is full."""
    client = site.client()
    (came,) = site.exchange(client, b"request")
    script = Script(monkeypatch, site.packets)
    for number in (errno.ECONNREFUSED, errno.EHOSTUNREACH, errno.EMSGSIZE):
        script.fail(number)
        assert site.put(bytes(size), came.origin)
        assert client.recv(5_000) == bytes(size)
    assert (site.packets.sent, site.packets.send_errors) == (3, 0)


@by_ip
def test_what_was_blocked_is_found_out_by_trying(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """A large packet keeps no small one back that came before it, and does not overtake it."""
    client = site.client()
    (came,) = site.exchange(client, b"request")
    script = Script(monkeypatch, site.packets)
    site.packets.corked = True
    if site.kind is BatchedPackets:
        assert site.packets.put(b"small", came.origin)
    script.fail(errno.EAGAIN)
    assert not site.packets.put(bytes(5_000), came.origin)
    assert site.packets.blocked
    site.packets.flush()
    if site.kind is PlainPackets:
        assert site.packets.put(b"small", came.origin)
    assert site.packets.put(bytes(5_000), came.origin)
    assert arrived(client, 2) == [b"small", bytes(5_000)]


@cases("unix")
def test_a_unix_peer_that_does_not_read(site: Site) -> None:
    client = site.client()
    (came,) = site.exchange(client, b"request")
    assert not site.packets.tells_when_writable
    sent = messages(5_000)
    taken = 0
    while site.packets.put(sent[taken], came.origin):
        taken += 1
    assert taken
    assert not site.packets.blocked  # Other peers have room.
    other = site.client()
    assert site.packets.put(b"to another", site.packets.origin_to(site.endpoint(other)))
    assert other.recv(100) == b"to another"
    assert arrived(client, taken) == sent[:taken]
    assert site.packets.put(b"again", came.origin)
    assert arrived(client, 1) == [b"again"]
    assert (site.packets.sent, site.packets.send_errors) == (taken + 2, 0)


# Errors that come back.


@by_ip
@needs_linux
@pytest.mark.parametrize("size", [20, 3_000])
def test_nobody_listens(site: Site, size: int) -> None:
    client = site.client()
    site.exchange(client, b"request")
    dead = site.dead()
    assert site.put(bytes(size), site.packets.origin_to(dead))
    (error,) = site.take_errors(1)
    assert error.peer == dead
    assert (error.local or "").removeprefix("::ffff:") == site.client_host
    assert error.errno == errno.ECONNREFUSED
    assert error.remote
    assert site.packets.take_errors() == 0
    site.exchange(client, b"it goes on")
    assert len(site.errors) == 1
    assert (site.packets.sent, site.packets.send_errors) == (1, 0)


@by_ip
@needs_linux
def test_errors_between_packets_to_the_living(site: Site) -> None:
    """On the loopback interface errors are back before the next packet of the same call is sent."""
    client = site.client()
    (came,) = site.exchange(client, b"request")
    dead = [site.dead() for _ in range(20)]
    site.packets.corked = True
    for number, peer in enumerate(dead):
        size = 3_000 if number % 5 == 2 else 10
        assert site.packets.put(bytes(size), site.packets.origin_to(peer))
        assert site.packets.put(bytes([number]) * size, came.origin)
    site.packets.flush()
    came_back = [client.recv(5_000) for _ in dead]
    assert [data[0] for data in came_back] == list(range(len(dead)))
    errors = site.take_errors(len(dead))
    assert sorted(error.peer for error in errors) == sorted(dead)
    assert (site.packets.sent, site.packets.send_errors) == (2 * len(dead), 0)


@cases("wild4", "dual4")
@needs_linux
def test_errors_tell_the_address_that_it_was_sent_from(site: Site) -> None:
    client = site.client()
    client.sendto(b"request", ("127.0.0.2", site.port))
    (came,) = site.receive(1)
    hear_nobody(client)
    site.put(b"reply", came.origin)
    (error,) = site.take_errors(1)
    assert error.peer == site.packets.peer_of(came.origin)
    assert site.packets.key_for(error.peer, error.local) == site.packets.key_of(came.origin)


@by_ip
@needs_linux
def test_errors_do_not_hide_packets(site: Site) -> None:
    client = site.client()
    dead = [site.dead() for _ in range(5)]
    for round_ in range(3):
        for peer in dead:
            site.packets.put(b"anybody?", site.packets.origin_to(peer))
            client.sendto(b"request", site.address)
        site.packets.flush()
        assert len(site.receive(len(dead))) == len(dead)
        assert len(site.take_errors((round_ + 1) * len(dead))) == (round_ + 1) * len(dead)
    assert site.packets.send_errors == 0


@by_ip
@needs_linux
@pytest.mark.parametrize("position", [0, 1, 2])
def test_a_socket_with_errors_is_not_readable_for_ever(site: Site, position: int) -> None:
    """sendmmsg(2) says nothing of an error between two packets, but poll(2) does until it is read."""
    client = site.client()
    (came,) = site.exchange(client, b"request")
    dead = site.dead()
    site.packets.corked = True
    for number in range(4):
        origin = site.packets.origin_to(dead) if number == position else came.origin
        site.packets.put(b"x", origin)
    site.packets.flush()
    assert arrived(client, 3) == [b"x"] * 3
    poll = select.poll()
    poll.register(site.sock, select.POLLIN)

    def quiet() -> bool:
        assert site.packets.receive(packet, "owner") == []
        return bool(site.errors) and not poll.poll(0)

    wait_until_blocking(quiet)
    assert [error.peer for error in site.errors] == [dead]


@by_ip
@needs_linux
def test_more_errors_than_are_read_at_a_time(site: Site) -> None:
    client = site.client()
    dead = site.dead()
    origin = site.packets.origin_to(dead)
    for _ in range(100):
        site.packets.put(b"x", origin)
        client.sendto(b"x", site.address)
    site.packets.flush()
    site.receive(100)
    assert len(site.take_errors(100)) == 100
    assert site.packets.sent == 100


@by_ip
def test_an_error_of_nobody_knows_whom_does_not_stop_receiving(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = site.client()
    site.exchange(client, b"request")
    errors = [errno.ECONNREFUSED, errno.EINTR]
    fail_receiving(monkeypatch, site.packets, errors)
    client.sendto(b"next", site.address)
    assert [each.data for each in site.receive(1)] == [b"next"]
    assert not errors


def test_want_of_memory_is_raised(stack: ExitStack, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for kind in (PlainPackets, BatchedPackets) if LINUX else (PlainPackets,):
        site = Site(stack, directory, kind, "ipv4")
        with monkeypatch.context() as patch:
            fail_receiving(patch, site.packets, [errno.ENOMEM] * 1_000)
            with pytest.raises(OSError, match=os.strerror(errno.ENOMEM)):
                site.packets.receive(packet, "owner")
        site.exchange(site.client(), b"over")


def fail_receiving(monkeypatch: pytest.MonkeyPatch, packets: Packets, errors: list[int]) -> None:
    if isinstance(packets, PlainPackets):
        receive_one = packets._receive_one

        def receive() -> Any:
            if errors:
                number = errors.pop(0)
                if number != errno.EINTR:  # The socket module has dealt with that.
                    raise OSError(number, os.strerror(number))
            return receive_one()

        monkeypatch.setattr(packets, "_receive_one", receive)
        return
    recvmmsg: Callable[..., int] = packets_mmsg._recvmmsg

    def receive_many(*arguments: Any) -> int:
        if errors:
            ctypes.set_errno(errors.pop(0))
            return -1
        return recvmmsg(*arguments)

    monkeypatch.setattr(packets_mmsg, "_recvmmsg", receive_many)


# What is raised.


@by_ip
def test_too_large_to_send(site: Site) -> None:
    client = site.client()
    (came,) = site.exchange(client, b"request")
    most = site.packets.max_payload
    assert most is not None
    for corked in (False, True):
        site.packets.corked = corked
        with pytest.raises(PacketTooLargeError) as caught:
            site.packets.put(bytes(most + 1), came.origin)
        assert (caught.value.size, caught.value.limit) == (most + 1, most)
    assert (site.packets.sent, site.packets.send_errors) == (0, 2)


@cases("unix")
def test_too_large_for_a_unix_peer(site: Site) -> None:
    client = site.client()
    (came,) = site.exchange(client, b"request")
    assert site.packets.max_payload is None
    site.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 5_000)
    with pytest.raises(PacketTooLargeError) as caught:
        site.put(bytes(1_000_000), came.origin)
    assert (caught.value.size, caught.value.limit) == (1_000_000, None)
    assert (site.packets.sent, site.packets.send_errors) == (0, 1)
    assert site.put(b"small", came.origin)
    assert client.recv(100) == b"small"


@cases("unix")
def test_unix_peers_without_a_name(site: Site) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as client:
        client.sendto(b"request", site.address)
    (came,) = site.receive(1)
    assert site.packets.peer_of(came.origin) == UnixEndpoint("")
    with pytest.raises(UnboundPeerError):
        site.packets.put(b"reply", came.origin)
    with pytest.raises(UnboundPeerError):
        site.packets.origin_to(UnixEndpoint(""))
    assert site.packets.send_errors == 1


@cases("unix")
def test_unix_peers_that_are_gone(site: Site) -> None:
    client = site.client()
    path = client.getsockname()
    (came,) = site.exchange(client, b"request")
    client.close()
    with pytest.raises(PeerUnreachableError) as caught:
        site.packets.put(b"reply", came.origin)
    assert caught.value.errno == errno.ECONNREFUSED
    assert caught.value.peer == f"unix:{path}"
    os.unlink(path)
    with pytest.raises(PeerUnreachableError) as caught:
        site.packets.put(b"reply", came.origin)
    assert caught.value.errno == errno.ENOENT
    assert (site.packets.sent, site.packets.send_errors) == (0, 2)
    assert site.put(b"others are there", site.packets.origin_to(site.endpoint(site.client())))


# What the kernel drops.


@by_ip
@needs_linux
def test_what_the_kernel_drops_is_counted(site: Site) -> None:
    client = site.client()
    site.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
    assert site.packets.dropped_by_kernel == 0
    received = 0
    for round_ in range(1, 4):
        for _ in range(200):
            client.sendto(b"flood", site.address)
        dropped = site.packets.dropped_by_kernel
        assert dropped is not None
        assert 0 < dropped < round_ * 200
        received += len(site.receive(round_ * 200 - dropped - received))
        assert site.packets.received + dropped == round_ * 200
    assert site.packets.dropped_by_kernel == dropped


@cases("unix")
def test_nobody_counts_what_a_unix_socket_has_dropped(site: Site) -> None:
    assert site.packets.dropped_by_kernel is None


# Which of them.


@needs_linux
@needs_unix
def test_what_can_be_batched(monkeypatch: pytest.MonkeyPatch) -> None:
    with ExitStack() as stack:
        udp, udp6, unix, tcp = (
            stack.enter_context(socket.socket(family, kind))
            for family, kind in (
                (socket.AF_INET, socket.SOCK_DGRAM),
                (socket.AF_INET6, socket.SOCK_DGRAM),
                (socket.AF_UNIX, socket.SOCK_DGRAM),
                (socket.AF_INET, socket.SOCK_STREAM),
            )
        )
        assert tcp
        fits = sys.byteorder == "little" and sys.maxsize > 2**32
        assert [can_batch(sock) for sock in (udp, udp6, unix)] == [fits, fits, False]
        monkeypatch.setattr(packets_mmsg, "_recvmmsg", packets_mmsg._system_call("no_such_function"))
        assert not can_batch(udp)


@batches
def test_packets_are_taken_for_early_ones_only_at_the_beginning(stack: ExitStack, directory: Path) -> None:
    """Also where every batch is a full one: looking at each packet takes three times as long."""
    site = Site(stack, directory, BatchedPackets, "ipv4")
    client = site.client()
    packets: Any = site.packets
    make_uncommon = packets._make_uncommon
    uncommon: list[int] = []
    packets._make_uncommon = lambda *arguments: uncommon.append(1) or make_uncommon(*arguments)
    for _ in range(3):
        for _ in range(BATCH):
            client.sendto(b"request", site.address)
        assert len(site.packets.receive(packet, "owner")) == BATCH
    assert len(uncommon) == 1
