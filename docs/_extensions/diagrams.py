"""Diagrams become part of the page, so that the style sheet gives them the colours of light and dark.

They are drawn by ``sphinx.ext.graphviz``. Each has to say in ``:alt:`` what it shows.
"""

from __future__ import annotations

import html
import re
from typing import TYPE_CHECKING, Any

from docutils import nodes
from sphinx.ext.graphviz import GraphvizError, graphviz, render_dot
from sphinx.util import logging

if TYPE_CHECKING:
    from sphinx.application import Sphinx

logger = logging.getLogger(__name__)


def drawn(svg: str, alt: str) -> str:
    """What dot has written, for a page: a picture with a name, without ids and colours of its own."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<title>.*?</title>|<!--.*?-->", "", svg, flags=re.DOTALL)
    svg = re.sub(r' id="[^"]*"', "", svg)
    svg = re.sub(r'(fill|stroke)="black"', r'\1="currentColor"', svg)
    svg = re.sub(r' font-family="[^"]*"', "", svg)
    return svg.replace("<svg ", f'<svg role="img" aria-label="{html.escape(alt)}" ', 1)


def _visit(translator: Any, node: graphviz) -> None:
    if "alt" not in node:
        logger.warning("a diagram has to say in :alt: what it shows", location=node)
    try:
        _, file = render_dot(translator, node["code"], node["options"], "svg")
    except GraphvizError as exc:
        logger.warning("%s", exc, location=node)
        file = None
    if file is not None:
        picture = drawn(file.read_text(encoding="utf-8"), node.get("alt", ""))
        translator.body.append(f'<div class="diagram">{picture}</div>\n')
    raise nodes.SkipNode


def setup(app: Sphinx) -> dict[str, Any]:
    """Called by Sphinx."""
    app.setup_extension("sphinx.ext.graphviz")
    app.add_node(graphviz, override=True, html=(_visit, None))
    return {"parallel_read_safe": True}
