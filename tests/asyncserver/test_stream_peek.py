"""``Stream.peek()``."""

from __future__ import annotations

import asyncio

import pytest
from anyio import ClosedResourceError, EndOfStream, IncompleteRead

from tests.streams import KINDS, connected, driven, turns
from tests.waiting import within


@pytest.mark.parametrize("kind", KINDS)
async def test_what_was_peeked_at_is_still_there(kind: str) -> None:
    async with connected(kind) as (stream, peer):
        await peer.send(b"hello\nworld")
        for count in 1, 5, 3:
            assert await within(stream.peek(count)) == b"hello"[:count]
        assert await within(stream.receive_exactly(2)) == b"he"
        assert await within(stream.peek(3)) == b"llo"
        assert await within(anext(stream.lines())) == b"llo"
        assert await within(stream.peek(5)) == b"world"
        assert await within(stream.receive(100)) == b"world"


@pytest.mark.parametrize("kind", KINDS)
async def test_a_peek_waits_for_the_last_byte(kind: str) -> None:
    async with connected(kind) as (stream, peer):
        peeking = driven(stream, lambda stream: stream.peek(5))
        for byte in b"hello":
            await turns(5)
            assert not peeking.done()
            await peer.send(bytes([byte]))
        assert await within(peeking) == b"hello"
        assert await within(stream.receive()) == b"hello"


async def test_the_end() -> None:
    async with connected() as (stream, peer):
        await peer.send(b"hel")
        await peer.send_eof()
        for _ in range(2):
            with pytest.raises(IncompleteRead):
                await within(stream.peek(5))
        assert await within(stream.receive()) == b"hel"
        for _ in range(2):
            with pytest.raises(EndOfStream):
                await within(stream.peek(1))


async def test_cancellation_loses_nothing() -> None:
    async with connected() as (stream, peer):
        peeking = asyncio.create_task(stream.peek(5))
        await peer.send(b"hel")
        await turns(10)
        peeking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await peeking
        await peer.send(b"lo")
        assert await within(stream.receive_exactly(5)) == b"hello"


async def test_a_message_has_begun_with_a_peek() -> None:
    async with connected() as (stream, peer):
        peeking = asyncio.create_task(stream.peek(2))
        await turns()
        assert stream.idle
        await peer.send(b"h")
        await turns(10)
        assert not stream.idle
        await peer.send(b"e")
        await within(peeking)
        receiving = asyncio.create_task(stream.receive_exactly(5))
        await turns()
        assert not stream.idle
        await peer.send(b"llo")
        assert await within(receiving) == b"hello"


@pytest.mark.parametrize("count", [0, -1])
async def test_counts_that_cannot_be(count: int) -> None:
    async with connected() as (stream, _):
        with pytest.raises(ValueError, match=f"^count={count}: has to be at least 1$"):
            await stream.peek(count)


async def test_closed() -> None:
    async with connected() as (stream, peer):
        await peer.send(b"hello")
        await within(stream.peek(1))
        stream.abort()
        with pytest.raises(ClosedResourceError):
            await stream.peek(1)
