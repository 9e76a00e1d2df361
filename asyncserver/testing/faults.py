"""What peers do to a server sooner or later, each as an async function that is given the server.

::

    @pytest.mark.parametrize("fault", faults.FAULTS.values(), ids=faults.FAULTS)
    async def test_it_survives(fault): ...

    async def probe(server):
        async with await Client.connect(server) as client:
            assert await client.ask(b"hello") == b"hello"

    await faults.check_survival(server, probe)

Each fault takes a running server, or an address, and ends by itself within a second, with its
connections closed. What a server does to a peer with such manners, a reset, say, is no error here; but a
server that cannot be connected to is one.
"""

from __future__ import annotations

import asyncio
import errno
import random
import socket
import ssl
from collections.abc import Awaitable, Callable, Generator, Mapping
from contextlib import AsyncExitStack, contextmanager, suppress
from types import MappingProxyType
from typing import TypeAlias

from asyncserver import OptionError
from asyncserver.testing.bounds import TIMEOUT, bounded, check_timeout
from asyncserver.testing.clients import Client, TLSClient
from asyncserver.testing.datagram_client import DatagramClient
from asyncserver.testing.targets import Target, locate

__all__ = [
    "DATAGRAM_FAULTS",
    "FAULTS",
    "Fault",
    "byte_at_a_time",
    "check_survival",
    "connect_and_vanish",
    "crowd",
    "flood",
    "garbage",
    "garbage_packets",
    "half_close",
    "never_reading",
    "reset_in_a_message",
    "reset_now",
    "sender_vanishes",
    "silent_tls_client",
    "stalled_handshake",
]

Fault: TypeAlias = Callable[[Target], Awaitable[object]]
"""Is given the server, and does it one harm."""

_MESSAGE = b"hello\r\n"


# Peers of stream servers.


async def byte_at_a_time(
    target: Target, data: bytes = _MESSAGE, *, pause: float = 0.001, seconds: float = 0.5
) -> bytes:
    """Send a byte at a time with a pause after each, half-close, and read for at most ``seconds``.

    Returns what came. For code that takes what one ``receive()`` returns for a message.
    """
    async with await Client.connect(target) as client:
        with _whether_reset_or_not():
            await client.send_slowly(data, pause)
            client.half_close()
        return await _read(client, seconds)


async def never_reading(
    target: Target, data: bytes = _MESSAGE, *, amount: int = 1 << 20, seconds: float = 0.1
) -> int:
    """Send ``data`` again and again, ``amount`` bytes in all, read nothing, and reset after ``seconds``.

    Returns how many bytes the server took. For a server that answers, and has to hold back its handler, or
    else hold everything in memory. Raises ``OptionError`` if ``data`` is empty.
    """
    if not data:
        raise OptionError("data", data, "has to be a byte at least")
    client = await Client.connect(target, receive_buffer=4_096)
    block = data * max(1, 4_096 // len(data))
    taken = 0
    try:
        with suppress(ConnectionError, TimeoutError):
            async with asyncio.timeout(seconds):
                while taken < amount:
                    taken += await _send_some(client, block[: amount - taken])
                await asyncio.sleep(seconds)
    finally:
        client.reset()
    return taken


async def _send_some(client: Client, data: bytes) -> int:
    """As much as there is room for; the loop goes on meanwhile."""
    try:
        taken = client.sock.send(data)
    except BlockingIOError:
        taken = 0
    await asyncio.sleep(0 if taken else 0.001)
    return taken


async def reset_now(target: Target) -> None:
    """Connect, and reset the connection without having sent anything."""
    (await Client.connect(target)).reset()


async def reset_in_a_message(target: Target, data: bytes = _MESSAGE) -> None:
    """Send a message but for its second half, and reset the connection."""
    client = await Client.connect(target)
    try:
        with suppress(ConnectionError):
            await client.send(data[: (len(data) + 1) // 2])
    finally:
        client.reset()


async def connect_and_vanish(target: Target) -> None:
    """Connect, and close without having sent anything, as port scanners and health checks do."""
    (await Client.connect(target)).close()


async def half_close(target: Target, data: bytes = _MESSAGE, *, seconds: float = 0.5) -> bytes:
    """Send a message and the end, and read for at most ``seconds``; returns what came."""
    async with await Client.connect(target) as client:
        with _whether_reset_or_not():
            await client.send(data)
            client.half_close()
        return await _read(client, seconds)


async def silent_tls_client(target: Target, *, seconds: float = 0.1) -> str:
    """Connect and say nothing for so many seconds, as a TLS client without a ClientHello.

    Returns how the server has ended it by then, ``"eof"`` or ``"reset"``, or else ``"open"``.
    """
    async with await Client.connect(target) as client:
        return await _stay(client, seconds)


async def stalled_handshake(target: Target, *, seconds: float = 0.1) -> str:
    """Send half of a ClientHello, and then nothing for so many seconds; returns as ``silent_tls_client``."""
    async with await Client.connect(target) as client:
        hello = TLSClient(client, ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), "localhost").first_flight()
        with suppress(ConnectionError):
            await client.send(hello[: len(hello) // 2])
        return await _stay(client, seconds)


async def garbage(target: Target, *, size: int = 4_096, seed: int = 0, seconds: float = 0.5) -> bytes:
    """Send so many random bytes and the end, and read for at most ``seconds``; returns what came.

    The same ``seed`` gives the same bytes.
    """
    async with await Client.connect(target) as client:
        with _whether_reset_or_not():
            await client.send(random.Random(seed).randbytes(size))
            client.half_close()
        return await _read(client, seconds)


async def crowd(target: Target, *, count: int = 50, seconds: float = 0.1) -> None:
    """Connect so many clients, say nothing for so many seconds, and close all of them."""
    async with AsyncExitStack() as clients:
        for _ in range(count):
            await clients.enter_async_context(await Client.connect(target))
        await asyncio.sleep(seconds)


@contextmanager
def _whether_reset_or_not() -> Generator[None]:
    """Around sending and then the end, which after a reset is ENOTCONN: that is no ``ConnectionError``."""
    try:
        yield
    except ConnectionError:
        pass
    except OSError as error:
        if error.errno != errno.ENOTCONN:
            raise


async def _read(client: Client, seconds: float) -> bytes:
    """What comes until the end, or within the time."""
    received = bytearray()
    with suppress(ConnectionError, TimeoutError):
        async with _limit(client, seconds):
            while data := await client.receive():
                received += data
    return bytes(received)


async def _stay(client: Client, seconds: float) -> str:
    """How the server ends the connection; what it sends meanwhile is read."""
    try:
        async with _limit(client, seconds):
            while await client.receive():
                pass
    except TimeoutError:
        return "open"
    except ConnectionError:
        return "reset"
    return "eof"


def _limit(client: Client, seconds: float) -> asyncio.Timeout:
    """For receiving so long, even if that is longer than one operation of a client may take."""
    client.timeout += seconds
    return asyncio.timeout(seconds)


FAULTS: Mapping[str, Fault] = MappingProxyType(
    {
        fault.__name__: fault
        for fault in (
            byte_at_a_time,
            never_reading,
            reset_now,
            reset_in_a_message,
            connect_and_vanish,
            half_close,
            silent_tls_client,
            stalled_handshake,
            garbage,
            crowd,
        )
    }
)
"""All faults for stream servers, by their names."""


# Peers of datagram servers.


async def garbage_packets(target: Target, *, count: int = 50, seed: int = 0) -> None:
    """Send so many packets of random bytes, of all sizes from none to 1,400."""
    chance = random.Random(seed)
    async with await DatagramClient.connect(target) as client:
        for number in range(count):
            await _send_packet(client, chance.randbytes(number * 1_400 // max(1, count - 1)))


async def sender_vanishes(target: Target, packet: bytes = _MESSAGE) -> None:
    """Send a packet, and be gone before the answer: the server gets an error for it."""
    async with await DatagramClient.connect(target) as client:
        await _send_packet(client, packet)


async def flood(target: Target, packet: bytes = _MESSAGE, *, count: int = 300) -> None:
    """Send so many packets as fast as the server's queue takes them, and read none of the answers."""
    async with await DatagramClient.connect(target) as client:
        for _ in range(count):
            await _send_packet(client, packet)


async def _send_packet(client: DatagramClient, packet: bytes) -> None:
    with suppress(BlockingIOError):
        await client.send(packet)
    await asyncio.sleep(0)


DATAGRAM_FAULTS: Mapping[str, Fault] = MappingProxyType(
    {fault.__name__: fault for fault in (garbage_packets, sender_vanishes, flood)}
)
"""All faults for datagram servers, by their names."""


# All of them.


async def check_survival(
    target: Target, probe: Fault, *, faults: Mapping[str, Fault] | None = None, timeout: float = TIMEOUT
) -> None:
    """Do one fault after the other to a server, then all at once; it has to serve during each and after.

    ``probe``: an async function that is given ``target``, asks for a service and raises if that is not
    right; it is tried before the first fault, too.
    ``faults``: other ones than all for this kind of server, by their names.
    ``timeout``: seconds for each probe and each fault.

    Raises ``AssertionError`` that names the fault, caused by what the probe or the fault has raised.
    """
    check_timeout(timeout)
    if faults is None:
        faults = FAULTS if locate(target).kind == socket.SOCK_STREAM else DATAGRAM_FAULTS
    await _succeed(probe(target), timeout, "the probe fails before the first fault")
    for name, fault in faults.items():
        await _survive(target, probe, {name: fault}, timeout)
    await _survive(target, probe, faults, timeout)


async def _survive(target: Target, probe: Fault, faults: Mapping[str, Fault], timeout: float) -> None:
    names = ", ".join(faults)
    under_way = [
        asyncio.ensure_future(_succeed(fault(target), timeout, f"the fault {name} cannot be done"))
        for name, fault in faults.items()
    ]
    try:
        await asyncio.sleep(0)  # They begin first.
        await _succeed(probe(target), timeout, f"the probe fails during {names}")
        await asyncio.gather(*under_way)
    finally:
        for each in under_way:
            each.cancel()
        await asyncio.gather(*under_way, return_exceptions=True)
    await _succeed(probe(target), timeout, f"the probe fails after {names}")


async def _succeed(awaitable: Awaitable[object], timeout: float, otherwise: str) -> None:
    try:
        await bounded(awaitable, timeout, "its end")
    except Exception as error:
        raise AssertionError(f"{otherwise}: {error!r}") from error
