"""The sockets that are none, and who tells what they can do."""

from __future__ import annotations

import asyncio
import errno
import socket
import struct
from types import SimpleNamespace

import pytest

from asyncserver import IPEndpoint, UnixEndpoint
from asyncserver.memory_socket import MemoryPoller, MemorySocket, socket_pair
from tests.streams import turns

NEAR, FAR = IPEndpoint("192.0.2.1", 1), IPEndpoint("192.0.2.2", 2)
LINGER = (socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def pair(capacity: int = 10) -> tuple[MemorySocket, MemorySocket]:
    return socket_pair(MemoryPoller(asyncio.get_running_loop()), capacity, FAR, NEAR)


async def test_bytes_in_order_as_far_as_there_is_room() -> None:
    near, far = pair()
    with pytest.raises(BlockingIOError):
        far.recv(1)
    assert near.send(b"0123") == 4
    assert near.sendmsg([b"45", memoryview(b"67")]) == 4
    assert near.send(b"89abc") == 2
    for item in b"x", memoryview(b"x"):
        with pytest.raises(BlockingIOError):
            near.send(item)
    assert near.send(b"") == 0
    assert far.recv(3) == b"012"
    assert near.send(b"abc") == 3
    assert far.recv(100) == b"3456789abc"
    near.put(bytes(20))
    assert near.room() == 0
    far.chunk = 15
    assert [len(far.recv(100)), len(far.recv(2)), len(far.take(100))] == [15, 2, 3]


async def test_an_end() -> None:
    near, far = pair()
    near.send(b"last")
    near.shutdown(socket.SHUT_RD)  # nothing happens
    near.shutdown(socket.SHUT_WR)
    with pytest.raises(BrokenPipeError):
        near.send(b"x")
    assert [far.recv(10), far.recv(10)] == [b"last", b""]
    assert far.send(b"answer") == 6
    assert near.recv(10) == b"answer"


async def test_a_close() -> None:
    near, far = pair()
    near.send(b"last")
    far.send(b"never received")
    near.close()
    near.close()
    assert near.fileno() == -1
    for operation in (lambda: near.recv(1), lambda: near.send(b"x"), lambda: near.shutdown(socket.SHUT_WR)):
        with pytest.raises(OSError) as caught:  # noqa: PT011 - the number says it
            operation()
        assert caught.value.errno == errno.EBADF
    assert [far.recv(10), far.recv(10)] == [b"last", b""]
    with pytest.raises(BrokenPipeError):
        far.send(b"x")
    far.shutdown(socket.SHUT_WR)


async def test_a_reset() -> None:
    near, far = pair()
    near.send(b"lost")
    near.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    near.setsockopt(*LINGER)
    near.close()
    for operation in (lambda: far.recv(1), lambda: far.send(b"x")):
        with pytest.raises(ConnectionResetError):
            operation()
    with pytest.raises(OSError) as caught:  # noqa: PT011 - the number says it
        far.shutdown(socket.SHUT_WR)
    assert caught.value.errno == errno.ENOTCONN


async def test_numbers_that_are_no_descriptors() -> None:
    numbers = [sock.fileno() for _ in range(3) for sock in pair()]
    assert max(numbers) < -1
    assert len(set(numbers)) == 6


@pytest.mark.parametrize(
    ("endpoint", "family", "name"),
    [
        (IPEndpoint("10.0.0.1", 1), socket.AF_INET, ("10.0.0.1", 1)),
        (IPEndpoint("fe80::1", 1, 2, 3), socket.AF_INET6, ("fe80::1", 1, 2, 3)),
        (UnixEndpoint("/run/x"), socket.AF_UNIX, "/run/x"),
        (UnixEndpoint("@x"), socket.AF_UNIX, b"\0x"),
        (UnixEndpoint(""), socket.AF_UNIX, ""),
    ],
)
async def test_names(endpoint: IPEndpoint | UnixEndpoint, family: int, name: object) -> None:
    near, far = socket_pair(MemoryPoller(asyncio.get_running_loop()), 1, endpoint, endpoint)
    assert (near.family, near.getsockname(), far.getpeername()) == (family, name, name)


class Interested:
    """Counts what it is told; reads or writes if it is given a socket."""

    def __init__(self) -> None:
        self.readable = self.writable = 0

    def on_readable(self) -> None:
        self.readable += 1

    def on_writable(self) -> None:
        self.writable += 1


async def test_readiness_is_told_once_a_turn_for_as_long_as_it_lasts() -> None:
    near, far = pair()
    poller = far._poller
    number, interested = far.fileno(), Interested()
    poller.add_reader(number, interested)
    await turns()
    assert interested.readable == 0
    near.send(b"x")
    await turns(1)
    assert interested.readable == 1
    await turns(2)
    assert interested.readable == 3
    far.recv(1)
    await turns()
    assert interested.readable == 3
    near.close()
    await turns(2)
    assert interested.readable == 5
    poller.remove_reader(number)
    await turns()
    assert interested.readable == 5


async def test_room_is_told() -> None:
    near, far = pair()
    poller = near._poller
    number, interested = near.fileno(), Interested()
    poller.add_writer(number, interested)
    await turns(1)
    assert interested.writable == 1
    near.send(bytes(10))
    await turns()
    assert interested.writable == 1
    far.recv(1)
    await turns(1)
    assert interested.writable == 2
    near.send(b"x")
    far.close()
    await turns(1)
    assert interested.writable == 3
    poller.close()
    await turns()
    assert interested.writable == 3


async def test_one_who_has_enough_while_another_is_told() -> None:
    near, far = pair()
    poller = near._poller
    numbers = near.fileno(), far.fileno()
    told: list[int] = []

    def on_readable(which: int) -> None:
        told.append(which)
        poller.close()

    for which in (0, 1):
        poller.add_reader(numbers[which], SimpleNamespace(on_readable=lambda which=which: on_readable(which)))
    near.send(b"x")
    far.send(b"x")
    await turns()
    assert told == [0]


async def test_one_who_fails_does_not_keep_it_from_others(loop_errors: list[str]) -> None:
    near, far = pair()
    poller = near._poller
    number, interested = far.fileno(), Interested()

    def fail() -> None:
        poller.remove_reader(near.fileno())
        raise ZeroDivisionError

    poller.add_reader(near.fileno(), SimpleNamespace(on_readable=fail))
    poller.add_reader(number, interested)
    far.send(b"x")
    near.send(b"x")
    await turns()
    assert interested.readable >= 1
    assert len(loop_errors) == 1
    assert "ZeroDivisionError" in loop_errors.pop()
    poller.close()
