from __future__ import annotations

import errno
import os
import socket
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from asyncserver import adopted_sockets, ip_sockets
from asyncserver.addresses import Address, FDAddress, SystemdAddress, TCPAddress, UnixAddress
from asyncserver.adopted_sockets import adopt_descriptor, adopt_duplicate
from asyncserver.errors import BindError
from asyncserver.options import KeepAlive, SocketOptions

LINUX = sys.platform.startswith("linux")
needs_ipv6 = pytest.mark.skipif(not ip_sockets.has_ipv6(), reason="this machine has no IPv6")


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def path() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="u") as directory:
        yield Path(directory) / "s"


def adopt(sock: socket.socket, tls: bool = False, **options: Any) -> tuple[socket.socket, Address]:
    """Adopt the descriptor of ``sock``, which forgets it; after an error ``sock`` has it still."""
    descriptor = sock.fileno()
    adopted = adopt_descriptor(descriptor, FDAddress(descriptor, tls=tls), SocketOptions(**options))
    sock.detach()
    return adopted


# -- what can be adopted ---------------------------------------------------------------------------


def test_listening_socket(stack: ExitStack) -> None:
    original = socket.create_server(("127.0.0.1", 0))
    descriptor, port = original.fileno(), original.getsockname()[1]
    original.set_inheritable(True)
    adopted, address = adopt(original, tls=True)
    stack.enter_context(adopted)
    assert adopted.fileno() == descriptor
    assert address == TCPAddress("127.0.0.1", port, tls=True)
    assert not adopted.getblocking()
    assert not adopted.get_inheritable()
    socket.create_connection(("127.0.0.1", port)).close()


def test_bound_socket_is_listened_on(stack: ExitStack, monkeypatch: pytest.MonkeyPatch) -> None:
    original = stack.enter_context(socket.socket())
    original.bind(("127.0.0.1", 0))
    adopted, address = adopt(original)
    stack.enter_context(adopted)
    assert isinstance(address, TCPAddress)
    assert adopted.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    socket.create_connection((address.host, address.port)).close()


@needs_ipv6
@pytest.mark.parametrize("dual_stack", [True, None])
def test_ipv6_socket_tells_whether_it_is_dual(dual_stack: bool | None, stack: ExitStack) -> None:
    original = socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=dual_stack is True)
    port = original.getsockname()[1]
    adopted, address = adopt(original)
    stack.enter_context(adopted)
    assert address == TCPAddress("::", port, dual_stack=dual_stack)


@needs_ipv6
def test_ipv6_socket_of_one_interface(stack: ExitStack) -> None:
    adopted, address = adopt(socket.create_server(("::1", 0), family=socket.AF_INET6))
    stack.enter_context(adopted)
    assert address == TCPAddress("::1", adopted.getsockname()[1])


@needs_ipv6
def test_address_that_ours_have_no_words_for(stack: ExitStack) -> None:
    original = socket.socket(socket.AF_INET6)
    original.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    original.bind(("::ffff:127.0.0.1", 0))
    descriptor = original.fileno()
    adopted, address = adopt(original)
    stack.enter_context(adopted)
    assert address == FDAddress(descriptor)


def test_unix_socket_with_a_path(path: Path, stack: ExitStack) -> None:
    original = socket.socket(socket.AF_UNIX)
    original.bind(str(path))
    adopted, address = adopt(original)
    stack.enter_context(adopted)
    assert address == UnixAddress(str(path))
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))


def test_unix_socket_whose_file_begins_with_at(
    path: Path, stack: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(path.parent)
    original = socket.socket(socket.AF_UNIX)
    original.bind("@s")
    adopted, address = adopt(original)
    stack.enter_context(adopted)
    assert address == UnixAddress("./@s")


@pytest.mark.skipif(not LINUX, reason="abstract names are Linux's")
def test_abstract_unix_socket(stack: ExitStack) -> None:
    original = socket.socket(socket.AF_UNIX)
    original.bind(b"\0asyncserver-adopted-%d-\xff" % os.getpid())
    adopted, address = adopt(original)
    stack.enter_context(adopted)
    assert address == UnixAddress(f"@asyncserver-adopted-{os.getpid()}-\udcff")


def test_options_of_connections_are_set(stack: ExitStack) -> None:
    original = socket.create_server(("127.0.0.1", 0))
    adopted, _ = adopt(original, keep_alive=KeepAlive(idle=33), receive_buffer=32_768)
    stack.enter_context(adopted)
    assert adopted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
    assert adopted.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
    assert adopted.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) == (65_536 if LINUX else 32_768)


def test_backlog_is_for_those_that_do_not_listen_yet(
    stack: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    class Listening(socket.socket):
        def listen(self, backlog: int = 0) -> None:
            asked.append(backlog)
            super().listen(backlog)

    listening, waiting = socket.create_server(("127.0.0.1", 0)), socket.socket()
    waiting.bind(("127.0.0.1", 0))
    monkeypatch.setattr(socket, "socket", Listening)
    for original in (listening, waiting):
        stack.enter_context(adopt(original, backlog=77)[0])
    assert asked == [77]


# -- what cannot -----------------------------------------------------------------------------------


def assert_refused(sock: socket.socket, reason: str, number: int) -> None:
    with sock:
        descriptor = sock.fileno()
        with pytest.raises(BindError, match=reason) as caught:
            adopt(sock)
        assert caught.value.errno == number
        assert str(caught.value).startswith(
            f"cannot listen on fd://{descriptor}: descriptor {descriptor} is "
        )
        os.fstat(descriptor)  # open as before


def test_connected_socket() -> None:
    one, other = socket.socketpair()
    with other:
        assert_refused(one, r"a connection \(a systemd unit with Accept=yes", errno.EISCONN)


def test_connected_tcp_socket(stack: ExitStack) -> None:
    server = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
    assert_refused(socket.create_connection(server.getsockname()), "is a connection", errno.EISCONN)


@pytest.mark.parametrize(
    ("number", "connected"), [(errno.ENOTCONN, False), (errno.EINVAL, True), (errno.ENOBUFS, False)]
)
def test_connection_whose_other_side_is_gone(number: int, connected: bool) -> None:
    class Odd(socket.socket):
        def getpeername(self) -> None:
            raise OSError(number, "no")

    with Odd() as sock:
        assert adopted_sockets._is_connected(sock) is connected


def test_unbound_socket() -> None:
    assert_refused(socket.socket(), "a socket that is not bound to an address", errno.EINVAL)
    assert_refused(socket.socket(socket.AF_UNIX), "not bound to an address", errno.EINVAL)


def test_datagram_socket() -> None:
    sock = socket.socket(type=socket.SOCK_DGRAM)
    sock.bind(("127.0.0.1", 0))
    assert_refused(sock, r"a datagram socket; a stream socket \(TCP or Unix\) is needed", errno.EPROTOTYPE)


@pytest.mark.skipif(not LINUX, reason="sockets that only Linux has")
def test_sockets_of_other_kinds() -> None:
    assert_refused(
        socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET), "family AF_UNIX and type SOCK_SEQPACKET",
        errno.EPROTOTYPE,
    )  # fmt: skip
    assert_refused(
        socket.socket(socket.AF_NETLINK, socket.SOCK_RAW), "family AF_NETLINK and type SOCK_RAW",
        errno.EPROTOTYPE,
    )  # fmt: skip


def test_what_is_not_a_socket(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    reading, writing = os.pipe()
    descriptors = {
        "a regular file": os.open(tmp_path / "file", os.O_RDONLY),
        "a directory": os.open(tmp_path, os.O_RDONLY),
        "a pipe": reading,
        "something else": os.open(os.devnull, os.O_RDONLY),
    }
    for kind, descriptor in descriptors.items():
        with pytest.raises(BindError, match=f"descriptor {descriptor} is {kind}, not a socket") as caught:
            adopt_descriptor(descriptor, FDAddress(descriptor), SocketOptions())
        assert caught.value.errno == errno.ENOTSOCK
        os.close(descriptor)
    os.close(writing)


def test_terminal() -> None:
    master, slave = os.openpty()
    with pytest.raises(BindError, match=f"descriptor {slave} is a terminal"):
        adopt_descriptor(slave, FDAddress(slave), SocketOptions())
    os.close(master)
    os.close(slave)


def test_descriptor_that_is_not_open() -> None:
    for function in (adopt_descriptor, adopt_duplicate):
        with pytest.raises(BindError, match=r"descriptor 9999 is not open \(a server that") as caught:
            function(9999, FDAddress(9999), SocketOptions())
        assert caught.value.errno == errno.EBADF


def test_too_many_open_files(stack: ExitStack, monkeypatch: pytest.MonkeyPatch) -> None:
    def dup(_: int) -> int:
        raise OSError(errno.EMFILE, "Too many open files")

    sock = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
    monkeypatch.setattr(os, "dup", dup)
    with pytest.raises(BindError, match=os.strerror(errno.EMFILE)):
        adopt_duplicate(sock.fileno(), SystemdAddress("x"), SocketOptions())


def test_error_of_the_kernel_leaves_the_descriptor_open(
    stack: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    def configure(*_: object) -> None:
        raise OSError(errno.ENOBUFS, "No buffer space available")

    original = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
    monkeypatch.setattr(adopted_sockets, "configure_listening", configure)
    with pytest.raises(BindError, match=os.strerror(errno.ENOBUFS)):
        adopt(original)
    socket.create_connection(original.getsockname()).close()


# -- duplicates ------------------------------------------------------------------------------------


def test_duplicate_leaves_the_original_open(stack: ExitStack) -> None:
    original = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
    for _ in range(2):
        adopted, address = adopt_duplicate(original.fileno(), SystemdAddress("x", tls=True), SocketOptions())
        assert adopted.fileno() != original.fileno()
        assert address == TCPAddress("127.0.0.1", original.getsockname()[1], tls=True)
        adopted.close()
    socket.create_connection(original.getsockname()).close()


def test_refused_duplicate_is_closed(stack: ExitStack) -> None:
    original = stack.enter_context(socket.socket(type=socket.SOCK_DGRAM))
    with pytest.raises(BindError, match="a datagram socket"):
        adopt_duplicate(original.fileno(), SystemdAddress("x"), SocketOptions())
    os.fstat(original.fileno())
