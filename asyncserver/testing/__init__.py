"""Servers under test, clients without manners, faults on purpose, and checks for what is left behind.

::

    async with serving(handler) as server, await Client.connect(server) as client:
        assert await client.ask(b"hello") == b"hello"

It needs no test framework; the fixtures for pytest are in ``asyncserver.pytest_plugin``.
"""

from __future__ import annotations

from asyncserver import memory_stream_pair
from asyncserver.testing import certificates, faults
from asyncserver.testing.clients import Client, TLSClient
from asyncserver.testing.contract import MakePair, StreamContractError, check_stream
from asyncserver.testing.datagram_client import DatagramClient
from asyncserver.testing.errors import HandlerErrors
from asyncserver.testing.exhaustion import exhausted_descriptors
from asyncserver.testing.leaks import LeakCheck, LeakError, leak_check, task_leak_check
from asyncserver.testing.servers import DatagramTransport, Transport, serving, serving_datagrams
from asyncserver.testing.targets import LegacyServer, Target
from asyncserver.testing.threads import BlockingServer, serving_in_thread

__all__ = [
    "BlockingServer",
    "Client",
    "DatagramClient",
    "DatagramTransport",
    "HandlerErrors",
    "LeakCheck",
    "LeakError",
    "LegacyServer",
    "MakePair",
    "StreamContractError",
    "TLSClient",
    "Target",
    "Transport",
    "certificates",
    "check_stream",
    "exhausted_descriptors",
    "faults",
    "leak_check",
    "memory_stream_pair",
    "serving",
    "serving_datagrams",
    "serving_in_thread",
    "task_leak_check",
]
