"""Half-closing, closing in peace and aborting."""

from __future__ import annotations

import asyncio
import itertools
import random
import socket
import ssl
from contextlib import suppress

import pytest
from anyio import BrokenResourceError, ClosedResourceError, EndOfStream

from asyncserver import Stream
from asyncserver.testing import exhausted_descriptors
from tests.streams import KINDS, Peer, connected, driven, turns
from tests.waiting import MS, SECOND, stays, wait_until, within

all_kinds = pytest.mark.parametrize("kind", KINDS)
LONG = 5 * SECOND


# Half-closing


@all_kinds
async def test_the_peers_bytes_come_after_our_end(kind: str) -> None:
    async with connected(kind) as (stream, peer):
        await stream.send(b"question")
        await stream.send_eof()
        assert await within(peer.receive_all()) == b"question"
        for _ in range(3):
            await peer.send(b"answer")
            assert await within(stream.receive()) == b"answer"
        await peer.send_eof()
        with pytest.raises(EndOfStream):
            await within(stream.receive())


@all_kinds
async def test_bytes_that_came_before_our_end_are_not_lost(kind: str) -> None:
    """OpenSSL would drop them, and the connection with them, if it looked for the peer's alert."""
    data = random.Random(1).randbytes(100_000)
    async with connected(kind) as (stream, peer):
        sending = asyncio.create_task(peer.send(data))
        await turns(10)
        await stream.send_eof()
        assert await within(stream.receive_exactly(len(data))) == data
        await sending
        assert await within(peer.receive_all()) == b""
        await peer.send_eof()
        with pytest.raises(EndOfStream):
            await within(stream.receive())


@pytest.mark.parametrize("received", [10, 16_390])
@pytest.mark.parametrize("kind", ["tls", "tls-memory"])
async def test_bytes_that_openssl_holds_are_not_lost_by_our_end(kind: str, received: int) -> None:
    """Of a record of which a part was received, the rest is decrypted already."""
    data = random.Random(7).randbytes(20_000)
    async with connected(kind) as (stream, peer):
        await peer.send(data)
        got = await within(stream.receive_exactly(received))
        rest = asyncio.create_task(stream.receive_exactly(len(data) - received))
        await stream.send_eof()
        assert got + await within(rest) == data
        assert stream.bytes_received == len(data)
        assert await within(peer.receive_all()) == b""
        await peer.send(b"late")
        assert await within(stream.receive()) == b"late"


@pytest.mark.parametrize("size", [7, 5_000])
@pytest.mark.parametrize("way", ["receive", "lines"])
@pytest.mark.parametrize("kind", ["tls", "tls-memory"])
async def test_bytes_stay_in_order_when_another_task_ends(kind: str, way: str, size: int) -> None:
    """A receive that waits for its turn gets what OpenSSL held at the end before what is read then."""
    data = b"".join(b"%d\n" % number for number in range(20_000))
    async with connected(kind, receive_limit=size) as (stream, peer):
        got = bytearray()
        receiving = asyncio.create_task(
            collect_lines(stream, got) if way == "lines" else collect(stream, got)
        )
        sending = asyncio.create_task(send_all_and_end(peer, data))
        await wait_until(lambda: len(got) > 20_000)
        await stream.send_eof()
        await within(receiving)
        assert got == data
        await sending


@pytest.mark.parametrize("way", ["receive", "lines"])
@pytest.mark.parametrize("kind", ["tls", "tls-memory"])
async def test_our_end_while_a_receive_waits_for_its_turn(kind: str, way: str) -> None:
    """What OpenSSL held is more than it would have taken at once."""
    data = b"".join(b"%d\n" % number for number in range(1_000))
    async with connected(kind, receive_limit=10) as (stream, peer):
        got = bytearray()
        receiving = asyncio.create_task(
            collect_lines(stream, got) if way == "lines" else collect(stream, got)
        )
        sending = asyncio.create_task(send_all_and_end(peer, data))
        while not (got and stream.receiving):
            await asyncio.sleep(0)
        assert len(got) < len(data)
        await stream.send_eof()
        await within(receiving)
        assert got == data
        await sending


@pytest.mark.allow_blocking("the descriptors of the process are listed")
async def test_our_end_without_descriptors_waits_for_them() -> None:
    """The alert takes a pair of sockets; what is received does not wait for it."""
    async with connected("tls") as (stream, peer):
        receiving = asyncio.create_task(stream.receive())
        await wait_until(lambda: stream.receiving)
        with exhausted_descriptors():
            ending = asyncio.create_task(stream.send_eof())
            await peer.send(b"before")
            assert await within(receiving) == b"before"
            assert not ending.done()
        await within(ending)
        assert await within(peer.receive_all()) == b""
        await peer.send(b"late")
        assert await within(stream.receive()) == b"late"


@pytest.mark.allow_blocking("the descriptors of the process are listed")
async def test_our_end_without_descriptors_ends_with_the_stream() -> None:
    async with connected("tls") as (stream, _):
        with exhausted_descriptors():
            ending = asyncio.create_task(stream.send_eof())
            await turns()
            stream.abort()
            with pytest.raises(ClosedResourceError):
                await within(ending)


@pytest.mark.parametrize("how", ["cancelled", "overtaken"])
async def test_our_end_that_waits_for_room_is_sent_by_the_closing(how: str) -> None:
    """OpenSSL takes the alert for sent; what the kernel has not taken of it is not lost."""
    async with connected("tls-unix", buffer_sizes=10_000) as (stream, _):
        count = await fill(stream)
    async with connected("tls-unix", buffer_sizes=10_000) as (stream, peer):
        for _ in range(count):
            await stream.send(b"x")
            await within(stream.flush())
        ending = asyncio.create_task(stream.send_eof())
        await wait_until(lambda: stream.stalled)
        if how == "cancelled":
            ending.cancel()
            await asyncio.wait([ending])
        closing = asyncio.create_task(stream.aclose())
        assert await within(peer.receive_all()) == b"x" * count  # It raises if the alert is missing.
        peer.close()
        await within(closing)
        if how == "overtaken":
            await within(ending)


async def fill(stream: Stream) -> int:
    """Send single bytes until the kernel takes no more; returns how many it has taken."""
    for count in itertools.count():
        await stream.send(b"x")
        flushing = asyncio.create_task(stream.flush())
        await turns(5)
        if not flushing.done():
            flushing.cancel()
            await asyncio.wait([flushing])
            return count
    raise AssertionError


async def collect(stream: Stream, got: bytearray) -> None:
    async for data in stream:
        got.extend(data)


async def collect_lines(stream: Stream, got: bytearray) -> None:
    async for line in stream.lines():
        got.extend(line + b"\n")


@all_kinds
async def test_our_end_while_bytes_stream_in(kind: str) -> None:
    data = random.Random(2).randbytes(3_000_000)
    async with connected(kind) as (stream, peer):

        async def handler(stream: Stream) -> bytes:
            got = bytearray()
            while len(got) < len(data):
                got += await stream.receive()
                if len(got) > 1_000_000:
                    await stream.send_eof()
            return bytes(got)

        task = driven(stream, handler)
        await within(peer.send(data))
        assert await within(task) == data
        assert await within(peer.receive_all()) == b""


@all_kinds
async def test_our_end_while_a_receive_waits(kind: str) -> None:
    async with connected(kind) as (stream, peer):
        receiving = asyncio.create_task(stream.receive())
        await wait_until(lambda: stream.receiving)
        await stream.send_eof()
        assert await within(peer.receive_all()) == b""
        assert not receiving.done()
        await peer.send(b"late")
        assert await within(receiving) == b"late"


@all_kinds
async def test_our_end_after_the_peers(kind: str) -> None:
    async with connected(kind) as (stream, peer):
        await peer.send(b"question")
        await peer.send_eof()
        assert await within(stream.receive()) == b"question"
        await turns(5)
        await stream.send(b"answer")
        await stream.send_eof()
        assert await within(peer.receive_all()) == b"answer"
        for _ in range(2):
            with pytest.raises(EndOfStream):
                await within(stream.receive())


@all_kinds
async def test_a_second_end_does_nothing(kind: str) -> None:
    async with connected(kind) as (stream, peer):
        await stream.send_eof()
        await stream.send_eof()
        assert await within(peer.receive_all()) == b""
        await peer.send(b"x")
        assert await within(stream.receive()) == b"x"


@all_kinds
async def test_our_end_behind_a_full_buffer(kind: str) -> None:
    """The end of the stream is not lost when the kernel takes no more just then."""
    data = random.Random(3).randbytes(2_000_000)
    async with connected(kind, buffer_sizes=100_000) as (stream, peer):
        await_end = asyncio.create_task(send_all_and_end(stream, data))
        await wait_until(lambda: stream.unsent)
        assert await within(peer.receive_all()) == data
        await within(await_end)


async def send_all_and_end(stream: Stream | Peer, data: bytes) -> None:
    await stream.send(data)
    await stream.send_eof()


async def test_no_closing_alert_is_lost_in_a_full_buffer() -> None:
    """Whatever room the kernel has when everything is sent: none, or too little for the alert."""
    for size in range(100_000, 200_000, 5_001):
        async with connected("tls-unix", buffer_sizes=10_000) as (stream, peer):
            closing = asyncio.create_task(send_all_and_close(stream, bytes(size)))
            await wait_until(lambda: stream.unsent)
            received = len(await within(peer.receive_all()))  # raises if the alert is missing
            peer.close()
            await within(closing)
            assert received == size


async def send_all_and_close(stream: Stream, data: bytes) -> None:
    await stream.send(data)
    await stream.aclose()


@all_kinds
async def test_cancelling_our_end(kind: str) -> None:
    async with connected(kind, buffer_sizes=100_000) as (stream, peer):
        sending = asyncio.create_task(send_all_and_end(stream, bytes(500_000)))
        await wait_until(lambda: stream.unsent)
        await turns()
        sending.cancel()
        with pytest.raises(asyncio.CancelledError):
            await sending
        closing = asyncio.create_task(stream.aclose())
        assert len(await within(peer.receive_all())) == 500_000
        peer.close()
        await within(closing)


# Closing in peace


@all_kinds
async def test_the_reply_is_not_lost_to_a_reset(kind: str) -> None:
    """The client sends much, and the server replies and closes without reading it all."""
    async with connected(kind) as (stream, peer):

        async def handler(stream: Stream) -> None:
            assert await stream.receive(3)
            await stream.send(b"too much for me")
            await stream.aclose()

        task = driven(stream, handler)
        sending = asyncio.create_task(peer.send(bytes(3_000_000)))
        await within(sending)
        assert await within(peer.receive_all()) == b"too much for me"
        peer.close()
        await within(task)
        assert stream.closed


@all_kinds
async def test_closing_waits_for_what_is_left(kind: str) -> None:
    async with connected(kind, buffer_sizes=20_000) as (stream, peer):
        data = random.Random(4).randbytes(500_000)
        sending = asyncio.create_task(stream.send(data))
        await wait_until(lambda: stream.unsent)
        closing = asyncio.create_task(stream.aclose())
        await turns()
        with pytest.raises(ClosedResourceError):
            await stream.send(b"more")
        assert await within(peer.receive_all()) == data
        await within(sending)
        peer.close()
        await within(closing)


@all_kinds
async def test_a_peer_that_never_closes_is_not_waited_for_for_ever(kind: str) -> None:
    async with connected(kind) as (stream, peer):
        await stream.send(b"bye")
        await within(stream.close_gently(20 * MS), timeout=SECOND)
        assert stream.closed
        assert await within(peer.receive_all()) == b"bye"


@all_kinds
async def test_a_peer_that_takes_nothing_is_not_waited_for_for_ever(kind: str) -> None:
    async with connected(kind, buffer_sizes=10_000) as (stream, _):
        sending = asyncio.create_task(stream.send(bytes(1_000_000)))
        await wait_until(lambda: stream.unsent)
        await within(stream.close_gently(20 * MS), timeout=SECOND)
        assert stream.closed
        with pytest.raises(ClosedResourceError):
            await within(sending)


@all_kinds
async def test_a_peer_that_sends_for_ever_is_not_listened_to_for_ever(kind: str) -> None:
    async with connected(kind) as (stream, peer):

        async def flood() -> None:
            with suppress(OSError, ssl.SSLError):
                while True:
                    await peer.send(bytes(100_000))

        flooding = asyncio.create_task(flood())
        await within(stream.close_gently(LONG))
        assert stream.closed
        await within(flooding)


@all_kinds
async def test_lingering_for_no_time(kind: str) -> None:
    async with connected(kind) as (stream, peer):
        await stream.send(b"bye")
        await stream.close_gently(0)
        assert stream.closed
        assert await within(peer.receive_all()) == b"bye"


@all_kinds
async def test_closing_again_and_at_the_same_time(kind: str) -> None:
    async with connected(kind) as (stream, peer):
        closing = [asyncio.create_task(stream.aclose()) for _ in range(3)]
        await turns()
        peer.close()
        await within(asyncio.gather(*closing))
        await stream.aclose()
        stream.abort()
        stream.close_now()
        assert stream.closed


@all_kinds
async def test_cancelling_the_closing_closes(kind: str) -> None:
    async with connected(kind) as (stream, peer):
        closing = [asyncio.create_task(stream.aclose()) for _ in range(2)]
        await turns()
        closing[0].cancel()
        with pytest.raises(asyncio.CancelledError):
            await closing[0]
        assert stream.closed
        await within(closing[1])
        assert await within(peer.receive_all()) == b""


@all_kinds
async def test_closing_under_a_driven_receive(kind: str) -> None:
    """Another task closes the stream: the handler is told, and sees nothing of what still comes."""
    async with connected(kind) as (stream, peer):
        task = driven(stream, forever)
        await wait_until(lambda: stream.receiving)
        closing = asyncio.create_task(stream.aclose())
        peer.send_now(b"too late")
        with pytest.raises(ClosedResourceError):
            await within(task)
        peer.close()
        await within(closing)


async def forever(stream: Stream) -> None:
    while True:
        data = await stream.receive()
        assert data == b"too late"


@all_kinds
async def test_closing_a_broken_connection(kind: str) -> None:
    async with connected(kind) as (stream, peer):
        peer.reset() if kind != "unix" else peer.close()
        with pytest.raises((BrokenResourceError, EndOfStream)):
            await within(stream.receive())
        await within(stream.aclose(), timeout=SECOND)
        assert stream.closed


@all_kinds
async def test_the_common_case_does_not_wait(kind: str) -> None:
    """The peer has closed and has everything: closing takes no turn of the loop."""
    async with connected(kind) as (stream, peer):
        await peer.send_eof()
        with pytest.raises(EndOfStream):
            await within(stream.receive())
        await stream.send(b"bye")
        closing = stream.aclose()
        with pytest.raises(StopIteration):
            closing.send(None)
        assert stream.closed
        assert await within(peer.receive_all()) == b"bye"


# Aborting


@pytest.mark.parametrize("kind", ["tcp", "tls"])
async def test_an_abort_resets(kind: str) -> None:
    async with connected(kind) as (stream, peer):
        await stream.send(b"never")
        stream.abort()
        with pytest.raises(ConnectionResetError):
            while await within(peer.loop.sock_recv(peer.socket, 100)):
                pass  # what the handshake has left


async def test_an_abort_on_a_unix_socket_is_an_end() -> None:
    async with connected("unix") as (stream, peer):
        stream.abort()
        assert await within(peer.receive_all()) == b""


@all_kinds
async def test_an_abort_ends_the_closing(kind: str) -> None:
    async with connected(kind) as (stream, _):
        closing = asyncio.create_task(stream.aclose())
        await turns()
        stream.abort()
        await within(closing)


@pytest.mark.parametrize("kind", ["tcp", "unix"])
async def test_a_descriptor_that_is_used_again_is_left_alone(kind: str) -> None:
    """What still waited on the closed stream must not touch the next one with its number."""
    async with connected(kind, buffer_sizes=10_000) as (stream, _peer):
        waiting = [asyncio.create_task(stream.send(bytes(1_000_000))), asyncio.create_task(stream.receive())]
        await wait_until(lambda: stream.receiving and stream.unsent)
        number = stream._fd
        stream.abort()
        near, far = socket.socketpair()
        near.setblocking(False)
        far.setblocking(False)
        successor = Stream(near)
        assert number in (near.fileno(), far.fileno())
        receiving = asyncio.create_task(successor.receive())
        await within(asyncio.gather(*waiting, return_exceptions=True))
        await stays(lambda: not receiving.done(), during=5 * MS)
        far.send(b"x")
        assert await within(receiving) == b"x"
        successor.abort()
        far.close()
