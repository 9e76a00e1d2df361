"""Combinations that are easy to overlook: half of a pair, a process within a process, a name nobody reads."""

from __future__ import annotations

import socketserver
from pathlib import Path

import pytest

import compat
from tests.compat.held import HeldClient, server_of
from tests.compat.support import LINUX, InThread, blocks
from tests.processes import run_python

# --- the mix-in of this package in front of a server of the standard library ---


@pytest.mark.parametrize("base", [socketserver.TCPServer, compat.TCPServer])
def test_server_close_waits_for_the_threads_of_the_mix_in(base: type, loop_name: str) -> None:
    """A module that was there before ``install()`` has such classes: ``http.server``, for one."""
    mixed = type("Mixed", (compat.ThreadingMixIn, base), {})
    with server_of(mixed, loop_name, max_threads=2) as server, HeldClient(server) as client:
        server.handle_request()
        client.begun()
        closing = InThread("closing", server.server_close)
        assert blocks(closing)
        client.release()
        closing.result()


# --- processes that a program under `python -m compat` starts ---

OUTER = """
import subprocess, sys
raise SystemExit(subprocess.call([sys.executable, *sys.argv[1:]]))
"""

SHOW = """
import socketserver, sys
mro = [f"{each.__module__}.{each.__name__}" for each in socketserver.TCPServer.__mro__]
sys.stdout.write("replaced" if any(each.startswith("compat.") for each in mro) else "original")
"""

USE = """
import sys
import compat
import socketserver
assert issubclass(compat.TCPServer, compat.EventLoopMixIn)
sys.stdout.write("replaced" if socketserver.TCPServer is compat.TCPServer else "original")
"""


@pytest.mark.parametrize(
    ("outer", "inner", "expected"),
    [
        ([], ["-c", SHOW], "replaced"),
        ([], ["-c", USE], "replaced"),
        ([], ["-m", "compat", "-c", SHOW], "replaced"),
        ([], ["-m", "compat", "--no-children", "-c", SHOW], "replaced"),
        (["--no-children"], ["-c", SHOW], "original"),
        ([], ["-m", "compat", "--no-children", "-c", OUTER, "-c", SHOW], "original"),
    ],
    ids=["import socketserver", "import compat", "-m compat", "--no-children", "none", "none of its own"],
)
def test_a_child_is_as_its_parent_has_it(
    outer: list[str], inner: list[str], expected: str, tmp_path: Path
) -> None:
    status, stdout, stderr = run_python(tmp_path, "-m", "compat", *outer, "-c", OUTER, *inner)
    assert (status, stdout) == (0, expected), stderr


EXECUTOR = """
import os, sys
from compat.defaults import DEFAULTS
sys.stdout.write(f"{DEFAULTS.executor}, {os.environ['ASYNCSERVER_COMPAT_EXECUTOR']}")
"""


@pytest.mark.parametrize(
    ("options", "expected"),
    [([], "pool:4, pool:4"), (["--executor", "threads"], "threads, threads")],
    ids=["inherited", "its own"],
)
def test_options_hold_in_a_process_and_in_its_children(
    options: list[str], expected: str, tmp_path: Path
) -> None:
    inner = ["-m", "compat", *options, "-c", EXECUTOR]
    status, stdout, stderr = run_python(tmp_path, "-m", "compat", "--executor", "pool:4", "-c", OUTER, *inner)
    assert (status, stdout) == (0, expected), stderr


# --- a process that has no descriptor left before its server has waited for the first time ---

FULL = """
import compat
from asyncserver.testing import exhausted_descriptors

class Server(compat.TCPServer):
    timeout = 0.05

    def handle_timeout(self):
        return "gave up"

server = Server(("127.0.0.1", 0), None)
with exhausted_descriptors():
    answer = server.handle_request()
server.server_close()
print(answer)
"""


@pytest.mark.skipif(not LINUX, reason="the limit is set as Linux has it")
def test_loop_that_was_not_chosen_by_name(tmp_path: Path) -> None:
    """With ``event_loop`` unset nothing has asked for uvloop yet, and to import it opens files."""
    status, stdout, stderr = run_python(tmp_path, "-c", FULL)
    assert (status, stdout) == (0, "gave up\n"), stderr


# --- names ---


@pytest.mark.filterwarnings("ignore:imported before compat.install:RuntimeWarning")
def test_the_version_of_the_module_is_there() -> None:
    expected = socketserver.__version__  # type: ignore[attr-defined]
    assert compat.__version__ == expected  # type: ignore[attr-defined]
    with compat.installed() as module:
        assert module.__version__ == expected
