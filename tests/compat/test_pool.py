"""``max_threads`` and ``ThreadPool``: the requests of a server in a bounded number of threads."""

from __future__ import annotations

import collections
import contextlib
import contextvars
import logging
import os
import re
import signal
import socket
import sys
import textwrap
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import compat
from asyncserver import OptionError
from compat import pool as pool_module
from compat.engine import engine_of
from compat.jobs import JobCounter
from tests.compat.held import (
    NEVER,
    HeldClient,
    needs_fork,
    needs_listen_queue,
    queued,
    raising,
    server_of,
    wait_until_blocked,
)
from tests.compat.support import Client, InThread, serving
from tests.processes import LONG, PythonProcess
from tests.waiting import MS, PATIENCE, wait_until_blocking


def pool_server(loop_name: str, max_threads: int, **attributes: Any) -> Any:
    return server_of(compat.ThreadingTCPServer, loop_name, max_threads=max_threads, **attributes)


def names_of(clients: list[HeldClient]) -> list[str]:
    return [client.begun() for client in clients]


@contextlib.contextmanager
def held(server: Any, count: int) -> Iterator[list[HeldClient]]:
    """So many clients whose requests have begun one after the other."""
    with contextlib.ExitStack() as stack:
        clients = []
        for _ in range(count):
            client = stack.enter_context(HeldClient(server))
            client.name_of_thread = client.begun()
            clients.append(client)
        yield clients


@contextlib.contextmanager
def shared_pool(*args: Any, **options: Any) -> Iterator[compat.ThreadPool]:
    """A pool of the program's own; its idle threads end at the end."""
    pool = compat.ThreadPool(*args, **options)
    try:
        yield pool
    finally:
        pool.close()


def wait_for_busy(pool: compat.ThreadPool, count: int) -> None:
    """The client knows of the end of its request before the thread is free."""
    wait_until_blocking(lambda: f" {count} of " in repr(pool))


def threads_of(server: Any) -> list[str]:
    prefix = type(server).__name__ + "-"
    return sorted(thread.name for thread in threading.enumerate() if thread.name.startswith(prefix))


# --- no more threads than that ---


@needs_listen_queue
@pytest.mark.parametrize("max_threads", [1, 3])
def test_when_all_are_busy_nothing_is_accepted(max_threads: int, loop_name: str) -> None:
    with pool_server(loop_name, max_threads) as server, serving(server, NEVER) as thread:
        with held(server, max_threads) as clients, HeldClient(server) as one, HeldClient(server) as other:
            assert len({client.name_of_thread for client in clients}) == max_threads
            wait_until_blocked(thread)
            assert queued(server)[0] == 2
            for waiting, left in ((one, 1), (other, 0)):
                assert clients.pop().release() == b"done"
                clients.append(waiting)
                waiting.begun()  # At once, although the server does not poll.
                wait_until_blocked(thread)
                assert queued(server)[0] == left
            assert len(threads_of(server)) == max_threads


def test_stops_at_once_when_all_are_busy(loop_name: str) -> None:
    with pool_server(loop_name, 1) as server:
        for _ in range(2):
            thread = InThread("serving", server.serve_forever, NEVER)
            with held(server, 1) as (client,), HeldClient(server) as other:
                wait_until_blocked(thread)
                InThread("stopping", server.shutdown).result()
                thread.result()
                assert client.release() == b"done"
                # It is still in the queue: whoever serves next gets it.
                serving_again = InThread("serving again", server.handle_request)
                other.begun()
                serving_again.result()


def test_service_actions_go_on_when_all_are_busy(loop_name: str) -> None:
    def service_actions(server: Any) -> None:
        turns.append(True)

    turns: list[bool] = []
    with pool_server(loop_name, 1, service_actions=service_actions) as server, serving(server, 1 * MS):
        with held(server, 1), HeldClient(server):
            before = len(turns)
            wait_until_blocking(lambda: len(turns) > before + 3)


def test_handle_request_keeps_its_timeout_when_all_are_busy(loop_name: str) -> None:
    with pool_server(loop_name, 1, timeout=20 * MS, handle_timeout=lambda self: "nothing") as server:
        with HeldClient(server) as client, HeldClient(server) as other:
            assert server.handle_request() is None
            client.begun()
            assert server.handle_request() == "nothing"
            assert client.release() == b"done"
            server.timeout = None
            server.handle_request()
            other.begun()


def test_many_clients(loop_name: str) -> None:
    """Each is served, and never more at a time than there may be."""
    lock = threading.Lock()
    running, most = 0, 0

    def on_line(server: Any, handler: Any, line: bytes) -> bytes:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        with lock:
            running -= 1
        return line

    def ask(number: int) -> None:
        for index in range(10):
            with HeldClient(server) as client:
                client.begun()
                line = b"%d %d" % (number, index)
                assert client.release(line) == line + b"\n"

    with pool_server(loop_name, 3, on_line=on_line) as server, serving(server, NEVER):
        for asking in [InThread(f"client {number}", ask, number) for number in range(8)]:
            asking.result()
        assert 1 <= most <= 3
        assert len(threads_of(server)) <= 3


class Packets(compat.DatagramRequestHandler):
    """Sends the packet back; for "slow" not before ``server.gate`` is open."""

    def handle(self) -> None:
        self.server.begun.append((self.packet, threading.current_thread().name))
        if self.packet == b"slow":
            assert self.server.gate.wait(PATIENCE)
        self.wfile.write(self.packet)


@contextlib.contextmanager
def packet_server(loop_name: str, max_threads: int, **attributes: Any) -> Iterator[Any]:
    attributes |= {"begun": [], "gate": threading.Event(), "max_threads": max_threads}
    with server_of(compat.ThreadingUDPServer, loop_name, Packets, **attributes) as server:
        yield server


def test_datagrams_wait_as_well(loop_name: str) -> None:
    with packet_server(loop_name, 2) as server, serving(server, NEVER) as thread:
        with contextlib.ExitStack() as stack:
            clients = [stack.enter_context(Client(server, b"slow")) for _ in range(5)]
            wait_until_blocking(lambda: len(server.begun) == 2)
            wait_until_blocked(thread)
            assert len(server.begun) == 2
            server.gate.set()
            assert [client.reply() for client in clients] == [b"slow"] * 5
    assert len({name for _, name in server.begun}) == 2


def test_a_slow_datagram_holds_up_no_other(loop_name: str) -> None:
    """Those that come together may be worked off by one thread, but not behind a slow one."""
    with packet_server(loop_name, 3) as server, contextlib.ExitStack() as stack:
        slow = []
        for packets in ([b"slow", b"1", b"2", b"3"], [b"4", b"5", b"slow", b"6"]):
            server.begun.clear()
            # All of them are there when it begins to serve.
            clients = [stack.enter_context(Client(server, packet)) for packet in packets]
            with serving(server, NEVER):
                for client, packet in zip(clients, packets, strict=True):
                    if packet == b"slow":
                        slow.append(client)
                    else:
                        assert client.reply() == packet
                wait_until_blocking(lambda: len(server.begun) == 4)
        assert len(threads_of(server)) == 3
        server.gate.set()
        assert [client.reply() for client in slow] == [b"slow"] * 2


def test_a_burst_of_datagrams(loop_name: str) -> None:
    """Each is answered, and there are never more threads than there may be."""
    with packet_server(loop_name, 4) as server, serving(server, NEVER):
        for number in range(20):
            with contextlib.ExitStack() as stack:
                packets = [b"%d of %d" % (index, number) for index in range(10)]
                clients = [stack.enter_context(Client(server, packet)) for packet in packets]
                assert [client.reply() for client in clients] == packets
        assert len({name for _, name in server.begun}) <= 4


def test_what_was_accepted_is_served_when_the_server_stops(loop_name: str) -> None:
    """Also requests that wait for others that come with them."""

    def fileno(server: Any) -> int:
        server.asked += 1
        if server.asked == 4:  # The first one is for the start.
            server._BaseServer__shutdown_request = True
        return server.socket.fileno()

    with packet_server(loop_name, 4, fileno=fileno, asked=0) as server, contextlib.ExitStack() as stack:
        clients = [stack.enter_context(Client(server, packet)) for packet in (b"1", b"2", b"3")]
        InThread("serving", server.serve_forever, NEVER).result()
        assert [client.reply() for client in clients[:2]] == [b"1", b"2"]
        assert len(server.begun) == 2
        server.handle_request()
        assert clients[2].reply() == b"3"


def test_closed_instead_of_waiting(loop_name: str) -> None:
    with pool_server(loop_name, 1, when_full="reject") as server, serving(server, NEVER):
        for _ in range(2):
            # The thread may not be free yet when its last client knows of the end.
            with wait_until_blocking(lambda: accepted(server)) as client:
                with HeldClient(server) as other, HeldClient(server) as third:
                    assert other.rest() == third.rest() == b""
                assert client.release() == b"done"


def accepted(server: Any) -> HeldClient | None:
    """A client whose request has begun, if it was not closed instead."""
    client = HeldClient(server)
    if not client.sock.recv(1, socket.MSG_PEEK):
        client.close()
        return None
    client.begun()
    return client


def test_the_program_may_change_its_mind(loop_name: str) -> None:
    with pool_server(loop_name, 1) as server, serving(server, 5 * MS):
        with held(server, 1) as (client,), HeldClient(server) as other:
            server.when_full = "reject"
            assert other.rest() == b""
            server.when_full = "wait"
            with HeldClient(server) as third:
                client.release()
                third.begun()


def test_more_threads_while_it_serves(loop_name: str) -> None:
    with pool_server(loop_name, 1) as server, serving(server, 5 * MS):
        with held(server, 1), HeldClient(server) as other:
            server.max_threads = 2
            other.begun()


@needs_listen_queue
@pytest.mark.parametrize("idle", [False, True], ids=["while they are busy", "while they are idle"])
def test_fewer_threads_while_it_serves(idle: bool, loop_name: str) -> None:
    with pool_server(loop_name, 3) as server, serving(server, NEVER) as thread:
        with held(server, 3) as clients:
            if not idle:
                server.max_threads = 1
            for client in clients:
                assert client.release() == b"done"
        server.max_threads = 1
        # The turn that has begun goes by the old number; the thread of the request may be new or not.
        with held(server, 1) as (client,):
            client.release()
        with held(server, 1) as (client,), HeldClient(server) as other:
            wait_until_blocked(thread)
            assert queued(server)[0] == 1
            assert client.release() == b"done"
            other.begun()
            other.release()
        wait_until_blocking(lambda: len(threads_of(server)) == 1)


@pytest.mark.parametrize(
    ("name", "good", "bad", "why"),
    [
        ("max_threads", 2, 0, "has to be a whole number, at least 1"),
        ("max_threads", 2, "8", "has to be a whole number, at least 1"),
        ("when_full", "wait", "drop", "has to be 'wait' or 'reject'"),
    ],
)
def test_a_bad_value_while_it_serves(
    name: str, good: object, bad: object, why: str, loop_name: str, caplog: pytest.LogCaptureFixture
) -> None:
    """It is logged, once, and the last good one holds."""
    caplog.set_level(logging.INFO, "asyncserver")
    with pool_server(loop_name, 2, daemon_threads=True) as server, serving(server, 5 * MS):
        setattr(server, name, good)
        assert_served(server, 2)
        for _ in range(2):
            setattr(server, name, bad)
            assert_served(server, 2)
            setattr(server, name, good)
            assert_served(server, 2)
    assert [(record.name, record.levelname, record.getMessage()) for record in caplog.records] == [
        (
            "asyncserver",
            "ERROR",
            f"AThreadingTCPServer: {name}={bad!r}: {why}; the server goes on with {good!r}",
        )
    ]


def assert_served(server: Any, count: int) -> None:
    """So many at a time."""
    with held(server, count) as clients:
        for client in clients:
            assert client.release() == b"done"


# --- which thread, and what it keeps ---


def test_the_thread_that_was_used_last_is_used_first(loop_name: str) -> None:
    with shared_pool(3) as pool, server_of(compat.TCPServer, loop_name, request_executor=pool) as server:
        with serving(server, NEVER):
            with held(server, 3) as clients:
                names = [client.name_of_thread for client in clients]
                assert len(set(names)) == 3
                for busy, index in ((2, 1), (1, 2), (0, 0)):
                    clients[index].release()
                    wait_for_busy(pool, busy)
            with held(server, 3) as clients:
                assert [client.name_of_thread for client in clients] == [names[0], names[2], names[1]]
            for _ in range(3):
                wait_for_busy(pool, 0)
                with held(server, 1) as (client,):
                    first = client.name_of_thread
                    client.release()
                wait_for_busy(pool, 0)
                with held(server, 1) as (client,):
                    assert client.name_of_thread == first


def test_each_request_has_a_context_of_its_own_and_a_thread_keeps_what_is_local_to_it(
    loop_name: str,
) -> None:
    variable = contextvars.ContextVar("variable", default="nothing")
    local = threading.local()

    def on_line(server: Any, handler: Any, line: bytes) -> bytes:
        found = variable.get(), getattr(local, "value", "nothing")
        variable.set("set by a request")
        local.value = "kept"
        return " ".join(found).encode()

    token = variable.set("set by the program")
    try:
        with pool_server(loop_name, 1, on_line=on_line) as server, serving(server, NEVER):
            found = []
            for _ in range(3):
                with held(server, 1) as (client,):
                    found.append(client.release())
        assert found == [b"nothing nothing", b"nothing kept", b"nothing kept"]
        assert variable.get() == "set by the program"
    finally:
        variable.reset(token)


def test_idle_threads_end(loop_name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool_module, "_IDLE_SECONDS", 20 * MS)
    with pool_server(loop_name, 2) as server, serving(server, NEVER):
        for _ in range(2):
            with held(server, 2) as clients:
                assert len(threads_of(server)) == 2
                for client in clients:
                    client.release()
            wait_until_blocking(lambda: not threads_of(server))


def test_nothing_of_a_request_is_kept_alive(loop_name: str) -> None:
    with pool_server(loop_name, 1) as server, serving(server, NEVER):
        with held(server, 1) as (client,):
            client.release()
            (name,) = threads_of(server)
            (thread,) = [each for each in threading.enumerate() if each.name == name]
            wait_until_blocked(thread)

            def holders() -> list[str]:
                frame, found = _frame_of(thread), []
                while frame is not None:
                    found += [key for key, value in frame.f_locals.items() if _is_of_a_request(value)]
                    frame = frame.f_back
                return found

            wait_until_blocking(lambda: not holders())


def _frame_of(thread: threading.Thread) -> Any:
    return sys._current_frames().get(thread.ident)  # type: ignore[arg-type]


def _is_of_a_request(value: object) -> bool:
    return isinstance(value, (socket.socket, compat.BaseRequestHandler)) or "Job" in type(value).__name__


# --- one pool for several servers ---


def test_one_pool_for_two_servers(loop_name: str) -> None:
    with shared_pool(1, name="shared") as pool, contextlib.ExitStack() as stack:
        one, other = [
            stack.enter_context(server_of(base, loop_name, request_executor=pool))
            for base in (compat.TCPServer, compat.ThreadingTCPServer)
        ]
        for server in (one, other):
            stack.enter_context(serving(server, NEVER))
        with held(one, 1) as (client,), HeldClient(other) as second, HeldClient(one) as third:
            name = client.name_of_thread
            assert name.startswith("shared-")
            for each in (second, third, client):  # Whichever of the two comes first, both are served.
                each.send(b"go\n")
            for each in (second, third):
                assert each.begun() == name
            for each in (client, second, third):
                assert each.rest() == b"done"
        one.shutdown()
        one.server_close()
        with held(other, 1) as (client,):  # The pool is the program's: it goes on.
            assert client.name_of_thread == name
            client.release()


def test_one_pool_of_a_class_for_its_servers(loop_name: str) -> None:
    with shared_pool(1, name="shared", when_full="reject") as pool:
        shared = type("Shared", (compat.ThreadingTCPServer,), {"request_executor": pool})
        with server_of(shared, loop_name) as one, server_of(shared, loop_name) as other:
            with serving(one, NEVER), serving(other, NEVER):
                with held(one, 1) as (client,), HeldClient(other) as rejected:
                    assert rejected.rest() == b""
                    client.release()


def test_a_listener_that_is_removed_meanwhile_hides_no_other() -> None:
    """Two servers wait for one pool, and the first of them stops serving as it is told of room."""

    def once() -> None:
        pool.remove_room_listener(once)
        told.append("once")

    def ever() -> None:
        told.append("ever")

    told: list[str] = []
    with shared_pool(1) as pool:
        pool.add_room_listener(once)
        pool.add_room_listener(ever)
        for count in (2, 3):
            job = FakeJob()
            pool.start(job)
            assert not pool.has_room()
            job.go_on.set()
            wait_for_busy(pool, 0)
            wait_until_blocking(lambda n=count: len(told) == n, what=lambda: f"the listeners: {told}")
        assert told == ["once", "ever", "ever"]


class FakeJob:
    """A job without a server."""

    daemon = True
    thread = begun_by = None

    def __init__(self) -> None:
        self.begun = threading.Event()
        self.go_on = threading.Event()

    def run(self) -> None:
        self.begun.set()
        assert self.go_on.wait(PATIENCE)


def test_waiting_for_room() -> None:
    with shared_pool(1) as pool:
        assert pool.has_room()
        assert pool.wait_for_room(0)
        job = FakeJob()
        pool.start(job)
        assert not pool.has_room()
        assert not pool.wait_for_room(0)
        assert not pool.wait_for_room(5 * MS)
        waiting = InThread("waiting", pool.wait_for_room)
        wait_until_blocked(waiting)
        job.go_on.set()
        assert waiting.result() is True


def test_jobs_beyond_the_bound_are_queued() -> None:
    """Nobody who asks first gets there; but two who share a pool may find the same thread free."""
    with shared_pool(1) as pool:
        jobs = [FakeJob() for _ in range(3)]
        for job in jobs:
            pool.start(job)
        for job in jobs:
            assert job.begun.wait(PATIENCE)
            assert [each.begun.is_set() for each in jobs].count(True) == jobs.index(job) + 1
            job.go_on.set()
        wait_for_busy(pool, 0)


class MeetingLock:
    """A lock; two threads of a test meet whenever they have released it."""

    def __init__(self, lock: threading.Lock) -> None:
        self._lock = lock
        self._barrier = threading.Barrier(2, timeout=PATIENCE)
        self.meeting: list[threading.Thread] = []

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()
        if threading.current_thread() in self.meeting:
            self._barrier.wait()


def test_two_who_start_jobs_at_the_same_time_keep_to_the_bound() -> None:
    def start(job: FakeJob) -> None:
        lock.meeting.append(threading.current_thread())
        pool.start(job)

    with shared_pool(1) as pool:
        jobs = [FakeJob(), FakeJob()]
        pool._lock = lock = MeetingLock(pool._lock)  # type: ignore[assignment]
        for starting in [InThread("starting", start, job) for job in jobs]:
            starting.result()
        wait_until_blocking(lambda: any(job.begun.is_set() for job in jobs))
        assert len(pool._workers) == 1
        first, second = sorted(jobs, key=lambda job: not job.begun.is_set())
        assert not second.begun.is_set()
        first.go_on.set()
        assert second.begun.wait(PATIENCE)
        second.go_on.set()
        wait_for_busy(pool, 0)


def test_jobs_put_off_keep_to_the_bound() -> None:
    """Two servers share a pool: both have seen room for one, and one of them has used it."""
    with shared_pool(1) as pool:
        one, other = FakeJob(), FakeJob()
        assert pool.has_room()
        pool.start(one)
        pool.put_off(other)
        pool.settle()
        assert not other.begun.wait(20 * MS)
        one.go_on.set()
        assert other.begun.wait(PATIENCE)
        other.go_on.set()
        wait_for_busy(pool, 0)


def test_jobs_put_off_may_be_taken_by_a_thread_that_has_become_free() -> None:
    class TakenMeanwhile(collections.deque[Any]):
        """The other thread comes between the look into the queue and the taking."""

        def __bool__(self) -> bool:
            waiting = len(self) > 0
            if waiting and threading.current_thread() is threading.main_thread():
                one.go_on.set()
                wait_until_blocking(lambda: not len(self), timeout=100 * MS)
            return waiting

    with shared_pool(2) as pool:
        one, other = FakeJob(), FakeJob()
        pool.start(one)
        pool._queue = TakenMeanwhile()
        pool.put_off(other)
        other.go_on.set()
        with contextlib.suppress(AssertionError):  # Not where the lock keeps the other thread away.
            pool.settle()
        one.go_on.set()
        assert other.begun.wait(PATIENCE)
        pool._queue = collections.deque()
        wait_for_busy(pool, 0)


@pytest.mark.parametrize("value", [0, -1, 1.0, "2", None, True])
def test_bad_number_of_threads(value: Any) -> None:
    """When the pool is made, and when it is changed."""
    with pytest.raises(OptionError) as caught:
        compat.ThreadPool(value)
    assert (caught.value.option, caught.value.value) == ("max_threads", value)
    pool = compat.ThreadPool(3)
    with pytest.raises(OptionError) as caught:
        pool.max_threads = value
    assert (caught.value.option, caught.value.value) == ("max_threads", value)
    assert pool.max_threads == 3


def test_bad_word_for_when_full() -> None:
    with pytest.raises(OptionError) as caught:
        compat.ThreadPool(1, when_full="queue")  # type: ignore[arg-type]
    assert (caught.value.option, caught.value.value) == ("when_full", "queue")
    pool = compat.ThreadPool(1, when_full="reject")
    with pytest.raises(OptionError) as caught:
        pool.when_full = "queue"  # type: ignore[assignment]
    assert (caught.value.option, caught.value.value) == ("when_full", "queue")
    assert (pool.when_full, pool.rejects) == ("reject", True)


# --- what handlers raise ---


class NobodyExpectsThisError(BaseException):
    """Not an Exception."""


@pytest.mark.parametrize(
    "error", [SystemExit(3), NobodyExpectsThisError("in a handler"), KeyboardInterrupt()], ids=repr
)
def test_a_thread_survives_what_is_no_exception(
    error: BaseException, loop_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when a thread of its own had ended with it; only that the thread is used again."""
    seen: list[Any] = []
    monkeypatch.setattr(
        threading, "excepthook", lambda args: seen.append((args.exc_value, args.thread and args.thread.name))
    )
    with pool_server(loop_name, 1, on_line=raising(error)) as server, serving(server, NEVER):
        for _ in range(2):
            with held(server, 1) as (client,):
                name = client.name_of_thread
                assert client.release(b"raise") == b""
        with held(server, 1) as (client,):
            assert client.name_of_thread == name
            assert client.release() == b"done"
    assert seen == ([] if isinstance(error, SystemExit) else [(error, name)] * 2)


def no_thread(thread: threading.Thread) -> None:
    raise RuntimeError("can't start new thread")


@pytest.mark.parametrize("raises", [False, True], ids=["handle_error returns", "handle_error raises"])
def test_no_thread_can_be_started_for_datagrams_that_come_together(
    raises: bool, loop_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is the error of each of them, and ``server_close()`` waits for none."""

    def handle_error(server: Any, request: Any, client_address: Any) -> None:
        failed.append(request[0])
        if len(failed) == 3:
            server._BaseServer__shutdown_request = True
        if raises:
            raise LookupError("from handle_error")

    def start(thread: threading.Thread) -> None:
        no_thread(thread) if thread.name.startswith("AThreading") else real_start(thread)

    failed: list[bytes] = []
    real_start = threading.Thread.start
    monkeypatch.setattr(threading.Thread, "start", start)
    with packet_server(loop_name, 4, handle_error=handle_error) as server, contextlib.ExitStack() as stack:
        stack.callback(engine_of(server).jobs.forget_all)  # Or it would wait for ever when the test fails.
        for packet in (b"1", b"2", b"3"):
            stack.enter_context(Client(server, packet))
        thread = InThread("serving", server.serve_forever, NEVER)
        with pytest.raises(LookupError) if raises else contextlib.nullcontext():
            thread.result()
        assert failed == [b"1", b"2", b"3"]
        InThread("closing", server.server_close).result()


def test_a_thread_that_others_rely_on_cannot_be_started(monkeypatch: pytest.MonkeyPatch) -> None:
    """A job has been queued for it in the meantime, and has failed as well."""

    class Failing(FakeJob):
        error: Exception | None = None

        def fail(self, error: Exception) -> None:
            self.error = error

    def start(thread: threading.Thread) -> None:
        if not later.begun.is_set():
            later.begun.set()
            pool.start(later)
        raise RuntimeError("can't start new thread")

    later = Failing()
    with shared_pool(1) as pool:
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", start)
            with pytest.raises(RuntimeError, match="new thread"):
                pool.start(FakeJob())
        assert "new thread" in str(later.error)
        assert pool.has_room()
        assert "0 of 1 threads" in repr(pool)


def test_no_thread_can_be_started(loop_name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is the request's error; the pool still counts right."""

    def handle_error(server: Any, request: Any, client_address: Any) -> None:
        failed.append(client_address)

    failed: list[object] = []
    with pool_server(loop_name, 1, handle_error=handle_error) as server:
        for _ in range(2):
            with HeldClient(server) as client, monkeypatch.context() as patch:
                patch.setattr(threading.Thread, "start", no_thread)
                server.handle_request()
                assert client.rest() == b""
                assert failed.pop() == client.name
        with HeldClient(server) as client:
            server.handle_request()
            client.begun()


# --- hooks ---


def test_process_request_thread_of_the_program_is_used(loop_name: str) -> None:
    def process_request_thread(server: Any, request: Any, client_address: Any) -> None:
        noted.append(("before", threading.current_thread().name))
        compat.ThreadingMixIn.process_request_thread(server, request, client_address)
        noted.append(("after", threading.current_thread().name))

    noted: list[tuple[str, str]] = []
    with pool_server(loop_name, 1, process_request_thread=process_request_thread) as server:
        with serving(server, NEVER), held(server, 1) as (client,):
            name = client.name_of_thread
            client.release()
        wait_until_blocking(lambda: len(noted) == 2)
        assert noted == [("before", name), ("after", name)]


def test_process_request_called_by_the_program_waits_for_room(loop_name: str) -> None:
    with pool_server(loop_name, 1) as server:
        with HeldClient(server) as one, HeldClient(server) as other:
            server._handle_request_noblock()
            one.begun()
            request, client_address = server.get_request()
            thread = InThread("own loop", server.process_request, request, client_address)
            wait_until_blocked(thread)
            assert one.release() == b"done"
            thread.result()
            other.begun()
            assert other.release() == b"done"


def test_process_request_called_by_the_program_closes_when_it_is_to_reject(loop_name: str) -> None:
    with pool_server(loop_name, 1, when_full="reject") as server:
        with HeldClient(server) as one, HeldClient(server) as other:
            for _ in range(2):
                server._handle_request_noblock()
            one.begun()
            assert other.rest() == b""


# --- the end of a server ---


@pytest.mark.parametrize("block_on_close", [True, False])
@pytest.mark.parametrize("daemon_threads", [True, False])
@pytest.mark.parametrize("on_instance", [True, False])
def test_server_close_waits_as_the_attributes_say(
    on_instance: bool, daemon_threads: bool, block_on_close: bool, loop_name: str
) -> None:
    options = {"daemon_threads": daemon_threads, "block_on_close": block_on_close}
    with pool_server(loop_name, 2, **({} if on_instance else options)) as server:
        if on_instance:
            vars(server).update(options)
        with HeldClient(server) as client:
            with serving(server, NEVER):
                client.begun()
            closing = InThread("closing", server.server_close)
            if block_on_close and not daemon_threads:
                wait_until_blocked(closing)
            else:
                closing.result()
            assert server.socket.fileno() == -1
            assert client.release() == b"done"
            closing.result()
    wait_until_blocking(lambda: not threads_of(server))


def test_several_may_wait_for_the_last_request() -> None:
    """None of them takes the news away from another one that has only just begun to wait."""

    class Jobs(set[Any]):
        def __bool__(self) -> bool:
            found = len(self) > 0
            if threading.current_thread().name == "late":
                looked.set()
                go_on.wait(PATIENCE)
            return found

    looked, go_on = threading.Event(), threading.Event()
    counter = JobCounter()
    job: Any = FakeJob()
    counter._jobs = Jobs()
    counter.add(job)
    early = InThread("early", counter.wait)
    wait_until_blocked(early)
    late = InThread("late", counter.wait)
    assert looked.wait(PATIENCE)
    ending = InThread("ending", counter.discard, job)
    early.join(50 * MS)
    go_on.set()
    for thread in (ending, early, late):
        thread.result()


def test_server_close_waits_for_those_in_the_pool_of_the_program(loop_name: str) -> None:
    """And only for its own."""
    with shared_pool(2) as pool, contextlib.ExitStack() as stack:
        one, other = [
            stack.enter_context(server_of(compat.TCPServer, loop_name, request_executor=pool)) for _ in "12"
        ]
        stack.enter_context(serving(other, NEVER))
        with held(other, 1) as (others_client,), HeldClient(one) as client:
            one.handle_request()
            client.begun()
            closing = InThread("closing", one.server_close)
            wait_until_blocked(closing)
            assert client.release() == b"done"
            closing.result()
            assert others_client.release() == b"done"


@pytest.mark.parametrize("again", [False, True])
def test_interrupted_while_it_closes(again: bool, loop_name: str) -> None:
    def interrupt() -> None:
        wait_until_blocked(threading.main_thread())
        os.kill(os.getpid(), signal.SIGINT)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pool_server(loop_name, 1) as server, HeldClient(server) as client:
            server.handle_request()
            client.begun()
            for _ in range(2 if again else 1):
                interrupting = InThread("interrupting", interrupt)
                with pytest.raises(KeyboardInterrupt):
                    server.server_close()
                interrupting.result()
            assert client.release() == b"done"
            server.server_close()
            assert not server._EventLoopMixIn__engine.jobs._jobs
    finally:
        signal.signal(signal.SIGINT, before)
    wait_until_blocking(lambda: not threads_of(server))


def test_server_close_in_a_handler_of_the_pool_does_not_wait_for_itself(loop_name: str) -> None:
    """With ``daemon_threads``, as in the standard library, where a thread cannot join itself either."""

    def on_line(server: Any, handler: Any, line: bytes) -> bytes:
        server.shutdown()
        server.server_close()
        return b"closed"

    with pool_server(loop_name, 1, on_line=on_line, daemon_threads=True) as server:
        thread = InThread("serving", server.serve_forever, NEVER)
        with held(server, 1) as (client,):
            assert client.release() == b"closed"
        thread.result()


def test_a_closed_server_serves_again_with_new_threads(loop_name: str) -> None:
    with pool_server(loop_name, 1) as server:
        for _ in range(2):
            with serving(server, NEVER), held(server, 1) as (client,):
                client.release()
            server.server_close()
            wait_until_blocking(lambda: not threads_of(server))
            server.socket = socket.create_server(("127.0.0.1", 0))


# --- the end of the process ---


LEAVING = """
    import sys, threading
    import compat

    loop_name, kind, daemon = sys.argv[1:]
    begun = threading.Semaphore(0)

    class Handler(compat.BaseRequestHandler):
        def handle(self):
            self.request.sendall(b"begun")
            begun.release()
            self.request.recv(1)
            print("served", flush=True)

    class Server(compat.ThreadingTCPServer):
        event_loop = loop_name
        daemon_threads = daemon == "True"
        max_threads = 2 if kind == "max_threads" else None
        request_executor = {"pool": compat.ThreadPool(2), "threads": "threads"}.get(kind)

    server = Server(("127.0.0.1", 0), Handler)
    print("Listening on", ":%d" % server.server_address[1], flush=True)
    for _ in range(2):
        server.handle_request()
        begun.acquire()
    server.socket.close()
    print("leaving", flush=True)
"""


@pytest.mark.parametrize("daemon", [False, True])
@pytest.mark.parametrize("kind", ["max_threads", "pool", "threads"])
def test_the_end_of_the_process(kind: str, daemon: bool, loop_name: str, tmp_path: Path) -> None:
    """It waits for requests that are being served, and not for idle threads; and for none of daemons."""
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(LEAVING))
    with PythonProcess(tmp_path, script, loop_name, kind, str(daemon)) as process:
        port = process.wait_for_port()
        clients = []
        with contextlib.ExitStack() as stack:
            for _ in range(2):
                client = stack.enter_context(socket.create_connection(("127.0.0.1", port), LONG))
                assert client.recv(5) == b"begun"
                clients.append(client)
            process.wait_for("leaving")
            if not daemon:
                for client in clients:
                    client.settimeout(100 * MS)
                    with pytest.raises(
                        TimeoutError
                    ):  # Not the end, that would come from a process that is gone.
                        client.recv(1)
                    client.sendall(b"x")
            assert process.wait() == 0
            assert process.stdout.count("served") == (0 if daemon else 2)


FORKED = """
    import os, signal, sys, warnings
    import compat

    warnings.simplefilter("ignore", DeprecationWarning)  # There are threads: it is the subject.
    loop_name, kind = sys.argv[1:]

    class Handler(compat.StreamRequestHandler):
        def handle(self):
            self.wfile.write(b"%d\\n" % os.getpid())
            self.rfile.readline()

    class Server(compat.ThreadingTCPServer):
        event_loop = loop_name
        max_threads = 1 if kind == "max_threads" else None
        request_executor = compat.ThreadPool(1) if kind == "pool" else None

    with Server(("127.0.0.1", 0), Handler) as server:
        print("Listening on", ":%d" % server.server_address[1], flush=True)
        server.handle_request()
        pid = os.fork()
        if pid == 0:
            signal.alarm(60)  # It must not outlive a test that fails.
            server.handle_request()
            server.handle_request()  # Waits for room in its own pool.
            server.server_close()
            print("closed in the child", flush=True)
            os._exit(0)
        print("status of the child:", os.waitpid(pid, 0)[1], flush=True)
        server.handle_request()
    print("closed in the parent", flush=True)
"""


@needs_fork
@pytest.mark.parametrize("kind", ["max_threads", "pool"])
def test_a_forked_child_has_threads_of_its_own(kind: str, loop_name: str, tmp_path: Path) -> None:
    """Those that are busy in the parent do not count there, and the child does not wait for them."""
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(FORKED))
    with PythonProcess(tmp_path, script, loop_name, kind) as process, contextlib.ExitStack() as stack:
        port = process.wait_for_port()

        def connected() -> Any:
            return stack.enter_context(socket.create_connection(("127.0.0.1", port), LONG))

        first, second, third, fourth = connected(), None, None, None
        assert int(first.makefile("rb").readline()) == process.pid
        second, third = connected(), connected()
        child = int(second.makefile("rb").readline())
        assert child != process.pid
        second.sendall(b"go\n")
        assert int(third.makefile("rb").readline()) == child
        third.sendall(b"go\n")
        process.wait_for("status of the child: 0")
        fourth = connected()
        first.sendall(b"go\n")
        assert int(fourth.makefile("rb").readline()) == process.pid
        fourth.sendall(b"go\n")
        assert process.wait() == 0
        assert re.findall(r"closed in the \w+", process.stdout) == [
            "closed in the child",
            "closed in the parent",
        ]
        assert process.stderr == ""
