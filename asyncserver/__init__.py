"""A framework for TCP, TLS, UDP and Unix-socket servers on asyncio."""

# General layout. Each layer imports from those below it only; tests/test_layers.py holds that.
#
#   4 tools      cli, loading, __main__                  on the public names below alone
#   3 server     lifecycle: what all servers have in     composition: what a program calls
#                common; server, datagram_server,
#                handlers, responding, runner, signals,
#                loops
#   2 roles      listener (one bound socket),            one role a file
#                connection (one task) and its ending,
#                connections, admission, hub, draining,
#                deadlines, blame; datagram,
#                datagram_endpoint (one bound socket),
#                what serves packets (dispatch, queue,
#                worker) or peers (session, sessions)
#   1 transport  sockets and what opens them; tls;       readiness and bytes
#                stream: stepping, channel, receiving,
#                sending, closing, poller; peers;
#                packets, ancillary, multicast
#   0 values     addresses, options, limits, states,     no asyncio, no I/O
#                statistics, errors

from asyncserver.addresses import (
    Address,
    DatagramAddress,
    Endpoint,
    FDAddress,
    IPEndpoint,
    StreamAddress,
    SystemdAddress,
    TCPAddress,
    UDPAddress,
    UnixAddress,
    UnixDatagramAddress,
    UnixEndpoint,
    parse_address,
)
from asyncserver.connection import Connection, ConnectionLogFilter, current_connection
from asyncserver.connections import Connections
from asyncserver.datagram import Datagram
from asyncserver.datagram_endpoint import DatagramEndpoint
from asyncserver.datagram_handlers import AnyDatagramHandler, DatagramHandler, SessionHandler, sessions
from asyncserver.datagram_limits import DatagramLimits, DatagramTimeouts
from asyncserver.datagram_options import DatagramOptions, MulticastGroup
from asyncserver.datagram_server import (
    DatagramLifespan,
    DatagramServer,
    DatagramServerOptions,
    serve_datagrams,
)
from asyncserver.datagram_statistics import DatagramStatistics, EndpointStatistics, SessionEnd
from asyncserver.errors import (
    AddressError,
    AsyncServerError,
    BindError,
    ConfigurationError,
    ConnectionTimeoutError,
    DatagramError,
    FramingError,
    LifespanError,
    OptionError,
    PacketTooLargeError,
    PeerUnreachableError,
    SendTimeoutError,
    ServerStateError,
    StartError,
    TLSConfigurationError,
    TLSUpgradeError,
    UnboundPeerError,
)
from asyncserver.handlers import Handler, StreamHandler, Verify
from asyncserver.limits import Limits, Timeouts
from asyncserver.listener import Listener
from asyncserver.loops import LoopName, loop_factory
from asyncserver.memory import memory_stream_pair
from asyncserver.options import KeepAlive, SocketOptions
from asyncserver.peers import PeerCredentials
from asyncserver.receiving import LineIterator
from asyncserver.responding import (
    Framing,
    LengthPrefix,
    Lines,
    OctetCounted,
    Respond,
    Responder,
    SyslogFrames,
)
from asyncserver.runner import run, run_datagrams, run_server
from asyncserver.server import Lifespan, Server, ServerOptions, serve
from asyncserver.session import Session
from asyncserver.states import CloseReason, ConnectionState
from asyncserver.statistics import DrainReport, ListenerStatistics, ServerStatistics
from asyncserver.stream import Stream
from asyncserver.tls import PeerCertificate, TLSConfig, TLSSource

__version__ = "0.1.0.dev0"

__all__ = [
    "Address",
    "AddressError",
    "AnyDatagramHandler",
    "AsyncServerError",
    "BindError",
    "CloseReason",
    "ConfigurationError",
    "Connection",
    "ConnectionLogFilter",
    "ConnectionState",
    "ConnectionTimeoutError",
    "Connections",
    "Datagram",
    "DatagramAddress",
    "DatagramEndpoint",
    "DatagramError",
    "DatagramHandler",
    "DatagramLifespan",
    "DatagramLimits",
    "DatagramOptions",
    "DatagramServer",
    "DatagramServerOptions",
    "DatagramStatistics",
    "DatagramTimeouts",
    "DrainReport",
    "Endpoint",
    "EndpointStatistics",
    "FDAddress",
    "Framing",
    "FramingError",
    "Handler",
    "IPEndpoint",
    "KeepAlive",
    "LengthPrefix",
    "Lifespan",
    "LifespanError",
    "Limits",
    "LineIterator",
    "Lines",
    "Listener",
    "ListenerStatistics",
    "LoopName",
    "MulticastGroup",
    "OctetCounted",
    "OptionError",
    "PacketTooLargeError",
    "PeerCertificate",
    "PeerCredentials",
    "PeerUnreachableError",
    "Respond",
    "Responder",
    "SendTimeoutError",
    "Server",
    "ServerOptions",
    "ServerStateError",
    "ServerStatistics",
    "Session",
    "SessionEnd",
    "SessionHandler",
    "SocketOptions",
    "StartError",
    "Stream",
    "StreamAddress",
    "StreamHandler",
    "SyslogFrames",
    "SystemdAddress",
    "TCPAddress",
    "TLSConfig",
    "TLSConfigurationError",
    "TLSSource",
    "TLSUpgradeError",
    "Timeouts",
    "UDPAddress",
    "UnboundPeerError",
    "UnixAddress",
    "UnixDatagramAddress",
    "UnixEndpoint",
    "Verify",
    "__version__",
    "current_connection",
    "loop_factory",
    "memory_stream_pair",
    "parse_address",
    "run",
    "run_datagrams",
    "run_server",
    "serve",
    "serve_datagrams",
    "sessions",
]
