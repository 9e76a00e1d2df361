"""The one place where an event loop is chosen."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Literal, TypeAlias

from asyncserver.errors import OptionError

__all__ = ["LoopName", "loop_factory"]

LoopName: TypeAlias = Literal["auto", "uvloop", "asyncio"]
"""``"auto"`` is uvloop where it is installed, and asyncio elsewhere."""


def loop_factory(loop: LoopName = "auto") -> Callable[[], asyncio.AbstractEventLoop]:
    """What makes the event loops; raises ``OptionError`` for an unknown name or a missing uvloop."""
    if loop not in ("auto", "uvloop", "asyncio"):
        raise OptionError("loop", loop, "has to be 'auto', 'uvloop' or 'asyncio'")
    if loop != "asyncio":
        try:
            import uvloop
        except ImportError:
            if loop == "uvloop":
                raise OptionError("loop", loop, "uvloop is not installed: pip install uvloop") from None
        else:
            return uvloop.new_event_loop
    return asyncio.new_event_loop
