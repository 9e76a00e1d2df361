"""Checks that options have in common; each raises ``OptionError`` with the option's name and value.

And what is said about arguments that nobody has: Python names the wrong one, and here the right one is named.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import math
from collections.abc import Callable, Iterable
from typing import Any, ParamSpec, TypeVar

from asyncserver.errors import OptionError

__all__ = [
    "as_bytes",
    "check_count",
    "check_seconds",
    "counted",
    "is_number",
    "names_arguments",
    "names_fields",
    "similar",
    "takes_one_argument",
    "wrong_data",
]

P = ParamSpec("P")
T = TypeVar("T")


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


def takes_one_argument(function: Callable[..., object]) -> bool:
    """Whether it can be called with one positional argument, as far as it says."""
    try:
        inspect.signature(function).bind(object())
    except ValueError:  # It does not say what it takes.
        return True
    except TypeError:
        return False
    return True


# --- arguments that do not exist ---


def similar(name: str, names: Iterable[str]) -> str:
    """``; did you mean x?`` with the one of ``names`` that is like ``name``; nothing if none is."""
    import difflib  # For those who have made a mistake.

    found = difflib.get_close_matches(name, list(names), n=1)
    return f"; did you mean {found[0]}?" if found else ""


def names_fields(cls: type[T]) -> type[T]:
    """For a dataclass of options: a ``TypeError`` about its arguments says which fields there are."""

    def hint(name: str) -> str:
        names = [field.name for field in dataclasses.fields(cls)]  # type: ignore[arg-type]
        return similar(name, names) or f"; it has {', '.join(names)}"

    explained: Any = cls
    explained.__init__ = names_arguments(cls.__name__, hint)(explained.__init__)
    return cls


def names_arguments(
    owner: str, hint: Callable[[str], str]
) -> Callable[[Callable[P, None]], Callable[P, None]]:
    """For an ``__init__``: a ``TypeError`` about an argument that it has not tells the ``hint(name)``."""

    def decorate(init: Callable[P, None]) -> Callable[P, None]:
        @functools.wraps(init)
        def checked(*args: P.args, **kwargs: P.kwargs) -> None:
            try:
                init(*args, **kwargs)
            except TypeError:
                problem = _argument_problem(init, owner, hint, args, kwargs)
                if problem is None:
                    raise
                raise TypeError(problem) from None

        return checked

    return decorate


def _argument_problem(
    init: Callable[..., None], owner: str, hint: Callable[[str], str], args: Any, kwargs: dict[str, Any]
) -> str | None:
    parameters = inspect.signature(init).parameters
    for name in kwargs:
        if name not in parameters:
            return f"{owner} has no argument {name!r}{hint(name)}"
    by_name = [name for name, each in parameters.items() if each.kind is each.KEYWORD_ONLY]
    if len(args) > 1 and len(by_name) == len(parameters) - 1:
        return f"{owner} takes its arguments by name, as in {owner}({by_name[0]}={args[1]!r})"
    return None


# --- what is sent ---


def as_bytes(data: Any, function: str) -> bytes:
    """What is given to ``function`` to be sent, in a copy; ``TypeError`` if it is nothing like bytes."""
    try:
        return bytes(memoryview(data))  # Not of a number, which would be as many zeros.
    except TypeError:
        raise wrong_data(data, function) from None


def wrong_data(data: object, function: str, argument: str = "") -> TypeError:
    """Says that ``function`` takes bytes, and how what it was given becomes bytes."""
    remedy = "make bytes of it"
    if isinstance(data, str):
        remedy = "encode it, as in text.encode()"
    elif inspect.isawaitable(data):
        remedy = "there is an `await` missing where it was made"
    takes = f"{argument} has to be bytes" if argument else "takes bytes"
    return TypeError(f"{function} {takes}, not {type(data).__name__}: {remedy}")


def counted(number: int, noun: str) -> str:
    """The number with its noun, for people: "1 handler", "2 handlers"."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
