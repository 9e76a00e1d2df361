"""A page for each program in ``examples``: what its docstring says, and its code."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sphinx.parsers import RSTParser

if TYPE_CHECKING:
    from docutils import nodes
    from sphinx.application import Sphinx

_PAGE = re.compile(r"(?:\bdocs/)?\b((?:howto|reference|topics|tutorial)(?:/[\w-]+)?)\.md\b")


class ExampleParser(RSTParser):
    """Reads a program as a page, so that links to the file are links to this page."""

    supported = ("example",)

    def parse(self, inputstring: str, document: nodes.document) -> None:
        """Called by Sphinx, with the program."""
        super().parse(page_of(Path(document["source"]).name, inputstring), document)


def page_of(name: str, program: str) -> str:
    """The page, in reStructuredText, of a program that begins with its docstring."""
    module = ast.parse(program)
    docstring = re.sub(_PAGE, r":doc:`/\1`", ast.get_docstring(module) or "")
    end = module.body[0].end_lineno or 0
    return "\n".join(
        [
            name,
            "=" * len(name),
            "",
            docstring,
            "",
            f"The program (:download:`download <{name}>`), which the tests run:",
            "",
            f".. literalinclude:: {name}",
            "   :language: python",
            f"   :lines: {end + 2}-",
            "",
        ]
    )


def setup(app: Sphinx) -> dict[str, Any]:
    """Called by Sphinx."""
    app.add_source_parser(ExampleParser)
    return {"parallel_read_safe": True}
