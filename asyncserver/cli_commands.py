"""The commands, and what they say when something is wrong."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence

import click

from asyncserver import (
    BindError,
    ConfigurationError,
    DatagramOptions,
    SocketOptions,
    StartError,
    TLSConfig,
    TLSConfigurationError,
    __version__,
)
from asyncserver.cli_compat import compat_command
from asyncserver.cli_configuration import in_terms_of_flags, origin
from asyncserver.cli_groups import GROUPS, all_options
from asyncserver.cli_options import ENVIRONMENT_PREFIX
from asyncserver.cli_process import Plan, end_on_stop_signals, run_plan
from asyncserver.cli_serve import prepare
from asyncserver.cli_values import address, handler
from asyncserver.loading import TargetImportError

__all__ = ["run_command"]

PROGRAM = "asyncserver"
FAILED, USAGE = 1, 2

_DESCRIPTION = """\
Serve streams (TCP, TLS, Unix sockets) and datagrams (UDP, Unix sockets) until SIGTERM or SIGINT.

HANDLER is a module or a file, and a name in it: "package.module:name" or "path/to/file.py:name". The name
is that of an `async def` function that takes the stream, or the datagram; of a StreamHandler or
DatagramHandler class; of a function marked with @sessions; of a Responder, which can serve streams and
datagrams in one command; or of a Server or DatagramServer, which has its own addresses and options.

ADDRESS is where to listen, as often as needed; separated by spaces in ASYNCSERVER_ADDRESSES.
"""

_ADDRESSES = (
    ("tcp://127.0.0.1:9999", "one IPv4 address; tcp://[::1]:9999 an IPv6 one; port 0: a free port"),
    ("tcp://:9999", "every interface, IPv4 and IPv6"),
    ("unix:///run/app.sock?mode=660", "a Unix socket; unix:@name is an abstract one"),
    ("tls+tcp://:9999", "streams with TLS; needs --tls-cert"),
    ("udp://:9999", "datagrams; hosts are written as for tcp"),
    ("unixgram:///run/app.sock", "datagrams; paths and names are written as for unix"),
    ("fd://3, systemd:name", "a socket that was inherited, or that systemd has passed, of either kind"),
)

_EXAMPLES = (
    "asyncserver serve echo.py:echo tcp://127.0.0.1:9999",
    "asyncserver serve app:handler tls+tcp://:8443 --tls-cert chain.pem --tls-key key.pem",
    "asyncserver serve app:handler unix:///run/app.sock?mode=660 --idle-timeout 2m",
    "asyncserver serve beacons.py:Beacon udp://:5000 --join 239.1.2.3%eth0 --order peer",
    "asyncserver serve names.py:responder udp://:53 tcp://:53",
    "ASYNCSERVER_ADDRESSES='tcp://:7000 unix:app.sock' asyncserver serve app:handler",
)

_STATUSES = (
    ("0", "the program closed its server itself"),
    ("1", "it could not start: an address, a certificate, an exception in the module or its lifespan"),
    ("2", "wrong usage: an option, an address, a handler that is not there or not async"),
    ("130", "ended by SIGINT (Ctrl-C), as a shell shows it; a first one drains, a second one aborts"),
    ("143", "ended by SIGTERM, likewise"),
)


class ServeCommand(click.Command):
    """``serve``, whose many options are shown in groups."""

    def format_help_text(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """What it does, and how the arguments are written."""
        for paragraph in _DESCRIPTION.split("\n\n"):
            formatter.write_paragraph()
            with formatter.indentation():
                formatter.write_text(" ".join(paragraph.split()))
        with formatter.section("Addresses"):
            formatter.write_dl(_ADDRESSES)
        with formatter.section("Examples"):
            for example in _EXAMPLES:
                formatter.write(f"{'':{formatter.current_indent}}{example}\n")

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """All options; the variable that stands for one is the last in its brackets."""
        for group in GROUPS:
            with formatter.section(group.title):
                formatter.write_text(group.introduction)
                formatter.write_paragraph()
                formatter.write_dl(_help_records(ctx, group.options))
        with formatter.section("Help"):
            formatter.write_dl(_help_records(ctx, [self.get_help_option(ctx)]))

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Where else options come from, and how it ends."""
        with formatter.section("Environment"):
            formatter.write_text(
                f"Every option can also be set by the variable named beside it ({ENVIRONMENT_PREFIX}...); "
                "what the command line says counts more. Switches are yes or no there."
            )
        with formatter.section("Exit status"):
            formatter.write_dl(_STATUSES)


def _help_records(ctx: click.Context, options: Iterable[click.Parameter | None]) -> list[tuple[str, str]]:
    records = (option.get_help_record(ctx) for option in options if option is not None)
    return [record for record in records if record is not None]


def run_command(arguments: Sequence[str]) -> int:
    """Run the command that ``arguments`` are for; returns the exit status."""
    end_on_stop_signals()
    try:
        outcome = _commands.main(list(arguments), prog_name=PROGRAM, standalone_mode=False)
    except click.UsageError as error:
        _report_usage_error(error, arguments)
        return USAGE
    except click.ClickException as error:
        _say(error.format_message())
        return error.exit_code
    except TargetImportError as error:
        _say(str(error))
        return FAILED
    if isinstance(outcome, Plan):
        return _run(outcome)
    return outcome if isinstance(outcome, int) else 0


def _run(plan: Plan) -> int:
    try:
        return run_plan(plan)
    except ConfigurationError as error:
        # What only the start can judge: a certificate, a platform without SO_REUSEPORT, a missing uvloop.
        is_tls = isinstance(error, TLSConfigurationError)
        owners = [TLSConfig] if is_tls else [SocketOptions, DatagramOptions]
        _say(in_terms_of_flags(str(error), *owners) if plan.made_from_options else str(error))
        return FAILED if is_tls else USAGE
    except BindError as error:
        # The address is not a message: it may have a reuse_port of its own.
        reason = in_terms_of_flags(error.reason, DatagramOptions) if plan.made_from_options else error.reason
        _say(str(BindError(error.address, reason)))
        return FAILED
    except StartError as error:
        _say(str(error))
        return FAILED


def _say(message: str) -> None:
    sys.stderr.write(f"{PROGRAM}: {message}\n")


def _report_usage_error(error: click.UsageError, arguments: Sequence[str]) -> None:
    if type(error).__name__ == "NoArgsIsHelpError":  # its message is the help; new in click 8.2
        error.show()
        return
    command = " ".join([PROGRAM, *(each for each in arguments[:1] if each in _commands.commands)])
    _say(f"{_blamed(error)}{_message(error, arguments)}")
    sys.stderr.write(f"Try '{command} --help'.\n")


_WHERE = "where to listen is an argument, such as tcp://127.0.0.1:9999"

# What other servers' command lines have, and what there is here instead.
_INSTEAD = {
    **dict.fromkeys(("--host", "--port", "--bind", "--listen", "--address", "-p", "-b"), _WHERE),
    **dict.fromkeys(("--cert", "--certfile", "--ssl-certfile", "--certificate"), "write --tls-cert FILE"),
    **dict.fromkeys(("--key", "--keyfile", "--ssl-keyfile", "--private-key"), "write --tls-key FILE"),
    **dict.fromkeys(("--workers", "-w"), "one process serves; several can share a port, with --reuse-port"),
    **dict.fromkeys(("--reload", "--daemon"), "leave that to what starts it"),
    **dict.fromkeys(("--timeout", "-t"), "each has its own name, such as --idle-timeout"),
    **dict.fromkeys(("--debug", "--verbose", "-v"), "write --log-level debug"),
    **dict.fromkeys(("--uds", "--unix"), "where to listen is an argument, such as unix:///run/app.sock"),
    "-h": "write --help",
}


def _message(error: click.UsageError, arguments: Sequence[str]) -> str:
    if isinstance(error, click.NoSuchOption):
        message = f"No such option '{error.option_name}'"
        if error.option_name in _INSTEAD:
            return f"{message}: {_INSTEAD[error.option_name]}"
        if error.possibilities:
            return f"{message}; did you mean {' or '.join(list(error.possibilities)[:2])}?"
        return f"{message}."
    first = next(iter(arguments), "")
    if first not in _commands.commands and (":" in first or first.endswith(".py")):
        return f"No such command '{first}'; did you mean {PROGRAM} serve {' '.join(arguments)}?"
    return error.message if _is_explained(error) else error.format_message()


def _is_explained(error: click.UsageError) -> bool:
    return isinstance(error, click.BadParameter) and not isinstance(error, click.MissingParameter)


def _blamed(error: click.UsageError) -> str:
    """The option or argument that an error is about, and the variable that it came from."""
    if not isinstance(error, click.BadParameter) or not _is_explained(error) or error.param is None:
        return ""
    return f"{origin(error.ctx, error.param)}: "


# --- the commands themselves ---


def _show_version(ctx: click.Context, param: click.Parameter, wanted: bool) -> None:
    if wanted:
        click.echo(f"{PROGRAM} {__version__}")
        ctx.exit()


_serve = ServeCommand(
    "serve",
    params=[
        click.Argument(["handler"], metavar="HANDLER", type=handler),
        click.Argument(
            ["addresses"],
            nargs=-1,
            type=address,
            envvar=f"{ENVIRONMENT_PREFIX}ADDRESSES",
            metavar="ADDRESS...",
        ),
        *all_options(),
    ],
    callback=click.pass_context(prepare),
    short_help="Serve streams and datagrams until SIGTERM or SIGINT.",
    context_settings={"max_content_width": 100},
)

_commands = click.Group(
    "asyncserver",
    commands=[_serve, compat_command],
    params=[
        click.Option(
            ["--version"],
            is_flag=True,
            is_eager=True,
            expose_value=False,
            callback=_show_version,
            help="Show the version and exit.",
        )
    ],
    help="Run servers for TCP, TLS, UDP and Unix sockets.",
    no_args_is_help=True,
)
