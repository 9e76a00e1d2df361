"""Puts this package in the place of the standard library's ``socketserver``, and takes it away again."""

from __future__ import annotations

import socketserver
import sys
import threading
import warnings
from collections.abc import Collection, Generator, Sequence
from contextlib import contextmanager
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

from compat import servers
from compat.facade import GivesBack, StandIn
from compat.stdlib import NAMES, UNLISTED_NAMES

__all__ = ["install", "installed", "say_where", "uninstall"]

_NAME = "socketserver"


class _Swap:
    """What is installed in this process."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.depth = 0
        self.displaced: ModuleType | None = None
        self.finder: _Finder | None = None


_swap = _Swap()


def _classes() -> list[type]:
    return [getattr(servers, name) for name in (*NAMES, *UNLISTED_NAMES) if hasattr(servers, name)]


def say_where(module: str, names: Collection[str]) -> None:
    """Have the classes of these names say that this is their module."""
    for each in (each for each in _classes() if each.__name__ in names):
        line = vars(each).get("__firstlineno__")
        each.__module__ = module
        if line is not None:  # Python 3.13 takes it away, and `inspect.getsource()` needs it.
            each.__firstlineno__ = line  # type: ignore[attr-defined]


def _stand_in() -> StandIn:
    module = StandIn(_NAME, socketserver.__doc__)
    for each in _classes():
        setattr(module, each.__name__, each)
    module.__all__ = list(NAMES)
    module.__file__ = servers.__file__
    # With the original's, an import in progress would load that after all.
    module.__loader__ = GivesBack(module)
    module.__spec__ = ModuleSpec(_NAME, module.__loader__, origin=servers.__file__)
    module.__package__ = ""
    return module


def install() -> None:
    """Have ``import socketserver`` give the classes of this package, until ``uninstall()``.

    Whatever has imported ``socketserver`` before keeps the standard library's classes, and so do
    subclasses made of them: a ``RuntimeWarning`` names the modules. Call it first, or use ``python -m
    compat``. May be called several times; as many ``uninstall()`` undo it.
    """
    _install(stacklevel=3)


def _install(stacklevel: int) -> None:
    late = [] if _swap.depth else _modules_with_the_original()
    if late:
        warnings.warn(
            "imported before compat.install(), and still with the standard library's servers: "
            + ", ".join(late),
            RuntimeWarning,
            stacklevel=stacklevel,
        )
    with _swap.lock:
        _swap.depth += 1
        if _swap.depth > 1:
            return
        _swap.displaced = sys.modules.get(_NAME)
        say_where(_NAME, NAMES)
        sys.modules[_NAME] = module = _stand_in()
        _swap.finder = _Finder(module)
        sys.meta_path.insert(0, _swap.finder)


class _Finder(MetaPathFinder):
    """For ``importlib.reload()``, which would load the standard library's into the one that stands in."""

    def __init__(self, module: ModuleType) -> None:
        self._module = module

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        return self._module.__spec__ if fullname == _NAME and target is self._module else None


def uninstall() -> None:
    """Undo ``install()``. Classes that were made in the meantime stay as they are.

    Raises ``RuntimeError`` where nothing is installed.
    """
    with _swap.lock:
        if not _swap.depth:
            raise RuntimeError("compat.uninstall() without compat.install()")
        _swap.depth -= 1
        if _swap.depth:
            return
        if _swap.finder in sys.meta_path:
            sys.meta_path.remove(_swap.finder)
        say_where(servers.__name__.partition(".")[0], (*NAMES, *UNLISTED_NAMES))
        if _swap.displaced is None:
            del sys.modules[_NAME]
        else:
            sys.modules[_NAME] = _swap.displaced
        _swap.displaced = None


@contextmanager
def installed() -> Generator[ModuleType]:
    """``install()`` for the time of a ``with`` block; gives the module that stands in."""
    _install(stacklevel=4)
    try:
        yield sys.modules[_NAME]
    finally:
        uninstall()


def _modules_with_the_original() -> list[str]:
    """Those that have the module, its classes, or classes made of them."""
    ours = (__name__.partition(".")[0], "asyncserver", _NAME)
    return sorted(
        name
        for name, module in list(sys.modules.items())
        if name.partition(".")[0] not in ours
        and any(map(_is_original, list(getattr(module, "__dict__", {}).values())))
    )


def _is_original(value: object) -> bool:
    if value is socketserver:
        return True
    if type(value) is not type:
        return False
    bases: set[type] = set(value.__mro__)
    return not bases.isdisjoint(_originals) and bases.isdisjoint(_classes())


_originals = frozenset(getattr(socketserver, name) for name in NAMES)
