"""How values are written on the command line, and how defaults are shown in its help."""

from __future__ import annotations

import codecs
import re
from collections.abc import Callable
from enum import Enum
from typing import Any, Final, Literal, TypeAlias, TypeVar

import click

from asyncserver import Address, AddressError, MulticastGroup, OptionError, parse_address

__all__ = [
    "OFF",
    "Off",
    "address",
    "count",
    "duration",
    "handler",
    "interface",
    "multicast_group",
    "number",
    "shown_duration",
    "shown_value",
    "size",
    "text_bytes",
]

T = TypeVar("T")


class Off(Enum):
    """What "none" on the command line becomes, because None means there that nothing was said."""

    OFF = "none"


OFF: Final = Off.OFF
OrOff: TypeAlias = T | Literal[Off.OFF]

_SECONDS = {"ms": 0.001, "": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_BYTES = {"": 1, "b": 1, "k": 1024, "kib": 1024, "m": 1024**2, "mib": 1024**2}
_NUMBER = r"(\d+\.?\d*|\.\d+)"


def duration(text: str) -> OrOff[float]:
    """Seconds from ``30``, ``1.5``, ``500ms``, ``2m``, ``1h``, ``1d``; or none."""
    return _off_or(text, _duration)


def _duration(text: str) -> float:
    match = re.fullmatch(_NUMBER + r"\s*(ms|s|m|h|d|)", text)
    if match is None:
        raise click.BadParameter(f"{text!r} is not a duration; write 30, 1.5, 500ms, 2m, 1h, or none")
    # Dividing is exact where multiplying by 0.001 is not.
    return float(match[1]) / 1000 if match[2] == "ms" else float(match[1]) * _SECONDS[match[2]]


def size(text: str) -> OrOff[int]:
    """Bytes from ``65536``, ``64KiB``, ``1MiB``; or none."""
    return _off_or(text, _size)


def _size(text: str) -> int:
    match = re.fullmatch(r"(\d+)\s*([a-z]*)", text.lower())
    if match is None or match[2] not in _BYTES:
        raise click.BadParameter(f"{text!r} is not a number of bytes; write 65536, 64KiB or 1MiB")
    return int(match[1]) * _BYTES[match[2]]


def count(text: str) -> OrOff[int]:
    """A whole number, or none."""
    return _off_or(text, lambda text: _converted(int, text, "a whole number"))


def number(text: str) -> OrOff[float]:
    """Any number, or none."""
    return _off_or(text, lambda text: _converted(float, text, "a number"))


def _converted(convert: Callable[[str], T], text: str, what: str) -> T:
    try:
        return convert(text)
    except ValueError:
        raise click.BadParameter(f"{text!r} is not {what}") from None


def _off_or(text: str, convert: Callable[[str], T]) -> OrOff[T]:
    return OFF if text.lower() == OFF.value else convert(text)


_ESCAPE = re.compile(r"\\(?:([rnt0\\])|x([0-9a-fA-F]{2})|)")
_ESCAPED = {"r": b"\r", "n": b"\n", "t": b"\t", "0": b"\0", "\\": b"\\"}


def text_bytes(text: str) -> bytes:
    r"""The UTF-8 bytes of ``text``, in which ``\r \n \t \0 \xNN \\`` are escapes."""
    parts: list[bytes] = []
    end = 0
    for match in _ESCAPE.finditer(text):
        parts.append(text[end : match.start()].encode(errors="surrogateescape"))
        parts.append(_unescaped(text, match))
        end = match.end()
    return b"".join(parts) + text[end:].encode(errors="surrogateescape")


def _unescaped(text: str, match: re.Match[str]) -> bytes:
    if match[1]:
        return _ESCAPED[match[1]]
    if match[2]:
        return codecs.decode(match[2], "hex")
    raise click.BadParameter(rf"{text!r} has a backslash that is not of \r \n \t \0 \xNN or \\")


def address(text: str) -> Address:
    """An address; what is wrong with it names the whole text."""
    try:
        return parse_address(text)
    except AddressError as error:
        raise click.BadParameter(f"{text!r}: {error}") from None


def handler(text: str) -> str:
    """The name of a handler, which is looked up later."""
    if "://" in text:
        raise click.BadParameter(
            f"{text!r} is an address, and the handler comes first: serve HANDLER {text}, "
            "where HANDLER is module:name or path/to/file.py:name"
        )
    return text


def multicast_group(text: str) -> MulticastGroup:
    """A group to join, with its interface."""
    try:
        return MulticastGroup.parse(text)
    except OptionError as error:
        raise click.BadParameter(f"{text!r}: {error.option} {error.value!r}: {error.reason}") from None


def interface(text: str) -> OrOff[str]:
    """A network interface, or none."""
    return _off_or(text, str)


def shown_duration(seconds: float) -> str:
    """``seconds`` as they can be written on the command line."""
    for unit in ("d", "h", "m"):
        if seconds and seconds % _SECONDS[unit] == 0:
            return f"{seconds / _SECONDS[unit]:g}{unit}"
    return f"{seconds:g}s"


def shown_value(value: Any) -> str:
    """A default as it can be written on the command line."""
    if value is None:
        return OFF.value
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value)
