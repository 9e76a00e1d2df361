"""``install()``, ``uninstall()``, ``installed()``: ``compat`` in the place of ``socketserver``, and back."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import pickle
import socket
import socketserver
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import suppress
from types import ModuleType
from typing import Any
from unittest import mock

import pytest

import compat
from asyncserver import LoopName
from tests.compat.support import SERVERS
from tests.waiting import PATIENCE

pytestmark = pytest.mark.filterwarnings("ignore:imported before compat.install:RuntimeWarning")

NAMES = [*SERVERS, "BaseServer", "BaseRequestHandler", "StreamRequestHandler", "DatagramRequestHandler"]


@pytest.fixture(autouse=True)
def uninstalled() -> Iterator[None]:
    """A test that fails leaves nothing installed."""
    before = sys.modules["socketserver"]
    yield
    with suppress(RuntimeError):
        for _ in range(10):
            compat.uninstall()
    after = sys.modules.get("socketserver")
    sys.modules["socketserver"] = before
    assert after is before is socketserver


def imported() -> Any:
    """What ``import socketserver`` gives now."""
    return importlib.import_module("socketserver")


# --- nesting ---


def test_installed_for_a_block() -> None:
    with compat.installed() as module:
        assert imported() is module is not socketserver
        assert module.__name__ == "socketserver"
        assert all(getattr(module, name) is getattr(compat, name) for name in module.__all__)
        assert module.__all__ == socketserver.__all__
        assert issubclass(module.ThreadingTCPServer, compat.EventLoopMixIn)
    assert imported() is socketserver


def test_block_that_raises() -> None:
    with pytest.raises(ZeroDivisionError), compat.installed():
        raise ZeroDivisionError
    assert imported() is socketserver


def test_nesting() -> None:
    with compat.installed() as outer:
        with compat.installed() as inner:
            assert inner is outer
        assert imported() is outer
        compat.install()
        compat.install()
        compat.uninstall()
        assert imported() is outer
        compat.uninstall()
        assert imported() is outer
    assert imported() is socketserver


def test_again_and_again() -> None:
    for _ in range(3):
        compat.install()
        assert imported() is not socketserver
        compat.uninstall()
        assert imported() is socketserver


def test_uninstall_without_install() -> None:
    for _ in range(2):
        with pytest.raises(RuntimeError, match=r"compat\.uninstall\(\) without compat\.install\(\)"):
            compat.uninstall()
    with compat.installed():
        compat.uninstall()
        with pytest.raises(RuntimeError):
            compat.uninstall()
        compat.install()


def test_where_socketserver_is_not_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "socketserver")
    with compat.installed() as module:
        assert imported() is module
    assert "socketserver" not in sys.modules
    monkeypatch.undo()


def test_thread_safety() -> None:
    threads, rounds = 8, 50
    seen: set[int] = set()
    failures: list[BaseException] = []
    barrier = threading.Barrier(threads)

    def work() -> None:
        barrier.wait(PATIENCE)
        try:
            for _ in range(rounds):
                with compat.installed() as module:
                    assert imported() is module is not socketserver
                    assert compat.TCPServer.__module__ == "socketserver"
                    seen.add(id(module))
        except BaseException as exc:
            failures.append(exc)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        workers = [threading.Thread(target=work) for _ in range(threads)]
        for each in workers:
            each.start()
        for each in workers:
            each.join(PATIENCE)
    finally:
        sys.setswitchinterval(interval)
    assert failures == []
    assert seen
    assert imported() is socketserver
    assert compat.TCPServer.__module__ == "compat"


# --- what programs see ---


def test_classes_say_where_they_can_be_found() -> None:
    classes = [getattr(compat, name) for name in NAMES]
    assert {each.__module__ for each in classes} == {"compat"}
    with compat.installed() as module:
        assert {each.__module__ for each in classes} == {"socketserver"}
        for each in classes:
            assert pickle.loads(pickle.dumps(each)) is each
            assert inspect.getmodule(each) is module
            assert inspect.getsource(each).lstrip().startswith(f"class {each.__name__}(")
    assert {each.__module__ for each in classes} == {"compat"}
    assert all(pickle.loads(pickle.dumps(each)) is each for each in classes)


def test_module_as_programs_know_it() -> None:
    with compat.installed() as module:
        assert module.__doc__ == socketserver.__doc__
        assert module.__package__ == ""
        assert importlib.util.find_spec("socketserver") is module.__spec__
        assert module.__spec__.name == "socketserver"
        assert repr(module).startswith("<module 'socketserver'")
        assert {*socketserver.__all__, "_ServerSelector", "socket", "threading"} <= {*dir(module)}
        names: dict[str, Any] = {}
        exec("from socketserver import *", names)
        assert {name for name in names if not name.startswith("__")} == {*socketserver.__all__}
        with pytest.raises(AttributeError, match="module 'socketserver' has no attribute 'missing'"):
            module.missing  # noqa: B018


def test_reload() -> None:
    with compat.installed() as module:
        assert importlib.reload(module) is module
        assert imported() is module
        assert module.TCPServer is compat.TCPServer
        assert module.StreamRequestHandler is compat.StreamRequestHandler
        assert module._ServerSelector is socketserver._ServerSelector  # type: ignore[attr-defined]
    assert imported() is socketserver


def test_classes_made_under_the_swap_stay_as_they_are() -> None:
    with compat.installed() as module:

        class Server(module.ThreadingTCPServer):  # type: ignore[name-defined, misc]
            pass

    assert issubclass(Server, (compat.ThreadingTCPServer, socketserver.ThreadingTCPServer))
    with Server(("127.0.0.1", 0), None) as server:
        server.timeout = 0
        server.handle_request()


# --- the names that the module shares with the standard library's ---


@pytest.fixture(params=["swapped", "imported"])
def shared(request: pytest.FixtureRequest) -> Iterator[ModuleType]:
    """The module that a program has: by ``install()``, or by ``import compat as socketserver``."""
    if request.param == "imported":
        yield compat
    else:
        with compat.installed() as module:
            yield module


@pytest.mark.parametrize(
    "name",
    [
        "_ServerSelector",
        "_SocketWriter",
        "_NoThreads",
        "_Threads",
        "socket",
        "selectors",
        "os",
        "sys",
        "threading",
    ],
)
def test_shared_name(shared: Any, name: str) -> None:
    before = getattr(socketserver, name)
    assert getattr(shared, name) is before
    with mock.patch.object(shared, name) as other:
        assert getattr(socketserver, name) is getattr(shared, name) is other
    assert getattr(socketserver, name) is getattr(shared, name) is before
    with mock.patch.object(socketserver, name) as other:
        assert getattr(shared, name) is other
    assert name not in vars(shared)


def test_shared_name_patched_twice(shared: Any) -> None:
    before = socketserver.socket  # type: ignore[attr-defined]
    with mock.patch.object(shared, "socket") as outer:
        with mock.patch.object(shared, "socket") as inner:
            assert shared.socket is socketserver.socket is inner  # type: ignore[attr-defined]
        assert shared.socket is socketserver.socket is outer  # type: ignore[attr-defined]
    assert shared.socket is socketserver.socket is before  # type: ignore[attr-defined]


def test_other_names_are_its_own(shared: Any) -> None:
    shared.another = 1
    assert not hasattr(socketserver, "another")
    del shared.another
    assert not hasattr(shared, "another")
    with mock.patch.object(shared, "TCPServer") as other:
        assert shared.TCPServer is other is not socketserver.TCPServer


def test_replaced_selector_is_used(shared: Any, loop_name: LoopName) -> None:
    asked = []

    class Selector(shared._ServerSelector):  # type: ignore[name-defined, misc]
        def select(self, timeout: float | None = None) -> Any:
            asked.append(timeout)
            return super().select(timeout)

    class Server(shared.TCPServer):  # type: ignore[name-defined, misc]
        event_loop = loop_name

        def service_actions(self) -> None:
            self._BaseServer__shutdown_request = True

    with mock.patch.object(shared, "_ServerSelector", Selector), Server(("127.0.0.1", 0), None) as server:
        server.serve_forever(0.001)
    assert asked == [0.001]


def test_replaced_writer_is_used(shared: Any, loop_name: LoopName) -> None:
    written = []

    class Writer(shared._SocketWriter):  # type: ignore[name-defined, misc]
        def write(self, data: bytes) -> int:
            written.append(data)
            return int(super().write(data))

    class Handler(shared.StreamRequestHandler):  # type: ignore[name-defined, misc]
        def handle(self) -> None:
            self.wfile.write(b"reply")

    class Server(shared.TCPServer):  # type: ignore[name-defined, misc]
        event_loop = loop_name

    with mock.patch.object(shared, "_SocketWriter", Writer), Server(("127.0.0.1", 0), Handler) as server:
        with socket.create_connection(server.server_address, timeout=PATIENCE) as client:
            server.handle_request()
            assert client.recv(100) == b"reply"
    assert written == [b"reply"]


# --- the warning ---


def module_that_runs(name: str, source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Import a module of that name and source."""
    module = ModuleType(name)
    exec(source, vars(module))
    monkeypatch.setitem(sys.modules, name, module)


@pytest.mark.parametrize(
    "source",
    [
        "import socketserver",
        "import socketserver as servers",
        "from socketserver import ThreadingTCPServer",
        "from socketserver import BaseRequestHandler as Base",
        "import socketserver\nclass Server(socketserver.UDPServer): pass\ndel socketserver",
        "from socketserver import ThreadingMixIn\nclass Mixed(ThreadingMixIn): pass\ndel ThreadingMixIn",
    ],
    ids=lambda source: source.replace("\n", " "),
)
def test_warning_names_modules_that_came_before(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module_that_runs("a_late_module", source, monkeypatch)
    module_that_runs("another_module", "import socket\nfrom compat import TCPServer", monkeypatch)
    with pytest.warns(RuntimeWarning) as caught:
        compat.install()
    compat.uninstall()
    (warning,) = caught
    start, _, names = str(warning.message).partition(": ")
    assert start == "imported before compat.install(), and still with the standard library's servers"
    named = names.split(", ")
    assert named == sorted(named)
    assert {"a_late_module", __name__} <= {*named}
    assert not {"another_module", "socketserver", "compat", "compat.servers"} & {*named}


def test_warning_points_at_who_installs() -> None:
    with pytest.warns(RuntimeWarning) as one:
        compat.install()
    compat.uninstall()
    with pytest.warns(RuntimeWarning) as two, compat.installed():
        pass
    assert [warning.filename for warning in (*one, *two)] == [__file__] * 2


def test_only_the_first_of_several_warns() -> None:
    with pytest.warns(RuntimeWarning):
        compat.install()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        compat.install()
    compat.uninstall()
    compat.uninstall()


def test_warning_that_is_an_error() -> None:
    # What has raised has not installed anything, or there would be nothing to undo it.
    with warnings.catch_warnings(), pytest.raises(RuntimeWarning):
        warnings.simplefilter("error")
        compat.install()
    assert imported() is socketserver
    with pytest.raises(RuntimeError):
        compat.uninstall()
