"""asyncserver's DatagramServer, with handlers as its users write them.

On the wildcard address, so that each datagram is one whose own address has to be learned from the kernel, and
told to it again for the reply.
"""

from __future__ import annotations

from datagrams import talk
from serving import Arguments, parser, ready

from asyncserver import Datagram, DatagramLimits, Session, run_datagrams, sessions


class DatagramArguments(Arguments):
    """The options of this script."""

    sessions: bool


async def echo(datagram: Datagram) -> None:
    await datagram.reply(datagram.data)


@sessions
async def echo_session(session: Session) -> None:
    async for datagram in session:
        await session.send(datagram.data)


def main(args: DatagramArguments) -> None:
    if args.work == "sessions":
        handler = sessions(talk)
    else:
        handler = echo_session if args.sessions else echo
    run_datagrams(
        handler,
        f"udp://0.0.0.0:{args.port}",
        loop=args.loop,
        on_ready=lambda server: ready(),
        # Room for the fifty thousand sessions, beside those before and after them.
        limits=DatagramLimits(max_sessions=60_000),
    )


if __name__ == "__main__":
    options = parser(loops=("uvloop", "asyncio"), works=("echo", "sessions"))
    options.add_argument("--sessions", action="store_true", help="a handler for each session")
    main(options.parse_args(namespace=DatagramArguments()))
