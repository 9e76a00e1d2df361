"""The README can be believed: its servers are tested in ``test_docs``, its commands and its shape here."""

from __future__ import annotations

import re
import shlex
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

from tests.examples.programs import Program, program
from tests.test_docs import REPOSITORY, blocks_of, is_listening, on_unix_sockets
from tests.waiting import wait_until_blocking

README = REPOSITORY / "README.md"
TEXT = README.read_text()
SERVERS = [block for block in blocks_of(README) if block.kind == "python server"]
COMMANDS = [line.split("#")[0].strip() for line in re.findall(r"^    (\S.*)$", TEXT, re.MULTILINE)]

PEERS = ["asyncio streams", "socketserver", "gevent", "Twisted", "EasyNetwork", "uvicorn"]


def test_it_begins_with_two_short_servers_and_two_commands() -> None:
    beginning = TEXT.splitlines()[:40]
    assert len(SERVERS) == 2
    for block in SERVERS:
        assert block.text.count("\n") <= 12
        assert block.line + block.text.count("\n") <= len(beginning)
    assert "asyncserver import" in SERVERS[0].text
    assert "compat as socketserver" in SERVERS[1].text
    assert all(
        any(line.startswith(f"    {command} ") for line in beginning)
        for command in ("make serve", "make test")
    )


def test_it_compares_with_every_peer_and_says_for_whom_it_is_not() -> None:
    rows = re.split(r"^## Beside others$", TEXT, flags=re.MULTILINE)[1].split("\n## ")[0]
    compared = re.findall(r"^\| `?([\w ]+?)`? \| (.+?) \| (.+?) \|$", rows, re.MULTILINE)
    assert [name for name, *_ in compared] == PEERS
    assert "## When not to use it" in TEXT


def test_its_pictures_are_there() -> None:
    named = re.findall(r'(?:src|srcset)="([^"]+)"', TEXT)
    assert {Path(name).stem.rpartition("-")[2] for name in named} == {"light", "dark"}
    assert all((REPOSITORY / name).is_file() for name in named)


# Its commands, each by the same means as a reader, but on a Unix socket, which is free.


@contextmanager
def serves(*arguments: str, at: Path, cwd: Path = REPOSITORY) -> Iterator[Program]:
    with program(*arguments, cwd=cwd) as running:
        wait_until_blocking(partial(is_listening, at, running), what=lambda: running.printed)
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(10)
            client.connect(str(at))
            client.sendall(b"hello\n")
            assert client.recv(100) in (b"hello\n", b"HELLO\n")
        yield running


def python_arguments(command: str, address: str) -> list[str]:
    """What stands behind ``python`` in the command, with another address."""
    interpreter, *arguments = shlex.split(command.replace("tcp://127.0.0.1:9999", address))
    assert "python" in interpreter
    return arguments


def make(*arguments: str) -> str:
    """The last command that make would run."""
    done = subprocess.run(
        ["make", "--dry-run", "--no-print-directory", *arguments],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip().splitlines()[-1].lstrip("@")


def test_make_serve_serves(tmp_path: Path) -> None:
    assert "make serve" in COMMANDS
    command = make("serve", "ADDRESS=tcp://127.0.0.1:9999")
    path = tmp_path / "it.sock"
    with serves(*python_arguments(command, f"unix:{path}"), at=path) as running:
        assert running.stop() == -signal.SIGTERM


def test_the_command_line_serves(tmp_path: Path) -> None:
    (command,) = [command for command in COMMANDS if "asyncserver serve" in command]
    path = tmp_path / "it.sock"
    with serves(*python_arguments(command, f"unix:{path}"), at=path) as running:
        assert running.stop() == -signal.SIGTERM


def test_a_program_for_socketserver_runs_unchanged(tmp_path: Path) -> None:
    assert "python -m compat prog.py" in COMMANDS
    original = SERVERS[1].text.replace("import compat as socketserver", "import socketserver")
    (tmp_path / "prog.py").write_text(on_unix_sockets(original))
    path = tmp_path / "9999.sock"
    with serves("-m", "compat", "prog.py", at=path, cwd=tmp_path) as running:
        assert running.stop() == -signal.SIGTERM


@pytest.mark.parametrize(
    ("target", "command"),
    [("test", "-m pytest"), ("docs", "docs/_build/html"), ("bench", "benchmarks/run.py")],
)
def test_make_targets_do_what_they_are_for(target: str, command: str) -> None:
    assert any(each.startswith(f"make {target}") for each in COMMANDS)
    assert command in make(target)


def test_make_lint_runs_every_checker() -> None:
    assert "make lint" in COMMANDS
    dry = subprocess.run(
        ["make", "--dry-run", "lint"], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    for checker in "ruff check", "ruff format", "/mypy", "/pyright", "--verifytypes":
        assert checker in dry.stdout
