"""Fixtures for pytest, for who asks for them: nothing here happens by itself. (The one hook takes notes.)

In ``conftest.py``::

    pytest_plugins = ["asyncserver.pytest_plugin"]

or ``pytest -p asyncserver.pytest_plugin``. The servers run in threads of their own, so that they serve tests
of every kind: synchronous ones, and those of pytest-asyncio, anyio and others.

PYTEST_DONT_REWRITE: so it can be imported, for annotations, before pytest loads it as a plugin.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, Protocol, Unpack

import pytest

from asyncserver import (
    Address,
    AnyDatagramHandler,
    DatagramAddress,
    DatagramServer,
    DatagramServerOptions,
    Handler,
    LoopName,
    Server,
    ServerOptions,
)
from asyncserver.testing import (
    DatagramTransport,
    LeakCheck,
    LeakError,
    Transport,
    leak_check,
    serving,
    serving_datagrams,
    serving_in_thread,
)
from asyncserver.testing.bounds import TIMEOUT
from asyncserver.testing.certificates import Authority, default_authority
from asyncserver.testing.places import short_directory
from asyncserver.testing.threads import open_in_thread

__all__ = [
    "CompatServerFactory",
    "DatagramServerFactory",
    "NativeServerFactory",
    "compat_server",
    "datagram_server",
    "native_server",
    "no_leaks",
    "tls_authority",
    "unix_path",
]


class NativeServerFactory(Protocol):
    """What ``native_server`` is."""

    def __call__(
        self,
        handler: Handler,
        *addresses: Address | str,
        transport: Transport = "tcp",
        loop: LoopName = "auto",
        timeout: float = TIMEOUT,
        raise_handler_errors: bool = True,
        **options: Unpack[ServerOptions],
    ) -> Server: ...


class DatagramServerFactory(Protocol):
    """What ``datagram_server`` is."""

    def __call__(
        self,
        handler: AnyDatagramHandler,
        *addresses: DatagramAddress | str,
        transport: DatagramTransport = "udp",
        loop: LoopName = "auto",
        timeout: float = TIMEOUT,
        raise_handler_errors: bool = True,
        **options: Unpack[DatagramServerOptions],
    ) -> DatagramServer: ...


class CompatServerFactory(Protocol):
    """What ``compat_server`` is."""

    def __call__(
        self,
        server_class: type[Any],
        handler_class: Callable[..., Any],
        address: Any = None,
        **attributes: Any,
    ) -> Any: ...


@pytest.fixture
def _leaks_looked_for(request: pytest.FixtureRequest) -> None:
    """Where a test asks for ``no_leaks`` as well, in whatever order, it begins before the servers."""
    if "no_leaks" in request.fixturenames:
        request.getfixturevalue("no_leaks")


@contextmanager
def _open_during(request: pytest.FixtureRequest) -> Generator[ExitStack]:
    """What is closed after the test; notes for ``no_leaks`` that it has raised."""
    try:
        with ExitStack() as exits:
            yield exits
    except BaseException:
        request.node.stash[_RAISED] = True
        raise


@pytest.fixture
def native_server(request: pytest.FixtureRequest, _leaks_looked_for: None) -> Iterator[NativeServerFactory]:
    """Starts servers: ``native_server(handler)`` returns a ``Server`` that serves in a thread of its own.

    It takes what ``asyncserver.testing.serving()`` takes, and ``loop`` and ``timeout`` as
    ``serving_in_thread()`` does. At the end of the test the servers are closed, the last one first; what
    their handlers have raised is an error of the test's teardown.
    """
    with _open_during(request) as servers:

        def start(
            handler: Handler,
            *addresses: Any,
            loop: LoopName = "auto",
            timeout: float = TIMEOUT,
            **options: Any,
        ) -> Server:
            opening = partial(serving, handler, *addresses, **options)
            return servers.enter_context(open_in_thread(opening, loop=loop, timeout=timeout))

        yield start


@pytest.fixture
def datagram_server(
    request: pytest.FixtureRequest, _leaks_looked_for: None
) -> Iterator[DatagramServerFactory]:
    """Starts datagram servers, as ``native_server`` does; takes what ``serving_datagrams()`` takes."""
    with _open_during(request) as servers:

        def start(
            handler: AnyDatagramHandler,
            *addresses: Any,
            loop: LoopName = "auto",
            timeout: float = TIMEOUT,
            **options: Any,
        ) -> DatagramServer:
            opening = partial(serving_datagrams, handler, *addresses, **options)
            return servers.enter_context(open_in_thread(opening, loop=loop, timeout=timeout))

        yield start


@pytest.fixture
def compat_server(request: pytest.FixtureRequest, _leaks_looked_for: None) -> Iterator[CompatServerFactory]:
    """Starts servers made of ``socketserver``: ``compat_server(compat.ThreadingTCPServer, Handler)``.

    The class may be the standard library's as well. It is served on a free port or path, or at ``address``,
    in a thread of its own; ``attributes`` are set on a subclass, as in ``max_threads=4``. At the end of the
    test the servers are shut down and closed, which waits for their threads: clients have to be closed
    before.
    """
    with _open_during(request) as exits:

        def start(server_class: Any, handler_class: Any, address: Any = None, **attributes: Any) -> Any:
            if attributes:
                server_class = type(server_class.__name__, (server_class,), attributes)
            if address is None:
                address = _free_address(server_class.address_family, exits)
            return exits.enter_context(serving_in_thread(server_class(address, handler_class)))

        yield start


def _free_address(family: int, exits: ExitStack) -> Any:
    if family == getattr(socket, "AF_UNIX", None):
        return f"{exits.enter_context(short_directory())}/server"
    return ("::1" if family == socket.AF_INET6 else "127.0.0.1", 0)


@pytest.fixture
def unix_path() -> Iterator[str]:
    """A path where nothing is yet, short enough for a Unix socket; it is removed after the test."""
    with short_directory() as directory:
        yield f"{directory}/socket"


@pytest.fixture(scope="session")
def tls_authority() -> Authority:
    """The certificate authority of ``transport="tls"``: issues certificates, and makes contexts."""
    return default_authority()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Notes for ``no_leaks`` that a test has raised, by ``pytest.skip()`` for instance; changes nothing."""
    if call.excinfo is not None:
        item.stash[_RAISED] = True
    return (yield)


_RAISED = pytest.StashKey[bool]()


@pytest.fixture
def no_leaks(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fails a test that leaves a descriptor, a thread or a child process behind; see ``leak_check()``.

    It looks when the servers of this plugin have ended; ask for it before fixtures of your own, so that it
    looks when they have, too. A test that has raised (failed, skipped, expected to fail), or whose servers
    have raised at their end, is not examined: what the traceback holds is no leak.
    """
    check = leak_check()
    check.__enter__()
    yield
    if _RAISED not in request.node.stash:
        left_behind = _what_was_left_behind(check)
        if left_behind:
            pytest.fail(left_behind, pytrace=False)


def _what_was_left_behind(check: LeakCheck) -> str:
    try:
        check.__exit__(None, None, None)
    except LeakError as error:
        return str(error)
    return ""
