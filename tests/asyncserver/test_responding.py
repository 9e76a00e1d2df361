from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pytest
from anyio import DelimiterNotFound, IncompleteRead

from asyncserver import (
    CloseReason,
    Connection,
    DatagramLimits,
    DatagramServer,
    Framing,
    FramingError,
    LengthPrefix,
    Lines,
    OctetCounted,
    OptionError,
    PacketTooLargeError,
    Responder,
    Server,
    Stream,
    SyslogFrames,
    UDPAddress,
    UnixDatagramAddress,
    current_connection,
)
from tests.clients import Client, TLSClient, complaints, local_server
from tests.streams import CLIENT_CONTEXT, KINDS, SERVER_CONTEXT, connected, driven, turns
from tests.waiting import MS, stays, wait_until, within

FRAMINGS = [
    LengthPrefix(),
    LengthPrefix(4, "little"),
    LengthPrefix(8),
    Lines(),
    Lines(b"\r\n"),
    Lines(b"\0"),
    OctetCounted(),
    SyslogFrames(),
]

EMPTY_MESSAGES = [framing for framing in FRAMINGS if isinstance(framing, LengthPrefix | Lines)]

MESSAGES = [b"a", b"hello", b"12 <34> \r", b"x" * 300, b"1", b"<34>1 - - -", b"\xff" * 70_000]
"""None contains a delimiter or is too long for a prefix; not every framing can carry all of them."""


def carries(framing: Framing, message: bytes) -> bool:
    try:
        framing.frame(message)
    except ValueError:
        return False
    return True


def messages_for(framing: Framing) -> list[bytes]:
    found = [message for message in MESSAGES if carries(framing, message)]
    return [*found[:2], b"", *found[2:]] if framing in EMPTY_MESSAGES else found


def upper(request: bytes) -> bytes:
    return request.upper()


async def upper_later(request: bytes) -> bytes:
    await asyncio.sleep(0)
    return request.upper()


# Framings.


@pytest.mark.parametrize(
    ("framing", "message", "framed"),
    [
        (LengthPrefix(), b"hello", b"\0\5hello"),
        (LengthPrefix(), b"", b"\0\0"),
        (LengthPrefix(1), b"x" * 255, b"\xff" + b"x" * 255),
        (LengthPrefix(4, "little"), b"hello", b"\5\0\0\0hello"),
        (Lines(), b"hello", b"hello\n"),
        (Lines(b"\r\n"), b"he\rl\nlo", b"he\rl\nlo\r\n"),
        (OctetCounted(), b"<1>hello\n", b"9 <1>hello\n"),
        (SyslogFrames(), b"<1>hello\n", b"9 <1>hello\n"),
    ],
)
def test_framed(framing: Framing, message: bytes, framed: bytes) -> None:
    assert framing.frame(message) == framed


@pytest.mark.parametrize(
    ("framing", "message", "reason"),
    [
        (
            LengthPrefix(),
            b"x" * 65_536,
            "a message of 65536 bytes, where the length prefix of 2 bytes allows 65535 at most",
        ),
        (
            LengthPrefix(1),
            b"x" * 256,
            "a message of 256 bytes, where the length prefix of 1 bytes allows 255 at most",
        ),
        (Lines(), b"two\nlines", r"a message that contains the delimiter b'\\n': b'two\\nlines'"),
        (OctetCounted(), b"", "an empty message, which cannot be octet-counted"),
        (SyslogFrames(), b"", "an empty message, which cannot be octet-counted"),
    ],
)
def test_what_cannot_be_framed(framing: Framing, message: bytes, reason: str) -> None:
    with pytest.raises(ValueError, match=f"^{reason}$"):
        framing.frame(message)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: LengthPrefix(0), "size=0: has to be at least 1 bytes"),
        (lambda: LengthPrefix(9), "size=9: has to be at most 8 bytes"),
        (lambda: LengthPrefix("2"), "size='2': has to be a whole number of bytes"),
        (lambda: LengthPrefix(2, "middle"), 'byteorder=\'middle\': has to be "big" or "little"'),
        (lambda: Lines(b""), "delimiter=b'': has to be bytes, at least one"),
        (lambda: Lines("\n"), "delimiter='\\n': has to be bytes, at least one"),
        (lambda: Responder(None, framing=Lines()), "respond=None: has to be a function that takes a request"),
        (lambda: Responder(upper, framing=None), "framing=None: has to be a framing, for example Lines()"),
        (
            lambda: Responder(upper, framing=Lines(), max_request=0),
            "max_request=0: has to be at least 1 bytes",
        ),
    ],
)
def test_options_are_checked(make: Callable[[], Any], reason: str) -> None:
    with pytest.raises(OptionError) as error:
        make()
    assert str(error.value) == reason


def test_a_class_is_no_framing() -> None:
    with pytest.raises(OptionError, match=r"has to be a framing, for example Lines\(\)$"):
        Responder(upper, framing=Lines)  # type: ignore[arg-type]


async def read_all(framing: Framing, stream: Stream, max_bytes: int = 100_000) -> list[bytes]:
    found = []
    while (message := await framing.read(stream, max_bytes)) is not None:
        found.append(message)
    return found


@pytest.mark.parametrize("is_driven", [True, False])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("framing", FRAMINGS, ids=repr)
async def test_messages_sent_at_once(framing: Framing, kind: str, is_driven: bool) -> None:
    messages = messages_for(framing)
    async with connected(kind) as (stream, peer):

        async def send() -> None:
            await peer.send(b"".join(map(framing.frame, messages)))
            await peer.send_eof()

        sending = asyncio.create_task(send())
        reading = (
            driven(stream, lambda stream: read_all(framing, stream))
            if is_driven
            else read_all(framing, stream)
        )
        assert await within(reading) == messages
        assert await within(framing.read(stream, 1)) is None
        await sending


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("framing", FRAMINGS, ids=repr)
async def test_messages_byte_by_byte(framing: Framing, kind: str) -> None:
    messages = [message for message in messages_for(framing) if len(message) < 100]
    async with connected(kind) as (stream, peer):

        async def send() -> None:
            for byte in b"".join(map(framing.frame, messages)):
                await peer.send(bytes([byte]))
                await turns(2)
            await peer.send_eof()

        sending = asyncio.create_task(send())
        assert await within(driven(stream, lambda stream: read_all(framing, stream))) == messages
        await sending


@pytest.mark.parametrize("framing", FRAMINGS, ids=repr)
async def test_a_peer_that_ends_within_a_frame(framing: Framing) -> None:
    whole, frame = framing.frame(b"whole"), framing.frame(b"<1>hello")
    for cut in range(1, len(frame)):
        async with connected("unix") as (stream, peer):
            await peer.send(whole + frame[:cut])
            await peer.send_eof()
            assert await within(framing.read(stream, 100)) == b"whole"
            with pytest.raises(IncompleteRead):
                await within(framing.read(stream, 100))


@pytest.mark.parametrize("framing", FRAMINGS, ids=repr)
@pytest.mark.parametrize("length", [1, 9, 10, 99, 100])
async def test_the_longest_message(framing: Framing, length: int) -> None:
    async with connected("unix") as (stream, peer):
        await peer.send(framing.frame(b"<" * length))
        assert await within(framing.read(stream, length)) == b"<" * length
        await peer.send(framing.frame(b"<" * (length + 1)))
        with pytest.raises((FramingError, DelimiterNotFound)):
            await within(framing.read(stream, length))


@pytest.mark.parametrize("framing", FRAMINGS, ids=repr)
async def test_a_message_without_end_is_not_waited_for(framing: Framing) -> None:
    """The peer is still sending, and may go on for ever."""
    async with connected("unix") as (stream, peer):
        await peer.send(b"<" * 200)
        with pytest.raises((FramingError, DelimiterNotFound)):
            await within(framing.read(stream, 100))


@pytest.mark.parametrize(
    "text", [b" hello", b"0 ", b"05 hello", b"-1 hello", b"+5 hello", b"5x hello", b"1_0 x"]
)
async def test_malformed_counts(text: bytes) -> None:
    async with connected("unix") as (stream, peer):
        await peer.send(text + b"\n")
        with pytest.raises(FramingError, match="where the length of a frame should be"):
            await within(OctetCounted().read(stream, 1_000))


async def test_length_that_is_too_long_says_so() -> None:
    for framing, text in (LengthPrefix(), b"\1\0"), (OctetCounted(), b"256 "), (SyslogFrames(), b"256 "):
        async with connected("unix") as (stream, peer):
            await peer.send(text)
            with pytest.raises(FramingError, match=r"^a frame of 256 bytes, where at most 255 are taken$"):
                await within(framing.read(stream, 255))  # type: ignore[attr-defined]


async def test_both_kinds_of_syslog_frames_on_one_stream() -> None:
    async with connected() as (stream, peer):
        await peer.send(b"<1>one\n8 <2>two\n\n\n9 <3>three\nnot syslog\n")
        await peer.send_eof()
        expected = [b"<1>one", b"<2>two\n\n", b"", b"<3>three\n", b"not syslog"]
        assert await within(driven(stream, lambda stream: read_all(SyslogFrames(), stream))) == expected


# On streams.


@asynccontextmanager
async def responding(respond: Any, framing: Framing = Lines(), **options: Any) -> AsyncIterator[Server]:  # noqa: B008
    async with local_server(Responder(respond, framing=framing, **options)) as server:
        yield server


@pytest.mark.parametrize("respond", [upper, upper_later])
@pytest.mark.parametrize("framing", FRAMINGS, ids=repr)
async def test_pipelined_requests_are_answered_in_order(framing: Framing, respond: Any) -> None:
    requests = [b"<%d>%b" % (number, b"x" * (number % 50)) for number in range(1_000)]
    async with responding(respond, framing) as server, await Client.connect(server) as client:
        sending = asyncio.create_task(client.send(b"".join(map(framing.frame, requests))))
        sending.add_done_callback(lambda _: client.half_close())
        expected = b"".join(framing.frame(request.upper()) for request in requests)
        assert await client.receive_all() == expected
        await sending


async def test_slow_replies_do_not_overtake() -> None:
    started: list[bytes] = []
    may_go_on = asyncio.Event()

    async def respond(request: bytes) -> bytes:
        started.append(request)
        if request == b"slow":
            await may_go_on.wait()
        return request

    async with responding(respond) as server, await Client.connect(server) as client:
        await client.send(b"slow\nfast\n")
        await wait_until(lambda: started)
        await stays(lambda: started == [b"slow"])
        may_go_on.set()
        assert await client.receive_exactly(10) == b"slow\nfast\n"


async def test_connections_do_not_wait_for_each_other() -> None:
    may_go_on = asyncio.Event()

    async def respond(request: bytes) -> bytes:
        if request == b"slow":
            await may_go_on.wait()
        return request

    async with responding(respond) as server, await Client.connect(server) as slow:
        await slow.send(b"slow\n")
        async with await Client.connect(server) as fast:
            assert await fast.ask(b"fast\n") == b"fast\n"
        may_go_on.set()
        assert await slow.receive() == b"slow\n"


async def test_replies_of_one_turn_leave_together() -> None:
    sizes: list[int] = []
    async with responding(lambda request: request) as server, await Client.connect(server) as client:
        await client.send(b"hello\n" * 20)
        while sum(sizes) < 120:
            sizes.append(len(await client.receive()))
    assert sizes == [120]


async def test_a_long_pipeline_leaves_the_others_their_turn() -> None:
    """The plain function never waits, and neither may the others."""
    answered = 0
    turns_between: list[int] = []

    def respond(request: bytes) -> None:
        nonlocal answered
        answered += 1

    async with responding(respond) as server, await Client.connect(server) as client:
        sending = asyncio.create_task(client.send(b"\n" * 200_000))
        while answered < 200_000:
            before = answered
            await asyncio.sleep(0)
            turns_between.append(answered - before)
        await sending
    assert max(turns_between) < 5_000


async def test_no_reply() -> None:
    def respond(request: bytes) -> bytes | None:
        return None if request == b"quiet" else request

    async with responding(respond) as server, await Client.connect(server) as client:
        await client.send(b"quiet\nhello\nquiet\n")
        client.half_close()
        assert await client.receive_all() == b"hello\n"


def noting(respond: Any, connections: list[Connection]) -> Any:
    def noted(request: bytes) -> Any:
        if current_connection() not in connections:
            connections.append(current_connection())
        return respond(request)

    return noted


@asynccontextmanager
async def one_client(
    respond: Any,
    framing: Framing = Lines(),  # noqa: B008
    **options: Any,
) -> AsyncIterator[tuple[Client, Callable[[], Any]]]:
    """A client that has been answered once, and a function that waits for the reason of its end."""
    connections: list[Connection] = []
    async with responding(noting(respond, connections), framing, **options) as server:
        async with await Client.connect(server) as client:
            assert await client.ask(framing.frame(b"ok")) == framing.frame(b"ok")

            async def reason() -> CloseReason | None:
                client.close()
                await wait_until(lambda: not server.connections)
                return connections[0].close_reason

            yield client, reason


@pytest.mark.parametrize("framing", FRAMINGS, ids=repr)
async def test_a_peer_that_has_said_all(framing: Framing, caplog: pytest.LogCaptureFixture) -> None:
    async with one_client(lambda request: request, framing) as (client, reason):
        client.half_close()
        assert await client.ended() == "eof"
        assert await reason() is CloseReason.EOF
    assert not complaints(caplog)


@pytest.mark.parametrize("framing", FRAMINGS, ids=repr)
async def test_half_a_request_is_not_answered(framing: Framing, caplog: pytest.LogCaptureFixture) -> None:
    async with one_client(lambda request: request, framing) as (client, reason):
        await client.send(framing.frame(b"ok") + framing.frame(b"never")[:-1])
        client.half_close()
        assert await client.receive_all() == framing.frame(b"ok")
        assert await reason() is CloseReason.EOF
    assert not complaints(caplog)


@pytest.mark.parametrize(
    ("framing", "text"),
    [
        (LengthPrefix(), b"\0\x0b" + b"x" * 11),
        (Lines(), b"x" * 11 + b"\n"),
        (Lines(), b"x" * 100),
        (OctetCounted(), b"11 " + b"x" * 11),
        (OctetCounted(), b"hello"),
        (OctetCounted(), b"1000000000000000000000000000000000"),
        (SyslogFrames(), b"11 " + b"x" * 11),
        (SyslogFrames(), b"<1>" + b"x" * 8 + b"\n"),
    ],
)
async def test_what_is_no_frame_is_the_peers_fault(
    framing: Framing, text: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    async with one_client(lambda request: request, framing, max_request=10) as (client, reason):
        await client.send(framing.frame(b"last") + text)
        assert await client.receive_all() == framing.frame(b"last")
        assert await reason() is CloseReason.PROTOCOL_ERROR
    assert not complaints(caplog)


async def test_a_peer_that_resets(caplog: pytest.LogCaptureFixture) -> None:
    async with one_client(lambda request: request) as (client, reason):
        client.reset()
        assert await reason() is CloseReason.RESET
    assert not complaints(caplog)


@pytest.mark.parametrize(
    ("fail", "message"),
    [
        (lambda request: 1 // 0, "ZeroDivisionError"),
        (lambda request: "text", "has returned str, not bytes or None"),
        (lambda request: bytearray(b"ok"), "has returned bytearray, not bytes or None"),
        (lambda request: b"two\nlines", "contains the delimiter"),
    ],
)
async def test_what_respond_does_wrong_is_the_handlers_failure(
    fail: Any, message: str, caplog: pytest.LogCaptureFixture
) -> None:
    def respond(request: bytes) -> Any:
        return request if request == b"ok" else fail(request)

    async with one_client(respond) as (client, reason):
        await client.send(b"ok\nfail\nok\n")
        assert await client.receive_all() == b"ok\n"
        assert await reason() is CloseReason.HANDLER_ERROR
    assert len(complaints(caplog)) == 1
    assert message in caplog.text


async def test_an_async_function_that_raises(caplog: pytest.LogCaptureFixture) -> None:
    async def respond(request: bytes) -> bytes:
        await asyncio.sleep(0)
        if request != b"ok":
            raise ZeroDivisionError
        return request

    async with one_client(respond) as (client, reason):
        await client.send(b"fail\n")
        assert await client.receive_all() == b""
        assert await reason() is CloseReason.HANDLER_ERROR
    assert len(complaints(caplog)) == 1


async def test_what_is_called_like_a_function_responds() -> None:
    class Service:
        def __init__(self) -> None:
            self.count = 0

        async def __call__(self, request: bytes) -> bytes:
            self.count += 1
            return b"%d" % self.count

        def method(self, request: bytes) -> bytes:
            return b"method"

    service = Service()
    for respond, replies in (service, b"1\n2\n"), (service.method, b"method\nmethod\n"):
        async with responding(respond) as server, await Client.connect(server) as client:
            await client.send(b"\n\n")
            assert await client.receive_exactly(len(replies)) == replies


async def test_drain_ends_idle_connections_and_waits_for_a_reply() -> None:
    may_go_on = asyncio.Event()

    async def respond(request: bytes) -> bytes:
        await may_go_on.wait()
        return request

    async with responding(respond) as server, await Client.connect(server) as idle:
        async with await Client.connect(server) as busy:
            await busy.send(b"hello\n")
            await wait_until(lambda: any(each.bytes_received for each in server.connections))
            draining = asyncio.create_task(server.drain(None))
            assert await idle.ended() == "eof"
            idle.close()
            may_go_on.set()
            assert await busy.receive_all() == b"hello\n"
            busy.close()
            assert (await within(draining)).clean


@pytest.mark.parametrize("framing", FRAMINGS, ids=repr)
async def test_drain_waits_for_the_rest_of_a_request(framing: Framing) -> None:
    frame = framing.frame(b"<1>hello")
    begun = max(frame.index(b"<1>"), 1)  # a length alone, or else a byte
    async with responding(lambda request: request, framing) as server:
        async with await Client.connect(server) as client:
            await client.send(frame[:begun])
            await wait_until(lambda: any(each.bytes_received for each in server.connections))
            draining = asyncio.create_task(server.drain(None))
            await stays(lambda: not draining.done(), during=600 * MS)
            await client.send(frame[begun:])
            assert await client.receive_all() == frame
            client.close()
            assert (await within(draining)).clean


# On datagrams.


@contextmanager
def packet_client(server: DatagramServer, index: int = 0) -> Iterator[socket.socket]:
    """A socket whose packets go to the server, with a name of its own for the replies."""
    address = server.addresses[index]
    family = socket.AF_INET if isinstance(address, UDPAddress) else socket.AF_UNIX
    with socket.socket(family, socket.SOCK_DGRAM) as client:
        client.setblocking(False)
        if isinstance(address, UnixDatagramAddress):
            client.bind("")  # A name that the kernel chooses.
            client.connect(address.path)
        else:
            client.connect((address.host, address.port))
        yield client


async def reply_to(client: socket.socket) -> bytes:
    return await within(asyncio.get_running_loop().sock_recv(client, 70_000), what="a reply")


@asynccontextmanager
async def responding_to_packets(
    respond: Any, *addresses: str, **options: Any
) -> AsyncIterator[DatagramServer]:
    responder = Responder(respond, framing=Lines(), **options)
    async with DatagramServer(responder, *(addresses or ("udp://127.0.0.1:0",))) as server:
        yield server


@pytest.mark.parametrize("respond", [upper, upper_later])
async def test_a_packet_is_a_request_and_has_one_reply(respond: Any) -> None:
    async with responding_to_packets(respond) as server:
        with packet_client(server) as client:
            for request in b"hello", b"", b"two\nlines\n", b"x" * 65_000:
                client.send(request)
                assert await reply_to(client) == request.upper()


async def test_packets_without_reply() -> None:
    def respond(request: bytes) -> bytes | None:
        return None if request == b"quiet" else request

    async with responding_to_packets(respond) as server:
        with packet_client(server) as client:
            for request in b"quiet", b"hello":
                client.send(request)
            assert await reply_to(client) == b"hello"


async def test_packets_that_are_too_long_are_dropped(caplog: pytest.LogCaptureFixture) -> None:
    async with responding_to_packets(upper, max_request=10) as server:
        with packet_client(server) as client:
            for request in b"x" * 11, b"y" * 10:
                client.send(request)
            assert await reply_to(client) == b"Y" * 10
    assert not complaints(caplog)


async def test_packets_that_were_cut_off_are_dropped(caplog: pytest.LogCaptureFixture) -> None:
    limits = DatagramLimits(max_packet_size=10)
    async with DatagramServer(
        Responder(upper, framing=Lines()), "udp://127.0.0.1:0", limits=limits
    ) as server:
        with packet_client(server) as client:
            for request in b"x" * 11, b"y" * 10:
                client.send(request)
            assert await reply_to(client) == b"Y" * 10
        assert server.statistics().truncated == 1
    assert not complaints(caplog)


@pytest.mark.parametrize(
    ("fail", "error"),
    [
        (lambda request: 1 // 0, ZeroDivisionError),
        (lambda request: "text", TypeError),
        (lambda request: b"x" * 70_000, PacketTooLargeError),
    ],
)
async def test_what_respond_does_wrong_is_the_failure_of_one_packet(
    fail: Any, error: type[Exception], caplog: pytest.LogCaptureFixture
) -> None:
    errors: list[type[BaseException]] = []

    def respond(request: bytes) -> Any:
        return request if request == b"ok" else fail(request)

    responder = Responder(respond, framing=Lines())
    async with DatagramServer(
        responder, "udp://127.0.0.1:0", on_error=lambda _, exc: errors.append(type(exc))
    ) as server:
        with packet_client(server) as client:
            for request in b"fail", b"ok":
                client.send(request)
            assert await reply_to(client) == b"ok"
        assert errors == [error]
        assert server.statistics().failed == 1
    assert len(complaints(caplog)) == 1


# The same function everywhere.


async def test_one_responder_over_everything(tmp_path: Path) -> None:
    calls: list[bytes] = []

    def respond(request: bytes) -> bytes:
        calls.append(request)
        return request.upper()

    responder = Responder(respond, framing=LengthPrefix())
    streams = ("tcp://127.0.0.1:0", f"unix:{tmp_path}/stream.sock", "tls+tcp://127.0.0.1:0")
    packets = ("udp://127.0.0.1:0", f"unixgram:{tmp_path}/packets.sock")
    request, reply = b"\0\5hello", b"\0\5HELLO"
    async with local_server(responder, *streams, tls=SERVER_CONTEXT) as server:
        async with DatagramServer(responder, *packets) as packet_server:
            for index in range(2):
                async with await Client.connect(server, index=index) as client:
                    assert await client.ask(request) == reply
                with packet_client(packet_server, index) as packet:
                    packet.send(b"hello")
                    assert await reply_to(packet) == b"HELLO"
            async with await TLSClient.connect(server, CLIENT_CONTEXT, index=2) as secure:
                assert await secure.ask(request) == reply
    assert calls == [b"hello"] * 5
