"""Runs a program as ``python`` does: ``__main__``, ``sys.argv``, ``sys.path``, tracebacks, exit status."""

from __future__ import annotations

import builtins
import importlib.machinery
import io
import linecache
import os
import pkgutil
import re
import runpy
import subprocess
import sys
import types
from collections.abc import Callable, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Any

__all__ = ["run_code", "run_module", "run_script"]

# A byte order mark, or a line that declares the encoding: the first, or the second after a comment (PEP 263).
_DECLARES_ENCODING = re.compile(
    rb"\xef\xbb\xbf|(?:[ \t\f]*(?:#[^\r\n]*)?(?:\r\n?|\n))?[ \t\f]*#[^\r\n]*?coding[:=][ \t]*[-\w.]"
)

_NO_HOOK = object()


def run_script(path: str, arguments: Sequence[str]) -> None:
    """As ``python path arguments``: a file, "-", or a directory or ZIP file with a ``__main__.py`` in it."""
    sys.argv[:] = [path, *arguments]
    if path == "-":
        _prepend_to_path("")
        main = _new_main()
        main.__file__ = "<stdin>"
        main.__cached__ = None
        main.__loader__ = importlib.machinery.BuiltinImporter
        text = b"" if sys.stdin is None else sys.stdin.buffer.read()
        _refuse_unreadable(text, "-")
        _run_as_main(lambda: _execute_file(text, "<stdin>", main))
        return
    # As the interpreter has it: not normalized.
    full = os.getcwd() if path == "." else os.path.join(os.getcwd(), path)
    if pkgutil.get_importer(path) is not None:  # A directory or an archive, or a directory in an archive.
        _new_main()
        sys.path.insert(0, full)
        run: Any = runpy
        _run_as_main(lambda: run._run_module_as_main("__main__", alter_argv=False))
        return
    try:
        source = _read(full)
    except OSError as exc:
        error = f"[Errno {exc.errno}] {exc.strerror}"
        sys.stderr.write(f"{sys.executable}: can't open file {full!r}: {error}\n")
        raise SystemExit(2) from None
    _refuse_unreadable(source, full)
    main = _new_main()
    _prepend_to_path(os.path.dirname(os.path.realpath(path)))
    main.__file__ = full
    main.__cached__ = None
    main.__loader__ = importlib.machinery.SourceFileLoader("__main__", full)
    _run_as_main(lambda: _execute_file(source, full, main))


def run_code(source: str, arguments: Sequence[str]) -> None:
    """As ``python -c source arguments``."""
    sys.argv[:] = ["-c", *arguments]
    _prepend_to_path("")
    main = _new_main()
    main.__loader__ = importlib.machinery.BuiltinImporter
    if sys.version_info >= (3, 13):  # Tracebacks show the lines of `-c`, too.
        lines = [f"{line}\n" for line in source.splitlines()]
        linecache.cache["<string>"] = (len(source), None, lines, "<string>")
    _run_as_main(lambda: _execute(source, "<string>", main))


def run_module(name: str, arguments: Sequence[str]) -> None:
    """As ``python -m name arguments``."""
    sys.argv[:] = ["-m", *arguments]
    _prepend_to_path(os.getcwd())
    _new_main()
    # What the interpreter itself calls for `-m`: the messages and the exit status are its own.
    run: Any = runpy
    _run_as_main(lambda: run._run_module_as_main(name))


def _prepend_to_path(directory: str) -> None:
    if not sys.flags.safe_path:
        sys.path.insert(0, directory)


def _new_main() -> Any:
    main: Any = types.ModuleType("__main__")
    main.__builtins__ = builtins
    main.__annotations__ = {}
    sys.modules["__main__"] = main
    return main


def _read(path: str) -> bytes:
    with io.open_code(path) as file:
        return file.read()


def _refuse_unreadable(source: bytes, path: str) -> None:
    """End as ``python path`` does where the bytes of a file are not a text.

    Only what reads files in the interpreter has the words for that, which differ by version; ``compile()``
    has others, and takes comments that are not UTF-8.
    """
    if _is_readable(source, path) or not (path == "-" or os.path.isfile(path)):
        return
    subprocess_: Any = subprocess
    command = [sys.executable, *subprocess_._args_from_interpreter_flags(), path]
    given = {"input": source} if path == "-" else {}
    raise SystemExit(subprocess_.run(command, **given).returncode)


def _is_readable(source: bytes, name: str) -> bool:
    if b"\0" in source:
        return False
    try:
        if not _DECLARES_ENCODING.match(source):
            source.decode()
        else:
            compile(source, name, "exec", dont_inherit=True)
    except UnicodeDecodeError:
        return False
    except (SyntaxError, LookupError) as exc:
        return bool(getattr(exc, "lineno", None))
    return True


def _execute(source: str | bytes, name: str, main: Any) -> None:
    exec(compile(source, name, "exec", dont_inherit=True), main.__dict__)


def _execute_file(source: bytes, name: str, main: Any) -> None:
    try:
        _execute(source, name, main)
    finally:  # As after a file, and only then, in the interpreter: before it shows the traceback.
        for stream in (sys.stderr, sys.stdout):
            with suppress(Exception):
                stream.flush()


def _run_as_main(run: Callable[[], object]) -> None:
    """What the program raises goes on to the interpreter, and is shown without the frames of this package."""
    try:
        run()
    except SystemExit:
        raise
    except BaseException:
        sys.excepthook = _Trimmed(getattr(sys, "excepthook", _NO_HOOK))
        raise


class _Trimmed:
    """An exception hook that hides how the program was started, and calls the one that there was."""

    def __init__(self, hook: Any) -> None:
        self._hook = hook

    def __call__(
        self, kind: type[BaseException], value: BaseException, traceback: TracebackType | None
    ) -> None:
        shown = _without_ours(traceback)
        value.with_traceback(shown)
        sys.last_traceback = shown
        if self._hook is _NO_HOOK:
            del sys.excepthook
            _write_error("sys.excepthook is missing\n")
            sys.__excepthook__(kind, value, shown)
            return
        sys.excepthook = self._hook
        try:
            self._hook(kind, value, shown)
        except SystemExit:
            raise
        except BaseException as exc:
            failure = exc
        else:
            return
        # As the interpreter has it, which would show the frame of this function, too.
        _write_error("Error in sys.excepthook:\n")
        trace = _without_ours(failure.__traceback__)
        sys.__excepthook__(type(failure), failure.with_traceback(trace), trace)
        _write_error("\nOriginal exception was:\n")
        sys.__excepthook__(kind, value, shown)


def _write_error(text: str) -> None:
    try:
        sys.stderr.write(text)
    except (AttributeError, OSError, ValueError):  # There is none, or it is closed.
        with suppress(OSError):
            os.write(2, text.encode())


def _without_ours(traceback: TracebackType | None) -> TracebackType | None:
    """What comes after the last frame of this file."""
    shown = traceback
    while traceback is not None:
        if traceback.tb_frame.f_code.co_filename == __file__:
            shown = traceback.tb_next
        traceback = traceback.tb_next
    return shown
