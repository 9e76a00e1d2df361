"""README and documentation say what the code does: tables are complete, snippets work, links lead somewhere.

What a fenced block of Python is for stands behind the language:

=====================  =========================================================================
``python``             a fragment, executed with what its page takes as known: ``test_docs_fragments``
``python run``         executed, on both loops, with ``await`` allowed at the top; all of one page
                       share their names, and a directory with ``cert.pem`` and ``key.pem``
``python server``      a program: started, connected to, and stopped by SIGTERM
``python program``     a program with a test of its own, in ``tests/examples``
=====================  =========================================================================
"""

from __future__ import annotations

import ast
import asyncio
import dataclasses
import enum
import inspect
import re
import shutil
import signal
import socket
import ssl
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import asyncserver
from asyncserver import CloseReason, ConnectionState, SessionEnd
from tests.certificates import authority
from tests.examples.programs import Program, program
from tests.waiting import wait_until_blocking

REPOSITORY = Path(__file__).parent.parent
DOCS = REPOSITORY / "docs"
OF_THE_DOCS = [path for path in sorted(DOCS.rglob("*.md")) if "_build" not in path.parts]
PAGES = [REPOSITORY / "README.md", *OF_THE_DOCS]


class Block(NamedTuple):
    """One fenced block; ``line`` is that of its first line of text."""

    page: Path
    line: int
    kind: str
    text: str

    @property
    def name(self) -> str:
        return f"{self.page.relative_to(REPOSITORY)}:{self.line}"

    def compiled(self) -> Any:
        # The empty lines make the numbers in tracebacks those of the page.
        source = "\n" * (self.line - 1) + self.text
        return compile(source, self.page, "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)


def blocks_of(page: Path) -> Iterator[Block]:
    kind, start, lines = "", 0, list[str]()
    for number, line in enumerate(page.read_text().splitlines(), 1):
        if not line.startswith("```"):
            lines.append(line)
        elif start:
            yield Block(page, start, kind, "\n".join(lines) + "\n")
            start = 0
        else:
            kind, start, lines = line.removeprefix("```").strip(), number + 1, []
    assert not start, f"{page}:{start}: the block has no end"


def prose_of(page: Path) -> str:
    return re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)


BLOCKS = [block for page in PAGES for block in blocks_of(page)]
PYTHON = [block for block in BLOCKS if block.kind.startswith("python")]
SERVERS = [block for block in PYTHON if block.kind == "python server"]
RUNNABLE_PAGES = sorted({block.page for block in PYTHON if block.kind == "python run"})


def page_name(page: Path) -> str:
    return str(page.relative_to(REPOSITORY))


# Snippets.


def test_blocks_are_of_known_kinds() -> None:
    python = {"python", "python run", "python server", "python program"}
    known = {*python, "console", "ini", "haproxy", "nginx", "sh", "text"}
    drawn_or_generated = {"{graphviz}", "{eval-rst}"}
    assert {block.kind for block in BLOCKS} <= known | drawn_or_generated


@pytest.mark.parametrize("block", PYTHON, ids=lambda block: block.name)
def test_snippet_compiles(block: Block) -> None:
    block.compiled()


@pytest.fixture
def certificates_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = authority().server()
    shutil.copy(files.certificate, tmp_path / "cert.pem")
    shutil.copy(files.private_key, tmp_path / "key.pem")
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("page", RUNNABLE_PAGES, ids=page_name)
@pytest.mark.allow_blocking("a page may open a log file")
async def test_snippets_of_a_page_run(page: Path, certificates_here: None) -> None:
    names: dict[str, Any] = {"__name__": "__main__"}
    for block in blocks_of(page):
        if block.kind == "python run":
            async with asyncio.timeout(30):
                running = eval(block.compiled(), names)
                if inspect.isawaitable(running):
                    await running


@pytest.mark.parametrize("block", SERVERS, ids=lambda block: block.name)
def test_server_serves_and_stops(block: Block, tmp_path: Path, certificates_here: None) -> None:
    (tmp_path / "server.py").write_text(on_unix_sockets(block.text))
    with program("server.py", cwd=tmp_path) as running:
        for port in dict.fromkeys(re.findall(r"127\.0\.0\.1\D{1,3}(\d+)", block.text)):
            path = tmp_path / f"{port}.sock"
            wait_until_blocking(partial(is_listening, path, running))
            connect(path, encrypted=f"tls+tcp://127.0.0.1:{port}" in block.text)
        assert running.stop() == -signal.SIGTERM


def on_unix_sockets(text: str) -> str:
    """The server with a Unix socket in the place of each port, which may be taken on this machine."""
    text = re.sub(r"tcp://127\.0\.0\.1:(\d+)", r"unix:\1.sock", text)
    text = re.sub(r'\("127\.0\.0\.1", (\d+)\)', r'"\1.sock"', text)
    return text.replace("ThreadingTCPServer", "ThreadingUnixStreamServer")


def is_listening(path: Path, running: Program) -> bool:
    """Whether connections are taken there: a server of ``socketserver`` is bound before."""
    assert running.process.poll() is None
    with socket.socket(socket.AF_UNIX) as client:
        return client.connect_ex(str(path)) == 0


def connect(path: Path, *, encrypted: bool) -> None:
    with socket.socket(socket.AF_UNIX) as plain:
        plain.settimeout(10)
        plain.connect(str(path))
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(authority().file)
        with context.wrap_socket(plain, server_hostname="localhost") if encrypted else plain as client:
            client.sendall(b"1\n")
            assert client.recv(100)


# Commands and links.


def commands() -> Iterator[tuple[str, str]]:
    for page in PAGES:
        text = prose_of(page)
        for command in re.findall(r"^    (\S.*)$", text, re.MULTILINE) + re.findall(r"`([^`\n]+)`", text):
            yield page_name(page), command


def test_make_targets_exist() -> None:
    phony = re.search(r"^\.PHONY: (.*)$", (REPOSITORY / "Makefile").read_text(), re.MULTILINE)
    assert phony is not None
    named = {(page, match[1]) for page, command in commands() if (match := re.match(r"make (\w+)", command))}
    assert {target for _, target in named} >= {"serve", "test", "lint", "bench"}
    assert not [(page, target) for page, target in named if target not in phony[1].split()]


def test_commands_name_examples_that_exist() -> None:
    for page, command in commands():
        for path, handler in re.findall(r"(docs/examples/\w+\.py)(?::(\w+))?", command):
            assert re.search(
                rf"^(async def|class) {handler}\b", (REPOSITORY / path).read_text(), re.MULTILINE
            ), page


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", prose_of(page)):
        if "://" not in target:
            path, _, anchor = target.partition("#")
            found = (page.parent / path).resolve() if path else page
            assert found.exists(), f"{page_name(page)}: {target}"
            if anchor:
                assert anchor in anchors_of(found), f"{page_name(page)}: {target}"


def anchors_of(page: Path) -> set[str]:
    """As GitHub makes them of headings."""
    headings = re.findall(r"^#+ (.*)$", prose_of(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_every_page_and_every_example_is_in_the_index() -> None:
    """Those made of docstrings are in the page of all public names."""
    linked = re.findall(r"\]\(([^)#\s]+)\)", (DOCS / "index.md").read_text())
    names = re.findall(r"\]\((api/[^)#\s]+)\)", (DOCS / "reference" / "api.md").read_text())
    linked += [f"reference/{name}" for name in names]
    there = [*OF_THE_DOCS, *(DOCS / "examples").glob("*.py")]
    assert {str(path.relative_to(DOCS)) for path in there} - {"index.md"} == set(linked)


def test_lines_are_not_too_long() -> None:
    for page in PAGES:
        for number, line in enumerate(page.read_text().splitlines(), 1):
            allowed = line.startswith(("|", "    ", "ExecStart")) or "](" in line
            assert allowed or len(line) <= 120, f"{page_name(page)}:{number} is {len(line)} long"


# Tables.


def table(page: str, heading: str) -> list[list[str]]:
    """The cells of the first table below the heading, without its first two lines and without backquotes."""
    section = re.split(rf"^#+ {re.escape(heading)}$", (DOCS / page).read_text(), flags=re.MULTILINE)[1]
    lines = re.search(r"(?:^\|.*\n)+", section, re.MULTILINE)
    assert lines is not None
    rows = [[cell.strip() for cell in line.strip().strip("|").split("|")] for line in lines[0].splitlines()]
    return [[cell.strip("`") for cell in row] for row in rows[2:]]


def column(page: str, heading: str, number: int = 0) -> list[str]:
    return [row[number] for row in table(page, heading)]


def default_text(field: dataclasses.Field[Any]) -> str:
    value = field.default
    if field.default_factory is not dataclasses.MISSING:
        value = field.default_factory()
    if value is dataclasses.MISSING:
        return "required"
    if isinstance(value, enum.Enum):
        return str(value.name)
    if dataclasses.is_dataclass(value):
        return f"{type(value).__name__}()"
    return f"{value:_}" if type(value) is int else repr(value)


@pytest.mark.parametrize(
    ("page", "name"),
    [
        *(("options", name) for name in ("Limits", "Timeouts", "SocketOptions", "KeepAlive", "TLSConfig")),
        *(
            ("options", name)
            for name in ("DatagramLimits", "DatagramTimeouts", "DatagramOptions", "MulticastGroup")
        ),
        *(("addresses", name) for name in ("TCPAddress", "UnixAddress", "FDAddress", "SystemdAddress")),
        *(("addresses", name) for name in ("UDPAddress", "UnixDatagramAddress")),
    ],
)
def test_every_field_and_default_is_in_its_table(page: str, name: str) -> None:
    expected = [(field.name, default_text(field)) for field in dataclasses.fields(getattr(asyncserver, name))]
    assert [(row[0], row[1]) for row in table(f"reference/{page}.md", name)] == expected


@pytest.mark.parametrize(
    "name",
    ["ServerStatistics", "ListenerStatistics", "DrainReport", "DatagramStatistics", "EndpointStatistics"],
)
def test_every_statistic_is_in_its_table(name: str) -> None:
    fields = dataclasses.fields(getattr(asyncserver, name))
    assert column("reference/statistics.md", name) == [field.name for field in fields]


def test_every_argument_is_in_its_table() -> None:
    of_server = list(inspect.signature(asyncserver.Server).parameters)
    of_run = list(inspect.signature(asyncserver.run).parameters)
    expected = of_server + [name for name in of_run if name not in (*of_server, "options")]
    documented = column("reference/options.md", "Arguments of the server")
    assert sorted(name.lstrip("*") for name in documented) == sorted(expected)


def test_every_argument_of_the_datagram_server_is_in_its_table() -> None:
    expected = list(inspect.signature(asyncserver.DatagramServer).parameters)
    documented = column("reference/options.md", "Arguments of the datagram server")
    assert [name.lstrip("*") for name in documented] == expected


def test_every_state_and_reason_is_in_its_table() -> None:
    assert column("howto/datagram-sessions.md", "Its end") == [str(end) for end in SessionEnd]
    assert column("topics/lifecycle.md", "States") == [str(state) for state in ConnectionState]
    assert column("topics/lifecycle.md", "Reasons") == [str(reason) for reason in CloseReason]


def test_every_public_name_is_in_the_table() -> None:
    assert sorted(column("reference/api.md", "Public names")) == sorted(
        set(asyncserver.__all__) - {"__version__"}
    )


@pytest.mark.parametrize(
    "name",
    ["Stream", "Server", "Connection", "DatagramServer", "Datagram", "DatagramEndpoint", "Session"],
)
def test_every_member_is_in_its_table(name: str) -> None:
    documented = set(column("reference/api.md", name))
    assert documented <= set(members(getattr(asyncserver, name)))
    own = {
        member for member, module in members(getattr(asyncserver, name)).items() if module in MODULES[name]
    }
    assert own - documented <= INTERNAL[name]


def members(cls: type) -> dict[str, str]:
    """The public members of the class, each with the module that defines it."""
    found = dict.fromkeys(
        re.findall(r"self\.([a-z]\w*)(?:: [^=\n]+)? = ", inspect.getsource(cls)), cls.__module__
    )
    for base in reversed(cls.__mro__):
        if base.__module__.startswith("asyncserver"):
            found |= dict.fromkeys((each for each in vars(base) if not each.startswith("_")), base.__module__)
    return found


# Where what programs use is defined; a stream is made of more, which is for the server.
MODULES = {
    "Stream": {"asyncserver.stream", "asyncserver.receiving", "asyncserver.sending", "asyncserver.lending"},
    "Server": {"asyncserver.server", "asyncserver.lifecycle"},
    "Connection": {"asyncserver.connection"},
    "DatagramServer": {"asyncserver.datagram_server", "asyncserver.lifecycle"},
    "Datagram": {"asyncserver.datagram"},
    "DatagramEndpoint": {"asyncserver.datagram_endpoint"},
    "Session": {"asyncserver.session"},
}

INTERNAL = {
    "Stream": {"close_copy", "close_gently", "handshake", "wait_for_bytes"},
    "Server": {"under_way"},
    "DatagramServer": {"under_way"},
    "Datagram": set[str](),
    "DatagramEndpoint": {
        "bound",
        "close",
        "local_of",
        "number",
        "on_readable",
        "on_writable",
        "packets",
        "put",
        "put_when_possible",
        "receive_batch",
        "start",
        "stop_receiving",
        "sweep",
    },
    "Session": {
        "close",
        "drop_queue",
        "end",
        "fail",
        "feed",
        "is_waiting",
        "on_handler_ended",
        "task",
        "tell_to_end",
        "used_at",
    },
    "Connection": {
        "admission_key",
        "begin_watch",
        "cancel",
        "check_deadlines",
        "log_names",
        "look_again",
        "runs_in",
        "start",
        "take_limits",
        "tell_to_end",
        "watch_slot",
    },
}


def test_every_error_is_in_its_table_with_its_bases() -> None:
    rows = {row[0]: row[1] for row in table("reference/errors.md", "Of this package")}
    errors = {
        name: value
        for name in asyncserver.__all__
        if inspect.isclass(value := getattr(asyncserver, name)) and issubclass(value, Exception)
    }
    assert set(rows) == set(errors)
    for name, bases in rows.items():
        named = {base.strip(" `").removeprefix("anyio.") for base in bases.split(",")} - {""}
        actual = {base.__name__ for base in errors[name].__bases__} - {"AsyncServerError", "Exception"}
        assert named == actual, name
