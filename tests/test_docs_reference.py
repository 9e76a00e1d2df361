"""What pages say of states, reasons, log records, options and layers is compared with the code, both ways.

Pictures are compared by what they are drawn from: the text in the page. What connections and servers go
through is not written down in the code anywhere, so they are watched while they go through all of it.
"""

from __future__ import annotations

import ast
import asyncio
import dataclasses
import inspect
import re
import ssl
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import asyncserver
import compat
from asyncserver import (
    CloseReason,
    Connection,
    ConnectionState,
    DatagramServer,
    LengthPrefix,
    Lines,
    OptionError,
    Responder,
    Server,
    SessionEnd,
    Stream,
    Timeouts,
)
from asyncserver.address_text import _OPTIONS as ADDRESS_OPTIONS  # pyright: ignore[reportPrivateUsage]
from asyncserver.channel import Channel
from asyncserver.cli_groups import all_options
from asyncserver.cli_options import option_for
from asyncserver.connection import _WITHOUT_GOODBYE  # pyright: ignore[reportPrivateUsage]
from asyncserver.ending import Ending
from compat import __main__ as compat_command_line
from compat.executors import as_executor
from tests.certificates import authority
from tests.clients import Client, TLSClient, echo, local_server
from tests.test_docs import DOCS, PAGES, REPOSITORY, blocks_of, column, default_text, table
from tests.test_layers import LAYERS, Tree, layer_of
from tests.waiting import MS, wait_until, within

Edge = tuple[str, str]


def drawn(page: str, graph: str) -> set[Edge]:
    """The arrows of a picture."""
    (text,) = [block.text for block in blocks_of(DOCS / page) if f"digraph {graph} {{" in block.text]
    return set(re.findall(r"^ +(\w+) -> (\w+)", text, re.MULTILINE))


def test_every_picture_says_in_words_what_it_shows() -> None:
    for page in PAGES:
        for block in blocks_of(page):
            if block.kind == "{graphviz}":
                assert re.match(r":alt: \S.*\n:caption: \S.*\n\n(strict )?(di)?graph \w+ {\n", block.text), (
                    block.name
                )
                assert block.text.count("{") == block.text.count("}"), block.name


# States.

# Read here: a test in the loop may not.
CONNECTION = drawn("topics/lifecycle.md", "connection")
SERVER = drawn("topics/drain.md", "server")
STATES_OF_A_SERVER = column("topics/drain.md", "The life of a server")


class Watch:
    """Notes the ways from one state to another."""

    def __init__(self) -> None:
        self.ways: set[Edge] = set()

    def note(self, before: str, after: str) -> None:
        if before != after:
            self.ways.add((before, after))


def telling(slot: Any) -> Any:
    """A property in the place of a slot, which tells its owner whenever it is set."""

    def put(owner: Any, value: object) -> None:
        slot.__set__(owner, value)
        owner.look()

    return property(slot.__get__, put)


@pytest.fixture
def watch(monkeypatch: pytest.MonkeyPatch) -> Watch:
    """Watches all connections: their states follow from two attributes of theirs and three of streams."""
    watch = Watch()
    slots: Any = Channel
    ending: Any = Ending

    class WatchedStream(Stream):
        __slots__ = ("watched",)
        _want = telling(slots._want)
        _partial = telling(slots._partial)
        _out = telling(slots._out)

        watched: Any

        def look(self) -> None:
            with suppress(AttributeError):
                self.watched.look()

    class WatchedConnection(Connection):
        __slots__ = ("seen",)
        _phase = telling(ending._phase)
        _told = telling(ending._told)

        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            self.seen = self.state
            stream: Any = self.stream
            stream.watched = self

        def look(self) -> None:
            with suppress(AttributeError):  # It is being made.
                watch.note(self.seen, self.state)
                self.seen = self.state

    monkeypatch.setattr("asyncserver.connection.Stream", WatchedStream)
    monkeypatch.setattr("asyncserver.hub.Connection", WatchedConnection)
    return watch


async def only(server: Server, state: ConnectionState) -> Connection:
    """The one connection of a server, in this state."""
    await wait_until(lambda: [connection.state for connection in server.connections] == [state])
    return next(iter(server.connections))


async def all_gone(server: Server) -> None:
    await wait_until(lambda: not server.connections and server.statistics().accepted)


async def go_on_after_cancellation(stream: Stream) -> None:
    while not stream.closed:
        with suppress(asyncio.CancelledError, asyncserver.AsyncServerError, Exception):
            await stream.receive()


async def live_plainly() -> None:
    async def end_when_asked(stream: Stream) -> None:
        async for chunk in stream:
            if chunk == b"end":
                return
            await stream.send(chunk)

    async with local_server(end_when_asked) as server:
        async with await Client.connect(server) as client:  # The peer ends.
            await client.ask(b"x")
            client.half_close()
            assert await client.ended() == "eof"
        await all_gone(server)
        async with await Client.connect(server) as client:  # The handler does.
            await client.send(b"end")
            assert await client.ended() == "eof"
        await all_gone(server)
        async with await Client.connect(server) as client:  # The server tells it to.
            connection = await only(server, ConnectionState.IDLE)
            closing = asyncio.ensure_future(connection.close())
            assert await client.ended() == "eof"
        await within(closing)


async def live_with_verify() -> None:
    decided = asyncio.Event()

    async def verify(connection: Connection) -> bool:
        await decided.wait()
        return connection.draining

    async with local_server(echo, verify=verify) as server:
        async with await Client.connect(server) as client:
            connection = await only(server, ConnectionState.NEW)
            closing = asyncio.ensure_future(connection.close())
            await only(server, ConnectionState.DRAINING)
            decided.set()
            assert await client.ended() == "eof"
        await within(closing)
        async with await Client.connect(server) as client:
            assert await client.ended() == "eof"
        await all_gone(server)


async def live_with_tls(contexts: tuple[ssl.SSLContext, ssl.SSLContext]) -> None:
    server_context, client_context = contexts
    async with local_server(echo, "tls+tcp://127.0.0.1:0", tls=server_context) as server:
        async with await TLSClient.connect(server, client_context) as good:
            await good.ask(b"x")
        await all_gone(server)
        async with await Client.connect(server) as scanner:
            await scanner.send(b"GET / HTTP/1.0\r\n\r\n")
            await all_gone(server)
        async with await Client.connect(server):
            connection = await only(server, ConnectionState.HANDSHAKE)
            closing = asyncio.ensure_future(connection.close())
            await only(server, ConnectionState.DRAINING)
        await within(closing)


async def live_on_after_cancellation() -> None:
    timeouts = Timeouts(grace=0, linger=50 * MS)
    async with local_server(go_on_after_cancellation, timeouts=timeouts) as server:
        async with await Client.connect(server):
            await only(server, ConnectionState.IDLE)
            await server.aclose()


@pytest.fixture
def contexts() -> tuple[ssl.SSLContext, ssl.SSLContext]:
    return authority().server_context(), authority().client_context()


@pytest.mark.asyncio(loop_factories=["asyncio"])
async def test_the_states_of_a_connection_are_as_they_are_drawn(
    watch: Watch, contexts: tuple[ssl.SSLContext, ssl.SSLContext]
) -> None:
    await live_plainly()
    await live_with_verify()
    await live_with_tls(contexts)
    await live_on_after_cancellation()
    assert {state for way in CONNECTION for state in way} == {str(state) for state in ConnectionState}
    assert watch.ways == CONNECTION


def test_states_only_go_down_but_for_one_pair() -> None:
    order = column("topics/lifecycle.md", "States")
    back = {(start, end) for start, end in CONNECTION if order.index(end) <= order.index(start)}
    assert back == {("idle", "active")}


@pytest.mark.asyncio(loop_factories=["asyncio"])
async def test_the_states_of_a_server_are_as_they_are_drawn(tmp_path: Path) -> None:
    watch = Watch()

    class Watched(Server):
        seen: Any = None

        @property
        def _state(self) -> Any:
            return self.seen

        @_state.setter
        def _state(self, state: Any) -> None:
            if self.seen is not None:
                watch.note(self.seen.value, state.value)
            self.seen = state

    server = Watched(echo, "tcp://127.0.0.1:0")
    await server.start()
    assert server.ready
    await server.drain(0)
    await server.start()
    await server.aclose()
    with pytest.raises(asyncserver.BindError):
        await Watched(echo, f"unix:{tmp_path}/missing/app.sock").start()
    assert watch.ways == SERVER
    kind: Any = server.seen.__class__
    assert [state.value for state in kind] == STATES_OF_A_SERVER
    assert {state for way in SERVER for state in way} == set(STATES_OF_A_SERVER)


# Layers.


def imports_between_layers() -> set[Edge]:
    tree = Tree(REPOSITORY)
    names = [name for name, _ in LAYERS]
    found: set[Edge] = set()
    for source in tree.sources("asyncserver") + tree.sources("compat"):
        layer = layer_of(source.unit) if source.unit and source.package == "asyncserver" else None
        start = "compat" if source.package == "compat" else "api" if layer is None else names[layer]
        for imported in source.imports():
            if imported.distribution == "asyncserver":
                unit = tree.unit_of(imported)
                target = layer_of(unit) if unit else None
                found.add((start, "api" if target is None else names[target]))
            elif imported.distribution == "compat":
                found.add((start, "compat"))
    return {(start, end) for start, end in found if start != end}


def test_the_layers_are_as_they_are_drawn() -> None:
    assert drawn("topics/design.md", "layers") == imports_between_layers()
    named = [f"{number} {name}" for number, (name, _) in enumerate(LAYERS)]
    assert column("topics/design.md", "Layers") == named[::-1]
    (text,) = [block.text for block in blocks_of(DOCS / "topics/design.md") if "digraph layers" in block.text]
    for name in named:
        assert f'label="{name}\\n' in text


# Reasons.


def test_every_reason_is_in_its_table() -> None:
    assert column("reference/close-reasons.md", "Of connections") == [str(reason) for reason in CloseReason]
    assert column("reference/close-reasons.md", "Of sessions") == [str(end) for end in SessionEnd]


def test_reasons_of_connections_are_told_alike() -> None:
    for short, full in zip(
        table("topics/lifecycle.md", "Reasons"),
        table("reference/close-reasons.md", "Of connections"),
        strict=True,
    ):
        assert (short[0], short[2]) == (full[0], full[2])


def test_what_is_closed_at_once() -> None:
    rows = table("reference/close-reasons.md", "Of connections")
    at_once = {row[0] for row in rows if row[4] == "at once"}
    assert at_once == {str(reason) for reason in _WITHOUT_GOODBYE} | {"limit"}
    assert all("FIN" in row[5] for row in rows if row[4] == "gently")
    (sentence,) = re.findall(
        r"For (.*?) it closes at once", (DOCS / "topics/lifecycle.md").read_text(), re.DOTALL
    )
    assert set(re.findall(r"`(\w+)`", sentence)) == at_once - {"limit"}


@pytest.mark.parametrize(("heading", "cell"), [("Of connections", 3), ("Of sessions", 3)])
def test_what_is_logged_of_reasons_is_logged(heading: str, cell: int) -> None:
    records = {(level, record.message) for record in RECORDS for level in record.levels}
    for row in table("reference/close-reasons.md", heading):
        named = re.findall(r"(DEBUG|INFO|WARNING|ERROR)` `([^`]+)", row[cell])
        assert bool(named) == bool(row[cell]), row
        assert set(named) <= records


# Log records.


class Record(NamedTuple):
    levels: frozenset[str]
    message: str
    extra: frozenset[str]
    has_traceback: bool


LEVELS = ("debug", "info", "warning", "error", "exception", "critical", "log")
OF_A_CONNECTION = frozenset({"connection_id", "peer"})


def calls() -> Iterator[tuple[Path, ast.Call]]:
    for package in ("asyncserver", "compat"):
        for path in sorted((REPOSITORY / package).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text(), path)):
                if isinstance(node, ast.Call):
                    yield path, node


CALLS = list(calls())


def records_of_the_code() -> Iterator[Record]:
    for path, call in CALLS:
        where = f"{path}:{call.lineno}"
        method = ast.unparse(call.func).removeprefix("logger.")
        if ast.unparse(call.func) == f"logger.{method}" and method in LEVELS:
            message = call.args[method == "log"]
            assert isinstance(message, ast.Constant), f"{where}: the message is no literal"
            keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
            assert keywords.keys() <= {"extra", "exc_info"}, where
            assert keywords.get("extra", ".log_names").endswith(".log_names"), where
            yield Record(
                levels_of(method),
                str(message.value),
                OF_A_CONNECTION if "extra" in keywords else frozenset(),
                method == "exception" or "exc_info" in keywords,
            )


def levels_of(method: str) -> frozenset[str]:
    """The one place that chooses its level does so between two."""
    return frozenset({"log": ("INFO", "WARNING"), "exception": ("ERROR",)}.get(method, (method.upper(),)))


RECORDS = list(records_of_the_code())


def records_of_the_page() -> Iterator[Record]:
    for line in (DOCS / "reference/log-records.md").read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("| `") and len(cells) == 6:
            levels, message, extra, traceback = cells[:4]
            yield Record(names_in(levels), code_in(message), names_in(extra), traceback == "yes")


def names_in(cell: str) -> frozenset[str]:
    return frozenset(re.findall(r"`(\w+)`", cell))


def code_in(cell: str) -> str:
    """What stands in backquotes; in two, if there are some in it."""
    match = re.fullmatch(r"(`+)(.*)\1", cell)
    assert match is not None, cell
    return match[2]


def test_every_log_record_is_in_its_table_and_every_row_is_logged() -> None:
    # Counted: the same text may be logged in two places, which are two rows.
    page, code = Counter(records_of_the_page()), Counter(RECORDS)
    assert list(code - page) == [], "logged, and not on the page"
    assert list(page - code) == [], "on the page, and not logged"


def test_there_is_one_logger() -> None:
    named = {ast.unparse(call) for _, call in CALLS if ast.unparse(call.func) == "logging.getLogger"}
    assert named <= {"logging.getLogger('asyncserver')", "logging.getLogger()"}


def test_what_others_report_is_in_its_table() -> None:
    rows = [
        row[0].strip("`")
        for row in tables_after("reference/log-records.md", "Not of this logger")
        if row[0].startswith("`")
    ]
    patterns = [re.sub(r"\\?<\w+\\?>", ".*", re.escape(row)) for row in rows]
    messages = [*of_the_loops_handler(), *of_warnings()]
    assert len(messages) == len(patterns)
    for message in messages:
        assert any(re.fullmatch(pattern, message) for pattern in patterns), message


def tables_after(page: str, heading: str) -> list[list[str]]:
    text = (DOCS / page).read_text().split(f"## {heading}\n")[1]
    lines = [line for line in text.split("\n## ")[0].splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def of_the_loops_handler() -> Iterator[str]:
    """Messages given to ``call_exception_handler``, which are all literals in its neighbourhood."""
    for path in {path for path, call in CALLS if ast.unparse(call.func).endswith("call_exception_handler")}:
        found = re.findall(r'message(?:"|) ?[:=] f?"(.*?)"', path.read_text())
        assert found, path
        yield from (re.sub(r"{.*?}", "X", message) for message in found)


def of_warnings() -> Iterator[str]:
    for _, call in CALLS:
        if ast.unparse(call.func) == "warnings.warn":
            texts = [node.value for node in ast.walk(call.args[0]) if isinstance(node, ast.Constant)]
            joined = "".join(str(text) for text in texts if text != ", ")
            yield joined if joined.startswith("imported") else f"X{joined}"


# Options.

OPTIONS = "reference/all-options.md"
HELP_OF_COMPAT: str = vars(compat_command_line)["_HELP"]
FIELDS = [
    *("Limits", "Timeouts", "SocketOptions", "KeepAlive", "TLSConfig", "DatagramLimits", "DatagramTimeouts"),
    *("DatagramOptions", "MulticastGroup", "TCPAddress", "UnixAddress", "UDPAddress", "UnixDatagramAddress"),
    *("FDAddress", "SystemdAddress"),
]
SCHEMES = {
    "TCPAddress": "tcp",
    "UnixAddress": "unix",
    "UDPAddress": "udp",
    "UnixDatagramAddress": "unixgram",
    "FDAddress": "fd",
    "SystemdAddress": "systemd",
}
OF_THE_COMMAND_LINE = {"--app-dir", "--log-level", "--hint"}
CHANGEABLE: dict[str, Any] = {
    "Limits": Server,
    "Timeouts": Server,
    "DatagramLimits": DatagramServer,
    "DatagramTimeouts": DatagramServer,
}


def rows_of(owner: str) -> list[list[str]]:
    return [row for row in table(OPTIONS, "All options") if row[1] == owner]


@pytest.mark.parametrize("name", FIELDS)
def test_every_field_is_an_option(name: str) -> None:
    owner = getattr(asyncserver, name)
    fields = dataclasses.fields(owner)
    assert [(row[0], row[2]) for row in rows_of(name)] == [(each.name, default_text(each)) for each in fields]


@pytest.mark.parametrize("name", FIELDS)
def test_every_field_is_told_as_on_its_page(name: str) -> None:
    page = "reference/addresses.md" if name in SCHEMES else "reference/options.md"
    assert [(row[0], row[-1]) for row in rows_of(name)] == [(row[0], row[-1]) for row in table(page, name)]


@pytest.mark.parametrize("name", FIELDS)
def test_every_flag_and_variable_is_that_of_its_field(name: str) -> None:
    owner = getattr(asyncserver, name)
    for row in rows_of(name):
        option = option_for(owner, row[0])
        flags = re.findall(r"--[-\w]+", row[4])
        if option is not None:
            assert flags == [*option.opts, *option.secondary_opts]
            assert row[5] == option.variable
        elif row[0] == "password":
            assert flags == ["--tls-key-password-file"]
        elif name == "MulticastGroup":
            assert flags == ["--join"]
        else:
            assert not flags
            assert not row[5]


def test_every_flag_is_there() -> None:
    flags = {flag for option in all_options() for flag in (*option.opts, *option.secondary_opts)}
    flags |= set(re.findall(r"^  (--(?!version)[-\w]+)", HELP_OF_COMPAT, re.MULTILINE))
    written = {
        flag
        for row in table(OPTIONS, "All options")
        for flag in re.findall(r"--[-\w]+", f"{row[0]} {row[4]}")
    }
    assert written == flags
    assert {row[0] for row in rows_of("asyncserver serve")} == OF_THE_COMMAND_LINE
    variables = {option.variable for option in all_options()} | {"ASYNCSERVER_ADDRESSES"}
    assert {row[5] for row in table(OPTIONS, "All options")} - {""} == variables


@pytest.mark.parametrize("name", SCHEMES)
def test_every_option_of_addresses_is_that_of_their_text(name: str) -> None:
    in_the_text = {row[0] for row in rows_of(name) if row[4] == f"?{row[0]}="}
    assert in_the_text == set(ADDRESS_OPTIONS[SCHEMES[name]])


def test_what_can_be_changed_while_it_runs() -> None:
    for row in table(OPTIONS, "All options"):
        if not row[1].startswith(("compat", "asyncserver", "python")):
            assert (row[6] == "yes") == (row[1] in CHANGEABLE), row
    for name, kind in CHANGEABLE.items():
        scheme = "tcp" if kind is Server else "udp"

        async def handler(channel: Any) -> None: ...

        server: Any = kind(handler, f"{scheme}://127.0.0.1:0")
        for field in dataclasses.fields(getattr(asyncserver, name)):
            server.update(**{field.name: field.default})
    with pytest.raises(OptionError):
        local_server().update(backlog=5)


def arguments(function: Callable[..., Any], *, without: set[str] | None = None) -> list[tuple[str, str]]:
    """Names and defaults, as the tables have them."""
    found: list[tuple[str, str]] = []
    for each in inspect.signature(function).parameters.values():
        star = "*" if each.kind is each.VAR_POSITIONAL else ""
        default = "required" if each.default is each.empty else f"{each.default!r}"
        if type(each.default) is int:
            default = f"{each.default:_}"
        if each.kind is not each.VAR_KEYWORD and each.name not in (without or set()) | {"self"}:
            found.append((star + each.name, default))
    return found


@pytest.mark.parametrize(
    ("owner", "function", "without"),
    [
        ("Server", asyncserver.Server, set[str]()),
        ("DatagramServer", DatagramServer, set[str]()),
        ("run()", asyncserver.run, {"handler", "addresses"}),
        ("Server.drain()", asyncserver.Server.drain, set[str]()),
        ("Server.aclose()", asyncserver.Server.aclose, set[str]()),
        ("Stream.receive()", Stream.receive, set[str]()),
        ("Stream.lines()", Stream.lines, set[str]()),
        ("Stream.start_tls()", Stream.start_tls, {"context"}),
        ("Stream.send_file()", Stream.send_file, {"file"}),
        ("Responder", Responder, {"respond"}),
        ("LengthPrefix", LengthPrefix, set[str]()),
        ("Lines", Lines, set[str]()),
        ("compat.ThreadPool", compat.ThreadPool, set[str]()),
        ("compat.legacy()", compat.legacy, set[str]()),
    ],
)
def test_every_argument_is_an_option(owner: str, function: Any, without: set[str]) -> None:
    assert sorted((row[0], row[2]) for row in rows_of(owner)) == sorted(arguments(function, without=without))


def test_every_attribute_of_compat_is_an_option() -> None:
    rows = [
        (row[0], row[1].removeprefix("compat."), row[2], row[-1])
        for row in table(OPTIONS, "All options")
        if row[1] in ("compat.EventLoopMixIn", "compat.ThreadingMixIn", "compat.TCPServer")
    ]
    attributes = table("reference/compat.md", "Attributes of servers")
    assert rows == [(row[0], row[1], row[3], row[4]) for row in attributes]


# Names in sentences and tables.

OWNERS = (*FIELDS, "ServerStatistics", "DatagramStatistics", "Connection", "Listener", "Datagram", "Session")


def test_every_attribute_that_pages_name_is_there() -> None:
    for page in PAGES:
        for owner, name in re.findall(rf"`({'|'.join(OWNERS)})\.(\w+)", page.read_text()):
            value: Any = getattr(asyncserver, owner)
            known = [
                *dir(value),
                *getattr(value, "__dataclass_fields__", ()),
                *getattr(value, "__slots__", ()),
            ]
            assert name in known, f"{page}: {owner}.{name}"


def test_what_attacks_show_as_is_a_reason_or_a_counter() -> None:
    reasons = {*map(str, CloseReason), *map(str, SessionEnd), *map(str, ConnectionState)}
    counters = {
        field.name
        for name in ("ServerStatistics", "ListenerStatistics", "DatagramStatistics")
        for field in dataclasses.fields(getattr(asyncserver, name))
    }
    paused = {"full", "rate", "exhausted", "paused"}
    for row in tables_after("topics/security.md", "What an attack meets"):
        assert names_in(row[3]) <= reasons | counters | paused, row


def test_executors_are_what_the_words_stand_for() -> None:
    for row in table("topics/executors.md", "Servers of compat"):
        executor = as_executor(row[0].replace("N", "2"), compat.ThreadPool)
        assert type(executor).__name__ == row[1]
