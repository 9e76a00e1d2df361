"""From the options of ``asyncserver serve`` to the server that they describe, or to what is wrong in them."""

from __future__ import annotations

import re
from collections.abc import Generator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from asyncserver import (
    KeepAlive,
    Limits,
    OptionError,
    Server,
    SocketOptions,
    Timeouts,
    TLSConfig,
    TLSConfigurationError,
)
from asyncserver.cli_options import (
    ENVIRONMENT_PREFIX,
    FieldOption,
    ServeOption,
    all_options,
    flag_of,
    given,
    option_for,
)
from asyncserver.cli_process import Plan
from asyncserver.cli_values import OFF, shown_value
from asyncserver.loading import TargetError, load_target

__all__ = ["in_terms_of_flags", "origin", "prepare"]


def prepare(
    ctx: click.Context, handler: str, addresses: tuple[Any, ...], app_dir: str | None, **values: Any
) -> Plan:
    """What ``serve`` is to run; everything that is wrong with it is a ``click.UsageError``."""
    parts = _configuration(ctx, values)
    try:
        target = load_target(handler, app_dir or ".")
    except TargetError as error:
        raise click.BadParameter(f"{handler!r}: {error}", ctx, _argument(ctx, "handler")) from None
    if isinstance(target, Server):
        _check_nothing_contradicts(ctx, handler, values)
        return Plan(target, _running(values), values["hint"], values["log_level"], made_from_options=False)
    server = _make_server(ctx, handler, target, addresses, parts)
    return Plan(server, _running(values), values["hint"], values["log_level"])


def _running(values: dict[str, Any]) -> dict[str, Any]:
    """The keyword arguments of ``run_server``."""
    off = {"drain_timeout": None, "drain_delay": 0.0}
    return {
        name: off[name] if values[name] is OFF else values[name]
        for name in ("loop", "drain_timeout", "drain_delay")
        if values[name] is not None
    }


def _make_server(
    ctx: click.Context, handler: str, target: Any, addresses: tuple[Any, ...], parts: dict[str, Any]
) -> Server:
    if not addresses:
        raise click.UsageError(
            f"give at least one ADDRESS, such as tcp://127.0.0.1:9999, or set {ENVIRONMENT_PREFIX}ADDRESSES",
            ctx,
        )
    for each in addresses:
        if each.tls and parts["tls"] is None:
            raise click.BadParameter(
                f"{str(each)!r} needs --tls-cert, and --tls-key unless the key is in the same file",
                ctx,
                _argument(ctx, "addresses"),
            )
    try:
        return Server(target, *addresses, **parts)
    except OptionError as error:
        if error.option != "handler":
            raise
        raise click.BadParameter(f"{handler!r} {error.reason}", ctx, _argument(ctx, "handler")) from None


def _check_nothing_contradicts(ctx: click.Context, handler: str, values: dict[str, Any]) -> None:
    params = [
        each for each in ctx.command.params if isinstance(each, FieldOption) or each.name == "addresses"
    ]
    said = [origin(ctx, each) for each in params if ctx.params.get(str(each.name)) not in (None, ())]
    if values["tls_key_password_file"] is not None:
        said.append("--tls-key-password-file")
    if said:
        raise click.UsageError(
            f"{handler!r} is a Server, which has its own addresses and options: leave out {', '.join(said)}",
            ctx,
        )


def _argument(ctx: click.Context, name: str) -> click.Parameter:
    return next(param for param in ctx.command.params if param.name == name)


# --- the values that options make ---


def _configuration(ctx: click.Context, values: dict[str, Any]) -> dict[str, Any]:
    """The keyword arguments of ``Server`` that stand for the options."""
    with _blaming(ctx, Limits):
        limits = Limits(**given(values, Limits))
    with _blaming(ctx, Timeouts):
        timeouts = Timeouts(**given(values, Timeouts))
    with _blaming(ctx, KeepAlive):
        sockets = given(values, SocketOptions) | _keep_alive(ctx, values)
    with _blaming(ctx, SocketOptions):
        options = SocketOptions(**sockets)
    with _blaming(ctx, TLSConfig):
        tls = _tls(ctx, values)
    return {"limits": limits, "timeouts": timeouts, "options": options, "tls": tls}


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


def _keep_alive(ctx: click.Context, values: dict[str, Any]) -> dict[str, Any]:
    times = given(values, KeepAlive)
    if values["keep_alive"] is False:
        if times:
            flag = flag_of(KeepAlive, next(iter(times)))
            raise click.UsageError(f"{flag} and --no-keep-alive contradict each other", ctx)
        return {"keep_alive": None}
    return {"keep_alive": KeepAlive(**times)}


def _tls(ctx: click.Context, values: dict[str, Any]) -> TLSConfig | None:
    fields = given(values, TLSConfig)
    password_file = values["tls_key_password_file"]
    if "certificate" not in fields:
        said = [flag_of(TLSConfig, field) for field in fields]
        if password_file is not None:
            said.append("--tls-key-password-file")
        if said:
            raise click.UsageError(f"{said[0]} needs --tls-cert", ctx)
        return None
    if password_file is not None:
        fields["password"] = lambda: Path(password_file).read_bytes().rstrip(b"\r\n")
    return TLSConfig(**fields)


def in_terms_of_flags(message: str, owner: type) -> str:
    """A message of the library's in the words of the command line: flags for fields, none for None."""
    message = re.sub(r"\bNone\b", OFF.value, message)
    for option in all_options():
        if isinstance(option, FieldOption) and option.owner is owner:
            # "certificate" is also an ordinary word: it is the field where its value follows.
            end = r"(=|(?= '))" if option.field == "certificate" else r"(=|\b)"
            message = re.sub(rf"(?<![\w-]){option.field}{end}", partial(_flag, option.flag), message)
    return message.replace("set password,", "give --tls-key-password-file,")


def _flag(flag: str, match: re.Match[str]) -> str:
    return f"{flag} " if match[1] else flag


def origin(ctx: click.Context | None, param: click.Parameter) -> str:
    name = param.flag if isinstance(param, ServeOption) else str(getattr(param, "metavar", param.name))
    if ctx is None or param.name is None:
        return name
    if ctx.get_parameter_source(param.name) is ParameterSource.ENVIRONMENT:
        return f"{name} (from {param.envvar})"
    return name
