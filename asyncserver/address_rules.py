"""What each part of an address may be: one place for the rules of the string form and of the objects.

Every function returns the part in its normal form or raises ``AddressError``; none does any I/O.
"""

from __future__ import annotations

import ipaddress
import os
import re
import sys
import urllib.parse

from asyncserver.errors import AddressError
from asyncserver.options import MAX_BACKLOG

__all__ = [
    "MAX_UNIX_PATH_BYTES",
    "check_backlog",
    "check_descriptor",
    "check_dual_stack",
    "check_flag",
    "check_host",
    "check_mode",
    "check_nothing_about_a_file",
    "check_owner",
    "check_port",
    "check_systemd_name",
    "check_unix_path",
    "percent_decode",
    "percent_encode",
]

# sockaddr_un.sun_path has 108 bytes on Linux (unix(7)) and 104 on macOS and the BSDs (unix(4)). One of
# them is the terminating NUL of a path, or the leading NUL of an abstract name.
MAX_UNIX_PATH_BYTES = 107 if sys.platform.startswith("linux") else 103

_MAX_HOST_NAME = 253
# setresuid(2) and chown(2) take (uid_t) -1 as "leave it alone", so it is no id.
_MAX_ID = 2**32 - 2
_MAX_SYSTEMD_NAME = 255

_LABEL = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?")
_NUMBER_LABEL = re.compile(r"[0-9]+|0[xX][0-9A-Fa-f]*")
_BAD_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})")


def check_host(host: object) -> str:
    """A host name, an IPv4 address, an IPv6 address with or without ``%scope``, or "" for every interface."""
    if not isinstance(host, str):
        raise AddressError("host", host, "must be a string")
    if host in ("", "*"):
        return ""
    if host.startswith("["):
        raise AddressError("host", host, "the brackets belong to the string form; leave them out here")
    if ":" in host:
        _check_ipv6(host)
    elif host.isascii():
        _check_ascii_host(host, host)
    else:
        _check_international_host(host)
    return host


def _check_ipv6(host: str) -> None:
    digits, percent, scope = host.partition("%")
    try:
        address = ipaddress.IPv6Address(digits)
    except ValueError:
        raise AddressError("host", host, "is not an IPv6 address") from None
    if address.ipv4_mapped is not None:
        # Every IPv6 socket of ours states IPV6_V6ONLY, and a mapped address cannot be bound with it on.
        raise AddressError("host", host, f"is an IPv4 address in disguise; write {address.ipv4_mapped}")
    if percent and not scope:
        raise AddressError("host", host, "the scope id after the % is empty")
    if not scope.isprintable() or re.search(r"[%/\s]", scope):
        raise AddressError("host", host, "the scope id is not the name or the number of an interface")


def _check_ascii_host(host: str, shown: str) -> None:
    labels = host.removesuffix(".").split(".")
    # A name that ends in a number is never a name (the URL standard says so too): getaddrinfo would
    # take "127.1", "1" or "0x7f.0.0.1" as an IPv4 address in inet_aton(3)'s forgotten forms.
    if _NUMBER_LABEL.fullmatch(labels[-1]):
        try:
            ipaddress.IPv4Address(host)
        except ValueError:
            raise AddressError("host", shown, "is not an IPv4 address (four numbers up to 255)") from None
    elif len(host) > _MAX_HOST_NAME:
        raise AddressError("host", shown, f"is longer than {_MAX_HOST_NAME} characters")
    else:
        for label in labels:
            if not _LABEL.fullmatch(label):
                raise AddressError("host", shown, f"is not a host name (at {label!r})")


def _check_international_host(host: str) -> None:
    try:
        encoded = host.encode("idna").decode("ascii")
    except UnicodeError:
        raise AddressError("host", host, "is not a host name (it has no IDNA form)") from None
    _check_ascii_host(encoded, host)


def check_port(port: object) -> int:
    """A port number; 0 lets the kernel choose a free one."""
    if isinstance(port, bool) or not isinstance(port, int):
        raise AddressError("port", port, "must be a number")
    if not 0 <= port <= 65535:
        raise AddressError("port", port, "must be 0 to 65535 (0 lets the kernel choose)")
    return port


def check_unix_path(path: object) -> str:
    """The path of a Unix socket, or ``@name`` for Linux's abstract names."""
    if not isinstance(path, str):
        raise AddressError("path", path, "must be a string (for a Path object: str(path))")
    if path in ("", "@"):
        raise AddressError("path", path, "is empty")
    if "\0" in path:
        raise AddressError("path", path, "contains a NUL character (an abstract name is written @name)")
    try:
        normal = path.encode("utf-8", "surrogateescape").decode("utf-8", "surrogateescape")
        size = len(os.fsencode(normal.removeprefix("@")))
    except UnicodeEncodeError:
        raise AddressError("path", path, "cannot be encoded as a file name") from None
    if size > MAX_UNIX_PATH_BYTES:
        raise AddressError(
            "path",
            path,
            f"has {size} bytes, and the kernel takes at most {MAX_UNIX_PATH_BYTES} (sun_path): "
            "take a shorter one, such as unix:///run/app.sock, or a relative one, such as unix:app.sock",
        )
    if not normal.startswith("@") and normal.rpartition("/")[2] in ("", ".", ".."):
        raise AddressError("path", path, "names a directory: name a file in it, as in unix:///run/app.sock")
    return normal


def check_mode(mode: object) -> int | None:
    """The permission bits of a Unix socket's file."""
    if mode is None:
        return None
    if isinstance(mode, bool) or not isinstance(mode, int):
        raise AddressError("option mode", mode, "must be permission bits, as in 0o660")
    if not 0 <= mode <= 0o777:
        hint = f"; did you mean 0o{mode}?" if re.fullmatch(r"[0-7]{3}", str(mode)) else ""
        raise AddressError("option mode", mode, f"must be 0 to 0o777{hint}")
    return mode


def check_owner(option: str, owner: object) -> str | int | None:
    """The name or the number of a user or group; a name made of digits is a number."""
    if owner is None:
        return None
    part = f"option {option}"
    if isinstance(owner, str) and owner.isascii() and owner.isdigit():
        owner = int(owner)
    if isinstance(owner, bool) or not isinstance(owner, int | str):
        raise AddressError(part, owner, "must be a name or a number")
    if isinstance(owner, int):
        if not 0 <= owner <= _MAX_ID:
            raise AddressError(part, owner, f"must be 0 to {_MAX_ID}")
    elif not owner:
        raise AddressError(part, owner, "is empty")
    elif owner[0] in "-+" or not owner.isprintable() or re.search(r"[:/,\s]", owner):
        raise AddressError(part, owner, f"is not the name of a {option}")
    return owner


def check_descriptor(descriptor: object) -> int:
    """The number of an open file descriptor."""
    if isinstance(descriptor, bool) or not isinstance(descriptor, int):
        raise AddressError("descriptor", descriptor, "must be a number")
    if not 0 <= descriptor <= 2**31 - 1:
        raise AddressError("descriptor", descriptor, "must be 0 or more, and fit into 31 bits")
    return descriptor


def check_systemd_name(name: object) -> str:
    """A name as ``FileDescriptorName=`` in a socket unit takes it; "" stands for every socket."""
    if not isinstance(name, str):
        raise AddressError("name", name, "must be a string")
    if len(name) > _MAX_SYSTEMD_NAME:
        raise AddressError("name", name, f"is longer than {_MAX_SYSTEMD_NAME} characters")
    if not name.isascii() or not name.isprintable() or ":" in name:
        raise AddressError("name", name, "must be printable ASCII characters without a colon")
    return name


def check_flag(option: str, value: object) -> bool | None:
    """True, False, or None where the option was not given."""
    if value is None or isinstance(value, bool):
        return value
    raise AddressError(option, value, "must be True or False")


def check_dual_stack(dual_stack: object, host: str) -> bool | None:
    """Whether one IPv6 socket takes IPv4 too; ``host`` (in normal form) must stand for all of IPv6 then."""
    checked = check_flag("option dual_stack", dual_stack)
    if checked is not None and not _stands_for_all_of_ipv6(host):
        raise AddressError("option dual_stack", checked, f"makes sense for [::] only, not for {host}")
    return checked


def _stands_for_all_of_ipv6(host: str) -> bool:
    if ":" not in host:
        return not host
    return "%" not in host and ipaddress.IPv6Address(host).is_unspecified


def check_nothing_about_a_file(mode: int | None, user: str | int | None, group: str | int | None) -> None:
    """For abstract names: nothing may be said about a file."""
    for option, value in (("mode", mode), ("user", user), ("group", group)):
        if value is not None:
            raise AddressError(f"option {option}", value, "an abstract name has no file to apply it to")


def check_backlog(backlog: object) -> int | None:
    """The length of the queue of connections that wait to be accepted."""
    if backlog is None:
        return None
    if isinstance(backlog, bool) or not isinstance(backlog, int):
        raise AddressError("option backlog", backlog, "must be a number")
    if not 1 <= backlog <= MAX_BACKLOG:
        raise AddressError("option backlog", backlog, f"must be 1 to {MAX_BACKLOG}")
    return backlog


def percent_encode(text: str, safe: str) -> str:
    """``text`` with everything but letters, digits, ``-._~`` and ``safe`` as %XX."""
    return urllib.parse.quote(text, safe=safe, encoding="utf-8", errors="surrogateescape")


def percent_decode(part: str, text: str) -> str:
    """The inverse of ``percent_encode``; a ``%`` that begins no escape is an ``AddressError``."""
    if _BAD_ESCAPE.search(text):
        raise AddressError(part, text, "has a % that is not followed by two hexadecimal digits")
    return urllib.parse.unquote(text, encoding="utf-8", errors="surrogateescape")
