"""The options of ``asyncserver serve``, in the groups in which its help shows them."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable
from typing import Any

import click

from asyncserver import (
    DatagramLimits,
    DatagramOptions,
    DatagramTimeouts,
    KeepAlive,
    Limits,
    LoopName,
    SocketOptions,
    Timeouts,
    TLSConfig,
    run_server,
)
from asyncserver.cli_kinds import Kind
from asyncserver.cli_options import FieldOption, Group, ServeOption
from asyncserver.cli_values import (
    count,
    duration,
    interface,
    multicast_group,
    number,
    shown_duration,
    size,
    text_bytes,
)

__all__ = ["GROUPS", "all_options"]


def all_options() -> tuple[ServeOption, ...]:
    """The options of all groups."""
    return tuple(option for group in GROUPS for option in group.options)


def _parameter_default(name: str) -> Any:
    return inspect.signature(run_server).parameters[name].default


def _field(
    owner: type,
    field: str,
    convert: Callable[[str], Any] | click.Choice[str],
    metavar: str,
    flag: str = "",
    **more: Any,
) -> FieldOption:
    return FieldOption(owner, field, flag or _flag(field), type=convert, metavar=metavar, **more)


def _choice(owner: type, field: str, flag: str = "", **more: Any) -> FieldOption:
    choices = typing.get_args(typing.get_type_hints(owner)[field])
    return _field(owner, field, click.Choice(choices), "|".join(choices), flag, whole=True, **more)


def _flag(field: str) -> str:
    return "--" + field.replace("_", "-")


_FILE = click.Path(dir_okay=True)  # What is wrong with a file is said by whoever reads it.

_REPEATED = "Can be given several times; in the variable they are separated by spaces."

_TLS = Group(
    "TLS",
    "For addresses that begin with tls+, and for handlers that call start_tls().",
    (
        FieldOption(TLSConfig, "certificate", "--tls-cert", type=_FILE, metavar="FILE"),
        FieldOption(TLSConfig, "private_key", "--tls-key", type=_FILE, metavar="FILE"),
        ServeOption(
            "--tls-key-password-file",
            "File with the password of an encrypted key; a line end after it does not count.",
            kinds=[Kind.STREAMS],
            type=_FILE,
            metavar="FILE",
        ),
        FieldOption(TLSConfig, "client_ca", "--tls-client-ca", type=_FILE, metavar="FILE"),
        _choice(TLSConfig, "client_certificates", "--tls-client-certs"),
        FieldOption(
            TLSConfig,
            "alpn",
            "--tls-alpn",
            multiple=True,
            metavar="NAME",
            note=_REPEATED,
        ),
        _field(TLSConfig, "reload_interval", duration, "DURATION", "--tls-reload-interval"),
    ),
)

_LIMITS = Group(
    "Limits",
    'How many connections it takes on, and how much of each; "none" is no limit.',
    (
        _field(Limits, "max_connections", count, "N"),
        _choice(Limits, "when_full"),
        _field(Limits, "reject_message", text_bytes, "TEXT", note=r"Escapes: \r \n \t \0 \xNN \\."),
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
        _field(Timeouts, "send", duration, "DURATION", "--send-timeout", datagrams=DatagramTimeouts),
        _field(
            Timeouts,
            "handler",
            duration,
            "DURATION",
            "--handler-timeout",
            datagrams=DatagramTimeouts,
            kinds=[Kind.STREAMS, Kind.PACKETS],
        ),
        _field(Timeouts, "lifetime", duration, "DURATION"),
        _field(Timeouts, "lifetime_jitter", number, "FRACTION"),
        _field(Timeouts, "linger", duration, "DURATION"),
        _field(Timeouts, "grace", duration, "DURATION", datagrams=DatagramTimeouts),
    ),
)

_DATAGRAMS = Group(
    "Datagrams",
    'How many datagrams it takes on, and for how long sessions are remembered; "none" is no limit.',
    (
        _field(DatagramLimits, "max_packet_size", size, "BYTES"),
        _field(DatagramLimits, "max_handlers", count, "N", kinds=[Kind.PACKETS]),
        _choice(DatagramLimits, "order", kinds=[Kind.PACKETS]),
        _field(DatagramLimits, "max_queue", count, "N", kinds=[Kind.PACKETS]),
        _choice(DatagramLimits, "when_full", "--when-queue-full"),
        _field(DatagramLimits, "max_sessions", count, "N", kinds=[Kind.SESSIONS]),
        _field(DatagramLimits, "session_queue", count, "N", kinds=[Kind.SESSIONS]),
        _field(
            DatagramTimeouts,
            "session_idle",
            duration,
            "DURATION",
            "--session-idle-timeout",
            kinds=[Kind.SESSIONS],
        ),
        FieldOption(DatagramOptions, "timestamps", "--timestamps/--no-timestamps"),
    ),
)

_SOCKETS = Group(
    "Sockets",
    "What the kernel is asked for. BYTES are 65536, 64KiB, 1MiB.",
    (
        _field(SocketOptions, "backlog", count, "N"),
        FieldOption(
            SocketOptions, "reuse_address", "--reuse-address/--no-reuse-address", datagrams=DatagramOptions
        ),
        FieldOption(SocketOptions, "reuse_port", "--reuse-port/--no-reuse-port", datagrams=DatagramOptions),
        FieldOption(SocketOptions, "no_delay", "--no-delay/--delay"),
        FieldOption(SocketOptions, "keep_alive", "--keep-alive/--no-keep-alive", default_text="yes"),
        _field(KeepAlive, "idle", duration, "DURATION", "--keep-alive-idle"),
        _field(KeepAlive, "interval", duration, "DURATION", "--keep-alive-interval"),
        _field(KeepAlive, "probes", count, "N", "--keep-alive-probes"),
        _field(
            SocketOptions, "receive_buffer", size, "BYTES", "--receive-buffer-size", datagrams=DatagramOptions
        ),
        _field(SocketOptions, "send_buffer", size, "BYTES", "--send-buffer-size", datagrams=DatagramOptions),
    ),
)

_MULTICAST = Group(
    "Multicast and broadcast",
    "For UDP. An INTERFACE is its name, its index or one of its addresses.",
    (
        _field(
            DatagramOptions,
            "groups",
            multicast_group,
            "GROUP",
            "--join",
            multiple=True,
            kinds=[Kind.UDP],
            note=f"A GROUP is [SOURCE@]ADDRESS[%INTERFACE], such as 239.1.2.3%eth0. {_REPEATED}",
        ),
        _field(DatagramOptions, "multicast_interface", interface, "INTERFACE", kinds=[Kind.UDP]),
        _field(DatagramOptions, "multicast_ttl", count, "N", kinds=[Kind.UDP]),
        FieldOption(
            DatagramOptions, "multicast_loop", "--multicast-loop/--no-multicast-loop", kinds=[Kind.UDP]
        ),
        FieldOption(DatagramOptions, "broadcast", "--broadcast/--no-broadcast", kinds=[Kind.UDP]),
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
            "At a SIGTERM or SIGINT: how long handlers may go on until they are cancelled (none: for ever, "
            "zero: at once).",
            type=duration,
            metavar="DURATION",
            default_text=shown_duration(_parameter_default("drain_timeout")),
        ),
        ServeOption(
            "--drain-delay",
            "At a SIGTERM or SIGINT: how long connections and datagrams are still accepted before the "
            "draining begins, for a load balancer to notice.",
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

GROUPS = (_TLS, _LIMITS, _TIMEOUTS, _DATAGRAMS, _SOCKETS, _MULTICAST, _RUNNING)
