from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from types import ModuleType

import pytest

from asyncserver import CloseReason, Server, TLSConfig
from tests.certificates import CertificateFiles, authority
from tests.examples.programs import (
    Program,
    command_line,
    connected,
    line_from,
    load,
    port_of,
    printed_port,
    run_tool,
    serving,
    tool,
)
from tests.waiting import wait_until, within

SESSION = b"EHLO me\nNOTE something secret\nQUIT\n"


@pytest.fixture
def starttls() -> ModuleType:
    return load("starttls_service")


@pytest.fixture
def certificate() -> CertificateFiles:
    return authority().server()


@pytest.fixture
def client_context() -> ssl.SSLContext:
    return authority().client_context()


@asynccontextmanager
async def notes(starttls: ModuleType, certificate: CertificateFiles) -> AsyncIterator[Server]:
    tls = TLSConfig(certificate=certificate.certificate, private_key=certificate.private_key)
    addresses = ("tcp://127.0.0.1:0", "tls+tcp://127.0.0.1:0")
    async with serving(starttls.starttls_service, *addresses, tls=tls) as server:
        yield server


def s_client(port: str | int, *options: str) -> tuple[str, ...]:
    trusted = ("-CAfile", str(authority().file), "-verify_return_error")
    return ("openssl", "s_client", "-quiet", "-crlf", *trusted, *options, "-connect", f"127.0.0.1:{port}")


async def test_openssl_speaks_starttls(starttls: ModuleType, certificate: CertificateFiles) -> None:
    async with notes(starttls, certificate) as server:
        output = await run_tool(*s_client(port_of(server), "-starttls", "smtp"), send=SESSION)
    assert output.splitlines()[-4:] == ["250-hello me", "250 NOTE", "250 1 notes kept", "221 goodbye"]


async def test_openssl_speaks_tls_from_the_start(starttls: ModuleType, certificate: CertificateFiles) -> None:
    async with notes(starttls, certificate) as server:
        output = await run_tool(*s_client(port_of(server, 1)), send=SESSION)
    assert output.splitlines() == [
        "220 notes ready",
        "250-hello me",
        "250 NOTE",
        "250 1 notes kept",
        "221 goodbye",
    ]


async def test_socat_speaks_tls_from_the_start(starttls: ModuleType, certificate: CertificateFiles) -> None:
    async with notes(starttls, certificate) as server:
        address = f"OPENSSL:127.0.0.1:{port_of(server, 1)},cafile={authority().file}"
        output = await run_tool("socat", "-t", "10", "-", address, send=b"STARTTLS\nQUIT\n")
    assert output.splitlines() == ["220 notes ready", "503 TLS is on already", "221 goodbye"]


async def test_plain_clients_are_told_to_start_tls(
    starttls: ModuleType, certificate: CertificateFiles
) -> None:
    async with notes(starttls, certificate) as server:
        output = await run_tool("nc", "-N", "127.0.0.1", str(port_of(server)), send=SESSION)
    assert output.splitlines() == [
        "220 notes ready",
        "250-hello me",
        "250 STARTTLS",
        "530 STARTTLS first",
        "221 goodbye",
    ]


async def test_what_was_said_in_plain_text_is_forgotten(
    starttls: ModuleType, certificate: CertificateFiles, client_context: ssl.SSLContext
) -> None:
    async with notes(starttls, certificate) as server, connected(port_of(server)) as (reader, writer):
        assert await line_from(reader) == "220 notes ready"
        writer.write(b"EHLO mallory\r\n")
        assert await line_from(reader) == "250-hello mallory"
        assert await line_from(reader) == "250 STARTTLS"
        writer.write(b"STARTTLS\r\n")
        assert await line_from(reader) == "220 go ahead"
        await within(writer.start_tls(client_context, server_hostname="127.0.0.1"))
        writer.write(b"NOTE x\r\n")
        assert await line_from(reader) == "503 EHLO first"


@pytest.mark.parametrize("end", ["\n", "\r\n"])
async def test_plain_text_beyond_starttls_is_not_taken_for_protected(
    starttls: ModuleType, certificate: CertificateFiles, end: str
) -> None:
    async with notes(starttls, certificate) as server, connected(port_of(server)) as (reader, writer):
        assert await line_from(reader) == "220 notes ready"
        writer.write(f"STARTTLS{end}EHLO me{end}NOTE injected{end}".encode())
        with pytest.raises(ConnectionResetError):
            await within(reader.read())
        await wait_until(lambda: not server.connections)
        assert server.statistics().closed == {CloseReason.HANDSHAKE_FAILED: 1}


async def test_plain_text_after_the_invitation_is_no_handshake(
    starttls: ModuleType, certificate: CertificateFiles
) -> None:
    async with notes(starttls, certificate) as server, connected(port_of(server)) as (reader, writer):
        assert await line_from(reader) == "220 notes ready"
        writer.write(b"STARTTLS\r\n")
        assert await line_from(reader) == "220 go ahead"
        writer.write(b"NOTE injected\r\n")
        await wait_until(lambda: not server.connections)
        assert server.statistics().closed == {CloseReason.HANDSHAKE_FAILED: 1}


@contextmanager
def from_the_command_line(certificate: CertificateFiles, loop: str) -> Iterator[Program]:
    with command_line(
        "starttls_service.py:starttls_service",
        "tcp://127.0.0.1:0",
        "tls+tcp://127.0.0.1:0",
        "--tls-cert",
        str(certificate.certificate),
        "--tls-key",
        str(certificate.private_key),
        loop=loop,
    ) as running:
        yield running


def test_it_runs_from_the_command_line(certificate: CertificateFiles, loop_name: str) -> None:
    with from_the_command_line(certificate, loop_name) as running:
        upgraded = tool(*s_client(printed_port(running), "-starttls", "smtp"), send=SESSION)
        from_the_start = tool(*s_client(printed_port(running, "tls+tcp")), send=SESSION)
        assert "250 1 notes kept" in upgraded
        assert "250 1 notes kept" in from_the_start
        running.stop()
