"""Whose fault is an exception that a handler did not catch: the peer's, or the program's?"""

from __future__ import annotations

import asyncio
from typing import cast

from anyio import BrokenResourceError, ClosedResourceError, DelimiterNotFound, EndOfStream, IncompleteRead

from asyncserver.channel import Channel
from asyncserver.errors import ConnectionTimeoutError, FramingError, TLSUpgradeError
from asyncserver.states import CloseReason

__all__ = ["blame", "follows_from_the_end"]


def blame(exc: BaseException, channel: Channel) -> CloseReason | None:
    """The reason that a peer gave for the end of ``channel`` by which ``exc`` was raised.

    None when it was not the peer: handlers need not catch what peers do to them, but an exception of
    the same class from somewhere else (a database connection, say) is an error of the handler.
    """
    if isinstance(exc, BaseExceptionGroup):
        group = cast("BaseExceptionGroup[BaseException]", exc)
        reasons = [blame(part, channel) for part in group.exceptions]
        return None if None in reasons else reasons[0]
    if isinstance(exc, (EndOfStream, IncompleteRead)) and channel.input_over:
        return CloseReason.EOF
    if isinstance(exc, TLSUpgradeError):
        return CloseReason.HANDSHAKE_FAILED if channel.closed else None
    if isinstance(exc, BrokenResourceError) and channel.broken:
        return CloseReason.RESET
    if (isinstance(exc, DelimiterNotFound) and channel.overrun) or isinstance(exc, FramingError):
        return CloseReason.PROTOCOL_ERROR
    if isinstance(exc, ConnectionTimeoutError):
        return _OF_DEADLINES.get(exc.deadline)
    return None


def follows_from_the_end(exc: BaseException) -> bool:
    """Whether ``exc`` is what a handler gets from a connection that the server has ended meanwhile."""
    if isinstance(exc, BaseExceptionGroup):
        group = cast("BaseExceptionGroup[BaseException]", exc)
        return all(map(follows_from_the_end, group.exceptions))
    return isinstance(exc, _OF_STREAMS)


_OF_STREAMS = (
    EndOfStream,
    IncompleteRead,
    BrokenResourceError,
    ClosedResourceError,
    ConnectionTimeoutError,
    asyncio.CancelledError,
)

_OF_DEADLINES = {
    "handshake": CloseReason.HANDSHAKE_TIMEOUT,
    "first_byte": CloseReason.FIRST_BYTE_TIMEOUT,
    "idle": CloseReason.IDLE_TIMEOUT,
    "send": CloseReason.SEND_TIMEOUT,
}
