"""Terminals as pages show them, played again: commands are run, lines are typed, what is seen is compared.

In a fenced block of the kind ``console`` stands after ``$`` a command; a line that ends with ``⏎`` is typed;
``^C`` is Ctrl-C; ``...`` is what the page leaves out; everything else is seen. A block that does not begin
with a command goes on in the server's terminal.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from collections import deque
from collections.abc import Mapping
from pathlib import Path

from tests.waiting import PATIENCE, POLL

__all__ = ["Terminal", "fenced", "indented", "play", "rewritten"]

COMMAND, ENTER, INTERRUPT, LEFT_OUT = "$ ", "⏎", "^C", "..."

VARIES = {
    r"(127\.0\.0\.1(?::|', ))\d+": "PORT",
    r"(connection )\d+": "NUMBER",
    r"()[\d.]+(?= s\b)": "SECONDS",
    r"(passed in )[\d.]+(?=s\b)": "SECONDS",
    # How much of it had come by then.
    r"((?:protocol_error|handshake_failed); )\d+": "SOME",
    # As OpenSSL 3.2 and later write it.
    r"(CN) = ": "=",
}
"""What is different each time, or with each version of a tool, by what it is compared as."""


def fenced(page: Path, kind: str) -> list[str]:
    """The page's fenced blocks of this kind."""
    found: list[str] = re.findall(
        rf"^```{kind}\n(.*?)^```$", page.read_text(), flags=re.MULTILINE | re.DOTALL
    )
    return found


def indented(page: Path) -> list[str]:
    """The page's blocks of commands without their output."""
    blocks = re.findall(r"(?:^    \S.*\n)(?:^    .*\n)*", page.read_text(), flags=re.MULTILINE)
    return [re.sub("^    ", "", block, flags=re.MULTILINE) for block in blocks]


def rewritten(text: str, changes: Mapping[str, str]) -> str:
    """The text with all of the changes, each of which has to be one."""
    for old, new in changes.items():
        assert old in text, f"{old!r} is not in\n{text}"
        text = text.replace(old, new)
    return text


def as_compared(line: str) -> str:
    """The line without what varies."""
    for pattern, name in VARIES.items():
        line = re.sub(pattern, rf"\g<1>{name}", line)
    return line.rstrip()


class Terminal:
    """A shell; by ``show()`` it is told what to do and to expect, and by ``play()`` that happens.

    An ``exact`` one shows nothing else. Use as a context manager: what still runs at the end is killed.
    """

    def __init__(
        self, directory: Path, environment: Mapping[str, str], name: str, *, exact: bool = True
    ) -> None:
        self.name = name
        self._exact = exact
        self._steps = deque[str]()
        self._seen = 0
        self._file = directory / f"{name}.terminal"
        with self._file.open("wb") as output:
            self._shell = subprocess.Popen(
                ["bash"],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=directory,
                env=environment,
                start_new_session=True,
            )

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._shell.stdin is not None
        self._shell.stdin.close()
        self._signal(signal.SIGKILL)
        self._shell.wait()

    @property
    def output(self) -> str:
        """All that it has shown."""
        return self._file.read_text(errors="replace")

    def show(self, block: str) -> Terminal:
        """Go on as this block does."""
        self._steps.extend(re.sub(r"\\\n *", "", block).splitlines())
        return self

    def show_until(self, line: str, block: str) -> str:
        """Go on as this block does, up to this line; returns the rest of it."""
        before, found, after = block.partition(f"{line}\n")
        assert found, f"{line!r} is not in\n{block}"
        self.show(before + found)
        return after

    def wait(self) -> None:
        """Until it is closed, after Ctrl-C."""
        self._shell.wait(2 * PATIENCE)

    def advance(self) -> bool:
        """Do and see what can be done and seen now; whether that is all."""
        while self._steps and self._take(self._steps[0]):
            self._steps.popleft()
        return not self._steps

    def _take(self, step: str) -> bool:
        if step.startswith(COMMAND):
            self._type(step.removeprefix(COMMAND))
        elif step.endswith(ENTER):
            self._type(step.removesuffix(ENTER))
        elif step == INTERRUPT:
            self._signal(signal.SIGINT)
        elif step.strip() != LEFT_OUT:
            return self._sees(as_compared(step))
        return True

    def _type(self, line: str) -> None:
        assert self._shell.stdin is not None
        self._shell.stdin.write(f"{line}\n".encode())
        self._shell.stdin.flush()

    def _signal(self, number: int) -> None:
        try:
            os.killpg(self._shell.pid, number)
        except ProcessLookupError:
            assert number == signal.SIGKILL

    def _sees(self, expected: str) -> bool:
        lines = self.output.split("\n")[:-1]
        while self._seen < len(lines):
            line = as_compared(lines[self._seen])
            self._seen += 1
            if line == expected:
                return True
            assert not self._exact, f"{self.name} sees {line!r}, the page {expected!r}\n{self}"
        return False

    def __str__(self) -> str:
        return f"--- {self.name}, next: {list(self._steps)[:1]}\n{self.output}"


def play(*terminals: Terminal, timeout: float = 2 * PATIENCE) -> None:
    """Let them go on, beside each other, until each has done and seen what it was told."""
    deadline = time.monotonic() + timeout
    waiting = list(terminals)
    while waiting := [terminal for terminal in waiting if not terminal.advance()]:
        state = "\n".join(map(str, terminals))
        assert time.monotonic() < deadline, f"nothing more happens:\n{state}"
        time.sleep(POLL)
