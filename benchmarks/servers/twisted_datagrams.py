"""Twisted's DatagramProtocol on its epoll reactor."""

from __future__ import annotations

from datagrams import enlarge
from serving import arguments, ready
from twisted.internet import epollreactor

epollreactor.install()  # before anything imports the default reactor

from twisted.internet import reactor  # noqa: E402
from twisted.internet.protocol import DatagramProtocol  # noqa: E402


class Echo(DatagramProtocol):
    """Sends the datagram back."""

    def startProtocol(self) -> None:  # noqa: N802
        enlarge(self.transport.socket)

    def datagramReceived(self, datagram: bytes, addr: tuple[str, int]) -> None:  # noqa: N802
        self.transport.write(datagram, addr)


if __name__ == "__main__":
    reactor.listenUDP(arguments().port, Echo(), interface="127.0.0.1")
    reactor.callWhenRunning(ready)
    reactor.run()
