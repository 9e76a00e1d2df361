"""``asyncserver compat``: a socketserver program, unchanged, on the engine of this package."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import click

import asyncserver

__all__ = ["compat_command"]


def _run(arguments: tuple[str, ...]) -> None:
    """Become ``python .../compat arguments``.

    In a process of its own, which has imported none of the command line's modules; by its path, so
    that a module of the program that is called ``compat`` as well is not taken for it.
    """
    package = Path(asyncserver.__file__ or "").parent.parent / "compat"
    interpreter: Any = subprocess
    flags: list[str] = interpreter._args_from_interpreter_flags()
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(sys.executable, [sys.executable, *flags, str(package), *arguments])


compat_command: click.Command = click.Command(
    "compat",
    params=[click.Argument(["arguments"], nargs=-1, type=click.UNPROCESSED)],
    callback=_run,
    short_help="Run a socketserver program unchanged.",
    # Everything is for the program, or for `python -m compat`, --help included.
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False},
    add_help_option=False,
)
