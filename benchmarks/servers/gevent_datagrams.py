"""gevent's DatagramServer: a greenlet for each datagram."""

from __future__ import annotations

from datagrams import enlarge
from gevent.server import DatagramServer
from serving import arguments, ready


class Echo(DatagramServer):
    """Sends the datagram back."""

    def handle(self, data: bytes, address: tuple[str, int]) -> None:
        self.socket.sendto(data, address)


if __name__ == "__main__":
    server = Echo(("127.0.0.1", arguments().port))
    server.start()
    enlarge(server.socket)
    ready()
    server.serve_forever()
