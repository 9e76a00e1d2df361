"""Sending: order, back-pressure, one system call for what is sent in one turn, errors on the way."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import random
import socket
from collections import Counter
from contextlib import suppress
from typing import Any

import anyio
import pytest
from anyio import BrokenResourceError, ClosedResourceError

from asyncserver import Stream
from asyncserver.channel import ITEM_COST
from asyncserver.stream_settings import FLUSH_SIZE
from tests.streams import KINDS, Peer, connected, driven, raised, socket_pair, turns
from tests.waiting import MS, stays, wait_until, within

all_kinds = pytest.mark.parametrize("kind", KINDS)


class CountingSocket(socket.socket):
    """Counts the system calls that send."""

    def __init__(self, sock: socket.socket) -> None:
        super().__init__(sock.family, sock.type, sock.proto, sock.detach())
        self.setblocking(False)
        self.calls: list[int] = []

    def send(self, data: Any, flags: int = 0) -> int:
        self.calls.append(len(data))
        return super().send(data, flags)

    def sendmsg(self, buffers: Any, *args: Any) -> int:
        self.calls.append(sum(map(len, buffers)))
        return super().sendmsg(buffers, *args)


@all_kinds
async def test_everything_in_order(kind: str) -> None:
    rng = random.Random(5)
    items: list[Any] = [rng.randbytes(rng.choice((0, 1, 100, 5_000, 70_000, 300_000))) for _ in range(60)]
    async with connected(kind) as (stream, peer):

        async def handler(stream: Stream) -> None:
            for number, item in enumerate(items):
                kinds = (bytes, bytearray, memoryview)
                if number % 4 == 3:
                    await stream.send_many([item[:10], bytearray(item[10:20]), memoryview(item)[20:]])
                else:
                    await stream.send(kinds[number % 4](item))
            await stream.send_eof()

        task = driven(stream, handler)
        assert await within(peer.receive_all()) == b"".join(items)
        await within(task)
        assert stream.bytes_sent == sum(map(len, items))
        assert stream.unsent == 0


@all_kinds
async def test_what_is_changed_after_sending_is_not_seen(kind: str) -> None:
    async with connected(kind) as (stream, peer):
        item = bytearray(b"before")
        await stream.send(item)
        await stream.send_many([item, memoryview(item)])
        item[:] = b"after!"
        item += b" and longer"
        assert await within(peer.receive_exactly(18)) == b"before" * 3


async def test_what_can_be_sent() -> None:
    async with connected() as (stream, peer):
        await stream.send(memoryview(b"0123456789")[::2])
        await stream.send(b"")
        await stream.send_many([])
        await stream.send_many([b"", b"x", b""])
        assert await within(peer.receive_exactly(6)) == b"02468x"
        for wrong in (5, "text", None, [1, 2]):
            with pytest.raises(TypeError):
                await stream.send(wrong)  # type: ignore[arg-type]
            with pytest.raises(TypeError):
                await stream.send_many([wrong])  # type: ignore[list-item]
        with pytest.raises(TypeError):
            await stream.send_many(b"abc")  # type: ignore[arg-type]


@all_kinds
async def test_sending_nothing_for_ever_keeps_nothing(kind: str) -> None:
    async with connected(kind) as (stream, peer):

        async def handler(stream: Stream) -> None:
            async for _ in stream:
                for _ in range(10):
                    await stream.send(b"")

        task = driven(stream, handler)
        for _ in range(50):
            await peer.send(b"x")
            await turns()
        assert stream._out is None
        await peer.send_eof()
        await within(task)


# One system call for what is sent in one turn


@pytest.mark.parametrize("is_driven", [True, False])
@pytest.mark.parametrize("size", [10, 10_000])
async def test_sends_of_one_turn_leave_together(is_driven: bool, size: int) -> None:
    near, far = await socket_pair()
    sock, peer = CountingSocket(near), Peer(far)
    stream = Stream(sock)

    async def handler(stream: Stream) -> None:
        async for _ in stream:
            for _ in range(6):
                await stream.send(bytes(size))

    task: Any = driven(stream, handler) if is_driven else asyncio.create_task(handler(stream))  # type: ignore[arg-type]
    for _ in range(3):
        await peer.send(b"x")
        await within(peer.receive_exactly(6 * size))
    await peer.send_eof()
    await within(task)
    assert sock.calls == [6 * size] * 3
    stream.abort()
    peer.close()


async def test_sends_of_several_tasks_leave_together() -> None:
    near, far = await socket_pair()
    sock, peer = CountingSocket(near), Peer(far)
    stream = Stream(sock)
    await asyncio.gather(*(stream.send(b"%d" % number) for number in range(10)))
    assert await within(peer.receive_exactly(10)) == b"0123456789"
    assert sock.calls == [10]
    stream.abort()
    peer.close()


async def test_more_buffers_than_one_system_call_takes() -> None:
    async with connected("unix", buffer_sizes=20_000) as (stream, peer):
        items = [b"%07d|" % number + bytes(number % 50) for number in range(5_000)]
        sending = asyncio.create_task(stream.send_many(items))
        assert await within(peer.receive_exactly(sum(map(len, items)))) == b"".join(items)
        await within(sending)


# A peer that does not keep up


@all_kinds
async def test_a_slow_peer_holds_the_sender_back(kind: str) -> None:
    """However much is to be sent, only the limit waits here, and every byte comes."""
    total = 20 << 20
    piece = random.Random(6).randbytes(100_000)
    limit = 50_000
    async with connected(kind, send_limit=limit, buffer_sizes=100_000) as (stream, peer):
        most = 0

        async def handler(stream: Stream) -> None:
            nonlocal most
            for _ in range(total // len(piece)):
                await stream.send(piece)
                most = max(most, stream.unsent)
            await stream.send_eof()

        task = driven(stream, handler)
        await wait_until(lambda: stream.unsent)
        await stays(lambda: not task.done(), during=5 * MS)
        digest, size = hashlib.sha256(), 0
        while data := await within(peer.receive(1 << 20)):
            digest.update(data)
            size += len(data)
        await within(task)
        assert size == total // len(piece) * len(piece)
        assert digest.digest() == hashlib.sha256(piece * (total // len(piece))).digest()
        assert most <= limit


@pytest.mark.parametrize("size", [1, 50, 1_000])
@pytest.mark.parametrize("limit", [1, 500, 5_000, 200_000])
async def test_the_send_limit_holds_for_small_items(size: int, limit: int) -> None:
    async with connected("unix", send_limit=limit, buffer_sizes=4_000) as (stream, peer):

        async def send() -> None:
            while True:
                await stream.send(bytes(size))

        sending = asyncio.create_task(send())
        await wait_until(lambda: stream.unsent and stream._send_waiters)
        assert stream.unsent <= max(limit + 8 * (128 + size), 65_536)
        before = stream.bytes_sent
        await within(peer.receive_exactly(100_000))
        await wait_until(lambda: stream.bytes_sent > before)
        stream.abort()
        with pytest.raises(ClosedResourceError):
            await within(sending)


@all_kinds
async def test_large_messages_both_ways_at_once(kind: str) -> None:
    """Each side sends before it receives; buffers of the kernel hold a fraction of it."""
    data = random.Random(7).randbytes(3_000_000)
    async with connected(kind, buffer_sizes=30_000) as (stream, peer):

        async def handler(stream: Stream) -> bytes:
            async with anyio.create_task_group() as group:
                group.start_soon(stream.send, data)
                return await stream.receive_exactly(len(data))

        task = driven(stream, handler)
        _, got = await within(asyncio.gather(peer.send(data), peer.receive_exactly(len(data))))
        assert got == data
        assert await within(task) == data


@all_kinds
async def test_senders_do_not_mix_their_items(kind: str) -> None:
    async with connected(kind, buffer_sizes=100_000, send_limit=20_000) as (stream, peer):

        async def send(number: int) -> None:
            rng = random.Random(number)
            for _ in range(20):
                size = rng.choice((1, 100, 30_000))
                await stream.send(b"%c%06d" % (65 + number, size) + bytes([65 + number]) * size)

        async def close() -> None:
            await asyncio.gather(*map(send, range(5)))
            await stream.send_eof()

        sending = asyncio.create_task(close())
        text = await within(peer.receive_all())
        await within(sending)
        counts: Counter[int] = Counter()
        while text:
            letter, size = text[0], int(text[1:7])
            assert text[7 : 7 + size] == bytes([letter]) * size
            text = text[7 + size :]
            counts[letter] += 1
        assert set(counts.values()) == {20}


async def test_a_cancelled_send_is_sent_all_the_same() -> None:
    async with connected("unix", buffer_sizes=5_000) as (stream, peer):
        data = random.Random(8).randbytes(1_000_000)
        sending = asyncio.create_task(stream.send(data))
        await wait_until(lambda: stream.unsent)
        sending.cancel()
        with pytest.raises(asyncio.CancelledError):
            await sending
        last = asyncio.create_task(stream.send(b"last"))
        assert await within(peer.receive_exactly(len(data) + 4)) == data + b"last"
        await within(last)


@all_kinds
async def test_sending_for_ever_does_not_starve_the_others(kind: str) -> None:
    """The peer takes everything at once, in a thread, so that send() never has to wait."""
    async with connected("tls" if kind == "tls" else "unix") as (stream, peer):
        ended, sent = False, 0

        async def handler(stream: Stream) -> None:
            nonlocal sent
            while not ended:
                await stream.send(bytes(10_000 if kind == "tcp" else 10))
                sent += 1

        def drain(sock: socket.socket) -> None:
            sock.setblocking(True)
            with suppress(ConnectionResetError):
                while sock.recv(1 << 20):
                    pass

        with peer.socket.dup() as far:
            draining = asyncio.create_task(asyncio.to_thread(drain, far))
            task = driven(stream, handler)
            seen = []
            for _ in range(20):
                seen.append(sent)
                await asyncio.sleep(0)
            ended = True
            await within(task)
            stream.abort()
            await within(draining)
        assert sent
        # As often as the budget of a turn allows, what has been collected goes out.
        most = 8 * (FLUSH_SIZE // ITEM_COST + 1)
        assert max(after - before for before, after in itertools.pairwise(seen)) <= most


# A peer that is gone


@pytest.mark.parametrize("kind", ["tcp", "tls"])
async def test_sending_after_a_reset(kind: str) -> None:
    async with connected(kind) as (stream, peer):
        peer.reset()
        error = await within(first_error(stream))
        assert isinstance(error, BrokenResourceError)
        assert isinstance(error.__cause__, OSError)
        for operation in (stream.send(b"x"), stream.send_many([b"x"]), stream.send_eof()):
            with pytest.raises(BrokenResourceError):
                await operation
        assert stream.broken
        assert stream.unsent == 0


async def first_error(stream: Stream) -> BaseException | None:
    for _ in range(1_000):
        if error := await raised(stream.send(b"x" * 1_000)):
            return error
        await asyncio.sleep(0)
    return None


@all_kinds
async def test_a_reset_while_sending_waits(kind: str) -> None:
    async with connected(kind, buffer_sizes=10_000) as (stream, peer):
        waiting = [asyncio.create_task(stream.send(bytes(1_000_000))) for _ in range(3)]
        await wait_until(lambda: stream.unsent and len(stream._send_waiters or ()) == 3)
        if kind == "unix":
            peer.close()
        else:
            peer.reset()
        for error in await within(asyncio.gather(*waiting, return_exceptions=True)):
            assert isinstance(error, BrokenResourceError)


@all_kinds
async def test_closing_while_sending_waits(kind: str) -> None:
    """What has not left does not leave any more, and the sender is told."""
    async with connected(kind, buffer_sizes=10_000) as (stream, _):
        waiting = asyncio.create_task(stream.send(bytes(5_000_000)))
        await wait_until(lambda: stream.unsent and stream._send_waiters)
        stream.abort()
        with pytest.raises(ClosedResourceError):
            await within(waiting)


@all_kinds
async def test_sending_after_the_end(kind: str) -> None:
    async with connected(kind) as (stream, peer):
        await stream.send(b"last")
        await stream.send_eof()
        for operation in (stream.send(b"x"), stream.send_many([b"x"])):
            with pytest.raises(ClosedResourceError):
                await operation
        assert await within(peer.receive_all()) == b"last"


@all_kinds
async def test_sending_after_closing(kind: str) -> None:
    async with connected(kind) as (stream, _):
        stream.abort()
        for operation in (stream.send(b"x"), stream.send_many([b"x"]), stream.send_eof()):
            with pytest.raises(ClosedResourceError):
                await operation


async def test_a_handler_that_sends_and_returns_at_once() -> None:
    async with connected() as (stream, peer):

        async def handler(stream: Stream) -> None:
            await stream.receive()
            await stream.send(b"bye")

        task = driven(stream, handler)
        await peer.send(b"x")
        await within(task)
        assert await within(peer.receive()) == b"bye"
