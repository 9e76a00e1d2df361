"""Running the examples: in this process, as programs of their own, and with clients that are not ours."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from asyncserver import Server, TCPAddress
from asyncserver.testing import serving as serving
from tests.waiting import PATIENCE, within

REPOSITORY = Path(__file__).parent.parent.parent
EXAMPLES = REPOSITORY / "docs" / "examples"

Connected = tuple[asyncio.StreamReader, asyncio.StreamWriter]


def load(name: str) -> ModuleType:
    """The example as a fresh module, with global variables of its own."""
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses and annotations look themselves up there
    spec.loader.exec_module(module)
    return module


def port_of(server: Server, number: int = 0) -> int:
    """The port of the server's address of this number."""
    address = server.addresses[number]
    assert isinstance(address, TCPAddress)
    return address.port


@asynccontextmanager
async def connected(port: int, **options: Any) -> AsyncIterator[Connected]:
    """A plain asyncio client."""
    reader, writer = await within(asyncio.open_connection("127.0.0.1", port, **options))
    try:
        yield reader, writer
    finally:
        writer.transport.abort()


async def line_from(reader: asyncio.StreamReader) -> str:
    """The next line, without its end."""
    return (await within(reader.readline(), what="a line")).decode().rstrip("\r\n")


def tool(*command: str, send: bytes = b"", user: int | None = None) -> str:
    """What another program prints when it is given ``send``; it has to end by itself, without an error."""
    path = shutil.which(command[0])
    assert path is not None, f"the tests need {command[0]}: apt-get install netcat-openbsd openssl socat"
    done = subprocess.run(
        [path, *command[1:]],
        input=send,
        capture_output=True,
        timeout=2 * PATIENCE,
        check=False,
        user=user,
        cwd="/",
    )
    assert done.returncode == 0, f"{' '.join(command)}: {done.returncode}, {done.stderr.decode()}"
    return done.stdout.decode()


async def run_tool(*command: str, send: bytes = b"", user: int | None = None) -> str:
    """``tool`` beside the running loop."""
    return await asyncio.to_thread(tool, *command, send=send, user=user)


class Program:
    """An example that runs as a process of its own."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.printed = ""

    def read_until(self, pattern: str) -> re.Match[str]:
        """Read what it prints until that matches; pytest's time limit bounds the wait."""
        assert self.process.stdout is not None
        while (found := re.search(pattern, self.printed)) is None:
            line = self.process.stdout.readline()
            assert line, f"it ended without having printed {pattern!r}:\n{self.printed}"
            self.printed += line
        return found

    def stop(self) -> int:
        """Send SIGTERM and return the exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.wait()

    def wait(self) -> int:
        """The exit status."""
        return self.process.wait(2 * PATIENCE)


@contextmanager
def program(
    *arguments: str, cwd: Path = REPOSITORY, environment: dict[str, str] | None = None
) -> Iterator[Program]:
    """``python ARGUMENTS`` while the context is open; output and errors are one."""
    paths = os.pathsep.join(filter(None, (str(REPOSITORY), os.environ.get("PYTHONPATH"))))
    process = subprocess.Popen(
        [sys.executable, "-u", *arguments],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": paths, **(environment or {})},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    with process:
        try:
            yield Program(process)
        finally:
            if process.poll() is None:
                process.kill()


@contextmanager
def command_line(
    handler: str, *arguments: str, loop: str, environment: dict[str, str] | None = None
) -> Iterator[Program]:
    """``python -m asyncserver serve docs/examples/HANDLER ARGUMENTS``."""
    with program(
        "-m",
        "asyncserver",
        "serve",
        f"docs/examples/{handler}",
        *arguments,
        "--loop",
        loop,
        environment=environment,
    ) as running:
        yield running


def printed_port(running: Program, scheme: str = "tcp") -> str:
    """The port that the command line says it listens on."""
    return running.read_until(rf"(?<![+\w]){re.escape(scheme)}://127\.0\.0\.1:([1-9]\d*)")[1]
