"""Receiving: chunks, exact counts, up to a delimiter, and what is left by errors and cancellation."""

from __future__ import annotations

import asyncio
import itertools
import random
from typing import Any

import anyio
import pytest
from anyio import (
    BrokenResourceError,
    BusyResourceError,
    ClosedResourceError,
    DelimiterNotFound,
    EndOfStream,
    IncompleteRead,
)

from asyncserver import Stream
from asyncserver.channel import YIELD_BUDGET
from tests.streams import KINDS, connected, driven, turns
from tests.waiting import MS, stays, wait_until, within

all_kinds = pytest.mark.parametrize("kind", KINDS)


# receive


@all_kinds
async def test_at_most_as_much_as_wanted_and_then_the_rest(kind: str) -> None:
    async with connected(kind) as (stream, peer):
        await peer.send(b"0123456789")
        assert await within(stream.receive(4)) == b"0123"
        assert await within(stream.receive(1)) == b"4"
        assert await within(stream.receive()) == b"56789"


@all_kinds
async def test_the_end_comes_again_and_again(kind: str) -> None:
    async with connected(kind) as (stream, peer):
        await peer.send(b"last")
        await peer.send_eof()
        assert await within(stream.receive()) == b"last"
        assert not stream.at_eof
        for _ in range(3):
            with pytest.raises(EndOfStream):
                await within(stream.receive())
            assert stream.at_eof
        assert [chunk async for chunk in stream] == []
        await stream.send(b"still open")
        assert await within(peer.receive_exactly(10)) == b"still open"


@all_kinds
async def test_iterating_over_chunks(kind: str) -> None:
    async with connected(kind) as (stream, peer):
        sent = random.Random(1).randbytes(300_000)

        async def send() -> None:
            await peer.send(sent)
            await peer.send_eof()

        sending = asyncio.create_task(send())
        chunks = await within(collected(stream))
        await sending
        assert b"".join(chunks) == sent
        assert all(chunks)
        assert stream.bytes_received == len(sent)


async def collected(stream: Stream) -> list[bytes]:
    return [chunk async for chunk in stream]


@pytest.mark.parametrize("max_bytes", [0, -1])
@pytest.mark.parametrize("is_driven", [True, False])
async def test_nothing_cannot_be_received(max_bytes: int, is_driven: bool) -> None:
    async def handler(stream: Stream) -> bytes:
        got = await stream.receive_exactly(2)
        with pytest.raises(ValueError, match="max_bytes"):
            await stream.receive(max_bytes)
        return got + await stream.receive(1)

    async with connected() as (stream, peer):
        task: Any = driven(stream, handler) if is_driven else asyncio.create_task(handler(stream))
        await peer.send(b"ab")
        await turns(5)
        await peer.send(b"c")
        assert await within(task) == b"abc"


@all_kinds
async def test_a_reset_while_receiving(kind: str) -> None:
    if kind == "unix":
        pytest.skip("Unix sockets have no RST")
    async with connected(kind) as (stream, peer):
        receiving = asyncio.create_task(stream.receive())
        await wait_until(lambda: stream.receiving)
        peer.reset()
        with pytest.raises(BrokenResourceError) as caught:
            await within(receiving)
        assert isinstance(caught.value.__cause__, OSError if kind == "tls" else ConnectionResetError)
        for _ in range(2):
            with pytest.raises(BrokenResourceError):
                await stream.receive()
            with pytest.raises(BrokenResourceError):
                await stream.send(b"x")
        assert stream.broken


@all_kinds
async def test_closing_under_a_receive(kind: str) -> None:
    for close in ("abort", "aclose"):
        async with connected(kind) as (stream, peer):
            receiving = asyncio.create_task(stream.receive())
            await wait_until(lambda: stream.receiving)
            if close == "abort":
                stream.abort()
            else:
                closing = asyncio.create_task(stream.aclose())
                await turns()
                peer.close()
                await within(closing)
            with pytest.raises(ClosedResourceError):
                await within(receiving)


@all_kinds
async def test_nothing_is_received_after_closing(kind: str) -> None:
    """Not even what had come before."""
    async with connected(kind) as (stream, peer):
        await peer.send(b"one\ntwo\nthree\n")
        assert await within(stream.receive_until(b"\n", 100)) == b"one"
        stream.abort()
        for operation in (stream.receive, lambda: stream.receive_exactly(1), lambda: anext(stream.lines())):
            with pytest.raises(ClosedResourceError):
                await operation()


@all_kinds
async def test_nothing_is_received_while_it_closes(kind: str) -> None:
    async with connected(kind) as (stream, peer):
        await peer.send(b"one\ntwo")
        assert await within(stream.receive_until(b"\n", 100)) == b"one"
        closing = asyncio.create_task(stream.aclose())
        await turns()
        assert not stream.closed
        with pytest.raises(ClosedResourceError):
            await within(stream.receive())
        peer.close()
        await within(closing)


# receive_exactly


@all_kinds
async def test_exactly(kind: str) -> None:
    async with connected(kind) as (stream, peer):
        sent = random.Random(2).randbytes(1_000_000)
        assert await stream.receive_exactly(0) == b""
        sending = asyncio.create_task(peer.send(sent))
        got = [await within(stream.receive_exactly(count)) for count in (1, 70_000, 3, 500_000)]
        got.append(await within(stream.receive_exactly(len(sent) - sum(map(len, got)))))
        assert b"".join(got) == sent
        assert [len(part) for part in got[:4]] == [1, 70_000, 3, 500_000]
        await sending
        with pytest.raises(ValueError, match="negative"):
            await stream.receive_exactly(-1)


@all_kinds
async def test_an_incomplete_read_leaves_what_came(kind: str) -> None:
    async with connected(kind) as (stream, peer):
        await peer.send(b"abc")
        await peer.send_eof()
        for count in (5, 4):
            with pytest.raises(IncompleteRead):
                await within(stream.receive_exactly(count))
        with pytest.raises(IncompleteRead):
            await within(stream.receive_until(b"\n", 100))
        assert await within(stream.receive(2)) == b"ab"
        assert await within(stream.receive_exactly(1)) == b"c"
        with pytest.raises(EndOfStream):
            await within(stream.receive())
        with pytest.raises(IncompleteRead):
            await within(stream.receive_exactly(1))


@pytest.mark.parametrize("operation", ["exactly", "until", "line"])
@all_kinds
async def test_cancelling_loses_nothing(kind: str, operation: str) -> None:
    async with connected(kind) as (stream, peer):
        lines = stream.lines()
        operations: dict[str, Any] = {
            "exactly": lambda: stream.receive_exactly(7),
            "until": lambda: stream.receive_until(b"\n", 100),
            "line": lines.__anext__,
        }
        for byte in b"abc", b"def":
            task = asyncio.create_task(operations[operation]())
            await wait_until(lambda: stream.receiving)
            received = stream.bytes_received
            await peer.send(byte)
            await wait_until(lambda: stream.bytes_received > received)  # noqa: B023
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        await peer.send(b"\nnext")
        expected = b"abcdef\n" if operation == "exactly" else b"abcdef"
        assert await within(operations[operation]()) == expected
        assert await within(stream.receive_exactly(4)) == b"next"


# receive_until


@pytest.mark.parametrize("size", [1, 2, 3, 5])
async def test_a_delimiter_split_over_chunks(size: int) -> None:
    text = b"one\r\n\r\ntwo\r\r\n\r\n\r\n\r\nx\r\n\r"
    async with connected() as (stream, peer):

        async def send() -> None:
            for at in range(0, len(text), size):
                await peer.send(text[at : at + size])
                await turns(4)
            await peer.send_eof()

        sending = asyncio.create_task(send())
        got = [await within(stream.receive_until(b"\r\n\r\n", 10)) for _ in range(3)]
        assert got == [b"one", b"two\r", b""]
        with pytest.raises(IncompleteRead):
            await within(stream.receive_until(b"\r\n\r\n", 10))
        assert await within(stream.receive()) == b"x\r\n\r"
        await sending


@pytest.mark.parametrize("at_once", [True, False])
async def test_the_limit_is_exact(at_once: bool) -> None:
    async with connected() as (stream, peer):
        if at_once:
            await peer.send(b"12345;;123456;;")
            assert await within(stream.receive_until(b";;", 5)) == b"12345"
        else:
            await peer.send(b"12345;;")
            assert await within(stream.receive_until(b";;", 5)) == b"12345"
            await peer.send(b"123456;;")
        assert not stream.overrun
        for _ in range(2):
            with pytest.raises(DelimiterNotFound):
                await within(stream.receive_until(b";;", 5))
        assert stream.overrun
        assert await within(stream.receive_until(b";;", 6)) == b"123456"


async def test_a_delimiter_that_does_not_come_is_noticed_at_the_limit() -> None:
    async with connected() as (stream, peer):
        task = asyncio.create_task(stream.receive_until(b"\n", 4))
        await peer.send(b"1234")
        await stays(lambda: not task.done(), during=10 * MS)
        await peer.send(b"5")
        with pytest.raises(DelimiterNotFound):
            await within(task)
        assert await within(stream.receive()) == b"12345"


async def test_what_follows_the_delimiter_is_kept_for_any_other_receive() -> None:
    async with connected() as (stream, peer):
        await peer.send(b"head\n123456789tail\nline one\r\nrest")
        assert await within(stream.receive_until(b"\n", 100)) == b"head"
        assert await within(stream.receive(3)) == b"123"
        assert await within(stream.receive_exactly(6)) == b"456789"
        assert await within(stream.receive_until(b"\n", 100)) == b"tail"
        assert await within(anext(stream.lines())) == b"line one"
        assert await within(anext(aiter(stream))) == b"rest"


async def test_delimiters_and_limits_that_cannot_be() -> None:
    async with connected() as (stream, _):
        with pytest.raises(ValueError, match="delimiter"):
            await stream.receive_until(b"", 10)
        with pytest.raises(ValueError, match="max_bytes"):
            await stream.receive_until(b"\n", -1)
        with pytest.raises(ValueError, match="max_bytes"):
            stream.lines(-1)


# Fairness: the budget of a turn.


@pytest.mark.parametrize("operation", ["exactly", "until", "receive", "lines"])
@pytest.mark.parametrize("is_driven", [True, False])
async def test_what_is_there_already_does_not_starve_the_others(operation: str, is_driven: bool) -> None:
    async with connected("unix", receive_limit=100_000) as (stream, peer):
        count = 10_000
        await peer.send(b"\n" * count)
        seen: list[int] = []
        done = 0

        async def other() -> None:
            while True:
                seen.append(done)
                await asyncio.sleep(0)

        async def handler(stream: Stream) -> None:
            nonlocal done
            lines = stream.lines()
            while done < count:
                if operation == "exactly":
                    await stream.receive_exactly(1)
                elif operation == "until":
                    await stream.receive_until(b"\n", 10)
                elif operation == "receive" and done:
                    await stream.receive(1)
                else:
                    await anext(lines)
                done += 1

        watching = asyncio.create_task(other())
        await within(driven(stream, handler) if is_driven else handler(stream))
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)
        steps = [after - before for before, after in itertools.pairwise(seen)]
        assert max(steps) <= 3 * YIELD_BUDGET


async def test_what_openssl_holds_does_not_starve_the_others() -> None:
    """A record of 16 KiB taken byte by byte: there is nothing for the loop to report."""
    async with connected("tls") as (stream, peer):
        await peer.send(bytes(16_384))
        done = 0
        seen: list[int] = []

        async def other() -> None:
            while True:
                seen.append(done)
                await asyncio.sleep(0)

        async def handler(stream: Stream) -> None:
            nonlocal done
            while done < 16_384:
                done += len(await stream.receive(1))

        watching = asyncio.create_task(other())
        await within(driven(stream, handler))
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)
        assert max(after - before for before, after in itertools.pairwise(seen)) <= 3 * YIELD_BUDGET


async def test_two_tasks_that_take_turns() -> None:
    """Where one of them lets the others go first, it finds its bytes or a clear error."""
    async with connected("unix") as (stream, peer):
        lines = [b"%06d" % number for number in range(3_000)]
        await peer.send(b"\n".join(lines) + b"\n")
        await peer.send_eof()
        got: list[bytes] = []

        async def take() -> None:
            while True:
                try:
                    got.append(await stream.receive_until(b"\n", 10))
                except BusyResourceError:
                    await asyncio.sleep(0)
                except (IncompleteRead, EndOfStream):
                    return

        await within(asyncio.gather(take(), take()))
        assert sorted(got) == lines


# TLS


async def test_records_cut_into_small_receives() -> None:
    """OpenSSL holds the rest of a record while the descriptor is quiet."""
    async with connected("tls") as (stream, peer):
        sent = random.Random(3).randbytes(16_384)
        await peer.send(sent)
        got = bytearray()
        while len(got) < len(sent):
            got += await within(stream.receive(1_000))
        assert got == sent


async def test_a_record_that_comes_byte_by_byte() -> None:
    async with connected("tls") as (stream, peer):
        peer.tls.write(b"slow")
        record = peer.outgoing.read()
        receiving = asyncio.create_task(stream.receive())
        for at in range(len(record) - 1):
            await peer.send_raw(record[at : at + 1])
            await turns(2)
        assert not receiving.done()
        await peer.send_raw(record[-1:])
        assert await within(receiving) == b"slow"


async def test_an_end_without_the_closing_alert_is_a_truncation() -> None:
    async with connected("tls") as (stream, peer):
        await peer.send(b"cut")
        peer.close()
        assert await within(stream.receive()) == b"cut"
        with pytest.raises(BrokenResourceError):
            await within(stream.receive())
        with pytest.raises(BrokenResourceError):
            await within(stream.receive_exactly(1))


@pytest.mark.parametrize("damage", ["plain text", "changed record"])
async def test_what_is_no_tls_breaks_the_connection(damage: str) -> None:
    async with connected("tls") as (stream, peer):
        if damage == "plain text":
            await peer.send_raw(b"plain text in the middle of it\r\n")
        else:
            peer.tls.write(b"secret")
            record = bytearray(peer.outgoing.read())
            record[-1] ^= 1
            await peer.send_raw(bytes(record))
        with pytest.raises(BrokenResourceError):
            await within(stream.receive())


# anyio's ways to cancel


async def test_move_on_after_and_the_bytes_that_came() -> None:
    async with connected() as (stream, peer):
        with anyio.move_on_after(5 * MS):
            await stream.receive_exactly(10)
        await peer.send(b"12345")
        with anyio.move_on_after(10 * MS):
            await stream.receive_exactly(10)
        await peer.send(b"67890")
        assert await within(stream.receive_exactly(10)) == b"1234567890"
