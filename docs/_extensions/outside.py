"""Links to files that are no pages of the site, such as results of benchmarks, lead to copies of them."""

from __future__ import annotations

import os
import re
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sphinx.application import Sphinx

_LINK = re.compile(r"\]\((\.\./[^)#\s]+)(#[^)\s]*)?\)")


def with_copies(text: str, page: str) -> str:
    """The text of a page with its links to what is outside of the documentation marked as links to files."""

    def mark(link: re.Match[str]) -> str:
        target = os.path.normpath(PurePosixPath(page).parent / link[1])
        return f"](<path:{link[1]}>)" if target.startswith("..") else link[0]

    return _LINK.sub(mark, text)


def _mark_links(app: Sphinx, page: str, source: list[str]) -> None:
    if Path(app.env.doc2path(page)).suffix == ".md":
        source[0] = with_copies(source[0], page)


def setup(app: Sphinx) -> dict[str, Any]:
    """Called by Sphinx."""
    app.connect("source-read", _mark_links)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
