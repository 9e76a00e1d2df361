"""One function that answers requests, on streams and on datagrams, and how frames are told apart."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Literal, Protocol, TypeAlias

from anyio import EndOfStream, IncompleteRead

from asyncserver.checks import check_count
from asyncserver.datagram import Datagram
from asyncserver.errors import FramingError, OptionError
from asyncserver.stream import Stream

__all__ = [
    "Framing",
    "FramingError",
    "LengthPrefix",
    "Lines",
    "OctetCounted",
    "Respond",
    "Responder",
    "SyslogFrames",
]

_LARGEST_PREFIX = 8


Respond: TypeAlias = Callable[[bytes], bytes | Awaitable[bytes | None] | None]
"""Takes a request and returns the reply, or None for no reply; plain or async."""


class Framing(Protocol):
    """How the messages on a stream are told apart.

    One framing serves all connections: it has no state of its own.
    """

    async def read(self, stream: Stream, max_bytes: int) -> bytes | None:
        """Wait for the next message and return it; None when the peer has ended after a whole one.

        Raises ``IncompleteRead`` when the peer ends in the middle of a message, and ``FramingError`` or
        ``DelimiterNotFound`` when what comes is no frame, or its message is longer than ``max_bytes``.
        """
        ...

    def frame(self, message: bytes) -> bytes:
        """The message as it is sent. Raises ``ValueError`` if it cannot be framed."""
        ...


@dataclass(frozen=True, slots=True)
class LengthPrefix:
    """Before each message, its length in bytes as an unsigned integer of ``size`` bytes (1 to 8).

    With the defaults this is DNS over TCP (RFC 1035, section 4.2.2).
    """

    size: int = 2
    byteorder: Literal["big", "little"] = "big"

    def __post_init__(self) -> None:
        check_count("size", self.size, 1, "bytes", optional=False)
        if self.size > _LARGEST_PREFIX:
            raise OptionError("size", self.size, f"has to be at most {_LARGEST_PREFIX} bytes")
        if self.byteorder not in ("big", "little"):
            raise OptionError("byteorder", self.byteorder, 'has to be "big" or "little"')

    async def read(self, stream: Stream, max_bytes: int) -> bytes | None:
        """See ``Framing``."""
        # Peeked at, and taken with the message, so that the stream knows that one has begun.
        try:
            prefix = await stream.peek(self.size)
        except EndOfStream:
            return None
        length = int.from_bytes(prefix, self.byteorder)
        if length > max_bytes:
            raise FramingError(f"a frame of {length} bytes, where at most {max_bytes} are taken")
        frame = await stream.receive_exactly(self.size + length)
        return frame[self.size :]

    def frame(self, message: bytes) -> bytes:
        """See ``Framing``. Raises ``ValueError`` if the length does not fit the prefix."""
        try:
            return len(message).to_bytes(self.size, self.byteorder) + message
        except OverflowError:
            most = 256**self.size - 1
            raise ValueError(
                f"a message of {len(message)} bytes, where the length prefix of {self.size} bytes "
                f"allows {most} at most"
            ) from None


@dataclass(frozen=True, slots=True)
class Lines:
    """After each message ``delimiter``, which no message may contain. Nothing else is taken off.

    What comes after the last delimiter is not a message: who was cut off in the middle of ``delete 123``
    may not have meant ``delete 1``.
    """

    delimiter: bytes = b"\n"

    def __post_init__(self) -> None:
        delimiter: object = self.delimiter
        if not isinstance(delimiter, bytes) or not delimiter:
            raise OptionError("delimiter", self.delimiter, "has to be bytes, at least one")

    async def read(self, stream: Stream, max_bytes: int) -> bytes | None:
        """See ``Framing``."""
        try:
            return await stream.receive_until(self.delimiter, max_bytes)
        except IncompleteRead:
            if await _has_ended(stream):
                return None
            raise

    def frame(self, message: bytes) -> bytes:
        """See ``Framing``. Raises ``ValueError`` if the peer would see more than one message."""
        if self.delimiter in message:
            raise ValueError(f"a message that contains the delimiter {self.delimiter!r}: {message[:100]!r}")
        return message + self.delimiter


@dataclass(frozen=True, slots=True)
class OctetCounted:
    """Before each message, its length in decimal digits and a space (RFC 6587, section 3.4.1).

    No message is empty: the RFC's lengths do not begin with a zero.
    """

    async def read(self, stream: Stream, max_bytes: int) -> bytes | None:
        """See ``Framing``."""
        try:
            head = await self._head(stream, len(str(max_bytes)))
        except EndOfStream:
            return None
        if not head.endswith(b" ") or head.startswith((b"0", b" ")):
            raise FramingError(f"{head!r} where the length of a frame should be")
        length = int(head)
        if length > max_bytes:
            raise FramingError(f"a frame of {length} bytes, where at most {max_bytes} are taken")
        frame = await stream.receive_exactly(len(head) + length)
        return frame[len(head) :]

    async def _head(self, stream: Stream, most_digits: int) -> bytes:
        """The length and the byte behind it, not yet taken from the stream."""
        size = 1
        while (head := await stream.peek(size))[-1:].isdigit() and size <= most_digits:
            size += 1
        return head

    def frame(self, message: bytes) -> bytes:
        """See ``Framing``. Raises ``ValueError`` if it is empty."""
        if not message:
            raise ValueError("an empty message, which cannot be octet-counted")
        return b"%d %b" % (len(message), message)


@dataclass(frozen=True, slots=True)
class SyslogFrames:
    """Either of the two framings of syslog over TCP (RFC 6587, section 3.4), frame by frame.

    A frame that begins with a digit is octet-counted, any other one ends with a line feed.
    """

    async def read(self, stream: Stream, max_bytes: int) -> bytes | None:
        """See ``Framing``."""
        try:
            first = await stream.peek(1)
        except EndOfStream:
            return None
        framing = OctetCounted() if first.isdigit() else Lines()
        return await framing.read(stream, max_bytes)

    def frame(self, message: bytes) -> bytes:
        """See ``Framing``: octet-counted."""
        return OctetCounted().frame(message)


async def _has_ended(stream: Stream) -> bool:
    """After ``IncompleteRead``: whether the peer had not sent a byte of the next frame."""
    try:
        await stream.receive(1)
    except EndOfStream:
        return True
    return False


class Responder:
    """A handler for servers of both kinds, made of one function: ``respond(request) -> reply``.

    Give the same one to a ``Server`` and to a ``DatagramServer``. On a stream, requests are read one
    after the other as ``framing`` tells them apart, and answered in their order until the peer has sent
    all it will; the next one is read when the one before is answered. A datagram is one request.

    ``respond`` takes bytes and returns bytes, or None for no reply. It may be async. A plain function
    runs in the event loop, where nothing else runs meanwhile: it has to be quick and may not block. What
    it raises is the handler's failure, which ends the connection, if there is one.

    ``max_request`` is the length in bytes of the longest request. What is longer, or no frame, ends the
    connection as the peer's fault. A datagram that is longer, or was cut off by the size of the server's
    buffer, is dropped.
    """

    __slots__ = ("_framing", "_max_request", "_respond")

    def __init__(self, respond: Respond, *, framing: Framing, max_request: int = 65_535) -> None:
        if not callable(respond):
            raise OptionError("respond", respond, "has to be a function that takes a request")
        if isinstance(framing, type) or not hasattr(framing, "read") or not hasattr(framing, "frame"):
            raise OptionError("framing", framing, "has to be a framing, for example Lines()")
        check_count("max_request", max_request, 1, "bytes", optional=False)
        self._respond = respond
        self._framing = framing
        self._max_request = max_request

    def __repr__(self) -> str:
        return f"<Responder {self._respond!r} framing={self._framing!r}>"

    async def __call__(self, channel: Stream | Datagram) -> None:
        """Serve a connection, or one datagram. Called by servers."""
        if isinstance(channel, Stream):
            await self._serve_stream(channel)
        else:
            await self._serve_datagram(channel)

    async def _serve_stream(self, stream: Stream) -> None:
        framing, max_request = self._framing, self._max_request
        while (request := await framing.read(stream, max_request)) is not None:
            reply = await self._reply_to(request)
            if reply is not None:
                await stream.send(framing.frame(reply))

    async def _serve_datagram(self, datagram: Datagram) -> None:
        if datagram.truncated or len(datagram.data) > self._max_request:
            return
        reply = await self._reply_to(datagram.data)
        if reply is not None:
            await datagram.reply(reply)

    async def _reply_to(self, request: bytes) -> bytes | None:
        reply: object = self._respond(request)
        if not isinstance(reply, bytes) and inspect.isawaitable(reply):
            reply = await reply
        if reply is None or isinstance(reply, bytes):
            return reply
        raise TypeError(f"{self._respond!r} has returned {type(reply).__name__}, not bytes or None")
