from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable
from typing import Any

import pytest

from asyncserver import Datagram, DatagramHandler, DatagramServer, OptionError, Session, sessions
from asyncserver.datagram_handlers import SessionHandler, as_packet_handler, as_session_function
from tests.datagrams import UDP, Peer, echo_datagram, ended, serving
from tests.waiting import wait_until


async def serve_session(session: Session) -> None:
    async for datagram in session:
        await session.send(datagram.data)


async def with_more(extra: str, datagram: Datagram) -> None:
    await datagram.reply(extra.encode() + datagram.data)


class EchoObject:
    async def __call__(self, datagram: Datagram) -> None:
        await datagram.reply(datagram.data)

    async def method(self, datagram: Datagram) -> None:
        await datagram.reply(datagram.data)


class Echo(DatagramHandler):
    async def handle(self) -> None:
        await self.datagram.reply(b"%s %s" % (self.datagram.data, type(self.server).__name__.encode()))


@pytest.mark.parametrize(
    ("handler", "answer"),
    [
        (echo_datagram, b"x"),
        (EchoObject(), b"x"),
        (EchoObject().method, b"x"),
        (functools.partial(with_more, "a"), b"ax"),
        (Echo, b"x DatagramServer"),
    ],
    ids=["function", "object", "method", "partial", "class"],
)
async def test_what_serves_packets(handler: Any, answer: bytes) -> None:
    assert as_packet_handler(handler) is not None
    assert as_session_function(handler) is None
    async with serving(handler) as server, Peer(server) as peer:
        assert await peer.ask(b"x") == answer


async def test_what_serves_sessions() -> None:
    marked = sessions(serve_session)
    assert isinstance(marked, SessionHandler)
    assert as_packet_handler(marked) is None
    assert as_session_function(marked) is serve_session
    async with serving(marked) as server, Peer(server) as peer:
        assert await peer.ask(b"x") == b"x"
        assert await peer.ask(b"y") == b"y"
        assert server.statistics().sessions == 1


def test_a_marked_function_can_be_called() -> None:
    coroutine = sessions(serve_session)(None)  # type: ignore[arg-type]
    assert asyncio.iscoroutine(coroutine)
    coroutine.close()


class NoHandle(DatagramHandler):
    pass


class PlainHandle(DatagramHandler):
    def handle(self) -> None:  # type: ignore[override]
        pass


class PlainSetup(Echo):
    def setup(self) -> None:  # type: ignore[override]
        pass


class PlainFinish(Echo):
    def finish(self) -> None:  # type: ignore[override]
        pass


class Other:
    async def handle(self) -> None:
        pass


async def takes_none() -> None:
    pass


async def takes_two(a: Any, b: Any) -> None:
    pass


REFUSED: list[tuple[Any, str]] = [
    (None, "an async function or a DatagramHandler class"),
    (5, "an async function or a DatagramHandler class"),
    (NoHandle, r"no `async def handle\(self\)`"),
    (DatagramHandler, r"no `async def handle\(self\)`"),
    (PlainHandle, "handle is not async"),
    (PlainSetup, "setup is not async"),
    (PlainFinish, "finish is not async"),
    (Other, "has to extend asyncserver.DatagramHandler"),
    (lambda datagram: None, r"is not async: write `async def` \(it takes the datagram\)"),
    (takes_none, "has to take one argument, the datagram"),
    (takes_two, "has to take one argument, the datagram"),
]


@pytest.mark.parametrize(("handler", "reason"), REFUSED, ids=[reason[:30] for _, reason in REFUSED])
@pytest.mark.parametrize("take", [as_packet_handler, lambda handler: DatagramServer(handler, UDP)])
def test_what_serves_nothing(take: Callable[[Any], Any], handler: Any, reason: str) -> None:
    with pytest.raises(OptionError, match=reason) as caught:
        take(handler)
    assert caught.value.option == "handler"
    assert caught.value.value is handler


@pytest.mark.parametrize(
    ("handler", "reason"),
    [
        (None, "an async function"),
        (lambda session: None, r"is not async: write `async def` \(it takes the session\)"),
        (takes_none, "has to take one argument, the session"),
        (takes_two, "has to take one argument, the session"),
    ],
)
def test_what_serves_no_sessions(handler: Any, reason: str) -> None:
    with pytest.raises(OptionError, match=reason) as caught:
        sessions(handler)
    assert (caught.value.option, caught.value.value) == ("handler", handler)


class Steps(DatagramHandler):
    """Does in each step what the packet says, and notes that it was there."""

    seen: list[str]
    go_on: asyncio.Event

    async def _step(self, name: str) -> None:
        if self.datagram.data == b"slow":
            await asyncio.sleep(0)
        self.seen.append(name)
        if self.datagram.data == name.encode():
            raise ValueError(name)
        if self.datagram.data == f"wait in {name}".encode():
            await self.go_on.wait()

    async def setup(self) -> None:
        await self._step("setup")

    async def handle(self) -> None:
        assert self.peer == self.datagram.peer
        await self._step("handle")

    async def finish(self) -> None:
        await self._step("finish")


@pytest.fixture
async def steps() -> type[Steps]:
    class Fresh(Steps):
        seen: list[str] = []  # noqa: RUF012
        go_on = asyncio.Event()

    return Fresh


@pytest.mark.parametrize(
    ("packet", "seen", "raises"),
    [
        (b"", ["setup", "handle", "finish"], False),
        (b"slow", ["setup", "handle", "finish"], False),
        (b"setup", ["setup"], True),
        (b"handle", ["setup", "handle", "finish"], True),
        (b"finish", ["setup", "handle", "finish"], True),
    ],
)
async def test_the_steps_of_a_class(
    steps: type[Steps], packet: bytes, seen: list[str], *, raises: bool
) -> None:
    async with serving(steps) as server, Peer(server) as peer:
        peer.send(packet)
        now = await ended(server, 1)
        assert steps.seen == seen
        assert (now.handled, now.failed) == ((0, 1) if raises else (1, 0))


@pytest.mark.parametrize(
    ("packet", "seen"),
    [
        (b"wait in setup", ["setup"]),
        (b"wait in handle", ["setup", "handle", "finish"]),
        (b"wait in finish", ["setup", "handle", "finish"]),
    ],
)
async def test_the_steps_of_a_class_that_is_cancelled(
    steps: type[Steps], packet: bytes, seen: list[str]
) -> None:
    async with serving(steps) as server, Peer(server) as peer:
        peer.send(packet)
        await wait_until(lambda: server.statistics().running == 1)
    assert steps.seen == seen
    assert server.statistics().cancelled == 1


async def test_each_packet_has_an_instance() -> None:
    made: list[DatagramHandler] = []

    class Noting(DatagramHandler):
        async def handle(self) -> None:
            made.append(self)

    async with serving(Noting) as server, Peer(server) as peer:
        peer.send(b"a", b"b", b"a")
        await ended(server, 3)
    assert len({id(each) for each in made}) == 3
    assert [each.datagram.data for each in made] == [b"a", b"b", b"a"]


async def test_a_handle_that_is_missing_at_run_time() -> None:
    handler = NoHandle(None)  # type: ignore[arg-type]
    with pytest.raises(NotImplementedError, match=r"NoHandle has no handle\(\)"):
        await handler.handle()
