"""The reference of ``compat`` says what the code does: names, members, defaults, options and variables."""

from __future__ import annotations

import inspect
import re
import socketserver
from typing import Any

import pytest

import compat
from compat import __main__ as command_line
from compat.facade import SHARED
from tests.test_docs import column, table

PAGE = "reference/compat.md"

UNLISTED = {"ForkingUnixStreamServer", "ForkingUnixDatagramServer"}

SERVERS: list[Any] = [
    socketserver.BaseServer,
    socketserver.TCPServer,
    socketserver.UDPServer,
    socketserver.ThreadingMixIn,
    socketserver.ForkingMixIn,
]

# What the package itself calls.
INTERNAL = {
    "ThreadPool": {"begin_all", "next_job", "put_off", "retire", "settle"},
}


def names_of(cells: list[str]) -> list[str]:
    """One cell may name several, each in backquotes; ``column`` has taken the outermost away."""
    return [name for cell in cells for name in re.findall(r"[-\w]+", cell)]


def public(names: Any) -> set[str]:
    return {name for name in names if not name.startswith("_")}


def test_every_name_of_the_standard_library_is_in_its_table() -> None:
    documented = column(PAGE, "Names of the standard library")
    assert len(documented) == len(set(documented))
    assert set(documented) == set(compat.__all__) | UNLISTED


def test_every_hook_and_attribute_of_the_standard_library_is_in_its_table() -> None:
    of_instances = {"RequestHandlerClass", "server_address", "socket"}
    documented = column(PAGE, "Hooks and attributes of the standard library")
    assert len(documented) == len(set(documented))
    assert set(documented) == of_instances.union(*(public(vars(each)) for each in SERVERS))


def test_hooks_and_attributes_are_said_to_be_where_they_are() -> None:
    for row in table(PAGE, "Hooks and attributes of the standard library"):
        if row[0] not in ("RequestHandlerClass", "server_address", "socket", "fileno", "get_request"):
            owners = {each.__name__ for each in SERVERS if row[0] in vars(each)}
            first, *others = names_of([row[1]])
            assert first in owners
            assert set(others) <= owners


def test_every_private_name_is_in_its_table() -> None:
    rows = table(PAGE, "Private names")
    of_the_module = {name for row in rows if row[1].startswith("module") for name in names_of([row[0]])}
    assert of_the_module == SHARED - {"__version__"}
    for row in rows:
        if not row[1].startswith("module"):
            assert row[0] in {*dir(compat.ThreadingTCPServer), "_BaseServer__is_shut_down"}


def test_every_name_of_this_package_is_in_its_table() -> None:
    ours = {
        name: value
        for name, value in vars(compat).items()
        if not name.startswith("_")
        and (inspect.isclass(value) or inspect.isfunction(value))
        and value.__module__.split(".")[0] == "compat"
    }
    rows = {row[0]: row[1] for row in table(PAGE, "Names of this package")}
    assert set(rows) == set(ours) - set(compat.__all__) - UNLISTED
    for name, kind in rows.items():
        assert inspect.isfunction(ours[name]) == (kind == "function"), name


def test_every_attribute_of_servers_and_its_default_is_in_its_table() -> None:
    expected = [
        (name, owner.__name__, f"{value:_}" if isinstance(value, int) else repr(value))
        for owner in (compat.EventLoopMixIn, compat.ThreadingMixIn, compat.TCPServer)
        for name, value in vars(owner).items()
        if not name.startswith("_") and not callable(value)
    ]
    assert [(row[0], row[1], row[3]) for row in table(PAGE, "Attributes of servers")] == expected


@pytest.mark.parametrize(
    ("name", "base"),
    [
        ("EventLoopMixIn", None),
        ("AsyncRequestHandler", None),
        ("AsyncStreamRequestHandler", None),
        ("AsyncDatagramRequestHandler", None),
        ("RequestExecutor", None),
        ("ThreadPool", "RequestExecutor"),
        ("Job", None),
        ("LegacyServer", None),
    ],
)
def test_every_member_is_in_its_table(name: str, base: str | None) -> None:
    inherited = set(column(PAGE, base)) if base else set[str]()
    documented = set(column(PAGE, name))
    assert documented == members(getattr(compat, name)) - inherited - INTERNAL.get(name, set())


def members(cls: type) -> set[str]:
    """The public members that the class itself defines."""
    attributes = re.findall(
        r"^ {8}self\.([A-Za-z]\w*)(?:: [^=\n]+)? = ", inspect.getsource(cls), re.MULTILINE
    )
    return public({*vars(cls), *vars(cls).get("__annotations__", {}), *attributes})


def test_arguments_of_legacy_are_in_its_table() -> None:
    expected = [
        (each.name, "required" if each.default is each.empty else repr(each.default))
        for each in inspect.signature(compat.legacy).parameters.values()
    ]
    assert [(row[0], row[1]) for row in table(PAGE, "legacy")] == expected


def test_installing_is_in_its_table() -> None:
    assert column(PAGE, "Replacing socketserver") == ["install", "uninstall", "installed"]


def test_every_option_of_the_command_line_is_in_its_table() -> None:
    of_the_help = re.findall(r"^  (-[-\w]+(?:, -[-\w]+)*)(?: ([A-Z]+))?", command_line._HELP, re.MULTILINE)
    rows = table(PAGE, "Command line")
    assert [names_of([row[0]]) for row in rows] == [names_of([flags]) for flags, _ in of_the_help]
    assert [row[1] for row in rows] == [value for _, value in of_the_help]


def test_every_variable_is_in_its_table() -> None:
    variables = {command_line._PATH, command_line._EXECUTOR, command_line._LOOP, "PYTHONPATH"}
    assert set(column(PAGE, "Environment variables")) == variables


@pytest.mark.parametrize("page", ["topics/compat.md", PAGE])
def test_the_length_of_the_listen_queue_is_that_of_the_code(page: str) -> None:
    (said,) = {row[3 if page == PAGE else 2] for row in rows_about("request_queue_size", page)}
    assert int(re.sub(r"[,_]", "", re.findall(r"[\d,_]+\d", said)[0])) == compat.TCPServer.request_queue_size


def rows_about(name: str, page: str) -> list[list[str]]:
    heading = "Attributes of servers" if page == PAGE else "Accepting"
    return [row for row in table(page, heading) if row[0] == name]
