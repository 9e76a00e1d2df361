"""Where names of other packages are documented, so that what a signature refers to can be looked up.

Sphinx's own way, intersphinx, asks those sites during the build. This one needs no network: a module that is
not listed here, or a name that its module does not have, is an error of the build.
"""

from __future__ import annotations

import importlib
import sys
from typing import TYPE_CHECKING, Any, TypeVar

from docutils import nodes

if TYPE_CHECKING:
    from sphinx.addnodes import pending_xref
    from sphinx.application import Sphinx

__all__ = ["PAGES", "address_of", "setup"]

_PYTHON = "https://docs.python.org/3/library/"

PAGES = {
    "abc": f"{_PYTHON}abc.html",
    "anyio": "https://anyio.readthedocs.io/en/stable/api.html",
    "anyio.abc": "https://anyio.readthedocs.io/en/stable/api.html",
    "asyncio": f"{_PYTHON}asyncio-eventloop.html",
    "collections.abc": f"{_PYTHON}collections.abc.html",
    "concurrent.futures": f"{_PYTHON}concurrent.futures.html",
    "contextlib": f"{_PYTHON}contextlib.html",
    "datetime": f"{_PYTHON}datetime.html",
    "enum": f"{_PYTHON}enum.html",
    "logging": f"{_PYTHON}logging.html",
    "os": f"{_PYTHON}os.html",
    "pathlib": f"{_PYTHON}pathlib.html",
    "socket": f"{_PYTHON}socket.html",
    "socketserver": f"{_PYTHON}socketserver.html",
    "ssl": f"{_PYTHON}ssl.html",
    "threading": f"{_PYTHON}threading.html",
    "types": f"{_PYTHON}types.html",
    "typing": f"{_PYTHON}typing.html",
}
"""The page for each module; a name has its full name as the anchor there."""

# Where a class says that it is from, if not where programs import it from.
_PUBLIC = {"asyncio.events": "asyncio", "pathlib._local": "pathlib"}


def address_of(name: str) -> str | None:
    """The address of the documentation of ``name``, such as ``ssl.SSLContext``; None if there is none."""
    module, _, own = name.rpartition(".")
    module = _PUBLIC.get(module, module)
    if module not in PAGES or not hasattr(importlib.import_module(module), own):
        return None
    return f"{PAGES[module]}#{module}.{own}"


def is_type_variable(name: str) -> bool:
    """Whether this is a type variable, which is documented nowhere."""
    module, _, own = name.rpartition(".")
    return isinstance(getattr(sys.modules.get(module), own, None), TypeVar)


def _resolve(app: Sphinx, env: Any, reference: pending_xref, text: nodes.Element) -> nodes.Element | None:
    if reference.get("refdomain") != "py":
        return None
    if is_type_variable(reference["reftarget"]):
        return text
    address = address_of(reference["reftarget"])
    if address is None:
        return None
    return nodes.reference("", "", text, internal=False, refuri=address, reftitle=reference["reftarget"])


def setup(app: Sphinx) -> dict[str, Any]:
    """Called by Sphinx."""
    app.connect("missing-reference", _resolve)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
