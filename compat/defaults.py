"""What holds for every server of the process that does not say otherwise; set by the command line."""

from __future__ import annotations

from asyncserver import LoopName

__all__ = ["DEFAULTS", "Defaults"]


class Defaults:
    """Process-wide defaults."""

    def __init__(self) -> None:
        self.executor: str | None = None
        self.loop: LoopName = "auto"


DEFAULTS = Defaults()
