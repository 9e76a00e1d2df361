"""Runs a program as ``python`` does: ``__main__``, ``sys.argv``, ``sys.path``, tracebacks, exit status."""

from __future__ import annotations

import builtins
import importlib.machinery
import io
import linecache
import os
import runpy
import sys
import types
import zipimport
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any

__all__ = ["run_code", "run_module", "run_script"]


def run_script(path: str, arguments: Sequence[str]) -> None:
    """As ``python path arguments``: a file, "-", or a directory or ZIP file with a ``__main__.py`` in it."""
    sys.argv[:] = [path, *arguments]
    if path == "-":
        _prepend_to_path("")
        main = _new_main()
        main.__file__ = "<stdin>"
        main.__cached__ = None
        main.__loader__ = importlib.machinery.BuiltinImporter
        _run_as_main(lambda: _execute(sys.stdin.read(), "<stdin>", main))
        return
    # As the interpreter has it: not normalized.
    full = os.getcwd() if path == "." else os.path.join(os.getcwd(), path)
    try:
        os.stat(path)
    except OSError as exc:
        error = f"[Errno {exc.errno}] {exc.strerror}"
        sys.stderr.write(f"{sys.executable}: can't open file {full!r}: {error}\n")
        raise SystemExit(2) from None
    main = _new_main()
    if os.path.isdir(path) or _is_archive(path):
        sys.path.insert(0, full)
        run: Any = runpy
        _run_as_main(lambda: run._run_module_as_main("__main__", alter_argv=False))
        return
    _prepend_to_path(os.path.dirname(os.path.realpath(path)))
    main.__file__ = full
    main.__cached__ = None
    main.__loader__ = importlib.machinery.SourceFileLoader("__main__", full)
    _run_as_main(lambda: _execute(_read(full), full, main))


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


def _is_archive(path: str) -> bool:
    try:
        zipimport.zipimporter(path)
    except zipimport.ZipImportError:
        return False
    return True


def _new_main() -> Any:
    main: Any = types.ModuleType("__main__")
    main.__builtins__ = builtins
    main.__annotations__ = {}
    sys.modules["__main__"] = main
    return main


def _read(path: str) -> bytes:
    with io.open_code(os.path.abspath(path)) as file:
        return file.read()


def _execute(source: str | bytes, name: str, main: Any) -> None:
    exec(compile(source, name, "exec", dont_inherit=True), main.__dict__)


def _run_as_main(run: Callable[[], object]) -> None:
    """What the program raises goes on to the interpreter, and is shown without the frames of this package."""
    try:
        run()
    except SystemExit:
        raise
    except BaseException:
        sys.excepthook = _Trimmed(sys.excepthook)
        raise


class _Trimmed:
    """An exception hook that hides how the program was started."""

    def __init__(self, hook: Callable[..., object]) -> None:
        self._hook = hook

    def __call__(
        self, kind: type[BaseException], value: BaseException, traceback: TracebackType | None
    ) -> None:
        shown = traceback
        for each in _frames(traceback):
            if each.tb_frame.f_code.co_filename == __file__:
                shown = each.tb_next
        self._hook(kind, value.with_traceback(shown), shown)


def _frames(traceback: TracebackType | None) -> list[TracebackType]:
    found: list[TracebackType] = []
    while traceback is not None:
        found.append(traceback)
        traceback = traceback.tb_next
    return found
