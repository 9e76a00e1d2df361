"""``HandlerErrors``: what handlers raised while a test was looking elsewhere."""

from __future__ import annotations

import traceback
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

__all__ = ["HandlerErrors", "collected_errors"]


class HandlerErrors(ExceptionGroup[Exception]):
    """Handlers have raised, and it was not their peers' doing; ``exceptions`` are what they raised.

    Each has a note that says for whom it was raised.
    """

    def derive(self, excs: Sequence[Any], /) -> Any:
        """A part of it, for ``except*`` and ``split()``."""
        return HandlerErrors(self.message, excs)


@contextmanager
def collected_errors(options: Mapping[str, Any], wanted: bool) -> Generator[Mapping[str, Any]]:
    """The options of a server, with an ``on_error`` if they have none, whose errors are raised at the end.

    If the block raises, that is what counts, and the errors become a note of it.
    """
    if not wanted or options.get("on_error") is not None:
        yield options
        return
    errors: list[Exception] = []

    def collect(subject: object, error: Exception) -> None:
        error.add_note(f"raised by the handler of {subject!r}")
        errors.append(error)

    try:
        yield {**options, "on_error": collect}
    except BaseException as raised:
        for error in errors:
            raised.add_note("A handler had raised:\n" + "".join(traceback.format_exception(error)))
        raise
    if errors:
        raise HandlerErrors("handlers have raised", errors)
