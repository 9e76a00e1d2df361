"""What the figures were measured on: the CPU, the kernel's series and the versions, no names of machines."""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

LIBRARIES = ("uvloop", "anyio", "trio", "tornado", "twisted", "gevent")

_ASK_VERSIONS = """
import importlib.metadata, importlib.util, json, platform, ssl, sys
versions = {}
for name in sys.argv[1:]:
    if importlib.util.find_spec(name):
        versions[name] = importlib.metadata.version(name)
print(json.dumps([platform.python_version(), ssl.OPENSSL_VERSION, versions]))
"""


@dataclass(frozen=True, slots=True)
class Machine:
    """Hardware, kernel, interpreter and libraries of a run."""

    cpu: str
    cores: int
    kernel: str
    python: str
    openssl: str
    libraries: dict[str, str]

    def describe(self) -> str:
        """Return one paragraph for the head of a report."""
        libraries = ", ".join(f"{name} {version}" for name, version in self.libraries.items())
        return (
            f"{self.cpu}, {self.cores} cores used for the servers and the load, kernel {self.kernel}, "
            f"CPython {self.python}, {self.openssl}. {libraries}."
        )


def cpu_model() -> str:
    """Return the CPU's name as the kernel tells it."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor() or platform.machine()
    found = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return found.group(1).strip() if found else platform.machine()


def identify(python: str) -> Machine:
    """Describe this machine and the interpreter `python` that runs the servers."""
    answer = subprocess.run(
        [python, "-c", _ASK_VERSIONS, *LIBRARIES], capture_output=True, text=True, check=True, timeout=60
    )
    version, openssl, libraries = json.loads(answer.stdout)
    kernel = ".".join(platform.release().split(".")[:2])
    return Machine(cpu_model(), len(os.sched_getaffinity(0)), kernel, version, openssl, libraries)
