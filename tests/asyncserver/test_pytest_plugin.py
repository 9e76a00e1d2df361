"""``asyncserver.pytest_plugin``: its fixtures, and that it does nothing for who does not ask for them."""

from __future__ import annotations

import pytest

from asyncserver import pytest_plugin

PLUGIN = "asyncserver.pytest_plugin"

TESTS = """
import asyncio, compat, pytest, socket, socketserver, ssl, sys, threading
from asyncserver import OptionError, UnixAddress
from asyncserver.testing import Client, DatagramClient, TLSClient

async def echo(stream):
    async for chunk in stream:
        await stream.send(chunk)

async def echo_datagram(datagram):
    await datagram.reply(datagram.data)

class Handler(socketserver.BaseRequestHandler):
    def handle(self):
        self.request.sendall(self.request.recv(100))

def ask(family, address):
    with socket.socket(family) as client:
        client.settimeout(10)
        client.connect(address)
        client.sendall(b"hello")
        return client.recv(100)
"""

USES = """
def test_native_without_a_loop(native_server, no_leaks):
    server = native_server(echo)
    other = native_server(echo, transport="unix", loop="asyncio", timeout=5)
    assert ask(socket.AF_INET, ("127.0.0.1", server.addresses[0].port)) == b"hello"
    assert ask(socket.AF_UNIX, other.addresses[0].path) == b"hello"

@pytest.mark.anyio
async def test_native_and_datagrams_beside_a_loop(native_server, datagram_server, tls_authority):
    secure = native_server(echo, transport="tls")
    async with await TLSClient.connect(secure, tls_authority.client_context()) as client:
        assert await client.ask(b"hello") == b"hello"
    for transport in ("udp", "unix"):
        server = datagram_server(echo_datagram, transport=transport, timeout=5)
        async with await DatagramClient.connect(server) as client:
            assert await client.ask(b"hello") == b"hello"

@pytest.mark.parametrize("module", [socketserver, compat])
def test_compat(compat_server, module, no_leaks):
    server = compat_server(module.ThreadingTCPServer, Handler, daemon_threads=True)
    assert server.daemon_threads and not module.ThreadingTCPServer.daemon_threads
    assert ask(socket.AF_INET, server.server_address) == b"hello"
    other = compat_server(module.UnixStreamServer, Handler)
    assert ask(socket.AF_UNIX, other.server_address) == b"hello"
    assert compat_server(module.TCPServer, Handler, ("127.0.0.2", 0)).server_address[0] == "127.0.0.2"

def test_path(native_server, unix_path):
    server = native_server(echo, UnixAddress(unix_path))
    assert ask(socket.AF_UNIX, unix_path) == b"hello"
"""

MISTAKES = """
KEPT = []

def test_leak(no_leaks):
    KEPT.append(socket.socket())

def test_leak_of_one_that_failed(no_leaks):
    KEPT.append(socket.socket())
    assert False, "this is what counts"

@pytest.mark.parametrize("leave", [pytest.fail, pytest.skip, pytest.xfail])
def test_leak_of_one_that_left(no_leaks, leave):
    KEPT.append(socket.socket())
    leave("this is what counts")

async def fail(stream):
    await stream.receive()
    raise KeyError("in the handler")

def test_handler_that_fails(native_server):
    assert ask(socket.AF_INET, ("127.0.0.1", native_server(fail).addresses[0].port)) == b""

def test_handlers_that_fail_and_hold_something(no_leaks, native_server, datagram_server):
    async def fail_packet(datagram):
        KEPT.append(socket.socket())
        raise KeyError("in the handler")

    server = datagram_server(fail_packet)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.sendto(b"hello", ("127.0.0.1", server.addresses[0].port))
        native_server(echo)

def test_closing_that_fails(no_leaks, compat_server):
    class Server(socketserver.TCPServer):
        def server_close(self):
            super().server_close()
            KEPT.append(socket.socket())
            raise KeyError("at the end")

    compat_server(Server, Handler)

def test_wrong(native_server):
    native_server(echo, transport="sctp")

def test_wrong_timeout(native_server, datagram_server):
    for start in (native_server, datagram_server):
        with pytest.raises(OptionError, match="timeout=0"):
            start(echo, timeout=0)
"""


@pytest.fixture
def inner(pytester: pytest.Pytester) -> pytest.Pytester:
    """A suite with neither our configuration nor our other plugins, in this process."""
    pytester.makeini("[pytest]\nfilterwarnings = error\n")
    return pytester


def run(inner: pytest.Pytester, *arguments: str) -> pytest.RunResult:
    without = [f"-pno:{name}" for name in ("xdist", "asyncio", "timeout", "cacheprovider", "faulthandler")]
    return inner.runpytest_inprocess(*without, *arguments)


def test_fixtures(inner: pytest.Pytester) -> None:
    inner.makeconftest(
        f"pytest_plugins = [{PLUGIN!r}]\n"
        "import pytest\n"
        "@pytest.fixture(params=['asyncio', ('asyncio', {'use_uvloop': True})])\n"
        "def anyio_backend(request): return request.param\n"
    )
    inner.makepyfile(TESTS + USES)
    run(inner).assert_outcomes(passed=6)


def test_mistakes(inner: pytest.Pytester) -> None:
    inner.makepyfile(TESTS + MISTAKES + "def test_end():\n    for each in KEPT: each.close()\n")
    result = run(inner, "-p", PLUGIN)
    result.assert_outcomes(passed=6, failed=3, skipped=1, xfailed=1, errors=4)
    lines = (
        "*ERROR at teardown of test_leak _*",
        "left behind:",
        "- file descriptor *AF_INET, SOCK_STREAM*",
        "*ERROR at teardown of test_handler_that_fails *",
        "*HandlerErrors: handlers have raised (1 sub-exception)*",
        "*KeyError: 'in the handler'*",
    )
    result.stdout.fnmatch_lines(lines)
    # The summary tells it again where CI is set.
    said, _, _ = result.stdout.str().partition("short test summary info")
    assert said.count("- file descriptor") == 1


INERT = """
import threading

def test_it(request):
    print("fixtures:", request.fixturenames, "threads:", threading.active_count())
"""


def test_it_is_inert_until_asked(inner: pytest.Pytester) -> None:
    """The same fixtures, threads, options and outcome with it as without it; its one hook only records."""
    inner.makepyfile(INERT)
    outputs = []
    for arguments in ([], ["-p", PLUGIN]):
        result = run(inner, "-s", *arguments)
        result.assert_outcomes(passed=1)
        outputs.append(
            [line for line in result.outlines if "fixtures:" in line or line.startswith("plugins:")]
        )
    assert outputs[0] == outputs[1]
    assert "fixtures: ['request']" in outputs[0][-1]
    hooks = [name for name in vars(pytest_plugin) if name.startswith("pytest_")]
    assert hooks == ["pytest_runtest_makereport"]
