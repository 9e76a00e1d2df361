"""The standard library's module, with the names that its type stubs do not show."""

from __future__ import annotations

import socketserver
from typing import Any

__all__ = ["NAMES", "STDLIB_SELECTOR", "UNLISTED_NAMES", "is_forking", "is_threading", "stdlib"]

stdlib: Any = socketserver

NAMES: tuple[str, ...] = tuple(stdlib.__all__)
UNLISTED_NAMES = ("ForkingUnixStreamServer", "ForkingUnixDatagramServer")
"""Python 3.11 leaves these out of ``__all__``; on Unix they are here on every version."""

STDLIB_SELECTOR: Any = stdlib._ServerSelector
"""What waits for requests there, unless a program has put something else in its place."""


def is_threading(server: object) -> bool:
    """Whether its class starts threads by itself."""
    return isinstance(server, socketserver.ThreadingMixIn)


def is_forking(server: object) -> bool:
    """Whether its class starts child processes by itself."""
    return isinstance(server, getattr(stdlib, "ForkingMixIn", ()))
