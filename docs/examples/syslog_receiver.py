"""A syslog server: RFC 5424 and RFC 3164, over UDP, Unix datagrams and TCP; prints one line for each message.

Run it, from the repository's directory, and log to it with ``logger`` of util-linux::

    python docs/examples/syslog_receiver.py udp://127.0.0.1:5514 tcp://127.0.0.1:5514 'unixgram:log?mode=666'
    logger --server 127.0.0.1 --port 5514 --udp hello
    logger --server 127.0.0.1 --port 5514 --tcp --octet-count hello
    logger --socket log hello

or with ``logging.handlers.SysLogHandler`` (over TCP with ``append_nul = False`` and a format that ends with a
line feed, since its NUL is no delimiter that RFC 6587 knows).
"""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

from asyncserver import (
    Datagram,
    DatagramLimits,
    DatagramServer,
    Endpoint,
    IPEndpoint,
    Server,
    Stream,
    SyslogFrames,
    Timeouts,
    UDPAddress,
    UnixDatagramAddress,
    parse_address,
    run_server,
)

MOST = 8_192
"""Bytes of a message. Longer ones are cut off in packets, and end the connection on streams."""

FACILITIES = [
    *("kern", "user", "mail", "daemon", "auth", "syslog", "lpr", "news"),
    *("uucp", "cron", "authpriv", "ftp", "ntp", "audit", "alert", "clock"),
    *("local0", "local1", "local2", "local3", "local4", "local5", "local6", "local7"),
]
SEVERITIES = ["emerg", "alert", "crit", "err", "warning", "notice", "info", "debug"]

PRIORITY = re.compile(r"<(\d{1,3})>")

RFC5424 = re.compile(
    r"1 (?P<time>\S+) (?P<host>\S+) (?P<app>\S+) (?P<pid>\S+) \S+ "
    r'(?:-|(?:\[[^ =\]"]+(?: [^ =\]"]+="(?:\\.|[^"\\\]])*")*\])+)'
    r"(?: \ufeff?(?P<text>.*))?",
    re.DOTALL,
)

# The host is left out by those who write to their own machine's socket.
RFC3164 = re.compile(
    r"[A-Z][a-z]{2} [ \d]\d \d\d:\d\d:\d\d "
    r"(?:(?P<host>[^\s:\[]+) )?(?P<app>[^\s:\[]{1,48})(?:\[(?P<pid>[^\]\s]*)\])?: ?(?P<text>.*)",
    re.DOTALL,
)


@dataclass
class Message:
    """What a message says; what it does not say is what the receiver knows."""

    time: str
    host: str
    app: str = "-"
    pid: str = "-"
    priority: int = 13  # user.notice, by RFC 3164, section 4.3.3
    text: str = ""

    def __str__(self) -> str:
        facility, severity = FACILITIES[self.priority >> 3], SEVERITIES[self.priority & 7]
        line = f"{self.time} {self.host} {self.app}[{self.pid}] {facility}.{severity}: {self.text}"
        # One line is one message: nobody writes a second one, or to a terminal, by what is in it.
        return "".join(each if each.isprintable() else f"\\x{ord(each):02x}" for each in line)


def parse(data: bytes, host: str, received_at: float) -> Message:
    """Make what can be made of a message: there is no other way than to take all that come."""
    text = data.decode(errors="replace").rstrip("\r\n\0")
    received = datetime.fromtimestamp(received_at, UTC).isoformat(timespec="milliseconds")
    message = Message(received, host, text=text)
    start = PRIORITY.match(text)
    if start is None or int(start[1]) >= 8 * len(FACILITIES):
        return message
    message.priority = int(start[1])
    message.text = text[start.end() :]
    found = RFC5424.fullmatch(message.text) or RFC3164.fullmatch(message.text)
    if found is not None:
        message.text = ""
        for name, value in found.groupdict().items():
            if value not in (None, "-"):
                setattr(message, name, value)
    return message


class SyslogReceiver:
    """The handlers for both kinds of servers."""

    def __init__(self, write: Callable[[str], object]) -> None:
        """``write`` is called in the event loop with each line."""
        self.write = write

    async def packet(self, datagram: Datagram) -> None:
        """Take one message."""
        received_at = datagram.received_at or time.time()
        message = parse(datagram.data, host_of(datagram.peer), received_at)
        if datagram.credentials is not None:
            message.pid = str(datagram.credentials.pid)  # The kernel's word, and not the sender's.
        self.write(str(message))

    async def stream(self, stream: Stream) -> None:
        """Take messages, framed in either way, until the sender has no more."""
        framing, host = SyslogFrames(), host_of(stream.peer)
        while (data := await framing.read(stream, MOST)) is not None:
            self.write(str(parse(data, host, time.time())))


def host_of(peer: Endpoint) -> str:
    """Where it comes from, if it does not say so itself."""
    return peer.host if isinstance(peer, IPEndpoint) else "localhost"


def main(*texts: str) -> None:
    """Serve until a signal comes."""
    addresses = [parse_address(text) for text in texts or ("udp://127.0.0.1:5514", "tcp://127.0.0.1:5514")]
    packets = [each for each in addresses if isinstance(each, UDPAddress | UnixDatagramAddress)]
    streams = [each for each in addresses if not isinstance(each, UDPAddress | UnixDatagramAddress)]
    receiver = SyslogReceiver(lambda line: print(line, flush=True))
    servers: list[Server | DatagramServer] = []
    if packets:
        servers.append(DatagramServer(receiver.packet, *packets, limits=DatagramLimits(max_packet_size=MOST)))
    if streams:
        servers.append(Server(receiver.stream, *streams, timeouts=Timeouts(first_byte=None, idle=None)))
    run_server(
        *servers,
        on_ready=lambda *servers: print(
            "listening on", *(address for server in servers for address in server.addresses), flush=True
        ),
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
