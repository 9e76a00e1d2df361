"""For programs that tests run: a call, and a signal at some point of it."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Container
from types import FrameType

__all__ = ["interrupt"]


def interrupt(
    call: Callable[[], object],
    point: int | None,
    *,
    events: Container[str] = ("call", "c_return"),
    when: Callable[[], bool] = lambda: True,
    catch: type[BaseException] | tuple[type[BaseException], ...] = BaseException,
) -> tuple[str | None, BaseException | None]:
    """Call it, with SIGINT at the event of this number (``sys.setprofile()``) that comes ``when`` it may.

    Returns the place, None if there are fewer, and what of ``catch`` was raised.
    """
    place, left = None, point

    def on_event(frame: FrameType, event: str, argument: object) -> None:
        nonlocal place, left
        if left is not None and event in events and when():
            left -= 1
            if left == 0:
                sys.setprofile(None)
                caller = frame.f_back.f_code.co_qualname if frame.f_back else None
                place = f"{frame.f_code.co_qualname}:{frame.f_lineno}, called by {caller}"
                signal.raise_signal(signal.SIGINT)

    sys.setprofile(on_event)
    try:
        call()
    except catch as exc:
        return place, exc
    finally:
        sys.setprofile(None)
    return place, None
