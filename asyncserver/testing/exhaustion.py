"""``exhausted_descriptors``: a process that cannot open anything any more, for as long as a block lasts."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Generator
from contextlib import ExitStack, contextmanager

from asyncserver import OptionError

__all__ = ["exhausted_descriptors"]


@contextmanager
def exhausted_descriptors(*, spare: int = 0) -> Generator[None]:
    """In the block no descriptor can be opened: ``EMFILE``; only ``spare`` ones can, for a client, say.

    This is so for the whole process. What is closed in the block can be opened again, so that a server goes
    on when its clients leave. Modules that have not been imported yet cannot be. At the end the limit is what
    it was before. Not on Windows (``NotImplementedError``). Raises ``OptionError`` if the process's own limit
    has no room for ``spare`` ones.
    """
    if spare < 0:
        raise OptionError("spare", spare, "has to be a number of descriptors, zero or more")
    if sys.platform == "win32":
        raise NotImplementedError("the number of descriptors has no limit that can be set here")
    with ExitStack() as exits:
        fillers: list[int] = []
        exits.callback(_close_all, fillers)
        _open_until_it_fails(fillers, spare, exits)
        if len(fillers) < spare:
            raise OptionError("spare", spare, f"this process can open {len(fillers)} more descriptors")
        for _ in range(spare):
            os.close(fillers.pop())
        yield


def _open_until_it_fails(opened: list[int], spare: int, exits: ExitStack) -> None:
    try:
        opened.append(os.open(os.devnull, os.O_RDONLY))
        _lower_the_limit(max(_ROOM, spare + 1), exits)
        while True:
            opened.append(os.dup(opened[0]))
    except OSError as error:
        if error.errno != errno.EMFILE:
            raise


def _lower_the_limit(room: int, exits: ExitStack) -> None:
    """To so many above what is open now: to open all of a million descriptors would take long."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    lower = _highest_descriptor() + room
    if soft == resource.RLIM_INFINITY or soft > lower:
        exits.callback(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
        resource.setrlimit(resource.RLIMIT_NOFILE, (lower, hard))


# Fewer are not worth a lower limit.
_ROOM = 64


def _highest_descriptor() -> int:
    return max(int(name) for name in os.listdir("/proc/self/fd" if sys.platform == "linux" else "/dev/fd"))


def _close_all(descriptors: list[int]) -> None:
    while descriptors:
        os.close(descriptors.pop())
