"""What ``asyncserver.Stream`` promises beyond that, in code; ``contract`` has it in words."""

from __future__ import annotations

import asyncio
from asyncio import TaskGroup
from contextlib import suppress
from typing import Any

from anyio import BrokenResourceError, ClosedResourceError, DelimiterNotFound, EndOfStream, IncompleteRead

from asyncserver.testing.contract_steps import (
    A_WHILE,
    BLOCK,
    cancelled,
    close_both,
    compare,
    fill,
    join,
    let_go,
    read,
    read_all,
    read_blocks,
    refused,
    send_each,
    send_slowly_and_finish,
    settle,
    what_arrives,
)
from asyncserver.testing.contract_watch import Rule, Watched, fail, rule

__all__ = ["STREAM_RULES"]

STREAM_RULES: list[Rule] = []

# --- of those that have the methods ---


@rule(STREAM_RULES, needs=["receive_exactly"])
async def _exactly(a: Watched, b: Watched) -> None:
    async with TaskGroup() as group:
        group.create_task(send_slowly_and_finish(b, b"12", b"345", b"6789"))
        for expected in b"1", b"2345", b"6":
            what = f"{a}.receive_exactly({len(expected)})"
            compare(await a.receive_exactly(len(expected)), expected, what)
        await refused(IncompleteRead, a.receive_exactly, 4, when="with 3 bytes to come")
        compare(await read(a, 3), b"789", f"received by {a} after IncompleteRead")
        await let_go(a)


@rule(STREAM_RULES, needs=["receive_until"])
async def _until(a: Watched, b: Watched) -> None:
    async with TaskGroup() as group:
        group.create_task(send_slowly_and_finish(b, b"one\r", b"\ntw", b"o\r\n\r\n", b"x" * 200, b"end"))
        for expected in b"one", b"two", b"":
            compare(await a.receive_until(b"\r\n", 100), expected, f"{a}.receive_until()")
        await refused(DelimiterNotFound, a.receive_until, b"\r\n", 50, when="before 200 bytes without it")
        compare(await read(a, 200), b"x" * 200, f"received by {a} after DelimiterNotFound")
        await refused(IncompleteRead, a.receive_until, b"\r\n", 100, when="before 3 bytes and the end")
        compare(await read(a, 3), b"end", f"received by {a} after IncompleteRead")
        await let_go(a)


@rule(STREAM_RULES, needs=["lines"])
async def _lines(a: Watched, b: Watched) -> None:
    long = b"x" * 100
    async with TaskGroup() as group:
        group.create_task(send_slowly_and_finish(b, b"one\ntw", b"o\r", b"\n\n", long, b"\nla", b"st"))
        lines = a.lines(50)
        for expected in b"one", b"two", b"":
            compare(await anext(lines), expected, f"{a}.lines()")
        with suppress(DelimiterNotFound):
            fail(f"{a}.lines(50) gave a line of {len(await anext(lines))} bytes")
        compare(await read(a, 101), long + b"\n", f"received by {a} after DelimiterNotFound")
        rest = [line async for line in lines]
        if rest != [b"last"]:
            fail(f"{a}.lines() gave {rest!r} at the end, where b'last' without a line end was sent")
        await let_go(a)


@rule(STREAM_RULES, needs=["peek"])
async def _peek(a: Watched, b: Watched) -> None:
    async with TaskGroup() as group:
        group.create_task(send_slowly_and_finish(b, b"ab", b"cdef"))
        for count in 1, 4:
            compare(await a.peek(count), b"abcdef"[:count], f"{a}.peek({count})")
        compare(await read(a, 5), b"abcde", f"received by {a} after peek()")
        await refused(IncompleteRead, a.peek, 2, when="with 1 byte to come")
        compare(await read_all(a), b"f", f"received by {a} after IncompleteRead")
        await refused(EndOfStream, a.peek, 1, when="at the end")
        await let_go(a)


@rule(STREAM_RULES, needs=["send_many"])
async def _send_many(a: Watched, b: Watched) -> None:
    async with TaskGroup() as group:
        group.create_task(a.send_many([b"one", b"", b"two", BLOCK, b"three"]))
        expected = b"onetwo" + BLOCK + b"three"
        compare(await read(b, len(expected)), expected, f"received by {b}")


@rule(STREAM_RULES, needs=["abort"])
async def _abort(a: Watched, b: Watched) -> None:
    async with TaskGroup() as group:
        group.create_task(refused(ClosedResourceError, a.receive, 10, when="when abort() was called"))
        await settle()
        a.abort()
        await settle()
        await refused(ClosedResourceError, a.receive, 10, when="after abort()")
        await refused(ClosedResourceError, a.send, b"x", when="after abort()")
        await a.aclose()
        with suppress(BrokenResourceError, EndOfStream):
            fail(f"{b}.receive() returned {await b.receive(10)!r} after the peer's abort()")


# --- of asyncserver.Stream ---


@rule(STREAM_RULES, complete=True)
async def _sizes(a: Watched, b: Watched) -> None:
    await b.send(b"ab")
    for size in 0, -1:
        await refused(ValueError, a.receive, size, when="for no bytes")
    compare(await read(a, 2), b"ab", f"received by {a} after a receive of nothing")


@rule(STREAM_RULES, complete=True)
async def _kinds_of_bytes(a: Watched, b: Watched) -> None:
    changing = bytearray(b"before")
    await a.send(changing)
    changing[:] = b"after!"
    await a.send(memoryview(b"012345")[::2])
    compare(await read(b, 9), b"before024", f"received by {b}")


@rule(STREAM_RULES, complete=True, half_close=True)
async def _after_the_end(a: Watched, b: Watched) -> None:
    await a.send(b"last")
    await a.send_eof()
    await refused(ClosedResourceError, a.send, b"x", when="after send_eof()")
    await a.send_eof()
    compare(await read_all(b), b"last", f"received by {b}")
    await close_both(a, b)
    await refused(ClosedResourceError, a.send_eof, when="after aclose()")


@rule(STREAM_RULES, complete=True)
async def _close_sends_the_rest(a: Watched, b: Watched) -> None:
    sent, sending = await fill(a)
    async with TaskGroup() as group:
        if sending is not None:
            group.create_task(join(sending))
        group.create_task(a.aclose())
        await settle()
        await read_blocks(b, sent)
        await refused(EndOfStream, b.receive, 10, when="behind what the peer sent")
        await b.aclose()


@rule(STREAM_RULES, complete=True)
async def _unmixed(a: Watched, b: Watched) -> None:
    sizes = (1, 100, 70_000)
    async with TaskGroup() as group:
        for letter in b"abcd":
            group.create_task(send_each(a, *(bytes([letter]) * size + b"\n" for size in sizes)))
        text = await read(b, 4 * sum(size + 1 for size in sizes))
    lines = text.splitlines()
    if any(len(set(line)) != 1 or len(line) not in sizes for line in lines):
        fail(f"what four tasks sent with {a} at the same time has come mixed")


@rule(STREAM_RULES, complete=True)
async def _cancelled_gathering(a: Watched, b: Watched) -> None:
    arguments: tuple[Any, ...]
    for gather, arguments in (a.receive_exactly, (7,)), (a.receive_until, (b"\n", 100)):
        for part in b"abc", b"def":
            gathering = a.watch.start(gather(*arguments))
            await settle()
            await b.send(part)
            await asyncio.sleep(A_WHILE)
            await cancelled(gathering, gather.described(arguments))
        await b.send(b"\n")
        compare((await gather(*arguments)).rstrip(), b"abcdef", f"received by {a} after cancelled calls")


@rule(STREAM_RULES, complete=True)
async def _cancelled_send_whole(a: Watched, b: Watched) -> None:
    sent, sending = await fill(a)
    if sending is not None:
        await cancelled(sending, f"{a}.send()")
        got = await what_arrives(a, b)
        if got != sent:
            fail(f"{got} bytes arrived of {sent}, the last {len(BLOCK)} of which in a cancelled send")
