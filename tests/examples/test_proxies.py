"""The configurations of howto/haproxy.md and howto/nginx.md, in real proxies before real servers."""

from __future__ import annotations

import asyncio
import logging
import random
import re
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pytest

from asyncserver import (
    CloseReason,
    DatagramServer,
    Server,
    Session,
    Stream,
    TCPAddress,
    TLSConfig,
    UDPAddress,
    sessions,
)
from tests.certificates import authority
from tests.examples.programs import program
from tests.test_docs import BLOCKS
from tests.waiting import MS, PATIENCE, wait_until, wait_until_blocking, within

STREAM_MODULE = Path("/usr/lib/nginx/modules/ngx_stream_module.so")


# The pages and their configurations.


def blocks(page: str, kind: str) -> list[str]:
    return [block.text for block in BLOCKS if block.page.name == page and block.kind == kind]


def with_ports(text: str, ports: Mapping[str, int]) -> str:
    """Each port of the page is replaced, and nothing but the loopback interface listened on."""
    text = re.sub(r"\b(8443|9\d\d\d)\b", lambda found: str(ports[found[1]]), text)
    return re.sub(r"\b(bind :|listen )(?=\d)", lambda found: f"{found[1].rstrip(':')}127.0.0.1:", text)


def free_ports(names: Iterable[str]) -> dict[str, int]:
    """Outside of the range in which the kernel finds ports for everybody who asks it for a free one."""
    with ExitStack() as held:  # Until all are found, or one might be found twice.
        return {name: free_port(held) for name in names}


def free_port(held: ExitStack) -> int:
    while True:
        port = random.randrange(20_000, 30_000)
        with ExitStack() as probes:
            try:
                for kind in socket.SOCK_STREAM, socket.SOCK_DGRAM:
                    probes.enter_context(socket.socket(socket.AF_INET, kind)).bind(("127.0.0.1", port))
            except OSError:
                continue
            held.push(probes.pop_all())
            return port


def certificate_files(directory: Path) -> None:
    """``service.pem`` with certificate and key, as HAProxy wants them, and ``service.key``."""
    files = authority().server()
    key = Path(files.private_key).read_text()
    (directory / "service.pem").write_text(Path(files.certificate).read_text() + key)
    (directory / "service.key").write_text(key)


# The proxies.


class Proxy:
    """A proxy that runs in the foreground; what it logs is in a file."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        self.process = process
        self._log = log

    @property
    def log(self) -> str:
        return self._log.read_text()

    def wait_for(self, text: str) -> None:
        """Wait until it has logged that."""
        wait_until_blocking(lambda: self.runs() and text in self.log, what=lambda: f"{text!r} in {self.log}")

    def runs(self) -> bool:
        assert self.process.poll() is None, self.log
        return True


def tool_path(name: str, package: str) -> str:
    path = shutil.which(name) or shutil.which(name, path="/usr/sbin:/usr/local/sbin")
    assert path is not None, f"the tests need {name}: apt-get install --no-install-recommends {package}"
    return path


@contextmanager
def proxy(check: list[str], command: list[str], log: Path) -> Iterator[Proxy]:
    """Let it check its configuration, and run it."""
    checked = subprocess.run(
        check, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    said = checked.stdout + checked.stderr
    assert checked.returncode == 0, said
    assert not re.search(r"warn|emerg|alert", said, re.IGNORECASE), said
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
    with process:
        try:
            yield Proxy(process, log)
        finally:
            process.terminate()


@contextmanager
def haproxy(directory: Path, text: str) -> Iterator[Proxy]:
    path = tool_path("haproxy", "haproxy")
    file = directory / "haproxy.cfg"
    file.write_text(text.replace("/etc/haproxy/", f"{directory}/"))
    with proxy([path, "-c", "-f", str(file)], [path, "-db", "-f", str(file)], directory / "log") as running:
        yield running


@contextmanager
def nginx(directory: Path, text: str) -> Iterator[Proxy]:
    """In one process, so that it need not change the user."""
    path = tool_path("nginx", "nginx-light libnginx-mod-stream")
    load = f"load_module {STREAM_MODULE};\n" if STREAM_MODULE.exists() else ""
    begin = "daemon off;\nmaster_process off;\npid nginx.pid;\nerror_log stderr notice;\nevents {}\n"
    (directory / "nginx.conf").write_text(load + begin + text.replace("/etc/nginx/", f"{directory}/"))
    command = [path, "-p", str(directory), "-c", "nginx.conf", "-e", "stderr"]
    with proxy([*command, "-t", "-q"], command, directory / "log") as running:
        yield running


@asynccontextmanager
async def beside(manager: AbstractContextManager[Proxy]) -> AsyncIterator[Proxy]:
    """Without blocking the loop."""
    running = await asyncio.to_thread(manager.__enter__)
    try:
        yield running
    finally:
        await asyncio.to_thread(manager.__exit__, None, None, None)


# Clients.


def ask(port: int, request: bytes, *, encrypted: bool = False) -> bytes:
    """Everything that comes back on a connection of its own, on which the client finishes first."""
    with socket.create_connection(("127.0.0.1", port), PATIENCE) as plain:
        if not encrypted:
            plain.sendall(request)
            plain.shutdown(socket.SHUT_WR)
            return plain.makefile("rb").read()
        with authority().client_context().wrap_socket(plain, server_hostname="localhost") as client:
            client.sendall(request)
            return client.makefile("rb").readline()


def answers(port: int) -> bool:
    try:
        return ask(port, b"hello\n") == b"HELLO\n"
    except OSError:
        return False


def is_served(port: int) -> bool:
    """True; whoever is not served fails the test."""
    assert ask(port, b"hello\n") == b"HELLO\n"
    time.sleep(5 * MS)  # Two hundred clients a second say as much as two thousand.
    return True


def finished(clients: list[socket.socket]) -> bool:
    """End the requests that are under way, and see that they are answered."""
    for client in clients:
        client.sendall(b"world\n")
        assert client.recv(100) == b"HELLO, WORLD\n"
        client.close()
    return True


async def ask_async(port: int, request: bytes, **options: object) -> bytes:
    return await asyncio.to_thread(ask, port, request, **options)


# HAProxy.


def test_haproxy_loses_no_client_while_an_instance_is_replaced(tmp_path: Path) -> None:
    (source,) = blocks("haproxy.md", "python server")
    (tmp_path / "service.py").write_text(source)
    certificate_files(tmp_path)
    ports = free_ports(["9999", "8443", "9001", "9002", "9011", "9012"])
    front = ports["9999"]
    text = with_ports("\n".join(blocks("haproxy.md", "haproxy")), ports)

    with ExitStack() as stack:
        one, two = (
            stack.enter_context(
                program(
                    "service.py",
                    f"tcp://127.0.0.1:{ports[f'900{number}']}",
                    f"tcp://127.0.0.1:{ports[f'901{number}']}",
                    cwd=tmp_path,
                )
            )
            for number in (1, 2)
        )
        for number in "9001", "9002":
            wait_until_blocking(lambda port=ports[number]: answers(port))
        balancer = stack.enter_context(haproxy(tmp_path, text))
        wait_until_blocking(lambda: answers(front))
        assert ask(ports["8443"], b"secret\n", encrypted=True) == b"SECRET\n"

        # One on each instance, in the middle of a request when the first is told to end.
        clients = [stack.enter_context(socket.create_connection(("127.0.0.1", front), 10)) for _ in "ab"]
        for client in clients:
            client.sendall(b"hello, ")
        one.process.send_signal(signal.SIGTERM)
        balancer.wait_for("instances/one enters drain state")
        for is_over in (
            lambda: not answers(ports["9001"]),  # Its listening socket is closed.
            lambda: finished(clients),
            lambda: one.process.poll() is not None,
        ):
            wait_until_blocking(lambda done=is_over: is_served(front) and done())
        assert is_served(front)

        assert one.wait() == -signal.SIGTERM
        two.process.kill()
        for instance in one, two:  # The checks were not worth a word.
            assert instance.process.stdout is not None
            assert instance.process.stdout.read() == ""


CHECKS = """
defaults
    mode tcp
    timeout connect 5s
    timeout client 5s
    timeout server 5s
    timeout check 10s
    default-server inter 50ms

frontend service
    bind unix@{front}
    default_backend connect

backend connect
    server a {connect} check

backend unix
    server a unix@{unix} check

backend message
    option tcp-check
    tcp-check connect
    tcp-check send "ping\\n"
    tcp-check expect string PING
    server a {message} check

# The interval limits a check's handshake; so there are three servers instead of three rounds.
backend tls
    default-server inter 2s
    server a {tls} check check-ssl verify none
    server b {tls} check check-ssl verify none
    server c {tls} check check-ssl verify none

backend agent
    server a {connect} check agent-check agent-port {agent_port} agent-inter 50ms
"""


async def shout(stream: Stream) -> None:
    async for line in stream.lines(max_bytes=1_000):
        await stream.send(line.upper() + b"\n")


async def agent(stream: Stream) -> None:
    await stream.send(b"ready\n")


def place(server: Server) -> str:
    (address,) = server.addresses
    assert isinstance(address, TCPAddress)
    return f"127.0.0.1:{address.port}"


@pytest.fixture
def tls() -> TLSConfig:
    files = authority().server()
    return TLSConfig(certificate=files.certificate, private_key=files.private_key)


@pytest.mark.asyncio(loop_factories=["asyncio"])
async def test_what_haproxys_checks_are_to_a_server(
    tls: TLSConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "s"
    caplog.set_level(logging.INFO)
    async with (
        Server(shout, "tcp://127.0.0.1:0") as connect,
        Server(shout, f"unix:{path}?mode=666") as unix,
        Server(shout, "tcp://127.0.0.1:0") as message,
        Server(shout, "tls+tcp://127.0.0.1:0", tls=tls) as encrypted,
        Server(agent, "tcp://127.0.0.1:0") as asked,
    ):
        text = CHECKS.format(
            front=tmp_path / "front",
            connect=place(connect),
            unix=path,
            message=place(message),
            tls=place(encrypted),
            agent_port=place(asked).rpartition(":")[2],
        )
        async with beside(haproxy(tmp_path, text)) as balancer:
            for server, reason in (
                (unix, CloseReason.EOF),
                (message, CloseReason.RESET),
                (encrypted, CloseReason.RESET),
                (asked, CloseReason.HANDLER_RETURNED),
            ):
                await wait_until(lambda s=server, r=reason: s.statistics().closed.get(r, 0) >= 3)
                assert set(server.statistics().closed) == {reason}
            # As a rule it sees none at all: only a proxy that is held up completes the connection.
            assert set(connect.statistics().closed) <= {CloseReason.EOF, CloseReason.RESET}
            assert "DOWN" not in await asyncio.to_thread(lambda: balancer.log)
    assert not caplog.records


# nginx.


@sessions
async def count(session: Session) -> None:
    number = 0
    async for datagram in session:
        number += 1
        await session.send(b"%d %s" % (number, datagram.data))


class PacketClient(asyncio.DatagramProtocol):
    """Sends a packet, and waits for the reply."""

    def __init__(self) -> None:
        self.replies: asyncio.Queue[bytes] = asyncio.Queue()

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def datagram_received(self, data: bytes, addr: object) -> None:
        self.replies.put_nowait(data)

    async def ask(self, data: bytes) -> bytes:
        self.transport.sendto(data)
        return await within(self.replies.get(), what="a reply by way of nginx")


@asynccontextmanager
async def packet_client(port: int) -> AsyncIterator[PacketClient]:
    loop = asyncio.get_running_loop()
    transport, client = await loop.create_datagram_endpoint(PacketClient, remote_addr=("127.0.0.1", port))
    try:
        yield client
    finally:
        transport.close()


def stream_block(texts: Iterable[str]) -> str:
    """What stands in several ``stream`` blocks, in one."""
    inner = [re.fullmatch(r"stream \{\n(.*)\}\n", text, re.DOTALL) for text in texts]
    assert all(inner)
    return "stream {\n" + "".join(found[1] for found in inner if found) + "}\n"


@pytest.mark.asyncio(loop_factories=["asyncio"])
async def test_nginx_loses_no_client_while_an_instance_ends(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """And it passes TLS, UDP and half-closed connections on."""
    tcp, udp, tls = blocks("nginx.md", "nginx")
    await asyncio.to_thread(certificate_files, tmp_path)
    caplog.set_level(logging.INFO)
    async with (
        Server(shout, "tcp://127.0.0.1:0") as one,
        Server(shout, "tcp://127.0.0.1:0") as two,
        DatagramServer(count, "udp://127.0.0.1:0") as packets,
    ):
        (address,) = packets.addresses
        assert isinstance(address, UDPAddress)
        ports = free_ports(["9999", "8443"])
        ports |= {"9001": int(place(one).rpartition(":")[2]), "9002": int(place(two).rpartition(":")[2])}
        ports["9003"] = address.port
        front = ports["9999"]
        async with beside(nginx(tmp_path, with_ports(stream_block([tcp, udp, tls]), ports))) as balancer:
            while not await asyncio.to_thread(answers, front):
                assert balancer.runs()
            assert await ask_async(ports["8443"], b"secret\n", encrypted=True) == b"SECRET\n"
            async with packet_client(front) as client, packet_client(front) as other:
                assert await client.ask(b"a") == b"1 a"
                assert await client.ask(b"b") == b"2 b"
                assert await other.ask(b"c") == b"1 c"

            # One on each instance, in the middle of a request when the first is told to end.
            clients = [await asyncio.open_connection("127.0.0.1", front) for _ in "ab"]
            for _, writer in clients:
                writer.write(b"hello, ")
            await wait_until(
                lambda: all(
                    [each.stream.bytes_received for each in server.connections] == [len(b"hello, ")]
                    for server in (one, two)
                )
            )
            draining = asyncio.create_task(one.drain(PATIENCE))
            while await asyncio.to_thread(answers, ports["9001"]):
                pass
            for _ in range(10):
                assert await ask_async(front, b"hello\n") == b"HELLO\n"
            for reader, writer in clients:
                writer.write(b"world\n")
                assert await within(reader.readline()) == b"HELLO, WORLD\n"
                writer.close()
                await writer.wait_closed()
            assert (await draining).clean
            assert await ask_async(front, b"hello\n") == b"HELLO\n"
            assert set(one.statistics().closed) <= {CloseReason.EOF, CloseReason.DRAINED}
    assert not caplog.records
