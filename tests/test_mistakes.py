"""A walk through what people do wrong at first: each message says what is wrong, where, and what to do.

``docs/howto/troubleshooting.md`` quotes the messages of many of them, with ``...`` for what differs from
program to program; the section that does is named beside the mistake.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import logging
import os
import re
import shutil
import socket
import socketserver
import ssl
import sys
import tempfile
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import trustme

import compat
from asyncserver import (
    Datagram,
    DatagramHandler,
    DatagramLimits,
    DatagramServer,
    Limits,
    Server,
    Session,
    SessionHandler,
    SocketOptions,
    Stream,
    StreamHandler,
    Timeouts,
    TLSConfig,
    cli_commands,
    cli_process,
    current_connection,
    ip_sockets,
    run,
    run_datagrams,
    run_server,
    serve,
    sessions,
    tcp_sockets,
)
from asyncserver.testing import DatagramClient
from tests.certificates import authority
from tests.clients import Client
from tests.command_line import InProcess, commands_in_process
from tests.processes import run_python
from tests.waiting import wait_until

PAGE = Path(__file__).parent.parent / "docs/howto/troubleshooting.md"
HERE = re.escape(__file__)
TCP, UDP, TLS = "tcp://127.0.0.1:0", "udp://127.0.0.1:0", "tls+tcp://127.0.0.1:0"

# mypy: disable-error-code="arg-type, call-arg"


class Mistake(NamedTuple):
    """What is done, and parts of what is said about it: three patterns, in this order."""

    name: str
    make: Callable[[], object]
    what: str
    where: str
    remedy: str
    section: str = ""
    """The heading in the page, if the message is quoted there."""


def messages(mistake: Mistake) -> str:
    """What is said, with the notes that tracebacks show below it."""
    with pytest.raises(Exception) as caught:  # noqa: PT011 - which one is said by the parts of its message
        mistake.make()
    return "\n".join([str(caught.value), *getattr(caught.value, "__notes__", [])])


def check(mistake: Mistake | Command, said: str) -> None:
    for part in (mistake.what, mistake.where, mistake.remedy):
        assert re.search(part, said), f"{part!r} is not in {said!r}"
    if mistake.section:
        assert any(fits(quoted, said) for quoted in QUOTATIONS[mistake.section]), said


# --- the page ---


def quotations() -> dict[str, list[str]]:
    """The messages that the page quotes, in its code blocks that are indented, by their sections."""
    found: dict[str, list[str]] = {}
    for section in PAGE.read_text().split("\n## ")[1:]:
        heading, _, text = section.partition("\n")
        found[heading] = [line.strip() for line in text.splitlines() if line.startswith("    ")]
    return found


QUOTATIONS = quotations()


def fits(quoted: str, said: str) -> bool:
    pattern = ".*".join(map(re.escape, quoted.split("...")))
    return re.search(f"^(asyncserver: )?{pattern}$", said, re.MULTILINE) is not None


# --- what is given to a server ---


async def echo(stream: Stream) -> None:
    async for chunk in stream:
        await stream.send(chunk)


def plain(stream: Stream) -> None: ...


async def generator(stream: Stream) -> AsyncIterator[bytes]:
    yield b"hello"


async def reader_and_writer(reader: Any, writer: Any) -> None: ...


async def with_more(stream: Stream, database: Any) -> None: ...


async def no_argument() -> None: ...


async def takes_datagram(datagram: Datagram) -> None: ...


async def takes_session(session: Session) -> None: ...


class Service:
    async def serve(self, stream: Stream) -> None: ...


class Chat(StreamHandler):
    async def handle(self) -> None: ...


class PlainHandle(StreamHandler):
    def handle(self) -> None:  # type: ignore[override]
        ...


class OwnInit(StreamHandler):
    def __init__(self) -> None: ...

    async def handle(self) -> None: ...


class Packets(DatagramHandler):
    async def handle(self) -> None: ...


class OfSessions(SessionHandler):  # type: ignore[misc]
    async def handle(self) -> None: ...


class NoHandler:
    async def handle(self, stream: Stream) -> None: ...


class Old(socketserver.StreamRequestHandler):
    def handle(self) -> None: ...


class AsyncOld(compat.AsyncStreamRequestHandler):
    async def handle(self) -> None: ...


class HalfOld(socketserver.StreamRequestHandler):
    async def handle(self) -> None:  # type: ignore[override]
        ...


class Protocol(asyncio.Protocol): ...


def handler(given: Any, address: str = TCP) -> Callable[[], object]:
    return lambda: Server(given, address)


ASYNC = "is not async: write `async def`"
HANDLERS = [
    Mistake("sync", handler(plain), ASYNC, f"handler=.*{HERE}", "to_thread", "The handler is refused"),
    Mistake("lambda", handler(lambda stream: stream.send(b"")), "is a lambda", HERE, "write `async def`"),
    Mistake(
        "generator", handler(generator), "because of its `yield`", HERE, r"`await stream\.send\(\.\.\.\)`",
        "The handler is refused",
    ),
    Mistake(
        "two arguments", handler(reader_and_writer), r"it takes \(reader, writer\)", HERE,
        "one stream is both", "The handler is refused",
    ),
    Mistake("more arguments", handler(with_more), "one argument, the stream", HERE, r"partial\(.*database="),
    Mistake(
        "no argument", handler(no_argument), r"has to take one argument, .*; it takes \(\)", HERE, "stream",
    ),
    Mistake(
        "unbound method", handler(Service.serve), "one argument", HERE, r"instance, Service\(...\)\.serve",
    ),
    Mistake(
        "called", lambda: run(echo(None), TCP), "was called", "handler=", r"echo and not echo\(...\)",
        "The handler is refused",
    ),
    Mistake(
        "instance", handler(Chat.__new__(Chat)), "is an instance", "handler=", r"Chat and not Chat\(...\)",
        "The handler is refused",
    ),
    Mistake("made by hand", lambda: Chat(None), "is made by a server", "Chat", "give it the class"),
    Mistake("no StreamHandler", handler(NoHandler), "has to extend", HERE, r"asyncserver\.StreamHandler"),
    Mistake("sync method", handler(PlainHandle), "handle is not async", HERE, "`async def handle"),
    Mistake(
        "own __init__", handler(OwnInit), "called with one argument", HERE, r"super\(\).__init__\(stream\)",
    ),
    Mistake(
        "of socketserver", handler(Old), "class of socketserver", HERE, r"compat\.legacy\(Old\)",
        "The handler is refused",
    ),
    Mistake(
        "of socketserver, datagrams", lambda: DatagramServer(Old, UDP), "of socketserver", HERE, "leave it",
    ),
    Mistake("of compat, async", handler(AsyncOld), "for servers of compat", HERE, "extend .*StreamHandler"),
    Mistake(
        "protocol", handler(Protocol), "a protocol of asyncio", "handler=.*Protocol", r"handler\(stream\)",
    ),
    Mistake("text", handler("app:echo"), "is text", "handler='app:echo'", "asyncserver serve MODULE:NAME"),
    Mistake("address first", lambda: run(TCP, echo), "is an address", f"handler='{TCP}'", "first argument"),
    Mistake(
        "nothing", handler(None), "has to be", "handler=None", "an async function or a StreamHandler class",
    ),
    Mistake(
        "server", handler(Server(echo, TCP)), "is a server already", "handler=<Server", r"run_server\(\)",
    ),
    Mistake("datagram class", handler(Packets), "serves datagrams, not streams", HERE, r"run_datagrams\(\)"),
    Mistake(
        "datagram function", handler(takes_datagram), "takes a Datagram", HERE,
        r"give it to run_datagrams\(\)", "Streams and datagrams are mixed up",
    ),
    Mistake(
        "session function", handler(sessions(takes_session)), "@sessions", "handler=", r"run_datagrams\(\)",
    ),
    Mistake(
        "no @sessions", lambda: run_datagrams(takes_session, UDP), "takes a Session", HERE,
        r"mark it with @sessions, and give it to run_datagrams\(\)",
    ),
    Mistake(
        "session class", lambda: run_datagrams(OfSessions, UDP), "extends what @sessions makes", HERE,
        "write `async def`",
    ),
    Mistake(
        "marked class", lambda: sessions(OfSessions), "extends what @sessions makes", HERE, "`async def`",
    ),
    Mistake("stream class", lambda: run_datagrams(Chat, UDP), "serves streams", HERE, r"run\(\)"),
    Mistake(
        "stream function", lambda: run_datagrams(echo, UDP), "takes a Stream", HERE, r"give it to run\(\)",
        "Streams and datagrams are mixed up",
    ),
    Mistake("async legacy", lambda: compat.legacy(HalfOld), r"async handle\(\)", "HalfOld", "`def handle"),
    Mistake("native legacy", lambda: compat.legacy(Chat), "is async already", "Chat", r"asyncserver\.Server"),
    Mistake(
        "legacy in the loop", lambda: compat.legacy(Old, "serial"), "stop", "executor='serial'", "'threads'",
    ),
    Mistake("handler for a server", lambda: run_server(echo), "has to be a server", "echo", r"run\(\) takes"),
]  # fmt: skip


def address(text: Any) -> Callable[[], object]:
    return lambda: Server(echo, text)


ADDRESSES = [
    Mistake("none", lambda: run(echo), "give at least one", "addresses=", "'tcp://127.0.0.1:9999'"),
    Mistake(
        "no scheme", address("localhost:9999"), "scheme '': is missing", "in the address 'localhost:9999'",
        "did you mean tcp://localhost:9999", "The address is refused",
    ),
    Mistake("port alone", address("9999"), "is missing", "address '9999'", "did you mean tcp://:9999"),
    Mistake("colon and port", address(":9999"), "is missing", "address ':9999'", "did you mean tcp://:9999"),
    Mistake(
        "host alone", address("127.0.0.1"), "is missing, and the port", "address '127.0.0.1'",
        "tcp://127.0.0.1:9999", "The address is refused",
    ),
    Mistake("number", address(9999), "must be a string", "address 9999", "'tcp://127.0.0.1:9999'"),
    Mistake("pair", address(("::", 99)), "must be a string", r"\('::', 99\)", "tcp://:::99|tcp://"),
    Mistake("list", address([TCP]), "must be a string", r"\['tcp:", r"\*addresses"),
    Mistake("path object", address(Path("app.sock")), "must be a string", "PosixPath", "'unix:app.sock'"),
    Mistake(
        "http", address("http://127.0.0.1:80"), "is a protocol, not a transport", "scheme 'http'",
        "did you mean tcp://", "The address is refused",
    ),
    Mistake("misspelt scheme", address("tpc://:1"), "must be tcp, unix", "scheme 'tpc'", "did you mean tcp"),
    Mistake("tls", address("tls://:1"), "is not a transport", "scheme 'tls'", r"did you mean tls\+tcp://"),
    Mistake("no port", address("tcp://127.0.0.1"), "is missing", "port ''", "0 lets the kernel choose"),
    Mistake("port too large", address("tcp://127.0.0.1:70000"), "0 to 65535", "port 70000", "in the address"),
    Mistake("no brackets", address("tcp://::1:80"), "IPv6", "host '::1:80'", r"\[::1\]:9999"),
    Mistake("no slashes", address("tcp:127.0.0.1:80"), "two slashes", "host '127", "tcp://127.0.0.1:9999"),
    Mistake("slash at the end", address("tcp://:80/"), "has none", "path '/'", "leave it out"),
    Mistake("bare path", address("/run/app.sock"), "is missing", "address '/run", "unix:///run/app.sock"),
    Mistake("bare name", address("app.sock"), "is missing", "address 'app", "unix:app.sock"),
    Mistake(
        "long path", address(f"unix:///tmp/{'x' * 120}.sock"), "has 130 bytes, and the kernel takes",
        "path '/tmp", "take a shorter one", "The address is refused",
    ),
    Mistake("directory", address("unix:/tmp/"), "names a directory", "path '/tmp/'", "name a file in it"),
    Mistake("unknown option", address("tcp://:1?reuseport=1"), "unknown", "reuseport", "mean reuse_port"),
    Mistake(
        "udp", address(UDP), "scheme 'udp': is for datagrams", "'udp'", r"run_datagrams\(\)",
        "Streams and datagrams are mixed up",
    ),
    Mistake("tcp", lambda: run_datagrams(takes_datagram, TCP), "is for streams", "'tcp'", r"run\(\)"),
]  # fmt: skip


async def ends_with_yield(server: Server) -> AsyncIterator[None]:
    yield


async def hook(*given: Any) -> None: ...


def given(**options: Any) -> Callable[[], object]:
    return lambda: run(echo, TCP, **options)


OPTIONS = [
    Mistake(
        "dict", given(limits={"max_connections": 5}), "has to be a Limits", "limits=",
        r"write Limits\(max_connections=5\)", "An option is refused",
    ),
    Mistake("number", given(timeouts=30), "has to be a Timeouts", "timeouts=30", r"Timeouts\(idle=30\)"),
    Mistake("class", given(limits=Limits), "has to be a Limits", "limits=", r"write Limits\(\)"),
    Mistake(
        "wrong kind", given(limits=DatagramLimits()), "has to be a Limits", "limits=", r"Limits\(\.\.\.\)",
    ),
    Mistake(
        "misspelt field", lambda: Limits(max_connexions=5), "has no argument 'max_connexions'", "Limits",
        "did you mean max_connections", "An option is refused",
    ),
    Mistake(
        "other field", lambda: Timeouts(timeout=5), "no argument 'timeout'", "Timeouts", "it has handshake",
    ),
    Mistake("by position", lambda: Limits(5), "by name", "Limits", r"Limits\(max_connections=5\)"),
    Mistake(
        "field of another", given(max_connections=5), "has no argument 'max_connections'", r"run\(\)",
        r"write limits=Limits\(max_connections=...\)", "An option is refused",
    ),
    Mistake("misspelt argument", given(timeout=5), "has no argument 'timeout'", r"run\(\)", "mean timeouts"),
    Mistake("host and port", given(host="::", port=1), "no argument 'host'", r"run\(\)", "is an address"),
    Mistake("ssl", given(ssl=True), "no argument 'ssl'", r"run\(\)", r"tls=TLSConfig\("),
    Mistake(
        "misspelt of run", lambda: run(echo, TCP, drain_timout=5), "no argument 'drain_timout'", r"run\(\)",
        "did you mean drain_timeout",
    ),
    Mistake(
        "unknown to run", lambda: run_datagrams(takes_datagram, UDP, reply=5), "no argument 'reply'",
        r"run_datagrams\(\)", "it has limits, timeouts, options, lifespan, on_error, loop, drain_timeout",
    ),
    Mistake(
        "field in server", lambda: Server(echo, TCP, idle=5), "no argument 'idle'", "^Server",
        r"write timeouts=Timeouts\(idle=...\)",
    ),
    Mistake("of run", lambda: Server(echo, TCP, loop="auto"), "no argument 'loop'", "Server", r"run\(\)"),
    Mistake(
        "unknown to update", lambda: Server(echo, TCP).update(idel=5), "not a field", "idel=5", "mean idle",
    ),
    Mistake("negative", lambda: Timeouts(idle=-1), "more than zero", "idle=-1", "None means no limit"),
    Mistake("zero", lambda: Timeouts(idle=0), "more than zero", "idle=0", "None means no limit"),
    Mistake("nan", lambda: Timeouts(idle=float("nan")), "more than zero", "idle=nan", "None means no limit"),
    Mistake("inf", lambda: Timeouts(idle=float("inf")), "more than zero", "idle=inf", "None means no limit"),
    Mistake("text", lambda: Timeouts(idle="30"), "number of seconds", "idle='30'", "None for no limit"),
    Mistake("bool", lambda: Timeouts(idle=True), "number of seconds", "idle=True", "None for no limit"),
    Mistake(
        "fraction", lambda: Limits(max_connections=1.5), "whole number", "max_connections=1.5", "or None",
    ),
    Mistake("no connection", lambda: Limits(max_connections=0), "at least 1", "max_connections=0", "or None"),
    Mistake(
        "choice", lambda: Limits(when_full="drop"), "has to be", "when_full='drop'", "'wait' or 'reject'",
    ),
    Mistake("backlog", lambda: SocketOptions(backlog=0), "must be", "backlog=0", "1 to 65535"),
    Mistake(
        "negative drain", given(drain_timeout=-1), "zero or more", "drain_timeout=-1", "None means no limit",
    ),
    Mistake("loop", given(loop="trio"), "has to be", "loop='trio'", "'auto', 'uvloop' or 'asyncio'"),
    Mistake("async on_error", given(on_error=hook), "plain function", "on_error=", "not an async one"),
    Mistake("async on_ready", given(on_ready=hook), "plain function", "on_ready=", "not an async one"),
    Mistake(
        "no decorator", given(lifespan=ends_with_yield), "does not return an async context manager",
        "lifespan=", "@contextlib.asynccontextmanager", "An option is refused",
    ),
    Mistake(
        "no tls", lambda: Server(echo, TLS), f"is needed for {re.escape(TLS)}", "tls=None", r"TLSConfig\(",
        "Certificates and keys",
    ),
    Mistake(
        "lifespan without the server", given(lifespan=contextlib.asynccontextmanager(no_argument)),
        "has to take one argument", "lifespan=", "the server",
    ),
    Mistake("tls path", given(tls="a.pem"), "has to be a TLSConfig", "tls='a.pem'", "certificate='a.pem'"),
    Mistake("tls class", given(tls=TLSConfig), "has to be a TLSConfig", "tls=", "private_key='key.pem'"),
]  # fmt: skip


@pytest.mark.parametrize("mistake", HANDLERS + ADDRESSES + OPTIONS, ids=lambda mistake: mistake.name)
def test_what_is_refused_at_once(mistake: Mistake) -> None:
    check(mistake, messages(mistake))


# --- what the machine refuses, and what is done at the wrong time ---


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory: with a file, a live server's socket, certificates and handlers."""
    files, others = authority().server("localhost"), authority().issue("localhost")
    for name, source in {
        "cert.pem": files.certificate,
        "key.pem": files.private_key,
        "other.pem": others.private_key,
        "secret.pem": files.encrypted_key("secret"),
    }.items():
        (tmp_path / name).write_bytes(source.read_bytes())
    (tmp_path / "notes.txt").write_text("notes\n")
    (tmp_path / "app.py").write_text(APP)
    (tmp_path / "lacking.py").write_text("import no_such_package\n")
    (tmp_path / "wrong.py").write_text("from asyncserver import Timeouts\n\nTimeouts(idle=-1)\n")
    (tmp_path / "syntax.py").write_text("async def echo(stream)\n    pass\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


async def started(*addresses: str, **options: Any) -> None:
    async with Server(echo, *addresses, **options):
        raise AssertionError("it has started")


def start(*addresses: str, **options: Any) -> Callable[[], object]:
    return lambda: asyncio.run(started(*addresses, **options))


def with_certificates(**files: str) -> Callable[[], object]:
    return start(TLS, tls=TLSConfig(certificate="cert.pem", **files))


def in_use() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        start(f"tcp://127.0.0.1:{taken.getsockname()[1]}")()


def live_socket() -> None:
    with socket.socket(socket.AF_UNIX) as taken:
        taken.bind("live.sock")
        taken.listen()
        start("unix:live.sock")()


async def started_twice() -> None:
    async with Server(echo, TCP) as server:
        await server.start()


async def not_started() -> None:
    await Server(echo, TCP).drain()


async def run_in_a_loop() -> None:
    run(echo, TCP)


async def run_server_in_a_loop() -> None:
    run_server(Server(echo, TCP))


def left_behind() -> None:
    server = Server(echo, TCP)
    asyncio.run(server.start())
    try:
        asyncio.run(server.start())
    finally:
        asyncio.run(server.aclose())


def of_another_loop(method: str) -> None:
    server = Server(echo, TCP)
    with (
        contextlib.closing(asyncio.new_event_loop()) as first,
        contextlib.closing(asyncio.new_event_loop()) as other,
    ):
        first.run_until_complete(server.start())
        try:
            other.run_until_complete(getattr(server, method)())
        finally:
            first.run_until_complete(server.aclose())


def coroutine(function: Callable[[], Awaitable[object]]) -> Callable[[], object]:
    return lambda: asyncio.run(function())  # type: ignore[arg-type]


@contextlib.contextmanager
def plain_context(server: Server) -> Iterator[None]:
    yield


STARTS = [
    Mistake(
        "port in use", in_use, "is in use, by another program or by this one",
        r"cannot listen on tcp://127\.", "choose another port, or see who has it: `", "The port is in use",
    ),
    Mistake(
        "another machine's", start("tcp://192.0.2.1:9"), "is not an address of this machine",
        "tcp://192.0.2.1:9", "tcp://:9 listens on all that it has", "The server does not start",
    ),
    Mistake(
        "unknown host", start("tcp://no-such-host.invalid:9"),
        "the host name no-such-host.invalid is not known", "cannot listen on tcp://no",
        "check how it is written", "The server does not start",
    ),
    Mistake(
        "no directory", start("unix:no/app.sock"), "the directory .*/no does not exist", "unix:no/app.sock",
        "create it", "The server does not start",
    ),
    Mistake(
        "file", start("unix:notes.txt"), "there is a regular file", "unix:notes.txt", "choose another path",
    ),
    Mistake(
        "live socket", live_socket, "another server has a socket open at this path", "unix:live.sock",
        "choose another path, or see who has it: `ss -lxp`", "The port is in use",
    ),
    Mistake(
        "no certificate", start(TLS, tls=TLSConfig(certificate="no.pem")), "no such file", "'no.pem'",
        "check",
    ),
    Mistake(
        "no key", with_certificates(), "no private key in this file", "certificate 'cert.pem'",
        "name its file with private_key", "Certificates and keys",
    ),
    Mistake(
        "another's key", with_certificates(private_key="other.pem"), "does not belong to", "'other.pem'",
        "take the key", "Certificates and keys",
    ),
    Mistake(
        "encrypted key", with_certificates(private_key="secret.pem"), "encrypted", "'secret.pem'",
        "set password",
    ),
    Mistake(
        "certificate for key", with_certificates(private_key="cert.pem"), "no private key", "'cert.pem'",
        "which",
    ),
    Mistake(
        "lifespan", start(TCP, lifespan=plain_context), "has returned a _GeneratorContextManager",
        "the lifespan", "@contextlib.asynccontextmanager",
    ),
    Mistake(
        "twice", coroutine(started_twice), "is serving already", "the server",
        r"after `await server.aclose\(\)`", "A call does not fit",
    ),
    Mistake(
        "not started", coroutine(not_started), "not been started", "the server", r"await server.start\(\)",
    ),
    Mistake(
        "run in a loop", coroutine(run_in_a_loop), "one is running in this thread already", r"run\(\)",
        r"`await serve\(handler, \*addresses\)`", "A call does not fit",
    ),
    Mistake(
        "run_server in a loop", coroutine(run_server_in_a_loop), "one is running", r"run_server\(\)",
        r"`await server.serve\(\)`",
    ),
    Mistake(
        "left behind", left_behind, "serving already, in an event loop that has ended", "server",
        "in one loop",
    ),
    *(
        Mistake(f"other loop: {method}", partial(of_another_loop, method), "another event loop", method, "by")
        for method in ("aclose", "drain", "wait_closed")
    ),
]  # fmt: skip


@pytest.mark.parametrize("mistake", STARTS, ids=lambda mistake: mistake.name)
def test_what_is_refused_at_the_start(mistake: Mistake, directory: Path) -> None:
    check(mistake, messages(mistake))


@contextlib.contextmanager
def as_nobody() -> Iterator[None]:
    """Without root's privileges, to whom no file is closed."""
    if os.geteuid() != 0:
        yield
        return
    try:
        os.seteuid(65_534)
    except OSError as error:
        pytest.skip(f"cannot give up root's privileges: {error}")
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.fixture
def open_directory() -> Iterator[Path]:
    """pytest's own temporary directories are closed to other users."""
    with tempfile.TemporaryDirectory() as path:
        os.chmod(path, 0o755)
        yield Path(path)


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="file permissions of POSIX")
def test_what_this_user_may_not_do(open_directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = authority().server("localhost")
    certificate = shutil.copy(files.certificate, open_directory / "cert.pem")
    key = shutil.copy(files.private_key, open_directory / "key.pem")
    key.chmod(0)
    config = TLSConfig(certificate=certificate, private_key=key)
    with as_nobody():
        unreadable = Mistake(
            "key", config.create_context, "permission denied", "private_key '.*/key.pem'",
            r"let the server's user read it", "A file cannot be read",
        )  # fmt: skip
        check(unreadable, messages(unreadable))
        path = f"unix://{open_directory}/app.sock"
        closed = Mistake(
            "directory", start(path), "may not create files", re.escape(path), str(open_directory)
        )
        check(closed, messages(closed))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the remedies are those of Linux")
def test_privileged_port(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(tcp_sockets, "_open_one", refuse)
    monkeypatch.setattr(ip_sockets, "_unprivileged_start", lambda: 1024)
    mistake = Mistake(
        "port 80", start("tcp://127.0.0.1:80"), "port 80 is below 1024 and takes a privilege", "tcp://127.0.0.1:80",
        "take a port from 1024 on", "The port takes a privilege",
    )  # fmt: skip
    check(mistake, messages(mistake))


def test_certificate_that_has_expired(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    ca = trustme.CA()
    leaf = ca.issue_cert(
        "localhost", not_before=datetime(2001, 1, 1, tzinfo=UTC), not_after=datetime(2001, 2, 1, tzinfo=UTC)
    )
    path = tmp_path / "old.pem"
    path.write_bytes(leaf.private_key_and_cert_chain_pem.bytes())
    TLSConfig(certificate=path).create_context()
    mistake = Mistake(
        "expired", list, "expired on Feb  1", "old.pem", "renew it", "Clients refuse the certificate"
    )
    check(mistake, caplog.messages[0])
    caplog.clear()
    TLSConfig(certificate=authority().server().combined).create_context()
    assert not caplog.messages


TLS_CONTEXT = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)


def test_there_is_no_connection_outside_of_handlers() -> None:
    with pytest.raises(LookupError, match="no handler of a Server is running here"):
        current_connection()


async def test_tls_without_an_address_for_it(caplog: pytest.LogCaptureFixture) -> None:
    """It is no error: handlers may call ``start_tls()``."""
    caplog.set_level(logging.INFO, "asyncserver")
    async with Server(echo, TCP, tls=TLS_CONTEXT):
        pass
    mistake = Mistake(
        "plain", list, r"no address begins with tls\+", "plain text", r"start_tls\(\)", "TLS is not spoken"
    )
    check(mistake, caplog.messages[0])


# --- what goes wrong in handlers ---


async def sends_text(stream: Stream) -> None:
    await stream.send("hello")  # type: ignore[arg-type]


async def sends_number(stream: Stream) -> None:
    await stream.send(5)  # type: ignore[arg-type]


async def sends_one_of_many(stream: Stream) -> None:
    await stream.send_many(b"hello")  # type: ignore[arg-type]


async def text_delimiter(stream: Stream) -> None:
    await stream.receive_until("\n", 100)  # type: ignore[arg-type]


async def loops_over_lines(stream: Stream) -> None:
    for _ in stream.lines():  # type: ignore[attr-defined]
        pass


async def loops_over_stream(stream: Stream) -> None:
    for _ in stream:  # type: ignore[attr-defined]
        pass


async def awaits_lines(stream: Stream) -> None:
    await stream.lines()  # type: ignore[misc]


async def sends_what_it_has_not_received(stream: Stream) -> None:
    data = stream.receive()
    await stream.send(data)  # type: ignore[arg-type]


async def as_in_asyncio(stream: Stream) -> None:
    stream.write(b"x")  # type: ignore[attr-defined]


async def as_with_sockets(stream: Stream) -> None:
    stream.recv(100)  # type: ignore[attr-defined]


async def as_for_packets(stream: Any) -> None:
    await stream.reply(b"x")


IN_HANDLERS = [
    (sends_text, r"send\(\) takes bytes, not str", r"text\.encode\(\)", "The handler fails"),
    (sends_number, r"send\(\) takes bytes, not int", "make bytes of it", ""),
    (sends_one_of_many, r"send_many\(\) takes bytes, not int", "make bytes of it", ""),
    (text_delimiter, "delimiter has to be bytes, not str", r"text\.encode\(\)", ""),
    (loops_over_lines, "'LineIterator' object is not iterable", "`async for line in", "The handler fails"),
    (loops_over_stream, "'Stream' object is not iterable", "`async for chunk in stream`", ""),
    (as_in_asyncio, "'Stream' object has no attribute 'write'", r"write `await stream\.send\(data\)`", ""),
    (as_with_sockets, "'Stream' object has no attribute 'recv'", r"write `await stream\.receive\(\)`", ""),
    (awaits_lines, "LineIterator", r"`async for line in stream\.lines\(\)`", ""),
]


async def failure_of(handler: Any) -> Exception:
    """What the server tells the error hook about the handler."""
    failures: list[Exception] = []
    async with Server(handler, TCP, on_error=lambda _, error: failures.append(error)) as server:
        async with await Client.connect(server) as client:
            await client.send(b"hello\n")
            await wait_until(lambda: failures)
    return failures.pop()


@pytest.mark.parametrize(("handler", "what", "remedy", "section"), IN_HANDLERS)
async def test_what_fails_in_a_handler(handler: Any, what: str, remedy: str, section: str) -> None:
    said = "".join(traceback.format_exception(await failure_of(handler)))
    check(
        Mistake(handler.__name__, list, what, f'{HERE}", line .*, in {handler.__name__}', remedy, section),
        said,
    )


async def replies_text(datagram: Datagram) -> None:
    await datagram.reply("hello")  # type: ignore[arg-type]


async def reads_packets(stream: Any) -> None:
    async for _ in stream:
        pass


async def sends_packets(stream: Any) -> None:
    await stream.send(b"x")


@pytest.mark.parametrize(
    ("handler", "what", "remedy"),
    [
        (replies_text, r"reply\(\) takes bytes, not str", r"text\.encode\(\)"),
        (reads_packets, "got Datagram", "mark the handler with @sessions"),
        (sends_packets, "'Datagram' object has no attribute 'send'", r"data, and reply\(\)"),
    ],
)
async def test_what_fails_in_a_handler_of_packets(handler: Any, what: str, remedy: str) -> None:
    failures: list[Exception] = []
    async with DatagramServer(handler, UDP, on_error=lambda _, error: failures.append(error)) as server:
        async with await DatagramClient.connect(server) as client:
            await client.send(b"hello")
            await wait_until(lambda: failures)
    said = "".join(traceback.format_exception(failures.pop()))
    check(Mistake(handler.__name__, list, what, f'{HERE}", line .*, in {handler.__name__}', remedy), said)


# --- a forgotten await ---


async def forgets_to_send(stream: Stream) -> None:
    stream.send(b"lost")  # type: ignore[unused-coroutine]
    await stream.send(b"sent")


async def forgets_to_receive(stream: Stream) -> None:
    stream.receive()  # type: ignore[unused-coroutine]
    await stream.send(await stream.receive())


@pytest.mark.parametrize(
    ("handler", "method", "answer"),
    [(forgets_to_send, "Stream.send", b"sent"), (forgets_to_receive, "Stream.receive", b"hello")],
)
async def test_forgotten_await_in_a_handler(handler: Any, method: str, answer: bytes) -> None:
    """Python says so, and names the line; what had come is not lost."""
    never_awaited = f"coroutine '{method}' was never awaited"
    with pytest.warns(RuntimeWarning, match=never_awaited) as warned:  # noqa: PT031
        async with Server(handler, TCP) as server, await Client.connect(server) as client:
            await client.send(b"hello")
            client.half_close()
            assert await client.receive_all() == answer
    assert [warning.filename for warning in warned] == [__file__]
    quoted = QUOTATIONS["An await is missing"]
    assert any(fits(each, f"RuntimeWarning: {warned[0].message}") for each in quoted)


async def test_forgotten_await_of_what_is_sent(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL, "asyncserver")  # A record would hold the coroutine.
    never_awaited = r"coroutine 'Stream\.receive' was never awaited"
    with pytest.warns(RuntimeWarning, match=never_awaited):  # noqa: PT031
        failure = await failure_of(sends_what_it_has_not_received)
        said = str(failure)
        del failure
        gc.collect()
    check(
        Mistake(
            "", list, r"send\(\) takes bytes, not coroutine", "", "an `await` missing", "An await is missing"
        ),
        said,
    )


async def test_forgotten_await_of_a_server() -> None:
    with pytest.warns(RuntimeWarning, match=r"coroutine '.*\.start' was never awaited"):
        Server(echo, TCP).start()  # type: ignore[unused-coroutine]
    with pytest.warns(RuntimeWarning, match="coroutine 'serve' was never awaited"):
        serve(echo, TCP)  # type: ignore[unused-coroutine]


# --- the command line ---

APP = """
import socketserver
from asyncserver import Datagram, DatagramHandler, Server, StreamHandler

async def echo(stream):
    async for chunk in stream:
        await stream.send(chunk)

def plain(stream):
    pass

async def two(reader, writer):
    pass

async def packets(datagram: Datagram):
    pass

class Packets(DatagramHandler):
    async def handle(self):
        pass

class Old(socketserver.StreamRequestHandler):
    pass

number = 7
"""


class Command(NamedTuple):
    """The arguments of ``asyncserver``, how it ends, and what it says."""

    arguments: str
    status: int
    what: str
    where: str
    remedy: str
    section: str = ""


COMMANDS = [
    # the command
    Command(
        "app:echo tcp://:1", 2, "No such command 'app:echo'", "", "did you mean asyncserver serve app:echo",
    ),
    Command("serve", 2, "Missing argument", "'HANDLER'", "Try 'asyncserver serve --help'"),
    Command("serve app:echo", 2, "give at least one", "ADDRESS", "tcp://127.0.0.1:9999"),
    Command("serve tcp://:1 app:echo", 2, "is an address", "HANDLER: 'tcp://:1'", "the handler comes first"),
    # the handler
    Command(
        "serve ap:echo {}", 2, "there is no module 'ap'", "HANDLER: 'ap:echo'", "did you mean app",
        "The module is not found",
    ),
    Command(
        "serve nowhere_at_all:echo {}", 2, "no module 'nowhere_at_all'", "HANDLER", "--app-dir says where",
    ),
    Command("serve app.echo {}", 2, "there is no module 'app.echo'", "HANDLER", "did you mean app:echo"),
    Command("serve ap.py:echo {}", 2, "there is no file .*/ap.py", "HANDLER", "did you mean app.py"),
    Command("serve app/echo {}", 2, "there is no file .*/app/echo", "HANDLER", "did you mean app.py:echo"),
    Command("serve none/app.py:echo {}", 2, "there is no file", "HANDLER", "no directory .*/none"),
    Command("serve app {}", 2, "say what in it is to serve", "HANDLER: 'app'", "app:echo, app:packets"),
    Command("serve app:eco {}", 2, "app has no 'eco'", "HANDLER: 'app:eco'", "did you mean 'echo'"),
    Command(
        "serve app:echo() {}", 2, "has to be module:name", "HANDLER: 'app:echo", "leave the brackets out",
    ),
    Command(
        "serve app:number {}", 2, "has to be", "HANDLER: 'app:number'",
        "an async function or a StreamHandler",
    ),
    Command(
        "serve app:plain {}", 2, ASYNC, r"'app:plain' .*app\.py:\d+\)", "to_thread",
        "The handler is refused",
    ),
    Command(
        "serve app:two {}", 2, "one argument", r"HANDLER: 'app:two' .*app\.py:\d+\)", "one stream is both",
    ),
    Command("serve app:Old {}", 2, "class of socketserver", "HANDLER: 'app:Old'", r"compat\.legacy\(Old\)"),
    Command(
        "serve app:packets {}", 2, "takes a Datagram", "HANDLER: 'app:packets'",
        "streams: give it an address such as udp://",
    ),
    Command("serve app:Packets {}", 2, "serves datagrams", "HANDLER: 'app:Packets'", "such as udp://127"),
    # what the module raises
    Command(
        "serve lacking:echo {}", 1, "No module named 'no_such_package'",
        r"lacking\.py:1: import no_such_package", "install it for", "The module is not found",
    ),
    Command(
        "serve wrong:echo {}", 1, "idle=-1: has to be more than zero", r"wrong\.py:3: ",
        "None means no limit",
    ),
    Command(
        "serve syntax:echo {}", 1, "SyntaxError: expected ':'", r'syntax\.py", line 1',
        r"async def echo\(stream\)",
    ),
    # addresses
    Command(
        "serve app:echo localhost:9999", 2, "is missing", "ADDRESS.*'localhost:9999'",
        "tcp://localhost:9999",
    ),
    Command(
        "serve app:echo 127.0.0.1 9999", 2, "is missing, and the port", "ADDRESS", "tcp://127.0.0.1:9999",
    ),
    Command("serve app:echo http://:80", 2, "is a protocol", "ADDRESS.*'http://:80'", "did you mean tcp://"),
    Command(
        "serve app:echo tcp://:70000", 2, "0 to 65535", "ADDRESS.*port 70000", "0 lets the kernel choose",
    ),
    Command(f"serve app:echo unix:{'x' * 120}", 2, "has 120 bytes", "ADDRESS", "take a shorter one"),
    Command("serve app:echo tls+tcp://:1", 2, "needs --tls-cert", r"'tls\+tcp://:1'", "--tls-key"),
    # options
    Command(
        "serve app:echo {} --max-conections 5", 2, "No such option '--max-conections'", "",
        "mean --max-connections", "An option is refused",
    ),
    Command("serve app:echo {} --port 80", 2, "No such option '--port'", "", "such as tcp://127.0.0.1:9999"),
    Command("serve app:echo {} --workers 4", 2, "No such option '--workers'", "", "--reuse-port"),
    Command(
        "serve app:echo {} --idle-timeout -5", 2, "'-5' is not a duration", "--idle-timeout",
        "write 30, 1.5",
    ),
    Command(
        "serve app:echo {} --grace none", 2, "has to be a number of seconds", "--grace: none",
        "zero does not",
    ),
    Command(
        "serve app:echo {} --max-connections 1.5", 2, "is not a whole", "--max-connections: '1.5'", "number",
    ),
    Command("serve app:echo {} --tls-key key.pem", 2, "needs", "--tls-key", "--tls-cert"),
    Command(
        "serve app:echo udp://:1 --idle-timeout 3", 2, "has no meaning", "--idle-timeout",
        "it is for streams",
    ),
    # what the machine refuses
    Command(
        "serve app:echo tcp://192.0.2.1:9", 1, "is not an address of this machine", "tcp://192",
        "listens on all",
    ),
    Command("serve app:echo unix:no/app.sock", 1, "does not exist", "unix:no/app.sock", "create it"),
    Command(
        "serve app:echo {} --tls-cert cert.pem", 1, "no private key", "--tls-cert 'cert.pem'",
        "with --tls-key",
    ),
    Command(
        "serve app:echo {} --tls-cert cert.pem --tls-key secret.pem", 1, "there is no password",
        "--tls-key 'secret.pem'", "give --tls-key-password-file", "Certificates and keys",
    ),
]  # fmt: skip


@pytest.fixture
def command(
    directory: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Iterator[InProcess]:
    """Runs a command in the process of the test; also one that fails at the start of its server."""
    with commands_in_process(directory, monkeypatch, capfd) as run_command:
        monkeypatch.setattr(cli_commands, "run_plan", cli_process.run_plan)
        yield run_command


def result_of(mistake: Command, command: InProcess) -> tuple[int, str, str]:
    address = TLS if "--tls-cert" in mistake.arguments else TCP
    return command(*mistake.arguments.format(address).split())


@pytest.mark.parametrize("mistake", COMMANDS, ids=lambda mistake: mistake.arguments[:60])
def test_what_the_command_line_refuses(mistake: Command, command: InProcess) -> None:
    status, stdout, said = result_of(mistake, command)
    assert (status, stdout) == (mistake.status, "")
    assert said.startswith("asyncserver: ")
    assert "Traceback" not in said
    check(mistake, said)


def test_port_in_use_on_the_command_line(command: InProcess) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        status, _, said = command("serve", "app:echo", f"tcp://127.0.0.1:{taken.getsockname()[1]}")
    assert status == 1
    assert "Traceback" not in said
    check(
        Command("", 1, "is in use, by another", "tcp://127", "choose another port", "The port is in use"),
        said,
    )


def test_processes_say_the_same(directory: Path) -> None:
    """One of each command, with all that a process of its own has."""
    status, _, said = run_python(directory, "-m", "asyncserver", "serve", "ap:echo", TCP)
    assert (status, len(said.splitlines())) == (2, 2)
    check(Command("", 2, "there is no module 'ap'", "HANDLER: 'ap:echo'", "did you mean app"), said)
    status, _, said = run_python(directory, "-m", "compat", "--exector", "fork", "app.py")
    assert (status, len(said.splitlines())) == (2, 2)
    check(Command("", 2, "unknown option: --exector", "python -m compat: ", "did you mean --executor"), said)


# --- the page as a whole ---


# The sections whose messages are made by tests of their own, and how many there are in each.
ELSEWHERE = {
    "The port takes a privilege": 1,
    "A file cannot be read": 1,
    "Clients refuse the certificate": 1,
    "TLS is not spoken": 1,
    "The handler fails": 3,
    "An await is missing": 3,
}


def test_every_quotation_is_what_is_said(command: InProcess) -> None:
    """The other way round is a part of each test."""
    said: dict[str, list[str]] = {section: [] for section in QUOTATIONS}
    for mistake in (each for each in [*HANDLERS, *ADDRESSES, *OPTIONS, *STARTS] if each.section):
        said[mistake.section].append(messages(mistake))
    for each in (each for each in COMMANDS if each.section):
        said[each.section].append(result_of(each, command)[2])
    for section, quoted in QUOTATIONS.items():
        if section in ELSEWHERE:
            assert len(quoted) == ELSEWHERE[section]
        for line in () if section in ELSEWHERE else quoted:
            assert any(fits(line, text) for text in said[section]), line
