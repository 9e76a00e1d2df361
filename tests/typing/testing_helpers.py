"""What a type checker has to say of tests that are written with `asyncserver.testing`; see `handlers.py`."""

# pyright: strict, reportUnnecessaryTypeIgnoreComment=true

import socketserver
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import assert_type

import compat
from asyncserver import (
    Datagram,
    DatagramServer,
    IPEndpoint,
    Limits,
    Server,
    Session,
    Stream,
    memory_stream_pair,
    sessions,
)
from asyncserver.testing import (
    Client,
    DatagramClient,
    LeakCheck,
    MakePair,
    Target,
    TLSClient,
    Transport,
    check_stream,
    leak_check,
    serving,
    serving_datagrams,
    serving_in_thread,
    task_leak_check,
)


async def echo(stream: Stream) -> None: ...


async def reply(datagram: Datagram) -> None: ...


@sessions
async def talk(session: Session) -> None: ...


@asynccontextmanager
async def pair() -> AsyncGenerator[tuple[Stream, Stream]]:
    yield memory_stream_pair(chunk=1, peer=IPEndpoint("192.0.2.7", 5_000))


async def of_servers() -> None:
    async with serving(echo, transport="tls", limits=Limits(max_connections=5)) as server:
        assert_type(server, Server)
        async with await Client.connect(server) as client:
            assert_type(client, Client)
            assert_type(await client.ask(b"hello"), bytes)
    async with serving_datagrams(talk, transport="unix") as datagrams:
        assert_type(datagrams, DatagramServer)
        async with await DatagramClient.connect(datagrams) as packets:
            await packets.send(b"")
    async with serving(echo, transport="udp"):  # type: ignore[arg-type]
        pass
    async with serving(echo, max_connections=5):  # type: ignore[call-arg]
        pass
    async with serving(reply):  # type: ignore[arg-type]
        pass


async def of_streams() -> None:
    assert_type(memory_stream_pair(), tuple[Stream, Stream])
    assert_type(await check_stream(pair), list[str])
    async with task_leak_check():
        memory_stream_pair(capacity="5")  # type: ignore[arg-type]


async def of_those_that_are_named(target: Target, transport: Transport, make_pair: MakePair) -> LeakCheck:
    await check_stream(make_pair)
    async with serving(echo, transport=transport), await Client.connect(target):
        return leak_check()


def in_threads() -> None:
    with serving_in_thread(Server(echo, "tcp://127.0.0.1:0")) as server:
        assert_type(server, Server)
    with serving_in_thread(compat.TCPServer(("", 0), compat.StreamRequestHandler)) as new:
        assert_type(new, compat.TCPServer)
    with serving_in_thread(socketserver.TCPServer(("", 0), socketserver.BaseRequestHandler)) as old:
        assert_type(old, socketserver.TCPServer)
    with leak_check():
        pass


tls_client: type[TLSClient] = TLSClient
