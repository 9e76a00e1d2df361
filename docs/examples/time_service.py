"""A time server: SNTP (RFC 5905, section 14), with the kernel's receive timestamp.

Run it, from the repository's directory, and ask it with an NTP client that lets you choose the port, such as
``pip install ntplib``, which prints by how many seconds the clocks differ::

    python docs/examples/time_service.py udp://127.0.0.1:1123
    python -c 'import ntplib; print(ntplib.NTPClient().request("127.0.0.1", port=1123).offset)'
"""

from __future__ import annotations

import struct
import sys
import time

from asyncserver import Datagram, run_datagrams

PACKET = struct.Struct("!BBbb II4s QQQQ")
"""Leap indicator, version and mode; stratum, poll, precision; root delay, root dispersion, reference id; the
times of the last synchronisation, of the request's departure and arrival, and of the reply's departure."""

CLIENT, SERVER = 3, 4
VERSIONS = range(1, 5)

STRATUM = 1
REFERENCE = b"LOCL"
"""This machine's own clock, which nobody has calibrated."""

PRECISION = -20
"""As a power of two, in seconds: about a microsecond."""

SECONDS_BEFORE_1970 = 2_208_988_800
"""NTP counts from 1900."""


async def time_service(datagram: Datagram) -> None:
    """Answer one request; anything else gets no answer.

    The reply is no longer than the request, so that the server is of no use to those who write the address
    of a victim into their packets; and replies are not answered, so that no two servers can be made to talk
    to each other for ever.
    """
    if len(datagram.data) < PACKET.size:
        return
    first, _, poll, *_, departed = PACKET.unpack_from(datagram.data)
    version, mode = first >> 3 & 7, first & 7
    if mode != CLIENT or version not in VERSIONS:
        return
    # When this handler runs is not when the packet came: the server may have been busy. The kernel knows.
    arrived = datagram.received_at or time.time()
    now = time.time()
    await datagram.reply(
        PACKET.pack(
            *(version << 3 | SERVER, STRATUM, poll, PRECISION),
            *(0, 0, REFERENCE),
            *(timestamp(now), departed, timestamp(arrived), timestamp(now)),
        )
    )


def timestamp(seconds: float) -> int:
    """Of ``time.time()``, as NTP has it: 32 bits of seconds, which begin anew in 2036, and 32 below."""
    return int((seconds + SECONDS_BEFORE_1970) * 2**32) % 2**64


def main(*addresses: str) -> None:
    """Serve until a signal comes."""
    run_datagrams(
        time_service,
        *(addresses or ("udp://127.0.0.1:1123",)),
        on_ready=lambda server: print("listening on", *server.addresses, flush=True),
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
