"""The command line as its users have it: in a process of its own, by what it prints and how it ends."""

from __future__ import annotations

import dataclasses
import inspect
import os
import re
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import click
import pytest

from asyncserver import (
    DatagramLimits,
    DatagramOptions,
    DatagramTimeouts,
    KeepAlive,
    Limits,
    MulticastGroup,
    SocketOptions,
    Timeouts,
    TLSConfig,
    __version__,
    cli_commands,
    cli_serve,
    parse_address,
    run_server,
)
from asyncserver.cli_configuration import Configuration
from asyncserver.cli_groups import GROUPS, all_options
from asyncserver.cli_options import FieldOption, ServeOption, field_documentation, option_for
from asyncserver.cli_values import OFF, address, count, duration, number, shown_duration, size, text_bytes
from tests.certificates import authority
from tests.command_line import InProcess, commands_in_process, wrong_usage
from tests.processes import LONG, REPOSITORY, PythonProcess, connect, run_python
from tests.waiting import wait_until_blocking

ADDRESS = "tcp://127.0.0.1:0"
MODULE = ("-m", "asyncserver", "serve")
REFERENCE = REPOSITORY / "docs/reference/command-line.md"

on_posix = pytest.mark.skipif(os.name == "nt", reason="signals of other processes are not delivered there")

HANDLERS = """
import asyncio, contextlib, logging
from asyncserver import Server, StreamHandler, current_connection

async def echo(stream):
    logging.getLogger("app").info("a client")
    async for chunk in stream:
        await stream.send(chunk)

class Chat(StreamHandler):
    async def handle(self):
        await self.stream.send(b"chat")

class Service:
    async def serve(self, stream):
        await stream.send(b"service")

service = Service()

async def lines(stream):
    print("a print that nobody flushes")
    await stream.send(b"got " + await stream.receive_until(b"\\n", 100) + b"\\n")
    await stream.send(b"got " + await stream.receive_until(b"\\n", 100) + b"\\n")

async def settings(stream):
    server = current_connection().server
    await stream.send(repr((server.limits, server.timeouts)).encode())

async def closing(stream):
    closing.task = asyncio.ensure_future(current_connection().server.aclose())

def plain(stream):
    pass

async def two(one, other):
    pass

class NoHandler:
    pass

@contextlib.asynccontextmanager
async def failing(server):
    raise RuntimeError("no database")
    yield

@contextlib.asynccontextmanager
async def slow(server):
    print("starting", flush=True)
    await asyncio.sleep(3600)
    yield

server = Server(lines, "tcp://127.0.0.1:0")
server_that_fails = Server(echo, "tcp://127.0.0.1:0", lifespan=failing)
server_that_is_slow = Server(echo, "tcp://127.0.0.1:0", lifespan=slow)
"""

Serve = Callable[..., PythonProcess]
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """Where the command is run: it has the handlers in app.py."""
    (tmp_path / "app.py").write_text(HANDLERS)
    return tmp_path


@pytest.fixture
def serve(directory: Path) -> Serve:
    """Makes the process of an ``asyncserver serve``."""

    def make(*arguments: str, **environment: str) -> PythonProcess:
        return PythonProcess(directory, *MODULE, *arguments, environment=environment)

    return make


@pytest.fixture
def run(directory: Path) -> Run:
    """Runs an ``asyncserver serve`` that ends by itself."""

    def make(*arguments: str, **environment: str) -> tuple[int, str, str]:
        return run_python(directory, *MODULE, *arguments, environment=environment)

    return make


def exchange(port: int, data: bytes) -> bytes:
    """Send ``data`` and the end, and return all that comes back."""
    with connect(port) as client:
        client.sendall(data)
        client.shutdown(socket.SHUT_WR)
        return b"".join(iter(lambda: client.recv(65_536), b""))


# --- serving ---


@on_posix
def test_serves_until_sigterm(serve: Serve, loop_name: str) -> None:
    with serve("app:echo", ADDRESS, "--loop", loop_name) as process:
        port = process.wait_for_port()
        assert exchange(port, b"hello") == b"hello"
        assert process.terminate() == -signal.SIGTERM
    assert process.stdout == f"Listening on tcp://127.0.0.1:{port} ({loop_name})\n"
    assert "SIGTERM: draining 0 connections" in process.stderr
    assert "Traceback" not in process.stderr


@on_posix
def test_sigint_ends_without_a_traceback(serve: Serve, loop_name: str) -> None:
    with serve("app:echo", ADDRESS, "--loop", loop_name) as process:
        process.wait_for_port()
        process.send_signal(signal.SIGINT)
        assert process.wait() == -signal.SIGINT
    assert "Traceback" not in process.stderr
    assert "KeyboardInterrupt" not in process.stderr


@on_posix
@pytest.mark.parametrize(("name", "status"), [("TERM", 143), ("INT", 130)])
def test_shell_sees_the_conventional_status(serve: Serve, directory: Path, name: str, status: int) -> None:
    # In the background of a shell script, where SIGINT is ignored unless somebody takes it.
    command = " ".join([sys.executable, *MODULE, "app:echo", ADDRESS])
    script = directory / "script.py"
    script.write_text(
        "import subprocess, sys\nsys.exit(subprocess.run(['sh', '-c', sys.argv[1]]).returncode)\n"
    )
    shell = f"{command} & read _ < fifo; kill -{name} $!; wait $!; echo status $?"
    os.mkfifo(directory / "fifo")
    with PythonProcess(directory, script, shell) as process:
        process.wait_for_port()
        (directory / "fifo").write_text("go on\n")
        assert process.wait() == 0
    assert f"status {status}\n" in process.stdout


@on_posix
def test_first_signal_drains(serve: Serve, loop_name: str) -> None:
    with serve("app:lines", ADDRESS, "--loop", loop_name) as process:
        with connect(process.wait_for_port()) as client:
            client.sendall(b"one\nhalf of ")
            assert client.recv(100) == b"got one\n"
            process.send_signal(signal.SIGTERM)
            process.wait_for("draining 1 connection")
            client.sendall(b"two\n")
            assert client.recv(100) == b"got half of two\n"
        assert process.wait() == -signal.SIGTERM
    assert "1 finished" in process.stderr
    assert process.stdout.endswith("a print that nobody flushes\n"), "what was printed is not lost"


@on_posix
def test_second_signal_aborts(serve: Serve, loop_name: str) -> None:
    options = ("--loop", loop_name, "--drain-timeout", "none")
    with serve("app:lines", ADDRESS, *options) as process:
        with connect(process.wait_for_port()) as client:
            client.sendall(b"one\nhalf of ")
            assert client.recv(100) == b"got one\n"
            process.send_signal(signal.SIGINT)
            process.wait_for("draining 1 connection")
            process.send_signal(signal.SIGINT)
            assert process.wait() == -signal.SIGINT
    assert "aborting 1 connection" in process.stderr


@on_posix
def test_drain_options_reach_the_drain(serve: Serve) -> None:
    options = ("--drain-timeout", "100ms", "--drain-delay", "1ms", "--linger", "0")
    with serve("app:lines", ADDRESS, *options) as process:
        with connect(process.wait_for_port()) as client:
            client.sendall(b"one\nhalf of ")
            assert client.recv(100) == b"got one\n"
            assert process.terminate() == -signal.SIGTERM
    assert "1 cancelled" in process.stderr


@on_posix
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_while_the_module_is_imported(directory: Path, serve: Serve, number: int) -> None:
    (directory / "slow_import.py").write_text("import time\nprint('importing', flush=True)\ntime.sleep(3600)")
    with serve("slow_import:echo", ADDRESS) as process:
        process.wait_for("importing")
        process.send_signal(number)
        assert process.wait() == -number
    assert process.stderr == ""


@on_posix
def test_signal_in_the_midst_of_a_print(directory: Path, serve: Serve) -> None:
    lines = """
import io, sys, time

class Busy(io.StringIO):
    def flush(self):
        raise RuntimeError("reentrant call")

sys.stdout = Busy()
print("importing", flush=True, file=sys.__stdout__)
time.sleep(3600)
"""
    (directory / "slow_import.py").write_text(lines)
    with serve("slow_import:echo", ADDRESS) as process:
        process.wait_for("importing")
        assert process.terminate() == -signal.SIGTERM
    assert process.stderr == ""


@on_posix
def test_signal_while_the_server_starts(serve: Serve, loop_name: str) -> None:
    with serve("app:server_that_is_slow", "--loop", loop_name) as process:
        process.wait_for("starting")
        assert process.terminate() == -signal.SIGTERM
    assert process.stdout == "starting\n"
    assert "Traceback" not in process.stderr


@on_posix
def test_status_where_the_signal_does_not_end_the_process(tmp_path: Path) -> None:
    # As for the first process of a container: there the kernel drops signals that nobody handles.
    script = tmp_path / "script.py"
    script.write_text(
        "import os, signal\n"
        "from asyncserver.cli_process import end_on_stop_signals\n"
        "end_on_stop_signals()\n"
        "signal.raise_signal = lambda number: None\n"
        "os.kill(os.getpid(), signal.SIGTERM)\n"
        "signal.pause()\n"
    )
    assert run_python(tmp_path, script)[0] == 143


def test_server_that_closes_itself_ends_with_0(serve: Serve, loop_name: str) -> None:
    with serve("app:closing", ADDRESS, "--loop", loop_name) as process:
        connect(process.wait_for_port()).close()
        assert process.wait() == 0


# --- what it serves, and where ---


@pytest.mark.parametrize(
    ("target", "answer"),
    [("app:Chat", b"chat"), ("app:service.serve", b"service"), ("app.py:Chat", b"chat")],
)
def test_handlers_of_every_kind(serve: Serve, target: str, answer: bytes) -> None:
    with serve(target, ADDRESS) as process:
        assert exchange(process.wait_for_port(), b"") == answer


def test_server_as_target(serve: Serve) -> None:
    with serve("app:server") as process:
        assert exchange(process.wait_for_port(), b"one\ntwo\n") == b"got one\ngot two\n"


def test_app_dir(directory: Path, serve: Serve) -> None:
    (directory / "source").mkdir()
    (directory / "source/other.py").write_text("async def hello(stream):\n    await stream.send(b'hello')\n")
    with serve("other:hello", ADDRESS, "--app-dir", "source") as process:
        assert exchange(process.wait_for_port(), b"") == b"hello"


@pytest.mark.skipif(not hasattr(socket, "AF_UNIX"), reason="the platform has no Unix sockets")
def test_several_addresses_in_one_line(serve: Serve, directory: Path) -> None:
    hint = "try: nc {host} {port}, or {address}; not {path}"
    with serve("app:echo", ADDRESS, "unix:app.sock", "--hint", hint, "--loop", "asyncio") as process:
        port = process.wait_for_port()
    assert process.stdout == (
        f"Listening on tcp://127.0.0.1:{port}, unix:app.sock (asyncio)"
        f" - try: nc 127.0.0.1 {port}, or tcp://127.0.0.1:{port}; not {{path}}\n"
    )


def test_hint_names_an_address_that_can_be_reached(serve: Serve) -> None:
    with serve("app:echo", "tcp://0.0.0.0:0", "--hint", "try: nc {host} {port}") as process:
        port = process.wait_for_port()
    assert process.stdout.endswith(f" - try: nc 127.0.0.1 {port}\n")


@on_posix
def test_nobody_reading_stdout_is_no_reason_to_end(directory: Path) -> None:
    script = directory / "script.py"
    script.write_text(
        "import os, sys\n"
        "from asyncserver.cli import main\n"
        "reader, writer = os.pipe()\n"
        "os.close(reader)\n"
        "os.dup2(writer, 1)\n"
        "sys.argv = ['asyncserver', 'serve', 'app:echo', 'unix:app.sock']\n"
        "main()\n"
    )
    with PythonProcess(directory, script) as process:
        wait_until_blocking((directory / "app.sock").exists, timeout=LONG)
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(LONG)
            client.connect(str(directory / "app.sock"))
            client.sendall(b"hello")
            assert client.recv(100) == b"hello"
        assert process.terminate() == -signal.SIGTERM


def test_tls(serve: Serve, directory: Path) -> None:
    files = authority().server("localhost")
    (directory / "password").write_text("secret\n")
    options = [
        "--tls-cert", str(files.certificate),
        "--tls-key", str(files.encrypted_key("secret")),
        "--tls-key-password-file", "password",
        "--tls-client-ca", str(authority().file),
        "--tls-client-certs", "optional",
        "--tls-alpn", "echo/2",
        "--tls-alpn", "echo/1",
        "--tls-reload-interval", "1h",
    ]  # fmt: skip
    context = authority().client_context()
    context.set_alpn_protocols(["echo/1"])
    with serve("app:echo", f"tls+{ADDRESS}", *options) as process:
        with connect(process.wait_for_port()) as plain:
            with context.wrap_socket(plain, server_hostname="localhost") as client:
                assert client.selected_alpn_protocol() == "echo/1"
                client.sendall(b"hello")
                assert client.recv(100) == b"hello"
    assert process.stdout.startswith("Listening on tls+tcp://127.0.0.1:")


# --- logging ---


def test_log_names_the_connection(serve: Serve) -> None:
    with serve("app:echo", ADDRESS) as process:
        with connect(process.wait_for_port()) as client:
            port = client.getsockname()[1]
            process.wait_for("a client")
    assert re.search(
        rf"^\d{{4}}-.* INFO app \[connection 1 from 127\.0\.0\.1:{port}\]: a client$",
        process.stderr,
        re.MULTILINE,
    )


def test_log_level(serve: Serve) -> None:
    with serve("app:echo", ADDRESS, "--log-level", "warning") as process:
        assert exchange(process.wait_for_port(), b"hello") == b"hello"
        process.terminate()
    assert process.stderr == ""


def test_logging_that_the_module_has_set_up_is_left_alone(serve: Serve, directory: Path) -> None:
    (directory / "own.py").write_text(
        "import logging\nlogging.basicConfig(format='own %(message)s', level='INFO')\nfrom app import echo\n"
    )
    with serve("own:echo", ADDRESS, "--log-level", "debug") as process:
        with connect(process.wait_for_port()):
            process.wait_for("own a client")
        process.wait_for("own connection 1 from")


# --- usage errors: status 2, one or two lines, no traceback ---

BAD_USAGE: list[tuple[list[str], str]] = [
    # the command
    ([], "Missing argument 'HANDLER'."),
    (["--idel-timeout", "3", "app:echo", ADDRESS], "No such option.*--idel-timeout"),
    (["app:echo", ADDRESS, "--idle-timeout"], "Option '--idle-timeout' requires an argument"),
    # addresses
    (["app:echo"], "give at least one ADDRESS, such as tcp://127.0.0.1:9999, or set ASYNCSERVER_ADDRESSES"),
    (["app:echo", "127.0.0.1:9999"], "ADDRESS...: '127.0.0.1:9999': .*did you mean tcp://127.0.0.1:9999?"),
    (["app:echo", "tcp://127.0.0.1:99999"], "ADDRESS...: 'tcp://127.0.0.1:99999': port 99999"),
    (["app:echo", f"tls+{ADDRESS}"], f"'tls+{ADDRESS}' needs --tls-cert"),
    # the handler
    (["nowhere_at_all:echo", ADDRESS], "HANDLER: 'nowhere_at_all:echo': there is no module 'nowhere_at_all'"),
    (["nowhere.py:echo", ADDRESS], "HANDLER: 'nowhere.py:echo': there is no file"),
    (["app:ecko", ADDRESS], "HANDLER: 'app:ecko': app has no 'ecko'; did you mean 'echo'?"),
    (["app", ADDRESS], "HANDLER: 'app': say what in it is to serve: app:echo, app:Chat, "),
    (["app.py", ADDRESS], "HANDLER: 'app.py': say what in it is to serve: app.py:echo, "),
    (["app:plain", ADDRESS], "HANDLER: 'app:plain' is not async: write `async def`"),
    (["app:two", ADDRESS], "HANDLER: 'app:two' has to take one argument, the stream; it takes (one, other)"),
    (["app:service", ADDRESS], "HANDLER: 'app:service' has to be an async function or a StreamHandler class"),
    (["app:NoHandler", ADDRESS], "HANDLER: 'app:NoHandler' has to extend asyncserver.StreamHandler"),
    (["my-app:echo", ADDRESS], "HANDLER: 'my-app:echo': 'my-app' is not the name of a module"),
    # a server as target
    (["app:server", ADDRESS], "'app:server' is a Server, .* leave out ADDRESS..."),
    (["app:server", "--idle-timeout", "3", "--no-delay"], "leave out --idle-timeout, --no-delay"),
    (["app:server", "--tls-key-password-file", "app.py"], "--tls-key-password-file needs --tls-cert"),
    # values
    (["app:echo", ADDRESS, "--idle-timeout", "10x"], "--idle-timeout: '10x' is not a duration; write 30, "),
    (["app:echo", ADDRESS, "--idle-timeout", "-1"], "--idle-timeout: '-1' is not a duration"),
    (["app:echo", ADDRESS, "--idle-timeout", "0"], "--idle-timeout: 0.0 has to be more than zero"),
    (["app:echo", ADDRESS, "--grace", "none"], "--grace: none has to be a number of seconds"),
    (["app:echo", ADDRESS, "--lifetime-jitter", "2"], "--lifetime-jitter: 2.0 has to be a fraction from 0 "),
    (["app:echo", ADDRESS, "--max-connections", "many"], "--max-connections: 'many' is not a whole number"),
    (["app:echo", ADDRESS, "--max-connections", "0"], "--max-connections: 0 has to be at least 1"),
    (["app:echo", ADDRESS, "--accept-burst", "3"], "--accept-burst: 3 has no meaning without --accept-rate"),
    (["app:echo", ADDRESS, "--receive-buffer", "2MiB"], "--receive-buffer: 2097152 has to be at most"),
    (["app:echo", ADDRESS, "--receive-buffer", "1x"], "--receive-buffer: '1x' is not a number of bytes"),
    (["app:echo", ADDRESS, "--receive-buffer-size", "0"], "--receive-buffer-size: 0 must be 1 to"),
    (["app:echo", ADDRESS, "--reject-message", r"a\q"], "--reject-message: "),
    (["app:echo", ADDRESS, "--backlog", "0"], "--backlog: 0 must be 1 to 65535"),
    (["app:echo", ADDRESS, "--keep-alive-idle", "1.5"], "--keep-alive-idle: 1.5 must be whole seconds"),
    (["app:echo", ADDRESS, "--no-keep-alive", "--keep-alive-probes", "3"], "--keep-alive-probes and --no"),
    (["app:echo", ADDRESS, "--when-full", "panic"], "--when-full: 'panic' is not one of 'wait', 'reject'"),
    (["app:echo", ADDRESS, "--loop", "trio"], "--loop: 'trio' is not one of 'auto', 'uvloop', 'asyncio'"),
    (["app:echo", ADDRESS, "--app-dir", "nowhere"], "--app-dir: Directory 'nowhere' does not exist"),
    # TLS
    (["app:echo", ADDRESS, "--tls-key", "key.pem"], "--tls-key needs --tls-cert"),
    (
        ["app:echo", ADDRESS, "--tls-cert", "a.pem", "--tls-client-ca", "ca.pem"],
        "--tls-client-ca 'ca.pem': not used; add --tls-client-certs 'required'",
    ),
    (
        ["app:echo", ADDRESS, "--tls-cert", "a.pem", "--tls-client-certs", "required"],
        "--tls-client-certs 'required': --tls-client-ca has to name the file",
    ),
    (["app:echo", ADDRESS, "--tls-cert", "a.pem", "--tls-alpn", ""], "--tls-alpn name '': a protocol name "),
]  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "message"), BAD_USAGE, ids=[" ".join(arguments) or "nothing" for arguments, _ in BAD_USAGE]
)
def test_wrong_usage(arguments: list[str], message: str, in_process: InProcess) -> None:
    said = wrong_usage(in_process, *arguments)
    assert re.match(".*" + re.escape(message).replace(r"\.\*", ".*"), said), said


@pytest.fixture
def in_process(
    directory: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Iterator[InProcess]:
    """Runs a command that fails before it serves."""
    with commands_in_process(directory, monkeypatch, capfd) as run:
        yield run


def test_wrong_usage_in_a_process_of_its_own(run: Run) -> None:
    status, stdout, stderr = run("app:echo", ADDRESS, "--idle-timeout", "10x")
    assert (status, stdout) == (2, "")
    assert stderr.splitlines() == [
        "asyncserver: --idle-timeout: '10x' is not a duration; write 30, 1.5, 500ms, 2m, 1h, or none",
        "Try 'asyncserver serve --help'.",
    ]


def test_unknown_command(in_process: InProcess) -> None:
    status, _, stderr = in_process("serv")
    assert status == 2
    assert stderr.startswith("asyncserver: No such command 'serv'.")


def test_loop_that_is_not_installed(directory: Path) -> None:
    script = directory / "script.py"
    script.write_text(
        "import sys\n"
        "sys.modules['uvloop'] = None\n"
        "from asyncserver.cli import main\n"
        f"sys.argv = ['asyncserver', 'serve', 'app:echo', '{ADDRESS}', '--loop', 'uvloop']\n"
        "main()\n"
    )
    status, stdout, stderr = run_python(directory, script)
    assert (status, stdout) == (2, "")
    assert stderr == "asyncserver: loop='uvloop': uvloop is not installed: pip install uvloop\n"


def test_without_click(directory: Path) -> None:
    script = directory / "script.py"
    script.write_text(
        "import sys\nsys.modules['click'] = None\nfrom asyncserver.cli import main\nsys.exit(main())\n"
    )
    assert run_python(directory, script) == (
        2,
        "",
        "asyncserver: the command line needs click: pip install click\n",
    )


# --- failed starts: status 1 ---


def test_address_in_use(run: Run) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        where = f"tcp://127.0.0.1:{taken.getsockname()[1]}"
        status, stdout, stderr = run("app:echo", where)
    assert (status, stdout) == (1, "")
    assert stderr.startswith(f"asyncserver: cannot listen on {where}: ")
    assert len(stderr.splitlines()) <= 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--tls-cert", "nowhere.pem"], "--tls-cert 'nowhere.pem': no such file"),
        (["--tls-cert", "CERTIFICATE", "--tls-key", "nowhere.pem"], "--tls-key 'nowhere.pem': no such file"),
        (
            ["--tls-cert", "CERTIFICATE"],
            "no private key in this file; add it, or name its file with --tls-key",
        ),
        (
            ["--tls-cert", "CERTIFICATE", "--tls-key", "ENCRYPTED"],
            "no password; give --tls-key-password-file",
        ),
    ],
)
def test_bad_certificate(run: Run, options: list[str], message: str) -> None:
    files = authority().server("localhost")
    paths = {"CERTIFICATE": str(files.certificate), "ENCRYPTED": str(files.encrypted_key("secret"))}
    status, stdout, stderr = run("app:echo", f"tls+{ADDRESS}", *(paths.get(each, each) for each in options))
    assert (status, stdout) == (1, "")
    assert stderr.startswith("asyncserver: ")
    assert message in stderr
    assert len(stderr.splitlines()) == 1


def test_failing_lifespan_shows_its_own_frames(run: Run) -> None:
    status, stdout, stderr = run("app:server_that_fails")
    assert (status, stdout) == (1, "")
    assert stderr.startswith("asyncserver: the lifespan failed to start: RuntimeError('no database')\n")
    assert stderr.endswith("RuntimeError: no database\n")
    assert "app.py" in stderr


def test_module_that_raises_shows_its_own_frames(run: Run, directory: Path) -> None:
    (directory / "broken.py").write_text("def fail():\n    1 / 0\n\nfail()\n")
    status, stdout, stderr = run("broken:echo", ADDRESS)
    assert (status, stdout) == (1, "")
    assert stderr.startswith(
        "asyncserver: broken raised while it was imported:\nTraceback (most recent call last):\n"
    )
    assert stderr.endswith("ZeroDivisionError: division by zero\n")
    files = re.findall(r'^  File "([^"]+)"', stderr, re.MULTILINE)
    assert files == [str(directory / "broken.py")] * 2


# --- options and the environment ---


def test_options_reach_the_server(serve: Serve) -> None:
    options = [
        "--max-connections",
        "none",
        "--when-full",
        "reject",
        "--idle-timeout",
        "2m",
        "--linger",
        "500ms",
    ]
    with serve("app:settings", ADDRESS, *options) as process:
        answer = exchange(process.wait_for_port(), b"").decode()
    assert answer == repr(
        (Limits(max_connections=None, when_full="reject"), Timeouts(idle=120.0, linger=0.5))
    )


def test_environment_counts_less_than_the_command_line(serve: Serve) -> None:
    environment = {
        "ASYNCSERVER_ADDRESSES": f"{ADDRESS} {ADDRESS}",
        "ASYNCSERVER_IDLE_TIMEOUT": "1h",
        "ASYNCSERVER_SEND_TIMEOUT": "none",
        "ASYNCSERVER_LOOP": "asyncio",
        "ASYNCSERVER_HINT": "from the environment",
    }
    with serve("app:settings", "--idle-timeout", "3", **environment) as process:
        answer = exchange(process.wait_for_port(), b"").decode()
    assert answer == repr((Limits(), Timeouts(idle=3.0, send=None)))
    assert re.fullmatch(
        r"Listening on tcp://127.0.0.1:\d+, tcp://127.0.0.1:\d+ \(asyncio\) - from the environment\n",
        process.stdout,
    )


def test_error_names_the_variable(in_process: InProcess) -> None:
    _, _, stderr = in_process("serve", "app:echo", ADDRESS, ASYNCSERVER_BACKLOG="0")
    assert stderr.startswith("asyncserver: --backlog (from ASYNCSERVER_BACKLOG): 0 must be")


def test_bad_address_in_the_environment_names_the_variable(in_process: InProcess) -> None:
    _, _, stderr = in_process("serve", "app:echo", ASYNCSERVER_ADDRESSES="tcp://:1 http://:1")
    assert stderr.startswith("asyncserver: ADDRESS... (from ASYNCSERVER_ADDRESSES): 'http://:1': scheme")


def test_contradiction_from_the_environment_names_the_variable(in_process: InProcess) -> None:
    _, _, stderr = in_process("serve", "app:server", ASYNCSERVER_IDLE_TIMEOUT="3")
    assert "leave out --idle-timeout (from ASYNCSERVER_IDLE_TIMEOUT)" in stderr


def configured(
    monkeypatch: pytest.MonkeyPatch, in_process: InProcess, *arguments: str, **environment: str
) -> Configuration:
    """What the options of a command line make, whatever it is that is served."""
    made: list[Configuration] = []

    def make_no_servers(
        ctx: object, handler: str, target: object, addresses: object, parts: Configuration
    ) -> Any:
        made.append(parts)
        return ()

    monkeypatch.setattr(cli_serve, "_check_options_have_a_meaning", Mock())
    monkeypatch.setattr(cli_serve, "_make_servers", make_no_servers)
    monkeypatch.setattr(cli_commands, "run_plan", Mock(return_value=0))
    status, _, stderr = in_process("serve", "app:echo", ADDRESS, *arguments, **environment)
    assert status == 0, stderr
    return made[0]


def test_nothing_said_is_the_defaults(monkeypatch: pytest.MonkeyPatch, in_process: InProcess) -> None:
    assert configured(monkeypatch, in_process) == Configuration(
        streams={"limits": Limits(), "timeouts": Timeouts(), "options": SocketOptions(), "tls": None},
        datagrams={
            "limits": DatagramLimits(),
            "timeouts": DatagramTimeouts(),
            "options": DatagramOptions(),
        },
        running={},
    )


VALUES: dict[tuple[type, str], tuple[str, Any]] = {
    (Limits, "max_connections"): ("7", 7),
    (Limits, "when_full"): ("reject", "reject"),
    (Limits, "reject_message"): (r"full\r\n", b"full\r\n"),
    (Limits, "max_connections_per_peer"): ("3", 3),
    (Limits, "accept_rate"): ("2.5", 2.5),
    (Limits, "accept_burst"): ("4", 4),
    (Limits, "max_handshakes"): ("none", None),
    (Limits, "receive_buffer"): ("32KiB", 32_768),
    (Limits, "send_buffer"): ("1MiB", 1_048_576),
    (Timeouts, "handshake"): ("3", 3.0),
    (Timeouts, "first_byte"): ("1.5", 1.5),
    (Timeouts, "idle"): ("2m", 120.0),
    (Timeouts, "send"): ("none", None),
    (Timeouts, "handler"): ("1h", 3600.0),
    (Timeouts, "lifetime"): ("1d", 86_400.0),
    (Timeouts, "lifetime_jitter"): ("0.5", 0.5),
    (Timeouts, "linger"): ("0", 0.0),
    (Timeouts, "grace"): ("500ms", 0.5),
    (SocketOptions, "backlog"): ("9", 9),
    (SocketOptions, "reuse_address"): ("no", False),
    (SocketOptions, "reuse_port"): ("yes", True),
    (SocketOptions, "no_delay"): ("no", False),
    (SocketOptions, "keep_alive"): ("yes", KeepAlive(idle=30.0, interval=5.0, probes=3)),
    (SocketOptions, "receive_buffer"): ("64k", 65_536),
    (SocketOptions, "send_buffer"): ("65536", 65_536),
    (DatagramLimits, "max_packet_size"): ("2k", 2_048),
    (DatagramLimits, "max_handlers"): ("none", None),
    (DatagramLimits, "order"): ("peer", "peer"),
    (DatagramLimits, "max_queue"): ("0", 0),
    (DatagramLimits, "when_full"): ("drop_oldest", "drop_oldest"),
    (DatagramLimits, "max_sessions"): ("7", 7),
    (DatagramLimits, "session_queue"): ("8", 8),
    (DatagramTimeouts, "handler"): ("1h", 3600.0),
    (DatagramTimeouts, "session_idle"): ("2m", 120.0),
    (DatagramTimeouts, "send"): ("none", None),
    (DatagramTimeouts, "grace"): ("500ms", 0.5),
    (DatagramOptions, "receive_buffer"): ("64k", 65_536),
    (DatagramOptions, "send_buffer"): ("65536", 65_536),
    (DatagramOptions, "reuse_address"): ("no", False),
    (DatagramOptions, "reuse_port"): ("yes", True),
    (DatagramOptions, "broadcast"): ("yes", True),
    (DatagramOptions, "groups"): (
        "239.1.2.3%lo 10.0.0.7@232.1.2.3",
        (MulticastGroup("239.1.2.3", "lo"), MulticastGroup("232.1.2.3", None, "10.0.0.7")),
    ),
    (DatagramOptions, "multicast_loop"): ("no", False),
    (DatagramOptions, "multicast_ttl"): ("4", 4),
    (DatagramOptions, "multicast_interface"): ("eth0", "eth0"),
    (DatagramOptions, "timestamps"): ("no", False),
    (KeepAlive, "idle"): ("30", 30.0),
    (KeepAlive, "interval"): ("5s", 5.0),
    (KeepAlive, "probes"): ("3", 3),
    (TLSConfig, "certificate"): ("chain.pem", "chain.pem"),
    (TLSConfig, "private_key"): ("key.pem", "key.pem"),
    (TLSConfig, "client_ca"): ("ca.pem", "ca.pem"),
    (TLSConfig, "client_certificates"): ("optional", "optional"),
    (TLSConfig, "alpn"): ("h2 http/1.1", ("h2", "http/1.1")),
    (TLSConfig, "reload_interval"): ("1m", 60.0),
}


OWNERS = (
    Limits,
    Timeouts,
    SocketOptions,
    KeepAlive,
    TLSConfig,
    DatagramLimits,
    DatagramTimeouts,
    DatagramOptions,
)


def expected(owner: type) -> Any:
    return owner(**{field: value for (cls, field), (_, value) in VALUES.items() if cls is owner})


def check_everything_was_said(parts: Configuration) -> None:
    assert parts.streams == {
        "limits": expected(Limits),
        "timeouts": expected(Timeouts),
        "options": expected(SocketOptions),
        "tls": expected(TLSConfig),
    }
    assert parts.datagrams == {
        "limits": expected(DatagramLimits),
        "timeouts": expected(DatagramTimeouts),
        "options": expected(DatagramOptions),
    }


def test_every_option_by_the_environment(monkeypatch: pytest.MonkeyPatch, in_process: InProcess) -> None:
    environment = {each.variable: VALUES[each.owners[0], each.field][0] for each in field_options()}
    check_everything_was_said(configured(monkeypatch, in_process, **environment))


def test_every_option_by_the_command_line(monkeypatch: pytest.MonkeyPatch, in_process: InProcess) -> None:
    words = [word for each in field_options() for word in words_for(each)]
    check_everything_was_said(configured(monkeypatch, in_process, *words))


def words_for(option: FieldOption) -> list[str]:
    text, value = VALUES[option.owners[0], option.field]
    if option.is_flag:
        return [option.opts[0] if value else option.secondary_opts[0]]
    if option.multiple:
        return [word for each in text.split() for word in (option.flag, each)]
    return [option.flag, text]


@pytest.mark.parametrize("option", ["receive_buffer", "multicast_interface"])
def test_none_is_no_value(monkeypatch: pytest.MonkeyPatch, in_process: InProcess, option: str) -> None:
    setting = option_for(DatagramOptions, option)
    assert setting is not None
    parts = configured(monkeypatch, in_process, setting.flag, "none")
    assert getattr(parts.datagrams["options"], option) is None


def test_keep_alive_can_be_switched_off(monkeypatch: pytest.MonkeyPatch, in_process: InProcess) -> None:
    by_flag = configured(monkeypatch, in_process, "--no-keep-alive")
    by_variable = configured(monkeypatch, in_process, ASYNCSERVER_KEEP_ALIVE="no")
    assert by_flag.streams["options"].keep_alive is None
    assert by_variable.streams["options"].keep_alive is None


def field_options() -> list[FieldOption]:
    return [option for option in all_options() if isinstance(option, FieldOption)]


@pytest.mark.parametrize("owner", [each for each in OWNERS if each is not TLSConfig])
def test_every_field_has_its_option(owner: type[Any]) -> None:
    missing = [field.name for field in dataclasses.fields(owner) if option_for(owner, field.name) is None]
    assert missing == []


# --- how values are written ---


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("30", 30.0), ("1.5", 1.5), (".5", 0.5), ("500ms", 0.5), ("7ms", 0.007), ("10s", 10.0), ("2m", 120.0),
        ("1h", 3600.0), ("1.5h", 5400.0), ("1d", 86_400.0), ("0", 0.0), ("none", OFF), ("None", OFF),
    ],
)  # fmt: skip
def test_durations(text: str, seconds: float) -> None:
    assert duration(text) == seconds


@pytest.mark.parametrize("text", ["", "s", "-1", "1e3", "inf", "nan", "1 2", "1m30s", "3w", "1,5"])
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(
        click.BadParameter, match=r"is not a duration; write 30, 1\.5, 500ms, 2m, 1h, or none"
    ):
        duration(text)


@pytest.mark.parametrize(
    "seconds", [0.0, 0.25, 1.0, 59.0, 60.0, 90.0, 600.0, 3600.0, 5400.0, 86_400.0, 90_000.0]
)
def test_shown_durations_can_be_written(seconds: float) -> None:
    assert duration(shown_duration(seconds)) == seconds


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("0", 0),
        ("65536", 65_536),
        ("64k", 65_536),
        ("64KiB", 65_536),
        ("1M", 2**20),
        ("1 MiB", 2**20),
        ("none", OFF),
    ],
)
def test_sizes(text: str, value: int) -> None:
    assert size(text) == value


@pytest.mark.parametrize("text", ["", "-1", "1.5k", "1KB", "k"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(click.BadParameter, match="is not a number of bytes"):
        size(text)


def test_numbers() -> None:
    assert (count("7"), count("none"), number("0.5"), number("none")) == (7, OFF, 0.5, OFF)
    with pytest.raises(click.BadParameter, match=r"'7\.5' is not a whole number"):
        count("7.5")
    with pytest.raises(click.BadParameter, match="'x' is not a number"):
        number("x")


@pytest.mark.parametrize(
    ("text", "data"),
    [
        ("busy", b"busy"), (r"busy\r\n", b"busy\r\n"), (r"\x00\0\t\\n", b"\0\0\t\\n"),
        ("späť", "späť".encode()), ("", b""), ("\udcff", b"\xff"),
    ],
)  # fmt: skip
def test_messages(text: str, data: bytes) -> None:
    assert text_bytes(text) == data


@pytest.mark.parametrize("text", ["\\", r"\q", r"\x1", "a\\"])
def test_unknown_escapes_are_errors(text: str) -> None:
    with pytest.raises(click.BadParameter, match="has a backslash"):
        text_bytes(text)


def test_addresses() -> None:
    assert address("unix:app.sock") == parse_address("unix:app.sock")


# --- help ---


def test_version(tmp_path: Path) -> None:
    assert run_python(tmp_path, "-m", "asyncserver", "--version") == (0, f"asyncserver {__version__}\n", "")


def test_help_lists_the_commands(in_process: InProcess) -> None:
    status, stdout, _ = in_process("--help")
    assert status == 0
    assert re.search(r"^  serve +Serve streams and datagrams", stdout, re.MULTILINE)


def test_help_teaches(in_process: InProcess) -> None:
    status, stdout, stderr = in_process("serve", "--help")
    assert (status, stderr) == (0, "")
    for title in ("Addresses", "Examples", *(group.title for group in GROUPS), "Environment", "Exit status"):
        assert f"\n{title}:\n" in stdout
    for option in all_options():
        assert re.search(rf"^  {option.flag}\b", stdout, re.MULTILINE), option.flag
        assert option.variable in stdout
    assert "``" not in stdout


def test_help_has_the_defaults(in_process: InProcess) -> None:
    text = " ".join(in_process("serve", "--help")[1].split())
    assert f"[default: {Limits().max_connections}; ASYNCSERVER_MAX_CONNECTIONS]" in text
    assert f"[default: {shown_duration(Timeouts().idle or 0)}; ASYNCSERVER_IDLE_TIMEOUT]" in text
    assert "[default: none; ASYNCSERVER_LIFETIME]" in text
    assert "[default: 1m, datagrams: 5s; ASYNCSERVER_SEND_TIMEOUT]" in text
    assert "[default: yes, datagrams: no; ASYNCSERVER_REUSE_ADDRESS]" in text
    assert "[default: 5s; ASYNCSERVER_GRACE]" in text
    assert f"[default: {KeepAlive().probes}; ASYNCSERVER_KEEP_ALIVE_PROBES]" in text
    drain_timeout = inspect.signature(run_server).parameters["drain_timeout"].default
    assert f"[default: {shown_duration(drain_timeout)}; ASYNCSERVER_DRAIN_TIMEOUT]" in text


@pytest.mark.parametrize("option", all_options(), ids=lambda option: option.flag)
def test_every_option_is_described(option: ServeOption) -> None:
    description = option.description()
    assert re.fullmatch(r"[A-Za-z].*[.)\\]", description), description
    assert "`" not in description


def test_every_field_is_documented() -> None:
    for owner in OWNERS:
        assert set(field_documentation(owner)) == {field.name for field in dataclasses.fields(owner)}


def test_help_without_sources(directory: Path) -> None:
    # As in a bundle that has compiled modules only.
    script = directory / "script.py"
    script.write_text(
        "import inspect, sys\n"
        "def no_source(owner): raise OSError\n"
        "inspect.getsource = no_source\n"
        "from asyncserver.cli import main\n"
        "sys.argv = ['asyncserver', 'serve', '--help']\n"
        "main()\n"
    )
    status, stdout, _ = run_python(directory, script)
    assert status == 0
    assert "--max-connections" in stdout


def test_reference_has_every_option() -> None:
    rows = [line for line in REFERENCE.read_text().splitlines() if line.startswith("| `--")]
    assert rows == [reference_row(option) for option in all_options()]


def reference_row(option: ServeOption) -> str:
    flags = " / ".join(f"`{flag}`" for flag in (*option.opts, *option.secondary_opts))
    value = "" if option.is_flag else ", ".join(f"`{each}`" for each in str(option.metavar).split("|"))
    cells = [flags, value, option.default_text or "", f"`{option.variable}`", option.description()]
    return f"| {' | '.join(cells)} |"
