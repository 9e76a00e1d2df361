"""The names of the module, what its classes inherit, and what they say about themselves."""

from __future__ import annotations

import inspect
import pickle
import socketserver as stdlib
from pathlib import Path
from typing import Any

import pytest

import compat
from asyncserver import LoopName
from tests.compat.support import LOCAL, Trace, agreed, noted_handler
from tests.processes import run_python

UNLISTED = ("ForkingUnixStreamServer", "ForkingUnixDatagramServer")
"""Python 3.11 has neither; from 3.12 on they are in ``__all__``."""

CLASSES = [name for name in stdlib.__all__ if hasattr(stdlib, name)]


def test_names_are_those_of_socketserver() -> None:
    assert compat.__all__ == stdlib.__all__
    assert {name for name in compat.__all__ if not isinstance(getattr(compat, name), type)} == set()
    namespace: dict[str, Any] = {}
    exec("from compat import *", namespace)
    assert {name for name in namespace if not name.startswith("__")} == set(stdlib.__all__)


@pytest.mark.parametrize("name", CLASSES)
def test_each_class_extends_its_namesake(name: str) -> None:
    ours, theirs = getattr(compat, name), getattr(stdlib, name)
    assert issubclass(ours, theirs)
    assert (ours.__name__, ours.__qualname__, ours.__module__) == (name, name, "compat")
    # In the same order: a class of the program's own finds what it found before.
    order = [each for each in ours.__mro__ if each.__module__ == "socketserver"]
    assert order == [each for each in theirs.__mro__ if each is not object]
    # And what one class extends, its counterpart extends as well.
    for base in theirs.__mro__[1:-1]:
        assert issubclass(ours, getattr(compat, base.__name__))


@pytest.mark.parametrize("name", UNLISTED)
def test_forking_unix_servers_are_there_on_every_version(name: str) -> None:
    if not hasattr(stdlib, "ForkingMixIn") or not hasattr(stdlib, "UnixStreamServer"):
        pytest.skip("this platform has no such servers")
    server_class = getattr(compat, name)
    assert issubclass(server_class, (compat.ForkingMixIn, compat.BaseServer))  # type: ignore[attr-defined]
    assert issubclass(server_class, getattr(compat, name.removeprefix("Forking")))
    assert (name in compat.__all__) == hasattr(stdlib, name)


@pytest.mark.parametrize("name", CLASSES)
def test_methods_take_the_same_arguments(name: str) -> None:
    ours, theirs = getattr(compat, name), getattr(stdlib, name)
    for method in {
        each for cls in theirs.__mro__[:-1] for each, value in vars(cls).items() if callable(value)
    }:
        expected = inspect.signature(getattr(theirs, method)).parameters.values()
        found = inspect.signature(getattr(ours, method)).parameters.values()
        assert [(each.name, each.kind, each.default) for each in found] == [
            (each.name, each.kind, each.default) for each in expected
        ], method


@pytest.mark.parametrize("name", CLASSES)
def test_public_names_that_are_new(name: str) -> None:
    """Few, because they are in the way of those that programs choose for their own."""
    ours, theirs = getattr(compat, name), getattr(stdlib, name)
    new = {each for each in set(dir(ours)) - set(dir(theirs)) if not each.startswith("_EventLoopMixIn__")}
    expected: set[str] = {"__annotations__"} & new  # What type checkers have, and nobody calls.
    if issubclass(theirs, stdlib.BaseServer):
        expected |= {"event_loop", "request_executor", "serve_async", "_BaseServer__shutdown_request"}
    if issubclass(theirs, stdlib.ThreadingMixIn):
        expected |= {"max_threads", "when_full"}
    assert new == expected


def test_private_names_are_shared_with_socketserver() -> None:
    """Programs replace them in the module that they import, and the classes find them in either."""
    for name in ("_ServerSelector", "_SocketWriter", "_Threads", "_NoThreads"):
        assert getattr(compat, name) is getattr(stdlib, name)
        assert name in dir(compat)
    for name in ("socket", "selectors", "os", "sys", "threading"):
        assert inspect.ismodule(getattr(compat, name))
    with pytest.raises(AttributeError, match="'compat' has no attribute 'no_such_name'"):
        compat.no_such_name  # type: ignore[attr-defined]  # noqa: B018


def test_instances_are_those_of_socketserver(loop_name: LoopName) -> None:
    """For ``isinstance`` and for mix-ins that were made for the standard library's classes."""

    class Counting(stdlib.ThreadingMixIn, stdlib.TCPServer):
        """A third party's, made long ago."""

    def scenario(socketserver: Any) -> list[Any]:
        with socketserver.ThreadingTCPServer(LOCAL, noted_handler(socketserver, Trace())) as server:
            handler = server.RequestHandlerClass
            return [
                isinstance(server, (stdlib.ThreadingMixIn, stdlib.TCPServer, stdlib.BaseServer)),
                isinstance(server, Counting),
                issubclass(handler, stdlib.BaseRequestHandler),
                sorted(each for each in vars(server) if "EventLoopMixIn" not in each),
            ]

    assert agreed(scenario, loop_name) == [
        True,
        False,
        True,
        [
            *("RequestHandlerClass", "_BaseServer__is_shut_down", "_BaseServer__shutdown_request"),
            *("server_address", "socket"),
        ],
    ]


def test_classes_can_be_pickled_by_name() -> None:
    for name in CLASSES:
        assert pickle.loads(pickle.dumps(getattr(compat, name))) is getattr(compat, name)


INSTALLED = """
import pickle, sys, compat


def main():
    before = __import__("socketserver")  # Known to no module: install() warns of those.
    compat.install()
    import socketserver

    assert socketserver is sys.modules["socketserver"] is not before
    assert socketserver.__name__ == socketserver.__spec__.name == "socketserver"
    assert socketserver.__all__ == before.__all__
    for name in before.__all__:
        each = getattr(socketserver, name)
        assert each is getattr(compat, name), name
        assert each.__module__ == "socketserver", name
        assert issubclass(each, getattr(before, name)), name
        assert pickle.loads(pickle.dumps(each)) is each
    import http.server

    assert issubclass(http.server.HTTPServer, compat.TCPServer)
    assert http.server.ThreadingHTTPServer.process_request is compat.ThreadingMixIn.process_request
    compat.uninstall()
    import socketserver

    assert socketserver is before
    assert {getattr(compat, name).__module__ for name in before.__all__} == {"compat"}


main()
print("as it should be")
"""


def test_names_when_installed(tmp_path: Path) -> None:
    """In a process of its own, in which nothing has imported ``socketserver`` before."""
    assert run_python(tmp_path, "-c", INSTALLED) == (0, "as it should be\n", "")
