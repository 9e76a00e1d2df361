"""Running a piece of code as a user without privileges, in a process of its own.

Root is told about permissions by nothing, so what is tested of them needs another user. If the tests
run as a normal user already, that user it is.
"""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

_NOBODY = 65534

# Everything is imported first: the interpreter itself may be out of the other user's reach.
_PRELUDE = f"""
import errno, os, socket, stat, sys, tempfile, encodings.ascii, encodings.idna
from asyncserver.addresses import *
from asyncserver.errors import *
from asyncserver.options import *
from asyncserver.sockets import *
from asyncserver import peers
if os.geteuid() == 0:
    os.setgroups([])
    os.setgid({_NOBODY})
    os.setuid({_NOBODY})
"""


def run_unprivileged(code: str, *arguments: str, timeout: float = 30) -> str:
    """What ``code`` prints; its arguments are ``sys.argv[1:]``. Raises ``AssertionError`` if it fails."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", _PRELUDE + textwrap.dedent(code), *arguments],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)},
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()
