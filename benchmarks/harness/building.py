"""Build the native parts, and ask an interpreter what it has."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

HERE = Path(__file__).resolve().parent.parent
BUILD = HERE / "build"
LOADGEN = BUILD / "loadgen"


def build_loadgen() -> bool:
    """Build the load generator; return whether it knows TLS."""
    subprocess.run(["make", "-s", "-C", str(HERE / "loadgen"), f"BUILD={BUILD}"], check=True)
    features = subprocess.run([LOADGEN, "--features"], capture_output=True, text=True, check=True)
    return "tls" in features.stdout.split()


def build_native_server(binary: str) -> str | None:
    """Build a server from C or Go; return why that is not possible, or None."""
    compiler, arguments = {
        "libuv_echo": ("gcc", ["-O2", "-Wall", "-o", str(BUILD / binary), "libuv_echo.c", "-luv"]),
        "libuv_datagrams": ("gcc", ["-O2", "-Wall", "-o", str(BUILD / binary), "libuv_datagrams.c", "-luv"]),
        "batched_datagrams": ("gcc", ["-O2", "-Wall", "-o", str(BUILD / binary), "batched_datagrams.c"]),
        "go_echo": ("go", ["build", "-o", str(BUILD / binary), "echo.go"]),
    }[binary]
    if not shutil.which(compiler):
        return f"{compiler} is not installed"
    done = subprocess.run(
        [compiler, *arguments],
        cwd=HERE / "servers",
        capture_output=True,
        text=True,
        check=False,
        env=_build_environment(),
    )
    lines = done.stderr.strip().splitlines()
    return None if done.returncode == 0 else f"does not build: {lines[0] if lines else 'no message'}"


def missing_modules(python: str, names: tuple[str, ...]) -> list[str]:
    """Return which of `names` the interpreter `python` cannot import."""
    ask = (
        "import importlib.util, sys; print(*[n for n in sys.argv[1:] if importlib.util.find_spec(n) is None])"
    )
    done = subprocess.run([python, "-c", ask, *names], capture_output=True, text=True, check=True, timeout=60)
    return done.stdout.split()


def _build_environment() -> dict[str, str]:
    return {"GO111MODULE": "off", "GOFLAGS": "", "GOCACHE": str(BUILD / "go-cache"), **os.environ}
