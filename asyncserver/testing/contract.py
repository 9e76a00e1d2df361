"""The contract of a stream, as something to be run: ``check_stream()``.

What is written down here in words, ``contract_rules`` and ``contract_stream_rules`` say in code;
``contract_steps`` is what they are made of. The rules of every ``anyio.abc.ByteStream``:

=====================  ===================================================================================
order                  What is sent arrives: all of it, in order, and nothing else.
at-most                ``receive(n)`` returns bytes: at least one, at most n.
nothing                Sending no bytes sends nothing, and is not the end.
both-ways              Both directions work at the same time, in one task each.
end                    When the peer has ended, what it sent is received, and then ``EndOfStream`` is raised,
                       again and again.
half-close             After ``send_eof()`` the other direction goes on, also with what had come before it.
iteration              ``async for`` gives what comes until the end.
close                  ``aclose()``: the peer receives what was sent before it, and the end.
closed                 After ``aclose()`` ``receive()`` and ``send()`` raise ``ClosedResourceError``.
close-again            A further ``aclose()`` does nothing.
close-cancelled        A cancelled ``aclose()`` has closed, too.
close-wakes-receiver   A ``receive()`` that waits raises ``ClosedResourceError`` when its stream is closed.
peer-gone              Sending to a peer that is gone raises ``BrokenResourceError``, and goes on doing so.
busy                   A second ``receive()`` at the same time raises ``BusyResourceError``, and the first one
                       does not notice.
cancelled-receive      A cancelled ``receive()`` ends at once, and no byte is lost.
back-pressure          ``send()`` waits when the peer does not receive, and goes on when it does.
cancelled-send         A cancelled ``send()`` ends at once; what was sent before arrives, then at most a part
                       of what it was to send.
=====================  ===================================================================================

Of the streams that have these methods:

=====================  ===================================================================================
exactly                ``receive_exactly()`` returns so many bytes; ``IncompleteRead`` when the peer ends
                       before, and what had come is left.
until                  ``receive_until()`` returns what stands before the delimiter, also one that came in
                       parts; ``DelimiterNotFound`` beyond the limit, ``IncompleteRead`` at the end, and what
                       had come is left.
lines                  ``lines()`` gives lines without their ends, and a last one that has none.
peek                   ``peek()`` returns what the next receive will get.
send-many              ``send_many()`` sends several buffers, one behind the other.
abort                  ``abort()`` closes at once; the peer learns it by ``BrokenResourceError`` or the end.
=====================  ===================================================================================

And what an ``asyncserver.Stream`` promises beyond that:

=====================  ===================================================================================
sizes                  ``receive(0)`` raises ``ValueError``, as less than that, and loses nothing.
kinds-of-bytes         ``send()`` takes any kind of bytes, and does not see what is changed afterwards.
after-the-end          After ``send_eof()`` sending raises ``ClosedResourceError``; a second one does nothing.
close-sends-the-rest   ``aclose()`` waits until the peer has taken what was still to be sent.
unmixed                What tasks send at the same time is not mixed.
cancelled-gathering    A cancelled ``receive_exactly()`` or ``receive_until()`` loses no byte.
cancelled-send-whole   What a cancelled ``send()`` was to send is sent all the same.
=====================  ===================================================================================
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from inspect import isawaitable
from typing import Any, TypeAlias, cast

from anyio import aclose_forcefully
from anyio.abc import ByteStream

from asyncserver import OptionError, Stream
from asyncserver.testing.contract_rules import BYTE_STREAM_RULES
from asyncserver.testing.contract_stream_rules import STREAM_RULES
from asyncserver.testing.contract_watch import Rule, Violation, Watch, Watched

__all__ = ["RULES", "MakePair", "StreamContractError", "check_stream"]

RULES: tuple[Rule, ...] = (*BYTE_STREAM_RULES, *STREAM_RULES)

Pair: TypeAlias = tuple[ByteStream, ByteStream]

MakePair: TypeAlias = Callable[[], AbstractAsyncContextManager[Pair] | Awaitable[Pair] | Pair]
"""Makes two connected streams: as an asynchronous context manager, an ``async def``, or right away."""

# Seconds for what has been cancelled to end.
_GRACE = 1.0


class StreamContractError(AssertionError):
    """A stream breaks a rule of the contract: ``rule`` is its name, ``problem`` what has happened."""

    def __init__(self, rule: str, problem: str) -> None:
        super().__init__(f"{rule}: {problem}")
        self.rule = rule
        self.problem = problem

    def __reduce__(self) -> tuple[type[StreamContractError], tuple[str, str]]:
        return type(self), (self.rule, self.problem)


async def check_stream(
    make_pair: MakePair,
    *,
    half_close: bool = True,
    complete: bool | None = None,
    without: Collection[str] = (),
    timeout: float = 10.0,
) -> list[str]:
    """Check that streams keep the contract, whose rules ``asyncserver.testing.contract`` has in words.

    ``make_pair`` makes two streams that are connected to each other, new ones at each call: a function
    like ``memory_stream_pair``, one that is ``async``, or one that returns an asynchronous context
    manager. Every rule is tried on two pairs, once for each side, whose streams are closed afterwards::

        async def test_my_stream_is_a_stream():
            await check_stream(make_my_pair)

    ``half_close=False`` is for streams that cannot end one direction alone (anyio's TLS): they end by
    ``aclose()`` instead, and the rules about ``send_eof()`` are left out. ``complete`` says whether what
    an ``asyncserver.Stream`` promises beyond ``anyio.abc.ByteStream`` is due as well; None: if that is
    what they are. ``without`` leaves out rules by name. ``timeout``: seconds for each rule and side.

    Raises ``StreamContractError`` at the first violation, and ``OptionError`` for a rule that is not known.
    Whatever ``make_pair`` raises is raised. Returns the names of the rules that were checked.
    """
    _check_names(without)
    async with _opened(make_pair) as pair:
        if complete is None:
            complete = all(isinstance(stream, Stream) for stream in pair)
        due = [rule for rule in RULES if rule.name not in without and rule.is_due(pair, half_close, complete)]
    for rule in due:
        for under_test in (0, 1) if rule.one_sided else (0,):
            async with _opened(make_pair) as pair:
                await _check(rule, pair, under_test, half_close, timeout)
    return [rule.name for rule in due]


def _check_names(names: Collection[str]) -> None:
    known = {rule.name for rule in RULES}
    for name in names:
        if name not in known:
            raise OptionError("without", name, f"is none of the rules: {', '.join(sorted(known))}")


@asynccontextmanager
async def _opened(make_pair: MakePair) -> AsyncGenerator[Pair]:
    made: Any = make_pair()
    if isinstance(made, AbstractAsyncContextManager):
        context = cast("AbstractAsyncContextManager[Pair]", made)
        async with context as pair, _closing(pair):
            yield pair
    else:
        async with _closing(await made if isawaitable(made) else made) as pair:
            yield pair


@asynccontextmanager
async def _closing(pair: Pair) -> AsyncGenerator[Pair]:
    try:
        yield pair
    finally:
        # What they do wrong in closing is for the rules to find.
        await _settled({asyncio.create_task(aclose_forcefully(stream)) for stream in pair})


async def _settled(tasks: Collection[asyncio.Task[Any]]) -> None:
    """Wait a little for tasks to end; what they raise is of no interest."""
    done, _ = await asyncio.wait(tasks, timeout=_GRACE)
    for task in done:
        if not task.cancelled():
            task.exception()


async def _check(rule: Rule, pair: Pair, under_test: int, half_close: bool, timeout: float) -> None:
    watch = Watch()
    first, second = (
        Watched(pair[0], "first", half_close, watch),
        Watched(pair[1], "second", half_close, watch),
    )
    task = watch.start(rule.run(second, first) if under_test else rule.run(first, second))
    try:
        done, _ = await asyncio.wait({task}, timeout=timeout)
        waiting = watch.waiting()
    finally:
        for each in watch.tasks:
            each.cancel()
        await _settled(watch.tasks)
    if not done:
        raise StreamContractError(rule.name, f"not done within {timeout:g} s; {waiting}")
    if task.cancelled():
        raise StreamContractError(rule.name, "a method raised CancelledError, and nobody had cancelled it")
    try:
        task.result()
    except Exception as exc:
        cause = _first(exc)
        problem = str(cause) if isinstance(cause, Violation) else watch.blame(cause)
        raise StreamContractError(rule.name, problem) from cause


def _first(exc: BaseException) -> BaseException:
    """Of a group, what was raised first; it has cancelled the others."""
    if isinstance(exc, BaseExceptionGroup):
        return _first(cast("BaseExceptionGroup[BaseException]", exc).exceptions[0])
    return exc
