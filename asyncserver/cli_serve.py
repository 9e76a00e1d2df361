"""From the arguments of ``asyncserver serve`` to the servers that they describe."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

import click

from asyncserver import Address, DatagramServer, OptionError, Server, StreamAddress
from asyncserver.cli_configuration import Configuration, configuration, origin
from asyncserver.cli_kinds import Kind, WrongKindError, kinds_in_use, possible_kinds, sort_addresses
from asyncserver.cli_options import ENVIRONMENT_PREFIX, FieldOption, ServeOption, was_given
from asyncserver.cli_process import AnyServer, Plan
from asyncserver.loading import TargetError, load_target

__all__ = ["prepare"]


def prepare(
    ctx: click.Context, handler: str, addresses: tuple[Address, ...], app_dir: str | None, **values: Any
) -> Plan:
    """What ``serve`` is to run; everything that is wrong with it is a ``click.UsageError``."""
    if addresses:
        _check_options_have_a_meaning(ctx, handler, addresses, possible_kinds(addresses))
    parts = configuration(ctx, values)
    try:
        target = load_target(handler, app_dir or ".")
    except TargetError as error:
        raise click.BadParameter(f"{handler!r}: {error}", ctx, _argument(ctx, "handler")) from None
    if isinstance(target, Server | DatagramServer):
        _check_nothing_contradicts(ctx, handler, target)
        return Plan((target,), parts.running, values["hint"], values["log_level"], made_from_options=False)
    servers = _make_servers(ctx, handler, target, addresses, parts)
    return Plan(servers, parts.running, values["hint"], values["log_level"])


# What a program would call, in what is said of a handler of another kind.
_WHO_SERVES = re.compile(r"give it to [^:]*, with an address")


def _make_servers(
    ctx: click.Context, handler: str, target: Any, addresses: tuple[Address, ...], parts: Configuration
) -> tuple[AnyServer, ...]:
    """One for the addresses of each kind, and that of the first address first."""
    if not addresses:
        raise click.UsageError(
            f"give at least one ADDRESS, such as tcp://127.0.0.1:9999, or set {ENVIRONMENT_PREFIX}ADDRESSES",
            ctx,
        )
    try:
        by_kind = sort_addresses(target, addresses)
    except WrongKindError as error:
        raise click.BadParameter(f"{handler!r} {error}", ctx, _argument(ctx, "handler")) from None
    _check_options_have_a_meaning(ctx, handler, addresses, kinds_in_use(target, by_kind))
    _check_tls(ctx, by_kind.streams, parts.streams["tls"])
    servers: list[AnyServer] = []
    try:
        if by_kind.streams:
            servers.append(Server(target, *by_kind.streams, **parts.streams))
        if by_kind.datagrams:
            servers.append(DatagramServer(target, *by_kind.datagrams, **parts.datagrams))
    except OptionError as error:
        if error.option != "handler":
            raise
        reason = _WHO_SERVES.sub("give it an address", error.reason)
        raise click.BadParameter(f"{handler!r} {reason}", ctx, _argument(ctx, "handler")) from None
    return tuple(servers if addresses[0] in by_kind.streams else reversed(servers))


def _argument(ctx: click.Context, name: str) -> click.Parameter:
    return next(param for param in ctx.command.params if param.name == name)


# --- what does not go together ---


def _check_options_have_a_meaning(
    ctx: click.Context, handler: str, addresses: Sequence[Address], kinds: set[Kind]
) -> None:
    """Refuse options that are for none of ``kinds``."""
    refused = [
        option
        for option in ctx.command.params
        if isinstance(option, ServeOption) and _was_given(ctx, option) and kinds.isdisjoint(option.kinds)
    ]
    if not refused:
        return
    needed = refused[0].kinds
    names = [origin(ctx, option) for option in refused if option.kinds == needed]
    is_handlers = Kind.DATAGRAMS in kinds and not {Kind.PACKETS, Kind.SESSIONS}.isdisjoint(needed)
    where = repr(handler) if is_handlers else ", ".join(map(str, addresses))
    have, they_are = ("has", "it is") if len(names) == 1 else ("have", "they are")
    what = " and ".join(kind.value for kind in needed)
    raise click.UsageError(f"{', '.join(names)} {have} no meaning for {where}: {they_are} for {what}", ctx)


def _check_tls(ctx: click.Context, streams: Iterable[StreamAddress], tls: object) -> None:
    for each in streams:
        if each.tls and tls is None:
            raise click.BadParameter(
                f"{str(each)!r} needs --tls-cert, and --tls-key unless the key is in the same file",
                ctx,
                _argument(ctx, "addresses"),
            )


def _check_nothing_contradicts(ctx: click.Context, handler: str, server: AnyServer) -> None:
    params = [
        each
        for each in ctx.command.params
        if isinstance(each, FieldOption) or each.name in ("addresses", "tls_key_password_file")
    ]
    said = [origin(ctx, each) for each in params if _was_given(ctx, each)]
    if said:
        what = "a Server" if isinstance(server, Server) else "a DatagramServer"
        raise click.UsageError(
            f"{handler!r} is {what}, which has its own addresses and options: leave out {', '.join(said)}",
            ctx,
        )


def _was_given(ctx: click.Context, param: click.Parameter) -> bool:
    return was_given(ctx.params.get(str(param.name)))
