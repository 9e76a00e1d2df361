"""The options of ``asyncserver serve``: which field each sets, and what is said about it.

Defaults, choices and descriptions are those of the dataclasses and functions that the options are
for: they are read from there, and not written here again.
"""

from __future__ import annotations

import ast
import functools
import inspect
import re
import textwrap
from collections.abc import Callable, Iterable
from dataclasses import MISSING, dataclass, fields
from typing import Any

import click

from asyncserver import (
    DatagramLimits,
    DatagramOptions,
    DatagramTimeouts,
    KeepAlive,
    Limits,
    SocketOptions,
    Timeouts,
    TLSConfig,
)
from asyncserver.cli_kinds import Kind
from asyncserver.cli_values import OFF, duration, shown_duration, shown_value

__all__ = [
    "ENVIRONMENT_PREFIX",
    "FieldOption",
    "Group",
    "ServeOption",
    "field_documentation",
    "flag_of",
    "given",
    "option_for",
    "options_for",
    "was_given",
]

ENVIRONMENT_PREFIX = "ASYNCSERVER_"

_KINDS: dict[type, Kind] = {
    **dict.fromkeys((Limits, Timeouts, SocketOptions, KeepAlive, TLSConfig), Kind.STREAMS),
    **dict.fromkeys((DatagramLimits, DatagramTimeouts, DatagramOptions), Kind.DATAGRAMS),
}

_OWNERS = {owner.__name__: owner for owner in _KINDS}


class ServeOption(click.Option):
    """An option that can also be set by an environment variable, and is None where nothing was said."""

    def __init__(
        self,
        flags: str,
        description: str,
        *,
        kinds: Iterable[Kind] = Kind,
        default_text: str | None = None,
        **attributes: Any,
    ):
        main = flags.partition("/")[0].strip()
        self.flag = main
        self.variable: str = ENVIRONMENT_PREFIX + main.removeprefix("--").upper().replace("-", "_")
        self.kinds: tuple[Kind, ...] = tuple(kinds)
        self.default_text = default_text
        super().__init__([flags], envvar=self.variable, default=None, **attributes)
        self._description = description

    def description(self) -> str:
        """What it is for, in one or a few sentences."""
        return self._description

    def get_help_record(self, ctx: click.Context) -> tuple[str, str] | None:
        """The two columns of the help."""
        facts = [f"default: {self.default_text}"] if self.default_text else []
        facts.append(self.variable)
        spec = " / ".join((*self.opts, *self.secondary_opts))
        if not self.is_flag and self.metavar:
            spec = f"{spec} {self.metavar}"
        return spec, f"{self.description()}  [{'; '.join(facts)}]"


class FieldOption(ServeOption):
    """An option that sets one field of a dataclass, and the field of the same name in ``datagrams``."""

    def __init__(
        self,
        owner: type,
        field: str,
        flags: str,
        *,
        datagrams: type | None = None,
        kinds: Iterable[Kind] = (),
        whole: bool = False,
        note: str = "",
        **attributes: Any,
    ):
        self.owners: tuple[type, ...] = (owner,) if datagrams is None else (owner, datagrams)
        self.field = field
        self._whole = whole
        self._note = note
        if attributes.get("metavar") not in ("FILE", "NAME", "GROUP"):
            shown = shown_duration if attributes.get("type") is duration else shown_value
            defaults = [_shown_default(each, field, shown) for each in self.owners]
            attributes.setdefault("default_text", ", datagrams: ".join(dict.fromkeys(defaults)))
        super().__init__(flags, "", kinds=kinds or [_KINDS[each] for each in self.owners], **attributes)
        _setting.update(dict.fromkeys(((each, field) for each in self.owners), self))

    def description(self) -> str:
        """The field's own documentation: its first sentence, or all of it."""
        meanings = dict.fromkeys(self._documentation(owner) for owner in self.owners)
        return f"{' Datagrams: '.join(meanings)} {self._note}".strip()

    def _documentation(self, owner: type) -> str:
        text = field_documentation(owner).get(self.field, "")
        text = " ".join(text.split()) if self._whole else _first_sentence(text)
        return _in_terms_of_flags(text, owner, self._off)

    @property
    def _off(self) -> str:
        """What is written where the field would be None."""
        if self.secondary_opts:
            return self.secondary_opts[0]
        return "without it" if self.metavar == "FILE" else OFF.value


@dataclass(frozen=True)
class Group:
    """Options that stand together in the help."""

    title: str
    introduction: str
    options: tuple[ServeOption, ...]


_setting: dict[tuple[type, str], FieldOption] = {}
"""Which option sets a field; all that were made."""


def option_for(owner: type, field: str) -> FieldOption | None:
    """The option that sets a field."""
    return _setting.get((owner, field))


def flag_of(owner: type, field: str) -> str | None:
    """The flag of the option that sets a field; None if there is none."""
    option = option_for(owner, field)
    return None if option is None else option.flag


def options_for(owner: type) -> list[FieldOption]:
    """The options that set a field of ``owner``."""
    return [option for (each, _), option in _setting.items() if each is owner]


def given(values: dict[str, Any], owner: type) -> dict[str, Any]:
    """The fields of ``owner`` that something was said about, by the command line or the environment."""
    return {
        option.field: None if values[option.name] is OFF else values[option.name]
        for option in options_for(owner)
        if was_given(values[option.name])
    }


def was_given(value: Any) -> bool:
    """Whether this is what was said, and not what stands for nothing being said."""
    return value not in (None, ())


# --- what the dataclasses say ---


def _shown_default(owner: type, name: str, shown: Callable[[Any], str]) -> str:
    (field,) = (field for field in fields(owner) if field.name == name)
    default = field.default if field.default_factory is MISSING else field.default_factory()
    return OFF.value if default is None else shown(default)


@functools.cache
def field_documentation(owner: type) -> dict[str, str]:
    """The string that stands after each field in the source of ``owner``; empty where there is no source."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(owner)))
    except (OSError, TypeError):
        return {}
    (definition,) = (node for node in tree.body if isinstance(node, ast.ClassDef))
    found: dict[str, str] = {}
    for node, after in zip(definition.body, definition.body[1:], strict=False):
        match node, after:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                found[name] = inspect.cleandoc(text)
            case _:
                pass
    return found


def _first_sentence(text: str) -> str:
    first_paragraph = " ".join(text.partition("\n\n")[0].split())
    match = re.match(r".*?\.(?=\s|$)", first_paragraph)
    return match[0] if match else first_paragraph


def _in_terms_of_flags(text: str, owner: type, off: str) -> str:
    """``text`` with the names of fields replaced by those of options, and without its markup."""

    def replacement(match: re.Match[str]) -> str:
        quoted: str = match[1]
        class_name, _, field = quoted.rpartition(".")
        target = _OWNERS.get(class_name, owner)
        return flag_of(target, field) or (off if quoted == "None" else quoted.strip('"'))

    return re.sub(r"``([^`]+)``", replacement, text)
