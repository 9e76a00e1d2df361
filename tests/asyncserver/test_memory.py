"""What is special about ``memory_stream_pair()``.

That its streams behave like others is shown by the tests of streams, where they are one of the ``KINDS``,
and by ``check_stream()``.
"""

from __future__ import annotations

import asyncio
import gc
import io
import random
import ssl
import weakref
from pathlib import Path
from typing import Any

import pytest
from anyio import BrokenResourceError, ClosedResourceError, EndOfStream, TypedAttributeLookupError
from anyio.abc import SocketAttribute
from anyio.streams.tls import TLSAttribute

from asyncserver import (
    Endpoint,
    IPEndpoint,
    OptionError,
    PeerCredentials,
    ServerStateError,
    Stream,
    TLSUpgradeError,
    UnixEndpoint,
    memory_stream_pair,
)
from tests.certificates import authority
from tests.leaks import open_descriptors
from tests.streams import CLIENT_CONTEXT, SERVER_CONTEXT, turns
from tests.waiting import MS, SECOND, stays, wait_until, within

MUTUAL_CLIENT = authority().client_context(authority().client())
MUTUAL_SERVER = authority().server_context()
MUTUAL_SERVER.verify_mode = ssl.CERT_REQUIRED
MUTUAL_SERVER.load_verify_locations(authority().file)
for context in (MUTUAL_CLIENT, MUTUAL_SERVER):
    context.set_alpn_protocols(["first", "second"])


async def greet(stream: Stream) -> None:
    name = await stream.receive_until(b"\n", 100)
    await stream.send(b"hello, " + name + b"\n")


async def submission(stream: Stream) -> None:
    """A server as SMTP's, that may be asked for TLS."""
    async for line in stream.lines():
        if line == b"STARTTLS":
            await stream.send(b"go\n")
            await stream.start_tls()
        else:
            await stream.send(line.upper() + b"\n")


# A handler under test


async def test_a_handler_in_the_task_of_the_test() -> None:
    near, far = memory_stream_pair()
    await far.send(b"world\n")
    async with near:
        await within(greet(near), timeout=SECOND)
    assert near.closed
    assert await far.receive_until(b"\n", 100) == b"hello, world"
    with pytest.raises(EndOfStream):
        await far.receive()
    await far.aclose()


async def test_a_handler_in_a_task_of_its_own() -> None:
    near, far = memory_stream_pair(tls=SERVER_CONTEXT)

    async def serve() -> None:
        async with near:
            await submission(near)

    serving = asyncio.create_task(serve())
    await far.send(b"plain\nSTARTTLS\n")
    assert await within(far.receive_exactly(9)) == b"PLAIN\ngo\n"
    await within(far.start_tls(CLIENT_CONTEXT, server_side=False, server_hostname="localhost"))
    await far.send(b"secret\n")
    assert await within(far.receive_until(b"\n", 100)) == b"SECRET"
    assert far.peer_certificate is not None
    assert "localhost" in far.peer_certificate.dns_names
    await far.aclose()
    await within(serving)


async def test_a_handler_that_fails() -> None:
    near, far = memory_stream_pair()
    with pytest.raises(ZeroDivisionError):
        async with near, far:
            raise ZeroDivisionError
    assert near.closed
    assert far.closed


# What they report


async def test_addresses() -> None:
    near, far = memory_stream_pair()
    assert (str(near.peer), str(near.local)) == ("192.0.2.1:50000", "192.0.2.2:7000")
    assert (far.peer, far.local) == (near.local, near.peer)
    assert repr(near) == "<MemoryStream peer=192.0.2.1:50000 open>"
    near.abort()
    assert repr(near) == "<MemoryStream peer=192.0.2.1:50000 closed>"
    assert str(near.peer) == "192.0.2.1:50000"


IPV4, IPV6 = IPEndpoint("10.0.0.1", 1), IPEndpoint("fe80::1", 2, 0, 3)
UNIX, ABSTRACT = UnixEndpoint("/run/app.sock"), UnixEndpoint("@app")


@pytest.mark.parametrize(
    ("peer", "local", "expected"),
    [
        (IPV4, None, (IPV4, IPEndpoint("192.0.2.2", 7_000))),
        (None, IPV6, (IPEndpoint("2001:db8::1", 50_000), IPV6)),
        (None, UNIX, (UnixEndpoint(""), UNIX)),
        (ABSTRACT, UNIX, (ABSTRACT, UNIX)),
    ],
)
async def test_addresses_of_any_kind(
    peer: Endpoint | None, local: Endpoint | None, expected: tuple[Endpoint, Endpoint]
) -> None:
    near, far = memory_stream_pair(peer=peer, local=local)
    assert (near.peer, near.local) == (far.local, far.peer) == expected


async def test_attributes_of_sockets() -> None:
    near, far = memory_stream_pair(peer=IPV6)
    assert near.extra(SocketAttribute.remote_address) == ("fe80::1%3", 2)
    assert near.extra(SocketAttribute.remote_port) == 2
    assert near.extra(SocketAttribute.local_port) == far.extra(SocketAttribute.remote_port) == 7_000
    near, _ = memory_stream_pair(peer=ABSTRACT, local=UNIX)
    assert near.extra(SocketAttribute.local_address) == "/run/app.sock"
    assert near.extra(SocketAttribute.remote_address) == b"\0app"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"capacity": 0}, "capacity=0: has to be at least 1"),
        ({"capacity": None}, "capacity=None: has to be a whole number of bytes"),
        ({"chunk": 0}, "chunk=0: has to be at least 1"),
        ({"chunk": 1.5}, "chunk=1.5: has to be a whole number of bytes"),
        ({"peer": ("10.0.0.1", 1)}, "peer=('10.0.0.1', 1): has to be an IPEndpoint"),
        ({"local": "unix:x"}, "local='unix:x': has to be an IPEndpoint"),
        ({"peer": IPV4, "local": UNIX}, "local=UnixEndpoint(path='/run/app.sock'): has to be an address of"),
    ],
)
async def test_what_cannot_be_asked_for(options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError) as caught:
        memory_stream_pair(**options)
    assert str(caught.value).startswith(message)


def test_a_pair_needs_a_loop() -> None:
    with pytest.raises(RuntimeError, match="no running event loop"):
        memory_stream_pair()


# Buffers


@pytest.mark.parametrize("capacity", [1, 5_000, 65_536, 1_000_000])
async def test_the_capacity_is_what_may_be_under_way(capacity: int) -> None:
    near, far = memory_stream_pair(capacity=capacity)
    sent = 0

    async def send() -> None:
        nonlocal sent
        while True:
            await near.send(b"x" * 100)
            sent += 100

    sending = asyncio.create_task(send())
    await wait_until(lambda: near._send_waiters)
    await stays(lambda: capacity - 200 <= sent <= capacity + 1_500, during=5 * MS, what=f"{sent} bytes")
    await within(far.receive_exactly(2 * capacity))
    near.abort()
    with pytest.raises(ClosedResourceError):
        await within(sending)


async def test_byte_by_byte() -> None:
    near, far = memory_stream_pair(chunk=1)
    await far.send(b"one\r\ntwo\r\n")
    await far.send_eof()
    await turns(5)
    assert await within(near.receive()) == b"o"
    assert [line async for line in near.lines()] == [b"ne", b"two"]
    await near.send(b"abc")
    await near.send_eof()
    assert [chunk async for chunk in far] == [b"a", b"b", b"c"]


# TLS


async def under_tls(near: Stream, far: Stream, server: ssl.SSLContext, client: ssl.SSLContext) -> None:
    await within(
        asyncio.gather(
            near.start_tls(server),
            far.start_tls(client, server_side=False, server_hostname="localhost"),
        )
    )


async def test_certificates_and_what_else_tls_tells() -> None:
    near, far = memory_stream_pair(chunk=100)
    await under_tls(near, far, MUTUAL_SERVER, MUTUAL_CLIENT)
    assert near.peer_certificate is not None
    assert near.peer_certificate.common_name == "client"
    assert near.extra(TLSAttribute.alpn_protocol) == far.extra(TLSAttribute.alpn_protocol) == "first"
    assert near.extra(TLSAttribute.tls_version) == "TLSv1.3"
    assert near.extra(TLSAttribute.server_side)
    assert not far.extra(TLSAttribute.server_side)
    tls: Any = near.ssl_object
    assert tls is near.extra(TLSAttribute.ssl_object)
    assert (tls.version(), tls.context) == ("TLSv1.3", MUTUAL_SERVER)
    assert near.extra(SocketAttribute.remote_port) == 50_000


@pytest.mark.parametrize("chunk", [None, 1_000])
async def test_much_under_tls_both_ways(chunk: int | None) -> None:
    data = random.Random(1).randbytes(300_000)
    near, far = memory_stream_pair(capacity=10_000, chunk=chunk)
    await under_tls(near, far, SERVER_CONTEXT, CLIENT_CONTEXT)

    async def send(stream: Stream) -> None:
        await stream.send(data)
        await stream.send_eof()

    async with asyncio.TaskGroup() as group:
        for stream in near, far:
            group.create_task(send(stream))
        for stream in near, far:
            chunks = [chunk async for chunk in stream]
            assert b"".join(chunks) == data
            assert max(map(len, chunks)) <= (chunk or 16_384)


async def test_the_end_under_tls_loses_nothing_that_is_on_its_way() -> None:
    near, far = memory_stream_pair()
    await under_tls(near, far, SERVER_CONTEXT, CLIENT_CONTEXT)
    await far.send(bytes(20_000))
    await turns(5)
    assert len(await near.receive(10)) == 10
    await near.send_eof()
    assert await within(near.receive_exactly(19_990)) == bytes(19_990)
    with pytest.raises(EndOfStream):
        await within(far.receive())
    await far.aclose()
    with pytest.raises(EndOfStream):
        await within(near.receive())


async def test_a_connection_cut_under_tls_is_no_end() -> None:
    near, far = memory_stream_pair()
    await under_tls(near, far, SERVER_CONTEXT, CLIENT_CONTEXT)
    far._raw_socket.close()
    with pytest.raises(BrokenResourceError):
        await within(near.receive())
    with pytest.raises(BrokenResourceError):
        await near.send(b"x")


async def test_a_handshake_that_fails() -> None:
    near, far = memory_stream_pair()
    outcomes = await within(
        asyncio.gather(
            near.start_tls(SERVER_CONTEXT),
            far.start_tls(CLIENT_CONTEXT, server_side=False, server_hostname="elsewhere.example.org"),
            return_exceptions=True,
        )
    )
    assert all(isinstance(outcome, TLSUpgradeError) for outcome in outcomes)
    assert "CERTIFICATE_VERIFY_FAILED" in str(outcomes[1])
    near, far = memory_stream_pair()
    far.abort()
    with pytest.raises(TLSUpgradeError, match="Connection reset"):
        await within(near.start_tls(SERVER_CONTEXT))
    near, far = memory_stream_pair()
    with pytest.raises(TLSUpgradeError, match="needs a context"):
        await near.start_tls()


# Closing


async def test_closing_does_not_wait_for_the_other_side() -> None:
    near, far = memory_stream_pair()
    await near.send(b"the last bytes")
    await far.send(b"never received")
    await within(near.aclose(), timeout=SECOND)
    assert await within(far.receive()) == b"the last bytes"
    with pytest.raises(EndOfStream):
        await far.receive()
    with pytest.raises(BrokenResourceError):
        for _ in range(3):
            await far.send(b"x")
            await turns()


async def test_closing_waits_until_everything_is_taken() -> None:
    near, far = memory_stream_pair(capacity=1_000)
    sending = asyncio.create_task(near.send(bytes(50_000)))
    await wait_until(lambda: near.congested)
    closing = asyncio.create_task(near.aclose())
    await stays(lambda: not closing.done(), during=5 * MS)
    assert await within(far.receive_exactly(50_000)) == bytes(50_000)
    await within(asyncio.gather(closing, sending))
    with pytest.raises(EndOfStream):
        await far.receive()


async def test_an_abort_destroys_what_was_not_received() -> None:
    near, far = memory_stream_pair()
    await near.send(b"lost")
    await turns()
    near.abort()
    with pytest.raises(BrokenResourceError) as caught:
        await within(far.receive())
    assert isinstance(caught.value.__cause__, ConnectionResetError)
    with pytest.raises(BrokenResourceError):
        await far.send(b"x")


async def test_nothing_of_the_system_is_used(path: Path) -> None:
    before = await asyncio.to_thread(open_descriptors)
    near, far = memory_stream_pair()
    await under_tls(near, far, SERVER_CONTEXT, CLIENT_CONTEXT)
    await near.send(b"x")
    assert await within(far.receive()) == b"x"
    assert await asyncio.to_thread(open_descriptors) == before
    # And nothing happens when they are forgotten like that.


async def test_a_closed_pair_is_freed_at_once() -> None:
    near, far = memory_stream_pair()
    await near.send(b"x")
    assert await within(far.receive()) == b"x"
    await near.aclose()
    await far.aclose()
    await turns()
    dead = [weakref.ref(near._raw_socket), weakref.ref(far._raw_socket), weakref.ref(near._poller)]
    gc.disable()
    try:
        del near, far
        assert [reference() for reference in dead] == [None, None, None]
    finally:
        gc.enable()


# What takes a socket, or a descriptor


async def test_what_needs_a_socket_says_so() -> None:
    near, far = memory_stream_pair()
    with pytest.raises(
        ServerStateError, match=r"^blocking_socket\(\) needs a socket, and a stream in memory"
    ):
        async with near.blocking_socket():
            pass
    with pytest.raises(ServerStateError, match=r"^detach\(\) needs a socket"):
        near.detach()
    with pytest.raises(TypedAttributeLookupError):
        near.extra(SocketAttribute.raw_socket)
    assert near.extra(SocketAttribute.raw_socket, None) is None
    await near.send(b"still here")
    assert await within(far.receive()) == b"still here"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "content"
    path.write_bytes(b"0123456789" * 20_000)
    return path


async def test_a_file_is_read_and_sent(path: Path) -> None:
    near, far = memory_stream_pair(capacity=10_000)
    with await asyncio.to_thread(path.open, "rb") as file:
        sending = asyncio.create_task(near.send_file(file, 5, 100_000))
        assert await within(far.receive_exactly(100_000)) == b"5678901234" * 10_000
        assert await within(sending) == 100_000
    sending = asyncio.create_task(near.send_file(io.BytesIO(b"in memory")))
    assert await within(far.receive_exactly(9)) == b"in memory"
    assert await within(sending) == 9


async def test_the_peer_of_a_unix_stream_is_this_process() -> None:
    near, _ = memory_stream_pair(peer=UnixEndpoint(""))
    credentials = near.peer_credentials
    assert isinstance(credentials, PeerCredentials)
    assert memory_stream_pair()[0].peer_credentials is None
