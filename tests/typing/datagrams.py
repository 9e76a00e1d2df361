"""What a type checker has to say of handlers of packets and of peers; see `handlers.py`."""

# pyright: strict, reportUnnecessaryTypeIgnoreComment=true

from typing import assert_type

from asyncserver import (
    AnyDatagramHandler,
    Datagram,
    DatagramEndpoint,
    DatagramHandler,
    DatagramServer,
    DatagramStatistics,
    Endpoint,
    Handler,
    LengthPrefix,
    Lines,
    Responder,
    Session,
    SessionEnd,
    SessionHandler,
    Stream,
    run_datagrams,
    run_server,
    sessions,
)


async def function(datagram: Datagram) -> None:
    assert_type(datagram.data, bytes)
    assert_type(datagram.peer, Endpoint)
    assert_type(datagram.received_at, float | None)
    assert_type(await datagram.reply(b""), None)
    await datagram.reply("text")  # type: ignore[arg-type]


class Class(DatagramHandler):
    async def handle(self) -> None:
        assert_type(self.datagram, Datagram)


@sessions
async def talk(session: Session) -> None:
    async for datagram in session:
        assert_type(datagram, Datagram)
    assert_type(session.close_reason, SessionEnd | None)


assert_type(talk, SessionHandler)

accepted: list[AnyDatagramHandler] = [function, Class, talk]


async def of_stream(stream: Stream) -> None: ...


def not_async(datagram: Datagram) -> None: ...


of_stream_refused: AnyDatagramHandler = of_stream  # type: ignore[assignment]
not_async_refused: AnyDatagramHandler = not_async  # type: ignore[assignment]
of_datagram_refused: Handler = function  # type: ignore[assignment]
sessions(function)  # type: ignore[arg-type]


def reply(request: bytes) -> bytes | None:
    return None


async def reply_later(request: bytes) -> bytes:
    return request


def reply_text(request: bytes) -> str:
    return ""


both = Responder(reply, framing=LengthPrefix(2))
on_streams: Handler = both
in_packets: AnyDatagramHandler = both
Responder(reply_later, framing=Lines())
Responder(reply_text, framing=Lines())  # type: ignore[arg-type]
Responder(reply, framing=Lines)  # type: ignore[arg-type]


async def of_servers() -> None:
    async with DatagramServer(function, "udp://:0") as server:
        assert_type(server, DatagramServer)
        assert_type(server.statistics(), DatagramStatistics)
        assert_type(server.endpoints, tuple[DatagramEndpoint, ...])


def everything() -> None:
    run_datagrams(talk, "udp://:9999")
    run_datagrams(of_stream, "udp://:9999")  # type: ignore[arg-type]
    run_server(DatagramServer(function, "udp://:0"), DatagramServer(Class, "udp://:0"))
