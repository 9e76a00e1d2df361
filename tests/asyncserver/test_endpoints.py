from __future__ import annotations

import pytest

from asyncserver.endpoints import Endpoint, IPEndpoint, UnixEndpoint


@pytest.mark.parametrize(
    ("endpoint", "text"),
    [
        (IPEndpoint("127.0.0.1", 80), "127.0.0.1:80"),
        (IPEndpoint("::1", 80), "[::1]:80"),
        (IPEndpoint("fe80::1", 80, 0, 2), "[fe80::1%2]:80"),
        (UnixEndpoint("/run/x.sock"), "unix:/run/x.sock"),
        (UnixEndpoint("@abstract"), "unix:@abstract"),
        (UnixEndpoint(""), "unix:(unnamed)"),
    ],
)
def test_text_form(endpoint: Endpoint, text: str) -> None:
    assert str(endpoint) == text
    assert f"{endpoint}" == text


def test_endpoints_are_tuples() -> None:
    host, port, *rest = IPEndpoint("127.0.0.1", 80)
    assert (host, port, rest) == ("127.0.0.1", 80, [0, 0])
    assert UnixEndpoint("/x") == ("/x",)
