"""A stream's socket in other hands: lent to a thread, given away; and a stream made of a TLS socket."""

from __future__ import annotations

import asyncio
import io
import logging
import os
import random
import select
import socket
import ssl
import threading
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import pytest
from anyio import BrokenResourceError, BusyResourceError, ClosedResourceError, EndOfStream
from anyio.abc import SocketAttribute
from anyio.streams.tls import TLSAttribute

from asyncserver import CloseReason, ServerStateError, Stream
from tests.clients import Client, echo, local_server
from tests.streams import (
    CLIENT_CONTEXT,
    SERVER_CONTEXT,
    SOCKET_KINDS,
    Peer,
    TLSPeer,
    connected,
    raised,
    socket_pair,
)
from tests.waiting import PATIENCE, SECOND, stays, wait_until, within

all_kinds = pytest.mark.parametrize("kind", SOCKET_KINDS)


async def lend(stream: Stream, use: Callable[[socket.socket], Any]) -> Any:
    """What ``use`` returns in a thread, given the stream's socket."""
    async with stream.blocking_socket() as sock:
        return await asyncio.to_thread(use, sock)


def is_pending(task: asyncio.Task[Any]) -> bool:
    return not task.done()


def echo_once(sock: socket.socket) -> None:
    sock.sendall(sock.recv(100))


def read_all(sock: socket.socket) -> bytes:
    data = bytearray()
    while chunk := sock.recv(65_536):
        data += chunk
    return bytes(data)


# Lending


@all_kinds
async def test_a_thread_and_the_stream_take_turns(kind: str) -> None:
    async with connected(kind) as (stream, peer):
        for _ in range(3):
            async with stream.blocking_socket() as sock:
                assert os.get_blocking(sock.fileno())
                assert sock.gettimeout() is None
                assert isinstance(sock, ssl.SSLSocket) == (kind == "tls")
                echoing = asyncio.create_task(asyncio.to_thread(echo_once, sock))
                await stays(partial(is_pending, echoing), what="waiting in recv()")
                await peer.send(b"to the thread")
                assert await within(peer.receive()) == b"to the thread"
                await within(echoing)
            assert not os.get_blocking(sock.fileno())
            assert sock.gettimeout() == 0.0
            await peer.send(b"to the stream")
            assert await within(stream.receive()) == b"to the stream"
            await stream.send(b"from the stream")
            assert await within(peer.receive()) == b"from the stream"


@all_kinds
async def test_much_in_both_directions(kind: str) -> None:
    """More than the buffers of the kernel hold: the thread waits for the peer, and the loop goes on."""
    data = random.Random(1).randbytes(500_000)

    def swap(sock: socket.socket) -> bytes:
        sock.sendall(data)
        return read_all(sock)

    async with connected(kind, buffer_sizes=20_000) as (stream, peer):
        swapping = asyncio.create_task(lend(stream, swap))
        await stays(lambda: not swapping.done(), what="waiting in sendall()")
        assert await within(peer.receive_exactly(len(data))) == data
        await within(peer.send(data))
        await peer.send_eof()
        assert await within(swapping) == data
        with pytest.raises(EndOfStream):
            await within(stream.receive())


@all_kinds
async def test_what_was_sent_before_leaves_before(kind: str) -> None:
    data = random.Random(2).randbytes(500_000)
    async with connected(kind, buffer_sizes=20_000) as (stream, peer):
        sending = asyncio.create_task(stream.send(data))
        await wait_until(lambda: stream.unsent)
        lending = asyncio.create_task(lend(stream, lambda sock: sock.sendall(b"!")))
        await stays(lambda: os.get_blocking(stream._raw_socket.fileno()) is False, what="not lent")
        assert await within(peer.receive_exactly(len(data) + 1)) == data + b"!"
        await within(asyncio.gather(sending, lending))


async def send_file(stream: Stream) -> None:
    assert await stream.send_file(io.BytesIO(bytes(20_000))) == 20_000


async def send_real_file(stream: Stream) -> None:
    with await asyncio.to_thread(open, __file__, "rb") as file:
        assert await stream.send_file(file, count=1_000) == 1_000


async def send_and_flush(stream: Stream) -> None:
    await stream.send(b"a little")
    await stream.flush()


SENDING: dict[str, tuple[Callable[[Stream], Awaitable[object]], int]] = {
    "send": (lambda stream: stream.send(bytes(20_000)), 20_000),
    "send_many": (lambda stream: stream.send_many([bytes(10_000), bytes(10_000)]), 20_000),
    "send_file": (send_file, 20_000),
    "send_real_file": (send_real_file, 1_000),
    "flush": (send_and_flush, 8),
    "send_eof": (lambda stream: stream.send_eof(), 0),
}


# sendfile() reads the file where it is called.
SENDFILE = pytest.param("send_real_file", marks=pytest.mark.allow_blocking("os.sendfile"))


@pytest.mark.parametrize("operation", [SENDFILE if each == "send_real_file" else each for each in SENDING])
@all_kinds
async def test_what_is_sent_meanwhile_waits_and_leaves_afterwards(kind: str, operation: str) -> None:
    send, size = SENDING[operation]
    async with connected(kind, send_limit=10_000) as (stream, peer):
        async with stream.blocking_socket() as sock:
            sending = asyncio.create_task(send(stream))
            await stays(lambda: not sending.done(), what=f"{operation}() waiting")
            await within(asyncio.to_thread(sock.sendall, b"from the thread"))
            assert await within(peer.receive()) == b"from the thread"
        received = asyncio.create_task(peer.receive_exactly(size) if size else peer.receive_all())
        await within(sending, what=operation)
        assert len(await within(received)) == size


@all_kinds
async def test_a_little_that_is_sent_meanwhile(kind: str) -> None:
    """It need not wait in the call, but in the stream."""
    async with connected(kind) as (stream, peer):
        async with stream.blocking_socket() as sock:
            await within(stream.send(b"the stream's, "))
            await within(stream.send(b"all of it"))
            await within(asyncio.to_thread(sock.sendall, b"the thread's, "))
            assert stream.unsent
        assert await within(peer.receive_exactly(37)) == b"the thread's, the stream's, all of it"
        assert not stream.unsent


async def test_a_file_that_is_being_sent_leaves_before() -> None:
    data = bytes(3_000_000)
    async with connected("tcp", buffer_sizes=20_000) as (stream, peer):
        sending = asyncio.create_task(stream.send_file(io.BytesIO(data)))
        await wait_until(lambda: stream.unsent)
        flushing = asyncio.create_task(stream.flush())
        lending = asyncio.create_task(lend(stream, lambda sock: sock.sendall(b"!")))
        received = await within(peer.receive_exactly(len(data) + 1))
        assert received.index(b"!") == len(data)
        await within(asyncio.gather(sending, flushing, lending))


RECEIVING: dict[str, Callable[[Stream], Awaitable[object]]] = {
    "receive": lambda stream: stream.receive(),
    "receive_exactly": lambda stream: stream.receive_exactly(1),
    "receive_until": lambda stream: stream.receive_until(b"\n", 10),
    "lines": lambda stream: anext(stream.lines()),
    "iteration": anext,
}


@all_kinds
async def test_while_it_is_lent_everybody_else_is_told(kind: str) -> None:
    async with connected(kind) as (stream, peer):
        await peer.send(b"!\n")
        async with stream.blocking_socket():
            others = RECEIVING | {
                "blocking_socket": lambda stream: lend(stream, echo_once),
                "start_tls": lambda stream: stream.start_tls(SERVER_CONTEXT),
            }
            for name, operation in others.items():
                assert isinstance(await raised(operation(stream)), BusyResourceError), name
            with pytest.raises(BusyResourceError):
                stream.detach()
        assert await within(stream.receive()) == b"!\n"


@all_kinds
async def test_it_is_not_lent_while_somebody_receives(kind: str) -> None:
    async with connected(kind) as (stream, peer):
        receiving = asyncio.create_task(stream.receive())
        await wait_until(lambda: stream.receiving)
        with pytest.raises(BusyResourceError):
            await lend(stream, echo_once)
        await peer.send(b"undisturbed")
        assert await within(receiving) == b"undisturbed"


async def test_somebody_begins_to_receive_while_it_waits() -> None:
    async with connected("tcp", buffer_sizes=20_000) as (stream, peer):
        sending = asyncio.create_task(stream.send(bytes(500_000)))
        await wait_until(lambda: stream.unsent)
        lending = asyncio.create_task(raised(lend(stream, echo_once)))
        await stays(lambda: not lending.done())
        receiving = asyncio.create_task(stream.receive())
        await wait_until(lambda: stream.receiving)
        await within(peer.receive_exactly(500_000))
        assert isinstance(await within(lending), BusyResourceError)
        await peer.send(b"undisturbed")
        assert await within(receiving) == b"undisturbed"
        await within(sending)


@pytest.mark.parametrize("ahead", [lambda s: s.receive_until(b"\n", 10), lambda s: anext(s.lines())])
@all_kinds
async def test_bytes_that_were_read_ahead(kind: str, ahead: Callable[[Stream], Awaitable[bytes]]) -> None:
    """The thread would never see them."""
    async with connected(kind) as (stream, peer):
        await peer.send(b"command\nmore")
        assert await within(ahead(stream)) == b"command"
        with pytest.raises(ServerStateError, match="4 bytes"):
            await lend(stream, echo_once)
        assert await within(stream.receive()) == b"more"
        await peer.send(b"for the thread")
        assert await within(lend(stream, lambda sock: sock.recv(100))) == b"for the thread"


async def test_bytes_that_a_cancelled_receive_has_kept() -> None:
    async with connected("tcp") as (stream, peer):
        receiving = asyncio.create_task(stream.receive_exactly(10))
        await peer.send(b"half")
        await wait_until(lambda: stream.bytes_received == 4)
        receiving.cancel()
        await raised(receiving)
        with pytest.raises(ServerStateError, match="4 bytes"):
            await lend(stream, echo_once)
        assert await stream.receive() == b"half"


@all_kinds
async def test_a_stream_that_cannot_send_is_not_lent(kind: str) -> None:
    async with connected(kind) as (stream, _):
        await stream.send_eof()
        assert isinstance(await raised(lend(stream, echo_once)), ClosedResourceError)
        await within(stream.flush())  # There is nothing more to be sent.
        stream.abort()
        for operation in lend(stream, echo_once), stream.flush():
            assert isinstance(await raised(operation), ClosedResourceError)


@pytest.mark.parametrize("kind", ["tcp", "tls"])
async def test_a_broken_stream_is_not_lent(kind: str) -> None:
    async with connected(kind) as (stream, peer):
        peer.reset()
        with pytest.raises(BrokenResourceError):
            await within(stream.receive())
        for operation in lend(stream, echo_once), stream.flush():
            assert isinstance(await raised(operation), BrokenResourceError)


def who_is_there(stream: Stream) -> tuple[object, ...]:
    return stream.local, stream.peer, stream.ssl_object, stream.peer_certificate, stream.peer_credentials


@all_kinds
async def test_who_is_there_can_be_asked_meanwhile(kind: str) -> None:
    async with connected(kind) as (stream, _):
        before = who_is_there(stream)
        async with stream.blocking_socket() as sock:
            assert stream.extra(SocketAttribute.remote_address) == sock.getpeername()
            assert who_is_there(stream) == before
            assert stream.extra(SocketAttribute.raw_socket).fileno() == sock.fileno()
            assert "open" in repr(stream)
            assert not stream.closed


# Ending it while it is lent


ENDS: dict[str, Callable[[Stream], Awaitable[object]]] = {
    "abort": lambda stream: asyncio.sleep(0, stream.abort()),
    "aclose": lambda stream: stream.aclose(),
}


@pytest.mark.parametrize("end", ENDS)
@all_kinds
async def test_a_blocked_recv_returns_when_the_stream_is_ended(kind: str, end: str) -> None:
    async with connected(kind) as (stream, peer):
        async with stream.blocking_socket() as sock:
            inode = os.fstat(sock.fileno()).st_ino
            sending = asyncio.create_task(stream.send(bytes(300_000)))
            reading = asyncio.create_task(raised(asyncio.to_thread(sock.recv, 100)))
            await stays(lambda: not reading.done() and not sending.done(), what="both waiting")
            await within(ENDS[end](stream), timeout=SECOND, what=end)
            assert stream.closed
            # Nothing comes any more; under TLS that is an end without the closing alert.
            assert isinstance(await within(reading, what="recv()"), ssl.SSLEOFError | None)
            with pytest.raises(ClosedResourceError):
                await within(sending)
            # The thread might have been between two calls: its descriptor is still what it was.
            assert os.fstat(sock.fileno()).st_ino == inode
        with pytest.raises(ClosedResourceError):
            await stream.receive()
        assert sock.fileno() == -1
        assert isinstance(await raised(within(peer.receive_all())), ConnectionError | ssl.SSLError | None)


@pytest.mark.parametrize("end", ENDS)
@all_kinds
async def test_a_blocked_sendall_returns_when_the_stream_is_ended(kind: str, end: str) -> None:
    async with connected(kind, buffer_sizes=20_000) as (stream, _):
        async with stream.blocking_socket() as sock:
            sending = asyncio.create_task(raised(asyncio.to_thread(sock.sendall, bytes(5_000_000))))
            await stays(lambda: not sending.done(), what="waiting in sendall()")
            await within(ENDS[end](stream), timeout=SECOND, what=end)
            assert isinstance(await within(sending, what="sendall()"), OSError)
            assert sock.fileno() >= 0
        assert sock.fileno() == -1


async def test_tls_holds_to_the_end() -> None:
    """What the thread still receives after the stream was aborted is never what was on the wire."""
    async with connected("tls") as (stream, peer):
        async with stream.blocking_socket() as sock:
            await peer.send(b"protected")
            await within(asyncio.to_thread(socket.socket.recv, sock, 1, socket.MSG_PEEK))
            stream.abort()
            assert await within(asyncio.to_thread(sock.recv, 100)) == b"protected"


@pytest.mark.parametrize("parting", ["close", "detach"])
@all_kinds
async def test_the_thread_closes_the_socket(kind: str, parting: str) -> None:
    async with connected(kind) as (stream, peer):

        def part(sock: socket.socket) -> tuple[int | None, list[socket.socket]]:
            number = getattr(sock, parting)()
            return number, list(socket.socketpair())  # One of these has the number now, if it is free.

        receiving = asyncio.create_task(stream.receive())  # So that the loop has watched the socket.
        await wait_until(lambda: stream.receiving)
        await peer.send(b"hello")
        assert await within(receiving) == b"hello"
        async with stream.blocking_socket() as sock:
            sending = asyncio.create_task(stream.send(bytes(300_000)))
            await wait_until(lambda: stream.unsent)
            number, others = await within(asyncio.to_thread(part, sock))
        try:
            assert stream.closed
            with pytest.raises(ClosedResourceError):
                await within(sending)
            with pytest.raises(ClosedResourceError):
                await stream.receive()
            stream.abort()
            await stream.aclose()
            for other in others:
                os.fstat(other.fileno())  # Raises if it has been closed.
            if number is not None:
                os.close(number)  # Raises, too: it was given away.
        finally:
            for other in others:
                other.close()


@pytest.mark.parametrize("failure", [ValueError("from the block"), asyncio.CancelledError()], ids=type)
@all_kinds
async def test_the_socket_is_back_whatever_happens(kind: str, failure: BaseException) -> None:
    async with connected(kind) as (stream, peer):
        with pytest.raises(type(failure)):
            async with stream.blocking_socket() as sock:
                sock.settimeout(5)
                raise failure
        assert sock.gettimeout() == 0.0
        assert not os.get_blocking(sock.fileno())
        await peer.send(b"on it goes")
        assert await within(stream.receive()) == b"on it goes"


@all_kinds
async def test_cancelled_before_it_is_lent(kind: str) -> None:
    data = random.Random(3).randbytes(500_000)
    async with connected(kind, buffer_sizes=20_000) as (stream, peer):
        sending = asyncio.create_task(stream.send(data))
        await wait_until(lambda: stream.unsent)
        lending = asyncio.create_task(lend(stream, echo_once))
        await stays(lambda: not lending.done())
        lending.cancel()
        assert isinstance(await raised(within(lending)), asyncio.CancelledError)
        assert await within(peer.receive_exactly(len(data))) == data
        await within(sending)
        await peer.send(b"on it goes")
        assert await within(stream.receive()) == b"on it goes"


@pytest.mark.parametrize("end", ENDS)
async def test_ended_before_it_is_lent(end: str) -> None:
    async with connected("tcp", buffer_sizes=20_000) as (stream, peer):
        sending = asyncio.create_task(raised(stream.send(bytes(500_000))))
        await wait_until(lambda: stream.unsent)
        lending = asyncio.create_task(raised(lend(stream, echo_once)))
        await stays(lambda: not lending.done())
        ending = asyncio.ensure_future(ENDS[end](stream))
        if end == "aclose":
            await within(peer.receive_all())
            peer.close()
        assert isinstance(await within(lending), ClosedResourceError)
        await within(asyncio.gather(ending, sending))


# The end of TLS in the thread


async def test_tls_ended_by_both_sides_in_the_thread() -> None:
    """``unwrap()``: what follows is plain text, for the stream as for the peer."""
    async with connected("tls") as (stream, peer):
        async with stream.blocking_socket() as sock:
            unwrapping = asyncio.create_task(asyncio.to_thread(sock.unwrap))  # type: ignore[attr-defined]
            await peer.send_eof()
            assert await within(peer.receive()) == b""
            await within(unwrapping)
            await stream.send(b"plain, ")  # Collected, and not to be encrypted.
        assert stream.ssl_object is None
        await stream.send(b"too")
        await wait_until(lambda: not stream.unsent)
        assert await within(Peer.receive(peer)) == b"plain, too"
        await peer.send_raw(b"plain answer")
        assert await within(stream.receive()) == b"plain answer"
        closing = asyncio.create_task(stream.aclose())
        assert await within(Peer.receive(peer)) == b""
        peer.close()
        await within(closing)


async def test_tls_forgotten_by_the_thread() -> None:
    """The ``shutdown()`` of a TLS socket drops TLS without a word to the peer."""
    async with connected("tls") as (stream, peer):
        await within(lend(stream, lambda sock: sock.shutdown(socket.SHUT_WR)))
        assert stream.ssl_object is None
        await peer.send_raw(b"plain")
        assert await within(stream.receive()) == b"plain"
        assert isinstance(await raised(within(peer.receive())), ssl.SSLEOFError)
        peer.close()
        await within(stream.aclose())


@pytest.mark.parametrize("end", ["closing alert", "nothing"])
async def test_the_end_of_tls_after_the_thread(end: str) -> None:
    """It is the stream's to judge: an end without the closing alert may be an attacker's."""
    async with connected("tls") as (stream, peer):
        await peer.send(b"first, last")
        async with stream.blocking_socket() as sock:
            assert await within(asyncio.to_thread(sock.recv, 7)) == b"first, "
            if end == "closing alert":
                await peer.send_eof()
            peer.socket.shutdown(socket.SHUT_WR)
            await within(asyncio.to_thread(_wait_for_end, sock))
        assert await within(stream.receive()) == b"last"
        with pytest.raises(EndOfStream if end == "closing alert" else BrokenResourceError):
            await within(stream.receive())


def _wait_for_end(sock: socket.socket) -> None:
    poll = select.poll()
    poll.register(sock, select.POLLRDHUP)
    assert poll.poll(PATIENCE * 1000)


@all_kinds
async def test_the_end_that_the_thread_has_seen(kind: str) -> None:
    """It is not told again by the kernel, or by OpenSSL."""
    async with connected(kind) as (stream, peer):
        await peer.send(b"all")
        await peer.send_eof()
        assert await within(lend(stream, read_all)) == b"all"
        for _ in range(2):
            with pytest.raises(EndOfStream):
                await within(stream.receive())
        await within(stream.send(b"an answer"))
        assert await within(peer.receive()) == b"an answer"


# flush()


@all_kinds
async def test_flushing_waits_for_the_kernel(kind: str) -> None:
    async with connected(kind, buffer_sizes=20_000, send_limit=10_000_000) as (stream, peer):
        await within(stream.flush())
        await within(stream.send(bytes(500_000)))
        flushing = [asyncio.create_task(stream.flush()) for _ in range(2)]
        await stays(lambda: stream.unsent and not any(task.done() for task in flushing))
        received = asyncio.create_task(peer.receive_exactly(500_000))
        await within(asyncio.gather(*flushing))
        assert not stream.unsent
        assert len(await within(received)) == 500_000


@all_kinds
async def test_flushing_sends_what_has_been_collected_in_this_turn(kind: str) -> None:
    async with connected(kind) as (stream, peer):
        await stream.send(b"now")
        await stream.flush()
        stream.abort() if kind == "unix" else stream.close_now()
        assert await within(peer.receive(100)) == b"now"


@pytest.mark.parametrize("end", ["abort", "reset"])
async def test_flushing_in_vain(end: str) -> None:
    async with connected("tcp", buffer_sizes=20_000, send_limit=10_000_000) as (stream, peer):
        await stream.send(bytes(500_000))
        flushing = asyncio.create_task(stream.flush())
        await stays(lambda: not flushing.done())
        stream.abort() if end == "abort" else peer.reset()
        with pytest.raises(ClosedResourceError if end == "abort" else BrokenResourceError):
            await within(flushing)


# detach()


@all_kinds
async def test_the_socket_is_given_away(kind: str) -> None:
    async with connected(kind) as (stream, peer):
        await stream.send(b"before")
        await stream.flush()
        await peer.send(b"still in the kernel")
        sock = stream.detach()
        assert sock.gettimeout() == 0.0
        assert isinstance(sock, ssl.SSLSocket) == (kind == "tls")
        assert stream.closed
        for operation in *RECEIVING.values(), *(send for send, _ in SENDING.values()), lambda s: s.flush():
            assert isinstance(await raised(operation(stream)), ClosedResourceError)
        with pytest.raises(ClosedResourceError):
            stream.detach()
        await stream.aclose()
        stream.abort()
        heir = Stream(sock)
        assert await within(heir.receive()) == b"still in the kernel"
        await heir.send(b" and after")
        assert await within(peer.receive_exactly(16)) == b"before and after"
        assert (heir.ssl_object is sock) == (kind == "tls")
        closing = asyncio.create_task(heir.aclose())
        assert await within(peer.receive_all()) == b""
        peer.close()
        await within(closing)


@all_kinds
async def test_given_away_under_whoever_waits(kind: str) -> None:
    """What waits is told; what was read ahead, and what is not sent, is dropped."""
    async with connected(kind, buffer_sizes=20_000) as (stream, peer):
        await peer.send(b"line\nread ahead")
        assert await within(stream.receive_until(b"\n", 10)) == b"line"
        sending = asyncio.create_task(raised(stream.send(bytes(500_000))))
        await wait_until(lambda: stream.unsent)
        with stream.detach() as sock:
            assert isinstance(await within(sending), ClosedResourceError)
            assert not stream.unsent
            await peer.send(b"for the heir")
            await wait_until(lambda: _came(sock) == b"for the heir")


async def test_given_away_under_a_receive() -> None:
    async with connected("tcp") as (stream, peer):
        receiving = asyncio.create_task(raised(stream.receive()))
        await wait_until(lambda: stream.receiving)
        with stream.detach() as sock:
            assert isinstance(await within(receiving), ClosedResourceError)
            await peer.send(b"for the heir")
            await wait_until(lambda: _came(sock) == b"for the heir")


def _came(sock: socket.socket) -> bytes | None:
    try:
        return sock.recv(100)
    except (BlockingIOError, ssl.SSLWantReadError):
        return None


@pytest.mark.parametrize("known", [False, True])
async def test_who_was_there_after_it_was_given_away(known: bool) -> None:
    """As with a stream that is closed: what is known already is told, and the rest is its kind of error."""
    near, far = await socket_pair()
    with near, far:
        closed, detached = (
            Stream(near.dup(), sockaddr=("192.0.2.1", 1)),
            Stream(near, sockaddr=("192.0.2.1", 1)),
        )
        if known:
            assert closed.local == detached.local
        closed.abort()
        assert detached.detach() is near
        assert repr(detached) == repr(closed)
        assert detached.peer == closed.peer
        for attribute in "local", "peer_credentials", "peer_certificate":
            assert outcome(detached, attribute) == outcome(closed, attribute), attribute


def outcome(stream: Stream, attribute: str) -> object:
    try:
        return getattr(stream, attribute)
    except Exception as exc:
        return type(exc)


async def test_a_handler_gives_its_socket_away(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "asyncserver")
    taken: asyncio.Queue[socket.socket] = asyncio.Queue()

    async def handler(stream: Stream) -> None:
        assert await stream.receive() == b"hello"
        taken.put_nowait(stream.detach())

    async with local_server(handler) as server, await Client.connect(server) as client:
        await client.send(b"hello")
        with await within(taken.get()) as sock:
            await wait_until(lambda: not server.connections)
            sock.send(b"from the heir")
            assert await client.receive() == b"from the heir"
        assert server.statistics().closed == {CloseReason.HANDLER_RETURNED: 1}
    assert "closed: handler_returned" in caplog.text
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


@pytest.mark.parametrize("end", ["drain", "aclose"])
async def test_a_handler_lends_its_socket_at_the_end_of_its_server(end: str) -> None:
    """The handler's cancellation does not take the socket from the thread, and the end comes all the same."""
    inside = threading.Event()

    def read(sock: socket.socket) -> bytes:
        inside.set()
        return sock.recv(100)

    async def handler(stream: Stream) -> None:
        async with stream.blocking_socket() as sock:
            reading = asyncio.create_task(asyncio.to_thread(read, sock))
            try:
                await asyncio.shield(reading)
            finally:
                sock.shutdown(socket.SHUT_RD)
                assert await reading == b""

    server = local_server(handler)
    await server.start()
    async with await Client.connect(server) as client:
        await wait_until(inside.is_set)
        ending = asyncio.ensure_future(server.drain(0) if end == "drain" else server.aclose())
        assert await client.ended() == "eof"
        client.close()
        await within(ending)
    assert server.statistics().closed == {CloseReason.CANCELLED: 1}


# A stream made of a TLS socket


@pytest.fixture
async def wrapped() -> Any:
    """A stream made of a socket that somebody has wrapped as the standard library does, and its peer."""
    near, far = await socket_pair()
    peer = TLSPeer(far, CLIENT_CONTEXT)
    near.settimeout(PATIENCE)
    wrapping = asyncio.to_thread(SERVER_CONTEXT.wrap_socket, near, server_side=True)
    sock, _ = await within(asyncio.gather(wrapping, peer.handshake()))
    sock.setblocking(False)
    stream = Stream(sock)
    yield stream, peer
    stream.abort()
    peer.close()


async def test_a_tls_socket_as_a_stream(wrapped: tuple[Stream, TLSPeer]) -> None:
    stream, peer = wrapped
    assert isinstance(stream.ssl_object, ssl.SSLSocket)
    assert stream.extra(TLSAttribute.tls_version) == "TLSv1.3"
    assert stream.extra(TLSAttribute.server_side)
    data = random.Random(4).randbytes(300_000)
    echoing = asyncio.create_task(echo(stream))
    sending = asyncio.create_task(peer.send(data))
    assert await within(peer.receive_exactly(len(data))) == data
    await within(sending)
    await peer.send_eof()
    await within(echoing)
    closing = asyncio.create_task(stream.aclose())
    assert await within(peer.receive_all()) == b""  # Raises if the closing alert is missing.
    peer.close()
    await within(closing)


async def test_bytes_that_openssl_has_already(wrapped: tuple[Stream, TLSPeer]) -> None:
    stream, peer = wrapped
    await peer.send(b"one record")
    received = [await within(stream.receive(1)) for _ in range(10)]
    assert b"".join(received) == b"one record"


async def test_what_openssl_has_goes_with_the_socket(wrapped: tuple[Stream, TLSPeer]) -> None:
    stream, peer = wrapped
    await peer.send(b"one record")
    assert await within(stream.receive(4)) == b"one "
    assert await within(lend(stream, lambda sock: sock.recv(3))) == b"rec"
    with stream.detach() as sock:
        assert sock.recv(100) == b"ord"


async def test_a_tls_connection_that_was_cut_off(wrapped: tuple[Stream, TLSPeer]) -> None:
    """What came may have been cut short by an attacker, whoever has wrapped the socket, and however."""
    stream, peer = wrapped
    await peer.send(b"all of it?")
    assert await within(stream.receive()) == b"all of it?"
    peer.close()
    with pytest.raises(BrokenResourceError):
        await within(stream.receive())
