"""A chat over Unix datagrams: what one sends, all the others get.

Run it, from the repository's directory, and try it from several terminals::

    python docs/examples/unix_chat.py 'unixgram:chat.sock?mode=666'
    socat - "UNIX-SENDTO:$PWD/chat.sock,bind=ann.sock"

Each client binds a socket file of its own, which is where the others' messages are sent to, and whose name is
the client's name. The first packet joins, ``/quit`` leaves; who has vanished or does not read is left out.
(socat drops what comes from another name than it sends to, and the server's is the whole path. A message is a
packet and needs no line end: socat shows one right behind the other.)
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import PurePath

import anyio

from asyncserver import (
    DatagramTimeouts,
    PeerUnreachableError,
    SendTimeoutError,
    Session,
    SessionEnd,
    UnboundPeerError,
    UnixEndpoint,
    run_datagrams,
    sessions,
)

PATIENCE = DatagramTimeouts(send=0.5, session_idle=3_600)
"""Unix datagrams are not lost, they wait for the receiver: for half a second here.

For clients that have connected their socket, and not just bound it, Linux keeps as much as there is room for
in the server's send buffer: there, one who does not read is noticed late, and at the expense of the others.
"""


class Room:
    """Everybody who is there."""

    def __init__(self) -> None:
        self.members: set[Session] = set()

    async def say(self, text: str, sender: Session) -> None:
        """Tell all others at the same time, so that they do not wait for one who does not read."""
        others = self.members - {sender}
        await asyncio.gather(*(self.tell(member, text) for member in others))

    async def tell(self, member: Session, text: str) -> None:
        """Send it to one member; who is not there any more leaves."""
        try:
            await member.send(text.encode())
        except (PeerUnreachableError, SendTimeoutError, anyio.ClosedResourceError):
            self.members.discard(member)
            await member.aclose()  # The end of its `async for` in chat().


ROOM = Room()


@sessions
async def chat(session: Session) -> None:
    """Serve one member, from the first packet to the last."""
    name = name_of(session)
    try:
        await session.send(f"* hello {name}, {len(ROOM.members)} others are here".encode())
    except UnboundPeerError:
        return  # Nobody can tell who that is, nor answer.
    ROOM.members.add(session)
    try:
        await ROOM.say(f"* {name} is here", session)
        async for datagram in session:
            text = printable(datagram.data)
            if text == "/quit":
                break
            if text:
                await ROOM.say(f"{name}: {text}", session)
    finally:
        ROOM.members.discard(session)
    if session.close_reason is SessionEnd.DRAINED:
        await ROOM.tell(session, "* the server is closing, goodbye")
    else:
        await ROOM.say(f"* {name} has left", session)


def name_of(session: Session) -> str:
    """The file's name without directory and extension."""
    assert isinstance(session.peer, UnixEndpoint)
    return printable(PurePath(session.peer.path).stem.encode(errors="replace"))


def printable(data: bytes) -> str:
    """The packet as text, without what could play tricks on the others' terminals."""
    return "".join(filter(str.isprintable, data.decode(errors="replace"))).strip()


def main(*addresses: str) -> None:
    """Serve until a signal comes."""
    run_datagrams(
        chat,
        *(addresses or ("unixgram:chat.sock?mode=666",)),
        timeouts=PATIENCE,
        on_ready=lambda server: print("listening on", *server.addresses, flush=True),
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
