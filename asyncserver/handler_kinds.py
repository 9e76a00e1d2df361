"""What handlers of every kind have in common: the steps of a class, and what is said of what cannot serve."""

from __future__ import annotations

import asyncio
import functools
import inspect
import re
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar, cast

from asyncserver.checks import takes_one_argument
from asyncserver.datagram import Datagram
from asyncserver.errors import OptionError
from asyncserver.lifecycle import Lifecycle
from asyncserver.session import Session
from asyncserver.stream import Stream

__all__ = [
    "CLASSES",
    "DATAGRAMS",
    "SESSIONS",
    "STREAMS",
    "HandlerKind",
    "StepsHandler",
    "checked_function",
    "runner_of",
]

T = TypeVar("T")
Function: TypeAlias = Callable[[T], Coroutine[Any, Any, object]]


@dataclass(frozen=True)
class HandlerKind:
    """What a server calls a handler with, and how that is called in messages."""

    takes: type
    """What a handler is given."""

    classes: str | None
    """The public class that handler classes extend, by name; None: functions only."""

    remedy: str
    """What to do with such a handler where another kind is wanted."""

    @property
    def name(self) -> str:
        """As people, and most programs, call what a handler is given."""
        return self.takes.__name__.lower()

    @property
    def wanted(self) -> str:
        """What can be such a handler."""
        return "an async function" if self.classes is None else f"an async function or a {self.classes} class"


STREAMS = HandlerKind(
    Stream,
    "StreamHandler",
    "give it to run(), serve() or Server, with an address such as tcp://127.0.0.1:9999",
)
DATAGRAMS = HandlerKind(
    Datagram,
    "DatagramHandler",
    "give it to run_datagrams(), serve_datagrams() or DatagramServer,"
    " with an address such as udp://127.0.0.1:9999",
)
SESSIONS = HandlerKind(Session, None, f"mark it with @sessions, and {DATAGRAMS.remedy}")
_KINDS = (STREAMS, DATAGRAMS, SESSIONS)

CLASSES: dict[type, HandlerKind] = {}
"""The classes that handlers of each kind are, or extend. The modules that have them enter them."""


class StepsHandler:
    """The base of handler classes: ``setup``, ``handle`` and ``finish`` run one after the other."""

    async def setup(self) -> None:
        """Prepare; nothing by default. If it raises, neither of the others runs."""

    async def handle(self) -> None:
        """Serve. To be overridden."""
        raise NotImplementedError(f"{type(self).__qualname__} has no handle()")

    async def finish(self) -> None:
        """Clean up; nothing by default."""


def runner_of(handler: Any, kind: HandlerKind) -> Function[Any] | None:
    """The coroutine function that serves with a handler class; None if ``handler`` is no class.

    Raises ``OptionError`` for a class that cannot serve.
    """
    if not isinstance(handler, type):
        return None
    steps: Any = handler
    if _kind_of(handler) is not kind:
        raise _refused(handler, _what_to_do_with_class(handler, kind))
    _check_methods(steps, kind)

    async def run(given: Any) -> None:
        instance = steps(given)
        await instance.setup()
        try:
            await instance.handle()
        finally:
            await instance.finish()

    return run


def checked_function(handler: Any, kind: HandlerKind) -> Function[Any]:
    """``handler``, if it is a function that can serve; else an ``OptionError`` that says what to do."""
    if isinstance(handler, type):
        raise _refused(handler, _what_to_do_with_class(handler, kind))
    if not callable(handler) or _kind_of(type(handler)) is SESSIONS:
        raise _refused(handler, _what_to_do_with_object(handler, kind))
    if not _is_async(handler):
        raise _refused(handler, _what_to_do_with_plain_function(handler, kind))
    _check_arguments(handler, kind)
    return cast("Function[Any]", handler)


def _refused(handler: object, reason: str) -> OptionError:
    return OptionError("handler", handler, reason)


def _plural(kind: HandlerKind) -> str:
    return f"{kind.name}s"


def _kind_of(cls: type) -> HandlerKind | None:
    return next((CLASSES[each] for each in cls.__mro__ if each in CLASSES), None)


# --- classes ---


def _check_methods(handler: Any, kind: HandlerKind) -> None:
    where = _place_of(handler)
    if handler.handle is StepsHandler.handle:
        raise _refused(handler, f"has no `async def handle(self)`{where}")
    for name in ("setup", "handle", "finish"):
        if not inspect.iscoroutinefunction(getattr(handler, name)):
            raise _refused(handler, f"{name} is not async: write `async def {name}(self)`{where}")
    if not takes_one_argument(handler):
        raise _refused(
            handler,
            f"is called with one argument, the {kind.name}: write `def __init__(self, {kind.name})` and "
            f"`super().__init__({kind.name})` in it{where}",
        )


def _what_to_do_with_class(handler: type, kind: HandlerKind) -> str:
    where = _place_of(handler)
    mine = _kind_of(handler)
    if mine is SESSIONS:
        remedy = "write `async def` (it takes the session), with @sessions above it"
        return f"extends what @sessions makes: {remedy}{where}"
    if mine is not None:
        return f"serves {_plural(mine)}, not {_plural(kind)}: {mine.remedy}{where}"
    names = {each.__name__ for each in handler.__mro__}
    if "BaseRequestHandler" in names:
        wrapped = f"wrap it, compat.legacy({handler.__name__})"
        remedy = wrapped if kind is STREAMS else "leave it to a server of socketserver, or of compat"
        return f"is a handler class of socketserver: {remedy}{where}"
    extend = "" if kind.classes is None else f"extend asyncserver.{kind.classes}"
    if "AsyncRequestHandler" in names:
        return f"is made for servers of compat: here, {extend}{where}"
    if issubclass(handler, asyncio.BaseProtocol):
        return f"is a protocol of asyncio: write `async def handler({kind.name})` instead{where}"
    if not extend:
        return f"has to be {kind.wanted}{where}"
    return f"has to {extend}, as every handler class{where}"


# --- what is neither a class nor a function ---


def _what_to_do_with_object(handler: Any, kind: HandlerKind) -> str:
    cls: Any = handler.__class__
    if inspect.iscoroutine(handler):
        handler.close()  # Or Python complains about it as well.
        return f"was called: give the function itself, {handler.__name__} and not {handler.__name__}(...)"
    if inspect.isasyncgen(handler):
        return f"was called, and is an async generator: {_instead_of_yield(kind)}"
    if isinstance(handler, StepsHandler):
        return f"is an instance: give the class itself, {cls.__name__} and not {cls.__name__}(...)"
    if _kind_of(cls) is SESSIONS:
        return f"is marked with @sessions, and serves no {_plural(kind)}: {DATAGRAMS.remedy}"
    if isinstance(handler, Lifecycle):
        return "is a server already: give it to run_server(), or await its serve()"
    if isinstance(handler, str) and re.match(r"[a-z+]+:(//|.*[/@])", handler):
        return f"is an address: the first argument is the handler, {kind.wanted}"
    if isinstance(handler, str):
        return (
            f"is text: give {kind.wanted} itself (names are for the command line: "
            "python -m asyncserver serve MODULE:NAME ADDRESS)"
        )
    return f"has to be {kind.wanted}"


# --- functions ---


def _is_async(handler: Any) -> bool:
    """Whether calling it gives a coroutine."""
    function = _without_partial(handler)
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(_call_of(function))


def _without_partial(handler: Any) -> Any:
    while isinstance(handler, functools.partial):
        handler = handler.func
    return handler


def _call_of(handler: Any) -> Any:
    return getattr(handler, "__call__", None)  # noqa: B004 - the method itself is what is looked at


def _what_to_do_with_plain_function(handler: Any, kind: HandlerKind) -> str:
    function = _without_partial(handler)
    if not hasattr(function, "__code__") and not inspect.ismethod(function):
        function = _call_of(function)
    name = getattr(function, "__name__", "handler")
    where = _place_of(function)
    if inspect.isasyncgenfunction(function) or inspect.isgeneratorfunction(function):
        return f"is a generator, because of its `yield`: {_instead_of_yield(kind)}{where}"
    if name == "<lambda>":
        return f"is a lambda, which is not async: write `async def` (it takes the {kind.name}){where}"
    return (
        f"is not async: write `async def` (it takes the {kind.name}), and "
        f"`await asyncio.to_thread(...)` around what blocks{where}"
    )


def _instead_of_yield(kind: HandlerKind) -> str:
    sends = "datagram.reply(...)" if kind is DATAGRAMS else f"{kind.name}.send(...)"
    return f"write `async def` without it, and send with `await {sends}`"


def _check_arguments(handler: Any, kind: HandlerKind) -> None:
    try:
        signature = inspect.signature(handler)
    except (TypeError, ValueError):
        return
    try:
        bound = signature.bind(object())
    except TypeError:
        hint = _what_to_do_with_arguments(handler, signature, kind)
        reason = f"has to take one argument, the {kind.name}; it takes {_without_types(signature)}{hint}"
        raise _refused(handler, f"{reason}{_place_of(handler)}") from None
    for name in bound.arguments:
        _check_annotation(handler, signature.parameters[name], kind)


def _without_types(signature: inspect.Signature) -> inspect.Signature:
    parameters = [each.replace(annotation=each.empty) for each in signature.parameters.values()]
    return signature.replace(parameters=parameters, return_annotation=signature.empty)


def _what_to_do_with_arguments(handler: Any, signature: inspect.Signature, kind: HandlerKind) -> str:
    names = list(signature.parameters)
    if names[:1] == ["self"] and len(names) > 1:
        owner = getattr(handler, "__qualname__", "").rpartition(".")[0] or "the class"
        return f": give the method of an instance, {owner}(...).{handler.__name__}"
    if names == ["reader", "writer"] and kind is STREAMS:
        return ": one stream is both, receive() and send()"
    name = getattr(handler, "__name__", "handler")
    return f"; bind what else it needs, functools.partial({name}, {names[1]}=...)" if names[1:] else ""


def _check_annotation(handler: Any, parameter: inspect.Parameter, kind: HandlerKind) -> None:
    """A function that says that it takes something else was given to the wrong kind of server."""
    annotation = _resolved(parameter.annotation, _without_partial(handler))
    for other in _KINDS:
        if annotation is other.takes and other is not kind:
            raise _refused(
                handler,
                f"takes a {annotation.__name__}, and is to serve {_plural(kind)}: {other.remedy}"
                f"{_place_of(handler)}",
            )


def _resolved(annotation: Any, function: Any) -> Any:
    """What an annotation that is kept as text stands for; None where that cannot be said."""
    if not isinstance(annotation, str):
        return annotation
    if not inspect.isfunction(function) and not inspect.ismethod(function):
        function = _call_of(function)
    names = getattr(inspect.unwrap(function), "__globals__", {})
    first, *rest = annotation.split(".")
    return functools.reduce(lambda found, name: getattr(found, name, None), rest, names.get(first))


def _place_of(handler: Any) -> str:
    """`` (FILE:LINE)`` of its definition, or nothing if that is not known."""
    handler = _without_partial(handler)
    if isinstance(handler, type):
        methods = [each for each in vars(handler).values() if inspect.isfunction(each)]
        handler = methods[0] if methods else None
    elif not inspect.isfunction(handler) and not inspect.ismethod(handler):
        handler = _call_of(handler)
    code = getattr(inspect.unwrap(handler), "__code__", None) if callable(handler) else None
    return "" if code is None else f" ({code.co_filename}:{code.co_firstlineno})"
