"""Directories with short names: the path of a Unix socket has room for about a hundred bytes."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Generator
from contextlib import contextmanager

__all__ = ["make_short_directory", "remove_directory", "short_directory"]

# Of the 103 bytes that macOS allows (Linux: 107), so that there is room for a name behind it.
_LONGEST = 80


def make_short_directory() -> str:
    """A new directory, for this user alone, whose name is short. Blocks."""
    parent = tempfile.gettempdir()
    if len(os.fsencode(parent)) > _LONGEST - len("/as-12345678"):
        parent = "/tmp"
    return tempfile.mkdtemp(prefix="as-", dir=parent)


def remove_directory(path: str) -> None:
    """Remove it with what is in it; nothing happens if it is gone. Blocks."""
    shutil.rmtree(path, ignore_errors=True)


@contextmanager
def short_directory() -> Generator[str]:
    """A new directory with a short name, removed at the end."""
    path = make_short_directory()
    try:
        yield path
    finally:
        remove_directory(path)
