"""Start, pin, look at and stop the processes of a run."""

from __future__ import annotations

import contextlib
import itertools
import os
import resource
import selectors
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from .building import BUILD, HERE
from .servers import Server
from .workloads import Workload

START_LIMIT = 20.0  # seconds for a server to say that it listens
STOP_LIMIT = 5.0  # seconds for a server to end after SIGTERM


class ServerFailedError(Exception):
    """A server did not come up, with what it wrote to its standard error."""


@dataclass(frozen=True, slots=True)
class Cores:
    """Which core the server and which the load is pinned to, or None where there is only one."""

    server: int | None
    load: int | None


@dataclass(frozen=True, slots=True)
class Certificate:
    """A self-signed certificate and its key, as PEM files."""

    certificate: Path
    key: Path


@dataclass(slots=True)
class RunningServer:
    """A server that listens on 127.0.0.1:`port`; the leader of its own process group."""

    process: subprocess.Popen[bytes]
    port: int
    errors: IO[bytes]

    def process_ids(self) -> list[int]:
        """Return the processes of the server's group."""
        return [pid for pid in _all_processes() if _group_of(pid) == self.process.pid]

    def resident_kib(self) -> int:
        """Return the resident memory of the whole group, in KiB."""
        return sum(_resident_kib(pid) for pid in self.process_ids())

    def error_text(self) -> str:
        """Return the last of what the server wrote to its standard error."""
        self.errors.seek(0)
        return self.errors.read().decode(errors="replace").strip()[-1500:]

    def last_words(self) -> str:
        """Return the last line that says something: of a traceback, the error."""
        lines = [line for line in self.error_text().splitlines() if any(map(str.isalnum, line))]
        return lines[-1] if lines else ""

    def alive(self) -> bool:
        """Whether the server still runs."""
        return self.process.poll() is None

    def stop(self) -> None:
        """End the server: SIGTERM, and SIGKILL when that does not help."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGTERM)
        try:
            self.process.wait(STOP_LIMIT)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        self.errors.close()


def choose_cores() -> Cores:
    """Give the server the first core that this process may use, and the load the second."""
    usable = sorted(os.sched_getaffinity(0))
    return Cores(usable[0], usable[1]) if len(usable) > 1 else Cores(None, None)


def raise_descriptor_limit() -> int:
    """Allow as many descriptors as the hard limit does; return that number."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


def start_pinned(
    command: list[str],
    core: int | None,
    errors: IO[bytes] | None = None,
    environment: dict[str, str] | None = None,
) -> subprocess.Popen[bytes]:
    """Start `command` in a process group of its own, on `core` alone."""
    usable = os.sched_getaffinity(0)
    if core is not None:
        os.sched_setaffinity(0, {core})  # the child inherits it
    try:
        return subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            bufsize=0,  # a line can be read before communicate() takes over
            env=environment,
            start_new_session=True,
        )
    finally:
        os.sched_setaffinity(0, usable)


def server_command(
    server: Server, workload: Workload, port: int, python: str, tls: Certificate | None
) -> list[str]:
    """Return the command line that makes `server` do `workload` on `port`."""
    if server.binary:
        return [str(BUILD / server.binary), "--port", str(port)]
    command = [python, str(HERE / "servers" / server.script), "--port", str(port)]
    command += [*server.options, *workload.server_options]
    if workload.server_work != "echo":
        command += ["--work", workload.server_work]
    if workload.tls:
        assert tls is not None
        command += ["--tls", "--certificate", str(tls.certificate), "--key", str(tls.key)]
    return command


def shutdown_command(server: Server, workload: Workload, python: str) -> list[str]:
    """Return the command line that makes `server` time its own shutdown()."""
    script = str(HERE / "servers" / "shutdowns.py")
    return [python, script, *server.options, "--times", str(workload.connections)]


@contextlib.contextmanager
def started(command: list[str], core: int | None) -> Iterator[subprocess.Popen[bytes]]:
    """Run `command`, which ends by itself; it is killed when the block is left before that."""
    process = start_pinned(command, core, environment=_environment())
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
            process.communicate()


@contextlib.contextmanager
def running(command: list[str], port: int, core: int | None) -> Iterator[RunningServer]:
    """Run the server `command` until the block ends.

    Raises ServerFailedError when it ends early or does not say within 20 s that it listens.
    """
    errors = tempfile.TemporaryFile()  # noqa: SIM115  (closed by stop())
    server = RunningServer(start_pinned(command, core, errors, _environment()), port, errors)
    try:
        if not _says_ready(server.process):
            raise ServerFailedError(server.error_text() or "no word that it listens")
        yield server
    finally:
        server.stop()


_ports = itertools.cycle(range(20000, 32000))
for _ in range(os.getpid() * 7 % 12000):
    next(_ports)


def free_port() -> int:
    """Return a port that nobody uses, below those that the kernel gives to outgoing connections.

    Each call gives another one, so that no server meets the TIME_WAIT sockets of those before it.
    """
    for port in itertools.islice(_ports, 1000):
        with socket.socket() as stream, socket.socket(type=socket.SOCK_DGRAM) as datagrams:
            stream.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with contextlib.suppress(OSError):
                stream.bind(("127.0.0.1", port))
                datagrams.bind(("127.0.0.1", port))
                return port
    raise ServerFailedError("no free port between 20000 and 32000")


def probe(port: int, message: bytes = b"probe\n") -> None:
    """Open a connection, have `message` echoed once, close it, and wait for the server's close."""
    with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
        connection.sendall(message)
        received = b""
        while len(received) < len(message):
            if not (chunk := connection.recv(100)):
                raise ServerFailedError("closed the first connection without an echo")
            received += chunk
        connection.shutdown(socket.SHUT_WR)
        connection.recv(100)


def probe_datagram(port: int, message: bytes = b"probe") -> None:
    """Have one datagram echoed."""
    with socket.socket(type=socket.SOCK_DGRAM) as client:
        client.settimeout(5)
        client.connect(("127.0.0.1", port))
        client.send(message)
        if client.recv(100) != message:
            raise ServerFailedError("answered the first datagram with something else")


def ask_sessions(port: int) -> int:
    """Return how many sessions a server has, the one that asks included.

    Raises ServerFailedError when it does not tell.
    """
    with socket.socket(type=socket.SOCK_DGRAM) as client:
        client.settimeout(5)
        client.connect(("127.0.0.1", port))
        try:
            client.send(b"sessions?")
            return int(client.recv(100))
        except (OSError, ValueError) as error:
            raise ServerFailedError(f"does not say how many sessions it has: {error}") from error


def _environment() -> dict[str, str]:
    """The checkout is what is measured, whatever else of that name is installed."""
    return {**os.environ, "PYTHONPATH": str(HERE.parent)}


def _says_ready(process: subprocess.Popen[bytes]) -> bool:
    assert process.stdout is not None
    deadline = time.monotonic() + START_LIMIT
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        while (left := deadline - time.monotonic()) > 0:
            if selector.select(left):
                return process.stdout.readline().strip() == b"ready"
    return False


def _all_processes() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def _group_of(pid: int) -> int:
    try:
        return os.getpgid(pid)
    except OSError:
        return -1


def _resident_kib(pid: int) -> int:
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1])
    return 0
