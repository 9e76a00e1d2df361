"""Publish and subscribe on Twisted: the program that howto/migrate-from-twisted.md begins with.

It needs Twisted. Run it, from the repository's directory, with a port (0: a free one), and try it::

    python docs/examples/from_twisted_before.py 9999
    nc 127.0.0.1 9999

Commands: ``subscribe TOPIC``, ``publish TOPIC TEXT``, ``digest TEXT``, ``quit``.
"""

from __future__ import annotations

import hashlib
import sys
from collections import defaultdict

from twisted.internet import endpoints, error, reactor, threads
from twisted.internet.protocol import Factory
from twisted.protocols.basic import LineReceiver
from twisted.protocols.policies import TimeoutMixin


class Subscriber(LineReceiver, TimeoutMixin):
    """One client."""

    delimiter = b"\n"
    MAX_LENGTH = 1_000

    def connectionMade(self) -> None:  # noqa: N802
        """Begin to watch the client."""
        self.setTimeout(600)

    def lineReceived(self, line: bytes) -> None:  # noqa: N802
        """Carry out one command."""
        self.resetTimeout()
        match line.split(b" ", 2):
            case [b"subscribe", topic]:
                self.factory.subscribers[topic].add(self)
                self.sendLine(b"ok")
            case [b"publish", topic, text]:
                subscribers = self.factory.subscribers[topic]
                for subscriber in subscribers:
                    subscriber.sendLine(topic + b": " + text)
                self.sendLine(b"told %d" % len(subscribers))
            case [b"digest", *words]:
                deferred = threads.deferToThread(slow_digest, b" ".join(words))
                deferred.addCallback(self.sendLine)
            case [b"quit"]:
                self.sendLine(b"goodbye")
                self.transport.loseConnection()
            case _:
                self.sendLine(b"commands: subscribe, publish, digest, quit")

    def connectionLost(self, reason: object) -> None:  # noqa: N802
        """Forget the client."""
        self.setTimeout(None)
        for subscribers in self.factory.subscribers.values():
            subscribers.discard(self)
        if not reason.check(error.ConnectionDone):
            print("lost a client:", reason.getErrorMessage(), flush=True)


class PubSub(Factory):
    """What the clients share."""

    protocol = Subscriber

    def __init__(self) -> None:
        self.subscribers: defaultdict[bytes, set[Subscriber]] = defaultdict(set)


def slow_digest(text: bytes) -> bytes:
    """Takes a moment of CPU, and so has to be called in a thread."""
    return hashlib.pbkdf2_hmac("sha256", text, b"salt", 20_000).hex().encode()


def main(port: str = "9999") -> None:
    """Serve until a signal stops the reactor."""
    endpoint = endpoints.serverFromString(reactor, f"tcp:{port}:interface=127.0.0.1")
    listening = endpoint.listen(PubSub())
    listening.addCallback(lambda bound: print("listening on port", bound.getHost().port, flush=True))
    reactor.run()


if __name__ == "__main__":
    main(*sys.argv[1:])
