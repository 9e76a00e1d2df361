"""Tests that do what the interpreter's own should not, for the tests of the runner."""

from __future__ import annotations

import os
import socket
import socketserver
import threading
import unittest


class Server(socketserver.TCPServer):
    """One that is on compat."""


class Well(unittest.TestCase):
    def test_passes(self) -> None:
        pass

    @unittest.expectedFailure
    def test_fails_as_expected(self) -> None:
        self.fail()


class Badly(unittest.TestCase):
    def test_fails(self) -> None:
        self.fail("on purpose")

    def test_raises(self) -> None:
        raise ValueError("on purpose")

    def test_fails_in_part(self) -> None:
        for number in range(3):
            with self.subTest(number=number):
                assert number != 1

    @unittest.expectedFailure
    def test_passes_unexpectedly(self) -> None:
        pass

    def test_forgets_socket(self) -> None:
        socket.socket()

    def test_lets_thread_die(self) -> None:
        thread = threading.Thread(target=[].index, args=("missing",))
        thread.start()
        thread.join()

    def test_goes_out(self) -> None:
        with socket.socket() as sock:
            sock.connect(("192.0.2.1", 9))

    def test_keeps_original(self) -> None:
        original = Server.__mro__[-3]  # before BaseServer and object
        KEPT.append(type("Kept", (original,), {}))


KEPT: list[type] = []


class Fatally(unittest.TestCase):
    def test_hangs(self) -> None:
        threading.Event().wait()

    def test_dies(self) -> None:
        os._exit(7)

    def test_leaves_thread(self) -> None:
        threading.Thread(target=threading.Event().wait).start()


class Skipped(unittest.TestCase):
    @unittest.skip("on purpose")
    def test_is_skipped(self) -> None:
        pass

    def test_skips_itself(self) -> None:
        self.skipTest("on purpose")

    def test_skips_part(self) -> None:
        with self.subTest():
            self.skipTest("on purpose")


class SkippedAsWhole(unittest.TestCase):
    @classmethod
    def setUpClass(cls) -> None:
        raise unittest.SkipTest("on purpose")

    def test_does_not_run(self) -> None:
        pass


class BrokenAsWhole(unittest.TestCase):
    @classmethod
    def setUpClass(cls) -> None:
        raise ValueError("on purpose")

    def test_does_not_run(self) -> None:
        pass
