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
import typing
from collections.abc import Callable
from dataclasses import MISSING, dataclass, fields
from typing import Any

import click

from asyncserver import KeepAlive, Limits, LoopName, SocketOptions, Timeouts, TLSConfig, run_server
from asyncserver.cli_values import (
    OFF,
    count,
    duration,
    number,
    shown_duration,
    shown_value,
    size,
    text_bytes,
)

__all__ = [
    "ENVIRONMENT_PREFIX",
    "GROUPS",
    "FieldOption",
    "Group",
    "ServeOption",
    "all_options",
    "flag_of",
    "given",
    "option_for",
]

ENVIRONMENT_PREFIX = "ASYNCSERVER_"


class ServeOption(click.Option):
    """An option that can also be set by an environment variable, and is None where nothing was said."""

    def __init__(self, flags: str, description: str, *, default_text: str | None = None, **attributes: Any):
        main = flags.partition("/")[0].strip()
        self.flag = main
        self.variable = ENVIRONMENT_PREFIX + main.removeprefix("--").upper().replace("-", "_")
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
    """An option that sets one field of a dataclass."""

    def __init__(
        self, owner: type, field: str, flags: str, *, whole: bool = False, note: str = "", **attributes: Any
    ):
        self.owner = owner
        self.field = field
        self._whole = whole
        self._note = note
        shown = shown_duration if attributes.get("type") is duration else shown_value
        default = _default_of(owner, field)
        if default is not MISSING and attributes.get("metavar") not in ("FILE", "NAME"):
            attributes.setdefault("default_text", OFF.value if default is None else shown(default))
        super().__init__(flags, "", **attributes)

    def description(self) -> str:
        """The field's own documentation: its first sentence, or all of it."""
        text = field_documentation(self.owner).get(self.field, "")
        text = " ".join(text.split()) if self._whole else _first_sentence(text)
        return f"{_in_terms_of_flags(text, self.owner, self._off)} {self._note}".strip()

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


def flag_of(owner: type, field: str) -> str | None:
    """The option that sets a field; None if there is none."""
    option = option_for(owner, field)
    return None if option is None else option.flag


def option_for(owner: type, field: str) -> FieldOption | None:
    """The option that sets a field."""
    for option in all_options():
        if isinstance(option, FieldOption) and (option.owner, option.field) == (owner, field):
            return option
    return None


def all_options() -> tuple[ServeOption, ...]:
    """The options of all groups."""
    return tuple(option for group in GROUPS for option in group.options)


def given(values: dict[str, Any], owner: type) -> dict[str, Any]:
    """The fields of ``owner`` that something was said about, by the command line or the environment."""
    return {
        option.field: None if values[option.name] is OFF else values[option.name]
        for option in all_options()
        if isinstance(option, FieldOption) and option.owner is owner and values[option.name] not in (None, ())
    }


# --- what the dataclasses say ---


def _default_of(owner: type, name: str) -> Any:
    (field,) = (field for field in fields(owner) if field.name == name)
    return field.default if field.default_factory is MISSING else field.default_factory()


def _choices_of(owner: type, field: str) -> click.Choice[str]:
    return click.Choice(typing.get_args(typing.get_type_hints(owner)[field]))


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


_OWNERS: dict[str, type] = {
    cls.__name__: cls for cls in (Limits, Timeouts, SocketOptions, KeepAlive, TLSConfig)
}


def _parameter_default(name: str) -> Any:
    return inspect.signature(run_server).parameters[name].default


# --- the options ---


def _field(
    owner: type, field: str, convert: Callable[[str], Any], metavar: str, flag: str = "", **more: Any
) -> FieldOption:
    return FieldOption(
        owner, field, flag or "--" + field.replace("_", "-"), type=convert, metavar=metavar, **more
    )


_FILE = click.Path(dir_okay=True)  # What is wrong with a file is said by whoever reads it.

_TLS = Group(
    "TLS",
    "For addresses that begin with tls+, and for handlers that call start_tls().",
    (
        FieldOption(TLSConfig, "certificate", "--tls-cert", type=_FILE, metavar="FILE"),
        FieldOption(TLSConfig, "private_key", "--tls-key", type=_FILE, metavar="FILE"),
        ServeOption(
            "--tls-key-password-file",
            "File with the password of an encrypted key; a line end after it does not count.",
            type=_FILE,
            metavar="FILE",
        ),
        FieldOption(TLSConfig, "client_ca", "--tls-client-ca", type=_FILE, metavar="FILE"),
        FieldOption(
            TLSConfig,
            "client_certificates",
            "--tls-client-certs",
            type=_choices_of(TLSConfig, "client_certificates"),
            metavar="none|optional|required",
            whole=True,
        ),
        FieldOption(
            TLSConfig,
            "alpn",
            "--tls-alpn",
            multiple=True,
            metavar="NAME",
            note="Can be given several times; in the variable they are separated by spaces.",
        ),
        _field(TLSConfig, "reload_interval", duration, "DURATION", "--tls-reload-interval"),
    ),
)

_LIMITS = Group(
    "Limits",
    'How much it takes on; "none" is no limit.',
    (
        _field(Limits, "max_connections", count, "N"),
        FieldOption(
            Limits,
            "when_full",
            "--when-full",
            type=_choices_of(Limits, "when_full"),
            metavar="wait|reject",
            whole=True,
        ),
        _field(
            Limits,
            "reject_message",
            text_bytes,
            "TEXT",
            note=r"Escapes: \r \n \t \0 \xNN \\.",
        ),
        _field(Limits, "max_connections_per_peer", count, "N"),
        _field(Limits, "accept_rate", number, "N"),
        _field(Limits, "accept_burst", count, "N"),
        _field(Limits, "max_handshakes", count, "N"),
        _field(Limits, "receive_buffer", size, "BYTES"),
        _field(Limits, "send_buffer", size, "BYTES"),
    ),
)

_TIMEOUTS = Group(
    "Timeouts",
    'How long it waits. A DURATION is 30 or 1.5 (seconds), 500ms, 2m, 1h, 1d; "none" switches one off.',
    (
        _field(Timeouts, "handshake", duration, "DURATION", "--handshake-timeout"),
        _field(Timeouts, "first_byte", duration, "DURATION", "--first-byte-timeout"),
        _field(Timeouts, "idle", duration, "DURATION", "--idle-timeout"),
        _field(Timeouts, "send", duration, "DURATION", "--send-timeout"),
        _field(Timeouts, "handler", duration, "DURATION", "--handler-timeout"),
        _field(Timeouts, "lifetime", duration, "DURATION"),
        _field(Timeouts, "lifetime_jitter", number, "FRACTION"),
        _field(Timeouts, "linger", duration, "DURATION"),
        _field(Timeouts, "grace", duration, "DURATION"),
    ),
)

_SOCKETS = Group(
    "Sockets",
    "What the kernel is asked for. BYTES are 65536, 64KiB, 1MiB.",
    (
        _field(SocketOptions, "backlog", count, "N"),
        FieldOption(SocketOptions, "reuse_address", "--reuse-address/--no-reuse-address"),
        FieldOption(SocketOptions, "reuse_port", "--reuse-port/--no-reuse-port"),
        FieldOption(SocketOptions, "no_delay", "--no-delay/--delay"),
        FieldOption(SocketOptions, "keep_alive", "--keep-alive/--no-keep-alive", default_text="yes"),
        _field(KeepAlive, "idle", duration, "DURATION", "--keep-alive-idle"),
        _field(KeepAlive, "interval", duration, "DURATION", "--keep-alive-interval"),
        _field(KeepAlive, "probes", count, "N", "--keep-alive-probes"),
        _field(SocketOptions, "receive_buffer", size, "BYTES", "--receive-buffer-size"),
        _field(SocketOptions, "send_buffer", size, "BYTES", "--send-buffer-size"),
    ),
)

_RUNNING = Group(
    "Running",
    "How the process starts, speaks and ends.",
    (
        ServeOption(
            "--loop",
            "The event loop; auto is uvloop where it is installed.",
            type=click.Choice(typing.get_args(LoopName)),
            metavar="|".join(typing.get_args(LoopName)),
            default_text=_parameter_default("loop"),
        ),
        ServeOption(
            "--drain-timeout",
            "At a SIGTERM or SIGINT: how long connections may go on until their handlers are cancelled "
            "(none: for ever, zero: at once).",
            type=duration,
            metavar="DURATION",
            default_text=shown_duration(_parameter_default("drain_timeout")),
        ),
        ServeOption(
            "--drain-delay",
            "At a SIGTERM or SIGINT: how long connections are still accepted before the draining begins, "
            "for a load balancer to notice.",
            type=duration,
            metavar="DURATION",
            default_text=shown_duration(_parameter_default("drain_delay")),
        ),
        ServeOption(
            "--app-dir",
            "Where modules are looked for first.",
            type=click.Path(exists=True, file_okay=False),
            metavar="DIRECTORY",
            default_text="the working directory",
        ),
        ServeOption(
            "--log-level",
            "What is logged, to stderr.",
            type=click.Choice(("debug", "info", "warning", "error", "critical"), case_sensitive=False),
            metavar="debug|info|warning|error|critical",
            default_text="info",
        ),
        ServeOption(
            "--hint",
            "Is added to the line that says where it listens. {address}, {host}, {port} and {path} stand for "
            "parts of the first address.",
            metavar="TEXT",
        ),
    ),
)

GROUPS = (_TLS, _LIMITS, _TIMEOUTS, _SOCKETS, _RUNNING)
