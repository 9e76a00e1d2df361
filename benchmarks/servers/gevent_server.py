"""gevent's StreamServer: a greenlet for each connection."""

from __future__ import annotations

import socket as sockets

import gevent.socket
from gevent.server import StreamServer
from serving import BACKLOG, arguments, ready


def echo(socket: gevent.socket.socket, address: tuple[str, int]) -> None:
    socket.setsockopt(sockets.IPPROTO_TCP, sockets.TCP_NODELAY, 1)
    while data := socket.recv(65536):
        socket.sendall(data)


if __name__ == "__main__":
    server = StreamServer(("127.0.0.1", arguments().port), echo, backlog=BACKLOG)
    server.start()
    ready()
    server.serve_forever()
