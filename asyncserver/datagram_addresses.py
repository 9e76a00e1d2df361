"""Where to receive datagrams: the addresses that only a ``DatagramServer`` takes. No I/O happens here.

Their string form is read by ``asyncserver.addresses``, with that of all other addresses.
"""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass

from asyncserver import address_rules as rules
from asyncserver.address_text import bracketed, format_address

__all__ = ["UDPAddress", "UnixDatagramAddress"]


@dataclass(frozen=True, slots=True)
class UDPAddress:
    """A host and a port to receive datagrams on. Raises ``AddressError`` for a part that cannot be."""

    host: str = ""
    """A host name (datagrams to all its addresses are received), an IP address without brackets, or ""
    (also written "*") for every interface: 0.0.0.0 and [::], or 0.0.0.0 alone on a machine without IPv6.
    A multicast address receives what is sent to this group alone; the group is still to be joined
    (``DatagramOptions.groups``)."""

    port: int = 0
    """0 lets the kernel choose a free port, the same one for all families of the host."""

    _: KW_ONLY

    dual_stack: bool | None = None
    """For hosts "::" and "": True opens one IPv6 socket that takes IPv4 datagrams too. False and None
    keep the families apart: "::" is then IPv6 alone, and "" two sockets. An error for other hosts."""

    reuse_port: bool | None = None
    """SO_REUSEPORT; None leaves it to ``DatagramOptions.reuse_port``."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "host", rules.check_host(self.host))
        rules.check_port(self.port)
        rules.check_dual_stack(self.dual_stack, self.host)
        rules.check_flag("option reuse_port", self.reuse_port)

    def __str__(self) -> str:
        options = {"dual_stack": self.dual_stack, "reuse_port": self.reuse_port}
        return format_address("udp", False, f"//{bracketed(self.host)}:{self.port}", options)


@dataclass(frozen=True, slots=True)
class UnixDatagramAddress:
    """A Unix datagram socket to receive on. Raises ``AddressError`` for a part that cannot be.

    ``user``, ``group`` and ``mode`` are in force before the first datagram can come. Sending takes
    the permission to write to the socket's file, and to search the directories above it.
    """

    path: str
    """A path of at most 107 bytes (103 on macOS), or ``@name`` in Linux's abstract namespace. A file
    whose name begins with @ is written ``./@name``."""

    _: KW_ONLY

    mode: int | None = None
    """Permission bits, 0 to 0o777. None stands for 0o660 where a ``group`` is given (a group that may not
    write could not send), else for what the process's umask leaves, as with a plain bind(2): 0o755 as
    a rule, with which the owner alone can send."""

    user: str | int | None = None
    """The owner, by name or number; None leaves it to be the process's."""

    group: str | int | None = None
    """The group, by name or number; None leaves it to be the process's (or the directory's)."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "path", rules.check_unix_path(self.path))
        rules.check_mode(self.mode)
        object.__setattr__(self, "user", rules.check_owner("user", self.user))
        object.__setattr__(self, "group", rules.check_owner("group", self.group))
        if self.is_abstract:
            rules.check_nothing_about_a_file(self.mode, self.user, self.group)

    def __str__(self) -> str:
        mode = None if self.mode is None else f"{self.mode:03o}"
        options = {"mode": mode, "user": self.user, "group": self.group}
        slashes = "//" if self.path.startswith("/") else ""
        return format_address("unixgram", False, slashes + rules.percent_encode(self.path, "/@"), options)

    @property
    def is_abstract(self) -> bool:
        """Whether this is a name in Linux's abstract namespace, without a file."""
        return self.path.startswith("@")
