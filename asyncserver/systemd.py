"""The descriptors that systemd passes to a socket-activated process (sd_listen_fds(3)).

Any other service manager, and ``systemd-socket-activate``, can pass them in the same way: as descriptors
3, 4, ... and three environment variables, LISTEN_PID, LISTEN_FDS and LISTEN_FDNAMES.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field

from asyncserver.addresses import SystemdAddress
from asyncserver.errors import BindError

__all__ = ["PassedDescriptors", "read_environment", "systemd_descriptors"]

_FIRST_DESCRIPTOR = 3
# What systemd itself calls descriptors of whose names it was told nothing.
_NO_NAME = "unknown"
_VARIABLES = ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", "LISTEN_PIDFDID")


@dataclass(frozen=True, slots=True)
class PassedDescriptors:
    """The descriptors by their names; ``problem`` tells why there are none, if they cannot be used."""

    by_name: Mapping[str, tuple[int, ...]] = field(default_factory=dict[str, tuple[int, ...]])
    problem: str | None = None

    def named(self, name: str) -> tuple[int, ...]:
        """Those of this name, or all of them for ""."""
        if name:
            return self.by_name.get(name, ())
        return tuple(sorted(descriptor for group in self.by_name.values() for descriptor in group))


_lock = threading.Lock()
_taken: PassedDescriptors | None = None


def systemd_descriptors(address: SystemdAddress) -> tuple[int, ...]:
    """The descriptors that were passed under the address's name; several for a unit with several sockets.

    They stay open as long as the process lives (systemd keeps its own anyway), so that a server can
    be stopped and started again: adopt duplicates. The first call takes the environment variables
    away, since child processes would think that they are meant for them, and makes the descriptors close on
    exec. What the variables said is kept, so any number of addresses and servers can ask.

    Raises ``BindError`` if there are none of this name.
    """
    passed = _take()
    if passed is None:
        raise BindError(
            str(address),
            "no sockets were passed to this process (LISTEN_FDS is not set); start it through a socket unit, "
            "or try it with `systemd-socket-activate --listen=9999 --fdname=NAME PROGRAM`",
        )
    if passed.problem is not None:
        raise BindError(str(address), passed.problem)
    descriptors = passed.named(address.name)
    if not descriptors:
        known = ", ".join(sorted(passed.by_name))
        raise BindError(
            str(address),
            f"no socket of this name was passed, only: {known} (FileDescriptorName= in the unit)",
        )
    return descriptors


def _take() -> PassedDescriptors | None:
    global _taken  # noqa: PLW0603  # the environment is the process's, and so is what it said
    with _lock:
        if _taken is None and "LISTEN_FDS" in os.environ:
            _taken = _without_inheritance(read_environment(os.environ, os.getpid()))
            for variable in _VARIABLES:
                os.environ.pop(variable, None)
        return _taken


def read_environment(environment: Mapping[str, str], process: int) -> PassedDescriptors:
    """What the three variables say to the process with this id; no descriptor is touched."""
    meant_for = environment.get("LISTEN_PID", "")
    count_text = environment.get("LISTEN_FDS", "")
    if not _is_number(meant_for):
        return PassedDescriptors(problem=f"LISTEN_PID={meant_for!r} is not a process id")
    if int(meant_for) != process:
        return PassedDescriptors(
            problem=f"the sockets were passed to process {meant_for}, and this one is {process}; a program "
            "that wraps the server has to replace itself with it (exec in a shell script)"
        )
    if not _is_number(count_text) or int(count_text) == 0:
        return PassedDescriptors(problem=f"LISTEN_FDS={count_text!r} is not a number of sockets")
    count = int(count_text)
    names = _names(environment, count)
    if len(names) != count:
        return PassedDescriptors(
            problem=f"LISTEN_FDNAMES has {len(names)} names for LISTEN_FDS={count} sockets"
        )
    by_name: dict[str, tuple[int, ...]] = {}
    for descriptor, name in enumerate(names, _FIRST_DESCRIPTOR):
        by_name[name] = (*by_name.get(name, ()), descriptor)
    return PassedDescriptors(by_name)


def _names(environment: Mapping[str, str], count: int) -> list[str]:
    text = environment.get("LISTEN_FDNAMES")
    return [_NO_NAME] * count if text is None else [name or _NO_NAME for name in text.split(":")]


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) < 10


def _without_inheritance(passed: PassedDescriptors) -> PassedDescriptors:
    for descriptor in passed.named(""):
        try:
            os.set_inheritable(descriptor, False)
        except OSError as error:
            reason = os.strerror(error.errno or 0)
            return PassedDescriptors(problem=f"LISTEN_FDS promises descriptor {descriptor}: {reason}")
    return passed
