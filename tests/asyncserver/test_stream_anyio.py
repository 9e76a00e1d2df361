"""anyio's wrappers work on a stream as on anyio's own."""

from __future__ import annotations

import asyncio
import io
import random
from typing import Any

import anyio
import pytest
from anyio import ClosedResourceError, DelimiterNotFound, EndOfStream, IncompleteRead
from anyio.streams import buffered, stapled, text, tls
from anyio.streams.file import FileReadStream

from asyncserver import Stream
from tests.streams import CLIENT_CONTEXT, KINDS, SERVER_CONTEXT, TLSPeer, connected, driven
from tests.waiting import MS, within

all_kinds = pytest.mark.parametrize("kind", KINDS)


@all_kinds
async def test_buffered_receive_stream(kind: str) -> None:
    async with connected(kind) as (stream, peer):

        async def handler(stream: Stream) -> list[bytes]:
            wrapped = buffered.BufferedByteReceiveStream(stream)
            got = [await wrapped.receive_until(b"\r\n", 100), await wrapped.receive_exactly(5)]
            got.append(await wrapped.receive(3))
            with pytest.raises(DelimiterNotFound):
                await wrapped.receive_until(b"\n", 5)
            assert wrapped.buffer == b"a long rest"
            got.append(await wrapped.receive())
            with pytest.raises(IncompleteRead):
                await wrapped.receive_exactly(1)
            return got

        task = driven(stream, handler)
        for piece in b"li", b"ne\r", b"\n12345abc", b"a long rest":
            await peer.send(piece)
            await asyncio.sleep(0)
        await peer.send_eof()
        assert await within(task) == [b"line", b"12345", b"abc", b"a long rest"]


@pytest.mark.skipif(not hasattr(buffered, "BufferedByteStream"), reason="needs a newer anyio")
@all_kinds
async def test_buffered_stream(kind: str) -> None:
    async with connected(kind) as (stream, peer):
        wrapped = buffered.BufferedByteStream(stream)
        await wrapped.send(b"question\n")
        assert await within(peer.receive_exactly(9)) == b"question\n"
        await peer.send(b"answer\n")
        assert await within(wrapped.receive_until(b"\n", 100)) == b"answer"
        await wrapped.send_eof()
        assert await within(peer.receive_all()) == b""


@all_kinds
async def test_text_stream(kind: str) -> None:
    async with connected(kind) as (stream, peer):
        wrapped = text.TextStream(stream)
        await wrapped.send("größer")
        assert await within(peer.receive_exactly(8)) == "größer".encode()
        encoded = "äöü€".encode()
        receiving = asyncio.create_task(_characters(wrapped, 4))
        for at in range(len(encoded)):
            await peer.send(encoded[at : at + 1])
            await asyncio.sleep(0)
        assert await within(receiving) == "äöü€"


async def _characters(stream: text.TextStream, count: int) -> str:
    gathered = ""
    while len(gathered) < count:
        gathered += await stream.receive()
    return gathered


@pytest.mark.parametrize("server_side", [True, False])
@pytest.mark.parametrize("kind", ["tcp", "unix"])
async def test_tls_stream(kind: str, server_side: bool) -> None:
    """anyio's TLS in memory, over a plain stream of ours."""
    data = random.Random(1).randbytes(300_000)
    async with connected(kind) as (stream, peer):
        other = TLSPeer(
            peer.socket, CLIENT_CONTEXT if server_side else SERVER_CONTEXT, server_side=not server_side
        )
        wrapping = asyncio.create_task(
            tls.TLSStream.wrap(
                stream,
                server_side=server_side,
                hostname=None if server_side else "localhost",
                ssl_context=SERVER_CONTEXT if server_side else CLIENT_CONTEXT,
            )
        )
        await within(other.handshake())
        wrapped = await within(wrapping)
        _, got = await within(asyncio.gather(wrapped.send(data), other.receive_exactly(len(data))))
        assert got == data
        _, got = await within(asyncio.gather(other.send(data), _exactly(wrapped, len(data))))
        assert got == data
        assert wrapped.extra(tls.TLSAttribute.tls_version) == "TLSv1.3"
        await other.send_eof()
        with pytest.raises(EndOfStream):
            await within(wrapped.receive())
        closing = asyncio.create_task(wrapped.aclose())
        assert await within(other.receive_all()) == b""
        peer.close()
        await within(closing)
        assert stream.closed


async def _exactly(stream: Any, count: int) -> bytes:
    return await buffered.BufferedByteReceiveStream(stream).receive_exactly(count)


async def test_tls_inside_tls() -> None:
    async with connected("tls") as (stream, peer):
        inner = TLSPeer(peer.socket)

        async def through(data: bytes) -> None:
            await peer.send(data)

        async def pump() -> None:
            while True:
                try:
                    inner.tls.do_handshake()
                except Exception:
                    await through(inner.outgoing.read())
                    inner.incoming.write(await peer.receive())
                else:
                    await through(inner.outgoing.read())
                    return

        wrapping = asyncio.create_task(
            tls.TLSStream.wrap(stream, server_side=True, ssl_context=SERVER_CONTEXT)
        )
        await within(pump())
        wrapped = await within(wrapping)
        inner.tls.write(b"deep inside")
        await through(inner.outgoing.read())
        assert await within(wrapped.receive()) == b"deep inside"


@all_kinds
async def test_stapled_streams(kind: str) -> None:
    """Received from one connection and sent to another: half a proxy."""
    async with connected(kind) as (one, one_peer), connected(kind) as (other, other_peer):
        wrapped = stapled.StapledByteStream(send_stream=other, receive_stream=one)
        await one_peer.send(b"in")
        assert await within(wrapped.receive()) == b"in"
        await wrapped.send(b"out")
        assert await within(other_peer.receive_exactly(3)) == b"out"
        ending = asyncio.create_task(wrapped.send_eof())  # closes the sending stream altogether
        assert await within(other_peer.receive_all()) == b""
        other_peer.close()
        await within(ending)
        one_peer.close()
        await within(wrapped.aclose())
        assert one.closed
        assert other.closed


@all_kinds
async def test_a_file_stream_into_a_stream(kind: str) -> None:
    content = random.Random(2).randbytes(200_000)
    async with connected(kind) as (stream, peer):

        async def send() -> None:
            async for chunk in FileReadStream(io.BytesIO(content)):  # type: ignore[arg-type]
                await stream.send(chunk)
            await stream.send_eof()

        sending = asyncio.create_task(send())
        assert await within(peer.receive_all()) == content
        await within(sending)


@all_kinds
async def test_as_a_context_manager(kind: str) -> None:
    async with connected(kind) as (stream, peer):
        async with stream:
            await stream.send(b"x")
            peer.close()
        assert stream.closed
        with pytest.raises(ClosedResourceError):
            await stream.receive()


@all_kinds
async def test_aclose_forcefully(kind: str) -> None:
    async with connected(kind) as (stream, _):
        await within(anyio.aclose_forcefully(stream))
        assert stream.closed


async def test_cancel_scopes_around_everything() -> None:
    async with connected("tcp", buffer_sizes=10_000) as (stream, _):

        async def handler(stream: Stream) -> list[bool]:
            caught = []
            for operation in (
                stream.receive,
                lambda: stream.receive_exactly(5),
                lambda: stream.send(bytes(5_000_000)),
                lambda: stream.send(b"x" * 100_000),
                lambda: anext(stream.lines()),
            ):
                with anyio.move_on_after(2 * MS) as scope:
                    await operation()
                caught.append(scope.cancelled_caught)
            return caught

        assert await within(driven(stream, handler)) == [True] * 5
