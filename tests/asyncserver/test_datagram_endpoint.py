from __future__ import annotations

import asyncio
import ctypes
import errno
import itertools
import os
import socket
import sys
import tempfile
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import AsyncExitStack, ExitStack
from pathlib import Path
from typing import Any

import pytest

from asyncserver import (
    AddressError,
    BindError,
    Datagram,
    DatagramEndpoint,
    DatagramLimits,
    DatagramOptions,
    DatagramServer,
    DatagramTimeouts,
    IPEndpoint,
    MulticastGroup,
    OptionError,
    PacketTooLargeError,
    PeerUnreachableError,
    SendTimeoutError,
    ServerStateError,
    UDPAddress,
    UnboundPeerError,
    UnixDatagramAddress,
    UnixEndpoint,
    datagram_endpoint,
    packets_mmsg,
)
from asyncserver.packets import Packets, PlainPackets
from asyncserver.packets_mmsg import BatchedPackets
from asyncserver.peers import endpoint_from_sockaddr
from tests.clients import hear_nobody
from tests.waiting import MS, PATIENCE, SECOND, stays, wait_until, within

LINUX = sys.platform.startswith("linux")
needs_linux = pytest.mark.skipif(not LINUX, reason="only Linux tells this")
needs_unix = pytest.mark.skipif(not hasattr(socket, "AF_UNIX"), reason="this platform has no Unix sockets")
batches = pytest.mark.skipif(not LINUX, reason="recvmmsg(2) is Linux's")
both_kinds = pytest.mark.parametrize(
    "kind", [PlainPackets, pytest.param(BatchedPackets, marks=batches)], indirect=True
)

Handler = Callable[[Datagram], Coroutine[Any, Any, None]]


class Peer:
    """A socket of the other side; it never blocks."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self.socket = sock
        self.got: list[bytes] = []

    @property
    def endpoint(self) -> Any:
        return endpoint_from_sockaddr(self.socket.family, self.socket.getsockname())

    def send(self, data: bytes, endpoint: DatagramEndpoint) -> None:
        address = endpoint.address
        if isinstance(address, UnixDatagramAddress):
            self.socket.sendto(data, address.path)
        else:
            assert isinstance(address, UDPAddress)
            self.socket.sendto(data, (address.host, address.port))

    def read(self) -> list[bytes]:
        """What has come, since it began."""
        while True:
            try:
                self.got.append(self.socket.recv(65_536))
            except BlockingIOError:
                return self.got

    async def read_until(self, count: int) -> list[bytes]:
        await wait_until(
            lambda: len(self.read()) >= count, what=lambda: f"{count} packets ({len(self.got)} came)"
        )
        return self.got


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def directory(stack: ExitStack) -> Path:
    return Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="e")))


@pytest.fixture
def udp_peer(stack: ExitStack) -> Callable[[], Peer]:
    def make() -> Peer:
        sock = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        sock.bind(("127.0.0.1", 0))
        return Peer(sock)

    return make


@pytest.fixture
def unix_peer(stack: ExitStack, directory: Path) -> Callable[[], Peer]:
    numbers = itertools.count()

    def make() -> Peer:
        sock = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
        sock.bind(str(directory / f"peer{next(numbers)}"))
        return Peer(sock)

    return make


@pytest.fixture
def kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> type[Packets]:
    chosen: type[Packets] = request.param
    if chosen is PlainPackets:
        monkeypatch.setattr(datagram_endpoint, "can_batch", lambda _: False)
    return chosen


Serve = Callable[..., Coroutine[Any, Any, DatagramEndpoint]]


@pytest.fixture
async def serve() -> AsyncIterator[Serve]:
    """Starts a server, which ends with the test, and returns its first endpoint."""
    async with AsyncExitStack() as servers:

        async def start(
            handler: Handler, address: str = "udp://127.0.0.1:0", **options: Any
        ) -> DatagramEndpoint:
            server = await servers.enter_async_context(DatagramServer(handler, address, **options))
            endpoint: DatagramEndpoint = server.endpoints[0]
            return endpoint

        yield start


async def echo(datagram: Datagram) -> None:
    await datagram.reply(datagram.data)


async def ignore(datagram: Datagram) -> None:
    """Nothing."""


class Obstruction:
    """The kernel takes nothing that is sent while this is on: it says EAGAIN."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.on = False
        self._sendmmsg = packets_mmsg._sendmmsg
        self._send = Packets._send
        obstruction = self

        def send(packets: Packets, *arguments: Any) -> None:
            if obstruction.on:
                raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
            obstruction._send(packets, *arguments)

        def sendmmsg(*arguments: Any) -> int:
            if obstruction.on:
                ctypes.set_errno(errno.EAGAIN)
                return -1
            return int(obstruction._sendmmsg(*arguments))

        monkeypatch.setattr(Packets, "_send", send)
        monkeypatch.setattr(packets_mmsg, "_sendmmsg", sendmmsg)


@pytest.fixture
def obstruction(monkeypatch: pytest.MonkeyPatch) -> Obstruction:
    return Obstruction(monkeypatch)


# What it is, and what it counts.


@both_kinds
async def test_it_answers_and_counts(serve: Serve, kind: type[Packets], udp_peer: Callable[[], Peer]) -> None:
    endpoint = await serve(echo, limits=DatagramLimits(max_packet_size=3_000))
    assert type(endpoint.packets) is kind
    peer = udp_peer()
    for data in (b"", b"small", bytes(3_000), bytes(3_001)):
        peer.send(data, endpoint)
    assert await peer.read_until(4) == [b"", b"small", bytes(3_000), bytes(3_000)]
    statistics = endpoint.statistics()
    assert statistics.address == str(endpoint.address)
    assert (statistics.received, statistics.bytes_received, statistics.truncated) == (4, 6_005, 1)
    assert (statistics.sent, statistics.bytes_sent, statistics.send_errors) == (4, 6_005, 0)
    assert statistics.network_errors == 0
    assert statistics.dropped_by_kernel == (0 if LINUX else None)
    assert statistics.paused == frozenset()
    assert repr(endpoint) == f"<DatagramEndpoint {endpoint.address} receiving>"


@both_kinds
async def test_statistics_outlive_it(serve: Serve, kind: type[Packets], udp_peer: Callable[[], Peer]) -> None:
    endpoint = await serve(echo)
    peer = udp_peer()
    peer.send(b"request", endpoint)
    await peer.read_until(1)
    await endpoint.server.aclose()
    statistics = endpoint.statistics()
    assert (statistics.received, statistics.sent) == (1, 1)
    assert statistics.dropped_by_kernel == (0 if LINUX else None)
    assert statistics.paused == {"closed"}
    assert repr(endpoint).endswith("paused>")


@both_kinds
async def test_the_largest_packet_can_change(
    serve: Serve, kind: type[Packets], udp_peer: Callable[[], Peer]
) -> None:
    endpoint = await serve(echo)
    peer = udp_peer()
    peer.send(bytes(5_000), endpoint)
    assert await peer.read_until(1) == [bytes(5_000)]
    endpoint.server.update(max_packet_size=10)
    peer.send(bytes(5_000), endpoint)
    assert await peer.read_until(2) == [bytes(5_000), bytes(10)]
    assert endpoint.statistics().truncated == 1


# Pausing.


@both_kinds
async def test_it_pauses_for_reasons(serve: Serve, kind: type[Packets], udp_peer: Callable[[], Peer]) -> None:
    endpoint = await serve(echo)
    peer = udp_peer()
    endpoint.pause()
    endpoint.pause()
    endpoint.pause("another")
    assert endpoint.paused == {"requested", "another"} == endpoint.statistics().paused
    for number in range(10):
        peer.send(str(number).encode(), endpoint)
    await stays(lambda: not peer.read())
    endpoint.resume()
    endpoint.resume("unknown")
    await stays(lambda: not peer.read())
    endpoint.resume("another")
    endpoint.resume("another")
    assert endpoint.paused == frozenset()
    assert await peer.read_until(10) == [str(number).encode() for number in range(10)]
    assert endpoint.statistics().received == 10


@both_kinds
async def test_a_paused_one_sends(serve: Serve, kind: type[Packets], udp_peer: Callable[[], Peer]) -> None:
    endpoint = await serve(ignore)
    endpoint.pause()
    peer = udp_peer()
    await endpoint.send(b"unasked", peer.endpoint)
    assert await peer.read_until(1) == [b"unasked"]


@both_kinds
async def test_a_handler_can_pause_it(
    serve: Serve, kind: type[Packets], udp_peer: Callable[[], Peer]
) -> None:
    """A batch is served to its end."""

    async def pause(datagram: Datagram) -> None:
        datagram.endpoint.pause()
        await datagram.reply(datagram.data)

    endpoint = await serve(pause)
    peer = udp_peer()
    for turn in (1, 2):
        peer.send(b"request", endpoint)
        await peer.read_until(turn)
        assert endpoint.paused == {"requested"}
        peer.send(b"request", endpoint)
        await stays(lambda turn=turn: len(peer.read()) == turn)  # type: ignore[misc]
        endpoint.pause("test")
        endpoint.resume()
        endpoint.packets.receive(endpoint._host.make, endpoint)
        endpoint.resume("test")


# To anybody.


@both_kinds
@pytest.mark.parametrize("size", [0, 10, 3_000])
async def test_packets_to_third_parties(
    serve: Serve, kind: type[Packets], udp_peer: Callable[[], Peer], size: int
) -> None:
    others = [udp_peer() for _ in range(3)]

    async def forward(datagram: Datagram) -> None:
        for other in others:
            await datagram.endpoint.send(datagram.data, other.endpoint)

    endpoint = await serve(forward)
    udp_peer().send(bytes(size), endpoint)
    for other in others:
        assert await other.read_until(1) == [bytes(size)]
    assert endpoint.statistics().sent == 3
    with pytest.raises(AddressError, match="IPv6"):
        await endpoint.send(b"x", IPEndpoint("::1", 9))
    with pytest.raises(AddressError, match="Unix"):
        await endpoint.send(b"x", UnixEndpoint("/tmp/x"))
    with pytest.raises(PacketTooLargeError):
        await endpoint.send(bytes(65_508), others[0].endpoint)


@both_kinds
@needs_linux
async def test_errors_that_come_back_are_counted(
    serve: Serve, kind: type[Packets], udp_peer: Callable[[], Peer]
) -> None:
    """Without anything else being received or sent, and without harm to the others."""
    endpoint = await serve(echo)
    gone = [udp_peer() for _ in range(5)]
    names = [peer.endpoint for peer in gone]
    for peer in gone:
        hear_nobody(peer.socket)
    for name in names:
        await endpoint.send(b"anybody?", name)
    await wait_until(lambda: endpoint.statistics().network_errors == 5)
    peer = udp_peer()
    peer.send(b"request", endpoint)
    await peer.read_until(1)
    await stays(lambda: endpoint.statistics().network_errors == 5)
    assert endpoint.statistics().sent == 6
    assert endpoint.statistics().send_errors == 0
    assert endpoint.paused == frozenset()


@both_kinds
@needs_linux
async def test_errors_among_the_replies_of_a_batch(
    serve: Serve, kind: type[Packets], udp_peer: Callable[[], Peer]
) -> None:
    endpoint = await serve(echo)
    endpoint.pause()
    alive, gone = udp_peer(), [udp_peer() for _ in range(10)]
    for number, peer in enumerate(gone):
        peer.send(b"from the dead", endpoint)
        hear_nobody(peer.socket)
        alive.send(str(number).encode(), endpoint)
    endpoint.resume()
    assert await alive.read_until(10) == [str(number).encode() for number in range(10)]
    await wait_until(lambda: endpoint.statistics().network_errors == 10)
    assert endpoint.statistics().sent == 20
    assert endpoint.statistics().send_errors == 0
    batches_before = []
    receive_batch = endpoint.receive_batch
    endpoint.receive_batch = lambda: batches_before.append(1) or receive_batch()  # type: ignore[method-assign,func-returns-value]
    await stays(lambda: not batches_before, what="the socket is left in peace")


# No room.


@both_kinds
@pytest.mark.parametrize("size", [20, 3_000])
async def test_whoever_finds_no_room_waits_in_turn(
    serve: Serve, kind: type[Packets], udp_peer: Callable[[], Peer], obstruction: Obstruction, size: int
) -> None:
    endpoint = await serve(ignore)
    peer = udp_peer()
    sent = [str(number).encode().ljust(size) for number in range(30)]
    obstruction.on = True
    tasks = []
    for data in sent:
        tasks.append(asyncio.create_task(endpoint.send(data, peer.endpoint)))
        await asyncio.sleep(0)
    await stays(lambda: sum(task.done() for task in tasks) <= 1)
    assert endpoint.statistics().sent == 0
    obstruction.on = False
    await within(asyncio.gather(*tasks))
    assert await peer.read_until(len(sent)) == sent
    assert endpoint.statistics().sent == len(sent)
    assert endpoint.statistics().send_errors == 0
    await endpoint.send(b"afterwards", peer.endpoint)
    assert (await peer.read_until(len(sent) + 1))[-1] == b"afterwards"


@both_kinds
async def test_replies_wait_for_room(
    serve: Serve, kind: type[Packets], udp_peer: Callable[[], Peer], obstruction: Obstruction
) -> None:
    endpoint = await serve(echo)
    peer = udp_peer()
    obstruction.on = True
    sent = [str(number).encode().ljust(10 + 3_000 * (number % 3 == 0)) for number in range(40)]
    for data in sent:
        peer.send(data, endpoint)
    await wait_until(lambda: endpoint.statistics().received == len(sent))
    await stays(lambda: not peer.read())
    obstruction.on = False
    assert await peer.read_until(len(sent)) == sent
    statistics = endpoint.server.statistics()
    await wait_until(lambda: endpoint.server.statistics().handled == len(sent))
    assert statistics.failed == 0


@both_kinds
async def test_nobody_overtakes_those_who_wait(
    serve: Serve, kind: type[Packets], udp_peer: Callable[[], Peer], obstruction: Obstruction
) -> None:
    """Also not when there is room again, and the first of them has been woken but does not run yet."""
    endpoint = await serve(ignore)
    peer = udp_peer()
    obstruction.on = True
    waiting = asyncio.create_task(endpoint.send(bytes(3_000), peer.endpoint))
    await wait_until(lambda: endpoint.packets.blocked)
    obstruction.on = False
    endpoint.on_writable()
    if endpoint.put(b"newcomer", endpoint.packets.origin_to(peer.endpoint)):
        await within(waiting)
    else:
        await within(asyncio.gather(waiting, endpoint.send(b"newcomer", peer.endpoint)))
    assert await peer.read_until(2) == [bytes(3_000), b"newcomer"]


async def test_what_was_kept_back_until_the_end_is_counted(
    serve: Serve, udp_peer: Callable[[], Peer], obstruction: Obstruction
) -> None:
    endpoint = await serve(ignore)
    peer = udp_peer()
    obstruction.on = True
    await within(endpoint.send(b"kept back", peer.endpoint))
    assert endpoint.packets.blocked
    endpoint.close()
    assert (endpoint.statistics().sent, endpoint.statistics().send_errors) == (0, 1)
    with pytest.raises(ServerStateError, match="closed"):
        await endpoint.send(b"later", peer.endpoint)


@both_kinds
@needs_linux
async def test_errors_are_read_where_only_room_is_waited_for(
    serve: Serve, kind: type[Packets], udp_peer: Callable[[], Peer], obstruction: Obstruction
) -> None:
    """The socket is reported as ready for as long as one waits, also while nothing is received."""
    endpoint = await serve(ignore)
    endpoint.pause()
    gone = udp_peer()
    name = gone.endpoint
    hear_nobody(gone.socket)
    await within(endpoint.send(b"anybody?", name))
    obstruction.on = True
    waiting = asyncio.create_task(endpoint.send(bytes(3_000), udp_peer().endpoint))
    await wait_until(lambda: endpoint.packets.blocked)
    await wait_until(lambda: endpoint.statistics().network_errors == 1)
    obstruction.on = False
    await within(waiting)


@both_kinds
async def test_there_is_no_room_in_time(
    serve: Serve, kind: type[Packets], udp_peer: Callable[[], Peer], obstruction: Obstruction
) -> None:
    endpoint = await serve(ignore, timeouts=DatagramTimeouts(send=50 * MS))
    peer = udp_peer()
    obstruction.on = True
    with pytest.raises(SendTimeoutError) as caught:
        await within(endpoint.send(bytes(3_000), peer.endpoint))
    assert caught.value.seconds == 50 * MS
    assert endpoint.statistics().send_errors == 1
    obstruction.on = False
    await within(endpoint.send(b"later", peer.endpoint))
    assert await peer.read_until(1) == [b"later"]
    assert endpoint.statistics().sent == 1


@both_kinds
async def test_cancelled_while_it_waits(
    serve: Serve, kind: type[Packets], udp_peer: Callable[[], Peer], obstruction: Obstruction
) -> None:
    """What was cancelled is not sent; the others are, once and in their order."""
    endpoint = await serve(ignore)
    peer = udp_peer()
    obstruction.on = True
    sent = [str(number).encode().ljust(3_000) for number in range(9)]
    tasks = []
    for data in sent:
        tasks.append(asyncio.create_task(endpoint.send(data, peer.endpoint)))
        await asyncio.sleep(0)
    await stays(lambda: not any(task.done() for task in tasks), during=10 * MS)
    for task in tasks[::3]:
        task.cancel()
    await asyncio.sleep(0)
    obstruction.on = False
    tasks[4].cancel()
    found = await within(asyncio.gather(*tasks, return_exceptions=True))
    cancelled = [isinstance(each, asyncio.CancelledError) for each in found]
    assert cancelled == [number in (0, 3, 4, 6) for number in range(9)]
    expected = [data for data, gone in zip(sent, cancelled, strict=True) if not gone]
    assert await peer.read_until(len(expected)) == expected
    await stays(lambda: peer.read() == expected)
    assert endpoint.statistics().sent == len(expected)


@both_kinds
@pytest.mark.parametrize("size", [20, 3_000])
async def test_it_closes_while_senders_wait(
    kind: type[Packets], udp_peer: Callable[[], Peer], obstruction: Obstruction, size: int
) -> None:
    server = DatagramServer(ignore, "udp://127.0.0.1:0", timeouts=DatagramTimeouts(send=60 * SECOND))
    async with server:
        endpoint = server.endpoints[0]
        peer = udp_peer()
        obstruction.on = True
        tasks = [asyncio.create_task(endpoint.send(bytes(size), peer.endpoint)) for _ in range(4)]
        await stays(lambda: sum(task.done() for task in tasks) <= 1, during=10 * MS)
    found = await within(asyncio.gather(*tasks, return_exceptions=True))
    assert [type(each) for each in found[1:]] == [ServerStateError] * 3
    assert not peer.read()
    with pytest.raises((ServerStateError, OSError)):
        await within(endpoint.send(bytes(3_000), peer.endpoint))


# Unix peers.


@needs_unix
@needs_linux
async def test_who_a_unix_peer_is(
    serve: Serve, directory: Path, unix_peer: Callable[[], Peer], stack: ExitStack
) -> None:
    seen: list[Datagram] = []

    async def keep(datagram: Datagram) -> None:
        seen.append(datagram)
        await datagram.reply(b"you are known")

    endpoint = await serve(keep, f"unixgram://{directory}/server")
    peer = unix_peer()
    peer.send(b"request", endpoint)
    assert await peer.read_until(1) == [b"you are known"]
    assert seen[0].credentials == (os.getpid(), os.geteuid(), os.getegid())
    assert seen[0].peer == peer.endpoint
    assert seen[0].local == UnixEndpoint(f"{directory}/server")
    assert seen[0].interface == 0
    unnamed = Peer(stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)))
    unnamed.send(b"request", endpoint)
    await wait_until(lambda: len(seen) == 2)
    assert seen[1].peer == UnixEndpoint("")
    assert seen[1].credentials == seen[0].credentials
    await wait_until(lambda: endpoint.server.statistics().failed == 1)
    with pytest.raises(UnboundPeerError):
        await seen[1].reply(b"who are you?")
    peer.socket.close()
    with pytest.raises(PeerUnreachableError):
        await seen[0].reply(b"where are you?")
    assert endpoint.statistics().dropped_by_kernel is None


@needs_unix
async def test_a_unix_peer_that_does_not_read_holds_up_nobody_else(
    serve: Serve, directory: Path, unix_peer: Callable[[], Peer]
) -> None:
    endpoint = await serve(echo, f"unixgram://{directory}/server")
    slow, quick = unix_peer(), unix_peer()
    sent = await fill(endpoint, slow)
    waiting = asyncio.create_task(endpoint.send(b"waits", slow.endpoint))
    await stays(lambda: not waiting.done(), during=20 * MS)
    quick.send(b"request", endpoint)
    assert await quick.read_until(1) == [b"request"]
    assert not waiting.done()
    assert slow.read() == sent
    await within(waiting)
    assert await slow.read_until(len(sent) + 1) == [*sent, b"waits"]
    assert endpoint.statistics().send_errors == 0


async def fill(endpoint: DatagramEndpoint, peer: Peer) -> list[bytes]:
    """Send until there is no room."""
    sent: list[bytes] = []
    origin = endpoint.packets.origin_to(peer.endpoint)
    while endpoint.put(str(len(sent)).encode(), origin):
        sent.append(str(len(sent)).encode())
    assert sent
    return sent


@needs_unix
async def test_many_wait_for_one_unix_peer(
    serve: Serve, directory: Path, unix_peer: Callable[[], Peer]
) -> None:
    """None is lost, and none comes twice."""
    endpoint = await serve(ignore, f"unixgram://{directory}/server")
    peer = unix_peer()
    sent = await fill(endpoint, peer)
    more = [f"more {number}".encode() for number in range(50)]
    tasks = [asyncio.create_task(endpoint.send(data, peer.endpoint)) for data in more]
    await stays(lambda: not any(task.done() for task in tasks), during=20 * MS)
    tasks[7].cancel()
    found = await peer.read_until(len(sent) + len(more) - 1)
    assert found[: len(sent)] == sent
    del more[7]
    assert sorted(found[len(sent) :]) == sorted(more)
    await within(asyncio.gather(*tasks, return_exceptions=True))
    assert [task.cancelled() for task in tasks] == [number == 7 for number in range(50)]
    assert endpoint.statistics().sent == len(found)
    assert endpoint.statistics().send_errors == 0


@needs_unix
async def test_a_unix_peer_does_not_read_in_time(
    serve: Serve, directory: Path, unix_peer: Callable[[], Peer]
) -> None:
    raised: list[Exception] = []
    replied = []

    async def reply(datagram: Datagram) -> None:
        try:
            await datagram.reply(datagram.data)
        except SendTimeoutError as error:
            raised.append(error)
        else:
            replied.append(datagram.data)

    timeouts = DatagramTimeouts(send=50 * MS)
    endpoint = await serve(reply, f"unixgram://{directory}/server", timeouts=timeouts)
    peer = unix_peer()
    sent = await fill(endpoint, peer)
    peer.send(b"request", endpoint)
    await wait_until(lambda: raised)
    assert str(raised[0]) == f"no room for the packet within {50 * MS:g} s"
    assert endpoint.statistics().send_errors == 1
    assert peer.read() == sent
    peer.send(b"again", endpoint)
    assert await peer.read_until(len(sent) + 1) == [*sent, b"again"]
    await wait_until(lambda: replied == [b"again"])
    assert endpoint.statistics().sent == len(sent) + 1


@needs_unix
async def test_the_server_ends_while_a_unix_peer_does_not_read(
    directory: Path, unix_peer: Callable[[], Peer]
) -> None:
    timeouts = DatagramTimeouts(send=60 * SECOND)
    async with DatagramServer(ignore, f"unixgram://{directory}/server", timeouts=timeouts) as server:
        endpoint = server.endpoints[0]
        peer = unix_peer()
        await fill(endpoint, peer)
        waiting = asyncio.create_task(endpoint.send(b"waits", peer.endpoint))
        await stays(lambda: not waiting.done(), during=10 * MS)
    with pytest.raises(ServerStateError, match="closed"):
        await within(waiting)


@needs_unix
async def test_a_unix_peer_goes_while_it_is_waited_for(
    serve: Serve, directory: Path, unix_peer: Callable[[], Peer]
) -> None:
    endpoint = await serve(ignore, f"unixgram://{directory}/server")
    peer = unix_peer()
    name = peer.endpoint
    await fill(endpoint, peer)
    waiting = asyncio.create_task(endpoint.send(b"waits", name))
    await stays(lambda: not waiting.done(), during=10 * MS)
    peer.socket.close()
    with pytest.raises(PeerUnreachableError, match=name.path):
        await within(waiting)


# Receiving fails.


@both_kinds
async def test_it_backs_off_without_memory(
    serve: Serve,
    kind: type[Packets],
    udp_peer: Callable[[], Peer],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    endpoint = await serve(echo)
    calls = []

    def fail(*_: object) -> list[Any]:
        calls.append(asyncio.get_running_loop().time())
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))

    caplog.set_level("INFO", "asyncserver")
    peer = udp_peer()
    with monkeypatch.context() as patch:
        patch.setattr(endpoint.packets, "receive", fail)
        peer.send(b"request", endpoint)
        await wait_until(lambda: len(calls) >= 4 and endpoint.paused == {"exhausted"})
    assert await peer.read_until(1) == [b"request"]
    assert endpoint.paused == frozenset()
    gaps = [later - earlier for earlier, later in itertools.pairwise(calls)]
    assert all(gap > 0.009 * 2**number for number, gap in enumerate(gaps[:3]))
    records = [record for record in caplog.records if record.name == "asyncserver"]
    errors = [record.getMessage() for record in records if record.levelname == "ERROR"]
    assert len(errors) == 1
    assert os.strerror(errno.ENOMEM) in errors[0]
    assert str(endpoint.address) in errors[0]
    assert sum("receiving again" in record.getMessage() for record in records) == 1


async def test_it_can_close_while_it_backs_off(
    udp_peer: Callable[[], Peer], monkeypatch: pytest.MonkeyPatch
) -> None:
    async with DatagramServer(echo, "udp://127.0.0.1:0") as server:
        endpoint = server.endpoints[0]

        def fail(*_: object) -> list[Any]:
            raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))

        monkeypatch.setattr(endpoint.packets, "receive", fail)
        udp_peer().send(b"request", endpoint)
        await wait_until(lambda: endpoint.paused)
    assert "closed" in endpoint.paused
    await stays(lambda: "closed" in endpoint.paused)


# Floods.


@both_kinds
@needs_linux
async def test_nothing_is_lost_without_being_counted(
    serve: Serve, kind: type[Packets], udp_peer: Callable[[], Peer]
) -> None:
    endpoint = await serve(ignore, options=DatagramOptions(receive_buffer=5_000))
    address = endpoint.address
    assert isinstance(address, UDPAddress)
    target = address.host, address.port
    count = 5_000

    def flood(sock: socket.socket) -> None:
        sock.settimeout(PATIENCE)
        for _ in range(count):
            sock.sendto(b"flood", target)

    threads = [threading.Thread(target=flood, args=(udp_peer().socket,)) for _ in range(2)]
    for thread in threads:
        thread.start()
    await wait_until(lambda: not any(thread.is_alive() for thread in threads))
    for thread in threads:
        thread.join()

    def complete() -> bool:
        statistics = endpoint.statistics()
        return statistics.received + (statistics.dropped_by_kernel or 0) == 2 * count

    await wait_until(complete, what=lambda: str(endpoint.statistics()))
    await wait_until(lambda: endpoint.server.statistics().handled == endpoint.statistics().received)


# Groups.


@both_kinds
async def test_groups_are_joined_and_left(
    serve: Serve, kind: type[Packets], udp_peer: Callable[[], Peer]
) -> None:
    seen: list[Datagram] = []

    async def answer(datagram: Datagram) -> None:
        seen.append(datagram)
        await datagram.reply(b"here")

    endpoint = await serve(answer, "udp://0.0.0.0:0")
    assert isinstance(endpoint.address, UDPAddress)
    group = MulticastGroup("239.255.77.11", "127.0.0.1")
    try:
        endpoint.join(group)
    except BindError as error:
        pytest.skip(f"no multicast on the loopback interface: {error}")
    with pytest.raises(BindError):
        endpoint.join(group)
    peer = udp_peer()
    peer.socket.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton("127.0.0.1"))
    peer.socket.sendto(b"anybody?", (group.group, endpoint.address.port))
    assert await peer.read_until(1) == [b"here"]
    assert seen[0].local == IPEndpoint(group.group, endpoint.address.port)
    endpoint.leave(group)
    with pytest.raises(OptionError, match="not joined"):
        endpoint.leave(group)
    peer.socket.sendto(b"anybody?", (group.group, endpoint.address.port))
    await stays(lambda: len(seen) == 1)
    endpoint.join(group)
    peer.socket.sendto(b"anybody?", (group.group, endpoint.address.port))
    assert len(await peer.read_until(2)) == 2
