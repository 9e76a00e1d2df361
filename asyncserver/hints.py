"""What to write instead: for handlers that ask a stream or a packet for what other libraries' have."""

from __future__ import annotations

from asyncserver.datagram import Datagram
from asyncserver.session import Session
from asyncserver.stream import Stream

__all__ = ["add_hint"]

_IS_A_STREAM = "this is a stream: packets come to run_datagrams(), serve_datagrams() and DatagramServer"
_IS_A_DATAGRAM = "this is one packet: it has data, and reply()"
_IS_NO_SESSION = f"{_IS_A_DATAGRAM}; for all packets of a peer mark the handler with @sessions"

_INSTEAD: dict[type, dict[str, str]] = {
    Stream: {
        **dict.fromkeys(("read", "recv"), "write `await stream.receive()`"),
        **dict.fromkeys(("write", "sendall"), "write `await stream.send(data)`"),
        "readline": "write `async for line in stream.lines()`, or `await stream.receive_until(...)`",
        "readuntil": "write `await stream.receive_until(delimiter, max_bytes)`",
        "readexactly": "write `await stream.receive_exactly(count)`",
        "writelines": "write `await stream.send_many(buffers)`",
        "write_eof": "write `await stream.send_eof()`",
        "drain": "leave it out: `await stream.send(data)` waits for the peer",
        "close": "leave it out: the server does that after the handler, `stream.aclose()` at once",
        "get_extra_info": "the stream has peer, local, ssl_object and peer_certificate",
        "makefile": "code that blocks has `async with stream.blocking_socket()`, and compat.legacy()",
        **dict.fromkeys(("data", "reply"), _IS_A_STREAM),
    },
    Datagram: dict.fromkeys(("send", "receive", "lines", "receive_until", "receive_exactly"), _IS_NO_SESSION),
    Session: {"reply": "write `await session.send(data)`", "data": "write `async for datagram in session`"},
}


def add_hint(exc: BaseException) -> None:
    """Add a note to what a handler has raised, if it is known what is to be written instead."""
    if isinstance(exc, AttributeError):
        tables = [_INSTEAD[each] for each in type(exc.obj).__mro__ if each in _INSTEAD]
        hint = tables[0].get(exc.name or "") if tables else None
    else:
        hint = _of_type_error(str(exc)) if isinstance(exc, TypeError) else None
    if hint:
        exc.add_note(hint)


def _of_type_error(text: str) -> str | None:
    """By what Python says; its words differ a little from version to version."""
    if text.endswith("got Datagram"):
        return _IS_NO_SESSION
    if "LineIterator" in text and ("await" in text or "not iterable" in text):
        return "write `async for line in stream.lines()`"
    if "'Stream' object is not iterable" in text:
        return "write `async for chunk in stream`"
    return None
