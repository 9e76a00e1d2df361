"""``check_stream()``: streams that keep the contract pass, and for each rule one that breaks it is found."""

from __future__ import annotations

import asyncio
import pickle
import re
import socket
import ssl
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import anyio.abc
import pytest
from anyio import BrokenResourceError, ClosedResourceError, DelimiterNotFound, EndOfStream, IncompleteRead
from anyio.streams import buffered
from anyio.streams.stapled import StapledByteStream
from anyio.streams.tls import TLSStream

from asyncserver import OptionError, Stream, memory_stream_pair
from asyncserver.testing import contract, contract_steps
from asyncserver.testing.contract import RULES, StreamContractError, check_stream
from tests.streams import CLIENT_CONTEXT, SERVER_CONTEXT, socket_pair
from tests.waiting import MS, PATIENCE, SECOND, wait_until

on_one_loop = pytest.mark.asyncio(loop_factories=["asyncio"])

NAMES = [rule.name for rule in RULES]


# Streams that keep it


async def connected(family: int, make: Callable[[socket.socket], Any]) -> tuple[Any, Any]:
    near, far = await socket_pair(family)
    return make(near), make(far)


async def ours_under_tls(kind: str) -> tuple[Stream, Stream]:
    near, far = memory_stream_pair() if kind == "memory" else await connected(socket.AF_UNIX, Stream)
    await asyncio.gather(
        near.start_tls(SERVER_CONTEXT),
        far.start_tls(CLIENT_CONTEXT, server_side=False, server_hostname="localhost"),
    )
    return near, far


OURS: dict[str, contract.MakePair] = {
    "memory": memory_stream_pair,
    "memory in small chunks": lambda: memory_stream_pair(chunk=4_000, capacity=10_000),
    "tcp": lambda: connected(socket.AF_INET, Stream),
    "unix": lambda: connected(socket.AF_UNIX, Stream),
    "tls": lambda: ours_under_tls("unix"),
    "tls in memory": lambda: ours_under_tls("memory"),
}


@pytest.mark.parametrize("kind", list(OURS))
async def test_our_streams_keep_all_of_it(kind: str) -> None:
    assert await check_stream(OURS[kind], timeout=PATIENCE) == NAMES


async def anyios_own() -> tuple[Any, Any]:
    near, far = socket.socketpair()
    wrap = anyio.abc.UNIXSocketStream.from_socket
    return await wrap(near), await wrap(far)


def stapled() -> tuple[Any, Any]:
    """One connection for each direction."""
    (one, other), (another, last) = memory_stream_pair(), memory_stream_pair()
    return StapledByteStream(one, another), StapledByteStream(last, other)


def buffering() -> tuple[Any, Any]:
    near, far = memory_stream_pair()
    return buffered.BufferedByteStream(near), buffered.BufferedByteStream(far)


async def anyios_tls() -> tuple[Any, Any]:
    near, far = memory_stream_pair()
    return await asyncio.gather(
        TLSStream.wrap(near, server_side=True, ssl_context=SERVER_CONTEXT),
        TLSStream.wrap(far, server_side=False, hostname="localhost", ssl_context=CLIENT_CONTEXT),
    )


OF_BYTE_STREAMS = NAMES[: NAMES.index("exactly")]


async def test_anyios_own_streams_keep_what_byte_streams_promise() -> None:
    assert await check_stream(anyios_own) == OF_BYTE_STREAMS


async def test_stapled_streams_keep_what_byte_streams_promise() -> None:
    assert await check_stream(stapled) == OF_BYTE_STREAMS


@pytest.mark.skipif(not hasattr(buffered, "BufferedByteStream"), reason="needs a newer anyio")
async def test_methods_that_a_stream_has_are_checked() -> None:
    assert await check_stream(buffering) == [*OF_BYTE_STREAMS, "exactly", "until"]


# What anyio's TLS does otherwise: see its aclose(), which says nothing of closing in the middle.
ANYIOS_TLS_BREAKS = {"closed", "close-cancelled", "close-wakes-receiver", "cancelled-send"}


async def test_a_stream_that_cannot_half_close() -> None:
    checked = await check_stream(anyios_tls, half_close=False, without=ANYIOS_TLS_BREAKS)
    assert set(OF_BYTE_STREAMS) - set(checked) == ANYIOS_TLS_BREAKS | {"half-close"}


# Streams that break a rule each


class Faithful:
    """A stream of somebody else's that is no ``asyncserver.Stream`` and promises all that one does."""

    def __init__(self, inner: Stream) -> None:
        self.inner = inner
        self.is_closed = False
        self.lock = asyncio.Lock()

    async def receive(self, max_bytes: int = 65_536) -> bytes:
        return await self.inner.receive(max_bytes)

    def __aiter__(self) -> Any:
        return self

    async def __anext__(self) -> bytes:
        return await anext(self.inner)

    async def receive_exactly(self, count: int) -> bytes:
        return await self.inner.receive_exactly(count)

    async def receive_until(self, delimiter: bytes, max_bytes: int) -> bytes:
        return await self.inner.receive_until(delimiter, max_bytes)

    def lines(self, max_bytes: int = 65_536) -> Any:
        return self.inner.lines(max_bytes)

    async def peek(self, count: int) -> bytes:
        return await self.inner.peek(count)

    async def send(self, item: Any) -> None:
        await self.inner.send(item)

    async def send_many(self, items: Any) -> None:
        await self.inner.send_many(items)

    async def send_eof(self) -> None:
        await self.inner.send_eof()

    async def aclose(self) -> None:
        self.is_closed = True
        await self.inner.aclose()

    def abort(self) -> None:
        self.inner.abort()


def pair_of(kind: Callable[[Stream], Any], **options: Any) -> contract.MakePair:
    def make() -> tuple[Any, Any]:
        near, far = memory_stream_pair(**options)
        return kind(near), kind(far)

    return make


class LosesAByte(Faithful):
    async def send(self, item: Any) -> None:
        await self.inner.send(item[:-1] if len(item) > 5_000 else item)


class ReceivesMore(Faithful):
    async def receive(self, max_bytes: int = 65_536) -> bytes:
        return await self.inner.receive()


class ReceivesNothing(Faithful):
    async def receive(self, max_bytes: int = 65_536) -> bytes:
        return b""


class ReceivesNoBytes(Faithful):
    async def receive(self, max_bytes: int = 65_536) -> Any:
        return bytearray(await self.inner.receive(max_bytes))


class EndsBySendingNothing(Faithful):
    async def send(self, item: Any) -> None:
        await (self.inner.send(item) if item else self.inner.send_eof())


class OneThingAtATime(Faithful):
    async def send(self, item: Any) -> None:
        async with self.lock:
            await self.inner.send(item)

    async def receive(self, max_bytes: int = 65_536) -> bytes:
        async with self.lock:
            return await self.inner.receive(max_bytes)


class ForgetsTheEnd(Faithful):
    ended = False

    async def receive(self, max_bytes: int = 65_536) -> bytes:
        if self.ended:
            return b""
        try:
            return await self.inner.receive(max_bytes)
        except EndOfStream:
            self.ended = True
            raise


class EndsBothDirections(Faithful):
    async def send_eof(self) -> None:
        await self.inner.aclose()


class IteratesOnce(Faithful):
    async def __anext__(self) -> bytes:
        if self.is_closed:
            raise StopAsyncIteration
        self.is_closed = True
        return await anext(self.inner)


class AbortsInClosing(Faithful):
    async def aclose(self) -> None:
        self.inner.abort()


class EndsWhenClosed(Faithful):
    async def receive(self, max_bytes: int = 65_536) -> bytes:
        try:
            return await self.inner.receive(max_bytes)
        except ClosedResourceError:
            raise EndOfStream from None


class ClosesOnce(Faithful):
    async def aclose(self) -> None:
        if self.is_closed:
            raise RuntimeError("closed already")
        await super().aclose()


class ClosesLater(Faithful):
    async def aclose(self) -> None:
        await asyncio.sleep(1 * MS)
        await self.inner.aclose()


class EndsWhenClosedUnderIt(Faithful):
    async def receive(self, max_bytes: int = 65_536) -> bytes:
        was_closed = self.is_closed
        try:
            return await self.inner.receive(max_bytes)
        except ClosedResourceError:
            if was_closed:
                raise
            raise EndOfStream from None


class SendsIntoTheVoid(Faithful):
    async def send(self, item: Any) -> None:
        with suppress(BrokenResourceError):
            await self.inner.send(item)


class ForgetsThatItIsBroken(Faithful):
    was_broken = False

    async def send(self, item: Any) -> None:
        if self.was_broken:
            return
        try:
            await self.inner.send(item)
        except BrokenResourceError:
            self.was_broken = True
            raise


class QueuesReceivers(Faithful):
    async def receive(self, max_bytes: int = 65_536) -> bytes:
        async with self.lock:
            return await self.inner.receive(max_bytes)


class LosesInCancelling(Faithful):
    async def receive(self, max_bytes: int = 65_536) -> bytes:
        data = await self.inner.receive(max_bytes)
        await asyncio.sleep(0)
        return data


class SwallowsCancellation(Faithful):
    async def receive(self, max_bytes: int = 65_536) -> bytes:
        try:
            return await self.inner.receive(max_bytes)
        except asyncio.CancelledError:
            return b""


class SwallowsCancellationOfSends(Faithful):
    async def send(self, item: Any) -> None:
        with suppress(asyncio.CancelledError):
            await self.inner.send(item)


class DropsWhatCame(Faithful):
    async def receive_exactly(self, count: int) -> bytes:
        try:
            return await self.inner.receive_exactly(count)
        except IncompleteRead:
            await self.inner.receive()
            raise


class KeepsTheDelimiter(Faithful):
    async def receive_until(self, delimiter: bytes, max_bytes: int) -> bytes:
        return await self.inner.receive_until(delimiter, max_bytes) + delimiter


class HasNoLimit(Faithful):
    async def receive_until(self, delimiter: bytes, max_bytes: int) -> bytes:
        try:
            return await self.inner.receive_until(delimiter, max_bytes)
        except DelimiterNotFound:
            return b""


class KeepsLineEnds(Faithful):
    async def lines(self, max_bytes: int = 65_536) -> AsyncGenerator[bytes]:
        async for line in self.inner.lines(max_bytes):
            yield line + b"\n"


class TakesWhatItPeeksAt(Faithful):
    async def peek(self, count: int) -> bytes:
        return await self.inner.receive_exactly(count)


class SendsBackwards(Faithful):
    async def send_many(self, items: Any) -> None:
        await self.inner.send_many(reversed(items))


class DoesNotAbort(Faithful):
    def abort(self) -> None:
        pass


class ReceivesZero(Faithful):
    async def receive(self, max_bytes: int = 65_536) -> bytes:
        return await self.inner.receive(max_bytes) if max_bytes else b""


class TakesBytesAlone(Faithful):
    async def send(self, item: Any) -> None:
        if not isinstance(item, bytes):
            raise TypeError("bytes, please")
        await self.inner.send(item)


class EndsOnce(Faithful):
    async def send_eof(self) -> None:
        if self.is_closed:
            raise ClosedResourceError
        self.is_closed = True
        await self.inner.send_eof()


class ClosesInAHurry(Faithful):
    async def aclose(self) -> None:
        await self.inner.close_gently(0)


class SendsInParts(Faithful):
    async def send(self, item: Any) -> None:
        for at in range(0, len(item), 20_000):
            await self.inner.send(item[at : at + 20_000])
            await asyncio.sleep(0)


class SendsOnePartAfterTheOther(SendsInParts):
    async def send(self, item: Any) -> None:
        async with self.lock:
            await super().send(item)


class GathersForItself(Faithful):
    async def receive_exactly(self, count: int) -> bytes:
        gathered = b""
        while len(gathered) < count:
            gathered += await self.inner.receive(count - len(gathered))
        return gathered


class CancelsByItself(Faithful):
    async def receive(self, max_bytes: int = 65_536) -> bytes:
        raise asyncio.CancelledError


BROKEN: list[tuple[str, Callable[[Stream], Any], str]] = [
    ("order", LosesAByte, "received by second: 157121 bytes instead of 157126, different from byte "),
    ("order", ReceivesNothing, "second.receive(50000) returned 0 bytes"),
    ("order", ReceivesNoBytes, "which is not bytes"),
    ("order", CancelsByItself, "CancelledError, and nobody had cancelled it"),
    ("at-most", ReceivesMore, "first.receive(1) returned 100 bytes"),
    ("nothing", EndsBySendingNothing, "first.send(b'x') raised ClosedResourceError()"),
    ("both-ways", OneThingAtATime, "not done within 1 s; waiting: first.send("),
    (
        "end",
        ForgetsTheEnd,
        "first.receive(10) after the peer's end returned b'' instead of raising EndOfStream",
    ),
    ("half-close", EndsBothDirections, "raised "),
    ("iteration", IteratesOnce, "what `async for` over first gave: "),
    ("close", AbortsInClosing, "second.receive(50000) raised BrokenResourceError("),
    ("closed", EndsWhenClosed, "first.receive(10) after aclose() raised EndOfStream() instead of Closed"),
    ("close-again", ClosesOnce, "first.aclose() raised RuntimeError('closed already')"),
    ("close-cancelled", ClosesLater, "not done within 1 s; waiting: first.receive(10)"),
    ("close-wakes-receiver", EndsWhenClosedUnderIt, "when aclose() was called raised EndOfStream()"),
    ("peer-gone", SendsIntoTheVoid, "not done within 1 s; none of its methods waits"),
    ("peer-gone", ForgetsThatItIsBroken, "first.send(b'x') after BrokenResourceError returned None"),
    ("busy", QueuesReceivers, "not done within 1 s; waiting: first.receive(1), first.receive(10)"),
    ("cancelled-receive", LosesInCancelling, "received by first between cancelled receives: "),
    ("cancelled-receive", SwallowsCancellation, "first.receive() was cancelled, and ended with b''"),
    ("cancelled-send", SwallowsCancellationOfSends, "first.send() was cancelled, and ended with None"),
    ("exactly", DropsWhatCame, "first.receive() raised EndOfStream after 0 bytes of 3"),
    ("until", KeepsTheDelimiter, "first.receive_until(): 5 bytes instead of 3"),
    ("until", HasNoLimit, "before 200 bytes without it returned b'' instead of raising DelimiterNotFound"),
    ("lines", KeepsLineEnds, "first.lines(): 4 bytes instead of 3, different from byte 3 on"),
    ("peek", TakesWhatItPeeksAt, "first.peek(4): 4 bytes instead of 4, different from byte 0 on"),
    ("send-many", SendsBackwards, "different from byte 0 on"),
    ("abort", DoesNotAbort, "first.receive(10) after abort() raised BusyResourceError("),
    ("sizes", ReceivesZero, "first.receive(0) for no bytes returned b'' instead of raising ValueError"),
    ("kinds-of-bytes", TakesBytesAlone, "first.send(bytearray(b'before')) raised TypeError('bytes, please')"),
    ("after-the-end", EndsOnce, "first.send_eof() raised ClosedResourceError()"),
    ("close-sends-the-rest", ClosesInAHurry, "raised "),
    ("unmixed", SendsInParts, "what four tasks sent with first at the same time has come mixed"),
    ("cancelled-gathering", GathersForItself, "not done within 1 s; waiting: first.receive_exactly(7)"),
    ("cancelled-send-whole", SendsOnePartAfterTheOther, "in a cancelled send"),
]


@pytest.mark.parametrize(("rule", "kind", "problem"), BROKEN, ids=lambda each: getattr(each, "__name__", ""))
@on_one_loop
async def test_what_breaks_a_rule_is_found(rule: str, kind: Callable[[Stream], Any], problem: str) -> None:
    others = [name for name in NAMES if name != rule]
    timeout = 1 * SECOND if "not done within" in problem else PATIENCE
    with pytest.raises(StreamContractError) as caught:
        await check_stream(pair_of(kind, capacity=10_000), complete=True, without=others, timeout=timeout)
    assert caught.value.rule == rule
    assert problem in caught.value.problem


@on_one_loop
async def test_a_stream_that_takes_everything_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contract_steps, "_MUCH", 1 << 20)
    with pytest.raises(
        StreamContractError, match=r"back-pressure: first.send\(\) never waited, though 1048576"
    ):
        await check_stream(lambda: memory_stream_pair(capacity=1 << 30))


def test_for_each_rule_something_that_breaks_it_is_known() -> None:
    assert {rule for rule, _, _ in BROKEN} | {"back-pressure"} == set(NAMES)


@on_one_loop
async def test_both_sides_are_checked() -> None:
    def make() -> tuple[Any, Any]:
        near, far = memory_stream_pair()
        return near, ReceivesZero(far)

    with pytest.raises(StreamContractError, match=r"sizes: second.receive\(0\)"):
        await check_stream(make, complete=True)


# How it is used


def test_the_contract_in_words_has_every_rule() -> None:
    assert re.findall(r"^([a-z-]+)  +\S", contract.__doc__ or "", re.MULTILINE) == NAMES


@on_one_loop
async def test_a_stream_of_somebody_else() -> None:
    """What only an ``asyncserver.Stream`` promises is not asked of it, unless it is asked for."""
    faithful = pair_of(Faithful)
    assert await check_stream(faithful, complete=True) == NAMES
    beyond = NAMES[NAMES.index("abort") + 1 :]
    assert await check_stream(faithful, without=["order"]) == [
        name for name in NAMES if name not in beyond and name != "order"
    ]
    assert set(beyond).isdisjoint(await check_stream(memory_stream_pair, complete=False))


@on_one_loop
async def test_pairs_are_made_in_any_way_and_are_closed() -> None:
    made: list[Stream] = []
    ended: list[bool] = []

    def now() -> tuple[Stream, Stream]:
        made.extend(pair := memory_stream_pair())
        return pair

    async def soon() -> tuple[Stream, Stream]:
        return now()

    @asynccontextmanager
    async def for_a_while() -> AsyncGenerator[tuple[Stream, Stream]]:
        yield now()
        ended.append(True)

    others = [name for name in NAMES if name not in ("busy", "nothing")]
    for make in now, soon, for_a_while:
        assert await check_stream(make, without=others) == ["nothing", "busy"]
        assert len(made) == 2 * (1 + 2 * 2)  # one to see what there is, and one for each rule and side
        assert all(stream.closed for stream in made)
        made.clear()
    assert len(ended) == 5


@on_one_loop
async def test_what_cannot_be_asked() -> None:
    with pytest.raises(
        OptionError, match="without='backpressure': is none of the rules: abort, after-the-end"
    ):
        await check_stream(memory_stream_pair, without=["backpressure"])

    def make() -> Any:
        raise ssl.SSLError("no pair today")

    with pytest.raises(ssl.SSLError, match="no pair today"):
        await check_stream(make)


@on_one_loop
async def test_a_check_can_be_cancelled() -> None:
    checking = asyncio.create_task(
        check_stream(pair_of(QueuesReceivers), without=NAMES[: NAMES.index("busy")])
    )
    await wait_until(lambda: len(asyncio.all_tasks()) > 2)
    checking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await checking


def test_the_error_says_which_rule_and_can_be_sent_elsewhere() -> None:
    error: Any = pickle.loads(pickle.dumps(StreamContractError("order", "one byte is missing")))
    assert isinstance(error, AssertionError)
    assert str(error) == "order: one byte is missing"
    assert (error.rule, error.problem) == ("order", "one byte is missing")
