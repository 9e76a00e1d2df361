"""Where ``compat`` does not do what the standard library does, on purpose: what it does instead."""

from __future__ import annotations

import asyncio
import os
import socket
import socketserver as stdlib
import time
import warnings
from collections.abc import Callable
from typing import Any
from unittest import mock

import pytest

import compat
from asyncserver import LoopName
from tests.compat.support import (
    LOCAL,
    Client,
    InThread,
    Trace,
    agreed,
    blocks,
    noted_handler,
    on_loop,
    recorded,
    run_turns,
    serving,
)
from tests.waiting import PATIENCE, wait_until_blocking

FOR_EVER = 60 * PATIENCE
"""A poll interval that nobody waits for."""


# --- a longer listen queue ---


@pytest.fixture
def queues() -> Any:
    """What ``listen()`` is called with."""
    seen: list[int] = []

    def listen(self: Any, queue: int) -> None:
        seen.append(queue)
        super(socket.socket, self).listen(queue)

    with mock.patch.object(socket.socket, "listen", listen):
        yield seen


def test_listen_queue_is_longer_where_the_program_says_nothing(queues: list[int]) -> None:
    for server_class in (compat.TCPServer, compat.ThreadingTCPServer, type("Own", (compat.TCPServer,), {})):
        assert server_class.request_queue_size == 1024
        server_class(LOCAL, None).server_close()
    assert stdlib.TCPServer.request_queue_size == 5
    assert queues == [1024] * 3


def test_listen_queue_is_what_the_program_says(queues: list[int]) -> None:
    """Also if that is what it would be without it."""

    class Explicit(compat.TCPServer):
        request_queue_size = 5

    class OnInstance(compat.TCPServer):
        def __init__(self) -> None:
            self.request_queue_size = 3
            super().__init__(LOCAL, None)  # type: ignore[arg-type]

    Explicit(LOCAL, None).server_close()  # type: ignore[arg-type]
    OnInstance().server_close()
    assert queues == [5, 3]


def test_listen_queue_of_a_class_that_the_engine_is_mixed_into(queues: list[int]) -> None:
    class Plain(compat.EventLoopMixIn, stdlib.TCPServer):
        pass

    class Explicit(stdlib.TCPServer):
        request_queue_size = 7

    class Mixed(compat.EventLoopMixIn, Explicit):
        pass

    class OnInstance(compat.EventLoopMixIn, stdlib.TCPServer):
        request_queue_size: int

        def __init__(self) -> None:
            self.request_queue_size = 3
            super().__init__(LOCAL, None)  # type: ignore[arg-type]

    Plain(LOCAL, None).server_close()  # type: ignore[arg-type]
    assert queues.pop() == 1024
    queues.clear()
    Mixed(LOCAL, None).server_close()  # type: ignore[arg-type]
    OnInstance().server_close()
    assert queues == [7, 3]


# --- the end comes at once ---


@pytest.mark.parametrize("poll_interval", [FOR_EVER, None])
@pytest.mark.parametrize("how", ["shutdown", "flag"])
@pytest.mark.parametrize("server_name", ["TCPServer", "ThreadingTCPServer", "ForkingTCPServer", "UDPServer"])
def test_serving_ends_at_once(
    server_name: str, how: str, poll_interval: float | None, loop_name: LoopName
) -> None:
    """Whatever the poll interval: the thread that serves is woken."""
    end: dict[str, Callable[[Any], None]] = {
        "shutdown": lambda server: server.shutdown(),
        "flag": lambda server: setattr(server, "_BaseServer__shutdown_request", True),
    }
    server_class = getattr(compat, server_name, None)
    if server_class is None:
        pytest.skip("this platform has no fork()")
    with on_loop(loop_name), server_class(LOCAL, None) as server:
        for _ in range(2):
            thread = InThread("serving", server.serve_forever, poll_interval)
            assert blocks(thread)
            started = time.monotonic()
            InThread("ending", end[how], server).result()
            thread.result()
            assert time.monotonic() - started < PATIENCE / 2


def test_end_is_no_turn(loop_name: LoopName) -> None:
    """Being woken calls no hook, as in the standard library the end of a ``shutdown()`` does not."""
    trace = Trace()
    with on_loop(loop_name), recorded(compat.TCPServer, trace)(LOCAL, None) as server:
        thread = InThread("serving", server.serve_forever, FOR_EVER)
        assert blocks(thread)
        server.shutdown()
        thread.result()
    assert trace.events == ["server_bind", "server_activate", "server_close"]


# --- children are collected when they end ---


@pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="needs pidfd_open(2)")
@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")
def test_children_are_collected_as_they_end(loop_name: LoopName) -> None:
    with on_loop(loop_name):
        with compat.ForkingTCPServer(LOCAL, noted_handler(compat, Trace())) as server:
            with serving(server, FOR_EVER):
                assert [Client(server).reply() for _ in range(3)] == [b"served"] * 3
                wait_until_blocking(lambda: server.active_children == set())


# --- within an event loop ---


@pytest.mark.parametrize("entry", ["serve_forever", "handle_request"])
def test_within_a_running_event_loop(entry: str, loop_name: LoopName) -> None:
    """It blocks that loop, as it does with the standard library, and there is a warning that says so."""

    def scenario(socketserver: Any) -> list[Any]:
        trace = Trace()

        async def main() -> None:
            with recorded(socketserver.TCPServer, trace)(LOCAL, noted_handler(socketserver, trace)) as server:
                server.timeout = PATIENCE
                client = Client(server)
                run_turns(server, entry, 1)
                trace(client.reply())
                server.timeout = 0
                trace(server.handle_request())

        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            thread = InThread("main", asyncio.run, main())
            thread.result()
        messages.append([(each.category, str(each.message), each.filename) for each in caught])
        return trace.events

    messages: list[list[Any]] = []
    found = agreed(scenario, loop_name)
    assert ("main", ("inside a running loop", b"served")) in found
    assert ("main", ("inside a running loop", "handle_timeout")) in found
    without, within = messages
    assert without == []
    assert [category for category, _, _ in within] == [RuntimeWarning] * 2
    assert [message.partition("()")[0] for _, message, _ in within] == [entry, "handle_request"]
    assert all("await server.serve_async()" in message for _, message, _ in within)
    assert within[1][2] == __file__  # The caller's, not a line of the package.
