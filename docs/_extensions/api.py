"""What autodoc does not find out about the public names by itself."""

from __future__ import annotations

import ast
import dataclasses
import enum
import importlib
import inspect
import re
import types
import typing
from typing import TYPE_CHECKING, Any

from docutils import nodes
from sphinx.addnodes import desc_annotation, desc_signature, pending_xref
from sphinx.pycode import ModuleAnalyzer
from sphinx.util.typing import stringify_annotation

import asyncserver

if TYPE_CHECKING:
    from sphinx.application import Sphinx

# In docstrings, what is said of each argument begins a line.
_ARGUMENT = re.compile(r"``\w+``(, ``\w+``)*: ")

# Docstrings of constructors that are not ours, and say nothing.
_SAYS_NOTHING = re.compile(r"Create new instance of |Constructor\.  May be extended")

_MADE_BY_SERVERS = {
    "asyncserver.Connection",
    "asyncserver.Datagram",
    "asyncserver.DatagramEndpoint",
    "asyncserver.LineIterator",
    "asyncserver.Listener",
    "asyncserver.Session",
    "asyncserver.SessionHandler",
}

# Types with names of their own.
_TYPES = [
    "asyncserver.testing.targets.Target",
    *(
        f"asyncserver.{name}"
        for name in asyncserver.__all__
        if not isinstance(getattr(asyncserver, name), type | types.FunctionType | str)
    ),
]

# What they have in common is no public name.
_ANY_SERVER = "~asyncserver.server.Server | ~asyncserver.datagram_server.DatagramServer"


def defining_module(package: str, name: str) -> str:
    """The module that makes one of a package's public names."""
    for statement in ast.parse(inspect.getsource(importlib.import_module(package))).body:
        if isinstance(statement, ast.ImportFrom) and name in [each.name for each in statement.names]:
            return defining_module(statement.module or "", name)
    return package


def definition(module: str, name: str) -> str:
    """The lines of a module that make a value, as they stand there but for the word ``TypeAlias``."""
    source = inspect.getsource(importlib.import_module(module))
    for statement in ast.parse(source).body:
        if isinstance(statement, ast.AnnAssign | ast.Assign):
            text = ast.get_source_segment(source, statement) or ""
            if text.startswith((f"{name}: ", f"{name} = ")):
                return text.replace(": TypeAlias", "")
    raise LookupError(f"{module} does not make {name}")


def _describe_aliases(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """A type has no docstring of its own: its definition, and what stands below that."""
    if what == "data":
        package, _, own = name.rpartition(".")
        module = defining_module(package, own)
        code = [f"    {line}" for line in definition(module, own).splitlines()]
        comment = ModuleAnalyzer.for_module(module).find_attr_docs()["", own]
        lines[:] = [".. code-block:: python", "", *code, "", *comment]


def arguments_as_list(lines: list[str]) -> list[str]:
    """The lines of a docstring, with paragraphs that go through arguments turned into lists."""
    listed: list[str] = []
    within = False
    for line in lines:
        begins = _ARGUMENT.match(line) is not None
        if begins and not within and listed and listed[-1]:
            listed.append("")
        within = bool(line) and (within or begins)
        listed.append(f"- {line}" if begins else f"  {line}" if within else line)
    return listed


def _mend_docstring(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    lines[:] = arguments_as_list([line for line in lines if not _SAYS_NOTHING.match(line)])


def with_type_names(signature: str) -> str:
    """A signature or a type, with names of types in the place of what they stand for."""
    signature = re.sub(r"~asyncserver\.lifecycle\.Lifecycle\[[^\]]*\]", _ANY_SERVER, signature)
    expanded = {_expanded(name): name for name in _TYPES}
    for text in sorted(expanded, key=len, reverse=True):
        signature = signature.replace(text, f"~{expanded[text]}")
    return signature


def _expanded(name: str) -> str:
    """What a type stands for, as autodoc writes it."""
    module, _, own = name.rpartition(".")
    text = stringify_annotation(getattr(importlib.import_module(module), own), "smart")
    return text.replace("[Server]", "[~asyncserver.server.Server]").replace(
        "[DatagramServer]", "[~asyncserver.datagram_server.DatagramServer]"
    )


def _sign(
    app: Sphinx, what: str, name: str, obj: Any, options: Any, signature: str | None, returned: str | None
) -> tuple[str | None, str | None]:
    if what in ("class", "exception"):
        return _signature_of_class(name, obj, signature), None
    if signature:
        signature = with_type_names(_with_values(obj, signature))
    return signature, returned and with_type_names(_returned(obj, returned))


def _with_values(function: Any, signature: str) -> str:
    """The signature with the values of constants that are its defaults."""
    names = getattr(inspect.unwrap(function), "__globals__", {})

    def value_of(constant: re.Match[str]) -> str:
        value = names.get(constant[0])
        if type(value) is int:
            return f"{value:_}"
        return repr(value) if isinstance(value, bytes | str | float) else constant[0]

    return re.sub(r"(?<== )[A-Z_]{3,}\b", value_of, signature)


def _signature_of_class(name: str, cls: Any, signature: str | None) -> str | None:
    """None for those that programs do not call; defaults as they would write them."""
    called = name not in _MADE_BY_SERVERS and not issubclass(cls, enum.Enum)
    if not signature:
        return signature
    if not called or getattr(cls, "_is_protocol", False):
        return ""
    if dataclasses.is_dataclass(cls):
        for field in dataclasses.fields(cls):
            if field.default_factory is not dataclasses.MISSING:
                made = getattr(field.default_factory, "__name__", "...")
                signature = signature.replace("<factory>", f"{made}()", 1)
        signature = re.sub(r"<([\w.]+): [^>]*>", r"\1", signature)  # the members of enumerations
        signature = re.sub(r"(?<== )\d{5,}", lambda number: f"{int(number[0]):_}", signature)
    return with_type_names(signature)


def _returned(function: Any, returned: str) -> str:
    """What a caller gets, of what is written as a generator: a coroutine's result, or a context manager."""
    match = re.fullmatch(r"~collections\.abc\.(Async)?Generator\[(.*)\]", returned)
    if match is None:
        return returned
    if inspect.iscoroutinefunction(function):
        return match[2].rpartition(", ")[2]
    if hasattr(function, "__wrapped__"):
        kind = f"Abstract{match[1] or ''}ContextManager"
        return f"~contextlib.{kind}[{match[2].partition(', ')[0]}]"
    return returned


def _name_bases(app: Sphinx, name: str, obj: type, options: Any, bases: list[Any]) -> None:
    """Of a class's bases those that programs know."""
    known = [base for base in obj.__mro__[1:] if _is_known(base)]
    nearest = [base for base in known if not any(base in other.__mro__[1:] for other in known)]
    bases[:] = [_with_module(base) if base.__module__ == "socketserver" else base for base in nearest]


def _with_module(cls: type) -> str:
    """Those of ``compat`` have the same names."""
    return f":py:class:`{cls.__module__}.{cls.__name__}`"


def _is_known(cls: type) -> bool:
    package = cls.__module__.partition(".")[0]
    if package in ("asyncserver", "compat"):
        return getattr(importlib.import_module(package), cls.__name__, None) is cls
    return True


def _mend_types(app: Sphinx, document: nodes.document) -> None:
    """What ``Server`` has of its generic base has the types that ``Server`` gives it."""
    for signature in document.findall(desc_signature):
        if signature.parent["objtype"] == "data":
            _leave_to_definition(signature)
        for reference in list(signature.findall(pending_xref)):
            meant = _type_arguments(signature).get(reference["reftarget"].rpartition(".")[2])
            if meant is not None:
                reference["reftarget"] = f"{signature['module']}.{meant}"
                reference.children = [nodes.Text(meant)]
                reference.children[0].parent = reference


def _leave_to_definition(signature: desc_signature) -> None:
    """The definition that follows says shorter what type it is, or what it is an alias of."""
    for annotation in list(signature.findall(desc_annotation)):
        annotation.parent.remove(annotation)
    for paragraph in list(signature.parent.findall(nodes.paragraph)):
        if paragraph.astext().startswith("alias of "):
            paragraph.parent.remove(paragraph)


def _type_arguments(signature: desc_signature) -> dict[str, str]:
    cls = getattr(importlib.import_module(signature["module"]), signature["class"] or "", None)
    return {
        variable.__name__: argument.__name__
        for base in getattr(cls, "__orig_bases__", ())
        for variable, argument in zip(
            getattr(typing.get_origin(base), "__parameters__", ()), typing.get_args(base), strict=False
        )
    }


def setup(app: Sphinx) -> dict[str, Any]:
    """Called by Sphinx."""
    app.connect("autodoc-process-docstring", _describe_aliases)
    app.connect("autodoc-process-docstring", _mend_docstring)
    app.connect("autodoc-process-signature", _sign)
    app.connect("autodoc-process-bases", _name_bases)
    app.connect("doctree-read", _mend_types)
    return {"parallel_read_safe": True}
