"""A framework for TCP, TLS and Unix-socket servers on asyncio."""

# General layout. Each layer imports from those below it only; tests/test_layers.py holds that.
#
#   4 tools      cli, loading, __main__                  on the public names below alone
#   3 server     server, draining, handlers, runner,     composition: what a program calls
#                signals, loops
#   2 roles      listener (one bound socket),            one role a file
#                connection (one task) and its ending,
#                connections, admission, hub,
#                deadlines, blame
#   1 transport  sockets and what opens them;            readiness and bytes
#                stream: stepping, channel, receiving,
#                sending, closing, poller; tls; peers
#   0 values     addresses, options, limits, states,     no asyncio, no I/O
#                statistics, errors

from asyncserver.addresses import (
    Address,
    Endpoint,
    FDAddress,
    IPEndpoint,
    SystemdAddress,
    TCPAddress,
    UnixAddress,
    UnixEndpoint,
    parse_address,
)
from asyncserver.connection import Connection, ConnectionLogFilter, current_connection
from asyncserver.connections import Connections
from asyncserver.errors import (
    AddressError,
    AsyncServerError,
    BindError,
    ConfigurationError,
    ConnectionTimeoutError,
    LifespanError,
    OptionError,
    ServerStateError,
    StartError,
    TLSConfigurationError,
    TLSUpgradeError,
)
from asyncserver.handlers import Handler, StreamHandler, Verify
from asyncserver.limits import Limits, Timeouts
from asyncserver.listener import Listener
from asyncserver.loops import LoopName, loop_factory
from asyncserver.options import KeepAlive, SocketOptions
from asyncserver.peers import PeerCredentials
from asyncserver.receiving import LineIterator
from asyncserver.runner import run, run_server
from asyncserver.server import Lifespan, Server, serve
from asyncserver.states import CloseReason, ConnectionState
from asyncserver.statistics import DrainReport, ListenerStatistics, ServerStatistics
from asyncserver.stream import Stream
from asyncserver.tls import PeerCertificate, TLSConfig, TLSSource

__version__ = "0.1.0.dev0"

__all__ = [
    "Address",
    "AddressError",
    "AsyncServerError",
    "BindError",
    "CloseReason",
    "ConfigurationError",
    "Connection",
    "ConnectionLogFilter",
    "ConnectionState",
    "ConnectionTimeoutError",
    "Connections",
    "DrainReport",
    "Endpoint",
    "FDAddress",
    "Handler",
    "IPEndpoint",
    "KeepAlive",
    "Lifespan",
    "LifespanError",
    "Limits",
    "LineIterator",
    "Listener",
    "ListenerStatistics",
    "LoopName",
    "OptionError",
    "PeerCertificate",
    "PeerCredentials",
    "Server",
    "ServerStateError",
    "ServerStatistics",
    "SocketOptions",
    "StartError",
    "Stream",
    "StreamHandler",
    "SystemdAddress",
    "TCPAddress",
    "TLSConfig",
    "TLSConfigurationError",
    "TLSSource",
    "TLSUpgradeError",
    "Timeouts",
    "UnixAddress",
    "UnixEndpoint",
    "Verify",
    "__version__",
    "current_connection",
    "loop_factory",
    "parse_address",
    "run",
    "run_server",
    "serve",
]
