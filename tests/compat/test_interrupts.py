"""Ctrl-C ends ``serve_forever()`` with KeyboardInterrupt, at whatever point between two requests it comes.

A signal handler is run between any two instructions of the main thread. Here it comes at the beginning of
each function, in turn, that is called while a server waits: those of the event loop, too.
"""

from __future__ import annotations

from pathlib import Path

from asyncserver import LoopName
from tests.processes import run_python

PROGRAM = """
import functools, signal, sys
import compat as socketserver
from tests.compat.interrupting import interrupt

TURNS = 3

class Server(socketserver.TCPServer):
    event_loop = sys.argv[1]

    def service_actions(self):
        self.turns += 1
        if self.turns >= TURNS:
            self._BaseServer__shutdown_request = True

def serve(server, point=None):
    # Returns the function that was interrupted, and what came of it.
    server.turns = 0
    call = functools.partial(server.serve_forever, 0.001)
    return interrupt(call, point, events=["call"], when=lambda: 0 < server.turns < TURNS)

signal.signal(signal.SIGINT, signal.default_int_handler)  # It is ignored in the background of a shell.
point = 0
while True:
    point += 1
    with Server(("localhost", 0), socketserver.BaseRequestHandler) as server:
        place, outcome = serve(server, point)
        if place is None:
            break
        # An interpreter that is inside __del__ or a weak reference's callback can but report it.
        if outcome is not None and not isinstance(outcome, KeyboardInterrupt):
            print(f"{place}: {outcome!r}")
        if signal.set_wakeup_fd(-1) != -1:
            print(f"{place}: the wakeup descriptor is left behind")
        if serve(server) != (None, None) or server.turns != TURNS:
            print(f"{place}: the server cannot be used again")
print("all points tried" if point > 10 * TURNS else point)
"""


def test_interrupted_at_every_point(loop_name: LoopName, tmp_path: Path) -> None:
    status, output, _ = run_python(tmp_path, "-c", PROGRAM, loop_name)
    assert (output, status) == ("all points tried\n", 0)
