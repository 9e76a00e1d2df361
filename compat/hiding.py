"""A program that this package runs may have a module called ``compat`` of its own."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType

from compat.facade import GivesBack

__all__ = ["hide_package"]

_PACKAGE = __name__.partition(".")[0]


def hide_package() -> None:
    """Take this package out of ``sys.modules``.

    ``import compat`` then finds what the program's ``sys.path`` has first. Is that this package, it is given
    back as it is, and not loaded a second time: there would be two of each class.
    """
    modules = {
        name: module
        for name, module in sys.modules.items()
        if name == _PACKAGE or name.startswith(_PACKAGE + ".")
    }
    for name in modules:
        del sys.modules[name]
    modules.pop(f"{_PACKAGE}.__main__", None)  # It is executed anew for `-m compat`.
    sys.meta_path.insert(0, _Finder(modules))


class _Finder(MetaPathFinder):
    def __init__(self, modules: dict[str, ModuleType]) -> None:
        self._modules = modules

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        ours = self._modules.get(fullname)
        if ours is None:
            return None
        found = PathFinder.find_spec(fullname, path, target)
        if found is None or not _is_same_file(found.origin, ours.__file__):
            return found
        spec = ModuleSpec(fullname, GivesBack(ours), origin=found.origin)
        spec.submodule_search_locations = found.submodule_search_locations
        return spec


def _is_same_file(one: str | None, other: str | None) -> bool:
    try:
        return one is not None and other is not None and os.path.samefile(one, other)
    except OSError:
        return False
