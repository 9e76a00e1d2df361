from __future__ import annotations

import os
import socket
import struct
import sys
import tempfile
from typing import Any

import pytest

from asyncserver import ip_sockets, peers
from asyncserver.addresses import Endpoint, IPEndpoint, UnixEndpoint
from asyncserver.peers import (
    PeerCredentials,
    SocketAddress,
    endpoint_from_sockaddr,
    peer_credentials,
    peer_key,
)
from tests.unprivileged import run_unprivileged

LINUX = sys.platform.startswith("linux")
V4, V6 = socket.AF_INET, socket.AF_INET6
UNIX: int = getattr(socket, "AF_UNIX", 1)
needs_ipv6 = pytest.mark.skipif(not ip_sockets.has_ipv6(), reason="this machine has no IPv6")


@pytest.mark.parametrize(
    ("family", "sockaddr", "endpoint"),
    [
        (V4, ("192.0.2.1", 80), IPEndpoint("192.0.2.1", 80)),
        (V6, ("2001:db8::1", 80, 0, 0), IPEndpoint("2001:db8::1", 80)),
        (V6, ("2001:db8::1", 80, 5, 0), IPEndpoint("2001:db8::1", 80, 5)),
        (V6, ("fe80::1", 80, 0, 2), IPEndpoint("fe80::1", 80, 0, 2)),
        (V6, ("fe80::1%eth0", 80, 0, 2), IPEndpoint("fe80::1", 80, 0, 2)),
        (V6, ("::ffff:192.0.2.1", 80, 0, 0), IPEndpoint("192.0.2.1", 80)),
        (V6, ("::ffff:0:1", 80, 0, 0), IPEndpoint("::ffff:0:1", 80)),
        (UNIX, "", UnixEndpoint("")),
        (UNIX, b"", UnixEndpoint("")),
        (UNIX, None, UnixEndpoint("")),
        (UNIX, "/run/x.sock", UnixEndpoint("/run/x.sock")),
        (UNIX, b"/run/x.sock", UnixEndpoint("/run/x.sock")),
        (UNIX, b"\0name\xff", UnixEndpoint("@name\udcff")),
    ],
)
def test_endpoint_of_a_sockaddr(family: int, sockaddr: SocketAddress, endpoint: Endpoint) -> None:
    found = endpoint_from_sockaddr(family, sockaddr)
    assert found == endpoint
    assert type(found) is type(endpoint)


@pytest.mark.parametrize(("family", "host"), [(V4, "127.0.0.1"), pytest.param(V6, "::1", marks=needs_ipv6)])
def test_endpoints_of_a_real_connection(family: int, host: str) -> None:
    with socket.create_server((host, 0), family=family) as server:
        with socket.create_connection((host, server.getsockname()[1])) as client:
            accepted, sockaddr = server.accept()
            with accepted:
                peer = endpoint_from_sockaddr(accepted.family, sockaddr)
                local = endpoint_from_sockaddr(accepted.family, accepted.getsockname())
                assert peer == IPEndpoint(host, client.getsockname()[1])
                assert local == IPEndpoint(host, server.getsockname()[1])


@needs_ipv6
def test_ipv4_peer_of_a_dual_stack_socket() -> None:
    with socket.create_server(("::", 0), family=V6, dualstack_ipv6=True) as server:
        with socket.create_connection(("127.0.0.1", server.getsockname()[1])) as client:
            accepted, sockaddr = server.accept()
            with accepted:
                assert sockaddr[0] == "::ffff:127.0.0.1"
                assert endpoint_from_sockaddr(accepted.family, sockaddr) == IPEndpoint(*client.getsockname())
                assert peer_key(accepted.family, sockaddr) == "127.0.0.1"


def test_unnamed_unix_peer() -> None:
    with tempfile.TemporaryDirectory(prefix="u") as directory, socket.socket(UNIX) as server:
        server.bind(f"{directory}/s")
        server.listen()
        with socket.socket(UNIX) as client:
            client.connect(f"{directory}/s")
            accepted, sockaddr = server.accept()
            with accepted:
                assert endpoint_from_sockaddr(accepted.family, sockaddr) == UnixEndpoint("")


# -- keys for limits -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "sockaddr", "key"),
    [
        (V4, ("192.0.2.1", 80), "192.0.2.1"),
        (V4, ("192.0.2.1", 81), "192.0.2.1"),
        (V6, ("::ffff:192.0.2.1", 80, 0, 0), "192.0.2.1"),
        (V6, ("2001:db8:1:2:3:4:5:6", 80, 0, 0), "2001:db8:1:2::/64"),
        (V6, ("2001:db8:1:2:ffff::1", 80, 9, 0), "2001:db8:1:2::/64"),
        (V6, ("2001:db8:1:3::1", 80, 0, 0), "2001:db8:1:3::/64"),
        (V6, ("::1", 80, 0, 0), "::/64"),
        (V6, ("fe80::1", 80, 0, 2), "fe80::1%2"),
        (V6, ("fe80::1%eth0", 80, 0, 2), "fe80::1%2"),
        (V6, ("febf::2", 80, 0, 3), "febf::2%3"),
        (V6, ("fec0::2", 80, 0, 0), "fec0::/64"),
        (UNIX, "", "unix"),
        (UNIX, b"\0name", "unix"),
    ],
)
def test_key(family: int, sockaddr: SocketAddress, key: str) -> None:
    assert peer_key(family, sockaddr) == key
    assert peer_key(family, sockaddr, None) == key


def test_key_of_a_unix_peer_is_its_user() -> None:
    assert peer_key(UNIX, "", PeerCredentials(17, 1000, 50)) == "uid:1000"
    assert peer_key(UNIX, "/named", PeerCredentials(18, 1000, 51)) == "uid:1000"


# -- credentials -----------------------------------------------------------------------------------


@pytest.mark.skipif(not LINUX and sys.platform != "darwin", reason="no credentials on this platform")
def test_credentials_of_this_process() -> None:
    one, other = socket.socketpair()
    with one, other:
        assert peer_credentials(one) == PeerCredentials(os.getpid(), os.geteuid(), os.getegid())


CONNECTING = r"""
with socket.socket(socket.AF_UNIX) as client:
    client.connect("\0" + sys.argv[1])
    print(os.getpid())
"""


@pytest.mark.skipif(not LINUX, reason="needs an abstract name")
def test_credentials_of_another_user() -> None:
    if os.geteuid() != 0:
        pytest.skip("needs a second user")
    name = f"asyncserver-credentials-{os.getpid()}"
    with socket.socket(UNIX) as server:
        server.bind(f"\0{name}")
        server.listen()
        text = run_unprivileged(CONNECTING, name)
        accepted, _ = server.accept()
        with accepted:
            credentials = peer_credentials(accepted)
    assert credentials is not None
    assert (str(credentials.pid), credentials.uid, credentials.gid) == (text, 65534, 65534)


def test_no_credentials_for_tcp() -> None:
    with socket.socket() as sock:
        assert peer_credentials(sock) is None


@pytest.mark.skipif(not LINUX, reason="what Linux reports")
def test_no_credentials_without_a_peer() -> None:
    with socket.socket(UNIX) as sock:
        assert peer_credentials(sock) is None


def test_no_credentials_where_the_kernel_refuses() -> None:
    class Refusing(socket.socket):
        def getsockopt(self, *_: Any) -> Any:
            raise OSError("no")

    with Refusing(UNIX) as sock:
        assert peer_credentials(sock) is None


def test_no_credentials_on_other_platforms(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "_ON_LINUX", False)
    monkeypatch.setattr(peers, "_ON_DARWIN", False)
    one, other = socket.socketpair()
    with one, other:
        assert peer_credentials(one) is None


@pytest.mark.parametrize("pid", [4711, None])
def test_layout_of_macos(pid: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    class Darwin(socket.socket):
        def getsockopt(self, level: int, option: int, size: int = 0) -> Any:
            assert level == 0
            if option == 2:
                if pid is None:
                    raise OSError("no")
                return pid
            assert (option, size) == (1, 76)
            return struct.pack("=IIh2x16I", 0, 501, 2, 20, 12, *[0] * 14)

    monkeypatch.setattr(peers, "_ON_LINUX", False)
    monkeypatch.setattr(peers, "_ON_DARWIN", True)
    with Darwin(UNIX) as sock:
        assert peer_credentials(sock) == PeerCredentials(pid or 0, 501, 20)
