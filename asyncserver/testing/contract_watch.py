"""Streams of which is known what is done with them, and what a rule of the contract is."""

from __future__ import annotations

import asyncio
import reprlib
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

__all__ = ["Operation", "Rule", "Violation", "Watch", "Watched", "fail", "rule"]


class Violation(Exception):  # noqa: N818 - the message of a StreamContractError
    """A rule is broken; the message says what has happened."""


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule of the contract and how it is tried on two streams, the first of which is under test."""

    name: str
    run: Callable[[Watched, Watched], Coroutine[Any, Any, None]]
    needs: Sequence[str] = ()
    """Methods that a stream has to have for the rule to apply."""
    half_close: bool = False
    """Whether it is about ending one direction alone."""
    complete: bool = False
    """Whether it is a promise of ``asyncserver.Stream`` beyond those of ``anyio.abc.ByteStream``."""
    one_sided: bool = True
    """Whether the other stream has another part in it, so that it has to be tried the other way round."""

    def is_due(self, pair: Sequence[object], half_close: bool, complete: bool) -> bool:
        """Whether it applies to streams like these."""
        if self.half_close > half_close or self.complete > complete:
            return False
        return all(hasattr(stream, method) for stream in pair for method in self.needs)


_Run = Callable[["Watched", "Watched"], Coroutine[Any, Any, None]]


def rule(book: list[Rule], **options: Any) -> Callable[[_Run], _Run]:
    """Enter the function as a rule in the book, under its name."""

    def enter(run: _Run) -> _Run:
        book.append(Rule(run.__name__.strip("_").replace("_", "-"), run, **options))
        return run

    return enter


class Watch:
    """What is under way, for the message when something goes wrong, and for the end."""

    def __init__(self) -> None:
        self._under_way: list[str] = []
        self._failures: list[tuple[BaseException, str]] = []
        self.tasks: set[asyncio.Task[Any]] = set()

    def start(self, coroutine: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """A task that is ended with the rule, and may raise."""
        task = asyncio.create_task(coroutine)
        self.tasks.add(task)
        return task

    async def over(self, what: str, operation: Callable[..., Awaitable[Any]], args: Sequence[Any]) -> Any:
        """Call it, and remember that meanwhile, and what it raises."""
        self._under_way.append(what)
        try:
            return await operation(*args)
        except Exception as exc:
            self._failures.append((exc, what))
            raise
        finally:
            self._under_way.remove(what)

    def waiting(self) -> str:
        """What has not ended."""
        return f"waiting: {', '.join(self._under_way)}" if self._under_way else "none of its methods waits"

    def blame(self, exc: BaseException) -> str:
        """What has raised it."""
        culprits = (what for failure, what in self._failures if failure is exc)
        return f"{next(culprits, 'the stream')} raised {exc!r}"


class Operation:
    """A method of a stream under test."""

    def __init__(self, name: str, method: Callable[..., Awaitable[Any]], watch: Watch) -> None:
        self._name = name
        self._method = method
        self._watch = watch

    def __call__(self, *args: Any) -> Coroutine[Any, Any, Any]:
        return self._watch.over(self.described(args), self._method, args)

    def described(self, args: Sequence[Any]) -> str:
        """As it would be written."""
        return f"{self._name}({', '.join(map(reprlib.repr, args))})"


class Watched:
    """A stream that says what is done with it; everything that is asked of it is the stream's own."""

    def __init__(self, stream: Any, name: str, can_half_close: bool, watch: Watch) -> None:
        self._stream = stream
        self._name = name
        self.can_half_close = can_half_close
        self.watch = watch

    def __str__(self) -> str:
        return self._name

    def __getattr__(self, name: str) -> Operation:
        return Operation(f"{self._name}.{name}", getattr(self._stream, name), self.watch)

    def __aiter__(self) -> AsyncIterator[Any]:
        return aiter(self._stream)

    def lines(self, max_bytes: int) -> AsyncIterator[bytes]:
        """Not awaited, so not an operation that may wait."""
        return aiter(self._stream.lines(max_bytes))

    def abort(self) -> None:
        """The same."""
        self._stream.abort()


def fail(problem: str) -> NoReturn:
    """The rule is broken."""
    raise Violation(problem)
