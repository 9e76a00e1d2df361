"""Runs tests of the interpreter's own, with ``compat`` in the place of ``socketserver``.

The program that ``runner.py`` starts; its argument says what to do. It appends a line to a file for all
that happens, so that it is known which test was running if the process does not live to tell.
"""

# ruff: noqa: N802 - the names are those of unittest

from __future__ import annotations

import asyncio
import faulthandler
import functools
import gc
import importlib
import importlib.util
import ipaddress
import json
import os
import sys
import threading
import unittest
import warnings
from collections.abc import Callable, Iterator
from fnmatch import fnmatchcase
from typing import Any

import compat

# What regrtest calls resources: without them tests are skipped, and some of those are about servers.
RESOURCES = ["cpu", "network", "walltime"]

START_LIMIT = 45.0
"""Seconds until the first test: what it imports takes its time on a busy machine."""


class Events:
    """The file of what has happened. A child process that a test has forked does not write to it."""

    def __init__(self, path: str) -> None:
        self._pid = os.getpid()
        self._fd = os.open(path, os.O_WRONLY | os.O_APPEND)

    def write(self, kind: str, subject: str = "", detail: str = "") -> None:
        if os.getpid() == self._pid:
            os.write(self._fd, json.dumps([kind, subject, detail]).encode() + b"\n")


class Recorder(unittest.TestResult):
    """Writes an event for each outcome, and ends the process if a test takes too long."""

    def __init__(self, events: Events, limit: float) -> None:
        super().__init__()
        self._events = events
        self._limit = limit
        self.latest = ""

    def startTest(self, test: unittest.TestCase) -> None:
        super().startTest(test)
        self.latest = test.id()
        self._events.write("started", test.id())
        self.wind_up()

    def stopTest(self, test: unittest.TestCase) -> None:
        super().stopTest(test)
        self._events.write("stopped", test.id())
        self.wind_up()

    def wind_up(self, limit: float | None = None) -> None:
        """Have all stacks printed, and the process ended, when there is no news for too long."""
        faulthandler.dump_traceback_later(limit or self._limit, exit=True)

    def addSuccess(self, test: unittest.TestCase) -> None:
        self._events.write("passed", test.id())

    def addExpectedFailure(self, test: unittest.TestCase, err: Any) -> None:
        self._events.write("passed", test.id())

    def addUnexpectedSuccess(self, test: unittest.TestCase) -> None:
        self._events.write("failed", test.id(), "unexpected success")

    def addSkip(self, test: unittest.TestCase, reason: str) -> None:
        self._events.write("skipped", _whole(test).id(), reason)

    def addError(self, test: unittest.TestCase, err: Any) -> None:
        super().addError(test, err)
        self._events.write("failed", test.id(), self.errors[-1][1])

    def addFailure(self, test: unittest.TestCase, err: Any) -> None:
        super().addFailure(test, err)
        self._events.write("failed", test.id(), self.failures[-1][1])

    def addSubTest(self, test: unittest.TestCase, subtest: unittest.TestCase, err: Any) -> None:
        super().addSubTest(test, subtest, err)
        if err is not None:
            kind = self.failures if issubclass(err[0], test.failureException) else self.errors
            self._events.write("failed", test.id(), f"{subtest}\n{kind[-1][1]}")


def _whole(test: Any) -> Any:
    return getattr(test, "test_case", test)  # A subtest is skipped as a test of its own.


def main() -> None:
    order = json.loads(sys.argv[1])
    events = Events(order["events"])
    recorder = Recorder(events, order["limit"])
    recorder.wind_up(max(START_LIMIT, order["limit"]))
    if order["swap"]:
        swap(order["loop"])
        if order["loop"] != "auto":
            _report_loops(events)
    known = set(_server_classes())
    _stay_on_this_machine()
    _report_what_nobody_catches(recorder, events)
    try:
        suite = select(order["module"], order["only"], order["drop"], events)
    except unittest.SkipTest as exc:
        events.write("skipped", order["module"], str(exc))
    else:
        suite.run(recorder)
    for each in set(_server_classes()) - known:
        _report_server(each, events)
    gc.collect()
    recorder.wind_up()
    events.write("finished")


def swap(loop: str) -> None:
    """From here on ``import socketserver`` gives compat."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # It warns if it comes too late for a module.
        compat.install()
    compat.EventLoopMixIn.event_loop = loop


def _report_loops(events: Events) -> None:
    """Which kinds of loops are made; whether uvloop has been imported says nothing about that."""

    def reporting(module: Any) -> Callable[[], asyncio.AbstractEventLoop]:
        make = module.new_event_loop

        @functools.wraps(make)
        def report() -> asyncio.AbstractEventLoop:
            events.write("loop", module.__name__)
            return make()

        return report

    for name in filter(importlib.util.find_spec, ("asyncio", "uvloop")):
        module: Any = importlib.import_module(name)
        module.new_event_loop = reporting(module)


def select(module: str, only: list[str], drop: list[str], events: Events) -> unittest.TestSuite:
    """The wanted tests of the module, in its own order; raises SkipTest where it does not want to run."""
    importlib.import_module("test.support").use_resources = RESOURCES
    importlib.import_module(module)  # An ImportError ends the process: the loader makes a test of it.
    unmatched = set(only)

    def keep(test: unittest.TestCase) -> bool:
        if not _matching(test, only) or _matching(test, drop):
            return False
        unmatched.difference_update(_matching(test, only))
        events.write("selected", test.id())
        return True

    suite = _pruned(unittest.defaultTestLoader.loadTestsFromName(module), keep)
    for pattern in unmatched:
        events.write("unmatched", pattern)
    return suite


def _matching(test: unittest.TestCase, patterns: list[str]) -> list[str]:
    return [pattern for pattern in patterns if fnmatchcase(test.id(), pattern)]


def _pruned(suite: unittest.TestSuite, keep: Callable[[unittest.TestCase], bool]) -> unittest.TestSuite:
    """Nested as before: a suite may do something of its own before its tests."""
    left = type(suite)()
    for each in suite:
        if isinstance(each, unittest.TestSuite):
            left.addTest(_pruned(each, keep))
        elif keep(each):
            left.addTest(each)
    return left


def _stay_on_this_machine() -> None:
    """The selection leaves out what needs the Internet; a test that is new may not know that."""

    def check(event: str, arguments: tuple[Any, ...]) -> None:
        if event in ("socket.connect", "socket.sendto", "socket.sendmsg"):
            address = arguments[1]
            if isinstance(address, tuple) and not _is_loopback(address[0]):
                raise RuntimeError(f"a test of this suite may not use the network: {address}")

    sys.addaudithook(check)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host in ("", "localhost")


def _report_what_nobody_catches(recorder: Recorder, events: Events) -> None:
    """The thread of a server may die when it has answered, or a socket be forgotten: the test passes."""
    show, show_unraisable = threading.excepthook, sys.unraisablehook

    def report(arguments: Any) -> None:
        if arguments.exc_type is not SystemExit:
            events.write("uncaught", recorder.latest, f"{arguments.exc_value!r} in {arguments.thread}")
        show(arguments)

    def report_unraisable(arguments: Any) -> None:
        events.write("uncaught", recorder.latest, f"{arguments.exc_value!r} about {arguments.object!r}")
        show_unraisable(arguments)

    threading.excepthook = report
    sys.unraisablehook = report_unraisable


def _server_classes(base: type = compat.EventLoopMixIn.__bases__[0]) -> Iterator[type]:
    for each in base.__subclasses__():
        yield each
        yield from _server_classes(each)


def _report_server(made: type, events: Events) -> None:
    kind = "engine" if issubclass(made, compat.EventLoopMixIn) else "no engine"
    events.write(kind, f"{made.__module__}.{made.__qualname__}")


if __name__ == "__main__":
    main()
