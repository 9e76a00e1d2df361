"""What servers are given, checked: each error says what was given, and what to write instead."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Collection, Mapping
from typing import Any, TypeVar

from asyncserver.checks import check_seconds, similar, takes_one_argument
from asyncserver.errors import OptionError

__all__ = [
    "NEEDS_DECORATOR",
    "check_drain_options",
    "checked",
    "checked_hook",
    "checked_lifespan",
    "elsewhere",
    "is_async_context_manager",
    "replaced",
]

OptionsT = TypeVar("OptionsT", bound=Any)
T = TypeVar("T")


def checked(option: str, value: T | None, kind: type[T]) -> T:
    """The value, or the defaults instead of None; raises ``OptionError`` if it is something else."""
    if value is None:
        return kind()
    if not isinstance(value, kind):
        raise OptionError(option, value, f"has to be a {kind.__name__}{_how_to_make_it(value, kind)}")
    return value


def _how_to_make_it(value: object, kind: type) -> str:
    name = kind.__name__
    given: Any = value
    if value is kind:
        return f": write {name}(), which makes one"
    fields: dict[str, Any] = kind.__dict__.get("__dataclass_fields__", {})
    if isinstance(value, Mapping) and fields.keys() >= given.keys():
        return f": write {name}({', '.join(f'{field}={each!r}' for field, each in given.items())})"
    example = next((field for field in ("idle", "session_idle", "max_connections") if field in fields), "...")
    if isinstance(value, int | float) and example != "...":
        return f": write {name}({example}={value!r}), or which of its fields is meant"
    return f", made as {name}(...)"


_WHERE_TO_LISTEN = "; where to listen is an address, such as 'tcp://127.0.0.1:9999'"
_TLS = "; write tls=TLSConfig(certificate='cert.pem', private_key='key.pem')"
_OF_OTHERS = {
    **dict.fromkeys(("host", "port", "path", "sock", "address", "bind", "family"), _WHERE_TO_LISTEN),
    **dict.fromkeys(("ssl", "ssl_context", "certfile", "keyfile", "ssl_certfile", "ssl_keyfile"), _TLS),
    **dict.fromkeys(("loop", "drain_timeout", "drain_delay", "on_ready"), "; run() and run_server() have it"),
}


def elsewhere(name: str, groups: Mapping[str, type], known: Collection[str]) -> str:
    """Where an argument belongs that is not ``known``: into which of ``groups``, or what it is called."""
    if name in _OF_OTHERS:
        return _OF_OTHERS[name]
    for option, kind in groups.items():
        if name in (field.name for field in dataclasses.fields(kind)):
            return f"; write {option}={kind.__name__}({name}=...)"
    return similar(name, known) or f"; it has {', '.join(known)}"


def checked_hook(option: str, hook: T) -> T:
    """A plain function or None; raises ``OptionError`` if it is something else."""
    if hook is not None and (not callable(hook) or inspect.iscoroutinefunction(hook)):
        raise OptionError(option, hook, "has to be a plain function, not an async one")
    return hook


# A lifespan is most easily made of a generator, and the decorator most easily forgotten.
NEEDS_DECORATOR = "write @contextlib.asynccontextmanager above it, and a `yield` where the server serves"


def checked_lifespan(lifespan: T) -> T:
    """A function that returns an async context manager, or None; ``OptionError`` for what cannot be one."""
    if lifespan is None:
        return lifespan
    if not callable(lifespan):
        raise OptionError("lifespan", lifespan, "has to be a function that returns a context manager")
    if (
        inspect.iscoroutinefunction(lifespan)
        or inspect.isasyncgenfunction(lifespan)
        or inspect.isgeneratorfunction(lifespan)
    ):
        raise OptionError(
            "lifespan", lifespan, f"does not return an async context manager: {NEEDS_DECORATOR}"
        )
    if not takes_one_argument(lifespan):
        raise OptionError("lifespan", lifespan, "has to take one argument, the server")
    return lifespan


def is_async_context_manager(made: Any) -> bool:
    """Whether it can be entered by ``async with``."""
    return hasattr(made, "__aenter__") and hasattr(made, "__aexit__")


def replaced(values: OptionsT, changes: dict[str, Any]) -> tuple[OptionsT, dict[str, Any]]:
    """The dataclass with those of the changes that are its fields, and the rest of the changes."""
    names = {field.name for field in dataclasses.fields(values)}
    own = {name: value for name, value in changes.items() if name in names}
    rest = {name: value for name, value in changes.items() if name not in names}
    return dataclasses.replace(values, **own), rest


def check_drain_options(timeout: float | None, delay: float) -> None:
    """Raise ``OptionError`` for seconds that cannot be."""
    check_seconds("timeout", timeout, zero=True)
    check_seconds("delay", delay, zero=True)
    if delay is None:
        raise OptionError("delay", None, "has to be a number of seconds; zero does not wait")
