"""A server as a process: what it logs, what it prints when it is ready, and what its signals do."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from types import FrameType
from typing import Any, NoReturn, TypeAlias

from asyncserver import (
    Address,
    ConnectionLogFilter,
    DatagramServer,
    LifespanError,
    Server,
    TCPAddress,
    UDPAddress,
    UnixAddress,
    UnixDatagramAddress,
    run_server,
)
from asyncserver.loading import user_traceback

__all__ = ["AnyServer", "Plan", "end_on_stop_signals", "run_plan"]

AnyServer: TypeAlias = Server | DatagramServer

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)

# A client cannot connect to the address that stands for all interfaces everywhere, but to this one.
_REACHABLE = {"0.0.0.0": "127.0.0.1", "::": "::1"}


@dataclass(frozen=True)
class Plan:
    """What a command line has asked for."""

    servers: tuple[AnyServer, ...]
    running: dict[str, Any]
    """Keyword arguments of ``run_server``."""
    hint: str | None
    log_level: str | None
    made_from_options: bool = True
    """Whether the servers' options are those of the command line, and not their module's."""


def run_plan(plan: Plan) -> int:
    """Serve until the end; returns the exit status, unless a signal ends the process.

    Raises ``ConfigurationError`` and ``StartError``, but says itself what a lifespan has raised.
    """
    configure_logging(plan.log_level)
    try:
        run_server(*plan.servers, on_ready=lambda *servers: announce(servers, plan.hint), **plan.running)
    except LifespanError as error:
        cause = error.__cause__
        trace = "" if cause is None or cause.__traceback__ is None else f"{user_traceback(cause)}\n"
        sys.stderr.write(f"asyncserver: {error}\n{trace}")
        return 1
    return 0


# --- the line that says where it listens ---


def announce(servers: Iterable[AnyServer], hint: str | None) -> None:
    """Print the one line that says that connections and datagrams are accepted now, and where."""
    loop = type(asyncio.get_running_loop()).__module__.partition(".")[0]
    addresses = [address for server in servers for address in server.addresses]
    line = f"Listening on {', '.join(map(str, addresses))} ({loop})"
    if hint:
        line += f" - {_filled_in(hint, addresses[0])}"
    # It is not worth ending for that nobody reads it.
    with suppress(OSError, ValueError):
        sys.stdout.write(f"{line}\n")
        sys.stdout.flush()


def _filled_in(hint: str, address: Address) -> str:
    parts = {"address": str(address)}
    if isinstance(address, TCPAddress | UDPAddress):
        parts |= {"host": _REACHABLE.get(address.host, address.host), "port": str(address.port)}
    elif isinstance(address, UnixAddress | UnixDatagramAddress):
        parts["path"] = address.path
    for name, value in parts.items():
        hint = hint.replace(f"{{{name}}}", value)
    return hint


# --- signals ---


def end_on_stop_signals() -> None:
    """Let SIGTERM and SIGINT end this process by themselves wherever ``run_server()`` has not taken them.

    So no traceback of a ``KeyboardInterrupt`` is shown while a module is imported; and when
    ``run_server()`` raises the signal again at its end, the process has the status that belongs to it,
    also where it was started with the signal ignored (as a shell script's background job is).
    """
    for number in STOP_SIGNALS:
        signal.signal(number, _end_by_signal)


def _end_by_signal(number: int, frame: FrameType | None) -> NoReturn:
    # What the user's code has printed is in a buffer, and is lost if the signal ends the process. Where it
    # came in the midst of a print(), the buffer cannot be used: that is a RuntimeError.
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError, RuntimeError):
            stream.flush()
    signal.signal(number, signal.SIG_DFL)
    signal.raise_signal(number)
    # Still here: the first process of a container is not ended by its own signals, nor is anything on
    # Windows by SIGINT.
    os._exit(128 + number)


# --- logging ---


class ConnectionFormatter(logging.Formatter):
    """Time, level, logger and message; and the connection, where a handler has logged."""

    def format(self, record: logging.LogRecord) -> str:
        """One line, and the traceback after it if there is one."""
        number = getattr(record, "connection_id", "-")
        record.connection = (
            "" if number == "-" else f" [connection {number} from {getattr(record, 'peer', '-')}]"
        )
        return super().format(record)


def configure_logging(level: str | None) -> None:
    """Log to stderr, unless the user's module has set up logging itself; then only the level is ours."""
    root = logging.getLogger()
    wanted = (level or "info").upper()
    if root.handlers:
        if level is not None:
            logging.getLogger("asyncserver").setLevel(wanted)
        return
    handler = logging.StreamHandler()
    handler.setFormatter(ConnectionFormatter("%(asctime)s %(levelname)s %(name)s%(connection)s: %(message)s"))
    handler.addFilter(ConnectionLogFilter())
    root.addHandler(handler)
    root.setLevel(wanted)
