"""asyncserver, with handlers as its users write them."""

from __future__ import annotations

from serving import BACKLOG, Arguments, arguments, ready

from asyncserver import Limits, SocketOptions, Stream, TLSConfig, run


async def echo(stream: Stream) -> None:
    async for data in stream:
        await stream.send(data)


async def echo_lines(stream: Stream) -> None:
    async for line in stream.lines():
        await stream.send(line + b"\n")


def main(args: Arguments) -> None:
    run(
        echo if args.work == "echo" else echo_lines,
        f"{'tls+tcp' if args.tls else 'tcp'}://127.0.0.1:{args.port}",
        loop=args.loop,
        on_ready=lambda server: ready(),
        tls=TLSConfig(certificate=args.certificate, private_key=args.key) if args.tls else None,
        # Room for the ten thousand idle connections, beside the one that was there before them.
        limits=Limits(max_connections=12_000),
        options=SocketOptions(backlog=BACKLOG),
    )


if __name__ == "__main__":
    main(arguments(loops=("uvloop", "asyncio"), works=("echo", "lines")))
