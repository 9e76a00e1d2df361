"""The standard library's UDPServer: one datagram after the other."""

from __future__ import annotations

import socketserver

from datagrams import enlarge
from serving import arguments, ready


class Server(socketserver.UDPServer):
    """With the others' receive buffer."""

    def server_bind(self) -> None:
        enlarge(self.socket)
        super().server_bind()


class Echo(socketserver.BaseRequestHandler):
    """Sends the datagram back."""

    def handle(self) -> None:
        data, socket = self.request
        socket.sendto(data, self.client_address)


if __name__ == "__main__":
    with Server(("127.0.0.1", arguments().port), Echo) as server:
        ready()
        server.serve_forever()
