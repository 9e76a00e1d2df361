"""What rules of the contract do with streams."""

from __future__ import annotations

import asyncio
import reprlib
from asyncio import TaskGroup
from contextlib import suppress
from typing import Any

from anyio import BrokenResourceError, EndOfStream

from asyncserver.testing.contract_watch import Operation, Violation, Watched, fail

__all__ = [
    "A_WHILE",
    "BLOCK",
    "cancelled",
    "close_both",
    "compare",
    "cut",
    "fill",
    "finish",
    "join",
    "let_go",
    "read",
    "read_all",
    "read_and_close",
    "read_blocks",
    "refused",
    "send_and_finish",
    "send_each",
    "send_slowly_and_finish",
    "settle",
    "what_arrives",
]

# The largest piece that is asked for at a time.
_PIECE = 50_000

# A stream that takes more than this without waiting has no bound; kernels' buffers grow to some megabytes.
_MUCH = 64 << 20

# Seconds after which a send() that has not returned is taken for one that waits.
A_WHILE = 0.02

BLOCK = bytes(range(256)) * 256
"""What is sent until no more is taken."""


async def refused(expected: type[Exception], operation: Operation, *args: Any, when: str) -> None:
    """The operation has to raise an exception of this class; ``when`` says what is special about it."""
    what = f"{operation.described(args)} {when}"
    try:
        result = await operation(*args)
    except expected:
        return
    except Exception as exc:
        raise Violation(f"{what} raised {exc!r} instead of {expected.__name__}") from exc
    fail(f"{what} returned {reprlib.repr(result)} instead of raising {expected.__name__}")


def compare(got: bytes, expected: bytes, what: str) -> None:
    """The same bytes have to come out."""
    if got != expected:
        pairs = zip(got, expected, strict=False)
        same = next(
            (at for at, (one, other) in enumerate(pairs) if one != other), min(len(got), len(expected))
        )
        fail(f"{what}: {len(got)} bytes instead of {len(expected)}, different from byte {same} on")


async def read(stream: Watched, count: int, at_most: int = _PIECE) -> bytes:
    """Receive so many bytes, and look at each chunk."""
    gathered = bytearray()
    while len(gathered) < count:
        try:
            gathered += await _chunk(stream, min(at_most, count - len(gathered)))
        except EndOfStream:
            fail(f"{stream}.receive() raised EndOfStream after {len(gathered)} bytes of {count}")
    return bytes(gathered)


async def read_all(stream: Watched, at_most: int = _PIECE) -> bytes:
    """Receive until ``EndOfStream``."""
    gathered = bytearray()
    while True:
        try:
            gathered += await _chunk(stream, at_most)
        except EndOfStream:
            return bytes(gathered)


async def _chunk(stream: Watched, at_most: int) -> bytes:
    data: Any = await stream.receive(at_most)
    if not isinstance(data, bytes):
        fail(f"{stream}.receive({at_most}) returned {reprlib.repr(data)}, which is not bytes")
    if not 1 <= len(data) <= at_most:
        fail(f"{stream}.receive({at_most}) returned {len(data)} bytes")
    return data


async def finish(stream: Watched) -> None:
    """Say that no more will be sent: by a half-close, or else by closing."""
    await (stream.send_eof() if stream.can_half_close else stream.aclose())


async def settle() -> None:
    """Let what was started come to where it waits."""
    for _ in range(10):
        await asyncio.sleep(0)


def cut(data: bytes) -> list[bytes]:
    return [data[at : at + 20_000] for at in range(0, len(data), 20_000)]


async def send_each(stream: Watched, *items: bytes) -> None:
    for item in items:
        await stream.send(item)


async def send_and_finish(stream: Watched, data: bytes) -> None:
    await stream.send(data)
    await finish(stream)


async def send_slowly_and_finish(stream: Watched, *items: bytes) -> None:
    """So that they come one by one, as a rule."""
    for item in items:
        await stream.send(item)
        await settle()
    await finish(stream)


async def let_go(stream: Watched) -> None:
    """The peer may be closing, and waiting for this side to do so, too."""
    if not stream.can_half_close:
        await stream.aclose()


async def close_both(a: Watched, b: Watched) -> None:
    async with TaskGroup() as group:
        group.create_task(a.aclose())
        group.create_task(read_and_close(b))


async def read_and_close(stream: Watched) -> None:
    with suppress(BrokenResourceError, Violation):  # How the peer's end looks here is another rule's.
        await read_all(stream)
    await stream.aclose()


async def cancelled(task: asyncio.Task[Any], what: str) -> None:
    task.cancel()
    await asyncio.wait({task})
    if not task.cancelled():
        outcome = task.exception() or task.result()
        fail(f"{what} was cancelled, and ended with {outcome!r}")


async def join(task: asyncio.Task[Any]) -> None:
    await task


async def fill(stream: Watched) -> tuple[int, asyncio.Task[None] | None]:
    """Send until it waits: how many bytes, and the send that waits; None if none ever does."""
    for sent in range(len(BLOCK), _MUCH, len(BLOCK)):
        sending = stream.watch.start(stream.send(BLOCK))
        await asyncio.wait({sending}, timeout=A_WHILE)
        if not sending.done():
            return sent, sending
        sending.result()
    return _MUCH, None


async def read_blocks(stream: Watched, count: int) -> None:
    """Receive so many bytes of blocks, and none else."""
    for _ in range(count // len(BLOCK)):
        compare(await read(stream, len(BLOCK)), BLOCK, f"a block received by {stream}")


async def what_arrives(a: Watched, b: Watched) -> int:
    """How many bytes of blocks, until the end."""
    async with TaskGroup() as group:
        group.create_task(finish(a))
        data = await read_all(b)
        whole, rest = divmod(len(data), len(BLOCK))
        compare(data, BLOCK * whole + BLOCK[:rest], f"received by {b}")
        await let_go(b)
    return len(data)
