"""A signal handler in the midst of handing a request over: whatever it does, the server can be closed."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.processes import run_python

INTERRUPTED = """
import faulthandler, signal, socket, sys
import compat

class Handler(compat.BaseRequestHandler):
    def handle(self):
        pass

class Server(compat.ThreadingTCPServer):
    max_threads = 1

    def handle_error(self, request, client_address):
        pass

def interrupted(server, request, point):
    # Whether the signal has come, at that point of what the server does with the request.
    left = point

    def on_event(frame, event, argument):
        nonlocal left
        if event in ("call", "c_return"):
            left -= 1
            if left == 0:
                sys.setprofile(None)
                signal.raise_signal(signal.SIGINT)

    sys.setprofile(on_event)
    try:
        server.process_request(request, ("127.0.0.1", 1))
    except (KeyboardInterrupt, RuntimeError):
        pass
    finally:
        sys.setprofile(None)
    return left <= 0

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
        came = interrupted(server, near, point)
        server.server_close()
    if not came:
        break
print("all points tried" if point > 10 else point)
"""


@pytest.mark.parametrize("what", ["raise", "close"])
def test_a_server_is_closed_although_a_signal_came(what: str, tmp_path: Path) -> None:
    status, output, errors = run_python(tmp_path, "-c", INTERRUPTED, what)
    assert (output, errors, status) == ("all points tried\n", "", 0)
