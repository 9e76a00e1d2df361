"""Starts the process that runs a part of the interpreter's own tests, and judges what happened there."""

from __future__ import annotations

import functools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

from tests.compat.cpython.selection import Part
from tests.processes import REPOSITORY
from tests.waiting import SECOND

__all__ = ["Report", "faults", "run_part"]

TEST_LIMIT = 45 * SECOND
"""How long one test may take before it counts as hanging; some of them take ten seconds."""

WHOLE_LIMIT = 120 * SECOND
"""How long a part may take; on an idle machine none takes 15 seconds."""

_CHILD = Path(__file__).with_name("child.py")


class Report:
    """What happened in one process."""

    def __init__(self, status: int | None, output: str, events: list[tuple[str, str, str]]) -> None:
        """``status`` is as ``subprocess`` has it, or None for a process that had to be killed."""
        self.status = status
        self.output = output
        self._events = events

    def of(self, kind: str) -> dict[str, str]:
        """The details of all events of this kind, by what they are about."""
        return {subject: detail for each, subject, detail in self._events if each == kind}

    @property
    def passed(self) -> set[str]:
        """The tests of which there is nothing else to say."""
        return set(self.of("passed")) - set(self.of("failed")) - set(self.of("skipped"))

    @property
    def running(self) -> str | None:
        """The test that was running when the process ended."""
        turns = [event for event in self._events if event[0] in ("started", "stopped")]
        return turns[-1][1] if turns and turns[-1][0] == "started" else None

    @property
    def unheard_of(self) -> set[str]:
        """The selected tests of which nothing has been heard, not even that their class is skipped."""
        heard = self.of("passed") | self.of("failed") | self.of("skipped")
        whole = tuple(f"{fixture[1]}." for each in heard if (fixture := re.fullmatch(r"\w+ \((.+)\)", each)))
        return {each for each in set(self.of("selected")) - set(heard) if not each.startswith(whole)}


def run_part(
    part: Part, directory: Path, *, loop: str = "auto", swap: bool = True, limit: float = TEST_LIMIT
) -> Report:
    """Run the tests in a process of their own, on compat or (not ``swap``) the standard library."""
    events, output = directory / "events", directory / "output"
    for each in (events, output):
        each.write_bytes(b"")
    order = {
        "events": str(events),
        "swap": swap,
        "loop": loop,
        "limit": limit,
        "module": part.module,
        "only": part.only,
        "drop": part.drop,
    }
    # As in the interpreter's own runner: mixing bytes and str is an error, warnings are shown. In addition
    # it is reported when somebody forgets to close something.
    flags = ["-bb", "-W", "default", "-W", "error::ResourceWarning"]
    command = [*_prefix(part), sys.executable, *flags, str(_CHILD), json.dumps(order)]
    with output.open("wb") as file:
        process = subprocess.Popen(
            command,
            cwd=directory,
            env=_environment(),
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        status = process.wait(WHOLE_LIMIT)
    except subprocess.TimeoutExpired:
        status = None
    finally:
        # With it ends what the tests have started and forgotten.
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    lines = events.read_text().splitlines()
    return Report(status, output.read_text(errors="replace"), [json.loads(line) for line in lines])


def _environment() -> dict[str, str]:
    """With the packages of this repository, and without what would change the tests."""
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("PYTHON", "ASYNCSERVER_")) and not name.lower().endswith("_proxy")
    }
    return environment | {"PYTHONPATH": str(REPOSITORY)}


def _prefix(part: Part) -> list[str]:
    return ["unshare", "--user"] if part.as_user and os.geteuid() == 0 and _can_unshare() else []


@functools.cache
def _can_unshare() -> bool:
    """Whether there may be a new user namespace, in which root is somebody else, and keeps its files."""
    if shutil.which("unshare") is None:
        return False
    return subprocess.run(["unshare", "--user", "true"], capture_output=True, check=False).returncode == 0


def faults(report: Report, part: Part, exceptions: Mapping[str, str]) -> Iterator[str]:
    """All that is wrong, ``exceptions`` included that need not be there; nothing about skipped tests."""
    tail = "\n".join(report.output.splitlines()[-60:])
    end = "was killed" if report.status is None else f"ended with status {report.status}"
    if report.running is not None:
        yield f"{report.running} hangs, or ends the process: it {end} during this test\n{tail}"
    elif report.status != 0 or "" not in report.of("finished"):
        yield f"the process {end} when no test was running\n{tail}"
    for test, detail in report.of("failed").items():
        if test not in exceptions:
            yield f"{test} fails\n{detail}"
    for test in report.passed & exceptions.keys():
        yield f"{test} passes, but is an exception: {exceptions[test]}"
    for test, error in report.of("uncaught").items():
        yield f"{test} leads to what nobody catches\n{error}\n{tail}"
    for server in report.of("no engine"):
        yield f"{server} is not on compat"
    if "" in report.of("finished") and not report.of("engine"):
        yield "no server class is on compat"
    for pattern in report.of("unmatched"):
        yield f"no test matches {pattern}"
    if part.module in report.of("skipped"):
        return
    if len(report.of("selected")) < part.at_least:
        yield f"only {len(report.of('selected'))} tests, and there should be {part.at_least} at least"
    if report.running is None:
        yield from (f"{test} has not run" for test in report.unheard_of)
