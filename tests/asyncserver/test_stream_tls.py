"""``start_tls()``, and what TLS does on an open connection."""

from __future__ import annotations

import asyncio
import random
import shutil
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest
from anyio import BrokenResourceError, BusyResourceError, ClosedResourceError, EndOfStream

from asyncserver import Server, Stream, TLSUpgradeError
from tests.certificates import authority
from tests.streams import (
    CLIENT_CONTEXT,
    SERVER_CONTEXT,
    Peer,
    TLSPeer,
    connected,
    driven,
    socket_pair,
    turns,
)
from tests.waiting import MS, stays, wait_until, within

OTHER_CLIENT_CONTEXT = authority("other").client_context()


async def submission(stream: Stream) -> None:
    """A server as SMTP's, that may be asked for TLS."""
    async for line in stream.lines():
        if line == b"STARTTLS":
            await stream.send(b"go\n")
            await stream.start_tls()
        else:
            await stream.send(line.upper() + b"\n")


async def upgraded(plain: Peer, **options: Any) -> TLSPeer:
    """The peer after its handshake on the same socket."""
    peer = TLSPeer(plain.socket, **options)
    await peer.handshake()
    return peer


async def test_starttls_as_clients_do_it() -> None:
    """With the standard library's client, and the context of the server."""
    async with Server(submission, "tcp://127.0.0.1:0", tls=SERVER_CONTEXT) as server:
        address: Any = server.addresses[0]

        def client() -> list[bytes]:
            with socket.create_connection((address.host, address.port)) as plain:
                plain.sendall(b"plain\n")
                answers = [plain.recv(100)]
                plain.sendall(b"STARTTLS\n")
                answers.append(plain.recv(100))
                with CLIENT_CONTEXT.wrap_socket(
                    plain, server_hostname="localhost", suppress_ragged_eofs=False
                ) as tls:
                    tls.sendall(b"secret\n")
                    answers.append(tls.recv(100))
                    tls.unwrap()
                return answers

        assert await within(asyncio.to_thread(client)) == [b"PLAIN\n", b"go\n", b"SECRET\n"]


async def test_plain_text_behind_the_command_is_refused() -> None:
    """In the same packet, so that it is read together with the command."""
    async with connected(tls=lambda: SERVER_CONTEXT) as (stream, peer):
        await peer.send(b"STARTTLS\nevil\n")
        with pytest.raises(TLSUpgradeError, match="plain text"):
            await within(driven(stream, submission))
        assert stream.closed
        with pytest.raises(ConnectionResetError):
            while await within(peer.receive()):
                pass


async def test_plain_text_behind_the_command_never_gets_into_the_session() -> None:
    """In a packet of its own, so that it is still in the kernel when the handshake begins."""
    async with connected(tls=lambda: SERVER_CONTEXT) as (stream, peer):
        task = driven(stream, submission)
        await peer.send(b"STARTTLS\n")
        assert await within(peer.receive()) == b"go\n"
        await peer.send(b"evil\n" * 10)
        with pytest.raises(TLSUpgradeError, match="handshake failed"):
            await within(task)
        assert stream.closed


async def test_a_hello_that_comes_early() -> None:
    """The handler does something else before it starts TLS; nothing may be read ahead."""
    async with connected() as (stream, peer):
        gate = asyncio.Event()

        async def handler(stream: Stream) -> bytes:
            assert await stream.receive() == b"STARTTLS\n"
            await stream.send(b"go\n")
            await gate.wait()
            await stream.start_tls(SERVER_CONTEXT)
            return await stream.receive_exactly(6)

        task = driven(stream, handler)
        await peer.send(b"STARTTLS\n")
        assert await within(peer.receive()) == b"go\n"
        shaking = asyncio.create_task(upgraded(peer))
        await stays(lambda: not shaking.done(), during=5 * MS)
        gate.set()
        tls = await within(shaking)
        await tls.send(b"secret")
        assert await within(task) == b"secret"


async def test_the_reply_leaves_before_the_handshake() -> None:
    async with connected("tcp", buffer_sizes=10_000) as (stream, peer):

        async def handler(stream: Stream) -> None:
            await stream.send(bytes(200_000))
            await stream.start_tls(SERVER_CONTEXT)
            await stream.send(b"secret")

        task = driven(stream, handler)
        assert await within(peer.receive_exactly(200_000)) == bytes(200_000)
        tls = await within(upgraded(peer))
        assert await within(tls.receive_exactly(6)) == b"secret"
        await within(task)


async def test_the_client_side() -> None:
    async with connected() as (stream, peer):
        upgrading = asyncio.create_task(
            stream.start_tls(CLIENT_CONTEXT, server_side=False, server_hostname="localhost")
        )
        tls = await within(upgraded(peer, context=SERVER_CONTEXT, server_side=True))
        await within(upgrading)
        await stream.send(b"question")
        assert await within(tls.receive()) == b"question"
        await tls.send(b"answer")
        assert await within(stream.receive()) == b"answer"
        assert stream.peer_certificate is not None
        assert "localhost" in stream.peer_certificate.dns_names


@pytest.mark.parametrize(
    ("context", "name"), [(OTHER_CLIENT_CONTEXT, "localhost"), (CLIENT_CONTEXT, "elsewhere.example.org")]
)
async def test_a_certificate_that_is_not_trusted(context: ssl.SSLContext, name: str) -> None:
    async with connected() as (stream, peer):
        upgrading = asyncio.create_task(stream.start_tls(context, server_side=False, server_hostname=name))
        shaking = asyncio.create_task(upgraded(peer, context=SERVER_CONTEXT, server_side=True))
        with pytest.raises(TLSUpgradeError, match="CERTIFICATE_VERIFY_FAILED"):
            await within(upgrading)
        assert stream.closed
        await asyncio.gather(shaking, return_exceptions=True)


async def test_a_handshake_that_fails() -> None:
    async with connected() as (stream, peer):
        upgrading = asyncio.create_task(stream.start_tls(SERVER_CONTEXT))
        await peer.send(b"GET / HTTP/1.0\r\n\r\n")
        with pytest.raises(TLSUpgradeError) as caught:
            await within(upgrading)
        assert isinstance(caught.value, BrokenResourceError)
        assert isinstance(caught.value.__cause__, ssl.SSLError)
        assert stream.closed


@pytest.mark.parametrize("end", ["close", "reset"])
async def test_a_peer_that_goes_in_the_handshake(end: str) -> None:
    for before in (True, False):
        async with connected() as (stream, peer):
            if before:
                getattr(peer, end)()
            upgrading = asyncio.create_task(stream.start_tls(SERVER_CONTEXT))
            await turns(5)
            if not before:
                await peer.send(b"\x16\x03\x01")
                await turns(5)
                getattr(peer, end)()
            with pytest.raises((TLSUpgradeError, BrokenResourceError)):
                await within(upgrading)
            assert stream.closed


async def test_a_handshake_that_takes_too_long() -> None:
    async with connected() as (stream, peer):
        with pytest.raises(TLSUpgradeError, match="longer than"):
            await within(stream.start_tls(SERVER_CONTEXT, timeout=10 * MS))
        assert stream.closed
        with pytest.raises(ConnectionResetError):
            await within(peer.receive())


async def test_a_reply_that_is_not_taken_counts_towards_the_timeout() -> None:
    async with connected("unix", buffer_sizes=5_000) as (stream, _):
        sending = asyncio.create_task(stream.send(bytes(500_000)))
        await wait_until(lambda: stream.unsent)
        with pytest.raises(TLSUpgradeError, match="longer than"):
            await within(stream.start_tls(SERVER_CONTEXT, timeout=10 * MS))
        with pytest.raises(ClosedResourceError):
            await within(sending)


async def test_a_handshake_that_is_cancelled() -> None:
    async with connected() as (stream, _):
        upgrading = asyncio.create_task(stream.start_tls(SERVER_CONTEXT))
        await turns(5)
        upgrading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await upgrading
        assert stream.closed


async def test_our_end_in_the_handshake_waits_for_it() -> None:
    async with connected() as (stream, peer):
        upgrading = asyncio.create_task(stream.start_tls(SERVER_CONTEXT))
        await turns(5)
        ending = asyncio.create_task(stream.send_eof())
        await turns(5)
        assert not ending.done()
        tls = await within(upgraded(peer))
        await within(asyncio.gather(upgrading, ending))
        assert await within(tls.receive_all()) == b""
        await tls.send(b"late")
        assert await within(stream.receive()) == b"late"


@pytest.mark.parametrize("close", ["abort", "aclose"])
async def test_closing_in_the_handshake(close: str) -> None:
    async with connected() as (stream, peer):
        upgrading = asyncio.create_task(stream.start_tls(SERVER_CONTEXT))
        await turns(5)
        number = stream._fd
        if close == "abort":
            stream.abort()
            near, far = socket.socketpair()
            assert number in (near.fileno(), far.fileno())
            near.setblocking(False)
            far.setblocking(False)
            successor = Stream(near)
            receiving = asyncio.create_task(successor.receive())
            await turns(2)
        else:
            closing = asyncio.create_task(stream.aclose())
            await turns(5)
            peer.close()
            await within(closing)
        with pytest.raises((ClosedResourceError, TLSUpgradeError)):
            await within(upgrading)
        if close == "abort":  # The handshake must not have unregistered the next one with its number.
            far.send(b"x")
            assert await within(receiving) == b"x"
            successor.abort()
            far.close()


async def test_others_during_the_handshake() -> None:
    """What they send waits for the end of the handshake, and they cannot receive."""
    async with connected(send_limit=50_000) as (stream, peer):
        upgrading = asyncio.create_task(stream.start_tls(SERVER_CONTEXT))
        await turns(5)
        sending = asyncio.create_task(stream.send(b"early"))
        large = asyncio.create_task(stream.send(bytes(100_000)))
        await turns(5)
        with pytest.raises(BusyResourceError):
            await stream.receive()
        with pytest.raises((BusyResourceError, TLSUpgradeError)):
            await stream.start_tls(SERVER_CONTEXT)
        assert not large.done()
        tls = await within(upgraded(peer))
        assert await within(tls.receive_exactly(100_005)) == b"early" + bytes(100_000)
        await within(asyncio.gather(upgrading, sending, large))


async def test_what_cannot_be_upgraded() -> None:
    async with connected() as (stream, _):
        with pytest.raises(TLSUpgradeError, match="context"):
            await stream.start_tls()
        await stream.send(b"still plain")
        stream.abort()
        with pytest.raises(ClosedResourceError):
            await stream.start_tls(SERVER_CONTEXT)
    async with connected("tls") as (stream, _):
        with pytest.raises(TLSUpgradeError, match="already"):
            await stream.start_tls(SERVER_CONTEXT)


async def test_small_sends_of_one_turn_are_one_record() -> None:
    async with connected("tls") as (stream, peer):
        sizes: list[int] = []

        async def handler(stream: Stream) -> None:
            await stream.receive()
            for _ in range(10):
                await stream.send(b"x" * 10)

        task = driven(stream, handler)
        await peer.send(b"go")
        await within(task)
        while sum(sizes) < 100:
            sizes.append(len(await within(peer.receive())))
        assert sizes == [100]


# Key updates and renegotiation


async def echo(stream: Stream) -> None:
    async for data in stream:
        await stream.send(data)


@asynccontextmanager
async def s_client(server: Server, *options: str) -> AsyncIterator[asyncio.subprocess.Process]:
    address: Any = server.addresses[0]
    client = await asyncio.create_subprocess_exec(
        "openssl", "s_client", "-connect", f"{address.host}:{address.port}", *options,
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    try:
        yield client
    finally:
        with suppress(ProcessLookupError):
            client.kill()
        await client.communicate()


async def answered(client: asyncio.subprocess.Process, line: bytes, answer: bytes = b"") -> bool:
    """Whether the line comes back, or this answer, before the end."""
    client.stdin.write(line)  # type: ignore[union-attr]
    async for found in client.stdout:  # type: ignore[union-attr]
        if found == (answer or line):
            return True
    return False


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs the openssl command")
async def test_key_updates() -> None:
    """``openssl s_client`` updates its keys and asks for ours to be updated at a line with a "K"."""
    async with (
        Server(echo, "tls+tcp://127.0.0.1:0", tls=SERVER_CONTEXT) as server,
        s_client(server, "-tls1_3") as client,
    ):
        assert await within(answered(client, b"first\n"))
        for number in range(10):
            assert await within(answered(client, b"K\n", b"KEYUPDATE\n"))
            assert await within(answered(client, b"%d\n" % number))


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs the openssl command")
async def test_renegotiation_is_refused() -> None:
    """A client that asks for handshakes again and again would cost us more than itself."""
    async with (
        Server(echo, "tls+tcp://127.0.0.1:0", tls=SERVER_CONTEXT) as server,
        s_client(server, "-tls1_2") as client,
    ):
        assert await within(answered(client, b"first\n"))
        assert await within(answered(client, b"R\n", b"RENEGOTIATING\n"))
        assert not await within(answered(client, b"second\n"))
        await wait_until(lambda: not len(server.connections))


@pytest.mark.parametrize("limit", [100_000, 10_000_000])
async def test_both_directions_while_buffers_are_full(limit: int) -> None:
    """OpenSSL's writes are blocked again and again while it reads."""
    data = random.Random(5).randbytes(2_000_000)
    async with connected("tls-unix", buffer_sizes=20_000, send_limit=limit) as (stream, peer):

        async def handler(stream: Stream) -> bytes:
            sending = asyncio.create_task(stream.send(data))
            got = await stream.receive_exactly(len(data))
            await sending
            return got

        task = driven(stream, handler)
        _, got = await within(asyncio.gather(peer.send(data), peer.receive_exactly(len(data))))
        assert got == data
        assert await within(task) == data


async def test_the_peers_end_while_much_is_to_be_sent() -> None:
    async with connected("tls-unix", buffer_sizes=20_000) as (stream, peer):
        sending = asyncio.create_task(stream.send(bytes(500_000)))
        await wait_until(lambda: stream.unsent)
        await peer.send_eof()
        with pytest.raises(EndOfStream):
            await within(stream.receive())
        assert await within(peer.receive_exactly(500_000)) == bytes(500_000)
        await within(sending)


class Reluctant:
    """Stands for a TLS socket that has to read before it can write, as in a renegotiation."""

    def __init__(self, tls: ssl.SSLSocket) -> None:
        self.tls = tls
        self.refusals = 3

    def __getattr__(self, name: str) -> Any:
        return getattr(self.tls, name)

    def send(self, data: Any) -> int:
        if self.refusals:
            self.refusals -= 1
            raise ssl.SSLWantReadError
        return self.tls.send(data)


async def test_a_write_that_has_to_read_first() -> None:
    async with connected("tls") as (stream, peer):
        reluctant: Any = Reluctant(stream._tls)  # type: ignore[arg-type]
        stream._sock = reluctant
        receiving = asyncio.create_task(stream.receive_exactly(4))
        await wait_until(lambda: stream.receiving)
        await stream.send(b"delayed")
        for letter in b"abcd":
            await turns(3)
            await peer.send(bytes([letter]))
        assert await within(receiving) == b"abcd"
        assert await within(peer.receive_exactly(7)) == b"delayed"
        stream._sock = reluctant.tls


async def test_a_handshake_on_sockets_that_never_connected() -> None:
    near, far = await socket_pair()
    far.close()
    stream = Stream(near)
    with pytest.raises(TLSUpgradeError):
        await within(stream.handshake(SERVER_CONTEXT))
    assert stream.closed
