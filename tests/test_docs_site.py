"""The site's sources are complete: every name has its docstring shown, every page is in the navigation.

The site itself is built by ``make docs``, which has more to say: it needs Sphinx, and takes a while.
"""

from __future__ import annotations

import ast
import importlib.util
import inspect
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import asyncserver
import compat
from tests.test_docs import BLOCKS, DOCS, Block, column, members

EXTENSIONS = DOCS / "_extensions"
API = DOCS / "reference" / "api"

# `autoclass:: asyncserver.Stream(sock)`, and the lines below it that are its own.
DIRECTIVE = re.compile(r"^\.\. auto(\w+):: ([\w.]+).*\n((?:^ .*\n|^\n)*)", re.MULTILINE)
MEMBER = re.compile(r"^   \.\. auto(method|property|attribute):: (\w+)", re.MULTILINE)


def directives() -> list[tuple[str, str, str]]:
    """Of each one of autodoc: its kind, the full name, and what stands below it."""
    text = "".join(page.read_text() for page in sorted(API.glob("*.md")))
    return DIRECTIVE.findall(text)


def described(kind: str | None = None) -> list[str]:
    return [name for each, name, _ in directives() if kind in (None, each)]


def extension(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXTENSIONS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# Names.


def test_every_public_name_is_described_once() -> None:
    names = {f"asyncserver.{name}" for name in asyncserver.__all__ if name != "__version__"}
    names |= {f"compat.{name}" for name in compat.__all__}
    names |= {f"compat.{name}" for name in column("reference/compat.md", "Names of this package")}
    found = [name for name in described() if not name.startswith("asyncserver.testing")]
    assert sorted(found) == sorted(names | set(UNLISTED))


# Python 3.11 leaves these out of `__all__`; where there is no `fork()` they are not.
UNLISTED = [f"compat.ForkingUnix{kind}Server" for kind in ("Stream", "Datagram")]


def test_names_for_testing_are_picked_up_from_the_package() -> None:
    testing = importlib.import_module("asyncserver.testing")
    modules = {name for name in testing.__all__ if inspect.ismodule(getattr(testing, name))}
    expected = {"asyncserver.testing", *(f"asyncserver.testing.{name}" for name in modules)}
    assert set(described("module")) == expected
    shown = [below for kind, _, below in directives() if kind == "module"]
    assert not [below for below in shown if re.search(":(no-)?members:", below)]  # All, which is the default.


def test_kinds_are_right() -> None:
    for kind, name, _ in directives():
        if kind in ("class", "function"):
            package, _, own = name.rpartition(".")
            value: Any = getattr(importlib.import_module(package), own, None)
            assert value is None or inspect.isclass(value) == (kind == "class"), name


@pytest.mark.parametrize(
    "name",
    ["Stream", "Server", "Connection", "DatagramServer", "Datagram", "DatagramEndpoint", "Session"],
)
def test_members_are_those_of_the_table(name: str) -> None:
    (below,) = [below for _, full, below in directives() if full == f"asyncserver.{name}"]
    listed = [member for _, member in MEMBER.findall(below)]
    assert sorted(listed) == sorted(column("reference/api.md", name))


def test_members_that_are_listed_exist_and_have_docstrings() -> None:
    for _, full, below in directives():
        package, _, own = full.rpartition(".")
        for kind, member in MEMBER.findall(below):
            cls: Any = getattr(importlib.import_module(package), own)
            value = inspect.getattr_static(cls, member, None)
            if kind == "attribute":
                assert hasattr(cls, member) or member in members(cls), f"{full}.{member}"
            else:
                assert inspect.getdoc(value), f"{full}.{member}"
                assert isinstance(value, property) == (kind == "property"), f"{full}.{member}"


# Pages.


def test_every_page_is_in_the_navigation() -> None:
    front_pages = extension("front_pages")
    listed = ["index"]
    for front_page in front_pages.FRONT_PAGES:
        path = DOCS / f"{front_page}.md"
        for pages in front_pages.pages_of_sections(front_page, path.read_text()).values():
            listed += [str((path.parent / page).relative_to(DOCS)) for page in pages]
    there = [path for path in DOCS.rglob("*.md") if not path.relative_to(DOCS).parts[0].startswith("_")]
    there += (DOCS / "examples").glob("*.py")
    assert sorted(listed) == sorted(str(path.relative_to(DOCS).with_suffix("")) for path in there)


def test_lists_of_a_front_page_become_its_navigation() -> None:
    lists = "# Names\n\n[start](a.md)\n\n## By docstring\n\n- [A](api/a.md), [B](api/b.md)\n- [A](api/a.md)\n"
    page = f"{lists}\n## Other\n\n[C](c.md)\n"
    tree = "\n```{toctree}\n:hidden:\n\napi/a\napi/b\n```\n"
    assert extension("front_pages").with_toctrees("reference/api", page) == page + tree


def test_links_to_what_is_no_page_lead_to_copies() -> None:
    text = "[results](../../benchmarks/a.md#part), [page](../b.md), [place](c.md#d)"
    expected = "[results](<path:../../benchmarks/a.md>), [page](../b.md), [place](c.md#d)"
    assert extension("outside").with_copies(text, "howto/page") == expected


@pytest.mark.parametrize(
    "block", [block for block in BLOCKS if block.kind == "{graphviz}"], ids=lambda block: block.name
)
def test_diagram_says_what_it_shows_and_leaves_colours_to_the_style_sheet(block: Block) -> None:
    assert re.search(r"^:alt: \S", block.text, re.MULTILINE)
    assert not re.search(r"\b(color|fillcolor|fontcolor|fontname|bgcolor)\s*=", block.text)
    assert block.text.count("{") == block.text.count("}")
    classes = set(re.findall(r"\bclass=(\w+)", block.text))
    style = (DOCS / "_static" / "site.css").read_text()
    styled = set(re.findall(r"^\.diagram (?:\.node)?\.(\w+)", style, re.MULTILINE))
    assert classes <= styled


# Configuration.


def test_what_the_configuration_names_is_there() -> None:
    settings = {
        target.id: ast.literal_eval(statement.value)
        for statement in ast.parse((DOCS / "conf.py").read_text()).body
        if isinstance(statement, ast.Assign)
        for target in statement.targets
        if isinstance(target, ast.Name) and target.id in ("extensions", "html_css_files", "html_logo")
    }
    own = {path.stem for path in EXTENSIONS.glob("*.py")}
    assert {name for name in settings["extensions"] if "." not in name} - own == {
        "myst_parser",
        "sphinx_copybutton",
    }
    assert own <= set(settings["extensions"])
    files = [Path("_static", name) for name in settings["html_css_files"]]
    assert all((DOCS / file).is_file() for file in (*files, Path(settings["html_logo"])))
