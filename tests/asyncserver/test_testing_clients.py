"""The clients of ``asyncserver.testing``: what they do, and that none of it lasts for ever."""

from __future__ import annotations

import asyncio
import shutil
import socket
import socketserver
import ssl
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from anyio import IncompleteRead

from asyncserver import (
    Datagram,
    FDAddress,
    OptionError,
    Server,
    ServerStateError,
    Stream,
    UnixDatagramAddress,
    current_connection,
)
from asyncserver.testing import Client, DatagramClient, TLSClient, certificates, serving, serving_datagrams
from asyncserver.testing.bounds import when_there_is_room
from asyncserver.testing.places import make_short_directory, short_directory
from asyncserver.testing.targets import locate
from tests.clients import LOOPBACK, echo, kept_port
from tests.datagrams import echo_datagram
from tests.processes import run_python
from tests.waiting import MS, PATIENCE, stays, wait_until, within

SHORT = 50 * MS

MORE_THAN_THERE_IS_ROOM_FOR = bytes(range(256)) * 20_000

TRANSPORTS = pytest.mark.parametrize("transport", ["tcp", "tls"])


def kind_for(transport: str) -> type[Client] | type[TLSClient]:
    return TLSClient if "tls" in transport else Client


# What they do.


@TRANSPORTS
async def test_receiving(transport: Any) -> None:
    async def handler(stream: Stream) -> None:
        await stream.send(b"x" * 100_000)
        await stream.send_eof()
        await stream.receive()

    async with serving(handler, transport=transport) as server:
        async with await kind_for(transport).connect(server) as client:
            assert await client.receive(10) == b"x" * 10
            assert await client.receive_exactly(50_000) == b"x" * 50_000
            assert await client.receive_all() == b"x" * 49_990
            assert await client.receive() == b""


@TRANSPORTS
async def test_fewer_bytes_than_were_asked_for(transport: Any) -> None:
    async def handler(stream: Stream) -> None:
        await stream.receive()
        await stream.send(b"hel")

    async with serving(handler, transport=transport) as server:
        async with await kind_for(transport).connect(server) as client:
            await client.send(b"hello")
            with pytest.raises(IncompleteRead) as caught:
                await client.receive_exactly(5)
            (note,) = caught.value.__notes__
            assert note.startswith("3 bytes of 5 came from the server at ")
            assert note.endswith(": b'hel'")
        async with await kind_for(transport).connect(server) as client:
            assert await client.ask(b"hello") == b"hel"


@TRANSPORTS
async def test_half_closing_with_bytes_unread(transport: Any) -> None:
    received: list[bytes] = []

    async def handler(stream: Stream) -> None:
        await stream.send(b"x" * 100_000)
        received.extend([chunk async for chunk in stream])
        await stream.send(b"the end")

    async with serving(handler, transport=transport) as server:
        async with await kind_for(transport).connect(server) as client:
            await client.send(b"hello")
            assert await client.receive(10) == b"x" * 10
            client.half_close()
            assert await client.receive(20) == b"x" * 20
            assert await client.receive_all() == b"x" * 99_970 + b"the end"
    assert b"".join(received) == b"hello"


async def test_half_closing_without_room_for_it() -> None:
    may_read = asyncio.Event()
    received = bytearray()

    async def handler(stream: Stream) -> None:
        await may_read.wait()
        async for chunk in stream:
            received.extend(chunk)
        await stream.send(b"the end")

    async with serving(handler, transport="tls+unix") as server:
        async with await TLSClient.connect(server) as client:
            sent, left = fill(client)
            with pytest.raises(BlockingIOError):
                client.half_close()
            may_read.set()
            await client.client.send(left)
            client.half_close()
            assert await client.receive_all() == b"the end"
    assert received == bytes(sent)


async def sending_cut_short(client: TLSClient, how: str) -> None:
    """More than there is room for, given up by its timeout or by a cancellation."""
    sending = asyncio.create_task(client.send(MORE_THAN_THERE_IS_ROOM_FOR))
    await wait_until(lambda: client._unsent)
    if how == "cancellation":
        sending.cancel()
    with pytest.raises((TimeoutError, asyncio.CancelledError)):
        await within(sending)
    client.timeout = PATIENCE


@pytest.mark.parametrize("how", ["timeout", "cancellation"])
@pytest.mark.parametrize("then", [b"and more", None], ids=["send", "half_close"])
async def test_sending_that_was_cut_short_leaves_no_half_record(how: str, then: bytes | None) -> None:
    may_read = asyncio.Event()
    received = bytearray()

    async def handler(stream: Stream) -> None:
        await stream.send(b"hello")
        await may_read.wait()
        async for chunk in stream:
            received.extend(chunk)
        await stream.send(b"the end")

    async with serving(handler, transport="tls+unix") as server:
        async with await TLSClient.connect(server) as client:
            client.timeout = SHORT if how == "timeout" else PATIENCE
            await sending_cut_short(client, how)
            assert await client.receive() == b"hello"
            if then is None:
                with pytest.raises(BlockingIOError):
                    client.half_close()
            may_read.set()
            if then is not None:
                await client.send(then)
            await within(when_there_is_room(client.half_close))
            assert await client.receive_all() == b"the end"
    assert received == MORE_THAN_THERE_IS_ROOM_FOR + (then or b"")


async def test_sending_and_receiving_at_once() -> None:
    """What waits for room does not keep from receiving, without which there is none."""
    async with serving(echo, transport="tls+unix") as server:
        async with await TLSClient.connect(server) as client:
            sending = asyncio.create_task(client.send(MORE_THAN_THERE_IS_ROOM_FOR))
            await wait_until(lambda: client._unsent)
            count = len(MORE_THAN_THERE_IS_ROOM_FOR)
            assert await within(client.receive_exactly(count)) == MORE_THAN_THERE_IS_ROOM_FOR
            await within(sending)


def fill(client: TLSClient) -> tuple[int, bytes]:
    """How many bytes were encrypted until there was no room, and the encrypted ones that are left."""
    encrypted = b""
    for sent in range(0, 100_000_000, 10_000):
        try:
            while encrypted:
                encrypted = encrypted[client.client.sock.send(encrypted) :]
        except BlockingIOError:
            return sent, encrypted
        client.tls.write(bytes(10_000))
        encrypted = client._outgoing.read()
    raise AssertionError("there is always room")


@TRANSPORTS
async def test_how_a_connection_ends(transport: Any) -> None:
    async def handler(stream: Stream) -> None:
        match await stream.receive():
            case b"abort":
                stream.abort()
            case b"talk":
                await stream.send(b"not the end")
                await stream.receive()

    async with serving(handler, transport=transport) as server:
        for order, end in ((b"close", "eof"), (b"abort", "reset")):
            async with await kind_for(transport).connect(server) as client:
                await client.send(order)
                assert await client.ended() == end
        async with await kind_for(transport).connect(server) as client:
            await client.send(b"talk")
            with pytest.raises(AssertionError, match=r"b'not the end' came instead of the end"):
                await client.ended()


@TRANSPORTS
async def test_ending_it_from_here(transport: Any) -> None:
    async with serving(echo, transport=transport) as server:
        for end in ("close", "reset"):
            client = await kind_for(transport).connect(server)
            assert await client.ask(b"hello") == b"hello"
            getattr(client, end)()
            client.reset()
            client.close()
            await wait_until(lambda: not server.connections)
        # Under TLS an end without the closing alert might be anybody's.
        expected = {"reset": 2} if transport == "tls" else {"eof": 1, "reset": 1}
        assert server.statistics().closed == expected


async def test_where_a_client_comes_from() -> None:
    peers: list[Any] = []

    async def handler(stream: Stream) -> None:
        peers.append(current_connection().peer[:2])
        await stream.send(b"x")

    async with serving(handler) as server, await Client.connect(server, source="127.0.0.2") as client:
        await client.receive()
        assert peers == [client.name]
        assert client.name[0] == "127.0.0.2"


async def test_datagrams_that_have_come() -> None:
    async def handler(datagram: Datagram) -> None:
        await datagram.reply(datagram.data)
        await datagram.reply(str(datagram.peer).encode())

    async with serving_datagrams(handler) as server:
        async with await DatagramClient.connect(server, source="127.0.0.3") as client:
            assert client.received() == []
            assert await client.ask(b"one") == b"one"
            host, port = client.name
            assert host == "127.0.0.3"
            assert await client.receive() == f"127.0.0.3:{port}".encode()
            await client.send(b"two", b"three")
            await wait_until(lambda: server.statistics().sent == 6)
            assert client.received()[::2] == [b"two", b"three"]


async def test_an_empty_packet_waits_for_room() -> None:
    directory = await asyncio.to_thread(make_short_directory)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(f"{directory}/server")
        sock.setblocking(False)
        async with await DatagramClient.connect(f"unixgram:{directory}/server") as client:
            with pytest.raises(BlockingIOError):
                while True:
                    client.sock.send(b"x")
            sending = asyncio.create_task(client.send(b""))
            await asyncio.sleep(5 * MS)
            assert not sending.done()
            sock.recv(10)
            await within(sending)
            client.timeout = SHORT
            with pytest.raises(TimeoutError, match=f"waited {SHORT:g} s for room for a packet"):
                await client.send(b"")
    await asyncio.to_thread(shutil.rmtree, directory)


async def test_a_datagram_client_with_a_path_of_its_own() -> None:
    directory = await asyncio.to_thread(make_short_directory)
    address = UnixDatagramAddress(f"{directory}/server")
    async with serving_datagrams(echo_datagram, address) as server:
        async with await DatagramClient.connect(server, source=f"{directory}/client") as client:
            assert client.name == f"{directory}/client"
            assert await client.ask(b"hello") == b"hello"
    await asyncio.to_thread(shutil.rmtree, directory)


# They do not wait for ever.


async def silent(stream: Stream) -> None:
    await stream.receive_exactly(5)
    await stream.send(b"par")
    await asyncio.sleep(3_600)


@TRANSPORTS
@pytest.mark.parametrize(
    ("wait", "what"),
    [
        (lambda client: client.receive(), "bytes from the server at"),
        (lambda client: client.ask(b"hello"), r"5 bytes from the server at .*; \d came: b'"),
        (lambda client: client.receive_all(), "the end of what comes from the server at"),
        (lambda client: client.ended(), "bytes from the server at"),
        (lambda client: client.send(bytes(50_000_000)), "to take 50000000 bytes"),
    ],
    ids=["receive", "ask", "receive_all", "ended", "send"],
)
async def test_each_operation_is_bounded(
    wait: Callable[[Any], Awaitable[object]], what: str, transport: Any
) -> None:
    async with serving(silent, transport=transport) as server:
        async with await kind_for(transport).connect(server) as client:
            client.timeout = SHORT
            with pytest.raises(TimeoutError, match=f"waited {SHORT:g} s for .*{what}"):
                await within(wait(client))


async def test_connecting_and_handshakes_are_bounded() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        address = f"tcp://127.0.0.1:{listener.getsockname()[1]}"
        with pytest.raises(TimeoutError, match="a TLS handshake with the server at"):
            await TLSClient.connect(address, timeout=SHORT)
        async with AsyncExitStack() as clients:
            with pytest.raises(TimeoutError, match=f"waited {SHORT:g} s for a connection to 127.0.0.1:"):
                for _ in range(10):  # The queue has one place, or a few.
                    await clients.enter_async_context(await Client.connect(address, timeout=SHORT))


@pytest.fixture
def full_queue() -> Iterator[tuple[str, socket.socket]]:
    """The path of a Unix server to which nobody can connect before somebody is accepted, and its socket."""
    with short_directory() as directory, ExitStack() as exits:
        path = f"{directory}/server"
        listener = exits.enter_context(socket.socket(socket.AF_UNIX))
        listener.bind(path)
        listener.listen(0)
        listener.setblocking(False)
        with pytest.raises(BlockingIOError):
            while True:
                peer = exits.enter_context(socket.socket(socket.AF_UNIX))
                peer.setblocking(False)
                peer.connect(path)
        yield path, listener


async def test_connecting_where_the_queue_is_full(full_queue: tuple[str, socket.socket]) -> None:
    path, listener = full_queue
    with pytest.raises(TimeoutError, match=f"waited {SHORT:g} s for a connection to {path}"):
        await Client.connect(f"unix:{path}", timeout=SHORT)
    connecting = asyncio.create_task(Client.connect(f"unix:{path}", timeout=PATIENCE))
    await stays(lambda: not connecting.done())
    listener.accept()[0].close()
    async with await within(connecting) as client:
        await client.send(b"hello")


async def test_waiting_for_a_packet_is_bounded() -> None:
    async def nothing(datagram: Datagram) -> None:
        pass

    async with serving_datagrams(nothing) as server:
        async with await DatagramClient.connect(server, timeout=SHORT) as client:
            with pytest.raises(TimeoutError, match=f"waited {SHORT:g} s for a packet to "):
                await client.ask(b"hello")


async def test_a_timeout_that_is_none() -> None:
    async with serving(echo) as server, serving_datagrams(echo_datagram) as other:
        for timeout in (0, -1, float("inf"), float("nan")):
            with pytest.raises(OptionError, match="timeout"):
                await Client.connect(server, timeout=timeout)
            with pytest.raises(OptionError, match="timeout"):
                await DatagramClient.connect(other, timeout=timeout)


async def test_a_name_that_cannot_be() -> None:
    """And the socket is closed, which is looked at after the test."""
    async with serving(echo, transport="tls") as server:
        with pytest.raises(ValueError, match="server_hostname"):
            await TLSClient.connect(server, server_hostname="")


# What they connect to.


async def test_nobody_listens() -> None:
    async with serving(echo) as server:
        with pytest.raises(ssl.SSLError):
            await TLSClient.connect(server, server_hostname=None)
    with kept_port() as port, kept_port(kind=socket.SOCK_DGRAM) as other:
        with pytest.raises(ConnectionRefusedError):
            await Client.connect(f"tcp://127.0.0.1:{port}")
        async with await DatagramClient.connect(f"udp://127.0.0.1:{other}") as client:
            with pytest.raises(ConnectionRefusedError):
                await client.ask(b"hello")


@pytest.mark.parametrize(
    ("target", "family", "sockaddr"),
    [
        ("tcp://127.0.0.1:80", socket.AF_INET, ("127.0.0.1", 80)),
        ("tcp://:80", socket.AF_INET, ("127.0.0.1", 80)),
        ("udp://[::]:80", socket.AF_INET6, ("::1", 80)),
        ("unix:@name", socket.AF_UNIX, b"\0name"),
        ("unixgram:/run/name", socket.AF_UNIX, "/run/name"),
    ],
)
def test_addresses(target: str, family: int, sockaddr: object) -> None:
    place = locate(target)
    assert (place.family, place.sockaddr) == (family, sockaddr)
    assert place.kind == (socket.SOCK_DGRAM if target.startswith(("udp", "unixgram")) else socket.SOCK_STREAM)


def test_servers_of_socketserver() -> None:
    with socketserver.UDPServer(("0.0.0.0", 0), None) as server:  # type: ignore[arg-type]
        assert locate(server)[:3] == (
            socket.AF_INET,
            socket.SOCK_DGRAM,
            ("127.0.0.1", server.server_address[1]),
        )
    with short_directory() as directory:
        with socketserver.UnixStreamServer(f"{directory}/x", None) as other:  # type: ignore[arg-type]
            assert str(locate(other)) == f"{directory}/x"


def test_what_cannot_be_connected_to() -> None:
    with pytest.raises(ServerStateError, match="has no address to connect to"):
        locate(Server(echo, LOOPBACK))
    for nothing in (FDAddress(3), SimpleNamespace(), 8080):
        with pytest.raises(OptionError, match="is nothing that a client can connect to"):
            locate(nothing)  # type: ignore[arg-type]


# Where things are kept.


def test_a_short_directory_where_temporary_ones_are_long(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", f"{tmp_path}/{'x' * 60}/{'y' * 60}")
    with short_directory() as directory:
        assert len(directory) < 80
        with socket.socket(socket.AF_UNIX) as sock:
            sock.bind(f"{directory}/server")


def test_one_authority_for_all_threads(tmp_path: Path) -> None:
    at_once = threading.Barrier(4)

    def make(_: int) -> tuple[object, object, object]:
        at_once.wait()
        authority = certificates.authority(f"of-{tmp_path.name}")
        at_once.wait()
        return authority, authority.server("a.example.org"), authority.client()

    with ThreadPoolExecutor(4) as pool:
        assert len(set(pool.map(make, range(4)))) == 1


FORKING = """
import os, sys
from asyncserver.testing import certificates

authority = certificates.authority()
child = os.fork()
files = authority.issue("localhost")
if child == 0:
    sys.exit(0)
assert os.waitpid(child, 0)[1] == 0
certificates.authority().client_context(files)
print(files.certificate.parent)
"""


def test_a_forked_child_leaves_the_certificates_of_its_parent(tmp_path: Path) -> None:
    """Those of before, and those of the same number as its own."""
    status, output, errors = run_python(tmp_path, "-c", FORKING)
    assert (status, errors) == (0, "")
    assert not Path(output.strip()).exists()


def test_without_trustme(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "trustme", None)
    with pytest.raises(ImportError, match=r"pip install 'asyncserver\[testing\]'"):
        certificates.Authority.create("x")
