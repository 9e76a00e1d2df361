"""Other processes in tests: started with this repository's packages, watched with bounded waits.

What they write goes to files, so that nobody has to read a pipe in time, and reading never blocks.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

from tests.waiting import SECOND, wait_until_blocking

__all__ = ["LONG", "REPOSITORY", "PythonProcess", "connect", "run_python"]

REPOSITORY = Path(__file__).parent.parent

LONG = 30 * SECOND
"""How long a process may take for one step; a new interpreter on a busy machine needs seconds."""


class PythonProcess:
    """A Python process, from entering the context to leaving it; what still runs then is killed."""

    def __init__(
        self, directory: Path, *arguments: str | Path, environment: Mapping[str, str] | None = None
    ) -> None:
        self._directory = directory
        self._command = [sys.executable, *map(str, arguments)]
        self._environment = _environment() | dict(environment or {})
        self._files = directory / "stdout.txt", directory / "stderr.txt"

    def __enter__(self) -> PythonProcess:
        stdout, stderr = self._files
        with stdout.open("wb") as out, stderr.open("wb") as err:
            self._process = subprocess.Popen(
                self._command,
                cwd=self._directory,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
            )
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def stdout(self) -> str:
        return self._files[0].read_text()

    @property
    def stderr(self) -> str:
        return self._files[1].read_text()

    def wait_for(self, text: str) -> None:
        """Wait until ``text`` stands in its output, stdout or stderr."""
        wait_until_blocking(
            lambda: text in self.stdout or text in self.stderr or self._process.poll() is not None,
            timeout=LONG,
            what=lambda: f"{text!r} in:\n{self._everything()}",
        )
        assert text in self.stdout + self.stderr, f"it ended without {text!r}:\n{self._everything()}"

    def wait_for_port(self) -> int:
        """Wait for the line that says where it listens; returns the first port in it."""
        self.wait_for("Listening on ")
        wait_until_blocking(lambda: self.stdout.endswith("\n"), timeout=LONG)
        found = re.search(r":(\d+)\b", self.stdout)
        assert found is not None, self._everything()
        return int(found[1])

    def send_signal(self, number: int) -> None:
        self._process.send_signal(number)

    def terminate(self) -> int:
        """Send SIGTERM, and wait for the end; returns the status as ``subprocess`` has it."""
        self._process.send_signal(signal.SIGTERM)
        return self.wait()

    def wait(self) -> int:
        """Wait for the end; returns the status as ``subprocess`` has it: negative for a signal."""
        try:
            return self._process.wait(LONG)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"it does not end:\n{self._everything()}") from None

    def _everything(self) -> str:
        return f"--- stdout\n{self.stdout}\n--- stderr\n{self.stderr}"


def run_python(
    directory: Path, *arguments: str | Path, environment: Mapping[str, str] | None = None
) -> tuple[int, str, str]:
    """Run a process to its end; returns its status, and what it wrote to stdout and stderr."""
    with PythonProcess(directory, *arguments, environment=environment) as process:
        status = process.wait()
    return status, process.stdout, process.stderr


def sleeping_child() -> subprocess.Popen[bytes]:
    """A Python that does ``time.sleep(60)``, which can be read in its command line."""
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    # Popen() returns in the midst of the child's execve(2), when it has no command line yet.
    wait_until_blocking(lambda: b"sleep(60)" in Path(f"/proc/{child.pid}/cmdline").read_bytes())
    return child


def connect(port: int) -> socket.socket:
    """A blocking connection to a process on this machine; its operations are bounded."""
    return socket.create_connection(("127.0.0.1", port), timeout=LONG)


def _environment() -> dict[str, str]:
    """This process's, with the packages of this repository before installed ones, and without options."""
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("ASYNCSERVER_") and name not in ("PYTHONWARNINGS", "PYTHONUNBUFFERED")
    }
    path = [str(REPOSITORY), *filter(None, [environment.get("PYTHONPATH")])]
    return environment | {"PYTHONPATH": os.pathsep.join(path), "PYTHONWARNINGS": "error", "COLUMNS": "100"}
