"""Checks that options have in common; each raises ``OptionError`` with the option's name and value."""

from __future__ import annotations

import math

from asyncserver.errors import OptionError

__all__ = ["check_count", "check_seconds", "is_number"]


def is_number(value: object) -> bool:
    """Whether it is a number as users mean it; in Python True is an int as well."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def check_seconds(option: str, value: float | None, *, zero: bool = False) -> None:
    """A positive, finite number of seconds, or None; zero only where it means something."""
    if value is None:
        return
    if not is_number(value):
        raise OptionError(option, value, "has to be a number of seconds, or None for no limit")
    if not math.isfinite(value) or value < 0 or (value == 0 and not zero):
        least = "zero or more" if zero else "more than zero"
        raise OptionError(option, value, f"has to be {least} seconds; None means no limit")


def check_count(option: str, value: int | None, least: int, unit: str, *, optional: bool = True) -> None:
    """A whole number that is at least ``least``; None only where it is ``optional``."""
    if value is None and optional:
        return
    none = ", or None for no limit" if optional else ""
    if isinstance(value, bool) or not isinstance(value, int):
        raise OptionError(option, value, f"has to be a whole number of {unit}{none}")
    if value < least:
        raise OptionError(option, value, f"has to be at least {least} {unit}{none}")
