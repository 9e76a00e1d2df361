"""The blocks of Python in the pages that are no whole programs: handlers, options, calls; executed, too.

What a page takes as known (a handler, the configuration of a certificate) is given to them, and what would
begin to serve (``run()``, ``asyncio.run()``) makes the servers, which checks every argument, and does not
start them. Those of the tutorial are excerpts of its programs, with which its own tests compare them.
"""

from __future__ import annotations
import __future__

import asyncio
import contextlib
import socketserver
import ssl
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.protocol import Factory
from twisted.protocols.basic import LineReceiver
from twisted.protocols.policies import TimeoutMixin

import asyncserver
import compat
from asyncserver import testing
from tests.test_docs import DOCS, PYTHON, Block, blocks_of, page_name

TUTORIAL = DOCS / "tutorial"
FRAGMENTS = [block for block in PYTHON if block.kind == "python" and TUTORIAL not in block.page.parents]
PAGES = sorted({block.page for block in FRAGMENTS})


class StoreHandler(socketserver.StreamRequestHandler):
    """The handler class of the guide for programs on ``socketserver``."""


async def handler(stream: asyncserver.Stream) -> None:
    """What pages call their handler of connections."""


async def shout(datagram: asyncserver.Datagram) -> None:
    """What pages call their handler of packets."""


async def main() -> None:
    """What pages call their program."""


def respond(request: bytes) -> bytes:
    """What pages call their function."""
    return request


class Anything:
    """What another library has there."""

    def __getattr__(self, name: str) -> Callable[..., Anything]:
        return lambda *_, **__: self


def known() -> dict[str, Any]:
    """What readers have from elsewhere on the page, or from their own program."""
    names: dict[str, Any] = {"__name__": "__main__", "asyncio": asyncio, "ssl": ssl, "pytest": pytest}
    for package in asyncserver, testing:
        names.update((name, getattr(package, name)) for name in package.__all__)
    names.update(dict.fromkeys(("handler", "talk", "echo", "greet"), handler))
    names.update(shout=shout, main=main, respond=respond, compat=compat, StoreHandler=StoreHandler)
    names.update(responder=asyncserver.Responder(respond, framing=asyncserver.Lines()))
    names.update(asynccontextmanager=contextlib.asynccontextmanager, suppress=contextlib.suppress)
    names.update(tls=asyncserver.TLSConfig(certificate="cert.pem", private_key="key.pem"))
    names.update(LineReceiver=LineReceiver, TimeoutMixin=TimeoutMixin, Factory=Factory)
    names.update(endpoints=Anything(), reactor=Anything(), PubSub=Anything, notify_ready=print)
    return names


@pytest.fixture
def nothing_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    def making(kind: Callable[..., object]) -> Callable[..., None]:
        def make(*arguments: Any, **options: Any) -> None:
            for of_run in "loop", "drain_timeout", "drain_delay", "on_ready":
                options.pop(of_run, None)
            kind(*arguments, **options)

        return make

    def close(coroutine: Coroutine[Any, Any, object], **_: object) -> None:
        coroutine.close()

    monkeypatch.setattr(asyncserver, "run", making(asyncserver.Server))
    monkeypatch.setattr(asyncserver, "run_datagrams", making(asyncserver.DatagramServer))
    monkeypatch.setattr(asyncserver, "run_server", lambda *servers, **options: None)
    monkeypatch.setattr(asyncio, "run", close)
    monkeypatch.setattr(compat, "install", lambda: None)


def executed(block: Block) -> Any:
    source = "\n" * (block.line - 1) + block.text
    return compile(source, block.page, "exec", __future__.annotations.compiler_flag)


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_fragments_of_a_page_run(page: Path, nothing_begins: None) -> None:
    names = known()
    for block in blocks_of(page):
        if block.kind == "python":
            exec(executed(block), names)
