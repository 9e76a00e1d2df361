from __future__ import annotations

import errno
import fcntl
import grp
import os
import pwd
import shutil
import socket
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from asyncserver import unix_sockets
from asyncserver.address_rules import MAX_UNIX_PATH_BYTES
from asyncserver.addresses import UnixAddress
from asyncserver.errors import BindError
from asyncserver.options import SocketOptions
from asyncserver.unix_sockets import SocketFile, open_unix_socket
from tests.unprivileged import run_unprivileged
from tests.waiting import wait_until_blocking

LINUX = sys.platform.startswith("linux")
ROOT = os.geteuid() == 0
NOBODY = 65534


@pytest.fixture
def directory() -> Iterator[Path]:
    """Short enough for any name, open to everybody, and without leftovers of ours at the end."""
    path = Path(tempfile.mkdtemp(prefix="u"))
    path.chmod(0o755)
    yield path
    path.chmod(0o700)
    assert [entry.name for entry in path.rglob(".*")] == []
    shutil.rmtree(path)


class Opened:
    """A socket that was opened by the code under test, and its file."""

    def __init__(self, sock: socket.socket, file: SocketFile | None) -> None:
        self.socket = sock
        self.file = file

    def release(self) -> None:
        if self.file is not None:
            self.file.unlink()
        self.socket.close()


Open = Callable[..., Opened]


@pytest.fixture
def opened() -> Iterator[Open]:
    with ExitStack() as stack:

        def open_and_keep(path: object, **options: Any) -> Opened:
            found = Opened(*open_unix_socket(UnixAddress(str(path), **options), SocketOptions()))
            stack.callback(found.release)
            return found

        yield open_and_keep


def connect(path: Path | str) -> None:
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(5)
        client.connect(str(path))


def leave_stale(path: Path, kind: int = socket.SOCK_STREAM) -> os.stat_result:
    with socket.socket(socket.AF_UNIX, kind) as sock:
        sock.bind(str(path))
        if kind == socket.SOCK_STREAM:
            sock.listen()
    return path.lstat()


def current_umask() -> int:
    umask = os.umask(0o077)
    os.umask(umask)
    return umask


# -- mode and owner --------------------------------------------------------------------------------


def test_socket_at_a_path(directory: Path, opened: Open) -> None:
    path = directory / "app.sock"
    server = opened(path)
    assert stat.S_ISSOCK(path.lstat().st_mode)
    assert path.lstat().st_nlink == 1
    assert os.listdir(directory) == ["app.sock"]
    assert not server.socket.getblocking()
    assert not server.socket.get_inheritable()
    assert server.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    connect(path)
    server.release()
    assert os.listdir(directory) == []


@pytest.mark.parametrize("mode", [0o600, 0o660, 0o666, 0o777, 0o400, 0])
@pytest.mark.parametrize("umask", [0o022, 0o077, 0])
def test_mode_is_the_one_asked_for(mode: int, umask: int, directory: Path, opened: Open) -> None:
    before = os.umask(umask)
    try:
        opened(directory / "s", mode=mode)
        assert current_umask() == umask
    finally:
        os.umask(before)
    assert stat.S_IMODE((directory / "s").lstat().st_mode) == mode


def test_default_mode_is_what_the_umask_leaves(directory: Path, opened: Open) -> None:
    opened(directory / "s")
    assert stat.S_IMODE((directory / "s").lstat().st_mode) == 0o777 & ~current_umask()


def test_default_mode_lets_a_given_group_in(directory: Path, opened: Open) -> None:
    opened(directory / "s", group=os.getegid())
    found = (directory / "s").lstat()
    assert stat.S_IMODE(found.st_mode) == 0o660
    assert found.st_gid == os.getegid()


def test_owner_by_name(directory: Path, opened: Open) -> None:
    user, group = pwd.getpwuid(os.geteuid()).pw_name, grp.getgrgid(os.getegid()).gr_name
    opened(directory / "s", user=user, group=group, mode=0o600)
    found = (directory / "s").lstat()
    assert (found.st_uid, found.st_gid) == (os.geteuid(), os.getegid())
    assert stat.S_IMODE(found.st_mode) == 0o600


@pytest.mark.skipif(not ROOT, reason="only root may give files away")
def test_owner_can_be_anybody_for_root(directory: Path, opened: Open) -> None:
    opened(directory / "s", user=NOBODY, group=4711, mode=0o606)
    found = (directory / "s").lstat()
    assert (found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)) == (NOBODY, 4711, 0o606)


def test_group_of_a_setgid_directory_is_kept(directory: Path, opened: Open) -> None:
    inside = directory / "d"
    inside.mkdir()
    if ROOT:
        os.chown(inside, -1, 4711)
    inside.chmod(0o2775)
    opened(inside / "s")
    assert (inside / "s").lstat().st_gid == inside.lstat().st_gid


@pytest.mark.parametrize("option", ["user", "group"])
def test_unknown_owner_is_an_error_before_anything_is_opened(
    option: str, directory: Path, opened: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "TemporaryDirectory", None)
    with pytest.raises(BindError, match=f"there is no {option} 'nosuch-{option}' on this machine"):
        opened(directory / "s", **{option: f"nosuch-{option}"})
    assert os.listdir(directory) == []


def test_normal_user_may_not_give_a_socket_away(directory: Path) -> None:
    directory.chmod(0o777)
    text = run_unprivileged(
        """
        for owner in ({"user": 0}, {"group": 0}):
            try:
                open_listening_sockets([UnixAddress(sys.argv[1], **owner)])
            except BindError as error:
                print(error.errno == errno.EPERM, error)
        print(os.listdir(os.path.dirname(sys.argv[1])))
        """,
        str(directory / "s"),
    ).splitlines()
    assert len(text) == 3
    for line in text[:2]:
        assert line.startswith("True cannot listen on unix:")
        assert "this user may not give the socket away" in line
    assert text[2] == "[]"


def test_mode_is_what_other_users_meet(directory: Path, opened: Open) -> None:
    if not ROOT:
        pytest.skip("needs a second user")
    for name, mode in (("closed", 0o600), ("open", 0o666)):
        opened(directory / name, mode=mode)
    opened(directory / "given", user=NOBODY, mode=0o600)
    opened(directory / "group", group=NOBODY)
    text = run_unprivileged(
        """
        for name in "closed", "open", "given", "group":
            with socket.socket(socket.AF_UNIX) as client:
                print(errno.errorcode.get(client.connect_ex(f"{sys.argv[1]}/{name}"), "connected"))
        """,
        str(directory),
    )
    assert text.split() == ["EACCES", "connected", "connected", "connected"]


def test_everything_is_in_force_before_the_path_exists(
    directory: Path, opened: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, linked = os.link, []

    def link(source: str, target: str) -> None:
        found = os.lstat(source)
        linked.append((target, stat.S_IMODE(found.st_mode), found.st_gid))
        assert stat.S_IMODE(os.stat(os.path.dirname(source)).st_mode) == 0o700
        connect(source)
        real(source, target)

    monkeypatch.setattr(os, "link", link)
    opened(directory / "s", mode=0o604, group=os.getegid())
    assert linked == [(f"{directory}/s", 0o604, os.getegid())]


def test_whoever_sees_the_path_can_connect_and_sees_mode_and_owner(directory: Path) -> None:
    path = directory / "s"
    group = 4711 if ROOT else os.getegid()
    seen: set[tuple[int, int]] = set()
    connected: list[bool] = []
    failed: list[OSError] = []
    closings = [0]  # odd while the server is closing, when being refused is right
    stop = threading.Event()

    def look_and_connect() -> None:
        before = closings[0]
        found = path.lstat()
        seen.add((stat.S_IMODE(found.st_mode), found.st_gid))
        try:
            connect(path)
        except OSError as error:
            if closings[0] == before and before % 2 == 0:
                failed.append(error)
        else:
            connected.append(True)

    def watch() -> None:
        while not stop.is_set():
            with suppress(FileNotFoundError):
                look_and_connect()

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        while len(connected) < 200 and not failed:
            address = UnixAddress(str(path), mode=0o640, group=group)
            server = Opened(*open_unix_socket(address, SocketOptions()))
            closings[0] += 1
            server.release()
            closings[0] += 1
    finally:
        stop.set()
        watcher.join()
    assert seen == {(0o640, group)}
    assert not failed


# -- what stands at the path already ---------------------------------------------------------------


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_SEQPACKET])
def test_stale_socket_is_replaced(kind: int, directory: Path, opened: Open) -> None:
    path = directory / "s"
    if kind == socket.SOCK_SEQPACKET and not LINUX:
        pytest.skip("a kind of socket that only Linux has")
    leave_stale(path, kind)
    opened(path, mode=0o600)
    connect(path)
    assert stat.S_IMODE(path.lstat().st_mode) == 0o600
    assert os.listdir(directory) == ["s"]


def test_listening_server_keeps_its_path_and_does_not_notice(directory: Path, opened: Open) -> None:
    path = directory / "s"
    server = opened(path)
    before = path.lstat()
    with pytest.raises(BindError) as caught:
        opened(path)
    assert caught.value.errno == errno.EADDRINUSE
    assert str(caught.value) == (
        f"cannot listen on unix://{path}: another server has a socket open at this path, "
        "perhaps this one, started before; choose another path, or see who has it: `ss -lxp`"
    )
    assert path.lstat().st_ino == before.st_ino
    with pytest.raises(BlockingIOError):
        server.socket.accept()
    connect(path)


@contextmanager
def bound(path: Path, kind: int = socket.SOCK_STREAM, backlog: int | None = None) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, kind) as sock:
        sock.bind(str(path))
        if backlog is not None:
            sock.listen(backlog)
        yield sock


def test_server_with_a_full_queue_keeps_its_path(directory: Path, opened: Open) -> None:
    path = directory / "s"
    with bound(path, backlog=0), ExitStack() as clients:
        for _ in range(50):
            client = clients.enter_context(socket.socket(socket.AF_UNIX))
            client.setblocking(False)
            if client.connect_ex(str(path)):
                break
        else:
            pytest.fail("the queue never got full")
        with pytest.raises(BindError, match="another server has a socket open"):
            opened(path)


def test_server_that_does_not_listen_yet_keeps_its_path(directory: Path, opened: Open) -> None:
    with bound(directory / "s"), pytest.raises(BindError, match="another server has a socket open"):
        opened(directory / "s")


def test_datagram_server_keeps_its_path(directory: Path, opened: Open) -> None:
    with (
        bound(directory / "s", socket.SOCK_DGRAM),
        pytest.raises(BindError, match="another server has a socket open"),
    ):
        opened(directory / "s")


def make_file(path: Path) -> None:
    path.write_text("precious")


def make_link(target: Callable[[Path], object] | None) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        goal = path.with_name("goal")
        if target is not None:
            target(goal)
        path.symlink_to(goal)

    return make


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (make_file, "a regular file"),
        (Path.touch, "a regular file"),
        (Path.mkdir, "a directory"),
        (os.mkfifo, "a FIFO"),
        (make_link(make_file), "a symbolic link"),
        (make_link(leave_stale), "a symbolic link"),
        (make_link(None), "a symbolic link"),
    ],
)
def test_what_is_not_a_socket_is_never_touched(
    make: Callable[[Path], object], kind: str, directory: Path, opened: Open
) -> None:
    path = directory / "s"
    make(path)
    before = path.lstat(), sorted(os.listdir(directory))
    with pytest.raises(BindError, match=f"there is {kind} at this path, not a socket") as caught:
        opened(path)
    assert caught.value.errno == errno.EEXIST
    assert (path.lstat(), sorted(os.listdir(directory))) == before


@pytest.mark.skipif(not ROOT, reason="only root may make devices")
def test_device_is_never_touched(directory: Path, opened: Open) -> None:
    try:
        os.mknod(directory / "s", stat.S_IFCHR | 0o600, os.makedev(1, 3))
    except PermissionError:
        pytest.skip("this container may not make devices")
    with pytest.raises(BindError, match="there is a device at this path"):
        opened(directory / "s")


def test_socket_of_somebody_else_that_may_not_be_asked(directory: Path) -> None:
    if not ROOT:
        pytest.skip("needs a second user")
    leave_stale(directory / "s")
    (directory / "s").chmod(0o600)
    directory.chmod(0o777)
    assert "this user may not ask whether it is in use" in _unprivileged_error(directory / "s")


def test_stale_socket_of_somebody_else_in_a_sticky_directory(directory: Path) -> None:
    if not ROOT:
        pytest.skip("needs a second user")
    leave_stale(directory / "s")
    (directory / "s").chmod(0o666)
    directory.chmod(0o1777)
    assert "a socket of a dead server at this path, which this user may not remove" in _unprivileged_error(
        directory / "s"
    )


def _unprivileged_error(path: Path) -> str:
    return run_unprivileged(
        """
        try:
            open_listening_sockets([UnixAddress(sys.argv[1])])
        except BindError as error:
            print(error)
        """,
        str(path),
    )


def test_socket_replaced_between_question_and_removal_is_asked_again(
    directory: Path, opened: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = directory / "s"
    leave_stale(path)
    real, answers = unix_sockets._ask, []
    with ExitStack() as stack:

        def ask(asked: str, address: UnixAddress) -> int:
            answers.append(real(asked, address))
            if len(answers) == 1:  # a program that takes no lock and asks nobody
                path.rename(directory / "old")
                stack.enter_context(bound(path, backlog=5))
            return answers[-1]

        monkeypatch.setattr(unix_sockets, "_ask", ask)
        with pytest.raises(BindError, match="another server has a socket open"):
            opened(path)
        assert answers == [errno.ECONNREFUSED, errno.EPROTOTYPE]
        connect(path)


@pytest.mark.parametrize("when", ["before the question", "after the answer"])
def test_socket_that_disappears_is_no_obstacle(
    when: str, directory: Path, opened: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = directory / "s"
    leave_stale(path)
    real = unix_sockets._ask

    def ask(asked: str, address: UnixAddress) -> int:
        if when == "before the question":
            path.unlink()
            return real(asked, address)
        answer = real(asked, address)
        path.unlink()
        return answer

    monkeypatch.setattr(unix_sockets, "_ask", ask)
    opened(path)
    connect(path)


def test_answer_that_nobody_understands(
    directory: Path, opened: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    leave_stale(directory / "s")
    monkeypatch.setattr(unix_sockets, "_ask", lambda *_: errno.ENOMEM)
    with pytest.raises(BindError, match=f"cannot ask the socket at this path: {os.strerror(errno.ENOMEM)}"):
        opened(directory / "s")


def test_giving_up_where_the_path_changes_all_the_time(
    directory: Path, opened: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    def link(*_: str) -> None:
        raise FileExistsError(errno.EEXIST, "File exists")

    monkeypatch.setattr(os, "link", link)
    with pytest.raises(BindError, match="other programs keep creating and removing this path"):
        opened(directory / "s")


# -- several starters ------------------------------------------------------------------------------


def start_together(path: Path, barrier: threading.Barrier) -> Opened | BindError:
    barrier.wait()
    try:
        return Opened(*open_unix_socket(UnixAddress(str(path)), SocketOptions()))
    except BindError as error:
        return error


@pytest.mark.parametrize("stale", [True, False])
def test_one_of_many_threads_gets_the_path(stale: bool, directory: Path) -> None:
    path = directory / "s"
    for _ in range(15):
        if stale:
            leave_stale(path)
        barrier = threading.Barrier(6)
        with ThreadPoolExecutor(6) as pool:
            outcomes = list(pool.map(start_together, [path] * 6, [barrier] * 6))
        winners = [outcome for outcome in outcomes if isinstance(outcome, Opened)]
        losers = [outcome for outcome in outcomes if isinstance(outcome, BindError)]
        assert len(winners) == 1, losers
        assert {error.errno for error in losers} == {errno.EADDRINUSE}
        assert os.listdir(directory) == ["s"]
        connect(path)
        winners[0].socket.accept()[0].close()
        winners[0].release()
        assert os.listdir(directory) == []


STARTER = """
import sys
from asyncserver.addresses import UnixAddress
from asyncserver.errors import BindError
from asyncserver.sockets import open_listening_sockets
path, rounds = sys.argv[1], int(sys.argv[2])
print("ready", flush=True)
for _ in range(rounds):
    sys.stdin.readline()
    try:
        (listening,) = open_listening_sockets([UnixAddress(path)])
    except BindError as error:
        print("lost", error.errno, flush=True)
        sys.stdin.readline()
    else:
        print("won", flush=True)
        sys.stdin.readline()
        listening.socket.close()  # as a crash does: the path stays
"""


def test_one_of_many_processes_gets_the_path(directory: Path) -> None:
    path, rounds = directory / "s", 10
    leave_stale(path)
    with ExitStack() as stack:
        starters = [
            stack.enter_context(
                subprocess.Popen(
                    [sys.executable, "-W", "error", "-c", STARTER, str(path), str(rounds)],
                    env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                )
            )
            for _ in range(4)
        ]
        assert [next(iter(starter.stdout or [])) for starter in starters] == ["ready\n"] * 4
        for _ in range(rounds):
            tell_all(starters)
            outcomes = sorted(next(iter(starter.stdout or [])).strip() for starter in starters)
            assert outcomes == [f"lost {errno.EADDRINUSE}"] * 3 + ["won"]
            assert os.listdir(directory) == ["s"]
            connect(path)
            tell_all(starters)
            # The winner's socket has to be closed before the next round.
            wait_for_refusal(path)
        assert [starter.wait(10) for starter in starters] == [0] * 4


def tell_all(starters: list[subprocess.Popen[str]]) -> None:
    for starter in starters:
        assert starter.stdin is not None
        starter.stdin.write("\n")
        starter.stdin.flush()


def wait_for_refusal(path: Path) -> None:
    def refused() -> bool:
        with socket.socket(socket.AF_UNIX) as client:
            return client.connect_ex(str(path)) == errno.ECONNREFUSED

    wait_until_blocking(refused)


def test_lock_that_another_process_keeps(
    directory: Path, opened: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unix_sockets, "_LOCK_SECONDS", 0.05)
    leave_stale(directory / "s")
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        with pytest.raises(BindError, match=f"another process holds a lock on the directory {directory}"):
            opened(directory / "s")
        opened(directory / "free")  # the lock is for paths that are taken
    finally:
        os.close(descriptor)
    opened(directory / "s")


def test_lock_is_waited_for(directory: Path, opened: Open) -> None:
    leave_stale(directory / "s")
    descriptor = os.open(directory, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    timer = threading.Timer(0.05, os.close, [descriptor])
    timer.start()
    opened(directory / "s")
    timer.join()
    connect(directory / "s")


def test_file_system_without_locks(directory: Path, opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(*_: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", flock)
    leave_stale(directory / "s")
    opened(directory / "s")
    connect(directory / "s")


def test_directory_that_cannot_be_read(directory: Path) -> None:
    inside = directory / "d"
    inside.mkdir()
    leave_stale(inside / "s")
    (inside / "s").chmod(0o666)
    inside.chmod(0o300)
    if ROOT:
        os.chown(inside, NOBODY, NOBODY)
    try:
        text = run_unprivileged(
            """
            (listening,) = open_listening_sockets([UnixAddress(sys.argv[1])])
            with socket.socket(socket.AF_UNIX) as client:
                print(client.connect_ex(sys.argv[1]))
            listening.release()
            print(os.path.lexists(sys.argv[1]))
            """,
            str(inside / "s"),
        )
    finally:
        inside.chmod(0o700)
    assert text.split() == ["0", "False"]


# -- file systems, directories, long paths ---------------------------------------------------------


@pytest.mark.parametrize("number", [errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK])
def test_file_system_without_hard_links(
    number: int, directory: Path, opened: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    def link(*_: str) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "link", link)
    path = directory / "s"
    server = opened(path, mode=0o620)
    connect(path)
    with pytest.raises(BindError, match="another server has a socket open"):
        opened(path)
    connect(path)
    assert stat.S_IMODE(path.lstat().st_mode) == 0o620
    server.socket.close()
    opened(path, mode=0o600)
    connect(path)


def test_any_other_error_is_told(directory: Path, opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    def link(*_: str) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "link", link)
    with pytest.raises(BindError, match="No space left on device") as caught:
        opened(directory / "s")
    assert caught.value.errno == errno.ENOSPC
    assert os.listdir(directory) == []


def test_missing_directory(directory: Path, opened: Open) -> None:
    with pytest.raises(BindError, match=f"the directory {directory}/no does not exist; create it") as caught:
        opened(directory / "no" / "s")
    assert caught.value.errno == errno.ENOENT


def test_directory_that_is_a_file(directory: Path, opened: Open) -> None:
    (directory / "file").touch()
    with pytest.raises(BindError, match=f"{directory}/file is not a directory"):
        opened(directory / "file" / "s")


def test_directory_that_may_not_be_written(directory: Path) -> None:
    directory.chmod(0o555)
    text = _unprivileged_error(directory / "s")
    assert f"this user may not create files in the directory {directory}" in text


def test_directory_that_fails_in_another_way(
    directory: Path, opened: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(tempfile, "TemporaryDirectory", fail)
    with pytest.raises(BindError, match=os.strerror(errno.EROFS)):
        opened(directory / "s")


def test_relative_path_outlives_a_change_of_directory(
    directory: Path, opened: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    (directory / "elsewhere").mkdir()
    monkeypatch.chdir(directory)
    server = opened("s")
    with pytest.raises(BindError, match="another server"):
        opened("./s")
    monkeypatch.chdir(directory / "elsewhere")
    connect(directory / "s")
    server.release()
    assert os.listdir(directory) == ["elsewhere"]


@pytest.mark.skipif(not LINUX, reason="other systems have no way around the limit for temporary names")
@pytest.mark.parametrize("name", ["s", "a-rather-long-name.sock"])
def test_longest_path(name: str, directory: Path, opened: Open) -> None:
    room = MAX_UNIX_PATH_BYTES - len(f"{directory}/{name}")
    deep = directory / ("d" * (room - 1))
    deep.mkdir()
    path = deep / name
    assert len(os.fsencode(path)) == MAX_UNIX_PATH_BYTES
    server = opened(path)
    connect(path)
    with pytest.raises(BindError, match="another server"):
        opened(path)
    server.socket.close()
    opened(path)
    connect(path)


@pytest.mark.skipif(not LINUX, reason="other systems have no way around the limit for temporary names")
def test_relative_path_whose_absolute_path_is_too_long(
    directory: Path, opened: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    deep = directory / ("d" * 100) / ("e" * 100)
    deep.mkdir(parents=True)
    monkeypatch.chdir(deep)
    name = "n" * 100
    server = opened(name)
    connect(name)
    server.socket.close()
    again = opened(name)
    connect(name)
    again.release()
    assert os.listdir(deep) == []


def test_no_room_for_a_temporary_name(directory: Path, opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unix_sockets, "_ON_LINUX", False)
    deep = directory / ("d" * (MAX_UNIX_PATH_BYTES - len(f"{directory}//s")))
    deep.mkdir()
    with pytest.raises(BindError, match="the directory's path is 10 bytes too long for a temporary name"):
        opened(deep / "s")
    assert os.listdir(deep) == []


@pytest.mark.parametrize("name", ["-rf", "ü €", "a\nb", "\udcff", "@x", "x?y#z%41"])
def test_odd_names(name: str, directory: Path, opened: Open) -> None:
    server = opened(directory / name)
    connect(directory / name)
    assert os.listdir(directory) == [name]
    server.release()
    assert os.listdir(directory) == []


def test_platform_without_unix_sockets(
    directory: Path, opened: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(socket, "AF_UNIX")
    with pytest.raises(BindError, match="this platform has no Unix sockets"):
        opened(directory / "s")


# -- the end ---------------------------------------------------------------------------------------


def test_path_that_another_socket_has_taken_stays(directory: Path, opened: Open) -> None:
    path = directory / "s"
    server = opened(path)
    path.unlink()
    with bound(path, backlog=5):
        server.release()
        connect(path)


@pytest.mark.parametrize("make", [make_file, Path.mkdir, make_link(None)])
def test_path_that_something_else_has_taken_stays(
    make: Callable[[Path], object], directory: Path, opened: Open
) -> None:
    path = directory / "s"
    server = opened(path)
    path.unlink()
    make(path)
    server.release()
    assert os.path.lexists(path)


def test_path_that_is_gone_already(directory: Path, opened: Open, caplog: pytest.LogCaptureFixture) -> None:
    server = opened(directory / "s")
    (directory / "s").unlink()
    server.release()
    assert not caplog.records


def test_renamed_socket_is_not_searched_for(directory: Path, opened: Open) -> None:
    server = opened(directory / "s")
    (directory / "s").rename(directory / "t")
    server.release()
    assert os.listdir(directory) == ["t"]


def test_path_that_may_not_be_removed_is_logged(
    directory: Path, opened: Open, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def unlink(_: str) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    server = opened(directory / "s")
    with monkeypatch.context() as patch:
        patch.setattr(os, "unlink", unlink)
        server.release()
    assert f"cannot remove the socket {directory}/s: Permission denied" in caplog.text


def test_forked_child_leaves_the_path_alone(directory: Path, opened: Open) -> None:
    server = opened(directory / "s")
    assert server.file is not None
    replace(server.file, process=os.getpid() + 1).unlink()
    connect(directory / "s")
    server.file.unlink()
    assert os.listdir(directory) == []


# -- abstract names --------------------------------------------------------------------------------


@pytest.mark.skipif(not LINUX, reason="abstract names are Linux's")
@pytest.mark.parametrize("suffix", ["", "/with/slashes", " ü \udcff"])
def test_abstract_name(suffix: str, opened: Open) -> None:
    name = f"asyncserver-test-{os.getpid()}{suffix}"
    server = opened(f"@{name}")
    assert server.file is None
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(b"\0" + os.fsencode(name))
    with pytest.raises(BindError, match="the name is in use by another socket") as caught:
        opened(f"@{name}")
    assert caught.value.errno == errno.EADDRINUSE
    server.release()
    opened(f"@{name}")


@pytest.mark.skipif(not LINUX, reason="abstract names are Linux's")
def test_longest_abstract_name(opened: Open) -> None:
    name = f"{os.getpid()}-".ljust(MAX_UNIX_PATH_BYTES, "x")
    server = opened(f"@{name}")
    assert server.socket.getsockname() == b"\0" + name.encode()


def test_abstract_name_elsewhere(opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unix_sockets, "_ON_LINUX", False)
    with pytest.raises(BindError, match="abstract names exist on Linux only; use a path"):
        opened("@asyncserver-test")


@pytest.mark.skipif(not LINUX, reason="abstract names are Linux's")
def test_abstract_name_that_fails_in_another_way(opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    class Failing(socket.socket):
        def bind(self, _: object) -> None:
            raise OSError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(socket, "socket", Failing)
    with pytest.raises(BindError, match="Permission denied"):
        opened("@asyncserver-test")
