from __future__ import annotations

import errno
import logging
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from asyncserver import ip_sockets, socket_options
from asyncserver.addresses import TCPAddress, UnixAddress
from asyncserver.options import KeepAlive, SocketOptions
from asyncserver.socket_options import (
    INHERITS_OPTIONS,
    accepted_configurator,
    configure_accepted,
    configure_listening,
    warn_if_backlog_is_capped,
)
from asyncserver.sockets import open_listening_sockets

LINUX = sys.platform.startswith("linux")
IDLE: int = getattr(socket, "TCP_KEEPIDLE", 0) or getattr(socket, "TCP_KEEPALIVE", 0)
ALL_SET = SocketOptions(
    keep_alive=KeepAlive(idle=77, interval=13, probes=3), receive_buffer=32_768, send_buffer=65_536
)
ALL_OFF = SocketOptions(no_delay=False, keep_alive=None)

needs_ipv6 = pytest.mark.skipif(not ip_sockets.has_ipv6(), reason="this machine has no IPv6")


def tcp_options(sock: socket.socket) -> dict[str, int]:
    return {
        "no_delay": int(bool(sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))),
        "keep_alive": int(bool(sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE))),
        "idle": sock.getsockopt(socket.IPPROTO_TCP, IDLE),
        "interval": sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL),
        "probes": sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT),
    }


def buffers(sock: socket.socket) -> tuple[int, int]:
    """What was asked for: Linux reports twice that."""
    sizes = [sock.getsockopt(socket.SOL_SOCKET, name) for name in (socket.SO_RCVBUF, socket.SO_SNDBUF)]
    return (sizes[0] // 2, sizes[1] // 2) if LINUX else (sizes[0], sizes[1])


@contextmanager
def accepted_from(options: SocketOptions, host: str = "127.0.0.1") -> Iterator[socket.socket]:
    """A socket as a server gets it: accepted, and configured where that is needed."""
    with ExitStack() as stack:
        (listening,) = open_listening_sockets([TCPAddress(host)], options)
        stack.callback(listening.release)
        listening.socket.setblocking(True)
        stack.enter_context(closing(socket.create_connection(listening.socket.getsockname()[:2])))
        accepted, _ = listening.socket.accept()
        stack.callback(accepted.close)
        if listening.configure_accepted is not None:
            listening.configure_accepted(accepted)
        yield accepted


@pytest.mark.parametrize("host", ["127.0.0.1", pytest.param("::1", marks=needs_ipv6)])
def test_accepted_socket_has_the_options(host: str) -> None:
    with accepted_from(ALL_SET, host) as accepted:
        assert tcp_options(accepted) == {
            "no_delay": 1, "keep_alive": 1, "idle": 77, "interval": 13, "probes": 3
        }  # fmt: skip
        assert buffers(accepted) == (32_768, 65_536)


def test_accepted_socket_has_the_defaults() -> None:
    with accepted_from(SocketOptions()) as accepted:
        assert tcp_options(accepted) == {
            "no_delay": 1, "keep_alive": 1, "idle": 60, "interval": 15, "probes": 4
        }  # fmt: skip


def test_accepted_socket_has_what_is_off_off() -> None:
    with accepted_from(ALL_OFF) as accepted:
        off = tcp_options(accepted)
        assert (off["no_delay"], off["keep_alive"]) == (0, 0)


@pytest.mark.skipif(not LINUX, reason="elsewhere accepted sockets are configured one by one")
def test_linux_sockets_inherit_so_nothing_is_left_to_do() -> None:
    assert INHERITS_OPTIONS
    assert accepted_configurator(socket.AF_INET, ALL_SET) is None
    assert accepted_configurator(socket.AF_INET6, ALL_SET) is None


def test_where_options_are_not_inherited_each_accepted_socket_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket_options, "INHERITS_OPTIONS", False)
    with socket.socket() as accepted:
        configure = accepted_configurator(socket.AF_INET, ALL_SET)
        assert configure is not None
        configure(accepted)
        assert tcp_options(accepted)["idle"] == 77
        assert buffers(accepted) == (32_768, 65_536)


@pytest.mark.skipif(not hasattr(socket, "AF_UNIX"), reason="needs Unix sockets")
def test_unix_sockets_are_given_their_buffers_one_by_one() -> None:
    assert accepted_configurator(socket.AF_UNIX, SocketOptions()) is None
    configure = accepted_configurator(socket.AF_UNIX, ALL_SET)
    assert configure is not None
    one, other = socket.socketpair()
    with one, other:
        configure(one)
        assert buffers(one) == (32_768, 65_536)


@pytest.mark.skipif(not LINUX, reason="needs an abstract name")
def test_accepted_unix_socket_has_its_buffers() -> None:
    name = f"asyncserver-test-buffers-{os.getpid()}"
    (listening,) = open_listening_sockets([UnixAddress(f"@{name}")], ALL_SET)
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(f"\0{name}")
        accepted, _ = listening.socket.accept()
        with accepted:
            assert listening.configure_accepted is not None
            assert buffers(accepted) != (32_768, 65_536)
            listening.configure_accepted(accepted)
            assert buffers(accepted) == (32_768, 65_536)
    listening.release()


def test_configuring_never_costs_a_connection(caplog: pytest.LogCaptureFixture) -> None:
    class Gone(socket.socket):
        def setsockopt(self, *_: Any) -> None:
            raise OSError(errno.EINVAL, "Invalid argument")

    with caplog.at_level(logging.DEBUG, "asyncserver"), Gone() as accepted:
        configure_accepted(accepted, ALL_SET)
    assert "cannot set the options" in caplog.text


def test_other_protocols_are_not_given_tcp_options() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM, socket.IPPROTO_UDP) as sock:
        configure_listening(sock, SocketOptions(), "udp")


def test_platform_without_keep_alive_times(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TCP_KEEPIDLE", "TCP_KEEPALIVE", "TCP_KEEPINTVL", "TCP_KEEPCNT"):
        monkeypatch.delattr(socket, name, raising=False)
    with socket.socket() as sock:
        configure_listening(sock, SocketOptions(), "tcp")
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)


def test_macos_name_of_the_idle_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(socket, "TCP_KEEPIDLE", raising=False)
    monkeypatch.setattr(socket, "TCP_KEEPALIVE", IDLE, raising=False)
    with socket.socket() as sock:
        configure_listening(sock, ALL_SET, "tcp")
        assert sock.getsockopt(socket.IPPROTO_TCP, IDLE) == 77


# -- what the kernel cuts --------------------------------------------------------------------------


@pytest.fixture
def somaxconn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    file = tmp_path / "somaxconn"
    monkeypatch.setattr(socket_options, "_SOMAXCONN_FILE", str(file))
    return file


def test_capped_backlog_is_logged(somaxconn: Path, caplog: pytest.LogCaptureFixture) -> None:
    somaxconn.write_text("128\n")
    warn_if_backlog_is_capped(129, "tcp://:1")
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "tcp://:1: the kernel cuts the backlog of 129 to 128; raise net.core.somaxconn" in caplog.text


@pytest.mark.parametrize("content", ["128", "4096", "", "unlimited", None])
def test_backlog_that_is_not_capped_is_not_logged(
    content: str | None, somaxconn: Path, caplog: pytest.LogCaptureFixture
) -> None:
    if content is not None:
        somaxconn.write_text(content)
    warn_if_backlog_is_capped(128, "tcp://:1")
    assert not caplog.records


def test_warning_once_per_address(somaxconn: Path, caplog: pytest.LogCaptureFixture) -> None:
    somaxconn.write_text("100")
    for listening in open_listening_sockets(
        [TCPAddress("", 0), TCPAddress("127.0.0.1", 0, backlog=100)], SocketOptions(backlog=101)
    ):
        listening.release()
    assert [record.getMessage().partition(":0:")[0] for record in caplog.records] == ["tcp://"]


@pytest.mark.skipif(not LINUX, reason="other kernels refuse what is too much")
@pytest.mark.parametrize("option", ["receive_buffer", "send_buffer"])
def test_buffer_that_the_kernel_makes_smaller_is_logged(
    option: str, caplog: pytest.LogCaptureFixture
) -> None:
    options = SocketOptions(**{option: 2**30 - 1})  # type: ignore[arg-type]
    with socket.socket() as sock:
        configure_listening(sock, options, "tcp://:1")
    assert f"tcp://:1: the kernel gives {option}={2**30 - 1} only " in caplog.text


@pytest.mark.parametrize(("number", "logged"), [(errno.ENOBUFS, True), (errno.EPERM, False)])
def test_buffer_that_the_kernel_refuses(number: int, logged: bool, caplog: pytest.LogCaptureFixture) -> None:
    class Refusing(socket.socket):
        def setsockopt(self, level: int, name: int, value: Any) -> None:  # type: ignore[override]
            if name == socket.SO_RCVBUF:
                raise OSError(number, "no")
            super().setsockopt(level, name, value)

    with Refusing() as sock:
        options = SocketOptions(receive_buffer=2**29)
        if logged:
            configure_listening(sock, options, "tcp://:1")
        else:
            with pytest.raises(OSError, match="no"):
                configure_listening(sock, options, "tcp://:1")
    assert ("receive_buffer" in caplog.text) is logged


def test_buffer_of_the_size_asked_for_is_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    with socket.socket() as sock:
        configure_listening(sock, ALL_SET, "tcp://:1")
    assert not caplog.records
