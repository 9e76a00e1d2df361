from __future__ import annotations

import errno
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from asyncserver import systemd
from asyncserver.addresses import SystemdAddress
from asyncserver.errors import BindError
from asyncserver.sockets import open_listening_sockets
from asyncserver.systemd import read_environment, systemd_descriptors

# -- what the variables say ------------------------------------------------------------------------


def environment(pid: object = 42, count: object = 3, names: str | None = "a:b:a") -> dict[str, str]:
    variables = {"LISTEN_PID": str(pid), "LISTEN_FDS": str(count)}
    return variables if names is None else {**variables, "LISTEN_FDNAMES": names}


def test_names_and_descriptors() -> None:
    passed = read_environment(environment(), 42)
    assert passed.problem is None
    assert passed.by_name == {"a": (3, 5), "b": (4,)}
    assert passed.named("a") == (3, 5)
    assert passed.named("b") == (4,)
    assert passed.named("") == (3, 4, 5)
    assert passed.named("c") == ()


def test_descriptors_without_names_are_unknown_as_in_systemd() -> None:
    assert read_environment(environment(names=None), 42).by_name == {"unknown": (3, 4, 5)}
    assert read_environment(environment(names="a::"), 42).by_name == {"a": (3,), "unknown": (4, 5)}


@pytest.mark.parametrize(
    ("variables", "problem"),
    [
        (environment(pid=41), "passed to process 41, and this one is 42; a program that wraps the server"),
        (environment(pid=""), "LISTEN_PID='' is not a process id"),
        (environment(pid="x"), "LISTEN_PID='x' is not a process id"),
        ({"LISTEN_FDS": "1"}, "LISTEN_PID='' is not a process id"),
        (environment(count=0), "LISTEN_FDS='0' is not a number of sockets"),
        (environment(count=-1), "LISTEN_FDS='-1' is not a number of sockets"),
        (environment(count="1e9"), "LISTEN_FDS='1e9' is not a number of sockets"),
        (environment(count="9" * 5000), "is not a number of sockets"),
        (environment(count=2), "LISTEN_FDNAMES has 3 names for LISTEN_FDS=2 sockets"),
        (environment(names=""), "LISTEN_FDNAMES has 1 names for LISTEN_FDS=3 sockets"),
    ],
)
def test_variables_that_cannot_be_used(variables: dict[str, str], problem: str) -> None:
    passed = read_environment(variables, 42)
    assert passed.problem is not None
    assert problem in passed.problem
    assert passed.named("") == ()


# -- in this process -------------------------------------------------------------------------------


@pytest.fixture
def passed(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[socket.socket]]:
    """Two listening sockets with neighbouring descriptors, as if systemd had passed them."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(2)]
        first = max(sock.fileno() for sock in sockets) + 50
        for number, sock in enumerate(sockets, first):
            os.dup2(sock.fileno(), number)
            stack.callback(os.close, number)
        monkeypatch.setattr(systemd, "_FIRST_DESCRIPTOR", first)
        monkeypatch.setattr(systemd, "_taken", None)
        for name, value in environment(os.getpid(), 2, "web:admin").items():
            monkeypatch.setenv(name, value)
        yield sockets


def test_taken_once_and_kept(passed: list[socket.socket]) -> None:
    first = systemd._FIRST_DESCRIPTOR
    os.environ["LISTEN_PIDFDID"] = "7"
    assert systemd_descriptors(SystemdAddress("admin")) == (first + 1,)
    assert not [name for name in os.environ if name.startswith("LISTEN_")]
    assert not os.get_inheritable(first)
    assert not os.get_inheritable(first + 1)
    assert systemd_descriptors(SystemdAddress("web")) == (first,)
    assert systemd_descriptors(SystemdAddress("")) == (first, first + 1)


def test_threads_take_it_once(passed: list[socket.socket]) -> None:
    found: list[tuple[int, ...]] = []
    threads = [
        threading.Thread(target=lambda: found.append(systemd_descriptors(SystemdAddress("web"))))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [(systemd._FIRST_DESCRIPTOR,)] * 8


def test_unknown_name_lists_the_known_ones(passed: list[socket.socket]) -> None:
    with pytest.raises(BindError, match="no socket of this name was passed, only: admin, web") as caught:
        systemd_descriptors(SystemdAddress("http"))
    assert caught.value.address == "systemd:http"


def test_servers_can_come_and_go(passed: list[socket.socket]) -> None:
    for _ in range(3):
        both = open_listening_sockets([SystemdAddress("")])
        (web,) = open_listening_sockets([SystemdAddress("web", tls=True)])
        assert [each.address.port for each in both] == [sock.getsockname()[1] for sock in passed]  # type: ignore[union-attr]
        assert web.tls
        for listening in (*both, web):
            listening.release()


def test_nothing_was_passed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(systemd, "_taken", None)
    monkeypatch.delenv("LISTEN_FDS", raising=False)
    for _ in range(2):
        with pytest.raises(BindError, match="no sockets were passed to this process"):
            systemd_descriptors(SystemdAddress("web"))


def test_problem_is_told_every_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(systemd, "_taken", None)
    for name, value in environment(os.getpid() + 1).items():
        monkeypatch.setenv(name, value)
    for _ in range(2):
        with pytest.raises(
            BindError, match="cannot listen on systemd:web: the sockets were passed to process"
        ):
            systemd_descriptors(SystemdAddress("web"))
    assert "LISTEN_FDS" not in os.environ


def test_promised_descriptor_that_is_not_open(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(systemd, "_taken", None)
    monkeypatch.setattr(systemd, "_FIRST_DESCRIPTOR", 9990)
    for name, value in environment(os.getpid(), 1, "web").items():
        monkeypatch.setenv(name, value)
    reason = f"LISTEN_FDS promises descriptor 9990: {os.strerror(errno.EBADF)}"
    with pytest.raises(BindError, match=reason):
        systemd_descriptors(SystemdAddress("web"))


# -- as systemd does it: fork, arrange the descriptors, set the variables, exec ------------------------

LAUNCHER = """
import fcntl, os, sys
count = int(sys.argv[1])
high = [fcntl.fcntl(int(number), fcntl.F_DUPFD, 100) for number in sys.argv[4 : 4 + count]]
for number, descriptor in enumerate(high, 3):
    os.dup2(descriptor, number)
    os.close(descriptor)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS=str(count), LISTEN_FDNAMES=sys.argv[2])
os.execv(sys.executable, [sys.executable, "-W", "error", "-c", sys.argv[3]])
"""


def run_as_systemd_does(program: str, names: str, sockets: list[socket.socket]) -> Any:
    done = subprocess.run(
        [sys.executable, "-c", LAUNCHER, str(len(sockets)), names, program]
        + [str(sock.fileno()) for sock in sockets],
        pass_fds=[sock.fileno() for sock in sockets],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


PROGRAM = """
import json, os, subprocess, sys
from asyncserver.addresses import SystemdAddress
from asyncserver.errors import BindError
from asyncserver.sockets import open_listening_sockets

web = open_listening_sockets([SystemdAddress("web")])
other = open_listening_sockets([SystemdAddress("admin", tls=True), SystemdAddress("web")])
for listening in web:
    listening.release()
again = open_listening_sockets([SystemdAddress("")])
try:
    open_listening_sockets([SystemdAddress("nosuch")])
except BindError as error:
    problem = str(error)
again[0].socket.setblocking(True)
accepted, _ = again[0].socket.accept()
accepted.sendall(b"hello")
accepted.close()
child = "import os; print([n for n in '345' if os.path.exists(f'/dev/fd/{n}')], 'LISTEN_FDS' in os.environ)"
print(json.dumps({
    "web": [str(each.address) for each in web],
    "other": [str(each.address) for each in other],
    "again": [str(each.address) for each in again],
    "problem": problem,
    "variables": [name for name in os.environ if name.startswith("LISTEN_")],
    "child": subprocess.run(
        [sys.executable, "-c", child], close_fds=False, capture_output=True, text=True, check=True
    ).stdout,
}))
for listening in (*other, *again):
    listening.release()
"""


def test_activated_program() -> None:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(3)]
        # The client is served from the queue, which is there before the program is.
        client = stack.enter_context(socket.create_connection(sockets[0].getsockname()))
        told = run_as_systemd_does(PROGRAM, "web:admin:web", sockets)
        client.settimeout(10)
        assert client.recv(100) == b"hello"
        one, two, three = (f"tcp://127.0.0.1:{sock.getsockname()[1]}" for sock in sockets)
    assert told["web"] == [one, three]
    assert told["other"] == [f"tls+{two}", one, three]
    assert told["again"] == [one, two, three]
    assert "only: admin, web" in told["problem"]
    assert told["variables"] == []
    assert told["child"].split() == ["[]", "False"]


CONNECTION_PROGRAM = """
import json
from asyncserver.addresses import SystemdAddress
from asyncserver.errors import BindError
from asyncserver.sockets import open_listening_sockets
try:
    open_listening_sockets([SystemdAddress("connection")])
except BindError as error:
    print(json.dumps(str(error)))
"""


def test_unit_with_accept_yes() -> None:
    one, other = socket.socketpair()
    with one, other:
        told = run_as_systemd_does(CONNECTION_PROGRAM, "connection", [one])
    assert "is a connection (a systemd unit with Accept=yes passes those)" in told
