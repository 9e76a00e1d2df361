"""The rules for every byte stream, in code; ``contract`` has them in words."""

from __future__ import annotations

import asyncio
import random
from asyncio import TaskGroup
from contextlib import suppress

from anyio import BrokenResourceError, BusyResourceError, ClosedResourceError, EndOfStream, aclose_forcefully

from asyncserver.testing.contract_steps import (
    BLOCK,
    cancelled,
    close_both,
    compare,
    cut,
    fill,
    finish,
    join,
    let_go,
    read,
    read_all,
    read_and_close,
    read_blocks,
    refused,
    send_and_finish,
    send_each,
    send_slowly_and_finish,
    settle,
    what_arrives,
)
from asyncserver.testing.contract_watch import Rule, Watched, fail, rule

__all__ = ["BYTE_STREAM_RULES"]

BYTE_STREAM_RULES: list[Rule] = []

# Seconds in which a close has to reach who receives here, before the peer is allowed to answer it.
_BEFORE_THE_PEER = 1.0


@rule(BYTE_STREAM_RULES)
async def _order(a: Watched, b: Watched) -> None:
    rng = random.Random(1)
    pieces = [rng.randbytes(rng.choice((1, 10, 1_000, 30_000))) for _ in range(30)]

    async def send() -> None:
        for piece in pieces:
            await a.send(piece)
        await finish(a)

    async with TaskGroup() as group:
        group.create_task(send())
        compare(await read_all(b), b"".join(pieces), f"received by {b}")
        await let_go(b)


@rule(BYTE_STREAM_RULES)
async def _at_most(a: Watched, b: Watched) -> None:
    async with TaskGroup() as group:
        group.create_task(b.send(bytes(range(100))))
        for size in (1, 2, 7, 90):
            await read(a, size, size)
        group.create_task(b.send(bytes(1_000)))
        await read(a, 1_000, 3)


@rule(BYTE_STREAM_RULES)
async def _nothing(a: Watched, b: Watched) -> None:
    async with TaskGroup() as group:
        group.create_task(send_each(a, b"", b"x", b"", b"y", b""))
        compare(await read(b, 2), b"xy", f"received by {b}")
        waiting = group.create_task(b.receive(1))
        await settle()
        if waiting.done():
            fail(f"{b}.receive() returned {waiting.result()!r} for a send of nothing")
        await a.send(b"z")
        compare(await waiting, b"z", f"received by {b}")


@rule(BYTE_STREAM_RULES, one_sided=False)
async def _both_ways(a: Watched, b: Watched) -> None:
    one, other = (random.Random(seed).randbytes(200_000) for seed in (2, 3))
    async with TaskGroup() as group:
        group.create_task(send_each(a, *cut(one)))
        group.create_task(send_each(b, *cut(other)))
        at_b = group.create_task(read(b, len(one)))
        compare(await read(a, len(other)), other, f"received by {a}")
        compare(await at_b, one, f"received by {b}")


@rule(BYTE_STREAM_RULES)
async def _end(a: Watched, b: Watched) -> None:
    async with TaskGroup() as group:
        group.create_task(send_and_finish(b, b"the last bytes"))
        compare(await read_all(a, 3), b"the last bytes", f"received by {a}")
        for _ in range(3):
            await refused(EndOfStream, a.receive, 10, when="after the peer's end")
        await let_go(a)


@rule(BYTE_STREAM_RULES, half_close=True)
async def _half_close(a: Watched, b: Watched) -> None:
    async with TaskGroup() as group:
        early = random.Random(5).randbytes(50_000)
        group.create_task(send_each(b, *cut(early)))
        got = await read(a, 10, 10)
        rest = group.create_task(read(a, len(early) - 10, 7))
        await settle()
        group.create_task(send_and_finish(a, b"question"))
        compare(await read_all(b), b"question", f"received by {b}")
        what = f"received by {a} around its send_eof()"
        compare(got + await rest, early, what)
        group.create_task(send_and_finish(b, b"answer"))
        compare(await read_all(a), b"answer", what)


@rule(BYTE_STREAM_RULES)
async def _iteration(a: Watched, b: Watched) -> None:
    data = random.Random(4).randbytes(100_000)
    gathered = bytearray()
    async with TaskGroup() as group:
        group.create_task(send_and_finish(b, data))
        async for chunk in a:
            gathered += chunk
        compare(bytes(gathered), data, f"what `async for` over {a} gave")
        await let_go(a)


@rule(BYTE_STREAM_RULES)
async def _close(a: Watched, b: Watched) -> None:
    async def send_and_close() -> None:
        await a.send(b"the last bytes")
        await a.aclose()

    async with TaskGroup() as group:
        group.create_task(send_and_close())
        compare(await read_all(b), b"the last bytes", f"received by {b} until the end")
        await b.aclose()


@rule(BYTE_STREAM_RULES)
async def _closed(a: Watched, b: Watched) -> None:
    _ = b.watch.start(b.send(b"not received in time"))
    await settle()
    await close_both(a, b)
    for _ in range(2):
        await refused(ClosedResourceError, a.receive, 10, when="after aclose()")
        await refused(ClosedResourceError, a.send, b"x", when="after aclose()")


@rule(BYTE_STREAM_RULES)
async def _close_again(a: Watched, b: Watched) -> None:
    await close_both(a, b)
    for _ in range(2):
        await a.aclose()


@rule(BYTE_STREAM_RULES)
async def _close_cancelled(a: Watched, b: Watched) -> None:
    await aclose_forcefully(a)  # type: ignore[arg-type]
    await refused(ClosedResourceError, a.receive, 10, when="after a cancelled aclose()")
    await refused(ClosedResourceError, a.send, b"x", when="after a cancelled aclose()")


@rule(BYTE_STREAM_RULES)
async def _close_wakes_receiver(a: Watched, b: Watched) -> None:
    async with TaskGroup() as group:
        told = group.create_task(refused(ClosedResourceError, a.receive, 10, when="when aclose() was called"))
        await settle()
        group.create_task(a.aclose())
        await asyncio.wait({told}, timeout=_BEFORE_THE_PEER)  # Closing may wait for the peer's end.
        group.create_task(read_and_close(b))


@rule(BYTE_STREAM_RULES)
async def _peer_gone(a: Watched, b: Watched) -> None:
    await aclose_forcefully(b)  # type: ignore[arg-type]
    with suppress(BrokenResourceError):
        while True:
            await a.send(b"x")
            await asyncio.sleep(0.001)
    await refused(BrokenResourceError, a.send, b"x", when="after BrokenResourceError")


@rule(BYTE_STREAM_RULES)
async def _busy(a: Watched, b: Watched) -> None:
    async with TaskGroup() as group:
        first = group.create_task(read(a, 1))
        await settle()
        await refused(BusyResourceError, a.receive, 10, when="while another one waits")
        await b.send(b"x")
        compare(await first, b"x", f"received by the first one that waited for {a}")


@rule(BYTE_STREAM_RULES)
async def _cancelled_receive(a: Watched, b: Watched) -> None:
    receiving = a.watch.start(a.receive(10))
    await settle()
    await cancelled(receiving, f"{a}.receive()")
    sent = bytes(range(100))
    got = b""
    async with TaskGroup() as group:
        group.create_task(send_slowly_and_finish(b, *(sent[at : at + 5] for at in range(0, 100, 5))))
        for turns in [*range(6)] * 6:  # Some are cancelled before the bytes come, some after, some just then.
            receiving = a.watch.start(a.receive(3))
            for _ in range(turns):
                await asyncio.sleep(0)
            receiving.cancel()
            await asyncio.wait({receiving})
            if not receiving.cancelled() and not isinstance(receiving.exception(), EndOfStream):
                got += receiving.result()
        got += await read_all(a)
        await let_go(a)
    compare(got, sent, f"received by {a} between cancelled receives")


@rule(BYTE_STREAM_RULES)
async def _back_pressure(a: Watched, b: Watched) -> None:
    sent, sending = await fill(a)
    if sending is None:
        fail(f"{a}.send() never waited, though {sent} bytes had been sent and none had been received")
    async with TaskGroup() as group:
        group.create_task(join(sending))
        await read_blocks(b, sent)


@rule(BYTE_STREAM_RULES)
async def _cancelled_send(a: Watched, b: Watched) -> None:
    sent, sending = await fill(a)
    if sending is None:
        return  # That is another rule's.
    await cancelled(sending, f"{a}.send()")
    got = await what_arrives(a, b)
    if not sent - len(BLOCK) <= got <= sent:
        fail(f"{got} bytes arrived, of {sent - len(BLOCK)} before the cancelled send and {len(BLOCK)} in it")
