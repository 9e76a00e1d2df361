"""Finding what a command line names: ``module:attribute`` or ``path/to/file.py:attribute``.

Used by the command line only. What is not there is a ``TargetError``, whose message says what is;
what a module raises while it is imported is a ``TargetImportError``: with the traceback of the
module's own frames, or, where the message of the exception says it all, with the lines that led there.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import inspect
import os
import sys
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path
from types import ModuleType, TracebackType
from typing import NamedTuple, TypeVar

from asyncserver import DatagramHandler, DatagramServer, Responder, Server, SessionHandler, StreamHandler

__all__ = ["Target", "TargetError", "TargetImportError", "load_target", "split_target", "user_traceback"]

T = TypeVar("T")

_PACKAGE = Path(__file__).parent


class TargetError(ValueError):
    """There is nothing under this name; the message says what there is."""


class TargetImportError(Exception):
    """The user's module raised while it was imported; the message says where."""


class Target(NamedTuple):
    """A target taken apart: a module or a file, and a name in it ("" if there is none)."""

    where: str
    name: str

    @property
    def is_file(self) -> bool:
        """Whether it is the path of a file, and not the name of a module."""
        return self.where.endswith(".py") or "/" in self.where or os.sep in self.where


def split_target(text: str) -> Target:
    """Take ``text`` apart; raises ``TargetError`` if it cannot be a target."""
    where, colon, name = text.rpartition(":")
    # The colon of C:\echo.py is none of ours.
    if not colon or "/" in name or "\\" in name or name.endswith(".py"):
        where, name = text, ""
    target = Target(where, name)
    if not where or (name and not _is_dotted_name(name)):
        called = "; a handler is named and not called: leave the brackets out" if "(" in text else ""
        raise TargetError(f"has to be module:name or path/to/file.py:name{called}")
    if not target.is_file and not _is_dotted_name(where):
        raise TargetError(f"{where!r} is not the name of a module; a file's ends in .py")
    return target


def load_target(text: str, app_dir: str | os.PathLike[str] = ".") -> object:
    """Import the module or file that ``text`` names, and return the object in it.

    Modules are looked for in ``app_dir`` first. It is put on ``sys.path``, as is the directory of a
    file, so that what stands beside it can be imported.
    """
    target = split_target(text)
    _put_first_on_path(os.path.abspath(app_dir))
    module = _import_file(Path(target.where)) if target.is_file else _import_module(target.where, app_dir)
    if not target.name:
        raise TargetError(f"say what in it is to serve: {_suggestions(module, target.where)}")
    return _attribute(module, target)


def user_traceback(exc: BaseException) -> str:
    """The traceback of ``exc`` from the first frame on that is neither ours nor the import system's."""
    tb = exc.__traceback__
    while tb is not None and _is_machinery(tb):
        tb = tb.tb_next
    return "".join(traceback.format_exception(type(exc), exc, tb)).rstrip()


def _is_machinery(tb: TracebackType) -> bool:
    filename = tb.tb_frame.f_code.co_filename
    return filename in (__file__, importlib.__file__) or filename.startswith("<frozen importlib")


# --- importing ---


def _import_module(name: str, app_dir: str | os.PathLike[str]) -> ModuleType:
    try:
        return _run_user_code(name, lambda: importlib.import_module(name))
    except TargetImportError as failure:
        missing = failure.__cause__
        if isinstance(missing, ModuleNotFoundError) and _is_missing_itself(name, missing):
            raise TargetError(_no_module(missing.name or name, os.path.abspath(app_dir))) from None
        raise


def _is_missing_itself(name: str, exc: ModuleNotFoundError) -> bool:
    """Whether it is the module that is not there, and not one that it imports."""
    tb = exc.__traceback__
    while tb is not None and _is_machinery(tb):
        tb = tb.tb_next
    return tb is None and exc.name is not None and f"{name}.".startswith(f"{exc.name}.")


def _no_module(missing: str, app_dir: str) -> str:
    parent, _, name = missing.rpartition(".")
    if parent:
        known = hasattr(sys.modules.get(parent), name)
        hint = f"; did you mean {parent}:{name}?" if known else ""
        return f"there is no module {missing!r}: {parent!r} has none of this name{hint}"
    hint = _did_you_mean(missing, [each.stem for each in _importable(Path(app_dir))])
    where = "or anywhere else on Python's path"
    return f"there is no module {missing!r} in {app_dir} {where}{hint or '; --app-dir says where to look'}"


def _importable(directory: Path) -> list[Path]:
    return [*directory.glob("*.py"), *(each.parent for each in directory.glob("*/__init__.py"))]


def _did_you_mean(name: str, names: Iterable[str]) -> str:
    similar = difflib.get_close_matches(name, list(names), n=1)
    return f"; did you mean {similar[0]}?" if similar else ""


def _import_file(path: Path) -> ModuleType:
    path = Path(os.path.abspath(path))
    if not path.is_file():
        raise TargetError(_no_file(path))
    root, name = _place_in_package(path)
    _put_first_on_path(str(root))
    if "." not in name and path.name != "__init__.py":
        return _run_user_code(name, lambda: _load_file(path))
    module = _run_user_code(name, lambda: importlib.import_module(name))
    if module.__file__ is None or not path.samefile(module.__file__):
        raise TargetError(f"{path} is the module {name}, but another one was imported: {module.__file__}")
    return module


def _no_file(path: Path) -> str:
    if path.is_dir():
        return f"{path} is a directory; name a file in it"
    with_suffix = path.with_name(path.name + ".py")
    if with_suffix.is_file():
        return f"there is no file {path}; did you mean {with_suffix.name}?"
    if path.parent.with_suffix(".py").is_file():
        return f"there is no file {path}; did you mean {path.parent.with_suffix('.py').name}:{path.name}?"
    if not path.parent.is_dir():
        return f"there is no file {path}, and no directory {path.parent}"
    names = [each.name for each in _importable(path.parent)]
    return f"there is no file {path}{_did_you_mean(path.name, names)}"


def _place_in_package(path: Path) -> tuple[Path, str]:
    """The directory that belongs on the path for ``path``, and its name as a module from there.

    A file of a package is imported as part of it, so that its relative imports work.
    """
    parts = [] if path.name == "__init__.py" else [path.stem]
    directory = path.parent
    while (directory / "__init__.py").is_file() and directory.name.isidentifier():
        parts.insert(0, directory.name)
        directory = directory.parent
    return directory, ".".join(parts)


def _load_file(path: Path) -> ModuleType:
    name = path.stem if path.stem not in sys.modules else f"asyncserver_target_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise TargetError(f"{path} is not a Python file; its name has to end in .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        sys.modules.pop(name, None)
        raise
    return module


def _put_first_on_path(directory: str) -> None:
    if sys.path[:1] != [directory]:
        sys.path.insert(0, directory)


def _run_user_code(name: str, code: Callable[[], T]) -> T:
    try:
        return code()
    except TargetError:
        raise
    except (Exception, SystemExit) as exc:
        if _is_explained(exc):
            raise TargetImportError(f"{name} cannot be imported: {_explained(exc)}") from exc
        raise TargetImportError(f"{name} raised while it was imported:\n{user_traceback(exc)}") from exc


def _is_explained(exc: BaseException) -> bool:
    """Whether its message says what is wrong: nothing of that is to be seen in a traceback."""
    if isinstance(exc, ImportError):
        return True
    innermost = traceback.extract_tb(exc.__traceback__)[-1:]
    return bool(innermost) and Path(innermost[0].filename).parent == _PACKAGE


def _explained(exc: BaseException) -> str:
    remedy = f"; install it for {sys.executable}, or correct its name" if _is_absent(exc) else ""
    lines = [f"{type(exc).__name__}: {exc}{remedy}", *getattr(exc, "__notes__", ())]
    lines += [
        f"  {frame.filename}:{frame.lineno}: {frame.line}"
        for frame in traceback.extract_tb(exc.__traceback__)
        if not _is_ours(frame.filename)
    ]
    return "\n".join(lines)


def _is_absent(exc: BaseException) -> bool:
    return isinstance(exc, ModuleNotFoundError) and exc.name is not None and "." not in exc.name


def _is_ours(filename: str) -> bool:
    return Path(filename).parent == _PACKAGE or filename == importlib.__file__ or filename.startswith("<")


# --- the name in the module ---


def _attribute(module: ModuleType, target: Target) -> object:
    found: object = module
    path = target.where
    for part in target.name.split("."):
        try:
            found = getattr(found, part)
        except AttributeError:
            raise TargetError(f"{path} has no {part!r}{_similar(found, part, path)}") from None
        path = f"{path}.{part}" if ":" in path else f"{path}:{part}"
    return found


def _similar(owner: object, name: str, path: str) -> str:
    similar = difflib.get_close_matches(name, [each for each in dir(owner) if not each.startswith("_")], n=1)
    if similar:
        return f"; did you mean {similar[0]!r}?"
    return f"; {_suggestions(owner, path)}" if isinstance(owner, ModuleType) else ""


def _suggestions(module: ModuleType, where: str) -> str:
    names = [name for name, value in vars(module).items() if _could_serve(value, module, name)]
    if not names:
        return f"there is no async function with one argument in {where}"
    return ", ".join(f"{where}:{name}" for name in names)


def _could_serve(value: object, module: ModuleType, name: str) -> bool:
    if name.startswith("_"):
        return False
    if isinstance(value, Server | DatagramServer | Responder):
        return True
    if isinstance(value, SessionHandler):
        value = value.function
    if getattr(value, "__module__", None) != module.__name__:
        return False
    if isinstance(value, type):
        return issubclass(value, StreamHandler | DatagramHandler)
    return inspect.iscoroutinefunction(value) and _takes_one_argument(value)


def _takes_one_argument(function: Callable[..., object]) -> bool:
    try:
        inspect.signature(function).bind(object())
    except TypeError:
        return False
    return True


def _is_dotted_name(text: str) -> bool:
    return all(part.isidentifier() for part in text.split("."))
