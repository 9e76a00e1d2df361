"""``python -m compat``: runs a program with ``compat`` in the place of ``socketserver``."""

from __future__ import annotations

import os
import sys
from types import ModuleType
from typing import NoReturn

_HERE = os.path.dirname(os.path.abspath(__file__))

_STARTED_BY_PATH = not __package__

if _STARTED_BY_PATH:  # Started by its path, so that no other module of this name can come first.
    if globals()["__package__"] is None and sys.flags.safe_path:
        sys.path.insert(0, "")  # With `-P`, a directory is put there, but not that of a file.
    sys.path[0] = os.path.dirname(_HERE)

from asyncserver import OptionError, __version__, loop_factory  # noqa: E402
from compat.defaults import DEFAULTS  # noqa: E402
from compat.executors import as_executor  # noqa: E402
from compat.hiding import hide_package  # noqa: E402
from compat.pool import ThreadPool  # noqa: E402
from compat.program import run_code, run_module, run_script  # noqa: E402
from compat.swap import install  # noqa: E402

_USAGE = "usage: python -m compat [options] (script | -m module | -c code | directory | zipfile) [arguments]"

_HELP = f"""{_USAGE}

Runs a Python program, unchanged, with the standard library's socketserver replaced.

options:
  --executor WHERE   where requests run, for servers that do not say so themselves: serial, threads,
                     pool:N (at most N threads that are used again) or fork; by default as the classes
                     of the program say (ThreadingMixIn, ForkingMixIn, or neither)
  --loop NAME        auto (uvloop where it is installed), uvloop or asyncio
  --no-children      do not replace it in the Python processes that the program starts
  --version          show the version and exit
  -h, --help         show this and exit
"""

_OPTIONS = ("--executor", "--loop", "--no-children", "--version", "--help")

# Tell child processes what holds for this one.
_PATH, _EXECUTOR, _LOOP = "ASYNCSERVER_COMPAT", "ASYNCSERVER_COMPAT_EXECUTOR", "ASYNCSERVER_COMPAT_LOOP"


def main() -> None:
    """Run what the command line says."""
    arguments = sys.argv[1:]
    children = True
    while arguments and arguments[0].startswith("-") and arguments[0] not in ("-m", "-c", "-"):
        option, equals, value = arguments.pop(0).partition("=")
        if option in ("-h", "--help"):
            sys.stdout.write(_HELP)
            return
        if option == "--version":
            sys.stdout.write(f"compat of asyncserver {__version__}\n")
            return
        if option == "--no-children" and not equals:
            children = False
            continue
        if option == "--":
            break
        if option not in ("--executor", "--loop"):
            _fail(f"unknown option: {option}{_similar(option)}")
        if not equals:
            if not arguments:
                _fail(f"{option} needs a value")
            value = arguments.pop(0)
        _set(option, value)
    if not arguments:
        _fail("there is no program to run: name a script, or write -m module")
    _run(arguments, children=children)


def _similar(option: str) -> str:
    import difflib  # For those who have made a mistake: the program may want to be the first to import it.

    found = difflib.get_close_matches(option, _OPTIONS, n=1)
    return f"; did you mean {found[0]}?" if found else "; what follows the program's name is for the program"


def _set(option: str, value: str) -> None:
    try:
        if option == "--loop":
            loop_factory(value)  # type: ignore[arg-type]
            DEFAULTS.loop = value  # type: ignore[assignment]
        else:
            as_executor(value, ThreadPool)
            DEFAULTS.executor = value
    except OptionError as exc:
        _fail(f"{option} {value}: {exc.reason}")


def _fail(message: str) -> NoReturn:
    sys.stderr.write(f"{_USAGE}\npython -m compat: {message}\n")
    raise SystemExit(2)


def _run(arguments: list[str], *, children: bool) -> None:
    first, *rest = arguments
    if first in ("-m", "-c") and not rest:
        _fail(f"{first} needs a value")
    install()
    if children:
        _tell_children()
    else:
        for name in (_PATH, _EXECUTOR, _LOOP):
            os.environ.pop(name, None)
    if _STARTED_BY_PATH or not sys.flags.safe_path:
        del sys.path[0]  # It is where this package was started from.
    hide_package()
    if first == "-m":
        run_module(rest[0], rest[1:])
    elif first == "-c":
        run_code(rest[0], rest[1:])
    else:
        run_script(first, rest)


def _tell_children() -> None:
    path = [os.path.join(_HERE, "startup"), *filter(None, [os.environ.get("PYTHONPATH")])]
    if not (os.environ.get("PYTHONPATH") or "").startswith(path[0]):
        os.environ["PYTHONPATH"] = os.pathsep.join(path)
    os.environ[_PATH] = os.path.dirname(_HERE)
    os.environ[_LOOP] = DEFAULTS.loop
    if DEFAULTS.executor is not None:
        os.environ[_EXECUTOR] = DEFAULTS.executor


def install_from_environment() -> ModuleType:
    """In a child process, when it imports ``socketserver``: as in the parent. Returns what stands in."""
    DEFAULTS.loop = os.environ.get(_LOOP, "auto")  # type: ignore[assignment]
    DEFAULTS.executor = os.environ.get(_EXECUTOR)
    install()
    hide_package()
    return sys.modules["socketserver"]


if __name__ == "__main__":
    main()
