"""What every server script here shares: its options, the backlog, and the word that it listens."""

from __future__ import annotations

import argparse
import ssl
from typing import Literal

# Longer than any number of connections that the load opens at once.
BACKLOG = 1024


class Arguments(argparse.Namespace):
    """The options of a server script."""

    port: int
    loop: Literal["asyncio", "uvloop"]
    work: str
    tls: bool
    certificate: str
    key: str


def arguments(*, loops: tuple[str, ...] = ("asyncio",), works: tuple[str, ...] = ("echo",)) -> Arguments:
    """Parse the command line of a server that runs on `loops` and does `works`."""
    return parser(loops=loops, works=works).parse_args(namespace=Arguments())


def parser(
    *, loops: tuple[str, ...] = ("asyncio",), works: tuple[str, ...] = ("echo",)
) -> argparse.ArgumentParser:
    """Return the parser of `arguments()`, for a script that has options of its own."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--loop", choices=loops, default=loops[0])
    parser.add_argument("--work", choices=works, default=works[0])
    parser.add_argument("--tls", action="store_true")
    parser.add_argument("--certificate", default="", help="PEM file, with --tls")
    parser.add_argument("--key", default="", help="PEM file, with --tls")
    return parser


def tls_context(args: Arguments) -> ssl.SSLContext | None:
    """Return the context that `--tls` asks for."""
    if not args.tls:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(args.certificate, args.key)
    return context


def ready() -> None:
    """Tell the harness that connections can come."""
    print("ready", flush=True)
