"""``Stream.lines()``."""

from __future__ import annotations

import asyncio
import random

import pytest
from anyio import DelimiterNotFound

from asyncserver import Stream
from tests.streams import KINDS, connected, driven, turns
from tests.waiting import within

CASES = [
    (b"", []),
    (b"\n", [b""]),
    (b"one\ntwo\n", [b"one", b"two"]),
    (b"one\r\ntwo\r\n", [b"one", b"two"]),
    (b"one\ntwo", [b"one", b"two"]),
    (b"\n\n\r\n\n", [b"", b"", b"", b""]),
    (b"a\r\r\nb\rc\n\rd\n", [b"a\r", b"b\rc", b"\rd"]),
    (b"no end\r", [b"no end\r"]),
    (b"\r", [b"\r"]),
    (b"\x00\xff\n\x0b\x0c\x85\n", [b"\x00\xff", b"\x0b\x0c\x85"]),
]


@pytest.mark.parametrize("size", [1, 2, 100])
@pytest.mark.parametrize("is_driven", [True, False])
@pytest.mark.parametrize(("text", "expected"), CASES)
async def test_lines(text: bytes, expected: list[bytes], size: int, is_driven: bool) -> None:
    async with connected("unix") as (stream, peer):

        async def send() -> None:
            for at in range(0, len(text), size):
                await peer.send(text[at : at + size])
                await turns(3)
            await peer.send_eof()

        sending = asyncio.create_task(send())
        assert await within(driven(stream, collected) if is_driven else collected(stream)) == expected
        await sending


async def collected(stream: Stream) -> list[bytes]:
    return [line async for line in stream.lines()]


@pytest.mark.parametrize("kind", KINDS)
async def test_many_lines_of_all_lengths(kind: str) -> None:
    rng = random.Random(4)
    lines = [b"x" * rng.choice((0, 1, 10, 1_000, 20_000, 60_000)) for _ in range(100)]
    text = b"".join(line + rng.choice((b"\n", b"\r\n")) for line in lines)
    async with connected(kind, receive_limit=10_000) as (stream, peer):

        async def send() -> None:
            await peer.send(text)
            await peer.send_eof()

        sending = asyncio.create_task(send())
        assert await within(driven(stream, collected)) == lines
        await sending


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b""])
@pytest.mark.parametrize("size", [1, 100])
async def test_the_limit_does_not_count_the_line_end(end: bytes, size: int) -> None:
    for length in 9, 10, 11:
        async with connected("unix") as (stream, peer):
            text = b"first\n" + b"x" * length + end

            async def send(peer=peer, text=text) -> None:  # type: ignore[no-untyped-def]
                for at in range(0, len(text), size):
                    await peer.send(text[at : at + size])
                    await turns(3)
                await peer.send_eof()

            sending = asyncio.create_task(send())
            lines = stream.lines(10)
            assert await within(anext(lines)) == b"first"
            if length <= 10:
                assert await within(anext(lines)) == b"x" * length
            else:
                for _ in range(2):
                    with pytest.raises(DelimiterNotFound):
                        await within(anext(lines))
                assert stream.overrun
                assert await within(stream.receive_exactly(length)) == b"x" * length
            await sending


async def test_a_line_without_end_is_not_waited_for_beyond_the_limit() -> None:
    async with connected() as (stream, peer):
        await peer.send(b"x" * 100)
        with pytest.raises(DelimiterNotFound):
            await within(anext(stream.lines(10)))


async def test_leaving_in_the_middle_and_going_on() -> None:
    async with connected() as (stream, peer):
        await peer.send(b"header\r\n\r\nbody of 14 bytes\nline\n")
        async for line in stream.lines():
            if not line:
                break
        assert await within(stream.receive_exactly(7)) == b"body of"
        assert await within(stream.receive(9)) == b" 14 bytes"
        assert await within(stream.receive_until(b"\n", 1)) == b""
        assert await within(anext(stream.lines())) == b"line"


async def test_the_end_stays_the_end() -> None:
    async with connected() as (stream, peer):
        await peer.send_eof()
        lines = stream.lines()
        for _ in range(3):
            with pytest.raises(StopAsyncIteration):
                await within(anext(lines))


async def test_lines_after_half_closing() -> None:
    """The client of a request and response protocol may well say that it has no more."""
    async with connected() as (stream, peer):
        await stream.send_eof()
        await peer.send(b"line\n" * 3_000)
        await peer.send_eof()
        assert len(await within(driven(stream, collected))) == 3_000
