"""The packages say that they are typed, and tell type checkers no less than they have.

What type checkers make of handlers and options is in ``tests/typing``, which ``make lint`` has them read.
"""

from __future__ import annotations

import ast
import inspect
import socketserver
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import asyncserver
import compat

PACKAGES = (asyncserver, compat)


def directory(package: Any) -> Path:
    return Path(package.__file__).parent


@pytest.mark.parametrize("package", PACKAGES, ids=lambda package: package.__name__)
def test_package_is_marked_as_typed(package: Any) -> None:
    assert (directory(package) / "py.typed").is_file()


def test_type_checkers_see_every_name_of_socketserver() -> None:
    """They cannot follow the loop that takes over what this version and platform has."""
    shown = {
        alias.asname
        for node in ast.walk(ast.parse((directory(compat) / "__init__.py").read_text()))
        if isinstance(node, ast.If) and ast.unparse(node.test) == "_TYPE_CHECKING"
        for statement in node.body
        if isinstance(statement, ast.ImportFrom)
        for alias in statement.names
    }
    assert shown >= set(socketserver.__all__)
    assert all(hasattr(compat, name) for name in shown if name is not None)


@pytest.mark.parametrize(
    ("options", "server"),
    [
        (asyncserver.ServerOptions, asyncserver.Server),
        (asyncserver.DatagramServerOptions, asyncserver.DatagramServer),
    ],
    ids=["streams", "datagrams"],
)
def test_options_that_are_passed_on_are_those_of_the_server(
    options: Any, server: Callable[..., object]
) -> None:
    parameters = inspect.signature(server).parameters.values()
    keywords = {each.name: each.annotation for each in parameters if each.kind is each.KEYWORD_ONLY}
    declared = {name: reference.__forward_arg__ for name, reference in options.__annotations__.items()}
    assert declared == keywords
