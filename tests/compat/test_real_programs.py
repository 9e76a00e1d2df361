"""Programs that were written for the standard library run unmodified under ``python -m compat``.

Each is driven by a client of another make, in every way that ``WAYS`` lists: by plain ``python`` too, so
that what is expected is what the standard library does. That it was ``compat`` that accepted
the connections is said by ``programs/witness``, which looks at the stack when a socket is accepted.
"""

from __future__ import annotations

import http.client
import json
import os
import re
import shutil
import signal
import socket
import struct
import subprocess
import xmlrpc.client
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.processes import LONG, REPOSITORY, PythonProcess, connect
from tests.waiting import wait_until_blocking

pytestmark = pytest.mark.skipif(os.name == "nt", reason="signals of other processes are not delivered there")

PROGRAMS = Path(__file__).parent / "programs"

COMPAT = ("-m", "compat")

WAYS = {
    "python": (),
    "asyncio": (*COMPAT, "--loop", "asyncio"),
    "uvloop": (*COMPAT, "--loop", "uvloop"),
    "pool": (*COMPAT, "--executor", "pool:4"),
    "fork": (*COMPAT, "--executor=fork"),
}

ON_COMPAT = ("asyncio", "uvloop")

EXPECTED_TRACEBACKS = (
    r"ZeroDivisionError: ",  # What a page of the programs raises.
    # A request came while the interpreter was ending, which the server's daemon thread does not know.
    r"RuntimeError: can't create new thread at interpreter shutdown",
)

# Warnings are errors, as everywhere. But most of the programs never close what they listen on, so who ends
# them by a signal leaves sockets behind; it is a matter of luck whether a thread is the last that
# has one, and then Python tells of it with a traceback (on compat or not).
WARNINGS = "error,ignore:unclosed:ResourceWarning"


def ways(*names: str) -> pytest.MarkDecorator:
    """Run the test in these ways."""
    return pytest.mark.parametrize("way", names)


class Program:
    """One of the programs, started."""

    def __init__(self, process: PythonProcess, way: str, directory: Path, witness: Path) -> None:
        self.process = process
        self.way = way
        self.directory = directory
        self._witness = witness

    @property
    def output(self) -> str:
        """Everything that it has written."""
        return self.process.stdout + self.process.stderr

    def ports(self) -> list[int]:
        """The ports that it has said it listens on; there is one at least."""
        pattern = re.compile(r"(?:http://|listening on |HTTP on )127\.0\.0\.1(?::| port )(\d+)\b")
        self.process.wait_for("127.0.0.1")
        wait_until_blocking(lambda: pattern.search(self.output), timeout=LONG, what=lambda: self.output)
        return [int(port) for port in pattern.findall(self.output)]

    @property
    def port(self) -> int:
        """The last of them."""
        return self.ports()[-1]

    def connect(self) -> http.client.HTTPConnection:
        """A client that keeps its connection, and that has to be closed."""
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=LONG)

    def get(self, path: str) -> Any:
        """What a request on a connection of its own is answered, as JSON."""
        with closing(self.connect()) as client:
            return json.loads(ask(client, "GET", path)[1])

    def accepted_in(self) -> set[int]:
        """The processes that have accepted connections; all of them with the servers they should have."""
        lines = [line.split() for line in self._witness.read_text().splitlines()]
        expected = "socketserver" if self.way == "python" else "compat"
        assert {module.partition(".")[0] for _, module in lines} == {expected}
        return {int(process) for process, _ in lines}

    def stop(self, number: int) -> int:
        """Send the signal; returns the status as ``subprocess`` has it."""
        self.process.send_signal(number)
        status = self.process.wait()
        text = self.process.stderr
        expected = sum(len(re.findall(pattern, text)) for pattern in EXPECTED_TRACEBACKS)
        assert text.count("Traceback") == expected, text
        return status


Start = Callable[..., Program]


@pytest.fixture
def start(tmp_path: Path, way: str) -> Iterator[Start]:
    """Starts a program of ``programs`` in a copy of that directory, which it may change."""
    directory = shutil.copytree(PROGRAMS, tmp_path / "programs", ignore=shutil.ignore_patterns("__pycache__"))
    environment = {
        "PYTHONPATH": os.pathsep.join((str(directory / "witness"), str(REPOSITORY))),
        "PYTHONUNBUFFERED": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONWARNINGS": WARNINGS,
        "WITNESS": str(tmp_path / "witness"),
    }
    with ExitStack() as stack:

        def make(*arguments: str | Path) -> Program:
            process = PythonProcess(directory, *WAYS[way], *arguments, environment=environment)
            stack.enter_context(process)
            stack.callback(process.terminate)  # A reloader's parent ends its child, unless it is killed.
            return Program(process, way, directory, tmp_path / "witness")

        yield make


@pytest.fixture(autouse=True)
def sigint_reaches_programs() -> Iterator[None]:
    """What pytest's worker processes ignore, the programs that they start would ignore as well."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def ask(
    client: http.client.HTTPConnection, method: str, path: str, body: bytes | None = None, **headers: str
) -> tuple[int, bytes]:
    """The status and the body of the answer."""
    client.request(method, path, body, headers)
    response = client.getresponse()
    return response.status, response.read()


def refuses(port: int) -> bool:
    """Whether nobody listens there any more."""
    with suppress(ConnectionError):
        connect(port).close()
        return False
    return True


def is_gone(process: int) -> bool:
    """Whether there is no process of this number any more."""
    with suppress(ProcessLookupError):
        os.kill(process, 0)
        return False
    return True


# --- the standard library's ---


@ways("python", *ON_COMPAT, "pool", "fork")
def test_http_server(start: Start, tmp_path: Path) -> None:
    files = tmp_path / "files"
    (files / "directory").mkdir(parents=True)
    (files / "directory" / "listed.txt").touch()
    (files / "hello.txt").write_text("hello\n")
    (files / "big.bin").write_bytes(big := os.urandom(1_000_000))
    program = start(
        *("-m", "http.server", "0", "--bind", "127.0.0.1"),
        *("--protocol", "HTTP/1.1", "--directory", files),
    )
    url = f"http://127.0.0.1:{program.port}"

    # One connection for all; the last answer closes it.
    paths = ("hello.txt", "big.bin", "directory/", "directory", "missing")
    outputs = [option for path in paths for option in ("--output", path.strip("/"), f"{url}/{path}")]
    assert curl(tmp_path, *outputs) == ["200 1", "200 0", "200 0", "301 0", "404 0"]
    assert (tmp_path / "big.bin").read_bytes() == big

    listing = fetched(tmp_path, f"{url}/directory/")
    assert "listed.txt" in listing.body
    head = fetched(tmp_path, f"{url}/big.bin", "--head")
    assert (head.status, head.headers["content-length"], head.body) == (200, "1000000", "")
    part = fetched(tmp_path, f"{url}/hello.txt", "--range", "0-1")
    assert (part.status, part.headers["content-length"], part.body) == (200, "6", "hello\n")
    assert "content-range" not in part.headers, "the standard library's server has no ranges"
    unchanged = fetched(tmp_path, f"{url}/hello.txt", "--time-cond", str(files / "hello.txt"))
    assert (unchanged.status, unchanged.body) == (304, "")
    missing = fetched(tmp_path, f"{url}/missing")
    assert (missing.status, missing.headers["connection"]) == (404, "close")
    assert "File not found" in missing.body
    assert fetched(tmp_path, f"{url}/hello.txt", "--data", "x").status == 501

    at_once = ("--parallel", "--parallel-max", "8", "--header", "Connection: close")
    assert curl(tmp_path, *at_once, *[f"{url}/hello.txt"] * 24) == ["200 1"] * 24

    program.accepted_in()
    assert program.stop(signal.SIGINT) == 0
    assert program.process.stdout.endswith("\nKeyboard interrupt received, exiting.\n")


class Fetched(NamedTuple):
    """An answer."""

    status: int
    headers: dict[str, str]
    body: str


CURL_LINE = "\nanswer: %{http_code} %{num_connects}\n"


def curl(directory: Path, *arguments: str) -> list[str]:
    """Runs it; returns a line for each answer: its status, and how many connections it took."""
    path = shutil.which("curl")
    assert path is not None, "the tests need curl: apt-get install curl"
    done = subprocess.run(
        [path, "-q", "--noproxy", "*", "--no-progress-meter", "--write-out", CURL_LINE, *arguments],
        cwd=directory,
        capture_output=True,
        text=True,
        timeout=LONG,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return re.findall("^answer: (.*)$", done.stdout, re.MULTILINE)


def fetched(directory: Path, url: str, *options: str) -> Fetched:
    """What curl gets."""
    (line,) = curl(directory, url, *options, "--dump-header", "headers", "--output", "body")
    _, *headers = (directory / "headers").read_text().split("\n")
    pairs = (header.strip().partition(": ") for header in headers)
    body = directory / "body"
    text = body.read_text() if body.exists() and "--head" not in options else ""
    body.unlink(missing_ok=True)
    return Fetched(int(line.split()[0]), {name.lower(): value for name, _, value in pairs}, text)


@ways("python", *ON_COMPAT)
def test_xmlrpc(start: Start) -> None:
    program = start("xmlrpc_server.py")
    with xmlrpc.client.ServerProxy(f"http://127.0.0.1:{program.port}/RPC2") as proxy:
        assert proxy.pow(2, 9) == 512
        assert proxy.mul(5, 2) == 10
        assert proxy.add("a" * 200_000, "b") == "a" * 200_000 + "b"
        assert "add" in proxy.system.listMethods()  # type: ignore[operator, attr-defined]
        with pytest.raises(xmlrpc.client.Fault, match='method "missing" is not supported'):
            proxy.missing()
        several = xmlrpc.client.MultiCall(proxy)
        several.add(1, 2)
        several.mul(3, 4)
        assert list(several()) == [3, 12]
    program.accepted_in()
    assert program.stop(signal.SIGINT) == 0
    assert program.process.stdout.endswith("Keyboard interrupt received, exiting.\n")


@ways("python", *ON_COMPAT)
def test_wsgiref(start: Start) -> None:
    program = start("wsgiref_server.py")
    with closing(program.connect()) as client:
        status, body = ask(client, "GET", "/")
        assert (status, body.splitlines()[0]) == (200, b"Hello world!")
    program.process.wait_for("is the second")
    for number in range(3):
        with closing(program.connect()) as client:
            answer = ask(client, "GET", f"/path?number={number}")
            assert answer == (200, f"GET /path?number={number}\n".encode())
    program.accepted_in()
    assert program.stop(signal.SIGTERM) == -signal.SIGTERM


@ways("python", *ON_COMPAT)
def test_logging_listen(start: Start) -> None:
    program = start("logging_server.py")
    program.process.wait_for("an error\n")
    send_configuration(program.port, {"version": 1, "formatters": {"forbidden": {}}})
    for name in ("one", "two"):
        send_configuration(
            program.port,
            {
                "version": 1,
                "disable_existing_loggers": False,
                "formatters": {"plain": {"format": f"{name} %(levelname)s %(message)s"}},
                "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "plain"}},
                "root": {"level": "INFO", "handlers": ["stderr"]},
            },
        )
        program.process.wait_for(f"{name} INFO an info\n")
    program.accepted_in()
    assert program.stop(signal.SIGTERM) == 0
    assert program.process.stdout.endswith("stopped\n")


def send_configuration(port: int, configuration: dict[str, Any]) -> None:
    """As the documentation of ``logging.config.listen`` says; waits until it has been read."""
    data = json.dumps(configuration).encode()
    with connect(port) as client:
        client.sendall(struct.pack(">L", len(data)) + data)
        client.shutdown(socket.SHUT_WR)
        assert client.recv(1) == b""


# --- Flask and Werkzeug ---


def use_flask(program: Program, client: http.client.HTTPConnection) -> None:
    """One connection, kept where the server keeps it."""
    client.request("GET", "/")
    response = client.getresponse()
    assert (response.status, response.read()) == (200, b"visit 1\n")
    cookie = response.headers["Set-Cookie"].partition(";")[0]
    assert ask(client, "GET", "/", Cookie=cookie) == (200, b"visit 2\n")
    status, body = ask(client, "POST", "/upload", b"x" * 300_000, **{"Content-Type": "text/x"})
    assert (status, json.loads(body)) == (200, {"bytes": 300_000, "type": "text/x"})
    status, body = ask(client, "GET", "/stream")
    assert (status, body) == (200, b"".join(b"line %d\n" % number for number in range(1000)))
    assert ask(client, "GET", "/missing")[0] == 404
    assert ask(client, "GET", "/error")[0] == 500
    program.process.wait_for("ZeroDivisionError: ")


@ways("python", *ON_COMPAT, "pool")
def test_flask(start: Start) -> None:
    program = start("-m", "flask", "--app", "flask_app", "run", "--port", "0")
    with closing(program.connect()) as client, closing(program.connect()) as idle:
        idle.connect()
        use_flask(program, client)
        threads = [program.get("/where")["thread"] for _ in range(5)]
    assert (len(set(threads)) < 5) == (program.way == "pool")
    assert program.accepted_in() == {program.process.pid}
    assert program.stop(signal.SIGINT) == 0


@ways("python", *ON_COMPAT)
def test_werkzeug_serial(start: Start) -> None:
    program = start("werkzeug_server.py", "serial")
    with closing(program.connect()) as client:
        use_flask(program, client)
    assert program.get("/where")["thread"] == "MainThread"
    assert program.accepted_in() == {program.process.pid}
    assert program.stop(signal.SIGTERM) == -signal.SIGTERM


@ways("python", *ON_COMPAT)
def test_werkzeug_forking(start: Start) -> None:
    program = start("werkzeug_server.py", "forking")
    with closing(program.connect()) as client:
        use_flask(program, client)
    answers = [program.get("/where") for _ in range(6)]
    assert {each["parent"] for each in answers} == {program.process.pid}
    assert len({each["process"] for each in answers}) == 6
    wait_until_blocking(lambda: all(is_gone(each["process"]) for each in answers[:-2]), what="no zombies")
    assert program.accepted_in() == {program.process.pid}
    assert program.stop(signal.SIGINT) == 0


@ways("python", *ON_COMPAT)
def test_werkzeug_reloader(start: Start) -> None:
    program = start("werkzeug_server.py", "reloader")
    first = program.get("/where")
    assert first["parent"] == program.process.pid
    module = program.directory / "flask_app.py"
    module.write_text(module.read_text().replace("visit {", "changed visit {"))
    second = reloaded(program, module, first["process"])
    with closing(program.connect()) as client:
        assert ask(client, "GET", "/") == (200, b"changed visit 1\n")
    assert second["parent"] == program.process.pid
    assert program.accepted_in() >= {first["process"], second["process"]}
    assert program.stop(signal.SIGTERM) == 0
    wait_until_blocking(lambda: refuses(program.port), what="the end of the child")


def reloaded(program: Program, module: Path, process: int, *, changes: int = 1) -> Any:
    """Change the module, and wait until another process answers."""

    def another() -> Any:
        with suppress(OSError, ValueError, http.client.HTTPException):  # It ends at any time.
            answer = program.get("/where")
            return answer if answer["process"] != process else None

    now = module.stat().st_mtime
    for number in range(changes):
        os.utime(module, (now + 10 + number, now + 10 + number))
        with suppress(AssertionError):
            return wait_until_blocking(another, timeout=LONG / changes)
    raise AssertionError(f"no other process answers:\n{program.output}")


# --- Django ---


def use_django(client: http.client.HTTPConnection) -> None:
    """One connection."""
    status, body = ask(client, "POST", "/upload", b"x" * 300_000, **{"Content-Type": "text/x"})
    assert (status, json.loads(body)) == (200, {"bytes": 300_000, "type": "text/x"})
    status, body = ask(client, "GET", "/stream")
    assert (status, body) == (200, b"".join(b"line %d\n" % number for number in range(1000)))
    assert ask(client, "GET", "/missing")[0] == 404
    assert ask(client, "GET", "/error")[0] == 500


@ways("python", *ON_COMPAT, "pool")
def test_django(start: Start) -> None:
    program = start("manage.py", "runserver", "--noreload", "127.0.0.1:0")
    with closing(program.connect()) as client, closing(program.connect()) as idle:
        idle.connect()
        use_django(client)
        threads = [program.get("/where")["thread"] for _ in range(5)]
    assert (len(set(threads)) < 5) == (program.way == "pool")
    assert program.accepted_in() == {program.process.pid}
    assert program.stop(signal.SIGINT) == 0


@ways("python", *ON_COMPAT)
def test_django_reloader(start: Start) -> None:
    program = start("manage.py", "runserver", "127.0.0.1:0")
    first = program.get("/where")["process"]
    assert first != program.process.pid
    # A change before the reloader has looked at the module for the first time is none.
    second = reloaded(program, program.directory / "manage.py", first, changes=15)["process"]
    assert program.accepted_in() >= {first, second}
    assert program.stop(signal.SIGTERM) == 0
    wait_until_blocking(lambda: refuses(program.port), what="the end of the child")


# --- others ---


@ways("python", *ON_COMPAT, "pool")
def test_prometheus(start: Start) -> None:
    program = start("prometheus_server.py")
    for _ in range(3):
        with closing(program.connect()) as client:
            status, body = ask(client, "GET", "/metrics")
            assert (status, b"my_requests_total 3.0\n" in body) == (200, True)
    assert program.accepted_in() == {program.process.pid}
    assert program.stop(signal.SIGTERM) == 0
    assert program.process.stdout.endswith("stopped\n")
