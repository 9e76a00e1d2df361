"""The entry point of the command ``asyncserver``. The rest is in the ``cli_*`` modules, which need click."""

from __future__ import annotations

import importlib.util
import sys

__all__ = ["main"]


def main() -> None:
    """Run the command line of this process, and end the process with its status."""
    if importlib.util.find_spec("click") is None:
        sys.stderr.write("asyncserver: the command line needs click: pip install click\n")
        sys.exit(2)
    from asyncserver.cli_commands import run_command

    sys.exit(run_command(sys.argv[1:]))
