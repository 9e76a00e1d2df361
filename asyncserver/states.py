"""The states a connection goes through and the reasons for which it ends."""

from __future__ import annotations

from enum import StrEnum

__all__ = ["CloseReason", "ConnectionState"]


class ConnectionState(StrEnum):
    """Where a connection is in its life; it only ever moves downwards in this list.

    The exception is the pair ``active`` and ``idle``, between which it moves with each message.
    """

    NEW = "new"
    """Accepted; nothing has been read."""
    HANDSHAKE = "handshake"
    """The TLS handshake is under way."""
    ACTIVE = "active"
    """The handler runs, or bytes are on their way."""
    IDLE = "idle"
    """The handler waits for the peer, and nothing that the peer sent is left over."""
    DRAINING = "draining"
    """Told to end: the server drains, or the handler is done and the last bytes are going out."""
    CLOSED = "closed"
    """The socket is closed."""

    # Equal to its text, so hashed like it. (Enum's own is a Python function, called for every count.)
    __hash__ = str.__hash__


class CloseReason(StrEnum):
    """Why a connection ended; every connection ends with exactly one."""

    EOF = "eof"
    """The peer closed its side and the handler returned after that."""
    RESET = "reset"
    """The peer reset the connection, or it broke on the way."""
    PROTOCOL_ERROR = "protocol_error"
    """The peer sent something too long for what the handler was reading (``DelimiterNotFound``)."""
    HANDLER_RETURNED = "handler_returned"
    """The handler returned while the peer was still there."""
    HANDLER_ERROR = "handler_error"
    """The handler raised."""
    HANDLER_CANCELLED = "handler_cancelled"
    """The handler's task was cancelled by the program itself."""
    REFUSED = "refused"
    """``verify`` said no."""
    LIMIT = "limit"
    """A limit was reached and the connection rejected."""
    HANDSHAKE_FAILED = "handshake_failed"
    """The TLS handshake failed: plain text, a scanner, no common version, no acceptable certificate."""
    HANDSHAKE_TIMEOUT = "handshake_timeout"
    """The TLS handshake took longer than ``Timeouts.handshake``."""
    FIRST_BYTE_TIMEOUT = "first_byte_timeout"
    """No byte came within ``Timeouts.first_byte``."""
    IDLE_TIMEOUT = "idle_timeout"
    """No byte moved for ``Timeouts.idle`` while the handler was waiting for one."""
    SEND_TIMEOUT = "send_timeout"
    """The peer took no byte for ``Timeouts.send`` while some were waiting for it."""
    HANDLER_TIMEOUT = "handler_timeout"
    """The handler ran longer than ``Timeouts.handler``."""
    LIFETIME = "lifetime"
    """The connection was older than ``Timeouts.lifetime``."""
    DRAINED = "drained"
    """The server was draining and the connection ended in peace."""
    CANCELLED = "cancelled"
    """The server was closing and the handler had to be cancelled."""
    ABORTED = "aborted"
    """The connection was aborted: by ``abort()``, or because the handler outlasted its cancellation."""
    CLOSED_BY_SERVER = "closed_by_server"
    """The program closed this one with ``Connection.close()``."""

    __hash__ = str.__hash__
