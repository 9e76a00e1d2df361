"""A signal handler in the midst of handing a request over: whatever it does, the server can be closed."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.processes import run_python

INTERRUPTED = """
import faulthandler, functools, signal, socket, sys
import compat
from tests.compat.interrupting import interrupt

class Handler(compat.BaseRequestHandler):
    def handle(self):
        pass

class Server(compat.ThreadingTCPServer):
    max_threads = 1

    def handle_error(self, request, client_address):
        pass

def on_signal(number, frame):
    if sys.argv[1] == "close":
        server.server_close()
    else:
        raise KeyboardInterrupt

signal.signal(signal.SIGINT, on_signal)
faulthandler.dump_traceback_later(60, exit=True)  # Where it hangs.
point = 0
while True:
    point += 1
    server = Server(("127.0.0.1", 0), Handler)
    near, far = socket.socketpair()
    with near, far:
        call = functools.partial(server.process_request, near, ("127.0.0.1", 1))
        place, _ = interrupt(call, point, catch=(KeyboardInterrupt, RuntimeError))
        server.server_close()
    if place is None:
        break
print("all points tried" if point > 10 else point)
"""


@pytest.mark.parametrize("what", ["raise", "close"])
def test_a_server_is_closed_although_a_signal_came(what: str, tmp_path: Path) -> None:
    status, output, errors = run_python(tmp_path, "-c", INTERRUPTED, what)
    assert (output, errors, status) == ("all points tried\n", "", 0)
