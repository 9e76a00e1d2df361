"""From the options of ``asyncserver serve`` to the values that they make, or to what is wrong in them."""

from __future__ import annotations

import re
from collections.abc import Generator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import click
from click.core import ParameterSource

from asyncserver import (
    DatagramLimits,
    DatagramOptions,
    DatagramTimeouts,
    KeepAlive,
    Limits,
    OptionError,
    SocketOptions,
    Timeouts,
    TLSConfig,
    TLSConfigurationError,
)
from asyncserver.cli_options import ServeOption, flag_of, given, option_for, options_for
from asyncserver.cli_values import OFF, shown_value

__all__ = ["Configuration", "configuration", "in_terms_of_flags", "origin"]


class Configuration(NamedTuple):
    """Keyword arguments, which stand for the options."""

    streams: dict[str, Any]
    """Those of ``Server``."""
    datagrams: dict[str, Any]
    """Those of ``DatagramServer``."""
    running: dict[str, Any]
    """Those of ``run_server``."""


def configuration(ctx: click.Context, values: dict[str, Any]) -> Configuration:
    """All that was said; whatever is wrong with it is a ``click.UsageError``."""
    return Configuration(_of_streams(ctx, values), _of_datagrams(ctx, values), _of_running(values))


def _of_streams(ctx: click.Context, values: dict[str, Any]) -> dict[str, Any]:
    with _blaming(ctx, KeepAlive):
        sockets = given(values, SocketOptions) | _keep_alive(ctx, values)
    return {
        "limits": _made(ctx, Limits, given(values, Limits)),
        "timeouts": _made(ctx, Timeouts, given(values, Timeouts)),
        "options": _made(ctx, SocketOptions, sockets),
        "tls": _tls(ctx, values),
    }


def _of_datagrams(ctx: click.Context, values: dict[str, Any]) -> dict[str, Any]:
    return {
        "limits": _made(ctx, DatagramLimits, given(values, DatagramLimits)),
        "timeouts": _made(ctx, DatagramTimeouts, given(values, DatagramTimeouts)),
        "options": _made(ctx, DatagramOptions, given(values, DatagramOptions)),
    }


def _of_running(values: dict[str, Any]) -> dict[str, Any]:
    off = {"drain_timeout": None, "drain_delay": 0.0}
    return {
        name: off[name] if values[name] is OFF else values[name]
        for name in ("loop", "drain_timeout", "drain_delay")
        if values[name] is not None
    }


def _keep_alive(ctx: click.Context, values: dict[str, Any]) -> dict[str, Any]:
    times = given(values, KeepAlive)
    if values["keep_alive"] is False:
        if times:
            flag = flag_of(KeepAlive, next(iter(times)))
            raise click.UsageError(f"{flag} and --no-keep-alive contradict each other", ctx)
        return {"keep_alive": None}
    return {"keep_alive": KeepAlive(**times)}


def _tls(ctx: click.Context, values: dict[str, Any]) -> TLSConfig | None:
    settings = given(values, TLSConfig)
    password_file = values["tls_key_password_file"]
    if "certificate" not in settings:
        said = [flag_of(TLSConfig, field) for field in settings]
        if password_file is not None:
            said.append("--tls-key-password-file")
        if said:
            raise click.UsageError(f"{said[0]} needs --tls-cert", ctx)
        return None
    if password_file is not None:
        settings["password"] = lambda: Path(password_file).read_bytes().rstrip(b"\r\n")
    made: TLSConfig = _made(ctx, TLSConfig, settings)
    return made


# --- what is wrong, in the words of the command line ---


def _made(ctx: click.Context, owner: type, settings: dict[str, Any]) -> Any:
    with _blaming(ctx, owner):
        return owner(**settings)


@contextmanager
def _blaming(ctx: click.Context, owner: type) -> Generator[None, None, None]:
    """Errors about a field of ``owner`` become errors about the option that sets it."""
    try:
        yield
    except OptionError as error:
        message = f"{shown_value(error.value)} {in_terms_of_flags(error.reason, owner)}"
        raise click.BadParameter(message, ctx, option_for(owner, error.option)) from None
    except TLSConfigurationError as error:
        raise click.UsageError(in_terms_of_flags(str(error), owner), ctx) from None


# Fields that are ordinary words too: it is the field that is meant where its value follows.
_ORDINARY = {"certificate", "groups", "broadcast", "timestamps"}


def in_terms_of_flags(message: str, *owners: type) -> str:
    """A message of the library's in the words of the command line: flags for fields, none for None."""
    message = re.sub(r"\bNone\b", OFF.value, message)
    for owner in owners:
        for option in options_for(owner):
            end = r"(=|(?= '))" if option.field in _ORDINARY else r"(=|\b)"
            message = re.sub(rf"(?<![\w-]){option.field}{end}", partial(_flag, option.flag), message)
    return message.replace("set password,", "give --tls-key-password-file,")


def _flag(flag: str, match: re.Match[str]) -> str:
    return f"{flag} " if match[1] else flag


def origin(ctx: click.Context | None, param: click.Parameter) -> str:
    """The option or argument, and the variable that it came from."""
    name = param.flag if isinstance(param, ServeOption) else str(getattr(param, "metavar", param.name))
    if ctx is None or param.name is None:
        return name
    if ctx.get_parameter_source(param.name) is ParameterSource.ENVIRONMENT:
        return f"{name} (from {param.envvar})"
    return name
