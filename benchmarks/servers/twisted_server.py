"""Twisted's Protocol and LineReceiver on its epoll reactor."""

from __future__ import annotations

from serving import BACKLOG, arguments, ready
from twisted.internet import epollreactor

epollreactor.install()  # before anything imports the default reactor

from twisted.internet import reactor  # noqa: E402
from twisted.internet.protocol import Factory, Protocol  # noqa: E402
from twisted.protocols.basic import LineReceiver  # noqa: E402


class Echo(Protocol):
    """Writes back what comes in."""

    def connectionMade(self) -> None:  # noqa: N802
        self.transport.setTcpNoDelay(True)

    def dataReceived(self, data: bytes) -> None:  # noqa: N802
        self.transport.write(data)


class EchoLines(LineReceiver):
    """Answers each line."""

    delimiter = b"\n"

    def connectionMade(self) -> None:  # noqa: N802
        self.transport.setTcpNoDelay(True)

    def lineReceived(self, line: bytes) -> None:  # noqa: N802
        self.sendLine(line)


if __name__ == "__main__":
    options = arguments(works=("echo", "lines"))
    factory = Factory.forProtocol(Echo if options.work == "echo" else EchoLines)
    reactor.listenTCP(options.port, factory, backlog=BACKLOG, interface="127.0.0.1")
    reactor.callWhenRunning(ready)
    reactor.run()
