"""Pictures that come in two, for light and dark, follow the site's own switch and are copied into the site.

On a page they stand in the way that code hosts understand, in a ``<picture>`` with a ``<source>``.
"""

from __future__ import annotations

import html
import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sphinx.application import Sphinx

_PICTURE = re.compile(
    r"^<picture>\s*"
    r'<source media="\(prefers-color-scheme: dark\)" srcset="(?P<dark>[^"]+)">\s*'
    r'<img(?P<image>[^>]*)>\s*'
    r"</picture>$",
    re.MULTILINE,
)  # fmt: skip


def with_directives(text: str) -> str:
    """The text of a page with its pictures as the site's builder knows them."""
    return _PICTURE.sub(_directives, text)


def _directives(picture: re.Match[str]) -> str:
    image = dict(re.findall(r'(\w+)="([^"]*)"', picture["image"]))
    alt = html.unescape(image["alt"])
    each = [
        f"```{{image}} {file}\n:alt: {alt}\n:class: only-{scheme}\n```"
        for scheme, file in (("light", image["src"]), ("dark", picture["dark"]))
    ]
    return "\n".join(["````{container} picture", *each, "````"])


def _rewrite(app: Sphinx, page: str, source: list[str]) -> None:
    source[0] = with_directives(source[0])


def setup(app: Sphinx) -> dict[str, Any]:
    """Called by Sphinx."""
    app.connect("source-read", _rewrite)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
