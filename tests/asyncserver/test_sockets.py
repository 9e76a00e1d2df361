from __future__ import annotations

import errno
import os
import socket
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from asyncserver import ip_sockets, sockets, systemd
from asyncserver.addresses import (
    Address,
    FDAddress,
    SystemdAddress,
    TCPAddress,
    UnixAddress,
)
from asyncserver.errors import BindError, OptionError, StartError
from asyncserver.options import SocketOptions
from asyncserver.sockets import ListeningSocket, open_listening_sockets
from tests.clients import kept_port

LINUX = sys.platform.startswith("linux")
needs_ipv6 = pytest.mark.skipif(not ip_sockets.has_ipv6(), reason="this machine has no IPv6")
Open = Callable[..., list[ListeningSocket]]


@pytest.fixture
def directory() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="u") as directory:
        yield Path(directory)


@pytest.fixture
def opened() -> Iterator[Open]:
    with ExitStack() as stack:

        def open_and_keep(*addresses: Address, **options: Any) -> list[ListeningSocket]:
            found = open_listening_sockets(addresses, SocketOptions(**options))
            for listening in found:
                stack.callback(listening.release)
            return found

        yield open_and_keep


def refuses(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == errno.ECONNREFUSED


def accept(listening: ListeningSocket) -> socket.socket:
    listening.socket.setblocking(True)
    accepted, _ = listening.socket.accept()
    return accepted


@needs_ipv6
def test_addresses_of_every_kind_in_their_order(
    directory: Path, opened: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    own, passed = socket.create_server(("127.0.0.1", 0)), socket.create_server(("127.0.0.1", 0))
    own_port, passed_port = own.getsockname()[1], passed.getsockname()[1]
    monkeypatch.setattr(systemd, "_taken", systemd.PassedDescriptors({"web": (passed.fileno(),)}))
    requested: list[Address] = [
        UnixAddress(f"{directory}/s", mode=0o600, tls=True),
        TCPAddress("", 0),
        FDAddress(own.fileno(), tls=True),
        SystemdAddress("web"),
    ]
    found = opened(*requested)
    own.detach()
    port = found[1].address.port  # type: ignore[union-attr]
    assert [listening.address for listening in found] == [
        UnixAddress(f"{directory}/s", mode=0o600, tls=True),
        TCPAddress("0.0.0.0", port),
        TCPAddress("::", port),
        TCPAddress("127.0.0.1", own_port, tls=True),
        TCPAddress("127.0.0.1", passed_port),
    ]
    assert [requested.index(listening.requested) for listening in found] == [0, 1, 1, 2, 3]
    assert [listening.tls for listening in found] == [True, False, False, True, False]
    for listening in found:
        assert not listening.socket.getblocking()
        assert not listening.socket.get_inheritable()
        assert listening.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    passed.close()


def test_no_addresses() -> None:
    assert open_listening_sockets([]) == []


def test_options_have_defaults() -> None:
    (listening,) = open_listening_sockets([TCPAddress("127.0.0.1")])
    assert listening.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
    listening.release()


# -- all or nothing --------------------------------------------------------------------------------


def test_failure_closes_and_unlinks_what_was_opened_before(directory: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as blocker, socket.create_server(("127.0.0.1", 0)) as mine:
        taken = TCPAddress("127.0.0.1", blocker.getsockname()[1])
        with pytest.raises(BindError, match="in use"):
            open_listening_sockets(
                [TCPAddress("127.0.0.1"), UnixAddress(f"{directory}/s"), FDAddress(mine.fileno()), taken],
                SocketOptions(),
            )
        assert os.listdir(directory) == []
        # What was given as a descriptor is as it was.
        socket.create_connection(mine.getsockname()).close()


def test_ports_of_a_failed_start_are_free_again(opened: Open) -> None:
    with kept_port() as port:
        address = TCPAddress("127.0.0.1", port)
        with pytest.raises(BindError, match="does not exist"):
            opened(address, UnixAddress("/nosuch/directory/s"))
        (again,) = opened(address)
        assert again.address == address


def test_same_address_twice(opened: Open, directory: Path) -> None:
    with kept_port() as port:
        for twice in (TCPAddress("127.0.0.1", port), UnixAddress(f"{directory}/s")):
            with pytest.raises(BindError) as caught:
                opened(twice, twice)
            assert caught.value.errno == errno.EADDRINUSE
    assert os.listdir(directory) == []


def test_same_descriptor_twice() -> None:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        twice = FDAddress(sock.fileno())
        with pytest.raises(BindError, match="the descriptor is given twice"):
            open_listening_sockets([twice, FDAddress(sock.fileno(), tls=True)])
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)


def test_failing_descriptor_of_several_with_one_name(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as good, socket.socket(type=socket.SOCK_DGRAM) as bad:
        descriptors = {"web": (good.fileno(), bad.fileno())}
        monkeypatch.setattr(systemd, "_taken", systemd.PassedDescriptors(descriptors))
        with pytest.raises(BindError, match="a datagram socket"):
            open_listening_sockets([SystemdAddress("web")])
        socket.create_connection(good.getsockname()).close()


def test_option_that_the_platform_lacks_closes_too(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(socket, "SO_REUSEPORT", raising=False)
    with pytest.raises(OptionError):
        open_listening_sockets([UnixAddress(f"{directory}/s"), TCPAddress("127.0.0.1", reuse_port=True)])
    assert os.listdir(directory) == []


def test_interruption_closes_too(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(sockets, "open_tcp_sockets", interrupt)
    with pytest.raises(KeyboardInterrupt):
        open_listening_sockets([UnixAddress(f"{directory}/s"), TCPAddress("127.0.0.1")])
    assert os.listdir(directory) == []


def test_error_is_one_of_the_start_and_one_of_the_system() -> None:
    with pytest.raises(BindError) as caught:
        open_listening_sockets([UnixAddress("/nosuch/directory/s")])
    assert isinstance(caught.value, StartError)
    assert isinstance(caught.value, OSError)
    assert caught.value.errno == errno.ENOENT
    assert caught.value.address == "unix:///nosuch/directory/s"


# -- the end ---------------------------------------------------------------------------------------


def test_release_closes_and_unlinks_once(directory: Path, opened: Open) -> None:
    with kept_port() as port:
        tcp, unix = opened(TCPAddress("127.0.0.1", port), UnixAddress(f"{directory}/s"))
        for _ in range(3):
            tcp.release()
            unix.release()
        assert tcp.socket.fileno() == unix.socket.fileno() == -1
        assert refuses(port)
    assert os.listdir(directory) == []
    with socket.socket(socket.AF_UNIX) as successor:
        successor.bind(f"{directory}/s")
        unix.release()
        assert os.listdir(directory) == ["s"]


def test_release_from_several_threads(directory: Path, opened: Open) -> None:
    (listening,) = opened(UnixAddress(f"{directory}/s"))
    threads = [threading.Thread(target=listening.release) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert os.listdir(directory) == []
    assert listening.socket.fileno() == -1


def test_accepted_connections_live_on(opened: Open) -> None:
    (listening,) = opened(TCPAddress("127.0.0.1"))
    with socket.create_connection(listening.socket.getsockname()) as client, accept(listening) as accepted:
        listening.release()
        accepted.sendall(b"still here")
        assert client.recv(100) == b"still here"


def test_adopted_descriptor_is_closed_and_its_path_stays(directory: Path, opened: Open) -> None:
    sock = socket.socket(socket.AF_UNIX)
    sock.bind(f"{directory}/s")
    descriptor = sock.detach()
    (listening,) = opened(FDAddress(descriptor))
    assert listening.address == UnixAddress(f"{directory}/s")
    listening.release()
    assert os.listdir(directory) == ["s"]
    with pytest.raises(OSError, match=os.strerror(errno.EBADF)):
        os.fstat(descriptor)


def test_adopted_descriptor_can_be_abandoned(opened: Open) -> None:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        (listening,) = open_listening_sockets([FDAddress(sock.fileno())])
        listening.abandon()
        socket.create_connection(sock.getsockname()).close()


def test_starting_and_stopping_many_times(directory: Path) -> None:
    for _ in range(50):
        for listening in open_listening_sockets([UnixAddress(f"{directory}/s"), TCPAddress("127.0.0.1")]):
            listening.release()
    assert os.listdir(directory) == []


# -- connections -----------------------------------------------------------------------------------


@pytest.mark.skipif(not LINUX, reason="elsewhere every accepted socket is configured")
def test_what_accepted_sockets_do_not_inherit(directory: Path, opened: Open) -> None:
    addresses = TCPAddress("127.0.0.1"), UnixAddress(f"{directory}/s")
    assert [listening.configure_accepted for listening in opened(*addresses)] == [None, None]
    for listening in opened(TCPAddress("127.0.0.1"), UnixAddress(f"{directory}/t"), send_buffer=65_536):
        assert (listening.configure_accepted is None) == isinstance(listening.address, TCPAddress)


def test_representation_is_for_people(opened: Open) -> None:
    (listening,) = opened(TCPAddress("127.0.0.1"))
    assert "_releasing" not in repr(listening)
    assert "127.0.0.1" in repr(listening)
