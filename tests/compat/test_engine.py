"""What the engine of ``compat`` adds to the standard library's.

Waking up at once; patience when descriptors run out; servers that cannot be waited for;
``serve_async()``; the mix-in in front of other people's classes; forks. What both have in common is
compared in the other modules.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import http.server
import logging
import os
import queue
import re
import select
import signal
import socket
import socketserver
import tempfile
import textwrap
import threading
import time
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from anyio import EndOfStream

import compat
from asyncserver import LoopName, TCPAddress
from compat import turns
from compat.turns import Exhaustion
from compat.waiting import LoopWaiter
from tests import clients
from tests.compat.held import (
    NEVER,
    HeldClient,
    needs_fork,
    needs_listen_queue,
    queued,
    server_of,
    wait_until_blocked,
)
from tests.compat.support import LINUX, LOCAL, Client, InThread, serving, wait_until_asleep
from tests.conftest import LOOP_FACTORIES
from tests.leaks import open_descriptors
from tests.processes import LONG, PythonProcess
from tests.waiting import MS, PATIENCE, wait_until, wait_until_blocking, within

# --- waking up ---


def set_the_flag(server: Any) -> None:
    server._BaseServer__shutdown_request = True


def call_shutdown(server: Any) -> None:
    server.shutdown()


WAYS_TO_STOP = pytest.mark.parametrize("stop", [call_shutdown, set_the_flag])


@WAYS_TO_STOP
def test_stops_at_once_whatever_the_poll_interval(stop: Callable[[Any], None], loop_name: str) -> None:
    with server_of(compat.TCPServer, loop_name) as server:
        for _ in range(2):  # The second time there was a loop before.
            thread = InThread("serving", server.serve_forever, NEVER)
            wait_until_blocked(thread)
            InThread("stopping", stop, server).result()
            thread.result()


@WAYS_TO_STOP
def test_stops_at_once_after_a_request(stop: Callable[[Any], None], loop_name: str) -> None:
    with server_of(compat.TCPServer, loop_name) as server:
        thread = InThread("serving", server.serve_forever, NEVER)
        with HeldClient(server) as client:
            client.begun()
            client.release()
        InThread("stopping", stop, server).result()  # It may still look out for the next request.
        thread.result()


@pytest.mark.parametrize("from_thread", [False, True])
def test_stops_at_once_from_a_signal_handler(from_thread: bool, loop_name: str) -> None:
    def on_signal(*_: object) -> None:
        if from_thread:
            InThread("stopping", server.shutdown)
        else:
            set_the_flag(server)

    def send_signal() -> None:
        wait_until_blocked(threading.main_thread())
        os.kill(os.getpid(), signal.SIGUSR1)

    with server_of(compat.TCPServer, loop_name) as server, signal_handler(signal.SIGUSR1, on_signal):
        started = time.monotonic()
        sender = InThread("sender", send_signal)
        server.serve_forever(NEVER)
        assert time.monotonic() - started < NEVER / 2
        sender.result()


@contextlib.contextmanager
def signal_handler(number: int, handler: Callable[..., None]) -> Iterator[None]:
    before = signal.signal(number, handler)
    try:
        yield
    finally:
        signal.signal(number, before)


def test_a_handler_may_set_the_flag(loop_name: str) -> None:
    def on_line(server: Any, handler: Any, line: bytes) -> bytes:
        set_the_flag(server)
        return b"the last one"

    with server_of(compat.TCPServer, loop_name, on_line=on_line) as server:
        thread = InThread("serving", server.serve_forever, NEVER)
        with HeldClient(server) as client:
            assert client.begun() == "serving"
            assert client.release() == b"the last one"
        thread.result()


# --- what is the program's own ---


def test_signals_and_current_loop_are_the_programs(loop_name: str) -> None:
    def observe() -> tuple[object, ...]:
        wakeup = signal.set_wakeup_fd(-1)
        signal.set_wakeup_fd(wakeup)
        handlers = [signal.getsignal(number) for number in signal.valid_signals()]
        return handlers, wakeup, asyncio.get_event_loop_policy().get_event_loop()

    class Server(compat.TCPServer):
        event_loop = loop_name

        def service_actions(self) -> None:
            seen.append(observe())
            if len(seen) == 3:
                set_the_flag(self)

        handle_timeout = service_actions

    seen: list[tuple[object, ...]] = []
    loop = asyncio.new_event_loop()
    ours, theirs = socket.socketpair()
    with contextlib.ExitStack() as stack:
        stack.enter_context(ours)
        stack.enter_context(theirs)
        stack.callback(loop.close)
        ours.setblocking(False)
        stack.callback(signal.set_wakeup_fd, signal.set_wakeup_fd(ours.fileno()))
        stack.callback(asyncio.set_event_loop, None)
        asyncio.set_event_loop(loop)
        before = observe()
        with Server(LOCAL, compat.BaseRequestHandler) as server:
            server.serve_forever(1 * MS)
            assert observe() == before
            server.timeout = 1 * MS
            server.handle_request()
            assert observe() == before
        assert seen == [before] * 4
        assert observe() == before


# --- out of descriptors ---


def test_the_pauses_double_up_to_a_second(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(turns, "time", types.SimpleNamespace(monotonic=lambda: 1000.0))
    exhaustion = Exhaustion()
    for _ in range(2):
        pauses = []
        for _ in range(9):
            exhaustion.begin(OSError(errno.EMFILE, "too many"), types.SimpleNamespace())
            pauses.append(exhaustion.seconds_left)
        assert pauses == pytest.approx([0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1, 1])
        exhaustion.end(types.SimpleNamespace())
    assert [record.levelno for record in caplog.records if record.levelno >= logging.WARNING] == [
        logging.ERROR
    ] * 2


class Poor(compat.ThreadingTCPServer):
    """Cannot accept as long as ``times_left`` is not zero."""

    error = errno.EMFILE
    times_left = 4

    def __init__(self, *args: Any) -> None:
        self.attempts: list[float] = []
        super().__init__(*args)

    def get_request(self) -> Any:
        self.attempts.append(time.monotonic())
        if self.times_left:
            self.times_left -= 1
            raise OSError(self.error, os.strerror(self.error))
        return super().get_request()


ENTRIES = pytest.mark.parametrize("entry", ["serve_forever", "handle_request"])


def enter(server: Any, entry: str, attempts: int) -> None:
    """Serve by either way: until the flag is set, or for so many attempts."""
    if entry == "serve_forever":
        server.serve_forever(NEVER)
    else:
        while len(server.attempts) < attempts:
            server.handle_request()


@ENTRIES
@pytest.mark.parametrize("error", [errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM])
def test_goes_on_by_itself_when_there_are_descriptors_again(
    error: int, entry: str, loop_name: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "asyncserver")
    with server_of(Poor, loop_name, error=error) as server:
        thread = InThread("serving", enter, server, entry, 6)
        for _ in range(2):
            with HeldClient(server) as client:
                client.begun()
                client.release()
        if entry == "serve_forever":
            set_the_flag(server)
        thread.result()
        pauses = [b - a for a, b in zip(server.attempts, server.attempts[1:], strict=False)]
        assert all(pause >= least for pause, least in zip(pauses, (0.01, 0.02, 0.04, 0.08), strict=False))
        assert len(server.attempts) == 6
        out, again = caplog.records
        assert out.levelno == logging.ERROR
        assert "out of descriptors" in out.getMessage()
        assert str(server.server_address) in out.getMessage()
        assert (again.levelno, again.getMessage()) == (logging.INFO, "APoor: accepting again")


@WAYS_TO_STOP
def test_stops_at_once_while_it_waits_for_descriptors(
    stop: Callable[[Any], None], loop_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(turns, "_FIRST_DELAY", NEVER)
    monkeypatch.setattr(turns, "_LONGEST_DELAY", NEVER)
    with server_of(Poor, loop_name) as server, HeldClient(server):
        thread = InThread("serving", server.serve_forever, NEVER)
        wait_until_blocking(lambda: server.attempts)
        wait_until_blocked(thread)
        InThread("stopping", stop, server).result()
        thread.result()
        assert len(server.attempts) == 1


def test_handle_request_keeps_its_timeout_without_descriptors(
    loop_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(turns, "_FIRST_DELAY", NEVER)
    monkeypatch.setattr(turns, "_LONGEST_DELAY", NEVER)
    with server_of(Poor, loop_name, handle_timeout=lambda self: "nothing") as server, HeldClient(server):
        server.timeout = 20 * MS
        assert server.handle_request() is None  # What was there could not be accepted.
        assert [server.handle_request() for _ in range(2)] == ["nothing"] * 2
        assert len(server.attempts) == 1


def test_service_actions_go_on_without_descriptors(loop_name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def service_actions(server: Any) -> None:
        turns_taken.append(len(server.attempts))
        if turns_taken.count(1) == 3:
            set_the_flag(server)

    monkeypatch.setattr(turns, "_FIRST_DELAY", NEVER)
    monkeypatch.setattr(turns, "_LONGEST_DELAY", NEVER)
    turns_taken: list[int] = []
    with server_of(Poor, loop_name, service_actions=service_actions) as server, HeldClient(server):
        InThread("serving", server.serve_forever, 1 * MS).result()
        assert turns_taken[-3:] == [1, 1, 1]


OUT_OF_DESCRIPTORS = """
    import logging, os, resource, signal, sys, threading, time
    import compat

    loop_name, entry, when = sys.argv[1:]

    class Handler(compat.BaseRequestHandler):
        def handle(self):
            self.request.sendall(b"begun")
            self.request.recv(1)

    class Server(compat.ThreadingTCPServer):
        event_loop = loop_name
        daemon_threads = True
        attempts = failures = asked = 0

        def fileno(self):
            self.asked += 1
            if self.asked == 2:  # The first one is for the start.
                print("waiting", flush=True)
            return super().fileno()

        def get_request(self):
            self.attempts += 1
            try:
                return super().get_request()
            except OSError:
                self.failures += 1
                if self.failures == 1:
                    self.since = time.monotonic(), time.process_time()
                print("failed", self.failures, flush=True)
                raise

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    server = Server(("127.0.0.1", 0), Handler)
    filling = []

    def stop(*_):
        server.ended = time.monotonic(), time.process_time()
        server._BaseServer__shutdown_request = True

    def give_some(*_):
        while filling:
            os.close(filling.pop())

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGUSR1, give_some)
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (40, most))
    if when in ("before", "before there are clients"):
        while True:
            try:
                filling.append(os.dup(0))
            except OSError:
                break
    print("Listening on", ":%d" % server.server_address[1], flush=True)
    sys.stdin.close()
    if when == "before":
        while not os.path.exists("go"):  # Until there is a client, so that there never was a loop.
            time.sleep(0.01)
    if entry == "serve_forever":
        server.serve_forever(60)
    else:
        while not server._BaseServer__shutdown_request:
            server.timeout = 0.5  # It ends by itself only.
            server.handle_request()
    wall, cpu = (b - a for a, b in zip(server.since, server.ended))
    print("episode:", server.attempts, wall, cpu)
"""


def has_begun(client: socket.socket) -> bool:
    return bool(select.select([client], [], [], 0)[0])


@pytest.mark.skipif(not LINUX, reason="the limit is set as Linux has it")
@ENTRIES
@pytest.mark.parametrize("when", ["before", "before there are clients", "one by one", "at once"])
def test_a_process_at_its_limit(when: str, entry: str, loop_name: str, tmp_path: Path) -> None:
    """Descriptors run out while it serves, or there were none left when it began."""
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(OUT_OF_DESCRIPTORS))
    with PythonProcess(tmp_path, script, loop_name, entry, when) as process, contextlib.ExitStack() as stack:
        port = process.wait_for_port()
        connected = []
        if when == "before there are clients":
            process.wait_for("waiting")
        for _ in range(0 if "before" in when else 40):
            connected.append(stack.enter_context(socket.create_connection(("127.0.0.1", port), LONG)))
            if when == "one by one":  # The server waits for the next with a few, two, one, none left.
                wait_until_blocking(lambda: has_begun(connected[-1]) or "failed" in process.stdout)
            if "failed" in process.stdout:
                break
        connected.append(stack.enter_context(socket.create_connection(("127.0.0.1", port), LONG)))
        (tmp_path / "go").touch()
        process.wait_for("failed 6")  # After 310 ms.
        if "before" in when:
            process.send_signal(signal.SIGUSR1)
        else:
            for client in connected[:-1]:
                client.close()
        assert connected[-1].recv(100) == b"begun"
        connected[-1].close()
        wait_until_asleep(process.pid)
        assert process.terminate() == 0
        logged = re.findall("out of descriptors|accepting again", process.stderr)
        # Those in the queue may use up what the first handlers give back: that is another episode.
        episodes = 1 if "before" in when else len(logged) // 2
        assert logged == ["out of descriptors", "accepting again"] * episodes != []
        found = re.search(r"episode: (\d+) ([\d.]+) ([\d.]+)$", process.stdout)
        assert found is not None, process.stdout
        attempts, wall, cpu = map(float, found.groups())
        assert attempts < 100
        assert wall > 0.3
        assert cpu < wall / 5


AGAIN_AND_AGAIN = """
    import os, resource, sys, threading
    import compat

    class Handler(compat.BaseRequestHandler):
        def handle(self):
            self.request.sendall(b"begun")
            self.request.recv(1)
            if threading.active_count() == 2:  # All others have ended.
                self.request.sendall(b"%d" % len(os.listdir("/proc/self/fd")))

    class Server(compat.ThreadingTCPServer):
        event_loop = sys.argv[1]
        daemon_threads = True
        failures = 0

        def get_request(self):
            try:
                return super().get_request()
            except OSError:
                self.failures += 1
                print("failed %d" % self.failures, flush=True)
                raise

    server = Server(("127.0.0.1", 0), Handler)
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (80, most))
    print("Listening on", ":%d" % server.server_address[1], flush=True)
    server.serve_forever(60)
"""


@pytest.mark.skipif(not LINUX, reason="looks into /proc")
def test_nothing_is_lost_each_time_that_descriptors_run_out(loop_name: str, tmp_path: Path) -> None:
    def failures() -> int:
        return process.stdout.count("failed")

    def descriptors() -> int:
        """As many as there are for one request, when it is the only one; or else none."""
        with socket.create_connection(("127.0.0.1", port), LONG) as client:
            assert client.recv(5) == b"begun"
            client.sendall(b"?")
            return int(client.recv(5) or b"0")

    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(AGAIN_AND_AGAIN))
    with PythonProcess(tmp_path, script, loop_name) as process:
        port = process.wait_for_port()
        counts: list[int] = []
        for _ in range(4):
            before = failures()
            with contextlib.ExitStack() as stack:
                while failures() == before:
                    client = stack.enter_context(socket.create_connection(("127.0.0.1", port), LONG))
                    wait_until_blocking(lambda c=client, n=before: has_begun(c) or failures() > n)
            counts.append(wait_until_blocking(descriptors, timeout=LONG))
        # A loop and its watch have five at least; some come and go whenever the loop is entered.
        assert counts[-1] < counts[0] + 8, counts


# --- servers that cannot be waited for ---


class FromQueue(compat.BaseServer):
    """Without any descriptor: the requests are in a queue, and the replies in a list."""

    def __init__(self, handler: Any = None) -> None:
        super().__init__("a queue", handler or self.Handler)
        self.source: queue.Queue[Any] = queue.Queue()
        self.served: list[Any] = []
        self.questions = 0

    class Handler(compat.BaseRequestHandler):
        def handle(self) -> None:
            self.server.served.append(self.request)

    def get_request(self) -> Any:
        self.questions += 1
        try:
            return self.source.get_nowait(), "nobody"
        except queue.Empty:
            raise BlockingIOError("none yet") from None

    def close_request(self, request: Any) -> None:
        pass

    shutdown_request = close_request


class FromFile(FromQueue):
    """With a descriptor that epoll refuses."""

    def __init__(self, handler: Any = None) -> None:
        super().__init__(handler)
        self.file = tempfile.TemporaryFile()  # noqa: SIM115

    def fileno(self) -> int:
        return self.file.fileno()

    def server_close(self) -> None:
        super().server_close()
        self.file.close()


UNWATCHABLE = pytest.mark.parametrize("kind", [FromQueue, FromFile])


@contextlib.contextmanager
def unwatchable(kind: Any, loop_name: str, **attributes: Any) -> Iterator[Any]:
    server = type(kind.__name__, (kind,), {"event_loop": loop_name, **attributes})()
    try:
        yield server
    finally:
        server.server_close()


@UNWATCHABLE
def test_polls_what_it_cannot_wait_for(kind: Any, loop_name: str) -> None:
    with unwatchable(kind, loop_name) as server, serving(server, 5 * MS) as thread:
        for number in range(3):
            server.source.put(number)
            wait_until_blocking(lambda n=number: server.served == [*range(n + 1)])
        assert thread.is_alive()


@UNWATCHABLE
def test_asks_again_at_once_while_there_are_requests(kind: Any, loop_name: str) -> None:
    with unwatchable(kind, loop_name) as server:
        for number in range(20):
            server.source.put(number)
        with serving(server, NEVER) as thread:
            wait_until_blocking(lambda: len(server.served) == 20)
            wait_until_blocked(thread)
            assert server.questions <= 22
            server.source.put("too late for this interval")
        assert server.served == [*range(20)]


@UNWATCHABLE
@WAYS_TO_STOP
def test_polls_no_more_often_than_asked_and_stops_at_once(
    stop: Callable[[Any], None], kind: Any, loop_name: str
) -> None:
    with unwatchable(kind, loop_name) as server:
        thread = InThread("serving", server.serve_forever, NEVER)
        wait_until_blocked(thread)
        assert server.questions <= 2
        InThread("stopping", stop, server).result()
        thread.result()


@UNWATCHABLE
def test_handle_request_polls_until_there_is_one(
    kind: Any, loop_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(turns, "_POLL_INTERVAL", 5 * MS)
    with unwatchable(kind, loop_name) as server:
        thread = InThread("serving", server.handle_request)
        wait_until_blocking(lambda: server.questions >= 3)
        server.source.put("a request")
        server.source.put("another")
        thread.result()
        assert server.served == ["a request"]
        server.handle_request()
        assert server.served == ["a request", "another"]


@UNWATCHABLE
def test_handle_request_with_a_timeout(kind: Any, loop_name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "_POLL_INTERVAL", 5 * MS)
    with unwatchable(kind, loop_name, handle_timeout=lambda self: "none") as server:
        server.timeout = 30 * MS
        started = time.monotonic()
        assert server.handle_request() == "none"
        assert time.monotonic() - started >= 30 * MS
        assert 1 <= server.questions <= 12
        server.source.put("a request")
        assert server.handle_request() is None
        assert server.served == ["a request"]


@UNWATCHABLE
def test_handle_request_with_no_time_at_all(kind: Any, loop_name: str) -> None:
    with unwatchable(kind, loop_name, handle_timeout=lambda self: "none", timeout=0) as server:
        assert server.handle_request() == "none"
        server.source.put("a request")
        assert server.handle_request() is None
        assert server.served == ["a request"]


# --- descriptors that change under the server ---


def cpu_seconds(thread: threading.Thread) -> float:
    """What a thread has used."""
    return time.clock_gettime(time.pthread_getcpuclockid(thread.ident))  # type: ignore[arg-type]


def assert_does_not_spin(thread: threading.Thread, during: float = 300 * MS) -> None:
    before, started = cpu_seconds(thread), time.monotonic()
    stop = threading.Event()
    stop.wait(during)
    # One that spins on a busy machine still gets more than that; one that waits needs next to nothing.
    assert cpu_seconds(thread) - before < (time.monotonic() - started) / 20


@pytest.mark.skipif(not hasattr(time, "pthread_getcpuclockid"), reason="threads have no clocks here")
@pytest.mark.parametrize("shared", [False, True], ids=["alone", "with a duplicate"])
def test_socket_closed_while_serving(shared: bool, loop_name: str) -> None:
    """Also where another process or object has the same socket, so that connections still come."""
    with server_of(compat.TCPServer, loop_name) as server, contextlib.ExitStack() as stack:
        thread = InThread("serving", server.serve_forever, NEVER)
        try:
            wait_until_blocked(thread)
            if shared:
                stack.enter_context(server.socket.dup())
            address = server.socket.getsockname()
            server.socket.close()
            if shared:
                stack.enter_context(socket.create_connection(address, PATIENCE))
            assert_does_not_spin(thread)
        finally:
            InThread("stopping", server.shutdown).result()
        thread.result()


@pytest.mark.skipif(not hasattr(time, "pthread_getcpuclockid"), reason="threads have no clocks here")
def test_descriptor_closed_that_the_server_still_names(loop_name: str) -> None:
    """Unlike a socket's, the number is still given; nothing is behind it."""

    def get_request(server: Any) -> Any:
        return os.read(server.number, 1), "a pipe"

    reading, writing = os.pipe()
    options = {"number": reading, "fileno": lambda self: self.number, "get_request": get_request}
    server = type("FromPipe", (FromQueue,), {"event_loop": loop_name, **options})()
    with serving(server, 50 * MS) as thread:
        os.write(writing, b"1")
        wait_until_blocking(lambda: server.served)
        os.close(reading)
        os.close(writing)
        assert_does_not_spin(thread)


@pytest.mark.skipif(not hasattr(time, "pthread_getcpuclockid"), reason="threads have no clocks here")
def test_socket_closed_by_a_handler(loop_name: str) -> None:
    def on_line(server: Any, handler: Any, line: bytes) -> bytes:
        server.socket.close()
        return b"closed"

    with server_of(compat.TCPServer, loop_name, on_line=on_line) as server, serving(server, NEVER) as thread:
        wait_until_blocked(thread)
        with HeldClient(server) as client:
            client.begun()
            assert client.release() == b"closed"
        assert_does_not_spin(thread)


def listener() -> socket.socket:
    return socket.create_server(("127.0.0.1", 0))


def ask(address: Any) -> bytes:
    """What a server says at once."""
    with socket.create_connection(address, PATIENCE) as client:
        return client.recv(100)


class Replacing(compat.TCPServer):
    """After its first request it goes on with another socket."""

    served = 0
    same_number = False

    class Handler(compat.BaseRequestHandler):
        def handle(self) -> None:
            self.server.served += 1
            self.request.sendall(b"%d" % self.server.served)

    def service_actions(self) -> None:
        if self.served == 1 and self.next is not None:
            following, self.next = self.next, None
            if self.same_number:
                os.dup2(following.fileno(), self.socket.fileno(), inheritable=False)
                following.close()
            else:
                self.socket.close()
                self.socket = following


@pytest.mark.parametrize("same_number", [False, True])
def test_socket_replaced_between_two_requests(same_number: bool, loop_name: str) -> None:
    following = listener()
    address = following.getsockname()
    with server_of(
        Replacing, loop_name, Replacing.Handler, next=following, same_number=same_number
    ) as server:
        with serving(server, NEVER) as thread:
            wait_until_blocked(thread)
            assert ask(server.server_address) == b"1"
            wait_until_blocked(thread)  # It is in the loop, which has to know the new socket.
            assert [ask(address), ask(address)] == [b"2", b"3"]
            wait_until_blocked(thread)
            assert ask(address) == b"4"


@pytest.mark.parametrize("same_number", [False, True])
def test_socket_replaced_by_another_thread(same_number: bool, loop_name: str) -> None:
    """The serving thread looks after each poll interval; from then on it is as prompt as ever."""

    class Counting(Replacing):
        turns = 0

        def service_actions(self) -> None:
            self.turns += 1

    with server_of(Counting, loop_name, Replacing.Handler) as server:
        with serving(server, 5 * MS):
            assert ask(server.server_address) == b"1"
            wait_until_blocking(lambda: server.turns > 1)  # It has waited in vain.
            following = listener()
            address = following.getsockname()
            if same_number:
                os.dup2(following.fileno(), server.socket.fileno(), inheritable=False)
                following.close()
            else:
                server.socket, old = following, server.socket
                old.close()
            before = server.turns
            assert [ask(address), ask(address)] == [b"2", b"3"]
            assert server.turns > before


# --- where an event loop is running already ---


@pytest.mark.allow_blocking("the subject is a call that blocks the loop")
async def test_serve_forever_inside_a_running_loop(loop_name: str) -> None:
    with server_of(compat.TCPServer, loop_name) as server:
        exchange = InThread("client", ask_held, server)
        with pytest.warns(RuntimeWarning, match=r"serve_forever\(\).*await server\.serve_async\(\)") as seen:
            server.serve_forever(1 * MS)
        assert [warning.filename for warning in seen] == [__file__]
        assert exchange.result() == b"done"


def ask_held(server: Any) -> bytes:
    """One whole request, and the end of the server."""
    try:
        with HeldClient(server) as client:
            client.begun()
            return client.release()
    finally:
        set_the_flag(server)


@pytest.mark.allow_blocking("the subject is a call that blocks the loop")
async def test_handle_request_inside_a_running_loop(loop_name: str) -> None:
    with server_of(compat.TCPServer, loop_name, handle_timeout=lambda self: "nothing") as server:
        exchange = InThread("client", ask_held, server)
        for timeout, result in ((None, None), (1 * MS, "nothing")):
            server.timeout = timeout
            with pytest.warns(RuntimeWarning, match=r"handle_request\(\).*await server\.serve_async") as seen:
                assert server.handle_request() == result
            assert [warning.filename for warning in seen] == [__file__]
        assert exchange.result() == b"done"


# --- serve_async() ---


def make_async(server: Any) -> asyncio.Task[None]:
    return asyncio.create_task(server.serve_async(NEVER))


async def exchange(server: Any) -> str:
    """One request, without blocking the loop; returns the name of the thread that has served it."""
    host, port = server.server_address
    async with await clients.Client.connect(TCPAddress(host, port)) as client:
        begun = await client.receive()
        await client.send(b"go\n")
        assert await client.receive_all() == b"done"
    return begun.decode().partition(" ")[2].rstrip()


@contextlib.contextmanager
def async_server(base: Any = compat.TCPServer, **attributes: Any) -> Iterator[Any]:
    """As ``server_of``; what it runs on has nothing to do with the loop of the test."""
    with server_of(base, "auto", **attributes) as server:
        yield server


async def test_serve_async_serves_in_a_thread_and_stops_with_the_task() -> None:
    with async_server() as server:
        for _ in range(3):  # It can be used again.
            task = make_async(server)
            assert await exchange(server) == "ATCPServer.serve_async"
            assert await exchange(server) == "ATCPServer.serve_async"
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await within(task)
            await wait_until(lambda: not any(_is_of_serve_async(thread) for thread in threading.enumerate()))


def _is_of_serve_async(thread: threading.Thread) -> bool:
    return thread.name.endswith(".serve_async")


async def test_serve_async_returns_after_shutdown() -> None:
    with async_server() as server:
        task = make_async(server)
        await exchange(server)
        await asyncio.to_thread(server.shutdown)
        await within(task)
        task = make_async(server)
        await exchange(server)
        set_the_flag(server)
        await within(task)


class CustomError(Exception):
    """Not one that anybody else raises."""


@pytest.mark.parametrize(
    ("error", "raised"),
    [
        (CustomError("from a hook"), CustomError),
        (StopIteration("from a hook"), RuntimeError),  # What any coroutine makes of it.
        (asyncio.CancelledError("from a hook"), asyncio.CancelledError),
    ],
    ids=lambda value: "" if isinstance(value, type) else type(value).__name__,
)
def test_serve_async_raises_what_serve_forever_raises(
    error: BaseException, raised: type[BaseException], loop_name: str
) -> None:
    def service_actions(server: Any) -> None:
        raise error

    def run() -> None:
        with asyncio.Runner(loop_factory=LOOP_FACTORIES[loop_name]) as runner:
            runner.run(server.serve_async(1 * MS))

    with async_server(service_actions=service_actions) as server:
        # In a thread, so that this test can end although serve_async() does not.
        with pytest.raises(raised) as caught:
            InThread("running", run).result()
        assert error in (caught.value, caught.value.__cause__)


async def test_serve_async_on_a_closed_server() -> None:
    with async_server() as server:
        server.server_close()
        with pytest.raises(ValueError, match="Invalid file descriptor"):
            await within(server.serve_async())


async def test_serve_async_names_a_bad_option() -> None:
    with async_server() as server:
        server.request_executor = "pool"
        with pytest.raises(ValueError, match="request_executor='pool'"):
            await within(server.serve_async())


@pytest.mark.parametrize("steps", [0, 1])
async def test_serve_async_cancelled_before_it_has_begun(steps: int) -> None:
    """Before its first step; and when its thread may not have come to ``serve_forever()`` yet."""
    with async_server() as server:
        for _ in range(20 if steps else 1):
            task = make_async(server)
            for _ in range(steps):
                await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await within(task)
        task = make_async(server)
        await exchange(server)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await within(task)


async def test_serve_async_cancelled_when_it_has_ended_by_itself() -> None:
    """The cancellation must not be left over for the next time."""

    class Ending(compat.TCPServer):
        def serve_forever(self, poll_interval: float | None = 0.5) -> None:
            super().serve_forever(poll_interval)
            over.set()
            assert go_on.wait(PATIENCE)

    over, go_on = threading.Event(), threading.Event()
    with async_server(Ending) as server:
        task = make_async(server)
        await exchange(server)
        set_the_flag(server)
        await wait_until(over.is_set)
        task.cancel()
        await asyncio.sleep(0)
        go_on.set()
        with pytest.raises(asyncio.CancelledError):
            await within(task)
        task = make_async(server)
        await exchange(server)
        set_the_flag(server)
        await within(task)


async def test_serve_async_cancelled_again_waits_for_its_request() -> None:
    with async_server() as server:
        task = make_async(server)
        host, port = server.server_address
        async with await clients.Client.connect(TCPAddress(host, port)) as client:
            await client.receive()
            for _ in range(3):
                task.cancel()
                await asyncio.sleep(0)
                await asyncio.sleep(0)
            assert not task.done()
            await client.send(b"go\n")
            assert await client.receive_all() == b"done"
        with pytest.raises(asyncio.CancelledError):
            await within(task)
        assert not server._BaseServer__shutdown_request


async def test_serve_async_beside_other_tasks() -> None:
    with async_server(compat.ThreadingTCPServer, max_threads=4) as one, async_server() as other:
        async with asyncio.TaskGroup() as group:
            group.create_task(one.serve_async(NEVER))
            group.create_task(other.serve_async(NEVER))
            names = await asyncio.gather(*[exchange(each) for each in (one, other, one, other)])
            assert names[1] == names[3] == "ATCPServer.serve_async"
            assert names[0].startswith("AThreadingTCPServer-")
            set_the_flag(one)
            set_the_flag(other)
        await asyncio.to_thread(one.server_close)  # It waits for its threads.


# --- the mix-in and other people's classes ---


class ThirdParty(socketserver.TCPServer):
    """A server that somebody wrote for the standard library."""

    allow_reuse_address = True


class Announcing:
    """A mix-in that somebody wrote for the standard library; it has to stand before the server."""

    def serve_forever(self, poll_interval: float = 0.5) -> None:
        self.announced = True
        super().serve_forever(poll_interval)  # type: ignore[misc]


class ThreadsOfItsOwn(socketserver.ThreadingMixIn):
    daemon_threads = True


COMPOSED = {
    "in front of a plain server": (compat.EventLoopMixIn, socketserver.TCPServer),
    "in front of a threading server": (compat.EventLoopMixIn, socketserver.ThreadingTCPServer),
    "in front of a third party's": (compat.EventLoopMixIn, ThirdParty),
    "in front of http.server's": (compat.EventLoopMixIn, http.server.ThreadingHTTPServer),
    "behind ThreadingMixIn": (socketserver.ThreadingMixIn, compat.EventLoopMixIn, socketserver.TCPServer),
    "behind a third party's": (ThreadsOfItsOwn, compat.EventLoopMixIn, ThirdParty),
    "behind one that serves": (Announcing, compat.EventLoopMixIn, ThirdParty),
    "behind the server itself": (socketserver.TCPServer, compat.EventLoopMixIn),
    "a stdlib mix-in in front of a compat server": (socketserver.ThreadingMixIn, compat.TCPServer),
    "a third party's in front of a compat server": (Announcing, ThreadsOfItsOwn, compat.TCPServer),
}


@pytest.mark.parametrize("bases", COMPOSED.values(), ids=COMPOSED)
def test_composed(bases: tuple[Any, ...], loop_name: str) -> None:
    composed = type("Composed", bases, {})
    with server_of(composed, loop_name) as server:
        with serving(server, NEVER) as thread:
            wait_until_blocked(thread)
            with HeldClient(server) as one:
                threaded = one.begun() != "serving"
                if threaded:
                    with HeldClient(server) as other:
                        other.begun()
                        assert other.release() == b"done"
                assert one.release() == b"done"
            assert threaded == issubclass(composed, socketserver.ThreadingMixIn)
        assert getattr(server, "announced", False) == issubclass(composed, Announcing)
        with HeldClient(server) as client:
            handling = InThread("handling", server.handle_request)
            client.begun()
            assert client.release() == b"done"
            handling.result()


@pytest.mark.parametrize("name", ["serve_forever", "handle_request", "_handle_request_noblock"])
def test_an_order_that_would_hide_a_method_is_an_error(name: str) -> None:
    def method(self: Any, *args: Any) -> Any:
        called.append(name)
        return getattr(super(other, self), name)(*args)

    called: list[str] = []
    other = type("Other", (socketserver.TCPServer,), {name: method})
    with pytest.raises(TypeError, match=rf"Wrong: EventLoopMixIn would hide Other\.{name}\(\).* after Other"):
        type("Wrong", (compat.EventLoopMixIn, other), {})
    type("Mine", (compat.EventLoopMixIn, other), {name: method})  # It is up to the program then.
    right = type("Right", (other, compat.EventLoopMixIn), {})
    with server_of(right, "auto") as server:
        thread = InThread(
            "serving", server.handle_request if name == "handle_request" else server.serve_forever
        )
        with HeldClient(server) as client:
            client.begun()
            client.release()
        InThread("stopping", server.shutdown) if name != "handle_request" else None
        thread.result()
    assert called[0] == name


def test_serving_with_the_mix_in_is_prompt_and_max_threads_holds(loop_name: str) -> None:
    composed = type("Composed", (compat.EventLoopMixIn, socketserver.ThreadingTCPServer), {"max_threads": 1})
    with server_of(composed, loop_name) as server:
        thread = InThread("serving", server.serve_forever, NEVER)
        names = []
        for _ in range(3):
            with HeldClient(server) as client:
                names.append(client.begun())
                client.release()
        assert len(set(names)) == 1
        wait_until_blocked(thread)
        InThread("stopping", server.shutdown).result()
        thread.result()


# --- the listen queue ---


@needs_listen_queue
@pytest.mark.parametrize(
    ("bases", "attributes", "expected"),
    [
        ((compat.TCPServer,), {}, 1024),
        ((compat.ThreadingTCPServer,), {}, 1024),
        ((compat.TCPServer,), {"request_queue_size": 7}, 7),
        ((compat.EventLoopMixIn, socketserver.TCPServer), {}, 1024),
        ((compat.EventLoopMixIn, ThirdParty), {}, 1024),
        ((compat.EventLoopMixIn, http.server.ThreadingHTTPServer), {}, 1024),
        ((compat.EventLoopMixIn, socketserver.TCPServer), {"request_queue_size": 7}, 7),
        ((compat.EventLoopMixIn, socketserver.TCPServer), {"request_queue_size": 5}, 5),
        (
            (compat.EventLoopMixIn, type("Short", (socketserver.TCPServer,), {"request_queue_size": 7})),
            {},
            7,
        ),
    ],
)
def test_listen_queue(bases: tuple[Any, ...], attributes: dict[str, Any], expected: int) -> None:
    with server_of(type("Composed", bases, attributes), "auto") as server:
        limit = int(Path("/proc/sys/net/core/somaxconn").read_text())
        assert queued(server) == (0, min(expected, limit))


@needs_listen_queue
@pytest.mark.parametrize("base", [compat.TCPServer, socketserver.TCPServer])
def test_listen_queue_set_on_the_instance(base: Any) -> None:
    class Server(base if base is compat.TCPServer else type("Mixed", (compat.EventLoopMixIn, base), {})):  # type: ignore[misc]
        def __init__(self) -> None:
            self.request_queue_size = 5
            super().__init__(LOCAL, compat.BaseRequestHandler)

    with Server() as server:
        assert queued(server)[1] == 5


@pytest.mark.parametrize("name", ["UDPServer", "UnixStreamServer", "UnixDatagramServer"])
def test_the_mix_in_in_front_of_other_kinds(name: str, loop_name: str) -> None:
    composed = type(
        "Composed", (compat.EventLoopMixIn, getattr(socketserver, name)), {"event_loop": loop_name}
    )
    with tempfile.TemporaryDirectory(prefix="compat") as directory:
        address = LOCAL if name == "UDPServer" else f"{directory}/socket"
        with composed(address, compat.BaseRequestHandler) as server:
            server.timeout = 1 * MS
            server.handle_request()


@pytest.mark.parametrize("base", [compat.TCPServer, compat.ThreadingUDPServer])
def test_a_built_in_method_in_the_place_of_a_hook(base: Any, loop_name: str) -> None:
    """Some have no module to their name."""
    requests: queue.SimpleQueue[Any] = queue.SimpleQueue()
    with server_of(base, loop_name) as server:
        server.process_request = requests.put  # Called with an address, which it takes for "block".
        server.max_threads = "of the program's own"
        for serve in (server.handle_request, server.serve_forever):
            thread = InThread("serving", serve)
            with Client(server, b"x"):
                request = requests.get(timeout=PATIENCE)
            if serve == server.serve_forever:
                InThread("stopping", server.shutdown).result()
            thread.result()
            if base is compat.TCPServer:
                request.close()


# --- async handlers ---


class Failing(compat.AsyncStreamRequestHandler):
    """Fails when the client has ended, or its loop."""

    async def handle(self) -> None:
        await self.stream.send(b"begun")
        with contextlib.suppress(EndOfStream):
            await self.stream.receive()
        raise ValueError("from a handler")


def raising_again(server: Any, request: Any, client_address: Any) -> None:
    raise LookupError("from handle_error")


@pytest.mark.parametrize("base", [compat.TCPServer, compat.ThreadingTCPServer])
def test_an_error_in_handle_error_of_an_async_handler(
    base: Any, loop_name: str, loop_errors: list[str]
) -> None:
    """As in a thread of its own: it is reported, and the server goes on; ``server_close()``, too."""
    with server_of(base, loop_name, Failing, handle_error=raising_again) as server:
        with serving(server, NEVER):
            for number in (1, 2):
                with Client(server) as client:
                    assert client.receive(5) == b"begun"
                    client.sock.shutdown(socket.SHUT_WR)
                    assert client.receive() == b""
                wait_until_blocking(lambda n=number: len(loop_errors) == n)
            left = [Client(server), Client(server)]
            assert [client.receive(5) for client in left] == [b"begun", b"begun"]
        for client in left:
            client.sock.shutdown(socket.SHUT_WR)
        server.server_close()
        for client in left:
            assert client.reply() == b""
    assert len(loop_errors) == 4
    assert all("from handle_error" in error for error in loop_errors)
    loop_errors.clear()


# --- signals while a loop is being made ---


class InterruptedHereError(Exception):
    """What a signal handler raises."""


MAIN_THREAD_SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGALRM, signal.SIGUSR1]


@contextlib.contextmanager
def raising_handlers(numbers: list[signal.Signals], seen: list[int]) -> Iterator[None]:
    def on_signal(number: int, frame: object) -> None:
        seen.append(number)
        raise InterruptedHereError(number)

    with contextlib.ExitStack() as stack:
        for number in numbers:
            stack.enter_context(signal_handler(number, on_signal))
        yield


@pytest.mark.parametrize("number", MAIN_THREAD_SIGNALS)
def test_a_signal_while_the_loop_is_made(number: signal.Signals, loop_name: LoopName) -> None:
    """Its handler is called when there is a whole one; a half-made loop would hold descriptors."""
    seen: list[int] = []
    steps: list[object] = []
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, ())

    def make_loop() -> asyncio.AbstractEventLoop:
        signal.raise_signal(number)
        steps.append(list(seen))
        return LOOP_FACTORIES[loop_name]()

    waiter = LoopWaiter(make_loop)
    with raising_handlers([number], seen):
        handler = signal.getsignal(number)
        with pytest.raises(InterruptedHereError):
            waiter.prepare()
        assert (steps, seen) == ([[]], [number])
        assert signal.getsignal(number) is handler
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == mask
    assert waiter._loop is not None
    waiter.close()


def test_several_signals_while_the_loop_is_made(loop_name: LoopName) -> None:
    """Each handler is called once, and is in its place again, although the others raise."""
    seen: list[int] = []

    def make_loop() -> asyncio.AbstractEventLoop:
        for number in MAIN_THREAD_SIGNALS:
            signal.raise_signal(number)
        return LOOP_FACTORIES[loop_name]()

    waiter = LoopWaiter(make_loop)
    with raising_handlers(MAIN_THREAD_SIGNALS, seen):
        handlers = [signal.getsignal(number) for number in MAIN_THREAD_SIGNALS]
        with pytest.raises(InterruptedHereError):
            waiter.prepare()
        assert sorted(seen) == sorted(MAIN_THREAD_SIGNALS)
        assert [signal.getsignal(number) for number in MAIN_THREAD_SIGNALS] == handlers
    waiter.close()


# --- what a server holds ---


@pytest.mark.parametrize("closed", [True, False], ids=["closed", "forgotten"])
@pytest.mark.parametrize("base", [compat.TCPServer, compat.ThreadingTCPServer])
def test_nothing_is_held_when_the_server_has_gone(closed: bool, base: Any, loop_name: str) -> None:
    before = open_descriptors(), set(threading.enumerate())
    server = type("Server", (base,), {"event_loop": loop_name, "timeout": 1 * MS})(
        LOCAL, compat.BaseRequestHandler
    )
    if base is compat.ThreadingTCPServer:
        server.max_threads = 2
        with socket.create_connection(server.server_address, PATIENCE) as client:
            server.handle_request()
            assert client.recv(1) == b""
    server.handle_request()
    if LINUX:
        assert len(open_descriptors() - before[0]) > 1  # Its loop is kept for the next time.
    if closed:
        server.server_close()
    else:
        server.socket.close()
        del server
        gc.collect()
    wait_until_blocking(lambda: (open_descriptors(), set(threading.enumerate())) == before)


def test_nothing_is_held_between_calls_of_serve_forever(loop_name: str) -> None:
    with server_of(compat.TCPServer, loop_name) as server:
        before = open_descriptors()
        for _ in range(2):
            with serving(server, NEVER) as thread:
                wait_until_blocked(thread)
            assert open_descriptors() == before


def test_a_closed_server_can_be_opened_again(loop_name: str) -> None:
    with server_of(compat.TCPServer, loop_name) as server:
        for _ in range(2):
            server.timeout = 1 * MS
            server.handle_request()
            server.server_close()
            with pytest.raises(ValueError, match="Invalid file descriptor"):
                server.handle_request()
            server.socket = listener()
            with serving(server, NEVER), HeldClient(server) as client:
                client.begun()
                assert client.release() == b"done"


# --- forks ---


FORKING = """
    import os, signal, sys
    import compat

    loop_name, how = sys.argv[1:]

    class Handler(compat.StreamRequestHandler):
        def handle(self):
            line = self.rfile.readline().strip()
            self.wfile.write(b"%d\\n" % os.getpid())  # Before the child, which ends the connection, too.
            if line == b"fork":
                pid = os.fork()
                if pid == 0:
                    signal.alarm(60)  # It must not outlive a test that fails.
                if pid == 0 and how == "sys.exit":
                    sys.exit(3)
                if pid == 0 and how == "os._exit":
                    os._exit(3)
                if pid and how == "child serves on":
                    self.server._BaseServer__shutdown_request = True
                    self.server.child = pid
                elif pid:
                    print("status", os.waitpid(pid, 0)[1] >> 8, flush=True)

    class Server(compat.TCPServer):
        event_loop = loop_name
        child = None

    def stop(*_):
        server._BaseServer__shutdown_request = True

    signal.signal(signal.SIGTERM, stop)
    with Server(("127.0.0.1", 0), Handler) as server:
        print("Listening on", ":%d" % server.server_address[1], flush=True)
        server.serve_forever(600)
        print("ended", os.getpid(), server.child, flush=True)
        if server.child is not None:
            print("child ended:", os.waitpid(server.child, 0)[1], flush=True)
"""


@pytest.fixture
def forking(request: pytest.FixtureRequest, loop_name: str, tmp_path: Path) -> Iterator[Any]:
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(FORKING))
    with PythonProcess(tmp_path, script, loop_name, request.param) as process:
        process.port = process.wait_for_port()
        yield process


def ask_process(port: int, line: bytes) -> int:
    """Which process has served it."""
    with socket.create_connection(("127.0.0.1", port), LONG) as client:
        client.sendall(line + b"\n")
        return int(client.makefile("rb").readline())


@pytest.mark.skipif(not LINUX, reason="looks into /proc")
@needs_fork
@pytest.mark.parametrize("forking", ["sys.exit", "os._exit"], indirect=True)
def test_a_fork_in_a_handler_leaves_the_parents_loop_alone(forking: Any) -> None:
    for line in (b"fork", b"plain", b"fork", b"plain"):
        wait_until_asleep(forking.pid)
        assert ask_process(forking.port, line) == forking.pid
    wait_until_asleep(forking.pid)
    assert forking.terminate() == 0
    assert forking.stdout.count("status 3") == 2
    assert forking.stdout.count("ended") == 1
    assert forking.stderr == ""


@pytest.mark.skipif(not LINUX, reason="looks into /proc")
@needs_fork
@pytest.mark.parametrize("forking", ["child serves on"], indirect=True)
def test_a_forked_child_may_serve_on(forking: Any) -> None:
    wait_until_asleep(forking.pid)
    assert ask_process(forking.port, b"fork") == forking.pid
    forking.wait_for(f"ended {forking.pid}")
    found = re.search(rf"ended {forking.pid} (\d+)\n", forking.stdout)
    assert found is not None
    child = int(found[1])
    for _ in range(2):
        wait_until_asleep(child)
        assert ask_process(forking.port, b"plain") == child
    wait_until_asleep(child)
    os.kill(child, signal.SIGTERM)
    assert forking.wait() == 0
    assert f"ended {child}" in forking.stdout
    assert "child ended: 0" in forking.stdout
    assert forking.stderr == ""
