"""Who is there: endpoints, credentials, certificates and anyio's typed attributes."""

from __future__ import annotations

import os
import socket
import ssl
import sys
from typing import Any

import anyio.abc
import pytest
from anyio import ClosedResourceError, TypedAttributeLookupError
from anyio.abc import SocketAttribute
from anyio.streams.tls import TLSAttribute

from asyncserver import IPEndpoint, Stream, UnixEndpoint
from tests.certificates import authority
from tests.streams import SOCKET_KINDS, connected, socket_pair

CLIENT = authority().client("client")
CLIENT_DER = CLIENT.der
MUTUAL_CLIENT = authority().client_context(CLIENT)
MUTUAL_SERVER = authority().server_context()
MUTUAL_SERVER.verify_mode = ssl.CERT_REQUIRED
MUTUAL_SERVER.load_verify_locations(authority().file)
for context in (MUTUAL_CLIENT, MUTUAL_SERVER):
    context.set_alpn_protocols(["first", "second"])


@pytest.mark.parametrize("kind", SOCKET_KINDS)
async def test_a_stream_is_anyios_socket_stream(kind: str) -> None:
    async with connected(kind) as (stream, _):
        assert isinstance(stream, anyio.abc.SocketStream)
        assert isinstance(stream, anyio.abc.ByteStream)
        sock = stream.extra(SocketAttribute.raw_socket)
        assert sock.fileno() == stream._fd
        assert stream.extra(SocketAttribute.family) == sock.family
        assert (stream.ssl_object is None) == (kind != "tls")


@pytest.mark.parametrize(
    ("family", "host"), [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")], ids=["IPv4", "IPv6"]
)
async def test_the_addresses_of_ip(family: int, host: str) -> None:
    near, far = await socket_pair(family)
    stream = Stream(near)
    local, peer = near.getsockname(), far.getsockname()
    assert stream.local == IPEndpoint(host, local[1])
    assert stream.peer == IPEndpoint(host, peer[1])
    assert stream.extra(SocketAttribute.local_port) == local[1]
    assert stream.extra(SocketAttribute.remote_port) == peer[1]
    assert stream.extra(SocketAttribute.local_address)[0] == host
    assert stream.extra(SocketAttribute.remote_address)[0] == host
    assert stream.peer_credentials is None
    assert repr(stream) == f"<Stream peer={stream.peer} open>"
    stream.abort()
    assert stream.peer == IPEndpoint(host, peer[1])
    assert repr(stream) == f"<Stream peer={stream.peer} closed>"
    far.close()


async def test_a_unix_socket() -> None:
    async with connected("unix") as (stream, _):
        assert stream.peer == UnixEndpoint("")
        assert stream.local == UnixEndpoint("")
        with pytest.raises(TypedAttributeLookupError):
            stream.extra(SocketAttribute.remote_port)
        credentials = stream.peer_credentials
        assert credentials is not None
        assert (credentials.uid, credentials.gid) == (os.geteuid(), os.getegid())
        if sys.platform == "linux":
            assert credentials.pid == os.getpid()


async def test_a_closed_stream_can_be_looked_at() -> None:
    near, far = await socket_pair()
    stream = Stream(near)
    far.close()
    stream.abort()
    assert repr(stream) == "<Stream peer=unknown closed>"
    for attribute in ("peer", "local", "peer_credentials"):
        with pytest.raises(ClosedResourceError):
            getattr(stream, attribute)
    assert stream.peer_certificate is None


async def test_addresses_that_are_known_are_not_asked_for() -> None:
    near, far = await socket_pair()
    stream = Stream(near, sockaddr=("192.0.2.1", 5), local=IPEndpoint("192.0.2.2", 80))
    assert (str(stream.peer), str(stream.local)) == ("192.0.2.1:5", "192.0.2.2:80")
    stream.abort()
    far.close()


async def test_tls() -> None:
    async with connected("tls") as (stream, _):
        tls: Any = stream.ssl_object
        assert stream.extra(TLSAttribute.ssl_object) is tls
        assert stream.extra(TLSAttribute.tls_version) == tls.version() == "TLSv1.3"
        assert stream.extra(TLSAttribute.cipher) == tls.cipher()
        assert stream.extra(TLSAttribute.server_side) is True
        assert stream.extra(TLSAttribute.standard_compatible) is True
        assert stream.extra(TLSAttribute.alpn_protocol) is None
        assert stream.extra(TLSAttribute.peer_certificate) is None
        assert stream.extra(TLSAttribute.peer_certificate_binary) is None
        assert stream.extra(TLSAttribute.shared_ciphers)
        assert stream.peer_certificate is None
        assert dict(stream.extra_attributes).keys() > {SocketAttribute.remote_address}


async def test_mutual_tls_and_alpn() -> None:
    async with connected("tls", server_context=MUTUAL_SERVER, client_context=MUTUAL_CLIENT) as (stream, _):
        certificate = stream.peer_certificate
        assert certificate is not None
        assert certificate.common_name == "client"
        assert certificate.dns_names == ("client.example.org",)
        assert certificate.der == CLIENT_DER == stream.extra(TLSAttribute.peer_certificate_binary)
        assert stream.extra(TLSAttribute.peer_certificate)
        assert stream.extra(TLSAttribute.alpn_protocol) == "first"


async def test_a_plain_stream_has_no_tls_attributes() -> None:
    async with connected() as (stream, _):
        with pytest.raises(TypedAttributeLookupError):
            stream.extra(TLSAttribute.ssl_object)
        assert stream.extra(TLSAttribute.tls_version, None) is None
