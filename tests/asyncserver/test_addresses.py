from __future__ import annotations

import itertools
import os
import pickle
import random
import string
import sys
from collections.abc import Callable, Iterator
from dataclasses import FrozenInstanceError

import pytest

from asyncserver.address_rules import MAX_UNIX_PATH_BYTES
from asyncserver.addresses import (
    Address,
    FDAddress,
    SystemdAddress,
    TCPAddress,
    UnixAddress,
    parse_address,
)
from asyncserver.errors import AddressError

CANONICAL: list[tuple[str, Address]] = [
    ("tcp://127.0.0.1:9999", TCPAddress("127.0.0.1", 9999)),
    ("tcp://localhost:0", TCPAddress("localhost", 0)),
    ("tcp://a_b-c.example.org.:65535", TCPAddress("a_b-c.example.org.", 65535)),
    ("tcp://bücher.example:80", TCPAddress("bücher.example", 80)),
    ("tcp://:9999", TCPAddress("", 9999)),
    ("tcp://:9999?dual_stack=1", TCPAddress("", 9999, dual_stack=True)),
    ("tcp://[::]:7000?dual_stack=1", TCPAddress("::", 7000, dual_stack=True)),
    ("tcp://[::]:7000?dual_stack=0", TCPAddress("::", 7000, dual_stack=False)),
    ("tcp://[0:0::0]:7000?dual_stack=1", TCPAddress("0:0::0", 7000, dual_stack=True)),
    ("tcp://[::1]:7000", TCPAddress("::1", 7000)),
    ("tcp://[fe80::1%25eth0]:1", TCPAddress("fe80::1%eth0", 1)),
    ("tcp://[fe80::1%252]:1", TCPAddress("fe80::1%2", 1)),
    ("tcp://[fe80::1%2525]:1", TCPAddress("fe80::1%25", 1)),
    ("tcp://[fe80::1%25br%5B1%5D]:1", TCPAddress("fe80::1%br[1]", 1)),
    (
        "tcp://:1?dual_stack=0&reuse_port=1&backlog=7",
        TCPAddress("", 1, dual_stack=False, reuse_port=True, backlog=7),
    ),
    ("tls+tcp://example.org:443?reuse_port=0", TCPAddress("example.org", 443, tls=True, reuse_port=False)),
    ("unix:///run/x.sock", UnixAddress("/run/x.sock")),
    ("unix:////run/x.sock", UnixAddress("//run/x.sock")),
    ("unix:///run/x.sock?mode=660&group=app", UnixAddress("/run/x.sock", mode=0o660, group="app")),
    (
        "tls+unix:///x?mode=007&user=www-data&group=0&backlog=65535",
        UnixAddress("/x", tls=True, mode=7, user="www-data", group=0, backlog=65535),
    ),
    ("unix:relative.sock", UnixAddress("relative.sock")),
    ("unix:../a/b", UnixAddress("../a/b")),
    ("unix:./@file", UnixAddress("./@file")),
    ("unix:@abstract", UnixAddress("@abstract")),
    ("unix:@a/b%3F%23%25", UnixAddress("@a/b?#%")),
    ("unix:@ends/", UnixAddress("@ends/")),
    ("unix:///with%20space%09%FF%C3%A9", UnixAddress("/with space\t\udcffé")),
    ("fd://3", FDAddress(3)),
    ("tls+fd://0", FDAddress(0, tls=True)),
    ("systemd:name", SystemdAddress("name")),
    ("systemd:", SystemdAddress()),
    ("systemd:a%20b%2F%3F", SystemdAddress("a b/?")),
    ("tls+systemd:web.socket", SystemdAddress("web.socket", tls=True)),
]


@pytest.mark.parametrize(("text", "address"), CANONICAL, ids=[text for text, _ in CANONICAL])
def test_text_and_object_convert_both_ways(text: str, address: Address) -> None:
    assert parse_address(text) == address
    assert str(address) == text


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("tcp://*:9999", TCPAddress("", 9999)),
        ("TCP://localhost:1", TCPAddress("localhost", 1)),
        ("TLS+Tcp://localhost:1", TCPAddress("localhost", 1, tls=True)),
        ("tcp://%6cocalhost:1", TCPAddress("localhost", 1)),
        ("tcp://[fe80::1%eth0]:1", TCPAddress("fe80::1%eth0", 1)),
        ("tcp://localhost:00080", TCPAddress("localhost", 80)),
        ("tcp://[::]:1?dual_stack=true", TCPAddress("::", 1, dual_stack=True)),
        ("tcp://[::]:1?dual_stack=no", TCPAddress("::", 1, dual_stack=False)),
        ("unix:/run/x", UnixAddress("/run/x")),
        ("unix:%40a", UnixAddress("@a")),
        ("unix:x?mode=0o660", UnixAddress("x", mode=0o660)),
        ("unix:x?mode=0660&user=%61pp", UnixAddress("x", mode=0o660, user="app")),
        ("unix:x?user=1000", UnixAddress("x", user=1000)),
    ],
)
def test_other_spellings_are_read(text: str, address: Address) -> None:
    assert parse_address(text) == address
    assert parse_address(str(address)) == address


MALFORMED: list[tuple[str, str, object, str]] = [
    # schemes
    ("", "scheme", "", "must be tcp"),
    ("127.0.0.1:9999", "scheme", "", "did you mean tcp://127.0.0.1:9999?"),
    ("localhost:9999", "scheme", "", "did you mean tcp://localhost:9999?"),
    ("[::1]:9999", "scheme", "", "did you mean tcp://[::1]:9999?"),
    (":9999", "scheme", "", "did you mean tcp://:9999?"),
    ("9999", "scheme", "", "did you mean tcp://:9999?"),
    ("/run/x.sock", "scheme", "", "did you mean unix:///run/x.sock?"),
    ("./x.sock", "scheme", "", "did you mean unix:./x.sock?"),
    ("@name", "scheme", "", "did you mean unix:@name?"),
    ("localhost", "scheme", "", "did you mean tcp://localhost:9999?"),
    ("http://x:1", "scheme", "http", "is a protocol, not a transport; did you mean tcp://?"),
    ("tls://x:1", "scheme", "tls", "did you mean tls+tcp://?"),
    ("tcp+tls://x:1", "scheme", "tcp+tls", "did you mean tls+tcp://?"),
    ("tls+://x:1", "scheme", "tls+", "must be tcp"),
    ("tls+udp://:53", "scheme", "tls+udp", "datagrams have no TLS here; write udp:"),
    ("TLS+unixgram:/dev/log", "scheme", "TLS+unixgram", "datagrams have no TLS here; write unixgram:"),
    ("unix-dgram:/dev/log", "scheme", "unix-dgram", "did you mean unixgram:?"),
    # the whole
    (" tcp://:1", "address", " tcp://:1", "white space"),
    ("tcp://:1\n", "address", "tcp://:1\n", "white space"),
    ("unix:/a b", "address", "unix:/a b", "%20"),
    ("unix:/a\x7fb", "address", "unix:/a\x7fb", "control character"),
    ("unix:/a#b", "fragment", "b", "%23"),
    # hosts
    ("tcp:127.0.0.1:1", "host", "127.0.0.1:1", "after two slashes"),
    ("tcp://::1:80", "host", "::1:80", "in brackets"),
    ("tcp://[::1:80", "host", "[::1:80", "no closing one"),
    ("tcp://[127.0.0.1]:80", "host", "[127.0.0.1]", "brackets are for IPv6"),
    ("tcp://[::g]:80", "host", "::g", "not an IPv6 address"),
    ("tcp://[1::2::3]:80", "host", "1::2::3", "not an IPv6 address"),
    ("tcp://[::ffff:1.2.3.4]:80", "host", "::ffff:1.2.3.4", "write 1.2.3.4"),
    ("tcp://[fe80::1%25]:80", "host", "fe80::1%", "scope id after the % is empty"),
    ("tcp://[fe80::1%]:80", "host", "fe80::1%", "scope id after the % is empty"),
    ("tcp://[fe80::1%25a%2Fb]:80", "host", "fe80::1%a/b", "scope id is not"),
    ("tcp://[fe80::1%25a%20b]:80", "host", "fe80::1%a b", "scope id is not"),
    ("tcp://[fe80::1%25%zz]:80", "host", "%zz", "two hexadecimal digits"),
    ("tcp://256.0.0.1:80", "host", "256.0.0.1", "not an IPv4 address"),
    ("tcp://127.1:80", "host", "127.1", "not an IPv4 address"),
    ("tcp://0x7f.0.0.0x1:80", "host", "0x7f.0.0.0x1", "not an IPv4 address"),
    ("tcp://host.1:80", "host", "host.1", "not an IPv4 address"),
    ("tcp://a..b:80", "host", "a..b", "not a host name"),
    ("tcp://-a:80", "host", "-a", "not a host name"),
    ("tcp://user@host:80", "host", "user@host", "not a host name"),
    ("tcp://a%20b:80", "host", "a b", "not a host name"),
    ("tcp://ho%zzst:80", "host", "ho%zzst", "two hexadecimal digits"),
    ("tcp://" + "a" * 64 + ":80", "host", "a" * 64, "not a host name"),
    ("tcp://" + "a." * 127 + ":80", "host", "a." * 127, "longer than 253"),
    ("tcp://ü" + "a" * 70 + ":80", "host", "ü" + "a" * 70, "no IDNA form"),
    ("tcp://\u2100.example:80", "host", "\u2100.example", "not a host name"),
    # ports
    ("tcp://localhost", "port", "", "missing"),
    ("tcp://localhost:", "port", "", "missing"),
    ("tcp://", "port", "", "missing"),
    ("tcp://[::1]", "port", "", "missing"),
    ("tcp://[::1]80", "port", "80", "after a colon"),
    ("tcp://localhost:http", "port", "http", "must be a number"),
    ("tcp://localhost:-1", "port", "-1", "must be a number"),
    ("tcp://localhost:+1", "port", "+1", "must be a number"),
    ("tcp://localhost:8_0", "port", "8_0", "must be a number"),
    ("tcp://localhost:\u0661", "port", "\u0661", "must be a number"),
    ("tcp://localhost:65536", "port", 65536, "0 to 65535"),
    ("tcp://localhost:99999999999", "port", "99999999999", "must be a number"),
    ("tcp://localhost:80/", "path", "/", "has none"),
    ("tcp://localhost:80/a?backlog=1", "path", "/a", "has none"),
    # options
    ("tcp://:1?", "option", "", "no name"),
    ("tcp://:1?backlog=1&", "option", "", "no name"),
    ("tcp://:1?=1", "option", "=1", "no name"),
    ("tcp://:1?color=red", "option color", "red", "dual_stack, reuse_port, backlog"),
    ("tcp://:1?mode=660", "option mode", "660", "is unknown"),
    ("tcp://:1?Backlog=1", "option Backlog", "1", "is unknown"),
    ("tcp://:1?backlog", "option backlog", "", "is empty"),
    ("tcp://:1?backlog=", "option backlog", "", "is empty"),
    ("tcp://:1?backlog=1&backlog=1", "option backlog", "1", "given twice"),
    ("tcp://:1?backlog=x", "option backlog", "x", "must be a number"),
    ("tcp://:1?backlog=0", "option backlog", 0, "1 to 65535"),
    ("tcp://:1?backlog=%zz", "option backlog", "%zz", "two hexadecimal digits"),
    ("tcp://:1?reuse_port=2", "option reuse_port", "2", "must be 1 or 0"),
    ("tcp://:1?dual_stack=maybe", "option dual_stack", "maybe", "must be 1 or 0"),
    ("tcp://[::1]:1?dual_stack=1", "option dual_stack", True, "for [::] only, not for ::1"),
    ("tcp://127.0.0.1:1?dual_stack=0", "option dual_stack", False, "for [::] only"),
    ("unix:x?mode=8", "option mode", "8", "octal"),
    ("unix:x?mode=rw", "option mode", "rw", "octal"),
    ("unix:x?mode=1777", "option mode", "1777", "0 to 777"),
    ("unix:x?user=", "option user", "", "is empty"),
    ("unix:x?user=a:b", "option user", "a:b", "not the name of a user"),
    ("unix:x?group=-1", "option group", "-1", "not the name of a group"),
    ("unix:x?group=4294967295", "option group", 4294967295, "0 to 4294967294"),
    ("unix:x?dual_stack=1", "option dual_stack", "1", "mode, user, group, backlog"),
    ("unix:@x?mode=660", "option mode", 0o660, "no file"),
    ("unix:@x?user=app", "option user", "app", "no file"),
    ("unix:@x?group=app", "option group", "app", "no file"),
    ("fd://3?mode=660", "option mode", "660", "has: none"),
    ("systemd:x?backlog=3", "option backlog", "3", "has: none"),
    # paths
    ("unix:", "path", "", "is empty"),
    ("unix:@", "path", "@", "is empty"),
    ("unix://", "path", "//", "unix:///run/app.sock"),
    ("unix://run/x.sock", "path", "//run/x.sock", "unix:///run/app.sock"),
    ("unix:///", "path", "/", "names a directory"),
    ("unix:/run/", "path", "/run/", "names a directory"),
    ("unix:/run/..", "path", "/run/..", "names a directory"),
    ("unix:.", "path", ".", "names a directory"),
    ("unix:/a%00b", "path", "/a\0b", "NUL"),
    ("unix:/a%b", "path", "/a%b", "two hexadecimal digits"),
    # descriptors and names
    ("fd:3", "descriptor", "3", "fd://3"),
    ("fd://", "descriptor", "", "is missing"),
    ("fd://x", "descriptor", "x", "must be a number"),
    ("fd://-1", "descriptor", "-1", "must be a number"),
    ("fd://4294967296", "descriptor", 4294967296, "31 bits"),
    ("systemd://web", "name", "//web", "systemd:http"),
    ("systemd:a:b", "name", "a:b", "without a colon"),
    ("systemd:%C3%A9", "name", "é", "printable ASCII"),
    ("systemd:a%0Ab", "name", "a\nb", "printable ASCII"),
    ("systemd:" + "a" * 256, "name", "a" * 256, "longer than 255"),
]


@pytest.mark.parametrize(
    ("text", "part", "value", "reason"), MALFORMED, ids=[ascii(text[:40]) for text, *_ in MALFORMED]
)
def test_malformed_text_is_an_error_that_names_part_and_value(
    text: str, part: str, value: object, reason: str
) -> None:
    with pytest.raises(AddressError) as caught:
        parse_address(text)
    assert (caught.value.part, caught.value.value) == (part, value)
    assert reason in caught.value.reason
    assert str(caught.value).startswith(f"{part} {value!r}: ")


WRONG_OBJECTS: list[tuple[Callable[[], object], str, object]] = [
    (lambda: TCPAddress(None, 1), "host", None),  # type: ignore[arg-type]
    (lambda: TCPAddress(b"localhost", 1), "host", b"localhost"),  # type: ignore[arg-type]
    (lambda: TCPAddress("[::1]", 1), "host", "[::1]"),
    (lambda: TCPAddress("127.0.0.1:80"), "host", "127.0.0.1:80"),
    (lambda: TCPAddress("a b"), "host", "a b"),
    (lambda: TCPAddress("1.2.3"), "host", "1.2.3"),
    (lambda: TCPAddress("fe80::1%a%b"), "host", "fe80::1%a%b"),
    (lambda: TCPAddress("127.0.0.1%lo"), "host", "127.0.0.1%lo"),
    (lambda: TCPAddress("", "80"), "port", "80"),  # type: ignore[arg-type]
    (lambda: TCPAddress("", True), "port", True),
    (lambda: TCPAddress("", 80.0), "port", 80.0),  # type: ignore[arg-type]
    (lambda: TCPAddress("", -1), "port", -1),
    (lambda: TCPAddress("", 65536), "port", 65536),
    (lambda: TCPAddress("", 1, tls=1), "tls", 1),  # type: ignore[arg-type]
    (lambda: TCPAddress("", 1, tls=None), "tls", None),  # type: ignore[arg-type]
    (lambda: TCPAddress("::1", 1, dual_stack=True), "option dual_stack", True),
    (lambda: TCPAddress("::%lo", 1, dual_stack=True), "option dual_stack", True),
    (lambda: TCPAddress("localhost", 1, dual_stack=False), "option dual_stack", False),
    (lambda: TCPAddress("::", 1, dual_stack=1), "option dual_stack", 1),  # type: ignore[arg-type]
    (lambda: TCPAddress("", 1, reuse_port="1"), "option reuse_port", "1"),  # type: ignore[arg-type]
    (lambda: TCPAddress("", 1, backlog=0), "option backlog", 0),
    (lambda: TCPAddress("", 1, backlog=65536), "option backlog", 65536),
    (lambda: TCPAddress("", 1, backlog=True), "option backlog", True),
    (lambda: UnixAddress(""), "path", ""),
    (lambda: UnixAddress("a/"), "path", "a/"),
    (lambda: UnixAddress("a\0"), "path", "a\0"),
    (lambda: UnixAddress("\0a"), "path", "\0a"),
    (lambda: UnixAddress("\ud800"), "path", "\ud800"),
    (lambda: UnixAddress(b"/x"), "path", b"/x"),  # type: ignore[arg-type]
    (lambda: UnixAddress("x", mode=660), "option mode", 660),
    (lambda: UnixAddress("x", mode=-1), "option mode", -1),
    (lambda: UnixAddress("x", mode="660"), "option mode", "660"),  # type: ignore[arg-type]
    (lambda: UnixAddress("x", mode=True), "option mode", True),
    (lambda: UnixAddress("x", user=""), "option user", ""),
    (lambda: UnixAddress("x", user=-1), "option user", -1),
    (lambda: UnixAddress("x", user=False), "option user", False),
    (lambda: UnixAddress("x", user=1.0), "option user", 1.0),  # type: ignore[arg-type]
    (lambda: UnixAddress("x", group="a b"), "option group", "a b"),
    (lambda: UnixAddress("x", group="a\x01"), "option group", "a\x01"),
    (lambda: UnixAddress("x", backlog=-5), "option backlog", -5),
    (lambda: UnixAddress("@x", mode=0o600), "option mode", 0o600),
    (lambda: FDAddress(-1), "descriptor", -1),
    (lambda: FDAddress(2**31), "descriptor", 2**31),
    (lambda: FDAddress("3"), "descriptor", "3"),  # type: ignore[arg-type]
    (lambda: FDAddress(True), "descriptor", True),
    (lambda: SystemdAddress(None), "name", None),  # type: ignore[arg-type]
    (lambda: SystemdAddress("a:b"), "name", "a:b"),
    (lambda: parse_address(9999), "address", 9999),  # type: ignore[arg-type]
    (lambda: parse_address(None), "address", None),  # type: ignore[arg-type]
]


@pytest.mark.parametrize(("make", "part", "value"), WRONG_OBJECTS)
def test_objects_obey_the_same_rules(make: Callable[[], object], part: str, value: object) -> None:
    with pytest.raises(AddressError) as caught:
        make()
    assert (caught.value.part, caught.value.value) == (part, value)


def test_decimal_mode_gets_a_hint() -> None:
    with pytest.raises(AddressError, match="did you mean 0o660"):
        UnixAddress("x", mode=660)


def test_normal_forms() -> None:
    assert TCPAddress("*", 1) == TCPAddress("", 1)
    assert UnixAddress("x", user="1000").user == 1000
    # Two escaped bytes that are one character of UTF-8 are that character.
    assert UnixAddress("\udcc3\udca9").path == "é"


@pytest.mark.parametrize("make", [UnixAddress, lambda path: parse_address(f"unix:{path}")])
@pytest.mark.parametrize("prefix", ["/", "", "@"])
def test_length_of_a_unix_path_is_checked(make: Callable[[str], UnixAddress], prefix: str) -> None:
    room = MAX_UNIX_PATH_BYTES - len(prefix.removeprefix("@"))
    longest = prefix + "x" * room
    assert make(longest).path == longest
    assert make(prefix + "é" * (room // 2)).path == prefix + "é" * (room // 2)
    with pytest.raises(AddressError, match=f"at most {MAX_UNIX_PATH_BYTES}") as caught:
        make(longest + "x")
    assert caught.value.part == "path"
    with pytest.raises(AddressError, match=f"has {MAX_UNIX_PATH_BYTES + 1} bytes"):
        make(longest[:-1] + "é")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the limit of Linux")
def test_limit_of_linux() -> None:
    assert MAX_UNIX_PATH_BYTES == 107


def test_address_object_is_returned_as_it_is() -> None:
    for _, address in CANONICAL:
        assert parse_address(address) is address


def test_addresses_are_values() -> None:
    for _, address in CANONICAL:
        copy = pickle.loads(pickle.dumps(address))
        assert copy == address
        assert hash(copy) == hash(address)
    with pytest.raises(FrozenInstanceError):
        CANONICAL[0][1].tls = True  # type: ignore[misc]


def test_errors_survive_pickling() -> None:
    error = pickle.loads(pickle.dumps(AddressError("port", 99999, "must be 0 to 65535")))
    assert (error.part, error.value, str(error)) == ("port", 99999, "port 99999: must be 0 to 65535")


# -- over many cases -------------------------------------------------------------------------------

FLAGS = (None, False, True)
HOSTS = ("", "localhost", "a.b", "127.0.0.1", "::", "::1", "fe80::1%eth0", "fe80::1%25", "fe80::1%a]?&=#")


def _tcp_addresses() -> Iterator[Address]:
    for host, port, tls, dual, reuse, backlog in itertools.product(
        HOSTS, (0, 1, 65535), (False, True), FLAGS, FLAGS, (None, 1, 4096)
    ):
        if host in ("", "::") or dual is None:
            yield TCPAddress(host, port, tls=tls, dual_stack=dual, reuse_port=reuse, backlog=backlog)


def _unix_addresses(chance: random.Random) -> Iterator[Address]:
    # Everything that could be taken for syntax, control characters, and bytes that are not UTF-8.
    alphabet = string.printable + "é€😀\x7f\u2028" + os.fsdecode(bytes(range(0x80, 0x100)))
    for _ in range(3000):
        path = "".join(chance.choices(alphabet, k=chance.randint(1, 20))) + "x"
        owner = ("".join(chance.choices(string.ascii_letters + "_.$@&=%#+-é", k=9)).lstrip("+-") or "x", 5)
        options = {
            "mode": chance.choice([None, chance.randint(0, 0o777)]),
            "user": chance.choice([None, *owner]),
            "group": chance.choice([None, *owner]),
        }
        if path.startswith("@"):
            options = {}
        yield UnixAddress(path, tls=chance.random() < 0.5, **options)  # type: ignore[arg-type]


def _other_addresses(chance: random.Random) -> Iterator[Address]:
    alphabet = [character for character in string.printable if character.isprintable() and character != ":"]
    for _ in range(500):
        name = "".join(chance.choices(alphabet, k=chance.randint(0, 10)))
        yield SystemdAddress(name, tls=chance.random() < 0.5)
        yield FDAddress(chance.randint(0, 2**31 - 1), tls=chance.random() < 0.5)


def test_every_address_comes_back_from_its_text() -> None:
    chance = random.Random(20)
    count = 0
    for address in itertools.chain(_tcp_addresses(), _unix_addresses(chance), _other_addresses(chance)):
        text = str(address)
        assert parse_address(text) == address, (text, address)
        assert str(parse_address(text)) == text
        count += 1
    assert count > 4000


def test_any_text_is_an_address_or_an_address_error() -> None:
    chance = random.Random(7)
    alphabet = string.ascii_letters + string.digits + ":/?#[]@&=%+.-_ \n\0é😀\udcff\ud800"
    seeds = [text for text, _ in CANONICAL] + [text for text, *_ in MALFORMED]
    understood = 0
    for _ in range(20_000):
        characters = list(chance.choice(seeds))
        for _ in range(chance.randint(1, 3)):
            at = chance.randint(0, len(characters))
            characters[at : at + chance.randint(0, 2)] = chance.choices(alphabet, k=chance.randint(0, 2))
        text = "".join(characters)
        try:
            address = parse_address(text)
        except AddressError:
            continue
        understood += 1
        assert parse_address(str(address)) == address, text
    assert understood > 1000
