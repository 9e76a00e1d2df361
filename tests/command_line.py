"""The command ``asyncserver`` in tests: in the process of the test, where it fails before it serves."""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeAlias

import pytest

from asyncserver import cli_commands
from asyncserver.cli_process import Plan

__all__ = ["InProcess", "commands_in_process", "wrong_usage"]

InProcess: TypeAlias = Callable[..., tuple[int, str, str]]
"""Takes arguments, and variables by keyword; returns the status, and what went to stdout and stderr."""


@contextmanager
def commands_in_process(
    directory: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Generator[InProcess, None, None]:
    """Gives what runs a command in ``directory``, forty times as fast as a process of its own."""

    def run(*arguments: str, **environment: str) -> tuple[int, str, str]:
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        status = cli_commands.run_command(arguments)
        stdout, stderr = capfd.readouterr()
        return status, stdout, stderr

    before = set(sys.modules)
    monkeypatch.chdir(directory)
    monkeypatch.setattr(sys, "path", sys.path.copy())
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.setattr(cli_commands, "end_on_stop_signals", lambda: None)
    monkeypatch.setattr(cli_commands, "run_plan", _would_have_served)
    yield run
    for name in set(sys.modules) - before:
        del sys.modules[name]


def _would_have_served(plan: Plan) -> int:
    pytest.fail(f"it would have served {plan.servers}")


def wrong_usage(in_process: InProcess, *arguments: str, **environment: str) -> str:
    """What ``asyncserver serve`` says in its one line about arguments that are wrong."""
    status, stdout, stderr = in_process("serve", *arguments, **environment)
    assert (status, stdout) == (2, "")
    message, second = stderr.splitlines()
    assert second == "Try 'asyncserver serve --help'."
    assert message.startswith("asyncserver: ")
    return message.removeprefix("asyncserver: ")
