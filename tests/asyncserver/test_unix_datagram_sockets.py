from __future__ import annotations

import errno
import os
import shutil
import socket
import stat
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from asyncserver import unix_sockets
from asyncserver.addresses import UnixAddress, UnixDatagramAddress
from asyncserver.datagram_options import DatagramOptions
from asyncserver.errors import BindError
from asyncserver.options import SocketOptions
from asyncserver.unix_datagram_sockets import open_unix_datagram_socket
from asyncserver.unix_sockets import SocketFile, open_unix_socket

LINUX = sys.platform.startswith("linux")
Opened = tuple[socket.socket, SocketFile | None]
Open = Callable[..., Opened]


@pytest.fixture
def directory() -> Iterator[Path]:
    """Short enough for any name, and without leftovers of ours at the end."""
    path = Path(tempfile.mkdtemp(prefix="u"))
    yield path
    assert [entry.name for entry in path.rglob(".*")] == []
    shutil.rmtree(path)


@pytest.fixture
def opened() -> Iterator[Open]:
    with ExitStack() as stack:

        def open_and_keep(path: object, **options: Any) -> Opened:
            sock, file = open_unix_datagram_socket(
                UnixDatagramAddress(str(path), **options), DatagramOptions()
            )
            stack.enter_context(sock)
            if file is not None:
                stack.callback(file.unlink)
            return sock, file

        yield open_and_keep


@contextmanager
def bound(path: Path, kind: int = socket.SOCK_DGRAM) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, kind) as sock:
        sock.bind(str(path))
        yield sock


def send(path: Path | str, data: bytes = b"x") -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as client:
        client.setblocking(False)
        client.sendto(data, str(path))


def test_socket_at_a_path(directory: Path, opened: Open) -> None:
    path = directory / "app.sock"
    sock, file = opened(path)
    assert stat.S_ISSOCK(path.lstat().st_mode)
    assert os.listdir(directory) == ["app.sock"]
    assert sock.type == socket.SOCK_DGRAM
    assert not sock.getblocking()
    assert not sock.get_inheritable()
    send(path, b"hello")
    assert sock.recv(100) == b"hello"
    assert file is not None
    file.unlink()
    assert os.listdir(directory) == []


def test_mode_and_group(directory: Path, opened: Open) -> None:
    opened(directory / "m", mode=0o622)
    assert stat.S_IMODE((directory / "m").lstat().st_mode) == 0o622
    opened(directory / "g", group=os.getegid())
    assert stat.S_IMODE((directory / "g").lstat().st_mode) == 0o660
    with pytest.raises(BindError, match="there is no user 'nosuch-user' on this machine"):
        opened(directory / "s", user="nosuch-user")


@pytest.mark.skipif(not LINUX, reason="elsewhere it is linked into its place when all is in force")
def test_nobody_can_send_before_the_mode_is_in_force(
    directory: Path, opened: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, seen = os.chmod, list[int]()

    def chmod(path: str, mode: int) -> None:
        seen.append(stat.S_IMODE((directory / "s").lstat().st_mode))
        real(path, mode)

    monkeypatch.setattr(os, "chmod", chmod)
    opened(directory / "s", mode=0o606)
    assert seen == [0]
    assert stat.S_IMODE((directory / "s").lstat().st_mode) == 0o606


@pytest.mark.skipif(not LINUX, reason="only there the owner is set in place")
def test_a_link_in_its_place_leads_nowhere(
    directory: Path, opened: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    victim = directory / "victim"
    victim.touch(0o600)
    real = os.open

    def swap(path: str, flags: int, *more: Any) -> int:
        if path == str(directory / "s"):
            os.unlink(path)
            os.symlink(victim, path)
        return real(path, flags, *more)

    monkeypatch.setattr(os, "open", swap)
    with pytest.raises(BindError, match="another program has taken the path away"):
        opened(directory / "s", mode=0o606)
    assert stat.S_IMODE(victim.stat().st_mode) == 0o600


def test_nothing_is_left_when_it_cannot_be_given_away(
    directory: Path, opened: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: str, user: int, group: int) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "chown", refuse)
    with pytest.raises(BindError, match="may not give the socket away"):
        opened(directory / "s", group=os.getegid())
    assert os.listdir(directory) == []


@pytest.mark.skipif(not LINUX, reason="elsewhere peers see the name that it was bound to first")
@pytest.mark.parametrize("options", [{}, {"mode": 0o600}])
def test_peers_see_the_path_as_the_sender(
    directory: Path, opened: Open, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    monkeypatch.chdir(directory)
    sock, _ = opened("app.sock", **options)
    with bound(directory / "client") as client:
        sock.sendto(b"hello", str(directory / "client"))
        assert client.recvfrom(100) == (b"hello", str(directory / "app.sock"))


# -- what stands at the path already ---------------------------------------------------------------


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM])
def test_stale_socket_is_replaced(kind: int, directory: Path, opened: Open) -> None:
    path = directory / "s"
    with bound(path, kind):
        pass
    sock, _ = opened(path)
    send(path)
    assert sock.recv(100) == b"x"
    assert os.listdir(directory) == ["s"]


def test_server_of_datagrams_keeps_its_path_and_does_not_notice(directory: Path, opened: Open) -> None:
    path = directory / "s"
    server, _ = opened(path)
    before = path.lstat()
    with pytest.raises(BindError) as caught:
        opened(path)
    assert caught.value.errno == errno.EADDRINUSE
    assert str(caught.value) == (
        f"cannot listen on unixgram://{path}: another server has a socket open at this path, "
        "perhaps this one, started before; choose another path, or see who has it: `ss -lxp`"
    )
    assert path.lstat().st_ino == before.st_ino
    with pytest.raises(BlockingIOError):
        server.recv(100)
    send(path)
    assert server.recv(100) == b"x"


def test_server_of_datagrams_with_a_full_queue_keeps_its_path(directory: Path, opened: Open) -> None:
    path = directory / "s"
    with bound(path), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as client:
        client.setblocking(False)
        with pytest.raises(BlockingIOError if LINUX else OSError):
            for _ in range(100_000):
                client.sendto(b"x", str(path))
        with pytest.raises(BindError, match="another server has a socket open"):
            opened(path)


@pytest.mark.skipif(not LINUX, reason="what other kernels answer is unknown")
def test_server_of_datagrams_with_one_peer_keeps_its_path(directory: Path, opened: Open) -> None:
    with bound(directory / "s") as server, bound(directory / "peer"):
        server.connect(str(directory / "peer"))
        with pytest.raises(BindError, match="another server has a socket open"):
            opened(directory / "s")


def test_server_of_streams_keeps_its_path(directory: Path, opened: Open) -> None:
    with (
        bound(directory / "s", socket.SOCK_STREAM),
        pytest.raises(BindError, match="another server has a socket open"),
    ):
        opened(directory / "s")


def test_server_of_datagrams_keeps_its_path_from_streams(directory: Path, opened: Open) -> None:
    opened(directory / "s")
    with pytest.raises(BindError, match="another server has a socket open"):
        open_unix_socket(UnixAddress(f"{directory}/s"), SocketOptions())


def test_what_is_not_a_socket_is_never_touched(directory: Path, opened: Open) -> None:
    (directory / "s").write_text("precious")
    with pytest.raises(BindError, match="there is a regular file at this path"):
        opened(directory / "s")
    assert (directory / "s").read_text() == "precious"


def test_missing_directory(opened: Open) -> None:
    with pytest.raises(BindError, match="the directory /nosuch does not exist"):
        opened("/nosuch/s")


def test_platform_without_unix_sockets(opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(socket, "AF_UNIX")
    with pytest.raises(BindError, match="this platform has no Unix sockets"):
        opened("s")


# -- abstract names --------------------------------------------------------------------------------


@pytest.mark.skipif(not LINUX, reason="abstract names are Linux's")
def test_abstract_name(opened: Open) -> None:
    name = f"@asyncserver-test-datagrams-{os.getpid()}"
    sock, file = opened(name)
    assert file is None
    send("\0" + name[1:])
    assert sock.recv(100) == b"x"
    with pytest.raises(BindError, match="the name is in use by another socket") as caught:
        opened(name)
    assert caught.value.errno == errno.EADDRINUSE


def test_abstract_name_elsewhere(opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unix_sockets, "_ON_LINUX", False)
    with pytest.raises(BindError, match="abstract names exist on Linux only"):
        opened("@x")
