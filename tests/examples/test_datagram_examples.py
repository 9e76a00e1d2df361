from __future__ import annotations

import asyncio
import functools
import logging
import logging.handlers
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, closing, suppress
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

import dns.edns
import dns.exception
import dns.flags
import dns.message
import dns.query
import dns.rcode
import dns.rdatatype
import ntplib
import pytest

from asyncserver import (
    BindError,
    DatagramLimits,
    DatagramServer,
    DatagramTimeouts,
    Server,
    TCPAddress,
    UDPAddress,
)
from tests.clients import Client, complaints
from tests.examples.programs import load, program, run_tool
from tests.waiting import MS, PATIENCE, wait_until, within

T = TypeVar("T")

UDP, TCP = "udp://127.0.0.1:0", "tcp://127.0.0.1:0"


def needs(command: str, package: str) -> pytest.MarkDecorator:
    """For clients that are not everywhere; ``.ci/run`` installs them."""
    reason = f"no {command} here: apt-get install {package}"
    return pytest.mark.skipif(shutil.which(command) is None, reason=reason)


needs_logger = needs("logger", "bsdutils")
needs_dig = needs("dig", "bind9-dnsutils")
needs_socat = needs("socat", "socat")


@pytest.fixture
def directory() -> Iterator[Path]:
    """With a path short enough for any platform; no socket may be left there."""
    with tempfile.TemporaryDirectory(prefix="packets-") as path:
        yield Path(path)
        assert [each.name for each in Path(path).iterdir() if not each.name.startswith("client")] == []


async def in_thread(function: Callable[..., T], *arguments: Any, **options: Any) -> T:
    """Call what blocks, beside the running loop."""
    return await within(asyncio.to_thread(function, *arguments, **options), what=repr(function))


def udp_port(server: DatagramServer) -> int:
    address = server.addresses[0]
    assert isinstance(address, UDPAddress)
    return address.port


def tcp_port(server: Server) -> int:
    address = server.addresses[0]
    assert isinstance(address, TCPAddress)
    return address.port


class PacketClient:
    """A plain socket that sends to one address; with ``path`` it has that name."""

    def __init__(self, target: Any, path: Path | None = None) -> None:
        family = socket.AF_INET if isinstance(target, tuple) else socket.AF_UNIX
        self.target = target
        self.sock = socket.socket(family, socket.SOCK_DGRAM)
        self.sock.setblocking(False)
        if path is not None:
            self.sock.bind(str(path))

    def __enter__(self) -> PacketClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.sock.close()

    async def send(self, data: bytes) -> None:
        """Send it; on Unix, when the server has room for it."""
        await wait_until(lambda: self._has_sent(data), what="room for a packet")

    def _has_sent(self, data: bytes) -> bool:
        try:
            self.sock.sendto(data, self.target)
        except BlockingIOError:
            return False
        return True

    async def receive(self) -> bytes:
        return await within(asyncio.get_running_loop().sock_recv(self.sock, 65_536), what="a packet")

    async def hears_nothing(self) -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(50 * MS):
                await asyncio.get_running_loop().sock_recv(self.sock, 65_536)


# syslog_receiver.py


class Receiving:
    """Both servers of the example, and what they have written."""

    def __init__(self, lines: list[str], packets: DatagramServer, streams: Server, path: str) -> None:
        self.lines = lines
        self.packets = packets
        self.streams = streams
        self.path = path

    @property
    def udp(self) -> str:
        return str(udp_port(self.packets))

    @property
    def tcp(self) -> str:
        return str(tcp_port(self.streams))

    async def line(self) -> str:
        """The next line."""
        await wait_until(lambda: self.lines, what="a line")
        return self.lines.pop(0)


@pytest.fixture
def syslog() -> ModuleType:
    return load("syslog_receiver")


@pytest.fixture
async def receiving(syslog: ModuleType, directory: Path) -> AsyncIterator[Receiving]:
    lines: list[str] = []
    receiver = syslog.SyslogReceiver(lines.append)
    path = str(directory / "log")
    limits = DatagramLimits(max_packet_size=syslog.MOST)
    async with DatagramServer(receiver.packet, UDP, f"unixgram:{path}", limits=limits) as packets:
        async with Server(receiver.stream, TCP) as streams:
            yield Receiving(lines, packets, streams, path)
        assert packets.statistics().failed == 0
    assert lines == []


NOW = "2023-11-14T22:13:20.000+00:00"


@pytest.mark.parametrize(
    ("data", "line"),
    [
        # RFC 5424, section 6.5
        (
            b"<34>1 2003-10-11T22:14:15.003Z host.example su - ID47 - \xef\xbb\xbf'su root' failed on pts/8",
            "2003-10-11T22:14:15.003Z host.example su[-] auth.crit: 'su root' failed on pts/8",
        ),
        (
            b"<165>1 2003-08-24T05:14:15.000003-07:00 192.0.2.1 myproc 8710 - - %% It's time",
            "2003-08-24T05:14:15.000003-07:00 192.0.2.1 myproc[8710] local4.notice: %% It's time",
        ),
        (
            rb'<165>1 2003-10-11T22:14:15Z host log - ID47 [a@1 iut="3" from="App\"lic\]ation"][b] An event',
            "2003-10-11T22:14:15Z host log[-] local4.notice: An event",
        ),
        (
            b"<165>1 2003-10-11T22:14:15.003Z host log - ID47 [only@32473]",
            "2003-10-11T22:14:15.003Z host log[-] local4.notice: ",
        ),
        (b"<14>1 - - - - - - all unknown", f"{NOW} peer -[-] user.info: all unknown"),
        # RFC 3164, section 5.4
        (
            b"<34>Oct 11 22:14:15 mymachine su: 'su root' failed for lonvick on /dev/pts/8",
            f"{NOW} mymachine su[-] auth.crit: 'su root' failed for lonvick on /dev/pts/8",
        ),
        (b"<13>Oct  1 22:14:15 cron[12]: at home", f"{NOW} peer cron[12] user.notice: at home"),
        (b"Use the BFG!", f"{NOW} peer -[-] user.notice: Use the BFG!"),
        # What is sent in practice.
        (b"<14>from Python: a line\0", f"{NOW} peer -[-] user.info: from Python: a line"),
        (b"<191>last\n", f"{NOW} peer -[-] local7.debug: last"),
        (b"<192>no such facility", f"{NOW} peer -[-] user.notice: <192>no such facility"),
        (b"", f"{NOW} peer -[-] user.notice: "),
        (b"<13>", f"{NOW} peer -[-] user.notice: "),
        (b"<13>one\n<13>two\x1b[31m\xff", f"{NOW} peer -[-] user.notice: one\\x0a<13>two\\x1b[31m\ufffd"),
    ],
)
def test_messages_are_understood(syslog: ModuleType, data: bytes, line: str) -> None:
    assert str(syslog.parse(data, "peer", 1_700_000_000.0)) == line


async def test_no_packet_is_too_strange(receiving: Receiving) -> None:
    rng = random.Random(4)
    pieces = [
        b"<",
        b"13",
        b">",
        b"1 ",
        b"- ",
        b"[",
        b"]",
        b'"',
        b"\\",
        b"Oct 11 22:14:15 ",
        b":",
        b"\xff",
        b"\0",
        b"\n",
    ]
    with PacketClient(("127.0.0.1", int(receiving.udp))) as client:
        for _ in range(300):
            await client.send(b"".join(rng.choices(pieces, k=rng.randrange(30))))
            assert "\n" not in await receiving.line()


@needs_logger
@pytest.mark.parametrize(
    ("options", "host", "pid"),
    [
        (["--udp"], r"\S+", r"-|\d+"),
        (["--udp", "--rfc3164"], r"\S+", r"-|\d+"),
        (["--udp", "--rfc5424=notq", "--id=77"], r"\S+", "77"),
        (["--tcp"], r"\S+", r"-|\d+"),
        (["--tcp", "--octet-count"], r"\S+", r"-|\d+"),
        (["--tcp", "--octet-count", "--rfc3164"], r"\S+", r"-|\d+"),
        (["--socket"], "localhost", r"\d+"),
        (["--socket", "--rfc5424"], r"\S+", r"\d+"),
    ],
    ids=" ".join,
)  # fmt: skip
async def test_logger(receiving: Receiving, options: list[str], host: str, pid: str) -> None:
    kind, *others = options
    port = receiving.tcp if kind == "--tcp" else receiving.udp
    where = (
        ["--socket", receiving.path]
        if kind == "--socket"
        else [kind, "--server", "127.0.0.1", "--port", port]
    )
    text = "two  words: grüße"
    await run_tool("logger", *where, *others, "--tag", "me", "--priority", "local3.warning", text)
    line = await receiving.line()
    expected = rf"\S+T\S+ (?:{host}) me\[(?:{pid})\] local3\.warning: {text}"
    assert re.fullmatch(expected, line), line


@needs_logger
@pytest.mark.parametrize("options", [["--tcp"], ["--tcp", "--octet-count"]], ids=" ".join)
async def test_logger_with_many_messages_on_one_connection(receiving: Receiving, options: list[str]) -> None:
    text = "".join(f"message {number}\n" for number in range(200))
    await run_tool("logger", *options, "--server", "127.0.0.1", "--port", receiving.tcp, send=text.encode())
    for number in range(200):
        assert (await receiving.line()).endswith(f": message {number}")


@pytest.mark.parametrize("kind", ["udp", "tcp", "unixgram"])
async def test_handler_of_the_standard_library(receiving: Receiving, kind: str) -> None:
    def log() -> None:
        handler = handler_for(receiving, kind)
        with closing(handler):
            for number in range(3):
                record = logging.LogRecord("app", logging.WARNING, "", 0, "number %d", (number,), None)
                handler.handle(record)

    await in_thread(log)
    for number in range(3):
        line = await receiving.line()
        assert line.endswith(f" local0.warning: number {number}"), line


def handler_for(receiving: Receiving, kind: str) -> logging.handlers.SysLogHandler:
    make = functools.partial(logging.handlers.SysLogHandler, facility="local0")
    if kind == "udp":
        return make(("127.0.0.1", int(receiving.udp)))
    if kind == "unixgram":
        return make(receiving.path)
    handler = make(("127.0.0.1", int(receiving.tcp)), socktype=socket.SOCK_STREAM)
    handler.append_nul = False
    handler.setFormatter(logging.Formatter("%(message)s\n"))
    return handler


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells who sent a packet")
async def test_a_sender_cannot_lie_about_its_process(receiving: Receiving) -> None:
    with PacketClient(receiving.path) as client:
        await client.send(b"<13>Oct 11 22:14:15 init[1]: trust me")
        assert f" init[{os.getpid()}] " in await receiving.line()


async def test_long_messages(receiving: Receiving, syslog: ModuleType) -> None:
    with PacketClient(("127.0.0.1", int(receiving.udp))) as client:
        await client.send(b"<13>" + b"x" * 20_000)
        assert (await receiving.line()).count("x") == syslog.MOST - len("<13>")
    async with await Client.connect(receiving.streams) as stream:
        await stream.send(b"<13>short\n<13>" + b"x" * 20_000)
        assert (await receiving.line()).endswith(" short")
        assert await stream.ended() in ("eof", "reset")


def test_syslog_receiver_as_a_program(directory: Path) -> None:
    arguments = UDP, TCP, f"unixgram:{directory}/log?mode=666"
    with program("docs/examples/syslog_receiver.py", *arguments) as running:
        udp, tcp = running.read_until(r"listening on udp://127.0.0.1:(\d+) .*tcp://127.0.0.1:(\d+)").groups()
        for kind, where in (socket.SOCK_DGRAM, udp), (socket.SOCK_STREAM, tcp):
            with socket.socket(socket.AF_INET, kind) as client:
                client.connect(("127.0.0.1", int(where)))
                client.sendall(b"<13>hello %d\n" % kind)
            running.read_until(rf"127\.0\.0\.1 -\[-\] user\.notice: hello {int(kind)}\n")
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as client:
            client.sendto(b"<13>hello path", f"{directory}/log")
        running.read_until(r"localhost -\[\S+\] user\.notice: hello path\n")
        assert running.stop() == -signal.SIGTERM


# dns_responder.py


class Resolving:
    """Both servers of the example on one port."""

    def __init__(self, packets: DatagramServer, streams: Server) -> None:
        self.packets = packets
        self.streams = streams
        self.port = udp_port(packets)

    async def ask(
        self, name: str, kind: str, query: Callable[..., Any] = dns.query.udp, **options: Any
    ) -> dns.message.Message:
        question = dns.message.make_query(name, kind, **options)
        response = await in_thread(query, question, "127.0.0.1", port=self.port, timeout=PATIENCE)
        assert response.flags & dns.flags.QR
        assert isinstance(response, dns.message.Message)
        return response


@pytest.fixture
def name_server() -> ModuleType:
    return load("dns_responder")


@asynccontextmanager
async def on_one_port(name_server: ModuleType) -> AsyncIterator[Resolving]:
    for attempt in range(10):
        async with Server(name_server.over_tcp, TCP) as streams:
            try:
                packets = DatagramServer(name_server.over_udp, f"udp://127.0.0.1:{tcp_port(streams)}")
                async with packets:
                    yield Resolving(packets, streams)
                    assert packets.statistics().failed == 0
                    return
            except BindError:  # Somebody else has that port for packets.
                if attempt == 9:
                    raise


@pytest.fixture
async def resolving(name_server: ModuleType, caplog: pytest.LogCaptureFixture) -> AsyncIterator[Resolving]:
    async with on_one_port(name_server) as both:
        yield both
    assert not complaints(caplog)


def texts(response: dns.message.Message) -> list[list[str]]:
    """What was answered, sorted: the order of records means nothing, and dnspython shuffles them."""
    return [sorted(map(str, records)) for records in response.answer]


BOTH = pytest.mark.parametrize("query", [dns.query.udp, dns.query.tcp])


@BOTH
async def test_answers(resolving: Resolving, query: Any) -> None:
    response = await resolving.ask("www.example", "A", query)
    assert texts(response) == [["192.0.2.1", "192.0.2.2"]]
    assert response.rcode() == dns.rcode.NOERROR
    assert response.flags & dns.flags.AA
    assert texts(await resolving.ask("WWW.eXample", "TXT", query)) == [['"hello"']]


@BOTH
@pytest.mark.parametrize(
    ("name", "kind", "rcode", "has_soa"),
    [
        ("nobody.example", "A", dns.rcode.NXDOMAIN, True),
        ("under.www.example", "A", dns.rcode.NXDOMAIN, True),
        ("www.example", "AAAA", dns.rcode.NOERROR, True),
        ("example", "A", dns.rcode.NOERROR, True),
        ("deep.example", "A", dns.rcode.NOERROR, True),
        ("www.example.com", "A", dns.rcode.REFUSED, False),
    ],
)
async def test_no_answers(
    resolving: Resolving, query: Any, name: str, kind: str, rcode: dns.rcode.Rcode, has_soa: bool
) -> None:
    response = await resolving.ask(name, kind, query)
    assert (response.answer, response.rcode()) == ([], rcode)
    assert [each.rdtype for each in response.authority] == [dns.rdatatype.SOA] * has_soa


@pytest.mark.parametrize(
    ("name", "options", "is_cut"),
    [
        ("medium.example", {"use_edns": False}, True),
        ("medium.example", {"payload": 512}, True),
        ("medium.example", {"payload": 100}, True),
        ("medium.example", {"payload": 1_232}, False),
        ("medium.example", {"payload": 4_096}, False),
        ("long.example", {"payload": 4_096}, True),
    ],
)
async def test_what_does_not_fit_is_asked_for_again(
    resolving: Resolving, name: str, options: dict[str, Any], is_cut: bool
) -> None:
    options = {"use_edns": 0, **options}
    response = await resolving.ask(name, "TXT", dns.query.udp, **options)
    assert bool(response.flags & dns.flags.TC) == is_cut
    assert bool(response.answer) != is_cut
    assert len(response.to_wire()) <= min(max(options.get("payload", 512), 512), 1_232)

    over_tcp = await resolving.ask(name, "TXT", dns.query.tcp, **options)
    assert not over_tcp.flags & dns.flags.TC
    both, used_tcp = await in_thread(
        dns.query.udp_with_fallback,
        dns.message.make_query(name, "TXT", **options),
        "127.0.0.1",
        port=resolving.port,
        timeout=PATIENCE,
    )
    assert used_tcp == is_cut
    assert texts(both) == texts(over_tcp) != []


@BOTH
@pytest.mark.parametrize(
    ("change", "rcode"),
    [
        (lambda query: query.question.clear(), dns.rcode.FORMERR),
        (lambda query: query.question.append(query.question[0]), dns.rcode.FORMERR),
        (lambda query: query.set_opcode(dns.opcode.STATUS), dns.rcode.NOTIMP),
        (lambda query: query.set_opcode(dns.opcode.NOTIFY), dns.rcode.NOTIMP),
        (lambda query: query.use_edns(1), dns.rcode.BADVERS),
    ],
)
async def test_unusual_queries(
    resolving: Resolving, query: Any, change: Callable[[dns.message.Message], None], rcode: dns.rcode.Rcode
) -> None:
    question = dns.message.make_query("www.example", "A")
    change(question)
    response = await in_thread(query, question, "127.0.0.1", port=resolving.port, timeout=PATIENCE)
    assert response.rcode() == rcode


async def test_several_queries_on_one_connection(resolving: Resolving) -> None:
    queries = [dns.message.make_query("www.example", kind) for kind in ("A", "TXT", "AAAA") * 10]
    async with await Client.connect(resolving.streams) as client:
        await client.send(b"".join(query.to_wire(prepend_length=True) for query in queries))
        for query in queries:
            size = int.from_bytes(await client.receive_exactly(2))
            assert dns.message.from_wire(await client.receive_exactly(size)).id == query.id


async def test_garbage(resolving: Resolving) -> None:
    with PacketClient(("127.0.0.1", resolving.port)) as client:
        await client.send(b"\x12\x34\x01\x00\x00\x01\0\0\0\0\0\0garbage")
        response = dns.message.from_wire(await client.receive())
        assert (response.id, response.rcode()) == (0x1234, dns.rcode.FORMERR)
        assert response.flags & dns.flags.RD
        # Too short for a header; and a reply, which nobody answers.
        await client.send(b"\x12\x34\x01\x00\x00\x01\0\0\0\0\0")
        await client.send(dns.message.make_response(dns.message.make_query("www.example", "A")).to_wire())
        await client.hears_nothing()


async def test_no_query_is_too_strange(resolving: Resolving) -> None:
    rng = random.Random(4)
    good = dns.message.make_query("www.example", "TXT", payload=600, want_dnssec=True, pad=128).to_wire()
    with PacketClient(("127.0.0.1", resolving.port)) as client:
        for number in range(500):
            query = bytearray(good[: rng.randrange(13, len(good) + 1)])
            for _ in range(rng.randrange(8)):
                query[rng.randrange(4, len(query))] = rng.randrange(256)
            query[0:3] = number.to_bytes(2) + b"\0"
            await client.send(query)
            response = await client.receive()
            assert response[:2] == query[:2]
            assert response[2] & 0x80


@needs_dig
async def test_dig(resolving: Resolving) -> None:
    dig = functools.partial(run_tool, "dig", "@127.0.0.1", "-p", str(resolving.port), "+tries=1")
    assert sorted((await dig("+short", "www.example", "A")).split()) == ["192.0.2.1", "192.0.2.2"]
    assert await dig("+short", "+tcp", "www.example", "TXT") == '"hello"\n'
    assert "status: NXDOMAIN" in await dig("nobody.example", "A")
    cut = await dig("+ignore", "long.example", "TXT")
    assert re.search(r"flags: [a-z ]*\btc\b", cut)
    whole = await dig("long.example", "TXT")
    assert "Truncated, retrying in TCP mode" in whole
    assert whole.count("many times over") == 50
    assert "MSG SIZE" in whole


@needs_dig
async def test_dig_keeps_a_connection(resolving: Resolving) -> None:
    questions = ["a.deep.example", "A", "www.example", "TXT", "medium.example", "TXT"]
    found = await run_tool(
        "dig", "@127.0.0.1", "-p", str(resolving.port), "+tcp", "+keepopen", "+short", *questions
    )
    assert found.startswith('192.0.2.3\n"hello"\n"A sentence')
    assert resolving.streams.statistics().accepted == 1


def test_dns_responder_as_a_program() -> None:
    with program("docs/examples/dns_responder.py", UDP, TCP) as running:
        ports = running.read_until(r"listening on udp://127.0.0.1:(\d+) tcp://127.0.0.1:(\d+)").groups()
        for query, port in zip((dns.query.udp, dns.query.tcp), ports, strict=True):
            question = dns.message.make_query("www.example", "A")
            response = query(question, "127.0.0.1", port=int(port), timeout=PATIENCE)
            assert texts(response) == [["192.0.2.1", "192.0.2.2"]]
        assert running.stop() == -signal.SIGTERM


# time_service.py


@pytest.fixture
async def clock() -> AsyncIterator[DatagramServer]:
    async with DatagramServer(load("time_service").time_service, UDP) as server:
        yield server
        assert server.statistics().failed == 0


async def asked(server: DatagramServer, **options: Any) -> ntplib.NTPStats:
    request = ntplib.NTPClient().request
    return await in_thread(request, "127.0.0.1", port=udp_port(server), timeout=PATIENCE, **options)


@pytest.mark.parametrize("version", [1, 2, 3, 4])
async def test_the_time(clock: DatagramServer, version: int) -> None:
    stats = await asked(clock, version=version)
    assert (stats.version, ntplib.mode_to_text(stats.mode)) == (version, "server")
    assert (stats.leap, stats.stratum) == (0, 1)
    # Both ends have the same clock; only the way takes time.
    assert abs(stats.offset) <= max(stats.delay, 1 * MS)
    assert stats.orig_time <= stats.recv_time + 1 * MS
    assert stats.recv_time <= stats.tx_time <= stats.dest_time + 1 * MS
    assert abs(stats.tx_time - time.time()) < PATIENCE


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells when a packet came")
async def test_a_busy_server_does_not_count_its_own_delay(clock: DatagramServer) -> None:
    (endpoint,) = clock.endpoints
    endpoint.pause()
    asking = asyncio.create_task(asked(clock, version=4))
    await wait_until(lambda: has_come(endpoint))
    await asyncio.sleep(200 * MS)
    assert not asking.done()
    endpoint.resume()
    stats = await asking
    assert stats.tx_time - stats.recv_time > 150 * MS
    assert abs(stats.offset) <= max(stats.delay, 1 * MS)


def has_come(endpoint: Any) -> bool:
    """Whether a packet waits in the kernel."""
    with suppress(BlockingIOError):
        endpoint._sock.recv(1, socket.MSG_PEEK)
        return True
    return False


async def test_only_requests_are_answered(clock: DatagramServer) -> None:
    with PacketClient(("127.0.0.1", udp_port(clock))) as client:
        for first in 0x24, 0x25, 0x26, 0x03, 0x2B:  # replies, broadcasts, control, versions 0 and 5
            await client.send(bytes([first]) + bytes(47))
        await client.send(b"")
        await client.send(b"\x23" + bytes(46))
        await client.hears_nothing()
        await client.send(b"\x23" + bytes(39) + b"departed" + b"an extension of the packet")
        reply = await client.receive()
        assert (len(reply), reply[24:32]) == (48, b"departed")


def test_timestamps_begin_anew_in_2036() -> None:
    timestamp = load("time_service").timestamp
    assert timestamp(0) == 2_208_988_800 << 32
    assert timestamp(2_085_978_495.5) == (2**32 - 1 << 32) + 2**31
    assert timestamp(2_085_978_496) == 0


def test_time_service_as_a_program() -> None:
    with program("docs/examples/time_service.py", UDP) as running:
        port = running.read_until(r"listening on udp://127.0.0.1:(\d+)")[1]
        stats = ntplib.NTPClient().request("127.0.0.1", port=int(port), timeout=PATIENCE)
        assert abs(stats.offset) < PATIENCE
        assert running.stop() == -signal.SIGTERM


# unix_chat.py


@pytest.fixture
def room() -> ModuleType:
    return load("unix_chat")


@asynccontextmanager
async def chatting(
    room: ModuleType, directory: Path, **timeouts: Any
) -> AsyncIterator[Callable[[str], PacketClient]]:
    """Gives a function that makes clients by their names."""
    path = directory / "chat"
    async with DatagramServer(
        room.chat, f"unixgram:{path}", timeouts=DatagramTimeouts(send=100 * MS, **timeouts)
    ) as server:
        yield lambda name: PacketClient(str(path), directory / f"client-{name}.sock")
        assert server.statistics().failed == 0


async def joined(client: PacketClient, *others: PacketClient) -> None:
    """Come in, and let all see it."""
    await client.send(b"")
    name = Path(client.sock.getsockname()).stem
    count = len(others)
    assert await client.receive() == f"* hello {name}, {count} others are here".encode()
    for other in others:
        assert await other.receive() == f"* {name} is here".encode()


async def test_what_one_sends_the_others_get(room: ModuleType, directory: Path) -> None:
    async with chatting(room, directory) as make:
        with make("ann") as ann, make("bob") as bob, make("eve") as eve:
            await joined(ann)
            await joined(bob, ann)
            await joined(eve, ann, bob)
            for number in range(20):
                await ann.send(b"number %d" % number)
                assert await bob.receive() == await eve.receive() == b"client-ann: number %d" % number
            await ann.hears_nothing()
            await bob.send("grüß dich \x1b[31m\n".encode())
            assert await ann.receive() == await eve.receive() == "client-bob: grüß dich [31m".encode()
            await eve.send(b"/quit\n")
            assert await ann.receive() == await bob.receive() == b"* client-eve has left"
            await bob.send(b"bye")
            assert await ann.receive() == b"client-bob: bye"
            await eve.hears_nothing()


async def test_who_has_vanished_is_dropped(
    room: ModuleType, directory: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with chatting(room, directory) as make:
        with make("ann") as ann, make("bob") as bob:
            with make("eve") as eve:
                await joined(ann)
                await joined(bob, ann)
                await joined(eve, ann, bob)
            await ann.send(b"anybody?")
            assert await bob.receive() == b"client-ann: anybody?"
            assert await ann.receive() == await bob.receive() == b"* client-eve has left"
            assert len(room.ROOM.members) == 2
    assert not complaints(caplog)


async def test_who_does_not_read_is_dropped_and_stops_nobody(
    room: ModuleType, directory: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with chatting(room, directory) as make:
        with make("ann") as ann, make("bob") as bob, make("eve") as eve:
            await joined(ann)
            await joined(bob, ann)
            await joined(eve, ann, bob)
            number = 0
            await ann.send(b"number 0")
            while (heard := await bob.receive()) == b"client-ann: number %d" % number:
                number += 1
                await ann.send(b"number %d" % number)
            assert heard == await ann.receive() == b"* client-eve has left"
            assert await bob.receive() == b"client-ann: number %d" % number
    assert not complaints(caplog)


async def test_who_has_no_name_cannot_take_part(room: ModuleType, directory: Path) -> None:
    async with chatting(room, directory) as make:
        with make("ann") as ann, PacketClient(str(directory / "chat")) as nobody:
            await joined(ann)
            await nobody.send(b"hello")
            await ann.hears_nothing()
            assert len(room.ROOM.members) == 1


async def test_drain_says_goodbye(room: ModuleType, directory: Path) -> None:
    path = directory / "chat"
    async with DatagramServer(room.chat, f"unixgram:{path}") as server:
        with PacketClient(str(path), directory / "client-ann.sock") as ann:
            await joined(ann)
            report = await within(server.drain(None))
            assert await ann.receive() == b"* the server is closing, goodbye"
            assert report.clean


@needs_socat
async def test_socat(room: ModuleType, directory: Path) -> None:
    async with chatting(room, directory) as make:
        with make("ann") as ann:
            await joined(ann)
            target = f"UNIX-SENDTO:{directory}/chat,bind={directory}/client-bob.sock"
            hello = b"* hello client-bob, 1 others are here"
            assert await asyncio.to_thread(socat_until, hello, "-t", "0", "-", target, send=b"hello") == hello
            assert await ann.receive() == b"* client-bob is here"
            assert await ann.receive() == b"client-bob: hello"


def socat_until(end: bytes, *arguments: str, send: bytes) -> bytes:
    """What it prints up to this; its input stays open until then, because packets have no end to wait for."""
    with subprocess.Popen(["socat", *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        giving_up = threading.Timer(PATIENCE, process.kill)
        giving_up.start()
        try:
            process.stdin.write(send)
            process.stdin.flush()
            heard = process.stdout.read(len(end))
            process.stdin.close()
            return heard + process.stdout.read()
        finally:
            giving_up.cancel()
            giving_up.join()


def test_unix_chat_as_a_program(directory: Path) -> None:
    with program("docs/examples/unix_chat.py", f"unixgram:{directory}/chat?mode=666") as running:
        running.read_until("listening on unixgram:")
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ann:
            ann.settimeout(PATIENCE)
            ann.bind(f"{directory}/client-ann.sock")
            ann.sendto(b"", f"{directory}/chat")
            assert ann.recv(100) == b"* hello client-ann, 0 others are here"
            assert running.stop() == -signal.SIGTERM
            assert ann.recv(100) == b"* the server is closing, goodbye"
