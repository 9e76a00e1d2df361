"""A small authoritative name server: one function answers over UDP and over TCP.

Run it, from the repository's directory (it needs ``pip install dnspython``), and ask it::

    python docs/examples/dns_responder.py udp://127.0.0.1:5353 tcp://127.0.0.1:5353
    dig @127.0.0.1 -p 5353 www.example A
    dig @127.0.0.1 -p 5353 long.example TXT

The last answer does not fit in a UDP packet: it comes cut off, and ``dig`` asks again over TCP.
"""

from __future__ import annotations

import struct
import sys
from functools import partial

import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.opcode
import dns.rcode
import dns.rdataclass
import dns.rdatatype
import dns.rrset

from asyncserver import (
    DatagramServer,
    LengthPrefix,
    Responder,
    Server,
    Timeouts,
    UDPAddress,
    parse_address,
    run_server,
)

ZONE = dns.name.from_text("example.")

SOA = dns.rrset.from_text(ZONE, 60, "IN", "SOA", "ns.example. hostmaster.example. 1 3600 600 86400 60")
"""Says for how long it may be remembered that there is no such name."""

SENTENCE = '"A sentence of forty-eight bytes, many times over"'

RECORDS = {
    (records.name, records.rdtype): records
    for records in (
        SOA,
        dns.rrset.from_text("www.example.", 300, "IN", "A", "192.0.2.1", "192.0.2.2"),
        dns.rrset.from_text("www.example.", 300, "IN", "TXT", '"hello"'),
        dns.rrset.from_text("a.deep.example.", 300, "IN", "A", "192.0.2.3"),
        dns.rrset.from_text("medium.example.", 300, "IN", "TXT", " ".join([SENTENCE] * 16)),
        dns.rrset.from_text("long.example.", 300, "IN", "TXT", " ".join([SENTENCE] * 50)),
    )
}

HEADER = struct.Struct("!HHHHHH")
IS_RESPONSE = 0x8000
KEPT_FLAGS = 0x7900  # The kind of question, and whether recursion was wanted.

MOST_OVER_UDP = 1_232
"""Bytes that pass everywhere without being cut into fragments, which are easily lost or forged."""

MOST_WITHOUT_EDNS = 512


def respond(request: bytes, *, over_udp: bool) -> bytes | None:
    """The reply to a request. None to what is no request: no two servers shall answer each other for ever."""
    if len(request) < HEADER.size or HEADER.unpack_from(request)[1] & IS_RESPONSE:
        return None
    try:
        query = dns.message.from_wire(request)
    except (dns.exception.DNSException, ValueError):
        return format_error(request)
    most = min(max(query.payload, MOST_WITHOUT_EDNS), MOST_OVER_UDP) if over_udp else 65_535
    # What does not fit is left out, with the flag TC: "ask again over TCP" (RFC 2181, section 9).
    return answer(query).to_wire(max_size=most, prefer_truncation=True)


def answer(query: dns.message.Message) -> dns.message.Message:
    """What there is to be said to a query that could be read."""
    response = dns.message.make_response(query, our_payload=MOST_OVER_UDP)
    if query.edns > 0:
        response.set_rcode(dns.rcode.BADVERS)
    elif query.opcode() != dns.opcode.QUERY:
        response.set_rcode(dns.rcode.NOTIMP)
    elif len(query.question) != 1:
        response.set_rcode(dns.rcode.FORMERR)
    elif not query.question[0].name.is_subdomain(ZONE) or query.question[0].rdclass != dns.rdataclass.IN:
        response.set_rcode(dns.rcode.REFUSED)
    else:
        look_up(query.question[0], response)
    return response


def look_up(question: dns.rrset.RRset, response: dns.message.Message) -> None:
    """Put the records into the response, or say that there are none, or not even the name."""
    response.flags |= dns.flags.AA
    records = RECORDS.get((question.name, question.rdtype))
    if records is not None:
        response.answer.append(records)
        return
    response.authority.append(SOA)
    if not any(name.is_subdomain(question.name) for name, _ in RECORDS):
        response.set_rcode(dns.rcode.NXDOMAIN)


def format_error(request: bytes) -> bytes:
    """The reply to a request of which nothing but the header can be read."""
    number, flags, *_ = HEADER.unpack_from(request)
    return HEADER.pack(number, IS_RESPONSE | flags & KEPT_FLAGS | dns.rcode.FORMERR, 0, 0, 0, 0)


over_udp = Responder(partial(respond, over_udp=True), framing=LengthPrefix())
over_tcp = Responder(partial(respond, over_udp=False), framing=LengthPrefix())


def main(*texts: str) -> None:
    """Serve until a signal comes, on addresses of both kinds."""
    addresses = [parse_address(text) for text in texts or ("udp://127.0.0.1:5353", "tcp://127.0.0.1:5353")]
    packets = [address for address in addresses if isinstance(address, UDPAddress)]
    streams = [address for address in addresses if not isinstance(address, UDPAddress)]
    run_server(
        DatagramServer(over_udp, *packets),
        Server(over_tcp, *streams, timeouts=Timeouts(idle=10)),
        on_ready=lambda *servers: print(
            "listening on", *(address for server in servers for address in server.addresses), flush=True
        ),
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
