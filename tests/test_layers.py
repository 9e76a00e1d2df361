"""The layers of the two packages, as data, and a walk over their imports that proves them.

An import counts wherever it stands: at the top, under ``TYPE_CHECKING``, in a function, relative or
absolute, or as a literal given to ``import_module``. Modules of one layer may import each other, but not
in a circle. A new module is entered in ``LAYERS``; a subpackage counts as one module.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase
from functools import cached_property
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import NamedTuple

import pytest

LAYERS = (
    (
        "values",
        """
        errors states addresses address_* endpoints options checks limits statistics
        datagram_addresses datagram_options datagram_limits datagram_statistics
        """,
    ),
    (
        "transport",
        """
        sockets *_sockets socket_options systemd peers poller stepping
        stream stream_settings channel receiving sending closing lending tls tls_*
        multicast datagram_socket_options ancillary packets packets_mmsg seat
        memory memory_* threads
        """,
    ),
    (
        "roles",
        """
        listener hints connection ending connections deadlines admission blame hub draining
        datagram datagram_endpoint datagram_worker datagram_queue datagram_dispatch
        session datagram_sessions datagram_hub
        """,
    ),
    (
        "server",
        """
        server handlers handler_kinds loops runner signals lifecycle responding
        datagram_server datagram_handlers server_arguments
        """,
    ),
    ("tools", "cli cli_* loading __main__ testing pytest_plugin"),
)
TOOLS = len(LAYERS) - 1

NO_INPUT_OR_OUTPUT = {"asyncio", "select", "selectors", "socket", "ssl", "subprocess"}
"""What the values, layer 0, may not import."""

THIRD_PARTY = {
    "anyio": "*",
    "uvloop": "loops",
    "click": "cli*",
    "pytest": "pytest_plugin",
    "trustme": "testing",
}
"""Which modules of asyncserver may import what is not in the standard library."""

REPOSITORY = Path(__file__).parent.parent


class Import(NamedTuple):
    """One imported name, or a whole module where ``name`` is empty; ``module`` is absolute."""

    module: str
    name: str
    line: int

    @property
    def distribution(self) -> str:
        return self.module.partition(".")[0]


class Source(NamedTuple):
    """One file: the ``unit`` is the row of the table it belongs to, empty for a package's own __init__."""

    path: Path
    package: str
    unit: str
    dotted: str

    def imports(self) -> Iterator[Import]:
        for node in ast.walk(ast.parse(self.path.read_text(), self.path)):
            match node:
                case ast.Import(names=names):
                    yield from (Import(alias.name, "", node.lineno) for alias in names)
                case ast.ImportFrom(names=names):
                    yield from (Import(self._absolute(node), alias.name, node.lineno) for alias in names)
                case ast.Call(func=function, args=[ast.Constant(value=str(module)), *_]):
                    if ast.unparse(function).endswith(("import_module", "__import__")):
                        yield Import(module, "", node.lineno)

    def _absolute(self, node: ast.ImportFrom) -> str:
        if not node.level:
            return node.module or ""
        parts = self.dotted.split(".")
        if self.path.name != "__init__.py":
            parts.pop()
        parts = parts[: len(parts) - node.level + 1]
        return ".".join([*parts, node.module] if node.module else parts)


class Tree:
    """A directory with the packages asyncserver and compat in it."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def sources(self, package: str) -> list[Source]:
        top = self.root / package
        found = []
        for path in sorted(top.rglob("*.py")):
            parts = path.relative_to(top).with_suffix("").parts
            if path.name == "__init__.py":
                parts = parts[:-1]
            found.append(Source(path, package, parts[0] if parts else "", ".".join((package, *parts))))
        return found

    @cached_property
    def units(self) -> set[str]:
        return {source.unit for source in self.sources("asyncserver")} - {""}

    @cached_property
    def public_names(self) -> set[str]:
        """What ``asyncserver.__all__`` lists, read without importing it."""
        names = {"__version__"}
        for node in ast.parse((self.root / "asyncserver/__init__.py").read_text()).body:
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
                names.update(ast.literal_eval(node.value))
        return names

    def unit_of(self, imported: Import) -> str:
        """The row of the table that an import from asyncserver reaches; empty: the package's own names."""
        parts = imported.module.split(".")
        if len(parts) > 1:
            return parts[1]
        return imported.name if imported.name in self.units else ""

    def violations(self) -> list[str]:
        found = []
        for source in self.sources("asyncserver") + self.sources("compat"):
            where = source.path.relative_to(self.root)
            if source.unit and source.package == "asyncserver" and layer_of(source.unit) is None:
                found.append(f"{where}: not in the table of layers")
                continue
            found.extend(
                f"{where}:{imported.line}: {reason}"
                for imported in source.imports()
                if (reason := self._objection(source, imported))
            )
        return found + self._circles()

    def _objection(self, source: Source, imported: Import) -> str | None:
        if imported.distribution == "asyncserver":
            if source.package == "compat" or layer_of(source.unit) == TOOLS:
                return self._objection_to_private(imported)
            return self._objection_to_direction(source, imported)
        if imported.distribution == "compat":
            return "asyncserver never imports compat" if source.package == "asyncserver" else None
        return objection_to_outside(source, imported)

    def _objection_to_private(self, imported: Import) -> str | None:
        unit = self.unit_of(imported)
        if unit:
            return None if layer_of(unit) == TOOLS else f"asyncserver.{unit} is not public API"
        if imported.name and imported.name not in self.public_names:
            return f"{imported.name} is not in asyncserver.__all__"
        return None

    def _objection_to_direction(self, source: Source, imported: Import) -> str | None:
        unit = self.unit_of(imported)
        if source.unit and not unit:
            return "a module below the tools imports from the package asyncserver itself"
        importer, target = layer_of(source.unit) if source.unit else TOOLS - 1, layer_of(unit)
        if importer is not None and target is not None and target > importer:
            return f"{title(importer)} imports asyncserver.{unit} of {title(target)}"
        return None

    def _circles(self) -> list[str]:
        graph: dict[str, set[str]] = {}
        for source in self.sources("asyncserver"):
            reached = {self.unit_of(each) for each in source.imports() if each.distribution == "asyncserver"}
            graph.setdefault(source.unit, set()).update(reached - {"", source.unit})
        graph.pop("", None)
        try:
            TopologicalSorter(graph).prepare()
        except CycleError as error:
            return [f"asyncserver: modules import each other in a circle: {' <- '.join(error.args[1])}"]
        return []


def layer_of(unit: str) -> int | None:
    for number, (_, patterns) in enumerate(LAYERS):
        if any(fnmatchcase(unit, pattern) for pattern in patterns.split()):
            return number
    return None


def title(layer: int) -> str:
    return f"layer {layer} ({LAYERS[layer][0]})"


def objection_to_outside(source: Source, imported: Import) -> str | None:
    top = imported.distribution
    if top in sys.stdlib_module_names:
        if source.package == "asyncserver" and layer_of(source.unit) == 0 and top in NO_INPUT_OR_OUTPUT:
            return f"{title(0)} does no I/O and may not import {top}"
        return None
    allowed = THIRD_PARTY.get(top) if source.package == "asyncserver" else None
    if allowed is None or not fnmatchcase(source.unit, allowed):
        return f"{top} may not be imported here"
    return None


def test_imports_point_downwards() -> None:
    violations = Tree(REPOSITORY).violations()
    assert not violations, "\n".join(violations)


def test_both_packages_are_walked() -> None:
    tree = Tree(REPOSITORY)
    assert {"errors", "states"} <= tree.units
    assert "compat" in {source.dotted for source in tree.sources("compat")}


SOUND = {
    "asyncserver/__init__.py": "from asyncserver.server import Server\n__all__ = ['Server']",
    "asyncserver/errors.py": "from anyio import BrokenResourceError\nimport enum",
    "asyncserver/options.py": "from .errors import OptionError",
    "asyncserver/tls_reload.py": "import asyncio, ssl\nfrom . import errors",
    "asyncserver/stream.py": "from asyncserver import tls_reload",
    "asyncserver/server.py": "from .stream import Stream\nimport asyncserver.errors",
    "asyncserver/loops.py": "def choose():\n    import uvloop\n    from .server import Server",
    "asyncserver/cli.py": "import click\nimport asyncserver\nfrom asyncserver import Server, __version__",
    "asyncserver/__main__.py": "from .cli import main",
    "compat/__init__.py": "import socketserver\nfrom asyncserver import Server",
    "compat/server.py": "from . import something\nfrom compat.other import anything",
}


def planted(root: Path, files: Mapping[str, str]) -> Tree:
    for name, text in {**SOUND, **files}.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return Tree(root)


def test_sound_tree_passes(tmp_path: Path) -> None:
    assert planted(tmp_path, {}).violations() == []


UP = "layer 1 (transport) imports asyncserver.server of layer 3 (server)"
LAZILY = "import importlib\nimportlib.import_module('asyncserver.server')"
FOR_TYPING = "import typing\nif typing.TYPE_CHECKING:\n    from .server import Server"


@pytest.mark.parametrize(
    ("module", "text", "line", "reason"),
    [
        ("asyncserver/stream", "from .server import Server", 1, UP),
        ("asyncserver/stream", "import asyncserver.server", 1, UP),
        ("asyncserver/stream", "from . import errors, server", 1, UP),
        ("asyncserver/stream", FOR_TYPING, 3, UP),
        ("asyncserver/stream", "def f():\n    from asyncserver.server import S", 2, UP),
        ("asyncserver/stream", LAZILY, 2, UP),
        ("asyncserver/tls_x/deep", "from ..server import Server", 1, UP),
        ("asyncserver/tls_x/__init__", "from ..server import Server", 1, UP),
        ("asyncserver/stream", "from asyncserver import Server", 1, "a module below the tools imports from"),
        ("asyncserver/stream", "from . import *", 1, "a module below the tools imports from"),
        ("asyncserver/__init__", "from .cli import main", 1, "layer 3 (server) imports asyncserver.cli"),
        ("asyncserver/cli", "from .errors import OptionError", 1, "asyncserver.errors is not public API"),
        ("asyncserver/cli", "from asyncserver import errors", 1, "asyncserver.errors is not public API"),
        ("asyncserver/cli", "from asyncserver import Hidden", 1, "Hidden is not in asyncserver.__all__"),
        ("compat/server", "from asyncserver.stream import S", 1, "asyncserver.stream is not public API"),
        ("compat/server", "import anyio", 1, "anyio may not be imported here"),
        ("asyncserver/server", "import compat", 1, "asyncserver never imports compat"),
        ("asyncserver/server", "from compat.server import S", 1, "asyncserver never imports compat"),
        ("asyncserver/server", "import click", 1, "click may not be imported here"),
        ("asyncserver/server", "import uvloop", 1, "uvloop may not be imported here"),
        ("asyncserver/server", "import requests", 1, "requests may not be imported here"),
        ("asyncserver/options", "import asyncio.events", 1, "layer 0 (values) does no I/O"),
        ("asyncserver/options", "from socket import AF_INET", 1, "layer 0 (values) does no I/O"),
    ],
)
def test_planted_violation_is_found(tmp_path: Path, module: str, text: str, line: int, reason: str) -> None:
    found = planted(tmp_path, {f"{module}.py": text}).violations()
    assert any(each.startswith(f"{module}.py:{line}: {reason}") for each in found), found


def test_module_missing_from_the_table_is_found(tmp_path: Path) -> None:
    found = planted(tmp_path, {"asyncserver/novelty.py": ""}).violations()
    assert found == ["asyncserver/novelty.py: not in the table of layers"]


def test_circle_within_a_layer_is_found(tmp_path: Path) -> None:
    found = planted(tmp_path, {"asyncserver/tls_reload.py": "from .stream import Stream"}).violations()
    assert len(found) == 1
    assert found[0].startswith("asyncserver: modules import each other in a circle: ")
