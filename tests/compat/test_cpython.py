"""The interpreter's own tests pass on ``compat``: those of socketserver, and of what is built on it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.compat.cpython.runner import Report, faults, run_part
from tests.compat.cpython.selection import OTHERS, SOCKETSERVER, Part, missing
from tests.waiting import SECOND

EXCEPTIONS: dict[str, str] = {}
"""The tests that may fail, by their ids, and why. One that passes may not be here."""

# More than the runner takes in the worst case: twice its limit, because of the comparison.
pytestmark = pytest.mark.timeout(270 * SECOND)


def test_socketserver(loop_name: str, tmp_path: Path) -> None:
    report = check(SOCKETSERVER, tmp_path, loop=loop_name)
    assert "test.test_socketserver.MiscTestCase.test_all" in report.passed
    assert report.of("loop").keys() == {loop_name}


@pytest.mark.parametrize("part", OTHERS, ids=[part.name for part in OTHERS])
def test_what_is_built_on_it(part: Part, tmp_path: Path) -> None:
    check(part, tmp_path)


def check(part: Part, directory: Path, *, loop: str = "auto") -> Report:
    if (lack := missing(part)) is not None:
        pytest.skip(lack)
    report = run_part(part, directory, loop=loop)
    found = list(faults(report, part, EXCEPTIONS))
    if found:
        pytest.fail(f"{len(found)} faults:\n\n" + "\n\n".join(found), pytrace=False)
    if skipped := report.of("skipped"):
        on_stdlib = run_part(part, directory, swap=False).of("skipped")
        assert skipped.keys() <= on_stdlib.keys(), "the standard library skips less"
        listing = "\n".join(f"{test} is skipped: {reason}" for test, reason in skipped.items())
        print(listing)
        if not report.passed:
            pytest.skip(listing)
    return report
