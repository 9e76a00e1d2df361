from __future__ import annotations

import pickle
from collections.abc import Callable
from dataclasses import FrozenInstanceError, replace

import pytest

from asyncserver.addresses import (
    Address,
    FDAddress,
    SystemdAddress,
    TCPAddress,
    UDPAddress,
    UnixAddress,
    UnixDatagramAddress,
    datagram_address,
    parse_address,
    stream_address,
)
from asyncserver.errors import AddressError

CANONICAL: list[tuple[str, Address]] = [
    ("udp://127.0.0.1:53", UDPAddress("127.0.0.1", 53)),
    ("udp://localhost:0", UDPAddress("localhost", 0)),
    ("udp://:53", UDPAddress("", 53)),
    ("udp://:53?dual_stack=1", UDPAddress("", 53, dual_stack=True)),
    ("udp://[::]:53?dual_stack=0", UDPAddress("::", 53, dual_stack=False)),
    ("udp://[::1]:53?reuse_port=1", UDPAddress("::1", 53, reuse_port=True)),
    ("udp://[::]:53?dual_stack=1&reuse_port=0", UDPAddress("::", 53, dual_stack=True, reuse_port=False)),
    ("udp://[fe80::1%25eth0]:53", UDPAddress("fe80::1%eth0", 53)),
    ("udp://239.1.2.3:5000", UDPAddress("239.1.2.3", 5000)),
    ("unixgram:///run/x.sock", UnixDatagramAddress("/run/x.sock")),
    (
        "unixgram:///run/x.sock?mode=660&user=5&group=app",
        UnixDatagramAddress("/run/x.sock", mode=0o660, user=5, group="app"),
    ),
    ("unixgram:x.sock", UnixDatagramAddress("x.sock")),
    ("unixgram:./@x", UnixDatagramAddress("./@x")),
    ("unixgram:@name", UnixDatagramAddress("@name")),
    ("unixgram:///with%20space%FF", UnixDatagramAddress("/with space\udcff")),
]


@pytest.mark.parametrize(("text", "address"), CANONICAL, ids=[text for text, _ in CANONICAL])
def test_text_and_object_convert_both_ways(text: str, address: Address) -> None:
    assert parse_address(text) == address
    assert str(address) == text
    assert parse_address(address) is address
    assert pickle.loads(pickle.dumps(address)) == address


def test_other_spellings_are_read() -> None:
    assert parse_address("UDP://*:53") == UDPAddress("", 53)
    assert parse_address("unixgram:/run/x") == UnixDatagramAddress("/run/x")
    assert parse_address("unixgram:x?mode=0o600&user=%61") == UnixDatagramAddress("x", mode=0o600, user="a")


@pytest.mark.parametrize(
    ("text", "part", "value", "reason"),
    [
        ("tls+udp://:53", "scheme", "tls+udp", "datagrams have no TLS here"),
        ("tls+unixgram:@x", "scheme", "tls+unixgram", "datagrams have no TLS here"),
        ("unix-dgram:/x", "scheme", "unix-dgram", "did you mean unixgram:?"),
        ("gopher://x:1", "scheme", "gopher", "udp, unixgram"),
        ("udp:127.0.0.1:53", "host", "127.0.0.1:53", "as in udp://"),
        ("udp://::1:53", "host", "::1:53", "in brackets"),
        ("udp://127.0.0.1", "port", "", "is missing"),
        ("udp://:53/x", "path", "/x", "a UDP address has none"),
        ("udp://:53?backlog=5", "option backlog", "5", "dual_stack, reuse_port"),
        ("udp://[::1]:53?dual_stack=1", "option dual_stack", True, "for [::] only, not for ::1"),
        ("unixgram://run/x", "path", "//run/x", "unixgram:///run/app.sock"),
        ("unixgram:", "path", "", "is empty"),
        ("unixgram:@x?mode=660", "option mode", 0o660, "no file"),
        ("unixgram:x?backlog=5", "option backlog", "5", "mode, user, group"),
    ],
)
def test_malformed_text_is_an_error_that_names_part_and_value(
    text: str, part: str, value: object, reason: str
) -> None:
    with pytest.raises(AddressError) as caught:
        parse_address(text)
    assert (caught.value.part, caught.value.value) == (part, value)
    assert reason in caught.value.reason


@pytest.mark.parametrize(
    ("make", "part", "value"),
    [
        (lambda: UDPAddress(None, 1), "host", None),  # type: ignore[arg-type]
        (lambda: UDPAddress("[::1]", 1), "host", "[::1]"),
        (lambda: UDPAddress("", 65536), "port", 65536),
        (lambda: UDPAddress("::1", 1, dual_stack=True), "option dual_stack", True),
        (lambda: UDPAddress("", 1, dual_stack=1), "option dual_stack", 1),  # type: ignore[arg-type]
        (lambda: UDPAddress("", 1, reuse_port=1), "option reuse_port", 1),  # type: ignore[arg-type]
        (lambda: UnixDatagramAddress("a/"), "path", "a/"),
        (lambda: UnixDatagramAddress("x", mode=660), "option mode", 660),
        (lambda: UnixDatagramAddress("x", user=""), "option user", ""),
        (lambda: UnixDatagramAddress("x", group=-1), "option group", -1),
        (lambda: UnixDatagramAddress("@x", user="app"), "option user", "app"),
        (lambda: UnixDatagramAddress("@x", group=0), "option group", 0),
    ],
)
def test_objects_obey_the_same_rules(make: Callable[[], object], part: str, value: object) -> None:
    with pytest.raises(AddressError) as caught:
        make()
    assert (caught.value.part, caught.value.value) == (part, value)


def test_objects_are_values_in_normal_form() -> None:
    assert UDPAddress("*") == UDPAddress("", 0)
    assert UnixDatagramAddress("x", user="12") == UnixDatagramAddress("x", user=12)
    assert UnixDatagramAddress("@x").is_abstract
    assert not UnixDatagramAddress("./@x").is_abstract
    assert replace(UDPAddress("::1", 5), port=6) == UDPAddress("::1", 6)
    with pytest.raises(FrozenInstanceError):
        UDPAddress().port = 5  # type: ignore[misc]


# -- streams and datagrams -------------------------------------------------------------------------

EITHER: list[Address] = [FDAddress(3), SystemdAddress("x")]


@pytest.mark.parametrize(
    "address", [TCPAddress(), UnixAddress("x", tls=True), FDAddress(3, tls=True), *EITHER]
)
def test_addresses_of_streams(address: Address) -> None:
    assert stream_address(address) is address
    assert stream_address(str(address)) == address


@pytest.mark.parametrize("address", [UDPAddress(), UnixDatagramAddress("x"), *EITHER])
def test_addresses_of_datagrams(address: Address) -> None:
    assert datagram_address(address) is address
    assert datagram_address(str(address)) == address


@pytest.mark.parametrize(
    ("address", "scheme"), [(UDPAddress("", 53), "udp"), (UnixDatagramAddress("/x"), "unixgram")]
)
def test_datagrams_where_streams_are_needed(address: Address, scheme: str) -> None:
    for given in (address, str(address)):
        with pytest.raises(AddressError) as caught:
            stream_address(given)
        assert str(caught.value) == (
            f"scheme {scheme!r}: is for datagrams: "
            "serve it with run_datagrams(), serve_datagrams() or DatagramServer"
        )


@pytest.mark.parametrize(
    ("address", "scheme"),
    [(TCPAddress("", 53), "tcp"), (TCPAddress(tls=True), "tls+tcp"), (UnixAddress("/x"), "unix")],
)
def test_streams_where_datagrams_are_needed(address: Address, scheme: str) -> None:
    for given in (address, str(address)):
        with pytest.raises(AddressError) as caught:
            datagram_address(given)
        assert str(caught.value) == (
            f"scheme {scheme!r}: is for streams: serve it with run(), serve() or Server"
        )


@pytest.mark.parametrize(
    ("address", "scheme"), [(FDAddress(3, tls=True), "tls+fd"), (SystemdAddress(tls=True), "tls+systemd")]
)
def test_tls_where_datagrams_are_needed(address: Address, scheme: str) -> None:
    for given in (address, str(address)):
        with pytest.raises(
            AddressError, match=f"scheme '{scheme}': datagrams have no TLS here".replace("+", r"\+")
        ):
            datagram_address(given)


def test_malformed_text_is_told_by_both() -> None:
    for parse in (stream_address, datagram_address):
        with pytest.raises(AddressError, match="did you mean tcp://:53"):
            parse("53")
