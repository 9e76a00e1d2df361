"""``serving`` and ``serving_datagrams``: where, for how long, and what becomes of handlers that raise."""

from __future__ import annotations

import asyncio
import os
import ssl
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import Any

import anyio
import pytest

from asyncserver import (
    AnyDatagramHandler,
    BindError,
    Datagram,
    Limits,
    OptionError,
    Server,
    Session,
    Stream,
    TCPAddress,
    Timeouts,
    UnixAddress,
    UnixDatagramAddress,
    sessions,
)
from asyncserver.testing import (
    Client,
    DatagramClient,
    HandlerErrors,
    TLSClient,
    Transport,
    leak_check,
    servers,
    serving,
    serving_datagrams,
    task_leak_check,
)
from tests.certificates import authority
from tests.clients import echo
from tests.conftest import LOOP_FACTORIES
from tests.datagrams import echo_datagram
from tests.waiting import MS, wait_until, within


class AnyBugError(Exception):
    """What a handler raises here."""


async def fail(stream: Stream) -> None:
    await stream.receive()
    raise AnyBugError("in the handler")


async def fail_datagram(datagram: Datagram) -> None:
    await datagram.reply(b"x")
    raise AnyBugError(datagram.data)


async def is_there(path: str) -> bool:
    return await asyncio.to_thread(os.path.exists, path)


@pytest.mark.parametrize("transport", ["tcp", "unix", "tls", "tls+unix"])
async def test_every_transport(transport: Any) -> None:
    kind = TLSClient if "tls" in transport else Client
    async with serving(echo, transport=transport) as server, await kind.connect(server) as client:
        assert server.ready
        assert len(server.addresses) == 1
        assert await client.ask(b"hello") == b"hello"
        client.half_close()
        assert await client.ended() == "eof"
    assert not server.addresses


@pytest.mark.parametrize("transport", ["udp", "unix"])
async def test_every_transport_of_datagrams(transport: Any) -> None:
    async with serving_datagrams(echo_datagram, transport=transport) as server:
        async with await DatagramClient.connect(server) as client:
            for packet in (b"hello", b"", bytes(2_000)):
                assert await client.ask(packet) == packet
    assert server.statistics().handled == 3


async def test_what_is_made_for_a_path_is_removed() -> None:
    async with (
        serving(echo, transport="unix") as server,
        serving_datagrams(echo_datagram, transport="unix") as other,
    ):
        assert isinstance(server.addresses[0], UnixAddress)
        assert isinstance(other.addresses[0], UnixDatagramAddress)
        directories = [os.path.dirname(each.addresses[0].path) for each in (server, other)]  # type: ignore[union-attr]
        assert all([await is_there(directory) for directory in directories])
    assert not any([await is_there(directory) for directory in directories])


async def test_addresses_of_ones_own(tmp_path: Any) -> None:
    addresses = TCPAddress("127.0.0.1", 0), "tls+tcp://127.0.0.1:0"
    async with serving(echo, *addresses) as server:
        async with await Client.connect(server) as plain, await TLSClient.connect(server, index=1) as tls:
            assert await plain.ask(b"hello") == await tls.ask(b"hello") == b"hello"


@pytest.fixture
def own_tls() -> tuple[ssl.SSLContext, ssl.SSLContext]:
    return authority("of one's own").server_context(), authority("of one's own").client_context()


async def test_options_are_those_of_the_server(own_tls: tuple[ssl.SSLContext, ssl.SSLContext]) -> None:
    opened: list[object] = []

    @asynccontextmanager
    async def lifespan(server: Server) -> AsyncIterator[None]:
        opened.append(server)
        yield
        opened.append("closed")

    context, trusting = own_tls
    limits = Limits(max_connections=7)
    async with serving(echo, transport="tls", tls=context, limits=limits, lifespan=lifespan) as server:
        assert server.limits is limits
        assert opened == [server]
        async with await TLSClient.connect(server, trusting) as client:
            assert await client.ask(b"hello") == b"hello"
        with pytest.raises(ssl.SSLError):
            await TLSClient.connect(server)
    assert opened == [server, "closed"]


async def test_a_transport_that_does_not_exist() -> None:
    with pytest.raises(OptionError, match="transport='sctp': has to be one of 'tcp', 'tls', 'unix'"):
        async with serving(echo, transport="sctp"):  # type: ignore[arg-type]
            pass
    with pytest.raises(OptionError, match="transport='tcp'"):
        async with serving_datagrams(echo_datagram, transport="tcp"):  # type: ignore[arg-type]
            pass


async def test_a_start_that_fails_leaves_nothing() -> None:
    async with leak_check(), task_leak_check():
        async with serving(echo) as server:
            with pytest.raises(BindError):
                async with serving(echo, server.addresses[0]):
                    pytest.fail("two servers on one port")


# What handlers raise.


async def test_what_a_handler_raises_is_raised_at_the_end() -> None:
    went_on = False
    with pytest.raises(HandlerErrors) as caught:
        async with serving(fail) as server:
            for _ in range(2):
                async with await Client.connect(server) as client:
                    await client.send(b"x")
                    assert await client.ended() == "eof"
            went_on = True
    assert went_on
    assert [type(error) for error in caught.value.exceptions] == [AnyBugError] * 2
    assert "raised by the handler of <Connection 1" in caught.value.exceptions[0].__notes__[0]
    assert isinstance(caught.value.subgroup(AnyBugError), HandlerErrors)


async def test_what_a_datagram_handler_raises_is_raised_at_the_end() -> None:
    with pytest.raises(HandlerErrors) as caught:
        async with serving_datagrams(fail_datagram) as server:
            async with await DatagramClient.connect(server) as client:
                await client.ask(b"x")
    assert caught.value.exceptions[0].args == (b"x",)


@pytest.mark.parametrize("closed", [True, False])
@pytest.mark.parametrize("transport", ["unix", "tls+unix"])
async def test_what_was_sent_last_is_served(transport: Transport, closed: bool) -> None:
    """On Unix sockets, which have given it to the other side when send() returns."""
    connect = TLSClient.connect if transport == "tls+unix" else Client.connect
    kept: list[Client | TLSClient] = []
    with pytest.raises(HandlerErrors) as caught:
        async with serving(fail, transport=transport) as server:
            for _ in range(5):
                kept.append(await connect(server))
                await kept[-1].send(b"x")
                if closed:
                    kept[-1].close()
    for client in kept:
        client.close()
    assert len(caught.value.exceptions) == 5


async def fail_later(datagram: Datagram) -> None:
    await asyncio.sleep(0)
    raise AnyBugError(datagram.data)


@sessions
async def fail_session(session: Session) -> None:
    async for datagram in session:
        raise AnyBugError(datagram.data)


@pytest.mark.parametrize("handler", [fail_later, fail_session])
async def test_packets_that_were_sent_last_are_served(handler: AnyDatagramHandler) -> None:
    with pytest.raises(HandlerErrors) as caught:
        async with serving_datagrams(handler, transport="unix") as server:
            for _ in range(5):
                async with await DatagramClient.connect(server) as client:
                    await client.send(b"x")
    assert len(caught.value.exceptions) == 5


async def test_who_sends_for_ever_does_not_keep_the_server() -> None:
    async def flood(client: Client) -> None:
        while True:
            await client.send(b"x")
            await asyncio.sleep(0)  # Else it would send until the kernel's buffer is full, in each turn.

    async with AsyncExitStack() as exits:
        async with serving(echo, transport="unix", timeouts=Timeouts(grace=0.1)) as server:
            client = await exits.enter_async_context(await Client.connect(server))
            flooding = asyncio.create_task(flood(client))
            await wait_until(lambda: server.statistics().bytes_received)
        with suppress(OSError):
            await within(flooding)


async def test_the_error_of_the_block_is_what_counts() -> None:
    with pytest.raises(AssertionError, match="asked in vain") as caught:
        async with serving(fail) as server, await Client.connect(server) as client:
            assert await client.ask(b"x") == b"x", "asked in vain"
    (note,) = caught.value.__notes__
    assert note.startswith("A handler had raised:\nTraceback")
    assert "AnyBugError: in the handler" in note


@pytest.mark.parametrize("own_hook", [True, False])
async def test_unless_it_is_not_wanted(own_hook: bool) -> None:
    seen: list[Exception] = []
    options: dict[str, Any] = {"raise_handler_errors": False}
    if own_hook:
        options = {"on_error": lambda connection, error: seen.append(error)}
    async with serving(fail, **options) as server, await Client.connect(server) as client:
        await client.send(b"x")
        assert await client.ended() == "eof"
    assert [type(error) for error in seen] == [AnyBugError] * own_hook


async def test_what_peers_do_is_no_error() -> None:
    async def handler(stream: Stream) -> None:
        await stream.receive_exactly(1_000)

    async with serving(handler) as server:
        async with await Client.connect(server) as client:
            await client.send(b"x")
        (await Client.connect(server)).reset()
        await wait_until(lambda: server.statistics().accepted == 2 and not server.connections)


async def test_handlers_that_are_under_way_are_cancelled() -> None:
    ended: list[str] = []

    async def handler(stream: Stream) -> None:
        try:
            await asyncio.sleep(3_600)
        except asyncio.CancelledError:
            ended.append("cancelled")
            raise

    async with serving(handler) as server, await Client.connect(server) as client:
        await wait_until(lambda: server.connections)
        del client
    assert ended == ["cancelled"]


# Its end.


async def test_an_end_that_takes_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(servers, "TIMEOUT", 20 * MS)

    @asynccontextmanager
    async def lifespan(server: Server) -> AsyncIterator[None]:
        yield
        await asyncio.sleep(3_600)

    with pytest.raises(TimeoutError, match=rf"waited {40 * MS:g} s for <Server tcp://.*> to close"):
        await within(enter_and_leave(serving(echo, lifespan=lifespan, timeouts=Timeouts(grace=20 * MS))))


async def enter_and_leave(manager: Any) -> None:
    async with manager:
        pass


# With whatever runs the loop.


async def everything() -> None:
    async with serving(echo) as server, serving_datagrams(echo_datagram) as other:
        async with await Client.connect(server) as client, await DatagramClient.connect(other) as peer:
            assert await client.ask(b"hello") == await peer.ask(b"hello") == b"hello"


def test_in_any_loop(loop_name: str) -> None:
    with leak_check():
        with asyncio.Runner(loop_factory=LOOP_FACTORIES[loop_name]) as runner:
            runner.run(everything())
        anyio.run(everything, backend_options={"use_uvloop": loop_name == "uvloop"})
