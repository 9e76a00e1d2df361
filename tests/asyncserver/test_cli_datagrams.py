"""The command line for datagrams: what it serves as what, which options go with it, and what it says."""

from __future__ import annotations

import os
import re
import signal
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from asyncserver import (
    DatagramHandler,
    DatagramServer,
    FDAddress,
    LengthPrefix,
    Responder,
    Server,
    StreamHandler,
    SystemdAddress,
    cli_commands,
    cli_kinds,
    parse_address,
    sessions,
)
from asyncserver.cli_kinds import (
    Addresses,
    Kind,
    WrongKindError,
    kinds_in_use,
    possible_kinds,
    sort_addresses,
)
from asyncserver.cli_process import Plan
from asyncserver.cli_values import OFF, interface
from tests.command_line import InProcess, commands_in_process, wrong_usage
from tests.processes import LONG, PythonProcess, connect, run_python

UDP = "udp://127.0.0.1:0"
TCP = "tcp://127.0.0.1:0"
MODULE = ("-m", "asyncserver", "serve")

on_posix = pytest.mark.skipif(os.name == "nt", reason="signals of other processes are not delivered there")
needs_unix_sockets = pytest.mark.skipif(
    not hasattr(socket, "AF_UNIX") or sys.platform == "win32", reason="the platform has no Unix datagrams"
)

HANDLERS = """
import asyncio, pathlib
from asyncserver import (
    DatagramHandler, DatagramServer, Lines, LengthPrefix, Responder, StreamHandler, sessions
)

async def shout(datagram):
    await datagram.reply(datagram.data.upper())

class Shout(DatagramHandler):
    async def handle(self):
        await shout(self.datagram)

class Chat(StreamHandler):
    async def handle(self):
        await self.stream.send(b"chat")

@sessions
async def count(session):
    number = 0
    async for datagram in session:
        number += 1
        await session.send(b"%d" % number)

async def slow(datagram):
    await datagram.reply(b"taken")
    while not pathlib.Path("go_on").exists():
        await asyncio.sleep(0.01)
    await datagram.reply(b"done")

async def settings(datagram):
    server = datagram.server
    await datagram.reply(repr((server.limits, server.timeouts)).encode())

def plain(datagram):
    pass

async def two(one, other):
    pass

class NoHandler:
    pass

server = DatagramServer(shout, "udp://127.0.0.1:0")
responder = Responder(bytes.upper, framing=LengthPrefix())
"""


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """Where the command is run: it has the handlers in app.py."""
    (tmp_path / "app.py").write_text(HANDLERS)
    return tmp_path


@pytest.fixture
def in_process(
    directory: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Iterator[InProcess]:
    """Runs a command that fails before it serves."""
    with commands_in_process(directory, monkeypatch, capfd) as run:
        yield run


def serve(directory: Path, *arguments: str, **environment: str) -> PythonProcess:
    """The process of an ``asyncserver serve``."""
    return PythonProcess(directory, *MODULE, *arguments, environment=environment)


def client_of(port: int) -> socket.socket:
    """A UDP socket that is connected to a process on this machine; its operations are bounded."""
    client = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    client.settimeout(LONG)
    client.connect(("127.0.0.1", port))
    return client


def ask(port: int, *requests: bytes) -> list[bytes]:
    """The replies to datagrams that are sent one after the other."""
    replies: list[bytes] = []
    with client_of(port) as client:
        for request in requests:
            client.send(request)
            replies.append(client.recv(65_536))
    return replies


# --- serving ---


@on_posix
def test_serves_datagrams_until_sigterm(directory: Path, loop_name: str) -> None:
    with serve(
        directory, "app:shout", UDP, "--loop", loop_name, "--hint", "try: nc -u {host} {port}"
    ) as process:
        port = process.wait_for_port()
        assert ask(port, b"hello") == [b"HELLO"]
        assert process.terminate() == -signal.SIGTERM
    assert process.stdout == (
        f"Listening on udp://127.0.0.1:{port} ({loop_name}) - try: nc -u 127.0.0.1 {port}\n"
    )
    assert "SIGTERM: draining 0 handlers" in process.stderr
    assert "Traceback" not in process.stderr


@on_posix
def test_first_signal_drains(directory: Path, loop_name: str) -> None:
    with serve(directory, "app:slow", UDP, "--loop", loop_name) as process:
        with client_of(process.wait_for_port()) as client:
            client.send(b"hello")
            assert client.recv(100) == b"taken"
            process.send_signal(signal.SIGINT)
            process.wait_for("SIGINT: draining 1 handler")
            (directory / "go_on").touch()
            assert client.recv(100) == b"done"
            assert process.wait() == -signal.SIGINT
    assert "1 finished" in process.stderr
    assert "Traceback" not in process.stderr


@on_posix
def test_responder_serves_both_kinds_in_one_process(directory: Path, loop_name: str) -> None:
    with serve(directory, "app:responder", UDP, TCP, "--loop", loop_name, "--hint", "{address}") as process:
        udp_port = process.wait_for_port()
        found = re.fullmatch(
            rf"Listening on udp://127\.0\.0\.1:{udp_port}, tcp://127\.0\.0\.1:(\d+) \({loop_name}\)"
            rf" - udp://127\.0\.0\.1:{udp_port}\n",
            process.stdout,
        )
        assert found, process.stdout
        assert ask(udp_port, b"hello") == [b"HELLO"]
        with connect(int(found[1])) as client:
            client.sendall(b"\0\5hello")
            assert client.recv(100) == b"\0\5HELLO"
        assert process.terminate() == -signal.SIGTERM
    assert f"tcp://127.0.0.1:{found[1]}: draining" in process.stderr
    assert f"udp://127.0.0.1:{udp_port}: draining" in process.stderr


def test_options_of_sessions_reach_the_server(directory: Path) -> None:
    # One more session ends the one before: the first peer begins anew.
    with serve(directory, "app:count", UDP, "--max-sessions", "1") as process:
        port = process.wait_for_port()
        with client_of(port) as client:
            client.send(b"")
            assert client.recv(100) == b"1"
            client.send(b"")
            assert client.recv(100) == b"2"
            assert ask(port, b"") == [b"1"]
            client.send(b"")
            assert client.recv(100) == b"1"


def test_options_by_the_environment_reach_the_server(directory: Path) -> None:
    environment = {"ASYNCSERVER_ADDRESSES": UDP, "ASYNCSERVER_ORDER": "peer", "ASYNCSERVER_SEND_TIMEOUT": "3"}
    with serve(directory, "app:settings", "--handler-timeout", "2", **environment) as process:
        (answer,) = ask(process.wait_for_port(), b"")
    for setting in (b"order='peer'", b"send=3.0", b"handler=2.0"):
        assert setting in answer


@needs_unix_sockets
def test_unix_datagrams(directory: Path) -> None:
    hint = "--hint", "send to {path}, not {port}"
    with serve(directory, "app:Shout", "unixgram:app.sock", "--loop", "asyncio", *hint) as process:
        process.wait_for("not {port}\n")
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as client:
            client.settimeout(LONG)
            client.bind(str(directory / "client.sock"))
            client.sendto(b"hello", str(directory / "app.sock"))
            assert client.recv(100) == b"HELLO"
    assert process.stdout == "Listening on unixgram:app.sock (asyncio) - send to app.sock, not {port}\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--join", "239.1.2.3%nowhere0"],
            "239.1.2.3%nowhere0: this machine has no interface nowhere0, only: ",
        ),
        (
            ["--multicast-interface", "nowhere0"],
            "--multicast-interface 'nowhere0': this machine has no interface",
        ),
    ],
)
def test_what_the_machine_does_not_have(directory: Path, arguments: list[str], message: str) -> None:
    status, stdout, stderr = run_python(directory, *MODULE, "app:shout", UDP, *arguments)
    assert (status, stdout) == (1, "")
    assert stderr.startswith("asyncserver: cannot listen on ")
    assert message in stderr
    assert len(stderr.splitlines()) == 1


def test_group_of_another_family_names_the_flag(directory: Path) -> None:
    assert run_python(directory, *MODULE, "app:shout", UDP, "--join", "ff02::1") == (
        2,
        "",
        "asyncserver: --join 'ff02::1': none of the sockets is of IPv6\n",
    )


# --- wrong usage ---

BAD_USAGE = [
    # addresses and handlers that do not go together
    (
        ["app:shout", UDP, "unixgram:app.sock", TCP],
        f"HANDLER: 'app:shout' is given streams ({TCP}) and datagrams ({UDP}, unixgram:app.sock), and only",
    ),
    (["app:Shout", TCP], f"HANDLER: 'app:Shout' serves datagrams, and '{TCP}' is an address of streams"),
    (["app:count", "unix:x"], "HANDLER: 'app:count' serves datagrams, and 'unix:x' is an address of streams"),
    (["app:Chat", UDP], f"HANDLER: 'app:Chat' serves streams, and '{UDP}' is an address of datagrams"),
    (
        ["app:count", "tls+fd://3"],
        "HANDLER: 'app:count' serves datagrams, and 'tls+fd://3' is an address of streams",
    ),
    (
        ["app:shout", f"tls+{UDP}"],
        f"ADDRESS...: 'tls+{UDP}': scheme 'tls+udp': datagrams have no TLS here; write udp:",
    ),
    (["app:plain", UDP], "HANDLER: 'app:plain' is not async: write `async def` (it takes the datagram)"),
    (
        ["app:two", UDP],
        "HANDLER: 'app:two' has to take one argument, the datagram; it takes (one, other)",
    ),
    (
        ["app:NoHandler", UDP],
        "HANDLER: 'app:NoHandler' has to extend asyncserver.DatagramHandler",
    ),
    (
        ["app", UDP],
        "HANDLER: 'app': say what in it is to serve: app:shout, app:Shout, app:Chat, app:count",
    ),
    # a server as target
    (
        ["app:server", UDP, "--order", "peer"],
        "'app:server' is a DatagramServer, which has its own addresses and options: leave out ADDRESS..., ",
    ),
    # options that have no meaning
    (
        ["app:shout", UDP, "--max-connections", "3"],
        f"--max-connections has no meaning for {UDP}: it is for streams",
    ),
    (
        ["app:shout", UDP, "unixgram:x", "--no-delay", "--keep-alive-idle", "3", "--max-sessions", "3"],
        f"--no-delay, --keep-alive-idle have no meaning for {UDP}, unixgram:x: they are for streams",
    ),
    (["app:shout", UDP, "--tls-key", "key.pem"], f"--tls-key has no meaning for {UDP}: it is for streams"),
    (
        ["app:shout", UDP, "--tls-key-password-file", "x"],
        f"--tls-key-password-file has no meaning for {UDP}: it is for streams",
    ),
    (
        ["app:Chat", TCP, "--when-queue-full", "drop_oldest"],
        f"--when-queue-full has no meaning for {TCP}: it is for datagrams",
    ),
    (["app:Chat", TCP, "--join", "239.1.2.3"], f"--join has no meaning for {TCP}: it is for UDP"),
    (
        ["app:Chat", TCP, "--max-handlers", "3"],
        f"--max-handlers has no meaning for {TCP}: it is for handlers of single datagrams",
    ),
    (
        ["app:shout", "unixgram:x", "--join", "239.1.2.3"],
        "--join has no meaning for unixgram:x: it is for UDP",
    ),
    (
        ["app:Shout", "fd://3", "--backlog", "3"],
        "--backlog has no meaning for fd://3: it is for streams",
    ),
    (
        ["app:shout", UDP, "--session-queue", "3"],
        "--session-queue has no meaning for 'app:shout': it is for functions marked with @sessions",
    ),
    (
        ["app:responder", UDP, TCP, "--max-sessions", "3"],
        "--max-sessions has no meaning for 'app:responder': it is for functions marked with @sessions",
    ),
    (
        ["app:count", UDP, "--order", "peer", "--max-queue", "3"],
        "--order, --max-queue have no meaning for 'app:count': they are for handlers of single datagrams",
    ),
    (
        ["app:count", UDP, "--handler-timeout", "3"],
        "--handler-timeout has no meaning for 'app:count': it is for streams and handlers of single data",
    ),
    # values
    (["app:shout", UDP, "--max-packet-size", "none"], "--max-packet-size: none has to be "),
    (
        ["app:shout", UDP, "--max-packet-size", "65536"],
        "--max-packet-size: 65536 has to be at most 65535 bytes",
    ),
    (["app:shout", UDP, "--max-queue", "-1"], "--max-queue: -1 has to be at least 0 packets"),
    (
        ["app:count", UDP, "--session-idle-timeout", "0"],
        "--session-idle-timeout: 0.0 has to be more than zero",
    ),
    (
        ["app:shout", UDP, "--grace", "none"],
        "--grace: none has to be a number of seconds; zero does not wait",
    ),
    (["app:shout", UDP, "--order", "none"], "--order: 'none' is not one of 'any', 'peer', 'strict'."),
    (
        ["app:shout", UDP, "--when-queue-full", "wait"],
        "--when-queue-full: 'wait' is not one of 'drop_newest', 'drop_oldest'.",
    ),
    (["app:shout", UDP, "--receive-buffer-size", "0"], "--receive-buffer-size: 0 must be 1 to "),
    (["app:shout", UDP, "--multicast-ttl", "256"], "--multicast-ttl: 256 must be 0 to 255"),
    (["app:shout", UDP, "--multicast-ttl", "none"], "--multicast-ttl: none must be a whole number"),
    (
        ["app:shout", UDP, "--multicast-interface", "::"],
        "--multicast-interface: :: is not the address of an ",
    ),
    (
        ["app:shout", UDP, "--join", "10.0.0.1"],
        "--join: '10.0.0.1': group '10.0.0.1': is not a multicast address (224.0.0.0/4, ff00::/8)",
    ),
    (
        ["app:shout", UDP, "--join", "239.1.2.3%a/b"],
        "--join: '239.1.2.3%a/b': interface 'a/b': is not the name of an interface",
    ),
    (["app:shout", UDP, "--join", "239.1.2.3", "--join", "239.1.2.3"], "--join: 239.1.2.3 is given twice"),
]


@pytest.mark.parametrize(
    ("arguments", "message"), BAD_USAGE, ids=[" ".join(arguments) for arguments, _ in BAD_USAGE]
)
def test_wrong_usage(in_process: InProcess, arguments: list[str], message: str) -> None:
    said = wrong_usage(in_process, *arguments)
    assert said.startswith(message)


def test_meaningless_option_names_its_variable(in_process: InProcess) -> None:
    said = wrong_usage(in_process, "app:shout", UDP, ASYNCSERVER_BACKLOG="5")
    assert said == f"--backlog (from ASYNCSERVER_BACKLOG) has no meaning for {UDP}: it is for streams"


def test_meaningless_option_is_refused_before_the_module_is_imported(in_process: InProcess) -> None:
    said = wrong_usage(in_process, "nowhere_at_all:shout", UDP, "--backlog", "5")
    assert said == f"--backlog has no meaning for {UDP}: it is for streams"


# --- the plan ---


def planned(monkeypatch: pytest.MonkeyPatch, in_process: InProcess, *arguments: str) -> Plan:
    """What a command line would run."""
    plans: list[Plan] = []

    def keep(plan: Plan) -> int:
        plans.append(plan)
        return 0

    monkeypatch.setattr(cli_commands, "run_plan", keep)
    status, _, stderr = in_process("serve", *arguments)
    assert status == 0, stderr
    return plans[0]


@pytest.mark.parametrize(
    ("arguments", "kinds"),
    [
        (["app:shout", UDP, "unixgram:app.sock"], [DatagramServer]),
        (["app:count", "fd://3", "systemd:"], [DatagramServer]),
        (["app:responder", UDP], [DatagramServer]),
        (["app:responder", TCP], [Server]),
        (["app:responder", UDP, TCP, UDP], [DatagramServer, Server]),
        (["app:responder", TCP, UDP], [Server, DatagramServer]),
        (["app:server"], [DatagramServer]),
    ],
)
def test_server_for_each_kind_of_addresses(
    monkeypatch: pytest.MonkeyPatch, in_process: InProcess, arguments: list[str], kinds: list[type]
) -> None:
    assert [type(server) for server in planned(monkeypatch, in_process, *arguments).servers] == kinds


def test_one_option_is_for_both_kinds(monkeypatch: pytest.MonkeyPatch, in_process: InProcess) -> None:
    options = ["--grace", "3", "--max-connections", "7", "--max-handlers", "8"]
    plan = planned(monkeypatch, in_process, "app:responder", TCP, UDP, *options)
    streams, datagrams = plan.servers
    assert isinstance(streams, Server)
    assert isinstance(datagrams, DatagramServer)
    assert (streams.timeouts.grace, datagrams.timeouts.grace) == (3.0, 3.0)
    assert (streams.limits.max_connections, datagrams.limits.max_handlers) == (7, 8)


# --- which addresses are served as what ---


async def function(what: Any) -> None:
    pass


@sessions
async def session_handler(session: Any) -> None:
    pass


class PacketHandler(DatagramHandler):
    async def handle(self) -> None:
        pass


class ConnectionHandler(StreamHandler):
    async def handle(self) -> None:
        pass


responder = Responder(bytes.upper, framing=LengthPrefix())


def sorted_texts(target: object, *texts: str) -> tuple[list[str], list[str]]:
    found = sort_addresses(target, map(parse_address, texts))
    return [str(each) for each in found.streams], [str(each) for each in found.datagrams]


@pytest.mark.parametrize("target", [PacketHandler, session_handler])
def test_handlers_of_datagrams_decide_about_inherited_sockets(target: object) -> None:
    assert sorted_texts(target, "fd://3", "systemd:a") == ([], ["fd://3", "systemd:a"])


@pytest.mark.parametrize("target", [ConnectionHandler, function, responder])
def test_inherited_sockets_that_are_not_there_are_streams(target: object) -> None:
    # The start says what is wrong with them, as it always has.
    assert sorted_texts(target, "fd://99999", "systemd:a") == (["fd://99999", "systemd:a"], [])


@pytest.mark.parametrize("target", [function, responder])
def test_inherited_sockets_are_asked_what_they_are(target: object) -> None:
    with socket.socket() as stream, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagrams:
        assert sorted_texts(target, f"fd://{stream.fileno()}") == ([f"fd://{stream.fileno()}"], [])
        assert sorted_texts(target, f"fd://{datagrams.fileno()}") == ([], [f"fd://{datagrams.fileno()}"])
        assert sorted_texts(target, f"tls+fd://{datagrams.fileno()}")[1] == []
        assert datagrams.fileno() > 0, "it is still open"


@pytest.fixture
def passed_sockets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sockets as systemd passes them: a stream called web, datagrams called log, and both called names."""
    types = {3: socket.SOCK_STREAM, 4: socket.SOCK_DGRAM, 5: socket.SOCK_STREAM, 6: socket.SOCK_DGRAM}
    monkeypatch.setattr(cli_kinds, "_socket_type", types.get)
    monkeypatch.setenv("LISTEN_FDS", "4")
    monkeypatch.setenv("LISTEN_FDNAMES", "web:log:names:names")


@pytest.mark.usefixtures("passed_sockets")
def test_sockets_of_systemd_are_asked_what_they_are() -> None:
    assert sorted_texts(responder, "systemd:web", "systemd:log") == (["systemd:web"], ["systemd:log"])
    assert sorted_texts(function, "systemd:log") == ([], ["systemd:log"])


@pytest.mark.usefixtures("passed_sockets")
@pytest.mark.parametrize("name", ["names", ""])
def test_sockets_of_both_kinds_under_one_name(name: str) -> None:
    with pytest.raises(WrongKindError, match=rf"streams and datagrams under one name, 'systemd:{name}'"):
        sorted_texts(responder, f"systemd:{name}")
    assert sorted_texts(PacketHandler, f"systemd:{name}") == ([], [f"systemd:{name}"])


def test_sockets_of_systemd_without_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli_kinds, "_socket_type", {3: socket.SOCK_DGRAM}.get)
    monkeypatch.setenv("LISTEN_FDS", "1")
    assert sorted_texts(function, "systemd:") == ([], ["systemd:"])
    monkeypatch.setenv("LISTEN_FDS", "many")
    assert sorted_texts(function, "systemd:") == (["systemd:"], [])


ALL_OF_DATAGRAMS = {Kind.DATAGRAMS, Kind.UDP, Kind.PACKETS, Kind.SESSIONS}


@pytest.mark.parametrize(
    ("text", "kinds"),
    [
        (TCP, {Kind.STREAMS}),
        ("unix:app.sock", {Kind.STREAMS}),
        ("tls+fd://3", {Kind.STREAMS}),
        (UDP, ALL_OF_DATAGRAMS),
        ("unixgram:app.sock", ALL_OF_DATAGRAMS - {Kind.UDP}),
        ("fd://3", {Kind.STREAMS, *ALL_OF_DATAGRAMS}),
        ("systemd:", {Kind.STREAMS, *ALL_OF_DATAGRAMS}),
    ],
)
def test_what_an_address_may_be_for(text: str, kinds: set[Kind]) -> None:
    assert possible_kinds([parse_address(text)]) == kinds


def test_what_is_in_use() -> None:
    inherited = FDAddress(3)
    assert kinds_in_use(function, Addresses((inherited,), ())) == {Kind.STREAMS}
    assert kinds_in_use(function, Addresses((), (inherited,))) == {Kind.DATAGRAMS, Kind.UDP, Kind.PACKETS}
    assert kinds_in_use(session_handler, Addresses((), (SystemdAddress(),))) == {
        Kind.DATAGRAMS,
        Kind.UDP,
        Kind.SESSIONS,
    }


def test_interfaces() -> None:
    assert (interface("eth0"), interface("none")) == ("eth0", OFF)
