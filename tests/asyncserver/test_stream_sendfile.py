"""``Stream.send_file()``."""

from __future__ import annotations

import asyncio
import gzip
import io
import os
import random
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import pytest
from anyio import BrokenResourceError, ClosedResourceError

from tests.streams import KINDS, Peer, connected, turns
from tests.waiting import wait_until, within

CONTENT = random.Random(1).randbytes(300_000)

# sendfile() reads the file where it is called, and these tests open some where they are.
pytestmark = pytest.mark.allow_blocking("os.sendfile")

all_kinds = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("files") / "content"
    path.write_bytes(CONTENT)
    return path


def _named_temporary_file(*, flushed: bool) -> IO[bytes]:
    file = tempfile.NamedTemporaryFile()  # noqa: SIM115 - the caller closes it
    file.write(CONTENT[:-5])
    file.write(CONTENT[-5:])
    if flushed:
        file.flush()
    return file  # type: ignore[return-value]


def _compressed() -> IO[bytes]:
    return gzip.open(io.BytesIO(gzip.compress(CONTENT)))  # type: ignore[return-value]


SOURCES: dict[str, Callable[[Path], IO[bytes]]] = {
    "file": lambda path: path.open("rb"),
    "unbuffered file": lambda path: path.open("rb", buffering=0),
    "file for reading and writing": lambda path: path.open("r+b"),
    "temporary file": lambda _: _named_temporary_file(flushed=True),
    "file that is not written yet": lambda _: _named_temporary_file(flushed=False),
    "memory": lambda _: io.BytesIO(CONTENT),
    "gzip": lambda _: _compressed(),
}


@pytest.fixture(params=list(SOURCES))
def source(request: pytest.FixtureRequest, path: Path) -> Iterator[IO[bytes]]:
    with SOURCES[request.param](path) as file:
        yield file


@pytest.fixture
def file(path: Path) -> Iterator[IO[bytes]]:
    with path.open("rb") as file:
        yield file


async def received(peer: Peer, count: int) -> bytes:
    return await within(peer.receive_exactly(count))


@all_kinds
async def test_the_whole_file(kind: str, source: IO[bytes]) -> None:
    async with connected(kind) as (stream, peer):
        sending = asyncio.create_task(stream.send_file(source))
        assert await received(peer, len(CONTENT)) == CONTENT
        assert await within(sending) == len(CONTENT)
        assert stream.bytes_sent == len(CONTENT)
        await stream.send(b"after")
        assert await received(peer, 5) == b"after"


@pytest.mark.parametrize(
    ("offset", "count"),
    [
        (0, 0),
        (0, 1),
        (7, 100_000),
        (299_999, None),
        (299_990, 100),
        (300_000, None),
        (400_000, 5),
        (65_536, 65_536),
    ],
)
@pytest.mark.parametrize("kind", ["tcp", "tls"])
async def test_a_part_of_it(kind: str, offset: int, count: int | None, source: IO[bytes]) -> None:
    expected = CONTENT[offset:] if count is None else CONTENT[offset : offset + count]
    async with connected(kind) as (stream, peer):
        await stream.send(b"<")
        sending = asyncio.create_task(stream.send_file(source, offset, count))
        assert await received(peer, 1 + len(expected)) == b"<" + expected
        assert await within(sending) == len(expected)
        await stream.send(b">")
        assert await received(peer, 1) == b">"


@pytest.mark.parametrize("kind", ["tcp", "tls"])
async def test_the_position_of_the_file_does_not_matter(kind: str, file: IO[bytes]) -> None:
    file.seek(1_000)
    async with connected(kind) as (stream, peer):
        await asyncio.gather(stream.send_file(file, 10, 20), stream.send_file(file, 30, 40))
        assert await received(peer, 60) == CONTENT[10:70]


async def test_numbers_that_cannot_be(file: IO[bytes]) -> None:
    async with connected() as (stream, _):
        with pytest.raises(ValueError, match="offset"):
            await stream.send_file(file, -1)
        with pytest.raises(ValueError, match="count"):
            await stream.send_file(file, 0, -1)


@all_kinds
async def test_a_slow_peer(kind: str, file: IO[bytes]) -> None:
    async with connected(kind, buffer_sizes=100_000 if kind == "tcp" else 20_000) as (stream, peer):
        sending = asyncio.create_task(stream.send_file(file))
        await turns(20)
        assert not sending.done() or kind == "tcp"
        assert await received(peer, len(CONTENT)) == CONTENT
        assert await within(sending) == len(CONTENT)


@pytest.mark.parametrize("in_memory", [True, False])
@all_kinds
async def test_what_others_send_is_not_mixed_in(kind: str, in_memory: bool, file: IO[bytes]) -> None:
    async with connected(kind, buffer_sizes=50_000) as (stream, peer):

        async def chatter() -> None:
            for _ in range(20):
                await stream.send(b"chat")
                await stream.send_many([b"ch", b"at"])
                await asyncio.sleep(0)

        what = io.BytesIO(CONTENT) if in_memory else file
        sending = asyncio.create_task(stream.send_file(what))
        again = asyncio.create_task(stream.send_file(what, 0, 100_000))
        await turns(2)
        chatting = [asyncio.create_task(chatter()) for _ in range(3)]
        text = await received(peer, len(CONTENT) + 100_000 + 20 * 3 * 8)
        await within(asyncio.gather(sending, again, *chatting))
        assert text.startswith(CONTENT)
        assert text.replace(CONTENT[:100_000], b"", 1).replace(CONTENT[100_000:], b"", 1).replace(
            CONTENT[:100_000], b"", 1
        ) == b"chat" * (20 * 3 * 2)
        assert await within(stream.send(b"then")) is None


@all_kinds
async def test_what_is_sent_meanwhile_is_sent_although_its_sender_is_cancelled(
    kind: str, file: IO[bytes]
) -> None:
    async with connected(kind, buffer_sizes=20_000) as (stream, peer):
        sending = asyncio.create_task(stream.send_file(file))
        await turns(2)
        behind = asyncio.create_task(stream.send(b"behind it"))
        await turns(2)
        assert stream.unsent >= 9
        behind.cancel()
        with pytest.raises(asyncio.CancelledError):
            await behind
        assert await received(peer, len(CONTENT) + 9) == CONTENT + b"behind it"
        assert await within(sending) == len(CONTENT)
        assert not stream.unsent


@all_kinds
async def test_a_stream_that_sends_a_file_is_not_idle(kind: str, file: IO[bytes]) -> None:
    """Also where the kernel sends it, and nothing of it is here."""
    async with connected(kind, buffer_sizes=20_000) as (stream, peer):
        sending = asyncio.create_task(_send_for_ever(stream, file))
        receiving = asyncio.create_task(stream.receive())
        await wait_until(lambda: stream.receiving and stream.stalled)
        assert not stream.idle
        sending.cancel()
        reading = asyncio.create_task(peer.receive_all())
        await wait_until(lambda: stream.idle)
        await stream.send_eof()
        await within(reading)
        receiving.cancel()
        await asyncio.wait([sending, receiving])


@all_kinds
async def test_the_end_waits_for_the_file(kind: str, file: IO[bytes]) -> None:
    async with connected(kind, buffer_sizes=50_000) as (stream, peer):
        sending = asyncio.create_task(stream.send_file(file))
        await turns(2)
        ending = asyncio.create_task(stream.send_eof())
        assert await within(peer.receive_all()) == CONTENT
        await within(asyncio.gather(sending, ending))
        with pytest.raises(ClosedResourceError):
            await stream.send_file(file)


@all_kinds
async def test_a_peer_that_goes(kind: str, file: IO[bytes]) -> None:
    async with connected(kind, buffer_sizes=20_000) as (stream, peer):
        sending = asyncio.create_task(stream.send_file(file))
        await turns(20)
        peer.close() if kind == "unix" else peer.reset()
        with pytest.raises(BrokenResourceError):
            await within(sending)
            for _ in range(100):  # the kernel may have taken all of it before
                await stream.send_file(file)


@all_kinds
async def test_closing_meanwhile(kind: str, file: IO[bytes]) -> None:
    async with connected(kind, buffer_sizes=20_000) as (stream, _):
        big = asyncio.create_task(_send_for_ever(stream, file))
        waiting = asyncio.create_task(stream.send(b"behind it"))
        await turns(20)
        stream.abort()
        for error in await within(asyncio.gather(big, waiting, return_exceptions=True)):
            assert error is None or isinstance(error, ClosedResourceError)
        assert isinstance(big.exception(), ClosedResourceError)


async def _send_for_ever(stream: Any, file: IO[bytes]) -> None:
    while True:
        await stream.send_file(file)


@all_kinds
async def test_cancelling(kind: str, file: IO[bytes]) -> None:
    """A part of it has been sent, and what is sent then follows that part."""
    async with connected(kind, buffer_sizes=20_000) as (stream, peer):
        sending = asyncio.create_task(_send_for_ever(stream, file))
        await turns(20)
        sending.cancel()
        with pytest.raises(asyncio.CancelledError):
            await sending
        after = asyncio.create_task(_send_and_end(stream))
        text = await within(peer.receive_all())
        await within(after)
        assert text.endswith(b"after")
        assert (CONTENT * 20).startswith(text[:-5])


async def _send_and_end(stream: Any) -> None:
    await stream.send(b"after")
    await stream.send_eof()


class Failing(io.BytesIO):
    def read(self, size: int | None = -1, /) -> bytes:
        if self.tell() > 100_000:
            raise OSError("the disk is gone")
        return super().read(size)


@all_kinds
async def test_a_file_that_fails(kind: str) -> None:
    async with connected(kind) as (stream, peer):
        sending = asyncio.create_task(stream.send_file(Failing(CONTENT)))
        assert await received(peer, 131_072) == CONTENT[:131_072]
        with pytest.raises(OSError, match="the disk is gone"):
            await within(sending)
        await stream.send(b"sorry")
        assert await received(peer, 5) == b"sorry"


@pytest.mark.parametrize("kind", ["tcp", "tls"])
async def test_a_file_that_cannot_be_read(kind: str, tmp_path: Path) -> None:
    with await asyncio.to_thread((tmp_path / "new").open, "wb") as file:
        async with connected(kind) as (stream, peer):
            with pytest.raises(OSError, match=r"descriptor|not readable|unsupported|read"):
                await within(stream.send_file(file))
            await stream.send(b"sorry")
            assert await received(peer, 5) == b"sorry"


async def test_text_is_refused(tmp_path: Path) -> None:
    async with connected() as (stream, _):
        with pytest.raises(TypeError):
            await within(stream.send_file(io.StringIO("text")))  # type: ignore[arg-type]


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="needs a proc file system")
async def test_a_file_that_the_kernel_cannot_send() -> None:
    """It says that it is a regular file, and empty."""
    with await asyncio.to_thread(open, "/proc/self/status", "rb") as file:
        async with connected() as (stream, peer):
            sent = await within(stream.send_file(file))
            assert sent > 0
            assert b"Pid:" in await received(peer, sent)


async def test_a_pipe() -> None:
    reader, writer = os.pipe()
    os.write(writer, b"from the pipe")
    os.close(writer)
    with open(reader, "rb") as file:  # noqa: ASYNC230 - nothing is opened
        async with connected() as (stream, _):
            with pytest.raises(OSError):  # noqa: PT011 - a pipe has no positions
                await within(stream.send_file(file))


async def test_other_connections_have_their_turns(file: IO[bytes]) -> None:
    async with connected("unix", buffer_sizes=4_000_000) as (stream, peer):
        ticks = 0

        async def tick() -> None:
            nonlocal ticks
            while True:
                await asyncio.sleep(0)
                ticks += 1

        ticking = asyncio.create_task(tick())
        receiving = asyncio.create_task(peer.receive_exactly(20 * len(CONTENT)))
        for _ in range(20):
            await within(stream.send_file(file))
        await within(receiving)
        ticking.cancel()
        await asyncio.gather(ticking, return_exceptions=True)
        assert ticks >= 20
