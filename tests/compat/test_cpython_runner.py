"""The runner of the interpreter's own tests finds every kind of fault, and names the test."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.compat.cpython.runner import Report, faults, run_part
from tests.compat.cpython.selection import Part
from tests.waiting import SECOND

MODULE = "tests.compat.cpython.samples"
GOOD = f"{MODULE}.Well.test_passes"
DEADLY = "Fatally.{} hangs, or ends the process: it ended with status "


def run(directory: Path, *only: str, limit: float = 30 * SECOND) -> Report:
    return run_part(Part("samples", MODULE, 1, only=only), directory, limit=limit)


def told(report: Report, *only: str, at_least: int = 1, exceptions: tuple[str, ...] = ()) -> list[str]:
    """The faults, the first line of each, less the name of the module."""
    found = faults(
        report, Part("samples", MODULE, at_least, only=only), dict.fromkeys(exceptions, "a reason")
    )
    return [fault.partition("\n")[0].replace(f"{MODULE}.", "") for fault in found]


def test_good_tests_have_no_faults(tmp_path: Path) -> None:
    report = run(tmp_path, "*.Well.*")
    assert told(report, at_least=2) == []
    assert report.passed == {GOOD, f"{MODULE}.Well.test_fails_as_expected"}
    assert report.of("engine").keys() == {f"{MODULE}.Server"}


def test_every_fault_is_told(tmp_path: Path) -> None:
    assert sorted(told(run(tmp_path, "*.Badly.*", "*.BrokenAsWhole.*"))) == [
        "Badly.test_fails fails",
        "Badly.test_fails_in_part fails",
        "Badly.test_forgets_socket leads to what nobody catches",
        "Badly.test_goes_out fails",
        "Badly.test_lets_thread_die leads to what nobody catches",
        "Badly.test_passes_unexpectedly fails",
        "Badly.test_raises fails",
        "Kept is not on compat",
        "setUpClass (BrokenAsWhole) fails",
    ]


@pytest.mark.parametrize(
    ("test", "fault", "stack"),
    [
        ("test_hangs", DEADLY + "1 during this test", "in test_hangs"),
        ("test_dies", DEADLY + "7 during this test", ""),
        ("test_leaves_thread", "the process ended with status 1 when no test was running", "in _shutdown"),
    ],
    ids=["hangs", "dies", "leaves thread"],
)
def test_end_of_process_is_told_with_its_test(tmp_path: Path, test: str, fault: str, stack: str) -> None:
    report = run(tmp_path, f"*.{test}", limit=2 * SECOND)
    assert told(report) == [fault.format(test)]
    assert stack in report.output


def test_selection_that_has_shrunk_is_told(tmp_path: Path) -> None:
    report = run(tmp_path, "*.Well.*", "*.Gone.*")
    assert told(report, at_least=3) == [
        "no test matches *.Gone.*",
        "only 2 tests, and there should be 3 at least",
    ]


def test_exception_has_to_be_one(tmp_path: Path) -> None:
    report = run(tmp_path, "*.test_fails", "*.test_passes")
    assert told(report) == ["Badly.test_fails fails"]
    assert told(report, exceptions=(f"{MODULE}.Badly.test_fails",)) == []
    assert told(report, exceptions=(GOOD, f"{MODULE}.Badly.test_fails")) == [
        "Well.test_passes passes, but is an exception: a reason"
    ]


def test_skipped_tests_are_listed(tmp_path: Path) -> None:
    report = run(tmp_path, "*.Skipped*.*")
    assert told(report) == []
    assert report.passed == set()
    assert report.of("skipped") == {
        f"{MODULE}.Skipped.test_is_skipped": "on purpose",
        f"{MODULE}.Skipped.test_skips_itself": "on purpose",
        f"{MODULE}.Skipped.test_skips_part": "on purpose",
        f"setUpClass ({MODULE}.SkippedAsWhole)": "on purpose",
    }


def test_nothing_is_replaced_for_comparison(tmp_path: Path) -> None:
    report = run_part(Part("samples", MODULE, 1, only=("*.Well.*",)), tmp_path, swap=False)
    assert report.of("engine") == {}
    assert report.of("no engine").keys() == {f"{MODULE}.Server"}
