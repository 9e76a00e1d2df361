"""Where requests run: ``request_executor`` on classes, instances and for all, and what is no executor."""

from __future__ import annotations

import concurrent.futures
import contextlib
import os
import socketserver
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import compat
from asyncserver import OptionError
from compat.defaults import DEFAULTS
from compat.engine import engine_of
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
from tests.compat.support import LINUX, LOCAL, Client, InThread, serving
from tests.leaks import child_processes
from tests.processes import run_python
from tests.waiting import MS, PATIENCE, wait_until_blocking

# Other threads exist while a test forks (those of pytest, if no others).
pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")

needs_pidfd = pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="a child's end can only be polled for")

BASES = [
    compat.TCPServer,
    compat.ThreadingTCPServer,
    pytest.param(getattr(compat, "ForkingTCPServer", None), marks=needs_fork),
]

SERIAL, FRESH, POOL, CHILD = "the serving thread", "a fresh thread", "a thread of a pool", "a child process"

WHERE = {
    "serial": SERIAL,
    "threads": FRESH,
    "pool:2": POOL,
    "fork": pytest.param("fork", CHILD, marks=needs_fork, id="fork"),
}
SPECS = pytest.mark.parametrize(
    ("spec", "where"),
    [
        where if not isinstance(where, str) else pytest.param(spec, where, id=spec)
        for spec, where in WHERE.items()
    ],
)


def places(server: Any, count: int = 2) -> list[tuple[int, str]]:
    """The process and the thread of so many requests, one after the other."""
    found = []
    for _ in range(count):
        with HeldClient(server) as client:
            found.append(client.place())
            assert client.release() == b"done"
    return found


def where_requests_run(server: Any) -> str:
    """Which of the four it is."""
    with serving(server, NEVER):
        found = places(server)
        pids, names = {pid for pid, _ in found}, {name for _, name in found}
        if len(pids) == 2:
            assert names == {"serving"}
            assert os.getpid() not in pids
            return CHILD
        assert pids == {os.getpid()}
        if names == {"serving"}:
            return SERIAL
        of_pool = {name.startswith(f"{type(server).__name__}-") for name in names}
        assert len(of_pool) == 1
        return POOL if of_pool == {True} else FRESH


@contextlib.contextmanager
def default(spec: str) -> Iterator[None]:
    DEFAULTS.executor = spec
    try:
        yield
    finally:
        DEFAULTS.executor = None


# --- which one ---


@pytest.mark.parametrize("base", BASES)
@SPECS
def test_executor_of_the_class(base: Any, spec: str, where: str, loop_name: str) -> None:
    with server_of(base, loop_name, request_executor=spec) as server:
        assert where_requests_run(server) == where


@pytest.mark.parametrize("base", BASES)
@SPECS
def test_executor_of_the_instance_and_for_all(base: Any, spec: str, where: str) -> None:
    with server_of(base, "auto") as server, default(spec):
        assert where_requests_run(server) == where
    with server_of(base, "auto") as server, default("serial" if where != SERIAL else "threads"):
        server.request_executor = spec
        assert where_requests_run(server) == where


@pytest.mark.parametrize("base", BASES)
def test_without_any_the_class_decides(base: Any, loop_name: str) -> None:
    expected = {"TCPServer": SERIAL, "ThreadingTCPServer": FRESH, "ForkingTCPServer": CHILD}
    with server_of(base, loop_name) as server:
        assert where_requests_run(server) == expected[base.__name__]


def test_what_the_server_says_counts_more_than_what_is_for_all() -> None:
    with default("threads"), server_of(compat.ThreadingTCPServer, "auto", max_threads=1) as server:
        assert where_requests_run(server) == POOL


def test_what_is_for_all_is_for_the_mix_in_too() -> None:
    mixed = type("Mixed", (compat.EventLoopMixIn, socketserver.TCPServer), {})
    with default("pool:1"), server_of(mixed, "auto") as server:
        assert where_requests_run(server) == POOL


def test_another_executor_while_it_serves(loop_name: str) -> None:
    with server_of(compat.TCPServer, loop_name) as server, serving(server, NEVER):
        found = []
        for spec in (None, "threads", "serial", "pool:1"):
            server.request_executor = spec
            # The turn that has begun may still go by the one before.
            found.append(places(server)[1][1])
        assert found[0] == found[2] == "serving"
        assert "serving" not in (found[1], found[3])


@SPECS
@pytest.mark.parametrize("name", ["UDPServer", "ThreadingUDPServer"])
def test_datagrams(name: str, spec: str, where: str, loop_name: str) -> None:
    class Handler(compat.DatagramRequestHandler):
        def handle(self) -> None:
            self.wfile.write(f"{os.getpid()} {threading.current_thread().name}".encode())

    with server_of(getattr(compat, name), loop_name, Handler, request_executor=spec) as server:
        with serving(server, NEVER):
            with Client(server) as client:
                reply = client.reply()
    assert isinstance(reply, bytes)
    pid, _, thread = reply.decode().partition(" ")
    assert (int(pid) == os.getpid()) == (where != CHILD)
    assert (thread == "serving") == (where in (SERIAL, CHILD))


@SPECS
def test_a_handler_that_fails(spec: str, where: str, loop_name: str) -> None:
    """``handle_error`` is called where the handler was, the connection is closed, and all goes on."""
    noted: list[str] = []

    def handle_error(server: Any, request: Any, client_address: Any) -> None:
        noted.append(threading.current_thread().name)
        request.sendall(b"handle_error")

    options = {"on_line": raising(ValueError()), "handle_error": handle_error, "request_executor": spec}
    with server_of(compat.TCPServer, loop_name, **options) as server, serving(server, NEVER):
        for _ in range(2):
            with HeldClient(server) as client:
                name = client.begun()
                assert client.release(b"raise") == b"handle_error"
                assert noted == ([] if where == CHILD else [name])
                noted.clear()
        with HeldClient(server) as client:
            client.begun()
            assert client.release() == b"done"


@SPECS
@pytest.mark.parametrize("base", BASES)
def test_own_loop_of_the_program(base: Any, spec: str, where: str, loop_name: str) -> None:
    """``process_request()`` itself goes by the executor, whoever calls it."""
    with server_of(base, loop_name, request_executor=spec) as server:
        with HeldClient(server) as client:
            thread = InThread("own loop", server._handle_request_noblock)
            pid, name = client.place()
            client.release()
            thread.result()
        assert (pid != os.getpid()) == (where == CHILD)
        assert (name == "own loop") == (where in (SERIAL, CHILD))


@SPECS
def test_handle_request(spec: str, where: str, loop_name: str) -> None:
    with server_of(compat.TCPServer, loop_name, request_executor=spec, timeout=1 * MS) as server:
        for _ in range(2):
            with HeldClient(server) as client:
                thread = InThread("handling", server.handle_request)
                pid, name = client.place()
                assert client.release() == b"done"
                thread.result()
            assert (pid != os.getpid()) == (where == CHILD)
            assert (name == "handling") == (where in (SERIAL, CHILD))
        if where == CHILD:

            def reaped() -> bool:
                server.handle_request()
                return not server.active_children

            wait_until_blocking(reaped)


# --- what is no executor ---


@pytest.mark.parametrize(
    ("options", "named", "value"),
    [
        ({"request_executor": "thread"}, "request_executor", "thread"),
        ({"request_executor": "pool"}, "request_executor", "pool"),
        ({"request_executor": "pool:"}, "request_executor", "pool:"),
        ({"request_executor": "pool:many"}, "request_executor", "pool:many"),
        ({"request_executor": "threads:4"}, "request_executor", "threads:4"),
        ({"request_executor": 4}, "request_executor", 4),
        ({"request_executor": ["threads"]}, "request_executor", ["threads"]),
        ({"request_executor": compat.ThreadPool}, "request_executor", compat.ThreadPool),
        ({"request_executor": "pool:0"}, "request_executor", "pool:0"),
        ({"request_executor": "pool:-1"}, "request_executor", "pool:-1"),
        ({"max_threads": 0}, "max_threads", 0),
        ({"max_threads": 2.0}, "max_threads", 2.0),
        ({"max_threads": True}, "max_threads", True),
        ({"max_threads": "4"}, "max_threads", "4"),
        ({"max_threads": 4, "when_full": "drop"}, "when_full", "drop"),
        ({"event_loop": "trio"}, "event_loop", "trio"),
    ],
    ids=str,
)
def test_bad_options_are_named_with_their_value(
    options: dict[str, Any], named: str, value: object, loop_name: str
) -> None:
    """When the class is made; and when it begins to serve, with nothing done to the server."""
    with pytest.raises(OptionError) as caught:
        type("Server", (compat.ThreadingTCPServer,), options)
    assert (caught.value.option, caught.value.value) == (named, value)
    with server_of(compat.ThreadingTCPServer, loop_name, timeout=1 * MS) as server:
        before = {name: getattr(server, name, None) for name in options}
        vars(server).update(options)
        for serve in (server.serve_forever, server.handle_request):
            with pytest.raises(OptionError) as caught:
                serve()
            assert (caught.value.option, caught.value.value) == (named, value)
        InThread("stopping", server.shutdown).result()
        server._BaseServer__shutdown_request = False
        vars(server).update(before)
        with serving(server, NEVER):
            assert len(places(server)) == 2


@pytest.mark.allow_blocking("the subject is a call that blocks the loop")
@pytest.mark.parametrize("method", ["serve_forever", "handle_request"])
async def test_bad_options_are_named_inside_a_running_loop(method: str) -> None:
    with server_of(compat.TCPServer, "auto", timeout=1 * MS) as server:
        server.request_executor = "pool"
        server._BaseServer__shutdown_request = True
        with (
            pytest.warns(RuntimeWarning, match="serve_async"),
            pytest.raises(OptionError, match="request_executor='pool'"),
        ):
            getattr(server, method)()


def test_processes_of_a_pool_are_refused() -> None:
    pool = concurrent.futures.ProcessPoolExecutor(1)
    try:
        with pytest.raises(OptionError, match="use 'fork'") as caught:
            type("Server", (compat.TCPServer,), {"request_executor": pool})
        assert caught.value.option == "request_executor"
        with server_of(compat.TCPServer, "auto") as server:
            server.request_executor = pool
            with pytest.raises(OptionError, match="use 'fork'"):
                server.serve_forever()
    finally:
        pool.shutdown()


def test_no_fork_where_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "fork", raising=False)
    with pytest.raises(OptionError, match=r"request_executor='fork': this platform has no fork\(\)"):
        type("Server", (compat.TCPServer,), {"request_executor": "fork"})


# --- executors of the program ---


class Noting(compat.RequestExecutor):
    """The simplest one there can be."""

    def __init__(self, how: Callable[[compat.Job], None]) -> None:
        self.how = how
        self.jobs = 0

    def start(self, job: compat.Job) -> None:
        self.jobs += 1
        self.how(job)


def in_own_thread(job: compat.Job) -> None:
    threading.Thread(target=job.run, name="mine", daemon=job.daemon).start()


def test_calling_thread_makes_a_threading_server_serial(loop_name: str) -> None:
    options = {"request_executor": compat.CallingThread(), "on_line": raising(SystemExit("from a handler"))}
    with server_of(compat.ThreadingTCPServer, loop_name, **options) as server:
        assert where_requests_run(server) == SERIAL
        # As in a server that never had threads, what is no Exception leaves serve_forever().
        thread = InThread("serving", server.serve_forever, NEVER)
        with HeldClient(server) as client:
            assert client.begun() == "serving"
            assert client.release(b"raise") == b""
            with pytest.raises(SystemExit, match="from a handler"):
                thread.result()


@pytest.mark.parametrize("base", BASES)
def test_own_executor(base: Any, loop_name: str) -> None:
    executor = Noting(in_own_thread)
    with server_of(base, loop_name, request_executor=executor) as server:
        with serving(server, NEVER):
            assert places(server, 3) == [(os.getpid(), "mine")] * 3
        assert executor.jobs == 3


def test_own_executor_that_fails(loop_name: str) -> None:
    """What ``start()`` raises is the request's error; nobody waits for that request."""

    def refuse(job: compat.Job) -> None:
        raise ValueError("no, thanks")

    errors: list[object] = []

    def handle_error(server: Any, request: Any, client_address: Any) -> None:
        errors.append(client_address)

    executor = Noting(refuse)
    options = {"request_executor": executor, "handle_error": handle_error}
    with server_of(compat.ThreadingTCPServer, loop_name, **options) as server:
        with serving(server, NEVER), HeldClient(server) as client:
            assert client.rest() == b""
            assert errors == [client.name]
            executor.how = in_own_thread
            assert places(server, 1) == [(os.getpid(), "mine")]


class OneAtATime(compat.RequestExecutor):
    """A bound of the program's own."""

    def __init__(self) -> None:
        self.busy = False
        self.most = 0
        self.listeners: list[Callable[[], None]] = []

    def start(self, job: compat.Job) -> None:
        assert not self.busy
        self.busy = True
        threading.Thread(target=self._run, args=(job,)).start()

    def _run(self, job: compat.Job) -> None:
        job.run()
        self.busy = False
        for listener in list(self.listeners):
            listener()

    def has_room(self) -> bool:
        return not self.busy

    def wait_for_room(self, timeout: float | None = None) -> bool:
        return not self.busy  # It may give up early.

    def add_room_listener(self, listener: Callable[[], None]) -> None:
        self.listeners.append(listener)

    def remove_room_listener(self, listener: Callable[[], None]) -> None:
        self.listeners.remove(listener)


@needs_listen_queue
def test_own_executor_with_a_bound(loop_name: str) -> None:
    executor = OneAtATime()
    with server_of(compat.TCPServer, loop_name, request_executor=executor) as server:
        with serving(server, NEVER) as thread:
            with HeldClient(server) as one, HeldClient(server) as other:
                one.begun()
                wait_until_blocked(thread)
                assert queued(server)[0] == 1
                assert one.release() == b"done"
                other.begun()
                assert other.release() == b"done"
        assert not executor.listeners


# --- thread pools of concurrent.futures ---


def test_pool_of_the_standard_library(loop_name: str) -> None:
    with concurrent.futures.ThreadPoolExecutor(2, thread_name_prefix="futures") as pool:
        with server_of(compat.TCPServer, loop_name, request_executor=pool) as server:
            with serving(server, NEVER):
                with HeldClient(server) as one, HeldClient(server) as other, HeldClient(server) as third:
                    assert {one.begun(), other.begun()} == {"futures_0", "futures_1"}
                    assert one.release() == b"done"
                    assert third.begun().startswith("futures_")  # It was in the pool's own queue.
                    assert third.release() == b"done"
                    assert other.release() == b"done"
        assert pool.submit(int).result() == 0  # It is the program's to shut down.


def test_server_close_waits_for_the_pool_of_the_standard_library(loop_name: str) -> None:
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        with server_of(compat.TCPServer, loop_name, request_executor=pool) as server:
            with HeldClient(server) as one, HeldClient(server) as other:
                for _ in range(2):
                    server.handle_request()
                one.begun()
                closing = InThread("closing", server.server_close)
                wait_until_blocked(closing)
                one.release()
                other.begun()
                wait_until_blocked(closing)
                other.release()
                closing.result()


def test_pool_of_the_standard_library_that_is_shut_down(loop_name: str) -> None:
    pool = concurrent.futures.ThreadPoolExecutor(1)
    pool.shutdown()
    errors: list[object] = []

    def handle_error(server: Any, request: Any, client_address: Any) -> None:
        errors.append(client_address)

    options = {"request_executor": pool, "handle_error": handle_error}
    with server_of(compat.TCPServer, loop_name, **options) as server:
        with serving(server, NEVER), HeldClient(server) as client:
            assert client.rest() == b""
            assert errors == [client.name]


def test_pool_of_the_standard_library_that_drops_what_it_has_queued(loop_name: str) -> None:
    """A request that will never be served is closed, and ``server_close()`` does not wait for it."""
    pool = concurrent.futures.ThreadPoolExecutor(1)
    server = type("Server", (compat.TCPServer,), {"event_loop": loop_name, "request_executor": pool})(
        LOCAL, Waiting
    )
    with HeldClient(server) as one, HeldClient(server) as other:
        for _ in range(2):
            server.handle_request()
        one.begun()
        pool.shutdown(wait=False, cancel_futures=True)
        one.release()
        other.sock.settimeout(2)
        InThread("closing", server.server_close).result()
        assert other.rest() == b""


def test_pool_of_the_standard_library_whose_threads_cannot_be_made_ready(loop_name: str) -> None:
    """All that is in its queue then has failed, and ``server_close()`` does not wait for it."""

    def no_database() -> None:
        assert accepted.wait(PATIENCE)
        raise OSError("no database")

    def handle_error(server: Any, request: Any, client_address: Any) -> None:
        errors[client_address] = sys.exception()

    accepted = threading.Event()
    errors: dict[object, BaseException | None] = {}
    pool = concurrent.futures.ThreadPoolExecutor(1, initializer=no_database)
    options = {"request_executor": pool, "handle_error": handle_error}
    with server_of(compat.TCPServer, loop_name, **options) as server, contextlib.ExitStack() as stack:
        stack.callback(engine_of(server).jobs.forget_all)  # Or it would wait for ever when the test fails.
        with HeldClient(server) as one, HeldClient(server) as other:
            for _ in range(2):
                server.handle_request()
            accepted.set()
            InThread("closing", server.server_close).result()
            assert [one.rest(), other.rest()] == [b"", b""]
            assert set(errors) == {one.name, other.name}
    assert all(isinstance(error, concurrent.futures.BrokenExecutor) for error in errors.values())
    pool.shutdown()


class Waiting(compat.StreamRequestHandler):
    """As ``Held``, for a server that knows nothing of it."""

    def handle(self) -> None:
        self.wfile.write(f"{os.getpid()} {threading.current_thread().name}\n".encode())
        self.rfile.readline()


# --- child processes ---


def children_of(server: Any) -> set[int]:
    return set(server.active_children or ())


FORKING = pytest.mark.parametrize(
    ("base", "options"),
    [
        pytest.param(compat.TCPServer, {"request_executor": "fork"}, id="executor"),
        pytest.param(getattr(compat, "ForkingTCPServer", None), {}, id="class"),
    ],
)


@needs_fork
@needs_pidfd
@FORKING
def test_children_are_reaped_when_they_end(base: Any, options: dict[str, Any], loop_name: str) -> None:
    with server_of(base, loop_name, **options) as server, serving(server, NEVER) as thread:
        with HeldClient(server) as one, HeldClient(server) as other:
            clients = [(client.place()[0], client) for client in (one, other)]
            pids = {pid for pid, _ in clients}
            wait_until_blocking(lambda: children_of(server) == pids)
            wait_until_blocked(thread)
            for pid, client in clients:
                pids.discard(pid)
                client.release()
                wait_until_blocking(lambda: children_of(server) == pids)
        assert not child_processes()


@needs_fork
@needs_pidfd
@needs_listen_queue
@FORKING
def test_nothing_is_accepted_at_max_children(base: Any, options: dict[str, Any], loop_name: str) -> None:
    with server_of(base, loop_name, max_children=2, **options) as server:
        thread = InThread("serving", server.serve_forever, NEVER)
        with HeldClient(server) as one, HeldClient(server) as other, HeldClient(server) as third:
            one.begun()
            other.begun()
            wait_until_blocked(thread)
            assert (len(children_of(server)), queued(server)[0]) == (2, 1)
            other.release()
            third.begun()
            wait_until_blocked(thread)
            assert (len(children_of(server)), queued(server)[0]) == (2, 0)
            with HeldClient(server) as fourth:
                wait_until_blocked(thread)
                assert queued(server)[0] == 1
                InThread("stopping", server.shutdown).result()  # Full, and at once.
                thread.result()
                assert queued(server)[0] == 1
                fourth.close()
            one.release()
            third.release()


@needs_fork
@FORKING
@pytest.mark.parametrize("block_on_close", [True, False])
def test_server_close_and_children(
    base: Any, options: dict[str, Any], block_on_close: bool, loop_name: str
) -> None:
    with server_of(base, loop_name, block_on_close=block_on_close, **options) as server:
        with HeldClient(server) as client:
            with serving(server, NEVER):
                client.begun()
            closing = InThread("closing", server.server_close)
            if block_on_close:
                wait_until_blocked(closing)
                assert len(children_of(server)) == 1
            else:
                closing.result()
                (pid,) = children_of(server)
            client.release()
            closing.result()
        if not block_on_close:
            os.waitpid(pid, 0)
            server.active_children.clear()
        assert not child_processes()


@needs_fork
@FORKING
def test_children_that_somebody_else_has_waited_for(
    base: Any, options: dict[str, Any], loop_name: str
) -> None:
    with server_of(base, loop_name, **options) as server, serving(server, NEVER):
        with HeldClient(server) as client:
            pid, _ = client.place()
            waiting = InThread("waiting", os.waitpid, pid, 0)
            client.release()
            with contextlib.suppress(ChildProcessError):
                waiting.result()
        assert len(places(server)) == 2


@needs_fork
def test_a_child_ends_with_its_request(loop_name: str) -> None:
    """Whatever it raises: nothing goes on in a copy of the program."""
    options = {"request_executor": "fork", "on_line": raising(SystemExit(0))}
    with server_of(compat.TCPServer, loop_name, **options) as server, serving(server, NEVER):
        with HeldClient(server) as client:
            pid, _ = client.place()
            assert client.release(b"raise") == b""
            if LINUX:
                wait_until_blocking(lambda: not child_processes())
        assert pid != os.getpid()
        assert len(places(server)) == 2


ONE_CHILD = """
import os, sys
import compat

class Job:
    def run_in_child(self):
        return eval(sys.argv[1])

    def left_to(self, pid):
        print("status", os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)

try:
    compat.ChildProcesses().start(Job())
finally:
    print("the program goes on", flush=True)
"""


@needs_fork
@pytest.mark.parametrize(("result", "status"), [("3", 3), ("2**40", 1), ("None", 1)])
def test_a_child_ends_even_if_that_is_no_status(result: str, status: int, tmp_path: Path) -> None:
    _, output, _ = run_python(tmp_path, "-c", ONE_CHILD, result)
    assert output == f"status {status}\nthe program goes on\n"


@needs_fork
def test_the_parents_copy_is_closed(loop_name: str) -> None:
    """Or the connection would stay open when the child has ended."""
    with server_of(compat.TCPServer, loop_name, request_executor="fork") as server:
        with serving(server, NEVER), HeldClient(server) as client:
            pid, _ = client.place()
            os.kill(pid, 9)
            assert client.rest() == b""
