"""The string form of addresses: taking it apart into text and options, and putting it together.

What the parts may be is decided in ``asyncserver.address_rules``; here it is only decided where
they begin and end. No I/O.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from asyncserver.address_rules import percent_decode, percent_encode
from asyncserver.checks import similar
from asyncserver.errors import AddressError

__all__ = [
    "AddressText",
    "bracketed",
    "format_address",
    "parse_number",
    "split_address",
    "split_host_and_port",
]

_SCHEMES = "tcp, unix, udp, unixgram, fd, systemd, or a scheme of streams after tls+"
_DATAGRAM_SCHEMES = ("udp", "unixgram")

# Schemes that others write, and what they are here.
_OF_PROTOCOLS = {"http": "tcp://", "ws": "tcp://", "https": "tls+tcp://", "wss": "tls+tcp://"}
_MEANT = {
    **dict.fromkeys(("tls", "ssl", "tcps", "tcp+tls", "tcp+ssl", "ssl+tcp"), "tls+tcp://"),
    **dict.fromkeys(("unix+tls", "tls-unix"), "tls+unix:"),
    **dict.fromkeys(("unix-dgram", "unixdgram", "unix+dgram"), "unixgram:"),
    **dict.fromkeys(("tcp4", "tcp6"), "tcp://"),
    **dict.fromkeys(("udp4", "udp6"), "udp://"),
    **dict.fromkeys(("file", "ipc"), "unix:"),
}


class AddressText(NamedTuple):
    """An address taken apart: ``[tls+]transport:body?options``."""

    transport: str
    tls: bool
    body: str
    options: dict[str, Any]


def split_address(text: str) -> AddressText:
    """Take ``text`` apart; the options have their types. Raises ``AddressError``."""
    if re.search(r"[\s\x00-\x1f\x7f]", text):
        raise AddressError("address", text, "contains white space or a control character (a space is %20)")
    if "#" in text:
        raise AddressError("fragment", text.partition("#")[2], "an address has none (a # is %23)")
    transport, tls, rest = _split_scheme(text)
    body, question_mark, query = rest.partition("?")
    return AddressText(transport, tls, body, _parse_options(transport, query if question_mark else None))


def format_address(
    transport: str, tls: bool, body: str, options: Mapping[str, bool | int | str | None] | None = None
) -> str:
    """The inverse of ``split_address``; options that are None are left out."""
    given = [f"{name}={_option_text(value)}" for name, value in (options or {}).items() if value is not None]
    query = "?" + "&".join(given) if given else ""
    return f"{'tls+' if tls else ''}{transport}:{body}{query}"


def _option_text(value: bool | int | str) -> str:
    return percent_encode(str(int(value) if isinstance(value, bool) else value), "")


def bracketed(host: str) -> str:
    """``host`` as it stands before a port: an IPv6 address in brackets, its scope id as in RFC 6874."""
    if ":" not in host:
        return host
    digits, percent, scope = host.partition("%")
    return f"[{digits}%25{percent_encode(scope, '')}]" if percent else f"[{digits}]"


def split_host_and_port(authority: str) -> tuple[str, str]:
    """The host without brackets, and the text of the port."""
    if authority.startswith("["):
        inside, bracket, tail = authority[1:].partition("]")
        if not bracket:
            raise AddressError("host", authority, "has an opening bracket and no closing one")
        if tail and not tail.startswith(":"):
            raise AddressError("port", tail, "must stand after a colon, as in [::1]:9999")
        return _bracketed_host(inside), tail[1:]
    host, _, port = authority.rpartition(":") if ":" in authority else (authority, "", "")
    if ":" in host:
        raise AddressError("host", authority, "an IPv6 address stands in brackets, as in [::1]:9999")
    return percent_decode("host", host), port


def _bracketed_host(inside: str) -> str:
    digits, percent, scope = inside.partition("%")
    if ":" not in digits:
        raise AddressError("host", f"[{inside}]", "brackets are for IPv6 addresses")
    if not percent:
        return digits
    # RFC 6874 escapes the % itself. Unescaped (RFC 4007) is what people paste from `ip addr`. Where it
    # can be read both ways ("%251") the standard wins.
    if scope.startswith("25"):
        scope = percent_decode("host", scope[2:])
    return f"{digits}%{scope}"


def _split_scheme(text: str) -> tuple[str, bool, str]:
    scheme, colon, rest = text.partition(":")
    lowered = scheme.lower()
    transport = lowered.removeprefix("tls+")
    if not colon or transport not in _OPTIONS:
        raise _no_scheme(text, scheme if colon else "")
    tls = lowered.startswith("tls+")
    if tls and transport in _DATAGRAM_SCHEMES:
        raise AddressError("scheme", scheme, f"datagrams have no TLS here; write {transport}:")
    return transport, tls, rest


def _no_scheme(text: str, scheme: str) -> AddressError:
    if re.fullmatch(r"[0-9]+", text):
        return AddressError("scheme", "", f"is missing; did you mean tcp://:{text}?")
    # "localhost:80", ":80", "127.0.0.1:80" and "[::1]:80" have something before the port that no scheme is.
    if re.fullmatch(r"(\[[^]/]*\]|[^:/?@]*):[0-9]+(\?.*)?", text):
        return AddressError("scheme", "", f"is missing; did you mean tcp://{text}?")
    if re.fullmatch(r"localhost|[0-9]+(\.[0-9]+){3}|\[[^]/]*\]", text):
        return AddressError("scheme", "", f"is missing, and the port; did you mean tcp://{text}:9999?")
    if text.startswith("/"):
        return AddressError("scheme", "", f"is missing; did you mean unix://{text}?")
    if text.startswith(("@", "./", "../")) or text.endswith((".sock", ".socket")):
        return AddressError("scheme", "", f"is missing; did you mean unix:{text}?")
    if scheme.lower() in _OF_PROTOCOLS:
        transport = _OF_PROTOCOLS[scheme.lower()]
        return AddressError("scheme", scheme, f"is a protocol, not a transport; did you mean {transport}?")
    if scheme.lower() in _MEANT:
        return AddressError("scheme", scheme, f"is not a transport; did you mean {_MEANT[scheme.lower()]}?")
    hint = similar(scheme.lower(), _OPTIONS) or ", as in tcp://127.0.0.1:9999"
    return AddressError("scheme", scheme, f"must be {_SCHEMES}{hint}")


def parse_number(part: str, text: str) -> int:
    """A decimal number without a sign."""
    if not text:
        hint = "; write it behind the host, as in 127.0.0.1:9999 (0 lets the kernel choose)"
        raise AddressError(part, text, f"is missing{hint if part == 'port' else ''}")
    if not re.fullmatch(r"[0-9]{1,10}", text):
        raise AddressError(part, text, "must be a number")
    return int(text)


def _parse_flag(part: str, text: str) -> bool:
    if text in ("1", "true", "yes", "on"):
        return True
    if text in ("0", "false", "no", "off"):
        return False
    raise AddressError(part, text, "must be 1 or 0")


def _parse_mode(part: str, text: str) -> int:
    if not re.fullmatch(r"(0o)?[0-7]{1,5}", text):
        raise AddressError(part, text, "must be octal permission bits, as in 660")
    mode = int(text, 8)
    if mode > 0o777:
        raise AddressError(part, text, "must be 0 to 777 (octal)")
    return mode


def _parse_text(part: str, text: str) -> str:
    return text


_OPTIONS: dict[str, dict[str, Callable[[str, str], object]]] = {
    "tcp": {"dual_stack": _parse_flag, "reuse_port": _parse_flag, "backlog": parse_number},
    "unix": {"mode": _parse_mode, "user": _parse_text, "group": _parse_text, "backlog": parse_number},
    "udp": {"dual_stack": _parse_flag, "reuse_port": _parse_flag},
    "unixgram": {"mode": _parse_mode, "user": _parse_text, "group": _parse_text},
    "fd": {},
    "systemd": {},
}


def _parse_options(transport: str, query: str | None) -> dict[str, Any]:
    options: dict[str, Any] = {}
    for item in [] if query is None else query.split("&"):
        name, _, escaped = item.partition("=")
        if not name:
            raise AddressError("option", item, "has no name (options are written ?name=value&name=value)")
        part = f"option {name}"
        value = percent_decode(part, escaped)
        if name not in _OPTIONS[transport]:
            known = ", ".join(_OPTIONS[transport]) or "none"
            hint = similar(name, _OPTIONS[transport])
            raise AddressError(part, value, f"is unknown; a {transport} address has: {known}{hint}")
        if name in options:
            raise AddressError(part, value, "is given twice")
        if not value:
            raise AddressError(part, value, "is empty")
        options[name] = _OPTIONS[transport][name](part, value)
    return options
