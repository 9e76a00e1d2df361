"""Every kind of `socketserver` server, from the standard library or from compat, with the same handlers."""

from __future__ import annotations

import importlib
from typing import Any

from serving import BACKLOG, Arguments, parser, ready

NATIVE = ("legacy", "legacy-pool")

CLASSES = {
    "serial": "TCPServer",
    "threads": "ThreadingTCPServer",
    "pool": "ThreadingTCPServer",
    "fork": "ForkingTCPServer",
    "async": "TCPServer",
    "udp": "UDPServer",
    "udp-threads": "ThreadingUDPServer",
    "udp-pool": "ThreadingUDPServer",
    "udp-async": "UDPServer",
}

# What the standard library has none of.
OF_COMPAT = frozenset({*NATIVE, "pool", "async", "udp-pool", "udp-async"})


class KindArguments(Arguments):
    """The options of this script."""

    library: str
    kind: str
    max_threads: int
    no_settings: bool
    load: str


def kind_arguments(words: list[str] | None = None) -> KindArguments:
    """Parse the command line, or `words`; exits when the library does not have the kind."""
    options = parser(loops=("uvloop", "asyncio"))
    options.add_argument("--library", choices=("stdlib", "compat"), required=True)
    options.add_argument("--kind", choices=(*CLASSES, *NATIVE), required=True)
    options.add_argument("--max-threads", type=int, default=64, help="where the kind has a bound")
    options.add_argument("--no-settings", action="store_true", help="leave the listen queue as it is")
    options.add_argument("--load", default="", help="modules to import, by commas, and not to use")
    args = options.parse_args(words, namespace=KindArguments())
    if args.library == "stdlib" and args.kind in OF_COMPAT:
        options.error(f"the standard library has no {args.kind}")
    return args


def library_of(args: KindArguments) -> Any:
    """Import what `--library` names: the one line that a program changes."""
    return importlib.import_module("compat" if args.library == "compat" else "socketserver")


def handler_class(args: KindArguments) -> type:
    """Return the request handler, written the same for both libraries."""
    library = library_of(args)

    class Echo(library.BaseRequestHandler):  # type: ignore[misc, name-defined]
        """Writes back what comes in."""

        def handle(self) -> None:
            while data := self.request.recv(65536):
                self.request.sendall(data)

    class EchoDatagram(library.BaseRequestHandler):  # type: ignore[misc, name-defined]
        """Sends the datagram back."""

        def handle(self) -> None:
            data, sock = self.request
            sock.sendto(data, self.client_address)

    if args.kind == "async":
        return async_echo()
    if args.kind == "udp-async":
        return async_echo_datagram()
    return EchoDatagram if args.kind.startswith("udp") else Echo


def async_echo() -> type:
    """Return the handler of the last step of a migration."""
    import compat

    class Echo(compat.AsyncStreamRequestHandler):
        """Writes back what comes in."""

        async def handle(self) -> None:
            async for data in self.stream:
                await self.stream.send(data)

    return Echo


def async_echo_datagram() -> type:
    """Return the same for datagrams."""
    import compat

    class Echo(compat.AsyncDatagramRequestHandler):
        """Sends the datagram back."""

        async def handle(self) -> None:
            await self.reply(self.packet)

    return Echo


def server_class(args: KindArguments) -> type:
    """Return the class of the server, with what the options set and nothing else."""
    settings: dict[str, Any] = {}
    if not args.no_settings:
        settings |= {"request_queue_size": BACKLOG, "allow_reuse_address": True}
    if args.library == "compat":
        settings["event_loop"] = args.loop
    if args.kind in ("pool", "udp-pool"):
        settings["max_threads"] = args.max_threads
    return type("Server", (getattr(library_of(args), CLASSES[args.kind]),), settings)


def make_server(args: KindArguments) -> Any:
    """Return a server that listens."""
    return server_class(args)(("127.0.0.1", args.port), handler_class(args))


def run_native(args: KindArguments) -> None:
    """Serve with the same handler on the native server."""
    from asyncserver import Limits, SocketOptions, run
    from compat import legacy

    settings: dict[str, Any] = {}
    if not args.no_settings:
        settings = {"limits": Limits(max_connections=12_000), "options": SocketOptions(backlog=BACKLOG)}
    run(
        legacy(handler_class(args), "threads" if args.kind == "legacy" else f"pool:{args.max_threads}"),
        f"tcp://127.0.0.1:{args.port}",
        loop=args.loop,
        on_ready=lambda server: ready(),
        **settings,
    )


def main() -> None:
    """Serve until the process is ended."""
    args = kind_arguments()
    for name in filter(None, args.load.split(",")):
        importlib.import_module(name)
    if args.kind in NATIVE:
        run_native(args)
        return
    with make_server(args) as server:
        ready()
        server.serve_forever()


if __name__ == "__main__":
    main()
