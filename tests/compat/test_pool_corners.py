"""What may happen to a pool in the midst of things: signals at every point, and forks in its threads."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.compat.held import needs_fork
from tests.processes import run_python

INTERRUPTED = """
import functools, signal, sys, threading, time
from compat import ThreadPool, pool as pool_module
from tests.compat.interrupting import interrupt

class Job:
    daemon = False

    def __init__(self):
        self.begun = threading.Event()
        self.go_on = threading.Event()
        self.times = 0

    def run(self):
        self.times += 1
        self.begun.set()
        self.go_on.wait()

    def fail(self, error):
        self.times += 1

def finished(job):
    job.go_on.set()
    return job

def start(pool, job):
    pool.start(job)

def put_off(pool, job):
    if pool.put_off(job):
        try:
            pool.settle()
        finally:
            pool.begin_all()  # As servers do when they are interrupted.

def new_thread():
    return ThreadPool(1), None

def idle_thread():
    pool = ThreadPool(1)
    pool.start(finished(Job()))
    wait_until("the first job ends", lambda: "0 of 1" in repr(pool))
    return pool, None

def busy_thread():
    pool, job = ThreadPool(1), Job()
    pool.start(job)
    job.begun.wait()
    return pool, job

def wait_until(what, condition):
    end = time.monotonic() + 10
    while not condition():
        if time.monotonic() > end:
            sys.exit(f"{tried}, {place}: never: {what}")
        time.sleep(0.0001)

def on_signal(number, frame):
    if sys.argv[1] == "close":
        pool.close()
    else:
        raise KeyboardInterrupt

signal.signal(signal.SIGINT, on_signal)
points, tried, place = 0, "nothing", "before"
for set_up in (new_thread, idle_thread, busy_thread):
    for use in (start, put_off):
        point = 0
        while place is not None:
            point += 1
            pool, first = set_up()
            job = finished(Job())
            tried = f"{set_up.__name__}, {use.__name__}"
            # Thread.start() makes the one exception the other at some points.
            catch = KeyboardInterrupt, RuntimeError
            place, error = interrupt(functools.partial(use, pool, job), point, catch=catch)
            if first is not None:
                first.go_on.set()
            wait_until("the process may end", lambda: not pool_module._awaited)
            wait_until("all threads are free", lambda: "0 of 1" in repr(pool) and pool.has_room())
            if job.times > 1 or (job.times == 0 and error is None):
                sys.exit(f"{tried}, {place}: the job was run {job.times} times, with {error!r}")
            another = finished(Job())
            pool.start(another)
            wait_until("another job", another.begun.is_set)
            wait_until("it ends", lambda: "0 of 1" in repr(pool))
            pool.close()
        points, place = points + point, "before"
print("all points tried" if points > 100 else points)
"""


@pytest.mark.parametrize("what", ["raise", "close"])
def test_a_signal_handler_at_every_point(what: str, tmp_path: Path) -> None:
    """It raises, or closes the pool: no lock stays locked, no job is lost, and threads are counted right."""
    status, output, errors = run_python(tmp_path, "-c", INTERRUPTED, what)
    assert (output, errors, status) == ("all points tried\n", "", 0)


FORKING = """
import os, select, signal, socket, sys, warnings
import compat

warnings.simplefilter("ignore", DeprecationWarning)  # There are threads: it is the subject.
reader, writer = os.pipe()
pids = []

class Handler(compat.BaseRequestHandler):
    def handle(self):
        pid = os.fork()
        if pid == 0:
            sys.exit()
        pids.append(pid)

class Server(compat.ThreadingTCPServer):
    max_threads = 2

with Server(("127.0.0.1", 0), Handler) as server:
    with socket.create_connection(server.server_address):
        server.handle_request()
os.close(writer)
has_ended, _, _ = select.select([reader], [], [], 20)
if not has_ended:
    os.kill(pids[0], signal.SIGKILL)
print("status", os.waitpid(pids[0], 0)[1])
"""


@needs_fork
def test_a_child_that_a_handler_forks_ends_with_it(tmp_path: Path) -> None:
    """As it does in a thread of its own; it is not one more idle thread, with all the server's sockets."""
    assert run_python(tmp_path, "-c", FORKING) == (0, "status 0\n", "")
