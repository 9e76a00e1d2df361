"""Every exception this package defines, split by whose fault it is.

::

    AsyncServerError
    |-- ConfigurationError (ValueError)         what was asked for cannot work
    |   |-- AddressError                        ... in an address: names the part and the value
    |   |-- OptionError                         ... in any other option: names it and its value
    |   `-- TLSConfigurationError               ... in certificates, keys or TLS options
    |-- StartError                              the options are fine, the machine says no
    |   |-- BindError (OSError)                 an address cannot be bound, adopted or listened on
    |   `-- LifespanError                       the lifespan context manager failed to start
    |-- ServerStateError (RuntimeError)         a call that does not fit the server's state
    |-- ConnectionTimeoutError (TimeoutError)   a peer or a handler overran one of its deadlines
    |-- TLSUpgradeError                         a peer's part in STARTTLS went wrong
    |-- FramingError                            a peer has sent what is no frame, or too long a one
    `-- DatagramError                           a packet cannot be sent
        |-- PacketTooLargeError (ValueError)    ... because of its size
        |-- UnboundPeerError                    ... because the peer has no name to send to
        |-- PeerUnreachableError (OSError)      ... because nobody is there, by all that is known
        `-- SendTimeoutError (TimeoutError)     ... because there was no room for it for too long

A peer that goes away, sends too much or stops in the middle of a message is told to handlers in
anyio's vocabulary (``EndOfStream``, ``BrokenResourceError``, ``ClosedResourceError``,
``BusyResourceError``, ``IncompleteRead``, ``DelimiterNotFound``), because a stream of this package
is an ``anyio.abc.SocketStream``.
"""

from __future__ import annotations

from anyio import BrokenResourceError

__all__ = [
    "AddressError",
    "AsyncServerError",
    "BindError",
    "ConfigurationError",
    "ConnectionTimeoutError",
    "DatagramError",
    "FramingError",
    "LifespanError",
    "OptionError",
    "PacketTooLargeError",
    "PeerUnreachableError",
    "SendTimeoutError",
    "ServerStateError",
    "StartError",
    "TLSConfigurationError",
    "TLSUpgradeError",
    "UnboundPeerError",
]


class AsyncServerError(Exception):
    """The root of this package's own exceptions."""


class ConfigurationError(AsyncServerError, ValueError):
    """What was asked for cannot work; nothing has been opened."""


class AddressError(ConfigurationError):
    """A part of an address is malformed.

    ``part`` names it (``"port"``, ``"scheme"``, ``"option mode"``), ``value`` is what stood there.
    """

    def __init__(self, part: str, value: object, reason: str) -> None:
        super().__init__(f"{part} {value!r}: {reason}")
        self.part = part
        self.value = value
        self.reason = reason

    def __reduce__(self) -> tuple[type[AddressError], tuple[str, object, str]]:
        return type(self), (self.part, self.value, self.reason)


class OptionError(ConfigurationError):
    """An option has a value that it cannot have; ``option`` names it, ``value`` is what was given."""

    def __init__(self, option: str, value: object, reason: str) -> None:
        super().__init__(f"{option}={value!r}: {reason}")
        self.option = option
        self.value = value
        self.reason = reason

    def __reduce__(self) -> tuple[type[OptionError], tuple[str, object, str]]:
        return type(self), (self.option, self.value, self.reason)


class TLSConfigurationError(ConfigurationError):
    """A certificate, key, CA file or TLS option cannot be used; the message names the file."""


class StartError(AsyncServerError):
    """The server cannot start on this machine as it is; whatever was opened is closed again."""


class BindError(StartError, OSError):
    """An address cannot be bound, adopted or listened on.

    ``address`` is the address as text; ``errno`` is the kernel's, where it was the kernel that refused.
    """

    def __init__(self, address: str, reason: str, errno: int | None = None) -> None:
        super().__init__(errno, f"cannot listen on {address}: {reason}")
        self.address = address
        self.reason = reason

    def __str__(self) -> str:
        return f"cannot listen on {self.address}: {self.reason}"

    def __reduce__(self) -> tuple[type[BindError], tuple[str, str, int | None]]:
        return type(self), (self.address, self.reason, self.errno)


class LifespanError(StartError):
    """The lifespan context manager raised on entry; its exception is the ``__cause__``."""


class ServerStateError(AsyncServerError, RuntimeError):
    """A call that does not fit the state that the server is in (started twice, not started)."""


class ConnectionTimeoutError(AsyncServerError, TimeoutError):
    """A deadline of ``Timeouts`` has passed; raised from the ``receive`` that was waiting.

    ``deadline`` is the name of the field of ``Timeouts``, ``seconds`` its value.
    """

    def __init__(self, deadline: str, seconds: float) -> None:
        super().__init__(f"{deadline} timeout of {seconds:g} s passed")
        self.deadline = deadline
        self.seconds = seconds

    def __reduce__(self) -> tuple[type[ConnectionTimeoutError], tuple[str, float]]:
        return type(self), (self.deadline, self.seconds)


class TLSUpgradeError(AsyncServerError, BrokenResourceError):
    """``start_tls`` failed: the handshake did, or plain text had been sent beyond the command."""


class FramingError(AsyncServerError):
    """A peer has sent what is no frame, or one that is too long. Raised by ``Framing.read()``.

    A handler need not catch it: it ends the connection, as ``CloseReason.PROTOCOL_ERROR``.
    """


class DatagramError(AsyncServerError):
    """A packet cannot be sent. What gets lost in the network raises nothing: there, nobody knows."""


class PacketTooLargeError(DatagramError, ValueError):
    """More bytes than fit in a packet, here or on the way; ``limit`` is the most, or None if not known."""

    def __init__(self, size: int, limit: int | None) -> None:
        at_most = "the kernel takes" if limit is None else f"{limit} that fit in a packet"
        super().__init__(f"{size} bytes are more than {at_most}")
        self.size = size
        self.limit = limit

    def __reduce__(self) -> tuple[type[PacketTooLargeError], tuple[int, int | None]]:
        return type(self), (self.size, self.limit)


class UnboundPeerError(DatagramError):
    """A Unix peer that has not bound its socket to a name cannot be answered."""

    def __init__(self) -> None:
        super().__init__("the peer has not bound its socket to a name, so nothing can be sent to it")

    def __reduce__(self) -> tuple[type[UnboundPeerError], tuple[()]]:
        return type(self), ()


class PeerUnreachableError(DatagramError, OSError):
    """The peer's host or a router said that nobody can be reached there; or a Unix peer's socket is gone.

    ``peer`` is the peer as text, ``errno`` says what it was (``ECONNREFUSED``: nobody listens).
    """

    def __init__(self, peer: str, errno: int, reason: str) -> None:
        super().__init__(errno, f"{peer} cannot be reached: {reason}")
        self.peer = peer
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.peer} cannot be reached: {self.reason}"

    def __reduce__(self) -> tuple[type[PeerUnreachableError], tuple[str, int | None, str]]:
        return type(self), (self.peer, self.errno, self.reason)


class SendTimeoutError(DatagramError, TimeoutError):
    """There was no room for a packet within ``DatagramTimeouts.send``, which are the ``seconds``."""

    def __init__(self, seconds: float) -> None:
        super().__init__(f"no room for the packet within {seconds:g} s")
        self.seconds = seconds

    def __reduce__(self) -> tuple[type[SendTimeoutError], tuple[float]]:
        return type(self), (self.seconds,)
