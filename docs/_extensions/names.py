"""A public name in a ``literal`` leads to its docstring: on the pages as in the docstrings themselves.

The sources stay plain: ``Timeouts.idle`` between backquotes, which reads well everywhere. What is meant is
looked for in this order: a member of the class that is being described, or that the section of a table is
named after; a public name. Lower-case words, which mean many things, lead somewhere only when they are
called, ``serve()``, or in the tables of public names.
"""

from __future__ import annotations

import re
import socketserver
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from docutils import nodes
from sphinx import addnodes
from sphinx.transforms.post_transforms import SphinxPostTransform
from sphinx.util.nodes import make_refnode

if TYPE_CHECKING:
    from sphinx.application import Sphinx

_NAME = re.compile(r"([A-Za-z_]\w*(?:\.\w+)*)(\([^()]*\))?")

# What variables are called all over the documentation.
_INSTANCES = {
    "connection": "asyncserver.Connection",
    "datagram": "asyncserver.Datagram",
    "session": "asyncserver.Session",
    "stream": "asyncserver.Stream",
}

# Pages with tables of public names, and whose names they are.
_TABLES = {
    "reference/api": "asyncserver",
    "reference/compat": "compat",
    "reference/testing": "asyncserver.testing",
}

_ELSEWHERE = (nodes.reference, nodes.title, addnodes.desc_signature, addnodes.download_reference)


class NameLinks(SphinxPostTransform):
    """Makes links of the names on one page."""

    default_priority = 5

    def run(self, **kwargs: Any) -> None:
        """Called by Sphinx, for each page."""
        for literal in list(self.document.findall(nodes.literal)):
            around = list(_ancestors(literal))
            if not any(isinstance(each, _ELSEWHERE) for each in around):
                self._link(literal, around)

    def _link(self, literal: nodes.literal, around: list[nodes.Element]) -> None:
        objects = self.env.get_domain("py").objects
        for name in self._meant(literal.astext(), around):
            if name in objects:
                found = objects[name]
                if not _is_described(found.node_id, around):
                    here = self.env.docname
                    link = make_refnode(
                        self.app.builder, here, found.docname, found.node_id, literal.deepcopy(), name
                    )
                    link["classes"].append("name")
                    literal.replace_self(link)
                return

    def _meant(self, text: str, around: list[nodes.Element]) -> Iterator[str]:
        match = _NAME.fullmatch(text)
        if match is None:
            return
        name, called = match.groups()
        first, _, rest = name.partition(".")
        in_table = any(isinstance(each, nodes.entry) for each in around)
        if not rest:
            for cls in _described_classes(around, name):
                yield f"{cls}.{name}"
            if in_table:
                yield from (f"asyncserver.{title}.{name}" for title in _titles(around))
                if self.env.docname in _TABLES:
                    yield f"{_TABLES[self.env.docname]}.{name}"
        if first in _INSTANCES and rest:
            yield f"{_INSTANCES[first]}.{rest}"
        if rest or called or first[0].isupper():
            yield from (name, f"asyncserver.{name}", f"asyncserver.testing.{name}")
            if not hasattr(socketserver, first):
                yield f"compat.{name}"


def _ancestors(node: nodes.Node) -> Iterator[nodes.Element]:
    while node.parent is not None:
        node = node.parent
        yield node


def _is_described(node_id: str, around: list[nodes.Element]) -> bool:
    """Whether it is within the description of this very object."""
    described = (each for each in around if isinstance(each, addnodes.desc))
    return any(node_id in signature["ids"] for each in described for signature in _own_signatures(each))


def _own_signatures(desc: addnodes.desc) -> Iterator[addnodes.desc_signature]:
    return (child for child in desc.children if isinstance(child, addnodes.desc_signature))


def _described_classes(around: list[nodes.Element], name: str) -> Iterator[str]:
    """The classes whose descriptions these are, from the inside; none if it is an argument's name."""
    for desc in around:
        if isinstance(desc, addnodes.desc):
            for signature in _own_signatures(desc):
                if name in map(_name_of, signature.findall(addnodes.desc_parameter)):
                    return
                if desc["objtype"] in ("class", "exception") and "fullname" in signature:
                    yield f"{signature['module']}.{signature['fullname']}"


def _name_of(parameter: addnodes.desc_parameter) -> str:
    return next((each.astext() for each in parameter.findall(addnodes.desc_sig_name)), "")


def _titles(around: list[nodes.Element]) -> Iterator[str]:
    return (each[0].astext() for each in around if isinstance(each, nodes.section))


def setup(app: Sphinx) -> dict[str, Any]:
    """Called by Sphinx."""
    app.add_post_transform(NameLinks)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
