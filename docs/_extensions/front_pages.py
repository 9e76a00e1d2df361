"""The lists of links on a front page are the site's table of contents, too.

A page is listed once, where readers see it, on a code host as well as in the site; a ``toctree`` beside each
list would say everything twice.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sphinx.application import Sphinx

__all__ = ["FRONT_PAGES", "pages_of_sections", "setup", "with_toctrees"]

FRONT_PAGES = {
    "index": ["Tutorial", "How-to", "Topics", "Reference", "Examples"],
    "reference/api": ["By docstring"],
}
"""The pages with such lists, and the headings above these."""

_LINK = re.compile(r"\]\((?!\.\.|https?:)([^)#\s]+)\.(?:md|py)\)")


def pages_of_sections(page: str, text: str) -> dict[str, list[str]]:
    """The pages that each list of a front page leads to, from the front page's directory down."""
    sections = {heading: list[str]() for heading in FRONT_PAGES[page]}
    for section in re.split(r"^## ", text, flags=re.MULTILINE)[1:]:
        heading, _, body = section.partition("\n")
        if heading in sections:
            sections[heading] = list(dict.fromkeys(_LINK.findall(body)))
    return sections


def with_toctrees(page: str, text: str) -> str:
    """The front page with a hidden ``toctree`` for each of its lists; of several, each has its caption."""
    sections = pages_of_sections(page, text)
    for heading, pages in sections.items():
        options = [":hidden:", *([f":caption: {heading}"] if len(sections) > 1 else [])]
        text += "\n".join(["", "```{toctree}", *options, "", *pages, "```", ""])
    return text


def _add_toctrees(app: Sphinx, page: str, source: list[str]) -> None:
    if page in FRONT_PAGES:
        source[0] = with_toctrees(page, source[0])


def setup(app: Sphinx) -> dict[str, Any]:
    """Called by Sphinx."""
    app.connect("source-read", _add_toctrees)
    return {"parallel_read_safe": True}
