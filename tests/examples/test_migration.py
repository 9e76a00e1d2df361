"""The six programs of the migration guide: one service, from the standard library to a native server."""

from __future__ import annotations

import re
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.examples.programs import EXAMPLES, Program, program, tool
from tests.waiting import PATIENCE

STEPS = sorted(path.stem for path in EXAMPLES.glob("migrate_*.py"))

WAYS = [*((step,) for step in STEPS), ("migrate_1_stdlib", "-m", "compat")]
"""Each program, and how it is started; the first one also with ``socketserver`` replaced for it."""

WITH_STATUS = "migrate_4_legacy"

CONVERSATION = b"set colour blue\r\nget colour\nget shape\nset shape\n\n\xff\nset shape round\nget shape"

REPLIES = b"""\
ok
blue
no such name
commands: set NAME VALUE, get NAME
commands: set NAME VALUE, get NAME
commands: set NAME VALUE, get NAME
ok
round
"""


@contextmanager
def started(step: str, *how: str, cwd: Path) -> Iterator[tuple[Program, int]]:
    arguments = ["0", f"unix:{cwd / 'status.sock'}"] if step == WITH_STATUS else ["0"]
    with program(*how, str(EXAMPLES / f"{step}.py"), *arguments, cwd=cwd) as running:
        port = int(running.read_until(r"listening on port (\d+)")[1])
        yield running, port
        assert running.stop() == -signal.SIGTERM
        assert running.process.stdout is not None
        assert running.process.stdout.read() == ""  # No traceback.


def test_there_are_six() -> None:
    assert [step.split("_")[1] for step in STEPS] == ["1", "2", "3", "4", "5", "6"]


@pytest.mark.parametrize("way", WAYS, ids=" ".join)
def test_every_step_gives_the_same_replies(way: tuple[str, ...], tmp_path: Path) -> None:
    with started(*way, cwd=tmp_path) as (_, port):
        assert tool("nc", "-N", "127.0.0.1", str(port), send=CONVERSATION).encode() == REPLIES


@pytest.mark.parametrize("step", STEPS)
def test_clients_share_the_store_and_do_not_wait_for_each_other(step: str, tmp_path: Path) -> None:
    with started(step, cwd=tmp_path) as (_, port):
        first, second = (socket.create_connection(("127.0.0.1", port), PATIENCE) for _ in range(2))
        with first, second, first.makefile("rb") as to_first, second.makefile("rb") as to_second:
            second.sendall(b"set name value\n")
            assert to_second.readline() == b"ok\n"
            first.sendall(b"get name\n")
            assert to_first.readline() == b"value\n"


def test_the_native_server_has_an_async_handler_beside_the_old_one(tmp_path: Path) -> None:
    with started(WITH_STATUS, cwd=tmp_path) as (_, port):
        tool("nc", "-N", "127.0.0.1", str(port), send=b"set name value\n")
        status = tool("nc", "-NU", str(tmp_path / "status.sock"))
        assert re.fullmatch(r"\d connections, 1 values\n", status)


@pytest.mark.parametrize(
    ("before", "after", "changed"),
    [
        (STEPS[0], STEPS[1], {"-import socketserver", "+import compat as socketserver"}),
        (STEPS[1], STEPS[2], {"+    max_threads = 64"}),
    ],
)
def test_a_step_is_as_small_as_the_guide_says(before: str, after: str, changed: set[str]) -> None:
    old, new = (set(code_lines(step)) for step in (before, after))
    assert {f"-{line}" for line in old - new} | {f"+{line}" for line in new - old} == changed


def code_lines(step: str) -> list[str]:
    """Without the docstring at the beginning."""
    return (EXAMPLES / f"{step}.py").read_text().split('"""', 2)[2].splitlines()
