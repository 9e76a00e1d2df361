"""A module that stands in for ``socketserver`` shares that module's private names with it."""

from __future__ import annotations

import socketserver
from importlib.abc import Loader
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

__all__ = ["SHARED", "GivesBack", "StandIn"]

# Programs and tests replace these in the module. What the classes here inherit looks them up in the standard
# library's module, so there is only one place where each of them is.
SHARED = frozenset(
    name
    for name in (
        "_NoThreads",
        "_ServerSelector",
        "_SocketWriter",
        "_Threads",
        "__version__",
        "BufferedIOBase",
        "os",
        "selectors",
        "socket",
        "sys",
        "threading",
        "time",
    )
    if hasattr(socketserver, name)
)

_ORIGINALS = {name: getattr(socketserver, name) for name in SHARED}


class StandIn(ModuleType):
    """A module whose shared names are those of ``socketserver``: for reading, setting and deleting."""

    def __setattr__(self, name: str, value: object) -> None:
        if name in SHARED:
            setattr(socketserver, name, value)
            if value is _ORIGINALS[name]:
                self.__dict__.pop(name, None)
            else:
                self.__dict__[name] = value  # Where `mock.patch` looks for what it has to put back.
        else:
            super().__setattr__(name, value)

    def __delattr__(self, name: str) -> None:
        if name in SHARED:
            setattr(self, name, _ORIGINALS[name])  # Who deletes it undoes a replacement.
        else:
            super().__delattr__(name)

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *SHARED})


def _shared(name: str) -> property:
    """Reads what the standard library's module has now; setting goes through ``__setattr__``."""

    def read(module: StandIn) -> Any:
        return getattr(socketserver, name)

    return property(read)


for _name in SHARED:
    setattr(StandIn, _name, _shared(_name))


class GivesBack(Loader):
    """Loads a module that is there already."""

    def __init__(self, module: ModuleType) -> None:
        self._module = module

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """The module."""
        return self._module

    def exec_module(self, module: ModuleType) -> None:
        """It has been executed."""
