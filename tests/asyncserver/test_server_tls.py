from __future__ import annotations

import asyncio
import logging
import shutil
import ssl
import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from asyncserver import (
    CloseReason,
    Connection,
    ConnectionState,
    Limits,
    Server,
    ServerStateError,
    Stream,
    Timeouts,
    TLSConfig,
    TLSUpgradeError,
    current_connection,
)
from tests.certificates import Authority, CertificateFiles, authority
from tests.clients import (
    LOOPBACK,
    Client,
    TLSClient,
    complaints,
    connect_many,
    echo,
    local_server,
)
from tests.waiting import MS, PATIENCE, stays, wait_until, within

SECURE = "tls+tcp://127.0.0.1:0"

pytestmark = pytest.mark.usefixtures("tasks_as_in_production")


@pytest.fixture
def ca() -> Authority:
    return authority()


@pytest.fixture
def files(ca: Authority, tmp_path: Path) -> CertificateFiles:
    """Copies that a test may replace."""
    issued = ca.server()
    certificate, private_key = tmp_path / "certificate.pem", tmp_path / "private.key"
    shutil.copy(issued.certificate, certificate)
    shutil.copy(issued.private_key, private_key)
    return CertificateFiles(certificate, private_key, issued.combined)


@pytest.fixture
def config(files: CertificateFiles) -> TLSConfig:
    return TLSConfig(certificate=files.certificate, private_key=files.private_key)


@pytest.fixture
def trusting(ca: Authority) -> ssl.SSLContext:
    return ca.client_context()


def secure_server(tls: Any, handler: Any = echo, **options: Any) -> Server:
    return local_server(handler, SECURE, tls=tls, **options)


async def gone(server: Server) -> None:
    await wait_until(lambda: not server.connections)


async def works(server: Server, context: ssl.SSLContext, index: int = 0) -> bytes:
    """The certificate that the server has shown to a client that it served."""
    async with await TLSClient.connect(server, context, index=index) as client:
        assert await client.ask(b"hello") == b"hello"
        shown = client.tls.getpeercert(binary_form=True)
        assert shown
        return shown


# Sources of the context.


async def test_paths_contexts_and_functions(
    config: TLSConfig, trusting: ssl.SSLContext, server_context: ssl.SSLContext
) -> None:
    for source in (config, server_context, config.create_context, lambda: server_context):
        async with secure_server(source) as server:
            await works(server, trusting)
            assert server.tls_context is not None
            assert server.statistics().listeners[0].address.startswith("tls+tcp://")
        assert server.tls_context is None


@pytest.fixture
def server_context(ca: Authority) -> ssl.SSLContext:
    return ca.server_context()


async def test_what_is_seen_of_it(config: TLSConfig, trusting: ssl.SSLContext) -> None:
    seen: list[Any] = []

    async def handler(stream: Stream) -> None:
        tls = stream.ssl_object
        assert tls is not None
        seen.extend([tls.version(), tls.selected_alpn_protocol(), stream.peer_certificate])
        await echo(stream)

    config = replace(config, alpn=("chat/2", "chat/1"))
    trusting.set_alpn_protocols(["chat/1", "other"])
    async with secure_server(config, handler) as server:
        await works(server, trusting)
    assert seen == ["TLSv1.3", "chat/1", None]


async def test_a_client_that_wants_an_old_version(
    config: TLSConfig, trusting: ssl.SSLContext, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.warns(DeprecationWarning, match="TLSv1_1"):
        trusting.maximum_version = ssl.TLSVersion.TLSv1_1
    trusting.set_ciphers("ALL:@SECLEVEL=0")
    async with secure_server(config) as server:
        with pytest.raises(ssl.SSLError):
            await TLSClient.connect(server, trusting)
        await gone(server)
        assert server.statistics().closed == {CloseReason.HANDSHAKE_FAILED: 1}
    assert not complaints(caplog)


async def test_client_certificates(ca: Authority, config: TLSConfig, client_contexts: Any) -> None:
    names: list[Any] = []

    async def handler(stream: Stream) -> None:
        assert stream.peer_certificate is not None
        names.append(stream.peer_certificate.common_name)
        await echo(stream)

    config = replace(
        config,
        client_ca=ca.file,
        client_certificates="required",
    )
    known, nobody, stranger = client_contexts
    async with secure_server(config, handler) as server:
        await works(server, known)
        for context in (nobody, stranger):
            # Under TLS 1.3 the client learns of it after its own part of the handshake.
            with pytest.raises((ssl.SSLError, ConnectionError, AssertionError)):
                await works(server, context)
        await gone(server)
        # The one that was served went away without the closing alert.
        assert server.statistics().closed == {CloseReason.RESET: 1, CloseReason.HANDSHAKE_FAILED: 2}
    assert names == ["alice"]


@pytest.fixture
def client_contexts(ca: Authority) -> tuple[ssl.SSLContext, ...]:
    stranger = authority("strangers").client("mallory")
    return ca.client_context(ca.client("alice")), ca.client_context(), ca.client_context(stranger)


async def test_names(config: TLSConfig, named: CertificateFiles, trusting: ssl.SSLContext) -> None:
    other = TLSConfig(certificate=named.certificate, private_key=named.private_key)
    both = replace(config, sni={"other.example.org": other})
    async with secure_server(both) as server:
        for name in ("localhost", "other.example.org"):
            async with await TLSClient.connect(server, trusting, server_hostname=name) as client:
                assert await client.ask(b"x") == b"x"


@pytest.fixture
def named(ca: Authority) -> CertificateFiles:
    return ca.server("other.example.org")


# Other certificates while it runs.


async def test_reloaded_on_demand(
    config: TLSConfig, files: CertificateFiles, renewed: CertificateFiles, trusting: ssl.SSLContext
) -> None:
    async with secure_server(config) as server:
        async with await TLSClient.connect(server, trusting) as old:
            before = await works(server, trusting)
            await asyncio.to_thread(shutil.copy, renewed.combined, files.certificate)
            await asyncio.to_thread(shutil.copy, renewed.combined, files.private_key)
            assert await server.reload_tls()
            assert await works(server, trusting) != before
            assert await old.ask(b"still here") == b"still here"


@pytest.fixture
def renewed(ca: Authority) -> CertificateFiles:
    return ca.issue("localhost", "127.0.0.1")


async def test_reloaded_when_the_files_change(
    files: CertificateFiles,
    renewed: CertificateFiles,
    trusting: ssl.SSLContext,
    caplog: pytest.LogCaptureFixture,
) -> None:
    config = TLSConfig(certificate=files.certificate, private_key=files.private_key, reload_interval=20 * MS)
    async with secure_server(config) as server:
        async with await TLSClient.connect(server, trusting) as old:
            before = server.tls_context
            shown = await works(server, trusting)
            await asyncio.to_thread(files.certificate.write_bytes, b"half of it")
            await wait_until(lambda: complaints(caplog))
            assert server.tls_context is before
            assert await works(server, trusting) == shown
            await asyncio.to_thread(shutil.copy, renewed.certificate, files.certificate)
            await asyncio.to_thread(shutil.copy, renewed.private_key, files.private_key)
            await wait_until(lambda: server.tls_context is not before)
            assert await works(server, trusting) != shown
            assert await old.ask(b"still here") == b"still here"


# Those who do not speak TLS, or do not speak.


def hello_with_name(name: bytes) -> bytes:
    """A ClientHello that asks for a server name, whatever bytes it has."""
    entry = b"\x00" + len(name).to_bytes(2) + name
    names = len(entry).to_bytes(2) + entry
    extensions = b"\x00\x00" + len(names).to_bytes(2) + names
    body = (
        b"\x03\x03" + bytes(32) + b"\x00" + b"\x00\x02\xc0\x2f" + b"\x01\x00"
        + len(extensions).to_bytes(2) + extensions
    )  # fmt: skip
    message = b"\x01" + len(body).to_bytes(3) + body
    return b"\x16\x03\x01" + len(message).to_bytes(2) + message


SCANNERS = {
    "http": b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "ssh": b"SSH-2.0-scanner\r\n",
    "ssl2": b"\x80\x2e\x01\x00\x02\x00\x15\x00\x00\x00\x10" + bytes(35),
    "zeros": bytes(500),
    "noise": bytes(range(256)) * 4,
    "a record that is too long": b"\x16\x03\x01\xff\xff" + bytes(70_000),
    "no cipher in common": hello_with_name(b"localhost"),
    "an alert": b"\x15\x03\x01\x00\x02\x02\x28",
    "nothing": b"",
    "half a record": b"\x16\x03\x01\x02\x00\x01\x00",
}


@pytest.mark.parametrize("ending", ["half_close", "close", "reset"])
@pytest.mark.parametrize("data", SCANNERS.values(), ids=SCANNERS)
async def test_scanners_are_one_debug_line_and_a_counter(
    data: bytes, ending: str, config: TLSConfig, trusting: ssl.SSLContext, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "asyncserver")
    async with secure_server(config) as server:
        client = await Client.connect(server)
        with suppress(ConnectionError):
            await client.send(data)
        if ending == "half_close":
            with suppress(OSError):
                client.half_close()
            await gone(server)
            client.close()
        else:
            getattr(client, ending)()
        await gone(server)
        statistics = server.statistics()
        assert statistics.closed == {CloseReason.HANDSHAKE_FAILED: 1}
        assert statistics.handshakes == 0
        about = [r.getMessage() for r in caplog.records if "TLS handshake" in r.getMessage()]
        assert len(about) == 1
        assert not [record for record in caplog.records if record.levelno > logging.INFO or record.exc_info]
        await works(server, trusting)


async def test_a_name_that_is_not_ascii(
    config: TLSConfig, named: CertificateFiles, trusting: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The ``ssl`` module refuses it and tells ``sys.unraisablehook``; the server is not concerned."""
    unraisable: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", unraisable.append)
    other = TLSConfig(certificate=named.certificate, private_key=named.private_key)
    both = replace(config, sni={"other.example.org": other})
    async with secure_server(both) as server:
        for name in (b"\xff\xfe", "bücher.example".encode(), b"xn--a" + b"\x80" * 50):
            async with await Client.connect(server) as client:
                await client.send(hello_with_name(name))
                await client.receive()
        await gone(server)
        assert server.statistics().closed == {CloseReason.HANDSHAKE_FAILED: 3}
        await works(server, trusting)
    unraisable.clear()


async def test_the_silent_have_a_deadline(config: TLSConfig, caplog: pytest.LogCaptureFixture) -> None:
    async with secure_server(config, timeouts=Timeouts(handshake=100 * MS)) as server:
        clients = await connect_many(server, 10)
        await gone(server)
        assert server.statistics().closed == {CloseReason.HANDSHAKE_TIMEOUT: 10}
        for client in clients:
            client.close()
    assert not complaints(caplog)


async def test_half_a_handshake_has_the_same_deadline(config: TLSConfig, trusting: ssl.SSLContext) -> None:
    async with (
        secure_server(config, timeouts=Timeouts(handshake=100 * MS)) as server,
        await Client.connect(server) as client,
    ):
        hello = TLSClient(client, trusting, "localhost").first_flight()
        with suppress(ConnectionError):  # On a busy machine the deadline may pass before the last byte.
            await client.send_slowly(hello[:3], 20 * MS)
        await gone(server)
        assert server.statistics().closed == {CloseReason.HANDSHAKE_TIMEOUT: 1}


async def test_a_hundred_silent_clients_stop_nobody(config: TLSConfig, trusting: ssl.SSLContext) -> None:
    """Neither on a plain address nor, as they do not even begin a handshake, on this one."""
    limits = Limits(max_handshakes=4)
    async with local_server(echo, SECURE, LOOPBACK, tls=config, limits=limits) as server:
        silent = await connect_many(server, 100)
        await wait_until(lambda: server.statistics().states == {ConnectionState.HANDSHAKE: 100})
        async with await Client.connect(server, index=1) as plain:
            assert await plain.ask(b"hello") == b"hello"
        await within(works(server, trusting), timeout=PATIENCE / 2)
        for client in silent:
            client.close()
        await gone(server)


async def test_handshakes_are_bounded(config: TLSConfig, trusting: ssl.SSLContext) -> None:
    """Those that have begun hold a place; who waits for one gets it when it is free."""
    async with secure_server(config, limits=Limits(max_handshakes=2)) as server:
        slow = [TLSClient(await Client.connect(server), trusting, "localhost") for _ in range(5)]
        hellos = [client.first_flight() for client in slow]
        for client, hello in zip(slow, hellos, strict=True):
            await client.client.send(hello[:20])
        await wait_until(lambda: server.statistics().handshakes == 2)
        await stays(lambda: server.statistics().handshakes == 2)
        server.update(max_handshakes=3)
        await wait_until(lambda: server.statistics().handshakes == 3)
        for client, hello in zip(slow, hellos, strict=True):
            await client.client.send(hello[20:])
        for client in slow:
            await within(client.handshake())
            assert await client.ask(b"x") == b"x"
            client.close()
        await gone(server)
        assert server.statistics().handshakes == 0


async def test_many_handshakes_through_one_place(config: TLSConfig, trusting: ssl.SSLContext) -> None:
    async with secure_server(config, limits=Limits(max_handshakes=1)) as server:
        await within(asyncio.gather(*(works(server, trusting) for _ in range(20))))


@pytest.mark.parametrize("how", ["close", "abort", "aclose", "reset"])
async def test_ended_during_the_handshake(
    how: str, config: TLSConfig, trusting: ssl.SSLContext, caplog: pytest.LogCaptureFixture
) -> None:
    server = secure_server(config, timeouts=Timeouts(grace=50 * MS))
    await server.start()
    client = await Client.connect(server)
    await client.send(TLSClient(client, trusting, "localhost").first_flight()[:50])
    await wait_until(lambda: server.statistics().handshakes == 1)
    (connection,) = server.connections
    if how == "close":
        await within(connection.close())
    elif how == "abort":
        connection.abort()
        await within(connection.wait_closed())
    elif how == "aclose":
        await within(server.aclose())
    else:
        client.reset()
    await gone(server)
    client.close()
    assert server.statistics().handshakes == 0
    await within(server.aclose())
    assert not complaints(caplog)


async def test_aborted_during_the_handshake_while_another_one_comes(
    config: TLSConfig, trusting: ssl.SSLContext
) -> None:
    """The newcomer may get the number of the descriptor that was just closed; it is told of its bytes."""
    plain_handler_ran = []

    async def handler(stream: Stream) -> None:
        plain_handler_ran.append(1)
        await echo(stream)

    async with local_server(handler, SECURE, LOOPBACK, tls=config) as server:
        plain_listener = server.listeners[1]
        for _ in range(20):
            shaking = await Client.connect(server)
            await wait_until(lambda: ConnectionState.HANDSHAKE in server.statistics().states)
            (connection,) = server.connections
            plain_listener.pause()
            async with await Client.connect(server, index=1) as client:
                number = connection.stream._sock.fileno()
                connection.abort()
                plain_listener._on_acceptable()  # In the same turn of the loop.
                plain_listener.resume()
                (newcomer,) = [c for c in server.connections if c is not connection]
                assert newcomer.stream._sock.fileno() == number
                assert await client.ask(b"hello") == b"hello"
            shaking.close()
            await gone(server)


async def test_verify_comes_before_the_handshake(config: TLSConfig) -> None:
    def verify(connection: Connection) -> bool:
        assert connection.state is ConnectionState.NEW
        return False

    async with secure_server(config, verify=verify) as server, await Client.connect(server) as client:
        assert await client.ended() == "eof"
        assert server.statistics().closed == {CloseReason.REFUSED: 1}


# STARTTLS.


async def upgrading(stream: Stream) -> None:
    await stream.receive_exactly(8)
    await stream.send(b"go ahead")
    await stream.start_tls()
    await echo(stream)


async def ask_for_tls(client: Client) -> None:
    assert await client.ask(b"STARTTLS") == b"go ahead"


async def test_starttls_uses_the_servers_certificate(config: TLSConfig, trusting: ssl.SSLContext) -> None:
    async with local_server(upgrading, tls=config) as server, await Client.connect(server) as client:
        await ask_for_tls(client)
        secure = TLSClient(client, trusting, "localhost")
        await secure.handshake()
        assert await secure.ask(b"hello") == b"hello"


@pytest.mark.parametrize("grouped", [False, True])
async def test_what_peers_do_in_starttls_is_never_a_traceback(
    grouped: bool, config: TLSConfig, caplog: pytest.LogCaptureFixture
) -> None:
    async def in_group(stream: Stream) -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(upgrading(stream))

    async with local_server(in_group if grouped else upgrading, tls=config) as server:
        for data in (b"plain text\r\n" * 10, b""):
            async with await Client.connect(server) as client:
                await ask_for_tls(client)
                await client.send(data)
                client.half_close()
                await gone(server)
        async with await Client.connect(server) as client:
            await client.send(b"STARTTLSand more")
            await gone(server)
        assert server.statistics().closed == {CloseReason.HANDSHAKE_FAILED: 3}
    assert not complaints(caplog)


async def test_starttls_without_a_certificate_is_the_programs_fault(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with local_server(upgrading) as server, await Client.connect(server) as client:
        await ask_for_tls(client)
        assert await client.ended() == "eof"
        client.close()
        await gone(server)
        assert server.statistics().closed == {CloseReason.HANDLER_ERROR: 1}
    (record,) = [record for record in caplog.records if record.exc_info]
    assert isinstance(record.exc_info[1], ServerStateError)  # type: ignore[index]


async def test_starttls_twice_is_the_programs_fault(
    config: TLSConfig, trusting: ssl.SSLContext, caplog: pytest.LogCaptureFixture
) -> None:
    async def handler(stream: Stream) -> None:
        assert current_connection().listener.tls
        await stream.start_tls()

    async with secure_server(config, handler) as server:
        async with await TLSClient.connect(server, trusting) as client:
            assert await client.receive() == b""
        await gone(server)
        assert server.statistics().closed == {CloseReason.HANDLER_ERROR: 1}
    (record,) = [record for record in caplog.records if record.exc_info]
    assert isinstance(record.exc_info[1], TLSUpgradeError)  # type: ignore[index]
